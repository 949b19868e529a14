"""Quantised weights: let in if the proof passes, which also asks whether gradients come through."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from gguf_models import wide_llama
from torch import nn

from grains_ref.grains import PRESETS, fit
from grains_ref.models import HuggingFaceModel, UnsupportedModelError, load, weights
from grains_ref.models.proof import ProofFailedError
from grains_ref.tiny_models.random_models import random_llama

pytestmark = pytest.mark.cpu

PAIR = ("The capital of France is", "Paris.", "Rome.")
NAME = "gradients add up to the change of the logits"


class Rounded(nn.Linear):
    """A linear layer in eighths, as kernels for quantised weights compute it; `gradient`: what they let through."""

    gradient = "all"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.gradient == "none":
            x = x.detach()
        y = nn.functional.linear(x, (self.weight * 8).round() / 8)
        return y if self.gradient != "half" else 0.5 * y + 0.5 * y.detach()


def quantised(gradient: str) -> HuggingFaceModel:
    """A model that transformers holds for quantised, with such layers in every block."""
    model = random_llama()
    for module in model.hf.model.modules():
        if type(module) is nn.Linear:
            module.__class__ = type("Rounded", (Rounded,), {"gradient": gradient})
    model.hf.hf_quantizer = object()
    return model


def test_quantised_weights_that_let_gradients_through_are_let_in() -> None:
    model = quantised("all")
    proof = HuggingFaceModel(model.hf, model.tokenizer, name="rounded").proof
    assert NAME in [check.name for check in proof.checks]
    assert NAME not in [check.name for check in random_llama().proof.checks]


@pytest.mark.parametrize("gradient", ["none", "half"])
def test_a_gradient_that_is_lost_without_an_error_is_found(gradient: str) -> None:
    model = quantised(gradient)
    with pytest.raises(ProofFailedError, match=rf"{NAME}: expected 1, up to 0\.3, found -?0\.\d\d of it: on cpu these"):
        HuggingFaceModel(model.hf, model.tokenizer, name="rounded")


def test_eight_bit_floats_are_looked_at_for_nan() -> None:
    module = nn.Linear(3, 2, bias=False)
    module.weight = nn.Parameter(torch.ones(2, 3).to(torch.float8_e4m3fn), requires_grad=False)
    weights.check_finite(module, name="eighth")
    assert weights._whole(module, "weight", module.weight).dtype == torch.float32
    module.weight = nn.Parameter(torch.tensor([[torch.nan]]).to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ValueError, match="eighth: 1 of 1 values of the parameter 'weight' are NaN"):
        weights.check_finite(module, name="eighth")


# --- other people's packages, where they are installed


def four_bit() -> Any:
    return transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)


def eight_bit() -> Any:
    return transformers.BitsAndBytesConfig(load_in_8bit=True)


def of_weights() -> Any:
    return transformers.TorchAoConfig(importlib.import_module("torchao.quantization").Int8WeightOnlyConfig())


def of_activations() -> Any:
    config = importlib.import_module("torchao.quantization").Int8DynamicActivationInt8WeightConfig()
    return transformers.TorchAoConfig(config)


def quanto() -> Any:
    return transformers.QuantoConfig(weights="int8")


METHODS = [
    ("bitsandbytes", eight_bit, True),
    ("bitsandbytes", four_bit, False),  # on a CPU its kernel has no backward pass
    ("torchao", of_weights, True),
    ("torchao", of_activations, False),  # rounding has no gradient
    ("optimum.quanto", quanto, True),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("package", "config", "is_let_in"), METHODS)
def test_quantised_folders(tmp_path: Path, package: str, config: Callable[[], Any], is_let_in: bool) -> None:
    pytest.importorskip(package)
    plain, folder = wide_llama(), tmp_path / "quantised"
    plain.hf.save_pretrained(tmp_path / "plain")
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=config())
    options: dict[str, Any] = {}
    if package == "optimum.quanto":  # it cannot be saved, but made while loading
        folder, options = tmp_path / "plain", {"quantization_config": config()}
    else:
        hf.save_pretrained(folder)
    plain.tokenizer.save_pretrained(folder)
    if not is_let_in:
        with pytest.raises(ProofFailedError, match=NAME):
            load(folder, **options)
        return
    model = load(folder, **options)
    assert model.origin["quantisation"] in package
    assert model.fingerprint() != plain.fingerprint()
    pairs = [PAIR, ("The capital of Italy is", "Rome.", "Paris.")]
    vectors, of_plain = (fit(m, [m.example(*pair) for pair in pairs], PRESETS["paper_llm"]) for m in (model, plain))
    assert nn.functional.cosine_similarity(vectors.v, of_plain.v, dim=-1).min() > 0.98


@pytest.mark.thorough
def test_an_adapter_stays_beside_quantised_weights(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    plain = wide_llama()
    plain.hf.save_pretrained(tmp_path / "plain")
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=eight_bit())
    hf.save_pretrained(tmp_path / "base")
    plain.tokenizer.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(hf, config)
    wrapped.save_pretrained(tmp_path / "adapter")
    record = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    record["base_model_name_or_path"] = str(tmp_path / "base")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(record))
    model = load(tmp_path / "adapter")
    ids = model.encode(PAIR[0]).ids[None]
    assert torch.allclose(model.hf(input_ids=ids).logits, wrapped(input_ids=ids).logits, atol=1e-4)
    assert any("lora_A" in name for name, _ in model.hf.named_parameters())
    assert model.origin["base_fingerprint"] == load(tmp_path / "base").fingerprint() != model.fingerprint()


def test_what_transformers_cannot_read_is_told_by_its_own_words(tmp_path: Path) -> None:
    model = random_llama()
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    record["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises((OSError, UnsupportedModelError, RuntimeError), match=r"(?i)gptqmodel|awq|GPU"):
        load(tmp_path)
