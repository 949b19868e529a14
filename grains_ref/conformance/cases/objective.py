"""Cases of the objective, eq. (1): padding, responses of all lengths, and the decoder's own details."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from grains_ref.conformance.cases.common import (
    EMBED,
    Case,
    ResultKind,
    answers,
    mask,
    numbered,
    prompt,
    seeded_prompt,
    spoilt,
)
from grains_ref.conformance.toy import VOCABULARY


def _objective(
    number: int, comment: str, flags: str, inputs: dict[str, Any], kills: str = "", result: ResultKind = "valid"
) -> Case:
    return numbered("objective", number, comment, flags, inputs, kills, result)


CASES = (
    _objective(1, "A short prompt and two responses of two tokens", "Basic",
               prompt(5, 7, 11, 13, 2) | answers([3, 9], [6, 1]),
               "off_by_one_logits off_by_two_logits end_of_text_appended raw_logits base_two embeddings_scaled "
               "token_0_before_the_response values_rotated blocks_exchanged final_norm_twice head_one_off "
               "temperature_of_two"),
    # With one token against four, whatever is done per token instead of per response shows.
    _objective(2, "One token against four", "UnequalLengths", prompt(4, 8, 15, 16, 23) | answers([12], [9, 3, 27, 5]),
               "off_by_one_logits off_by_two_logits last_token_only mean_over_tokens response_padding_scored "
               "packed_without_mask response_positions_restart attention_not_scaled gate_and_up_exchanged "
               "rotary_missing"),
    _objective(3, "Left padding, three tokens against two", "LeftPadding UnequalLengths",
               prompt(5, 7, 11, 2, padding=3) | answers([3, 9, 4], [6, 1]),
               "mask_ignored sides_exchanged response_positions_by_column norm_weight_plus_one "
               "end_of_text_after_y_neg probabilities_added f_reversed attention_scaled_twice last_block_missing"),
    # The smallest input there is; here last, first, sum and mean are the same.
    _objective(4, "A prompt of one token, one token per response", "OneToken", prompt(19) | answers([3], [6]),
               "end_of_text_appended likelihood_only gate_and_up_exchanged embeddings_scaled end_of_text_after_y_neg "
               "probabilities_added f_is_a_sum attention_with_a_sink up_missing"),
    _objective(5, "A prompt of one token, two tokens against three", "OneToken UnequalLengths",
               prompt(14) | answers([3, 9], [6, 1, 28]),
               "first_token_only mean_over_tokens likelihood_only gate_and_up_exchanged last_token_of_y_pos_dropped "
               "softmax_over_the_response f_reversed attention_with_a_sink"),
    _objective(6, "Responses with the same first token", "SharedTokens",
               prompt(5, 20, 11, 13) | answers([17, 9, 4], [17, 2, 8]),
               "first_token_only packed_without_mask layer_norm last_token_dropped last_token_of_y_pos_dropped "
               "softmax_over_the_response response_not_attended"),
    _objective(7, "Responses with the same last token, such as a full stop", "SharedTokens",
               prompt(5, 20, 11, 13) | answers([9, 4, 17], [2, 8, 17]),
               "last_token_only last_token_one_late final_norm_missing last_token_dropped base_ten "
               "length_of_y_pos_for_both temperature_of_0.7"),
    _objective(8, "More padding than prompt", "LeftPadding",
               prompt(21, 22, padding=6) | answers([24, 25, 1], [26, 27, 2]),
               "last_token_only first_token_only mask_ignored end_of_text_after_y_pos first_token_dropped "
               "last_prompt_token_left_out f_is_a_ratio first_kv_head_for_all last_block_missing temperature_of_two"),
    # Scoring a token by its own row asks whether it is repeated: here the prompt ends as the responses begin.
    _objective(9, "Responses that repeat the prompt's last token", "SharedTokens",
               prompt(3, 14, 9) | answers([9, 9, 9], [9, 3]),
               "off_by_one_logits mean_over_tokens sides_exchanged kv_heads_interleaved first_token_dropped "
               "repeated_tokens_once f_is_a_ratio"),
    _objective(10, "The same response twice: f is zero", "SharedTokens", prompt(2, 18, 30) | answers([7, 5], [7, 5]),
               "raw_logits base_two final_norm_missing end_of_text_after_y_pos base_ten length_of_y_pos_for_both"),
    _objective(11, "One response is the beginning of the other", "SharedTokens UnequalLengths",
               prompt(2, 18, 30) | answers([7, 5, 29, 10], [7, 5]),
               "response_padding_scored packed_without_mask layer_norm last_token_of_y_neg_dropped "
               "cut_to_the_shorter root_of_length final_norm_twice"),
    # Token 0 is the padding's id, but here somebody says it.
    _objective(12, "Responses that contain the padding's id", "PaddingIdInResponse UnequalLengths",
               prompt(1, 10, 20, padding=2) | answers([0, 6, 0], [23, 0]),
               "last_token_one_late padding_id_skipped response_positions_by_column kv_heads_interleaved "
               "rotary_pairs_adjacent norm_weight_plus_one attention_not_scaled"),
    # mean(h^2) is near EPS: RMSNorm's epsilon counts.
    _objective(13, "Embeddings so small that the norm's epsilon counts", "TinyValues OffVocabulary",
               seeded_prompt("objective-013", tokens=5, step=2.0**-16) | answers([3, 9], [6, 1, 12]),
               "last_token_only response_padding_scored response_one_position_early eps_missing layer_norm "
               "root_of_length f_of_preference_loss eps_of_1e-3 head_tied_to_embeddings"),
    _objective(14, "Embeddings so large that the blocks change little", "LargeValues OffVocabulary",
               seeded_prompt("objective-014", tokens=5, step=0.5) | answers([3, 9], [6, 1, 12]),
               "off_by_two_logits packed_without_mask response_one_position_early rotary_pairs_adjacent "
               "final_norm_missing negative_log_likelihood rotary_exponent_halved keys_not_rotated "
               "attention_scaled_twice attention_scaled_by_width"),
    _objective(15, "Embeddings that belong to no token", "OffVocabulary",
               seeded_prompt("objective-015", tokens=5) | answers([8], [11, 2, 3]),
               "response_one_position_early response_one_position_late kv_heads_interleaved rotary_pairs_adjacent "
               "rotary_base_of_llama "
               "attention_not_scaled embeddings_scaled f_of_preference_loss rotary_scaled head_tied_to_embeddings"),
    # Distances up to 20: rotary base and layout show; attention has something to choose from.
    _objective(16, "Seventeen tokens, five against three", "LongPrompt UnequalLengths",
               prompt(*((j * j * 7 + 3 * j + 1) % VOCABULARY for j in range(17)))
               | answers([1, 2, 3, 4, 5], [30, 29, 28]),
               "raw_logits response_positions_restart rotary_pairs_adjacent last_token_of_y_neg_dropped "
               "cut_to_the_shorter negative_log_likelihood angles_in_bfloat16 angles_in_float16"),
    _objective(17, "The first and the last id of the vocabulary", "PaddingIdInResponse",
               prompt(30, 0, 30, 0, 30) | answers([30, 0], [0, 30]),
               "padding_id_skipped base_two kv_heads_interleaved norm_weight_plus_one embeddings_scaled f_is_a_sum "
               "values_rotated"),
    _objective(18, "Much padding, a long response", "LeftPadding UnequalLengths",
               prompt(6, 12, 18, padding=8) | answers([24], [30, 5, 11, 17, 23, 29, 4]),
               "last_token_only last_token_one_late first_token_only mean_over_tokens response_padding_scored "
               "raw_logits base_two likelihood_only sides_exchanged"),
    _objective(19, "An empty preferred response", "BadArgument", prompt(5, 7) | answers([], [6, 1]), result="invalid"),
    _objective(20, "An empty rejected response", "BadArgument", prompt(5, 7) | answers([3], []), result="invalid"),
    _objective(21, "A token beyond the vocabulary", "BadArgument", prompt(5, 7) | answers([3, VOCABULARY], [6, 1]),
               result="invalid"),
    _objective(22, "An attention mask longer than the prompt", "BadShape",
               prompt(5, 7) | {"attention_mask": mask(1, 2)} | answers([3], [6]), result="invalid"),
    _objective(23, "Embeddings of another width", "BadShape",
               {"x": EMBED[[5, 7], :-1], "attention_mask": mask(0, 2)} | answers([3], [6]), result="invalid"),
    # Answers that the model is likely to give, found by a search: log P is small, so mistakes of the decoder are large
    # against it, in bfloat16 too.
    _objective(24, "Likely answers after padding", "LikelyAnswers OffVocabulary LeftPadding",
               seeded_prompt("o221", padding=6, tokens=7, step=2.0**-5) | answers([7, 3], [13, 21]),
               "packed_without_mask response_one_position_early response_one_position_late rotary_base_of_llama "
               "norm_weight_plus_one "
               "token_0_before_the_response last_prompt_token_left_out norm_weight_missing norms_exchanged "
               "rotary_exponent_halved rotary_missing rotary_scaled first_kv_head_for_all gelu up_missing "
               "attention_residual_missing head_one_off"),
    _objective(25, "Likely answers to a longer prompt", "LikelyAnswers OffVocabulary LongPrompt LeftPadding",
               seeded_prompt("o863", padding=6, tokens=11, step=2.0**-7) | answers([6, 10], [3, 1, 19]),
               "off_by_two_logits base_two response_positions_restart rotary_pairs_adjacent rotary_base_of_llama "
               "attention_not_scaled first_token_masked sum_of_squares norm_weight_missing norms_exchanged "
               "rotary_backward angles_in_float16 attention_capped softmax_over_queries window_of_three gelu relu "
               "blocks_exchanged"),
    _objective(26, "Likely answers that repeat a token", "LikelyAnswers OffVocabulary LeftPadding",
               seeded_prompt("o378", padding=6, tokens=3, step=2.0**-7) | answers([26, 5, 5, 5], [5, 5, 5, 10]),
               "mask_ignored packed_without_mask raw_logits response_positions_by_column kv_heads_interleaved "
               "rotary_pairs_adjacent layer_norm norm_weight_plus_one attention_not_scaled embeddings_scaled "
               "response_not_attended one_padding_seen heads_not_transposed attention_capped masked_after_softmax "
               "not_causal one_token_ahead sigmoid_gate attention_and_mlp_side_by_side all_embeddings_scaled "
               "logits_capped temperature_of_0.7"),
    _objective(27, "Likely answers, two tokens against four", "LikelyAnswers OffVocabulary UnequalLengths",
               seeded_prompt("o82", padding=3, tokens=11, step=2.0**-5) | answers([19, 28], [26, 13, 21, 1]),
               "off_by_one_logits off_by_two_logits raw_logits base_two response_positions_restart "
               "response_positions_by_column response_one_position_early response_one_position_late "
               "gate_and_up_exchanged sum_of_squares "
               "rotary_backward keys_not_rotated angles_in_bfloat16 attention_scaled_by_width window_of_three "
               "attention_and_mlp_side_by_side mlp_first attention_residual_missing logits_capped"),
    _objective(28, "Likely answers to embeddings so small that the norm's epsilon counts", "LikelyAnswers TinyValues",
               seeded_prompt("tiny55", padding=0, tokens=11, step=2.0**-17) | answers([3, 10], [28, 28]),
               "off_by_one_logits kv_heads_interleaved eps_missing layer_norm gate_and_up_exchanged "
               "embeddings_scaled repeated_tokens_once first_token_masked eps_of_1e-6 eps_after_the_root eps_of_1e-3 "
               "heads_not_transposed softmax_over_queries heads_normed not_causal first_token_not_attended relu "
               "sigmoid_gate mlp_first all_embeddings_scaled"),
    _objective(29, "A negative token", "BadArgument", prompt(5, 7) | answers([3], [-1, 6]), result="invalid"),
    _objective(30, "Padding on the right", "BadArgument",
               {"x": EMBED[[5, 7, 0]], "attention_mask": np.array([1, 1, 0])} | answers([3], [6]), result="invalid"),
    _objective(31, "A hole in the attention mask", "BadArgument",
               {"x": EMBED[[5, 7, 9]], "attention_mask": np.array([1, 0, 1])} | answers([3], [6]), result="invalid"),
    _objective(32, "Nothing but padding", "BadArgument",
               {"x": EMBED[[0, 0]], "attention_mask": np.array([0, 0])} | answers([3], [6]), result="invalid"),
    _objective(33, "NaN in the prompt", "NotANumber",
               {"x": spoilt(EMBED[[5, 7]], math.nan), "attention_mask": mask(0, 2)} | answers([3], [6]),
               result="invalid"),
    _objective(34, "Infinity in the prompt", "NotANumber",
               {"x": spoilt(EMBED[[5, 7]], math.inf), "attention_mask": mask(0, 2)} | answers([3], [6]),
               result="invalid"),
    # The only cases of which float16 and bfloat16 cannot count the positions.
    _objective(35, "A prompt of 320 tokens", "FarPositions LongPrompt OffVocabulary",
               seeded_prompt("far-6", tokens=320) | answers([3, 9], [6, 1]),
               "positions_in_bfloat16"),
)  # fmt: skip
