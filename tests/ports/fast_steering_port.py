"""`fast.Steering` and `fast.RowSteering` as a port: steering on any device, generation on the toy decoder.

`made` gives the port for a device and one of the two classes; the module itself is the one of `fast.Steering` on a CPU.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from grains_ref import fast
from grains_ref.conformance import stages
from grains_ref.conformance.stages import Values, tensor, whole
from grains_ref.fast.steering import TableSteering
from grains_ref.grains import generate_greedy


def made(device: str = "cpu", *, rows: bool = False) -> SimpleNamespace:
    """rows: with `fast.RowSteering`, in which the vector is the second of a bank of two, and slots are to spare."""

    def entered(blocks: list[nn.Module], v: Tensor, lam: float, layers: list[int] | None, batch: int) -> TableSteering:
        if not rows:
            return fast.Steering(blocks, v, lam=lam, layers=layers)
        steering = fast.RowSteering(blocks, torch.stack([torch.full_like(v, 3.0), v]), slots=batch + 2)
        steering.assign(range(batch), behaviour=1, lam=lam, layers=layers)
        return steering

    @stages.refusing
    def steering(*, h: np.ndarray, v: np.ndarray, lam: float, dtype: str) -> Values:
        """Eq. (7) and (8), by the hook of a block that does nothing."""
        states, block = tensor(h, dtype).to(device), nn.Identity()
        with torch.no_grad(), entered([block], tensor(v, dtype)[None], lam, None, len(h)):
            steered = block(states)
        return {"h": stages.array(steered.cpu())}

    @stages.refusing
    def generation(
        *,
        ids: np.ndarray,
        attention_mask: np.ndarray,
        v: np.ndarray,
        lam: float,
        layers: list[int],
        forced: np.ndarray,
        dtype: str,
    ) -> Values:
        """Sect. 3.3, every row of the batch by itself."""
        model = stages.toy_in(dtype)
        logits, tokens = [], []
        with torch.no_grad(), entered(model.blocks, tensor(v, dtype), lam, layers, 1):
            for row, mask, known in zip(whole(ids), whole(attention_mask), whole(forced), strict=True):
                encoded = model.encode(row.tolist(), mask.tolist())
                logits.append(model.logits(encoded, encoded.embeds[None], known)[0])
                tokens.append(generate_greedy(model, encoded, n=len(known)))
        return {"logits": stages.array(torch.stack(logits)), "tokens": np.array(tokens)}

    name = f"fast.{'RowSteering' if rows else 'Steering'} on {device}"
    port = SimpleNamespace(NAME=name, __name__=name, DTYPES=DTYPES, steering=steering)
    if device == "cpu":  # where the toy decoder is
        port.generation = generation
    return port


DTYPES = ("float64", "float32", "float16", "bfloat16")
_here: Any = made()
NAME, steering, generation = _here.NAME, _here.steering, _here.generation
