"""EasySteer: its fork of vLLM, the one server that restores norms for each request, inside CUDA graphs too.

It reads GGUF files with block 0.  `normalize=True` is equation (8): the steered state gets the norm that the state had,
with 1e-8 added to the divisor.  In half precision the norm is rounded before it is used, to 6e-3 in bfloat16.
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
    """A request."""
    return f"""\
from vllm import LLM
from vllm.steer_vectors import ApplySpec, SteeringSpec, VectorSpec

llm = LLM(MODEL, enable_steer_vector=True, steer_algorithms=["direct"])
everywhere = ApplySpec(prompt="all", generation="all")
vector = VectorSpec(source={str(path)!r}, scale={directions.lam:g}, normalize=True, apply=everywhere)
llm.generate(prompts, sampling_params, steering=SteeringSpec(vectors=[vector]))"""


TARGET = Target(
    name="easysteer",
    tool="EasySteer",
    suffix=".gguf",
    uses=(
        Use(name="normalize=True", rule=rules.restore_norm),
        Use(name="normalize=False, its default", rule=rules.add, lacks=NO_NORM),
    ),
    write=write,
    read=read_gguf,
    usage=usage,
)
