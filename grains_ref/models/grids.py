"""Where patches lie in a picture: boxes divided into equal ones, and canvases that hold a picture and padding."""

from __future__ import annotations

import math

from grains_ref.models.families import Box, Patch


def grid(view: str, rows: int, columns: int, box: Box) -> list[Patch]:
    """A box divided into equal patches, row by row."""
    left, top, right, bottom = box
    across, down = (right - left) / columns, (bottom - top) / rows
    return [
        Patch(view, r, c, (left + c * across, top + r * down, left + (c + 1) * across, top + (r + 1) * down))
        for r in range(rows)
        for c in range(columns)
    ]


def edges(patches: int, canvas: int, *, extent: int, scale: float) -> list[tuple[float, float]]:
    """Where each patch of a canvas begins and ends along one axis, in pixels of the picture; cut at its edges.

    canvas: pixels along this axis, which the patches divide.  extent: pixels of the picture, centred on the canvas
    after it was scaled.
    """
    filled = min(math.ceil(extent * scale), canvas)  # pixels of the canvas that show the picture
    padding = (canvas - filled) // 2  # in front of it
    step = canvas / patches

    def in_picture(pixel: float) -> float:
        return min(max((pixel - padding) * extent / filled, 0.0), extent)

    return [(in_picture(i * step), in_picture((i + 1) * step)) for i in range(patches)]
