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
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, get_args

import numpy as np
import torch

from grains_ref.conformance.toy import BLOCKS, VOCABULARY, WIDTH, Toy, toy_weights
from grains_ref.grains import (
    Quadrature,
    Selection,
    Steering,
    aggregate,
    combine,
    contrast,
    generate_greedy,
    integrated_gradients,
    log_prob,
    preference,
    select,
    steer_hidden,
)

Values: TypeAlias = dict[str, Any]  # name -> array, number, list of indices, or text
Stage: TypeAlias = Callable[..., Values]

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


AXES: dict[str, dict[str, str]] = {
    "objective": {"x": "T d", "attention_mask": "T", "y_pos": "R", "y_neg": "R'"},
    "attribution": {"x": "T d", "baseline": "T d", "attention_mask": "T", "y_pos": "R", "y_neg": "R'"},
    "selection": {"a": "T", "eligible": "T"},
    "contrast": {"x": "T d", "baseline": "T d", "attention_mask": "T"},
    "aggregation": {"delta_pos": "N L d", "delta_neg": "N L d"},
    "steering": {"h": "B T d", "v": "d"},
    "generation": {"ids": "B T", "attention_mask": "B T", "v": "L d", "forced": "B n"},
}
"""The axes of every array; an axis has one size in all arrays of a stage, and at least one entry."""
ON_THE_TOY = ("objective", "attribution", "contrast", "generation")  # stages whose d and L are the toy decoder's
FINITE = ("x", "baseline", "a", "delta_pos", "delta_neg", "h", "v", "lam")
TOKEN_IDS = ("ids", "y_pos", "y_neg", "forced")


def check(stage: str, dtype: str, **inputs: Any) -> None:
    """Refuse an input that makes no sense; every stage begins with this, and so should a port's.

    Raises:
        ValueError: a shape does not fit, a value is not finite, or a token, position, layer or number does not exist.
    """
    _require(dtype in DTYPES, f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    sizes = {"d": WIDTH, "L": BLOCKS} if stage in ON_THE_TOY else {}
    for name, axes in AXES[stage].items():
        shape, expected = np.shape(inputs[name]), f"({', '.join(str(sizes.get(axis, axis)) for axis in axes.split())})"
        fits = len(shape) == len(axes.split()) and 0 not in shape
        # setdefault: the first array with an axis says how long it is
        fits = fits and all(sizes.setdefault(axis, n) == n for axis, n in zip(axes.split(), shape, strict=True))
        _require(fits, f"{name} has the shape {shape}; expected {expected}, no axis empty. Nothing is broadcast")
    for name, value in inputs.items():
        if name in FINITE:
            bad = int((~np.isfinite(value)).sum())
            _require(not bad, f"{name} holds {bad} NaN or infinite values; did an earlier step overflow?")
        elif name in TOKEN_IDS:
            wrong = [i for i in np.ravel(value).tolist() if i not in range(VOCABULARY)]
            _require(not wrong, f"{name} holds {wrong}; token ids are whole numbers from 0 to {VOCABULARY - 1}")
        elif name == "attention_mask":
            rows = [row == sorted(row) and row[-1] == 1 and row[0] in (0, 1) for row in np.atleast_2d(value).tolist()]
            _require(all(rows), f"attention_mask is {np.asarray(value).tolist()}; expected 0s (padding), then 1s")
        elif name == "eligible":
            _require(np.isin(value, (0, 1)).all(), "eligible must hold 0 and 1 only")
        elif name == "quadrature":
            known = get_args(Quadrature)
            _require(value in known, f"quadrature is {value!r}; expected one of {', '.join(known)}")
        elif name in ("k", "m"):
            counts = isinstance(value, (int, np.integer)) and value >= 1
            _require(counts, f"{name} is {value!r}; expected a whole number of at least 1")
        elif name in ("pos", "neg"):
            wrong = [j for j in value if j not in range(sizes["T"])]
            _require(not wrong, f"{name} holds {wrong}; expected tokens from 0 to {sizes['T'] - 1}, padding counted")
        elif name == "layers":
            different = len(set(value)) == len(value) and set(value) <= set(range(BLOCKS))
            _require(different, f"layers is {list(value)}; expected different numbers from 0 to {BLOCKS - 1}")


def _require(condition: bool | np.bool_, message: str) -> None:
    if not condition:
        raise ValueError(message)


def refusing(stage: Stage) -> Stage:
    """The stage with `check` before it."""

    @functools.wraps(stage)
    def checked(*, dtype: str, **inputs: Any) -> Values:
        check(stage.__name__.rstrip("_"), dtype, **inputs)
        return stage(**inputs, dtype=dtype)

    return checked


@functools.cache
def toy_in(dtype: str) -> Toy:
    """The toy decoder in a dtype, made once."""
    return Toy(toy_weights(), DTYPES[dtype])


@refusing
def objective(*, x: np.ndarray, attention_mask: np.ndarray, y_pos: np.ndarray, y_neg: np.ndarray, dtype: str) -> Values:
    """Eq. (1) on the toy decoder."""
    model = toy_in(dtype)
    encoded = model.encoded(tensor(x, dtype), whole(attention_mask))
    embeds = encoded.embeds[None]
    pos, neg = (log_prob(model, encoded, embeds, y=whole(y)) for y in (y_pos, y_neg))
    return {"log_p_pos": pos.item(), "log_p_neg": neg.item(), "f": (pos - neg).item()}


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
    found = integrated_gradients(
        lambda embeds: preference(model, encoded, embeds, y_pos=pos, y_neg=neg),
        encoded.embeds,
        tensor(baseline, dtype),
        m=m,
        quadrature=quadrature,  # type: ignore[arg-type]
    )
    return {"a": array(found.a)}


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
    model = toy_in(dtype)
    logits, tokens = [], []
    with torch.no_grad(), Steering(model.blocks, tensor(v, dtype), lam=lam, layers=layers):
        for row, mask, known in zip(whole(ids), whole(attention_mask), whole(forced), strict=True):
            encoded = model.encode(row.tolist(), mask.tolist())
            logits.append(model.logits(encoded, encoded.embeds[None], known)[0])
            tokens.append(generate_greedy(model, encoded, n=len(known)))
    return {"logits": array(torch.stack(logits)), "tokens": np.array(tokens)}


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
HEADERS: dict[str, str] = {
    "objective": "Eq. (1): summed log-probabilities of both answers and their difference, in nats.",
    "attribution": "Eq. (2): one score per prompt token, in nats; the given quadrature, never a node at 0.",
    "selection": "Eq. (3): at most k tokens of strictly the right sign, strongest first, ties to the lower index.",
    "contrast": "Eq. (4): shifts of the last prompt token's state after every block when a set is masked.",
    "aggregation": "Eq. (5), (6): first component of the centred shifts, unit length, signed by their mean; v.",
    "steering": "Eq. (7), (8): the vector added, every token's norm restored.",
    "generation": "Sect. 3.3: logits of the steered decoder for a given continuation, and its own greedy one.",
}
"""What heads each stage's stored file."""


def run_oracle(stage: str, inputs: Mapping[str, Any], dtype: str = "float64") -> Values:
    """The oracle's outputs of one stage."""
    return ORACLE[stage](**inputs, dtype=dtype)


def tensor(values: Any, dtype: str) -> torch.Tensor:
    """An array in a dtype."""
    return torch.from_numpy(np.array(values, dtype=np.float64)).to(DTYPES[dtype])


def whole(values: Any) -> torch.Tensor:
    """Whole numbers, such as token ids and masks."""
    return torch.from_numpy(np.array(values, dtype=np.int64))


def array(values: torch.Tensor) -> np.ndarray:
    """float64, whatever the dtype was."""
    return values.detach().double().numpy()
