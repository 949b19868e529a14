r"""What may be added to the paper's method where its vectors turn out to be noise: three options, none the default.

    less_random      delta_l <- delta_l - mean over draws of delta_random_l          before eq. (5)
    agreeing_layers  v_pos_l, v_neg_l <- 0 where the halves' cosine at layer l is below the number       after eq. (5)

    only_side        v <- v_pos, or v <- -v_neg                                                          in eq. (6)

The first takes away what masking *any* tokens does to the state (`fitting.random_tokens`), both sides alike.  The
second steers only where another draw of pairs would have given much the same vector.  The third leaves one side out,
as the released code does for pictures (v_pos alone).  The hypotheses stand in docs/reproduction_rules.md, and
what came out beside them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from grains_ref.fitting.halves import agreement_of_halves
from grains_ref.fitting.random_tokens import random_shift
from grains_ref.fitting.work_folder import WorkFolder
from grains_ref.grains import Aggregation, DegenerateShiftsError, Example, Fit, HyperParameters, Shift, combine
from grains_ref.grains import vectors as aggregated

if TYPE_CHECKING:
    from grains_ref.models import HuggingFaceModel


SIDES = ("", "pos", "neg")


@dataclass(frozen=True)
class Additions:
    """Options beyond the paper; by default there are none.

    Attributes:
        less_random: draws of random tokens whose mean shift is subtracted; 0 subtracts nothing.
        agreeing_layers: the least cosine of the vectors of two halves of the pairs that a layer is steered with; None
            steers all layers.
        only_side: the side of eq. (6) that is left, "pos" or "neg"; "" leaves both.

    Raises:
        ValueError: a number of draws below 0, a cosine that is none, or no such side.
    """

    less_random: int = 0
    agreeing_layers: float | None = None
    only_side: str = ""

    def __post_init__(self) -> None:
        if type(self.less_random) is not int or self.less_random < 0:
            raise ValueError(f"less_random is {self.less_random!r}; expected a number of draws, 0 or more")
        least = self.agreeing_layers
        if least is not None and not (math.isfinite(least) and -1 <= least <= 1):
            raise ValueError(f"agreeing_layers is {least!r}; expected a cosine from -1 to 1")
        if self.only_side not in SIDES:
            raise ValueError(f"only_side is {self.only_side!r}; expected pos, neg, or nothing for both")

    def record(self) -> dict[str, Any]:
        """What was asked for, in plain values, as a header keeps it beside the hyper-parameters."""
        asked: dict[str, Any] = {}
        if self.less_random:
            asked["less_random"] = self.less_random
        if self.agreeing_layers is not None:
            asked["agreeing_layers"] = self.agreeing_layers
        if self.only_side:
            asked["only_side"] = self.only_side
        return asked


NOTHING = Additions()


def added_to(fit: Fit, additions: Additions, agreement: Sequence[float]) -> Fit:
    """The fit with what is added after eq. (5).

    agreement: L cosines of the halves, where layers are chosen by them.

    Raises:
        DegenerateShiftsError: no layer is left.
    """
    if additions.agreeing_layers is not None:
        fit = only_agreeing_layers(fit, agreement, least=additions.agreeing_layers)
    return with_only_side(fit, additions.only_side) if additions.only_side else fit


def less_random(
    model: HuggingFaceModel,
    examples: Sequence[Example],
    shifts: Sequence[Shift],
    hp: HyperParameters,
    *,
    draws: int,
    work: WorkFolder | None = None,
) -> list[Shift]:
    """The shifts less the mean shift of as many random tokens of the same example, over some draws.

    An empty set has no shift and keeps none.
    """
    corrected = []
    for number, (example, shift) in enumerate(zip(examples, shifts, strict=True)):
        of_draws = [
            random_shift(model, example, shift, hp, draw=draw, work=work, number=number) for draw in range(draws)
        ]
        mean_pos = torch.stack([of_draw.delta_pos for of_draw in of_draws]).mean(0)
        mean_neg = torch.stack([of_draw.delta_neg for of_draw in of_draws]).mean(0)
        corrected.append(replace(shift, delta_pos=shift.delta_pos - mean_pos, delta_neg=shift.delta_neg - mean_neg))
    return corrected


def layer_agreement(shifts: Sequence[Shift], hp: HyperParameters) -> list[float]:
    """Cosine of the vectors of two halves of the examples, layer by layer: L numbers.

    Raises:
        ValueError: there are fewer than four examples, or a half of them defines no direction.
    """
    _, of_layers = agreement_of_halves(len(shifts), lambda some: aggregated([shifts[i] for i in some], hp).v)
    if of_layers is None:
        raise ValueError(
            f"whether halves agree cannot be asked of {len(shifts)} examples: at least four are needed, and every half "
            "must define a direction. Give more pairs, or leave the layers as they are."
        )
    return of_layers


def only_agreeing_layers(fit: Fit, agreement: Sequence[float], *, least: float) -> Fit:
    """The fit with zeros in the layers whose halves agree less than that.

    agreement: L cosines (`layer_agreement`).

    Raises:
        DegenerateShiftsError: no layer is left.
    """
    agrees = torch.tensor([cosine >= least for cosine in agreement])
    if not agrees.any():
        raise DegenerateShiftsError(
            f"in no layer do the halves agree by a cosine of {least:g}; the highest is {max(agreement):.2f}. What "
            "these pairs say is noise in every layer: give more pairs, pairs that share one cause, or another method."
        )
    pos, neg = _without(fit.pos, agrees), _without(fit.neg, agrees)
    return Fit(pos, neg, combine(pos.v, neg.v))


def with_only_side(fit: Fit, side: str) -> Fit:
    """The fit with zeros in the other side's vectors: v = v_pos for "pos", v = -v_neg for "neg"."""
    nothing = torch.zeros_like(fit.v)
    if side == "pos":
        return Fit(fit.pos, replace(fit.neg, v=nothing), combine(fit.pos.v, nothing))
    return Fit(replace(fit.pos, v=nothing), fit.neg, combine(nothing, fit.neg.v))


def _without(side: Aggregation, agrees: torch.Tensor) -> Aggregation:
    return replace(side, v=torch.where(agrees[:, None], side.v, torch.zeros_like(side.v)))
