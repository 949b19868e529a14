"""The reference's answers to the options of generation; `options` says what they are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from grains_ref.conformance.signatures import Values, array, refusing, tensor, toy_in, whole
from grains_ref.conformance.toy import BLOCKS, Features, Toy
from grains_ref.grains import (
    Encoded,
    Steering,
    generate_greedy,
)


def steered(
    model: Toy, ids: Any, attention_mask: Any, v: Tensor, lam: float, layers: Sequence[int], forced: Any
) -> Values:
    """Sect. 3.3: every row of the batch by itself, every token by full recomputation."""
    logits, tokens = [], []
    with torch.no_grad(), Steering(model.blocks, v, lam=lam, layers=layers):
        for row, mask, known in zip(whole(ids), whole(attention_mask), whole(forced), strict=True):
            encoded = model.encode(row.tolist(), mask.tolist())
            logits.append(model.logits(encoded, encoded.embeds[None], known)[0])
            tokens.append(generate_greedy(model, encoded, n=len(known)))
    return {"logits": array(torch.stack(logits)), "tokens": np.array(tokens)}


@refusing
def generation_partial(
    *, ids: Any, attention_mask: Any, v: Any, lam: float, layers: Sequence[int], forced: Any, dtype: str
) -> Values:
    """Vectors for some blocks only, in the order in which the blocks are named."""
    everywhere = np.zeros((BLOCKS, np.shape(v)[1]))
    everywhere[list(layers)] = v
    return steered(toy_in(dtype), ids, attention_mask, tensor(everywhere, dtype), lam, layers, forced)


@refusing
def generation_tuples(
    *, ids: Any, attention_mask: Any, v: Any, lam: float, layers: Sequence[int], forced: Any, dtype: str
) -> Values:
    """Blocks that give tuples."""
    model = toy_in(dtype, Features(tuples=True))
    return steered(model, ids, attention_mask, tensor(v, dtype), lam, layers, forced)


@refusing
def generation_end(
    *,
    ids: Any,
    attention_mask: Any,
    v: Any,
    lam: float,
    layers: Sequence[int],
    forced: Any,
    end: Sequence[int],
    dtype: str,
) -> Values:
    """Rows that end by themselves."""
    answer = steered(toy_in(dtype), ids, attention_mask, tensor(v, dtype), lam, layers, forced)
    for row in answer["tokens"]:
        ends = np.flatnonzero(np.isin(row, list(end)))
        if len(ends):
            row[ends[0] + 1 :] = 0
    return answer


@refusing
def generation_beams(
    *, ids: Any, attention_mask: Any, v: Any, lam: float, layers: Sequence[int], beams: int, n: int, dtype: str
) -> Values:
    """Beam search, every row and beam by itself."""
    best = [search[-1][0] for search in _searches(ids, attention_mask, v, lam, layers, beams, n, dtype)]
    return {"tokens": np.array([tokens for _, tokens in best]), "log_p": np.array([log_p for log_p, _ in best])}


def beam_margins(
    *, ids: Any, attention_mask: Any, v: Any, lam: float, layers: Sequence[int], beams: int, n: int
) -> list[float]:
    """Per row: the smallest gap that decided which beams were kept, and which is the best, as a share of log P."""
    margins = []
    for search in _searches(ids, attention_mask, v, lam, layers, beams, n, "float64"):
        gaps = [
            step[edge - 1][0] - step[edge][0]
            for step in search
            for edge in ((beams, 1) if step is search[-1] else (beams,))
            if edge < len(step)
        ]
        margins.append(min(gaps) / abs(search[-1][0][0]))
    return margins


Beam: TypeAlias = tuple[float, list[int]]
"""log P of a continuation, and its tokens."""


def _searches(
    ids: Any, attention_mask: Any, v: Any, lam: float, layers: Sequence[int], beams: int, n: int, dtype: str
) -> list[list[list[Beam]]]:
    """For every row, and every step, all continuations of the beams that were kept before it, the best one first."""
    model, searches = toy_in(dtype), []
    with torch.no_grad(), Steering(model.blocks, tensor(v, dtype), lam=lam, layers=layers):
        for row, mask in zip(whole(ids), whole(attention_mask), strict=True):
            encoded = model.encode(row.tolist(), mask.tolist())
            searches.append(beam_search(functools.partial(next_log_p, model, encoded), beams=beams, n=n))
    return searches


def next_log_p(model: Toy, encoded: Encoded, so_far: Sequence[int]) -> list[float]:
    """log P of every token that may follow, (V,), in float32 or wider."""
    logits = model.logits(encoded, encoded.embeds[None], torch.tensor([*so_far, 0]))[0, -1]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1).tolist()


def beam_search(next_log_p: Callable[[Sequence[int]], list[float]], *, beams: int, n: int) -> list[list[Beam]]:
    """All continuations at each of n steps, sorted; the first `beams` of them go on."""
    steps: list[list[Beam]] = []
    leading: list[Beam] = [(0.0, [])]
    for _ in range(n):
        longer: list[Beam] = []
        for log_p, so_far in leading:
            longer += [(log_p + more, [*so_far, token]) for token, more in enumerate(next_log_p(so_far))]
        longer.sort(key=lambda beam: -beam[0])  # stable: of equal ones the better parent, then the lower id
        steps.append(longer)
        leading = longer[:beams]
    return steps
