"""models/proof.py: what is tried when a model is wrapped. Each fault, planted in a model, has words of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from shared import first_quick
from torch import nn

from grains_ref.methods.core import capture
from grains_ref.models import HuggingFaceModel, UnsupportedModelError, proof, weights
from grains_ref.models.families import Family
from grains_ref.models.proof import ProofFailedError
from grains_ref.tiny_models.random_models import common_sizes, fill, random_llama
from grains_ref.tiny_models.random_vision_models import random_gemma3, random_llava, random_qwen_vl

pytestmark = pytest.mark.cpu

Change = Callable[[Any], object]  # to a transformers model


def rewrapped(change: Change, build: Callable[[], HuggingFaceModel] = random_llama) -> HuggingFaceModel:
    model = build()
    change(model.hf)
    return HuggingFaceModel(model.hf, model.tokenizer, name="changed", image_processor=model.family.processor)


def before(module: nn.Module, change: Callable[[tuple[Any, ...], dict[str, Any]], Any]) -> None:
    """Change what a module is called with."""
    module.register_forward_pre_hook(lambda module, args, kwargs: change(args, kwargs), with_kwargs=True)


# --- where the blocks are


def one_block_too_few(hf: Any) -> None:
    hf.config.num_hidden_layers = 4


def blocks_under_another_type(hf: Any) -> None:
    hf.model.layers = nn.Sequential(*hf.model.layers)


def one_block_twice(hf: Any) -> None:
    hf.model.layers[1] = hf.model.layers[0]


def sharded_by_fsdp(hf: Any) -> None:
    """`fully_shard` changes a module's class like this."""
    mixin = type("FSDPModule", (), {})
    hf.__class__ = type("FSDPLlamaForCausalLM", (mixin, type(hf)), {})


# --- what blocks return


def another_axis(hf: Any) -> None:
    hf.model.layers[0].register_forward_hook(lambda block, args, output: output[:, :, None].expand(-1, -1, 4, -1))
    before(hf.model.layers[1], lambda args, kwargs: ((args[0].mean(2), *args[1:]), kwargs))


def a_list_of_states(hf: Any) -> None:
    hf.model.layers[2].register_forward_hook(lambda block, args, output: [output])
    before(hf.model.norm, lambda args, kwargs: ((args[0][0],), kwargs))


def overflow(hf: Any) -> None:
    hf.half().model.layers[1].mlp.down_proj.weight.data.mul_(30000)
    hf.model.layers[1].mlp.up_proj.weight.data.mul_(30000)


# --- what hooks do


def noise_in_a_block(hf: Any) -> None:
    hf.model.layers[1].register_forward_hook(lambda block, inputs, output: output + 0.1 * torch.randn(output.shape))


def something_added_between_blocks(hf: Any) -> None:
    before(hf.model.layers[1], lambda args, kwargs: ((args[0] + 0.1, *args[1:]), kwargs))


def a_last_state_that_is_not_read(hf: Any) -> None:
    earlier: list[Any] = []
    before(hf.model.layers[2], lambda args, kwargs: earlier.append(args[0]))
    before(hf.model.norm, lambda args, kwargs: ((earlier.pop(),), kwargs))


def blocks_that_do_not_matter(hf: Any) -> None:
    hf.lm_head.weight.data.zero_()
    hf.lm_head.register_forward_hook(lambda head, args, output: output + torch.arange(output.shape[-1]))


# --- ids, embeddings, and which logits come


def embeddings_scaled_where_ids_come_in(hf: Any) -> None:
    def scale(args: Any, kwargs: dict[str, Any]) -> Any:
        if kwargs.get("input_ids") is None:
            return args, kwargs
        return args, kwargs | {"inputs_embeds": 1.1 * hf.get_input_embeddings()(kwargs.pop("input_ids"))}

    before(hf.model, scale)


def logits_to_keep_swallowed(hf: Any) -> None:
    forward = hf.forward
    hf.forward = lambda *args, logits_to_keep=0, **kwargs: forward(*args, **kwargs)


def other_rows_kept(hf: Any) -> None:
    forward = hf.forward

    def keep_first(*args: Any, logits_to_keep: int = 0, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        out.logits = out.logits[:, : logits_to_keep or None]
        return out

    hf.forward = keep_first


def a_model_that_looks_ahead(hf: Any) -> None:
    def mix(block: nn.Module, args: Any, output: Any) -> Any:
        return output + 0.1 * output.mean(1, keepdim=True)

    hf.model.layers[0].register_forward_hook(mix)


# --- cache and padding


def a_cache_off_by_one(hf: Any) -> None:
    def shift(args: Any, kwargs: dict[str, Any]) -> Any:
        cache = kwargs.get("past_key_values")
        if cache is None or not cache.get_seq_length():
            return args, kwargs
        return args, kwargs | {"position_ids": kwargs["position_ids"] + 1}

    before(hf.model, shift)


def no_cache_at_all(hf: Any) -> None:
    forward = hf.forward

    def without(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        out.past_key_values = None
        return out

    hf.forward = without


def padding_counted_in_positions(hf: Any) -> None:
    def count(args: Any, kwargs: dict[str, Any]) -> Any:
        positions = kwargs.get("position_ids")
        if positions is None or (kwargs.get("past_key_values") is not None and kwargs.get("input_ids") is not None):
            return args, kwargs
        return args, kwargs | {"position_ids": torch.arange(positions.shape[1]).expand_as(positions)}

    before(hf.model, count)


def a_block_that_fails(hf: Any) -> None:
    def fail(block: nn.Module, inputs: Any, output: Any) -> None:
        raise RuntimeError("a kernel that does not exist")

    hf.model.layers[1].register_forward_hook(fail)


REFUSED = {
    sharded_by_fsdp: "FSDPLlamaForCausalLM: FSDP gathers weights only inside.* device_map='auto'",
    one_block_too_few: "LlamaForCausalLM: the configuration has 4 decoder blocks; found LlamaModel.layers with 3",
    blocks_under_another_type: "has 3 decoder blocks; found no list of blocks",
    one_block_twice: "changed: every block runs: expected each of 3 once, in order, found 5 runs",
    another_axis: r"changed: blocks return states \(B, T, d\): .*found \(1, 12, 4, 28\) of block 0",
    a_list_of_states: r"changed: blocks return states \(B, T, d\): .*found a list of block 2",
    overflow: "changed: logits are finite: .*torch.float16 overflows. Load the model with dtype",
    noise_in_a_block: "changed: a zero vector changes nothing: expected bit-identical logits",
    something_added_between_blocks: "changed: a steered state reaches the next block: .* block 0 is not what enters",
    a_last_state_that_is_not_read: "changed: steering any block moves the logits: .*found block 2 alone moves them by",
    blocks_that_do_not_matter: "changed: steering any block moves the logits: .*found block 0 alone moves them by 0",
    embeddings_scaled_where_ids_come_in: "changed: embeddings give what ids give: .* apart",
    logits_to_keep_swallowed: r"changed: logits_to_keep is kept: .*found \(4, 347\): the model takes logits_to_keep",
    other_rows_kept: "changed: logits_to_keep is kept: .*found the wrong rows",
    a_model_that_looks_ahead: "changed: earlier tokens do not see later ones: .* apart: .* Take a causal",
    a_cache_off_by_one: "changed: scores behind a cache are recomputed ones: .* apart",
    no_cache_at_all: "changed: scoring behind a cache: expected transformers runs it, found it raises",
    padding_counted_in_positions: "changed: a padded batch gives what single prompts give: .* apart",
    a_block_that_fails: "changed: a plain forward pass: .*RuntimeError: a kernel that does not exist",
}


@pytest.mark.parametrize(("change", "message"), REFUSED.items())
def test_a_model_that_does_not_behave_is_refused_in_words_of_its_own(change: Change, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        rewrapped(change)


def n_hooks(hf: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in hf.modules())


@pytest.mark.parametrize("change", first_quick(REFUSED, 4))
def test_a_proof_that_fails_leaves_no_hook_on_the_callers_model(change: Change) -> None:
    model = random_llama()
    change(model.hf)
    own_hooks = n_hooks(model.hf)
    with pytest.raises(UnsupportedModelError):
        HuggingFaceModel(model.hf, model.tokenizer, name="changed")
    assert n_hooks(model.hf) == own_hooks


def test_half_precision_still_shows_gross_faults() -> None:
    for change in (something_added_between_blocks, logits_to_keep_swallowed, embeddings_scaled_where_ids_come_in):
        with pytest.raises(ProofFailedError):
            rewrapped(change, lambda: random_llama(dtype=torch.bfloat16))


def test_one_weight_that_is_not_a_number_is_named() -> None:
    def spoil(hf: Any) -> None:
        hf.model.layers[1].mlp.down_proj.weight.data[3, 3] = torch.nan

    with pytest.raises(
        ValueError, match=r"changed: 1 of 1484 values of .*'model.layers.1.mlp.down_proj.weight' are NaN"
    ):
        rewrapped(spoil)


def test_finite_weights_whose_sum_is_infinite_are_no_fault() -> None:
    linear = nn.Linear(4, 4)
    linear.weight.data.fill_(3e38)
    weights.check_finite(linear, name="large")


# --- pictures


def a_picture_that_enters_twice(hf: Any) -> None:
    """As in Qwen3-VL, whose picture is also added behind the first blocks, where a replay does not bring it."""
    has_pixels: list[bool] = []
    before(hf, lambda args, kwargs: has_pixels.append("pixel_values" in kwargs))
    last = hf.model.language_model.layers[0]
    last.register_forward_hook(lambda block, args, output: output + (0.5 if has_pixels[-1] else 0))


def test_a_picture_that_enters_twice_is_refused() -> None:
    message = "changed: a picture's embeddings give what its pixels give: expected the same logits.* apart"
    with pytest.raises(UnsupportedModelError, match=message):
        rewrapped(a_picture_that_enters_twice, random_llava)


@pytest.mark.parametrize("build", [random_gemma3, random_qwen_vl])
def test_a_replay_without_what_the_family_needs_is_refused(
    monkeypatch: pytest.MonkeyPatch, build: Callable[[], HuggingFaceModel]
) -> None:
    model = build()
    monkeypatch.setattr(type(model.family), "replay", Family.replay)
    with pytest.raises(UnsupportedModelError, match="a picture's embeddings give what its pixels give"):
        HuggingFaceModel(model.hf, model.tokenizer, name="1-D", image_processor=model.family.processor)


def test_a_cache_that_is_wrong_is_not_laid_at_the_pictures_door() -> None:
    def change(hf: Any) -> None:
        forward = hf.forward

        def shifted(*args: Any, **kwargs: Any) -> Any:
            cache = kwargs.get("past_key_values")
            if cache is not None and cache.get_seq_length():
                kwargs["position_ids"] = kwargs["position_ids"] + 1
            return forward(*args, **kwargs)

        hf.forward = shifted

    with pytest.raises(UnsupportedModelError, match="scores behind a cache are recomputed ones"):
        rewrapped(change, random_llava)


# --- what passes


def test_the_proof_of_a_good_model_lists_every_line_it_passed(llama: HuggingFaceModel) -> None:
    lines = [check.name for check in llama.proof.checks]
    assert lines == [
        "weights are finite",
        "every block runs",
        "blocks return states (B, T, d)",
        "logits are finite",
        "a zero vector changes nothing",
        "a steered state reaches the next block",
        "logits_to_keep is kept",
        "embeddings give what ids give",
        "steering any block moves the logits",
        "scores behind a cache are recomputed ones",
        "a padded batch gives what single prompts give",
        "hooks are gone",
    ]
    record = json.loads(json.dumps(llama.proof.as_dict()))
    assert record["passed"] is True
    assert set(record["checks"][0]) == {"name", "expected", "found", "passed"}


def test_a_failed_proof_says_what_was_found_before(llama: HuggingFaceModel) -> None:
    with pytest.raises(ProofFailedError) as caught:
        rewrapped(a_cache_off_by_one)
    checks = caught.value.proof.checks
    assert [check.passed for check in checks] == [True] * (len(checks) - 1) + [False]
    assert caught.value.proof.as_dict()["passed"] is False


def test_pictures_have_a_line_of_their_own(vision_model: HuggingFaceModel) -> None:
    assert "a picture's embeddings give what its pixels give" in [check.name for check in vision_model.proof.checks]


def test_a_model_that_differs_from_itself_by_rounding_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that add in no fixed order: two equal runs differ in their last bits."""
    model = random_llama()
    model.hf.lm_head.register_forward_hook(lambda head, args, out: out * (1 + 1e-7 * torch.randn(out.shape)))
    found = {check.name: check.found for check in proof.prove(model).checks}
    assert "two equal runs" in found["a zero vector changes nothing"]


def test_a_method_that_needs_parts_the_blocks_have_not_says_so() -> None:
    tokenizer = random_llama().tokenizer
    config = transformers.GPT2Config(vocab_size=347, n_positions=128, n_embd=32, n_layer=2, n_head=4)
    hf = transformers.AutoModelForCausalLM.from_config(config)
    fill(hf, "gpt2")
    model = HuggingFaceModel(hf, tokenizer, name="gpt2")
    assert capture(model, [("The capital", "Rome")], site="block_input").shape == (1, 2, 1, 32)
    with pytest.raises(UnsupportedModelError, match=r"reads 'self_attn.o_proj' .*GPT2Block has none .*GrAInS, CAA and"):
        capture(model, [("The capital", "Rome")], site="heads")


def test_running_out_of_memory_is_no_verdict_on_the_model(llama: HuggingFaceModel, monkeypatch: Any) -> None:
    def exhausted(trial: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(proof, "_wide", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        proof.prove(llama)


@pytest.mark.skipif(transformers.__version__ < "5", reason="its BLOOM gives no logits of chosen tokens, and is refused")
def test_a_limit_that_the_configuration_does_not_set_refuses_nothing() -> None:
    """BLOOM and MPT have no max_position_embeddings."""
    tokenizer = random_llama().tokenizer
    sizes = common_sizes(tokenizer)  # type: ignore[arg-type]
    del sizes["max_position_embeddings"]
    config = transformers.BloomConfig(vocab_size=347, hidden_size=32, n_layer=2, n_head=4, **sizes)
    hf = transformers.AutoModelForCausalLM.from_config(config)
    fill(hf, "bloom")
    model = HuggingFaceModel(hf, tokenizer, name="bloom")
    assert model.context is None
    assert len(model.score([("The capital " * 80, "is Paris.")])) == 1
    assert model.fingerprint()
