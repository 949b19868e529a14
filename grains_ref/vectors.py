"""Steering vectors: what they are, the file they live in, and arithmetic on them.

`SteeringVectors` holds equation (6) per layer, v = v_pos - v_neg, with its two parts and a header that says
where, how and from what they were made.

The file is one safetensors file.  For each decoder block i = 0..L-1 it has three float32 tensors (d,):
`layer.{i}` (v), `layer.{i}.pos` (v_pos) and `layer.{i}.neg` (v_neg).  The header is one JSON string under the
metadata key `grains_ref`.  Any safetensors reader can use `layer.{i}` without this library.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from numbers import Real
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from grains_ref.files import write_whole

FORMAT_VERSION = 1
METADATA_KEY = "grains_ref"
TOLERANCE = 1e-5  # of |v_pos| + |v_neg|, for v = v_pos - v_neg: room for rounding, none for a swapped sign


class VectorError(ValueError):
    """Vectors or their header are malformed."""


class VectorFileError(VectorError):
    """A file cannot be written, or cannot be read as steering vectors."""


class MismatchError(VectorError):
    """Vectors do not belong to this model, or not to each other."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """Where, how and from what steering vectors were made.

    Attributes:
        site: what is read and edited: the raw output of a decoder block, before the final norm.
        dialect: "paper", or the name of the other set of rules the vectors were made by.
        hyper_parameters: what was chosen (k, m, baselines, ...); {"composed_of": [...]} after arithmetic.
        model_name: for people; `fingerprint` decides whether a model is the right one.
        data_digest: of the preference pairs (`PairFile.digest`).
        n_examples: number of pairs the vectors were made from.
        versions: of the software that made the vectors (`library_versions`).
        diagnostics: numbers from aggregation, free in form.
        choice: the strength and layers that a sweep chose, with the accuracy on dev and the cost on tasks that they
            had there (`grains_ref.evaluation.SweepChoice.record`); {} where nothing was chosen.

    Raises:
        VectorError: a value of the wrong type, a newer format, or content that JSON cannot hold.
    """

    format_version: int = FORMAT_VERSION
    site: str = "block_output"
    layer_numbering: str = "0-based decoder block"
    dialect: str
    hyper_parameters: dict[str, Any]
    model_name: str
    fingerprint: str
    data_digest: str
    n_examples: int
    versions: dict[str, str]
    diagnostics: dict[str, Any]
    choice: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        texts = ("site", "layer_numbering", "dialect", "model_name", "fingerprint", "data_digest")
        dicts = ("hyper_parameters", "versions", "diagnostics", "choice")
        for expected, names in ((str, texts), (dict, dicts), (int, ("format_version", "n_examples"))):
            for name in names:
                if type(getattr(self, name)) is not expected:
                    found = type(getattr(self, name)).__name__
                    raise VectorError(f"header: '{name}' must be of type {expected.__name__}, found {found}.")
        _check_version(self.format_version)
        if self.n_examples < 0:
            raise VectorError(f"header: 'n_examples' must be 0 or more, found {self.n_examples}.")
        if self.choice:
            _check_choice(self.choice)
        try:
            survives = json.loads(self.to_json()) == asdict(self)
        except (TypeError, ValueError) as error:
            raise VectorError(f"header: JSON cannot hold it ({error}); use finite plain numbers.") from None
        if not survives:
            raise VectorError("header: JSON would alter it; use text keys ('3', not 3) and lists, not tuples.")

    def to_json(self) -> str:
        """The header as one line of JSON; equal headers give equal text."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Header:
        """Read what `to_json` wrote.

        Raises:
            VectorError: not a JSON object, a newer format, unknown or missing keys, or a bad value.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise VectorError(f"header: not JSON: {error}.") from None
        if not isinstance(content, dict):
            raise VectorError(f"header: expected a JSON object, found {type(content).__name__}.")
        _check_version(content.get("format_version"))  # first, because a newer format may have other keys
        known = {item.name for item in fields(cls)}
        missing, unknown = sorted(known - content.keys()), sorted(content.keys() - known)
        if missing or unknown:
            raise VectorError(f"header: missing keys {missing}, unknown keys {unknown}; was it edited by hand?")
        return cls(**content)


@dataclass(frozen=True, eq=False)
class SteeringVectors:
    """Equation (6) for every layer, with its parts.

    Attributes:
        v: (L, d) float32 on the CPU; `+lam * v` moves toward the preferred answer.
        v_pos: (L, d) the direction of the positive shifts.
        v_neg: (L, d) the direction of the negative shifts.
        header: where, how and from what they were made.

    Raises:
        VectorError: wrong shape, dtype or device, a value that is not finite, or v other than v_pos - v_neg.
    """

    v: Tensor
    v_pos: Tensor
    v_neg: Tensor
    header: Header

    def __post_init__(self) -> None:
        for name in ("v", "v_pos", "v_neg"):
            _check_tensor(name, getattr(self, name), shape=self.v.shape)
        error = (self.v.double() - (self.v_pos.double() - self.v_neg.double())).norm(dim=1)
        allowed = TOLERANCE * (self.v_pos.double().norm(dim=1) + self.v_neg.double().norm(dim=1))
        if bool((error > allowed).any()):
            layer = int((error > allowed).nonzero()[0])
            raise VectorError(
                f"v is not v_pos - v_neg at layer {layer} (off by {float(error[layer]):.3g} in L2 norm). "
                f"Is a sign swapped, or v normalised? Equation (6) subtracts: pass v = v_pos - v_neg."
            )

    @property
    def n_layers(self) -> int:
        """L, the number of decoder blocks."""
        return self.v.shape[0]

    @property
    def width(self) -> int:
        """d, the width of the hidden state."""
        return self.v.shape[1]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically: after a failure the old file, if any, is as it was.

        Raises:
            VectorFileError: `path` is a directory, or its folder does not exist.
            OSError: the disk refuses (full, read-only, ...).
        """
        path = Path(path)
        if path.is_dir():
            raise VectorFileError(f"{path}: is a directory; give a file name, e.g. {path / 'v.safetensors'}")
        if not path.parent.is_dir():
            raise VectorFileError(f"{path}: there is no folder {path.parent}; create it first, or mend the path.")
        rows = (self.v, self.v_pos, self.v_neg)
        tensors = {
            name: tensor[layer].detach().clone()
            for layer in range(self.n_layers)
            for name, tensor in zip(_tensor_names(layer), rows, strict=True)
        }
        content = safetensors.torch.save(tensors, metadata={METADATA_KEY: self.header.to_json()})
        write_whole(path, content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SteeringVectors:
        """Read a file that `save` wrote; the tensors are bit for bit the same.

        Raises:
            VectorFileError: missing, truncated, corrupt, foreign or newer file; tensors missing, unexpected
                or of another shape or dtype; or content that `SteeringVectors` or `Header` refuses.
        """
        path = Path(path)
        if not path.is_file():
            problem = "is a directory" if path.is_dir() else "no such file"
            raise VectorFileError(f"{path}: {problem}; expected a safetensors file written by grains_ref.")
        try:
            with safetensors.safe_open(path, framework="pt", device="cpu") as file:
                names = set(file.keys())
                metadata = file.metadata() or {}
                if METADATA_KEY not in metadata:
                    raise VectorError(_describe_foreign(names))
                header = Header.from_json(metadata[METADATA_KEY])
                n_layers = _count_layers(names)
                tensors = {name: file.get_tensor(name) for name in names}
            _check_rows(tensors)
            v, v_pos, v_neg = (
                torch.stack([tensors[_tensor_names(layer)[part]] for layer in range(n_layers)]) for part in range(3)
            )
            return cls(v=v, v_pos=v_pos, v_neg=v_neg, header=header)
        except safetensors.SafetensorError as error:
            problem = f"truncated, corrupt or no safetensors file ({error}). Copy or write it again."
            raise VectorFileError(f"{path}: {problem}") from error
        except VectorError as error:
            raise VectorFileError(f"{path}: {error}") from error

    def __add__(self, other: SteeringVectors) -> SteeringVectors:
        return compose([(1.0, self), (1.0, other)])

    def __sub__(self, other: SteeringVectors) -> SteeringVectors:
        return compose([(1.0, self), (-1.0, other)])

    def __neg__(self) -> SteeringVectors:
        return compose([(-1.0, self)])

    def __mul__(self, weight: float) -> SteeringVectors:
        return compose([(weight, self)])

    __rmul__ = __mul__

    def norms(self) -> list[tuple[float, float, float, float]]:
        """Per layer |v|, |v_pos|, |v_neg| and cos(v_pos, v_neg); the cosine is nan where a part is zero."""
        v, v_pos, v_neg = (tensor.double() for tensor in (self.v, self.v_pos, self.v_neg))
        lengths = [tensor.norm(dim=1) for tensor in (v, v_pos, v_neg)]
        cosines = (v_pos * v_neg).sum(dim=1) / (lengths[1] * lengths[2])
        return list(zip(*(column.tolist() for column in (*lengths, cosines)), strict=True))

    def summary(self) -> list[tuple[str, str]]:
        """What the header says, as (name, words) in reading order."""
        header = self.header
        raw = header.site == "block_output"
        parts = header.hyper_parameters.get("composed_of", [])
        recipes = [f"{part['weight']:+g} * ({_words(part['hyper_parameters'])})" for part in parts]
        return [
            ("site", "raw output of each decoder block, before the final norm" if raw else header.site),
            ("layers", f"{self.n_layers} ({header.layer_numbering}, 0 to {self.n_layers - 1})"),
            ("width", str(self.width)),
            ("dialect", header.dialect),
            ("model", header.model_name),
            ("model fingerprint", header.fingerprint),
            ("examples", str(header.n_examples)),
            ("data digest", header.data_digest),
            ("hyper-parameters", " ".join(recipes) or _words(header.hyper_parameters)),
            ("diagnostics", _words(header.diagnostics)),
            ("chosen by a sweep", _words(header.choice)),
            ("versions", _words(header.versions)),
            ("format version", str(header.format_version)),
        ]


def compose(parts: Sequence[tuple[float, SteeringVectors]]) -> SteeringVectors:
    """The weighted sum of vectors: "arithmetic over task behaviors via vector composition" (sect. 3.3).

    v_pos and v_neg are summed in float64, each rounded once to float32, and v is their difference, so that
    v = v_pos - v_neg holds even where large parts cancel.  The header of the sum:

    - `hyper_parameters` is {"composed_of": [...]}: per original part its weight, hyper-parameters, data
      digest and number of examples.  A part that is itself a sum is spread out: the list stays flat.
    - `data_digest` is the SHA-256 of the original parts' weights and digests in order.
    - `n_examples` is the sum over the parts; data used by two parts counts twice.
    - `versions` are those of the composing software; `diagnostics` and `choice` are empty, for they describe single
      parts.

    Args:
        parts: (weight, vectors), at least one, all of the same shape, model, site, numbering and dialect.

    Raises:
        MismatchError: parts that do not belong together.
        VectorError: no part, or a weight that is not a finite number.
        TypeError: a part that is not `SteeringVectors`.
    """
    if not parts:
        raise VectorError("compose needs at least one (weight, vectors) pair, found none.")
    first = parts[0][1]
    for weight, vectors in parts:
        if not isinstance(vectors, SteeringVectors):
            raise TypeError(f"expected SteeringVectors, found {type(vectors).__name__}; compose() sums a list.")
        if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight):
            raise VectorError(f"a weight must be a finite number, found {weight!r}.")
        _check_belongs(first, vectors)
    originals = [original for weight, vectors in parts for original in _originals(float(weight), vectors)]
    sources = json.dumps([[part["weight"], part["data_digest"]] for part in originals])
    v_pos, v_neg = _weighted_sum(parts, "v_pos"), _weighted_sum(parts, "v_neg")
    header = Header(
        site=first.header.site,
        layer_numbering=first.header.layer_numbering,
        dialect=first.header.dialect,
        hyper_parameters={"composed_of": originals},
        model_name=first.header.model_name,
        fingerprint=first.header.fingerprint,
        data_digest=hashlib.sha256(sources.encode()).hexdigest(),
        n_examples=sum(vectors.header.n_examples for _, vectors in parts),
        versions=library_versions(),
        diagnostics={},
    )
    return SteeringVectors(v=v_pos - v_neg, v_pos=v_pos, v_neg=v_neg, header=header)


def check_fits(
    vectors: SteeringVectors,
    *,
    n_layers: int,
    width: int,
    fingerprint: str,
    model_name: str,
    force: bool = False,
) -> None:
    """Check that vectors belong to a model, before they steer it.

    Args:
        vectors: what is to be added.
        n_layers: decoder blocks of the model.
        width: of the model's hidden states.
        fingerprint: of the model, compared with the header's.
        model_name: of the model, for the message.
        force: accept another fingerprint (a fine-tune, other weights); a shape can never be forced.

    Raises:
        MismatchError: other depth, other width, or another fingerprint without `force`.
    """
    header = vectors.header
    if (vectors.n_layers, vectors.width) != (n_layers, width):
        raise MismatchError(
            f"the vectors, made with {header.model_name!r}, have {vectors.n_layers} layers of width "
            f"{vectors.width}; the model {model_name!r} has {n_layers} layers of width {width}. Make new "
            f"ones for this model: a shape cannot be forced."
        )
    if header.fingerprint != fingerprint and not force:
        raise MismatchError(
            f"the vectors were made with {header.model_name!r}, fingerprint {header.fingerprint!r}; the "
            f"model {model_name!r} has {fingerprint!r}: same shape, other weights. If that is meant, pass "
            f"--force (force=True in Python)."
        )


def library_versions() -> dict[str, str]:
    """Versions of Python, torch, transformers and grains_ref; "not installed" for what is missing."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "transformers", "grains_ref"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _check_version(version: Any) -> None:
    if type(version) is not int or version < 1:
        raise VectorError(f"header: 'format_version' must be an integer from 1, found {version!r}.")
    if version > FORMAT_VERSION:
        raise VectorError(
            f"header: format version {version} was written by a newer grains_ref; this one reads up to "
            f"{FORMAT_VERSION}. Upgrade grains_ref."
        )


def _check_choice(choice: dict[str, Any]) -> None:
    lam, layers = choice.get("lam"), choice.get("layers")
    is_number = isinstance(lam, int | float) and not isinstance(lam, bool) and math.isfinite(lam)
    is_list = isinstance(layers, list) and bool(layers) and all(type(layer) is int and layer >= 0 for layer in layers)
    if not is_number or not is_list:
        raise VectorError(
            f"header: 'choice' must be empty or name a finite 'lam' and a list of 'layers', found {lam!r}, {layers!r}."
        )


def _check_tensor(name: str, tensor: Tensor, *, shape: torch.Size) -> None:
    if tensor.dim() != 2 or 0 in tensor.shape or tensor.shape != shape:
        expected = "(layers, width)" if name == "v" else f"{tuple(shape)}, as v has"
        raise VectorError(f"{name} has the shape {tuple(tensor.shape)}, expected {expected}.")
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
        found = f"{tensor.dtype} on {tensor.device}"
        raise VectorError(f"{name} is {found}, expected torch.float32 on cpu; pass {name}.float().cpu()")
    bad_layers = (~tensor.isfinite()).any(dim=1).nonzero()
    if len(bad_layers):
        raise VectorError(f"{name} is not finite, first at layer {int(bad_layers[0])}; overflow, or a 0/0?")


def _check_belongs(first: SteeringVectors, other: SteeringVectors) -> None:
    if first.v.shape != other.v.shape:
        shapes = f"{tuple(first.v.shape)} and {tuple(other.v.shape)}"
        raise MismatchError(f"cannot combine vectors of shapes {shapes}; they come from different models.")
    for name in ("fingerprint", "site", "layer_numbering", "dialect"):
        ours, theirs = getattr(first.header, name), getattr(other.header, name)
        if ours != theirs:
            raise MismatchError(
                f"cannot combine vectors whose '{name}' differs: {ours!r} and {theirs!r}. "
                f"Make both with the same model and the same rules."
            )


def _weighted_sum(parts: Sequence[tuple[float, SteeringVectors]], name: str) -> Tensor:
    total = torch.zeros_like(getattr(parts[0][1], name), dtype=torch.float64)
    for weight, vectors in parts:
        total = total + float(weight) * getattr(vectors, name).double()
    return total.float()


def _originals(weight: float, vectors: SteeringVectors) -> list[dict[str, Any]]:
    """The parts that a weighted summand stands for: itself, or what it was composed of."""
    header = vectors.header
    if "composed_of" in header.hyper_parameters:
        return [part | {"weight": weight * part["weight"]} for part in header.hyper_parameters["composed_of"]]
    return [
        {
            "weight": weight,
            "hyper_parameters": header.hyper_parameters,
            "data_digest": header.data_digest,
            "n_examples": header.n_examples,
        }
    ]


def _tensor_names(layer: int) -> tuple[str, str, str]:
    return f"layer.{layer}", f"layer.{layer}.pos", f"layer.{layer}.neg"


def _count_layers(names: set[str]) -> int:
    """The number of layers, if the names are exactly those of layers 0..L-1."""
    layers = {int(name[6:]) for name in names if re.fullmatch(r"layer\.(0|[1-9][0-9]{0,3})", name)}
    expected = {name for layer in range(max(layers, default=0) + 1) for name in _tensor_names(layer)}
    if names != expected:
        missing, unexpected = _some(expected - names), _some(names - expected)
        raise VectorError(f"missing tensors: {missing}; unexpected: {unexpected}. Write the file again.")
    return len(layers)


def _check_rows(tensors: dict[str, Tensor]) -> None:
    expected = (tensors["layer.0"].numel(),)
    for name, tensor in sorted(tensors.items()):
        if tuple(tensor.shape) != expected or tensor.dtype != torch.float32:
            found = f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}"
            raise VectorError(f"{found}, expected torch.float32 of shape {expected}, the width of layer.0.")


def _describe_foreign(names: set[str]) -> str:
    is_control_vector = any(re.fullmatch(r"direction\.[0-9]+", name) for name in names)
    guess = "a control vector as llama.cpp, repeng or EasySteer use?" if is_control_vector else "model weights?"
    return f"a safetensors file, but no '{METADATA_KEY}' metadata in it: {_some(names)}; {guess}"


def _some(names: set[str]) -> str:
    """A few names for a message, and how many more there are."""
    rest = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(sorted(names)[:4]) + rest or "none"


def _words(content: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_short(value)}" for name, value in content.items()) or "none"


def _short(value: Any) -> str:
    """A header value for people: decimals to three places, also inside a list."""
    if isinstance(value, list):
        return f"[{' '.join(_short(item) for item in value)}]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
