"""The tests of tests/gpu, run on their architectures cut down to three narrow blocks, where test_ladder.py has none."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from full_size_suite import RUNGS, FullSize, SeeingModel, fitted, lam, steering  # noqa: F401

from grains_ref.grains import PRESETS
from grains_ref.tiny_models.full_pairs import examples_of, picture_pairs
from grains_ref.tiny_models.full_size import random_model, shrunken

pytestmark = [pytest.mark.cpu, pytest.mark.thorough]


@pytest.fixture(scope="module", params=["qwen2.5-vl-7b", "gemma-3-12b"])
def full(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FullSize:
    rung = RUNGS[request.param]
    model = random_model(shrunken(rung.config, vocab_size=1009), name="shrunken", dtype=torch.bfloat16)
    if rung.config == "qwen2.5-vl-7b":
        model.family.processor.size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 60}  # pixels of 60 tokens
    pairs = picture_pairs(tmp_path_factory.mktemp("pictures"), 2)
    few = dataclasses.replace(rung, image_tokens={"qwen2.5-vl-7b": 48, "gemma-3-12b": 4}[rung.config])
    hp = dataclasses.replace(PRESETS[rung.preset], m=1)
    return FullSize(few, "random", model, pairs, examples_of(model, pairs), hp)


class TestShrunken(SeeingModel):
    """Qwen2.5-VL and Gemma 3, with few image tokens."""
