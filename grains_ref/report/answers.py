"""What steering changed: base beside steered answers with their differences marked, and margins before and after."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, ClassVar, NamedTuple

from markupsafe import Markup
from matplotlib.axes import Axes

from grains_ref.report.charts import INK, MUTED, NEGATIVE, POSITIVE, chart
from grains_ref.report.page import Section, nats

MOST_ROWS = 200  # of a table in a report; what is beyond is counted
LONGEST_COMPARED = 2000  # words of two answers that are compared; longer ones stand side by side without marks
_WORD = re.compile(r"\s+|\w+|[^\w\s]")


@dataclass(frozen=True)
class Answer:
    """A prompt, what the plain model answers and what the steered one does.

    chosen, rejected: the pair's answers, where there is a pair.
    """

    prompt: str
    base: str
    steered: str
    chosen: str = ""
    rejected: str = ""


class Piece(NamedTuple):
    """A run of an answer, and whether the other answer has it too."""

    text: str
    is_changed: bool


def differences(base: str, steered: str) -> tuple[list[Piece], list[Piece]]:
    """Both answers in runs of words that the other has, and has not."""
    a, b = _WORD.findall(base), _WORD.findall(steered)
    if max(len(a), len(b)) > LONGEST_COMPARED:
        return [Piece(base, False)], [Piece(steered, False)]
    left, right = list[Piece](), list[Piece]()
    for operation, a0, a1, b0, b1 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        is_changed = operation != "equal"
        if a1 > a0:
            left.append(Piece("".join(a[a0:a1]), is_changed))
        if b1 > b0:
            right.append(Piece("".join(b[b0:b1]), is_changed))
    return left, right


class Compared(NamedTuple):
    """A row of the section."""

    prompt: str
    base: list[Piece]
    steered: list[Piece]
    base_is: str  # "chosen", "rejected" or ""
    steered_is: str
    is_same: bool


@dataclass(frozen=True)
class Answers(Section):
    """Greedy answers of the plain and of the steered model.

    how: how the model was steered, in words.
    """

    answers: Sequence[Answer]
    how: str = ""
    title: str = "Answers"

    template: ClassVar[str] = "answers.html"

    def context(self) -> dict[str, Any]:
        """See `Section`."""
        rows = [_compared(answer) for answer in self.answers[:MOST_ROWS]]
        return {
            "rows": rows,
            "how": self.how,
            "n": len(self.answers),
            "n_changed": sum(answer.base != answer.steered for answer in self.answers),
            "left_out": len(self.answers) - len(rows),
        }


def _compared(answer: Answer) -> Compared:
    base, steered = differences(answer.base, answer.steered)
    kinds = [_kind(text, answer) for text in (answer.base, answer.steered)]
    return Compared(answer.prompt, base, steered, kinds[0], kinds[1], answer.base == answer.steered)


def _kind(text: str, answer: Answer) -> str:
    """Which of the pair's answers a text is, or begins with, word for word."""
    words = text.split()
    for name, known in (("chosen", answer.chosen.split()), ("rejected", answer.rejected.split())):
        if known and words[: len(known)] == known:
            return name
    return ""


# ------------------------------------------------------------------------------------------- margins
@dataclass(frozen=True)
class Margin:
    """log P(chosen) - log P(rejected) of one pair in nats, before and after."""

    name: str
    before: float
    after: float

    @property
    def change(self) -> float:
        """after - before, in nats."""
        return self.after - self.before


@dataclass(frozen=True)
class Margins(Section):
    """The margins of held-out pairs without and with steering."""

    margins: Sequence[Margin]
    how: str = ""
    title: str = "Margins"

    template: ClassVar[str] = "margins.html"

    def __post_init__(self) -> None:
        if not self.margins:
            raise ValueError("no margins to show; give one for each pair")
        if not all(math.isfinite(margin.before) and math.isfinite(margin.after) for margin in self.margins):
            raise ValueError("a margin is not finite; a steered model that overflows needs a smaller lam")

    def context(self) -> dict[str, Any]:
        """See `Section`."""
        n = len(self.margins)
        gained = sum(margin.before <= 0 < margin.after for margin in self.margins)
        lost = sum(margin.after <= 0 < margin.before for margin in self.margins)
        changes = [margin.change for margin in self.margins]
        in_order = sorted(self.margins, key=lambda margin: margin.change, reverse=True)
        # of many pairs those that moved most, either way
        rows = in_order if n <= MOST_ROWS else [*in_order[: MOST_ROWS // 2], *in_order[-(MOST_ROWS // 2) :]]
        return {
            "how": self.how,
            "n": n,
            "right_before": sum(margin.before > 0 for margin in self.margins),
            "right_after": sum(margin.after > 0 for margin in self.margins),
            "gained": gained,
            "lost": lost,
            "mean_change": sum(changes) / n,
            "rows": rows,
            "charts": [self._scatter(), self._changes()],
        }

    def _scatter(self) -> Markup:
        before = [margin.before for margin in self.margins]
        after = [margin.after for margin in self.margins]
        low, high = min(*before, *after), max(*before, *after)
        colours = [POSITIVE if margin.change > 0 else NEGATIVE for margin in self.margins]

        def draw(axes: Axes) -> None:
            axes.plot([low, high], [low, high], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
            axes.axhline(0, color=MUTED, linewidth=0.8)
            axes.axvline(0, color=MUTED, linewidth=0.8)
            axes.scatter(before, after, c=colours, s=16, alpha=0.75, linewidths=0, clip_on=False)
            axes.set_xlabel("before, nats")
            axes.set_ylabel("after, nats")
            axes.annotate(
                "moved toward chosen", (0.02, 0.98), xycoords="axes fraction", va="top", color=POSITIVE, fontsize=8
            )
            axes.annotate(
                "toward rejected", (0.98, 0.02), xycoords="axes fraction", ha="right", color=NEGATIVE, fontsize=8
            )

        words = f"{len(self.margins)} pairs, mean change {nats(sum(m.change for m in self.margins) / len(before))} nats"
        return chart("Margin of each pair", words, draw)

    def _changes(self) -> Markup:
        """Every pair's margin before and after, as an arrow; pairs in the order of where they began."""
        in_order = sorted(self.margins, key=lambda margin: margin.before)

        def draw(axes: Axes) -> None:
            for signs, colour in ((lambda change: change > 0, POSITIVE), (lambda change: change <= 0, NEGATIVE)):
                places = [i for i, margin in enumerate(in_order) if signs(margin.change)]
                befores = [in_order[i].before for i in places]
                afters = [in_order[i].after for i in places]
                axes.vlines(places, befores, afters, color=colour, linewidth=1.4 if len(in_order) < 120 else 0.6)
                axes.plot(places, afters, linestyle="", marker="o", markersize=2.6, color=colour)
            axes.plot(
                range(len(in_order)),
                [margin.before for margin in in_order],
                linestyle="",
                marker="_",
                markersize=4,
                color=INK,
            )
            axes.axhline(0, color=MUTED, linewidth=0.8)
            axes.set_xticks([])
            axes.set_xlabel("pairs, by their margin before (dash) and after (dot)")
            axes.set_ylabel("nats")

        return chart("Before and after", "A line for each pair, from its margin before to its margin after", draw)
