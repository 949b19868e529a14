"""A failing case once more, alone in a fresh process of the port: is the port wrong, or does it keep something?

A port with a cache, a buffer or a hook that outlives its call gives wrong answers to cases that it gets right when
nothing came before them; what such an answer looks like says nothing about the port's formulas. So the first failing
case of each stage is asked again before the report names a bug. Asked are cases with the oracle's input: chains are
orders of calls by themselves.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from grains_ref.conformance.ports import Port, PortError
from grains_ref.conformance.programs import NOT_ASKED
from grains_ref.conformance.stages import OUTPUTS

if TYPE_CHECKING:  # a run holds what was found here
    from grains_ref.conformance.runner import Result, Run

MOST = 8  # cases: every one costs a start of the port
SAME_ERROR = 0.1  # relative: other kernels and other orders of summation change an error by less
SECONDS = 60.0  # for all of them together; a port that loads slowly is asked fewer

Start: TypeAlias = Callable[[float], Port]
"""Starts the port anew, in a process of its own that may take so many seconds for an answer."""
Ask: TypeAlias = "Callable[[Port, Result], Result]"
"""Puts the question of a result to a port once more, and judges the answer."""
Outcome = Literal["right", "wrong in the same way", "wrong in another way", "not answered", "not started"]


@dataclass(frozen=True)
class Alone:
    """What a stage's first failing case gave when it was asked alone, in a fresh process of the port.

    after: what it was asked after when it failed first.  message: what was said of it alone.
    """

    case: str
    dtype: str
    after: str
    outcome: Outcome
    message: str = ""

    @property
    def is_right(self) -> bool:
        """Whether the failure is one of order or state, not of the case."""
        return self.outcome == "right"

    def words(self) -> str:
        """What follows from it, in a sentence."""
        asked = f"{self.case} ({self.dtype})"
        if self.is_right:
            return (
                f"The port depends on the order of calls, or keeps state: {asked} is right alone in a fresh process, "
                f"and wrong when other cases came before it, {self.after} the last of them."
            )
        if self.outcome == "wrong in the same way":
            return f"{asked} fails in the same way alone in a fresh process: it is not the order of calls."
        if self.outcome == "wrong in another way":
            return (
                f"{asked} fails alone in a fresh process too, but in another way, so the port keeps something, or "
                f"draws at random: {self.message}"
            )
        if self.outcome == "not started":
            return f"{asked} could not be asked alone: the port did not start a second time: {self.message}"
        return f"{asked} got no verdict alone in a fresh process: {self.message}"


def ask_alone(run: Run, start: Start, ask: Ask) -> Run:
    """The run with what the first failing case of each stage gives alone; no bug is named where it is right.

    start: starts the port anew.  ask: puts the question of a result to it, and judges the answer.
    At most `MOST` cases are asked, and none is begun after `SECONDS`; stages that were left out for this are said.
    """
    deadline = time.monotonic() + SECONDS
    answers: dict[str, Alone] = {}
    left_out: list[str] = []
    for stage in OUTPUTS:
        failures = run.failures(stage)
        if not failures or not _may_depend_on_others(failures[0]):
            continue
        remaining = deadline - time.monotonic()
        if len(answers) >= MOST or remaining <= 0:
            left_out.append(stage)
        else:
            answers[stage] = _asked(failures[0], start, remaining, ask)
    likely = {stage: name for stage, name in run.likely.items() if stage not in answers or not answers[stage].is_right}
    return replace(run, likely=likely, alone=answers, not_alone=tuple(left_out))


def _may_depend_on_others(failure: Result) -> bool:
    """Whether something was asked before it; a chain is no single case, and some cases are not asked at all."""
    is_a_case = failure.mode in ("isolated", "again")
    return is_a_case and bool(failure.after) and not failure.message.startswith(NOT_ASKED)


def _asked(failure: Result, start: Start, seconds: float, ask: Ask) -> Alone:
    def told(outcome: Outcome, message: str) -> Alone:
        return Alone(failure.case, failure.dtype, failure.after, outcome, message)

    try:
        port = start(seconds)
    except PortError as problem:
        return told("not started", str(problem))
    try:
        answer = ask(port, failure)
    finally:
        port.close()
    if answer.status == "passed":
        return told("right", "")
    if answer.status != "failed":
        return told("not answered", f"{answer.status}: {answer.message}")
    is_same = failure.mode == "isolated" and _are_alike(answer, failure)
    return told("wrong in the same way" if is_same else "wrong in another way", answer.message)


def _are_alike(first: Result, second: Result) -> bool:
    """Whether two faults are the same: nearly the same error, and the same message but for its numbers."""
    messages = [result.message.partition("\n")[0].partition(". It wrote")[0] for result in (first, second)]
    without_numbers = [re.sub(r"[-+]?\d[\d.]*(e[-+]?\d+)?", "#", message) for message in messages]
    return math.isclose(first.error, second.error, rel_tol=SAME_ERROR) and without_numbers[0] == without_numbers[1]
