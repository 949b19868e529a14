"""The two dialects of the kit: `paper`, the law, and `authors`, what the code released with the paper computes.

A dialect is a set of cases with the right answers, and the bugs planted in it. `authors` has the inputs of `paper`,
under the same ids, but for those whose answer the released code leaves to rounding errors, and one of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from grains_ref.conformance import bugs
from grains_ref.conformance.authors import bugs as bugs_authors
from grains_ref.conformance.authors import stages as stages_authors
from grains_ref.conformance.bugs import Bug
from grains_ref.conformance.cases import CASES, WIDTH, Case, grid
from grains_ref.conformance.stages import ORACLE, Stage, Values


@dataclass(frozen=True)
class Dialect:
    """Cases, right answers and planted bugs."""

    name: str
    oracle: Mapping[str, Stage]
    cases: tuple[Case, ...]
    bugs: tuple[Bug, ...]
    headers: Mapping[str, str]  # of the stored files, by stage

    def run(self, stage: str, inputs: Mapping[str, Any], dtype: str = "float64") -> Values:
        """The right output of a stage."""
        return self.oracle[stage](**inputs, dtype=dtype)

    def bugs_of(self, stage: str) -> tuple[Bug, ...]:
        """The bugs planted in a stage."""
        return tuple(bug for bug in self.bugs if bug.stage == stage)

    def case(self, name: str) -> Case:
        """The case with an id."""
        return _by_id(self.name)[name]


@functools.cache
def _by_id(dialect: str) -> dict[str, Case]:
    return {case.id: case for case in DIALECTS[dialect].cases}


# -------------------------------------------------------------------------------------- paper
PAPER = Dialect(
    "paper",
    ORACLE,
    CASES,
    bugs.BUGS,
    {
        "objective": "Eq. (1): summed log-probabilities of both answers and their difference, in nats.",
        "attribution": "Eq. (2): one score per prompt token, in nats; the given quadrature, never a node at 0.",
        "selection": "Eq. (3): at most k tokens of strictly the right sign, strongest first, ties to the lower index.",
        "contrast": "Eq. (4): shifts of the last prompt token's state after every block when a set is masked.",
        "aggregation": "Eq. (5), (6): first component of the centred shifts, unit length, signed by their mean; v.",
        "steering": "Eq. (7), (8): the vector added, every token's norm restored.",
        "generation": "Sect. 3.3: logits of the steered decoder for a given continuation, and its own greedy one.",
    },
)

# ------------------------------------------------------------------------------------ authors
LEFT_OUT = {
    **dict.fromkeys(
        ("contrast-009", "contrast-010", "contrast-011", "contrast-014"), "the released code never has an empty set"
    ),
    **dict.fromkeys(
        (f"aggregation-{n:03d}" for n in range(17, 23)), "a direction of rounding errors, which is not refused there"
    ),
}
"""Cases of the dialect `paper` that `authors` lacks, and why."""
ILL_POSED = ("aggregation-005",)  # its largest entries are equal and of both signs
KILLED_IN = {
    "objective": {
        "paper_objective": "005 006 007 012 013 014 017 018",
        "last_token_in_place": "012 024 027",
        "all_tokens_one_late": "001 002 009 010 011 016 018 025 026 028",
        "sides_exchanged": "003 004 008 015",
    },
    "attribution": {
        "paper_attribution": "005 006 007 010",
        "last_token_in_place": "001 010 011 015",
        "all_tokens_in_place": "006 007 011",
        "response_fixed": "006 011 016",
        "branches_added": "007 010 011",
        "both_responses_fixed": "007 009 016",
        "branch_of_y_neg": "007 010 011 012",
        "quadrature_as_given": "002 003 008 010",
        "baseline_as_given": "010 014 016",
        "input_factor_missing": "004 011 013 016 017",
    },
    "selection": {
        "paper_selection": "004 005 006 009 013 022",
        "sign_required": "004 005 006 010 014",
        "ties_to_the_lower": "005 007 008 011",
        "eligible_only": "015 016 017 020 021",
        "sets_exchanged": "001 002 003 012 018 019 023 024",
    },
    "contrast": {
        "paper_contrast": "004 005 007 015",
        "baseline_as_given": "008 013 015",
        "tokens_unattended": "008 013 015",
        "last_state_raw": "003 004 005 006 015",
        "every_state_normed": "004 005 015",
        "delta_reversed": "001 002 012 015 016",
    },
    "aggregation": {
        "signed_by_mean": "001 002 003 012",
        "largest_score_positive": "001 003 014 015",
        "uncentred": "001 010 012 014 016",
        "v_pos_alone": "003 004 008 011 014",
        "sum_of_sides": "001 008 009 013 014",
    },
    "steering": {
        "paper_steering": "012 016 101",
        "lam_as_given": "011 012 016",
        "norm_over_width": "005 010 012",
        "hook_with_tensors": "005 012 101",
        "eps_missing": "101",
        "norm_not_restored": "001 002 004 005 006 007 008 009 013 014 021",
        "zero_lam_replaced": "003",
        "interpolated": "010 015",
    },
    "generation": {
        "paper_generation": "004 007 009",
        "layers_as_given": "004 009 013",
        "lam_as_given": "001 006 011 012",
        "norm_over_width": "003 006 009",
        "hook_with_tensors": "003 011 012",
        "with_a_cache": "004 005 006",
        "up_to_each_token": "002 004 010",
        "zero_lam_replaced": "008",
    },
}
"""The cases that must catch each bug of `authors`, by their numbers."""


def _authors_cases() -> tuple[Case, ...]:
    cases = []
    for case in (*CASES, TINY):
        if case.id not in LEFT_OUT:
            result = "acceptable" if case.id in ILL_POSED else case.result
            named = KILLED_IN[case.stage].items() if result == "valid" else ()
            kills = tuple(bug for bug, numbers in named if case.id[-3:] in numbers.split())
            cases.append(replace(case, result=result, kills=kills))
    return tuple(sorted(cases, key=lambda case: list(ORACLE).index(case.stage)))


TINY = Case("steering-101", "steering", "States so small that the 1e-8 in the denominator counts",
            ("TinyValues", "BeyondFloat16"), "valid",
            {"h": grid("steering-101", 2, 5, WIDTH, step=2.0**-34), "v": grid("steering-101v", WIDTH, step=2.0**-36),
             "lam": 1.0}, ())  # fmt: skip

AUTHORS = Dialect(
    "authors",
    stages_authors.STAGES,
    _authors_cases(),
    bugs_authors.BUGS,
    {
        "objective": "Row 1: the last response token alone, from the logits one position late.",
        "attribution": "Rows 1 to 4: the prompt's scores in y_pos's branch; 20 Gauss-Legendre nodes from zero. y_neg, "
        "baseline, m and quadrature are ignored.",
        "selection": "Rows 7, 8: both ends of one stable argsort of all tokens, the upper one reversed.",
        "contrast": "Rows 10 to 12: x is a whole branch; tokens become padding; the last state is after the norm.",
        "aggregation": "Row 13: first component of the centred shifts, its largest absolute entry positive; v.",
        "steering": "Rows 15, 16: ten times lam, norms over the sequence with 1e-8 in the denominator.",
        "generation": "Rows 15, 16: that hook after the last block, one pass over prompt and continuation. `tokens` "
        "are given and not judged.",
    },
)

DIALECTS = {dialect.name: dialect for dialect in (PAPER, AUTHORS)}
