"""Preference pairs of a dataset, written as the JSONL file that every command takes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grains_ref.data import PreferencePair, RowError, read_pairs
from grains_ref.files import check_listed, write_whole


def write_pairs(pairs: Sequence[PreferencePair], path: Path) -> str:
    """Write pairs as a file that `grains_ref.data.read_pairs` takes; returns the digest of their content.

    A picture is named relative to the file where it lies beneath its folder, by its absolute path elsewhere.  A pair
    that the strict reader would refuse is refused here, before anything is written.

    Raises:
        TypeError: the pairs are no list.
        ValueError: no pairs.
        RowError: a pair is not one that can be read back, or has the id of another.
        OSError: the file cannot be written.
    """
    check_listed("pairs", pairs, "a list of preference pairs")
    if not pairs:
        raise ValueError("no pairs to write")
    ids: set[str] = set()
    for pair in pairs:
        if pair.id in ids:
            raise pair.error("id", f"{pair.id!r} already names an earlier pair; ids must be unique.")
        ids.add(pair.id)
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / "pairs.jsonl"
        draft.write_text(_json_lines(pairs, folder=Path(scratch)), encoding="utf-8", newline="\n")
        try:
            digest = read_pairs(draft).digest
        except RowError as error:
            raise RowError(path, error.line, error.field, error.problem) from error
    write_whole(path, _json_lines(pairs, folder=path.absolute().parent))
    return digest


def _json_lines(pairs: Sequence[PreferencePair], *, folder: Path) -> str:
    lines = []
    for pair in pairs:
        lines.append(json.dumps(_json_row(pair, folder), ensure_ascii=False) + "\n")
    return "".join(lines)


def _json_row(pair: PreferencePair, folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"id": pair.id}
    if isinstance(pair.prompt, str):
        row["prompt"] = pair.prompt
    else:
        row["messages"] = list(pair.prompt)
    row |= {"chosen": pair.chosen, "rejected": pair.rejected}
    paths = []
    for picture in pair.images:
        path = picture.absolute()
        paths.append(str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path))
    if len(paths) == 1:
        row["image"] = paths[0]
    elif paths:
        row["images"] = paths
    if pair.label is not None:
        row |= {"choices": list(pair.choices), "label": pair.label}
    return row
