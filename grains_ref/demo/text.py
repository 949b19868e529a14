"""`grains-ref demo`: a tiny language model with a planted bad habit is diagnosed, steered and measured."""

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
    Attribution,
    Encoded,
    Example,
    Fit,
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
from grains_ref.tiny_models.worlds import CapabilityPrompt, PlantedPrompt, World, WorldName, build_world

PAPER = PRESETS["paper_llm"]
LAMS = (0.0, 0.63, 1.0, 1.6, 2.5, 4.0, 6.3, 10.0)  # equal ratios, up to the top of the paper's figure 5
KS = (1, 3, 5)
AGGREGATIONS: tuple[AggregationMethod, ...] = ("pca", "uncentred", "mean")
METHODS = {  # the comparison of attributions; SmoothGrad at the cost of Integrated Gradients
    "integrated gradients": PAPER,
    "SmoothGrad": replace(PAPER, attribution="smoothgrad", n=PAPER.m),
    "gradient": replace(PAPER, attribution="gradient"),
    "random": replace(PAPER, attribution="random"),
}


@dataclass(frozen=True)
class TextResult(SeedResult):
    """What the text demo shows besides."""

    shown: tuple[tuple[PlantedPrompt, Encoded, Tensor], ...]  # prompts to colour
    fits: dict[str, Fit]  # aggregation -> fit at k = 3; "planted_mean": the mean shift of the planted tokens
    shifts: tuple[Shift, ...]


def as_pairs(prompts: Sequence[PlantedPrompt]) -> list[PreferencePair]:
    """Planted prompts as ordinary preference pairs."""
    return [PreferencePair(p.id, p.prompt, p.chosen, p.rejected, where=p.id) for p in prompts]


def as_tasks(prompts: Sequence[CapabilityPrompt]) -> list[Task]:
    """Capability prompts as ordinary tasks."""
    return [Task(p.id, p.prompt, p.answer) for p in prompts]


def facts(name: WorldName) -> list[str]:
    """Which fact each test prompt is about."""
    return [p.id.split("-")[1] for p in build_world(name).split("test")]


def steps_per_seed() -> int:
    """How often `run_seed` ticks."""
    candidates = len(KS) * len(AGGREGATIONS) + RANDOM_DRAWS + 2  # the nine include those of the single rows
    rows = len(("unsteered", "paper", "uncentred", "mean", "chosen", "planted", "planted mean")) + RANDOM_DRAWS
    return len(METHODS) + candidates * (len(LAMS) - 1) + 1 + rows


def run_seed(name: WorldName, seed: int, tick: Tick) -> TextResult:
    """Diagnose, steer and measure the model of one training seed."""
    world = build_world(name)
    transformers.utils.logging.disable_progress_bar()
    model = load(model_folder(name, seed))
    bench = Bench(
        model,
        dev=(as_pairs(world.split("dev")), as_tasks(world.capability_split("dev"))),
        test=(as_pairs(world.split("test")), as_tasks(world.capability_split("test"))),
        tick=lambda what: tick(f"seed {seed}: {what}"),
    )
    steer_set = world.split("steer")
    pairs = as_pairs(steer_set)
    examples = [model.example(p.prompt, p.chosen, p.rejected) for p in steer_set]

    scores: dict[str, list[Attribution]] = {}
    for method, hp in METHODS.items():
        tick(f"seed {seed}: attribution: {method}")
        scores[method] = [attribute(model, example, hp) for example in examples]
    a = [attribution.a for attribution in scores["integrated gradients"]]

    def shifts_of(hp: HyperParameters, a: Sequence[Tensor]) -> list[Shift]:
        return [shift(model, example, one, hp) for example, one in zip(examples, a, strict=True)]

    shifts = {k: shifts_of(replace(PAPER, k=k), a) for k in KS}
    fit_of = {
        (k, aggregation): vectors(shifts[k], replace(PAPER, k=k, aggregation=aggregation))
        for k in KS
        for aggregation in AGGREGATIONS
    }
    truth = [_planted_shift(model, e, p) for e, p in zip(examples, steer_set, strict=True)]
    true_pca, true_mean = vectors(truth, PAPER), vectors(truth, replace(PAPER, aggregation="mean"))
    zero = torch.zeros_like(true_pca.v)
    paper = fit_of[PAPER.k, "pca"]

    rows: dict[str, list[Setting]] = {"unsteered": strengths(model, "lam 0", zero, [0.0])}
    tried: list[tuple[str, float, float]] = []

    grids: dict[str, list[Setting]] = {}  # a vector that stands in several rows is measured once

    def settle(row: str, candidates: dict[str, Tensor]) -> None:
        for label, v in candidates.items():
            grids.setdefault(label, strengths(model, label, v, LAMS))
        choice = bench.choose(gentlest_first(grids[label] for label in candidates))
        rows.setdefault(row, []).append(choice.best)
        tried.extend((f"{row}: {t.setting.label}", t.setting.strength, t.accuracy) for t in choice.tried)

    settle(PAPER_ROW, {"pca, k 3": paper.v})
    settle("GrAInS, uncentred PCA", {"uncentred, k 3": fit_of[PAPER.k, "uncentred"].v})
    settle("GrAInS, mean", {"mean, k 3": fit_of[PAPER.k, "mean"].v})
    settle(
        "GrAInS, chosen on dev",
        {f"{aggregation}, k {k}": fit.v for (k, aggregation), fit in fit_of.items()},
    )
    for draw in range(RANDOM_DRAWS):
        hp = replace(PAPER, attribution="random", seed=draw)
        drawn = vectors(shifts_of(hp, [attribute(model, example, hp).a for example in examples]), hp)
        settle("random tokens", {f"pca, k 3, draw {draw}": drawn.v})
    settle("planted tokens", {"planted pca": true_pca.v})
    settle("planted tokens, mean", {"planted mean": true_mean.v})

    return TextResult(
        seed=seed,
        outcomes={row: tuple(bench.test(setting) for setting in settings) for row, settings in rows.items()},
        found={method: _recall(examples, steer_set, one) for method, one in scores.items()},
        shown=tuple((steer_set[i], examples[i].encoded, a[i]) for i in range(3)),
        fits={aggregation: fit_of[PAPER.k, aggregation] for aggregation in AGGREGATIONS} | {"planted_mean": true_mean},
        shifts=tuple(shifts[PAPER.k]),
        vectors=steering_vectors(model, paper, PAPER, content_digest(pairs), examples),
        dev_tried=tuple(tried),
    )


def _planted_shift(model: HuggingFaceModel, example: Example, prompt: PlantedPrompt) -> Shift:
    """The shift when the true trust and rumour words are masked instead of attributed ones."""
    truth = Selection(pos=prompt.trust, neg=prompt.rumour)
    baseline = model.baseline(example.encoded, PAPER.mask_baseline)
    return Shift(torch.zeros(len(example.encoded.ids)), truth, *contrast(model, example.encoded, truth, baseline))


def _recall(
    examples: Sequence[Example], prompts: Sequence[PlantedPrompt], scores: Sequence[Attribution]
) -> dict[str, float]:
    """How many planted rumour words are among the top 3 negative tokens, and how often the first one is planted."""
    found = [
        select(one.a, k=3, eligible=eligible_tokens(e.encoded, ())).neg for e, one in zip(examples, scores, strict=True)
    ]
    hits = [len({*neg} & {*p.rumour}) / min(3, len(p.rumour)) for neg, p in zip(found, prompts, strict=True)]
    first = [bool(neg) and neg[0] in p.rumour for neg, p in zip(found, prompts, strict=True)]
    return {"recall_at_3": sum(hits) / len(hits), "precision_at_1": sum(first) / len(first)}


def write_data(world: World, folder: Path) -> None:
    """The world's splits as the JSONL files that the other commands read."""
    for split in ("steer", "dev", "test"):
        rows = [
            {"id": p.id, "prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in world.split(split)
        ]
        _write_jsonl(folder / f"{split}.jsonl", rows)
    for split, name in (("dev", "dev_tasks"), ("test", "tasks")):
        tasks = world.capability_split(split)
        _write_jsonl(folder / f"{name}.jsonl", [{"id": t.id, "prompt": t.prompt, "answer": t.answer} for t in tasks])


def _write_jsonl(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
