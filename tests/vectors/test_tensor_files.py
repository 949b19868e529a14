"""tensor_files.py: tensors and a record come back as they were, or the file is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from grains_ref.files import FileError
from grains_ref.vectors import tensor_files
from grains_ref.vectors.tensor_files import parse_tensor_file, tensor_file

pytestmark = pytest.mark.cpu

TENSORS = {
    "b": torch.tensor([1.5, -0.0, 3e-42]),
    "a": torch.arange(6, dtype=torch.float64).reshape(2, 3),
    "c": torch.tensor(0.1),
}
RECORD = {"z": [1, 2.5, None], "a": {"text": "ü\ud800\x1b"}, "n": 2**70}


def header_of(content: bytes) -> dict[str, Any]:
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def with_header(header: dict[str, Any] | str, data: bytes = b"") -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_tensors_and_record_come_back_bit_for_bit() -> None:
    tensors, record = parse_tensor_file(tensor_file(TENSORS, RECORD), name="v")
    assert record == RECORD
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].shape == tensor.shape
        assert tensors[name].numpy().tobytes() == tensor.numpy().tobytes()
        tensors[name] += 1  # it is the caller's own


def test_any_reader_of_safetensors_can_use_the_file(tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(tensor_file(TENSORS, RECORD))
    found = safetensors.torch.load_file(tmp_path / "v")
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_equal_content_gives_equal_bytes_whatever_the_order() -> None:
    turned = dict(reversed(list(TENSORS.items()))), dict(reversed(list(RECORD.items())))
    assert tensor_file(*turned) == tensor_file(TENSORS, RECORD)


def test_the_digests_are_made_as_documented() -> None:
    """Whoever writes such a file elsewhere has these lines to go by."""
    content = tensor_file(TENSORS, RECORD)
    record = json.loads(header_of(content)["__metadata__"]["grains_ref"])
    digest = hashlib.sha256()
    for name, dtype, shape in (("a", "F64", [2, 3]), ("b", "F32", [3]), ("c", "F32", [])):
        digest.update(json.dumps([name, dtype, shape]).encode() + b"\n" + TENSORS[name].numpy().tobytes())
    assert record["tensors_sha256"] == digest.hexdigest()
    others = {name: value for name, value in record.items() if name != "sha256"}
    assert record["sha256"] == hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def test_a_file_cut_anywhere_is_refused_as_truncated() -> None:
    content = tensor_file(TENSORS, RECORD)
    for cut in range(len(content)):
        with pytest.raises(FileError, match="v is truncated, corrupt"):
            parse_tensor_file(content[:cut], name="v")


def test_every_flipped_bit_is_refused_or_changes_nothing() -> None:
    content = tensor_file(TENSORS, RECORD)
    for i in range(len(content)):
        damaged = bytearray(content)
        damaged[i] ^= 1 << i % 8
        try:
            tensors, record = parse_tensor_file(bytes(damaged), name="v")
        except FileError:
            continue
        assert record == RECORD
        assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_tensors_under_another_name_or_shape_are_refused() -> None:
    content = tensor_file(TENSORS, RECORD)
    start = 8 + int.from_bytes(content[:8], "little")
    for old, new in (('"b"', '"d"'), ("[2,3]", "[3,2]"), ("[]", "[1]")):
        text = content[8:start].decode()
        assert text.count(old) == 1
        with pytest.raises(FileError, match="v is damaged: its tensors do not have the digest"):
            parse_tensor_file(with_header(text.replace(old, new), content[start:]), name="v")


@pytest.mark.parametrize("content", [b"", b"GGUF" + b"\0" * 60, b"{}", b"\xff" * 64, with_header("[" * 99999)])
def test_a_file_of_another_kind_is_refused(content: bytes) -> None:
    with pytest.raises(FileError, match="v is truncated, corrupt or no safetensors file"):
        parse_tensor_file(content, name="v")


@pytest.mark.parametrize(
    ("names", "metadata", "words"),
    [
        (["direction.1", "direction.2"], None, r"direction.1, direction.2; a control vector as llama.cpp"),
        (["model.embed.weight"], {"format": "pt"}, r"model.embed.weight; model weights\?"),
        ([f"w{i}" for i in range(9)], None, "w0, w1, w2, w3 and 5 more; model weights"),
        (["\x1b[2J"], None, r"\\x1b\[2J; model weights"),
    ],
)
def test_a_foreign_safetensors_file_is_refused_with_a_guess(names: list[str], metadata: Any, words: str) -> None:
    content = safetensors.torch.save({name: torch.zeros(2) for name in names}, metadata)
    with pytest.raises(FileError, match="v is a safetensors file, but has no 'grains_ref' metadata: " + words):
        parse_tensor_file(content, name="v")


def test_a_record_without_digests_is_refused() -> None:
    for text in ("", "3", "{}", json.dumps(RECORD)):
        content = safetensors.torch.save(dict(TENSORS), {"grains_ref": text})
        with pytest.raises(FileError, match="v, in its header, is damaged"):
            parse_tensor_file(content, name="v")


@pytest.mark.parametrize(
    ("entry", "data"),
    [
        ({"dtype": "F32", "shape": [0, 1 << 62], "data_offsets": [0, 0]}, b""),
        ({"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]}, b"\0" * 4),
        ({"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}, b"\0" * 4),
        ({"dtype": "I32", "shape": [1], "data_offsets": [0, 4]}, b"\0" * 4),
    ],
    ids=["no values", "a hundred dimensions", "half precision", "integers"],
)
def test_absurd_shapes_and_types_are_refused_before_anything_is_made_of_them(
    entry: dict[str, Any], data: bytes
) -> None:
    text = header_of(tensor_file({}, {}))["__metadata__"]
    with pytest.raises(FileError, match=r"v: the tensor x is .*; expected float32 or float64 values"):
        parse_tensor_file(with_header({"__metadata__": text, "x": entry}, data), name="v")


def test_an_enormous_header_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_files, "MAX_HEADER", 100)
    with pytest.raises(FileError, match=r"v has a header of \d+ bytes; at most 100 are read"):
        parse_tensor_file(tensor_file(TENSORS, RECORD), name="v")


@pytest.mark.parametrize(
    ("tensors", "record"),
    [
        ({"a": torch.zeros(2, dtype=torch.float16)}, {}),
        ({"a": torch.zeros(2, dtype=torch.long)}, {}),
        ({}, {"x": float("nan")}),
        ({}, {"sha256": ""}),
        ({}, {"tensors_sha256": ""}),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"float32|JSON|field"):
        tensor_file(tensors, record)
