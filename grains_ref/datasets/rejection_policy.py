"""Which of several false answers a pair rejects: the first, one at random, or the hardest.

A policy is a function (prompt, candidates, key) -> one of the candidates.  `key` names the question, so that what is
drawn for it does not depend on which other rows there are, or in which order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeAlias

from grains_ref.data import Prompt

Policy: TypeAlias = Callable[[Prompt, Sequence[str], str], str]
Scorer: TypeAlias = Callable[[Sequence[tuple[Prompt, str]]], Sequence[float]]


def first(prompt: Prompt, candidates: Sequence[str], key: str) -> str:
    """The first in the dataset's order."""
    return candidates[0]


def at_random(*, seed: int) -> Policy:
    """One of the candidates, each with the same chance; the same seed and question give the same one."""

    def choose(prompt: Prompt, candidates: Sequence[str], key: str) -> str:
        return random.Random(f"{seed}:{key}").choice(candidates)

    return choose


RANDOM = at_random(seed=0)


def hardest(score: Scorer) -> Policy:
    """The candidate that the unsteered model finds most likely; ties go to the earlier one.

    Args:
        score: gives log P(response given prompt) in nats for many (prompt, response), for instance
            `lambda items: [s.log_prob for s in model.score(items)]`.
    """

    def choose(prompt: Prompt, candidates: Sequence[str], key: str) -> str:
        scores = list(score([(prompt, candidate) for candidate in candidates]))
        if len(scores) != len(candidates):
            raise ValueError(f"{len(candidates)} candidates were to be scored, {len(scores)} scores came back")
        return candidates[scores.index(max(scores))]

    return choose


def named(name: str, *, seed: int) -> Policy:
    """The policy of a name, for the command line.

    Raises:
        ValueError: there is none of that name, or it needs a model.
    """
    if name == "first":
        return first
    if name == "random":
        return at_random(seed=seed)
    if name == "hardest":
        raise ValueError("the policy 'hardest' needs a model's scores, so it works from Python only")
    raise ValueError(f"there is no policy {name!r}; there are random, first and (from Python only) hardest")
