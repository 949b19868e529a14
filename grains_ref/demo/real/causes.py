"""Does attribution find what causes the rejected answer, where that is known?"""

from __future__ import annotations

from dataclasses import dataclass

from grains_ref.demo.real.trial import Trial
from grains_ref.grains import EligibleRule, Encoded, eligible_tokens, select

TOP = 3


@dataclass(frozen=True)
class Recall:
    """In how many of n steering prompts a token of the cause is among the `TOP` most negative tokens."""

    among_all: int
    among_content: int  # of the user's words alone
    by_chance: float  # a share: of the user's words drawn at random
    n: int


def recall(trial: Trial) -> Recall | None:
    """Of the paper's attribution; None where the cause is not known."""
    if not trial.sets.causes:
        return None
    hits = {(): 0, ("content",): 0}
    rules: tuple[tuple[EligibleRule, ...], ...] = ((), ("content",))
    missed_by_chance = []
    for i, cause in enumerate(trial.sets.causes):
        encoded, a = trial.lab.example(i).encoded, trial.lab.scores(trial.lab.paper, i)
        places = places_of(encoded, cause)
        for rule in rules:
            strongest = select(a, k=TOP, eligible=eligible_tokens(encoded, rule)).neg
            hits[rule] += bool({*strongest} & places)
        n_words = int(eligible_tokens(encoded, ("content",)).sum())
        missed = 1.0
        for draw in range(TOP):
            missed *= (n_words - len(places) - draw) / (n_words - draw)
        missed_by_chance.append(missed)
    n = len(trial.sets.causes)
    return Recall(hits[()], hits["content",], 1 - sum(missed_by_chance) / n, n)


def places_of(encoded: Encoded, words: str) -> set[int]:
    """The tokens of these words where the prompt has them for the first time.

    Raises:
        ValueError: the prompt does not have them.
    """
    text = "".join(encoded.tokens)
    start = text.index(words)
    places, position = set[int](), 0
    for j, token in enumerate(encoded.tokens):
        end = position + len(token)
        if position < start + len(words) and end > start and token.strip():
            places.add(j)
        position = end
    return places
