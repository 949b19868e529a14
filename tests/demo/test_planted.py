"""demo/planted.py: planted worlds as labs and as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from grains_ref.data import content_digest, read_pairs, read_tasks
from grains_ref.demo.planted import (
    as_pairs,
    as_tasks,
    build,
    causes,
    cell_box,
    double_labs,
    model_folder,
    planted_lab,
    write_data,
)
from grains_ref.grains import Selection
from grains_ref.tiny_models.double_world import build_double_world
from grains_ref.tiny_models.visual_worlds import build_visual_world, picture
from grains_ref.tiny_models.worlds import build_world

pytestmark = pytest.mark.cpu


def test_a_model_or_a_world_that_is_not_shipped_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match="no model of world 'simple' with training seed 7; 0, 1 and 2 are"):
        model_folder("simple", 7)
    with pytest.raises(ValueError, match="world 'sinple' does not exist; the planted worlds are simple, graded, "):
        build("sinple")


# --- files


def test_the_data_that_is_written_is_read_back_whole(tmp_path: Path) -> None:
    world = build_world("graded")
    write_data(world, tmp_path)
    for split in ("steer", "dev", "test"):
        read = read_pairs(tmp_path / f"{split}.jsonl")
        assert read.digest == content_digest(as_pairs(world.split(split)))
    for split, name in (("dev", "dev_tasks"), ("test", "tasks")):
        tasks = read_tasks(tmp_path / f"{name}.jsonl").tasks
        assert list(tasks) == as_tasks(world.capability_split(split))


def test_pictures_are_written_beside_the_data_and_read_back_whole(tmp_path: Path) -> None:
    world = build_visual_world("graded-visual")
    for name, prompts in world.prompts.items():
        world.prompts[name] = prompts[:4]
    for name, tasks in world.tasks.items():
        world.tasks[name] = tasks[:4]
    write_data(world, tmp_path)
    for split in ("steer", "dev", "test"):
        pairs = read_pairs(tmp_path / f"{split}.jsonl").pairs
        prompts = world.split(split)
        assert content_digest(pairs) == content_digest(as_pairs(prompts, tmp_path))
        for pair, prompt in zip(pairs, prompts, strict=True):
            assert (pair.id, pair.prompt, pair.chosen, pair.rejected) == (
                prompt.id, prompt.prompt, prompt.chosen, prompt.rejected,
            )  # fmt: skip
            assert pair.image is not None
            with Image.open(pair.image) as written:
                assert written.tobytes() == picture(prompt.scene).tobytes()
    for split, name in (("dev", "dev_tasks"), ("test", "tasks")):
        assert list(read_tasks(tmp_path / f"{name}.jsonl").tasks) == as_tasks(world.capability_split(split), tmp_path)


def test_visual_prompts_without_the_folder_of_their_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="name the folder that `write_data` wrote it to"):
        as_pairs(build_visual_world("simple-visual").split("dev")[:1])


# --- labs


def test_causes_are_the_words_for_and_against_the_preferred_answer() -> None:
    word = build_world("graded").split("steer")[0]
    assert causes(word) == Selection(pos=word.trust, neg=word.rumour)
    seen = build_visual_world("graded-visual").split("steer")[0]
    assert causes(seen) == Selection(pos=seen.ground + seen.object, neg=seen.lure)
    manner = build_double_world().split("steer", "manner")[0]
    assert causes(manner) == Selection(pos=manner.toward, neg=manner.against)


def test_planted_shifts_mask_trusted_words_on_one_side_and_rumours_on_the_other(tmp_path: Path) -> None:
    lab = planted_lab("simple", 0, tmp_path)
    prompt, shift = build_world("simple").split("steer")[0], lab.planted_shift(0)
    x = lab.model.encode(prompt.prompt)
    for tokens, delta in ((prompt.trust, shift.delta_pos), (prompt.rumour, shift.delta_neg)):
        without = x.embeds.clone()
        without[list(tokens)] = 0
        full, masked = (lab.model.residuals(x, embeds[None])[0] for embeds in (x.embeds, without))
        torch.testing.assert_close(delta, full - masked, atol=1e-5, rtol=0)


@pytest.mark.parametrize("world", ["simple", "simple-visual", "double"])
def test_a_lab_fits_chooses_and_measures_on_the_worlds_three_parts(world: str, tmp_path: Path) -> None:
    lab = planted_lab(world, 0, tmp_path)
    for each in double_labs(lab.model).values() if world == "double" else [lab]:
        parts: dict[str, Any] = {"steer": each.steer, "dev": each.dev[0], "test": each.test[0]}
        assert [{pair.id.split("-")[0] for pair in pairs} for pairs in parts.values()] == [{name} for name in parts]
        assert [len(pairs) for pairs in parts.values()] == [50, 160, 300]
        assert list(each.facts) == [pair.id.split("-")[1] for pair in each.test[0]]
        assert len(each.causes) == 50
        for name, (_, tasks) in (("dev", each.dev), ("test", each.test)):
            assert {task.id.rpartition("-")[0] for task in tasks} == {f"capability-{name}"}


def test_a_lab_with_other_data_has_computed_nothing_yet(tmp_path: Path) -> None:
    from dataclasses import replace

    whole = planted_lab("simple", 0, tmp_path)
    few = replace(whole, steer=whole.steer[:3])
    before = [setting.steering.args[2] for setting in few.grains("GrAInS", few.paper)]  # type: ignore[attr-defined]
    other = replace(few, steer=whole.steer[3:6])
    after = [setting.steering.args[2] for setting in other.grains("GrAInS", few.paper)]  # type: ignore[attr-defined]
    assert not torch.equal(before[0], after[0])
    again = [setting.steering for setting in few.grains("elsewhere", few.paper)]
    assert again == [setting.steering for setting in few.grains("GrAInS", few.paper)]  # to be measured once


def test_further_examples_are_new_prompts_about_the_steering_facts(tmp_path: Path) -> None:
    lab = planted_lab("simple", 0, tmp_path)
    assert len(lab.more) == 150
    facts = {pair.id.split("-")[1] for pair in lab.steer}
    assert {pair.id.split("-")[1] for pair in lab.more} == facts
    assert not {pair.prompt for pair in lab.more} & {pair.prompt for pair in lab.steer}
    dev_and_test = {pair.id.split("-")[1] for part in (lab.dev, lab.test) for pair in part[0]}
    assert not facts & dev_and_test
    assert lab.example(51).encoded.ids.tolist() == lab.model.encode(lab.more[1].prompt).ids.tolist()


# --- boxes


def test_the_box_of_every_cell_is_where_its_object_is_painted() -> None:
    objects = {prompt.asked.cell: prompt.asked for prompt in build_visual_world("simple-visual").split("steer")}
    assert len(objects) == 9
    for cell, thing in objects.items():
        left, top, right, bottom = cell_box(cell)
        inside = picture((thing,)).getbbox()
        assert inside is not None
        assert left <= inside[0] < inside[2] <= right
        assert top <= inside[1] < inside[3] <= bottom
