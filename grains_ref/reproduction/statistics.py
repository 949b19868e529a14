"""What cells say: one result for each row, world and measure of a table, with intervals and tests.

Prompts of one fact, the training seeds of a prompt and the draws of a row belong together: means, bootstraps and
permutations are over facts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from grains_ref.demo.summary import mean_over_draws
from grains_ref.evaluation.metrics import Rate, clustered_mean, holm, paired_gain, sign_flip_p
from grains_ref.reproduction.kept import Cell
from grains_ref.reproduction.paper import MEASURES, OF_TASKS, Measure, TableSpec

Cells: TypeAlias = Mapping[tuple[str, int, str], Cell]  # (world, seed, row) -> cell
Facts: TypeAlias = Mapping[tuple[str, int], Sequence[str]]  # (world, seed) -> which fact each test prompt is about


@dataclass(frozen=True)
class Result:
    """One number of a table: a row in one world by one measure, means over seeds and draws."""

    value: Rate
    gain: Rate  # over the unsteered model
    versus: Rate  # over the table's reference row, in pairs
    p: float  # two-sided, of `versus`; Holm-corrected over the rows of the table and world
    chosen: tuple[str, ...]  # by seed and draw
    at_end: bool  # a chosen strength was the last of its grid


Results: TypeAlias = Mapping[tuple[str, str, Measure], Result | str]  # (the page's row, world, measure), see `results`


def results(
    spec: TableSpec, worlds: Sequence[str], cells: Cells, facts: Facts, seeds: Sequence[int]
) -> dict[tuple[str, str, Measure], Result | str]:
    """(the page's row, world, measure) -> its result, or why there is none."""
    table: dict[tuple[str, str, Measure], Result | str] = {}
    for world in worlds:
        for measure in spec.measures:
            of_rows = {
                name: _result(row, spec.reference, world, measure, cells, facts, seeds)
                for name, row in spec.rows.items()
            }
            p_values = {
                name: result.p
                for name, result in of_rows.items()
                if isinstance(result, Result) and spec.rows[name] != spec.reference
            }
            corrected = holm(p_values)
            for name, result in of_rows.items():
                if isinstance(result, Result) and name in corrected:
                    result = replace(result, p=corrected[name])
                table[name, world, measure] = result
    return table


def _result(
    row: str, reference: str, world: str, measure: Measure, cells: Cells, facts: Facts, seeds: Sequence[int]
) -> Result | str:
    """One row's result before correction, or why there is none."""
    mine, base, other = list[float](), list[float](), list[float]()
    clusters, chosen = list[str](), list[str]()
    at_end = False
    for seed in seeds:
        cell, reference_cell = cells[world, seed, row], cells[world, seed, reference]
        for needed in (cell, reference_cell):
            if "error" in needed:
                return str(needed["error"])
        for of_row in (cell, reference_cell, cells[world, seed, "unsteered"]):
            if any(measure not in draw for draw in of_row["draws"]):
                return f"finished before {MEASURES[measure]} was asked for; name another --out to measure it"
        unsteered = _outcomes(cells[world, seed, "unsteered"], measure)
        mine += _outcomes(cell, measure)
        base += unsteered
        other += _outcomes(reference_cell, measure)
        # Tasks and judged questions are about no fact: each is its own cluster, with its seeds together.
        by_fact = measure not in OF_TASKS and len(unsteered) == len(facts[world, seed])
        clusters += facts[world, seed] if by_fact else [f"{i}" for i in range(len(unsteered))]
        for draw in cell["draws"]:
            chosen.append(f"{draw['label']}, {draw['strength']:g}" if draw["strength"] else "unsteered")
            strengths = {strength for _, strength, _ in draw["tried"]}
            at_end |= len(strengths) > 2 and draw["strength"] == max(strengths)  # LoRA has only on and off
    if not mine:
        return "this dataset has no such measure"
    return Result(
        value=clustered_mean(mine, clusters),
        gain=paired_gain(mine, base, clusters=clusters),
        versus=paired_gain(mine, other, clusters=clusters),
        p=sign_flip_p(mine, other, clusters=clusters) if row != reference else 1.0,
        chosen=tuple(chosen),
        at_end=at_end,
    )


def difference(row: str, reference: str, world: str, cells: Cells, facts: Facts, seeds: Sequence[int]) -> Rate | str:
    """A row's test accuracy less another's in one world, prompt by prompt, or why there is none."""
    result = _result(row, reference, world, "right", cells, facts, seeds)
    return result if isinstance(result, str) else result.versus


def _outcomes(cell: Cell, measure: Measure) -> list[float]:
    """Per test prompt, the mean over draws."""
    return mean_over_draws([[bit == "1" for bit in draw[measure]] for draw in cell["draws"]])


def dev_gain(cell: Cell) -> float:
    """What the choice gained on dev over the unsteered model, mean over draws."""
    gains = []
    for draw in cell["draws"]:
        tried = {(label, strength): accuracy for label, strength, accuracy in draw["tried"]}
        gains.append(tried[draw["label"], draw["strength"]] - tried["unsteered", 0.0])
    return sum(gains) / len(gains)


def dev_curve(cell: Cell) -> dict[float, float]:
    """Figure 5: strength -> dev accuracy."""
    return {strength: accuracy for _, strength, accuracy in cell["draws"][0]["tried"]}
