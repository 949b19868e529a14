"""The text demo cut down to seconds: what it measures, what it says of it, and what people see."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from grains_ref.cli import app
from grains_ref.data import content_digest
from grains_ref.demo import rows, show, text, workers
from grains_ref.demo.bench import Bench, Outcome
from grains_ref.demo.centring import centring_figure
from grains_ref.demo.experiment import SeedResult, run_lab
from grains_ref.demo.lab import Lab
from grains_ref.demo.planted import planted_lab
from grains_ref.demo.show import demo_table
from grains_ref.demo.summary import SummaryRow, chosen, record, summarise
from grains_ref.evaluation.choice import Choice
from grains_ref.evaluation.measures import exact_matches
from grains_ref.evaluation.metrics import Rate
from grains_ref.grains import Selection, Steering, attribute, eligible_tokens, fit, select
from grains_ref.methods.core import Setting
from grains_ref.models import HuggingFaceModel
from grains_ref.report.tokens import strongest_tokens
from grains_ref.tiny_models.worlds import build_world
from grains_ref.vectors import SteeringVectors

pytestmark = pytest.mark.cpu


@dataclass
class Small:
    """One cut-down demo on the graded world, where mean and PCA differ."""

    lab: Lab
    result: SeedResult
    ticks: list[tuple[str, int]]
    tested: list[Setting]  # in the order of the outcomes
    tried: dict[str, list[list[Setting]]]  # row -> what each of its draws chose among

    def vectors(self, row: str) -> list[list[torch.Tensor]]:
        """The vectors that a row chose among, gentlest first, for each of its draws."""
        return [[setting.steering.args[2] for setting in draw] for draw in self.tried[row]]  # type: ignore[attr-defined]

    def examples(self) -> list[Any]:
        return [self.lab.model.example(p.prompt, p.chosen, p.rejected) for p in self.lab.steer]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    whole = planted_lab("graded", 0, tmp_path_factory.mktemp("data"))
    lab = replace(
        whole,
        steer=whole.steer[:6],
        causes=whole.causes[:6],
        dev=(whole.dev[0][:5], whole.dev[1][:8]),
        test=(whole.test[0][:10], whole.test[1][:10]),
        facts=whole.facts[:10],
        lams=(1.6, 6.3),
    )
    ticks: list[tuple[str, int]] = []
    tested: list[Setting] = []
    tried: list[list[Setting]] = []
    choose, test = Bench.choose, Bench.test

    def note(bench: Bench, settings: Sequence[Setting]) -> Choice[Setting]:
        tried.append([*settings])
        return choose(bench, settings)

    def test_and_note(bench: Bench, choice: Choice[Setting]) -> Outcome:
        tested.append(choice.best)
        return test(bench, choice)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "TEXT_KS", (3, 5))
        patch.setattr(rows, "RANDOM_DRAWS", 2)
        patch.setattr(Bench, "choose", note)
        patch.setattr(Bench, "test", test_and_note)
        result = run_lab(text.DEMO, lab, 0, lambda what, finished: ticks.append((what, finished)))
    draws = iter(tried)
    of_rows = {row: [next(draws) for _ in outcomes] for row, outcomes in result.outcomes.items()}
    return Small(lab, result, ticks, tested, of_rows)


@pytest.fixture
def by_row(small: Small) -> dict[str, SummaryRow]:
    return {row.row: row for row in summarise([small.result], small.lab.facts)}


# --- one training seed


def test_the_progress_bar_ends_where_the_work_ends(small: Small) -> None:
    assert sum(finished for _, finished in small.ticks) == len(text.DEMO.rows)
    assert all(what.startswith("seed 0: ") for what, _ in small.ticks)
    assert max(len(what) for what, _ in small.ticks) <= 50  # the width the bar's text is padded to


def test_every_row_is_there_with_its_number_of_draws(small: Small) -> None:
    expected = dict.fromkeys(text.ROWS, 1) | {"random tokens": 2}
    assert {row: len(outcomes) for row, outcomes in small.result.outcomes.items()} == expected
    for outcomes in small.result.outcomes.values():
        for outcome in outcomes:
            assert (len(outcome.right), len(outcome.rejected), len(outcome.capable)) == (10, 10, 10)
            assert outcome.strength in (0.0, 1.6, 6.3)


def test_the_papers_row_is_the_reference_fit_steered_and_measured(small: Small) -> None:
    lab, model = small.lab, small.lab.model
    expected = fit(model, small.examples(), lab.paper)
    (outcome,) = small.result.outcomes["GrAInS"]
    (tried,) = small.vectors("GrAInS")
    assert len(tried) == 2
    for v in tried:
        assert v == pytest.approx(expected.v, abs=1e-5)
    assert small.result.vectors.v_neg == pytest.approx(expected.neg.v.float(), abs=1e-5)
    assert small.result.vectors.header.data_digest == content_digest(lab.steer)

    tests, tasks = lab.test
    with Steering(model.blocks, expected.v, lam=outcome.strength):
        chosen_scores = model.score([(p.prompt, p.chosen) for p in tests])
        rejected_scores = model.score([(p.prompt, p.rejected) for p in tests])
        solved = model.score([(t.prompt, t.answer) for t in tasks])
    assert outcome.right == tuple(c.log_prob > r.log_prob for c, r in zip(chosen_scores, rejected_scores, strict=True))
    assert outcome.rejected == tuple(r.is_greedy for r in rejected_scores)
    assert outcome.capable == tuple(s.is_greedy for s in solved)


def test_the_best_on_dev_over_everything_is_no_worse_there_than_any_single_row(small: Small) -> None:
    tried = {
        row: {(label, lam): accuracy for label, lam, accuracy in outcomes[0].tried}
        for row, outcomes in small.result.outcomes.items()
    }
    assert len(tried["chosen on dev"]) == 1 + 2 * 2 * 3
    for row, setting in (("mean", "mean, k 3"), ("GrAInS", "pca, k 3")):
        for lam in (1.6, 6.3):
            assert tried[row]["GrAInS", lam] == tried["chosen on dev"][setting, lam]


def test_random_draws_differ_and_are_seeded_by_their_number(small: Small) -> None:
    for draw, vectors in enumerate(small.vectors("random tokens")):
        expected = fit(small.lab.model, small.examples(), replace(small.lab.paper, attribution="random", seed=draw)).v
        assert len(vectors) == 2
        for v in vectors:
            assert v == pytest.approx(expected, abs=1e-5)
    labels = {label for outcome in small.result.outcomes["random tokens"] for label, lam, _ in outcome.tried if lam}
    assert labels == {"draw 0", "draw 1"}


@pytest.mark.thorough
@pytest.mark.parametrize(("row", "aggregation"), [("uncentred PCA", "uncentred"), ("mean", "mean")])
def test_the_other_aggregations_are_fits_of_their_own(small: Small, row: str, aggregation: Any) -> None:
    expected = fit(small.lab.model, small.examples(), replace(small.lab.paper, aggregation=aggregation)).v
    for v in small.vectors(row)[0]:
        assert v == pytest.approx(expected, abs=1e-5)
    assert any(torch.allclose(v, expected, rtol=0, atol=1e-5) for v in small.vectors("chosen on dev")[0])


@pytest.mark.thorough
def test_recall_counts_planted_words_among_the_top_three(small: Small, graded_model: HuggingFaceModel) -> None:
    hits, first = [], []
    for p in build_world("graded").split("steer")[:6]:
        x = graded_model.example(p.prompt, p.chosen, p.rejected)
        a = attribute(graded_model, x, small.lab.paper).a.tolist()
        worst = [j for j in sorted(range(len(a)), key=a.__getitem__)[:3] if a[j] < 0]
        hits.append(sum(j in p.rumour for j in worst) / min(3, len(p.rumour)))
        first.append(worst[0] in p.rumour)
    found = small.result.detection["integrated gradients"]
    assert found == {"recall_at_3": pytest.approx(sum(hits) / 6), "precision_at_1": sum(first) / 6}
    assert list(small.result.detection) == ["integrated gradients", "SmoothGrad", "gradient", "random"]


def test_recall_at_three_of_more_than_three_planted_words_can_be_whole(small: Small) -> None:
    encoded = small.lab.example(0).encoded
    a = torch.zeros(len(encoded.ids))
    a[[1, 2, 3, 4]] = torch.tensor([-4.0, -3.0, -2.0, -1.0])
    assert text.recall(encoded, a, Selection((), (1, 2, 3, 4))) == {"recall_at_3": 1, "precision_at_1": 1}
    assert text.recall(encoded, a, Selection((1,), (2, 5))) == {"recall_at_3": 0.5, "precision_at_1": 0}
    assert text.recall(encoded, -a.abs() * 0, Selection((), (1,))) == {"recall_at_3": 0, "precision_at_1": 0}


def test_no_row_of_the_demo_breaks_the_limit_on_dev(small: Small) -> None:
    bench = small.lab.bench
    for setting in small.tested:
        with setting.steering():
            assert exact_matches(small.lab.model, bench.dev_tasks).count(False) <= bench.allowed


# --- the summary and the record


def test_a_summary_is_a_mean_over_draws_with_intervals_over_facts(small: Small) -> None:
    (base,) = small.result.outcomes["unsteered"]
    first, second = small.result.outcomes["random tokens"]
    other_way = [tuple(not bit for bit in getattr(second, name)) for name in ("right", "rejected", "capable")]
    draws = (first, replace(second, right=other_way[0], rejected=other_way[1], capable=other_way[2]))
    result = replace(small.result, outcomes=small.result.outcomes | {"random tokens": draws})
    by_row = {row.row: row for row in summarise([result], small.lab.facts)}
    assert list(by_row) == list(text.ROWS)
    row = by_row["random tokens"]
    assert row.accuracy.value == pytest.approx(np.mean([np.mean(d.right) for d in draws]))
    assert row.gain.value == pytest.approx(row.accuracy.value - np.mean(base.right))
    assert row.rejected_rate == pytest.approx(np.mean([np.mean(d.rejected) for d in draws]))
    assert row.capability == pytest.approx(np.mean([np.mean(d.capable) for d in draws]))
    assert row.capability_loss == pytest.approx(np.mean(base.capable) - row.capability)
    assert {r.accuracy.n for r in by_row.values()} == {len(set(small.lab.facts))}
    assert by_row["unsteered"].gain == Rate(0.0, 0.0, 0.0, len(set(small.lab.facts)))
    assert by_row["unsteered"].capability_loss == 0.0


def test_seeds_are_averaged_each_against_its_own_unsteered_model(small: Small) -> None:
    def with_bits(outcomes: Any, share: int) -> Any:
        bits = (True,) * share + (False,) * (10 - share)
        return tuple(dataclasses.replace(o, capable=bits, right=bits) for o in outcomes)

    results = [
        dataclasses.replace(
            small.result,
            seed=seed,
            outcomes={
                row: with_bits(outcomes, base if row == "unsteered" else steered)
                for row, outcomes in small.result.outcomes.items()
            },
        )
        for seed, base, steered in ((0, 10, 8), (1, 5, 4))
    ]
    row = summarise(results, [str(i) for i in range(10)])[1]
    assert row.capability == pytest.approx((8 + 4) / 20)
    assert row.capability_loss == pytest.approx((2 + 1) / 20)
    assert row.gain.value == pytest.approx(-(2 + 1) / 20)
    assert record("graded", results, small.lab.facts)["training_seeds"] == [0, 1]


def test_the_report_has_the_papers_row_at_top_level(small: Small, by_row: dict[str, SummaryRow]) -> None:
    content = record("graded", [small.result], small.lab.facts)
    assert json.loads(json.dumps(content, allow_nan=False)) == json.loads(json.dumps(content))
    rows_ = {row["row"]: row for row in content["rows"]}
    assert list(rows_) == list(text.ROWS)
    assert content["base_accuracy"] == rows_["unsteered"]["accuracy"]["value"] == by_row["unsteered"].accuracy.value
    assert content["steered_accuracy"] == rows_["GrAInS"]["accuracy"]["value"] == by_row["GrAInS"].accuracy.value
    assert content["capability_loss"] == rows_["GrAInS"]["capability_loss"] == by_row["GrAInS"].capability_loss
    assert (content["world"], content["training_seeds"]) == ("graded", [0])
    assert [one["method"] for one in content["attribution"]] == [
        "integrated gradients",
        "SmoothGrad",
        "gradient",
        "random",
    ]
    (seed,) = content["per_seed"]
    assert len(seed["rows"]) == len(text.ROWS) + 1  # two random draws
    (paper,) = [row for row in seed["rows"] if row["row"] == "GrAInS"]
    (outcome,) = small.result.outcomes["GrAInS"]
    assert (paper["lam"], paper["accuracy"]) == (outcome.strength, sum(outcome.right) / 10)
    assert [(one["setting"], one["lam"], one["dev_accuracy"]) for one in paper["tried"]] == list(outcome.tried)
    assert {"python", "torch", "transformers", "grains_ref"} <= content["versions"].keys()


def outcomes(*settings: tuple[str, float], tried: Sequence[str]) -> Any:
    grid = [("unsteered", 0.0, 0.5), *((label, lam, 0.5) for lam in (1.0, 4.0) for label in tried)]
    return [SimpleNamespace(label=label, strength=lam, tried=grid) for label, lam in settings]


def test_chosen_settings_are_named_in_the_order_of_seeds_and_only_where_there_were_several() -> None:
    assert chosen(outcomes(("GrAInS", 4.0), ("GrAInS", 0.63), tried=["GrAInS"])) == "lam 4, 0.63"
    draws = outcomes(("draw 0", 1.0), tried=["draw 0"]) + outcomes(("draw 1", 0.0), tried=["draw 1"])
    assert chosen(draws) == "lam 1, 0"
    mixed = outcomes(("pca, k 3", 4.0), ("mean, k 5", 10.0), ("unsteered", 0.0), tried=["pca, k 3", "mean, k 5"])
    assert chosen(mixed) == "pca, k 3, lam 4; mean, k 5, lam 10; lam 0"


# --- what is shown


def shown(renderable: Any, width: int = 80) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text().splitlines()


def table(rows_: Sequence[SummaryRow]) -> Any:
    return demo_table(rows_, title="What does steering change?", names=text.ROWS, rejected="says myth")


def test_the_table_fits_in_80_columns_with_the_longest_row() -> None:
    all_of_it, worst = Rate(1.0, 1.0, 1.0, 9), Rate(-1.0, -1.0, -1.0, 9)
    longest = table([SummaryRow(row, "", all_of_it, worst, 1.0, 1.0, 0.0) for row in text.ROWS])
    assert max(len(line.rstrip()) for line in shown(longest, width=200)) <= 80
    narrow = shown(longest)
    assert not any("…" in line for line in narrow)
    for name in [*text.ROWS.values()][1:]:
        (line,) = [line for line in narrow if line.strip().startswith(name + "  ")]
        assert line.split(name)[1].split() == "100.0 % -100.0 [-100.0, -100.0] 100.0 % 100.0 %".split()


def test_the_unsteered_row_has_no_gain() -> None:
    row = SummaryRow("unsteered", "", Rate(0.5, 0.4, 0.6, 9), Rate(0.0, 0.0, 0.0, 9), 0.25, 1.0, 0.0)
    (line,) = [line for line in shown(table([row])) if "unsteered" in line]
    assert line.split() == ["unsteered", "50.0", "%", "25.0", "%", "100.0", "%"]


@pytest.mark.thorough
def test_the_figure_is_a_picture_of_the_fits(small: Small, tmp_path: Path) -> None:
    def picture(name: str, **changes: Any) -> np.ndarray:
        centring = replace(small.result.further, **changes)
        centring_figure(tmp_path / name, world="graded", k=3, centring=centring)
        return matplotlib.image.imread(tmp_path / name)[..., :3]

    fits = small.result.further.fits
    image = picture("a.png")
    assert (image < 0.9).any(-1).mean() > 0.02
    for half in np.array_split(image, 2, axis=1):
        assert len(np.unique(half.reshape(-1, 3).round(2), axis=0)) > 20
    exchanged = picture("b.png", fits=fits | {"pca": fits["mean"], "mean": fits["pca"]})
    assert not np.array_equal(image, exchanged)


# --- what is kept to look at


def test_margins_and_answers_are_of_the_setting_that_was_chosen(small: Small) -> None:
    (before,), (after,) = (small.result.outcomes[row] for row in ("unsteered", "GrAInS"))
    steered = small.result.steered
    if after.strength == 0:
        assert steered is None
        return
    assert steered is not None
    assert steered.strength == after.strength
    assert [margin > 0 for _, margin, _ in steered.margins] == [*before.right]
    assert [margin > 0 for _, _, margin in steered.margins] == [*after.right]
    for i, (pair, base, answer) in enumerate(steered.answers):
        assert pair == small.lab.test[0][i]
        assert base.startswith(pair.rejected) == before.rejected[i]
        assert answer.startswith(pair.rejected) == after.rejected[i]


# --- files


def test_the_command_shows_and_writes_what_was_measured(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def run(work: Any, seeds: Sequence[int], tick: Any) -> list[SeedResult]:
        asked.append((*work.args, seeds))
        for what, finished in small.ticks:
            tick(what, finished)
        return [small.result]

    monkeypatch.setattr(workers, "run", run)
    monkeypatch.setattr(show, "facts", lambda prompts: small.lab.facts)
    folder = tmp_path / "a" / "b"
    command = ["demo", "--world", "graded", "--seeds", " 0", "--out", str(folder)]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert asked == [(text.DEMO, "graded", folder, [0])]
    names = {"report.json", "examples.json", "report.html", "vectors.safetensors", "centring.png"}
    names |= {f"{name}.jsonl" for name in ("steer", "dev", "test", "dev_tasks", "tasks")}
    assert {path.name for path in folder.iterdir()} == names
    content = json.loads((folder / "report.json").read_text())
    assert content == json.loads(json.dumps(record("graded", [small.result], small.lab.facts)))
    assert torch.equal(SteeringVectors.load(folder / "vectors.safetensors").v, small.result.vectors.v)
    kept = json.loads((folder / "examples.json").read_text())
    assert [one["scores_nats"] for one in kept["attributions"]] == [x.a.tolist() for x in small.result.exhibits]
    assert [one["marks"] for one in kept["attributions"]] == [
        {str(j): "R" for j in x.causes.neg} | {str(j): "T" for j in x.causes.pos} for x in small.result.exhibits
    ]
    page = (folder / "report.html").read_text()
    for example in small.result.exhibits:
        assert str(example.pair.prompt) in page

    assert max(len(line.rstrip()) for line in result.stdout.splitlines()) <= 80
    words = " ".join(result.stdout.split())
    for name in text.ROWS.values():
        assert name in words
    assert "What does steering change? (10 test prompts, 10 tasks; seed 0)" in words
    assert "The planted words are marked: [R] rumour, [T] trust." in words
    for example, planted in zip(small.result.exhibits, build_world("graded").split("steer"), strict=False):
        tokens, a = example.encoded.tokens, example.a
        selection = select(a, k=3, eligible=eligible_tokens(example.encoded, ()))
        assert " ".join(strongest_tokens(tokens, a, selection).split()) in words
        for j in planted.rumour:
            assert f"{tokens[j].strip()}[R]" in words
        for j in planted.trust:
            assert f"{tokens[j].strip()}[T]" in words

    as_json = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(as_json.stdout) == content
