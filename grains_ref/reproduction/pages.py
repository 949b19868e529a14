"""What a reproduction leaves behind: one JSON record, a Markdown page, and figures as PNG and SVG."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from grains_ref.report.markdown import markdown_table
from grains_ref.reproduction import habits, transfer
from grains_ref.reproduction.edit_questions import SHARES, START
from grains_ref.reproduction.kept import Cell
from grains_ref.reproduction.paper import COST_ROWS, MEASURES, TableSpec, figure_rows, kind_of
from grains_ref.reproduction.rows import CANDIDATES
from grains_ref.reproduction.statistics import Cells, Result, Results, dev_curve, dev_gain

COLOURS = {"positive": "#2e7d50", "negative": "#b03a2e", "random": "#888888"}
SEED_STYLE = ("-", "--", ":")
STRENGTH_ROWS = (  # of the figure "edit strengths": what was put to the test, and controls
    START,
    "edit gradient, diagonal Fisher",
    "edit gradient, steps",
    "edit gradient, attributed tokens",
    "edit gradient, equal layers",
    "edit gradient, without the first block",
    "edit gradient, reversed",
    "edit gradient, Gaussian",
)

LEGEND = """All numbers in percent. Gains are over the unsteered model, with a 95 % bootstrap interval over facts, means
over training seeds. A star marks a row that differs from GrAInS with the paper's setting (paired sign-flip test over
facts, Holm-corrected over the rows of a table and world, p < .05); `>` marks rows where a chosen strength was the last
of its grid in some seed. A dash: the paper has no such number.
"""


# --------------------------------------------------------------------------------------------- tables
def table_page(spec: TableSpec, worlds: Sequence[str], results: Results) -> str:
    """One table in Markdown: the paper's numbers first, then ours with gains and intervals."""
    ours = [(world, measure) for world in worlds for measure in spec.measures]
    head = ["", *(f"paper: {column}" for column in spec.paper_columns)]
    for world, measure in ours:
        head.append(f"{world}: {MEASURES[measure]}")
        if measure != "capable":
            head.append("change" if measure == "rejected" else "gain")
    all_tenths = all(round(n, 1) == n for numbers in spec.paper.values() for n in numbers)
    digits = 1 if all_tenths else 2
    notes: list[str] = []
    lines = []
    for name, row in spec.rows.items():
        line = [name]
        line += [f"{n:.{digits}f}" for n in spec.paper.get(name, ())] or ["-"] * len(spec.paper_columns)
        for world, measure in ours:
            result = results[name, world, measure]
            if isinstance(result, str):
                if result not in notes:
                    notes.append(result)
                line.append("none" if measure == "capable" else f"none [^{notes.index(result) + 1}]")
                gain = "-"
            else:
                line.append(f"{100 * result.value.value:.1f}")
                gain = "" if row == "unsteered" else _gain(result)
            if measure != "capable":
                line.append(gain)
        lines.append(line)
    page = f"### {spec.name.capitalize()}. {spec.title}\n\n"
    if spec.reference != "GrAInS":
        page += f"Stars: against {spec.reference}.\n\n"
    page += markdown_table(head, lines)
    if notes:
        page += "\n" + "".join(f"[^{i}]: {note}\n" for i, note in enumerate(notes, 1))
    return page


def _gain(result: Result) -> str:
    star = " *" if result.p < 0.05 else ""
    edge = " >" if result.at_end else ""
    return f"{_points(result.gain.value, result.gain.low, result.gain.high)}{star}{edge}"


def _points(value: float, low: float, high: float) -> str:
    """A change with its interval, shares in percentage points."""
    return f"{100 * value:+.1f} [{100 * low:.1f}, {100 * high:.1f}]"


# --------------------------------------------------------------------------------------- further pages
def candidates_page(cells: Cells, worlds: Sequence[str], seeds: Sequence[int]) -> str:
    """Dev gains of the candidates for the preset, which alone decide (docs/reproduction_rules.md)."""
    lines = []
    for name in ("GrAInS", *CANDIDATES):
        gains = [sum(dev_gain(cells[world, seed, name]) for seed in seeds) / len(seeds) for world in worlds]
        lines.append([name, *(f"{100 * gain:+.1f}" for gain in gains), f"{100 * sum(gains) / len(gains):+.1f}"])
    return "### Candidates: gain on dev, in points\n\n" + markdown_table(["", *worlds, "mean"], lines)


def cost_page(cells: Cells, worlds: Sequence[str], seeds: Sequence[int]) -> str:
    """Sections 4.1 and 4.2: seconds and peak memory of building vectors from the steering pairs."""
    head = [""]
    for world in worlds:
        head += [f"{world}: s", "MB"]
    lines = []
    for row in dict.fromkeys((*COST_ROWS["text"], *COST_ROWS["visual"])):
        line = [row]
        for world in worlds:
            of_seeds: list[Cell] = [cells.get((world, seed, row), {}) for seed in seeds]
            line.append(_mean_of([cell.get("fit_seconds") for cell in of_seeds], "{:.1f}"))
            line.append(_mean_of([cell.get("fit_bytes") for cell in of_seeds], "{:.0f}", unit=1e6))
        lines.append(line)
    return (
        "### Cost: seconds, and megabytes beyond the model itself, to fit on 50 pairs\n\n"
        "The paper: about 96 s (LLMs) and 302 s (VLMs) on an RTX A6000, LoRA 30 to 3600 minutes. What an earlier row "
        "has computed is not counted again. Megabytes: the highest point of allocated memory on a GPU, of the "
        "process's resident memory on a CPU (tiny models, one thread).\n\n" + markdown_table(head, lines)
    )


def _mean_of(values: Sequence[float | None], form: str, *, unit: float = 1.0) -> str:
    measured = [value for value in values if value is not None]
    return form.format(sum(measured) / len(measured) / unit) if measured else "-"


def geometry_page(cells: Cells, worlds: Sequence[str], seeds: Sequence[int]) -> str:
    """Where the aggregations point, by world, seed and sign: means over layers."""
    head = ["world", "seed", "sign", "cos: PCA", "uncentred", "mean"]
    head += ["share of the mean", "last token masked", "explained by it"]
    lines = []
    for world in worlds:
        for seed in seeds:
            for sign in ("pos", "neg"):
                layers = [layer for layer in cells[world, seed, "geometry"]["curve"] if layer["sign"] == sign]
                line = [world, str(seed), sign]
                for method in ("pca", "uncentred", "mean"):
                    line.append(_mean_of([layer["cos_planted"][method] for layer in layers], "{:.2f}"))
                line.append(_mean_of([layer["mean_share"] for layer in layers], "{:.2f}"))
                line.append(str(layers[0]["last_token_masked"]))
                line.append(_mean_of([layer["explained_by_last_token"] for layer in layers], "{:.2f}"))
                lines.append(line)
    return "### Where the aggregations point\n\n" + markdown_table(head, lines)


def margins_page(cells: Cells, worlds: Sequence[str], seeds: Sequence[int]) -> str:
    """How vectors move margins, and which part of the gain their mean and their spread would make alone."""
    head = ["world", "vector", "mean change, nats", "spread", "gain, points", "by mean alone", "by spread alone"]
    lines = []
    for world in worlds:
        curves = [cells[world, seed, "margins"]["curve"] for seed in seeds]
        for vector in curves[0]:
            mean = {name: sum(curve[vector][name] for curve in curves) / len(curves) for name in curves[0][vector]}
            margin = f"{world} (margins {mean['margin']:+.2f}, spread {mean['margin_spread']:.2f})"
            gains = [f"{100 * mean[name]:+.1f}" for name in ("gain", "by_mean", "by_spread")]
            lines.append([margin, vector, f"{mean['mean']:+.2f}", f"{mean['spread']:.2f}", *gains])
    return (
        "### Margins: what moves, and how much of the gain is direction\n\n"
        "Test prompts, each vector at the strongest strength that dev capability allows; means over training seeds. "
        "By the mean alone: every prompt gets the mean change. By the spread alone: the changes less their mean, dealt "
        "out to the prompts at random.\n\n" + markdown_table(head, lines)
    )


# -------------------------------------------------------------------------------- two behaviours in one model
def transfer_page(cells: Cells, worlds: Sequence[str], seeds: Sequence[int]) -> str:
    """The double world's cells: vectors alone and together, every strength, cosines by layer.

    Raises:
        ValueError: the cells of the training seeds are about different test prompts.
    """
    curves = {seed: cells["double", seed, "transfer"]["curve"] for seed in seeds}
    first = curves[seeds[0]]
    if any(curve["facts"] != first["facts"] for curve in curves.values()):
        raise ValueError("the cells of the training seeds are about different test prompts: delete them, run again")
    base = [curve["unsteered"] for curve in curves.values()]
    pooled = functools.partial(transfer.results, base=base, facts=first["facts"])
    behaviours = [*first["unsteered"]["right"]]
    shares = [*behaviours, "both", "capability"]
    gains = [_transfer_line("unsteered", "", pooled(base), is_base=True)]
    doses, cosines = list[list[str]](), list[list[str]]()
    n_layers, lams = 0, list[float]()
    for name in first["fits"]:
        fits = {seed: curve["fits"][name] for seed, curve in curves.items()}
        errors = [f"seed {seed}: {fit['error']}" for seed, fit in fits.items() if "error" in fit]
        if errors:
            reason = f"{name}: none ({'; '.join(errors)})"
            gains.append([reason] + [""] * (len(gains[0]) - 1))
            continue
        for row in first["fits"][name]["rows"]:
            behaviour = row.removeprefix("vector of ")
            lam = ", ".join(f"{fit['lam'][behaviour]:g}" for fit in fits.values() if behaviour in fit["lam"])
            gains.append(_transfer_line(f"{name}: {row}", lam, pooled([fit["rows"][row] for fit in fits.values()])))
        for behaviour in behaviours:
            by_lam = zip(*(fit["doses"][behaviour] for fit in fits.values()), strict=True)
            doses.append([f"{name}: vector of {behaviour}", *(_dose(of_seeds, behaviours) for of_seeds in by_lam)])
        for seed, fit in fits.items():
            cosines.append([name, str(seed), *(f"{cosine:+.2f}" for cosine in fit["cosines"])])
            n_layers, lams = len(fit["cosines"]), [dose["lam"] for dose in fit["doses"][behaviours[0]]]
    head = ["", "lam, by seed"]
    for share in shares:
        head += [share, "gain"]
    head += [f"{behaviour}: nats" for behaviour in behaviours]
    page = (
        "### Transfer and composition, double world\n\n"
        "Percent, and gains over the unsteered model in points; the last columns: gain of the mean margin in nats. "
        f"Brackets: 95 % bootstrap intervals over facts (capability: tasks). Training seeds: {len(seeds)}. The "
        "strength of a vector is chosen on dev for its own behaviour.\n\n" + markdown_table(head, gains)
    )
    if doses:
        page += f"\nOn dev, by strength: mean margin of {' / '.join(behaviours)} in nats / capability in percent; "
        page += "means over seeds.\n\n" + markdown_table(["", *(f"lam {lam:g}" for lam in lams)], doses)
        page += "\nCosine of the two vectors.\n\n"
        page += markdown_table(["", "seed", *(f"layer {i}" for i in range(n_layers))], cosines)
    return page


def _transfer_line(
    name: str, lam: str, results: Mapping[str, Mapping[str, Sequence[float]]], *, is_base: bool = False
) -> list[str]:
    line = [name, lam]
    for measure, result in results.items():
        value, (gain, low, high) = result["value"][0], result["gain"]
        if measure.startswith("margin"):
            line.append(f"({value:+.2f})" if is_base else f"{gain:+.2f} [{low:.2f}, {high:.2f}]")
        else:
            line += [f"{100 * value:.1f}", "" if is_base else _points(gain, low, high)]
    return line


def _dose(of_seeds: Sequence[Mapping[str, float]], behaviours: Sequence[str]) -> str:
    """One strength: mean margins of the behaviours in nats, and capability in percent, means over seeds."""
    margins = [_mean_of([dose[behaviour] for dose in of_seeds], "{:+.2f}") for behaviour in behaviours]
    return " / ".join([*margins, _mean_of([100 * dose["capability"] for dose in of_seeds], "{:.1f}")])


# ------------------------------------------------------------------------------------- edits and attention
def attention_page(cells: Cells, worlds: Sequence[str], seeds: Sequence[int]) -> str:
    """What edits do to attention on the lure, and which part of their effect goes by way of the patterns."""
    head = ["world", "seed", "edit", "f, nats", "frozen patterns", "patterns alone"]
    head += ["on the lure, %", "most read head, %", "rank correlation"]
    lines = []
    for world in worlds:
        for seed in seeds:
            curve = cells[world, seed, "edit attention"]["curve"]
            lines.append([world, str(seed), "none", *_attention_line(curve, None)])
            lines += [[world, str(seed), name, *_attention_line(curve, name)] for name in curve["edits"]]
    return (
        "### The edit gradient and attention\n\n"
        "The first dev prompt about each fact. f without an edit, and its change in nats: of the edited run; with the "
        "attention patterns frozen as without the edit; of the plain run with the edited run's patterns. Attention on "
        "the planted lure where the answer is predicted: mean over heads, and of the head that reads it most without "
        "the edit. Last: rank correlation over heads of that attention and the head's share of the edit gradient.\n\n"
        + markdown_table(head, lines)
        + "\nChange of f in nats where the edit at the attention's output acts at these tokens only; means over "
        "training seeds.\n\n" + _places_table(cells, worlds, seeds)
    )


def _places_table(cells: Cells, worlds: Sequence[str], seeds: Sequence[int]) -> str:
    lines = []
    for world in worlds:
        curves = [cells[world, seed, "edit attention"]["curve"] for seed in seeds]
        everywhere = [curve["edits"]["attention output"] for curve in curves]
        line = [world, _mean_of([edit["f_e"] - edit["f_0"] for edit in everywhere], "{:+.2f}")]
        for place in curves[0]["places"]:
            line.append(_mean_of([curve["places"][place] for curve in curves], "{:+.2f}"))
        lines.append(line)
    return markdown_table(["", "everywhere", *curves[0]["places"]], lines)


def _attention_line(curve: Mapping[str, Any], name: str | None) -> list[str]:
    plain = [mass for of_block in curve["plain"] for mass in of_block]
    most = plain.index(max(plain))
    if name is None:
        shares = [share for of_block in curve["gradient"] for share in of_block]
        effects = [f"{next(iter(curve['edits'].values()))['f_0']:+.2f}", "", ""]
        masses, correlation = plain, f"{spearmanr(plain, shares).statistic:+.2f}"
    else:
        edit = curve["edits"][name]
        effects = [f"{edit[key] - edit['f_0']:+.2f}" for key in ("f_e", "f_frozen", "f_swapped")]
        masses, correlation = [mass for of_block in edit["lure"] for mass in of_block], ""
    return [*effects, f"{100 * sum(masses) / len(masses):.1f}", f"{100 * masses[most]:.1f}", correlation]


def habits_page(cells: Cells, worlds: Sequence[str], seeds: Sequence[int]) -> str:
    """The double world's cells `habits`."""
    return habits.page([cells["double", seed, "habits"]["curve"] for seed in seeds])


OF_DOUBLE_WORLD = ("transfer", "habits")  # pages about it alone

EXTRAS: dict[str, Callable[[Cells, Sequence[str], Sequence[int]], str]] = {
    "candidates": candidates_page,
    "geometry": geometry_page,
    "margins": margins_page,
    "cost": cost_page,
    "transfer": transfer_page,
    "habits": habits_page,
    "edit attention": attention_page,
}


# ------------------------------------------------------------------------------------------- figures
Drawn: TypeAlias = dict[str, Any]  # by world, what a figure shows: by series or seed, the values


def figure_3(cells: Cells, worlds: Sequence[str], seeds: Sequence[int], path: Path) -> Drawn:
    """Change of the preference difference when the top k tokens are masked; by tokens and seed, k = 1, 2, ..."""
    drawn: Drawn = {}
    figure, axes = plt.subplots(1, len(worlds), figsize=(3.2 * len(worlds), 3.2), layout="constrained", squeeze=False)
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
    _save(figure, path)
    return drawn


def figure_5(cells: Cells, worlds: Sequence[str], seeds: Sequence[int], path: Path) -> Drawn:
    """Dev accuracy by strength, for each seed."""
    return _sweep(path, worlds, seeds, "lam", lambda world, seed: dev_curve(cells[world, seed, "GrAInS"]), symlog=True)


def figure_6(cells: Cells, worlds: Sequence[str], seeds: Sequence[int], path: Path) -> Drawn:
    """Dev accuracy by k, each with its own best admissible strength, for each seed."""

    def curve(world: str, seed: int) -> dict[float, float]:
        accuracies = {}
        for k, row in figure_rows(kind_of(world)).items():
            cell = cells[world, seed, row]
            if "draws" in cell:
                accuracies[float(k)] = dev_curve(cell)[0.0] + dev_gain(cell)
        return accuracies

    return _sweep(path, worlds, seeds, "k", curve)


def _sweep(
    path: Path,
    worlds: Sequence[str],
    seeds: Sequence[int],
    label: str,
    curve: Callable[[str, int], dict[float, float]],
    *,
    symlog: bool = False,
) -> Drawn:
    """One panel for each world: the curves of all seeds and their mean.  symlog: x is logarithmic but at 0."""
    drawn: Drawn = {}
    figure, axes = plt.subplots(1, len(worlds), figsize=(3.2 * len(worlds), 3.0), layout="constrained", squeeze=False)
    for axis, world in zip(axes[0], worlds, strict=True):
        curves = [curve(world, seed) for seed in seeds]
        drawn[world] = curves
        for seed, of_seed, style in zip(seeds, curves, SEED_STYLE, strict=False):
            y = [100 * accuracy for accuracy in of_seed.values()]
            label_of_seed = f"seed {seed}"
            axis.plot([*of_seed], y, f"{style}o", color="#555555", markersize=2.5, linewidth=0.9, label=label_of_seed)
        common = sorted(set.intersection(*(set(of_seed) for of_seed in curves)))
        means = [100 * sum(of_seed[x] for of_seed in curves) / len(curves) for x in common]
        axis.plot(common, means, color="#1f4e79", linewidth=2, label="mean")
        if symlog:
            axis.set_xscale("symlog", linthresh=min(x for x in common if x > 0))
            axis.set_xticks(common[::2], [f"{x:g}" for x in common[::2]])
        axis.set(title=world, xlabel=label)
    axes[0, 0].set_ylabel("dev accuracy, %")
    axes[0, 0].legend(frameon=False, fontsize=7)
    _save(figure, path)
    return drawn


def edit_strengths(cells: Cells, worlds: Sequence[str], seeds: Sequence[int], path: Path) -> Drawn:
    """Dev accuracy by strength of rows about the edit gradient, means over seeds; dots grow with how often chosen.

    Of a control that is drawn at random the first draw is shown.
    """
    drawn: Drawn = {}
    figure, axes = plt.subplots(1, len(worlds), figsize=(3.2 * len(worlds), 3.2), layout="constrained", squeeze=False)
    for axis, world in zip(axes[0], worlds, strict=True):
        for i, row in enumerate(STRENGTH_ROWS):
            of_seeds = [cells[world, seed, row] for seed in seeds if "draws" in cells[world, seed, row]]
            if not of_seeds:
                continue
            curves = [dev_curve(cell) for cell in of_seeds]
            lams = [lam for lam in SHARES if all(lam in curve for curve in curves)]
            means = [100 * sum(curve[lam] for curve in curves) / len(curves) for lam in lams]
            chosen = [cell["draws"][0]["strength"] for cell in of_seeds]
            drawn.setdefault(world, {})[row] = {"lam": lams, "accuracy": means, "chosen": chosen}
            (line,) = axis.plot(lams, means, linewidth=1.5, color=f"C{i}", label=row.removeprefix("edit gradient, "))
            at = [lam for lam in lams if lam in chosen]
            sizes = [12 + 22 * chosen.count(lam) for lam in at]
            axis.scatter(at, [means[lams.index(lam)] for lam in at], s=sizes, color=line.get_color(), zorder=3)
        axis.set_xscale("log")
        axis.set_xticks(SHARES, [f"{lam:g}" for lam in SHARES])
        axis.minorticks_off()
        axis.set(title=world, xlabel="lam, share of the state's length")
    axes[0, 0].set_ylabel("dev accuracy, %")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    _save(figure, path)
    return drawn


def _save(figure: Figure, path: Path) -> None:
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix), dpi=130, metadata={"Date": None} if suffix == ".svg" else None)
    plt.close(figure)


FIGURES = {
    "figure 3": (figure_3, "What masking the strongest tokens does to f (dev prompts, mean change in nats)"),
    "figure 5": (figure_5, "Dev accuracy by strength, whatever it costs in capability"),
    "figure 6": (figure_6, "Dev accuracy by k, each with the strength that was chosen for it"),
    "edit strengths": (
        edit_strengths,
        "Dev accuracy by strength, whatever it costs in capability; large dots: strengths chosen under its limit",
    ),
}


# -------------------------------------------------------------------------------------------- record
def rows_record(results: Results) -> list[dict[str, Any]]:
    """Every result of one table, for programs; shares, not percentages."""
    lines = []
    for (name, world, measure), result in results.items():
        line = {"row": name, "world": world, "measure": measure}
        lines.append(line | ({"error": result} if isinstance(result, str) else asdict(result)))
    return lines


def cost_record(cells: Cells) -> list[dict[str, Any]]:
    """Seconds and bytes of every fit."""
    return [
        {"row": row, "world": world, "seed": seed, "seconds": cell["fit_seconds"], "bytes": cell["fit_bytes"]}
        for (world, seed, row), cell in cells.items()
        if "fit_seconds" in cell
    ]
