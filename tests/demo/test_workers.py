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


def children(process: int) -> list[int]:
    """The processes that a process has started, by Linux's list."""
    try:
        return [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def runs(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.thorough
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes where Linux lists them")
def test_a_worker_that_is_only_starting_ends_with_a_parent_that_is_killed(script: Path, tmp_path: Path) -> None:
    """Before it has begun to watch its parent."""
    folder = tmp_path / "written"
    folder.mkdir()
    parent = subprocess.Popen([sys.executable, script, folder], stderr=subprocess.DEVNULL)
    started: list[int] = []

    def has_started() -> bool:  # the first is multiprocessing's resource tracker
        started[:] = children(parent.pid)
        return len(started) >= 2

    try:
        assert until(has_started, 120), "no worker has started"
        parent.send_signal(signal.SIGKILL)
        parent.wait(30)
        assert until(lambda: not any(map(runs, started)), 60), f"{started} go on"
    finally:
        parent.kill()
    written = [path.read_text() for path in folder.iterdir()]
    time.sleep(0.3)
    assert [path.read_text() for path in folder.iterdir()] == written
