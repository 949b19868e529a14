"""A fit of a full-size model under a clock, and the records that stand in docs/gpu.md."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from grains_ref.data import PreferencePair
from grains_ref.grains import Attribution, Example, Fit, HyperParameters, Model, attribute, shift, vectors
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.full_pairs import examples_of
from grains_ref.tiny_models.full_size import GIB, Weights, parameter_bytes


# ---------------------------------------------------------------------------------------- the record
@dataclass(frozen=True)
class Timing:
    """Seconds that each stage of a fit took, over all pairs."""

    attribution: float
    contrast: float  # eq. (3) and (4)
    aggregation: float

    @property
    def total(self) -> float:
        """Seconds of the whole fit, tokenisation not included."""
        return self.attribution + self.contrast + self.aggregation


def timed_fit(
    model: Model, examples: Sequence[Example], hp: HyperParameters, *, device: torch.device
) -> tuple[Fit, Timing, list[Attribution]]:
    """`grains_ref.grains.fit` stage by stage: the same vectors, bit for bit, and the seconds each stage took."""
    seconds = dict.fromkeys(("attribution", "contrast", "aggregation"), 0.0)

    @contextmanager
    def clock(stage: str) -> Iterator[None]:
        start = _now(device)
        yield
        seconds[stage] += _now(device) - start

    attributions, shifts = [], []
    for example in examples:
        with clock("attribution"):
            attributions.append(attribute(model, example, hp))
        with clock("contrast"):
            shifts.append(shift(model, example, attributions[-1].a, hp))
    with clock("aggregation"):
        result = vectors(shifts, hp)
    return result, Timing(**seconds), attributions


def measure_fit(
    model: HuggingFaceModel,
    pairs: Sequence[PreferencePair],
    hp: HyperParameters,
    *,
    preset: str,
    config: str,
    weights: Weights,
) -> tuple[Fit, dict[str, Any]]:
    """Fit the pairs after one unrecorded attribution (kernels load at first use), and describe how that went.

    Returns the fit and a record that JSON can hold, as shown in docs/gpu.md.
    """
    examples = examples_of(model, pairs)
    attribute(model, examples[0], hp)
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    result, timing, attributions = timed_fit(model, examples, hp, device=model.device)
    prompts = [len(example.encoded.ids) for example in examples]
    responses = [len(y) for example in examples for y in (example.y_pos, example.y_neg)]
    peak, source = peak_memory(model.device)
    record = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": device_name(model.device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "transformers": transformers.__version__,
        },
        "config": config,
        "weights": weights,
        "dtype": str(model.hf.dtype).removeprefix("torch."),
        "attention": model.hf.config._attn_implementation,
        "preset": preset,
        "hyper_parameters": asdict(hp) | {"eligible": list(hp.eligible)},  # a tuple would come back as a list
        "pairs": len(pairs),
        "tokens": {
            "prompts": sum(prompts),
            "responses": sum(responses),
            "prompt_range": [min(prompts), max(prompts)],
            "response_range": [min(responses), max(responses)],
            "images": sum(example.encoded.kinds.count("image") for example in examples),
        },
        "seconds": asdict(timing) | {"total": timing.total},
        "parameters_gib": parameter_bytes(model) / GIB,
        "peak_gib": None if peak is None else peak / GIB,
        "peak_source": source,
        "median_completeness_gap_nats": statistics.median(abs(one.gap) for one in attributions),
        "median_f_nats": statistics.median(abs(one.f_x) for one in attributions),
    }
    return result, record


def write_record(record: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a record as indented JSON; missing folders are made."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def peak_memory(device: torch.device) -> tuple[int | None, str]:
    """The most bytes in use so far, and what that number is: of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "torch.cuda.max_memory_allocated"
    if sys.platform == "win32":  # has no getrusage
        return None, "unknown"
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # the same field counts bytes there and KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "peak resident set of the process"


def device_name(device: torch.device) -> str:
    """The GPU's name and memory, or the CPU's name and the number of threads in use."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / GIB
        return f"{torch.cuda.get_device_name(device)} ({memory:.0f} GiB)"
    name = platform.processor() or platform.machine()
    return f"CPU {name}, {torch.get_num_threads()} threads"


def _now(device: torch.device) -> float:
    """Seconds, once the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
