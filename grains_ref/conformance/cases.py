"""The cases of the kit: inputs of the seven stages, what each is for, and which planted bugs it must catch.

Cases are built to hide nothing. Left padding, answers of several tokens and different lengths, a padding token whose
embedding is not zero, batches, the first, middle and last layer, axes of different prime sizes: each of them hides a
bug when it is missing. One token per answer, no padding, batch 1 and lambda 1 together hide most of them.

Every number comes from a formula in whole numbers or from `random.Random` with the name of the case, and is one that
bfloat16 can hold, so that vectors regenerate bit for bit and serve every dtype. An id is never reused and a case never
edited in place.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from grains_ref.conformance.toy import BLOCKS, VOCABULARY, WIDTH, toy_weights

ResultKind = Literal["valid", "invalid", "acceptable"]


@dataclass(frozen=True)
class Case:
    """One input of one stage.

    result: `valid` has one right output; `invalid` must be refused; `acceptable` is ill-posed (near ties, a small
    eigen-gap), and the comparator knows which outputs are right. kills: the planted bugs that it must catch.
    """

    id: str
    stage: str
    comment: str
    flags: tuple[str, ...]
    result: ResultKind
    inputs: dict[str, Any]
    kills: tuple[str, ...]


@dataclass(frozen=True)
class Flag:
    """What a group of cases looks for, in Wycheproof's manner."""

    bug_type: str
    description: str
    effect: str


FLAGS: dict[str, Flag] = {
    "Basic": Flag("BASIC", "A plain input", "Nothing else can be right if this is wrong"),
    "LeftPadding": Flag("MISSING_STEP", "Padding on the left", "What is padded into a batch changes the result"),
    "UnequalLengths": Flag(
        "MISSING_STEP", "Responses of different lengths", "Longer answers are scored wrongly, or padding is scored"
    ),
    "SharedTokens": Flag("EDGE_CASE", "Responses that start or end alike", "The answers cannot be told apart"),
    "PaddingIdInResponse": Flag("EDGE_CASE", "A response that contains token 0", "End-of-text tokens are not scored"),
    "OneToken": Flag("EDGE_CASE", "A prompt of a single token", "Shapes collapse, slices come out empty"),
    "TinyValues": Flag("EDGE_CASE", "Values near the smallest scale that counts", "A constant drowns the result"),
    "LargeValues": Flag("EDGE_CASE", "Values far above 1", "Products overflow"),
    "BeyondFloat16": Flag("EDGE_CASE", "Values that float16 cannot hold", "Not to be run in float16"),
    "OffVocabulary": Flag("EDGE_CASE", "Embeddings that belong to no token", "Something looks the prompt up again"),
    "LikelyAnswers": Flag("BASIC", "Responses that the model is likely to give", "The decoder differs in a detail"),
    "LongPrompt": Flag("BASIC", "A longer prompt", "Rotary positions and scales show only over some distance"),
    "Quadrature": Flag("MODIFIED_PARAMETER", "A rule or a number of steps", "Nodes or weights are wrong"),
    "PaddingBaseline": Flag(
        "MODIFIED_PARAMETER", "The padding token's embedding as baseline", "A baseline is assumed to be zero"
    ),
    "OtherBaseline": Flag("MODIFIED_PARAMETER", "A baseline that is neither", "A baseline is not the one given"),
    "FewerThanK": Flag("EDGE_CASE", "Fewer than k tokens of a sign", "Sets are filled up with the wrong sign"),
    "Zeros": Flag("EDGE_CASE", "Values of exactly zero, of either sign", "Zero counts as a sign or as a direction"),
    "TieBreakLowIndex": Flag(
        "EDGE_CASE", "Equal scores across the boundary; the lower index wins", "An unstable sort decides"
    ),
    "NearTie": Flag("ILL_POSED", "Scores closer to each other than the dtype's errors", "Either token is right"),
    "Ineligible": Flag("MISSING_STEP", "Tokens that may not be selected", "Padding or special tokens are masked"),
    "NotANumber": Flag("EDGE_CASE", "NaN in the input", "A broken run passes as a result"),
    "EmptySet": Flag("EDGE_CASE", "No tokens in a set", "Rounding errors, or a whole prompt, pass as a shift"),
    "LastToken": Flag("EDGE_CASE", "The last token is masked", "Its own state is what is read"),
    "OverlappingSets": Flag("EDGE_CASE", "Sets that share tokens", "One mask is put on top of the other"),
    "EigenGap": Flag("EDGE_CASE", "A given gap between the first eigenvalues", "The solver stops too early"),
    "SmallEigenGap": Flag("ILL_POSED", "Two eigenvalues that are nearly or exactly equal", "Any mixture is right"),
    "LargeMean": Flag("MISSING_STEP", "A mean that is large against the spread", "The mean passes as a component"),
    "SignRule": Flag("MISSING_STEP", "Sign rules that disagree", "A side points away from its shifts"),
    "ZeroRows": Flag("EDGE_CASE", "Examples or tokens that are zero", "They are left out, or turn into NaN"),
    "Batch": Flag("MISSING_STEP", "A batch of different rows", "Only one row is treated, or rows mix"),
    "Strength": Flag("MODIFIED_PARAMETER", "Lambda zero, negative, or of the size of h", "Lambda is misread"),
    "Cancellation": Flag("EDGE_CASE", "h and lam v cancel, exactly or nearly", "A division by zero"),
    "Layers": Flag("MODIFIED_PARAMETER", "Some of the layers", "Layer numbers are off, or are ignored"),
    "Degenerate": Flag("ILL_POSED", "Shifts that define no direction", "Noise passes as a direction"),
    "BadArgument": Flag("EDGE_CASE", "An argument that makes no sense", "Nonsense is computed silently"),
    "BadShape": Flag("EDGE_CASE", "Shapes that do not fit", "Broadcasting hides the mistake"),
}


# ---------------------------------------------------------------------------------------- building blocks
def bf16(values: Any) -> np.ndarray:
    """The nearest values that bfloat16 can hold, as float64."""
    return torch.from_numpy(np.array(values, dtype=np.float64)).bfloat16().double().numpy()


def grid(name: str, *shape: int, reach: int = 128, step: float = 1 / 128) -> np.ndarray:
    """Seeded whole numbers from -reach to reach, times step; exact in bfloat16 for reach <= 256 and steps 2^n."""
    numbers = random.Random(name)
    return bf16([numbers.randrange(-reach, reach + 1) * step for _ in range(math.prod(shape))]).reshape(shape)


EMBED = bf16(toy_weights()["embed"])


def mask(padding: int, tokens: int) -> np.ndarray:
    """Padding on the left."""
    return np.array([0] * padding + [1] * tokens)


def prompt(*ids: int, padding: int = 0) -> dict[str, np.ndarray]:
    """x and attention_mask of a prompt by its token ids."""
    return {"x": EMBED[[0] * padding + list(ids)], "attention_mask": mask(padding, len(ids))}


def seeded_prompt(name: str, *, tokens: int, padding: int = 0, step: float = 1 / 128) -> dict[str, np.ndarray]:
    """x and attention_mask of a prompt whose embeddings, padding included, belong to no token."""
    return {"x": grid(name, padding + tokens, WIDTH, step=step), "attention_mask": mask(padding, tokens)}


def answers(y_pos: Sequence[int], y_neg: Sequence[int]) -> dict[str, np.ndarray]:
    """The two responses."""
    return {"y_pos": np.array(y_pos, dtype=np.int64), "y_neg": np.array(y_neg, dtype=np.int64)}


def baselines(x: np.ndarray) -> dict[str, np.ndarray]:
    """Zero, padding and mean baselines for a prompt."""
    rows = {"zero": np.zeros(WIDTH), "padding": EMBED[0], "mean": bf16(EMBED.mean(0))}
    return {name: np.tile(row, (len(x), 1)) for name, row in rows.items()}


def _spoilt(values: Any, bad: float) -> np.ndarray:
    """The values with their last number replaced by a NaN or an infinity."""
    spoilt = np.array(values, dtype=np.float64)
    spoilt.flat[-1] = bad
    return spoilt


# ----------------------------------------------------------------------------------------------- objective
def _objective(
    number: int, comment: str, flags: str, inputs: dict[str, Any], kills: str = "", result: ResultKind = "valid"
) -> Case:
    return Case(f"objective-{number:03d}", "objective", comment, tuple(flags.split()), result, inputs,
                tuple(kills.split()))  # fmt: skip


OBJECTIVE = (
    _objective(1, "A short prompt and two responses of two tokens", "Basic",
               prompt(5, 7, 11, 13, 2) | answers([3, 9], [6, 1]),
               "off_by_one_logits off_by_two_logits end_of_text_appended raw_logits base_two embeddings_scaled"),
    # With one token against four, whatever is done per token instead of per response shows.
    _objective(2, "One token against four", "UnequalLengths", prompt(4, 8, 15, 16, 23) | answers([12], [9, 3, 27, 5]),
               "off_by_one_logits off_by_two_logits last_token_only mean_over_tokens response_padding_scored "
               "packed_without_mask response_positions_restart attention_not_scaled gate_and_up_exchanged"),
    _objective(3, "Left padding, three tokens against two", "LeftPadding UnequalLengths",
               prompt(5, 7, 11, 2, padding=3) | answers([3, 9, 4], [6, 1]),
               "mask_ignored sides_exchanged response_positions_by_column norm_weight_plus_one"),
    # The smallest input there is; here last, first, sum and mean are the same.
    _objective(4, "A prompt of one token, one token per response", "OneToken", prompt(19) | answers([3], [6]),
               "end_of_text_appended likelihood_only gate_and_up_exchanged embeddings_scaled"),
    _objective(5, "A prompt of one token, two tokens against three", "OneToken UnequalLengths",
               prompt(14) | answers([3, 9], [6, 1, 28]),
               "first_token_only mean_over_tokens likelihood_only gate_and_up_exchanged"),
    _objective(6, "Responses with the same first token", "SharedTokens",
               prompt(5, 20, 11, 13) | answers([17, 9, 4], [17, 2, 8]),
               "first_token_only packed_without_mask layer_norm"),
    _objective(7, "Responses with the same last token, such as a full stop", "SharedTokens",
               prompt(5, 20, 11, 13) | answers([9, 4, 17], [2, 8, 17]),
               "last_token_only last_token_one_late final_norm_missing"),
    _objective(8, "More padding than prompt", "LeftPadding",
               prompt(21, 22, padding=6) | answers([24, 25, 1], [26, 27, 2]),
               "last_token_only first_token_only mask_ignored"),
    # Scoring a token by its own row asks whether it is repeated: here the prompt ends as the responses begin.
    _objective(9, "Responses that repeat the prompt's last token", "SharedTokens",
               prompt(3, 14, 9) | answers([9, 9, 9], [9, 3]),
               "off_by_one_logits mean_over_tokens sides_exchanged kv_heads_interleaved"),
    _objective(10, "The same response twice: f is zero", "SharedTokens", prompt(2, 18, 30) | answers([7, 5], [7, 5]),
               "raw_logits base_two final_norm_missing"),
    _objective(11, "One response is the beginning of the other", "SharedTokens UnequalLengths",
               prompt(2, 18, 30) | answers([7, 5, 29, 10], [7, 5]),
               "response_padding_scored packed_without_mask layer_norm"),
    # Token 0 is the padding's id, but here somebody says it.
    _objective(12, "Responses that contain the padding's id", "PaddingIdInResponse UnequalLengths",
               prompt(1, 10, 20, padding=2) | answers([0, 6, 0], [23, 0]),
               "last_token_one_late padding_id_skipped response_positions_by_column kv_heads_interleaved "
               "rotary_pairs_adjacent norm_weight_plus_one attention_not_scaled"),
    # mean(h^2) is near EPS: RMSNorm's epsilon counts.
    _objective(13, "Embeddings so small that the norm's epsilon counts", "TinyValues OffVocabulary",
               seeded_prompt("objective-013", tokens=5, step=2.0**-16) | answers([3, 9], [6, 1, 12]),
               "last_token_only response_padding_scored response_one_position_early eps_missing layer_norm"),
    _objective(14, "Embeddings so large that the blocks change little", "LargeValues OffVocabulary",
               seeded_prompt("objective-014", tokens=5, step=0.5) | answers([3, 9], [6, 1, 12]),
               "off_by_two_logits packed_without_mask response_one_position_early rotary_pairs_adjacent "
               "final_norm_missing"),
    _objective(15, "Embeddings that belong to no token", "OffVocabulary",
               seeded_prompt("objective-015", tokens=5) | answers([8], [11, 2, 3]),
               "response_one_position_early kv_heads_interleaved rotary_pairs_adjacent rotary_base_of_llama "
               "attention_not_scaled embeddings_scaled"),
    # Distances up to 20: rotary base and layout show; attention has something to choose from.
    _objective(16, "Seventeen tokens, five against three", "LongPrompt UnequalLengths",
               prompt(*((j * j * 7 + 3 * j + 1) % VOCABULARY for j in range(17)))
               | answers([1, 2, 3, 4, 5], [30, 29, 28]),
               "raw_logits response_positions_restart rotary_pairs_adjacent"),
    _objective(17, "The first and the last id of the vocabulary", "PaddingIdInResponse",
               prompt(30, 0, 30, 0, 30) | answers([30, 0], [0, 30]),
               "padding_id_skipped base_two kv_heads_interleaved norm_weight_plus_one embeddings_scaled"),
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
               "packed_without_mask response_one_position_early rotary_base_of_llama norm_weight_plus_one"),
    _objective(25, "Likely answers to a longer prompt", "LikelyAnswers OffVocabulary LongPrompt LeftPadding",
               seeded_prompt("o863", padding=6, tokens=11, step=2.0**-7) | answers([6, 10], [3, 1, 19]),
               "off_by_two_logits base_two response_positions_restart rotary_pairs_adjacent rotary_base_of_llama "
               "attention_not_scaled"),
    _objective(26, "Likely answers that repeat a token", "LikelyAnswers OffVocabulary LeftPadding",
               seeded_prompt("o378", padding=6, tokens=3, step=2.0**-7) | answers([26, 5, 5, 5], [5, 5, 5, 10]),
               "mask_ignored packed_without_mask raw_logits response_positions_by_column kv_heads_interleaved "
               "rotary_pairs_adjacent layer_norm norm_weight_plus_one attention_not_scaled embeddings_scaled"),
    _objective(27, "Likely answers, two tokens against four", "LikelyAnswers OffVocabulary UnequalLengths",
               seeded_prompt("o82", padding=3, tokens=11, step=2.0**-5) | answers([19, 28], [26, 13, 21, 1]),
               "off_by_one_logits off_by_two_logits raw_logits base_two response_positions_restart "
               "response_positions_by_column response_one_position_early gate_and_up_exchanged"),
    _objective(28, "Likely answers to embeddings so small that the norm's epsilon counts", "LikelyAnswers TinyValues",
               seeded_prompt("tiny55", padding=0, tokens=11, step=2.0**-17) | answers([3, 10], [28, 28]),
               "off_by_one_logits kv_heads_interleaved eps_missing layer_norm gate_and_up_exchanged "
               "embeddings_scaled"),
    _objective(29, "A negative token", "BadArgument", prompt(5, 7) | answers([3], [-1, 6]), result="invalid"),
    _objective(30, "Padding on the right", "BadArgument",
               {"x": EMBED[[5, 7, 0]], "attention_mask": np.array([1, 1, 0])} | answers([3], [6]), result="invalid"),
    _objective(31, "A hole in the attention mask", "BadArgument",
               {"x": EMBED[[5, 7, 9]], "attention_mask": np.array([1, 0, 1])} | answers([3], [6]), result="invalid"),
    _objective(32, "Nothing but padding", "BadArgument",
               {"x": EMBED[[0, 0]], "attention_mask": np.array([0, 0])} | answers([3], [6]), result="invalid"),
    _objective(33, "NaN in the prompt", "NotANumber",
               {"x": _spoilt(EMBED[[5, 7]], math.nan), "attention_mask": mask(0, 2)} | answers([3], [6]),
               result="invalid"),
    _objective(34, "Infinity in the prompt", "NotANumber",
               {"x": _spoilt(EMBED[[5, 7]], math.inf), "attention_mask": mask(0, 2)} | answers([3], [6]),
               result="invalid"),
)  # fmt: skip


# --------------------------------------------------------------------------------------------- attribution
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
    return Case(f"attribution-{number:03d}", "attribution", comment, tuple(flags.split()), result, inputs,
                tuple(kills.split()))  # fmt: skip


_words = prompt(5, 7, 11, 13, 2)
_padded_words = prompt(9, 17, 4, 26, 12, padding=2)
_pair = answers([3, 9], [6, 1])
_half_baseline = np.where(np.array([[True], [False], [True], [False], [False]]), _words["x"], EMBED[0])
_not_a_number = np.where(np.arange(5)[:, None] == 3, np.nan, _words["x"])

ATTRIBUTION = (
    _attribution(1, "The paper's setting: five right steps from zero", "Basic", _words, _pair, "zero", 5, "right",
                 "left_riemann vanilla_gradient twenty_gauss_nodes input_factor_missing input_factor_twice "
                 "absolute_values l2_norm_over_width padding_as_baseline released_attribution"),
    _attribution(2, "One step: the gradient at x times the input", "Quadrature", _words, _pair, "padding", 1, "right",
                 "left_riemann twenty_gauss_nodes one_step_too_many times_x_not_difference last_token_attributed"),
    _attribution(3, "Two right steps", "Quadrature PaddingBaseline", _words, answers([3, 9, 4], [6]), "padding", 2,
                 "right",
                 "trapezoid gradients_not_reset one_step_too_many zero_as_baseline last_token_one_late_attributed"),
    _attribution(4, "Ten right steps, the paper's number for Gemma 3", "Quadrature",
                 prompt(2, 3, 5), answers([7, 11], [13, 17]), "mean", 10, "right",
                 "left_riemann steps_not_averaged gradients_not_reset zero_as_baseline last_token_one_late_attributed"),
    _attribution(5, "Five midpoint steps", "Quadrature PaddingBaseline", _words, _pair, "padding", 5, "midpoint",
                 "vanilla_gradient always_right_riemann one_step_too_many branch_of_y_pos mean_of_tokens_attributed"),
    _attribution(6, "One midpoint step", "Quadrature", prompt(8, 1, 28), _pair, "zero", 1, "midpoint",
                 "trapezoid always_right_riemann absolute_values padding_as_baseline preference_reversed"),
    _attribution(7, "Five Gauss-Legendre nodes", "Quadrature PaddingBaseline", _words, answers([20, 21], [22, 23]),
                 "padding", 5, "gauss_legendre",
                 "linspace_mean always_right_riemann gauss_not_rescaled branch_of_y_pos mean_of_tokens_attributed"),
    _attribution(8, "Two Gauss-Legendre nodes from the mean embedding", "Quadrature OtherBaseline", _words,
                 answers([20], [22, 23, 24, 25]), "mean", 2, "gauss_legendre",
                 "linspace_mean gauss_not_rescaled path_from_zero padding_as_baseline probability_attributed"),
    # Attention masks must be repeated with the steps; padding gets exactly 0.
    _attribution(9, "Left padding, zero baseline, three tokens against two", "LeftPadding UnequalLengths",
                 _padded_words, answers([3, 9, 4], [6, 1]), "zero", 5, "right",
                 "left_riemann trapezoid linspace_mean padding_as_baseline mask_ignored_on_the_path "
                 "last_token_attributed released_attribution"),
    _attribution(10, "Left padding, padding baseline, one token against four", "LeftPadding PaddingBaseline",
                 _padded_words, answers([15], [6, 1, 29, 8]), "padding", 5, "right",
                 "input_factor_missing path_from_zero likelihood_attributed mask_ignored_on_the_path "
                 "mean_of_tokens_attributed"),
    _attribution(11, "Responses with the same first token", "SharedTokens", _words, answers([17, 9, 4], [17, 2, 8]),
                 "mean", 5, "right",
                 "vanilla_gradient input_factor_missing absolute_values response_on_the_path probability_attributed"),
    _attribution(12, "Responses with the same last token", "SharedTokens", _words, answers([9, 4, 17], [2, 8, 17]),
                 "padding", 5, "right",
                 "steps_not_averaged input_factor_twice l2_norm_over_width likelihood_attributed"),
    # Where x and baseline agree there is nothing to explain: exactly 0, though the gradient is not.
    _attribution(13, "A baseline that equals x at two tokens", "OtherBaseline", _words, _pair, _half_baseline, 5,
                 "right", "input_factor_missing times_x_not_difference l2_norm_over_width preference_reversed"),
    _attribution(14, "A baseline of seeded numbers, another row for every token", "OtherBaseline", _words, _pair,
                 grid("attribution-014", 5, WIDTH), 3, "midpoint",
                 "twenty_gauss_nodes input_factor_twice mean_over_width response_on_the_path"),
    _attribution(15, "A prompt of one token", "OneToken", prompt(19), answers([3], [6, 1]), "padding", 5, "right",
                 "steps_not_averaged times_x_not_difference mean_over_width preference_reversed"),
    _attribution(16, "Eleven tokens, three steps", "LongPrompt UnequalLengths",
                 prompt(*((j * j * 11 + 2) % VOCABULARY for j in range(11))), answers([1, 2], [30, 29, 28, 27, 26]),
                 "padding", 3, "right",
                 "gradients_not_reset times_x_not_difference mean_over_width last_token_attributed "
                 "released_attribution"),
    _attribution(17, "Embeddings that belong to no token, with padding", "OffVocabulary LeftPadding",
                 seeded_prompt("attribution-017", padding=3, tokens=4), answers([12, 5], [19]), "mean", 5,
                 "gauss_legendre",
                 "vanilla_gradient gauss_not_rescaled path_from_zero zero_as_baseline response_on_the_path "
                 "branch_of_y_pos likelihood_attributed mask_ignored_on_the_path last_token_attributed "
                 "last_token_one_late_attributed mean_of_tokens_attributed probability_attributed "
                 "released_attribution"),
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
    _attribution(25, "Infinity in the prompt", "NotANumber", _words | {"x": _spoilt(_words["x"], math.inf)}, _pair,
                 "zero", 5, "right", result="invalid"),
    _attribution(26, "NaN in the baseline", "NotANumber", _words, _pair, _spoilt(_words["x"], math.nan), 5, "right",
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


# ----------------------------------------------------------------------------------------------- selection
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
    return Case(f"selection-{number:03d}", "selection", comment, tuple(flags.split()), result, inputs,
                tuple(kills.split()))  # fmt: skip


_mixed = [0.5, -1.25, 2.0, 0.125, -0.375, -3.0, 1.5, 0.75, -0.0625, 1.0, -2.0]

SELECTION = (
    _selection(1, "Eleven scores of both signs, three of each", "Basic", _mixed, 3,
               "k_plus_one k_in_total sets_exchanged weakest_first"),
    _selection(2, "One token per sign", "Basic", _mixed, 1, "absolute_ranking weakest_first"),
    # Here the largest absolute values are all negative.
    _selection(3, "Negative scores larger than all positive ones", "Basic", [0.25, -8, 0.5, -9, 0.125, -7, -6], 2,
               "absolute_ranking weakest_first"),
    _selection(4, "Two positive scores, three asked for", "FewerThanK", [-1, 0.5, -2, -0.25, 0.75, -4, -0.5], 3,
               "sign_not_required argsort_ends"),
    _selection(5, "No positive score", "FewerThanK", [-1, -0.5, -2, -0.5, -3], 3,
               "argsort_ends k_plus_one first_token_excluded"),
    _selection(6, "No negative score", "FewerThanK", [1, 0.5, 2, 0.25, 3], 2, "k_plus_one last_token_excluded"),
    _selection(7, "All scores zero: both sets are empty", "Zeros FewerThanK", [0.0] * 7, 3, "argsort_ends zero_counts"),
    _selection(8, "Zeros of both signs among the scores", "Zeros FewerThanK",
               [0.0, -1, 1.5, -0.0, -0.5, 2, 0.25], 6, "zero_counts sign_not_required"),
    _selection(9, "Equal positive scores across the boundary", "TieBreakLowIndex", [0.5, 2, 1, 1, -1, 1, 3], 3,
               "ties_to_the_higher last_token_excluded"),
    _selection(10, "Equal negative scores across the boundary", "TieBreakLowIndex", [-0.5, -2, -1, -1, 1, -1, -3], 3,
               "absolute_ranking ties_to_the_higher"),
    _selection(11, "All scores equal", "TieBreakLowIndex", [0.75] * 7, 2, "k_in_total first_token_excluded"),
    _selection(12, "Equal within the set, in the order of their index", "TieBreakLowIndex",
               [2, 0.5, 2, -1, 2, -1, 4], 4, "k_in_total ties_to_the_higher"),
    _selection(13, "More asked for than there are tokens", "FewerThanK", [1, -2, 1], 5,
               "sign_not_required argsort_ends"),
    _selection(14, "A single token", "OneToken FewerThanK", [0.5], 1, "argsort_ends first_token_excluded"),
    # Padding with the largest scores of all.
    _selection(15, "Ineligible tokens with the largest scores", "Ineligible", [9, -8, 7, 1, -0.5, 2, -1, 0.25], 2,
               "eligibility_ignored filtered_after_ranking indices_of_the_filtered_list released_selection",
               ineligible=[0, 1, 2]),
    _selection(16, "The last token is not eligible", "Ineligible", [0.5, -1, 0.25, 2, -0.5, 3], 2,
               "eligibility_ignored filtered_after_ranking", ineligible=[5]),
    _selection(17, "Ineligible tokens between eligible ones", "Ineligible", [1, 5, -1, 2, -6, -2, 3, 0.5, -3], 3,
               "eligibility_ignored filtered_after_ranking indices_of_the_filtered_list released_selection",
               ineligible=[1, 4]),
    _selection(18, "The strongest tokens are the first and the last", "Basic", [5, 1, -1, 2, -2, -5, 6], 2,
               "first_token_excluded last_token_excluded"),
    _selection(19, "The most negative tokens are the first and the last", "Basic", [-5, 1, -1, 2, -2, 5, -6], 2,
               "sets_exchanged first_token_excluded"),
    _selection(20, "Fewer eligible tokens than k", "Ineligible FewerThanK", [1, -1, 2, -2, 3, -3, 4], 4,
               "argsort_ends indices_of_the_filtered_list released_selection",
               ineligible=[1, 2, 4, 6]),
    _selection(21, "No token is eligible", "Ineligible FewerThanK", [1, -1, 2], 2,
               "eligibility_ignored", ineligible=[0, 1, 2]),
    # Differences of one part in 128: one step of bfloat16, but far above float32's.
    _selection(22, "Scores one step of bfloat16 apart", "Basic", [1 + j / 128 for j in (3, 1, 4, 0, 5)] + [-0.5], 3,
               "sign_not_required argsort_ends first_token_excluded"),
    _selection(23, "Scores of a millionth", "TinyValues", [j * 2.0**-20 for j in (3, -1, 4, -5, 9, 2, -6)], 2,
               "sets_exchanged rounded_to_four_decimals"),
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


# ------------------------------------------------------------------------------------------------ contrast
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
    return Case(f"contrast-{number:03d}", "contrast", comment, tuple(flags.split()), result, inputs,
                tuple(kills.split()))  # fmt: skip


_seven = prompt(5, 7, 11, 13, 2, 17, 23)
_padded_seven = prompt(9, 17, 4, 26, padding=3)

CONTRAST = (
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
    _contrast(21, "NaN in the prompt", "NotANumber", _seven | {"x": _spoilt(_seven["x"], math.nan)}, "zero", [1], [2],
              result="invalid"),
    # A baseline row that no set asks for, too.
    _contrast(22, "Infinity in the baseline of a token that is not masked", "NotANumber", _seven,
              _spoilt(_seven["x"], math.inf), [1], [2], result="invalid"),
    _contrast(23, "Padding on the right", "BadArgument", _seven | {"attention_mask": mask(2, 5)[::-1].copy()}, "zero",
              [1], [2], result="invalid"),
    _contrast(24, "An attention mask longer than the prompt", "BadShape", _seven | {"attention_mask": mask(0, 8)},
              "zero", [1], [2], result="invalid"),
)  # fmt: skip


# --------------------------------------------------------------------------------------------- aggregation
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
    return Case(f"aggregation-{number:03d}", "aggregation", comment, tuple(flags.split()), result, inputs,
                tuple(kills.split()))  # fmt: skip


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


_around_zero = np.array([[-1.0], [1.0], [-2.0], [2.0]])[:, :, None] * grid("aggregation-mirror", 2, 5, reach=8, step=1)
_across = np.zeros((4, 2, 5))  # scores +-1 along the first axis, the mean along the second
_across[:, :, 0], _across[:, :, 1] = np.array([[1], [-1], [1], [-1]]), 3.0
_large_mean = {sign: grid(f"aggregation-008m{sign}", 1, 2, 13, reach=120, step=1) for sign in "+-"}
_constant = np.tile(grid("aggregation-constant", 1, 3, 5), (6, 1, 1))
_alike = spiked("aggregation-015b", 7, 2, 13)
_one_weak_layer = spiked("aggregation-weak-layer", 7, 3, 13)
_one_weak_layer[:, 1] = 0
_seven_shifts = spiked("aggregation-025", 7, 2, 5)

AGGREGATION = (
    _aggregation(1, "Seven examples, three layers, width thirteen", "Basic",
                 spiked("aggregation-001+", 7, 3, 13), spiked("aggregation-001-", 7, 3, 13),
                 "mean_shift largest_entry_positive no_sign_rule sign_reversed sum_of_sides v_pos_alone "
                 "shifts_normalised features_standardised"),
    _aggregation(2, "Three examples, fewer than the width", "Basic",
                 spiked("aggregation-002+", 3, 2, 13), spiked("aggregation-002-", 3, 2, 13),
                 "uncentred mean_added majority_positive difference_reversed layers_side_by_side"),
    _aggregation(3, "Nineteen examples, more than the width", "Basic",
                 spiked("aggregation-003+", 19, 3, 5), spiked("aggregation-003-", 19, 3, 5),
                 "uncentred second_component majority_positive difference_reversed shifts_normalised"),
    _aggregation(4, "An eigen-gap of one half", "EigenGap", with_gap(32), with_gap(32)[:, ::-1],
                 "mean_shift mean_added sign_reversed v_pos_alone features_standardised solver_stopped_early"),
    # The direction is still defined in every dtype, but a solver needs its full number of iterations.
    _aggregation(5, "An eigen-gap of 0.06", "EigenGap", with_gap(8), with_gap(8)[:, ::-1],
                 "no_sign_rule neg_signed_by_pos sides_pooled solver_stopped_early"),
    _aggregation(6, "An eigen-gap of a thousandth", "SmallEigenGap", with_gap(1), with_gap(1)[:, ::-1],
                 result="acceptable"),
    _aggregation(7, "An eigenvalue of multiplicity two", "SmallEigenGap", with_gap(0), with_gap(0)[:, ::-1],
                 result="acceptable"),
    # Uncentred, the first component is the mean.
    _aggregation(8, "A mean far larger than the spread", "LargeMean",
                 spiked("aggregation-008+", 7, 2, 13, mean=0) / 8 + _large_mean["+"],
                 spiked("aggregation-008-", 7, 2, 13, mean=0) / 8 + _large_mean["-"],
                 "uncentred mean_shift neg_signed_by_pos v_normalised sides_pooled"),
    # One wrong sign does not reverse v, it replaces v by a vector at right angles.
    _aggregation(9, "Sign by the largest entry and sign by the mean differ for one side only", "SignRule",
                 spiked("aggregation-009d", 7, 1, 11), spiked("aggregation-009c", 7, 1, 11),
                 "largest_entry_positive largest_score_positive sum_of_sides sides_pooled features_standardised"),
    # Six weak examples against one strong one: a vote and the mean disagree.
    _aggregation(10, "A few strong examples against many weak ones", "SignRule",
                 spiked("aggregation-010+", 7, 2, 11, mean=0, scores=[-2, -3, -2, -3, -2, -3, 20]),
                 spiked("aggregation-010-", 7, 2, 11, mean=0, scores=[20, -3, -2, -3, -2, -3, -2]),
                 "second_component largest_entry_positive majority_positive one_direction_for_all_layers "
                 "shifts_normalised"),
    _aggregation(11, "Shifts of a millionth", "TinyValues", spiked("aggregation-011a", 7, 2, 13, mean=4) * 2.0**-24,
                 spiked("aggregation-011c", 7, 2, 13, mean=4) * 2.0**-24,
                 "mean_shift largest_score_positive sign_reversed difference_reversed one_direction_for_all_layers "
                 "eps_in_length"),
    _aggregation(12, "Shifts of a million", "LargeValues BeyondFloat16",
                 spiked("aggregation-012a", 7, 2, 13) * 2.0**15, spiked("aggregation-012f", 7, 2, 13) * 2.0**15,
                 "second_component scaled_by_deviation mean_added v_normalised"),
    # Examples without a positive or negative token: they count as zero, they are not left out.
    _aggregation(13, "Some shifts are zero", "ZeroRows",
                 spiked("aggregation-013+", 11, 2, 7, mean=24) * (np.arange(11) % 3 != 1)[:, None, None],
                 spiked("aggregation-013-", 11, 2, 7, mean=24) * (np.arange(11) % 4 != 2)[:, None, None],
                 "scaled_by_deviation no_sign_rule sum_of_sides layers_side_by_side zero_shifts_left_out "
                 "solver_stopped_early"),
    _aggregation(14, "Layers of very different size", "Layers",
                 spiked("aggregation-014e", 7, 5, 11) * (2.0 ** np.arange(-6, 4, 2))[:, None],
                 spiked("aggregation-014c", 7, 5, 11) * (2.0 ** np.arange(2, -8, -2))[:, None],
                 "largest_score_positive sum_of_sides layers_side_by_side one_direction_for_all_layers"),
    _aggregation(15, "Both sides nearly alike: v is short", "SignRule",
                 _alike, _alike + grid("aggregation-015g", 7, 2, 13, step=0.5, reach=4),
                 "no_sign_rule v_normalised v_pos_alone"),
    _aggregation(16, "Two examples", "Basic", spiked("aggregation-016+", 2, 3, 5), spiked("aggregation-016-", 2, 3, 5),
                 "scaled_by_deviation sign_reversed neg_signed_by_pos v_pos_alone"),
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
    _aggregation(28, "Infinity in one shift", "NotANumber", _seven_shifts, _spoilt(_seven_shifts, -math.inf),
                 result="invalid"),
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ steering
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
    return Case(f"steering-{number:03d}", "steering", comment, tuple(flags.split()), result, inputs,
                tuple(kills.split()))  # fmt: skip


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

STEERING = (
    _steering(1, "A batch of two, five tokens, lambda 1", "Basic Batch", stream("steering-001", 2, 5), _v, 1.0,
              "lam_times_ten interpolated batch_row_0_only last_token_steered_only released_steering_with_tensors"),
    # |lam v| is near |h|: what is done to the norm shows.
    _steering(2, "A strength of the size of h", "Strength Batch", stream("steering-002", 3, 7), _v, 2.5,
              "norm_over_sequence norm_over_tokens_and_width norm_over_batch norm_not_restored l1_norm "
              "released_steering released_steering_with_tensors"),
    _steering(3, "Lambda zero leaves h as it is", "Strength", stream("steering-003", 2, 5), _v, 0.0,
              "zero_lam_replaced"),
    _steering(4, "A negative lambda", "Strength", stream("steering-004", 2, 5), _v, -1.5,
              "lam_squared lam_reversed strength_relative_to_h batch_row_0_only"),
    _steering(5, "The paper's strength for Llama, 6", "Strength", stream("steering-005", 2, 5), _v, 6.0,
              "norm_over_sequence norms_of_row_0 largest_entry_norm lam_reversed released_steering"),
    _steering(6, "A single token, as in decoding with a cache", "OneToken Batch",
              stream("steering-006", 3, 1), _v, 0.75, "norm_over_sequence lam_reversed batch_row_0_only"),
    _steering(7, "One row, one token", "OneToken", stream("steering-007", 1, 1), _v, 0.5,
              "norm_over_sequence norm_not_restored strength_relative_to_h"),
    # As many tokens as features: axes that are exchanged still fit.
    _steering(8, "As many tokens as features", "Batch", stream("steering-008", 2, 7, 7), grid("steering-008v", 7), 0.5,
              "norm_over_sequence norm_not_restored lam_squared applied_twice"),
    _steering(9, "A long v and a weak lambda", "Strength", stream("steering-009", 2, 5), 16 * _v, 0.125,
              "lam_times_ten v_normalised_first applied_twice last_token_steered_only"),
    _steering(10, "A short v and a strong lambda", "Strength", stream("steering-010", 2, 5), _v / 16, 40.0,
              "norm_over_tokens_and_width largest_entry_norm v_normalised_first batch_row_0_only "
              "last_token_steered_only"),
    _steering(11, "Tokens that are zero stay zero", "ZeroRows Batch", _with_zero_rows, _v, 1.5,
              "norm_over_sequence norm_over_tokens_and_width norm_over_batch norms_of_row_0 norm_not_restored "
              "zero_rows_steered"),
    _steering(12, "Where h = -lam v no direction is left, and h is kept", "Cancellation", _cancelling, _v, 2.0,
              "norm_over_tokens_and_width lam_times_ten lam_squared strength_relative_to_h cancelled_to_zero "
              "cancelled_to_nan released_steering"),
    _steering(13, "Where h and lam v nearly cancel the norm is still restored", "Cancellation TinyValues", _nearly,
              _first_axis, 1.0, "norm_over_batch l1_norm largest_entry_norm only_shrinking eps_in_denominator"),
    # |h| near 1,000 times entries near 300 is far beyond 65,504.
    _steering(14, "Norms whose product with an entry overflows float16", "LargeValues Batch",
              256 * grid("steering-014", 2, 3, WIDTH), 128 * _v, 1.0,
              "norms_of_row_0 lam_times_ten v_normalised_first last_token_steered_only product_overflows"),
    _steering(15, "A v of zero leaves h as it is", "Zeros", stream("steering-015", 2, 3), np.zeros(WIDTH), 2.0,
              "interpolated"),
    _steering(16, "v turned against h shortens it before the norm is restored", "Strength Batch",
              _against, _v, 1.0, "norm_over_batch only_shrinking interpolated applied_twice "
              "released_steering_with_tensors"),
    _steering(17, "A v of another width", "BadShape", stream("steering-017", 2, 5), grid("steering-017v", 5), 1.0,
              result="invalid"),
    _steering(18, "A v of width one, which would broadcast", "BadShape", stream("steering-018", 2, 5), np.ones(1), 1.0,
              result="invalid"),
    _steering(19, "NaN in v", "NotANumber", stream("steering-019", 2, 5),
              np.where(np.arange(WIDTH) == 4, np.nan, _v), 1.0, result="invalid"),
    _steering(20, "Infinity in v", "NotANumber", stream("steering-020", 2, 5),
              np.where(np.arange(WIDTH) == 4, np.inf, _v), 1.0, result="invalid"),
    _steering(21, "Where all but 2^-28 cancels the norm is still restored", "Cancellation TinyValues BeyondFloat16",
              _very_nearly, _first_axis, 1.0, "eps_in_denominator"),
    _steering(22, "NaN in h", "NotANumber", _spoilt(stream("steering-022", 2, 5), math.nan), _v, 1.0, result="invalid"),
    _steering(23, "Infinity in h", "NotANumber", _spoilt(stream("steering-023", 2, 5), math.inf), _v, 1.0,
              result="invalid"),
    _steering(24, "Lambda is NaN", "NotANumber", stream("steering-024", 2, 5), _v, math.nan, result="invalid"),
    _steering(25, "Lambda is infinite", "NotANumber", stream("steering-025", 2, 5), _v, math.inf, result="invalid"),
    _steering(26, "States without a batch axis", "BadShape", stream("steering-026", 1, 5)[0], _v, 1.0,
              result="invalid"),
    _steering(27, "A vector per token", "BadShape", stream("steering-027", 1, 5), np.tile(_v, (5, 1)), 1.0,
              result="invalid"),
)  # fmt: skip


# ---------------------------------------------------------------------------------------------- generation
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
    return Case(f"generation-{number:03d}", "generation", comment, tuple(flags.split()), result, inputs,
                tuple(kills.split()))  # fmt: skip


ALL = list(range(BLOCKS))
_V = grid("generation-v", BLOCKS, WIDTH)
_three = ([5, 7, 11, 13, 2, 17, 23], [9, 4], [26, 12, 3, 30, 8])
_said = ([3, 9, 4, 6, 1, 28], [20, 21, 22, 23, 24, 25], [0, 18, 0, 29, 10, 16])

GENERATION = (
    _generation(1, "One prompt, all layers", "Basic", [[5, 7, 11, 13, 2]], _V, 1.0, ALL, [[3, 9, 4]],
                "layer_numbers_one_late one_vector_for_all before_the_block ten_times_lam released_generation"),
    _generation(2, "Three prompts of different lengths, all layers", "LeftPadding Batch", _three, _V, 1.0, ALL, _said,
                "prefill_only decode_only last_layer_only layer_numbers_one_late first_row_only padding_attended "
                "new_positions_stuck released_generation_with_tensors"),
    _generation(3, "Three prompts, a strength of the size of h", "LeftPadding Batch Strength",
                _three, _V, 4.0, ALL, _said,
                "vectors_one_late first_row_only norm_over_the_sequence norm_left_out hook_twice "
                "released_generation_with_tensors"),
    _generation(4, "Only the first layer", "Layers Batch", _three, _V, 3.0, [0], _said,
                "last_prompt_token_and_after last_layer_only layers_ignored layer_numbers_one_late "
                "norm_over_the_sequence hook_twice last_prompt_token_twice released_generation"),
    _generation(5, "Only the last layer", "Layers Batch", _three, _V, 3.0, [2], _said,
                "prefill_only layers_ignored first_row_only ten_times_lam hook_twice"),
    _generation(6, "Only the middle layer, named alone", "Layers Batch", _three, _V, -3.0, [1], _said,
                "layers_ignored vectors_one_late one_vector_for_all first_row_only new_positions_by_column "
                "released_generation released_generation_with_tensors"),
    _generation(7, "First and last layer", "Layers LeftPadding", _three[1:], _V, 2.0, [0, 2], _said[1:],
                "prefill_only decode_only last_prompt_token_and_after norm_over_the_sequence new_positions_by_column"),
    _generation(8, "Lambda zero: the model as it is", "Strength LeftPadding Batch", _three, _V, 0.0, ALL, _said,
                "padding_attended new_positions_stuck last_prompt_token_twice"),
    _generation(9, "No layers: the model as it is", "Layers", _three[:2], _V, 5.0, [], _said[:2],
                "last_layer_only layers_ignored padding_attended new_positions_stuck last_prompt_token_twice"),
    _generation(10, "A strength that leaves little of h", "Strength", [[1, 2, 3]], _V, 16.0, ALL, [[4, 5, 6, 7, 8, 9]],
                "prefill_only decode_only norm_over_the_sequence norm_left_out"),
    _generation(11, "A prompt of one token beside a long one", "OneToken LeftPadding Batch",
                [[19], [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 0]], _V, 1.5, ALL, [[6, 1, 12, 27], [15, 15, 2, 8]],
                "layer_numbers_one_late one_vector_for_all ten_times_lam padding_attended new_positions_by_column"),
    _generation(12, "One new token", "Basic", [[14, 20, 6], [8, 8, 21]], _V, 2.0, ALL, [[7], [25]],
                "decode_only vectors_one_late before_the_block"),
    _generation(13, "Token 0 in the middle of a prompt is no padding", "PaddingIdInResponse",
                [[4, 0, 9, 0], [0, 22]], _V, 1.0, [0, 1], [[0, 5, 0], [11, 0, 3]],
                "last_layer_only vectors_one_late one_vector_for_all before_the_block new_positions_by_column"),
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
    _generation(24, "Infinity in v", "NotANumber", [[5, 7]], _spoilt(_V, math.inf), 1.0, ALL, [[3]], result="invalid"),
    _generation(25, "Lambda is NaN", "NotANumber", [[5, 7]], _V, math.nan, ALL, [[3]], result="invalid"),
    _generation(26, "Vectors of another width", "BadShape", [[5, 7]], _V[:, :-1], 1.0, ALL, [[3]], result="invalid"),
    _generation(27, "Padding on the right", "BadArgument", [[5, 7, 0]], _V, 1.0, ALL, [[3]],
                seen=[[1, 1, 0]], result="invalid"),
    _generation(28, "A row of padding only", "BadArgument", [[5, 7], [0, 0]], _V, 1.0, ALL, [[3], [4]],
                seen=[[1, 1], [0, 0]], result="invalid"),
    _generation(29, "An attention mask longer than the prompt", "BadShape", [[5, 7]], _V, 1.0, ALL, [[3]],
                seen=[[0, 1, 1]], result="invalid"),
)  # fmt: skip


CASES: tuple[Case, ...] = (
    *OBJECTIVE,
    *ATTRIBUTION,
    *SELECTION,
    *CONTRAST,
    *AGGREGATION,
    *STEERING,
    *GENERATION,
)
