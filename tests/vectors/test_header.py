"""header.py: what a vectors file says about itself is checked when it is made and when it is read."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from grains_ref.files import MAX_DEPTH
from grains_ref.vectors.header import Header, VectorError, library_versions

pytestmark = pytest.mark.cpu

HEADER = Header(
    dialect="paper",
    hyper_parameters={"k": 3, "m": 5, "baseline": "zero"},
    model_name="tiny",
    fingerprint="f0",
    data_digest="d0",
    tokens_digest="t0",
    n_examples=50,
    versions={"torch": "2"},
    diagnostics={"explained": [0.5, 0.25]},
)
PART = {"weight": 0.5, "hyper_parameters": {"k": 3}, "data_digest": "d", "tokens_digest": "t", "n_examples": 50}


def test_a_header_survives_json() -> None:
    assert Header.from_record(json.loads(HEADER.to_json())) == HEADER


def test_the_header_says_by_default_where_and_how_layers_count() -> None:
    assert (HEADER.format_version, HEADER.site) == (1, "block_output")
    assert HEADER.layer_numbering == "0-based decoder block"


@pytest.mark.parametrize("name", sorted(asdict(HEADER)))
def test_a_header_without_one_of_its_keys_is_refused(name: str) -> None:
    content = {key: value for key, value in asdict(HEADER).items() if key != name}
    with pytest.raises(VectorError, match=name):
        Header.from_record(content)


def test_a_header_with_an_unknown_key_is_refused() -> None:
    with pytest.raises(VectorError, match=r"missing keys: none; unknown keys: \\x1b, lambda"):
        Header.from_record(asdict(HEADER) | {"lambda": 2, "\x1b": 3})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dialect": None}, "'dialect' must be of type str, found NoneType"),
        ({"n_examples": 5.0}, "'n_examples' must be of type int, found float"),
        ({"n_examples": True}, "'n_examples' must be of type int, found bool"),
        ({"n_examples": -1}, "0 or more"),
        ({"versions": []}, "'versions' must be of type dict"),
        ({"choice": None}, "'choice' must be of type dict"),
        (
            {"choice": {"lam": 1.0}},
            "'choice' must be empty or name a finite 'lam' and a list of 'layers', found 1.0, None",
        ),
        ({"choice": {"lam": "strong", "layers": [0]}}, "found 'strong'"),
        ({"choice": {"lam": True, "layers": [0]}}, "found True"),
        ({"choice": {"lam": float("inf"), "layers": [0]}}, "found inf"),
        ({"choice": {"lam": 1, "layers": []}}, r"found 1, \[\]"),
        ({"choice": {"lam": 1, "layers": [0, -1]}}, r"found 1, \[0, -1\]"),
        ({"choice": {"lam": 1, "layers": [0.5]}}, r"found 1, \[0.5\]"),
        ({"choice": {"lam": 1, "layers": "all"}}, "found 1, 'all'"),
        ({"versions": {"torch": 2}}, "'versions' must be a text for every package"),
        ({"hyper_parameters": {"x": 10**5000}}, "JSON cannot hold it"),
        ({"format_version": 0}, "from 1, found 0"),
        ({"format_version": 2}, "newer grains_ref"),
        ({"diagnostics": {"x": float("nan")}}, "JSON cannot hold it"),
        ({"hyper_parameters": {"x": torch.zeros(1)}}, "JSON cannot hold it"),
        ({"hyper_parameters": {3: "x"}}, "text keys"),
        ({"hyper_parameters": {"x": (1, 2)}}, "lists, not tuples"),
    ],
)
def test_a_header_of_the_wrong_content_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(VectorError, match=words):
        replace(HEADER, **change)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([], "must be a list of parts"),
        ({}, "must be a list of parts"),
        ("ab", "must be a list of parts"),
        ([3], "part 0 .* exactly the keys"),
        ([PART, {}], "part 1 .* exactly the keys"),
        ([PART | {"lam": 2}], "part 0 .* exactly the keys"),
        ([PART | {"weight": "1"}], "'weight' of part 0 .* cannot be of type str"),
        ([PART | {"weight": True}], "'weight' of part 0 .* cannot be of type bool"),
        ([PART | {"weight": 10**400}], "finite weight"),
        ([PART | {"hyper_parameters": []}], "'hyper_parameters' of part 0 .* cannot be of type list"),
        ([PART | {"hyper_parameters": {"composed_of": [PART]}}], "be no sum"),
        ([PART | {"data_digest": None}], "'data_digest' of part 0 .* cannot be of type NoneType"),
        ([PART | {"tokens_digest": 3}], "'tokens_digest' of part 0 .* cannot be of type int"),
        ([PART | {"n_examples": -50}], "0 or more examples"),
        ([PART | {"n_examples": False}], "'n_examples' of part 0 .* cannot be of type bool"),
        ([PART, PART], "'n_examples' is 50, not the sum"),
    ],
)
def test_a_sum_whose_parts_could_not_be_shown_or_composed_is_refused(parts: Any, words: str) -> None:
    replace(HEADER, hyper_parameters={"composed_of": [PART]})
    with pytest.raises(VectorError, match=words):
        replace(HEADER, hyper_parameters={"composed_of": parts})


def test_a_sum_has_no_hyper_parameters_beside_its_parts() -> None:
    with pytest.raises(VectorError, match="stand alone"):
        replace(HEADER, hyper_parameters={"composed_of": [PART], "k": 3})


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth > 1 else []


def test_what_could_not_be_read_again_is_not_written() -> None:
    replace(HEADER, hyper_parameters={"x": nested(MAX_DEPTH - 2)})
    with pytest.raises(VectorError, match=f"nested {MAX_DEPTH + 1} deep"):
        replace(HEADER, hyper_parameters={"x": nested(MAX_DEPTH - 1)})
    endless: list[Any] = []
    for _ in range(100_000):
        endless = [endless]
    with pytest.raises(VectorError, match="JSON cannot hold it"):
        replace(HEADER, hyper_parameters={"x": endless})


def test_versions_are_looked_up_and_a_missing_package_is_said_to_be(monkeypatch: Any) -> None:
    versions = library_versions()
    assert list(versions) == ["python", "torch", "transformers", "grains_ref"]
    assert versions["python"] == platform.python_version()
    assert versions["torch"].partition("+")[0] == torch.__version__.partition("+")[0]  # some builds name a device

    def find_nothing(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", find_nothing)
    assert library_versions()["transformers"] == "not installed"
