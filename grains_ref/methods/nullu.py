r"""Nullu, null space of the hallucination subspace (Yang et al., 2025): the rejected side is projected out of weights.

    D_l = ( h of the chosen answers - h of the rejected ones ),  (N, d)        V_l = its first r right singular vectors
    W   <- (I - V V^T) W,   W the output projection of the MLP of block l, (d, inputs)

Read: the residual stream, mean over all tokens of prompt and answer.  Edit: the weights of a range of blocks, so that
the MLPs write nothing along V any more; what other parts write there stays.

The one edit here that is no hook: for as long as it is entered the weights themselves are other ones, for every thread
and every copy that shares them.  Leaving it puts the old numbers back, bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from grains_ref.data import PreferencePair
from grains_ref.grains import DegenerateShiftsError, at_least_float32, different_numbers
from grains_ref.methods.core import NEGLIGIBLE, Setting, capture, check_option, check_pairs, whole_number
from grains_ref.models import HuggingFaceModel, Item
from grains_ref.models.blocks import part_of

Read = Literal["mean", "last"]  # over all tokens of prompt and answer; the last token alone
RANKS = (1, 2, 4, 8, 16)  # published: 4 for one model, 8 as the code's default


@dataclass(frozen=True)
class Nullu:
    """Directions of every block, best first: v (L, R, d), orthonormal, and their singular values s (L, R); float64."""

    v: Tensor
    s: Tensor
    read: Read
    centred: bool

    def steering(
        self, model: HuggingFaceModel, *, rank: int, blocks: Collection[int]
    ) -> AbstractContextManager[object]:
        """Weights without what the first `rank` directions of these blocks write, while entered.

        Raises:
            TypeError: rank is no whole number, or blocks no list of them.
            ValueError: there are not so many directions, a block does not exist or is named twice, or the directions
                are of another model.
        """
        n_blocks, n_directions, width = self.v.shape
        if (n_blocks, width) != (len(model.blocks), model.width):
            raise ValueError(
                f"{model.name} has {len(model.blocks)} blocks of width {model.width}; got directions for {n_blocks} "
                f"of width {width}, from another model?"
            )
        number = whole_number("rank", rank, least=1, most=n_directions)
        chosen = different_numbers("blocks", blocks, below=n_blocks)
        return projected(model, {block: self.v[block, :number] for block in chosen})

    def settings(self, model: HuggingFaceModel) -> list[Setting]:
        """The search grid: `RANKS` in the later half of the blocks, as published, and in all of them."""
        n = len(self.v)
        name = f"Nullu, {self.read}{', centred' if self.centred else ''}"
        groups = {f"blocks {n // 2} to {n - 1}": range(n // 2, n), "all blocks": range(n)}
        return [
            Setting(f"{name}, {label}", float(rank), functools.partial(self.steering, model, rank=rank, blocks=group))
            for rank in RANKS
            if rank <= self.v.shape[1]
            for label, group in groups.items()
        ]


def fit(
    model: HuggingFaceModel, pairs: Sequence[PreferencePair], *, read: Read = "mean", centred: bool = False
) -> Nullu:
    """Where chosen and rejected answers differ most, block by block.

    read: what stands for an answer, see `Read`.
    centred: first take out of the differences what lies along the chosen states' own first singular vector.

    Convention: chosen minus rejected, or the reverse, with or without a factor, has the same right singular vectors;
      the mean is not subtracted.  As many directions are kept as every block has.

    Raises:
        ValueError: no pair.
        DegenerateShiftsError: at some block the differences are zero.
        FloatingPointError: a state is not finite.
    """
    check_option("read", read, Read)
    check_pairs(pairs, least=1)
    chosen = torch.stack([_state(model, (pair.prompt, pair.chosen, pair.image), read) for pair in pairs])  # (N, L, d)
    rejected = torch.stack([_state(model, (pair.prompt, pair.rejected, pair.image), read) for pair in pairs])
    directions, values = [], []
    for block in range(len(model.blocks)):
        v, s = subspace(chosen[:, block], rejected[:, block], centred=centred, where=f"block {block}")
        directions.append(v)
        values.append(s)
    fewest = min(len(s) for s in values)
    return Nullu(
        torch.stack([v[:fewest] for v in directions]), torch.stack([s[:fewest] for s in values]), read, centred
    )


def _state(model: HuggingFaceModel, item: Item, read: Read) -> Tensor:
    """(L, d) in float64."""
    prompt, response, *image = item
    last = 1
    if read == "mean":
        encoded = model.encode(prompt, image[0] if image else None)
        last = len(encoded.ids) + len(model.response_ids(prompt, response))
    return capture(model, [item], site="residual", last=last)[0].double().mean(1)


def subspace(chosen: Tensor, rejected: Tensor, *, centred: bool, where: str) -> tuple[Tensor, Tensor]:
    """Right singular vectors (R, d) of the differences (N, d), and their singular values, as far as they are not zero.

    Raises:
        DegenerateShiftsError: the differences are all zero.
    """
    differences = chosen - rejected
    if centred:
        (first,) = torch.linalg.svd(chosen, full_matrices=False).Vh[:1]
        differences = differences - (differences @ first)[:, None] * first
    if differences.norm() <= NEGLIGIBLE * chosen.norm():
        raise DegenerateShiftsError(
            f"{where}: chosen and rejected answers have the same states, so there is nothing to project out. Check "
            "that they differ."
        )
    _, s, v = torch.linalg.svd(differences, full_matrices=False)
    n = int((s > NEGLIGIBLE * s[0]).sum())
    return v[:n], s[:n]


# ------------------------------------------------------------------------------------------- the weights
@contextmanager
def projected(model: HuggingFaceModel, directions: Mapping[int, Tensor]) -> Iterator[None]:
    """Output projections of MLPs that write nothing along these directions, block -> (r, d), while entered.

    Raises:
        TypeError: a weight is no matrix of floating-point numbers (a quantised model).
        RuntimeError: on leaving: a weight is not what was put there, as when two edits are left in the order in which
            they were entered.
    """
    weights = {block: _weight(model, block) for block in directions}
    before = {block: weight.detach().clone() for block, weight in weights.items()}
    try:
        for block, v in directions.items():
            weights[block].data.copy_(without(before[block], v))
        yield
        changed = [b for b, v in directions.items() if not torch.equal(weights[b].data, without(before[b], v))]
    finally:
        for block, weight in weights.items():
            weight.data.copy_(before[block])
    if changed:
        raise RuntimeError(
            f"blocks {changed}: the MLP's weights were changed by something else while the edit was entered. Leave "
            "edits of weights in the reverse of the order in which they were entered."
        )


def without(weight: Tensor, v: Tensor) -> Tensor:
    """(I - V V^T) W in float32 or wider, rounded back.  weight: (d, inputs).  v: (r, d), orthonormal."""
    wide = weight.to(at_least_float32(weight))
    rows = v.to(wide)
    return (wide - rows.T @ (rows @ wide)).to(weight)


def _weight(model: HuggingFaceModel, block: int) -> nn.Parameter:
    projection = part_of(model.blocks[block], "mlp.down_proj")
    weight = getattr(projection, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.ndim != 2 or not weight.is_floating_point():
        raise TypeError(
            f"block {block}: the MLP's output projection, a {type(projection).__name__}, has no matrix of "
            "floating-point numbers to project. Load the model unquantised."
        )
    return weight
