"""Writing a file so that it is there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file; after a failure the old file, if any, is as it was.

    Raises:
        OSError: the folder is missing, or the disk refuses (full, read-only, ...).
    """
    temporary = path.with_suffix(".tmp")  # same folder: a rename cannot cross disks; one name: the next run replaces it
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
