"""The code of the full-size rungs, run on their architectures cut down to three narrow blocks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ladder
import pytest
import safetensors.torch
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from grains_ref.grains import PRESETS, Steering, fit
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models import full_size
from grains_ref.tiny_models.full_size import (
    byte_level_tokenizer,
    examples_of,
    find_weights,
    full_model,
    measure_fit,
    random_model,
    read_config,
    shrunken,
    timed_fit,
    truthfulqa_shaped_pairs,
    write_record,
)

pytestmark = pytest.mark.cpu

HP = PRESETS["paper_llm"]
N = 5  # new tokens
VOCABULARY = 701  # just enough for the tokenizer, so that an id beyond it would show


def build(config: str, dtype: torch.dtype, seed: int = 0) -> HuggingFaceModel:
    return random_model(shrunken(config, vocab_size=VOCABULARY), name=f"shrunken {config}", dtype=dtype, seed=seed)


@pytest.fixture(
    scope="module",
    params=[("llama-3.1-8b", torch.bfloat16), ("llama-3.1-8b", torch.float32), ("qwen2.5-7b", torch.bfloat16)],
    ids=["llama-bfloat16", "llama-float32", "qwen2-bfloat16"],
)
def rung(request: pytest.FixtureRequest) -> Any:
    """A shrunken model, four pairs, and what was fitted from them: as tests/gpu builds it at full size."""
    config, dtype = request.param
    model = build(config, dtype)
    examples = examples_of(model, truthfulqa_shaped_pairs(4))
    fitted = ladder.check_fit(model, examples, HP)
    lam = ladder.steering_strength(model, examples[0], fitted.v)
    steering = Steering(model.blocks, fitted.v, lam=lam)
    return SimpleNamespace(config=config, model=model, examples=examples, fit=fitted, steering=steering, lam=lam)


# ------------------------------------------------------------------- the checks of tests/gpu, one by one
def test_attribution(rung: Any) -> None:
    ladder.check_attribution(rung.model, rung.examples[0], HP)


def test_norms(rung: Any) -> None:
    norms = ladder.check_norms(rung.model, rung.examples[0].encoded, rung.steering, n=N)
    assert norms.decode_states == 3 * (N - 1)
    assert norms.prefill_states == 3 * len(rung.examples[0].encoded.ids)


def test_cached_generation(rung: Any) -> None:
    reports = [ladder.check_cache(rung.model, one.encoded, rung.steering, n=N) for one in rung.examples[:2]]
    assert sum(report.compared for report in reports) > 0, "no token had a margin to be compared by"


def test_strength_zero(rung: Any) -> None:
    ladder.check_strength_zero(rung.model, rung.examples[0].encoded, rung.fit.v)


def test_left_padded_batch(rung: Any) -> None:
    ladder.check_batch(rung.model, [example.encoded for example in rung.examples], rung.steering)


def test_record(bfloat16: Any, tmp_path: Path) -> None:
    pairs = truthfulqa_shaped_pairs(3)
    result, record = measure_fit(bfloat16.model, pairs, HP, preset="paper_llm", config="shrunken", weights="random")
    ladder.check_vectors(bfloat16.model, result)
    ladder.check_record(record, pairs=3)
    write_record(record, tmp_path / "new" / "record.json")
    assert json.loads((tmp_path / "new" / "record.json").read_text()) == record


# ---------------------------------------------------------------------------- the checks can turn red
class PrefillOnly(Steering):
    """A planted fault: steers the prompt but not the tokens generated from the cache."""

    def _hook(self, v: Tensor) -> Any:
        edit = super()._hook(v)
        return lambda block, inputs, output: edit(block, inputs, output) if output.shape[1] > 1 else output


class HalfPrecisionNorm(Steering):
    """A planted fault: the norm is computed in the model's own bfloat16."""

    def _hook(self, v: Tensor) -> Any:
        def edit(block: Any, inputs: Any, h: Tensor) -> Tensor:
            shifted = h + self._lam * v.to(h)
            return shifted * (h.norm(dim=-1, keepdim=True) / shifted.norm(dim=-1, keepdim=True))

        return edit


class NoNorm(Steering):
    """A planted fault: equation (7) without equation (8)."""

    def _hook(self, v: Tensor) -> Any:
        return lambda block, inputs, h: (h + self._lam * v).to(h)


@pytest.fixture(scope="module")
def bfloat16() -> Any:
    model = build("llama-3.1-8b", torch.bfloat16)
    (example,) = examples_of(model, truthfulqa_shaped_pairs(1))
    v = torch.randn(len(model.blocks), model.width, generator=torch.Generator().manual_seed(7))
    return SimpleNamespace(model=model, encoded=example.encoded, v=v, lam=ladder.steering_strength(model, example, v))


def test_the_cache_check_notices_steering_of_the_prompt_alone(bfloat16: Any) -> None:
    faulty = PrefillOnly(bfloat16.model.blocks, bfloat16.v, lam=bfloat16.lam)
    with pytest.raises(AssertionError, match="distances"):
        ladder.check_cache(bfloat16.model, bfloat16.encoded, faulty, n=N)


@pytest.mark.parametrize("faulty", [NoNorm, HalfPrecisionNorm])
def test_the_norm_check_notices_a_wrong_norm(bfloat16: Any, faulty: type[Steering]) -> None:
    with pytest.raises(AssertionError, match=r"norm changed|norms differ"):
        ladder.check_norms(
            bfloat16.model, bfloat16.encoded, faulty(bfloat16.model.blocks, bfloat16.v, lam=bfloat16.lam), n=N
        )


# --------------------------------------------------------------------------------------- the builders
@pytest.mark.parametrize(("name", "parameters"), [("llama-3.1-8b", 8_030_261_248), ("qwen2.5-7b", 7_615_616_512)])
def test_configurations_are_the_exact_architectures(name: str, parameters: int) -> None:
    with torch.device("meta"):
        hf = AutoModelForCausalLM.from_config(read_config(name), dtype=torch.bfloat16)
    assert sum(p.numel() for p in hf.parameters()) == parameters


def test_llama_keeps_its_rotary_scaling_and_grouped_heads_when_shrunken() -> None:
    full, small = read_config("llama-3.1-8b"), shrunken("llama-3.1-8b", vocab_size=VOCABULARY)
    key = "rope_parameters" if hasattr(full, "rope_parameters") else "rope_scaling"  # its name before transformers 5
    assert getattr(small, key) == getattr(full, key)
    assert getattr(small, key)["rope_type"] == "llama3"
    assert small.num_attention_heads / small.num_key_value_heads == full.num_attention_heads / full.num_key_value_heads


def test_an_unknown_configuration_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'gpt-5'.*llama-3.1-8b, qwen2.5-7b"):
        read_config("gpt-5")


def test_random_weights_depend_on_the_seed_alone_and_leave_the_random_stream_alone() -> None:
    state = torch.get_rng_state()
    one, same, other = (build("qwen2.5-7b", torch.bfloat16, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    pairs = zip(one.hf.parameters(), same.hf.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.embed.weight, other.embed.weight)


def test_residuals_stay_of_order_one_at_the_full_depth() -> None:
    config = shrunken("llama-3.1-8b", vocab_size=VOCABULARY, n_blocks=32)
    model = random_model(config, name="deep", dtype=torch.bfloat16)
    (example,) = examples_of(model, truthfulqa_shaped_pairs(1))
    with torch.no_grad():
        h = model.residuals(example.encoded, example.encoded.embeds[None])[0].float()
    size = h.pow(2).mean(-1).sqrt()
    assert h.isfinite().all()
    assert ((size > 0.5) & (size < 3)).all(), size


def test_pairs_are_fifty_different_ones_of_the_right_lengths() -> None:
    pairs = truthfulqa_shaped_pairs()
    assert pairs == truthfulqa_shaped_pairs(50)
    assert len(pairs) == len({pair.prompt for pair in pairs}) == 50
    tokenizer = byte_level_tokenizer()
    assert all(60 <= len(tokenizer(pair.prompt)["input_ids"]) <= 120 for pair in pairs)
    answers = [f" {text}" for pair in pairs for text in (pair.chosen, pair.rejected)]
    assert all(5 <= len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= 20 for text in answers)
    with pytest.raises(ValueError, match="51"):
        truthfulqa_shaped_pairs(51)


def test_the_timed_fit_is_the_reference_fit() -> None:
    model = build("llama-3.1-8b", torch.float32)
    examples = examples_of(model, truthfulqa_shaped_pairs(2))
    timed, timing, attributions = timed_fit(model, examples, HP, device=model.device)
    assert torch.equal(timed.v, fit(model, examples, HP).v)
    assert len(attributions) == 2
    assert timing.total == timing.attribution + timing.contrast + timing.aggregation


# ------------------------------------------------------------------------------------ released weights
@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of "released" weights: shrunken, as is the architecture that they are compared with."""
    model = build("llama-3.1-8b", torch.bfloat16, seed=3)
    model.hf.save_pretrained(tmp_path / "weights")
    (tmp_path / "configs").mkdir()
    shutil.copy(tmp_path / "weights" / "config.json", tmp_path / "configs" / "llama-3.1-8b.json")
    monkeypatch.setattr(full_size, "CONFIGS", tmp_path / "configs")
    model.tokenizer.save_pretrained(tmp_path / "weights")
    monkeypatch.setenv("GRAINS_LLAMA_PATH", str(tmp_path / "weights"))
    return tmp_path / "weights"


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_size, "_cached_folder", lambda repository: None)
    monkeypatch.delenv("GRAINS_LLAMA_PATH", raising=False)


def test_released_weights_in_the_named_folder_are_used(released: Path) -> None:
    model, weights = full_model("llama-3.1-8b", device="cpu")
    assert weights == "released"
    assert model.hf.dtype == torch.bfloat16
    expected = safetensors.torch.load_file(released / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(model.embed.weight, expected)


def test_a_named_folder_that_lacks_a_file_is_an_error(released: Path) -> None:
    (released / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"GRAINS_LLAMA_PATH.*tokenizer\.json"):
        find_weights("llama-3.1-8b")


def test_a_folder_that_lacks_one_of_several_weight_files_is_an_error(released: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (released / "model.safetensors.index.json").write_text(json.dumps(index))
    (released / "model.safetensors").rename(released / "model-00001-of-00002.safetensors")
    with pytest.raises(FileNotFoundError, match=r"missing: model-00002-of-00002\.safetensors"):
        find_weights("llama-3.1-8b")


def test_weights_of_another_architecture_are_refused(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("GRAINS_LLAMA_PATH", str(released))
    with pytest.raises(ValueError, match="hidden_size is 64, not 4096"):
        find_weights("llama-3.1-8b")


def test_weights_in_the_cache_are_found_and_incomplete_ones_passed_over(
    released: Path, empty_cache: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def cached(repository: str) -> Path | None:
        asked.append(repository)
        return {"meta-llama/Llama-3.1-8B-Instruct": tmp_path, "meta-llama/Llama-3.1-8B": released}.get(repository)

    monkeypatch.setattr(full_size, "_cached_folder", cached)
    assert find_weights("llama-3.1-8b") == released
    assert asked[0] == "meta-llama/Llama-3.1-8B-Instruct"


def test_an_empty_cache_is_no_error_and_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAINS_LLAMA_PATH", raising=False)
    ask = full_size.snapshot_download
    local = []

    def spy(repository: str, *, local_files_only: bool) -> str:
        local.append(local_files_only)
        return ask(repository, local_files_only=local_files_only, cache_dir=tmp_path)

    monkeypatch.setattr(full_size, "snapshot_download", spy)
    assert find_weights("llama-3.1-8b") is None
    assert local == [True] * 4
