"""The edit gradient of a lab's steering pairs at any site and positions: taken once for all rows and questions."""

from __future__ import annotations

from collections.abc import Sequence

from grains_ref.demo.lab import Lab
from grains_ref.demo.rows import Row
from grains_ref.methods.edit_gradient import Derivative, EditGradient, EditPositions, EditSite, derivative, scaled


def derivatives(lab: Lab, site: EditSite, positions: EditPositions) -> Sequence[Derivative]:
    """Of every steering pair, at v = 0."""

    def make() -> Sequence[Derivative]:
        examples = [lab.example(i) for i in range(len(lab.steer))]
        return [derivative(lab.model, example, site=site, positions=positions) for example in examples]

    return lab.once(f"derivatives of an edit of {site}, {positions}", make)


def fitted(lab: Lab, site: EditSite, positions: EditPositions) -> EditGradient:
    """What `edit_gradient.fit` makes of the steering pairs.

    Raises:
        DegenerateShiftsError: the derivatives are zero, or cancel each other.
    """
    return scaled(derivatives(lab, site, positions), site=site, positions=positions)


def row(site: EditSite, positions: EditPositions) -> Row:
    """The edit gradient at this site and these positions, with its declared grid."""
    return lambda lab: [fitted(lab, site, positions).settings(lab.model)]
