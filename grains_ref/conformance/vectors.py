"""The conformance vectors on disk: for ports in any language, and for anyone who wants to look at a number.

    python -m grains_ref.conformance.vectors fixtures/vectors/v1

writes what changed. Whoever runs it, on whatever processor, gets the same files:

- inputs are whole numbers times a power of two, and margins are rounded; large inputs are not stored but given by a
  rule in whole numbers, {"generated": {"rule": "walsh", ...}} (`cases.generated`);
- what is ill-posed is stored in canonical form (`components`), with everything else that is right beside it;
- outputs have all digits of float64. The last few differ between linear algebra libraries, so a stored output is kept
  as long as the one computed here is `KEPT` close to it, a tenth of the smallest budget, and is replaced otherwise;
- budgets are measured once: those in the folder are kept, and what is new is measured, unless `--measure` asks for all
  of them anew (ten minutes), or `--weakest` for another look at which planted bug shows least (after the bugs have
  changed).

The files:

    MANIFEST.json              digests, numbers of cases, revision, versions
    budgets.json               noise, budget and weakest bug per stage and dtype (see `budgets`)
    schema/*.schema.json       JSON Schemas of all files and of the JSON-lines protocol
    toy.safetensors            the toy decoder's weights
    toy-features.safetensors   those that options of the decoder have besides
    DIALECT/STAGE.json         the cases, in the manner of Wycheproof: what each is for, which bugs it catches
    DIALECT/STAGE.safetensors  their arrays, "CASE/in/NAME", "CASE/out/NAME" and "CASE/accepted/...", float64 or int64
    DIALECT/STAGE_OPTION.*     the same for an option
    authors/budgets.json       the budgets of that dialect

What a case asks and what is right is never edited: a wrong case gets a new id, and a new revision adds files, cases
and fields. Revision 1 had the dialect `paper`; revision 2 adds `authors`, and margins and accepted outputs everywhere;
in revision 3 they are complete: components are accepted layer by layer, and ill-posed outputs are canonical. Revision 4
adds options, inputs that are given by a rule, long prompts and wide shifts.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from grains_ref.conformance.budgets import (
    VERSION,
    Budget,
    allowed,
    budgets_file,
    load_budgets,
    measure,
    root,
    runs_in,
    weakest_bug,
)
from grains_ref.conformance.cases import FLAGS, Case
from grains_ref.conformance.cases.generated import by_rule
from grains_ref.conformance.compare import Right, distance
from grains_ref.conformance.components import OtherRow, Span
from grains_ref.conformance.dialects import DIALECTS, Dialect
from grains_ref.conformance.margins import Accepted, Variant, accepted_of, canonical_of, margins_of
from grains_ref.conformance.ports import encode_values, json_numbers, numbers_of_json
from grains_ref.conformance.schemas import schemas
from grains_ref.conformance.stages import DTYPES, STAGES, Values
from grains_ref.conformance.toy import more_weights, toy_weights

REVISION = 4
KEPT = 1e-11  # how far a stored output may be from the one computed here: a tenth of the smallest budget
FEWEST = {  # cases per stage, in the order of the stages; a corpus may grow, never shrink
    "paper": dict(zip(STAGES, (34, 31, 33, 24, 28, 27, 29), strict=True)),
    "authors": dict(zip(STAGES, (34, 31, 33, 20, 22, 28, 29), strict=True)),
}


def write(folder: Path, budgets: Mapping[str, Iterable[Budget]] | None = None) -> None:
    """Write all vectors into an empty or an earlier folder; what is stored there and differs by rounding alone stays.

    budgets: by dialect; default: those in the folder; what is not there is measured.
    """
    (folder / "schema").mkdir(parents=True, exist_ok=True)
    for name, schema in schemas().items():
        _write_json(folder / "schema" / f"{name}.schema.json", schema)
    save_file(toy_weights(), folder / "toy.safetensors")
    save_file(more_weights(), folder / "toy-features.safetensors")
    for dialect in DIALECTS.values():
        (folder / dialect.name).mkdir(exist_ok=True)
        if budgets:
            known = {(budget.stage, budget.dtype): budget for budget in budgets[dialect.name]}
        else:
            known = _with_those_that_are_missing(folder, dialect)
        rows = [asdict(budget) for budget in known.values()]
        _write_json(budgets_file(folder, dialect.name), {"budgets": rows})
        for stage in dialect.oracle:
            _write_stage(folder / dialect.name, dialect, stage, known)
    _write_manifest(folder)


def _with_those_that_are_missing(folder: Path, dialect: Dialect) -> dict[tuple[str, str], Budget]:
    """The budgets in a folder, and those of stages and options that are new there, measured."""
    stored = load_budgets(dialect.name, folder) if budgets_file(folder, dialect.name).is_file() else {}
    keys = [(stage, dtype) for stage in dialect.oracle for dtype in DTYPES]
    return {key: stored[key] if key in stored else measure(*key, dialect=dialect) for key in keys}


def measured(dialect: Dialect) -> list[Budget]:
    """The budgets of a dialect, measured anew: some minutes."""
    return [measure(stage, dtype, dialect=dialect) for stage in dialect.oracle for dtype in DTYPES]


def with_weakest_bugs(folder: Path, dialect: Dialect) -> list[Budget]:
    """The stored budgets of a dialect with the weakest of the bugs that are planted now."""
    budgets = load_budgets(dialect.name, folder).values()
    stages = []
    for budget in budgets:
        name, error = weakest_bug(budget.stage, budget.dtype, dialect)
        stages.append(replace(budget, weakest_bug=name, weakest_error=error))
    return stages


def _write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "MANIFEST.json")
    content = {
        "version": VERSION,
        "revision": REVISION,
        "dialects": list(DIALECTS),
        "numberOfTests": {
            name: {stage: sum(case.stage == stage for case in dialect.cases) for stage in dialect.oracle}
            for name, dialect in DIALECTS.items()
        },
        "fewestTests": FEWEST,
        "plantedBugs": {name: len(dialect.bugs) for name, dialect in DIALECTS.items()},
        "generator": {"python": platform.python_version()}
        | {package: metadata.version(package) for package in ("numpy", "torch", "safetensors")},
        "sha256": {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
        },
    }
    place = folder / "MANIFEST.json"
    if place.is_file():
        earlier = json.loads(place.read_text(encoding="utf-8"))
        if earlier | {"generator": {}} == content | {"generator": {}}:
            return  # nothing changed: the generator is still the one that wrote these files
    _write_json(place, content)


def _write_stage(folder: Path, dialect: Dialect, stage: str, budgets: Mapping[tuple[str, str], Budget]) -> None:
    arrays = _Arrays(stage, folder / f"{stage}.safetensors")
    earlier = _read_stage(folder, stage) if (folder / f"{stage}.json").is_file() else {}
    cases = [case for case in dialect.cases if case.stage == stage]
    tests = [_test(case, dialect, budgets, arrays, earlier.get(case.id)) for case in cases]
    _write_json(
        folder / f"{stage}.json",
        {
            "schema": "../schema/vectors.schema.json",
            "stage": stage,
            "dialect": dialect.name,
            "numberOfTests": len(tests),
            "source": {"name": "grains_ref", "version": VERSION},
            "header": dialect.headers[stage],
            "notes": {flag: _note(FLAGS[flag]) for flag in sorted({flag for case in cases for flag in case.flags})},
            "plantedBugs": {bug.name: bug.description for bug in dialect.bugs_of(stage)},
            "tests": tests,
        },
    )
    save_file(arrays.written, folder / f"{stage}.safetensors")


@dataclass
class _Arrays:
    """The arrays of one stage, to be written to `path`."""

    stage: str
    path: Path
    written: dict[str, np.ndarray] = field(default_factory=dict)

    def put(self, key: str, value: np.ndarray) -> dict[str, str]:
        """Have an array written; the reference to it."""
        if value.dtype.kind == "f":
            value = np.where(np.isnan(value), np.nan, value)  # processors differ in the bits of a NaN
        self.written[key] = np.ascontiguousarray(value)
        return {"tensor": f"{self.path.name}#{key}"}

    @functools.cached_property
    def earlier(self) -> dict[str, np.ndarray]:
        """What lies in the file."""
        return load_file(self.path) if self.path.is_file() else {}

    def put_unit_vectors(self, key: str, value: np.ndarray) -> dict[str, str]:
        """The same; an earlier array that differs by rounding alone is kept."""
        stored = self.earlier.get(key)
        same = stored is not None and stored.shape == value.shape and np.abs(stored - value).max() <= KEPT
        return self.put(key, stored if same else value)  # type: ignore[arg-type]


def check_complete(folder: Path) -> None:
    """Refuse a corpus that has shrunk or changed: with half of the cases gone every port would pass.

    Raises:
        ValueError: a file is missing or has another digest, or cases of the manifest are not run.
    """
    again = "Install grains_ref again; in a checkout, `git checkout fixtures/vectors`"
    try:
        manifest = json.loads((folder / "MANIFEST.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"no manifest of conformance vectors in {folder} ({error}). {again}.") from None
    for name, digest in manifest["sha256"].items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise ValueError(f"{path} is missing or was changed; it is not the file of the manifest. {again}.")
    for name, dialect in DIALECTS.items():
        for stage in dialect.oracle:
            promised = max(FEWEST[name].get(stage, 1), manifest["numberOfTests"][name][stage])
            stored = set(_stage(folder, name, stage))
            here = {case.id for case in dialect.cases if case.stage == stage}
            if len(stored) < promised or not stored <= here:
                n = len(stored & here)
                raise ValueError(f"{name}, {stage}: the manifest promises {promised} cases, {n} exist. {again}.")


def right_of(dialect: str, case_id: str, folder: Path | None = None) -> Right:
    """What is stored as right for a valid or acceptable case."""
    return stored_case(folder or root(), dialect, case_id)[1]


def stored_case(folder: Path, dialect: str, case_id: str) -> tuple[dict[str, Any], Right]:
    """Inputs of a stored case and what is right; nothing is for an invalid one."""
    return _stage(folder, dialect, case_id.rpartition("-")[0])[case_id]


@functools.cache
def _stage(folder: Path, dialect: str, stage: str) -> dict[str, tuple[dict[str, Any], Right]]:
    return _read_stage(folder / dialect, stage)


def _read_stage(folder: Path, stage: str) -> dict[str, tuple[dict[str, Any], Right]]:
    """The stored cases of a stage by their ids; folder: that of the dialect."""
    tests = {}
    for test in plain_tests(folder, stage):
        accepted = tuple(_accepted(answer) for answer in test["accepted"])
        tests[test["id"]] = (test["in"], Right(test.get("out", {}), test["margins"], accepted))
    return tests


def plain_tests(folder: Path, stage: str) -> list[dict[str, Any]]:
    """The tests of a stage as they are stored, every reference replaced by its array; folder: that of the dialect."""
    arrays = load_file(folder / f"{stage}.safetensors")

    def resolved(value: Any) -> Any:
        if not isinstance(value, dict):
            return numbers_of_json(value)
        if set(value) == {"tensor"}:
            return arrays[value["tensor"].partition("#")[2]]
        if set(value) == {"generated"}:
            return by_rule(**value["generated"])
        return {key: resolved(inner) for key, inner in value.items()}

    tests = json.loads((folder / f"{stage}.json").read_text(encoding="utf-8"))["tests"]
    for test in tests:
        test |= {key: resolved(test[key]) for key in ("in", "out") if key in test}
        test["accepted"] = [resolved(answer) for answer in test["accepted"]]
    return list(tests)


def answer_keys(dialect: str) -> dict[str, dict[str, Any]]:
    """What is right in every stored case of a dialect, by id, as plain JSON: for judges in other languages."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(inner) for key, inner in value.items()}
        if isinstance(value, np.ndarray):
            value = value.tolist()
        return [plain(inner) for inner in value] if isinstance(value, list) else json_numbers(value)

    keys = {}
    for stage in DIALECTS[dialect].oracle:
        for test in plain_tests(root() / dialect, stage):
            names = ("result", "out", "accepted", "margins", "budget")
            keys[test["id"]] = plain({name: test[name] for name in names if name in test})
    return keys


def _accepted(stored: Mapping[str, Any]) -> Accepted:
    begins, why = stored["from"], stored["why"]
    if "out" in stored:
        return Variant(stored["out"], begins, why)
    of, layer = stored["of"], stored["layer"]
    if "row" in stored:
        return OtherRow(of, layer, stored["row"], begins, why)
    return Span(of, layer, stored["span"], stored["toward"], stored["gap"], begins, why)


@functools.cache
def _output(dialect: str, case_id: str) -> Values:
    """The dialect's output of a case in canonical form, computed once."""
    case = DIALECTS[dialect].case(case_id)
    return canonical_of(dialect, case.stage, case.inputs, DIALECTS[dialect].run(case.stage, case.inputs))


def _kept(case: Case, want: Values, earlier: tuple[dict[str, Any], Right] | None) -> Values:
    """The output to store: the earlier one, if it differs from `want` by rounding alone."""
    if earlier is None or set(stored := earlier[1].out) != set(want):
        return want
    for name, value in want.items():
        if np.shape(stored[name]) != np.shape(value):
            return want
        if np.asarray(value).dtype.kind == "i" and not np.array_equal(stored[name], value):
            return want
    return stored if distance(case.stage, case.inputs, stored, want) <= KEPT else want


def _test(
    case: Case,
    dialect: Dialect,
    budgets: Mapping[tuple[str, str], Budget],
    arrays: _Arrays,
    earlier: tuple[dict[str, Any], Right] | None,
) -> dict[str, Any]:
    def stored(values: Mapping[str, Any], side: str) -> dict[str, Any]:
        stored_inputs: dict[str, Any] = {}
        for name, value in values.items():
            if side == "in" and name in case.generated:
                stored_inputs[name] = {"generated": case.generated[name]}
            elif isinstance(value, np.ndarray):
                stored_inputs[name] = arrays.put(f"{case.id}/{side}/{name}", value)
            else:
                stored_inputs[name] = json_numbers(value)
        return stored_inputs

    test: dict[str, Any] = {
        "id": case.id,
        "comment": case.comment,
        "flags": list(case.flags),
        "result": case.result,
        "in": stored(case.inputs, "in"),
        "accepted": [],
        "margins": {},
    }
    if case.result != "invalid":
        want = _kept(case, _output(dialect.name, case.id), earlier)
        margins = margins_of(dialect.name, case.stage, case.inputs, want)
        test |= {"out": stored(want, "out"), "margins": margins}
        if case.result == "acceptable":
            others = accepted_of(dialect.name, case.stage, case.inputs, want, margins)
            test["accepted"] = [_stored_accepted(answer, case.id, arrays) for answer in others]
    may_differ = {}
    for dtype in DTYPES:
        budget = budgets[case.stage, dtype]
        judged = budget.claimable and runs_in(case, dtype)
        may_differ[dtype] = allowed(case, dtype, budget) if judged else None
    return test | {"kills": list(case.kills), "budget": may_differ}


def _stored_accepted(answer: Accepted, case_id: str, arrays: _Arrays) -> dict[str, Any]:
    last = {"from": answer.begins, "why": answer.why}
    if isinstance(answer, Variant):
        return {"out": encode_values(answer.out, None)} | last
    key, where = f"{case_id}/accepted/{answer.of}/{answer.layer}", {"of": answer.of, "layer": answer.layer}
    if isinstance(answer, OtherRow):
        return where | {"row": arrays.put_unit_vectors(f"{key}/row", answer.row)} | last
    size = len(answer.basis)
    span = arrays.put_unit_vectors(f"{key}/span-{size}", answer.basis)
    toward = None if answer.toward is None else arrays.put_unit_vectors(f"{key}/toward-{size}", answer.toward)
    return where | {"span": span, "toward": toward, "gap": answer.gap} | last


def _note(flag: Any) -> dict[str, str]:
    return {"bugType": flag.bug_type, "description": flag.description, "effect": flag.effect}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    options = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    folders = [argument for argument in sys.argv[1:] if argument not in options]
    if len(folders) != 1 or options not in ([], ["--measure"], ["--weakest"]):
        sys.exit("usage: python -m grains_ref.conformance.vectors FOLDER [--measure | --weakest]")
    torch.set_num_threads(1)  # the tensors are far too small for a second one
    new: dict[str, Iterable[Budget]] = {}
    for dialect in DIALECTS.values() if options else ():
        new[dialect.name] = (
            measured(dialect) if options == ["--measure"] else with_weakest_bugs(Path(folders[0]), dialect)
        )
    write(Path(folders[0]), new)
