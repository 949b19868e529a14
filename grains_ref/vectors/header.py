"""The header of a vectors file: where, how and from what the vectors were made, checked when it is made or read."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from dataclasses import asdict, dataclass, field, fields
from numbers import Real
from typing import Any

from grains_ref.files import MAX_DEPTH, json_depth, some_of

FORMAT_VERSION = 1
COMPOSED = "composed_of"  # the key of `hyper_parameters` that lists the parts of a sum
PART: dict[str, type | tuple[type, ...]] = {  # what such a part tells, and as what
    "weight": (int, float),
    "hyper_parameters": dict,
    "data_digest": str,
    "tokens_digest": str,
    "n_examples": int,
}


class VectorError(ValueError):
    """Vectors or their header are malformed."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """Where, how and from what steering vectors were made.

    Attributes:
        method: "grains", or the name of the other method that made the vectors (`grains_ref.methods`).
        site: what is edited: "block_output", the raw output of a decoder block before the final norm, or another place
            in the block by its name in `grains_ref.methods.core`. Vectors of one site mean nothing at another.
        positions: at which tokens v is added; "all" in the paper.
        scale: the length that lam is a share of, where the method measures one; 1 where lam multiplies v as it is.
        dialect: "paper", or the name of the other set of rules the vectors were made by.
        hyper_parameters: what was chosen (k, m, baselines, ...); {"composed_of": [...]} after arithmetic.
        model_name: for people; `fingerprint` decides whether a model is the right one.
        data_digest: of the preference pairs (`PairFile.digest`).
        tokens_digest: of the token ids that the model saw (`grains_ref.fitting.tokens_digest`): the same pairs become
            other tokens where a chat template writes today's date.
        chat_template: digest of the chat template that the pairs went through; "" for plain texts.
        origin: what the model was made from besides a folder of plain weights (`HuggingFaceModel.origin`): an adapter
            and its base with their digests, a GGUF file with its types, a method of quantisation; {} for none of them.
        date: that the chat template wrote into the prompts, as 2024-07-26; "" if it writes none.
        n_examples: number of pairs the vectors were made from.
        engine: that computed them (`grains_ref.fast.ENGINES`); "" where neither did.
        versions: of the software that made the vectors (`library_versions`).
        diagnostics: from aggregation: single values, and lists of one number per layer.
        choice: the strength and layers that a sweep chose, with the accuracy on dev, by strength too, and the cost on
            tasks that they had there (`grains_ref.evaluation.SweepChoice.record`); {} where nothing was chosen.
        signal: whether the vectors mean anything, in a "line" for people and figures
            (`grains_ref.fitting.signal.Signal.record`); {} where it was not measured.

    Raises:
        VectorError: a value of the wrong type, a newer format, or content that JSON cannot hold.
    """

    format_version: int = FORMAT_VERSION
    method: str = "grains"
    site: str = "block_output"
    positions: str = "all"
    scale: float = 1.0
    layer_numbering: str = "0-based decoder block"
    dialect: str
    hyper_parameters: dict[str, Any]
    model_name: str
    fingerprint: str
    data_digest: str
    tokens_digest: str
    n_examples: int
    versions: dict[str, str]
    diagnostics: dict[str, Any]
    choice: dict[str, Any] = field(default_factory=dict)
    signal: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    chat_template: str = ""
    date: str = ""
    engine: str = ""

    def __post_init__(self) -> None:
        texts = ("method", "site", "positions", "layer_numbering", "dialect", "model_name", "fingerprint")
        more_texts = ("data_digest", "tokens_digest", "chat_template", "date", "engine")
        dicts = ("hyper_parameters", "versions", "diagnostics", "choice", "signal", "origin")
        for expected, names in ((str, texts + more_texts), (dict, dicts), (int, ("format_version", "n_examples"))):
            for name in names:
                if type(getattr(self, name)) is not expected:
                    kind = type(getattr(self, name)).__name__
                    raise VectorError(f"header: '{name}' must be of type {expected.__name__}, found {kind}.")
        _check_version(self.format_version)
        if self.n_examples < 0:
            raise VectorError(f"header: 'n_examples' must be 0 or more, found {self.n_examples}.")
        if not is_finite_number(self.scale) or self.scale <= 0:
            raise VectorError(f"header: 'scale' must be a positive number, found {self.scale!r:.40}.")
        if not all(type(version) is str for version in self.versions.values()):
            raise VectorError("header: 'versions' must be a text for every package.")
        if not all(type(value) is str for value in self.origin.values()):
            raise VectorError("header: 'origin' must be a text for every part.")
        if COMPOSED in self.hyper_parameters:
            _check_composed(self)
        if self.choice:
            _check_choice(self.choice)
        if self.signal and type(self.signal.get("line")) is not str:
            raise VectorError("header: 'signal' must be empty or have a 'line' in words.")
        _check_survives_json(self)

    def to_json(self) -> str:
        """The header as one line of JSON; equal headers give equal text."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Header:
        """The header out of the JSON object that `to_json` wrote.

        Raises:
            VectorError: a newer format, unknown or missing keys, or a bad value.
        """
        _check_version(record.get("format_version"))  # first, because a newer format may have other keys
        known = {item.name for item in fields(cls)}
        missing, unknown = sorted(known - record.keys()), sorted(record.keys() - known)
        if missing or unknown:
            names = f"missing keys: {some_of(missing)}; unknown keys: {some_of(unknown)}"
            raise VectorError(f"header: {names}. Was it edited by hand?")
        return cls(**record)


def library_versions() -> dict[str, str]:
    """Versions of Python, torch, transformers and grains_ref; "not installed" for what is missing."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "transformers", "grains_ref"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def is_finite_number(value: Any) -> bool:
    """Whether a value is a number that float64 can hold; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the range of float64
        return False


def _check_version(version: Any) -> None:
    if type(version) is not int or version < 1:
        raise VectorError(f"header: 'format_version' must be an integer from 1, found {version!r}.")
    if version > FORMAT_VERSION:
        raise VectorError(
            f"header: format version {version} was written by a newer grains_ref; this one reads up to "
            f"{FORMAT_VERSION}. Upgrade grains_ref."
        )


def _check_composed(header: Header) -> None:
    """A sum lists its parts, each whole and itself no sum, and counts their examples."""
    parts = header.hyper_parameters[COMPOSED]
    if len(header.hyper_parameters) > 1 or type(parts) is not list or not parts:
        raise VectorError(f"header: '{COMPOSED}' must be a list of parts and stand alone in 'hyper_parameters'.")
    for number, part in enumerate(parts):
        if type(part) is not dict or part.keys() != PART.keys():
            raise VectorError(f"header: part {number} of '{COMPOSED}' must have exactly the keys {sorted(PART)}.")
        for name, expected in PART.items():
            if isinstance(part[name], bool) or not isinstance(part[name], expected):
                kind = type(part[name]).__name__
                raise VectorError(f"header: '{name}' of part {number} of '{COMPOSED}' cannot be of type {kind}.")
        if not is_finite_number(part["weight"]) or part["n_examples"] < 0 or COMPOSED in part["hyper_parameters"]:
            raise VectorError(
                f"header: part {number} of '{COMPOSED}' must have a finite weight, 0 or more examples, and be no sum."
            )
    if sum(part["n_examples"] for part in parts) != header.n_examples:
        raise VectorError(f"header: 'n_examples' is {header.n_examples}, not the sum over the parts.")


def _check_choice(choice: dict[str, Any]) -> None:
    lam, layers = choice.get("lam"), choice.get("layers")
    is_list = isinstance(layers, list) and bool(layers) and all(type(layer) is int and layer >= 0 for layer in layers)
    if not is_finite_number(lam) or not is_list:
        given = f"{lam!r:.40}, {layers!r:.40}"
        raise VectorError(
            f"header: 'choice' must be empty or name a finite 'lam' and a list of 'layers', found {given}."
        )


def _check_survives_json(header: Header) -> None:
    """What is written must be what is read: also by a reader that bounds the nesting."""
    try:
        text = header.to_json()
        survives = json.loads(text) == asdict(header)
    except (TypeError, ValueError, RecursionError) as error:
        raise VectorError(f"header: JSON cannot hold it ({error}); use finite plain numbers.") from None
    if not survives:
        raise VectorError("header: JSON would alter it; use text keys ('3', not 3) and lists, not tuples.")
    if json_depth(text) > MAX_DEPTH:
        raise VectorError(f"header: nested {json_depth(text)} deep; at most {MAX_DEPTH} levels can be read again.")
