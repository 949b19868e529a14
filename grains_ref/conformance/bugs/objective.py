"""Planted bugs of the objective, eq. (1): other rows, other tokens, other positions, and another decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from grains_ref.conformance.bugs.common import Row, bugs_of
from grains_ref.conformance.bugs.decoder import count_from_first_token, decode, embed, widened
from grains_ref.conformance.stages import Stage, Values, tensor, whole
from grains_ref.conformance.toy import WIDTH

Sides: TypeAlias = Callable[[Tensor, Tensor, np.ndarray, np.ndarray], tuple[Tensor, Tensor]]
"""Prompt x (B, T, d), attention mask (T,), y_pos, y_neg -> log P of both, each (B,)."""


def response_logits(
    x: Tensor, mask: Tensor, y: np.ndarray, *, late: int = 0, variation: str = "", positions: Tensor | None = None
) -> Tensor:
    """(B, R, V) in float32 or wider; `late` rows after the right ones."""
    inputs = torch.cat([x, embed(y, x.dtype).expand(len(x), -1, -1)], 1)
    everywhere = torch.cat([mask, torch.ones(len(y), dtype=torch.long)])[None]
    logits = decode(inputs, everywhere, variation=variation, positions=positions).logits
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


def varied(variation: str) -> Sides:
    """The right score on a decoder with one mistake."""
    return each(lambda x, mask, y: token_log_p(x, mask, y, variation=variation).sum(-1))


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
    ("kv_heads_interleaved", "query head j reading key-value head j mod KV_HEADS",
     "Grouped-query heads attend with other heads' keys", "study", objective_with(varied("kv_heads_interleaved"))),
    ("rotary_pairs_adjacent", "rotary pairs (2i, 2i+1) instead of (i, i + head_dim/2)",
     "Weights of the one layout run in the other", "field", objective_with(varied("rotary_pairs_adjacent"))),
    ("rotary_base_of_llama", "the rotary base 10000 instead of the model's", "Distances are misread", "field",
     objective_with(varied("rotary_base_of_llama"))),
    ("eps_missing", "RMSNorm without its epsilon", "Small residual streams, as near a zero baseline, are blown up",
     "study", objective_with(varied("eps_missing"))),
    ("layer_norm", "LayerNorm (mean subtracted) instead of RMSNorm", "Another model", "field",
     objective_with(varied("layer_norm"))),
    ("norm_weight_plus_one", "RMSNorm weights used as 1 + weight", "Another family's norm", "field",
     objective_with(varied("norm_weight_plus_one"))),
    ("attention_not_scaled", "attention scores without 1 / sqrt(head_dim)", "Attention is too sharp", "field",
     objective_with(varied("attention_not_scaled"))),
    ("gate_and_up_exchanged", "the activation on `up` instead of on `gate`", "Another model", "field",
     objective_with(varied("gate_and_up_exchanged"))),
    ("final_norm_missing", "the head applied to the residual stream without the final norm",
     "Log-probabilities scale with the norm of the stream", "field", objective_with(varied("final_norm_missing"))),
    ("embeddings_scaled", "the prompt's embeddings multiplied by sqrt(d) once more",
     "The prompt outweighs the response; seen where `inputs_embeds` of Gemma are scaled twice", "field",
     objective_with(each(lambda x, mask, y: token_log_p(x * WIDTH**0.5, mask, y).sum(-1)))),
)  # fmt: skip

BUGS = bugs_of("objective", ROWS)
WITHOUT_BUG = objective_with(right_sides)
