"""Eq. (5) by the Gram matrix: N x N numbers for each layer instead of the singular vectors of N x d.

Where there are fewer examples than the model is wide, the first right singular vector of D (N, d) follows from the
first eigenvector w of D D', (N, N): u_1 = D' w / s_1.  All layers at once, in float64.  What the small matrix cannot
tell as well as the large one, a first component that hardly differs from the second, several components, shifts that
define no direction, is left to `grains.aggregate`, with its conventions and its errors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grains_ref import grains
from grains_ref.grains import Aggregation, AggregationMethod, Fit, HyperParameters, Shift

LEAST_GAP = 1e-2  # (s_1 - s_2) / s_1 from which the Gram matrix gives u_1 to about 1e-13
NEGLIGIBLE = 1e-6  # as in grains.aggregate
SAFELY = 10.0  # times away from what grains.aggregate refuses


def aggregate(
    deltas: Tensor, *, method: AggregationMethod = "pca", components: int = 1, weights: Sequence[float] = ()
) -> Aggregation:
    """`grains.aggregate`, eq. (5): deltas (N, L, d) -> v (L, d) in float64.

    Raises:
        DegenerateShiftsError, ValueError: see `grains.aggregate`.
    """
    if method in ("pca", "uncentred") and components == 1 and not len(weights) and deltas.ndim == 3:
        n, _, d = deltas.shape
        if 2 <= n < d:
            aggregation = _by_gram(deltas, method)
            if aggregation is not None:
                return aggregation
    return grains.aggregate(deltas, method=method, components=components, weights=weights)


def _by_gram(deltas: Tensor, method: AggregationMethod) -> Aggregation | None:
    """All layers, or None where one of them is not well posed."""
    D = deltas.detach().double().transpose(0, 1)  # (L, N, d)
    mean = D.mean(1)  # (L, d)
    size = torch.linalg.vector_norm(D, dim=(1, 2))  # (L,)
    C = D if method == "uncentred" else D - mean[:, None]
    if not C.isfinite().all():
        return None
    squares, w = torch.linalg.eigh(C @ C.transpose(1, 2))  # (L, N) smallest first, (L, N, N)
    s = squares.clamp_min(0).sqrt().flip(-1)  # (L, N) singular values, largest first
    first = s[:, 0].clamp_min(grains.TINY)
    u = (w[:, :, -1:].transpose(1, 2) @ C)[:, 0]  # (L, d), of length s_1
    u = u / torch.linalg.vector_norm(u, dim=1, keepdim=True).clamp_min(grains.TINY)
    along = (u * mean).sum(1)  # (L,), what is left of the mean on u; its sign is v's
    gap = (s[:, 0] - s[:, 1]) / first
    is_posed = (s[:, 0] > SAFELY * NEGLIGIBLE * size) & (gap > LEAST_GAP)
    is_signed = along.abs() > SAFELY * NEGLIGIBLE * size / D.shape[1] ** 0.5
    if not (is_posed & is_signed).all():
        return None
    v = u * along.sign()[:, None]
    length = torch.linalg.vector_norm(mean, dim=1).clamp_min(grains.TINY)
    explained = s[:, 0] ** 2 / (s**2).sum(1).clamp_min(grains.TINY)
    cos_mean = along.abs() / length
    return Aggregation(v.cpu(), tuple(explained.tolist()), tuple(gap.tolist()), tuple(cos_mean.tolist()))


def vectors(shifts: Sequence[Shift], hp: HyperParameters) -> Fit:
    """`grains.vectors`, eq. (5) and (6)."""
    if hp.aggregation not in ("pca", "uncentred") or not shifts:
        return grains.vectors(shifts, hp)
    pos = aggregate(torch.stack([s.delta_pos for s in shifts]), method=hp.aggregation, components=hp.components)
    neg = aggregate(torch.stack([s.delta_neg for s in shifts]), method=hp.aggregation, components=hp.components)
    return Fit(pos, neg, grains.combine(pos.v, neg.v))
