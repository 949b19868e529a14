"""repeng: steers a transformers model in memory, block 0 too.

`normalize=True` is equation (8), in the model's own precision.  A `ControlModel` takes only blocks that the file has.
The GGUF file is for repeng's `import_gguf`; llama.cpp refuses one that has block 0 (`--to gguf` leaves that out).
"""

from __future__ import annotations

from pathlib import Path

from grains_ref.export import rules
from grains_ref.export.gguf_file import gguf_bytes, read_gguf
from grains_ref.export.target import NO_NORM, Asked, Directions, Target, Use


def write(directions: Directions, asked: Asked) -> bytes:
    """A GGUF file with all blocks."""
    return gguf_bytes(directions)


def usage(path: Path, directions: Directions) -> str:
    """Four lines of Python."""
    return f"""\
from repeng import ControlModel, ControlVector

vector = ControlVector.import_gguf({str(path)!r})
steered = ControlModel(model, list(vector.directions))  # a transformers model
steered.set_control(vector, coeff={directions.lam:g}, normalize=True)"""


TARGET = Target(
    name="repeng",
    tool="repeng",
    suffix=".gguf",
    uses=(
        Use(name="normalize=True", rule=rules.restore_norm),
        Use(name="normalize=False, its default", rule=rules.add, lacks=NO_NORM),
    ),
    write=write,
    read=read_gguf,
    usage=usage,
)
