"""Objective, eq. (1)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import ToyDecoder

from grains_ref.grains import Example, HyperParameters, log_prob, objective, preference
from grains_ref.models import HuggingFaceModel

pytestmark = pytest.mark.cpu

X = [3, 17, 9, 25, 4]
Y_POS, Y_NEG = torch.tensor([7, 11, 2]), torch.tensor([5, 8, 13, 29, 1])


def step_by_step(toy: ToyDecoder, prompt: Tensor, y: Tensor) -> float:
    """log P(y | x) as people say it: predict one token, append it, predict the next."""
    total, so_far = 0.0, prompt
    for token in y.tolist():
        logits, _ = toy(so_far[None], torch.ones(1, len(so_far)))
        exponentials = [math.exp(z) for z in logits[0, -1].tolist()]
        total += math.log(exponentials[token] / sum(exponentials))
        so_far = torch.cat([so_far, toy.embed.weight[token][None]])
    return total


@pytest.mark.parametrize("y", [Y_POS, Y_NEG, Y_POS[:1]], ids=["3 tokens", "5 tokens", "1 token"])
def test_every_response_token_counts_once_each_given_the_ones_before(toy: ToyDecoder, y: Tensor) -> None:
    x = toy.encode(X)
    assert log_prob(toy, x, x.embeds[None], y=y).item() == pytest.approx(step_by_step(toy, x.embeds, y), rel=1e-12)


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_the_rows_of_a_padded_batch_do_not_mix_and_padding_is_not_attended(toy: ToyDecoder, padding: int) -> None:
    rows = [toy.embed(torch.tensor(ids)) for ids in (X, X[::-1], [28, *X[1:]])]
    x = toy.encode(X, left_padding=padding)
    embeds = torch.stack([torch.cat([x.embeds[:padding], row]) for row in rows])
    expected = [step_by_step(toy, row, Y_POS) - step_by_step(toy, row, Y_NEG) for row in rows]
    assert preference(toy, x, embeds, y_pos=Y_POS, y_neg=Y_NEG).tolist() == pytest.approx(expected, rel=1e-12)


def test_the_row_before_a_token_predicts_it_as_transformers_computes_it(model: HuggingFaceModel) -> None:
    x, y = model.encode("What is the capital of Spain?"), model.response_ids("?", "It is Madrid.")
    ids = torch.cat([x.ids, y])
    log_p = model.hf(input_ids=ids[None]).logits[0].log_softmax(-1)
    expected = sum(log_p[len(x.ids) + r - 1, token] for r, token in enumerate(y.tolist()))
    assert len(y) > 1
    torch.testing.assert_close(log_prob(model, x, x.embeds[None], y=y)[0], expected, rtol=1e-6, atol=1e-5)
    rows = model.logits(x, x.embeds[None], y)
    torch.testing.assert_close(rows[0].log_softmax(-1), log_p[len(x.ids) - 1 : -1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", [1, 5])
def test_left_padding_changes_no_score_of_a_real_architecture(model: HuggingFaceModel, padding: int) -> None:
    y = torch.tensor([41, 73, 12])
    plain, padded = (model.encode("The capital of Italy", left_padding=n) for n in (0, padding))
    expected = log_prob(model, plain, plain.embeds[None], y=y)
    torch.testing.assert_close(log_prob(model, padded, padded.embeds[None], y=y), expected, rtol=1e-6, atol=1e-5)


def test_swapping_the_responses_negates_the_preference_exactly(toy: ToyDecoder) -> None:
    x = toy.encode(X)
    f, swapped = (
        preference(toy, x, x.embeds[None], y_pos=a, y_neg=b) for a, b in ((Y_POS, Y_NEG), (Y_NEG, Y_POS))
    )  # fmt: skip
    assert f.item() == -swapped.item() != 0


def test_the_likelihood_objective_ignores_the_dispreferred_response(toy: ToyDecoder) -> None:
    example = Example(toy.encode(X), Y_POS, Y_NEG)
    x = example.encoded.embeds[None]
    likelihood = objective(toy, example, HyperParameters(objective="likelihood"))(x)
    assert likelihood.item() == log_prob(toy, example.encoded, x, y=Y_POS).item()
    assert objective(toy, example, HyperParameters())(x).item() != likelihood.item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_not_summed_in_half_precision(llama: HuggingFaceModel, dtype: torch.dtype) -> None:
    class Rounded:
        def logits(self, *args: object) -> Tensor:
            return llama.logits(x, x.embeds[None], y).to(dtype)

    x, y = llama.encode("The capital"), torch.tensor([41, 73, 12, 200, 9])
    got = log_prob(Rounded(), x, x.embeds[None].to(dtype), y=y)  # type: ignore[arg-type]
    rounded = Rounded().logits().double().log_softmax(-1)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(rounded[0, torch.arange(5), y].sum().item(), rel=1e-6)


@pytest.mark.parametrize("y", [torch.tensor([], dtype=torch.long), torch.tensor([[1, 2]]), torch.tensor(3)])
def test_a_response_without_tokens_or_with_another_shape_is_refused(toy: ToyDecoder, y: Tensor) -> None:
    x = toy.encode(X)
    with pytest.raises(ValueError, match="at least one token id"):
        log_prob(toy, x, x.embeds[None], y=y)


def test_ids_outside_the_vocabulary_are_refused_and_do_not_index_from_the_end() -> None:
    class Uniform:
        def logits(self, encoded: object, embeds: Tensor, response_ids: Tensor) -> Tensor:
            return torch.zeros(len(embeds), len(response_ids), 31)

    def score(*y: int) -> float:
        return log_prob(Uniform(), None, torch.zeros(1, 4, 2), y=torch.tensor(y)).item()  # type: ignore[arg-type]

    assert score(0, 30) == pytest.approx(-2 * math.log(31))
    for negative in ((-1,), (3, -31)):
        with pytest.raises(ValueError, match=r"token ids must not be negative; got \["):
            score(*negative)
    with pytest.raises(ValueError, match=r"token ids must be below 31, the size of the vocabulary; got \[3, 31\]"):
        score(3, 31)


@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
def test_a_score_that_is_not_finite_is_refused_with_its_row(toy: ToyDecoder, bad: float) -> None:
    class Broken:
        def logits(self, *arguments: Any) -> Tensor:
            logits = toy.logits(*arguments)
            logits[1, 0, int(Y_POS[0])] = bad
            return logits

    x = toy.encode(X)
    embeds = torch.stack([x.embeds, x.embeds])
    with pytest.raises(FloatingPointError, match=r"scores are not finite \(rows \[1\]\)"):
        log_prob(Broken(), x, embeds, y=Y_POS)  # type: ignore[arg-type]
