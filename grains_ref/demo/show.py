"""`grains-ref demo` on the screen and in files: what the text demo and the vision demo measured."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from grains_ref.cli.console import out, progress_bar, table_of
from grains_ref.demo import bench, text, vision
from grains_ref.grains import Selection, eligible_tokens, select
from grains_ref.images import read_picture
from grains_ref.models import EncodedPicture
from grains_ref.report.overlay import Panel, overlay_figure
from grains_ref.report.tokens import centring_figure, coloured_tokens, demo_table, named_tokens, strongest_tokens
from grains_ref.tiny_models.visual_worlds import VisualWorldName
from grains_ref.tiny_models.worlds import WorldName, build_world

R = TypeVar("R")


def show_text_demo(world: WorldName, seeds: Sequence[int], output: Path, *, as_json: bool) -> None:
    """Run the text demo, write its files, print what it found."""
    results = _run(functools.partial(text.run_seed, world), seeds, text.steps_per_seed())
    facts = text.facts(world)
    record = bench.record(world, results, facts)
    first = results[0]
    _write(record, first, output)
    text.write_data(build_world(world), output)
    centring_figure(output / "centring.png", world=world, fits=first.fits, shifts=first.shifts)
    if as_json:
        out.print_json(data=record)
        return
    out.print("\nWhat makes the model say the myth?", style="bold", end="")
    out.print(f"  World '{world}', training seed {first.seed}.")
    out.print("Green pushes toward the truth, red toward the myth; underlined tokens are selected (k = 3).")
    out.print("The planted words are marked: [R] rumour, [T] trust.  Scores in nats.\n")
    for prompt, encoded, a in first.shown:
        selection = select(a, k=3, eligible=eligible_tokens(encoded, ()))
        marks = dict.fromkeys(prompt.rumour, "R") | dict.fromkeys(prompt.trust, "T")
        out.print(coloured_tokens(encoded.tokens, a, selection, marks))
        out.print(strongest_tokens(encoded.tokens, a, selection) + "\n")
    title = f"Are the planted rumour words found?  ({_of(results).removeprefix('mean of ')})"
    out.print(table_of(title, ("", "recall@3", "precision@1"), _found_rows(results)))
    out.print("(The entity asked about carries the myth too, so it is often the strongest token.)", style="dim")
    summary = bench.summarise(results, facts)
    title = f"What does steering change?  (300 test prompts, 600 tasks; {_of(results)})"
    out.print(demo_table(summary, title=title, rejected="says myth"))
    _print_chosen(summary)
    names = "report.json, vectors.safetensors, centring.png; the data: {steer,dev,test,dev_tasks,tasks}.jsonl"
    out.print(f"\nWritten to {output}/: {names}\nNext: grains-ref inspect {output}/vectors.safetensors")


def show_vision_demo(world: str, seeds: Sequence[int], output: Path, *, as_json: bool) -> None:
    """Run the vision demo, write its files, print what it found."""
    name: VisualWorldName = "simple-visual" if world == "simple" else "graded-visual"
    vision.write_data(name, output)
    results = _run(functools.partial(vision.run_seed, name, output), seeds, vision.steps_per_seed())
    facts = vision.facts(name)
    record = bench.record(name, results, facts)
    record["embedding_norms"] = [{"image": r.scale[0], "other": r.scale[1]} for r in results]
    first = results[0]
    _write(record, first, output)
    overlays = [_overlay(shown, output) for shown in first.shown]
    if as_json:
        out.print_json(data=record)
        return
    out.print("\nWhy does the model name a colour that is not there?", style="bold", end="")
    out.print(f"  World '{name}', training seed {first.seed}.")
    out.print(
        "Green pushes toward the colour seen, red toward the usual one; underlined: the 5 strongest of each sign."
    )
    out.print("Marked are the planted causes: [L] lure, [G] ground word, [O] a patch of the object. Scores in nats.\n")
    for shown in first.shown:
        selection, marks, tokens = _selection(shown), _marks(shown.prompt), named_tokens(shown.example.encoded)
        image = {j for j, kind in enumerate(shown.example.encoded.kinds) if kind == "image"}
        hidden = image - {*selection.pos, *selection.neg, *shown.prompt.object}
        seen = ", ".join(f"{thing.colour} {thing.shape} {thing.place}" for thing in shown.prompt.scene)
        out.print(f"In the picture: {seen}.", style="dim")
        out.print(coloured_tokens(tokens, shown.a, selection, marks, hidden=hidden))
        out.print(strongest_tokens(tokens, shown.a, selection) + "\n")
    columns = ("", "object's patch first", "lure recall@3", "lure recall@5")
    out.print(table_of(f"Are the planted causes found?  ({_of(results)})", columns, _found_rows(results)))
    out.print("(First among the image tokens; 2 of 21 show the object, so chance is .10.)", style="dim")
    summary = bench.summarise(results, facts)
    title = f"What does steering change?  (300 test prompts, 400 tasks; {_of(results)})"
    out.print(demo_table(summary, title=title, rejected="hallucin."))
    _print_chosen(summary)
    out.print(f"\nThe scores on the pictures: {', '.join(overlays)}")
    names = "report.json, vectors.safetensors; the data: {steer,dev,test,dev_tasks,tasks}.jsonl and pictures/"
    out.print(f"Written to {output}/: {names}\nNext: grains-ref inspect {output}/vectors.safetensors")


def _run(work: Callable[[int, bench.Tick], R], seeds: Sequence[int], steps: int) -> list[R]:
    with progress_bar() as progress:
        bar = progress.add_task("starting", total=len(seeds) * steps)
        return bench.run(work, seeds, lambda what: progress.update(bar, advance=1, description=f"{what:50}"))


def _write(record: dict[str, Any], first: bench.SeedResult, output: Path) -> None:
    (output / "report.json").write_text(json.dumps(record, indent=2) + "\n")
    first.vectors.save(output / "vectors.safetensors")


def _of(results: Sequence[bench.SeedResult]) -> str:
    return f"mean of {len(results)} seeds" if len(results) > 1 else f"seed {results[0].seed}"


def _found_rows(results: Sequence[bench.SeedResult]) -> list[tuple[str, ...]]:
    return [
        (method, *(f"{figure:.2f}" for figure in found.values()))
        for method, found in bench.found_means(results).items()
    ]


def _print_chosen(summary: Sequence[bench.SummaryRow]) -> None:
    out.print("Chosen on dev, at a capability loss of at most half a point:")
    for row in summary[1:]:
        out.print(f"  {row.name.strip()}: {row.chosen}")


def _selection(shown: vision.Shown) -> Selection:
    return select(shown.a, k=5, eligible=eligible_tokens(shown.example.encoded, ()))


def _marks(prompt: vision.VisualPrompt) -> dict[int, str]:
    return dict.fromkeys(prompt.lure, "L") | dict.fromkeys(prompt.ground, "G") | dict.fromkeys(prompt.object, "O")


def _overlay(shown: vision.Shown, output: Path) -> str:
    """Draw one example's scores on its picture; the file's path."""
    encoded, selection = shown.example.encoded, _selection(shown)
    words = named_tokens(encoded)
    strongest = strongest_tokens(words, shown.a, selection)
    assert isinstance(encoded, EncodedPicture)
    panel = Panel("Integrated Gradients", encoded.patches, shown.a.tolist(), selection.pos, selection.neg, strongest)
    path = output / f"overlay-{shown.prompt.id}.png"
    question = shown.prompt.prompt.removeprefix("<image> ")
    picture = read_picture(output / "pictures" / f"{shown.prompt.id}.png")
    answers = f"{shown.prompt.chosen}  rather than  {shown.prompt.rejected}"
    overlay_figure(path, picture, [panel], title=f"{question}\n{answers}")
    return str(path)
