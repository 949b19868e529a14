"""The second oracle's options: what `options` computes once more, in NumPy, slowly, and all stages beside them.

Written from the words of `options`, like `second_oracle`, whose parts it uses; no torch, nothing of the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from grains_ref.conformance.second_batches import attribution_batch, contrast_batch, objective_batch, same_length
from grains_ref.conformance.second_decoder import (
    BLOCKS,
    DTYPES,
    Features,
    View,
    embed,
    float_of,
    logits_of,
    prompt_in,
    run,
    seen_of,
    view_of,
)
from grains_ref.conformance.second_oracle import (
    NAME,
    NEGLIGIBLE,
    aggregation,
    attribution,
    check_strength,
    contrast,
    eigenvectors,
    generation,
    log_p_of,
    log_prob_of,
    next_logits,
    objective,
    quadrature_of,
    selection,
    steering,
)

__all__ = [
    "DTYPES",
    "NAME",
    "aggregation",
    "attribution",
    "attribution_batch",
    "contrast",
    "contrast_batch",
    "generation",
    "objective",
    "objective_batch",
    "selection",
    "steering",
]


# ------------------------------------------------------------------------------------------- objective
def objective_qk_norm(*, dtype: str, **given: Any) -> dict[str, Any]:
    """Heads of q and k normed."""
    return _objective_with(Features(qk_norm=True), dtype=dtype, **given)


def objective_biases(*, dtype: str, **given: Any) -> dict[str, Any]:
    """Biases in q, k and v."""
    return _objective_with(Features(biases=True), dtype=dtype, **given)


def objective_sliding_window(*, window: int, dtype: str, **given: Any) -> dict[str, Any]:
    """Some blocks see the last tokens only."""
    if window < 1:
        raise ValueError(f"window is {window}; a token sees at least itself")
    return _objective_with(Features(window=window), dtype=dtype, **given)


def objective_soft_caps(*, attention_cap: float, logits_cap: float, dtype: str, **given: Any) -> dict[str, Any]:
    """Scores and logits capped."""
    if not (0 < attention_cap < math.inf and 0 < logits_cap < math.inf):
        raise ValueError(f"caps are {attention_cap} and {logits_cap}; expected positive numbers")
    return _objective_with(Features(attention_cap=attention_cap, logits_cap=logits_cap), dtype=dtype, **given)


def objective_scaled_embeddings(*, scale: float, dtype: str, **given: Any) -> dict[str, Any]:
    """What is looked up is scaled."""
    if not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}; expected a positive number")
    return _objective_with(Features(scale=scale), dtype=dtype, **given)


def _objective_with(
    features: Features, *, x: Any, attention_mask: Any, y_pos: Any, y_neg: Any, dtype: str
) -> dict[str, Any]:
    prompt, seen = prompt_in(x, attention_mask, dtype)
    log_p = []
    for y in (y_pos, y_neg):
        if len(y) == 0:
            raise ValueError("a response must have at least one token")
        sequence = np.concatenate([prompt, features.scale * embed(y, dtype)]).astype(prompt.dtype)
        states = run(sequence, view_of([*seen, *[1] * len(y)]), dtype, features=features)
        rows = [logits_of(states[len(prompt) + r - 1], dtype, features) for r in range(len(y))]
        log_p.append(sum(log_p_of(logits, token) for logits, token in zip(rows, y, strict=True)))
    return {"log_p_pos": log_p[0], "log_p_neg": log_p[1], "f": log_p[0] - log_p[1]}


# ------------------------------------------------------------------------------------------- attribution
def _slope(x: np.ndarray, seen: Sequence[int], y_pos: Any, y_neg: Any, dtype: str, view: Any = None) -> np.ndarray:
    """The gradient of f, (T, d); view: number of response tokens -> `View`."""
    parts = [log_prob_of(x, seen, y, dtype, view and view(len(y)))[1] for y in (y_pos, y_neg)]
    return parts[0] - parts[1]


def _along(x: np.ndarray, start: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    return np.array([(x[j] - start[j]) @ gradient[j] for j in range(len(x))])


def attribution_gradient(
    *, x: Any, baseline: Any, attention_mask: Any, y_pos: Any, y_neg: Any, dtype: str
) -> dict[str, Any]:
    """First order, at x."""
    prompt, seen = prompt_in(x, attention_mask, dtype)
    start, _ = prompt_in(baseline, attention_mask, dtype, name="baseline")
    return {"a": _along(prompt, start, _slope(prompt, seen, y_pos, y_neg, dtype))}


def attribution_smoothgrad(
    *, x: Any, baseline: Any, attention_mask: Any, y_pos: Any, y_neg: Any, noise: Any, dtype: str
) -> dict[str, Any]:
    """First order, the gradient averaged around x."""
    prompt, seen = prompt_in(x, attention_mask, dtype)
    start, _ = prompt_in(baseline, attention_mask, dtype, name="baseline")
    samples = np.asarray(noise, dtype=float_of(dtype))
    if samples.ndim != 3 or len(samples) == 0 or samples.shape[1:] != prompt.shape or not np.isfinite(samples).all():
        raise ValueError(f"noise must be (n, T, d), n >= 1, and finite; got {samples.shape}")
    total = sum(_slope(prompt + sample, seen, y_pos, y_neg, dtype) for sample in samples)
    return {"a": _along(prompt, start, np.asarray(total) / len(samples))}


def attribution_random(*, x: Any, attention_mask: Any, scores: Any, dtype: str) -> dict[str, Any]:
    """What was drawn."""
    prompt, _ = prompt_in(x, attention_mask, dtype)
    drawn = np.array(scores, dtype=float_of(dtype))
    if drawn.shape != (len(prompt),) or not np.isfinite(drawn).all():
        raise ValueError(f"scores must be ({len(prompt)},) and finite; got {drawn.shape}")
    return {"a": drawn}


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
) -> dict[str, Any]:
    """log P(y_pos) instead of the preference."""
    prompt, seen = prompt_in(x, attention_mask, dtype)
    start, _ = prompt_in(baseline, attention_mask, dtype, name="baseline")
    log_prob_of(prompt, seen, y_neg, dtype)  # refuses what makes no sense
    if method not in ("integrated_gradients", "gradient"):
        raise ValueError(f"method is {method!r}; expected integrated_gradients or gradient")
    rule = [(1.0, 1.0)] if method == "gradient" else quadrature_of(quadrature, m)
    quadrature_of(quadrature, m)
    total = np.zeros_like(prompt)
    for alpha, weight in rule:
        total += weight * log_prob_of(start + alpha * (prompt - start), seen, y_pos, dtype)[1]
    return {"a": _along(prompt, start, total)}


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
) -> dict[str, Any]:
    """Positions in three axes, and a picture whose tokens see each other."""
    prompt, seen = prompt_in(x, attention_mask, dtype)
    start, _ = prompt_in(baseline, attention_mask, dtype, name="baseline")
    places, types = np.asarray(positions), np.asarray(token_types)
    if places.shape != (3, len(prompt)) or types.shape != (len(prompt),) or not set(types.tolist()) <= {0, 1}:
        raise ValueError(f"positions must be (3, T), token_types (T,) of 0 and 1; got {places.shape}, {types.shape}")
    if places.min() < 0:
        raise ValueError(f"positions must not be negative; got {places.tolist()}")

    def view(new: int) -> View:
        """Prompt and `new` tokens after it."""
        plain = view_of([*seen, *[1] * new])
        where = [tuple(int(axis[t]) for axis in places) for t in range(len(prompt))]
        where += [(int(places.max()) + 1 + r,) * 3 for r in range(new)]
        picture = [t for t in range(len(prompt)) if types[t] and seen[t]]
        visible = [
            sorted({*others, *picture}) if t < len(prompt) and types[t] else others
            for t, others in enumerate(plain.visible)
        ]
        return View(where, visible)

    total = np.zeros_like(prompt)
    for alpha, weight in quadrature_of(quadrature, m):
        total += weight * _slope(start + alpha * (prompt - start), seen, y_pos, y_neg, dtype, view)
    return {"a": _along(prompt, start, total)}


def attribution_baselines(
    *, x: Any, kinds: Sequence[str], embeddings: Any, name: str, token: int, dtype: str
) -> dict[str, Any]:
    """One row after the other."""
    rows, table = np.array(x, dtype=float_of(dtype)), np.asarray(embeddings, dtype=float_of(dtype))
    if rows.ndim != 2 or table.ndim != 2 or rows.shape[1] != table.shape[1] or len(kinds) != len(rows):
        raise ValueError(f"x (T, d), kinds (T,) and embeddings (V, d) do not fit: {rows.shape}, {table.shape}")
    if not 0 <= token < len(table):
        raise ValueError(f"token is {token}; there are {len(table)} embeddings")
    if name not in ("zero", "mean", "token"):
        raise ValueError(f"name is {name!r}; expected zero, mean or token")
    picture = [row for row, kind in zip(rows, kinds, strict=True) if kind == "image"]
    baselines = []
    for kind in kinds:
        if name == "zero":
            baselines.append(0 * table[0])
        elif name == "token":
            baselines.append(table[token])
        else:
            among = picture if kind == "image" else table
            baselines.append(
                np.array([math.fsum(float(row[c]) for row in among) / len(among) for c in range(rows.shape[1])])
            )
    return {"baseline": np.array(baselines, dtype=float_of(dtype))}


# ------------------------------------------------------------------------------------- selection, contrast
def selection_eligible(*, a: Any, kinds: Sequence[str], rules: Sequence[str], k: int, dtype: str) -> dict[str, Any]:
    """Which tokens stand to election, and which are elected."""
    if len(kinds) != len(a):
        raise ValueError(f"{len(kinds)} kinds for {len(a)} scores")
    leaves_out = {"text": "image", "image": "text template special", "content": "template special"}
    leaves_out |= {"no_special": "special", "not_last": ""}
    eligible = []
    for j, kind in enumerate(kinds):
        if kind not in ("text", "image", "template", "special", "pad"):
            raise ValueError(f"there is no kind {kind!r}")
        out = kind == "pad" or any(kind in leaves_out[rule].split() for rule in rules)
        eligible.append(int(not out and not ("not_last" in rules and j == len(kinds) - 1)))
    chosen = selection(a=a, eligible=np.array(eligible), k=k, dtype=dtype)
    return {"eligible": eligible, **chosen}


# ------------------------------------------------------------------------------------------- aggregation
def aggregation_uncentred(*, delta_pos: Any, delta_neg: Any, dtype: str) -> dict[str, Any]:
    """The mean on the first eigenvector of the shifts' inner products with each other."""
    return _both(delta_pos, delta_neg, dtype, lambda D, side: _mean_on(D, eigenvectors(D)[1][:, -1:]))


def aggregation_mean(*, delta_pos: Any, delta_neg: Any, dtype: str) -> dict[str, Any]:
    """The mean."""
    return _both(delta_pos, delta_neg, dtype, lambda D, side: D.sum(0) / len(D))


def aggregation_weighted_mean(
    *, delta_pos: Any, delta_neg: Any, weights_pos: Any, weights_neg: Any, dtype: str
) -> dict[str, Any]:
    """The weighted mean."""
    weights = {"v_pos": weights_pos, "v_neg": weights_neg}
    for given in weights.values():
        values = np.asarray(given, float)
        if values.shape != (len(delta_pos),) or not np.isfinite(values).all() or values.min() < 0 or values.sum() == 0:
            raise ValueError(f"weights must be ({len(delta_pos)},), not negative and not all zero; got {given}")

    def mean(D: np.ndarray, side: str) -> np.ndarray:
        share = np.asarray(weights[side], dtype=float_of(dtype)).astype(float)
        return np.asarray(sum(w * row for w, row in zip(share, D, strict=True))) / share.sum()

    return _both(delta_pos, delta_neg, dtype, mean)


def aggregation_components(*, delta_pos: Any, delta_neg: Any, components: int, dtype: str) -> dict[str, Any]:
    """The mean on the span of the first principal components."""
    if components < 1:
        raise ValueError(f"components is {components}; expected at least one")

    def on_span(D: np.ndarray, side: str) -> np.ndarray:
        variances, directions = eigenvectors(D - D.sum(0) / len(D))
        size = math.sqrt((D * D).sum())
        last = [i for i in range(len(variances)) if variances[i] > (NEGLIGIBLE * size) ** 2][-components:]
        if not last:
            raise ValueError("the shifts are all equal and have no principal component")
        return _mean_on(D, directions[:, last])

    return _both(delta_pos, delta_neg, dtype, on_span)


def _mean_on(D: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """The mean shift, projected on the columns of a basis."""
    mean = D.sum(0) / len(D)
    return np.asarray(sum((mean @ u) * u for u in basis.T))


def _both(
    delta_pos: Any, delta_neg: Any, dtype: str, direction: Callable[[np.ndarray, str], np.ndarray]
) -> dict[str, Any]:
    """A direction per side and layer, to unit length, and their difference."""
    if np.shape(delta_pos) != np.shape(delta_neg) or np.ndim(delta_pos) != 3 or 0 in np.shape(delta_pos):
        raise ValueError(f"shifts must be (N, L, d) on both sides; got {np.shape(delta_pos)}, {np.shape(delta_neg)}")
    sides = {}
    for name, shifts in (("v_pos", delta_pos), ("v_neg", delta_neg)):
        D = np.asarray(shifts, dtype=float_of(dtype)).astype(np.float64)
        if not np.isfinite(D).all():
            raise ValueError(f"{name}: a shift is not finite")
        rows = []
        for layer in range(D.shape[1]):
            size = math.sqrt((D[:, layer] ** 2).sum())
            v = direction(D[:, layer], name) if size else np.zeros(D.shape[2])
            length = math.sqrt(v @ v)
            if length <= NEGLIGIBLE * size / math.sqrt(len(D)):
                raise ValueError(f"{name}, layer {layer}: no mean shift to take a direction from")
            rows.append(v / length)
        sides[name] = np.array(rows).astype(float_of(dtype))
    return {**sides, "v": sides["v_pos"] - sides["v_neg"]}


# ------------------------------------------------------------------------------------------- generation
def generation_partial(*, v: Any, layers: Sequence[int], dtype: str, **given: Any) -> dict[str, Any]:
    """Every block's own row, wherever it stands."""
    if len(v) != len(layers):
        raise ValueError(f"{len(v)} vectors for {len(layers)} layers")
    by_block = dict(zip(layers, np.asarray(v, float), strict=True))
    if len(by_block) < len(layers) or not set(by_block) <= set(range(BLOCKS)):
        raise ValueError(f"layers must be different numbers from 0 to {BLOCKS - 1}; got {list(layers)}")
    nothing = np.zeros(np.shape(v)[1])
    everywhere = np.array([by_block.get(block, nothing) for block in range(BLOCKS)])
    return generation(v=everywhere, layers=sorted(layers), dtype=dtype, **given)


def generation_tuples(*, dtype: str, **given: Any) -> dict[str, Any]:
    """What a block gives besides h changes nothing."""
    return generation(dtype=dtype, **given)


def generation_end(*, end: Sequence[int], dtype: str, **given: Any) -> dict[str, Any]:
    """Cut off after the first end."""
    embed(list(end), dtype)  # refuses what is outside the vocabulary
    answer = generation(dtype=dtype, **given)
    for row_tokens in answer["tokens"]:
        has_ended = False
        for step, token in enumerate(row_tokens.tolist()):
            if has_ended:
                row_tokens[step] = 0
            has_ended = has_ended or token in end
    return answer


def generation_beams(
    *, ids: Any, attention_mask: Any, v: Any, lam: float, layers: Sequence[int], beams: int, n: int, dtype: str
) -> dict[str, Any]:
    """Beams as a dictionary from what was said to its log-probability."""
    vectors = np.asarray(v, dtype=float_of(dtype))
    check_strength(vectors, lam)
    if beams < 1 or n < 1:
        raise ValueError(f"beams and n must be at least 1; got {beams} and {n}")
    if len(set(layers)) != len(layers) or not set(layers) <= set(range(BLOCKS)) or len(vectors) != BLOCKS:
        raise ValueError(f"layers must be different numbers from 0 to {BLOCKS - 1}; got {list(layers)}")
    steered = {block: vectors[block] for block in layers}
    same_length(ids, attention_mask)
    tokens, log_p = [], []
    for row, mask in zip(ids, attention_mask, strict=True):
        if len(row) != len(mask):
            raise ValueError(f"a prompt of {len(row)} tokens, and a mask of {len(mask)}")
        leading: dict[tuple[int, ...], float] = {(): 0.0}
        for _ in range(n):
            longer: dict[tuple[int, ...], float] = {}
            for so_far, total in leading.items():  # the best one first
                logits = next_logits(row, seen_of(mask), so_far, steered, lam, dtype)
                longer |= {(*so_far, token): total + log_p_of(logits, token) for token in range(len(logits))}
            best = sorted(longer, key=lambda so_far: longer[so_far], reverse=True)[:beams]  # equal ones stay in order
            leading = {so_far: longer[so_far] for so_far in best}
        first = next(iter(leading))
        tokens.append(list(first))
        log_p.append(leading[first])
    return {"tokens": np.array(tokens), "log_p": np.array(log_p)}
