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

import fnmatch
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from grains_ref.conformance.budgets import Budget, runs_in
from grains_ref.conformance.bugs import BUGS
from grains_ref.conformance.cases import CASES, Case
from grains_ref.conformance.compare import BadOutput, checked, distance, judge
from grains_ref.conformance.ports import Port, PortError, Refused, Skipped
from grains_ref.conformance.stages import OUTPUTS, Values, run_oracle

Mode = Literal["isolated", "chained", "end to end"]
Status = Literal["passed", "failed", "expected failure", "unexpected pass", "skipped", "not claimable"]
REPRODUCED = 0.1  # a bug is named if its output is at most this share of the error away from the port's
CHAIN = ("attribution", "selection", "contrast", "aggregation", "steering")


@dataclass(frozen=True)
class Diagnosis:
    """The planted bug that lies closest to a wrong output; `distance` relative to the stage's scale."""

    bug: str
    description: str
    distance: float


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


@dataclass(frozen=True)
class Run:
    """All results of one port."""

    port: str
    claimed: tuple[str, ...]
    dtypes: tuple[str, ...]
    results: tuple[Result, ...]
    stale: tuple[str, ...] = ()  # lines of the xfail file that match no case

    @property
    def failed(self) -> bool:
        """Whether the port may not be called conformant: a failure, an unexpected pass, or nothing run at all."""
        bad = any(result.status in ("failed", "unexpected pass") for result in self.results)
        return bad or bool(self.stale) or not any(result.status == "passed" for result in self.results)

    def first_divergence(self) -> Result | None:
        """The first failure in the order of the stages, isolated before chained before end to end."""
        order = [(mode, stage) for mode in ("isolated", "chained", "end to end") for stage in OUTPUTS]
        failures = [r for r in self.results if r.status == "failed"]
        return min(failures, key=lambda r: (order.index((r.mode, r.stage)), -r.error), default=None)

    def likely_bug(self, stage: str) -> tuple[str, int, int]:
        """The bug named most often for a stage, how often, and of how many failures with an output."""
        named = [r.diagnosis.bug for r in self.results if r.stage == stage and r.status == "failed" and r.diagnosis]
        failures = sum(r.stage == stage and r.status == "failed" for r in self.results)
        bug, count = Counter(named).most_common(1)[0] if named else ("", 0)
        return bug, count, failures


def run_port(
    port: Port,
    budgets: Mapping[tuple[str, str], Budget],
    *,
    cases: Sequence[Case] = CASES,
    dtypes: Sequence[str] = (),
    modes: Sequence[Mode] = ("isolated", "chained", "end to end"),
    expected_failures: Sequence[str] = (),
    on_case: Callable[[], None] = lambda: None,
) -> Run:
    """Run everything the port claims.

    expected_failures: patterns of case ids, as in a file of known failures; an expected failure that passes, and a
    pattern that matches nothing, are failures themselves.
    """
    wanted = tuple(dtype for dtype in port.dtypes if not dtypes or dtype in dtypes)
    results: list[Result] = []
    for dtype in wanted:
        if "isolated" in modes:
            for case in cases:
                if case.stage in port.stages and runs_in(case, dtype):
                    results.append(_isolated(port, case, dtype, budgets[case.stage, dtype]))
                    on_case()
        if "chained" in modes:
            results += _chained(port, dtype, budgets)
        if "end to end" in modes and dtype in ("float64", "float32"):
            results += _end_to_end(port, dtype)
    marked = [_mark(result, expected_failures) for result in results]
    ids = {case.id for case in cases}
    stale = tuple(pattern for pattern in expected_failures if not fnmatch.filter(ids, pattern))
    return Run(port.name, tuple(port.stages), wanted, tuple(marked), stale)


def number_of_cases(port: Port, cases: Sequence[Case] = CASES, dtypes: Sequence[str] = ()) -> int:
    """How often `run_port` calls on_case."""
    wanted = [dtype for dtype in port.dtypes if not dtypes or dtype in dtypes]
    return len(wanted) * sum(case.stage in port.stages for case in cases)


def diagnose(stage: str, inputs: Mapping[str, Any], got: Values, dtype: str, error: float) -> Diagnosis | None:
    """The planted bug closest to a wrong output, if it is clearly closer to it than the right answer is."""
    best: Diagnosis | None = None
    for bug in BUGS:
        if bug.stage != stage:
            continue
        try:
            there = _distance_like(stage, inputs, got, bug.function(**inputs, dtype=dtype))
        except (ValueError, ArithmeticError, RuntimeError, IndexError):
            continue
        if best is None or there < best.distance:
            best = Diagnosis(bug.name, bug.description, there)
    return best if best and best.distance <= REPRODUCED * error else None


def _distance_like(stage: str, inputs: Mapping[str, Any], got: Values, wrong: Values) -> float:
    """The distance of two outputs that may both be wrong: NaN and infinities in the same places count as equal."""
    cleaned: list[Values] = []
    for values in (got, wrong):
        cleaned.append({name: np.nan_to_num(np.asarray(values[name], float), posinf=1e30, neginf=-1e30, nan=3e30)
                        for name in OUTPUTS[stage]})  # fmt: skip
    if any(cleaned[0][name].shape != cleaned[1][name].shape for name in OUTPUTS[stage]):
        return float("inf")
    return distance(stage, inputs, *cleaned)


def _isolated(port: Port, case: Case, dtype: str, budget: Budget) -> Result:
    result = Result(case.id, case.stage, dtype, "isolated", "passed", budget=budget.budget)
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
    if case.result == "invalid":
        message = f"accepted an invalid input ({case.comment}); it must be refused"
        return replace(result, status="failed", error=float("inf"), message=message)
    return _judged(result, case.inputs, got)


def _judged(result: Result, inputs: Mapping[str, Any], got: Mapping[str, Any]) -> Result:
    verdict = judge(result.stage, inputs, got, budget=result.budget)
    if verdict.ok:
        return replace(result, error=verdict.error)
    try:
        values = checked(result.stage, got, run_oracle(result.stage, inputs))
        diagnosis = diagnose(result.stage, inputs, values, result.dtype, max(verdict.error, 1e-300))
    except BadOutput:
        diagnosis = None
    return replace(result, status="failed", error=verdict.error, message=verdict.message, diagnosis=diagnosis)


# ------------------------------------------------------------------------------------- chained
def chain_examples() -> list[dict[str, Any]]:
    """The valid attribution cases with at least four tokens, which begin the chain."""
    return [
        dict(case.inputs)
        for case in CASES
        if case.stage == "attribution" and case.result == "valid" and int(np.sum(case.inputs["attention_mask"])) >= 4
    ]


def _chained(port: Port, dtype: str, budgets: Mapping[tuple[str, str], Budget]) -> list[Result]:
    """Attribution to steering, each stage fed with the port's own outputs; stops where a stage is missing or fails."""
    if not set(CHAIN) <= set(port.stages):
        return []
    results: list[Result] = []

    def step(stage: str, inputs: dict[str, Any], name: str) -> Values:
        budget = budgets[stage, dtype]
        result = Result(f"chained-{name}", stage, dtype, "chained", "passed", budget=budget.budget)
        got = port.run(stage, inputs, dtype, f"chained-{name}")
        if budget.claimable:
            results.append(_judged(result, inputs, got))
        return checked(stage, got, run_oracle(stage, inputs))

    try:
        outputs = link(step, chain_examples())
    except (Refused, Skipped, PortError, BadOutput) as problem:
        results.append(Result("chained", "objective", dtype, "chained", "failed", float("inf"), 0.0, str(problem)))
        return results
    del outputs
    return results


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


def _end_to_end(port: Port, dtype: str) -> list[Result]:
    """The last output of the chain against the oracle's own chain."""
    if not set(CHAIN) <= set(port.stages):
        return []
    allowed = 1e-6 if dtype == "float64" else 1e-2
    examples = chain_examples()
    want = link(lambda stage, inputs, name: run_oracle(stage, inputs), examples)
    result = Result("end-to-end", "steering", dtype, "end to end", "passed", budget=allowed)
    try:
        got = link(lambda stage, inputs, name: dict(port.run(stage, inputs, dtype, f"end-to-end-{name}")), examples)
        error = distance("steering", {}, checked("steering", got, want), want)
    except (Refused, Skipped, PortError, BadOutput, KeyError, TypeError, ValueError) as problem:
        return [replace(result, status="failed", error=float("inf"), message=str(problem))]
    if error <= allowed:
        return [replace(result, error=error)]
    return [replace(result, status="failed", error=error, message=f"relative error {error:.1e}, allowed {allowed:.0e}")]


def _mark(result: Result, expected_failures: Sequence[str]) -> Result:
    if not any(fnmatch.fnmatch(result.case, pattern) for pattern in expected_failures):
        return result
    if result.status == "failed":
        return replace(result, status="expected failure")
    return replace(result, status="unexpected pass") if result.status == "passed" else result
