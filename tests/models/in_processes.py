"""What one process of a tensor-parallel run does: `python in_processes.py MODEL OUT [device_map]` writes results."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from grains_ref import fast
from grains_ref.data import PreferencePair
from grains_ref.evaluation import preference_accuracy
from grains_ref.grains import PRESETS, Steering, fit
from grains_ref.models import load
from grains_ref.models.parallel import is_spread

PAIRS = [
    ("The capital of France is", "Paris.", "Rome."),
    ("The capital of Italy is", "Rome.", "Paris."),
    ("Is the earth flat? A:", "No, it is round.", "Yes."),
]


def main(folder: str, out: str, device_map: str | None = None) -> None:
    torch.set_num_threads(1)
    model = load(folder, device_map=device_map)
    examples = [model.example(*pair) for pair in PAIRS]
    vectors = fit(model, examples, PRESETS["paper_llm"])
    by_fast = fast.fit(model, examples, PRESETS["paper_llm"])
    with Steering(model.blocks, vectors.v, lam=30.0):
        said = model.generate([pair[0] for pair in PAIRS], max_new_tokens=8)
        scores = [score.log_prob for score in model.score([pair[:2] for pair in PAIRS])]
        accuracy = preference_accuracy(model, [PreferencePair("", *pair, "") for pair in PAIRS])
    results = {
        "is_spread": is_spread(model.hf),
        "fingerprint": model.fingerprint(),
        "generate": said,
        "eval": accuracy.value,
        "scores": scores,
        "fit": vectors.v.tolist(),
        "fast": by_fast.v.tolist(),
        "checks": [check.name for check in model.proof.checks],
    }
    rank = os.environ.get("RANK", "alone")
    Path(out, f"{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
