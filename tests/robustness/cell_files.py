"""Seeded damage to the cells and facts of a reproduction: not finished, and said so, or exactly what was measured.

rng = random.Random(0)
for _ in range(10_000):
    campaign(rng, folder)
"""

from __future__ import annotations

import functools
import json
import random
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

from robustness.vector_files import STRANGE

from grains_ref.files import FileError, parse_record, record_bytes
from grains_ref.reproduction import kept, statistics

PLACE = ("simple", 0, "GrAInS")
FACTS = ["a", "a", "b"]
DRAW = {
    "label": "GrAInS",
    "strength": 1.0,
    "tried": [["unsteered", 0.0, 0.25], ["GrAInS", 1.0, 0.5]],
    "right": "011",
    "rejected": "000",
    "bleu": "111",
    "capable": "10",
}
FIGURES: dict[str, dict[str, Any]] = {
    "GrAInS": {"fit_seconds": 1.5, "fit_bytes": None, "draws": [DRAW, DRAW | {"right": "111"}]},
    "figure 3": {"curve": {"positive": [0.5, 1.0], "negative": [0.0, -1.0]}},
    "margins": {"curve": {"GrAInS": {"mean": 0.5, "spread": 1.0}}},
    "CAA": {"error": "no direction"},
}


@functools.cache
def originals() -> dict[str, bytes]:
    """The files of finished cells, and of the facts."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kept.write_facts(folder, "simple", 0, FACTS)
        paths = {"facts": kept.facts_path(folder, "simple", 0)}
        for row, figures in FIGURES.items():
            kept.write_cell(folder, "simple", 0, row, figures)
            paths[row] = kept.cell_path(folder, "simple", 0, row)
        return {row: path.read_bytes() for row, path in paths.items()}


def mutations(rng: random.Random) -> tuple[str, bytes]:
    """Which file, and its content with one kind of damage."""
    row = rng.choice(sorted(originals()))
    content = originals()[row]
    at = rng.randrange(len(content))
    match rng.randrange(7):
        case 0:
            flipped = bytearray(content)
            flipped[at] ^= 1 << rng.randrange(8)
            return row, bytes(flipped)
        case 1:
            return row, content[:at]
        case 2:
            return row, content[:at] + content[at + rng.randint(1, 30) :]
        case 3:  # another file whole
            return row, rng.choice(sorted(originals().values()))
        case 4:
            record = json.loads(content)
            name = rng.choice(sorted(record))
            return row, json.dumps(record | {name: rng.choice(STRANGE)}).encode()
        case 5:  # the digest is right again, as only a hand could make it
            record = parse_record(content, name="")
            name = rng.choice(sorted(record))
            return row, record_bytes(record | {name: _edited(rng, record[name])})
        case _:
            return row, rng.choice(
                [b"", b"[]", b"null", b"[" * 20_000, b"{}", b"\xff", b'{"sha256": NaN}', b"9" * 5000]
            )


def _edited(rng: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        return value | {key: _edited(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        i = rng.randrange(len(value))
        return [*value[:i], _edited(rng, value[i]), *value[i + 1 :]]
    return rng.choice([odd for odd in STRANGE if odd != 10**400])


def check(row: str, content: bytes, folder: Path) -> str:
    """ "accepted": what is read is what was written, or what a hand wrote in the right form; "refused": run again."""
    damaged: list[FileError] = []
    asked = "GrAInS" if row == "facts" else row
    with patch("os.fsync"):
        kept.write_facts(folder, "simple", 0, FACTS)
        kept.write_cell(folder, "simple", 0, asked, FIGURES[asked])
    path = kept.facts_path(folder, "simple", 0) if row == "facts" else kept.cell_path(folder, "simple", 0, row)
    path.write_bytes(content)
    units = kept.missing(folder, [("simple", 0, asked)], on_damage=damaged.append)
    if units:
        assert units == [("simple", 0, () if row == "facts" else (row,))], f"silent: {units}"
        is_of_another_version = b'"version"' in content and not damaged
        assert damaged or is_of_another_version, "silent: nothing was said"
        return "refused"
    if row == "facts":
        assert all(isinstance(fact, str) for fact in kept.read_facts(folder, "simple", 0))
        return "accepted"
    cell = kept.read_cell(folder, "simple", 0, row)
    assert cell is not None
    assert kept.problem_of(cell) == "", "silent: a cell that can be none"
    if "draws" in cell:
        statistics.dev_curve(cell)
        assert all(0 <= share <= 1 for share in statistics._outcomes(cell, "right")), "silent: no shares"
    return "accepted"


def campaign(rng: random.Random, folder: Path) -> str:
    """One damaged file."""
    return check(*mutations(rng), folder)
