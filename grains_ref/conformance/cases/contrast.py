"""Cases of contrast, eq. (4): masked tokens, baselines, padding, empty and overlapping sets."""

from __future__ import annotations

import math

import numpy as np

from grains_ref.conformance.cases.common import (
    EMBED,
    Case,
    ResultKind,
    baselines,
    grid,
    mask,
    numbered,
    prompt,
    seeded_prompt,
    spoilt,
)
from grains_ref.conformance.toy import WIDTH


def _contrast(
    number: int,
    comment: str,
    flags: str,
    words: dict[str, np.ndarray],
    baseline: str | np.ndarray,
    pos: list[int],
    neg: list[int],
    kills: str = "",
    result: ResultKind = "valid",
) -> Case:
    rows = baselines(words["x"])[baseline] if isinstance(baseline, str) else baseline
    inputs = words | {"baseline": rows, "pos": pos, "neg": neg}
    return numbered("contrast", number, comment, flags, inputs, kills, result)


_seven = prompt(5, 7, 11, 13, 2, 17, 23)
_padded_seven = prompt(9, 17, 4, 26, padding=3)

CASES = (
    _contrast(1, "Two tokens against one, zero baseline", "Basic", _seven, "zero", [1, 3], [4],
              "tokens_dropped tokens_unattended states_one_early mean_over_positions delta_reversed "
              "released_contrast neighbours_masked_too tokens_cut_out absolute_shifts keys_not_rotated "
              "angles_in_bfloat16 last_block_missing"),
    _contrast(2, "Three against two, padding baseline, strongest first", "PaddingBaseline", _seven, "padding",
              [4, 0, 2], [5, 1],
              "zeros_for_baseline last_state_normed delta_reversed sets_swapped sum_over_positions "
              "every_state_normed neighbours_masked_too masked_state_alone first_token_masked values_rotated "
              "heads_normed all_embeddings_scaled"),
    _contrast(3, "Mean-like baseline", "OtherBaseline", _seven, "mean", [2], [3, 1],
              "tokens_dropped tokens_unattended padding_for_baseline zeros_for_baseline states_one_early "
              "before_the_mlp strongest_token_only masked_state_alone first_token_masked eps_of_1e-6 "
              "eps_after_the_root eps_of_1e-3"),
    _contrast(4, "Left padding", "LeftPadding", _padded_seven, "zero", [4], [3, 5],
              "last_position_by_length delta_normalised mask_ignored_in_states indices_without_padding "
              "largest_over_positions block_without_its_input strongest_token_only state_alone eps_missing "
              "rotary_scaled not_causal"),
    _contrast(5, "Left padding, padding baseline", "LeftPadding PaddingBaseline", _padded_seven, "padding", [5, 3], [4],
              "tokens_dropped states_one_early delta_normalised mask_ignored_in_states largest_over_positions "
              "block_without_its_input last_of_the_set_left state_alone layer_norm first_kv_head_for_all "
              "one_token_ahead"),
    # The last token's own state is read: hiding it from attention changes nothing that it says itself.
    _contrast(6, "The last token is masked", "LastToken", _seven, "zero", [6], [2],
              "tokens_unattended last_state_normed mask_not_undone before_the_mlp mean_over_padding_too "
              "mlp_output_only mean_of_prompt_for_baseline sum_of_states sum_of_squares heads_not_transposed "
              "window_of_three"),
    _contrast(7, "The last token is masked with others", "LastToken PaddingBaseline", _seven, "padding", [1, 2],
              [6, 0],
              "tokens_unattended last_state_normed mask_not_undone before_the_mlp mean_over_padding_too "
              "mlp_output_only mean_of_prompt_for_baseline sum_of_states norm_weight_plus_one attention_not_scaled "
              "first_token_not_attended"),
    _contrast(8, "The first token is masked", "Basic", _seven, "zero", [0], [3],
              "tokens_unattended mean_over_positions first_position complement_masked released_contrast "
              "attention_output_only baseline_added unit_states norm_weight_missing attention_scaled_twice "
              "gate_and_up_exchanged"),
    _contrast(9, "No positive token: the shift is exactly zero", "EmptySet", _seven, "zero", [], [3, 2],
              "mean_over_positions complement_masked empty_set_masks_all position_before_the_last layers_reversed "
              "attention_output_only baseline_added unit_states norms_exchanged angles_in_float16 gelu"),
    _contrast(10, "No negative token: the shift is exactly zero", "EmptySet", _seven, "padding", [2], [],
              "zeros_for_baseline first_position complement_masked position_before_the_last layers_reversed "
              "tokens_one_late half_masked shift_relative_to_state rotary_pairs_adjacent attention_capped relu"),
    _contrast(11, "Neither: both shifts are exactly zero", "EmptySet LeftPadding", _padded_seven, "zero", [], [],
              "empty_set_masks_all"),
    _contrast(12, "Sets that share a token", "OverlappingSets", _seven, "zero", [1, 2], [2, 5],
              "tokens_dropped mask_not_undone sets_swapped sum_over_positions last_layer_for_all tokens_one_late "
              "half_masked shift_per_token rotary_base_of_llama attention_scaled_by_width up_missing"),
    _contrast(13, "Every token is masked", "LastToken", _seven, "mean", [0, 1, 2, 3, 4, 5, 6], [5],
              "padding_for_baseline first_position mask_not_undone released_contrast last_layer_for_all "
              "tokens_one_early neighbour_for_baseline shift_per_token rotary_exponent_halved attention_with_a_sink "
              "attention_and_mlp_side_by_side"),
    _contrast(14, "A prompt of one token", "OneToken LastToken", prompt(19), "padding", [0], [],
              "zeros_for_baseline delta_reversed delta_normalised sets_swapped empty_set_masks_all "
              "last_of_the_set_left neighbour_for_baseline shift_relative_to_state kv_heads_interleaved sigmoid_gate "
              "mlp_first"),
    # Padding is seen by nobody: to mask it as well changes nothing.
    _contrast(15, "A set that contains padding", "LeftPadding", _padded_seven, "zero", [1, 5], [3, 0],
              "padding_for_baseline last_state_normed last_position_by_length indices_without_padding "
              "every_state_normed tokens_one_early tokens_cut_out absolute_shifts rotary_missing "
              "softmax_over_queries attention_residual_missing"),
    _contrast(16, "Another baseline for every token, embeddings of no token", "OtherBaseline OffVocabulary",
              seeded_prompt("contrast-a", padding=2, tokens=9), grid("contrast-ab", 11, WIDTH),
              [3, 9, 6], [4, 2],
              "states_one_early last_position_by_length delta_reversed mask_ignored_in_states "
              "indices_without_padding released_contrast first_baseline_row_for_all baseline_in_the_order_of_the_set "
              "rotary_backward masked_after_softmax blocks_exchanged"),
    _contrast(17, "A token that does not exist", "BadArgument", _seven, "zero", [7], [1], result="invalid"),
    _contrast(18, "A negative token number", "BadArgument", _seven, "zero", [1], [-1], result="invalid"),
    _contrast(19, "A baseline with one row for all tokens", "BadShape", _seven, EMBED[:1], [1], [2], result="invalid"),
    _contrast(20, "A baseline with one token too many", "BadShape", _seven, EMBED[[0] * 8], [1], [2],
              result="invalid"),
    _contrast(21, "NaN in the prompt", "NotANumber", _seven | {"x": spoilt(_seven["x"], math.nan)}, "zero", [1], [2],
              result="invalid"),
    # A baseline row that no set asks for, too.
    _contrast(22, "Infinity in the baseline of a token that is not masked", "NotANumber", _seven,
              spoilt(_seven["x"], math.inf), [1], [2], result="invalid"),
    _contrast(23, "Padding on the right", "BadArgument", _seven | {"attention_mask": mask(2, 5)[::-1].copy()}, "zero",
              [1], [2], result="invalid"),
    _contrast(24, "An attention mask longer than the prompt", "BadShape", _seven | {"attention_mask": mask(0, 8)},
              "zero", [1], [2], result="invalid"),
)  # fmt: skip
