"""What the cases of all stages are made of: the class `Case`, seeded numbers, prompts, masks and baselines."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from grains_ref.conformance.toy import WIDTH, toy_weights

ResultKind = Literal["valid", "invalid", "acceptable"]


@dataclass(frozen=True)
class Case:
    """One input of one stage.

    result: `valid` has one right output; `invalid` must be refused; `acceptable` is ill-posed (near ties, a small
    eigen-gap), and the comparator knows which outputs are right. kills: the planted bugs that it must catch.
    generated: the rules of inputs that are too large to be stored, by their names.
    """

    id: str
    stage: str
    comment: str
    flags: tuple[str, ...]
    result: ResultKind
    inputs: dict[str, Any]
    kills: tuple[str, ...]
    generated: dict[str, dict[str, Any]] = field(default_factory=dict)


def numbered(
    stage: str, number: int, comment: str, flags: str, inputs: dict[str, Any], kills: str, result: ResultKind
) -> Case:
    """The case of a stage with a number; flags and planted bugs are given as words with spaces between them."""
    return Case(f"{stage}-{number:03d}", stage, comment, tuple(flags.split()), result, inputs, tuple(kills.split()))


def bf16(values: Any) -> np.ndarray:
    """The nearest values that bfloat16 can hold, as float64."""
    return torch.from_numpy(np.array(values, dtype=np.float64)).bfloat16().double().numpy()


def grid(name: str, *shape: int, reach: int = 128, step: float = 1 / 128) -> np.ndarray:
    """Seeded whole numbers from -reach to reach, times step; exact in bfloat16 for reach <= 256 and steps 2^n."""
    numbers = random.Random(name)
    return bf16([numbers.randrange(-reach, reach + 1) * step for _ in range(math.prod(shape))]).reshape(shape)


EMBED = bf16(toy_weights()["embed"])


def mask(padding: int, tokens: int) -> np.ndarray:
    """An attention mask (padding + tokens,) with its padding on the left."""
    return np.array([0] * padding + [1] * tokens)


def prompt(*ids: int, padding: int = 0) -> dict[str, np.ndarray]:
    """x and attention_mask of a prompt by its token ids."""
    return {"x": EMBED[[0] * padding + list(ids)], "attention_mask": mask(padding, len(ids))}


def seeded_prompt(name: str, *, tokens: int, padding: int = 0, step: float = 1 / 128) -> dict[str, np.ndarray]:
    """x and attention_mask of a prompt whose embeddings, padding included, belong to no token."""
    return {"x": grid(name, padding + tokens, WIDTH, step=step), "attention_mask": mask(padding, tokens)}


def answers(y_pos: Sequence[int], y_neg: Sequence[int]) -> dict[str, np.ndarray]:
    """The two responses."""
    return {"y_pos": np.array(y_pos, dtype=np.int64), "y_neg": np.array(y_neg, dtype=np.int64)}


def baselines(x: np.ndarray) -> dict[str, np.ndarray]:
    """Zero, padding and mean baselines for a prompt."""
    rows = {"zero": np.zeros(WIDTH), "padding": EMBED[0], "mean": bf16(EMBED.mean(0))}
    return {name: np.tile(row, (len(x), 1)) for name, row in rows.items()}


def spoilt(values: Any, bad: float) -> np.ndarray:
    """The values with their last number replaced by a NaN or an infinity."""
    array = np.array(values, dtype=np.float64)
    array.flat[-1] = bad
    return array
