"""`grains-ref conform summary` and `diff`: what a port's README can say of a run, and what changed between two."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from grains_ref.cli.console import guarded, out

Before = Annotated[Path, typer.Argument(help="JSON of the earlier run (--json).", show_default=False)]
After = Annotated[Path, typer.Argument(help="JSON of the later run.", show_default=False)]
SHOWN = 10  # changes of a kind, unless all are asked for


@guarded
def summary(
    results: Annotated[Path, typer.Argument(help="JSON of `run`, `verify` or `live` (--json).", show_default=False)],
    only_line: Annotated[bool, typer.Option("--line", help="Only the line, as for a badge.")] = False,
) -> None:
    """A line for a badge and a Markdown table for a port's README, from the JSON of a run."""
    from grains_ref.conformance.summary import line, markdown, read_run

    run = read_run(results)
    out.print(line(run) if only_line else markdown(run), soft_wrap=True)


@guarded
def diff(
    before: Before,
    after: After,
    show_all: Annotated[bool, typer.Option("--all", help="Show every change.")] = False,
) -> None:
    """What changed between two runs. Exit code 1: something that passed does not any more."""
    from grains_ref.conformance.diff import KINDS, changes
    from grains_ref.conformance.summary import read_run

    old, new = read_run(before), read_run(after)
    if old["dialect"] != new["dialect"]:
        raise ValueError(f"the runs were judged by {old['dialect']} and by {new['dialect']}: nothing to compare")
    differences = changes(old, new)
    counts = Counter(change.kind for change in differences)
    told = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind])
    sizes = f"{old['port']}, {len(old['results'])} results; {new['port']}, {len(new['results'])}"
    out.print(f"{sizes}: {told or 'no change'}.")
    for kind in KINDS:
        of_kind = [change for change in differences if change.kind == kind]
        for change in of_kind if show_all else of_kind[:SHOWN]:
            reason = f": {change.message}" if change.message else ""
            place = f"{change.case} ({change.dtype}, {change.mode})"
            style = "red" if kind == "broken" else ""
            out.print(f"{kind}: {place} {change.before} -> {change.after}{reason}", style=style)
        if len(of_kind) > SHOWN and not show_all:
            out.print(f"{kind}: {len(of_kind) - SHOWN} more; --all shows them")
    if counts["broken"]:
        raise typer.Exit(1)
