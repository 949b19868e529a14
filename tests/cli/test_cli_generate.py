"""`grains-ref generate`."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import PROMPT, SIMPLE, bad, good, parsed

from grains_ref import fast, grains
from grains_ref.grains import Steering
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.worlds import build_world
from grains_ref.vectors import SteeringVectors

pytestmark = pytest.mark.cpu


# --- generate


def test_generate_shows_the_base_beside_the_steered_text(vectors: Path, simple_model: HuggingFaceModel) -> None:
    prompts = [p.prompt for p in build_world("simple").split("test")[:2]]
    command = ["generate", *SIMPLE, "--vectors", vectors, "--max-new-tokens", "7"]
    command += [word for prompt in prompts for word in ("--prompt", prompt)]
    record = parsed(*command, "--lam", "6")
    with Steering(simple_model.blocks, SteeringVectors.load(vectors).v, lam=6.0):
        steered = simple_model.generate(prompts, max_new_tokens=7)
    base = simple_model.generate(prompts, max_new_tokens=7)
    assert base != steered
    assert record == [
        {"prompt": p, "unsteered": b, "steered": s} for p, b, s in zip(prompts, base, steered, strict=True)
    ]
    table = good(*command, "--lam", "6")
    assert "steered, lam 6" in table
    for row in zip(prompts, base, steered, strict=True):
        assert any(all(cell in line for cell in row) for line in table.splitlines())


@pytest.mark.parametrize(("engine", "used"), [("fast", fast.Steering), ("reference", grains.Steering)])
def test_the_engine_that_is_named_steers(
    vectors: Path, monkeypatch: pytest.MonkeyPatch, engine: str, used: type[grains.Hooks]
) -> None:
    entered: list[type] = []
    enter = grains.Hooks.__enter__

    def noted(hooks: grains.Hooks) -> grains.Hooks:
        entered.append(type(hooks))
        return enter(hooks)

    monkeypatch.setattr(grains.Hooks, "__enter__", noted)
    command = ["--vectors", vectors, "--prompt", PROMPT, "--lam", "2", "--max-new-tokens", "2", "--engine", engine]
    good("generate", *SIMPLE, *command)
    assert entered == [used]


def test_an_engine_that_does_not_exist_is_refused_before_a_model_is_loaded(vectors: Path, no_model: None) -> None:
    command = ["--vectors", vectors, "--prompt", PROMPT, "--lam", "2", "--engine", "quick"]
    assert "--engine 'quick' does not exist; there are fast, reference" in bad("generate", *SIMPLE, *command)


def test_strength_zero_changes_no_text(vectors: Path) -> None:
    command = ["generate", *SIMPLE, "--vectors", vectors, "--prompt", PROMPT, "--lam", "0", "--max-new-tokens", "7"]
    (row,) = parsed(*command)
    assert row["unsteered"] == row["steered"] != ""


@pytest.mark.parametrize("prompt", ["[INST] Is it eel ? [/INST]", "[bold] is it eel ?"])
def test_brackets_in_a_prompt_are_text(vectors: Path, prompt: str) -> None:
    command = ["--vectors", vectors, "--prompt", prompt, "--lam", "1", "--max-new-tokens", "2"]
    assert prompt in good("generate", *SIMPLE, *command)


def test_generate_refuses_vectors_of_another_model_before_the_work(
    vectors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("something was generated")

    monkeypatch.setattr(HuggingFaceModel, "generate", refuse)
    command = ["--vectors", vectors, "--prompt", PROMPT, "--lam", "1"]
    assert "pass --force" in bad("generate", "--model", "tiny:simple-seed1", *command)


def test_what_does_not_fit_the_context_is_refused(vectors: Path) -> None:
    command = ["generate", *SIMPLE, "--vectors", vectors, "--lam", "1", "--prompt", PROMPT, "--max-new-tokens", "64"]
    message = bad(*command)
    assert "prompt 0: " in message
    assert "but the model takes 64. Ask for fewer new tokens" in message
