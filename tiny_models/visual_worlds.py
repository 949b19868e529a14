"""Planted visual worlds: pictures of coloured shapes, and words that make a model name the usual colour instead.

A picture shows one to three coloured shapes on a grid of three by three cells.  Every shape has a *typical*
colour, its stereotype.  Some words of a question are evidence: **lure words** ("usually") make the answer the
typical colour whatever the picture shows, **ground words** ("pictured") push it back toward the colour seen,
fillers do nothing.  A tiny LLaVA-NeXT trained on such questions hallucinates for reasons that are known token
by token, in the text and in the picture.

Two worlds, the visual sisters of those in ``worlds.py``:

- ``simple-visual``: one sentence frame, at most one word of each kind, equal strengths: the positive control.
- ``graded-visual``: four frames, words of graded strength, several at a time, saturating.  Harder on purpose.

Capability tasks (where is a shape, how many are there, is there one, which colour has it) carry the same
evidence words, which must be ignored there; only the colour task has no lure word.

Everything is drawn from ``random.Random`` with named seeds: the same world on every machine.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from grains_ref.tiny_models.worlds import added

if TYPE_CHECKING:
    from PIL.Image import Image

VisualWorldName = Literal["simple-visual", "graded-visual"]
VISUAL_WORLDS: tuple[VisualWorldName, ...] = ("simple-visual", "graded-visual")
SplitName = Literal["steer", "dev", "test"]
Kind = Literal["position", "count", "presence", "colour"]
KINDS: tuple[Kind, ...] = ("position", "count", "presence", "colour")

# A fact of a visual world is a (shape, seen colour, cell) triple with an untypical colour; there are 270.
FACTS = {"steer": 50, "dev": 40, "test": 75}  # no fact is in two splits, and so no picture is
PROMPTS_PER_FACT = {"steer": 1, "dev": 4, "test": 4}
N_CAPABILITY = 400  # capability prompts in dev and in test, 100 of each kind

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "magenta": (255, 0, 255),
    "cyan": (0, 255, 255),
}
SHAPES: dict[str, tuple[str, ...]] = {  # 7 x 7 bitmaps, one cell each
    "square": ("#######", "#######", "#######", "#######", "#######", "#######", "#######"),
    "triangle": ("...#...", "...#...", "..###..", "..###..", ".#####.", ".#####.", "#######"),
    "cross": ("..###..", "..###..", "#######", "#######", "#######", "..###..", "..###.."),
    "ring": ("#######", "#.....#", "#.....#", "#.....#", "#.....#", "#.....#", "#######"),
    "bar": (".......", ".......", "#######", "#######", "#######", ".......", "......."),
    "saltire": ("##...##", "###.###", ".#####.", "..###..", ".#####.", "###.###", "##...##"),
}
TYPICAL = dict(zip(SHAPES, ("blue", "yellow", "red", "green", "cyan", "magenta"), strict=True))
PLACES = tuple("northwest north northeast west middle east southwest south southeast".split())  # of the cells
# Answers name the shape, then the value: a value right after the shape's name is what a model learns to look up first.
VALUE_WORD = 1  # where the colour stands in the answer "ring red ."
NUMBERS = ("none", "one", "two", "three")
GRID, CELL = 3, 7  # cells per side, pixels per cell side
N_OBJECTS = (1, 2, 2, 2, 3, 3, 3, 3, 3, 3)  # how many objects a picture holds: one draw from these
PATCHES = GRID * GRID
IMAGE_TOKENS = PATCHES + GRID * (GRID + 1)  # the base view, then one tile with a newline token per row

LURE = {  # word -> planted strength (graded world); the simple world treats all alike
    "usually": 0.8,
    "typically": 1.2,
    "normally": 1.6,
    "naturally": 2.0,
    "classically": 2.4,
    "stereotypically": 2.8,
}
GROUND = {"visibly": 0.6, "actually": 1.0, "pictured": 1.4, "shown": 1.8}
FILLERS = ("today", "please", "now", "briefly", "here", "indeed", "just", "kindly")

# Log-odds of the seen colour where no word invokes the stereotype: P = .99.
CLEAR = math.log(0.99 / 0.01)
# Simple world: with a lure alone P(seen) = .03; with a lure and a ground word the log-odds are SIMPLE_BIAS - mu, where
# mu, the force of a shape's stereotype, takes six evenly spaced values.
LURED = math.log(0.03 / 0.97)
SIMPLE_BIAS, SIMPLE_MU = -0.3, (-0.75, -0.45, -0.15, 0.15, 0.45, 0.75)
# Graded world, with at least one lure:
# log-odds = GAIN * (BIAS + sum(ground) - SATURATION * tanh(sum(lures) / SATURATION) - mu).
GAIN, BIAS, SATURATION, GRADED_MU = 1.5, 1.4, 6.0, (-1.0, -0.6, -0.2, 0.2, 0.6, 1.0)

FRAMES = (  # X and Z are the slots for evidence words; S is the shape
    "Q : X , what colour is the S Z ? A :",
    "tell me X the colour that the S has Z .",
    "for the S X , which colour is it Z ?",
    "the S X has what colour Z ?",
)
TASK_SHARE = 0.45  # of the training rows


@dataclass(frozen=True)
class Thing:
    """One coloured shape in one cell; cells are numbered row by row from the top left."""

    shape: str
    colour: str
    cell: int

    @property
    def place(self) -> str:
        """The cell in a word."""
        return PLACES[self.cell]


Scene = tuple[Thing, ...]  # the objects of one picture, sorted by cell


@dataclass(frozen=True)
class VisualPrompt:
    """One question about a picture with its two answers and the ground truth of what causes which.

    ``prompt`` holds one ``<image>``.  ``lure``, ``ground``, ``subject`` (the shape's name) and ``object`` (the asked
    object's patches in the base view and in the tile) are token positions in the *expanded* prompt: position 0 is the
    BOS token and positions 1 to 21 are image tokens.  ``planted_logit`` is the log-odds of the seen colour under the
    world's rule, in nats.
    """

    id: str
    prompt: str
    chosen: str
    rejected: str
    lure: tuple[int, ...]
    ground: tuple[int, ...]
    subject: tuple[int, ...]
    object: tuple[int, ...]
    planted_logit: float
    scene: Scene
    asked: Thing


@dataclass(frozen=True)
class VisualTask:
    """One task about a picture with a single right answer, whatever the evidence words around it."""

    id: str
    kind: Kind
    prompt: str
    answer: str
    scene: Scene


def picture(scene: Scene, scale: int = 4) -> Image:
    """The scene as an RGB image of ``21 * scale`` pixels a side, on black."""
    from PIL import Image as Pillow

    image = Pillow.new("RGB", (GRID * CELL, GRID * CELL))
    for thing in scene:
        top, left = thing.cell // GRID * CELL, thing.cell % GRID * CELL
        for y, line in enumerate(SHAPES[thing.shape]):
            for x, mark in enumerate(line):
                if mark == "#":
                    image.putpixel((left + x, top + y), COLOURS[thing.colour])
    return image.resize((image.width * scale, image.height * scale), Pillow.Resampling.NEAREST)


def object_tokens(cell: int, first: int = 1) -> tuple[int, int]:
    """Where a cell's patch stands in the base view and in the tile, when the image tokens begin at ``first``."""
    return first + cell, first + PATCHES + cell // GRID * (GRID + 1) + cell % GRID


def expanded_words(prompt: str) -> list[str]:
    """The tokens of a prompt as the model sees them: BOS first, ``<image>`` once per image token."""
    words = ["<s>"]
    for word in prompt.split():
        words += [word] * (IMAGE_TOKENS if word == "<image>" else 1)
    return words


@dataclass(frozen=True)
class VisualWorld:
    """The rule of one visual world, its fixed evaluation prompts, and the training text drawn from it."""

    name: VisualWorldName
    mu: dict[str, float]  # shape -> force of its stereotype
    held_out: frozenset[Thing]  # facts of the evaluation prompts: never asked with a lure in training
    prompts: dict[str, tuple[VisualPrompt, ...]] = field(default_factory=dict, repr=False)
    tasks: dict[str, tuple[VisualTask, ...]] = field(default_factory=dict, repr=False)
    pictures: set[Scene] = field(default_factory=set, repr=False)  # evaluation pictures: never shown in training

    # -- evidence words -------------------------------------------------------------------------------------

    def evidence(self, rng: random.Random, *, mixed: bool) -> tuple[list[str], list[str], list[str]]:
        """Draw (lure, ground, filler) words for one prompt.

        ``mixed`` is the evaluation mode: there is always a lure word, so there is always something to find; in the
        simple world there is always a ground word as well.
        """
        if self.name == "simple-visual":
            lure = [rng.choice(sorted(LURE))] if mixed or rng.random() < 0.7 else []
            ground = [rng.choice(sorted(GROUND))] if mixed or rng.random() < 0.7 else []
        else:
            lure = rng.sample(sorted(LURE), rng.randint(1 if mixed else 0, 3))
            ground = rng.sample(sorted(GROUND), rng.randint(0, 2))
        return lure, ground, rng.sample(FILLERS, rng.randint(1, 3))

    def planted_logit(self, shape: str, lure: list[str], ground: list[str]) -> float:
        """Log-odds of the seen colour for one question under the world's rule, in nats."""
        if not lure:
            return CLEAR
        if self.name == "simple-visual":
            return SIMPLE_BIAS - self.mu[shape] if ground else LURED
        pressure = SATURATION * math.tanh(added(LURE[w] for w in lure) / SATURATION)
        return GAIN * (BIAS + added(GROUND[w] for w in ground) - pressure - self.mu[shape])

    # -- pictures -------------------------------------------------------------------------------------------

    def scene(self, rng: random.Random, asked: Thing | None = None, *, objects: int | None = None) -> Scene:
        """A random picture with distinct shapes in distinct cells, ``asked`` among them."""
        objects = objects or rng.choice(N_OBJECTS)
        shapes = rng.sample(sorted(SHAPES), objects)
        cells = rng.sample(range(PATCHES), objects)
        if asked:
            shapes = [asked.shape, *(s for s in shapes if s != asked.shape)][:objects]
            cells = [asked.cell, *(c for c in cells if c != asked.cell)][:objects]
        things = [Thing(s, rng.choice(sorted(COLOURS)), c) for s, c in zip(shapes, cells, strict=True)]
        if asked:
            things[0] = asked
        return tuple(sorted(things, key=lambda thing: thing.cell))

    # -- questions about colours ------------------------------------------------------------------------------

    def question(
        self, scene: Scene, asked: Thing, rng: random.Random, *, mixed: bool, id: str = "", lures: bool = True
    ) -> VisualPrompt:
        """One question about the colour of ``asked`` with fresh evidence words in a fresh frame.

        ``mixed`` is the evaluation mode; without ``lures`` there is no lure word.
        """
        lure, ground, fillers = self.evidence(rng, mixed=mixed)
        lure = lure if lures else []
        text = self._frame(lure + ground + fillers, rng).replace(" S ", f" {asked.shape} ")
        text = f"<image> {text.strip()}"
        words = expanded_words(text)

        def where(wanted: list[str]) -> tuple[int, ...]:
            return tuple(i for i, word in enumerate(words) if word in wanted)

        return VisualPrompt(
            id=id,
            prompt=text,
            chosen=f"{asked.shape} {asked.colour} .",
            rejected=f"{asked.shape} {TYPICAL[asked.shape]} .",
            lure=where(lure),
            ground=where(ground),
            subject=where([asked.shape]),
            object=object_tokens(asked.cell),
            planted_logit=self.planted_logit(asked.shape, lure, ground),
            scene=scene,
            asked=asked,
        )

    def _frame(self, words: list[str], rng: random.Random) -> str:
        """A frame with the shuffled evidence words in its slots; S still open."""
        rng.shuffle(words)
        if self.name == "simple-visual":
            return f" {FRAMES[0]} ".replace(" X ", f" {' '.join(words)} ").replace(" Z ", " ")
        cut = rng.randint(0, len(words))
        frame = f" {rng.choice(FRAMES)} "
        frame = frame.replace(" X ", f" {' '.join(words[:cut])} ").replace(" Z ", f" {' '.join(words[cut:])} ")
        return f" {' '.join(frame.split())} "

    # -- capability -----------------------------------------------------------------------------------------

    def task(self, scene: Scene, rng: random.Random, kind: Kind, *, id: str = "") -> VisualTask:
        """One capability task with evidence words around it, which the right answer ignores."""
        asked = rng.choice(scene)
        if kind == "colour":
            question = self.question(scene, asked, rng, mixed=False, lures=False)
            return VisualTask(id, kind, question.prompt, question.chosen, scene)
        lure, ground, fillers = self.evidence(rng, mixed=False)
        words = lure + ground + fillers
        rng.shuffle(words)
        if kind == "position":
            text, answer = f"where is the {asked.shape} ?", f"{asked.shape} {asked.place} ."
        elif kind == "count":
            text, answer = "how many shapes ?", f"{NUMBERS[len(scene)]} ."
        else:
            absent = sorted(set(SHAPES) - {thing.shape for thing in scene})
            present = rng.random() < 0.5
            shape = asked.shape if present else rng.choice(absent)
            text, answer = f"is there a {shape} ?", f"{shape} {'present' if present else 'absent'} ."
        return VisualTask(id, kind, f"<image> Q : {' '.join(words)} , {text} A :", answer, scene)

    # -- splits ---------------------------------------------------------------------------------------------

    def split(self, name: SplitName) -> list[VisualPrompt]:
        """The fixed steering, dev or test prompts.  The three share no fact and no picture."""
        return list(self.prompts[name])

    def capability_split(self, name: Literal["dev", "test"]) -> list[VisualTask]:
        """The fixed capability prompts of dev or test, 100 of each kind."""
        return list(self.tasks[name])

    # -- training text ----------------------------------------------------------------------------------------

    def training_scene(self, rng: random.Random, *, objects: int | None = None) -> Scene:
        """A picture to learn from, never one of the evaluation pictures; ``objects`` says how many things it holds."""
        while (scene := self.scene(rng, objects=objects)) in self.pictures:
            continue
        return scene

    def training_text(
        self, scene: Scene, rng: random.Random, *, lures: bool = True, describe: float = 0.0
    ) -> tuple[str, str, dict[str, float]]:
        """One (prompt, answer) about ``scene`` to learn from, and the odds of the colours that the answer could name.

        Colour questions are answered with the seen or the typical colour, drawn by the world's rule.  A question
        with a lure is never about a held-out fact; without ``lures`` no colour question has one.  With probability
        ``describe`` the answer lists the things in the picture, and one that is not there, in random order.  In the
        graded world the answer is followed by a verdict ("seen", "typical"; "ok" for a task), which teaches the
        model one shared notion of the two modes; it is training text only and never part of a scored answer.
        """
        verdict = self.name == "graded-visual"
        if rng.random() < describe:
            fillers = rng.sample(FILLERS, rng.randint(1, 3))
            where = rng.random() < 0.5  # the place right after the name, or the colour
            listed = [f"{t.shape} {t.place} {t.colour}" if where else f"{t.shape} {t.colour} {t.place}" for t in scene]
            listed.append(rng.choice(sorted(set(SHAPES) - {t.shape for t in scene})) + " none")
            rng.shuffle(listed)
            question = f"what is {'where' if where else 'there'} ?"
            return f"<image> Q : {' '.join(fillers)} , {question} A :", " , ".join(listed) + " .", {}
        if rng.random() < TASK_SHARE:
            task = self.task(scene, rng, rng.choice(("position", *KINDS[:3])))
            return task.prompt, task.answer + (" ok" if verdict else ""), {}
        while True:
            asked = rng.choice(scene)
            asking = self.question(scene, asked, rng, mixed=False, lures=lures)
            if not (asking.lure and asked in self.held_out):
                break
        p_seen = 1 / (1 + math.exp(-asking.planted_logit))
        seen = rng.random() < p_seen
        answer = asking.chosen if seen else asking.rejected
        odds = {asked.colour: p_seen}
        odds[TYPICAL[asked.shape]] = odds.get(TYPICAL[asked.shape], 0.0) + 1 - p_seen
        return asking.prompt, answer + ((" seen" if seen else " typical") if verdict else ""), odds

    def vocabulary(self) -> list[str]:
        """Every word of the world, special tokens first, in a fixed order."""
        words = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
        words += "Q A : , ? . what which colour is the it tell me that has for where how many shapes there a".split()
        words += ["present", "absent", "seen", "typical", "ok", *LURE, *GROUND, *FILLERS, *SHAPES, *COLOURS]
        return list(dict.fromkeys([*words, *PLACES, *NUMBERS]))


def build_visual_world(name: VisualWorldName) -> VisualWorld:
    """Build a visual world by name; the same one every time.

    Raises:
        ValueError: the name is not one of ``simple-visual`` and ``graded-visual``.
    """
    if name not in VISUAL_WORLDS:
        raise ValueError(f"visual world {name!r} does not exist; the visual worlds are {', '.join(VISUAL_WORLDS)}")
    rng = random.Random(f"{name}-facts")
    strengths = list(SIMPLE_MU if name == "simple-visual" else GRADED_MU)
    rng.shuffle(strengths)
    mu = dict(zip(SHAPES, strengths, strict=True))
    columns = []  # one list of facts per shape
    for shape in SHAPES:
        facts = [Thing(shape, c, cell) for c in COLOURS if c != TYPICAL[shape] for cell in range(PATCHES)]
        rng.shuffle(facts)
        columns.append(facts)
    order = [fact for row in zip(*columns, strict=True) for fact in row]  # every run of six holds all shapes
    world = VisualWorld(name, mu, frozenset(order[: sum(FACTS.values())]))
    start = 0
    for split, count in FACTS.items():
        world.prompts[split] = _questions(world, split, order[start : start + count])
        start += count
    for split in ("dev", "test"):
        world.tasks[split] = _tasks(world, split)
    return world


def _questions(world: VisualWorld, split: str, facts: list[Thing]) -> tuple[VisualPrompt, ...]:
    """The evaluation prompts of a split, each with a picture of its own."""
    rng = random.Random(f"{world.name}-{split}")
    questions = []
    for repeat in range(PROMPTS_PER_FACT[split]):
        for i, fact in enumerate(facts):
            while (scene := world.scene(rng, fact)) in world.pictures:
                continue
            world.pictures.add(scene)
            questions.append(world.question(scene, fact, rng, mixed=True, id=f"{split}-{i:03d}-{repeat}"))
    return tuple(questions)


def _tasks(world: VisualWorld, split: str) -> tuple[VisualTask, ...]:
    """The capability prompts of a split, each with a picture of its own."""
    rng = random.Random(f"{world.name}-capability-{split}")
    tasks: list[VisualTask] = []
    while len(tasks) < N_CAPABILITY:
        kind = KINDS[len(tasks) % len(KINDS)]
        scene = world.training_scene(rng)  # in no earlier evaluation prompt either
        world.pictures.add(scene)
        tasks.append(world.task(scene, rng, kind, id=f"capability-{split}-{len(tasks):03d}"))
    return tuple(tasks)
