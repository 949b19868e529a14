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

Inputs are float64 arrays whose values bfloat16 can hold; a port converts them to the dtype it is asked for. A stage
here is a call of the reference, nothing more: what is right is decided in `grains_ref.grains`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

from grains_ref.conformance.toy import BLOCKS, WIDTH, Toy, toy_weights
from grains_ref.grains import (
    Selection,
    Steering,
    aggregate,
    combine,
    contrast,
    integrated_gradients,
    log_prob,
    preference,
    select,
    steer_hidden,
)

Values: TypeAlias = dict[str, Any]  # name -> array, number, list of indices, or text
Stage: TypeAlias = Callable[..., Values]

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def objective(*, x: np.ndarray, attention_mask: np.ndarray, y_pos: np.ndarray, y_neg: np.ndarray, dtype: str) -> Values:
    """Eq. (1) on the toy decoder."""
    model = Toy(toy_weights(), DTYPES[dtype])
    encoded = model.encoded(_tensor(x, dtype), _ids(attention_mask))
    embeds = encoded.embeds[None]
    pos, neg = (log_prob(model, encoded, embeds, y=_response(y)) for y in (y_pos, y_neg))
    return {"log_p_pos": pos.item(), "log_p_neg": neg.item(), "f": (pos - neg).item()}


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
    if m < 1:
        raise ValueError(f"m is {m}; expected at least one step")
    model = Toy(toy_weights(), DTYPES[dtype])
    encoded = model.encoded(_tensor(x, dtype), _ids(attention_mask))
    pos, neg = _response(y_pos), _response(y_neg)
    found = integrated_gradients(
        lambda embeds: preference(model, encoded, embeds, y_pos=pos, y_neg=neg),
        encoded.embeds,
        _tensor(baseline, dtype),
        m=m,
        quadrature=quadrature,  # type: ignore[arg-type]
    )
    return {"a": _array(found.a)}


def selection(*, a: np.ndarray, eligible: np.ndarray, k: int, dtype: str) -> Values:
    """Eq. (3)."""
    chosen = select(_tensor(a, dtype), k=k, eligible=torch.from_numpy(np.asarray(eligible)).bool())
    return {"pos": list(chosen.pos), "neg": list(chosen.neg)}


def contrast_(
    *, x: np.ndarray, baseline: np.ndarray, attention_mask: np.ndarray, pos: list[int], neg: list[int], dtype: str
) -> Values:
    """Eq. (4) on the toy decoder."""
    model = Toy(toy_weights(), DTYPES[dtype])
    encoded = model.encoded(_tensor(x, dtype), _ids(attention_mask))
    outside = [j for j in (*pos, *neg) if not 0 <= j < len(x)]
    if outside:
        raise ValueError(f"tokens {outside} do not exist: the prompt has {len(x)}")
    delta_pos, delta_neg = contrast(model, encoded, Selection(tuple(pos), tuple(neg)), _tensor(baseline, dtype))
    return {"delta_pos": _array(delta_pos), "delta_neg": _array(delta_neg)}


def aggregation(*, delta_pos: np.ndarray, delta_neg: np.ndarray, dtype: str) -> Values:
    """Eq. (5) and (6); the singular vectors are computed in float64 whatever the dtype of the shifts."""
    pos, neg = (aggregate(_tensor(deltas, dtype)).v for deltas in (delta_pos, delta_neg))
    v_pos, v_neg = pos.to(DTYPES[dtype]), neg.to(DTYPES[dtype])
    return {"v_pos": _array(v_pos), "v_neg": _array(v_neg), "v": _array(combine(v_pos, v_neg))}


def steering(*, h: np.ndarray, v: np.ndarray, lam: float, dtype: str) -> Values:
    """Eq. (7) and (8)."""
    if not (np.isfinite(lam) and np.isfinite(v).all()):
        raise ValueError("lam and v must be finite")
    return {"h": _array(steer_hidden(_tensor(h, dtype), _tensor(v, dtype), lam=lam))}


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
    model = Toy(toy_weights(), DTYPES[dtype])
    if np.shape(v) != (BLOCKS, WIDTH):
        raise ValueError(f"v must be {(BLOCKS, WIDTH)}; got {np.shape(v)}")
    logits, tokens = [], []
    with torch.no_grad(), Steering(model.blocks, _tensor(v, dtype), lam=lam, layers=layers):
        for row, mask, known in zip(_ids(ids), _ids(attention_mask), _ids(forced), strict=True):
            encoded = model.encode(row.tolist(), mask.tolist())
            logits.append(model.logits(encoded, encoded.embeds[None], known)[0])
            said: list[int] = []
            for _ in range(len(known)):
                step = model.logits(encoded, encoded.embeds[None], torch.tensor([*said, 0]))[0, -1]
                said.append(int(step.argmax()))
            tokens.append(said)
    return {"logits": _array(torch.stack(logits)), "tokens": np.array(tokens)}


ORACLE: dict[str, Stage] = {
    "objective": objective,
    "attribution": attribution,
    "selection": selection,
    "contrast": contrast_,
    "aggregation": aggregation,
    "steering": steering,
    "generation": generation,
}
OUTPUTS: dict[str, tuple[str, ...]] = {
    "objective": ("log_p_pos", "log_p_neg", "f"),
    "attribution": ("a",),
    "selection": ("pos", "neg"),
    "contrast": ("delta_pos", "delta_neg"),
    "aggregation": ("v_pos", "v_neg", "v"),
    "steering": ("h",),
    "generation": ("logits", "tokens"),
}


def run_oracle(stage: str, inputs: Mapping[str, Any], dtype: str = "float64") -> Values:
    """The oracle's outputs of one stage."""
    return ORACLE[stage](**inputs, dtype=dtype)


def _tensor(array: np.ndarray, dtype: str) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float64)).to(DTYPES[dtype])


def _ids(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.int64))


def _response(ids: np.ndarray) -> torch.Tensor:
    return _ids(ids).reshape(-1)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()
