"""What the planted bugs of all stages are made of: the class `Bug`, and a stage that refuses as the oracle does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from grains_ref.conformance.bugs.kinds import is_slight, kind_of
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
    kind: str  # where in a port to look; see `kinds`
    slight: bool = False  # whether half precision hides it


Row: TypeAlias = tuple[str, str, str, str, Stage]  # a Bug without its stage


def bugs_of(
    stage: str,
    rows: Sequence[Row],
    *,
    kind: Callable[[str, str], str] = kind_of,
    slight: Callable[[str, str], bool] = is_slight,
) -> tuple[Bug, ...]:
    """The bugs of a stage from their rows; kind, slight: what they are by stage and name."""
    return tuple(
        Bug(name, stage, what, effect, source, _refusing(stage, function), kind(stage, name), slight(stage, name))
        for name, what, effect, source, function in rows
    )


def _refusing(stage: str, function: Stage) -> Stage:
    """The same stage, refusing what the oracle refuses before it computes anything."""

    def checked(*, dtype: str, **inputs: Any) -> Values:
        check(stage, dtype, **inputs)
        return function(**inputs, dtype=dtype)

    return checked
