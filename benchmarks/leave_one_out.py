"""How a port is named whose bug is in no list: each planted bug is left out of the library in turn.

    python benchmarks/leave_one_out.py [--stage STAGE] [--json FILE]

Five minutes of one core. Every bug's output on every valid case is computed once, in float64; then each bug is a port,
and `grains_ref.conformance.naming` names it with all other bugs but this one. The rules of the count:

- a bug is **caught** if its error is above the budget of float32 on at least one case;
- another bug is a **near relative** if it is of the same stage and kind (`grains_ref.conformance.bugs.kinds`), and its
  output is at most half as far from the bug's as the right output is, on at least half of the cases that catch the
  bug; an error above 1 counts as 1;
- a name is **right** if what is named, a bug or a kind, is of the kind of the bug that was left out; **wrong** if it is
  of another kind; **none** if nothing is named.

Wanted: of the bugs with a near relative at least 90 % get a right name; of all bugs at most 2 % get a wrong one.
A bug of the decoder is left out of one stage at a time, and counts at each.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from grains_ref.conformance.budgets import load_budgets
from grains_ref.conformance.bugs import BUGS, Bug
from grains_ref.conformance.cases import CASES, Case
from grains_ref.conformance.compare import apart, distance
from grains_ref.conformance.dialects import PAPER
from grains_ref.conformance.naming import Output, answer_of, how_near, name_stage
from grains_ref.conformance.stages import OUTPUTS, Values, run_oracle

HALF = 0.5


@dataclass(frozen=True)
class Row:
    """What became of one bug that was left out."""

    stage: str
    bug: str
    kind: str
    caught: bool
    relatives: tuple[str, ...]
    named: str  # the bug or the kind that is named, or nothing
    verdict: str  # right, wrong, none


def outputs_of(
    bug: Bug, cases: list[Case], right: dict[str, Values], budget: float
) -> tuple[list[Output], list[Output]]:
    """The wrong and the right outputs of a port that has this bug."""
    wrong, fine = list[Output](), list[Output]()
    for case in cases:
        blank = Output(case.stage, case.inputs, "float64", {}, right[case.id], 0.0, budget, case.id)
        answer = answer_of(bug, blank, PAPER)
        if answer is None:
            continue  # a refusal has no output
        got = answer.values
        error = apart(case.stage, case.inputs, got, right[case.id])
        of_logits = distance(case.stage, case.inputs, got, right[case.id])
        output = Output(case.stage, case.inputs, "float64", got, right[case.id], of_logits, budget, case.id)
        (wrong if error > budget else fine).append(output)
    return wrong, fine


def left_out(bug: Bug, cases: list[Case], right: dict[str, Values], budget: float) -> Row:
    """One bug as a port, with a library that lacks it."""
    wrong, fine = outputs_of(bug, cases, right, budget)
    likely, _ = name_stage(wrong, fine, without=[bug.name])
    relatives = []
    for other in PAPER.bugs_of(bug.stage):
        if other.kind == bug.kind and other is not bug:
            near = [how_near(output, other, PAPER) <= HALF * output.scale for output in wrong]
            if sum(near) >= HALF * len(wrong):
                relatives.append(other.name)
    verdict = "none" if likely is None else "right" if likely.kind == bug.kind else "wrong"
    named = "" if likely is None else likely.bug if likely.named else f"kind: {likely.kind}"
    return Row(bug.stage, bug.name, bug.kind, bool(wrong), tuple(relatives), named, verdict)


def table(rows: list[Row]) -> str:
    """The count by stage, as Markdown."""
    head = ("stage", "bugs", "caught", "with a near relative", "of these right", "none", "wrong", "of all wrong")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for stage in (*OUTPUTS, "all"):
        of_stage = [row for row in rows if stage in (row.stage, "all")]
        near = [row for row in of_stage if row.relatives]
        counts = [sum(row.verdict == verdict for row in near) for verdict in ("right", "none", "wrong")]
        wrong = sum(row.verdict == "wrong" for row in of_stage)
        figures = [len(of_stage), sum(row.caught for row in of_stage), len(near), *counts, wrong]
        lines.append(f"| {stage} | {' | '.join(map(str, figures))} |")
    near = [row for row in rows if row.relatives]
    if near:
        right = sum(row.verdict == "right" for row in near) / len(near)
        wrong_share = sum(row.verdict == "wrong" for row in rows) / len(rows)
        lines += ["", f"Right: {right:.1%} of those with a near relative. Wrong: {wrong_share:.1%} of all."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", action="append", choices=list(OUTPUTS), help="only this stage; may be repeated")
    parser.add_argument("--json", type=Path, help="write what became of every bug here")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the tensors are far too small for a second one
    np.seterr(all="ignore")
    budgets, rows = load_budgets(), list[Row]()
    for stage in options.stage or OUTPUTS:
        begun = time.monotonic()
        cases = [case for case in CASES if (case.stage, case.result) == (stage, "valid")]
        right = {case.id: run_oracle(stage, case.inputs) for case in cases}
        budget = budgets[stage, "float32"].budget
        rows += [left_out(bug, cases, right, budget) for bug in BUGS if bug.stage == stage]
        print(f"{stage}: {time.monotonic() - begun:.0f} s", flush=True)
    print(f"\n{table(rows)}\n")
    for row in rows:
        if row.verdict == "wrong" or (row.relatives and row.verdict == "none"):
            print(f"{row.verdict}: {row.stage}, {row.bug} ({row.kind}) -> {row.named or 'nothing'}")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
