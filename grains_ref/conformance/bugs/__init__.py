"""Planted bugs: the seven stages, each computed wrongly in one way.

They have two uses. The suite is tested with them: every bug must be caught by the cases that name it in `kills`. And
they are the diagnosis: where a port fails, the bug that gives the same outputs is what to look for (`naming`).

A bug is the correct stage with one argument exchanged. `objective_with(sides)`, `attribution_with(...)` and so on are
the seven stages with their parts as arguments; the tables at the end of each section exchange them. The decoder is
written anew in `decode`, in parts. What the oracle refuses, a bug refuses too, unless not to refuse is the bug. Bugs
take the dtype they are asked for and, like the oracle, add up in float32 or wider.

A stage's bugs are in the file of its name; the cases that must catch them are in the file of the same name in `cases`.

| file | holds |
|---|---|
| `common` | the class `Bug`; a bug refuses what the oracle refuses |
| `kinds` | where in a port to look for each bug, and which bugs half precision hides |
| `decoder` | the toy decoder written anew, in parts that a bug may exchange |
| `decoder_bugs` | bugs of the decoder, planted at every stage that runs it |
| `objective`, `attribution`, `selection`, `contrast`, `aggregation`, `steering`, `generation` | the bugs of a stage |
| `options` | those of all options, and of cases that came with them |
"""

from __future__ import annotations

from grains_ref.conformance.bugs import (
    aggregation,
    attribution,
    contrast,
    generation,
    objective,
    options,
    selection,
    steering,
)
from grains_ref.conformance.bugs.common import Bug
from grains_ref.conformance.stages import Stage

BUGS: tuple[Bug, ...] = (
    *objective.BUGS,
    *attribution.BUGS,
    *selection.BUGS,
    *contrast.BUGS,
    *aggregation.BUGS,
    *steering.BUGS,
    *generation.BUGS,
    *options.BUGS,
)

WITHOUT_BUG: dict[str, Stage] = {
    "objective": objective.WITHOUT_BUG,
    "attribution": attribution.WITHOUT_BUG,
    "selection": selection.WITHOUT_BUG,
    "contrast": contrast.WITHOUT_BUG,
    "aggregation": aggregation.WITHOUT_BUG,
    "steering": steering.WITHOUT_BUG,
    "generation": generation.WITHOUT_BUG,
    **options.WITHOUT_BUG,
}
"""The seven stages with nothing exchanged; they agree with the oracle, so that a bug is wrong in one way only."""

EQUIVALENT: tuple[tuple[tuple[str, ...], str], ...] = ()
"""Groups of bugs that no case can tell apart, with the reason. None at present."""

__all__ = ["BUGS", "EQUIVALENT", "WITHOUT_BUG", "Bug"]
