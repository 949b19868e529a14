"""CAA, contrastive activation addition (Rimsky et al., 2024): add the mean difference of two answers' states.

    v_l = mean over pairs of ( h_l at the chosen answer - h_l at the rejected answer ),   h_l <- h_l + c v_l

Read: the residual stream after each block, at the token that tells the two answers apart (`Read`).  Edit: the residual
stream of one block l, chosen by a sweep, or of all; from the prompt's last token on, or everywhere.  v keeps its
length, and the norm of h is not restored.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from grains_ref.data import Message, PreferencePair
from grains_ref.files import check_listed
from grains_ref.methods.adding import add_vectors
from grains_ref.methods.core import (
    Edit,
    Positions,
    Setting,
    capture,
    check_option,
    check_pairs,
    length,
    mean_difference,
    unit,
    whole_number,
)
from grains_ref.models import HuggingFaceModel, Prompt

Read: TypeAlias = Literal["last", "letter", "difference"] | int
"""Which token of an answer is read: the last; that of its only letter, as in "(A)"; the last but for the ending that
both answers share; or token number i, from 0 or, if negative, from the end."""

MULTIPLIERS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
MULTIPLIERS_OF_ALL = (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 3.0)  # each block's shift holds those of the blocks before it


@dataclass(frozen=True)
class CAA:
    """One vector per block, (L, d) in float64, from the rejected answers to the chosen ones; and where it was read."""

    v: Tensor
    read: Read

    def steering(
        self, model: HuggingFaceModel, *, c: float, blocks: Collection[int], positions: Positions = "after_prompt"
    ) -> Edit:
        """Add c times the vectors of these blocks while entered; c < 0 moves toward the rejected answers.

        Raises:
            TypeError: c is no number, or blocks no list of whole numbers.
            ValueError: the vectors are of another model, a block does not exist or is named twice, or c is not finite.
        """
        return add_vectors(model, self.v, c=c, blocks=blocks, positions=positions)

    def settings(
        self,
        model: HuggingFaceModel,
        *,
        blocks: Literal["one", "all"] = "one",
        positions: Positions = "after_prompt",
    ) -> list[Setting]:
        """The search grid: every single block with `MULTIPLIERS`, or all together with `MULTIPLIERS_OF_ALL`.

        Convention: the paper steers from the end of the instruction on.  Its public code steers what follows the
          prompt's last token where it recognises that end (`positions=0`), and all positions where it does not, which
          is the case for every chat template but Llama 2's.
        """
        check_option("blocks", blocks, Literal["one", "all"])
        where = "" if positions == "after_prompt" else f", positions {positions}"
        every = range(len(self.v))
        groups = {"all blocks": every} if blocks == "all" else {f"block {b}": range(b, b + 1) for b in every}
        return [
            Setting(
                f"CAA read at {self.read}, {label}{where}",
                c,
                functools.partial(self.steering, model, c=c, blocks=group, positions=positions),
            )
            for c in (MULTIPLIERS_OF_ALL if blocks == "all" else MULTIPLIERS)
            for label, group in groups.items()
        ]


def fit(model: HuggingFaceModel, pairs: Sequence[PreferencePair], *, read: Read = "last") -> CAA:
    """The mean difference between the two answers' states, per block.

    read: see `Read`; `letter` is for pairs made by `letter_pairs`.

    Convention: CAA is meant for answers that differ in one letter, and read there.  Longer answers are usually read at
      their last token; where both end alike ("... ."), little of the difference is left there, and v is short.

    Raises:
        ValueError: no pair, an unknown way to read, or an answer has no token to read there.
        DegenerateShiftsError: the mean difference of a block is zero.
        FloatingPointError: a state is not finite.
    """
    if isinstance(read, str):
        check_option("read", read, Literal["last", "letter", "difference"])
    else:
        whole_number("read", read, least=-(2**31))
    check_pairs(pairs, least=1)
    differences = torch.stack([_difference(model, pair, read) for pair in pairs])  # (N, L, d)
    v = [mean_difference(rows, where=f"block {block}") for block, rows in enumerate(differences.unbind(1))]
    return CAA(torch.stack(v), read)


def letter_pairs(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """The pairs as questions with two lettered choices, whose answers "(A)" and "(B)" differ in one letter.

    The chosen answer is A in every other pair, from the first on, so that the letters cancel in the mean.
    """
    check_pairs(pairs, least=1)
    lettered = []
    for i, pair in enumerate(pairs):
        first, second = (pair.rejected, pair.chosen) if i % 2 else (pair.chosen, pair.rejected)
        chosen, rejected = ("(B)", "(A)") if i % 2 else ("(A)", "(B)")
        prompt = _append(pair.prompt, f"\n\nChoices:\n (A) {first}\n (B) {second}")
        lettered.append(replace(pair, prompt=prompt, chosen=chosen, rejected=rejected, choices=(), label=None))
    return lettered


def same_lengths(fits: Sequence[CAA]) -> list[CAA]:
    """The vectors of several behaviours, each block's rescaled to the mean of their lengths, as the public code does.

    Raises:
        ValueError: there is none, or their vectors differ in shape.
    """
    check_listed("fits", fits, "a list of fits")
    if not fits:
        raise ValueError("need at least one fit; got none")
    shapes = {tuple(fit.v.shape) for fit in fits}
    if len(shapes) > 1:
        raise ValueError(f"the fits have vectors of the shapes {sorted(shapes)}; they are of different models")
    mean = torch.stack([length(fit.v) for fit in fits]).mean(0)  # (L, 1)
    return [replace(fit, v=mean * unit(fit.v)) for fit in fits]


def _difference(model: HuggingFaceModel, pair: PreferencePair, read: Read) -> Tensor:
    """(L, d): the residual stream at the chosen answer's token that is read minus that at the rejected one's."""
    states = []
    for answer, other in ((pair.chosen, pair.rejected), (pair.rejected, pair.chosen)):
        ids, others = (model.response_ids(pair.prompt, text).tolist() for text in (answer, other))
        i = _token(model, answer, ids, others, read)
        states.append(capture(model, [(pair.prompt, answer, pair.image)], site="residual", last=len(ids) - i)[0, :, 0])
    return states[0] - states[1]


def _token(model: HuggingFaceModel, answer: str, ids: list[int], others: list[int], read: Read) -> int:
    """Which token of the answer is read, from 0."""
    n = len(ids)
    if read == "letter":
        if sum(character.isalnum() for character in answer) != 1:
            raise ValueError(f"read='letter' needs answers with one letter, as '(A)'; got {answer!r}; see letter_pairs")
        begun = [str(model.tokenizer.decode(ids[: i + 1])) for i in range(n)]
        return next(i for i, text in enumerate(begun) if any(character.isalnum() for character in text))
    if read == "difference":
        shared = 0
        while shared < min(n, len(others)) - 1 and ids[-1 - shared] == others[-1 - shared]:
            shared += 1
        return n - 1 - shared
    i = n - 1 if read == "last" else read
    if i < 0:
        i += n
    if not 0 <= i < n:
        raise ValueError(f"the answer {answer!r} has {n} tokens; it has no token {read}")
    return i


def _append(prompt: Prompt, text: str) -> str | tuple[Message, ...]:
    """The prompt with more words at its end, in a chat at the end of the last turn."""
    if isinstance(prompt, str):
        return prompt + text
    *before, last = prompt
    return (*before, Message(role=last["role"], content=last["content"] + text))
