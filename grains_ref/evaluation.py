"""What steering changed and what it cost: accuracies with intervals, and the choice of a setting on dev data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from scipy.stats import binomtest

from grains_ref.data import PreferencePair, Task
from grains_ref.models import HuggingFaceModel

Setting = TypeVar("Setting")


@dataclass(frozen=True)
class Rate:
    """A share of successes with its 95 % Wilson interval."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def rate(successes: Iterable[bool]) -> Rate:
    """The share of True, with interval.

    Raises:
        ValueError: nothing to count.
    """
    outcomes = list(successes)
    if not outcomes:
        raise ValueError("no outcomes to count; is the evaluation set empty?")
    interval = binomtest(sum(outcomes), len(outcomes)).proportion_ci(method="wilson")
    return Rate(sum(outcomes) / len(outcomes), float(interval.low), float(interval.high), len(outcomes))


def margins(model: HuggingFaceModel, pairs: Sequence[PreferencePair]) -> list[float]:
    """log P(chosen) - log P(rejected) of each pair, in nats."""
    scored = model.score([(p.prompt, p.chosen) for p in pairs] + [(p.prompt, p.rejected) for p in pairs])
    n = len(pairs)
    return [scored[i].log_prob - scored[n + i].log_prob for i in range(n)]


def preference_accuracy(model: HuggingFaceModel, pairs: Sequence[PreferencePair]) -> Rate:
    """Share of pairs with log P(chosen) > log P(rejected); a tie counts as wrong."""
    return rate(margin > 0 for margin in margins(model, pairs))


def multiple_choice_accuracy(model: HuggingFaceModel, pairs: Sequence[PreferencePair]) -> Rate:
    """Share of questions whose labelled choice has the strictly highest summed log-probability.

    Raises:
        ValueError: a pair has no choices.
    """
    without = [p.where for p in pairs if not p.choices]
    if without:
        raise ValueError(
            f"{len(without)} rows have no 'choices' and 'label', first {without[0]}; use preference accuracy"
        )
    scored = iter(model.score([(p.prompt, choice) for p in pairs for choice in p.choices]))
    outcomes = []
    for pair in pairs:
        scores = [next(scored).log_prob for _ in pair.choices]
        right = scores.pop(pair.label)  # type: ignore[arg-type]  # checked on reading: choices come with a label
        outcomes.append(all(right > other for other in scores))
    return rate(outcomes)


def exact_match(model: HuggingFaceModel, items: Sequence[tuple[str, str]]) -> Rate:
    """Share of (prompt, response) whose whole response greedy decoding would give, from one teacher-forced pass."""
    return rate(scored.is_greedy for scored in model.score(items))


def capability(model: HuggingFaceModel, tasks: Sequence[Task]) -> Rate:
    """Share of tasks answered exactly by greedy decoding."""
    return exact_match(model, [(task.prompt, task.answer) for task in tasks])


@dataclass(frozen=True)
class Candidate(Generic[Setting]):
    """One setting tried on dev."""

    setting: Setting
    accuracy: Rate


@dataclass(frozen=True)
class Choice(Generic[Setting]):
    """The chosen setting with its dev figures, and everything that was tried."""

    best: Candidate[Setting]
    capability: Rate
    tried: tuple[Candidate[Setting], ...]


def choose(
    settings: Sequence[Setting],
    *,
    accuracy: Callable[[Setting], Rate],
    capability: Callable[[Setting], Rate],
    floor: float,
) -> Choice[Setting]:
    """The setting with the highest dev accuracy whose capability is at least `floor`.

    Ties go to the earlier setting, so list the gentlest first.  Capability is measured only for settings that would
    win, best first, until one is admissible; put the unsteered model first and it always is.

    Raises:
        ValueError: no setting is admissible.
    """
    tried = tuple(Candidate(setting, accuracy(setting)) for setting in settings)
    for candidate in sorted(tried, key=lambda c: -c.accuracy.value):  # stable: ties keep their order
        kept = capability(candidate.setting)
        if kept.value >= floor:
            return Choice(candidate, kept, tried)
    raise ValueError(
        f"none of {len(settings)} settings keeps capability at {floor:.3f} or more; add strength 0 or weaker settings"
    )
