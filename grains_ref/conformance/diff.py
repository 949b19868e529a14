"""What changed between two runs of a port: before a change and after it, or in two versions of the kit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FARTHER = 10.0  # times as far off as before is worth a word, though it still passes


@dataclass(frozen=True)
class Change:
    """One result that is not what it was.

    kind: "broken" passed and does not any more, be it that it fails, is skipped or is missing; "mended" passes for the
    first time; "new" is not in the earlier run; "farther" and "nearer" pass in both, with errors that differ by more
    than FARTHER; "other" is the rest.
    """

    kind: str
    case: str
    dtype: str
    mode: str
    before: str
    after: str
    message: str = ""


KINDS = ("broken", "mended", "new", "farther", "nearer", "other")


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """All changes of two runs, as `summary.read_run` gives them; first what is broken, each kind in the runs' order."""
    old, new = _by_place(before["results"]), _by_place(after["results"])
    differences = [
        change for place in dict.fromkeys([*old, *new]) for change in _change(place, old.get(place), new.get(place))
    ]
    differences += _alone(before["alone"], after["alone"])
    return sorted(differences, key=lambda change: KINDS.index(change.kind))


def _alone(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    """Stages that depend on the order of calls in one of the runs: mode "alone", kind "other"."""
    for stage in dict.fromkeys([*before, *after]):
        old, new = before.get(stage), after.get(stage)
        was, now = ("not asked" if row is None else str(row["outcome"]) for row in (old, new))
        if was != now and "right" in (was, now):
            row = new or old or {}
            yield Change("other", row["case"], row["dtype"], "alone", was, now, new["words"] if new else "")


def _by_place(results: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], Mapping[str, Any]]:
    return {(row["case"], row["dtype"], row["mode"]): row for row in results}


def _change(
    place: tuple[str, str, str], old: Mapping[str, Any] | None, new: Mapping[str, Any] | None
) -> Iterator[Change]:
    """Nothing, or the one change of a result."""
    before, after = ("missing" if row is None else str(row["status"]) for row in (old, new))
    message = str(new.get("message", "")) if new else ""
    if before == after == "passed":
        yield from _farther(place, old or {}, new or {})
    elif before != after:
        yield Change(_kind(before, after), *place, before, after, message)


def _kind(before: str, after: str) -> str:
    if before == "missing":
        return "new"
    if before == "passed":
        return "broken"
    return "mended" if after == "passed" else "other"


def _farther(place: tuple[str, str, str], old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    was, now = float(old["error"] or 0.0), float(new["error"] or 0.0)
    told = (f"error {was:.1e}", f"error {now:.1e}")
    least = float(new["budget"] or 0.0) / 1000  # of errors far below the budget only rounding changes
    if now > FARTHER * max(was, least):
        yield Change("farther", *place, *told)
    elif was > FARTHER * max(now, least):
        yield Change("nearer", *place, *told)
