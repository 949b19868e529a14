"""What a vectors file says of every layer, and whether its vectors mean anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from markupsafe import Markup

from grains_ref.report.charts import NEGATIVE, POSITIVE, SERIES, Line, lines_chart
from grains_ref.report.page import Section
from grains_ref.vectors import SteeringVectors


@dataclass(frozen=True)
class Column:
    """A figure of every layer, as the table calls it."""

    name: str
    values: Sequence[float]


@dataclass(frozen=True)
class Layers(Section):
    """Per layer: explained variance, cosines, the size of the edit; and the line that says how far to trust them.

    lam: the strength at which the edit's size is shown; None: that of the file, if a sweep stored one there, else 1.
    """

    vectors: SteeringVectors
    lam: float | None = None
    title: str = "Layers"

    template: ClassVar[str] = "layers.html"

    @property
    def strength(self) -> float:
        """At which the edit's size is shown."""
        stored = self.vectors.header.choice.get("lam", 1.0)
        return float(stored if self.lam is None else self.lam)

    def context(self) -> dict[str, Any]:
        """See `Section`."""
        header = self.vectors.header
        columns = self.columns()
        return {
            "line": header.signal.get("line", ""),
            "verdict": header.signal.get("figures", {}).get("verdict", ""),
            "warnings": [str(warning) for warning in header.signal.get("warnings", [])],
            "charts": self._charts({column.name: column.values for column in columns}),
            "columns": columns,
            "n_layers": self.vectors.n_layers,
            "steered": header.choice.get("layers"),
        }

    def columns(self) -> list[Column]:
        """Every figure that the file has for all layers."""
        header = self.vectors.header
        names = ("|v|", "|v_pos|", "|v_neg|", "cos(v_pos, v_neg)")
        columns = [
            Column(name, values) for name, values in zip(names, zip(*self.vectors.norms(), strict=True), strict=True)
        ]
        of_fit = {
            "pos_explained": "explained variance, v_pos",
            "neg_explained": "explained variance, v_neg",
            "pos_cos_mean": "cos(v_pos, mean shift)",
            "neg_cos_mean": "cos(v_neg, mean shift)",
        }
        of_signal = {
            "cosine": "cos(v, gradient)",
            "slope": "nats per lam",
            "halves": "cos(halves of the pairs)",
        }
        columns += [Column(name, header.diagnostics[key]) for key, name in of_fit.items() if key in header.diagnostics]
        layers = header.signal.get("layers", {})
        columns += [Column(name, layers[key]) for key, name in of_signal.items() if key in layers]
        if "length" in layers:
            name = f"|lam v| / |state|, lam = {self.strength:g}"
            columns.append(Column(name, [abs(self.strength) * length for length in layers["length"]]))
        return columns

    def _charts(self, of: dict[str, Sequence[float]]) -> list[Markup]:
        layers = list(range(self.vectors.n_layers))
        size = next((name for name in of if name.startswith("|lam v|")), "")

        def line(label: str, name: str, colour: str, *, marker: str = "o", style: str = "-") -> Line:
            values = [value if math.isfinite(value) else math.nan for value in of[name]]
            return Line(label, layers, values, colour, marker, style)

        groups: list[tuple[str, str, list[Line]]] = []
        if "explained variance, v_pos" in of:
            sides = [
                line("v_pos", "explained variance, v_pos", POSITIVE),
                line("v_neg", "explained variance, v_neg", NEGATIVE, marker="s", style="--"),
            ]
            groups.append(("Explained variance", "share of the first component", sides))
        cosines = {
            "cos(v_pos, mean shift)": ("v_pos, mean shift", POSITIVE, "o", "-"),
            "cos(v_neg, mean shift)": ("v_neg, mean shift", NEGATIVE, "s", "--"),
            "cos(v_pos, v_neg)": ("v_pos, v_neg", SERIES[2], "^", ":"),
        }
        cosine_lines = [
            line(label, name, colour, marker=marker, style=style)
            for name, (label, colour, marker, style) in cosines.items()
            if name in of
        ]
        groups.append(("Cosines", "cosine", cosine_lines))
        if size:
            groups.append(
                ("Size of the edit", f"|lam v| / |state|, lam = {self.strength:g}", [line("", size, SERIES[0])])
            )
        if "nats per lam" in of:
            groups.append(("What a small strength does", "nats per lam", [line("", "nats per lam", SERIES[4])]))
        agreement = {
            "cos(halves of the pairs)": ("two halves of the pairs", SERIES[0], "o", "-"),
            "cos(v, gradient)": ("v, the edit's gradient", SERIES[1], "s", "--"),
        }
        signal = [
            line(label, name, colour, marker=marker, style=style)
            for name, (label, colour, marker, style) in agreement.items()
            if name in of
        ]
        if signal:
            groups.append(("Signal", "cosine", signal))
        drawn = []
        for title, y, lines in groups:
            is_share = title == "Explained variance"
            drawn.append(lines_chart(title, lines, x="layer", y=y, is_percent=is_share, zero=not is_share))
        return drawn
