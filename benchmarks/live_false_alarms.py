"""How often the live check calls a right port wrong, and how far broken ports are from what it allows.

    python benchmarks/live_false_alarms.py --out FOLDER --jobs 16          # all of it, then the tables
    python benchmarks/live_false_alarms.py --out FOLDER --share 0/4        # the first quarter; other machines do others
    python benchmarks/live_false_alarms.py --out FOLDER --report           # the tables of what is there

The right port is written on transformers alone (tests/ports/live_ports.py) and computes with a model of its own, in
eager attention and in the fused one: ten models of five families, float32 and bfloat16, 20 seeds of two pairs each.
What is finished is kept in FOLDER, one line for each piece of work, and not done again; files of several machines may
be put into one folder.

Prints a table: check, results, false alarms, undecided, and the largest error in units of what was allowed. Then, for
each fault that can be planted in that port, how many runs of two pairs find it, by each of its checks and by any, and
the error in the run in which it shows least, in the same units. Needs the checkout.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from conformance.test_live import BROKEN, pair
from ports.live_ports import PlainPort

from grains_ref.conformance.live import FUNCTIONS, check_live
from grains_ref.conformance.live.reference import Oracle, upcast
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.random_models import random_llama, random_qwen2
from grains_ref.tiny_models.random_vision_models import random_gemma3_text, random_llava, random_qwen_vl

FAMILIES = {
    "llama": random_llama,
    "qwen2": random_qwen2,
    "gemma3_text": random_gemma3_text,
    "llava_next": random_llava,  # asked without a picture, as the other two
    "qwen2_5_vl": random_qwen_vl,
}
WEIGHTS = 2  # models of each family
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KERNELS = ("eager", "sdpa")
RUNS_WITH_FAULTS = 2  # seeds for which every broken port is asked too


class Work(NamedTuple):
    """One model and one seed: what a process does in one go, a few seconds."""

    family: str
    weights: int
    dtype: str
    seed: int
    faults: bool  # of every broken port, or of the right one

    @property
    def name(self) -> str:
        """What its finished line is known by."""
        return " ".join(map(str, self))


class Row(NamedTuple):
    """One result, as it is kept."""

    fault: str
    kernel: str
    check: str
    status: str
    error: float
    allowed: float
    message: str


class OtherKernel:
    """The plain port on a copy of the model with another kernel of attention."""

    def __init__(self, kernel: str, wrong: str = "") -> None:
        self.kernel = kernel
        port = PlainPort(wrong)
        for name in FUNCTIONS:
            if hasattr(port, name):
                setattr(self, name, getattr(port, name))

    def LOAD(self, model: HuggingFaceModel) -> HuggingFaceModel:
        """A model of its own."""
        hf = copy.deepcopy(model.hf)
        hf.set_attn_implementation(self.kernel)
        return HuggingFaceModel(hf, model.tokenizer, name="the port's", image_processor=model.family.processor)


def all_work(seeds: int) -> Iterator[Work]:
    """Everything there is to do, in an order that any share of it covers evenly."""
    for seed in range(seeds):
        for weights in range(WEIGHTS):
            for family in FAMILIES:
                for dtype in DTYPES:
                    yield Work(family, weights, dtype, seed, faults=False)
                    if seed < RUNS_WITH_FAULTS:
                        yield Work(family, weights, dtype, seed, faults=True)


def do(work: Work) -> tuple[Work, list[Row]]:
    """The port, right or with each fault in turn, on two pairs in both kernels; the oracle is asked once."""
    torch.set_num_threads(1)  # the tensors are far too small for a second one
    model = FAMILIES[work.family](seed=work.weights, dtype=DTYPES[work.dtype])
    oracle = Oracle(model, upcast(model), remembers=True)
    pairs = [pair(2 * work.seed), pair(2 * work.seed + 1)]
    rows = []
    for fault in BROKEN if work.faults else [""]:
        if fault == "no_bos" and not model.tokenizer.bos_token:
            continue  # nothing that could be left out
        for kernel in KERNELS[:1] if work.faults else KERNELS:
            port: Any = OtherKernel(kernel, fault)
            for r in check_live(model, pairs, port, seeds=[work.seed], m=3, oracle=oracle):
                rows.append(Row(fault, kernel, r.check, r.status, r.error, r.allowed, f"{r.pair}: {r.message}"))
    return work, rows


# --------------------------------------------------------------------------------------- what is kept
def finished(folder: Path) -> dict[str, list[Row]]:
    """By name, the rows of every piece of work that any file of the folder holds; a torn last line is no line."""
    done = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                entry = json.loads(line)
                done[entry["work"]] = [Row(*row) for row in entry["rows"]]
    return done


def run(left: Sequence[Work], path: Path, jobs: int) -> None:
    """Do what is left, in `jobs` processes, and keep each piece as soon as it is finished."""
    began, results = time.monotonic(), 0
    with multiprocessing.get_context("spawn").Pool(jobs) as pool, path.open("a", encoding="utf-8") as file:
        if file.tell() and not path.read_text(encoding="utf-8").endswith("\n"):
            file.write("\n")  # after a torn line
        for number, (work, rows) in enumerate(pool.imap_unordered(do, left), start=1):
            file.write(json.dumps({"work": work.name, "rows": rows}) + "\n")
            file.flush()
            results += len(rows)
            pace = f"{60 * results / (time.monotonic() - began) / jobs:.0f} results a minute and process"
            print(f"{number} of {len(left)}, {pace}: {work.name}", file=sys.stderr)


# --------------------------------------------------------------------------------------- the tables
def ratio(row: Row) -> float:
    """The error in units of what is allowed."""
    if row.allowed:
        return row.error / row.allowed
    return float("inf") if row.error else 0.0


def print_right(rows: Sequence[Row]) -> None:
    """What became of the right port, by check."""
    by_check: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_check[row.check].append(row)
    print("| check | results | false alarms | undecided | largest error / allowed |\n|---|---|---|---|---|")
    for check, of_check in by_check.items():
        alarms = [row for row in of_check if row.status == "failed"]
        undecided = sum(row.status == "undecidable" for row in of_check)
        largest = max(ratio(row) for row in of_check)
        print(f"| {check} | {len(of_check)} | {len(alarms)} | {undecided} | {largest:.2f} |")
        for row in alarms[:3]:
            print(f"    {row.kernel}, error {row.error:.2e}, allowed {row.allowed:.2e}: {row.message}", file=sys.stderr)
    alarms = [row for row in rows if row.status == "failed"]
    print(f"\n{len(rows)} results, {len(alarms)} false alarms")


def print_broken(runs: dict[str, list[Row]]) -> None:
    """For each fault and check: the runs that find it, and the least of their errors; a run's is its worst pair's."""
    print("\n| fault | check | float32: found in, least error / allowed | bfloat16 |\n|---|---|---|---|")
    for fault, checks in BROKEN.items():
        for check in sorted(checks):
            print(f"| {fault} | {check} | {' | '.join(found_by(runs, fault, {check}, dtype) for dtype in DTYPES)} |")
        print(f"| {fault} | any of these | {' | '.join(found_by(runs, fault, checks, dtype) for dtype in DTYPES)} |")


def found_by(runs: dict[str, list[Row]], fault: str, checks: set[str], dtype: str) -> str:
    """In how many of the runs in a dtype one of the checks finds the fault, and the least of the largest errors."""
    of_runs = []
    for name, rows in runs.items():
        of_run = [row for row in rows if row.fault == fault and row.check in checks]
        if f" {dtype} " in name and of_run:
            of_runs.append(max((ratio(row) for row in of_run if row.status != "undecidable"), default=0.0))
    return f"{sum(largest > 1 for largest in of_runs)} of {len(of_runs)}, {min(of_runs, default=0.0):.3g}"


def main() -> None:
    """Do the work that is not done yet, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for what is finished")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, of one thread each")
    parser.add_argument("--share", default="0/1", help="I/N: the I-th of N parts of the work, from 0")
    parser.add_argument("--report", action="store_true", help="only print the tables of what is there")
    options = parser.parse_args()
    part, _, parts = options.share.partition("/")
    if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        parser.error(f"--share {options.share}: expected I/N with I from 0 to N - 1, such as 0/4")
    options.out.mkdir(parents=True, exist_ok=True)
    done = finished(options.out)
    wanted = list(all_work(options.seeds))
    left = [work for work in wanted[int(part) :: int(parts)] if work.name not in done]
    if left and not options.report:
        run(left, options.out / f"share-{part}-of-{parts}.jsonl", options.jobs)
        done = finished(options.out)
    asked = {work.name: work for work in wanted if work.name in done}
    print(f"{len(asked)} of {len(wanted)} pieces of work are done\n")
    print_right([row for name, work in asked.items() if not work.faults for row in done[name]])
    print_broken({name: done[name] for name, work in asked.items() if work.faults})


if __name__ == "__main__":
    main()
