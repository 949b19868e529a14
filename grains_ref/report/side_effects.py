"""What steering moved that nobody asked for: one figure and one table, in a report or as files of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grains_ref.evaluation.metrics import Rate
from grains_ref.files import printable, write_whole
from grains_ref.report.charts import MUTED, NEGATIVE, POSITIVE, Palette, figure_chart, figure_file
from grains_ref.report.page import Section

if TYPE_CHECKING:
    from grains_ref.evaluation.side_effect_measures import SideEffect, SideEffects

TITLE = "What moved that nobody asked for"
UNITS = {"share": "change in points, 95 %", "perplexity": "change in nats per token, 95 %"}
LOOKS = {  # of a verdict: colour, marker, filled or not
    "worse": (NEGATIVE, "v", True),
    "better": (POSITIVE, "^", True),
    "cannot tell": (MUTED, "o", False),
}
LONGEST_NAME = 36  # letters
WIDTH, ROW_HEIGHT, PANEL_HEIGHT = 4.7, 0.36, 0.62  # inches


@dataclass(frozen=True)
class SideEffectsTable(Section):
    """All measures of a steering on sets that it was not made for."""

    measured: SideEffects
    how: str = ""
    title: str = TITLE

    template: ClassVar[str] = "side_effects.html"

    def context(self) -> Mapping[str, Any]:
        """See `Section`."""
        return {
            "chart": self._chart(),
            "rows": self.measured.effects,
            "notes": self.measured.notes,
            "how": self.how,
            "refusals": self.measured.refusals if self._has_refusals() else "",
            "value": value_of,
            "change": change_of,
            "interval": interval_of,
            "n_worse": len([effect for effect in self.measured.effects if effect.verdict == "worse"]),
        }

    def _has_refusals(self) -> bool:
        return any("refused" in effect.measure for effect in self.measured.effects)

    def _chart(self) -> Markup:
        words = "; ".join(f"{effect.name} {change_of(effect)}, {effect.verdict}" for effect in self.measured.effects)
        return figure_chart("Side effects", words, self.draw, size=self.size)

    @property
    def size(self) -> tuple[float, float]:
        """Of the figure, in inches."""
        n_panels = len({effect.unit for effect in self.measured.effects})
        return WIDTH, ROW_HEIGHT * len(self.measured.effects) + PANEL_HEIGHT * n_panels + 0.35

    def draw(self, figure: Figure, palette: Palette) -> None:
        """A panel for each unit, a row for each measure: the change with its interval, and what it is a change of."""
        panels = {unit: [effect for effect in self.measured.effects if effect.unit == unit] for unit in UNITS}
        panels = {unit: effects for unit, effects in panels.items() if effects}
        heights = [len(effects) + PANEL_HEIGHT / ROW_HEIGHT for effects in panels.values()]
        all_axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
        for axes, (unit, effects) in zip(all_axes, panels.items(), strict=True):
            _draw_panel(axes, effects, palette, unit)
        handles = []
        for verdict, (colour, marker, is_full) in LOOKS.items():
            face = palette[colour] if is_full else "none"
            options: dict[str, Any] = {"color": palette[colour], "marker": marker, "markerfacecolor": face}
            handles += all_axes[0].plot([], [], linestyle="", label=verdict, **options)
        figure.legend(handles=handles, loc="outside lower center", ncols=3)

    def write_figure(self, path: Path) -> None:
        """Write the figure as .svg or .png, by the name's ending.

        Raises:
            ValueError: another ending.
            FileError: the file cannot be written there.
        """
        write_whole(path, figure_file(self.draw, size=self.size, kind=figure_kind(path)))


def figure_kind(path: Path) -> Literal["svg", "png"]:
    """What a file's name says of its format.

    Raises:
        ValueError: neither .svg nor .png.
    """
    if path.suffix.lower() == ".svg":
        return "svg"
    if path.suffix.lower() == ".png":
        return "png"
    raise ValueError(f"{path} would be a picture; name a file that ends in .svg or .png")


def _draw_panel(axes: Axes, effects: Sequence[SideEffect], palette: Palette, unit: str) -> None:
    factor = 100 if unit == "share" else 1
    for i, effect in enumerate(effects):
        colour, marker, is_full = LOOKS[effect.verdict]
        low, value, high = (factor * number for number in (effect.change.low, effect.change.value, effect.change.high))
        face = palette[colour] if is_full else "none"
        options: dict[str, Any] = {"color": palette[colour], "linewidth": 1.6, "solid_capstyle": "butt"}
        axes.plot([low, high], [i, i], **options)
        axes.plot([value], [i], marker=marker, markersize=5.5, markerfacecolor=face, color=palette[colour])
    axes.axvline(0, color=palette[MUTED], linewidth=0.8)
    labels = []
    for effect in effects:
        values = f"{value_of(effect, 'unsteered')} \u2192 {value_of(effect, 'steered')}"
        labels.append(f"{_short(effect.measure)}\n{_short(effect.data)}: {values}")
    axes.set_yticks(range(len(effects)), labels, fontsize=7)
    axes.set_ylim(len(effects) - 0.4, -0.6)
    axes.set_xlabel(UNITS[unit])
    axes.tick_params(axis="x", labelsize=7.5)
    axes.locator_params(axis="x", nbins=5)
    axes.margins(x=0.08)


def _short(name: str) -> str:
    """A name that leaves room for the figure."""
    words = printable(name)
    return words if len(words) <= LONGEST_NAME else f"{words[: LONGEST_NAME - 1]}\u2026"


# ------------------------------------------------------------------------------------------- words
def value_of(effect: SideEffect, way: str) -> str:
    """The figure without or with steering."""
    value: Rate = getattr(effect, way)
    return f"{100 * value.value:.1f} %" if effect.unit == "share" else f"{value.value:.4g}"


def interval_of(effect: SideEffect, way: str) -> str:
    """Its interval."""
    value: Rate = getattr(effect, way)
    if effect.unit == "share":
        return f"{100 * value.low:.1f} to {100 * value.high:.1f}"
    return f"{value.low:.4g} to {value.high:.4g}"


def change_of(effect: SideEffect) -> str:
    """The change with its interval: points of a share, nats per token of a perplexity."""
    factor, digits, unit = (100, 1, "points") if effect.unit == "share" else (1, 3, "nats per token")
    value, low, high = (factor * number for number in (effect.change.value, effect.change.low, effect.change.high))
    return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}] {unit}".replace("-", "\u2212")
