"""Where numbers stop being finite: the block of the decoder at which it begins, and what the likely reason is.

Nothing is watched as long as all is well.  What has failed is run once more, with a hook on every block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from grains_ref.models.blocks import hooked, state_of

if TYPE_CHECKING:
    from grains_ref.models.huggingface import HuggingFaceModel

_T = TypeVar("_T")


@dataclass
class Watch:
    """What the hooks saw of one run.

    Attributes:
        reached: blocks whose output came, before an error perhaps ended the run.
        forward: the first block whose output was not finite.
        backward: the first block, coming from the last, at which the gradient was not finite.
    """

    reached: list[int] = field(default_factory=list)
    forward: int | None = None
    backward: int | None = None


@contextmanager
def watched(model: HuggingFaceModel) -> Iterator[Watch]:
    """Watch every block inside."""
    watch = Watch()
    number = {id(block): i for i, block in enumerate(model.blocks)}

    def look(block: nn.Module, inputs: Any, output: Any) -> None:
        i, h = number[id(block)], state_of(output)
        watch.reached.append(i)
        if watch.forward is None and not h.isfinite().all():
            watch.forward = i
        if h.requires_grad:
            h.register_hook(lambda gradient: look_back(i, gradient))

    def look_back(i: int, gradient: Tensor) -> None:
        if watch.backward is None and not gradient.isfinite().all():
            watch.backward = i

    with hooked(model.blocks, look):
        yield watch


def explained(model: HuggingFaceModel, compute: Callable[[], _T], *, where: str = "") -> _T:
    """What `compute` gives; if it is not finite, it is run once more to say where in the model that begins.

    where: what is computed, for instance the place of a pair in its file.

    Raises:
        FloatingPointError: as `compute` raises it, with `where`, the block and the likely reason.
    """
    try:
        return compute()
    except FloatingPointError as error:
        with watched(model) as watch, suppress(FloatingPointError):
            compute()
        place = f"{where}: " if where else ""
        raise FloatingPointError(f"{place}{error} {reason(model, watch)}") from error


def reason(model: HuggingFaceModel, watch: Watch) -> str:
    """Where it began, and why that may be, in a sentence or two."""
    steered = any(block._forward_hooks for block in model.blocks)
    if watch.forward is not None:
        began = f"The output of decoder block {watch.forward} is the first that is not finite."
    elif watch.reached and len(watch.reached) < len(model.blocks):
        began = f"It began at decoder block {len(watch.reached)}."
    elif watch.backward is not None:
        began = f"Every block's output is finite; coming back, the gradient is lost at decoder block {watch.backward}."
    else:
        began = "The output of every decoder block is finite."
    if model.hf.dtype in (torch.float16, torch.bfloat16):
        why = f"{model.hf.dtype} overflows easily: load the model with dtype bfloat16 or float32"
    else:
        why = "a weight may be damaged, or two numbers may be too far apart for the dtype"
    if steered:
        why = "the model is steered: lam may be too large; otherwise " + why
    return f"{began} Likely reason: {why}."


def only_together(model: HuggingFaceModel, error: str, *, what: str) -> str:
    """The message for a batch that is not finite although each of its rows alone is."""
    attention = getattr(model.text_config, "_attn_implementation", None)
    return (
        f"{error} Each {what} alone gives finite numbers, so it is the padding in front of the shorter ones: the "
        f"attention implementation {attention!r} makes NaN of it. Load the model with attn_implementation 'sdpa', or "
        f"take one {what} at a time (batch_size=1)."
    )
