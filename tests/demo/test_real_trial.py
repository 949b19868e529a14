"""demo/real: the rule of choice, verdicts, causes, and every row on a tiny random model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from real_trials import tiny_trial

from grains_ref.demo.real.causes import places_of, recall
from grains_ref.demo.real.rows import ROWS
from grains_ref.demo.real.signals import SIGNALLED, grains_signal
from grains_ref.demo.real.trial import DevRung, Ladder, TestSeen, Trial, best_of
from grains_ref.demo.real.verdict import gains
from grains_ref.evaluation.measures import margins

pytestmark = pytest.mark.cpu


# ------------------------------------------------------------------------------------------- the rule
class Scale:
    """Stands for a trial whose everyday loss, controls and margins are functions of the strength."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, everyday: Any, controls: Any, margins: Any) -> None:
        self.strength = 0.0
        self.asked: list[float] = []
        self.trial = Trial.__new__(Trial)
        self.trial.note = lambda what: None
        rows = (["p"] * 4, ["c"] * 8, [SimpleNamespace(response=(1,))])
        self.trial.__dict__["_dev_rows"] = rows
        monkeypatch.setattr(Trial, "_per_token", lambda trial, rows: [-1 - everyday(self.strength)])

        def of_rows(trial: Trial, rows: list[str]) -> list[float]:
            values: list[float] = controls(self.strength) if rows[0] == "c" else margins(self.strength)
            return values

        monkeypatch.setattr(Trial, "_margins", of_rows)

    def ladder(self, start: float = 1.0, rungs: int = 8) -> Ladder:
        return Ladder("scale", lambda strength: lambda: self.at(strength), start, rungs)

    @contextlib.contextmanager
    def at(self, strength: float) -> Iterator[None]:
        self.asked.append(strength)
        self.strength = strength
        yield
        self.strength = 0.0


def kept(n: int) -> list[float]:
    return [1.0] * n + [-1.0] * (8 - n)


def test_a_ladder_ends_behind_the_first_strength_that_costs_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    scale = Scale(monkeypatch, everyday=lambda s: s / 50, controls=lambda s: kept(8), margins=lambda s: [s - 3] * 4)
    tried = scale.trial.climb(scale.ladder())
    assert scale.asked == [1, 2, 4, 8]  # costs .02, .04, .08, .16
    assert [rung.admissible for rung in tried] == [True, True, True, False]


def test_two_strengths_in_a_row_that_lose_controls_end_a_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = {0.0: 8, 1.0: 7, 2.0: 6, 4.0: 7, 8.0: 6, 16.0: 5}
    scale = Scale(monkeypatch, everyday=lambda s: 0, controls=lambda s: kept(lost[s]), margins=lambda s: [s] * 4)
    tried = scale.trial.climb(scale.ladder())
    assert [rung.strength for rung in tried] == [1, 2, 4, 8, 16]
    assert [rung.admissible for rung in tried] == [True, False, True, False, False]


def test_a_strength_without_scores_ends_a_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    def overflow(strength: float) -> list[float]:
        if strength >= 4:
            raise FloatingPointError("not finite")
        return [strength] * 4

    scale = Scale(monkeypatch, everyday=lambda s: 0, controls=lambda s: kept(8), margins=overflow)
    assert [rung.strength for rung in scale.trial.climb(scale.ladder())] == [1, 2]


def test_a_ladder_that_begins_too_high_goes_on_downward(monkeypatch: pytest.MonkeyPatch) -> None:
    scale = Scale(monkeypatch, everyday=lambda s: s / 6, controls=lambda s: kept(8), margins=lambda s: [s - 3] * 4)
    tried = scale.trial.climb(scale.ladder(start=2.0))
    assert scale.asked == [2, 1, 0.5, 0.25]  # cost .33, .17, .08, .04; at .5 it is the best
    assert [rung.strength for rung in tried] == [0.25, 0.5, 1, 2]
    assert best_of([scale.trial.unsteered, *tried]).strength == 0.5


def test_a_ladder_does_not_go_down_where_nothing_is_better_than_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scale = Scale(monkeypatch, everyday=lambda s: s / 50, controls=lambda s: kept(8), margins=lambda s: [-s] * 4)
    scale.trial.climb(scale.ladder())
    assert min(scale.asked) == 1


def test_a_ladder_goes_down_so_far_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    scale = Scale(monkeypatch, everyday=lambda s: s and 1, controls=lambda s: kept(8), margins=lambda s: [s] * 4)
    scale.trial.climb(scale.ladder())
    assert scale.asked == [1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64]


def rung(strength: float, right: int, margin: float, *, admissible: bool = True) -> DevRung:
    margins = (1.0,) * right + (-1.0,) * (4 - right)
    shift = margin - sum(margins) / 4
    return DevRung("r", strength, tuple(m + (shift if right in (0, 4) else 0) for m in margins), (), -1.0, admissible)


def test_the_choice_is_by_accuracy_then_margin_then_gentleness() -> None:
    assert best_of([rung(0, 1, 0), rung(1, 2, 0), rung(2, 3, 0, admissible=False)]).strength == 1
    assert best_of([rung(0, 0, -5), rung(1, 0, -4), rung(2, 0, -4.5)]).strength == 1
    assert best_of([rung(0, 0, -5), rung(1, 0, -5)]).strength == 0


# ------------------------------------------------------------------------------------------- verdicts
def seen(right: list[bool], *, controls: int = 10, everyday: float = -1.0) -> TestSeen:
    margins = tuple(1.0 if ok else -1.0 for ok in right)
    of_controls = (1.0,) * controls + (-1.0,) * (10 - controls)
    return TestSeen(margins, margins, of_controls, (everyday, everyday - 0.1), (True, True), ())


HALF = [True, False] * 10
ABOUT = [f"subject {i // 2}" for i in range(20)]


@pytest.mark.parametrize(
    ("steered", "verdict"),
    [
        (seen([True] * 20), "works"),
        (seen([True] * 20, controls=8), "works at a price"),
        (seen([True] * 20, everyday=-1.3), "works at a price"),
        (seen([False] * 20), "wrong way"),
        (seen(HALF), "does not"),
        (seen([True, True] * 2 + HALF[4:-4] + [False, False, True, True]), "cannot tell"),
    ],
)
def test_verdicts(steered: TestSeen, verdict: str) -> None:
    assert gains([steered], [seen(HALF)], [ABOUT]).verdict == verdict


def test_gains_are_of_pairs_with_the_same_split() -> None:
    of_two = gains([seen([True] * 20), seen(HALF)], [seen(HALF), seen(HALF)], [ABOUT, ABOUT])
    assert of_two.gain.value == pytest.approx(0.25)
    assert of_two.margin.value == pytest.approx(0.5)
    assert of_two.gain.n == 10  # the splits of a subject stay together


# ------------------------------------------------------------------------------------------- on a tiny model
@pytest.fixture(scope="module")
def trial() -> Trial:
    return tiny_trial()


@pytest.mark.parametrize("row", ROWS)
def test_every_row_climbs_and_releases_the_model(row: str, trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grains_ref.demo.real.rows.ITI_HEADS", 2)
    if row.startswith("LoRA"):
        pytest.importorskip("peft")
    before = margins(trial.model, trial.sets.test)
    ladders = ROWS[row](trial)
    for ladder in ladders:
        with ladder.at(ladder.start)():
            steered = margins(trial.model, trial.sets.test)
        assert steered != before
    assert margins(trial.model, trial.sets.test) == before
    assert len(ladders) == (row != "unsteered")


def test_reversed_vectors_go_the_other_way(trial: Trial) -> None:
    before = margins(trial.model, trial.sets.steer)
    changes = []
    for row in ("edit gradient, residual", "edit gradient, reversed"):
        (ladder,) = ROWS[row](trial)
        with ladder.at(0.01)():
            after = margins(trial.model, trial.sets.steer)
        changes.append(sum(after) - sum(before))
    assert changes[0] > 0 > changes[1]


def test_a_choice_is_measured_on_test_under_its_own_steering(trial: Trial) -> None:
    chosen = trial.choose(ROWS["edit gradient, residual"](trial))
    (ladder,) = ROWS["edit gradient, residual"](trial)
    assert chosen.best.strength > 0
    with ladder.at(chosen.best.strength)():
        assert list(chosen.seen.margins) == pytest.approx(margins(trial.model, trial.sets.test), abs=1e-4)
    assert len(chosen.seen.texts) == len(trial.shown)
    per_token = [margin / n for margin, n in zip(chosen.seen.margins, answer_lengths(trial), strict=True)]
    assert list(chosen.seen.token_margins) == pytest.approx(per_token, abs=1e-4)


def answer_lengths(trial: Trial) -> list[int]:
    lengths = []
    for made in trial.sets.test:
        chosen, rejected = (len(trial.model.response_ids(made.prompt, a)) for a in (made.chosen, made.rejected))
        assert chosen == rejected
        lengths.append(chosen)
    return lengths


def test_a_prompt_with_two_wordings_of_its_answers_is_shown_once(trial: Trial) -> None:
    once = [asked.prompt for asked in trial.shown]
    sets = dataclasses.replace(trial.sets, test=trial.sets.test * 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "sets", sets)
        assert [asked.prompt for asked in trial.shown] == once


@pytest.mark.parametrize("row", SIGNALLED)
def test_a_row_of_shifts_has_its_signal(row: str, trial: Trial) -> None:
    signal = grains_signal(trial, **SIGNALLED[row])
    assert signal.n == 4
    assert signal.cosine is not None
    assert signal.slope is not None
    assert (signal.template == 0) == ("content" in row)


def test_causes_are_found_in_the_prompt(trial: Trial) -> None:
    encoded = trial.lab.example(0).encoded
    places = places_of(encoded, "new")
    assert "".join(encoded.tokens[j] for j in sorted(places)).strip() == "new"
    found = recall(trial)
    assert found is not None
    assert found.n == 4
    assert 0 < found.by_chance < 1
    with pytest.raises(ValueError):
        places_of(encoded, "unheard of")


def test_recall_counts_the_most_negative_tokens(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [torch.ones(len(example.encoded.ids)) for example in trial.examples]
    scores[0][min(places_of(trial.lab.example(0).encoded, "new"))] = -1.0
    monkeypatch.setattr(trial.lab, "attribution", lambda hp, i: SimpleNamespace(a=scores[i]))
    found = recall(trial)
    assert found is not None
    assert (found.among_all, found.among_content) == (1, 1)
