"""Seeded damage to the vectors files of other tools: read as what they say, refused with a reason, or what we wrote.

A file of `grains-ref export` has a note with a digest: whatever is read of it with its header is what was written.  A
stranger's file has none; what is read of it is what the format's own library says.
"""

from __future__ import annotations

import base64
import functools
import importlib.util
import io
import json
import random
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from robustness.vector_files import STRANGE
from torch import Tensor

from grains_ref.export import TARGETS, find_target
from grains_ref.export.importing import imported
from grains_ref.export.target import Asked, Directions, ExportError, directions_of
from grains_ref.vectors import Header, MismatchError, SteeringVectors, VectorError

GGUF = ("gguf", "easysteer", "repeng")
WIDTH, BLOCKS = 4, 3
LAM = 2.5


class File(NamedTuple):
    """A file as it was written: by us, with a note of these vectors; or by a stranger, `ours` then being None."""

    target: str
    content: bytes
    ours: Directions | None


def targets() -> list[str]:
    """The tools whose files can be written here: those in GGUF need a package."""
    return [name for name in TARGETS if name not in GGUF or importlib.util.find_spec("gguf")]


def vectors() -> SteeringVectors:
    """Vectors from a fit."""
    v_pos, v_neg = torch.randn(2, BLOCKS, WIDTH, generator=torch.Generator().manual_seed(0))
    header = Header(
        dialect="paper",
        hyper_parameters={"k": 3, "eligible": ["not_last"]},
        model_name="tiny",
        fingerprint="f" * 64,
        data_digest="d" * 64,
        tokens_digest="t" * 64,
        n_examples=50,
        versions={"torch": "2.13.0"},
        diagnostics={"pos_explained": [0.5, 0.25, 0.125]},
        choice={"lam": LAM, "layers": [0, 1, 2], "dev_accuracy": 0.75},
    )
    return SteeringVectors(v=v_pos - v_neg, v_pos=v_pos, v_neg=v_neg, header=header)


@functools.cache
def vectors_file() -> Path:
    """Where SGLang's hooks find the vectors, as long as this process runs."""
    path = Path(_folder().name) / "v.safetensors"
    vectors().save(path)
    return path


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="grains-imported-")


@functools.cache
def originals() -> tuple[File, ...]:
    """Of every target the file that we write; and files of strangers, without our note."""
    files = []
    for name in targets():
        target = find_target(name)
        given = target.carried(directions_of(vectors(), lam=LAM, layers=range(BLOCKS)))
        files.append(File(name, target.write(given, Asked(vectors=vectors_file())), given))
    return (*files, *_strangers())


def _strangers() -> list[File]:
    rows = {block: vectors().v[block] for block in range(BLOCKS)}
    named = {f"layers.{block}": row for block, row in rows.items()}
    halves = [{name: row.to(dtype) for name, row in named.items()} for dtype in (torch.float16, torch.bfloat16)]
    entries = {name: {"steering_vector": row, "action": "add"} for name, row in named.items()}
    packed = base64.b64encode(torch.stack(list(rows.values())).numpy().tobytes()).decode()
    activations = {"data": packed, "dtype": "float32", "shape": [BLOCKS, WIDTH]}
    return [
        File("steering-vectors", safetensors.torch.save(named), None),
        *(File("steering-vectors", safetensors.torch.save(half), None) for half in halves),
        File("steering-vectors", torch_file(rows), None),
        File("lm-eval", torch_file(entries), None),
        File("svec", json.dumps({"directions": {str(i): [row.tolist()] for i, row in rows.items()}}).encode(), None),
        File("vllm-lens", json.dumps([{"layer_indices": [2, 0, 1], "activations": activations}]).encode(), None),
        *(File(name, gguf_of(rows, np.float16), None) for name in GGUF if name in targets()),
        *(File(name, gguf_of(rows, np.float32), None) for name in GGUF if name in targets()),
    ]


def torch_file(entries: object) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(entries, buffer)
    return buffer.getvalue()


def gguf_of(rows: dict[int, Tensor], dtype: type) -> bytes:
    """A control vector without our note."""
    import gguf

    with tempfile.TemporaryDirectory() as folder:
        writer = gguf.GGUFWriter(Path(folder) / "v", "controlvector")
        writer.add_array("names of blocks", ["first", "second", "third"])
        for block, row in rows.items():
            writer.add_tensor(f"direction.{block}", row.numpy().astype(dtype))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return (Path(folder) / "v").read_bytes()


def mutations(rng: random.Random) -> File:
    """A file with one kind of damage."""
    file = rng.choice(originals())
    kinds = [flip, cut, splice, number]
    if file.target in ("svec", "vllm-lens", "sglang"):
        kinds += [edited_json] * 4
    elif file.content.startswith(b"PK"):
        kinds += [strange_tensors, strange_tensors, compressed]
    elif file.target == "steering-vectors":
        kinds += [edited_header] * 3
    return file._replace(content=rng.choice(kinds)(rng, file))


def check(file: File) -> str:
    """ "ok" or "typed error"; anything else, a silent change above all, raises."""
    target = find_target(file.target)
    try:
        directions = target.read(file.content, "the file")
    except ExportError:
        return "typed error"
    if directions.header is not None:
        assert file.ours is not None, "a header came from nowhere"
        assert directions.header == file.ours.header, "the header was changed"
        by_block = file.ours.by_block
        if file.target == "sglang":  # each hook names its block, and the vectors file, which has a digest
            by_block = {block: vectors().v[block] for block in directions.by_block}
        _assert_same(directions, by_block)
        assert directions.lam == file.ours.lam or file.target in ("lm-eval", "vllm-lens", "sglang"), "another strength"
    elif file.target != "sglang":
        _assert_same(directions, meaning(file.target, file.content))
    _use(directions, file.target)
    return "ok"


def _assert_same(directions: Directions, want: dict[int, Tensor] | Any) -> None:
    assert sorted(directions.by_block) == sorted(want), "other blocks"
    assert all(torch.equal(directions.by_block[block], want[block]) for block in want), "other vectors"


def _use(directions: Directions, target: str) -> None:
    """All that `grains-ref import` does with what was read, but for a model of thousands of blocks."""
    n_layers = directions.blocks[-1] + 1
    if n_layers > 100:
        return
    given = {"target": target, "file_digest": "0" * 64, "model_name": "tiny", "fingerprint": "f" * 64}
    try:
        imported(directions, n_layers=n_layers, width=directions.width + 1, **given)  # type: ignore[arg-type]
    except MismatchError:
        pass
    else:
        raise AssertionError("vectors of another width were taken")
    try:
        made = imported(directions, n_layers=n_layers, width=directions.width, **given)  # type: ignore[arg-type]
    except VectorError:  # for instance a length beyond float32
        return
    assert all(torch.equal(made.v[block], row) for block, row in directions.by_block.items())
    assert made.header.choice.get("lam") == directions.lam
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder) / "v")
        again = SteeringVectors.load(Path(folder) / "v")
    assert torch.equal(again.v, made.v)
    assert again.header == made.header


# --- what a file says, by the format's own library


def meaning(target: str, content: bytes) -> dict[int, Tensor]:
    """The vectors of a stranger's file, block by block."""
    if target in GGUF:
        return _of_gguf(content)
    if target == "svec":
        rows = json.loads(content)["directions"].items()
        return {int(i): _float32(row[0] if isinstance(row[0], list) else row) for i, row in rows}
    if target == "vllm-lens":
        (vector,) = json.loads(content)
        data = np.frombuffer(base64.b64decode(vector["activations"]["data"]), "<f4")
        blocks = vector["layer_indices"]
        return dict(zip(blocks, torch.from_numpy(data.reshape(len(blocks), -1).copy()), strict=True))
    if content.startswith(b"PK"):
        tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    else:
        tensors = safetensors.torch.load(content)
    if target == "lm-eval":
        tensors = {name: entry["steering_vector"] for name, entry in tensors.items()}
    return {_block(name): _float32(values) for name, values in tensors.items()}


def _block(name: object) -> int:
    (digits,) = re.findall(r"(?:^|\.)([0-9]+)$", str(name))
    return int(digits)


def _float32(values: Any) -> Tensor:
    tensor = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float64)
    return tensor.detach().float()


def _of_gguf(content: bytes) -> dict[int, Tensor]:
    import gguf

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v"
        path.write_bytes(content)
        tensors = gguf.GGUFReader(path).tensors
        return {_block(tensor.name): torch.from_numpy(tensor.data.copy()).float() for tensor in tensors}


# --- kinds of damage


def flip(rng: random.Random, file: File) -> bytes:
    """One to three bits."""
    damaged = bytearray(file.content)
    for _ in range(rng.randint(1, 3)):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def cut(rng: random.Random, file: File) -> bytes:
    """The end is lost."""
    return file.content[: rng.randrange(len(file.content))]


def splice(rng: random.Random, file: File) -> bytes:
    """A piece is lost, doubled, zeroed or taken from another tool's file."""
    start = rng.randrange(len(file.content))
    end = min(len(file.content), start + rng.randint(1, 200))
    other = rng.choice(originals()).content
    piece = rng.choice([b"", file.content[start:end] * 2, bytes(end - start), other[start:end]])
    return file.content[:start] + piece + file.content[end:]


def number(rng: random.Random, file: File) -> bytes:
    """Somewhere four or eight bytes are another number: a length, a count, a type, a place."""
    size = rng.choice([4, 8])
    start = rng.randrange(max(1, min(len(file.content), 600) - size))
    value = rng.choice([0, 1, 2, 9, 200, 20_000, 1 << 20, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 64) - 1])
    piece = (value % (1 << 8 * size)).to_bytes(size, "little")
    return file.content[:start] + piece + file.content[start + size :]


def edited_json(rng: random.Random, file: File) -> bytes:
    """One value, however deep, is another, is gone, is there twice, or lies too deep."""
    return edited(rng, json.loads(file.content)).encode()


def edited_header(rng: random.Random, file: File) -> bytes:
    """The same to the header of a safetensors file."""
    end = 8 + int.from_bytes(file.content[:8], "little")
    header = edited(rng, json.loads(file.content[8:end])).encode()
    return len(header).to_bytes(8, "little") + header + file.content[end:]


def edited(rng: random.Random, tree: Any) -> str:
    """JSON with one value changed."""
    if rng.random() < 0.05:
        return rng.choice(["", "null", "[]", "{}", "[" * 99_999, '{"a":' * 99_999, "NaN", "\x00", '"\\ud800"'])
    parent = tree
    while True:
        key = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        inner = parent[key]
        if not isinstance(inner, (dict, list)) or not inner or rng.random() < 0.3:
            break
        parent = inner
    change = rng.choice(["replace", "replace", "remove", "add", "nest"])
    if change == "replace":
        parent[key] = rng.choice((*STRANGE, 1.5, [0], [[1.0, 2.0]], 1e39, float("nan"), "0", "7", "99999", True))
    elif change == "remove":
        del parent[key]
    elif change == "nest":
        for _ in range(rng.choice([1, 2, 90, 101, 400])):
            parent[key] = rng.choice([[parent[key]], {"x": parent[key]}])
    elif isinstance(parent, dict):
        parent[rng.choice(["0", "00", "3", "layers.1", "grains_ref", "__metadata__", "\x1b", ""])] = inner
    else:
        parent.append(inner)
    try:
        return json.dumps(tree)
    except ValueError:  # a number of too many digits
        return "1" * 5000


def strange_tensors(rng: random.Random, file: File) -> bytes:
    """A dictionary of torch.save whose keys or values are not what they should be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some kinds of tensors are prototypes, or on their way out
        return _strange_dictionary(rng, file)


def _strange_dictionary(rng: random.Random, file: File) -> bytes:
    row = torch.arange(4.0)
    values: list[Any] = [
        row.long(), row.bool(), row.to(torch.complex64), row.double() * 1e300, row.to(torch.float8_e4m3fn),
        row * torch.nan, row[None], row[:0], row[0], torch.ones(1).expand(1 << 33), row.to_sparse(),
        torch.empty(4, device="meta"), row.requires_grad_(), torch.nn.Parameter(row), row[::2],
        torch.quantize_per_tensor(torch.arange(4.0), 0.1, 0, torch.qint8), torch.nested.nested_tensor([row, row]),
        row.tolist(), [1, None], None, "x", 10**5000, {"0": row},
    ]  # fmt: skip
    keys: list[Any] = ["0", 1, "layers.2", "x", -1, 10**5000, None, True, 1.0, (0,), "direction.0", "\x1b", "9999"]
    entries: dict[Any, Any] = {}
    for _ in range(rng.randint(1, 3)):
        value: Any = rng.choice(values) if rng.random() < 0.7 else row
        key = rng.choice(keys) if rng.random() < 0.4 else f"layers.{len(entries)}"
        if file.target == "lm-eval" and rng.random() < 0.9:
            value = {"steering_vector": value, "action": "add"}
            value[rng.choice(["steering_coefficient", "bias", "action", "grains_ref", "x"])] = rng.choice(STRANGE)
        entries[key] = value
    return torch_file(rng.choice([entries, entries, entries, [entries], row, None]))


def compressed(rng: random.Random, file: File) -> bytes:
    """The zip file of torch.save packed anew: compressed, without a member, or with one of zeros without end."""
    buffer = io.BytesIO()
    bomb = rng.random() < 0.1
    with zipfile.ZipFile(io.BytesIO(file.content)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        lost = rng.choice([*old.namelist(), ""])
        for name in old.namelist():
            if name != lost:
                new.writestr(name, old.read(name))
            elif bomb:
                new.writestr(name, bytes(1 << 26))
    return buffer.getvalue()


KINDS: tuple[Callable[[random.Random, File], bytes], ...] = (
    flip, cut, splice, number, edited_json, edited_header, strange_tensors, compressed,
)  # fmt: skip


def campaign(rng: random.Random, folder: Path) -> str:
    """One damaged input of a campaign; the folder is not needed."""
    return check(mutations(rng))
