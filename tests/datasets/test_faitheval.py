"""FaithEval: which option the context supports, and what is rejected."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from dataset_rows import WHOLE, assert_commands_fetch_what_is_read, row, text_of

from grains_ref import data
from grains_ref.datasets import faitheval
from grains_ref.datasets.records import DatasetError
from grains_ref.datasets.registry import fixture

pytestmark = pytest.mark.cpu


def test_faitheval_takes_what_the_context_supports() -> None:
    rows = faitheval.read(fixture("faitheval"))
    for r in rows:  # every fourth row labels its options 1 to 4 and gives a letter as the key
        assert faitheval.pair(r).chosen == r["choices"]["text"]["ABCDE".index(r["answerKey"])]
    assert rows[1]["choices"]["label"][0] == "1"
    turned = row(**(rows[0].fields | {"choices": {"label": list("DCBA"), "text": list("wxyz")}, "answer": "y"}))
    assert faitheval.pair(turned).chosen == "y"  # the key is B, the third label
    lettered = {"choices": {"label": list("ABCD"), "text": list("wxyz")}, "answerKey": "2", "answer": "x"}
    assert faitheval.pair(row(**(rows[0].fields | lettered))).chosen == "x"  # a number counts by position, too
    assert faitheval.multiple_choice(rows[6]).label == 4
    assert len(faitheval.multiple_choice(rows[2]).choices) == 3
    assert faitheval.generation(rows[0]).references == ("Helium",)
    truth = faitheval.true_answers(fixture("faitheval") / "arc")
    assert [faitheval.pair(r, truth=truth).rejected for r in rows] == [r["choices"]["text"][0] for r in rows]
    with pytest.raises(data.RowError, match="no true answer in ARC-Challenge"):
        faitheval.pair(rows[0], truth={})
    with pytest.raises(data.RowError, match="no other option to reject"):  # the context says what is true
        faitheval.pair(rows[0], truth={rows[0]["id"]: "Helium"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answerKey": "E"}, "unknown label 'E'; expected one of A, B"),
        ({"answerKey": "3"}, "unknown label '3'"),
        ({"answer": "Wood."}, "points at 'Iron', but 'answer' is option 2"),
        ({"num of options": 4}, "is 4, but there are 2 options"),
        ({"choices": {"label": ["A"], "text": ["Iron", "Wood"]}}, "1 labels with 2 texts"),
    ],
)
def test_faitheval_refuses_labels_that_contradict(change: dict[str, object], message: str) -> None:
    basis = {"id": "x", "question": "q", "context": "c", "answerKey": "A", "task": "counterfactual"}
    choices = {"label": ["A", "B"], "text": ["Iron", "Wood"]}
    with pytest.raises(data.RowError, match=message):
        faitheval.pair(row(**(basis | {"choices": choices} | change)))


def test_faitheval_in_a_folder_of_one_task() -> None:
    one = faitheval.read(fixture("faitheval") / "inconsistent", task="inconsistent")
    assert [r.fields for r in one] == [r.fields for r in faitheval.read(fixture("faitheval"), task="inconsistent")]
    with pytest.raises(DatasetError, match=r"column 'id' is missing\. Was 'qid' meant"):
        faitheval.read(fixture("faitheval") / "inconsistent")
    with pytest.raises(DatasetError, match="has no task 'false'"):
        faitheval.read(fixture("faitheval"), task="false")


def test_faitheval_set_phrases() -> None:
    for r in faitheval.read(fixture("faitheval"), task="unanswerable"):
        pair = faitheval.pair(r)
        assert pair.chosen == "unknown"
        assert pair.rejected in r["context"]
        assert pair.rejected not in r["question"]
        assert "\nIf there is no information available from the context, " in text_of(pair.prompt)
    rows = faitheval.read(fixture("faitheval"), task="inconsistent")
    assert [faitheval.pair(r).rejected for r in rows] == [str(1901 + i) for i in range(12)]
    assert "unknown" in faitheval.ACCEPTED["unanswerable"]
    known = row(qid="u", question="Who?", context="c", answers=["Unknown", "Notre Dame"], task="unanswerable")
    assert faitheval.pair(known).rejected == "Notre Dame"  # which holds "not", but not as a word
    with pytest.raises(data.RowError, match="no answer to reject"):
        faitheval.pair(row(question="Who?", context="nothing is said.", answers=["unknown"], task="unanswerable"))


def test_the_commands_fetch_each_task_into_its_own_folder(tmp_path: Path) -> None:
    hub_files = {repository.id: [f"data/test-{WHOLE}"] for repository in faitheval.REPOSITORIES.values()}
    hub_files["allenai/ai2_arc"] = []
    for name in ("ARC-Challenge", "ARC-Easy"):
        for split in ("train", "validation", "test"):
            hub_files["allenai/ai2_arc"].append(f"{name}/{split}-{WHOLE}")
    assert_commands_fetch_what_is_read("faitheval", hub_files, tmp_path)


def test_a_task_is_not_read_from_another_ones_folder(tmp_path: Path) -> None:
    shutil.copytree(fixture("faitheval") / "unanswerable", tmp_path / "unanswerable")
    with pytest.raises(DatasetError, match="inconsistent: no such file or folder"):
        faitheval.read(tmp_path, task="inconsistent")  # the two have the same columns
