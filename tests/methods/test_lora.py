"""methods/lora.py: what is trained, against peft and transformers' own loss; that hooks do what merged weights do."""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from shared import only_quick
from torch import Tensor

from grains_ref.data import PreferencePair, RowError
from grains_ref.methods import lora
from grains_ref.methods.lora import Adapter, Lora
from grains_ref.models import HuggingFaceModel, Prompt
from grains_ref.models.families import Picture
from grains_ref.tiny_models.random_models import random_llama, random_qwen2
from grains_ref.tiny_models.random_vision_models import (
    noise_picture,
    random_gemma3,
    random_llava,
    random_qwen_vl,
)

peft = pytest.importorskip("peft", reason="LoRA is trained by peft (extra: baselines)")
pytestmark = [
    pytest.mark.cpu,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),  # peft's wrapper, transformers 5
]

Build = Callable[..., HuggingFaceModel]
TEXT: dict[str, Build] = {"llama": random_llama, "qwen2": random_qwen2}
VISION: dict[str, Build] = {"llava": random_llava, "qwen_vl": random_qwen_vl, "gemma3": random_gemma3}
BUILD = TEXT | VISION
DECODER = r"(model|model\.language_model)\.layers\.\d+\.self_attn\.(q|v)_proj"  # written out for these five models
QUESTIONS = [  # answers of different lengths, prompts too
    ("Is the earth flat? A:", "No, the earth is round.", "Yes."),
    ("Q: Is the moon made of cheese? A:", "No.", "Yes, it is made of cheese."),
    ("Tell me what people say about the weather", "It is what is true.", "It is Rome."),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / "wide.png", folder / "square.png"]
    for path, size in zip(paths, [(90, 50), (42, 42)], strict=True):
        noise_picture(*size).save(path)
    return paths


def pairs_for(model: HuggingFaceModel, pictures: list[Path]) -> list[PreferencePair]:
    """The questions; a model that can see gets a picture with the first two."""
    pairs = [PreferencePair(f"{i}", *row, where=f"pairs.jsonl:{i}") for i, row in enumerate(QUESTIONS, start=1)]
    if model.family.marker:
        for i, path in enumerate(pictures):
            pairs[i] = replace(pairs[i], prompt=f"Look: <image> {pairs[i].prompt}", image=path)
    return pairs


class Case:
    """A random model, its pairs, and adapters trained at two rates; the other tests only look at them."""

    def __init__(self, name: str, pictures: list[Path]) -> None:
        self.model = BUILD[name]()
        self.pairs = pairs_for(self.model, pictures)
        self.examples = [self.model.example(p.prompt, p.chosen, p.rejected, p.image) for p in self.pairs]
        self.logits_before = self.logits(self.model)
        self.before = state(self.model)  # after a first pass, in which transformers puts hooks of its own
        logits, self.adapted = self.model.logits, set[tuple[str, ...]]()

        def spy(*args: Any) -> Tensor:
            changed = [n for n, m in self.model.hf.named_modules() if len(m._forward_hooks) > self.before_hooks[n]]
            self.adapted.add(tuple(changed))
            return logits(*args)

        self.before_hooks = {name: len(module._forward_hooks) for name, module in self.model.hf.named_modules()}
        with patch.object(self.model, "logits", spy):
            self.lora = lora.fit(
                self.model, self.pairs, learning_rates=(3e-2, 1e-3), rank=5, alpha=15, epochs=2, seed=1
            )
        self.adapter = self.lora.adapters[0]
        self.merged = self.merge()

    def logits(self, model: HuggingFaceModel) -> list[Tensor]:
        """Of every pair's chosen answer; adapters change neither embeddings nor image features."""
        with torch.no_grad():
            return [model.logits(e.encoded, e.encoded.embeds[None], e.y_pos) for e in self.examples]

    def merge(self) -> HuggingFaceModel:
        """A copy of the model with the adapter's product added to its weights."""
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            for i, block in enumerate(model.blocks):
                for name in ("q_proj", "v_proj"):
                    weight = block.self_attn.get_submodule(name).weight  # type: ignore[union-attr]
                    weight += 15 / 5 * self.adapter.b[name][i] @ self.adapter.a[name][i]
        return model


@pytest.fixture(scope="module", params=only_quick(BUILD, "llama", "llava"))
def case(request: pytest.FixtureRequest, pictures: list[Path]) -> Case:
    return Case(request.param, pictures)


def state(model: HuggingFaceModel) -> dict[str, Any]:
    """Everything of a model that training might leave changed, modules and parameters by identity."""
    modules = list(model.hf.named_modules())
    return {
        "modules": [(name, id(module)) for name, module in modules],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for _, module in modules],
        "training": [module.training for _, module in modules],
        "parameters": [(name, id(p), p.requires_grad, p.grad is None) for name, p in model.hf.named_parameters()],
        "values": {name: value.clone() for name, value in model.hf.state_dict().items()},
        "config": model.hf.config.to_dict(),
        "attributes": sorted(vars(model.hf)),
    }


def assert_same_state(model: HuggingFaceModel, before: dict[str, Any]) -> None:
    after = state(model)
    values, old = after.pop("values"), dict(before)
    expected = old.pop("values")
    assert after == old
    assert all(torch.equal(values[name], expected[name]) for name in expected | values)


def own_loss(model: HuggingFaceModel, pair: PreferencePair) -> tuple[Tensor, int]:
    """transformers' own loss of ids and pixels: y_pos and end-of-text are labels, the prompt is not; and how many."""
    prompt = model.encode(pair.prompt, pair.image).ids
    answer = torch.cat([model.response_ids(pair.prompt, pair.chosen), torch.tensor([model.tokenizer.eos_token_id])])
    ids = torch.cat([prompt, answer])[None]
    labels = torch.cat([torch.full_like(prompt, -100), answer])[None]
    extra: dict[str, Any] = {}
    if model.family.marker:
        is_image = ids == model.hf.config.image_token_id
        extra = model.family.generation(is_image)
        extra |= model.family.tensors([Picture.of(pair.image)]) if pair.image else {}
    return model.hf(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, **extra).loss, len(answer)


# ------------------------------------------------------------------------------------- what is adapted
def test_query_and_value_of_every_decoder_block_are_adapted_and_no_vision_module(case: Case) -> None:
    (names,) = case.adapted  # in every run of the training
    assert len(names) == len(set(names)) == 2 * len(case.model.blocks)
    assert not [name for name in names if "vision" in name]
    assert {name.rsplit(".")[-1] for name in names} == {"q_proj", "v_proj"}


def test_the_plain_names_would_adapt_the_vision_tower() -> None:
    for build in (random_llava, random_gemma3):
        names = [name for name, _ in build().hf.named_modules() if name.endswith(("q_proj", "v_proj"))]
        assert any("vision" in name for name in names)


def test_shapes_under_grouped_queries(case: Case) -> None:
    config, blocks = case.model.text_config, len(case.model.blocks)
    for name, heads in (("q_proj", config.num_attention_heads), ("v_proj", config.num_key_value_heads)):
        assert case.adapter.a[name].shape == (blocks, 5, config.hidden_size)
        assert case.adapter.b[name].shape == (blocks, heads * config.head_dim if hasattr(config, "head_dim") else
                                              heads * config.hidden_size // config.num_attention_heads, 5)  # fmt: skip


# --------------------------------------------------------------------------------------- the model after
def test_training_leaves_the_model_bit_for_bit_as_it_was(case: Case) -> None:
    assert_same_state(case.model, case.before)
    assert all(map(torch.equal, case.logits(case.model), case.logits_before))


def test_an_error_in_training_leaves_the_model_as_it_was(case: Case) -> None:
    logits, calls = case.model.logits, list[int]()

    def breaks(*args: Any) -> Tensor:
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return logits(*args)

    with patch.object(case.model, "logits", breaks), pytest.raises(KeyboardInterrupt):
        lora.fit(case.model, case.pairs)
    assert_same_state(case.model, case.before)


def test_leaving_the_steering_restores_the_model_also_after_an_error(case: Case) -> None:
    with pytest.raises(KeyError), case.adapter.steering(case.model), case.adapter.steering(case.model):
        raise KeyError
    assert_same_state(case.model, case.before)
    assert all(map(torch.equal, case.logits(case.model), case.logits_before))


# ------------------------------------------------------------------------------------------- the hooks
def test_hooks_do_what_merged_weights_do(case: Case) -> None:
    with case.adapter.steering(case.model):
        steered = case.logits(case.model)
    for ours, theirs, plain in zip(steered, case.logits(case.merged), case.logits_before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert (ours - plain).abs().max() > 0.05  # far from the tolerance


def test_hooks_do_exactly_what_peft_does(case: Case) -> None:
    other = copy.deepcopy(case.model)
    tuner = peft.get_peft_model(other.hf, peft.LoraConfig(r=5, lora_alpha=15, target_modules=DECODER))
    load_into_peft(other, case.adapter)
    with case.adapter.steering(case.model):
        steered = case.logits(case.model)
    assert all(map(torch.equal, steered, case.logits(other)))
    with tuner.disable_adapter():
        assert all(map(torch.equal, case.logits(other), case.logits_before))


def load_into_peft(model: HuggingFaceModel, adapter: Adapter) -> None:
    with torch.no_grad():
        for i, block in enumerate(model.blocks):
            for name in ("q_proj", "v_proj"):
                layer: Any = block.get_submodule(f"self_attn.{name}")
                layer.lora_A["default"].weight.copy_(adapter.a[name][i])
                layer.lora_B["default"].weight.copy_(adapter.b[name][i])


def test_scores_with_a_cache_and_generation_are_those_of_merged_weights(case: Case) -> None:
    items = [(p.prompt, answer, p.image) for p in case.pairs for answer in (p.chosen, p.rejected)]
    prompts: list[Prompt] = [p.prompt for p in case.pairs]
    images = [p.image for p in case.pairs]
    merged = case.merged
    with case.adapter.steering(case.model):
        ours = [one.log_prob for one in case.model.score(items)]
        text = case.model.generate(prompts, images=images, max_new_tokens=4)
    assert ours == pytest.approx([one.log_prob for one in merged.score(items)], abs=2e-3)
    assert text == merged.generate(prompts, images=images, max_new_tokens=4)
    assert [one.log_prob for one in case.model.score(items)] != pytest.approx(ours, abs=0.05)


def test_an_adapter_before_its_training_changes_no_bit(case: Case) -> None:
    fresh = replace(case.adapter, b={name: torch.zeros_like(b) for name, b in case.adapter.b.items()})
    with fresh.steering(case.model):
        assert all(map(torch.equal, case.logits(case.model), case.logits_before))
    assert fresh.weight_change(case.model) == 0


def test_weight_change_is_that_of_merged_weights(case: Case) -> None:
    old, new = dict(case.model.hf.named_parameters()), dict(case.merged.hf.named_parameters())
    changes = [((new[name] - old[name]).norm() / old[name].norm()).item() for name in old]
    assert case.adapter.weight_change(case.model) == pytest.approx(max(changes), rel=1e-4)
    assert sum(change > 0 for change in changes) == 2 * len(case.model.blocks)


# ----------------------------------------------------------------------------------------- the training
def test_the_first_loss_is_transformers_own(case: Case) -> None:
    first = lora.fit(case.model, case.pairs, learning_rates=(1e-3,), epochs=1).adapters[0].losses
    with torch.no_grad():
        parts = [own_loss(case.model, pair) for pair in case.pairs]
    assert first == pytest.approx([sum(loss.item() * n for loss, n in parts) / sum(n for _, n in parts)], rel=1e-5)


def test_the_loss_falls(case: Case) -> None:
    fast, slow = (adapter.losses for adapter in case.lora.adapters)
    assert len(fast) == len(slow) == 2
    assert fast[0] == slow[0]
    assert all(later < earlier for losses in (fast, slow) for earlier, later in itertools.pairwise(losses))
    assert fast[-1] < slow[-1]


@pytest.mark.parametrize("build", [random_llama, random_llava], ids=["llama", "llava"])
def test_trained_weights_are_those_of_peft_trained_by_hand(build: Build, pictures: list[Path]) -> None:
    """Every pair in one batch, float64; three steps by transformers' own loss through peft's own wrapper."""
    rate, alpha, rank = 1e-3, 32, 3
    ours, theirs = build(dtype=torch.float64), build(dtype=torch.float64)
    pairs = pairs_for(ours, pictures)
    adapter = lora.fit(ours, pairs, learning_rates=(rate,), rank=rank, epochs=3, batch_size=7, seed=3).adapters[0]
    torch.manual_seed(3)
    peft.get_peft_model(theirs.hf, peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=DECODER))
    trained = {name: p for name, p in theirs.hf.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(trained.values(), lr=rate, weight_decay=0)
    norms = []
    for _ in range(3):
        optimiser.zero_grad()
        parts = [own_loss(theirs, pair) for pair in pairs]
        torch.stack([loss * n for loss, n in parts]).sum().div(sum(n for _, n in parts)).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(trained.values(), 1.0).item())
        optimiser.step()
    assert max(norms) > 1.0  # or clipping would not have been seen
    for i, block in enumerate(theirs.blocks):
        for name in ("q_proj", "v_proj"):
            layer: Any = block.get_submodule(f"self_attn.{name}")
            torch.testing.assert_close(adapter.a[name][i], layer.lora_A["default"].weight.data, rtol=0, atol=1e-6)
            torch.testing.assert_close(adapter.b[name][i], layer.lora_B["default"].weight.data, rtol=0, atol=1e-6)
            assert adapter.b[name][i].abs().max() > rate


def test_one_step_of_adam_moves_b_by_the_rate_and_leaves_a(llama: HuggingFaceModel) -> None:
    """B is zero, so A has no gradient yet: only weight decay could move it."""
    pairs = pairs_for(llama, [])
    small, large = lora.fit(llama, pairs, learning_rates=(1e-9, 0.5), epochs=1).adapters
    for name in ("q_proj", "v_proj"):
        assert torch.equal(small.a[name], large.a[name])
        assert 0.49 < large.b[name].abs().max() <= 0.5
        assert small.a[name].std() > 0.05


def test_every_pair_is_seen_once_in_every_epoch_in_an_order_of_its_own(llama: HuggingFaceModel) -> None:
    pairs = [replace(pairs_for(llama, [])[0], prompt=f"Question {i} A:", id=str(i)) for i in range(7)]
    logits, seen = llama.logits, list[str]()

    def spy(encoded: Any, *args: Any) -> Tensor:
        seen.append("".join(encoded.tokens))
        return logits(encoded, *args)

    with patch.object(llama, "logits", spy):
        lora.fit(llama, pairs, epochs=3, batch_size=3)
    epochs = [seen[i : i + 7] for i in (0, 7, 14)]
    assert len(seen) == 21
    assert all(len(set(epoch)) == 7 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != sorted(epochs[2])


def test_the_seed_decides_everything_and_nothing_else_does(llama: HuggingFaceModel) -> None:
    pairs = pairs_for(llama, [])

    def fit(seed: int) -> Adapter:
        return lora.fit(llama, pairs, learning_rates=(1e-2,), epochs=2, batch_size=2, seed=seed).adapters[0]

    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = fit(0)
    assert torch.equal(torch.random.get_rng_state(), before)  # the caller's random numbers are left alone
    torch.manual_seed(2)
    with torch.no_grad():
        again, other = fit(0), fit(5)
    assert one.losses == again.losses
    for name in ("q_proj", "v_proj"):
        assert torch.equal(one.a[name], again.a[name])
        assert torch.equal(one.b[name], again.b[name])
        assert not torch.allclose(one.a[name], other.a[name], atol=0.05)


def test_rejected_answers_are_not_learned_from(llama: HuggingFaceModel) -> None:
    pairs = pairs_for(llama, [])
    losses = [
        lora.fit(llama, [replace(p, rejected=word) for p in pairs], epochs=1).adapters[0].losses
        for word in ("Rome", "Madrid is the capital")
    ]
    assert losses[0] == losses[1]


@pytest.mark.thorough
@pytest.mark.parametrize("build", [random_llama, random_llava], ids=["llama", "llava"])
def test_adapters_of_a_bfloat16_model_are_float32(build: Build, pictures: list[Path]) -> None:
    model = build(dtype=torch.bfloat16)
    pairs = pairs_for(model, pictures)
    for pair in pairs:
        model.encode(pair.prompt, pair.image)  # a first pass, in which transformers puts hooks of its own
    before = state(model)
    adapter = lora.fit(model, pairs, epochs=3).adapters[0]  # the paper's rate, far below bfloat16's steps near A
    assert_same_state(model, before)
    for name in ("q_proj", "v_proj"):
        a, b = adapter.a[name], adapter.b[name]
        assert a.dtype == b.dtype == torch.float32
        assert not torch.equal(a, a.bfloat16().float())  # training did move A
        assert 1e-6 < b.abs().max() < 2e-5
    strong = replace(adapter, b={name: 1e4 * b for name, b in adapter.b.items()})
    other = build(dtype=torch.bfloat16)
    peft.get_peft_model(other.hf, peft.LoraConfig(r=16, lora_alpha=32, target_modules=DECODER))
    load_into_peft(other, strong)
    for pair in pairs:
        example = model.example(pair.prompt, pair.chosen, pair.rejected, pair.image)
        run = (example.encoded, example.encoded.embeds[None], example.y_pos)
        with torch.no_grad():
            plain, theirs = model.logits(*run), other.logits(*run)
            with strong.steering(model):
                ours = model.logits(*run)
        assert ours.dtype == torch.bfloat16
        assert torch.equal(ours, theirs)
        assert not torch.equal(ours, plain)


def test_the_papers_setting_and_a_grid_that_learns(simple_model: HuggingFaceModel) -> None:
    """Sizes as in the paper, two planted pairs: the weights move by a thousandth, or the loss falls by half."""
    from grains_ref.demo.planted import as_pairs
    from grains_ref.tiny_models.worlds import build_world

    pairs = as_pairs(build_world("simple").split("steer")[:2])
    (paper,) = lora.fit(simple_model, pairs).adapters
    assert (paper.learning_rate, paper.scale, paper.a["q_proj"].shape[1], len(paper.losses)) == (5e-6, 2.0, 16, 10)
    assert paper.weight_change(simple_model) < 1e-3
    assert paper.losses[-1] > 0.97 * paper.losses[0]
    (learns,) = lora.fit(simple_model, pairs, learning_rates=lora.LEARNS[-1:]).adapters
    assert learns.losses[-1] < 0.5 * learns.losses[0]


# --------------------------------------------------------------------------------- settings and errors
def test_settings_are_the_adapters_gentlest_first(case: Case) -> None:
    settings = case.lora.settings(case.model)
    assert [(s.label, s.strength) for s in settings] == [("LoRA, rate 0.001", 1.0), ("LoRA, rate 0.03", 1.0)]
    for setting, adapter in zip(settings, reversed(case.lora.adapters), strict=True):
        with adapter.steering(case.model):
            expected = case.logits(case.model)
        for _ in range(2):  # a setting can be entered again
            with setting.steering():
                assert all(map(torch.equal, case.logits(case.model), expected))


def test_an_adapter_of_another_model_is_refused(case: Case) -> None:
    strange = replace(case.adapter, a={name: a[:, :, 1:] for name, a in case.adapter.a.items()})
    shallow = replace(
        case.adapter,
        a={name: a[1:] for name, a in case.adapter.a.items()},
        b={name: b[1:] for name, b in case.adapter.b.items()},
    )
    for wrong in (strange, shallow):
        with pytest.raises(ValueError, match="train it on the model that it steers"), wrong.steering(case.model):
            pass
        with pytest.raises(ValueError, match="train it on the model"):
            wrong.weight_change(case.model)
    assert_same_state(case.model, case.before)


def test_missing_peft_says_what_to_install(llama: HuggingFaceModel) -> None:
    with patch.dict(sys.modules, {"peft": None}), pytest.raises(ImportError, match=r"grains-ref\[baselines\]"):
        lora.fit(llama, pairs_for(llama, []))


@pytest.mark.parametrize(
    "wrong",
    [{"rank": 0}, {"alpha": -1}, {"epochs": 0}, {"batch_size": 0}]
    + [{"learning_rates": rates} for rates in ((), (1e-3, 0.0), (1e38,), (float("nan"),), (float("inf"),))],
)
def test_numbers_that_make_no_sense_are_refused(llama: HuggingFaceModel, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"positive numbers|must be finite"):
        lora.fit(llama, pairs_for(llama, []), **wrong)


def test_no_pairs_and_pairs_that_do_not_fit_are_refused(llama: HuggingFaceModel) -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        lora.fit(llama, [])
    (pair, *_) = pairs_for(llama, [])
    room = llama.context - len(llama.encode(pair.prompt).ids)
    exactly = replace(pair, chosen=" No" * room)
    assert len(llama.response_ids(exactly.prompt, exactly.chosen)) == room  # no place for the end-of-text token
    with pytest.raises(RowError, match=r"pairs.jsonl:1: .*but the model takes 128"):
        lora.fit(llama, [exactly])


def test_a_tokenizer_without_end_of_text_is_refused(llama: HuggingFaceModel) -> None:
    tokenizer = copy.deepcopy(llama.tokenizer)
    tokenizer.eos_token = None
    model = HuggingFaceModel(llama.hf, tokenizer, name="endless")
    with pytest.raises(ValueError, match="no end-of-text token"):
        lora.fit(model, pairs_for(llama, []))


@pytest.mark.parametrize("rate", [1e9, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_drown_the_model_are_refused_and_leave_it_as_it_was(rate: float, dtype: torch.dtype) -> None:
    """One step of Adam moves B by the rate, whatever the processor; the losses after it may look healthy."""
    model = random_llama(dtype=dtype)
    before = state(model)
    with pytest.raises(
        ValueError, match=r"diverged in step 1: what is added to q_proj in block 0 .* Take a lower rate"
    ):
        lora.fit(model, pairs_for(model, []), learning_rates=(rate,))
    assert_same_state(model, before)


def test_the_largest_adapter_is_the_one_of_which_rounding_leaves_the_model_something(llama: HuggingFaceModel) -> None:
    """A rate just below the bound, which is in proportion to it, and one just above."""
    one = lora.fit(llama, pairs_for(llama, []), learning_rates=(1e-3,), epochs=1).adapters[0]
    at_bound = 1e-3 / (torch.finfo(torch.float32).eps * one.weight_change(llama))
    (large,) = lora.fit(llama, pairs_for(llama, []), learning_rates=(0.9 * at_bound,), epochs=1).adapters
    assert large.weight_change(llama) == pytest.approx(0.9 / torch.finfo(torch.float32).eps, rel=1e-3)
    with pytest.raises(ValueError, match="diverged in step 1: what is added to"):
        lora.fit(llama, pairs_for(llama, []), learning_rates=(1.1 * at_bound,), epochs=1)


@pytest.mark.parametrize(
    ("wrong", "said"), [(float("nan"), "nan nats"), (float("inf"), "inf nats"), (1e9, r"e\+\d+ nats")]
)
def test_losses_that_tell_nothing_are_refused_and_leave_the_model_as_it_was(
    llama: HuggingFaceModel, wrong: float, said: str
) -> None:
    """In the second step, as a model that broke in the first."""
    before, model_logits, calls = state(llama), llama.logits, list[int]()

    def breaks(encoded: Any, embeds: Tensor, ids: Tensor) -> Tensor:
        calls.append(1)
        right = model_logits(encoded, embeds, ids)
        of_answer = torch.nn.functional.one_hot(ids, right.shape[-1]).bool()
        return torch.where(of_answer, right - wrong, right) if len(calls) > 3 else right

    with (
        patch.object(llama, "logits", breaks),
        pytest.raises(ValueError, match=rf"rate 5e-06 diverged in step 2.*{said}"),
    ):
        lora.fit(llama, pairs_for(llama, []))
    assert_same_state(llama, before)


def test_a_gradient_that_is_not_finite_is_refused(llama: HuggingFaceModel) -> None:
    logits = llama.logits

    def steep(*args: Any) -> Tensor:
        """The same numbers with a slope whose square float32 cannot hold."""
        right = logits(*args)
        return right.detach() + 1e38 * (right - right.detach())

    before = state(llama)
    with (
        patch.object(llama, "logits", steep),
        pytest.raises(ValueError, match=r"diverged in step 1.*gradient (inf|nan)"),
    ):
        lora.fit(llama, pairs_for(llama, []))
    assert_same_state(llama, before)


def test_the_result_is_frozen(case: Case) -> None:
    assert isinstance(case.lora, Lora)
    with pytest.raises(AttributeError):
        case.adapter.scale = 1.0  # type: ignore[misc]
