"""The dialect `authors` against Captum, transformers and arithmetic by hand; test_kit_authors.py has it as a port."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn
from toys import ToyDecoder

from grains_ref import authors, grains
from grains_ref.authors import AuthorsModel
from grains_ref.grains import Example
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.random_models import random_llama
from grains_ref.tiny_models.random_vision_models import noise_picture, random_llava

pytestmark = pytest.mark.cpu

PROMPT, YES, NO = "Q: Is the moon made of cheese? A:", "No, it is made of rock", "Yes, so people say."


def ids(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


@pytest.fixture(scope="module")
def bare() -> ToyDecoder:
    return ToyDecoder(seed=3)


@pytest.fixture(scope="module")
def model(bare: ToyDecoder) -> AuthorsModel:
    return AuthorsModel(bare, bare.embed, bare.norm, pad_id=0)


@pytest.fixture(scope="module")
def examples(bare: ToyDecoder) -> list[Example]:
    prompts = ([4, 9, 2, 17, 8, 23], [5, 5, 30, 11], [12, 1, 7, 3, 21], [9, 28, 6, 14, 2, 2, 19])
    answers = [(ids(6, 3), ids(10, 1, 22)), (ids(7), ids(2, 8)), (ids(1, 2, 3), ids(3, 2)), (ids(25, 4), ids(4, 25))]
    return [Example(bare.encode(p), *y) for p, y in zip(prompts, answers, strict=True)]


@pytest.fixture(scope="module")
def example(examples: list[Example]) -> Example:
    return examples[0]


@pytest.fixture(scope="module")
def llama() -> HuggingFaceModel:
    return random_llama(dtype=torch.float64)


def of(model: HuggingFaceModel) -> AuthorsModel:
    return AuthorsModel(model, model.embed, model.hf.get_decoder().norm, pad_id=model.tokenizer.eos_token_id)


def close(got: Tensor, expected: Tensor, rtol: float = 1e-10) -> None:
    torch.testing.assert_close(got, expected.to(got), rtol=rtol, atol=rtol * expected.abs().max().item())


def differ(one: Tensor, other: Tensor) -> bool:
    """By more than a hundredth: no rounding."""
    return one.shape != other.shape or bool((one - other).abs().max() > 0.01 * other.abs().max())


def whole_ids(example: Example) -> tuple[Tensor, Tensor]:
    return tuple(torch.cat([example.encoded.ids, y])[None] for y in (example.y_pos, example.y_neg))  # type: ignore[return-value]


# ------------------------------------------------------------------------ independent arithmetic, row by row
def test_row_1_the_score_is_that_the_last_token_is_said_again(llama: HuggingFaceModel) -> None:
    example = llama.example(PROMPT, YES, NO)
    row = whole_ids(example)[0]
    with torch.no_grad():
        log_p = llama.hf(input_ids=row).logits[0, -1].log_softmax(-1)
        again = llama.hf(input_ids=torch.cat([row, row[:, -1:]], 1)).logits[0, -2].log_softmax(-1)
        got = authors.log_prob(of(llama), example.encoded, example.encoded.embeds[None], y=example.y_pos)
    close(got[0], log_p[row[0, -1]], rtol=1e-6)
    close(got[0], again[row[0, -1]], rtol=1e-6)


def test_rows_2_to_4_attribution_is_captums_on_both_branches_side_by_side(
    bare: ToyDecoder, model: AuthorsModel, example: Example
) -> None:
    pos, neg = (row[0] for row in whole_ids(example))
    n = len(pos)

    def f(joint: Tensor) -> Tensor:
        sides = []
        for part, last in ((joint[:, :n], pos[-1]), (joint[:, n:], neg[-1])):
            logits, _ = bare(part, torch.ones(part.shape[:2], dtype=torch.long))
            sides.append(logits[:, -1].log_softmax(-1)[:, last])
        return sides[0] - sides[1]

    joint = torch.cat([bare.embed(pos), bare.embed(neg)])[None]
    expected = IntegratedGradients(f).attribute(joint, baselines=torch.zeros_like(joint), n_steps=20)[0]
    got = authors.attribute(model, example, "integrated_gradients")
    close(got.a_pos.ig, expected[:n])  # to 1e-10: weights are rounded to float32 in both
    close(got.a_neg.ig, expected[n:])
    exact = grains.integrated_gradients(
        lambda embeds: authors.last_token_again(model, got.pos, embeds, y=example.y_pos),
        got.pos.embeds,
        torch.zeros_like(got.pos.embeds),
        m=20,
        quadrature="gauss_legendre",
    )
    assert 1e-10 < (exact.ig - got.a_pos.ig).abs().max() / exact.ig.abs().max() < 1e-6


def test_rows_5_and_6_gradient_and_smoothgrad_by_hand(bare: ToyDecoder, model: AuthorsModel, example: Example) -> None:
    pos, neg = (row[0] for row in whole_ids(example))

    def gradient(embeds: Tensor, token: Tensor) -> Tensor:
        embeds = embeds.detach().requires_grad_()
        logits, _ = bare(embeds[None], torch.ones(1, len(embeds), dtype=torch.long))
        return torch.autograd.grad(logits[0, -1].log_softmax(-1)[token], embeds)[0]

    x_pos, x_neg = bare.embed(pos), bare.embed(neg)
    got = authors.attribute(model, example, "gradient")
    close(got.a_pos.a, (x_pos * gradient(x_pos, pos[-1])).sum(-1))
    close(got.a_neg.a, -(x_neg * gradient(x_neg, neg[-1])).sum(-1))

    draws = torch.Generator().manual_seed(5)
    noisy_pos = [x_pos + 0.01 * torch.randn(x_pos.shape, generator=draws).double() for _ in range(20)]
    noisy_neg = [x_neg + 0.01 * torch.randn(x_neg.shape, generator=draws).double() for _ in range(20)]
    got = authors.attribute(model, example, "smoothgrad", torch.Generator().manual_seed(5))
    close(got.a_pos.a, sum(gradient(x, pos[-1]) for x in noisy_pos).sum(-1) / 20)  # type: ignore[union-attr]
    close(got.a_neg.a, -sum(gradient(x, pos[-1]) for x in noisy_neg).sum(-1) / 20)  # type: ignore[union-attr]


def test_row_7_selection_is_both_ends_of_an_argsort() -> None:
    for seed in range(20):
        a = torch.randn(12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        order = np.argsort(a.numpy())
        chosen = authors.select(a, k=7)
        assert (list(chosen.pos), list(chosen.neg)) == (order[::-1][:7].tolist(), order[:7].tolist())
    assert authors.select(torch.zeros(5), k=2) == grains.Selection((4, 3), (0, 1))  # row 22: by position


def test_rows_10_to_12_shifts_are_those_of_ablated_ids_in_transformers_tuple(llama: HuggingFaceModel) -> None:
    model, example = of(llama), llama.example(PROMPT, YES, NO)
    branches = authors.attribute(model, example, "gradient")
    shifts = authors.contrast(model, branches, k=3)

    def states(row: Tensor) -> Tensor:
        with torch.no_grad():
            found = llama.hf(input_ids=row, output_hidden_states=True).hidden_states
        return torch.stack([h[0, -1] for h in found[1:]])

    for side, row, a in zip(range(2), whole_ids(example), (branches.a_pos.a, branches.a_neg.a), strict=True):
        selection = authors.select(a, k=3)
        for delta, tokens in zip(shifts, (selection.pos, selection.neg), strict=True):
            ablated = row.clone()
            ablated[0, list(tokens)] = llama.tokenizer.eos_token_id
            close(delta[side], states(row) - states(ablated), rtol=1e-5)


def first_component(D: np.ndarray) -> np.ndarray:
    """scikit-learn's PCA(1) by hand: centre, decompose, make the entry of largest absolute value positive."""
    eigenvalues, eigenvectors = np.linalg.eigh(np.cov(D, rowvar=False))
    v = eigenvectors[:, eigenvalues.argmax()]
    return v if v[np.abs(v).argmax()] > 0 else -v


def test_row_13_components_have_scikit_learns_sign() -> None:
    deltas = torch.randn(9, 4, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.3
    got = authors.aggregate(deltas)
    expected = np.stack([first_component(deltas[:, layer].numpy()) for layer in range(4)])
    close(got.v, torch.from_numpy(expected))
    close(authors.aggregate(-deltas).v, got.v)  # it says nothing about the shifts
    paper = grains.aggregate(deltas)
    agree = (got.v * paper.v).sum(-1)
    close(agree.abs(), torch.ones(4))
    assert agree.min() < 0 < agree.max()  # some are turned round
    assert got.explained == pytest.approx(paper.explained)
    assert got.gap == pytest.approx(paper.gap)
    assert np.abs(got.cos_mean) == pytest.approx(paper.cos_mean)


def released_hook(v: Tensor, alpha: float) -> Callable[[nn.Module, Any, Any], Any]:
    """What the released code does to whatever a block returns: its element 0, in place, along axis 1."""

    def edit(block: nn.Module, inputs: Any, output: Any) -> Any:
        first = output[0]
        moved = first + v * (alpha * 10)
        first.copy_(moved * (first.norm(dim=1, keepdim=True) / (moved.norm(dim=1, keepdim=True) + 1e-8)))
        return output

    return edit


@pytest.mark.parametrize("returns_tuple", [True, False], ids=["transformers 4", "transformers 5"])
@torch.no_grad()
def test_rows_15_and_16_both_variants_of_the_hook(returns_tuple: bool) -> None:
    bare = ToyDecoder(seed=3, returns_tuple=returns_tuple)
    h, mask = bare.embed(ids(4, 9, 2, 17, 8, 23, 5, 5)).reshape(2, 4, -1), torch.ones(2, 4, dtype=torch.long)
    v = torch.randn(3, bare.width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    unsteered, _ = bare(h.clone(), mask)
    with bare.blocks[-1].register_forward_hook(released_hook(v[-1], 0.3)):
        expected, _ = bare(h.clone(), mask)
    variant: authors.Hook = "transformers_4" if returns_tuple else "transformers_5"
    with authors.Steering(bare.blocks, v, alpha=0.3, hook=variant):
        got, _ = bare(h.clone(), mask)
    close(got, expected)
    assert torch.equal(got[1], unsteered[1]) == (not returns_tuple)  # one variant steers row 0 only
    assert [len(block._forward_hooks) for block in bare.blocks] == [0, 0, 0]


def test_row_16_a_decoding_step_only_turns_signs_round() -> None:
    h, v = (torch.randn(shape, generator=torch.Generator().manual_seed(2)) for shape in ((1, 1, 13), (13,)))
    close(authors.steer_hidden(h, v, alpha=4.0).abs(), h.abs(), rtol=1e-6)
    close(authors.steer_hidden(h, v, alpha=4.0, hook="transformers_5"), grains.steer_hidden(h, v, lam=40.0), rtol=1e-6)


def test_row_18_the_image_never_enters() -> None:
    llava = random_llava()
    scores, states = [], []
    for seed in (1, 2):
        example = llava.example("Q: <image> Is it a moon? A:", YES, NO, noise_picture(90, 50, seed=seed))
        branches = authors.attribute(of(llava), example, "integrated_gradients")
        scores.append(branches.a_pos.a)
        states.append(authors.contrast(of(llava), branches, k=3)[0])
    assert torch.equal(scores[0], scores[1])
    assert torch.equal(states[0], states[1])


def test_the_whole_pipeline_written_down_once_more(llama: HuggingFaceModel) -> None:
    """Captum, ids and transformers' tuple to the end: v of `fit`, rows 1 to 4, 7, 8, 10 to 14."""
    questions = [(PROMPT, YES, NO), ("What is the capital of France", "It is Paris", "It is Rome, so people say"),
                 ("Is the earth flat", "No", "Yes it is")]  # fmt: skip
    examples = [llama.example(*question) for question in questions]
    hf, rows = llama.hf, {"pos": [], "neg": []}  # type: ignore[var-annotated]
    for example in examples:
        pos, neg = whole_ids(example)
        n = pos.shape[1]

        def f(joint: Tensor, n: int = n, pos: Tensor = pos, neg: Tensor = neg) -> Tensor:
            ends = [hf(inputs_embeds=part).logits[:, -1].log_softmax(-1) for part in (joint[:, :n], joint[:, n:])]
            return ends[0][:, pos[0, -1]] - ends[1][:, neg[0, -1]]

        joint = torch.cat([llama.embed(pos), llama.embed(neg)], 1)
        a = IntegratedGradients(f).attribute(joint, baselines=torch.zeros_like(joint), n_steps=20)[0].sum(-1)
        for row, scores in ((pos, a[:n]), (neg, a[n:])):
            order = np.argsort(scores.numpy())
            for side, tokens in (("pos", order[::-1][:4]), ("neg", order[:4])):
                ablated = row.clone()
                ablated[0, tokens.tolist()] = llama.tokenizer.eos_token_id
                with torch.no_grad():
                    both = [hf(input_ids=z, output_hidden_states=True).hidden_states for z in (row, ablated)]
                rows[side].append(torch.stack([h[0, -1] - g[0, -1] for h, g in zip(*both, strict=True)])[1:].numpy())
    v_pos, v_neg = (
        np.stack([first_component(np.stack(side)[:, layer]) for layer in range(3)]) for side in rows.values()
    )
    got = authors.fit(of(llama), examples, k=4)
    close(got.v, torch.from_numpy(v_pos - v_neg), rtol=1e-4)
    close(authors.fit(of(llama), examples, k=4, mode="pos").v, torch.from_numpy(v_pos), rtol=1e-4)


# ----------------------------------------------------------------------------- every deviation is one
def deviations(bare: ToyDecoder, model: AuthorsModel, examples: list[Example]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Row, the paper's result and the released code's, everything else being equal."""
    example = examples[0]
    x, y_pos, y_neg = example.encoded, example.y_pos, example.y_neg
    zero, t = torch.zeros_like(x.embeds), len(x.ids)
    yield "1", grains.log_prob(bare, x, x.embeds[None], y=y_pos), authors.log_prob(model, x, x.embeds[None], y=y_pos)

    def score(embeds: Tensor) -> Tensor:
        return authors.log_prob(model, x, embeds, y=y_pos)

    def m20(f: grains.Function) -> Tensor:
        return grains.integrated_gradients(f, x.embeds, zero, m=20, quadrature="gauss_legendre").a

    both = authors.attribute(model, example, "integrated_gradients")
    yield "2, response on the path", m20(score), both.a_pos.a[:t]
    f = grains.objective(bare, example, grains.HyperParameters())
    added = both.a_pos.a[:t] + both.a_neg.a[:t]
    yield "2, branches not added", added, both.a_pos.a[:t]
    yield "3", grains.integrated_gradients(f, x.embeds, zero, m=5).a, m20(f)
    smooth = authors.attribute(model, example, "smoothgrad").a_pos
    yield "5", (both.pos.embeds * smooth.ig).sum(-1), smooth.a
    same_end = Example(x, y_pos, torch.cat([y_neg[:-1], y_pos[-1:]]))
    right = authors.smoothgrad(
        lambda e: -authors.last_token_again(model, both.neg, e, y=y_neg), both.neg.embeds, generator=_after(both)
    )
    yield "6, target", right.a, authors.attribute(model, example, "smoothgrad").a_neg.a
    assert differ(smooth.a, authors.attribute(model, same_end, "smoothgrad").a_neg.a)
    relative = x.embeds.std() * 0.15
    yield "6, sigma", relative, torch.tensor(authors.SIGMA)
    a = torch.tensor([3.0, 0.5, -1.0, 2.0])
    every = torch.ones(4, dtype=torch.bool)
    yield "7", ids(*grains.select(a, k=3, eligible=every).neg), ids(*authors.select(a, k=3).neg)
    yield "8", torch.zeros(t), both.a_pos.a
    yield "9", ids(grains.HyperParameters().k), ids(authors.K)
    yield "10", grains.mask(x.embeds, (1, 2), zero), authors.mask(model, x.embeds, (1, 2))
    selection = grains.Selection((1,), (2,))
    at_prompt = grains.contrast(bare, x, selection, model.embed(ids(0)).expand_as(x.embeds))[0]
    whole = both.pos
    masked = torch.stack([whole.embeds, authors.mask(model, whole.embeds, (1,))])
    h, without = bare.residuals(whole, masked)
    yield "11", at_prompt, h - without
    g, g_without = authors.hidden_states(model, whole, masked)
    assert torch.equal((g - g_without)[:-1], (h - without)[:-1])
    yield "12, last layer", (h - without)[-1], (g - g_without)[-1]
    yield "11, rows", torch.zeros(len(examples)), torch.zeros(2 * len(examples))
    deltas = torch.cat([side for e in examples for side in authors.contrast(model, authors.attribute(model, e,
                        "gradient"))])  # fmt: skip
    yield "13", grains.aggregate(deltas).v, authors.aggregate(deltas).v
    fits = [authors.fit(model, examples, method="gradient", mode=mode).v for mode in ("both", "pos")]
    yield "14", *fits
    states, v = x.embeds[None].expand(2, -1, -1), bare.embed.weight[7]
    yield "15, factor", grains.steer_hidden(states, v, lam=0.2), grains.steer_hidden(states, v, lam=2.0)
    yield "16, sequence", grains.steer_hidden(states, v, lam=2.0), authors.steer_hidden(states, v, alpha=0.2)
    row_0 = authors.steer_hidden(states, v, alpha=0.2, hook="transformers_5")
    yield "16, row 0", grains.steer_hidden(states, v, lam=2.0), row_0
    vs = torch.stack([v, -v, v])
    with torch.no_grad():
        with grains.Steering(bare.blocks, vs, lam=1.0):
            all_blocks, _ = bare(x.embeds[None], torch.ones(1, t, dtype=torch.long))
        with grains.Steering(bare.blocks, vs, lam=1.0, layers=[2]):
            last_block, _ = bare(x.embeds[None], torch.ones(1, t, dtype=torch.long))
    yield "15, last block", all_blocks, last_block


def _after(both: authors.Branches) -> torch.Generator:
    """The generator as SmoothGrad's second branch finds it."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(authors.SAMPLES):
        torch.randn(both.pos.embeds.shape, generator=generator)
    return generator


def test_every_deviation_changes_the_result(bare: ToyDecoder, model: AuthorsModel, examples: list[Example]) -> None:
    same = [row for row, paper, released in deviations(bare, model, examples) if not differ(released, paper)]
    assert not same


def test_row_2_the_other_response_changes_nothing(model: AuthorsModel, example: Example) -> None:
    other = Example(example.encoded, example.y_pos, ids(30, 29))
    for method in ("integrated_gradients", "gradient"):
        one, two = (authors.attribute(model, e, method).a_pos.a for e in (example, other))  # type: ignore[arg-type]
        assert torch.equal(one, two)


def test_padding_on_the_left_changes_nothing(bare: ToyDecoder, model: AuthorsModel, example: Example) -> None:
    padded = Example(bare.encode(example.encoded.ids.tolist(), left_padding=3), example.y_pos, example.y_neg)
    plain, shifted = (authors.attribute(model, e, "integrated_gradients") for e in (example, padded))
    close(shifted.a_pos.a[3:], plain.a_pos.a)
    close(shifted.a_neg.a[3:], plain.a_neg.a)


def test_an_unknown_method_is_refused(model: AuthorsModel, example: Example) -> None:
    with pytest.raises(ValueError, match="method is 'vanilla'; expected one of integrated_gradients, gradient"):
        authors.attribute(model, example, "vanilla")  # type: ignore[arg-type]
