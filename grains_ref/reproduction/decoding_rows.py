"""Rows of decoding methods in the visual worlds, alone and together with steering.

VCD, CRG and IMMUNE choose from their declared grids.  A row "GrAInS + ..." goes on from the row of the decoding method:
its setting as that row chose it on dev, alone and with GrAInS at every strength of the grid; so the two rows differ by
steering alone.  Each chooses by the same rule as all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

from grains_ref.data import PreferencePair, Task
from grains_ref.demo.bench import UNSTEERED
from grains_ref.demo.lab import Lab
from grains_ref.demo.rows import Draws, Row
from grains_ref.methods.core import Setting, together
from grains_ref.methods.decoding import crg, immune, vcd


def _vcd(lab: Lab) -> list[Setting]:
    return lab.once("VCD", lambda: vcd.settings(lab.model))


def _published_vcd(lab: Lab) -> list[Setting]:
    """The published setting alone: to be taken or left."""

    def make() -> list[Setting]:
        rule = vcd.PUBLISHED
        return [Setting("VCD as published", rule.alpha, partial(rule.steering, lab.model))]

    return lab.once("VCD as published", make)


def _crg(lab: Lab) -> list[Setting]:
    """With the box of the shape that each prompt and task asks about, on test as on dev; no other row is told it."""

    def make() -> list[Setting]:
        if lab.boxes is None:
            raise ValueError("CRG needs the boxes of all prompts; this lab has none")
        rows: list[PreferencePair | Task] = [*lab.dev[0], *lab.dev[1], *lab.test[0], *lab.test[1]]
        return crg.settings(lab.model, crg.regions_of(lab.model, rows, lab.boxes))

    return lab.once("CRG", make)


def _immune(lab: Lab) -> list[Setting]:
    def make() -> list[Setting]:
        if lab.reward is None:
            raise ValueError("IMMUNE needs a reward; this lab has none")
        return immune.settings(lab.model, lab.reward)

    return lab.once("IMMUNE", make)


def _alone(grid: Callable[[Lab], Sequence[Setting]]) -> Row:
    return lambda lab: [list(grid(lab))]


def _with_grains(grid: Callable[[Lab], Sequence[Setting]]) -> Row:
    """The decoding method as it was chosen on dev, alone and with GrAInS in the paper's setting."""

    def row(lab: Lab) -> Draws:
        chosen = lab.bench.choose(grid(lab)).best
        steerings = lab.grains("GrAInS", lab.paper)
        if chosen is UNSTEERED:
            return [steerings]
        both = [
            Setting(f"{chosen.label}, {chosen.strength:g}, and GrAInS", setting.strength, _both(setting, chosen))
            for setting in steerings
        ]
        return [[chosen, *both]]

    return row


def _both(first: Setting, second: Setting) -> Callable[[], AbstractContextManager[object]]:
    return lambda: together(first.steering(), second.steering())


ROWS: dict[str, Row] = {
    "VCD": _alone(_vcd),
    "VCD, as published": _alone(_published_vcd),
    "CRG, boxes given": _alone(_crg),
    "IMMUNE, the world's judge": _alone(_immune),
    "GrAInS + VCD": _with_grains(_vcd),
    "GrAInS + VCD, as published": _with_grains(_published_vcd),
    "GrAInS + CRG, boxes given": _with_grains(_crg),
    "GrAInS + IMMUNE, the world's judge": _with_grains(_immune),
}
