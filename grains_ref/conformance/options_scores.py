"""The reference's answers to the options of objective and attribution; `options` says what they are."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grains_ref.conformance.signatures import DTYPES, Values, array, refusing, tensor, toy_in, whole
from grains_ref.conformance.toy import Features, PictureToy, Toy, toy_weights
from grains_ref.grains import (
    Encoded,
    Function,
    gradient_among,
    gradient_times_input,
    integrated_gradients,
    log_prob,
    preference,
    spread_scores,
)


# ------------------------------------------------------------------------------------- objective
def scored(model: Toy, x: Any, attention_mask: Any, y_pos: Any, y_neg: Any, dtype: str) -> Values:
    """Eq. (1) on a decoder."""
    encoded = model.encoded(tensor(x, dtype), whole(attention_mask))
    pos, neg = (log_prob(model, encoded, encoded.embeds[None], y=whole(y)) for y in (y_pos, y_neg))
    return {"log_p_pos": pos.item(), "log_p_neg": neg.item(), "f": (pos - neg).item()}


@refusing
def objective_batch(
    *, x: Any, attention_mask: Any, y_pos: Any, seen_pos: Any, y_neg: Any, seen_neg: Any, dtype: str
) -> Values:
    """Eq. (1) of every row by itself, without the padding of its responses."""
    rows = [
        scored(toy_in(dtype), x_row, mask, y_pos[:n_pos], y_neg[:n_neg], dtype)
        for x_row, mask, y_pos, n_pos, y_neg, n_neg in zip(
            x, attention_mask, y_pos, np.sum(seen_pos, 1), y_neg, np.sum(seen_neg, 1), strict=True
        )
    ]
    return {name: np.array([row[name] for row in rows]) for name in ("log_p_pos", "log_p_neg", "f")}


@refusing
def objective_qk_norm(*, dtype: str, **given: Any) -> Values:
    """Qwen3, Gemma 3: the heads of q and k are normed."""
    return scored(toy_in(dtype, Features(qk_norm=True)), **given, dtype=dtype)


@refusing
def objective_biases(*, dtype: str, **given: Any) -> Values:
    """Qwen2: q, k and v have biases."""
    return scored(toy_in(dtype, Features(biases=True)), **given, dtype=dtype)


@refusing
def objective_sliding_window(*, window: int, dtype: str, **given: Any) -> Values:
    """Gemma, Mistral: some blocks see only the last tokens."""
    return scored(toy_in(dtype, Features(window=window)), **given, dtype=dtype)


@refusing
def objective_soft_caps(*, attention_cap: float, logits_cap: float, dtype: str, **given: Any) -> Values:
    """Gemma 2: attention scores and logits are capped."""
    return scored(toy_in(dtype, Features(attention_cap=attention_cap, logits_cap=logits_cap)), **given, dtype=dtype)


@refusing
def objective_scaled_embeddings(*, scale: float, dtype: str, **given: Any) -> Values:
    """Gemma: embeddings are scaled when they are looked up."""
    return scored(toy_in(dtype, Features(scale=scale)), **given, dtype=dtype)


# ------------------------------------------------------------------------------------- attribution
def prompt_on_toy(x: Any, attention_mask: Any, dtype: str) -> tuple[Toy, Encoded]:
    """The decoder, and a prompt that is given by its embeddings."""
    model = toy_in(dtype)
    return model, model.encoded(tensor(x, dtype), whole(attention_mask))


def _preference(model: Toy, encoded: Encoded, y_pos: Any, y_neg: Any) -> Function:
    return functools.partial(_f, model, encoded, whole(y_pos), whole(y_neg))


def _f(model: Toy, encoded: Encoded, y_pos: Tensor, y_neg: Tensor, embeds: Tensor) -> Tensor:
    return preference(model, encoded, embeds, y_pos=y_pos, y_neg=y_neg)


@refusing
def attribution_gradient(*, x: Any, baseline: Any, attention_mask: Any, y_pos: Any, y_neg: Any, dtype: str) -> Values:
    """App. B, vanilla gradients."""
    model, encoded = prompt_on_toy(x, attention_mask, dtype)
    f = _preference(model, encoded, y_pos, y_neg)
    return {"a": array(gradient_times_input(f, encoded.embeds, tensor(baseline, dtype)).a)}


@refusing
def attribution_smoothgrad(
    *, x: Any, baseline: Any, attention_mask: Any, y_pos: Any, y_neg: Any, noise: Any, dtype: str
) -> Values:
    """App. B, SmoothGrad with its noise given."""
    model, encoded = prompt_on_toy(x, attention_mask, dtype)
    f, samples = _preference(model, encoded, y_pos, y_neg), tensor(noise, dtype)
    attribution = gradient_among(f, encoded.embeds, tensor(baseline, dtype), noise=samples, n=len(samples))
    return {"a": array(attribution.a)}


@refusing
def attribution_random(*, x: Any, attention_mask: Any, scores: Any, dtype: str) -> Values:
    """Sect. 5.3, the control with its scores given."""
    embeds = tensor(x, dtype)
    wide = tensor(scores, dtype).to(torch.promote_types(embeds.dtype, torch.float32))
    attribution = spread_scores(lambda points: points.sum((1, 2)), embeds, torch.zeros_like(embeds), wide)
    return {"a": array(attribution.a)}


@refusing
def attribution_likelihood(
    *,
    x: Any,
    baseline: Any,
    attention_mask: Any,
    y_pos: Any,
    y_neg: Any,
    m: int,
    quadrature: str,
    method: str,
    dtype: str,
) -> Values:
    """Sect. 5.3: log P(y_pos) attributed."""
    model, encoded = prompt_on_toy(x, attention_mask, dtype)
    start, y = tensor(baseline, dtype), whole(y_pos)

    def f(embeds: Tensor) -> Tensor:
        return log_prob(model, encoded, embeds, y=y)

    if method == "gradient":
        return {"a": array(gradient_times_input(f, encoded.embeds, start).a)}
    attribution = integrated_gradients(f, encoded.embeds, start, m=m, quadrature=quadrature)  # type: ignore[arg-type]
    return {"a": array(attribution.a)}


@refusing
def attribution_batch(
    *,
    x: Any,
    baseline: Any,
    attention_mask: Any,
    y_pos: Any,
    seen_pos: Any,
    y_neg: Any,
    seen_neg: Any,
    m: int,
    quadrature: str,
    dtype: str,
) -> Values:
    """Eq. (2) of every row by itself."""
    scores = []
    for row, mask in enumerate(np.asarray(attention_mask)):
        model, encoded = prompt_on_toy(x[row], mask, dtype)
        responses = (y_pos[row][: np.sum(seen_pos[row])], y_neg[row][: np.sum(seen_neg[row])])
        attribution = integrated_gradients(
            _preference(model, encoded, *responses),
            encoded.embeds,
            tensor(baseline[row], dtype),
            m=m,
            quadrature=quadrature,  # type: ignore[arg-type]
        )
        scores.append(array(attribution.a))
    return {"a": np.stack(scores)}


@functools.cache
def picture_toy(dtype: str) -> PictureToy:
    """The decoder that takes pictures, made once."""
    return PictureToy(toy_weights(), DTYPES[dtype])


@refusing
def attribution_pictures(
    *,
    x: Any,
    baseline: Any,
    attention_mask: Any,
    positions: Any,
    token_types: Any,
    y_pos: Any,
    y_neg: Any,
    m: int,
    quadrature: str,
    dtype: str,
) -> Values:
    """Eq. (2) of a prompt with a picture in it."""
    model = picture_toy(dtype)
    encoded = model.encoded(tensor(x, dtype), whole(attention_mask))
    encoded.replay.update(positions=whole(positions), token_types=whole(token_types))
    attribution = integrated_gradients(
        _preference(model, encoded, y_pos, y_neg),
        encoded.embeds,
        tensor(baseline, dtype),
        m=m,
        quadrature=quadrature,  # type: ignore[arg-type]
    )
    return {"a": array(attribution.a)}


@refusing
def attribution_baselines(
    *, x: Any, kinds: Sequence[str], embeddings: Any, name: str, token: int, dtype: str
) -> Values:
    """What stands for "nothing here", of path and mask alike; `grains_ref.models` makes the same of a real model."""
    embeds, table = tensor(x, dtype), tensor(embeddings, dtype)
    if name == "zero":
        return {"baseline": array(torch.zeros_like(embeds))}
    if name == "token":
        return {"baseline": array(table[token].expand_as(embeds))}
    rows = table.double().mean(0).to(embeds).repeat(len(embeds), 1)
    in_picture = [j for j, kind in enumerate(kinds) if kind == "image"]
    if in_picture:
        rows[in_picture] = embeds[in_picture].double().mean(0).to(rows)
    return {"baseline": array(rows)}
