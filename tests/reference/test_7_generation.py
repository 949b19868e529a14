"""Generation under steering: with and without cache, alone and in batches; and scoring."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import ToyDecoder, residual_of

from grains_ref.grains import Steering, generate_greedy, log_prob, steer_hidden
from grains_ref.models import HuggingFaceModel

pytestmark = pytest.mark.cpu

N = 9  # new tokens
PROMPT, LONG_PROMPT = "The capital of France", "Q: Is the moon made of cheese, as people say? A:"
PROMPTS = [PROMPT, LONG_PROMPT, "Tell me"]


def vector(model: HuggingFaceModel) -> Tensor:
    return torch.randn(len(model.blocks), model.width, generator=torch.Generator().manual_seed(7))


def steering(model: HuggingFaceModel, kind: type[Steering] = Steering) -> Steering:
    """Strong enough that leaving it out anywhere changes the tokens."""
    return kind(model.blocks, vector(model), lam=1.5)


class PrefillOnly(Steering):
    """A planted fault: steers the prompt but not the tokens generated from the cache."""

    def _hook(self, v: Tensor) -> Any:
        edit = super()._hook(v)
        return lambda block, inputs, output: edit(block, inputs, output) if residual_of(output).shape[1] > 1 else output


def hf_generate(model: HuggingFaceModel, prompts: Sequence[str], **options: Any) -> Any:
    """transformers' own loop with its own cache; N tokens also where it would like to stop earlier."""
    model.tokenizer.padding_side = "left"
    batch = model.tokenizer(list(prompts), return_tensors="pt", padding=True)
    return model.hf.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        pad_token_id=model.tokenizer.pad_token_id,
        return_dict_in_generate=True,
        output_logits=True,
        **{"do_sample": False, "max_new_tokens": N, "eos_token_id": None, **options},
    )


def new_tokens(generated: Any) -> list[list[int]]:
    return generated.sequences[:, -N:].tolist()


def test_greedy_generation_without_a_cache_is_the_argmax_at_every_step(toy: ToyDecoder) -> None:
    ids = [4, 2, 8]
    got = generate_greedy(toy, toy.encode(ids, left_padding=2), n=6)
    for token in got:
        everywhere, _ = toy(toy.embed(torch.tensor(ids))[None], torch.ones(1, len(ids)))
        assert token == everywhere[0, -1].argmax()
        ids.append(token)
    assert len(set(got)) > 3


@pytest.mark.parametrize("steered", [False, True], ids=["plain", "steered"])
def test_cached_left_padded_batches_generate_what_full_recomputation_does(
    model: HuggingFaceModel, steered: bool
) -> None:
    with steering(model) if steered else nullcontext():
        expected = [generate_greedy(model, model.encode(prompt), n=N) for prompt in PROMPTS]
        assert new_tokens(hf_generate(model, PROMPTS)) == expected
        assert [new_tokens(hf_generate(model, [prompt]))[0] for prompt in PROMPTS] == expected


def test_steering_acts_in_every_decoding_step_and_not_in_the_prompt_alone(model: HuggingFaceModel) -> None:
    def largest_difference(context: AbstractContextManager[object]) -> float:
        """Between the logits of cached steps and the truth: the steered model run on all tokens at once."""
        with context:
            generated = hf_generate(model, PROMPTS)
        cached, worst = torch.stack(generated.logits, dim=1), 0.0  # (B, N, V)
        for row, prompt in enumerate(PROMPTS):
            x = model.encode(prompt)
            with torch.no_grad(), steering(model):
                truth = model.logits(x, x.embeds[None], generated.sequences[row, -N:])
            worst = max(worst, (truth[0] - cached[row]).abs().max().item())
        return worst

    assert largest_difference(steering(model)) < 1e-4
    assert largest_difference(steering(model, PrefillOnly)) > 0.1  # so the first figure means something


def test_steering_holds_in_beam_search(model: HuggingFaceModel) -> None:
    with steering(model):
        cached, recomputed = (hf_generate(model, PROMPTS, num_beams=3, use_cache=use) for use in (True, False))
    plain = hf_generate(model, PROMPTS, num_beams=3)
    assert new_tokens(cached) == new_tokens(recomputed)
    torch.testing.assert_close(cached.sequences_scores, recomputed.sequences_scores, rtol=1e-4, atol=1e-5)
    assert new_tokens(cached) != new_tokens(plain)


def test_each_row_of_a_batch_and_each_token_is_steered_during_generation(model: HuggingFaceModel) -> None:
    raw: list[Tensor] = []
    steered: list[Tensor] = []
    first = model.blocks[0]
    before = first.register_forward_hook(lambda block, _, out: raw.append(residual_of(out)))
    with steering(model):
        after = first.register_forward_hook(lambda block, _, out: steered.append(residual_of(out)))
        hf_generate(model, PROMPTS)
    before.remove()
    after.remove()
    assert [h.shape[:2] for h in raw[1:]] == [(3, 1)] * (N - 1)  # the prompt, then one token at a time
    for h, h_steered in zip(raw, steered, strict=True):
        assert torch.equal(h_steered, steer_hidden(h, vector(model)[0], lam=1.5))
        assert (h_steered - h).norm(dim=-1).min() > 1e-2


def test_a_batch_generates_what_each_prompt_does_alone(model: HuggingFaceModel) -> None:
    # Random models: a trained one would give the same answer although it attended to the padding.
    alone = [model.generate([prompt], max_new_tokens=N)[0] for prompt in PROMPTS]
    assert model.generate(PROMPTS, max_new_tokens=N) == alone
    assert len(set(alone)) > 1


def test_generated_text_is_the_answer_without_prompt_and_special_tokens(simple_model: HuggingFaceModel) -> None:
    prompts = ["Q : please , what comes after 7 ? A :", "Q : now kindly , what is 3 plus 14 ? A :"]
    assert simple_model.generate(prompts, max_new_tokens=N) == ["8 .", "17 ."]


def test_options_reach_transformers(simple_model: HuggingFaceModel) -> None:
    prompt = "Q : please , what comes after 7 ? A :"
    assert simple_model.generate([prompt], max_new_tokens=1) == ["8"]
    assert simple_model.generate([prompt], max_new_tokens=2, num_beams=3) == ["8 ."]


# --- scoring


ITEMS = [
    (PROMPT, "is Paris."),
    (LONG_PROMPT, "No, it is made of rock."),
    (PROMPT, "Rome"),
    ("Q", "is the capital of Spain Madrid, or is it what people say about the weather?"),
    (LONG_PROMPT, "No"),
]


@pytest.mark.parametrize("steered", [False, True], ids=["plain", "steered"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batches_score_what_the_reference_scores_one_by_one(
    model: HuggingFaceModel, batch_size: int, steered: bool
) -> None:
    with torch.no_grad(), steering(model) if steered else nullcontext():
        got = model.score(ITEMS, batch_size=batch_size)
        for (prompt, response), scored in zip(ITEMS, got, strict=True):
            x = model.encode(prompt)
            expected = log_prob(model, x, x.embeds[None], y=model.response_ids(prompt, response))
            assert scored.log_prob == pytest.approx(expected.item(), rel=1e-5)


def test_chat_prompts_are_scored_after_their_template(model: HuggingFaceModel) -> None:
    chat = [{"role": "user", "content": "Is the earth flat?"}]
    x, y = model.encode(chat), model.response_ids(chat, "No.")
    expected = log_prob(model, x, x.embeds[None], y=y).item()
    assert model.score([(chat, "No.")])[0].log_prob == pytest.approx(expected, rel=1e-5)


def test_a_response_is_greedy_exactly_if_generation_gives_all_of_it(simple_model: HuggingFaceModel) -> None:
    prompts = [f"Q : {filler} , what is {i} plus 5 ? A :" for i, filler in enumerate(["today", "please", "just now"])]
    greedy = simple_model.generate(prompts, max_new_tokens=2)
    assert greedy == ["5 .", "6 .", "7 ."]
    wrong = ["5 ,", "7 .", "7 . now"]  # another ending, another beginning, and more than is said
    scored = simple_model.score([*zip(prompts, greedy, strict=True), *zip(prompts, wrong, strict=True)], batch_size=4)
    assert [s.is_greedy for s in scored] == [True] * 3 + [False] * 3


def test_a_response_without_tokens_is_refused_before_anything_is_scored(llama: HuggingFaceModel) -> None:
    with pytest.raises(ValueError, match="'response': empty; expected text"):
        llama.score([(PROMPT, "Paris"), (PROMPT + " ", "")])
