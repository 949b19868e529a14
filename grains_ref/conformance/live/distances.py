"""How far an answer is from what was expected, as arrays or as the fingerprints that stand for large ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from grains_ref.conformance.compare import BadOutput, numbers

SKETCH = 64  # numbers in a fingerprint's sketch


class BadAnswer(Exception):
    """The port raised, or what it returned cannot be compared."""


def apart(got: Any, want: Any, scale: float) -> float:
    """The difference of two numbers, relative to a scale."""
    difference = abs(float(got) - float(want))
    return difference / scale if scale else (0.0 if difference == 0 else math.inf)


def scores_apart(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference of scores, relative to the largest score."""
    return float(np.abs(got - want).max() / max(np.abs(want).max(), np.finfo(float).tiny))


def rows_apart(name: str, got: Any, want: np.ndarray) -> np.ndarray:
    """The relative error of every row, or one for all rows where `got` is a single fingerprint."""
    if isinstance(got, Mapping):
        return np.array([fingerprints_apart(got, fingerprint(want))])
    if isinstance(got, list):
        if len(got) != len(want):
            raise BadAnswer(f"{name}: {len(got)} fingerprints; expected one for each of {len(want)} rows")
        return np.array([fingerprints_apart(g, fingerprint(w)) for g, w in zip(got, want, strict=True)])
    error, size = np.linalg.norm(got - want, axis=-1), np.linalg.norm(want, axis=-1)
    return np.where(size > 0, error / np.where(size > 0, size, 1), np.where(error > 0, np.inf, 0.0))


def values_apart(got: Mapping[str, Any], want: Mapping[str, np.ndarray]) -> float:
    """How far the numbers of one function are off: objective, attribution, or the worst row of anything else."""
    if "f" in want:
        return max(apart(got[name], want[name], scale_of(want)) for name in want)
    if "a" in want:
        return scores_apart(got["a"], want["a"])
    return max(float(rows_apart(name, got[name], want[name]).max()) for name in want)


def scale_of(objective: Mapping[str, Any]) -> float:
    """What errors of log-probabilities are relative to: the size of both together, in nats."""
    return abs(float(objective["log_p_pos"])) + abs(float(objective["log_p_neg"]))


def length(value: Any) -> float:
    """The L2 norm of an array, or the largest of its fingerprints'."""
    if isinstance(value, Mapping):
        return float(value["norm"])
    return max(map(length, value)) if isinstance(value, list) else float(np.linalg.norm(value))


def beside(got: Any, want: Any) -> str:
    """Both numbers and their difference, in nats: two that look alike may differ by more than is allowed."""
    got, want = float(got), float(want)
    return f"{got:.9g} nats, expected {want:.9g} (off by {got - want:+.2e})"


def rows_beside(got: Any, want: np.ndarray, row: int) -> str:
    """Length and direction of a row beside what was expected; nothing of a fingerprint, which has no direction."""
    if not isinstance(got, np.ndarray):
        return ""
    ours, theirs = float(np.linalg.norm(got[row])), float(np.linalg.norm(want[row]))
    cosine = float(got[row] @ want[row]) / (ours * theirs) if ours and theirs else 0.0
    return f" (length {ours:.6g}, expected {theirs:.6g}; cosine {cosine:.6f})"


def same(first: Any, second: Any) -> bool:
    """Whether two answers are equal bit for bit."""
    return bool(np.array_equal(first, second)) if isinstance(first, np.ndarray) else bool(first == second)


# --------------------------------------------------------------------------------------- fingerprints
def fingerprint(array: Any) -> dict[str, Any]:
    """A large array as its shape, L2 norm, mean and a sketch of 64 numbers, all in float64.

        sketch[j] = sum over i of s(i, j) * x[i]        i from 0 over all entries, row by row;  j = 0..63
        s(i, j)   = -1 if bit j mod 32 (the lowest is 0) of hash(2 i + j div 32) is set, else +1
        hash(z):    z = z mod 2^32;   z = z xor (z >> 16);  z = z * 2146121005 mod 2^32
                    z = z xor (z >> 15);  z = z * 2221713035 mod 2^32;  z = z xor (z >> 16)

    Whole numbers only, so it can be made again in any language. For two arrays x and y the root mean square of the 64
    differences of their sketches estimates |x - y|, with a standard deviation of about 9 %.
    """
    x = to_numpy(array).ravel() if isinstance(array, Tensor) else np.asarray(array, dtype=np.float64).ravel()
    sketch, bits = np.zeros(SKETCH), np.arange(32, dtype=np.uint64)
    for start in range(0, len(x), 1 << 14):
        part = x[start : start + (1 << 14)]
        i = np.arange(start, start + len(part), dtype=np.uint64)
        words = np.stack([_hash(2 * i), _hash(2 * i + np.uint64(1))], axis=1)  # (n, 2)
        signs = 1.0 - 2.0 * ((words[:, :, None] >> bits) & np.uint64(1)).reshape(len(part), SKETCH)
        sketch += part @ signs
    return {
        "shape": list(np.shape(array)),
        "norm": float(np.linalg.norm(x)),
        "mean": float(x.mean()) if len(x) else 0.0,
        "sketch": sketch.tolist(),
    }


def _hash(z: np.ndarray) -> np.ndarray:
    keep = np.uint64(0xFFFFFFFF)
    z = z & keep
    z = (z ^ (z >> np.uint64(16))) * np.uint64(2146121005) & keep
    z = (z ^ (z >> np.uint64(15))) * np.uint64(2221713035) & keep
    return z ^ (z >> np.uint64(16))


def is_fingerprint(value: Any) -> bool:
    """Whether an answer is a fingerprint, not an array."""
    return isinstance(value, Mapping) and {"shape", "norm", "mean", "sketch"} <= set(value)


def check_fingerprint(name: str, value: Mapping[str, Any]) -> None:
    """Refuse a fingerprint whose fields are not what `fingerprint` makes.

    Raises:
        BadAnswer: something is no number, not finite, or of another size.
    """
    shape = value["shape"]
    try:
        digests = [numbers(field, value[field]) for field in ("norm", "mean", "sketch")]
        sizes = list(shape) if isinstance(shape, (list, tuple)) else [None]
    except BadOutput as error:
        raise BadAnswer(f"{name}: a fingerprint whose {error}") from error
    is_right = [array.shape for array in digests] == [(), (), (SKETCH,)] and all(type(n) is int for n in sizes)
    if not is_right or not all(np.isfinite(array).all() for array in digests):
        raise BadAnswer(f"{name}: a fingerprint needs a shape, a norm, a mean and a sketch of {SKETCH} finite numbers")


def fingerprints_apart(got: Mapping[str, Any], want: Mapping[str, Any]) -> float:
    """The relative error of two arrays, estimated from their fingerprints."""
    if list(got["shape"]) != list(want["shape"]):
        raise BadAnswer(f"a fingerprint of the shape {got['shape']}; expected {want['shape']}")
    apart = np.asarray(got["sketch"], float) - np.asarray(want["sketch"], float)
    if not np.isfinite(apart).all():
        raise BadAnswer("a fingerprint holds NaN or infinite values")
    error = max(float(np.sqrt((apart**2).mean())), abs(got["norm"] - want["norm"]))
    return error / want["norm"] if want["norm"] else (0.0 if error == 0 else math.inf)


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A tensor of any dtype on any device as a float64 array."""
    return tensor.detach().double().cpu().numpy()
