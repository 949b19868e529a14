"""The toy decoder written anew, in parts that a planted bug may exchange (`decoder_bugs` does)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from grains_ref.conformance.stages import whole
from grains_ref.conformance.toy import BLOCKS, EPS, HEAD_DIM, HEADS, KV_HEADS, THETA, toy_weights
from grains_ref.grains import at_least_float32

Weights: TypeAlias = dict[str, Tensor]
OnStates: TypeAlias = Callable[[Tensor], Tensor]


@cache
def weights(dtype: torch.dtype) -> Weights:
    """The toy decoder's weights in a dtype."""
    return {name: torch.from_numpy(array).to(dtype) for name, array in toy_weights().items()}


def embed(ids: Any, dtype: torch.dtype) -> Tensor:
    """Whole numbers of any shape -> their embeddings."""
    return weights(dtype)["embed"][whole(ids)]


def widened(t: Tensor) -> Tensor:
    """In float32 where it was narrower, as it is otherwise."""
    return t.to(at_least_float32(t))


# ------------------------------------------------------------------------------------- the parts
def norm(h: Tensor, weight: Tensor, eps: float = EPS) -> Tensor:
    """RMSNorm over the width."""
    return h * (h.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * weight


def angles(positions: Tensor, base: float = THETA) -> Tensor:
    """Positions (B, S) -> rotary angles (B, 1, S, head_dim / 2), float64."""
    half = HEAD_DIM // 2
    return positions[:, None, :, None] * base ** (-torch.arange(half, dtype=torch.float64) / half)


def turn(z: Tensor, angle: Tensor) -> Tensor:
    """Heads (B, heads, S, head_dim) turned by their angles, in pairs (i, i + head_dim / 2)."""
    cos, sin = angle.cos().to(z), angle.sin().to(z)
    first, second = z.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def one_after_the_other(z: Tensor) -> Tensor:
    """Key-value heads for all query heads: 0 0 1 1."""
    return z.repeat_interleave(HEADS // KV_HEADS, dim=1)


def no_later_token(n: int) -> Tensor:
    """(S, S) true where the query (row) may attend to the key (column)."""
    return torch.ones(n, n).tril().bool()


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float = HEAD_DIM**-0.5) -> Tensor:
    """softmax(q k / sqrt(head_dim)) v over the allowed keys."""
    return (q @ k.mT * scale).masked_fill(~allowed, -torch.inf).softmax(-1) @ v


def merge(z: Tensor) -> Tensor:
    """(B, heads, S, head_dim) -> (B, S, heads * head_dim)."""
    return z.transpose(1, 2).flatten(2)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """The MLP's inner states."""
    return nn.functional.silu(gate) * up


def block_of(h: Tensor, attention: OnStates, mlp: OnStates) -> tuple[Tensor, Tensor]:
    """The stream after attention and after the MLP; both functions begin with their norm."""
    middle = h + attention(h)
    return middle, middle + mlp(middle)


class Decoder(NamedTuple):
    """The parts of the decoder; a bug has one of them exchanged."""

    weights: Callable[[Weights], Weights] = lambda w: w
    inputs: OnStates = lambda h: h
    norm: Callable[[Tensor, Tensor], Tensor] = norm
    heads: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] = lambda q, k, v: (q, k, v)
    angles: Callable[[Tensor], Tensor] = angles
    turn: Callable[[Tensor, Tensor], Tensor] = turn
    turned: str = "qk"
    shared: OnStates = one_after_the_other
    causal: Callable[[int], Tensor] = no_later_token
    attend: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = attend
    merge: OnStates = merge
    mlp: Callable[[Tensor, Tensor], Tensor] = swiglu
    block: Callable[[Tensor, OnStates, OnStates], tuple[Tensor, Tensor]] = block_of
    final_norm: Callable[[Tensor, Tensor], Tensor] | None = None  # default: norm
    logits: OnStates = lambda logits: logits


RIGHT = Decoder()


# ------------------------------------------------------------------------------------- the whole
class Pass(NamedTuple):
    """What one run of the decoder leaves behind."""

    logits: Tensor  # (B, S, V)
    states: Tensor  # (B, L, S, d), the output of every block
    middles: Tensor  # (B, L, S, d), the residual stream between attention and MLP of every block


def decode(
    inputs: Tensor,
    mask: Tensor,
    *,
    decoder: Decoder = RIGHT,
    positions: Tensor | None = None,
    edit: Callable[[Tensor, int], Tensor] = lambda h, block: h,
    edited: str = "output",
) -> Pass:
    """The decoder of `toy` in other parts; inputs (B, S, d), mask (B, S) of 0 and 1, positions (B, S).

    `edit` changes the input or the output of every block, or the final norm's output (`edited`: "input", "output",
    "normed"; a normed stream counts as the one after the last block).
    """
    w = decoder.weights(weights(inputs.dtype))
    n, seen = inputs.shape[1], mask.bool()
    positions = count_from_first_token(mask) if positions is None else positions
    allowed = ((decoder.causal(n) & seen[:, None, :]) | torch.eye(n).bool())[:, None]  # (B, 1, S, S)
    angle = decoder.angles(positions)
    h, states, middles = decoder.inputs(inputs), [], []
    for number in range(BLOCKS):
        part = {name: w[f"blocks.{number}.{name}"] for name in "norm_1 q k v o norm_2 gate up down".split()}
        h = edit(h, number) if edited == "input" else h
        middle, h = decoder.block(h, _attention(decoder, part, angle, allowed), _mlp(decoder, part))
        h = edit(h, number) if edited == "output" else h
        middles.append(middle)
        states.append(h)
    final = (decoder.final_norm or decoder.norm)(h, w["norm"])
    final = edit(final, BLOCKS - 1) if edited == "normed" else final
    return Pass(decoder.logits(final @ w["head"].mT), torch.stack(states, 1), torch.stack(middles, 1))


def _attention(decoder: Decoder, part: Weights, angle: Tensor, allowed: Tensor) -> OnStates:
    def attention(h: Tensor) -> Tensor:
        x = decoder.norm(h, part["norm_1"])
        q, k, v = ((x @ part[name].mT).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for name in "qkv")
        heads = dict(zip("qkv", decoder.heads(q, k, v), strict=True))
        for name in decoder.turned:
            heads[name] = decoder.turn(heads[name], angle)
        k, v = (decoder.shared(heads[name]) for name in "kv")
        return decoder.merge(decoder.attend(heads["q"], k, v, allowed)) @ part["o"].mT

    return attention


def _mlp(decoder: Decoder, part: Weights) -> OnStates:
    def mlp(h: Tensor) -> Tensor:
        x = decoder.norm(h, part["norm_2"])
        return decoder.mlp(x @ part["gate"].mT, x @ part["up"].mT) @ part["down"].mT

    return mlp


def count_from_first_token(mask: Tensor) -> Tensor:
    """The positions as they should be: 0 at the first token that is no padding."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def padding_row(b: Tensor) -> Tensor:
    """The padding token's embedding for every token."""
    return embed(0, b.dtype).expand_as(b)
