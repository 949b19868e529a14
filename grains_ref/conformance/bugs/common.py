"""What the planted bugs of all stages are made of: the class `Bug`, and a stage that refuses as the oracle does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from grains_ref.conformance.stages import Stage, Values, check


@dataclass(frozen=True)
class Bug:
    """One planted bug: the stage `function`, wrong in one way."""

    name: str
    stage: str
    description: str  # completes "your output equals ours with ..."
    effect: str  # what it does to a user of the port
    source: str  # study; released code, row N or rows (of docs/decisions.md); field (seen in public libraries); ours
    function: Stage


Row: TypeAlias = tuple[str, str, str, str, Stage]  # a Bug without its stage


def bugs_of(stage: str, rows: Sequence[Row]) -> tuple[Bug, ...]:
    """The bugs of a stage from their rows."""
    return tuple(
        Bug(name, stage, what, effect, source, _refusing(stage, function))
        for name, what, effect, source, function in rows
    )


def _refusing(stage: str, function: Stage) -> Stage:
    """The same stage, refusing what the oracle refuses before it computes anything."""

    def checked(*, dtype: str, **inputs: Any) -> Values:
        check(stage, dtype, **inputs)
        return function(**inputs, dtype=dtype)

    return checked
