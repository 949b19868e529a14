"""The same work in several processes that meet as under torchrun, forked off this one."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from robustness.interruptions import loaded_once
from typer.testing import CliRunner

from grains_ref.cli import app

LONGEST = 60  # seconds; a process that is still there is killed, so that no test hangs


class Ended(NamedTuple):
    """What became of one process: exit code (negative for a signal), and what its work returned."""

    code: int
    result: Any


class Printed(NamedTuple):
    """What a command said."""

    code: int
    out: str
    err: str


def in_processes(n: int, work: Callable[[int], Any]) -> list[Ended]:
    """`work(rank)` in n processes at once."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        children = [_start(rank, n, port, work, Path(folder) / f"{rank}") for rank in range(n)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        results = [Path(folder) / f"{rank}" for rank in range(n)]
        return [
            Ended(code, pickle.loads(file.read_bytes()) if file.exists() else None)
            for code, file in zip(codes, results, strict=True)
        ]


def _start(rank: int, n: int, port: int, work: Callable[[int], Any], file: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(LONGEST)
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in (1, 2):
            os.dup2(silence, stream)
        os.environ |= {"WORLD_SIZE": f"{n}", "RANK": f"{rank}", "LOCAL_WORLD_SIZE": f"{n}", "LOCAL_RANK": f"{rank}"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
        with suppress(RuntimeError):  # a forked process makes torch's threads anew, at the first call perhaps too late
            torch.set_num_threads(1)
        torch.set_num_threads(1)
        file.write_bytes(pickle.dumps(work(rank)))
        code = 0
    finally:
        os._exit(code)


def command_in(n: int, arguments: Sequence[str | Path], *, before: Callable[[int], None] = lambda rank: None) -> Any:
    """The command in n processes.  before: what each does first, by rank."""

    def work(rank: int) -> Printed:
        before(rank)
        with loaded_once():
            result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "400"})
        return Printed(result.exit_code, result.stdout, result.stderr)

    return in_processes(n, work)
