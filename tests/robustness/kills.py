"""A fit that is killed at every operation on the disk in turn, and taken up by the same command.

    python kills.py FOLDER

Each run is a process of its own that ends by `os._exit` in the middle of the operation, as `kill -9` would: no
`finally`, no clean-up. Prints the number of operations that one fit takes.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustness.work_folders import fit_in

from grains_ref.files import is_draft
from grains_ref.fitting.work_folder import open_work_folder

OPERATIONS = ("open", "mkdir", "replace", "unlink", "rmdir", "fsync", "fchmod", "fdopen")
KILLED = 9


def whole_fit(folder: Path) -> int:
    """What the command does: fit, save, discard. How many examples were there already."""
    with open_work_folder(folder / "v.work") as work:
        record = fit_in(work)
        record.vectors.save(folder / "v")
        assert work.discard() == []
    return record.resumed


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


def main(parent: Path) -> None:
    """Kill at operation 0, 1, 2, ... until a fit comes to its end."""
    (parent / "whole").mkdir()
    whole_fit(parent / "whole")
    expected = (parent / "whole" / "v").read_bytes()
    for last in itertools.count():
        folder = parent / "killed"
        folder.mkdir()

        def killed_fit(folder: Path = folder, last: int = last) -> None:
            kill_at(last)
            whole_fit(folder)

        status = in_a_process(killed_fit)
        assert status in (0, KILLED), f"operation {last}: exit status {status}"
        finished = len(list(folder.glob("v.work/*.safetensors")))
        assert whole_fit(folder) == finished, f"operation {last}: a finished example was lost"
        left = [path.name for path in folder.iterdir() if not is_draft(path)]
        assert left == ["v"], f"operation {last}: {left}"
        assert (folder / "v").read_bytes() == expected, f"operation {last}: other vectors"
        shutil.rmtree(folder)
        if status == 0:
            print(last)
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
