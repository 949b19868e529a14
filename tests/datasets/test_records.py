"""Records: bad rows, digests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dataset_rows import row

from grains_ref import data
from grains_ref.data import content_digest
from grains_ref.datasets import records, truthfulqa
from grains_ref.datasets.pair_files import write_pairs
from grains_ref.datasets.records import Row, Where, digest, make_records
from grains_ref.datasets.splits import paper_split, release_split_which_leaks

pytestmark = pytest.mark.cpu


def test_bad_rows_are_left_out_only_when_asked() -> None:
    bad = row(question="q", choices=["a", "b"], label=2)
    good = row(question="q", choices=["a", "b"], label=1)
    with pytest.raises(data.RowError, match="unknown label 2; expected 0 to 1"):
        make_records([good, bad], truthfulqa.pair, skip_bad_rows=False)
    made, skipped = make_records([good, bad, good], truthfulqa.pair, skip_bad_rows=True)
    assert ([p.chosen for p in made], [e.field for e in skipped]) == (["b", "b"], ["label"])


def test_digests_are_of_the_content_and_the_pictures_bytes(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"1")
    one = Row("a", Where("x", 1), {"text": "t", "image": picture})
    elsewhere = tmp_path / "b.png"
    elsewhere.write_bytes(b"1")
    assert digest([one]) == digest([Row("b", Where("y", 2), {"image": elsewhere, "text": "t"})])
    elsewhere.write_bytes(b"2")
    assert digest([one]) != digest([Row("a", Where("x", 1), {"text": "t", "image": elsewhere})])
    assert digest([one, one]) != digest([one])


@pytest.mark.parametrize("given", ["pairs.jsonl", b"rows", {"a": 1}, None])
def test_a_text_or_a_table_is_no_list_of_rows(given: Any, tmp_path: Path) -> None:
    """A text is a sequence, of its letters: each would be a row."""
    for call in (
        lambda: records.make_records(given, str, skip_bad_rows=True),
        lambda: records.digest(given),
        lambda: content_digest(given),
        lambda: write_pairs(given, tmp_path / "pairs.jsonl"),
        lambda: paper_split(given, keys=lambda item: [str(item)], n=1, seed=0),
        lambda: release_split_which_leaks(given, n=1),
    ):
        with pytest.raises(TypeError, match=r" is a \w+ \(.*\); expected a list of "):
            call()


@pytest.mark.parametrize("n", ["5", 2.0, True, None])
def test_a_number_of_examples_is_a_whole_number(n: Any) -> None:
    with pytest.raises(TypeError, match="expected a whole number of examples"):
        paper_split(["a", "b"], keys=lambda item: [item], n=n, seed=0)  # type: ignore[list-item, arg-type, misc, type-var]
