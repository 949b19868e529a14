"""Steerability, once AISteer360: `.svec`, a JSON file.

Steerability adds the vectors (`AdditiveTransform`); `NormPreservingTransform` around it restores the norm only where
the state became longer.
"""

from __future__ import annotations

import json
from pathlib import Path

from grains_ref.export import rules
from grains_ref.export.readers import by_block, first_line
from grains_ref.export.target import NO_NORM, NOTE, Asked, Directions, ExportError, Target, Use, note_of, with_note
from grains_ref.files import parse_json


def write(directions: Directions, asked: Asked) -> bytes:
    """A JSON object; our note is part of `meta`, which Steerability keeps and does not look through."""
    content = {
        "model_type": Path(directions.header.model_name).name if directions.header else "unknown",
        "directions": {str(block): directions.by_block[block].tolist() for block in directions.blocks},
        "meta": {NOTE: note_of(directions)},
    }
    return json.dumps(content).encode()


def read(content: bytes, name: str) -> Directions:
    """The vectors of a file; one row for each block.

    Raises:
        ExportError: it is something else.
    """
    try:
        stored = parse_json(content)
        rows = stored["directions"].items()
        note = stored.get("meta", {}).get(NOTE)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ExportError(f"{name} is no .svec file ({first_line(error)})") from None
    items: list[tuple[str, object]] = []
    for block, row in rows:
        is_nested = isinstance(row, list) and len(row) == 1 and isinstance(row[0], list)  # Steerability writes (1, d)
        items.append((block, row[0] if is_nested else row))
    return with_note(by_block(items, name=name), note, name=name)


def usage(path: Path, directions: Directions) -> str:
    """The transform, for a control of Steerability."""
    return f"""\
from steerability.algorithms.state_control.common.steering_vector import SteeringVector
from steerability.algorithms.state_control.common.transforms.additive import AdditiveTransform
from steerability.algorithms.state_control.common.transforms.norm_preserving import NormPreservingTransform

vector = SteeringVector.load({str(path)!r})
transform = NormPreservingTransform(AdditiveTransform(vector, strength={directions.lam:g}))"""


TARGET = Target(
    name="svec",
    tool="Steerability",
    suffix=".svec",
    uses=(
        Use(
            name="NormPreservingTransform",
            rule=rules.one_sided,
            lacks="half of norm restoration, equation (8): states that became shorter stay shorter",
        ),
        Use(name="AdditiveTransform", rule=rules.add, lacks=NO_NORM),
    ),
    write=write,
    read=read,
    usage=usage,
)
