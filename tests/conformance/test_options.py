"""What came with the options: claims one by one, every case twice, random inputs, lists, solvers, half precision."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from grains_ref.cli import app
from grains_ref.conformance import runner, stages
from grains_ref.conformance.budgets import Budget, load_budgets
from grains_ref.conformance.bugs import BUGS
from grains_ref.conformance.compare import judge
from grains_ref.conformance.dialects import DIALECTS, PAPER
from grains_ref.conformance.fresh import run_fresh
from grains_ref.conformance.ports import PythonPort
from grains_ref.conformance.random_inputs import fresh_inputs
from grains_ref.conformance.runner import run_port
from grains_ref.conformance.signatures import check
from grains_ref.conformance.stages import OPTIONS, ORACLE, STAGES, Values, array, tensor
from grains_ref.conformance.vectors import right_of

pytestmark = pytest.mark.cpu


@functools.cache
def budgets() -> dict[tuple[str, str], Budget]:
    return load_budgets()


def port_of(**functions: Any) -> PythonPort:
    module = ModuleType("my_port")
    vars(module).update(functions)
    return PythonPort(module)


# ------------------------------------------------------------------------------------- claims
def test_only_what_is_claimed_is_asked() -> None:
    names = ("selection", "selection_eligible", "aggregation_mean")
    port = port_of(**{name: ORACLE[name] for name in names}, DTYPES=("float32",))
    result = run_port(port, budgets(), modes=("isolated",))
    assert {r.stage for r in result.results} == set(names) == set(port.stages)
    assert not result.failed


def test_every_option_has_cases_bugs_and_a_dtype_in_which_it_can_be_claimed() -> None:
    assert len(OPTIONS) == 23
    for option in OPTIONS:
        cases = [case for case in PAPER.cases if case.stage == option]
        assert sum(case.result == "valid" for case in cases) >= 3, option
        assert len(PAPER.bugs_of(option)) >= 2, option
        assert budgets()[option, "float32"].claimable, option
        assert budgets()[option, "float64"].claimable, option


def test_the_authors_have_one_option() -> None:
    assert [name for name in DIALECTS["authors"].oracle if name not in STAGES] == ["attribution_likelihood"]


# ------------------------------------------------------------------------------------- solvers
WIDE = ("aggregation-029", "aggregation-030")


def wide(name: str, direction: Any, dtype: str) -> bool:
    """Whether a solver's direction, from centred shifts (N, d), passes as float32 does."""
    case, rows = PAPER.case(name), {}
    for side in ("pos", "neg"):
        D = tensor(case.inputs[f"delta_{side}"][:, 0], dtype)
        u = direction(D - D.mean(0))
        rows[f"v_{side}"] = array(u * (u @ D.mean(0)).sign())[None]
    got = rows | {"v": rows["v_pos"] - rows["v_neg"]}
    budget = budgets()["aggregation", "float32"].budget
    return judge("aggregation", case.inputs, got, budget=budget, right=right_of("paper", name)).ok


def by_gram(D: torch.Tensor) -> torch.Tensor:
    u = D.mT @ torch.linalg.eigh(D @ D.mT).eigenvectors[:, -1]
    return u / u.norm()


@pytest.mark.parametrize("name", WIDE)
def test_exact_solvers_in_float32_pass_with_a_flat_spectrum(name: str) -> None:
    assert wide(name, by_gram, "float32")
    assert wide(name, lambda D: torch.linalg.svd(D, full_matrices=False).Vh[0], "float32")


def test_eigenvectors_of_the_scatter_matrix_pass_too() -> None:
    assert wide(WIDE[0], lambda D: torch.linalg.eigh(D.mT @ D).eigenvectors[:, -1], "float32")


@pytest.mark.parametrize("name", WIDE)
def test_solvers_that_sample_fail_with_a_flat_spectrum(name: str) -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")

    def sklearns(D: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(decomposition.PCA(1, random_state=0).fit(D.numpy()).components_[0])

    torch.manual_seed(0)
    assert not wide(name, sklearns, "float64")
    assert not wide(name, lambda D: torch.pca_lowrank(D)[2][:, 0], "float64")


# ------------------------------------------------------------------------------------- order of calls
def test_a_port_that_keeps_state_fails_when_it_is_asked_again() -> None:
    """One whose buffer holds three answers, and gives the oldest once it is full."""
    buffer: list[Values] = []

    def steering(**inputs: Any) -> Values:
        buffer.append(ORACLE["steering"](**inputs))
        return buffer[-1] if len(buffer) <= 3 else buffer[0]

    cases = [case for case in PAPER.cases if case.id in ("steering-001", "steering-006", "steering-007")]
    once = run_port(port_of(steering=steering), budgets(), cases=cases, dtypes=["float32"], modes=("isolated",))
    assert not once.failed
    buffer.clear()
    twice = run_port(
        port_of(steering=steering), budgets(), cases=cases, dtypes=["float32"], modes=("isolated", "again")
    )
    assert {r.mode for r in twice.results if r.status == "failed"} == {"again"}
    divergence = twice.first_divergence()
    assert divergence
    assert "right when it was asked first, wrong when it was asked again" in divergence.message


def test_again_means_every_case_in_another_order() -> None:
    asked: list[str] = []

    class Recording:
        name, stages, dtypes = "recording", ("selection",), ("float32",)

        def run(self, stage: str, inputs: Any, dtype: str, case: str) -> Values:
            asked.append(case)
            return ORACLE[stage](**inputs, dtype=dtype)

        def close(self) -> None:
            """Nothing was started."""

    cases = [case for case in PAPER.cases if case.stage == "selection" and case.result == "valid"]
    run_port(Recording(), budgets(), cases=cases, modes=("isolated", "again"))
    first, second = asked[: len(cases)], asked[len(cases) :]
    assert sorted(first) == sorted(second)
    assert first != second


# ------------------------------------------------------------------------------------- half precision
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_end_to_end_in_half_precision_tells_right_from_wrong(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    every = runner.chain_examples()
    monkeypatch.setattr(runner, "chain_examples", lambda dialect: every[:6])
    right = {name: ORACLE[name] for name in ("contrast", "aggregation", "steering")}
    (passed,) = run_port(port_of(**right, DTYPES=(dtype,)), budgets(), cases=(), modes=("end to end",)).results
    assert passed.status == "passed"
    assert 0 < passed.error < passed.budget / 4
    for name in ("uncentred", "norm_over_sequence"):
        (bug,) = (bug for bug in BUGS if bug.name == name)
        port = port_of(**right | {bug.stage: bug.function}, DTYPES=(dtype,))
        (failed,) = run_port(port, budgets(), cases=(), modes=("end to end",)).results
        assert failed.status == "failed", name


# ------------------------------------------------------------------------------------- random inputs
def test_random_inputs_are_judged_like_cases() -> None:
    port = port_of(**{name: ORACLE[name] for name in ("selection", "steering", "aggregation_mean")})
    result = run_fresh(port, budgets(), seeds=range(900, 903), dtypes=["float32"])
    assert [r.case for r in result.results][:3] == [f"{name}-seed-900" for name in port.stages]
    assert len(result.results) == 9
    assert not result.failed
    (bug,) = (bug for bug in BUGS if bug.name == "norm_over_sequence")
    broken = run_fresh(port_of(steering=bug.function), budgets(), seeds=range(900, 903), dtypes=["float32"])
    assert broken.failed
    failed = [r for r in broken.results if r.status == "failed"]
    likely = broken.likely_bug("steering")
    assert likely
    assert likely.bug == "norm_over_sequence"
    assert "--only steering --seed 900 --count 1" in failed[0].message


def test_random_inputs_are_those_of_the_seed_that_is_named() -> None:
    asked = []

    def steering(**inputs: Any) -> Values:
        asked.append(np.asarray(inputs["h"]))
        return ORACLE["steering"](**inputs)

    run_fresh(port_of(steering=steering), budgets(), seeds=[901, 902], dtypes=["float64"])
    for h, seed in zip(asked, (901, 902), strict=True):
        assert np.array_equal(h, np.asarray(fresh_inputs("steering", seed)["h"]))


def test_every_seed_gives_another_input() -> None:
    for stage in ("selection", "attribution_baselines", "generation_end"):
        assert fresh_inputs(stage, 1).keys() == fresh_inputs(stage, 2).keys()
        assert repr(fresh_inputs(stage, 1)) == repr(fresh_inputs(stage, 1)) != repr(fresh_inputs(stage, 2))


def test_a_refused_random_input_is_a_failure() -> None:
    def steering(**inputs: Any) -> Values:
        raise ValueError("not today")

    (result,) = run_fresh(port_of(steering=steering), budgets(), seeds=[7], dtypes=["float64"]).results
    assert result.status == "failed"
    assert "not today" in result.message


@pytest.mark.parametrize("weights", [[1.0, -0.5, 1.0], [0.0, 0.0, 0.0], [1.0, float("nan"), 1.0]])
def test_weights_that_mean_nothing_are_refused(weights: list[float]) -> None:
    inputs = fresh_inputs("aggregation_weighted_mean", 1)
    n = len(inputs["weights_neg"])
    spoilt = np.resize(np.asarray(weights), n)
    with pytest.raises(ValueError, match="weights_neg"):
        check("aggregation_weighted_mean", "float64", **(inputs | {"weights_neg": spoilt}))
    check("aggregation_weighted_mean", "float64", **inputs)


# ------------------------------------------------------------------------------------- commands
def invoke(*words: str) -> Any:
    return CliRunner().invoke(app, ["conform", *words])


def test_the_command_asks_random_inputs() -> None:
    port = ("--port", "grains_ref.conformance.second_oracle", "--dtype", "float32")
    found = invoke("run", *port, "--only", "steering", "--seed", "50", "--count", "3")
    assert found.exit_code == 0, found.output
    assert "3/3" in found.output
    wrong = invoke("run", *port, "--only", "steering-001", "--seed", "50")
    assert wrong.exit_code == 1
    assert "names of stages and options" in " ".join(wrong.output.split())


def test_the_list_shows_cases_flags_and_bugs(tmp_path: Path) -> None:
    file = tmp_path / "list.json"
    found = invoke("list", "--json", str(file))
    assert found.exit_code == 0, found.output
    assert "generation_end (option): 4 cases, 3 well-posed, 1 to be refused" in found.output
    tables = json.loads(file.read_text())
    assert len(tables["cases"]) == len(PAPER.cases)
    assert len(tables["bugs"]) == len(PAPER.bugs)
    assert all(row["effect"] and row["source"] for row in tables["bugs"])
    by_case = {row["case"]: row for row in tables["cases"]}
    assert by_case["selection-025"]["posed"] == "ill-posed"
    assert by_case["generation_end-001"]["option"] == "generation_end"
    assert by_case["steering-001"]["option"] == ""
    bugs = invoke("list", "bugs", "--only", "mean_not_*")
    assert "mean_not_normalised (aggregation_mean; field)" in bugs.output
    assert "Effect: Lambda means something else in every layer." in bugs.output
    assert invoke("list", "everything").exit_code == 1
    assert invoke("list", "--only", "nothing").exit_code == 1
    flags = invoke("list", "flags", "--only", "generation_end")
    assert "EndOfText" in flags.output
    assert "Weights" not in flags.output


def test_the_reference_is_what_stages_says() -> None:
    assert set(stages.ORACLE) == set(stages.OUTPUTS) == set(STAGES) | set(OPTIONS)
    assert np.array_equal(
        ORACLE["attribution_random"](**PAPER.case("attribution_random-003").inputs, dtype="float64")["a"], [-0.75]
    )
