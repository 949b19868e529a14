"""The files of the targets: what is in them, what is said to be lost, and damage to them."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import random
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import grains_ref.export
from grains_ref.export import TARGETS, find_target, sglang
from grains_ref.export.importing import imported
from grains_ref.export.target import Asked, Directions, ExportError, directions_of, note_of, with_note
from grains_ref.grains import steer_hidden
from grains_ref.vectors import Header, MismatchError, SteeringVectors

pytestmark = pytest.mark.cpu

HEADER = Header(
    dialect="paper",
    hyper_parameters={"k": 3},
    model_name="tiny",
    fingerprint="f0",
    data_digest="d0",
    tokens_digest="t0",
    n_examples=50,
    versions={"torch": "2"},
    diagnostics={"pos_explained": [0.5, 0.25, 0.125]},
    choice={"lam": 2.5, "layers": [0, 1, 2], "dev_accuracy": 0.75, "dev_curve": [[0.0, 0.5], [2.5, 0.75]]},
)
IN_GGUF = ("gguf", "easysteer", "repeng")


def needs(target: str) -> None:
    if target in IN_GGUF:
        pytest.importorskip("gguf", reason="needs gguf: pip install 'grains-ref[gguf]'")


@pytest.fixture
def vectors() -> SteeringVectors:
    v_pos, v_neg = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    return SteeringVectors(v=v_pos - v_neg, v_pos=v_pos, v_neg=v_neg, header=HEADER)


@pytest.fixture
def asked(vectors: SteeringVectors, tmp_path: Path) -> Asked:
    vectors.save(tmp_path / "v.safetensors")
    return Asked(vectors=tmp_path / "v.safetensors")


@pytest.fixture(params=TARGETS)
def name(request: pytest.FixtureRequest) -> str:
    needs(request.param)
    return str(request.param)


def same(a: Directions, b: Directions) -> bool:
    return a.blocks == b.blocks and all(torch.equal(a.by_block[i], b.by_block[i]) for i in a.blocks)


# --- the list


def test_every_target_is_listed_and_every_listed_target_is_there() -> None:
    for name in TARGETS:
        assert find_target(name).name == name
    folder = Path(grains_ref.export.__file__).parent
    modules = {p.stem.replace("_", "-") for p in folder.glob("*.py") if "\nTARGET = Target(" in p.read_text()}
    assert modules == set(TARGETS)
    with pytest.raises(ValueError, match="there is no target 'ggml'; there are gguf, easysteer"):
        find_target("ggml")


# --- the files


def test_what_is_written_is_read_bit_for_bit_with_strength_and_header(
    name: str, vectors: SteeringVectors, asked: Asked
) -> None:
    target = find_target(name)
    given = target.carried(directions_of(vectors, lam=2.5, layers=[0, 1, 2]))
    content = target.write(given, asked)
    assert content == target.write(given, asked)
    read = target.read(content, "file")
    assert same(read, given)
    assert read.blocks == ([1, 2] if name == "gguf" else [0, 1, 2])
    assert read.header == HEADER
    assert read.lam == 2.5


def test_blocks_that_are_not_steered_are_not_in_the_file(name: str, vectors: SteeringVectors, asked: Asked) -> None:
    target = find_target(name)
    read = target.read(target.write(directions_of(vectors, lam=-1.0, layers=[2, 1]), asked), "file")
    assert read.blocks == [1, 2]
    assert torch.equal(read.by_block[2], vectors.v[2])


def test_gguf_files_name_blocks_from_0_and_have_what_other_readers_ask_for(
    vectors: SteeringVectors, asked: Asked, tmp_path: Path
) -> None:
    needs("gguf")
    import gguf

    for name, blocks in (("gguf", [1, 2]), ("repeng", [0, 1, 2])):
        target = find_target(name)
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(target.write(target.carried(directions_of(vectors, lam=2.5, layers=range(3))), asked))
        reader = gguf.GGUFReader(path)
        assert [tensor.name for tensor in reader.tensors] == [f"direction.{i}" for i in blocks]
        for tensor, block in zip(reader.tensors, blocks, strict=True):
            assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
            assert tensor.data.tolist() == vectors.v[block].tolist()
        assert reader.get_field("general.architecture").contents() == "controlvector"
        assert reader.get_field("controlvector.model_hint").contents() == "tiny"
        assert reader.get_field("controlvector.layer_count").contents() == len(blocks)


def test_other_files_are_what_their_tools_load(vectors: SteeringVectors, asked: Asked) -> None:
    """By the few lines that each tool's loader has."""

    def written(name: str) -> bytes:
        return find_target(name).write(directions_of(vectors, lam=2.5, layers=range(3)), asked)

    assert torch.equal(safetensors.torch.load(written("steering-vectors"))["1"], vectors.v[1])
    entries = torch.load(io.BytesIO(written("lm-eval")), weights_only=True)
    assert list(entries) == ["layers.0", "layers.1", "layers.2"]
    assert torch.equal(entries["layers.1"]["steering_vector"], vectors.v[1])
    assert (entries["layers.1"]["steering_coefficient"], entries["layers.1"]["action"]) == (2.5, "add")
    svec = json.loads(written("svec"))
    assert torch.equal(torch.tensor(svec["directions"]["1"], dtype=torch.float32), vectors.v[1])
    (request,) = json.loads(written("vllm-lens"))
    rows = np.frombuffer(base64.b64decode(request["activations"]["data"]), dtype="float32")
    rows = rows.reshape(request["activations"]["shape"])
    assert rows[request["layer_indices"].index(1)].tolist() == vectors.v[1].tolist()
    assert (request["scale"], request["norm_match"], request["position_indices"]) == (2.5, False, None)


def test_modules_are_called_as_asked(vectors: SteeringVectors, asked: Asked) -> None:
    given = directions_of(vectors, lam=2.5, layers=[2])
    entries = torch.load(io.BytesIO(find_target("lm-eval").write(given, replace(asked, blocks="h.{i}"))))
    assert list(entries) == ["h.2"]
    (hook,) = json.loads(find_target("sglang").write(given, replace(asked, blocks="transformer.h.{i}")))
    assert hook["target_modules"] == ["transformer.h.2"]


# --- what is lost


def test_what_a_target_cannot_carry_is_said(vectors: SteeringVectors) -> None:
    v = torch.tensor([[3.0, 0, 0, 4.0], [2.0, 0, 0, 0], [3.0, 0, 0, 0]])
    given = directions_of(replace(vectors, v=v, v_pos=v, v_neg=0 * v), lam=2.5, layers=[0, 1, 2])
    block, norm, strength = find_target("gguf").losses(given)
    assert block == "block 0: llama.cpp cannot steer it. |v_0| is 50 % of the summed lengths of all vectors"
    assert norm.startswith("norm restoration, equation (8)")
    assert strength.startswith("the strength")
    assert find_target("sglang").losses(given) == []
    assert [words[:16] for words in find_target("lm-eval").losses(given)] == ["norm restoration"]
    assert [words[:12] for words in find_target("repeng").losses(given)] == ["the strength"]


def test_vectors_of_block_0_alone_are_refused_by_a_target_that_cannot_steer_it(vectors: SteeringVectors) -> None:
    with pytest.raises(ExportError, match=r"llama.cpp cannot steer the blocks \[0\]: its first is 1"):
        find_target("gguf").carried(directions_of(vectors, lam=1.0, layers=[0]))


# --- damage and strangers


def damaged(content: bytes, rng: random.Random) -> Iterator[bytes]:
    yield b""
    yield content + content
    for _ in range(12):
        yield content[: rng.randrange(len(content))]
        place = rng.randrange(len(content))
        yield content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def test_a_damaged_file_is_refused_or_gives_the_same_vectors(name: str, vectors: SteeringVectors, asked: Asked) -> None:
    target = find_target(name)
    given = target.carried(directions_of(vectors, lam=2.5, layers=range(3)))
    content = target.write(given, asked)
    for worse in damaged(content, random.Random(name)):
        with contextlib.suppress(ExportError):
            assert same(target.read(worse, "file"), given)


def torch_file(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def packed(content: Any) -> bytes:
    """A file of torch.save whose members are compressed, which torch never does."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(torch_file(content))) as old,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return buffer.getvalue()


class Code:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("was_run"),))


V = torch.ones(4)
ENTRY = {"steering_vector": V, "action": "add"}
STRANGERS: list[tuple[str, bytes, str]] = [
    ("steering-vectors", torch_file(Code()), "damaged, no file of torch.save, or holds more than tensors"),
    ("lm-eval", torch_file({"layers.0": Code()}), "damaged, no file of torch.save, or holds more than tensors"),
    ("steering-vectors", torch_file([V]), "holds no dictionary"),
    ("steering-vectors", torch_file({0: [1.0, float("nan")]}), "no list of finite numbers"),
    ("steering-vectors", torch_file({0: V, 1: torch.ones(3)}), r"block 1: a vector of shape \(3,\)"),
    ("steering-vectors", torch_file({0: V.long()}), "block 0 has no list of finite numbers"),
    ("steering-vectors", torch_file({0: V * float("inf")}), "block 0: the vector is not finite"),
    ("steering-vectors", torch_file({-1: V}), "'-1' is no number of a block"),
    ("steering-vectors", torch_file({}), "there is no vector"),
    ("steering-vectors", torch_file({0: torch.ones(1).expand(1 << 33)}), "8589934592 numbers; at most 1048576 "),
    ("steering-vectors", torch_file({0: V.to_sparse()}), "block 0 has no list of finite numbers"),
    ("steering-vectors", torch_file({0: torch.empty(4, device="meta")}), "block 0 has no list of finite numbers"),
    ("lm-eval", torch_file({(0,): ENTRY}), "a key is no text and no number of a block, but tuple"),
    ("lm-eval", packed({"layers.0": ENTRY, "zeros": "0" * (1 << 20)}), "bytes unpack to"),
    ("svec", b'{"directions": {"0": [1.0]}, "meta": {"grains_ref": 3}}', "its note of grains_ref is int"),
    ("steering-vectors", safetensors.torch.save({"layers.1": V, "direction.1": 2 * V}), "block 1 is there twice"),
    ("steering-vectors", safetensors.torch.save({"model.embed.weight": V}), "a file of weights"),
    ("lm-eval", torch_file({"layers.0": ENTRY | {"action": "clamp"}}), "something else than to add"),
    ("lm-eval", torch_file({"layers.0": ENTRY | {"head_index": 1}}), "something else than to add"),
    ("lm-eval", torch_file({"a.0": ENTRY, "a.1": ENTRY | {"steering_coefficient": 2.0}}), "2 strengths"),
    ("svec", b'{"directions": {"0": [1e40]}}', "block 0: the vector is not finite"),
    ("svec", b'{"directions": {"0": [[1.0], [2.0]]}}', "block 0 has no list of finite numbers"),
    ("svec", b'{"directions": {"0": [1.0], "00": [1.0]}}', "block 0 is there twice"),
    ("svec", b'{"directions": []}', "no .svec file"),
    ("vllm-lens", b'[{"layer_indices": [0], "activations": {"data": "AAAAAA==", "dtype": "float32", "shape": [1, 9]}}]',
     r"has the shape \[1, 9\] and 1 values"),
    ("vllm-lens", b'[{"layer_indices": [0], "norm_match": true}]', "norm_match or position_indices"),
    ("sglang", b'[{"hook_factory": "os:system", "config": {}}]', "no list of hooks"),
    ("sglang", b"[1]", "no list of hooks"),
]  # fmt: skip


@pytest.mark.parametrize(("target", "content", "words"), STRANGERS)
def test_a_file_that_is_something_else_is_refused(
    target: str, content: bytes, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match=words):
        find_target(target).read(content, "file")
    assert not Path("was_run").exists()


def test_a_member_that_does_not_agree_with_its_checksum_is_refused() -> None:
    content = torch_file({"layers.0": ENTRY})
    order = content.index(b"little")  # torch goes on without knowing the order of bytes, and reads other memory
    damaged = content[:order] + b"LITTLE" + content[order + 6 :]
    with pytest.raises(ExportError, match="archive/byteorder does not agree with its checksum"):
        find_target("lm-eval").read(damaged, "file")


@pytest.mark.parametrize("name", ["lm-eval", "vllm-lens", "sglang"])
def test_a_file_that_steers_by_itself_needs_a_strength(name: str, vectors: SteeringVectors, asked: Asked) -> None:
    given = Directions(by_block={1: vectors.v[1].clone()}, lam=None, header=HEADER)
    with pytest.raises(ExportError, match="no strength is known; give lam"):
        find_target(name).write(given, asked)


@pytest.mark.parametrize("name", ["lm-eval", "sglang"])
def test_blocks_that_would_all_have_one_name_are_refused(name: str, vectors: SteeringVectors, asked: Asked) -> None:
    with pytest.raises(ExportError, match="'h' names every block alike"):
        find_target(name).write(directions_of(vectors, lam=1.0, layers=[0, 1]), replace(asked, blocks="h"))


def test_a_safetensors_file_may_have_no_metadata_at_all() -> None:
    content = safetensors.torch.save({"0": V})
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    text = json.dumps({"__metadata__": None} | header).encode()
    content = len(text).to_bytes(8, "little") + text + content[8 + int.from_bytes(content[:8], "little") :]
    with contextlib.suppress(ExportError):
        assert find_target("steering-vectors").read(content, "file").header is None


def test_a_gguf_file_that_claims_endless_lists_is_refused_at_once(vectors: SteeringVectors, asked: Asked) -> None:
    needs("gguf")
    target = find_target("gguf")
    content = target.write(directions_of(vectors, lam=1.0, layers=[1]), asked)
    for place in (8, 16):  # the number of tensors, of keys
        with pytest.raises(ExportError, match="at most 20000 are read"):
            target.read(content[:place] + (2**60).to_bytes(8, "little") + content[place + 8 :], "file")
    key = (1).to_bytes(8, "little") + b"k" + (9).to_bytes(4, "little")  # a list of bytes, 2**60 of them
    endless = content[:8] + (0).to_bytes(8, "little") + (1).to_bytes(8, "little") + key
    with pytest.raises(ExportError, match="a list of 1152921504606846976 values"):
        target.read(endless + (0).to_bytes(4, "little") + (2**60).to_bytes(8, "little"), "file")


def test_a_note_that_is_of_other_vectors_is_refused(vectors: SteeringVectors) -> None:
    given = directions_of(vectors, lam=2.5, layers=[0, 1])
    moved = {1: given.by_block[0], 0: given.by_block[1]}
    with pytest.raises(ExportError, match="its vectors are not those that its note of grains_ref describes"):
        with_note(moved, note_of(given), name="file")
    with pytest.raises(ExportError, match="damaged"):
        with_note(given.by_block, note_of(given).replace("2.5", "3.5"), name="file")
    assert with_note(given.by_block, None, name="file").header is None


# --- SGLang's hooks


class Block(nn.Module):
    """As SGLang's: what the attention and the MLP added, and the rest of the residual stream."""

    def forward(self, hidden: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return hidden, residual


def test_sglangs_hook_steers_the_sum_of_what_its_block_returns(vectors: SteeringVectors, asked: Asked) -> None:
    hooks = json.loads(find_target("sglang").write(directions_of(vectors, lam=2.5, layers=range(3)), asked))
    (config,) = [hook["config"] for hook in hooks if hook["target_modules"] == ["model.layers.1"]]
    block = Block()
    block.register_forward_hook(sglang.make_hook(config))
    hidden, residual = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))
    new, left = block(hidden, residual)
    assert torch.equal(left, residual)
    torch.testing.assert_close(new + left, steer_hidden(hidden + residual, vectors.v[1], lam=2.5))
    alone = nn.Identity()
    alone.register_forward_hook(sglang.make_hook(config))
    torch.testing.assert_close(alone(hidden), steer_hidden(hidden, vectors.v[1], lam=2.5))


def test_sglangs_hook_refuses_vectors_that_were_changed_after_the_export(
    vectors: SteeringVectors, asked: Asked
) -> None:
    (hook,) = json.loads(find_target("sglang").write(directions_of(vectors, lam=2.5, layers=[1]), asked))
    (vectors * 2.0).save(asked.vectors)
    with pytest.raises(ExportError, match="another vectors file than the one that was exported"):
        sglang.make_hook(hook["config"])
    asked.vectors.unlink()
    with pytest.raises(ExportError, match=r"does not exist.*export again"):
        sglang.make_hook(hook["config"])
    with pytest.raises(ExportError, match=r"lacks \['layer', 'lam'\]"):
        sglang.make_hook({"vectors": "v", "vectors_sha256": ""})


# --- and back


MODEL: dict[str, Any] = {"n_layers": 3, "width": 4, "model_name": "tiny", "fingerprint": "f0"}


def back(vectors: SteeringVectors, asked: Asked, *, target: str = "svec", **changes: Any) -> SteeringVectors:
    its = find_target(target)
    layers = changes.pop("layers", range(3))
    content = its.write(its.carried(directions_of(vectors, lam=2.5, layers=layers)), asked)
    directions = its.read(content, "file")
    return imported(directions, target=target, file_digest="0", **(MODEL | changes))


def test_what_comes_back_steers_as_before_and_still_says_where_it_is_from(
    vectors: SteeringVectors, asked: Asked
) -> None:
    again = back(vectors, asked)
    assert torch.equal(again.v, vectors.v)
    header = again.header
    assert (header.dialect, header.data_digest, header.n_examples) == ("imported", "d0", 50)
    assert header.hyper_parameters["exported"] == {"k": 3}
    assert header.choice == HEADER.choice
    assert back(vectors, asked, lam=4.0).header.choice == {"lam": 4.0, "layers": [0, 1, 2]}  # of which nothing is known


def test_a_block_that_the_file_does_not_have_is_not_steered(vectors: SteeringVectors, asked: Asked) -> None:
    needs("gguf")
    again = back(vectors, asked, target="gguf")
    assert torch.equal(again.v[1:], vectors.v[1:])
    assert not again.v[0].any()
    assert again.header.choice == {"lam": 2.5, "layers": [1, 2]}  # the dev figures were of three blocks


def test_vectors_of_a_stranger_say_that_nothing_is_known_of_them() -> None:
    content = torch_file({0: V, 2: 2 * V})
    directions = find_target("steering-vectors").read(content, "file")
    header = imported(directions, target="steering-vectors", file_digest="abc", **MODEL).header
    assert (header.data_digest, header.n_examples, header.choice) == ("unknown", 0, {})
    assert header.hyper_parameters["file_sha256"] == "abc"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 5}, "has vectors of width 4 for blocks up to 2; the model 'tiny' has 3 blocks"),
        ({"n_layers": 2}, "blocks up to 2; the model 'tiny' has 2 blocks"),
        ({"fingerprint": "f1"}, "made with 'tiny', fingerprint 'f0'.*--force"),
    ],
)
def test_vectors_of_another_model_are_refused(
    changes: dict[str, Any], words: str, vectors: SteeringVectors, asked: Asked
) -> None:
    with pytest.raises(MismatchError, match=words):
        back(vectors, asked, **changes)
    if "fingerprint" in changes:
        back(vectors, asked, force=True, **changes)


@pytest.mark.parametrize("place", [{"site": "attention_output"}, {"positions": "after_prompt"}])
def test_vectors_that_are_not_added_where_the_tools_add_them_are_refused(
    vectors: SteeringVectors, place: dict[str, str]
) -> None:
    elsewhere = replace(vectors, header=replace(HEADER, method="edit_gradient", **place))
    with pytest.raises(ExportError, match="where these vectors mean something else"):
        directions_of(elsewhere, lam=1.0, layers=[0])
    assert directions_of(vectors, lam=1.0, layers=[0]).blocks == [0]
