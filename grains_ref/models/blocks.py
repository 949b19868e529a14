"""The decoder and its blocks: where they are, and hooks on them.

They are found through transformers' own accessors and the number that the configuration gives, never by searching
module names: that is how a vision tower is taken for the decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import transformers
from torch import Tensor, nn

from grains_ref.grains import Hooks
from grains_ref.models.families import UnsupportedModelError

BLOCK_LISTS = ("layers", "h", "blocks")  # what transformers calls a decoder's list of blocks

FSDP = {"FSDPModule", "FullyShardedDataParallel"}  # classes of torch that a sharded model also is


class Decoder(NamedTuple):
    """The module that embeddings enter, and its L blocks."""

    module: nn.Module
    blocks: list[nn.Module]


def find_decoder(hf: transformers.PreTrainedModel, expected: int) -> Decoder:
    """The first of transformers' own accessors that leads to a list of as many blocks as the configuration says.

    `get_decoder` knows most decoders, `base_model` those of GPT-2's kind, and `model` those that both overlook.

    Raises:
        UnsupportedModelError: there is none.
    """
    if any(base.__name__ in FSDP for base in type(hf).__mro__):
        raise UnsupportedModelError(
            f"{type(hf).__name__}: FSDP gathers weights only inside the model's own call, and embeddings are asked for "
            "outside of it. Load with device_map='auto', or by transformers' tensor parallelism"
        )
    passed_over: list[str] = []
    places: list[Any] = [hf.get_decoder(), hf.base_model, getattr(hf, "model", None)]
    for module in places:
        for name in BLOCK_LISTS:
            blocks = getattr(module, name, None)
            if not isinstance(blocks, nn.ModuleList):
                continue
            if len(blocks) == expected:
                return Decoder(module, list(blocks))
            where = f"{type(module).__name__}.{name} with {len(blocks)}"
            if where not in passed_over:
                passed_over.append(where)
    found = f"found {', '.join(passed_over)}" if passed_over else "found no list of blocks"
    raise UnsupportedModelError(
        f"{type(hf).__name__}: the configuration has {expected} decoder blocks; {found} (lists named "
        f"{', '.join(BLOCK_LISTS)} were looked for). Is num_hidden_layers of the configuration the decoder's depth?"
    )


@contextmanager
def hooked(blocks: Sequence[nn.Module], hook: Callable[[nn.Module, Any, Any], None]) -> Iterator[None]:
    """A forward hook on every block inside, as `grains.Hooks` has them: for this thread or task alone."""
    with Hooks([(block, hook) for block in blocks]):
        yield


def state_of(output: Any) -> Tensor:
    """The residual stream in what a block returns: the tensor itself, or the first of a tuple."""
    state: Tensor = output[0] if isinstance(output, tuple) else output
    return state


def part_of(block: nn.Module, name: str) -> nn.Module:
    """A part of a block by its name, such as `self_attn.o_proj`.

    Raises:
        UnsupportedModelError: blocks of this model are made of other parts.
    """
    try:
        return block.get_submodule(name)
    except AttributeError:
        parts = ", ".join(inner for inner, _ in block.named_children())
        raise UnsupportedModelError(
            f"this method reads {name!r} of every block, and a {type(block).__name__} has none (its parts: {parts}). "
            "Methods that work on the blocks' outputs alone, GrAInS, CAA and RepE, take this model"
        ) from None


def entering_state(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The residual stream in what a block is called with; some families pass it by name."""
    state: Tensor = args[0] if args else kwargs["hidden_states"]
    return state
