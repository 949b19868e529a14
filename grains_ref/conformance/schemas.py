"""JSON Schemas of the stored vectors, of the budgets and of the JSON-lines protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grains_ref.conformance.cases import FLAGS
from grains_ref.conformance.dialects import DIALECTS
from grains_ref.conformance.stages import DTYPES, OUTPUTS

JSON_SCHEMA = "https://json-schema.org/draft/2020-12/schema"
_TENSOR = {
    "type": "object",
    "properties": {"tensor": {"type": "string", "pattern": "^[^#]+#.+$"}},
    "required": ["tensor"],
    "additionalProperties": False,
}
_WHOLE = {"type": "integer", "minimum": 0}
_RULE = {
    "type": "object",
    "properties": {"rule": {"const": "walsh"}} | dict.fromkeys(("n", "layers", "width", "begin"), _WHOLE),
    "required": ["rule", "n", "layers", "width", "begin"],
    "additionalProperties": False,
}
_GENERATED = {
    "type": "object",
    "properties": {"generated": _RULE},
    "required": ["generated"],
    "additionalProperties": False,
}
_VALUE = {"anyOf": [{"type": ["number", "string", "array"]}, _TENSOR, _GENERATED]}
_VALUES = {"type": "object", "additionalProperties": _VALUE}
_MARGIN = {"$ref": "#/$defs/margin"}  # a number, null, or such in nested lists
MARGINS = ("pos", "neg", "gap_pos", "sign_pos", "gap_neg", "sign_neg", "left", "tokens", "beams")
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
    reason = {"from": {"type": "number", "minimum": 0}, "why": text}
    where = {"of": {"enum": ["v_pos", "v_neg"]}, "layer": {"type": "integer", "minimum": 0}}
    span = {"span": _TENSOR, "toward": {"anyOf": [_TENSOR, {"type": "null"}]}, "gap": {"type": "number"}}
    accepted = [
        _object({"out": _VALUES} | reason),  # whole outputs
        _object(where | {"row": _TENSOR} | reason),
        _object(where | span | reason),
    ]
    test = _object(
        {
            "id": {"type": "string", "pattern": "^[a-z_]+-[0-9]{3}$"},
            "comment": text,
            "flags": texts,
            "result": {"enum": ["valid", "invalid", "acceptable"]},
            "in": _VALUES,
            "out": _VALUES,
            "accepted": {"type": "array", "items": {"oneOf": accepted}},
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
