"""What people look at: coloured tokens, tables, and the figure that explains centring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from torch import Tensor

from grains_ref.grains import Encoded, Fit, Selection, Shift

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from grains_ref.demo.bench import SummaryRow

AGGREGATION_STYLE = {
    "pca": ("centred PCA", "#b03a2e"),
    "uncentred": ("uncentred PCA", "#7d5ba6"),
    "mean": ("mean", "#222222"),
}
POSITIVE, NEGATIVE = (46, 125, 80), (190, 60, 50)  # towards chosen, towards rejected


def coloured_tokens(
    tokens: Sequence[str], a: Tensor, selection: Selection, marks: Mapping[int, str], *, hidden: Set[int] = frozenset()
) -> Text:
    """A prompt whose tokens are coloured by score: green toward chosen, red toward rejected, stronger is deeper.

    Selected tokens are underlined; marks (token index -> word) are put behind their tokens in brackets; each run of
    hidden tokens is printed as three dots.
    """
    strongest = float(a.abs().max()) or 1.0
    text = Text()
    for j, token in enumerate(tokens):
        if j in hidden:
            text.append("" if j - 1 in hidden else "... ")
            continue
        score = float(a[j]) / strongest
        red, green, blue = (round(255 + (c - 255) * abs(score)) for c in (POSITIVE if score > 0 else NEGATIVE))
        style = f"{'rgb(255,255,255)' if abs(score) > 0.6 else 'rgb(20,20,20)'} on rgb({red},{green},{blue})"
        chosen = j in selection.pos or j in selection.neg
        text.append(token.strip() or repr(token)[1:-1], style=f"underline {style}" if chosen else style)
        if j in marks:
            text.append(f"[{marks[j]}]", style="bold")
        text.append(" ")
    return text


def named_tokens(encoded: Encoded) -> tuple[str, ...]:
    """Tokens for people: an image token is called by its place, "whole(3,5)" for row 3 and column 5 of that view."""
    patches = getattr(encoded, "patches", [None] * len(encoded.tokens))
    return tuple(
        f"{patch.view.replace(' ', '')}({patch.row},{patch.column})" if patch else token
        for token, patch in zip(encoded.tokens, patches, strict=True)
    )


def strongest_tokens(tokens: Sequence[str], a: Tensor, selection: Selection) -> str:
    """The selected tokens and their scores in words, so that nothing is said by colour alone."""

    def words(indices: Sequence[int]) -> str:
        return ", ".join(f"{tokens[j].strip() or repr(tokens[j])} {float(a[j]):+.2f}" for j in indices) or "none"

    return f"toward rejected: {words(selection.neg)}\ntoward chosen:   {words(selection.pos)}"


def demo_table(rows: Sequence[SummaryRow], *, title: str, rejected: str) -> Table:
    """The demo's main table, at most 80 columns wide; `rejected` is what the rejected answer is called here."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 0))
    table.add_column("", no_wrap=True)
    for name in ("accuracy", "gain [95 % interval]", rejected, "capability"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        gain, low, high = (100 * x for x in (row.gain.value, row.gain.low, row.gain.high))
        table.add_row(
            row.name,
            f"{100 * row.accuracy.value:.1f} %",
            "" if row.name == "unsteered" else f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]",
            f"{100 * row.rejected_rate:.1f} %",
            f"{100 * row.capability:.1f} %",
        )
    return table


def centring_figure(path: Path, *, world: str, fits: Mapping[str, Fit], shifts: Sequence[Shift]) -> None:
    """Why centring helps or hurts: the negative shifts of one layer, and how well each direction finds the planted one.

    Left: every example's delta_neg in the layer where the aggregations differ most, in the plane of the mean shift and
    the first centred component.  Right: per layer, the cosine of each aggregation with the mean shift of the planted
    words, the direction that is wanted.
    """
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    wanted = fits["planted_mean"].neg.v.numpy()
    cosines = (fits["mean"].neg.v.numpy() * wanted).sum(1) - (fits["pca"].neg.v.numpy() * wanted).sum(1)
    layer = int(np.argmax(np.abs(cosines)))
    figure = plt.figure(figsize=(11, 5), constrained_layout=True)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.1, 1))
    figure.suptitle(f"World '{world}', k = 3: what each aggregation makes of the shifts", x=0.01, ha="left")
    left = figure.add_subplot(grid[:, 0])
    _draw_plane(left, layer, fits, shifts)
    for row, side in enumerate(("pos", "neg")):
        axis = figure.add_subplot(grid[row, 1])
        target = getattr(fits["planted_mean"], side).v.numpy()
        for offset, (name, (label, colour)) in zip((-0.26, 0, 0.26), AGGREGATION_STYLE.items(), strict=True):
            cosine = (getattr(fits[name], side).v.numpy() * target).sum(1)
            axis.bar(np.arange(len(target)) + offset, cosine, 0.26, color=colour, label=label)
        axis.axhline(0, color="#888888", lw=0.8)
        axis.set(xticks=range(len(target)), ylim=(-1, 1), ylabel=f"cos(v_{side}, planted)")
        axis.spines[["top", "right"]].set_visible(False)
        if row == 0:
            axis.set_title("Does it point where the planted words point?", fontsize=10)
            axis.legend(frameon=False, fontsize=8, ncols=3, loc="lower left")
        else:
            axis.set_xlabel("layer")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_plane(axis: Axes, layer: int, fits: Mapping[str, Fit], shifts: Sequence[Shift]) -> None:
    """The negative shifts of one layer and the four directions, in the plane of the mean and the first component."""
    deltas = np.stack([s.delta_neg[layer].numpy() for s in shifts]).astype(np.float64)
    mean, component = (fits[name].neg.v[layer].numpy() for name in ("mean", "pca"))
    across = component - (component @ mean) * mean
    plane = np.stack([mean, across / np.linalg.norm(across)])  # (2, d)
    points = deltas @ plane.T
    masked = np.array([len(s.a) - 1 in s.selection.neg for s in shifts])
    for keep, colour, marker, label in ((~masked, "#3b6ea5", "o", "kept"), (masked, "#d1803a", "^", "masked")):
        x, y = points[keep].T
        axis.scatter(x, y, s=26, color=colour, marker=marker, alpha=0.8, label=f"last prompt token {label}")
    reach = 0.9 * np.abs(points).max()
    arrows = {name: (label, colour, fits[name].neg.v[layer]) for name, (label, colour) in AGGREGATION_STYLE.items()}
    arrows["planted"] = ("planted words", "#2e7d50", fits["planted_mean"].neg.v[layer])
    for label, colour, v in arrows.values():
        x, y = reach * (plane @ v.numpy())
        axis.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2})
        above = "bottom" if y >= 0 else "top"
        axis.annotate(label, (1.05 * x, 1.05 * y), color=colour, fontsize=8, ha="center", va=above)
    limit = 1.25 * max(reach, np.abs(points).max())
    axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    axis.set(xlabel="along the mean shift", ylabel="along the first component, less the mean")
    axis.set_title(f"delta_neg of each example, layer {layer}", fontsize=10)
    axis.axhline(0, color="#bbbbbb", lw=0.8, zorder=0)
    axis.axvline(0, color="#bbbbbb", lw=0.8, zorder=0)
    axis.legend(frameon=False, fontsize=8, loc="lower left")
    axis.spines[["top", "right"]].set_visible(False)
