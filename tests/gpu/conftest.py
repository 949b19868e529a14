"""Fixtures of the full-size tests: the GPU, or a reason to skip; and each module's model, built or loaded once."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch
from full_size_suite import RUNGS, FullSize, built_on, fitted, lam, steering  # noqa: F401

from grains_ref.grains import PRESETS
from grains_ref.tiny_models.full_pairs import examples_of, picture_pairs, truthfulqa_shaped_pairs


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """The GPU; without one the test skips and says why."""
    if not torch.cuda.is_available():
        pytest.skip(f"needs a CUDA GPU, and torch {torch.__version__} finds none (torch.cuda.is_available() is False)")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="module")
def full(request: pytest.FixtureRequest, gpu: torch.device, tmp_path_factory: pytest.TempPathFactory) -> FullSize:
    """The model that the module calls CONFIG, in bfloat16, and pairs of TruthfulQA's shape or about pictures."""
    gc.collect()  # the model of the module before
    torch.cuda.empty_cache()
    rung = RUNGS[request.module.CONFIG]
    model, weights = built_on(gpu, rung)
    pairs = picture_pairs(tmp_path_factory.mktemp("pictures")) if rung.image_tokens else truthfulqa_shaped_pairs(4)
    return FullSize(rung, weights, model, pairs, examples_of(model, pairs), PRESETS[rung.preset])


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """The folder that records are written to: GRAINS_GPU_RECORDS, or a temporary one."""
    return Path(os.environ.get("GRAINS_GPU_RECORDS") or tmp_path)
