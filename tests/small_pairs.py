"""Pairs of a few words, and numbers from a seed, for tests of methods on tiny models."""

from __future__ import annotations

import torch
from torch import Tensor

from grains_ref.data import PreferencePair

PAIRS = [
    PreferencePair(prompt, prompt, chosen, rejected, where="made up")
    for prompt, chosen, rejected in (
        ("Q: What is the capital of France? A:", "Paris.", "Rome, of course!"),
        ("Is the earth flat?", "No, it is round", "Yes"),
        ("The moon is made of", "rock", "green cheese"),
    )
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64, the same on every machine."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
