"""One model with its steering pairs, dev and test data, and the stages already computed on it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from grains_ref.data import PreferencePair, Task
from grains_ref.demo.bench import Bench
from grains_ref.fast import Engine, EngineName, engine_of, steering_by
from grains_ref.grains import (
    Attribution,
    Example,
    Fit,
    Hooks,
    HyperParameters,
    Selection,
    Shift,
    contrast,
)
from grains_ref.methods.core import Setting
from grains_ref.methods.decoding.immune import Reward
from grains_ref.methods.ict import Box
from grains_ref.models import HuggingFaceModel, Item

Made = TypeVar("Made")

PLAIN = HyperParameters()
AFTER_ATTRIBUTION = ("k", "mask_baseline", "eligible", "aggregation", "components")  # what scores do not depend on
AFTER_SHIFT = ("aggregation", "components")  # what shifts do not depend on
NEIGHBOURS = 10  # examples that may go through the model together


@dataclass
class Lab:
    """What the rows of a table work with.

    `dataclasses.replace` gives a lab that has computed nothing yet.
    """

    model: HuggingFaceModel
    paper: HyperParameters
    lams: tuple[float, ...]  # the grid of strengths, gentlest first, without 0
    neutral: str  # a baseline of one word that is evidence for nothing
    steer: Sequence[PreferencePair]
    dev: tuple[Sequence[PreferencePair], Sequence[Task]]
    test: tuple[Sequence[PreferencePair], Sequence[Task]]
    facts: Sequence[str]  # which fact each test pair is about; prompts of one fact belong together
    more: Sequence[PreferencePair] = ()  # further steering pairs, for the question how many are needed
    causes: Sequence[Selection] = ()  # a planted world: which tokens of each steering prompt cause the answers
    dev_causes: Sequence[Selection] = ()  # the same of each dev prompt
    to_keep: Sequence[Item] = ()  # tasks in no split, with answers: text that steering should leave as it is
    boxes: Callable[[PreferencePair | Task], Sequence[Box]] | None = None  # where the object asked about is, for ICT
    # (of steering pairs; None: its image level only) and CRG (of all pairs and tasks)
    reward: Reward | None = None  # of a beginning of a response, for IMMUNE
    judged: Callable[[], Sequence[bool]] | None = None  # which greedy answers a judge calls hallucinations
    # Further tests of ability: which of their questions are solved, under whatever steering is active.
    abilities: Mapping[str, Callable[[], Sequence[bool]]] = field(default_factory=dict)
    engine: EngineName = "fast"
    unsteered: dict[str, str] = field(default_factory=dict, init=False)  # its outcomes on test, once measured
    _examples: dict[int, Example] = field(default_factory=dict, init=False)
    _attributions: dict[tuple[HyperParameters, int], Attribution] = field(default_factory=dict, init=False)
    _scores: dict[tuple[HyperParameters, int], Tensor] = field(default_factory=dict, init=False)
    _shifts: dict[tuple[HyperParameters, int], Shift] = field(default_factory=dict, init=False)
    _fits: dict[tuple[HyperParameters, int], Fit] = field(default_factory=dict, init=False)
    _steerings: dict[tuple[object, ...], list[Callable[[], Hooks]]] = field(default_factory=dict, init=False)
    _made_once: dict[str, Any] = field(default_factory=dict, init=False)

    @property
    def is_visual(self) -> bool:
        """Whether the model can see."""
        return bool(self.model.family.marker)

    @functools.cached_property
    def bench(self) -> Bench:
        """Dev and test data, tokenised once."""
        return Bench(self.model, dev=self.dev, test=self.test)

    def once(self, name: str, make: Callable[[], Made]) -> Made:
        """What several rows share under a name: made when it is first asked for."""
        if name not in self._made_once:
            self._made_once[name] = make()
        made: Made = self._made_once[name]
        return made

    # ------------------------------------------------------------------ GrAInS
    @functools.cached_property
    def stages(self) -> Engine:
        """Equations (1) to (6), by the engine that was asked for."""
        return engine_of(self.engine, self.model)

    def example(self, i: int) -> Example:
        """Steering example i; beyond the steering pairs, one of the further pairs."""
        if i not in self._examples:
            pair = self.steer[i] if i < len(self.steer) else self.more[i - len(self.steer)]
            self._examples[i] = self.model.example(pair.prompt, pair.chosen, pair.rejected, pair.image)
        return self._examples[i]

    def attribution(self, hp: HyperParameters, i: int) -> Attribution:
        """The scores of example i with f at both ends of the path; what hp says about later stages does not matter."""
        hp = _with_defaults(hp, AFTER_ATTRIBUTION)
        if (hp, i) not in self._attributions:
            self._attributions[hp, i] = self.stages.attribute(self.example(i), hp)
        return self._attributions[hp, i]

    def scores(self, hp: HyperParameters, i: int) -> Tensor:
        """The scores of example i, (T,); what hp says about later stages does not matter."""
        hp = _with_defaults(hp, AFTER_ATTRIBUTION)
        if (hp, i) not in self._scores:
            for numbers in self._batches(hp, i):
                scores = self.stages.scores([self.example(j) for j in numbers], hp)
                self._scores |= {(hp, j): a for j, a in zip(numbers, scores, strict=True)}
        return self._scores[hp, i]

    def shift(self, hp: HyperParameters, i: int) -> Shift:
        """The two shifts of example i; what hp says about aggregation does not matter."""
        hp = _with_defaults(hp, AFTER_SHIFT)
        if (hp, i) not in self._shifts:
            for numbers in self._batches(hp, i):
                scores = [self.scores(hp, j) for j in numbers]
                shifts = self.stages.shifts([self.example(j) for j in numbers], scores, hp)
                self._shifts |= {(hp, j): shift for j, shift in zip(numbers, shifts, strict=True)}
        return self._shifts[hp, i]

    def _batches(self, hp: HyperParameters, i: int) -> list[list[int]]:
        """Which examples are computed together with example i: a matter of their numbers, not of what is known."""
        begin, end = 0, len(self.steer)
        if i >= end:  # further pairs never share a pass with steering pairs
            begin, end = end, end + len(self.more)
        first = i - (i - begin) % NEIGHBOURS
        numbers = range(first, min(first + NEIGHBOURS, end))
        batches = self.stages.batches([self.example(j) for j in numbers], hp)
        return [[numbers[j] for j in batch] for batch in batches]

    def fit(self, hp: HyperParameters, *, n: int | None = None) -> Fit:
        """Equations (1) to (6) on the first n examples; by default all steering pairs."""
        return self.stages.vectors([self.shift(hp, i) for i in range(n or len(self.steer))], hp)

    def strengths(self, label: str, v: Tensor, *, layers: Sequence[int] | None = None) -> list[Setting]:
        """Equations (7) and (8) with v at every strength of the grid, gentlest first.

        The same bits of v at the same layers are the same steerings, whoever asks, which `Bench` measures once.
        """
        chosen = tuple(range(len(v))) if layers is None else tuple(layers)
        key = (v.dtype, v.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes(), chosen)
        if key not in self._steerings:
            make = functools.partial(steering_by, self.engine, self.model.blocks, v, layers=chosen)
            self._steerings[key] = [functools.partial(make, lam=lam) for lam in self.lams]
        return [Setting(label, lam, steering) for lam, steering in zip(self.lams, self._steerings[key], strict=True)]

    def grains(self, label: str, hp: HyperParameters, *, n: int | None = None) -> list[Setting]:
        """GrAInS with these hyper-parameters at every strength of the grid, gentlest first."""
        key = (hp, n or len(self.steer))
        if key not in self._fits:
            self._fits[key] = self.fit(hp, n=n)
        return self.strengths(label, self._fits[key].v)

    # ------------------------------------------------------------------ ground truth
    def planted_shifts(self) -> list[Shift]:
        """Every steering example's shift when its true causes are masked instead of attributed tokens."""
        return [self.planted_shift(i) for i in range(len(self.steer))]

    def planted_shift(self, i: int) -> Shift:
        """The shift of steering example i when its true causes are masked instead of attributed tokens."""
        example, causes = self.example(i), self.causes[i]
        baseline = self.model.baseline(example.encoded, self.paper.mask_baseline)
        delta_pos, delta_neg = contrast(self.model, example.encoded, causes, baseline)
        return Shift(torch.zeros(len(example.encoded.ids)), causes, delta_pos, delta_neg)


def _with_defaults(hp: HyperParameters, names: Sequence[str]) -> HyperParameters:
    """The same, but these as they are by default."""
    return replace(hp, **{name: getattr(PLAIN, name) for name in names})
