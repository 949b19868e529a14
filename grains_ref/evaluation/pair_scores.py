"""Preference pairs scored in two ways: by the whole answer, and per token.

    margin              log P(chosen) - log P(rejected)                                     nats
    margin per token    log P(chosen) / tokens of chosen - the same of the rejected answer  nats per token

The sum is eq. (1) and favours short answers; the mean per token favours long ones.  Where the two tell different
stories, the answers differ in length, and neither accuracy is to be believed alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from grains_ref.evaluation.metrics import Mean, Normalisation, average, normalised
from grains_ref.models import HuggingFaceModel, TokenRow


@dataclass(frozen=True)
class PairScores:
    """Margins of pairs under one steering, in the order of the pairs.

    Attributes:
        margins: in nats.
        per_token: in nats per token.
    """

    margins: tuple[float, ...]
    per_token: tuple[float, ...]

    @property
    def right(self) -> list[bool]:
        """Whether each chosen answer is the more likely one; a tie is wrong."""
        return [margin > 0 for margin in self.margins]

    @property
    def right_per_token(self) -> list[bool]:
        """The same per token."""
        return [margin > 0 for margin in self.per_token]

    @property
    def accuracy(self) -> float:
        """The share of `right`, from 0 to 1."""
        return sum(self.right) / len(self.margins)

    @property
    def accuracy_per_token(self) -> float:
        """The share of `right_per_token`, from 0 to 1."""
        return sum(self.right_per_token) / len(self.per_token)

    @property
    def mean(self) -> float:
        """The mean margin, in nats."""
        return sum(self.margins) / len(self.margins)


def score_pairs(model: HuggingFaceModel, rows: Sequence[TokenRow]) -> PairScores:
    """Both kinds of margin of the rows that `pair_rows` made, under whatever steering is active; scored once.

    Raises:
        FloatingPointError: a log-probability is not finite.
    """
    scored = model.score_rows(rows)
    n = len(rows) // 2
    margins, per_token = [], []
    for i in range(n):
        chosen, rejected = scored[i].log_prob, scored[n + i].log_prob
        margins.append(_score(chosen, rows[i], "sum") - _score(rejected, rows[n + i], "sum"))
        per_token.append(_score(chosen, rows[i], "token") - _score(rejected, rows[n + i], "token"))
    return PairScores(tuple(margins), tuple(per_token))


def _score(log_prob: float, row: TokenRow, by: Normalisation) -> float:
    return normalised(log_prob, n_tokens=len(row.response), by=by)


def prompts_of(rows: Sequence[TokenRow]) -> list[str]:
    """What each pair of `pair_rows` asks: pairs of one prompt are one cluster of an interval."""
    return [f"{row.prompt} {row.picture_digest}" for row in rows[: len(rows) // 2]]


def mean_of(values: Sequence[float], clusters: Sequence[str]) -> Mean | None:
    """The mean with its interval over clusters; None where there are fewer than two clusters, and so no interval."""
    return average(values, clusters) if len(set(clusters)) > 1 else None


def change_of(steered: Sequence[float], unsteered: Sequence[float], clusters: Sequence[str]) -> Mean | None:
    """The mean of the paired differences with its interval over clusters; None where there is no interval."""
    return mean_of([after - before for after, before in zip(steered, unsteered, strict=True)], clusters)


def check_finite(scores: PairScores) -> None:
    """Refuse margins that are no numbers.

    Raises:
        FloatingPointError: a margin is not finite.
    """
    if wrong := sum(not math.isfinite(margin) for margin in scores.margins):
        raise FloatingPointError(
            f"the scores of {wrong} of {len(scores.margins)} dev pairs are not finite: the model or its steering "
            "overflows"
        )
