"""A prompt with several responses behind it as one sequence, in which no token is there twice.

    sequence   . x x x x c c 1 1 1 2 2        .  padding on the left, up to the longest row
    position   0 0 1 2 3 4 5 6 7 8 6 7        x  prompt    c  what all responses begin with
                                              1, 2  the rest of each response, without its last token

Positions start again behind what is common, and a mask hides each response from the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from grains_ref.grains import Encoded


class Row(NamedTuple):
    """One prompt at one point of a path, and what may follow it."""

    encoded: Encoded
    embeds: Tensor  # (T, d)
    responses: tuple[Tensor, ...]  # token ids, (R,) each; as many in every row of a batch


class Fed(NamedTuple):
    """The response tokens that go through the model; nothing follows a last token."""

    common: Tensor  # (C,) ids
    rests: tuple[Tensor, ...]  # (R - 1 - C,) ids of each response

    def ids(self) -> Tensor:
        """In the order of the sequence."""
        return torch.cat([self.common, *self.rests])


def fed(row: Row) -> Fed:
    """The responses of a row without their last tokens, parted into what they have in common and the rest."""
    without_last = [y[:-1] for y in row.responses]
    n_common = 0
    for ids in zip(*(y.tolist() for y in without_last), strict=False):
        if len(set(ids)) > 1:
            break
        n_common += 1
    return Fed(without_last[0][:n_common], tuple(y[n_common:] for y in without_last))


class Scored(NamedTuple):
    """Which state predicts which token of which response; states are counted from the last prompt token on."""

    states: list[int]
    tokens: list[int]
    responses: list[int]


def scored(row: Row) -> Scored:
    """Every token of every response: the first by the last prompt token, each other one by the token before it."""
    common, rests = fed(row)
    states, tokens, responses = [], [], []
    behind = 1 + len(common)  # where the rest of a response begins
    for i, (y, rest) in enumerate(zip(row.responses, rests, strict=True)):
        states += [*range(1 + len(common)), *range(behind, behind + len(rest))]
        tokens += y.tolist()
        responses += [i] * len(y)
        behind += len(rest)
    return Scored(states, tokens, responses)


def length(row: Row) -> int:
    """Tokens of the sequence, padding left out."""
    return len(row.embeds) + len(fed(row).ids())


def positions(row: Row) -> Tensor:
    """(..., T) -> (..., length): every response goes on behind what is common."""
    of_prompt = row.encoded.replay["position_ids"]
    common, rests = fed(row)
    first = int(of_prompt.max()) + 1
    parts = [of_prompt]
    for start, ids in ((first, common), *((first + len(common), rest) for rest in rests)):
        parts.append((start + torch.arange(len(ids))).expand(*of_prompt.shape[:-1], -1))
    return torch.cat(parts, dim=-1)


def visible(rows: Sequence[Row], longest: int) -> Tensor:
    """(B, 1, longest, longest) bool; the points of one path have one mask."""
    masks: dict[int, Tensor] = {}
    for row in rows:
        if id(row.encoded) not in masks:
            masks[id(row.encoded)] = _may_see(row, longest)
    return torch.stack([masks[id(row.encoded)] for row in rows])[:, None]


def _may_see(row: Row, longest: int) -> Tensor:
    """(longest, longest) bool: which token (row) sees which (column); padding is seen by nobody."""
    n_prompt, n_tokens = len(row.embeds), length(row)
    common, rests = fed(row)
    sees = torch.ones(n_tokens, n_tokens, dtype=torch.bool).tril()
    start = n_prompt + len(common)
    for rest in rests:
        stop = start + len(rest)
        sees[stop:, start:stop] = False  # the next response does not see this one
        start = stop
    sees[:, :n_prompt] &= row.encoded.replay["attention_mask"].bool()
    return nn.functional.pad(sees, (longest - n_tokens, 0, longest - n_tokens, 0))
