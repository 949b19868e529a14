"""Which planted bugs the cases of the options must catch, for each valid case."""

from __future__ import annotations

KILLS: dict[str, str] = {
    "objective_batch-001": (
        "batch_response_padding_scored batch_prompt_padding_attended batch_mask_of_one_row batch_averaged"
    ),
    "objective_batch-002": "batch_response_padding_scored batch_prompt_padding_attended",
    "objective_batch-003": "batch_response_padding_scored batch_averaged",
    "objective_batch-004": (
        "batch_response_padding_scored batch_prompt_padding_attended batch_mask_of_one_row batch_averaged"
    ),
    "objective_qk_norm-001": "qk_norm_over_all_heads",
    "objective_qk_norm-002": "qk_norm_left_out qk_norm_after_rotation qk_norm_of_q_alone",
    "objective_qk_norm-003": "qk_norm_left_out qk_norm_after_rotation qk_norm_over_all_heads qk_norm_of_q_alone",
    "objective_qk_norm-004": "qk_norm_left_out qk_norm_after_rotation qk_norm_over_all_heads qk_norm_of_q_alone",
    "objective_biases-001": "biases_left_out biases_after_rotation bias_of_v_left_out",
    "objective_biases-002": "biases_left_out bias_of_v_left_out",
    "objective_biases-003": "biases_left_out biases_after_rotation bias_of_v_left_out",
    "objective_biases-004": "biases_left_out biases_after_rotation",
    "objective_sliding_window-001": "window_left_out window_one_wider window_in_every_block window_in_other_blocks",
    "objective_sliding_window-002": "window_one_wider window_in_other_blocks",
    "objective_sliding_window-003": "window_left_out window_one_wider window_in_every_block window_in_other_blocks",
    "objective_sliding_window-004": "window_in_other_blocks",
    "objective_sliding_window-005": "window_left_out window_one_wider window_in_every_block window_in_other_blocks",
    "objective_soft_caps-001": "attention_cap_left_out logits_cap_left_out cap_after_the_mask caps_exchanged",
    "objective_soft_caps-002": "logits_cap_left_out caps_exchanged",
    "objective_soft_caps-003": "attention_cap_left_out cap_after_the_mask caps_exchanged",
    "objective_soft_caps-004": "attention_cap_left_out cap_after_the_mask caps_exchanged",
    "objective_soft_caps-005": "attention_cap_left_out logits_cap_left_out caps_exchanged",
    "objective_scaled_embeddings-001": "scale_left_out prompt_scaled_again scaled_twice",
    "objective_scaled_embeddings-002": "prompt_scaled_again",
    "objective_scaled_embeddings-003": "scale_left_out prompt_scaled_again scaled_twice",
    "objective_scaled_embeddings-004": "scale_left_out prompt_scaled_again scaled_twice",
    "attribution_gradient-001": "gradient_at_the_baseline gradient_not_times_input gradient_of_five_steps",
    "attribution_gradient-002": (
        "gradient_at_the_baseline gradient_not_times_input gradient_times_x gradient_of_five_steps"
    ),
    "attribution_gradient-003": (
        "gradient_at_the_baseline gradient_not_times_input gradient_times_x gradient_of_five_steps"
    ),
    "attribution_gradient-004": (
        "gradient_at_the_baseline gradient_not_times_input gradient_times_x gradient_of_five_steps"
    ),
    "attribution_smoothgrad-001": (
        "noise_left_out first_sample_alone samples_added_up "
        "smooth_not_times_input times_the_noisy_input noise_subtracted"
    ),
    "attribution_smoothgrad-002": "noise_left_out smooth_not_times_input times_the_noisy_input noise_subtracted",
    "attribution_smoothgrad-003": (
        "noise_left_out first_sample_alone samples_added_up "
        "smooth_not_times_input times_the_noisy_input noise_subtracted"
    ),
    "attribution_smoothgrad-004": (
        "noise_left_out first_sample_alone samples_added_up "
        "smooth_not_times_input times_the_noisy_input noise_subtracted"
    ),
    "attribution_random-001": "random_per_component random_of_one_sign random_as_ranks",
    "attribution_random-002": "random_per_component random_of_one_sign random_as_ranks",
    "attribution_random-003": "random_per_component random_of_one_sign random_as_ranks",
    "attribution_likelihood-001": (
        "preference_for_likelihood likelihood_of_the_other likelihood_not_its_logarithm likelihood_is_nothing"
    ),
    "attribution_likelihood-002": (
        "preference_for_likelihood likelihood_of_the_other likelihood_not_its_logarithm likelihood_method_ignored"
    ),
    "attribution_likelihood-003": (
        "preference_for_likelihood likelihood_of_the_other likelihood_not_its_logarithm likelihood_is_nothing"
    ),
    "attribution_likelihood-004": (
        "preference_for_likelihood likelihood_of_the_other likelihood_not_its_logarithm likelihood_method_ignored"
    ),
    "attribution_likelihood-005": (
        "preference_for_likelihood likelihood_of_the_other likelihood_not_its_logarithm likelihood_is_nothing"
    ),
    "attribution_batch-001": (
        "batch_gradient_averaged batch_response_padding_attributed batch_baseline_of_one_row batch_padding_on_the_path"
    ),
    "attribution_batch-002": "batch_response_padding_attributed batch_padding_on_the_path",
    "attribution_batch-003": "batch_gradient_averaged batch_response_padding_attributed batch_padding_on_the_path",
    "attribution_pictures-001": (
        "picture_read_as_text picture_axes_exchanged picture_time_alone "
        "picture_causal text_sees_the_future_too response_after_the_count"
    ),
    "attribution_pictures-002": (
        "picture_read_as_text picture_axes_exchanged picture_time_alone "
        "picture_causal text_sees_the_future_too response_after_the_count"
    ),
    "attribution_pictures-003": (
        "picture_read_as_text picture_axes_exchanged picture_time_alone "
        "picture_causal text_sees_the_future_too response_after_the_count"
    ),
    "attribution_pictures-004": "text_sees_the_future_too",
    "attribution_baselines-001": (
        "mean_of_the_prompt picture_replaced_by_words picture_mean_of_everything mean_of_half_the_words"
    ),
    "attribution_baselines-002": "mean_of_the_prompt mean_of_half_the_words",
    "attribution_baselines-003": "padding_for_the_word",
    "attribution_baselines-004": "zero_for_padding",
    "attribution_baselines-005": "padding_for_zero",
    "attribution_baselines-006": "picture_replaced_by_words",
    "selection_eligible-001": "padding_is_eligible k_words_and_k_patches",
    "selection_eligible-002": "padding_is_eligible rules_ignored",
    "selection_eligible-003": "padding_is_eligible rules_ignored pictures_keep_the_template",
    "selection_eligible-004": "padding_is_eligible rules_ignored k_words_and_k_patches",
    "selection_eligible-005": "padding_is_eligible rules_ignored k_words_and_k_patches",
    "selection_eligible-006": "padding_is_eligible rules_ignored",
    "selection_eligible-007": "padding_is_eligible one_rule_is_enough rules_ignored",
    "selection_eligible-008": "not_the_last_that_is_left one_rule_is_enough rules_ignored k_words_and_k_patches",
    "selection_eligible-009": "rules_ignored",
    "contrast_batch-001": "batch_sets_of_one_row batch_sets_united batch_masked_by_one_row batch_state_after_padding",
    "contrast_batch-002": "batch_sets_of_one_row batch_sets_united batch_state_after_padding",
    "contrast_batch-003": "batch_state_after_padding",
    "aggregation_uncentred-001": "centred_all_the_same uncentred_is_the_mean uncentred_reversed",
    "aggregation_uncentred-002": "centred_all_the_same uncentred_reversed",
    "aggregation_uncentred-003": "centred_all_the_same uncentred_is_the_mean uncentred_reversed",
    "aggregation_mean-001": "mean_not_normalised mean_of_directions mean_is_a_component median_shift",
    "aggregation_mean-002": "mean_not_normalised mean_is_a_component",
    "aggregation_mean-003": "mean_not_normalised mean_of_directions mean_is_a_component median_shift",
    "aggregation_mean-004": "mean_not_normalised mean_of_directions mean_is_a_component median_shift",
    "aggregation_weighted_mean-001": "weights_left_out weights_of_one_side weights_squared weighted_not_normalised",
    "aggregation_weighted_mean-002": "weights_left_out weights_of_one_side weights_squared weighted_not_normalised",
    "aggregation_weighted_mean-003": "weighted_not_normalised",
    "aggregation_components-001": "first_component_alone components_added_up one_component_more components_uncentred",
    "aggregation_components-002": "one_component_more components_uncentred",
    "aggregation_components-003": "first_component_alone components_added_up",
    "aggregation_components-004": "first_component_alone components_added_up components_uncentred",
    "generation_partial-001": "rows_in_the_blocks_order rows_from_the_first_block_on rows_from_the_last_block_back",
    "generation_partial-002": "rows_in_the_blocks_order rows_from_the_first_block_on rows_from_the_last_block_back",
    "generation_partial-003": "rows_from_the_first_block_on",
    "generation_partial-004": "rows_from_the_first_block_on rows_from_the_last_block_back",
    "generation_tuples-001": "tuples_left_alone tuples_first_row tuples_first_position",
    "generation_tuples-002": "tuples_left_alone tuples_first_row tuples_first_position",
    "generation_tuples-003": "tuples_left_alone tuples_first_row tuples_first_position",
    "generation_end-001": "end_ignored end_left_out all_rows_end_together end_by_force",
    "generation_end-002": "end_ignored end_left_out all_rows_end_together first_end_alone",
    "generation_end-003": "end_by_force",
    "generation_beams-001": "beams_are_greedy beams_add_logits beams_by_the_last_token beams_unsteered",
    "generation_beams-002": "beams_are_greedy beams_add_logits beams_by_the_last_token beams_unsteered",
    "generation_beams-003": "beams_add_logits beams_by_the_last_token beams_unsteered",
}
