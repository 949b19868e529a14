"""What the checks of a pair measured, and what that means: how noisy a run is, and what is allowed for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch

from grains_ref.conformance.live.answers import MissingFunction, NothingToAsk
from grains_ref.conformance.live.distances import BadAnswer
from grains_ref.conformance.live.reference import is_half

Status = Literal["passed", "failed", "skipped", "undecidable"]

TIMES = 3.0  # the noise is allowed
TIMES_FOR_GRADIENTS = 5.0  # rounding errors of gradients vary more: of 1,600 right results one was 3.5 times the noise
GRADIENTS = ("attribution", "exchanged responses negate a")
HOPELESS = 0.5  # an allowed error above this tells nothing
SUMS = ("objective", "exchanged responses negate f", "a batch is its single rows")  # of many log-probabilities
FLOORS = {  # noise that is allowed for at least; on tiny float32 models the tests' broken ports are 7,000 times as far
    "attribution": 1e-5,
    "exchanged responses negate a": 1e-5,
    "contrast": 1e-5,
    "contrast of earlier tokens": 1e-5,
    "steer": 1e-5,
    "lam = 0 changes nothing": 1e-5,
    "only the product of lam and v counts": 1e-5,
}


@dataclass(frozen=True)
class LiveResult:
    """One check on one pair; `seed` is None where nothing was drawn, `error` and `allowed` are relative."""

    check: str
    pair: str
    seed: int | None
    status: Status
    error: float = 0.0
    allowed: float = 0.0
    message: str = ""


class Noisy(NamedTuple):
    """What a check measured that rounding blurs: the port's error, and the worst one of the reference's legal ways."""

    error: float
    noise: float
    message: str


class Exact(NamedTuple):
    """What a check measured that does not depend on how noisy the pair is."""

    error: float
    message: str
    allowed: float = 0.0


Measured: TypeAlias = Noisy | Exact | MissingFunction | NothingToAsk | BadAnswer


@dataclass(frozen=True)
class Finding:
    """What a check measured on one pair, before it is known how noisy the others are; or why it measured nothing."""

    check: str
    pair: str
    seed: int | None
    measured: Measured


def judged(findings: Sequence[Finding], dtype: torch.dtype) -> list[LiveResult]:
    """Allow every pair a multiple of the noise of the noisiest one: of a few samples, all may be small by luck."""
    pooled: dict[str, float] = {}
    for finding in findings:
        measured = finding.measured
        if isinstance(measured, Noisy) and times(finding.check) * measured.noise <= HOPELESS:
            pooled[finding.check] = max(measured.noise, pooled.get(finding.check, 0.0))
    return [_judged(finding, max(pooled.get(finding.check, 0.0), floor(finding.check, dtype))) for finding in findings]


def _judged(finding: Finding, least_noise: float) -> LiveResult:
    place = (finding.check, finding.pair, finding.seed)
    measured = finding.measured
    if isinstance(measured, (MissingFunction, NothingToAsk)):
        return LiveResult(*place, "skipped", message=str(measured))
    if isinstance(measured, BadAnswer):
        return LiveResult(*place, "failed", math.inf, message=str(measured))
    allowed = (
        measured.allowed if isinstance(measured, Exact) else times(finding.check) * max(measured.noise, least_noise)
    )
    if measured.error > allowed:
        return LiveResult(*place, "failed", measured.error, allowed, measured.message)
    return LiveResult(*place, "undecidable" if allowed > HOPELESS else "passed", measured.error, allowed)


def times(check: str) -> float:
    """The multiple of the noise that a check allows."""
    return TIMES_FOR_GRADIENTS if check in GRADIENTS else TIMES


def rounding(dtype: torch.dtype) -> float:
    """Below this no noise is believed in any check: a few samples may agree by luck."""
    return (0.25 if is_half(dtype) else 4) * torch.finfo(dtype).eps


def floor(check: str, dtype: torch.dtype) -> float:
    """The least noise that is allowed for in a check: what its planted bugs leave far behind them."""
    if check in SUMS and is_half(dtype):
        return 0.1 * torch.finfo(dtype).eps  # rounding errors of many tokens cancel
    return max(rounding(dtype), FLOORS.get(check, 0.0))
