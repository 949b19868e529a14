"""The vision demo cut down to seconds, its data and figures; what attribution finds in shipped models."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from shared import SHIPPED, first_quick
from typer.testing import CliRunner

from grains_ref.cli import app
from grains_ref.data import content_digest, read_pairs
from grains_ref.demo import planted, rows, show, vision, workers
from grains_ref.demo.experiment import SeedResult, run_seed
from grains_ref.demo.lab import Lab
from grains_ref.demo.planted import causes, planted_lab, write_data
from grains_ref.demo.rows import attribution_settings
from grains_ref.demo.summary import record
from grains_ref.grains import (
    PRESETS,
    Selection,
    Shift,
    Steering,
    attribute,
    contrast,
    eligible_tokens,
    fit,
    select,
    vectors,
)
from grains_ref.models import HuggingFaceModel, load
from grains_ref.tiny_models.visual_worlds import LURE, VisualWorld, build_visual_world, picture

pytestmark = pytest.mark.cpu
PAPER = PRESETS["paper_vlm"]
SIZES = {"steer": 4, "dev": 5, "test": 6}
TASKS = {"dev": 6, "test": 4}


def small_world(name: Any) -> VisualWorld:
    """A visual world with the first prompts of its splits."""
    world = build_visual_world(name)
    return replace(
        world,
        prompts={split: prompts[: SIZES[split]] for split, prompts in world.prompts.items()},
        tasks={split: tasks[: TASKS[split]] for split, tasks in world.tasks.items()},
    )


@pytest.fixture(scope="module", autouse=True)
def cut_down() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planted, "build", small_world)
        patch.setattr(show, "build", small_world)
        patch.setitem(planted.LAMS, "visual", (0.4, 1.0))
        patch.setattr(rows, "VISUAL_KS", (20,))
        patch.setattr(rows, "RANDOM_DRAWS", 2)
        yield


@pytest.fixture(scope="module")
def folder(cut_down: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(small_world("graded-visual"), folder)
    return folder


@pytest.fixture(scope="module")
def ticks() -> list[tuple[str, int]]:
    return []


@pytest.fixture(scope="module")
def result(cut_down: None, folder: Path, ticks: list[tuple[str, int]]) -> SeedResult:
    return run_seed(vision.DEMO, "graded-visual", folder, 0, lambda what, finished: ticks.append((what, finished)))


@pytest.fixture(scope="module")
def lab(cut_down: None, folder: Path) -> Lab:
    return planted_lab("graded-visual", 0, folder)


@pytest.mark.thorough
def test_the_progress_bar_ends_where_the_work_ends(result: SeedResult, ticks: Sequence[tuple[str, int]]) -> None:
    assert sum(finished for _, finished in ticks) == len(vision.DEMO.rows)
    assert max(len(what) for what, _ in ticks) <= 50  # the width the bar's text is padded to


@pytest.mark.thorough
def test_every_row_is_there_with_its_number_of_draws(result: SeedResult) -> None:
    expected = dict.fromkeys(vision.ROWS, 1) | {"random tokens": 2}
    assert {row: len(outcomes) for row, outcomes in result.outcomes.items()} == expected
    for outcomes in result.outcomes.values():
        for outcome in outcomes:
            assert (len(outcome.right), len(outcome.rejected), len(outcome.capable)) == (6, 6, 4)
            assert outcome.strength in (0.0, 0.4, 1.0)


@pytest.mark.thorough
def test_the_papers_row_is_the_reference_fit_on_the_written_pictures(
    result: SeedResult, folder: Path, lab: Lab
) -> None:
    model = lab.model
    pairs = read_pairs(folder / "steer.jsonl").pairs
    expected = fit(model, [model.example(p.prompt, p.chosen, p.rejected, p.image) for p in pairs], PAPER)
    torch.testing.assert_close(result.vectors.v.double(), expected.v, rtol=1e-5, atol=1e-6)
    assert result.vectors.header.data_digest == content_digest(pairs)
    (outcome,) = result.outcomes["unsteered"]
    scored = model.score([(p.prompt, p.chosen, p.image) for p in read_pairs(folder / "test.jsonl").pairs])
    others = model.score([(p.prompt, p.rejected, p.image) for p in read_pairs(folder / "test.jsonl").pairs])
    assert outcome.right == tuple(a.log_prob > b.log_prob for a, b in zip(scored, others, strict=True))
    assert outcome.rejected == tuple(b.is_greedy for b in others)


def test_modalities_select_what_they_say(lab: Lab) -> None:
    encoded, a = lab.example(0).encoded, lab.attribution(PAPER, 0).a
    for modality, rules in rows.MODALITIES.items():
        chosen = select(a, k=20, eligible=eligible_tokens(encoded, rules))
        kinds = {encoded.kinds[j] == "image" for j in (*chosen.pos, *chosen.neg)}
        assert kinds == {"joint": {True, False}, "text": {False}, "image": {True}}[modality]


def test_dev_chooses_among_all_modalities_and_aggregations(result: SeedResult) -> None:
    (outcome,) = result.outcomes["chosen on dev"]
    labels = list(dict.fromkeys(label for label, strength, _ in outcome.tried if strength))
    assert labels == [f"{m}, {a}, k 20" for m in ("joint", "text", "image") for a in ("pca", "uncentred", "mean")]
    tried = {(label, strength): accuracy for label, strength, accuracy in outcome.tried}
    for row, label in (("GrAInS", "joint, pca, k 20"), ("text tokens only", "text, pca, k 20"),
                       ("image tokens only", "image, pca, k 20")):  # fmt: skip
        of_row = {strength: accuracy for _, strength, accuracy in result.outcomes[row][0].tried}
        assert [of_row[lam] for lam in (0.4, 1.0)] == [tried[label, lam] for lam in (0.4, 1.0)]


def test_the_planted_row_masks_the_true_causes(lab: Lab) -> None:
    prompt = small_world("graded-visual").split("steer")[0]
    shift, encoded = lab.planted_shift(0), lab.example(0).encoded
    words = [encoded.tokens[j].strip() for j in shift.selection.neg]
    assert words == [word for word in prompt.prompt.split() if word in LURE]
    assert {encoded.kinds[j] for j in prompt.object} == {"image"}
    assert set(prompt.object) <= set(shift.selection.pos)
    assert vision.object_patches(encoded, shift.selection) == set(prompt.object)
    patches = [encoded.patches[j] for j in prompt.object]  # type: ignore[attr-defined]
    row, column = divmod(prompt.asked.cell, 3)
    assert [(p.view, p.row, p.column) for p in patches] == [("base", row, column), ("tile 1", row, column)]


def test_norms_are_those_of_image_tokens_and_of_all_others(result: SeedResult, lab: Lab) -> None:
    norms: dict[str, list[float]] = {"image": [], "other": []}
    for i in range(len(lab.steer)):
        encoded = lab.example(i).encoded
        for kind, embedding in zip(encoded.kinds, encoded.embeds, strict=True):
            norms["image" if kind == "image" else "other"].append(embedding.norm().item())
    assert result.further == pytest.approx({name: sum(values) / len(values) for name, values in norms.items()})


def test_the_command_shows_and_writes_what_was_measured(
    result: SeedResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def run(work: Any, seeds: Sequence[int], tick: Any) -> list[SeedResult]:
        asked.append((*work.args, seeds))
        return [result]

    monkeypatch.setattr(workers, "run", run)
    command = ["demo", "--vision", "--world", "graded", "--seeds", "0", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert asked == [(vision.DEMO, "graded-visual", tmp_path, [0])]
    content = json.loads((tmp_path / "report.json").read_text())
    facts = planted.facts(small_world("graded-visual").split("test"))
    expected = record("graded-visual", [result], facts) | {"embedding_norms": [result.further]}
    assert content == json.loads(json.dumps(expected))
    for row in content["rows"]:
        assert vision.ROWS[row["row"]] in done.output
        assert f"{100 * row['accuracy']['value']:.1f} %" in done.output
    kept = json.loads((tmp_path / "examples.json").read_text())["attributions"]
    assert [one["image"] for one in kept] == [f"pictures/{one.pair.id}.png" for one in result.exhibits]
    assert all((tmp_path / one["image"]).is_file() for one in kept)
    assert {"O", "L", "G"} == {mark for one in kept for mark in one["marks"].values()}
    assert '<h2 id="attribution-title">' in (tmp_path / "report.html").read_text()
    overlays = sorted(tmp_path.glob("overlay-*.png"))
    assert len(overlays) == vision.DEMO.n_exhibits
    for path in overlays:
        with Image.open(path) as drawn:
            assert drawn.width > 800
    words = " ".join(done.output.split())
    for mark in ("[O]", "[L]", "[G]"):
        assert mark in words
    for prompt in small_world("graded-visual").split("steer")[: vision.DEMO.n_exhibits]:
        for j in prompt.lure:  # 21 image tokens stand in the place of one word
            assert f"{prompt.prompt.split()[j - 21]}[L]" in words
    assert (tmp_path / "vectors.safetensors").is_file()


@pytest.mark.thorough
@pytest.mark.parametrize(  # over seeds .96, .91
    ("world", "least"), first_quick([("simple-visual", 0.9), ("graded-visual", 0.75)])
)
def test_integrated_gradients_find_objects_and_lures_and_random_scores_do_not(world: Any, least: float) -> None:
    prompts = build_visual_world(world).split("steer")[:12]
    model = load(SHIPPED / f"{world}-seed0")
    examples = [model.example(p.prompt, p.chosen, p.rejected, picture(p.scene)) for p in prompts]
    means: dict[str, dict[str, float]] = {}
    for method in ("integrated gradients", "random"):
        hp = attribution_settings(PAPER)[method]
        found = [
            vision.recall(x.encoded, attribute(model, x, hp).a, causes(p))
            for x, p in zip(examples, prompts, strict=True)
        ]
        means[method] = {name: sum(one[name] for one in found) / len(found) for name in found[0]}
    assert means["integrated gradients"]["object_patch_first"] >= least
    assert means["random"]["object_patch_first"] <= 0.3
    assert means["integrated gradients"]["lure_recall_at_3"] >= 5 * 3 / 40  # five times chance
    assert means["random"]["lure_recall_at_3"] <= 0.25


def test_what_was_found_is_counted_among_the_strongest_of_its_kind(lab: Lab) -> None:
    encoded = lab.example(0).encoded
    image = [j for j, kind in enumerate(encoded.kinds) if kind == "image"]
    other = [j for j, kind in enumerate(encoded.kinds) if kind != "image"]
    planted_causes = Selection(pos=(image[4], other[-1]), neg=(other[1], other[2], other[3], other[4]))
    a = torch.zeros(len(encoded.ids))
    a[image[4]], a[other[-1]], a[other[5]] = 1.0, 2.0, -9.0  # a stronger word is no image token
    a[list(planted_causes.neg)] = torch.tensor([-4.0, -3.0, -2.0, -1.0])
    found = vision.recall(encoded, a, planted_causes)
    assert found == {"object_patch_first": 1.0, "lure_recall_at_3": 2 / 4, "lure_recall_at_5": 1.0}
    a[image[5]] = 1.5
    assert vision.recall(encoded, a, planted_causes)["object_patch_first"] == 0.0


@pytest.mark.thorough
def test_planted_tokens_can_steer_the_simple_world() -> None:
    # The instrument's own check: where the true causes change nothing, no method can be told from another.
    world = build_visual_world("simple-visual")
    model: HuggingFaceModel = load(SHIPPED / "simple-visual-seed0")
    shifts = []
    for p in world.split("steer")[:25]:
        encoded = model.example(p.prompt, p.chosen, p.rejected, picture(p.scene)).encoded
        deltas = contrast(model, encoded, causes(p), model.baseline(encoded, "zero"))
        shifts.append(Shift(torch.zeros(len(encoded.ids)), causes(p), *deltas))
    v = vectors(shifts, PAPER).v
    dev = world.split("dev")[:60]
    items = [(p.prompt, answer, picture(p.scene)) for p in dev for answer in (p.chosen, p.rejected)]
    token_rows = model.tokenise(items)

    def accuracy() -> float:
        scored = [one.log_prob for one in model.score_rows(token_rows)]
        return sum(a > b for a, b in zip(scored[::2], scored[1::2], strict=True)) / len(dev)

    before = accuracy()
    with Steering(model.blocks, v, lam=0.63):
        assert accuracy() >= before + 0.05
