"""Aggregation, eq. (5) and (6)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grains_ref.grains import AggregationMethod, DegenerateShiftsError, aggregate, combine

pytestmark = pytest.mark.cpu

METHODS: list[AggregationMethod] = ["pca", "uncentred", "mean", "weighted_mean"]
N, L, D = 11, 3, 7
SHAPES = [(11, 7), (5, 7), (2, 7), (13, 2)]  # n > d, n < d, the least, flat


def drawn(seed: int = 0, n: int = N, d: int = D) -> Tensor:
    """Shifts with a mean and no two equal singular values."""
    noise = torch.randn(n, L, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise * torch.linspace(3, 0.5, d, dtype=torch.float64) + 0.7


def options(method: AggregationMethod, n: int = N) -> dict[str, Any]:
    return {"method": method, "weights": [0.5 + 0.1 * i for i in range(n)] if method == "weighted_mean" else ()}


def close(got: Tensor, expected: Tensor, tol: float = 1e-10) -> None:
    torch.testing.assert_close(got, expected, rtol=tol, atol=tol)


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("method", ["pca", "uncentred"])
def test_the_direction_is_the_leading_eigenvector_of_the_scatter_signed_by_the_mean(
    method: AggregationMethod, n: int, d: int
) -> None:
    deltas = drawn(n=n, d=d)
    got = aggregate(deltas, method=method)
    assert (got.v.shape, got.v.dtype) == ((L, d), torch.float64)
    for layer, D_l in enumerate(deltas.numpy().swapaxes(0, 1)):
        mean = D_l.mean(0)
        centred = D_l - (mean if method == "pca" else 0)
        eigenvalues, eigenvectors = np.linalg.eigh(centred.T @ centred)
        first = eigenvectors[:, -1] * np.sign(eigenvectors[:, -1] @ mean)
        close(got.v[layer], torch.from_numpy(first), 1e-8)
        assert np.linalg.norm(got.v[layer]) == pytest.approx(1, abs=1e-12)
        assert got.v[layer].numpy() @ mean > 0
        s = np.sqrt(eigenvalues.clip(0))
        assert got.explained[layer] == pytest.approx(eigenvalues[-1] / eigenvalues.sum(), rel=1e-9)
        assert got.gap[layer] == pytest.approx((s[-1] - s[-2]) / s[-1], rel=1e-6, abs=1e-7)
        assert got.cos_mean[layer] == pytest.approx(first @ mean / np.linalg.norm(mean), rel=1e-7)


def test_a_planted_direction_is_found_in_every_layer() -> None:
    generator = torch.Generator().manual_seed(1)
    planted = torch.nn.functional.normalize(torch.randn(L, D, generator=generator, dtype=torch.float64), dim=1)
    strength = 2 + torch.randn(401, 1, 1, generator=generator, dtype=torch.float64)
    noise = 0.05 * torch.randn(401, L, D, generator=generator, dtype=torch.float64)
    for method in METHODS:
        got = aggregate(strength * planted + noise, **options(method, 401))
        assert (got.v * planted).sum(1).min() > 0.999
        assert min(got.cos_mean) > 0.999
        assert min(got.explained) > 0.95


def test_centring_matters_when_the_mean_is_large_and_the_variance_small() -> None:
    deltas = torch.zeros(N, 1, 3, dtype=torch.float64)
    deltas[:, 0, 0] = 10  # what all examples share
    deltas[:, 0, 1] = torch.linspace(-1, 1.4, N)  # what tells them apart
    close(aggregate(deltas).v[0], torch.tensor([0, 1.0, 0]).double())
    assert aggregate(deltas).cos_mean[0] < 0.05
    for method in ("uncentred", "mean"):
        assert aggregate(deltas, method=method).v[0, 0] > 0.99


@pytest.mark.parametrize("method", METHODS)
def test_shifts_of_the_other_sign_give_the_opposite_direction(method: AggregationMethod) -> None:
    close(aggregate(-drawn(), **options(method)).v, -aggregate(drawn(), **options(method)).v)


@pytest.mark.parametrize("method", ["pca", "uncentred", "mean"])
@given(order=st.permutations(range(N)), copies=st.integers(1, 3))
def test_neither_order_nor_duplication_of_the_examples_matters(
    method: AggregationMethod, order: list[int], copies: int
) -> None:
    close(aggregate(drawn()[order * copies], method=method).v, aggregate(drawn(), method=method).v)


def test_the_mean_is_the_mean_and_its_weights_weigh_examples() -> None:
    deltas, weights = drawn(), [0.0, 3.0] + [1.0] * (N - 2)
    for method, w in (("mean", [1.0] * N), ("weighted_mean", weights)):
        mean = sum(weight * delta for weight, delta in zip(w, deltas, strict=True))
        got = aggregate(deltas, method=method, weights=weights if method == "weighted_mean" else ())
        close(got.v, mean / mean.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("method", ["pca", "uncentred"])
def test_several_components_give_the_part_of_the_mean_they_span(method: AggregationMethod) -> None:
    deltas = drawn()
    mean = deltas.mean(0)
    for r in (1, 2, 3):
        got = aggregate(deltas, method=method, components=r).v
        for layer in range(L):
            D_l = deltas[:, layer] - (mean[layer] if method == "pca" else 0)
            u = torch.linalg.svd(D_l, full_matrices=False).Vh[:r]
            close(got[layer], torch.nn.functional.normalize(u.T @ (u @ mean[layer]), dim=0))
    # As many components as there are dimensions span the mean itself, and more change nothing.
    for r in (D, 50):
        close(aggregate(deltas, method=method, components=r).v, aggregate(deltas, method="mean").v)
    # Components of rounding errors are not components: three examples span two directions.
    few = drawn(n=3)
    close(aggregate(few, components=3).v, aggregate(few, components=2).v)


def test_float32_and_bfloat16_shifts_are_computed_in_float64() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        deltas = drawn().to(dtype)
        assert torch.equal(aggregate(deltas).v, aggregate(deltas.double()).v)


def test_the_size_of_the_shifts_does_not_matter() -> None:
    for scale in (1e-30, 1e30):
        close(aggregate(scale * drawn()).v, aggregate(drawn()).v)


# --- data that define no direction


def with_layer(bad: Tensor, layer: int = 1) -> Tensor:
    deltas = drawn(n=len(bad))
    deltas[:, layer] = bad
    return deltas


SYMMETRIC = torch.cat([(half := drawn(3)[:4, 0]), -half])
ZERO, EQUAL = torch.zeros(6, D, dtype=torch.float64), drawn(4)[:1, 0].expand(6, D)


@pytest.mark.parametrize("method", METHODS)
def test_shifts_that_are_all_zero_are_refused_with_their_layer(method: AggregationMethod) -> None:
    cause = "no token of this sign was selected, or masking them changed nothing at this layer"
    with pytest.raises(DegenerateShiftsError, match=f"layer 1: all 6 shifts are zero: {cause}"):
        aggregate(with_layer(ZERO), **options(method, 6))


@pytest.mark.parametrize("method", METHODS)
def test_shifts_that_cancel_each_other_are_refused_with_their_layer(method: AggregationMethod) -> None:
    weights = [1.0] * 8 if method == "weighted_mean" else []
    with pytest.raises(DegenerateShiftsError, match=f"layer 1: the mean shift is zero along the {method} direction"):
        aggregate(with_layer(SYMMETRIC), method=method, weights=weights)


@pytest.mark.parametrize("deltas", [with_layer(EQUAL), with_layer(EQUAL * (1 + 1e-9 * torch.randn(6, 1)))])
def test_equal_shifts_have_no_principal_direction_but_a_mean(deltas: Tensor) -> None:
    with pytest.raises(DegenerateShiftsError, match=r"layer 1: the 6 shifts are all equal.*'mean' or 'uncentred'"):
        aggregate(deltas)
    for method in ("mean", "uncentred"):
        close(aggregate(deltas, method=method).v[1], torch.nn.functional.normalize(EQUAL[0], dim=0), 1e-6)


def test_one_example_has_no_principal_direction_but_a_mean() -> None:
    with pytest.raises(DegenerateShiftsError, match="layer 0: the 1 shifts are all equal"):
        aggregate(drawn(n=1))
    for method in METHODS[1:]:
        close(aggregate(drawn(n=1), **options(method, 1)).v, torch.nn.functional.normalize(drawn(n=1)[0], dim=1))


def test_a_direction_without_a_mean_to_sign_it_is_refused() -> None:
    deltas = torch.zeros(4, 1, 3, dtype=torch.float64)
    deltas[:, 0, 0], deltas[:, 0, 1] = torch.tensor([5.0, 5, -5, -5]), 1  # varies along 0, mean along 1
    with pytest.raises(DegenerateShiftsError, match="layer 0: the mean shift is zero along the pca direction"):
        aggregate(deltas)


def test_weights_that_are_all_zero_are_refused() -> None:
    with pytest.raises(DegenerateShiftsError, match="layer 0: the mean shift is zero along the weighted_mean"):
        aggregate(drawn(), method="weighted_mean", weights=[0.0] * N)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_shifts_that_are_not_finite_are_refused_with_their_layer(bad: float) -> None:
    deltas = drawn()
    deltas[3, 2, 1] = bad
    with pytest.raises(ValueError, match=r"not finite in layers \[\[2\]\]"):
        aggregate(deltas)


@pytest.mark.parametrize("shape", [(0, 3, 2), (3, 2), (1, 2, 3, 4)])
def test_another_shape_and_no_examples_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"deltas must be \(N, L, d\) with N >= 1"):
        aggregate(torch.ones(shape))


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        ("weighted_mean", ()),
        ("weighted_mean", [1.0] * (N - 1)),
        ("weighted_mean", [1.0] * (N - 1) + [-1.0]),
        ("weighted_mean", [1.0] * (N - 1) + [math.nan]),
        ("pca", [1.0] * N),
    ],
)
def test_weights_that_do_not_fit_are_refused(method: AggregationMethod, weights: list[float]) -> None:
    with pytest.raises(ValueError, match=f"weighted_mean, and only it, takes {N} weights >= 0"):
        aggregate(drawn(), method=method, weights=weights)


def test_the_combined_vector_points_from_the_neg_side_to_the_pos_side_at_its_own_length() -> None:
    v_pos, v_neg = aggregate(drawn(1)).v, aggregate(drawn(2)).v
    assert torch.equal(combine(v_pos, v_neg), v_pos - v_neg)
    assert combine(v_pos, v_neg).norm(dim=1).tolist() != pytest.approx([1] * L)
    # Its parts are unit vectors, so a wrong sign would not turn it round but make it orthogonal.
    assert (combine(v_pos, v_neg) * (v_pos + v_neg)).sum().item() == pytest.approx(0, abs=1e-12)
