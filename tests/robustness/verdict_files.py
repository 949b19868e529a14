"""Seeded damage to the file of a judge's replies: it is refused, or every reply is the right one.

rng = random.Random(0)
for _ in range(10_000):
    campaign(rng, folder)
"""

from __future__ import annotations

import functools
import json
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from robustness.judge_answers import CASE
from robustness.vector_files import STRANGE

from grains_ref.evaluation.judge import Case
from grains_ref.evaluation.verdicts import Cached
from grains_ref.files import FileError, parse_record, record_bytes

CASES = [replace(CASE, answer=f"There are {i} dogs.") for i in range(3)]


class Echo:
    """A judge that repeats the answer."""

    identity = "echo"

    def __call__(self, case: Case) -> str:
        return f"{case.answer} Rating: {len(case.answer) % 7}"


@functools.cache
def original() -> bytes:
    """A file with a reply for every case."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "verdicts.jsonl"
        cached = Cached(Echo(), path)
        for case in CASES:
            cached(case)
        return path.read_bytes()


def mutations(rng: random.Random) -> bytes:
    """The file with one kind of damage."""
    content, lines = original(), original().splitlines(keepends=True)
    i = rng.randrange(len(lines))
    at = rng.randrange(len(content))
    match rng.randrange(8):
        case 0:
            flipped = bytearray(content)
            flipped[at] ^= 1 << rng.randrange(8)
            return bytes(flipped)
        case 1:
            return content[:at]
        case 2:
            return content[:at] + content[at + rng.randint(1, 30) :]
        case 3:
            return b"".join(rng.sample(lines, rng.randint(0, len(lines)))) + rng.choice([b"", lines[i]])
        case 4:  # a reply is exchanged for another line's, digits and all
            record, other = (json.loads(line) for line in rng.sample(lines, 2))
            return json.dumps(record | {"reply": other["reply"]}).encode() + b"\n"
        case 5:  # one value is another, and the digest is right again
            record: dict[str, Any] = parse_record(lines[i], name="")
            name = rng.choice([name for name in record if name != "reply"])
            record[name] = rng.choice([value for value in STRANGE if value not in (10**400, record[name])])
            return content + record_bytes(record) + b"\n"
        case 6:
            junk = [b"[" * 20_000, b"{}", b"null", b"\xff\xfe", b"", b'{"key": NaN}', b"a,b"]
            return content + rng.choice(junk) + b"\n"
        case _:
            return rng.randbytes(rng.randint(1, 200))


def check(content: bytes, path: Path) -> str:
    """ "accepted": every reply is the judge's own; "refused" by a FileError, and the file is as it was."""
    path.write_bytes(content)
    with patch("os.fsync"):
        try:
            cached = Cached(Echo(), path)
        except FileError:
            assert path.read_bytes() == content, "silent: a refused file was changed"
            return "refused"
        for case in CASES:
            assert cached(case) == Echo()(case), f"silent: {cached(case)!r}"
    return "accepted"


def campaign(rng: random.Random, folder: Path) -> str:
    """One damaged file."""
    return check(mutations(rng), folder / "verdicts.jsonl")
