"""What a porter reads: a table per stage, the first divergence with its likely bug, and the same as JSON and JUnit."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table
from rich.text import Text

from grains_ref.conformance.budgets import Budget
from grains_ref.conformance.bugs import BUGS
from grains_ref.conformance.cases import CASES, FLAGS
from grains_ref.conformance.runner import Mode, Result, Run
from grains_ref.conformance.stages import OUTPUTS


def print_run(run: Run, budgets: Mapping[tuple[str, str], Budget], console: Console, *, repeat: str) -> None:
    """The report of one port; `repeat` is the command that runs a single case again."""
    console.print(f"\n{run.port}", style="bold", end="")
    console.print(f"   claims {', '.join(run.claimed) or 'nothing'} in {', '.join(run.dtypes) or 'no dtype'}")
    if not run.claimed or not run.dtypes:
        console.print("Nothing claimed, nothing run: a port defines at least one stage.", style="bold red")
        return
    for dtype in run.dtypes:
        console.print(_table(run, dtype, budgets))
    missing = [stage for stage in OUTPUTS if stage not in run.claimed]
    if missing:
        console.print(f"Not claimed, not checked: {', '.join(missing)}.")
    if run.stale:
        console.print(f"Known failures that match no case: {', '.join(run.stale)}; remove them.", style="red")
    for line in explain(run, repeat=repeat):
        console.print(line)


def explain(run: Run, *, repeat: str) -> Iterator[Text]:
    """The first divergence in words, and a line for every other stage that fails."""
    first = run.first_divergence()
    unexpected = sum(result.status == "unexpected pass" for result in run.results)
    if unexpected:
        yield Text(f"{unexpected} known failures pass now; take them out of the file.", style="red")
    if first is None:
        passed = sum(result.status == "passed" for result in run.results)
        yield Text(f"No divergence in {passed} results.", style="bold green") if passed else Text("Nothing was run.")
        return
    stage = first.stage
    yield Text(f"First failing stage: {stage} ({first.mode}, {first.dtype}).", style="bold red")
    yield Text(f"  {first.case}: {first.message}")
    case = next((case for case in CASES if case.id == first.case), None)
    if case:
        yield Text(f"  The case: {case.comment}.")
        for flag in case.flags:
            yield Text(f"  {flag}: {FLAGS[flag].description}. {FLAGS[flag].effect}.")
    bug, count, failures = run.likely_bug(stage)
    if bug:
        planted = next(one for one in BUGS if one.name == bug)
        closest = min(r.diagnosis.distance for r in run.results if r.diagnosis and r.diagnosis.bug == bug)
        yield Text("  Likely bug: ", style="bold").append(f"{planted.description} ({bug}).", style="bold yellow")
        yield Text(
            f"  In {count} of {failures} failures your output equals ours with this bug, at best to {closest:.0e}. "
            f"{planted.effect}."
        )
    else:
        yield Text("  No planted bug reproduces this output; it may be two bugs at once, or one that we do not know.")
    yield Text(f"  Again: {repeat} --only {first.case} --dtype {first.dtype}")
    others = dict.fromkeys(r.stage for r in run.results if r.status == "failed" and r.stage != stage)
    for other in others:
        bug, count, failures = run.likely_bug(other)
        guess = f"likely bug: {bug} ({count} of {failures})" if bug else "no planted bug matches"
        yield Text(f"Also failing: {other}; {guess}.")


def _table(run: Run, dtype: str, budgets: Mapping[tuple[str, str], Budget]) -> Table:
    table = Table(title=dtype, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("stage", "isolated", "chained", "worst case", "error", "budget", "weakest bug"):
        table.add_column(column, justify="right" if column in ("error", "budget", "weakest bug") else "left")
    for stage in OUTPUTS:
        if stage not in run.claimed:
            continue
        budget = budgets[stage, dtype]
        isolated = _of(run, stage, dtype, "isolated")
        worst = max(isolated, key=lambda r: r.error, default=None)
        table.add_row(
            stage,
            _count(isolated),
            _count(_of(run, stage, dtype, "chained")),
            worst.case if worst and worst.error else "",
            _number(worst.error) if worst else "",
            _number(budget.budget),
            _number(budget.weakest_error),
        )
    for result in run.results:
        if result.mode == "end to end" and result.dtype == dtype:
            table.add_row("end to end", "", _count([result]), "", _number(result.error), _number(result.budget), "")
    return table


def _of(run: Run, stage: str, dtype: str, mode: Mode) -> list[Result]:
    return [r for r in run.results if (r.stage, r.dtype, r.mode) == (stage, dtype, mode)]


def _count(results: Sequence[Result]) -> Text:
    if not results:
        return Text("-", style="dim")
    if all(result.status == "not claimable" for result in results):
        return Text("not claimable", style="yellow")
    failed = sum(result.status in ("failed", "unexpected pass") for result in results)
    text = f"{sum(result.status == 'passed' for result in results)}/{len(results)}"
    for status in ("skipped", "expected failure"):
        if number := sum(result.status == status for result in results):
            text += f", {number} {status}"
    return Text(f"{text} FAIL", style="bold red") if failed else Text(text, style="green")


def _number(value: float) -> str:
    return "0" if value == 0 else "inf" if math.isinf(value) else f"{value:.0e}"


# ------------------------------------------------------------------------------------- for machines
def as_json(run: Run) -> dict[str, Any]:
    """The run as plain JSON; infinite errors become null."""
    first = run.first_divergence()
    return {
        "port": run.port,
        "claimed": list(run.claimed),
        "not_claimed": [stage for stage in OUTPUTS if stage not in run.claimed],
        "dtypes": list(run.dtypes),
        "conformant": not run.failed,
        "first_divergence": _row(first) if first else None,
        "likely_bugs": {
            stage: run.likely_bug(stage)[0]
            for stage in OUTPUTS
            if any(r.status == "failed" and r.stage == stage for r in run.results)
        },
        "stale_expected_failures": list(run.stale),
        "results": [_row(result) for result in run.results],
    }


def _row(result: Result) -> dict[str, Any]:
    row = asdict(result)
    return row | {"error": result.error if math.isfinite(result.error) else None}


def write_json(run: Run, path: Path) -> None:
    """Write `as_json` to a file."""
    path.write_text(json.dumps(as_json(run), indent=1) + "\n", encoding="utf-8")


def write_junit(run: Run, path: Path) -> None:
    """Write the run as JUnit XML, one test case per result, for continuous integration."""
    suite = ElementTree.Element("testsuite", name=f"grains_ref conformance of {run.port}", tests=str(len(run.results)))
    for result in run.results:
        name = f"{result.case} {result.dtype} {result.mode}"
        case = ElementTree.SubElement(suite, "testcase", classname=f"conformance.{result.stage}", name=name)
        if result.status in ("failed", "unexpected pass"):
            likely = f"; likely bug: {result.diagnosis.bug}" if result.diagnosis else ""
            ElementTree.SubElement(case, "failure", message=f"{result.message or result.status}{likely}")
        elif result.status != "passed":
            ElementTree.SubElement(case, "skipped", message=f"{result.status}: {result.message}")
    suite.set("skipped", str(sum(child.find("skipped") is not None for child in suite)))
    suite.set("failures", str(sum(child.find("failure") is not None for child in suite)))
    ElementTree.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)
