"""Which planted bug is it? A name only when it is earned.

Every planted bug of the failing stage is run on the inputs of a few wrong outputs, and what reproduces one of them on
all others; on more of them, as long as no bug is named. With e the error of a wrong output and n its distance from a
bug's output, both relative:

- a bug **reproduces** a wrong output if n <= 0.1 e, and is itself wrong on that input: what lies within the budget of
  the right output is no explanation of a wrong one;
- a bug is **named** if it reproduces at least half of the stage's wrong outputs, where every right output that the bug
  would have made wrong counts like one that it does not reproduce;
- else a **kind** of bug is named (`bugs.kinds`) if the nearest bug of at least half of the wrong outputs that were
  looked at is of that kind and has n <= e / 2, and no other kind has three quarters as many. Bugs that are a tenth
  further away than the nearest count as nearest too;
- else nothing is named.

Errors of float32's size under a claim of float64 are rounding, and no bug is looked for. `benchmarks/leave_one_out.py`
measures how often these rules are right about bugs that are in no list.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from grains_ref.conformance.budgets import load_budgets
from grains_ref.conformance.bugs import Bug
from grains_ref.conformance.compare import distance
from grains_ref.conformance.dialects import DIALECTS, PAPER, Dialect
from grains_ref.conformance.stages import DTYPES, OUTPUTS, Values
from grains_ref.conformance.vectors import right_of

REPRODUCED = 0.1  # n / e up to which a bug reproduces an output
LIKE = 0.5  # n / e up to which a bug speaks for its kind
SHARE = 0.5  # of the wrong outputs that a bug or a kind must account for
NEARLY = 1.1  # times the smallest n up to which a bug counts as nearest
CLEARLY = 0.75  # times its votes from which on another kind makes the first one doubtful
LOOKED_AT = (4, 16)  # wrong outputs per stage that all bugs are tried on: first, and where no bug is named by these
CANDIDATES = 12  # bugs that are tried on the others
ALIKE = 10  # bugs whose distances differ by less than this factor, or lie within rounding, are not told apart
REFUSALS = (ValueError, ArithmeticError, RuntimeError, IndexError)  # what a bug may answer to an input
EPS = {dtype: float(torch.finfo(kind).eps) for dtype, kind in DTYPES.items()}


@dataclass(frozen=True)
class Output:
    """What a port made of one input; case: its id, where the input is a case's.

    right: the dialect's output.  error: the relative error; budget: the one allowed.
    """

    stage: str
    inputs: Mapping[str, Any]
    dtype: str
    got: Values
    right: Values
    error: float
    budget: float
    case: str = ""

    @property
    def scale(self) -> float:
        """The error that distances from bugs are measured in."""
        return min(self.error, 1.0)

    @cached_property
    def comparable(self) -> Values:
        """What the port made, without NaN and infinities."""
        return comparable(self.stage, self.got)


@dataclass(frozen=True)
class Diagnosis:
    """The planted bug that reproduces one wrong output; `distance` relative to the stage's scale.

    alike: other bugs that reproduce it as well.
    """

    bug: str
    description: str
    distance: float
    alike: tuple[str, ...] = ()


@dataclass(frozen=True)
class Likely:
    """The planted bug, or the kind of bug, that accounts for the failures of a stage.

    bug: its name; where only the kind is known, the bug of that kind which is nearest most often.
    named: whether it is the bug itself that is named.  alike: bugs that reproduce as many outputs as well.
    """

    bug: str
    kind: str
    named: bool
    explained: int  # wrong outputs that it reproduces; of a kind: whose nearest bug is of that kind
    failures: int  # wrong outputs that were compared: no refusals, crashes and the like
    contradicted: int = 0  # right outputs that would be wrong with this bug
    distance: float = 0.0  # between the port's output and the bug's, in the best case
    alike: tuple[str, ...] = ()

    def share(self) -> str:
        """What the name rests on, in words."""
        if not self.named:
            return f"{self.explained} of {self.failures} wrong outputs are nearest to one of this kind"
        words = f"{self.explained} of {self.failures} wrong outputs of this stage are ours with this bug"
        if self.contradicted:
            words += f", though it would show in {self.contradicted} that are right"
        return f"{words}, at best {f'to {self.distance:.0e}' if self.distance else 'exactly'}"


# ------------------------------------------------------------------------------------- what bugs answer
class Answer(NamedTuple):
    """What a bug makes of an input, comparable, and its distance from the right output."""

    values: Values
    error: float


def answer_of(bug: Bug, output: Output, dialect: Dialect) -> Answer | None:
    """What a bug makes of an output's input; None if it fails on it."""
    if output.case:
        return _answer_to_case(dialect.name, output.case, output.dtype, bug.name)
    return _answer(bug, output.inputs, output.dtype, output.right)


@cache
def _answer_to_case(dialect: str, case_id: str, dtype: str, name: str) -> Answer | None:
    case = DIALECTS[dialect].case(case_id)
    (bug,) = (bug for bug in DIALECTS[dialect].bugs_of(case.stage) if bug.name == name)
    return _answer(bug, case.inputs, dtype, right_of(dialect, case_id).out)


def _answer(bug: Bug, inputs: Mapping[str, Any], dtype: str, right: Values) -> Answer | None:
    with contextlib.suppress(*REFUSALS), np.errstate(all="ignore"):
        values = comparable(bug.stage, bug.function(**inputs, dtype=dtype))
        return Answer(values, _distance_like(bug.stage, inputs, values, comparable(bug.stage, right)))
    return None


def how_near(output: Output, bug: Bug, dialect: Dialect) -> float:
    """The distance of a wrong output from a bug's; infinite where the bug is right itself, or refuses."""
    answer = answer_of(bug, output, dialect)
    if answer is None:
        return float("inf")
    if "tokens" in answer.values and output.error <= output.budget:  # the logits are right, the tokens wrong
        return 0.0 if np.array_equal(output.comparable["tokens"], answer.values["tokens"]) else float("inf")
    if answer.error <= output.budget:
        return float("inf")
    return _distance_like(output.stage, output.inputs, output.comparable, answer.values)


def comparable(stage: str, values: Values) -> Values:
    """Outputs that may both be wrong: NaN and infinities become large numbers, each another one."""
    return {
        name: np.nan_to_num(np.asarray(values[name], float), posinf=1e30, neginf=-1e30, nan=3e30)
        for name in OUTPUTS[stage]
    }


def _distance_like(stage: str, inputs: Mapping[str, Any], got: Values, other: Values) -> float:
    if any(got[name].shape != other[name].shape for name in OUTPUTS[stage]):
        return float("inf")
    return distance(stage, inputs, got, other)


# ------------------------------------------------------------------------------------- one output
def diagnose(output: Output, dialect: Dialect = PAPER, bugs: Sequence[Bug] | None = None) -> Diagnosis | None:
    """The planted bug that reproduces a wrong output best; None if none does.

    bugs: those to try; default: all of the stage.
    """
    bugs = dialect.bugs_of(output.stage) if bugs is None else bugs
    return _diagnosis(output, {bug: how_near(output, bug, dialect) for bug in bugs})


def _diagnosis(output: Output, near: Mapping[Bug, float]) -> Diagnosis | None:
    best = min(near, key=lambda bug: near[bug], default=None)
    if best is None or near[best] > REPRODUCED * output.scale:
        return None
    limit = ALIKE * max(near[best], EPS[output.dtype])
    alike = tuple(bug.name for bug in near if bug is not best and near[bug] <= limit)
    return Diagnosis(best.name, best.description, near[best], alike)


def is_rounding(dialect: str, stage: str, dtype: str, error: float) -> bool:
    """Whether an error under a claim of float64 is one that float32 has."""
    return dtype == "float64" and error <= _float32_budgets(dialect)[stage]


@cache
def _float32_budgets(dialect: str) -> dict[str, float]:
    return {stage: budget.budget for (stage, dtype), budget in load_budgets(dialect).items() if dtype == "float32"}


# ------------------------------------------------------------------------------------- a stage
def name_stage(
    wrong: Sequence[Output], right: Sequence[Output], dialect: Dialect = PAPER, *, without: Iterable[str] = ()
) -> tuple[Likely | None, list[Diagnosis | None]]:
    """What is likely wrong with a stage, and the diagnosis of each of its wrong outputs.

    wrong, right: the port's outputs of one stage.  without: bugs that are taken for unknown.
    """
    if not wrong:
        return None, []
    bugs = [bug for bug in dialect.bugs_of(wrong[0].stage) if bug.name not in set(without)]
    near: list[dict[Bug, float]] = [{} for _ in wrong]
    for number in LOOKED_AT:
        looked_at = sorted({round(i) for i in np.linspace(0, len(wrong) - 1, min(number, len(wrong)))})
        for i in looked_at:
            near[i] |= {bug: how_near(wrong[i], bug, dialect) for bug in bugs if bug not in near[i]}
        seen = Counter(bug for i in looked_at for bug in _reproducing(wrong[i], near[i]))
        candidates = [bug for bug, _ in seen.most_common(CANDIDATES)]
        for distances, output in zip(near, wrong, strict=True):
            distances |= {bug: how_near(output, bug, dialect) for bug in candidates if bug not in distances}
        likely = _named(wrong, right, near, candidates, dialect)
        if likely:
            break
    diagnoses = [_diagnosis(output, distances) for output, distances in zip(wrong, near, strict=True)]
    return likely or _kind([(wrong[i], near[i]) for i in looked_at]), diagnoses


def _reproducing(output: Output, near: Mapping[Bug, float]) -> list[Bug]:
    return [bug for bug, apart in near.items() if apart <= REPRODUCED * output.scale]


def _named(
    wrong: Sequence[Output],
    right: Sequence[Output],
    near: Sequence[Mapping[Bug, float]],
    candidates: Sequence[Bug],
    dialect: Dialect,
) -> Likely | None:
    """The bug that reproduces at least `SHARE` of the wrong outputs."""
    explained = {
        bug: [i for i, output in enumerate(wrong) if near[i][bug] <= REPRODUCED * output.scale] for bug in candidates
    }
    promising = [bug for bug in candidates if len(explained[bug]) >= SHARE * len(wrong)]
    contradicted = {bug: sum(_would_show(bug, output, dialect) for output in right) for bug in promising}
    share = {bug: len(explained[bug]) / (len(wrong) + contradicted[bug]) for bug in promising}
    middle = {bug: float(np.median([near[i][bug] for i in explained[bug]])) for bug in promising}
    best = max(promising, key=lambda bug: (share[bug], -middle[bug]), default=None)
    if best is None or share[best] < SHARE:
        return None
    limit = ALIKE * max(middle[best], EPS[wrong[0].dtype])
    alike = [bug.name for bug in promising if bug is not best and share[bug] == share[best] and middle[bug] <= limit]
    closest = min(near[i][best] for i in explained[best])
    return Likely(
        best.name, best.kind, True, len(explained[best]), len(wrong), contradicted[best], closest, tuple(alike)
    )


def _would_show(bug: Bug, output: Output, dialect: Dialect) -> bool:
    """Whether a right output would be clearly wrong with this bug."""
    answer = answer_of(bug, output, dialect)
    return answer is not None and answer.error > 2 * output.budget


def _kind(looked_at: Sequence[tuple[Output, Mapping[Bug, float]]]) -> Likely | None:
    """The kind of which the nearest bugs are."""
    votes, nearest = Counter[str](), Counter[Bug]()
    for output, near in looked_at:
        smallest = min(near.values(), default=float("inf"))
        limit = min(NEARLY * smallest, LIKE * output.scale)
        voting = [bug for bug, apart in near.items() if apart <= limit]
        votes.update({bug.kind for bug in voting})
        nearest.update(voting)
    if not votes:
        return None
    (kind, number), *others = votes.most_common(2)
    if any(bug.name == kind for bug in nearest):  # a kind of its own, which only its own output names
        return None
    if number < SHARE * len(looked_at) or any(other >= CLEARLY * number for _, other in others):
        return None
    example = max((bug for bug in nearest if bug.kind == kind), key=lambda bug: nearest[bug])
    return Likely(example.name, kind, False, number, len(looked_at))
