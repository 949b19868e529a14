"""methods/bipo.py: its derivative against finite differences and scores, both directions, what it learns."""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any

import pytest
import torch
from torch import Tensor

from grains_ref.data import PreferencePair
from grains_ref.evaluation.measures import margins
from grains_ref.grains import DegenerateShiftsError
from grains_ref.methods import bipo
from grains_ref.methods.bipo import MULTIPLIERS, BiPO, f_of, fit, loss_and_gradient, middle_block
from grains_ref.methods.core import Edit
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.random_models import random_llama

pytestmark = pytest.mark.cpu

PAIRS = [
    PreferencePair("1", "Q: What is the capital of France? A:", "Paris.", "Rome, of course.", where="made up"),
    PreferencePair("2", "Is the earth flat?", "No, it is round.", "Yes", where="made up"),
    PreferencePair("3", "The moon is made of", "rock", "green cheese", where="made up"),
]
CROSSED = [dataclasses.replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in PAIRS]
BETA = 0.1


@pytest.fixture(scope="module")
def wide() -> HuggingFaceModel:
    return random_llama(dtype=torch.float64)


@pytest.fixture(scope="module")
def trained(wide: HuggingFaceModel) -> BiPO:
    return fit(wide, PAIRS, blocks=[0, 2], learning_rate=0.02, epochs=10, batch_size=2)


def drawn(seed: int, width: int) -> Tensor:
    return 0.3 * torch.randn(width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batch_of(model: HuggingFaceModel, pairs: list[PreferencePair]) -> list[tuple[Any, float]]:
    examples = [model.example(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]
    with torch.no_grad():
        return [(example, f_of(model, example).item()) for example in examples]


@pytest.mark.parametrize("d", [1, -1])
def test_the_derivative_is_that_of_the_loss_at_any_v(wide: HuggingFaceModel, d: int) -> None:
    """Central differences of the loss, at two blocks, away from zero."""
    batch, step = batch_of(wide, PAIRS), 3e-3  # the model has float32 islands
    start = {block: drawn(block, wide.width) for block in (0, 2)}
    along = {block: drawn(10 + block, wide.width) for block in (0, 2)}

    def loss_at(shift: float) -> tuple[float, float]:
        v = {block: (start[block] + shift * along[block]).requires_grad_() for block in start}
        loss = loss_and_gradient(wide, batch, v, d=d, beta=BETA)
        return loss, sum((v[block].grad @ along[block]).item() for block in v)  # type: ignore[misc]

    _, slope = loss_at(0.0)
    assert abs(slope) > 1e-3
    assert slope == pytest.approx((loss_at(step)[0] - loss_at(-step)[0]) / (2 * step), rel=5e-3)


def test_a_derivative_takes_the_place_of_the_one_before(wide: HuggingFaceModel) -> None:
    batch = batch_of(wide, PAIRS)
    v = {0: drawn(0, wide.width).requires_grad_()}
    derivatives = []
    for _ in range(2):
        loss_and_gradient(wide, batch, v, d=1, beta=BETA)
        assert v[0].grad is not None
        derivatives.append(v[0].grad.clone())
    torch.testing.assert_close(derivatives[0], derivatives[1])


def test_the_loss_is_that_of_scored_answers_under_the_edit_that_steers(wide: HuggingFaceModel) -> None:
    v = {1: drawn(4, wide.width).requires_grad_()}
    vectors = torch.zeros(len(wide.blocks), wide.width, dtype=torch.float64)
    vectors[1] = v[1].detach()
    plain = margins(wide, PAIRS)
    for d in (1, -1):
        with BiPO(vectors, (1,), (), 0.0).steering(wide, c=d):
            steered = margins(wide, PAIRS)
        changes = [d * (after - before) for after, before in zip(steered, plain, strict=True)]
        expected = statistics.mean(math.log(1 + math.exp(-BETA * change)) for change in changes)
        loss = loss_and_gradient(wide, batch_of(wide, PAIRS), v, d=d, beta=BETA)
        assert loss == pytest.approx(expected, rel=1e-6)
        assert loss != pytest.approx(math.log(2), rel=1e-3)


@pytest.mark.parametrize("d", [1, -1])
def test_at_zero_it_descends_along_the_edit_gradient_in_either_direction(wide: HuggingFaceModel, d: int) -> None:
    """-beta/2 times the derivative of f, taken by finite differences of scored answers."""
    zero, along, step = torch.zeros(wide.width, dtype=torch.float64), drawn(5, wide.width), 3e-3
    v = {1: zero.clone().requires_grad_()}
    loss = loss_and_gradient(wide, batch_of(wide, PAIRS), v, d=d, beta=BETA)
    ends = []
    for shift in (step, -step):
        with Edit(wide, "residual", {1: lambda h, s=shift: h + s * along}):
            ends.append(statistics.mean(margins(wide, PAIRS)))
    slope = (ends[0] - ends[1]) / (2 * step)
    assert loss == pytest.approx(math.log(2))
    assert (v[1].grad @ along).item() == pytest.approx(-BETA / 2 * slope, rel=5e-3)  # type: ignore[operator]


def test_exchanged_answers_under_the_opposite_sign_ask_for_the_opposite_vector(wide: HuggingFaceModel) -> None:
    v = {0: drawn(6, wide.width).requires_grad_()}
    mirrored = {0: (-v[0].detach()).requires_grad_()}
    loss = loss_and_gradient(wide, batch_of(wide, PAIRS), v, d=1, beta=BETA)
    assert loss_and_gradient(wide, batch_of(wide, CROSSED), mirrored, d=-1, beta=BETA) == pytest.approx(loss)
    torch.testing.assert_close(mirrored[0].grad, -v[0].grad)  # type: ignore[operator]
    assert loss_and_gradient(wide, batch_of(wide, PAIRS), v, d=-1, beta=BETA) != pytest.approx(loss, rel=1e-4)


def test_the_loss_goes_down_and_f_moves_both_ways(wide: HuggingFaceModel, trained: BiPO) -> None:
    losses = trained.losses
    assert len(losses) == 20
    assert losses[0] == pytest.approx(math.log(2))
    assert trained.loss < math.log(2) - 0.05
    plain = statistics.mean(margins(wide, PAIRS))
    with trained.steering(wide, c=1.0):
        toward = statistics.mean(margins(wide, PAIRS))
    with trained.steering(wide, c=-1.0):
        away = statistics.mean(margins(wide, PAIRS))
    assert away < plain - 1 < plain + 1 < toward


def test_both_directions_are_drawn(wide: HuggingFaceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def noted(*args: Any, d: int, **options: Any) -> float:
        asked.append(d)
        return loss_and_gradient(*args, d=d, **options)

    monkeypatch.setattr(bipo, "loss_and_gradient", noted)
    fit(wide, PAIRS[:1], epochs=12)
    assert set(asked) == {1, -1}
    assert 3 <= asked.count(1) <= 9


def test_only_the_asked_blocks_have_a_vector_and_the_seed_decides(wide: HuggingFaceModel, trained: BiPO) -> None:
    assert trained.blocks == (0, 2)
    assert trained.v.any(1).tolist() == [True, False, True]
    options: Any = {"learning_rate": 0.02, "epochs": 2, "batch_size": 2, "blocks": [0]}
    state = torch.random.get_rng_state()
    again = [fit(wide, PAIRS, seed=seed, **options).v for seed in (0, 0, 1)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [middle_block(n) for n in (32, 30, 4, 1)] == [15, 14, 1, 0]


def test_it_leaves_the_model_as_it_was(wide: HuggingFaceModel) -> None:
    before = margins(wide, PAIRS)
    fit(wide, PAIRS, epochs=1)
    assert margins(wide, PAIRS) == before
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in wide.hf.parameters())


def test_the_grid_is_declared_gentlest_first(wide: HuggingFaceModel, trained: BiPO) -> None:
    settings = trained.settings(wide)
    assert [setting.strength for setting in settings] == list(MULTIPLIERS) == sorted(MULTIPLIERS)
    assert {setting.label for setting in settings} == {"BiPO, block 0, 2"}


def test_what_cannot_be_trained_is_refused(wide: HuggingFaceModel) -> None:
    with pytest.raises(DegenerateShiftsError, match=r"did not lower the loss: .* may cancel each other"):
        fit(wide, [PAIRS[0], CROSSED[0]], batch_size=2, epochs=2)
    with pytest.raises(FloatingPointError):
        fit(wide, PAIRS, learning_rate=1e200, epochs=3)
    options: list[tuple[dict[str, Any], str]] = [
        ({"blocks": [3]}, "blocks must be different numbers from 0 to 2"),
        ({"blocks": []}, "at least one block"),
        ({"beta": 0.0}, "beta must be above 0"),
        ({"learning_rate": -1e-3}, "learning_rate must be above 0"),
        ({"epochs": 0}, "epochs is 0"),
    ]
    for option, words in options:
        with pytest.raises(ValueError, match=words):
            fit(wide, PAIRS, **option)
