"""The option `--side-effects` of `grains-ref eval`: sets by kind and file, and what was measured on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grains_ref.cli import console
from grains_ref.files import check_target
from grains_ref.files.processes import first

if TYPE_CHECKING:
    from grains_ref.evaluation.side_effect_measures import SideEffects
    from grains_ref.evaluation.side_effect_sets import SideEffectSet

MINIATURES = "miniatures"

SideEffectsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--side-effects",
        metavar="SET",
        help="What else to measure, several times: 'miniatures', or KIND=FILE with a kind of perplexity, harmless, "
        "harmful, bbq, toxicity (also a folder of ToxiGen), choices or tasks.",
        show_default=False,
    ),
]
FigureOption = Annotated[
    Path | None,
    typer.Option("--figure", help="The side effects as a picture: .svg or .png.", show_default=False),
]


def read_side_effects(given: Sequence[str] | None, *, has_vectors: bool, figure: Path | None) -> list[SideEffectSet]:
    """The sets that were asked for, read before a model is loaded.

    Raises:
        ValueError: a set that is not of the form KIND=FILE, a bad file, or options that do not go together.
    """
    if not given:
        if figure is not None:
            raise ValueError("--figure draws side effects: give --side-effects too, for instance miniatures")
        return []
    if not has_vectors:
        raise ValueError("--side-effects compares the plain model with the steered one: give --vectors too")
    if figure is not None:
        from grains_ref.report.side_effects import figure_kind

        figure_kind(figure)
        check_target(figure)
    from grains_ref.evaluation.side_effect_sets import KINDS, miniatures

    sets: list[SideEffectSet] = []
    for words in given:
        if words == MINIATURES:
            sets += miniatures()
            continue
        kind, equals, path = words.partition("=")
        if not equals or kind not in KINDS or not path:
            raise ValueError(
                f"--side-effects {words}: expected {MINIATURES} or KIND=FILE, for instance perplexity=texts.jsonl; the "
                f"kinds are {', '.join(KINDS)}"
            )
        sets.append(_read(kind, Path(path)))
    return sets


def _read(kind: str, path: Path) -> SideEffectSet:
    """A file, or the test split of a folder of ToxiGen."""
    from grains_ref.evaluation.side_effect_sets import SideEffectSet, read_set

    if kind == "toxicity" and path.is_dir():
        from grains_ref.datasets import toxigen

        pairs = toxigen.statements(toxigen.read(path, split="test"), chat=False)
        return SideEffectSet("toxicity", "ToxiGen", pairs, source=str(path))
    return read_set(kind, path)  # type: ignore[arg-type]  # it was looked up among the kinds


def print_side_effects(effects: SideEffects) -> None:
    """The table for people, and what to know of it."""
    from grains_ref.report.side_effects import TITLE, change_of, value_of

    rows = [
        (effect.name, value_of(effect, "unsteered"), value_of(effect, "steered"), change_of(effect), effect.verdict)
        for effect in effects.effects
    ]
    console.out.print(console.table_of(TITLE, ("", "unsteered", "steered", "change in pairs, 95 %", ""), rows))
    for note in effects.notes:
        console.out.print(note, style="dim")


def draw_side_effects(effects: SideEffects, figure: Path | None) -> None:
    """The picture, if one was asked for."""
    if figure is None:
        return
    from grains_ref.report.side_effects import SideEffectsTable

    first(lambda: SideEffectsTable(effects).write_figure(figure))
    console.err.print(f"the side effects: {figure}")
