"""processes.py: work that is split gives the bits of one process, and nobody waits for a process that has ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from robustness import interruptions
from robustness.interruptions import SIMPLE, finish, world
from several import Ended, command_in, in_processes
from shared import first_quick

from grains_ref import fast
from grains_ref.evaluation import choice
from grains_ref.fast.memory import Memory
from grains_ref.files import processes
from grains_ref.fitting import resumable
from grains_ref.models import scoring

pytestmark = pytest.mark.cpu


def in_group(n: int, work: Callable[[int], Any]) -> list[Ended]:
    def inside(rank: int) -> Any:
        try:
            with processes.joined():
                return work(rank)
        except Exception as error:
            return type(error).__name__, str(error), processes.is_told(error)

    return in_processes(n, inside)


# --- the three calls


def test_results_come_in_the_order_of_the_units_whoever_is_the_quickest() -> None:
    def work(rank: int) -> Any:
        order: list[int] = []

        def compute(unit: int) -> int:
            if rank == 0:
                signal.sigtimedwait([], 0.05)  # the first process is the slowest
            order.append(unit)
            return unit * unit

        return list(processes.share(range(7), compute)), order

    ended = in_group(3, work)
    assert [one.result[0] for one in ended] == [[0, 1, 4, 9, 16, 25, 36]] * 3
    assert [one.result[1] for one in ended] == [[0, 3, 6], [1, 4], [2, 5]]  # each unit once, none lost


def test_alone_nothing_is_exchanged_and_only_what_is_asked_for_is_computed() -> None:
    computed: list[int] = []
    results = processes.share([1, 2, 3], lambda unit: computed.append(unit) or unit)  # type: ignore[func-returns-value]
    assert (next(results), computed) == (1, [1])
    with processes.joined():
        assert (processes.rank(), processes.size(), processes.first(lambda: 5)) == (0, 1, 5)


def test_inside_a_unit_work_is_not_split_again() -> None:
    def work(rank: int) -> Any:
        return list(processes.share(range(3), lambda unit: list(processes.share(range(unit), lambda one: one))))

    assert [one.result for one in in_group(2, work)] == [[[], [0], [0, 1]]] * 2


def test_the_first_process_alone_does_what_all_need_once() -> None:
    def work(rank: int) -> Any:
        called: list[int] = []

        def do() -> int:
            called.append(rank)
            return 10 + rank

        return processes.first(do), called

    assert [one.result for one in in_group(3, work)] == [(10, [0]), (10, []), (10, [])]


def test_a_model_that_lies_across_all_processes_is_run_by_all() -> None:
    def work(rank: int) -> Any:
        processes.model_is_spread()
        measuring: list[int] = []

        def measure() -> int:
            measuring.append(rank)
            return rank

        shared = list(processes.share(range(3), lambda unit: (unit, rank)))
        return shared, processes.first(lambda: rank), processes.first(measure, runs_model=True), measuring

    ended = in_group(2, work)
    assert [one.result for one in ended] == [([(0, r), (1, r), (2, r)], 0, 0, [r]) for r in (0, 1)]


def test_an_error_in_a_unit_is_the_error_of_all_after_the_results_before_it() -> None:
    def work(rank: int) -> Any:
        seen = []

        def compute(unit: int) -> int:
            if unit == 3:
                raise FloatingPointError("example 3 is not finite")
            return unit

        try:
            for result in processes.share(range(6), compute):
                seen.append(result)
        except FloatingPointError as error:
            return seen, str(error), processes.is_told(error)

    assert [one.result for one in in_group(2, work)] == [([0, 1, 2], "example 3 is not finite", True)] * 2


def test_an_error_in_one_process_alone_ends_the_others_with_its_name() -> None:
    def work(rank: int) -> Any:
        if rank == 1:
            raise OSError("no such model here")
        return list(processes.share(range(4), lambda unit: unit))

    first, second, third = (one.result for one in in_group(3, work))
    assert second == ("OSError", "no such model here", True)
    assert first == third == ("ChildProcessError", "process 1 of 3 failed: OSError: no such model here", True)


def test_processes_at_different_steps_are_refused_in_words() -> None:
    def work(rank: int) -> Any:
        return list(processes.share(range(4 + rank), lambda unit: unit))

    name, words, _ = in_group(2, work)[0].result
    assert name == "RuntimeError"
    assert "different steps (1: units 0 to 1 of 4; 1: units 0 to 1 of 5)" in words


def test_processes_with_other_data_are_refused_in_words() -> None:
    first, second = (one.result for one in in_group(2, lambda rank: processes.check_same("the pairs", f"{rank}")))
    assert first == second
    assert first[:2] == (
        "ValueError",
        "the pairs: not the same in process 0 and in 1. Give every machine the same files, options and versions",
    )


def test_a_killed_process_ends_the_others_at_their_next_exchange() -> None:
    def work(rank: int) -> Any:
        def compute(unit: int) -> int:
            if unit == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return unit

        return list(processes.share(range(9), compute))

    first, second, third = in_group(3, work)
    assert first.code == -signal.SIGKILL  # unit 3 is that of process 0
    for one in (second, third):
        name, words, _ = one.result
        assert name == "ProcessLost"
        assert "run the same command again, with any number of processes" in words


def test_who_is_asked_to_end_says_why() -> None:
    def work(rank: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    for one in in_group(2, work):
        assert one.result[0] == "ProcessLost"
        assert "asked to end (SIGTERM), as launchers do when another process has ended" in one.result[1]


def test_a_half_set_environment_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"RANK, MASTER_ADDR, MASTER_PORT is not set.*torchrun"), processes.joined():
        pass
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match="WORLD_SIZE is 'two'; expected a whole number"), processes.joined():
        pass


def test_several_processes_share_the_memory_of_their_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured() -> int:
        import torch

        ones = torch.ones(1000, requires_grad=True)
        return fast.memory.measured(
            lambda: (ones * ones).sum(), tokens=1, share="2MiB", device=torch.device("cpu")
        ).pass_tokens

    alone = measured()
    monkeypatch.setattr(fast.memory, "on_this_machine", lambda: 2)
    assert Memory().pass_tokens > alone > measured()


# --- the commands

SMALL = ("--memory", "1MiB")  # many batches


def fit_command(out: Path) -> list[str | Path]:
    pairs = ("--pairs", world() / "steer.jsonl")
    return ["fit", *SIMPLE, *pairs, "--out", out, "--m", "2", *SMALL, "--aggregation", "mean", "--json"]


def sweep_command(out: Path) -> list[str | Path]:
    files = ["--pairs", world() / "steer.jsonl", "--dev", world() / "dev.jsonl", "--tasks", world() / "dev_tasks.jsonl"]
    grid = ["--lam", "5,16", "--k", "2,3", "--max-loss", "100", "--aggregation", "mean"]
    return ["sweep", *SIMPLE, *files, *grid, *SMALL, "--out", out, "--json"]


COMMANDS = {"sweep": sweep_command, "fit": fit_command}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vectors of `fit_command` in one process."""
    out = tmp_path_factory.mktemp("alone") / "v"
    finish(as_texts(fit_command(out)))
    return out


def as_texts(command: list[str | Path]) -> list[str]:
    return [str(word) for word in command]


@pytest.mark.parametrize(("name", "n"), first_quick([("fit", 3), ("sweep", 2), ("fit", 2), ("sweep", 3)], 2))
def test_vectors_and_numbers_are_those_of_one_process_bit_for_bit(name: str, n: int, tmp_path: Path) -> None:
    one, several = tmp_path / "one", tmp_path / "several"
    expected = finish(as_texts(COMMANDS[name](one)))
    first, *others = (ended.result for ended in command_in(n, COMMANDS[name](several)))
    assert (first.code, first.err.strip()) == (0, "")
    assert json.loads(first.out) == expected | {"vectors": str(several)}
    assert several.read_bytes() == one.read_bytes()
    assert {(other.code, other.out, other.err) for other in others} == {(0, "", "")}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "several"]


def test_an_eval_has_the_numbers_of_one_process(fitted: Path) -> None:
    files = ["--pairs", world() / "dev.jsonl", "--tasks", world() / "dev_tasks.jsonl"]
    command = ["eval", *SIMPLE, *files, "--vectors", fitted, "--lam", "5", "--json"]
    with monkeypatched_batches():
        expected = finish(as_texts(command))
        first, second = (ended.result for ended in command_in(2, command))
    assert json.loads(first.out) == expected
    assert (second.code, second.out, second.err) == (0, "", "")


@contextmanager
def monkeypatched_batches() -> Iterator[None]:
    """Batches so small that there is something to split."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "BATCH_TOKENS", 64)
        yield


def test_tasks_are_counted_as_far_as_by_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    rights = [True, False, False, True, False, True, False, True, True, False]
    monkeypatch.setattr(choice, "exact_matches", lambda model, some: list(some))

    def count(rank: int = 0) -> int:
        return choice.wrong_answers(None, rights, allowed=3, chunk=2)  # type: ignore[arg-type]

    assert count() == 4  # of the first four chunks; three hold three
    assert [ended.result for ended in in_group(2, count)] == [4, 4]


def test_an_edit_gradient_is_that_of_one_process(tmp_path: Path) -> None:
    def command(out: Path) -> list[str | Path]:
        return ["fit", *SIMPLE, "--pairs", world() / "steer.jsonl", "--out", out, "--method", "edit_gradient"]

    finish([*as_texts(command(tmp_path / "one")), "--json"])
    command_in(2, command(tmp_path / "several"))
    assert (tmp_path / "several").read_bytes() == (tmp_path / "one").read_bytes()


def test_the_first_process_decides_how_much_goes_through_the_model_at_once(tmp_path: Path) -> None:
    def command(out: Path) -> list[str | Path]:
        return ["fit", *SIMPLE, "--pairs", world() / "steer.jsonl", "--out", out, "--m", "2", "--aggregation", "mean"]

    def little_memory(rank: int) -> None:
        if rank == 1:
            fast.memory.free_bytes = lambda device: 1

    finish([*as_texts(command(tmp_path / "one")), "--json"])
    first, second = command_in(2, command(tmp_path / "several"), before=little_memory)
    assert (first.result.code, second.result.code) == (0, 0)
    assert (tmp_path / "several").read_bytes() == (tmp_path / "one").read_bytes()


def killed_at_its_second_batch(rank: int) -> None:
    """Process 1 ends as by `kill -9`."""
    compute, calls = resumable._computed_shifts, [0]

    def count(*given: Any) -> Any:
        calls[0] += 1
        if rank == 1 and calls[0] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return compute(*given)

    resumable._computed_shifts = count


def test_a_fit_that_loses_a_process_is_taken_up_by_another_number_of_processes(fitted: Path, tmp_path: Path) -> None:
    several = tmp_path / "several"
    first, second, third = command_in(3, fit_command(several), before=killed_at_its_second_batch)
    assert second.code == -signal.SIGKILL
    for other in (first, third):
        assert other.result.code == 1
        assert "ProcessLost: another process of this run has ended" in other.result.err
        assert "with any number of processes" in other.result.err
    kept = len([name for name in os.listdir(f"{several}.work") if name.endswith(".safetensors")])
    assert kept >= 3  # the whole first round
    again = json.loads(command_in(2, fit_command(several))[0].result.out)
    assert again["resumed"] == kept
    assert several.read_bytes() == fitted.read_bytes()
    assert not Path(f"{several}.work").exists()


def test_an_error_that_all_have_is_told_once(tmp_path: Path) -> None:
    first, second = command_in(2, ["fit", *SIMPLE, "--pairs", tmp_path / "none.jsonl", "--out", tmp_path / "v"])
    assert first.result.code == second.result.code == 1
    assert "none.jsonl" in first.result.err
    assert second.result.err == ""


def test_an_error_of_another_process_is_told_by_the_first(tmp_path: Path) -> None:
    def before(rank: int) -> None:
        def no_model(*given: Any) -> Any:
            raise FileNotFoundError("there is no folder /models/m")

        if rank == 1:
            interruptions._load_model = no_model

    first, second = command_in(2, fit_command(tmp_path / "v"), before=before)
    assert "process 1 of 2 failed: FileNotFoundError: there is no folder /models/m" in first.result.err
    assert (first.result.code, second.result.code, second.result.err) == (1, 1, "")


@pytest.mark.thorough
@pytest.mark.parametrize("launcher", [["torch.distributed.run"], ["accelerate.commands.launch", "--cpu"]])
def test_under_real_launchers(launcher: list[str], tmp_path: Path) -> None:
    one, several = tmp_path / "one", tmp_path / "several"
    expected = finish(as_texts(fit_command(one)))
    is_accelerate = "accelerate" in launcher[0]
    n = "--num_processes" if is_accelerate else "--nproc-per-node"
    before_options = [] if is_accelerate else ["--"]  # torchrun takes --m for an option of its own
    command = [
        sys.executable,
        "-m",
        *launcher,
        n,
        "2",
        "-m",
        *before_options,
        "grains_ref.cli",
        *as_texts(fit_command(several)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": "29577"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected | {"vectors": str(several)}
    assert several.read_bytes() == one.read_bytes()
