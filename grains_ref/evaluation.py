"""What steering changed and what it cost: accuracies with intervals, and the choice of a setting on dev data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from scipy.stats import binomtest, bootstrap

from grains_ref.data import PreferencePair, Task
from grains_ref.models import HuggingFaceModel, TokenRow

Setting = TypeVar("Setting")


@dataclass(frozen=True)
class Rate:
    """A share of successes, or a mean of shares, with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def rate(successes: Iterable[bool]) -> Rate:
    """The share of True with its Wilson interval.

    Raises:
        ValueError: nothing to count.
    """
    outcomes = list(successes)
    if not outcomes:
        raise ValueError("no outcomes to count; is the evaluation set empty?")
    interval = binomtest(sum(outcomes), len(outcomes)).proportion_ci(method="wilson")
    return Rate(sum(outcomes) / len(outcomes), float(interval.low), float(interval.high), len(outcomes))


def clustered_mean(values: Sequence[float], clusters: Sequence[str]) -> Rate:
    """The mean of values that come in clusters (several prompts about one fact), with a bootstrap over clusters.

    The bootstrap is seeded; n is the number of clusters.

    Raises:
        ValueError: fewer than two clusters, or values and clusters differ in number.
    """
    names = sorted(set(clusters))
    if len(names) < 2 or len(values) != len(clusters):
        raise ValueError(f"need values in at least two clusters; got {len(values)} values in {len(names)} clusters")
    means = np.array([np.mean([v for v, c in zip(values, clusters, strict=True) if c == name]) for name in names])
    if np.ptp(means) == 0:
        return Rate(float(means[0]), float(means[0]), float(means[0]), len(names))
    interval = bootstrap((means,), np.mean, n_resamples=2000, method="percentile", rng=0).confidence_interval
    return Rate(float(means.mean()), float(interval.low), float(interval.high), len(names))


# ------------------------------------------------------------------------------------- measures
def margins(model: HuggingFaceModel, pairs: Sequence[PreferencePair]) -> list[float]:
    """log P(chosen) - log P(rejected) of each pair, in nats."""
    return row_margins(model, pair_rows(model, pairs))


def pair_rows(model: HuggingFaceModel, pairs: Sequence[PreferencePair]) -> list[TokenRow]:
    """Token rows of all chosen responses, then of all rejected ones, for `row_margins`."""
    chosen = [(p.prompt, p.chosen, p.image) for p in pairs]
    return model.tokenise(chosen + [(p.prompt, p.rejected, p.image) for p in pairs])


def row_margins(model: HuggingFaceModel, rows: Sequence[TokenRow]) -> list[float]:
    """`margins` of the rows that `pair_rows` made; a sweep tokenises once and scores often."""
    scored = model.score_rows(rows)
    n = len(rows) // 2
    return [scored[i].log_prob - scored[n + i].log_prob for i in range(n)]


def preference_accuracy(model: HuggingFaceModel, pairs: Sequence[PreferencePair]) -> Rate:
    """Share of pairs with log P(chosen) > log P(rejected); a tie counts as wrong."""
    return rate(margin > 0 for margin in margins(model, pairs))


def multiple_choice_accuracy(model: HuggingFaceModel, pairs: Sequence[PreferencePair]) -> Rate:
    """Share of questions whose labelled choice has the strictly highest summed log-probability.

    Raises:
        ValueError: a pair has no choices.
    """
    without = [p.where for p in pairs if p.label is None]
    if without:
        raise ValueError(f"{len(without)} rows have no 'choices' and 'label', the first is {without[0]}")
    scored = iter(model.score([(p.prompt, choice, p.image) for p in pairs for choice in p.choices]))
    outcomes = []
    for pair in pairs:
        scores = [next(scored).log_prob for _ in pair.choices]
        right = scores.pop(pair.label or 0)
        outcomes.append(all(right > other for other in scores))
    return rate(outcomes)


def exact_matches(model: HuggingFaceModel, rows: Sequence[TokenRow]) -> list[bool]:
    """Whether greedy decoding would give each response, whole and exact; one teacher-forced pass tells."""
    return [scored.is_greedy for scored in model.score_rows(rows)]


def capability(model: HuggingFaceModel, tasks: Sequence[Task]) -> Rate:
    """Share of tasks answered exactly by greedy decoding."""
    return rate(exact_matches(model, task_rows(model, tasks)))


def task_rows(model: HuggingFaceModel, tasks: Sequence[Task]) -> list[TokenRow]:
    """Token rows of tasks, for `exact_matches` and `keeps_capability`."""
    return model.tokenise((task.prompt, task.answer, task.image) for task in tasks)


def keeps_capability(model: HuggingFaceModel, rows: Sequence[TokenRow], *, allowed: int, chunk: int = 128) -> bool:
    """Whether at most `allowed` rows are answered wrongly; stops as soon as there are more."""
    failed = 0
    for start in range(0, len(rows), chunk):
        failed += sum(not right for right in exact_matches(model, rows[start : start + chunk]))
        if failed > allowed:
            return False
    return True


# ------------------------------------------------------------------------------------- choice on dev
@dataclass(frozen=True)
class Choice(Generic[Setting]):
    """The chosen setting, and the dev accuracy of everything that was tried."""

    best: Setting
    tried: tuple[tuple[Setting, float], ...]


def choose(
    settings: Sequence[Setting], *, accuracy: Callable[[Setting], float], admissible: Callable[[Setting], bool]
) -> Choice[Setting]:
    """The admissible setting with the highest dev accuracy.

    Ties go to the earlier setting, so list the gentlest first.  Admissibility (usually: capability is kept) is asked
    best setting first until one has it; put the unsteered model first and there is always one.

    Raises:
        ValueError: no setting is admissible.
    """
    tried = tuple((setting, accuracy(setting)) for setting in settings)
    for setting, _ in sorted(tried, key=lambda one: -one[1]):  # stable: ties keep their order
        if admissible(setting):
            return Choice(setting, tried)
    raise ValueError(f"none of the {len(settings)} settings is admissible; add strength 0 or weaker settings")
