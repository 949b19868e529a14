"""HumanEval: problems are read and checked, and nothing of them is run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dataset_rows import WHOLE, assert_commands_fetch_what_is_read

from grains_ref.data import RowError
from grains_ref.datasets import humaneval
from grains_ref.datasets.registry import fixture

pytestmark = pytest.mark.cpu

PROBLEM = {
    "task_id": "Invented/0",
    "prompt": "def half(x):\n",
    "canonical_solution": "    return x / 2\n",
    "test": "def check(candidate):\n    assert candidate(4) == 2\n",
    "entry_point": "half",
}


def written(folder: Path, **changes: str) -> Path:
    (folder / "test.jsonl").write_text(json.dumps(PROBLEM | changes) + "\n", encoding="utf-8")
    return folder


def test_problems_keep_their_names_and_their_white_space() -> None:
    problems = humaneval.read(fixture("humaneval"))
    assert [row.id for row in problems[:2]] == ["Invented/0", "Invented/1"]
    question = humaneval.generation(problems[0])
    assert question.prompt == question.question
    assert question.prompt.endswith('"""\n')
    assert question.references == ("    return sum(1 for s in switches if s)\n",)


def test_the_miniatures_solutions_pass_its_tests() -> None:
    for row in humaneval.read(fixture("humaneval")):
        names: dict[str, object] = {}
        exec(row["prompt"] + row["canonical_solution"] + row["test"] + f"\ncheck({row['entry_point']})\n", names)


def test_a_problem_is_not_run_when_it_is_read(tmp_path: Path) -> None:
    mark = tmp_path / "was_run"
    rows = humaneval.read(written(tmp_path, prompt=f"open({str(mark)!r}, 'w')\n\n\ndef half(x):\n"))
    assert len(rows) == 1
    assert not mark.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"canonical_solution": "return x / 2\n"}, "canonical_solution.*behind the prompt is no Python"),
        ({"entry_point": "third"}, r"entry_point.*'third' is not defined.*\['half'\]"),
        ({"test": " \n"}, "test"),
    ],
)
def test_a_problem_that_cannot_be_judged_is_refused(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(RowError, match=message):
        humaneval.read(written(tmp_path, **changes))


def test_the_command_fetches_what_is_read(tmp_path: Path) -> None:
    hub_files = [f"openai_humaneval/test-{WHOLE}", "dataset_infos.json", "README.md"]
    assert_commands_fetch_what_is_read("humaneval", {"openai/openai_humaneval": hub_files}, tmp_path)
