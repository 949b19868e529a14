"""Planted bugs of the objective, eq. (1): other rows, other tokens, other positions, and another decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from grains_ref.conformance.bugs.common import Row, bugs_of
from grains_ref.conformance.bugs.decoder import RIGHT, Decoder, count_from_first_token, decode, embed, widened
from grains_ref.conformance.bugs.decoder_bugs import AFTER_THE_BLOCKS, IN_THE_BLOCKS, SMALL_EPSILONS, rows_with
from grains_ref.conformance.stages import Stage, Values, tensor, whole
from grains_ref.conformance.toy import WIDTH

Sides: TypeAlias = Callable[[Tensor, Tensor, np.ndarray, np.ndarray], tuple[Tensor, Tensor]]
"""Prompt x (B, T, d), attention mask (T,), y_pos, y_neg -> log P of both, each (B,)."""


def response_logits(
    x: Tensor, mask: Tensor, y: np.ndarray, *, late: int = 0, decoder: Decoder = RIGHT, positions: Tensor | None = None
) -> Tensor:
    """(B, R, V) in float32 or wider; `late` rows after the right ones."""
    inputs = torch.cat([x, embed(y, x.dtype).expand(len(x), -1, -1)], 1)
    everywhere = torch.cat([mask, torch.ones(len(y), dtype=torch.long)])[None]
    logits = decode(inputs, everywhere, decoder=decoder, positions=positions).logits
    rows = (x.shape[1] - 1 + late + torch.arange(len(y))).clamp(min=0)
    return widened(logits[:, rows])


def pick(scores: Tensor, y: np.ndarray) -> Tensor:
    """(B, R, V) -> (B, R): the entry of every response token."""
    return scores[:, torch.arange(len(y)), whole(y)]


def token_log_p(x: Tensor, mask: Tensor, y: np.ndarray, **mistakes: Any) -> Tensor:
    """(B, R): log P of every response token."""
    return pick(response_logits(x, mask, y, **mistakes).log_softmax(-1), y)


def each(score: Callable[[Tensor, Tensor, np.ndarray], Tensor]) -> Sides:
    """The same score for both responses."""
    return lambda x, mask, y_pos, y_neg: (score(x, mask, y_pos), score(x, mask, y_neg))


def on(decoder: Decoder) -> Sides:
    """The right score on another decoder."""
    return each(lambda x, mask, y: token_log_p(x, mask, y, decoder=decoder).sum(-1))


right_sides: Sides = each(lambda x, mask, y: token_log_p(x, mask, y).sum(-1))
last_token: Sides = each(lambda x, mask, y: token_log_p(x, mask, y)[:, -1])
last_token_late: Sides = each(lambda x, mask, y: token_log_p(x, mask, y, late=1)[:, -1])
mask_ignored: Sides = each(lambda x, mask, y: token_log_p(x, torch.ones_like(mask), y).sum(-1))


def padded_response(x: Tensor, mask: Tensor, y_pos: np.ndarray, y_neg: np.ndarray) -> tuple[Tensor, Tensor]:
    """Both responses padded with token 0 to one length, as a batch; the padding is scored like any token."""
    longest = max(len(y_pos), len(y_neg))
    y_pos, y_neg = (np.pad(y, (0, longest - len(y))) for y in (y_pos, y_neg))
    return right_sides(x, mask, y_pos, y_neg)


def packed(x: Tensor, mask: Tensor, y_pos: np.ndarray, y_neg: np.ndarray) -> tuple[Tensor, Tensor]:
    """Prompt, y_pos and y_neg in one row, and nothing keeps y_neg from attending to y_pos."""
    together = token_log_p(x, mask, np.concatenate([y_pos, y_neg]))
    return together[:, : len(y_pos)].sum(-1), together[:, len(y_pos) :].sum(-1)


def cut_to_the_shorter(x: Tensor, mask: Tensor, y_pos: np.ndarray, y_neg: np.ndarray) -> tuple[Tensor, Tensor]:
    """The first tokens of both responses, as many as the shorter has."""
    shorter = min(len(y_pos), len(y_neg))
    return right_sides(x, mask, y_pos[:shorter], y_neg[:shorter])


def last_prompt_token_left_out(x: Tensor, mask: Tensor, y_pos: np.ndarray, y_neg: np.ndarray) -> tuple[Tensor, Tensor]:
    """The prompt without its last token; a prompt of one token is kept."""
    return right_sides(x[:, :-1], mask[:-1], y_pos, y_neg) if mask.sum() > 1 else right_sides(x, mask, y_pos, y_neg)


def masked_response(x: Tensor, mask: Tensor, y: np.ndarray) -> Tensor:
    """The response hidden from attention, at its right positions."""
    inputs = torch.cat([x, embed(y, x.dtype).expand(len(x), -1, -1)], 1)
    hidden = torch.cat([mask, torch.zeros(len(y), dtype=torch.long)])[None]
    positions = count_from_first_token(torch.cat([mask, torch.ones(len(y), dtype=torch.long)])[None])
    logits = decode(inputs, hidden, positions=positions).logits[:, x.shape[1] - 1 : -1]
    return pick(widened(logits).log_softmax(-1), y).sum(-1)


def mask_one_late(mask: Tensor) -> Tensor:
    """The first token masked like padding; a single token is kept."""
    return torch.where(mask.cumsum(0) == 1, 0, mask) if mask.sum() > 1 else mask


def mask_one_early(mask: Tensor) -> Tensor:
    """The last token of the padding seen."""
    return torch.maximum(mask, mask.roll(-1)) if mask[0] == 0 else mask


def _first_times(y: np.ndarray) -> np.ndarray:
    """True where a token is said for the first time."""
    return np.array([token not in y[:j] for j, token in enumerate(y)])


def _response_positions(x: Tensor, mask: Tensor, y: np.ndarray, first: Tensor | int) -> Tensor:
    """Score with response positions first, first + 1, ..."""
    prompt = count_from_first_token(mask[None])[0]
    return token_log_p(x, mask, y, positions=torch.cat([prompt, first + torch.arange(len(y))])[None]).sum(-1)


def objective_with(sides: Sides, f: Callable[[Tensor, Tensor], Tensor] = torch.sub) -> Stage:
    """Eq. (1) with other log-probabilities or another difference."""

    def stage(*, x: np.ndarray, attention_mask: np.ndarray, y_pos: Any, y_neg: Any, dtype: str) -> Values:
        with torch.no_grad():
            pos, neg = sides(tensor(x, dtype)[None], whole(attention_mask), np.asarray(y_pos), np.asarray(y_neg))
            return {"log_p_pos": pos.item(), "log_p_neg": neg.item(), "f": f(pos, neg).item()}

    return stage


def _sum_where(scores: Tensor, keep: np.ndarray) -> Tensor:
    return (scores * torch.from_numpy(keep)).sum(-1)


ROWS: tuple[Row, ...] = (
    ("off_by_one_logits", "each response token scored by its own row of logits, one late",
     "The score is that a token is repeated, not that it is said", "released code, row 1",
     objective_with(each(lambda x, mask, y: token_log_p(x, mask, y, late=1).sum(-1)))),
    ("off_by_two_logits", "the logits shifted by one twice: in the model and again by the caller",
     "Every token is scored from a context that lacks the token before it", "ours",
     objective_with(each(lambda x, mask, y: token_log_p(x, mask, y, late=-1).sum(-1)))),
    ("last_token_only", "only the last response token scored", "Answers that end alike cannot be told apart", "study",
     objective_with(last_token)),
    ("last_token_one_late", "only the last response token scored, by the row of that token itself",
     "The preference is close to noise: in the released code's own runs its sign disagrees on 14 of 20 pairs",
     "released code, row 1", objective_with(last_token_late)),
    ("first_token_only", "only the first response token scored", "Answers that start alike cannot be told apart",
     "field", objective_with(each(lambda x, mask, y: token_log_p(x, mask, y)[:, 0]))),
    ("mean_over_tokens", "the mean over the response's tokens, not the sum", "Long answers are preferred", "study",
     objective_with(each(lambda x, mask, y: token_log_p(x, mask, y).mean(-1)))),
    ("mask_ignored", "an attention mask of ones: padding is attended",
     "The score depends on how far the batch was padded", "study", objective_with(mask_ignored)),
    ("response_padding_scored", "the shorter response padded with token 0 and the padding scored",
     "The shorter answer pays for the other's length", "study", objective_with(padded_response)),
    ("padding_id_skipped", "response tokens that happen to have the padding's id left out",
     "An answer that contains the end-of-text token loses it", "field",
     objective_with(each(lambda x, mask, y: _sum_where(token_log_p(x, mask, y), y != 0)))),
    ("end_of_text_appended", "an end-of-text token (0) appended to both responses and scored",
     "The score mixes in how the model ends a turn", "ours",
     objective_with(each(lambda x, mask, y: token_log_p(x, mask, np.append(y, 0)).sum(-1)))),
    ("packed_without_mask", "both responses in one row, the second attending to the first",
     "The second answer is scored as the continuation of the first", "ours", objective_with(packed)),
    ("raw_logits", "logits added up instead of log-probabilities",
     "A token that is likely everywhere is not discounted", "field",
     objective_with(each(lambda x, mask, y: pick(response_logits(x, mask, y), y).sum(-1)))),
    ("base_two", "logarithms to base 2: bits instead of nats", "Every score is 1.44 times too large", "field",
     objective_with(each(lambda x, mask, y: token_log_p(x, mask, y).sum(-1) / np.log(2)))),
    ("likelihood_only", "f = log P(y_pos), the objective of the ablation in sect. 5.3",
     "Tokens that help both answers count as preferred", "study",
     objective_with(right_sides, f=lambda pos, neg: pos)),
    ("sides_exchanged", "y_pos and y_neg exchanged", "Steering moves toward the rejected answer", "study",
     objective_with(lambda x, mask, y_pos, y_neg: right_sides(x, mask, y_neg, y_pos))),
    ("response_positions_restart", "the response's rotary positions starting again at 0",
     "The answer is read as if it stood at the start of the prompt", "field",
     objective_with(each(lambda x, mask, y: _response_positions(x, mask, y, 0)))),
    ("response_positions_by_column", "the response's rotary positions continued from the padded length",
     "A gap as wide as the padding opens between prompt and answer", "field",
     objective_with(each(lambda x, mask, y: _response_positions(x, mask, y, len(mask))))),
    ("response_one_position_early", "the response's positions starting at the last prompt token's",
     "Two tokens share a position, as with a cache whose length is counted one short", "field",
     objective_with(each(lambda x, mask, y: _response_positions(x, mask, y, mask.sum() - 1)))),
    ("response_one_position_late", "the response's positions starting one too far",
     "A gap opens before the response, as with a cache whose length is counted one too long", "ours",
     objective_with(each(lambda x, mask, y: _response_positions(x, mask, y, mask.sum() + 1)))),
    ("embeddings_scaled", "the prompt's embeddings multiplied by sqrt(d) once more",
     "The prompt outweighs the response; seen where `inputs_embeds` of Gemma are scaled twice", "field",
     objective_with(each(lambda x, mask, y: token_log_p(x * WIDTH**0.5, mask, y).sum(-1)))),
    # which tokens and which rows
    ("end_of_text_after_y_pos", "an end-of-text token (0) appended to y_pos only, and scored",
     "The preferred answer pays for its end", "study", objective_with(lambda x, mask, y_pos, y_neg: right_sides(
         x, mask, np.append(y_pos, 0), y_neg))),
    ("end_of_text_after_y_neg", "an end-of-text token (0) appended to y_neg only, and scored",
     "The rejected answer pays for its end", "study", objective_with(lambda x, mask, y_pos, y_neg: right_sides(
         x, mask, y_pos, np.append(y_neg, 0)))),
    ("last_token_dropped", "the last token of both responses not scored", "How an answer ends does not count", "study",
     objective_with(each(lambda x, mask, y: token_log_p(x, mask, y)[:, :-1].sum(-1)))),
    ("last_token_of_y_neg_dropped", "the last token of y_neg not scored", "The rejected answer is cheaper", "study",
     objective_with(lambda x, mask, y_pos, y_neg: (
         right_sides(x, mask, y_pos, y_neg)[0], token_log_p(x, mask, y_neg)[:, :-1].sum(-1)))),
    ("last_token_of_y_pos_dropped", "the last token of y_pos not scored", "The preferred answer is cheaper", "study",
     objective_with(lambda x, mask, y_pos, y_neg: (
         token_log_p(x, mask, y_pos)[:, :-1].sum(-1), right_sides(x, mask, y_pos, y_neg)[1]))),
    ("first_token_dropped", "the first response token not scored: labels shifted once too often",
     "How an answer begins does not count", "field",
     objective_with(each(lambda x, mask, y: token_log_p(x, mask, y)[:, 1:].sum(-1)))),
    ("cut_to_the_shorter", "both responses cut to the length of the shorter one", "The end of the longer one is lost",
     "field", objective_with(cut_to_the_shorter)),
    ("repeated_tokens_once", "a token that a response repeats scored once", "Repetition costs nothing", "ours",
     objective_with(each(lambda x, mask, y: _sum_where(token_log_p(x, mask, y), _first_times(y))))),
    ("token_0_before_the_response", "a token 0 (BOS or end of text) between prompt and response",
     "The answer is read as a new text", "field", objective_with(each(
         lambda x, mask, y: token_log_p(x, mask, np.append(0, y))[:, 1:].sum(-1)))),
    ("last_prompt_token_left_out", "the prompt's last token left out", "The answer continues another prompt", "field",
     objective_with(last_prompt_token_left_out)),
    # how scores become numbers
    ("base_ten", "logarithms to base 10 instead of nats", "Every score is 2.3 times too small", "ours",
     objective_with(each(lambda x, mask, y: token_log_p(x, mask, y).sum(-1) / np.log(10)))),
    ("probabilities_added", "the response's probabilities added up, not their logarithms",
     "Unlikely answers cannot be told apart", "field",
     objective_with(each(lambda x, mask, y: token_log_p(x, mask, y).exp().sum(-1)))),
    ("softmax_over_the_response", "the softmax over the response's rows, not over the vocabulary",
     "Tokens compete with themselves elsewhere", "ours", objective_with(each(
         lambda x, mask, y: pick(response_logits(x, mask, y).log_softmax(1), y).sum(-1)))),
    ("length_of_y_pos_for_both", "both sums divided by the length of y_pos", "Long answers are preferred", "ours",
     objective_with(lambda x, mask, y_pos, y_neg: tuple(  # type: ignore[arg-type,return-value]
         side / len(y_pos) for side in right_sides(x, mask, y_pos, y_neg)))),
    ("root_of_length", "sums divided by the square root of the response's length", "Long answers are preferred",
     "field", objective_with(each(lambda x, mask, y: token_log_p(x, mask, y).sum(-1) / len(y) ** 0.5))),
    ("negative_log_likelihood", "losses (-log P) instead of log-probabilities", "Every sign is turned round", "field",
     objective_with(each(lambda x, mask, y: -token_log_p(x, mask, y).sum(-1)))),
    ("f_reversed", "f = log P(y_neg) - log P(y_pos) of the right log-probabilities",
     "Steering moves toward the rejected answer", "study", objective_with(right_sides, f=lambda pos, neg: neg - pos)),
    ("f_is_a_sum", "f = log P(y_pos) + log P(y_neg)", "Tokens that help both answers count twice", "ours",
     objective_with(right_sides, f=torch.add)),
    ("f_is_a_ratio", "f = log P(y_pos) / log P(y_neg)", "F has no unit and no sign", "ours",
     objective_with(right_sides, f=torch.div)),
    ("f_of_preference_loss", "f = log sigmoid of the difference, as in preference losses",
     "Clear preferences give nothing", "field",
     objective_with(right_sides, f=lambda pos, neg: nn.functional.logsigmoid(pos - neg))),
    # masks
    ("response_not_attended", "the response masked like padding", "Its tokens do not know each other", "field",
     objective_with(each(lambda x, mask, y: masked_response(x, mask, y)))),
    ("first_token_masked", "an attention mask that begins one token late", "The first token is not read", "ours",
     objective_with(lambda x, mask, y_pos, y_neg: right_sides(x, mask_one_late(mask), y_pos, y_neg))),
    ("one_padding_seen", "an attention mask that begins one token early", "A token of the padding is read", "ours",
     objective_with(lambda x, mask, y_pos, y_neg: right_sides(x, mask_one_early(mask), y_pos, y_neg))),
)  # fmt: skip

BUGS = bugs_of(
    "objective",
    (
        *ROWS,
        *rows_with(lambda decoder: objective_with(on(decoder)), (*SMALL_EPSILONS, *IN_THE_BLOCKS, *AFTER_THE_BLOCKS)),
    ),
)
WITHOUT_BUG = objective_with(right_sides)
