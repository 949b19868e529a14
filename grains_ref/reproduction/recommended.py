"""The preset `recommended`: candidates, opponents, and the verdict by the rule of docs/reproduction_rules.md.

1. The candidate with the highest mean dev gain over worlds and seeds is put to the test, once.
2. It is called recommended only if on test it is ahead of every opponent in the mean over the worlds that the opponent
   can be run in, and behind none of them beyond chance in any world.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grains_ref.demo.planted import Kind
from grains_ref.evaluation.metrics import Rate
from grains_ref.report.markdown import markdown_table
from grains_ref.reproduction.fair_fight import rows_of_the_fight
from grains_ref.reproduction.paper import kind_of
from grains_ref.reproduction.rows import EDITS
from grains_ref.reproduction.statistics import Cells, Facts, dev_gain, difference

CANDIDATES = tuple(EDITS)
BESIDE = "LoRA, tuned"  # it trains: shown, and no opponent
_OF_BOTH_KINDS = ("GrAInS", "mean", "neutral + mean", "random tokens", "ICV", "CAA", "CAA, read at the difference")
_OF_ONE_KIND: Mapping[Kind, tuple[str, ...]] = {"text": ("ITI", "NL-ITI", "RepE"), "visual": ("VTI", "ICT")}


def opponents(kind: Kind) -> tuple[str, ...]:
    """Every steering method of a world's tables, and the same methods in the fair fight."""
    fight = [name for name in rows_of_the_fight(is_visual=kind == "visual") if not name.startswith("edit gradient")]
    return (*_OF_BOTH_KINDS, *_OF_ONE_KIND[kind], *fight)


def rows_needed(kind: Kind) -> list[str]:
    """The rows that the verdict is made of."""
    return ["unsteered", *CANDIDATES, *opponents(kind), BESIDE]


@dataclass(frozen=True)
class Verdict:
    """What the rule says.

    Attributes:
        dev_gains: of every candidate by world, means over seeds, as shares.
        winner: the candidate that was put to the test.
        ahead_by: by opponent and world, the winner's test accuracy less the opponent's with its interval, or why
            there is none.
    """

    dev_gains: Mapping[str, Mapping[str, float]]
    winner: str
    ahead_by: Mapping[str, Mapping[str, Rate | str]]

    def mean_lead(self, opponent: str) -> float | None:
        """By how much the winner is ahead of an opponent, mean over the worlds in which both have a figure."""
        leads = [lead.value for lead in self.ahead_by[opponent].values() if isinstance(lead, Rate)]
        return sum(leads) / len(leads) if leads else None

    def failures(self) -> list[str]:
        """What the winner fails the rule by; nothing if it is to be recommended."""
        reasons = []
        for opponent, by_world in self.ahead_by.items():
            mean = self.mean_lead(opponent)
            if mean is not None and mean <= 0:
                reasons.append(f"not ahead of {opponent} in the mean over worlds ({100 * mean:+.1f} points)")
            for world, lead in by_world.items():
                if isinstance(lead, Rate) and lead.high < 0:
                    reasons.append(f"behind {opponent} in {world} beyond chance ({points(lead)})")
        return reasons


def verdict(cells: Cells, facts: Facts, worlds: Sequence[str], seeds: Sequence[int]) -> Verdict:
    """The rule, on the cells of all candidates and opponents."""
    dev_gains = {
        name: {world: sum(dev_gain(cells[world, seed, name]) for seed in seeds) / len(seeds) for world in worlds}
        for name in CANDIDATES
    }
    winner = max(CANDIDATES, key=lambda name: sum(dev_gains[name].values()))
    ahead_by: dict[str, dict[str, Rate | str]] = {}
    for world in worlds:
        for opponent in opponents(kind_of(world)):
            lead = difference(winner, opponent, world, cells, facts, seeds)
            ahead_by.setdefault(opponent, {})[world] = lead
    return Verdict(dev_gains, winner, ahead_by)


def points(rate: Rate) -> str:
    """A difference with its interval, in points."""
    return f"{100 * rate.value:+.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def recommended_page(cells: Cells, facts: Facts, worlds: Sequence[str], seeds: Sequence[int]) -> str:
    """The verdict in words, with the figures that it is made of."""
    outcome = verdict(cells, facts, worlds, seeds)
    dev_lines = []
    for name, by_world in outcome.dev_gains.items():
        mean = sum(by_world.values()) / len(by_world)
        dev_lines.append([name, *(f"{100 * gain:+.1f}" for gain in by_world.values()), f"{100 * mean:+.1f}"])
    lead_lines = []
    for opponent, leads in outcome.ahead_by.items():
        mean_lead = outcome.mean_lead(opponent)
        over_worlds = "-" if mean_lead is None else f"{100 * mean_lead:+.1f}"
        lead_lines.append([opponent, *(_lead(leads.get(world)) for world in worlds), over_worlds])
    beside = [_lead(difference(outcome.winner, BESIDE, world, cells, facts, seeds)) for world in worlds]
    lead_lines.append([f"beside: {BESIDE}", *beside, "-"])
    failures = outcome.failures()
    if failures:
        words = f"**{outcome.winner}** is not to be called recommended:\n\n" + "".join(f"- {why}\n" for why in failures)
    else:
        words = f"**{outcome.winner}** may be called recommended: ahead of every opponent in the mean, behind none.\n"
    return (
        "### The preset `recommended`\n\nGain of the candidates on dev, in points, means over seeds; the highest mean "
        "is put to the test:\n\n"
        + markdown_table(["", *worlds, "mean"], dev_lines)
        + f"\nTest accuracy of {outcome.winner} less that of every opponent, in points with 95 % intervals:\n\n"
        + markdown_table(["", *worlds, "mean"], lead_lines)
        + f"\n{words}"
    )


def _lead(lead: Rate | str | None) -> str:
    if lead is None:
        return "-"
    return points(lead) if isinstance(lead, Rate) else "none"
