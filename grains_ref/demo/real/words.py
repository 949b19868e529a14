"""A control that knows nothing but words: how well do single words tell chosen from rejected answers?

    w(word) = log (n_chosen(word) + 1) - log (n_rejected(word) + 1)        n: steering answers that hold the word
    an answer's score is the sum over its different words; a test pair is right if chosen scores higher, a tie is half

Where this is right in far more than half of the pairs, the behaviour is made of words, and a vector that makes these
words more likely passes the test without any understanding.  That is no fault where words are what is asked for
(prose, caution); it would be one where they are not (lie).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from grains_ref.data import PreferencePair

NEGATIONS = frozenset("no not none never nobody nothing cannot can't don't doesn't isn't won't without".split())


def words_of(answer: str) -> frozenset[str]:
    """The different words and marks of an answer."""
    return frozenset(re.findall(r"[a-z']+|[0-9]+|[^\sa-z0-9']|\n", answer.lower()))


def accuracy_by_words(steer: Sequence[PreferencePair], test: Sequence[PreferencePair]) -> float:
    """The share of test pairs that a bag of words, learned from the steering pairs, gets right."""
    chosen: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    for pair in steer:
        chosen.update(words_of(pair.chosen))
        rejected.update(words_of(pair.rejected))

    def score(answer: str) -> float:
        return sum(math.log(chosen[word] + 1) - math.log(rejected[word] + 1) for word in words_of(answer))

    points = 0.0
    for pair in test:
        difference = score(pair.chosen) - score(pair.rejected)
        points += 0.5 if abs(difference) < 1e-9 else float(difference > 0)
    return points / len(test)


def negations(pairs: Sequence[PreferencePair]) -> tuple[int, int]:
    """How many chosen and how many rejected answers hold a negation."""
    chosen = sum(bool(words_of(pair.chosen) & NEGATIONS) for pair in pairs)
    rejected = sum(bool(words_of(pair.rejected) & NEGATIONS) for pair in pairs)
    return chosen, rejected
