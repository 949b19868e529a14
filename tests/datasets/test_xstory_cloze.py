"""XStoryCloze: the right ending is counted from 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dataset_rows import assert_commands_fetch_what_is_read

from grains_ref.data import RowError
from grains_ref.datasets import xstory_cloze
from grains_ref.datasets.registry import fixture

pytestmark = pytest.mark.cpu

STORY: dict[str, Any] = {
    "story_id": "a",
    **{f"input_sentence_{i}": f"Sentence {i}." for i in range(1, 5)},
    "sentence_quiz1": "It ends.",
    "sentence_quiz2": "It does not.",
    "answer_right_ending": 2,
}


def written(folder: Path, **changes: Any) -> Path:
    (folder / "eval.jsonl").write_text(json.dumps(STORY | changes) + "\n", encoding="utf-8")
    return folder


def test_the_ending_that_fits_is_the_one_that_the_number_names() -> None:
    first, second = (xstory_cloze.multiple_choice(row) for row in xstory_cloze.read(fixture("xstory_cloze"))[:2])
    assert first.prompt == (
        "Mira found a kite in the attic. Its tail was torn. She sewed on a new one. Then the wind came up."
    )
    assert first.choices[first.label] == "She let it fly over the field."
    assert (first.label, second.label) == (0, 1)
    assert second.choices[second.label] == "The landlady gave him a room."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer_right_ending": 0}, "answer_right_ending.*is 0; expected 1 or 2"),
        ({"answer_right_ending": 3}, "answer_right_ending.*is 3; expected 1 or 2"),
        ({"sentence_quiz2": "It ends. "}, "sentence_quiz2.*word for word"),
        ({"input_sentence_3": ""}, "input_sentence_3"),
    ],
)
def test_a_story_without_one_right_ending_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        xstory_cloze.read(written(tmp_path, **changes))


def test_the_command_fetches_the_english_stories_alone(tmp_path: Path) -> None:
    hub_files = [f"{language}/{split}/0000.parquet" for language in ("en", "eu") for split in ("eval", "train")]
    assert_commands_fetch_what_is_read("xstory_cloze", {"juletxara/xstory_cloze": hub_files}, tmp_path)
