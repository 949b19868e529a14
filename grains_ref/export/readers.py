"""What several readers of other tools' files share. Every file may be damaged, or made to do harm."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from grains_ref.export.target import ExportError
from grains_ref.vectors.header import is_finite_number

DIGITS = 4  # of the number of a block


def by_block(items: Iterable[tuple[str, object]], *, name: str) -> dict[int, Tensor]:
    """Vectors by their block: (the block's number as a text, a tensor or a list of numbers) for each.

    name: what errors call the file.

    Raises:
        ExportError: a text is no number of a block, a block is there twice, or what it has is no vector.
    """
    found: dict[int, Tensor] = {}
    for text, values in items:
        if not (text.isascii() and text.isdigit() and len(text) <= DIGITS):
            raise ExportError(
                f"{name}: {text[:60]!r} is no number of a block. Expected one vector for each block, and nothing else; "
                "is it a file of weights?"
            )
        block = int(text)
        if block in found:
            raise ExportError(f"{name}: block {block} is there twice")
        found[block] = _vector(values, where=f"{name}: block {block}")
    return found


def _vector(values: object, *, where: str) -> Tensor:
    if isinstance(values, Tensor) and values.is_floating_point():
        vector = values.detach().cpu().float()
    elif isinstance(values, list) and all(is_finite_number(value) for value in values):
        vector = torch.tensor(values, dtype=torch.float64).float()
    else:
        raise ExportError(f"{where} has no list of finite numbers")
    return vector.contiguous()


def load_torch(content: bytes, *, name: str) -> Any:
    """What torch.save wrote: tensors and plain values, never code.

    Raises:
        ExportError: it is damaged, or would run code.
    """
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged pickle or zip file leads to
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ExportError(f"{name} is damaged, no file of torch.save, or holds more than tensors ({reason})") from None
