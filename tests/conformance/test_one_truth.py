"""What is right is the same on every machine, and can be told from the stored files alone.

Nothing here depends on the last bits of a linear algebra library; `.ci/run` runs it under several.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ports import files_only
from shared import first_quick, only_quick
from typer.testing import CliRunner

from grains_ref.cli import app
from grains_ref.conformance import vectors
from grains_ref.conformance.budgets import allowed, load_budgets
from grains_ref.conformance.cases import Case
from grains_ref.conformance.cases.aggregation import HADAMARD, with_gap
from grains_ref.conformance.compare import Right, judge, right_now
from grains_ref.conformance.components import OtherRow, Span, basis_of, canonical_components
from grains_ref.conformance.dialects import AUTHORS, DIALECTS, PAPER, Dialect
from grains_ref.conformance.ports import encode_values
from grains_ref.conformance.stages import DTYPES, STAGES, Values, array, tensor

pytestmark = pytest.mark.cpu

NAMES = ("pos", "neg")
NOISE = 1e-14  # at most, relative
ILL_POSED = [(dialect, case) for dialect in DIALECTS.values() for case in dialect.cases if case.result == "acceptable"]
COMPONENTS = [(dialect, case) for dialect, case in ILL_POSED if case.stage == "aggregation"]


def ids(pairs: list[tuple[Dialect, Case]]) -> list[str]:
    return [f"{dialect.name} {case.id}" for dialect, case in pairs]


MORE = ("objective_batch", "selection_eligible", "aggregation_components", "attribution_baselines", "generation_end")


def float64_budget(dialect: Dialect, stage: str) -> float:
    return load_budgets(dialect.name)[stage, "float64"].budget


# ------------------------------------------------------------------------------- noise of the last bits
def noisy(case: Case) -> dict[str, Any]:
    """The case's input, every number off by 1e-15 to 1e-14 of itself."""
    draws = np.random.default_rng(list(case.id.encode()))
    inputs = dict(case.inputs)
    for name, value in case.inputs.items():
        if isinstance(value, float) or (isinstance(value, np.ndarray) and value.dtype.kind == "f"):
            size = 10 ** draws.uniform(-15, np.log10(NOISE), np.shape(value))
            inputs[name] = value * (1 + size * draws.choice([-1.0, 1.0], np.shape(value)))
    return inputs


@pytest.mark.parametrize(
    ("dialect", "stage"),
    first_quick(
        [pytest.param(d, stage, id=f"{d.name}-{stage}") for d in DIALECTS.values() for stage in d.oracle], len(STAGES)
    ),
)
def test_no_well_posed_output_jumps_under_noise_of_the_last_bits(dialect: Dialect, stage: str) -> None:
    """In float64 every output stays within the budget of what is stored, up to what the stored margins say."""
    for case in (case for case in dialect.cases if case.stage == stage and case.result != "invalid"):
        got, right = dialect.run(stage, noisy(case)), vectors.right_of(dialect.name, case.id)
        if stage == "selection":  # tokens of exactly one score have a rule that noise must not be asked about
            scores = {name: [case.inputs["a"][j] for j in got[name]] for name in NAMES}
            assert scores == {name: [case.inputs["a"][j] for j in right.out[name]] for name in NAMES}, case.id
        elif stage == "selection_eligible":
            assert got == right.out, case.id
        elif "left" in right.margins:
            assert_tokens_moved_as_far_as_cancellation_lets_them(case, got, right)
        else:
            verdict = judge(stage, case.inputs, got, budget=float64_budget(dialect, stage), right=right)
            assert verdict.ok, (case.id, verdict.message)
        if stage == "generation":
            np.testing.assert_array_equal(got["tokens"], right.out["tokens"], err_msg=case.id)


def assert_tokens_moved_as_far_as_cancellation_lets_them(case: Case, got: Values, right: Right) -> None:
    """h + lam v is off by 2 NOISE (|h| + |lam v|) at most, which turns it by 4 NOISE / left; at 0 nothing is left."""
    want = right.out["h"]
    for row, token in np.ndindex(want.shape[:2]):
        left = right.margins["left"][row][token]
        if left is None:
            np.testing.assert_array_equal(got["h"][row, token], want[row, token], err_msg=case.id)
        elif left > 0:
            error = np.linalg.norm(got["h"][row, token] - want[row, token])
            allowed = float64_budget(PAPER, "steering") + 4 * NOISE / left
            assert error <= allowed * np.linalg.norm(want[row, token]), (case.id, row, token)


def test_exact_and_near_cancellations_are_those_that_are_flagged() -> None:
    for case in (case for case in PAPER.cases if case.stage == "steering" and case.result == "valid"):
        margins = vectors.right_of("paper", case.id).margins["left"]
        smallest = min(left for row in margins for left in row if left is not None)
        assert (smallest < 1e-6) == ("Cancellation" in case.flags), (case.id, smallest)


def test_only_ill_posed_cases_have_something_else_that_is_right() -> None:
    widest = {name: load_budgets(name)["aggregation", "bfloat16"].budget for name in DIALECTS}
    for dialect in DIALECTS.values():
        for case in (case for case in dialect.cases if case.result == "valid"):
            right = vectors.right_of(dialect.name, case.id)
            assert not right.accepted
            for name in ("gap_pos", "gap_neg"):  # or errors of bfloat16's size would turn a component anywhere
                assert min(right.margins.get(name, [1.0])) > 2 * widest[dialect.name], case.id


# ------------------------------------------------------------------------------- every right pattern of signs
def patterns(right: Right) -> Iterator[Values]:
    """Every combination of stored and accepted rows, the latter also out of the middle of a span."""
    choices = []
    for of in ("v_pos", "v_neg"):
        for layer, stored in enumerate(right.out[of]):
            accepted = [one for one in right.accepted if not hasattr(one, "out") and (one.of, one.layer) == (of, layer)]
            rows = [one.row for one in accepted if isinstance(one, OtherRow)]
            rows += [middle_of(one) for one in accepted if isinstance(one, Span)]
            choices.append([stored, *rows])
    for rows in itertools.product(*choices):
        half = len(rows) // 2
        v_pos, v_neg = np.stack(rows[:half]), np.stack(rows[half:])
        yield {"v_pos": v_pos, "v_neg": v_neg, "v": v_pos - v_neg}


def middle_of(span: Span) -> np.ndarray:
    """A vector of a span that is none of its basis."""
    v = (span.basis.sum(0) if span.toward is None else span.toward + 0.5 * span.basis[0]).astype(float)
    return v / np.linalg.norm(v)


@pytest.mark.parametrize(("dialect", "case"), COMPONENTS, ids=ids(COMPONENTS))
def test_every_pattern_of_signs_and_directions_is_right_and_no_other(dialect: Dialect, case: Case) -> None:
    right = vectors.right_of(dialect.name, case.id)
    budget = max(1e-9, *(one.begins for one in right.accepted))
    all_patterns = list(patterns(right))
    assert len(all_patterns) >= 2**6
    for got in all_patterns:
        assert judge("aggregation", case.inputs, got, budget=budget, right=right).ok
    for layer in range(3):
        wrong = {name: value.copy() for name, value in right.out.items()}
        wrong["v_pos"][layer] = HADAMARD_FIFTEEN  # at right angles to all that the shifts have
        wrong["v"] = wrong["v_pos"] - wrong["v_neg"]
        assert not judge("aggregation", case.inputs, wrong, budget=budget, right=right).ok


HADAMARD_FIFTEEN = np.append([(-1) ** (15 & j).bit_count() / 4 for j in range(16)], 0.0)


def test_a_sign_is_free_only_where_nothing_defines_it() -> None:
    """Of the ill-posed cases of the paper none: where two eigenvalues are equal the mean shift still says the sign."""
    for dialect, case in COMPONENTS:
        right = vectors.right_of(dialect.name, case.id)
        turned = {**right.out, "v_pos": -right.out["v_pos"]}
        turned["v"] = turned["v_pos"] - turned["v_neg"]
        for budget in (1e-10, 5e-6, 2e-2):
            found = judge("aggregation", case.inputs, turned, budget=budget, right=right)
            assert found.ok == (dialect is AUTHORS), (dialect.name, case.id, budget)
            assert found.ok or "sign is turned round" in found.message


def test_one_free_sign_frees_no_other_layer() -> None:
    """One row of which nothing defines the sign beside five that are well-posed."""
    case, tied = AUTHORS.case("aggregation-001"), vectors.right_of("authors", "aggregation-001")
    free = OtherRow("v_pos", 1, -tied.out["v_pos"][1], 0.0, "made up")
    right = Right(tied.out, tied.margins, (free,))
    for layer, of in itertools.product(range(3), ("v_pos", "v_neg")):
        for row in (-tied.out[of][layer], free.row):  # its own turned round, and what is right elsewhere
            got = {name: value.copy() for name, value in tied.out.items()}
            got[of][layer] = row
            got["v"] = got["v_pos"] - got["v_neg"]
            found = judge("aggregation", case.inputs, got, budget=1e-6, right=right)
            assert found.ok == ((of, layer) == ("v_pos", 1)), (of, layer)


@pytest.mark.parametrize(("budget", "right_ones"), [(0.01, 1), (0.02, 3), (0.2, 4)])
def test_components_that_errors_exchange_with_their_neighbours_are_all_right(budget: float, right_ones: int) -> None:
    """Eigenvalues 1, 0.97, 0.94 and 0.7: errors of 0.02 exchange the first with the second, and that with the third."""
    axes, scores = np.eye(4, 9), HADAMARD[:8, 1:5]  # (4, 9) and (8, 4), columns without mean
    D = scores @ (np.sqrt([[1.0], [0.97], [0.94], [0.7]]) * axes) + 0.1 * axes.sum(0)
    inputs = {"delta_pos": D[:, None], "delta_neg": D[:, None]}
    want = PAPER.run("aggregation", inputs)
    for i, axis in enumerate(axes):
        out = {"v_pos": axis[None], "v_neg": want["v_neg"], "v": axis[None] - want["v_neg"]}
        right = right_now("paper", "aggregation", inputs, want, budget)
        assert judge("aggregation", inputs, out, budget=budget, right=right).ok == (i < right_ones), i


def test_a_float32_step_inside_a_float64_port_is_seen() -> None:
    inputs, right = PAPER.case("aggregation-001").inputs, vectors.right_of("paper", "aggregation-001")
    rough = {name: right.out[name].astype(np.float32).astype(float) for name in ("v_pos", "v_neg")}
    rough["v"] = rough["v_pos"] - rough["v_neg"]
    assert not judge("aggregation", inputs, rough, budget=float64_budget(PAPER, "aggregation"), right=right).ok


# ------------------------------------------------------------------------------- canonical form
@pytest.mark.parametrize(("dialect", "extra"), [("paper", 0), ("authors", 0), ("authors", 8)])
def test_whatever_a_library_returns_the_canonical_form_is_the_same(dialect: str, extra: int) -> None:
    """Equal components mixed at random, and signs turned, as another library might have them."""
    numbers = random.Random("canonical")
    inputs = {"delta_pos": with_gap(extra), "delta_neg": with_gap(extra)[:, ::-1]}
    found = []
    for _ in range(8):
        want = {}
        for side in NAMES:
            rows = []
            for D in inputs[f"delta_{side}"].swapaxes(0, 1):
                first, second = np.linalg.svd(D - D.mean(0))[2][:2]
                angle = numbers.choice([0, np.pi]) if extra else numbers.uniform(0, 2 * np.pi)
                rows.append(np.cos(angle) * first + np.sin(angle) * second)
            want[f"v_{side}"] = np.stack(rows)
        found.append(canonical_components(dialect, inputs, want))
    for one in found[1:]:
        for name in ("v_pos", "v_neg", "v"):
            np.testing.assert_allclose(one[name], found[0][name], rtol=0, atol=1e-14)


def test_a_span_has_one_canonical_basis_whatever_basis_it_is_given_in() -> None:
    draws = np.random.default_rng(3)
    rows = np.linalg.qr(draws.normal(size=(7, 3)))[0].T
    turn = np.linalg.qr(draws.normal(size=(3, 3)))[0]
    basis = basis_of(rows)
    np.testing.assert_allclose(basis_of(turn @ rows), basis, rtol=0, atol=1e-14)
    np.testing.assert_allclose(basis @ basis.T, np.eye(3), rtol=0, atol=1e-14)
    np.testing.assert_allclose(basis.T @ basis, rows.T @ rows, rtol=0, atol=1e-14)


def test_well_posed_outputs_are_left_as_they_are() -> None:
    for dialect in DIALECTS.values():
        for case in (case for case in dialect.cases if case.stage == "aggregation" and case.result == "valid"):
            out = vectors.right_of(dialect.name, case.id).out
            again = canonical_components(dialect.name, case.inputs, out)
            assert all(np.array_equal(again[name], out[name]) for name in ("v_pos", "v_neg")), case.id


# ------------------------------------------------------------------------------- files alone
@pytest.fixture(scope="module", params=DIALECTS.values(), ids=DIALECTS)
def dumped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Dialect, Path]:
    folder = tmp_path_factory.mktemp(request.param.name) / "cases"
    command = ["conform", "dump", str(folder), "--dialect", request.param.name]
    assert CliRunner().invoke(app, command).exit_code == 0
    return request.param, folder


@pytest.mark.parametrize("dumped", only_quick(DIALECTS.values(), AUTHORS), ids=DIALECTS, indirect=True)
def test_files_alone_tell_right_from_wrong_as_the_kit_does(dumped: tuple[Dialect, Path]) -> None:
    """The outputs of every planted bug, by a judge that imports nothing of this package."""
    dialect, folder = dumped
    right_ones = wrong_ones = 0
    quick = ("selection", "aggregation", "steering", "objective", *MORE)
    for case in (case for case in dialect.cases if case.stage in quick and case.result != "invalid"):
        budget = load_budgets(dialect.name)[case.stage, "float32"]
        may_differ = allowed(case, "float32", budget)
        outputs = [dialect.run(case.stage, case.inputs, "float32")]
        for bug in dialect.bugs_of(case.stage):
            try:
                outputs.append(bug.function(**case.inputs, dtype="float32"))
            except (ValueError, ArithmeticError, RuntimeError, IndexError):
                continue
            if not all(np.isfinite(np.asarray(value, float)).all() for value in outputs[-1].values()):
                outputs.pop()
        for i, out in enumerate(outputs):
            by_kit = judge(
                case.stage, case.inputs, out, budget=may_differ, right=vectors.right_of(dialect.name, case.id)
            )
            by_files = files_only.passes(folder, case.id, {"out": encode_values(out, None)}, "float32")
            assert by_files == by_kit.ok, (case.id, i, by_kit.message)
            assert by_files or i > 0, case.id
            right_ones, wrong_ones = right_ones + by_files, wrong_ones + (not by_files)
    assert min(right_ones, wrong_ones) > 100


def test_files_alone_pass_the_oracle_in_every_dtype(dumped: tuple[Dialect, Path]) -> None:
    dialect, folder = dumped
    keys, judged = vectors.answer_keys(dialect.name), set()
    for case in (case for case in dialect.cases if case.id.endswith(("05", "07", "25"))):
        for dtype in (dtype for dtype in DTYPES if keys[case.id]["budget"][dtype] is not None):
            try:
                answer: dict[str, Any] = {"out": encode_values(dialect.run(case.stage, case.inputs, dtype), None)}
            except ValueError as refusal:
                answer = {"refused": str(refusal)}
            assert files_only.passes(folder, case.id, answer, dtype), (case.id, dtype)
            judged.add((case.stage, dtype, case.result))
    assert {stage for stage, _, _ in judged} >= set(STAGES)
    assert {dtype for _, dtype, _ in judged} == set(DTYPES)
    assert {result for _, _, result in judged} == {"valid", "invalid", "acceptable"}


def test_files_alone_pass_every_pattern_of_signs(dumped: tuple[Dialect, Path]) -> None:
    dialect, folder = dumped
    for case in (case for chosen, case in COMPONENTS if chosen is dialect):
        right = vectors.right_of(dialect.name, case.id)
        for got in itertools.islice(patterns(right), 0, None, 5):
            assert files_only.passes(folder, case.id, {"out": encode_values(got, None)}, "bfloat16"), case.id
        turned = encode_values({**right.out, "v_pos": 1.01 * right.out["v_pos"]}, None)
        assert not files_only.passes(folder, case.id, {"out": turned}, "float32")


def test_components_by_another_solver_in_float32_are_right(dumped: tuple[Dialect, Path]) -> None:
    """The ill-posed cases by an eigenvalue solver, with either sign that it may return."""
    dialect, folder = dumped
    for case in (case for chosen, case in COMPONENTS if chosen is dialect):
        for sign in (1.0, -1.0):
            out = {}
            for side in NAMES:
                D = tensor(case.inputs[f"delta_{side}"], "float32").movedim(1, 0)
                centred = D - D.mean(1, keepdim=True)
                u = sign * np.linalg.eigh((centred.mT @ centred).numpy())[1][..., -1].astype(float)
                if dialect is PAPER:
                    u = u * np.sign((u * array(D.mean(1))).sum(-1, keepdims=True))
                out[f"v_{side}"] = u
            out["v"] = out["v_pos"] - out["v_neg"]
            assert files_only.passes(folder, case.id, {"out": encode_values(out, None)}, "float32"), (case.id, sign)
