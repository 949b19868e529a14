"""SGLang (0.5.23): the hook of `grains-ref export --to sglang`, on the pairs that its decoder layers return.

    (update, residual) -> (h' - residual, residual)        h = update + residual, all in the model's dtype

The variant writes the whole stream into the update and zero into the residual, as the next layer adds both: the
difference to a residual that is larger than the update is rounded once more.

Run here: the hook, and SGLang's own hook manager by itself. Read, not run: the server, which steers every request
alike, may capture the hook in a CUDA graph, and never calls hooks of some of its model classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from grains_ref.conformance.engines.common import Fused, Values, fused, run
from grains_ref.export.rules import restore_norm
from grains_ref.export.sglang import hook_of

NAME = "SGLang, hook of the export"
DTYPES = ("float32", "float16", "bfloat16")
HOW = "the hook ran, the server was read"


def steer(pair: Fused, v: Tensor, lam: float) -> Fused:
    """What the hook makes of a layer's output."""
    update, residual = hook_of(v, lam)(torch.nn.Identity(), (), pair)
    return update, residual


def whole(pair: Fused, v: Tensor, lam: float) -> Fused:
    """The same stream, all of it in the update."""
    update, residual = pair
    return restore_norm(update + residual, v, lam), torch.zeros_like(residual)


def steering(*, h: np.ndarray, v: np.ndarray, lam: float, dtype: str) -> Values:
    """The stage."""
    return run(fused(steer), h=h, v=v, lam=lam, dtype=dtype)


VARIANTS = {"SGLang, a hook that writes the whole stream": fused(whole)}
