"""Seeded damage to what a port says: a failed case with a message, or an answer that is right; never a lost run.

rng = random.Random(0)
for _ in range(10_000):
    campaign(rng, folder)
"""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from robustness.vector_files import STRANGE

from grains_ref.conformance.budgets import Budget, load_budgets
from grains_ref.conformance.cases import Case
from grains_ref.conformance.dialects import PAPER
from grains_ref.conformance.ports import PortError, encode_values
from grains_ref.conformance.programs import PROTOCOL, CommandPort, read_hello
from grains_ref.conformance.runner import run_case
from grains_ref.conformance.stages import DTYPES, OUTPUTS
from grains_ref.conformance.vectors import right_of

HELLO = {"version": PROTOCOL, "name": "toy", "stages": [*OUTPUTS], "dtypes": ["float32"], "arrays": "inline"}
ODD = (
    *STRANGE, "NaN", "Infinity", "1.5", [[1.0], [2.0, 3.0]], {"tensor": "/dev/zero#x"}, {"tensor": "a\0b#c"},
    [True, False], 1e308, {"tensor": []}, [-1], [1e300], {"shape": [-1]},
)  # fmt: skip


class Says:
    """Stands for a program: it says one line, whatever it is asked."""

    def __init__(self, line: bytes) -> None:
        self.line = line

    def ask(self, message: bytes, *, timeout: float) -> bytes:
        return self.line

    def has_ended(self) -> bool:
        return False

    def kill(self) -> None:
        pass

    def said(self) -> str:
        return ""


def port_that_says(line: bytes) -> CommandPort:
    """A port without a process."""
    port = CommandPort.__new__(CommandPort)
    port.timeout, port.command, port._seq, port._hangs = 1.0, [], 0, 0
    port.name, port.stages, port.dtypes, port.arrays = read_hello(HELLO, name="")
    port._program = Says(line)  # type: ignore[assignment]
    port._folder = Folder()  # type: ignore[assignment]
    return port


class Folder:
    """Stands for a temporary folder, in which nothing is written."""

    name = "nowhere"


@functools.cache
def cases() -> tuple[tuple[Case, Budget], ...]:
    """A valid case of every stage."""
    budgets = load_budgets()
    firsts = (next(case for case in PAPER.cases if case.stage == stage and case.result == "valid") for stage in OUTPUTS)
    return tuple((case, budgets[case.stage, "float32"]) for case in firsts)


@functools.cache
def right_line(case_id: str) -> bytes:
    """The right answer, as a port would write it."""
    return json.dumps({"seq": 1, "out": encode_values(right_of("paper", case_id).out, None)}).encode()


def mutations(rng: random.Random, line: bytes) -> bytes:
    """A line with one kind of damage."""
    match rng.randrange(8):
        case 0:
            return line
        case 1:
            damaged = bytearray(line)
            for _ in range(rng.randint(1, 3)):
                damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
            return bytes(damaged)
        case 2:
            return line[: rng.randrange(len(line))]
        case 3:
            junk = [
                b"[" * 20_000,
                b"9" * 5000,
                b"NaN",
                b"null",
                b"\xff",
                b"Segmentation fault",
                b'{"seq":1,"seq":1}',
                b"",
            ]
            return rng.choice(junk)
        case 4:
            return line[:-1] + b',"out":{}}'
        case _:
            return json.dumps(_changed(rng, json.loads(line))).encode()


def _changed(rng: random.Random, value: Any) -> Any:
    """One value somewhere inside is another."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value))
        if rng.random() < 0.1:
            return {name: inner for name, inner in value.items() if name != key}
        if rng.random() < 0.1:
            return value | {rng.choice(["refused", "error", "x"]): rng.choice(ODD)}
        return value | {key: _changed(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        i = rng.randrange(len(value))
        if rng.random() < 0.2:
            return value[:i] + value[i + 1 :]
        return [*value[:i], _changed(rng, value[i]), *value[i + 1 :]]
    return rng.choice(ODD)


def check_answer(line: bytes, case: Case, budget: Budget) -> str:
    """ "accepted": the outputs are those that are right; "refused": the case failed, with a message."""
    result = run_case(port_that_says(line), case, "float32", budget)
    if result.status in ("failed", "skipped"):
        assert result.message, "silent: a failure without a message"
        assert all(character.isprintable() or character in "\n\t" for character in result.message)
        return "refused"
    out = json.loads(line)["out"]
    for name, right in right_of("paper", case.id).out.items():
        if name != "tokens":  # of which those after a tie may be others
            np.testing.assert_allclose(np.asarray(out[name], float), right, rtol=1e-3, atol=1e-3, err_msg="silent")
    return "accepted"


def check_hello(line: bytes) -> str:
    """ "accepted": every claim exists; "refused": a `PortError`."""
    port = port_that_says(line)
    try:
        name, stages, dtypes, arrays = read_hello(port._ask({}), name="toy")
    except PortError:
        return "refused"
    assert set(stages) <= set(OUTPUTS), "silent: a stage that does not exist"
    assert set(dtypes) <= set(DTYPES), "silent: a dtype that does not exist"
    assert arrays in ("inline", "safetensors"), "silent: a way of arrays that does not exist"
    assert name.replace("\n", "").replace("\t", "").isprintable() or not name, "silent: a name that a terminal obeys"
    return "accepted"


def campaign(rng: random.Random, folder: Path) -> str:
    """One damaged answer or greeting."""
    if rng.random() < 0.3:
        return check_hello(mutations(rng, json.dumps(HELLO).encode()))
    case, budget = rng.choice(cases())
    return check_answer(mutations(rng, right_line(case.id)), case, budget)
