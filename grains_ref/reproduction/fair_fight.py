"""The fair fight: every method whose direction can be added anywhere gets the same sites, positions and strengths.

    for every method:     at every place (site, positions) with every lam of the grid, in units of the state's length
    choice:               the rule of every row, `grains_ref.demo.bench.Bench.choose`
    the grid:             if any method's choice lies at an end, the grid goes on there for all of them

The grid is made on dev before anything is measured on test (docs/reproduction_rules.md, the preset `recommended`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from grains_ref.demo.lab import Lab
from grains_ref.demo.rows import Draws, Row
from grains_ref.grains import DegenerateShiftsError, HyperParameters
from grains_ref.methods.any_site import (
    Reading,
    SiteVectors,
    as_estimator,
    at_places,
    direction,
    grains_direction,
    read_answers,
    shifts_at,
)
from grains_ref.methods.core import Setting
from grains_ref.methods.edit_gradient import EditPositions, EditSite
from grains_ref.reproduction.edit_fits import fitted

SITES: tuple[EditSite, ...] = ("residual", "attention_output", "mlp")
POSITIONS: tuple[EditPositions, ...] = ("all", "after_prompt")
SHARES = (0.02, 0.08, 0.32, 1.28)  # of the state's mean length
FACTOR = 4.0  # from one strength to the next
MOST_EXTENSIONS = 2
ROWS = ("edit gradient, any site", "GrAInS, any site", "CAA, any site", "ICV, any site", "RepE, any site")


def rows_of_the_fight(*, is_visual: bool) -> dict[str, Row]:
    """Its rows by name; RepE stands in no table with pictures."""
    names = [name for name in ROWS if not (is_visual and name.startswith("RepE"))]
    return {name: functools.partial(_row, name) for name in names}


def _row(name: str, lab: Lab) -> Draws:
    fight = lab.once("the fair fight", lambda: FairFight(lab))
    return [fight.settings(name)]


class FairFight:
    """The methods' vectors on one model, and the grid that they share."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._settings: dict[tuple[str, str, float], Setting] = {}
        self._vectors = {name: self._made(name) for name in rows_of_the_fight(is_visual=lab.is_visual)}

    @functools.cached_property
    def lams(self) -> tuple[float, ...]:
        """The grid, gentlest first: `SHARES`, gone on with where a method's choice lies at an end."""

        def chosen(lams: Sequence[float]) -> list[float]:
            choices = [self._lab.bench.choose(self._grid(name, lams)) for name in self._vectors if self._vectors[name]]
            return [choice.best.strength for choice in choices]

        return common_grid(SHARES, chosen, factor=FACTOR, most=MOST_EXTENSIONS)

    def settings(self, name: str) -> list[Setting]:
        """A method at every place with every strength of the common grid, gentlest first.

        Raises:
            DegenerateShiftsError: it has no direction at any site.
        """
        if not self._vectors[name]:
            raise DegenerateShiftsError(f"{name}: no site has a direction")
        return self._grid(name, self.lams)

    def _grid(self, name: str, lams: Sequence[float]) -> list[Setting]:
        return [self._setting(name, place, lam) for lam in lams for place in self._vectors[name]]

    def _setting(self, name: str, vectors: SiteVectors, lam: float) -> Setting:
        """One object for one steering, so that the bench measures it once."""
        key = (name, vectors.label, lam)
        if key not in self._settings:
            self._settings[key] = vectors.setting(self._lab.model, lam=lam)
        return self._settings[key]

    # ------------------------------------------------------------------ the methods' vectors
    def _made(self, name: str) -> list[SiteVectors]:
        """A method's vectors at every place where it has some."""
        method = name.removesuffix(", any site")
        if method == "edit gradient":
            return self._edit_gradients()
        lengths = self._reading.lengths
        return at_places(method, {site: self._direction_at(method, site) for site in SITES}, lengths)[0]

    def _direction_at(self, method: str, site: EditSite) -> Callable[[], Tensor]:
        if method == "GrAInS":
            return lambda: grains_direction([of_example[site] for of_example in self._shifts], self._lab.paper)
        return lambda: direction(as_estimator(method), self._reading.differences[site])

    def _edit_gradients(self) -> list[SiteVectors]:
        made = []
        for site in SITES:
            for positions in POSITIONS:
                v = fitted(self._lab, site, positions).v
                made.append(SiteVectors(f"edit gradient, {site}, {positions}", v, site, positions))
        return made

    @functools.cached_property
    def _reading(self) -> Reading:
        return read_answers(self._lab.model, [self._lab.example(i) for i in range(len(self._lab.steer))], sites=SITES)

    @functools.cached_property
    def _shifts(self) -> Sequence[Mapping[EditSite, tuple[Tensor, Tensor]]]:
        """Of every steering example, with the tokens that the paper's setting selects."""
        hp: HyperParameters = self._lab.paper
        of_examples = []
        for i in range(len(self._lab.steer)):
            example = self._lab.example(i)
            baseline = self._lab.model.baseline(example.encoded, hp.mask_baseline)
            selection = self._lab.shift(hp, i).selection
            of_examples.append(shifts_at(self._lab.model, example.encoded, selection, baseline, sites=SITES))
        return of_examples


# ------------------------------------------------------------------------------------------- the grid
def common_grid(
    lams: Sequence[float], chosen: Callable[[Sequence[float]], Sequence[float]], *, factor: float, most: int
) -> tuple[float, ...]:
    """The grid, gone on with at whichever end the choice of some method lies, for all methods, `most` times at most.

    lams: gentlest first.  chosen: the strength that each method chooses from a grid; 0 stands for the unsteered model.
    """
    grid = tuple(lams)
    for _ in range(most):
        longer = extended(grid, chosen(grid), factor=factor)
        if longer == grid:
            break
        grid = longer
    return grid


def extended(lams: Sequence[float], chosen: Sequence[float], *, factor: float) -> tuple[float, ...]:
    """The grid with one more strength at each end that somebody chose; 0 is no end."""
    grid = list(lams)
    if lams[0] in chosen:
        grid.insert(0, lams[0] / factor)
    if lams[-1] in chosen:
        grid.append(lams[-1] * factor)
    return tuple(grid)
