"""The second oracle: the seven stages once more, in NumPy, slowly.

`grains_ref.grains` decides what is right; this module is there so that a bug in it cannot hide. It was written from the
paper's equations and docs/method.md and shares nothing with `grains`, `stages` or `toy`: no torch, one state at a time,
loops over examples, steps, layers, heads and positions, a backward pass by hand, quadrature nodes by Newton's method,
principal components as eigenvectors of a scatter matrix. Its test prints how well the two agree.

Names, arguments and results of the stages are those of `stages`. Everything is computed in the dtype asked for, float64
or float32, but components always in float64. What has no answer raises ValueError.

Axes: S positions of a sequence (padding, prompt, response), T of them prompt, d width, L blocks, N examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

NAME = "second oracle (NumPy, loops)"
DTYPES = ("float64", "float32")

VOCABULARY, WIDTH, BLOCKS, HEADS, KV_HEADS, HEAD_DIM, INNER = 31, 13, 3, 4, 2, 6, 19
EPS, THETA = 1e-5, 100.0
NEGLIGIBLE = 1e-6  # shifts this small beside all shifts of the layer are taken for rounding errors

Arrays = dict[str, np.ndarray]
Ids = Sequence[int] | np.ndarray
Edit = Callable[[int, np.ndarray], np.ndarray]  # block number, one hidden state (d,) -> the state that replaces it


# ------------------------------------------------------------------------------------------- the stages
def objective(
    *, x: np.ndarray, attention_mask: np.ndarray, y_pos: np.ndarray, y_neg: np.ndarray, dtype: str
) -> dict[str, Any]:
    """Eq. (1): f = log P(y_pos | x) - log P(y_neg | x), in nats."""
    prompt, seen = _prompt(x, attention_mask, dtype)
    (log_p_pos, _), (log_p_neg, _) = (_log_prob(prompt, seen, y, dtype) for y in (y_pos, y_neg))
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
    prompt, seen = _prompt(x, attention_mask, dtype)
    start, _ = _prompt(baseline, attention_mask, dtype, name="baseline")
    mean_gradient = np.zeros_like(prompt)
    for alpha, weight in _quadrature(quadrature, m):
        point = start + alpha * (prompt - start)
        (_, toward_pos), (_, toward_neg) = (_log_prob(point, seen, y, dtype) for y in (y_pos, y_neg))
        gradient = toward_pos - toward_neg
        if not np.isfinite(gradient).all():
            raise ValueError(f"the gradient at alpha = {alpha:.3g} is not finite: is x finite, is a node too near 0?")
        mean_gradient += weight * gradient
    return {"a": np.array([(prompt[j] - start[j]) @ mean_gradient[j] for j in range(len(prompt))])}


def selection(*, a: np.ndarray, eligible: np.ndarray, k: int, dtype: str) -> dict[str, Any]:
    """Eq. (3): the k largest scores above 0 and the k smallest below; of equal scores the first."""
    scores = np.asarray(a, dtype=_float(dtype))
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
    prompt, seen = _prompt(x, attention_mask, dtype)
    start, _ = _prompt(baseline, attention_mask, dtype, name="baseline")
    whole = _last_states(prompt, seen, dtype)
    found = {}
    for name, tokens in (("delta_pos", pos), ("delta_neg", neg)):
        masked = prompt.copy()
        for j in tokens:
            if not 0 <= j < len(prompt):
                raise ValueError(f"token {j} does not exist: the prompt has {len(prompt)}")
            masked[j] = start[j]
        # Without tokens the difference is zero by arithmetic: the same numbers in the same order.
        found[name] = whole - _last_states(masked, seen, dtype)
    return found


def aggregation(*, delta_pos: np.ndarray, delta_neg: np.ndarray, dtype: str) -> dict[str, Any]:
    """Eq. (5) and (6): per layer the first principal component of either side, and their difference."""
    if np.shape(delta_pos) != np.shape(delta_neg):
        raise ValueError(f"the two sides differ in (N, L, d): {np.shape(delta_pos)}, {np.shape(delta_neg)}")
    sides = {}
    for name, shifts in (("v_pos", delta_pos), ("v_neg", delta_neg)):
        D = np.asarray(shifts, dtype=_float(dtype)).astype(np.float64)
        if D.ndim != 3 or len(D) == 0:
            raise ValueError(f"the shifts must be (N, L, d) with N >= 1; got {D.shape}")
        components = [_first_component(D[:, layer], f"{name}, layer {layer}") for layer in range(D.shape[1])]
        sides[name] = np.array(components).astype(_float(dtype))
    return {**sides, "v": sides["v_pos"] - sides["v_neg"]}


def steering(*, h: np.ndarray, v: np.ndarray, lam: float, dtype: str) -> dict[str, Any]:
    """Eq. (7) and (8), token by token."""
    states, vector = np.array(h, dtype=_float(dtype)), np.asarray(v, dtype=_float(dtype))
    if states.ndim != 3 or vector.shape != states.shape[2:]:
        raise ValueError(f"h must be (B, T, d) and v (d,); got {states.shape} and {vector.shape}")
    if not np.isfinite(states).all():
        raise ValueError("a state in h is not finite")
    _check_strength(vector, lam)
    for row in range(states.shape[0]):
        for t in range(states.shape[1]):
            states[row, t] = _steer(states[row, t], vector, lam)
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
    vectors = np.asarray(v, dtype=_float(dtype))
    if vectors.shape != (BLOCKS, WIDTH):
        raise ValueError(f"v must be {(BLOCKS, WIDTH)}, one vector per block; got {vectors.shape}")
    _check_strength(vectors, lam)
    if len(set(layers)) != len(layers) or not set(layers) <= set(range(BLOCKS)):
        raise ValueError(f"layers must be different numbers from 0 to {BLOCKS - 1}; got {list(layers)}")
    if np.shape(ids) != np.shape(attention_mask) or len(ids) != len(forced):
        raise ValueError(f"rows do not fit: {np.shape(ids)}, {np.shape(attention_mask)}, {np.shape(forced)}")
    if np.ndim(forced) != 2 or np.size(forced) == 0:
        raise ValueError(f"forced must be (B, n) with n >= 1; got {np.shape(forced)}")

    def edit(block: int, state: np.ndarray) -> np.ndarray:
        return _steer(state, vectors[block], lam) if block in layers else state

    def next_logits(prompt_ids: Sequence[int], mask: list[int], said: Sequence[int]) -> np.ndarray:
        embeds = _embed([*prompt_ids, *said], dtype)
        return _logits(_run(embeds, [*mask, *[1] * len(said)], dtype, edit)[-1], dtype)

    logits, tokens = [], []
    for row, mask, known in zip(ids, attention_mask, forced, strict=True):
        mask = _seen(mask)
        _embed(known, dtype)  # refuses what is outside the vocabulary, the last token too
        logits.append([next_logits(row, mask, known[:r]) for r in range(len(known))])
        said: list[int] = []
        for _ in known:
            said.append(int(np.argmax(next_logits(row, mask, said))))  # the first of equals
        tokens.append(said)
    return {"logits": np.array(logits), "tokens": np.array(tokens)}


# ---------------------------------------------------------------------------------- parts of the stages
def _log_prob(prompt: np.ndarray, seen: Sequence[int], response: Ids, dtype: str) -> tuple[float, np.ndarray]:
    """log P(response | prompt) and its gradient with respect to the prompt's embeddings, (T, d)."""
    if np.ndim(response) != 1 or len(response) == 0:
        raise ValueError(f"a response must be a vector of at least one token id; got shape {np.shape(response)}")
    tape: list[Arrays] = []
    n, w = len(prompt), _weights(dtype)
    sequence = np.concatenate([prompt, _embed(response, dtype)])
    h = _run(sequence, [*seen, *[1] * len(response)], dtype, tape=tape)
    total, d_h = 0.0, np.zeros_like(h)
    for r, token in enumerate(response):
        row = n + r - 1  # the position before a token predicts it
        logits = _logits(h[row], dtype)
        total += logits[token] - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        d_logits = -_softmax(logits)
        d_logits[token] += 1
        d_h[row] = _rms_norm_back(h[row], w["norm"], w["head"].T @ d_logits)
    for block in reversed(range(BLOCKS)):
        d_h = _block_back(_block_weights(block, dtype), tape[block], d_h)
    return total, d_h[:n]


def _last_states(prompt: np.ndarray, seen: Sequence[int], dtype: str) -> np.ndarray:
    """The last token's state after every block, (L, d)."""
    states = np.zeros((BLOCKS, WIDTH), prompt.dtype)

    def note(block: int, state: np.ndarray) -> np.ndarray:
        states[block] = state  # positions come in order, so the last one stays
        return state

    _run(prompt, seen, dtype, note)
    return states


def _quadrature(name: str, m: int) -> list[tuple[float, float]]:
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


def _first_component(D: np.ndarray, where: str) -> np.ndarray:
    """Eq. (5) for one layer, (N, d) -> (d,): the direction of greatest variance, signed by the mean."""
    if not np.isfinite(D).all():
        raise ValueError(f"{where}: a shift is not finite")
    n, d = D.shape
    size = math.sqrt((D * D).sum())
    if size == 0:
        raise ValueError(f"{where}: all {n} shifts are zero")
    mean = D.sum(0) / n
    scatter = np.zeros((d, d))
    for shift in D:
        scatter += np.outer(shift - mean, shift - mean)
    variances, directions = np.linalg.eigh(scatter)  # ascending
    if variances[-1] <= (NEGLIGIBLE * size) ** 2:
        raise ValueError(f"{where}: the {n} shifts are all equal and have no principal component")
    u = directions[:, -1]
    along_mean = float(u @ mean)
    if abs(along_mean) <= NEGLIGIBLE * size / math.sqrt(n):
        raise ValueError(f"{where}: the mean shift is zero along the component, so its sign is undefined")
    return math.copysign(1.0, along_mean) * u / math.sqrt(u @ u)


def _steer(h: np.ndarray, v: np.ndarray, lam: float) -> np.ndarray:
    """One state: h + lam v, brought back to the length of h. Zero stays zero; with nothing to scale h is kept."""
    shifted = h + lam * v
    length, shifted_length = np.sqrt((h * h).sum()), np.sqrt((shifted * shifted).sum())
    return shifted * (length / shifted_length) if shifted_length > 0 else h


def _check_strength(v: np.ndarray, lam: float) -> None:
    if not math.isfinite(lam) or not np.isfinite(v).all():
        raise ValueError(f"lam and v must be finite; lam is {lam}, v holds {(~np.isfinite(v)).sum()} other values")


# -------------------------------------------------------------------------------------------- the decoder
@cache
def _weights(dtype: str) -> Arrays:
    """The toy decoder's weights by their closed form; tensors are counted from 1 as they are listed here."""
    d, q, kv = WIDTH, HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    block = {"norm_1": (d,), "q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q)}
    block |= {"norm_2": (d,), "gate": (INNER, d), "up": (INNER, d), "down": (d, INNER)}
    shapes: dict[str, tuple[int, ...]] = {"embed": (VOCABULARY, d)}
    for number in range(BLOCKS):
        shapes |= {f"{number}.{name}": shape for name, shape in block.items()}
    shapes |= {"norm": (d,), "head": (VOCABULARY, d)}
    weights = {}
    for t, (name, shape) in enumerate(shapes.items(), start=1):
        entries = []
        for i in range(math.prod(shape)):
            if len(shape) == 1:
                entries.append(1 + ((5 * i**2 + t * i + 3 * t) % 17 - 8) / 16)
            else:
                entries.append(((37 * i**2 + t * i + 11 * t) % 257 - 128) / (128 if name == "embed" else 256))
        weights[name] = np.array(entries, dtype=_float(dtype)).reshape(shape)
    return weights


def _block_weights(block: int, dtype: str) -> Arrays:
    return {name[2:]: w for name, w in _weights(dtype).items() if name.startswith(f"{block}.")}


def _embed(ids: Ids, dtype: str) -> np.ndarray:
    """(S,) token ids -> (S, d)."""
    for token in ids:
        if not 0 <= token < VOCABULARY:
            raise ValueError(f"token id {token} is outside the vocabulary of {VOCABULARY}")
    return _weights(dtype)["embed"][np.asarray(ids, dtype=np.int64)]


def _logits(h: np.ndarray, dtype: str) -> np.ndarray:
    """The last block's output at one position, (d,) -> (V,)."""
    w = _weights(dtype)
    return w["head"] @ _rms_norm(h, w["norm"])


def _run(
    h: np.ndarray, seen: Sequence[int], dtype: str, edit: Edit | None = None, tape: list[Arrays] | None = None
) -> np.ndarray:
    """All blocks, (S, d) -> (S, d); `edit` replaces every block's output, `tape` gathers what a way back needs."""
    for block in range(BLOCKS):
        kept, h = _block(_block_weights(block, dtype), h, seen)
        if tape is not None:
            tape.append(kept)
        if edit is not None:
            h = np.array([edit(block, state) for state in h])
    return h


def _block(w: Arrays, h: np.ndarray, seen: Sequence[int]) -> tuple[Arrays, np.ndarray]:
    """One block, (S, d) -> (S, d), and its intermediate values for `_block_back`."""
    n = len(h)
    position = [max(sum(seen[: t + 1]) - 1, 0) for t in range(n)]  # from 0 at the first token that is no padding
    q = np.zeros((n, HEADS, HEAD_DIM), h.dtype)
    k, v = (np.zeros((n, KV_HEADS, HEAD_DIM), h.dtype) for _ in range(2))
    for t in range(n):
        x = _rms_norm(h[t], w["norm_1"])
        for j in range(HEADS):
            q[t, j] = _turn(_head(w["q"], j) @ x, position[t])
        for g in range(KV_HEADS):
            k[t, g], v[t, g] = _turn(_head(w["k"], g) @ x, position[t]), _head(w["v"], g) @ x
    p = np.zeros((HEADS, n, n), h.dtype)  # how much a position (first n) attends to another (second n)
    middle, out, gate, up = h.copy(), h.copy(), np.zeros((n, INNER), h.dtype), np.zeros((n, INNER), h.dtype)
    for t in range(n):
        visible = [s for s in range(t + 1) if seen[s] or s == t]
        heads = np.zeros(HEADS * HEAD_DIM, h.dtype)
        for j in range(HEADS):
            g = j * KV_HEADS // HEADS
            p[j, t, visible] = _softmax(k[visible, g] @ q[t, j] / math.sqrt(HEAD_DIM))
            heads[j * HEAD_DIM : (j + 1) * HEAD_DIM] = p[j, t, visible] @ v[visible, g]
        middle[t] = h[t] + w["o"] @ heads
        x = _rms_norm(middle[t], w["norm_2"])
        gate[t], up[t] = w["gate"] @ x, w["up"] @ x
        out[t] = middle[t] + w["down"] @ (gate[t] * _sigmoid(gate[t]) * up[t])
    kept = {"h": h, "position": np.array(position), "q": q, "k": k, "v": v, "p": p, "middle": middle}
    return kept | {"gate": gate, "up": up}, out


def _block_back(w: Arrays, kept: Arrays, d_out: np.ndarray) -> np.ndarray:
    """The way back through `_block`: the gradient at its output, (S, d) -> the gradient at its input, (S, d)."""
    q, k, v, p = kept["q"], kept["k"], kept["v"], kept["p"]
    n = len(d_out)
    d_middle, d_heads = d_out.copy(), np.zeros((n, HEADS, HEAD_DIM), d_out.dtype)
    for t in range(n):
        gate, up, d_inner = kept["gate"][t], kept["up"][t], w["down"].T @ d_out[t]
        sigma = _sigmoid(gate)
        d_gate = d_inner * up * (sigma + gate * sigma * (1 - sigma))
        d_up = d_inner * gate * sigma
        d_middle[t] += _rms_norm_back(kept["middle"][t], w["norm_2"], w["gate"].T @ d_gate + w["up"].T @ d_up)
        d_heads[t] = (w["o"].T @ d_middle[t]).reshape(HEADS, HEAD_DIM)
    d_q, d_k, d_v = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for t in range(n):
        for j in range(HEADS):
            g = j * KV_HEADS // HEADS
            d_p = v[:, g] @ d_heads[t, j]  # p is 0 where t must not look, and so is all that follows from it
            d_scores = p[j, t] * (d_p - p[j, t] @ d_p) / math.sqrt(HEAD_DIM)
            d_q[t, j] = d_scores @ k[:, g]
            d_k[:, g] += np.outer(d_scores, q[t, j])
            d_v[:, g] += np.outer(p[j, t], d_heads[t, j])
    d_h = d_middle.copy()
    for t in range(n):
        d_x, back = np.zeros(WIDTH, d_out.dtype), -int(kept["position"][t])  # the opposite turn undoes a turn
        for j in range(HEADS):
            d_x += _head(w["q"], j).T @ _turn(d_q[t, j], back)
        for g in range(KV_HEADS):
            d_x += _head(w["k"], g).T @ _turn(d_k[t, g], back) + _head(w["v"], g).T @ d_v[t, g]
        d_h[t] += _rms_norm_back(kept["h"][t], w["norm_1"], d_x)
    return d_h


def _rms_norm(h: np.ndarray, gain: np.ndarray) -> np.ndarray:
    return gain * h / np.sqrt((h * h).sum() / WIDTH + EPS)


def _rms_norm_back(h: np.ndarray, gain: np.ndarray, d_out: np.ndarray) -> np.ndarray:
    length = np.sqrt((h * h).sum() / WIDTH + EPS)
    d = gain * d_out
    return d / length - h * ((h * d).sum() / (WIDTH * length**3))


def _turn(z: np.ndarray, position: int) -> np.ndarray:
    """Rotary position of one head, (head_dim,): entry i turns together with entry i + head_dim / 2."""
    half, turned = HEAD_DIM // 2, z.copy()
    for i in range(half):
        angle = position * THETA ** (-i / half)
        c, s = math.cos(angle), math.sin(angle)
        turned[i], turned[i + half] = c * z[i] - s * z[i + half], s * z[i] + c * z[i + half]
    return turned


def _head(w: np.ndarray, j: int) -> np.ndarray:
    """The rows of a projection that make head j, (head_dim, d)."""
    return w[j * HEAD_DIM : (j + 1) * HEAD_DIM]


def _softmax(scores: np.ndarray) -> np.ndarray:
    grown = np.exp(scores - scores.max())
    return grown / grown.sum()


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(z / 2)) / 2  # 1 / (1 + exp(-z)) without its overflow


# --------------------------------------------------------------------------------------------- arguments
def _float(dtype: str) -> type[Any]:
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; the second oracle knows {' and '.join(DTYPES)}")
    return np.float64 if dtype == "float64" else np.float32


def _prompt(x: np.ndarray, mask: np.ndarray, dtype: str, name: str = "x") -> tuple[np.ndarray, list[int]]:
    """A prompt's embeddings (T, d) in the dtype asked for, and its attention mask as a list."""
    x = np.array(x, dtype=_float(dtype))
    if x.ndim != 2 or len(x) == 0 or x.shape[1] != WIDTH:
        raise ValueError(f"{name} must be (T, {WIDTH}) with T >= 1; got {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} holds NaN or infinite values")
    if np.shape(mask) != (len(x),):
        raise ValueError(f"attention_mask must be ({len(x)},), as {name} has {len(x)} tokens; got {np.shape(mask)}")
    return x, _seen(mask)


def _seen(mask: Sequence[int] | np.ndarray) -> list[int]:
    """An attention mask as a list: padding (0) on the left, then at least one token (1)."""
    seen = [int(one) for one in mask]
    tokens = sum(seen)
    if tokens == 0 or seen != [0] * (len(seen) - tokens) + [1] * tokens:
        raise ValueError(f"attention_mask is {seen}; expected 0s, then at least one 1")
    return seen
