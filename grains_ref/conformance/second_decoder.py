"""The toy decoder of the second oracle: NumPy, loops over heads and positions, a way back by hand.

Written from the docstring of `toy` and docs/porting.md; see `second_oracle`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

DTYPES = ("float64", "float32")
VOCABULARY, WIDTH, BLOCKS, HEADS, KV_HEADS, HEAD_DIM, INNER = 31, 13, 3, 4, 2, 6, 19
EPS, THETA = 1e-5, 100.0

Arrays = dict[str, np.ndarray]
Ids = Sequence[int] | np.ndarray
Edit = Callable[[int, np.ndarray], np.ndarray]  # block number, one hidden state (d,) -> the state that replaces it


class View(NamedTuple):
    """Where the S tokens of a sequence stand, and whom each sees."""

    position: list[tuple[int, ...]]  # of every token, one number per rotary pair
    visible: list[list[int]]  # the tokens that every token sees


class Features(NamedTuple):
    """What an option of the decoder adds; the way back knows the plain decoder only."""

    qk_norm: bool = False
    biases: bool = False
    window: int = 0
    attention_cap: float = 0.0
    logits_cap: float = 0.0
    scale: float = 1.0


PLAIN = Features()


def view_of(seen: Sequence[int]) -> View:
    """Padding on the left: positions count from 0 at the first token that is none, and everybody looks back."""
    places = [max(sum(seen[: t + 1]) - 1, 0) for t in range(len(seen))]
    visible = [[s for s in range(t + 1) if seen[s] or s == t] for t in range(len(seen))]
    return View([(place,) * (HEAD_DIM // 2) for place in places], visible)


@cache
def weights_in(dtype: str) -> Arrays:
    """The toy decoder's weights by their closed form; tensors are counted from 1 as they are listed here."""
    d, q, kv = WIDTH, HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    block = {"norm_1": (d,), "q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q)}
    block |= {"norm_2": (d,), "gate": (INNER, d), "up": (INNER, d), "down": (d, INNER)}
    shapes: dict[str, tuple[int, ...]] = {"embed": (VOCABULARY, d)}
    for number in range(BLOCKS):
        shapes |= {f"{number}.{name}": shape for name, shape in block.items()}
    shapes |= {"norm": (d,), "head": (VOCABULARY, d)}
    more = {"q_norm": (HEAD_DIM,), "k_norm": (HEAD_DIM,), "q_bias": (q,), "k_bias": (kv,), "v_bias": (kv,)}
    for number in range(BLOCKS):
        shapes |= {f"{number}.{name}": shape for name, shape in more.items()}
    weights = {}
    for t, (name, shape) in enumerate(shapes.items(), start=1):
        entries = []
        for i in range(math.prod(shape)):
            if len(shape) == 1 and not name.endswith("bias"):
                entries.append(1 + ((5 * i**2 + t * i + 3 * t) % 17 - 8) / 16)
            else:
                entries.append(((37 * i**2 + t * i + 11 * t) % 257 - 128) / (128 if name == "embed" else 256))
        weights[name] = np.array(entries, dtype=float_of(dtype)).reshape(shape)
    return weights


def block_weights(block: int, dtype: str) -> Arrays:
    """One block's weights by their names in it."""
    return {name[2:]: w for name, w in weights_in(dtype).items() if name.startswith(f"{block}.")}


def embed(ids: Ids, dtype: str) -> np.ndarray:
    """(S,) token ids -> (S, d)."""
    for token in ids:
        if not 0 <= token < VOCABULARY:
            raise ValueError(f"token id {token} is outside the vocabulary of {VOCABULARY}")
    return weights_in(dtype)["embed"][np.asarray(ids, dtype=np.int64)]


def logits_of(h: np.ndarray, dtype: str, features: Features = PLAIN) -> np.ndarray:
    """The last block's output at one position, (d,) -> (V,)."""
    w = weights_in(dtype)
    z = w["head"] @ _rms_norm(h, w["norm"])
    return features.logits_cap * np.tanh(z / features.logits_cap) if features.logits_cap else z


def run(
    h: np.ndarray,
    view: View,
    dtype: str,
    edit: Edit | None = None,
    tape: list[Arrays] | None = None,
    features: Features = PLAIN,
) -> np.ndarray:
    """All blocks, (S, d) -> (S, d); `edit` replaces every block's output, `tape` gathers what a way back needs."""
    for block in range(BLOCKS):
        seen_here = view
        if features.window and block in (0, 2):
            near = [[s for s in others if t - s < features.window] for t, others in enumerate(view.visible)]
            seen_here = View(view.position, near)
        taped, h = _block(block_weights(block, dtype), h, seen_here, features)
        if tape is not None:
            tape.append(taped)
        if edit is not None:
            h = np.array([edit(block, state) for state in h])
    return h


def _block(w: Arrays, h: np.ndarray, view: View, features: Features = PLAIN) -> tuple[Arrays, np.ndarray]:
    """One block, (S, d) -> (S, d), and its intermediate values for `block_back`."""
    n, position = len(h), view.position
    q = np.zeros((n, HEADS, HEAD_DIM), h.dtype)
    k, v = (np.zeros((n, KV_HEADS, HEAD_DIM), h.dtype) for _ in range(2))
    for t in range(n):
        x = _rms_norm(h[t], w["norm_1"])
        for j in range(HEADS):
            q[t, j] = _turn(_projected(w, "q", j, x, features), position[t])
        for g in range(KV_HEADS):
            k[t, g] = _turn(_projected(w, "k", g, x, features), position[t])
            v[t, g] = _projected(w, "v", g, x, features)
    p = np.zeros((HEADS, n, n), h.dtype)  # how much a position (first n) attends to another (second n)
    middle, out, gate, up = h.copy(), h.copy(), np.zeros((n, INNER), h.dtype), np.zeros((n, INNER), h.dtype)
    for t in range(n):
        visible = view.visible[t]
        heads = np.zeros(HEADS * HEAD_DIM, h.dtype)
        for j in range(HEADS):
            g = j * KV_HEADS // HEADS
            scores = k[visible, g] @ q[t, j] / math.sqrt(HEAD_DIM)
            if features.attention_cap:
                scores = features.attention_cap * np.tanh(scores / features.attention_cap)
            p[j, t, visible] = softmax(scores)
            heads[j * HEAD_DIM : (j + 1) * HEAD_DIM] = p[j, t, visible] @ v[visible, g]
        middle[t] = h[t] + w["o"] @ heads
        x = _rms_norm(middle[t], w["norm_2"])
        gate[t], up[t] = w["gate"] @ x, w["up"] @ x
        out[t] = middle[t] + w["down"] @ (gate[t] * _sigmoid(gate[t]) * up[t])
    taped = {"h": h, "position": np.array(position), "q": q, "k": k, "v": v, "p": p, "middle": middle}
    return taped | {"gate": gate, "up": up}, out


def block_back(w: Arrays, taped: Arrays, d_out: np.ndarray) -> np.ndarray:
    """The way back through `_block`: the gradient at its output, (S, d) -> the gradient at its input, (S, d)."""
    q, k, v, p = taped["q"], taped["k"], taped["v"], taped["p"]
    n = len(d_out)
    d_middle, d_heads = d_out.copy(), np.zeros((n, HEADS, HEAD_DIM), d_out.dtype)
    for t in range(n):
        gate, up, d_inner = taped["gate"][t], taped["up"][t], w["down"].T @ d_out[t]
        sigma = _sigmoid(gate)
        d_gate = d_inner * up * (sigma + gate * sigma * (1 - sigma))
        d_up = d_inner * gate * sigma
        d_middle[t] += rms_norm_back(taped["middle"][t], w["norm_2"], w["gate"].T @ d_gate + w["up"].T @ d_up)
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
        d_x, back = np.zeros(WIDTH, d_out.dtype), tuple(-taped["position"][t])  # the opposite turn undoes a turn
        for j in range(HEADS):
            d_x += _head(w["q"], j).T @ _turn(d_q[t, j], back)
        for g in range(KV_HEADS):
            d_x += _head(w["k"], g).T @ _turn(d_k[t, g], back) + _head(w["v"], g).T @ d_v[t, g]
        d_h[t] += rms_norm_back(taped["h"][t], w["norm_1"], d_x)
    return d_h


def _projected(w: Arrays, name: str, j: int, x: np.ndarray, features: Features) -> np.ndarray:
    """Head j of q, k or v, (head_dim,), before it is turned."""
    head = _head(w[name], j) @ x
    if features.biases:
        head = head + _head(w[f"{name}_bias"], j)
    if features.qk_norm and name != "v":
        head = _rms_norm(head, w[f"{name}_norm"])
    return head


def _rms_norm(h: np.ndarray, gain: np.ndarray) -> np.ndarray:
    return gain * h / np.sqrt((h * h).sum() / len(h) + EPS)


def rms_norm_back(h: np.ndarray, gain: np.ndarray, d_out: np.ndarray) -> np.ndarray:
    """The way back through `_rms_norm`."""
    length = np.sqrt((h * h).sum() / WIDTH + EPS)
    d = gain * d_out
    return d / length - h * ((h * d).sum() / (WIDTH * length**3))


def _turn(z: np.ndarray, position: Sequence[int]) -> np.ndarray:
    """Rotary position of one head, (head_dim,): entry i turns together with entry i + head_dim / 2."""
    half, turned = HEAD_DIM // 2, z.copy()
    for i in range(half):
        angle = int(position[i]) * THETA ** (-i / half)
        c, s = math.cos(angle), math.sin(angle)
        turned[i], turned[i + half] = c * z[i] - s * z[i + half], s * z[i] + c * z[i + half]
    return turned


def _head(w: np.ndarray, j: int) -> np.ndarray:
    """The rows of a projection, or the entries of a bias, that make head j."""
    return w[j * HEAD_DIM : (j + 1) * HEAD_DIM]


def softmax(scores: np.ndarray) -> np.ndarray:
    """Shares that sum to 1."""
    grown = np.exp(scores - scores.max())
    return grown / grown.sum()


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(z / 2)) / 2  # 1 / (1 + exp(-z)) without its overflow


# --------------------------------------------------------------------------------------------- arguments
def float_of(dtype: str) -> type[Any]:
    """NumPy's type of a dtype's name."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; the second oracle knows {' and '.join(DTYPES)}")
    return np.float64 if dtype == "float64" else np.float32


def prompt_in(x: np.ndarray, mask: np.ndarray, dtype: str, name: str = "x") -> tuple[np.ndarray, list[int]]:
    """A prompt's embeddings (T, d) in the dtype asked for, and its attention mask as a list."""
    x = np.array(x, dtype=float_of(dtype))
    if x.ndim != 2 or len(x) == 0 or x.shape[1] != WIDTH:
        raise ValueError(f"{name} must be (T, {WIDTH}) with T >= 1; got {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} holds NaN or infinite values")
    if np.shape(mask) != (len(x),):
        raise ValueError(f"attention_mask must be ({len(x)},), as {name} has {len(x)} tokens; got {np.shape(mask)}")
    return x, seen_of(mask)


def seen_of(mask: Sequence[int] | np.ndarray) -> list[int]:
    """An attention mask as a list: padding (0) on the left, then at least one token (1)."""
    seen = [int(entry) for entry in mask]
    tokens = sum(seen)
    if tokens == 0 or seen != [0] * (len(seen) - tokens) + [1] * tokens:
        raise ValueError(f"attention_mask is {seen}; expected 0s, then at least one 1")
    return seen
