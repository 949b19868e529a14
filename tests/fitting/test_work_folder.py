"""work_folder.py: what a fit keeps is whole, its own, used by one process, and removed by nobody else."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from robustness import kills, work_folders
from robustness.work_folders import HP, PAIRS, SmallModel, fit_in
from shared import first_quick

from grains_ref import grains
from grains_ref.files import FileError, write_record
from grains_ref.fitting import FitRecord, score_settings
from grains_ref.fitting.work_folder import WorkFolderError, open_work_folder
from grains_ref.grains import HyperParameters
from grains_ref.vectors.tensor_files import parse_tensor_file, tensor_file

pytestmark = pytest.mark.cpu


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run(folder: Path, **changes: Any) -> FitRecord:
    with open_work_folder(folder) as work:
        return fit_in(work, **changes)


def same(one: FitRecord, other: FitRecord) -> bool:
    """Bit for bit."""
    parts = ("v", "v_pos", "v_neg")
    return one.vectors.header == other.vectors.header and all(
        torch.equal(getattr(one.vectors, part), getattr(other.vectors, part)) for part in parts
    )


class Stopped(Exception):
    """What stands for a crash."""


def stop_after_two(finished: int) -> None:
    if finished == 2:
        raise Stopped


@pytest.fixture
def half_done(tmp_path: Path) -> Path:
    """The folder of a fit that was stopped after two of three examples."""
    with pytest.raises(Stopped):
        run(tmp_path / "work", on_example=stop_after_two)
    assert names(tmp_path / "work") == ["000000.safetensors", "000001.safetensors", "fit.json"]
    return tmp_path / "work"


@pytest.fixture(scope="module")
def whole() -> FitRecord:
    return work_folders.finished()[1]


# --- other settings in the same folder


def forbid_computing(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def computed(*args: object) -> None:
        pytest.fail("it was computed again")

    for name in names:
        monkeypatch.setattr(grains, name, computed)


AFTER_THE_SCORES = {
    "k": 1,
    "eligible": ("no_special",),
    "mask_baseline": "one",
    "aggregation": "uncentred",
    "components": 2,
}
IN_THE_SCORES = {
    "m": 3,
    "quadrature": "midpoint",
    "objective": "likelihood",
    "attribution": "gradient",
    "path_baseline": "one",
}
OF_THE_NOISE = {"n": 3, "sigma": 0.2, "seed": 1}


def test_of_every_hyper_parameter_it_is_known_whether_it_enters_what_is_kept() -> None:
    fields = {field.name for field in dataclasses.fields(HyperParameters)}
    assert fields == AFTER_THE_SCORES.keys() | IN_THE_SCORES.keys() | OF_THE_NOISE.keys()
    assert score_settings(HP).keys() == IN_THE_SCORES.keys()
    smooth, random = (dataclasses.replace(HP, attribution=name) for name in ("smoothgrad", "random"))  # type: ignore[arg-type]
    assert OF_THE_NOISE.keys() <= score_settings(smooth).keys()
    assert "seed" in score_settings(random)
    assert not {"m", "quadrature"} & score_settings(smooth).keys()


@pytest.mark.parametrize("name", AFTER_THE_SCORES)
def test_what_comes_after_the_scores_costs_no_attribution_and_gives_the_same_bits(
    half_done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run(half_done)  # with the settings of before
    hp = dataclasses.replace(HP, **{name: AFTER_THE_SCORES[name]})
    expected = run(tmp_path / "fresh", hp=hp)
    forbid_computing(monkeypatch, "attribute", *(["shift"] if name in ("aggregation", "components") else []))
    for _ in range(2):
        record = run(half_done, hp=hp)
        assert record.resumed == len(PAIRS)
        assert same(record, expected)
        assert [s.selection for s in record.shifts] == [s.selection for s in expected.shifts]
        forbid_computing(monkeypatch, "shift")  # the new shifts are kept, too


def test_going_back_to_the_earlier_k_gives_the_earlier_vectors(half_done: Path, whole: FitRecord) -> None:
    with pytest.raises(Stopped):
        run(half_done, hp=dataclasses.replace(HP, k=1), on_example=stop_after_two)
    record = run(half_done)
    assert record.resumed == 2
    assert same(record, whole)


@pytest.mark.parametrize("name", IN_THE_SCORES)
def test_what_enters_the_scores_is_refused(half_done: Path, name: str) -> None:
    with pytest.raises(WorkFolderError, match=r"with other hyper_parameters\.") as error:
        run(half_done, hp=dataclasses.replace(HP, **{name: IN_THE_SCORES[name]}))
    assert f'"{name}"' in str(error.value)


@pytest.mark.parametrize("name", OF_THE_NOISE)
def test_another_noise_is_refused(tmp_path: Path, name: str) -> None:
    hp = dataclasses.replace(HP, attribution="smoothgrad", n=2)
    with pytest.raises(Stopped):
        run(tmp_path / "work", hp=hp, on_example=stop_after_two)
    with pytest.raises(WorkFolderError, match=r"with other hyper_parameters\."):
        run(tmp_path / "work", hp=dataclasses.replace(hp, **{name: OF_THE_NOISE[name]}))


# --- damage


def damaged(folder: Path, name: str, content: bytes) -> str:
    """The message about a folder with that file in it."""
    (folder / name).write_bytes(content)
    with pytest.raises(WorkFolderError) as error:
        run(folder)
    return str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"{}", b"[" * 99999], ids=range(6))
def test_a_damaged_record_costs_no_example(half_done: Path, whole: FitRecord, content: bytes) -> None:
    message = damaged(half_done, "fit.json", content)
    assert f"{half_done / 'fit.json'} is damaged" in message
    assert "delete this file and run the command again: what is finished is kept" in message
    (half_done / "fit.json").unlink()
    record = run(half_done)
    assert record.resumed == 2
    assert same(record, whole)


def test_any_flipped_bit_of_an_example_is_seen(half_done: Path) -> None:
    path = half_done / "000001.safetensors"
    content = path.read_bytes()
    for i in range(0, len(content), 7):
        flipped = content[:i] + bytes([content[i] ^ 1 << i % 8]) + content[i + 1 :]
        message = damaged(half_done, path.name, flipped)
        assert str(path) in message
        assert "delete this file and run the command again" in message


def edited(folder: Path, name: str, tensors: dict[str, torch.Tensor] | None = None, **changes: Any) -> bytes:
    """An example's file with other content, and digests that are right."""
    found, record = parse_tensor_file((folder / name).read_bytes(), name=name)
    return tensor_file(found | (tensors or {}), record | changes)


@pytest.mark.parametrize(
    ("tensors", "changes", "words"),
    [
        ({}, {"example": 0}, "is no finished example 1 of this fit"),
        ({}, {"fit": "of other pairs"}, "is no finished example 1 of this fit"),
        ({"a": torch.zeros(3)}, {}, r"a is torch.float32 of shape \(3,\); expected .* of shape \(4,\)"),
        ({"a": torch.zeros(4).double()}, {}, "a is torch.float64 .* expected finite values, torch.float32"),
        ({"delta_pos": torch.zeros(4, 2)}, {}, r"delta_pos is .* of shape \(4, 2\); expected .* of shape \(2, 4\)"),
        ({"delta_neg": torch.full((2, 4), torch.inf)}, {}, "delta_neg is .* expected finite values"),
        ({"b": torch.zeros(4)}, {}, "holds a, b, delta_neg, delta_pos, not a, delta_neg, delta_pos"),
    ],
)
def test_what_no_fit_could_have_written_is_refused(
    half_done: Path, whole: FitRecord, tensors: dict[str, torch.Tensor], changes: dict[str, Any], words: str
) -> None:
    path = half_done / "000001.safetensors"
    message = damaged(half_done, path.name, edited(half_done, path.name, tensors, **changes))
    assert re.search(words, message)
    assert "delete this file and run the command again" in message
    path.unlink()
    assert same(run(half_done), whole)


def test_an_example_of_another_fit_is_not_mixed_in(half_done: Path) -> None:
    other = work_folders.of_another_fit()["000001.safetensors"]
    assert "is no finished example 1 of this fit" in damaged(half_done, "000001.safetensors", other)


def test_a_record_that_lists_no_tokens_is_another_fits(half_done: Path) -> None:
    content = json.loads((half_done / "fit.json").read_text())
    del content["sha256"]
    for tokens in (None, [], 3, [1] * 9):
        write_record(half_done / "fit.json", content | {"tokens": tokens})
        with pytest.raises(WorkFolderError, match=r"holds a fit with other tokens\."):
            run(half_done)
    write_record(half_done / "fit.json", content | {"more": 1})
    with pytest.raises(WorkFolderError, match=r"holds a fit with other more\."):
        run(half_done)


def test_examples_computed_on_another_kind_of_device_are_not_mixed_in(half_done: Path) -> None:
    class Elsewhere(SmallModel):
        device = torch.device("meta")

    with pytest.raises(WorkFolderError, match=r"holds a fit with other device\."):
        run(half_done, model=Elsewhere())


def test_a_message_keeps_its_lines_and_shows_what_a_terminal_would_obey(half_done: Path) -> None:
    with pytest.raises(WorkFolderError) as error:
        run(half_done, model=SmallModel(fingerprint="\x1b[2J"))
    first, there, now, _ = str(error.value).splitlines()
    assert (first.count("\x1b"), there[:9], now[:9]) == (0, "  there: ", "  now:   ")
    assert str(WorkFolderError("a\x1bb\nc")) == "a\\x1bb\nc"


def test_scores_that_overflow_are_refused_with_their_row_and_not_kept(tmp_path: Path) -> None:
    class Overflowing(SmallModel):
        def residuals(self, encoded: Any, embeds: torch.Tensor) -> torch.Tensor:
            return super().residuals(encoded, embeds) * (1e39 if len(encoded.ids) == 4 else 1)

    with pytest.raises(FloatingPointError, match=r"pairs\.jsonl:2: delta_pos is not finite"):
        run(tmp_path / "work", model=Overflowing())
    assert names(tmp_path / "work") == ["000000.safetensors", "fit.json"]


# --- whose folder it is


@pytest.mark.parametrize("name", ["letter.txt", "000000.safetensors", "fit.txt", ".hidden"])
def test_a_folder_of_something_else_is_refused_by_name_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("dear")
    with pytest.raises(WorkFolderError, match=f"not a work folder of grains-ref: it holds {re.escape(name)}"):
        run(tmp_path)
    assert names(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "dear"


def test_vectors_under_the_name_of_an_example_are_no_work_folder(tmp_path: Path, whole: FitRecord) -> None:
    whole.vectors.save(tmp_path / "000000.safetensors")
    with pytest.raises(WorkFolderError, match=r"it holds 000000\.safetensors"):
        run(tmp_path)
    assert names(tmp_path) == ["000000.safetensors"]


def test_a_work_folder_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "work", tmp_path / ("n" * 300)):
        with pytest.raises(WorkFolderError, match="cannot be a work folder"):
            run(path)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "fit.json").mkdir()
    with pytest.raises(FileError, match="is a folder"):
        run(tmp_path / "made")


def test_a_second_fit_in_the_folder_is_refused_at_once_and_the_first_goes_on(tmp_path: Path, whole: FitRecord) -> None:
    folder = tmp_path / "work"
    with open_work_folder(folder) as work:
        for _ in range(2):
            with pytest.raises(FileError, match=r"work is in use: a fit is running there already\. Wait"):
                run(folder)
        assert same(fit_in(work), whole)
        with pytest.raises(FileError, match="is in use"):
            run(folder)
        assert work.discard() == []
    assert names(tmp_path) == []
    assert run(folder).resumed == 0


def test_nothing_is_left_of_a_fit_that_never_began(tmp_path: Path) -> None:
    with pytest.raises(Stopped), open_work_folder(tmp_path / "work"):
        raise Stopped
    assert names(tmp_path) == []


# --- what is removed


def test_only_what_the_fit_wrote_is_removed_and_the_rest_is_told(half_done: Path) -> None:
    users = ["0.safetensors", "123456.safetensors", "fit.json.bak", "v.safetensors", "000007.safetensors"]
    for name in users:
        (half_done / name).write_text("the user's own")
    with open_work_folder(half_done) as work:
        fit_in(work)
        assert [path.name for path in work.discard()] == sorted(users)
    assert names(half_done) == sorted(users)
    assert all((half_done / name).read_text() == "the user's own" for name in users)


def test_a_file_that_has_been_replaced_since_stays(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    with open_work_folder(folder) as work:
        fit_in(work)
        for name in ("000001.safetensors", "fit.json"):
            (folder / name).write_text("vectors, by --out")
        assert [path.name for path in work.discard()] == ["000001.safetensors", "fit.json"]
    assert names(folder) == ["000001.safetensors", "fit.json"]


def test_drafts_of_killed_processes_go_with_the_rest(half_done: Path) -> None:
    (half_done / ".grains-123.tmp").write_text("{")
    with open_work_folder(half_done) as work:
        fit_in(work)
        assert work.discard() == []
    assert not half_done.exists()


# --- kill -9


@pytest.mark.parametrize(
    ("kind", "every", "operations"), first_quick([("fit", 3, 40), ("sweep", 7, 60), ("reproduction", 7, 40)])
)
def test_a_kill_at_any_operation_on_the_disk_loses_at_most_the_piece_in_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, every: int, operations: int
) -> None:
    """Every few calls of a function of `os` that changes the disk, one is the last of a process; see kills.py."""
    kills.main(tmp_path, kind, every)
    assert int(capsys.readouterr().out) >= operations  # each the last one of a process
