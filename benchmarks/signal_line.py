r"""Does the signal line foretell what steering does?  On the planted worlds, where everything can be measured.

    python benchmarks/signal_line.py [--seeds 0 1 2] [--worlds simple graded ...] [--output signal_line.json]

For each of the twelve models, vectors by several methods, fitted on the 50 steering pairs.  Their predicted slope is
that of `grains_ref.fitting.signal` on the same pairs; the change of f is measured on the dev pairs, which are about
other facts, at strengths at which the edit is 1, 5 and 20 % as long as the state (root mean square over blocks).

The hypothesis and the rule, written before the script was first run:

1. Over all cells (model x vector) at 1 %, the correlation of the predicted change (slope * lam) with the measured one
   is at least .8, and so is the median over models of the correlation within a model.  Both must hold.
2. Of the cells for which the line says "toward" or "away", at least 90 % change f at 1 % in the direction that it says.
3. A cell *moves* if f on dev rises at 5 % by more than 1.96 standard errors (of paired differences).  The line *warns*
   if its verdict is "none" or "away".  Reported, without a threshold: the share of warnings that are right (the cell
   does not move) and of silences that are right (it moves).
4. Agreement of halves alone is not enough: reported, without a threshold, are the same two shares for the rule "warn if
   the halves' cosine is below .3", over the vectors that are fitted on pairs.

Whatever comes out is reported in docs/signal.md.  Dev pairs only: no test pair is touched.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grains_ref.demo.lab import Lab
from grains_ref.demo.planted import build, planted_lab, write_data
from grains_ref.evaluation.measures import row_margins
from grains_ref.files import write_whole
from grains_ref.fitting.halves import agreement_of_halves
from grains_ref.fitting.signal import Signal, signal_of
from grains_ref.grains import Hooks, HyperParameters, Steering, vectors
from grains_ref.methods import caa
from grains_ref.methods.edit_gradient import Derivative, EditPositions, EditSite, derivative, scaled

WORLDS = ("simple", "graded", "simple-visual", "graded-visual")
SHARES = (0.01, 0.05, 0.2)  # length of the edit beside the state's
EDITS: tuple[tuple[EditSite, EditPositions], ...] = (
    ("residual", "all"),
    ("attention_output", "all"),
    ("attention_output", "after_prompt"),
    ("mlp", "after_prompt"),
)


@dataclass(frozen=True)
class Cell:
    """One vector on one model: what is said of it, and how it steers."""

    name: str
    signal: Signal
    steering: Callable[[float], Hooks]


def cells_of(lab: Lab) -> list[Cell]:
    """Every vector of a lab."""
    cells = [_edit_gradient(lab, site, positions) for site, positions in EDITS]
    examples = range(len(lab.steer))
    at_residual = [derivative(lab.model, lab.example(i), site="residual", positions="all") for i in examples]
    settings = {
        "GrAInS": lab.paper,
        "GrAInS, uncentred": _changed(lab, aggregation="uncentred"),
        "GrAInS, mean": _changed(lab, aggregation="mean"),
        "GrAInS, content, mean": _changed(lab, aggregation="mean", eligible=("content", "not_last")),
        "random tokens": _changed(lab, attribution="random"),
        "random tokens, mean": _changed(lab, attribution="random", aggregation="mean"),
    }
    for name, hp in settings.items():
        shifts = [lab.shift(hp, i) for i in examples]
        cells.append(_residual(lab, name, at_residual, lambda ids, s=shifts, h=hp: vectors([s[i] for i in ids], h).v))
    planted, mean = lab.planted_shifts(), settings["GrAInS, mean"]
    cells.append(
        _residual(lab, "planted tokens, mean", at_residual, lambda ids: vectors([planted[i] for i in ids], mean).v)
    )
    cells.append(
        _residual(lab, "CAA", at_residual, lambda ids: caa.fit(lab.model, [lab.steer[i] for i in ids]).v, halves=False)
    )
    v = lab.fit(lab.paper).v
    cells.append(_residual(lab, "GrAInS, reversed", at_residual, lambda ids: -v, halves=False))
    for draw in range(2):
        noise = torch.randn(v.shape, dtype=v.dtype, generator=torch.Generator().manual_seed(draw))
        cells.append(_residual(lab, f"Gaussian {draw}", at_residual, lambda ids, n=noise: n, halves=False))
    return cells


def _changed(lab: Lab, **changes: Any) -> HyperParameters:
    return replace(lab.paper, **changes)


def _edit_gradient(lab: Lab, site: EditSite, positions: EditPositions) -> Cell:
    examples = map(lab.example, range(len(lab.steer)))
    derivatives = [derivative(lab.model, example, site=site, positions=positions) for example in examples]
    fitted = scaled(derivatives, site=site, positions=positions)

    def halved(pairs: Sequence[int]) -> Tensor:
        return scaled([derivatives[i] for i in pairs], site=site, positions=positions).v

    halves, of_layers = agreement_of_halves(len(derivatives), halved)
    signal = signal_of(
        fitted.v_pos,
        fitted.v_neg,
        derivatives,
        halves=halves,
        halves_of_layers=of_layers,
        template=None,
        is_gradient=True,
    )
    name = f"edit gradient, {site}, {positions}"
    return Cell(name, signal, lambda lam: fitted.steering(lab.model, lam=lam))


def _residual(
    lab: Lab, name: str, found: Sequence[Derivative], fit: Callable[[Sequence[int]], Tensor], *, halves: bool = True
) -> Cell:
    """Vectors that are added as GrAInS adds its own."""
    v = fit(range(len(lab.steer)))
    agreement, of_layers = agreement_of_halves(len(lab.steer), fit) if halves else (None, None)
    signal = signal_of(v, torch.zeros_like(v), found, halves=agreement, halves_of_layers=of_layers, template=None)
    return Cell(name, signal, lambda lam: Steering(lab.model.blocks, v, lam=lam))


def measure(lab: Lab, world: str, seed: int) -> list[dict[str, Any]]:
    """Every cell of a lab, at every strength."""
    rows = lab.bench.dev
    unsteered = np.array(row_margins(lab.model, rows))
    records = []
    for cell in cells_of(lab):
        assert cell.signal.slope is not None
        assert cell.signal.length is not None
        record = {"world": world, "seed": seed, "vector": cell.name, "signal": cell.signal.record(), "steered": []}
        for share in SHARES:
            lam = share / cell.signal.length
            with cell.steering(lam):
                change = np.array(row_margins(lab.model, rows)) - unsteered
            error = change.std(ddof=1) / len(change) ** 0.5
            record["steered"].append(
                {
                    "share": share,
                    "lam": lam,
                    "predicted": cell.signal.slope.value * lam,
                    "measured": float(change.mean()),
                    "error": float(error),
                }
            )
        records.append(record)
    return records


# ------------------------------------------------------------------------------------------- the rule
def summary(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the rule asks for."""
    outcome: dict[str, Any] = {"cells": len(records)}
    for i, share in enumerate(SHARES):
        pairs = np.array([[r["steered"][i]["predicted"], r["steered"][i]["measured"]] for r in records])
        models = sorted({(r["world"], r["seed"]) for r in records})
        within = []
        for model in models:
            mine = [(r["world"], r["seed"]) == model for r in records]
            within.append(correlation(pairs[mine]))
        outcome[f"at {share:g}"] = {
            "correlation": correlation(pairs),
            "median within a model": float(np.median(within)),
            "lowest within a model": min(within),
        }
    directed = [r for r in records if r["signal"]["figures"]["verdict"] in ("toward", "away")]
    right = [(r["steered"][0]["measured"] > 0) == (r["signal"]["figures"]["verdict"] == "toward") for r in directed]
    outcome["a direction is said"] = len(directed)
    outcome["and it is right"] = sum(right) / len(right)
    outcome["warnings"] = _shares(records, lambda r: r["signal"]["figures"]["verdict"] != "toward")
    halved = [r for r in records if "halves" in r["signal"]["figures"]]
    outcome["warnings by halves alone"] = _shares(halved, lambda r: r["signal"]["figures"]["halves"][0] < 0.3)
    outcome["warnings, of the same vectors"] = _shares(halved, lambda r: r["signal"]["figures"]["verdict"] != "toward")
    return outcome


def correlation(pairs: np.ndarray) -> float:
    """Pearson's, of (n, 2)."""
    return float(np.corrcoef(pairs.T)[0, 1])


def _shares(records: Sequence[dict[str, Any]], warns: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """How often a warning and a silence are right."""
    warned = [_moves(r) for r in records if warns(r)]
    silent = [_moves(r) for r in records if not warns(r)]
    return {
        "warned": len(warned),
        "rightly": 1 - sum(warned) / len(warned) if warned else None,
        "silent": len(silent),
        "rightly silent": sum(silent) / len(silent) if silent else None,
    }


def _moves(record: dict[str, Any]) -> bool:
    steered = record["steered"][1]
    return bool(steered["measured"] > 1.96 * steered["error"])


def by_vector(records: Sequence[dict[str, Any]]) -> str:
    """A table: what is said of each vector over the models, and on how many of them it moves f."""
    lines = ["| vector | toward | none | away | moves f | halves agree |", "|---|---|---|---|---|---|"]
    for name in dict.fromkeys(record["vector"] for record in records):
        mine = [record for record in records if record["vector"] == name]
        verdicts = [record["signal"]["figures"]["verdict"] for record in mine]
        counts = [verdicts.count(verdict) for verdict in ("toward", "none", "away")]
        moves = f"{sum(_moves(record) for record in mine)} of {len(mine)}"
        halves = [r["signal"]["figures"]["halves"][0] for r in mine if "halves" in r["signal"]["figures"]]
        agree = f"{sum(halves) / len(halves):.2f}" if halves else "-"
        lines.append(f"| {name} | {' | '.join(map(str, counts))} | {moves} | {agree} |")
    return "\n".join(lines)


def draw(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Predicted against measured change at the smallest strength, one panel per world."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    worlds = list(dict.fromkeys(r["world"] for r in records))
    figure, axes = plt.subplots(1, len(worlds), figsize=(3.4 * len(worlds), 3.4), squeeze=False)
    groups = {"edit gradient": "tab:green", "GrAInS": "tab:blue", "random": "tab:gray", "Gaussian": "tab:gray"}
    for world, panel in zip(worlds, axes[0], strict=True):
        for record in records:
            if record["world"] == world:
                colour = next((c for start, c in groups.items() if record["vector"].startswith(start)), "tab:orange")
                at = record["steered"][0]
                panel.errorbar(at["predicted"], at["measured"], 1.96 * at["error"], fmt="o", ms=4, lw=1, color=colour)
        low, high = panel.get_xlim()
        panel.plot([low, high], [low, high], color="black", lw=0.7)
        panel.set(title=world, xlabel="predicted change of f, nats")
    axes[0][0].set_ylabel("measured on dev, nats")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Measure, write, draw, and say what the rule says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", nargs="+", default=WORLDS, choices=WORLDS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--output", type=Path, default=Path("signal_line.json"))
    options = parser.parse_args()
    records = json.loads(options.output.read_text()) if options.output.exists() else []
    finished = {(record["world"], record["seed"]) for record in records}
    for world in options.worlds:
        for seed in options.seeds:
            if (world, seed) in finished:
                continue
            with tempfile.TemporaryDirectory() as folder:
                write_data(build(world), Path(folder))
                records += measure(planted_lab(world, seed, Path(folder)), world, seed)
            write_whole(options.output, json.dumps(records) + "\n")
            print(f"{world}, seed {seed}: done", flush=True)
    draw(records, options.output.with_suffix(".svg"))
    print(json.dumps(summary(records), indent=2))
    print(by_vector(records))


if __name__ == "__main__":
    main()
