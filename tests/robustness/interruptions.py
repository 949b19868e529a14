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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from command import SIMPLE
from robustness import kills, work_folders
from typer.testing import CliRunner

from grains_ref.cli import app, common, reproduce
from grains_ref.demo import planted
from grains_ref.files import FileError, is_draft, is_lock
from grains_ref.fitting.work_folder import open_work_folder
from grains_ref.reproduction.cells import tiny_lab
from grains_ref.tiny_models.worlds import build_world

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.ENOENT, errno.EMFILE)
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


class Undisturbed(NamedTuple):
    """What a command writes where nothing interrupts it, and how long it takes, in seconds."""

    content: bytes
    record: dict[str, Any]  # what it prints
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
    return ["fit", *SIMPLE, *files, "--m", "12", "--aggregation", "mean", "--json"]


def sweep_command(out: Path) -> list[str]:
    files = [f"--{name}={world() / file}.jsonl" for name, file in (("pairs", "steer"), ("dev", "dev"))]
    grid = ["--tasks", str(world() / "dev_tasks.jsonl"), "--lam", "5,16", "--k", "2,3", "--max-loss", "100"]
    return ["sweep", *SIMPLE, *files, *grid, "--aggregation", "mean", "--out", str(out), "--json"]


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


def start(action: Callable[[], int]) -> int:
    """The action in a process of its own, with the group of processes that it may start: its number."""
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
        _renew_thread_pool()
        status = action()
    except KeyboardInterrupt:
        status = 130
    finally:
        os._exit(status)


def _renew_thread_pool() -> None:
    """In a process that was forked off torch makes its pool of threads anew at the first call, which may find none."""
    with suppress(RuntimeError):
        torch.set_num_threads(1)
    torch.set_num_threads(1)


def as_command(arguments: list[str]) -> Callable[[], int]:
    """The action of a command; its exit code."""

    def action() -> int:
        with loaded_once():
            return app(arguments, standalone_mode=False) or 0  # this mode returns the exit code

    return action


def ended(child: int) -> int:
    """The exit status of a process that is waited for; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@functools.cache
def undisturbed_fit() -> Undisturbed:
    return _undisturbed(fit_command)


@functools.cache
def undisturbed_sweep() -> Undisturbed:
    return _undisturbed(sweep_command)


def _undisturbed(command_to: Callable[[Path], list[str]]) -> Undisturbed:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "v.safetensors"
        finish(command_to(out))  # the first one also loads the model
        content = out.read_bytes()
        begin = time.perf_counter()
        record = finish(command_to(out))
        assert out.read_bytes() == content
        return Undisturbed(content, _without_paths(record), time.perf_counter() - begin)


# --- misfortunes


def campaign_fit_kills(rng: random.Random, folder: Path) -> str:
    """The command `fit` is ended by one to three signals at random moments, and then let alone."""
    out = folder / "v.safetensors"
    return _killed(rng, folder, fit_command(out), undisturbed_fit(), out)


def campaign_sweep_kills(rng: random.Random, folder: Path) -> str:
    """The same for `sweep`; the choice that it prints is the undisturbed one, too."""
    out = folder / "v.safetensors"
    return _killed(rng, folder, sweep_command(out), undisturbed_sweep(), out)


def _killed(rng: random.Random, folder: Path, command: list[str], expected: Undisturbed, out: Path) -> str:
    n_kept = 0
    for _ in range(rng.choice([1, 1, 2, 3])):
        child = start(as_command(command))
        time.sleep(rng.uniform(0, 1.2 * expected.seconds))
        os.kill(child, rng.choice(SIGNALS))
        status = ended(child)
        assert status in (0, 130, -signal.SIGKILL, -signal.SIGTERM), f"exit status {status}"
        n_kept, n_before = len(list(folder.glob("v.safetensors.work/*[0-9].safetensors"))), n_kept
        if status == 0:
            n_kept = 0
            break
        if out.exists():  # killed between saving and tidying up
            assert out.read_bytes() == expected.content
        assert n_kept >= n_before or out.exists(), "something finished was lost"
    record = finish(command)
    assert _without_paths(record) == expected.record, "another record than that of an undisturbed run"
    _only(folder, out, expected.content)
    return "resumed" if n_kept else "finished"


def _without_paths(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("vectors", "resumed")}


def campaign_reproduction_kills(rng: random.Random, folder: Path) -> str:
    """A reproduction of three cells in a worker process is killed, and run again; no worker outlives it."""
    expected = undisturbed_reproduction()
    child = start(lambda: reproduce_in(folder))
    time.sleep(rng.uniform(0, expected.seconds))
    os.kill(child, rng.choice(SIGNALS))
    status = ended(child)
    assert status in (0, 130, -signal.SIGKILL, -signal.SIGTERM), f"exit status {status}"
    _until_gone(child)
    finished = {path: path.read_bytes() for path in folder.glob("cells/*/*/*.json") if not is_draft(path)}
    assert ended(start(lambda: reproduce_in(folder))) == 0
    for path, content in finished.items():
        assert path.read_bytes() == content, f"{path.name} was finished and computed again"
    assert (folder / "record.json").read_bytes() == expected.content, "another record than that of an undisturbed run"
    return "resumed" if finished and status else "finished"


def reproduce_in(folder: Path) -> int:
    """Figure 3 and the margins of one world and one seed."""
    plan = reproduce.Plan(tables={}, figures={"figure 3": ("simple",)}, extras={"margins": ("simple",)}, seeds=(0,))
    reproduce._carry_out(plan, tiny_lab, {"rung": "tiny", "engine": "fast"}, folder, workers=1, dry_run=False)
    return 0


@functools.cache
def undisturbed_reproduction() -> Undisturbed:
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        assert ended(start(lambda: reproduce_in(Path(folder)))) == 0
        return Undisturbed((Path(folder) / "record.json").read_bytes(), {}, time.perf_counter() - begin)


def _until_gone(group: int) -> None:
    """Wait for the end of the workers of a command that has been killed: they notice it by themselves."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("a worker went on for ten seconds after its parent was killed")


def campaign_kills_at_operations(rng: random.Random, folder: Path) -> str:
    """A small fit, sweep or reproduction ends at a random operation on the disk, and is run again; see kills.py."""
    kind, last = rng.choice(sorted(kills.RUNS)), rng.randrange(110)
    return kills.killed_at(folder, kind, last)


def campaign_fit_races(rng: random.Random, folder: Path) -> str:
    """Two or three commands `fit` with one `--out`, started together: one writes it, the others are refused."""
    out = folder / "v.safetensors"
    expected = undisturbed_fit()
    children = []
    for _ in range(rng.choice([2, 2, 3])):
        children.append(start(as_command(fit_command(out))))
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
    left = [path.name for path in folder.iterdir() if not is_draft(path) and not is_lock(path)]
    assert left == [out.name], f"left behind: {left}"
    assert out.read_bytes() == content, "other bits than those of an undisturbed run"


if __name__ == "__main__":
    for seed in range(int(sys.argv[1])):
        for campaign in (campaign_reproduction_kills, campaign_fit_kills, campaign_sweep_kills, campaign_fit_races):
            with tempfile.TemporaryDirectory() as parent:
                print(seed, campaign.__name__, campaign(random.Random(seed), Path(parent)), flush=True)
