"""A fit, sweep or reproduction that is killed at every operation on the disk in turn, and taken up by the same command.

    python kills.py FOLDER fit|sweep|reproduction [EVERY]

EVERY: 3 for every third operation only.

Each run is a process of its own that ends by `os._exit` in the middle of the operation, as `kill -9` would: no
`finally`, no clean-up. Prints the number of operations that one run takes.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from grains_ref.files import is_draft, is_lock, only_writer, only_writer_of, write_whole

OPERATIONS = ("open", "mkdir", "replace", "unlink", "rmdir", "fsync", "fchmod", "fdopen")
KILLED = 9


def whole_fit(folder: Path) -> int:
    """What the command does: fit, save, discard. How many examples were there already."""
    from robustness.work_folders import fit_in

    from grains_ref.fitting.work_folder import open_work_folder

    with only_writer_of(folder / "v", what="a fit"), open_work_folder(folder / "v.work") as work:
        record = fit_in(work)
        record.vectors.save(folder / "v")
        assert work.discard() == []
    return record.resumed


def whole_sweep(folder: Path) -> int:
    """The same of a sweep: how many pieces were there already."""
    from robustness.sweeps import SMALL, n_pieces, sweep_in

    from grains_ref.fitting.work_folder import open_work_folder

    with only_writer_of(folder / "v", what="a sweep"), open_work_folder(folder / "v.work", work="sweep") as work:
        found, calls = sweep_in(work, **SMALL)
        settings = [(tried.setting.setting(), tried.accuracy) for tried in found.tried]
        write_whole(folder / "v", repr((settings, found.record(), found.left_out, found.best.fit.v.tolist())))
        assert work.discard() == []
    return n_pieces() - len(calls)


def whole_reproduction(folder: Path) -> int:
    """The same of a reproduction, whose cells stay: how many were there already."""
    from robustness.cell_files import FACTS, FIGURES

    from grains_ref.reproduction import cells, kept

    class SmallLab:
        facts = FACTS

    wanted = [("simple", 0, name) for name in FIGURES]
    fill = patch.object(cells, "fill", lambda lab, name: FIGURES[name])
    with fill, only_writer(folder, what="a reproduction"):
        kept.claim(folder, {"rung": "tiny"})
        units = kept.missing(folder, wanted, on_damage=lambda problem: None)
        for unit in units:
            cells._fill_unit(folder, lambda *_: SmallLab(), unit, lambda *_: None)  # type: ignore[arg-type, return-value]
        read = [kept.read_cell(folder, *place) for place in wanted]
        write_whole(folder / "v", repr((read, kept.read_facts(folder, "simple", 0))))
    return len(wanted) - sum(len(names) for _, _, names in units)


def pieces(folder: Path) -> int:
    """How many finished pieces lie in a folder."""
    files = [*folder.glob("v.work/*"), *folder.glob("cells/*/*/*.json")]
    records = ("fit.json", "sweep.json", "facts.json")
    return sum(path.name not in records and not is_draft(path) and not is_lock(path) for path in files)


RUNS: dict[str, Callable[[Path], int]] = {"fit": whole_fit, "sweep": whole_sweep, "reproduction": whole_reproduction}
STAYS = {"v", "cells", "inputs.json"}


def kill_at(last: int) -> None:
    """Let this process end at the operation of that number, from 0; a write is cut in half."""
    count = itertools.count()

    def guarded(operation: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if next(count) == last:
                if name == "fdopen":
                    os.write(args[0], b"half of a fi")
                os._exit(KILLED)
            return operation(*args, **options)

        return call

    for name in OPERATIONS:
        setattr(os, name, guarded(getattr(os, name), name))


def in_a_process(action: Callable[[], None]) -> int:
    """The exit status of a child that does this and nothing else."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@functools.cache
def undisturbed(kind: str) -> bytes:
    """What a run writes that nothing interrupts."""
    with tempfile.TemporaryDirectory() as folder:
        RUNS[kind](Path(folder))
        return (Path(folder) / "v").read_bytes()


def killed_at(folder: Path, kind: str, last: int) -> str:
    """A run in an empty folder that ends at the operation of that number, and is run again.

    "finished": it has fewer operations; "resumed": the second run found everything that the first had finished.
    """

    def killed_run() -> None:
        kill_at(last)
        RUNS[kind](folder)

    expected = undisturbed(kind)
    status = in_a_process(killed_run)
    assert status in (0, KILLED), f"operation {last}: exit status {status}"
    if status == KILLED:
        finished = pieces(folder)
        assert RUNS[kind](folder) == finished, f"operation {last}: something finished was lost"
    left = {path.name for path in folder.iterdir() if not is_draft(path)}
    assert left <= STAYS, f"operation {last}: {left}"
    assert (folder / "v").read_bytes() == expected, f"operation {last}: other results"
    return "resumed" if status == KILLED else "finished"


def main(parent: Path, kind: str, every: int) -> None:
    """Kill at operation 0, 1, 2, ... until a run comes to its end."""
    for last in itertools.count(step=every):
        folder = parent / "killed"
        folder.mkdir()
        if killed_at(folder, kind, last) == "finished":
            print(last)
            return
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 1)
