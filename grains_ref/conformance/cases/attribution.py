"""Cases of attribution, eq. (2): quadrature rules, baselines, padding, and what the path holds fixed."""

from __future__ import annotations

import math

import numpy as np

from grains_ref.conformance.cases.common import (
    EMBED,
    Case,
    ResultKind,
    answers,
    baselines,
    grid,
    mask,
    numbered,
    prompt,
    seeded_prompt,
    spoilt,
)
from grains_ref.conformance.toy import VOCABULARY, WIDTH


def _attribution(
    number: int,
    comment: str,
    flags: str,
    words: dict[str, np.ndarray],
    responses: dict[str, np.ndarray],
    baseline: str | np.ndarray,
    m: int,
    quadrature: str,
    kills: str = "",
    result: ResultKind = "valid",
) -> Case:
    rows = baselines(words["x"])[baseline] if isinstance(baseline, str) else baseline
    inputs = words | {"baseline": rows, "m": m, "quadrature": quadrature} | responses
    return numbered("attribution", number, comment, flags, inputs, kills, result)


_words = prompt(5, 7, 11, 13, 2)
_padded_words = prompt(9, 17, 4, 26, 12, padding=2)
_pair = answers([3, 9], [6, 1])
_half_baseline = np.where(np.array([[True], [False], [True], [False], [False]]), _words["x"], EMBED[0])
_not_a_number = np.where(np.arange(5)[:, None] == 3, np.nan, _words["x"])

CASES = (
    _attribution(1, "The paper's setting: five right steps from zero", "Basic", _words, _pair, "zero", 5, "right",
                 "left_riemann vanilla_gradient twenty_gauss_nodes input_factor_missing input_factor_twice "
                 "absolute_values l2_norm_over_width padding_as_baseline released_attribution "
                 "rejected_likelihood_attributed end_of_text_attributed eps_missing eps_of_1e-6 eps_after_the_root "
                 "logits_capped"),
    _attribution(2, "One step: the gradient at x times the input", "Quadrature", _words, _pair, "padding", 1, "right",
                 "left_riemann twenty_gauss_nodes one_step_too_many times_x_not_difference last_token_attributed "
                 "always_midpoint inner_nodes positive_parts_only gradient_norms sum_of_sides_attributed "
                 "norm_weight_missing attention_scaled_by_width attention_and_mlp_side_by_side"),
    _attribution(3, "Two right steps", "Quadrature PaddingBaseline", _words, answers([3, 9, 4], [6]), "padding", 2,
                 "right",
                 "trapezoid gradients_not_reset one_step_too_many zero_as_baseline last_token_one_late_attributed "
                 "always_midpoint inner_nodes positive_parts_only scores_as_shares logits_attributed "
                 "rotary_exponent_halved masked_after_softmax attention_residual_missing"),
    _attribution(4, "Ten right steps, the paper's number for Gemma 3", "Quadrature",
                 prompt(2, 3, 5), answers([7, 11], [13, 17]), "mean", 10, "right",
                 "left_riemann steps_not_averaged gradients_not_reset zero_as_baseline "
                 "last_token_one_late_attributed last_node_only nodes_squared largest_over_width scores_as_shares "
                 "first_token_attributed rotary_backward attention_capped blocks_exchanged"),
    _attribution(5, "Five midpoint steps", "Quadrature PaddingBaseline", _words, _pair, "padding", 5, "midpoint",
                 "vanilla_gradient always_right_riemann one_step_too_many branch_of_y_pos mean_of_tokens_attributed "
                 "closed_trapezoid gradient_at_the_middle largest_over_width scores_centred "
                 "all_tokens_one_late_attributed values_rotated not_causal last_block_missing"),
    _attribution(6, "One midpoint step", "Quadrature", prompt(8, 1, 28), _pair, "zero", 1, "midpoint",
                 "trapezoid always_right_riemann absolute_values padding_as_baseline preference_reversed "
                 "closed_trapezoid gradient_near_the_baseline path_from_padding scores_centred "
                 "all_tokens_one_late_attributed rotary_missing one_token_ahead all_embeddings_scaled"),
    _attribution(7, "Five Gauss-Legendre nodes", "Quadrature PaddingBaseline", _words, answers([20, 21], [22, 23]),
                 "padding", 5, "gauss_legendre",
                 "linspace_mean always_right_riemann gauss_not_rescaled branch_of_y_pos mean_of_tokens_attributed "
                 "gauss_nodes_unmoved nodes_squared absolute_sum scores_one_token_late first_token_attributed "
                 "keys_not_rotated window_of_three final_norm_missing"),
    _attribution(8, "Two Gauss-Legendre nodes from the mean embedding", "Quadrature OtherBaseline", _words,
                 answers([20], [22, 23, 24, 25]), "mean", 2, "gauss_legendre",
                 "linspace_mean gauss_not_rescaled path_from_zero padding_as_baseline probability_attributed "
                 "gauss_nodes_unmoved gradients_doubled path_from_padding scores_one_token_late logits_attributed "
                 "rotary_base_of_llama first_token_not_attended head_tied_to_embeddings"),
    # Attention masks must be repeated with the steps; padding gets exactly 0.
    _attribution(9, "Left padding, zero baseline, three tokens against two", "LeftPadding UnequalLengths",
                 _padded_words, answers([3, 9, 4], [6, 1]), "zero", 5, "right",
                 "left_riemann trapezoid linspace_mean padding_as_baseline mask_ignored_on_the_path "
                 "last_token_attributed released_attribution absolute_sum scores_reversed eps_of_1e-3 rotary_scaled "
                 "gate_and_up_exchanged head_one_off"),
    _attribution(10, "Left padding, padding baseline, one token against four", "LeftPadding PaddingBaseline",
                 _padded_words, answers([15], [6, 1, 29, 8]), "padding", 5, "right",
                 "input_factor_missing path_from_zero likelihood_attributed mask_ignored_on_the_path "
                 "mean_of_tokens_attributed last_node_only gradients_doubled signs_of_gradients scores_reversed "
                 "sum_of_squares heads_not_transposed up_missing final_norm_twice"),
    _attribution(11, "Responses with the same first token", "SharedTokens", _words, answers([17, 9, 4], [17, 2, 8]),
                 "mean", 5, "right",
                 "vanilla_gradient input_factor_missing absolute_values response_on_the_path probability_attributed "
                 "first_node_only mean_of_prompt_as_baseline unit_gradients first_token_not_scored "
                 "end_of_text_attributed angles_in_bfloat16 angles_in_float16 temperature_of_two"),
    _attribution(12, "Responses with the same last token", "SharedTokens", _words, answers([9, 4, 17], [2, 8, 17]),
                 "padding", 5, "right",
                 "steps_not_averaged input_factor_twice l2_norm_over_width likelihood_attributed "
                 "always_gauss_legendre one_step_too_few mean_of_prompt_as_baseline unit_gradients "
                 "first_token_not_scored layer_norm first_kv_head_for_all gelu temperature_of_0.7"),
    # Where x and baseline agree there is nothing to explain: exactly 0, though the gradient is not.
    _attribution(13, "A baseline that equals x at two tokens", "OtherBaseline", _words, _pair, _half_baseline, 5,
                 "right",
                 "input_factor_missing times_x_not_difference l2_norm_over_width preference_reversed "
                 "weights_over_m_plus_one first_node_only first_baseline_row_for_all baseline_rows_reversed "
                 "last_token_not_scored norm_weight_plus_one attention_not_scaled heads_normed"),
    _attribution(14, "A baseline of seeded numbers, another row for every token", "OtherBaseline", _words, _pair,
                 grid("attribution-014", 5, WIDTH), 3, "midpoint",
                 "twenty_gauss_nodes input_factor_twice mean_over_width response_on_the_path always_gauss_legendre "
                 "one_step_too_few first_baseline_row_for_all baseline_rows_reversed last_token_not_scored "
                 "norms_exchanged attention_scaled_twice relu"),
    _attribution(15, "A prompt of one token", "OneToken", prompt(19), answers([3], [6, 1]), "padding", 5, "right",
                 "steps_not_averaged times_x_not_difference mean_over_width preference_reversed "
                 "weights_over_m_plus_one gradient_near_the_baseline baseline_sign gradient_norms "
                 "rejected_likelihood_attributed kv_heads_interleaved attention_with_a_sink mlp_first"),
    _attribution(16, "Eleven tokens, three steps", "LongPrompt UnequalLengths",
                 prompt(*((j * j * 11 + 2) % VOCABULARY for j in range(11))), answers([1, 2], [30, 29, 28, 27, 26]),
                 "padding", 3, "right",
                 "gradients_not_reset times_x_not_difference mean_over_width last_token_attributed "
                 "released_attribution gradient_at_the_middle baseline_sign signs_of_gradients "
                 "sum_of_sides_attributed rotary_pairs_adjacent softmax_over_queries sigmoid_gate"),
    _attribution(17, "Embeddings that belong to no token, with padding", "OffVocabulary LeftPadding",
                 seeded_prompt("attribution-017", padding=3, tokens=4), answers([12, 5], [19]), "mean", 5,
                 "gauss_legendre",
                 "vanilla_gradient gauss_not_rescaled path_from_zero zero_as_baseline response_on_the_path "
                 "branch_of_y_pos likelihood_attributed mask_ignored_on_the_path last_token_attributed "
                 "last_token_one_late_attributed mean_of_tokens_attributed probability_attributed "
                 "released_attribution gauss_evenly_weighted"),
    _attribution(18, "No steps", "BadArgument", _words, _pair, "zero", 0, "right", result="invalid"),
    _attribution(19, "A negative number of steps", "BadArgument", _words, _pair, "zero", -1, "right", result="invalid"),
    _attribution(20, "A quadrature that puts a node at the baseline", "BadArgument", _words, _pair, "zero", 5, "left",
                 result="invalid"),
    _attribution(21, "A baseline with one row for all tokens", "BadShape", _words, _pair, EMBED[:1], 5, "right",
                 result="invalid"),
    _attribution(22, "A baseline with one token too many", "BadShape", _words, _pair, EMBED[[0] * 6], 5, "right",
                 result="invalid"),
    _attribution(23, "An empty response", "BadArgument", _words, answers([3], []), "zero", 5, "right",
                 result="invalid"),
    _attribution(24, "NaN in the prompt", "NotANumber", _words | {"x": _not_a_number}, _pair, "zero", 5, "right",
                 result="invalid"),
    _attribution(25, "Infinity in the prompt", "NotANumber", _words | {"x": spoilt(_words["x"], math.inf)}, _pair,
                 "zero", 5, "right", result="invalid"),
    _attribution(26, "NaN in the baseline", "NotANumber", _words, _pair, spoilt(_words["x"], math.nan), 5, "right",
                 result="invalid"),
    _attribution(27, "A token beyond the vocabulary", "BadArgument", _words, answers([3], [VOCABULARY]), "zero", 5,
                 "right", result="invalid"),
    _attribution(28, "A negative token", "BadArgument", _words, answers([-1], [3]), "zero", 5, "right",
                 result="invalid"),
    _attribution(29, "An attention mask shorter than the prompt", "BadShape", _words | {"attention_mask": mask(0, 4)},
                 _pair, "zero", 5, "right", result="invalid"),
    _attribution(30, "Padding on the right", "BadArgument", _words | {"attention_mask": mask(2, 3)[::-1].copy()},
                 _pair, "zero", 5, "right", result="invalid"),
    _attribution(31, "A baseline of another width", "BadShape", _words, _pair, EMBED[[0] * 5, :-1], 5, "right",
                 result="invalid"),
)  # fmt: skip
