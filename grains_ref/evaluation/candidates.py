"""What a choice of a strength needs to know of its candidates, and what is told beside the choice."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

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
