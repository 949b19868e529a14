"""Planted bugs of generation, sect. 3.3: steering at other positions, blocks or rows; padding and caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from grains_ref.conformance.bugs.common import Row, bugs_of
from grains_ref.conformance.bugs.decoder import count_from_first_token, decode, embed, widened
from grains_ref.conformance.bugs.steering import Steer, released_hook, released_hook_with_tensors, restoring
from grains_ref.conformance.stages import DTYPES, Stage, Values, array, tensor, whole
from grains_ref.conformance.toy import BLOCKS
from grains_ref.grains import steer_hidden


class Run(NamedTuple):
    """One steered batch: what an edit may look at."""

    v: Tensor  # (L, d)
    lam: float
    layers: list[int]
    prompt: int  # T, the padded length of the prompts


Edit: TypeAlias = Callable[[Tensor, int, Run], Tensor]
"""h (B, S, d), block, run -> h."""


def right_edit(h: Tensor, block: int, run: Run) -> Tensor:
    """Eq. (7) and (8) at every position after the blocks asked for."""
    return steer_hidden(h, run.v[block], lam=run.lam) if block in run.layers else h


def some_positions(kept: Callable[[Tensor, Run], Tensor]) -> Edit:
    """The right edit at the columns (S,) where `kept` is true."""
    return lambda h, block, run: torch.where(
        kept(torch.arange(h.shape[1]), run)[None, :, None], right_edit(h, block, run), h
    )


def with_vector(vector: Callable[[Run, int], Tensor]) -> Edit:
    """The right edit with another vector."""
    return lambda h, block, run: steer_hidden(h, vector(run, block), lam=run.lam) if block in run.layers else h


def edited_by(steer: Steer) -> Edit:
    """One of the edits of the section on steering, after the blocks asked for."""
    return lambda h, block, run: steer(widened(h), widened(run.v[block]), run.lam).to(h) if block in run.layers else h


def generation_with(
    edit: Edit = right_edit,
    *,
    change: Callable[[Run], Run] = lambda run: run,
    variation: str = "",
    mask_used: Callable[[Tensor], Tensor] = lambda mask: mask,
    positions: Callable[[Tensor, int], Tensor] = lambda mask, prompt: count_from_first_token(mask),
    last_prompt_token_twice: bool = False,
) -> Stage:
    """Sect. 3.3 with other parts; the whole batch at once, every token by full recomputation.

    What a cache does wrong shows without a cache: which columns were steered when their keys were made, and which
    positions they had. positions: mask (B, S), padded prompt length -> (B, S).
    """

    def stage(*, ids: Any, attention_mask: Any, v: Any, lam: float, layers: Any, forced: Any, dtype: str) -> Values:
        ids, forced, mask = np.asarray(ids), np.asarray(forced), whole(attention_mask)
        if last_prompt_token_twice:
            ids = np.concatenate([ids, ids[:, -1:]], 1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        run = change(Run(tensor(v, dtype), float(lam), list(layers), ids.shape[1]))

        def next_logits(known: np.ndarray) -> Tensor:
            """(B, r) tokens after the prompt -> (B, r, V): row r predicts known token r."""
            inputs = embed(np.concatenate([ids, known], 1), DTYPES[dtype])
            seen = torch.cat([mask_used(mask), torch.ones(known.shape, dtype=torch.long)], 1)
            where = positions(seen, ids.shape[1])
            edited = decode(inputs, seen, variation=variation, positions=where, edit=lambda h, b: edit(h, b, run))
            return edited.logits[:, ids.shape[1] - 1 : -1]

        with torch.no_grad():
            said = np.zeros((len(ids), 0), dtype=np.int64)
            for _ in range(forced.shape[1]):
                place_holder = np.zeros((len(ids), 1), dtype=np.int64)
                best = next_logits(np.concatenate([said, place_holder], 1))[:, -1].argmax(-1, keepdim=True)
                said = np.concatenate([said, best.numpy()], 1)
            return {"logits": array(next_logits(forced)), "tokens": said}

    return stage


def gap_after_padding(mask: Tensor, prompt: int) -> Tensor:
    """The prompt counted from its first token, new tokens from the padded length."""
    right = count_from_first_token(mask)
    columns = torch.arange(mask.shape[1]).expand_as(mask)
    return torch.where(columns >= prompt, columns, right)


def stuck_after_prompt(mask: Tensor, prompt: int) -> Tensor:
    """Every new token at the position after the prompt: the cache's length is not counted."""
    right = count_from_first_token(mask)
    return torch.minimum(right, right[:, prompt - 1 : prompt] + 1)


def at_last_block(run: Run) -> Run:
    """Only the last block steered."""
    return run._replace(layers=[BLOCKS - 1])


ROWS: tuple[Row, ...] = (
    ("prefill_only", "only the prompt steered, not the generated tokens", "Steering fades while the model speaks",
     "study", generation_with(some_positions(lambda column, run: column < run.prompt))),
    ("decode_only", "only generated tokens steered, not the prompt", "The prompt is read unsteered", "study",
     generation_with(some_positions(lambda column, run: column >= run.prompt))),
    ("last_prompt_token_and_after", "the prompt steered at its last token only, then every generated token",
     "The prompt's keys and values stay unsteered; `h[:, -1]` with a cache", "study",
     generation_with(some_positions(lambda column, run: column >= run.prompt - 1))),
    ("last_layer_only", "only the last block steered", "Exactly an edit before the final norm",
     "released code, row 15", generation_with(change=at_last_block)),
    ("layers_ignored", "all blocks steered whatever was asked for", "Stronger than asked for", "ours",
     generation_with(change=lambda run: run._replace(layers=list(range(BLOCKS))))),
    ("layer_numbers_one_late", "layer l steered at block l + 1, the last not at all",
     "Layer numbers counted with the embeddings as 0", "field",
     generation_with(lambda h, block, run: (
         steer_hidden(h, run.v[block - 1], lam=run.lam) if block - 1 in run.layers else h))),
    ("vectors_one_late", "block l steered with the vector of block l - 1", "An index off by one in v", "field",
     generation_with(with_vector(lambda run, block: run.v[max(block - 1, 0)]))),
    ("one_vector_for_all", "every block steered with the last block's vector", "A closure that binds late", "field",
     generation_with(with_vector(lambda run, block: run.v[-1]))),
    ("before_the_block", "the input of each block steered instead of its output",
     "Every vector acts one block too early", "field", generation_with(variation="edit_before_block")),
    ("first_row_only", "only the first row of the batch steered", "All other rows stay unsteered",
     "released code, row 16", generation_with(lambda h, block, run: (
         torch.cat([right_edit(h[:1], block, run), h[1:]])))),
    ("norm_over_the_sequence", "norms restored over the sequence instead of the width",
     "Tokens change their norms, and future tokens change past ones", "released code, row 16",
     generation_with(edited_by(restoring(lambda z: z.norm(dim=1, keepdim=True))))),
    ("norm_left_out", "eq. (8) left out in every block", "The stream grows from block to block", "study",
     generation_with(edited_by(lambda h, v, lam: h + lam * v))),
    ("ten_times_lam", "lambda multiplied by 10", "Ten times the strength asked for", "released code, row 15",
     generation_with(change=lambda run: run._replace(lam=10 * run.lam))),
    ("hook_twice", "every block's hook registered twice", "Twice the strength or more", "study",
     generation_with(lambda h, block, run: right_edit(right_edit(h, block, run), block, run))),
    ("padding_attended", "an attention mask of ones: padding is attended",
     "What a row says depends on the other rows of its batch", "study", generation_with(mask_used=torch.ones_like)),
    ("new_positions_by_column", "new tokens' rotary positions counted from the padded length",
     "A gap as wide as the padding opens after the prompt", "study", generation_with(positions=gap_after_padding)),
    ("new_positions_stuck", "every new token at the same rotary position", "Word order is lost in decoding", "field",
     generation_with(positions=stuck_after_prompt)),
    ("last_prompt_token_twice", "the last prompt token fed again as the first decoding step",
     "The model reads a doubled word", "field", generation_with(last_prompt_token_twice=True)),
    ("released_generation", "the released code's hook after the last block only: ten times lambda, norms over the "
     "sequence", "What is said later changes what was said before", "released code, rows 15 and 16",
     generation_with(edited_by(released_hook), change=at_last_block)),
    ("released_generation_with_tensors", "the same hook with transformers 5: the last block, ten times lambda, row 0",
     "All other rows stay unsteered", "released code, rows 15 and 16",
     generation_with(edited_by(released_hook_with_tensors), change=at_last_block)),
)  # fmt: skip

BUGS = bugs_of("generation", ROWS)
WITHOUT_BUG = generation_with()
