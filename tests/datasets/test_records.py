"""Records: bad rows, digests."""

from __future__ import annotations

from pathlib import Path

import pytest
from dataset_rows import row

from grains_ref import data
from grains_ref.datasets import truthfulqa
from grains_ref.datasets.records import Row, Where, digest, make_records

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
