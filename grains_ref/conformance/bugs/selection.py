"""Planted bugs of selection, eq. (3): another ranking, sign rule, tie rule or filter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from grains_ref.conformance.bugs.common import Row, bugs_of
from grains_ref.conformance.stages import Stage, Values, array, tensor

Choice: TypeAlias = Callable[[np.ndarray, np.ndarray, int], tuple[list[int], list[int]]]
"""Scores (T,), eligible (T,) bool, k -> both sets."""


def selection_with(choose: Choice) -> Stage:
    """Eq. (3) with another choice."""

    def stage(*, a: np.ndarray, eligible: np.ndarray, k: int, dtype: str) -> Values:
        pos, neg = choose(array(tensor(a, dtype)), np.asarray(eligible).astype(bool), k)
        return {"pos": [int(j) for j in pos], "neg": [int(j) for j in neg]}

    return stage


def top(a: np.ndarray, ok: np.ndarray, k: int, *, tie: int = 1, at_least: float = np.nextafter(0, 1)) -> list[int]:
    """The k tokens with the highest scores; ties go to the lower index (tie = 1) or to the higher (-1)."""
    candidates = [j for j in range(len(a)) if ok[j] and a[j] >= at_least]
    return sorted(candidates, key=lambda j: (-a[j], tie * j))[:k]


def both_signs(**mistake: Any) -> Choice:
    """`top` with a mistake, on the scores and on the negated scores."""
    return lambda a, ok, k: (top(a, ok, k, **mistake), top(-a, ok, k, **mistake))


def right_choice(a: np.ndarray, ok: np.ndarray, k: int) -> tuple[list[int], list[int]]:
    """Eq. (3)."""
    return top(a, ok, k), top(-a, ok, k)


def largest_absolute(a: np.ndarray, ok: np.ndarray, k: int) -> tuple[list[int], list[int]]:
    """The k largest |a|, then sorted by sign."""
    chosen = top(np.abs(a), ok, k)
    return [j for j in chosen if a[j] > 0], [j for j in chosen if a[j] < 0]


def argsort_ends(a: np.ndarray, ok: np.ndarray, k: int) -> tuple[list[int], list[int]]:
    """Both ends of one stable argsort, whatever the signs: reversed, ties go to the higher index."""
    order = [j for j in np.argsort(a, kind="stable").tolist() if ok[j]]
    return order[::-1][:k], order[:k]


def filtered_after(a: np.ndarray, ok: np.ndarray, k: int) -> tuple[list[int], list[int]]:
    """Top k of all tokens, and only then those that may not be selected are taken out."""
    everywhere = np.ones_like(ok)
    pos, neg = top(a, everywhere, k), top(-a, everywhere, k)
    return [j for j in pos if ok[j]], [j for j in neg if ok[j]]


def not_the(token: int) -> Choice:
    """The token (0 the first, -1 the last) is never selected."""

    def choose(a: np.ndarray, ok: np.ndarray, k: int) -> tuple[list[int], list[int]]:
        ok = ok.copy()
        ok[token] = False
        return right_choice(a, ok, k)

    return choose


def weakest_first(a: np.ndarray, ok: np.ndarray, k: int) -> tuple[list[int], list[int]]:
    """Positive (negative) tokens sorted the wrong way round, and the first k of them."""
    pos, neg = right_choice(a, ok, len(a))
    return pos[::-1][:k], neg[::-1][:k]


def rounded(a: np.ndarray, ok: np.ndarray, k: int) -> tuple[list[int], list[int]]:
    """Scores as a text file with four decimals keeps them."""
    return right_choice(a.round(4), ok, k)


def k_in_total(a: np.ndarray, ok: np.ndarray, k: int) -> tuple[list[int], list[int]]:
    """k split over both signs, the larger half to the positive."""
    return top(a, ok, (k + 1) // 2), top(-a, ok, k // 2)


def on_scores(change: Callable[[np.ndarray], np.ndarray]) -> Choice:
    """The right choice by changed scores."""
    return lambda a, ok, k: right_choice(change(a), ok, k)


def with_k(count: Callable[[np.ndarray, np.ndarray, int], int]) -> Choice:
    """The right choice of another number of tokens; count: scores, eligible, k -> number, at least one."""
    return lambda a, ok, k: right_choice(a, ok, max(count(a, ok, k), 1))


def sets_of_equal_size(a: np.ndarray, ok: np.ndarray, k: int) -> tuple[list[int], list[int]]:
    """Both sets as long as the shorter one."""
    pos, neg = right_choice(a, ok, k)
    shorter = min(len(pos), len(neg))
    return pos[:shorter], neg[:shorter]


def all_that_tie(a: np.ndarray, ok: np.ndarray, k: int) -> tuple[list[int], list[int]]:
    """Every token whose score is at least the k-th one's."""
    everything = right_choice(a, ok, len(a))
    pos, neg = ([j for j in chosen if k >= len(chosen) or abs(a[j]) >= abs(a[chosen[k - 1]])] for chosen in everything)
    return pos, neg


def one_of_each_score(a: np.ndarray, ok: np.ndarray, k: int) -> tuple[list[int], list[int]]:
    """Of tokens with equal scores the first only."""
    ok = ok & np.array([score not in a[:j] for j, score in enumerate(a)])
    return right_choice(a, ok, k)


def minus_infinity_outside(a: np.ndarray, ok: np.ndarray, k: int) -> tuple[list[int], list[int]]:
    """Ineligible scores set to -inf for both signs: the lowest of all."""
    return right_choice(np.where(ok, a, -np.inf), np.ones_like(ok), k)


def negative_side(choose: Callable[[list[int], int], list[int]]) -> Choice:
    """The right positive set; all negative tokens, strongest first, and k -> the negative set."""

    def choice(a: np.ndarray, ok: np.ndarray, k: int) -> tuple[list[int], list[int]]:
        everything = right_choice(a, ok, len(a))
        return everything[0][:k], choose(everything[1], k)

    return choice


def arranged(order: Callable[[list[int]], list[int]]) -> Choice:
    """The right sets in another order."""

    def choice(a: np.ndarray, ok: np.ndarray, k: int) -> tuple[list[int], list[int]]:
        pos, neg = right_choice(a, ok, k)
        return order(pos), order(neg)

    return choice


def without_the_other_set(a: np.ndarray, ok: np.ndarray, k: int) -> tuple[list[int], list[int]]:
    """The k highest and k lowest scores whatever their sign, none in both sets."""
    pos = top(a, ok, k, at_least=-np.inf)
    left = ok.copy()
    left[pos] = False
    return pos, top(-a, left, k, at_least=-np.inf)


def minus_zero_is_negative(a: np.ndarray, ok: np.ndarray, k: int) -> tuple[list[int], list[int]]:
    """A sign bit decides: zeros are in one of the sets."""
    negative = np.signbit(a)
    return top(a, ok & ~negative, k, at_least=0.0), top(-a, ok & negative, k, at_least=0.0)


def in_eighths(a: np.ndarray) -> np.ndarray:
    """Scores over the largest one in steps of 1/8, as a colour scale has them."""
    return np.round(8 * a / (np.abs(a).max() or 1.0))


ROWS: tuple[Row, ...] = (
    ("absolute_ranking", "the k largest absolute scores, split by sign", "Each set gets what the other leaves", "study",
     selection_with(largest_absolute)),
    ("k_plus_one", "k + 1 tokens per sign", "One token too many is masked", "study",
     selection_with(lambda a, ok, k: right_choice(a, ok, k + 1))),
    ("k_in_total", "k tokens over both signs together", "Too few tokens are masked", "ours",
     selection_with(k_in_total)),
    ("ties_to_the_higher", "ties going to the higher index", "Equal tokens: the later one is masked", "field",
     selection_with(both_signs(tie=-1))),
    ("zero_counts", "scores of exactly zero counted as both signs", "Tokens without any influence are masked", "study",
     selection_with(both_signs(at_least=0.0))),
    ("sign_not_required", "the k highest and k lowest scores whatever their sign",
     "Tokens of the wrong sign fill up short sets", "released code, row 7",
     selection_with(both_signs(at_least=-np.inf))),
    ("argsort_ends", "both ends of one argsort: no sign required, ties to the higher index among the highest",
     "Tokens of the wrong sign fill up short sets; all-zero scores select by position", "released code, row 7",
     selection_with(argsort_ends)),
    ("eligibility_ignored", "tokens that may not be selected, such as padding, selected",
     "Padding or special tokens are masked instead of words", "study",
     selection_with(lambda a, ok, k: right_choice(a, np.ones_like(ok), k))),
    ("filtered_after_ranking", "the filter on eligible tokens applied after the top k",
     "An ineligible token uses up a place", "field", selection_with(filtered_after)),
    ("indices_of_the_filtered_list", "indices counted among the eligible tokens only", "Other tokens are masked",
     "field", selection_with(lambda a, ok, k: right_choice(a[ok], np.ones(int(ok.sum()), dtype=bool), k))),
    ("sets_exchanged", "the two sets exchanged", "Steering moves toward the rejected answer", "study",
     selection_with(lambda a, ok, k: right_choice(a, ok, k)[::-1])),
    ("weakest_first", "the k weakest tokens of each sign", "The tokens that matter are left in place", "ours",
     selection_with(weakest_first)),
    ("first_token_excluded", "the first token never selected", "BOS is dropped though the paper does not say so",
     "field", selection_with(not_the(0))),
    ("last_token_excluded", "the last token never selected", "A choice the paper does not make", "field",
     selection_with(not_the(-1))),
    ("rounded_to_four_decimals", "scores rounded to four decimals before ranking",
     "Small scores tie or vanish; seen where scores are cached as text", "ours", selection_with(rounded)),
    ("released_selection", "both ends of one argsort of all tokens: no sign required, none left out",
     "Padding is selected, and short sets are filled with tokens of the wrong sign", "released code, rows 7 and 8",
     selection_with(lambda a, ok, k: argsort_ends(a, np.ones_like(ok), k))),
    # how many
    ("k_minus_one", "k - 1 tokens per sign", "One token too few is masked", "ours",
     selection_with(with_k(lambda a, ok, k: k - 1))),
    ("half_of_k", "k / 2 tokens per sign, rounded down", "Too few tokens are masked", "ours",
     selection_with(with_k(lambda a, ok, k: k // 2))),
    ("twice_k", "2 k tokens per sign", "Too many tokens are masked", "ours",
     selection_with(with_k(lambda a, ok, k: 2 * k))),
    ("k_in_percent", "k percent of the eligible tokens, rounded up", "Another number of tokens is masked", "field",
     selection_with(with_k(lambda a, ok, k: -(-k * int(ok.sum()) // 100)))),
    ("k_up_to_half", "at most half of the tokens", "Too few tokens are masked", "ours",
     selection_with(with_k(lambda a, ok, k: min(k, len(a) // 2)))),
    ("sets_of_equal_size", "both sets as long as the shorter one", "Clear tokens are left out", "ours",
     selection_with(sets_of_equal_size)),
    ("all_that_tie", "all tokens whose score is at least the k-th one's", "Ties make a set longer than k", "field",
     selection_with(all_that_tie)),
    ("k_plus_one_negative", "k + 1 negative tokens", "One token too many is masked on one side", "ours",
     selection_with(negative_side(lambda tokens, k: tokens[: k + 1]))),
    # ranking
    ("weakest_negative_first", "negative tokens ranked upward: the k weakest of them",
     "The negative tokens that matter are left in place", "ours",
     selection_with(negative_side(lambda tokens, k: tokens[::-1][:k]))),
    ("only_one_negative", "the strongest negative token only", "The negative side is weak", "ours",
     selection_with(negative_side(lambda tokens, k: tokens[:1]))),
    ("no_negative", "no negative token at all", "The negative side is lost", "ours",
     selection_with(negative_side(lambda tokens, k: []))),
    ("order_of_tokens", "the right tokens in the order of the prompt, not of their strength",
     "What takes the first few tokens takes other ones", "field", selection_with(arranged(sorted))),
    ("weakest_of_the_set_first", "the right tokens, the weakest first", "What takes the first few takes other ones",
     "field", selection_with(arranged(lambda tokens: tokens[::-1]))),
    ("absolute_scores", "absolute scores ranked: no token is ever negative", "The negative side is lost", "field",
     selection_with(on_scores(np.abs))),
    ("softmax_first", "a softmax of the scores ranked: no token is ever negative", "The negative side is lost", "field",
     selection_with(on_scores(lambda a: np.exp(a - a.max()) + 1e-300))),
    ("scores_centred", "the mean subtracted from the scores before signs are read",
     "Signs depend on the other tokens", "field", selection_with(on_scores(lambda a: a - a.mean()))),
    ("median_subtracted", "the median subtracted from the scores before signs are read",
     "Signs depend on the other tokens", "ours", selection_with(on_scores(lambda a: a - np.median(a)))),
    ("weak_scores_left_out", "scores below a tenth of the largest left out", "Sets are shorter than they should be",
     "field", selection_with(on_scores(lambda a: np.where(np.abs(a) < 0.1 * np.abs(a).max(), 0.0, a)))),
    ("below_average_left_out", "scores whose size is below the average left out", "Sets are shorter", "field",
     selection_with(on_scores(lambda a: np.where(np.abs(a) < np.abs(a).mean(), 0.0, a)))),
    ("whole_numbers", "scores cut to whole numbers before ranking", "Small scores tie or vanish", "ours",
     selection_with(on_scores(np.trunc))),
    ("scores_in_eighths", "scores ranked in steps of an eighth of the largest", "Small scores tie or vanish", "field",
     selection_with(on_scores(in_eighths))),
    ("one_of_each_score", "of tokens with equal scores the first only (scores as keys of a dict)",
     "Equal tokens are lost", "field", selection_with(one_of_each_score)),
    ("minus_zero_is_negative", "the sign bit read instead of the sign: zeros in one of the sets",
     "Tokens without any influence are masked", "ours", selection_with(minus_zero_is_negative)),
    ("ends_without_overlap", "the k highest and then the k lowest of what is left, whatever their sign",
     "Tokens of the wrong sign fill up short sets", "field", selection_with(without_the_other_set)),
    # which tokens
    ("ineligible_minus_infinity", "ineligible scores set to -inf for both signs",
     "Padding comes first among the negative tokens", "field", selection_with(minus_infinity_outside)),
    ("ineligible_only", "the filter turned round: only tokens that may not be selected", "Padding is masked", "ours",
     selection_with(lambda a, ok, k: right_choice(a, ~ok, k))),
    ("indices_from_one", "token numbers counted from 1", "The token after each is masked", "field",
     selection_with(arranged(lambda tokens: [j + 1 for j in tokens]))),
    ("indices_from_the_end", "tokens counted from the end", "Other tokens are masked", "ours",
     selection_with(lambda a, ok, k: right_choice(a[::-1], ok[::-1], k))),
    ("positive_set_twice", "the positive set for both signs", "The negative side is the positive one", "ours",
     selection_with(lambda a, ok, k: (right_choice(a, ok, k)[0],) * 2)),
)  # fmt: skip

BUGS = bugs_of("selection", ROWS)
WITHOUT_BUG = selection_with(right_choice)
