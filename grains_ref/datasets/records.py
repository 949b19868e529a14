"""What the readers give: a row as it was read, and the kinds of questions that are no preference pair.

Preference pairs themselves are `grains_ref.data.PreferencePair`, so that they go straight into fitting and evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, TypeVar

from grains_ref.data import FieldError, PreferencePair, Prompt, RowError, Where, check_texts, content_digest
from grains_ref.data.pairs import check_visible
from grains_ref.files import check_listed, digest_of, printable

Item = TypeVar("Item")
Made = TypeVar("Made")


class DatasetError(ValueError):
    """A dataset as a whole cannot be read; the message says what was looked for and what to do next."""

    def __str__(self) -> str:
        return printable(super().__str__(), keep="\n")


@dataclass(frozen=True)
class Row:
    """One row of a dataset, its columns checked; the `path` of its place may be a split of the hub.

    A picture column holds the path of the picture, or None where the dataset has none.
    """

    id: str
    where: Where
    fields: Mapping[str, Any]

    def __getitem__(self, column: str) -> Any:
        return self.fields[column]

    def fail(self, column: str, problem: str) -> NoReturn:
        """Say what is wrong with this row.

        Raises:
            RowError: always.
        """
        raise RowError(*self.where, column, problem)


def check_seen(row: Row, text: str, column: str) -> None:
    """Refuse a text of which nothing can be seen.

    Raises:
        RowError: with the row's place and the column.
    """
    try:
        check_visible(text, column)
    except FieldError as error:
        row.fail(error.field, error.problem)


def checked_pair(pair: PreferencePair) -> PreferencePair:
    """The pair, if it is one that the reader of pair files takes, too.

    Raises:
        RowError: a text of which nothing can be seen, or two answers that are the same.
    """
    try:
        check_texts(prompt=pair.prompt, chosen=pair.chosen, rejected=pair.rejected)
    except FieldError as error:
        raise pair.error(error.field, error.problem) from error
    return pair


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
    where: Where
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
    where: Where
    images: tuple[Path, ...] = ()
    group: str = ""


@dataclass(frozen=True)
class JudgedQuestion(Generation):
    """A question about a picture whose free answers a judge rates, with the objects that the picture shows.

    The judge compares with the first reference.
    """

    image_content: tuple[str, ...] = ()
    topic: str = ""


Record: TypeAlias = Row | PreferencePair | MultipleChoice | Generation


def make_records(
    items: Iterable[Item], make: Callable[[Item], Made], *, skip_bad_rows: bool
) -> tuple[tuple[Made, ...], tuple[RowError, ...]]:
    """What `make` makes of each row, and the errors of the rows left out (none unless `skip_bad_rows`).

    Raises:
        RowError: a row is bad and `skip_bad_rows` is off.
    """
    check_listed("items", items, "a list of rows")
    made: list[Made] = []
    skipped: list[RowError] = []
    for item in items:
        try:
            made.append(make(item))
        except RowError as error:
            if not skip_bad_rows:
                raise
            skipped.append(error)
    return tuple(made), tuple(skipped)


def digest(records: Sequence[Record]) -> str:
    """SHA-256 (hex) of the content of records in order; where they were read from does not count.

    Pictures count with their bytes, not with their names.
    """
    check_listed("records", records, "a list of records")
    contents: list[Any] = []
    for record in records:
        if isinstance(record, PreferencePair):
            contents.append(content_digest([record]))
        else:
            names = [field.name for field in fields(record) if field.name not in ("where", "id")]
            contents.append({name: getattr(record, name) for name in names})
    canonical = json.dumps(contents, sort_keys=True, separators=(",", ":"), default=_as_json)
    return digest_of(canonical.encode())


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    return digest_of(path.read_bytes())


def _as_json(value: Any) -> Any:
    if isinstance(value, Path):
        return file_digest(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a record holds a {type(value).__name__}, which has no digest")
