"""`grains-ref datasets`: what is printed and written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from grains_ref.cli import app
from grains_ref.data import read_pairs
from grains_ref.datasets.registry import DATASETS, fixture

pytestmark = pytest.mark.cpu

RECIPES = [
    (name, recipe) for name, dataset in DATASETS.items() if dataset.pair_rows for recipe in ("", *dataset.recipes)
]


def run(*words: str) -> tuple[int, str]:
    """Exit code and output of a command, its white space folded."""
    result = CliRunner().invoke(app, ["datasets", *words])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Four pairs of the miniatures by every recipe."""
    folder = tmp_path_factory.mktemp("pairs")
    files = {}
    for name, recipe in RECIPES:
        files[name, recipe] = folder / f"{name}-{recipe}.jsonl"
        command = ["pairs", name, "--source", "fixture", "-n", "4", "--recipe", recipe]
        code, output = run(*command, "--out", str(files[name, recipe]))
        assert code == 0, output
        assert f"4 pairs of {name}" in output
    return files


def test_every_recipe_writes_pairs_and_the_record_of_the_split(written: dict[tuple[str, str], Path]) -> None:
    for (_, recipe), path in written.items():
        record = json.loads(path.with_name(f"{path.name}.split.json").read_text())
        assert record["pairs_digest"] == read_pairs(path).digest
        assert (record["kind"], record["leaks"], record["sizes"]["steering"]) == ("paper", False, 4)
        assert record["recipe"] == recipe


def test_recipes_give_different_pairs(written: dict[tuple[str, str], Path]) -> None:
    contents = {}
    for key, path in written.items():
        contents[key] = {(pair.chosen, pair.rejected, pair.choices) for pair in read_pairs(path).pairs}
    for name, recipe in RECIPES:
        default = DATASETS[name].recipes[:1]
        is_default = recipe == "" or recipe in default
        assert (contents[name, recipe] == contents[name, ""]) == is_default, (name, recipe)


def test_every_part_of_a_split_can_be_written_but_questions_for_a_judge(tmp_path: Path) -> None:
    pairs_file = tmp_path / "pairs.jsonl"
    ids = []
    for part in ("steering", "dev"):
        code, output = run("pairs", "mmhal", "--source", "fixture", "-n", "3", "--part", part, "--out", str(pairs_file))
        assert code == 0, output
        ids += [pair.id for pair in read_pairs(pairs_file).pairs]
    assert len(ids) == len(set(ids)) == 8
    code, output = run("pairs", "mmhal", "--source", "fixture", "-n", "3", "--part", "test", "--out", str(pairs_file))
    assert code == 1
    assert "the test set of mmhal has questions for a judge" in output


def test_a_leaking_split_is_named_and_its_dev_set_is_empty(tmp_path: Path) -> None:
    command = ["pairs", "truthfulqa", "--source", "fixture", "-n", "4", "--split", "release"]
    code, output = run(*command, "--out", str(tmp_path / "p.jsonl"))
    assert (code, "this split leaks" in output) == (0, True)
    code, output = run(*command, "--part", "dev", "--out", str(tmp_path / "p.jsonl"))
    assert code == 1
    assert "the part dev of this split of truthfulqa is empty" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("truthfulqa", "--part", "train"), "there are steering, dev, test"),
        (("truthfulqa", "--policy", "hardest"), "from Python only"),
        (("truthfulqa", "--policy", "easiest"), "there are random, first and"),
        (("truthfulqa", "--split", "mine"), "there are 'paper' and 'release'"),
        (("truthfulqa", "--recipe", "mc4"), "there are multiple_choice, generation, binary"),
        (("spa_vl", "--recipe", "mc4"), "there is only one, without a name"),
        (("truthfulqa", "-n", "-3"), "at least 1 is needed"),
        (("mmhal", "-n", "0"), "at least 1 is needed"),
        (("mmlu",), "no pairs are made of mmlu; they are made of faitheval, mmhal, "),
        (("glue",), "there is no dataset named 'glue'"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    pairs_file = tmp_path / "p.jsonl"
    code, output = run("pairs", *words, "--source", "fixture", "--out", str(pairs_file))
    assert (code, message in output) == (1, True), output
    assert not list(tmp_path.glob("p.*"))


def test_bad_rows_are_named_and_the_others_written(tmp_path: Path) -> None:
    source = tmp_path / "data"
    source.mkdir()
    rows = [{"question": f"q{i}", "choices": ["yes", "no"], "label": i % 2} for i in range(30)]
    rows[7]["label"] = 2
    (source / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["pairs", "truthfulqa", "--recipe", "binary", "--source", str(source), "-n", "5", "--part", "test"]
    code, output = run(*command, "--out", str(tmp_path / "p.jsonl"))
    assert (code, "unknown label 2; expected 0 to 1" in output) == (1, True)
    code, output = run(*command, "--skip-bad-rows", "--out", str(tmp_path / "p.jsonl"))
    assert (code, "skipped:" in output) == (0, True)
    record = json.loads((tmp_path / "p.jsonl.split.json").read_text())
    assert record["pairs"] == record["sizes"]["test"] - 1
    assert len(record["skipped"]) == 1


def test_the_list_says_what_is_here_and_breaks_no_command_in_two(tmp_path: Path) -> None:
    _, output = run("list", "--source", str(fixture("mmlu").parent), "--json")
    states = json.loads(output)
    assert (states["mmlu"]["available"], states["mmmu"]["available"]) == (True, False)
    result = CliRunner().invoke(app, ["datasets", "list", "--source", str(tmp_path)], env={"COLUMNS": "40"})
    assert "CDLA-Permissive-2.0" in result.output
    lines = [line.strip() for line in result.output.splitlines()]
    assert f"get it: {DATASETS['mmmu'].commands[0]}" in lines
