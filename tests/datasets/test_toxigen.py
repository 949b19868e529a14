"""ToxiGen: ratings, groups, and the three recipes of a pair."""

from __future__ import annotations

from pathlib import Path

import pytest
from dataset_rows import WHOLE, assert_commands_fetch_what_is_read, row, text_of

from grains_ref import data
from grains_ref.datasets import toxigen
from grains_ref.datasets.registry import fixture

pytestmark = pytest.mark.cpu


def test_toxigen_labels_are_the_sum_of_two_ratings() -> None:
    rows = toxigen.read(fixture("toxigen"), split="train")
    expected = [False, False, True, False, True, False, True]
    assert [toxigen.is_toxic(r) for r in rows[:7]] == expected
    assert [toxigen.pair(r).chosen for r in rows[:3]] == ["No", "No", "Yes"]
    assert all(p.choices[p.label or 0] == p.chosen for p in map(toxigen.pair, rows))
    assert not toxigen.is_toxic(row(toxicity_ai=2.5, toxicity_human=3.0))  # exactly 5.5 does not exceed it
    with pytest.raises(data.RowError, match="mean rating"):
        toxigen.is_toxic(row(toxicity_ai=2.5, toxicity_human=30.0))
    question = toxigen.multiple_choice(rows[2])
    assert (question.choices, question.label, question.group) == (("No", "Yes"), 1, "valley")
    assert text_of(question.prompt).endswith("Statement: 'people from the valley cannot be trusted with a boat'")


def test_toxigen_names_a_group_alike_in_both_splits() -> None:
    names = {"physical_dis", "folks with physical disabilities", "Physical disabilities"}
    assert {toxigen.group(row(target_group=name)) for name in names} == {"people with physical disabilities"}
    assert toxigen.group(row(target_group="native_american")) == toxigen.group(
        row(target_group="native american/indigenous folks")
    )
    assert toxigen.group(row(target_group="Mexican folks")) == "Mexican people"
    assert toxigen.group(row(target_group="black/african-american folks")) == toxigen.group(row(target_group="black"))


def test_toxigen_statements_pair_one_group_and_use_no_row_twice() -> None:
    rows = toxigen.read(fixture("toxigen"), split="train")
    pairs = toxigen.statements(rows, seed=0)
    assert len(pairs) == 6  # three toxic rows in each of two groups
    by_text = {r["text"]: r for r in rows}
    for pair in pairs:
        good, bad = by_text[pair.chosen], by_text[pair.rejected]
        assert (toxigen.is_toxic(good), toxigen.is_toxic(bad)) == (False, True)
        assert toxigen.group(good) == toxigen.group(bad)
        assert toxigen.group(good) in text_of(pair.prompt)
    used = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    assert len(set(used)) == len(used)
    assert toxigen.statements(rows, seed=1) != pairs
    toxic = next(r for r in rows if toxigen.is_toxic(r))
    assert toxigen.reply(toxic).rejected == toxic["text"]
    with pytest.raises(data.RowError, match="is not toxic"):
        toxigen.reply(rows[0])


def test_the_command_fetches_what_is_read_of_190_megabytes(tmp_path: Path) -> None:
    folders = [f"{name}-{WHOLE}" for name in ("annotated/test", "annotated/train", "annotations/train", "train/train")]
    tables = ["annotated_test.csv", "annotated_train.csv", "raw_annotations.csv", "toxigen.csv"]
    assert_commands_fetch_what_is_read("toxigen", {"toxigen/toxigen-data": folders + tables}, tmp_path)
    assert toxigen.DATASET.commands[0] == "hf auth login"
