"""A planted bug is named where it accounts for the failures, and nothing is named where none does."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from shared import only_quick

from grains_ref.cli.console import Screen
from grains_ref.conformance import naming, runner
from grains_ref.conformance.budgets import load_budgets
from grains_ref.conformance.bugs import BUGS, Bug
from grains_ref.conformance.bugs.kinds import KINDS, kind_of
from grains_ref.conformance.cases import CASES, Case
from grains_ref.conformance.compare import apart, distance
from grains_ref.conformance.dialects import PAPER
from grains_ref.conformance.naming import Output, name_stage
from grains_ref.conformance.ports import PythonPort
from grains_ref.conformance.report import as_json, guess, junit, print_run
from grains_ref.conformance.runner import Result, Run, run_port
from grains_ref.conformance.stages import ORACLE, OUTPUTS, Stage, Values
from grains_ref.conformance.vectors import right_of

pytestmark = pytest.mark.cpu

CASE = {case.id: case for case in CASES}
# Every case asks for all bugs of its stage: of the stages that run the decoder, a few that tell much apart.
TOLD_BY = {
    "objective": ("objective-002", "objective-012", "objective-024"),
    "attribution": ("attribution-003", "attribution-008"),
    "contrast": ("contrast-005", "contrast-016"),
    "generation": ("generation-007",),
}
ROUNDING = 1 + 2e-7


def bug_called(name: str, stage: str) -> Bug:
    (bug,) = (bug for bug in BUGS if (bug.name, bug.stage) == (name, stage))
    return bug


def cases_for(stage: str) -> list[Case]:
    valid = [case for case in CASES if (case.stage, case.result) == (stage, "valid")]
    return [case for case in valid if case.id in TOLD_BY.get(stage, [case.id])]


def outputs(stage: str, port: Callable[[Case], Values]) -> tuple[list[Output], list[Output]]:
    """The wrong and the right outputs of a port of one stage, with rounding of its own."""
    budget, wrong, fine = load_budgets()[stage, "float32"].budget, list[Output](), list[Output]()
    for case in cases_for(stage):
        right = right_of("paper", case.id).out
        got = {name: rounded(value) for name, value in port(case).items()}
        output = Output(stage, case.inputs, "float64", got, right, distance(stage, case.inputs, got, right), budget,
                        case.id)  # fmt: skip
        (wrong if apart(stage, case.inputs, got, right) > budget else fine).append(output)
    return wrong, fine


def rounded(value: Any) -> Any:
    value = np.asarray(value)
    return value * ROUNDING if value.dtype.kind == "f" else value


def test_every_bug_has_one_kind_and_no_kind_names_a_bug_that_does_not_exist() -> None:
    names = {bug.name for bug in BUGS}
    for bug in BUGS:
        assert kind_of(bug.stage, bug.name) == bug.kind
        assert bug.stage not in KINDS or bug.kind in KINDS[bug.stage], bug.name
    for kinds in KINDS.values():
        assert {name for words in kinds.values() for name in words.split()} <= names


# ---------------------------------------------------------------------------------- what earns no name
def invented(stage: str, near: Mapping[str, float]) -> Callable[..., float]:
    """A stand-in for `how_near`: how far each bug is from every wrong output, 9 where nothing is said."""
    return lambda output, bug, dialect: near.get(bug.name, 9.0)


def four_wrong(stage: str = "steering") -> list[Output]:
    found = outputs(stage, lambda case: {name: np.asarray(value) * 3 for name, value in
                                         right_of("paper", case.id).out.items()})[0]  # fmt: skip
    return found[:4]


def test_a_bug_that_accounts_for_less_than_half_of_the_failures_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = four_wrong()
    near = {id(output): (0.0 if i < 2 else 9.0) for i, output in enumerate(wrong)}
    monkeypatch.setattr(naming, "how_near", lambda output, bug, dialect: (
        near[id(output)] if bug.name == "l1_norm" else 9.0))  # fmt: skip
    likely, diagnoses = name_stage(wrong, [])
    assert likely
    assert (likely.bug, likely.explained, likely.failures) == ("l1_norm", 2, 4)
    assert [one.bug if one else "" for one in diagnoses] == ["l1_norm", "l1_norm", "", ""]
    near[id(wrong[1])] = 9.0
    assert name_stage(wrong, [])[0] is None


def test_right_outputs_that_a_bug_would_make_wrong_speak_against_it() -> None:
    wrong, fine = outputs("steering", lambda case: bug_called(
        "batch_row_0_only" if case.id == "steering-001" else "unit_norm", "steering").function(
            **case.inputs, dtype="float64") if case.id == "steering-001" else dict(
                right_of("paper", case.id).out))  # fmt: skip
    assert [output.case for output in wrong] == ["steering-001"]
    assert name_stage(wrong, [])[0].bug == "batch_row_0_only"  # type: ignore[union-attr]
    likely, (diagnosis,) = name_stage(wrong, fine)
    assert likely is None or not likely.named
    assert diagnosis
    assert diagnosis.bug == "batch_row_0_only"


def test_a_bug_that_is_right_on_an_input_never_explains_a_wrong_output_of_it() -> None:
    """An output just beyond the budget in the direction of a bug that is just within it."""
    case, bug = CASE["steering-001"], bug_called("eps_of_1e-2", "steering")
    right, with_bug = right_of("paper", case.id).out["h"], bug.function(**case.inputs, dtype="float64")["h"]
    off = distance("steering", case.inputs, {"h": with_bug}, {"h": right})
    got = {"h": right + 1.05 * (with_bug - right)}
    wrong = Output("steering", case.inputs, "float64", got, {"h": right}, 1.05 * off, 1.01 * off, case.id)
    assert naming.diagnose(wrong, bugs=[bug]) is None
    narrower = replace(wrong, budget=0.9 * off)
    assert naming.diagnose(narrower, bugs=[bug])


def test_bugs_that_cannot_be_told_apart_are_all_named() -> None:
    """In a batch of two, lambda over the size of the batch is half of lambda."""
    once = bug_called("lam_halved", "steering")
    batch_of_two = CASE["steering-001"]
    got, right = once.function(**batch_of_two.inputs, dtype="float64"), right_of("paper", batch_of_two.id).out
    error = distance("steering", batch_of_two.inputs, got, right)
    likely, _ = name_stage(
        [Output("steering", batch_of_two.inputs, "float64", got, right, error, 1e-6, "steering-001")], []
    )
    assert likely
    assert {likely.bug, *likely.alike} == {"lam_halved", "lam_over_batch"}


def test_an_unknown_relative_of_known_bugs_is_told_its_kind() -> None:
    def six_times(case: Case) -> Values:
        return ORACLE["steering"](**case.inputs | {"lam": 6 * case.inputs["lam"]}, dtype="float64")

    wrong, fine = outputs("steering", six_times)
    likely, _ = name_stage(wrong, fine)
    assert likely
    assert (likely.kind, likely.named) == ("the strength", False)


# ---------------------------------------------------------------------------------- what is said
def port_of(stages: Mapping[str, Stage], dtypes: tuple[str, ...] = ("float32",)) -> PythonPort:
    module = ModuleType("my_port")
    vars(module).update(stages, DTYPES=dtypes)
    return PythonPort(module)


def run(port: PythonPort, *cases: str, modes: Any = ("isolated",)) -> Run:
    return run_port(port, load_budgets(), cases=[CASE[name] for name in cases], modes=modes)


def text_of(result: Run) -> str:
    screen = Screen()
    screen.file = io.StringIO()
    screen.width = 200
    print_run(result, load_budgets(), screen, repeat="again")
    return screen.file.getvalue()


def test_share_and_what_is_alike_are_said_in_text_json_and_junit() -> None:
    result = run(port_of({"steering": bug_called("lam_halved", "steering").function}), "steering-001")
    share, alike = "1 of 1", {"lam_halved", "lam_over_batch"}
    said, as_data = text_of(result), as_json(result)["likely_bugs"]["steering"]
    assert f"{share} wrong outputs of this stage are ours with this bug" in said
    assert all(name in said for name in alike)
    assert "Just as likely: " in said
    assert {as_data["bug"], *as_data["alike"]} == alike
    assert (as_data["explained"], as_data["failures"], as_data["named"]) == (1, 1, True)
    message = ElementTree.fromstring(junit(result))[0][0].get("message", "")
    assert share in message
    assert all(name in message for name in alike)
    assert json.dumps(as_json(result), allow_nan=False)


def test_the_first_failing_case_is_shown_whatever_is_named() -> None:
    def steering(*, h: Any, v: Any, lam: float, dtype: str) -> Values:
        name = "l1_norm" if len(h) != 3 else "unit_norm"
        return bug_called(name, "steering").function(h=h, v=v, lam=lam, dtype=dtype)

    result = run(port_of({"steering": steering}), "steering-002", "steering-005", "steering-009")
    first, likely = result.first_divergence(), result.likely_bug("steering")
    assert first
    assert likely
    assert (first.case, likely.bug, likely.explained, likely.failures) == ("steering-002", "l1_norm", 2, 3)


def test_errors_of_float32_under_a_claim_of_float64_are_called_rounding() -> None:
    def steering(**inputs: Any) -> Values:
        return ORACLE["steering"](**inputs | {"dtype": "float32"})

    result = run(port_of({"steering": steering}, ("float64", "float32")), "steering-001", "steering-002")
    assert [r.status for r in result.results] == ["failed", "failed", "passed", "passed"]
    assert result.likely_bug("steering") is None
    said = text_of(result)
    assert "Rounding: your numbers differ by float32's rounding" in said
    assert "Did a cast, a constant or a library call in float32 slip in?" in said
    assert "No planted bug" not in said


@pytest.mark.thorough
def test_a_decoder_bug_is_known_at_every_stage_and_said_once() -> None:
    broken = {stage: bug_called("gelu", stage).function for stage in ("objective", "contrast")}
    result = run(port_of(ORACLE | broken), "objective-001", "objective-024", "contrast-001", "steering-001")
    said = text_of(result)
    assert "Likely bug: GELU instead of SiLU (gelu)" in said
    assert "Also failing: contrast, 1 time. The same bug (gelu): both run the decoder." in said
    assert as_json(result)["follows_from"] == {"contrast": "objective"}


def test_a_fault_of_a_later_stage_alone_does_not_follow_from_an_earlier_one() -> None:
    broken = {"objective": bug_called("mean_over_tokens", "objective").function,
              "contrast": bug_called("delta_reversed", "contrast").function}  # fmt: skip
    result = run(port_of(ORACLE | broken), "objective-002", "contrast-001")
    assert result.follows_from("contrast") == ""
    assert "Also failing: contrast, 1 time. Likely bug: masked minus unmasked (delta_reversed). 1 of 1" in text_of(
        result
    )


def failed(stage: str, mode: Any = "isolated", case: str = "x-001") -> Result:
    return Result(case, stage, "float32", mode, "failed", error=1.0, message="relative error 1")


def test_a_chain_that_fails_at_its_end_is_not_called_a_fault_of_steering() -> None:
    end = failed("end to end", "end to end", "end-to-end")
    both = Run("port", ("contrast", "steering"), ("float32",), (end, failed("contrast")))
    assert both.failures("steering") == []
    assert "End to end (float32): relative error 1. It follows from contrast." in text_of(both)
    alone = Run("port", ("contrast", "steering"), ("float32",), (end,))
    said = text_of(alone)
    assert "First failing stage: end to end" in said
    assert "Every stage is right by itself, so look between them" in said


def test_the_end_of_a_chain_is_a_stage_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [dict(CASE[name].inputs) for name in ("attribution-001", "attribution-009")]
    monkeypatch.setattr(runner, "chain_examples", lambda dialect: examples)
    broken = {"steering": bug_called("lam_reversed", "steering").function}
    result = run(port_of(ORACLE | broken), modes=("end to end",))
    assert [(r.stage, r.status) for r in result.results] == [("end to end", "failed")]
    assert as_json(result)["first_divergence"]["stage"] == "end to end"


def test_nothing_is_guessed_where_nothing_was_compared() -> None:
    refused = replace(failed("steering"), message="refused a valid input")
    assert guess(Run("port", ("steering",), ("float32",), (refused,)), "steering") == []


# ---------------------------------------------------------------------------------- all bugs
@pytest.mark.parametrize("stage", only_quick(OUTPUTS, "selection", "steering", "attribution_batch", "generation_end"))
def test_a_port_with_a_planted_bug_is_told_its_name(stage: str) -> None:
    misnamed, quiet, bugs = list[str](), 0, PAPER.bugs_of(stage)[::3]
    for bug in bugs:
        wrong, fine = outputs(stage, lambda case, bug=bug: bug.function(**case.inputs, dtype="float64"))  # type: ignore
        likely, _ = name_stage(wrong, fine)
        quiet += not wrong
        if wrong and not (likely and likely.named and bug.name in (likely.bug, *likely.alike)):
            misnamed.append(bug.name)
    assert quiet <= (0 if stage not in TOLD_BY else 0.25 * len(bugs))
    assert len(misnamed) <= 0.05 * len(bugs), misnamed
