"""Planted bugs of options of generation: some blocks, tuples, ends and beams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grains_ref.conformance.bugs.common import Row
from grains_ref.conformance.bugs.generation import generation_with, right_edit
from grains_ref.conformance.stages import Stage, Values
from grains_ref.conformance.toy import BLOCKS


def partial_with(place: Callable[[list[int]], list[int]]) -> Stage:
    """Vectors for some blocks; place: layers as named -> the block of every row."""

    def stage(*, v: Any, layers: list[int], **given: Any) -> Values:
        everywhere = np.zeros((BLOCKS, np.shape(v)[1]))
        everywhere[place(list(layers))] = v
        return generation_with()(v=everywhere, layers=list(layers), **given)

    return stage


PARTIAL: tuple[Row, ...] = (
    ("rows_in_the_blocks_order", "rows taken in the order of the blocks, not in that of their names",
     "Blocks get each other's vectors", "ours", partial_with(sorted)),
    ("rows_from_the_first_block_on", "row i for block i", "Vectors act where they do not belong, or nowhere", "field",
     partial_with(lambda layers: list(range(len(layers))))),
    ("rows_from_the_last_block_back", "row i for the i-th block from the end", "Blocks get each other's vectors",
     "ours", partial_with(lambda layers: list(range(BLOCKS))[::-1][: len(layers)])),
)  # fmt: skip
TUPLES: tuple[Row, ...] = (
    ("tuples_left_alone", "outputs that are tuples not steered", "Nothing happens, silently", "field",
     generation_with(lambda h, block, run: h)),
    ("tuples_first_row", "the first row of the batch steered alone, as `output[0]` of a tensor",
     "All other prompts stay as they are", "field",
     generation_with(lambda h, block, run: torch.cat([right_edit(h[:1], block, run), h[1:]]))),
    ("tuples_first_position", "the first position of every row steered alone",
     "Index 0 is taken of h, not of the tuple", "ours",
     generation_with(lambda h, block, run: torch.cat([right_edit(h[:, :1], block, run), h[:, 1:]], 1))),
)  # fmt: skip


def end_with(cut: Callable[[np.ndarray, list[int]], np.ndarray]) -> Stage:
    """Generation with ends; cut: tokens (B, n), end tokens -> tokens."""

    def stage(*, end: Sequence[int], **given: Any) -> Values:
        run = generation_with()(**given)
        return run | {"tokens": cut(run["tokens"].copy(), list(end))}

    return stage


def cut_after(tokens: np.ndarray, end: list[int], *, keep: int = 1) -> np.ndarray:
    """Every row cut after its first end."""
    for row in tokens:
        ends = np.flatnonzero(np.isin(row, end))
        if len(ends):
            row[ends[0] + keep :] = 0
    return tokens


def _all_at_once(tokens: np.ndarray, end: list[int]) -> np.ndarray:
    """All rows cut where the first of them ends."""
    ends = np.flatnonzero(np.isin(tokens, end).any(0))
    if len(ends):
        tokens[:, ends[0] + 1 :] = 0
    return tokens


def _with_last(tokens: np.ndarray, last: int) -> np.ndarray:
    """Every row with `last` at its last step."""
    tokens[:, -1] = last
    return tokens


END: tuple[Row, ...] = (
    ("end_ignored", "rows going on after their end", "Text that the model never meant", "field",
     end_with(lambda tokens, end: tokens)),
    ("end_left_out", "the end token itself left out", "Nobody can see that the text ended", "field",
     end_with(lambda tokens, end: cut_after(tokens, end, keep=0))),
    ("all_rows_end_together", "all rows cut where the first one ends", "Longer answers are lost", "field",
     end_with(_all_at_once)),
    ("end_by_force", "rows that do not end given an end at their last step", "Texts are cut in the middle", "ours",
     end_with(lambda tokens, end: cut_after(_with_last(tokens, end[0]), end))),
    ("first_end_alone", "the first of several end tokens alone", "Chats go on after their turn", "field",
     end_with(lambda tokens, end: cut_after(tokens, end[:1]))),
)  # fmt: skip


def beams_with(
    *,
    width: Callable[[int], int] = lambda beams: beams,
    scores: Callable[[Tensor], Tensor] = lambda logits: logits.log_softmax(-1),
    before: Callable[[float], float] = lambda total: total,
    edit: Any = right_edit,
) -> Stage:
    """Beam search, every continuation a prompt of its own; scores: (V,) logits -> what is added up."""

    def stage(
        *, ids: Any, attention_mask: Any, v: Any, lam: float, layers: Any, beams: int, n: int, dtype: str
    ) -> Values:
        next_logits = generation_with(edit)
        tokens, sums = [], []
        for row, mask in zip(np.asarray(ids), np.asarray(attention_mask), strict=True):
            alive: list[tuple[float, list[int]]] = [(0.0, [])]
            for _ in range(n):
                longer = []
                for total, written in alive:
                    out = next_logits(
                        ids=np.array([[*row, *written]]), attention_mask=np.array([[*mask, *[1] * len(written)]]),
                        v=v, lam=lam, layers=layers, forced=np.array([[0]]), dtype=dtype,
                    )  # fmt: skip
                    more = scores(torch.from_numpy(out["logits"])[0, 0]).tolist()
                    longer += [(before(total) + more[token], [*written, token]) for token in range(len(more))]
                alive = sorted(longer, key=lambda beam: beam[0], reverse=True)[: width(beams)]
            tokens.append(alive[0][1])
            sums.append(alive[0][0])
        return {"tokens": np.array(tokens), "log_p": np.array(sums)}

    return stage


BEAMS: tuple[Row, ...] = (
    ("beams_are_greedy", "one beam whatever was asked for", "Another text", "field",
     beams_with(width=lambda beams: 1)),
    ("beams_add_logits", "logits added up instead of log-probabilities", "Beams are compared by what is no score",
     "field", beams_with(scores=lambda logits: logits)),
    ("beams_by_the_last_token", "beams compared by their last token alone", "What was said before does not count",
     "ours", beams_with(before=lambda total: 0.0)),
    ("beams_unsteered", "beams without steering", "The search explores another model", "ours",
     beams_with(edit=lambda h, block, run: h)),
)  # fmt: skip


WITHOUT_BUG: dict[str, Stage] = {
    "generation_partial": partial_with(lambda layers: layers),
    "generation_tuples": generation_with(),
    "generation_end": end_with(cut_after),
    "generation_beams": beams_with(),
}
"""These options with nothing exchanged."""
