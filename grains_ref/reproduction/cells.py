"""A cell is one row on one model: what was chosen on dev and what came out on test; `kept` says what a cell holds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from grains_ref.data import PreferencePair
from grains_ref.demo import workers as processes
from grains_ref.demo.bench import UNSTEERED, tried
from grains_ref.demo.lab import Lab
from grains_ref.demo.planted import build, planted_lab, write_data
from grains_ref.demo.workers import Tick
from grains_ref.evaluation.choice import Choice
from grains_ref.evaluation.measures import generations
from grains_ref.evaluation.metrics import bleu
from grains_ref.fast import EngineName
from grains_ref.grains import DegenerateShiftsError
from grains_ref.methods.core import Setting
from grains_ref.models import BATCH_TOKENS
from grains_ref.reproduction import cost
from grains_ref.reproduction.curves import CURVES
from grains_ref.reproduction.kept import Cell, Unit, write_cell, write_facts
from grains_ref.reproduction.paper import ABILITY_ROWS
from grains_ref.reproduction.rows import rows_of

MakeLab: TypeAlias = Callable[[str, int, Path], Lab]  # world, training seed, a folder for data


def tiny_lab(world: str, seed: int, folder: Path, *, engine: EngineName = "fast") -> Lab:
    """The tiny rung: a planted world, whose pictures are written to the folder first.

    engine: that computes the stages.
    """
    if world != "double":
        write_data(build(world), folder)
    lab = planted_lab(world, seed, folder)
    lab.engine = engine
    return lab


def run(folder: Path, units: Sequence[Unit], *, make_lab: MakeLab, workers: int, tick: Tick) -> None:
    """Fill cells, several models side by side; each cell is written when it is done.

    Models with most cells come first, so that no long one is left for a single worker at the end.
    """
    longest_first = sorted(units, key=lambda unit: len(unit[2]), reverse=True)
    processes.run(functools.partial(_fill_unit, folder, make_lab), longest_first, tick, workers=workers)


def _fill_unit(folder: Path, make_lab: MakeLab, unit: Unit, tick: Tick) -> None:
    world, seed, names = unit
    lab = make_lab(world, seed, folder / "data" / world / f"seed{seed}")
    write_facts(folder, world, seed, lab.facts)
    for name in names:
        what = f"{world}, seed {seed}: {name}"
        tick(what, 0)
        write_cell(folder, world, seed, name, fill(lab, name))
        tick(what, 1)


def fill(lab: Lab, name: str) -> Cell:
    """One cell's figures."""
    try:
        if name in CURVES:
            return {"curve": CURVES[name](lab)}
        cost.import_trainers()
        with cost.measured(lab.model.device) as fit:
            draws = rows_of(is_visual=lab.is_visual)[name](lab)
        figures = {"fit_seconds": fit.seconds, "fit_bytes": fit.peak_bytes}
        with_abilities = name in ABILITY_ROWS
        return figures | {"draws": [_measure(lab, settings, with_abilities=with_abilities) for settings in draws]}
    except DegenerateShiftsError as error:
        return {"error": str(error)}


def _measure(lab: Lab, settings: Sequence[Setting], *, with_abilities: bool = False) -> Cell:
    """Choose among the settings on dev, measure the choice on test."""
    choice = lab.bench.choose(settings)
    chosen = {"label": choice.best.label, "strength": choice.best.strength, "tried": tried(choice)}
    return chosen | _outcomes(lab, choice, with_abilities=with_abilities)


def _generate(lab: Lab, setting: Setting, pairs: Sequence[PreferencePair]) -> list[str]:
    """Greedy answers to the pairs' prompts, a few tokens longer than the longest reference."""
    if not pairs:  # a dataset that is only judged
        return []
    rows = lab.bench.test_rows
    new = max(len(row.response) for row in rows) + 2
    at_once = max(1, BATCH_TOKENS // (max(len(row.prompt) for row in rows) + new))
    with setting.steering():
        return generations(
            lab.model,
            [p.prompt for p in pairs],
            max_new_tokens=new,
            images=[p.image for p in pairs],
            batch_size=at_once,
        )


def _outcomes(lab: Lab, choice: Choice[Setting], *, with_abilities: bool) -> Cell:
    """What the chosen setting does on test; the unsteered model is measured once, for all rows."""
    setting = choice.best
    if setting is UNSTEERED and lab.unsteered:
        return lab.unsteered
    outcome = lab.bench.test(choice)
    pairs, _ = lab.test
    texts = _generate(lab, setting, pairs)
    closer = [
        bleu(text, p.chosen, effective_order=True) > bleu(text, p.rejected, effective_order=True)
        for text, p in zip(texts, pairs, strict=True)
    ]
    measured: dict[str, Sequence[bool]] = {
        "right": outcome.right,
        "rejected": outcome.rejected,
        "bleu": closer,
        "capable": outcome.capable,
    }
    if lab.judged:
        with setting.steering():
            measured["rejected"] = lab.judged()
    if with_abilities or setting is UNSTEERED:
        for name, solved in lab.abilities.items():
            with setting.steering():
                measured[name] = solved()
    outcomes = {name: "".join("1" if bit else "0" for bit in bits) for name, bits in measured.items()}
    if setting is UNSTEERED:
        lab.unsteered = outcomes
    return outcomes
