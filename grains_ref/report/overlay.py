"""The scores of image tokens, drawn on the picture that they see."""

from __future__ import annotations

import io
import math
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from PIL import Image

from grains_ref.data.images import read_picture
from grains_ref.files import check_listed, printable, write_whole
from grains_ref.report.tokens import NEGATIVE, POSITIVE

LONGEST = 1024  # cells of the score map along the longer side, at most

DIMMED = 0.5  # contrast of the picture under the scores
DARK, LIGHT = "#111111", "#ffffff"  # outlines are light on dark, to be seen on any picture
SOLID, DASHED = "solid", (0, (2.2, 1.8))  # selected toward chosen, toward rejected


Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the upright picture


class PatchLike(Protocol):
    """What an image token sees: its view ("base", "tile", ...), its row and column there, and its box."""

    @property
    def view(self) -> str: ...  # noqa: D102 - the class says it
    @property
    def row(self) -> int: ...  # noqa: D102
    @property
    def column(self) -> int: ...  # noqa: D102
    @property
    def box(self) -> Box: ...  # noqa: D102


@dataclass(frozen=True)
class Panel:
    """The scores of one prompt by one method: an item of `patches` and of `a` for each prompt token.

    `patches` has None for text tokens. `pos` and `neg` are the token indices selected toward the chosen and toward
    the rejected answer. `words` is put below the panel, for what a picture cannot show.
    """

    name: str
    patches: Sequence[PatchLike | None]
    a: Any
    pos: Sequence[int] = ()
    neg: Sequence[int] = ()
    words: str = ""


def score_map(size: tuple[int, int], patches: Sequence[PatchLike | None], a: Any) -> np.ndarray:
    """Scores as a density over the picture: each token's score is spread evenly over its box.

    A box that covers a part of a pixel gives it that part's share, so the map sums to the scores of all tokens that
    have an area. Where boxes overlap, as in two views of one picture, scores add up. Text tokens (None), boxes
    without area (line ends) and boxes wholly outside of the picture are left out.

    Convention: the part of a box that sticks out of the picture (padding) is cut off, and the score is spread over
    the rest.

    Args:
        size: (width, height) of the picture in pixels, the unit of the boxes.
        patches: one for each token; None for text tokens.
        a: the tokens' scores, in nats.

    Returns:
        (height, width) float64, in nats per pixel. Where the longer side exceeds `LONGEST`, the map is coarser: its
        longer side is `LONGEST` and its unit nats per cell; its sum is the same.

    Raises:
        ValueError: an empty picture; a patch too many or too few; a score that is not finite; a box that is not
            finite, or has right and left or top and bottom swapped.
    """
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f"expected a picture of at least 1 x 1 pixels, found {width} x {height}.")
    scores = _checked_scores(patches, a)
    columns, rows = _grid(size)
    density = np.zeros((rows, columns))
    for patch, score in zip(patches, scores, strict=True):
        if patch is None:
            continue
        left, top, right, bottom = patch.box
        x, across = _coverage(left * columns / width, right * columns / width, columns)
        y, down = _coverage(top * rows / height, bottom * rows / height, rows)
        if len(across) and len(down):
            density[y : y + len(down), x : x + len(across)] += score * np.outer(down, across)
    return density


def overlay_figure(path: str | os.PathLike[str], picture: Image.Image, panels: Sequence[Panel], *, title: str) -> None:
    """Write a PNG: the picture, and for each panel the picture dimmed under its score map.

    Green pushes toward the chosen answer and red toward the rejected one, on one symmetric scale for all panels.
    Selected patches are outlined, neighbours of one view and sign together: solid toward chosen and dashed toward
    rejected, so that the selection is not told by colour alone. Scores are shown per 1 % of the picture's area: a unit
    that depends neither on the number of pixels nor on the size of a patch. The file appears whole or not at all.

    Raises:
        ValueError: no panel, a name that does not end in .png, a selected token that does not exist or is selected
            twice, or what `score_map` refuses.
        PictureError: a picture that `read_picture` refuses.
        FileError: the file cannot be written there.
        OSError: the disk refuses.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: the figure is written as PNG; expected a name that ends in .png.")
    check_listed("panels", panels, "a list of panels")
    if not panels:
        raise ValueError("no panel to draw; expected at least one, with the scores of one prompt.")
    for panel in panels:
        _check_panel(panel)
    figure = _draw(read_picture(picture), panels, title)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    write_whole(path, content.getvalue())


def _checked_scores(patches: Sequence[PatchLike | None], a: Any) -> np.ndarray:
    scores = np.asarray(a, dtype=np.float64)
    if scores.shape != (len(patches),):
        problem = f"scores of shape {tuple(scores.shape)} for {len(patches)} patches; expected one score for each"
        raise ValueError(f"{problem}. Text tokens count too: their patch is None.")
    for j, (patch, score) in enumerate(zip(patches, scores, strict=True)):
        if not math.isfinite(score):
            raise ValueError(f"token {j} has the score {score}; expected a finite number. Look at its attribution.")
        if patch is None:
            continue
        left, top, right, bottom = patch.box
        if not all(map(math.isfinite, patch.box)) or right < left or bottom < top:
            raise ValueError(f"token {j} has the box {patch.box}; expected left <= right and top <= bottom, in pixels.")
    return scores


def _check_panel(panel: Panel) -> None:
    selected = [*panel.pos, *panel.neg]
    for j in selected:
        if not 0 <= j < len(panel.patches):
            raise ValueError(f"panel {panel.name!r}: token {j} is selected, but there are {len(panel.patches)} tokens.")
        if selected.count(j) > 1:
            raise ValueError(f"panel {panel.name!r}: token {j} is selected twice; a token has one sign, or none.")


def _grid(size: tuple[int, int]) -> tuple[int, int]:
    """Columns and rows of the score map: the picture's own pixels, or fewer for a large picture."""
    shrink = min(1.0, LONGEST / max(size))
    return max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))


def _coverage(low: float, high: float, cells: int) -> tuple[int, np.ndarray]:
    """The first of the cells 0..1, 1..2, ... that meets the interval, and each one's share; the shares sum to 1."""
    low, high = max(low, 0.0), min(high, float(cells))
    if high <= low:
        return 0, np.zeros(0)
    first, last = math.floor(low), math.ceil(high)
    edges = np.clip(np.arange(first, last + 1), low, high)
    return first, np.diff(edges) / (high - low)


def _draw(picture: Image.Image, panels: Sequence[Panel], title: str) -> Figure:
    width, height = picture.size
    columns, across, down = _layout(width / height, 1 + len(panels))
    captions = ["", *(_caption(panel, picture.size, across) for panel in panels)]
    rows = [captions[start : start + columns] for start in range(0, len(captions), columns)]
    lines = sum(max(caption.count("\n") + bool(caption) for caption in row) for row in rows)
    size = (columns * (across + 0.2) + 1.1, len(rows) * (down + 0.5) + 0.15 * lines + 0.8)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
    FigureCanvasAgg(figure)
    figure.suptitle(_wrapped(title, int(10 * size[0])), x=0.01, ha="left", fontsize=12, parse_math=False)
    axes = figure.subplots(len(rows), columns, squeeze=False).ravel()
    for unused in axes[len(captions) :]:
        unused.set_visible(False)

    coarse = picture.resize(_grid(picture.size), Image.Resampling.BOX)
    _show(axes[0], np.asarray(coarse), picture.size)
    axes[0].set_title(f"the picture, {width} x {height} pixels", fontsize=10)
    grey = 1 - DIMMED * (1 - np.asarray(coarse.convert("L"), dtype=np.float64) / 255)
    maps = [score_map(picture.size, panel.patches, panel.a) for panel in panels]
    maps = [density * density.size / 100 for density in maps]  # per cell -> per 1 % of the picture
    reach = max(float(np.abs(density).max()) for density in maps) or 1.0
    for axis, panel, density, caption in zip(axes[1:], panels, maps, captions[1:], strict=False):
        _show(axis, np.repeat(grey[:, :, None], 3, axis=2), picture.size)
        scale = _show(axis, density, picture.size, cmap=_colour_map(), vmin=-reach, vmax=reach)
        for selected, style in ((panel.pos, SOLID), (panel.neg, DASHED)):
            points_per_pixel = 72 * min(across / width, down / height)
            _outline(axis, [panel.patches[j] for j in selected], picture.size, style, points_per_pixel)
        axis.set_title(_wrapped(panel.name, int(12 * across)), fontsize=10, parse_math=False)
        axis.set_xlabel(caption, fontsize=8, parse_math=False)
    beside = max(across - down * width / height, 0) / 2  # a caption is wider than a tall picture
    bar = figure.colorbar(scale, ax=list(axes), fraction=0.05, aspect=30, pad=0.01 + beside / (columns * across))
    bar.set_label("toward rejected  \u2190  nats per 1 % of the picture  \u2192  toward chosen", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    figure.legend(*_legend(), loc="outside lower left", ncols=2, frameon=False, fontsize=8, handlelength=3)
    return figure


def _layout(aspect: float, count: int) -> tuple[int, float, float]:
    """Columns of the figure, and the width and height in inches that one picture may take in it."""
    if aspect > 2:  # wide pictures are stacked
        return 1, 9.0, max(9.0 / aspect, 0.5)
    across, down = max(3.3 * aspect, 2.3), 3.3
    rows = math.ceil(count / (3 if across > 3 else 4))
    return math.ceil(count / rows), across, down


def _show(axis: Axes, values: np.ndarray, size: tuple[int, int], **options: Any) -> AxesImage:
    """An array over the whole picture, in the picture's own coordinates; the pixels of tiny pictures stay crisp."""
    axis.set(xticks=[], yticks=[])
    smooth = "antialiased" if values.ndim == 3 and max(size) > 256 else "nearest"
    return axis.imshow(values, extent=(0, size[0], size[1], 0), interpolation=smooth, **options)


def _outline(
    axis: Axes, selected: Sequence[PatchLike | None], size: tuple[int, int], style: Any, points_per_pixel: float
) -> None:
    """Frame the selected patches of one sign: the sides that they share with each other are left open.

    The frame runs just inside of its patches, so that neighbours of opposite sign keep two frames.
    """
    boxes = {(p.view, p.row, p.column): box for p in selected if p is not None and (box := _inside(p.box, size))}
    sides: list[list[tuple[float, float]]] = []
    thickness: list[float] = []
    for (view, row, column), (left, top, right, bottom) in boxes.items():
        neighbours = ((0, -1), (-1, 0), (0, 1), (1, 0))  # left, top, right, bottom
        is_open = [(view, row + down, column + right_by) not in boxes for down, right_by in neighbours]
        line = min(max(points_per_pixel * min(right - left, bottom - top) / 10, 0.5), 1.5)
        inset = 1.1 * line / points_per_pixel
        x0, y0 = left + inset * is_open[0], top + inset * is_open[1]
        x1, y1 = right - inset * is_open[2], bottom - inset * is_open[3]
        ends = ([(x0, y1), (x0, y0)], [(x0, y0), (x1, y0)], [(x1, y0), (x1, y1)], [(x1, y1), (x0, y1)])
        drawn = [side for side, is_outer in zip(ends, is_open, strict=True) if is_outer]
        sides += drawn
        thickness += [line] * len(drawn)
    dark = LineCollection(sides, colors=DARK, linewidths=[2.1 * line for line in thickness], capstyle="projecting")
    axis.add_collection(dark, autolim=False)
    axis.add_collection(LineCollection(sides, colors=LIGHT, linewidths=thickness, linestyles=[style]), autolim=False)


def _inside(box: Box, size: tuple[int, int]) -> Box | None:
    """The part of a box inside the picture, or None if it has no area."""
    left, top = max(box[0], 0.0), max(box[1], 0.0)
    right, bottom = min(box[2], float(size[0])), min(box[3], float(size[1]))
    return (left, top, right, bottom) if left < right and top < bottom else None


def _caption(panel: Panel, size: tuple[int, int], across: float) -> str:
    selected = [panel.patches[j] for j in (*panel.pos, *panel.neg)]
    drawn = sum(patch is not None and _inside(patch.box, size) is not None for patch in selected)
    count = f"{drawn} of {len(selected)} selected tokens lie on the picture" if selected else ""
    return _wrapped(f"{count}\n{panel.words}", int(15 * across))


def _wrapped(text: str, width: int) -> str:
    """Text in lines of at most `width`; its own line breaks stay, what else is not to be seen is written out."""
    paragraphs = printable(text, keep="\n").split("\n")
    return "\n".join(line for paragraph in paragraphs for line in textwrap.wrap(paragraph, width))


def _colour_map() -> LinearSegmentedColormap:
    """Red through clear to green: where nothing pushes, the picture shows."""
    red, green = ([channel / 255 for channel in colour] for colour in (NEGATIVE, POSITIVE))
    stops = [(0.0, (*red, 0.9)), (0.5, (*red, 0.0)), (0.5, (*green, 0.0)), (1.0, (*green, 0.9))]
    return LinearSegmentedColormap.from_list("scores", stops)


def _legend() -> tuple[list[Any], list[str]]:
    handles: list[Any] = [
        (Line2D([], [], color=DARK, lw=4.5), Line2D([], [], color=LIGHT, lw=2.0, ls=style)) for style in (SOLID, DASHED)
    ]
    return handles, ["selected toward chosen", "selected toward rejected"]
