"""Planted bugs of contrast, eq. (4): another state, another way to mask, another difference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from grains_ref.conformance.bugs.common import Row, bugs_of
from grains_ref.conformance.bugs.decoder import (
    Pass,
    count_from_first_token,
    decode,
    norm,
    padding_row,
    weights,
    widened,
)
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


def read_at(read: Callable[[Pass, Tensor, Tensor], Tensor]) -> State:
    """The state that `read` takes from a Pass, the mask (T,) and the inputs (1, T, d)."""

    def state(masked: Masked) -> Tensor:
        inputs, mask, positions = masked
        return widened(read(decode(inputs[None], mask[None], positions=positions[None]), mask, inputs[None]))

    return state


last_state: State = read_at(lambda run, mask, inputs: run.states[0, :, -1])
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
                    deltas.append(join(h, state(masked(prompt, tokens))))
                else:
                    deltas.append(torch.zeros_like(h))
        return {"delta_pos": array(deltas[0]), "delta_neg": array(deltas[1])}

    return stage


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
)  # fmt: skip

BUGS = bugs_of("contrast", ROWS)
WITHOUT_BUG = contrast_with()
