"""SGLang (0.5.23): a hook factory for `--forward-hooks`, which the server calls once for each entry.

    [{"target_modules": ["model.layers.3"], "config": {"v": [0.1, -0.2, ...], "lam": 2.0},
      "hook_factory": "grains_ref.conformance.engines.sglang:make_hook"}, ...]        one entry for each block

A decoder layer of SGLang returns (update, residual), whose sum is the stream. The hook writes the steered stream into
the update and zero into the residual, as the next layer adds both. To add the difference to the update instead, as a
hook that leaves the residual alone would, rounds twice more (`steering_by_difference`).

Run here: `make_hook`, on pairs of tensors. Read, not run: the server, which steers every request alike, may capture the
hook in a CUDA graph, and hooks of some of its model classes are never called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grains_ref.conformance.engines.common import Fused, Values, fused, run

NAME = "SGLang hook factory"
DTYPES = ("float32", "float16", "bfloat16")
HOW = "the factory ran, the server was read"


def restored(h: Tensor, shift: Tensor) -> Tensor:
    """Eq. (8) in float32 or wider: h + shift with the norms of h (..., d); where nothing is left, h."""
    wide = h if h.dtype == torch.float64 else h.float()
    moved = wide + shift.to(wide)
    norms, moved_norms = (x.norm(dim=-1, keepdim=True) for x in (wide, moved))
    return torch.where(moved_norms > 0, moved * (norms / moved_norms), wide).to(h.dtype)


def make_hook(config: Mapping[str, Any]) -> Callable[..., Any]:
    """A forward hook of one decoder layer.  config: v, a list of d numbers, and lam."""
    v, lam = torch.as_tensor(config["v"]), float(config["lam"])

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        if not isinstance(output, tuple):
            return restored(output, lam * v.to(output.device))
        update, residual, *others = output
        stream = update if residual is None else update + residual
        steered = restored(stream, lam * v.to(stream.device))
        return (steered, None if residual is None else torch.zeros_like(residual), *others)

    return hook


def steer(pair: Fused, v: Tensor, lam: float) -> Fused:
    """What the hook makes of a layer's output."""
    update, residual = make_hook({"v": v, "lam": lam})(None, (), pair)
    return update, residual


def by_difference(pair: Fused, v: Tensor, lam: float) -> Fused:
    """The same stream, but the residual is left alone."""
    update, residual = pair
    stream = update + residual
    return update + (restored(stream, lam * v) - stream), residual


def steering(*, h: np.ndarray, v: np.ndarray, lam: float, dtype: str) -> Values:
    """The stage."""
    return run(fused(steer), h=h, v=v, lam=lam, dtype=dtype)


VARIANTS = {"SGLang hook that adds the difference": fused(by_difference)}
