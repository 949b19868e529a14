"""The seven stages as the kit sees them: named arrays in, named arrays out, and the oracle's answer.

| stage | in | out |
|---|---|---|
| objective | x (T, d), attention_mask (T,), y_pos (R,), y_neg (R',) | log_p_pos, log_p_neg, f: scalars in nats |
| attribution | x, baseline (T, d), attention_mask, y_pos, y_neg, m, quadrature | a (T,) in nats |
| selection | a (T,), eligible (T,) 0 or 1, k | pos, neg: token indices, strongest first |
| contrast | x, baseline (T, d), attention_mask, pos, neg | delta_pos, delta_neg (L, d) |
| aggregation | delta_pos, delta_neg (N, L, d) | v_pos, v_neg, v (L, d) |
| steering | h (B, T, d), v (d,), lam | h (B, T, d) |
| generation | ids, attention_mask (B, T), v (L, d), lam, layers, forced (B, n) | logits (B, n, V), tokens (B, n) |

Objective, attribution, contrast and generation run on the decoder of `toy`. In generation, `logits` are those of the
steered model that predict the tokens `forced` one after the other, and `tokens` are its own greedy continuation, made
with whatever cache the port has.

The response (objective, attribution) and the new tokens (generation) continue the prompt: attention mask 1, positions
going on from the last prompt token's. Greedy ties go to the lower id.

Quadrature (attribution), with j = 1..m: `right` has its nodes at j / m, `midpoint` at (j - 1/2) / m, both with weights
1 / m; `gauss_legendre` has the m Gauss-Legendre nodes and weights moved from [-1, 1] to [0, 1].

Aggregation in low precision: the shifts are rounded to the dtype first, then converted to float64 for mean and SVD;
v_pos and v_neg are rounded to the dtype, and v is their difference in that dtype. Shifts that define no direction are
refused. With D the (N, d) shifts of one layer, s1 the first singular value of D minus its mean, u the component:

    all equal (or all zero)     s1        <= 1e-6 * Frobenius norm of D
    no mean to sign u by        |u . mean| <= 1e-6 * Frobenius norm of D / sqrt(N)

Inputs are float64 arrays whose values bfloat16 can hold; a port converts them to the dtype it is asked for. What makes
no sense is refused by `check`, before anything is computed: wrong shapes (nothing is broadcast), NaN and infinities
(also in a score that may not be selected), token ids outside the vocabulary, an attention mask that is not 0s then 1s.

A stage here is a call of the reference, nothing more: what is right is decided in `grains_ref.grains`.

What a port may have besides, such as batches or other attributions, is in `options`; names, axes and outputs of
everything, and `check`, are in `signatures`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from grains_ref.conformance import options
from grains_ref.conformance.options_generation import steered
from grains_ref.conformance.options_scores import scored
from grains_ref.conformance.signatures import (
    AXES,
    DTYPES,
    KIND,
    ON_THE_TOY,
    OPTIONS,
    OUTPUTS,
    STAGES,
    Stage,
    Values,
    array,
    check,
    refusing,
    tensor,
    toy_in,
    whole,
)
from grains_ref.grains import (
    Selection,
    aggregate,
    combine,
    contrast,
    integrated_gradients,
    preference,
    select,
    steer_hidden,
)

__all__ = [
    "AXES",
    "DTYPES",
    "HEADERS",
    "KIND",
    "ON_THE_TOY",
    "OPTIONS",
    "ORACLE",
    "OUTPUTS",
    "STAGES",
    "Stage",
    "Values",
    "array",
    "check",
    "refusing",
    "run_oracle",
    "tensor",
    "toy_in",
    "whole",
]


@refusing
def objective(*, x: np.ndarray, attention_mask: np.ndarray, y_pos: np.ndarray, y_neg: np.ndarray, dtype: str) -> Values:
    """Eq. (1) on the toy decoder."""
    return scored(toy_in(dtype), x, attention_mask, y_pos, y_neg, dtype)


@refusing
def attribution(
    *,
    x: np.ndarray,
    baseline: np.ndarray,
    attention_mask: np.ndarray,
    y_pos: np.ndarray,
    y_neg: np.ndarray,
    m: int,
    quadrature: str,
    dtype: str,
) -> Values:
    """Eq. (2) on the toy decoder."""
    model = toy_in(dtype)
    encoded = model.encoded(tensor(x, dtype), whole(attention_mask))
    pos, neg = whole(y_pos), whole(y_neg)
    scores = integrated_gradients(
        lambda embeds: preference(model, encoded, embeds, y_pos=pos, y_neg=neg),
        encoded.embeds,
        tensor(baseline, dtype),
        m=m,
        quadrature=quadrature,  # type: ignore[arg-type]
    )
    return {"a": array(scores.a)}


@refusing
def selection(*, a: np.ndarray, eligible: np.ndarray, k: int, dtype: str) -> Values:
    """Eq. (3)."""
    chosen = select(tensor(a, dtype), k=k, eligible=whole(eligible).bool())
    return {"pos": list(chosen.pos), "neg": list(chosen.neg)}


@refusing
def contrast_(
    *, x: np.ndarray, baseline: np.ndarray, attention_mask: np.ndarray, pos: list[int], neg: list[int], dtype: str
) -> Values:
    """Eq. (4) on the toy decoder."""
    model = toy_in(dtype)
    encoded = model.encoded(tensor(x, dtype), whole(attention_mask))
    delta_pos, delta_neg = contrast(model, encoded, Selection(tuple(pos), tuple(neg)), tensor(baseline, dtype))
    return {"delta_pos": array(delta_pos), "delta_neg": array(delta_neg)}


@refusing
def aggregation(*, delta_pos: np.ndarray, delta_neg: np.ndarray, dtype: str) -> Values:
    """Eq. (5) and (6); the singular vectors are computed in float64 whatever the dtype of the shifts."""
    pos, neg = (aggregate(tensor(deltas, dtype)).v for deltas in (delta_pos, delta_neg))
    v_pos, v_neg = pos.to(DTYPES[dtype]), neg.to(DTYPES[dtype])
    return {"v_pos": array(v_pos), "v_neg": array(v_neg), "v": array(combine(v_pos, v_neg))}


@refusing
def steering(*, h: np.ndarray, v: np.ndarray, lam: float, dtype: str) -> Values:
    """Eq. (7) and (8)."""
    return {"h": array(steer_hidden(tensor(h, dtype), tensor(v, dtype), lam=lam))}


@refusing
def generation(
    *,
    ids: np.ndarray,
    attention_mask: np.ndarray,
    v: np.ndarray,
    lam: float,
    layers: list[int],
    forced: np.ndarray,
    dtype: str,
) -> Values:
    """Sect. 3.3 on the toy decoder: every row of the batch by itself, every token by full recomputation."""
    return steered(toy_in(dtype), ids, attention_mask, tensor(v, dtype), lam, layers, forced)


ORACLE: dict[str, Stage] = {
    "objective": objective,
    "attribution": attribution,
    "selection": selection,
    "contrast": contrast_,
    "aggregation": aggregation,
    "steering": steering,
    "generation": generation,
    **options.ORACLE,
}
"""The reference's answer to every stage and option."""
HEADERS: dict[str, str] = {
    "objective": "Eq. (1): summed log-probabilities of both answers and their difference, in nats.",
    "attribution": "Eq. (2): one score per prompt token, in nats; the given quadrature, never a node at 0.",
    "selection": "Eq. (3): at most k tokens of strictly the right sign, strongest first, ties to the lower index.",
    "contrast": "Eq. (4): shifts of the last prompt token's state after every block when a set is masked.",
    "aggregation": "Eq. (5), (6): first component of the centred shifts, unit length, signed by their mean; v.",
    "steering": "Eq. (7), (8): the vector added, every token's norm restored.",
    "generation": "Sect. 3.3: logits of the steered decoder for a given continuation, and its own greedy one.",
    **options.HEADERS,
}
"""What heads each stage's stored file."""


def run_oracle(stage: str, inputs: Mapping[str, Any], dtype: str = "float64") -> Values:
    """The oracle's outputs of one stage or option."""
    return ORACLE[stage](**inputs, dtype=dtype)
