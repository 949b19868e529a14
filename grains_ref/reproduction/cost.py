"""Seconds and peak memory of building steering vectors (sections 4.1 and 4.2)."""

from __future__ import annotations

import contextlib
import ctypes
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Cost:
    """What a piece of work took; both are set when it is through."""

    seconds: float = 0.0
    peak_bytes: int | None = None  # at the highest point, beyond what was in use before; None: cannot be told here


@contextlib.contextmanager
def measured(device: torch.device) -> Iterator[Cost]:
    """Time and peak memory of the block.

    On a GPU: torch's allocations.  On a CPU: resident memory of this process, under Linux with glibc only, to about a
    megabyte; memory that was freed before and is kept for reuse is given back first, else the peak would hide in it.
    """
    cost = Cost()
    before = _restart(device)
    start = time.perf_counter()
    yield cost
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    cost.seconds = time.perf_counter() - start
    if before is not None:
        cost.peak_bytes = max(_peak(device) - before, 0)


def import_trainers() -> None:
    """Import what baselines import when they are fitted, so that the first one is not charged for it."""
    with contextlib.suppress(ImportError):  # who lacks a package is told so by the baseline that needs it
        import peft  # noqa: F401
        import sklearn.linear_model  # type: ignore[import-untyped, unused-ignore]  # noqa: F401


def _restart(device: torch.device) -> int | None:
    """Forget the peak so far; memory in use now in bytes, or None if it cannot be measured."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text("5")  # proc(5): the peak resident size is set back to the present one
        now = _resident("VmRSS")
        return now if _resident("VmHWM") - now < 1 << 20 else None  # some sandboxes take the 5 and do nothing
    except (AttributeError, OSError, TypeError):  # no malloc_trim, no /proc
        return None


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")


def _resident(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{_STATUS} does not tell {name}")
    return int(found[1]) * 1024
