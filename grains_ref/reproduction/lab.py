"""One model with its steering pairs, dev and test data, and the stages already computed on it."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias, get_args

import torch
import transformers
from torch import Tensor

from grains_ref import fast
from grains_ref.data import PreferencePair, Task
from grains_ref.demo import text, vision
from grains_ref.demo.bench import Bench, model_folder
from grains_ref.grains import (
    PRESETS,
    Attribution,
    Example,
    Fit,
    HyperParameters,
    Selection,
    Shift,
    Steering,
    contrast,
    shift,
    vectors,
)
from grains_ref.methods.core import Setting
from grains_ref.methods.ict import Box, Boxes
from grains_ref.models import HuggingFaceModel, load
from grains_ref.tiny_models.visual_worlds import CELL, GRID, VisualPrompt, VisualWorldName, build_visual_world
from grains_ref.tiny_models.worlds import PlantedPrompt, WorldName, build_world

WORLDS: tuple[str, ...] = (*get_args(WorldName), *get_args(VisualWorldName))
UNSTEERED = Setting("unsteered", 0.0, contextlib.nullcontext)
AnyPrompt: TypeAlias = PlantedPrompt | VisualPrompt


@dataclass
class Lab:
    """What the rows of a table work with."""

    model: HuggingFaceModel
    paper: HyperParameters
    lams: tuple[float, ...]  # the grid of strengths, gentlest first, without 0
    neutral: str  # a baseline of one word that is evidence for nothing
    steer: Sequence[PreferencePair]
    dev: tuple[Sequence[PreferencePair], Sequence[Task]]
    test: tuple[Sequence[PreferencePair], Sequence[Task]]
    facts: Sequence[str]  # which fact each test pair is about; prompts of one fact belong together
    more: Sequence[PreferencePair] = ()  # further steering pairs, for the question how many are needed
    prompts: Sequence[AnyPrompt] = ()  # a planted world's steering prompts, whose causes are known
    boxes: Boxes | None = None  # where each steering pair's object is, for ICT; None: its image level only
    judged: Callable[[], Sequence[bool]] | None = None  # which greedy answers a judge calls hallucinations
    unsteered: dict[str, str] = field(default_factory=dict)  # its outcomes on test, once measured
    _examples: list[Example] = field(default_factory=list)
    _attributions: dict[tuple[HyperParameters, int], Attribution] = field(default_factory=dict)
    _shifts: dict[tuple[HyperParameters, int], Shift] = field(default_factory=dict)

    @property
    def is_visual(self) -> bool:
        """Whether the model can see."""
        return bool(self.model.family.marker)

    @functools.cached_property
    def bench(self) -> Bench:
        """Dev and test data, tokenised once."""
        return Bench(self.model, dev=self.dev, test=self.test, tick=lambda what: None)

    # ------------------------------------------------------------------ GrAInS
    def example(self, i: int) -> Example:
        """Steering example i; beyond the steering pairs, one of the further pairs."""
        while len(self._examples) <= i:
            pair = [*self.steer, *self.more][len(self._examples)]
            self._examples.append(self.model.example(pair.prompt, pair.chosen, pair.rejected, pair.image))
        return self._examples[i]

    def attribution(self, hp: HyperParameters, i: int) -> Attribution:
        """The scores of steering example i; what hp says about later stages does not matter here."""
        plain = HyperParameters()
        later = {name: getattr(plain, name) for name in ("k", "mask_baseline", "eligible", "aggregation", "components")}
        hp = replace(hp, **later)
        if (hp, i) not in self._attributions:
            self._attributions[hp, i] = fast.attribute(self.model, self.example(i), hp)
        return self._attributions[hp, i]

    def shift(self, hp: HyperParameters, i: int) -> Shift:
        """The two shifts of steering example i; what hp says about aggregation does not matter here."""
        hp = replace(hp, aggregation="pca", components=1)
        if (hp, i) not in self._shifts:
            self._shifts[hp, i] = shift(self.model, self.example(i), self.attribution(hp, i).a, hp)
        return self._shifts[hp, i]

    def fit(self, hp: HyperParameters, *, n: int | None = None) -> Fit:
        """Equations (1) to (6) on the first n examples; by default all steering pairs."""
        return vectors([self.shift(hp, i) for i in range(n or len(self.steer))], hp)

    def strengths(self, label: str, v: Tensor, *, layers: Sequence[int] | None = None) -> list[Setting]:
        """Equations (7) and (8) with v at every strength of the grid, gentlest first."""
        blocks = self.model.blocks
        steerings = [functools.partial(Steering, blocks, v, lam=lam, layers=layers) for lam in self.lams]
        return [Setting(label, lam, steering) for lam, steering in zip(self.lams, steerings, strict=True)]

    def grains(self, label: str, hp: HyperParameters, *, n: int | None = None) -> list[Setting]:
        """GrAInS with these hyper-parameters at every strength of the grid, gentlest first."""
        return self.strengths(label, self.fit(hp, n=n).v)

    # ------------------------------------------------------------------ ground truth
    def planted_shift(self, i: int) -> Shift:
        """The shift of steering example i when its true causes are masked instead of attributed tokens."""
        example, prompt = self.example(i), self.prompts[i]
        truth = (
            Selection(pos=prompt.ground + prompt.object, neg=prompt.lure)
            if isinstance(prompt, VisualPrompt)
            else Selection(pos=prompt.trust, neg=prompt.rumour)
        )
        zero = self.model.baseline(example.encoded, "zero")
        deltas = contrast(self.model, example.encoded, truth, zero)
        return Shift(torch.zeros(len(example.encoded.ids)), truth, *deltas)


def planted_lab(world: str, seed: int, folder: Path) -> Lab:
    """A planted world and the model of one training seed; folder: where pictures are written to."""
    transformers.utils.logging.disable_progress_bar()
    model = load(model_folder(world, seed))
    if world == "double":  # two behaviours, each with data of its own; see `transfer`
        from grains_ref.reproduction.transfer import double_labs

        return double_labs(model)["myth"]
    if world in get_args(WorldName):
        built = build_world(world)
        prompts = built.split("steer")
        rng = random.Random(f"{world}-more")  # new prompts about the same facts
        facts = [built.facts[int(p.id.split("-")[1])] for p in prompts]
        more = [
            built.prompt(fact, rng, mixed=True, id=f"more-{fact.index:03d}-{i}") for i in range(3) for fact in facts
        ]
        return Lab(
            model,
            paper=PRESETS["paper_llm"],
            lams=text.LAMS[1:],
            neutral="token:please",  # a filler of all four worlds
            steer=text.as_pairs(prompts),
            dev=(text.as_pairs(built.split("dev")), text.as_tasks(built.capability_split("dev"))),
            test=(text.as_pairs(built.split("test")), text.as_tasks(built.capability_split("test"))),
            facts=text.facts(world),
            more=text.as_pairs(more),
            prompts=prompts,
        )
    visual = build_visual_world(world)
    vision.write_data(world, folder)
    pairs, tasks = vision.as_pairs, vision.as_tasks
    boxes = {prompt.id: cell_box(prompt.asked.cell) for prompt in visual.split("steer")}
    return Lab(
        model,
        paper=PRESETS["paper_vlm"],
        lams=vision.LAMS[1:],
        neutral="token:please",
        steer=pairs(visual.split("steer"), folder),
        dev=(pairs(visual.split("dev"), folder), tasks(visual.capability_split("dev"), folder)),
        test=(pairs(visual.split("test"), folder), tasks(visual.capability_split("test"), folder)),
        facts=vision.facts(world),
        prompts=visual.split("steer"),
        boxes=lambda pair: [boxes[pair.id]],
    )


def cell_box(cell: int, scale: int = 4) -> Box:
    """The box of one of a picture's 3 x 3 cells, in pixels; scale as in `visual_worlds.picture`."""
    left, top = cell % GRID * CELL * scale, cell // GRID * CELL * scale
    return (left, top, left + CELL * scale, top + CELL * scale)
