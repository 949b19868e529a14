"""Why centring helps or hurts: where each aggregation of the shifts points, beside where the planted words point."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from grains_ref.demo.lab import Lab
from grains_ref.demo.rows import AGGREGATIONS
from grains_ref.grains import AggregationMethod, Fit, Shift, vectors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLE: dict[AggregationMethod, tuple[str, str]] = {
    "pca": ("centred PCA", "#b03a2e"),
    "uncentred": ("uncentred PCA", "#7d5ba6"),
    "mean": ("mean", "#222222"),
}
PLANTED_COLOUR = "#2e7d50"


@dataclass(frozen=True)
class Centring:
    """What the figure shows of one model, by the paper's setting."""

    shifts: tuple[Shift, ...]
    fits: dict[AggregationMethod, Fit]
    wanted: Fit  # the mean shifts of the planted words

    def cosines(self, aggregation: AggregationMethod, side: Literal["pos", "neg"]) -> np.ndarray:
        """Cosine of a fit with the wanted direction in every layer (L,); both are of unit length."""
        fitted, wanted = getattr(self.fits[aggregation], side), getattr(self.wanted, side)
        cosines: np.ndarray = (fitted.v * wanted.v).sum(1).numpy()
        return cosines


def centring(lab: Lab) -> Centring:
    """The shifts of a lab's steering examples, their aggregations, and the direction that is wanted."""
    return Centring(
        shifts=tuple(lab.shift(lab.paper, i) for i in range(len(lab.steer))),
        fits={aggregation: lab.fit(replace(lab.paper, aggregation=aggregation)) for aggregation in AGGREGATIONS},
        wanted=vectors(lab.planted_shifts(), replace(lab.paper, aggregation="mean")),
    )


def centring_figure(path: Path, *, world: str, k: int, centring: Centring) -> None:
    """The negative shifts of one layer, and how well each direction finds the planted one.

    Left: every example's delta_neg in the layer where the aggregations differ most, in the plane of the mean shift and
    the first centred component.  Right: per layer, the cosine of each aggregation with the mean shift of the planted
    words, the direction that is wanted.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    layer = int(np.argmax(np.abs(centring.cosines("mean", "neg") - centring.cosines("pca", "neg"))))
    figure = plt.figure(figsize=(11, 5), constrained_layout=True)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.1, 1))
    figure.suptitle(f"World '{world}', k = {k}: what each aggregation makes of the shifts", x=0.01, ha="left")
    _draw_plane(figure.add_subplot(grid[:, 0]), layer, centring)
    upper, lower = figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1])
    _draw_cosines(upper, "pos", centring)
    _draw_cosines(lower, "neg", centring)
    upper.set_title("Does it point where the planted words point?", fontsize=10)
    upper.legend(frameon=False, fontsize=8, ncols=3, loc="lower left")
    lower.set_xlabel("layer")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_cosines(axis: Axes, side: Literal["pos", "neg"], centring: Centring) -> None:
    """One bar for each layer and aggregation."""
    width = 0.26
    for i, (aggregation, (label, colour)) in enumerate(STYLE.items()):
        cosines = centring.cosines(aggregation, side)
        axis.bar(np.arange(len(cosines)) + (i - 1) * width, cosines, width, color=colour, label=label)
    axis.axhline(0, color="#888888", lw=0.8)
    axis.set(xticks=range(len(cosines)), ylim=(-1, 1), ylabel=f"cos(v_{side}, planted)")
    axis.spines[["top", "right"]].set_visible(False)


def _draw_plane(axis: Axes, layer: int, centring: Centring) -> None:
    """The negative shifts of one layer and the four directions, in the plane of the mean and the first component."""
    shifts = centring.shifts
    deltas = np.stack([s.delta_neg[layer].numpy() for s in shifts]).astype(np.float64)
    mean, component = (centring.fits[name].neg.v[layer].numpy() for name in ("mean", "pca"))
    across = component - (component @ mean) * mean
    plane = np.stack([mean, across / np.linalg.norm(across)])  # (2, d)
    points = deltas @ plane.T
    masked = np.array([len(s.a) - 1 in s.selection.neg for s in shifts])
    for keep, colour, marker, label in ((~masked, "#3b6ea5", "o", "kept"), (masked, "#d1803a", "^", "masked")):
        x, y = points[keep].T
        axis.scatter(x, y, s=26, color=colour, marker=marker, alpha=0.8, label=f"last prompt token {label}")
    reach = 0.9 * np.abs(points).max()
    arrows = [(label, colour, centring.fits[name].neg.v[layer]) for name, (label, colour) in STYLE.items()]
    arrows.append(("planted words", PLANTED_COLOUR, centring.wanted.neg.v[layer]))
    for label, colour, v in arrows:
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
