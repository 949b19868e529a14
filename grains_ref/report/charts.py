"""Small charts as SVG by matplotlib, in the colours of the page that they stand on, light or dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from grains_ref.files import printable

# Colours that stand for the page's own: matplotlib writes them, and `_themed` puts the page's variables in their place.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
POSITIVE, NEGATIVE, LIMIT = "#040404", "#050505", "#060606"
SERIES = ("#070707", "#080808", "#090909", "#0a0a0a", "#0b0b0b", "#0c0c0c")
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--rule", POSITIVE: "--pos", NEGATIVE: "--neg", LIMIT: "--limit"}
VARIABLES |= {colour: f"--s{i}" for i, colour in enumerate(SERIES, 1)}
Palette: TypeAlias = Mapping[str, str]  # colours to draw with, under those that stand for them
MARKERS = ("o", "s", "^", "D", "v", "P")

SIZE = (4.7, 3.0)  # inches: a chart is as wide as a phone
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}


@dataclass(frozen=True)
class Line:
    """A series of a chart: its name, and where it goes; dashed lines and markers tell series apart without colour."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    marker: str = "o"
    style: str = "-"
    low: Sequence[float] = ()  # of an interval around y
    high: Sequence[float] = ()
    is_strong: bool = True  # others step back


def chart(title: str, description: str, draw: Callable[[Axes], None], *, size: tuple[float, float] = SIZE) -> Markup:
    """What `draw` draws, as an SVG element without colours, fonts or styles of its own.

    description: what the chart says in words, for people who do not see it.
    """

    def in_axes(figure: Figure, palette: Palette) -> None:
        axes = figure.subplots()
        axes.set_title(printable(title))
        draw(axes)

    return figure_chart(title, description, in_axes, size=size)


def figure_chart(
    title: str, description: str, draw: Callable[[Figure, Palette], None], *, size: tuple[float, float] = SIZE
) -> Markup:
    """The same of a figure with several axes, which takes its colours from a palette."""
    same = {colour: colour for colour in VARIABLES}
    svg = _drawn(draw, same, size=size, kind="svg", salt=title)
    return _themed(svg.decode("utf-8"), f"{title}. {description}")


def figure_file(
    draw: Callable[[Figure, Palette], None], *, size: tuple[float, float], kind: Literal["svg", "png"]
) -> bytes:
    """What `draw` draws as a file of its own, in the page's light colours, on white."""
    return _drawn(draw, light_palette(), size=size, kind=kind, salt="grains_ref", background="white")


def light_palette() -> Palette:
    """The page's colours in the light, under those that stand for them."""
    style = (Path(__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    light = dict(re.findall(r"(--[a-z0-9]+): light-dark\((#[0-9a-f]{6}),", style))
    return {colour: light[variable] for colour, variable in VARIABLES.items()}


def _drawn(
    draw: Callable[[Figure, Palette], None],
    palette: Palette,
    *,
    size: tuple[float, float],
    kind: Literal["svg", "png"],
    salt: str,
    background: str = "",
) -> bytes:
    settings: Any = {
        name: palette.get(value, value) if isinstance(value, str) else value for name, value in SETTINGS.items()
    }
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type") if kind == "svg" else ("Software",))
    content = io.BytesIO()
    with matplotlib.rc_context(settings | {"svg.hashsalt": salt}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure, palette)
        if background:
            figure.savefig(content, format=kind, dpi=200, facecolor=background, metadata=nothing)
        else:  # the axes' own background, too: it would be white on a dark page
            figure.savefig(content, format=kind, dpi=200, transparent=True, metadata=nothing)
    return content.getvalue()


def _themed(svg: str, label: str) -> Markup:
    """The element alone, in the page's colours."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    view = re.search(r'viewBox="([^"]*)"', body)
    assert view
    opening = f'<svg class="chart" role="img" aria-label="{escape(printable(label))}" viewBox="{view[1]}">'
    return Markup(opening + body[body.index(">") + 1 :].strip())


def lines_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x: str,
    y: str,
    limit: float | None = None,
    limit_name: str = "",
    is_percent: bool = False,
    is_log: bool = False,
    zero: bool = False,
    star: tuple[float, float] | None = None,
) -> Markup:
    """Series over one axis, with their intervals, a horizontal limit and one point with a star.

    is_percent: the values are shares.  is_log: x are strengths, in equal ratios, 0 set apart on the left; otherwise x
    are whole numbers.
    zero: draw where y is 0.
    """

    def draw(axes: Axes) -> None:
        for line in lines:
            options: dict[str, Any] = {"color": line.colour, "marker": line.marker, "linestyle": line.style}
            if not line.is_strong:
                options |= {"linewidth": 1.0, "markersize": 3, "alpha": 0.75}
            axes.plot(line.x, line.y, label=printable(line.name), clip_on=False, **options)
            if line.low and line.high:
                axes.fill_between(line.x, line.low, line.high, color=line.colour, alpha=0.15, linewidth=0)
        if limit is not None:
            axes.axhline(limit, color=LIMIT, linestyle=(0, (5, 3)), linewidth=1.2, label=limit_name)
        if zero:
            axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if star:
            axes.scatter(*star, marker="*", s=110, color=SERIES[1], label="chosen", zorder=4, clip_on=False)
        if is_log:
            strengths_axis(axes, [value for line in lines for value in line.x])
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if is_percent:
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        if len(lines) > 1 or limit is not None:
            axes.legend(loc="best")

    names = ", ".join(line.name for line in lines)
    return chart(title, f"{y} over {x}: {names}", draw)


def strengths_axis(axes: Axes, strengths: Sequence[float]) -> None:
    """Strengths in equal ratios, labelled where they were tried; 0 is set apart."""
    values = sorted(set(strengths))
    smallest = min((abs(value) for value in values if value), default=1.0)
    axes.set_xscale("symlog", linthresh=smallest, linscale=0.6)
    span = math.log(max(abs(value) for value in values) / smallest) if any(values) else 0.0
    width_of_label = max(0.4, 0.09 * span)
    labelled: list[float] = []
    for value in values:  # labels that would run into each other are left out
        has_room = not labelled or value * labelled[-1] <= 0 or abs(math.log(value / labelled[-1])) > width_of_label
        if has_room:
            labelled.append(value)
    axes.set_xticks(labelled, [f"{value:g}" for value in labelled])
    axes.minorticks_off()
