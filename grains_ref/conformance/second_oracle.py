"""The second oracle: the seven stages once more, in NumPy, slowly.

`grains_ref.grains` decides what is right; this module is there so that a bug in it cannot hide. It was written from the
paper's equations and docs/method.md and shares nothing with `grains`, `stages` or `toy`: no torch, one state at a time,
loops over examples, steps, layers, heads and positions, a backward pass by hand, quadrature nodes by Newton's method,
principal components as eigenvectors of a scatter matrix. Its test prints how well the two agree. The decoder is in
`second_decoder`, the options are in `second_options`.

Names, arguments and results of the stages are those of `stages`. Everything is computed in the dtype asked for, float64
or float32, but components always in float64. What has no answer raises ValueError.

Axes: S positions of a sequence (padding, prompt, response), T of them prompt, d width, L blocks, N examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from grains_ref.conformance.second_decoder import (
    BLOCKS,
    WIDTH,
    Arrays,
    Ids,
    View,
    block_back,
    block_weights,
    embed,
    float_of,
    logits_of,
    prompt_in,
    rms_norm_back,
    run,
    seen_of,
    softmax,
    view_of,
    weights_in,
)
from grains_ref.conformance.second_decoder import (
    DTYPES as DTYPES,
)

NAME = "second oracle (NumPy, loops)"

NEGLIGIBLE = 1e-6  # shifts this small beside all shifts of the layer are taken for rounding errors


# ------------------------------------------------------------------------------------------- the stages
def objective(
    *, x: np.ndarray, attention_mask: np.ndarray, y_pos: np.ndarray, y_neg: np.ndarray, dtype: str
) -> dict[str, Any]:
    """Eq. (1): f = log P(y_pos | x) - log P(y_neg | x), in nats."""
    prompt, seen = prompt_in(x, attention_mask, dtype)
    (log_p_pos, _), (log_p_neg, _) = (log_prob_of(prompt, seen, y, dtype) for y in (y_pos, y_neg))
    return {"log_p_pos": float(log_p_pos), "log_p_neg": float(log_p_neg), "f": float(log_p_pos - log_p_neg)}


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
) -> dict[str, Any]:
    """Eq. (2), App. B: the gradient of f, averaged along the path from the baseline to x, times (x - baseline)."""
    prompt, seen = prompt_in(x, attention_mask, dtype)
    start, _ = prompt_in(baseline, attention_mask, dtype, name="baseline")
    mean_gradient = np.zeros_like(prompt)
    for alpha, weight in quadrature_of(quadrature, m):
        point = start + alpha * (prompt - start)
        (_, toward_pos), (_, toward_neg) = (log_prob_of(point, seen, y, dtype) for y in (y_pos, y_neg))
        gradient = toward_pos - toward_neg
        if not np.isfinite(gradient).all():
            raise ValueError(f"the gradient at alpha = {alpha:.3g} is not finite: is x finite, is a node too near 0?")
        mean_gradient += weight * gradient
    return {"a": np.array([(prompt[j] - start[j]) @ mean_gradient[j] for j in range(len(prompt))])}


def selection(*, a: np.ndarray, eligible: np.ndarray, k: int, dtype: str) -> dict[str, Any]:
    """Eq. (3): the k largest scores above 0 and the k smallest below; of equal scores the first."""
    scores = np.asarray(a, dtype=float_of(dtype))
    if scores.ndim != 1 or scores.shape != np.shape(eligible):
        raise ValueError(f"a and eligible must both be (T,); got {scores.shape} and {np.shape(eligible)}")
    if k < 1:
        raise ValueError(f"k is {k}; expected at least one token")
    for j, score in enumerate(scores):
        if not math.isfinite(score):
            raise ValueError(f"the score of token {j} is {score}; nothing can be ranked, eligible or not")

    def strongest(sign: int) -> list[int]:
        left = [j for j in range(len(scores)) if eligible[j] and sign * scores[j] > 0]
        chosen: list[int] = []
        while left and len(chosen) < k:
            best = left[0]
            for j in left:
                if sign * scores[j] > sign * scores[best]:  # strictly, so that the first of equals stays
                    best = j
            left.remove(best)
            chosen.append(best)
        return chosen

    return {"pos": strongest(+1), "neg": strongest(-1)}


def contrast(
    *, x: np.ndarray, baseline: np.ndarray, attention_mask: np.ndarray, pos: list[int], neg: list[int], dtype: str
) -> dict[str, Any]:
    """Eq. (4): what the last token's state after every block loses when one set of tokens becomes baseline."""
    prompt, seen = prompt_in(x, attention_mask, dtype)
    start, _ = prompt_in(baseline, attention_mask, dtype, name="baseline")
    whole = last_states(prompt, seen, dtype)
    shifts = {}
    for name, tokens in (("delta_pos", pos), ("delta_neg", neg)):
        masked = prompt.copy()
        for j in tokens:
            if not 0 <= j < len(prompt):
                raise ValueError(f"token {j} does not exist: the prompt has {len(prompt)}")
            masked[j] = start[j]
        # Without tokens the difference is zero by arithmetic: the same numbers in the same order.
        shifts[name] = whole - last_states(masked, seen, dtype)
    return shifts


def aggregation(*, delta_pos: np.ndarray, delta_neg: np.ndarray, dtype: str) -> dict[str, Any]:
    """Eq. (5) and (6): per layer the first principal component of either side, and their difference."""
    if np.shape(delta_pos) != np.shape(delta_neg):
        raise ValueError(f"the two sides differ in (N, L, d): {np.shape(delta_pos)}, {np.shape(delta_neg)}")
    sides = {}
    for name, shifts in (("v_pos", delta_pos), ("v_neg", delta_neg)):
        D = np.asarray(shifts, dtype=float_of(dtype)).astype(np.float64)
        if D.ndim != 3 or len(D) == 0:
            raise ValueError(f"the shifts must be (N, L, d) with N >= 1; got {D.shape}")
        components = [first_component(D[:, layer], f"{name}, layer {layer}") for layer in range(D.shape[1])]
        sides[name] = np.array(components).astype(float_of(dtype))
    return {**sides, "v": sides["v_pos"] - sides["v_neg"]}


def steering(*, h: np.ndarray, v: np.ndarray, lam: float, dtype: str) -> dict[str, Any]:
    """Eq. (7) and (8), token by token."""
    states, vector = np.array(h, dtype=float_of(dtype)), np.asarray(v, dtype=float_of(dtype))
    if states.ndim != 3 or vector.shape != states.shape[2:]:
        raise ValueError(f"h must be (B, T, d) and v (d,); got {states.shape} and {vector.shape}")
    if not np.isfinite(states).all():
        raise ValueError("a state in h is not finite")
    check_strength(vector, lam)
    for row in range(states.shape[0]):
        for t in range(states.shape[1]):
            states[row, t] = steer_state(states[row, t], vector, lam)
    return {"h": states}


def generation(
    *,
    ids: np.ndarray,
    attention_mask: np.ndarray,
    v: np.ndarray,
    lam: float,
    layers: Sequence[int],
    forced: np.ndarray,
    dtype: str,
) -> dict[str, Any]:
    """Sect. 3.3: one row at a time, one token at a time, everything computed anew for each; no cache."""
    vectors = np.asarray(v, dtype=float_of(dtype))
    if vectors.shape != (BLOCKS, WIDTH):
        raise ValueError(f"v must be {(BLOCKS, WIDTH)}, one vector per block; got {vectors.shape}")
    check_strength(vectors, lam)
    if len(set(layers)) != len(layers) or not set(layers) <= set(range(BLOCKS)):
        raise ValueError(f"layers must be different numbers from 0 to {BLOCKS - 1}; got {list(layers)}")
    if np.shape(ids) != np.shape(attention_mask) or len(ids) != len(forced):
        raise ValueError(f"rows do not fit: {np.shape(ids)}, {np.shape(attention_mask)}, {np.shape(forced)}")
    if np.ndim(forced) != 2 or np.size(forced) == 0:
        raise ValueError(f"forced must be (B, n) with n >= 1; got {np.shape(forced)}")

    steered = {block: vectors[block] for block in layers}
    logits, tokens = [], []
    for row, mask, known in zip(ids, attention_mask, forced, strict=True):
        mask = seen_of(mask)
        embed(known, dtype)  # refuses what is outside the vocabulary, the last token too
        logits.append([next_logits(row, mask, known[:r], steered, lam, dtype) for r in range(len(known))])
        so_far: list[int] = []
        for _ in known:
            so_far.append(int(np.argmax(next_logits(row, mask, so_far, steered, lam, dtype))))  # the first of equals
        tokens.append(so_far)
    return {"logits": np.array(logits), "tokens": np.array(tokens)}


# ---------------------------------------------------------------------------------- parts of the stages
def log_prob_of(
    prompt: np.ndarray, seen: Sequence[int], response: Ids, dtype: str, view: View | None = None
) -> tuple[float, np.ndarray]:
    """log P(response | prompt) and its gradient with respect to the prompt's embeddings, (T, d).

    view: of prompt and response; default: that of padding on the left.
    """
    if np.ndim(response) != 1 or len(response) == 0:
        raise ValueError(f"a response must be a vector of at least one token id; got shape {np.shape(response)}")
    tape: list[Arrays] = []
    n, w = len(prompt), weights_in(dtype)
    sequence = np.concatenate([prompt, embed(response, dtype)])
    h = run(sequence, view or view_of([*seen, *[1] * len(response)]), dtype, tape=tape)
    total, d_h = 0.0, np.zeros_like(h)
    for r, token in enumerate(response):
        row = n + r - 1  # the position before a token predicts it
        logits = logits_of(h[row], dtype)
        total += log_p_of(logits, token)
        d_logits = -softmax(logits)
        d_logits[token] += 1
        d_h[row] = rms_norm_back(h[row], w["norm"], w["head"].T @ d_logits)
    for block in reversed(range(BLOCKS)):
        d_h = block_back(block_weights(block, dtype), tape[block], d_h)
    return total, d_h[:n]


def log_p_of(logits: np.ndarray, token: int) -> float:
    """log P of one token, in nats."""
    return float(logits[token] - logits.max() - np.log(np.exp(logits - logits.max()).sum()))


def next_logits(
    prompt_ids: Ids,
    mask: Sequence[int],
    so_far: Sequence[int],
    vectors: Mapping[int, np.ndarray],
    lam: float,
    dtype: str,
) -> np.ndarray:
    """Logits (V,) of what follows, the blocks in `vectors` steered at every position."""

    def edit(block: int, state: np.ndarray) -> np.ndarray:
        return steer_state(state, vectors[block], lam) if block in vectors else state

    states = run(embed([*prompt_ids, *so_far], dtype), view_of([*mask, *[1] * len(so_far)]), dtype, edit)
    return logits_of(states[-1], dtype)


def last_states(prompt: np.ndarray, seen: Sequence[int], dtype: str) -> np.ndarray:
    """The last token's state after every block, (L, d)."""
    states = np.zeros((BLOCKS, WIDTH), prompt.dtype)

    def note(block: int, state: np.ndarray) -> np.ndarray:
        states[block] = state  # positions come in order, so the last one stays
        return state

    run(prompt, view_of(seen), dtype, note)
    return states


def quadrature_of(name: str, m: int) -> list[tuple[float, float]]:
    """Pairs (alpha, weight) on [0, 1]; the weights sum to 1."""
    if m < 1:
        raise ValueError(f"m is {m}; expected at least one step")
    if name == "right":
        return [(i / m, 1 / m) for i in range(1, m + 1)]
    if name == "midpoint":
        return [((2 * i - 1) / (2 * m), 1 / m) for i in range(1, m + 1)]
    if name != "gauss_legendre":
        raise ValueError(f"quadrature is {name!r}; expected right, midpoint or gauss_legendre")
    rule = []
    for i in range(1, m + 1):
        z = math.cos(math.pi * (i - 0.25) / (m + 0.5))  # close to the i-th root of the Legendre polynomial P_m
        for _ in range(10):  # Newton; it converges quadratically
            p, before = 1.0, 0.0
            for n in range(1, m + 1):  # n P_n = (2n - 1) z P_(n-1) - (n - 1) P_(n-2)
                p, before = ((2 * n - 1) * z * p - (n - 1) * before) / n, p
            slope = m * (before - z * p) / (1 - z * z)
            z -= p / slope
        rule.append(((1 + z) / 2, 1 / ((1 - z * z) * slope * slope)))
    return rule


def first_component(D: np.ndarray, where: str) -> np.ndarray:
    """Eq. (5) for one layer, (N, d) -> (d,): the direction of greatest variance, signed by the mean."""
    if not np.isfinite(D).all():
        raise ValueError(f"{where}: a shift is not finite")
    n = len(D)
    size = math.sqrt((D * D).sum())
    if size == 0:
        raise ValueError(f"{where}: all {n} shifts are zero")
    mean = D.sum(0) / n
    variances, directions = eigenvectors(D - mean)
    if variances[-1] <= (NEGLIGIBLE * size) ** 2:
        raise ValueError(f"{where}: the {n} shifts are all equal and have no principal component")
    u = directions[:, -1]
    along_mean = float(u @ mean)
    if abs(along_mean) <= NEGLIGIBLE * size / math.sqrt(n):
        raise ValueError(f"{where}: the mean shift is zero along the component, so its sign is undefined")
    return math.copysign(1.0, along_mean) * u / math.sqrt(u @ u)


def eigenvectors(D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of the scatter matrix of D (N, d), ascending, and its eigenvectors as columns, of length 1."""
    d = D.shape[1]
    if d > 100:  # wide: the matrix of inner products has the same eigenvalues, and is small
        inner = np.array([[row @ other for other in D] for row in D])
        variances, shares = np.linalg.eigh(inner)
        vectors = D.T @ shares[:, -1:]  # of the last one alone; the first ones may belong to zero
        return variances[-1:], vectors / np.sqrt((vectors * vectors).sum())
    scatter = np.zeros((d, d))
    for shift in D:
        scatter += np.outer(shift, shift)
    variances, directions = np.linalg.eigh(scatter)
    return variances, directions


def steer_state(h: np.ndarray, v: np.ndarray, lam: float) -> np.ndarray:
    """One state: h + lam v, brought back to the length of h. Zero stays zero; with nothing to scale h is kept."""
    shifted = h + lam * v
    length, shifted_length = np.sqrt((h * h).sum()), np.sqrt((shifted * shifted).sum())
    return shifted * (length / shifted_length) if shifted_length > 0 else h


def check_strength(v: np.ndarray, lam: float) -> None:
    """Refuse a strength or vectors that are not finite."""
    if not math.isfinite(lam) or not np.isfinite(v).all():
        raise ValueError(f"lam and v must be finite; lam is {lam}, v holds {(~np.isfinite(v)).sum()} other values")
