"""What the test says of a method: works, works at a price, wrong way, does not, cannot tell.

A verdict is of all splits together, by rule 8 of docs/real.md: means over subjects, 95 % bootstrap intervals over
subjects, in pairs with the unsteered model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from grains_ref.demo.real.trial import TestSeen
from grains_ref.evaluation.metrics import Rate, clustered_mean, paired_gain

Word: TypeAlias = Literal["works", "works at a price", "wrong way", "does not", "cannot tell"]
MATTERS = 0.1  # a gain, or a loss of controls, that matters: ten points
EVERYDAY_PRICE = 0.2  # nats per token on test; twice what is allowed on dev


@dataclass(frozen=True)
class Gains:
    """What a row does on test beside the unsteered model; shares, and nats where it says so.

    Attributes:
        accuracy: share of right pairs.
        gain: of accuracy.
        margin: change of the mean margin, nats.
        token_margin: the same per token.
        controls: share of controls that are right.
        controls_gain: its change.
        everyday: change of the right everyday answers' log-probability, nats per token.
    """

    accuracy: Rate
    gain: Rate
    margin: Rate
    token_margin: Rate
    controls: Rate
    controls_gain: Rate
    everyday: Rate

    @property
    def verdict(self) -> Word:
        """Rule 8."""
        if self.gain.low > 0:
            is_free = self.controls_gain.value >= -MATTERS and self.everyday.value >= -EVERYDAY_PRICE
            return "works" if is_free else "works at a price"
        if self.gain.high < 0:
            return "wrong way"
        return "does not" if self.gain.high < MATTERS else "cannot tell"


def gains(steered: Sequence[TestSeen], base: Sequence[TestSeen], subjects: Sequence[Sequence[str]]) -> Gains:
    """One entry for each split; subjects: what the test pairs of each split are about."""
    of_pairs = [subject for of_split in subjects for subject in of_split]
    right, right_before = _right(steered, "margins"), _right(base, "margins")
    controls, controls_before = _right(steered, "controls"), _right(base, "controls")
    return Gains(
        accuracy=clustered_mean(right, of_pairs),
        gain=paired_gain(right, right_before, clusters=of_pairs),
        margin=_change(steered, base, "margins", of_pairs),
        token_margin=_change(steered, base, "token_margins", of_pairs),
        controls=clustered_mean(controls),
        controls_gain=paired_gain(controls, controls_before),
        everyday=_change(steered, base, "everyday", ()),
    )


def _values(of_splits: Sequence[TestSeen], name: str) -> list[float]:
    return [value for seen in of_splits for value in getattr(seen, name)]


def _right(of_splits: Sequence[TestSeen], name: str) -> list[float]:
    return [float(margin > 0) for margin in _values(of_splits, name)]


def _change(steered: Sequence[TestSeen], base: Sequence[TestSeen], name: str, clusters: Sequence[str]) -> Rate:
    return paired_gain(_values(steered, name), _values(base, name), clusters=clusters)
