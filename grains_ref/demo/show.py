"""`grains-ref demo` on the screen and in files: what the text demo and the vision demo measured."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from grains_ref.data.images import read_picture
from grains_ref.demo import text, vision, workers
from grains_ref.demo.centring import centring_figure
from grains_ref.demo.exhibits import marks_of, write_examples
from grains_ref.demo.experiment import Demo, Exhibit, SeedResult, run_seed
from grains_ref.demo.planted import PICTURES, build, facts, write_data
from grains_ref.demo.summary import SummaryRow, detection_means, record, summarise
from grains_ref.fast import EngineName
from grains_ref.files import write_whole
from grains_ref.grains import Selection, eligible_tokens, select
from grains_ref.models import EncodedPicture
from grains_ref.report.overlay import Panel, overlay_figure
from grains_ref.report.tokens import coloured_tokens, named_tokens, strongest_tokens
from grains_ref.tiny_models.visual_worlds import VisualPrompt

TEXT_K, VISION_K = 3, 5  # tokens of either sign that are underlined


@dataclass(frozen=True)
class Terminal:
    """Where a demo prints its results and its progress."""

    out: Console
    progress: Progress


def show_text_demo(
    world: str, seeds: Sequence[int], output: Path, *, as_json: bool, terminal: Terminal, engine: EngineName = "fast"
) -> None:
    """Run the text demo on a world ("simple" or "graded"), write its files, print what it found."""
    results = _run(replace(text.DEMO, engine=engine), world, seeds, output, terminal)
    of_prompts, out = _facts(world), terminal.out
    content = record(world, results, of_prompts)
    _write(content, results, output)
    write_examples(
        output, results[0], [_selection(exhibit, k=TEXT_K) for exhibit in results[0].exhibits], is_visual=False
    )
    centring_figure(output / "centring.png", world=world, k=TEXT_K, centring=results[0].further)
    if as_json:
        out.print_json(data=content)
        return
    out.print("\nWhat makes the model say the myth?", style="bold", end="")
    out.print(f"  World '{world}', training seed {results[0].seed}.")
    out.print(f"Green pushes toward the truth, red toward the myth; underlined tokens are selected (k = {TEXT_K}).")
    out.print("The planted words are marked: [R] rumour, [T] trust.  Scores in nats.\n")
    for exhibit in results[0].exhibits:
        selection, tokens = _selection(exhibit, k=TEXT_K), exhibit.encoded.tokens
        marks = marks_of(exhibit, is_visual=False)
        out.print(coloured_tokens(tokens, exhibit.a, selection, marks))
        out.print(strongest_tokens(tokens, exhibit.a, selection) + "\n")
    title = f"Are the planted rumour words found?  ({_seeds(results)})"
    out.print(detection_table(results, title=title, columns=("recall@3", "precision@1")))
    out.print("(The entity asked about carries the myth too, so it is often the strongest token.)", style="dim")
    title = f"What does steering change?  ({_sizes(results)}; {_mean_of(results)})"
    summary = summarise(results, of_prompts)
    out.print(demo_table(summary, title=title, names=text.ROWS, rejected="says myth"))
    _print_chosen(summary, text.ROWS, out)
    files = "report.json, examples.json, vectors.safetensors, centring.png; the data: "
    files += "{steer,dev,test,dev_tasks,tasks}.jsonl"
    out.print(f"\nWritten to {output}/: {files}\nNext: grains-ref inspect {output}/vectors.safetensors")


def show_vision_demo(
    world: str, seeds: Sequence[int], output: Path, *, as_json: bool, terminal: Terminal, engine: EngineName = "fast"
) -> None:
    """Run the vision demo on a world ("simple" or "graded"), write its files, print what it found."""
    world = f"{world}-visual"
    results = _run(replace(vision.DEMO, engine=engine), world, seeds, output, terminal)
    of_prompts, out = _facts(world), terminal.out
    content = record(world, results, of_prompts) | {"embedding_norms": [result.further for result in results]}
    _write(content, results, output)
    write_examples(
        output, results[0], [_selection(exhibit, k=VISION_K) for exhibit in results[0].exhibits], is_visual=True
    )
    overlays = [_overlay(exhibit, output) for exhibit in results[0].exhibits]
    if as_json:
        out.print_json(data=content)
        return
    out.print("\nWhy does the model name a colour that is not there?", style="bold", end="")
    out.print(f"  World '{world}', training seed {results[0].seed}.")
    out.print(
        f"Green pushes toward the colour seen, red toward the usual one; underlined: the {VISION_K} strongest of each "
        "sign."
    )
    out.print("Marked are the planted causes: [L] lure, [G] ground word, [O] a patch of the object. Scores in nats.\n")
    prompts = {prompt.id: prompt for prompt in build(world).split("steer")}
    for exhibit in results[0].exhibits:
        prompt = prompts[exhibit.pair.id]
        assert isinstance(prompt, VisualPrompt)
        seen = ", ".join(f"{thing.colour} {thing.shape} {thing.place}" for thing in prompt.scene)
        out.print(f"In the picture: {seen}.", style="dim")
        selection, tokens = _selection(exhibit, k=VISION_K), named_tokens(exhibit.encoded)
        patches = vision.object_patches(exhibit.encoded, exhibit.causes)
        marks = marks_of(exhibit, is_visual=True)
        image = {j for j, kind in enumerate(exhibit.encoded.kinds) if kind == "image"}
        hidden = image - patches - {*selection.pos, *selection.neg}
        out.print(coloured_tokens(tokens, exhibit.a, selection, marks, hidden=hidden))
        out.print(strongest_tokens(tokens, exhibit.a, selection) + "\n")
    columns = ("object's patch first", "lure recall@3", "lure recall@5")
    out.print(detection_table(results, title=f"Are the planted causes found?  ({_seeds(results)})", columns=columns))
    out.print("(First among the image tokens; 2 of 21 show the object, so chance is .10.)", style="dim")
    title = f"What does steering change?  ({_sizes(results)}; {_mean_of(results)})"
    summary = summarise(results, of_prompts)
    out.print(demo_table(summary, title=title, names=vision.ROWS, rejected="hallucin."))
    _print_chosen(summary, vision.ROWS, out)
    out.print(f"\nThe scores on the pictures: {', '.join(str(path) for path in overlays)}")
    files = "report.json, examples.json, vectors.safetensors; the data: "
    files += f"{{steer,dev,test,dev_tasks,tasks}}.jsonl and {PICTURES}/"
    out.print(f"Written to {output}/: {files}\nNext: grains-ref inspect {output}/vectors.safetensors")


def _run(demo: Demo, world: str, seeds: Sequence[int], output: Path, terminal: Terminal) -> list[SeedResult]:
    """Write the world's data and run every seed on it."""
    write_data(build(world), output)
    with terminal.progress as progress:
        bar = progress.add_task("starting", total=len(seeds) * len(demo.rows))

        def tick(what: str, finished: int) -> None:
            progress.update(bar, advance=finished, description=f"{what:50}")

        return workers.run(functools.partial(run_seed, demo, world, output), seeds, tick)


def _facts(world: str) -> list[str]:
    """Which fact each test prompt is about."""
    return facts(build(world).split("test"))


def _write(content: dict[str, Any], results: Sequence[SeedResult], output: Path) -> None:
    """The record of all seeds and the vectors of the first."""
    write_whole(output / "report.json", json.dumps(content, indent=2) + "\n")
    results[0].vectors.save(output / "vectors.safetensors")


# --------------------------------------------------------------------------------------------------- tables
def demo_table(rows: Sequence[SummaryRow], *, title: str, names: Mapping[str, str], rejected: str) -> Table:
    """The demo's main table, at most 80 columns wide.

    names: row -> what it is called here.  rejected: what the rejected answer is called here.
    """
    table = _table(title, ("accuracy", "gain [95 % interval]", rejected, "capability"), padding=0)
    for row in rows:
        gain, low, high = (100 * x for x in (row.gain.value, row.gain.low, row.gain.high))
        table.add_row(
            names[row.row],
            f"{100 * row.accuracy.value:.1f} %",
            "" if row.row == "unsteered" else f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]",
            f"{100 * row.rejected_rate:.1f} %",
            f"{100 * row.capability:.1f} %",
        )
    return table


def detection_table(results: Sequence[SeedResult], *, title: str, columns: Sequence[str]) -> Table:
    """How well each attribution method finds the planted causes."""
    table = _table(title, columns, padding=1)
    for method, figures in detection_means(results).items():
        table.add_row(method, *(f"{figure:.2f}" for figure in figures.values()))
    return table


def _table(title: str, columns: Sequence[str], *, padding: int) -> Table:
    """A table whose first column is words and whose others are figures."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, padding))
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _print_chosen(summary: Sequence[SummaryRow], names: Mapping[str, str], out: Console) -> None:
    out.print("Chosen on dev, at a capability loss of at most half a point:")
    for row in summary:
        if row.row != "unsteered":
            out.print(f"  {names[row.row]}: {row.chosen}")


def _seeds(results: Sequence[SeedResult]) -> str:
    return f"{len(results)} seeds" if len(results) > 1 else f"seed {results[0].seed}"


def _mean_of(results: Sequence[SeedResult]) -> str:
    return f"mean of {_seeds(results)}" if len(results) > 1 else _seeds(results)


def _sizes(results: Sequence[SeedResult]) -> str:
    (outcome,) = results[0].outcomes["unsteered"]
    return f"{len(outcome.right)} test prompts, {len(outcome.capable)} tasks"


# ------------------------------------------------------------------------------------------------- pictures
def _selection(exhibit: Exhibit, *, k: int) -> Selection:
    return select(exhibit.a, k=k, eligible=eligible_tokens(exhibit.encoded, ()))


def _overlay(exhibit: Exhibit, output: Path) -> Path:
    """Draw one example's scores on its picture; the file."""
    encoded, pair, selection = exhibit.encoded, exhibit.pair, _selection(exhibit, k=VISION_K)
    assert isinstance(encoded, EncodedPicture)
    assert isinstance(pair.prompt, str)
    strongest = strongest_tokens(named_tokens(encoded), exhibit.a, selection)
    panel = Panel("Integrated Gradients", encoded.patches, exhibit.a.tolist(), selection.pos, selection.neg, strongest)
    path = output / f"overlay-{pair.id}.png"
    question = pair.prompt.removeprefix("<image> ")
    picture = read_picture(output / PICTURES / f"{pair.id}.png")
    overlay_figure(path, picture, [panel], title=f"{question}\n{pair.chosen}  rather than  {pair.rejected}")
    return path
