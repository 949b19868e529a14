"""vllm-lens: a plug-in of vLLM that adds vectors, request by request.

The file is a JSON list with one steering vector, as a request's `apply_steering_vectors` takes it: the rows of
`activations` belong to the blocks of `layer_indices`.  Its `norm_match` is no norm restoration: it measures lam in
lengths of the state and forgets the lengths of the vectors.  A `Hook` can restore norms, in Python.
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grains_ref.export import rules
from grains_ref.export.readers import first_line
from grains_ref.export.target import NO_NORM, NOTE, Asked, Directions, ExportError, Target, Use, note_of, with_note
from grains_ref.files import parse_json
from grains_ref.vectors.header import is_finite_number


def write(directions: Directions, asked: Asked) -> bytes:
    """A JSON list with one vector; numbers as float32 in base64."""
    rows = torch.stack([directions.by_block[block] for block in directions.blocks])
    data = base64.b64encode(rows.numpy().astype("<f4").tobytes()).decode()
    vector = {
        "activations": {"data": data, "dtype": "float32", "original_dtype": "torch.float32", "shape": list(rows.shape)},
        "layer_indices": directions.blocks,
        "scale": directions.strength,
        "norm_match": False,
        "position_indices": None,
        NOTE: note_of(directions),
    }
    return (json.dumps([vector]) + "\n").encode()


def read(content: bytes, name: str) -> Directions:
    """The vectors of such a list.

    Raises:
        ExportError: it is something else, or does not add one vector at every position of each block.
    """
    try:
        (vector,) = parse_json(content)
        blocks, scale, note = vector["layer_indices"], vector.get("scale", 1.0), vector.get(NOTE)
        if vector.get("norm_match") or vector.get("position_indices") is not None:
            raise ExportError("it has norm_match or position_indices; expected vectors to be added everywhere")
        rows = _rows(vector["activations"], len(blocks))
        if len(set(blocks)) < len(blocks) or not all(type(block) is int for block in blocks):
            raise ExportError("'layer_indices' must be different numbers")
        if not is_finite_number(scale):
            raise ExportError(f"'scale' is {scale!r}; expected a finite number")
    except ExportError as error:
        raise ExportError(f"{name}: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = first_line(error)
        raise ExportError(f"{name} is no JSON list with one steering vector of vllm-lens ({reason})") from None
    return with_note(dict(zip(blocks, rows, strict=True)), note, name=name, lam=float(scale))


def _rows(stored: dict[str, Any], n_blocks: int) -> Tensor:
    if stored.get("compression") is not None or stored["dtype"] != "float32":
        raise ExportError("'activations' must be float32 and not compressed, as `grains-ref export` writes them")
    try:
        values = np.frombuffer(base64.b64decode(stored["data"], validate=True), "<f4")
    except binascii.Error as error:
        raise ExportError(f"'activations' is no base64 ({error})") from None
    if not n_blocks or len(values) % n_blocks or stored["shape"] != [n_blocks, len(values) // n_blocks]:
        raise ExportError(f"'activations' has the shape {stored['shape']!r:.60} and {len(values)} values")
    return torch.from_numpy(values.reshape(n_blocks, -1).astype(np.float32))


def usage(path: Path, directions: Directions) -> str:
    """A request in Python, and what HTTP requests carry."""
    return f"""\
import json
from vllm_lens import SteeringVector

vectors = [SteeringVector.model_validate(vector) for vector in json.load(open({str(path)!r}))]
SamplingParams(..., extra_args={{"apply_steering_vectors": vectors}})
# over HTTP: "vllm_xargs": {{"apply_steering_vectors": the text of {path}}}"""


TARGET = Target(
    name="vllm-lens",
    tool="vllm-lens",
    suffix="",
    uses=(
        Use(name="SteeringVector", rule=rules.add, lacks=NO_NORM),
        Use(name="Hook with rules.restore_norm", rule=rules.restore_norm),
        Use(
            name="norm_match=True",
            rule=rules.norm_match,
            lacks="the unit of lam (here lengths of the state) and the vectors' own lengths",
        ),
    ),
    write=write,
    read=read,
    usage=usage,
    keeps_lam=True,
)
