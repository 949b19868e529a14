"""`grains-ref demo --vision`: a tiny vision-language model that names the usual colour instead of the one it sees.

The visual sister of `demo`, on the same rules (docs/worlds.md): what misleads the model is known word by word and patch
by patch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers
from torch import Tensor

from grains_ref.data import PreferencePair, Task, content_digest
from grains_ref.demo.bench import (
    PAPER_ROW,
    RANDOM_DRAWS,
    Bench,
    SeedResult,
    Setting,
    Tick,
    gentlest_first,
    model_folder,
    strengths,
)
from grains_ref.fitting import steering_vectors
from grains_ref.grains import (
    PRESETS,
    AggregationMethod,
    EligibleRule,
    Example,
    HyperParameters,
    Selection,
    Shift,
    attribute,
    contrast,
    eligible_tokens,
    select,
    shift,
    vectors,
)
from grains_ref.models import HuggingFaceModel, load
from grains_ref.tiny_models.visual_worlds import (
    VisualPrompt,
    VisualTask,
    VisualWorldName,
    build_visual_world,
    picture,
)

PAPER = PRESETS["paper_vlm"]
KS = (5, PAPER.k)
LAMS = (0.0, 0.1, 0.16, 0.25, 0.4, 0.63, 1.0, 1.6, 2.5)  # the states are a fifth as long as in the text worlds
AGGREGATIONS: tuple[AggregationMethod, ...] = ("pca", "uncentred", "mean")
MODALITIES: dict[str, tuple[EligibleRule, ...]] = {"joint": (), "text": ("text",), "image": ("image",)}
METHODS = {  # SmoothGrad at the cost of Integrated Gradients
    "integrated gradients": PAPER,
    "SmoothGrad": replace(PAPER, attribution="smoothgrad", n=PAPER.m),
    "gradient": replace(PAPER, attribution="gradient"),
    "random": replace(PAPER, attribution="random"),
}
ROWS = (  # random tokens have RANDOM_DRAWS of them
    "unsteered",
    PAPER_ROW,
    "  image tokens only",
    "  text tokens only",
    "  by SmoothGrad",
    "  by the gradient",
    "GrAInS, chosen on dev",
    "planted tokens, PCA",
    "planted tokens, mean",
    "random tokens",
)
N_SHOWN = 4


@dataclass(frozen=True)
class Shown:
    """One example to look at: its scores by Integrated Gradients."""

    prompt: VisualPrompt
    example: Example
    a: Tensor


@dataclass(frozen=True)
class VisionResult(SeedResult):
    """What the vision demo shows besides."""

    shown: tuple[Shown, ...]
    scale: tuple[float, float]  # mean norm of image tokens' and of other tokens' embeddings


def write_data(name: VisualWorldName, folder: Path) -> None:
    """The world's splits as the JSONL files that the other commands read, and their pictures as PNG."""
    world = build_visual_world(name)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)

    def write(file: str, prompts: Sequence[VisualPrompt] | Sequence[VisualTask], fields: tuple[str, ...]) -> None:
        lines = []
        for p in prompts:
            path = f"pictures/{p.id}.png"
            picture(p.scene).save(folder / path)
            lines.append(json.dumps({"id": p.id, "image": path} | {field: getattr(p, field) for field in fields}))
        (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")

    for split in ("steer", "dev", "test"):
        write(f"{split}.jsonl", world.split(split), ("prompt", "chosen", "rejected"))
    write("dev_tasks.jsonl", world.capability_split("dev"), ("prompt", "answer"))
    write("tasks.jsonl", world.capability_split("test"), ("prompt", "answer"))


def as_pairs(prompts: Sequence[VisualPrompt], folder: Path) -> list[PreferencePair]:
    """Visual prompts as ordinary preference pairs, with the pictures that `write_data` wrote."""
    return [
        PreferencePair(p.id, p.prompt, p.chosen, p.rejected, where=p.id, image=folder / "pictures" / f"{p.id}.png")
        for p in prompts
    ]


def as_tasks(prompts: Sequence[VisualTask], folder: Path) -> list[Task]:
    """Capability prompts as ordinary tasks."""
    return [Task(p.id, p.prompt, p.answer, image=folder / "pictures" / f"{p.id}.png") for p in prompts]


def facts(name: VisualWorldName) -> list[str]:
    """Which fact (shape, colour, place) each test prompt is about."""
    return [p.id.split("-")[1] for p in build_visual_world(name).split("test")]


def steps_per_seed() -> int:
    """How often `run_seed` ticks."""
    candidates = len(MODALITIES) * len(KS) * len(AGGREGATIONS) + 2 + 2 + RANDOM_DRAWS  # SmoothGrad, planted ...
    return len(METHODS) + candidates * (len(LAMS) - 1) + 1 + len(ROWS) - 1 + RANDOM_DRAWS


def run_seed(name: VisualWorldName, folder: Path, seed: int, tick: Tick) -> VisionResult:
    """Diagnose, steer and measure the model of one training seed, on the data in `folder`."""
    world = build_visual_world(name)
    transformers.utils.logging.disable_progress_bar()
    model = load(model_folder(name, seed))
    bench = Bench(
        model,
        dev=(as_pairs(world.split("dev"), folder), as_tasks(world.capability_split("dev"), folder)),
        test=(as_pairs(world.split("test"), folder), as_tasks(world.capability_split("test"), folder)),
        tick=lambda what: tick(f"seed {seed}: {what}"),
    )
    steer_set = world.split("steer")
    pairs = as_pairs(steer_set, folder)
    examples = [model.example(p.prompt, p.chosen, p.rejected, p.image) for p in pairs]

    scores: dict[str, list[Tensor]] = {}
    for method, hp in METHODS.items():
        tick(f"seed {seed}: attribution: {method}")
        scores[method] = [attribute(model, example, hp).a for example in examples]

    def shifts_of(hp: HyperParameters, a: Sequence[Tensor]) -> list[Shift]:
        return [shift(model, example, one, hp) for example, one in zip(examples, a, strict=True)]

    fits = {}
    for modality, eligible in MODALITIES.items():
        for k in KS:
            hp = replace(PAPER, k=k, eligible=eligible)
            shifts = shifts_of(hp, scores["integrated gradients"])
            for aggregation in AGGREGATIONS:
                fits[f"{modality}, {aggregation}, k {k}"] = vectors(shifts, replace(hp, aggregation=aggregation))
    paper = fits[f"joint, pca, k {PAPER.k}"]
    truth = [_planted_shift(model, e, p) for e, p in zip(examples, steer_set, strict=True)]

    rows: dict[str, list[Setting]] = {ROWS[0]: strengths(model, "lam 0", torch.zeros_like(paper.v), [0.0])}
    tried: list[tuple[str, float, float]] = []

    grids: dict[str, list[Setting]] = {}  # a vector that stands in several rows is measured once

    def settle(row: str, candidates: dict[str, Tensor]) -> None:
        for label, v in candidates.items():
            grids.setdefault(label, strengths(model, label, v, LAMS))
        choice = bench.choose(gentlest_first(grids[label] for label in candidates))
        rows.setdefault(row, []).append(choice.best)
        tried.extend((f"{row.strip()}: {t.setting.label}", t.setting.strength, t.accuracy) for t in choice.tried)

    literal = f"pca, k {PAPER.k}"
    for row, modality in zip(ROWS[1:4], ("joint", "image", "text"), strict=True):
        settle(row, {f"{modality}, {literal}": fits[f"{modality}, {literal}"].v})
    for row, method in zip(ROWS[4:6], ("SmoothGrad", "gradient"), strict=True):
        settle(row, {f"{method}, {literal}": vectors(shifts_of(METHODS[method], scores[method]), PAPER).v})
    settle(ROWS[6], {label: fit.v for label, fit in fits.items()})
    settle(ROWS[7], {"planted, pca": vectors(truth, PAPER).v})
    settle(ROWS[8], {"planted, mean": vectors(truth, replace(PAPER, aggregation="mean")).v})
    for draw in range(RANDOM_DRAWS):
        hp = replace(PAPER, attribution="random", seed=draw)
        drawn = shifts_of(hp, [attribute(model, example, hp).a for example in examples])
        settle(ROWS[9], {f"random, {literal}, draw {draw}": vectors(drawn, hp).v})

    return VisionResult(
        seed=seed,
        outcomes={row: tuple(bench.test(setting) for setting in settings) for row, settings in rows.items()},
        found={method: _found(examples, steer_set, one) for method, one in scores.items()},
        vectors=steering_vectors(model, paper, PAPER, content_digest(pairs), examples),
        dev_tried=tuple(tried),
        shown=tuple(
            Shown(steer_set[i], examples[i], scores["integrated gradients"][i]) for i in range(min(N_SHOWN, len(pairs)))
        ),
        scale=_scale(examples),
    )


def _planted_shift(model: HuggingFaceModel, example: Example, prompt: VisualPrompt) -> Shift:
    """The shift when the true causes are masked: ground words and the object's patches, and the lure words."""
    truth = Selection(pos=prompt.ground + prompt.object, neg=prompt.lure)
    baseline = model.baseline(example.encoded, PAPER.mask_baseline)
    return Shift(torch.zeros(len(example.encoded.ids)), truth, *contrast(model, example.encoded, truth, baseline))


def _found(examples: Sequence[Example], prompts: Sequence[VisualPrompt], scores: Sequence[Tensor]) -> dict[str, float]:
    """How often the strongest image token shows the object, and how many lure words are among the most negative."""
    hits = dict.fromkeys(("object_patch_first", "lure_recall_at_3", "lure_recall_at_5"), 0.0)
    for example, prompt, a in zip(examples, prompts, scores, strict=True):
        first = select(a, k=1, eligible=eligible_tokens(example.encoded, ("image",))).pos
        hits["object_patch_first"] += bool(first) and first[0] in prompt.object
        for k in (3, 5):
            found = select(a, k=k, eligible=eligible_tokens(example.encoded, ())).neg
            hits[f"lure_recall_at_{k}"] += len({*found} & {*prompt.lure}) / len(prompt.lure)
    return {name: total / len(examples) for name, total in hits.items()}


def _scale(examples: Sequence[Example]) -> tuple[float, float]:
    """Mean norms of image tokens' embeddings and of all others."""
    norms = torch.cat([e.encoded.embeds.norm(dim=1) for e in examples])
    is_image = torch.tensor([kind == "image" for e in examples for kind in e.encoded.kinds])
    return norms[is_image].mean().item(), norms[~is_image].mean().item()
