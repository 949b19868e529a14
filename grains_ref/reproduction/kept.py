"""What a reproduction keeps in its folder: finished cells, which fact each test prompt is about, and its inputs.

| file | holds |
|---|---|
| `inputs.json` | what cells depend on beside their names: rung and engine; of the full rung, weights, data and judge |
| `cells/<world>/seed<seed>/<row>.json` | a cell: one row on one model |
| `cells/<world>/seed<seed>/facts.json` | `facts`: which fact each test prompt is about |

All are records with a digest (`grains_ref.files`).  A cell that was changed counts as not finished.

| field of a cell | meaning |
|---|---|
| `world`, `seed`, `row`, `version` | what was measured, and by which version of this package |
| `fit_seconds` | building the vectors or adapters, less what an earlier row of the same run had computed already |
| `fit_bytes` | the highest point of its memory, beyond what was in use before; null where that cannot be measured |
| `draws` | one entry, or one per random draw: `label`, `strength`, `tried` (label, strength, dev accuracy), outcomes |
| `curve` | of a figure or further page, in place of draws |
| `error` | why the row could not be measured; then there are no draws |

The outcomes of a draw are strings of 0 and 1, one character per test prompt (or task): `right` (the preferred answer
is the more likely one), `rejected` (greedy decoding gives the rejected answer), `bleu` (the generated text is closer
to the preferred answer), `capable`; on the full rung also those of further tests of ability that were asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from grains_ref.files import FileError, read_record, write_record
from grains_ref.vectors import library_versions

Cell: TypeAlias = dict[str, Any]
VERSION = library_versions()["grains_ref"]
OUTCOMES = ("right", "rejected", "bleu", "capable", "humaneval", "writing_prompts", "xstory_cloze")
Unit = tuple[str, int, tuple[str, ...]]  # a world, a training seed, the names of cells to fill


# ------------------------------------------------------------------------------------------ where
def cell_path(folder: Path, world: str, seed: int, name: str) -> Path:
    """Where a cell is kept."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return folder / "cells" / world / f"seed{seed}" / f"{slug}.json"


def facts_path(folder: Path, world: str, seed: int) -> Path:
    """Where it is kept which fact each test prompt is about."""
    return folder / "cells" / world / f"seed{seed}" / "facts.json"


# ------------------------------------------------------------------------------------------ cells
def write_cell(folder: Path, world: str, seed: int, name: str, figures: Mapping[str, Any]) -> None:
    """Keep a cell.

    Raises:
        ValueError: a figure is not finite.
        OSError: the disk refuses.
    """
    path = cell_path(folder, world, seed, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    cell = {"world": world, "seed": seed, "row": name, "version": VERSION} | dict(figures)
    try:
        write_record(path, cell)
    except FileError:
        raise
    except ValueError as error:
        raise ValueError(f"{world}, seed {seed}, {name}: a figure is not finite ({error}); nothing is kept") from error


def read_cell(folder: Path, world: str, seed: int, name: str) -> Cell | None:
    """A finished cell of this version; None if there is none.

    Raises:
        FileError: it is damaged, or something else lies in its place.
    """
    path = cell_path(folder, world, seed, name)
    if not path.exists():
        return None
    cell = read_record(path)
    if not isinstance(cell.get("version"), str):
        raise FileError(f"{path} is no cell: it names no version")
    if cell["version"] != VERSION:
        return None
    if (cell.get("world"), cell.get("seed"), cell.get("row")) != (world, seed, name):
        raise FileError(f"{path} is not the cell {name!r} of {world}, seed {seed}, but another one's")
    if problem := problem_of(cell):
        raise FileError(f"{path} is no cell: {problem}")
    return cell


def problem_of(cell: Cell) -> str:
    """What a cell has that no cell can have; "" if nothing."""
    kinds = [name for name in ("draws", "curve", "error") if name in cell]
    if len(kinds) != 1:
        return "expected one of draws, curve and error"
    if "error" in cell:
        return "" if isinstance(cell["error"], str) else "its error is no text"
    if "curve" in cell:
        return _problem_of_curve(cell["row"], cell["curve"])
    draws, seconds, size = cell["draws"], cell.get("fit_seconds", 0.0), cell.get("fit_bytes")
    if not _is_number(seconds) or not (size is None or _is_number(size)):
        return "its costs are no numbers"
    if not isinstance(draws, list) or not draws:
        return "it has no draws"
    for draw in draws:
        if not _is_draw(draw):
            return "a draw lacks a label, a strength, what was tried, or outcomes of 0 and 1"
    for name in OUTCOMES:
        if len({len(draw[name]) for draw in draws if name in draw}) > 1:
            return f"its draws have {name} for different numbers of prompts"
    return ""


def _is_draw(draw: Any) -> bool:
    if not isinstance(draw, dict) or not isinstance(draw.get("label"), str) or not _is_number(draw.get("strength")):
        return False
    tried = draw.get("tried")
    if not isinstance(tried, list) or not all(_is_tried(one) for one in tried):
        return False
    outcomes = [draw[name] for name in OUTCOMES if name in draw]
    return "right" in draw and all(isinstance(bits, str) and set(bits) <= {"0", "1"} for bits in outcomes)


def _is_tried(one: Any) -> bool:
    if not isinstance(one, list) or len(one) != 3:
        return False
    label, strength, accuracy = one
    return isinstance(label, str) and _is_number(strength) and _is_number(accuracy) and 0 <= accuracy <= 1


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) < 1e300 and math.isfinite(value)


def _problem_of_curve(row: str, curve: Any) -> str:
    """The outer shape of what a figure or page is made of; what is inside is trusted to the digest."""
    if row == "geometry":
        is_right = isinstance(curve, list) and all(isinstance(layer, dict) for layer in curve)
    elif row == "figure 3":
        is_right = isinstance(curve, dict) and all(
            isinstance(values, list) and all(map(_is_number, values)) for values in curve.values()
        )
    elif row == "margins":
        is_right = isinstance(curve, dict) and all(
            isinstance(effect, dict) and all(map(_is_number, effect.values())) for effect in curve.values()
        )
    else:
        is_right = isinstance(curve, dict)
    return "" if is_right and curve else "its curve has another shape"


# ------------------------------------------------------------------------------------------ facts
def write_facts(folder: Path, world: str, seed: int, facts: Sequence[str]) -> None:
    """Keep which fact each test prompt is about."""
    path = facts_path(folder, world, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(path, {"facts": list(facts)})


def read_facts(folder: Path, world: str, seed: int) -> list[str]:
    """Which fact each test prompt is about.

    Raises:
        FileError: that is not there, or damaged.
    """
    path = facts_path(folder, world, seed)
    facts = read_record(path).get("facts")
    if not isinstance(facts, list) or not all(isinstance(fact, str) for fact in facts):
        raise FileError(f"{path} is damaged: it holds no list of facts")
    return facts


# ------------------------------------------------------------------------------------------ what is left to do
def missing(
    folder: Path, cells: Iterable[tuple[str, int, str]], *, on_damage: Callable[[FileError], None]
) -> list[Unit]:
    """The cells that still have to be run, by world and seed: what shares a model is run together.

    A unit without names is one whose facts alone have to be written.  on_damage: is told of every damaged file; what
    it held is run again.
    """
    units: dict[tuple[str, int], list[str]] = {}
    seen: set[tuple[str, int]] = set()
    for world, seed, name in cells:
        try:
            cell = read_cell(folder, world, seed, name)
        except FileError as error:
            on_damage(error)
            cell = None
        if cell is None:
            units.setdefault((world, seed), []).append(name)
        elif (world, seed) not in seen:
            seen.add((world, seed))
            try:
                read_facts(folder, world, seed)
            except FileError as error:
                on_damage(error)
                units.setdefault((world, seed), [])
    return [(world, seed, tuple(names)) for (world, seed), names in units.items()]


def claim(folder: Path, inputs: Mapping[str, str]) -> None:
    """Begin a reproduction here, or go on with one of the same inputs; further inputs may be added, but no engine.

    Raises:
        FileError: cells were made with other inputs, or by nobody knows which engine, or their record is damaged, or
            the folder holds other files.
    """
    path = folder / "inputs.json"
    if not path.exists():
        for name in ("tables.md", "record.json"):
            if (folder / name).exists() and not (folder / "cells").exists():
                raise FileError(
                    f"{folder} holds a {name} and no cells, so it is not ours to replace; name another --out"
                )
        write_record(path, inputs)
        return
    try:
        found = read_record(path)
    except FileError as error:
        raise FileError(f"{error}; delete it if the cells in {folder} were made with these inputs") from error
    changed = [name for name in inputs if name in found and found[name] != inputs[name]]
    if changed:
        there = ", ".join(f"{name}: {found[name]}" for name in changed)
        now = ", ".join(f"{name}: {inputs[name]}" for name in changed)
        raise FileError(
            f"{folder} holds cells of other inputs.\n  there: {there}\n  now:   {now}\n"
            "Run the earlier command again to finish them, or name another folder with --out."
        )
    if "engine" in inputs and "engine" not in found:
        raise FileError(
            f"{path} does not say which engine made the cells beside it, and those of two engines are not mixed. "
            f"Delete it if all of them were made with --engine {inputs['engine']}; or name another folder with --out."
        )
    if found.keys() != found.keys() | inputs.keys():
        write_record(path, found | dict(inputs))
