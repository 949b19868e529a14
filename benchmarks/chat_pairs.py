"""What it costs to build vectors for SmolLM2-135M-Instruct from chat pairs: the fast engine against the reference.

    python benchmarks/chat_pairs.py                       # 50 pairs, some minutes
    python benchmarks/chat_pairs.py --pairs 10 --threads 1

The pairs are those of `grains-ref demo --real`, of all its behaviours in turn; `grains-ref demo --real` also prepares
the model. Ways, clocks and the table are those of `building.py`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from building import Record, compare, table

from grains_ref.demo.real import BEHAVIOURS
from grains_ref.demo.real.packages import prepare
from grains_ref.grains import Example
from grains_ref.models import HuggingFaceModel, load

AT_ONCE = 10  # pairs of every turn; the engine parts them into batches


def chat_examples(model: HuggingFaceModel, n: int) -> list[Example]:
    """The first n pairs, one of each behaviour in turn."""

    def count_tokens(text: str) -> int:
        return len(model.tokenizer(text, add_special_tokens=False)["input_ids"])

    pairs = []
    for behaviour in BEHAVIOURS.values():
        sets = behaviour.build(0, count_tokens)
        pairs.append([*sets.steer, *sets.dev])
    in_turn = [pair for of_behaviours in zip(*pairs, strict=False) for pair in of_behaviours]
    if len(in_turn) < n:
        raise ValueError(f"--pairs {n}: there are {len(in_turn)}")
    return [model.example(pair.prompt, pair.chosen, pair.rejected) for pair in in_turn[:n]]


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--skip", nargs="*", default=["released", "captum", "apart"])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    record = Record(options.output, torch.device("cpu"))
    model = load(prepare(print), dtype=torch.float32)
    examples = chat_examples(model, options.pairs)
    part = compare(model, examples, at_once=AT_ONCE, skip=set(options.skip))
    record.add("chat pairs", part)
    table("chat pairs", part)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
