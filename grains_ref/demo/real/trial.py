"""One behaviour and one split of it on the model: what is measured, and which strength is chosen.

The rule, the same for every method and fixed before any was run (docs/real.md):

1. A method climbs a ladder of strengths, each twice the one before; see 5 for its lower end.
2. A strength is admissible if on dev the right answers to everyday questions lose at most `EVERYDAY_LOSS` nats per
   token, and at most `CONTROLS_LOST` control is lost.
3. The ladder ends after the first strength that costs more than `EVERYDAY_LOSS`, after two strengths in a row that are
   not admissible, or after its last rung.  No grid ends where a method would still like to go on.
4. Of the admissible strengths the one with the highest accuracy on dev is chosen; of equals the one with the larger
   mean margin, then the gentler.  Strength 0 is always among them.
5. A ladder whose gentlest strength is not admissible, or is better than strength 0 and all others by rule 4, goes on
   downward by halves until that is no longer so, `DOWNWARD` strengths at most.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeAlias

from grains_ref.data import PreferencePair, Task
from grains_ref.demo.lab import Lab
from grains_ref.demo.real.behaviours import Behaviour, Sets, parted
from grains_ref.demo.real.everyday import tasks
from grains_ref.evaluation.measures import generations, pair_rows, task_rows
from grains_ref.grains import PRESETS, Example
from grains_ref.methods.edit_gradient import Derivative, EditPositions, EditSite, derivative
from grains_ref.models import HuggingFaceModel, TokenRow

EVERYDAY_LOSS = 0.1  # nats per token of the right answer
CONTROLS_LOST = 1  # of dev
DOWNWARD = 6  # strengths below the first that a ladder may go
DEV_TASKS, TEST_TASKS = 12, 20
SHOWN, SHOWN_CONTROLS, SHOWN_TASKS = 6, 3, 1  # test prompts whose answers are generated and kept
NEW_TOKENS = 24

Steered: TypeAlias = Callable[[], AbstractContextManager[object]]
Note: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class Ladder:
    """A method's strengths: `start`, then twice as much at every rung.

    at: strength -> the steering.
    """

    label: str
    at: Callable[[float], Steered]
    start: float
    rungs: int = 8


@dataclass(frozen=True)
class DevRung:
    """What one strength does on dev.

    Attributes:
        margins: log P(chosen) - log P(rejected) of every dev pair, nats.
        controls: the same of every control.
        everyday: mean log-probability per token of the right everyday answers, nats.
    """

    label: str
    strength: float
    margins: tuple[float, ...]
    controls: tuple[float, ...]
    everyday: float
    admissible: bool

    @property
    def accuracy(self) -> float:
        """The share of pairs whose chosen answer is the more likely one."""
        return share_right(self.margins)

    @property
    def margin(self) -> float:
        """Mean margin, nats."""
        return sum(self.margins) / len(self.margins)


@dataclass(frozen=True)
class TestSeen:
    """What a chosen setting does on test: margins in nats (summed, and per token), everyday nats per token by task."""

    __test__ = False  # for pytest, which takes the name for a test

    margins: tuple[float, ...]
    token_margins: tuple[float, ...]
    controls: tuple[float, ...]
    everyday: tuple[float, ...]
    greedy: tuple[bool, ...]  # whether the right everyday answer, word for word, is what the model says
    texts: tuple[str, ...]  # answers to `Trial.shown`


@dataclass(frozen=True)
class Chosen:
    """A method's choice on dev, everything it was chosen from, and what it does on test."""

    best: DevRung
    tried: tuple[DevRung, ...]
    seen: TestSeen


def question_of(asked: PreferencePair | Task) -> str:
    """The user's turn."""
    return asked.prompt if isinstance(asked.prompt, str) else asked.prompt[-1]["content"]


def share_right(margins: Sequence[float]) -> float:
    """The share of positive margins."""
    return sum(margin > 0 for margin in margins) / len(margins)


class Trial:
    """A behaviour with one split of its data, on one model; what has been computed is kept."""

    def __init__(self, model: HuggingFaceModel, behaviour: Behaviour, seed: int, *, note: Note | None = None) -> None:
        self.model, self.behaviour, self.seed = model, behaviour, seed
        self.note: Note = note or (lambda what: None)
        self.sets: Sets = behaviour.build(seed, self.count_tokens)
        self.dev_tasks, self.test_tasks = parted(tasks(), (DEV_TASKS, TEST_TASKS), seed=f"everyday {seed}")
        self.lab = Lab(
            model,
            paper=PRESETS["paper_llm"],
            lams=(),
            neutral="",
            steer=self.sets.steer,
            dev=((), ()),
            test=((), ()),
            facts=(),
        )
        self._derivatives: dict[tuple[EditSite, EditPositions], list[Derivative]] = {}
        self._unsteered_test: TestSeen | None = None

    def count_tokens(self, text: str) -> int:
        """How many tokens a text has by itself."""
        return len(self.model.tokenizer(text, add_special_tokens=False)["input_ids"])

    # ------------------------------------------------------------------ what methods are made of
    @property
    def examples(self) -> list[Example]:
        """The steering pairs, tokenised."""
        return [self.lab.example(i) for i in range(len(self.sets.steer))]

    def derivatives(self, site: EditSite, positions: EditPositions) -> list[Derivative]:
        """The derivative of every steering pair with respect to an edit, see `methods.edit_gradient`."""
        if (site, positions) not in self._derivatives:
            self._derivatives[site, positions] = [
                derivative(self.model, example, site=site, positions=positions) for example in self.examples
            ]
        return self._derivatives[site, positions]

    # ------------------------------------------------------------------ dev
    @functools.cached_property
    def _dev_rows(self) -> tuple[list[TokenRow], list[TokenRow], list[TokenRow]]:
        return (
            pair_rows(self.model, self.sets.dev),
            pair_rows(self.model, self.sets.dev_controls),
            task_rows(self.model, self.dev_tasks),
        )

    @functools.cached_property
    def unsteered(self) -> DevRung:
        """The model as it is, on dev."""
        return self._on_dev("unsteered", 0.0, nullcontext, None)

    def _on_dev(self, label: str, strength: float, steered: Steered, base: DevRung | None) -> DevRung:
        self.note(f"dev: {label}, {strength:g}")
        pairs, controls, everyday = self._dev_rows
        with steered():
            nats = sum(self._per_token(everyday)) / len(everyday)
            margins = tuple(self._margins(pairs))
            control_margins = tuple(self._margins(controls))
        admissible = base is None or self._is_admissible(nats, control_margins, base)
        return DevRung(label, strength, margins, control_margins, nats, admissible)

    @staticmethod
    def _is_admissible(everyday: float, controls: Sequence[float], base: DevRung) -> bool:
        lost = sum(margin > 0 for margin in base.controls) - sum(margin > 0 for margin in controls)
        return base.everyday - everyday <= EVERYDAY_LOSS and lost <= CONTROLS_LOST

    def climb(self, ladder: Ladder) -> list[DevRung]:
        """Every strength of a ladder, gentlest first, by rules 3 and 5."""
        tried, in_a_row = list[DevRung](), 0
        for step in range(ladder.rungs):
            rung = self._rung(ladder, ladder.start * 2**step)
            if rung is None:
                break
            tried.append(rung)
            in_a_row = 0 if rung.admissible else in_a_row + 1
            if self.unsteered.everyday - rung.everyday > EVERYDAY_LOSS or in_a_row == 2:
                break
        for step in range(1, DOWNWARD + 1):
            if ladder.rungs == 1 or not self._wants_gentler(tried):
                break
            rung = self._rung(ladder, ladder.start / 2**step)
            if rung is not None:
                tried.insert(0, rung)
        return tried

    def _rung(self, ladder: Ladder, strength: float) -> DevRung | None:
        """One strength on dev; None where it is so strong that there are no scores."""
        try:
            return self._on_dev(ladder.label, strength, ladder.at(strength), self.unsteered)
        except FloatingPointError:
            return None

    def _wants_gentler(self, tried: Sequence[DevRung]) -> bool:
        """Whether the lower end of what was tried is too strong, or the best."""
        return not tried or not tried[0].admissible or best_of([self.unsteered, *tried]) is tried[0]

    def choose(self, ladders: Sequence[Ladder]) -> Chosen:
        """The best strength of all ladders by rule 4, and what it does on test."""
        tried = [self.unsteered]
        steered: dict[tuple[str, float], Steered] = {("unsteered", 0.0): nullcontext}
        for ladder in ladders:
            climbed = self.climb(ladder)
            tried += climbed
            steered |= {(rung.label, rung.strength): ladder.at(rung.strength) for rung in climbed}
        best = best_of(tried)
        if not best.strength:
            return Chosen(best, tuple(tried), self.unsteered_test)
        return Chosen(best, tuple(tried), self._on_test(best, steered[best.label, best.strength]))

    # ------------------------------------------------------------------ test
    @functools.cached_property
    def _test_rows(self) -> tuple[list[TokenRow], list[TokenRow], list[TokenRow]]:
        return (
            pair_rows(self.model, self.sets.test),
            pair_rows(self.model, self.sets.test_controls),
            task_rows(self.model, self.test_tasks),
        )

    @property
    def shown(self) -> list[PreferencePair | Task]:
        """Different test prompts whose answers are generated: of pairs, of controls, everyday questions."""
        pairs: list[PreferencePair] = []
        for pair in self.sets.test:
            if all(pair.prompt != other.prompt for other in pairs):
                pairs.append(pair)
        controls = self.sets.test_controls
        step = max(1, len(controls) // SHOWN_CONTROLS)
        return [*pairs[:SHOWN], *controls[::step][:SHOWN_CONTROLS], *self.test_tasks[:SHOWN_TASKS]]

    @property
    def unsteered_test(self) -> TestSeen:
        """The model as it is, on test."""
        if self._unsteered_test is None:
            self._unsteered_test = self._on_test(self.unsteered, nullcontext)
        return self._unsteered_test

    def _on_test(self, rung: DevRung, steered: Steered) -> TestSeen:
        self.note(f"test: {rung.label}, {rung.strength:g}")
        pairs, controls, everyday = self._test_rows
        with steered():
            scored = self.model.score_rows(pairs)
            control_margins = tuple(self._margins(controls))
            of_tasks = self.model.score_rows(everyday)
            texts = generations(self.model, [asked.prompt for asked in self.shown], max_new_tokens=NEW_TOKENS)
        n = len(pairs) // 2
        summed = [score.log_prob for score in scored]
        by_token = [score.log_prob / len(row.response) for score, row in zip(scored, pairs, strict=True)]
        return TestSeen(
            margins=tuple(summed[i] - summed[n + i] for i in range(n)),
            token_margins=tuple(by_token[i] - by_token[n + i] for i in range(n)),
            controls=control_margins,
            everyday=tuple(s.log_prob / len(row.response) for s, row in zip(of_tasks, everyday, strict=True)),
            greedy=tuple(score.is_greedy for score in of_tasks),
            texts=tuple(text.strip() for text in texts),
        )

    def undisturbed_margins(self) -> list[float]:
        """Margins of the test prompts without what causes the rejected answer."""
        return self._margins(pair_rows(self.model, self.sets.undisturbed))

    # ------------------------------------------------------------------ scores
    def _margins(self, rows: Sequence[TokenRow]) -> list[float]:
        scores = [scored.log_prob for scored in self.model.score_rows(rows)]
        n = len(scores) // 2
        return [scores[i] - scores[n + i] for i in range(n)]

    def _per_token(self, rows: Sequence[TokenRow]) -> list[float]:
        scored = self.model.score_rows(rows)
        return [score.log_prob / len(row.response) for score, row in zip(scored, rows, strict=True)]


def best_of(tried: Sequence[DevRung]) -> DevRung:
    """Rule 4: of the admissible, the highest accuracy, then the larger mean margin, then the first."""
    admissible = [rung for rung in tried if rung.admissible]
    return max(admissible, key=lambda rung: (rung.accuracy, rung.margin))
