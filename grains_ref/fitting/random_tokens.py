r"""What masking any tokens does: shifts of as many random tokens of the same example as were selected.

    delta_random_pos_l = h_last_l(x) - h_last_l(x \ R^+)        R^+: |I_k^+| random tokens of the eligible ones

Two things are asked of them: whether v is any other than the vector of random tokens (`fitting.signal`), and what is
left of a shift without them (`fitting.additions`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

from grains_ref.files import digest_of
from grains_ref.fitting.work_folder import WorkFolder
from grains_ref.grains import (
    Example,
    HyperParameters,
    Selection,
    Shift,
    at_least_float32,
    contrast,
    eligible_tokens,
    generator_of,
)

if TYPE_CHECKING:
    from grains_ref.models import HuggingFaceModel


def random_selection(example: Example, selection: Selection, hp: HyperParameters, *, draw: int) -> Selection:
    """As many random tokens of either sign as were selected, of those that were eligible, each at most once.

    The draw belongs to the example's content, as that of random scores does, and not to the order of examples.
    """
    eligible = eligible_tokens(example.encoded, hp.eligible).nonzero().flatten().tolist()
    order = torch.randperm(len(eligible), generator=generator_of(example, draw)).tolist()
    drawn = [eligible[j] for j in order]
    n_pos, n_neg = len(selection.pos), len(selection.neg)
    return Selection(pos=tuple(drawn[:n_pos]), neg=tuple(drawn[n_pos : n_pos + n_neg]))


def random_shift(
    model: HuggingFaceModel,
    example: Example,
    shift: Shift,
    hp: HyperParameters,
    *,
    draw: int,
    work: WorkFolder | None = None,
    number: int = 0,
) -> Shift:
    """The two shifts of random tokens in the place of those that `shift` selected; its scores stay as they are.

    work: where they are kept until it is discarded.  number: of the example there.

    Raises:
        WorkFolderError: a file in the folder is damaged.
        OSError: the disk is full or not writable.
    """
    selection = random_selection(example, shift.selection, hp, draw=draw)
    per_layer = (len(model.blocks), model.width)
    masked = {"pos": list(selection.pos), "neg": list(selection.neg), "baseline": hp.mask_baseline}
    piece = f"random-{digest_of(json.dumps(masked).encode())[:16]}-{number:06d}"
    if work:
        shapes = {"delta_pos": per_layer, "delta_neg": per_layer}
        finished = work.read(piece, shapes=shapes, dtype=at_least_float32(example.encoded.embeds))
        if finished:
            return Shift(shift.a, selection, finished.tensors["delta_pos"], finished.tensors["delta_neg"])
    baseline = model.baseline(example.encoded, hp.mask_baseline)
    delta_pos, delta_neg = (delta.cpu() for delta in contrast(model, example.encoded, selection, baseline))
    if work:
        work.write(piece, {"delta_pos": delta_pos, "delta_neg": delta_neg}, {})
    return Shift(shift.a, selection, delta_pos, delta_neg)
