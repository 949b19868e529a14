"""What the ports of engines share: tensors in and out, pairs of update and residual, a transformers model to steer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from grains_ref.conformance.stages import DTYPES

Values: TypeAlias = dict[str, np.ndarray]
Steer: TypeAlias = Callable[[Tensor, Tensor, float], Tensor]  # h (B, T, d), v (d,), lam -> h' (B, T, d)
Fused: TypeAlias = tuple[Tensor, Tensor]  # a block's last update, and the residual stream before it
SteerFused: TypeAlias = Callable[[Fused, Tensor, float], Fused]


def run(steer: Steer, *, h: np.ndarray, v: np.ndarray, lam: float, dtype: str) -> Values:
    """The kit's stage `steering` by an engine's formula, in a dtype."""
    kind = DTYPES[dtype]
    return {"h": steer(torch.from_numpy(h).to(kind), torch.from_numpy(v).to(kind), float(lam)).double().numpy()}


def fused(steer: SteerFused) -> Steer:
    """An engine's steering of a pair, as one of the stream: h is taken apart without rounding, and added up after.

    update = h - residual is exact because residual = 3/4 h, rounded, lies between h / 2 and 2 h.
    """

    def steer_stream(h: Tensor, v: Tensor, lam: float) -> Tensor:
        residual = h * 0.75
        update, residual = steer((h - residual, residual), v, lam)
        return update + residual  # as the next block's norm does

    return steer_stream


# ------------------------------------------------------------------------------------------- live
Handle: TypeAlias = tuple[Any, Any]  # model, tokenizer
Steered: TypeAlias = Callable[[Any, np.ndarray, float], AbstractContextManager[None]]  # model, v (L, d), lam


def load(path: Any) -> Handle:
    """A transformers model and its tokenizer, in the dtype of its files."""
    return AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval(), AutoTokenizer.from_pretrained(path)


@torch.no_grad()
def live_logits(handle: Handle, prompt: str, chosen: str, steered: AbstractContextManager[None]) -> Tensor:
    """Logits (R, V) that predict the tokens of `chosen`, with the model steered."""
    model, tokenizer = handle
    start = len(tokenizer(prompt).input_ids)
    ids = torch.tensor([tokenizer(f"{prompt} {chosen}").input_ids], device=model.device)
    with steered:
        logits: Tensor = model(ids).logits
    return logits[0, start - 1 : -1]
