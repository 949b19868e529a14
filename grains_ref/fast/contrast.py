"""Eq. (4) for several examples in one pass: each prompt whole and without either set, at its last token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from grains_ref import grains
from grains_ref.fast.memory import Memory, run_in_parts
from grains_ref.fast.rows import branches_of
from grains_ref.grains import Encoded, Example, HyperParameters, Model, Selection, Shift, at_least_float32, mask


class Version(NamedTuple):
    """One prompt, whole or with some of its tokens masked."""

    encoded: Encoded
    embeds: Tensor  # (T, d)


def contrast(
    model: Model,
    encoded: Sequence[Encoded],
    selections: Sequence[Selection],
    baselines: Sequence[Tensor],
    *,
    memory: Memory,
) -> list[tuple[Tensor, Tensor]]:
    """`grains.contrast` of several prompts: (delta_pos, delta_neg) of each, (L, d), in float32 or wider.

    A set that is empty is not run.
    """
    branches = branches_of(model)
    if branches is None:
        triples = zip(encoded, selections, baselines, strict=True)
        return [grains.contrast(model, x, selection, baseline) for x, selection, baseline in triples]
    versions: list[Version] = []
    for x, selection, baseline in zip(encoded, selections, baselines, strict=True):
        versions.append(Version(x, x.embeds))
        for tokens in (selection.pos, selection.neg):
            if tokens:
                versions.append(Version(x, mask(x.embeds, tokens, baseline)))

    def run(some: Sequence[Version]) -> list[Tensor]:
        with torch.no_grad():
            h = branches.residuals([version.encoded for version in some], [version.embeds for version in some])
        return list(h.to(at_least_float32(h)))  # (L, d) each

    states = iter(run_in_parts(versions, run, tokens=_tokens, memory=memory))
    shifts = []
    for selection in selections:
        h = next(states)
        delta_pos = h - next(states) if selection.pos else torch.zeros_like(h)
        delta_neg = h - next(states) if selection.neg else torch.zeros_like(h)
        shifts.append((delta_pos, delta_neg))
    return shifts


def shifts(
    model: Model, examples: Sequence[Example], scores: Sequence[Tensor], hp: HyperParameters, *, memory: Memory
) -> list[Shift]:
    """`grains.shift` of several examples: from their scores (T,) to their shifts, eq. (3) and (4)."""
    selections, baselines = [], []
    for example, a in zip(examples, scores, strict=True):
        selections.append(grains.select(a, k=hp.k, eligible=grains.eligible_tokens(example.encoded, hp.eligible)))
        baselines.append(model.baseline(example.encoded, hp.mask_baseline))
    deltas = contrast(model, [example.encoded for example in examples], selections, baselines, memory=memory)
    return [
        Shift(a.cpu(), selection, delta_pos.cpu(), delta_neg.cpu())
        for a, selection, (delta_pos, delta_neg) in zip(scores, selections, deltas, strict=True)
    ]


def _tokens(versions: Sequence[Version]) -> int:
    """Of one pass, padding included."""
    return len(versions) * max(len(version.embeds) for version in versions)
