"""Data, vectors and models for the command."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import SIMPLE, run

from grains_ref.cli import common
from grains_ref.demo import text as demo
from grains_ref.tiny_models.random_models import random_llama
from grains_ref.tiny_models.worlds import build_world


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows of the simple world's files."""
    whole, folder = tmp_path_factory.mktemp("world"), tmp_path_factory.mktemp("data")
    demo.write_data(build_world("simple"), whole)
    for name, n in (("steer", 4), ("dev", 8), ("test", 6), ("dev_tasks", 40), ("tasks", 10)):
        rows = (whole / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (folder / f"{name}.jsonl").write_text("".join(rows[:n]))
    return folder


@pytest.fixture(scope="session")
def vectors(data: Path) -> Path:
    """A vectors file that belongs to the simple model."""
    path = data / "v.safetensors"
    result = run("fit", *SIMPLE, "--pairs", data / "steer.jsonl", "--out", path, "--aggregation", "mean")
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Llama, of other width and depth."""
    folder = tmp_path_factory.mktemp("other")
    model = random_llama()
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True, scope="session")
def loaded_once() -> Iterator[None]:
    """Commands that ask for the same model in the same way share it: loading takes longer than most of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "load_model", functools.cache(common.load_model))
        yield


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what has to be refused before a model is loaded."""

    def refuse(*args: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(common, "load_model", refuse)
