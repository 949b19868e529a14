"""The planted visual worlds, their pictures, and the models trained on them."""

from __future__ import annotations

import hashlib
import json
import random
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from shared import SHIPPED, first_quick

pytest.importorskip("PIL")

import transformers
from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor

from grains_ref.tiny_models.train_visual_world import (
    answer_log_probs,
    hidden_states,
    image_features,
    padded_rows,
    pixel_values,
)
from grains_ref.tiny_models.visual_worlds import (
    CELL,
    COLOURS,
    FACTS,
    FILLERS,
    GRID,
    GROUND,
    IMAGE_TOKENS,
    KINDS,
    LURE,
    N_CAPABILITY,
    PATCHES,
    SHAPES,
    TYPICAL,
    VALUE_WORD,
    VISUAL_WORLDS,
    Thing,
    VisualPrompt,
    VisualWorld,
    build_visual_world,
    expanded_words,
    picture,
)

pytestmark = pytest.mark.cpu

SPLITS = ("steer", "dev", "test")
MODELS = [f"{name}-visual-seed{seed}" for name in ("simple", "graded") for seed in (0, 1, 2)]
SCENE = (Thing("ring", "cyan", 1), Thing("bar", "red", 3), Thing("saltire", "yellow", 8))


@pytest.fixture(scope="module")
def worlds() -> dict[str, VisualWorld]:
    return {name: build_visual_world(name) for name in VISUAL_WORLDS}


@pytest.fixture(params=VISUAL_WORLDS)
def world(request: pytest.FixtureRequest, worlds: dict[str, VisualWorld]) -> VisualWorld:
    return worlds[request.param]


def prompts(world: VisualWorld) -> list[VisualPrompt]:
    return [prompt for name in SPLITS for prompt in world.split(name)]  # type: ignore[arg-type]


def shipped(name: str) -> tuple[LlavaNextForConditionalGeneration, LlavaNextProcessor]:
    if transformers.__version__.startswith("5.0."):
        pytest.skip("transformers 5.0 has no LlavaNextImageProcessorPil, which processor_config.json names")
    return (
        LlavaNextForConditionalGeneration.from_pretrained(SHIPPED / name).eval(),
        LlavaNextProcessor.from_pretrained(SHIPPED / name),
    )


@pytest.fixture(scope="module")
def simple_visual() -> tuple[LlavaNextForConditionalGeneration, LlavaNextProcessor]:
    return shipped("simple-visual-seed0")


# --- pictures


def test_pictures_are_the_same_on_every_machine() -> None:
    image = picture(SCENE)
    assert (image.mode, image.size) == ("RGB", (84, 84))
    assert (
        hashlib.sha256(image.tobytes()).hexdigest()
        == "d13e64d789a882401b3e3cd0d441d32d27de21cdefedf5b41b0f2dddc66ff06f"
    )


def test_a_picture_shows_what_its_scene_says() -> None:
    image, scale = picture(SCENE, scale=2), 2
    side = CELL * scale
    for cell in range(PATCHES):
        y, x = divmod(cell, GRID)
        cut = image.crop((x * side, y * side, (x + 1) * side, (y + 1) * side))
        colours = {colour for _, colour in cut.getcolors() or ()}
        here = [thing for thing in SCENE if thing.cell == cell]
        assert colours - {(0, 0, 0)} == {COLOURS[thing.colour] for thing in here}


def test_shapes_and_colours_can_be_told_apart() -> None:
    assert all(len(lines) == CELL and {len(line) for line in lines} == {CELL} for lines in SHAPES.values())
    for one, other in combinations(SHAPES.values(), 2):
        pixels = zip("".join(one), "".join(other), strict=True)
        assert sum(a != b for a, b in pixels) >= 8
    for red, blue in combinations(COLOURS.values(), 2):
        assert max(abs(a - b) for a, b in zip(red, blue, strict=True)) == 255
    assert sorted(TYPICAL.values()) == sorted(COLOURS)  # every colour is typical of one shape


# --- prompts and splits

DIGESTS = {
    "simple-visual": "406750d65f68ffa07d91079caefe393503919c9e3552089f1067969b82a978fc",
    "graded-visual": "f515b115b0c297bd904370ae8dbbf3c3c74c57e62ccb78044295e5da1362a6ce",
}


def test_a_world_is_the_same_on_every_machine(world: VisualWorld) -> None:
    tasks = [task for split in ("dev", "test") for task in world.capability_split(split)]  # type: ignore[arg-type]
    training = []
    for i in range(200):
        rng = random.Random(i)
        scene = world.training_scene(rng)
        training.append((scene, world.training_text(scene, rng, describe=0.1)))
    content = repr((prompts(world), tasks, training, world.vocabulary(), sorted(world.mu.items())))
    assert hashlib.sha256(content.encode()).hexdigest() == DIGESTS[world.name]


def test_an_unknown_world_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'flat' does not exist; the visual worlds are simple-visual, graded-visual"):
        build_visual_world("flat")  # type: ignore[arg-type]


def test_no_fact_and_no_picture_is_in_two_splits(world: VisualWorld) -> None:
    facts = {name: {p.asked for p in world.split(name)} for name in SPLITS}  # type: ignore[arg-type]
    assert {name: len(of) for name, of in facts.items()} == FACTS
    assert sum(map(len, facts.values())) == len(set.union(*facts.values()))
    assert set.union(*facts.values()) == world.held_out
    tasks = [task for split in ("dev", "test") for task in world.capability_split(split)]  # type: ignore[arg-type]
    scenes = [p.scene for p in prompts(world)] + [task.scene for task in tasks]
    assert len(scenes) == len(set(scenes)) == 50 + 160 + 300 + 2 * N_CAPABILITY
    assert len({p.id for p in prompts(world)}) == 510


def test_training_never_shows_an_evaluation_picture_nor_lures_about_a_held_out_fact(world: VisualWorld) -> None:
    rng = random.Random("held out")
    lured = 0
    for _ in range(1500):
        scene = world.training_scene(rng)
        assert scene not in world.pictures
        prompt, answer, odds = world.training_text(scene, rng)
        words = prompt.split()
        if "colour" in words and set(words) & set(LURE):
            (asked,) = [thing for thing in scene if thing.shape in words]
            assert asked not in world.held_out
            assert answer.split()[VALUE_WORD] in odds.keys() == {asked.colour, TYPICAL[asked.shape]}
            assert sum(odds.values()) == pytest.approx(1.0)
            lured += 1
    assert lured > 300


def test_recorded_positions_hold_the_recorded_words_and_patches_and_all_of_them(world: VisualWorld) -> None:
    for p in prompts(world):
        words = expanded_words(p.prompt)
        assert words[: 2 + IMAGE_TOKENS].count("<image>") == IMAGE_TOKENS == 21
        assert p.lure == tuple(i for i, word in enumerate(words) if word in LURE)
        assert p.ground == tuple(i for i, word in enumerate(words) if word in GROUND)
        assert p.lure  # there is always something to find
        assert 1 <= sum(word in FILLERS for word in words) <= 3
        assert [words[i] for i in p.subject] == [p.asked.shape]
        assert p.asked in p.scene
        assert p.chosen == f"{p.asked.shape} {p.asked.colour} ."
        assert p.rejected == f"{p.asked.shape} {TYPICAL[p.asked.shape]} ."
        assert p.chosen != p.rejected
        y, x = divmod(p.asked.cell, GRID)
        assert p.object == (1 + p.asked.cell, 1 + 9 + 4 * y + x)
        if world.name == "simple-visual":
            assert len(p.lure) == len(p.ground) == 1


def test_capability_tasks_have_the_right_answers_and_hold_evidence_words_but_for_lures_about_colours(
    world: VisualWorld,
) -> None:
    for split in ("dev", "test"):
        tasks = world.capability_split(split)  # type: ignore[arg-type]
        assert {kind: sum(t.kind == kind for t in tasks) for kind in KINDS} == dict.fromkeys(KINDS, N_CAPABILITY // 4)
        for kind in KINDS:
            with_lure = sum(bool(set(LURE) & set(t.prompt.split())) for t in tasks if t.kind == kind)
            assert with_lure == 0 if kind == "colour" else with_lure > 40
        for t in tasks:
            shapes = {thing.shape: thing for thing in t.scene}
            asked = next((word for word in t.prompt.split() if word in SHAPES), "")
            right = {
                "position": lambda s=asked, by=shapes: f"{s} {by[s].place} .",
                "count": lambda by=shapes: f"{('one', 'two', 'three')[len(by) - 1]} .",
                "presence": lambda s=asked, by=shapes: f"{s} {'present' if s in by else 'absent'} .",
                "colour": lambda s=asked, by=shapes: f"{s} {by[s].colour} .",
            }
            assert t.answer == right[t.kind]()


def test_lures_make_the_seen_colour_less_likely_and_ground_words_more_likely(world: VisualWorld) -> None:
    lures, grounds = list(LURE), list(GROUND)
    for shape in SHAPES:
        clear, lured = world.planted_logit(shape, [], []), world.planted_logit(shape, lures[:1], [])
        assert lured < clear == world.planted_logit(shape, [], grounds[:1])
        assert 1 / (1 + torch.tensor(-clear).exp()) > 0.98
        assert lured < world.planted_logit(shape, lures[:1], grounds[:1]) < clear
        if world.name == "graded-visual":
            steps = [world.planted_logit(shape, lures[:n], []) for n in (1, 2, 3)]
            assert steps == sorted(steps, reverse=True)
            fourth = [world.planted_logit(shape, [*lures[:n], lures[5]], []) for n in (1, 2, 3)]
            drops = [before - after for before, after in zip(steps, fourth, strict=True)]
            assert drops == sorted(drops, reverse=True)  # lures saturate
    one = [world.planted_logit(shape, lures[:1], grounds[:1]) for shape in SHAPES]
    assert len({round(logit, 6) for logit in one}) == len(SHAPES)  # each shape has a stereotype of its own force


# --- the models


@pytest.mark.parametrize("name", MODELS)
def test_a_shipped_model_learned_what_was_planted(name: str) -> None:
    log = [json.loads(line) for line in (SHIPPED / name / "training_log.jsonl").read_text().splitlines()]
    assert (log[0]["world"], log[0]["seed"]) == (name[:-6], int(name[-1]))
    final = log[-1]["final"]
    assert 0.4 <= final["dev_hallucination"] <= 0.8
    assert final["dev_capability"] >= 0.97
    assert min(final[f"dev_capability_{kind}"] for kind in KINDS) >= 0.95
    # In the simple world all planted log-odds lie within 1.5 nats of each other.
    assert final["corr_margin_planted_logit"] >= (0.85 if name.startswith("graded") else 0.4)
    assert 0.5 <= final["norm_ratio"] <= 2
    folder = SHIPPED / name
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    assert (folder / "model.safetensors").stat().st_size < 2**20


@pytest.mark.parametrize("world", VISUAL_WORLDS)
def test_on_average_half_of_the_answers_or_more_are_hallucinated(world: str) -> None:
    logs = [(SHIPPED / f"{world}-seed{seed}" / "training_log.jsonl").read_text() for seed in (0, 1, 2)]
    rates = [json.loads(log.splitlines()[-1])["final"]["dev_hallucination"] for log in logs]
    assert 0.45 <= sum(rates) / 3 <= 0.75


@pytest.mark.parametrize("name", first_quick(["simple-visual-seed0", "graded-visual-seed0"]))
def test_log_and_weights_belong_together(name: str, worlds: dict[str, VisualWorld]) -> None:
    model, processor = shipped(name)
    world = worlds[name[:-6]]
    questions, tasks = world.split("dev"), world.capability_split("dev")[:80]
    scenes, tokenizer = [q.scene for q in questions], processor.tokenizer
    chosen, _ = answer_log_probs(model, tokenizer, scenes, [(q.prompt, q.chosen) for q in questions])
    rejected, _ = answer_log_probs(model, tokenizer, scenes, [(q.prompt, q.rejected) for q in questions])
    final = json.loads((SHIPPED / name / "training_log.jsonl").read_text().splitlines()[-1])["final"]
    assert (chosen - rejected).mean().item() == pytest.approx(final["dev_mean_margin_nats"], abs=1e-3)
    _, right = answer_log_probs(model, tokenizer, [t.scene for t in tasks], [(t.prompt, t.answer) for t in tasks])
    assert right.float().mean() >= 0.95


def test_the_processor_gives_the_positions_and_pixels_that_the_world_speaks_of(
    simple_visual: tuple[LlavaNextForConditionalGeneration, LlavaNextProcessor], worlds: dict[str, VisualWorld]
) -> None:
    _, processor = simple_visual
    for p in worlds["simple-visual"].split("steer")[:5]:
        inputs = processor(text=p.prompt, images=picture(p.scene), return_tensors="pt")
        assert processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist()) == expanded_words(p.prompt)
        assert inputs["pixel_values"].shape == (1, 2, 3, 21, 21)
        for view in inputs["pixel_values"][0]:
            torch.testing.assert_close(view, pixel_values([p.scene])[0], rtol=0, atol=1e-6)


def test_the_ordinary_forward_pass_is_the_one_of_training(
    simple_visual: tuple[LlavaNextForConditionalGeneration, LlavaNextProcessor], worlds: dict[str, VisualWorld]
) -> None:
    model, processor = simple_visual
    questions = worlds["simple-visual"].split("steer")[:3]
    ids, _ = padded_rows(processor.tokenizer, [(q.prompt, q.chosen) for q in questions], end=False)
    with torch.no_grad():
        features = image_features(model, pixel_values([q.scene for q in questions]))
        fast = model.lm_head(hidden_states(model, ids, features))
        for i, q in enumerate(questions):
            inputs: dict[str, Any] = processor(
                text=f"{q.prompt} {q.chosen}", images=picture(q.scene), return_tensors="pt"
            )
            logits = model(**inputs).logits[0]
            torch.testing.assert_close(logits, fast[i, : len(logits)], rtol=1e-5, atol=1e-4)
            found = model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
            whole = getattr(found, "pooler_output", found)[0]  # transformers 4 returns the features alone
            torch.testing.assert_close(whole, features[i], rtol=0, atol=1e-5)


def test_the_demo_pictures_are_drawn_by_the_generator(worlds: dict[str, VisualWorld]) -> None:
    from PIL import Image

    steer = {p.id: p for p in worlds["simple-visual"].split("steer")}
    files = sorted((Path(SHIPPED) / "pictures").glob("*.png"))
    assert 4 <= len(files) <= 6
    for file in files:
        assert (
            Image.open(file).convert("RGB").tobytes()
            == picture(steer[file.stem.removeprefix("simple-visual-")].scene, scale=8).tobytes()
        )
