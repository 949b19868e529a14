"""The conformance vectors on disk: for ports in any language, and for anyone who wants to look at a number.

    python -m grains_ref.conformance.vectors fixtures/vectors/v1

writes everything anew, bit for bit the same on one machine:

    MANIFEST.json            digests, numbers of cases, versions
    budgets.json             noise, budget and weakest bug per stage and dtype (see `budgets`)
    schema/*.schema.json     JSON Schemas of all files and of the JSON-lines protocol
    toy.safetensors          the toy decoder's weights
    paper/STAGE.json         the cases, in the manner of Wycheproof: what each is for, which bugs it catches
    paper/STAGE.safetensors  their arrays, "CASE/in/NAME" and "CASE/out/NAME", float64 or int64

Vectors are never edited in place: what is wrong gets a new id in a new version.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from grains_ref.conformance.budgets import Budget, measure
from grains_ref.conformance.bugs import BUGS
from grains_ref.conformance.cases import CASES, FLAGS, Case
from grains_ref.conformance.ports import json_numbers, numbers_of_json
from grains_ref.conformance.stages import DTYPES, OUTPUTS, run_oracle
from grains_ref.conformance.toy import toy_weights

VERSION = "v1"
HEADERS = {
    "objective": "Eq. (1): summed log-probabilities of both answers and their difference, in nats.",
    "attribution": "Eq. (2): one score per prompt token, in nats; the given quadrature, never a node at 0.",
    "selection": "Eq. (3): at most k tokens of strictly the right sign, strongest first, ties to the lower index.",
    "contrast": "Eq. (4): shifts of the last prompt token's state after every block when a set is masked.",
    "aggregation": "Eq. (5), (6): first component of the centred shifts, unit length, signed by their mean; v.",
    "steering": "Eq. (7), (8): the vector added, every token's norm restored.",
    "generation": "Sect. 3.3: logits of the steered decoder for a given continuation, and its own greedy one.",
}


def root() -> Path:
    """Where the installed vectors lie."""
    return Path(str(resources.files("grains_ref.fixtures"))) / "vectors" / VERSION


def load_budgets(folder: Path | None = None) -> dict[tuple[str, str], Budget]:
    """The stored budgets by stage and dtype."""
    rows = json.loads(((folder or root()) / "budgets.json").read_text())["budgets"]
    return {(row["stage"], row["dtype"]): Budget(**row) for row in rows}


def write(folder: Path, budgets: Iterable[Budget] = ()) -> None:
    """Write all vectors into an empty or an earlier folder; without `budgets` they are measured, in two minutes."""
    (folder / "paper").mkdir(parents=True, exist_ok=True)
    (folder / "schema").mkdir(exist_ok=True)
    for name, schema in schemas().items():
        _write_json(folder / "schema" / f"{name}.schema.json", schema)
    save_file(toy_weights(), folder / "toy.safetensors")
    budgets = list(budgets) or [measure(stage, dtype) for stage in OUTPUTS for dtype in DTYPES]
    _write_json(folder / "budgets.json", {"budgets": [asdict(budget) for budget in budgets]})
    by_key = {(budget.stage, budget.dtype): budget for budget in budgets}
    for stage in OUTPUTS:
        arrays: dict[str, np.ndarray] = {}
        tests = [_test(case, by_key, arrays) for case in CASES if case.stage == stage]
        used = {flag for case in CASES if case.stage == stage for flag in case.flags}
        _write_json(
            folder / "paper" / f"{stage}.json",
            {
                "schema": "../schema/vectors.schema.json",
                "stage": stage,
                "dialect": "paper",
                "numberOfTests": len(tests),
                "source": {"name": "grains_ref", "version": VERSION},
                "header": HEADERS[stage],
                "notes": {flag: _note(FLAGS[flag]) for flag in sorted(used)},
                "plantedBugs": {bug.name: bug.description for bug in BUGS if bug.stage == stage},
                "tests": tests,
            },
        )
        save_file(arrays, folder / "paper" / f"{stage}.safetensors")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "MANIFEST.json")
    _write_json(
        folder / "MANIFEST.json",
        {
            "version": VERSION,
            "dialects": ["paper"],
            "numberOfTests": {stage: sum(case.stage == stage for case in CASES) for stage in OUTPUTS},
            "plantedBugs": len(BUGS),
            "generator": {"python": platform.python_version()}
            | {package: metadata.version(package) for package in ("numpy", "torch", "safetensors")},
            "sha256": {
                path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
            },
        },
    )


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
    for stage, number in manifest["numberOfTests"].items():
        tests = json.loads((folder / "paper" / f"{stage}.json").read_text(encoding="utf-8"))["tests"]
        stored, here = {test["id"] for test in tests}, {case.id for case in CASES if case.stage == stage}
        if len(stored) < number or not stored <= here:
            raise ValueError(f"{stage}: the manifest promises {number} cases, {len(stored & here)} exist. {again}.")


def stored_case(folder: Path, stage: str, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and outputs of one stored case."""
    arrays = load_file(folder / "paper" / f"{stage}.safetensors")
    tests = json.loads((folder / "paper" / f"{stage}.json").read_text())["tests"]
    (test,) = [test for test in tests if test["id"] == name]

    def resolved(values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: arrays[value["tensor"].partition("#")[2]] if isinstance(value, dict) else numbers_of_json(value)
            for key, value in values.items()
        }

    return resolved(test["in"]), resolved(test.get("out", {}))


def _test(case: Case, budgets: Mapping[tuple[str, str], Budget], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    def stored(values: Mapping[str, Any], side: str) -> dict[str, Any]:
        shown = {}
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                key = f"{case.id}/{side}/{name}"
                arrays[key] = np.ascontiguousarray(value)
                shown[name] = {"tensor": f"{case.stage}.safetensors#{key}"}
            else:
                shown[name] = json_numbers(value)
        return shown

    test: dict[str, Any] = {
        "id": case.id,
        "comment": case.comment,
        "flags": list(case.flags),
        "result": case.result,
        "in": stored(case.inputs, "in"),
    }
    if case.result != "invalid":
        test["out"] = stored(run_oracle(case.stage, case.inputs), "out")
    claimed = {dtype: budgets[case.stage, dtype] for dtype in DTYPES}
    return test | {
        "kills": list(case.kills),
        "budget": {dtype: budget.budget if budget.claimable else None for dtype, budget in claimed.items()},
    }


def _note(flag: Any) -> dict[str, str]:
    return {"bugType": flag.bug_type, "description": flag.description, "effect": flag.effect}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------- schemas
DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TENSOR = {
    "type": "object",
    "properties": {"tensor": {"type": "string", "pattern": "^[^#]+#.+$"}},
    "required": ["tensor"],
    "additionalProperties": False,
}
_VALUE = {"anyOf": [{"type": ["number", "string", "array"]}, _TENSOR]}
_VALUES = {"type": "object", "additionalProperties": _VALUE}
_STAGE = {"enum": list(OUTPUTS)}
_DTYPE = {"enum": list(DTYPES)}


def _object(properties: Mapping[str, Any], *, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schemas by name."""
    text, texts = {"type": "string"}, {"type": "array", "items": {"type": "string"}}
    bug_types = sorted({flag.bug_type for flag in FLAGS.values()})
    note = _object({"bugType": {"enum": bug_types}, "description": text, "effect": text})
    test = _object(
        {
            "id": {"type": "string", "pattern": "^[a-z]+-[0-9]{3}$"},
            "comment": text,
            "flags": texts,
            "result": {"enum": ["valid", "invalid", "acceptable"]},
            "in": _VALUES,
            "out": _VALUES,
            "kills": texts,
            "budget": {"type": "object", "additionalProperties": {"type": ["number", "null"]}},
        },
        optional=("out",),
    )
    vectors = _object(
        {
            "schema": text,
            "stage": _STAGE,
            "dialect": {"enum": ["paper", "authors"]},
            "numberOfTests": {"type": "integer", "minimum": 1},
            "source": _object({"name": text, "version": text}),
            "header": text,
            "notes": {"type": "object", "additionalProperties": note},
            "plantedBugs": {"type": "object", "additionalProperties": text},
            "tests": {"type": "array", "items": test, "minItems": 1},
        }
    )
    seq = {"type": "integer", "minimum": 1}
    request = {
        "oneOf": [
            _object({"cmd": {"const": "start"}, "version": {"const": 1}}),
            _object(
                {"cmd": {"const": "run"}, "seq": seq, "stage": _STAGE, "case": text, "dtype": _DTYPE, "in": _VALUES}
            ),
            _object({"cmd": {"const": "stop"}}),
        ]
    }
    hello = _object(
        {
            "version": {"const": 1},
            "name": text,
            "stages": {"type": "array", "items": _STAGE},
            "dtypes": {"type": "array", "items": _DTYPE},
            "arrays": {"enum": ["inline", "safetensors"]},
        }
    )
    answer = {
        "oneOf": [hello, _object({"seq": seq, "out": _VALUES})]
        + [_object({"seq": seq, kind: text}) for kind in ("refused", "skipped", "error")]
    }
    budget = _object(
        {
            "stage": _STAGE,
            "dtype": _DTYPE,
            "noise": {"type": "number"},
            "budget": {"type": "number"},
            "weakest_bug": text,
            "weakest_error": {"type": "number"},
        }
    )
    named = {
        "vectors": vectors,
        "protocol-request": request,
        "protocol-answer": answer,
        "budgets": _object({"budgets": {"type": "array", "items": budget}}),
    }
    return {name: {"$schema": DIALECT, "title": f"grains_ref {name}", **schema} for name, schema in named.items()}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m grains_ref.conformance.vectors FOLDER")
    torch.set_num_threads(1)  # the tensors are far too small for a second one
    write(Path(sys.argv[1]))
