"""A judge's replies, kept in a file: what was paid for once is not asked again.

    judge = Cached(ChatJudge("http://127.0.0.1:8000/v1", model="some-model"), "verdicts.jsonl")

Every line is a record with its digest.  Several processes may add to one file: each waits for the others' lines.
"""

from __future__ import annotations

import os
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from grains_ref.evaluation.judge import Case, Judge
from grains_ref.files import MAX_BYTES, FileError, appending, parse_record, record_bytes, record_digest

BEGINNING = b'{"key"'  # of every line


class Cached:
    """A judge whose replies are kept in a JSONL file, so that an interrupted run goes on where it stopped.

    A reply's key is the digest of the judge's identity and the case.  Each reply is written as soon as it is there; a
    line that was cut off by an interruption is dropped.

    Raises:
        FileError: the file holds something else, or a line of it has been changed; or it cannot be written.
    """

    def __init__(self, judge: Judge, path: str | os.PathLike[str]) -> None:
        self._judge, self._path = judge, Path(path)
        self._lock = threading.Lock()
        self._replies: dict[str, str] = {}
        with appending(self._path) as file:  # also: what cannot be written is known before anything is paid for
            self._read(file)

    def __reduce__(self) -> tuple[Any, ...]:
        """For a worker process, which reads the file itself."""
        return Cached, (self._judge, self._path)

    @property
    def identity(self) -> str:
        """The inner judge's."""
        return self._judge.identity

    def __call__(self, case: Case) -> str:
        """The kept reply, or a new one."""
        described = {"judge": self.identity, **asdict(case)}
        key = _key(described)
        if key not in self._replies:
            reply = self._judge(case)
            line = record_bytes({"key": key, **described, "reply": reply}) + b"\n"
            with self._lock, appending(self._path) as file:
                _cut_unfinished(file)
                file.write(line)
                self._replies[key] = reply
        return self._replies[key]

    def _read(self, file: BinaryIO) -> None:
        """Take the replies out of the file; cut off a last line without an end."""
        content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise FileError(f"{self._path} is larger than {MAX_BYTES} bytes, the most that is read of such a file")
        whole_lines, newline, unfinished = content.rpartition(b"\n")
        for number, line in enumerate(whole_lines.split(b"\n") if newline else [], start=1):
            key, reply = self._verdict(line, f"{self._path}:{number}")
            self._replies.setdefault(key, reply)
        if not newline and not unfinished.startswith(BEGINNING[: len(unfinished)]):
            raise FileError(f"{self._path}: no file of kept verdicts; is this another file?")
        _cut_unfinished(file)

    def _verdict(self, line: bytes, name: str) -> tuple[str, str]:
        """Key and reply of a line.

        Raises:
            FileError: it is not as it was written.
        """
        advice = "Delete this line, and its case is judged anew; or is this another file?"
        try:
            record = parse_record(line, name="it")
        except FileError as error:
            raise FileError(f"{name}: no kept verdict: {error}. {advice}") from error
        key, reply = record.pop("key", None), record.pop("reply", None)
        if not isinstance(key, str) or not isinstance(reply, str) or key != _key(record):
            raise FileError(f"{name}: no kept verdict: its key is not that of its case. {advice}")
        return key, reply


def _key(described: dict[str, Any]) -> str:
    return record_digest(described)


def _cut_unfinished(file: BinaryIO) -> None:
    """Drop what a killed process left behind the last line break; the file's end is where the next line goes."""
    end = file.seek(0, os.SEEK_END)
    start = end
    while start > 0:
        before = max(0, start - (1 << 16))
        file.seek(before)
        at = file.read(start - before).rfind(b"\n")
        if at >= 0:
            start = before + at + 1
            break
        start = before
    if start < end:
        file.truncate(start)
    file.seek(start)
