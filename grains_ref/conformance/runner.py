"""Run a port on the cases, stage by stage, and say what is wrong with it.

**isolated** (the default): every stage gets the oracle's input, so a failure names its stage.
**chained**: the port's own outputs flow on, and every stage is judged by what the oracle makes of the same input. A
port that passes isolated and fails here has a fault between its stages: an order, an index, an alias.
**end to end**: one example set from embeddings to steered states, the port's against the oracle's; float64 and float32
only, since in half precision a right port and a wrong one look alike at the end.

On a failure every planted bug of the stage is run on the same input, and the one that lies closest to the port's output
is named, if it lies clearly closer than the right answer.
"""

from __future__ import annotations

import contextlib
import fnmatch
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from grains_ref.conformance.budgets import Budget, allowed, runs_in
from grains_ref.conformance.cases import Case
from grains_ref.conformance.compare import BadOutput, Right, checked, distance, judge, right_now
from grains_ref.conformance.dialects import DIALECTS, PAPER, Dialect
from grains_ref.conformance.ports import Port, PortError, Refused, Skipped, told_by
from grains_ref.conformance.stages import DTYPES, OUTPUTS, Values
from grains_ref.conformance.vectors import right_of

Mode = Literal["isolated", "chained", "end to end"]
Status = Literal["passed", "failed", "expected failure", "unexpected pass", "skipped", "not claimable"]
REPRODUCED = 0.1  # a bug is named if its output is at most this share of the error away from the port's
ALIKE = 10  # bugs whose distances differ by less than this factor, or lie within rounding, are not told apart
EPS = {dtype: float(torch.finfo(kind).eps) for dtype, kind in DTYPES.items()}
CHAIN = ("attribution", "selection", "contrast", "aggregation", "steering")


@dataclass(frozen=True)
class Diagnosis:
    """The planted bug that lies closest to a wrong output; `distance` relative to the stage's scale.

    alike: other bugs that reproduce the output of this one case as well.
    """

    bug: str
    description: str
    distance: float
    alike: tuple[str, ...] = ()

    def names(self, bug: str) -> bool:
        """Whether the output is what this bug would give."""
        return bug in (self.bug, *self.alike)


@dataclass(frozen=True)
class Likely:
    """The planted bug that explains most failures of a stage."""

    bug: str
    explained: int  # failures whose output it reproduces
    failures: int  # failures that have an output: no refusals, crashes and the like
    distance: float  # between the port's output and the bug's, in the best case


@dataclass(frozen=True)
class Result:
    """What became of one case in one dtype and mode."""

    case: str
    stage: str
    dtype: str
    mode: Mode
    status: Status
    error: float = 0.0
    budget: float = 0.0
    message: str = ""
    diagnosis: Diagnosis | None = None
    diagnosed: bool = False  # whether there was an output that could be compared with the bugs'


@dataclass(frozen=True)
class Run:
    """All results of one port."""

    port: str
    claimed: tuple[str, ...]
    dtypes: tuple[str, ...]
    results: tuple[Result, ...]
    stale: tuple[str, ...] = ()  # lines of the xfail file that match no case
    dialect: str = "paper"

    @property
    def failed(self) -> bool:
        """Whether the port may not be called conformant: a failure, an unexpected pass, or nothing run at all."""
        bad = any(result.status in ("failed", "unexpected pass") for result in self.results)
        return bad or bool(self.stale) or not any(result.status == "passed" for result in self.results)

    def first_divergence(self) -> Result | None:
        """The first failure in the order of the stages, isolated before chained before end to end.

        Of a stage's failures, the first that its likely bug reproduces: early cases are the plain ones.
        """
        order = [(mode, stage) for mode in ("isolated", "chained", "end to end") for stage in OUTPUTS]
        failures = sorted(
            (r for r in self.results if r.status == "failed"), key=lambda r: (order.index((r.mode, r.stage)), r.case)
        )
        if not failures:
            return None
        first = [r for r in failures if (r.mode, r.stage) == (failures[0].mode, failures[0].stage)]
        likely = self.likely_bug(first[0].stage)
        return next((r for r in first if likely and r.diagnosis and r.diagnosis.names(likely.bug)), first[0])

    def likely_bug(self, stage: str) -> Likely | None:
        """The bug that reproduces most wrong outputs of a stage; of several the one that is the closest most often."""
        failures = [r for r in self.results if r.stage == stage and r.status == "failed" and r.diagnosed]
        named = [r.diagnosis for r in failures if r.diagnosis]
        reproduced = Counter(bug for d in named for bug in (d.bug, *d.alike))
        closest = Counter(d.bug for d in named)
        if not reproduced:
            return None
        bug = max(reproduced, key=lambda name: (reproduced[name], closest[name]))
        distance = min((d.distance for d in named if d.bug == bug), default=min(d.distance for d in named))
        return Likely(bug, reproduced[bug], len(failures), distance)


def run_port(
    port: Port,
    budgets: Mapping[tuple[str, str], Budget],
    *,
    dialect: Dialect = PAPER,
    cases: Sequence[Case] | None = None,
    dtypes: Sequence[str] = (),
    modes: Sequence[Mode] = ("isolated", "chained", "end to end"),
    expected_failures: Sequence[str] = (),
    on_case: Callable[[], None] = lambda: None,
) -> Run:
    """Run everything the port claims.

    budgets: those of the dialect.  cases: default all of the dialect.
    expected_failures: patterns of case ids, as in a file of known failures; an expected failure that passes, and a
    pattern that matches nothing, are failures themselves.
    """
    cases = dialect.cases if cases is None else cases
    wanted = tuple(dtype for dtype in port.dtypes if not dtypes or dtype in dtypes)
    results: list[Result] = []
    for dtype in wanted:
        if "isolated" in modes:
            for case in cases:
                if case.stage in port.stages and runs_in(case, dtype):
                    results.append(run_case(port, case, dtype, budgets[case.stage, dtype], dialect))
                    on_case()
        if "chained" in modes:
            results += _chained(port, dtype, budgets, dialect)
        if "end to end" in modes and dtype in ("float64", "float32"):
            results += _end_to_end(port, dtype, dialect)
    marked = [_mark(result, expected_failures) for result in results]
    ids = {case.id for case in cases}
    stale = tuple(pattern for pattern in expected_failures if not fnmatch.filter(ids, pattern))
    return Run(port.name, tuple(port.stages), wanted, tuple(marked), stale, dialect.name)


def read_xfails(path: Path) -> dict[str, str]:
    """A porter's file of known failures: a case id or pattern per line, then # and a reason; both, by pattern.

    Raises:
        ValueError: a line has no reason.
    """
    patterns = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        pattern, _, reason = (part.strip() for part in line.partition("#"))
        if pattern and not reason:
            raise ValueError(
                f"{path}:{number}: {pattern!r} gives no reason; write: CASE  # why, and where it is tracked"
            )
        if pattern:
            patterns[pattern] = reason
    return patterns


def number_of_cases(port: Port, cases: Sequence[Case], dtypes: Sequence[str] = ()) -> int:
    """How often `run_port` calls on_case."""
    wanted = [dtype for dtype in port.dtypes if not dtypes or dtype in dtypes]
    return len(wanted) * sum(case.stage in port.stages for case in cases)


def diagnose(
    stage: str,
    inputs: Mapping[str, Any],
    got: Values,
    dtype: str,
    error: float,
    *,
    dialect: Dialect = PAPER,
    wrong: Mapping[str, Values] | None = None,
) -> Diagnosis | None:
    """The planted bug closest to a wrong output, if it is clearly closer to it than the right answer is.

    wrong: what the bugs make of the inputs (`wrong_outputs`), if it is at hand.
    """
    wrong = wrong_outputs(stage, inputs, dtype, dialect) if wrong is None else wrong
    near = {bug: _distance_like(stage, inputs, got, output) for bug, output in wrong.items()}
    best = min(near, key=lambda name: near[name], default="")
    if not best or near[best] > REPRODUCED * min(error, 1.0):
        return None
    alike = tuple(name for name in near if name != best and near[name] <= ALIKE * max(near[best], EPS[dtype]))
    (planted,) = (bug for bug in dialect.bugs_of(stage) if bug.name == best)
    return Diagnosis(best, planted.description, near[best], alike)


def wrong_outputs(stage: str, inputs: Mapping[str, Any], dtype: str, dialect: Dialect = PAPER) -> dict[str, Values]:
    """What every planted bug of a stage makes of an input; a bug that fails on it is left out."""
    outputs = {}
    for bug in dialect.bugs_of(stage):
        with contextlib.suppress(ValueError, ArithmeticError, RuntimeError, IndexError):
            outputs[bug.name] = bug.function(**inputs, dtype=dtype)
    return outputs


@cache
def wrong_outputs_of(dialect: str, case_id: str, dtype: str) -> dict[str, Values]:
    """`wrong_outputs` of a case, computed once."""
    case = DIALECTS[dialect].case(case_id)
    return wrong_outputs(case.stage, case.inputs, dtype, DIALECTS[dialect])


def _distance_like(stage: str, inputs: Mapping[str, Any], got: Values, wrong: Values) -> float:
    """The distance of two outputs that may both be wrong: NaN and infinities in the same places count as equal."""
    cleaned: list[Values] = []
    for values in (got, wrong):
        cleaned.append({name: np.nan_to_num(np.asarray(values[name], float), posinf=1e30, neginf=-1e30, nan=3e30)
                        for name in OUTPUTS[stage]})  # fmt: skip
    if any(cleaned[0][name].shape != cleaned[1][name].shape for name in OUTPUTS[stage]):
        return float("inf")
    return distance(stage, inputs, *cleaned)


def run_case(port: Port, case: Case, dtype: str, budget: Budget, dialect: Dialect = PAPER) -> Result:
    """One case by itself, with the oracle's input, judged by what is stored as right."""
    result = Result(case.id, case.stage, dtype, "isolated", "passed", budget=allowed(case, dtype, budget))
    if not budget.claimable:
        return replace(
            result, status="not claimable", message=f"the weakest bug, {budget.weakest_bug}, hides in the noise"
        )
    try:
        got = port.run(case.stage, case.inputs, dtype, case.id)
    except Refused as refusal:
        if case.result == "invalid":
            return result
        return replace(result, status="failed", error=float("inf"), message=f"refused a valid input: {refusal}")
    except Skipped as reason:
        return replace(result, status="skipped", message=str(reason))
    except PortError as problem:
        return replace(result, status="failed", error=float("inf"), message=str(problem))
    except Exception as problem:  # of a `Port` that is none of ours
        return replace(result, status="failed", error=float("inf"), message=told_by(problem))
    if case.result == "invalid":
        message = f"accepted an invalid input, which must be refused ({case.comment})"
        return replace(result, status="failed", error=float("inf"), message=message)
    try:
        return _judged(result, case.inputs, got, right_of(dialect.name, case.id), dialect)
    except Exception as problem:  # one answer must not cost the other cases
        message = f"the answer cannot be judged: {told_by(problem)}"
        return replace(result, status="failed", error=float("inf"), message=message)


def _judged(
    result: Result, inputs: Mapping[str, Any], got: Mapping[str, Any], right: Right, dialect: Dialect
) -> Result:
    verdict = judge(result.stage, inputs, got, budget=result.budget, right=right)
    if verdict.ok:
        return replace(result, error=verdict.error)
    result = replace(result, status="failed", error=verdict.error, message=verdict.message)
    with contextlib.suppress(BadOutput):
        values = checked(result.stage, got, right.out)
        isolated = result.mode == "isolated"
        wrong = wrong_outputs_of(dialect.name, result.case, result.dtype) if isolated else None
        found = diagnose(result.stage, inputs, values, result.dtype, verdict.error, dialect=dialect, wrong=wrong)
        return replace(result, diagnosis=found, diagnosed=True)
    return result


# ------------------------------------------------------------------------------------- chained
def chain_examples(dialect: Dialect = PAPER) -> list[dict[str, Any]]:
    """The valid attribution cases with at least four tokens, which begin the chain."""
    return [
        dict(case.inputs)
        for case in dialect.cases
        if case.stage == "attribution" and case.result == "valid" and int(np.sum(case.inputs["attention_mask"])) >= 4
    ]


class _Broken(Exception):
    """The chain cannot go on."""


def _chained(port: Port, dtype: str, budgets: Mapping[tuple[str, str], Budget], dialect: Dialect) -> list[Result]:
    """Attribution to steering, each stage fed with the port's own outputs; ends where there is nothing to go on with.

    Whatever the port made is rounded to the dtype first, so that port and oracle see the same numbers.
    """
    if not set(CHAIN) <= set(port.stages):
        return []
    results: list[Result] = []

    def step(stage: str, inputs: dict[str, Any], name: str) -> Values:
        inputs = {key: _rounded(value, dtype) for key, value in inputs.items()}
        budget = budgets[stage, dtype]
        result = Result(f"chained-{name}", stage, dtype, "chained", "passed", budget=budget.budget)
        try:
            want = dialect.run(stage, inputs)
            got = port.run(stage, inputs, dtype, result.case)
            if budget.claimable:
                right = right_now(dialect.name, stage, inputs, want, budget.budget)
                results.append(_judged(result, inputs, got, right, dialect))
            return checked(stage, got, want)
        except Exception as problem:  # the port's, or the oracle's about what the port made
            if not (results and results[-1].case == result.case):
                results.append(replace(result, status="failed", error=float("inf"), message=told_by(problem)))
            raise _Broken from None

    with contextlib.suppress(_Broken):
        link(step, chain_examples(dialect))
    return results


def _rounded(value: Any, dtype: str) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return torch.from_numpy(value.astype(np.float64)).to(DTYPES[dtype]).double().numpy()
    return value


def link(step: Callable[[str, dict[str, Any], str], Values], examples: Iterable[dict[str, Any]]) -> Values:
    """The pipeline as a user runs it: `step(stage, inputs, name)` for every stage, each fed with what came before."""
    deltas: dict[str, list[np.ndarray]] = {"pos": [], "neg": []}
    for i, example in enumerate(examples):
        a = step("attribution", example, f"attribution-{i}")["a"]
        chosen = step(
            "selection", {"a": np.asarray(a), "eligible": example["attention_mask"], "k": 2}, f"selection-{i}"
        )
        inputs = {name: example[name] for name in ("x", "baseline", "attention_mask")} | {
            n: chosen[n] for n in ("pos", "neg")
        }
        shifts = step("contrast", inputs, f"contrast-{i}")
        for side in ("pos", "neg"):
            deltas[side].append(np.asarray(shifts[f"delta_{side}"]))
    stacked = {f"delta_{side}": np.stack(rows) for side, rows in deltas.items()}
    vectors = step("aggregation", stacked, "aggregation")
    h = np.stack([stacked["delta_pos"][:3, 0], stacked["delta_neg"][:3, 1]])  # any states will do: (2, 3, d)
    return step("steering", {"h": h, "v": np.asarray(vectors["v"])[1], "lam": 1.5}, "steering")


def _end_to_end(port: Port, dtype: str, dialect: Dialect) -> list[Result]:
    """The last output of the chain against the oracle's own chain."""
    if not set(CHAIN) <= set(port.stages):
        return []
    budget = 1e-6 if dtype == "float64" else 1e-2
    examples = chain_examples(dialect)
    want = link(lambda stage, inputs, name: dialect.run(stage, inputs), examples)
    result = Result("end-to-end", "steering", dtype, "end to end", "passed", budget=budget)
    try:
        got = link(lambda stage, inputs, name: dict(port.run(stage, inputs, dtype, f"end-to-end-{name}")), examples)
        error = distance("steering", {}, checked("steering", got, want), want)
    except Exception as problem:  # whatever a port makes is fed to it again, unchecked
        return [replace(result, status="failed", error=float("inf"), message=told_by(problem))]
    if error <= budget:
        return [replace(result, error=error)]
    return [replace(result, status="failed", error=error, message=f"relative error {error:.1e}, allowed {budget:.0e}")]


def _mark(result: Result, expected_failures: Sequence[str]) -> Result:
    if not any(fnmatch.fnmatch(result.case, pattern) for pattern in expected_failures):
        return result
    if result.status == "failed":
        return replace(result, status="expected failure")
    return replace(result, status="unexpected pass") if result.status == "passed" else result
