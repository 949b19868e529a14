"""The tools' formulas by hand, and the loss: what it is for a formula that is right, and for each kind of mistake."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from grains_ref.export import rules
from grains_ref.export.measure import measure
from grains_ref.export.steering_vectors import restoring
from grains_ref.export.target import Directions, ExportError, Rule, Use
from grains_ref.grains import Encoded, Hooks, Steering, edit_output, steer_hidden
from grains_ref.models import HuggingFaceModel

pytestmark = pytest.mark.cpu

H = torch.tensor([[3.0, 4.0], [0.0, 0.0], [-4.0, 3.0]])
V = torch.tensor([2.0, -1.0])
LAM = 2.0


# --- the formulas


def test_add_leaves_the_norm_as_it_comes() -> None:
    assert rules.add(H, V, LAM).tolist() == [[7.0, 2.0], [4.0, -2.0], [0.0, 1.0]]


def test_restore_norm_is_equations_7_and_8() -> None:
    torch.testing.assert_close(rules.restore_norm(H, V, LAM), steer_hidden(H, V, lam=LAM))
    torch.testing.assert_close(rules.restore_norm(H, V, LAM).norm(dim=1), torch.tensor([5.0, 0.0, 5.0]))
    opposite = torch.tensor([[4.0, -2.0]])
    assert torch.equal(rules.restore_norm(opposite, V, -LAM), opposite)  # nothing is left whose norm could be restored


def test_one_sided_restores_only_what_became_longer() -> None:
    got = rules.one_sided(H, V, LAM)
    torch.testing.assert_close(got[0], rules.restore_norm(H, V, LAM)[0])
    assert got[2].tolist() == [0.0, 1.0]


def test_norm_match_measures_in_lengths_of_the_state() -> None:
    unit = V / V.norm()
    torch.testing.assert_close(rules.norm_match(H, V, LAM)[0], H[0] + 2.0 * 5.0 * unit)
    assert torch.equal(rules.norm_match(H, 0 * V, LAM), H)


@pytest.mark.parametrize("rule", [rules.add, rules.restore_norm, rules.one_sided, rules.norm_match])
def test_rules_compute_wide_and_keep_the_type(rule: Rule) -> None:
    h = torch.full((1, 4096), 40.0, dtype=torch.float16)
    got = rule(h, torch.ones(4096), 1.0)
    assert got.dtype == torch.float16
    assert got.isfinite().all()


def test_the_operator_for_steering_vectors_gives_what_has_to_be_added() -> None:
    step = (LAM * V).reshape(1, 1, -1)
    torch.testing.assert_close(H[None] + restoring(H[None], step), steer_hidden(H[None], V, lam=LAM))


# --- the loss


@pytest.fixture(scope="module")
def v(llama: HuggingFaceModel) -> Tensor:
    return torch.randn(len(llama.blocks), llama.width, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def prompts(llama: HuggingFaceModel) -> list[Encoded]:
    return [llama.encode("Is the earth flat?"), llama.encode("The moon is made of")]


def loss(
    llama: HuggingFaceModel,
    v: Tensor,
    prompts: list[Encoded],
    blocks: dict[int, Tensor],
    rule: Rule = rules.restore_norm,
) -> float:
    in_file = Directions(by_block=blocks, lam=LAM, header=None)
    steering = Steering(llama.blocks, v, lam=LAM)
    (lost,) = measure(llama, steering, in_file, [Use(name="it", rule=rule)], prompts, lam=99.0)
    return lost.loss


def blocks_of(v: Tensor) -> dict[int, Tensor]:
    return dict(enumerate(v))


def test_nothing_is_lost_where_the_formula_and_the_vectors_are_ours(
    llama: HuggingFaceModel, v: Tensor, prompts: list[Encoded]
) -> None:
    assert loss(llama, v, prompts, blocks_of(v)) < 1e-4


WRONG: dict[str, Callable[[Tensor], dict[int, Tensor]]] = {
    "one block late": lambda v: dict(enumerate(v.roll(1, 0))),
    "the other sign": lambda v: dict(enumerate(-v)),
    "block 0 dropped": lambda v: {i: row for i, row in enumerate(v) if i > 0},
    "twice as strong": lambda v: dict(enumerate(2 * v)),
    "unit length": lambda v: dict(enumerate(v / v.norm(dim=1, keepdim=True))),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_in_the_vectors_is_a_loss(
    mistake: str, llama: HuggingFaceModel, v: Tensor, prompts: list[Encoded]
) -> None:
    assert loss(llama, v, prompts, WRONG[mistake](v)) > 0.1


def test_a_norm_that_is_not_restored_is_a_loss_and_its_size_is_as_defined(
    llama: HuggingFaceModel, v: Tensor, prompts: list[Encoded]
) -> None:
    def logits() -> Tensor:
        rows = [llama.logits(p, p.embeds[None], torch.zeros(1).long())[0, -1] for p in prompts]
        return torch.stack(rows).detach().double()

    plain = logits()
    with Steering(llama.blocks, v, lam=LAM):
        ours = logits()
    added = [(b, edit_output(lambda h, row=row: h + LAM * row)) for b, row in zip(llama.blocks, v, strict=True)]
    with Hooks(added):
        there = logits()
    expected = float((there - ours).norm() / (ours - plain).norm())
    assert expected > 0.01
    assert loss(llama, v, prompts, blocks_of(v), rules.add) == pytest.approx(expected, rel=1e-4)


def test_the_strength_is_that_of_the_file_if_it_has_one(
    llama: HuggingFaceModel, v: Tensor, prompts: list[Encoded]
) -> None:
    in_file = Directions(by_block=blocks_of(v), lam=None, header=None)
    steering = Steering(llama.blocks, v, lam=LAM)
    (lost,) = measure(llama, steering, in_file, [Use(name="it", rule=rules.restore_norm)], prompts, lam=LAM)
    assert lost.loss < 1e-4


def test_what_cannot_be_measured_is_refused(llama: HuggingFaceModel, v: Tensor, prompts: list[Encoded]) -> None:
    with pytest.raises(ExportError, match="without a prompt"):
        loss(llama, v, [], blocks_of(v))
    with pytest.raises(ExportError, match="vectors of width 3"):
        loss(llama, v, prompts, {0: torch.ones(3)})
    with pytest.raises(ExportError, match="blocks up to 99"):
        loss(llama, v, prompts, {99: v[0]})
    with pytest.raises(ExportError, match="steering changes nothing"):
        loss(llama, 0 * v, prompts, blocks_of(v))
    with pytest.raises(FloatingPointError, match="it: a logit is not finite"):
        loss(llama, v, prompts, blocks_of(v), lambda h, row, lam: h * float("nan"))
