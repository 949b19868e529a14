"""From a file to pairs and tasks: each row through its shape and its checks, with ids that are unique."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from grains_ref.data.columns import content_problem, split_off_content
from grains_ref.data.containers import open_sheet
from grains_ref.data.fields import pair_of, task_of
from grains_ref.data.pairs import (
    FieldError,
    PairFile,
    PairFileError,
    PreferencePair,
    RowError,
    Task,
    TaskFile,
    Where,
    content_digest,
)
from grains_ref.data.shapes import Taken
from grains_ref.files import check_listed

Record = TypeVar("Record", PreferencePair, Task)


def read_pairs(path: str | os.PathLike[str], *, skip_bad_rows: bool = False, ignore: Collection[str] = ()) -> PairFile:
    """Read a whole file of preference pairs, in any of the shapes and containers of `grains_ref.data`.

    Args:
        path: the file.
        skip_bad_rows: leave bad rows out and list them under `skipped`, instead of raising the first one.
        ignore: columns to leave unread although they hold content.

    Raises:
        RowError: a row is bad and `skip_bad_rows` is off.
        PairFileError: no such file, nothing that holds rows, or no good row at all.
    """
    rows = _Rows(path, pair_of, ignore)
    pairs: list[PreferencePair] = []
    skipped: list[RowError] = []
    for _, record in rows:
        if isinstance(record, PreferencePair):
            pairs.append(record)
        elif skip_bad_rows:
            skipped.append(record)
        else:
            raise record
    if not pairs and skipped:
        raise PairFileError(f"{path}: no good row: all {len(skipped)} rows are bad. The first: {skipped[0]}")
    if not pairs:
        raise PairFileError(f"{path}: the file is empty; expected preference pairs, for instance one object per line.")
    return PairFile(
        path=Path(path),
        pairs=tuple(pairs),
        skipped=tuple(skipped),
        digest=content_digest(pairs),
        ignored_columns=tuple(rows.ignored),
        renamed_ids=tuple(rows.renamed),
    )


def read_tasks(path: str | os.PathLike[str], *, ignore: Collection[str] = ()) -> TaskFile:
    """Read a whole file of tasks: `prompt` or `messages`, `answer`, and optionally `image` and `id`.

    ignore: columns to leave unread although they hold content.

    Raises:
        RowError: a row is bad.
        PairFileError: no such file, nothing that holds rows, or no row at all.
    """
    tasks = []
    rows = _Rows(path, task_of, ignore)
    for _, record in rows:
        if isinstance(record, RowError):
            raise record
        tasks.append(record)
    if not tasks:
        raise PairFileError(f"{path}: the file is empty; expected tasks, for instance one object per line.")
    return TaskFile(Path(path), tuple(tasks), tuple(rows.ignored), tuple(rows.renamed))


def stream_pairs(path: str | os.PathLike[str], *, ignore: Collection[str] = ()) -> Iterator[PreferencePair | RowError]:
    """Yield the rows of a file one by one; a bad row is yielded as a `RowError`, for the caller to decide on.

    Raises:
        PairFileError: on the first step, or where the rest of the file cannot be made out.
    """
    for _, record in _Rows(path, pair_of, ignore):
        yield record


def read_column(
    path: str | os.PathLike[str], name: str, *, ignore: Collection[str] = ()
) -> Iterator[tuple[PreferencePair, Any]]:
    """The good rows of a file of pairs, each with the value of one further column, or None.

    ignore: columns to leave unread although they hold content, as in the `read_pairs` that the pairs came from.

    Raises:
        PairFileError: see `read_pairs`.
    """
    check_listed("ignore", ignore, "a list of names of columns")
    for row, record in _Rows(path, pair_of, (name, *ignore)):
        if isinstance(record, PreferencePair):
            yield record, row.get(name)


class _Rows(Generic[Record]):
    """The rows of a file, each as it was read and as a record or an error; afterwards what was noticed on the way."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        build: Callable[[dict[str, Any], Where], tuple[Record, Taken]],
        ignore: Collection[str],
    ) -> None:
        check_listed("ignore", ignore, "a list of names of columns")
        self._path, self._ignore = path, frozenset(ignore)
        self._build: Callable[[dict[str, Any], Where], tuple[Record, Taken]] = build
        self.ignored: dict[str, None] = {}  # columns without content that nothing reads, in order
        self.renamed: list[str] = []
        self._ids: dict[str, int] = {}  # every id in use, and how often it was given

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Record | RowError]]:
        sheet = open_sheet(self._path)
        for number, row in sheet.rows:
            where = Where(str(sheet.path), number)
            try:
                if isinstance(row, FieldError):
                    raise row
                wanted = {name: value for name, value in row.items() if name not in self._ignore}
                record, taken = self._build(wanted, where)
                content, harmless = split_off_content(taken.columns.left, has_picture=bool(taken.images))
                if content:
                    options = " ".join(f"--ignore {shlex.quote(name)}" for name in content[:3])
                    drop = f"{options} (in Python: ignore={content[:3]!r}), or a copy: {sheet.drop_command(content)}"
                    raise FieldError(*content_problem(content, drop=drop))
            except FieldError as error:
                yield {}, RowError(*where, error.field, error.problem)
            else:
                self.ignored.update(taken.columns.ignored)
                self.ignored.update(dict.fromkeys(harmless))
                yield row, self._with_unique_id(record)

    def _with_unique_id(self, record: Record) -> Record:
        """The record, under a new name where an earlier one has its id: a, a#2, a#3."""
        times = self._ids.get(record.id, 0) + 1
        self._ids[record.id] = times
        if times == 1:
            return record
        while f"{record.id}#{times}" in self._ids:
            times += 1
        name = f"{record.id}#{times}"
        self._ids[record.id] = times
        self._ids[name] = 1
        self.renamed.append(name)
        return replace(record, id=name)
