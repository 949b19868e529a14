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
              "tokens_dropped tokens_unattended states_one_early mean_over_positions delta_reversed released_contrast"),
    _contrast(2, "Three against two, padding baseline, strongest first", "PaddingBaseline", _seven, "padding",
              [4, 0, 2], [5, 1], "zeros_for_baseline last_state_normed delta_reversed sets_swapped"),
    _contrast(3, "Mean-like baseline", "OtherBaseline", _seven, "mean", [2], [3, 1],
              "tokens_dropped tokens_unattended padding_for_baseline zeros_for_baseline states_one_early "
              "before_the_mlp"),
    _contrast(4, "Left padding", "LeftPadding", _padded_seven, "zero", [4], [3, 5],
              "last_position_by_length delta_normalised mask_ignored_in_states indices_without_padding"),
    _contrast(5, "Left padding, padding baseline", "LeftPadding PaddingBaseline", _padded_seven, "padding", [5, 3], [4],
              "tokens_dropped states_one_early delta_normalised mask_ignored_in_states"),
    # The last token's own state is read: hiding it from attention changes nothing that it says itself.
    _contrast(6, "The last token is masked", "LastToken", _seven, "zero", [6], [2],
              "tokens_unattended last_state_normed mask_not_undone before_the_mlp"),
    _contrast(7, "The last token is masked with others", "LastToken PaddingBaseline", _seven, "padding", [1, 2],
              [6, 0], "tokens_unattended last_state_normed mask_not_undone before_the_mlp"),
    _contrast(8, "The first token is masked", "Basic", _seven, "zero", [0], [3],
              "tokens_unattended mean_over_positions first_position complement_masked released_contrast"),
    _contrast(9, "No positive token: the shift is exactly zero", "EmptySet", _seven, "zero", [], [3, 2],
              "mean_over_positions complement_masked empty_set_masks_all"),
    _contrast(10, "No negative token: the shift is exactly zero", "EmptySet", _seven, "padding", [2], [],
              "zeros_for_baseline first_position complement_masked"),
    _contrast(11, "Neither: both shifts are exactly zero", "EmptySet LeftPadding", _padded_seven, "zero", [], [],
              "empty_set_masks_all"),
    _contrast(12, "Sets that share a token", "OverlappingSets", _seven, "zero", [1, 2], [2, 5],
              "tokens_dropped mask_not_undone sets_swapped"),
    _contrast(13, "Every token is masked", "LastToken", _seven, "mean", [0, 1, 2, 3, 4, 5, 6], [5],
              "padding_for_baseline first_position mask_not_undone released_contrast"),
    _contrast(14, "A prompt of one token", "OneToken LastToken", prompt(19), "padding", [0], [],
              "zeros_for_baseline delta_reversed delta_normalised sets_swapped empty_set_masks_all"),
    # Padding is seen by nobody: to mask it as well changes nothing.
    _contrast(15, "A set that contains padding", "LeftPadding", _padded_seven, "zero", [1, 5], [3, 0],
              "padding_for_baseline last_state_normed last_position_by_length indices_without_padding"),
    _contrast(16, "Another baseline for every token, embeddings of no token", "OtherBaseline OffVocabulary",
              seeded_prompt("contrast-a", padding=2, tokens=9), grid("contrast-ab", 11, WIDTH),
              [3, 9, 6], [4, 2],
              "states_one_early last_position_by_length delta_reversed mask_ignored_in_states indices_without_padding "
              "released_contrast"),
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
