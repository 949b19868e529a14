"""methods/nullu.py: the subspace by hand, what is projected out of the weights, and every bit put back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from shared import first_quick
from small_pairs import PAIRS, normal
from torch import Tensor

from grains_ref.evaluation.measures import margins
from grains_ref.grains import DegenerateShiftsError
from grains_ref.methods.core import Edit, capture
from grains_ref.methods.nullu import RANKS, Nullu, fit, projected, subspace, without
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.random_models import random_llama

pytestmark = pytest.mark.cpu


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def model(request: pytest.FixtureRequest) -> HuggingFaceModel:
    """Gemma normalises the MLP's output once more, behind the edit."""
    fixture: HuggingFaceModel = request.getfixturevalue(request.param)
    return fixture


def weights_of(model: HuggingFaceModel) -> list[Tensor]:
    return [block.get_submodule("mlp.down_proj").weight.detach().clone() for block in model.blocks]  # type: ignore[operator]


# --- the subspace


def test_a_planted_plane_is_found_and_not_its_mean_alone() -> None:
    axes = torch.eye(9, dtype=torch.float64)[:2]
    differences = 3 * axes[0] + 2 * normal(30, 1) * axes[1] + 0.01 * normal(30, 9, seed=1)
    v, s = subspace(differences, torch.zeros_like(differences), centred=False, where="here")
    torch.testing.assert_close((v[:2] @ axes.T).square().sum(1), torch.ones(2, dtype=torch.float64), atol=1e-3, rtol=0)
    assert s[1] > 10 * s[2]
    assert len(s) == 9


def test_what_the_chosen_states_share_is_left_in_the_weights_if_centred() -> None:
    axes = torch.eye(5, dtype=torch.float64)
    chosen = 10 * axes[0] + 0.1 * normal(6, 5)
    rejected = chosen - axes[0] - axes[1] * normal(6, 1, seed=2)
    (first,) = np.linalg.svd(chosen.numpy(), full_matrices=False)[2][:1]
    v, _ = subspace(chosen, rejected, centred=True, where="here")
    np.testing.assert_allclose(v.numpy() @ first, 0, atol=1e-9)
    assert abs(float(v[0] @ axes[1])) > 0.99
    assert abs(float(subspace(chosen, rejected, centred=False, where="here")[0][0] @ axes[0])) > 0.3


def test_means_over_all_tokens_or_the_last_by_hand(model: HuggingFaceModel) -> None:
    differences: dict[str, list[Tensor]] = {"mean": [], "last": []}
    for pair in PAIRS:
        states = []
        for answer in (pair.chosen, pair.rejected):
            n = len(model.encode(pair.prompt).ids) + len(model.response_ids(pair.prompt, answer))
            states.append(capture(model, [(pair.prompt, answer)], site="residual", last=n)[0].double())
        differences["mean"].append(states[0].mean(1) - states[1].mean(1))
        differences["last"].append(states[0][:, -1] - states[1][:, -1])
    for read, rows in differences.items():
        fitted = fit(model, PAIRS, read=read)  # type: ignore[arg-type]
        assert fitted.v.shape == (len(model.blocks), 3, model.width)
        for block in range(len(model.blocks)):
            of_block = torch.stack(rows)[:, block]
            torch.testing.assert_close(fitted.v[block] @ fitted.v[block].T, torch.eye(3, dtype=torch.float64))
            torch.testing.assert_close(of_block @ fitted.v[block].T @ fitted.v[block], of_block, rtol=1e-4, atol=1e-4)
            assert float((of_block @ fitted.v[block][0]).norm()) == pytest.approx(float(fitted.s[block, 0]), rel=1e-5)


# --- the weights


def test_the_weights_write_nothing_along_the_directions_and_elsewhere_as_before() -> None:
    weight, v = normal(6, 4), torch.linalg.qr(normal(6, 2, seed=1)).Q.T
    got = without(weight, v)
    torch.testing.assert_close(v @ got, torch.zeros(2, 4, dtype=torch.float64))
    others = torch.linalg.svd(v).Vh[2:]
    torch.testing.assert_close(others @ got, others @ weight)


def test_the_same_as_projecting_what_the_mlp_says(model: HuggingFaceModel) -> None:
    fitted = fit(model, PAIRS)
    blocks = [0, len(model.blocks) - 1]

    def project(block: int, x: Tensor) -> Tensor:
        v = fitted.v[block, :2].to(x)
        return x - (x @ v.T) @ v

    with Edit(model, "mlp", {b: (lambda x, b=b: project(b, x)) for b in blocks}):
        expected = margins(model, PAIRS)
    plain = margins(model, PAIRS)
    with fitted.steering(model, rank=2, blocks=blocks):
        assert margins(model, PAIRS) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert expected != pytest.approx(plain, abs=1e-2)


@pytest.mark.parametrize("dtype", first_quick([torch.bfloat16, torch.float16, torch.float32]))
def test_every_bit_is_put_back_also_after_an_error(dtype: torch.dtype) -> None:
    model = random_llama(dtype=dtype)
    before, plain = weights_of(model), margins(model, PAIRS)
    fitted = fit(model, PAIRS)
    with fitted.steering(model, rank=3, blocks=[0, 1, 2]):
        assert margins(model, PAIRS) != plain
    with pytest.raises(KeyError), fitted.steering(model, rank=3, blocks=[0, 1, 2]):
        raise KeyError
    with fitted.steering(model, rank=1, blocks=[1]), fitted.steering(model, rank=2, blocks=[1, 2]):
        pass
    assert all(torch.equal(*pair) for pair in zip(weights_of(model), before, strict=True))
    assert margins(model, PAIRS) == plain


def test_edits_that_are_left_in_the_wrong_order_are_told() -> None:
    model = random_llama()
    fitted = fit(model, PAIRS)
    first, second = (fitted.steering(model, rank=rank, blocks=[1]) for rank in (1, 2))
    first.__enter__()
    second.__enter__()
    with pytest.raises(RuntimeError, match=r"blocks \[1\].*reverse of the order"):
        first.__exit__(None, None, None)
    with pytest.raises(RuntimeError, match="reverse of the order"):
        second.__exit__(None, None, None)


def test_the_grid_is_gentlest_first(llama: HuggingFaceModel) -> None:
    settings = fit(llama, PAIRS).settings(llama)
    assert [s.strength for s in settings] == [1.0, 1.0, 2.0, 2.0]  # three pairs have three directions
    assert [s.label for s in settings[:2]] == ["Nullu, mean, blocks 1 to 2", "Nullu, mean, all blocks"]
    assert list(RANKS) == sorted(RANKS)


def test_what_cannot_be_fitted_or_projected_is_refused(llama: HuggingFaceModel, qwen2: HuggingFaceModel) -> None:
    same = [dataclasses.replace(pair, rejected=pair.chosen) for pair in PAIRS]
    with pytest.raises(DegenerateShiftsError, match="block 0: chosen and rejected answers have the same states"):
        fit(llama, same)
    fitted = fit(llama, PAIRS)
    with pytest.raises(ValueError, match="from another model"):
        fitted.steering(qwen2, rank=1, blocks=[0])
    with pytest.raises(ValueError, match="rank"):
        fitted.steering(llama, rank=4, blocks=[0])
    with pytest.raises(ValueError, match="from 0 to 2"):
        fitted.steering(llama, rank=1, blocks=[3])
    with pytest.raises(ValueError, match="read"):
        fit(llama, PAIRS, read="first")  # type: ignore[arg-type]
    quantised = random_llama()
    down = quantised.blocks[0].get_submodule("mlp.down_proj")
    down.weight = torch.nn.Parameter(torch.zeros(28, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match="unquantised"), projected(quantised, {0: torch.eye(28)[:1]}):
        pass
    assert isinstance(fitted, Nullu)
