"""The real rung: every method of `grains_ref.demo.real.rows` on three behaviours and three splits, and what it says.

A cell is one row on one behaviour and split; what is kept of it is what `kept` says, and more fields in its draw:

| field | meaning |
|---|---|
| `rungs` | each strength on dev: label, strength, accuracy, mean margin, controls right, everyday nats, allowed |
| `margins`, `token_margins` | of the test pairs, nats |
| `controls`, `everyday`, `greedy` | margins of the controls; nats per token of everyday answers; said word for word |
| `texts` | what it says to the prompts of the cell `unsteered`, field `asked` |
| `signal` | figures of the signal line, of rows whose edit it knows |

The cell `unsteered` also holds `asked`, `undisturbed` (accuracy without the cause), `by_words` and `causes`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grains_ref.demo import workers as processes
from grains_ref.demo.real import BEHAVIOURS
from grains_ref.demo.real.causes import recall
from grains_ref.demo.real.rows import ROWS
from grains_ref.demo.real.signals import SIGNALS
from grains_ref.demo.real.trial import Chosen, DevRung, TestSeen, Trial, question_of, share_right
from grains_ref.demo.real.verdict import Gains, gains
from grains_ref.demo.real.words import accuracy_by_words
from grains_ref.demo.workers import Tick
from grains_ref.grains import DegenerateShiftsError
from grains_ref.reproduction.kept import Cell, Unit, read_cell, read_facts, write_cell, write_facts

SPLITS = (0, 1, 2)
ON_SPLIT_0_ALONE = (  # what costs much or says little more, so that the whole is done within an hour or so
    "GrAInS, mean",
    "GrAInS, content",
    "CAA, one block",
    "CAA, at the difference",
    "NL-ITI",
    "BiPO",
    "LoRA, the paper's rate",
    "LoRA, rate chosen",
)


def cells(behaviours: Sequence[str], splits: Sequence[int]) -> list[tuple[str, int, str]]:
    """Every cell, split 0 of all behaviours first, in the order of the rows."""
    keys = []
    for split in splits:
        for behaviour in behaviours:
            keys += [(behaviour, split, row) for row in ROWS if split == 0 or row not in ON_SPLIT_0_ALONE]
    return keys


def main_rows_first(units: Sequence[Unit]) -> list[Unit]:
    """The same work, but what runs on split 0 alone comes last, the two of GrAInS excepted, which share its scores."""
    first, later = list[Unit](), list[Unit]()
    for behaviour, split, rows in units:
        last = tuple(row for row in rows if row in ON_SPLIT_0_ALONE and not row.startswith("GrAInS"))
        others = tuple(row for row in rows if row not in last)
        first += [(behaviour, split, others)] if others else []
        later += [(behaviour, split, last)] if last else []
    return first + later


def run(folder: Path, model: Path, units: Sequence[Unit], *, workers: int, tick: Tick) -> None:
    """Fill cells, several behaviours side by side; each cell is written when it is done."""
    processes.run(functools.partial(_fill_unit, folder, model), units, tick, workers=workers)


def _trial(model: Path, name: str, split: int, tick: Tick) -> Trial:
    import transformers

    from grains_ref.models import load

    transformers.utils.logging.disable_progress_bar()
    where = f"{name}, split {split}"
    tick(f"{where}: loading", 0)
    return Trial(load(model, dtype="float32"), BEHAVIOURS[name], split, note=lambda what: tick(f"{where}: {what}", 0))


def _fill_unit(folder: Path, model: Path, unit: Unit, tick: Tick) -> None:
    name, split, rows = unit
    where = f"{name}, split {split}"
    trial = _trial(model, name, split, tick)
    write_facts(folder, name, split, trial.sets.subjects)
    for row in rows:
        tick(f"{where}: {row}", 0)
        write_cell(folder, name, split, row, fill(trial, row))
        tick(f"{where}: {row}", 1)


def without_signal(folder: Path, keys: Sequence[tuple[str, int, str]]) -> list[Unit]:
    """Finished cells that lack their signal, by behaviour and split: an earlier run took it of fewer rows."""
    units: dict[tuple[str, int], list[str]] = {}
    for behaviour, split, row in keys:
        cell = read_cell(folder, behaviour, split, row) if row in SIGNALS else None
        if cell is not None and "draws" in cell and "signal" not in cell["draws"][0]:
            units.setdefault((behaviour, split), []).append(row)
    return [(behaviour, split, tuple(rows)) for (behaviour, split), rows in units.items()]


def add_signals(folder: Path, model: Path, units: Sequence[Unit], *, workers: int, tick: Tick) -> None:
    """Take the signal of finished cells that lack it; each cell is written again when its own is there."""
    processes.run(functools.partial(_add_signals_of_unit, folder, model), units, tick, workers=workers)


def _add_signals_of_unit(folder: Path, model: Path, unit: Unit, tick: Tick) -> None:
    name, split, rows = unit
    trial = _trial(model, name, split, tick)
    for row in rows:
        tick(f"{name}, split {split}: the signal of {row}", 0)
        cell = read_cell(folder, name, split, row)
        assert cell is not None
        cell["draws"][0]["signal"] = SIGNALS[row](trial).record()["figures"]
        write_cell(folder, name, split, row, {"draws": cell["draws"]})
        tick(f"{name}, split {split}: the signal of {row}", 1)


def fill(trial: Trial, row: str) -> Cell:
    """One cell's figures."""
    try:
        draw = _draw(trial.choose(ROWS[row](trial)))
        if row in SIGNALS:
            draw["signal"] = SIGNALS[row](trial).record()["figures"]
    except DegenerateShiftsError as error:
        return {"error": str(error)}
    if row == "unsteered":
        undisturbed = trial.undisturbed_margins() if trial.sets.undisturbed else []
        hits = recall(trial)
        draw |= {
            "asked": [question_of(asked) for asked in trial.shown],
            "undisturbed": share_right(undisturbed) if undisturbed else None,
            "by_words": accuracy_by_words(trial.sets.steer, trial.sets.test),
            "causes": asdict(hits) if hits else None,
        }
    return {"draws": [draw]}


def _draw(chosen: Chosen) -> dict[str, Any]:
    """A choice in plain values, see `kept`."""
    seen = chosen.seen
    return {
        "label": chosen.best.label,
        "strength": chosen.best.strength,
        "tried": [[rung.label, rung.strength, rung.accuracy] for rung in chosen.tried],
        "rungs": [_rung(rung) for rung in chosen.tried],
        "right": "".join("1" if margin > 0 else "0" for margin in seen.margins),
        "capable": "".join("1" if greedy else "0" for greedy in seen.greedy),
        "margins": _rounded(seen.margins),
        "token_margins": _rounded(seen.token_margins),
        "controls": _rounded(seen.controls),
        "everyday": _rounded(seen.everyday),
        "texts": list(seen.texts),
    }


def _rung(rung: DevRung) -> list[Any]:
    right = share_right(rung.controls)
    return [rung.label, rung.strength, rung.accuracy, rung.margin, right, rung.everyday, rung.admissible]


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 5) for value in values]


# ------------------------------------------------------------------------------------------- what cells say
def finished(
    folder: Path, wanted: Sequence[tuple[str, int, str]]
) -> tuple[dict[tuple[str, int, str], Cell], dict[tuple[str, int], Sequence[str]]]:
    """The cells that are there, and the subjects of their test pairs.

    Raises:
        FileError: a file is damaged.
    """
    cells: dict[tuple[str, int, str], Cell] = {}
    for key in wanted:
        cell = read_cell(folder, *key)
        if cell is not None:
            cells[key] = cell
    return cells, {(name, split): read_facts(folder, name, split) for name, split, _ in cells}


def seen_of(cell: Cell) -> TestSeen:
    """What a finished cell measured on test."""
    (draw,) = cell["draws"]
    return TestSeen(
        margins=tuple(draw["margins"]),
        token_margins=tuple(draw["token_margins"]),
        controls=tuple(draw["controls"]),
        everyday=tuple(draw["everyday"]),
        greedy=tuple(bit == "1" for bit in draw["capable"]),
        texts=tuple(draw["texts"]),
    )


def gains_of(
    cells: dict[tuple[str, int, str], Cell], subjects: dict[tuple[str, int], Sequence[str]], behaviour: str, row: str
) -> tuple[Gains, list[int]] | str:
    """A row on one behaviour over all splits that have it, and those splits; or why there is nothing."""
    splits = sorted({split for name, split, of_row in cells if (name, of_row) == (behaviour, row)})
    splits = [split for split in splits if (behaviour, split, "unsteered") in cells]
    if not splits:
        return "not run"
    for split in splits:
        if "error" in cells[behaviour, split, row]:
            return str(cells[behaviour, split, row]["error"])
    steered = [seen_of(cells[behaviour, split, row]) for split in splits]
    base = [seen_of(cells[behaviour, split, "unsteered"]) for split in splits]
    return gains(steered, base, [subjects[behaviour, split] for split in splits]), splits
