"""What the readers give: a row as it was read, and the two kinds of questions that are no preference pair.

Preference pairs themselves are `grains_ref.data.PreferencePair`, so that they go straight into fitting and evaluation.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, TypeVar

from grains_ref.data import PreferencePair, Prompt, RowError, content_digest, read_pairs

Made = TypeVar("Made")


class DatasetError(ValueError):
    """A dataset as a whole cannot be read; the message says what was looked for and what to do next."""


@dataclass(frozen=True)
class Row:
    """One row of a dataset, its columns checked; `where` ("cais/mmlu/all/test:12") is for messages to people.

    A picture column holds the path of the picture, or None where the dataset has none.
    """

    id: str
    where: str
    fields: Mapping[str, Any]

    def __getitem__(self, column: str) -> Any:
        return self.fields[column]

    def fail(self, column: str, problem: str) -> NoReturn:
        """Say what is wrong with this row.

        Raises:
            RowError: always.
        """
        path, _, line = self.where.rpartition(":")
        raise RowError(Path(path), int(line), column, problem)


@dataclass(frozen=True)
class MultipleChoice:
    """A question with answers to choose from; `labels` says of each choice whether it is right.

    `options` are the texts that the choices stand for where the choices are letters.  `n_shots` examples with answers
    stand before the question in the prompt.  `group` is the subject or category, for means by group.
    """

    id: str
    prompt: Prompt
    choices: tuple[str, ...]
    labels: tuple[bool, ...]
    where: str
    images: tuple[Path, ...] = ()
    group: str = ""
    options: tuple[str, ...] = ()
    n_shots: int = 0

    @property
    def label(self) -> int:
        """The index of the right choice.

        Raises:
            ValueError: several choices are right (as in TruthfulQA's mc2).
        """
        if sum(self.labels) != 1:
            raise ValueError(f"{self.where}: {sum(self.labels)} choices are right, so there is no single label")
        return self.labels.index(True)


@dataclass(frozen=True)
class Generation:
    """A question to be answered in free words, with right and (where the dataset has them) wrong references."""

    id: str
    question: str
    prompt: Prompt
    references: tuple[str, ...]
    wrong: tuple[str, ...]
    where: str
    images: tuple[Path, ...] = ()
    group: str = ""


def each(
    rows: Iterable[Row], make: Callable[[Row], Made], *, skip_bad_rows: bool
) -> tuple[tuple[Made, ...], tuple[RowError, ...]]:
    """What `make` makes of each row, and the errors of the rows left out (none unless `skip_bad_rows`).

    Raises:
        RowError: a row is bad and `skip_bad_rows` is off.
    """
    made, skipped = [], []
    for row in rows:
        try:
            made.append(make(row))
        except RowError as error:
            if not skip_bad_rows:
                raise
            skipped.append(error)
    return tuple(made), tuple(skipped)


Record: TypeAlias = Row | PreferencePair | MultipleChoice | Generation


def digest(records: Sequence[Record]) -> str:
    """SHA-256 (hex) of the content of records in order; where they were read from does not count.

    Pictures count with their bytes, not with their names.
    """
    contents: list[Any] = []
    for record in records:
        if isinstance(record, PreferencePair):
            contents.append(content_digest([record]))
        else:
            contents.append({f.name: getattr(record, f.name) for f in fields(record) if f.name not in ("where", "id")})
    canonical = json.dumps(contents, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(canonical.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return file_digest(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a record holds a {type(value).__name__}, which has no digest")


def write_pairs(pairs: Sequence[PreferencePair], path: Path) -> str:
    """Write pairs as the JSONL file that `grains_ref.data.read_pairs` and every command take; returns its digest.

    A picture is named relative to the file where it lies beneath its folder, by its absolute path elsewhere.  The file
    is read back, so a pair that the strict reader would refuse is refused here.

    Raises:
        ValueError: no pairs, or two pairs of the same id.
        RowError: a pair is not one that can be read back.
    """
    if not pairs:
        raise ValueError("no pairs to write")
    draft = path.with_name(path.name + ".part")
    try:
        with draft.open("w", encoding="utf-8", newline="\n") as file:
            for pair in pairs:
                file.write(json.dumps(_json_row(pair, path.absolute().parent), ensure_ascii=False) + "\n")
        read_back = read_pairs(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return read_back.digest


def _json_row(pair: PreferencePair, folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"id": pair.id}
    if isinstance(pair.prompt, str):
        row["prompt"] = pair.prompt
    else:
        row["messages"] = list(pair.prompt)
    row |= {"chosen": pair.chosen, "rejected": pair.rejected}
    if pair.image:
        image = pair.image.absolute()
        row["image"] = str(image.relative_to(folder)) if image.is_relative_to(folder) else str(image)
    if pair.label is not None:
        row |= {"choices": list(pair.choices), "label": pair.label}
    return row
