"""The folder in which a fit keeps what it has finished, until its vectors are written.

| file | holds |
|---|---|
| `fit.json` | what the scores of all examples depend on: pairs, tokens, model, settings, software |
| `000000.safetensors`, ... | one finished example: its scores, and its two shifts with what was masked for them |

Every file knows whether it was changed, and every example which fit it belongs to, so that a damaged or foreign file
costs one example and is never mixed in.  A process that is killed at any moment leaves files that are whole, and
drafts that do no harm.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grains_ref.files import (
    LOCK,
    FileError,
    check_target,
    digest_of,
    is_draft,
    only_writer,
    parse_record,
    printable,
    read_whole,
    record_bytes,
    some_of,
    write_whole,
)
from grains_ref.vectors.tensor_files import parse_tensor_file, tensor_file

RECORD = "fit.json"
TOKENS = "tokens"  # the field of the record that has one digest for every example
INPUTS = {TOKENS, "chat_template", "date"}  # fields that say how the pairs became tokens
AGAIN = "delete this file and run the command again"


class WorkFolderError(FileError):
    """The work folder belongs to another fit, or holds something that is damaged or not ours."""

    def __str__(self) -> str:
        return printable(str(self.args[0]), keep="\n")


class Finished(NamedTuple):
    """One example: its tensors, and what was said beside them."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]


@contextmanager
def open_work_folder(path: Path) -> Iterator[WorkFolder]:
    """Make a work folder, or take up one that an earlier fit left; no other process can use it meanwhile.

    An empty folder is removed at the end.

    Raises:
        FileError: the folder cannot be made or written, or another fit is using it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkFolderError(f"{path} cannot be a work folder ({error.strerror}); name another with --work") from error
    is_held = False
    try:
        with only_writer(path, what="a fit"):
            is_held = True
            check_target(path / RECORD)
            yield WorkFolder(path)
    finally:
        if is_held:
            with suppress(OSError):  # it holds something, or another fit has begun in it
                path.rmdir()


class WorkFolder:
    """What `open_work_folder` gives: finished examples, read and written one by one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fit = ""  # what every example's file must name
        self._files: dict[str, str] = {}  # the files of this fit, with the digests of their contents

    def claim(self, record: Mapping[str, Any], *, names: Sequence[str]) -> None:
        """Begin a fit here, or go on with one that depends on the same things.

        record: plain values, as JSON has them; its field `tokens` has one digest for every example.  names: what to
        call the examples in a message.

        Raises:
            WorkFolderError: the folder holds another fit, or something that is no fit.
        """
        path = self.path / RECORD
        content = record_bytes(record)
        if not path.exists():
            self._refuse_strangers()
            write_whole(path, content)
        else:
            try:
                kept = read_whole(path)
                found = parse_record(kept, name=str(path))
            except FileError as error:
                raise WorkFolderError(f"{error}; {AGAIN}: finished examples are kept") from error
            if found != json.loads(json.dumps(record)):
                self._refuse_other_fit(found, record, names)
            content = kept
        self._fit = digest_of(json.dumps(record, sort_keys=True).encode())
        self._files[RECORD] = digest_of(content)

    def read(self, i: int, *, shapes: Mapping[str, Sequence[int]], dtype: torch.dtype) -> Finished | None:
        """Example i as `write` kept it; None if it is not finished.

        shapes, dtype: what its tensors must be.

        Raises:
            WorkFolderError: its file is damaged, or belongs to another fit or example.
        """
        path = self.path / _name(i)
        if not path.exists():
            return None
        try:
            content = read_whole(path)
            tensors, record = parse_tensor_file(content, name=str(path))
        except FileError as error:
            raise WorkFolderError(f"{error}; {AGAIN}") from error
        if (record.pop("fit", None), record.pop("example", None)) != (self._fit, i):
            raise WorkFolderError(f"{path} is no finished example {i} of this fit; {AGAIN}")
        if tensors.keys() != shapes.keys():
            raise WorkFolderError(f"{path} holds {some_of(sorted(tensors))}, not {some_of(sorted(shapes))}; {AGAIN}")
        for name, tensor in tensors.items():
            if tensor.shape != tuple(shapes[name]) or tensor.dtype != dtype or not tensor.isfinite().all():
                found = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
                expected = f"finite values, {dtype} of shape {tuple(shapes[name])}"
                raise WorkFolderError(f"{path}: {name} is {found}; expected {expected}; {AGAIN}")
        self._files[path.name] = digest_of(content)
        return Finished(tensors, record)

    def write(self, i: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Keep example i.

        Raises:
            OSError: the disk refuses; what was finished before is kept.
        """
        path = self.path / _name(i)
        content = tensor_file(tensors, {**record, "fit": self._fit, "example": i})
        try:
            write_whole(path, content)
        except OSError as error:
            raise OSError(f"{error}; the examples finished so far are kept") from error
        self._files[path.name] = digest_of(content)

    def discard(self) -> list[Path]:
        """Remove what the fit kept, and say what else is in the folder.

        A file goes only if its content is what this fit wrote or read; one that has been replaced since stays.
        """
        for name, digest in reversed(self._files.items()):  # the record last: it tells what the rest belongs to
            with suppress(FileError, OSError):
                if digest_of(read_whole(self.path / name)) == digest:
                    (self.path / name).unlink()
        for path in self.path.iterdir():
            if is_draft(path):
                with suppress(OSError):
                    path.unlink()
        return sorted(path for path in self.path.iterdir() if path.name != LOCK)

    def _refuse_strangers(self) -> None:
        """A folder without a record may only hold what a fit leaves that was killed or lost its record."""
        strangers = [path.name for path in self.path.iterdir() if not _is_ours(path)]
        if strangers:
            raise WorkFolderError(
                f"{self.path} is not empty and not a work folder of grains-ref: it holds {some_of(sorted(strangers))}. "
                "Name another one with --work"
            )

    def _refuse_other_fit(self, found: dict[str, Any], record: Mapping[str, Any], names: Sequence[str]) -> None:
        changed = [key for key in sorted({*found, *record}) if found.get(key) != record.get(key)]
        old, new = found.get(TOKENS), record[TOKENS]
        if TOKENS in changed and set(changed) <= INPUTS and isinstance(old, list) and len(old) == len(new):
            rows = [name for i, name in enumerate(names) if old[i] != new[i]]
            cause = "Have the chat template or the tokenizer changed? Put back what they were"
            if "date" in changed:
                cause = f"The chat template writes the date: give --date {found.get('date')}"
            raise WorkFolderError(
                f"{self.path} holds a fit of the same pairs, but their tokens were others: look at {some_of(rows)}. "
                f"{cause}, and run the command again; or delete the folder, or name another one with --work."
            )
        there = json.dumps({key: found.get(key) for key in changed if key != TOKENS}, sort_keys=True)
        now = json.dumps({key: record.get(key) for key in changed if key != TOKENS}, sort_keys=True)
        raise WorkFolderError(
            f"{self.path} holds a fit with other {', '.join(changed)}.\n  there: {there}\n  now:   {now}\n"
            "Run the earlier command again to finish it, or delete the folder, or name another one with --work."
        )


def _name(i: int) -> str:
    return f"{i:06d}.safetensors"


def _is_ours(path: Path) -> bool:
    """Whether a file is a lock, a draft, or a finished example of some fit."""
    if path.name == LOCK or is_draft(path):
        return True
    if not re.fullmatch(r"[0-9]{6,}\.safetensors", path.name):
        return False
    try:
        _, record = parse_tensor_file(read_whole(path), name=str(path))
    except FileError:
        return False
    return {"fit", "example"} <= record.keys()
