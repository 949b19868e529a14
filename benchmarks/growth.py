"""How the time to build vectors grows with examples, prompt tokens, steps, blocks and width.

    python benchmarks/growth.py --threads 1 --output growth.json --figure docs/img/growth.svg     # about a minute
    python benchmarks/growth.py --device cuda --dtype bfloat16 --output growth.json
    python benchmarks/growth.py --quick                                                          # two sizes each

One quantity changes and the others stay at the middle setting.  Every size is run in turn, several rounds, so that
other load on the machine falls on all of them, and the least time of a size is kept: processor time on a CPU, wall time
on a GPU.  The exponent is the slope of log(seconds) over log(size), by least squares: 1 is linear growth, and less
means that a fixed cost or larger matrices pay.

Prints one table; --output writes the seconds, the exponents and facts about the machine as JSON, --figure a plot.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import LlamaConfig

from grains_ref import fast
from grains_ref.grains import Encoded, Example, HyperParameters
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.full_records import device_name
from grains_ref.tiny_models.full_size import random_model

VOCABULARY = 4000
RESPONSE = 10  # tokens


class Size(NamedTuple):
    """One job: steering vectors from `examples` pairs."""

    examples: int = 4
    tokens: int = 64
    steps: int = 5
    blocks: int = 4
    width: int = 192


SERIES: dict[str, Sequence[int]] = {
    "examples": (2, 4, 8, 16),
    "tokens": (32, 64, 128, 256),
    "steps": (3, 5, 10, 20),
    "blocks": (2, 4, 8, 16),
    "width": (96, 192, 384),
}


def job(size: Size, *, device: str, dtype: torch.dtype) -> tuple[HuggingFaceModel, list[Example], HyperParameters]:
    """A Llama with random weights, and random pairs."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.width,
        intermediate_size=size.width * 11 // 4,
        num_hidden_layers=size.blocks,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        tie_word_embeddings=False,
    )
    model = random_model(config, name=f"random, width {size.width}", device=device, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    examples = []
    for _ in range(size.examples):
        ids = torch.randint(3, VOCABULARY, (size.tokens,), generator=generator)
        y_pos, y_neg = torch.randint(3, VOCABULARY, (2, RESPONSE), generator=generator)
        names, kinds = ("",) * len(ids), ("text",) * len(ids)
        encoded = Encoded(ids, model.embed_prompt(ids, ()), names, kinds, model.replay(ids, ()))
        examples.append(Example(encoded, y_pos, y_neg))
    return model, examples, HyperParameters(m=size.steps)


def seconds(model: HuggingFaceModel, engine: fast.Engine, examples: Sequence[Example], hp: HyperParameters) -> float:
    """Time of all stages, the budget's measurement left out."""
    clock = time.process_time if model.device.type == "cpu" else time.perf_counter
    _finish(model.device)
    started = clock()
    shifts = {}
    for batch in engine.batches(examples, hp):
        of_batch = [examples[i] for i in batch]
        shifts.update(zip(batch, engine.shifts(of_batch, engine.scores(of_batch, hp), hp), strict=True))
    engine.vectors([shifts[i] for i in range(len(examples))], hp)
    _finish(model.device)
    return clock() - started


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def series(name: str, values: Sequence[int], *, rounds: int, device: str, dtype: torch.dtype) -> dict[int, float]:
    """The least seconds of each value, in turns."""
    jobs = {value: job(Size()._replace(**{name: value}), device=device, dtype=dtype) for value in values}
    engines = {value: fast.engine_of("fast", model, examples, hp) for value, (model, examples, hp) in jobs.items()}
    runs: dict[int, list[float]] = defaultdict(list)
    smallest = min(values)
    seconds(jobs[smallest][0], engines[smallest], *jobs[smallest][1:])  # warm-up
    for _ in range(rounds):
        for value, (model, examples, hp) in jobs.items():
            runs[value].append(seconds(model, engines[value], examples, hp))
    return {value: min(spent) for value, spent in runs.items()}


def exponent(of_sizes: dict[int, float]) -> float:
    """The slope of log(seconds) over log(size)."""
    logs = [(math.log(size), math.log(spent)) for size, spent in of_sizes.items()]
    return statistics.linear_regression([x for x, _ in logs], [y for _, y in logs]).slope


def draw(of_series: dict[str, dict[str, Any]], path: Path) -> None:
    """Time over size, both in units of the smallest, with the exponents and a line of slope 1."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "growth"
    figure, axis = plt.subplots(figsize=(5.4, 4.2))
    for name, measured in of_series.items():
        sizes, spent = list(measured["seconds"]), list(measured["seconds"].values())
        label = f"{name} ({sizes[0]} to {sizes[-1]}): {measured['exponent']:.2f}"
        axis.plot([size / sizes[0] for size in sizes], [t / spent[0] for t in spent], "o-", label=label)
    axis.plot([1, 8], [1, 8], color="#888888", lw=0.7, label="linear")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set_xlabel("size, in units of the smallest")
    axis.set_ylabel("time, in units of the smallest size's")
    axis.legend(title="exponent", frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its own number")
    parser.add_argument("--only", choices=SERIES, action="append", help="one quantity; may be repeated")
    parser.add_argument("--quick", action="store_true", help="the two smallest sizes of each, one round")
    parser.add_argument("--output", type=Path, help="where to write the JSON record")
    parser.add_argument("--figure", type=Path, help="where to draw the plot (needs matplotlib)")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)

    record: dict[str, Any] = {
        "device": device_name(torch.device(options.device)),
        "dtype": options.dtype,
        "threads": torch.get_num_threads(),
        "load": list(os.getloadavg()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "middle": Size()._asdict(),
        "series": {},
    }
    for name in options.only or SERIES:
        values = SERIES[name][:2] if options.quick else SERIES[name]
        rounds = 1 if options.quick else options.rounds
        measured = series(name, values, rounds=rounds, device=options.device, dtype=getattr(torch, options.dtype))
        slope = exponent(measured)
        record["series"][name] = {"seconds": measured, "exponent": slope}
        steps = ", ".join(f"{value}: {spent:.3f} s" for value, spent in measured.items())
        print(f"{name:10} exponent {slope:5.2f}   {steps}", flush=True)
        if options.output is not None:
            options.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if options.figure is not None:
        draw(record["series"], options.figure)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
