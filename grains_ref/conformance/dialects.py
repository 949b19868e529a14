"""The two dialects of the kit: `paper`, the law, and `authors`, what the code released with the paper computes.

A dialect is a set of cases with the right answers, and the bugs planted in it. `authors` has the inputs of `paper`,
under the same ids, but for those whose answer the released code leaves to rounding errors, and one of its own; of the
options it has one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grains_ref.conformance import bugs, cases, stages
from grains_ref.conformance.authors import bugs as authors_bugs
from grains_ref.conformance.authors import cases as authors_cases
from grains_ref.conformance.authors import options as authors_options
from grains_ref.conformance.authors import stages as authors_stages
from grains_ref.conformance.bugs import Bug
from grains_ref.conformance.cases import Case
from grains_ref.conformance.stages import Stage, Values


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

    def knows(self, name: str) -> bool:
        """Whether there is a case with this id."""
        return name in _by_id(self.name)

    def case(self, name: str) -> Case:
        """The case with an id."""
        return _by_id(self.name)[name]


@functools.cache
def _by_id(dialect: str) -> dict[str, Case]:
    return {case.id: case for case in DIALECTS[dialect].cases}


PAPER = Dialect("paper", stages.ORACLE, cases.CASES, bugs.BUGS, stages.HEADERS)
AUTHORS = Dialect(
    "authors",
    authors_stages.STAGES | authors_options.STAGES,
    authors_cases.CASES,
    (*authors_bugs.BUGS, *authors_options.BUGS),
    authors_stages.HEADERS | authors_options.HEADERS,
)
DIALECTS = {dialect.name: dialect for dialect in (PAPER, AUTHORS)}
