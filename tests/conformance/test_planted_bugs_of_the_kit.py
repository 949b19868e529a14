"""The kit's cases catch the kit's planted bugs: the kill matrix, and what cases and bugs promise about themselves.

`python tests/conformance/test_planted_bugs_of_the_kit.py` prints the table of the weakest bugs.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest
import torch
from shared import only_quick

from grains_ref.conformance.budgets import load_budgets
from grains_ref.conformance.bugs import BUGS, EQUIVALENT, WITHOUT_BUG, Bug
from grains_ref.conformance.bugs.aggregation import largest_entry_positive
from grains_ref.conformance.bugs.decoder import decode
from grains_ref.conformance.cases import CASES, FLAGS, Case, aggregation
from grains_ref.conformance.cases.common import bf16
from grains_ref.conformance.compare import apart
from grains_ref.conformance.components import SIGN_DEFINED, WELL_SEPARATED
from grains_ref.conformance.stages import OUTPUTS, Values, run_oracle
from grains_ref.conformance.toy import Toy, toy_weights

pytestmark = pytest.mark.cpu

BUDGETS = load_budgets()
ABOVE = 10  # how far beyond the budget a bug must be
REFUSALS = (ValueError, ArithmeticError, RuntimeError, IndexError)
CASE = {case.id: case for case in CASES}
VALID = [case for case in CASES if case.result == "valid"]
INVALID = [case for case in CASES if case.result == "invalid"]


def ids(things: list[Case] | list[Bug]) -> list[str]:
    return [thing.id if isinstance(thing, Case) else thing.name for thing in things]


@cache
def right(case: str) -> Values:
    return run_oracle(CASE[case].stage, CASE[case].inputs)


@cache
def wrong(bug: Bug, case: str, dtype: str) -> Values | None:
    """What a bug makes of a case; None if it refuses it."""
    try:
        return bug.function(**CASE[case].inputs, dtype=dtype)
    except REFUSALS:
        return None


def killers(bug: Bug) -> list[Case]:
    return [case for case in VALID if case.stage == bug.stage and bug.name in case.kills]


def error(bug: Bug, case: Case, dtype: str) -> float:
    got = wrong(bug, case.id, dtype)
    if got is None:
        return float("inf")
    return apart(case.stage, case.inputs, got, right(case.id))


# ---------------------------------------------------------------------------------------- kill matrix
@pytest.mark.parametrize("stage", only_quick(OUTPUTS, "selection", "steering", "aggregation"))
def test_every_bug_is_caught_by_every_case_that_names_it(stage: str) -> None:
    """In float64, and in float32 where it adds rounding of the size of the bug."""
    escaped = []
    for bug in (bug for bug in BUGS if bug.stage == stage):
        for case in killers(bug):
            allowed = {dtype: ABOVE * BUDGETS[stage, dtype].budget for dtype in ("float64", "float32")}
            found = {"float64": error(bug, case, "float64")}
            if not found["float64"] > 3 * allowed["float32"]:
                found["float32"] = error(bug, case, "float32")
            escaped += [f"{bug.name} in {case.id}, {d}: {e:.1e}" for d, e in found.items() if not e > allowed[d]]
    assert not escaped


@pytest.mark.parametrize("stage", only_quick(OUTPUTS, "selection", "steering", "aggregation"))
def test_every_bug_is_named_by_a_case_and_refuses_no_valid_input(stage: str) -> None:
    for bug in (bug for bug in BUGS if bug.stage == stage):
        assert killers(bug), bug.name
        assert all(wrong(bug, case.id, "float64") is not None for case in killers(bug)), bug.name


@pytest.mark.parametrize("stage", only_quick(OUTPUTS, "selection", "steering"))
def test_no_two_bugs_of_a_stage_are_the_same(stage: str) -> None:
    """Bugs that agree so far are compared on one case after the other until all are told apart."""
    groups = [[bug for bug in BUGS if bug.stage == stage]]
    for case in (case for case in VALID if case.stage == stage):
        groups = [part for group in groups for part in split(group, case)]
    together = {frozenset(bug.name for bug in group) for group in groups}
    names = {bug.name for bug in BUGS if bug.stage == stage}
    assert together == {frozenset(group) for group, reason in EQUIVALENT if set(group) <= names and reason}


def split(group: list[Bug], case: Case) -> list[list[Bug]]:
    """The bugs of a group by their outputs; those that nobody shares an output with are dropped."""
    parts: list[list[Bug]] = []
    for bug in group:
        for part in parts:
            if same(wrong(part[0], case.id, "float64"), wrong(bug, case.id, "float64")):
                part.append(bug)
                break
        else:
            parts.append([bug])
    return [part for part in parts if len(part) > 1]


def same(a: Values | None, b: Values | None) -> bool:
    if a is None or b is None:
        return a is b
    for name, ours in a.items():
        x, y = np.asarray(ours, float), np.asarray(b[name], float)
        if x.shape != y.shape or not np.allclose(x, y, rtol=1e-7, atol=1e-9, equal_nan=True):
            return False
    return True


@pytest.mark.parametrize("stage", OUTPUTS)
def test_stages_without_a_bug_are_the_oracle(stage: str) -> None:
    for case in (case for case in VALID if case.stage == stage):
        got = WITHOUT_BUG[stage](**case.inputs, dtype="float64")
        assert apart(stage, case.inputs, got, right(case.id)) < 1e-12, case.id


# ---------------------------------------------------------------------------------------- the cases
@pytest.mark.parametrize("case", INVALID, ids=ids(INVALID))
def test_invalid_inputs_are_refused_by_the_oracle_and_by_every_bug(case: Case) -> None:
    with pytest.raises(REFUSALS):
        run_oracle(case.stage, case.inputs)
    assert [bug.name for bug in BUGS if bug.stage == case.stage and wrong(bug, case.id, "float64")] == []


def test_all_other_inputs_have_a_finite_output() -> None:
    for case in CASES:
        if case.result != "invalid":
            assert all(np.isfinite(np.asarray(value, float)).all() for value in right(case.id).values()), case.id


def test_every_valid_case_catches_a_bug_and_only_bugs_of_its_stage() -> None:
    names = {stage: [bug.name for bug in BUGS if bug.stage == stage] for stage in OUTPUTS}
    assert len({bug.name for bug in BUGS}) >= 220  # one of the decoder counts once, though known at four stages
    for stage, of_stage in names.items():
        assert len(set(of_stage)) == len(of_stage), stage
    for case in CASES:
        assert set(case.kills) <= set(names[case.stage]), case.id
        assert bool(case.kills) == (case.result == "valid"), case.id
        assert len(set(case.kills)) == len(case.kills), case.id


def test_every_input_is_one_that_bfloat16_can_hold() -> None:
    for case in CASES:
        for name, value in case.inputs.items():
            if isinstance(value, np.ndarray) and value.dtype == np.float64:
                np.testing.assert_array_equal(bf16(value), value, err_msg=f"{case.id}, {name}")


def test_cases_are_small_numbered_and_described() -> None:
    assert len(CASES) >= 90
    for stage in OUTPUTS:
        numbers = [case.id for case in CASES if case.stage == stage]
        assert numbers == [f"{stage}-{i:03d}" for i in range(1, len(numbers) + 1)]
    for case in CASES:
        assert case.comment[0].isupper() or case.comment.startswith(("v ", "`"))
        assert not case.comment.endswith(".")
        size = sum(np.size(value) for name, value in case.inputs.items() if name not in case.generated)
        assert size < (5000 if "FarPositions" in case.flags else 1500), case.id


def test_every_flag_is_defined_and_used() -> None:
    assert {flag for case in CASES for flag in case.flags} == set(FLAGS)
    assert all(case.flags for case in CASES)


def test_every_bug_says_where_it_comes_from() -> None:
    for bug in BUGS:
        assert bug.source in ("study", "field", "ours") or re.match("released code, rows? [0-9]", bug.source), bug.name
        assert bug.effect[0].isupper(), bug.name
        assert not any(text.endswith(".") for text in (bug.effect, bug.description)), bug.name


# ---------------------------------------------------------------------------------------- what cases were built for
@pytest.mark.thorough
def test_valid_shifts_define_direction_and_sign_and_acceptable_ones_do_not() -> None:
    for case in aggregation.CASES:
        if case.result != "invalid":
            gaps, cosines = spectrum(case)
            assert (min(gaps) > WELL_SEPARATED) == (case.result == "valid"), case.id
            assert min(cosines) > 20 * SIGN_DEFINED, case.id


def spectrum(case: Case) -> tuple[list[float], list[float]]:
    """Of every side and layer: the relative gap of the first two eigenvalues, and |cos(component, mean)|."""
    gaps, cosines = [], []
    for side in ("delta_pos", "delta_neg"):
        for D in case.inputs[side].swapaxes(0, 1):
            mean = D.mean(0)
            _, s, u = np.linalg.svd(D - mean)
            gaps.append(1 - (s[1] / s[0]) ** 2)
            cosines.append(abs(u[0] @ mean) / np.linalg.norm(mean))
    return gaps, cosines


@pytest.mark.parametrize(("name", "gap"), [("004", 0.5), ("005", 64 / 1088), ("006", 1 / 1025), ("007", 0.0)])
def test_eigen_gaps_are_what_the_comments_say(name: str, gap: float) -> None:
    gaps, _ = spectrum(CASE[f"aggregation-{name}"])
    assert gaps == pytest.approx([gap] * len(gaps), abs=1e-12)


def test_one_case_has_sign_rules_that_differ_for_one_side_only() -> None:
    case, v = CASE["aggregation-009"], right("aggregation-009")
    theirs = {side: largest_entry_positive(case.inputs[f"delta_{side}"][:, 0]) for side in ("pos", "neg")}
    signs = {side: float(u @ v[f"v_{side}"][0]) for side, u in theirs.items()}
    assert signs == pytest.approx({"pos": 1.0, "neg": -1.0})
    flipped = v["v_pos"] + v["v_neg"]
    assert abs(float(flipped[0] @ v["v"][0])) < 1e-12  # at right angles


def test_the_bugs_decoder_without_a_bug_is_the_toy() -> None:
    toy, weights = Toy(toy_weights()), toy_weights()
    inputs = torch.from_numpy(weights["embed"][[[0, 0, 5, 9, 12], [4, 7, 0, 30, 1]]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    logits, states = toy(inputs, mask)
    ours = decode(inputs, mask)
    torch.testing.assert_close((ours.logits, ours.states), (logits, states), rtol=0, atol=1e-12)


# ---------------------------------------------------------------------------------------- the table
def weakest(stage: str, dtype: str) -> tuple[float, str]:
    """The bug that shows least in its best case, which is looked for in float32."""
    best = {bug: max(killers(bug), key=lambda case: error(bug, case, "float32")) for bug in BUGS if bug.stage == stage}
    return min((error(bug, case, dtype), bug.name) for bug, case in best.items())


def test_the_weakest_bugs(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("selection", "aggregation", "steering")  # the quick ones
    assert capsys.readouterr().out.count("\n") == 2 + 3


def print_table(*stages: str) -> None:
    dtypes = ("float64", "float32", "bfloat16")
    columns = ("stage", "cases", "valid / invalid / acceptable", "bugs", *(f"weakest in {dtype}" for dtype in dtypes))
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for stage in stages:
        kinds = [case.result for case in CASES if case.stage == stage]
        count = " / ".join(str(kinds.count(kind)) for kind in ("valid", "invalid", "acceptable"))
        least = " | ".join("{:.2g} {}".format(*weakest(stage, dtype)) for dtype in dtypes)
        print(f"| {stage} | {len(kinds)} | {count} | {sum(bug.stage == stage for bug in BUGS)} | {least} |")


if __name__ == "__main__":
    print_table(*OUTPUTS)
