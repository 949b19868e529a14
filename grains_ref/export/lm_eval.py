"""lm-evaluation-harness: its model `steered` adds vectors at named modules.

The file is one of torch.save, {module: {"steering_vector", "steering_coefficient", "action", "bias", "head_index"}}; a
module is named as below `model.base_model`.  The harness loads it as a pickle: give it only files that you trust.

`grains_ref.evaluation.lm_eval` steers in the harness without a loss; this file is for those who cannot install that.
The harness must be 0.4.13 or newer: an older one was seen to add the last block's vector at every block.
"""

from __future__ import annotations

import io
import shlex
from pathlib import Path
from typing import Any

import torch

from grains_ref.export import rules
from grains_ref.export.readers import by_block, key_text, load_torch
from grains_ref.export.target import NO_NORM, NOTE, Asked, Directions, ExportError, Target, Use, note_of, with_note
from grains_ref.vectors.header import is_finite_number

BLOCK = "layers.{i}"


def write(directions: Directions, asked: Asked) -> bytes:
    """A dictionary, saved by torch; our note lies beside the first vector, where nothing looks at it."""
    entries: dict[str, dict[str, Any]] = {}
    for block in directions.blocks:
        entries[asked.module(BLOCK, block)] = {
            "steering_vector": directions.by_block[block].clone(),
            "steering_coefficient": float(directions.strength),
            "action": "add",
            "bias": None,
            "head_index": None,
        }
    next(iter(entries.values()))[NOTE] = note_of(directions)
    buffer = io.BytesIO()
    torch.save(entries, buffer)
    return buffer.getvalue()


def read(content: bytes, name: str) -> Directions:
    """The vectors of a file that adds one at every named block; the block is the number in the module's name.

    Raises:
        ExportError: it is damaged, holds code, or does something else than that.
    """
    entries = load_torch(content, name=name)
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise ExportError(f"{name} holds no dictionary {{module: settings}}, as the model 'steered' reads it")
    items: list[tuple[str, object]] = []
    lams: set[float] = set()
    note = None
    for key, entry in entries.items():
        module = key_text(key, name=name)
        if entry.get("action") != "add" or entry.get("bias") is not None or entry.get("head_index") is not None:
            raise ExportError(f"{name}: {module!r} does something else than to add a vector to a block's output")
        lam = entry.get("steering_coefficient", 1.0)
        if not is_finite_number(lam):
            raise ExportError(f"{name}: the strength at {module!r} is {lam!r}; expected a finite number")
        lams.add(float(lam))
        items.append((module.rpartition(".")[2], entry.get("steering_vector")))
        note = entry.get(NOTE, note)
    if len(lams) != 1:
        raise ExportError(f"{name}: {len(lams)} strengths; expected one, the same for all blocks")
    return with_note(by_block(items, name=name), note, name=name, lam=lams.pop())


def usage(path: Path, directions: Directions) -> str:
    """The command."""
    return f"lm_eval --model steered --model_args pretrained=MODEL,steer_path={shlex.quote(str(path))} --tasks TASKS"


TARGET = Target(
    name="lm-eval",
    tool="lm-evaluation-harness",
    suffix=".pt",
    uses=(Use(name="model 'steered'", rule=rules.add, lacks=NO_NORM),),
    write=write,
    read=read,
    usage=usage,
    keeps_lam=True,
    block_name=BLOCK,
)
