"""WritingPrompts: what counts as a story, and which titles are asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from dataset_rows import assert_commands_fetch_what_is_read

from grains_ref.datasets import writing_prompts
from grains_ref.datasets.registry import fixture
from grains_ref.datasets.writing_prompts import ask, asked, is_story

pytestmark = pytest.mark.cpu

PROMPT = "[ WP ] The lighthouse keeper finds a door in the sea ."
WORDS = [f"{first}{second}" for first in "abcdefghij" for second in "klmnopqrst"]  # a hundred different ones


def test_a_text_of_many_words_is_a_story_and_a_shorter_one_is_not() -> None:
    assert is_story(" ".join(WORDS[:80]), PROMPT)
    assert not is_story(" ".join(WORDS[:79]), PROMPT)
    assert not is_story("", PROMPT)


def test_a_text_that_goes_round_in_a_circle_is_no_story() -> None:
    """A circle of 75 words has 75 different runs of 100; one of 74 words has 74."""
    assert is_story(" ".join((WORDS[:75] * 2)[:102]), PROMPT)
    assert not is_story(" ".join((WORDS[:74] * 2)[:102]), PROMPT)
    assert not is_story(" ".join(WORDS[:10] * 20), PROMPT)


def test_the_title_again_is_no_story() -> None:
    prompt = "[ WP ] " + " ".join(WORDS)
    assert not is_story(" ".join(WORDS[:90]), prompt)
    assert is_story(" ".join(WORDS[:40] + [word.upper() + "x" for word in WORDS[:60]]), prompt)
    assert not is_story(" ".join(word.upper() for word in WORDS), prompt)  # whatever its capitals


def test_signs_without_words_are_no_story() -> None:
    for broken in ("{}\ufffd", "{}"):
        filler = [broken.format(i) for i in range(11)]
        assert not is_story(" ".join(WORDS[:89] + filler), PROMPT)
        assert is_story(" ".join(WORDS[:90] + filler[:10]), PROMPT)


def test_the_tag_is_left_out_of_what_is_asked() -> None:
    rows = writing_prompts.read(fixture("writing_prompts"))
    assert "title: The dragon opens a bakery .\n" in ask(rows[2].fields)
    assert writing_prompts.generation(rows[2]).question == "The dragon opens a bakery ."
    assert ask({"prompt": "[sic] a word"}).count("[sic]") == 1


def test_the_same_two_hundred_titles_are_asked_every_time(tmp_path: Path) -> None:
    rows = [json.dumps({"prompt": f"title {i}", "story": "It ends."}) + "\n" for i in range(500)]
    (tmp_path / "test.jsonl").write_text("".join(rows), encoding="utf-8")
    chosen = [row["prompt"] for row in asked(tmp_path)]
    assert len(set(chosen)) == 200
    assert chosen == [row["prompt"] for row in asked(tmp_path)]
    assert chosen != [f"title {i}" for i in range(200)]
    assert len(asked(fixture("writing_prompts"))) == 12


def test_the_task_names_the_functions_and_the_dataset_of_this_module() -> None:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    text = Path(writing_prompts.__file__).with_suffix(".yaml").read_text(encoding="utf-8")
    task = yaml.load(text, Loader=Loader)
    assert task["dataset_path"] == writing_prompts.REPOSITORY.id
    assert task["metric_list"][0]["metric"] == writing_prompts.DATASET.harness.metric  # type: ignore[union-attr]
    for key in ("doc_to_text", "process_results"):
        module, _, name = task[key].rpartition(".")
        assert module == writing_prompts.__name__
        assert callable(getattr(writing_prompts, name))


def test_the_command_fetches_the_test_split_alone(tmp_path: Path) -> None:
    hub_files = [f"data/{split}-00000-of-00001-0f.parquet" for split in ("train", "validation", "test")]
    assert_commands_fetch_what_is_read("writing_prompts", {"euclaise/writingprompts": hub_files}, tmp_path)
