r"""How much of the steering's effect a tool keeps: |logits there - ours| / |ours - plain|.

0 is the same effect, 1 as far off as not steering at all.  The tool's formula (`grains_ref.export.rules`) runs as plain
hooks on the model, with the vectors and the strength that its file holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from grains_ref.export.target import Directions, ExportError, Rule, Use
from grains_ref.grains import Encoded, Hooks, edit_output
from grains_ref.models import HuggingFaceModel


@dataclass(frozen=True)
class Loss:
    """What one way of use loses.

    Attributes:
        use: its name.
        loss: |logits there - ours| / |ours - plain|, over all prompts.
    """

    use: str
    loss: float


def measure(
    model: HuggingFaceModel,
    steering: Hooks,
    in_file: Directions,
    uses: Sequence[Use],
    prompts: Sequence[Encoded],
    *,
    lam: float,
) -> list[Loss]:
    """The loss of every use, by the logits of the token that follows each prompt.

    Args:
        model: not steered.
        steering: ours, equations (7) and (8).
        in_file: what the tool's file holds.
        uses: of the target.
        prompts: at least one.
        lam: the strength, for files that do not hold it.

    Raises:
        ExportError: no prompt, vectors of another width or of a block that the model does not have, or a steering that
            changes no logit, so that there is nothing to lose.
        FloatingPointError: see `Steering`; or a tool's formula overflows.
    """
    if not prompts:
        raise ExportError("nothing can be measured without a prompt")
    if in_file.width != model.width or in_file.blocks[-1] >= len(model.blocks):
        raise ExportError(
            f"the file has vectors of width {in_file.width} for blocks up to {in_file.blocks[-1]}; {model.name} has "
            f"{len(model.blocks)} blocks of width {model.width}"
        )
    strength = lam if in_file.lam is None else in_file.lam
    plain = _logits(model, prompts, nullcontext())
    ours = _logits(model, prompts, steering)
    effect = (ours - plain).norm()
    if effect == 0:
        raise ExportError(f"at lam {lam:g} steering changes nothing on these prompts, so nothing can be lost of it")
    losses = []
    for use in uses:
        there = _logits(model, prompts, _as_hooks(model, in_file, use.rule, strength))
        if not there.isfinite().all():
            raise FloatingPointError(
                f"{use.name}: a logit is not finite at lam {strength:g}; measure a smaller strength"
            )
        losses.append(Loss(use.name, float((there - ours).norm() / effect)))
    return losses


@torch.no_grad()
def _logits(model: HuggingFaceModel, prompts: Sequence[Encoded], steering: AbstractContextManager[object]) -> Tensor:
    """The next token's logits after each prompt, (N, V) in float64."""
    rows = []
    with steering:
        for encoded in prompts:
            never_fed = torch.zeros(1, dtype=torch.long)
            rows.append(model.logits(encoded, encoded.embeds[None], never_fed)[0, -1].double().cpu())
    return torch.stack(rows)


def _as_hooks(model: HuggingFaceModel, in_file: Directions, rule: Rule, lam: float) -> Hooks:
    def after(v: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda h: rule(h, v.to(h.device), lam)

    return Hooks([(model.blocks[block], edit_output(after(v))) for block, v in in_file.by_block.items()])
