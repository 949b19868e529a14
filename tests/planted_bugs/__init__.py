"""Bugs planted one at a time to show that the suite notices each: `python tests/planted_bugs`.

`planting` puts one bug into a copy of the checkout and runs tests on it. The other modules are lists, one for each room
of the package; `reference` has those of the modules that stand alone.
"""

from planted_bugs import (
    boundary,
    choice,
    conformance,
    datasets,
    demo,
    evaluation,
    export,
    fast_steering,
    methods,
    models,
    processes,
    reference,
    report,
    reproduction,
    serving,
)

ROOMS = (
    reference,
    fast_steering,
    models,
    methods,
    datasets,
    boundary,
    evaluation,
    choice,
    processes,
    demo,
    export,
    report,
    reproduction,
    serving,
    conformance,
)
BUGS = tuple(bug for room in ROOMS for bug in room.BUGS)
