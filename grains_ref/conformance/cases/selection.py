"""Cases of selection, eq. (3): signs, ties, short sets, and tokens that may not be selected."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from grains_ref.conformance.cases.common import Case, ResultKind, bf16, numbered


def _selection(
    number: int,
    comment: str,
    flags: str,
    a: Sequence[float],
    k: int,
    kills: str = "",
    *,
    ineligible: Sequence[int] = (),
    result: ResultKind = "valid",
) -> Case:
    eligible = np.ones(len(a), dtype=np.int64)
    eligible[list(ineligible)] = 0
    inputs = {"a": bf16(a), "eligible": eligible, "k": k}
    return numbered("selection", number, comment, flags, inputs, kills, result)


_mixed = [0.5, -1.25, 2.0, 0.125, -0.375, -3.0, 1.5, 0.75, -0.0625, 1.0, -2.0]

CASES = (
    _selection(1, "Eleven scores of both signs, three of each", "Basic", _mixed, 3,
               "k_plus_one k_in_total sets_exchanged weakest_first below_average_left_out"),
    _selection(2, "One token per sign", "Basic", _mixed, 1,
               "absolute_ranking weakest_first twice_k no_negative ineligible_only"),
    # Here the largest absolute values are all negative.
    _selection(3, "Negative scores larger than all positive ones", "Basic", [0.25, -8, 0.5, -9, 0.125, -7, -6], 2,
               "absolute_ranking weakest_first k_minus_one only_one_negative weak_scores_left_out scores_in_eighths"),
    _selection(4, "Two positive scores, three asked for", "FewerThanK", [-1, 0.5, -2, -0.25, 0.75, -4, -0.5], 3,
               "sign_not_required argsort_ends k_minus_one sets_of_equal_size scores_centred"),
    _selection(5, "No positive score", "FewerThanK", [-1, -0.5, -2, -0.5, -3], 3,
               "argsort_ends k_plus_one first_token_excluded only_one_negative ends_without_overlap"),
    _selection(6, "No negative score", "FewerThanK", [1, 0.5, 2, 0.25, 3], 2,
               "k_plus_one last_token_excluded half_of_k order_of_tokens ends_without_overlap"),
    _selection(7, "All scores zero: both sets are empty", "Zeros FewerThanK", [0.0] * 7, 3,
               "argsort_ends zero_counts softmax_first minus_zero_is_negative"),
    _selection(8, "Zeros of both signs among the scores", "Zeros FewerThanK",
               [0.0, -1, 1.5, -0.0, -0.5, 2, 0.25], 6,
               "zero_counts sign_not_required k_in_percent no_negative whole_numbers minus_zero_is_negative"),
    _selection(9, "Equal positive scores across the boundary", "TieBreakLowIndex", [0.5, 2, 1, 1, -1, 1, 3], 3,
               "ties_to_the_higher last_token_excluded half_of_k all_that_tie indices_from_one"),
    _selection(10, "Equal negative scores across the boundary", "TieBreakLowIndex", [-0.5, -2, -1, -1, 1, -1, -3], 3,
               "absolute_ranking ties_to_the_higher twice_k all_that_tie indices_from_one"),
    _selection(11, "All scores equal", "TieBreakLowIndex", [0.75] * 7, 2,
               "k_in_total first_token_excluded k_in_percent weakest_of_the_set_first whole_numbers"),
    _selection(12, "Equal within the set, in the order of their index", "TieBreakLowIndex",
               [2, 0.5, 2, -1, 2, -1, 4], 4,
               "k_in_total ties_to_the_higher k_up_to_half order_of_tokens one_of_each_score"),
    _selection(13, "More asked for than there are tokens", "FewerThanK", [1, -2, 1], 5,
               "sign_not_required argsort_ends k_up_to_half weakest_of_the_set_first one_of_each_score"),
    _selection(14, "A single token", "OneToken FewerThanK", [0.5], 1,
               "argsort_ends first_token_excluded sets_of_equal_size scores_centred positive_set_twice"),
    # Padding with the largest scores of all.
    _selection(15, "Ineligible tokens with the largest scores", "Ineligible", [9, -8, 7, 1, -0.5, 2, -1, 0.25], 2,
               "eligibility_ignored filtered_after_ranking indices_of_the_filtered_list released_selection "
               "weak_scores_left_out",
               ineligible=[0, 1, 2]),
    _selection(16, "The last token is not eligible", "Ineligible", [0.5, -1, 0.25, 2, -0.5, 3], 2,
               "eligibility_ignored filtered_after_ranking weakest_negative_first absolute_scores "
               "ineligible_minus_infinity", ineligible=[5]),
    _selection(17, "Ineligible tokens between eligible ones", "Ineligible", [1, 5, -1, 2, -6, -2, 3, 0.5, -3], 3,
               "eligibility_ignored filtered_after_ranking indices_of_the_filtered_list released_selection "
               "indices_from_the_end",
               ineligible=[1, 4]),
    _selection(18, "The strongest tokens are the first and the last", "Basic", [5, 1, -1, 2, -2, -5, 6], 2,
               "first_token_excluded last_token_excluded k_plus_one_negative absolute_scores indices_from_the_end"),
    _selection(19, "The most negative tokens are the first and the last", "Basic", [-5, 1, -1, 2, -2, 5, -6], 2,
               "sets_exchanged first_token_excluded k_plus_one_negative softmax_first positive_set_twice"),
    _selection(20, "Fewer eligible tokens than k", "Ineligible FewerThanK", [1, -1, 2, -2, 3, -3, 4], 4,
               "argsort_ends indices_of_the_filtered_list released_selection median_subtracted",
               ineligible=[1, 2, 4, 6]),
    _selection(21, "No token is eligible", "Ineligible FewerThanK", [1, -1, 2], 2,
               "eligibility_ignored ineligible_minus_infinity ineligible_only", ineligible=[0, 1, 2]),
    # Differences of one part in 128: one step of bfloat16, but far above float32's.
    _selection(22, "Scores one step of bfloat16 apart", "Basic", [1 + j / 128 for j in (3, 1, 4, 0, 5)] + [-0.5], 3,
               "sign_not_required argsort_ends first_token_excluded median_subtracted scores_in_eighths"),
    _selection(23, "Scores of a millionth", "TinyValues", [j * 2.0**-20 for j in (3, -1, 4, -5, 9, 2, -6)], 2,
               "sets_exchanged rounded_to_four_decimals weakest_negative_first below_average_left_out"),
    _selection(24, "Scores of a million", "LargeValues BeyondFloat16", [j * 2.0**20 for j in (3, -1, 4, -5, 9, 2, -6)],
               2, "absolute_ranking k_plus_one k_in_total sets_exchanged weakest_first last_token_excluded"),
    # The errors of a score are those of the largest: beside 256, bfloat16 does not tell 1 from 1 + 1/128.
    _selection(25, "Scores that bfloat16 cannot tell apart beside the largest", "NearTie",
               [256, 1, 1 + 2**-7, 1 - 2**-8, -1, 0.5], 2, result="acceptable"),
    _selection(26, "Scores that float32 cannot tell apart beside the largest", "NearTie",
               [j * 2.0**-24 for j in (3, -128, -129, -127, 1)] + [-256, 2], 2, result="acceptable"),
    _selection(27, "A score is NaN", "NotANumber", [1, math.nan, -1, 2], 2, result="invalid"),
    _selection(28, "A score that may not be selected is NaN", "NotANumber Ineligible", [1, math.nan, -1, 2], 1,
               ineligible=[1], result="invalid"),
    _selection(29, "No tokens asked for", "BadArgument", [1, -1, 2], 0, result="invalid"),
    Case("selection-030", "selection", "One entry of `eligible` too many", ("BadShape",), "invalid",
         {"a": bf16([1, -1, 2]), "eligible": np.ones(4, dtype=np.int64), "k": 1}, ()),
    _selection(31, "An infinite score", "NotANumber", [1, math.inf, -1, 2], 2, result="invalid"),
    _selection(32, "A score of minus infinity that may not be selected", "NotANumber Ineligible", [1, -math.inf, 2], 1,
               ineligible=[1], result="invalid"),
    _selection(33, "A negative number of tokens", "BadArgument", [1, -1, 2], -1, result="invalid"),
)  # fmt: skip
