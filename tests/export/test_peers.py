"""The tools themselves: what they read of our files, and whether they steer as `rules` says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llama_cpp_peer
import numpy as np
import pytest
import torch
from torch import Tensor

from grains_ref.demo.planted import model_folder
from grains_ref.export import find_target, rules
from grains_ref.export.steering_vectors import restoring
from grains_ref.export.target import Asked, Directions, Rule
from grains_ref.grains import Hooks, Steering, edit_output
from grains_ref.models import HuggingFaceModel, load

pytestmark = pytest.mark.cpu

LAM = 2.0
PROMPT = "Q : allegedly verified , what is the dish of Kelvara ? A :"


@pytest.fixture(scope="module")
def model() -> HuggingFaceModel:
    return load(model_folder("simple", 0))


@pytest.fixture(scope="module")
def given(model: HuggingFaceModel) -> Directions:
    v = 0.3 * torch.randn(len(model.blocks), model.width, generator=torch.Generator().manual_seed(0))
    return Directions(by_block=dict(enumerate(v)), lam=LAM, header=None)


@pytest.fixture
def written(given: Directions, tmp_path: Path) -> Callable[..., Path]:
    def write(name: str) -> Path:
        target = find_target(name)
        path = tmp_path / f"vectors{target.suffix}"
        path.write_bytes(target.write(target.carried(given), Asked(vectors=path)))
        return path

    return write


def ids_of(model: HuggingFaceModel) -> Tensor:
    return model.encode(PROMPT).ids[None]


def logits(model: HuggingFaceModel) -> Tensor:
    """The next token's, by transformers alone."""
    with torch.no_grad():
        return model.hf(input_ids=ids_of(model)).logits[0, -1]


def by_rule(model: HuggingFaceModel, given: Directions, rule: Rule, *, first: int = 0) -> Tensor:
    hooks = []
    for block, v in given.by_block.items():
        if block >= first:
            hooks.append((model.blocks[block], edit_output(lambda h, v=v: rule(h, v, LAM))))
    with Hooks(hooks):
        return logits(model)


def ours(model: HuggingFaceModel, given: Directions) -> Tensor:
    with Steering(model.blocks, torch.stack(list(given.by_block.values())), lam=LAM):
        return logits(model)


def agree(a: Tensor, b: Tensor, *, tolerance: float = 1e-5) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm())


# --- repeng


@pytest.fixture(scope="module")
def repeng() -> Iterator[Any]:
    """repeng 0.4.0 names `np.float_`, gone from numpy 2, in type hints; nothing else keeps it from running."""
    with pytest.MonkeyPatch.context() as patch:
        if not hasattr(np, "float_"):
            patch.setattr(np, "float_", np.float64, raising=False)
        yield pytest.importorskip("repeng", reason="needs repeng: tox -e peer-repeng")


def test_repeng_reads_our_file_and_steers_as_we_do(
    repeng: Any, model: HuggingFaceModel, given: Directions, written: Callable[..., Path]
) -> None:
    vector = repeng.ControlVector.import_gguf(written("repeng"))
    assert {i: row.tolist() for i, row in vector.directions.items()} == {
        i: v.tolist() for i, v in given.by_block.items()
    }
    control = repeng.ControlModel(model.hf, list(vector.directions))
    try:
        control.set_control(vector, coeff=LAM, normalize=True)
        restored = logits(model)
        control.set_control(vector, coeff=LAM)
        added = logits(model)
    finally:
        control.reset()
        control.unwrap()
    assert agree(restored, ours(model, given))
    assert agree(added, by_rule(model, given, rules.add))
    assert not agree(added, restored, tolerance=1e-2)


def test_we_read_repengs_file(repeng: Any, given: Directions, tmp_path: Path) -> None:
    rows = {i: v.numpy() for i, v in given.by_block.items()}
    repeng.ControlVector(model_type="llama", directions=rows).export_gguf(tmp_path / "v.gguf")
    read = find_target("repeng").read((tmp_path / "v.gguf").read_bytes(), "it")
    assert all(torch.equal(read.by_block[i], v) for i, v in given.by_block.items())
    assert (read.lam, read.header) == (None, None)


# --- steering-vectors


def test_steering_vectors_reads_our_file_and_steers_as_we_do(
    model: HuggingFaceModel, given: Directions, written: Callable[..., Path]
) -> None:
    package = pytest.importorskip("steering_vectors", reason="needs steering-vectors: tox -e peer-steering-vectors")
    from safetensors.torch import load_file

    vector = package.SteeringVector({int(i): v for i, v in load_file(written("steering-vectors")).items()})
    with vector.apply(model.hf, multiplier=LAM, operator=restoring):
        restored = logits(model)
    with vector.apply(model.hf, multiplier=LAM):
        added = logits(model)
    assert agree(restored, ours(model, given))
    assert agree(added, by_rule(model, given, rules.add))


# --- lm-evaluation-harness


def test_the_harness_reads_our_file_and_adds_its_vectors(
    model: HuggingFaceModel, given: Directions, written: Callable[..., Path]
) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: tox -e peer-lm-eval")
    from lm_eval.models.hf_steered import SteeredModel

    folder = str(model_folder("simple", 0))
    steered = SteeredModel(pretrained=folder, steer_path=str(written("lm-eval")), device="cpu", dtype="float32")
    with torch.no_grad():
        added = steered._model_call(ids_of(model))[0, -1]
    assert agree(added, by_rule(model, given, rules.add))


# --- llama.cpp


def test_llama_cpp_adds_the_vectors_of_our_file_at_the_same_blocks_but_the_first(
    model: HuggingFaceModel, given: Directions, written: Callable[..., Path], tmp_path: Path
) -> None:
    for package in ("llama_cpp_py_sync", "xllamacpp"):
        pytest.importorskip(package, reason="needs llama.cpp: tox -e peer-llama-cpp")
    llama_cpp_peer.write_model(model, tmp_path / "model.gguf")
    control = llama_cpp_peer.control_of(written("gguf"), width=model.width, n_blocks=len(model.blocks), scale=LAM)
    ids = ids_of(model)[0].tolist()
    with llama_cpp_peer.loaded(tmp_path / "model.gguf") as there:
        plain, steered = there.logits(ids), there.logits(ids, control)
    assert agree(plain, logits(model), tolerance=1e-3)  # its cache is in half precision
    assert agree(steered, by_rule(model, given, rules.add, first=1), tolerance=1e-3)
    assert not agree(steered, by_rule(model, given, rules.add), tolerance=1e-2)
