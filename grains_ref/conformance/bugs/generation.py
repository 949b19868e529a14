"""Planted bugs of generation, sect. 3.3: steering at other positions, blocks or rows; padding and caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from grains_ref.conformance.bugs.common import Row, bugs_of
from grains_ref.conformance.bugs.decoder import RIGHT, Decoder, count_from_first_token, decode, embed, widened
from grains_ref.conformance.bugs.decoder_bugs import AFTER_THE_BLOCKS, IN_THE_BLOCKS, rows_with
from grains_ref.conformance.bugs.objective import mask_one_late
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


def some_positions(steered_at: Callable[[Tensor, Run], Tensor]) -> Edit:
    """The right edit at the columns (S,) where `kept` is true."""
    return lambda h, block, run: torch.where(
        steered_at(torch.arange(h.shape[1]), run)[None, :, None], right_edit(h, block, run), h
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
    decoder: Decoder = RIGHT,
    edited: str = "output",
    mask_used: Callable[[Tensor], Tensor] = lambda mask: mask,
    new_tokens_seen: bool = True,
    positions: Callable[[Tensor, int], Tensor] = lambda mask, prompt: count_from_first_token(mask),
    last_prompt_token_twice: bool = False,
    choose: Callable[[Tensor], Tensor] = lambda logits: logits.argmax(-1, keepdim=True),
    tokens_of: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] = lambda said, ids, logits: said,
) -> Stage:
    """Sect. 3.3 with other parts; the whole batch at once, every token by full recomputation.

    What a cache does wrong shows without a cache: which columns were steered when their keys were made, and which
    positions they had. positions: mask (B, S), padded prompt length -> (B, S).  choose: logits (B, V) -> token (B, 1).
    tokens_of: what was said (B, n), the prompts (B, T), the forced run's logits (B, n, V) -> tokens (B, n).
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
            new = torch.ones(known.shape, dtype=torch.long)
            where = positions(torch.cat([mask_used(mask), new], 1), ids.shape[1])
            seen = torch.cat([mask_used(mask), new if new_tokens_seen else 0 * new], 1)
            steered = decode(
                inputs, seen, decoder=decoder, positions=where, edit=lambda h, b: edit(h, b, run), edited=edited
            )
            return steered.logits[:, ids.shape[1] - 1 : -1]

        with torch.no_grad():
            new_ids = np.zeros((len(ids), 0), dtype=np.int64)
            for _ in range(forced.shape[1]):
                place_holder = np.zeros((len(ids), 1), dtype=np.int64)
                best = choose(next_logits(np.concatenate([new_ids, place_holder], 1))[:, -1])
                new_ids = np.concatenate([new_ids, best.numpy()], 1)
            logits = array(next_logits(forced))
            return {"logits": logits, "tokens": tokens_of(new_ids, ids, logits)}

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


def all_but(column_of: Callable[[Run], int]) -> Edit:
    """The right edit at all columns but one."""
    return some_positions(lambda column, run: column != column_of(run))


def one_more_position(mask: Tensor, prompt: int) -> Tensor:
    """New tokens one position further on: a gap of one after the prompt."""
    return count_from_first_token(mask) + (torch.arange(mask.shape[1]) >= prompt)


def one_position_less(mask: Tensor, prompt: int) -> Tensor:
    """New tokens one position early: the first shares the last prompt token's."""
    return count_from_first_token(mask) - (torch.arange(mask.shape[1]) >= prompt).long()


def from_zero_again(mask: Tensor, prompt: int) -> Tensor:
    """New tokens at the positions 0, 1, ..."""
    columns = torch.arange(mask.shape[1]).expand_as(mask)
    return torch.where(columns >= prompt, columns - prompt, count_from_first_token(mask))


def positions_of_row_0(mask: Tensor, prompt: int) -> Tensor:
    """The first row's positions for all rows."""
    return count_from_first_token(mask)[:1].expand_as(mask)


def mask_of_row_0(mask: Tensor) -> Tensor:
    """The first row's mask for all rows."""
    return mask[:1].expand_as(mask)


def by_its_place_in_the_list(run: Run, block: int) -> Tensor:
    """The i-th vector for the i-th of the layers asked for."""
    return run.v[run.layers.index(block)]


def second_best(logits: Tensor) -> Tensor:
    """The token with the second highest logit."""
    return logits.topk(2, dim=-1).indices[:, 1:]


def of_the_forced_run(new_ids: np.ndarray, ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The best token after every forced one, instead of a continuation of its own."""
    return np.asarray(logits.argmax(-1))


def begun_by_the_prompt(new_ids: np.ndarray, ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The last prompt token, then all but the last of what was said."""
    return np.concatenate([ids[:, -1:], new_ids[:, :-1]], 1)


def zeros_after(token: Callable[[np.ndarray], int]) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """What was said up to the first time a token of its own is said, then zeros."""

    def cut(new_ids: np.ndarray, ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        rows = []
        for row in new_ids:
            end = int((row == token(row)).argmax()) + 1
            rows.append(np.concatenate([row[:end], np.zeros(len(row) - end, dtype=row.dtype)]))
        return np.stack(rows)

    return cut


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
     "Every vector acts one block too early", "field", generation_with(edited="input")),
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
    # which columns and rows
    ("first_token_of_row_unsteered", "the first column of the prompt left as it is",
     "A choice the paper does not make", "field", generation_with(all_but(lambda run: 0))),
    ("last_prompt_token_unsteered", "the last prompt token left as it is", "The first new token is hardly steered",
     "field", generation_with(all_but(lambda run: run.prompt - 1))),
    ("first_new_token_unsteered", "the first new token left as it is", "Steering skips a step", "ours",
     generation_with(all_but(lambda run: run.prompt))),
    ("last_prompt_token_only", "only the last prompt token steered", "Steering is over after one token", "field",
     generation_with(some_positions(lambda column, run: column == run.prompt - 1))),
    ("first_new_token_only", "only prompt and first new token steered", "Steering fades while the model speaks", "ours",
     generation_with(some_positions(lambda column, run: column <= run.prompt))),
    ("last_row_unsteered", "the last row of the batch left as it is", "One row stays unsteered", "ours",
     generation_with(lambda h, block, run: torch.cat([right_edit(h[:-1], block, run), h[-1:]]))),
    # which layers and vectors
    ("first_layer_only", "only the first block steered", "Weaker than asked for", "ours",
     generation_with(change=lambda run: run._replace(layers=[0]))),
    ("last_layer_left_out", "the last block never steered", "A range that ends one short", "ours",
     generation_with(change=lambda run: run._replace(layers=[n for n in run.layers if n < BLOCKS - 1]))),
    ("first_layer_left_out", "the first block never steered", "A range that begins one late", "ours",
     generation_with(change=lambda run: run._replace(layers=[n for n in run.layers if n > 0]))),
    ("layers_reversed", "layer numbers counted from the last block", "Other blocks are steered", "ours",
     generation_with(change=lambda run: run._replace(layers=[BLOCKS - 1 - n for n in run.layers]))),
    ("layers_not_asked_for", "all blocks steered but those asked for", "Other blocks are steered", "ours",
     generation_with(change=lambda run: run._replace(layers=[n for n in range(BLOCKS) if n not in run.layers]))),
    ("first_vector_for_all", "every block steered with the first block's vector", "Later blocks are steered wrongly",
     "field", generation_with(with_vector(lambda run, block: run.v[0]))),
    ("vectors_one_early", "block l steered with the vector of block l + 1", "An index off by one in v", "field",
     generation_with(with_vector(lambda run, block: run.v[min(block + 1, BLOCKS - 1)]))),
    ("vectors_reversed", "block l steered with the vector of block L - 1 - l", "Vectors act at other blocks", "ours",
     generation_with(with_vector(lambda run, block: run.v[BLOCKS - 1 - block]))),
    ("vectors_by_place_in_the_list", "the i-th vector for the i-th of the layers asked for",
     "With some of the layers, vectors act at other blocks", "field",
     generation_with(with_vector(by_its_place_in_the_list))),
    ("mean_vector_for_all", "every block steered with the mean of the vectors", "Layers lose their directions", "field",
     generation_with(with_vector(lambda run, block: run.v.mean(0)))),
    ("after_the_final_norm", "the last block's vector added after the final norm", "The head sees another scale",
     "study", generation_with(edited="normed")),
    # strength
    ("lam_shared_by_the_layers", "lambda divided by the number of layers", "Weaker, the more layers are steered",
     "field", generation_with(change=lambda run: run._replace(lam=run.lam / max(len(run.layers), 1)))),
    ("lam_by_depth", "lambda multiplied by the block's number", "The first block stays unsteered", "ours",
     generation_with(lambda h, block, run: right_edit(h, block, run._replace(lam=run.lam * block)))),
    ("strength_halved", "half of lambda", "Half the strength asked for", "ours",
     generation_with(change=lambda run: run._replace(lam=run.lam / 2))),
    ("strength_reversed", "-lambda", "Steering moves toward the rejected answer", "study",
     generation_with(change=lambda run: run._replace(lam=-run.lam))),
    ("unsteered", "no steering at all: hooks that are never called", "The model as it is", "study",
     generation_with(lambda h, block, run: h)),
    ("vectors_normalised", "every vector scaled to unit length first", "The vectors' lengths are lost", "study",
     generation_with(with_vector(lambda run, block: run.v[block] / run.v[block].norm()))),
    # masks, positions and caches
    ("mask_of_row_0", "the first row's attention mask for all rows", "What a row says depends on the first one",
     "study", generation_with(mask_used=mask_of_row_0)),
    ("positions_of_row_0", "the first row's positions for all rows", "A gap, or none where padding ends", "ours",
     generation_with(positions=positions_of_row_0)),
    ("new_tokens_not_attended", "an attention mask that is not extended: new tokens hidden like padding",
     "The model does not hear itself", "field", generation_with(new_tokens_seen=False)),
    ("new_positions_one_late", "new tokens one position further on", "A gap opens after the prompt", "study",
     generation_with(positions=one_more_position)),
    ("new_positions_one_early", "new tokens one position early", "Two tokens share a position", "study",
     generation_with(positions=one_position_less)),
    ("new_positions_restart", "new tokens counted from 0 again", "What is new is read as the beginning", "field",
     generation_with(positions=from_zero_again)),
    ("first_token_masked", "an attention mask that begins one token late", "The first token is not read", "ours",
     generation_with(mask_used=lambda mask: torch.stack([mask_one_late(row) for row in mask]))),
    # greedy tokens
    ("second_best_token", "the second best token at every step", "The model never says what it means", "ours",
     generation_with(choose=second_best)),
    ("lowest_logit", "the token with the lowest logit", "The model says the opposite", "ours",
     generation_with(choose=lambda logits: logits.argmin(-1, keepdim=True))),
    ("tokens_of_the_forced_run", "the best tokens after the forced ones instead of the model's own continuation",
     "What is said depends on an answer that was given", "study", generation_with(tokens_of=of_the_forced_run)),
    ("tokens_one_late", "the last prompt token before what was said, and the last new token missing",
     "Every answer begins with the question's end", "field", generation_with(tokens_of=begun_by_the_prompt)),
    ("stops_after_one", "zeros after the first new token", "Answers are one token long", "study",
     generation_with(tokens_of=zeros_after(lambda row: row[0]))),
    ("stops_at_a_repetition", "zeros after the last token's first occurrence", "Answers that repeat themselves are cut",
     "ours", generation_with(tokens_of=zeros_after(lambda row: row[-1]))),
)  # fmt: skip

BUGS = bugs_of(
    "generation",
    (*ROWS, *rows_with(lambda decoder: generation_with(decoder=decoder), (*IN_THE_BLOCKS, *AFTER_THE_BLOCKS))),
)
WITHOUT_BUG = generation_with()
