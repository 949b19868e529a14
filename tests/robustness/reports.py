"""Reports of runs in which ports say what they like: JUnit is always XML, and nothing reaches the terminal raw.

rng = random.Random(0)
for _ in range(10_000):
    campaign(rng, folder)
"""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from xml.etree import ElementTree

from robustness.port_answers import cases

from grains_ref.cli.console import Screen
from grains_ref.conformance.budgets import load_budgets
from grains_ref.conformance.ports import words_of
from grains_ref.conformance.report import print_run, write_json, write_junit
from grains_ref.conformance.runner import Result, Run

PIECES = (
    "\x1b[2J\x1b]0;title\x07", "\0", "\ud800", "\udfff\ud800", "\ufffe", "\uffff", "\U0001ffff", "\x85", "\u2028",
    "\u202edelrow", "]]>", "<a&b>", '"', "'", "\r", "\n", "\t", "\x7f", "\x9b31m", "word", "\u00e9", "\U0001f642",
    "[red]",
)  # fmt: skip
STATUSES = ("passed", "failed", "expected failure", "unexpected pass", "skipped", "not claimable")


def text(rng: random.Random) -> str:
    """Some pieces in a row."""
    return "".join(rng.choices(PIECES, k=rng.randint(0, 6)))


def mutations(rng: random.Random) -> Run:
    """A run with odd words in every place that a port, a file name or a pattern can fill."""
    results = []
    for case, _ in rng.sample(cases(), rng.randint(0, 4)):
        status = rng.choice(STATUSES)
        message = rng.choice([text, lambda rng: words_of(text(rng))])(rng)
        error = rng.choice([0.0, 1e-3, float("inf")])
        results.append(Result(case.id, case.stage, "float32", "isolated", status, error=error, message=message))  # type: ignore[arg-type]
    claimed = tuple({result.stage: None for result in results})
    return Run(
        text(rng), claimed, ("float32",), tuple(results), stale=tuple(text(rng) for _ in range(rng.randrange(2)))
    )


def check(run: Run, folder: Path) -> str:
    """ "accepted": all reports can be read again, and hold what happened."""
    write_junit(run, folder / "junit.xml")
    suite = ElementTree.parse(folder / "junit.xml").getroot()
    failures = sum(result.status in ("failed", "unexpected pass") for result in run.results)
    assert (suite.get("tests"), suite.get("failures")) == (str(len(run.results)), str(failures)), "silent: a lost case"
    write_json(run, folder / "run.json")
    name = run.port.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # halves of a character: U+FFFD
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["port"] == name, "silent: another name"
    file = io.StringIO()
    screen = Screen()
    screen.file = file
    print_run(run, load_budgets(), screen, repeat="grains-ref conform run")
    shown = file.getvalue()
    assert all(character.isprintable() or character == "\n" for character in shown), f"silent: raw {shown!r}"
    shown.encode()
    return "accepted"


def campaign(rng: random.Random, folder: Path) -> str:
    """One run."""
    return check(mutations(rng), folder)
