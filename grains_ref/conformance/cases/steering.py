"""Cases of steering, eq. (7) and (8): batches, strengths, and states that cancel or are zero."""

from __future__ import annotations

import math

import numpy as np

from grains_ref.conformance.cases.common import Case, ResultKind, bf16, grid, numbered, spoilt
from grains_ref.conformance.toy import WIDTH


def _steering(
    number: int,
    comment: str,
    flags: str,
    h: np.ndarray,
    v: np.ndarray,
    lam: float,
    kills: str = "",
    result: ResultKind = "valid",
) -> Case:
    inputs = {"h": bf16(h), "v": bf16(v), "lam": float(lam)}
    return numbered("steering", number, comment, flags, inputs, kills, result)


def stream(name: str, batch: int, tokens: int, width: int = WIDTH) -> np.ndarray:
    """States (B, T, d) whose tokens have norms from about 1/2 to 16 times another's, and every row other ones."""
    sizes = np.array([[2.0 ** ((3 * row + 2 * token) % 6 - 2) for token in range(tokens)] for row in range(batch)])
    return grid(name, batch, tokens, width) * sizes[:, :, None]


_v = grid("steering-v", WIDTH)
_with_zero_rows = stream("steering-011", 2, 5)
_with_zero_rows[0, 1] = _with_zero_rows[1, 4] = 0.0
_cancelling = stream("steering-012", 2, 3)
_cancelling[0, 2] = _cancelling[1, 0] = -2.0 * _v  # lam = 2
_first_axis, _second_axis = np.eye(WIDTH)[0], np.eye(WIDTH)[1]
_nearly = stream("steering-013", 2, 3)
_nearly[0, 1] = _nearly[1, 2] = 2.0**-24 * _second_axis - _first_axis  # lam = 1: only 2^-24 is left
_very_nearly = stream("steering-021", 2, 3)
_very_nearly[0, 1] = _very_nearly[1, 2] = 2.0**-28 * _second_axis - _first_axis
_against = np.stack([-_v * (1 + j / 4) for j in range(1, 7)]).reshape(2, 3, WIDTH) + grid("against", 2, 3, WIDTH) / 4

CASES = (
    _steering(1, "A batch of two, five tokens, lambda 1", "Basic Batch", stream("steering-001", 2, 5), _v, 1.0,
              "lam_times_ten interpolated batch_row_0_only last_token_steered_only released_steering_with_tensors "
              "lam_over_batch h_left_out ratio_squared norm_over_rows"),
    # |lam v| is near |h|: what is done to the norm shows.
    _steering(2, "A strength of the size of h", "Strength Batch", stream("steering-002", 3, 7), _v, 2.5,
              "norm_over_sequence norm_over_tokens_and_width norm_over_batch norm_not_restored l1_norm "
              "released_steering released_steering_with_tensors ratio_squared first_token_unsteered"),
    _steering(3, "Lambda zero leaves h as it is", "Strength", stream("steering-003", 2, 5), _v, 0.0,
              "zero_lam_replaced lam_on_both unit_norm norm_of_v norm_of_last_token norms_one_token_late mean_norm"),
    _steering(4, "A negative lambda", "Strength", stream("steering-004", 2, 5), _v, -1.5,
              "lam_squared lam_reversed strength_relative_to_h batch_row_0_only lam_absolute added_to_unit_h "
              "signs_of_v ratio_rooted last_token_unsteered"),
    _steering(5, "The paper's strength for Llama, 6", "Strength", stream("steering-005", 2, 5), _v, 6.0,
              "norm_over_sequence norms_of_row_0 largest_entry_norm lam_reversed released_steering lam_up_to_one "
              "signs_of_v ratio_rooted last_token_unsteered"),
    _steering(6, "A single token, as in decoding with a cache", "OneToken Batch",
              stream("steering-006", 3, 1), _v, 0.75,
              "norm_over_sequence lam_reversed batch_row_0_only lam_whole lam_over_root_of_width lam_over_batch "
              "largest_features_of_v ratio_within_limits last_row_unsteered"),
    _steering(7, "One row, one token", "OneToken", stream("steering-007", 1, 1), _v, 0.5,
              "norm_over_sequence norm_not_restored strength_relative_to_h lam_whole v_reversed v_one_feature_late "
              "ratio_reversed ratio_within_limits last_row_unsteered"),
    # As many tokens as features: axes that are exchanged still fit.
    _steering(8, "As many tokens as features", "Batch", stream("steering-008", 2, 7, 7), grid("steering-008v", 7), 0.5,
              "norm_over_sequence norm_not_restored lam_squared applied_twice lam_halved added_to_unit_h v_centred "
              "only_growing first_token_only"),
    _steering(9, "A long v and a weak lambda", "Strength", stream("steering-009", 2, 5), 16 * _v, 0.125,
              "lam_times_ten v_normalised_first applied_twice last_token_steered_only lam_times_root_of_width "
              "lam_on_both largest_features_of_v only_growing first_token_only"),
    _steering(10, "A short v and a strong lambda", "Strength", stream("steering-010", 2, 5), _v / 16, 40.0,
              "norm_over_tokens_and_width largest_entry_norm v_normalised_first batch_row_0_only "
              "last_token_steered_only lam_up_to_one orthogonal_part_only ratio_on_v_only"),
    _steering(11, "Tokens that are zero stay zero", "ZeroRows Batch", _with_zero_rows, _v, 1.5,
              "norm_over_sequence norm_over_tokens_and_width norm_over_batch norms_of_row_0 norm_not_restored "
              "zero_rows_steered orthogonal_part_only ratio_on_v_only eps_under_the_root"),
    # 12, 13 and 21 are exact cancellations by design: every dtype holds their numbers and the sums of these, so that no
    # rounding decides. Noise in the inputs would: it turns a token in proportion to 1 / `left`, its margin.
    _steering(12, "Where h is exactly -lam v no direction is left, and h is kept", "Cancellation", _cancelling, _v, 2.0,
              "norm_over_tokens_and_width lam_times_ten lam_squared strength_relative_to_h cancelled_to_zero "
              "cancelled_to_nan released_steering ratio_on_h_only eps_under_the_root"),
    _steering(13, "Where exactly 2^-24 of h + lam v is left the norm is still restored", "Cancellation TinyValues",
              _nearly, _first_axis, 1.0,
              "norm_over_batch l1_norm largest_entry_norm only_shrinking eps_in_denominator lam_doubled "
              "component_replaced ratio_on_h_only eps_of_1e-6 eps_of_1e-2"),
    # |h| near 1,000 times entries near 300 is far beyond 65,504.
    _steering(14, "Norms whose product with an entry overflows float16", "LargeValues Batch",
              256 * grid("steering-014", 2, 3, WIDTH), 128 * _v, 1.0,
              "norms_of_row_0 lam_times_ten v_normalised_first last_token_steered_only product_overflows v_reversed "
              "component_replaced first_token_unsteered"),
    _steering(15, "A v of zero leaves h as it is", "Zeros", stream("steering-015", 2, 3), np.zeros(WIDTH), 2.0,
              "interpolated unit_norm norm_of_v norm_of_last_token norms_one_token_late mean_norm"),
    _steering(16, "v turned against h shortens it before the norm is restored", "Strength Batch",
              _against, _v, 1.0,
              "norm_over_batch only_shrinking interpolated applied_twice released_steering_with_tensors "
              "v_one_feature_late h_left_out"),
    _steering(17, "A v of another width", "BadShape", stream("steering-017", 2, 5), grid("steering-017v", 5), 1.0,
              result="invalid"),
    _steering(18, "A v of width one, which would broadcast", "BadShape", stream("steering-018", 2, 5), np.ones(1), 1.0,
              result="invalid"),
    _steering(19, "NaN in v", "NotANumber", stream("steering-019", 2, 5),
              np.where(np.arange(WIDTH) == 4, np.nan, _v), 1.0, result="invalid"),
    _steering(20, "Infinity in v", "NotANumber", stream("steering-020", 2, 5),
              np.where(np.arange(WIDTH) == 4, np.inf, _v), 1.0, result="invalid"),
    _steering(21, "Where exactly 2^-28 of h + lam v is left the norm is still restored",
              "Cancellation TinyValues BeyondFloat16", _very_nearly, _first_axis, 1.0,
              "eps_in_denominator lam_halved lam_doubled lam_over_root_of_width lam_times_root_of_width v_centred "
              "ratio_reversed norm_over_rows eps_of_1e-2"),
    _steering(22, "NaN in h", "NotANumber", spoilt(stream("steering-022", 2, 5), math.nan), _v, 1.0, result="invalid"),
    _steering(23, "Infinity in h", "NotANumber", spoilt(stream("steering-023", 2, 5), math.inf), _v, 1.0,
              result="invalid"),
    _steering(24, "Lambda is NaN", "NotANumber", stream("steering-024", 2, 5), _v, math.nan, result="invalid"),
    _steering(25, "Lambda is infinite", "NotANumber", stream("steering-025", 2, 5), _v, math.inf, result="invalid"),
    _steering(26, "States without a batch axis", "BadShape", stream("steering-026", 1, 5)[0], _v, 1.0,
              result="invalid"),
    _steering(27, "A vector per token", "BadShape", stream("steering-027", 1, 5), np.tile(_v, (5, 1)), 1.0,
              result="invalid"),
)  # fmt: skip
