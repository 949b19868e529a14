"""What the kit has, as tables: stages, options, cases, flags and planted bugs."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from typing import Any

from grains_ref.conformance import options
from grains_ref.conformance.cases import FLAGS
from grains_ref.conformance.dialects import Dialect
from grains_ref.conformance.stages import STAGES

WELL_POSED = {"valid": "well-posed", "acceptable": "ill-posed", "invalid": "to be refused"}


def catalogue(dialect: Dialect, only: Sequence[str] = ()) -> dict[str, list[dict[str, Any]]]:
    """Rows by table: `stages`, `options`, `cases`, `flags` and `bugs`.

    only: patterns of stages, cases, flags and bugs; a flag stands for the cases that have it.

    Raises:
        ValueError: a pattern fits nothing.
    """

    def is_wanted(*names: str) -> bool:
        return not only or any(fnmatch.fnmatch(name, pattern) for name in names for pattern in only)

    cases = [case for case in dialect.cases if is_wanted(case.stage, case.id, *case.flags)]
    bugs = [bug for bug in dialect.bugs if is_wanted(bug.stage, bug.name)]
    if not cases and not bugs:
        raise ValueError(f"nothing is called {', '.join(only)}; names are those of stages, cases, flags and bugs")
    stages = []
    for stage in dialect.oracle:
        results: list[str] = [case.result for case in cases if case.stage == stage]
        counts = {words: results.count(result) for result, words in WELL_POSED.items()}
        planted = sum(bug.stage == stage for bug in bugs)
        if results or planted:
            kind = "stage" if stage in STAGES else "option"
            row = {"stage": stage, "kind": kind, "cases": len(results), **counts, "bugs": planted}
            stages.append(row | {"what": dialect.headers[stage]})
    names = [str(row["stage"]) for row in stages]
    used = {flag for case in cases for flag in case.flags}
    asked = {flag for flag in used if only and is_wanted(flag)} or used
    return {
        "stages": stages,
        "options": [
            {
                "option": option,
                "in": options.TAKES[option],
                "out": options.gives(option),
                "rule": options.RULES[option] if dialect.name == "paper" else dialect.headers[option],
            }
            for option in names
            if option not in STAGES
        ],
        "cases": [
            {
                "case": case.id,
                "option": "" if case.stage in STAGES else case.stage,
                "posed": WELL_POSED[case.result],
                "flags": list(case.flags),
                "comment": case.comment,
                "kills": list(case.kills),
            }
            for case in cases
        ],
        "flags": [
            {"flag": name, "type": flag.bug_type, "looks for": flag.description, "if wrong": flag.effect}
            for name, flag in FLAGS.items()
            if name in asked
        ],
        "bugs": [
            {
                "bug": bug.name,
                "stage": bug.stage,
                "what": bug.description,
                "effect": bug.effect,
                "source": bug.source,
            }
            for bug in bugs
        ],
    }


def lines(tables: dict[str, list[dict[str, Any]]], what: str) -> Iterator[str]:
    """One of the tables for people, a line or two for each row."""
    for row in tables[what]:
        if what == "stages":
            posed = ", ".join(f"{row[words]} {words}" for words in WELL_POSED.values() if row[words])
            yield f"{row['stage']} ({row['kind']}): {row['cases']} cases, {posed}; {row['bugs']} planted bugs"
            yield f"    {row['what']}"
        elif what == "options":
            yield f"{row['option']}: in: {row['in']}; out: {row['out']}"
            yield f"    {row['rule']}"
        elif what == "cases":
            yield f"{row['case']}  {row['posed']}  [{' '.join(row['flags'])}]  {row['comment']}"
        elif what == "flags":
            yield f"{row['flag']} ({row['type']}): {row['looks for']}. If wrong: {row['if wrong']}."
        else:
            yield f"{row['bug']} ({row['stage']}; {row['source']}): {row['what']}"
            yield f"    Effect: {row['effect']}."
