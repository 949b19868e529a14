"""What the demos share: choosing on dev, measuring on test, and summarising over training seeds.

The rules (what is tried, how it is chosen, what is reported) are those of docs/worlds.md, which were fixed before any
method was run; this module and the two demos carry them out.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import queue
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

import grains_ref.tiny_models as tiny_models
from grains_ref.data import PreferencePair, Task
from grains_ref.evaluation.choice import Choice, choose, keeps_capability
from grains_ref.evaluation.measures import exact_matches, pair_rows, row_margins, task_rows
from grains_ref.evaluation.metrics import Rate, clustered_mean, rate
from grains_ref.grains import Steering
from grains_ref.methods.core import Setting
from grains_ref.models import HuggingFaceModel
from grains_ref.vectors import SteeringVectors, library_versions

DEV_CAPABILITY_LOSS = 0.005
RANDOM_DRAWS = 5
PAPER_ROW = "GrAInS, paper's settings"
_steps: Any  # in a worker process: the queue to the parent
Tick = Callable[[str], None]  # called after each piece of work with what comes next
R = TypeVar("R")
U = TypeVar("U")


def strengths(model: HuggingFaceModel, label: str, v: Tensor, lams: Sequence[float]) -> list[Setting]:
    """Steering by equation (7) with the vectors v (L, d) at each strength."""
    return [Setting(label, lam, functools.partial(Steering, model.blocks, v, lam=lam)) for lam in lams]


def gentlest_first(grids: Iterable[Sequence[Setting]]) -> list[Setting]:
    """Several grids of the same strengths as one: all settings of the first strength, then of the second, ..."""
    return [setting for same_strength in zip(*grids, strict=True) for setting in same_strength]


@dataclass(frozen=True)
class Outcome:
    """Test outcomes of one setting of one training seed, one entry per prompt."""

    label: str
    strength: float
    right: tuple[bool, ...]  # prefers the chosen answer
    rejected: tuple[bool, ...]  # greedy decoding gives the rejected answer, word for word
    capable: tuple[bool, ...]


@dataclass(frozen=True)
class SeedResult:
    """What every demo measures on one training seed."""

    seed: int
    outcomes: dict[str, tuple[Outcome, ...]]  # row name -> one outcome, or one per draw
    found: dict[str, dict[str, float]]  # attribution method -> how well it found the planted causes
    vectors: SteeringVectors
    dev_tried: tuple[tuple[str, float, float], ...]  # label, lam, dev accuracy


def model_folder(world: str, seed: int) -> Path:
    """Where the trained model of a world lies.

    Raises:
        FileNotFoundError: it is not shipped.
    """
    folder = Path(tiny_models.__file__).parent / f"{world}-seed{seed}"
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"no model of world {world!r} with training seed {seed}; 0, 1 and 2 are shipped")
    return folder


def run(work: Callable[[U, Tick], R], units: Sequence[U], tick: Tick, *, workers: int = 0) -> list[R]:
    """The work on every unit (a training seed, say), each in a process with one thread, `workers` at a time.

    `work` is sent to another process: a plain function, or a `functools.partial` of one.  workers = 0: all at once.

    The models are so small that two threads on one of them are slower than two models side by side.
    """
    for variable, size in (("MALLOC_MMAP_THRESHOLD_", 1 << 28), ("MALLOC_TRIM_THRESHOLD_", 1 << 28)):
        os.environ.setdefault(variable, str(size))  # glibc: keep freed memory; a third of the time went to page faults
    context = multiprocessing.get_context("spawn")
    steps = context.Queue()
    with ProcessPoolExecutor(
        workers or len(units), mp_context=context, initializer=_start_worker, initargs=(steps,)
    ) as pool:
        try:
            futures = [pool.submit(_work, work, unit) for unit in units]
            while not all(future.done() for future in futures):
                for future in futures:
                    if future.done():
                        future.result()  # an error in one ends the others now, not when they are through
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


def _work(work: Callable[[U, Tick], R], unit: U) -> R:
    return work(unit, _steps.put)


class Bench:
    """The dev and test sets of one model, each pairs and tasks, tokenised once."""

    def __init__(
        self,
        model: HuggingFaceModel,
        *,
        dev: tuple[Sequence[PreferencePair], Sequence[Task]],
        test: tuple[Sequence[PreferencePair], Sequence[Task]],
        tick: Tick,
    ) -> None:
        self.model, self.tick = model, tick
        self.dev, self.dev_tasks = pair_rows(model, dev[0]), task_rows(model, dev[1])
        self.test_rows, self.test_tasks = pair_rows(model, test[0]), task_rows(model, test[1])
        wrong = exact_matches(model, self.dev_tasks).count(False)
        self.allowed = wrong + int(DEV_CAPABILITY_LOSS * len(self.dev_tasks))
        self.accuracies: dict[Setting | None, float] = {}  # None: any setting of strength 0

    def choose(self, settings: Sequence[Setting]) -> Choice[Setting]:
        """One of the settings (gentlest first, strength 0 among them), by the rules of docs/worlds.md."""

        def accuracy(setting: Setting) -> float:
            key = setting if setting.strength else None
            if key not in self.accuracies:
                self.tick(f"strength on dev: {setting.label}")
                with setting.steering():
                    self.accuracies[key] = rate(m > 0 for m in row_margins(self.model, self.dev)).value
            return self.accuracies[key]

        return choose(settings, accuracy=accuracy, admissible=self.keeps_capability)

    def keeps_capability(self, setting: Setting) -> bool:
        """Whether a setting costs at most half a point of dev capability."""
        with setting.steering():
            return keeps_capability(self.model, self.dev_tasks, allowed=self.allowed, chunk=60)

    def test(self, setting: Setting) -> Outcome:
        """Outcomes on test."""
        self.tick(f"test: {setting.label}")
        with setting.steering():
            scored = self.model.score_rows(self.test_rows)
            capable = exact_matches(self.model, self.test_tasks)
        n = len(scored) // 2
        return Outcome(
            setting.label,
            setting.strength,
            right=tuple(
                chosen.log_prob > rejected.log_prob for chosen, rejected in zip(scored[:n], scored[n:], strict=True)
            ),
            rejected=tuple(rejected.is_greedy for rejected in scored[n:]),
            capable=tuple(capable),
        )


# ------------------------------------------------------------------------------------- summary over seeds
@dataclass(frozen=True)
class SummaryRow:
    """One row of the demo's table: means over training seeds (and draws), intervals over facts."""

    name: str
    chosen: str
    accuracy: Rate
    gain: Rate
    rejected_rate: float
    capability: float
    capability_loss: float


def summarise(results: Sequence[SeedResult], facts: Sequence[str]) -> list[SummaryRow]:
    """Means over training seeds; intervals by a bootstrap over facts, whose prompts and seeds belong together.

    facts: which fact each test prompt is about.
    """

    def mean(outcomes: Sequence[Outcome], field: str) -> float:
        return sum(sum(getattr(o, field)) / len(getattr(o, field)) for o in outcomes) / len(outcomes)

    rows = []
    for row in results[0].outcomes:
        right: list[float] = []
        gain: list[float] = []
        clusters: list[str] = []
        flat: list[Outcome] = []
        losses: list[float] = []
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
                rejected_rate=mean(flat, "rejected"),
                capability=mean(flat, "capable"),
                capability_loss=sum(losses) / len(losses),
            )
        )
    return rows


def _chosen(outcomes: Sequence[Outcome]) -> str:
    """What was chosen on dev, in the order of training seeds and draws; labels only where they differ."""
    kinds = {o.label.split(", draw")[0] for o in outcomes if o.strength}
    if len(kinds) < 2:
        return ", ".join(kinds) + ": lam " + ", ".join(f"{o.strength:g}" for o in outcomes)
    return "; ".join(f"{o.label}, lam {o.strength:g}" if o.strength else "lam 0" for o in outcomes)


def found_means(results: Sequence[SeedResult]) -> dict[str, dict[str, float]]:
    """Attribution method -> its figures, means over training seeds."""
    return {
        method: {name: sum(r.found[method][name] for r in results) / len(results) for name in figures}
        for method, figures in results[0].found.items()
    }


def record(name: str, results: Sequence[SeedResult], facts: Sequence[str]) -> dict[str, Any]:
    """The record that `report.json` holds; shares, not percentages; the paper's settings at top level."""
    rows = {row.name: row for row in summarise(results, facts)}
    base, paper = rows["unsteered"], rows[PAPER_ROW]
    return {
        "world": name,
        "training_seeds": [result.seed for result in results],
        "base_accuracy": base.accuracy.value,
        "steered_accuracy": paper.accuracy.value,
        "capability_loss": paper.capability_loss,
        "rows": [asdict(row) for row in rows.values()],
        "attribution": [{"method": method, **figures} for method, figures in found_means(results).items()],
        "per_seed": [
            {
                "seed": result.seed,
                "rows": [
                    {
                        "name": row,
                        "setting": outcome.label,
                        "lam": outcome.strength,
                        "accuracy": sum(outcome.right) / len(outcome.right),
                        "rejected_rate": sum(outcome.rejected) / len(outcome.rejected),
                        "capability": sum(outcome.capable) / len(outcome.capable),
                    }
                    for row, outcomes in result.outcomes.items()
                    for outcome in outcomes
                ],
                "attribution": result.found,
                "dev_tried": [
                    {"setting": label, "lam": lam, "dev_accuracy": accuracy}
                    for label, lam, accuracy in result.dev_tried
                ],
            }
            for result in results
        ],
        "versions": library_versions(),
    }
