"""The kit's own model: a small decoder with grouped-query attention, rotary positions and SwiGLU, in any dtype.

transformers computes norms, rotary angles and some softmaxes in float32 whatever the weights' type, so it is no float64
oracle; this decoder has no such islands. A port runs the stages that need a model on it.

The weights are given twice: stored in `toy.safetensors`, and by the closed form of `toy_weights` for ports that cannot
read that file. Every value is exactly representable in bfloat16, so that one vector serves all dtypes. Sizes are
distinct primes where heads allow: axes that are exchanged do not fit. Token 0 is the padding; its embedding is not 0.

`FORMULAS` says what it computes, `CONSTANTS` with which numbers. Options of the kit run on the same decoder with one of
the `Features` that other families have.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from grains_ref.grains import Encoded

VOCABULARY, WIDTH, BLOCKS, HEADS, KV_HEADS, HEAD_DIM, INNER = 31, 13, 3, 4, 2, 6, 19
EPS, THETA = 1e-5, 100.0
LONGEST = 1000  # positions that the decoder knows
CONSTANTS: dict[str, float] = {
    "vocabulary": VOCABULARY, "width": WIDTH, "blocks": BLOCKS, "heads": HEADS, "kv_heads": KV_HEADS,
    "head_dim": HEAD_DIM, "inner": INNER, "eps": EPS, "rotary_base": THETA,
}  # fmt: skip
"""What a port in any language needs besides the weights."""
FORMULAS = f"""\
h  = embed[ids]                                                                        (T, d)
h += o(attention(turned(q(x)), turned(k(x)), v(x))),  x = rms(h) * norm_1              in every block
h += down(silu(gate(x)) * up(x)),                     x = rms(h) * norm_2
logits = head(rms(h) * norm)                                                           (T, V)

matrices: (out, in), q(x) = x q^T; no biases; head is a matrix of its own, not embed
d = {WIDTH}, V = {VOCABULARY}, {BLOCKS} blocks, inner width {INNER}, {HEADS} query heads over {KV_HEADS} \
key-value heads of head_dim {HEAD_DIM}
rms(h) = h / sqrt(mean(h^2) + {EPS:g}), times the weight as it is, not 1 + weight;  silu(z) = z / (1 + exp(-z))
turned: in every head the pair (z[i], z[i + {HEAD_DIM // 2}]), i = 0..{HEAD_DIM // 2 - 1}, becomes
    (z[i] cos t - z[i + {HEAD_DIM // 2}] sin t, z[i + {HEAD_DIM // 2}] cos t + z[i] sin t),  \
t = position * {THETA:g} ** (-i / {HEAD_DIM // 2})
attention: softmax(q k^T / sqrt({HEAD_DIM})) v, causal; query head j reads key-value head j // {HEADS // KV_HEADS}
padding (mask 0, on the left): seen by nobody but itself; positions count from 0 at the first token that is none
"""
"""What the decoder computes, for those who port it."""

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
MORE_SHAPES: dict[str, tuple[int, ...]] = {}
for _block in range(BLOCKS):
    MORE_SHAPES |= {
        f"blocks.{_block}.q_norm": (HEAD_DIM,),
        f"blocks.{_block}.k_norm": (HEAD_DIM,),
        f"blocks.{_block}.q_bias": (HEADS * HEAD_DIM,),
        f"blocks.{_block}.k_bias": (KV_HEADS * HEAD_DIM,),
        f"blocks.{_block}.v_bias": (KV_HEADS * HEAD_DIM,),
    }
"""Weights that only `Features` use."""


@dataclass(frozen=True)
class Features:
    """What families of decoders have besides; the default is the plain decoder.

    qk_norm: every head of q and k becomes rms(head) * q_norm (k_norm), before it is turned.
    biases: q_bias, k_bias and v_bias are added to the projections, before they are turned.
    window: in the first and the third block a token sees only the last `window` tokens, itself among them; 0: all.
    attention_cap, logits_cap: scores and logits z become cap * tanh(z / cap), scores before they are masked; 0: none.
    scale: embeddings that are looked up are multiplied by it; x, which is given, is not.
    tuples: a block gives (h, positions) instead of h.
    """

    qk_norm: bool = False
    biases: bool = False
    window: int = 0
    attention_cap: float = 0.0
    logits_cap: float = 0.0
    scale: float = 1.0
    tuples: bool = False


PLAIN = Features()


def toy_weights() -> dict[str, np.ndarray]:
    """The weights by their closed form, float64.

    For the tensor number t (from 1, in the order of `SHAPES`) and the entry number i (from 0, row by row), with whole
    numbers throughout:

        norms     1 + ((i * i * 5 + i * t + 3 * t) mod 17 - 8) / 16
        embed     ((i * i * 37 + i * t + 11 * t) mod 257 - 128) / 128
        matrices  the same divided by 2
    """
    return {name: _closed_form(name, t, shape) for t, (name, shape) in enumerate(SHAPES.items(), start=1)}


def more_weights() -> dict[str, np.ndarray]:
    """The weights of `Features` by the same closed form, float64: t goes on counting, and biases are like matrices."""
    following = enumerate(MORE_SHAPES.items(), start=len(SHAPES) + 1)
    return {name: _closed_form(name, t, shape) for t, (name, shape) in following}


def _closed_form(name: str, t: int, shape: tuple[int, ...]) -> np.ndarray:
    i = np.arange(int(np.prod(shape)), dtype=np.int64)
    if len(shape) == 1 and not name.endswith("bias"):
        values = 1 + ((i * i * 5 + i * t + 3 * t) % 17 - 8) / 16
    else:
        values = ((i * i * 37 + i * t + 11 * t) % 257 - 128) / (128 if name == "embed" else 256)
    return values.reshape(shape)


class ToyBlock(nn.Module):
    """One decoder block; a module, so that steering can hook it."""

    def __init__(self, weights: Mapping[str, Tensor], features: Features = PLAIN) -> None:
        super().__init__()
        self.w, self.features = dict(weights), features

    def forward(self, h: Tensor, allowed: Tensor, turns: Turns) -> Tensor | tuple[Tensor, Turns]:
        """(B, S, d), (B, S, S) bool, cosines and sines (B, S, head_dim / 2) -> (B, S, d)."""
        w, features = self.w, self.features
        x = rms(h) * w["norm_1"]
        q, k, v = (x @ w[name].mT for name in "qkv")
        if features.biases:
            q, k, v = q + w["q_bias"], k + w["k_bias"], v + w["v_bias"]
        q, k, v = _heads(q), _heads(k), _heads(v)  # (B, heads, S, head_dim)
        if features.qk_norm:
            q, k = rms(q) * w["q_norm"], rms(k) * w["k_norm"]
        q, k = rotate(q, turns), rotate(k, turns)
        k, v = (z.repeat_interleave(HEADS // KV_HEADS, dim=1) for z in (k, v))
        if features.attention_cap:
            attention = attend_capped(q, k, v, allowed, features.attention_cap)
        else:
            attention = attend(q, k, v, allowed)
        h = h + attention.transpose(1, 2).flatten(2) @ w["o"].mT
        x = rms(h) * w["norm_2"]
        h = h + (nn.functional.silu(x @ w["gate"].mT) * (x @ w["up"].mT)) @ w["down"].mT
        return (h, turns) if features.tuples else h


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """softmax(q k / sqrt(head_dim)) v over the allowed keys; q, k, v: (B, heads, S, head_dim)."""
    scores = (q @ k.mT / HEAD_DIM**0.5).masked_fill(~allowed[:, None], -torch.inf)
    return scores.softmax(-1) @ v


def attend_capped(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, cap: float) -> Tensor:
    """The same with scores that stay below a cap."""
    scores = softly_capped(q @ k.mT / HEAD_DIM**0.5, cap).masked_fill(~allowed[:, None], -torch.inf)
    return scores.softmax(-1) @ v


def softly_capped(z: Tensor, cap: float) -> Tensor:
    """cap * tanh(z / cap)."""
    return cap * (z / cap).tanh()


def rms(h: Tensor) -> Tensor:
    """h / sqrt(mean(h^2) + EPS) over the width."""
    return h * (h.pow(2).mean(-1, keepdim=True) + EPS).rsqrt()


Turns: TypeAlias = tuple[Tensor, Tensor]
"""Cosine and sine of every angle, (B, S, head_dim / 2) each."""


@functools.cache
def _all_turns(dtype: torch.dtype) -> Turns:
    """Cosines and sines of the first `LONGEST` positions, (LONGEST, head_dim / 2) each: computed once, in float64."""
    half = HEAD_DIM // 2
    angle = torch.arange(LONGEST)[:, None] * THETA ** (-torch.arange(half, dtype=torch.float64) / half)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def turns_at(positions: Tensor, dtype: torch.dtype) -> Turns:
    """Positions (B, S), or (B, S, head_dim / 2) with another one for each rotary pair."""
    if positions.ndim == 2:
        positions = positions[..., None].expand(-1, -1, HEAD_DIM // 2)
    cos, sin = _all_turns(dtype)
    pair = torch.arange(HEAD_DIM // 2)
    return cos[positions, pair], sin[positions, pair]


def rotate(z: Tensor, turns: Turns) -> Tensor:
    """Rotary positions; z: (B, heads, S, head_dim)."""
    cos, sin = (part[:, None] for part in turns)
    first, second = z[..., : HEAD_DIM // 2], z[..., HEAD_DIM // 2 :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def _near(n: int, window: int) -> Tensor:
    """(n, n) bool: whether a token (first axis) is less than `window` tokens after another (second axis)."""
    distance = torch.arange(n)[:, None] - torch.arange(n)
    return distance < window


def _heads(z: Tensor) -> Tensor:
    """(B, S, heads * head_dim) -> (B, heads, S, head_dim)."""
    return z.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)


class Toy(nn.Module):
    """The decoder behind the interface of `grains_ref.grains.Model`."""

    def __init__(
        self, weights: Mapping[str, np.ndarray], dtype: torch.dtype = torch.float64, features: Features = PLAIN
    ) -> None:
        super().__init__()
        w = {name: torch.from_numpy(np.ascontiguousarray(array)).to(dtype) for name, array in weights.items()}
        self.embed, self.norm, self.head = w["embed"] * features.scale, w["norm"], w["head"]
        self.features = features
        self.blocks = [
            ToyBlock(
                {name.split(".")[2]: tensor for name, tensor in w.items() if name.startswith(f"blocks.{block}.")},
                features,
            )
            for block in range(BLOCKS)
        ]

    def forward(
        self,
        inputs: Tensor,
        attention_mask: Tensor,
        positions: Tensor | None = None,
        together: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(B, S, d), (B, S) -> logits (B, S, V) and the residual stream after every block (B, L, S, d).

        positions: (B, S, head_dim / 2), default: counted from the first token that is no padding.
        together: (S,) bool, tokens that see each other, also later ones.
        """
        seen = attention_mask.bool()
        if positions is None:
            positions = (seen.long().cumsum(1) - 1).clamp(min=0)
        turns = turns_at(positions, inputs.dtype)
        n = inputs.shape[1]
        causal, itself = torch.ones(n, n).tril().bool(), torch.eye(n).bool()
        if together is not None:
            causal = causal | (together[:, None] & together)
        allowed = (causal & seen[:, None, :]) | itself  # padding sees itself, or its softmax would be undefined
        h, states = inputs, []
        for number, block in enumerate(self.blocks):
            is_local = self.features.window and number % 2 == 0
            out = block(h, allowed & _near(n, self.features.window) if is_local else allowed, turns)
            h = out[0] if isinstance(out, tuple) else out
            states.append(h)
        logits = (rms(h) * self.norm) @ self.head.mT
        if self.features.logits_cap:
            logits = softly_capped(logits, self.features.logits_cap)
        return logits, torch.stack(states, dim=1)

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


class PictureToy(Toy):
    """The decoder with a picture in its prompt: positions in three axes, and picture tokens that see each other.

    Rotary pair i turns by axis i (time, height, width).  The response goes on at the largest position of the prompt
    plus one, on all axes alike.  `replay` of a prompt holds `positions` (3, T), and `token_types` (T,), which are 1 in
    the picture.
    """

    def logits(self, encoded: Encoded, embeds: Tensor, response_ids: Tensor) -> Tensor:
        """See `grains_ref.grains.Model.logits`."""
        n, batch, replay = embeds.shape[1], len(embeds), encoded.replay
        response = self.embed[response_ids].expand(batch, -1, -1)
        mask = torch.cat([replay["attention_mask"], torch.ones_like(response_ids)])
        following = replay["positions"].max() + 1 + torch.arange(len(response_ids))
        positions = torch.cat([replay["positions"], following.expand(3, -1)], 1).T  # (S, 3)
        in_picture = torch.cat([replay["token_types"], torch.zeros_like(response_ids)]).bool()
        everywhere, _ = self(
            torch.cat([embeds, response], 1),
            mask.expand(batch, -1),
            positions.expand(batch, -1, -1),
            in_picture,
        )
        return everywhere[:, n - 1 : -1]
