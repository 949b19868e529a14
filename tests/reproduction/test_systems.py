"""Rows of the neighbours' systems: what they share."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from grains_ref.reproduction import systems

pytestmark = pytest.mark.cpu


@dataclass(frozen=True)
class Fitted:
    name: str

    def settings(self, model: Any) -> list[str]:
        return [self.name]


def test_autoencoders_are_trained_once_for_both_kinds_of_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    made: dict[str, Any] = {}

    def once(name: str, make: Any) -> Any:
        if name not in made:
            made[name] = make()
        return made[name]

    def train(model: str, pairs: str) -> str:
        trained.append(f"{model}, {pairs}")
        return "autoencoders"

    def fit(model: str, pairs: str, *, features: str, answers: str) -> Fitted:
        assert (model, pairs, features) == ("model", "pairs", "autoencoders")
        return Fitted(f"autoencoder, {answers}, max")

    monkeypatch.setattr(systems.corr_steer, "trained", train)
    monkeypatch.setattr(systems.corr_steer, "fit", fit)
    lab: Any = SimpleNamespace(model="model", steer="pairs", once=once)
    assert systems.TEXT["CorrSteer, trained autoencoder"](lab) == [["trained, pairs, max"]]
    assert systems.TEXT["CorrSteer, trained autoencoder, own answers"](lab) == [["trained, greedy, max"]]
    assert trained == ["model, pairs"]
