"""The dialect `authors` in the kit: oracle, planted bugs, and the released code as a port under both dialects."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from shared import only_quick
from typer.testing import CliRunner

from grains_ref.authors import select
from grains_ref.cli import app
from grains_ref.conformance.authors import bugs as bugs_authors
from grains_ref.conformance.authors import options as bugs_of_options
from grains_ref.conformance.authors.cases import ILL_POSED, KILLS, LEFT_OUT
from grains_ref.conformance.budgets import Budget, load_budgets
from grains_ref.conformance.bugs import BUGS
from grains_ref.conformance.cases import Case
from grains_ref.conformance.compare import distance, judge
from grains_ref.conformance.components import SIGN_DEFINED, WELL_SEPARATED
from grains_ref.conformance.dialects import AUTHORS, PAPER, Dialect
from grains_ref.conformance.ports import PythonPort
from grains_ref.conformance.runner import Run, run_port
from grains_ref.conformance.stages import ORACLE, STAGES, Stage, Values, check, run_oracle
from grains_ref.conformance.vectors import right_of

pytestmark = pytest.mark.cpu

RELEASED = {bug.name for bug in BUGS if bug.source.startswith("released code")}
LIKELIHOOD = "attribution_likelihood"
# Every case asks for all bugs of its stage.
FEW = {"attribution": 1, "generation": 1, "objective": 3, "contrast": 2, "aggregation": 8}
FLOAT64, EXACT = 1e-12, 1e-7  # the second for attribution: Captum's weights are rounded to float32


@functools.cache
def budgets(dialect: str) -> dict[tuple[str, str], Budget]:
    return load_budgets(dialect)


@functools.cache
def released_code() -> PythonPort:
    return PythonPort(importlib.import_module("ports.authors_port"))


def port_of(name: str, stages: dict[str, Stage]) -> PythonPort:
    def refusing(stage: str, function: Stage) -> Stage:
        def checked(*, dtype: str, **inputs: Any) -> Values:
            check(stage, dtype, **inputs)
            return function(**inputs, dtype=dtype)

        return checked

    module = ModuleType(name)
    vars(module).update({stage: refusing(stage, function) for stage, function in stages.items()})
    return PythonPort(module)


def cases_of(dialect: Dialect, stage: str, result: str = "valid") -> list[Case]:
    return [case for case in dialect.cases if (case.stage, case.result) == (stage, result)]


def under(dialect: Dialect, port: PythonPort, dtype: str, **options: Any) -> Run:
    return run_port(port, budgets(dialect.name), dialect=dialect, dtypes=[dtype], **options)


# ------------------------------------------------------------------------------------- the oracle
@pytest.mark.parametrize("stage", STAGES)
def test_another_writing_of_the_released_code_agrees_with_the_oracle(stage: str) -> None:
    """The planted bugs' decoder, masks and NumPy against `grains_ref.authors`: no line in common."""
    allowed = EXACT if stage == "attribution" else FLOAT64
    for case in cases_of(AUTHORS, stage):
        got = bugs_authors.WITHOUT_BUG[stage](**case.inputs, dtype="float64")
        assert distance(stage, case.inputs, got, right_of("authors", case.id).out) < allowed, case.id
    for case in cases_of(AUTHORS, stage, "acceptable"):  # several outputs are right, and which one is an accident
        got = bugs_authors.WITHOUT_BUG[stage](**case.inputs, dtype="float64")
        verdict = judge(stage, case.inputs, got, budget=allowed, right=right_of("authors", case.id))
        assert verdict.ok, (case.id, verdict.message)


@pytest.mark.thorough
def test_that_writing_passes_as_a_port() -> None:
    result = under(AUTHORS, port_of("another", bugs_authors.WITHOUT_BUG), "float32", modes=("isolated",))
    assert not result.failed
    assert {r.stage for r in result.results} == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_the_dialects_differ_at_every_stage(stage: str) -> None:
    cases = cases_of(AUTHORS, stage)
    both = [
        distance(stage, case.inputs, right_of("authors", case.id).out, right_of("paper", case.id).out)
        for case in cases
        if case.id != "steering-101"
    ]
    assert np.mean(np.array(both) > 0.01) > 0.5


# ------------------------------------------------------------------------------------- row 22
def test_the_likelihood_objective_attributes_nothing_by_a_path_and_something_by_the_gradient() -> None:
    for case in cases_of(AUTHORS, LIKELIHOOD):
        a, t = right_of("authors", case.id).out["a"], len(case.inputs["x"])
        assert (a == 0).all() == (case.inputs["method"] == "integrated_gradients"), case.id
        picks = select(torch.from_numpy(a), k=2)
        by_position = picks.pos == (t - 1, t - 2) and picks.neg == (0, 1)
        assert by_position == (case.inputs["method"] == "integrated_gradients"), case.id
        other = bugs_of_options.WITHOUT_BUG[LIKELIHOOD](**case.inputs, dtype="float64")
        assert distance(LIKELIHOOD, case.inputs, other, {"a": a}) < FLOAT64, case.id


def test_every_bug_of_row_22_is_caught_by_every_case_that_names_it() -> None:
    budget, killed = budgets("authors")[LIKELIHOOD, "float32"], set()
    for case in cases_of(AUTHORS, LIKELIHOOD):
        for bug in (bug for bug in AUTHORS.bugs_of(LIKELIHOOD) if bug.name in case.kills):
            got = bug.function(**case.inputs, dtype="float32")
            assert distance(LIKELIHOOD, case.inputs, got, right_of("authors", case.id).out) > 10 * budget.budget
            killed.add(bug.name)
    assert killed == {bug.name for bug in AUTHORS.bugs_of(LIKELIHOOD)}


# ------------------------------------------------------------------------------------- its cases and bugs
@pytest.mark.parametrize("stage", only_quick(STAGES, "selection", "aggregation", "steering"))
def test_every_bug_is_caught_by_every_case_that_names_it(stage: str) -> None:
    dtype = "float32"  # in float64 the bugs are the same and the budgets a thousand times smaller
    budget = budgets("authors")[stage, dtype]
    assert budget.claimable
    killed = {bug.name: 0 for bug in AUTHORS.bugs_of(stage)}
    for case in cases_of(AUTHORS, stage):
        assert set(case.kills) <= set(killed), case.id
        assert case.kills, case.id
        for bug in (bug for bug in AUTHORS.bugs_of(stage) if bug.name in case.kills):
            error = distance(
                stage, case.inputs, bug.function(**case.inputs, dtype=dtype), right_of("authors", case.id).out
            )
            assert error > 10 * budget.budget, (bug.name, case.id, error)
            killed[bug.name] += 1
    assert all(killed.values()), killed


def test_cases_are_those_of_the_paper_but_for_what_nothing_defines() -> None:
    ours, theirs = ({case.id: case for case in dialect.cases} for dialect in (AUTHORS, PAPER))
    theirs = {name: case for name, case in theirs.items() if case.stage in AUTHORS.oracle}
    assert set(theirs) - set(ours) == set(LEFT_OUT)
    assert set(ours) - set(theirs) == {"steering-101"}
    assert set(KILLS) == {case.id for case in AUTHORS.cases if case.result == "valid"}
    assert [case.id for case in AUTHORS.cases if case.id in theirs and case.result != theirs[case.id].result] == [
        *ILL_POSED
    ]
    for case in cases_of(AUTHORS, "aggregation"):
        margins = right_of("authors", case.id).margins
        assert min(margins["gap_pos"] + margins["gap_neg"]) > WELL_SEPARATED, case.id
        assert min(margins["sign_pos"] + margins["sign_neg"]) > 5 * SIGN_DEFINED, case.id
    for name in ("contrast-009", "aggregation-018"):
        assert LEFT_OUT[name]


@pytest.mark.parametrize("bug", AUTHORS.bugs, ids=[f"{bug.stage} {bug.name}" for bug in AUTHORS.bugs])
def test_every_bug_says_where_it_comes_from(bug: Any) -> None:
    assert bug.source in ("ours", "field") or bug.source.startswith("released code, row")
    assert not any(text.endswith(".") for text in (bug.effect, bug.description))


# ------------------------------------------------------------------------------------- the released code as a port
def test_under_authors_the_released_code_passes() -> None:
    cases = [case for case in AUTHORS.cases if case.stage in STAGES and case.stage != "attribution"]
    cases += cases_of(AUTHORS, "attribution")[::4]
    result = under(AUTHORS, released_code(), "float32", cases=cases, modes=("isolated",))
    assert not result.failed
    assert len(result.results) == len(cases)


@pytest.mark.thorough
def test_under_authors_it_passes_chained_and_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grains_ref.conformance.runner.chain_examples", some_examples)
    result = under(AUTHORS, released_code(), "float64", cases=(), modes=("chained", "end to end"))
    assert not result.failed
    assert {r.mode for r in result.results} == {"chained", "end to end"}


def some_examples(dialect: Dialect) -> list[dict[str, Any]]:
    """Three instead of fourteen: 20 nodes each, twice."""
    return [dict(dialect.case(f"attribution-{number}").inputs) for number in ("001", "009", "012")]


@pytest.mark.parametrize("stage", only_quick(STAGES, "selection", "aggregation", "steering"))
def test_under_paper_every_deviation_of_the_released_code_is_named(stage: str) -> None:
    cases = cases_of(PAPER, stage)[: FEW.get(stage)]
    result = under(PAPER, released_code(), "float64", cases=cases, modes=("isolated",))
    failed = [r for r in result.results if r.status == "failed"]
    assert len(failed) > len(cases) / 2
    # lam = 0 and the like: the 1e-8 alone is left, and no case of the paper's is made for it
    assert [r.case for r in failed if not r.diagnosis and r.error > 1e-6] == []
    names = {r.diagnosis.bug for r in failed if r.diagnosis}
    of_the_signs = {"sign_not_required", "argsort_ends", "eligibility_ignored"}
    assert names - of_the_signs <= RELEASED
    likely = result.likely_bug(stage)
    assert likely
    assert likely.bug in RELEASED


@pytest.mark.parametrize("stage", STAGES)
def test_under_authors_the_reference_is_diagnosed(stage: str) -> None:
    cases = [*cases_of(AUTHORS, stage)[: FEW.get(stage, 12)]]
    result = under(AUTHORS, port_of("reference", ORACLE), "float32", cases=cases, modes=("isolated",))
    failed = [r for r in result.results if r.status == "failed"]
    assert failed
    assert all(r.diagnosis for r in failed)
    likely = result.likely_bug(stage)
    assert likely
    assert likely.bug == ("signed_by_mean" if stage == "aggregation" else f"paper_{stage}")
    assert likely.explained == likely.failures


def test_with_a_cache_the_released_hook_says_something_else() -> None:
    """A port that steers every new token by itself is told so, though its greedy tokens are not judged."""
    (bug,) = (bug for bug in AUTHORS.bugs if bug.name == "with_a_cache")
    result = under(AUTHORS, port_of("cached", {"generation": bug.function}), "float32",
                   cases=cases_of(AUTHORS, "generation")[3:6], modes=("isolated",))  # fmt: skip
    likely = result.likely_bug("generation")
    assert likely
    assert likely.bug == "with_a_cache"
    right = right_of("authors", "generation-004")
    assert not np.array_equal(
        right.out["tokens"], run_oracle("generation", AUTHORS.case("generation-004").inputs)["tokens"]
    )


# ------------------------------------------------------------------------------------- the command
@pytest.mark.thorough
def test_the_command_takes_a_dialect(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "released.py").write_text(
        "from grains_ref.conformance.authors.stages import selection, steering\nDTYPES = ('float32',)\n"
    )
    monkeypatch.chdir(tmp_path)
    command = ["conform", "run", "--port", "released", "--only", "steering-00*", "--only", "selection-00*"]
    passed = CliRunner().invoke(app, [*command, "--dialect", "authors"])
    assert passed.exit_code == 0, passed.output
    assert "Dialect authors: judged by the code released with the paper" in passed.output.replace("\n", " ")
    failed = CliRunner().invoke(app, command)
    assert failed.exit_code == 1
    assert "(argsort_ends)" in failed.output.replace("\n", "")
    unknown = CliRunner().invoke(app, [*command, "--dialect", "latin"])
    assert unknown.exit_code == 1
    assert "there are paper, authors" in " ".join(unknown.output.split())
    smoke = CliRunner().invoke(app, ["conform", "smoke", "--port", "released", "--dialect", "authors"])
    assert smoke.exit_code == 0, smoke.output
