"""What a model's reply in free words says, by the rules of the benchmarks that are scored on replies.

These rules are part of the benchmarks' definition and are kept with their quirks, so that numbers can be compared.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Sequence

UNANSWERABLE = ("unknown", "no answer", "no information", "not", "unclear")
INCONSISTENT = (
    "conflict", "multiple answers", "disagreement", "inconsistent", "contradictory", "contradiction", "inconsistency",
    "two answers", "2 answers", "conflicting",
)  # fmt: skip
_MARKS = set(string.punctuation) | set("\u2018\u2019\u00b4")
_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")  # an answer follows these
_WITH_COMMAS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+")
_PLAIN = re.compile(r"-?(?:\d*\.\d+|\d+\b)(?![eE][+-]?\d|[,\d])")


# ------------------------------------------------------------------------------------- FaithEval
def says_unanswerable(reply: str, *, strict: bool = False) -> bool:
    """Whether a reply says that the context has no answer (FaithEval, unanswerable); strict: by the word "unknown"."""
    return _says(reply, UNANSWERABLE[:1] if strict else UNANSWERABLE)


def says_inconsistent(reply: str, *, strict: bool = False) -> bool:
    """Whether a reply says that the context contradicts itself (FaithEval, inconsistent); strict: by "conflict"."""
    return _says(reply, INCONSISTENT[:1] if strict else INCONSISTENT)


def _says(reply: str, phrases: Sequence[str]) -> bool:
    """Whether a phrase stands anywhere, also inside a word, after articles and punctuation are taken out."""
    text = "".join(letter for letter in reply.lower().replace("_", " ") if letter not in _MARKS)
    text = " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())
    return any(phrase in text for phrase in phrases)


# ------------------------------------------------------------------------------------- MMMU
def mmmu_choice(reply: str, options: Sequence[str], *, seed: str) -> int:
    """The index of the option that a reply names, by MMMU's rule.

    A letter in brackets counts before a letter between spaces, and that before an option's own words (in a reply of
    more than five words); of several the last.  A reply that names none gets an option at random.

    seed: what the random option depends on, for instance the question's id.
    """
    text = reply
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    letters = string.ascii_uppercase[: len(options)]
    ways = [[text.rfind(f"({letter})") for letter in letters], [text.rfind(f" {letter} ") for letter in letters]]
    if len(text.split()) > 5:
        ways.append([text.lower().rfind(option.lower()) for option in options])
    for places in ways:
        if max(places) >= 0:
            return places.index(max(places))
    return random.Random(seed).randrange(len(options))


def mmmu_open(reply: str, answers: Sequence[str]) -> bool:
    """Whether a reply gives one of the answers to an open question, by MMMU's rule.

    Looked at are what follows "is", "so", "answer" and the like in each line (in the last also "="), or else the
    whole reply, and the numbers therein.  Numbers must be equal when rounded to two decimals; of words it is enough
    that the answer's stand among the reply's.
    """
    right = {form for answer in answers for form in _forms(answer)}
    tails = _key_phrases(reply)
    numbers = [n for tail in tails for rule in (_WITH_COMMAS, _SCIENTIFIC, _PLAIN) for n in rule.findall(tail)]
    for said in {form for phrase in [*tails, *numbers] for form in _forms(phrase)}:
        if isinstance(said, float):
            if said in right:
                return True
        elif any(isinstance(answer, str) and answer in said for answer in right):
            return True
    return False


def _key_phrases(reply: str) -> list[str]:
    """From each line the shortest text after the last occurrence of a key; the whole reply if no line has any."""
    lines = reply.strip().strip(".").lower().split("\n")
    phrases = []
    for i, line in enumerate(lines):
        shortest = ""
        for key in _KEYS + ("=",) * (i == len(lines) - 1):
            tail = line.rsplit(key, 1)[-1].strip()
            if key in line and (not shortest or len(tail) < len(shortest)):
                shortest = tail
        if shortest and shortest not in ":,.!?;'":
            phrases.append(shortest)
    return phrases or ["\n".join(lines)]


def _forms(text: str) -> list[str | float]:
    """A number rounded to two decimals, or words in lower case; a single letter must stand beside a space."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
