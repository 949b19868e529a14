"""The conformance vectors on disk: for ports in any language, and for anyone who wants to look at a number.

    python -m grains_ref.conformance.vectors fixtures/vectors/v1

writes everything anew, bit for bit the same on one machine:

    MANIFEST.json              digests, numbers of cases, revision, versions
    budgets.json               noise, budget and weakest bug per stage and dtype (see `budgets`)
    schema/*.schema.json       JSON Schemas of all files and of the JSON-lines protocol
    toy.safetensors            the toy decoder's weights
    DIALECT/STAGE.json         the cases, in the manner of Wycheproof: what each is for, which bugs it catches
    DIALECT/STAGE.safetensors  their arrays, "CASE/in/NAME" and "CASE/out/NAME", float64 or int64
    authors/budgets.json       the budgets of that dialect

What a case asks and what is right is never edited: a wrong case gets a new id, and a new revision adds files, cases
and fields. Revision 1 had the dialect `paper`; revision 2 adds `authors`, and margins and accepted outputs everywhere.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from grains_ref.conformance.budgets import VERSION, Budget, budgets_file, measure, root
from grains_ref.conformance.cases import FLAGS, Case
from grains_ref.conformance.compare import Right
from grains_ref.conformance.dialects import DIALECTS, Dialect
from grains_ref.conformance.margins import Variant, accepted_of, margins_of
from grains_ref.conformance.ports import encode_values, json_numbers, numbers_of_json
from grains_ref.conformance.stages import DTYPES, OUTPUTS
from grains_ref.conformance.toy import toy_weights

REVISION = 2
FEWEST = {  # cases per stage, in the order of the stages; a corpus may grow, never shrink
    "paper": dict(zip(OUTPUTS, (34, 31, 33, 24, 28, 27, 29), strict=True)),
    "authors": dict(zip(OUTPUTS, (34, 31, 33, 20, 22, 28, 29), strict=True)),
}


def write(folder: Path, budgets: Mapping[str, Iterable[Budget]] | None = None) -> None:
    """Write all vectors into an empty or an earlier folder.

    budgets: by dialect; default: measured anew, which takes five minutes.
    """
    (folder / "schema").mkdir(parents=True, exist_ok=True)
    for name, schema in schemas().items():
        _write_json(folder / "schema" / f"{name}.schema.json", schema)
    save_file(toy_weights(), folder / "toy.safetensors")
    for dialect in DIALECTS.values():
        (folder / dialect.name).mkdir(exist_ok=True)
        known = list(budgets[dialect.name]) if budgets else [
            measure(stage, dtype, dialect=dialect) for stage in OUTPUTS for dtype in DTYPES
        ]  # fmt: skip
        _write_json(budgets_file(folder, dialect.name), {"budgets": [asdict(budget) for budget in known]})
        by_key = {(budget.stage, budget.dtype): budget for budget in known}
        for stage in OUTPUTS:
            _write_stage(folder / dialect.name, dialect, stage, by_key)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "MANIFEST.json")
    _write_json(
        folder / "MANIFEST.json",
        {
            "version": VERSION,
            "revision": REVISION,
            "dialects": list(DIALECTS),
            "numberOfTests": {
                name: {stage: sum(case.stage == stage for case in dialect.cases) for stage in OUTPUTS}
                for name, dialect in DIALECTS.items()
            },
            "fewestTests": FEWEST,
            "plantedBugs": {name: len(dialect.bugs) for name, dialect in DIALECTS.items()},
            "generator": {"python": platform.python_version()}
            | {package: metadata.version(package) for package in ("numpy", "torch", "safetensors")},
            "sha256": {
                path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
            },
        },
    )


def _write_stage(folder: Path, dialect: Dialect, stage: str, budgets: Mapping[tuple[str, str], Budget]) -> None:
    arrays: dict[str, np.ndarray] = {}
    cases = [case for case in dialect.cases if case.stage == stage]
    tests = [_test(case, dialect, budgets, arrays) for case in cases]
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
    save_file(arrays, folder / f"{stage}.safetensors")


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
        for stage, fewest in FEWEST[name].items():
            promised = max(fewest, manifest["numberOfTests"][name][stage])
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
    arrays = load_file(folder / dialect / f"{stage}.safetensors")
    tests = json.loads((folder / dialect / f"{stage}.json").read_text(encoding="utf-8"))["tests"]

    def resolved(values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: arrays[value["tensor"].partition("#")[2]] if isinstance(value, dict) else numbers_of_json(value)
            for key, value in values.items()
        }

    def right(test: Mapping[str, Any]) -> Right:
        variants = (Variant(resolved(one["out"]), one["from"], one["why"]) for one in test["accepted"])
        return Right(resolved(test.get("out", {})), test["margins"], tuple(variants))

    return {test["id"]: (resolved(test["in"]), right(test)) for test in tests}


def _test(
    case: Case, dialect: Dialect, budgets: Mapping[tuple[str, str], Budget], arrays: dict[str, np.ndarray]
) -> dict[str, Any]:
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
        "accepted": [],
        "margins": {},
    }
    if case.result != "invalid":
        want = dialect.run(case.stage, case.inputs)
        margins = margins_of(dialect.name, case.stage, case.inputs, want)
        test |= {"out": stored(want, "out"), "margins": margins}
        if case.result == "acceptable":
            variants = accepted_of(dialect.name, case.stage, case.inputs, want, margins)
            test["accepted"] = [
                {"out": encode_values(one.out, None), "from": one.begins, "why": one.why} for one in variants
            ]
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
JSON_SCHEMA = "https://json-schema.org/draft/2020-12/schema"
_TENSOR = {
    "type": "object",
    "properties": {"tensor": {"type": "string", "pattern": "^[^#]+#.+$"}},
    "required": ["tensor"],
    "additionalProperties": False,
}
_VALUE = {"anyOf": [{"type": ["number", "string", "array"]}, _TENSOR]}
_VALUES = {"type": "object", "additionalProperties": _VALUE}
_MARGIN = {"$ref": "#/$defs/margin"}  # a number, null, or such in nested lists
MARGINS = ("pos", "neg", "gap_pos", "sign_pos", "gap_neg", "sign_neg", "tokens")
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
    variant = _object({"out": _VALUES, "from": {"type": "number", "minimum": 0}, "why": text})
    test = _object(
        {
            "id": {"type": "string", "pattern": "^[a-z]+-[0-9]{3}$"},
            "comment": text,
            "flags": texts,
            "result": {"enum": ["valid", "invalid", "acceptable"]},
            "in": _VALUES,
            "out": _VALUES,
            "accepted": {"type": "array", "items": variant},
            "margins": _object(dict.fromkeys(MARGINS, _MARGIN), optional=MARGINS),
            "kills": texts,
            "budget": {"type": "object", "additionalProperties": {"type": ["number", "null"]}},
        },
        optional=("out",),
    )
    vectors = _object(
        {
            "schema": text,
            "stage": _STAGE,
            "dialect": {"enum": list(DIALECTS)},
            "numberOfTests": {"type": "integer", "minimum": 1},
            "source": _object({"name": text, "version": text}),
            "header": text,
            "notes": {"type": "object", "additionalProperties": note},
            "plantedBugs": {"type": "object", "additionalProperties": text},
            "tests": {"type": "array", "items": test, "minItems": 1},
        }
    )
    vectors["$defs"] = {"margin": {"anyOf": [{"type": ["number", "null"]}, {"type": "array", "items": _MARGIN}]}}
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
    return {name: {"$schema": JSON_SCHEMA, "title": f"grains_ref {name}", **schema} for name, schema in named.items()}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m grains_ref.conformance.vectors FOLDER")
    torch.set_num_threads(1)  # the tensors are far too small for a second one
    write(Path(sys.argv[1]))
