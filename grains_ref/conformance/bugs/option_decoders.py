"""The toy decoder with parts that other families have, one of them wrong: planted bugs of options of the objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from grains_ref.conformance.bugs.common import Row
from grains_ref.conformance.bugs.decoder import embed, weights, widened
from grains_ref.conformance.stages import Stage, Values, tensor, whole
from grains_ref.conformance.toy import BLOCKS, EPS, HEAD_DIM, HEADS, KV_HEADS, THETA, more_weights, toy_weights

Part: TypeAlias = dict[str, Tensor]


class Heads(NamedTuple):
    """One block's queries (4, S, 6), keys and values (2, S, 6)."""

    q: Tensor
    k: Tensor
    v: Tensor


def rms(h: Tensor) -> Tensor:
    """RMSNorm without a weight."""
    return h * (h.pow(2).mean(-1, keepdim=True) + EPS).rsqrt()


def turned(z: Tensor, positions: Tensor) -> Tensor:
    """Rotary positions; z: (heads, S, head_dim), positions: (S, head_dim / 2)."""
    half = HEAD_DIM // 2
    angle = positions * THETA ** (-torch.arange(half, dtype=torch.float64) / half)
    cos, sin = angle.cos().to(z), angle.sin().to(z)
    first, second = z[..., :half], z[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def plain_heads(part: Part, x: Tensor, positions: Tensor) -> Heads:
    """The toy's own."""
    q, k, v = (split(x @ part[name].mT) for name in "qkv")
    return Heads(turned(q, positions), turned(k, positions), v)


def split(z: Tensor) -> Tensor:
    """(..., S, heads * head_dim) -> (..., heads, S, head_dim)."""
    return z.unflatten(-1, (-1, HEAD_DIM)).transpose(-3, -2)


@cache
def part_of(block: int, dtype: torch.dtype) -> Part:
    """One block's weights, those of `toy.Features` among them."""
    everything = toy_weights() | more_weights()
    beginning = f"blocks.{block}."
    return {
        name.removeprefix(beginning): torch.from_numpy(array).to(dtype)
        for name, array in everything.items()
        if name.startswith(beginning)
    }


class Decoder(NamedTuple):
    """The toy decoder with its parts as arguments."""

    heads: Callable[[Part, Tensor, Tensor], Heads] = plain_heads
    sees: Callable[[int, Tensor], Tensor] = lambda block, allowed: allowed
    masked: Callable[[Tensor, Tensor], Tensor] = lambda scores, allowed: scores.masked_fill(~allowed, -torch.inf)
    logits: Callable[[Tensor], Tensor] = lambda z: z
    looked_up: Callable[[Tensor], Tensor] = lambda rows: rows
    prompt: Callable[[Tensor], Tensor] = lambda x: x

    def run(self, sequence: Tensor, seen: Tensor, places: Tensor | None = None, together: Any = None) -> Tensor:
        """Sequence (B, S, d), seen (S,), places (S, 3), together (S, S) -> states after every block (B, L, S, d)."""
        n, h, states = len(seen), sequence, []
        if places is None:
            places = (seen.long().cumsum(0) - 1).clamp(min=0)[:, None].expand(-1, 3)
        allowed = torch.ones(n, n).tril().bool()
        if together is not None:
            allowed = allowed | together
        allowed = (allowed & seen.bool()) | torch.eye(n).bool()
        for block in range(BLOCKS):
            part = part_of(block, h.dtype)
            q, k, v = self.heads(part, rms(h) * part["norm_1"], places)
            k, v = (z.repeat_interleave(HEADS // KV_HEADS, dim=-3) for z in (k, v))
            scores = self.masked(q @ k.mT * HEAD_DIM**-0.5, self.sees(block, allowed))
            h = h + (scores.softmax(-1) @ v).transpose(-3, -2).flatten(-2) @ part["o"].mT
            z = rms(h) * part["norm_2"]
            h = h + (nn.functional.silu(z @ part["gate"].mT) * (z @ part["up"].mT)) @ part["down"].mT
            states.append(h)
        return torch.stack(states, 1)

    def log_p(
        self, x: Tensor, mask: Tensor, y: np.ndarray, places: Tensor | None = None, together: Any = None
    ) -> Tensor:
        """log P(y | x): x (B, T, d), mask (T,), places (T + R, 3), together (T + R, T + R) -> (B,)."""
        w = weights(x.dtype)
        response = self.looked_up(embed(y, x.dtype)).expand(len(x), -1, -1)
        seen = torch.cat([mask, torch.ones(len(y), dtype=torch.long)])
        h = self.run(torch.cat([self.prompt(x), response], 1), seen, places, together)[:, -1]
        rows = (rms(h) * w["norm"] @ w["head"].mT)[:, x.shape[1] - 1 : -1]
        return widened(self.logits(rows)).log_softmax(-1)[:, torch.arange(len(y)), whole(y)].sum(-1)

    def scored(self, *, x: Any, attention_mask: Any, y_pos: Any, y_neg: Any, dtype: str) -> Values:
        """Eq. (1)."""
        prompt, mask = tensor(x, dtype)[None], whole(attention_mask)
        pos, neg = (self.log_p(prompt, mask, np.asarray(y)).item() for y in (y_pos, y_neg))
        return {"log_p_pos": pos, "log_p_neg": neg, "f": pos - neg}


def normed_heads(part: Part, x: Tensor, positions: Tensor, *, names: str = "qk", late: bool = False) -> Heads:
    """Heads normed before they are turned, or late."""
    heads = {name: split(x @ part[name].mT) for name in "qkv"}
    for name in "qk":
        turn_first = turned(heads[name], positions) if late else heads[name]
        normed = rms(turn_first) * part[f"{name}_norm"] if name in names else turn_first
        heads[name] = normed if late else turned(normed, positions)
    return Heads(**heads)


def normed_together(part: Part, x: Tensor, positions: Tensor) -> Heads:
    """All heads of q, and of k, normed as one."""
    q, k = (split(rms(x @ part[name].mT)) * part[f"{name}_norm"] for name in "qk")
    return Heads(turned(q, positions), turned(k, positions), split(x @ part["v"].mT))


def biased_heads(part: Part, x: Tensor, positions: Tensor, *, names: str = "qkv", late: bool = False) -> Heads:
    """Biases added before heads are turned, or late."""
    heads = {}
    for name in "qkv":
        bias = part[f"{name}_bias"] if name in names else torch.zeros_like(part[f"{name}_bias"])
        z = x @ part[name].mT
        if name == "v":
            heads[name] = split(z + bias)
        elif late:
            heads[name] = turned(split(z), positions) + split(bias.expand_as(z))
        else:
            heads[name] = turned(split(z + bias), positions)
    return Heads(**heads)


def windowed(window: int, *, blocks: Sequence[int] = (0, 2)) -> Decoder:
    """A window in some blocks."""

    def sees(block: int, allowed: Tensor) -> Tensor:
        column = torch.arange(len(allowed))
        near = column[:, None] - column < window
        return allowed & near if block in blocks else allowed

    return Decoder(sees=sees)


def capped(z: Tensor, cap: float) -> Tensor:
    """cap * tanh(z / cap); z itself without a cap."""
    return cap * (z / cap).tanh() if cap else z


def with_caps(attention_cap: float, logits_cap: float, *, after_mask: bool = False) -> Decoder:
    """Scores capped before they are masked, or after; zero is no cap."""

    def masked(scores: Tensor, allowed: Tensor) -> Tensor:
        if after_mask:
            return capped(scores.masked_fill(~allowed, -torch.inf), attention_cap)
        return capped(scores, attention_cap).masked_fill(~allowed, -torch.inf)

    return Decoder(masked=masked, logits=lambda z: capped(z, logits_cap))


def on_decoder(make: Callable[..., Decoder], *arguments: str) -> Stage:
    """The objective on a decoder made of some of the inputs."""

    def stage(**given: Any) -> Values:
        own = [given.pop(name) for name in arguments]
        return make(*own).scored(**given)

    return stage


def with_heads(heads: Callable[..., Heads], **mistake: Any) -> Stage:
    """The objective on a decoder with other heads."""
    return on_decoder(lambda: Decoder(heads=lambda part, x, positions: heads(part, x, positions, **mistake)))


QK_NORM: tuple[Row, ...] = (
    ("qk_norm_left_out", "q and k not normed", "Another model", "field", with_heads(plain_heads)),
    ("qk_norm_after_rotation", "q and k normed after they are turned", "The norm's weights meet other entries", "field",
     with_heads(normed_heads, late=True)),
    ("qk_norm_over_all_heads", "one norm over all heads together", "Heads are no longer of one length", "field",
     with_heads(normed_together)),
    ("qk_norm_of_q_alone", "q normed and k not", "Attention is too sharp or too flat", "ours",
     with_heads(normed_heads, names="q")),
)  # fmt: skip
BIASES: tuple[Row, ...] = (
    ("biases_left_out", "q, k and v without their biases", "Another model", "field", with_heads(plain_heads)),
    ("biases_after_rotation", "biases added after q and k are turned", "Biases depend on where a token stands", "ours",
     with_heads(biased_heads, late=True)),
    ("bias_of_v_left_out", "v without its bias", "Every block's output is off by a constant", "ours",
     with_heads(biased_heads, names="qk")),
)  # fmt: skip
WINDOW: tuple[Row, ...] = (
    ("window_left_out", "no sliding window", "Far tokens are seen by blocks that must not see them", "field",
     on_decoder(lambda window: Decoder(), "window")),
    ("window_one_wider", "a window of one token more", "One token too many is seen", "field",
     on_decoder(lambda window: windowed(window + 1), "window")),
    ("window_in_every_block", "the window in the second block too", "No block sees far tokens", "field",
     on_decoder(lambda window: windowed(window, blocks=(0, 1, 2)), "window")),
    ("window_in_other_blocks", "the window in the second block instead of the first and the third",
     "Local and global blocks change places", "ours",
     on_decoder(lambda window: windowed(window, blocks=(1,)), "window")),
)  # fmt: skip
CAPS: tuple[Row, ...] = (
    ("attention_cap_left_out", "attention scores without a cap", "Attention is too sharp; fused kernels lack the cap",
     "field", on_decoder(lambda attention, logits: with_caps(0.0, logits), "attention_cap", "logits_cap")),
    ("logits_cap_left_out", "logits without a cap", "Log-probabilities are too far apart", "field",
     on_decoder(lambda attention, logits: with_caps(attention, 0.0), "attention_cap", "logits_cap")),
    ("cap_after_the_mask", "scores capped after they are masked", "Future tokens and padding are seen", "field",
     on_decoder(lambda attention, logits: with_caps(attention, logits, after_mask=True),
                "attention_cap", "logits_cap")),
    ("caps_exchanged", "each cap in the place of the other", "Both are of another size", "ours",
     on_decoder(lambda attention, logits: with_caps(logits, attention), "attention_cap", "logits_cap")),
)  # fmt: skip
SCALED: tuple[Row, ...] = (
    ("scale_left_out", "the response's embeddings not scaled", "The prompt outweighs the response", "field",
     on_decoder(lambda scale: Decoder(), "scale")),
    ("prompt_scaled_again", "the prompt, which is given as it enters, scaled once more",
     "Attribution and masking happen in another space", "field",
     on_decoder(lambda scale: Decoder(looked_up=lambda e: scale * e, prompt=lambda x: scale * x), "scale")),
    ("scaled_twice", "the response's embeddings scaled twice", "The response outweighs the prompt", "field",
     on_decoder(lambda scale: Decoder(looked_up=lambda e: scale * scale * e), "scale")),
)  # fmt: skip


WITHOUT_BUG: dict[str, Stage] = {
    "objective_qk_norm": with_heads(normed_heads),
    "objective_biases": with_heads(biased_heads),
    "objective_sliding_window": on_decoder(windowed, "window"),
    "objective_soft_caps": on_decoder(with_caps, "attention_cap", "logits_cap"),
    "objective_scaled_embeddings": on_decoder(lambda scale: Decoder(looked_up=lambda e: scale * e), "scale"),
}
"""These options with nothing exchanged."""
