"""Seeded damage to the files of every registered dataset: refused with a reason, or read as records that make sense.

rng = random.Random(0)
for _ in range(10_000):
    campaign(rng, folder)
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet

from grains_ref.data import PreferencePair, RowError, check_texts
from grains_ref.data.pairs import FieldError
from grains_ref.datasets.records import DatasetError, Generation, MultipleChoice, Record, Row, digest
from grains_ref.datasets.registry import DATASETS, fixture

STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2, 7, 2**63, 1e308, math.nan, math.inf, "", " ", "\u200b", "x", "A", "0", "\x1b[2J\u202e",
    "\x00", "no such picture.png", "/dev/zero", "..", "word " * 3000, [], {}, [[]], [None], ["a", "a"],
    ["a", ""], [1, 0], [1, 1], [2], {"bytes": b"", "path": None}, {"bytes": b"no picture", "path": None},
    {"choices": [], "labels": []},
)  # fmt: skip


class Damage(NamedTuple):
    """One kind of damage; `always` if no reader may take what it leaves."""

    do: Callable[[random.Random, Path, Path], None]  # a random draw, the folder, one of its files
    always: bool = False


# --- damage to a file


def flip(rng: random.Random, folder: Path, file: Path) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(rng.randint(1, 4)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def cut(rng: random.Random, folder: Path, file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(len(content))])


def zeros(rng: random.Random, folder: Path, file: Path) -> None:
    content = file.read_bytes()
    start = rng.randrange(len(content))
    file.write_bytes(content[:start] + bytes(len(content) - start))


def nothing(rng: random.Random, folder: Path, file: Path) -> None:
    file.write_bytes(b"")


def pointer(rng: random.Random, folder: Path, file: Path) -> None:
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")


def page(rng: random.Random, folder: Path, file: Path) -> None:
    file.write_bytes(b"<!DOCTYPE html><html>Not found</html>")


def deep(rng: random.Random, folder: Path, file: Path) -> None:
    depth = rng.choice([99, 101, 20_000])
    file.with_suffix(".jsonl").write_text('{"a": ' + "[" * depth + "]" * depth + "}\n")
    if file.suffix != ".jsonl":
        file.unlink()


def gone(rng: random.Random, folder: Path, file: Path) -> None:
    file.unlink()


def pipe(rng: random.Random, folder: Path, file: Path) -> None:
    """A reader of a named pipe waits for ever."""
    file.unlink()
    os.mkfifo(file)


def twice(rng: random.Random, folder: Path, file: Path) -> None:
    shutil.copy(file, file.with_name(f"copy of {file.name}"))


# --- damage to a value


def value(rng: random.Random, folder: Path, file: Path) -> None:
    _edited(rng, file, lambda row, key: row.__setitem__(key, rng.choice(STRANGE)))


def no_column(rng: random.Random, folder: Path, file: Path) -> None:
    rows = _rows(file)
    name = rng.choice(sorted(rows[0]))
    for row in rows:
        row.pop(name, None)
    _write(file, rows)


def renamed_column(rng: random.Random, folder: Path, file: Path) -> None:
    rows = _rows(file)
    name, new = rng.choice(sorted(rows[0])), rng.choice(["\x1b[2J", "", "x" * 10_000, "Label"])
    _write(file, [{new if key == name else key: inner for key, inner in row.items()} for row in rows])


def column_of_another_type(rng: random.Random, folder: Path, file: Path) -> None:
    rows = _rows(file)
    name, strange = rng.choice(sorted(rows[0])), rng.choice(STRANGE)
    _write(file, [row | {name: strange} for row in rows])


def no_rows(rng: random.Random, folder: Path, file: Path) -> None:
    _write(file, [])


def repeated_rows(rng: random.Random, folder: Path, file: Path) -> None:
    _write(file, _rows(file) * 2)


def _edited(rng: random.Random, file: Path, edit: Callable[[Any, Any], None]) -> None:
    """Edit one value, however deep."""
    rows = _rows(file)
    parent, key = rng.choice(rows), ""
    key = rng.choice(sorted(parent))
    while isinstance(parent[key], (dict, list)) and parent[key] and rng.random() < 0.6:
        parent = parent[key]
        key = rng.choice(sorted(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
    edit(parent, key)
    _write(file, rows)


def _rows(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".parquet":
        return pyarrow.parquet.read_table(file).to_pylist()
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text().splitlines()]
    rows = json.loads(file.read_text())
    return rows if isinstance(rows, list) else [rows]


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    """As it was stored, or as JSON lines where its format holds no such rows."""
    if file.suffix == ".parquet":
        try:
            pyarrow.parquet.write_table(pa.Table.from_pylist(rows), file)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            file.unlink(missing_ok=True)
            file = file.with_suffix(".jsonl")
        else:
            return
    if file.suffix == ".json":
        file.write_text(json.dumps(rows, default=str))
    else:
        file.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows))


BYTES = (Damage(flip), Damage(cut), Damage(zeros), Damage(nothing, always=True), Damage(pointer, always=True),
         Damage(page, always=True), Damage(gone), Damage(pipe), Damage(twice))  # fmt: skip
VALUES = (Damage(value), Damage(value), Damage(value), Damage(value), Damage(no_column), Damage(renamed_column),
          Damage(column_of_another_type), Damage(no_rows), Damage(repeated_rows), Damage(deep))  # fmt: skip


# --- reading


def campaign(rng: random.Random, folder: Path) -> str:
    """One damaged dataset; "accepted" or "refused". Anything else, such as senseless records, raises AssertionError."""
    name = rng.choice(sorted(DATASETS))
    place = folder / "damaged"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(fixture(name), place)
    files = sorted(path for path in place.rglob("*") if path.is_file())
    tables = [path for path in files if path.suffix in (".parquet", ".jsonl", ".json")]
    if rng.random() < 0.35:
        damage, file = rng.choice(BYTES), rng.choice(files)
    else:
        damage, file = rng.choice(VALUES), rng.choice(tables)
    damage.do(rng, place, file)
    what = f"{name}, {file.relative_to(place)}, {damage.do.__name__}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            records = DATASETS[name].records(place, folder / "pictures")
        for made in records.values():
            for record in made:
                _check(record)
            digest(made)
    except (DatasetError, RowError) as error:
        _check_refusal(str(error), what)
        return "refused"
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from error
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    finally:
        shutil.rmtree(folder / "pictures", ignore_errors=True)
    assert not (damage.always and file in tables and _is_read(name, file, place)), f"{what}: was read all the same"
    return "accepted"


def _check_refusal(message: str, what: str) -> None:
    assert not set(message) & {"\x1b", "\u202e", "\x00"}, f"{what}: a raw control character is in the message"
    assert len(message) < 30_000, f"{what}: a message of {len(message)} characters"


def _is_read(name: str, file: Path, place: Path) -> bool:
    """Whether a reader needs this file: the intact dataset cannot be read without it."""
    shutil.rmtree(place)
    shutil.copytree(fixture(name), place)
    file.unlink()
    try:
        DATASETS[name].records(place, place / "pictures")
    except (DatasetError, RowError):
        return True
    return False


def _check(record: Record) -> None:
    """What every user of a record takes for granted."""
    if isinstance(record, PreferencePair):
        try:
            check_texts(prompt=record.prompt, chosen=record.chosen, rejected=record.rejected)
        except FieldError as error:
            raise AssertionError(f"a pair that no fit takes: {error}") from error
        assert record.label is None or record.choices[record.label] == record.chosen
        assert record.image is None or record.image.is_file()
    elif isinstance(record, MultipleChoice):
        assert len(record.choices) == len(record.labels) >= 2
        assert any(record.labels)
        assert all(isinstance(choice, str) and choice.strip() for choice in record.choices), record.choices
        assert all(image.is_file() for image in record.images)
    elif isinstance(record, Generation):
        assert isinstance(record.question, str)
        assert record.question.strip(), "a question of nothing"
        assert record.references, "no reference"
        assert all(isinstance(text, str) and text.strip() for text in (*record.references, *record.wrong))
        assert all(image.is_file() for image in record.images)
    else:
        assert isinstance(record, Row)
