"""A model that is not finite for some prompts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from grains_ref.models import HuggingFaceModel


@contextmanager
def damaged(model: HuggingFaceModel, block: int) -> Iterator[None]:
    """A block whose output is NaN whenever the token " moon" is in it: only some prompts fail."""
    moon = model.embed.weight[model.response_ids("x", "moon")[0]]

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        broken = (model_inputs[-1] == moon).all(-1).any(-1)  # (B,)
        return torch.where(broken[:, None, None], torch.nan, output)

    model_inputs: list[torch.Tensor] = []
    first = model.blocks[0].register_forward_pre_hook(lambda module, inputs: model_inputs.append(inputs[0]))
    second = model.blocks[block].register_forward_hook(hook)
    try:
        yield
    finally:
        first.remove()
        second.remove()
