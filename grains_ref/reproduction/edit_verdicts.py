"""The verdicts on the questions about the edit gradient, by the rule of docs/reproduction_rules.md.

1. Of a question's variants the one with the highest mean dev gain over the worlds is put to the test, once.
2. It helps if its test accuracy less that of the edit gradient it began with is positive in the mean over worlds, above
   zero with its whole interval in at least one world and below in none, and if it is ahead of its control in the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from grains_ref.evaluation.metrics import Rate
from grains_ref.report.markdown import markdown_table
from grains_ref.reproduction.edit_questions import QUESTIONS, ROWS, START, Question
from grains_ref.reproduction.recommended import points, recommended_page
from grains_ref.reproduction.statistics import Cells, Facts, dev_gain, difference

FIRST = "edit gradient, first block only"
NOT_FIRST = "edit gradient, without the first block"
FIRST_MLP = "edit gradient, MLP, first block only"


@dataclass(frozen=True)
class Answer:
    """What the rule says about one question.

    Attributes:
        dev_gains: of every variant, mean over worlds and seeds, as shares.
        winner: the variant that was put to the test.
        leads: its test accuracy less that of the edit gradient it began with, by world, or why there is none.
        over_control: the same less its control's, mean over worlds.
    """

    dev_gains: Mapping[str, float]
    winner: str
    leads: Mapping[str, Rate | str]
    over_control: float

    @property
    def mean_lead(self) -> float:
        """Mean over the worlds that have a figure."""
        return _mean_lead(self.leads)

    def failures(self) -> list[str]:
        """What the winner fails the rule by; nothing if it helps."""
        reasons = []
        leads = {world: lead for world, lead in self.leads.items() if isinstance(lead, Rate)}
        reasons += [f"none in {world}: {why}" for world, why in self.leads.items() if isinstance(why, str)]
        if self.mean_lead <= 0:
            reasons.append(f"not ahead in the mean over worlds ({100 * self.mean_lead:+.1f} points)")
        if not any(lead.low > 0 for lead in leads.values()):
            reasons.append("ahead beyond chance in no world")
        for world, lead in leads.items():
            if lead.high < 0:
                reasons.append(f"behind in {world} beyond chance ({points(lead)})")
        if self.over_control <= 0:
            reasons.append(f"not ahead of its control in the mean ({100 * self.over_control:+.1f} points)")
        return reasons


def answer(question: Question, cells: Cells, facts: Facts, worlds: Sequence[str], seeds: Sequence[int]) -> Answer:
    """The rule, on the cells of a question's variants and control."""

    def leads(row: str, reference: str) -> dict[str, Rate | str]:
        return {world: difference(row, reference, world, cells, facts, seeds) for world in worlds}

    dev_gains = {name: mean_dev_gain(name, cells, worlds, seeds) for name in question.variants}
    winner = max(question.variants, key=lambda name: dev_gains[name])
    return Answer(dev_gains, winner, leads(winner, START), _mean_lead(leads(winner, question.control)))


def mean_dev_gain(row: str, cells: Cells, worlds: Sequence[str], seeds: Sequence[int]) -> float:
    """Of one row over worlds and seeds; a cell without a direction gains nothing."""
    gains = []
    for world in worlds:
        for seed in seeds:
            cell = cells[world, seed, row]
            gains.append(0.0 if "error" in cell else dev_gain(cell))
    return sum(gains) / len(gains)


def _mean_lead(leads: Mapping[str, Rate | str]) -> float:
    values = [lead.value for lead in leads.values() if isinstance(lead, Rate)]
    return sum(values) / len(values) if values else 0.0


def verdicts_page(cells: Cells, facts: Facts, worlds: Sequence[str], seeds: Sequence[int]) -> str:
    """All rows beside the one they began with, then what the rule says of each question."""
    lines = []
    for name in ROWS:
        leads = {world: difference(name, START, world, cells, facts, seeds) for world in worlds}
        dev = f"{100 * mean_dev_gain(name, cells, worlds, seeds):+.1f}"
        of_worlds = [points(lead) if isinstance(lead, Rate) else "none" for lead in leads.values()]
        lines.append([name.removeprefix("edit gradient, "), dev, *of_worlds, f"{100 * _mean_lead(leads):+.1f}"])
    dev_of_start = f"{100 * mean_dev_gain(START, cells, worlds, seeds):+.1f}"
    page = (
        "### Questions about the edit gradient\n\nMean gain on dev, and test accuracy less that of "
        f"{START} (dev {dev_of_start}), in points with 95 % intervals:\n\n"
        + markdown_table(["", "dev gain", *worlds, "mean"], lines)
        + "\n"
    )
    for letter, question in QUESTIONS.items():
        outcome = answer(question, cells, facts, worlds, seeds)
        failures = outcome.failures()
        judged = f"does not help: {'; '.join(failures)}" if failures else "helps"
        page += f"- ({letter}) {question.title}: **{outcome.winner}** was put to the test and {judged}.\n"
    return page + _on_blocks(cells, facts, worlds, seeds)


def _on_blocks(cells: Cells, facts: Facts, worlds: Sequence[str], seeds: Sequence[int]) -> str:
    """The figures that hypothesis (a) 1 names: mean gains on test, and their share of the whole edit's."""
    gains = {}
    for name in (START, FIRST, NOT_FIRST, FIRST_MLP):
        gains[name] = _mean_lead({w: difference(name, "unsteered", w, cells, facts, seeds) for w in worlds})
    of_whole = [f"{name.removeprefix('edit gradient, ')} {100 * gain:+.1f}" for name, gain in gains.items()]
    return f"- (a) mean gain on test over worlds, in points: {', '.join(of_whole)}.\n"


VERDICTS: dict[str, Callable[[Cells, Facts, Sequence[str], Sequence[int]], str]] = {
    "recommended": recommended_page,
    "edit verdicts": verdicts_page,
}
