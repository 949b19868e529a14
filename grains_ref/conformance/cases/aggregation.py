"""Cases of aggregation, eq. (5) and (6): eigen-gaps, signs, scales, and shifts without a direction."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from grains_ref.conformance.cases.common import Case, ResultKind, bf16, grid, numbered, spoilt
from grains_ref.conformance.cases.generated import by_rule


def _aggregation(
    number: int,
    comment: str,
    flags: str,
    delta_pos: np.ndarray,
    delta_neg: np.ndarray,
    kills: str = "",
    result: ResultKind = "valid",
) -> Case:
    inputs = {"delta_pos": bf16(delta_pos), "delta_neg": bf16(delta_neg)}
    return numbered("aggregation", number, comment, flags, inputs, kills, result)


def spiked(name: str, n: int, layers: int, width: int, *, mean: int = 16, scores: Sequence[int] = ()) -> np.ndarray:
    """Shifts with one strong component per layer, (N, L, d), all whole numbers up to 128.

    shift = score of the example * direction of the layer + noise + mean of the layer; scores seeded or given.
    """
    numbers = random.Random(name)

    def vector(size: int, reach: int) -> np.ndarray:
        return np.array([numbers.randrange(-reach, reach + 1) for _ in range(size)])

    def layer() -> np.ndarray:
        given = np.array(scores) if len(scores) else vector(n, 6)
        noise = np.stack([vector(width, 3) for _ in range(n)])
        return given[:, None] * vector(width, 5) + noise + vector(width, mean)

    return np.stack([layer() for _ in range(layers)], axis=1).astype(np.float64)


HADAMARD = np.array([[(-1) ** (i & j).bit_count() for j in range(16)] for i in range(16)])


def with_gap(extra: int, layers: int = 3) -> np.ndarray:
    """Shifts (8, layers, 17) whose first two eigenvalues are 1024 + extra^2 and 1024, in multiples of 8.

    Scores and directions are rows of a Hadamard matrix, so everything is exact: gap = extra^2 / (1024 + extra^2).
    Layers differ in the rows they take; a third component has 1/16 of the variance of the second.
    """
    D = np.zeros((8, layers, 17))
    for layer in range(layers):
        scores = HADAMARD[:8, :8][:, 1 + layer : 4 + layer]  # (8, 3), columns without mean, orthogonal
        directions = np.zeros((3, 17))
        directions[:, :16] = HADAMARD[3 * layer + 1 : 3 * layer + 4] * np.array([[8], [8], [2]])
        directions[0, 16] = extra
        D[:, layer] = scores @ directions + (directions[0] + 2 * directions[1]) / 4
    return D


def _walsh(number: int, comment: str, width: int) -> Case:
    """Shifts with a flat spectrum, by a rule instead of numbers."""
    rules: dict[str, dict[str, Any]] = {
        f"delta_{side}": {"rule": "walsh", "n": 50, "layers": 1, "width": width, "begin": begin}
        for side, begin in (("pos", 1), ("neg", 101))
    }
    inputs = {name: by_rule(**rule) for name, rule in rules.items()}
    case = numbered("aggregation", number, comment, "FlatSpectrum", inputs, "randomised_solver", "valid")
    return replace(case, generated=rules)


_around_zero = np.array([[-1.0], [1.0], [-2.0], [2.0]])[:, :, None] * grid("aggregation-mirror", 2, 5, reach=8, step=1)
_across = np.zeros((4, 2, 5))  # scores +-1 along the first axis, the mean along the second
_across[:, :, 0], _across[:, :, 1] = np.array([[1], [-1], [1], [-1]]), 3.0
_large_mean = {sign: grid(f"aggregation-008m{sign}", 1, 2, 13, reach=120, step=1) for sign in "+-"}
_constant = np.tile(grid("aggregation-constant", 1, 3, 5), (6, 1, 1))
_alike = spiked("aggregation-015b", 7, 2, 13)
_one_weak_layer = spiked("aggregation-weak-layer", 7, 3, 13)
_one_weak_layer[:, 1] = 0
_seven_shifts = spiked("aggregation-025", 7, 2, 5)

CASES = (
    _aggregation(1, "Seven examples, three layers, width thirteen", "Basic",
                 spiked("aggregation-001+", 7, 3, 13), spiked("aggregation-001-", 7, 3, 13),
                 "mean_shift largest_entry_positive no_sign_rule sign_reversed sum_of_sides v_pos_alone "
                 "shifts_normalised features_standardised last_example_left_out scaled_by_singular_value"),
    _aggregation(2, "Three examples, fewer than the width", "Basic",
                 spiked("aggregation-002+", 3, 2, 13), spiked("aggregation-002-", 3, 2, 13),
                 "uncentred mean_added majority_positive difference_reversed layers_side_by_side longest_shift "
                 "centred_together half_centred first_example_left_out scaled_by_mean_projection"),
    _aggregation(3, "Nineteen examples, more than the width", "Basic",
                 spiked("aggregation-003+", 19, 3, 5), spiked("aggregation-003-", 19, 3, 5),
                 "uncentred second_component majority_positive difference_reversed shifts_normalised first_shift "
                 "centred_over_both features_reversed signed_by_first_example scaled_by_mean_projection"),
    _aggregation(4, "An eigen-gap of one half", "EigenGap", with_gap(32), with_gap(32)[:, ::-1],
                 "mean_shift mean_added sign_reversed v_pos_alone features_standardised solver_stopped_early "
                 "sketch_of_two_columns centred_by_first_example signed_by_last_example scaled_by_mean_length"),
    # The direction is still defined in every dtype, but a solver needs its full number of iterations.
    _aggregation(5, "An eigen-gap of 0.06", "EigenGap", with_gap(8), with_gap(8)[:, ::-1],
                 "no_sign_rule neg_signed_by_pos sides_pooled solver_stopped_early median_shift last_component "
                 "sketch_of_two_columns centred_by_first_example first_example_left_out first_example_twice"),
    _aggregation(6, "An eigen-gap of a thousandth", "SmallEigenGap", with_gap(1), with_gap(1)[:, ::-1],
                 result="acceptable"),
    _aggregation(7, "An eigenvalue of multiplicity two", "SmallEigenGap", with_gap(0), with_gap(0)[:, ::-1],
                 result="acceptable"),
    # Uncentred, the first component is the mean.
    _aggregation(8, "A mean far larger than the spread", "LargeMean",
                 spiked("aggregation-008+", 7, 2, 13, mean=0) / 8 + _large_mean["+"],
                 spiked("aggregation-008-", 7, 2, 13, mean=0) / 8 + _large_mean["-"],
                 "uncentred mean_shift neg_signed_by_pos v_normalised sides_pooled last_component centred_together "
                 "features_reversed first_layer_signs scaled_by_mean_length"),
    # One wrong sign does not reverse v, it replaces v by a vector at right angles.
    _aggregation(9, "Sign by the largest entry and sign by the mean differ for one side only", "SignRule",
                 spiked("aggregation-009d", 7, 1, 11), spiked("aggregation-009c", 7, 1, 11),
                 "largest_entry_positive largest_score_positive sum_of_sides sides_pooled features_standardised "
                 "first_two_components scaled_by_largest_entry first_entry_positive neg_reversed v_halved"),
    # Six weak examples against one strong one: a vote and the mean disagree.
    _aggregation(10, "A few strong examples against many weak ones", "SignRule",
                 spiked("aggregation-010+", 7, 2, 11, mean=0, scores=[-2, -3, -2, -3, -2, -3, 20]),
                 spiked("aggregation-010-", 7, 2, 11, mean=0, scores=[20, -3, -2, -3, -2, -3, -2]),
                 "second_component largest_entry_positive majority_positive one_direction_for_all_layers "
                 "shifts_normalised first_two_components scaled_by_largest_entry last_example_left_out neg_reversed "
                 "v_halved"),
    _aggregation(11, "Shifts of a millionth", "TinyValues", spiked("aggregation-011a", 7, 2, 13, mean=4) * 2.0**-24,
                 spiked("aggregation-011c", 7, 2, 13, mean=4) * 2.0**-24,
                 "mean_shift largest_score_positive sign_reversed difference_reversed one_direction_for_all_layers "
                 "eps_in_length layers_in_turn first_entry_positive l1_length v_neg_alone"),
    _aggregation(12, "Shifts of a million", "LargeValues BeyondFloat16",
                 spiked("aggregation-012a", 7, 2, 13) * 2.0**15, spiked("aggregation-012f", 7, 2, 13) * 2.0**15,
                 "second_component scaled_by_deviation mean_added v_normalised mean_of_unit_shifts centred_by_median "
                 "layers_in_turn sum_of_entries_positive l1_length v_neg_alone"),
    # Examples without a positive or negative token: they count as zero, they are not left out.
    _aggregation(13, "Some shifts are zero", "ZeroRows",
                 spiked("aggregation-013+", 11, 2, 7, mean=24) * (np.arange(11) % 3 != 1)[:, None, None],
                 spiked("aggregation-013-", 11, 2, 7, mean=24) * (np.arange(11) % 4 != 2)[:, None, None],
                 "scaled_by_deviation no_sign_rule sum_of_sides layers_side_by_side zero_shifts_left_out "
                 "solver_stopped_early centred_by_median sum_of_entries_positive first_layer_signs "
                 "v_normalised_as_a_whole"),
    _aggregation(14, "Layers of very different size", "Layers",
                 spiked("aggregation-014e", 7, 5, 11) * (2.0 ** np.arange(-6, 4, 2))[:, None],
                 spiked("aggregation-014c", 7, 5, 11) * (2.0 ** np.arange(2, -8, -2))[:, None],
                 "largest_score_positive sum_of_sides layers_side_by_side one_direction_for_all_layers "
                 "mean_of_unit_shifts centred_over_the_width layers_reversed signed_by_first_example "
                 "largest_entry_one v_normalised_as_a_whole"),
    _aggregation(15, "Both sides nearly alike: v is short", "SignRule",
                 _alike, _alike + grid("aggregation-015g", 7, 2, 13, step=0.5, reach=4),
                 "no_sign_rule v_normalised v_pos_alone median_shift first_shift centred_over_the_width "
                 "layers_reversed signed_by_last_example largest_entry_one component_of_differences"),
    _aggregation(16, "Two examples", "Basic", spiked("aggregation-016+", 2, 3, 5), spiked("aggregation-016-", 2, 3, 5),
                 "scaled_by_deviation sign_reversed neg_signed_by_pos v_pos_alone longest_shift centred_over_both "
                 "half_centred first_example_twice scaled_by_singular_value component_of_differences"),
    _aggregation(17, "One example", "Degenerate",
                 spiked("aggregation-017", 1, 2, 5), spiked("aggregation-017b", 1, 2, 5), result="invalid"),
    _aggregation(18, "All shifts equal", "Degenerate", spiked("aggregation-018", 6, 3, 5), _constant, result="invalid"),
    _aggregation(19, "All shifts zero", "Degenerate ZeroRows", np.zeros((6, 3, 5)), spiked("aggregation-019", 6, 3, 5),
                 result="invalid"),
    _aggregation(20, "The shifts of one layer are zero", "Degenerate ZeroRows", _one_weak_layer,
                 spiked("aggregation-020", 7, 3, 13), result="invalid"),
    _aggregation(21, "Shifts that cancel: there is no mean to sign by", "Degenerate", _around_zero,
                 spiked("aggregation-021", 4, 2, 5), result="invalid"),
    _aggregation(22, "A mean exactly at right angles to the component", "Degenerate", _across,
                 spiked("aggregation-022", 4, 2, 5), result="invalid"),
    _aggregation(23, "NaN in one shift", "NotANumber",
                 np.where(np.arange(7)[:, None, None] == 2, np.nan, spiked("aggregation-023", 7, 2, 5)),
                 spiked("aggregation-023", 7, 2, 5), result="invalid"),
    _aggregation(24, "Shifts without a layer axis", "BadShape", spiked("aggregation-024", 7, 2, 5)[:, 0],
                 spiked("aggregation-024", 7, 2, 5)[:, 1], result="invalid"),
    # The second side one example, layer or feature short.
    _aggregation(25, "More positive shifts than negative ones", "BadShape", _seven_shifts, _seven_shifts[:-1],
                 result="invalid"),
    _aggregation(26, "More layers on one side", "BadShape", _seven_shifts, _seven_shifts[:, :-1], result="invalid"),
    _aggregation(27, "Sides of different width", "BadShape", _seven_shifts, _seven_shifts[..., :-1], result="invalid"),
    _aggregation(28, "Infinity in one shift", "NotANumber", _seven_shifts, spoilt(_seven_shifts, -math.inf),
                 result="invalid"),
    # Nothing but the whole spectrum tells the first component from 48 others: solvers that sample miss it.
    _walsh(29, "Fifty examples of width 1024", 1024),
    _walsh(30, "Fifty examples of width 4096", 4096),
)  # fmt: skip
