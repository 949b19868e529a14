"""The kit judges ports: correct ports pass, wrong ones fail, and what is no answer is called that."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from shared import only_quick

from grains_ref.conformance import options_generation, runner, second_options, stages
from grains_ref.conformance.budgets import Budget, load_budgets, noise_of
from grains_ref.conformance.bugs import BUGS
from grains_ref.conformance.cases import CASES
from grains_ref.conformance.compare import judge
from grains_ref.conformance.dialects import PAPER
from grains_ref.conformance.ports import Port, PythonPort
from grains_ref.conformance.random_inputs import MEASURED, fresh_inputs
from grains_ref.conformance.report import print_run
from grains_ref.conformance.runner import Run, read_xfails, run_port
from grains_ref.conformance.stages import ORACLE, OUTPUTS, STAGES, Values, run_oracle

pytestmark = pytest.mark.cpu

CASE = {case.id: case for case in CASES}


@functools.cache
def budgets() -> dict[tuple[str, str], Budget]:
    return load_budgets()


def port_of(**functions: Any) -> PythonPort:
    module = ModuleType("my_port")
    vars(module).update(functions)
    return PythonPort(module)


def run(port: Port, *, only: str = "", dtypes: tuple[str, ...] = ("float32",), **options: Any) -> Run:
    """Isolated cases of one stage, or everything."""
    if only:
        options |= {"cases": [case for case in CASES if only in (case.stage, case.id)], "modes": ("isolated",)}
    return run_port(port, budgets(), dtypes=dtypes, **options)


def report(result: Run) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"), highlight=False, markup=False)  # noqa: SIM115
    print_run(result, budgets(), console, repeat="grains-ref conform run --port my_port")
    return console.export_text()


def test_the_report_names_stage_case_bug_and_command() -> None:
    (bug,) = (bug for bug in BUGS if bug.name == "norm_over_sequence")
    functions = ORACLE | {"steering": bug.function}
    text = report(run(port_of(**functions), modes=("isolated",), cases=[CASE["contrast-001"], CASE["steering-002"]]))
    for line in (
        "First failing stage: steering (isolated, float32)",
        "steering-002: relative error",
        "The case: A strength of the size of h",
        "Strength: Lambda zero, negative, or of the size of h",
        "Likely bug: norms taken over the sequence, feature by feature (`norm(dim=1)`) (norm_over_sequence)",
        "1 of 1 wrong outputs of this stage are ours with this bug",
        "Again: grains-ref conform run --port my_port --only steering-002 --dtype float32",
    ):
        assert line in text


def test_two_bugs_at_once_are_not_given_one_name() -> None:
    def steering(h: Any, v: Any, lam: float, dtype: str) -> Values:
        return {"h": 1.25 * run_oracle("steering", {"h": h, "v": v[::-1], "lam": 3 * lam})["h"]}

    assert "No planted bug gives this output" in report(run(port_of(steering=steering), only="steering"))


# ----------------------------------------------------------------------------------------- correct ports
@pytest.mark.parametrize("stage", only_quick(OUTPUTS, *STAGES))
def test_no_false_alarm_on_inputs_the_budgets_have_not_seen(stage: str) -> None:
    for number in range({"attribution": 2, "generation": 3}.get(stage, 6 if stage in STAGES else 1)):  # those take long
        inputs = fresh_inputs(stage, MEASURED.stop + number)
        got = getattr(second_options, stage)(**inputs, dtype="float32")
        assert judge(stage, inputs, got, budget=budgets()[stage, "float32"].budget).ok, number
        if number < (3 if stage in STAGES else 1):
            for dtype in ("float64", "float16", "bfloat16"):
                assert noise_of(stage, inputs, dtype) <= budgets()[stage, dtype].budget, (number, dtype)


def test_bfloat16_attribution_is_not_claimable_and_never_passed() -> None:
    result = run(port_of(**ORACLE, DTYPES=("bfloat16",)), only="attribution", dtypes=("bfloat16",))
    assert {r.status for r in result.results} == {"not claimable"}
    assert result.failed  # nothing else was run
    assert "Not claimable: attribution in bfloat16" in report(result)


# ------------------------------------------------------------------------------------- what is no answer
def test_what_is_not_claimed_is_reported_and_never_passed() -> None:
    result = run(port_of(steering=ORACLE["steering"]))
    assert {r.stage for r in result.results} == {"steering"}
    assert "Not claimed, not checked: objective, attribution, selection, contrast, aggregation, generation" in report(
        result
    )
    nothing = run(port_of())
    assert nothing.failed
    assert "Nothing claimed" in report(nothing)


def answering(change: Callable[[Values], Any]) -> PythonPort:
    return port_of(steering=lambda **inputs: change(ORACLE["steering"](**inputs)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: {"h": np.full_like(out["h"], np.nan)}, "h holds NaN or infinite values"),
        (lambda out: {"h": out["h"][:1]}, r"h has the shape \(1, 5, 13\); expected \(2, 5, 13\)"),
        (lambda out: {"hidden": out["h"]}, "the output lacks h; steering gives h"),
        (lambda out: out | {"norm": 1.0}, "the output has norm, which steering does not give"),
        (lambda out: {"h": "many"}, "h is no array of numbers"),
        (lambda out: out["h"], "steering returned ndarray; expected a dict with h"),
        (lambda out: 1 / 0, "refused a valid input: ZeroDivisionError"),
    ],
)
def test_what_is_no_answer_is_said_to_be_none(change: Any, message: str) -> None:
    (result,) = run(answering(change), only="steering-001").results
    assert result.status == "failed"
    assert result.diagnosis is None
    assert re.search(message, result.message)


def test_a_port_that_computes_in_place_is_judged_by_its_output() -> None:
    def steering(h: np.ndarray, v: np.ndarray, lam: float, dtype: str) -> Values:
        h[...] = ORACLE["steering"](h=h, v=v, lam=lam, dtype=dtype)["h"]
        v[...] = np.nan
        return {"h": h}

    before = CASE["steering-001"].inputs["h"].copy()
    results = run(port_of(steering=steering), only="steering").results
    assert not [r.case for r in results if r.status == "failed" and CASE[r.case].result == "valid"]
    np.testing.assert_array_equal(CASE["steering-001"].inputs["h"], before)


def test_an_accepted_nonsense_is_a_failure() -> None:
    def steering(h: np.ndarray, v: np.ndarray, lam: float, dtype: str) -> Values:
        with np.errstate(all="ignore"):
            return {"h": h + np.nan * (np.ravel(v)[0] + lam)}

    (result,) = run(port_of(steering=steering), only="steering-024").results
    assert "accepted an invalid input, which must be refused (Lambda is NaN)" in result.message


# ---------------------------------------------------------------------------------------- known failures
def test_the_tokens_that_ports_are_judged_by_are_those_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options_generation, "generate_greedy", lambda model, encoded, *, n: list(range(n)))
    monkeypatch.setitem(stages.ORACLE, "generation", stages.generation)  # which remembers no earlier answer
    inputs = PAPER.case("generation-002").inputs
    assert run_oracle("generation", inputs)["tokens"].tolist() == [list(range(6))] * 3


def test_known_failures_are_strict() -> None:
    (bug,) = (bug for bug in BUGS if bug.name == "cancelled_to_nan")
    port = port_of(steering=bug.function)
    assert run(port, only="steering").failed
    known = run(port, only="steering", expected_failures=["steering-012"])
    assert not known.failed
    assert [r.case for r in known.results if r.status == "expected failure"] == ["steering-012"]
    fixed = run(port_of(steering=ORACLE["steering"]), only="steering", expected_failures=["steering-012"])
    assert fixed.failed
    assert "Known failures that pass now: steering-012" in report(fixed)
    stale = run(port_of(steering=ORACLE["steering"]), only="steering", expected_failures=["steering-999"])
    assert stale.failed
    assert "match no case: steering-999" in report(stale)


def test_known_failures_need_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "known.txt"
    path.write_text("# ours\n\nsteering-012  # ticket 7\n")
    assert read_xfails(path) == {"steering-012": "ticket 7"}
    path.write_text("steering-012\n")
    with pytest.raises(ValueError, match="'steering-012' gives no reason"):
        read_xfails(path)


def test_a_fault_between_the_stages_shows_only_in_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a contrast that takes the sets of the selection before it for its own, if there was one."""
    before: list[Values] = []
    all_examples = runner.chain_examples
    monkeypatch.setattr(runner, "chain_examples", lambda dialect: all_examples(dialect)[:4])
    monkeypatch.setattr(runner, "name_stage", lambda wrong, right, dialect: (None, [None] * len(wrong)))  # takes long

    def selection(**inputs: Any) -> Values:
        before.append(ORACLE["selection"](**inputs))
        return before[-1]

    def contrast(**inputs: Any) -> Values:
        stale = before[-2] if len(before) > len(selections) + 1 else {}
        fits = all(j < len(inputs["x"]) for tokens in stale.values() for j in tokens)
        return ORACLE["contrast"](**inputs | (stale if fits else {}))

    chosen = [case for case in CASES if case.stage in ("selection", "contrast")]
    selections = [case for case in chosen if case.stage == "selection" and case.result != "invalid"]
    result = run(
        port_of(**ORACLE | {"selection": selection, "contrast": contrast}), modes=("isolated", "chained"), cases=chosen
    )
    divergence = result.first_divergence()
    assert divergence
    assert (divergence.stage, divergence.mode) == ("contrast", "chained")
    assert "Every stage is right by itself, so look between them" in report(result)


# ------------------------------------------------------------------------------------------- comparators
def verdict(stage: str, inputs: dict[str, Any], change: Callable[[Values], Values], budget: float = 1e-5) -> Any:
    return judge(stage, inputs, change(run_oracle(stage, inputs)), budget=budget)


SCORES = {"a": np.array([4.0, 2.0, 2.0 + 1e-7, 1.0, -1.0, 0.0]), "eligible": np.array([1, 1, 1, 1, 1, 1]), "k": 2}


@pytest.mark.parametrize(
    ("pos", "message"),
    [
        ([0, 2], ""),  # the oracle's own
        ([0, 1], ""),  # a near tie
        ([0, 3], "lacks|not among the strongest"),
        ([1, 2], "lacks tokens .0."),
        ([2, 0], "not ordered by strength"),
        ([0], "holds 1 tokens; expected 2"),
        ([0, 0], "must exist and differ"),
        ([0, 9], "must exist and differ"),
        ([0, 5], "not eligible or have the other sign"),
    ],
)
def test_selection_allows_near_ties_and_nothing_else(pos: list[int], message: str) -> None:
    found = verdict("selection", SCORES, lambda right: right | {"pos": pos}, budget=1e-6)
    assert found.ok == (not message)
    assert re.search(message, found.message)


def test_equal_scores_go_to_the_lower_index_even_within_the_budget() -> None:
    tied = SCORES | {"a": np.array([4.0, 2.0, 2.0, 1.0, -1.0, 0.0])}
    found = verdict("selection", tied, lambda right: right | {"pos": [0, 2]}, budget=1e-6)
    assert "equal scores go to the lower index" in found.message


def turned(values: Values, side: str, by: float) -> Values:
    """One side multiplied, v recombined."""
    values = values | {f"v_{side}": by * values[f"v_{side}"]}
    return values | {"v": values["v_pos"] - values["v_neg"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda right: right, ""),
        (lambda right: turned(right, "pos", -1), "v_pos, layer 0: the sign is turned round"),
        (lambda right: turned(right, "neg", -1), "v_neg, layer 0: the sign is turned round"),
        (lambda right: turned(right, "pos", 1.01), "v_pos, layer 0: its length is 1.01"),
        (lambda right: right | {"v": right["v_pos"] + right["v_neg"]}, "v differs from v_pos - v_neg"),
        (lambda right: right | {"v": right["v"] / np.linalg.norm(right["v"], axis=-1, keepdims=True)}, "v differs"),
    ],
)
def test_components_are_judged_by_length_direction_sign_and_difference(change: Any, message: str) -> None:
    found = verdict("aggregation", CASE["aggregation-001"].inputs, change)
    assert found.ok == (not message)
    assert message in found.message


def test_an_uncentred_component_is_told_by_the_variance_it_explains() -> None:
    inputs = CASE["aggregation-008"].inputs
    (bug,) = (bug for bug in BUGS if bug.name == "uncentred")
    found = judge("aggregation", inputs, bug.function(**inputs, dtype="float64"), budget=1e-5)
    assert "of what the first component does" in found.message


def rotated(case: str, right: Values, degrees: float) -> Values:
    """v_pos turned in the plane of the first two components."""
    v = right["v_pos"].copy()
    for layer, D in enumerate(CASE[case].inputs["delta_pos"].swapaxes(0, 1)):
        plane = np.linalg.svd(D - D.mean(0))[2][:2]
        other = max((u - (u @ v[layer]) * v[layer] for u in plane), key=np.linalg.norm)
        angle = np.radians(degrees)
        v[layer] = np.cos(angle) * v[layer] + np.sin(angle) * other / np.linalg.norm(other)
    return right | {"v_pos": v, "v": v - right["v_neg"]}


@pytest.mark.parametrize(
    ("case", "degrees", "message"),
    [
        ("aggregation-005", 0.01, ""),
        ("aggregation-005", 0.05, "cosine with the component"),  # explains nearly as much, but the gap is 0.06
        ("aggregation-006", 0.9, ""),  # errors of 1e-5 turn a component with a gap of a thousandth so far
        ("aggregation-006", 4.0, "cosine with the component"),
        ("aggregation-006", 20.0, "of what the first component does"),
        ("aggregation-006", 90.0, "of what the first component does"),
    ],
)
def test_a_direction_is_judged_as_far_as_the_eigen_gap_defines_it(case: str, degrees: float, message: str) -> None:
    found = verdict("aggregation", CASE[case].inputs, lambda right: rotated(case, right, degrees))
    assert found.ok == (not message), found.message
    assert message in found.message


SAME = "aggregation-007"  # its first two eigenvalues are equal


@pytest.mark.parametrize("degrees", [0, 30, 60, 140])
def test_any_vector_of_a_degenerate_eigenspace_is_right_if_it_points_along_the_mean(degrees: float) -> None:
    def signed(right: Values, sign: float) -> Values:
        values = rotated(SAME, right, degrees)
        along = np.sign((values["v_pos"] * CASE[SAME].inputs["delta_pos"].mean(0)).sum(-1, keepdims=True))
        v_pos = sign * along * values["v_pos"]
        return values | {"v_pos": v_pos, "v": v_pos - values["v_neg"]}

    inputs = CASE[SAME].inputs
    assert verdict("aggregation", inputs, lambda right: signed(right, 1.0)).ok
    assert not verdict("aggregation", inputs, lambda right: signed(right, -1.0)).ok


def test_tokens_count_up_to_the_first_near_tie() -> None:
    inputs = CASE["generation-002"].inputs
    right = run_oracle("generation", inputs)
    logits = run_oracle("generation", inputs | {"forced": right["tokens"]})["logits"]
    best = np.sort(logits, axis=-1)
    row, step = np.unravel_index((best[..., -1] - best[..., -2]).argmin(), logits.shape[:2])
    margin = float((best[..., -1] - best[..., -2])[row, step]) / float(np.abs(logits).max())
    tokens = right["tokens"].copy()
    tokens[row, step] = int(logits[row, step].argsort()[-2])
    other = right | {"tokens": tokens}
    assert judge("generation", inputs, other, budget=margin).ok
    assert f"row {row}, step {step}: token" in judge("generation", inputs, other, budget=margin / 3).message
    far = right | {"logits": right["logits"] * 1.1}
    assert "logits for the given continuation" in judge("generation", inputs, far, budget=0.05).message


def test_a_shift_of_an_empty_set_must_be_exactly_zero() -> None:
    inputs = CASE["contrast-009"].inputs
    nearly = verdict("contrast", inputs, lambda right: right | {"delta_pos": right["delta_pos"] + 1e-16})
    assert not nearly.ok


# ---------------------------------------------------------------------------------------- the arguments
def test_every_refusal_says_what_was_given_and_what_is_expected() -> None:
    for case in CASES:
        if case.result == "invalid" and "Degenerate" not in case.flags:
            with pytest.raises(ValueError, match=r"expected|holds") as refusal:
                run_oracle(case.stage, case.inputs)
            assert len(str(refusal.value)) > 25, case.id
    with pytest.raises(ValueError, match="dtype is 'fp8'; expected one of float64"):
        stages.check("steering", "fp8", **CASE["steering-001"].inputs)
