"""How strong to steer and what it costs: a sweep's curves, gain against capability, rates with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from markupsafe import Markup
from matplotlib.axes import Axes
from scipy.stats import binomtest

from grains_ref.evaluation.metrics import McNemar, Rate
from grains_ref.files import printable
from grains_ref.report.charts import LIMIT, MARKERS, MUTED, SERIES, SIZE, Line, chart, lines_chart, strengths_axis
from grains_ref.report.page import Section

STYLES: tuple[Any, ...] = ("-", "--", ":", "-.")
MOST_LINES = 12  # of a chart; further settings are in the table only


@dataclass(frozen=True)
class Strength:
    """One setting of a sweep: its name beside its strength, its accuracy on dev, and its cost where that was asked.

    task_accuracy: None where it was not asked; `is_at_most`: the count stopped at the limit, so that it is no more.
    """

    setting: str
    lam: float
    accuracy: float
    task_accuracy: float | None = None
    is_at_most: bool = False
    is_chosen: bool = False


@dataclass(frozen=True)
class Strengths(Section):
    """What a sweep tried.

    n_dev, n_tasks: numbers of dev pairs and tasks; 0 where they are not known, or there were none.
    unsteered_tasks: the unsteered model's accuracy on the tasks.  max_loss: how many points of it may be lost.
    limit_words: how the choice was limited, where the figures for it are not there.
    """

    tried: Sequence[Strength]
    n_dev: int = 0
    n_tasks: int = 0
    unsteered_tasks: float | None = None
    max_loss: float | None = None
    limit_words: str = ""
    title: str = "Strengths"

    template: ClassVar[str] = "strengths.html"

    @property
    def limit(self) -> float | None:
        """The least task accuracy that an admissible setting has."""
        if self.unsteered_tasks is None or self.max_loss is None:
            return None
        return self.unsteered_tasks - self.max_loss / 100

    def context(self) -> dict[str, Any]:
        """See `Section`."""
        chosen = next((tried for tried in self.tried if tried.is_chosen), None)
        charts = [self._curves()]
        asked = [tried for tried in self.tried if tried.task_accuracy is not None]
        if self.limit is not None and asked:
            charts += [self._tasks(asked), self._gain_against_capability(asked)]
        return {
            "chosen": chosen,
            "unsteered": next((tried for tried in self.tried if tried.lam == 0), None),
            "charts": charts,
            "rows": self.tried,
            "n_dev": self.n_dev,
            "n_tasks": self.n_tasks,
            "limit": self.limit,
            "limit_words": self.limit_words,
            "max_loss": self.max_loss,
            "unsteered_tasks": self.unsteered_tasks,
            "has_tasks": bool(asked),
            "interval": self.interval,
        }

    def interval(self, share: float, n: int) -> tuple[float, float] | None:
        """The Wilson interval of a share of n; None where n is not known."""
        if not n:
            return None
        interval = binomtest(round(share * n), n).proportion_ci(method="wilson")
        return float(interval.low), float(interval.high)

    def _settings(self) -> list[str]:
        names = list(dict.fromkeys(tried.setting for tried in self.tried if tried.lam))
        chosen = [tried.setting for tried in self.tried if tried.is_chosen and tried.lam]
        names.sort(key=lambda name: name not in chosen)  # the chosen one first
        return names[:MOST_LINES]

    def _curves(self) -> Markup:
        unsteered = [tried for tried in self.tried if tried.lam == 0]
        lines = []
        for i, name in enumerate(self._settings()):
            points = [*unsteered[:1], *(tried for tried in self.tried if tried.setting == name and tried.lam)]
            points.sort(key=lambda tried: tried.lam)
            intervals = [self.interval(tried.accuracy, self.n_dev) for tried in points] if i == 0 else []
            lines.append(
                Line(
                    name=name,
                    x=[tried.lam for tried in points],
                    y=[tried.accuracy for tried in points],
                    colour=SERIES[i % len(SERIES)],
                    marker=MARKERS[i % len(MARKERS)],
                    style=STYLES[i // len(SERIES) % len(STYLES)] if i >= len(SERIES) else "-",
                    low=[interval[0] for interval in intervals if interval],
                    high=[interval[1] for interval in intervals if interval],
                    is_strong=i == 0,
                )
            )
        stars = [(tried.lam, tried.accuracy) for tried in self.tried if tried.is_chosen]
        return lines_chart(
            "Accuracy by strength",
            lines,
            x="lam",
            y="accuracy on dev",
            is_percent=True,
            is_log=True,
            star=stars[0] if stars else None,
        )

    def _tasks(self, asked: Sequence[Strength]) -> Markup:
        """Task accuracy of what was asked, over the strength; open marks are upper bounds."""

        def draw(axes: Axes) -> None:
            for tried in asked:
                assert tried.task_accuracy is not None
                _mark(axes, tried.lam, tried.task_accuracy, tried)
            self._draw_limit(axes, is_vertical=False)
            axes.set_xlabel("lam")
            axes.set_ylabel("tasks answered rightly")
            axes.yaxis.set_major_formatter(_share)
            strengths_axis(axes, [tried.lam for tried in self.tried])
            axes.margins(0.1, 0.2)
            axes.legend(loc="best")

        return chart("Capability by strength", f"{len(asked)} settings that were asked, and the limit", draw)

    def _gain_against_capability(self, asked: Sequence[Strength]) -> Markup:
        def draw(axes: Axes) -> None:
            for tried in asked:
                assert tried.task_accuracy is not None
                _mark(axes, tried.task_accuracy, tried.accuracy, tried)
            self._draw_limit(axes, is_vertical=True)
            axes.set_xlabel("tasks answered rightly")
            axes.set_ylabel("accuracy on dev")
            axes.xaxis.set_major_formatter(_share)
            axes.yaxis.set_major_formatter(_share)
            axes.margins(0.2, 0.15)
            axes.legend(loc="best")

        return chart("Gain against capability", "What each setting gains, and what it costs", draw)

    def _draw_limit(self, axes: Axes, *, is_vertical: bool) -> None:
        assert self.limit is not None
        draw = axes.axvline if is_vertical else axes.axhline
        draw(self.limit, color=LIMIT, linestyle=(0, (5, 3)), linewidth=1.2, label=f"limit: {100 * self.limit:.1f} %")


def _share(value: float, _: float) -> str:
    return f"{100 * value:.1f} %"


def _mark(axes: Axes, x: float, y: float, tried: Strength) -> None:
    """A full dot, a star for what was chosen, an open triangle for an upper bound."""
    colour = SERIES[1] if tried.is_chosen else SERIES[0]
    options: dict[str, Any] = {"color": colour, "marker": "o", "s": 26}
    if tried.is_at_most:
        options = {"edgecolors": colour, "facecolors": "none", "marker": "v", "s": 26}
    if tried.is_chosen:
        options |= {"marker": "*", "s": 110, "label": "chosen"}
    axes.scatter([x], [y], zorder=3, clip_on=False, **options)


# ------------------------------------------------------------------------------------------- rates
@dataclass(frozen=True)
class Measure:
    """A rate without and with steering, and whether the difference could be chance."""

    name: str
    unsteered: Rate
    steered: Rate | None = None
    change: McNemar | None = None


@dataclass(frozen=True)
class Rates(Section):
    """What an evaluation measured, with 95 % intervals."""

    measures: Sequence[Measure]
    how: str = ""
    title: str = "Rates"

    template: ClassVar[str] = "rates.html"

    def context(self) -> dict[str, Any]:
        """See `Section`."""
        return {"rows": self.measures, "how": self.how, "chart": self._chart()}

    def _chart(self) -> Markup:
        def draw(axes: Axes) -> None:
            for i, measure in enumerate(self.measures):
                ways = [("unsteered", measure.unsteered, MUTED, "o", -0.12)]
                if measure.steered:
                    ways.append(("steered", measure.steered, SERIES[0], "s", 0.12))
                for name, rate, colour, marker, shift in ways:
                    error = [[rate.value - rate.low], [rate.high - rate.value]]
                    label = name if i == 0 else None
                    options: dict[str, Any] = {"color": colour, "marker": marker, "capsize": 3, "label": label}
                    axes.errorbar([rate.value], [i + shift], xerr=error, linestyle="", clip_on=False, **options)
            axes.set_yticks(range(len(self.measures)), [printable(measure.name) for measure in self.measures])
            axes.set_ylim(len(self.measures) - 0.5, -0.5)
            axes.set_xlim(0, 1)
            axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
            axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.14), ncols=2)

        words = ", ".join(f"{measure.name} {measure.unsteered}" for measure in self.measures)
        return chart("With 95 % intervals", words, draw, size=(SIZE[0], 1.5 + 0.5 * len(self.measures)))


# ------------------------------------------------------------------------------------------- methods side by side
@dataclass(frozen=True)
class Method:
    """A row of a comparison: what it gains over the unsteered model, and what that costs.

    rejected: how often the rejected answer is given.  capability, loss: shares.
    """

    name: str
    accuracy: Rate
    gain: Rate
    rejected: float
    capability: float
    loss: float
    chosen: str = ""


@dataclass(frozen=True)
class Comparison(Section):
    """Methods side by side on the same questions; the first is the unsteered model.

    max_loss: how many points of dev capability a setting may cost.
    """

    methods: Sequence[Method]
    max_loss: float
    rejected: str = "gives the rejected answer"
    how: str = ""
    title: str = "Methods"

    template: ClassVar[str] = "comparison.html"

    def context(self) -> dict[str, Any]:
        """See `Section`."""
        return {
            "rows": self.methods,
            "rejected": self.rejected,
            "how": self.how,
            "max_loss": self.max_loss,
            "charts": [self._gains(), self._costs()],
        }

    def _gains(self) -> Markup:
        ranked = self.methods[1:]

        def draw(axes: Axes) -> None:
            for i, method in enumerate(ranked):
                gain = method.gain
                error = [[100 * (gain.value - gain.low)], [100 * (gain.high - gain.value)]]
                axes.errorbar([100 * gain.value], [i], xerr=error, fmt="o", color=SERIES[0], capsize=3)
            axes.axvline(0, color=MUTED, linewidth=0.8)
            axes.set_yticks(range(len(ranked)), [printable(method.name) for method in ranked])
            axes.set_ylim(len(ranked) - 0.5, -0.5)
            axes.set_xlabel("points of accuracy over the unsteered model")

        words = ", ".join(f"{method.name} {100 * method.gain.value:+.1f}" for method in ranked)
        return chart("Gain, with 95 % intervals", words, draw, size=(SIZE[0], 1.2 + 0.26 * len(ranked)))

    def _costs(self) -> Markup:
        """Gain over the loss of capability on test; the limit held on dev."""

        def draw(axes: Axes) -> None:
            for i, method in enumerate(self.methods[1:]):
                axes.scatter(
                    [100 * method.loss],
                    [100 * method.gain.value],
                    color=SERIES[i % len(SERIES)],
                    marker=MARKERS[i // len(SERIES) % len(MARKERS)],
                    s=28,
                    label=printable(method.name),
                    zorder=3,
                )
            name = f"limit on dev: {self.max_loss:g} points"
            axes.axvline(self.max_loss, color=LIMIT, linestyle=(0, (5, 3)), linewidth=1.2, label=name)
            axes.set_xlabel("points of capability lost on test")
            axes.set_ylabel("points gained")
            axes.margins(0.12, 0.15)
            axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.2), ncols=2)

        size = (SIZE[0], SIZE[1] + 0.1 * len(self.methods))
        return chart("Gain against capability", "What each method gains, and what it costs", draw, size=size)
