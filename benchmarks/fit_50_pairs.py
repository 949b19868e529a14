"""How long the paper's main job takes: steering vectors from 50 TruthfulQA-shaped pairs.

    python benchmarks/fit_50_pairs.py --config llama-3.1-8b --device cuda --output record.json
    python benchmarks/fit_50_pairs.py --model path/to/Llama-3.1-8B-Instruct --device cuda
    python benchmarks/fit_50_pairs.py --config llama-3.1-8b --shrink          # tries the script on a CPU

Prints the seconds of each stage and the peak memory, and writes the JSON record that docs/gpu.md describes. The paper:
about 96 s on an RTX A6000. With --config, released weights are used where this machine has them and random ones
otherwise (the arithmetic is the same); nothing is downloaded.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from grains_ref.grains import PRESETS
from grains_ref.models import HuggingFaceModel, load
from grains_ref.tiny_models.full_pairs import truthfulqa_shaped_pairs
from grains_ref.tiny_models.full_records import measure_fit, write_record
from grains_ref.tiny_models.full_size import CONFIGS, full_model, random_model, shrunken

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print(f"no CUDA GPU is available to torch {torch.__version__}; try --device cpu --shrink", file=sys.stderr)
        return 1
    pairs = truthfulqa_shaped_pairs(options.pairs)
    model, config, weights = _model(options)
    _, record = measure_fit(
        model, pairs, PRESETS[options.preset], preset=options.preset, config=config, weights=weights
    )
    for line in _lines(record):
        print(line)
    if options.output is not None:
        write_record(record, options.output)
        print(f"{'record':12} {options.output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path, help="local folder of a released model (Llama or Qwen2 family)")
    source.add_argument("--config", choices=sorted(file.stem for file in CONFIGS.glob("*.json")))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--preset", choices=PRESETS, default="paper_llm")
    parser.add_argument("--pairs", type=int, default=50, help="1 to 50, the same first ones every time")
    parser.add_argument("--seed", type=int, default=0, help="of random weights")
    parser.add_argument("--shrink", action="store_true", help="with --config: three narrow blocks, random weights")
    parser.add_argument("--output", type=Path, help="where to write the JSON record")
    return parser


def _model(options: argparse.Namespace) -> tuple[HuggingFaceModel, str, Any]:
    """The model, what to call it in the record, and whether its weights are released or random."""
    dtype = DTYPES[options.dtype]
    if options.model is not None:
        return load(options.model, dtype=dtype, device=options.device), options.model.name, "released"
    if options.shrink:
        torch.set_num_threads(1)  # the tensors are so small that threads would only wait for each other
        name = f"{options.config}, shrunken"
        config = shrunken(options.config, vocab_size=1009)
        model = random_model(config, name=name, device=options.device, dtype=dtype, seed=options.seed)
        return model, name, "random"
    model, weights = full_model(options.config, device=options.device, dtype=dtype, seed=options.seed)
    return model, options.config, weights


def _lines(record: dict[str, Any]) -> list[str]:
    low, high = record["tokens"]["prompt_range"]
    peak = "unknown" if record["peak_gib"] is None else f"{record['peak_gib']:.2f} GiB ({record['peak_source']})"
    versions = record["versions"]
    lines = [
        f"{'model':12} {record['config']}, {record['weights']} weights, {record['dtype']}",
        f"{'device':12} {record['device']}; torch {versions['torch']}, transformers {versions['transformers']}",
        f"{'pairs':12} {record['pairs']}, prompts of {low} to {high} tokens",
    ]
    lines += [f"{stage:12} {seconds:.2f} s" for stage, seconds in record["seconds"].items()]
    return [*lines, f"{'peak memory':12} {peak}, parameters {record['parameters_gib']:.2f} GiB"]


if __name__ == "__main__":
    raise SystemExit(main())
