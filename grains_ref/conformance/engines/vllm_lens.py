"""vllm-lens (1.2): a user's `Hook` function, or its own `norm_match`. Read, not run.

    fn(context, stream) -> the stream anew; it is written back in one of two ways
      the whole stream into the update, zero into the residual        newer files
      update + (new stream - old stream), the residual as it was      older files
    norm_match=True:  h' = h + lam |h| v / (|v| + 1e-6)        not eq. (8): the norm grows, and lam has another unit

The function here restores norms in float32, as a user who wants eq. (8) would write it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from grains_ref.conformance.engines.common import Fused, Values, fused, run
from grains_ref.export import rules

NAME = "vllm-lens Hook"
DTYPES = ("float32", "float16", "bfloat16")
HOW = "read"


def hook(v: Tensor, lam: float, stream: Tensor) -> Tensor:
    """What a user's function returns; stream (..., d)."""
    return rules.restore_norm(stream, v, lam)


def whole(pair: Fused, v: Tensor, lam: float) -> Fused:
    """Newer: the stream is kept in the update."""
    update, residual = pair
    return hook(v, lam, update + residual), torch.zeros_like(residual)


def difference(pair: Fused, v: Tensor, lam: float) -> Fused:
    """Older: the difference is added to the update."""
    update, residual = pair
    stream = update + residual
    return update + (hook(v, lam, stream) - stream), residual


def norm_match(pair: Fused, v: Tensor, lam: float) -> Fused:
    """A vector as long as the state, times lam, added to the update."""
    update, residual = pair
    norms = (update + residual).float().norm(dim=-1, keepdim=True)
    unit = (v * (norms / (v.float().norm() + 1e-6))).to(update.dtype)
    return update + unit * lam, residual


def steering(*, h: np.ndarray, v: np.ndarray, lam: float, dtype: str) -> Values:
    """The stage."""
    return run(fused(whole), h=h, v=v, lam=lam, dtype=dtype)


VARIANTS = {
    "vllm-lens Hook, older files": fused(difference),
    "vllm-lens norm_match=True": fused(norm_match),
}
