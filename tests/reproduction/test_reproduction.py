"""`grains-ref reproduce`: what a cell holds, what a table says of cells, and that finished work is kept."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from shared import first_quick
from typer.testing import CliRunner

from grains_ref.cli import app
from grains_ref.demo import planted, text, vision, workers
from grains_ref.demo import rows as demo_rows
from grains_ref.demo.bench import Outcome
from grains_ref.demo.lab import Lab
from grains_ref.demo.summary import summarise
from grains_ref.evaluation.measures import margins
from grains_ref.evaluation.metrics import holm, sign_flip_p
from grains_ref.grains import PRESETS, Steering, fit, integrated_gradients
from grains_ref.reproduction import cells, curves, kept, pages, paper, questions, rows, statistics
from grains_ref.reproduction.full import COLUMNS, without_planted_rows

pytestmark = pytest.mark.cpu
SPECS = (*paper.TABLES, *questions.QUESTIONS)


# --- the tables as they are written down


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_every_row_of_a_table_can_be_run(spec: paper.TableSpec) -> None:
    known = rows.rows_of(is_visual=spec.kind == "visual")
    assert {*spec.rows.values(), spec.reference, "unsteered"} <= known.keys()
    assert spec.paper.keys() <= spec.rows.keys()
    assert all(len(numbers) == len(spec.paper_columns) for numbers in spec.paper.values())


def test_every_row_that_can_be_run_stands_somewhere() -> None:
    for kind in ("text", "visual"):
        shown = {row for spec in SPECS if spec.kind == kind for row in spec.rows.values()}
        shown |= set(paper.figure_rows(kind).values())
        assert rows.rows_of(is_visual=kind == "visual").keys() <= shown


def test_cells_have_files_of_their_own() -> None:
    names = [*rows.TEXT, *rows.VISUAL, *curves.CURVES]
    paths = {kept.cell_path(Path(), "simple", 0, name) for name in names}
    assert len(paths) == len(set(names))


def test_the_papers_averages_follow_from_its_numbers() -> None:
    by_name = {spec.name: spec for spec in paper.TABLES}
    averages = {  # printed in tables 6 to 8; table 6's first row is averaged with 48.10 there, unlike table 1's 51.19
        ("table 6", "Base model"): 50.08,
        ("table 6", "Random selection"): 52.81,
        ("table 6", "GrAInS, vanilla gradient"): 55.36,
        ("table 6", "GrAInS, SmoothGrad"): 58.17,
        ("table 6", "GrAInS, Integrated Gradients"): 59.75,
        ("table 7", "GrAInS, vision only"): 51.38,
        ("table 7", "GrAInS, text only"): 50.36,
        ("table 8", "GrAInS, likelihood"): 52.26,
        ("table 8", "GrAInS, preference-based loss"): 53.63,
    }
    for (table, row), average in averages.items():
        numbers = by_name[table].paper[row]
        assert sum(numbers) / len(numbers) == pytest.approx(average, abs=0.011)


def test_the_full_rung_asks_for_nothing_that_only_a_planted_world_has() -> None:
    for spec in paper.TABLES:
        assert not any(row.startswith("planted") for row in without_planted_rows(spec).rows.values())
        assert {paper.kind_of(column) for column in COLUMNS[spec.name]} == {spec.kind}


# --- what a table says of its cells


def cell(*draws: dict[str, Any]) -> kept.Cell:
    return {"draws": list(draws)}


def draw(right: str, *, label: str = "GrAInS", strength: float = 1.0, last: float = 2.0) -> dict[str, Any]:
    tried = [("unsteered", 0.0, 0.25), (label, 1.0, 0.5), (label, last, 0.75)]
    return {"label": label, "strength": strength, "tried": tried, "right": right, "capable": "1" * len(right)}


FACTS = {("simple", 0): ["a", "a", "b", "c", "c", "d"], ("simple", 1): ["a", "a", "b", "c", "c", "d"]}
SPEC = paper.TableSpec("t", "T", "text", ("right",), {"Base": "unsteered", "Ours": "GrAInS", "Other": "random tokens"})


@pytest.fixture
def some_cells() -> dict[tuple[str, int, str], kept.Cell]:
    base = draw("000000", label="unsteered", strength=0.0)
    found = {("simple", seed, "unsteered"): cell(base) for seed in (0, 1)}
    found["simple", 0, "GrAInS"] = cell(draw("111000"))
    found["simple", 1, "GrAInS"] = cell(draw("110000", strength=2.0))
    found["simple", 0, "random tokens"] = cell(draw("100000"), draw("010000"))
    found["simple", 1, "random tokens"] = cell(draw("000001"), draw("000001"))
    return found


def test_a_result_is_a_mean_over_facts_with_prompts_seeds_and_draws_together(some_cells: Any) -> None:
    found = statistics.results(SPEC, ["simple"], some_cells, FACTS, [0, 1])
    ours, other = found["Ours", "simple", "right"], found["Other", "simple", "right"]
    assert isinstance(ours, statistics.Result)
    assert isinstance(other, statistics.Result)
    # facts a: 4 of 4, b: 1 of 2, c: 0 of 4, d: 0 of 2
    assert ours.value.value == ours.gain.value == pytest.approx((1 + 0.5) / 4)
    # facts a: 0.5 + 0.5 of 4, d: 1 of 2
    assert other.value.value == pytest.approx((0.25 + 0.5) / 4)
    assert other.versus.value == pytest.approx(other.value.value - ours.value.value)
    assert other.value.n == 4
    assert ours.chosen == ("GrAInS, 1", "GrAInS, 2")
    assert ours.at_end
    assert not other.at_end


def test_p_values_are_paired_by_fact_and_corrected_for_the_rows_of_the_table(some_cells: Any) -> None:
    found = statistics.results(SPEC, ["simple"], some_cells, FACTS, [0, 1])
    ours = [1, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0]
    raw = {
        "Base": sign_flip_p([0.0] * 12, ours, clusters=FACTS["simple", 0] * 2),
        "Other": sign_flip_p([0.5, 0.5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], ours, clusters=FACTS["simple", 0] * 2),
    }
    corrected = holm(raw)
    for name, p in corrected.items():
        one = found[name, "simple", "right"]
        assert isinstance(one, statistics.Result)
        assert one.p == p
    assert corrected != raw


def test_a_demo_says_the_same_of_its_rows_as_a_table_of_their_cells() -> None:
    rng = np.random.default_rng(0)
    facts = [str(i // 2) for i in range(20)]
    seeds, of_cells = [], {}
    for seed in (0, 1, 2):
        outcomes: dict[str, list[Outcome]] = {}
        for row in text.ROWS:
            draws = rng.random((5 if row == "random tokens" else 1, 3, 20)) < rng.random()
            outcomes[row] = [Outcome("a", 1.0, (), *(tuple(bits.tolist()) for bits in draw)) for draw in draws]
            of_cells["simple", seed, row] = cell(*(as_json(outcome) for outcome in outcomes[row]))
        seeds.append(SimpleNamespace(seed=seed, outcomes=outcomes))
    (spec,) = [spec for spec in questions.QUESTIONS if spec.name == "demo"]
    table = statistics.results(spec, ["simple"], of_cells, {("simple", seed): facts for seed in (0, 1, 2)}, [0, 1, 2])
    for of_demo in summarise(seeds, facts):  # type: ignore[arg-type]
        right, rejected, capable = (table[text.ROWS[of_demo.row], "simple", measure] for measure in spec.measures)
        assert (right.value, right.gain) == (of_demo.accuracy, of_demo.gain)  # type: ignore[union-attr]
        assert rejected.value.value == pytest.approx(of_demo.rejected_rate)  # type: ignore[union-attr]
        assert capable.value.value == pytest.approx(of_demo.capability)  # type: ignore[union-attr]


def as_json(outcome: Outcome) -> dict[str, Any]:
    bits = {name: "".join("01"[bit] for bit in getattr(outcome, name)) for name in ("right", "rejected", "capable")}
    return {"label": outcome.label, "strength": outcome.strength, "tried": [("a", 1.0, 0.5)]} | bits


def test_the_demos_rows_are_those_of_the_tables() -> None:
    for is_visual, view, of_demo in ((False, text.ROWS, demo_rows.TEXT), (True, vision.ROWS, demo_rows.VISUAL)):
        of_tables = rows.rows_of(is_visual=is_visual)
        assert all(of_tables[row] is of_demo[row] for row in of_demo)
        assert view.keys() <= of_demo.keys()


def test_a_row_that_could_not_be_measured_says_why_and_the_others_stand(some_cells: Any) -> None:
    some_cells["simple", 1, "random tokens"] = {"error": "layer 0: all 50 shifts are zero"}
    found = statistics.results(SPEC, ["simple"], some_cells, FACTS, [0, 1])
    assert found["Other", "simple", "right"] == "layer 0: all 50 shifts are zero"
    assert isinstance(found["Ours", "simple", "right"], statistics.Result)
    page = pages.table_page(SPEC, ["simple"], found)
    assert "| Other | none [^1] | - |" in page
    assert "[^1]: layer 0: all 50 shifts are zero" in page


def test_a_page_shows_the_papers_numbers_beside_ours(some_cells: Any) -> None:
    spec = paper.TableSpec(
        "table 9", "T", "text", ("right", "capable"), SPEC.rows, ("Llama", "Qwen"), {"Ours": (47.37, 59.85)}
    )
    page = pages.table_page(spec, ["simple"], statistics.results(spec, ["simple"], some_cells, FACTS, [0, 1]))
    line = next(line for line in page.splitlines() if line.startswith("| Ours"))
    assert line.startswith("| Ours | 47.37 | 59.85 | 37.5 | +37.5 [")
    assert line.endswith("> | 100.0 |")
    assert "| Base | - | - | 0.0 |" in page
    widths = {line.count("|") for line in page.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_what_was_gained_on_dev_is_read_off_the_choice_and_not_off_the_best_that_was_tried() -> None:
    assert statistics.dev_gain(cell(draw("1"), draw("1", strength=2.0))) == pytest.approx((0.25 + 0.5) / 2)
    assert statistics.dev_curve(cell(draw("1"))) == {0.0: 0.25, 1.0: 0.5, 2.0: 0.75}


# --- one cell, measured


@pytest.fixture(scope="module")
def simple(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The simple world cut down."""
    whole = planted.planted_lab("simple", 0, tmp_path_factory.mktemp("data"))
    return replace(
        whole,
        steer=whole.steer[:6],
        causes=whole.causes[:6],
        lams=(1.0, 4.0),
        dev=(whole.dev[0][:8], whole.dev[1][:12]),
        test=(whole.test[0][:6], whole.test[1][:8]),
        facts=whole.facts[:6],
    )


@pytest.mark.thorough
@pytest.mark.parametrize(("row", "aggregation"), first_quick([("GrAInS", "pca"), ("mean", "mean")]))
def test_a_cell_is_the_reference_fit_chosen_on_dev_and_measured_on_test(
    simple: Lab, row: str, aggregation: Any
) -> None:
    (one,) = cells.fill(simple, row)["draws"]
    model = simple.model
    examples = [model.example(p.prompt, p.chosen, p.rejected) for p in simple.steer]
    v = fit(model, examples, replace(PRESETS["paper_llm"], aggregation=aggregation)).v
    accuracy = {}
    for lam in (0.0, 1.0, 4.0):
        with Steering(model.blocks, v, lam=lam):
            accuracy[lam] = sum(
                model.score([(p.prompt, p.chosen)])[0].log_prob > model.score([(p.prompt, p.rejected)])[0].log_prob
                for p in simple.dev[0]
            ) / len(simple.dev[0])
    assert {strength: value for _, strength, value in one["tried"]} == pytest.approx(accuracy)
    with Steering(model.blocks, v, lam=one["strength"]):
        for i, pair in enumerate(simple.test[0]):
            chosen, rejected = model.score([(pair.prompt, pair.chosen), (pair.prompt, pair.rejected)])
            (text,) = model.generate([pair.prompt], max_new_tokens=9)
            assert one["right"][i] == str(int(chosen.log_prob > rejected.log_prob))
            assert one["rejected"][i] == str(int(rejected.is_greedy))
            # The two answers differ in one word, so the one that was generated is the closer one.
            if text in (pair.chosen, pair.rejected):
                assert one["bleu"][i] == str(int(text == pair.chosen))
        assert one["capable"] == "".join(
            str(int(model.score([(t.prompt, t.answer)])[0].is_greedy)) for t in simple.test[1]
        )


@pytest.mark.thorough
def test_the_unsteered_model_is_a_row_and_is_among_the_settings_of_every_row(simple: Lab) -> None:
    (base,) = cells.fill(simple, "unsteered")["draws"]
    assert (base["label"], base["strength"]) == ("unsteered", 0.0)
    assert [one[0] for one in base["tried"]] == ["unsteered"]
    for name in ("mean", "k = 1"):
        (one,) = cells.fill(simple, name)["draws"]
        assert one["tried"][0] == ("unsteered", 0.0, base["tried"][0][2])


@pytest.mark.thorough
def test_layers_and_examples_are_what_their_rows_say(simple: Lab) -> None:
    (settings,) = rows.TEXT["layer 2"](simple)
    assert settings[0].steering.keywords["layers"] == (2,)  # type: ignore[attr-defined]
    (settings,) = rows.TEXT["5 examples"](simple)
    five = [simple.model.example(p.prompt, p.chosen, p.rejected) for p in simple.steer[:5]]
    v = settings[0].steering.args[2]  # type: ignore[attr-defined]
    assert torch.allclose(v, fit(simple.model, five, simple.paper).v, rtol=0, atol=1e-5)


def vectors_of(lab: Lab, row: str) -> list[torch.Tensor]:
    """The vectors (L, d) of every draw of a row."""
    return [settings[0].steering.args[2] for settings in rows.TEXT[row](lab)]  # type: ignore[attr-defined]


def test_controls_of_direction_are_reversed_random_or_less_the_planted_part(simple: Lab) -> None:
    for name, reverse in {
        "GrAInS": "GrAInS, reversed",
        "mean": "mean, reversed",
        "planted tokens, mean": "planted tokens, mean, reversed",
    }.items():
        assert torch.equal(vectors_of(simple, name)[0], -vectors_of(simple, reverse)[0])
    (v,), (rest,) = (vectors_of(simple, name) for name in ("GrAInS", "GrAInS, without its planted part"))
    shifts = [simple.planted_shift(i) for i in range(len(simple.steer))]
    means = [torch.stack([getattr(s, f"delta_{sign}") for s in shifts]).double().mean(0) for sign in ("pos", "neg")]
    for layer in range(len(v)):
        plane = torch.stack([one[layer] for one in means])  # (2, d)
        assert plane @ rest[layer] == pytest.approx(torch.zeros(2), abs=1e-9)
        assert rest[layer].norm().item() == pytest.approx(v[layer].norm().item())
        # v lies in the span of the rest and of the plane: nothing but the planted part was taken away.
        span = torch.cat([plane, rest[layer][None]])
        inside = torch.linalg.lstsq(span.T, v[layer][:, None]).solution
        assert span.T @ inside == pytest.approx(v[layer][:, None], abs=1e-9)
    draws = vectors_of(simple, "Gaussian vectors")
    assert len(draws) == 5
    for one in draws:
        assert one.norm(dim=1).tolist() == pytest.approx(v.norm(dim=1).tolist())
    cosines = torch.cosine_similarity(draws[0], torch.stack([v, *draws[1:]]), dim=-1)
    assert cosines.abs().max() < 0.6


def test_shifts_that_define_no_direction_become_an_error_of_the_cell(simple: Lab) -> None:
    assert "all equal" in cells.fill(replace(simple, steer=simple.steer[:1]), "GrAInS")["error"]


@pytest.mark.thorough
def test_memory_of_stages_keeps_apart_what_must_be_kept_apart(simple: Lab) -> None:
    changes: list[dict[str, Any]] = [
        {}, {"k": 1}, {"m": 2}, {"path_baseline": "mean"}, {"mask_baseline": "mean"}, {"eligible": ("not_last",)},
        {"aggregation": "mean"}, {"attribution": "random", "seed": 1}, {"attribution": "random", "seed": 2},
    ]  # fmt: skip
    examples = [simple.example(i) for i in range(3)]
    for change in changes:
        hp = replace(simple.paper, **({"m": 1} | change))
        expected = fit(simple.model, examples, hp).v
        assert torch.allclose(simple.fit(hp, n=3).v, expected, rtol=0, atol=1e-5), change


# --- curves


@pytest.mark.thorough
def test_ablation_masks_the_strongest_tokens_one_more_at_each_step(simple: Lab) -> None:
    found = curves.ablation(replace(simple, dev=(simple.dev[0][:2], simple.dev[1])))
    expected = []
    for pair in simple.dev[0][:2]:
        example = simple.model.example(pair.prompt, pair.chosen, pair.rejected)
        x = example.encoded.embeds
        f = curves.objective(simple.model, example, simple.paper)
        a = integrated_gradients(f, x, torch.zeros_like(x), m=5).a
        order = [j for j in a.argsort().tolist() if a[j] < 0]
        for k in (1, 3):
            masked = x.clone()
            masked[order[:k]] = 0
            with torch.no_grad():
                expected.append((f(masked[None]) - f(x[None])).item())
    assert found["negative"][0] == pytest.approx((expected[0] + expected[2]) / 2, abs=1e-4)
    assert found["negative"][2] == pytest.approx((expected[1] + expected[3]) / 2, abs=1e-4)
    assert found["negative"][2] > 0 > found["positive"][2]
    assert len(found["random"]) == 10


def test_log_graded_nodes_see_what_happens_near_zero() -> None:
    x = torch.tensor([[3.0, -1.0], [0.5, 2.0]], dtype=torch.float64)

    def f(embeds: torch.Tensor) -> torch.Tensor:  # rises mostly below alpha = 0.1, as behind an RMSNorm
        return (embeds.flatten(1).square().sum(1) + 1e-2).log()

    truth = math.log((x.square().sum().item() + 1e-2) / 1e-2)
    log_graded = rows.log_graded_scores(f, x, m=10).sum().item()
    equal = integrated_gradients(f, x, torch.zeros_like(x), m=10).a.sum().item()
    assert abs(log_graded - truth) < 0.02 * truth < abs(equal - truth)
    line = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    scores = rows.log_graded_scores(lambda embeds: (embeds * line).sum((1, 2)), x, m=200)
    assert torch.allclose(scores, (x * line).sum(1) * (1 - 1e-3), rtol=1e-3)


def test_geometry_knows_planted_directions_and_masked_last_tokens(simple: Lab) -> None:
    found = curves.geometry(simple)
    assert len(found) == 2 * 4
    shifts = [simple.shift(simple.paper, i) for i in range(6)]
    for layer in found:
        side = [getattr(s.selection, layer["sign"]) for s in shifts]
        assert layer["last_token_masked"] == sum(len(s.a) - 1 in one for s, one in zip(shifts, side, strict=True))
        assert 0 <= layer["mean_share"] <= 1
        assert all(-1 <= cosine <= 1 for cosine in layer["cos_planted"].values())
    groups, scores = torch.tensor([True, True, False, False]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    assert curves._explained(scores, groups) == pytest.approx(1)
    assert curves._explained(torch.tensor([1.0, -1.0, 1.0, -1.0]), groups) == pytest.approx(0)
    assert curves._explained(scores, torch.zeros(4, dtype=torch.bool)) == 0


def test_a_gain_is_split_into_the_mean_of_the_changes_and_their_spread() -> None:
    before = torch.tensor([-1.0, -1.0, -1.0, 3.0], dtype=torch.float64)
    # Two of three wrong answers are lifted by 2, the others pushed down by 2: nothing in the mean.
    found = curves.moved(before, torch.tensor([2.0, 2.0, -2.0, -2.0], dtype=torch.float64))
    assert found["mean"] == found["by_mean"] == 0
    assert found["gain"] == pytest.approx(0.5)
    assert found["by_spread"] == pytest.approx(3 * 0.5 / 4)  # any wrong answer is lifted over zero half of the time
    # All are lifted alike: all of the gain is in the mean.
    found = curves.moved(before, torch.full((4,), 2.0, dtype=torch.float64))
    assert (found["mean"], found["spread"], found["by_spread"]) == (2, 0, 0)
    assert found["gain"] == found["by_mean"] == pytest.approx(0.75)
    assert (found["margin"], found["margin_spread"]) == (0, pytest.approx(2))


@pytest.mark.thorough
def test_margins_are_moved_as_far_as_capability_allows(simple: Lab) -> None:
    found = curves.margins(simple)
    assert list(found) == list(curves.MOVERS)
    pairs = simple.test[0]
    before = torch.tensor(margins(simple.model, pairs))
    for name, one in found.items():
        grid = rows.TEXT[name](simple)[0]
        kept = [setting for setting in grid if simple.bench.keeps_capability(setting)]
        assert one["strength"] == max((setting.strength for setting in kept), default=0)
        assert one["margin"] == pytest.approx(before.mean().item(), abs=1e-5)
        for setting in kept[-1:]:
            with setting.steering():
                change = torch.tensor(margins(simple.model, pairs)) - before
            assert one["mean"] == pytest.approx(change.mean().item(), abs=1e-5)
            assert one["spread"] == pytest.approx(change.std().item(), abs=1e-5)


# --- running and going on


class FakeLab:
    facts = ("a", "b")


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`cells.run` in this process, with a fake measurement."""
    names: list[str] = []

    def fill(lab: Any, name: str) -> kept.Cell:
        if name == "gradient":
            raise MemoryError
        names.append(name)
        return {"draws": [draw("01")]}

    def run(work: Any, units: Any, tick: Any, *, workers: int) -> None:
        for unit in units:
            work(unit, tick)

    monkeypatch.setattr(cells, "fill", fill)
    monkeypatch.setattr(workers, "run", run)
    return names


def left(folder: Path, *names: str) -> list[kept.Unit]:
    """The units that are still to be run."""
    return kept.missing(folder, [("simple", 0, name) for name in names], on_damage=lambda problem: None)


def run(folder: Path, *names: str) -> None:
    units = left(folder, *names)
    cells.run(folder, units, make_lab=lambda *_: FakeLab(), workers=1, tick=lambda *_: None)  # type: ignore[arg-type, return-value]


def test_finished_cells_are_kept_when_a_later_one_fails(filled: list[str], tmp_path: Path) -> None:
    with pytest.raises(MemoryError):
        run(tmp_path, "GrAInS", "mean", "gradient", "CAA")
    assert filled == ["GrAInS", "mean"]
    run(tmp_path, "GrAInS", "mean", "CAA")
    assert filled == ["GrAInS", "mean", "CAA"]
    assert kept.read_facts(tmp_path, "simple", 0) == ["a", "b"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"row": "mean", "version": "0.0.0"}', '{"row": "CAA"}', "[" * 20_000]
)
def test_a_damaged_cell_or_one_of_another_version_is_run_again(filled: list[str], tmp_path: Path, content: str) -> None:
    run(tmp_path, "mean")
    assert not left(tmp_path, "mean")
    kept.cell_path(tmp_path, "simple", 0, "mean").write_text(content)
    assert left(tmp_path, "mean") == [("simple", 0, ("mean",))]
    run(tmp_path, "mean")
    assert filled == ["mean", "mean"]


# --- the command


def measured(lab: Any, name: str) -> kept.Cell:
    """What a cell could hold, a little different for every row."""
    if name == "figure 3":
        return {"curve": {sign: [float(len(sign) * k) for k in range(1, 11)] for sign in pages.COLOURS}}
    if name == "margins":
        figures = ("mean", "spread", "gain", "by_mean", "by_spread", "margin", "margin_spread")
        return {"curve": {"GrAInS": {"strength": 1.0} | {figure: 0.25 * i for i, figure in enumerate(figures)}}}
    label, strength = ("unsteered", 0.0) if name == "unsteered" else ("GrAInS", 1.0)
    outcomes = {"right": "0110" if strength else "0100", "rejected": "1000", "bleu": "0101", "capable": "1111"}
    tried = [("unsteered", 0.0, 0.25), ("GrAInS", 1.0, 0.5), ("GrAInS", 2.0, 0.75)]
    one = {"label": label, "strength": strength, "tried": tried} | outcomes
    return {"fit_seconds": 1.0 + len(name), "fit_bytes": 1_000_000 * len(name), "draws": [one]}


def test_the_command_writes_page_record_and_figures_and_writes_them_again_from_finished_cells(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[str] = []

    def in_this_process(work: Any, units: Any, tick: Any, *, workers: int) -> None:
        for unit in units:
            ran.append(unit[0])
            work(unit, tick)

    monkeypatch.setattr(cells, "fill", measured)
    monkeypatch.setattr(workers, "run", in_this_process)
    monkeypatch.setattr(cells, "tiny_lab", lambda *_, engine: SimpleNamespace(facts=["a", "a", "b", "c"]))
    command = ["reproduce", "--quick", "--table", "8", "--question", "cost", "--question", "margins"]
    command += [word for figure in "356" for word in ("--figure", figure)] + ["--out", str(tmp_path)]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    assert ran == ["graded", "graded-visual", "simple", "simple-visual"]

    page = (tmp_path / "tables.md").read_text()
    assert page.strip() == found.stdout.strip()
    assert "### Table 8. Objectives: preference win rate" in page
    # fact a: one of two before and after; b: gained; c: never
    assert "| GrAInS, preference-based loss | 48.35 | 58.90 | 50.0 | +33.3 [0.0, 100.0] |" in page
    assert "| CAA | 4.0 | 3 | 4.0 | 3 | 4.0 | 3 | 4.0 | 3 |" in page
    assert "| GrAInS | +0.00 | 0.25 | +50.0 | +75.0 | +100.0 |" in page
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["seeds"] == [0]
    assert list(record["tables"]) == ["table 8"]
    assert record["figures"]["figure 3"]["simple"]["positive"] == [[8.0 * k for k in range(1, 11)]]
    assert record["figures"]["figure 5"]["graded"] == [{"0.0": 0.25, "1.0": 0.5, "2.0": 0.75}]
    assert record["figures"]["figure 6"]["simple"] == [{f"{k}.0": 0.5 for k in (1, 2, 3, 5, 7, 10)}]
    assert record["curves"]["margins"]["simple"][0]["GrAInS"]["by_mean"] == 0.75
    assert {"row": "CAA", "world": "simple", "seed": 0, "seconds": 4.0, "bytes": 3_000_000} in record["cost"]
    for name in ("figure-3", "figure-5", "figure-6"):
        assert f"![{name.replace('-', ' ')}]({name}.png)" in page
        assert (tmp_path / f"{name}.png").read_bytes()[1:4] == b"PNG"
        assert b"<svg" in (tmp_path / f"{name}.svg").read_bytes()

    drawn: list[Path] = []
    monkeypatch.setattr(pages, "_save", lambda figure, path: drawn.append(path))  # drawing takes longer than the rest
    again = CliRunner().invoke(app, [*command, "--report", str(tmp_path / "r.html")])
    assert again.exit_code == 0, again.output
    assert len(ran) == 4
    report = (tmp_path / "r.html").read_text()
    assert "<h3>Table 8. Objectives: preference win rate" in report
    assert report.count('src="data:image/svg+xml') == 3
    assert [path.stem for path in drawn] == ["figure-3", "figure-5", "figure-6"]
    assert (tmp_path / "tables.md").read_text() == page
    assert json.loads((tmp_path / "record.json").read_text()) == record


def test_the_command_says_what_it_would_run(tmp_path: Path) -> None:
    command = ["reproduce", "--table", "8", "--figure", "5", "--quick", "--dry-run", "--out", str(tmp_path / "r")]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    assert "simple-visual, seed 0: unsteered, GrAInS, likelihood objective" in found.stdout
    assert "simple, seed 0: GrAInS\n" in found.stdout
    assert not (tmp_path / "r").exists()


def test_the_command_refuses_a_file_where_a_folder_is_expected(tmp_path: Path) -> None:
    (tmp_path / "r").write_text("mine")
    refused = CliRunner().invoke(app, ["reproduce", "--table", "8", "--quick", "--out", str(tmp_path / "r")])
    assert refused.exit_code == 1
    assert "r is a file; expected a folder" in " ".join(refused.output.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to do: give --all"),
        (["--table", "9"], "there is no 'table 9'; there are 'table 1', "),
        (["--question", "laers"], "there is no 'laers'"),
        (["--all", "--data", "mmlu=x"], "--ability and --confirm-run-unsafe-code are for --rung full"),
        (["--rung", "full", "--question", "steps"], "there is no 'steps'; there are 'table 1'"),
        (["--rung", "full", "--all", "--quick"], "--quick is for the tiny rung"),
        (["--rung", "real"], "give --all, or --quick for split 0 only"),
        (["--rung", "real", "--table", "1"], "--rung real has one table"),
        (["--rung", "real", "--all", "--engine", "reference"], "--engine is for the tiny and the full rung"),
        (["--rung", "full", "--table", "1", "--weights", "llama"], "expected NAME=FOLDER"),
        (["--rung", "full", "--table", "2", "--judge-url", "http://x"], "needs both"),
    ],
)
def test_the_command_refuses_what_makes_no_sense(options: list[str], message: str, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["reproduce", *options, "--out", str(tmp_path)])
    assert found.exit_code == 1
    assert message in " ".join(found.output.split())
