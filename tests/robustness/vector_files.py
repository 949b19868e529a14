"""Seeded damage to vectors files: it is refused with a reason, or changes nothing, or the file says that it is another.

rng = random.Random(0)
for _ in range(40_000):
    check(mutations(rng))
"""

from __future__ import annotations

import copy
import functools
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from grains_ref.files import record_bytes
from grains_ref.vectors import SteeringVectors, VectorFileError, compose
from grains_ref.vectors.header import Header, VectorError
from grains_ref.vectors.tensor_files import METADATA_KEY, parse_tensor_file, tensor_file

Record = dict[str, Any]

STRANGE: tuple[Any, ...] = (
    None, True, 0, -1, 7, 2**63, 10**400, 1e308, -0.0, "", "x", "\x1b[2J\u202e", "\ud800", "9" * 5000,
    [], {}, [[]], [None], {"composed_of": []}, {"composed_of": [{}]}, [1, "2", None],
)  # fmt: skip


@functools.cache
def originals() -> tuple[bytes, bytes]:
    """Vectors from a fit, and a sum of two."""
    single = _sample(0)
    return _content(single), _content(single - 0.5 * _sample(1))


def _sample(seed: int) -> SteeringVectors:
    v_pos, v_neg = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed))
    header = Header(
        dialect="paper",
        hyper_parameters={"k": 3, "m": 5, "eligible": ["not_last"], "sigma": 0.15},
        model_name="tiny",
        fingerprint="f" * 64,
        data_digest="d" * 64,
        tokens_digest="t" * 64,
        n_examples=50,
        versions={"torch": "2.13.0"},
        diagnostics={"pos_explained": [0.5, 0.25, 0.125], "note": 0.5},
    )
    return SteeringVectors(v=v_pos - v_neg, v_pos=v_pos, v_neg=v_neg, header=header)


def _content(vectors: SteeringVectors) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        vectors.save(Path(folder) / "v")
        return (Path(folder) / "v").read_bytes()


def mutations(rng: random.Random) -> bytes:
    """The content of a vectors file with one kind of damage."""
    return rng.choice(KINDS)(rng, rng.choice(originals()))


def check(content: bytes) -> str:
    """ "ok" or "typed error"; anything else, a silent change above all, raises."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v"
        path.write_bytes(content)
        try:
            loaded = SteeringVectors.load(path)
        except VectorFileError as error:
            message = str(error)
        else:
            message = ""
            _use(loaded, path)
    if message:
        assert str(path) in message, f"the message does not name the file: {message}"
        return "typed error"
    known = {_named_digest(original): _meaning(original) for original in originals()}
    named = _named_digest(content)
    assert known.get(named, _meaning(content)) == _meaning(content), "the file was changed and names the same digest"
    return "ok"


def _use(loaded: SteeringVectors, path: Path) -> None:
    """All that `inspect`, `compose` and `save` do."""
    for name, words in loaded.summary():
        (name + words).encode()  # half a character of a pair could not be printed
    assert len(loaded.norms()) == loaded.n_layers
    try:
        total = compose([(1.0, loaded), (-2, loaded)])
    except VectorError:  # for instance a sum of weights beyond float64
        pass
    else:
        total.summary()
    loaded.save(path)
    assert SteeringVectors.load(path).header == loaded.header


def _named_digest(content: bytes) -> str:
    return str(json.loads(_header(content)["__metadata__"][METADATA_KEY])["sha256"])


def _meaning(content: bytes) -> tuple[Record, dict[str, list[float]]]:
    tensors, record = parse_tensor_file(content, name="v")
    return record, {name: tensor.tolist() for name, tensor in tensors.items()}


# --- kinds of damage to the bytes, as disks and networks do


def flip(rng: random.Random, content: bytes) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def splice(rng: random.Random, content: bytes) -> bytes:
    """A piece is lost, doubled, zeroed or taken from another file."""
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.randint(1, 200))
    piece = rng.choice([b"", content[start:end] * 2, bytes(end - start), rng.choice(originals())[start:end]])
    return content[:start] + piece + content[end:]


def length(rng: random.Random, content: bytes) -> bytes:
    """The header claims another length."""
    claimed = rng.choice([0, 1, len(content), len(content) - 8, 1 << 22, 1 << 40, (1 << 64) - 1, rng.randrange(2000)])
    return claimed.to_bytes(8, "little") + content[8:]


# --- kinds of damage to the layout, which no digest guards


def layout(rng: random.Random, content: bytes) -> bytes:
    """One entry of the safetensors header is another: shapes, types, places."""
    header = _header(content)
    name = rng.choice([key for key in header if key != "__metadata__"])
    field, values = rng.choice(
        [
            ("shape", [[0, 1 << 62], [1 << 62], [-4], [4.0], [2, 2], [1] * 10_000, [], "4", None, [4, 1]]),
            ("dtype", ["F64", "F16", "I32", "F4", "C64", "", None, 3]),
            ("data_offsets", [[0, 16], [16, 0], [0, 1 << 62], [-16, 0], [], None, [0]]),
        ]
    )
    header[name][field] = rng.choice(values)
    return _file(json.dumps(header), content)


def metadata(rng: random.Random, content: bytes) -> bytes:
    """The text in the header is no text, no object, or has no end."""
    header = _header(content)
    text = header["__metadata__"][METADATA_KEY]
    strange = [None, 3, {}, "", "{}", "[]", "[" * 9999, '{"a":' * 9999, text[:-9], text + " ", text.replace("t", "u")]
    header["__metadata__"] = rng.choice([{METADATA_KEY: rng.choice(strange)}, {METADATA_KEY: text, "more": "text"}, {}])
    return _file(json.dumps(header), content)


def no_header(rng: random.Random, content: bytes) -> bytes:
    return _file(rng.choice(["", "null", "[]", "[" * 99999, '{"a":' * 99999, "{", '"', "{}", "NaN", "\x00"]), content)


# --- what a hand makes that knows the digests


def edited_record(rng: random.Random, content: bytes) -> bytes:
    """One value of the header, however deep, is another, and the digests are right again."""
    tensors, record = parse_tensor_file(content, name="v")
    record = copy.deepcopy(record)
    parent = record
    while True:
        key = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        inner = parent[key]
        if not isinstance(inner, (dict, list)) or not inner or rng.random() < 0.3:
            break
        parent = inner
    change = rng.choice(["replace", "replace", "remove", "add", "nest"])
    if change == "replace":
        parent[key] = rng.choice(STRANGE)
    elif change == "remove":
        del parent[key]
    elif change == "nest":
        for _ in range(rng.choice([1, 90, 99, 100, 101, 400])):
            parent[key] = rng.choice([[parent[key]], {"x": parent[key]}])
    elif isinstance(parent, dict):
        parent[rng.choice(["x", "composed_of", "\x1b", ""])] = rng.choice(STRANGE)
    else:
        parent.append(rng.choice(STRANGE))
    try:
        return tensor_file(tensors, record)
    except ValueError:  # a number of too many digits: no writer could write it
        return content


def edited_tensors(rng: random.Random, content: bytes) -> bytes:
    """One tensor is another, or one layer of another size, and the digests are right again."""
    tensors, record = parse_tensor_file(content, name="v")
    if rng.random() < 0.2:
        factor = 2.0 ** rng.randint(-150, 130)
        for name in ("layer.1", "layer.1.pos", "layer.1.neg"):
            tensors[name] = tensors[name] * factor
        return tensor_file(tensors, record)
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    change = rng.choice(
        ["remove", "rename", "double", "longer", "matrix", "nothing", "nan", "infinite", "other", "sign"]
    )
    tensors[name] = {
        "double": tensor.double(),
        "longer": torch.cat([tensor, tensor]),
        "matrix": tensor[None],
        "nothing": tensor[:0],
        "nan": tensor * torch.nan,
        "infinite": tensor / 0,
        "other": tensor + 1e-3,
        "sign": -tensor,
    }.get(change, tensor)
    if change == "remove":
        del tensors[name]
    if change == "rename":
        other = rng.choice(["layer.9", "layer.00", "layer.1e3", "x", "layer.99999", "layer.0.pos.pos"])
        tensors[other] = tensors.pop(name)
    return tensor_file(tensors, record)


def swapped(rng: random.Random, content: bytes) -> bytes:
    """The header of one file with the tensors of another, and a digest for the header alone."""
    other = originals()[0] if content == originals()[1] else originals()[1]
    header = _header(content)
    record = json.loads(_header(other)["__metadata__"][METADATA_KEY])
    del record["sha256"]
    header["__metadata__"][METADATA_KEY] = record_bytes(record).decode()
    return _file(json.dumps(header), content)


KINDS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    flip, cut, splice, length, layout, metadata, no_header, edited_record, edited_record, edited_tensors, swapped,
)  # fmt: skip


def _header(content: bytes) -> dict[str, Any]:
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def _file(header: str, content: bytes) -> bytes:
    """The tensors of a file after another header."""
    data = content[8 + int.from_bytes(content[:8], "little") :]
    return len(header.encode()).to_bytes(8, "little") + header.encode() + data


def campaign(rng: random.Random, folder: Path) -> str:
    """One damaged input of a campaign; the folder is not needed."""
    return check(mutations(rng))
