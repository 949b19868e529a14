"""Choosing a setting on dev and measuring it on test, the same for every row of every table.

The rule of choice is that of docs/worlds.md, which was fixed before any method was run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from grains_ref.data import PreferencePair, Task
from grains_ref.evaluation.choice import Choice, allowed_errors, choose, keeps_capability
from grains_ref.evaluation.measures import exact_matches, pair_rows, row_margins, task_rows
from grains_ref.evaluation.metrics import rate
from grains_ref.methods.core import Setting
from grains_ref.models import HuggingFaceModel

MAX_LOSS = 0.5  # points of dev capability that a setting may cost
CHUNK = 60  # tasks between two looks at whether a setting has failed too many
UNSTEERED = Setting("unsteered", 0.0, contextlib.nullcontext)


@dataclass(frozen=True)
class Outcome:
    """What a chosen setting does on test, one entry per prompt or task, and what it was chosen from."""

    label: str
    strength: float
    tried: tuple[tuple[str, float, float], ...]  # see `tried`
    right: tuple[bool, ...]  # prefers the chosen answer
    rejected: tuple[bool, ...]  # greedy decoding gives the rejected answer, word for word
    capable: tuple[bool, ...]


def _ignore(what: str) -> None:
    pass


class Bench:
    """The dev and test sets of one model, each pairs and tasks, tokenised once.

    What has been measured of a steering is not measured again, in whichever row and under whichever name it comes back.

    note: called with what is measured next.
    """

    def __init__(
        self,
        model: HuggingFaceModel,
        *,
        dev: tuple[Sequence[PreferencePair], Sequence[Task]],
        test: tuple[Sequence[PreferencePair], Sequence[Task]],
    ) -> None:
        self.model = model
        self.note: Callable[[str], None] = _ignore
        self.dev, self.dev_tasks = pair_rows(model, dev[0]), task_rows(model, dev[1])
        self.test_rows, self.test_tasks = pair_rows(model, test[0]), task_rows(model, test[1])
        self.allowed = allowed_errors(exact_matches(model, self.dev_tasks), max_loss=MAX_LOSS)
        self._dev_accuracies: dict[Any, float] = {}  # by steering, see `_key`
        self._capable: dict[Any, bool] = {}
        self._outcomes: dict[Any, dict[str, tuple[bool, ...]]] = {}

    # ------------------------------------------------------------------------------------------- dev
    def choose(self, settings: Sequence[Setting]) -> Choice[Setting]:
        """The best setting on dev among those that keep capability; "unsteered" is always the first of them.

        settings: gentlest first.
        """
        return choose([UNSTEERED, *settings], accuracy=self.dev_accuracy, admissible=self.keeps_capability)

    def dev_accuracy(self, setting: Setting) -> float:
        """The share of dev pairs whose chosen answer is the more likely one."""
        key = _key(setting)
        if key not in self._dev_accuracies:
            self.note(f"dev: {setting.label}, {setting.strength:g}")
            with setting.steering():
                self._dev_accuracies[key] = rate(m > 0 for m in row_margins(self.model, self.dev)).value
        return self._dev_accuracies[key]

    def keeps_capability(self, setting: Setting) -> bool:
        """Whether a setting costs at most half a point of dev capability."""
        key = _key(setting)
        if key not in self._capable:
            self.note(f"dev tasks: {setting.label}, {setting.strength:g}")
            with setting.steering():
                self._capable[key] = keeps_capability(self.model, self.dev_tasks, allowed=self.allowed, chunk=CHUNK)
        return self._capable[key]

    # ------------------------------------------------------------------------------------------- test
    def test(self, choice: Choice[Setting]) -> Outcome:
        """What the chosen setting does on test."""
        setting = choice.best
        key = _key(setting)
        if key not in self._outcomes:
            self.note(f"test: {setting.label}, {setting.strength:g}")
            with setting.steering():
                scored = self.model.score_rows(self.test_rows)
                capable = exact_matches(self.model, self.test_tasks)
            n = len(scored) // 2
            chosen, rejected = scored[:n], scored[n:]
            self._outcomes[key] = {
                "right": tuple(c.log_prob > r.log_prob for c, r in zip(chosen, rejected, strict=True)),
                "rejected": tuple(r.is_greedy for r in rejected),
                "capable": tuple(capable),
            }
        return Outcome(setting.label, setting.strength, tried(choice), **self._outcomes[key])


def tried(choice: Choice[Setting]) -> tuple[tuple[str, float, float], ...]:
    """What a setting was chosen from: label, strength and dev accuracy of every setting."""
    return tuple((t.setting.label, t.setting.strength, t.accuracy) for t in choice.tried)


def _key(setting: Setting) -> object:
    """What tells two settings apart: their steering, whatever they are called.  Strength 0 is the unsteered model."""
    return setting.steering if setting.strength else UNSTEERED.steering
