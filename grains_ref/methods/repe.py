"""RepE, representation engineering by PCA (Zou et al., 2023): a reading vector per block, added to the stream.

    D_i = +-( h at the chosen answer - h at the rejected answer ),   the sign drawn at random for each pair
    p_l = first principal direction of the centred D_i of block l, unit length, turned so that in most pairs the
          chosen answer has the larger projection
    h   <- h + c p_l,   or   h <- h + c sign(h . p_l) p_l

Read: the residual stream at the last token of prompt + answer.  Edit: the residual stream of a range of blocks, every
token.  The random order is what lets a centred component find the shift that all pairs share: without it, centring
takes that shift away.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grains_ref.data import PreferencePair
from grains_ref.grains import different_numbers, finite_number
from grains_ref.methods.core import (
    Change,
    Edit,
    Setting,
    answer_differences,
    check_option,
    check_pairs,
    check_vectors,
    first_component,
    length,
    unit,
)
from grains_ref.models import HuggingFaceModel

Operator = Literal["plain", "by_projection"]  # add c p; add c p with the sign of each token's own projection on p

STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True)
class RepE:
    """One unit direction per block, (L, d) in float64, and the share of pairs it puts in the right order."""

    p: Tensor
    seed: int  # of the random order
    agreement: tuple[float, ...]  # L values, at least 0.5 unless projections tie

    def steering(
        self,
        model: HuggingFaceModel,
        *,
        c: float,
        blocks: Collection[int],
        operator: Operator = "plain",
        restore_norm: bool = False,
    ) -> Edit:
        """Add c times the directions of these blocks while entered; c < 0 moves toward the rejected answers.

        Raises:
            TypeError: c is no number, or blocks no list of whole numbers.
            ValueError: the directions are of another model, a block does not exist or is named twice, c is not finite,
                or there is no such operator.
        """
        check_vectors(model, self.p)
        check_option("operator", operator, Operator)
        chosen = different_numbers("blocks", blocks, below=len(model.blocks))
        strength = finite_number("c", c)
        changes = {b: _push(self.p, b, c=strength, operator=operator, restore_norm=restore_norm) for b in chosen}
        return Edit(model, "residual", changes)

    def settings(
        self, model: HuggingFaceModel, *, operator: Operator = "plain", restore_norm: bool = False
    ) -> list[Setting]:
        """The search grid: the `middle` blocks with `STRENGTHS`, in units of the residual stream."""
        blocks = middle(len(self.p))
        name = f"RepE, order {self.seed}, blocks {blocks[0]} to {blocks[-1]}, {operator}"
        if restore_norm:
            name += ", norm restored"
        return [
            Setting(
                name,
                c,
                functools.partial(
                    self.steering, model, c=c, blocks=blocks, operator=operator, restore_norm=restore_norm
                ),
            )
            for c in STRENGTHS
        ]


def middle(n: int) -> range:
    """The blocks that are steered: from 7/16 to 7/8 of the depth, 14 to 27 of 32, and at least one."""
    start = 7 * n // 16
    return range(start, max(start + 1, 7 * n // 8))


def fit(model: HuggingFaceModel, pairs: Sequence[PreferencePair], *, seed: int = 0) -> RepE:
    """A direction per block from the pairs' differences in random order.

    Convention: one order per pair, the same in all blocks.  Equal votes leave the component as it came.

    Raises:
        ValueError: fewer than 3 pairs.
        DegenerateShiftsError: a block's differences are all zero, or do not spread.
        FloatingPointError: a state is not finite.
    """
    check_pairs(pairs, least=3)
    p, agreement = directions(answer_differences(model, pairs), seed=seed)
    return RepE(p, seed, agreement)


def directions(differences: Tensor, *, seed: int) -> tuple[Tensor, tuple[float, ...]]:
    """p of every block from differences (N, L, width) in random order, and the share of pairs in the right order.

    Raises:
        DegenerateShiftsError: a block's differences are all zero, or do not spread.
    """
    n, n_blocks = differences.shape[:2]
    swapped = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.5
    order = torch.where(swapped, -1.0, 1.0).double()
    components, agreement = [], []
    for block in range(n_blocks):
        rows = differences[:, block].double()
        p, _ = first_component(order[:, None] * rows, centred=True, sign="score", where=f"block {block}")
        higher, lower = int((rows @ p > 0).sum()), int((rows @ p < 0).sum())
        components.append(p if higher >= lower else -p)
        agreement.append(max(higher, lower) / n)
    return torch.stack(components), tuple(agreement)


def _push(directions: Tensor, block: int, *, c: float, operator: Operator, restore_norm: bool) -> Change:
    """The change of one block."""

    def change(h: Tensor) -> Tensor:  # (B, n, d)
        p = directions[block].to(h)
        step = c * p if operator == "plain" else c * (h @ p).sign()[..., None] * p
        return length(h) * unit(h + step) if restore_norm else h + step

    return change
