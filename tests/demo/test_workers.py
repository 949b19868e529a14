"""demo/workers.py: work in other processes, and what is left of it when the parent is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.cpu

SCRIPT = """
import os, sys, time
from grains_ref.demo import workers

def double(unit, tick):
    tick(f"unit {unit} on {os.environ['OMP_NUM_THREADS']} thread", 1)
    if unit == 13:
        raise ValueError("thirteen")
    return 2 * unit

def write_for_ever(folder, tick):
    while True:
        with open(f"{folder}/{os.getpid()}", "a") as file:
            file.write("still here\\n")
        time.sleep(0.02)

if __name__ == "__main__":
    if sys.argv[1] == "double":
        ticks = []
        print(workers.run(double, [1, 2, 3], lambda what, finished: ticks.append((what, finished)), workers=1))
        print(ticks)
        print(os.environ.get("OMP_NUM_THREADS"))
        try:
            workers.run(double, [13], lambda what, finished: None)
        except ValueError as error:
            print("failed:", error)
    else:
        workers.run(write_for_ever, [sys.argv[1]], lambda what, finished: None)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def until(condition: object, seconds: float) -> bool:
    """Whether a condition comes true within some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


def test_results_come_in_the_order_of_the_units_with_every_tick_each_on_one_thread(script: Path) -> None:
    done = subprocess.run(
        [sys.executable, script, "double"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "3"},
    )
    assert done.stdout.splitlines() == [
        "[2, 4, 6]",
        "[('unit 1 on 1 thread', 1), ('unit 2 on 1 thread', 1), ('unit 3 on 1 thread', 1)]",
        "3",
        "failed: thirteen",
    ], done.stderr


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is asked for by a signal")
def test_workers_end_with_a_parent_that_is_killed(script: Path, tmp_path: Path) -> None:
    folder = tmp_path / "written"
    folder.mkdir()
    parent = subprocess.Popen([sys.executable, script, folder])
    try:
        assert until(lambda: any(folder.iterdir()), 120), "no worker has started"
        (written,) = folder.iterdir()
        size = written.stat().st_size
        assert until(lambda: written.stat().st_size > size, 30)  # it works
        parent.send_signal(signal.SIGKILL)
        parent.wait(30)

        def is_gone() -> bool:
            before = written.stat().st_size
            time.sleep(0.5)
            return written.stat().st_size == before

        assert until(is_gone, 30), f"process {written.name} goes on writing"
    finally:
        parent.kill()
