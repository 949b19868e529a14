"""Every code block of README, CONTRIBUTING and docs/ runs, or says why it does not, and prints what the page says."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import command
import pytest
from page_blocks import LANGUAGES, PAGES, ROOT, Block, blocks_of, missing_lines, run_commands, run_python, write_module
from shared import thorough

from grains_ref.cli import common
from grains_ref.data import read_pairs
from grains_ref.demo.planted import build, write_data
from grains_ref.models import load

pytestmark = pytest.mark.cpu

# Pages whose blocks another test runs, because they need more than a folder with files.
ELSEWHERE = {"docs/data.md": "tests/data/test_shapes.py"}
SLOW = {"docs/tutorial.md", "docs/porting.md"}
ROWS = {"steer": 6, "dev": 6, "test": 6, "dev_tasks": 6, "tasks": 6}


def of_pages() -> list[Any]:
    """Every page with a block, as a parameter."""
    found = []
    for path in PAGES:
        name = str(path.relative_to(ROOT))
        if name not in ELSEWHERE and blocks_of(path):
            parameter = pytest.param(path, id=name)
            found.append(thorough(parameter) if name in SLOW else parameter)
    return found


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader has it: pairs, tasks, and vectors that the first commands have made."""
    folder = tmp_path_factory.mktemp("reader")
    write_data(build("simple"), folder)
    for name, rows in ROWS.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:rows]))
    shutil.copy(folder / "steer.jsonl", folder / "pairs.jsonl")
    v, best = folder / "v.safetensors", folder / "best.safetensors"
    command.good("fit", *command.SIMPLE, "--pairs", folder / "steer.jsonl", "--out", v)
    at_blocks = ["--method", "edit_gradient", "--site", "residual", "--positions", "all"]
    command.good(
        "fit", *command.SIMPLE, "--pairs", folder / "steer.jsonl", "--out", folder / "v2.safetensors", *at_blocks
    )
    dev = ["--dev", folder / "dev.jsonl", "--lam", "0.1,0.2"]
    command.good("sweep", *command.SIMPLE, "--vectors", folder / "v2.safetensors", *dev, "--out", best)
    assert best.is_file()
    return folder


@pytest.fixture
def reader(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder to work in, with what a checkout has beside."""
    folder = tmp_path / "reader"
    shutil.copytree(files, folder)
    (folder / "tiny_models").symlink_to(ROOT / "tiny_models")
    (folder / "fixtures").symlink_to(ROOT / "fixtures")
    monkeypatch.setattr(common, "load_model", loaded_once)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    return folder


loaded_once = functools.cache(common.load_model)  # every command of a page loads the same model


class Names(dict[str, Any]):
    """What a page's Python finds: `model` and `pairs` without having made them, for pages about what follows."""

    def __missing__(self, name: str) -> Any:
        if name == "model":
            self[name] = load("tiny_models/simple-seed0")
        elif name == "pairs":
            self[name] = list(read_pairs("steer.jsonl").pairs)
        else:
            raise KeyError(name)
        return self[name]


@pytest.mark.parametrize("path", of_pages())
def test_a_page_runs_from_top_to_bottom_and_prints_what_it_says(path: Path, reader: Path) -> None:
    names = Names()
    output, section = "", -1
    for block in blocks_of(path):
        write_module(block)
    for block in blocks_of(path):
        assert block.language in LANGUAGES, f"{block.name}: a block in {block.language or 'no language'}"
        if block.language == "json":
            for text in [block.text] if block.text.startswith("{\n") else block.text.splitlines():
                json.loads(text)
        elif block.language == "text" and section == block.section and not block.reason:
            assert missing_lines(block, output) == [], block.name
        elif block.language in ("bash", "python"):
            section = -1 if block.reason else block.section
            output = "" if block.reason else run(block, names)
            if not output:
                section = -1


def run(block: Block, names: dict[str, Any]) -> str:
    return run_commands(block) if block.language == "bash" else run_python(block, names)


def test_what_other_tests_run_is_run_there() -> None:
    for page, test in ELSEWHERE.items():
        assert f'"{Path(page).name}"' in (ROOT / test).read_text(encoding="utf-8")
