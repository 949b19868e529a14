"""evaluation/choice.py: the rule by which a setting is chosen, and the sweep against brute force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import grains_ref.evaluation.choice
from grains_ref import grains
from grains_ref.data import PreferencePair, Task
from grains_ref.demo.planted import as_pairs, as_tasks
from grains_ref.evaluation.choice import (
    Grid,
    LeftOut,
    TaskCost,
    allowed_errors,
    choose,
    keeps_capability,
    sweep,
    wrong_answers,
)
from grains_ref.evaluation.measures import capability, margins, pair_rows, preference_accuracy
from grains_ref.evaluation.metrics import paired_gain
from grains_ref.evaluation.pair_scores import PairScores, prompts_of
from grains_ref.grains import DegenerateShiftsError, Example, HyperParameters, Steering, fit
from grains_ref.models import HuggingFaceModel, TokenRow
from grains_ref.tiny_models.worlds import build_world

pytestmark = pytest.mark.cpu


class FakeModel:
    """Whether greedy decoding gives a response is written into it: its first token is 1."""

    def __init__(self) -> None:
        self.scored = 0

    def score_rows(self, rows: Sequence[TokenRow]) -> list[SimpleNamespace]:
        self.scored += len(rows)
        return [SimpleNamespace(is_greedy=row.response[0] == 1) for row in rows]


# --- keeping a capability


@given(
    right=st.lists(st.booleans(), max_size=40),
    allowed=st.integers(min_value=0, max_value=12),
    chunk=st.integers(min_value=1, max_value=45),
)
def test_the_quick_check_of_a_capability_says_what_counting_says(right: list[bool], allowed: int, chunk: int) -> None:
    model, rows = FakeModel(), [TokenRow((0,), (int(ok),)) for ok in right]
    kept = keeps_capability(model, rows, allowed=allowed, chunk=chunk)
    assert kept == (right.count(False) <= allowed)
    if kept:
        assert model.scored == len(rows)
    else:  # it stopped in the chunk of the failure that was one too many
        too_many = [i for i, ok in enumerate(right) if not ok][allowed]
        assert model.scored == min(len(rows), (too_many // chunk + 1) * chunk)


# --- the choice on dev


def test_the_best_admissible_setting_is_chosen_and_everything_tried_is_told() -> None:
    accuracy = {"a": 0.2, "b": 0.9, "c": 0.7, "d": 0.7}
    choice = choose(list(accuracy), accuracy=accuracy.__getitem__, admissible=lambda s: True)
    assert choice.best == "b"
    assert choice.accuracy == accuracy[choice.best]
    assert [(tried.setting, tried.accuracy) for tried in choice.tried] == [*accuracy.items()]


def test_a_tie_goes_to_the_earlier_setting() -> None:
    assert choose([3, 1, 2], accuracy=lambda s: 0.5, admissible=lambda s: True).best == 3
    assert choose([3, 1, 2], accuracy=lambda s: 0.5, admissible=lambda s: s != 3).best == 1


def test_a_better_setting_that_costs_too_much_is_passed_over() -> None:
    accuracy = {"a": 0.2, "b": 0.9, "c": 0.7, "d": 0.8}
    choice = choose(list(accuracy), accuracy=accuracy.__getitem__, admissible=lambda s: s not in "bd")
    assert choice.best == "c"
    assert choice.accuracy == accuracy[choice.best]
    assert [(tried.setting, tried.accuracy) for tried in choice.tried] == [*accuracy.items()]


def test_admissibility_is_asked_no_further_than_needed() -> None:
    asked: list[int] = []

    def admissible(setting: int) -> bool:
        asked.append(setting)
        return setting == 3

    assert choose([1, 2, 3, 4, 5], accuracy=float, admissible=admissible).best == 3
    assert asked == [5, 4, 3]


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.booleans()), min_size=1, max_size=12).filter(
        lambda settings: any(ok for _, ok in settings)
    )
)
def test_the_choice_is_that_of_brute_force(settings: list[tuple[float, bool]]) -> None:
    best = None
    for i, (value, ok) in enumerate(settings):
        if ok and (best is None or value > settings[best][0]):
            best = i
    numbers = range(len(settings))
    assert choose(numbers, accuracy=lambda i: settings[i][0], admissible=lambda i: settings[i][1]).best == best


def test_no_admissible_setting_is_an_error() -> None:
    with pytest.raises(ValueError, match="none of the 2 settings is admissible; add strength 0"):
        choose([1, 2], accuracy=float, admissible=lambda s: False)


# --- what may be lost


@pytest.mark.parametrize(
    ("max_loss", "n", "wrong", "allowed"),
    [
        (0.5, 600, 0, 3),
        (0.5, 400, 7, 9),
        (0.5, 40, 0, 0),
        (0.5, 399, 1, 2),  # 1.995 tasks are one whole task
        (0.57, 10000, 20, 77),  # 0.57 * 10000 / 100 is 56.999... in floating point
        (0.0, 50, 4, 4),
        (100.0, 5, 2, 7),
        (0.5, 0, 0, 0),
    ],
)
def test_a_loss_that_is_allowed_is_not_lost_to_rounding(max_loss: float, n: int, wrong: int, allowed: int) -> None:
    assert allowed_errors([i >= wrong for i in range(n)], max_loss=max_loss) == allowed


@given(st.integers(0, 1000), st.integers(0, 3000))
def test_allowed_errors_are_those_of_exact_fractions(tenths: int, n: int) -> None:
    exact = Fraction(tenths, 10) * n / 100
    assert allowed_errors([True] * n, max_loss=tenths / 10) == math.floor(exact)


@pytest.mark.parametrize("max_loss", [-0.1, 100.5, math.nan, math.inf])
def test_a_loss_that_is_no_share_is_refused(max_loss: float) -> None:
    with pytest.raises(ValueError, match="expected points of task accuracy, from 0 to 100"):
        allowed_errors([True], max_loss=max_loss)


# --- the sweep


@pytest.fixture(scope="module")
def steer() -> list[PreferencePair]:
    return as_pairs(build_world("simple").split("steer")[:4])


@pytest.fixture(scope="module")
def examples(simple_model: HuggingFaceModel, steer: list[PreferencePair]) -> list[Example]:
    return [simple_model.example(p.prompt, p.chosen, p.rejected) for p in steer]


@pytest.fixture(scope="module")
def dev() -> list[PreferencePair]:
    return as_pairs(build_world("simple").split("dev")[:8])


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return as_tasks(build_world("simple").capability_split("dev")[:20])


MEAN = HyperParameters(aggregation="mean")
QUICK = replace(MEAN, attribution="random")


def test_the_sweep_is_brute_force_over_the_grid(
    simple_model: HuggingFaceModel, examples: list[Example], dev: list[PreferencePair], tasks: list[Task]
) -> None:
    hps = (MEAN, replace(MEAN, k=1, aggregation="uncentred"))
    fits = {hp: fit(simple_model, examples, hp).v for hp in hps}
    layer_sets = ((), (1, 2, 3))
    choice = sweep(
        simple_model,
        examples,
        dev,
        tasks,
        grid=Grid(lams=(5.0, 2.0), hps=hps, layer_sets=layer_sets),
        max_loss=96,
        engine="reference",
    )

    unsteered = capability(simple_model, tasks).value
    best, best_accuracy = None, preference_accuracy(simple_model, dev).value
    expected = [(0.0, MEAN, (0, 1, 2, 3), best_accuracy)]
    for lam, hp, layers in itertools.product((2.0, 5.0), hps, layer_sets):
        with Steering(simple_model.blocks, fits[hp], lam=lam, layers=layers or None):
            accuracy = preference_accuracy(simple_model, dev).value
            lost = unsteered - capability(simple_model, tasks).value
        expected.append((lam, hp, layers or (0, 1, 2, 3), accuracy))
        if accuracy > best_accuracy and lost <= 0.96:
            best, best_accuracy, cost = expected[-1], accuracy, lost
    assert [(t.setting.lam, t.setting.hp, t.setting.layers, t.accuracy) for t in choice.tried] == expected
    assert (choice.best.lam, choice.best.hp, choice.best.layers, choice.accuracy) == best
    assert torch.equal(choice.best.fit.v, fits[choice.best.hp])
    assert choice.tasks is not None
    assert choice.tasks.accuracy_unsteered - choice.tasks.accuracy == pytest.approx(cost)
    assert max(t.accuracy for t in choice.tried) > choice.accuracy  # the limit on the tasks decided
    plain = margins(simple_model, dev)
    with Steering(simple_model.blocks, fits[choice.best.hp], lam=best[0], layers=best[2]):
        steered, per_token = margins(simple_model, dev), margins(simple_model, dev, normalise="token")
    change = paired_gain(steered, plain, clusters=prompts_of(pair_rows(simple_model, dev)))
    record = choice.record()
    assert record.pop("dev_accuracy_per_token") == sum(margin > 0 for margin in per_token) / 8
    assert record.pop("dev_margin") == pytest.approx(sum(steered) / 8, abs=1e-5)
    assert record.pop("dev_margin_change") == pytest.approx([change.value, change.low, change.high], abs=1e-5)
    assert record == {
        "lam": best[0],
        "layers": [*best[2]],
        "dev_accuracy": best_accuracy,
        "dev_accuracy_unsteered": expected[0][3],
        "dev_pairs": 8,
        "dev_curve": [[t[0], t[3]] for t in expected if t[0] == 0 or t[1:3] == best[1:3]],
        "task_accuracy": choice.tasks.accuracy,
        "task_accuracy_unsteered": unsteered,
        "tasks": 20,
        "max_loss": 96,
    }


def test_among_equals_the_gentlest_is_chosen_then_the_first(
    simple_model: HuggingFaceModel, examples: list[Example], dev: list[PreferencePair]
) -> None:
    hps = (MEAN, replace(MEAN, seed=1))  # the seed plays no part here: the same vectors
    choice = sweep(simple_model, examples, dev, grid=Grid(lams=(5.00001, -0.0, 5.0), hps=hps))
    first, *steered = [t.accuracy for t in choice.tried]
    assert steered == [steered[0]] * 4
    assert steered[0] > first
    assert (choice.best.lam, choice.best.hp) == (5.0, MEAN)
    assert (choice.tasks, "tasks" in choice.record()) == (None, False)


def test_attribution_is_computed_once_and_shifts_once_per_k(
    monkeypatch: pytest.MonkeyPatch, simple_model: HuggingFaceModel, examples: list[Example], dev: list[PreferencePair]
) -> None:
    calls: dict[str, int] = {"attribute": 0, "shift": 0, "vectors": 0}
    for name in calls:
        whole = getattr(grains, name)

        def counted(*args: Any, name: str = name, whole: Any = whole) -> Any:
            calls[name] += 1
            return whole(*args)

        monkeypatch.setattr(grains, name, counted)
    hps = tuple(replace(QUICK, k=k, aggregation=name) for k in (1, 3) for name in ("mean", "uncentred"))  # type: ignore[arg-type]
    told: list[tuple[str, int, int]] = []
    sweep(
        simple_model,
        examples,
        dev,
        grid=Grid(lams=(1.0,), hps=hps),
        on_progress=lambda what, done, total: told.append((what, done, total)),
        engine="reference",
    )
    assert calls == {"attribute": 4, "shift": 2 * 4, "vectors": 4}
    assert told == [("attribution", i, 4) for i in (1, 2, 3, 4)] + [("dev", i, 5) for i in (1, 2, 3, 4, 5)]


@pytest.mark.thorough
def test_another_attribution_is_computed_anew(
    simple_model: HuggingFaceModel, examples: list[Example], dev: list[PreferencePair]
) -> None:
    hps = (QUICK, replace(QUICK, seed=1), replace(QUICK, mask_baseline="mean"), replace(QUICK, eligible=("not_last",)))
    told: list[tuple[str, int, int]] = []
    choice = sweep(
        simple_model,
        examples,
        dev[:1],
        grid=Grid(lams=(1.0,), hps=hps),
        on_progress=lambda *step: told.append(step),
        engine="reference",
    )
    assert told[7] == ("attribution", 8, 8)
    for tried in choice.tried:
        assert torch.equal(tried.setting.fit.v, fit(simple_model, examples, tried.setting.hp).v)


def test_a_fit_without_a_direction_does_not_end_the_others(
    simple_model: HuggingFaceModel, examples: list[Example], dev: list[PreferencePair]
) -> None:
    pca = replace(QUICK, aggregation="pca")
    choice = sweep(simple_model, examples[:1], dev, grid=Grid(lams=(1.0,), hps=(pca, QUICK)))
    (left_out,) = choice.left_out
    assert left_out.what == "k 3, pca"
    assert "PCA has no first component" in left_out.why
    assert {tried.setting.hp for tried in choice.tried} == {QUICK}
    with pytest.raises(DegenerateShiftsError, match="PCA has no first component"):
        sweep(simple_model, examples[:1], dev, grid=Grid(lams=(1.0,), hps=(pca,)))


@pytest.mark.parametrize("how", ["nan", "raised"])
def test_a_strength_that_overflows_is_left_out_and_never_counted(
    monkeypatch: pytest.MonkeyPatch,
    simple_model: HuggingFaceModel,
    examples: list[Example],
    dev: list[PreferencePair],
    how: str,
) -> None:
    calls: list[int] = []
    overflowing: set[int] = {1}

    def scores(model: HuggingFaceModel, rows: Sequence[TokenRow]) -> PairScores:
        calls.append(len(calls))
        if calls[-1] not in overflowing:
            return PairScores((1.0,) * 4 + (-1.0,) * 4, (0.5,) * 8)
        if how == "raised":
            raise OverflowError("lam |v| is beyond float32")
        return PairScores((math.nan, *(1.0,) * 7), (1.0,) * 8)

    monkeypatch.setattr(grains_ref.evaluation.choice, "score_pairs", scores)
    choice = sweep(simple_model, examples, dev, grid=Grid(lams=(1.0, 2.0), hps=(QUICK,)))
    assert [tried.setting.lam for tried in choice.tried] == [0.0, 2.0]
    assert choice.left_out == (LeftOut("lam 1, k 3, mean", choice.left_out[0].why),)
    assert ("1 of 8 dev pairs are not finite" in choice.left_out[0].why) == (how == "nan")

    calls.clear()
    overflowing.add(0)
    with pytest.raises(ArithmeticError):  # the unsteered model itself
        sweep(simple_model, examples, dev, grid=Grid(lams=(1.0,), hps=(QUICK,)))


def test_a_setting_whose_tasks_overflow_is_not_admissible(
    monkeypatch: pytest.MonkeyPatch,
    simple_model: HuggingFaceModel,
    examples: list[Example],
    dev: list[PreferencePair],
    tasks: list[Task],
) -> None:
    whole = wrong_answers

    def wrong(*args: Any, **options: Any) -> int:
        monkeypatch.setattr(grains_ref.evaluation.choice, "wrong_answers", whole)  # only the first setting asked
        raise OverflowError

    monkeypatch.setattr(grains_ref.evaluation.choice, "wrong_answers", wrong)
    of_settings = iter([PairScores((-1.0,) * 8, (0.0,) * 8), PairScores((1.0,) * 8, (0.0,) * 8)])
    monkeypatch.setattr(grains_ref.evaluation.choice, "_on_dev", lambda *_: next(of_settings))
    choice = sweep(simple_model, examples, dev, tasks, grid=Grid(lams=(5.0,), hps=(QUICK,)), max_loss=100)
    assert (choice.best.lam, choice.accuracy) == (0, 0.0)
    assert choice.tasks == TaskCost(20, choice.tasks.wrong_unsteered, choice.tasks.wrong_unsteered, 100)  # type: ignore[union-attr]


def test_what_cannot_be_swept_is_refused_before_the_work(
    monkeypatch: pytest.MonkeyPatch,
    simple_model: HuggingFaceModel,
    examples: list[Example],
    steer: list[PreferencePair],
    dev: list[PreferencePair],
    tasks: list[Task],
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("something was attributed")

    monkeypatch.setattr(grains, "attribute", refuse)
    grid = Grid(lams=(1.0,), hps=(MEAN,))
    with pytest.raises(ValueError, match="no examples to make vectors of"):
        sweep(simple_model, [], dev, grid=grid)
    with pytest.raises(ValueError, match="no dev pairs to choose on"):
        sweep(simple_model, examples, [], grid=grid)
    with pytest.raises(ValueError, match="2 prompts are in both the examples and dev"):
        sweep(simple_model, examples, [*dev, *steer[:2]], grid=grid)
    with pytest.raises(ValueError, match="max_loss is 101"):
        sweep(simple_model, examples, dev, tasks, grid=grid, max_loss=101)
    for layers in ((1, 4), (1, 1), (-1,)):
        with pytest.raises(ValueError, match="layers must be different numbers from 0 to 3; got"):
            sweep(simple_model, examples, dev, grid=replace(grid, layer_sets=(layers,)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lams": ()}, "lams is empty"),
        ({"lams": (1.0, 2.0, 1)}, "lams has an entry twice"),
        ({"lams": (1.0, math.nan)}, "strengths must be finite numbers"),
        ({"lams": [1.0]}, r"lams is \[1.0\]; expected a tuple"),
        ({"hps": ()}, "hps is empty"),
        ({"hps": (MEAN, MEAN)}, "hps has an entry twice"),
        ({"layer_sets": ()}, "layer_sets is empty"),
        ({"layer_sets": ((1, 2), (1, 2))}, "layer_sets has an entry twice"),
    ],
)
def test_a_grid_that_is_none_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"grid: {words}"):
        Grid(**{"lams": (1.0,), "hps": (MEAN,)} | change)
