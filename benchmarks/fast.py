"""How much faster `grains_ref.fast` attributes than the reference: ratios of times measured in one run.

    python benchmarks/fast.py                                          # two embedded models, a minute on a CPU
    python benchmarks/fast.py --model path/to/Llama-3.1-8B-Instruct --device cuda

Every method is timed on the same pairs by both, in turn, after one warm-up; the best of three rounds counts. Also
prints the largest difference of a score, relative to the largest score, and how many pairs select the same tokens.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table

from grains_ref import fast, grains
from grains_ref.demo.planted import model_folder
from grains_ref.grains import PRESETS, Attribution, Example, HyperParameters, Model, eligible_tokens, select
from grains_ref.models import load
from grains_ref.tiny_models.full_size import truthfulqa_shaped_pairs
from grains_ref.tiny_models.worlds import build_world

METHODS = {
    "m = 5 (the paper's)": {},
    "m = 10": {"m": 10},
    "m = 50": {"m": 50},
    "SmoothGrad, n = 20": {"attribution": "smoothgrad"},
}
ROUNDS = 3


def main() -> None:
    """Measure and print one table per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder or hub id; default: the embedded text worlds")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pairs", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1 if options.device == "cpu" else torch.get_num_threads())
    if options.model:
        model = load(options.model, device=options.device)
        pairs = truthfulqa_shaped_pairs(options.pairs)
        measure(options.model, model, [model.example(p.prompt, p.chosen, p.rejected) for p in pairs])
        return
    for world in ("simple", "graded"):
        model = load(model_folder(world, 0))
        prompts = build_world(world).split("steer")[: options.pairs]
        measure(world, model, [model.example(p.prompt, p.chosen, p.rejected) for p in prompts])


def measure(name: str, model: Model, examples: Sequence[Example]) -> None:
    """Both engines on the same examples."""
    table = Table("method", "reference, s", "fast, s", "ratio", "largest difference", "same tokens", title=name)
    for method, changes in METHODS.items():
        hp = replace(PRESETS["paper_llm"], **changes)
        times = {"reference": float("inf"), "fast": float("inf")}
        scores: dict[str, list[Attribution]] = {}
        engines = {"reference": grains.attribute, "fast": fast.attribute}
        for engine in engines.values():  # warm-up
            engine(model, examples[0], hp)
        for _ in range(ROUNDS):
            for label, engine in engines.items():
                seconds, scores[label] = timed(engine, model, examples, hp)
                times[label] = min(times[label], seconds)
        both = list(zip(examples, scores["reference"], scores["fast"], strict=True))
        difference = max((one.a - two.a).abs().max().item() / one.a.abs().max().item() for _, one, two in both)
        same = sum(chosen(e, one, hp) == chosen(e, two, hp) for e, one, two in both)
        ratio = times["reference"] / times["fast"]
        table.add_row(
            method, f"{times['reference']:.2f}", f"{times['fast']:.2f}", f"{ratio:.1f}", f"{difference:.0e}",
            f"{same} of {len(both)}",
        )  # fmt: skip
    Console().print(table)


def timed(
    engine: Callable[[Model, Example, HyperParameters], Attribution],
    model: Model,
    examples: Sequence[Example],
    hp: HyperParameters,
) -> tuple[float, list[Attribution]]:
    """Seconds for all examples, and their scores."""
    start = time.perf_counter()
    scores = [engine(model, example, hp) for example in examples]  # reading f_x off waits for the GPU
    return time.perf_counter() - start, scores


def chosen(example: Example, one: Attribution, hp: HyperParameters) -> grains.Selection:
    """The tokens that these scores select."""
    return select(one.a.cpu(), k=hp.k, eligible=eligible_tokens(example.encoded, hp.eligible))


if __name__ == "__main__":
    main()
