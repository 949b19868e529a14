"""Planted bugs of the toy decoder, known at every stage that runs it: objective, attribution, contrast, generation.

Bugs of the head and of what comes before and after it leave no trace in the states that contrast reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from grains_ref.conformance.bugs.common import Row
from grains_ref.conformance.bugs.decoder import (
    Decoder,
    OnStates,
    Weights,
    angles,
    attend,
    block_of,
    no_later_token,
    norm,
    one_after_the_other,
    turn,
)
from grains_ref.conformance.stages import Stage
from grains_ref.conformance.toy import EPS, HEAD_DIM, HEADS, KV_HEADS, THETA, WIDTH

DecoderRow: TypeAlias = tuple[str, str, str, str, Decoder]  # a Row with a decoder for its stage


def rows_with(stage_with: Callable[[Decoder], Stage], rows: tuple[DecoderRow, ...]) -> tuple[Row, ...]:
    """The rows of a stage from those of the decoder; `stage_with` computes the stage on a decoder."""
    return tuple((name, what, effect, source, stage_with(decoder)) for name, what, effect, source, decoder in rows)


# ------------------------------------------------------------------------------------- norms
def layer_norm(h: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm of the stream without its mean."""
    return norm(h - h.mean(-1, keepdim=True), weight)


def eps_after_the_root(h: Tensor, weight: Tensor) -> Tensor:
    """h / (rms + eps)."""
    return h / (h.pow(2).mean(-1, keepdim=True).sqrt() + EPS) * weight


def sum_of_squares(h: Tensor, weight: Tensor) -> Tensor:
    """The sum where RMSNorm has the mean."""
    return h * (h.pow(2).sum(-1, keepdim=True) + EPS).rsqrt() * weight


def norm_twice(h: Tensor, weight: Tensor) -> Tensor:
    """The norm of the norm."""
    return norm(norm(h, weight), weight)


# ------------------------------------------------------------------------------------- positions
def turn_neighbours(z: Tensor, angle: Tensor) -> Tensor:
    """In pairs (2 i, 2 i + 1)."""
    cos, sin = angle.cos().to(z), angle.sin().to(z)
    first, second = z[..., ::2], z[..., 1::2]
    return torch.stack([first * cos - second * sin, second * cos + first * sin], -1).flatten(-2)


def angles_in(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Frequencies and positions in half precision, multiplied there."""

    def narrow(positions: Tensor) -> Tensor:
        frequency = THETA ** (-torch.arange(HEAD_DIM // 2, dtype=torch.float64) / (HEAD_DIM // 2))
        return (positions[:, None, :, None].to(dtype) * frequency.to(dtype)).double()

    return narrow


# ------------------------------------------------------------------------------------- attention
def attend_masked_afterwards(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """The softmax over all keys, and only then the mask."""
    return ((q @ k.mT * HEAD_DIM**-0.5).softmax(-1) * allowed) @ v


def attend_over_queries(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """The softmax over the wrong axis."""
    return (q @ k.mT * HEAD_DIM**-0.5).masked_fill(~allowed, -torch.inf).softmax(-2) @ v


def attend_capped(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """Scores capped softly at 1, as Gemma 2 caps them at 50."""
    return (q @ k.mT * HEAD_DIM**-0.5).tanh().masked_fill(~allowed, -torch.inf).softmax(-1) @ v


def attend_with_a_sink(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """softmax with 1 added to its denominator."""
    weight = (q @ k.mT * HEAD_DIM**-0.5).masked_fill(~allowed, -torch.inf).exp()
    return weight / (1 + weight.sum(-1, keepdim=True)) @ v


def within(window: int) -> Callable[[int], Tensor]:
    """The last `window` tokens only."""
    return lambda n: no_later_token(n) & torch.ones(n, n).triu(1 - window).bool()


def unit_heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys normed head by head, as in Qwen 3 and Gemma 3."""
    ones = torch.ones(HEAD_DIM).to(q)
    return norm(q, ones), norm(k, ones), v


# ------------------------------------------------------------------------------------- blocks and weights
def side_by_side(h: Tensor, attention: OnStates, mlp: OnStates) -> tuple[Tensor, Tensor]:
    """The MLP reads what the attention reads."""
    middle = h + attention(h)
    return middle, middle + mlp(h)


def mlp_first(h: Tensor, attention: OnStates, mlp: OnStates) -> tuple[Tensor, Tensor]:
    """MLP, then attention."""
    return block_of(h, mlp, attention)


def renamed(*pairs: tuple[str, str]) -> Callable[[Weights], Weights]:
    """Weights whose names are exchanged pairwise: the text is replaced wherever it occurs."""

    def change(w: Weights) -> Weights:
        changed = dict(w)
        for old, new in pairs:
            for name in w:
                if old in name:
                    partner = name.replace(old, new)
                    changed[name], changed[partner] = w[partner], w[name]
        return changed

    return change


def replaced(*parts: str, by: Callable[[Tensor], Tensor]) -> Callable[[Weights], Weights]:
    """Weights whose names contain one of the texts replaced."""
    return lambda w: {name: by(value) if any(part in name for part in parts) else value for name, value in w.items()}


SMALL_EPSILONS: tuple[DecoderRow, ...] = (
    ("eps_missing", "RMSNorm without its epsilon", "Small residual streams, as near a zero baseline, are blown up",
     "study", Decoder(norm=lambda h, weight: norm(h, weight, eps=0.0))),
    ("eps_of_1e-6", "RMSNorm's epsilon 1e-6 instead of the model's 1e-5", "Small residual streams are blown up",
     "study", Decoder(norm=lambda h, weight: norm(h, weight, eps=1e-6))),
    ("eps_after_the_root", "RMSNorm's epsilon added to the root, not to the mean square",
     "Small residual streams are blown up", "field", Decoder(norm=eps_after_the_root)),
)  # fmt: skip
"""Seen where embeddings are small; generation, which embeds its tokens itself, is given none."""

IN_THE_BLOCKS: tuple[DecoderRow, ...] = (
    # norms
    ("eps_of_1e-3", "RMSNorm's epsilon 1e-3 instead of the model's 1e-5", "Small residual streams are damped",
     "ours", Decoder(norm=lambda h, weight: norm(h, weight, eps=1e-3))),
    ("layer_norm", "LayerNorm (mean subtracted) instead of RMSNorm", "Another model", "field",
     Decoder(norm=layer_norm)),
    ("sum_of_squares", "the sum of squares in RMSNorm where the mean belongs", "Every norm is sqrt(d) too small",
     "ours", Decoder(norm=sum_of_squares)),
    ("norm_weight_plus_one", "RMSNorm weights used as 1 + weight", "Another family's norm", "field",
     Decoder(norm=lambda h, weight: norm(h, 1 + weight))),
    ("norm_weight_missing", "RMSNorm without its weights", "Features lose their scale", "field",
     Decoder(norm=lambda h, weight: norm(h, torch.ones_like(weight)))),
    ("norms_exchanged", "the norms before attention and before the MLP exchanged", "Another model", "ours",
     Decoder(weights=renamed(("norm_1", "norm_2")))),
    # positions
    ("rotary_pairs_adjacent", "rotary pairs (2i, 2i+1) instead of (i, i + head_dim/2)",
     "Weights of the one layout run in the other", "field", Decoder(turn=turn_neighbours)),
    ("rotary_base_of_llama", "the rotary base 10000 instead of the model's 100", "Distances are misread", "field",
     Decoder(angles=lambda positions: angles(positions, base=10_000.0))),
    ("rotary_exponent_halved", "the rotary base to the power -i / head_dim, not -2 i / head_dim",
     "Distances are misread", "field", Decoder(angles=lambda positions: angles(positions, base=THETA**0.5))),
    ("rotary_backward", "rotary pairs turned the other way (a sign of the sine)", "What is before is read as after",
     "field", Decoder(turn=lambda z, angle: turn(z, -angle))),
    ("rotary_missing", "no rotary positions at all", "Word order is lost", "ours", Decoder(turned="")),
    ("keys_not_rotated", "queries rotated and keys not, as when a cache keeps bare keys",
     "Positions are read as absolute ones", "study", Decoder(turned="q")),
    ("values_rotated", "values rotated like queries and keys", "What is read depends on where it stands", "ours",
     Decoder(turned="qkv")),
    ("rotary_scaled", "rotary positions divided by 2 (a scaling for long contexts that the model lacks)",
     "Distances are misread", "field", Decoder(angles=lambda positions: angles(positions) / 2)),
    ("angles_in_bfloat16", "rotary angles computed in bfloat16", "Positions blur, the more the later they are",
     "field", Decoder(angles=angles_in(torch.bfloat16))),
    ("angles_in_float16", "rotary angles computed in float16", "Positions blur, the more the later they are", "field",
     Decoder(angles=angles_in(torch.float16))),
    # attention
    ("kv_heads_interleaved", "query head j reading key-value head j mod KV_HEADS",
     "Grouped-query heads attend with other heads' keys", "study",
     Decoder(shared=lambda z: z.repeat(1, HEADS // KV_HEADS, 1, 1))),
    ("first_kv_head_for_all", "all query heads reading the first key-value head", "The other heads' keys are lost",
     "ours", Decoder(shared=lambda z: one_after_the_other(z)[:, :1].expand(-1, HEADS, -1, -1))),
    ("heads_not_transposed", "heads put side by side without transposing them back", "Tokens and heads are mixed up",
     "field", Decoder(merge=lambda z: z.reshape(len(z), z.shape[2], HEADS * HEAD_DIM))),
    ("attention_not_scaled", "attention scores without 1 / sqrt(head_dim)", "Attention is too sharp", "field",
     Decoder(attend=lambda q, k, v, allowed: attend(q, k, v, allowed, scale=1.0))),
    ("attention_scaled_twice", "attention scores divided by head_dim, not by its root", "Attention is too flat",
     "field", Decoder(attend=lambda q, k, v, allowed: attend(q, k, v, allowed, scale=1 / HEAD_DIM))),
    ("attention_scaled_by_width", "attention scores divided by sqrt(d), not by sqrt(head_dim)",
     "Attention is too flat", "field",
     Decoder(attend=lambda q, k, v, allowed: attend(q, k, v, allowed, scale=WIDTH**-0.5))),
    ("attention_capped", "attention scores capped softly, as another family has it", "Attention is too flat", "field",
     Decoder(attend=attend_capped)),
    ("attention_with_a_sink", "1 added to the denominator of attention's softmax", "Attention sums to less than 1",
     "field", Decoder(attend=attend_with_a_sink)),
    ("softmax_over_queries", "attention's softmax over the queries, not over the keys", "Another model", "ours",
     Decoder(attend=attend_over_queries)),
    ("masked_after_softmax", "attention masked after its softmax, so that the weights do not sum to 1",
     "What may not be seen still counts in the denominator", "field", Decoder(attend=attend_masked_afterwards)),
    ("heads_normed", "queries and keys normed head by head, as another family has it", "Attention is too flat",
     "field", Decoder(heads=unit_heads)),
    ("not_causal", "attention to later tokens", "Every token knows what follows", "ours",
     Decoder(causal=lambda n: torch.ones(n, n).bool())),
    ("one_token_ahead", "a causal mask one token too wide", "Every token knows the next one", "field",
     Decoder(causal=lambda n: torch.ones(n, n).tril(1).bool())),
    ("window_of_three", "a sliding window of three tokens that the model lacks", "What is further back is not read",
     "field", Decoder(causal=within(3))),
    ("first_token_not_attended", "the first token of a row never attended by the later ones",
     "What the sequence starts with is lost", "ours",
     Decoder(causal=lambda n: no_later_token(n) & (torch.arange(n) > 0))),
    # MLP, blocks and weights
    ("gate_and_up_exchanged", "the activation on `up` instead of on `gate`", "Another model", "field",
     Decoder(mlp=lambda gate, up: nn.functional.silu(up) * gate)),
    ("gelu", "GELU instead of SiLU", "Another family's MLP", "study",
     Decoder(mlp=lambda gate, up: nn.functional.gelu(gate) * up)),
    ("relu", "ReLU instead of SiLU", "Another family's MLP", "field",
     Decoder(mlp=lambda gate, up: gate.relu() * up)),
    ("sigmoid_gate", "a sigmoid instead of SiLU: the gate's own factor is lost", "Another family's MLP", "field",
     Decoder(mlp=lambda gate, up: gate.sigmoid() * up)),
    ("up_missing", "SiLU of the gate without the factor `up`", "Another family's MLP", "ours",
     Decoder(mlp=lambda gate, up: nn.functional.silu(gate))),
    ("attention_and_mlp_side_by_side", "the MLP reading the block's input, side by side with the attention",
     "Another family's block", "field", Decoder(block=side_by_side)),
    ("mlp_first", "the MLP before the attention", "Another model", "ours", Decoder(block=mlp_first)),
    ("attention_residual_missing", "the residual connection around the attention left out", "The prompt is forgotten",
     "ours", Decoder(block=lambda h, attention, mlp: (attention(h), attention(h) + mlp(attention(h))))),
    ("blocks_exchanged", "the first two blocks exchanged", "Another model", "study",
     Decoder(weights=renamed(("blocks.0.", "blocks.1.")))),
    ("last_block_missing", "the last block left out", "Another model", "ours",
     Decoder(weights=replaced("blocks.2.o", "blocks.2.down", by=torch.zeros_like))),
    ("all_embeddings_scaled", "all embeddings multiplied by sqrt(d), as another family has it",
     "The blocks change little", "field", Decoder(inputs=lambda h: h * WIDTH**0.5)),
)  # fmt: skip

AFTER_THE_BLOCKS: tuple[DecoderRow, ...] = (
    ("final_norm_missing", "the head applied to the residual stream without the final norm",
     "Log-probabilities scale with the norm of the stream", "field", Decoder(final_norm=lambda h, weight: h)),
    ("final_norm_twice", "the final norm applied twice", "Features are weighted twice", "field",
     Decoder(final_norm=norm_twice)),
    ("head_tied_to_embeddings", "the embeddings used as the head, as in models with tied weights", "Another model",
     "study", Decoder(weights=lambda w: {**w, "head": w["embed"]})),
    ("head_one_off", "the head's rows moved by one token", "Every score is that of the token before", "ours",
     Decoder(weights=lambda w: {**w, "head": w["head"].roll(1, 0)})),
    ("logits_capped", "logits capped softly at 30, as another family has it", "Likely tokens are less so", "field",
     Decoder(logits=lambda logits: 30 * (logits / 30).tanh())),
    ("temperature_of_two", "logits divided by a temperature of 2", "The model is less sure than it is", "study",
     Decoder(logits=lambda logits: logits / 2)),
    ("temperature_of_0.7", "logits divided by a temperature of 0.7, a default of many servers",
     "The model is surer than it is", "study", Decoder(logits=lambda logits: logits / 0.7)),
)  # fmt: skip
