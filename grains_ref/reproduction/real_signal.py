"""Does the signal line foretell what steering does?  Of the finished cells of the real rung.

A point is a row on one behaviour and split whose cell holds its signal (`demo.real.signals.SIGNALS`).  Two questions:

1. Slope: predicted change of f (slope * lam) beside the measured one, which is that of the mean margin on dev, at the
   strength of the row's ladder whose edit is nearest to `SHARE` of the state's length.
2. Warnings, by what docs/real.md said beforehand (H7): the line *warns* if its verdict is "none" or "away".  A warning
   is right if the cell gains nothing on test, that is, if its gain's 95 % interval (rule 7) does not lie above zero; a
   silence is right if it does.  Where no strength was better on dev than none, nothing is gained.

What cells do not hold: margins of single dev pairs, so that the planted worlds' "moves f" (1.96 standard errors on dev)
cannot be asked; and the signal of rows whose edit the line does not know (CAA, ICV, ITI, RepE, VJP-delta, BiPO, LoRA).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grains_ref.demo.real.verdict import gains
from grains_ref.evaluation.metrics import Rate
from grains_ref.reproduction.kept import Cell
from grains_ref.reproduction.real import seen_of

SHARE = 0.01  # length of the edit beside the state's, root mean square over blocks
LINEAR = 1.0  # nats up to which the figure's axes are linear; logarithmic beyond
COLOURS = {"lie": "tab:blue", "prose": "tab:orange", "caution": "tab:green"}


@dataclass(frozen=True)
class Point:
    """What the line said of one cell, and what came out; nats, and shares."""

    behaviour: str
    split: int
    row: str
    verdict: str
    lam: float
    share: float
    predicted: float
    low: float
    high: float
    measured: float
    gain: Rate

    @property
    def warns(self) -> bool:
        """Whether the line speaks against the vectors."""
        return self.verdict in ("none", "away")

    @property
    def gains(self) -> bool:
        """Whether the gain on test is shown."""
        return self.gain.low > 0


def points(
    cells: Mapping[tuple[str, int, str], Cell], subjects: Mapping[tuple[str, int], Sequence[str]]
) -> list[Point]:
    """Of every finished cell with a signal whose unsteered cell is finished, too."""
    made = []
    for (behaviour, split, row), cell in cells.items():
        base = cells.get((behaviour, split, "unsteered"))
        if base is None or "error" in cell or "signal" not in cell["draws"][0]:
            continue
        (draw,) = cell["draws"]
        figures = draw["signal"]
        unsteered, *steered = draw["rungs"]
        nearest = min(steered, key=lambda rung: abs(math.log(rung[1] * figures["length"] / SHARE)), default=None)
        if nearest is None:
            continue
        lam = nearest[1]
        slope, low, high = figures["slope"]
        gain = gains([seen_of(cell)], [seen_of(base)], [subjects[behaviour, split]]).gain
        made.append(
            Point(
                behaviour=behaviour,
                split=split,
                row=row,
                verdict=figures["verdict"],
                lam=lam,
                share=lam * figures["length"],
                predicted=slope * lam,
                low=low * lam,
                high=high * lam,
                measured=nearest[3] - unsteered[3],
                gain=gain,
            )
        )
    return made


def text_of(made: Sequence[Point]) -> str:
    """Correlation and shares in words, and a table of all points; empty where there is none."""
    if not made:
        return ""
    warned = [point for point in made if point.warns]
    silent = [point for point in made if not point.warns]
    directed = [point for point in made if point.verdict in ("toward", "away")]
    along = [point for point in directed if (point.measured > 0) == (point.verdict == "toward")]
    rightly_warned = [point for point in warned if not point.gains]
    rightly_silent = [point for point in silent if point.gains]
    no_gradients = [point for point in made if not point.row.startswith("edit gradient")]
    lines = [
        f"#### The signal line, over {len(made)} cells",
        "",
        f"- Correlation of predicted and measured change of f on dev: {_correlation(made)}; without edit "
        f"gradients {_correlation(no_gradients)}; by behaviour: "
        + "; ".join(f"{name} {_correlation(of)}" for name, of in _by_behaviour(made).items())
        + ".",
        f"- A direction that is said (toward, away) is that of f on dev in {len(along)} of {len(directed)} cells.",
        f"- Warned in {len(warned)} cells, rightly in {_of(len(rightly_warned), len(warned))}; "
        f"silent in {len(silent)}, rightly in {_of(len(rightly_silent), len(silent))}. All together: "
        f"right in {_of(len(rightly_warned) + len(rightly_silent), len(made))}.",
        "",
        "| behaviour | split | row | says | lam | of the state | predicted | on dev | gain, points |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for point in made:
        gain = point.gain
        cells_of_line = [
            point.behaviour,
            f"{point.split}",
            point.row,
            point.verdict,
            f"{point.lam:g}",
            f"{100 * point.share:.2g} %",
            f"{point.predicted:+.2f} [{point.low:+.2f}, {point.high:+.2f}]",
            f"{point.measured:+.2f}",
            f"{100 * gain.value:+.0f} [{100 * gain.low:+.0f}, {100 * gain.high:+.0f}]",
        ]
        lines.append(f"| {' | '.join(cells_of_line)} |")
    return "\n".join(lines)


def correlation(made: Sequence[Point]) -> float:
    """Pearson's, of predicted and measured change; NaN of fewer than three points, or where one of them is constant."""
    predicted = [point.predicted for point in made]
    measured = [point.measured for point in made]
    if len(made) < 3 or len(set(predicted)) < 2 or len(set(measured)) < 2:
        return math.nan
    return float(np.corrcoef(predicted, measured)[0, 1])


def draw(made: Sequence[Point], path: Path) -> None:
    """Predicted against measured change of f; filled points are those that gain on test."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if not made:
        return
    figure, axis = plt.subplots(figsize=(5.4, 4.6))
    for name, of_behaviour in _by_behaviour(made).items():
        for point in of_behaviour:
            errors = [[point.predicted - point.low], [point.high - point.predicted]]
            axis.errorbar(
                point.predicted,
                point.measured,
                xerr=errors,
                fmt="o" if point.warns else "^",
                color=COLOURS.get(name, "tab:gray"),
                fillstyle="full" if point.gains else "none",
                lw=1,
            )
        axis.plot([], [], "o", color=COLOURS.get(name, "tab:gray"), label=name)
    ends = [end for point in made for end in (point.low, point.high, point.measured)]
    as_predicted = np.linspace(min(ends), max(ends), 1000)
    axis.plot(as_predicted, as_predicted, color="black", lw=0.7)
    axis.set_xscale("symlog", linthresh=LINEAR)  # edit gradients move f a hundred times as far as shifts
    axis.set_yscale("symlog", linthresh=LINEAR)
    axis.axhline(0, color="#888888", lw=0.5)
    axis.axvline(0, color="#888888", lw=0.5)
    axis.set_xlabel("predicted change of f, nats")
    axis.set_ylabel("measured on dev, nats")
    axis.set_title("Filled: gains on test. Triangle: the line did not warn.", fontsize=9)
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def _by_behaviour(made: Sequence[Point]) -> dict[str, list[Point]]:
    names = dict.fromkeys(point.behaviour for point in made)
    return {name: [point for point in made if point.behaviour == name] for name in names}


def _correlation(made: Sequence[Point]) -> str:
    value = correlation(made)
    return "not known" if math.isnan(value) else f"{value:.2f}"


def _of(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.0f} %)" if whole else "0 of 0"
