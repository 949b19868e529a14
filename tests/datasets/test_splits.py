"""Splits: appendix A.1's sizes, nothing in two parts, and the same questions in the same part however they are read."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grains_ref.datasets import faitheval, mmhal, spa_vl, toxigen, truthfulqa
from grains_ref.datasets.records import DatasetError, Row, Where
from grains_ref.datasets.registry import fixture
from grains_ref.datasets.splits import Keys, Split, own_split, paper_split, question_key, release_split_which_leaks

pytestmark = pytest.mark.cpu


def rows_of(keys: list[list[str]], name: str = "row") -> list[Row]:
    return [Row(f"{name}-{i}", Where("made/up", i + 1), {"keys": some, "i": i}) for i, some in enumerate(keys)]


def keys_of(row: Row) -> list[str]:
    return row["keys"]


def shared_keys(split: Split[Row], *, keys: Keys[Row]) -> set[str]:
    """Keys that occur in more than one part."""
    count: Counter[str] = Counter()
    for part in (split.steering, split.dev, split.test):
        count.update({key for item in part for key in keys(item)})
    return {key for key, n_parts in count.items() if n_parts > 1}


def questions(n: int) -> list[Row]:
    return rows_of([[f"question {i}"] for i in range(n)])


@pytest.mark.parametrize(("n", "sizes"), [(817, (50, 77, 690)), (1000, (50, 95, 855)), (7000, (50, 695, 6255))])
def test_sizes_of_appendix_a1(n: int, sizes: tuple[int, int, int]) -> None:
    cut = paper_split(questions(n), keys=keys_of, seed=0)
    assert (len(cut.steering), len(cut.dev), len(cut.test)) == sizes


def test_sizes_where_a_dataset_has_splits_of_its_own() -> None:
    train = rows_of([[f"train {i}"] for i in range(896)])
    test = rows_of([[f"test {i}"] for i in range(94)])
    cut = own_split(train, test, keys=keys_of, seed=0)
    assert (len(cut.steering), len(cut.dev), len(cut.test)) == (50, 846, 94)


@settings(max_examples=20)
@given(
    st.lists(st.lists(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), min_size=1, max_size=2), min_size=12, max_size=40),
    st.integers(0, 5),
)
def test_nothing_shares_a_key_across_parts_and_nothing_is_lost(keys: list[list[str]], seed: int) -> None:
    rows = rows_of(keys)
    try:
        cut = paper_split(rows, keys=keys_of, n=3, seed=seed)
    except DatasetError:
        return
    parts = [cut.steering, cut.dev, cut.test]
    assert sorted(row.id for part in parts for row in part) == sorted(row.id for row in rows)
    assert len(cut.steering) == 3
    for i, part in enumerate(parts):  # the brute-force meaning: no two rows of different parts have a key in common
        for other in parts[i + 1 :]:
            assert not any(set(keys_of(a)) & set(keys_of(b)) for a in part for b in other)
    assert shared_keys(cut, keys=keys_of) == set()
    assert not cut.leaks


def test_a_split_depends_on_questions_and_seed_alone() -> None:
    rows = questions(60)
    mixed = random.Random(3).sample(rows, len(rows))
    cut = paper_split(rows, keys=keys_of, n=10, seed=4)
    again = paper_split(mixed, keys=keys_of, n=10, seed=4)
    assert again.record() == cut.record()
    other = paper_split(rows, keys=keys_of, n=10, seed=5)
    assert {row.id for row in other.steering} != {row.id for row in cut.steering}
    assert other.record()["digests"] != cut.record()["digests"]
    fewer = paper_split(rows, keys=keys_of, n=6, seed=4)
    assert fewer.steering == cut.steering[:6]
    assert [row["i"] for row in cut.test] != sorted(row["i"] for row in cut.test)  # a prefix is a random sample


def test_every_row_has_the_same_chance_to_steer() -> None:
    rows = questions(20)
    drawn = [row["i"] for seed in range(150) for row in paper_split(rows, keys=keys_of, n=5, seed=seed).steering]
    assert all(16 < drawn.count(i) < 60 for i in range(20))  # expected 37.5, standard deviation 5.3


def test_groups_too_large_for_a_part_go_on_to_the_next() -> None:
    rows = rows_of([["big"]] * 30 + [[f"q{i}"] for i in range(20)])
    for seed in range(8):
        cut = paper_split(rows, keys=keys_of, n=10, seed=seed)
        assert len(cut.steering) == 10
        assert sum(row["keys"] == ["big"] for row in cut.test) == 30
    with pytest.raises(DatasetError, match="50 examples give 20 for steering"):
        paper_split(rows, keys=keys_of, n=30, seed=0)


def test_too_few_rows_are_refused() -> None:
    for size in (0, 9, 10, 11):
        with pytest.raises(DatasetError, match="smaller n, or more data"):
            paper_split(questions(size), keys=keys_of, n=10, seed=0)
    with pytest.raises(DatasetError, match="smaller n, or more data"):
        own_split(questions(3), rows_of([["question 0"]]), keys=keys_of, n=2, seed=0)
    with pytest.raises(DatasetError, match="3 examples are fewer than the 50"):
        release_split_which_leaks(questions(3))
    for n in (0, -2):
        with pytest.raises(DatasetError, match=f"^{n} examples for steering were asked for"):
            paper_split(questions(30), keys=keys_of, n=n, seed=0)
        with pytest.raises(DatasetError, match="at least 1 is needed"):
            own_split(questions(30), rows_of([["test"]]), keys=keys_of, n=n, seed=0)
        with pytest.raises(DatasetError, match="at least 1 is needed"):
            release_split_which_leaks(questions(30), n=n)  # items[:-2] would be 28 of them


def test_training_rows_that_repeat_a_test_row_are_left_out_with_their_group() -> None:
    train = rows_of([["a"], ["b", "x"], ["c"], ["x"], ["d"]], "train")
    cut = own_split(train, rows_of([["b"]], "test"), keys=keys_of, n=1, seed=0)
    assert {row.id for row in cut.left_out} == {"train-1", "train-3"}  # the second through the first
    assert len(cut.dev) == 2
    assert cut.record()["sizes"]["left_out"] == 2


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Is it  flat?", "is it flat", True),
        ("“Is it flat?”", "Is it flat!", True),
        ("Is it flat?", "Is it fat?", False),
        ("Ünïcode", "ünïcode", True),
        ("???", "!!!", False),
        ("Is 3 < 4?", "Is 3 > 4?", False),
    ],
)
def test_questions_are_the_same_but_for_case_space_and_marks_around(one: str, other: str, same: bool) -> None:
    assert (question_key(one) == question_key(other)) is same


def test_both_configurations_of_truthfulqa_are_cut_alike() -> None:
    cuts = [truthfulqa.split(fixture("truthfulqa"), config=c, n=4, seed=2) for c in truthfulqa.CONFIGS]
    parts = [[[row["question"] for row in part] for part in (cut.steering, cut.dev, cut.test)] for cut in cuts]
    assert parts[0] == parts[1] == parts[2]
    assert [len(part) for part in parts[0]] == [4, 1, 7]


def test_the_release_split_says_that_it_leaks() -> None:
    for cut, keys in (
        (truthfulqa.split(fixture("truthfulqa"), kind="release", n=4), truthfulqa.keys),
        (faitheval.split(fixture("faitheval"), kind="release", n=4), faitheval.keys),
    ):
        assert (len(cut.steering), len(cut.dev), len(cut.test)) == (4, 0, 12)
        assert cut.steering == cut.test[:4]
        assert cut.leaks
        assert (cut.record()["kind"], cut.record()["leaks"]) == ("release", True)
        assert len(shared_keys(cut, keys=keys)) == 4
    with pytest.raises(DatasetError, match="no split of the kind 'papr'"):
        truthfulqa.split(fixture("truthfulqa"), kind="papr", n=4)
    for module in (toxigen, mmhal):
        with pytest.raises(DatasetError, match="the released code"):
            module.split(fixture("mmhal"), kind="release")  # type: ignore[attr-defined]


def test_toxigen_keeps_its_own_test_set_and_drops_the_statement_that_is_in_both() -> None:
    cut = toxigen.split(fixture("toxigen"), n=4)
    assert (len(cut.steering), len(cut.dev), len(cut.test), len(cut.left_out)) == (4, 9, 8, 1)
    assert cut.left_out[0]["text"] == "people from the valley sing well"
    assert all(row.id.startswith("test") for row in cut.test)
    assert shared_keys(cut, keys=toxigen.keys) == set()
    with pytest.raises(DatasetError, match="two splits are needed"):
        toxigen.split(fixture("toxigen") / "annotated" / "test-00000-of-00001.parquet", n=2)


def test_toxigen_statements_are_cut_by_pairs_and_replies_among_toxic_rows() -> None:
    pairs = toxigen.statement_split(fixture("toxigen"), n=2)
    assert len(pairs.steering) == 2
    parts = (pairs.steering, pairs.dev, pairs.test)
    texts = [text for part in parts for pair in part for text in (pair.chosen, pair.rejected)]
    assert len(set(texts)) == len(texts)
    replies = toxigen.reply_split(fixture("toxigen"), n=2)
    assert (len(replies.steering), len(replies.dev), len(replies.test)) == (2, 4, 3)
    assert all(toxigen.is_toxic(row) for part in (replies.steering, replies.dev, replies.test) for row in part)


def test_spa_vl_keeps_a_picture_and_a_question_in_one_part(tmp_path) -> None:  # type: ignore[no-untyped-def]
    rows = spa_vl.read(fixture("spa_vl"), pictures=tmp_path)
    for seed in range(6):
        cut = paper_split(rows, keys=spa_vl.keys, n=4, seed=seed)
        part_of = {row.id: part for part in ("steering", "dev", "test") for row in getattr(cut, part)}
        assert part_of["validation-000005"] == part_of["validation-000006"]  # one picture
        assert part_of["validation-000001"] == part_of["validation-000012"]  # one question


def test_mmhal_steers_on_vtis_rows_and_tests_on_all_questions() -> None:
    cut = mmhal.split(fixture("mmhal"), n=4, seed=1)
    assert (len(cut.steering), len(cut.dev), len(cut.test)) == (4, 4, 8)
    assert all("h_value" in row.fields for row in (*cut.steering, *cut.dev))
    assert not {row.id for row in cut.steering} & {row.id for row in cut.dev}
    assert [row["question_type"] for row in cut.test] == list(mmhal.QUESTION_TYPES)
    assert shared_keys(cut, keys=mmhal.keys) == set()
    assert mmhal.split(fixture("mmhal"), n=4, seed=2).steering != cut.steering
    with pytest.raises(DatasetError, match="8 rows are fewer than the 50"):
        mmhal.split(fixture("mmhal"))
    with pytest.raises(DatasetError, match=r"holds no hallucination_vti_demos\.jsonl"):
        mmhal.split(fixture("mmlu"))
