"""Guided IG, Shapley values and occlusion against captum, closed forms and brute force."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from grains_ref import grains
from grains_ref.grains import Example, HyperParameters, Selection, contrast
from grains_ref.methods.attributions import (
    Name,
    attribute_by,
    contrast_one_at_a_time,
    guided_integrated_gradients,
    kernel_shap,
    occlusion,
    occlusion_of_all_pairs,
    shapley_values,
)
from grains_ref.tiny_models.random_models import random_llama

pytestmark = pytest.mark.cpu

T, D = 4, 3


def _points() -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(3)
    x = torch.randn(T, D, dtype=torch.float64, generator=draws)
    return x, torch.randn(T, D, dtype=torch.float64, generator=draws)


def _curved(embeds: Tensor) -> Tensor:
    """Tokens that work together: neither additive nor symmetric."""
    s = embeds.sum(-1)
    return torch.tanh(s[:, 0] * s[:, 1]) + s[:, 2] ** 2 * s[:, 3] + s[:, 0]


def _linear(embeds: Tensor) -> Tensor:
    return (embeds * torch.arange(1.0, T * D + 1, dtype=embeds.dtype).reshape(T, D)).sum((1, 2))


@pytest.mark.parametrize("straight_start", [True, False])
def test_every_method_gives_a_linear_f_its_closed_form(straight_start: bool) -> None:
    x, baseline = _points()
    expected = ((x - baseline) * torch.arange(1.0, T * D + 1).reshape(T, D)).sum(-1)
    guided = guided_integrated_gradients(_linear, x, baseline, m=5, straight_start=straight_start)
    torch.testing.assert_close(guided.a, expected)
    torch.testing.assert_close(shapley_values(_linear, x, baseline, n=2, seed=0).a, expected)
    torch.testing.assert_close(occlusion(_linear, x, baseline).a, expected)
    torch.testing.assert_close(occlusion_of_all_pairs(_linear, x, baseline, most=6, seed=0).a, expected)
    torch.testing.assert_close(kernel_shap(_linear, x, baseline, n=10, seed=0).a, expected, rtol=1e-4, atol=1e-4)


def test_guided_scores_add_up_in_the_limit() -> None:
    x, baseline = _points()
    coarse, fine = (guided_integrated_gradients(_curved, x, baseline, m=m, max_distance=0.3) for m in (20, 400))
    assert abs(fine.gap) < 0.1 * abs(fine.f_x - fine.f_baseline)
    assert abs(fine.gap) < abs(coarse.gap)


def test_guided_path_without_room_is_the_straight_path() -> None:
    x, baseline = _points()
    guided = guided_integrated_gradients(_curved, x, baseline, m=7, max_distance=0.0, straight_start=False)
    expected = torch.zeros_like(x)
    for i in range(7):
        point = baseline + i / 7 * (x - baseline)
        expected += grains.gradient_at(_curved, point, where="here") * (x - baseline) / 7
    torch.testing.assert_close(guided.ig, expected)


def test_guided_path_moves_the_flattest_features_first() -> None:
    """f = 5 p^2 + p q from (1, 0) to (2, 1): q is the flatter one and goes first, p follows."""

    def f(embeds: Tensor) -> Tensor:
        p, q = embeds[:, 0, 0], embeds[:, 1, 0]
        return 5 * p**2 + q * p

    baseline = torch.tensor([[1.0], [0.0]], dtype=torch.float64)  # gradient (10, 1): q goes all its way in step 1
    x = torch.tensor([[2.0], [1.0]], dtype=torch.float64)
    guided = guided_integrated_gradients(f, x, baseline, m=2, fraction=0.5, max_distance=1.0, straight_start=False)
    torch.testing.assert_close(guided.a, torch.tensor([11.0, 1.0], dtype=torch.float64))  # then p's, at (1, 1)


def shapley_of_all_orders(x: Tensor, baseline: Tensor) -> Tensor:
    exact = torch.zeros(T, dtype=torch.float64)
    orders = list(itertools.permutations(range(T)))
    for order in orders:
        point = baseline.clone()
        for token in order:
            before = _curved(point[None]).item()
            point[token] = x[token]
            exact[token] += (_curved(point[None]).item() - before) / len(orders)
    return exact


def test_sampled_shapley_values_approach_those_of_all_orders_and_always_add_up() -> None:
    x, baseline = _points()
    exact = shapley_of_all_orders(x, baseline)
    few, many = (shapley_values(_curved, x, baseline, n=n, seed=1) for n in (3, 300))
    assert exact.sum().item() == pytest.approx(many.f_x - many.f_baseline)
    torch.testing.assert_close(few.a.sum(), exact.sum(), rtol=1e-5, atol=1e-5, check_dtype=False)
    assert abs(few.gap) < 1e-5
    assert abs(many.gap) < 1e-5
    spread = exact.abs().max()
    assert (many.a - exact).abs().max() < 0.2 * spread


@pytest.mark.parametrize(("method", "n"), [(shapley_values, 2), (kernel_shap, 8)])
def test_sampled_values_leave_the_global_generator_alone_and_repeat(method: Any, n: int) -> None:
    x, baseline = _points()
    state = torch.random.get_rng_state()
    first = method(_curved, x, baseline, n=n, seed=5)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first.a, method(_curved, x, baseline, n=n, seed=5).a)


def test_kernel_shap_approaches_the_shapley_values_and_adds_up() -> None:
    x, baseline = _points()
    exact, many = shapley_of_all_orders(x, baseline), kernel_shap(_curved, x, baseline, n=400, seed=1)
    assert (many.a - exact).abs().max() < 0.2 * exact.abs().max()
    assert abs(kernel_shap(_curved, x, baseline, n=8, seed=1).gap) < 1e-3


def test_sets_that_leave_scores_open_are_refused() -> None:
    x, baseline = _points()
    with pytest.raises(ValueError, match=r"4 tokens and n = 5. Fewer sets leave scores open"):
        kernel_shap(_curved, x, baseline, n=5, seed=0)
    with pytest.raises(ValueError, match="at least 2 tokens"):
        kernel_shap(_curved, x[:1], baseline[:1], n=9, seed=0)
    with pytest.raises(ValueError, match="at least 2 tokens"):
        occlusion_of_all_pairs(_curved, x[:1], baseline[:1], most=9, seed=0)


def test_scores_of_all_pairs_are_those_of_the_normal_equations_by_hand() -> None:
    """(T - 2) a_t + S = F_t, where F_t are the falls that t is in, and S = sum of a = sum of all falls / (T - 1)."""
    x, baseline = _points()
    falls = torch.zeros(T, T, dtype=torch.float64)
    for t, u in itertools.combinations(range(T), 2):
        point = x.clone()
        point[[t, u]] = baseline[[t, u]]
        falls[t, u] = falls[u, t] = (_curved(x[None]) - _curved(point[None])).item()
    expected = (falls.sum(1) - falls.sum() / 2 / (T - 1)) / (T - 2)
    torch.testing.assert_close(occlusion_of_all_pairs(_curved, x, baseline, most=6, seed=0).a, expected)


def test_sampled_pairs_hold_every_token_and_find_a_sum_of_tokens() -> None:
    draws = torch.Generator().manual_seed(0)
    x, baseline = (torch.randn(9, 2, dtype=torch.float64, generator=draws) for _ in range(2))
    n_masked: list[int] = []  # tokens at the baseline, of every point that f is asked for
    masked = torch.zeros(9)

    def f(embeds: Tensor) -> Tensor:
        is_masked = (embeds == baseline).all(-1)
        n_masked.extend(is_masked.sum(1).tolist())
        masked.add_(is_masked.sum(0))
        return (embeds.sum(-1) * torch.arange(1.0, 10.0)).sum(-1)

    scores = occlusion_of_all_pairs(f, x, baseline, most=20, seed=0)
    assert n_masked == [0] + [2] * 18 + [0, 9]  # two circles of nine; then f at both ends
    assert masked.tolist() == [4 + 1] * 9
    torch.testing.assert_close(scores.a, (x - baseline).sum(-1) * torch.arange(1.0, 10.0))
    halves = occlusion_of_all_pairs(_linear_of_two, x[:2], baseline[:2], most=1, seed=0).a
    torch.testing.assert_close(halves[0], halves[1])


def _linear_of_two(embeds: Tensor) -> Tensor:
    return embeds[:, 0].sum(-1)


@pytest.mark.filterwarnings("ignore:.*interpolation.*:DeprecationWarning")
@pytest.mark.parametrize("max_distance", [0.02, 0.2, 1.0])
@pytest.mark.parametrize("m", [5, 20])
def test_guided_scores_are_those_of_the_authors_public_code(m: int, max_distance: float) -> None:
    reason = "needs saliency: tox -e peer-saliency"
    theirs = pytest.importorskip("saliency.core", reason=reason).GuidedIG()
    model, example = _example()
    f, x = grains.objective(model, example, HyperParameters()), example.encoded.embeds
    baseline = model.baseline(example.encoded, "mean")

    def gradients(points: Any, call_model_args: None = None, expected_keys: Any = None) -> dict[str, Any]:
        found = [grains.gradient_at(f, torch.as_tensor(point), where="here").numpy() for point in points]
        return dict.fromkeys(expected_keys, found)

    expected = theirs.GetMask(
        x.numpy(), gradients, x_baseline=baseline.numpy(), x_steps=m, fraction=0.25, max_dist=max_distance
    )
    ours = guided_integrated_gradients(
        f, x, baseline, m=m, fraction=0.25, max_distance=max_distance, straight_start=False
    )
    torch.testing.assert_close(ours.ig, torch.as_tensor(expected), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("width", [1, 2])
def test_occlusion_is_captums(width: int) -> None:
    captum = pytest.importorskip("captum.attr")
    x, baseline = _points()
    expected = captum.Occlusion(_curved).attribute(
        x[None], sliding_window_shapes=(width, D), strides=(1, D), baselines=baseline[None]
    )
    torch.testing.assert_close(
        occlusion(_curved, x, baseline, width=width).a, expected[0, :, 0].double(), rtol=1e-5, atol=1e-5
    )


def _example() -> tuple[grains.Model, Example]:
    model = random_llama(dtype=torch.float64)
    return model, model.example("The sky is", " blue", " green")


def test_tokens_masked_one_at_a_time_shift_by_the_mean_of_their_own_contrasts() -> None:
    model, example = _example()
    baseline = model.baseline(example.encoded, "zero")
    expected = torch.stack(
        [contrast(model, example.encoded, Selection(pos=(j,), neg=()), baseline)[0] for j in (0, 1)]
    ).mean(0)
    pos, neg = contrast_one_at_a_time(model, example, Selection(pos=(0, 1), neg=()), baseline)
    torch.testing.assert_close(pos, expected)
    assert not neg.any()


@pytest.mark.parametrize("name", get_args(Name))
def test_methods_are_found_by_name_on_a_model(name: Name) -> None:
    model, example = _example()
    scores = attribute_by(name, model, example, HyperParameters())
    assert scores.a.shape == example.encoded.ids.shape
    assert scores.f_x == pytest.approx(grains.attribute(model, example, HyperParameters()).f_x)


@pytest.mark.parametrize("name", get_args(Name))
def test_another_objective_takes_the_place_of_the_models(name: Name) -> None:
    model, example = _example()
    f = grains.objective(model, example, HyperParameters())
    twice = attribute_by(name, model, example, HyperParameters(), f=lambda embeds: 2 * f(embeds))
    once = attribute_by(name, model, example, HyperParameters())
    torch.testing.assert_close(twice.a, 2 * once.a, rtol=1e-4, atol=1e-4)


def test_an_unknown_method_is_refused_with_those_that_are_known() -> None:
    model, example = _example()
    with pytest.raises(ValueError, match="choose one of guided_ig"):
        attribute_by("lime", model, example, HyperParameters())  # type: ignore[arg-type]


def test_a_wide_band_leaves_guided_integrated_gradients_a_choice() -> None:
    model, example = _example()
    narrow, wide = (attribute_by(name, model, example, HyperParameters()).a for name in ("guided_ig", "guided_ig_wide"))
    assert (narrow - wide).abs().max() > 0.01 * narrow.abs().max()
