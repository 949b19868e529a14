"""Commands that are killed, stopped, run twice at once or given a failing disk, and then run again.

    campaign_fit_kills(random.Random(0), folder)

Each function draws one such misfortune and returns "resumed", "finished" (it came too late to harm) or "refused".
Anything else is an AssertionError: other bits than an undisturbed run's, a finished example lost, a file left behind.
A killed command is a process of its own, forked off so that nothing has to be imported again.
"""

from __future__ import annotations

import errno
import functools
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from command import SIMPLE
from robustness import kills, work_folders
from typer.testing import CliRunner

from grains_ref.cli import app, common
from grains_ref.demo import planted
from grains_ref.files import FileError, is_draft
from grains_ref.fitting.work_folder import open_work_folder
from grains_ref.tiny_models.worlds import build_world

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.ENOENT, errno.EMFILE)
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


class Undisturbed(NamedTuple):
    """What a command writes where nothing interrupts it, and how long it takes, in seconds."""

    content: bytes
    seconds: float


@functools.cache
def world() -> Path:
    """The files of the simple world, cut short; they last as long as the process."""
    folder = Path(tempfile.mkdtemp(prefix="grains-interruptions-"))
    planted.write_data(build_world("simple"), folder)
    for name, n in (("steer", 5), ("dev", 6), ("dev_tasks", 6)):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:n]))
    return folder


def fit_command(out: Path) -> list[str]:
    files = ["--pairs", str(world() / "steer.jsonl"), "--out", str(out)]
    return ["fit", *SIMPLE, *files, "--m", "2", "--aggregation", "mean", "--json"]


# --- running a command


@contextmanager
def loaded_once() -> Iterator[None]:
    """Loading the model takes longer than the rest of these commands."""
    with patch.object(common, "load_model", _load_model):
        yield


_load_model = functools.cache(common.load_model)


def finish(command: list[str]) -> Any:
    """The command in this process: the record that it prints."""
    with loaded_once():
        result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def start(command: list[str]) -> int:
    """The command in a process of its own, with the group of processes that it may start: its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silence, stream)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with loaded_once():
            status = app(command, standalone_mode=False) or 0  # this mode returns the exit code
    except KeyboardInterrupt:
        status = 130
    finally:
        os._exit(status)


def ended(child: int) -> int:
    """The exit status of a process that is waited for; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@functools.cache
def undisturbed_fit() -> Undisturbed:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "v.safetensors"
        finish(fit_command(out))  # the first one also loads the model
        content = out.read_bytes()
        begin = time.perf_counter()
        finish(fit_command(out))
        assert out.read_bytes() == content
        return Undisturbed(content, time.perf_counter() - begin)


# --- misfortunes


def campaign_fit_kills(rng: random.Random, folder: Path) -> str:
    """The command `fit` is ended by one to three signals at random moments, and then let alone."""
    out = folder / "v.safetensors"
    expected = undisturbed_fit()
    finished_before = 0
    for _ in range(rng.choice([1, 1, 2, 3])):
        child = start(fit_command(out))
        time.sleep(rng.uniform(0, 1.2 * expected.seconds))
        os.kill(child, rng.choice(SIGNALS))
        status = ended(child)
        assert status in (0, 130, -signal.SIGKILL, -signal.SIGTERM), f"exit status {status}"
        n_kept = len(list(folder.glob("v.safetensors.work/[0-9]*.safetensors")))
        if status == 0:
            finished_before = 0
            break
        if out.exists():  # killed between saving and tidying up
            assert out.read_bytes() == expected.content
        assert n_kept >= finished_before or out.exists(), "a finished example was lost"
        finished_before = n_kept
    record = finish(fit_command(out))
    assert record["resumed"] >= finished_before
    _only(folder, out, expected.content)
    return "resumed" if record["resumed"] else "finished"


def campaign_fit_races(rng: random.Random, folder: Path) -> str:
    """Two or three commands `fit` with one `--out`, started together: one writes it, the others are refused."""
    out = folder / "v.safetensors"
    expected = undisturbed_fit()
    children = []
    for _ in range(rng.choice([2, 2, 3])):
        children.append(start(fit_command(out)))
        time.sleep(rng.uniform(0, 0.5 * expected.seconds))
    statuses = [ended(child) for child in children]
    assert 0 in statuses, statuses
    assert set(statuses) <= {0, 1}, statuses
    _only(folder, out, expected.content)
    return "refused" if 1 in statuses else "finished"


def campaign_disk_errors(rng: random.Random, folder: Path) -> str:
    """A random operation on the disk fails in a small fit, once or from then on, and the fit is run again."""
    expected = _small_fit()
    first, last = rng.randrange(60), rng.choice([1, 2, 10**9])
    number = rng.choice(ERRORS)
    try:
        with _failing_disk(range(first, first + last), number), open_work_folder(folder / "v.work") as work:
            work_folders.fit_in(work).vectors.save(folder / "v")
            left = work.discard()
    except (FileError, OSError) as error:
        message = str(error)
        outcome = "refused"
        assert str(folder) in message, message
    else:
        outcome = "refused" if left else "finished"
    finished = len(list(folder.glob("v.work/[0-9]*.safetensors")))
    if outcome == "refused" or (folder / "v.work").exists():
        assert kills.whole_fit(folder) >= finished, "a finished example was lost"
    _only(folder, folder / "v", expected)
    return outcome


@functools.cache
def _small_fit() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        kills.whole_fit(Path(folder))
        return (Path(folder) / "v").read_bytes()


@contextmanager
def _failing_disk(failing: range, number: int) -> Iterator[None]:
    count = itertools.count()

    def guarded(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if next(count) in failing:
                raise OSError(number, os.strerror(number), str(args[0]) if args else "")
            return operation(*args, **options)

        return call

    with _replaced_in_os({name: guarded(getattr(os, name)) for name in kills.OPERATIONS}):
        yield


@contextmanager
def _replaced_in_os(replaced: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Functions of `os`, replaced for a while."""
    originals = {name: getattr(os, name) for name in replaced}
    for name, function in replaced.items():
        setattr(os, name, function)
    try:
        yield
    finally:
        for name, function in originals.items():
            setattr(os, name, function)


def _only(folder: Path, out: Path, content: bytes) -> None:
    """The one file that is left is the one that was asked for, whole; drafts of a killed writer do no harm."""
    left = [path.name for path in folder.iterdir() if not is_draft(path) and path.suffix != ".lock"]
    assert left == [out.name], f"left behind: {left}"
    assert out.read_bytes() == content, "other bits than those of an undisturbed run"


if __name__ == "__main__":
    for seed in range(int(sys.argv[1])):
        for campaign in (campaign_fit_kills, campaign_fit_races, campaign_disk_errors):
            with tempfile.TemporaryDirectory() as parent:
                print(seed, campaign.__name__, campaign(random.Random(seed), Path(parent)), flush=True)
