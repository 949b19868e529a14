"""The pages of the real rung: tables, curves, generated text and the record, of whatever cells there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grains_ref.demo.real import BEHAVIOURS
from grains_ref.demo.real.rows import ROWS
from grains_ref.demo.real.show import one_line
from grains_ref.demo.real.signals import SIGNALLED
from grains_ref.demo.real.trial import EVERYDAY_LOSS, share_right
from grains_ref.demo.real.verdict import Gains
from grains_ref.evaluation.metrics import Rate
from grains_ref.reproduction import real_signal
from grains_ref.reproduction.kept import Cell
from grains_ref.reproduction.real import gains_of, seen_of

Key = tuple[str, int, str]  # behaviour, split, row
Subjects = Mapping[tuple[str, int], Sequence[str]]
DRAWN = {  # rows of the curves -> colour and line
    "GrAInS": ("#b03a2e", "-"),
    "GrAInS, content, mean": ("#d98880", "-"),
    "edit gradient, residual": ("#1f618d", "-"),
    "edit gradient, attention output": ("#7fb3d5", "-"),
    "CAA": ("#2e7d50", "-"),
    "ICV": ("#82c09a", "-"),
    "ITI": ("#7d5ba6", "-"),
    "LoRA, rate chosen": ("#222222", "-"),
    "random tokens": ("#999999", "--"),
    "Gaussian": ("#bbbbbb", "--"),
    "edit gradient, reversed": ("#1f618d", ":"),
}
TEXT_ROWS = ("unsteered", "GrAInS", "GrAInS, content, mean", "edit gradient, residual", "CAA", "LoRA, rate chosen")


BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"  # in docs/real.md, around what is not written by hand


def page(cells: dict[Key, Cell], subjects: Subjects, *, texts: bool = True) -> str:
    """Tables of all behaviours, and what the model says."""
    behaviours = [name for name in BEHAVIOURS if (name, 0, "unsteered") in cells]
    parts = [_overview(cells, subjects, behaviours)] if behaviours else []
    for name in behaviours:
        parts += [_table(cells, subjects, name), _signals(cells, subjects, name)]
        parts += [_texts(cells, name)] if texts else []
    return "\n\n".join(part for part in parts if part) + "\n"


def renewed(text: str, cells: dict[Key, Cell], subjects: Subjects, wanted: Sequence[Key]) -> str:
    """docs/real.md with what stands between `BEGIN` and `END` made anew, its headings a level higher.

    Raises:
        ValueError: the text has not each of them once, in that order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"expected {BEGIN} and {END}, each once and in this order: what is between them is replaced")
    signal = real_signal.text_of(real_signal.points(cells, subjects))
    parts = [what_was_run(cells, wanted), page(cells, subjects, texts=False).strip(), signal]
    measured = "\n\n".join(part for part in parts if part).replace("#### ", "### ")
    return f"{before}{BEGIN}\n\n{measured}\n\n{END}{after}"


def what_was_run(cells: dict[Key, Cell], wanted: Sequence[Key]) -> str:
    """Which of the wanted cells are there, in words, and which are not."""
    finished = [key for key in wanted if key in cells]
    lines = [f"{len(finished)} of {len(wanted)} cells are finished."]
    for name in dict.fromkeys(behaviour for behaviour, _, _ in wanted):
        for split in dict.fromkeys(of_split for behaviour, of_split, _ in wanted if behaviour == name):
            rows = [row for behaviour, of_split, row in wanted if (behaviour, of_split) == (name, split)]
            left = [row for row in rows if (name, split, row) not in cells]
            missing = f"; not run: {'; '.join(left)}" if 0 < len(left) < len(rows) else ""
            lines.append(f"- {name}, split {split}: {len(rows) - len(left)} of {len(rows)} rows{missing}")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------- tables
def _overview(cells: dict[Key, Cell], subjects: Subjects, behaviours: Sequence[str]) -> str:
    lines = [
        "#### The model as it is",
        "",
        "| behaviour | splits | right on test | without the cause | controls right | words alone | cause in top 3 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in behaviours:
        splits = _splits(cells, name)
        draws = [cells[name, split, "unsteered"]["draws"][0] for split in splits]
        gains = gains_of(cells, dict(subjects), name, "unsteered")
        assert not isinstance(gains, str)
        undisturbed = [draw["undisturbed"] for draw in draws if draw["undisturbed"] is not None]
        causes = [draw["causes"] for draw in draws if draw["causes"]]
        cells_of_line = [
            name,
            f"{len(splits)}",
            f"{gains[0].accuracy}",
            _percent(_mean(undisturbed)) if undisturbed else "",
            f"{gains[0].controls}",
            _percent(_mean([draw["by_words"] for draw in draws])),
            _causes(causes) if causes else "",
        ]
        lines.append(f"| {' | '.join(cells_of_line)} |")
    return "\n".join(lines)


def _causes(of_splits: Sequence[dict[str, Any]]) -> str:
    n = sum(recalled["n"] for recalled in of_splits)
    among_all, content = (sum(recalled[name] for recalled in of_splits) for name in ("among_all", "among_content"))
    chance = _mean([recalled["by_chance"] for recalled in of_splits])
    return f"{among_all} of {n}; of the user's words {content} of {n} (chance {_percent(chance)})"


def _table(cells: dict[Key, Cell], subjects: Subjects, name: str) -> str:
    lines = [
        f"#### {BEHAVIOURS[name].title}",
        "",
        "| row | strength, by split | right | gain, points | margin, nats | per token | controls, points "
        "| everyday, nats | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in ROWS:
        gains = gains_of(cells, dict(subjects), name, row)
        if isinstance(gains, str):
            lines.append(f"| {row} | {gains} | | | | | | | |")
            continue
        of_row, splits = gains
        strengths = [cells[name, split, row]["draws"][0]["strength"] for split in splits]
        strengths_by_split = ", ".join(f"{strength:g}" for strength in strengths)
        if row == "unsteered":
            lines.append(f"| {row} | | {_percent(of_row.accuracy.value)} | | | | | | |")
            continue
        figures = [
            row,
            strengths_by_split
            + (f" ({len(splits)} of {len(_splits(cells, name))} splits)" if _is_partial(cells, name, splits) else ""),
            _percent(of_row.accuracy.value),
            _points(of_row.gain),
            _nats(of_row.margin),
            _nats(of_row.token_margin),
            _points(of_row.controls_gain),
            _nats(of_row.everyday),
            _verdict(of_row, strengths),
        ]
        lines.append(f"| {' | '.join(figures)} |")
    return "\n".join(lines)


def _is_partial(cells: dict[Key, Cell], name: str, splits: Sequence[int]) -> bool:
    return len(splits) < len(_splits(cells, name))


def _verdict(of_row: Gains, strengths: Sequence[float]) -> str:
    return of_row.verdict if any(strengths) else "never chosen"


def _signals(cells: dict[Key, Cell], subjects: Subjects, name: str) -> str:
    """What the signal line said, beside what came out."""
    lines = [
        f"Is it signal? (`{name}`; means over splits)",
        "",
        "| row | verdicts of the line | slope, nats per lam | cosine with the edit's gradient | halves agree "
        "| v_pos, v_neg | template tokens | gain on test, nats |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in SIGNALLED:
        gains = gains_of(cells, dict(subjects), name, row)
        if isinstance(gains, str):
            continue
        of_row, splits = gains
        figures = [cells[name, split, row]["draws"][0]["signal"] for split in splits]
        line = [
            row,
            ", ".join(f["verdict"] for f in figures),
            f"{_mean([f['slope'][0] for f in figures]):+.3f}",
            f"{_mean([f['cosine'] for f in figures]):+.3f} (chance {figures[0]['chance']:.3f})",
            f"{_mean([f['halves'][0] for f in figures if 'halves' in f]):.2f}",
            f"{_mean([f['sides'] for f in figures]):.2f}",
            _percent(_mean([f["template"] for f in figures])),
            _nats(of_row.margin),
        ]
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines) if len(lines) > 4 else ""


def _texts(cells: dict[Key, Cell], name: str) -> str:
    """Greedy answers on split 0, as they are."""
    base = cells[name, 0, "unsteered"]["draws"][0]
    rows = [row for row in TEXT_ROWS if (name, 0, row) in cells and "error" not in cells[name, 0, row]]
    lines = [f"What it says (`{name}`, split 0, greedy, {len(base['asked'])} prompts of the test):", ""]
    for i, asked in enumerate(base["asked"]):
        lines.append(f"- **{one_line(asked)}**")
        for row in rows:
            draw = cells[name, 0, row]["draws"][0]
            strength = f", {draw['strength']:g}" if row != "unsteered" else ""
            lines.append(f"    - {row}{strength}: {one_line(draw['texts'][i])}")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------- figures
def draw_curves(cells: dict[Key, Cell], path: Path) -> None:
    """Gain of the mean margin on dev against what everyday answers lose, every strength of every ladder; split 0."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    behaviours = [name for name in BEHAVIOURS if any((name, 0, row) in cells for row in DRAWN)]
    if not behaviours:
        return
    figure, axes = plt.subplots(1, len(behaviours), figsize=(5 * len(behaviours), 4.6), squeeze=False)
    for axis, name in zip(axes[0], behaviours, strict=True):
        for row, (colour, line) in DRAWN.items():
            curve = curve_of(cells.get((name, 0, row)))
            if curve:
                losses, nats = zip(*curve, strict=True)
                axis.plot(losses, nats, line, color=colour, marker="o", markersize=4, label=row)
        axis.axvline(EVERYDAY_LOSS, color="#888888", linewidth=0.8)
        axis.axhline(0, color="#888888", linewidth=0.8)
        axis.set_xscale("symlog", linthresh=0.02)
        axis.set_xlim(min(-0.1, *axis.get_xlim()), 3)  # a loss below zero is a gain, and may be large
        axis.set_title(name)
        axis.set_xlabel("what everyday answers lose on dev, nats per token")
    axes[0][0].set_ylabel("gain of the mean margin on dev, nats")
    lines: dict[str, Any] = {}
    for axis in axes[0]:
        handles, labels = axis.get_legend_handles_labels()
        lines |= dict(zip(labels, handles, strict=True))
    figure.legend([*lines.values()], [*lines], loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.suptitle("Every strength of every ladder, split 0; right of the grey line a strength is not admissible")
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=130)
    figure.savefig(path.with_suffix(".svg"))
    plt.close(figure)


def curve_of(cell: Cell | None) -> list[tuple[float, float]]:
    """(loss of everyday answers, gain of the mean margin) of every strength on dev, unsteered first."""
    if cell is None or "error" in cell:
        return []
    rungs = cell["draws"][0]["rungs"]
    _, _, _, margin, _, everyday, _ = rungs[0]
    return [(everyday - rung[5], rung[3] - margin) for rung in rungs]


# ------------------------------------------------------------------------------------------- the record
def record(cells: dict[Key, Cell], subjects: Subjects) -> dict[str, Any]:
    """Every row of every behaviour in plain figures: shares, and nats."""
    content: dict[str, Any] = {}
    for name in BEHAVIOURS:
        if (name, 0, "unsteered") not in cells:
            continue
        rows = {}
        for row in ROWS:
            gains = gains_of(cells, dict(subjects), name, row)
            if isinstance(gains, str):
                rows[row] = {"missing": gains}
                continue
            of_row, splits = gains
            figures: dict[str, Any] = {field: [r.value, r.low, r.high] for field, r in vars(of_row).items()}
            figures |= {"splits": splits, "verdict": of_row.verdict}
            figures["strengths"] = [cells[name, split, row]["draws"][0]["strength"] for split in splits]
            figures["rungs"] = [cells[name, split, row]["draws"][0]["rungs"] for split in splits]
            figures["controls_right"] = [share_right(seen_of(cells[name, split, row]).controls) for split in splits]
            rows[row] = figures
        content[name] = rows
    return content


def _splits(cells: dict[Key, Cell], name: str) -> list[int]:
    return sorted({split for behaviour, split, row in cells if (behaviour, row) == (name, "unsteered")})


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _points(rate: Rate) -> str:
    return f"{100 * rate.value:+.0f} [{100 * rate.low:+.0f}, {100 * rate.high:+.0f}]"


def _nats(rate: Rate) -> str:
    return f"{rate.value:+.2f} [{rate.low:+.2f}, {rate.high:+.2f}]"
