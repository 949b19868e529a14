"""What a reproduction leaves behind: one JSON record, a Markdown page, and figures as PNG and SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure as Canvas

from grains_ref.evaluation.metrics import Rate
from grains_ref.reproduction import transfer
from grains_ref.reproduction.rows import CANDIDATES
from grains_ref.reproduction.tables import (
    COST_ROWS,
    MEASURES,
    WORLDS_OF,
    Cells,
    Figure,
    TableSpec,
    dev_curve,
    dev_gain,
    figure_rows,
)

COLOURS = {"positive": "#2e7d50", "negative": "#b03a2e", "random": "#888888"}
SEED_STYLE = ("-", "--", ":")


# --------------------------------------------------------------------------------------------- tables
def table_page(spec: TableSpec, worlds: Sequence[str], found: Mapping[tuple[str, str, Any], Figure | str]) -> str:
    """One table in Markdown: the paper's numbers first, then ours with gains and intervals."""
    ours = [(world, measure) for world in worlds for measure in spec.measures]
    head = ["", *(f"paper: {column}" for column in spec.paper_columns)]
    for world, measure in ours:
        name = MEASURES[measure]
        change = "change" if measure == "rejected" else "gain"
        head += [f"{world}: {name}", change] if measure != "capable" else [f"{world}: {name}"]
    lines = [f"### {spec.name.capitalize()}. {spec.title}", "", _line(head), _line(["---"] * len(head))]
    notes: list[str] = []
    digits = 1 if all(round(n, 1) == n for numbers in spec.paper.values() for n in numbers) else 2
    for row in spec.rows:
        columns = [row]
        numbers = spec.paper.get(row, ())
        columns += [f"{n:.{digits}f}" for n in numbers] or ["-"] * len(spec.paper_columns)
        for world, measure in ours:
            one = found[row, world, measure]
            if isinstance(one, str):
                if one not in notes:
                    notes.append(one)
                columns += [f"none [^{notes.index(one) + 1}]", "-"] if measure != "capable" else ["none"]
                continue
            columns.append(f"{100 * one.value.value:.1f}")
            if measure != "capable":
                columns.append("" if row.lower() in ("base model", "unsteered") else _gain(one))
        lines.append(_line(columns))
    lines += [""] + [f"[^{i}]: {note}" for i, note in enumerate(notes, 1)]
    return "\n".join(lines).rstrip() + "\n"


def _gain(one: Figure) -> str:
    star = " *" if one.p < 0.05 else ""
    edge = " >" if one.at_end else ""
    return f"{_signed(one.gain)}{star}{edge}"


def _signed(rate: Rate) -> str:
    return f"{100 * rate.value:+.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


LEGEND = """All numbers in percent. Gains are over the unsteered model, with a 95 % bootstrap interval over facts, means
over training seeds. A star marks a row that differs from GrAInS with the paper's setting (paired sign-flip test over
facts, Holm-corrected over the rows of a table and world, p < .05); `>` marks rows where a chosen strength was the last
of its grid in some seed. A dash: the paper has no such number.
"""


def candidates_page(cells: Cells, worlds: Sequence[str], seeds: Sequence[int]) -> str:
    """Dev gains of the candidates for the preset, which alone decide (docs/reproduction.md)."""
    lines = [
        "### Candidates: gain on dev, in points",
        "",
        _line(["", *worlds, "mean"]),
        _line(["---"] * (len(worlds) + 2)),
    ]
    for name in ("GrAInS", *CANDIDATES):
        gains = [sum(dev_gain(cells[world, seed, name]) for seed in seeds) / len(seeds) for world in worlds]
        lines.append(_line([name, *(f"{100 * g:+.1f}" for g in gains), f"{100 * sum(gains) / len(gains):+.1f}"]))
    return "\n".join(lines) + "\n"


def cost_page(cells: Cells, worlds: Sequence[str], seeds: Sequence[int]) -> str:
    """Sections 4.1 and 4.2: seconds and peak memory of building vectors from the steering pairs."""
    lines = [
        "### Cost: seconds, and megabytes beyond the model itself, to fit on 50 pairs",
        "",
        "The paper: about 96 s (LLMs) and 302 s (VLMs) on an RTX A6000, LoRA 30 to 3600 minutes. What an earlier row "
        "has computed is not counted again. Megabytes: the highest point of allocated memory on a GPU, of the "
        "process's resident memory on a CPU (tiny models, one thread).",
        "",
        _line(["", *(head for world in worlds for head in (f"{world}: s", "MB"))]),
        _line(["---"] * (2 * len(worlds) + 1)),
    ]
    for row in dict.fromkeys((*COST_ROWS["text"], *COST_ROWS["visual"])):
        columns = [row]
        for world in worlds:
            run = [cells.get((world, seed, row), {}) for seed in seeds]
            columns.append(_mean_of([cell.get("fit_seconds") for cell in run], "{:.1f}"))
            columns.append(_mean_of([cell.get("fit_bytes") for cell in run], "{:.0f}", unit=1e6))
        lines.append(_line(columns))
    return "\n".join(lines) + "\n"


def _mean_of(values: Sequence[float | None], form: str, *, unit: float = 1.0) -> str:
    measured = [one for one in values if one is not None]
    return form.format(sum(measured) / len(measured) / unit) if measured else "-"


# ------------------------------------------------------------------------------------------- figures
Drawn: TypeAlias = dict[str, Any]  # by world, what a figure shows: by series or seed, the values


def figure_3(cells: Cells, worlds: Sequence[str], seeds: Sequence[int], path: Path) -> Drawn:
    """Change of the preference difference when the top k tokens are masked; by tokens and seed, k = 1, 2, ..."""
    drawn: Drawn = {}
    canvas, axes = plt.subplots(1, len(worlds), figsize=(3.2 * len(worlds), 3.2), layout="constrained", squeeze=False)
    for axis, world in zip(axes[0], worlds, strict=True):
        for name, colour in COLOURS.items():
            curves = [cells[world, seed, "figure 3"]["curve"][name] for seed in seeds]
            drawn.setdefault(world, {})[name] = curves
            for curve, style in zip(curves, SEED_STYLE, strict=False):
                axis.plot(range(1, len(curve) + 1), curve, style, color=colour, linewidth=0.8, alpha=0.6)
            mean = [sum(values) / len(values) for values in zip(*curves, strict=True)]
            axis.plot(range(1, len(mean) + 1), mean, color=colour, linewidth=2, label=name)
        axis.axhline(0, color="black", linewidth=0.5)
        axis.set(title=world, xlabel="k tokens masked")
    axes[0, 0].set_ylabel("change of f, nats")
    axes[0, 0].legend(frameon=False, fontsize=8, loc="center right")
    _save(canvas, path)
    return drawn


def figure_5(cells: Cells, worlds: Sequence[str], seeds: Sequence[int], path: Path) -> Drawn:
    """Dev accuracy by strength, for each seed."""
    return _sweep(path, worlds, seeds, "lam", lambda world, seed: dev_curve(cells[world, seed, "GrAInS"]), symlog=True)


def figure_6(cells: Cells, worlds: Sequence[str], seeds: Sequence[int], path: Path) -> Drawn:
    """Dev accuracy by k, each with its own best admissible strength, for each seed."""

    def curve(world: str, seed: int) -> dict[float, float]:
        both = [figure_rows(kind) for kind in WORLDS_OF]
        rows = next(rows for rows in both if all((world, seed, row) in cells for row in rows.values()))
        found = {}
        for k, row in rows.items():
            cell = cells[world, seed, row]
            if "draws" in cell:
                found[float(k)] = dev_curve(cell)[0.0] + dev_gain(cell)
        return found

    return _sweep(path, worlds, seeds, "k", curve)


def _sweep(
    path: Path, worlds: Sequence[str], seeds: Sequence[int], label: str, curve: Any, *, symlog: bool = False
) -> Drawn:
    drawn: Drawn = {}
    canvas, axes = plt.subplots(1, len(worlds), figsize=(3.2 * len(worlds), 3.0), layout="constrained", squeeze=False)
    for axis, world in zip(axes[0], worlds, strict=True):
        curves = [curve(world, seed) for seed in seeds]
        drawn[world] = curves
        for seed, one, style in zip(seeds, curves, SEED_STYLE, strict=False):
            axis.plot([*one], [100 * y for y in one.values()], f"{style}o", color="#555555", markersize=2.5,
                      linewidth=0.9, label=f"seed {seed}")  # fmt: skip
        common = sorted(set.intersection(*(set(one) for one in curves)))
        means = [100 * sum(one[x] for one in curves) / len(curves) for x in common]
        axis.plot(common, means, color="#1f4e79", linewidth=2, label="mean")
        if symlog:
            axis.set_xscale("symlog", linthresh=min(x for x in common if x > 0))
            axis.set_xticks(common[::2], [f"{x:g}" for x in common[::2]])
        axis.set(title=world, xlabel=label)
    axes[0, 0].set_ylabel("dev accuracy, %")
    axes[0, 0].legend(frameon=False, fontsize=7)
    _save(canvas, path)
    return drawn


def _save(canvas: Canvas, path: Path) -> None:
    for suffix in (".png", ".svg"):
        canvas.savefig(path.with_suffix(suffix), dpi=130, metadata={"Date": None} if suffix == ".svg" else None)
    plt.close(canvas)


FIGURES = {
    "figure 3": (figure_3, "What masking the strongest tokens does to f (dev prompts, mean change in nats)"),
    "figure 5": (figure_5, "Dev accuracy by strength, whatever it costs in capability"),
    "figure 6": (figure_6, "Dev accuracy by k, each with the strength that was chosen for it"),
}


# -------------------------------------------------------------------------------------------- record
def rows_record(found: Mapping[tuple[str, str, Any], Figure | str]) -> list[dict[str, Any]]:
    """Every figure of one table, for programs; shares, not percentages."""
    return [
        {"row": name, "world": world, "measure": measure} | ({"error": one} if isinstance(one, str) else asdict(one))
        for (name, world, measure), one in found.items()
    ]


def cost_record(cells: Cells) -> list[dict[str, Any]]:
    """Seconds and bytes of every fit."""
    return [
        {"row": row, "world": world, "seed": seed, "seconds": cell["fit_seconds"], "bytes": cell["fit_bytes"]}
        for (world, seed, row), cell in cells.items()
        if "fit_seconds" in cell
    ]


def geometry_page(cells: Cells, worlds: Sequence[str], seeds: Sequence[int]) -> str:
    """Where the aggregations point, by world, seed and sign: means over layers."""
    head = ["world", "seed", "sign", "cos: PCA", "uncentred", "mean", "share of the mean", "last token masked",
            "explained by it"]  # fmt: skip
    lines = ["### Where the aggregations point", "", _line(head), _line(["---"] * len(head))]
    for world in worlds:
        for seed in seeds:
            layers = cells[world, seed, "geometry"]["curve"]
            for sign in ("pos", "neg"):
                rows = [layer for layer in layers if layer["sign"] == sign]

                def average(get: Any, rows: list[dict[str, Any]] = rows) -> str:
                    return f"{sum(get(row) for row in rows) / len(rows):.2f}"

                lines.append(
                    _line(
                        [world, str(seed), sign]
                        + [average(lambda r, m=m: r["cos_planted"][m]) for m in ("pca", "uncentred", "mean")]
                        + [average(lambda r: r["mean_share"]), str(rows[0]["last_token_masked"])]
                        + [average(lambda r: r["explained_by_last_token"])]
                    )
                )
    return "\n".join(lines) + "\n"


def margins_page(cells: Cells, worlds: Sequence[str], seeds: Sequence[int]) -> str:
    """How vectors move margins, and which part of the gain their mean and their spread would make alone."""
    head = [
        "world",
        "vector",
        "mean change, nats",
        "spread",
        "gain, points",
        "by mean alone",
        "by spread alone",
    ]
    lines = [
        "### Margins: what moves, and how much of the gain is direction",
        "",
        "Test prompts, each vector at the strongest strength that dev capability allows; means over training seeds. "
        "By the mean alone: every prompt gets the mean change. By the spread alone: the changes less their mean, dealt "
        "out to the prompts at random.",
        "",
        _line(head),
        _line(["---"] * len(head)),
    ]
    for world in worlds:
        curves = [cells[world, seed, "margins"]["curve"] for seed in seeds]
        for vector in curves[0]:
            one = {name: sum(c[vector][name] for c in curves) / len(curves) for name in curves[0][vector]}
            margin = f"{world} (margins {one['margin']:+.2f}, spread {one['margin_spread']:.2f})"
            gains = [f"{100 * one[name]:+.1f}" for name in ("gain", "by_mean", "by_spread")]
            lines.append(_line([margin, vector, f"{one['mean']:+.2f}", f"{one['spread']:.2f}", *gains]))
    return "\n".join(lines) + "\n"


def transfer_page(cells: Cells, worlds: Sequence[str], seeds: Sequence[int]) -> str:
    """Two behaviours in one model: transfer and composition."""
    return transfer.page([cells["double", seed, "transfer"]["curve"] | {"seed": seed} for seed in seeds])


EXTRAS = {
    "candidates": candidates_page,
    "geometry": geometry_page,
    "margins": margins_page,
    "cost": cost_page,
    "transfer": transfer_page,
}
