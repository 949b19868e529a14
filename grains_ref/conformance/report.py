"""What a porter reads: a table per stage, the first divergence with its likely bug, and the same as JSON and JUnit."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from grains_ref.conformance.alone import MOST, SECONDS, Alone
from grains_ref.conformance.budgets import Budget
from grains_ref.conformance.cases import FLAGS
from grains_ref.conformance.dialects import DIALECTS
from grains_ref.conformance.naming import Likely
from grains_ref.conformance.runner import END_TO_END, RUNS, Mode, Result, Run
from grains_ref.conformance.stages import OPTIONS, OUTPUTS, STAGES
from grains_ref.files import printable, write_whole


def print_run(run: Run, budgets: Mapping[tuple[str, str], Budget], console: Console, *, repeat: str) -> None:
    """The report of one port; `repeat` is the command that runs a single case again."""
    console.print(f"\n{run.port}", style="bold", end="")
    console.print(f"   claims {', '.join(run.claimed) or 'nothing'} in {', '.join(run.dtypes) or 'no dtype'}")
    if run.dialect != "paper":
        console.print(f"Dialect {run.dialect}: judged by the code released with the paper, not by the paper.")
    if not run.claimed or not run.dtypes:
        names = ", ".join(STAGES)
        console.print(f"Nothing claimed, nothing run. Define at least one of {names}.", style="bold red")
        return
    for dtype in run.dtypes:
        console.print(_table(run, dtype, budgets))
    console.print("error, budget: relative, worst and allowed; weakest bug: the least visible planted bug", style="dim")
    blind = [f"{s} in {d}" for d in run.dtypes for s in OUTPUTS if s in run.claimed and _is_blind(budgets, s, d)]
    if blind:
        console.print(f"Not claimable: {', '.join(blind)}. There a right port and a wrong one look alike.")
    missing = [stage for stage in STAGES if stage not in run.claimed]
    if missing:
        console.print(f"Not claimed, not checked: {', '.join(missing)}.")
    options = [option for option in OPTIONS if option in DIALECTS[run.dialect].oracle]
    claimed = sum(option in run.claimed for option in options)
    console.print(f"Options claimed: {claimed} of {len(options)}; `grains-ref conform list` names them.")
    if run.stale:
        console.print(f"Known failures that match no case: {', '.join(run.stale)}; remove them.", style="red")
    for line in explain(run, repeat=repeat):
        indent = len(line.plain) - len(line.plain.lstrip())
        console.print(Padding(line[indent:], (0, 0, 0, indent), expand=False))


def _is_blind(budgets: Mapping[tuple[str, str], Budget], stage: str, dtype: str) -> bool:
    """Whether nothing can be told from an output; what the dialect does not know is not asked."""
    return (stage, dtype) in budgets and not budgets[stage, dtype].claimable


def explain(run: Run, *, repeat: str) -> Iterator[Text]:
    """The first divergence in words, and a line for every other stage that fails."""
    unexpected = [r for r in run.results if r.status == "unexpected pass"]
    if unexpected:
        names = ", ".join(dict.fromkeys(r.case for r in unexpected))
        yield Text(f"Known failures that pass now: {names}. Take them out of the file.", style="red")
    first = run.first_divergence()
    if first is None:
        passed = sum(result.status == "passed" for result in run.results)
        if passed and not run.failed:
            yield Text(f"No divergence in {passed} results.", style="bold green")
        elif not passed:
            yield Text("Nothing passed: all that was run was skipped, expected to fail or not claimable.", style="red")
        return
    yield from _divergence(run, first, repeat)
    for stage in OUTPUTS:
        if stage != first.stage and run.failures(stage):
            yield _also_failing(run, stage)
    for result in run.failures(END_TO_END):
        if result is not first:
            yield _said(f"End to end ({result.dtype}): {result.message}. It follows from {first.stage}.")
    if run.alone or run.not_alone:
        yield Text(_number_alone(run))


def _number_alone(run: Run) -> str:
    """How many cases were asked again alone, what came of them, and which stages were left out."""
    counts = Counter(alone.outcome for alone in run.alone.values())
    outcomes = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
    words = f"Asked again alone, the first failing case of a stage: {len(run.alone)}"
    if outcomes:
        words += f" ({outcomes})"
    if run.not_alone:
        words += f". Not asked, for at most {MOST} are, within {SECONDS:g} seconds: {', '.join(run.not_alone)}"
    return f"{words}."


def _divergence(run: Run, first: Result, repeat: str) -> Iterator[Text]:
    """The first failing stage: its most basic case, what that is for, what the bug may be, how to run it again."""
    stage = first.stage
    failures = run.failures(stage)
    yield Text(f"First failing stage: {stage} ({first.mode}, {first.dtype}).", style="bold red")
    alone = run.alone.get(stage)
    if first.mode == "again" or (alone and alone.is_right):
        yield Text("  The port keeps something from one call to the next: a cache, a buffer, a hook, an alias.")
    elif first.mode != "isolated":
        yield Text("  Every stage is right by itself, so look between them: an index, an order, an alias, a cache.")
    yield _said(f"  {first.case}: {first.message}")
    if alone:
        yield _said(f"  {alone.words()}")
    case = next((case for case in DIALECTS[run.dialect].cases if case.id == first.case), None)
    if case:
        yield Text(f"  The case: {case.comment}.")
        for flag in case.flags:
            yield Text(f"    {flag}: {FLAGS[flag].description}. If wrong: {_lower(FLAGS[flag].effect)}.")
    lines = guess(run, stage)
    if lines:
        head, _, rest = lines[0].partition(": ")
        yield Text(f"  {head}: ", style="bold").append(rest, style="bold yellow")
        yield from (Text(f"    {line}") for line in lines[1:])
    others = [r for r in failures if not r.diagnosed and r is not first and r.mode != "end to end"]
    for message, number in Counter(_without_details(r.message) for r in others).most_common(3):
        example = next(result for result in others if _without_details(result.message) == message)
        words = f"{number} case{'s' if number > 1 else ''}, such as {example.case}"
        yield _said(f"  Also in {words}: {_without_output(example.message)}")
    if case:
        yield _said(f"  Again: {repeat} --only {first.case} --dtype {first.dtype}")


def guess(run: Run, stage: str) -> list[str]:
    """What is likely wrong with a failing stage, line by line: the name, what it rests on, what looks alike.

    Empty where no output could be compared with those of the planted bugs.
    """
    failures, likely = run.failures(stage), run.likely_bug(stage)
    if run.is_rounding(stage):
        worst = max(result.error for result in failures)
        return [
            f"Rounding: your numbers differ by float32's rounding (at most {worst:.0e}) under a claim of float64.",
            "Did a cast, a constant or a library call in float32 slip in?",
        ]
    alone = run.alone.get(stage)
    if alone and alone.is_right:
        return ["Nothing is named: the case is right alone. Mend what is kept from call to call, then run again."]
    if likely is None:
        if not any(result.diagnosed for result in failures):
            return []
        return ["No planted bug gives this output: two bugs at once, perhaps, or one that we do not know."]
    bug = _description(run, stage, likely.bug)
    if not likely.named:
        like = f"None has this very output; the nearest is {likely.bug} ({bug})."
        return [f"Likely kind of bug: {likely.kind}.", f"{likely.share()}. {like}"]
    effect = f"Effect: {_lower(_effect(run, stage, likely.bug))}."
    lines = [f"Likely bug: {bug} ({likely.bug}).", f"{likely.share()}. {effect}"]
    if likely.contradicted:
        lines.append(f"Right in {likely.contradicted} cases that this bug would spoil: {_why_contradicted(alone)}")
    if likely.alike:
        lines.append(f"Just as likely: {'; '.join(f'{_description(run, stage, a)} ({a})' for a in likely.alike)}.")
    return lines


def _why_contradicted(alone: Alone | None) -> str:
    """What may be the matter where right outputs speak against the bug that is named."""
    if alone and alone.outcome == "wrong in the same way":
        return f"it is not quite yours, though {alone.case} is wrong alone too."
    return "is something kept from call to call, a cache or a buffer? Ask one case alone (--only)."


def _also_failing(run: Run, stage: str) -> Text:
    """A line for a failing stage that is not the first."""
    number = len(run.failures(stage))
    words = f"Also failing: {stage}, {number} time{'s' if number > 1 else ''}."
    alone = run.alone.get(stage)
    if alone and alone.outcome != "wrong in the same way":
        return _said(f"{words} {alone.words()}")
    earlier, likely = run.follows_from(stage), run.likely_bug(stage)
    before = run.likely_bug(earlier) if earlier else None
    if likely and before and likely.named and likely.bug == before.bug:
        return Text(f"{words} The same bug ({likely.bug}): {RUNS[stage][earlier]}.")
    if earlier and not (likely and likely.named):
        return Text(f"{words} It may follow from {earlier}: {RUNS[stage][earlier]}.")
    lines = guess(run, stage)
    if not lines:
        return _said(
            f"{words} Such as {run.failures(stage)[0].case}: {_without_output(run.failures(stage)[0].message)}"
        )
    return Text(" ".join([words, lines[0]] + ([f"{_share(likely)}."] if likely else [])))


def _share(likely: Likely) -> str:
    """The share alone, for a line with more on it."""
    return f"{likely.explained} of {likely.failures}" + (
        f"; just as likely: {', '.join(likely.alike)}" if likely.alike else ""
    )


def _description(run: Run, stage: str, name: str) -> str:
    return next(bug.description for bug in DIALECTS[run.dialect].bugs_of(stage) if bug.name == name)


def _effect(run: Run, stage: str, name: str) -> str:
    return next(bug.effect for bug in DIALECTS[run.dialect].bugs_of(stage) if bug.name == name)


def _lower(text: str) -> str:
    """For the middle of a sentence; BOS and NaN stay."""
    first = text.split()[0]
    return text[0].lower() + text[1:] if len(first) == 1 or first[1:].islower() else text


def _without_details(message: str) -> str:
    """What messages about different inputs have in common: the first line up to its parenthesis."""
    return _without_output(message).partition(" (")[0]


def _without_output(message: str) -> str:
    """The first line of a message, without what a program printed."""
    return message.partition("\n")[0].partition(". It wrote")[0]


def _xml(text: str) -> str:
    """Text in which what XML 1.0 cannot hold is replaced, as it would be by a reader who cannot show it."""
    return re.sub("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]", "\ufffd", text)


def _said(text: str) -> Text:
    """A line of which a part may come from a port: no terminal obeys it."""
    return Text(printable(text, keep="\n\t"))


def _table(run: Run, dtype: str, budgets: Mapping[tuple[str, str], Budget]) -> Table:
    table = Table(title=dtype, title_justify="left", box=None, padding=(0, 2, 0, 0))
    longest = max((len(result.stage) for result in run.results if result.dtype == dtype), default=0)
    table.add_column("stage", min_width=longest, no_wrap=True)  # the one column that is never cut
    for column in ("isolated", "chained", "worst case", "error", "budget", "weakest bug"):
        justify: Literal["left", "right"] = "right" if column in ("error", "budget", "weakest bug") else "left"
        table.add_column(column, justify=justify, no_wrap=" " not in column)
    for stage in OUTPUTS:
        isolated, chained = (_of(run, stage, dtype, mode) for mode in ("isolated", "chained"))
        if not isolated and not chained:
            continue
        budget = budgets[stage, dtype]
        worst = max(isolated, key=lambda r: r.error, default=None)
        table.add_row(
            stage,
            _count(isolated),
            _count(chained),
            worst.case.rpartition("-")[2] if worst and worst.error else "",
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
        "dialect": run.dialect,
        "claimed": list(run.claimed),
        "not_claimed": [stage for stage in OUTPUTS if stage not in run.claimed],
        "dtypes": list(run.dtypes),
        "conformant": not run.failed,
        "first_divergence": _row(first) if first else None,
        "likely_bugs": {stage: asdict(likely) for stage in OUTPUTS if (likely := run.likely_bug(stage))},
        "guesses": {stage: lines for stage in OUTPUTS if run.failures(stage) and (lines := guess(run, stage))},
        "follows_from": {
            stage: first_failing for stage in (*OUTPUTS, END_TO_END) if (first_failing := run.follows_from(stage))
        },
        "alone": {stage: asdict(alone) | {"words": alone.words()} for stage, alone in run.alone.items()},
        "not_alone": list(run.not_alone),
        "stale_expected_failures": list(run.stale),
        "results": [_row(result) for result in run.results],
    }


def _row(result: Result) -> dict[str, Any]:
    row = asdict(result)
    return row | {"error": result.error if math.isfinite(result.error) else None}


def write_json(run: Run, path: Path) -> None:
    """Write `as_json` to a file; halves of a character, which no UTF-8 holds, become U+FFFD."""
    content = json.dumps(as_json(run), indent=1, ensure_ascii=False) + "\n"
    write_whole(path, content.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def junit(run: Run) -> bytes:
    """The run as JUnit XML, one test case per result; valid XML whatever the port says."""
    name = _xml(f"grains_ref conformance of {run.port}")
    suite = ElementTree.Element("testsuite", name=name, tests=str(len(run.results)))
    for result in run.results:
        name = _xml(f"{result.case} {result.dtype} {result.mode}")
        case = ElementTree.SubElement(suite, "testcase", classname=f"conformance.{result.stage}", name=name)
        if result.status in ("failed", "unexpected pass"):
            likely = run.likely_bug(result.stage)
            words = (
                f"; {'likely bug' if likely.named else 'nearest'}: {likely.bug} ({_share(likely)})" if likely else ""
            )
            alone = run.alone.get(result.stage)
            if alone and (alone.case, alone.dtype) == (result.case, result.dtype):
                words += f"; {alone.words()}"
            ElementTree.SubElement(case, "failure", message=_xml(f"{result.message or result.status}{words}"))
        elif result.status != "passed":
            ElementTree.SubElement(case, "skipped", message=_xml(f"{result.status}: {result.message}"))
    suite.set("skipped", str(sum(child.find("skipped") is not None for child in suite)))
    suite.set("failures", str(sum(child.find("failure") is not None for child in suite)))
    return ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)


def write_junit(run: Run, path: Path) -> None:
    """Write `junit` to a file, for continuous integration."""
    write_whole(path, junit(run))
