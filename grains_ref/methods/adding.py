"""The edit that several methods share: vectors of some blocks are added to the residual stream."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from grains_ref.grains import different_numbers, finite_number
from grains_ref.methods.core import Change, Edit, Positions, check_vectors
from grains_ref.models import HuggingFaceModel


def add_vectors(
    model: HuggingFaceModel, v: Tensor, *, c: float, blocks: Collection[int], positions: Positions = "all"
) -> Edit:
    """Add c times the vectors of these blocks while entered: h_l <- h_l + c v_l, the norm of h not restored.

    v: (L, d), one vector per block of the model.

    Raises:
        TypeError: v is no tensor, c is no number, or blocks no list of whole numbers.
        ValueError: v is of another model, a block does not exist or is named twice, or c is not finite.
    """
    check_vectors(model, v)
    chosen = different_numbers("blocks", blocks, below=len(model.blocks))
    strength = finite_number("c", c)
    return Edit(model, "residual", {block: _add(v[block], strength) for block in chosen}, positions=positions)


def _add(v: Tensor, c: float) -> Change:
    return lambda h: h + c * v.to(h)
