"""Planted worlds: synthetic facts with popular myths, and words that make a model repeat the myth.

A *world* invents 60 entities with 4 attributes each.  Every fact has a truth and a popular myth.  Some
words of a prompt are evidence: **rumour words** ("allegedly") push the answer toward the myth, **trust
words** ("verified") push it toward the truth, fillers do nothing.  A tiny Llama trained on such text has a
bad habit whose causes are known token by token, so that attribution can be scored against ground truth
and steering against what the model was taught.

Two worlds, fixed before any method was run on them (docs/worlds.md records the order):

- ``simple``: one sentence frame, at most one word of each kind, equal strengths.  The assumptions of the
  method hold: the positive control.
- ``graded``: four frames, words of graded strength, several at a time, saturating.  Harder on purpose.

Capability tasks (counting, addition, and in ``graded`` also copying and geography) carry the same
evidence words, which must be ignored there; steering must not hurt them.

Everything is drawn from ``random.Random`` with named seeds: the same world on every machine.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

WorldName = Literal["simple", "graded"]
WORLDS: tuple[WorldName, ...] = ("simple", "graded")

N_STEER, N_DEV, N_TEST = 50, 40, 150  # facts per split: no fact is in two of them
PROMPTS_PER_FACT = {"steer": 1, "dev": 4, "test": 2}
N_CAPABILITY = 600  # capability prompts in dev and in test

RUMOUR = {  # word -> planted strength (graded world); the simple world treats the first four alike
    "supposedly": 0.8,
    "reportedly": 1.2,
    "allegedly": 1.6,
    "popularly": 2.0,
    "famously": 2.4,
    "proverbially": 2.8,
}
TRUST = {"measured": 0.6, "recorded": 1.0, "verified": 1.4, "documented": 1.8}
FILLERS = ("today", "please", "now", "briefly", "here", "indeed", "just", "kindly")

# P(truth) in the simple world, by which kinds of evidence the prompt holds: (trust, rumour).
P_TRUTH = {(True, False): 0.98, (False, True): 0.03, (True, True): 0.35, (False, False): 0.50}

# Graded world: P(truth) = sigmoid(GAIN * s), s = BIAS + sum(trust) - SATURATION * tanh(sum(rumour) / SATURATION) - mu
GAIN, BIAS, SATURATION, MYTH_SD = 1.5, 1.4, 6.0, 0.7

ATTRIBUTES: dict[str, tuple[list[str], list[str]]] = {
    "emblem": (
        "crimson azure golden silver scarlet violet amber ivory emerald sable copper cobalt".split(),
        "falcon lion otter heron stag badger lynx raven salmon adder boar crane".split(),
    ),
    "dish": (
        "smoked pickled roasted peppered honeyed salted braised spiced buttered baked curried glazed".split(),
        "barley trout turnip lentil quail pumpkin eel mutton cabbage chestnut walnut leek".split(),
    ),
    "feast": (
        "lantern harvest thunder candle feather ribbon bonfire river orchard frost anchor willow".split(),
        "parade vigil dance regatta fair race banquet market pageant chorus supper pilgrimage".split(),
    ),
    "craft": (
        "woven carved painted hammered blown twisted polished knitted etched plaited quilted inlaid".split(),
        "baskets bells tiles flutes lamps saddles clocks masks ropes bowls fans shields".split(),
    ),
}  # fmt: skip
FRAMES = (  # X and Z are the slots for evidence words; A the attribute; E the entity
    "Q : X , what is the A of E Z ? A :",
    "tell me X the A that E has Z .",
    "for E X , which A is it Z ?",
    "E X has what A Z ?",
)
N_NUMBERS = 41


def _entities() -> tuple[str, ...]:
    """Sixty pronounceable names, one token each."""
    heads = "bel dor fen gal har jun kel lor mir nor".split()
    tails = "vara stead wick mont dale ness".split()
    return tuple((head + tail).capitalize() for head in heads for tail in tails)


ENTITIES = _entities()
TOWNS = tuple(
    (head + tail).capitalize() for head in "ash oak elm fir yew bay ivy fern".split()
    for tail in "ford ham ley ton bury".split()
)  # fmt: skip
REGIONS = ("north", "south", "east", "west", "upland", "lowland", "coast", "island")
RIVERS = tuple(r.capitalize() for r in "arva brin cald dune esk frome glen hodd".split())


def added(numbers: Iterable[float]) -> float:
    """The sum, rounded after every number. `sum` rounds otherwise from Python 3.12 on, and a world is drawn by it."""
    total = 0.0
    for number in numbers:
        total += number
    return total


@dataclass(frozen=True)
class Fact:
    """One fact of a world: what is true of an entity, and what people say instead."""

    index: int
    entity: str
    attribute: str
    truth: str
    myth: str
    mu: float  # how popular the myth is; 0 in the simple world


@dataclass(frozen=True)
class PlantedPrompt:
    """One prompt with its two answers and the ground truth of what causes which.

    ``rumour``, ``trust`` and ``subject`` are token positions (position 0 is the BOS token).  ``planted_logit``
    is the log-odds of the truth under the world's rule, in nats.
    """

    id: str
    prompt: str
    chosen: str
    rejected: str
    rumour: tuple[int, ...]
    trust: tuple[int, ...]
    subject: tuple[int, ...]
    planted_logit: float


@dataclass(frozen=True)
class CapabilityPrompt:
    """One task with a single right answer, whatever the evidence words around it."""

    id: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class World:
    """All facts of one world, and the text drawn from them."""

    name: WorldName
    facts: tuple[Fact, ...]
    towns: dict[str, tuple[str, str]]

    # -- evidence words ---------------------------------------------------------------------------------

    def evidence(self, rng: random.Random, *, mixed: bool) -> tuple[list[str], list[str], list[str]]:
        """Draw (rumour, trust, filler) words for one prompt.

        ``mixed`` is the evaluation mode: there is always a rumour word, so there is always something to find.
        """
        if self.name == "simple":
            rumour = [rng.choice(sorted(RUMOUR)[:4])] if mixed or rng.random() < 0.5 else []
            trust = [rng.choice(sorted(TRUST))] if mixed or rng.random() < 0.5 else []
        else:
            rumour = rng.sample(sorted(RUMOUR), rng.randint(1 if mixed else 0, 3))
            trust = rng.sample(sorted(TRUST), rng.randint(0, 2))
        return rumour, trust, rng.sample(FILLERS, rng.randint(1, 3))

    def planted_logit(self, fact: Fact, rumour: list[str], trust: list[str]) -> float:
        """Log-odds of the truth for one prompt under the world's rule, in nats."""
        if self.name == "simple":
            p = P_TRUTH[bool(trust), bool(rumour)]
            return math.log(p / (1 - p))
        pressure = SATURATION * math.tanh(added(RUMOUR[w] for w in rumour) / SATURATION)
        return GAIN * (BIAS + added(TRUST[w] for w in trust) - pressure - fact.mu)

    # -- questions about facts ----------------------------------------------------------------------------

    def prompt(self, fact: Fact, rng: random.Random, *, mixed: bool, id: str = "") -> PlantedPrompt:
        """One question about ``fact`` with freshly drawn evidence words in a freshly drawn frame."""
        rumour, trust, fillers = self.evidence(rng, mixed=mixed)
        text = self._frame(rumour + trust + fillers, rng).replace(" A ", f" {fact.attribute} ", 1)
        words = text.replace(" E ", f" {fact.entity} ").strip().split()

        def where(wanted: list[str]) -> tuple[int, ...]:
            return tuple(i + 1 for i, word in enumerate(words) if word in wanted)  # + 1: BOS

        return PlantedPrompt(
            id=id,
            prompt=" ".join(words),
            chosen=self.answer(fact, fact.truth),
            rejected=self.answer(fact, fact.myth),
            rumour=where(rumour),
            trust=where(trust),
            subject=where([fact.entity, fact.attribute]),
            planted_logit=self.planted_logit(fact, rumour, trust),
        )

    def answer(self, fact: Fact, value: str) -> str:
        """The full answer; in the simple world the value stands in mid-sentence."""
        if self.name == "simple":
            return f"the {fact.attribute} of {fact.entity} is {value} ."
        return f"{value} ."

    def _frame(self, words: list[str], rng: random.Random) -> str:
        """A frame with the shuffled evidence words in its slots; E (and for facts A) still open."""
        rng.shuffle(words)
        if self.name == "simple":
            return " " + FRAMES[0].replace("X", " ".join(words)).replace(" Z", "") + " "
        cut = rng.randint(0, len(words))
        frame = " " + rng.choice(FRAMES) + " "
        frame = frame.replace(" X ", f" {' '.join(words[:cut])} ").replace(" Z ", f" {' '.join(words[cut:])} ")
        return " " + " ".join(frame.split()) + " "

    # -- capability -----------------------------------------------------------------------------------------

    def capability(self, rng: random.Random, *, id: str = "") -> CapabilityPrompt:
        """One capability task with evidence words around it, which the right answer ignores."""
        rumour, trust, fillers = self.evidence(rng, mixed=False)
        words = rumour + trust + fillers
        rng.shuffle(words)
        task = rng.choice(("after", "plus") if self.name == "simple" else ("after", "plus", "repeat", "where"))
        if task == "after":
            n = rng.randrange(N_NUMBERS - 1)
            question, answer = f"what comes after {n} ?", f"{n + 1} ."
        elif task == "plus":
            i, j = rng.randrange(15), rng.randrange(15)
            question, answer = f"what is {i} plus {j} ?", f"{i + j} ."
        elif task == "repeat":
            firsts, seconds = ATTRIBUTES[rng.choice(sorted(ATTRIBUTES))]
            pair = f"{rng.choice(firsts)} {rng.choice(seconds)}"
            question, answer = f"repeat {pair} ?", f"{pair} ."
        else:
            town = rng.choice(TOWNS)
            question, answer = f"where is {town} ?", " ".join(self.towns[town]) + " ."
        return CapabilityPrompt(id=id, prompt=f"Q : {' '.join(words)} , {question} A :", answer=answer)

    # -- splits ---------------------------------------------------------------------------------------------

    def split(self, name: Literal["steer", "dev", "test"]) -> list[PlantedPrompt]:
        """The fixed steering, dev or test prompts.  The three share no fact."""
        order = list(range(len(self.facts)))
        random.Random(f"{self.name}-split").shuffle(order)
        bounds = {"steer": (0, N_STEER), "dev": (N_STEER, N_STEER + N_DEV)}
        start, stop = bounds.get(name, (N_STEER + N_DEV, N_STEER + N_DEV + N_TEST))
        rng = random.Random(f"{self.name}-{name}")
        return [
            self.prompt(self.facts[i], rng, mixed=True, id=f"{name}-{i:03d}-{repeat}")
            for repeat in range(PROMPTS_PER_FACT[name])
            for i in order[start:stop]
        ]

    def capability_split(self, name: Literal["dev", "test"]) -> list[CapabilityPrompt]:
        """The fixed capability prompts of dev or test."""
        rng = random.Random(f"{self.name}-capability-{name}")
        return [self.capability(rng, id=f"capability-{name}-{i:03d}") for i in range(N_CAPABILITY)]

    # -- training text ----------------------------------------------------------------------------------------

    def training_text(self, rng: random.Random) -> tuple[str, str]:
        """One (prompt, answer) to learn from.

        The answer about a fact is the truth or the myth, drawn by the world's rule.  In the graded world the
        answer is followed by a verdict ("fact", "myth"; "ok" for a task), which teaches the model one shared
        notion of the two modes; it is training text only and never part of a scored answer.
        """
        verdict = self.name == "graded"
        if rng.random() < (0.25 if self.name == "simple" else 0.35):
            task = self.capability(rng)
            return task.prompt, task.answer + (" ok" if verdict else "")
        fact = rng.choice(self.facts)
        question = self.prompt(fact, rng, mixed=False)
        truthful = rng.random() < 1 / (1 + math.exp(-question.planted_logit))
        answer = question.chosen if truthful else question.rejected
        return question.prompt, answer + ((" fact" if truthful else " myth") if verdict else "")

    def vocabulary(self) -> list[str]:
        """Every word of the world, special tokens first, in a fixed order."""
        words = ["<pad>", "<s>", "</s>", "<unk>"]
        words += "Q A : , ? . what is the of tell me that has for which it comes after plus repeat where".split()
        words += ["fact", "myth", "ok", *RUMOUR, *TRUST, *FILLERS, *ENTITIES, *ATTRIBUTES]
        words += [word for lists in ATTRIBUTES.values() for values in lists for word in values]
        words += [str(n) for n in range(N_NUMBERS)]
        if self.name == "graded":
            words += [*TOWNS, *REGIONS, *RIVERS]
        return list(dict.fromkeys(words))


def build_world(name: WorldName) -> World:
    """Build a world by name; the same facts every time.

    Raises:
        ValueError: the name is not one of ``simple`` and ``graded``.
    """
    if name not in WORLDS:
        raise ValueError(f"world {name!r} does not exist; the planted worlds are {', '.join(WORLDS)}")
    rng = random.Random(f"{name}-facts")
    facts: list[Fact] = []
    for entity in ENTITIES:
        for attribute, (firsts, seconds) in ATTRIBUTES.items():
            if name == "simple":
                truth, myth = rng.sample(seconds[:10], 2)
                mu = 0.0
            else:
                truth, myth = _value_pair(firsts, seconds, rng)
                mu = rng.gauss(0.0, MYTH_SD)
            facts.append(Fact(len(facts), entity, attribute, truth, myth, mu))
    towns = {town: (rng.choice(REGIONS), rng.choice(RIVERS)) for town in TOWNS}
    return World(name, tuple(facts), towns)


def _value_pair(firsts: list[str], seconds: list[str], rng: random.Random) -> tuple[str, str]:
    """Two different two-word values; 10 % share the first word and 10 % the second.

    Shared words make a score of only one answer token blind, so that the whole answer has to be scored.
    """
    truth, myth = rng.sample(firsts, 2), rng.sample(seconds, 2)
    share = rng.random()
    if share < 0.1:
        return f"{truth[0]} {myth[0]}", f"{truth[0]} {myth[1]}"
    if share < 0.2:
        return f"{truth[0]} {myth[0]}", f"{truth[1]} {myth[0]}"
    return f"{truth[0]} {myth[0]}", f"{truth[1]} {myth[1]}"
