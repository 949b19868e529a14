"""Planted bugs of contrast, eq. (4): another state, another way to mask, another difference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from grains_ref.conformance.bugs.common import Row, bugs_of
from grains_ref.conformance.bugs.decoder import (
    RIGHT,
    Decoder,
    Pass,
    count_from_first_token,
    decode,
    norm,
    padding_row,
    weights,
    widened,
)
from grains_ref.conformance.bugs.decoder_bugs import IN_THE_BLOCKS, SMALL_EPSILONS, rows_with
from grains_ref.conformance.bugs.objective import mask_one_late
from grains_ref.conformance.stages import Stage, Values, array, tensor, whole


class Prompt(NamedTuple):
    """What a contrast is computed from."""

    x: Tensor  # (T, d)
    baseline: Tensor  # (T, d)
    mask: Tensor  # (T,)
    pos: list[int]
    neg: list[int]


Masked: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Embeddings (T', d), mask (T',), positions (T',)."""
State: TypeAlias = Callable[[Masked], Tensor]
"""Embeddings, mask and positions -> h (L, d)."""


def read_at(read: Callable[[Pass, Tensor, Tensor], Tensor], decoder: Decoder = RIGHT) -> State:
    """The state that `read` takes from a Pass, the mask (T,) and the inputs (1, T, d)."""

    def state(masked: Masked) -> Tensor:
        inputs, mask, positions = masked
        run = decode(inputs[None], mask[None], decoder=decoder, positions=positions[None])
        return widened(read(run, mask, inputs[None]))

    return state


def last_state_of(decoder: Decoder) -> State:
    """Eq. (4)'s state on a decoder."""
    return read_at(lambda run, mask, inputs: run.states[0, :, -1], decoder)


last_state: State = last_state_of(RIGHT)
last_normed: State = read_at(
    lambda run, mask, inputs: torch.cat(
        [run.states[0, :-1, -1], norm(run.states[0, -1:, -1], weights(inputs.dtype)["norm"])]
    )
)


def _counted(x: Tensor, mask: Tensor) -> Masked:
    return x, mask, count_from_first_token(mask[None])[0]


def replaced(prompt: Prompt, tokens: list[int]) -> Masked:
    """The right way to mask: embeddings replaced, attention mask and positions as they are."""
    x = prompt.x.clone()
    x[tokens] = prompt.baseline[tokens]
    return _counted(x, prompt.mask)


def contrast_with(
    *,
    state: State = last_state,
    masked: Callable[[Prompt, list[int]], Masked] = replaced,
    change: Callable[[Prompt], Prompt] = lambda prompt: prompt,
    join: Callable[[Tensor, Tensor], Tensor] = torch.sub,
    factor: Callable[[list[int]], float] = lambda tokens: 1.0,
    empty_is_zero: bool = True,
) -> Stage:
    """Eq. (4) with another state, another way to mask, another prompt or another difference."""

    def stage(*, x: Any, baseline: Any, attention_mask: Any, pos: Any, neg: Any, dtype: str) -> Values:
        right_mask = whole(attention_mask)
        prompt = change(Prompt(tensor(x, dtype), tensor(baseline, dtype), right_mask, list(pos), list(neg)))
        with torch.no_grad():
            h = state(_counted(prompt.x, prompt.mask))
            deltas = []
            for tokens in (prompt.pos, prompt.neg):
                if tokens or not empty_is_zero:
                    deltas.append(join(h, state(masked(prompt, tokens))) * factor(tokens))
                else:
                    deltas.append(torch.zeros_like(h))
        return {"delta_pos": array(deltas[0]), "delta_neg": array(deltas[1])}

    return stage


def unit(h: Tensor) -> Tensor:
    """Every layer's state at unit length."""
    return nn.functional.normalize(h, dim=-1)


def moved(by: int) -> Callable[[Prompt, list[int]], Masked]:
    """The tokens `by` places further on masked; beyond the end, the last one."""
    return lambda prompt, tokens: replaced(prompt, [min(max(j + by, 0), len(prompt.x) - 1) for j in tokens])


def wider(prompt: Prompt, tokens: list[int]) -> Masked:
    """The tokens and the one after each."""
    return replaced(prompt, sorted({min(j + extra, len(prompt.x) - 1) for j in tokens for extra in (0, 1)}))


def blended(of_x: float, of_baseline: float) -> Callable[[Prompt, list[int]], Masked]:
    """A sum of embedding and baseline, instead of the baseline in the embedding's place."""

    def masked(prompt: Prompt, tokens: list[int]) -> Masked:
        x = prompt.x.clone()
        x[tokens] = of_x * x[tokens] + of_baseline * prompt.baseline[tokens]
        return _counted(x, prompt.mask)

    return masked


def in_the_order_of_the_set(prompt: Prompt, tokens: list[int]) -> Masked:
    """Baseline row i for the i-th token of the set, instead of the token's own row."""
    x = prompt.x.clone()
    x[tokens] = prompt.baseline[: len(tokens)]
    return _counted(x, prompt.mask)


def cut_out(prompt: Prompt, tokens: list[int]) -> Masked:
    """The tokens taken out, the others at their old positions (all of them: the last one stays)."""
    keep = _without(len(prompt.x), tokens) or [len(prompt.x) - 1]
    x, mask, positions = _counted(prompt.x, prompt.mask)
    return x[keep], mask[keep], positions[keep]


def neighbour_instead(prompt: Prompt, tokens: list[int]) -> Masked:
    """The token on the left in each one's place."""
    x = prompt.x.clone()
    for j in tokens:
        x[j] = prompt.x[max(j - 1, 0)]
    return _counted(x, prompt.mask)


def _without(n: int, tokens: list[int]) -> list[int]:
    return [j for j in range(n) if j not in tokens]


def dropped(prompt: Prompt, tokens: list[int]) -> Masked:
    """The tokens taken out of the sequence (all of them: the last one stays)."""
    keep = _without(len(prompt.x), tokens) or [len(prompt.x) - 1]
    return _counted(prompt.x[keep], prompt.mask[keep])


def unattended(prompt: Prompt, tokens: list[int]) -> Masked:
    """The tokens' attention mask set to 0, embeddings and positions kept."""
    x, mask, positions = _counted(prompt.x, prompt.mask.clone())
    mask[tokens] = 0
    return x, mask, positions


def not_undone(prompt: Prompt, tokens: list[int]) -> Masked:
    """The baseline written into the prompt itself: the second set is masked on top of the first."""
    return replaced(prompt, tokens if tokens == prompt.pos else [*prompt.pos, *prompt.neg])


ROWS: tuple[Row, ...] = (
    ("tokens_dropped", "masked tokens taken out instead of replaced by the baseline",
     "All later tokens move to other positions", "study", contrast_with(masked=dropped)),
    ("tokens_unattended", "masked tokens hidden by the attention mask instead of replaced",
     "All others attend more to what is left, and a masked last token still speaks for itself", "study",
     contrast_with(masked=unattended)),
    ("padding_for_baseline", "masked tokens replaced by the padding token's embedding whatever the baseline",
     "Another shift, by a token that means end of text", "released code, row 10",
     contrast_with(change=lambda prompt: prompt._replace(baseline=padding_row(prompt.x)))),
    ("zeros_for_baseline", "masked tokens replaced by zeros whatever the baseline", "Another shift", "field",
     contrast_with(change=lambda prompt: prompt._replace(baseline=torch.zeros_like(prompt.x)))),
    ("states_one_early", "`hidden_states[l]`, the input of block l, instead of its output",
     "Every vector is added one block after the place it was read at", "study",
     contrast_with(state=read_at(
         lambda run, mask, inputs: torch.cat([inputs[0, None], run.states[0, :-1]])[:, -1]))),
    ("last_state_normed", "the last layer's state read after the final norm, as in `hidden_states[-1]`",
     "The last layer is steered with a vector of another scale and direction", "released code, row 12",
     contrast_with(state=last_normed)),
    ("mean_over_positions", "the state averaged over the prompt's tokens, not the last one's",
     "The shift of the masked tokens themselves dominates", "study",
     contrast_with(state=read_at(lambda run, mask, inputs: run.states[0, :, mask.bool()].mean(1)))),
    ("first_position", "the state of the first column of the prompt", "It sees no masked token after it", "study",
     contrast_with(state=read_at(lambda run, mask, inputs: run.states[0, :, 0]))),
    ("last_position_by_length", "the last token looked for at (number of tokens) - 1, as with right padding",
     "With left padding a token in the middle is read", "field",
     contrast_with(state=read_at(lambda run, mask, inputs: run.states[0, :, int(mask.sum()) - 1]))),
    ("delta_reversed", "masked minus unmasked", "Steering moves toward the rejected answer", "study",
     contrast_with(join=lambda h, without: without - h)),
    ("delta_normalised", "every shift scaled to unit length", "Examples with a weak shift count as much as others",
     "field", contrast_with(join=lambda h, without: nn.functional.normalize(h - without, dim=-1))),
    ("mask_ignored_in_states", "an attention mask of ones: padding is attended",
     "The shift depends on how far the batch was padded", "study",
     contrast_with(change=lambda prompt: prompt._replace(mask=torch.ones_like(prompt.mask)))),
    ("mask_not_undone", "the second set masked on top of the first",
     "Delta_neg contains the shift of both sets", "ours", contrast_with(masked=not_undone)),
    ("complement_masked", "every token but the set's masked", "The shift of everything else", "ours",
     contrast_with(masked=lambda prompt, tokens: replaced(prompt, _without(len(prompt.x), tokens)))),
    ("sets_swapped", "the two sets exchanged", "Steering moves toward the rejected answer", "ours",
     contrast_with(change=lambda prompt: prompt._replace(pos=prompt.neg, neg=prompt.pos))),
    ("indices_without_padding", "token indices counted from the first token that is no padding",
     "In padded prompts other tokens are masked", "field",
     contrast_with(change=lambda prompt: prompt._replace(
         pos=[min(j + int((prompt.mask == 0).sum()), len(prompt.x) - 1) for j in prompt.pos],
         neg=[min(j + int((prompt.mask == 0).sum()), len(prompt.x) - 1) for j in prompt.neg]))),
    ("before_the_mlp", "the state between attention and MLP instead of the block's output",
     "Vectors are read where no hook acts", "field",
     contrast_with(state=read_at(lambda run, mask, inputs: run.middles[0, :, -1]))),
    ("empty_set_masks_all", "an empty set masking every token instead of none",
     "Examples without negative tokens contribute the largest shift", "ours",
     contrast_with(empty_is_zero=False, masked=lambda prompt, tokens: replaced(
         prompt, tokens or list(range(len(prompt.x)))))),
    ("released_contrast", "the released code's shifts: padding for the baseline, the last layer after the final norm",
     "The last layer is steered with a vector of another scale, and masking means end of text",
     "released code, rows 10 and 12",
     contrast_with(state=last_normed,
                   change=lambda prompt: prompt._replace(baseline=padding_row(prompt.x)))),
    # which state
    ("position_before_the_last", "the state of the last token but one", "The last token's own shift is lost", "field",
     contrast_with(state=read_at(lambda run, mask, inputs: run.states[0, :, max(inputs.shape[1] - 2, 0)]))),
    ("sum_over_positions", "the state added up over the prompt's tokens", "Long prompts give long shifts", "ours",
     contrast_with(state=read_at(lambda run, mask, inputs: run.states[0, :, mask.bool()].sum(1)))),
    ("largest_over_positions", "the largest entry over the prompt's tokens, feature by feature",
     "The shift mixes tokens", "field",
     contrast_with(state=read_at(lambda run, mask, inputs: run.states[0, :, mask.bool()].amax(1)))),
    ("mean_over_padding_too", "the state averaged over all columns, padding included",
     "The shift depends on how far the batch was padded", "ours",
     contrast_with(state=read_at(lambda run, mask, inputs: run.states[0].mean(1)))),
    ("layers_reversed", "the layers in reverse order", "Every vector is added at another block", "ours",
     contrast_with(state=read_at(lambda run, mask, inputs: run.states[0, :, -1].flip(0)))),
    ("last_layer_for_all", "the last layer's state for every layer", "Every vector is the last block's", "ours",
     contrast_with(state=read_at(lambda run, mask, inputs: run.states[0, -1:, -1].expand(len(run.states[0]), -1)))),
    ("every_state_normed", "every layer's state read after the final norm", "Vectors have another scale and direction",
     "field", contrast_with(state=read_at(
         lambda run, mask, inputs: norm(run.states[0, :, -1], weights(inputs.dtype)["norm"])))),
    ("block_without_its_input", "what a block adds to the stream instead of the stream",
     "The shift of earlier blocks is lost", "field", contrast_with(state=read_at(
         lambda run, mask, inputs: torch.diff(run.states[0, :, -1], dim=0, prepend=inputs[0, -1:])))),
    ("mlp_output_only", "the output of the MLP instead of the block's", "The shift of earlier blocks is lost", "field",
     contrast_with(state=read_at(lambda run, mask, inputs: (run.states - run.middles)[0, :, -1]))),
    ("attention_output_only", "the output of the attention instead of the block's",
     "The shift of earlier blocks is lost", "field", contrast_with(state=read_at(
         lambda run, mask, inputs: (run.middles - torch.cat([inputs[:, None], run.states[:, :-1]], 1))[0, :, -1]))),
    # which tokens, and what for
    ("tokens_one_late", "the token after each chosen one masked", "Indices off by one", "field",
     contrast_with(masked=moved(1))),
    ("tokens_one_early", "the token before each chosen one masked", "Indices off by one", "field",
     contrast_with(masked=moved(-1))),
    ("neighbours_masked_too", "the token after each chosen one masked as well", "The shift of other words is mixed in",
     "ours", contrast_with(masked=wider)),
    ("strongest_token_only", "only the first token of each set masked", "The shift of the others is lost", "ours",
     contrast_with(masked=lambda prompt, tokens: replaced(prompt, tokens[:1]))),
    ("last_of_the_set_left", "the last token of each set left in place", "A set of one token masks nothing", "ours",
     contrast_with(masked=lambda prompt, tokens: replaced(prompt, tokens[:-1]))),
    ("first_baseline_row_for_all", "the baseline's first row for every masked token",
     "Tokens become another token's baseline", "ours",
     contrast_with(change=lambda prompt: prompt._replace(baseline=prompt.baseline[:1].expand_as(prompt.baseline)))),
    ("baseline_in_the_order_of_the_set", "the baseline's first rows for the set's tokens, in their order",
     "Tokens become another token's baseline", "ours", contrast_with(masked=in_the_order_of_the_set)),
    ("mean_of_prompt_for_baseline", "masked tokens replaced by the mean of the prompt's embeddings",
     "Another shift, by a word that means everything", "study",
     contrast_with(change=lambda prompt: prompt._replace(
         baseline=prompt.x.mean(0, keepdim=True).expand_as(prompt.x)))),
    ("baseline_added", "the baseline added to the embedding instead of put in its place",
     "A zero baseline masks nothing", "ours", contrast_with(masked=blended(1.0, 1.0))),
    ("half_masked", "the mean of embedding and baseline", "Half of the shift is lost", "ours",
     contrast_with(masked=blended(0.5, 0.5))),
    ("neighbour_for_baseline", "masked tokens replaced by the token before them", "Another shift, by a doubled word",
     "ours", contrast_with(masked=neighbour_instead)),
    ("tokens_cut_out", "masked tokens taken out, the others at their old positions",
     "Nobody attends to a masked token, and a masked last token is another one", "ours", contrast_with(masked=cut_out)),
    # which difference
    ("masked_state_alone", "the masked state instead of a difference", "The shift is the state itself", "ours",
     contrast_with(join=lambda h, without: without)),
    ("state_alone", "the unmasked state instead of a difference", "The shift is the state itself", "ours",
     contrast_with(join=lambda h, without: h)),
    ("sum_of_states", "the sum of both states instead of their difference", "The shift is the state itself", "ours",
     contrast_with(join=torch.add)),
    ("unit_states", "states scaled to unit length before they are subtracted", "The shift has another scale", "field",
     contrast_with(join=lambda h, without: unit(h) - unit(without))),
    ("shift_per_token", "every shift divided by the number of masked tokens", "Examples with a small set count more",
     "field", contrast_with(factor=lambda tokens: 1 / max(len(tokens), 1))),
    ("shift_relative_to_state", "every shift divided by the length of the state", "The shift has another scale",
     "field", contrast_with(join=lambda h, without: (h - without) / h.norm(dim=-1, keepdim=True))),
    ("absolute_shifts", "absolute values of the shift", "Directions are lost", "ours",
     contrast_with(join=lambda h, without: (h - without).abs())),
    ("first_token_masked", "an attention mask that begins one token late", "The first token is not read", "ours",
     contrast_with(change=lambda prompt: prompt._replace(mask=mask_one_late(prompt.mask)))),
)  # fmt: skip

BUGS = bugs_of(
    "contrast",
    (*ROWS, *rows_with(lambda decoder: contrast_with(state=last_state_of(decoder)), (*SMALL_EPSILONS, *IN_THE_BLOCKS))),
)
WITHOUT_BUG = contrast_with()
