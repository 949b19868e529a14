"""The two engines behind one interface: what a fit, a sweep or a demo needs of the stages before the aggregation.

engine = engine_of("fast", model, examples, hp, memory="80%")
for batch in engine.batches(examples, hp):
    scores = engine.scores([examples[i] for i in batch], hp)
    shifts = engine.shifts([examples[i] for i in batch], scores, hp)
fit = engine.vectors(all_shifts, hp)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from grains_ref import grains
from grains_ref.fast import aggregation, attribution, contrast, steering
from grains_ref.fast.memory import DEFAULT_SHARE, Memory, measured, parse_share
from grains_ref.fast.rows import batches, branches_of, example_tokens, responses_of
from grains_ref.grains import Attribution, Example, Fit, Function, Hooks, HyperParameters, Model, Shift

EngineName = Literal["fast", "reference"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)


class Engine(Protocol):
    """Figure 2 in pieces."""

    name: EngineName

    @property
    def pass_tokens(self) -> int:
        """Tokens of one pass; 0 where one point of one example goes through the model at a time."""

    def batches(self, examples: Sequence[Example], hp: HyperParameters) -> list[list[int]]:
        """Which examples are computed together; every number once."""

    def objective(self, example: Example, hp: HyperParameters) -> Function:
        """Eq. (1): f of one example."""

    def attribute(self, example: Example, hp: HyperParameters) -> Attribution:
        """Eq. (1), (2) of one example, with f at both ends of the path."""

    def scores(self, examples: Sequence[Example], hp: HyperParameters) -> list[Tensor]:
        """Eq. (1), (2): a of every example, (T,)."""

    def shifts(self, examples: Sequence[Example], scores: Sequence[Tensor], hp: HyperParameters) -> list[Shift]:
        """Eq. (3), (4)."""

    def vectors(self, shifts: Sequence[Shift], hp: HyperParameters) -> Fit:
        """Eq. (5), (6)."""


class Reference:
    """`grains_ref.grains`, one example after the other."""

    name: EngineName = "reference"
    pass_tokens = 0

    def __init__(self, model: Model) -> None:
        self._model = model

    def batches(self, examples: Sequence[Example], hp: HyperParameters) -> list[list[int]]:
        """See `Engine`."""
        return [[i] for i in range(len(examples))]

    def objective(self, example: Example, hp: HyperParameters) -> Function:
        """See `Engine`."""
        return grains.objective(self._model, example, hp)

    def attribute(self, example: Example, hp: HyperParameters) -> Attribution:
        """See `Engine`."""
        return grains.attribute(self._model, example, hp)

    def scores(self, examples: Sequence[Example], hp: HyperParameters) -> list[Tensor]:
        """See `Engine`."""
        return [self.attribute(example, hp).a for example in examples]

    def shifts(self, examples: Sequence[Example], scores: Sequence[Tensor], hp: HyperParameters) -> list[Shift]:
        """See `Engine`."""
        return [grains.shift(self._model, example, a, hp) for example, a in zip(examples, scores, strict=True)]

    def vectors(self, shifts: Sequence[Shift], hp: HyperParameters) -> Fit:
        """See `Engine`."""
        return grains.vectors(shifts, hp)


class Fast:
    """Several examples and points in one pass, as memory allows; see `grains_ref.fast`."""

    name: EngineName = "fast"

    def __init__(self, model: Model, memory: Memory | None = None) -> None:
        self._model = model
        self._memory = memory or Memory()

    @property
    def pass_tokens(self) -> int:
        """Tokens of one pass; results depend on it by rounding."""
        return self._memory.pass_tokens

    def batches(self, examples: Sequence[Example], hp: HyperParameters) -> list[list[int]]:
        """See `Engine`."""
        return batches(examples, hp, pass_tokens=self.pass_tokens)

    def objective(self, example: Example, hp: HyperParameters) -> Function:
        """See `Engine`."""
        return attribution.objective(self._model, example, hp)

    def attribute(self, example: Example, hp: HyperParameters) -> Attribution:
        """See `Engine`."""
        return attribution.attribute(self._model, example, hp, memory=self._memory)

    def scores(self, examples: Sequence[Example], hp: HyperParameters) -> list[Tensor]:
        """See `Engine`."""
        return attribution.scores(self._model, examples, hp, memory=self._memory)

    def shifts(self, examples: Sequence[Example], scores: Sequence[Tensor], hp: HyperParameters) -> list[Shift]:
        """See `Engine`."""
        return contrast.shifts(self._model, examples, scores, hp, memory=self._memory)

    def vectors(self, shifts: Sequence[Shift], hp: HyperParameters) -> Fit:
        """See `Engine`."""
        return aggregation.vectors(shifts, hp)


def engine_of(
    name: EngineName,
    model: Model,
    examples: Sequence[Example] = (),
    hp: HyperParameters | None = None,
    *,
    memory: str = DEFAULT_SHARE,
    pass_tokens: int = 0,
) -> Engine:
    """An engine by name, with as many tokens in a pass as a share of the free memory holds.

    examples, hp: what it is for; the longest example is tried.  Without examples, or with pass_tokens, nothing is
    measured.

    Raises:
        ValueError: there is no such engine, or the share cannot be read.
    """
    if name not in ENGINES:
        raise ValueError(f"there is no engine {name!r}; there are {', '.join(ENGINES)}")
    parse_share(memory)
    if name == "reference":
        return Reference(model)
    if pass_tokens:
        return Fast(model, Memory(pass_tokens))
    branches = branches_of(model)
    if branches is None or not examples:
        return Fast(model)
    settings = hp or HyperParameters()
    longest = max(examples, key=example_tokens)
    point = longest.encoded.embeds.detach().requires_grad_()

    def keep() -> Tensor:
        return branches.log_probs([longest.encoded], [point], [responses_of(longest, settings)])

    with torch.enable_grad():
        keep()  # what is done once, at the first run, is not counted
    return Fast(model, measured(keep, tokens=example_tokens(longest), share=memory, device=point.device))


def steering_by(
    name: EngineName, blocks: Sequence[nn.Module], v: Tensor, *, lam: float, layers: Sequence[int] | None = None
) -> Hooks:
    """Eq. (7), (8) as one of the two engines has them: `fast.Steering` or `grains.Steering`.

    Raises:
        TypeError, ValueError: see `grains.Steering`; there is no such engine.
    """
    if name not in ENGINES:
        raise ValueError(f"there is no engine {name!r}; there are {', '.join(ENGINES)}")
    if name == "reference":
        return grains.Steering(blocks, v, lam=lam, layers=layers)
    return steering.Steering(blocks, v, lam=lam, layers=layers)


def fit(model: Model, examples: Sequence[Example], hp: HyperParameters, *, memory: str = DEFAULT_SHARE) -> Fit:
    """`grains.fit`, figure 2: preference pairs in, steering vectors out."""
    engine = engine_of("fast", model, examples, hp, memory=memory)
    shifts: dict[int, Shift] = {}
    for batch in engine.batches(examples, hp):
        of_batch = [examples[i] for i in batch]
        shifts.update(zip(batch, engine.shifts(of_batch, engine.scores(of_batch, hp), hp), strict=True))
    return engine.vectors([shifts[i] for i in range(len(examples))], hp)
