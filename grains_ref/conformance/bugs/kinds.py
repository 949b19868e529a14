"""What kind of mistake each planted bug is: where in a port to look, even if the very mistake is in no list.

Per stage, kind by kind, the names of its bugs. A port that has a bug of which only relatives are known should be told
the kind; `benchmarks/leave_one_out.py` measures how often it is.
"""

from __future__ import annotations

WHEREVER_A_DECODER_RUNS = {
    "the decoder's norms": "eps_missing eps_of_1e-6 eps_of_1e-3 eps_after_the_root layer_norm sum_of_squares "
    "norm_weight_plus_one norm_weight_missing norms_exchanged final_norm_missing final_norm_twice",
    "the decoder's positions": "rotary_pairs_adjacent rotary_base_of_llama rotary_exponent_halved rotary_backward "
    "rotary_missing keys_not_rotated values_rotated rotary_scaled angles_in_bfloat16 angles_in_float16 "
    "positions_in_bfloat16",
    "the decoder's attention": "kv_heads_interleaved first_kv_head_for_all heads_not_transposed attention_not_scaled "
    "attention_scaled_twice attention_scaled_by_width attention_capped attention_with_a_sink softmax_over_queries "
    "heads_normed",
    "who attends to whom": "masked_after_softmax not_causal one_token_ahead window_of_three first_token_not_attended "
    "mask_ignored response_not_attended first_token_masked one_padding_seen packed_without_mask "
    "mask_ignored_on_the_path mask_ignored_in_states padding_attended mask_of_row_0 new_tokens_not_attended",
    "the decoder's MLP": "gate_and_up_exchanged gelu relu sigmoid_gate up_missing",
    "the decoder's blocks": "attention_and_mlp_side_by_side mlp_first attention_residual_missing blocks_exchanged "
    "last_block_missing all_embeddings_scaled",
    "the decoder's head": "head_tied_to_embeddings head_one_off logits_capped temperature_of_two temperature_of_0.7",
}

KINDS: dict[str, dict[str, str]] = {
    "objective": WHEREVER_A_DECODER_RUNS
    | {
        "which row of the logits scores a token": "off_by_one_logits off_by_two_logits last_token_one_late",
        "how a response's tokens become one score": "last_token_only first_token_only response_padding_scored "
        "padding_id_skipped end_of_text_appended end_of_text_after_y_pos end_of_text_after_y_neg last_token_dropped "
        "last_token_of_y_neg_dropped last_token_of_y_pos_dropped first_token_dropped cut_to_the_shorter "
        "repeated_tokens_once mean_over_tokens base_two base_ten probabilities_added raw_logits "
        "softmax_over_the_response length_of_y_pos_for_both root_of_length negative_log_likelihood",
        "how both sides become f": "likelihood_only sides_exchanged f_reversed f_is_a_sum f_is_a_ratio "
        "f_of_preference_loss",
        "the response's positions": "response_positions_restart response_positions_by_column "
        "response_one_position_early response_one_position_late",
        "what the model is given": "token_0_before_the_response last_prompt_token_left_out embeddings_scaled",
    },
    "attribution": WHEREVER_A_DECODER_RUNS
    | {
        "nodes and weights of the quadrature": "left_riemann trapezoid linspace_mean vanilla_gradient "
        "twenty_gauss_nodes always_right_riemann gauss_not_rescaled steps_not_averaged gradients_not_reset "
        "one_step_too_many always_midpoint always_gauss_legendre gauss_nodes_unmoved gauss_evenly_weighted "
        "closed_trapezoid one_step_too_few inner_nodes weights_over_m_plus_one last_node_only first_node_only "
        "nodes_squared gradient_at_the_middle gradient_near_the_baseline gradients_doubled",
        "the baseline": "padding_as_baseline zero_as_baseline path_from_zero mean_of_prompt_as_baseline "
        "first_baseline_row_for_all baseline_rows_reversed baseline_sign path_from_padding times_x_not_difference",
        "how a gradient becomes a score": "input_factor_missing input_factor_twice absolute_values l2_norm_over_width "
        "mean_over_width positive_parts_only largest_over_width absolute_sum unit_gradients signs_of_gradients "
        "gradient_norms",
        "what is done to the scores": "scores_as_shares scores_centred scores_one_token_late scores_reversed "
        "first_token_not_scored last_token_not_scored",
        "what is attributed": "response_on_the_path branch_of_y_pos likelihood_attributed preference_reversed "
        "rejected_likelihood_attributed sum_of_sides_attributed probability_attributed released_attribution "
        "logits_attributed",
        "which response tokens are attributed": "last_token_attributed last_token_one_late_attributed "
        "mean_of_tokens_attributed first_token_attributed all_tokens_one_late_attributed end_of_text_attributed",
    },
    "selection": {
        "how many tokens": "k_plus_one k_in_total k_minus_one half_of_k twice_k k_in_percent k_up_to_half "
        "sets_of_equal_size all_that_tie k_plus_one_negative only_one_negative",
        "which sign a score has": "zero_counts sign_not_required argsort_ends released_selection absolute_ranking "
        "sets_exchanged absolute_scores softmax_first scores_centred median_subtracted minus_zero_is_negative "
        "ends_without_overlap positive_set_twice no_negative",
        "how tokens are ranked": "ties_to_the_higher weakest_first rounded_to_four_decimals weakest_negative_first "
        "order_of_tokens weakest_of_the_set_first weak_scores_left_out below_average_left_out whole_numbers "
        "scores_in_eighths one_of_each_score",
        "which tokens may be chosen": "eligibility_ignored filtered_after_ranking indices_of_the_filtered_list "
        "first_token_excluded last_token_excluded ineligible_minus_infinity ineligible_only indices_from_one "
        "indices_from_the_end",
    },
    "contrast": WHEREVER_A_DECODER_RUNS
    | {
        "which state is read": "states_one_early last_state_normed before_the_mlp layers_reversed last_layer_for_all "
        "every_state_normed block_without_its_input mlp_output_only attention_output_only released_contrast",
        "at which position it is read": "mean_over_positions first_position last_position_by_length "
        "position_before_the_last sum_over_positions largest_over_positions mean_over_padding_too",
        "which tokens are masked": "mask_not_undone complement_masked sets_swapped indices_without_padding "
        "empty_set_masks_all tokens_one_late tokens_one_early neighbours_masked_too strongest_token_only "
        "last_of_the_set_left",
        "how a token is masked": "tokens_dropped tokens_unattended padding_for_baseline zeros_for_baseline "
        "first_baseline_row_for_all baseline_in_the_order_of_the_set mean_of_prompt_for_baseline baseline_added "
        "half_masked neighbour_for_baseline tokens_cut_out",
        "how two states become a shift": "delta_reversed delta_normalised masked_state_alone state_alone sum_of_states "
        "unit_states shift_per_token shift_relative_to_state absolute_shifts",
    },
    "aggregation": {
        "which direction": "mean_shift median_shift mean_of_unit_shifts longest_shift first_shift second_component "
        "last_component first_two_components sketch_of_two_columns randomised_solver solver_stopped_early "
        "features_reversed",
        "what is subtracted or scaled first": "uncentred centred_by_median centred_by_first_example "
        "centred_over_the_width centred_over_both centred_together half_centred shifts_normalised "
        "features_standardised scaled_by_largest_entry",
        "which examples and layers": "layers_side_by_side one_direction_for_all_layers zero_shifts_left_out "
        "last_example_left_out first_example_left_out first_example_twice layers_in_turn layers_reversed sides_pooled",
        "the sign": "largest_entry_positive largest_score_positive no_sign_rule majority_positive sign_reversed "
        "neg_signed_by_pos first_entry_positive sum_of_entries_positive signed_by_first_example "
        "signed_by_last_example first_layer_signs neg_reversed",
        "the length": "scaled_by_deviation mean_added eps_in_length l1_length largest_entry_one "
        "scaled_by_singular_value scaled_by_mean_projection scaled_by_mean_length",
        "how both sides become v": "sum_of_sides difference_reversed v_normalised v_pos_alone v_halved v_neg_alone "
        "v_normalised_as_a_whole component_of_differences",
    },
    "steering": {
        "over what the norm is taken": "norm_over_sequence norm_over_tokens_and_width norm_over_batch norms_of_row_0 "
        "norm_over_rows norm_of_last_token norms_one_token_late mean_norm released_steering "
        "released_steering_with_tensors",
        "how the norm is restored": "norm_not_restored l1_norm largest_entry_norm only_shrinking ratio_reversed "
        "ratio_squared ratio_rooted ratio_within_limits only_growing ratio_on_v_only ratio_on_h_only unit_norm "
        "norm_of_v product_overflows",
        "the strength": "lam_times_ten lam_squared zero_lam_replaced lam_reversed lam_absolute lam_up_to_one lam_whole "
        "lam_halved lam_doubled lam_over_root_of_width lam_times_root_of_width lam_over_batch lam_on_both "
        "applied_twice strength_relative_to_h added_to_unit_h interpolated v_normalised_first",
        "the vector": "v_reversed v_one_feature_late v_centred signs_of_v largest_features_of_v orthogonal_part_only "
        "component_replaced h_left_out",
        "which tokens and rows are steered": "batch_row_0_only last_token_steered_only first_token_unsteered "
        "last_token_unsteered first_token_only last_row_unsteered",
        "states that are zero or cancel": "cancelled_to_zero cancelled_to_nan zero_rows_steered eps_in_denominator "
        "eps_of_1e-6 eps_of_1e-2 eps_under_the_root",
    },
    "generation": WHEREVER_A_DECODER_RUNS
    | {
        "which columns and rows are steered": "prefill_only decode_only last_prompt_token_and_after first_row_only "
        "first_token_of_row_unsteered last_prompt_token_unsteered first_new_token_unsteered last_prompt_token_only "
        "first_new_token_only last_row_unsteered",
        "which blocks are steered": "last_layer_only layers_ignored layer_numbers_one_late before_the_block "
        "first_layer_only last_layer_left_out first_layer_left_out layers_reversed layers_not_asked_for "
        "after_the_final_norm unsteered lam_by_depth",
        "which vector a block gets": "vectors_one_late one_vector_for_all first_vector_for_all vectors_one_early "
        "vectors_reversed vectors_by_place_in_the_list mean_vector_for_all",
        "the edit": "norm_over_the_sequence norm_left_out ten_times_lam hook_twice lam_shared_by_the_layers "
        "strength_halved strength_reversed vectors_normalised released_generation "
        "released_generation_with_tensors",
        "positions of new tokens": "new_positions_by_column new_positions_stuck positions_of_row_0 "
        "new_positions_one_late new_positions_one_early new_positions_restart",
        "which tokens are fed and said": "last_prompt_token_twice second_best_token lowest_logit "
        "tokens_of_the_forced_run tokens_one_late stops_after_one stops_at_a_repetition",
    },
}

HALF_PRECISION_HIDES = {
    "objective": "angles_in_bfloat16 angles_in_float16 logits_capped",
    "attribution": "weights_over_m_plus_one eps_missing eps_of_1e-6 eps_after_the_root angles_in_bfloat16 "
    "angles_in_float16 logits_capped",
    "contrast": "largest_over_positions tokens_cut_out shift_per_token eps_of_1e-6 eps_after_the_root eps_of_1e-3 "
    "layer_norm rotary_base_of_llama rotary_exponent_halved rotary_scaled angles_in_bfloat16 angles_in_float16 "
    "kv_heads_interleaved attention_not_scaled attention_scaled_twice attention_scaled_by_width attention_capped "
    "attention_with_a_sink heads_normed not_causal one_token_ahead first_token_not_attended gelu relu sigmoid_gate "
    "mlp_first all_embeddings_scaled",
    "generation": "first_token_of_row_unsteered eps_of_1e-3 angles_in_bfloat16 angles_in_float16 gelu relu "
    "logits_capped",
}
"""Bugs that are too slight for float16 or bfloat16 to show, per stage: a port may have them and pass there."""


def is_slight(stage: str, name: str) -> bool:
    """Whether half precision hides a bug of the dialect `paper`."""
    return name in HALF_PRECISION_HIDES.get(stage, "").split()


def kind_of(stage: str, name: str) -> str:
    """The kind of a bug of the dialect `paper`; a bug that is in no list is a kind of its own.

    Raises:
        ValueError: the bug is in several lists.
    """
    kinds = [kind for kind, names in KINDS.get(stage, {}).items() if name in names.split()]
    if len(kinds) > 1:
        raise ValueError(f"{stage}: {name} is of the kinds {kinds}; expected one")
    return kinds[0] if kinds else name
