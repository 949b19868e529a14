"""TruthfulQA: from the miniature to records, with the rows that are easily misread."""

from __future__ import annotations

import shutil
from pathlib import Path

import datasets
import pytest
from dataset_rows import WHOLE, assert_commands_fetch_what_is_read, row

from grains_ref import data
from grains_ref.datasets import truthfulqa
from grains_ref.datasets.records import DatasetError
from grains_ref.datasets.registry import fixture
from grains_ref.datasets.rejection_policy import at_random, first, hardest

pytestmark = pytest.mark.cpu


def test_truthfulqa_labels_come_from_the_labels_not_from_the_order() -> None:
    rows = truthfulqa.read(fixture("truthfulqa"))
    mc2 = truthfulqa.multiple_choice(rows[0], form="mc2")
    assert [choice for choice, right in zip(mc2.choices, mc2.labels, strict=True) if right] == [
        "The lamp does not change",
        "Nothing happens",
    ]
    assert mc2.labels == (True, False, False, False, True)
    with pytest.raises(ValueError, match="2 choices are right"):
        _ = mc2.label
    assert truthfulqa.multiple_choice(rows[0]).label == 0
    with pytest.raises(DatasetError, match="no form 'mc3'"):
        truthfulqa.multiple_choice(rows[0], form="mc3")
    with pytest.raises(DatasetError, match="read the config multiple_choice"):
        truthfulqa.multiple_choice(truthfulqa.read(fixture("truthfulqa"), config="generation")[0])
    with pytest.raises(DatasetError, match="no form 'mc1'; there are multiple_choice, generation, binary"):
        truthfulqa.read(fixture("truthfulqa"), config="mc1")


def test_truthfulqa_pairs_by_policy() -> None:
    rows = truthfulqa.read(fixture("truthfulqa"))
    one = truthfulqa.pair(rows[0], policy=first)
    assert (one.chosen, one.rejected) == ("The lamp does not change", "It burns brighter")
    assert (one.choices[one.label or 0], one.label) == (one.chosen, 0)
    by_length = hardest(lambda items: [float(len(response)) for _, response in items])
    assert truthfulqa.pair(rows[3], policy=by_length).rejected == "Other umbrellas"
    drawn = {seed: [truthfulqa.pair(r, policy=at_random(seed=seed)).rejected for r in rows] for seed in range(5)}
    assert len({tuple(some) for some in drawn.values()}) > 1
    assert {at_random(seed=0)("p", ["a", "b"], str(i)) for i in range(20)} == {"a", "b"}  # each key its own draw
    alone = [truthfulqa.pair(r, policy=at_random(seed=1)).rejected for r in reversed(rows)]
    assert alone[::-1] == drawn[1]  # what is drawn for a question does not depend on the others
    binary = truthfulqa.read(fixture("truthfulqa"), config="binary")
    assert [truthfulqa.pair(r).chosen for r in binary] == [truthfulqa.pair(r).chosen for r in rows]
    assert [truthfulqa.pair(r).label for r in binary] == [r["label"] for r in binary]
    free = truthfulqa.read(fixture("truthfulqa"), config="generation")
    assert truthfulqa.pair(free[0], policy=first).chosen == "The lamp does not change"
    assert truthfulqa.pair(free[0]).label is None


def test_the_rebuilt_binary_questions_have_the_right_answer_in_either_place() -> None:
    questions = [truthfulqa.multiple_choice(r, form="binary") for r in truthfulqa.read(fixture("truthfulqa"))]
    assert {q.label for q in questions} == {0, 1}
    assert all(len(q.choices) == 2 for q in questions)
    official = truthfulqa.read(fixture("truthfulqa"), config="binary")
    assert [truthfulqa.multiple_choice(r, form="binary").label for r in official[:2]] == [1, 0]


def test_truthfulqa_references_are_sentences_and_no_comment_is_right() -> None:
    rows = truthfulqa.read(fixture("truthfulqa"), config="generation")
    one = truthfulqa.generation(rows[0])
    assert one.references == ("The lamp does not change.", "Nothing happens.", "I have no comment.")
    assert one.wrong[0] == "It burns brighter."
    assert truthfulqa.generation(rows[9]).references.count("I have no comment.") == 1  # it is there already
    assert one.group == "Objects"
    stripped = truthfulqa.generation(
        row(question="?", correct_answers=[" Yes ", "No.", "", " "], incorrect_answers=["x"])
    )
    assert stripped.references == ("Yes.", "No.", "I have no comment.")
    with pytest.raises(data.RowError, match="'incorrect_answers': is empty"):
        truthfulqa.generation(row(question="?", correct_answers=["Yes"], incorrect_answers=[" "]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [1, 1]}, "all are 1"),
        ({"choices": ["a", "b", "c"], "labels": [1, 1, 0]}, "2 choices are marked right"),
        ({"labels": [0, 0]}, "all are 0"),
        ({"labels": [1]}, "2 choices with 1 labels"),
        ({"choices": ["a", "a"], "labels": [1, 0]}, "no false answer"),
    ],
)
def test_truthfulqa_refuses_labels_that_do_not_fit(change: dict[str, object], message: str) -> None:
    bad = row(question="q", mc1_targets={"choices": ["a", "b"], "labels": [1, 0]} | change)
    with pytest.raises(data.RowError, match=message) as error:
        truthfulqa.pair(bad)
    assert (error.value.line, str(error.value.path)) == (3, "made/up")


@pytest.mark.parametrize(
    "place",
    [
        "multiple_choice/validation/0000.parquet",  # what the advised command leaves in its folder
        "binary/multiple_choice/validation/0000.parquet",  # beside the other configurations
        "binary/validation-00000-of-00001.parquet",
        "validation.parquet",
    ],
)
def test_the_binary_questions_are_read_wherever_they_were_downloaded_to(place: str, tmp_path: Path) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(fixture("truthfulqa") / "binary" / "multiple_choice" / "validation" / "0000.parquet", path)
    rows = truthfulqa.read(tmp_path, config="binary")
    assert [row["label"] for row in rows[:2]] == [1, 0]
    assert [row.fields for row in rows] == [row.fields for row in truthfulqa.read(path, config="binary")]


def test_the_binary_questions_may_have_their_labels_by_name(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "choices": datasets.List(datasets.Value("string")),
            "label": datasets.ClassLabel(names=["A", "B"]),
        }
    )
    rows = [{"question": "Is it?", "choices": ["yes", "no"], "label": i} for i in (1, 0)]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "validation.parquet")
    assert [truthfulqa.pair(row).chosen for row in truthfulqa.read(tmp_path, config="binary")] == ["no", "yes"]


def test_a_folder_without_the_binary_questions_is_refused_with_how_to_get_them(tmp_path: Path) -> None:
    shutil.copytree(fixture("truthfulqa") / "multiple_choice", tmp_path / "multiple_choice")
    with pytest.raises(DatasetError, match=r"column 'choices' is missing.*hf download EleutherAI/truthful_qa_binary"):
        truthfulqa.read(tmp_path, config="binary")


def test_the_commands_fetch_what_is_read(tmp_path: Path) -> None:
    hub_files = {
        "truthfulqa/truthful_qa": [f"generation/validation-{WHOLE}", f"multiple_choice/validation-{WHOLE}"],
        "EleutherAI/truthful_qa_binary": ["multiple_choice/validation/0000.parquet"],  # of the converted branch
    }
    assert_commands_fetch_what_is_read("truthfulqa", hub_files, tmp_path)
    assert truthfulqa.DATASET.commands[1].endswith("--local-dir FOLDER/binary --revision refs/convert/parquet")
