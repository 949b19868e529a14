"""A row, checked field by field, as a pair or a task."""

from __future__ import annotations

import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any

from grains_ref.data.columns import hint
from grains_ref.data.pairs import FieldError, PicturePaths, PreferencePair, Task, Where, check_texts, shortened
from grains_ref.data.shapes import Columns, Taken, take_pair, take_task
from grains_ref.data.turns import as_text, found
from grains_ref.files import MAX_PICTURE_BYTES, is_address


def pair_of(row: dict[str, Any], where: Where) -> tuple[PreferencePair, Taken]:
    """The pair of a row, and the columns that are left.

    Raises:
        FieldError: the first thing that is wrong.
    """
    taken = take_pair(row)
    chosen, rejected = taken.answers
    check_texts(prompt=taken.prompt, chosen=chosen, rejected=rejected)
    choices, label = _choices(taken.columns)
    pair = PreferencePair(
        id=_id(taken.columns, where),
        prompt=taken.prompt,
        chosen=chosen,
        rejected=rejected,
        where=where,
        image=_images(taken.images, folder=Path(where.path).parent),
        choices=choices,
        label=label,
    )
    return pair, taken


def task_of(row: dict[str, Any], where: Where) -> tuple[Task, Taken]:
    """The task of a row, and the columns that are left.

    Raises:
        FieldError: the first thing that is wrong.
    """
    taken = take_task(row)
    image = _images(taken.images, folder=Path(where.path).parent)
    return Task(_id(taken.columns, where), taken.prompt, taken.answers[0], image), taken


def _id(columns: Columns, where: Where) -> str:
    value = columns.left.pop("id", None)
    if value is None:
        return f"{where.line:06d}"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise FieldError("id", f"expected a string or an integer, found {found(value)}.")
    return as_text(value, "id")


def _images(values: list[Any], *, folder: Path) -> PicturePaths:
    """The path of a picture, or the paths of several."""
    paths = tuple(_image(value, folder=folder) for value in values)
    if len(paths) > 1:
        return paths
    return paths[0] if paths else None


def _image(value: Any, *, folder: Path) -> Path:
    """The path of a picture that is there: a regular file of a size that is read."""
    if isinstance(value, dict):
        if value.get("bytes"):
            advice = "Save the pictures as files, and give their paths (docs/data.md has the lines to type)."
            raise FieldError("image", f"the picture itself is in the row. {advice}")
        value = value.get("path") or value.get("url")
    name = as_text(value, "image")
    if is_address(name):
        advice = "Download the picture, or save it from the row, and give the path of the file."
        raise FieldError("image", f"{shortened(name)} is an address, not a file. {advice}")
    image = folder / name
    problem = _no_picture(image)
    if problem:
        expected = f"expected a file, its path counted from {folder.resolve()}, where the pairs or tasks are."
        raise FieldError("image", f"{shortened(str(image))} {problem}; {expected}")
    return image


def _no_picture(image: Path) -> str:
    """Why a path cannot be a picture's, or ""."""
    try:
        status = os.stat(image)
    except (OSError, ValueError):  # also a name that is too long, or that holds a NUL
        return "does not exist"
    if stat.S_ISDIR(status.st_mode):
        return "is a directory"
    if not stat.S_ISREG(status.st_mode):
        return "is no regular file (a device, pipe or socket)"
    if not os.access(image, os.R_OK):
        return "may not be read"
    if status.st_size > MAX_PICTURE_BYTES:
        return f"has {status.st_size:,} bytes, and at most {MAX_PICTURE_BYTES:,} are read of a picture"
    return ""


def _choices(columns: Columns) -> tuple[tuple[str, ...], int | None]:
    """The answers of a multiple-choice row and the right one's index; a label without choices is another's column."""
    if "choices" not in columns.left:
        return (), None
    choices = columns.take("choices")
    if "label" not in columns.left:
        problem = f"missing, but the row has 'choices'; give both or neither.{hint(columns.left, 'label')}"
        raise FieldError("label", problem)
    label = columns.take("label")
    if not isinstance(choices, list) or len(choices) < 2:
        given = f"a list of {len(choices)}" if isinstance(choices, list) else found(choices)
        raise FieldError("choices", f"expected a list of at least 2 strings, found {given}.")
    texts = tuple(as_text(choice, f"choices[{i}]") for i, choice in enumerate(choices))
    text, times = Counter(texts).most_common(1)[0]
    if times > 1:
        raise FieldError("choices", f"{shortened(text)} is listed more than once; expected distinct answers.")
    if not isinstance(label, int) or isinstance(label, bool):
        raise FieldError("label", f"expected an integer index into 'choices', found {found(label)}.")
    if not 0 <= label < len(texts):
        problem = f"{shortened(label)} is no index into the {len(texts)} choices; expected 0 to {len(texts) - 1}."
        raise FieldError("label", problem)
    return texts, label
