"""The command with pictures: a random LLaVA in a folder, data with an image column."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from grains_ref.cli import app, look
from grains_ref.data import read_pairs
from grains_ref.evaluation.measures import margins
from grains_ref.grains import PRESETS, Steering, attribute, eligible_tokens, fit, select
from grains_ref.models import EncodedPicture, HuggingFaceModel, load
from grains_ref.tiny_models.random_vision_models import noise_picture, random_gemma3, random_llava
from grains_ref.vectors import SteeringVectors

pytestmark = pytest.mark.cpu

PROMPT = "<image> Is the moon made of cheese? A:"
N_TOKENS = {(112, 84): 37, (84, 112): 39, (101, 75): 37}  # of the pictures of the trial at load, and of 3.png


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def parsed(*arguments: str | Path) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and its data: pairs and tasks with pictures of different sizes."""
    folder = tmp_path_factory.mktemp("vision")
    model = random_llava()
    for part in (model.hf, model.tokenizer, model.family.processor):
        part.save_pretrained(folder / "llava")
    for i in range(9):
        noise_picture(50 + 17 * i, 90 - 5 * i, seed=i).save(folder / f"{i}.png")
    answers = [("No, it is rock.", "Yes."), ("It is round.", "It is flat, people say.")]
    rows = [
        {"image": f"{i}.png", "prompt": PROMPT, "chosen": answers[i % 2][0], "rejected": answers[i % 2][1]}
        for i in range(8)
    ]
    write(folder / "steer.jsonl", rows[:4])
    write(folder / "dev.jsonl", [*rows[4:], {"prompt": "Q: Is it? A:", "chosen": "No.", "rejected": "Yes."}])
    write(folder / "tasks.jsonl", [{"image": "8.png", "prompt": PROMPT, "answer": "Rome"}])
    return folder


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def llava(folder: Path) -> HuggingFaceModel:
    return load(folder / "llava")


@pytest.fixture(scope="module")
def vectors(folder: Path, llava: HuggingFaceModel) -> Path:
    path = folder / "v.safetensors"
    summary = parsed("fit", "--model", folder / "llava", "--pairs", folder / "steer.jsonl", "--out", path)
    assert summary["hyper_parameters"]["k"] == 20  # the paper's for a vision-language model
    assert summary["selected_by_kind"].keys() >= {"image", "text"}
    return path


def test_fit_reads_the_image_column(folder: Path, llava: HuggingFaceModel, vectors: Path) -> None:
    pairs = read_pairs(folder / "steer.jsonl").pairs
    expected = fit(llava, [llava.example(p.prompt, p.chosen, p.rejected, p.image) for p in pairs], PRESETS["paper_vlm"])
    torch.testing.assert_close(SteeringVectors.load(vectors).v.double(), expected.v, rtol=1e-5, atol=1e-6)


def test_the_preset_is_that_of_the_family(folder: Path, tmp_path: Path) -> None:
    model = random_gemma3()
    for part in (model.hf, model.tokenizer, model.family.processor):
        part.save_pretrained(tmp_path / "gemma")
    options = ("--prompt", PROMPT, "--chosen", "No.", "--rejected", "Yes.", "--image", folder / "1.png")
    assert parsed("attribute", "--model", tmp_path / "gemma", *options)["hyper_parameters"]["m"] == 10
    record = parsed("attribute", "--model", tmp_path / "gemma", *options, "--preset", "paper_llm", "--m", "2")
    assert (record["hyper_parameters"]["k"], record["hyper_parameters"]["m"]) == (3, 2)


def test_attribute_scores_words_and_patches_and_draws_them(
    folder: Path, tmp_path: Path, llava: HuggingFaceModel
) -> None:
    options = ("--model", folder / "llava", "--prompt", PROMPT, "--chosen", "No.", "--rejected", "Yes.", "--k", "3")
    options += ("--image", folder / "3.png")
    record = parsed("attribute", *options, "--overlay", tmp_path / "overlay.png")
    example = llava.example(PROMPT, "No.", "Yes.", folder / "3.png")
    assert isinstance(example.encoded, EncodedPicture)
    hp = PRESETS["paper_vlm"]
    assert record["scores_nats"] == pytest.approx(attribute(llava, example, hp).a.tolist(), rel=1e-5, abs=1e-6)
    assert record["kinds"] == list(example.encoded.kinds)
    where = [patch and [patch.view, patch.row, patch.column, list(patch.box), 0] for patch in example.encoded.patches]
    assert [patch and list(patch.values()) for patch in record["patches"]] == where
    with Image.open(tmp_path / "overlay.png") as drawn:
        assert drawn.width > 600
    words = run("attribute", *options).output
    assert "image tokens" in words
    assert "base(0,0)" in words


def test_two_pictures_are_drawn_each_with_its_own_scores(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, tuple[Any, Any]] = {}
    monkeypatch.setattr(
        "grains_ref.report.overlay.overlay_figure",
        lambda path, picture, panels, title: drawn.update({path.name: (picture.size, panels[0])}),
    )
    options = ("--model", folder / "llava", "--prompt", f"<image> {PROMPT}", "--chosen", "No.", "--rejected", "Yes.")
    options += ("--image", folder / "3.png", "--image", folder / "1.png", "--overlay", tmp_path / "scores.png")
    record = parsed("attribute", *options)
    assert list(drawn) == ["scores-1.png", "scores-2.png"]
    for i, (size, panel) in enumerate(drawn.values()):
        assert size == Image.open(folder / f"{(3, 1)[i]}.png").size
        own = [j for j, patch in enumerate(record["patches"]) if patch and patch["picture"] == i]
        assert [j for j, patch in enumerate(panel.patches) if patch] == own
        assert all(patch.box[2] <= size[0] and patch.box[3] <= size[1] for patch in panel.patches if patch)
    assert {"1:", "2:"} == set(re.findall(r"\b(\d:)(?:base|tile\d|newline)\(", run("attribute", *options).output))


def test_an_overlay_without_boxes_is_refused_before_the_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grains_ref.models.vision_families.LlavaNext.patches", lambda self, size: [])
    monkeypatch.setattr("grains_ref.models.vision_families.LlavaNext.n_tokens", lambda self, size: N_TOKENS[size])
    options = ("--model", folder / "llava", "--prompt", PROMPT, "--chosen", "No.", "--rejected", "Yes.")
    options += ("--image", folder / "3.png")
    assert "where this model's image tokens look is not known" in refused(
        "attribute", *options, "--overlay", tmp_path / "scores.png"
    )
    assert not (tmp_path / "scores.png").exists()
    assert "image tokens" in run("attribute", *options).output  # everything else works


def test_all_pictures_of_one_prompt_and_one_of_each(folder: Path, llava: HuggingFaceModel, vectors: Path) -> None:
    options = ("--model", folder / "llava", "--vectors", vectors, "--lam", "0", "--max-new-tokens", "3")
    paths = [folder / "1.png", folder / "3.png"]
    both = (f"<image> {PROMPT}",)
    images: tuple[Any, ...] = ("--image", paths[0], "--image", paths[1])
    (row,) = parsed("generate", *options, "--prompt", *both, *images)
    assert [row["unsteered"]] == llava.generate(both, images=[paths], max_new_tokens=3)
    rows = parsed("generate", *options, "--prompt", PROMPT, "--prompt", PROMPT, *images)
    assert [row["unsteered"] for row in rows] == llava.generate([PROMPT] * 2, images=paths, max_new_tokens=3)


@pytest.mark.parametrize("modality", ["image", "text"])
def test_attribute_narrows_the_choice_to_one_modality(folder: Path, llava: HuggingFaceModel, modality: str) -> None:
    options = ("--prompt", PROMPT, "--chosen", "No.", "--rejected", "Yes.", "--image", folder / "3.png")
    record = parsed("attribute", "--model", folder / "llava", *options, "--eligible", modality)
    encoded = llava.encode(PROMPT, folder / "3.png")
    expected = select(
        torch.tensor(record["scores_nats"]), k=20, eligible=eligible_tokens(encoded, (modality,))  # type: ignore[arg-type]
    )  # fmt: skip
    assert record["positive"] == list(expected.pos)
    assert {record["kinds"][j] == "image" for j in record["positive"] + record["negative"]} == {modality == "image"}


def test_a_large_picture_is_not_printed_token_by_token(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "MANY_IMAGE_TOKENS", 5)
    options = ("--prompt", PROMPT, "--chosen", "No.", "--rejected", "Yes.", "--image", folder / "3.png", "--k", "2")
    words = run("attribute", "--model", folder / "llava", *options).output
    assert "... " in words
    assert sum(words.count(f"base({r},{c})") for r in range(3) for c in range(3)) <= 8  # selected: here and in the list


def test_eval_and_sweep_score_with_the_pictures(folder: Path, llava: HuggingFaceModel, vectors: Path) -> None:
    pairs = read_pairs(folder / "dev.jsonl").pairs
    model = ("--model", folder / "llava")
    steered = ("--vectors", vectors, "--lam", "3")
    record = parsed("eval", *model, "--pairs", folder / "dev.jsonl", *steered, "--tasks", folder / "tasks.jsonl")
    with Steering(llava.blocks, SteeringVectors.load(vectors).v, lam=3.0):
        expected = margins(llava, pairs)
    assert record["steered"]["preference accuracy"]["value"] == sum(m > 0 for m in expected) / 5
    options = ("--pairs", folder / "steer.jsonl", "--dev", folder / "dev.jsonl", "--lam", "3")
    tried = parsed("sweep", *model, *options)["tried"]
    assert [(one["lam"], one["k"]) for one in tried] == [(0.0, None), (3.0, 20)]
    assert tried[1]["dev_accuracy"] == record["steered"]["preference accuracy"]["value"]


def test_the_same_words_with_another_picture_are_another_prompt(folder: Path) -> None:
    options = ("--model", folder / "llava", "--pairs", folder / "steer.jsonl", "--lam", "1")
    assert run("sweep", *options, "--dev", folder / "dev.jsonl").exit_code == 0
    assert "4 prompts are in both" in refused("sweep", *options, "--dev", folder / "steer.jsonl")


def test_generate_takes_one_picture_per_prompt_or_one_for_all(
    folder: Path, llava: HuggingFaceModel, vectors: Path
) -> None:
    options = ("--model", folder / "llava", "--vectors", vectors, "--lam", "3", "--max-new-tokens", "4")
    prompts = ("--prompt", PROMPT, "--prompt", "What is <image> this? A:")
    rows = parsed("generate", *options, *prompts, "--image", folder / "1.png", "--image", folder / "5.png")
    with Steering(llava.blocks, SteeringVectors.load(vectors).v, lam=3.0):
        alone = [
            llava.generate([prompt], images=[folder / name], max_new_tokens=4)[0]
            for prompt, name in ((PROMPT, "1.png"), ("What is <image> this? A:", "5.png"))
        ]
    assert [row["steered"] for row in rows] == alone
    assert len(parsed("generate", *options, *prompts, "--image", folder / "1.png")) == 2
    three = ("--image", folder / "1.png") * 3
    assert "2 prompts and 3 pictures; give one --image per --prompt" in refused("generate", *options, *prompts, *three)


def test_what_does_not_fit_together_is_refused_with_the_next_step(folder: Path, tmp_path: Path) -> None:
    options = ("--model", folder / "llava", "--chosen", "No.", "--rejected", "Yes.")
    assert "no place for its picture; write <image>" in refused(
        "attribute", *options, "--prompt", "What is it?", "--image", folder / "1.png"
    )
    assert "no picture was given" in refused("attribute", *options, "--prompt", PROMPT)
    assert "give one with --image" in refused(
        "attribute", *options, "--prompt", "What is it?", "--overlay", tmp_path / "o.png"
    )
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    assert "broken.png" in refused("attribute", *options, "--prompt", PROMPT, "--image", tmp_path / "broken.png")
    text = ("attribute", "--model", "tiny:simple-seed0", "--chosen", "a", "--rejected", "b", "--prompt", "Q : <image>")
    assert "is a text model (llama) and cannot take an image" in refused(*text, "--image", folder / "1.png")


def test_a_row_whose_picture_cannot_be_read_is_named_or_skipped(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("not a picture")
    good = [json.loads(line) for line in (folder / "steer.jsonl").read_text().splitlines()]
    rows = [row | {"image": str(folder / row["image"])} for row in good] + [good[0] | {"image": "broken.png"}]
    write(tmp_path / "pairs.jsonl", rows)
    command = (
        "fit",
        "--model",
        folder / "llava",
        "--pairs",
        tmp_path / "pairs.jsonl",
        "--out",
        tmp_path / "v.safetensors",
    )
    message = refused(*command)
    assert "pairs.jsonl:5" in message
    assert "broken.png" in message
    assert parsed(*command, "--skip-bad-rows")["skipped"] == 1
