"""Pairs written as a file and read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grains_ref import data
from grains_ref.datasets import spa_vl, truthfulqa
from grains_ref.datasets.pair_files import write_pairs
from grains_ref.datasets.registry import fixture

pytestmark = pytest.mark.cpu


def test_written_pairs_are_read_back_the_same(tmp_path: Path) -> None:
    rows = spa_vl.read(fixture("spa_vl"), pictures=tmp_path / "pictures")
    pairs = [spa_vl.pair(r) for r in rows]
    digest = write_pairs(pairs, tmp_path / "pairs.jsonl")
    back = data.read_pairs(tmp_path / "pairs.jsonl")
    assert back.digest == digest == data.content_digest(pairs)
    assert json.loads((tmp_path / "pairs.jsonl").read_text().splitlines()[0])["image"].startswith("pictures/")
    other = tmp_path / "elsewhere"
    other.mkdir()
    assert write_pairs(pairs, other / "pairs.jsonl") == digest  # absolute paths, the same content
    mc = [truthfulqa.pair(r, chat=False) for r in truthfulqa.read(fixture("truthfulqa"))]
    write_pairs(mc, tmp_path / "mc.jsonl")
    assert [(p.choices, p.label) for p in data.read_pairs(tmp_path / "mc.jsonl").pairs] == [
        (p.choices, p.label) for p in mc
    ]
    with pytest.raises(data.RowError, match="already names"):
        write_pairs([mc[0], mc[0]], tmp_path / "twice.jsonl")
    assert not list(tmp_path.glob("twice*"))
    with pytest.raises(ValueError, match="no pairs"):
        write_pairs([], tmp_path / "none.jsonl")
