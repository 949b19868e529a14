"""What several readers of other tools' files share. Every file may be damaged, or made to do harm."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from grains_ref.export.target import ExportError
from grains_ref.vectors.header import is_finite_number

DIGITS = 4  # of the number of a block
MOST_NUMBERS = 1 << 20  # in one vector: far more than any model is wide; a pickle can claim any size for nothing


def by_block(items: Iterable[tuple[str, object]], *, name: str) -> dict[int, Tensor]:
    """Vectors by their block: (the block's number as a text, a tensor or a list of numbers) for each.

    name: what errors call the file.

    Raises:
        ExportError: a text is no number of a block, a block is there twice, or what it has is no vector.
    """
    vectors: dict[int, Tensor] = {}
    for text, values in items:
        if not (text.isascii() and text.isdigit() and len(text) <= DIGITS):
            raise ExportError(
                f"{name}: {text[:60]!r} is no number of a block. Expected one vector for each block, and nothing else; "
                "is it a file of weights?"
            )
        block = int(text)
        if block in vectors:
            raise ExportError(f"{name}: block {block} is there twice")
        vectors[block] = _vector(values, where=f"{name}: block {block}")
    return vectors


def key_text(key: object, *, name: str) -> str:
    """The key of a dictionary in a pickle, as a text.

    name: what errors call the file.

    Raises:
        ExportError: it is neither a text nor a number that a block could have.
    """
    if isinstance(key, str):
        return key
    if type(key) is int and abs(key) < 10**DIGITS:  # longer ones may be too long to be written out at all
        return str(key)
    raise ExportError(f"{name}: a key is no text and no number of a block, but {type(key).__name__}")


def _vector(values: object, *, where: str) -> Tensor:
    n = values.numel() if isinstance(values, Tensor) else len(values) if isinstance(values, list) else 0
    if n > MOST_NUMBERS:
        raise ExportError(f"{where} has {n} numbers; at most {MOST_NUMBERS} are read. Is it a file of weights?")
    if isinstance(values, Tensor) and _holds_plain_numbers(values):
        return values.detach().float().contiguous()
    if isinstance(values, list) and all(is_finite_number(value) for value in values):
        return torch.tensor(values, dtype=torch.float64).float()
    raise ExportError(f"{where} has no list of finite numbers")


def _holds_plain_numbers(tensor: Tensor) -> bool:
    """Whether a tensor is an array of decimal numbers: not sparse, nested or without values."""
    is_array = tensor.layout == torch.strided and not tensor.is_nested and tensor.device.type == "cpu"
    return is_array and tensor.is_floating_point()


def load_torch(content: bytes, *, name: str) -> Any:
    """What torch.save wrote: tensors and plain values, never code.

    Raises:
        ExportError: it is damaged, unpacks to more than it is long, which torch never writes, or would run code.
    """
    problem = f"{name} is damaged, no file of torch.save, or holds more than tensors"
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as members:
            unpacked = sum(member.file_size for member in members.infolist())
            if unpacked > len(content):
                raise ExportError(f"{problem}: {len(content)} bytes unpack to {unpacked}")
            if damaged := members.testzip():  # torch looks at no checksum, and some damage makes it read any memory
                raise ExportError(f"{problem}: {damaged} does not agree with its checksum")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except ExportError:
        raise
    except Exception as error:  # whatever a damaged pickle or zip file leads to
        raise ExportError(f"{problem} ({first_line(error)})") from None


def first_line(error: Exception) -> str:
    """What a library's error says, at most so much as a message should hold: it may quote a file at any length."""
    return (str(error)[:200].splitlines() or [type(error).__name__])[0]
