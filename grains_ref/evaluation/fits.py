"""The fits of a sweep: one for every set of hyper-parameters, what several of them share computed once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from grains_ref.evaluation.measured import Measured
from grains_ref.fast import Engine
from grains_ref.files.processes import share
from grains_ref.fitting.together import in_batch
from grains_ref.grains import DegenerateShiftsError, Example, Fit, HyperParameters, Shift
from grains_ref.models import HuggingFaceModel


@dataclass(frozen=True)
class LeftOut:
    """A part of the grid that could not be measured, and why."""

    what: str
    why: str


class FitOfShifts(NamedTuple):
    """A fit, and the shifts of all examples that it is made of."""

    fit: Fit
    shifts: tuple[Shift, ...]


def all_fits(
    model: HuggingFaceModel,
    engine: Engine,
    examples: Sequence[Example],
    hps: Sequence[HyperParameters],
    on_progress: Callable[[str, int, int], None],
    measured: Measured,
) -> tuple[dict[HyperParameters, FitOfShifts], list[LeftOut]]:
    """The fit of every set of hyper-parameters that has one; what several of them share is computed once."""
    scores: dict[HyperParameters, dict[int, Tensor]] = {}
    shifts: dict[HyperParameters, dict[int, Shift]] = {}
    fits: dict[HyperParameters, FitOfShifts] = {}
    left_out: list[LeftOut] = []
    problem: DegenerateShiftsError | None = None
    total = len(examples) * len({_as_attributed(hp) for hp in hps})
    for hp in hps:
        attributed, shifted = _as_attributed(hp), _as_shifted(hp)
        batches = [{i: examples[i] for i in batch} for batch in engine.batches(examples, hp)]
        if attributed not in scores:
            scores[attributed] = {}
            missing = [batch for batch in batches if not measured.has_scores(attributed, batch)]
            computed_scores = share(missing, functools.partial(_scores, model, engine, hp))
            for batch in batches:
                of_batch = measured.scores(attributed, batch, functools.partial(next, computed_scores))
                scores[attributed].update(zip(batch, of_batch, strict=True))
                on_progress("attribution", sum(len(finished) for finished in scores.values()), total)
        if shifted not in shifts:
            shifts[shifted] = {}
            missing = [batch for batch in batches if not measured.has_shifts(shifted, batch)]
            computed_shifts = share(missing, functools.partial(_shifts, engine, hp, scores[attributed]))
            for batch in batches:
                of_batch = [scores[attributed][i] for i in batch]
                layers = (len(model.blocks), model.width)
                make = functools.partial(next, computed_shifts)
                made = measured.shifts(shifted, batch, of_batch, make, layers=layers)
                shifts[shifted].update(zip(batch, made, strict=True))
        in_order = tuple(shifts[shifted][i] for i in range(len(examples)))
        try:
            fits[hp] = FitOfShifts(engine.vectors(in_order, hp), in_order)
        except DegenerateShiftsError as error:
            problem = error
            left_out.append(LeftOut(setting_name(hp), str(error)))
    if problem and not fits:
        raise problem
    return fits, left_out


def _scores(model: HuggingFaceModel, engine: Engine, hp: HyperParameters, batch: Mapping[int, Example]) -> list[Tensor]:
    names = [f"example {i}" for i in batch]
    return in_batch(model, lambda some: engine.scores(some, hp), list(batch.values()), names)


def _shifts(
    engine: Engine, hp: HyperParameters, scores: Mapping[int, Tensor], batch: Mapping[int, Example]
) -> list[Shift]:
    return engine.shifts(list(batch.values()), [scores[i] for i in batch], hp)


def _as_attributed(hp: HyperParameters) -> HyperParameters:
    """The same for all hyper-parameters under which an example has the same scores."""
    plain = HyperParameters()
    return replace(_as_shifted(hp), k=plain.k, eligible=plain.eligible, mask_baseline=plain.mask_baseline)


def _as_shifted(hp: HyperParameters) -> HyperParameters:
    """The same for all hyper-parameters under which an example has the same shift."""
    plain = HyperParameters()
    return replace(hp, aggregation=plain.aggregation, components=plain.components)


def setting_name(hp: HyperParameters) -> str:
    """What to call it in a message."""
    return f"k {hp.k}, {hp.aggregation}"
