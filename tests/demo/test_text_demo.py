"""demo/text.py and report/tokens.py: a demo cut down to seconds, and what people see of it."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from rich.console import Console
from rich.text import Text
from torch import nn
from typer.testing import CliRunner

from grains_ref.cli import app
from grains_ref.data import PreferencePair, Task, content_digest, read_pairs, read_tasks
from grains_ref.demo import bench as planted
from grains_ref.demo import text as demo
from grains_ref.demo.bench import PAPER_ROW, SummaryRow
from grains_ref.demo.text import TextResult
from grains_ref.evaluation.choice import Choice
from grains_ref.evaluation.measures import exact_matches
from grains_ref.evaluation.metrics import Rate
from grains_ref.grains import Selection, Steering, attribute, eligible_tokens, fit, select
from grains_ref.methods.core import Setting
from grains_ref.models import HuggingFaceModel, TokenRow
from grains_ref.report.tokens import centring_figure, coloured_tokens, demo_table, strongest_tokens
from grains_ref.tiny_models.worlds import World, build_world
from grains_ref.vectors import SteeringVectors

pytestmark = pytest.mark.cpu

ROWS = [
    "unsteered",
    PAPER_ROW,
    "GrAInS, uncentred PCA",
    "GrAInS, mean",
    "GrAInS, chosen on dev",
    "random tokens",
    "planted tokens",
    "planted tokens, mean",
]


@dataclass(frozen=True)
class SmallWorld:
    """The first prompts of a world's splits."""

    world: World

    def split(self, name: Any) -> list[Any]:
        return self.world.split(name)[: {"steer": 6, "dev": 8, "test": 10}[name]]

    def capability_split(self, name: Any) -> list[Any]:
        return self.world.capability_split(name)[: {"dev": 12, "test": 10}[name]]


@dataclass
class Small:
    """One cut-down demo on the graded world, where mean and PCA differ."""

    result: TextResult
    ticks: list[str]
    steps: int
    tested: list[Setting]  # in the order of the outcomes
    tried: list[list[Setting]]  # what each row chose among, in the order of the rows; one list per random draw

    def candidates(self, row: str) -> list[list[torch.Tensor]]:
        """The vectors that a row chose among, gentlest first, for each of its draws."""
        rows = [name for name in ROWS[1:] for _ in range(2 if name == "random tokens" else 1)]
        return [
            [s.steering.args[1] for s in tried] for name, tried in zip(rows, self.tried, strict=True) if name == row
        ]  # type: ignore[attr-defined]

    def vectors_of(self, row: str) -> list[torch.Tensor]:
        """The vectors that the outcomes of a row were steered with."""
        names = [name for name, outcomes in self.result.outcomes.items() for _ in outcomes]
        return [setting.steering.args[1] for name, setting in zip(names, self.tested, strict=True) if name == row]  # type: ignore[attr-defined]


@pytest.fixture(scope="module", autouse=True)
def cut_down() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "build_world", lambda name: SmallWorld(build_world(name)))
        patch.setattr(demo, "LAMS", (0.0, 1.6, 6.3))
        patch.setattr(demo, "KS", (3, 5))
        patch.setattr(demo, "RANDOM_DRAWS", 2)
        yield


@pytest.fixture(scope="module")
def small(cut_down: None) -> Small:
    ticks: list[str] = []
    tested: list[Setting] = []
    tried: list[list[Setting]] = []
    choose, test = planted.Bench.choose, planted.Bench.test

    def note(bench: planted.Bench, settings: Sequence[Setting]) -> Choice[Setting]:
        tried.append([*settings])
        return choose(bench, settings)

    def record(bench: planted.Bench, setting: Setting) -> planted.Outcome:
        tested.append(setting)
        return test(bench, setting)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planted.Bench, "choose", note)
        patch.setattr(planted.Bench, "test", record)
        result = demo.run_seed("graded", 0, ticks.append)
    return Small(result, ticks, demo.steps_per_seed(), tested, tried)


@pytest.fixture
def by_name(small: Small) -> dict[str, SummaryRow]:
    return {row.name: row for row in planted.summarise([small.result], demo.facts("graded"))}


# --- one training seed


def test_the_progress_bar_ends_where_the_work_ends(small: Small) -> None:
    assert len(small.ticks) == small.steps
    assert all(what.startswith("seed 0: ") for what in small.ticks)
    assert max(map(len, small.ticks)) <= 46  # the width the bar's text is padded to


def test_every_row_is_there_with_its_number_of_draws(small: Small) -> None:
    assert {name: len(outcomes) for name, outcomes in small.result.outcomes.items()} == dict.fromkeys(ROWS, 1) | {
        "random tokens": 2
    }
    for outcomes in small.result.outcomes.values():
        for outcome in outcomes:
            assert (len(outcome.right), len(outcome.rejected), len(outcome.capable)) == (10, 10, 10)
            assert outcome.strength in (0.0, 1.6, 6.3)


def test_the_papers_row_is_the_reference_fit_steered_and_measured(small: Small, graded_model: HuggingFaceModel) -> None:
    world = SmallWorld(build_world("graded"))
    pairs = demo.as_pairs(world.split("steer"))
    examples = [graded_model.example(p.prompt, p.chosen, p.rejected) for p in pairs]
    expected = fit(graded_model, examples, demo.PAPER)
    (outcome,) = small.result.outcomes[PAPER_ROW]
    (v,) = small.vectors_of(PAPER_ROW)
    assert torch.equal(v, expected.v)
    assert torch.equal(small.result.vectors.v_neg, expected.neg.v.float())
    assert small.result.vectors.header.data_digest == content_digest(pairs)

    tests, tasks = world.split("test"), world.capability_split("test")
    with Steering(graded_model.blocks, expected.v, lam=outcome.strength):
        chosen, rejected = (
            graded_model.score([(p.prompt, getattr(p, side)) for p in tests]) for side in ("chosen", "rejected")
        )
        solved = graded_model.score([(t.prompt, t.answer) for t in tasks])
    assert outcome.right == tuple(c.log_prob > r.log_prob for c, r in zip(chosen, rejected, strict=True))
    assert outcome.rejected == tuple(r.is_greedy for r in rejected)
    assert outcome.capable == tuple(s.is_greedy for s in solved)


def test_the_best_on_dev_over_everything_is_no_worse_there_than_any_single_row(small: Small) -> None:
    tried: dict[str, dict[tuple[str, float], float]] = {}
    for label, lam, accuracy in small.result.dev_tried:
        row, _, setting = label.partition(": ")
        tried.setdefault(row, {})[setting, lam] = accuracy
    assert len(tried["GrAInS, chosen on dev"]) == 2 * 3 * 3
    for row, setting in (("GrAInS, mean", "mean, k 3"), (PAPER_ROW, "pca, k 3")):
        for lam in (0.0, 1.6, 6.3):
            assert tried[row][setting, lam] == tried["GrAInS, chosen on dev"][setting, lam]


def test_random_draws_differ_and_are_seeded_by_their_number(small: Small, graded_model: HuggingFaceModel) -> None:
    steer = SmallWorld(build_world("graded")).split("steer")
    examples = [graded_model.example(p.prompt, p.chosen, p.rejected) for p in steer]
    for draw, vectors in enumerate(small.candidates("random tokens")):
        expected = fit(graded_model, examples, replace(demo.PAPER, attribution="random", seed=draw)).v
        assert len(vectors) == 3
        assert all(torch.equal(v, expected) for v in vectors)
    labels = {label for label, _, _ in small.result.dev_tried if label.startswith("random tokens")}
    assert labels == {"random tokens: pca, k 3, draw 0", "random tokens: pca, k 3, draw 1"}


@pytest.mark.parametrize("aggregation", ["uncentred", "mean"])
def test_the_other_aggregations_are_fits_of_their_own(
    small: Small, graded_model: HuggingFaceModel, aggregation: Any
) -> None:
    steer = SmallWorld(build_world("graded")).split("steer")
    examples = [graded_model.example(p.prompt, p.chosen, p.rejected) for p in steer]
    expected = fit(graded_model, examples, replace(demo.PAPER, aggregation=aggregation)).v
    row = "GrAInS, mean" if aggregation == "mean" else "GrAInS, uncentred PCA"
    (vectors,) = small.candidates(row)
    assert all(torch.equal(v, expected) for v in vectors)
    assert any(torch.equal(v, expected) for v in small.candidates("GrAInS, chosen on dev")[0])


def test_recall_counts_planted_words_among_the_top_three(small: Small, graded_model: HuggingFaceModel) -> None:
    hits, first = [], []
    for p in SmallWorld(build_world("graded")).split("steer"):
        x = graded_model.example(p.prompt, p.chosen, p.rejected)
        a = attribute(graded_model, x, demo.PAPER).a.tolist()
        worst = [j for j in sorted(range(len(a)), key=a.__getitem__)[:3] if a[j] < 0]
        hits.append(sum(j in p.rumour for j in worst) / min(3, len(p.rumour)))
        first.append(worst[0] in p.rumour)
    found = small.result.found["integrated gradients"]
    assert found == {"recall_at_3": pytest.approx(sum(hits) / 6), "precision_at_1": sum(first) / 6}
    assert list(small.result.found) == ["integrated gradients", "SmoothGrad", "gradient", "random"]


def test_recall_at_three_of_more_than_three_planted_words_can_be_whole(graded_model: HuggingFaceModel) -> None:
    p = SmallWorld(build_world("graded")).split("steer")[0]
    x = graded_model.example(p.prompt, p.chosen, p.rejected)
    a = torch.zeros(len(x.encoded.ids))
    a[[1, 2, 3, 4]] = torch.tensor([-4.0, -3.0, -2.0, -1.0])
    scores: Any = [SimpleNamespace(a=a)]
    assert demo._recall([x], [replace(p, rumour=(1, 2, 3, 4))], scores) == {"recall_at_3": 1, "precision_at_1": 1}
    assert demo._recall([x], [replace(p, rumour=(2, 5))], scores) == {"recall_at_3": 0.5, "precision_at_1": 0}


def test_a_model_that_is_not_shipped_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match="no model of world 'simple' with training seed 7; 0, 1 and 2 are"):
        planted.model_folder("simple", 7)


# --- the choice under the constraint


@dataclass
class LeaningModel:
    """A hidden state (3, 0) that steering turns by some angle.

    Pair i, of 10, is right beyond 8 i degrees; task i, of 400, is failed beyond 30 + i / 2 degrees.
    """

    blocks: Sequence[nn.Module] = field(default_factory=lambda: [nn.Identity()])

    def tokenise(self, items: Any) -> list[TokenRow]:
        return [TokenRow((int(prompt.split()[0]),), (int(response),)) for prompt, response, *_ in items]

    def score_rows(self, rows: Sequence[TokenRow]) -> list[SimpleNamespace]:
        x, y = self.blocks[0](torch.tensor([3.0, 0.0])).tolist()
        angle = np.degrees(np.arctan2(y, x))
        return [
            SimpleNamespace(
                log_prob=(angle - 8 * row.prompt[0] if row.response[0] else 0.0),
                is_greedy=bool(angle <= 30 + row.prompt[0] / 2),
            )
            for row in rows
        ]


def leaning_bench(model: LeaningModel, tick: planted.Tick) -> planted.Bench:
    pairs = [PreferencePair(f"{i}", f"{i} ?", "1", "0", where="") for i in range(10)]
    tasks = [Task(f"{i}", f"{i} ?", "1") for i in range(400)]
    return planted.Bench(model, dev=(pairs, tasks), test=(pairs, tasks), tick=tick)  # type: ignore[arg-type]


def leaning(bench: planted.Bench, **candidates: torch.Tensor) -> list[Setting]:
    lams = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
    return planted.gentlest_first(planted.strengths(bench.model, label, v, lams) for label, v in candidates.items())


@pytest.fixture
def bench() -> planted.Bench:
    return leaning_bench(LeaningModel(), lambda what: None)


UP, DOWN = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, -1.0]])


def test_a_setting_below_the_capability_limit_is_never_chosen(bench: planted.Bench) -> None:
    # tan(angle) = lam / 3.  400 tasks, half a point of loss is 2 tasks: the angle may reach 31 degrees.
    assert bench.allowed == 2
    choice = bench.choose(leaning(bench, up=UP))
    accuracy = {tried.setting.strength: tried.accuracy for tried in choice.tried}
    assert accuracy == {0.0: 0.0, 0.5: 0.2, 1.0: 0.3, 1.5: 0.4, 2.0: 0.5, 3.0: 0.6, 5.0: 0.8}
    assert choice.best.strength == 1.5  # 26.6 degrees; the next has 33.7 and fails in eight tasks
    outcome = bench.test(choice.best)
    assert sum(outcome.right) == 4
    assert all(outcome.capable)
    stronger = bench.test(planted.strengths(bench.model, "up", UP, [2.0])[0])
    assert sum(stronger.right) > sum(outcome.right)
    assert stronger.capable.count(False) == 8


def test_what_the_unsteered_model_gets_wrong_is_not_held_against_a_setting() -> None:
    model = LeaningModel()
    model.blocks = [nn.Linear(2, 2, bias=False)]
    angle = np.radians(31.2)  # the model itself leans so far that three tasks fail
    rotation = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    model.blocks[0].weight.data = rotation.float()  # type: ignore[union-attr]
    bench = leaning_bench(model, lambda what: None)  # type: ignore[arg-type]
    assert bench.allowed == 3 + 2


def test_the_unsteered_model_is_kept_when_nothing_is_better_or_all_ties(bench: planted.Bench) -> None:
    assert bench.choose(leaning(bench, down=DOWN)).best.strength == 0.0


def test_among_equals_the_gentlest_is_chosen_and_then_the_first(bench: planted.Bench) -> None:
    again = bench.choose(leaning(bench, down=DOWN, up=UP, up_again=UP))
    assert (again.best.label, again.best.strength) == ("up", 1.5)
    assert [tried.setting.strength for tried in again.tried[:6]] == [0.0] * 3 + [0.5] * 3


def test_a_setting_that_was_measured_before_is_not_measured_again() -> None:
    ticks: list[str] = []
    bench = leaning_bench(LeaningModel(), ticks.append)  # type: ignore[arg-type]
    up = leaning(bench, up=UP)
    first = bench.choose(up).tried
    assert len(ticks) == 7
    assert bench.choose(up).tried == first
    down = bench.choose(leaning(bench, down=DOWN)).tried  # strength 0 is the same for all
    assert len(ticks) == 13
    namesake = bench.choose(leaning(bench, up=DOWN)).tried  # what it is called does not matter
    assert [t.accuracy for t in namesake] == [t.accuracy for t in down] != [t.accuracy for t in first]


def test_no_row_of_the_demo_breaks_the_limit_on_dev(small: Small, graded_model: HuggingFaceModel) -> None:
    world = SmallWorld(build_world("graded"))
    dev = demo.as_pairs(world.split("dev")), demo.as_tasks(world.capability_split("dev"))
    bench = planted.Bench(graded_model, dev=dev, test=dev, tick=lambda what: None)
    for setting in small.tested:
        with Steering(graded_model.blocks, setting.steering.args[1], lam=setting.strength):  # type: ignore[attr-defined]
            wrong = exact_matches(graded_model, bench.dev_tasks).count(False)
        assert wrong <= bench.allowed


# --- the summary and the record


def test_a_summary_is_a_mean_over_draws_with_intervals_over_facts(small: Small, by_name: dict[str, SummaryRow]) -> None:
    assert list(by_name) == ROWS
    (base,) = small.result.outcomes["unsteered"]
    draws = small.result.outcomes["random tokens"]
    row = by_name["random tokens"]
    assert row.accuracy.value == pytest.approx(np.mean([np.mean(d.right) for d in draws]))
    assert row.gain.value == pytest.approx(row.accuracy.value - np.mean(base.right))
    assert row.rejected_rate == pytest.approx(np.mean([np.mean(d.rejected) for d in draws]))
    assert row.capability == pytest.approx(np.mean([np.mean(d.capable) for d in draws]))
    assert row.capability_loss == pytest.approx(np.mean(base.capable) - row.capability)
    facts = {p.id.split("-")[1] for p in SmallWorld(build_world("graded")).split("test")}
    assert {r.accuracy.n for r in by_name.values()} == {len(facts)}
    assert by_name["unsteered"].gain == Rate(0.0, 0.0, 0.0, len(facts))
    assert by_name["unsteered"].capability_loss == 0.0


def test_seeds_are_averaged_each_against_its_own_unsteered_model(small: Small) -> None:
    def with_capable(outcomes: Any, share: int) -> Any:
        return tuple(dataclasses.replace(o, capable=(True,) * share + (False,) * (10 - share)) for o in outcomes)

    results = [
        dataclasses.replace(
            small.result,
            seed=seed,
            outcomes={
                name: with_capable(outcomes, base if name == "unsteered" else steered)
                for name, outcomes in small.result.outcomes.items()
            },
        )
        for seed, base, steered in ((0, 10, 8), (1, 5, 4))
    ]
    row = planted.summarise(results, demo.facts("graded"))[1]
    assert row.capability == pytest.approx((8 + 4) / 20)
    assert row.capability_loss == pytest.approx((2 + 1) / 20)
    assert planted.record("graded", results, demo.facts("graded"))["training_seeds"] == [0, 1]


def test_the_report_has_the_papers_row_at_top_level(small: Small, by_name: dict[str, SummaryRow]) -> None:
    record = planted.record("graded", [small.result], demo.facts("graded"))
    assert json.loads(json.dumps(record, allow_nan=False)) == json.loads(json.dumps(record))
    rows = {row["name"]: row for row in record["rows"]}
    assert list(rows) == ROWS
    assert record["base_accuracy"] == rows["unsteered"]["accuracy"]["value"] == by_name["unsteered"].accuracy.value
    assert record["steered_accuracy"] == rows[PAPER_ROW]["accuracy"]["value"] == by_name[PAPER_ROW].accuracy.value
    assert record["capability_loss"] == rows[PAPER_ROW]["capability_loss"] == by_name[PAPER_ROW].capability_loss
    assert (record["world"], record["training_seeds"]) == ("graded", [0])
    assert [one["method"] for one in record["attribution"]] == list(demo.METHODS)
    (seed,) = record["per_seed"]
    assert len(seed["rows"]) == len(ROWS) + 1  # two random draws
    (paper,) = [row for row in seed["rows"] if row["name"] == PAPER_ROW]
    (outcome,) = small.result.outcomes[PAPER_ROW]
    assert (paper["lam"], paper["accuracy"]) == (outcome.strength, sum(outcome.right) / 10)
    assert len(seed["dev_tried"]) == len(small.result.dev_tried)
    assert {"python", "torch", "transformers", "grains_ref"} <= record["versions"].keys()


def settings(*chosen: tuple[str, float]) -> Any:
    return [SimpleNamespace(label=label, strength=lam) for label, lam in chosen]


def test_the_chosen_settings_are_named_in_the_order_of_seeds() -> None:
    assert planted._chosen(settings(("pca, k 3", 4.0), ("pca, k 3", 0.63))) == "pca, k 3: lam 4, 0.63"
    assert planted._chosen(settings(("pca, k 3, draw 0", 1.0), ("pca, k 3, draw 1", 0.0))) == "pca, k 3: lam 1, 0"
    mixed = planted._chosen(settings(("pca, k 3", 4.0), ("mean, k 5", 10.0), ("pca, k 1", 0.0)))
    assert mixed == "pca, k 3, lam 4; mean, k 5, lam 10; lam 0"


# --- what is shown


def pieces(text: Text) -> list[tuple[str, str]]:
    """(text, style) of every piece that has a style."""
    return [(text.plain[span.start : span.end], str(span.style)) for span in text.spans]


def background(style: str) -> tuple[int, ...]:
    return tuple(int(part) for part in style.split(" on rgb(")[1].rstrip(")").split(","))


def test_selected_tokens_are_underlined_and_planted_words_are_marked() -> None:
    tokens, a = ["<s>", " famously", "\n", " verified", "eel"], torch.tensor([0.1, -2.0, 0.0, 1.0, -1.0])
    text = coloured_tokens(tokens, a, Selection(pos=(3,), neg=(1, 4)), {1: "R", 3: "T"})
    assert text.plain == r"<s> famously[R] \n verified[T] eel "
    found = pieces(text)
    assert [piece for piece, style in found if style.startswith("underline ")] == ["famously", "verified", "eel"]
    assert [piece for piece, style in found if style == "bold"] == ["[R]", "[T]"]


def test_colours_say_sign_and_strength() -> None:
    text = coloured_tokens(list("abcde"), torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0]), Selection((), ()), {})
    green, pale_green, white, pale_red, red = (background(style) for _, style in pieces(text))
    assert white == (255, 255, 255)
    assert (green, red) == ((46, 125, 80), (190, 60, 50))  # the strongest of all has the full colour
    assert pale_green[1] > max(pale_green[0], pale_green[2])
    assert pale_red[0] > max(pale_red[1:])
    assert sum(green) < sum(pale_green) < sum(white)
    assert sum(red) < sum(pale_red) < sum(white)


def test_scores_that_are_all_zero_are_shown_without_colour() -> None:
    text = coloured_tokens(["a", "b"], torch.zeros(2), Selection((), ()), {})
    assert {background(style) for _, style in pieces(text)} == {(255, 255, 255)}


def test_what_the_colours_say_is_also_said_in_words() -> None:
    tokens, a = ["<s>", " famously", "\n", " verified"], torch.tensor([0.1, -2.0, -0.125, 1.0])
    assert strongest_tokens(tokens, a, Selection(pos=(), neg=(1, 2))).splitlines() == [
        r"toward rejected: famously -2.00, '\n' -0.12",
        "toward chosen:   none",
    ]


def shown(renderable: Any, width: int = 80) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text().splitlines()


def test_the_table_fits_in_80_columns_with_the_longest_row() -> None:
    all_of_it, worst = Rate(1.0, 1.0, 1.0, 9), Rate(-1.0, -1.0, -1.0, 9)
    rows = [SummaryRow(name, "", all_of_it, worst, 1.0, 1.0, 0.0) for name in ROWS]
    table = shown(demo_table(rows, title="What does steering change?", rejected="says myth"), width=200)
    assert max(len(line.rstrip()) for line in table) <= 80
    narrow = shown(demo_table(rows, title="What does steering change?", rejected="says myth"))
    assert not any("…" in line for line in narrow)
    for name in ROWS[1:]:
        (line,) = [line for line in narrow if line.strip().startswith(name + "  ")]
        assert line.split(name)[1].split() == "100.0 % -100.0 [-100.0, -100.0] 100.0 % 100.0 %".split()


def test_the_unsteered_row_has_no_gain() -> None:
    row = SummaryRow("unsteered", "", Rate(0.5, 0.4, 0.6, 9), Rate(0.0, 0.0, 0.0, 9), 0.25, 1.0, 0.0)
    (line,) = [line for line in shown(demo_table([row], title="t", rejected="says myth")) if "unsteered" in line]
    assert line.split() == ["unsteered", "50.0", "%", "25.0", "%", "100.0", "%"]


def test_the_figure_is_a_picture_of_the_fits(small: Small, tmp_path: Path) -> None:
    def picture(name: str, fits: dict[str, Any]) -> np.ndarray:
        centring_figure(tmp_path / name, world="graded", fits=fits, shifts=small.result.shifts)
        return matplotlib.image.imread(tmp_path / name)[..., :3]

    fits = small.result.fits
    image = picture("a.png", fits)
    assert (image < 0.9).any(-1).mean() > 0.02
    for half in np.array_split(image, 2, axis=1):
        assert len(np.unique(half.reshape(-1, 3).round(2), axis=0)) > 20
    assert not np.array_equal(image, picture("b.png", fits | {"pca": fits["mean"], "mean": fits["pca"]}))


# --- files


def test_the_data_that_is_written_is_read_back_whole(tmp_path: Path) -> None:
    world = build_world("graded")
    demo.write_data(world, tmp_path)
    for split in ("steer", "dev", "test"):
        read = read_pairs(tmp_path / f"{split}.jsonl")
        assert read.digest == content_digest(demo.as_pairs(world.split(split)))
    for split, name in (("dev", "dev_tasks"), ("test", "tasks")):
        tasks = read_tasks(tmp_path / f"{name}.jsonl")
        assert list(tasks) == demo.as_tasks(world.capability_split(split))


def test_the_command_shows_and_writes_what_was_measured(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def run(work: Any, seeds: Sequence[int], tick: Any) -> list[TextResult]:
        asked.append((*work.args, seeds))
        for what in small.ticks:
            tick(what)
        return [small.result]

    monkeypatch.setattr(planted, "run", run)
    command = ["demo", "--world", "graded", "--seeds", "0, 0", "--out", str(tmp_path / "a" / "b")]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert asked == [("graded", [0])]
    names = {"report.json", "vectors.safetensors", "centring.png"}
    names |= {f"{name}.jsonl" for name in ("steer", "dev", "test", "dev_tasks", "tasks")}
    folder = tmp_path / "a" / "b"
    assert {path.name for path in folder.iterdir()} == names
    record = json.loads((folder / "report.json").read_text())
    assert record == json.loads(json.dumps(planted.record("graded", [small.result], demo.facts("graded"))))
    assert torch.equal(SteeringVectors.load(folder / "vectors.safetensors").v, small.result.vectors.v)

    assert max(len(line.rstrip()) for line in result.stdout.splitlines()) <= 80
    text = " ".join(result.stdout.split())
    for name in ROWS:
        assert name in text
    assert "The planted words are marked: [R] rumour, [T] trust." in text
    for prompt, encoded, a in small.result.shown:
        strongest = strongest_tokens(encoded.tokens, a, select(a, k=3, eligible=eligible_tokens(encoded, ())))
        assert " ".join(strongest.split()) in text
        for j in prompt.rumour:
            assert f"{encoded.tokens[j].strip()}[R]" in text

    as_json = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(as_json.stdout) == record
