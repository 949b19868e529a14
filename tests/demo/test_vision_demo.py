"""demo_vision.py: a demo cut down to seconds, its data and figures; what attribution finds in shipped models."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from shared import SHIPPED
from typer.testing import CliRunner

from grains_ref.cli import app
from grains_ref.data import content_digest, read_pairs, read_tasks
from grains_ref.demo import bench as planted
from grains_ref.demo import vision as demo_vision
from grains_ref.demo.vision import PAPER, ROWS, VisionResult
from grains_ref.grains import Steering, attribute, eligible_tokens, fit, select
from grains_ref.models import HuggingFaceModel, load
from grains_ref.tiny_models.visual_worlds import VisualWorld, build_visual_world, picture

pytestmark = pytest.mark.cpu


@dataclass(frozen=True)
class SmallWorld:
    """The first prompts of a visual world's splits."""

    world: VisualWorld

    def split(self, name: Any) -> list[Any]:
        return self.world.split(name)[: {"steer": 6, "dev": 8, "test": 10}[name]]

    def capability_split(self, name: Any) -> list[Any]:
        return self.world.capability_split(name)[: {"dev": 12, "test": 10}[name]]


@pytest.fixture(scope="module", autouse=True)
def cut_down() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_vision, "build_visual_world", lambda name: SmallWorld(build_visual_world(name)))
        patch.setattr(demo_vision, "LAMS", (0.0, 0.4, 1.0))
        patch.setattr(demo_vision, "KS", (20,))
        patch.setattr(demo_vision, "RANDOM_DRAWS", 2)
        yield


@pytest.fixture(scope="module")
def folder(cut_down: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    demo_vision.write_data("graded-visual", folder)
    return folder


@pytest.fixture(scope="module")
def ticks() -> list[str]:
    return []


@pytest.fixture(scope="module")
def result(cut_down: None, folder: Path, ticks: list[str]) -> VisionResult:
    return demo_vision.run_seed("graded-visual", folder, 0, ticks.append)


@pytest.fixture(scope="module")
def model() -> HuggingFaceModel:
    return load(SHIPPED / "graded-visual-seed0")


def test_the_progress_bar_ends_where_the_work_ends(result: VisionResult, ticks: Sequence[str]) -> None:
    assert len(ticks) == demo_vision.steps_per_seed()
    assert max(map(len, ticks)) <= 50  # the width the bar's text is padded to


def test_every_row_is_there_with_its_number_of_draws(result: VisionResult) -> None:
    assert {name: len(outcomes) for name, outcomes in result.outcomes.items()} == dict.fromkeys(ROWS, 1) | {
        "random tokens": 2
    }
    for outcomes in result.outcomes.values():
        for outcome in outcomes:
            assert (len(outcome.right), len(outcome.rejected), len(outcome.capable)) == (10, 10, 10)


def test_the_papers_row_is_the_reference_fit_on_the_written_pictures(
    result: VisionResult, folder: Path, model: HuggingFaceModel
) -> None:
    pairs = read_pairs(folder / "steer.jsonl").pairs
    expected = fit(model, [model.example(p.prompt, p.chosen, p.rejected, p.image) for p in pairs], PAPER)
    torch.testing.assert_close(result.vectors.v.double(), expected.v, rtol=1e-5, atol=1e-6)
    assert result.vectors.header.data_digest == content_digest(pairs)
    (outcome,) = result.outcomes["unsteered"]
    scored = model.score([(p.prompt, p.chosen, p.image) for p in read_pairs(folder / "test.jsonl").pairs])
    others = model.score([(p.prompt, p.rejected, p.image) for p in read_pairs(folder / "test.jsonl").pairs])
    assert outcome.right == tuple(a.log_prob > b.log_prob for a, b in zip(scored, others, strict=True))
    assert outcome.rejected == tuple(b.is_greedy for b in others)


def test_modalities_select_what_they_say(result: VisionResult, folder: Path, model: HuggingFaceModel) -> None:
    pair = read_pairs(folder / "steer.jsonl").pairs[0]
    example = model.example(pair.prompt, pair.chosen, pair.rejected, pair.image)
    a = attribute(model, example, PAPER).a
    for modality, rules in demo_vision.MODALITIES.items():
        chosen = select(a, k=20, eligible=eligible_tokens(example.encoded, rules))
        kinds = {example.encoded.kinds[j] == "image" for j in (*chosen.pos, *chosen.neg)}
        assert kinds == {"joint": {True, False}, "text": {False}, "image": {True}}[modality]


def test_the_planted_row_masks_the_true_causes(result: VisionResult, folder: Path, model: HuggingFaceModel) -> None:
    prompt = build_visual_world("graded-visual").split("steer")[0]
    pair = read_pairs(folder / "steer.jsonl").pairs[0]
    example = model.example(pair.prompt, pair.chosen, pair.rejected, pair.image)
    shift = demo_vision._planted_shift(model, example, prompt)
    words = [example.encoded.tokens[j].strip() for j in shift.selection.neg]
    assert words == [word for word in pair.prompt.split() if word in demo_vision_lures()]
    assert {example.encoded.kinds[j] for j in prompt.object} == {"image"}
    assert set(prompt.object) <= set(shift.selection.pos)
    patches = [example.encoded.patches[j] for j in prompt.object]  # type: ignore[attr-defined]
    row, column = divmod(prompt.asked.cell, 3)
    assert [(p.view, p.row, p.column) for p in patches] == [("base", row, column), ("tile 1", row, column)]


def demo_vision_lures() -> set[str]:
    from grains_ref.tiny_models.visual_worlds import LURE

    return set(LURE)


def test_what_is_written_is_read_back_whole(folder: Path) -> None:
    world = SmallWorld(build_visual_world("graded-visual"))
    for split in ("steer", "dev", "test"):
        pairs = read_pairs(folder / f"{split}.jsonl").pairs
        prompts = world.split(split)
        assert [(p.id, p.prompt, p.chosen, p.rejected) for p in pairs] == [
            (p.id, p.prompt, p.chosen, p.rejected) for p in prompts
        ]
        for pair, prompt in zip(pairs, prompts, strict=True):
            assert pair.image is not None
            with Image.open(pair.image) as written:
                assert written.tobytes() == picture(prompt.scene).tobytes()
    for split, name in (("dev", "dev_tasks"), ("test", "tasks")):
        assert list(read_tasks(folder / f"{name}.jsonl")) == demo_vision.as_tasks(world.capability_split(split), folder)


def test_the_command_shows_and_writes_what_was_measured(
    result: VisionResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def run(work: Any, seeds: Sequence[int], tick: Any) -> list[VisionResult]:
        asked.append((*work.args, seeds))
        return [result]

    monkeypatch.setattr(planted, "run", run)
    done = CliRunner().invoke(
        app, ["demo", "--vision", "--world", "graded", "--seeds", "0", "--out", str(tmp_path)], env={"COLUMNS": "200"}
    )
    assert done.exit_code == 0, done.output
    assert asked == [("graded-visual", tmp_path, [0])]
    record = json.loads((tmp_path / "report.json").read_text())
    assert record == json.loads(
        json.dumps(
            planted.record("graded-visual", [result], demo_vision.facts("graded-visual"))
            | {"embedding_norms": [{"image": result.scale[0], "other": result.scale[1]}]}
        )
    )
    for row in record["rows"]:
        assert row["name"].strip() in done.output
        assert f"{100 * row['accuracy']['value']:.1f} %" in done.output
    overlays = sorted(tmp_path.glob("overlay-*.png"))
    assert len(overlays) == demo_vision.N_SHOWN
    for path in overlays:
        with Image.open(path) as drawn:
            assert drawn.width > 800
    assert "[O]" in done.output
    assert "[L]" in done.output
    assert (tmp_path / "vectors.safetensors").is_file()


@pytest.mark.parametrize(("world", "least"), [("simple-visual", 0.9), ("graded-visual", 0.75)])  # over seeds .96, .91
def test_integrated_gradients_find_objects_and_lures_and_random_scores_do_not(world: Any, least: float) -> None:
    prompts = build_visual_world(world).split("steer")[:12]
    model = load(SHIPPED / f"{world}-seed0")
    examples = [model.example(p.prompt, p.chosen, p.rejected, picture(p.scene)) for p in prompts]
    found = {}
    for method in ("integrated gradients", "random"):
        scores = [attribute(model, x, demo_vision.METHODS[method]).a for x in examples]
        found[method] = demo_vision._found(examples, prompts, scores)
    assert found["integrated gradients"]["object_patch_first"] >= least
    assert found["random"]["object_patch_first"] <= 0.3
    assert found["integrated gradients"]["lure_recall_at_3"] >= 5 * 3 / 40  # five times chance
    assert found["random"]["lure_recall_at_3"] <= 0.25


def test_planted_tokens_can_steer_the_simple_world() -> None:
    # The instrument's own check: where the true causes change nothing, no method can be told from another.
    world = build_visual_world("simple-visual")
    model = load(SHIPPED / "simple-visual-seed0")
    prompts = world.split("steer")[:25]
    shifts = [
        demo_vision._planted_shift(model, model.example(p.prompt, p.chosen, p.rejected, picture(p.scene)), p)
        for p in prompts
    ]
    v = demo_vision.vectors(shifts, PAPER).v
    dev = world.split("dev")[:60]
    items = [(p.prompt, answer, picture(p.scene)) for p in dev for answer in (p.chosen, p.rejected)]
    rows = model.tokenise(items)

    def accuracy() -> float:
        scored = [one.log_prob for one in model.score_rows(rows)]
        return sum(a > b for a, b in zip(scored[::2], scored[1::2], strict=True)) / len(dev)

    before = accuracy()
    with Steering(model.blocks, v, lam=0.63):
        assert accuracy() >= before + 0.05
