"""Planted worlds as labs, and their data as the files that the other commands read.

A world's prompts become ordinary preference pairs and tasks; what they have besides is known by construction: which
tokens cause the answers, and which prompts are about the same fact (docs/worlds.md, docs/double_world.md).
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import transformers

import grains_ref.tiny_models as tiny_models
from grains_ref.data import PreferencePair, Task
from grains_ref.demo.lab import Lab
from grains_ref.fast import EngineName
from grains_ref.files import write_whole
from grains_ref.grains import PRESETS, Selection
from grains_ref.methods.ict import Box
from grains_ref.models import HuggingFaceModel, Item, load
from grains_ref.tiny_models.double_world import BEHAVIOURS, DoublePrompt, build_double_world
from grains_ref.tiny_models.visual_worlds import (
    CELL,
    GRID,
    KINDS,
    TYPICAL,
    VisualPrompt,
    VisualTask,
    VisualWorld,
    VisualWorldName,
    build_visual_world,
    picture,
)
from grains_ref.tiny_models.worlds import CapabilityPrompt, PlantedPrompt, World, WorldName, build_world

Kind = Literal["text", "visual"]
AnyPrompt: TypeAlias = PlantedPrompt | VisualPrompt | DoublePrompt
AnyTask: TypeAlias = CapabilityPrompt | VisualTask

LAMS: dict[Kind, tuple[float, ...]] = {  # equal ratios; beside them "unsteered" is always tried
    "text": (0.63, 1.0, 1.6, 2.5, 4.0, 6.3, 10.0),  # up to the top of the paper's figure 5
    "visual": (0.1, 0.16, 0.25, 0.4, 0.63, 1.0, 1.6, 2.5),  # the states are a fifth as long as in the text worlds
}
NEUTRAL_WORD = "token:please"  # a filler of all worlds
N_FURTHER_TASKS = 50  # in no split
PICTURES = "pictures"  # the folder of a visual world's pictures, beside its data


# ------------------------------------------------------------------------------------------ prompts as data
def as_pairs(prompts: Sequence[AnyPrompt], folder: Path | None = None) -> list[PreferencePair]:
    """Planted prompts as ordinary preference pairs; folder: where `write_data` wrote the pictures of a visual world."""
    return [PreferencePair(p.id, p.prompt, p.chosen, p.rejected, where=p.id, image=_image(p, folder)) for p in prompts]


def as_tasks(prompts: Sequence[AnyTask], folder: Path | None = None) -> list[Task]:
    """Capability prompts as ordinary tasks; folder: see `as_pairs`."""
    return [Task(p.id, p.prompt, p.answer, image=_image(p, folder)) for p in prompts]


def _image(prompt: AnyPrompt | AnyTask, folder: Path | None) -> Path | None:
    if not isinstance(prompt, VisualPrompt | VisualTask):
        return None
    if folder is None:
        raise ValueError(f"{prompt.id} is about a picture: name the folder that `write_data` wrote it to")
    return folder / PICTURES / f"{prompt.id}.png"


def facts(prompts: Sequence[AnyPrompt]) -> list[str]:
    """Which fact each prompt is about; a prompt's id is its split, its fact, and which prompt about it."""
    return [p.id.split("-")[1] for p in prompts]


def causes(prompt: AnyPrompt) -> Selection:
    """The tokens that push toward the chosen answer (pos) and toward the rejected one (neg), by construction."""
    if isinstance(prompt, VisualPrompt):
        return Selection(pos=prompt.ground + prompt.object, neg=prompt.lure)
    if isinstance(prompt, DoublePrompt):
        return Selection(pos=prompt.toward, neg=prompt.against)
    return Selection(pos=prompt.trust, neg=prompt.rumour)


# ---------------------------------------------------------------------------------------------------- files
def write_data(world: World | VisualWorld, folder: Path) -> None:
    """The world's splits as the JSONL files that the other commands read, and a visual world's pictures as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("steer", "dev", "test"):
        _write(folder, f"{split}.jsonl", world.split(split), ("prompt", "chosen", "rejected"))
    _write(folder, "dev_tasks.jsonl", world.capability_split("dev"), ("prompt", "answer"))
    _write(folder, "tasks.jsonl", world.capability_split("test"), ("prompt", "answer"))


def _write(folder: Path, name: str, prompts: Sequence[AnyPrompt] | Sequence[AnyTask], fields: tuple[str, ...]) -> None:
    """One JSON object for each prompt, after its picture."""
    lines = []
    for prompt in prompts:
        row = {"id": prompt.id}
        if isinstance(prompt, VisualPrompt | VisualTask):
            row["image"] = f"{PICTURES}/{prompt.id}.png"
            (folder / PICTURES).mkdir(parents=True, exist_ok=True)
            picture(prompt.scene).save(folder / row["image"])
        row |= {field: getattr(prompt, field) for field in fields}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_whole(folder / name, "".join(lines))


# ----------------------------------------------------------------------------------------------------- labs
def build(world: str) -> World | VisualWorld:
    """A text world or a visual world by name.

    Raises:
        ValueError: there is none of that name.
    """
    if world in get_args(VisualWorldName):
        return build_visual_world(world)
    if world in get_args(WorldName):
        return build_world(world)
    known = ", ".join((*get_args(WorldName), *get_args(VisualWorldName)))
    raise ValueError(f"world {world!r} does not exist; the planted worlds are {known}")


def model_folder(world: str, seed: int) -> Path:
    """Where the trained model of a world lies.

    Raises:
        FileNotFoundError: it is not shipped.
    """
    folder = Path(tiny_models.__file__).parent / f"{world}-seed{seed}"
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"no model of world {world!r} with training seed {seed}; 0, 1 and 2 are shipped")
    return folder


def planted_lab(world: str, seed: int, folder: Path) -> Lab:
    """A planted world and the model of one training seed; folder: where `write_data` wrote a visual world's pictures.

    The world "double" has two behaviours with data of their own (`double_labs`); here it is the myth's.
    """
    transformers.utils.logging.disable_progress_bar()
    model = load(model_folder(world, seed))
    if world == "double":
        return double_labs(model)["myth"]
    built = build(world)
    prompts = built.split("steer")
    lab = Lab(
        model,
        paper=PRESETS["paper_vlm" if isinstance(built, VisualWorld) else "paper_llm"],
        lams=LAMS["visual" if isinstance(built, VisualWorld) else "text"],
        neutral=NEUTRAL_WORD,
        steer=as_pairs(prompts, folder),
        dev=(as_pairs(built.split("dev"), folder), as_tasks(built.capability_split("dev"), folder)),
        test=(as_pairs(built.split("test"), folder), as_tasks(built.capability_split("test"), folder)),
        facts=facts(built.split("test")),
        causes=[causes(prompt) for prompt in prompts],
        dev_causes=[causes(prompt) for prompt in built.split("dev")],
        to_keep=further_tasks(built),
    )
    if isinstance(built, VisualWorld):
        boxes = boxes_of(built)
        lab.boxes = lambda row: boxes[row.id]
        lab.reward = stereotype_judge
    else:
        lab.more = as_pairs(further_prompts(built))
    return lab


def double_labs(model: HuggingFaceModel, *, engine: EngineName = "fast") -> dict[str, Lab]:
    """One lab for each behaviour of the double world, on one model, with the same test prompts and tasks.

    engine: that computes the stages.
    """
    world = build_double_world()
    labs = {}
    for behaviour in BEHAVIOURS:
        prompts = world.split("steer", behaviour)
        labs[behaviour] = Lab(
            model,
            paper=PRESETS["paper_llm"],
            lams=LAMS["text"],
            neutral=NEUTRAL_WORD,
            steer=as_pairs(prompts),
            dev=(as_pairs(world.split("dev", behaviour)), as_tasks(world.capability_split("dev"))),
            test=(as_pairs(world.split("test", behaviour)), as_tasks(world.capability_split("test"))),
            facts=facts(world.split("test", behaviour)),
            causes=[causes(prompt) for prompt in prompts],
            engine=engine,
        )
    return labs


def further_prompts(world: World) -> list[PlantedPrompt]:
    """Three new prompts about every steering fact."""
    rng = random.Random(f"{world.name}-more")
    of_steering = [world.facts[int(fact)] for fact in facts(world.split("steer"))]
    return [
        world.prompt(fact, rng, mixed=True, id=f"more-{fact.index:03d}-{i}") for i in range(3) for fact in of_steering
    ]


def further_tasks(world: World | VisualWorld, n: int = N_FURTHER_TASKS) -> list[Item]:
    """New tasks with their answers, none of them in a split."""
    rng = random.Random(f"{world.name}-more-tasks")
    if isinstance(world, VisualWorld):
        items: list[Item] = []
        for i in range(n):
            visual = world.task(world.training_scene(rng), rng, KINDS[i % len(KINDS)])
            items.append((visual.prompt, visual.answer, picture(visual.scene)))
        return items
    in_splits = {task.prompt for split in ("dev", "test") for task in world.capability_split(split)}
    drawn: dict[str, str] = {}
    while len(drawn) < n:
        task = world.capability(rng)
        if task.prompt not in in_splits:
            drawn[task.prompt] = task.answer
    return [*drawn.items()]


def boxes_of(world: VisualWorld) -> dict[str, list[Box]]:
    """By the id of every prompt and task, the box of the shape that it asks about; none if it asks about no shape."""
    boxes: dict[str, list[Box]] = {}
    for split in ("steer", "dev", "test"):
        for prompt in world.split(split):
            boxes[prompt.id] = [cell_box(prompt.asked.cell)]
    for split in ("dev", "test"):
        for task in world.capability_split(split):
            words = task.prompt.split()
            boxes[task.id] = [cell_box(thing.cell) for thing in task.scene if thing.shape in words]
    return boxes


def stereotype_judge(prompt: str, responses: Sequence[str]) -> list[float]:
    """A visual world's judge, as a reward: -1 if a response calls a shape by its typical colour, else 0.

    It reads, as a text judge does, and sees no picture: the same words are a hallucination about one picture and right
    about another.
    """
    rewards = []
    for response in responses:
        words = response.split()
        is_typical = any(shape in words and colour in words for shape, colour in TYPICAL.items())
        rewards.append(-1.0 if is_typical else 0.0)
    return rewards


def cell_box(cell: int, scale: int = 4) -> Box:
    """The box of one of a picture's 3 x 3 cells, in pixels; scale as in `visual_worlds.picture`."""
    left, top = cell % GRID * CELL * scale, cell // GRID * CELL * scale
    return (left, top, left + CELL * scale, top + CELL * scale)
