"""The stored vectors: valid by their schemas, complete, and the same whenever they are written anew."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from grains_ref.cli import app
from grains_ref.conformance import toy, vectors
from grains_ref.conformance.budgets import measure, table
from grains_ref.conformance.bugs import BUGS
from grains_ref.conformance.cases import CASES, FLAGS
from grains_ref.conformance.compare import distance
from grains_ref.conformance.ports import FolderPort, decode_values, encode_values
from grains_ref.conformance.report import write_junit
from grains_ref.conformance.runner import Result, Run, run_port
from grains_ref.conformance.stages import DTYPES, OUTPUTS, run_oracle

pytestmark = pytest.mark.cpu

ROOT = vectors.root()
SCHEMAS = {path.name.removesuffix(".schema.json"): path for path in (ROOT / "schema").glob("*.json")}
LIMIT = 5_000_000


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(read(SCHEMAS[name]))


# ---------------------------------------------------------------------------------------------- schemas
@pytest.mark.parametrize("name", sorted(vectors.schemas()))
def test_schemas_are_schemas_and_are_those_of_the_code(name: str) -> None:
    assert read(SCHEMAS[name]) == vectors.schemas()[name]
    jsonschema.Draft202012Validator.check_schema(read(SCHEMAS[name]))


@pytest.mark.parametrize("stage", OUTPUTS)
def test_every_file_of_cases_is_valid(stage: str) -> None:
    content = read(ROOT / "paper" / f"{stage}.json")
    validator("vectors").validate(content)
    with pytest.raises(jsonschema.ValidationError):
        validator("vectors").validate(content | {"more": 1})
    assert content["numberOfTests"] == len(content["tests"])
    assert set(content["notes"]) == {flag for test in content["tests"] for flag in test["flags"]} <= set(FLAGS)
    known = {bug.name for bug in BUGS if bug.stage == stage}
    assert set(content["plantedBugs"]) == known
    assert {name for test in content["tests"] for name in test["kills"]} == known
    assert all(("out" in test) == (test["result"] != "invalid") for test in content["tests"])


def test_budgets_are_valid_and_cover_every_stage_and_dtype() -> None:
    validator("budgets").validate(read(ROOT / "budgets.json"))
    budgets = vectors.load_budgets()
    assert list(budgets) == [(stage, dtype) for stage in OUTPUTS for dtype in DTYPES]
    unclaimable = [key for key, budget in budgets.items() if not budget.claimable]
    assert unclaimable == [("attribution", "bfloat16")]
    assert len(table(budgets.values()).splitlines()) == 2 + len(budgets)


def test_budgets_are_what_is_measured() -> None:
    """One of 28: all of them take a minute."""
    again, stored = measure("steering", "bfloat16"), vectors.load_budgets()["steering", "bfloat16"]
    assert again.weakest_bug == stored.weakest_bug
    assert again.budget == pytest.approx(stored.budget, rel=1e-6)


@pytest.mark.parametrize("name", ["objective-001", "steering-024", "generation-002"])  # the second has lam = NaN
def test_protocol_messages_are_valid(name: str) -> None:
    (case,) = (case for case in CASES if case.id == name)
    inputs = encode_values(case.inputs, None)
    request = {"cmd": "run", "seq": 7, "stage": case.stage, "case": case.id, "dtype": "float32", "in": inputs}
    for message in ({"cmd": "start", "version": 1}, request, {"cmd": "stop"}):
        validator("protocol-request").validate(json.loads(json.dumps(message, allow_nan=False)))
    hello = {"version": 1, "name": "x", "stages": ["steering"], "dtypes": ["float32"], "arrays": "inline"}
    for answer in (hello, {"seq": 7, "refused": "bad"}, {"seq": 7, "out": {"h": [[1.0, "NaN"]]}}):
        validator("protocol-answer").validate(answer)
    with pytest.raises(jsonschema.ValidationError):
        validator("protocol-answer").validate({"seq": 7, "out": {}, "refused": "both"})


# ----------------------------------------------------------------------------------------- reproducible
def test_two_generations_are_byte_identical_and_inputs_are_those_stored(tmp_path: Path) -> None:
    budgets = list(vectors.load_budgets().values())
    for name in ("one", "two"):
        vectors.write(tmp_path / name, budgets)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 2 + 1 + 2 * len(OUTPUTS) + len(SCHEMAS)
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes(), path
    for path in (path for path in files if path.suffix == ".json" and path.name != "MANIFEST.json"):
        assert same_json(read(tmp_path / "one" / path), read(ROOT / path)), path


def same_json(ours: Any, stored: Any) -> bool:
    """The same but for floats, which another machine's mathematics library may round differently."""
    if isinstance(ours, dict):
        return set(ours) == set(stored) and all(same_json(ours[name], stored[name]) for name in ours)
    if isinstance(ours, list):
        return len(ours) == len(stored) and all(same_json(a, b) for a, b in zip(ours, stored, strict=True))
    return ours == (pytest.approx(stored, rel=1e-11) if isinstance(ours, float) else stored)


@pytest.mark.parametrize("stage", OUTPUTS)
def test_stored_cases_are_those_of_the_code(stage: str) -> None:
    for case in (case for case in CASES if case.stage == stage):
        inputs, outputs = vectors.stored_case(ROOT, stage, case.id)
        assert list(inputs) == list(case.inputs)
        for name, value in inputs.items():
            np.testing.assert_array_equal(np.asarray(value), np.asarray(case.inputs[name]), err_msg=f"{case.id} {name}")
        if case.result != "invalid":
            again = run_oracle(stage, case.inputs)
            if case.result == "valid":
                assert distance(stage, case.inputs, outputs, again) <= 1e-11, case.id
            assert set(outputs) == set(again) == set(OUTPUTS[stage])


def test_stored_weights_are_the_closed_form() -> None:
    stored = load_file(ROOT / "toy.safetensors")
    assert set(stored) == set(toy.SHAPES)
    for name, weight in toy.toy_weights().items():
        np.testing.assert_array_equal(stored[name], weight, err_msg=name)


# --------------------------------------------------------------------------------------------- complete
def test_vectors_are_small_and_complete() -> None:
    vectors.check_complete(ROOT)
    manifest = read(ROOT / "MANIFEST.json")
    files = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file()}
    assert files == {"MANIFEST.json", *manifest["sha256"]}
    assert sum((ROOT / name).stat().st_size for name in files) < LIMIT
    assert sum(manifest["numberOfTests"].values()) == len(CASES)
    assert manifest["plantedBugs"] == len(BUGS) >= 60


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT, tmp_path / "v1"))


def test_an_edited_a_missing_and_a_shrunken_corpus_are_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy / "paper" / "steering.json"
    path.write_text(path.read_text().replace("steering-001", "steering-901"))
    with pytest.raises(ValueError, match=r"steering.json is missing or was changed.*Install grains_ref again"):
        vectors.check_complete(copy)
    path.unlink()
    with pytest.raises(ValueError, match="is missing"):
        vectors.check_complete(copy)
    monkeypatch.setattr(vectors, "CASES", CASES[1:])
    with pytest.raises(ValueError, match="objective: the manifest promises 34 cases, 33 exist"):
        vectors.check_complete(ROOT)
    with pytest.raises(ValueError, match="no manifest"):
        vectors.check_complete(copy / "nowhere")


def test_the_command_refuses_a_corpus_that_was_changed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "budgets.json").write_text("{}")
    monkeypatch.setattr(vectors, "root", lambda: copy)
    found = CliRunner().invoke(app, ["conform", "smoke", "--port", "grains_ref.conformance.slow"])
    assert found.exit_code == 1
    assert "budgets.json is missing or was changed" in found.output.replace("\n", "")


# ----------------------------------------------------------------------------------- dump, fill, verify
def test_dump_fill_and_verify(tmp_path: Path) -> None:
    folder = tmp_path / "cases"
    assert CliRunner().invoke(app, ["conform", "dump", str(folder)]).exit_code == 0
    assert len(list((folder / "in").glob("*.json"))) == len(CASES)
    for path in (folder / "in").glob("s*.json"):  # selection and steering
        case = read(path)
        inputs = {name: np.array(v) if isinstance(v, list) else v for name, v in decode_values(case["in"]).items()}
        try:
            answer = {"out": encode_values(run_oracle(case["stage"], inputs), None)}
        except ValueError as refusal:
            answer = {"refused": str(refusal)}
        (folder / "out" / "float32" / path.name).write_text(json.dumps(answer))
    assert set(load_file(ROOT / "toy.safetensors")) == set(read(folder / "toy.json"))
    found = CliRunner().invoke(app, ["conform", "verify", str(folder)])
    assert found.exit_code == 0, found.output
    said = " ".join(found.output.split())
    assert "Not claimed, not checked: objective, attribution, contrast, aggregation, generation" in said
    (folder / "out" / "float32" / "steering-003.json").unlink()
    result = run_port(FolderPort(folder), vectors.load_budgets(), modes=("isolated",))
    assert [r.case for r in result.results if r.status == "skipped"] == ["steering-003"]


def test_junit_holds_whatever_a_program_prints(tmp_path: Path) -> None:
    from xml.etree import ElementTree

    failed = Result("steering-001", "steering", "float32", "isolated", "failed", message="\x00\x1b[31m<&> é")
    write_junit(Run("mine", ("steering",), ("float32",), (failed,)), tmp_path / "run.xml")
    (failure,) = ElementTree.parse(tmp_path / "run.xml").getroot().iter("failure")
    assert failure.get("message") == "[31m<&> é"


def test_json_and_junit_files(tmp_path: Path) -> None:
    from xml.etree import ElementTree

    files = ["--json", str(tmp_path / "run.json"), "--junit", str(tmp_path / "run.xml")]
    command = ["conform", "run", "--port", "grains_ref.conformance.slow", "--only", "steering", "--dtype", "float32"]
    assert CliRunner().invoke(app, [*command, *files]).exit_code == 0
    written = read(tmp_path / "run.json")
    assert written["conformant"]
    assert written["first_divergence"] is None
    cases = ElementTree.parse(tmp_path / "run.xml").getroot().findall("testcase")
    assert len(cases) == len(written["results"]) == sum(case.stage == "steering" for case in CASES)


# --------------------------------------------------------------------------------------- as pytest tests
def pytest_on_a_port(folder: Path, port: str, **environment: str) -> str:
    """What `pytest --pyargs grains_ref.conformance` says, in a folder that is no checkout."""
    command = [sys.executable, "-m", "pytest", "-m", "cpu", "--strict-markers", "-p", "no:cacheprovider", "-rA", "-q"]
    names = os.environ | {"GRAINS_PORT": port, "OMP_NUM_THREADS": "1"} | environment
    found = subprocess.run(
        [*command, "--pyargs", "grains_ref.conformance"],
        cwd=folder, env=names, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return found.stdout


def test_the_cases_run_as_tests_of_a_port(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from grains_ref.conformance.bugs import BUGS\n"
        "steering = next(bug.function for bug in BUGS if bug.name == 'cancelled_to_nan')\n"
        "DTYPES = ('float32',)\n"
    )
    (tmp_path / "known.txt").write_text("steering-001  # passes by now\nsteering-999  # gone\n")
    said = pytest_on_a_port(tmp_path, "mine", GRAINS_PORT_XFAILS="known.txt")
    assert "FAILED" in said
    assert "steering-012, isolated, float32: h holds NaN" in said
    assert "Likely bug: 0 / 0 where h~ is zero (cancelled_to_nan)" in said
    assert "['steering-999'] == []" in said
    assert "XPASS(strict)" in said


def test_budgets_are_plain_numbers() -> None:
    for budget in vectors.load_budgets().values():
        assert all(np.isfinite(v) for v in dataclasses.asdict(budget).values() if isinstance(v, float))
