"""The folder in which a fit or a sweep keeps what it has finished, until its vectors are written.

| file | holds |
|---|---|
| `fit.json` | what the scores of all examples depend on: pairs, tokens, model, settings, software |
| `000000.safetensors`, ... | one finished example: its scores, and its two shifts with what was masked for them |
| `derivative-000000.safetensors`, ... | one derivative that the signal is measured with |
| `sweep.json` | of a sweep (`grains_ref.evaluation.choice`), what all that it measures depends on but the settings |
| `NAME-DIGEST.json`, `NAME-DIGEST-000000.safetensors` | one thing that a sweep has finished, by its settings |

Every file knows whether it was changed, and which fit or sweep it belongs to, so that a damaged or foreign file costs
one example and is never mixed in.  A process that is killed at any moment leaves files that are whole, and drafts that
do no harm.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from grains_ref.files import (
    FileError,
    check_target,
    digest_of,
    is_draft,
    is_lock,
    only_writer,
    parse_record,
    printable,
    read_whole,
    record_bytes,
    some_of,
    write_whole,
)
from grains_ref.files.processes import by_first, held_by_first
from grains_ref.vectors.tensor_files import parse_tensor_file, tensor_file

Work = Literal["fit", "sweep"]
TOKENS = "tokens"  # the field of the record that has one digest for every example
INPUTS = {TOKENS, "chat_template", "date"}  # fields that say how the pairs became tokens
AGAIN = "delete this file and run the command again"


class WorkFolderError(FileError):
    """The work folder belongs to other work, or holds something that is damaged or not ours."""

    def __str__(self) -> str:
        return printable(str(self.args[0]), keep="\n")


class Finished(NamedTuple):
    """One example: its tensors, and what was said beside them."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]


@contextmanager
def open_work_folder(path: Path, *, work: Work = "fit") -> Iterator[WorkFolder]:
    """Make a work folder, or take up one that an earlier fit or sweep left; no other process can use it meanwhile.

    An empty folder is removed at the end.

    Raises:
        FileError: the folder cannot be made or written, or another process is using it.
    """
    with held_by_first(_held(path, work)):
        yield WorkFolder(path, work)


@contextmanager
def _held(path: Path, work: Work) -> Iterator[None]:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkFolderError(f"{path} cannot be a work folder ({error.strerror}); name another with --work") from error
    is_held = False
    try:
        with only_writer(path, what=f"a {work}"):
            is_held = True
            check_target(WorkFolder(path, work).record_path)
            yield
    finally:
        if is_held:
            with suppress(OSError):  # it holds something, or another fit has begun in it
                path.rmdir()


class WorkFolder:
    """What a fit or a sweep has finished, read and written piece by piece.  A piece is an example, or has a name.

    Of several processes the first alone reads and writes; the others get what it read.
    """

    def __init__(self, path: Path, work: Work = "fit") -> None:
        self.path = path
        self.record_path = path / f"{work}.json"
        self._work = work
        self._whose = ""  # what every file must name
        self._files: dict[str, str] = {}  # the files of this work, with the digests of their contents

    @by_first
    def claim(self, record: Mapping[str, Any], *, names: Sequence[str]) -> None:
        """Begin here, or go on with what depends on the same things.

        record: plain values, as JSON has them; the field `tokens` of a fit has one digest for every example.  names:
        what to call the examples in a message.

        Raises:
            WorkFolderError: the folder holds other work, or something that is none.
        """
        path = self.record_path
        content = record_bytes(record)
        if not path.exists():
            self._refuse_strangers()
            write_whole(path, content)
        else:
            try:
                text = read_whole(path)
                record_there = parse_record(text, name=str(path))
            except FileError as error:
                raise WorkFolderError(f"{error}; {AGAIN}: what is finished is kept") from error
            if record_there != json.loads(json.dumps(record)):
                self._refuse_other(record_there, record, names)
            content = text
        self._whose = digest_of(json.dumps(record, sort_keys=True).encode())
        self._files[path.name] = digest_of(content)

    @by_first
    def recorded_number(self, name: str) -> int:
        """A whole number that the folder's record has under this name; 0 if there is none, or no record."""
        with suppress(FileError, OSError):
            number = parse_record(read_whole(self.record_path), name=str(self.record_path)).get(name)
            if type(number) is int and number > 0:
                return number
        return 0

    @by_first
    def has(self, names: Sequence[str]) -> bool:
        """Whether there is a file for each of these pieces or figures, whatever is in it."""
        stems = {path.stem for path in self.path.iterdir()}
        return stems >= set(names)

    @by_first
    def read(self, i: int | str, *, shapes: Mapping[str, Sequence[int]], dtype: torch.dtype) -> Finished | None:
        """Example i, or the piece of that name, as `write` kept it; None if it is not finished.

        shapes, dtype: what its tensors must be.

        Raises:
            WorkFolderError: its file is damaged, or belongs to other work, or is another piece of it.
        """
        path = self.path / _name(i)
        if not path.exists():
            return None
        try:
            content = read_whole(path)
            tensors, record = parse_tensor_file(content, name=str(path))
        except FileError as error:
            raise WorkFolderError(f"{error}; {AGAIN}") from error
        if (record.pop("fit", None), record.pop("example", None)) != (self._whose, i):
            raise WorkFolderError(f"{path} is no finished example {i} of this {self._work}; {AGAIN}")
        if tensors.keys() != shapes.keys():
            raise WorkFolderError(f"{path} holds {some_of(sorted(tensors))}, not {some_of(sorted(shapes))}; {AGAIN}")
        for name, tensor in tensors.items():
            if tensor.shape != tuple(shapes[name]) or tensor.dtype != dtype or not tensor.isfinite().all():
                given = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
                expected = f"finite values, {dtype} of shape {tuple(shapes[name])}"
                raise WorkFolderError(f"{path}: {name} is {given}; expected {expected}; {AGAIN}")
        self._files[path.name] = digest_of(content)
        return Finished(tensors, record)

    @by_first
    def write(self, i: int | str, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Keep example i, or a piece with a name.

        Raises:
            OSError: the disk refuses; what was finished before is kept.
        """
        self._write(_name(i), tensor_file(tensors, {**record, "fit": self._whose, "example": i}))

    @by_first
    def read_figures(self, name: str) -> dict[str, Any] | None:
        """Figures as `write_figures` kept them; None if there are none.

        Raises:
            WorkFolderError: the file is damaged, or belongs to other work, or holds other figures.
        """
        path = self.path / f"{name}.json"
        if not path.exists():
            return None
        try:
            content = read_whole(path)
            figures = parse_record(content, name=str(path))
        except FileError as error:
            raise WorkFolderError(f"{error}; {AGAIN}") from error
        if (figures.pop("fit", None), figures.pop("example", None)) != (self._whose, name):
            raise WorkFolderError(f"{path} holds no figures of this {self._work}; {AGAIN}")
        self._files[path.name] = digest_of(content)
        return figures

    @by_first
    def write_figures(self, name: str, figures: Mapping[str, Any]) -> None:
        """Keep some figures under a name; see `write`."""
        self._write(f"{name}.json", record_bytes({**figures, "fit": self._whose, "example": name}))

    def _write(self, name: str, content: bytes) -> None:
        path = self.path / name
        try:
            write_whole(path, content)
        except OSError as error:
            raise OSError(f"{error}; the examples finished so far are kept") from error
        self._files[name] = digest_of(content)

    @by_first
    def discard(self) -> list[Path]:
        """Remove what was kept, and say what else is in the folder.

        A file goes only if its content is what this work wrote or read, or names this work as its own, as what was
        kept for another grid does; one that has been replaced since stays.
        """
        for path in self.path.iterdir():
            if path.name not in self._files and (_record_of(path) or {}).get("fit") == self._whose:
                with suppress(OSError):
                    path.unlink()
        for name, digest in reversed(self._files.items()):  # the record last: it tells what the rest belongs to
            with suppress(FileError, OSError):
                if digest_of(read_whole(self.path / name)) == digest:
                    (self.path / name).unlink()
        for path in self.path.iterdir():
            if is_draft(path):
                with suppress(OSError):
                    path.unlink()
        return sorted(path for path in self.path.iterdir() if not is_lock(path))

    def _refuse_strangers(self) -> None:
        """A folder without a record may only hold what a fit leaves that was killed or lost its record."""
        strangers = [path.name for path in self.path.iterdir() if not _is_ours(path)]
        if strangers:
            raise WorkFolderError(
                f"{self.path} is not empty and not a work folder of grains-ref: it holds {some_of(sorted(strangers))}. "
                "Name another one with --work"
            )

    def _refuse_other(self, record_there: dict[str, Any], record: Mapping[str, Any], names: Sequence[str]) -> None:
        changed = [key for key in sorted({*record_there, *record}) if record_there.get(key) != record.get(key)]
        old, new = record_there.get(TOKENS), record.get(TOKENS, ())
        if TOKENS in changed and set(changed) <= INPUTS and isinstance(old, list) and len(old) == len(new):
            rows = [name for i, name in enumerate(names) if old[i] != new[i]]
            cause = "Have the chat template or the tokenizer changed? Put back what they were"
            if "date" in changed:
                cause = f"The chat template writes the date: give --date {record_there.get('date')}"
            raise WorkFolderError(
                f"{self.path} holds a fit of the same pairs, but their tokens were others: look at {some_of(rows)}. "
                f"{cause}, and run the command again; or delete the folder, or name another one with --work."
            )
        there = json.dumps({key: record_there.get(key) for key in changed if key != TOKENS}, sort_keys=True)
        now = json.dumps({key: record.get(key) for key in changed if key != TOKENS}, sort_keys=True)
        raise WorkFolderError(
            f"{self.path} holds a {self._work} with other {', '.join(changed)}.\n  there: {there}\n  now:   {now}\n"
            "Run the earlier command again to finish it, or delete the folder, or name another one with --work."
        )


def _name(i: int | str) -> str:
    return f"{i:06d}.safetensors" if isinstance(i, int) else f"{i}.safetensors"


def _is_ours(path: Path) -> bool:
    """Whether a file is a lock, a draft, or something that some fit or sweep has finished."""
    return is_lock(path) or is_draft(path) or _record_of(path) is not None


def _record_of(path: Path) -> dict[str, Any] | None:
    """What is said in a finished piece beside its tensors; None if the file is none."""
    if not re.fullmatch(r"([0-9]{6,}|[a-z]+(-[0-9a-f]{16})?(-[0-9]{6,})?)\.(safetensors|json)", path.name):
        return None
    try:
        content = read_whole(path)
        if path.suffix == ".json":
            record = parse_record(content, name=str(path))
        else:
            _, record = parse_tensor_file(content, name=str(path))
    except FileError:
        return None
    return record if {"fit", "example"} <= record.keys() else None
