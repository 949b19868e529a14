"""What people look at: coloured tokens, tables, and the figure that explains centring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table
from rich.text import Text
from torch import Tensor

from grains_ref.grains import Fit, Selection, Shift

if TYPE_CHECKING:
    from grains_ref.demo import SummaryRow

POSITIVE, NEGATIVE = (46, 125, 80), (190, 60, 50)  # towards chosen, towards rejected


def coloured_tokens(tokens: Sequence[str], a: Tensor, selection: Selection, marks: Mapping[int, str]) -> Text:
    """A prompt whose tokens are coloured by score: green toward chosen, red toward rejected, stronger is deeper.

    Selected tokens are underlined; marks (token index -> word) are put behind their tokens in brackets.
    """
    strongest = float(a.abs().max()) or 1.0
    text = Text()
    for j, token in enumerate(tokens):
        score = float(a[j]) / strongest
        red, green, blue = (round(255 + (c - 255) * abs(score)) for c in (POSITIVE if score > 0 else NEGATIVE))
        style = f"rgb(20,20,20) on rgb({red},{green},{blue})"
        chosen = j in selection.pos or j in selection.neg
        text.append(token.strip() or repr(token)[1:-1], style=f"underline {style}" if chosen else style)
        if j in marks:
            text.append(f"[{marks[j]}]", style="bold")
        text.append(" ")
    return text


def strongest_tokens(tokens: Sequence[str], a: Tensor, selection: Selection) -> str:
    """The selected tokens and their scores in words, so that nothing is said by colour alone."""

    def words(indices: Sequence[int]) -> str:
        return ", ".join(f"{tokens[j].strip() or tokens[j]!r} {float(a[j]):+.2f}" for j in indices) or "none"

    return f"toward rejected: {words(selection.neg)}    toward chosen: {words(selection.pos)}"


def demo_table(rows: Sequence[SummaryRow], *, title: str) -> Table:
    """The demo's main table."""
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("test accuracy", justify="right", no_wrap=True)
    table.add_column("gain [95 % interval]", justify="right", no_wrap=True)
    for name in ("says the myth", "capability"):
        table.add_column(name, justify="right")
    table.add_column("chosen on dev")
    for row in rows:
        gain, low, high = (100 * x for x in (row.gain.value, row.gain.low, row.gain.high))
        table.add_row(
            row.name,
            f"{100 * row.accuracy.value:.1f} %",
            "" if row.name == "unsteered" else f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]",
            f"{100 * row.myth_rate:.1f} %",
            f"{100 * row.capability:.1f} %",
            row.chosen,
        )
    return table


def centring_figure(path: Path, *, world: str, fits: Mapping[str, Fit], shifts: Sequence[Shift]) -> None:
    """Why centring helps or hurts: the negative shifts of one layer, and how well each direction finds the planted one.

    Left: every example's delta_neg of the layer where the aggregations differ most, drawn along the mean shift and
    along the first centred component.  Right: per layer, the cosine of each aggregation with the mean shift of the
    planted tokens, the direction that is wanted.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    wanted = fits["planted_mean"].neg.v.numpy()
    names = {"pca": "centred PCA (the paper's)", "uncentred": "uncentred PCA", "mean": "mean"}
    cosines = {name: (fits[name].neg.v.numpy() * wanted).sum(1) for name in names}
    layer = int(np.argmax(np.abs(cosines["mean"] - cosines["pca"])))
    deltas = np.stack([s.delta_neg[layer].numpy() for s in shifts]).astype(np.float64)
    mean_axis = fits["mean"].neg.v[layer].numpy()
    component = fits["pca"].neg.v[layer].numpy()
    other_axis = component - (component @ mean_axis) * mean_axis
    other_axis /= np.linalg.norm(other_axis)

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), constrained_layout=True)
    figure.suptitle(f"World '{world}': what centring does to the negative shifts", x=0.01, ha="left", fontsize=12)
    x, y = deltas @ mean_axis, deltas @ other_axis
    with_last = np.array([len(s.a) - 1 in s.selection.neg for s in shifts])
    left.scatter(x[~with_last], y[~with_last], s=22, color="#3b6ea5", label="last prompt token kept")
    if with_last.any():
        left.scatter(x[with_last], y[with_last], s=28, color="#d1803a", marker="^", label="last prompt token masked")
    reach = 0.8 * max(np.abs(x).max(), np.abs(y).max())
    for name, colour in (("pca", "#b03a2e"), ("uncentred", "#7d5ba6"), ("mean", "#222222"), ("wanted", "#2e7d50")):
        v = wanted[layer] if name == "wanted" else fits[name].neg.v[layer].numpy()
        tip = reach * np.array([v @ mean_axis, v @ other_axis])
        left.annotate("", xy=tuple(tip), xytext=(0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2})
        label = {"wanted": "planted"}.get(name, name)
        left.annotate(label, xy=tuple(tip * 1.06), color=colour, fontsize=9, ha="center", va="center")
    left.axhline(0, color="#bbbbbb", lw=0.8, zorder=0)
    left.axvline(0, color="#bbbbbb", lw=0.8, zorder=0)
    left.set(xlabel="along the mean shift", ylabel="across it, in the plane of component 1", title=f"layer {layer}")
    left.legend(frameon=False, fontsize=8)
    width = 0.26
    for offset, (name, label) in zip((-width, 0, width), names.items(), strict=True):
        colour = {"pca": "#b03a2e", "uncentred": "#7d5ba6", "mean": "#222222"}[name]
        right.bar(np.arange(len(wanted)) + offset, cosines[name], width, color=colour, label=label)
    right.axhline(0, color="#888888", lw=0.8)
    right.set(
        xticks=range(len(wanted)),
        xlabel="layer",
        ylabel="cosine with the planted direction",
        ylim=(-1, 1),
        title="does v_neg point where the planted words point?",
    )
    right.legend(frameon=False, fontsize=8, loc="lower left")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
