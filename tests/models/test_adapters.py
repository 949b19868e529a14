"""models/adapters.py: an adapter's folder on its base, and a sentence for every other base."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from grains_ref.fitting.resumable import header_of
from grains_ref.grains import PRESETS, Steering, fit
from grains_ref.models import HuggingFaceModel, UnsupportedModelError, load
from grains_ref.tiny_models.random_models import fill, random_llama, random_qwen2

pytestmark = pytest.mark.cpu

PAIR = ("The capital of France is", "Paris.", "Rome.")


def saved(model: HuggingFaceModel, folder: Path) -> Path:
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def adapter_of(model: HuggingFaceModel, folder: Path, **changes: Any) -> tuple[Path, torch.Tensor]:
    """A random LoRA saved as peft saves one; and what peft itself computes with it, unmerged."""
    options: dict[str, Any] = {"r": 4, "lora_alpha": 24, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    config = peft.LoraConfig(task_type="CAUSAL_LM", **options | changes)
    wrapped = peft.get_peft_model(model.hf, config)
    for name, module in wrapped.named_modules():
        if name.endswith(("lora_A.default", "lora_B.default")):
            fill(module, name)
    wrapped.save_pretrained(folder)
    ids = model.encode(PAIR[0]).ids[None]
    with torch.no_grad():
        logits = wrapped(input_ids=ids).logits
    return folder, logits


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(random_llama(), tmp_path_factory.mktemp("some") / "base")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, base: Path) -> tuple[Path, torch.Tensor]:
    return adapter_of(load(base), tmp_path_factory.mktemp("some") / "adapter")


def test_an_adapter_computes_what_peft_computes(adapter: tuple[Path, torch.Tensor], llama: HuggingFaceModel) -> None:
    folder, expected = adapter
    model = load(folder)
    ids = model.encode(PAIR[0]).ids[None]
    assert torch.allclose(model.hf(input_ids=ids).logits, expected, atol=1e-5)
    assert not torch.allclose(llama.hf(input_ids=ids).logits, expected, atol=1e-1)
    assert type(model.hf) is type(llama.hf)
    assert all("lora" not in name for name, _ in model.hf.named_modules())
    assert model.name == "adapter"
    assert model.tokenizer.chat_template == llama.tokenizer.chat_template


def test_an_adapted_model_can_be_fitted_and_steered(adapter: tuple[Path, torch.Tensor]) -> None:
    model = load(adapter[0])
    pairs = [PAIR, ("The capital of Italy is", "Rome.", "Paris.")]
    vectors = fit(model, [model.example(*pair) for pair in pairs], PRESETS["paper_llm"])
    with Steering(model.blocks, vectors.v, lam=50.0):
        steered = model.score([PAIR[:2]])
    assert steered != model.score([PAIR[:2]])


def test_the_header_names_the_adapter_and_its_base(
    adapter: tuple[Path, torch.Tensor], llama: HuggingFaceModel, base: Path
) -> None:
    model = load(adapter[0])
    record = {"dialect": "paper", "hyper_parameters": {}, "diagnostics": {}}
    header = header_of(model, [model.example(*PAIR)], "", **record)
    assert header.origin["adapter"] == "adapter"
    assert header.origin["base"] == str(base)
    assert header.origin["base_fingerprint"] == llama.fingerprint()
    assert len(header.origin["adapter_digest"]) == 64
    assert header.fingerprint == model.fingerprint() != llama.fingerprint()
    assert header_of(llama, [llama.example(*PAIR)], "", **record).origin == {}


def test_another_strength_of_an_adapter_has_another_digest(adapter: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    weaker = copied(adapter[0], tmp_path, lora_alpha=1)
    first, second = load(adapter[0]), load(weaker)
    assert first.origin["adapter_digest"] != second.origin["adapter_digest"]
    assert first.fingerprint() != second.fingerprint()


def copied(folder: Path, to: Path, **changes: Any) -> Path:
    """The adapter with other entries in its configuration; None takes one out."""
    new = to / "copied"
    new.mkdir()
    record = json.loads((folder / "adapter_config.json").read_text()) | changes
    (new / "adapter_config.json").write_text(json.dumps({k: v for k, v in record.items() if v is not None}))
    (new / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    return new


def test_the_base_can_be_given(adapter: tuple[Path, torch.Tensor], base: Path, tmp_path: Path) -> None:
    elsewhere = copied(adapter[0], tmp_path, base_model_name_or_path="/far/away/base")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(elsewhere, base=base).fingerprint() == load(adapter[0]).fingerprint()
    with pytest.warns(UserWarning, match=r"says that it was trained on /far/away/base, and is put on .*other"):
        load(elsewhere, base=saved(random_llama(), tmp_path / "other"))


def test_a_missing_base_is_named(adapter: tuple[Path, torch.Tensor], base: Path, tmp_path: Path) -> None:
    gone = copied(adapter[0], tmp_path, base_model_name_or_path="/far/away/base\x1b[2J")
    words = (
        r"copied is an adapter of /far/away/base\\x1b\[2J, and this base cannot be loaded: there is no folder.*--base"
    )
    with pytest.raises(OSError, match=words):
        load(gone)
    (tmp_path / "nameless").mkdir()
    with pytest.raises(OSError, match=r"is an adapter that names no base; give the model .*--base"):
        load(copied(adapter[0], tmp_path / "nameless", base_model_name_or_path=None))
    with pytest.raises(ValueError, match=r"base is .*, but .* is no adapter"):
        load(base, base=base)


def shallower(tmp_path: Path) -> HuggingFaceModel:
    model = random_llama()
    model.hf.config.num_hidden_layers = 2
    del model.hf.model.layers[2:]
    return model


def deeper(tmp_path: Path) -> HuggingFaceModel:
    model = random_llama()
    model.hf.config.num_hidden_layers = 4
    model.hf.model.layers.append(random_llama().hf.model.layers[0])
    return model


def another_type(tmp_path: Path) -> HuggingFaceModel:
    return random_qwen2()


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (shallower, r"the base has no place for base_model\.model\.model\.layers\.2\."),
        (deeper, r"the adapter has nothing for base_model\.model\.model\.layers\.3\."),
        (another_type, "size mismatch"),
    ],
)
@pytest.mark.filterwarnings("ignore:the adapter .* says")
def test_the_wrong_base_is_refused(adapter: tuple[Path, torch.Tensor], tmp_path: Path, other: Any, why: str) -> None:
    folder = saved(other(tmp_path), tmp_path / "other")
    with pytest.raises(UnsupportedModelError, match=rf"was not trained on .*other: .*{why}"):
        load(adapter[0], base=folder)


def test_an_adapter_that_is_pickled_or_damaged_is_refused(adapter: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    folder = copied(adapter[0], tmp_path)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(OSError, match=r"without adapter_model\.safetensors; adapter_model\.bin is never read"):
        load(folder)
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(OSError, match=r"is no record of peft's"):
        load(folder)


def test_learned_prompts_are_no_adapter_of_the_weights(base: Path, tmp_path: Path) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    peft.get_peft_model(load(base).hf, config).save_pretrained(tmp_path / "prompts")
    with pytest.raises(UnsupportedModelError, match="kind PROMPT_TUNING: it puts learned tokens in front"):
        load(tmp_path / "prompts")


def test_an_adapter_on_an_adapter_is_both(adapter: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    first = load(adapter[0])
    second, expected = adapter_of(load(adapter[0]), tmp_path / "second", target_modules=["o_proj"])
    record = json.loads((second / "adapter_config.json").read_text())
    (second / "adapter_config.json").write_text(json.dumps(record | {"base_model_name_or_path": str(adapter[0])}))
    model = load(second)
    assert torch.allclose(model.hf(input_ids=model.encode(PAIR[0]).ids[None]).logits, expected, atol=1e-5)
    assert model.origin["base_fingerprint"] == first.fingerprint()


def test_a_tokenizer_beside_the_adapter_is_used(adapter: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    folder = copied(adapter[0], tmp_path)
    tokenizer = random_llama().tokenizer
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(folder)
    assert load(folder).tokenizer.chat_template == "{{ messages[0]['content'] }}"
