"""Fixtures of the full-size tests: the GPU, or a reason to skip; and the model, built or loaded once."""

from __future__ import annotations

from dataclasses import dataclass

import ladder
import pytest
import torch

from grains_ref.grains import PRESETS, Example, Fit, HyperParameters
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.full_size import (
    GIB,
    Weights,
    examples_of,
    full_model,
    parameter_bytes,
    truthfulqa_shaped_pairs,
)

NEEDED_GIB = 22.0  # 15 GiB of parameters, what a fit may take beside them (ACTIVATIONS_GIB), CUDA's own


@dataclass(frozen=True)
class FullSize:
    """A full-size model on the GPU, its first four pairs, and vectors fitted from them."""

    config: str
    weights: Weights
    model: HuggingFaceModel
    hp: HyperParameters
    examples: list[Example]


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """The GPU; without one the test skips and says why."""
    if not torch.cuda.is_available():
        pytest.skip(f"needs a CUDA GPU, and torch {torch.__version__} finds none (torch.cuda.is_available() is False)")
    device = torch.device("cuda", torch.cuda.current_device())
    free = torch.cuda.mem_get_info(device)[0] / GIB
    if free < NEEDED_GIB:
        name = torch.cuda.get_device_name(device)
        pytest.skip(f"needs {NEEDED_GIB:.0f} GiB of free GPU memory; {name} has {free:.1f}")
    return device


@pytest.fixture(scope="module")
def full_llama(gpu: torch.device) -> FullSize:
    """Llama-3.1-8B in bfloat16: the released weights if this machine has them, random ones otherwise."""
    torch.cuda.reset_peak_memory_stats(gpu)
    model, weights = full_model("llama-3.1-8b", device=gpu)
    built = torch.cuda.max_memory_allocated(gpu)
    # A second copy on the device, or a float32 one on the way, would show here.
    assert built < parameter_bytes(model) + 2 * GIB, f"{built / GIB:.1f} GiB were in use while the model was made"
    pairs = truthfulqa_shaped_pairs(4)
    return FullSize("llama-3.1-8b", weights, model, PRESETS["paper_llm"], examples_of(model, pairs))


@dataclass(frozen=True)
class Fitted:
    fit: Fit
    peak: int  # bytes in use at most while fitting


@pytest.fixture(scope="module")
def fitted(gpu: torch.device, full_llama: FullSize) -> Fitted:
    torch.cuda.reset_peak_memory_stats(gpu)
    fit = ladder.check_fit(full_llama.model, full_llama.examples, full_llama.hp)
    return Fitted(fit, torch.cuda.max_memory_allocated(gpu))
