"""The kit's own model: a small decoder with grouped-query attention, rotary positions and SwiGLU, in any dtype.

transformers computes norms, rotary angles and some softmaxes in float32 whatever the weights' type, so it is no float64
oracle; this decoder has no such islands. A port runs the stages that need a model on it.

The weights are given twice: stored in `toy.safetensors`, and by the closed form of `toy_weights` for ports that cannot
read that file. Every value is exactly representable in bfloat16, so that one vector serves all dtypes. Sizes are
distinct primes where heads allow: axes that are exchanged do not fit. Token 0 is the padding; its embedding is not 0.

    h    = embed[ids]                                                        (T, d)
    h   += o(attention(rope(q(x)), rope(k(x)), v(x))),  x = rms(h) * norm_1   per block
    h   += down(silu(gate(x)) * up(x)),                 x = rms(h) * norm_2
    logits = head(rms(h) * norm)                                             (T, V)

rms(h) = h / sqrt(mean(h^2) + EPS).  Rotary: the pair (i, i + head_dim/2) of a head turns by
position * THETA ** (-i / (head_dim / 2)).  Query head j reads key-value head j // (HEADS / KV_HEADS).  Attention is
causal, scaled by 1 / sqrt(head_dim); padding (mask 0, on the left) is attended by nobody but itself, and positions
count from 0 at the first token that is no padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from grains_ref.grains import Encoded

VOCABULARY, WIDTH, BLOCKS, HEADS, KV_HEADS, HEAD_DIM, INNER = 31, 13, 3, 4, 2, 6, 19
EPS, THETA = 1e-5, 100.0

SHAPES: dict[str, tuple[int, ...]] = {"embed": (VOCABULARY, WIDTH)}
for _block in range(BLOCKS):
    SHAPES |= {
        f"blocks.{_block}.norm_1": (WIDTH,),
        f"blocks.{_block}.q": (HEADS * HEAD_DIM, WIDTH),
        f"blocks.{_block}.k": (KV_HEADS * HEAD_DIM, WIDTH),
        f"blocks.{_block}.v": (KV_HEADS * HEAD_DIM, WIDTH),
        f"blocks.{_block}.o": (WIDTH, HEADS * HEAD_DIM),
        f"blocks.{_block}.norm_2": (WIDTH,),
        f"blocks.{_block}.gate": (INNER, WIDTH),
        f"blocks.{_block}.up": (INNER, WIDTH),
        f"blocks.{_block}.down": (WIDTH, INNER),
    }
SHAPES |= {"norm": (WIDTH,), "head": (VOCABULARY, WIDTH)}


def toy_weights() -> dict[str, np.ndarray]:
    """The weights by their closed form, float64.

    For the tensor number t (from 1, in the order of `SHAPES`) and the entry number i (from 0, row by row), with whole
    numbers throughout:

        norms     1 + ((i * i * 5 + i * t + 3 * t) mod 17 - 8) / 16
        embed     ((i * i * 37 + i * t + 11 * t) mod 257 - 128) / 128
        matrices  the same divided by 2
    """
    weights = {}
    for t, (name, shape) in enumerate(SHAPES.items(), start=1):
        i = np.arange(int(np.prod(shape)), dtype=np.int64)
        if len(shape) == 1:
            values = 1 + ((i * i * 5 + i * t + 3 * t) % 17 - 8) / 16
        else:
            values = ((i * i * 37 + i * t + 11 * t) % 257 - 128) / (128 if name == "embed" else 256)
        weights[name] = values.reshape(shape)
    return weights


class ToyBlock(nn.Module):
    """One decoder block; a module, so that steering can hook it."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.w = dict(weights)

    def forward(self, h: Tensor, allowed: Tensor, positions: Tensor) -> Tensor:
        """(B, S, d), (B, S, S) bool, (B, S) -> (B, S, d)."""
        w = self.w
        x = rms(h) * w["norm_1"]
        q, k, v = (_heads(x @ w[name].mT) for name in "qkv")  # (B, heads, S, head_dim)
        q, k = rotate(q, positions), rotate(k, positions)
        k, v = (z.repeat_interleave(HEADS // KV_HEADS, dim=1) for z in (k, v))
        h = h + attend(q, k, v, allowed).transpose(1, 2).flatten(2) @ w["o"].mT
        x = rms(h) * w["norm_2"]
        return h + (nn.functional.silu(x @ w["gate"].mT) * (x @ w["up"].mT)) @ w["down"].mT


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """softmax(q k / sqrt(head_dim)) v over the allowed keys; q, k, v: (B, heads, S, head_dim)."""
    scores = (q @ k.mT / HEAD_DIM**0.5).masked_fill(~allowed[:, None], -torch.inf)
    return scores.softmax(-1) @ v


def rms(h: Tensor) -> Tensor:
    """h / sqrt(mean(h^2) + EPS) over the width."""
    return h * (h.pow(2).mean(-1, keepdim=True) + EPS).rsqrt()


def rotate(z: Tensor, positions: Tensor) -> Tensor:
    """Rotary positions; z: (B, heads, S, head_dim), positions: (B, S)."""
    half = HEAD_DIM // 2
    angle = positions[:, None, :, None] * THETA ** (-torch.arange(half, dtype=torch.float64) / half)
    cos, sin = angle.cos().to(z), angle.sin().to(z)
    first, second = z[..., :half], z[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def _heads(z: Tensor) -> Tensor:
    """(B, S, heads * head_dim) -> (B, heads, S, head_dim)."""
    return z.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)


class Toy(nn.Module):
    """The decoder behind the interface of `grains_ref.grains.Model`."""

    def __init__(self, weights: Mapping[str, np.ndarray], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        w = {name: torch.from_numpy(np.ascontiguousarray(array)).to(dtype) for name, array in weights.items()}
        self.embed, self.norm, self.head = w["embed"], w["norm"], w["head"]
        self.blocks = [
            ToyBlock({name.split(".")[2]: tensor for name, tensor in w.items() if name.startswith(f"blocks.{block}.")})
            for block in range(BLOCKS)
        ]

    def forward(self, inputs: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, d), (B, S) -> logits (B, S, V) and the residual stream after every block (B, L, S, d)."""
        seen = attention_mask.bool()
        positions = (seen.long().cumsum(1) - 1).clamp(min=0)
        n = inputs.shape[1]
        causal, itself = torch.ones(n, n).tril().bool(), torch.eye(n).bool()
        allowed = (causal & seen[:, None, :]) | itself  # padding sees itself, or its softmax would be undefined
        h, states = inputs, []
        for block in self.blocks:
            h = block(h, allowed, positions)
            states.append(h)
        return (rms(h) * self.norm) @ self.head.mT, torch.stack(states, dim=1)

    def encode(self, ids: Sequence[int], attention_mask: Sequence[int]) -> Encoded:
        """A prompt with its padding on the left."""
        return self.encoded(self.embed[torch.tensor(ids)], torch.tensor(attention_mask))

    def encoded(self, embeds: Tensor, attention_mask: Tensor) -> Encoded:
        """A prompt that is given by its embeddings (T, d)."""
        kinds = tuple("text" if seen else "pad" for seen in attention_mask.tolist())
        ids = torch.zeros(len(embeds), dtype=torch.long)
        return Encoded(ids, embeds, ("",) * len(kinds), kinds, {"attention_mask": attention_mask})  # type: ignore[arg-type]

    def logits(self, encoded: Encoded, embeds: Tensor, response_ids: Tensor) -> Tensor:
        """See `grains_ref.grains.Model.logits`."""
        n, response = embeds.shape[1], self.embed[response_ids].expand(len(embeds), -1, -1)
        mask = torch.cat([encoded.replay["attention_mask"], torch.ones_like(response_ids)])
        everywhere, _ = self(torch.cat([embeds, response], 1), mask.expand(len(embeds), -1))
        return everywhere[:, n - 1 : -1]  # the row before a token predicts it

    def residuals(self, encoded: Encoded, embeds: Tensor) -> Tensor:
        """See `grains_ref.grains.Model.residuals`."""
        _, states = self(embeds, encoded.replay["attention_mask"].expand(len(embeds), -1))
        return states[:, :, -1]

    def baseline(self, encoded: Encoded, name: str) -> Tensor:
        """`zero`, or `padding`: the embedding of token 0."""
        rows = {"zero": torch.zeros_like(self.embed[0]), "padding": self.embed[0]}
        return rows[name].expand_as(encoded.embeds)
