"""What a choice of a strength is made among, and what is told beside it."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from grains_ref.grains import HyperParameters
from grains_ref.models import HuggingFaceModel


class AnyCandidate(Protocol):
    """One setting of any method. Strength 0 stands for the unsteered model."""

    @property
    def lam(self) -> float:
        """The strength."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the decoder blocks that are steered."""

    @property
    def name(self) -> str:
        """What it is called beside its strength."""

    @property
    def made_by(self) -> object:
        """What tells its vectors from others."""

    def setting(self) -> list[Any]:
        """What it is, in plain values."""

    def steering(self, model: HuggingFaceModel) -> AbstractContextManager[object]:
        """The edit that it stands for."""


@dataclass(frozen=True)
class TaskCost:
    """What the chosen setting costs on the dev tasks."""

    n: int
    wrong: int
    wrong_unsteered: int
    max_loss: float  # points that were allowed

    @property
    def accuracy(self) -> float:
        """Share of the tasks that the chosen setting answers rightly."""
        return 1 - self.wrong / self.n

    @property
    def accuracy_unsteered(self) -> float:
        """Share of the tasks that the unsteered model answers rightly."""
        return 1 - self.wrong_unsteered / self.n


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What `sweep` tries: every strength with every set of hyper-parameters at every set of layers.

    Attributes:
        lams: strengths. Strength 0, the unsteered model, is always tried, named or not.
        hps: hyper-parameters, for instance several k and aggregations.
        layer_sets: numbers of the decoder blocks to steer; an empty set stands for all blocks.

    Raises:
        ValueError: nothing to try, the same thing twice, or a strength that is not finite.
    """

    lams: tuple[float, ...]
    hps: tuple[HyperParameters, ...]
    layer_sets: tuple[tuple[int, ...], ...] = ((),)

    def __post_init__(self) -> None:
        for name, values in (("lams", self.lams), ("hps", self.hps), ("layer_sets", self.layer_sets)):
            if not isinstance(values, tuple):
                raise ValueError(f"grid: {name} is {values!r}; expected a tuple, for instance lams=(1.0, 2.0)")
            if not values:
                raise ValueError(f"grid: {name} is empty; nothing can be tried")
            if len(set(values)) < len(values):
                raise ValueError(f"grid: {name} has an entry twice: {values}")
        if not all(math.isfinite(lam) for lam in self.lams):
            raise ValueError(f"grid: strengths must be finite numbers; got {self.lams}")
