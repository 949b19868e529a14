"""Tensors and a record in one safetensors file that knows whether it was changed.

Any safetensors reader can use the tensors.  The metadata has one key, `grains_ref`: a JSON object, the record, with
two more fields:

- `tensors_sha256`: SHA-256 over the tensors in the order of their names, each as one line of JSON,
  `["NAME", "F32", [SHAPE]]`, a line break, and its bytes as they stand in the file.
- `sha256`: SHA-256 of all other fields as JSON with sorted keys (`grains_ref.files.record_bytes`).

What the digests do not cover (white space, the order of the tensors) does not change what is read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from grains_ref.files import FileError, parse_json, parse_record, record_bytes, some_of

METADATA_KEY = "grains_ref"
TENSORS_DIGEST = "tensors_sha256"
MAX_HEADER = 1 << 22  # bytes: names, shapes and record; 1,000 layers need 300 kB
MAX_DIMENSIONS = 8
NUMPY_NAMES = {"F32": "<f4", "F64": "<f8"}  # the types that are read; they are little-endian in every file
SAFETENSORS_NAMES = {torch.float32: "F32", torch.float64: "F64"}


def tensor_file(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> bytes:
    """The content of a file; equal tensors and records give equal bytes.

    tensors: float32 or float64, none of them empty.  record: plain values, as JSON has them.

    Raises:
        ValueError: a number of the record is not finite, a field is taken by a digest, or a tensor is of another type.
    """
    if TENSORS_DIGEST in record:
        raise ValueError(f"a record must not have a field {TENSORS_DIGEST!r} of its own")
    stored = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    if others := {tensor.dtype for tensor in stored.values()} - SAFETENSORS_NAMES.keys():
        raise ValueError(f"tensors must be float32 or float64, not {others}")
    views = {name: (SAFETENSORS_NAMES[t.dtype], list(t.shape), _bytes(t)) for name, t in stored.items()}
    sorted_record = json.loads(json.dumps(record, sort_keys=True, allow_nan=False))
    text = record_bytes(sorted_record | {TENSORS_DIGEST: _digest(views)}).decode()
    return safetensors.torch.save(stored, metadata={METADATA_KEY: text})


def parse_tensor_file(content: bytes, *, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the record that `tensor_file` was given; `name` is what an error calls the file.

    Raises:
        FileError: it is truncated, damaged, of another kind, or holds tensors of no size or of another type.
    """
    header = _header(content, name)
    texts = header.pop("__metadata__", {})
    if not isinstance(texts, dict) or not isinstance(texts.get(METADATA_KEY), str):
        _refuse_foreign(header, name)
    try:
        views = {key: (view["dtype"], view["shape"], view["data"]) for key, view in safetensors.deserialize(content)}
    except safetensors.SafetensorError as error:
        _refuse_damaged(name, error)
    record = parse_record(texts[METADATA_KEY], name=f"{name}, in its header,")
    for key, (dtype, shape, _) in sorted(views.items()):
        if dtype not in NUMPY_NAMES or 0 in shape or len(shape) > MAX_DIMENSIONS:
            raise FileError(f"{name}: the tensor {key} is {dtype} of shape {shape}; expected float32 or float64 values")
    if record.pop(TENSORS_DIGEST, None) != _digest(views):
        raise FileError(f"{name} is damaged: its tensors do not have the digest that its header names")
    return {key: _tensor(*view) for key, view in views.items()}, record


def _header(content: bytes, name: str) -> dict[str, Any]:
    """The JSON object at the start of a safetensors file, after its length in 8 bytes."""
    length = int.from_bytes(content[:8], "little")
    if length > MAX_HEADER and length <= len(content) - 8:
        raise FileError(f"{name} has a header of {length} bytes; at most {MAX_HEADER} are read")
    if len(content) < 8 or length > len(content) - 8:
        _refuse_damaged(name, "its header is longer than the file")
    try:
        header = parse_json(content[8 : 8 + length])
    except ValueError as error:
        _refuse_damaged(name, error)
    if not isinstance(header, dict):
        _refuse_damaged(name, f"its header is no JSON object but {type(header).__name__}")
    return header


def _digest(views: Mapping[str, tuple[str, Sequence[int], bytes]]) -> str:
    digest = hashlib.sha256()
    for name, (dtype, shape, data) in sorted(views.items()):
        digest.update(json.dumps([name, dtype, list(shape)]).encode() + b"\n")
        digest.update(data)
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.numpy().astype(NUMPY_NAMES[SAFETENSORS_NAMES[tensor.dtype]]).tobytes()


def _tensor(dtype: str, shape: Sequence[int], data: bytes) -> Tensor:
    little_endian = np.frombuffer(data, NUMPY_NAMES[dtype]).reshape(shape)
    return torch.from_numpy(little_endian.astype(little_endian.dtype.newbyteorder("=")))


def _refuse_damaged(name: str, problem: object) -> NoReturn:
    raise FileError(f"{name} is truncated, corrupt or no safetensors file ({problem}); copy or write it again")


def _refuse_foreign(names: Iterable[str], name: str) -> NoReturn:
    foreign = sorted(names)
    is_control_vector = any(re.fullmatch(r"direction\.[0-9]+", key) for key in foreign)
    guess = "a control vector as llama.cpp, repeng or EasySteer use?" if is_control_vector else "model weights?"
    raise FileError(f"{name} is a safetensors file, but has no '{METADATA_KEY}' metadata: {some_of(foreign)}; {guess}")
