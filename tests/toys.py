"""Rung 0: functions and models whose right answers are known without transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from grains_ref.grains import Encoded, Function, Kind
from grains_ref.tiny_models.random_models import fill

# ---------------------------------------------------------------------------------- closed-form functions


def linear(weight: Tensor) -> Function:
    """f(x) = <weight, x>: every quadrature is exact, and so is one gradient."""
    return lambda x: (weight * x).sum((1, 2))


def polynomial(weight: Tensor, p: int) -> Function:
    """f(x) = <weight, x ** p>, whose gradient along a path from zero has degree p - 1."""
    return lambda x: (weight * x**p).sum((1, 2))


def quadratic(weight: Tensor) -> Function:
    """f(x) = <weight, x ** 2>."""
    return polynomial(weight, 2)


# ----------------------------------------------------------------------------------- closed-form models


def encoded(embeds: Tensor, kinds: Sequence[Kind] | None = None, ids: Sequence[int] | None = None) -> Encoded:
    """A prompt of given embeddings, all plain text unless `kinds` says otherwise."""
    n = len(embeds)
    kinds = tuple(kinds or ["text"] * n)
    return Encoded(
        ids=torch.tensor(ids if ids is not None else range(n)),
        embeds=embeds,
        tokens=tuple(f"t{i}" for i in range(n)),
        kinds=kinds,
        replay={"attention_mask": torch.tensor([kind != "pad" for kind in kinds]).long()},
    )


@dataclass
class FunctionModel:
    """A `Model` put together from two functions, with no blocks.

    score: (B, T, d) -> (B,), the logit of token 1 against 0 for token 0; a one-token preference of 1 over 0 is then
    exactly this score.  states: (B, T, d) -> (B, L, d).
    """

    score: Function
    states: Callable[[Tensor], Tensor]
    blocks: Sequence[nn.Module] = field(default_factory=list)

    def logits(self, encoded: Encoded, embeds: Tensor, response_ids: Tensor) -> Tensor:
        score = self.score(embeds)
        return torch.stack([torch.zeros_like(score), score], dim=1)[:, None].expand(-1, len(response_ids), -1)

    def residuals(self, encoded: Encoded, embeds: Tensor) -> Tensor:
        return self.states(embeds)

    def baseline(self, encoded: Encoded, name: str) -> Tensor:
        return {"zero": torch.zeros_like(encoded.embeds), "one": torch.ones_like(encoded.embeds)}[name]


# --------------------------------------------------------------------------------- a decoder in float64


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, dtype=torch.float64))

    def forward(self, h: Tensor) -> Tensor:
        return h * (h.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * self.weight


def _matrix(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False, dtype=torch.float64)


def rotate(z: Tensor, positions: Tensor) -> Tensor:
    """Rotary positions: pairs (i, i + half) turn by position * 100 ** (-i / half).  z: (B, heads, S, 2 * half)."""
    half = z.shape[-1] // 2
    angle = positions[:, None, :, None] * 100.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    first, second = z[..., :half], z[..., half:]
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1)


class Block(nn.Module):
    """Norm, grouped-query attention, norm, SwiGLU; returns a tensor, or a tuple as older transformers do."""

    heads, kv_heads, head_dim, inner = 4, 2, 6, 19

    def __init__(self, width: int, *, returns_tuple: bool) -> None:
        super().__init__()
        self.returns_tuple = returns_tuple
        self.norm_1, self.norm_2 = Norm(width), Norm(width)
        self.q = _matrix(width, self.heads * self.head_dim)
        self.k = _matrix(width, self.kv_heads * self.head_dim)
        self.v = _matrix(width, self.kv_heads * self.head_dim)
        self.o = _matrix(self.heads * self.head_dim, width)
        self.gate, self.up, self.down = (
            _matrix(width, self.inner),
            _matrix(width, self.inner),
            _matrix(self.inner, width),
        )

    def forward(self, h: Tensor, allowed: Tensor, positions: Tensor) -> Tensor | tuple[Tensor, str]:
        def split(z: Tensor) -> Tensor:  # (B, S, heads * head_dim) -> (B, heads, S, head_dim)
            return z.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

        x = self.norm_1(h)
        q, k, v = rotate(split(self.q(x)), positions), rotate(split(self.k(x)), positions), split(self.v(x))
        k, v = (z.repeat_interleave(self.heads // self.kv_heads, dim=1) for z in (k, v))
        attention = (q @ k.mT / self.head_dim**0.5).masked_fill(~allowed[:, None], -torch.inf).softmax(-1)
        h = h + self.o((attention @ v).transpose(1, 2).flatten(2))
        x = self.norm_2(h)
        h = h + self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        return (h, "second output") if self.returns_tuple else h


class ToyDecoder(nn.Module):
    """A small decoder in float64 throughout, behind the interface of `grains_ref.grains.Model`.

    transformers computes norms, rotary angles and some softmaxes in float32 whatever the weights' type; here stages
    are tested to 1e-12.  The sizes are distinct primes where heads allow.  Token 0 is the padding; its embedding is
    not zero.
    """

    n_blocks, width, vocabulary = 3, 13, 31

    def __init__(self, seed: int = 0, *, returns_tuple: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(self.vocabulary, self.width, dtype=torch.float64)
        self.blocks = nn.ModuleList(Block(self.width, returns_tuple=returns_tuple) for _ in range(self.n_blocks))
        self.norm, self.head = Norm(self.width), _matrix(self.width, self.vocabulary)
        fill(self, f"toy {seed}")
        self.requires_grad_(False)

    def forward(self, inputs: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, d), (B, S) -> logits (B, S, V) and the residual stream after every block (B, L, S, d)."""
        seen = attention_mask.bool()
        positions = (seen.long().cumsum(1) - 1).clamp(min=0)
        n = inputs.shape[1]
        causal, itself = torch.ones(n, n).tril().bool(), torch.eye(n).bool()
        allowed = causal & (seen[:, None, :] | itself)  # padding sees itself, or its softmax would be undefined
        h, states = inputs, []
        for block in self.blocks:
            h = block(h, allowed, positions)
            h = h[0] if isinstance(h, tuple) else h
            states.append(h)
        return self.head(self.norm(h)), torch.stack(states, dim=1)

    # ------------------------------------------------------------------------------- the interface

    def encode(self, ids: Sequence[int], *, left_padding: int = 0) -> Encoded:
        ids = [0] * left_padding + list(ids)
        kinds: list[Kind] = ["pad"] * left_padding + ["text"] * (len(ids) - left_padding)
        return encoded(self.embed(torch.tensor(ids)), kinds, ids)

    def logits(self, encoded: Encoded, embeds: Tensor, response_ids: Tensor) -> Tensor:
        n, response = embeds.shape[1], self.embed(response_ids).expand(len(embeds), -1, -1)
        mask = torch.cat([encoded.replay["attention_mask"], torch.ones_like(response_ids)])
        everywhere, _ = self(torch.cat([embeds, response], 1), mask.expand(len(embeds), -1))
        return everywhere[:, n - 1 : -1]  # the row before a token predicts it

    def residuals(self, encoded: Encoded, embeds: Tensor) -> Tensor:
        _, states = self(embeds, encoded.replay["attention_mask"].expand(len(embeds), -1))
        return states[:, :, -1]

    def baseline(self, encoded: Encoded, name: str) -> Tensor:
        rows = {"zero": torch.zeros(self.width, dtype=torch.float64), "padding": self.embed.weight[0]}
        return rows[name].expand_as(encoded.embeds)


def residual_of(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """What a decoder block gives: a tensor, or with Gemma 3 in transformers 4 a tuple that starts with it."""
    return output[0] if isinstance(output, tuple) else output
