"""Examples that are computed together, and which of them is to blame when the batch is not finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from grains_ref.grains import Example
from grains_ref.models.diagnosis import explained, only_together

if TYPE_CHECKING:
    from grains_ref.models import HuggingFaceModel

Result = TypeVar("Result")


def in_batch(
    model: HuggingFaceModel,
    compute: Callable[[Sequence[Example]], list[Result]],
    examples: Sequence[Example],
    names: Sequence[str],
) -> list[Result]:
    """`compute(examples)`: a result for every example.

    names: where each example is from.

    Raises:
        FloatingPointError: something is not finite; the message names the example, found by computing each alone, and
            the block of the decoder at which it begins.
    """
    if len(examples) == 1:
        return explained(model, lambda: compute(examples), where=names[0])
    try:
        return compute(examples)
    except FloatingPointError as error:
        for example, name in zip(examples, names, strict=True):
            explained(model, lambda alone=example: compute([alone]), where=name)  # type: ignore[misc]
        raise FloatingPointError(only_together(model, str(error), what="example")) from error
