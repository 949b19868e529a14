"""What the training seeds of a demo say together: the table's rows, and the record that `report.json` holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from grains_ref.demo.bench import MAX_LOSS, Outcome
from grains_ref.demo.experiment import SeedResult
from grains_ref.evaluation.metrics import Rate, clustered_mean, paired_gain
from grains_ref.vectors import library_versions


@dataclass(frozen=True)
class SummaryRow:
    """One row of the demo's table: means over training seeds (and draws), intervals over facts."""

    row: str
    chosen: str
    accuracy: Rate
    gain: Rate  # over the unsteered model
    rejected_rate: float
    capability: float
    capability_loss: float


def mean_over_draws(draws: Sequence[Sequence[bool]]) -> list[float]:
    """The share of draws in which each prompt came out right."""
    return [sum(of_prompt) / len(draws) for of_prompt in zip(*draws, strict=True)]


def summarise(results: Sequence[SeedResult], facts: Sequence[str]) -> list[SummaryRow]:
    """Means over training seeds; intervals by a bootstrap over facts, whose prompts and seeds belong together.

    facts: which fact each test prompt is about.
    """
    clusters = [*facts] * len(results)

    def of_row(row: str, measure: str) -> list[float]:
        """One value for each test prompt (or task) of every seed."""
        values = []
        for result in results:
            values += mean_over_draws([getattr(outcome, measure) for outcome in result.outcomes[row]])
        return values

    base, base_capable = of_row("unsteered", "right"), of_row("unsteered", "capable")
    rows = []
    for row in results[0].outcomes:
        right, rejected, capable = (of_row(row, measure) for measure in ("right", "rejected", "capable"))
        rows.append(
            SummaryRow(
                row=row,
                chosen=chosen([outcome for result in results for outcome in result.outcomes[row]]),
                accuracy=clustered_mean(right, clusters),
                gain=paired_gain(right, base, clusters=clusters),
                rejected_rate=_mean(rejected),
                capability=_mean(capable),
                capability_loss=_mean(base_capable) - _mean(capable),
            )
        )
    return rows


def chosen(outcomes: Sequence[Outcome]) -> str:
    """What was chosen on dev, in the order of training seeds and draws; named only where there were several vectors."""
    if all(len({label for label, strength, _ in outcome.tried if strength}) <= 1 for outcome in outcomes):
        return "lam " + ", ".join(f"{outcome.strength:g}" for outcome in outcomes)
    names = []
    for outcome in outcomes:
        names.append(f"{outcome.label}, lam {outcome.strength:g}" if outcome.strength else "lam 0")
    return "; ".join(names)


def detection_means(results: Sequence[SeedResult]) -> dict[str, dict[str, float]]:
    """Attribution method -> its figures, means over training seeds."""
    return {
        method: {name: sum(result.detection[method][name] for result in results) / len(results) for name in figures}
        for method, figures in results[0].detection.items()
    }


def record(world: str, results: Sequence[SeedResult], facts: Sequence[str]) -> dict[str, Any]:
    """The record that `report.json` holds; shares, not percentages; the paper's setting at top level."""
    rows = {row.row: row for row in summarise(results, facts)}
    base, paper = rows["unsteered"], rows["GrAInS"]
    return {
        "world": world,
        "training_seeds": [result.seed for result in results],
        "base_accuracy": base.accuracy.value,
        "steered_accuracy": paper.accuracy.value,
        "capability_loss": paper.capability_loss,
        "max_capability_loss": MAX_LOSS,
        "rows": [asdict(row) for row in rows.values()],
        "attribution": [{"method": method, **figures} for method, figures in detection_means(results).items()],
        "per_seed": [
            {
                "seed": result.seed,
                "rows": [_outcome(row, outcome) for row, outcomes in result.outcomes.items() for outcome in outcomes],
                "attribution": result.detection,
            }
            for result in results
        ],
        "versions": library_versions(),
    }


def _outcome(row: str, outcome: Outcome) -> dict[str, Any]:
    return {
        "row": row,
        "setting": outcome.label,
        "lam": outcome.strength,
        "accuracy": _mean(outcome.right),
        "rejected_rate": _mean(outcome.rejected),
        "capability": _mean(outcome.capable),
        "tried": [
            {"setting": label, "lam": strength, "dev_accuracy": accuracy} for label, strength, accuracy in outcome.tried
        ],
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
