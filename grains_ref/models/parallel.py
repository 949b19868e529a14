"""One model over several processes: transformers' own tensor parallelism, in which each holds a share of every matrix.

    torchrun --nproc-per-node 2 ...        load(..., device_map="tensor_parallel")

All processes run the same program on the same prompts, and each gets the whole result.  Hooks see whole states, because
transformers' plans put shares together again within the block.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch

TENSOR_PARALLEL = "tensor_parallel"  # as a device_map


def loading_options() -> dict[str, Any]:
    """The arguments of `from_pretrained` by which transformers spreads a model by its own plan.

    Raises:
        ValueError: this is one process alone.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise ValueError(
            f"device_map {TENSOR_PARALLEL!r} spreads a model over several processes, and this is one alone. Start them "
            "with 'torchrun --nproc-per-node N', or spread the model over the devices of one process "
            "(device_map='auto')"
        )
    from transformers.distributed import DistributedConfig

    if "tp_plan" in {field.name for field in dataclasses.fields(DistributedConfig)}:
        return {"distributed_config": DistributedConfig(tp_plan="auto")}
    return {"tp_plan": "auto"}  # as older versions take it


def is_spread(hf: torch.nn.Module) -> bool:
    """Whether a parameter is one process's share of a matrix."""
    return any(hasattr(parameter, "full_tensor") for parameter in hf.parameters())
