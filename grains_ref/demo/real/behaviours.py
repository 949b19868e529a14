"""What a behaviour of the real rung is: pairs to steer by, to choose on and to test on, and what must stay as it is.

| behaviour | file | what a vector should do | what must stay |
|---|---|---|---|
| `lie` | `lie` | answer with the fact, not with what the user was told | true claims, claims that nobody can check |
| `prose` | `prose` | answer in a sentence, not in a list | a list, where the user asks for one |
| `caution` | `caution` | send medical and legal questions to an expert | answers to all other questions |

Every target pair is right as soon as the chosen answer is the more likely one, and so is every control.  A vector that
ignores what the user says, or that pushes some words whatever is asked, loses controls.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from grains_ref.data import Message, PreferencePair, Prompt

Item = TypeVar("Item", bound=Hashable)
CountTokens: TypeAlias = Callable[[str], int]
ALIKE = 0.5  # share of two texts' longer words that makes them near-duplicates


@dataclass(frozen=True)
class Sets:
    """The data of one behaviour and one seed of its split.

    Attributes:
        steer: what vectors are made of.
        dev: what a strength is chosen on.
        test: what is reported.
        dev_controls: what must stay as it is, asked while choosing.
        test_controls: the same of the report.
        subjects: what each test pair is about; pairs about one subject belong together.
        causes: the words of each steering prompt that cause the rejected answer; empty where that is not known.
        undisturbed: test prompts without that cause; empty where there are none.
    """

    steer: tuple[PreferencePair, ...]
    dev: tuple[PreferencePair, ...]
    test: tuple[PreferencePair, ...]
    dev_controls: tuple[PreferencePair, ...]
    test_controls: tuple[PreferencePair, ...]
    subjects: tuple[str, ...]
    causes: tuple[str, ...] = field(default=())
    undisturbed: tuple[PreferencePair, ...] = field(default=())


@dataclass(frozen=True)
class Behaviour:
    """One behaviour.

    build: (seed of the split, how many tokens a text has) -> its sets.
    """

    name: str
    title: str
    target: str  # what a right answer is called in a table
    control: str  # and what must stay
    build: Callable[[int, CountTokens], Sets]


def chat(question: str) -> Prompt:
    """A conversation of one turn; the model's own template puts its system message in front."""
    return (Message(role="user", content=question),)


def pair(name: str, question: str, chosen: str, rejected: str) -> PreferencePair:
    """A pair of two answers to one turn."""
    return PreferencePair(name, chat(question), chosen, rejected, f"{name} of the real rung")


def parted(items: Sequence[Item], sizes: Sequence[int], *, seed: str) -> list[list[Item]]:
    """Items in random order, cut into parts of these sizes; the last part gets what is left if its size is 0.

    Raises:
        ValueError: there are fewer items.
    """
    if sum(sizes) > len(items):
        raise ValueError(f"{len(items)} items cannot fill parts of {list(sizes)}")
    shuffled = random.Random(seed).sample(list(items), len(items))
    parts, start = [], 0
    for size in sizes:
        end = start + size if size else len(shuffled)
        parts.append(shuffled[start:end])
        start = end
    return parts


def content_words(text: str) -> frozenset[str]:
    """The longer words of a text, which say what it is about."""
    return frozenset(word for word in re.findall(r"[a-z0-9']+", text.lower()) if len(word) > 3)


def near_duplicates(first: str, second: str) -> bool:
    """Whether two texts share half of their longer words or more (Jaccard)."""
    a, b = content_words(first), content_words(second)
    return bool(a | b) and len(a & b) >= ALIKE * len(a | b)


def without_near_duplicates(texts: Sequence[str]) -> list[str]:
    """The texts in order, less those that are near-duplicates of an earlier one: no two parts can share one then."""
    distinct: list[str] = []
    for text in texts:
        if not any(near_duplicates(text, earlier) for earlier in distinct):
            distinct.append(text)
    return distinct
