"""Steering vectors: what they are, the file they live in, and arithmetic on them.

`SteeringVectors` holds equation (6) per layer, v = v_pos - v_neg, with its two parts and a header that says
where, how and from what they were made.

The file is one safetensors file (`grains_ref.vectors.tensor_files`).  For each decoder block i = 0..L-1 it has three
float32 tensors (d,): `layer.{i}` (v), `layer.{i}.pos` (v_pos) and `layer.{i}.neg` (v_neg).  The header is the JSON
object under the metadata key `grains_ref`, with two digests that make every change visible.  Any safetensors reader
can use `layer.{i}` without this library.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grains_ref.files import FileError, digest_of, printable, read_whole, some_of, write_whole
from grains_ref.vectors.header import COMPOSED, Header, VectorError, is_finite_number, library_versions
from grains_ref.vectors.tensor_files import parse_tensor_file, tensor_file

TOLERANCE = 1e-5  # of |v_pos| + |v_neg|, for v = v_pos - v_neg: room for rounding, none for a swapped sign

VARIOUS = "various"  # of a sum whose parts differ


class VectorFileError(VectorError):
    """A file cannot be written, or cannot be read as steering vectors."""


class MismatchError(VectorError):
    """Vectors do not belong to this model, or not to each other."""


@dataclass(frozen=True, eq=False)
class SteeringVectors:
    """Equation (6) for every layer, with its parts.

    Attributes:
        v: (L, d) float32 on the CPU; `+lam * v` moves toward the preferred answer.
        v_pos: (L, d) the direction of the positive shifts.
        v_neg: (L, d) the direction of the negative shifts.
        header: where, how and from what they were made.

    Raises:
        VectorError: wrong shape, dtype or device, a value that is not finite, v other than v_pos - v_neg, or
            diagnostics or a choice for another number of layers.
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
        _check_figures("diagnostics", self.header.diagnostics, self.n_layers)
        _check_figures("signal", self.header.signal.get("layers", {}), self.n_layers)
        unknown = [layer for layer in self.header.choice.get("layers", []) if layer >= self.n_layers]
        if unknown:
            raise VectorError(f"header: 'choice' names the layers {unknown}; there are 0 to {self.n_layers - 1}.")

    @property
    def n_layers(self) -> int:
        """L, the number of decoder blocks."""
        return self.v.shape[0]

    @property
    def width(self) -> int:
        """d, the width of the hidden state."""
        return self.v.shape[1]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, whole or not at all: after a failure the old file, if any, is as it was.

        Raises:
            VectorFileError: `path` is no file that could be written (a folder, a device, a missing folder).
            OSError: the disk refuses (full, read-only, ...).
        """
        tensors: dict[str, Tensor] = {}
        for layer in range(self.n_layers):
            name, name_pos, name_neg = _tensor_names(layer)
            tensors |= {name: self.v[layer], name_pos: self.v_pos[layer], name_neg: self.v_neg[layer]}
        try:
            write_whole(Path(path), tensor_file(tensors, asdict(self.header)))
        except FileError as error:
            raise VectorFileError(str(error)) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SteeringVectors:
        """Read a file that `save` wrote; the tensors are bit for bit the same.

        Raises:
            VectorFileError: missing, truncated, changed, foreign or newer file; tensors missing, unexpected
                or of another shape or dtype; or content that `SteeringVectors` or `Header` refuses.
        """
        try:
            tensors, record = parse_tensor_file(read_whole(Path(path)), name=str(path))
        except FileError as error:
            raise VectorFileError(f"{error}. Expected a vectors file of grains_ref.") from error
        try:
            header = Header.from_record(record)
            names = [_tensor_names(layer) for layer in range(_count_layers(tensors))]
            _check_rows(tensors)
            v, v_pos, v_neg = (torch.stack([tensors[layer[part]] for layer in names]) for part in range(3))
            return cls(v=v, v_pos=v_pos, v_neg=v_neg, header=header)
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
        """What the header says, as (name, words) in reading order; control characters are written out."""
        header = self.header
        raw = header.site == "block_output"
        parts = header.hyper_parameters.get(COMPOSED, [])
        recipes = [f"{part['weight']:+g} * ({_words(part['hyper_parameters'])})" for part in parts]
        rows = [
            ("method", header.method),
            ("site", "raw output of each decoder block, before the final norm" if raw else header.site),
            ("positions", header.positions),
            ("lam is a share of", "nothing: it multiplies v" if header.scale == 1 else f"{header.scale:.3g}"),
            ("layers", f"{self.n_layers} ({header.layer_numbering}, 0 to {self.n_layers - 1})"),
            ("width", str(self.width)),
            ("dialect", header.dialect),
            ("model", header.model_name),
            ("model fingerprint", header.fingerprint),
            ("model made from", _words(header.origin)),
            ("examples", str(header.n_examples)),
            ("data digest", header.data_digest),
            ("tokens digest", header.tokens_digest),
            ("chat template", header.chat_template or "none: plain texts"),
            ("date in the chats", header.date or "none"),
            ("hyper-parameters", " ".join(recipes) or _words(header.hyper_parameters)),
            ("diagnostics", _words(header.diagnostics)),
            ("chosen by a sweep", _words(header.choice)),
            ("signal", header.signal.get("line", "not measured")),
            ("versions", _words(header.versions)),
            ("format version", str(header.format_version)),
        ]
        return [(name, printable(words)) for name, words in rows]


def compose(parts: Sequence[tuple[float, SteeringVectors]]) -> SteeringVectors:
    """The weighted sum of vectors: "arithmetic over task behaviors via vector composition" (sect. 3.3).

    v_pos and v_neg are summed in float64, each rounded once to float32, and v is their difference, so that
    v = v_pos - v_neg holds even where large parts cancel.  The header of the sum:

    - `hyper_parameters` is {"composed_of": [...]}: per original part its weight, hyper-parameters, data
      digests and number of examples.  A part that is itself a sum is spread out: the list stays flat.
    - `data_digest` and `tokens_digest` are the SHA-256 of the original parts' weights and digests in order.
    - `chat_template` and `date` are those of the parts where all have the same, else "various".
    - `n_examples` is the sum over the parts; data used by two parts counts twice.
    - `scale` is the mean of the parts'.
    - `versions` are those of the composing software; `diagnostics`, `choice` and `signal` are empty, for they describe
      single parts.

    Args:
        parts: (weight, vectors), at least one, all of the same shape, model, method, site, positions, numbering and
            dialect.

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
        if not is_finite_number(weight):
            raise VectorError(f"a weight must be a finite number, found {weight!r}.")
        _check_belongs(first, vectors)
    originals = [original for weight, vectors in parts for original in _originals(float(weight), vectors)]
    v_pos, v_neg = _weighted_sum(parts, "v_pos"), _weighted_sum(parts, "v_neg")
    header = Header(
        method=first.header.method,
        site=first.header.site,
        positions=first.header.positions,
        scale=sum(vectors.header.scale for _, vectors in parts) / len(parts),
        layer_numbering=first.header.layer_numbering,
        dialect=first.header.dialect,
        hyper_parameters={COMPOSED: originals},
        model_name=first.header.model_name,
        fingerprint=first.header.fingerprint,
        data_digest=_digest_of_parts(originals, "data_digest"),
        tokens_digest=_digest_of_parts(originals, "tokens_digest"),
        origin=first.header.origin,
        chat_template=_common(parts, "chat_template"),
        date=_common(parts, "date"),
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
    chat_template: str = "",
    date: str = "",
) -> None:
    """Check that vectors belong to a model, before they steer it.

    Another chat template or another date in it than the pairs had makes other tokens of the same chat, but the vectors
    may be used on any prompt: it is no error, only a warning.

    Args:
        vectors: what is to be added.
        n_layers: decoder blocks of the model.
        width: of the model's hidden states.
        fingerprint: of the model, compared with the header's.
        model_name: of the model, for the message.
        force: accept another fingerprint (a fine-tune, other weights); a shape can never be forced.
        chat_template: digest of the model's chat template; "" if prompts do not go through it.
        date: that the template writes; "" if it writes none.

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
    if header.chat_template not in ("", chat_template, VARIOUS) and chat_template:
        warnings.warn(
            f"the vectors were made of chats in another chat template than {model_name!r} has now: the same messages "
            "become other tokens. Put back the template that they were made with, or make new vectors.",
            stacklevel=2,
        )
    elif header.date not in ("", date, VARIOUS) and date:
        warnings.warn(
            f"the vectors were made of chats in which the template wrote the date {header.date}; now it writes {date}, "
            f"so that the same messages become other tokens. Pass --date {header.date} (date= in Python).",
            stacklevel=2,
        )


def _check_figures(where: str, figures: Any, n_layers: int) -> None:
    if not isinstance(figures, dict):
        raise VectorError(f"header: the figures of '{where}' must be an object, found {type(figures).__name__}.")
    for name, value in figures.items():
        values = value if isinstance(value, list) else [value]
        if isinstance(value, dict) or any(isinstance(item, (list, dict)) for item in values):
            raise VectorError(f"header: '{name}' of '{where}' must be one value or a list of numbers.")
        if isinstance(value, list) and (len(value) != n_layers or not all(map(is_finite_number, value))):
            raise VectorError(f"header: '{name}' of '{where}' must be a list of {n_layers} numbers, one per layer.")


def _check_tensor(name: str, tensor: Tensor, *, shape: torch.Size) -> None:
    if tensor.dim() != 2 or 0 in tensor.shape or tensor.shape != shape:
        expected = "(layers, width)" if name == "v" else f"{tuple(shape)}, as v has"
        raise VectorError(f"{name} has the shape {tuple(tensor.shape)}, expected {expected}.")
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
        given = f"{tensor.dtype} on {tensor.device}"
        raise VectorError(f"{name} is {given}, expected torch.float32 on cpu; pass {name}.float().cpu()")
    bad_layers = (~tensor.isfinite()).any(dim=1).nonzero()
    if len(bad_layers):
        raise VectorError(f"{name} is not finite, first at layer {int(bad_layers[0])}; overflow, or a 0/0?")


def _check_belongs(first: SteeringVectors, other: SteeringVectors) -> None:
    if first.v.shape != other.v.shape:
        shapes = f"{tuple(first.v.shape)} and {tuple(other.v.shape)}"
        raise MismatchError(f"cannot combine vectors of shapes {shapes}; they come from different models.")
    for name in ("fingerprint", "method", "site", "positions", "layer_numbering", "dialect"):
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
    if COMPOSED in header.hyper_parameters:
        return [part | {"weight": weight * part["weight"]} for part in header.hyper_parameters[COMPOSED]]
    return [
        {
            "weight": weight,
            "hyper_parameters": header.hyper_parameters,
            "data_digest": header.data_digest,
            "tokens_digest": header.tokens_digest,
            "n_examples": header.n_examples,
        }
    ]


def _digest_of_parts(parts: Sequence[dict[str, Any]], name: str) -> str:
    return digest_of(json.dumps([[part["weight"], part[name]] for part in parts]).encode())


def _common(parts: Sequence[tuple[float, SteeringVectors]], name: str) -> str:
    values = {getattr(vectors.header, name) for _, vectors in parts}
    return values.pop() if len(values) == 1 else VARIOUS


def _tensor_names(layer: int) -> tuple[str, str, str]:
    return f"layer.{layer}", f"layer.{layer}.pos", f"layer.{layer}.neg"


def _count_layers(tensors: dict[str, Tensor]) -> int:
    """The number of layers, if the names are exactly those of layers 0..L-1."""
    names = set(tensors)
    layers = {int(name[6:]) for name in names if re.fullmatch(r"layer\.(0|[1-9][0-9]{0,3})", name)}
    expected = {name for layer in range(max(layers, default=0) + 1) for name in _tensor_names(layer)}
    if names != expected:
        missing, unexpected = some_of(sorted(expected - names)), some_of(sorted(names - expected))
        raise VectorError(f"missing tensors: {missing}; unexpected: {unexpected}. Write the file again.")
    return len(layers)


def _check_rows(tensors: dict[str, Tensor]) -> None:
    expected = (tensors["layer.0"].numel(),)
    for name, tensor in sorted(tensors.items()):
        if tuple(tensor.shape) != expected or tensor.dtype != torch.float32:
            given = f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}"
            raise VectorError(f"{given}, expected torch.float32 of shape {expected}, the width of layer.0.")


def _words(content: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_short(value)}" for name, value in content.items()) or "none"


def _short(value: Any) -> str:
    """A header value for people: decimals to three places, also inside a list."""
    if isinstance(value, list):
        return f"[{' '.join(_short(item) for item in value)}]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
