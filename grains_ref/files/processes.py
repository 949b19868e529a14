"""One command in several processes, on one machine or many: the work is split, the results are those of one process.

    with joined():                                   under torchrun or accelerate launch; alone everywhere else
        model = load(...)                            what each does for itself
        for result in share(batches, compute):       each batch by one process, results in order and in every process
            ...
        first(lambda: vectors.save(path))            the first process alone; the others get what it returned

All processes run the same program and come to these calls in the same order.  A unit of work is computed whole, by one
process, in the same way as by a process that is alone, and results are put together in the order of the units: so no
bit depends on how many processes there are, or on which is the quickest.  Inside `compute`, `share` is a plain loop.

Results travel from one processor to the other by gloo, also where models are on GPUs: they are small.  An error that
ends one process is told to the others at their next exchange, and ends them.  When a process is killed, the launcher
asks the others to end (SIGTERM), or their next exchange finds it gone: either is a `ProcessLost`.
"""

from __future__ import annotations

import functools
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple, NoReturn, TypeVar

Unit = TypeVar("Unit")
Result = TypeVar("Result")

PATIENCE = timedelta(hours=1)  # how long an exchange waits for a process that is there but still at work
END = "end"  # where a process is that has nothing more to do, or has failed
AGAIN = "What was finished is kept in the work folder: run the same command again, with any number of processes"


class ProcessLost(ConnectionError):
    """Another process of the run has ended, or this one is asked to."""


class _Outcome(NamedTuple):
    """What one process has to tell the others."""

    step: str  # where in the program it is; the same in all
    result: Any = None
    error: Exception | None = None


@dataclass
class _Group:
    """The processes of a run, as one of them sees it."""

    rank: int = 0
    size: int = 1
    gloo: Any = None  # torch's process group
    is_whole: bool = False  # see `model_is_spread`
    is_computing: bool = False  # inside `share`
    steps: int = 0

    @property
    def is_alone(self) -> bool:
        """Whether nothing is to be exchanged: nobody is there, or a unit is being computed."""
        return self.size == 1 or self.is_computing


_group = _Group()


# ------------------------------------------------------------------------------------- who is there
def rank() -> int:
    """The number of this process, from 0."""
    return _group.rank


def size() -> int:
    """How many processes there are."""
    return _group.size


def on_this_machine() -> int:
    """How many processes share this machine's memory."""
    return _number("LOCAL_WORLD_SIZE", default=1) if _group.size > 1 else 1


def own_device(device: str) -> str:
    """The device of this process where one kind of device is asked for: its own of the machine's GPUs."""
    return f"cuda:{_number('LOCAL_RANK', default=0)}" if device == "cuda" and _group.size > 1 else device


def model_is_spread() -> None:
    """Say that one model lies across all processes: each then computes every unit, and `share` splits nothing."""
    _group.is_whole = True


@contextmanager
def joined() -> Iterator[None]:
    """Meet the other processes that a launcher started, as the variables WORLD_SIZE, RANK and MASTER_ADDR tell.

    Raises:
        ValueError: only some of these variables are set.
        ProcessLost: the others cannot be reached, or one of them has ended.
        ChildProcessError: an error in another process, which it names.
    """
    global _group
    n = _number("WORLD_SIZE", default=1)
    if n == 1:
        yield
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {n}, so this is one of {n} processes, but {', '.join(missing)} is not set. Start them with "
            f"'torchrun --nproc-per-node {n} -m grains_ref.cli ...', or unset WORLD_SIZE"
        )
    import torch.distributed as dist

    with ExitStack() as at_end:
        if dist.is_initialized():
            gloo = dist.new_group(backend="gloo", timeout=PATIENCE)
            at_end.callback(dist.destroy_process_group, gloo)
        else:
            with _exchanging():
                dist.init_process_group("gloo", timeout=PATIENCE)
            at_end.callback(dist.destroy_process_group)
            gloo = dist.group.WORLD
        at_end.enter_context(_ending_when_asked())
        _group = _Group(_number("RANK", default=0), n, gloo)
        try:
            yield
            _gathered(_Outcome(END))
        except ProcessLost:
            raise
        except Exception as error:
            if not is_told(error):
                _gathered(_Outcome(END, error=error))
            raise
        finally:
            _group = _Group()


# ------------------------------------------------------------------------------------- the work
def share(units: Sequence[Unit], compute: Callable[[Unit], Result]) -> Iterator[Result]:
    """The result of every unit, in order, in every process; unit i is computed by process i % size.

    One round of as many units as there are processes is computed when its first result is asked for.  Whoever stops
    early does so in all processes.

    Raises:
        Exception: what `compute` raised for a unit, in its place, in every process.
    """
    if _group.is_alone or _group.is_whole:
        yield from map(compute, units)
        return
    for start in range(0, len(units), _group.size):
        of_round = units[start : start + _group.size]
        step = f"units {start} to {start + len(of_round) - 1} of {len(units)}"
        own = _Outcome(step)
        if _group.rank < len(of_round):
            _group.is_computing = True
            try:
                own = _outcome_of(step, lambda unit=of_round[_group.rank]: compute(unit))  # type: ignore[misc]
            finally:
                _group.is_computing = False
        for outcome in _gathered(own)[: len(of_round)]:
            yield _result_of(outcome)


def first(do: Callable[[], Result], *, runs_model: bool = False) -> Result:
    """What the first process does alone, for instance with a file; the result, or the error, is that of all.

    runs_model: `do` runs the model; where one model lies across all processes, all of them run it, and the result is
    the first one's all the same.

    Raises:
        Exception: what `do` raised.
    """
    if _group.is_alone:
        return do()
    takes_part = _group.rank == 0 or (runs_model and _group.is_whole)
    own = _outcome_of("first", do) if takes_part else _Outcome("first")
    result: Result = _result_of(_gathered(own)[0])
    return result


def by_first(method: Callable[..., Result]) -> Callable[..., Result]:
    """A method that is run as `first` does it."""

    @functools.wraps(method)
    def run(*given: Any, **named: Any) -> Result:
        return first(lambda: method(*given, **named))

    return run


@contextmanager
def held_by_first(manager: AbstractContextManager[object]) -> Iterator[None]:
    """A lock, for instance, that the first process holds for all."""

    def enter() -> None:
        held.enter_context(manager)

    with ExitStack() as held:
        first(enter)
        yield


def check_same(what: str, digest: str) -> None:
    """Refuse processes that are not at the same work, for instance because one of them has another model's files.

    Raises:
        ValueError: this digest is another one elsewhere.
    """
    if _group.is_alone:
        return
    digests = [outcome.result for outcome in _gathered(_Outcome("check", digest))]
    others = [str(number) for number, of_other in enumerate(digests) if of_other != digests[0]]
    if others:
        raise _told(
            ValueError(
                f"{what}: not the same in process 0 and in {', '.join(others)}. Give every machine the same files, "
                "options and versions"
            )
        )


def is_told(error: BaseException) -> bool:
    """Whether all processes have this error, so that the first one tells it for all."""
    return bool(getattr(error, "is_told_by_first", False))


# ------------------------------------------------------------------------------------- exchanges
def _outcome_of(step: str, do: Callable[[], Any]) -> _Outcome:
    try:
        return _Outcome(step, do())
    except Exception as error:
        return _Outcome(step, error=error)


def _result_of(outcome: _Outcome) -> Any:
    if outcome.error:
        raise _told(outcome.error)
    return outcome.result


def _told(error: Exception) -> Exception:
    error.is_told_by_first = True  # type: ignore[attr-defined]
    return error


def _gathered(own: _Outcome) -> list[_Outcome]:
    """What every process has to tell, by rank, when all are there.

    Raises:
        ProcessLost: one of them has ended.
        RuntimeError: they are at different places of the program.
    """
    import torch.distributed as dist

    _group.steps += 1
    own = own._replace(step=f"{_group.steps}: {own.step}")
    sent = own._replace(error=_portable(own.error))
    outcomes: list[Any] = [None] * _group.size
    with _exchanging():
        dist.all_gather_object(outcomes, sent, group=_group.gloo)
    outcomes = [_Outcome(*outcome) for outcome in outcomes]
    outcomes[_group.rank] = own  # its own error, with where it was raised
    for number, outcome in enumerate(outcomes):
        if outcome.error and outcome.step.endswith(END):
            _raise_end(outcome.error, number)
    steps = [outcome.step for outcome in outcomes]
    if len(set(steps)) > 1:
        raise _told(
            RuntimeError(
                f"the processes are at different steps ({'; '.join(steps)}). Do all have the same command, files and "
                "versions?"
            )
        )
    return outcomes


def _raise_end(error: Exception, number: int) -> NoReturn:
    """The error that ended a process, in all of them."""
    if number == _group.rank:
        raise _told(error)
    raise _told(ChildProcessError(f"process {number} of {_group.size} failed: {type(error).__name__}: {error}"))


def _portable(error: Exception | None) -> Exception | None:
    """The error itself, or its words in one that can be sent."""
    if error is None:
        return None
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return ChildProcessError(f"{type(error).__name__}: {error}")
    return error


@contextmanager
def _exchanging() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # all that gloo raises
        raise ProcessLost(f"another process of this run has ended. {AGAIN}") from error


@contextmanager
def _ending_when_asked() -> Iterator[None]:
    """SIGTERM, which launchers send when one of the processes has ended, as an error with words."""

    def end(*_: object) -> None:
        raise ProcessLost(f"asked to end (SIGTERM), as launchers do when another process has ended. {AGAIN}")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _number(name: str, *, default: int) -> int:
    """A whole number from an environment variable.

    Raises:
        ValueError: it is none.
    """
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal():
        raise ValueError(f"the environment variable {name} is {text!r}; expected a whole number, as launchers set it")
    return int(text)
