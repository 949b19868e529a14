"""Lab: the same steering is the same object, so that it is measured once, and it is made by the engine of the lab."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from grains_ref import fast, grains
from grains_ref.demo.lab import NEIGHBOURS, Lab
from grains_ref.demo.planted import planted_lab
from grains_ref.grains import HyperParameters

pytestmark = pytest.mark.cpu
V = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])


@pytest.fixture
def lab() -> Lab:
    model: Any = SimpleNamespace(blocks=[nn.Linear(2, 2) for _ in V])
    nothing: Any = ((), ())
    return Lab(model, HyperParameters(), (1.0, 2.0), "", steer=(), dev=nothing, test=nothing, facts=())


def steerings(lab: Lab, v: Tensor, **layers: Any) -> list[Any]:
    return [setting.steering for setting in lab.strengths("any label", v, **layers)]


def test_the_same_bits_at_the_same_layers_are_one_steering(lab: Lab) -> None:
    first = steerings(lab, V)
    assert first == steerings(lab, V.clone()) == steerings(lab, V, layers=[0, 1, 2])
    assert first[0] != first[1]
    for other in (steerings(lab, -V), steerings(lab, V.double()), steerings(lab, V, layers=[0, 1])):
        assert not set(first) & set(other)
    assert [setting.strength for setting in lab.strengths("b", V)] == [1.0, 2.0]
    assert {setting.label for setting in lab.strengths("b", V)} == {"b"}


def test_the_engine_of_the_lab_steers(lab: Lab) -> None:
    state = torch.tensor([[[3.0, 4.0]]])
    for engine, kind in (("fast", fast.Steering), ("reference", grains.Steering)):
        of_engine = replace(lab, engine=engine)
        weak, strong = (make() for make in steerings(of_engine, V, layers=[1]))
        assert type(weak) is kind
        block = lab.model.blocks[1]
        plain = block(state)
        with strong:
            torch.testing.assert_close(block(state), grains.steer_hidden(plain, V[1], lam=2.0))
            assert torch.equal(lab.model.blocks[0](state), lab.model.blocks[0](state))


def test_examples_computed_together_are_those_computed_alone_whoever_asks_first(tmp_path: Path) -> None:
    lab, other = planted_lab("simple", 0, tmp_path), planted_lab("simple", 0, tmp_path)
    hp = replace(lab.paper, m=2)
    numbers = [0, NEIGHBOURS - 1, NEIGHBOURS + 1]
    for i in numbers:
        alone = lab.attribution(hp, i).a
        torch.testing.assert_close(lab.scores(hp, i), alone, rtol=1e-4, atol=1e-4)
        expected = grains.shift(lab.model, lab.example(i), alone, hp)
        got = lab.shift(hp, i)
        assert got.selection == expected.selection
        torch.testing.assert_close(got.delta_pos, expected.delta_pos, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(got.delta_neg, expected.delta_neg, rtol=1e-4, atol=1e-4)
    for i in range(NEIGHBOURS):
        assert lab._batches(hp, i) == lab._batches(hp, 0)
    few = replace(lab, steer=lab.steer[:12], more=lab.steer[12:24])
    for i in range(24):
        together = sorted(j for batch in few._batches(hp, i) for j in batch)
        assert i in together
        assert all((j < 12) == (i < 12) for j in together)
        assert few._batches(hp, together[0]) == few._batches(hp, i)
    for i in reversed(numbers):
        assert torch.equal(other.shift(hp, i).delta_pos, lab.shift(hp, i).delta_pos)
        assert torch.equal(other.scores(hp, i), lab.scores(hp, i))
