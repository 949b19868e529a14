"""Selection, eq. (3)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import encoded

from grains_ref.grains import EligibleRule, Kind, eligible_tokens, select

pytestmark = pytest.mark.cpu

SCORES = st.lists(
    st.tuples(st.sampled_from([-2.0, -1.5, -1e-30, 0.0, -0.0, 1e-30, 1.5, 2.0]), st.booleans()), min_size=1
)
KINDS: list[Kind] = ["pad", "special", "template", "text", "image", "image", "text", "template", "special", "template"]


@given(tokens=SCORES, k=st.integers(1, 6))
def test_the_sets_are_what_the_definition_says(tokens: list[tuple[float, bool]], k: int) -> None:
    a, eligible = [score for score, _ in tokens], [ok for _, ok in tokens]
    got = select(torch.tensor(a, dtype=torch.float64), k=k, eligible=torch.tensor(eligible))
    for picked, sign in ((got.pos, 1), (got.neg, -1)):
        able = [j for j in range(len(a)) if eligible[j] and sign * a[j] > 0]
        assert len(picked) == min(k, len(able))
        for rank, j in enumerate(picked):  # each is the best of those that are left; among equals the first
            left = [i for i in able if i not in picked[:rank]]
            assert j == next(i for i in left if sign * a[i] == max(sign * a[i] for i in left))


def everything(n: int) -> torch.Tensor:
    return torch.ones(n, dtype=torch.bool)


def test_ties_go_to_the_lower_index() -> None:
    got = select(torch.tensor([1.0, 2, 2, 2, -3, -3, -3]), k=2, eligible=everything(7))
    assert (got.pos, got.neg) == ((1, 2), (4, 5))


def test_a_set_is_never_filled_up_with_scores_of_the_other_sign_or_zero() -> None:
    got = select(torch.tensor([0.5, 0.0, 0.2, -0.0]), k=3, eligible=everything(4))
    assert (got.pos, got.neg) == ((0, 2), ())


def test_tokens_come_strongest_first() -> None:
    got = select(torch.tensor([1.0, -1, 3, -3, 2, -2]), k=3, eligible=everything(6))
    assert (got.pos, got.neg) == ((2, 4, 0), (3, 5, 1))


def test_an_ineligible_token_is_not_selected_however_strong() -> None:
    got = select(torch.tensor([9.0, 1, -9, -1]), k=1, eligible=torch.tensor([False, True, False, True]))
    assert (got.pos, got.neg) == ((1,), (3,))


def test_infinite_scores_rank_first_and_nan_is_refused_with_its_place() -> None:
    assert select(torch.tensor([1.0, float("inf")]), k=1, eligible=everything(2)).pos == (1,)
    with pytest.raises(ValueError, match=r"tokens \[1, 3\] are NaN"):
        select(torch.tensor([1.0, float("nan"), 2, float("nan")]), k=1, eligible=everything(4))


@pytest.mark.parametrize(
    ("a", "k", "eligible"),
    [
        (torch.ones(3), 0, everything(3)),
        (torch.ones(3), 1, everything(2)),
        (torch.ones(3), 1, everything(1)),
        (torch.ones(3, 1), 1, torch.ones(3, 1, dtype=torch.bool)),
    ],
)
def test_a_mask_of_another_shape_and_a_k_below_one_are_refused(a: torch.Tensor, k: int, eligible: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="k >= 1, scores and mask of one shape"):
        select(a, k=k, eligible=eligible)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ((), [1, 2, 3, 4, 5, 6, 7, 8, 9]),  # by the letter of eq. 3: all but padding
        (("text",), [1, 2, 3, 6, 7, 8, 9]),  # table 7: everything that is not an image
        (("image",), [4, 5]),
        (("content",), [3, 4, 5, 6]),
        (("no_special",), [2, 3, 4, 5, 6, 7, 9]),
        (("not_last",), [1, 2, 3, 4, 5, 6, 7, 8]),
        (("text", "content"), [3, 6]),
        (("no_special", "not_last"), [2, 3, 4, 5, 6, 7]),
        (("text", "no_special", "not_last"), [2, 3, 6, 7]),
        (("text", "image"), []),
    ],
)
def test_each_rule_keeps_its_kinds_and_rules_narrow_each_other(
    rules: tuple[EligibleRule, ...], expected: list[int]
) -> None:
    got = eligible_tokens(encoded(torch.zeros(len(KINDS), 2), KINDS), rules)
    assert got.dtype == torch.bool
    assert got.nonzero().flatten().tolist() == expected


def test_the_last_token_is_dropped_only_on_request() -> None:
    x = encoded(torch.zeros(3, 2), ["pad", "text", "text"])
    assert eligible_tokens(x, ()).tolist() == [False, True, True]
    assert eligible_tokens(x, ("not_last",)).tolist() == [False, True, False]
