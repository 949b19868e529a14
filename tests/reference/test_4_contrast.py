"""Contrast, eq. (4)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toys import FunctionModel, ToyDecoder, encoded, residual_of

from grains_ref.grains import Selection, contrast, mask
from grains_ref.models import HuggingFaceModel

pytestmark = pytest.mark.cpu

T, D, L = 5, 3, 2
SELECTION = Selection(pos=(1, 3), neg=(0,))


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_masking_replaces_the_chosen_embeddings_and_nothing_else() -> None:
    x, baseline = drawn(1, T, D), drawn(2, T, D)
    before = x.clone()
    got = mask(x, (3, 1), baseline)
    for j in range(T):
        assert torch.equal(got[j], (baseline if j in (1, 3) else x)[j])
    assert torch.equal(x, before)
    assert torch.equal(mask(x, (), baseline), x)


def test_on_a_linear_model_the_shift_is_what_the_masked_tokens_contributed() -> None:
    maps = drawn(3, L, T, D, D)  # h_l = sum over t of maps[l, t] x_t
    model = FunctionModel(lambda z: z.sum((1, 2)), lambda z: torch.einsum("ltij,btj->bli", maps, z))
    x, baseline = drawn(1, T, D), drawn(2, T, D)
    delta_pos, delta_neg = contrast(model, encoded(x), SELECTION, baseline)
    for delta, tokens in ((delta_pos, (1, 3)), (delta_neg, (0,))):
        expected = torch.stack([sum(maps[layer, t] @ (x - baseline)[t] for t in tokens) for layer in range(L)])
        torch.testing.assert_close(delta, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prompt", ["The capital", "The capital of France is", "Q: Is the moon made of cheese? A:"])
def test_an_empty_set_gives_a_shift_of_exactly_zero(model: HuggingFaceModel, prompt: str) -> None:
    # Equal rows of one batch differ by rounding errors, out of which PCA would make a direction.
    x = model.encode(prompt)
    near = len(x.ids) - 2  # within the sliding window of every layer
    for selection in (Selection((near,), ()), Selection((), (near,)), Selection((), ())):
        shifts = contrast(model, x, selection, model.baseline(x, "zero"))
        for delta, tokens in zip(shifts, (selection.pos, selection.neg), strict=True):
            assert (delta.norm(dim=1) > (1e-3 if tokens else -1)).all()  # every layer
            assert tokens or delta.count_nonzero() == 0


def test_the_hidden_state_is_the_raw_output_of_every_block_also_the_last(model: HuggingFaceModel) -> None:
    x = model.encode("What is the capital of Spain?")
    residuals = model.residuals(x, x.embeds[None])[0]
    states = model.hf(input_ids=x.ids[None], output_hidden_states=True).hidden_states  # embeddings first
    assert len(residuals) == len(states) - 1 == len(model.blocks)
    for layer in range(len(residuals) - 1):
        torch.testing.assert_close(residuals[layer], states[layer + 1][0, -1], rtol=1e-5, atol=1e-5)
    # transformers normalises its last entry; ours is before the final norm.
    assert (residuals[-1] - states[-1][0, -1]).abs().max() > 0.1
    torch.testing.assert_close(model.hf.model.norm(residuals[-1]), states[-1][0, -1], rtol=1e-5, atol=1e-5)


def test_the_state_is_read_at_the_last_prompt_token(toy: ToyDecoder) -> None:
    x = toy.encode([3, 17, 9], left_padding=2)
    # A causal model's state at the last token reacts to it, an earlier token's state could not.
    delta_pos, _ = contrast(toy, x, Selection((4,), ()), toy.baseline(x, "zero"))
    assert delta_pos.norm(dim=1).min() > 1e-3
    _, states = toy(x.embeds[None, 2:], torch.ones(1, 3))
    torch.testing.assert_close(toy.residuals(x, x.embeds[None])[0], states[0, :, -1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["zero", "mean", "token:x"])
def test_a_masked_token_keeps_its_place_and_is_still_attended(model: HuggingFaceModel, name: str) -> None:
    x = model.encode("The capital of France is")
    baseline = model.baseline(x, name)
    delta, _ = contrast(model, x, Selection((2,), ()), baseline)

    def last(embeds: Tensor, **options: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = model.blocks[1].register_forward_hook(lambda block, _, out: seen.append(residual_of(out)[:, -1]))
        model.hf(inputs_embeds=embeds[None], **options)
        handle.remove()
        return seen[0][0]

    replaced = torch.cat([x.embeds[:2], baseline[2:3], x.embeds[3:]])
    positions = torch.arange(len(x.ids))[None]
    attention = torch.ones_like(positions)
    unattended = attention.clone()
    unattended[0, 2] = 0
    h = last(x.embeds)
    expected = h - last(replaced, attention_mask=attention, position_ids=positions)
    torch.testing.assert_close(delta[1], expected, rtol=1e-4, atol=1e-5)
    for wrong in (
        h - last(torch.cat([x.embeds[:2], x.embeds[3:]])),  # dropped: the tokens after it move up
        h - last(replaced, attention_mask=unattended, position_ids=positions),  # no longer attended
    ):
        assert (delta[1] - wrong).abs().max() > 1e-2


@pytest.mark.parametrize("padding", [1, 4])
def test_left_padding_changes_no_shift(model: HuggingFaceModel, padding: int) -> None:
    shifts = []
    for n in (0, padding):
        x = model.encode("The capital of France is", left_padding=n)
        shifts.append(contrast(model, x, Selection((n + 2,), (n + 1, n + 3)), model.baseline(x, "zero")))
    for padded, plain in zip(shifts[1], shifts[0], strict=True):
        torch.testing.assert_close(padded, plain, rtol=1e-5, atol=1e-5)


def test_half_precision_states_are_subtracted_in_float32() -> None:
    x = encoded(torch.ones(2, 1, dtype=torch.bfloat16))
    model = FunctionModel(lambda z: z.sum((1, 2)), lambda z: z.sum(1, keepdim=True))
    delta_pos, delta_neg = contrast(model, x, Selection((0,), (1,)), torch.zeros(2, 1, dtype=torch.bfloat16))
    assert delta_pos.dtype == delta_neg.dtype == torch.float32
    assert delta_pos.item() == delta_neg.item() == 1


@pytest.mark.parametrize("tokens", [(-1,), (0, 3), (1, -3)])
def test_tokens_that_do_not_exist_are_not_masked_from_the_end(tokens: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"tokens to mask must be from 0 to 2; got \["):
        mask(torch.ones(3, 2), tokens, torch.zeros(3, 2))
