"""The reference's answers to the options of selection, contrast and aggregation; `options` says what they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from grains_ref.conformance.options_scores import prompt_on_toy
from grains_ref.conformance.signatures import DTYPES, Values, array, refusing, tensor
from grains_ref.grains import (
    AggregationMethod,
    Encoded,
    Selection,
    aggregate,
    combine,
    contrast,
    eligible_tokens,
    select,
)


# ------------------------------------------------------------------------------------- selection, contrast
@refusing
def selection_eligible(*, a: Any, kinds: Sequence[str], rules: Sequence[str], k: int, dtype: str) -> Values:
    """Eq. (3) among the tokens that rules leave."""
    scores, n = tensor(a, dtype), len(kinds)
    encoded = Encoded(torch.zeros(n, dtype=torch.long), torch.zeros(n, 1), ("",) * n, tuple(kinds), {})  # type: ignore[arg-type]
    eligible = eligible_tokens(encoded, rules)  # type: ignore[arg-type]
    chosen = select(scores, k=k, eligible=eligible)
    return {"eligible": eligible.long().tolist(), "pos": list(chosen.pos), "neg": list(chosen.neg)}


@refusing
def contrast_batch(*, x: Any, baseline: Any, attention_mask: Any, in_pos: Any, in_neg: Any, dtype: str) -> Values:
    """Eq. (4) of every row by itself."""
    shifts: dict[str, list[np.ndarray]] = {"delta_pos": [], "delta_neg": []}
    for row, mask in enumerate(np.asarray(attention_mask)):
        model, encoded = prompt_on_toy(x[row], mask, dtype)
        chosen = Selection(*(tuple(np.flatnonzero(members[row]).tolist()) for members in (in_pos, in_neg)))
        for side, delta in zip(
            shifts.values(), contrast(model, encoded, chosen, tensor(baseline[row], dtype)), strict=True
        ):
            side.append(array(delta))
    return {name: np.stack(deltas) for name, deltas in shifts.items()}


# ------------------------------------------------------------------------------------- aggregation
def _combined(
    dtype: str,
    delta_pos: Any,
    delta_neg: Any,
    method: AggregationMethod,
    *,
    components: int = 1,
    weights: tuple[Any, Any] = ((), ()),
) -> Values:
    """Eq. (5) by another method, and eq. (6)."""
    v_pos, v_neg = (
        aggregate(
            tensor(deltas, dtype), method=method, components=components, weights=tensor(given, dtype).tolist()
        ).v.to(DTYPES[dtype])
        for deltas, given in zip((delta_pos, delta_neg), weights, strict=True)
    )
    return {"v_pos": array(v_pos), "v_neg": array(v_neg), "v": array(combine(v_pos, v_neg))}


@refusing
def aggregation_uncentred(*, delta_pos: Any, delta_neg: Any, dtype: str) -> Values:
    """Eq. (5) without its centring."""
    return _combined(dtype, delta_pos, delta_neg, "uncentred")


@refusing
def aggregation_mean(*, delta_pos: Any, delta_neg: Any, dtype: str) -> Values:
    """The mean shift instead of eq. (5)."""
    return _combined(dtype, delta_pos, delta_neg, "mean")


@refusing
def aggregation_weighted_mean(
    *, delta_pos: Any, delta_neg: Any, weights_pos: Any, weights_neg: Any, dtype: str
) -> Values:
    """The weighted mean shift instead of eq. (5)."""
    return _combined(dtype, delta_pos, delta_neg, "weighted_mean", weights=(weights_pos, weights_neg))


@refusing
def aggregation_components(*, delta_pos: Any, delta_neg: Any, components: int, dtype: str) -> Values:
    """Eq. (5) with several components."""
    return _combined(dtype, delta_pos, delta_neg, "pca", components=components)
