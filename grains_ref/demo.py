"""`grains-ref demo`: a tiny model with a planted bad habit is diagnosed, steered and measured.

The rules (what is tried, how it is chosen on dev, what is reported on test) are those of docs/worlds.md, which were
fixed before any method was run; this module carries them out.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import grains_ref.tiny_models as tiny_models
from grains_ref.data import PreferencePair, Task, content_digest
from grains_ref.evaluation import (
    Choice,
    Rate,
    choose,
    clustered_mean,
    exact_matches,
    keeps_capability,
    pair_rows,
    rate,
    row_margins,
    task_rows,
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
    Steering,
    attribute,
    contrast,
    eligible_tokens,
    select,
    shift,
    vectors,
)
from grains_ref.models import HuggingFaceModel, TokenRow, load
from grains_ref.tiny_models.worlds import PlantedPrompt, World, WorldName, build_world
from grains_ref.vectors import SteeringVectors, library_versions

PAPER = PRESETS["paper_llm"]
LAMS = (0.0, 0.63, 1.0, 1.6, 2.5, 4.0, 6.3, 10.0)  # equal ratios, up to the top of the paper's figure 5
KS = (1, 3, 5)
AGGREGATIONS: tuple[AggregationMethod, ...] = ("pca", "uncentred", "mean")
DEV_CAPABILITY_LOSS = 0.005
RANDOM_DRAWS = 5
PAPER_ROW = "GrAInS, paper's settings"
METHODS = {  # the comparison of attributions; SmoothGrad at the cost of Integrated Gradients
    "integrated gradients": PAPER,
    "SmoothGrad": replace(PAPER, attribution="smoothgrad", n=PAPER.m),
    "gradient": replace(PAPER, attribution="gradient"),
    "random": replace(PAPER, attribution="random"),
}
_steps: Any  # in a worker process: the queue to the parent
Tick = Callable[[str], None]  # called after each piece of work with what comes next


@dataclass(frozen=True)
class Setting:
    """One way to steer: a label, the vectors and a strength."""

    label: str
    v: Tensor  # (L, d)
    lam: float


@dataclass(frozen=True)
class Outcome:
    """Test outcomes of one setting of one training seed, one entry per prompt."""

    setting: Setting
    right: tuple[bool, ...]
    myth: tuple[bool, ...]
    capable: tuple[bool, ...]


@dataclass(frozen=True)
class SeedResult:
    """Everything measured on one training seed."""

    seed: int
    outcomes: dict[str, tuple[Outcome, ...]]  # row name -> one outcome, or one per draw
    recall: dict[str, dict[str, float]]  # attribution method -> recall@3 and precision@1 of the planted words
    shown: tuple[tuple[PlantedPrompt, Encoded, Tensor], ...]  # prompts to colour
    fits: dict[str, Fit]  # aggregation -> fit at k = 3; "planted_mean": the mean shift of the planted tokens
    shifts: tuple[Shift, ...]
    vectors: SteeringVectors
    dev_tried: tuple[tuple[str, float, float], ...]  # label, lam, dev accuracy


def model_folder(world: WorldName, seed: int) -> Path:
    """Where the trained model of a world lies.

    Raises:
        FileNotFoundError: it is not shipped.
    """
    folder = Path(tiny_models.__file__).parent / f"{world}-seed{seed}"
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"no model of world {world!r} with training seed {seed}; 0, 1 and 2 are shipped")
    return folder


def as_pairs(prompts: Sequence[PlantedPrompt]) -> list[PreferencePair]:
    """Planted prompts as ordinary preference pairs."""
    return [PreferencePair(p.id, p.prompt, p.chosen, p.rejected, where=p.id) for p in prompts]


def steps_per_seed() -> int:
    """How often `run_seed` ticks."""
    candidates = len(KS) * len(AGGREGATIONS) + RANDOM_DRAWS + 2  # the nine include those of the single rows
    rows = len(("unsteered", "paper", "uncentred", "mean", "chosen", "planted", "planted mean")) + RANDOM_DRAWS
    return len(METHODS) + candidates * (len(LAMS) - 1) + 1 + rows


def run(name: WorldName, seeds: Sequence[int], tick: Tick) -> list[SeedResult]:
    """`run_seed` for every training seed, each in a process of its own with one thread.

    The models are so small that two threads on one of them are slower than two models side by side.
    """
    for variable, size in (("MALLOC_MMAP_THRESHOLD_", 1 << 28), ("MALLOC_TRIM_THRESHOLD_", 1 << 28)):
        os.environ.setdefault(variable, str(size))  # glibc: keep freed memory; a third of the time went to page faults
    context = multiprocessing.get_context("spawn")
    steps = context.Queue()
    with ProcessPoolExecutor(len(seeds), mp_context=context, initializer=_start_worker, initargs=(steps,)) as pool:
        try:
            futures = [pool.submit(_work, name, seed) for seed in seeds]
            while not all(future.done() for future in futures):
                with suppress(queue.Empty):
                    tick(steps.get(timeout=0.2))
            return [future.result() for future in futures]
        except BaseException:  # also Ctrl-C: do not wait for workers whose results nobody will read
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


def _start_worker(steps: Any) -> None:
    """One thread; progress goes to the queue; Ctrl-C is left to the parent process."""
    global _steps
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _steps = steps


def _work(name: WorldName, seed: int) -> SeedResult:
    return run_seed(name, seed, _steps.put)


def run_seed(name: WorldName, seed: int, tick: Tick) -> SeedResult:
    """Diagnose, steer and measure the model of one training seed."""
    world = build_world(name)
    transformers.utils.logging.disable_progress_bar()
    model = load(model_folder(name, seed))
    bench = _Bench(model, world, lambda what: tick(f"seed {seed}: {what}"))
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
    planted, planted_mean = vectors(truth, PAPER), vectors(truth, replace(PAPER, aggregation="mean"))
    zero = torch.zeros_like(planted.v)
    paper = fit_of[PAPER.k, "pca"]

    rows: dict[str, list[Setting]] = {"unsteered": [Setting("lam 0", zero, 0.0)]}
    tried: list[tuple[str, float, float]] = []

    def settle(row: str, candidates: dict[str, Tensor]) -> None:
        choice = bench.choose(candidates)
        rows.setdefault(row, []).append(choice.best)
        tried.extend((f"{row}: {setting.label}", setting.lam, accuracy) for setting, accuracy in choice.tried)

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
    settle("planted tokens", {"planted pca": planted.v})
    settle("planted tokens, mean", {"planted mean": planted_mean.v})

    return SeedResult(
        seed=seed,
        outcomes={row: tuple(bench.test(setting) for setting in settings) for row, settings in rows.items()},
        recall={method: _recall(examples, steer_set, one) for method, one in scores.items()},
        shown=tuple((steer_set[i], examples[i].encoded, a[i]) for i in range(3)),
        fits={aggregation: fit_of[PAPER.k, aggregation] for aggregation in AGGREGATIONS}
        | {"planted_mean": planted_mean},
        shifts=tuple(shifts[PAPER.k]),
        vectors=steering_vectors(model, paper, PAPER, content_digest(pairs), len(pairs)),
        dev_tried=tuple(tried),
    )


class _Bench:
    """The dev and test sets of one model, tokenised once."""

    def __init__(self, model: HuggingFaceModel, world: World, tick: Tick) -> None:
        self.model, self.tick = model, tick
        self.dev, self.dev_tasks = self._rows(world, "dev")
        self.test_rows, self.test_tasks = self._rows(world, "test")
        wrong = exact_matches(model, self.dev_tasks).count(False)
        self.allowed = wrong + int(DEV_CAPABILITY_LOSS * len(self.dev_tasks))
        self.accuracies: dict[tuple[str, float], float] = {}

    def _rows(self, world: World, split: Any) -> tuple[list[TokenRow], list[TokenRow]]:
        tasks = [Task(t.id, t.prompt, t.answer) for t in world.capability_split(split)]
        return pair_rows(self.model, as_pairs(world.split(split))), task_rows(self.model, tasks)

    def choose(self, candidates: dict[str, Tensor]) -> Choice[Setting]:
        """Strength, and which of the candidates, by the rules of docs/worlds.md."""
        settings = [Setting(label, v, lam) for lam in LAMS for label, v in candidates.items()]  # gentlest first

        def accuracy(setting: Setting) -> float:
            key = (setting.label if setting.lam else "lam 0", setting.lam)
            if key not in self.accuracies:
                self.tick(f"strength on dev: {setting.label}")
                with Steering(self.model.blocks, setting.v, lam=setting.lam):
                    self.accuracies[key] = rate(m > 0 for m in row_margins(self.model, self.dev)).value
            return self.accuracies[key]

        def admissible(setting: Setting) -> bool:
            with Steering(self.model.blocks, setting.v, lam=setting.lam):
                return keeps_capability(self.model, self.dev_tasks, allowed=self.allowed, chunk=60)

        return choose(settings, accuracy=accuracy, admissible=admissible)

    def test(self, setting: Setting) -> Outcome:
        """Outcomes on test."""
        self.tick(f"test: {setting.label}")
        with Steering(self.model.blocks, setting.v, lam=setting.lam):
            scored = self.model.score_rows(self.test_rows)
            capable = exact_matches(self.model, self.test_tasks)
        n = len(scored) // 2
        return Outcome(
            setting,
            right=tuple(
                chosen.log_prob > rejected.log_prob for chosen, rejected in zip(scored[:n], scored[n:], strict=True)
            ),
            myth=tuple(rejected.is_greedy for rejected in scored[n:]),
            capable=tuple(capable),
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


# ------------------------------------------------------------------------------------- summary over seeds
@dataclass(frozen=True)
class SummaryRow:
    """One row of the demo's table: means over training seeds (and draws), intervals over facts."""

    name: str
    chosen: str
    accuracy: Rate
    gain: Rate
    myth_rate: float
    capability: float
    capability_loss: float


def summarise(name: WorldName, results: Sequence[SeedResult]) -> list[SummaryRow]:
    """Means over training seeds; intervals by a bootstrap over facts, whose prompts and seeds belong together."""
    facts = [p.id.split("-")[1] for p in build_world(name).split("test")]

    def mean(outcomes: Sequence[Outcome], field: str) -> float:
        return sum(sum(getattr(o, field)) / len(getattr(o, field)) for o in outcomes) / len(outcomes)

    rows = []
    for row in results[0].outcomes:
        right, gain, clusters, flat, losses = [], [], [], [], []
        for result in results:
            (base,) = result.outcomes["unsteered"]
            for outcome in result.outcomes[row]:
                flat.append(outcome)
                right += [float(r) for r in outcome.right]
                gain += [float(r) - float(b) for r, b in zip(outcome.right, base.right, strict=True)]
                clusters += facts
                losses.append(mean([base], "capable") - mean([outcome], "capable"))
        rows.append(
            SummaryRow(
                name=row,
                chosen=_chosen(flat),
                accuracy=clustered_mean(right, clusters),
                gain=clustered_mean(gain, clusters),
                myth_rate=mean(flat, "myth"),
                capability=mean(flat, "capable"),
                capability_loss=sum(losses) / len(losses),
            )
        )
    return rows


def _chosen(outcomes: Sequence[Outcome]) -> str:
    """What was chosen on dev, in the order of training seeds and draws; labels only where they differ."""
    settings = [o.setting for o in outcomes]
    kinds = {s.label.split(", draw")[0] for s in settings if s.lam}
    if len(kinds) < 2:
        return ", ".join(kinds) + ": lam " + ", ".join(f"{s.lam:g}" for s in settings)
    return "; ".join(f"{s.label}, lam {s.lam:g}" if s.lam else "lam 0" for s in settings)


def recall_means(results: Sequence[SeedResult]) -> Iterator[tuple[str, float, float]]:
    """(method, recall@3, precision@1), means over training seeds."""
    for method in METHODS:
        means = [sum(r.recall[method][key] for r in results) / len(results) for key in results[0].recall[method]]
        yield method, means[0], means[1]


def report(name: WorldName, results: Sequence[SeedResult]) -> dict[str, Any]:
    """The record that `report.json` holds; shares, not percentages; the paper's settings at top level."""
    rows = {row.name: row for row in summarise(name, results)}
    base, paper = rows["unsteered"], rows[PAPER_ROW]
    return {
        "world": name,
        "training_seeds": [result.seed for result in results],
        "base_accuracy": base.accuracy.value,
        "steered_accuracy": paper.accuracy.value,
        "capability_loss": paper.capability_loss,
        "rows": [asdict(row) for row in rows.values()],
        "attribution": [
            {"method": method, "recall_at_3": recall, "precision_at_1": precision}
            for method, recall, precision in recall_means(results)
        ],
        "per_seed": [
            {
                "seed": result.seed,
                "rows": [
                    {
                        "name": row,
                        "setting": outcome.setting.label,
                        "lam": outcome.setting.lam,
                        "accuracy": sum(outcome.right) / len(outcome.right),
                        "myth_rate": sum(outcome.myth) / len(outcome.myth),
                        "capability": sum(outcome.capable) / len(outcome.capable),
                    }
                    for row, outcomes in result.outcomes.items()
                    for outcome in outcomes
                ],
                "attribution": result.recall,
                "dev_tried": [
                    {"setting": label, "lam": lam, "dev_accuracy": accuracy}
                    for label, lam, accuracy in result.dev_tried
                ],
            }
            for result in results
        ],
        "versions": library_versions(),
    }


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
