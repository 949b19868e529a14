"""GrAInS in JAX, as a team would port it: from docs/method.md and the docstrings of the kit's toy and stages.

Every stage is jitted, gradients are `jax.grad`, generation has a key-value cache and takes a left-padded batch whole.
Prompts are padded further on the left, responses on the right, batches below, so that jit compiles few shapes. In half
precision norms, softmax, log-probabilities and sums over nodes are in float32, all else in the dtype asked for.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)  # without it JAX computes float64 in float32, silently
jax.config.update("jax_disable_most_optimizations", True)  # at these sizes nearly all time goes into compiling

NAME = "JAX on CPU"
DTYPES = ("float64", "float32", "bfloat16")

V, D, BLOCKS, HEADS, GROUPS, SIZE, INNER = 31, 13, 3, 4, 2, 6, 19  # GROUPS: key-value heads, SIZE: of one head
EPS, THETA = 1e-5, 100.0
T_BUCKET, R_BUCKET, B_BUCKET, N_BUCKET, L_BUCKET, D_BUCKET = 24, 8, 4, 64, 8, 32
NO_STEERING = np.zeros((BLOCKS, D))


@functools.cache
def weights(dtype: str) -> dict[str, jax.Array]:
    """The closed form of the toy's docstring; the tensors of one name are stacked over the blocks for `lax.scan`."""
    block = {"norm_1": (D,), "q": (HEADS * SIZE, D), "k": (GROUPS * SIZE, D), "v": (GROUPS * SIZE, D)}
    block |= {"o": (D, HEADS * SIZE), "norm_2": (D,), "gate": (INNER, D), "up": (INNER, D), "down": (D, INNER)}
    names = [("embed", (V, D)), *(list(block.items()) * BLOCKS), ("norm", (D,)), ("head", (V, D))]
    found: dict[str, list[np.ndarray]] = {}
    for t, (name, shape) in enumerate(names, start=1):
        i = np.arange(math.prod(shape))
        norm = 1 + ((i * i * 5 + i * t + 3 * t) % 17 - 8) / 16
        matrix = ((i * i * 37 + i * t + 11 * t) % 257 - 128) / (128 if name == "embed" else 256)
        found.setdefault(name, []).append((norm if len(shape) == 1 else matrix).reshape(shape))
    return {name: jnp.asarray(np.stack(w) if name in block else w[0], dtype) for name, w in found.items()}


def wide(x: Any) -> Any:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def rms_norm(h: jax.Array, gain: jax.Array) -> jax.Array:
    x = wide(h)
    return (x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPS)).astype(h.dtype) * gain


def rotate(z: jax.Array, position: jax.Array) -> jax.Array:
    """z (B, S, heads, SIZE), position (B, S)."""
    half = SIZE // 2
    angle = position[..., None, None] * THETA ** (-jnp.arange(half, dtype=jnp.float64) / half)
    cos, sin = jnp.cos(angle).astype(wide(z).dtype), jnp.sin(angle).astype(wide(z).dtype)
    a, b = wide(z[..., :half]), wide(z[..., half:])
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1).astype(z.dtype)


@jax.jit
def steer(h: jax.Array, v: jax.Array, lam: jax.Array) -> jax.Array:
    x = wide(h)
    shifted = x + lam.astype(x.dtype) * v.astype(x.dtype)
    old, new = jnp.linalg.norm(x, axis=-1, keepdims=True), jnp.linalg.norm(shifted, axis=-1, keepdims=True)
    return jnp.where(new > 0, shifted * (old / jnp.where(new > 0, new, 1)), x).astype(h.dtype)


@jax.jit
def decoder(w: dict, h: jax.Array, seen: jax.Array, start: Any = 0, cache: Any = None, steering: Any = None) -> tuple:
    """S new positions from `start` on, of C in all.

    h (B, S, d), seen (B, C) bool, cache: keys and values (L, B, C, GROUPS, SIZE), steering: v (L, d) and lam (L,)
    -> logits (B, S, V) in float32 or wider, states (L, B, S, d), cache.
    """
    batch, n, _ = h.shape
    rows, columns = start + jnp.arange(n), jnp.arange(seen.shape[1])
    position = jnp.maximum(jnp.cumsum(seen, 1) - 1, 0)[:, rows]
    visible = ((columns <= rows[:, None]) & seen[:, None, :]) | (columns == rows[:, None])  # (B, S, C)
    cache = cache or (jnp.zeros((BLOCKS, *seen.shape, GROUPS, SIZE), h.dtype),) * 2

    def block(h: jax.Array, xs: tuple) -> tuple:
        b, (keys, values), vector = xs
        x = rms_norm(h, b["norm_1"])
        q, k, v = ((x @ b[name].T).reshape(batch, n, -1, SIZE) for name in "qkv")
        q, k = rotate(q, position), rotate(k, position)
        keys, values = (jax.lax.dynamic_update_slice(c, new, (0, start, 0, 0)) for c, new in ((keys, k), (values, v)))
        grouped = q.reshape(batch, n, GROUPS, HEADS // GROUPS, SIZE)  # query head j reads group j // (HEADS / GROUPS)
        scores = wide(jnp.einsum("bsgjc,btgc->bgjst", grouped, keys)) / math.sqrt(SIZE)
        p = jax.nn.softmax(jnp.where(visible[:, None, None], scores, -jnp.inf), -1).astype(h.dtype)
        h = h + jnp.einsum("bgjst,btgc->bsgjc", p, values).reshape(batch, n, -1) @ b["o"].T
        x = rms_norm(h, b["norm_2"])
        h = h + (jax.nn.silu(x @ b["gate"].T) * (x @ b["up"].T)) @ b["down"].T
        h = h if vector is None else jnp.where(vector[1] == 0, h, steer(h, *vector))
        return h, (h, (keys, values))

    blocks = {name: x for name, x in w.items() if name not in ("embed", "norm", "head")}
    h, (states, cache) = jax.lax.scan(block, h, (blocks, cache, steering))
    logits = jnp.matmul(rms_norm(h, w["norm"]), w["head"].T, preferred_element_type=wide(h).dtype)
    return logits, states, cache


@jax.jit
@functools.partial(jax.value_and_grad, argnums=1, has_aux=True)
def preference(w: dict, x: jax.Array, seen: jax.Array, y: jax.Array, real: jax.Array) -> tuple:
    """x (T, d), seen (T,), responses y (2, R), real (2, R) false behind their ends -> (f, both log P), df/dx."""
    h = jnp.concatenate([jnp.stack([x, x]).astype(w["embed"].dtype), w["embed"][y]], 1)
    mask = jnp.concatenate([jnp.stack([seen, seen]), jnp.ones_like(real)], 1)
    log_p = jax.nn.log_softmax(decoder(w, h, mask)[0][:, -y.shape[1] - 1 : -1], -1)  # a row predicts the next token
    both = jnp.sum(jnp.where(real, jnp.take_along_axis(log_p, y[..., None], -1)[..., 0], 0), -1)
    return both[0] - both[1], both


@jax.jit
def components(shifts: jax.Array, n: int) -> tuple:
    """(N, L, d), zero from row n on -> first right singular vectors (L, d), first singular value, mean, norm."""
    mean = shifts.sum(0) / n
    centred = jnp.where((jnp.arange(len(shifts)) < n)[:, None, None], shifts - mean, 0)
    _, s, u = jnp.linalg.svd(centred.swapaxes(0, 1), full_matrices=False)
    return u[:, 0], s[:, 0], mean, jnp.sqrt(jnp.sum(shifts**2, (0, 2)))


def padding_left(mask: Any) -> bool:
    return np.diff(mask).min(initial=0) >= 0 and np.min(np.asarray(mask)[..., -1]) == 1


def require(condition: Any, message: str) -> None:
    if not condition:
        raise ValueError(message)


def padded(x: Any, *buckets: int) -> np.ndarray:
    """Zeros up to a multiple of one bucket per axis; in front where the bucket is negative."""
    missing = [(-n % abs(bucket), bucket) for n, bucket in zip(np.shape(x), (*buckets, 1, 1, 1), strict=False)]
    return np.pad(x, [(n, 0) if bucket < 0 else (0, n) for n, bucket in missing])


def prompt(dtype: str, mask: Any, *embeddings: Any) -> list[np.ndarray]:
    """The mask, and every (T, d) array rounded to the dtype but float32 or wider, with more padding on the left."""
    fits = all(np.shape(x) == (len(mask), D) and np.isfinite(x).all() for x in embeddings)
    require(fits and padding_left(mask), f"x must be {(len(mask), D)} and finite, padding on the left")
    rounded = (wide(np.asarray(x, dtype)) for x in embeddings)  # in NumPy: JAX compiles it anew for every shape
    return [padded(x, -T_BUCKET) for x in (np.asarray(mask, bool), *rounded)]


def responses(y_pos: Any, y_neg: Any) -> tuple[np.ndarray, np.ndarray]:
    both = [np.asarray(y, np.int64) for y in (y_pos, y_neg)]
    require(all(len(y) and y.min() >= 0 and y.max() < V for y in both), "a response must be ids from 0 to V - 1")
    y = padded([np.pad(y, (0, max(map(len, both)) - len(y))) for y in both], 1, R_BUCKET)
    return y, np.stack([np.arange(y.shape[1]) < len(response) for response in both])


def prefill(w: dict, h: Any, mask: Any, room: int = 1, v: Any = NO_STEERING, lam: Any = NO_STEERING[:, 0]) -> tuple:
    """Prompts h (B, T, d), mask (B, T), with room for more tokens -> logits, states, what `decoder` goes on with."""
    h, mask = padded(h, B_BUCKET), padded(mask, B_BUCKET)
    seen = jnp.concatenate([jnp.asarray(mask, bool), jnp.ones((len(h), room + -room % R_BUCKET), bool)], 1)
    steering = jnp.asarray(v, w["embed"].dtype), jnp.asarray(lam, jnp.float64)
    logits, states, cache = decoder(w, jnp.asarray(h, w["embed"].dtype), seen, 0, None, steering)
    return logits, states, (seen, cache, steering)


def objective(*, x: Any, attention_mask: Any, y_pos: Any, y_neg: Any, dtype: str) -> dict:
    seen, x = prompt(dtype, attention_mask, x)
    (f, (pos, neg)), _ = preference(weights(dtype), x, seen, *responses(y_pos, y_neg))
    return {"log_p_pos": float(pos), "log_p_neg": float(neg), "f": float(f)}


def attribution(
    *, x: Any, baseline: Any, attention_mask: Any, y_pos: Any, y_neg: Any, m: int, quadrature: str, dtype: str
) -> dict:
    t, (seen, x, start) = len(x), prompt(dtype, attention_mask, x, baseline)
    rest = (seen, *responses(y_pos, y_neg))
    even, (z, c) = np.full(m, 1 / m), np.polynomial.legendre.leggauss(m)  # the latter on [-1, 1]
    rules = {"right": ((np.arange(m) + 1) / m, even), "midpoint": ((np.arange(m) + 0.5) / m, even)}
    rules["gauss_legendre"] = ((z + 1) / 2, c / 2)
    require(m >= 1 and quadrature in rules, f"got m = {m} and {quadrature!r}; expected one of {', '.join(rules)}")
    total = np.zeros_like(x)
    for alpha, weight in zip(*(nodes.tolist() for nodes in rules[quadrature]), strict=True):
        total += weight * np.asarray(preference(weights(dtype), start + alpha * (x - start), *rest)[1])
    require(np.isfinite(total).all(), "a gradient is not finite")
    return {"a": ((x - start) * total).sum(-1)[-t:]}


def selection(*, a: Any, eligible: Any, k: int, dtype: str) -> dict:
    a, eligible = wide(np.asarray(a, dtype)), np.asarray(eligible, bool)
    require(k >= 1 and a.ndim == 1 and a.shape == eligible.shape, f"got k = {k}, {a.shape}, {eligible.shape}")
    require(np.isfinite(a).all(), "a score is not finite")
    signed = {"pos": np.where(eligible, a, 0), "neg": np.where(eligible, -a, 0)}
    order = {name: np.argsort(-score, kind="stable")[:k].tolist() for name, score in signed.items()}
    return {name: [j for j in order[name] if score[j] > 0] for name, score in signed.items()}


def contrast(*, x: Any, baseline: Any, attention_mask: Any, pos: Any, neg: Any, dtype: str) -> dict:
    t, (seen, x, start) = len(x), prompt(dtype, attention_mask, x, baseline)
    require(all(0 <= j < t for j in (*pos, *neg)), f"tokens must be from 0 to {t - 1}; got {pos}, {neg}")
    versions = np.stack([x, x, x])
    for version, tokens in enumerate((pos, neg), start=1):
        versions[version, [j - t for j in tokens]] = start[[j - t for j in tokens]]
    _, states, _ = prefill(weights(dtype), versions, np.stack([seen] * 3))
    whole, without_pos, without_neg = (np.asarray(wide(states[:, version, -1])) for version in range(3))
    # Rows of one batch may differ by rounding; nothing masked must give exactly nothing.
    return {"delta_pos": (whole - without_pos) * bool(len(pos)), "delta_neg": (whole - without_neg) * bool(len(neg))}


def aggregation(*, delta_pos: Any, delta_neg: Any, dtype: str) -> dict:
    sides = []
    require(np.shape(delta_pos) == np.shape(delta_neg), "the two sides have different examples, layers or widths")
    for shifts in (delta_pos, delta_neg):
        shifts = np.asarray(shifts, dtype).astype(np.float64)
        require(shifts.ndim == 3 and len(shifts) and np.isfinite(shifts).all(), f"got {shifts.shape}, or not finite")
        (n, n_layers, d), found = shifts.shape, components(padded(shifts, N_BUCKET, L_BUCKET, D_BUCKET), len(shifts))
        u, s, mean, size = (np.asarray(z)[:n_layers] for z in found)
        along = (u * mean).sum(-1)
        require((s > 1e-6 * size).all(), "the shifts of a layer are all zero or all equal")
        require((abs(along) > 1e-6 * size / math.sqrt(n)).all(), "the mean shift is zero along the component")
        sides.append(np.asarray((u * np.sign(along)[:, None])[:, :d], dtype))
    v_pos, v_neg = sides
    return {"v_pos": wide(v_pos), "v_neg": wide(v_neg), "v": wide(v_pos - v_neg)}


def steering(*, h: Any, v: Any, lam: float, dtype: str) -> dict:
    require(np.ndim(h) == 3 and np.shape(v) == np.shape(h)[-1:], f"h is {np.shape(h)}, v is {np.shape(v)}")
    require(all(np.isfinite(z).all() for z in (h, v, lam)), "h, v and lam must be finite")
    tokens, v = padded(np.reshape(h, (-1, len(v))), N_BUCKET, D_BUCKET), padded(v, D_BUCKET)
    steered = wide(steer(jnp.asarray(tokens, dtype), jnp.asarray(v, dtype), jnp.float64(lam)))
    return {"h": np.asarray(steered)[: h.shape[0] * h.shape[1], : h.shape[2]].reshape(h.shape)}


def generation(*, ids: Any, attention_mask: Any, v: Any, lam: float, layers: Any, forced: Any, dtype: str) -> dict:
    require(np.shape(v) == (BLOCKS, D) and np.isfinite([lam, *np.ravel(v)]).all(), "v must be (L, d), all finite")
    require(set(layers) <= set(range(BLOCKS)) and len(set(layers)) == len(layers), f"no such layers: {layers}")
    require(np.shape(ids) == np.shape(attention_mask) and padding_left(attention_mask), "ids and mask do not fit")
    require(len(ids) == len(forced) and np.size(forced), "forced must be (B, n), n >= 1")
    require(all(0 <= i < V for i in (*np.ravel(ids), *np.ravel(forced))), f"token ids must be from 0 to {V - 1}")
    w, rows, n = weights(dtype), len(ids), np.shape(forced)[1]
    ids, mask = (padded(z, 1, -T_BUCKET) for z in (ids, attention_mask))
    logits, _, state = prefill(w, w["embed"][ids], mask, n, v, [lam * (block in layers) for block in range(BLOCKS)])
    found = []
    for given in (padded(forced, B_BUCKET), None):  # the tokens of the case, then its own
        (seen, cache, steering), out, every, tokens = state, logits, [], []
        for step in range(n):
            every.append(np.asarray(out)[:, -1])
            tokens.append(every[-1].argmax(-1))
            token = tokens[-1] if given is None else given[:, step]
            out, _, cache = decoder(w, w["embed"][token][:, None], seen, ids.shape[1] + step, cache, steering)
        found.append((np.stack(every, 1)[:rows], np.stack(tokens, 1)[:rows]))
    return {"logits": found[0][0], "tokens": found[1][1]}
