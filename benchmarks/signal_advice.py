r"""What does the advice of the signal's warnings do?  Each piece of it, taken on the planted worlds, figure by figure.

    python benchmarks/signal_advice.py [--seeds 0 1 2] [--worlds simple graded ...] [--output signal_advice.json]

For each of the twelve models GrAInS is fitted as the paper has it, and then with one change at a time that a warning
advises.  What is shown of each: how often the signal's line says "toward", the cosine of halves, of v_pos with v_neg,
and of v with random tokens' vector, means over the models.  Steering pairs only: nothing is steered, and no dev or test
pair is touched.  The table is in docs/signal.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from grains_ref.demo.lab import Lab
from grains_ref.demo.planted import build, planted_lab, write_data
from grains_ref.files import write_whole
from grains_ref.fitting.additions import less_random
from grains_ref.fitting.halves import agreement_of_halves
from grains_ref.fitting.random_tokens import random_shift
from grains_ref.fitting.signal import Signal, signal_of
from grains_ref.grains import DegenerateShiftsError, HyperParameters, Shift, vectors
from grains_ref.methods.edit_gradient import Derivative, derivative, scaled

WORLDS = ("simple", "graded", "simple-visual", "graded-visual")
PROTECT: dict[str, Any] = {"eligible": ("content", "not_last")}
DRAWS = 3


def variants(lab: Lab) -> dict[str, tuple[dict[str, Any], int, int]]:
    """By name: changes of the paper's setting, draws of random tokens to subtract, number of pairs."""
    n = len(lab.steer)
    mean: dict[str, Any] = {"aggregation": "mean"}
    chosen: dict[str, tuple[dict[str, Any], int, int]] = {
        "the paper's setting": ({}, 0, n),
        "--aggregation mean": (mean, 0, n),
        "--eligible content, not_last": (PROTECT, 0, n),
        "--eligible content, not_last, mean": (PROTECT | mean, 0, n),
        "--mask-baseline: a neutral word": ({"mask_baseline": lab.neutral}, 0, n),
        "--mask-baseline: a neutral word, mean": ({"mask_baseline": lab.neutral} | mean, 0, n),
        "--mask-baseline mean": ({"mask_baseline": "mean"}, 0, n),
        "--path-baseline: a neutral word": ({"path_baseline": lab.neutral}, 0, n),
        "--path-baseline: a neutral word, mean": ({"path_baseline": lab.neutral} | mean, 0, n),
        "--less-random 3": ({}, DRAWS, n),
        "--less-random 3, mean": (mean, DRAWS, n),
        "half as many pairs": ({}, 0, n // 2),
        "half as many pairs, mean": (mean, 0, n // 2),
    }
    if len(lab.more) >= n:  # the text worlds have further pairs about the same facts
        chosen |= {"twice as many pairs": ({}, 0, 2 * n), "twice as many pairs, mean": (mean, 0, 2 * n)}
    return chosen


def measure(lab: Lab) -> dict[str, dict[str, Any]]:
    """The signal's figures of every variant on one model."""
    n = len(lab.steer)
    derivatives = [derivative(lab.model, lab.example(i), site="residual", positions="all") for i in range(n)]
    records = {}
    for name, (changes, draws, n_pairs) in variants(lab).items():
        hp = replace(lab.paper, **changes)
        try:
            records[name] = figures(_signal(lab, hp, derivatives, draws=draws, n=n_pairs))
        except DegenerateShiftsError as error:
            records[name] = {"error": str(error)}
    records["--method edit_gradient"] = figures(_edit_gradient(lab))
    return records


def _signal(lab: Lab, hp: HyperParameters, derivatives: Sequence[Derivative], *, draws: int, n: int) -> Signal:
    examples = [lab.example(i) for i in range(n)]
    shifts = [lab.shift(hp, i) for i in range(n)]
    drawn = [random_shift(lab.model, x, shift, hp, draw=0) for x, shift in zip(examples, shifts, strict=True)]
    if draws:
        shifts = less_random(lab.model, examples, shifts, hp, draws=draws)
    fit = vectors(shifts, hp)
    halves, of_layers = agreement_of_halves(n, _halved(shifts, hp))
    return signal_of(
        fit.pos.v,
        fit.neg.v,
        derivatives,
        halves=halves,
        halves_of_layers=of_layers,
        template=None,
        v_random=vectors(drawn, hp).v,
    )


def _halved(shifts: Sequence[Shift], hp: HyperParameters) -> Callable[[Sequence[int]], Tensor]:
    return lambda pairs: vectors([shifts[i] for i in pairs], hp).v


def _edit_gradient(lab: Lab) -> Signal:
    examples = [lab.example(i) for i in range(len(lab.steer))]
    derivatives = [derivative(lab.model, x, site="attention_output", positions="after_prompt") for x in examples]

    def fit(pairs: Sequence[int]) -> Any:
        return scaled([derivatives[i] for i in pairs], site="attention_output", positions="after_prompt")

    whole = fit(range(len(derivatives)))
    halves, of_layers = agreement_of_halves(len(derivatives), lambda pairs: fit(pairs).v)
    return signal_of(
        whole.v_pos,
        whole.v_neg,
        derivatives,
        halves=halves,
        halves_of_layers=of_layers,
        template=None,
        is_gradient=True,
    )


def figures(signal: Signal) -> dict[str, Any]:
    """What is shown of a signal."""
    return {
        "verdict": signal.verdict,
        "halves": signal.halves.value if signal.halves else None,
        "sides": signal.sides,
        "random": signal.random,
        "cosine": signal.cosine,
    }


def table(records: Sequence[dict[str, Any]]) -> str:
    """Means over the models, and how often the line says "toward" and "away"."""
    lines = ["| | toward | away | halves | v_pos with v_neg | random tokens |", "|---|---|---|---|---|---|"]
    names = dict.fromkeys(name for record in records for name in record["variants"])
    for name in names:
        of_models = [record["variants"][name] for record in records if name in record["variants"]]
        mine = [of_model for of_model in of_models if "error" not in of_model]
        toward = sum(of_model["verdict"] == "toward" for of_model in mine)
        away = sum(of_model["verdict"] == "away" for of_model in mine)
        means = [_mean([of_model[figure] for of_model in mine]) for figure in ("halves", "sides", "random")]
        lines.append(f"| {name} | {toward} of {len(mine)} | {away} | {' | '.join(means)} |")
    return "\n".join(lines)


def _mean(values: Sequence[float | None]) -> str:
    numbers = [value for value in values if value is not None]
    return f"{sum(numbers) / len(numbers):.2f}" if numbers else "-"


def main() -> None:
    """Measure, write, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", nargs="+", default=WORLDS, choices=WORLDS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--output", type=Path, default=Path("signal_advice.json"))
    options = parser.parse_args()
    records = json.loads(options.output.read_text()) if options.output.exists() else []
    finished = {(record["world"], record["seed"]) for record in records}
    for seed in options.seeds:
        for world in options.worlds:
            if (world, seed) in finished:
                continue
            with tempfile.TemporaryDirectory() as folder:
                write_data(build(world), Path(folder))
                measured = measure(planted_lab(world, seed, Path(folder)))
            records.append({"world": world, "seed": seed, "variants": measured})
            write_whole(options.output, json.dumps(records) + "\n")
            print(f"{world}, seed {seed}: done", flush=True)
    print(table(records))


if __name__ == "__main__":
    main()
