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
)  # fmt: skip

BUGS = bugs_of("selection", ROWS)
WITHOUT_BUG = selection_with(right_choice)
