"""From logits to the next token, each row by its own settings, and what is said of the token's probability.

    temperature 0          the most probable token
    temperature t > 0      a draw from softmax(logits / t), of the fewest tokens that together have probability top_p

A row's draw depends on its own logits and its own seed, never on who else is in the batch.  Log-probabilities are those
of the model, at temperature 1 and of all tokens, whatever the draw was made from.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

LEAST = -9999.0  # what stands for minus infinity, which JSON does not know


class Scored(NamedTuple):
    """A token at its place, with the most probable ones there: ids and nats, the most probable first."""

    token: int
    log_prob: float
    top: tuple[tuple[int, float], ...]


@dataclass
class Sampling:
    """How one answer is drawn."""

    temperature: float
    top_p: float
    seed: int | None
    _generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        seed = secrets.randbits(63) if self.seed is None else self.seed
        self._generator = torch.Generator().manual_seed(seed)

    def choose(self, logits: Tensor) -> int:
        """The next token for logits (V,), which have been checked."""
        if self.temperature == 0:
            return int(logits.argmax())
        p = (logits.detach().cpu().double() / self.temperature).softmax(-1)
        if self.top_p < 1:
            p_sorted, order = p.sort(descending=True)
            before = p_sorted.cumsum(0) - p_sorted  # probability of all that are more probable
            p = torch.zeros_like(p).scatter(0, order, p_sorted.where(before < self.top_p, 0.0))
        return int(torch.multinomial(p, 1, generator=self._generator))


def check_logits(logits: Tensor) -> None:
    """Refuse logits (B, V) of which a token would be chosen by accident.

    Raises:
        FloatingPointError: one is NaN or plus infinity, or none of a row is finite.
    """
    if logits.isnan().any() or logits.isposinf().any() or logits.isneginf().all(-1).any():
        raise FloatingPointError("the logits of the next token are not finite.")


def scored(logits: Tensor, tokens: Tensor, *, top: int) -> list[Scored]:
    """What is said of tokens (n,) at places with these logits (n, V)."""
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1).clamp_min(LEAST)
    own = log_p.gather(1, tokens.to(log_p.device)[:, None])[:, 0].tolist()
    best, ids = log_p.topk(min(top, log_p.shape[1]))
    return [
        Scored(token, value, tuple(zip(of_place, values, strict=True)))
        for token, value, of_place, values in zip(tokens.tolist(), own, ids.tolist(), best.tolist(), strict=True)
    ]
