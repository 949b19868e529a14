"""What a port's README can say: one line for a badge and a Markdown table, made from the JSON of a run.

GrAInS conformance: 7 of 7 stages in float64, float32; 452 of 452 results; by the paper; grains_ref 0.1.0
GrAInS conformance live, mine on tiny:simple-seed0: 7 of 7 stages in float32; 62 of 62 results; by the paper; ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grains_ref
from grains_ref.conformance.stages import OPTIONS, STAGES
from grains_ref.files import parse_json, printable, read_whole

FIELDS = ("port", "dialect", "claimed", "dtypes", "conformant", "first_divergence", "alone", "results")
ALONE_FIELDS = ("case", "dtype", "outcome", "words")
ROW_FIELDS = ("case", "stage", "dtype", "mode", "status", "error", "budget")


def read_run(path: Path) -> dict[str, Any]:
    """What `grains-ref conform run`, `verify` or `live` wrote with --json.

    Raises:
        ValueError: the file cannot be read, or is no such JSON.
    """
    content = read_whole(path)
    try:
        run = parse_json(content)
    except ValueError as problem:
        raise ValueError(f"{path} is no JSON: {problem}") from None
    advice = "expected what `grains-ref conform run --json FILE` writes"
    if not isinstance(run, dict) or (missing := [name for name in FIELDS if name not in run]):
        lacks = f"lacks {', '.join(missing)}" if isinstance(run, dict) else "is no object"
        raise ValueError(f"{path} {lacks}; {advice}")
    rows = run["results"]
    if not isinstance(rows, list) or not all(isinstance(row, dict) and set(ROW_FIELDS) <= set(row) for row in rows):
        raise ValueError(f"{path}: its results are no list of objects with {', '.join(ROW_FIELDS)}; {advice}")
    alone = run["alone"]
    if not isinstance(alone, dict) or not all(
        isinstance(row, dict) and set(ALONE_FIELDS) <= set(row) for row in alone.values()
    ):
        raise ValueError(f"{path}: 'alone' is no object of objects with {', '.join(ALONE_FIELDS)}; {advice}")
    return run


def line(run: Mapping[str, Any]) -> str:
    """One line of plain text: what holds, or where the port diverges first."""
    claimed = [stage for stage in STAGES if stage in run["claimed"]]
    options = sum(option in run["claimed"] for option in OPTIONS)
    passed = sum(row["status"] == "passed" for row in run["results"])
    skipped = sum(row["status"] == "skipped" for row in run["results"])
    asked = f"{passed} of {len(run['results']) - skipped} results" + (f", {skipped} skipped" if skipped else "")
    law = "by the paper" if run["dialect"] == "paper" else "by the released code"
    more = f" and {options} options" if options else ""
    stages = f"{len(claimed)} of {len(STAGES)} stages{more} in {', '.join(run['dtypes'])}"
    facts = [stages, asked, law, f"grains_ref {grains_ref.__version__}"]
    first = run["first_divergence"]
    if first:
        alone = run["alone"].get(first["stage"])
        right = ", right alone: it depends on the order of calls" if alone and alone["outcome"] == "right" else ""
        facts.insert(0, f"fails at {first['stage']} ({first['case']}, {first['dtype']}{right})")
    elif not run["conformant"]:
        facts.insert(0, "fails: nothing passed, or a known failure passes")
    is_live = any(row["mode"] == "live" for row in run["results"])
    head = f"GrAInS conformance live, {run['port']}" if is_live else "GrAInS conformance"
    return printable(f"{head}: {'; '.join(facts)}")


def markdown(run: Mapping[str, Any]) -> str:
    """The line in bold and a table: a row for each stage and each option claimed, a column for each dtype.

    Below it stands what failing cases gave when they were asked again alone.
    """
    dtypes = [str(dtype) for dtype in run["dtypes"]]
    rows = [f"| stage | {' | '.join(dtypes)} |", "|---" * (1 + len(dtypes)) + "|"]
    for stage in (*STAGES, *(option for option in OPTIONS if option in run["claimed"])):
        cells = [_cell([row for row in run["results"] if (row["stage"], row["dtype"]) == (stage, d)]) for d in dtypes]
        rows.append(f"| {stage} | {' | '.join(cells)} |")
    verdicts = [printable(f"{stage}: {alone['words']}") for stage, alone in run["alone"].items()]
    below = "\n".join(f"- {' '.join(words.split())}" for words in verdicts)
    return "\n".join([f"**{line(run)}**", "", *rows, "", *([below, ""] if below else [])])


def _cell(results: Sequence[Mapping[str, Any]]) -> str:
    """How many passed, what became of the others, and the largest error in units of what was allowed."""
    if not results:
        return "not claimed"
    counts: dict[str, int] = {}
    for row in results:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    if set(counts) == {"not claimable"}:
        return "not claimable"
    if set(counts) == {"skipped"}:
        return f"{len(results)} skipped"
    passed = counts.pop("passed", 0)
    others = "".join(f", {number} {status}" for status, number in counts.items())
    cell = f"{passed} of {len(results) - counts.get('skipped', 0)}{others}"
    judged = [row for row in results if row["status"] == "passed" and row["error"] and row["budget"]]
    if judged:
        worst = max(judged, key=lambda row: row["error"] / row["budget"])
        cell += f"; error {worst['error']:.0e}, allowed {worst['budget']:.0e}"
    return printable(f"**{cell}**" if "failed" in counts else cell)
