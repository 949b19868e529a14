"""MMMU: lists that are text, and pictures in their places."""

from __future__ import annotations

from pathlib import Path

import pytest
from dataset_rows import WHOLE, assert_commands_fetch_what_is_read, row, text_of

from grains_ref import data
from grains_ref.datasets import mmmu
from grains_ref.datasets.records import DatasetError
from grains_ref.datasets.registry import fixture

pytestmark = pytest.mark.cpu


def test_mmmu_reads_lists_that_are_text_and_never_runs_them(tmp_path: Path) -> None:
    rows = mmmu.read(fixture("mmmu"), subjects=["Music"], pictures=tmp_path)
    question = mmmu.multiple_choice(rows[0], chat=False)
    assert question.options == ("Q1", "the second's", "Q3", "Q4")
    assert (question.choices, question.label) == (("A", "B", "C", "D"), 1)
    assert question.prompt == (
        "<image> Which bar is the tallest?\n\n(A) Q1\n(B) the second's\n(C) Q3\n(D) Q4\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert text_of(mmmu.multiple_choice(rows[0]).prompt).startswith("<image 1> Which bar")  # the template places it
    free = [mmmu.generation(r, chat=False) for r in rows]
    assert [q.references for q in free] == [("B",), ("A",), ("3.50",), ("Q1", "first quarter")]
    assert text_of(free[2].prompt).startswith("<image>\nHow high is the bar?\n\nAnswer the question using")
    basis = dict(rows[0].fields)
    for change, message in (
        ({"options": "[__import__('os').getcwd(), 'b']"}, "is not the text of a list"),
        ({"options": "['a']"}, "1 options; expected 2"),
        ({"answer": "E"}, "unknown label 'E'"),
        ({"answer": "?"}, "withheld"),
        ({"answer": "AB"}, "unknown label 'AB'"),
        ({"image_1": None}, "is null, but the text names <image 1>"),
    ):
        with pytest.raises(data.RowError, match=message):
            mmmu.multiple_choice(row(**(basis | change)))


def test_mmmu_marks_every_picture_once_in_the_order_of_the_pictures(tmp_path: Path) -> None:
    rows = mmmu.read(fixture("mmmu"), subjects=["Music"], pictures=tmp_path)
    question = mmmu.multiple_choice(rows[1], max_pictures=3, chat=False)
    assert text_of(question.prompt).startswith("Which note follows <image>? Mark it in <image 1>.\n\n(A) <image>\n(B) ")
    assert question.images == (rows[1]["image_1"], rows[1]["image_2"], rows[1]["image_3"]) == mmmu.pictures_of(rows[1])
    three = {f"image_{i}": Path(f"{i}.png") for i in (1, 2, 3)}
    mixed = row(**(rows[1].fields | three | {"question": "See <image 2>, not <image 1>.", "options": "['a', 'b']"}))
    assert mmmu.pictures_of(mixed) == (Path("3.png"), Path("2.png"), Path("1.png"))
    shown = mmmu.generation(mixed, chat=False)
    assert text_of(shown.prompt).startswith("<image>\nSee <image>, not <image>.\n")
    with pytest.raises(DatasetError, match="has 3 pictures, the model takes 1"):
        mmmu.multiple_choice(rows[1])
    dev = mmmu.read(fixture("mmmu"), split="dev", subjects=["Music"], pictures=tmp_path)
    assert mmmu.multiple_choice(rows[0], dev=dev).n_shots == 0  # every example brings a picture
    after = mmmu.multiple_choice(rows[0], dev=dev, max_pictures=4, chat=False)
    assert (after.n_shots, len(after.images), text_of(after.prompt).count("<image>")) == (3, 4, 4)
    assert text_of(after.prompt).startswith("<image> Dev question 0?")
    assert "directly. A\n\n<image> Dev question 1?" in text_of(after.prompt)


def test_the_command_leaves_out_the_questions_without_answers(tmp_path: Path) -> None:
    hub_files = []
    for subject in mmmu.SUBJECTS:
        hub_files += [f"{subject}/{split}-{WHOLE}" for split in ("dev", "test", "validation")]
    assert_commands_fetch_what_is_read("mmmu", {"MMMU/MMMU": hub_files}, tmp_path)
