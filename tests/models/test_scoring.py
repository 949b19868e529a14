"""models/scoring.py: rows that cannot be scored, memory that is bounded, scores that are finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from damaged import damaged
from shared import first_quick

from grains_ref.data import FieldError
from grains_ref.grains import Example, HyperParameters, Steering, attribute
from grains_ref.models import HuggingFaceModel, Scored, TokenRow, scoring
from grains_ref.models.diagnosis import explained
from grains_ref.tiny_models.random_models import random_llama

pytestmark = pytest.mark.cpu


# --- rows


@pytest.mark.parametrize("part", ["prompt", "response"])
@pytest.mark.parametrize(("token", "words"), [(-1, "the token id -1"), (347, "the token id 347"), (10**6, "1000000")])
def test_ids_outside_the_vocabulary_are_refused(llama: HuggingFaceModel, part: str, token: int, words: str) -> None:
    good = TokenRow((5, 6), (7, 8))
    bad = good._replace(**{part: (5, token)})
    with pytest.raises(ValueError, match=rf"row 1: the {part} has .*{words}.* has the ids 0 to 346"):
        llama.score_rows([good, bad])
    with pytest.raises(ValueError, match=rf"here: the {part} has"):
        llama.score_rows([bad._replace(where="here")])


def test_the_reference_refuses_ids_outside_the_vocabulary_too(llama: HuggingFaceModel) -> None:
    x = llama.encode("The capital")
    for ids in ([-1], [5, 347]):
        with pytest.raises(ValueError, match="the response has the token id"):
            llama.logits(x, x.embeds[None], torch.tensor(ids))


def test_rows_without_tokens_or_longer_than_the_context_are_refused_before_the_work(llama: HuggingFaceModel) -> None:
    ran: list[int] = []
    handle = llama.blocks[0].register_forward_hook(lambda *_: ran.append(1))
    good = TokenRow((5,), (6,))
    for bad, words in (
        (TokenRow((), (6,)), "row 1: the prompt has no tokens"),
        (TokenRow((5,), ()), "row 1: the response has no tokens"),
        (
            TokenRow((5,) * 100, (6,) * 29),
            r"row 1: 100 prompt tokens \+ 29 of the response = 129, but the model takes",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            llama.score_rows([good, bad])
    handle.remove()
    assert ran == []
    assert len(llama.score_rows([TokenRow((5,) * 100, (6,) * 28)])) == 1


@pytest.mark.parametrize("items", ["ab", b"ab", Path("ab"), ["ab"], [("A:",)], [{"prompt": "A:", "response": "b"}]])
def test_items_that_are_no_pairs_of_prompt_and_response_are_refused(llama: HuggingFaceModel, items: Any) -> None:
    with pytest.raises(ValueError, match=r"give a list, also of a single one|expected \(prompt, response\)"):
        llama.score(items)
    with pytest.raises(ValueError, match="rows is one str"):
        llama.score_rows("ab")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("texts", "field", "words"),
    [
        (("Tell me", "", "No."), "chosen", "empty"),
        (("Tell me", "No.", " "), "rejected", "only white space"),
        (("", "Yes.", "No."), "prompt", "empty"),
        (("\n", "Yes.", "No."), "prompt", "only white space"),
        (([], "Yes.", "No."), "messages", "no turn"),
        (("Tell me", "No.", " No."), "rejected", "the same text as 'chosen' but for white space"),
        (("moon " * 200, "Yes.", "No."), "prompt", "but the model takes 128"),
    ],
)
def test_an_example_is_held_to_what_a_row_of_a_file_is_held_to(
    llama: HuggingFaceModel, texts: tuple[Any, str, str], field: str, words: str
) -> None:
    with pytest.raises(FieldError, match=words) as error:
        llama.example(*texts)
    assert error.value.field == field


def test_answers_that_become_the_same_tokens_are_no_pair(llama: HuggingFaceModel) -> None:
    from tokenizers import normalizers

    model = HuggingFaceModel(llama.hf, random_llama().tokenizer, name="lower")
    model.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(FieldError, match="the same tokens as 'chosen'"):
        model.example("Tell me", "Rome.", "rome.")


def test_an_empty_answer_is_refused_before_a_space_is_put_in_front_of_it(llama: HuggingFaceModel) -> None:
    for prompt in ("Tell me", [{"role": "user", "content": "Tell me"}]):
        with pytest.raises(ValueError, match="the response has no tokens"):
            llama.response_ids(prompt, "")  # type: ignore[arg-type]


def test_an_empty_prompt_is_refused_although_the_tokenizer_adds_to_it(llama: HuggingFaceModel) -> None:
    for prompt in ("", [{"role": "user", "content": ""}]):
        with pytest.raises(ValueError, match="the prompt has no tokens"):
            llama.encode(prompt)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="the prompt has no tokens"):
            llama.generate([prompt], max_new_tokens=1)  # type: ignore[list-item]


# --- memory


ITEMS = [
    ("The capital of France is", "Paris, and that is true about the weather."),
    ("The capital of France is", "Rome."),
    ("Is the earth flat? Tell me what people say.", "No"),
    ("Is the earth flat? Tell me what people say.", "No, the earth is round, it is not made of cheese."),
    ("A:", "Yes."),
]


@pytest.mark.parametrize("tokens", first_quick([1, 3, 20, 40], 2))
def test_scores_do_not_depend_on_how_many_logits_are_in_memory(model: HuggingFaceModel, tokens: int) -> None:
    expected = model.score(ITEMS)
    largest = 0

    def watch(module: Any, inputs: Any, output: Any) -> None:
        nonlocal largest
        largest = max(largest, output.shape[0] * output.shape[1])

    handle = model.hf.get_output_embeddings().register_forward_hook(watch)
    found = model.score(ITEMS, memory=tokens * scoring._BYTES_PER_LOGIT * model.text_config.vocab_size)
    handle.remove()
    assert largest <= max(tokens, 3)  # the first pass has one logit vector for each prompt
    for one, other in zip(found, expected, strict=True):
        assert one.log_prob == pytest.approx(other.log_prob, rel=1e-5)
        assert one.is_greedy == other.is_greedy


def test_steering_acts_in_every_slice_of_a_long_answer(llama: HuggingFaceModel) -> None:
    v = torch.ones(len(llama.blocks), llama.width)
    with Steering(llama.blocks, v, lam=0.5):
        whole, sliced = llama.score(ITEMS), llama.score(ITEMS, memory=1)
    for one, other in zip(whole, sliced, strict=True):
        assert one.log_prob == pytest.approx(other.log_prob, rel=1e-5)


# --- scores that are finite


def test_a_score_that_is_not_finite_names_row_block_and_reason() -> None:
    model = random_llama()
    rows = [row._replace(where=f"pairs.jsonl:{i}") for i, row in enumerate(model.tokenise(ITEMS))]
    rows.append(model.tokenise([("about the moon", "No.")])[0]._replace(where="pairs.jsonl:99"))
    with damaged(model, block=2), pytest.raises(FloatingPointError) as error:
        model.score_rows(rows)
    assert str(error.value).startswith("pairs.jsonl:99: the log-probability of a response is nan.")
    assert "The output of decoder block 2 is the first that is not finite." in str(error.value)


def test_a_strength_that_overflows_names_row_and_block(llama: HuggingFaceModel) -> None:
    v = torch.zeros(len(llama.blocks), llama.width)
    v[1:] = 1.0
    with Steering(llama.blocks, v, lam=3e38), pytest.raises(FloatingPointError) as error:
        llama.score(ITEMS)
    message = str(error.value)
    assert message.startswith("row ")
    assert "It began at decoder block 1." in message
    assert "lam may be too large" in message


def test_padding_that_makes_nan_is_told_from_a_damaged_model() -> None:
    model = random_llama()

    def spoil(module: Any, inputs: Any, output: Any) -> Any:
        return output * torch.nan if len(output) > 1 else output

    handle = model.blocks[0].register_forward_hook(spoil)
    with pytest.raises(FloatingPointError, match=r"Each row alone gives finite numbers.*'sdpa', or take one row"):
        model.score(ITEMS[1:3])
    with pytest.raises(FloatingPointError, match="Each prompt alone gives finite numbers"):
        model.generate(["A:", "The capital"], max_new_tokens=1)
    handle.remove()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nothing_that_is_not_finite_is_a_score(value: float) -> None:
    with pytest.raises(FloatingPointError, match="the log-probability of a response is"):
        Scored(value, is_greedy=False)


def test_a_gradient_that_is_lost_names_example_and_block() -> None:
    model = random_llama()

    class Lost(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, h: torch.Tensor) -> torch.Tensor:
            return h.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * torch.nan

    example: Example = model.example("The capital of France is", "Paris.", "Rome.")
    handle = model.blocks[2].register_forward_pre_hook(lambda module, inputs: (Lost.apply(inputs[0]), *inputs[1:]))
    with pytest.raises(FloatingPointError) as error:
        explained(model, lambda: attribute(model, example, HyperParameters()), where="pairs.jsonl:7")
    handle.remove()
    assert str(error.value).startswith("pairs.jsonl:7: the gradient of f at alpha = 0.2 is not finite")
    assert "coming back, the gradient is lost at decoder block 1." in str(error.value)
    assert all(not block._forward_hooks for block in model.blocks)


def test_the_reference_feeds_no_more_than_the_context(llama: HuggingFaceModel) -> None:
    x = llama.encode("moon " * 60)
    room = llama.context - len(x.ids)
    y = torch.full((room + 1,), 5)  # the last one is only predicted
    assert llama.logits(x, x.embeds[None], y).shape[1] == room + 1
    with pytest.raises(ValueError, match=rf"{len(x.ids)} prompt tokens and {room + 1} of the response are more than"):
        llama.logits(x, x.embeds[None], torch.full((room + 2,), 5))
