"""The fair fight's grid, and the verdict on the preset `recommended` by the rule of docs/reproduction.md."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from grains_ref.demo.lab import Lab
from grains_ref.evaluation.choice import Choice, Tried
from grains_ref.grains import DegenerateShiftsError
from grains_ref.reproduction import fair_fight, recommended
from grains_ref.reproduction.fair_fight import ROWS, SHARES, FairFight, common_grid, extended
from grains_ref.reproduction.recommended import BESIDE, CANDIDATES, opponents, recommended_page, rows_needed, verdict
from grains_ref.reproduction.rows import rows_of

pytestmark = pytest.mark.cpu


# --- the grid


def test_a_grid_goes_on_at_the_end_that_somebody_chose_and_the_unsteered_model_is_no_end() -> None:
    assert extended((1.0, 4.0), [0.0, 0.0], factor=4.0) == (1.0, 4.0)
    assert extended((1.0, 4.0), [0.0, 4.0], factor=4.0) == (1.0, 4.0, 16.0)
    assert extended((1.0, 4.0), [1.0, 0.0], factor=4.0) == (0.25, 1.0, 4.0)
    assert extended((1.0, 4.0), [1.0, 4.0], factor=4.0) == (0.25, 1.0, 4.0, 16.0)
    assert extended((1.0, 4.0, 16.0), [4.0], factor=4.0) == (1.0, 4.0, 16.0)


def test_a_grid_goes_on_until_no_choice_lies_at_an_end_or_often_enough() -> None:
    asked: list[tuple[float, ...]] = []

    def strongest(lams: Sequence[float]) -> list[float]:
        asked.append(tuple(lams))
        return [0.0, lams[-1]]

    assert common_grid((1.0, 2.0), strongest, factor=2.0, most=2) == (1.0, 2.0, 4.0, 8.0)
    assert asked == [(1.0, 2.0), (1.0, 2.0, 4.0)]
    assert common_grid((1.0, 2.0), lambda lams: [4.0 if 4.0 in lams else 2.0], factor=2.0, most=5)[-1] == 8.0
    assert common_grid((1.0, 2.0, 4.0), lambda lams: [2.0], factor=2.0, most=5) == (1.0, 2.0, 4.0)


class FakeVectors:
    def __init__(self, label: str) -> None:
        self.label = label

    def setting(self, model: Any, *, lam: float) -> Any:
        return SimpleNamespace(label=self.label, strength=lam, steering=contextlib.nullcontext)


def fake_fight(monkeypatch: pytest.MonkeyPatch, best: dict[str, float]) -> tuple[FairFight, list[str]]:
    """A fight in which each method likes one strength best; and what was measured, dev before test."""
    calls: list[str] = []

    def choose(settings: Sequence[Any]) -> Choice[Any]:
        calls.append("dev")
        method = settings[0].label.split(",")[0]
        liked = min(settings, key=lambda setting: abs(setting.strength - best[method]))
        return Choice(liked, 1.0, tuple(Tried(setting, 0.5) for setting in settings))

    def made(self: FairFight, name: str) -> list[Any]:
        method = name.removesuffix(", any site")
        return [FakeVectors(f"{method}, {place}") for place in ("a", "b")] if method in best else []

    monkeypatch.setattr(FairFight, "_made", made)
    lab: Any = SimpleNamespace(is_visual=False, model=None, bench=SimpleNamespace(choose=choose))
    return FairFight(lab), calls


def test_where_one_methods_choice_lies_at_an_end_the_grid_is_longer_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    fight, _ = fake_fight(monkeypatch, {"edit gradient": 0.32, "CAA": 100.0, "ICV": 0.08})
    expected = (*SHARES, SHARES[-1] * 4, SHARES[-1] * 16)
    assert fight.lams == pytest.approx(expected)
    for name in ("edit gradient, any site", "CAA, any site", "ICV, any site"):
        settings = fight.settings(name)
        assert [setting.strength for setting in settings] == [lam for lam in fight.lams for _ in range(2)]
        assert len({setting.label for setting in settings}) == 2
        assert fight.settings(name)[0] is settings[0]  # the bench knows it again
    with pytest.raises(DegenerateShiftsError, match="RepE, any site: no site has a direction"):
        fight.settings("RepE, any site")


def test_a_grid_whose_middle_is_chosen_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    fight, calls = fake_fight(monkeypatch, {"edit gradient": 0.32, "CAA": 0.08})
    assert fight.lams == SHARES
    assert calls == ["dev"] * 2


def test_the_fights_rows_share_one_fight(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def fight(lab: Any) -> Any:
        made.append("fight")
        return SimpleNamespace(settings=lambda name: [name])

    monkeypatch.setattr(fair_fight, "FairFight", fight)
    lab = Lab(*[None] * 8)  # type: ignore[arg-type]
    rows = fair_fight.rows_of_the_fight(is_visual=False)
    assert list(rows) == list(ROWS)
    assert [row(lab) for row in rows.values()] == [[[name]] for name in ROWS]
    assert made == ["fight"]
    assert "RepE, any site" not in fair_fight.rows_of_the_fight(is_visual=True)


# --- the verdict


def test_every_row_of_the_verdict_can_be_run() -> None:
    for kind in ("text", "visual"):
        assert set(rows_needed(kind)) <= rows_of(is_visual=kind == "visual").keys()  # type: ignore[arg-type]
        assert len(CANDIDATES) == 8
        assert not [name for name in opponents(kind) if "edit gradient" in name or "LoRA" in name]  # type: ignore[arg-type]


WORLDS = ("simple", "simple-visual")
FACTS = {(world, 0): [f"fact {i}" for i in range(10)] for world in WORLDS}
BEST = CANDIDATES[3]


def cell(right: str, dev: float) -> Any:
    tried = [("unsteered", 0.0, 0.1), ("s", 1.0, 0.1 + dev), ("s", 2.0, 0.0)]
    return {"draws": [{"label": "s", "strength": 1.0, "tried": tried, "right": right}]}


def some_cells(changes: dict[tuple[str, str], Any]) -> Any:
    """The best candidate on dev is right eight times of ten, every opponent twice; and what is changed."""
    cells = {}
    for world in WORLDS:
        for row in rows_needed(recommended.kind_of(world)):
            is_best = row == BEST
            cells[world, 0, row] = cell("1111111100" if is_best else "1100000000", 0.5 if is_best else 0.2)
        cells[world, 0, CANDIDATES[0]] = cell("1" * 10, 0.3)  # better on test, which does not count
    return cells | {(world, 0, row): changed for (world, row), changed in changes.items()}


def test_the_candidate_is_chosen_on_dev_and_never_on_test() -> None:
    outcome = verdict(some_cells({}), FACTS, WORLDS, [0])
    assert outcome.winner == BEST
    assert outcome.dev_gains[BEST] == pytest.approx({"simple": 0.5, "simple-visual": 0.5})
    assert outcome.failures() == []
    assert outcome.mean_lead("GrAInS") == pytest.approx(0.6)
    assert set(outcome.ahead_by["NL-ITI"]) == {"simple"}
    assert set(outcome.ahead_by["VTI"]) == {"simple-visual"}
    page = recommended_page(some_cells({}), FACTS, WORLDS, [0])
    assert f"**{BEST}** may be called recommended" in page
    assert f"beside: {BESIDE}" in page


def test_an_opponent_that_is_ahead_in_the_mean_or_beyond_chance_in_a_world_is_enough_to_fail() -> None:
    ahead_in_one = {("simple", "NL-ITI"): cell("1" * 10, 0.2)}
    (reason, *_) = verdict(some_cells(ahead_in_one), FACTS, WORLDS, [0]).failures()
    assert reason.startswith("not ahead of NL-ITI in the mean over worlds (-20.0 points)")
    beyond_chance = {  # ahead in the mean over worlds, and behind in one
        ("simple", BEST): cell("0" * 10, 0.5),
        ("simple", "CAA"): cell("1111110000", 0.2),
        ("simple-visual", "CAA"): cell("0" * 10, 0.2),
    }
    failures = verdict(some_cells(beyond_chance), FACTS, WORLDS, [0]).failures()
    assert any(reason.startswith("behind CAA in simple beyond chance (-60.0 [") for reason in failures)
    assert not any("CAA in the mean" in reason for reason in failures)
    page = recommended_page(some_cells(beyond_chance), FACTS, WORLDS, [0])
    assert f"**{BEST}** is not to be called recommended:\n\n- " in page


def test_a_behind_within_chance_is_no_failure_and_a_method_without_direction_none() -> None:
    within_chance = {
        ("simple", "ICV"): cell("1111111110", 0.2),  # one more of ten
        ("simple-visual", "ICV"): cell("0" * 10, 0.2),
        ("simple", "RepE"): {"error": "no direction"},
    }
    outcome = verdict(some_cells(within_chance), FACTS, WORLDS, [0])
    assert outcome.failures() == []
    assert outcome.mean_lead("RepE") is None
    assert outcome.ahead_by["RepE"]["simple"] == "no direction"
    assert "| RepE | none | - | - |" in recommended_page(some_cells(within_chance), FACTS, WORLDS, [0])
