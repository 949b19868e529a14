"""The edit gradient (`grains_ref.methods.edit_gradient`), fitted so that it survives interruption.

Every pair's derivative is kept in the work folder until the vectors are written.  A fit of GrAInS keeps some there,
too: its signal (`grains_ref.fitting.signal`) is measured with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grains_ref.data import PreferencePair, content_digest
from grains_ref.files.processes import share
from grains_ref.fitting.resumable import claim, header_of
from grains_ref.fitting.work_folder import WorkFolder
from grains_ref.grains import Example, at_least_float32
from grains_ref.methods.core import check_option, site_width
from grains_ref.methods.edit_gradient import (
    Derivative,
    EditGradient,
    EditPositions,
    EditSite,
    derivative,
    scaled,
)
from grains_ref.methods.from_file import EDIT_GRADIENT, NAME_IN_FILE
from grains_ref.models.diagnosis import explained
from grains_ref.vectors import SteeringVectors

if TYPE_CHECKING:
    from grains_ref.models import HuggingFaceModel


@dataclass(frozen=True)
class EditGradientRecord:
    """A finished fit: the vectors, and what each pair said."""

    vectors: SteeringVectors
    fit: EditGradient
    derivatives: tuple[Derivative, ...]
    resumed: int  # how many of them came from the work folder


def resumable_edit_gradient(
    model: HuggingFaceModel,
    pairs: Sequence[PreferencePair],
    examples: Sequence[Example],
    *,
    site: EditSite,
    positions: EditPositions,
    work: WorkFolder,
    on_example: Callable[[int], None],
) -> EditGradientRecord:
    """`edit_gradient.fit`, with each pair's derivative kept in `work` until it is discarded.

    on_example is called with the number of finished pairs.

    Raises:
        ValueError: no such site or positions.
        WorkFolderError: the folder was made by another fit, or a file in it is damaged.
        DegenerateShiftsError: the derivatives cancel each other.
        FloatingPointError: a derivative is not finite.
        OSError: the disk is full or not writable; finished pairs are kept.
    """
    check_option("site", site, EditSite)
    check_option("positions", positions, EditPositions)
    where = {"method": EDIT_GRADIENT, "site": site, "positions": positions}
    claim(work, model, pairs, examples, hyper_parameters=where)
    of_pairs, resumed = [], 0
    names = [str(pair.where) for pair in pairs]
    pieces = list(range(len(pairs)))
    for of_pair, was_kept in kept_derivatives(
        model, examples, site=site, positions=positions, work=work, pieces=pieces, names=names
    ):
        of_pairs.append(of_pair)
        if was_kept:
            resumed += 1
        on_example(len(of_pairs))
    fitted = scaled(of_pairs, site=site, positions=positions)
    made = steering_vectors_of(model, fitted, content_digest(pairs), examples)
    return EditGradientRecord(made, fitted, tuple(of_pairs), resumed)


def steering_vectors_of(
    model: HuggingFaceModel, fitted: EditGradient, data_digest: str, examples: Sequence[Example]
) -> SteeringVectors:
    """The edit gradient with its header, ready to be saved."""
    v_pos, v_neg = fitted.v_pos.float(), fitted.v_neg.float()
    header = header_of(
        model,
        examples,
        data_digest,
        method=EDIT_GRADIENT,
        site=NAME_IN_FILE[fitted.site],
        positions=fitted.positions,
        scale=fitted.scale,
        dialect="none",
        hyper_parameters={},
        diagnostics={},
    )
    return SteeringVectors(v=v_pos - v_neg, v_pos=v_pos, v_neg=v_neg, header=header)


def kept_derivatives(
    model: HuggingFaceModel,
    examples: Sequence[Example],
    *,
    site: EditSite,
    positions: EditPositions,
    work: WorkFolder,
    pieces: Sequence[int | str],
    names: Sequence[str] = (),
) -> Iterator[tuple[Derivative, bool]]:
    """The derivative of every pair, computed if the work folder does not have it, and whether it had it.

    pieces: what the folder calls them.  names: where each pair is from, for messages.
    """
    n_layers, width = len(model.blocks), site_width(model, site)
    shapes = {"pos": (n_layers, width), "neg": (n_layers, width), "size": (n_layers,)}
    finished_pieces = [
        work.read(piece, shapes=shapes, dtype=at_least_float32(example.encoded.embeds))
        for piece, example in zip(pieces, examples, strict=True)
    ]

    def compute(i: int) -> Derivative:
        def alone() -> Derivative:
            return derivative(model, examples[i], site=site, positions=positions)

        return explained(model, alone, where=names[i]) if names else alone()

    computed = share([i for i, finished in enumerate(finished_pieces) if not finished], compute)
    for piece, finished in zip(pieces, finished_pieces, strict=True):
        if finished:
            yield Derivative(**finished.tensors), True
            continue
        of_pair = next(computed)
        work.write(piece, {"pos": of_pair.pos, "neg": of_pair.neg, "size": of_pair.size}, {})
        yield of_pair, False
