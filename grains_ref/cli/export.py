"""`grains-ref export` and `grains-ref import`: vectors for other tools, with what they lose there, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grains_ref.cli import common, console
from grains_ref.cli.common import (
    BaseOption,
    DateOption,
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    ForceOption,
    IgnoreOption,
    JsonOption,
    LamOption,
    LayersOption,
    ModelOption,
)
from grains_ref.export import TARGETS, find_target
from grains_ref.files import check_target, digest_of, read_whole, write_whole

if TYPE_CHECKING:
    from grains_ref.data import PreferencePair
    from grains_ref.export.measure import Loss
    from grains_ref.export.target import Directions, Target

SENTENCES = (  # to measure on where nobody gives pairs
    "The capital of France is",
    "Water boils at",
    "Yesterday I went to the market and bought",
    "My favourite book is about",
    "If you ask me,",
    "The doctor said that",
    "In the beginning there was",
    "Please write a short letter to",
)
MOST_PROMPTS = 50  # of a file of pairs: more change the first two digits of a loss no more
MEANING = "0 is the same effect, 1 is as far off as not steering at all."


@console.guarded
def export(
    vectors: Annotated[Path, typer.Argument(help="A vectors file.", show_default=False)],
    to: Annotated[str, typer.Option(help=f"The tool: {', '.join(TARGETS)}.", show_default=False)],
    output: Annotated[Path, typer.Option("--out", help="The file to write.", show_default=False)],
    lam: LamOption = None,
    layers: LayersOption = "",
    blocks: Annotated[
        str,
        typer.Option(
            help="How the tool calls a decoder block, {i} for its number. (default: as in Llama)", show_default=False
        ),
    ] = "",
    measure: Annotated[
        str,
        typer.Option(metavar="MODEL", help="Measure on this model how much of the effect is lost.", show_default=False),
    ] = "",
    pairs: Annotated[
        Path | None,
        typer.Option(help="Pairs whose prompts to measure on. (default: eight sentences)", show_default=False),
    ] = None,
    force: ForceOption = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    device_map: DeviceMapOption = "",
    base: BaseOption = "",
    date: DateOption = "",
    ignore: IgnoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write vectors in another tool's format; say what that tool cannot carry, and measure what is lost.

    gguf is for llama.cpp; easysteer and vllm-lens are plug-ins of vLLM; svec is for Steerability (AISteer360).
    """
    from grains_ref.export.target import Asked, directions_of

    target = find_target(to)
    _check_options(target, output, blocks, measures=bool(measure), pairs=pairs)
    in_use = common.read_vectors(vectors, lam, layers)
    given = directions_of(in_use.vectors, lam=in_use.lam, layers=in_use.layers.of(in_use.vectors.n_layers))
    carried = target.carried(given)
    content = target.write(carried, Asked(vectors=vectors, blocks=blocks))
    losses: list[Loss] = []
    on = ""
    if measure:
        file = common.read_pair_file(pairs, skip_bad_rows=False, ignore=ignore) if pairs else None
        chosen = file.pairs[:MOST_PROMPTS] if file else ()
        on = f"{measure}, {len(chosen)} prompts of {pairs}" if file else f"{measure}, {len(SENTENCES)} sentences"
        in_file = target.read(content, str(output))
        wrapped = common.load_model(measure, dtype, device, device_map, date, base)
        losses = _measured(target, in_file, in_use, wrapped, chosen, force=force)
    write_whole(output, content)
    lost = target.losses(given)
    if as_json:
        record = {
            "target": target.name,
            "out": str(output),
            "blocks": carried.blocks,
            "lam": in_use.lam,
            "lost": lost,
            "measured_on": on,
            "losses": [asdict(loss) for loss in losses],
            "usage": target.usage(output, carried),
        }
        console.out.print_json(data=record)
        return
    _print(target, carried, output, lost, losses, on)


def _check_options(target: Target, output: Path, blocks: str, *, measures: bool, pairs: Path | None) -> None:
    """Refuse before the work what would fail after it, or do nothing.

    Raises:
        ValueError: an option that does not suit the target, or a file that cannot be written.
    """
    if target.suffix and output.suffix != target.suffix:
        raise ValueError(f"{target.tool} reads files that end in {target.suffix}: name --out so, not {output.name}")
    if blocks and not target.block_name:
        raise ValueError(f"--blocks is of no use: {target.tool} numbers the blocks")
    if blocks and "{i}" not in blocks:
        raise ValueError(f"--blocks is {blocks!r}; write {{i}} where the number goes, as in {target.block_name!r}")
    if pairs and not measures:
        raise ValueError("--pairs gives prompts to measure on: give --measure MODEL too")
    check_target(output)


def _measured(
    target: Target,
    in_file: Directions,
    in_use: common.VectorsInUse,
    model: Any,
    pairs: Sequence[PreferencePair],
    *,
    force: bool,
) -> list[Loss]:
    from grains_ref.export.measure import measure as measure_losses

    has_chats = any(not isinstance(pair.prompt, str) for pair in pairs)
    steering = in_use.steering(model, force=force, chat=has_chats)
    with console.err.status("measuring"):
        if pairs:
            prompts = [model.encode(pair.prompt, pair.image) for pair in pairs]
        else:
            prompts = [model.encode(sentence) for sentence in SENTENCES]
        return measure_losses(model, steering, in_file, target.uses, prompts, lam=in_use.lam)


def _print(
    target: Target, carried: Directions, output: Path, lost: Sequence[str], losses: Sequence[Loss], on: str
) -> None:
    from grains_ref.cli.lists import write_layers

    where = write_layers(carried.blocks)
    console.out.print(f"{output}: for {target.tool}, lam {carried.lam:g}, blocks {where} (counted from 0).")
    console.out.print("Not carried:" if lost else "All of it is carried.")
    for words in lost:
        console.out.print(f"  {words}")
    if losses:
        rows = [(loss.use, f"{loss.loss:.2g}") for loss in losses]
        console.out.print(console.table_of(f"Loss of effect on {on}", ("use", "loss"), rows))
        console.out.print(MEANING)
    console.out.print("Use it there:")
    for line in target.usage(output, carried).splitlines():
        console.out.print(f"  {line}", soft_wrap=True)


@console.guarded
def import_(
    file: Annotated[Path, typer.Argument(help="A file of another tool.", show_default=False)],
    source: Annotated[
        str,
        typer.Option(
            "--from",
            help=f"Its tool: {', '.join(TARGETS)}. steering-vectors reads any {{block: tensor}} file.",
            show_default=False,
        ),
    ],
    model: ModelOption,
    output: Annotated[Path, typer.Option("--out", help="The vectors file to write.", show_default=False)],
    lam: Annotated[
        float | None,
        typer.Option(help="The strength to store. (default: the file's, if it has one)", show_default=False),
    ] = None,
    force: ForceOption = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    device_map: DeviceMapOption = "",
    base: BaseOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make a vectors file of another tool's vectors: GGUF control vectors, {block: tensor}, and the others.

    The model says how many blocks there are; blocks that the file does not have get a zero vector.
    """
    from grains_ref.cli.lists import write_layers
    from grains_ref.export.importing import imported

    target = find_target(source)
    check_target(output)
    content = read_whole(file)
    directions = target.read(content, str(file))
    wrapped = common.load_model(model, dtype, device, device_map, base=base)
    vectors = imported(
        directions,
        target=source,
        file_digest=digest_of(content),
        n_layers=len(wrapped.blocks),
        width=wrapped.width,
        model_name=wrapped.name,
        fingerprint=wrapped.fingerprint(),
        lam=lam,
        force=force,
    )
    vectors.save(output)
    empty = sorted(set(range(vectors.n_layers)) - set(directions.blocks))
    stored = vectors.header.choice.get("lam")
    if as_json:
        record = {"out": str(output), "blocks": directions.blocks, "empty_blocks": empty, "lam": stored}
        console.out.print_json(data=record)
        return
    console.out.print(f"{output}: vectors of the blocks {write_layers(directions.blocks)}, out of {file}.")
    if empty:
        console.out.print(f"Not in the file, so not steered: blocks {write_layers(empty)}.", style="yellow")
    if directions.header is None:
        console.out.print("The file does not say what the vectors were made of, or with which model.", style="yellow")
    if stored is None:
        console.out.print("It names no strength: give --lam wherever they are used.", style="yellow")
