r"""Is it signal?  What the fit's own pairs say about its vectors before anything is steered.

    slope   = mean over pairs of sum_l <g_l, v_l>     how f, eq. (1), begins to change with lam; nats per unit of lam
    cosine  = <g, v> / (|g| |v|)                      all blocks together; g_l is the gradient of the edit itself
    halves  = <v_A, v_B> / (|v_A| |v_B|)              vectors fitted on two halves of the pairs
    sides   = <v_pos, v_neg> / (|v_pos| |v_neg|)      near 1: both say the same, and eq. (6) leaves their noise
    random  = <v, v_random> / (|v| |v_random|)        v_random: of random tokens instead of selected ones

g is the derivative of f with respect to v at v = 0, of just the edit that steers (`methods.edit_gradient`): one forward
and backward pass per response, for at most `MOST_PAIRS` pairs.  v_random takes three forward passes for as many
examples.  All else comes from what the fit has anyway.

Convention: the vectors of the edit gradient are made of g, so that its slope is taken pair by pair along the mean of
  the other pairs, and its cosine is not shown.
Convention: the slope's interval is 1.96 standard errors over pairs; that of the halves spans `HALVINGS` random
  halvings.  Pairs that repeat one fact are not independent, and both are then too good.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from grains_ref.fitting.additions import with_only_side
from grains_ref.fitting.edit_gradient import EditGradientRecord, kept_derivatives
from grains_ref.fitting.halves import Estimate, agreement_of_halves, cosine_of
from grains_ref.fitting.random_tokens import random_shift
from grains_ref.fitting.resumable import FitRecord
from grains_ref.fitting.work_folder import WorkFolder
from grains_ref.grains import DegenerateShiftsError, Example, Fit, HyperParameters, Shift
from grains_ref.grains import vectors as aggregated
from grains_ref.methods.edit_gradient import Derivative, scaled
from grains_ref.vectors import SteeringVectors

if TYPE_CHECKING:
    from grains_ref.models import HuggingFaceModel

MOST_PAIRS = 50  # whose derivative is taken
# Beyond these is a warning: of halves, of sides, of selected tokens, of v beside random tokens' vector.
DISAGREE, ALIKE, MOSTLY_TEMPLATE, LIKE_RANDOM = 0.3, 0.8, 0.5, 0.5

Verdict = Literal["toward", "away", "none", "not measured"]


@dataclass(frozen=True)
class Signal:
    """What is known of vectors before anything is steered; None where it was not measured.

    Attributes:
        n: pairs whose derivative was taken.
        slope: nats per unit of lam.
        cosine: of v with the gradient of the edit, all blocks together.
        chance: what the cosine of a random vector stays below in 97.5 of 100 draws, 1.96 / sqrt(L * width).
        halves: cosine of the vectors of two halves of the pairs, mean and range.
        sides: cosine of v_pos with v_neg, all blocks together.
        random: cosine of v with the vector of as many random tokens of the same examples, all blocks together.
        template: share of template and special tokens among the selected.
        length: |v| beside the state's mean length at the site, root mean square over blocks.
        layers: lists of one number per block: `cosine`, `slope`, `halves`, `length`.
    """

    n: int
    slope: Estimate | None
    cosine: float | None
    chance: float
    halves: Estimate | None
    sides: float
    template: float | None
    length: float | None
    layers: dict[str, tuple[float, ...]]
    random: float | None = None

    @property
    def verdict(self) -> Verdict:
        """Where small strengths move f, beyond chance."""
        if self.slope is None:
            return "not measured"
        if self.slope.high < 0:
            return "away"
        by_chance = self.cosine is not None and self.cosine <= self.chance
        return "toward" if self.slope.low > 0 and not by_chance else "none"

    def line(self) -> str:
        """One line that a person understands."""
        opening = {
            "toward": "toward the chosen answers",
            "away": "the wrong way, toward the rejected answers",
            "none": "none found",
            "not measured": "not measured",
        }[self.verdict]
        parts = []
        if self.slope:
            slope = self.slope
            interval = f"[{_signed(slope.low)}, {_signed(slope.high)}]"
            parts.append(f"f begins to change by {_signed(slope.value)} {interval} nats per lam")
        if self.cosine is not None:
            parts.append(f"cosine with the edit's gradient {_two(self.cosine)} (random: below {_two(self.chance)})")
        if self.random is not None:
            parts.append(f"with random tokens' vector {_two(self.random)}")
        if self.halves:
            parts.append(f"halves of the pairs agree {_interval(self.halves)}")
        return f"{opening}. {'; '.join(parts)}".rstrip() + ("." if parts else "")

    def warnings(self) -> list[str]:
        """What speaks against the vectors, and what usually helps; the measurements behind it are in docs/signal.md."""
        texts = []
        if self.verdict == "none":
            texts.append(
                "v is not shown to move f at all: steering with this is steering with noise. What usually helps: "
                "another --aggregation, more or other pairs, or --method edit_gradient."
            )
        if self.verdict == "away":
            texts.append(
                "v moves f toward the rejected answers. Are chosen and rejected mixed up? Otherwise try another "
                "--aggregation, or --method edit_gradient."
            )
        if self.halves and self.halves.value < DISAGREE:
            texts.append(
                f"the two halves of your pairs disagree: cosine {_interval(self.halves)}. Another draw of pairs would "
                "give other vectors. What usually helps: --aggregation mean, more pairs, or pairs that share one cause."
            )
        if self.sides > ALIKE:
            texts.append(
                f"v_pos and v_neg are nearly the same, cosine {_two(self.sides)}: both say that something was masked, "
                "and v is what little they differ in. What usually helps: --method edit_gradient, which masks nothing."
            )
        if self.random is not None and self.random > LIKE_RANDOM:
            texts.append(
                f"v is nearly the vector of random tokens, cosine {_two(self.random)}: which tokens were selected "
                "makes little difference. Try --aggregation mean, or --method edit_gradient, which selects none."
            )
        if self.template is not None and self.template > MOSTLY_TEMPLATE:
            texts.append(
                f"{100 * self.template:.0f} % of the selected tokens belong to the chat template or are special: "
                "--eligible content leaves the words of the user."
            )
        return texts

    def record(self) -> dict[str, Any]:
        """The same in plain values, as the header of a vectors file keeps it."""
        figures: dict[str, Any] = {"verdict": self.verdict, "pairs": self.n, "sides": self.sides, "chance": self.chance}
        for name in ("cosine", "random", "template", "length"):
            if getattr(self, name) is not None:
                figures[name] = getattr(self, name)
        for name, estimate in (("slope", self.slope), ("halves", self.halves)):
            if estimate:
                figures[name] = [estimate.value, estimate.low, estimate.high]
        layers = {name: list(values) for name, values in self.layers.items()}
        return {"line": self.line(), "warnings": self.warnings(), "figures": figures, "layers": layers}


def with_signal(vectors: SteeringVectors, signal: Signal) -> SteeringVectors:
    """The vectors with their signal in the header."""
    return replace(vectors, header=replace(vectors.header, signal=signal.record()))


# ------------------------------------------------------------------------------------------- of a fit
def grains_signal(
    model: HuggingFaceModel,
    examples: Sequence[Example],
    record: FitRecord,
    hp: HyperParameters,
    *,
    work: WorkFolder,
    on_pair: Callable[[int], None],
    with_gradient: bool = True,
) -> Signal:
    """The signal of a fit of GrAInS; derivatives are kept in `work` until it is discarded.

    with_gradient: without it no pass is made, and slope, cosine, length and random are missing.
    on_pair: called with the number of pairs whose derivative is there.

    Raises:
        FloatingPointError: a derivative is not finite.
        OSError: the disk is full or not writable.
    """
    derivatives: list[Derivative] = []
    random_shifts: list[Shift] = []
    if with_gradient:
        asked = pairs_to_ask(len(examples))
        of_asked = kept_derivatives(
            model,
            [examples[i] for i in asked],
            site="residual",
            positions="all",
            work=work,
            pieces=[f"derivative-{i:06d}" for i in asked],
        )
        for of_pair, _ in of_asked:
            derivatives.append(of_pair)
            on_pair(len(derivatives))
        for i in asked:
            random_shifts.append(random_shift(model, examples[i], record.shifts[i], hp, draw=0, work=work, number=i))

    def halved(pairs: Sequence[int]) -> Tensor:
        return _as_in(record, aggregated([record.shifts[i] for i in pairs], hp))

    kinds = [
        example.encoded.kinds[j]
        for example, shift in zip(examples, record.shifts, strict=True)
        for j in (*shift.selection.pos, *shift.selection.neg)
    ]
    template = sum(kind in ("template", "special") for kind in kinds) / len(kinds) if kinds else None
    halves, of_layers = agreement_of_halves(len(examples), halved)
    return signal_of(
        record.fit.pos.v,
        record.fit.neg.v,
        derivatives,
        halves=halves,
        halves_of_layers=of_layers,
        template=template,
        v_random=_vectors_of_random_tokens(record, random_shifts, hp),
    )


def _vectors_of_random_tokens(record: FitRecord, shifts: Sequence[Shift], hp: HyperParameters) -> Tensor | None:
    """Eq. (5) and (6) of random tokens' shifts; None where there are none, or they define no direction."""
    if not shifts:
        return None
    try:
        return _as_in(record, aggregated(shifts, hp))
    except DegenerateShiftsError:
        return None


def _as_in(record: FitRecord, fit: Fit) -> Tensor:
    """v of another fit of the same kind: with the sides and in the layers that the recorded one steers with."""
    side = record.additions.only_side
    v = with_only_side(fit, side).v if side else fit.v
    is_steered = record.fit.v.any(1)
    return torch.where(is_steered[:, None], v, torch.zeros_like(v))


def edit_gradient_signal(record: EditGradientRecord) -> Signal:
    """The signal of a fit of the edit gradient, at no cost."""
    derivatives, fitted = record.derivatives, record.fit

    def halved(pairs: Sequence[int]) -> Tensor:
        return scaled([derivatives[i] for i in pairs], site=fitted.site, positions=fitted.positions).v

    halves, of_layers = agreement_of_halves(len(derivatives), halved)
    return signal_of(
        fitted.v_pos,
        fitted.v_neg,
        derivatives,
        halves=halves,
        halves_of_layers=of_layers,
        template=None,
        is_gradient=True,
    )


def pairs_to_ask(n: int) -> list[int]:
    """Which of n pairs' derivatives are taken: all, or a seeded draw of `MOST_PAIRS`."""
    return sorted(random.Random("signal").sample(range(n), min(n, MOST_PAIRS)))


# ------------------------------------------------------------------------------------------- figures
def signal_of(
    v_pos: Tensor,
    v_neg: Tensor,
    derivatives: Sequence[Derivative],
    *,
    halves: Estimate | None,
    halves_of_layers: Sequence[float] | None,
    template: float | None,
    is_gradient: bool = False,
    v_random: Tensor | None = None,
) -> Signal:
    """The figures of vectors (L, width) and of the derivatives of their edit.

    v_random: the vectors of random tokens.  is_gradient: v is a multiple of the mean of these derivatives.
    """
    v_pos, v_neg = v_pos.double(), v_neg.double()
    v = v_pos - v_neg
    slope = cosine = length = None
    layers: dict[str, tuple[float, ...]] = {}
    if derivatives:
        g = torch.stack([of_pair.g for of_pair in derivatives]).double()  # (N, L, width)
        sizes = torch.stack([of_pair.size for of_pair in derivatives]).double().mean(0)  # (L,)
        slopes = slopes_of_pairs(g, v, is_gradient=is_gradient)  # (N, L)
        if len(slopes) > 1:
            slope = mean_with_interval(slopes.sum(1))
            layers["slope"] = tuple(slopes.mean(0).tolist())
        if not is_gradient:
            cosine = cosine_of(g.mean(0), v)
            layers["cosine"] = tuple(cosine_of(a, b) for a, b in zip(g.mean(0), v, strict=True))
        relative = v.norm(dim=1) / sizes.clamp_min(torch.finfo(torch.float64).tiny)
        length = relative.square().mean().sqrt().item()
        layers["length"] = tuple(relative.tolist())
    if halves_of_layers is not None:
        layers["halves"] = tuple(halves_of_layers)
    return Signal(
        n=len(derivatives),
        slope=slope,
        cosine=cosine,
        chance=1.96 / math.sqrt(v.numel()),
        halves=halves,
        sides=cosine_of(v_pos, v_neg),
        template=template,
        length=length,
        layers=layers,
        random=None if v_random is None else cosine_of(v_random, v),
    )


def slopes_of_pairs(g: Tensor, v: Tensor, *, is_gradient: bool) -> Tensor:
    """<g_l, v_l> of every pair and block, (N, L): nats per unit of lam.

    g: (N, L, width).  v: (L, width).  is_gradient: v is a multiple of g's mean, and a pair is asked along the mean of
    the others: along its own share of v it would always rise.
    """
    if not is_gradient:
        return (g * v).sum(2)
    n = len(g)
    unit = v.norm() / g.mean(0).norm()
    if n == 1:
        return unit * (g * g).sum(2)
    others = (g.sum(0) - g) / (n - 1)
    return unit * (others * g).sum(2)


def mean_with_interval(values: Tensor) -> Estimate:
    """The mean of at least two values, and 1.96 standard errors on either side."""
    mean = values.mean().item()
    error = 1.96 * (values.std() / math.sqrt(len(values))).item()
    return Estimate(mean, mean - error, mean + error)


def _signed(value: float) -> str:
    """Three digits; thousands in full, as +1,990."""
    return f"{value:+,.0f}" if abs(value) >= 999.5 else f"{value:+.3g}"


def _two(value: float) -> str:
    """A cosine; small ones to three places, since chance is small in many dimensions."""
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
