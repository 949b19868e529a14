"""steering-vectors (PyPI 0.12.2): a `SteeringVector` whose operator restores norms.

    h' = h + delta        delta = operator(h, lam v); the package adds it, so the operator returns h' - h

The package only adds; its documented way to more is an operator of one's own, here that of `grains-ref export`. What is
added is the difference to h, in the model's dtype.

    pip install steering-vectors==0.12.2           needs transformers 4: tox -e peer-steering-vectors
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from grains_ref.conformance.engines.common import Handle, Values, live_logits, load, run
from grains_ref.export.steering_vectors import restoring

NAME = "steering-vectors, norm-restoring operator"
DTYPES = ("float64", "float32", "float16", "bfloat16")
HOW = "ran"
LOAD = load


class OneBlock(nn.Module):
    """A model of one block whose output is known."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Identity()])

    def forward(self, h: Tensor) -> Tensor:
        """The stream as the block puts it out."""
        put_out: Tensor = self.layers[0](h)
        return put_out


def patched(model: nn.Module, v: Tensor, lam: float, **config: Any) -> AbstractContextManager[None]:
    """A model steered at every block by the package; v (L, d)."""
    from steering_vectors import SteeringVector

    vector = SteeringVector(dict(enumerate(v)), "decoder_block")
    context: AbstractContextManager[None] = vector.apply(model, multiplier=lam, operator=restoring, **config)
    return context


def steer(h: Tensor, v: Tensor, lam: float) -> Tensor:
    """What steering-vectors makes of h; it writes into the block's output."""
    model = OneBlock()
    with patched(model, v[None], lam, layer_config={"decoder_block": "layers.{num}"}):
        steered: Tensor = model(h.clone())
    return steered


def steering(*, h: np.ndarray, v: np.ndarray, lam: float, dtype: str) -> Values:
    """The stage."""
    return run(steer, h=h, v=v, lam=lam, dtype=dtype)


def live_steer(handle: Handle, prompt: str, chosen: str, rejected: str, v: np.ndarray, lam: float) -> Tensor:
    """Live: the steered model's logits."""
    vectors = torch.from_numpy(v).to(handle[0].device)
    return live_logits(handle, prompt, chosen, patched(handle[0], vectors, lam))


def live_edit(handle: Handle, h: np.ndarray, v: np.ndarray, lam: float) -> Tensor:
    """Live: one edit, in the model's dtype."""
    return steer(torch.from_numpy(h).to(handle[0].dtype), torch.from_numpy(v), lam)
