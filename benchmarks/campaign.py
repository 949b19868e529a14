"""The robustness campaign: mutated files, kills, races and failing disks, many of them, from seeds.

    python benchmarks/campaign.py --jobs 2 --table docs/reliability.md
    python benchmarks/campaign.py --share 0.01            # a hundredth of everything
    python benchmarks/campaign.py --only "pair files"     # one row
    python benchmarks/campaign.py --again "pair files" 4711   # one input, with its traceback

Every input is drawn from `random.Random("<row>:<number>")` and must end in success with the right value, or in one of
the project's own errors with a message, within 5 seconds and with at most 1 GB more memory. Everything else is counted
as silent (an AssertionError of the check), untyped, slow, a crash (the process died) or a hang.

Finished chunks are kept in --work, under a digest of the sources, so that an interrupted campaign goes on and a change
of the sources starts anew. Needs the checkout, for the mutators live in tests/robustness.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import hashlib
import importlib
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from grains_ref.files import FileError, read_record, write_record  # noqa: E402

SECONDS = 5.0  # for one input
GRACE = 15.0  # after which a process that does not even answer the alarm is killed
MEGABYTES = 1000  # that the process of a chunk may grow by


class Row(NamedTuple):
    """One row of the table: a function `(rng, folder) -> outcome`, and how many inputs a whole run draws."""

    name: str
    function: str  # "module:function" under tests/
    inputs: int
    chunk: int
    what: str
    seconds: float = SECONDS


ROWS = (
    Row("pair files", "robustness.pairs:campaign_pairs", 650_000, 13_000,
        "JSONL, JSON, CSV, TSV and gzip in ten shapes: whole, with spoilt rows, with spoilt bytes"),
    Row("task files", "robustness.pairs:campaign_tasks", 200_000, 10_000, "the same of tasks"),
    Row("Parquet pair files", "robustness.pairs:campaign_parquet", 20_000, 2_500, "whole, and with spoilt bytes"),
    Row("vectors files", "robustness.vector_files:campaign", 60_000, 5_000,
        "flipped bits, cut, spliced, other headers, edited with right digests; loaded, summed, shown, saved again"),
    Row("files of other tools", "robustness.imported_files:campaign", 60_000, 5_000,
        "GGUF, {block: tensor}, .svec and five more, ours and strangers': flipped bits, cut, spliced, other numbers, "
        "headers and tensors; read, imported, saved"),
    Row("exports and cards", "robustness.exported_files:campaign", 20_000, 2_500,
        "strange vectors, headers and strengths through every writer and back; shared folders, cards; then damaged"),
    Row("pictures", "robustness.pictures:campaign", 30_000, 5_000,
        "seven formats, modes, palettes, EXIF turns; whole, animated, bombs, cut and spoilt bytes"),
    Row("dataset files", "robustness.readers:campaign", 1_000, 125,
        "of every registered dataset: spoilt bytes, values, columns, missing and strange files"),
    Row("uses of hooks", "robustness.hook_uses:campaign", 2_000, 200,
        "every method nested at random in one to four threads or tasks, with exceptions, generators and copies"),
    Row("answers of a judge", "robustness.judge_answers:campaign", 40_000, 4_000,
        "bodies cut, nested, repeated, of every type; broken chunks; keys repeated"),
    Row("judge caches", "robustness.verdict_files:campaign", 20_000, 4_000,
        "lines flipped, cut, edited, of other judges"),
    Row("answers of a port", "robustness.port_answers:campaign", 30_000, 4_000,
        "greetings and answers: types, shapes, numbers beyond range, nesting, not JSON"),
    Row("cells of a reproduction", "robustness.cell_files:campaign", 10_000, 2_000, "flipped, cut, edited, exchanged"),
    Row("reports", "robustness.reports:campaign", 1_000, 250, "JUnit and terminal, with any character in any text"),
    Row("work folders of a sweep", "robustness.sweeps:campaign", 2_000, 500, "as those of a fit"),
    Row("work folders of a fit", "robustness.work_folders:campaign", 8_000, 1_000,
        "files flipped, cut, exchanged, missing, edited; the fit goes on by its own advice"),
    Row("disk errors in a fit", "robustness.interruptions:campaign_disk_errors", 2_000, 500,
        "full, read-only, no permission, I/O error at a random operation, once, twice or for good"),
    Row("kills at operations on the disk", "robustness.interruptions:campaign_kills_at_operations", 1_000, 250,
        "a small fit, sweep or reproduction ends in the middle of one of its operations, and is run again"),
    Row("kills of fit", "robustness.interruptions:campaign_fit_kills", 200, 50,
        "SIGKILL, SIGTERM or SIGINT to the command at one to three random moments, then run again", 120.0),
    Row("kills of sweep", "robustness.interruptions:campaign_sweep_kills", 50, 25,
        "the same to the command sweep", 120.0),
    Row("kills of a reproduction", "robustness.interruptions:campaign_reproduction_kills", 20, 10,
        "the same to a reproduction with a worker process, which ends with it", 300.0),
    Row("races of fit", "robustness.interruptions:campaign_fit_races", 100, 25,
        "two or three commands with one --out, started together", 120.0),
)  # fmt: skip


def function_of(row: Row) -> Callable[[random.Random, Path], str]:
    module, name = row.function.split(":")
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]


def draw(row: Row, number: int, function: Callable[[random.Random, Path], str]) -> str:
    """One input, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="grains-robustness-") as folder:
        return function(random.Random(f"{row.name}:{number}"), Path(folder))


# -------------------------------------------------------------------------------------------- one chunk, in a process
class TooSlow(BaseException):
    """The alarm of one input; no `except Exception` stops it."""


def work(row: Row, start: int, end: int, progress: Path, result: Path) -> None:
    """Draw the inputs from start to end, and write what came of them."""
    import torch

    torch.set_num_threads(1)

    def ring(*_: object) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, ring)
    function = function_of(row)
    handle = os.open(progress, os.O_WRONLY | os.O_CREAT)
    outcomes: Counter[str] = Counter()
    failures: list[dict[str, Any]] = []
    slowest = 0.0
    grown_from = 0
    for number in range(start, end):
        os.pwrite(handle, number.to_bytes(8, "little"), 0)
        begin = time.perf_counter()
        patience = row.seconds if number > start else 60 + row.seconds  # the first one imports everything
        outcome, failure = tried(row, number, function, patience)
        if failure and failure["kind"] == "slow":  # the disk may have been busy: once more
            begin = time.perf_counter()
            outcome, failure = tried(row, number, function, row.seconds)
            outcome = f"{outcome} (second try)"
        if failure:
            failures.append(failure)
        else:
            outcomes[outcome] += 1
        if number == start:
            grown_from = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        else:
            slowest = max(slowest, time.perf_counter() - begin)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown_from) / 1024
    if grown > MEGABYTES:
        failures.append({"number": start, "kind": "memory", "message": f"the chunk grew by {grown:.0f} MB"})
    record = {"outcomes": dict(outcomes), "failures": failures, "slowest": slowest, "grown_mb": grown}
    write_record(result, record | {"start": start, "end": end})


def tried(
    row: Row, number: int, function: Callable[[random.Random, Path], str], seconds: float
) -> tuple[str, dict[str, Any] | None]:
    """The outcome of one input; or its failure."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return draw(row, number, function), None
    except TooSlow:
        return "", {"number": number, "kind": "slow", "message": f"no end after {seconds:g} seconds"}
    except Exception as error:
        kind = "silent" if isinstance(error, AssertionError) else "untyped"
        place = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{type(error).__name__}: {str(error)[:500]} ({Path(place.filename).name}:{place.lineno})"
        return "", {"number": number, "kind": kind, "message": message}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


# -------------------------------------------------------------------------------------------- all chunks
def chunks_of(row: Row, share: float) -> list[tuple[int, int]]:
    """The inputs of a row, from each number to the next."""
    total = max(1, round(row.inputs * share))
    return [(start, min(total, start + row.chunk)) for start in range(0, total, row.chunk)]


def _file_of(row: Row, start: int, end: int, folder: Path) -> Path:
    return folder / f"{row.name.replace(' ', '-')}-{start}-{end}.json"


def _of_earlier_run(row: Row, work: Path, share: float) -> list[dict[str, Any]]:
    """A row that this run leaves out, as the latest run had it that drew all of it; nothing if there is none."""
    for folder in sorted(work.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True):
        files = [_file_of(row, start, end, folder) for start, end in chunks_of(row, share)]
        if all(file.exists() for file in files):
            return [read_record(file) for file in files]
    return []


def run_chunk(row: Row, start: int, end: int, folder: Path) -> dict[str, Any]:
    """A chunk in a process of its own; one that dies or hangs goes on after the input that did it."""
    result = _file_of(row, start, end, folder)
    try:
        return read_record(result)
    except FileError:
        pass  # not run yet, or only half written
    begin = time.perf_counter()
    parts: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    ranges = [(start, end)]
    while ranges:
        first, last = ranges.pop()
        with tempfile.TemporaryDirectory() as scratch:
            progress, part, errors = (Path(scratch) / name for name in ("progress", "part.json", "errors"))
            command = [sys.executable, __file__, "--worker", row.name, str(first), str(last)]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TMPDIR": scratch}
            with errors.open("wb") as stream:
                process = subprocess.Popen([*command, str(progress), str(part)], env=environment, stderr=stream)
                hung = _watch(process, progress, row.seconds + GRACE)
            if part.exists():
                parts.append(read_record(part))
                continue
            number = _number(progress)
            said = errors.read_text(errors="replace")[-1000:]
            if number is None:
                raise SystemExit(f"{row.name}: the process of a chunk ended before it drew anything\n{said}")
        message = f"exit status {process.returncode} {said}"
        failures.append({"number": number, "kind": "hang" if hung else "crash", "message": message})
        ranges += [(a, b) for a, b in ((first, number), (number + 1, last)) if a < b]  # the rest, without that input
    merged: Counter[str] = Counter()
    for part_record in parts:
        merged.update(part_record["outcomes"])
        failures += part_record["failures"]
    record = {
        "outcomes": dict(merged),
        "failures": failures,
        "slowest": max((p["slowest"] for p in parts), default=0.0),
        "grown_mb": max((p["grown_mb"] for p in parts), default=0.0),
        "seconds": time.perf_counter() - begin,
        "date": datetime.date.today().isoformat(),
        "sources": folder.name,
    }
    write_record(result, record)
    return record


def _watch(process: subprocess.Popen[bytes], progress: Path, patience: float) -> bool:
    """Wait for a chunk; whether it had to be killed, as one input took longer than that."""
    seen, since = None, time.monotonic()
    while process.poll() is None:
        time.sleep(0.1)
        number = _number(progress)
        if number != seen:
            seen, since = number, time.monotonic()
        elif time.monotonic() - since > patience + 60:  # importing everything counts as well
            process.kill()
            process.wait()
            return True
    return False


def _number(progress: Path) -> int | None:
    """The input that a chunk is at; None where it has not drawn one yet."""
    if not progress.exists() or progress.stat().st_size < 8:
        return None
    return int.from_bytes(progress.read_bytes(), "little")


def sources_digest() -> str:
    """Of the package and the mutators: what the outcomes depend on."""
    digest = hashlib.sha256()
    files = [*(ROOT / "grains_ref").rglob("*.py"), *(ROOT / "tests" / "robustness").glob("*.py")]
    for path in sorted(files):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def main() -> int:
    """Run the chunks that are missing, print the table, and return 1 where an input failed."""
    options = _options()
    if options.worker:
        name, start, end, progress, result = options.worker
        work(_row(name), int(start), int(end), Path(progress), Path(result))
        return 0
    if options.again:
        name, number = options.again
        print(draw(_row(name), int(number), function_of(_row(name))))
        return 0
    rows = [row for row in ROWS if not options.only or row.name in options.only]
    folder = options.work / sources_digest()
    folder.mkdir(parents=True, exist_ok=True)
    units = [(row, start, end) for row in rows for start, end in chunks_of(row, options.share)]
    units.sort(key=lambda unit: unit[1])  # a first chunk of every row, then the second ones, ...
    records: dict[str, list[dict[str, Any]]] = {row.name: [] for row in rows}
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        futures = {pool.submit(run_chunk, *unit, folder): unit for unit in units}
        for n, future in enumerate(concurrent.futures.as_completed(futures), start=1):
            row, start, end = futures[future]
            record = future.result()
            records[row.name].append(record)
            print(f"{n}/{len(units)} {row.name} {start}-{end}: {_words(record)}", flush=True)
    for row in ROWS:
        if row not in rows:
            records[row.name] = _of_earlier_run(row, options.work, options.share)
    lines = table(records)
    print("\n".join(lines))
    if options.table:
        _write_between_markers(options.table, lines)
    return int(any(record["failures"] for chunks in records.values() for record in chunks))


def _words(record: dict[str, Any]) -> str:
    lines = [", ".join(f"{count} {name}" for name, count in sorted(record["outcomes"].items()))]
    lines += [f"  {f['kind']} {f['number']}: {f['message']}" for f in record["failures"][:5]]
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------- the table
FAILURES = ("silent", "untyped", "crash", "hang", "slow", "memory")
BEGIN, END = "<!-- robustness table: begin -->", "<!-- robustness table: end -->"


def table(records: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Markdown: a row for each campaign, with what was drawn, how it ended, and the worst time and growth."""
    lines = [
        f"Run on {platform.system()} with Python {platform.python_version()}.",
        "",
        f"| what | inputs | ended as | {' | '.join(FAILURES)} | slowest, s | memory, MB | date | sources |",
        "|---|---|---|" + "---|" * (len(FAILURES) + 4),
    ]
    all_inputs = 0
    for row in ROWS:
        outcomes: Counter[str] = Counter()
        failures: Counter[str] = Counter()
        for record in records[row.name]:
            outcomes.update(record["outcomes"])
            failures.update(failure["kind"] for failure in record["failures"])
        n = outcomes.total() + failures.total()
        all_inputs += n
        ended = ", ".join(f"{count:,} {name}" for name, count in sorted(outcomes.items()))
        counts = " | ".join(f"{failures[kind]:,}" for kind in FAILURES)
        slowest = max((record["slowest"] for record in records[row.name]), default=0.0)
        grown = max((record["grown_mb"] for record in records[row.name]), default=0.0)
        dates = sorted({record["date"] for record in records[row.name]})
        sources = sorted({record["sources"] for record in records[row.name]})
        figures = f"{slowest:.1f} | {grown:.0f} | {', '.join(dates)} | {', '.join(sources)}"
        lines.append(f"| **{row.name}**: {row.what} | {n:,} | {ended} | {counts} | {figures} |")
    return [*lines, "", f"Together {all_inputs:,} inputs."]


def _write_between_markers(path: Path, lines: list[str]) -> None:
    before, rest = path.read_text().split(BEGIN)
    after = rest.split(END)[1]
    path.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after)


def _row(name: str) -> Row:
    rows = {row.name: row for row in ROWS}
    if name not in rows:
        raise SystemExit(f"no row {name!r}; there are {', '.join(rows)}")
    return rows[name]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="ROW", help="this row; may be given several times")
    parser.add_argument("--share", type=float, default=1.0, help="of the inputs of every row")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "robustness", help="where finished chunks are")
    parser.add_argument("--table", type=Path, help="the page whose table is written anew")
    parser.add_argument("--again", nargs=2, metavar=("ROW", "NUMBER"), help="one input, in this process")
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
