"""A sweep in closed form, and seeded damage to its work folder: the same choice by its own advice, never another.

rng = random.Random(0)
for _ in range(1_000):
    campaign(rng, folder)
"""

from __future__ import annotations

import functools
import math
import random
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from robustness.vector_files import STRANGE
from robustness.work_folders import HP, SmallModel, examples

from grains_ref import grains
from grains_ref.evaluation import choice, measured
from grains_ref.evaluation.choice import Candidate, Grid, SweepChoice, sweep
from grains_ref.evaluation.pair_scores import PairScores
from grains_ref.files import FileError, parse_record, record_bytes
from grains_ref.fitting.work_folder import WorkFolder, open_work_folder
from grains_ref.models import TokenRow
from grains_ref.vectors.tensor_files import parse_tensor_file, tensor_file

HPS = (HP, replace(HP, k=1), replace(HP, k=1, aggregation="mean"))
GRID = Grid(lams=(1.0, 2.0), hps=HPS)
DEV = [TokenRow((9, i), (1,)) for i in range(8)]
TASKS = [TokenRow((8, i), (1,)) for i in range(6)]
SMALL: dict[str, Any] = {"grid": Grid(lams=(1.0,), hps=HPS[1:2]), "examples": examples()[:2]}  # for runs by the hundred


class Scripted:
    """Stands for the measures of a model: they depend on what it is steered by, and are written down."""

    def __init__(self) -> None:
        self.active: Candidate | None = None
        self.calls: list[str] = []

    @contextmanager
    def steering(self, candidate: Candidate) -> Iterator[None]:
        self.active = candidate
        yield
        self.active = None

    def scores(self, model: Any, rows: Sequence[TokenRow]) -> PairScores:
        self.calls.append("dev")
        assert self.active
        if self.active.lam == 2 and self.active.hp.k == 2:
            raise OverflowError("lam |v| is beyond float32")
        size = self.active.lam * float(self.active.fit.v.abs().sum())
        margins = tuple(math.sin(size + row.prompt[1]) for row in rows[: len(rows) // 2])
        return PairScores(margins, tuple(margin / 2 for margin in margins))

    def matches(self, model: Any, rows: Sequence[TokenRow]) -> list[bool]:
        self.calls.append("tasks")
        is_steered = self.active is not None and self.active.lam != 0
        return [row.prompt[1] > 0 or not is_steered for row in rows]

    @contextmanager
    def instead(self) -> Iterator[None]:
        """Within the block `sweep` measures with this."""
        script = self

        def counted(name: str) -> Any:
            real = getattr(grains, name)
            return lambda *args: (script.calls.append(name), real(*args))[1]

        with ExitStack() as stack:
            for name, stub in {
                "pair_rows": lambda model, pairs: DEV,
                "task_rows": lambda model, tasks: TASKS,
                "score_pairs": self.scores,
                "exact_matches": self.matches,
            }.items():
                stack.enter_context(patch.object(choice, name, stub))
            for name in ("attribute", "shift"):
                stack.enter_context(patch.object(grains, name, counted(name)))
            stack.enter_context(patch.object(Candidate, "steering", lambda self, model: script.steering(self)))
            stack.enter_context(patch.object(measured, "library_versions", dict))
            yield


def sweep_in(work: WorkFolder | None, **changes: Any) -> tuple[SweepChoice, list[str]]:
    """The sweep that all of this is about, or one with changes; and what it measured, call by call."""
    script = Scripted()
    options: dict[str, Any] = {"grid": GRID, "max_loss": 20.0, "model": SmallModel(), "examples": examples()} | changes
    options = {"engine": "reference"} | options
    with script.instead():
        return sweep(options.pop("model"), options.pop("examples"), [None] * 8, work=work, **options), script.calls


def same(one: SweepChoice, other: SweepChoice) -> bool:
    """Bit for bit."""
    settings = [[(t.setting.setting(), t.accuracy) for t in found.tried] for found in (one, other)]
    is_equal = settings[0] == settings[1] and one.record() == other.record() and one.left_out == other.left_out
    return is_equal and torch.equal(one.best.fit.v, other.best.fit.v)


@functools.cache
def n_pieces() -> int:
    """How many pieces of work the small sweep has."""
    return len(sweep_in(None, **SMALL)[1])


@functools.cache
def finished() -> tuple[dict[str, bytes], SweepChoice]:
    """The files of a finished sweep, and its choice."""
    with tempfile.TemporaryDirectory() as folder:
        with open_work_folder(Path(folder) / "work", work="sweep") as work:
            found, _ = sweep_in(work)
        return {path.name: path.read_bytes() for path in (Path(folder) / "work").iterdir()}, found


def mutations(rng: random.Random) -> dict[str, bytes]:
    """The files of a finished or half-finished sweep, one of them damaged."""
    files = dict(finished()[0])
    for name in rng.sample(sorted(files), rng.choice([0, 1, 5])):
        del files[name]
    name = rng.choice(sorted(finished()[0]))
    content = finished()[0][name]
    at = rng.randrange(len(content))
    match rng.randrange(5):
        case 0:
            files[name] = content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
        case 1:
            files[name] = content[:at]
        case 2:
            files[name] = rng.choice(sorted(finished()[0].values()))
        case 3:
            files[name] = rng.choice([b"", b"[]", b"{}", b"[" * 20_000, b"\xff"])
        case _:
            files[name] = edited(rng, name, content)
    return files


def edited(rng: random.Random, name: str, content: bytes) -> bytes:
    """A value of the wrong kind under a digest that is right, as only a hand could make it."""
    odd = rng.choice([value for value in STRANGE if value != 10**400 and value not in (0, 7, 1)])
    if name.endswith(".json"):
        record = parse_record(content, name="")
        return record_bytes(record | {rng.choice([key for key in record if key != "overflow"] or ["fit"]): odd})
    tensors, record = parse_tensor_file(content, name="")
    key = rng.choice(sorted(tensors))
    return tensor_file(tensors | {key: rng.choice([tensors[key][:1], tensors[key].double()])}, record)


def check(files: dict[str, bytes], folder: Path) -> str:
    """ "accepted": the same choice; "refused": an error says what to delete, and then it is the same choice."""
    place = folder / "work"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name, content in files.items():
        (place / name).write_bytes(content)
    with patch("os.fsync"):
        for attempt in range(2 * len(finished()[0])):
            try:
                with open_work_folder(place, work="sweep") as work:
                    found, _ = sweep_in(work)
                    left = work.discard()
            except FileError as error:
                follow(str(error), place)
                continue
            assert same(found, finished()[1]), "silent: another choice"
            assert left == [], f"silent: {left} was left"
            return "refused" if attempt else "accepted"
    raise AssertionError("the advice does not end")


def follow(message: str, place: Path) -> None:
    """Do what the message says: delete the file that it names, or those that are none of ours, or all."""
    named = re.findall(re.escape(str(place)) + r"/([\w.-]+\w)", message)
    if "is not empty" in message:
        named = re.findall(r"[a-z]+(?:-[0-9a-f]{16})?(?:-[0-9]{6})?\.(?:json|safetensors)", message)
    elif "delete the folder" in message:
        named = [path.name for path in place.iterdir()]
    assert named, f"the message names no file: {message}"
    for name in named:
        (place / name).unlink(missing_ok=True)


def campaign(rng: random.Random, folder: Path) -> str:
    """One damaged folder."""
    return check(mutations(rng), folder)
