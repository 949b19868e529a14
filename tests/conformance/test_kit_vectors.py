"""The stored vectors: valid by their schemas, complete, and the same whenever they are written anew."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
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
from safetensors.numpy import load_file, save_file
from shared import first_quick
from typer.testing import CliRunner

from grains_ref.cli import app
from grains_ref.conformance import budgets, toy, vectors
from grains_ref.conformance.budgets import allowed, load_budgets, measure, table
from grains_ref.conformance.cases import CASES, FLAGS, Case
from grains_ref.conformance.cases.generated import first_components
from grains_ref.conformance.compare import distance, judge
from grains_ref.conformance.components import OtherRow, Span
from grains_ref.conformance.dialects import DIALECTS, Dialect
from grains_ref.conformance.margins import Variant
from grains_ref.conformance.ports import FolderPort, decode_values, encode_values
from grains_ref.conformance.report import write_junit
from grains_ref.conformance.runner import Result, Run, run_port
from grains_ref.conformance.schemas import schemas
from grains_ref.conformance.stages import DTYPES, OUTPUTS, STAGES, run_oracle

pytestmark = pytest.mark.cpu

ROOT = budgets.root()
SCHEMAS = {path.name.removesuffix(".schema.json"): path for path in (ROOT / "schema").glob("*.json")}
LIMIT = 4_000_000


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(read(SCHEMAS[name]))


# ---------------------------------------------------------------------------------------------- schemas
@pytest.mark.parametrize("name", sorted(schemas()))
def test_schemas_are_schemas_and_are_those_of_the_code(name: str) -> None:
    assert read(SCHEMAS[name]) == schemas()[name]
    jsonschema.Draft202012Validator.check_schema(read(SCHEMAS[name]))


FILES = [pytest.param(d, stage, id=f"{d.name}-{stage}") for d in DIALECTS.values() for stage in d.oracle]


@pytest.mark.parametrize(("dialect", "stage"), FILES)
def test_every_file_of_cases_is_valid(dialect: Dialect, stage: str) -> None:
    content = read(ROOT / dialect.name / f"{stage}.json")
    validator("vectors").validate(content)
    with pytest.raises(jsonschema.ValidationError):
        validator("vectors").validate(content | {"more": 1})
    assert (content["dialect"], content["numberOfTests"]) == (dialect.name, len(content["tests"]))
    assert set(content["notes"]) == {flag for test in content["tests"] for flag in test["flags"]} <= set(FLAGS)
    known = {bug.name for bug in dialect.bugs_of(stage)}
    assert set(content["plantedBugs"]) == known
    assert {name for test in content["tests"] for name in test["kills"]} == known
    assert all(("out" in test) == (test["result"] != "invalid") for test in content["tests"])


def test_accepted_and_margins_are_part_of_the_schema() -> None:
    content = read(ROOT / "paper" / "selection.json")
    test = next(test for test in content["tests"] if test["id"] == "selection-025")
    for spoilt in ({"margins": {"gap": 1.0}}, {"margins": {"pos": "wide"}}, {"accepted": [{"out": {}}]}, {"odd": 1}):
        with pytest.raises(jsonschema.ValidationError):
            validator("vectors").validate(content | {"tests": [test | spoilt]})


def test_accepted_rows_and_spans_are_part_of_the_schema() -> None:
    content = read(ROOT / "authors" / "aggregation.json")
    test = next(test for test in content["tests"] if test["id"] == "aggregation-006")
    row = next(one for one in test["accepted"] if "row" in one)
    span = next(one for one in test["accepted"] if "span" in one)
    for one in (row, span, span | {"toward": span["span"]}):
        validator("vectors").validate(content | {"tests": [test | {"accepted": [one]}]})
    mixed, elsewhere = row | {"span": span["span"]}, row | {"of": "v"}
    without = {name: value for name, value in span.items() if name != "gap"}
    for wrong in (mixed, elsewhere, without, row | {"layer": -1}, row | {"row": [1.0]}):
        with pytest.raises(jsonschema.ValidationError):
            validator("vectors").validate(content | {"tests": [test | {"accepted": [wrong]}]})


@pytest.mark.parametrize("dialect", DIALECTS)
def test_budgets_are_valid_and_cover_every_stage_and_dtype(dialect: str) -> None:
    place = "budgets.json" if dialect == "paper" else f"{dialect}/budgets.json"
    validator("budgets").validate(read(ROOT / place))
    stored = load_budgets(dialect)
    assert list(stored) == [(stage, dtype) for stage in DIALECTS[dialect].oracle for dtype in DTYPES]
    unclaimable = {key for key, budget in stored.items() if not budget.claimable and key[0] in STAGES}
    more = {("attribution", "float16"), ("steering", "float16")} if dialect == "authors" else set()
    assert unclaimable == {("attribution", "bfloat16")} | more
    assert len(table(stored.values()).splitlines()) == 2 + len(stored)


def test_budgets_are_what_is_measured() -> None:
    """One of 28: all of them take a minute. Where an entry lies between two of bfloat16's, processors may differ."""
    again, stored = measure("steering", "bfloat16"), load_budgets()["steering", "bfloat16"]
    assert again.weakest_bug == stored.weakest_bug
    assert again.budget == pytest.approx(stored.budget, rel=0.1)


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
@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All vectors written into an empty folder."""
    folder = tmp_path_factory.mktemp("again")
    vectors.write(folder, {name: load_budgets(name).values() for name in DIALECTS})
    return folder


def files_of(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def changed(folder: Path) -> list[str]:
    """The files that are not those of the checkout, byte for byte."""
    assert files_of(folder) == files_of(ROOT)
    return [path.as_posix() for path in files_of(ROOT) if (folder / path).read_bytes() != (ROOT / path).read_bytes()]


@pytest.mark.thorough
def test_written_again_vectors_are_the_same_byte_for_byte_on_every_processor(copy: Path) -> None:
    vectors.write(copy)
    assert changed(copy) == []


@pytest.mark.thorough
def test_what_is_not_rounding_is_written_anew(copy: Path) -> None:
    place = copy / "paper" / "steering.safetensors"
    arrays = load_file(place)
    arrays["steering-001/out/h"] = arrays["steering-001/out/h"] * (1 + 1e-10)
    arrays["steering-002/out/h"] = arrays["steering-002/out/h"] * (1 + 1e-13)
    save_file(arrays, place)
    (copy / "budgets.json").write_text((ROOT / "budgets.json").read_text().replace('"noise": 0.0,', '"noise": 0.5,'))
    vectors.write(copy)
    assert changed(copy) == ["MANIFEST.json", "budgets.json", "paper/steering.safetensors"]
    mended, stored = load_file(place), load_file(ROOT / "paper" / "steering.safetensors")
    np.testing.assert_allclose(mended["steering-001/out/h"], stored["steering-001/out/h"], rtol=1e-13)
    np.testing.assert_array_equal(mended["steering-002/out/h"], arrays["steering-002/out/h"])
    assert load_budgets(folder=copy)["selection", "float64"].noise == 0.5  # measured once, then kept


@pytest.mark.thorough
def test_written_afresh_they_have_the_same_text_and_the_same_numbers_but_for_rounding(again: Path) -> None:
    assert len(files_of(again)) == 3 + 2 + 2 * len(FILES) + len(SCHEMAS)
    assert files_of(again) == files_of(ROOT)
    for path in (path for path in files_of(ROOT) if path.suffix == ".json" and path.name != "MANIFEST.json"):
        ours, stored = read(again / path), read(ROOT / path)
        for test in (test for one in (ours, stored) for test in one.get("tests", ())):
            if path.stem.startswith("objective"):
                test.pop("out", None)  # three numbers with all their digits, compared below
        assert ours == stored, path
    for path in (path for path in files_of(ROOT) if path.suffix == ".safetensors"):
        ours, stored = load_file(again / path), load_file(ROOT / path)
        assert list(ours) == list(stored), path
        for key, value in stored.items():
            if "/accepted/" in key:
                np.testing.assert_allclose(ours[key], value, rtol=0, atol=vectors.KEPT, err_msg=key)
            elif "/out/" not in key:
                assert ours[key].tobytes() == value.tobytes(), key  # of a NaN too


@pytest.mark.parametrize(("dialect", "stage"), FILES)
def test_stored_cases_are_those_of_the_code(dialect: Dialect, stage: str) -> None:
    for case in (case for case in dialect.cases if case.stage == stage):
        inputs, right = vectors.stored_case(ROOT, dialect.name, case.id)
        assert list(inputs) == list(case.inputs)
        for name, value in inputs.items():
            np.testing.assert_array_equal(np.asarray(value), np.asarray(case.inputs[name]), err_msg=f"{case.id} {name}")
        if case.result != "invalid":
            assert set(right.out) == set(OUTPUTS[stage])


# Those of the other dialect are held within the budgets by test_kit_authors.py.
@pytest.mark.parametrize(("dialect", "stage"), first_quick(FILES, len(DIALECTS["paper"].oracle)))
def test_stored_answers_are_those_of_the_code_but_for_rounding(dialect: Dialect, stage: str) -> None:
    for case in (case for case in dialect.cases if case.stage == stage and case.result != "invalid"):
        stored = vectors.right_of(dialect.name, case.id, ROOT).out
        made = vectors._output(dialect.name, case.id)  # what would be written
        assert set(stored) == set(made)
        assert distance(stage, case.inputs, stored, made) <= vectors.KEPT, case.id


FIRST = {  # digests of what revision 1 asked, and of its answers where only one is right
    "objective": "06802e195866c8a6",
    "attribution": "7376f406a2efac0a",
    "selection": "6cd51533364e97b0",
    "contrast": "08da3360a81b4fdb",
    "aggregation": "871f2b79c44f0926",
    "steering": "7bcd9378eb6b17e3",
    "generation": "aeb657044693f3aa",
}


def digest_of_first(stage: str) -> str:
    """Of inputs, outputs and results, as bytes, of the cases of revision 1; ill-posed ones have no one output."""
    arrays, digest = load_file(ROOT / "paper" / f"{stage}.safetensors"), hashlib.sha256()
    for test in read(ROOT / "paper" / f"{stage}.json")["tests"][: vectors.FEWEST["paper"][stage]]:
        sides = ("in",) if test["result"] == "acceptable" else ("in", "out")
        asked = {name: test[name] for name in ("id", "result", *sides) if name in test}
        digest.update(json.dumps(asked, sort_keys=True).encode())
        for key in sorted(key for key in arrays if key.startswith(tuple(f"{test['id']}/{side}/" for side in sides))):
            value = arrays[key]
            digest.update(np.where(np.isnan(value), np.nan, value).tobytes() if value.dtype.kind == "f" else value)
    return digest.hexdigest()[:16]


@pytest.mark.parametrize("stage", STAGES)
def test_what_revision_1_asked_and_answered_was_never_edited(stage: str) -> None:
    assert digest_of_first(stage) == FIRST[stage]


# --------------------------------------------------------------------------------- accepted and margins
ILL_POSED = [(d, case) for d in DIALECTS.values() for case in d.cases if case.result == "acceptable"]


@pytest.mark.parametrize(("dialect", "case"), ILL_POSED, ids=[f"{d.name} {case.id}" for d, case in ILL_POSED])
def test_accepted_outputs_are_right_from_their_error_on_and_wrong_below(dialect: Dialect, case: Case) -> None:
    right = vectors.right_of(dialect.name, case.id)
    assert right.accepted
    for variant in (one for one in right.accepted if isinstance(one, Variant)):
        got = right.out | variant.out
        assert judge(case.stage, case.inputs, got, budget=max(variant.begins, 1e-9), right=right).ok, variant
        if variant.begins > 1e-9:
            assert not judge(case.stage, case.inputs, got, budget=variant.begins / 4, right=right).ok, variant
        without = dataclasses.replace(right, accepted=())
        if case.stage == "selection":  # and nothing but the list allows it
            assert not judge(case.stage, case.inputs, got, budget=2**-7, right=without).ok


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_span_is_accepted_from_its_error_on_and_not_below(dialect: str) -> None:
    """A gap of a thousandth: float32 tells these components apart, bfloat16 does not."""
    inputs, right = DIALECTS[dialect].case("aggregation-006").inputs, vectors.right_of(dialect, "aggregation-006")
    spans = [one for one in right.accepted if isinstance(one, Span)]
    assert len(spans) == 6
    for span in spans:
        out = {name: value.copy() for name, value in right.out.items()}
        stored = out[span.of][span.layer]
        beside = max(span.basis - np.outer(span.basis @ stored, stored), key=np.linalg.norm)  # the second component
        if span.toward is not None and beside @ span.toward < 0:
            beside = -beside
        out[span.of][span.layer] = beside / np.linalg.norm(beside)
        out["v"] = out["v_pos"] - out["v_neg"]
        assert judge("aggregation", inputs, out, budget=1.01 * span.begins, right=right).ok
        assert not judge("aggregation", inputs, out, budget=span.begins / 10, right=right).ok


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_list_of_accepted_sets_is_complete(dtype: str) -> None:
    """Every ordered choice, by the rule in words: scores off by the dtype's step may not turn it over."""
    for name in ("selection-025", "selection-026"):
        case, right = DIALECTS["paper"].case(name), vectors.right_of("paper", name)
        budget = allowed(case, dtype, load_budgets()["selection", dtype])
        a, tau = case.inputs["a"], 2 * budget * np.abs(case.inputs["a"]).max()
        for side, signed in (("pos", a), ("neg", -a)):
            kth = signed[right.out[side][-1]]
            for order in itertools.permutations(np.flatnonzero(signed > 0).tolist(), len(right.out[side])):
                must = all(j in order for j in range(len(a)) if signed[j] > kth + tau)
                may = all(signed[j] >= kth - tau for j in order)
                ordered = all(signed[i] >= signed[j] - tau for i, j in itertools.pairwise(order))
                got = right.out | {side: list(order)}
                judged = judge("selection", case.inputs, got, budget=budget, right=right)
                assert judged.ok == (must and may and ordered), (name, order)


def test_margins_tell_how_far_the_next_decision_is() -> None:
    gap = {name: vectors.right_of("paper", f"selection-{name}").margins for name in ("001", "005", "006", "009", "022")}
    assert gap["001"] == {"pos": (1 - 0.75) / 3, "neg": (1.25 - 0.375) / 3}
    assert gap["005"]["pos"] is None  # an empty set
    assert gap["006"]["neg"] is None
    assert gap["009"]["pos"] == 0  # an exact tie
    assert gap["022"]["pos"] == pytest.approx(2 / 128 / (1 + 5 / 128))  # 3 and 1 of 128
    assert vectors.right_of("paper", "aggregation-004").margins["gap_pos"] == [0.5] * 3
    assert vectors.right_of("paper", "aggregation-007").margins["gap_pos"] == [0.0] * 3
    assert vectors.right_of("authors", "aggregation-005").margins["sign_pos"] == [0.0] * 3
    left = vectors.right_of("paper", "steering-012").margins["left"]
    assert left[0][2] == left[1][0] == 0 < left[0][0] < 1
    assert vectors.right_of("paper", "steering-013").margins["left"][0][1] == pytest.approx(2**-25, rel=1e-5)
    assert None not in vectors.right_of("paper", "steering-011").margins["left"][0]
    steps = np.array(vectors.right_of("paper", "generation-002").margins["tokens"])
    assert steps.shape == (3, 6)
    assert 0 < steps.min() < steps.max() < 1
    assert vectors.right_of("authors", "generation-002").margins == {}


def test_the_comparator_uses_the_stored_margins() -> None:
    case, right = DIALECTS["paper"].case("generation-002"), vectors.right_of("paper", "generation-002")
    got = right.out | {"tokens": (right.out["tokens"] + 1) % 31}
    assert not judge("generation", case.inputs, got, budget=1e-4, right=right).ok
    close = dataclasses.replace(right, margins={"tokens": np.full((3, 6), 1e-5).tolist()})
    assert judge("generation", case.inputs, got, budget=1e-4, right=close).ok
    case, right = DIALECTS["paper"].case("aggregation-001"), vectors.right_of("paper", "aggregation-001")
    turned = {"v_pos": -right.out["v_pos"], "v_neg": right.out["v_neg"]}
    turned["v"] = turned["v_pos"] - turned["v_neg"]
    assert not judge("aggregation", case.inputs, turned, budget=1e-5, right=right).ok
    free = tuple(OtherRow("v_pos", layer, turned["v_pos"][layer], 0.0, "made up") for layer in range(3))
    unsigned = dataclasses.replace(right, accepted=free)
    assert judge("aggregation", case.inputs, turned, budget=1e-5, right=unsigned).ok
    gapless = dataclasses.replace(unsigned, margins=right.margins | {"gap_pos": [1e-5] * 3})
    assert not judge("aggregation", case.inputs, turned, budget=1e-5, right=gapless).ok


def test_stored_weights_are_the_closed_form() -> None:
    for file, weights in (("toy", toy.toy_weights()), ("toy-features", toy.more_weights())):
        stored = load_file(ROOT / f"{file}.safetensors")
        assert set(stored) == set(weights)
        for name, weight in weights.items():
            np.testing.assert_array_equal(stored[name], weight, err_msg=name)


@pytest.mark.parametrize("name", ["aggregation-029", "aggregation-030"])
def test_generated_shifts_have_the_component_that_the_rule_promises(name: str) -> None:
    """Closed form: neither of the oracles is asked."""
    case, out = DIALECTS["paper"].case(name), vectors.right_of("paper", name).out
    for side in ("pos", "neg"):
        rule = case.generated[f"delta_{side}"]
        np.testing.assert_allclose(out[f"v_{side}"], first_components(**rule), rtol=0, atol=1e-13)
        test = next(t for t in read(ROOT / "paper" / "aggregation.json")["tests"] if t["id"] == name)
        assert test["in"][f"delta_{side}"] == {"generated": rule}
    assert vectors.right_of("paper", name).margins["gap_pos"] == [pytest.approx(50 / 246, rel=1e-5)]


# --------------------------------------------------------------------------------------------- complete
def test_vectors_are_small_and_complete() -> None:
    vectors.check_complete(ROOT)
    manifest = read(ROOT / "MANIFEST.json")
    files = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file()}
    assert files == {"MANIFEST.json", *manifest["sha256"]}
    assert sum((ROOT / name).stat().st_size for name in files) < LIMIT
    assert manifest["revision"] == 4
    for name, dialect in DIALECTS.items():
        assert sum(manifest["numberOfTests"][name].values()) == len(dialect.cases)
        assert manifest["plantedBugs"][name] == len(dialect.bugs)
    assert manifest["plantedBugs"]["paper"] >= 60


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
    paper = DIALECTS["paper"]
    monkeypatch.setitem(vectors.DIALECTS, "paper", dataclasses.replace(paper, cases=paper.cases[1:]))
    with pytest.raises(ValueError, match="paper, objective: the manifest promises 35 cases, 34 exist"):
        vectors.check_complete(ROOT)
    monkeypatch.undo()
    monkeypatch.setitem(vectors.FEWEST["authors"], "steering", 29)  # whatever the manifest says
    with pytest.raises(ValueError, match="authors, steering: the manifest promises 29 cases, 28 exist"):
        vectors.check_complete(ROOT)
    with pytest.raises(ValueError, match="no manifest"):
        vectors.check_complete(copy / "nowhere")


def test_the_command_refuses_a_corpus_that_was_changed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "budgets.json").write_text("{}")
    monkeypatch.setattr(budgets, "root", lambda: copy)
    found = CliRunner().invoke(app, ["conform", "smoke", "--port", "grains_ref.conformance.second_oracle"])
    assert found.exit_code == 1
    assert "budgets.json is missing or was changed" in found.output.replace("\n", "")


# ----------------------------------------------------------------------------------- dump, fill, verify
def test_dump_fill_and_verify(tmp_path: Path) -> None:
    folder = tmp_path / "cases"
    assert CliRunner().invoke(app, ["conform", "dump", str(folder)]).exit_code == 0
    assert len(list((folder / "in").glob("*.json"))) == len(CASES)
    for path in (folder / "in").glob("s*.json"):  # selection and steering
        case = read(path)
        if case["stage"] not in STAGES:
            continue
        inputs = {name: np.array(v) if isinstance(v, list) else v for name, v in decode_values(case["in"]).items()}
        try:
            answer = {"out": encode_values(run_oracle(case["stage"], inputs), None)}
        except ValueError as refusal:
            answer = {"refused": str(refusal)}
        (folder / "out" / "float32" / path.name).write_text(json.dumps(answer))
    for file in ("toy", "toy-features"):
        assert set(load_file(ROOT / f"{file}.safetensors")) == set(read(folder / f"{file}.json")) - {"constants"}
    found = CliRunner().invoke(app, ["conform", "verify", str(folder)])
    assert found.exit_code == 0, found.output
    said = " ".join(found.output.split())
    assert "Not claimed, not checked: objective, attribution, contrast, aggregation, generation" in said
    (folder / "out" / "float32" / "steering-003.json").unlink()
    result = run_port(FolderPort(folder), load_budgets(), modes=("isolated",))
    assert [r.case for r in result.results if r.status == "skipped"] == ["steering-003"]


def test_junit_holds_whatever_a_program_prints(tmp_path: Path) -> None:
    from xml.etree import ElementTree

    failed = Result("steering-001", "steering", "float32", "isolated", "failed", message="\x00\x1b[31m<&> é")
    write_junit(Run("mine", ("steering",), ("float32",), (failed,)), tmp_path / "run.xml")
    (failure,) = ElementTree.parse(tmp_path / "run.xml").getroot().iter("failure")
    assert failure.get("message") == "\ufffd\ufffd[31m<&> é"


def test_json_and_junit_files(tmp_path: Path) -> None:
    from xml.etree import ElementTree

    files = ["--json", str(tmp_path / "run.json"), "--junit", str(tmp_path / "run.xml")]
    command = [
        "conform",
        "run",
        "--port",
        "grains_ref.conformance.second_oracle",
        "--only",
        "steering",
        "--dtype",
        "float32",
    ]
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
    names["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # the tests need none, and loading them takes a while
    found = subprocess.run(
        [*command, "--pyargs", "grains_ref.conformance"],
        cwd=folder, env=names, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return found.stdout


@pytest.mark.thorough
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
    assert "This output is ours with 0 / 0 where h~ is zero (cancelled_to_nan), to 0e+00" in said
    assert "['steering-999'] == []" in said
    assert "XPASS(strict)" in said


def test_budgets_are_plain_numbers() -> None:
    for budget in (*load_budgets().values(), *load_budgets("authors").values()):
        assert all(np.isfinite(v) for v in dataclasses.asdict(budget).values() if isinstance(v, float))
