"""Do two halves of the pairs give the same vectors?  Cosines of random halvings, pooled and layer by layer."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grains_ref.grains import DegenerateShiftsError

HALVINGS = 20
Halved = Callable[[Sequence[int]], Tensor]  # numbers of pairs -> the vectors fitted on them, (L, width)


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval."""

    value: float
    low: float
    high: float


def agreement_of_halves(n: int, halved: Halved) -> tuple[Estimate | None, list[float] | None]:
    """Cosines of the vectors of two random halves: pooled with their range, and block by block.

    None where there are fewer than four pairs, or a half defines no direction.
    """
    if n < 4:
        return None, None
    draws = random.Random("halves")
    pooled, of_layers = [], []
    for _ in range(HALVINGS):
        order = draws.sample(range(n), n)
        try:
            a, b = halved(sorted(order[: n // 2])), halved(sorted(order[n // 2 :]))
        except DegenerateShiftsError:
            return None, None
        pooled.append(cosine_of(a, b))
        of_layers.append([cosine_of(x, y) for x, y in zip(a, b, strict=True)])
    mean = sum(pooled) / HALVINGS
    return Estimate(mean, min(pooled), max(pooled)), torch.tensor(of_layers).double().mean(0).tolist()


def cosine_of(a: Tensor, b: Tensor) -> float:
    """Cosine of all entries together; 0 where one of them is zero."""
    a, b = a.double().flatten(), b.double().flatten()
    lengths = (a.norm() * b.norm()).item()
    return (a @ b).item() / lengths if lengths else 0.0
