"""Lab: the same steering is the same object, so that it is measured once, and it is made by the engine of the lab."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from grains_ref import fast, grains
from grains_ref.demo.lab import Lab
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
