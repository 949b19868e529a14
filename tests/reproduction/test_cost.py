"""What building vectors costs: seconds and peak memory, on this machine and as the page shows it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grains_ref.reproduction import cost, pages

pytestmark = pytest.mark.cpu
CPU = torch.device("cpu")
MB = 1_000_000


@pytest.fixture
def memory_can_be_told() -> None:
    with cost.measured(CPU) as nothing:
        pass
    if nothing.peak_bytes is None:
        pytest.skip("peak memory needs Linux with glibc and a /proc that takes clear_refs")


@pytest.mark.usefixtures("memory_can_be_told")
def test_the_peak_counts_what_was_there_at_once_and_not_what_came_one_after_the_other() -> None:
    with cost.measured(CPU) as together:
        kept = [np.ones(5 * MB) for _ in range(2)]
    assert together.peak_bytes == pytest.approx(80 * MB, rel=0.1)
    del kept
    with cost.measured(CPU) as in_turn:
        for _ in range(4):
            np.ones(5 * MB)
    assert in_turn.peak_bytes == pytest.approx(40 * MB, rel=0.1)


@pytest.mark.usefixtures("memory_can_be_told")
def test_what_was_in_use_before_is_not_charged_and_what_was_freed_before_hides_nothing() -> None:
    small = [np.ones(1000) for _ in range(5000)]  # 40 MB in pieces that the allocator keeps when they are freed
    with cost.measured(CPU) as nothing:
        pass
    assert nothing.peak_bytes is not None
    assert nothing.peak_bytes < 2 * MB
    del small
    with cost.measured(CPU) as again:
        small = [np.ones(1000) for _ in range(5000)]
    del small
    assert again.peak_bytes == pytest.approx(40 * MB, rel=0.2)


def test_a_system_without_proc_has_no_peak_and_still_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cost, "_CLEAR", tmp_path / "none" / "clear_refs")
    with cost.measured(CPU) as found:
        time.sleep(0.01)
    assert found.peak_bytes is None
    assert found.seconds >= 0.01


def test_a_proc_that_does_not_forget_the_peak_is_not_believed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cost, "_CLEAR", tmp_path / "clear_refs")  # takes the 5 and does nothing
    monkeypatch.setattr(cost, "_STATUS", tmp_path / "status")
    (tmp_path / "status").write_text("Name:\tx\nVmHWM:\t  900000 kB\nVmRSS:\t  100000 kB\n")
    with cost.measured(CPU) as found:
        pass
    assert found.peak_bytes is None


def test_the_page_shows_means_over_seeds_and_a_dash_for_what_was_not_measured() -> None:
    cells: dict[tuple[str, int, str], Any] = {
        ("simple", 0, "GrAInS"): {"fit_seconds": 1.0, "fit_bytes": 30 * MB},
        ("simple", 1, "GrAInS"): {"fit_seconds": 2.0, "fit_bytes": None},
        ("simple", 0, "CAA"): {"error": "no direction"},
    }
    page = pages.cost_page(cells, ["simple"], [0, 1])
    assert "| GrAInS | 1.5 | 30 |" in page
    assert "| CAA | - | - |" in page
