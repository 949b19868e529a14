"""The decoder's blocks: where they are, and the proof by a short run that hooks on them do what they should.

The decoder is found through the configuration and transformers' own accessors, never by counting module names.  A model
that fails the proof is refused: steering the wrong modules gives numbers that look like any others.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn

from grains_ref.grains import Hooks, Steering
from grains_ref.models.families import UnsupportedModelError

if TYPE_CHECKING:
    from grains_ref.models.huggingface import HuggingFaceModel


def decoder_blocks(hf: transformers.PreTrainedModel, expected: int) -> list[nn.Module]:
    """The decoder's blocks, found by transformers' accessor and counted against the configuration.

    Raises:
        UnsupportedModelError: the decoder has no list `layers`, or one of another length.
    """
    blocks = getattr(hf.get_decoder(), "layers", None)
    if not isinstance(blocks, nn.ModuleList):
        raise UnsupportedModelError(
            f"{type(hf).__name__}: the configuration has {expected} decoder blocks, but its decoder has no list "
            f"`layers` ({type(blocks)})"
        )
    if len(blocks) != expected:
        raise UnsupportedModelError(
            f"{type(hf).__name__}: the configuration has {expected} decoder blocks, but its decoder has "
            f"{len(blocks)} blocks"
        )
    return list(blocks)


@contextmanager
def hooked(blocks: Sequence[nn.Module], hook: Callable[[nn.Module, Any, Any], None]) -> Iterator[None]:
    """A forward hook on every block inside, as `grains.Hooks` has them: for this thread or task alone."""
    with Hooks([(block, hook) for block in blocks]):
        yield


@torch.no_grad()
def prove_hooks(model: HuggingFaceModel) -> None:
    """Each block runs once and in order; a zero vector changes no bit of the logits, a unit vector changes them.

    Raises:
        UnsupportedModelError: one of the three does not hold, or the logits are not finite.
    """
    not_ordinary = model.prompts.special_ids | {model.prompts.image_id}
    ordinary = (i for i in range(model.embed.num_embeddings) if i not in not_ordinary)
    ids = torch.tensor([list(itertools.islice(ordinary, 3))], device=model.device)

    def logits() -> Tensor:
        return model.hf(input_ids=ids, use_cache=False).logits

    ran: list[nn.Module] = []
    with hooked(model.blocks, lambda block, inputs, output: ran.append(block)):
        plain = logits()
    if [id(block) for block in ran] != [id(block) for block in model.blocks]:
        raise UnsupportedModelError(
            f"{model.name}: one forward pass ran {len(ran)} hooked blocks, not each of {len(model.blocks)} once"
        )
    if not plain.isfinite().all():
        raise UnsupportedModelError(
            f"{model.name}: the logits of three ordinary tokens are not finite, although every weight is: "
            f"{model.hf.dtype} overflows. Load the model with dtype bfloat16 or float32"
        )
    v = torch.zeros(len(model.blocks), model.width)
    with Steering(model.blocks, v, lam=1.0):
        with_zero_vector = logits()
    if not torch.equal(with_zero_vector, plain):
        raise UnsupportedModelError(f"{model.name}: adding a zero vector changed the logits")
    v[:, 0] = 1.0
    with Steering(model.blocks, v, lam=1.0):
        with_unit_vector = logits()
    if torch.equal(with_unit_vector, plain):
        raise UnsupportedModelError(f"{model.name}: adding a unit vector to every block changed no logit")
