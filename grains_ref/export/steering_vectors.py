"""The package steering-vectors, which has no file of its own: a safetensors file {block: tensor}.

The package adds what an operator makes of a state and lam * v.  Its default is lam * v itself; with `restoring` as the
operator it restores norms.  Any other reader of safetensors can use the file as well.

Convention: the names of the tensors are the blocks' numbers. `layer.N`, `layers.N` and `direction.N` are read, too, and
  a file of torch.save that holds a dictionary {N: tensor}.
"""

from __future__ import annotations

import re
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from grains_ref.export import rules
from grains_ref.export.readers import by_block, first_line, key_text, load_torch
from grains_ref.export.target import NO_NORM, NOTE, Asked, Directions, ExportError, Target, Use, note_of, with_note
from grains_ref.files import parse_json

PREFIX = re.compile(r"^(layers?|direction)\.")  # of a tensor's name, before the number of its block


def restoring(h: Tensor, step: Tensor) -> Tensor:
    """An operator for steering-vectors: what to add to h so that equations (7) and (8) result.

    h: (B, T, d).  step: lam * v, (1, 1, d).
    """
    return rules.restore_norm(h, step.flatten(), 1.0) - h


def write(directions: Directions, asked: Asked) -> bytes:
    """A safetensors file, one tensor for each block, our note in its metadata."""
    tensors = {str(block): v.clone() for block, v in directions.by_block.items()}
    return safetensors.torch.save(tensors, metadata={NOTE: note_of(directions)})


def read(content: bytes, name: str) -> Directions:
    """The vectors of a safetensors file, or of a dictionary in a file of torch.save.

    Raises:
        ExportError: it is damaged, or holds other things than one vector for each block.
    """
    note = None
    if content[:2] == b"PK":  # torch.save writes zip files
        tensors = load_torch(content, name=name)
        if not isinstance(tensors, dict):
            raise ExportError(f"{name} holds no dictionary {{block: tensor}}")
    else:
        tensors, note = _safetensors(content, name)
    items = [(PREFIX.sub("", key_text(key, name=name)), tensor) for key, tensor in tensors.items()]
    return with_note(by_block(items, name=name), note, name=name)


def _safetensors(content: bytes, name: str) -> tuple[dict[str, Tensor], object]:
    try:
        tensors = safetensors.torch.load(content)
        header = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ExportError(
            f"{name} is truncated, corrupt, or neither a safetensors file nor one of torch.save ({first_line(error)})"
        ) from None
    texts = header.get("__metadata__")
    return tensors, texts.get(NOTE) if isinstance(texts, dict) else None


def usage(path: Path, directions: Directions) -> str:
    """A few lines of Python."""
    return f"""\
from safetensors.torch import load_file
from steering_vectors import SteeringVector
from grains_ref.export.steering_vectors import restoring

vector = SteeringVector({{int(block): v for block, v in load_file({str(path)!r}).items()}})
with vector.apply(model, multiplier={directions.lam:g}, operator=restoring):  # a transformers model
    model.generate(...)"""


TARGET = Target(
    name="steering-vectors",
    tool="steering-vectors",
    suffix="",
    uses=(
        Use(name="operator=restoring", rule=rules.restore_norm),
        Use(name="no operator, its default", rule=rules.add, lacks=NO_NORM),
    ),
    write=write,
    read=read,
    usage=usage,
)
