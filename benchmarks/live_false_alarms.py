"""How often the live check calls a right port wrong, and how far broken ports are from what it allows.

    python benchmarks/live_false_alarms.py --seeds 20

The right port is written on transformers alone (tests/ports/live_ports.py) and computes with a model of its own, in
eager attention and in the fused one. Prints a table: check, results, false alarms, undecided, and the largest error in
units of what was allowed. Then, for each fault that can be planted in that port, the smallest error of the checks that
must find it, in the same units: the margin that the floors leave. Needs the checkout.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from conformance.test_live import BROKEN, pair
from ports.live_ports import PlainPort

from grains_ref.conformance.live import FUNCTIONS, LiveResult, check_live
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.random_models import random_llama, random_qwen2
from grains_ref.tiny_models.random_vision_models import random_gemma3_text

FAMILIES = {"llama": random_llama, "qwen2": random_qwen2, "gemma3_text": random_gemma3_text}


class OtherKernel:
    """The plain port on a copy of the model with another kernel of attention."""

    def __init__(self, kernel: str, wrong: str = "") -> None:
        self.kernel = kernel
        port = PlainPort(wrong)
        for name in FUNCTIONS:
            if hasattr(port, name):
                setattr(self, name, getattr(port, name))

    def LOAD(self, model: HuggingFaceModel) -> HuggingFaceModel:
        """A model of its own."""
        hf = copy.deepcopy(model.hf)
        hf.set_attn_implementation(self.kernel)
        return HuggingFaceModel(hf, model.tokenizer, name="the port's")


def runs(seeds: Sequence[int], wrong: str = "") -> Iterator[list[LiveResult]]:
    """Families x model seeds x dtypes x kernels, two pairs each."""
    for name, build in FAMILIES.items():
        for seed in seeds:
            for dtype in (torch.float32, torch.bfloat16):
                model = build(seed=seed % 4, dtype=dtype)
                for kernel in ("eager", "sdpa"):
                    pairs = [pair(2 * seed), pair(2 * seed + 1)]
                    port: Any = OtherKernel(kernel, wrong)
                    results = check_live(model, pairs, port, seeds=[seed], m=3)
                    print(f"{name} {seed} {dtype} {kernel}", file=sys.stderr)
                    yield results


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    rows: dict[str, list[LiveResult]] = defaultdict(list)
    for results in runs(range(options.seeds)):
        for result in results:
            rows[result.check].append(result)
    print("| check | results | false alarms | undecided | largest error / allowed |\n|---|---|---|---|---|")
    for check, found in rows.items():
        alarms = [r for r in found if r.status == "failed"]
        undecided = sum(r.status == "undecidable" for r in found)
        ratio = max((r.error / r.allowed for r in found if r.allowed), default=0.0)
        print(f"| {check} | {len(found)} | {len(alarms)} | {undecided} | {ratio:.2f} |")
        for r in alarms[:3]:
            print(f"    {r.pair} {r.seed}: error {r.error:.2e}, allowed {r.allowed:.2e}: {r.message}", file=sys.stderr)
    total = sum(map(len, rows.values()))
    print(f"\n{total} results, {sum(r.status == 'failed' for found in rows.values() for r in found)} false alarms")

    print("\n| fault | check | smallest error / allowed |\n|---|---|---|")
    for fault, checks in BROKEN.items():
        smallest: dict[str, float] = {}
        for results in runs(range(min(2, options.seeds)), fault):
            for r in results:
                if r.check in checks and r.status != "undecidable":
                    ratio = r.error / r.allowed if r.allowed else float("inf") if r.error else 0.0
                    smallest[r.check] = min(ratio, smallest.get(r.check, float("inf")))
        for check, ratio in smallest.items():
            print(f"| {fault} | {check} | {ratio:.3g} |")


if __name__ == "__main__":
    main()
