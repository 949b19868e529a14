"""repeng (PyPI 0.4.0): its `ControlModule` with `normalize=True`, around a block that puts out h.

h' = (h + c) / |h + c| * |h|        c = lam v, rounded to the model's dtype; norms in that dtype; no epsilon

pip install repeng==0.4.0           needs NumPy 1: tox -e peer-repeng
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from grains_ref.conformance.engines.common import Handle, Values, live_logits, load, run

NAME = "repeng, normalize=True"
DTYPES = ("float64", "float32", "float16", "bfloat16")
HOW = "ran"
LOAD = load


class Gives(nn.Module):
    """A block whose output is known."""

    def forward(self, h: Tensor) -> Tensor:
        """The stream as it is."""
        return h


def steer(h: Tensor, v: Tensor, lam: float) -> Tensor:
    """What repeng makes of h."""
    from repeng.control import BlockControlParams, ControlModule

    module = ControlModule(Gives())
    module.set_control(BlockControlParams(control=(lam * v).to(h.dtype), normalize=True))
    steered: Tensor = module(h)
    return steered


def steering(*, h: np.ndarray, v: np.ndarray, lam: float, dtype: str) -> Values:
    """The stage."""
    return run(steer, h=h, v=v, lam=lam, dtype=dtype)


@contextmanager
def steered(model: Any, v: np.ndarray, lam: float) -> Iterator[None]:
    """A transformers model inside repeng's `ControlModel`, every block controlled."""
    from repeng import ControlModel

    wrapped = ControlModel(model, range(len(v)))
    try:
        controls = {layer: torch.tensor(lam * row).to(model.device, model.dtype) for layer, row in enumerate(v)}
        wrapped.set_raw_control(controls, normalize=True)
        yield
    finally:
        wrapped.unwrap()


def live_steer(handle: Handle, prompt: str, chosen: str, rejected: str, v: np.ndarray, lam: float) -> Tensor:
    """Live: the steered model's logits."""
    return live_logits(handle, prompt, chosen, steered(handle[0], v, lam))


def live_edit(handle: Handle, h: np.ndarray, v: np.ndarray, lam: float) -> Tensor:
    """Live: one edit, in the model's dtype."""
    dtype = handle[0].dtype
    return steer(torch.from_numpy(h).to(dtype), torch.from_numpy(v).to(dtype), lam)
