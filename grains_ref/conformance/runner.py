"""Run a port on the cases, stage by stage, and say what is wrong with it.

**isolated** (the default): every stage gets the oracle's input, so a failure names its stage.
**chained**: the port's own outputs flow on, and every stage is judged by what the oracle makes of the same input. A
port that passes isolated and fails here has a fault between its stages: an order, an index, an alias.
**again**: every case that passed is asked once more, in another order. A port that keeps something from call to call,
a cache or a buffer, gives another answer.
**end to end**: one example set from embeddings to steered states, the port's against the oracle's. In half precision it
begins with the oracle's sets: scores so noisy choose other tokens, and behind these a right port and a wrong one look
alike.

What is wrong is looked for among the planted bugs, when all results of a stage are there (`naming`).
"""

from __future__ import annotations

import contextlib
import fnmatch
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from grains_ref.conformance.alone import Alone, Ask
from grains_ref.conformance.budgets import Budget, allowed, runs_in
from grains_ref.conformance.bugs.kinds import WHEREVER_A_DECODER_RUNS
from grains_ref.conformance.cases import Case
from grains_ref.conformance.compare import BadOutput, Right, checked, distance, judge, right_now
from grains_ref.conformance.dialects import PAPER, Dialect
from grains_ref.conformance.naming import Diagnosis, Likely, Output, diagnose, is_rounding, name_stage
from grains_ref.conformance.ports import InOrder, Port, PortError, Refused, Skipped, told_by
from grains_ref.conformance.stages import DTYPES, OUTPUTS, Values
from grains_ref.conformance.vectors import right_of

Mode = Literal["isolated", "again", "chained", "end to end", "live"]
MODES: tuple[Mode, ...] = ("isolated", "again", "chained", "end to end", "live")  # from the most telling failure on
ASKED: tuple[Mode, ...] = ("isolated", "again", "chained", "end to end")  # what a run on cases consists of
Status = Literal["passed", "failed", "expected failure", "unexpected pass", "skipped", "not claimable", "undecidable"]
CHAIN = ("attribution", "selection", "contrast", "aggregation", "steering")
FAR_ENOUGH = {"float64": 1e-6, "float32": 1e-2, "float16": 2e-2, "bfloat16": 1e-1}
"""Relative error allowed at the end of the chain: five times and more what legal ways differ by."""
END_TO_END = "end to end"  # stands for a stage where the whole chain is judged
SAME_DECODER = "both run the decoder"
RUNS = {
    "attribution": {"objective": "it attributes eq. (1)"},
    "contrast": {"objective": SAME_DECODER, "attribution": SAME_DECODER},
    "generation": {
        "objective": SAME_DECODER,
        "attribution": SAME_DECODER,
        "contrast": SAME_DECODER,
        "steering": "it steers every block",
    },
}
"""What a stage has of earlier ones, though it is given right inputs: their faults may show in it too."""


@dataclass(frozen=True)
class Result:
    """What became of one case in one dtype and mode; the stage of a chain from end to end is `END_TO_END`."""

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
    rounding: bool = False  # whether the error is one of float32's size under a claim of float64
    after: str = ""  # what the same process of the port was asked just before, CASE (DTYPE); empty if nothing


@dataclass(frozen=True)
class Run:
    """All results of one port."""

    port: str
    claimed: tuple[str, ...]
    dtypes: tuple[str, ...]
    results: tuple[Result, ...]
    stale: tuple[str, ...] = ()  # lines of the xfail file that match no case
    dialect: str = "paper"
    likely: Mapping[str, Likely] = field(default_factory=dict)  # by stage
    alone: Mapping[str, Alone] = field(default_factory=dict)  # by stage
    not_alone: tuple[str, ...] = ()  # stages whose first failing case was one too many to ask alone

    @property
    def failed(self) -> bool:
        """Whether the port may not be called conformant: a failure, an unexpected pass, or nothing run at all."""
        bad = any(result.status in ("failed", "unexpected pass") for result in self.results)
        return bad or bool(self.stale) or not any(result.status == "passed" for result in self.results)

    def failures(self, stage: str) -> list[Result]:
        """What failed of a stage, isolated before chained, the most basic case first."""
        failed = [result for result in self.results if result.status == "failed" and result.stage == stage]
        return sorted(failed, key=lambda result: (MODES.index(result.mode), result.case))

    def first_divergence(self) -> Result | None:
        """The first failure in the order of the stages, isolated before chained before end to end."""
        for mode in MODES:
            for stage in (*OUTPUTS, END_TO_END):
                for result in self.failures(stage):
                    if result.mode == mode:
                        return result
        return None

    def likely_bug(self, stage: str) -> Likely | None:
        """The planted bug, or the kind of bug, that accounts for a stage's failures; None if nothing does."""
        return self.likely.get(stage)

    def is_rounding(self, stage: str) -> bool:
        """Whether all that is wrong with a stage are errors of float32's size under a claim of float64."""
        failures = self.failures(stage)
        return bool(failures) and all(result.rounding for result in failures)

    def follows_from(self, stage: str) -> str:
        """The failing stage before it that a failing stage may have its fault from, or nothing."""
        failures = self.failures(stage)
        if not failures or all(result.mode == "isolated" and not result.diagnosed for result in failures):
            return ""  # a crash on a right input, or one that was not refused, is the stage's own
        earlier = OUTPUTS if stage == END_TO_END else RUNS.get(stage, {})
        failing = [candidate for candidate in earlier if self.failures(candidate) and self._hands_on(candidate, stage)]
        return failing[0] if failing else ""

    def _hands_on(self, earlier: str, stage: str) -> bool:
        """Whether a failing stage's fault may show in a later one: of two that share the decoder, only its own does."""
        likely = self.likely_bug(earlier)
        only_the_decoder = RUNS.get(stage, {}).get(earlier) == SAME_DECODER
        return not (only_the_decoder and likely) or likely.kind in WHEREVER_A_DECODER_RUNS


def run_port(
    port: Port,
    budgets: Mapping[tuple[str, str], Budget],
    *,
    dialect: Dialect = PAPER,
    cases: Sequence[Case] | None = None,
    dtypes: Sequence[str] = (),
    modes: Sequence[Mode] = ASKED,
    expected_failures: Sequence[str] = (),
    on_case: Callable[[], None] = lambda: None,
) -> Run:
    """Run everything the port claims.

    budgets: those of the dialect.  cases: default all of the dialect.
    expected_failures: patterns of case ids, as in a file of known failures; an expected failure that passes, and a
    pattern that matches nothing, are failures themselves.
    """
    cases = dialect.cases if cases is None else cases
    port = InOrder(port)
    wanted = tuple(dtype for dtype in port.dtypes if not dtypes or dtype in dtypes)
    findings: list[Found] = []
    for dtype in wanted:
        if "isolated" in modes:
            asked = [case for case in cases if case.stage in port.stages and runs_in(case, dtype)]
            isolated: list[Found] = []
            for case in asked:
                after = port.last
                result, output = _run_case(port, case, dtype, budgets[case.stage, dtype], dialect)
                isolated.append((replace(result, after=after), output))
                on_case()
            findings += isolated
            if "again" in modes:
                passed = [case for case, (result, _) in zip(asked, isolated, strict=True) if result.status == "passed"]
                findings += _asked_again(port, passed, dtype, budgets, dialect)
        if "chained" in modes:
            findings += _chained(port, dtype, budgets, dialect)
        if "end to end" in modes:
            findings += _end_to_end(port, dtype, dialect)
    results, likely = with_names(findings, dialect)
    marked = [_mark(result, expected_failures) for result in results]
    ids = {case.id for case in cases}
    stale = tuple(pattern for pattern in expected_failures if not fnmatch.filter(ids, pattern))
    return Run(port.name, tuple(port.stages), wanted, tuple(marked), stale, dialect.name, likely)


def with_names(findings: Sequence[Found], dialect: Dialect) -> tuple[list[Result], dict[str, Likely]]:
    """All results, wrong outputs with their diagnoses, and what is likely wrong with each stage."""
    results, likely = [result for result, _ in findings], {}
    for stage in OUTPUTS:
        places = [i for i, (result, output) in enumerate(findings) if output and result.stage == stage]
        wrong = [i for i in places if results[i].status == "failed" and not results[i].rounding]
        right = [i for i in places if results[i].status == "passed"]
        outputs = {i: output for i in places if (output := findings[i][1])}
        name, diagnoses = name_stage([outputs[i] for i in wrong], [outputs[i] for i in right], dialect)
        for i, diagnosis in zip(wrong, diagnoses, strict=True):
            results[i] = replace(results[i], diagnosis=diagnosis)
        if name:
            likely[stage] = name
    return results, likely


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


Found: TypeAlias = tuple[Result, Output | None]
"""A result, and the output that was compared, if there was one."""


def run_case(port: Port, case: Case, dtype: str, budget: Budget, dialect: Dialect = PAPER) -> Result:
    """One case by itself, with the oracle's input, judged by what is stored as right."""
    result, output = _run_case(port, case, dtype, budget, dialect)
    if output and result.status == "failed" and not result.rounding:
        return replace(result, diagnosis=diagnose(output, dialect))
    return result


def ask_case(budgets: Mapping[tuple[str, str], Budget], dialect: Dialect) -> Ask:
    """How the case of a result is put to a port once more."""

    def ask(port: Port, failure: Result) -> Result:
        case, budget = dialect.case(failure.case), budgets[failure.stage, failure.dtype]
        return _run_case(port, case, failure.dtype, budget, dialect)[0]

    return ask


def _run_case(port: Port, case: Case, dtype: str, budget: Budget, dialect: Dialect) -> Found:
    result = Result(case.id, case.stage, dtype, "isolated", "passed", budget=allowed(case, dtype, budget))
    if not budget.claimable:
        message = f"the weakest bug, {budget.weakest_bug}, hides in the noise"
        return replace(result, status="not claimable", message=message), None
    try:
        got = port.run(case.stage, case.inputs, dtype, case.id)
    except Refused as refusal:
        if case.result == "invalid":
            return result, None
        return failed(result, f"refused a valid input: {refusal}"), None
    except Skipped as reason:
        return replace(result, status="skipped", message=str(reason)), None
    except PortError as problem:
        return failed(result, str(problem)), None
    except Exception as problem:  # of a `Port` that is none of ours
        return failed(result, told_by(problem)), None
    if case.result == "invalid":
        return failed(result, f"accepted an invalid input, which must be refused ({case.comment})"), None
    try:
        return judged(result, case.inputs, got, right_of(dialect.name, case.id), dialect, case=case.id)
    except Exception as problem:  # one answer must not cost the other cases
        return failed(result, f"the answer cannot be judged: {told_by(problem)}"), None


def failed(result: Result, message: str) -> Result:
    """A result without an output that could be compared."""
    return replace(result, status="failed", error=float("inf"), message=message)


def judged(
    result: Result,
    inputs: Mapping[str, Any],
    got: Mapping[str, Any],
    right: Right,
    dialect: Dialect,
    *,
    case: str = "",
) -> Found:
    """The result with the verdict on an output, and the output; case: its id, where the input is a case's."""
    verdict = judge(result.stage, inputs, got, budget=result.budget, right=right)
    result = replace(result, error=verdict.error)
    if not verdict.ok:
        result = replace(result, status="failed", message=verdict.message)
    try:
        values = checked(result.stage, got, right.out)
    except BadOutput:
        return result, None
    error = distance(result.stage, inputs, values, right.out)
    output = Output(result.stage, inputs, result.dtype, values, right.out, error, result.budget, case)
    if verdict.ok:
        return result, output
    rounding = is_rounding(dialect.name, result.stage, result.dtype, verdict.error)
    return replace(result, diagnosed=True, rounding=rounding), output


def _asked_again(
    port: InOrder, cases: Sequence[Case], dtype: str, budgets: Mapping[tuple[str, str], Budget], dialect: Dialect
) -> list[Found]:
    """What is wrong when the cases, all passed before, are asked again in a shuffled order."""
    order = random.Random(dtype).sample(list(cases), len(cases))
    findings: list[Found] = []
    for case in order:
        after = port.last
        result, _ = _run_case(port, case, dtype, budgets[case.stage, dtype], dialect)
        if result.status == "failed":
            message = f"right when it was asked first, wrong when it was asked again, after {after}: {result.message}"
            findings.append((replace(result, mode="again", message=message, after=after), None))
    return findings


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


def _chained(port: Port, dtype: str, budgets: Mapping[tuple[str, str], Budget], dialect: Dialect) -> list[Found]:
    """Attribution to steering, each stage fed with the port's own outputs; ends where there is nothing to go on with.

    Whatever the port made is rounded to the dtype first, so that port and oracle see the same numbers.
    """
    if not set(CHAIN) <= set(port.stages):
        return []
    findings: list[Found] = []

    def step(stage: str, inputs: dict[str, Any], name: str) -> Values:
        inputs = {key: _rounded(value, dtype) for key, value in inputs.items()}
        budget = budgets[stage, dtype]
        result = Result(f"chained-{name}", stage, dtype, "chained", "passed", budget=budget.budget)
        try:
            want = dialect.run(stage, inputs)
            got = port.run(stage, inputs, dtype, result.case)
            if budget.claimable:
                right = right_now(dialect.name, stage, inputs, want, budget.budget)
                findings.append(judged(result, inputs, got, right, dialect))
            return checked(stage, got, want)
        except Exception as problem:  # the port's, or the oracle's about what the port made
            if not (findings and findings[-1][0].case == result.case):
                findings.append((failed(result, told_by(problem)), None))
            raise _Broken from None

    with contextlib.suppress(_Broken):
        link(step, chain_examples(dialect))
    return findings


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


def _end_to_end(port: Port, dtype: str, dialect: Dialect) -> list[Found]:
    """The last output of the chain against the oracle's own chain; in half precision from the oracle's sets on."""
    is_half = dtype in ("float16", "bfloat16")
    given = CHAIN[:2] if is_half else ()
    if not set(CHAIN) - set(given) <= set(port.stages) or (is_half and dialect is not PAPER):
        return []
    budget, examples = FAR_ENOUGH[dtype], chain_examples(dialect)
    known: dict[str, Values] = {}

    def right(stage: str, inputs: dict[str, Any], name: str) -> Values:
        known[name] = dialect.run(stage, inputs)
        return known[name]

    def answered(stage: str, inputs: dict[str, Any], name: str) -> Values:
        return known[name] if stage in given else dict(port.run(stage, inputs, dtype, f"end-to-end-{name}"))

    want = link(right, examples)
    result = Result("end-to-end", END_TO_END, dtype, "end to end", "passed", budget=budget)
    try:
        got = link(answered, examples)
        error = distance("steering", {}, checked("steering", got, want), want)
    except Exception as problem:  # whatever a port makes is fed to it again, unchecked
        return [(failed(result, told_by(problem)), None)]
    if error <= budget:
        return [(replace(result, error=error), None)]
    message = f"relative error {error:.1e}, allowed {budget:.0e}"
    return [(replace(result, status="failed", error=error, message=message), None)]


def _mark(result: Result, expected_failures: Sequence[str]) -> Result:
    if not any(fnmatch.fnmatch(result.case, pattern) for pattern in expected_failures):
        return result
    if result.status == "failed":
        return replace(result, status="expected failure")
    return replace(result, status="unexpected pass") if result.status == "passed" else result
