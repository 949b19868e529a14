"""demo/bench.py: the choice on dev under the constraint, on a model of two dimensions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from grains_ref.data import PreferencePair, Task
from grains_ref.demo.bench import UNSTEERED, Bench, Outcome
from grains_ref.demo.rows import gentlest_first
from grains_ref.evaluation.choice import Choice
from grains_ref.grains import Steering
from grains_ref.methods.core import Setting
from grains_ref.models import TokenRow

pytestmark = pytest.mark.cpu


@dataclass
class LeaningModel:
    """A hidden state (3, 0) that steering turns by some angle.

    Pair i, of 10, is right beyond 8 i degrees, and up to there its rejected answer is the greedy one.
    Task i, of 400, is failed beyond 30 + i / 2 degrees.
    """

    blocks: Sequence[nn.Module] = field(default_factory=lambda: [nn.Identity()])
    context: int = 8

    def tokenise(self, items: Any) -> list[TokenRow]:
        return [TokenRow((int(prompt.split()[0]),), (int(response),)) for prompt, response, *_ in items]

    def check_rows(self, rows: Sequence[TokenRow]) -> None:
        pass

    def score_rows(self, rows: Sequence[TokenRow]) -> list[SimpleNamespace]:
        x, y = self.blocks[0](torch.tensor([3.0, 0.0])).tolist()
        angle = np.degrees(np.arctan2(y, x))
        return [
            SimpleNamespace(
                is_forbidden=False,
                log_prob=(angle - 8 * row.prompt[0] if row.response[0] else 0.0),
                is_greedy=bool(angle <= (30 + row.prompt[0] / 2 if row.response[0] else 8 * row.prompt[0])),
            )
            for row in rows
        ]


def leaning_bench(model: LeaningModel) -> Bench:
    pairs = [PreferencePair(f"{i}", f"{i} ?", "1", "0", where="") for i in range(10)]
    tasks = [Task(f"{i}", f"{i} ?", "1") for i in range(400)]
    return Bench(model, dev=(pairs, tasks), test=(pairs, tasks))  # type: ignore[arg-type]


def leaning(bench: Bench, **candidates: torch.Tensor) -> list[Setting]:
    """Every candidate at every strength, gentlest first."""

    def grid(label: str, v: torch.Tensor) -> list[Setting]:
        lams = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
        return [Setting(label, lam, functools.partial(Steering, bench.model.blocks, v, lam=lam)) for lam in lams]

    return gentlest_first([grid(label, v) for label, v in candidates.items()])


def outcome_of(bench: Bench, setting: Setting) -> Outcome:
    return bench.test(Choice(setting, 0.0, ()))


def accuracies(choice: Choice[Setting]) -> list[float]:
    return [tried.accuracy for tried in choice.tried]


@pytest.fixture
def bench() -> Bench:
    return leaning_bench(LeaningModel())


UP, DOWN = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, -1.0]])


def test_a_setting_below_the_capability_limit_is_never_chosen(bench: Bench) -> None:
    # tan(angle) = lam / 3.  400 tasks, half a point of loss is 2 tasks: the angle may reach 31 degrees.
    assert bench.allowed == 2
    settings = leaning(bench, up=UP)
    choice = bench.choose(settings)
    accuracy = {tried.setting.strength: tried.accuracy for tried in choice.tried}
    assert accuracy == {0.0: 0.0, 0.5: 0.2, 1.0: 0.3, 1.5: 0.4, 2.0: 0.5, 3.0: 0.6, 5.0: 0.8}
    assert choice.best.strength == 1.5  # 26.6 degrees; the next has 33.7 and fails in eight tasks
    outcome = bench.test(choice)
    assert sum(outcome.right) == 4
    assert all(outcome.capable)
    assert outcome.tried == tuple(("up" if lam else "unsteered", lam, value) for lam, value in accuracy.items())
    stronger = outcome_of(bench, settings[3])
    assert sum(stronger.right) > sum(outcome.right)
    assert stronger.capable.count(False) == 8


def test_what_the_unsteered_model_gets_wrong_is_not_held_against_a_setting() -> None:
    model = LeaningModel()
    model.blocks = [nn.Linear(2, 2, bias=False)]
    angle = np.radians(31.2)  # the model itself leans so far that three tasks fail
    rotation = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    model.blocks[0].weight.data = rotation.float()  # type: ignore[union-attr]
    assert leaning_bench(model).allowed == 3 + 2


def test_the_unsteered_model_is_kept_when_nothing_is_better_or_all_ties(bench: Bench) -> None:
    assert bench.choose(leaning(bench, down=DOWN)).best is UNSTEERED
    assert bench.choose([]).best is UNSTEERED


def test_strength_zero_is_the_unsteered_model_whatever_it_is_called(bench: Bench) -> None:
    zero = Setting("zero", 0.0, functools.partial(Steering, bench.model.blocks, UP, lam=0.0))
    assert bench.choose([zero]).best is UNSTEERED
    assert replace(outcome_of(bench, zero), label="unsteered") == outcome_of(bench, UNSTEERED)


def test_among_equals_the_gentlest_is_chosen_and_then_the_first(bench: Bench) -> None:
    again = bench.choose(leaning(bench, down=DOWN, up=UP, up_again=UP))
    assert (again.best.label, again.best.strength) == ("up", 1.5)
    assert [tried.setting.strength for tried in again.tried[:7]] == [0.0] + [0.5] * 3 + [1.0] * 3


def test_a_setting_that_was_measured_before_is_not_measured_again(bench: Bench) -> None:
    notes: list[str] = []
    bench.note = notes.append
    up = leaning(bench, up=UP)
    first = bench.choose(up)
    # Accuracy of "unsteered" and six strengths; capability from the best strength down to the one that keeps it.
    assert [note.startswith("dev: ") for note in notes] == [True] * 7 + [False] * 4
    renamed = [replace(setting, label="elsewhere") for setting in up]
    assert accuracies(bench.choose(renamed)) == accuracies(first)
    assert len(notes) == 11
    assert bench.test(first) == bench.test(first)
    assert len(notes) == 12
    down = bench.choose(leaning(bench, down=DOWN))  # the unsteered model is the same for all
    assert len(notes) == 12 + 6 + 1
    namesake = bench.choose(leaning(bench, up=DOWN))  # what it is called does not matter
    assert accuracies(namesake) == accuracies(down) != accuracies(first)


def test_outcomes_are_those_of_the_setting_and_not_of_an_earlier_one(bench: Bench) -> None:
    weak, strong = leaning(bench, up=UP)[0], leaning(bench, up=UP)[-1]
    assert [sum(outcome_of(bench, setting).right) for setting in (weak, strong, weak)] == [2, 8, 2]
    assert [sum(outcome_of(bench, setting).rejected) for setting in (weak, strong)] == [8, 2]
