"""kept.py: a cell that was changed is not finished, and said so; one run at a time in a folder, and its inputs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from robustness.cell_files import DRAW, FACTS, FIGURES
from typer.testing import CliRunner

from grains_ref.cli import app
from grains_ref.cli.reproduce import _inputs
from grains_ref.demo import workers
from grains_ref.files import FileError, only_writer, parse_record, record_bytes
from grains_ref.reproduction import cells, kept
from grains_ref.reproduction.full import FullRung

pytestmark = pytest.mark.cpu
ROW = ("simple", 0, "GrAInS")


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A folder with one finished cell and its facts."""
    kept.write_facts(tmp_path, "simple", 0, FACTS)
    kept.write_cell(tmp_path, *ROW, FIGURES["GrAInS"])
    return tmp_path


def left(folder: Path) -> tuple[list[kept.Unit], list[str]]:
    """What is to be run, and what was said of damage."""
    said: list[FileError] = []
    return kept.missing(folder, [ROW], on_damage=said.append), [str(problem) for problem in said]


def test_a_finished_cell_is_read_as_it_was_written(finished: Path) -> None:
    cell = kept.read_cell(finished, *ROW)
    assert cell == {"world": "simple", "seed": 0, "row": "GrAInS", "version": kept.VERSION} | FIGURES["GrAInS"]
    assert left(finished) == ([], [])


def test_any_flipped_bit_of_a_cell_is_seen_and_said(finished: Path) -> None:
    path = kept.cell_path(finished, *ROW)
    content = path.read_bytes()
    for i in range(0, len(content), 3):
        path.write_bytes(content[:i] + bytes([content[i] ^ 1 << i % 8]) + content[i + 1 :])
        units, (said,) = left(finished)
        assert units == [("simple", 0, ("GrAInS",))]
        assert str(path) in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"draws": []}, "has no draws"),
        ({"draws": 5}, "has no draws"),
        ({"draws": [DRAW | {"right": "012"}]}, "outcomes of 0 and 1"),
        ({"draws": [DRAW | {"right": 11}]}, "outcomes of 0 and 1"),
        ({"draws": [DRAW, DRAW | {"right": "01"}]}, "right for different numbers of prompts"),
        ({"draws": [DRAW | {"strength": "1"}]}, "a draw lacks"),
        ({"draws": [DRAW | {"strength": True}]}, "a draw lacks"),
        ({"draws": [DRAW | {"tried": [["x", 1.0]]}]}, "a draw lacks"),
        ({"draws": [DRAW | {"tried": [["x", 1.0, 1.5]]}]}, "a draw lacks"),
        ({"draws": [{}]}, "a draw lacks"),
        ({"draws": [7]}, "a draw lacks"),
        ({"fit_seconds": "1"}, "costs are no numbers"),
        ({"fit_bytes": []}, "costs are no numbers"),
        ({"curve": {}}, "one of draws, curve and error"),
        ({"row": "CAA"}, "not the cell 'GrAInS'"),
        ({"seed": 1}, "not the cell 'GrAInS'"),
    ],
)
def test_a_cell_of_another_shape_is_not_finished_although_its_digest_is_right(
    finished: Path, change: dict[str, Any], words: str
) -> None:
    path = kept.cell_path(finished, *ROW)
    path.write_bytes(record_bytes(parse_record(path.read_bytes(), name="cell") | change))
    units, (said,) = left(finished)
    assert units == [("simple", 0, ("GrAInS",))]
    assert words in said


def test_a_cell_of_another_version_is_run_again_without_a_word(finished: Path) -> None:
    path = kept.cell_path(finished, *ROW)
    path.write_bytes(record_bytes(parse_record(path.read_bytes(), name="cell") | {"version": "0"}))
    assert left(finished) == ([("simple", 0, ("GrAInS",))], [])


@pytest.mark.parametrize("content", [None, b"", b'["a", "b"]', record_bytes({"facts": [1]})])
def test_facts_that_are_lost_are_written_again_without_any_cell(finished: Path, content: bytes | None) -> None:
    path = kept.facts_path(finished, "simple", 0)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    units, (said,) = left(finished)
    assert units == [("simple", 0, ())]
    assert str(path) in said
    cells._fill_unit(finished, lambda *_: SimpleNamespace(facts=FACTS), units[0], lambda *_: None)  # type: ignore[arg-type, return-value]
    assert left(finished) == ([], [])


def test_a_figure_that_is_not_finite_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="simple, seed 0, GrAInS: a figure is not finite"):
        kept.write_cell(tmp_path, *ROW, FIGURES["GrAInS"] | {"fit_seconds": float("nan")})
    assert kept.read_cell(tmp_path, *ROW) is None


# --- the folder


def test_a_folder_of_other_inputs_is_refused_and_further_ones_are_added(tmp_path: Path) -> None:
    kept.claim(tmp_path, {"rung": "full", "weights of a": "/x"})
    kept.claim(tmp_path, {"rung": "full", "weights of b": "/y"})
    kept.claim(tmp_path, {"rung": "full", "weights of a": "/x"})
    with pytest.raises(FileError, match=r"(?s)cells of other inputs.*there: weights of b: /y.*now:   weights of b: /z"):
        kept.claim(tmp_path, {"rung": "full", "weights of a": "/x", "weights of b": "/z"})
    with pytest.raises(FileError, match="there: rung: full"):
        kept.claim(tmp_path, {"rung": "tiny"})
    (tmp_path / "inputs.json").write_text("{}")
    with pytest.raises(FileError, match="delete it if the cells"):
        kept.claim(tmp_path, {"rung": "tiny"})


def test_cells_of_an_unknown_engine_are_not_gone_on_with(tmp_path: Path) -> None:
    kept.claim(tmp_path, {"rung": "tiny"})
    with pytest.raises(FileError, match=r"does not say which engine .* made with --engine fast"):
        kept.claim(tmp_path, {"rung": "tiny", "engine": "fast"})


def test_inputs_name_what_the_full_rung_reads() -> None:
    rung = FullRung({"m": "/w"}, {"d": "/d"}, judge=SimpleNamespace(identity="someone"), device="cuda:1")  # type: ignore[arg-type]
    inputs = _inputs(rung)
    assert (inputs["weights of m"], inputs["data of d"], inputs["judge"]) == ("/w", "/d", "someone")
    assert inputs["device"] == "cuda"
    assert _inputs(replace(rung, engine="reference"))["engine"] == "reference"


@pytest.mark.parametrize("name", ["tables.md", "record.json"])
def test_a_file_of_somebody_else_is_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileError, match=f"holds a {name} and no cells"):
        kept.claim(tmp_path, {"rung": "tiny"})
    assert [path.name for path in tmp_path.iterdir()] == [name]


def measured(lab: Any, name: str) -> kept.Cell:
    return {"fit_seconds": 1.0, "fit_bytes": None, "draws": [DRAW]}


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A small reproduction, in this process."""

    def in_this_process(work: Any, units: Any, tick: Any, *, workers: int) -> None:
        for unit in units:
            work(unit, tick)

    monkeypatch.setattr(cells, "fill", measured)
    monkeypatch.setattr(workers, "run", in_this_process)
    monkeypatch.setattr(cells, "tiny_lab", lambda *_, engine: SimpleNamespace(facts=FACTS))
    return ["reproduce", "--quick", "--question", "candidates", "--out", str(tmp_path / "out")]


def test_cells_that_are_no_objects_are_run_again_and_said(command: list[str], tmp_path: Path) -> None:
    assert CliRunner().invoke(app, command).exit_code == 0
    pages = {name: (tmp_path / "out" / name).read_bytes() for name in ("tables.md", "record.json")}
    paths = [path for path in (tmp_path / "out" / "cells").rglob("*.json") if path.name != "facts.json"]
    for path, content in zip(paths, ("[]", "null", "5", '"x"', "", "[" * 20_000), strict=False):
        path.write_text(content)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert done.output.count("is run again") == 6
    assert {name: (tmp_path / "out" / name).read_bytes() for name in pages} == pages


def test_each_engine_has_a_folder_of_its_own(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: list[str] = []

    def lab(*_: Any, engine: str) -> Any:
        engines.append(engine)
        return SimpleNamespace(facts=FACTS)

    monkeypatch.setattr(cells, "tiny_lab", lab)
    assert CliRunner().invoke(app, [*command, "--engine", "reference"]).exit_code == 0
    assert set(engines) == {"reference"}
    assert json.loads((tmp_path / "out" / "record.json").read_text())["engine"] == "reference"
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "there: engine: reference" in done.output
    assert "now:   engine: fast" in done.output
    done = CliRunner().invoke(app, [*command[:-1], str(tmp_path / "other"), "--engine", "quick"])
    assert "--engine 'quick' does not exist; there are fast, reference" in done.output


def test_a_second_run_in_a_folder_is_refused(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with only_writer(tmp_path / "out", what="a reproduction"):
        done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "a reproduction is running there already" in " ".join(done.output.split())
    assert not list((tmp_path / "out").iterdir())


def test_an_interruption_says_how_many_cells_are_kept(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0

    def interrupted(lab: Any, name: str) -> kept.Cell:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return measured(lab, name)

    monkeypatch.setattr(cells, "fill", interrupted)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 130
    assert "interrupted; 2 of" in " ".join(done.output.split())
    assert len([path for path in (tmp_path / "out" / "cells").rglob("*.json") if path.name != "facts.json"]) == 2
    record = json.loads((tmp_path / "out" / "inputs.json").read_text())
    assert record["rung"] == "tiny"
