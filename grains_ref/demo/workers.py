"""The same work on several models side by side, each in a process with one thread; no process outlives its parent.

The models are so small that two threads on one of them are slower than two models side by side.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from typing import Any, TypeVar

Tick = Callable[[str, int], None]  # what is in work, and how many pieces of work have been finished since the last call
R = TypeVar("R")
U = TypeVar("U")

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
# glibc gives freed memory back to the system, and page faults took a third of the time; below 256 MiB it is kept.
KEEP_FREED_MEMORY = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(1 << 28))
_progress: Any  # in a worker process: the queue to the parent


def run(work: Callable[[U, Tick], R], units: Sequence[U], tick: Tick, *, workers: int = 0) -> list[R]:
    """The work on every unit (a training seed, say), `workers` units at a time; 0: all at once.

    `work` is sent to another process: a plain function, or a `functools.partial` of one.

    An error in one unit, or Ctrl-C, ends the others at once.  Workers also end when this process is killed, so that a
    killed run leaves nothing behind that goes on writing.
    """
    context = multiprocessing.get_context("spawn")
    progress = context.SimpleQueue()  # what was put is there before the work's result is
    with ProcessPoolExecutor(
        workers or len(units), mp_context=context, initializer=_start_worker, initargs=(progress,)
    ) as pool:
        try:
            with _environment(ONE_THREAD | KEEP_FREED_MEMORY):  # libraries read it when a worker starts
                futures = [pool.submit(_work, work, unit) for unit in units]
            pending = set(futures)
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION)
                while not progress.empty():
                    tick(*progress.get())
                for future in done:
                    future.result()  # an error in one ends the others now, not when they are through
            return [future.result() for future in futures]
        except BaseException:  # also Ctrl-C: do not wait for workers whose results nobody will read
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


@contextlib.contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for processes that are started within the block."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start_worker(progress: Any) -> None:
    """Progress goes to the queue; Ctrl-C is left to the parent process, whose end is this one's too."""
    global _progress
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()
    _progress = progress


def _end_with_parent() -> None:
    """Wait for the end of the parent process, however it comes, and end this one."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # a pipe to the parent: it closes when the parent is gone, also after `kill -9`
    os._exit(1)  # not `sys.exit`, which would end this thread only


def _work(work: Callable[[U, Tick], R], unit: U) -> R:
    def tick(what: str, finished: int) -> None:
        _progress.put((what, finished))

    return work(unit, tick)
