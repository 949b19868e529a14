"""A sweep with a work folder: what is finished is not computed again, and the choice is the same bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from robustness import sweeps
from robustness.sweeps import DEV, GRID, HPS, TASKS, sweep_in
from robustness.work_folders import SmallModel, examples

from grains_ref.evaluation.choice import SweepChoice
from grains_ref.files import FileError
from grains_ref.fitting.work_folder import WorkFolderError, open_work_folder

pytestmark = pytest.mark.cpu


def run(folder: Path, **changes: Any) -> tuple[SweepChoice, list[str]]:
    with open_work_folder(folder, work="sweep") as work:
        return sweep_in(work, **changes)


@pytest.fixture(scope="module")
def whole() -> SweepChoice:
    return sweep_in(None)[0]


class Stopped(Exception):
    """What stands for a crash."""


def stop_after(n: int) -> Any:
    """Something to be called on progress, which raises the n-th time."""
    count = 0

    def called(*_: object) -> None:
        nonlocal count
        count += 1
        if count == n:
            raise Stopped

    return called


@pytest.mark.parametrize("n", [1, 3, 4, 6, 10])
def test_a_sweep_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path, whole: SweepChoice, n: int) -> None:
    with pytest.raises(Stopped):
        run(tmp_path / "work", on_progress=stop_after(n))
    found, calls = run(tmp_path / "work")
    assert sweeps.same(found, whole)
    assert calls.count("attribute") == max(0, 3 - n)
    again, calls = run(tmp_path / "work")
    assert sweeps.same(again, whole)
    assert calls == []


@pytest.mark.parametrize("lost", ["scores", "shift"])
def test_the_fast_engine_goes_on_to_the_same_bits_whatever_is_lost(tmp_path: Path, lost: str) -> None:
    whole, _ = run(tmp_path / "work", engine="fast")
    path = next(path for path in sorted((tmp_path / "work").iterdir()) if path.name.startswith(lost))
    content = path.read_bytes()
    path.unlink()
    found, calls = run(tmp_path / "work", engine="fast")
    assert sweeps.same(found, whole)
    assert path.read_bytes() == content
    assert calls == []  # nothing is measured again
    with pytest.raises(WorkFolderError, match="holds a sweep with other engine"):
        run(tmp_path / "work")


def test_a_setting_that_overflowed_is_told_again_in_the_same_words(tmp_path: Path, whole: SweepChoice) -> None:
    assert [left.why for left in whole.left_out] == ["lam |v| is beyond float32"]
    for _ in range(2):
        assert run(tmp_path / "work")[0].left_out == whole.left_out


def test_another_grid_costs_what_is_new_in_it(tmp_path: Path) -> None:
    run(tmp_path / "work")
    wider = replace(GRID, lams=(1.0, 3.0), hps=(*HPS, replace(HPS[0], aggregation="mean")))
    found, calls = run(tmp_path / "work", grid=wider)
    assert set(calls) <= {"dev", "tasks"}
    assert calls.count("dev") == 4 + 1  # lam 3 of each, and lam 1 of the new one
    assert sweeps.same(found, sweep_in(None, grid=wider)[0])
    found, calls = run(tmp_path / "work", max_loss=0.0)
    assert set(calls) == {"tasks"}  # counted as far as is allowed
    assert sweeps.same(found, sweep_in(None, max_loss=0.0)[0])


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"model": SmallModel(fingerprint="e" * 64)}, "fingerprint"),
        ({"examples": examples(seed=1)}, "examples"),
        ({"examples": examples()[::-1]}, "examples"),
    ],
)
def test_other_inputs_are_refused(tmp_path: Path, changes: dict[str, Any], name: str) -> None:
    run(tmp_path / "work")
    with pytest.raises(WorkFolderError, match=rf"holds a sweep with other {name}\."):
        run(tmp_path / "work", **changes)


@pytest.mark.parametrize(("rows", "name"), [("DEV", "dev_pairs"), ("TASKS", "tasks")])
def test_other_dev_pairs_and_tasks_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: str, name: str
) -> None:
    run(tmp_path / "work")
    monkeypatch.setattr(sweeps, rows, {"DEV": DEV, "TASKS": TASKS}[rows][1:])
    with pytest.raises(WorkFolderError, match=rf"holds a sweep with other {name}\."):
        run(tmp_path / "work")


def test_any_flipped_bit_of_a_measurement_is_seen_and_costs_that_measurement(
    tmp_path: Path, whole: SweepChoice
) -> None:
    run(tmp_path / "work")
    path = next(path for path in sorted((tmp_path / "work").iterdir()) if path.name.startswith("dev-"))
    content = path.read_bytes()
    for i in range(0, len(content), 4):
        flipped = content[:i] + bytes([content[i] ^ 1 << i % 8]) + content[i + 1 :]
        path.write_bytes(flipped)
        if _says_the_same(flipped, content):
            continue
        with pytest.raises(WorkFolderError, match="delete this file and run the command again") as error:
            run(tmp_path / "work")
        assert str(path) in str(error.value)
    path.unlink()
    found, calls = run(tmp_path / "work")
    assert calls == ["dev"]
    assert sweeps.same(found, whole)


def _says_the_same(flipped: bytes, content: bytes) -> bool:
    """Whether a changed file holds the same numbers: the last of seventeen digits is not always needed."""
    try:
        return bool(json.loads(flipped) == json.loads(content))
    except ValueError:
        return False


def test_the_folder_of_a_fit_is_none_of_a_sweep_and_a_second_sweep_is_refused(tmp_path: Path) -> None:
    from robustness import work_folders

    for name, content in work_folders.finished()[0].items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WorkFolderError, match=r"is not empty and not a work folder .* fit\.json"):
        run(tmp_path)
    with (
        open_work_folder(tmp_path / "work", work="sweep"),
        pytest.raises(FileError, match="a sweep is running there already"),
    ):
        run(tmp_path / "work")


def test_a_finished_sweep_leaves_nothing_and_says_what_is_not_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    with open_work_folder(folder, work="sweep") as work:
        sweep_in(work)
        (folder / "dev-notes.json").write_text("the user's own")
        assert [path.name for path in work.discard()] == ["dev-notes.json"]
    assert [path.name for path in folder.iterdir()] == ["dev-notes.json"]


def test_a_sweep_without_a_folder_is_the_same(tmp_path: Path, whole: SweepChoice) -> None:
    assert sweeps.same(run(tmp_path / "work")[0], whole)
    assert torch.equal(run(tmp_path / "work")[0].best.fit.v, whole.best.fit.v)
