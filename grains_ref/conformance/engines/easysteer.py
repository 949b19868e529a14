"""EasySteer (August 2026, its fork of vLLM): the algorithm `direct` with `normalize=True`. Read, not run.

    c  = lam v                            in the model's dtype
    y  = (h + c)                          rounded to it
    h' = y |h| / (|y| + 1e-8)             in float32 from norms of the model's dtype (eager), of float32 (CUDA graphs)
    update' = update + (h' - h)           eager;  rounded after every step, the residual as it was
    update' = (update + c) + (h' - y)     CUDA graphs

The norm of a bfloat16 tensor is itself a bfloat16 number, with 8 bits: eager norms are off by up to 5.5e-3.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from grains_ref.conformance.engines.common import Fused, Values, fused, run

NAME = "EasySteer, normalize=True"
DTYPES = ("float32", "float16", "bfloat16")
HOW = "read"
EPSILON = 1e-8


def eager(pair: Fused, v: Tensor, lam: float) -> Fused:
    """The algorithm's own code."""
    update, residual = pair
    h = update + residual
    y = h + v * lam
    norm, y_norm = (x.norm(dim=-1, keepdim=True).float() for x in (h, y))
    steered = (y.float() * norm / (y_norm + EPSILON)).to(h.dtype)
    return update + (steered - h), residual


def in_graphs(pair: Fused, v: Tensor, lam: float) -> Fused:
    """The kernel that is captured."""
    update, residual = pair
    h, c = update + residual, v * lam
    y = h + c
    norm, y_norm = (x.float().norm(dim=-1, keepdim=True) for x in (h, y))
    steered = (y.float() * norm / (y_norm + EPSILON)).to(h.dtype)
    return (update + c) + (steered - y), residual


def steering(*, h: np.ndarray, v: np.ndarray, lam: float, dtype: str) -> Values:
    """The stage, in eager mode."""
    return run(fused(eager), h=h, v=v, lam=lam, dtype=dtype)


VARIANTS = {"EasySteer, in CUDA graphs": fused(in_graphs)}
