"""models/: what is loaded and refused, how text becomes tokens, and which prompts are scored together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from grains_ref.grains import eligible_tokens
from grains_ref.models import HuggingFaceModel, UnsupportedModelError, load, scoring
from grains_ref.tiny_models.random_models import merging_tokenizer, random_llama, random_qwen2

pytestmark = pytest.mark.cpu

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is the earth flat?"}]


def content(model: HuggingFaceModel, prompt: Any) -> str:
    """The words that count as the user's own."""
    x = model.encode(prompt)
    keep = eligible_tokens(x, ("content",))
    return model.tokenizer.decode(x.ids[keep])


# --- the random models themselves


@pytest.mark.parametrize(
    ("build", "digest"),
    [(random_llama, "33a72b3cc0780bee"), (random_qwen2, "d28f3a986d1d3caf")],
)
def test_random_weights_are_the_same_on_every_machine(build: Callable[[], HuggingFaceModel], digest: str) -> None:
    before = torch.get_rng_state()
    parameters = sorted(build().hf.named_parameters())
    assert torch.equal(torch.get_rng_state(), before)
    content = hashlib.sha256()
    for name, parameter in parameters:
        content.update(name.encode() + parameter.float().numpy().tobytes())
    assert content.hexdigest()[:16] == digest


def test_random_models_hide_no_fault_by_zeros_or_equal_sizes(llama: HuggingFaceModel, qwen2: HuggingFaceModel) -> None:
    for model in (llama, qwen2):
        assert model.embed.weight[model.tokenizer.pad_token_id].norm() > 1
        assert len(model.tokenizer) <= model.embed.num_embeddings
        config = model.text_config
        assert len({len(model.blocks), model.width, config.intermediate_size, config.vocab_size}) == 4
        assert config.num_attention_heads > config.num_key_value_heads > 1
    biases = [p for name, p in qwen2.hf.named_parameters() if name.endswith("bias")]
    assert len(biases) == 3 * len(qwen2.blocks)
    assert all(bias.abs().max() > 0.1 for bias in biases)
    assert random_llama(seed=1).fingerprint() != llama.fingerprint()


# --- loading


@pytest.mark.parametrize(("dtype", "expected"), [("auto", "float32"), ("bfloat16", "bfloat16"), (torch.float64,) * 2])
def test_a_saved_folder_loads_as_the_same_model(
    model: HuggingFaceModel, tmp_path: Path, dtype: Any, expected: Any
) -> None:
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    loaded = load(tmp_path, dtype=dtype)
    expected = getattr(torch, expected) if isinstance(expected, str) else expected
    assert {p.dtype for p in loaded.hf.parameters()} == {expected}
    assert loaded.name == tmp_path.name  # vectors carry the name; a path of this machine says nothing elsewhere
    for name, parameter in loaded.hf.named_parameters():
        assert torch.equal(parameter, model.hf.get_parameter(name).to(expected))
    for prompt in ("The capital of France", CHAT):
        assert torch.equal(loaded.encode(prompt).ids, model.encode(prompt).ids)
        assert loaded.encode(prompt).kinds == model.encode(prompt).kinds
    assert loaded.encode("The").embeds.dtype == expected
    assert loaded.fingerprint() == model.fingerprint()
    assert not loaded.hf.training
    assert (loaded.width, loaded.context, loaded.device.type) == (model.width, 128, "cpu")


def test_nothing_there_is_an_error_of_the_operating_system(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        load(tmp_path / "nothing")


def test_pickled_weights_are_never_read(llama: HuggingFaceModel, tmp_path: Path) -> None:
    llama.hf.config.save_pretrained(tmp_path)
    llama.tokenizer.save_pretrained(tmp_path)
    torch.save(llama.hf.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (transformers.T5Config(), "model type 't5' has an encoder beside its decoder"),
        (
            transformers.ViTConfig(),
            r"model type 'vit' is none that transformers [\d.]+ loads as a causal language model",
        ),
        (transformers.GitConfig(), "model type 'git' sees, and not by image tokens: .*no image_token_id"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_what_is_no_decoder_is_refused_before_its_weights_are_looked_for(
    tmp_path: Path, config: transformers.PretrainedConfig, message: str
) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=message):
        load(tmp_path)


def test_a_fingerprint_is_of_the_weights_and_not_of_their_type(llama: HuggingFaceModel) -> None:
    for dtype in (torch.bfloat16, torch.float64):
        assert random_llama(dtype=dtype).fingerprint() == llama.fingerprint()
    other = random_llama()
    other.embed.weight[17, 3] += 0.1
    assert other.fingerprint() != llama.fingerprint()
    tuned = random_llama()  # a fine-tune of the blocks that leaves the embeddings alone, such as a merged LoRA
    tuned.blocks[-1].self_attn.v_proj.weight.mul_(1.1)
    assert tuned.fingerprint() != llama.fingerprint()
    deeper = random_llama()
    deeper.text_config.num_hidden_layers = 4
    assert deeper.fingerprint() != llama.fingerprint()


def n_hooks(hf: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in hf.modules())


@pytest.mark.parametrize("build", [random_llama, random_qwen2])
def test_wrapping_a_model_leaves_no_hook_no_gradient_and_no_dropout_behind(
    build: Callable[[], HuggingFaceModel],
) -> None:
    hf = build().hf.train().requires_grad_(True)
    model = HuggingFaceModel(hf, build().tokenizer, name="wrapped")
    assert model.hf is hf  # the caller's own, as the docstring says
    assert n_hooks(hf) == 0
    assert not any(p.requires_grad for p in hf.parameters())
    assert not any(module.training for module in hf.modules())


def test_a_tokenizer_that_cannot_tell_characters_is_refused(llama: HuggingFaceModel) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UnsupportedModelError, match=r"its tokenizer is Slow.*a fast tokenizer"):
        HuggingFaceModel(llama.hf, Slow(), name="slow")  # type: ignore[arg-type]


# --- prompts


def test_bos_is_there_once_however_the_prompt_brings_it(llama: HuggingFaceModel) -> None:
    bos = llama.tokenizer.bos_token
    for prompt in ("The capital", bos + "The capital", CHAT):
        ids = llama.encode(prompt).ids.tolist()
        assert ids.count(llama.tokenizer.bos_token_id) == 1
        assert ids[0] == llama.tokenizer.bos_token_id
        assert llama.tokenise([(prompt, "is")])[0].prompt == tuple(ids)
    assert torch.equal(llama.encode(bos + "The capital").ids, llama.encode("The capital").ids)


def test_a_model_without_bos_gets_none(qwen2: HuggingFaceModel) -> None:
    x = qwen2.encode("The capital")
    assert qwen2.tokenizer.decode(x.ids) == "The capital"
    assert set(x.kinds) == {"text"}


def test_a_chat_prompt_is_what_the_template_says(model: HuggingFaceModel) -> None:
    expected = model.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert model.encode(CHAT).ids.tolist() == expected["input_ids"]


def test_text_template_and_special_tokens_are_told_apart(model: HuggingFaceModel) -> None:
    x = model.encode(CHAT)
    of_kind = {kind: [t for t, k in zip(x.tokens, x.kinds, strict=True) if k == kind] for kind in set(x.kinds)}
    assert set(of_kind) == {"text", "template", "special"}
    assert "".join(of_kind["text"]) == "Is the earth flat?"
    assert "Be brief." in "".join(of_kind["template"])  # the system message is not the user's words
    special = {str(token) for token in model.tokenizer.added_tokens_decoder.values() if token.special}
    assert set(of_kind["special"]) <= special
    assert not any(token in "".join(of_kind[kind]) for token in special for kind in ("text", "template"))
    assert len(x.tokens) == len(x.kinds) == len(x.ids) == len(x.embeds)


def test_every_user_turn_is_content_and_no_answer_is(model: HuggingFaceModel) -> None:
    chat = [{"role": "user", "content": "First"}, {"role": "assistant", "content": "Answer"}]
    assert content(model, [*chat, {"role": "user", "content": "Second"}]) == "FirstSecond"


@pytest.mark.parametrize("word", ["user", "system", "a", "You are", "<", "assistant\n\na", "  padded  "])
def test_a_short_message_is_not_found_in_the_templates_own_words(model: HuggingFaceModel, word: str) -> None:
    assert content(model, [{"role": "user", "content": word}]).strip() == word.strip()
    x = model.encode([{"role": "user", "content": word}])
    before = "".join(x.tokens[: x.kinds.index("text")])
    assert before.rstrip().endswith(("user<|end_header_id|>", "<|im_start|>user", "<start_of_turn>user"))


def test_a_template_that_changes_a_message_is_refused_since_its_place_is_unknown() -> None:
    model = random_qwen2()
    model.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    with pytest.raises(ValueError, match="the chat template of random-qwen2 changed, moved or dropped"):
        model.encode(CHAT)


def test_chat_messages_need_a_template() -> None:
    model = random_llama()
    model.tokenizer.chat_template = None
    for use in (model.encode, lambda chat: model.response_ids(chat, "No.")):
        with pytest.raises(ValueError, match=r"random-llama has no chat template.*plain text \(field 'prompt'\)"):
            use(CHAT)
    assert set(model.encode("Plain text still works").kinds) == {"special", "text"}


def test_an_image_and_an_empty_prompt_are_refused(qwen2: HuggingFaceModel) -> None:
    with pytest.raises(ValueError, match=r"random-qwen2 is a text model \(qwen2\) and cannot take an image"):
        qwen2.encode("What is this?", image=object())
    with pytest.raises(ValueError, match="the prompt has no tokens"):
        qwen2.encode("")


@pytest.mark.parametrize("padding", [1, 6])
def test_left_padding_changes_neither_logits_nor_residuals(model64: HuggingFaceModel, padding: int) -> None:
    y = torch.tensor([41, 73, 12])
    plain, padded = (model64.encode("The capital of Italy", left_padding=n) for n in (0, padding))
    assert padded.kinds == ("pad",) * padding + plain.kinds
    assert padded.ids[:padding].unique().tolist() == [model64.tokenizer.pad_token_id]
    assert padded.embeds[:padding].norm(dim=1).min() > 1  # not zero, so that attending to it would show
    for compute in (
        lambda x: model64.logits(x, x.embeds[None].expand(2, -1, -1), y),
        lambda x: model64.residuals(x, x.embeds[None]),
    ):
        torch.testing.assert_close(compute(padded), compute(plain), rtol=1e-6, atol=1e-6)


def test_padding_falls_back_on_the_end_of_text_token_and_needs_one_of_the_two() -> None:
    model = random_llama()
    model.tokenizer.pad_token = None
    assert model.encode("The", left_padding=1).ids[0] == model.tokenizer.eos_token_id
    model.tokenizer.eos_token = None
    with pytest.raises(UnsupportedModelError, match="neither a padding nor an end-of-text token"):
        model.encode("The", left_padding=1)


# --- the boundary between prompt and response


@pytest.mark.parametrize(
    ("prompt", "response", "joined"),
    [
        ("A:", "Paris", "A: Paris"),
        ("A: ", "Paris", "A: Paris"),
        ("A:", " Paris", "A: Paris"),
        ("A:\n", "Paris", "A:\nParis"),
        ("A:", "\nParis", "A:\nParis"),
        ("A:", "Paris, or  Rome ", "A: Paris, or  Rome "),
    ],
)
def test_exactly_one_space_joins_a_plain_prompt_and_its_response(
    model: HuggingFaceModel, prompt: str, response: str, joined: str
) -> None:
    ids = torch.cat([model.encode(prompt).ids, model.response_ids(prompt, response)])
    assert model.tokenizer.decode(ids, skip_special_tokens=True) == joined


def test_after_a_chat_template_the_response_begins_at_once(model: HuggingFaceModel) -> None:
    ids = torch.cat([model.encode(CHAT).ids, model.response_ids(CHAT, "No.")])
    answers = ("assistant<|end_header_id|>\n\nNo.", "assistant\nNo.", "<start_of_turn>model\nNo.")
    assert model.tokenizer.decode(ids).endswith(answers)


@pytest.fixture(params=["byte-level", "merging"])
def bounded(request: pytest.FixtureRequest, llama: HuggingFaceModel) -> HuggingFaceModel:
    tokenizer = llama.tokenizer if request.param == "byte-level" else merging_tokenizer()
    return HuggingFaceModel(llama.hf, tokenizer, name=request.param)


def test_the_prompt_has_the_same_tokens_whatever_response_follows(bounded: HuggingFaceModel) -> None:
    prompt = "The capital is A:"
    x, tokens = bounded.encode(prompt), set()
    for chosen, rejected in (("Paris", "Rome"), ("is", "Paris."), ("?", "Paris, Rome")):
        example = bounded.example(prompt, chosen, rejected)
        assert torch.equal(example.encoded.ids, x.ids)
        for y, response in ((example.y_pos, chosen), (example.y_neg, rejected)):
            ids = torch.cat([x.ids, y])
            assert bounded.tokenizer.decode(ids, skip_special_tokens=True) == f"{prompt} {response}"
            tokens.add(tuple(y.tolist()))
    assert len(tokens) == 6


def test_the_merging_tokenizer_would_merge_across_the_boundary(llama: HuggingFaceModel) -> None:
    model = HuggingFaceModel(llama.hf, merging_tokenizer(), name="merging")
    apart = torch.cat([model.encode("is A:").ids, model.response_ids("is A:", "Paris")]).tolist()
    together = model.encode("is A: Paris").ids.tolist()
    assert together != apart
    assert together[: len(model.encode("is A:").ids)] != model.encode("is A:").ids.tolist()
    scored = model.score([("is A:", "Paris")])[0].log_prob
    log_p = model.hf(input_ids=torch.tensor([apart])).logits[0].log_softmax(-1)
    assert scored == pytest.approx(log_p[-2, apart[-1]].item(), rel=1e-5)  # one response token


# --- which prompts are scored together


def batches(lengths: list[int], *, batch_size: int) -> list[list[int]]:
    """The lengths of the prompts in each batch."""
    prompts = [scoring.TokenPrompt((i,) * length) for i, length in enumerate(lengths)]
    return [[len(prompt.ids) for prompt in batch] for batch in scoring._batches(prompts, batch_size)]


def test_a_batch_holds_no_more_padded_tokens_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 12)
    assert batches([5, 1, 3, 3, 4, 13, 2], batch_size=64) == [[1, 2, 3, 3], [4, 5], [13]]
    assert batches([5, 1, 3, 3, 4, 13, 2], batch_size=2) == [[1, 2], [3, 3], [4, 5], [13]]
    assert batches([2] * 7, batch_size=64) == [[2] * 6, [2]]
    assert batches([], batch_size=3) == []


def test_scores_do_not_depend_on_how_much_is_scored_at_once(
    model: HuggingFaceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [(prompt, answer) for prompt in ("The capital", "Q", "Tell me, is it?") for answer in ("No.", "Paris is")]
    expected = model.score(items)
    runs: list[int] = []
    handle = model.blocks[0].register_forward_hook(lambda block, inputs, output: runs.append(1))
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 1)
    got = model.score(items)
    handle.remove()
    assert len(runs) == 9  # each prompt by itself, and each of the answers behind it
    for one, other in zip(got, expected, strict=True):
        assert one.log_prob == pytest.approx(other.log_prob, rel=1e-5)
        assert one.is_greedy == other.is_greedy


def test_no_batch_holds_no_prompt(llama: HuggingFaceModel) -> None:
    for batch_size in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size is {batch_size}; expected at least 1"):
            llama.score([("The", "No.")], batch_size=batch_size)
    assert llama.score([]) == []
    assert llama.generate([], max_new_tokens=2) == []


def test_one_prompt_is_not_taken_for_as_many_as_it_has_letters(llama: HuggingFaceModel) -> None:
    with pytest.raises(ValueError, match=r"prompts is one str, 'Hello'; give a list"):
        llama.generate("Hello", max_new_tokens=1)


# --- baselines


def test_the_zero_and_mean_baselines_are_what_they_are_called(model: HuggingFaceModel) -> None:
    x = model.encode("The capital of")
    rows = {name: model.baseline(x, name) for name in ("zero", "mean")}
    assert all(row.shape == x.embeds.shape and row.dtype == x.embeds.dtype for row in rows.values())
    assert rows["zero"].count_nonzero() == 0
    looked_up = model.embed(torch.arange(model.embed.num_embeddings))  # in Gemma not the weights, but scaled
    expected = looked_up.double().mean(0).float().expand_as(x.embeds)
    torch.testing.assert_close(rows["mean"], expected, rtol=1e-6, atol=1e-7)
    assert rows["mean"].abs().min() > 0


def test_a_word_is_a_baseline_if_it_is_one_token(model: HuggingFaceModel) -> None:
    x, (token,) = model.encode("The capital of"), model.tokenizer(" the", add_special_tokens=False)["input_ids"]
    got = model.baseline(x, "token: the")
    assert got.shape == x.embeds.shape
    for row in got:
        assert torch.equal(row, model.embed(torch.tensor(token)))
    with pytest.raises(ValueError, match=r"'Madrid and Rome' is \d+ token\(s\) .*must be exactly one known token"):
        model.baseline(x, "token:Madrid and Rome")
    with pytest.raises(ValueError, match=r"'' is 0 token\(s\)"):
        model.baseline(x, "token:")


def test_an_unknown_word_and_an_unknown_baseline_are_refused(simple_model: HuggingFaceModel) -> None:
    x = simple_model.encode("Q : what is it ? A :")
    with pytest.raises(ValueError, match="'zebra' is 1 token"):
        simple_model.baseline(x, "token:zebra")
    with pytest.raises(ValueError, match="baseline 'noise' is unknown; expected 'zero', 'mean' or 'token:WORD'"):
        simple_model.baseline(x, "noise")
    assert simple_model.baseline(x, "token:please").shape == x.embeds.shape
