"""Cells, rows and curves on scripted labs: what is generated and judged, chosen and drawn; geometry by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from grains_ref.data import PreferencePair
from grains_ref.demo.bench import UNSTEERED
from grains_ref.evaluation.choice import Choice, Tried
from grains_ref.grains import PRESETS, Selection, Shift
from grains_ref.methods.core import Setting
from grains_ref.models import TokenRow
from grains_ref.reproduction import cells, curves, paper, rows, statistics

pytestmark = pytest.mark.cpu


class Script:
    """A lab whose model says the preferred answers, and all of them, only while it is steered."""

    pairs = (
        PreferencePair("a", "p", "one two three four five", "no", where="a"),
        PreferencePair("b", "q", "yes it is", "no it is not at all", where="b", image=Path("seen.png")),
    )

    def __init__(self) -> None:
        self.is_steered = False
        self.lengths: list[int] = []  # max_new_tokens of every batch
        self.sizes: list[int] = []  # prompts of every batch
        self.unsteered: Any = None
        self.judged: Any = None
        self.abilities: dict[str, Any] = {}
        self.test, self.model = (self.pairs, ()), self
        answers = [(p.prompt, answer) for p in self.pairs for answer in (p.chosen, p.rejected)]
        rows = [TokenRow((0,) * 4, (0,) * len(answer.split())) for _, answer in answers]
        self.bench = SimpleNamespace(choose=last, test=outcome, test_rows=rows)

    @contextmanager
    def steering(self) -> Iterator[None]:
        self.is_steered = True
        yield
        self.is_steered = False

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, images: Sequence[Any]) -> list[str]:
        assert list(images) == [p.image for p in self.pairs if p.prompt in prompts]  # each prompt its own, or None
        self.lengths.append(max_new_tokens)
        self.sizes.append(len(prompts))
        return [p.chosen if self.is_steered else p.rejected for p in self.pairs if p.prompt in prompts]


def last(settings: Sequence[Setting]) -> Choice[Setting]:
    tried = (UNSTEERED, *settings)
    return Choice(tried[-1], 0.5, tuple(Tried(setting, 0.5) for setting in tried))


def outcome(choice: Choice[Setting]) -> SimpleNamespace:
    better = choice.best.strength > 0
    return SimpleNamespace(right=(better, better), rejected=(not better, False), capable=(True,))


@pytest.fixture
def script() -> Any:
    return Script()


def test_a_cell_holds_what_the_chosen_setting_says_whatever_was_measured_before(script: Any) -> None:
    base = cells._measure(script, [])
    steered = cells._measure(script, [Setting("s", 1.0, script.steering)])
    assert {name: base[name] for name in ("right", "rejected", "bleu", "capable")} == {
        "right": "00", "rejected": "10", "bleu": "00", "capable": "1",
    }  # fmt: skip
    assert {name: steered[name] for name in ("right", "rejected", "bleu", "capable")} == {
        "right": "11", "rejected": "00", "bleu": "11", "capable": "1",
    }  # fmt: skip
    assert cells._measure(script, []) == base
    assert min(script.lengths) > 6  # words of the longest answer


@pytest.mark.parametrize(("room", "batches"), [(1, [1, 1]), (23, [1, 1]), (24, [2])])
def test_no_more_tokens_are_generated_on_at_once_than_a_big_model_has_room_for(
    script: Any, monkeypatch: pytest.MonkeyPatch, room: int, batches: list[int]
) -> None:
    monkeypatch.setattr(cells, "BATCH_TOKENS", room)  # two prompts of 4 tokens, 8 new ones each
    cells._measure(script, [Setting("s", 1.0, script.steering)])
    assert script.sizes == batches


def test_a_judge_sees_the_answers_of_the_steered_model(script: Any) -> None:
    script.judged = lambda: [not script.is_steered] * 2
    assert cells._measure(script, [Setting("s", 1.0, script.steering)])["rejected"] == "00"
    assert cells._measure(script, [])["rejected"] == "11"


def test_further_abilities_are_those_of_the_steered_model_and_only_of_the_rows_of_their_tables(script: Any) -> None:
    asked = []

    def solved() -> list[bool]:
        asked.append(script.is_steered)
        return [not script.is_steered, True]

    script.abilities = {"humaneval": solved}
    settings = [Setting("s", 1.0, script.steering)]
    assert "humaneval" not in cells._measure(script, settings)
    assert asked == []
    assert cells._measure(script, settings, with_abilities=True)["humaneval"] == "01"
    assert cells._measure(script, [])["humaneval"] == "11"  # kept for every row that chooses it
    assert cells._measure(script, [], with_abilities=True)["humaneval"] == "11"
    assert asked == [True, False]


def test_draws_differ_in_their_seed_and_smoothgrad_costs_what_integrated_gradients_do() -> None:
    paper = replace(PRESETS["paper_llm"], m=7)
    stub: Any = SimpleNamespace(paper=paper, grains=lambda label, hp: hp)
    draws: Any = rows.SHARED["random tokens"](stub)
    assert [(hp.attribution, hp.seed) for hp in draws] == [("random", draw) for draw in range(5)]
    (smooth,) = rows.SHARED["SmoothGrad"](stub)
    assert smooth == replace(paper, attribution="smoothgrad", n=7)


@dataclass(frozen=True)
class Layers:
    """A setting of a set of layers."""

    layers: tuple[int, ...]


def test_the_greedy_set_grows_by_the_best_layer_and_ends_where_none_helps() -> None:
    dev = {(): 0.1, (0,): 0.3, (1,): 0.5, (2,): 0.5, (0, 1): 0.7, (1, 2): 0.6, (0, 1, 2): 0.7}

    def choose(settings: Sequence[Any]) -> Choice[Any]:
        tried = [Tried(one, dev[getattr(one, "layers", ())]) for one in (UNSTEERED, *settings)]
        return Choice(tried[-1].setting, tried[-1].accuracy, tuple(tried))

    def strengths(label: str, v: torch.Tensor, *, layers: list[int]) -> list[Any]:
        assert label == "layers " + str(layers)[1:-1]
        return [Layers(tuple(layers))]

    stub: Any = SimpleNamespace(
        paper=None, fit=lambda hp: SimpleNamespace(v=torch.zeros(3, 4)), strengths=strengths,
        bench=SimpleNamespace(choose=choose),
    )  # fmt: skip
    ((chosen,),) = rows.TEXT["greedy set of layers"](stub)
    assert chosen == Layers((0, 1))  # 1 before 2, as the earlier; not all three, which are no better


def cell(*outcomes: str, strength: float = 0.0, tried: Sequence[float] = ()) -> dict[str, Any]:
    """A cell with one draw per string of outcomes, which are those of prompts and of tasks."""
    grid = [("x", one, 0.5) for one in tried]
    one = {"label": "x", "strength": strength, "tried": grid}
    return {"draws": [one | {"right": bits, "capable": bits} for bits in outcomes]}


def result(cells: dict[str, dict[str, Any]], *, measure: paper.Measure, facts: Sequence[str]) -> statistics.Result:
    """The result of the row "random tokens" in one world and seed."""
    spec = paper.TableSpec("t", "T", "text", (measure,), {"Row": "random tokens"}, reference="unsteered")
    by_place = {("w", 0, name): one for name, one in cells.items()}
    found = statistics.results(spec, ["w"], by_place, {("w", 0): facts}, [0])
    one = found["Row", "w", measure]
    assert isinstance(one, statistics.Result)
    return one


def test_a_result_is_a_mean_over_all_draws() -> None:
    both = {"unsteered": cell("00"), "random tokens": cell("10", "00", "00", "11")}
    found = result(both, measure="right", facts=["a", "b"])
    assert (found.value.value, found.gain.value) == ((2 / 4 + 1 / 4) / 2,) * 2


def test_tasks_are_about_no_fact_even_where_there_are_as_many_as_prompts() -> None:
    both = {"unsteered": cell("0000"), "random tokens": cell("1110")}
    assert result(both, measure="right", facts=list("aaab")).value.value == (1 + 0) / 2  # fact a and fact b
    tasks = result(both, measure="capable", facts=list("aaab"))
    assert (tasks.value.value, tasks.value.n) == (3 / 4, 4)


@pytest.mark.parametrize(
    ("strength", "tried", "at_end"),
    [(2.0, (0.0, 1.0, 2.0), True), (1.0, (0.0, 1.0, 2.0), False), (1.0, (0.0, 1.0), False)],
)
def test_a_grid_of_on_and_off_has_no_end(strength: float, tried: tuple[float, ...], at_end: bool) -> None:
    both = {"unsteered": cell("00"), "random tokens": cell("10", strength=strength, tried=tried)}
    assert result(both, measure="right", facts=["a", "b"]).at_end == at_end


def test_geometry_of_shifts_made_by_hand() -> None:
    rng = np.random.default_rng(0)
    found, planted = rng.normal(size=(2, 2, 5, 2, 3))  # sign, example, layer, width

    def shifts(deltas: np.ndarray) -> list[Shift]:
        return [Shift(torch.zeros(4), Selection(pos=(i % 4,), neg=(3,)), *torch.tensor(deltas[:, i])) for i in range(5)]

    ours, truth = shifts(found), shifts(planted)
    stub: Any = SimpleNamespace(
        paper=PRESETS["paper_llm"], steer=range(5), shift=lambda hp, i: ours[i], planted_shifts=lambda: truth
    )
    found_rows = iter(curves.geometry(stub))
    for s, sign in enumerate(("pos", "neg")):
        for layer in range(2):
            row, d, true_mean = next(found_rows), found[s, :, layer], planted[s, :, layer].mean(0)
            assert (row["sign"], row["layer"]) == (sign, layer)
            mean = d.mean(0)
            cosine = mean @ true_mean / np.linalg.norm(mean) / np.linalg.norm(true_mean)
            assert row["cos_planted"]["mean"] == pytest.approx(cosine)
            assert row["mean_share"] == pytest.approx((mean @ mean) / (d**2).sum(1).mean())
            assert row["last_token_masked"] == (1 if sign == "pos" else 5)
            scores = (d - mean) @ np.linalg.svd(d - mean)[2][0]
            explained = scores[3] ** 2 * 5 / 4 / (scores**2).sum()  # one against four, around a mean of zero
            assert row["explained_by_last_token"] == pytest.approx(explained if sign == "pos" else 0.0)


def test_the_engine_is_every_lab_s_of_either_kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cells, "write_data", lambda *_: None)
    monkeypatch.setattr(cells, "planted_lab", lambda *_: SimpleNamespace(engine="fast"))
    lab: Any = cells.tiny_lab("simple", 0, tmp_path, engine="reference")
    assert lab.engine == "reference"

    monkeypatch.setattr(curves, "double_labs", lambda model, *, engine: {"engine": engine})
    monkeypatch.setattr(curves, "measure", lambda labs, facts: labs)
    monkeypatch.setattr(curves.habits, "measure", lambda labs, facts: labs)
    double: Any = SimpleNamespace(model=None, facts=(), engine="reference")
    for curve in (curves.transfer, curves.habits_of):
        assert curve(double)["engine"] == "reference"


def test_models_with_most_cells_come_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun: list[str] = []
    monkeypatch.setattr(cells.processes, "run", lambda work, units, tick, *, workers: begun.extend(u[0] for u in units))
    units = [("a", 0, ("1",)), ("b", 0, ("1", "2", "3")), ("c", 0, ()), ("d", 0, ("1", "2")), ("e", 0, ("1", "2"))]
    cells.run(tmp_path, units, make_lab=lambda *_: pytest.fail("no lab"), workers=2, tick=lambda *_: None)
    assert begun == ["b", "d", "e", "a", "c"]
