"""Pictures of a dataset, written once to a folder under the digest of their bytes, and referred to by path."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from PIL import Image

from grains_ref.data.images import FORMATS, PictureError
from grains_ref.files import digest_of, write_whole

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "grains_ref" / "pictures"


def keep_picture(value: Any, *, cache: Path, folder: Path) -> Path:
    """The path of one picture, which is written to `cache` unless it is there already, or is a file to begin with.

    Args:
        value: a Pillow picture; {"bytes": ..., "path": ...} as the `datasets` library stores pictures; or a path.
        cache: the folder for pictures that come as bytes.  The bytes are kept as they are; a Pillow picture becomes a
            PNG, which loses nothing.
        folder: what a relative path is counted from.

    Raises:
        PictureError: no picture at all, or a path without a file.
    """
    if isinstance(value, Image.Image):
        buffer = io.BytesIO()
        value.save(buffer, "PNG")
        return _keep_bytes(buffer.getvalue(), cache)
    if isinstance(value, dict):
        if value.get("bytes"):
            return _keep_bytes(value["bytes"], cache)
        value = value.get("path")
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise PictureError("neither bytes nor a path of a picture")
    path = folder / value
    if not path.is_file():
        raise PictureError(f"{path}: no such file; expected a picture, its path counted from {folder}.")
    return path


def _keep_bytes(data: bytes, cache: Path) -> Path:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:  # reads the header, decodes nothing
            suffix = str(picture.format).lower()
    except Exception as error:  # fed broken bytes, decoders raise nearly anything
        raise PictureError(f"{len(data)} bytes that are no picture Pillow can read ({error})") from error
    path = cache / f"{digest_of(data)}.{suffix}"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)  # so that nothing half written ever bears the name of its digest
    return path
