"""Fixtures of the full-size tests: the GPU, or a reason to skip; and each model, built or loaded once."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from pathlib import Path

import ladder
import pytest
import torch

from grains_ref.data import PreferencePair
from grains_ref.grains import PRESETS, Example, Fit, HyperParameters
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.full_size import (
    GIB,
    Weights,
    examples_of,
    full_model,
    parameter_bytes,
    picture_pairs,
    truthfulqa_shaped_pairs,
)

# Parameters, what a fit may take beside them, and CUDA's own; docs/gpu.md has the estimates.
NEEDED_GIB = {"llama-3.1-8b": 22.0, "llava-v1.6-vicuna-7b": 40.0}


@dataclass(frozen=True)
class FullSize:
    """A full-size model on the GPU, its first four pairs, and their examples."""

    config: str
    weights: Weights
    model: HuggingFaceModel
    preset: str
    pairs: tuple[PreferencePair, ...]
    examples: list[Example]

    @property
    def hp(self) -> HyperParameters:
        return PRESETS[self.preset]


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """The GPU; without one the test skips and says why."""
    if not torch.cuda.is_available():
        pytest.skip(f"needs a CUDA GPU, and torch {torch.__version__} finds none (torch.cuda.is_available() is False)")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="module")
def full_llama(gpu: torch.device) -> FullSize:
    """Llama-3.1-8B in bfloat16 and pairs of TruthfulQA's shape."""
    model, weights = build("llama-3.1-8b", gpu)
    pairs = truthfulqa_shaped_pairs(4)
    return FullSize("llama-3.1-8b", weights, model, "paper_llm", pairs, examples_of(model, pairs))


@pytest.fixture(scope="module")
def full_llava(gpu: torch.device, tmp_path_factory: pytest.TempPathFactory) -> FullSize:
    """LLaVA-1.6-7B in bfloat16 and pairs about pictures of a camera's size."""
    model, weights = build("llava-v1.6-vicuna-7b", gpu)
    pairs = picture_pairs(tmp_path_factory.mktemp("pictures"))
    return FullSize("llava-v1.6-vicuna-7b", weights, model, "paper_vlm", pairs, examples_of(model, pairs))


def build(config: str, device: torch.device) -> tuple[HuggingFaceModel, Weights]:
    """The released weights if this machine has them, random ones otherwise; skips where memory is too small."""
    gc.collect()  # the model of the module before
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(device)[0] / GIB
    if free < NEEDED_GIB[config]:
        name = torch.cuda.get_device_name(device)
        pytest.skip(f"{config} needs {NEEDED_GIB[config]:.0f} GiB of free GPU memory; {name} has {free:.1f}")
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    model, weights = full_model(config, device=device)
    built = torch.cuda.max_memory_allocated(device) - before
    # A second copy on the device, or a float32 one on the way, would show here.
    assert built < parameter_bytes(model) + 2 * GIB, f"{built / GIB:.1f} GiB were in use while the model was made"
    return model, weights


@dataclass(frozen=True)
class Fitted:
    fit: Fit
    peak: int  # bytes in use at most while fitting


@pytest.fixture(scope="module")
def fitted(gpu: torch.device, full_llama: FullSize) -> Fitted:
    torch.cuda.reset_peak_memory_stats(gpu)
    fit = ladder.check_fit(full_llama.model, full_llama.examples, full_llama.hp)
    return Fitted(fit, torch.cuda.max_memory_allocated(gpu))


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """The folder that records are written to: GRAINS_GPU_RECORDS, or a temporary one."""
    return Path(os.environ.get("GRAINS_GPU_RECORDS") or tmp_path)
