"""Plant bugs one at a time and show that the suite notices each: `python tests/planted_bugs`.

Each bug goes into a temporary copy of the checkout, never into the checkout itself. First the test file that its entry
names is run on it, up to the first failure, and if that passes, all files that any entry names. The unchanged copy is
run, too: tests that are red anyway would catch everything. Exits with 1 if a bug survives, with 2 if one
cannot be planted. Bugs of the adapters for lm-evaluation-harness and for Inspect are left out where these are not
installed, and those of a report's script where there is no browser, since their tests are skipped then.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import platform
import queue
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from planted_bugs import BUGS
from planted_bugs.evaluation import HARNESS, INSPECT
from planted_bugs.planting import ROOT, Bug, Copy, PlantingError, planted
from planted_bugs.report import SCRIPT

SUITE = tuple(dict.fromkeys(bug.tests for bug in BUGS))


def judge(bugs: Sequence[Bug], *, jobs: int) -> list[str]:
    """The first test that fails with each bug, "" where none does; `jobs` bugs at a time, each in a copy of its own."""
    for bug in bugs:  # all are planted once before anything is run
        planted((ROOT / bug.file).read_text(encoding="utf-8"), bug)
    with tempfile.TemporaryDirectory(prefix="planted-bugs-") as folder, ThreadPoolExecutor(jobs) as pool:
        copies: queue.Queue[Copy] = queue.Queue()
        for i in range(jobs):
            copies.put(Copy(Path(folder) / f"copy-{i}"))

        def first_failure(bug: Bug | None) -> str:
            copy = copies.get()
            try:
                if bug is None:
                    failed = copy.test(tuple(dict.fromkeys(bug.tests for bug in bugs)))
                else:
                    failed = copy.test((bug.tests,), bug) or copy.test(SUITE, bug)
            finally:
                copies.put(copy)
            name = bug.name if bug else "the code as it is"
            print(f"{name}: {failed or ('SURVIVES' if bug else 'green')}", file=sys.stderr, flush=True)
            return failed

        unchanged, *failures = pool.map(first_failure, [None, *bugs])
        for _ in range(jobs):
            copies.get().close()
        if unchanged:
            raise PlantingError(f"the suite is red without any bug: {unchanged}")
        return failures


def page(bugs: Sequence[Bug], failures: Sequence[str]) -> str:
    """What a run has shown, in Markdown."""
    caught = sum(bool(failed) for failed in failures)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers"))
    lines = [
        "# Planted bugs",
        "",
        "Each line is one mistake, planted alone in a copy of the checkout. The last column is the first test that",
        "fails with it; the unchanged code passes. This page is written by `python tests/planted_bugs --table FILE`.",
        "",
        f"**{caught} of {len(bugs)} planted bugs caught**, of {len(BUGS)} on the list; "
        f"{datetime.date.today().isoformat()}, Python {platform.python_version()}, {versions}.",
        "",
        "| bug | stage | what the code does | first failing test |",
        "|---|---|---|---|",
    ]
    for bug, failed in zip(bugs, failures, strict=True):
        test = f"`{failed}`" if failed else "**survives**"
        lines.append(f"| {bug.name} | {bug.stage} | {_cell(bug.what)} | {_cell(test)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Plant, run, report."""
    parser = argparse.ArgumentParser(description="Plant bugs and show that the suite notices each.")
    parser.add_argument("--only", action="append", metavar="NAME", help="one bug (may be repeated)")
    parser.add_argument("--list", action="store_true", help="name the bugs and stop")
    parser.add_argument("--jobs", type=int, default=1, help="bugs at a time (each needs about a core and 2 GB)")
    parser.add_argument("--table", type=Path, help="write the page with the table here, too")
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error(f"--jobs is {arguments.jobs}, expected 1 or more")
    if unknown := set(arguments.only or ()) - {bug.name for bug in BUGS}:
        parser.error(f"no bug is called {', '.join(sorted(unknown))}; --list names them all")
    bugs = [bug for bug in BUGS if not arguments.only or bug.name in arguments.only]
    for package, adapter in (("lm_eval", HARNESS), ("inspect_ai", INSPECT)):
        if importlib.util.find_spec(package) is None:
            bugs = [bug for bug in bugs if bug.file != adapter]
    if importlib.util.find_spec("playwright") is None or shutil.which("chromium") is None:
        bugs = [bug for bug in bugs if bug.file != SCRIPT]
    if arguments.list:
        for bug in bugs:
            print(f"{bug.name:32} {bug.stage:12} {bug.what}")
        return 0
    try:
        failures = judge(bugs, jobs=arguments.jobs)
    except PlantingError as error:
        print(error, file=sys.stderr)
        return 2
    text = page(bugs, failures)
    print(text)
    if arguments.table:
        arguments.table.write_text(text, encoding="utf-8")
    return 0 if all(failures) else 1


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
