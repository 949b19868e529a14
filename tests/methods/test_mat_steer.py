"""methods/mat_steer.py: the loss by hand, one step from closed forms, gates that tell tokens apart, two attributes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from small_pairs import PAIRS, normal
from torch import Tensor

from grains_ref.evaluation.measures import margins
from grains_ref.grains import DegenerateShiftsError
from grains_ref.methods import mat_steer
from grains_ref.methods.core import Edit
from grains_ref.methods.mat_steer import ADAPTED, CODE, MULTIPLIERS, Kernel, MatSteer, fit, fit_several, mmd, train
from grains_ref.models import HuggingFaceModel

pytestmark = pytest.mark.cpu


def token_by_token(x: Tensor, v: Tensor, w: Tensor, b: Tensor, c: float) -> Tensor:
    """One token, one attribute at a time."""
    y = x.clone()
    for vector, weights, bias in zip(v, w, b, strict=True):
        y = y + c / (1 + math.exp(-float(weights @ x + bias))) * vector
    return y / y.norm() * x.norm()


# --- the loss


def test_the_distance_of_two_samples_by_hand_and_none_of_a_sample_to_itself() -> None:
    x, y = normal(2, 4, 3), normal(2, 5, 3, seed=1)
    bandwidth = torch.tensor([0.7, 1.9], dtype=torch.float64)
    for block, width in enumerate(bandwidth.tolist()):

        def kernel(p: Tensor, q: Tensor, width: float = width) -> float:
            return math.exp(-float((p - q).square().sum()) / (2 * width**2))

        within = [sum(kernel(p, q) for p in s for q in s) / len(s) ** 2 for s in (x[block], y[block])]
        between = sum(kernel(p, q) for p in x[block] for q in y[block]) / 20
        assert float(mmd(x, y, bandwidth)[block]) == pytest.approx(sum(within) - 2 * between)
    torch.testing.assert_close(mmd(x, x, bandwidth), torch.zeros(2, dtype=torch.float64))


def test_every_term_of_the_loss_by_hand() -> None:
    v, w, b = normal(1, 2, 3), normal(1, 2, 3, seed=1), normal(1, 2, seed=2)
    right, wrong, aims = ([normal(1, 4, 3, seed=seed), normal(1, 4, 3, seed=seed + 1)] for seed in (3, 5, 7))
    kernels = [Kernel(torch.tensor([width]), torch.tensor([unit])) for width, unit in ((0.8, 1.0), (1.7, 0.25))]
    got = mat_steer.loss_of(v, w, b, right, wrong, aims, kernels)
    alignment = 0.0
    for states, aim, kernel in zip(wrong, aims, kernels, strict=True):
        steered = torch.stack([token_by_token(x, v[0], w[0], b[0], 1.0) for x in states[0]])[None]
        alignment += float(mmd(steered, aim, kernel.bandwidth)) / float(kernel.unit) / 2
    opened = {name: torch.cat(part, 1)[0] @ w[0].T + b[0] for name, part in (("right", right), ("wrong", wrong))}
    cosine = float(v[0, 0] @ v[0, 1] / v[0, 0].norm() / v[0, 1].norm())
    expected = alignment + 0.9 * opened["wrong"].sigmoid().mean() + 0.9 * opened["right"].sigmoid().square().mean()
    assert float(got) == pytest.approx(float(expected) + 0.1 * cosine**2, rel=1e-6)


def test_gradients_are_those_of_finite_differences() -> None:
    v, w, b = normal(2, 2, 3), normal(2, 2, 3, seed=1), normal(2, 2, seed=2)
    right, wrong, aims = ([normal(2, 4, 3, seed=seed), normal(2, 4, 3, seed=seed + 1)] for seed in (3, 5, 7))
    kernels = [Kernel(torch.full((2,), 1.3, dtype=torch.float64), torch.ones(2, dtype=torch.float64))] * 2
    inputs = tuple(part.requires_grad_() for part in (v, w, b))
    assert torch.autograd.gradcheck(lambda *x: mat_steer.loss_of(*x, right, wrong, aims, kernels), inputs)


def test_the_first_step_of_adam_moves_every_number_by_the_learning_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mat_steer, "EPOCHS", 1)
    chosen, rejected = normal(2, 6, 3) + 1, normal(2, 6, 3, seed=1) - 1
    v, *_, start, losses = train([chosen], [rejected], options=dataclasses.replace(CODE, bandwidth=2.0), seed=0)
    assert losses.shape == (1, 2)
    torch.testing.assert_close((v - start).abs(), torch.full_like(v, 1e-3), rtol=1e-3, atol=0)


# --- what training finds


def two_classes(n_blocks: int = 2) -> tuple[Tensor, Tensor]:
    """Chosen and rejected states that differ along the first axis alone, in the first block; noise in the second."""
    chosen, rejected = 0.3 * normal(n_blocks, 40, 6), 0.3 * normal(n_blocks, 40, 6, seed=1)
    chosen[0, :, 0] += 2
    rejected[0, :, 0] -= 2
    return chosen, rejected


def test_gates_open_for_what_is_to_change_and_the_move_aligns_it() -> None:
    chosen, rejected = two_classes()
    v, w, b, start, _ = train([chosen], [rejected], options=ADAPTED, seed=0)
    assert torch.cosine_similarity(v[0, 0], torch.eye(6, dtype=torch.float64)[0], dim=0) > 0.95
    torch.testing.assert_close(start[0, 0], (chosen[0] - rejected[0]).mean(0))
    closed, opened = (mat_steer.gates(states, w, b)[0].mean() for states in (chosen, rejected))
    assert opened > 3 * closed
    moved = mat_steer.moved(rejected, v, w, b, 1.0)
    torch.testing.assert_close(moved.norm(dim=-1), rejected.norm(dim=-1))
    bandwidth = torch.full((2,), 2.0, dtype=torch.float64)
    assert mmd(moved, chosen, bandwidth)[0] < 0.5 * mmd(rejected, chosen, bandwidth)[0]


def test_two_attributes_become_more_orthogonal_than_their_differences() -> None:
    chosen, rejected = two_classes()
    other = chosen.clone(), rejected.clone()
    other[0][0, :, 1] += 1
    other[1][0, :, 1] -= 1
    v, *_, start, _ = train([chosen, other[0]], [rejected, other[1]], options=ADAPTED, seed=0)
    before, after = (abs(float(torch.cosine_similarity(u[0, 0], u[0, 1], dim=0))) for u in (start, v))
    assert after < before - 0.02


def test_every_block_is_trained_as_if_it_were_alone() -> None:
    chosen, rejected = two_classes()
    together = train([chosen], [rejected], options=ADAPTED, seed=0)
    alone = train([chosen[:1]], [rejected[:1]], options=ADAPTED, seed=0)
    for of_both, of_one in zip(together[:4], alone[:4], strict=True):
        torch.testing.assert_close(of_both[:1], of_one, rtol=1e-6, atol=1e-9)


def test_random_numbers_are_the_seeds_and_the_callers_stay() -> None:
    chosen, rejected = two_classes()
    before = torch.get_rng_state()
    first, again, other = (train([chosen], [rejected], options=CODE, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-2)
    assert torch.equal(torch.get_rng_state(), before)


# --- the edit


def test_one_block_is_moved_token_by_token(llama: HuggingFaceModel) -> None:
    fitted = fit(llama, PAIRS)
    assert fitted.v.shape == (len(llama.blocks), 1, llama.width)
    plain = margins(llama, PAIRS)
    with fitted.steering(llama, block=1, c=3.0):
        got = margins(llama, PAIRS)

    def by_hand(x: Tensor) -> Tensor:
        rows = [token_by_token(token, fitted.v[1], fitted.w[1], fitted.b[1], 3.0) for token in x.double().flatten(0, 1)]
        return torch.stack(rows).view(x.shape)

    with Edit(llama, "residual", {1: by_hand}, positions="after_prompt"):
        assert margins(llama, PAIRS) == pytest.approx(got, rel=1e-5, abs=1e-4)
    assert got != pytest.approx(plain, abs=1e-3)
    assert margins(llama, PAIRS) == plain


def test_the_grid_and_what_a_choice_goes_by(llama: HuggingFaceModel) -> None:
    fitted = fit_several(llama, {"a": PAIRS, "b": PAIRS[:2]})
    settings = fitted.settings(llama)
    assert [s.strength for s in settings] == sorted(MULTIPLIERS * len(llama.blocks))
    assert len({(s.label, s.strength) for s in settings}) == len(settings)
    assert "a and b" in settings[0].label


def test_what_cannot_be_fitted_or_steered_is_refused(llama: HuggingFaceModel, qwen2: HuggingFaceModel) -> None:
    with pytest.raises(ValueError, match="at least one attribute"):
        fit_several(llama, {})
    same = [dataclasses.replace(pair, rejected=pair.chosen) for pair in PAIRS]
    for options in (ADAPTED, dataclasses.replace(ADAPTED, start="normal")):
        with pytest.raises(DegenerateShiftsError, match="same states at every block"):
            fit(llama, same, options=options)
    wide: Any = {"read": "block_input", "edit": "heads"}
    with pytest.raises(ValueError, match="vectors read at the one do not fit the other"):
        fit(llama, PAIRS, options=dataclasses.replace(ADAPTED, **wide))  # its heads do not fill the width
    with pytest.raises(ValueError, match="bandwidth"):
        dataclasses.replace(ADAPTED, bandwidth=0.0)
    one = normal(len(llama.blocks), 1, llama.width)
    fitted = MatSteer(("a",), ADAPTED, one, one, one[..., 0], one, one)
    with pytest.raises(ValueError, match="from another model"):
        fitted.steering(qwen2, block=0, c=1.0)
    with pytest.raises(ValueError, match="from 0 to 2"):
        fitted.steering(llama, block=3, c=1.0)
