"""The toy decoder written anew, with one mistake called `variation` where asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from grains_ref.conformance.stages import whole
from grains_ref.conformance.toy import BLOCKS, EPS, HEAD_DIM, HEADS, KV_HEADS, THETA, toy_weights
from grains_ref.grains import at_least_float32


@cache
def weights(dtype: torch.dtype) -> dict[str, Tensor]:
    """The toy decoder's weights in a dtype."""
    return {name: torch.from_numpy(array).to(dtype) for name, array in toy_weights().items()}


def embed(ids: Any, dtype: torch.dtype) -> Tensor:
    """Whole numbers of any shape -> their embeddings."""
    return weights(dtype)["embed"][whole(ids)]


def widened(t: Tensor) -> Tensor:
    """In float32 where it was narrower, as it is otherwise."""
    return t.to(at_least_float32(t))


class Pass(NamedTuple):
    """What one run of the decoder leaves behind."""

    logits: Tensor  # (B, S, V)
    states: Tensor  # (B, L, S, d), the output of every block
    middles: Tensor  # (B, L, S, d), the residual stream between attention and MLP of every block


def decode(
    inputs: Tensor,
    mask: Tensor,
    *,
    variation: str = "",
    positions: Tensor | None = None,
    edit: Callable[[Tensor, int], Tensor] = lambda h, block: h,
) -> Pass:
    """The decoder of `toy` with one mistake; inputs (B, S, d), mask (B, S) of 0 and 1, positions (B, S).

    `edit` changes what leaves a block, or with the variation `edit_before_block` what enters it.
    """
    w, n = weights(inputs.dtype), inputs.shape[1]
    seen = mask.bool()
    positions = count_from_first_token(mask) if positions is None else positions
    causal, itself = torch.ones(n, n).tril().bool(), torch.eye(n).bool()
    allowed = ((causal & seen[:, None, :]) | itself)[:, None]  # (B, 1, S, S)
    h, states, middles = inputs, [], []
    for block in range(BLOCKS):
        part = {name: w[f"blocks.{block}.{name}"] for name in "norm_1 q k v o norm_2 gate up down".split()}
        h = edit(h, block) if variation == "edit_before_block" else h
        x = norm(h, part["norm_1"], variation)
        q, k, v = ((x @ part[name].mT).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for name in "qkv")
        q, k = (_rotate(z, positions, variation) for z in (q, k))
        repeats = HEADS // KV_HEADS
        if variation == "kv_heads_interleaved":
            k, v = (z.repeat(1, repeats, 1, 1) for z in (k, v))
        else:
            k, v = (z.repeat_interleave(repeats, dim=1) for z in (k, v))
        scale = 1.0 if variation == "attention_not_scaled" else HEAD_DIM**-0.5
        attention = (q @ k.mT * scale).masked_fill(~allowed, -torch.inf).softmax(-1)
        h = h + (attention @ v).transpose(1, 2).flatten(2) @ part["o"].mT
        middles.append(h)
        x = norm(h, part["norm_2"], variation)
        gate, up = (x @ part[name].mT for name in ("gate", "up"))
        if variation == "gate_and_up_exchanged":
            gate, up = up, gate
        h = h + (nn.functional.silu(gate) * up) @ part["down"].mT
        h = h if variation == "edit_before_block" else edit(h, block)
        states.append(h)
    final = h if variation == "final_norm_missing" else norm(h, w["norm"], variation)
    return Pass(final @ w["head"].mT, torch.stack(states, 1), torch.stack(middles, 1))


def norm(h: Tensor, weight: Tensor, variation: str = "") -> Tensor:
    """RMSNorm over the width."""
    if variation == "layer_norm":
        h = h - h.mean(-1, keepdim=True)
    if variation == "norm_weight_plus_one":
        weight = 1 + weight
    eps = 0 if variation == "eps_missing" else EPS
    return h * (h.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * weight


def _rotate(z: Tensor, positions: Tensor, variation: str) -> Tensor:
    half = HEAD_DIM // 2
    theta = 10_000.0 if variation == "rotary_base_of_llama" else THETA
    angle = positions[:, None, :, None] * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    cos, sin = angle.cos().to(z), angle.sin().to(z)
    if variation == "rotary_pairs_adjacent":
        first, second = z[..., ::2], z[..., 1::2]
        return torch.stack([first * cos - second * sin, second * cos + first * sin], -1).flatten(-2)
    first, second = z[..., :half], z[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def count_from_first_token(mask: Tensor) -> Tensor:
    """The positions as they should be: 0 at the first token that is no padding."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def padding_row(b: Tensor) -> Tensor:
    """The padding token's embedding for every token."""
    return embed(0, b.dtype).expand_as(b)
