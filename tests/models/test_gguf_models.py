"""models/gguf_files.py: models in the format of llama.cpp through transformers' own loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from gguf_models import wide_llama, write_gguf

from grains_ref.grains import PRESETS, fit
from grains_ref.models import HuggingFaceModel, UnsupportedModelError, load

pytestmark = pytest.mark.cpu

PAIR = ("The capital of France is", "Paris.", "Rome.")
CHAT = [{"role": "user", "content": "Is the earth flat?"}]


@pytest.fixture(scope="module")
def original() -> HuggingFaceModel:
    return wide_llama()


def test_a_file_is_the_model_that_it_was_converted_from(original: HuggingFaceModel, tmp_path: Path) -> None:
    model = load(write_gguf(original, tmp_path / "tiny.gguf"))
    assert model.name == "tiny.gguf"
    assert model.origin == {"gguf": "tiny.gguf", "gguf_types": "F32"}
    assert model.fingerprint() == original.fingerprint()
    assert model.score([PAIR[:2]]) == original.score([PAIR[:2]])
    assert model.encode(CHAT).ids.equal(original.encode(CHAT).ids)
    assert model.encode(PAIR[0]).ids.equal(original.encode(PAIR[0]).ids)
    assert model.generate([PAIR[0]], max_new_tokens=3) == original.generate([PAIR[0]], max_new_tokens=3)


@pytest.mark.parametrize(("quantisation", "apart"), [("F16", 3e-3), ("Q4_1", 0.5)])
def test_quantised_blocks_become_float32_numbers(
    original: HuggingFaceModel, tmp_path: Path, quantisation: str, apart: float
) -> None:
    write_gguf(original, tmp_path / "tiny.gguf", quantisation=quantisation)
    model = load(tmp_path)  # the folder that it is in
    assert model.origin["gguf_types"] == f"{quantisation}, F32"
    assert model.hf.dtype == torch.float32
    ids = original.encode(PAIR[0]).ids[None]
    off = (model.hf(input_ids=ids).logits - original.hf(input_ids=ids).logits).norm()
    assert 0 < off / original.hf(input_ids=ids).logits.norm() < apart
    weight = model.hf.get_parameter("model.layers.0.mlp.up_proj.weight")
    if quantisation == "Q4_1":  # a scale and a minimum in half, whose sum a half cannot hold
        assert not torch.equal(weight, weight.half().float())
    assert load(tmp_path, dtype="bfloat16").hf.dtype == torch.bfloat16


def test_a_quantised_file_can_be_fitted(original: HuggingFaceModel, tmp_path: Path) -> None:
    model = load(write_gguf(original, tmp_path / "tiny.gguf", quantisation="Q8_0"))
    vectors = fit(model, [model.example(*PAIR), model.example("The capital of Italy is", "Rome.", "Paris.")],
                  PRESETS["paper_llm"])  # fmt: skip
    assert torch.isfinite(vectors.v).all()
    assert vectors.v.norm() > 0


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"rope_freqs.weight": torch.ones(8)}, r"rope_freqs\.weight"),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, r"llama\.rope\.scaling\.type"),
    ],
)
def test_stretched_angles_are_refused(
    original: HuggingFaceModel, tmp_path: Path, extra: dict[str, Any], named: str
) -> None:
    path = write_gguf(original, tmp_path / "tiny.gguf", extra=extra)
    with pytest.raises(UnsupportedModelError, match=rf"tiny\.gguf stretches rotary angles \({named}"):
        load(path)


def test_angles_that_are_said_not_to_be_stretched_are_fine(original: HuggingFaceModel, tmp_path: Path) -> None:
    path = write_gguf(original, tmp_path / "tiny.gguf", extra={"llama.rope.scaling.type": "none"})
    assert load(path).fingerprint() == original.fingerprint()


def test_tensors_without_a_place_are_not_passed_over(original: HuggingFaceModel, tmp_path: Path) -> None:
    path = write_gguf(original, tmp_path / "tiny.gguf", extra={"blk.0.attn_q.bias": torch.ones(64)})
    with pytest.raises(UnsupportedModelError, match=r"holds 116,480 numbers, and the model .* has 116,416: it has no"):
        load(path)
    behind = write_gguf(original, tmp_path / "ahead.gguf", extra={"blk.2.nextn.eh_proj.weight": torch.ones(64)})
    assert load(behind).fingerprint() == original.fingerprint()


def test_a_file_that_lacks_a_tensor_is_refused(original: HuggingFaceModel, tmp_path: Path) -> None:
    path = write_gguf(original, tmp_path / "tiny.gguf", extra={"blk.1.ffn_up.weight": None})
    with pytest.raises(UnsupportedModelError, match=r"lacks 1 of the model's weights \(model\.layers\.1\.mlp\.up_proj"):
        load(path)


def test_one_whole_file_is_needed(tmp_path: Path) -> None:
    (tmp_path / "q4.gguf").write_bytes(b"GGUF")
    (tmp_path / "q8.gguf").write_bytes(b"GGUF")
    with pytest.raises(OSError, match=r"holds 2 models, q4\.gguf, q8\.gguf; give one file"):
        load(tmp_path)
    (tmp_path / "big-00001-of-00003.gguf").write_bytes(b"GGUF")
    with pytest.raises(OSError, match=r"is a part of a model.*llama-gguf-split --merge"):
        load(tmp_path / "big-00001-of-00003.gguf")


def test_without_the_package_the_message_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (tmp_path / "q4.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install 'grains-ref\[gguf\]'"):
        load(tmp_path / "q4.gguf")


def test_an_adapter_is_merged_into_the_numbers_of_a_file(original: HuggingFaceModel, tmp_path: Path) -> None:
    path = write_gguf(original, tmp_path / "tiny.gguf", quantisation="Q8_0")
    base = load(path)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(load(path).hf, config)
    wrapped.peft_config["default"].base_model_name_or_path = str(path)
    wrapped.save_pretrained(tmp_path / "adapter")
    model = load(tmp_path / "adapter")
    ids = base.encode(PAIR[0]).ids[None]
    assert torch.allclose(model.hf(input_ids=ids).logits, wrapped(input_ids=ids).logits, atol=1e-4)
    assert model.origin["gguf_types"] == "Q8_0, F32"
    assert model.origin["base_fingerprint"] == base.fingerprint() != model.fingerprint()
