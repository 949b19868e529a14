"""llama.cpp: control vectors.

llama.cpp adds scale * direction.N to the output of the decoder block N, counted from 0, at every token of prompt and
answer.  It refuses a file that has a `direction.0`: the first block cannot be steered.  Norms are not restored, and the
strength is part of the command.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from grains_ref.export import rules
from grains_ref.export.gguf_file import gguf_bytes, read_gguf
from grains_ref.export.target import NO_NORM, Asked, Directions, Target, Use


def write(directions: Directions, asked: Asked) -> bytes:
    """A GGUF file."""
    return gguf_bytes(directions)


def usage(path: Path, directions: Directions) -> str:
    """The command that runs a model with the file."""
    return f"llama-cli -m MODEL.gguf --control-vector-scaled {shlex.quote(str(path))}:{directions.lam:g}"


TARGET = Target(
    name="gguf",
    tool="llama.cpp",
    suffix=".gguf",
    uses=(Use(name="control vector", rule=rules.add, lacks=NO_NORM),),
    write=write,
    read=read_gguf,
    usage=usage,
    first_block=1,
)
