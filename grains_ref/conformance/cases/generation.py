"""Cases of generation, sect. 3.3: the steered decoder in batches, at some of the layers, token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from grains_ref.conformance.cases.common import Case, ResultKind, bf16, grid, mask, numbered, spoilt
from grains_ref.conformance.toy import BLOCKS, VOCABULARY, WIDTH


def _generation(
    number: int,
    comment: str,
    flags: str,
    prompts: Sequence[Sequence[int]],
    v: np.ndarray,
    lam: float,
    layers: list[int],
    forced: Sequence[Sequence[int]],
    kills: str = "",
    *,
    seen: Sequence[Sequence[int]] = (),
    result: ResultKind = "valid",
) -> Case:
    longest = max(len(words) for words in prompts)
    ids = np.array([[0] * (longest - len(words)) + list(words) for words in prompts])
    padded = np.stack([mask(longest - len(words), len(words)) for words in prompts])
    inputs = {"ids": ids, "attention_mask": np.array(seen) if len(seen) else padded, "v": bf16(v), "lam": float(lam),
              "layers": layers, "forced": np.array(forced, dtype=np.int64)}  # fmt: skip
    return numbered("generation", number, comment, flags, inputs, kills, result)


ALL = list(range(BLOCKS))
_V = grid("generation-v", BLOCKS, WIDTH)
_prompts = ([5, 7, 11, 13, 2, 17, 23], [9, 4], [26, 12, 3, 30, 8])
_forced = ([3, 9, 4, 6, 1, 28], [20, 21, 22, 23, 24, 25], [0, 18, 0, 29, 10, 16])

CASES = (
    _generation(1, "One prompt, all layers", "Basic", [[5, 7, 11, 13, 2]], _V, 1.0, ALL, [[3, 9, 4]],
                "layer_numbers_one_late one_vector_for_all before_the_block ten_times_lam released_generation "
                "first_layer_left_out vectors_one_early vectors_reversed after_the_final_norm lam_by_depth "
                "strength_reversed new_tokens_not_attended new_positions_one_late second_best_token lowest_logit "
                "tokens_of_the_forced_run tokens_one_late stops_after_one rotary_pairs_adjacent values_rotated "
                "attention_capped relu"),
    _generation(2, "Three prompts of different lengths, all layers", "LeftPadding Batch",
                _prompts, _V, 1.0, ALL, _forced,
                "prefill_only decode_only last_layer_only layer_numbers_one_late first_row_only padding_attended "
                "new_positions_stuck released_generation_with_tensors eps_of_1e-3 up_missing"),
    _generation(3, "Three prompts, a strength of the size of h", "LeftPadding Batch Strength",
                _prompts, _V, 4.0, ALL, _forced,
                "vectors_one_late first_row_only norm_over_the_sequence norm_left_out hook_twice "
                "released_generation_with_tensors first_new_token_unsteered rotary_scaled softmax_over_queries "
                "attention_and_mlp_side_by_side"),
    _generation(4, "Only the first layer", "Layers Batch", _prompts, _V, 3.0, [0], _forced,
                "last_prompt_token_and_after last_layer_only layers_ignored layer_numbers_one_late "
                "norm_over_the_sequence hook_twice last_prompt_token_twice released_generation masked_after_softmax "
                "mlp_first"),
    _generation(5, "Only the last layer", "Layers Batch", _prompts, _V, 3.0, [2], _forced,
                "prefill_only layers_ignored first_row_only ten_times_lam hook_twice layers_reversed "
                "vectors_by_place_in_the_list first_kv_head_for_all heads_normed attention_residual_missing"),
    _generation(6, "Only the middle layer, named alone", "Layers Batch", _prompts, _V, -3.0, [1], _forced,
                "layers_ignored vectors_one_late one_vector_for_all first_row_only new_positions_by_column "
                "released_generation released_generation_with_tensors heads_not_transposed not_causal "
                "blocks_exchanged logits_capped"),
    _generation(7, "First and last layer", "Layers LeftPadding", _prompts[1:], _V, 2.0, [0, 2], _forced[1:],
                "prefill_only decode_only last_prompt_token_and_after norm_over_the_sequence new_positions_by_column "
                "first_new_token_only vectors_by_place_in_the_list mask_of_row_0 new_positions_restart "
                "stops_after_one rotary_base_of_llama attention_not_scaled one_token_ahead last_block_missing"),
    _generation(8, "Lambda zero: the model as it is", "Strength LeftPadding Batch", _prompts, _V, 0.0, ALL, _forced,
                "padding_attended new_positions_stuck last_prompt_token_twice mask_of_row_0 new_positions_one_early "
                "stops_at_a_repetition rotary_exponent_halved angles_in_float16 window_of_three "
                "all_embeddings_scaled"),
    _generation(9, "No layers: the model as it is", "Layers", _prompts[:2], _V, 5.0, [], _forced[:2],
                "last_layer_only layers_ignored padding_attended new_positions_stuck last_prompt_token_twice "
                "first_layer_only new_tokens_not_attended new_positions_one_late new_positions_restart "
                "sum_of_squares rotary_backward attention_scaled_twice first_token_not_attended head_one_off"),
    _generation(10, "A strength that leaves little of h", "Strength", [[1, 2, 3]], _V, 16.0, ALL, [[4, 5, 6, 7, 8, 9]],
                "prefill_only decode_only norm_over_the_sequence norm_left_out first_token_of_row_unsteered "
                "last_prompt_token_unsteered first_new_token_unsteered last_prompt_token_only first_new_token_only "
                "last_row_unsteered first_layer_only last_layer_left_out layers_not_asked_for first_vector_for_all "
                "mean_vector_for_all lowest_logit tokens_of_the_forced_run stops_at_a_repetition final_norm_missing "
                "final_norm_twice head_tied_to_embeddings temperature_of_two"),
    _generation(11, "A prompt of one token beside a long one", "OneToken LeftPadding Batch",
                [[19], [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 0]], _V, 1.5, ALL, [[6, 1, 12, 27], [15, 15, 2, 8]],
                "layer_numbers_one_late one_vector_for_all ten_times_lam padding_attended new_positions_by_column "
                "last_layer_left_out unsteered positions_of_row_0 first_token_masked norm_weight_plus_one "
                "rotary_missing angles_in_bfloat16 gate_and_up_exchanged temperature_of_0.7"),
    _generation(12, "One new token", "Basic", [[14, 20, 6], [8, 8, 21]], _V, 2.0, ALL, [[7], [25]],
                "decode_only vectors_one_late before_the_block first_token_of_row_unsteered "
                "last_prompt_token_unsteered first_layer_left_out first_vector_for_all vectors_one_early "
                "vectors_reversed after_the_final_norm lam_shared_by_the_layers lam_by_depth strength_halved "
                "vectors_normalised second_best_token tokens_one_late layer_norm norm_weight_missing "
                "kv_heads_interleaved attention_with_a_sink sigmoid_gate"),
    _generation(13, "Token 0 in the middle of a prompt is no padding", "PaddingIdInResponse",
                [[4, 0, 9, 0], [0, 22]], _V, 1.0, [0, 1], [[0, 5, 0], [11, 0, 3]],
                "last_layer_only vectors_one_late one_vector_for_all before_the_block new_positions_by_column "
                "last_prompt_token_only last_row_unsteered layers_reversed layers_not_asked_for mean_vector_for_all "
                "lam_shared_by_the_layers strength_halved strength_reversed unsteered vectors_normalised "
                "new_positions_one_early first_token_masked norms_exchanged keys_not_rotated "
                "attention_scaled_by_width gelu"),
    _generation(14, "A vector for every block but one", "BadShape", [[5, 7]], _V[:2], 1.0, [0, 1], [[3]],
                result="invalid"),
    _generation(15, "A layer that does not exist", "BadArgument", [[5, 7]], _V, 1.0, [3], [[3]], result="invalid"),
    _generation(16, "A layer named twice", "BadArgument", [[5, 7]], _V, 1.0, [1, 1], [[3]], result="invalid"),
    _generation(17, "NaN in v", "NotANumber", [[5, 7]], np.where(np.arange(WIDTH) == 4, np.nan, _V), 1.0, ALL, [[3]],
                result="invalid"),
    _generation(18, "A continuation for one row too many", "BadShape", [[5, 7]], _V, 1.0, ALL, [[3], [4]],
                result="invalid"),
    _generation(19, "A prompt with a token beyond the vocabulary", "BadArgument", [[5, VOCABULARY]], _V, 1.0, ALL,
                [[3]], result="invalid"),
    _generation(20, "A prompt with a negative token", "BadArgument", [[5, -1]], _V, 1.0, ALL, [[3]], result="invalid"),
    _generation(21, "A continuation with a token beyond the vocabulary", "BadArgument", [[5, 7]], _V, 1.0, ALL,
                [[3, VOCABULARY]], result="invalid"),
    _generation(22, "Nothing to generate", "BadArgument", [[5, 7]], _V, 1.0, ALL, [[]], result="invalid"),
    _generation(23, "A negative layer", "BadArgument", [[5, 7]], _V, 1.0, [-1], [[3]], result="invalid"),
    _generation(24, "Infinity in v", "NotANumber", [[5, 7]], spoilt(_V, math.inf), 1.0, ALL, [[3]], result="invalid"),
    _generation(25, "Lambda is NaN", "NotANumber", [[5, 7]], _V, math.nan, ALL, [[3]], result="invalid"),
    _generation(26, "Vectors of another width", "BadShape", [[5, 7]], _V[:, :-1], 1.0, ALL, [[3]], result="invalid"),
    _generation(27, "Padding on the right", "BadArgument", [[5, 7, 0]], _V, 1.0, ALL, [[3]],
                seen=[[1, 1, 0]], result="invalid"),
    _generation(28, "A row of padding only", "BadArgument", [[5, 7], [0, 0]], _V, 1.0, ALL, [[3], [4]],
                seen=[[1, 1], [0, 0]], result="invalid"),
    _generation(29, "An attention mask longer than the prompt", "BadShape", [[5, 7]], _V, 1.0, ALL, [[3]],
                seen=[[0, 1, 1]], result="invalid"),
    # v has a row for every block, whatever the order in which blocks are named.
    _generation(30, "Two layers, the later one named first", "Layers LeftPadding Batch", _prompts, _V, 2.0, [2, 0],
                _forced, "vectors_by_place_in_the_list"),
    _generation(31, "All layers out of order", "Layers LeftPadding Batch", _prompts, _V, -2.0, [1, 2, 0], _forced,
                "vectors_by_place_in_the_list"),
)  # fmt: skip
