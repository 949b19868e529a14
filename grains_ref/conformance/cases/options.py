"""Cases of the options: each is asked only of a port that claims it, and is built as those of its stage are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from grains_ref.conformance.cases.aggregation import spiked, with_gap
from grains_ref.conformance.cases.common import (
    EMBED,
    Case,
    ResultKind,
    answers,
    baselines,
    bf16,
    grid,
    mask,
    numbered,
    prompt,
    seeded_prompt,
    spoilt,
)
from grains_ref.conformance.cases.option_kills import KILLS
from grains_ref.conformance.toy import BLOCKS, VOCABULARY, WIDTH


def _cases(option: str, *rows: tuple[Any, ...]) -> tuple[Case, ...]:
    """Numbered cases from rows of comment, flags, inputs, and, if it is not `valid`, the result."""
    made = []
    for number, (comment, flags, inputs, *rest) in enumerate(rows, start=1):
        result: ResultKind = rest[0] if rest else "valid"
        kills = KILLS.get(f"{option}-{number:03d}", "")
        made.append(numbered(option, number, comment, flags, inputs, kills, result))
    return tuple(made)


# ------------------------------------------------------------------------------------- objective
_short = prompt(5, 7, 11, 13, 2)
_padded = prompt(9, 17, 4, 26, 12, padding=3)
_long = prompt(*((j * j * 11 + 2) % VOCABULARY for j in range(11)))
_pair, _unequal, _twice = answers([3, 9], [6, 1]), answers([3, 9, 4], [6]), answers([13, 13], [26, 1])


Words = Sequence[Sequence[int]]


def batch(prompts: Words, y_pos: Words, y_neg: Words, *, room: int = 0) -> dict[str, Any]:
    """Prompts padded on the left, responses on the right, and what is seen of each; `room` for longer ones."""
    longest = max(len(words) for words in prompts) + room
    given: dict[str, Any] = {
        "x": EMBED[[[0] * (longest - len(words)) + list(words) for words in prompts]],
        "attention_mask": np.stack([mask(longest - len(words), len(words)) for words in prompts]),
    }
    for side, responses in (("pos", y_pos), ("neg", y_neg)):
        size = max(len(words) for words in responses) + room
        given[f"y_{side}"] = np.array([[*words, *[0] * (size - len(words))] for words in responses])
        given[f"seen_{side}"] = np.array([[1] * len(words) + [0] * (size - len(words)) for words in responses])
    return given


_three = batch(
    ([5, 7, 11, 13, 2, 17, 23], [9, 4], [26, 12, 3, 30, 8]),
    ([3, 9, 4], [20], [0, 18]),
    ([6, 1], [21, 22, 23, 24], [29]),
)
_one = batch(([5, 7, 11],), ([3, 9],), ([6],), room=2)
_seen_by_nobody = _three | {"seen_pos": np.array([[1, 1, 1], [0, 0, 0], [1, 1, 0]])}

_OBJECTIVE = (
    *_cases(
        "objective_batch",
        ("Three prompts and responses of different lengths", "Batch LeftPadding UnequalLengths", _three),
        ("A batch of one, padded all the same", "Batch LeftPadding", _one),
        ("Prompts of one length, responses of different lengths", "Batch UnequalLengths",
         batch(([5, 7, 11], [9, 4, 8], [2, 3, 1]), ([3, 9, 4], [20], [7, 7]), ([6], [21, 0, 23, 24], [29, 5]))),
        ("Embeddings that belong to no token", "Batch OffVocabulary LeftPadding",
         _three | {"x": grid("objective_batch-004", 3, 7, WIDTH)}),
        ("A row without a response", "Batch BadArgument", _seen_by_nobody, "invalid"),
        ("Responses padded on the left", "Batch BadArgument",
         _three | {"seen_pos": np.array([[1, 1, 1], [0, 0, 1], [0, 1, 1]])}, "invalid"),
        ("Responses for two rows of three", "Batch BadShape",
         _three | {"y_pos": _three["y_pos"][:2], "seen_pos": _three["seen_pos"][:2]}, "invalid"),
    ),
    *_cases(
        "objective_qk_norm",
        ("A short prompt", "DecoderFeature Basic", _short | _pair),
        ("Left padding", "DecoderFeature LeftPadding",
         seeded_prompt("objective_qk_norm-4", tokens=8, padding=2) | _unequal),
        ("Embeddings that belong to no token", "DecoderFeature OffVocabulary",
         seeded_prompt("objective_qk_norm-3", tokens=7, step=2.0**-5) | answers([12, 5], [19, 7])),
        ("A response that says a token twice", "DecoderFeature OffVocabulary SharedTokens",
         seeded_prompt("objective_qk_norm-3", tokens=7) | _twice),
    ),
    *_cases(
        "objective_biases",
        ("A short prompt", "DecoderFeature Basic", _short | _pair),
        ("Left padding", "DecoderFeature LeftPadding",
         seeded_prompt("objective_biases-0", tokens=4, padding=2) | _pair),
        ("Embeddings that belong to no token", "DecoderFeature OffVocabulary LeftPadding",
         seeded_prompt("objective_biases-9", tokens=5, padding=2) | _twice),
        ("Others", "DecoderFeature OffVocabulary LeftPadding",
         seeded_prompt("objective_biases-3", tokens=7, padding=2) | _twice),
    ),
    *_cases(
        "objective_sliding_window",
        ("A window of three", "DecoderFeature Basic", _long | _pair | {"window": 3}),
        ("A window of three, left padding", "DecoderFeature LeftPadding", _padded | _unequal | {"window": 3}),
        ("A window of one: every token sees itself only", "DecoderFeature OneToken", _short | _pair | {"window": 1}),
        ("A window longer than the prompt, not than prompt and response", "DecoderFeature UnequalLengths",
         _short | answers([3, 9, 4, 20, 21], [6, 1, 7, 8]) | {"window": 6}),
        ("A window of two, embeddings that belong to no token", "DecoderFeature OffVocabulary",
         seeded_prompt("objective_sliding_window-3", tokens=7) | answers([12, 5], [19, 7]) | {"window": 2}),
        ("No window", "DecoderFeature BadArgument", _short | _pair | {"window": 0}, "invalid"),
    ),
    *_cases(
        "objective_soft_caps",
        ("Both capped", "DecoderFeature Basic", _short | _pair | {"attention_cap": 0.5, "logits_cap": 2.0}),
        ("Left padding", "DecoderFeature LeftPadding", _padded | _unequal | {"attention_cap": 0.25, "logits_cap": 1.0}),
        ("Embeddings that belong to no token", "DecoderFeature OffVocabulary LeftPadding",
         seeded_prompt("objective_soft_caps-1", tokens=5, padding=2) | _twice
         | {"attention_cap": 0.5, "logits_cap": 4.0}),
        ("Large embeddings", "DecoderFeature OffVocabulary LargeValues",
         seeded_prompt("objective_soft_caps-8", tokens=4, step=2.0**-5) | answers([12, 5], [19, 7])
         | {"attention_cap": 0.5, "logits_cap": 4.0}),
        ("Low caps", "DecoderFeature OffVocabulary LeftPadding",
         seeded_prompt("objective_soft_caps-6", tokens=6, padding=2) | answers([12, 5], [19, 7])
         | {"attention_cap": 0.25, "logits_cap": 1.0}),
        ("A cap of zero", "DecoderFeature BadArgument", _short | _pair | {"attention_cap": 0.0, "logits_cap": 2.0},
         "invalid"),
    ),
    *_cases(
        "objective_scaled_embeddings",
        ("Scaled by four", "DecoderFeature Basic", _short | _pair | {"scale": 4.0}),
        ("Left padding, scaled by a half", "DecoderFeature LeftPadding",
         seeded_prompt("objective_scaled_embeddings-1", tokens=5, padding=2) | _pair | {"scale": 0.5}),
        ("Embeddings that belong to no token", "DecoderFeature OffVocabulary",
         seeded_prompt("objective_scaled_embeddings-3", tokens=7, padding=2, step=2.0**-5) | _unequal | {"scale": 4.0}),
        ("Others", "DecoderFeature OffVocabulary LeftPadding",
         seeded_prompt("objective_scaled_embeddings-2", tokens=6, padding=2) | answers([12, 5], [19, 7])
         | {"scale": 4.0}),
        ("A scale that is no number", "DecoderFeature NotANumber", _short | _pair | {"scale": math.nan}, "invalid"),
    ),
)  # fmt: skip


# ------------------------------------------------------------------------------------- attribution
def _from(words: dict[str, np.ndarray], baseline: str | np.ndarray) -> dict[str, Any]:
    return words | {"baseline": baselines(words["x"])[baseline] if isinstance(baseline, str) else baseline}


_RULE = {"m": 5, "quadrature": "right"}
_far = grid("attribution-options", 5, WIDTH)


def _noise(name: str, n: int, words: dict[str, np.ndarray], step: float = 2.0**-8) -> dict[str, np.ndarray]:
    return {"noise": grid(name, n, *words["x"].shape, step=step)}


_picture = {
    "positions": np.array([[0, 1, 1, 1, 1, 1, 1, 4, 5], [0, 1, 1, 1, 2, 2, 2, 4, 5], [0, 1, 2, 3, 1, 2, 3, 4, 5]]),
    "token_types": np.array([0, 1, 1, 1, 1, 1, 1, 0, 0]),
}
_seen_picture = seeded_prompt("attribution_pictures", tokens=9)
_behind_padding = {name: np.pad(value, [(0, 0)] * (value.ndim - 1) + [(2, 0)]) for name, value in _picture.items()}
_two_frames = {
    "positions": np.array([[0, 1, 1, 2, 2, 3], [0, 1, 2, 1, 2, 3], [0, 1, 1, 1, 1, 3]]),
    "token_types": np.array([0, 1, 1, 1, 1, 0]),
}
_no_picture = {"positions": np.tile(np.arange(5), (3, 1)), "token_types": np.zeros(5, np.int64)}
_kinds = ["special", "template", "text", "image", "image", "text", "special"]
_seven_rows = grid("attribution_baselines", 7, WIDTH)
_table = {"x": _seven_rows, "kinds": _kinds, "embeddings": grid("attribution_baselines-table", 11, WIDTH)}

_ATTRIBUTION = (
    *_cases(
        "attribution_gradient",
        ("Zero baseline", "Basic", _from(_short, "zero") | _pair),
        ("Padding baseline, left padding", "PaddingBaseline LeftPadding", _from(_padded, "padding") | _unequal),
        ("Another baseline for every token", "OtherBaseline", _from(_short, _far) | _unequal),
        ("A prompt of one token", "OneToken", _from(prompt(19), "mean") | _pair),
        ("A baseline with one row for all tokens", "BadShape", _from(_short, EMBED[:1]) | _pair, "invalid"),
    ),
    *_cases(
        "attribution_smoothgrad",
        ("Three samples, zero baseline", "Noise Basic", _from(_short, "zero") | _pair | _noise("smooth-1", 3, _short)),
        ("One sample", "Noise PaddingBaseline", _from(_short, "padding") | _unequal | _noise("smooth-2", 1, _short)),
        ("Five samples, left padding", "Noise LeftPadding",
         _from(_padded, "mean") | _unequal | _noise("smooth-3", 5, _padded)),
        ("Noise of the size of x", "Noise OtherBaseline",
         _from(_short, _far) | _pair | _noise("smooth-4", 2, _short, 2.0**-7)),
        ("No samples", "Noise BadShape", _from(_short, "zero") | _pair | {"noise": np.zeros((0, 5, WIDTH))}, "invalid"),
        ("NaN in the noise", "Noise NotANumber",
         _from(_short, "zero") | _pair | {"noise": spoilt(np.zeros((2, 5, WIDTH)), math.nan)}, "invalid"),
    ),
    *_cases(
        "attribution_random",
        ("Scores of both signs", "Noise Basic", _short | {"scores": grid("random-1", 5, step=2.0**-6)}),
        ("Eleven scores", "Noise LongPrompt", _long | {"scores": grid("random-2", 11, step=2.0**-6)}),
        ("One score", "Noise OneToken", prompt(19) | {"scores": np.array([-0.75])}),
        ("A score too few", "Noise BadShape", _short | {"scores": np.ones(4)}, "invalid"),
    ),
    *_cases(
        "attribution_likelihood",
        ("Integrated gradients from zero", "Basic",
         _from(_short, "zero") | _pair | _RULE | {"method": "integrated_gradients"}),
        ("The gradient, zero baseline", "Basic", _from(_short, "zero") | _pair | _RULE | {"method": "gradient"}),
        ("Left padding, padding baseline", "LeftPadding PaddingBaseline",
         _from(_padded, "padding") | _unequal | _RULE | {"method": "integrated_gradients"}),
        ("The gradient, left padding", "LeftPadding OtherBaseline",
         _from(_padded, "mean") | _unequal | _RULE | {"method": "gradient"}),
        ("Gauss-Legendre, responses that start alike", "Quadrature SharedTokens",
         _from(_short, _far) | answers([17, 9, 4], [17, 2]) | {"m": 4, "quadrature": "gauss_legendre"}
         | {"method": "integrated_gradients"}),
        ("A method that does not exist", "BadArgument", _from(_short, "zero") | _pair | _RULE | {"method": "lrp"},
         "invalid"),
    ),
    *_cases(
        "attribution_batch",
        ("Three prompts, another baseline for every token", "Batch LeftPadding UnequalLengths",
         _three | {"baseline": grid("attribution_batch-001", 3, 7, WIDTH)} | _RULE),
        ("A batch of one, padded all the same", "Batch LeftPadding",
         _one | {"baseline": np.zeros((1, 5, WIDTH))} | _RULE),
        ("Padding baseline, midpoint", "Batch PaddingBaseline",
         _three | {"baseline": EMBED[np.zeros((3, 7), int)], "m": 3, "quadrature": "midpoint"}),
        ("A baseline for one row", "Batch BadShape", _three | {"baseline": np.zeros((1, 7, WIDTH))} | _RULE, "invalid"),
    ),
    *_cases(
        "attribution_pictures",
        ("A picture of two by three patches between texts", "Pictures Basic",
         _from(_seen_picture, grid("pictures-1", 9, WIDTH)) | _pair | _picture | _RULE),
        ("Left padding", "Pictures LeftPadding",
         _from(seeded_prompt("pictures-2", tokens=9, padding=2), "mean") | _unequal | _behind_padding | _RULE),
        ("Two frames of two patches", "Pictures",
         _from(seeded_prompt("pictures-3", tokens=6), "padding") | _unequal | _two_frames | _RULE),
        ("No picture: text as ever", "Pictures", _from(_short, "padding") | _pair | _no_picture | _RULE),
        ("Positions in two axes", "Pictures BadShape",
         _from(_short, "zero") | _pair | _no_picture | {"positions": np.zeros((2, 5), np.int64)} | _RULE, "invalid"),
        ("A negative position", "Pictures BadArgument",
         _from(_short, "zero") | _pair | _no_picture | {"positions": np.full((3, 5), -1)} | _RULE, "invalid"),
    ),
    *_cases(
        "attribution_baselines",
        ("The mean embedding, a picture among the tokens", "OtherBaseline Pictures",
         _table | {"name": "mean", "token": 0}),
        ("The mean embedding, text only", "OtherBaseline",
         _table | {"kinds": ["special", *["text"] * 6], "name": "mean", "token": 0}),
        ("The embedding of a word", "OtherBaseline", _table | {"name": "token", "token": 7}),
        ("The embedding of the padding", "PaddingBaseline", _table | {"name": "token", "token": 0}),
        ("Zero", "Zeros", _table | {"name": "zero", "token": 5}),
        ("A picture alone", "Pictures", _table | {"kinds": ["image"] * 7, "name": "mean", "token": 3}),
        ("A word that has no embedding", "BadArgument", _table | {"name": "token", "token": 11}, "invalid"),
        ("A name that means nothing", "BadArgument", _table | {"name": "median", "token": 0}, "invalid"),
    ),
)  # fmt: skip


# ------------------------------------------------------------------------------------- selection, contrast
_mixed_kinds = ["special", "template", "text", "image", "image", "text", "image", "text", "template", "text", "pad"]
_mixed_scores = [2.0, -3.0, 0.5, 1.5, -1.25, -0.5, 0.75, -2.0, 1.0, 1.75, 4.0]


def _ranked(*rules: str, k: int = 2, kinds: Sequence[str] = _mixed_kinds) -> dict[str, Any]:
    return {"a": bf16(_mixed_scores), "kinds": list(kinds), "rules": list(rules), "k": k}


_chat = ["pad", "pad", "special", "template", "text", "image", "text", "text", "template", "special", "text"]
_turn = ["special", "template", "text", "image", "text", "text", "template", "text", "image", "text", "template"]
_sets = {
    "in_pos": np.array([[0, 1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0]]),
    "in_neg": np.array([[0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1, 0], [0, 0, 1, 0, 0, 1, 0]]),
}
_masked = {name: _three[name] for name in ("x", "attention_mask")}

_SELECTION = (
    *_cases(
        "selection_eligible",
        ("No rule: words and patches in one ranking, padding in none", "Rules Pictures", _ranked(k=3)),
        ("Words only", "Rules Pictures", _ranked("text")),
        ("Pictures only", "Rules Pictures", _ranked("image")),
        ("The user's own content", "Rules Pictures", _ranked("content", k=3)),
        ("No special tokens", "Rules", _ranked("no_special", k=3)),
        ("Not the last token", "Rules LastToken", _ranked("not_last", k=3, kinds=_chat)),
        ("Two rules at once", "Rules Pictures", _ranked("text", "content", k=3)),
        ("Two rules at once, the last token template", "Rules LastToken", _ranked("not_last", "content", kinds=_turn)),
        ("Rules that leave nothing", "Rules EmptySet", _ranked("image", kinds=["text"] * 11)),
        ("A rule that does not exist", "Rules BadArgument", _ranked("verbs"), "invalid"),
        ("A kind that does not exist", "Rules BadArgument", _ranked(kinds=["verb"] * 11), "invalid"),
        ("A kind too few", "Rules BadShape", _ranked(kinds=["text"] * 10), "invalid"),
    ),
    *_cases(
        "contrast_batch",
        ("Three prompts, another baseline for every token, an empty set", "Batch LeftPadding EmptySet OtherBaseline",
         _masked | {"baseline": grid("contrast_batch-001", 3, 7, WIDTH)} | _sets),
        ("Padding baseline", "Batch PaddingBaseline", _masked | {"baseline": EMBED[np.zeros((3, 7), int)]} | _sets),
        ("A batch of one, padded all the same", "Batch LeftPadding",
         {"x": _one["x"], "attention_mask": _one["attention_mask"], "baseline": np.zeros((1, 5, WIDTH))}
         | {"in_pos": np.array([[0, 0, 0, 1, 0]]), "in_neg": np.array([[0, 0, 1, 0, 1]])}),
        ("Sets for two rows of three", "Batch BadShape",
         _masked | {"baseline": np.zeros((3, 7, WIDTH))} | {name: rows[:2] for name, rows in _sets.items()}, "invalid"),
        ("Token indices instead of 0 and 1", "Batch BadArgument",
         _masked | {"baseline": np.zeros((3, 7, WIDTH))} | _sets | {"in_pos": 3 * _sets["in_pos"]}, "invalid"),
    ),
)  # fmt: skip


# ------------------------------------------------------------------------------------- aggregation
def _shifts(name: str, n: int, layers: int, width: int, mean: int = 16) -> dict[str, np.ndarray]:
    return {f"delta_{side}": spiked(f"{name}{side}", n, layers, width, mean=mean) for side in ("pos", "neg")}


def _two_strong(name: str, n: int, layers: int, width: int) -> dict[str, np.ndarray]:
    """Shifts with two strong components and a mean that both share."""
    first, second = (_shifts(f"{name}{part}", n, layers, width, mean=8) for part in "ab")
    return {side: first[side] + second[side] for side in first}


_weights = {"weights_pos": bf16([1, 0.5, 0, 4, 2, 0.25, 1]), "weights_neg": bf16([0.5, 8, 1, 1, 0, 2, 0.125])}
_cancelling = np.concatenate([_shifts("cancel", 4, 2, 7)["delta_pos"], -_shifts("cancel", 4, 2, 7)["delta_pos"]])
_exact_gaps = {"delta_pos": with_gap(32), "delta_neg": with_gap(32)[:, ::-1]}

_AGGREGATION = (
    *_cases(
        "aggregation_uncentred",
        ("Seven examples, three layers", "Basic", _shifts("uncentred-1", 7, 3, 13)),
        ("A mean far larger than the spread", "LargeMean", _shifts("uncentred-2", 7, 2, 13, mean=64)),
        ("More examples than features", "Basic", _shifts("uncentred-3", 19, 2, 5)),
        ("All shifts zero", "Degenerate",
         {"delta_pos": np.zeros((6, 2, 5)), "delta_neg": np.zeros((6, 2, 5))}, "invalid"),
    ),
    *_cases(
        "aggregation_mean",
        ("Seven examples, three layers", "Basic", _shifts("mean-1", 7, 3, 13)),
        ("One example", "OneToken", _shifts("mean-2", 1, 2, 5)),
        ("A mean at right angles to the first component", "SignRule", _exact_gaps),
        ("Some shifts are zero", "ZeroRows",
         {side: D * (np.arange(7) % 3 != 1)[:, None, None] for side, D in _shifts("mean-4", 7, 2, 11).items()}),
        ("Shifts that cancel", "Degenerate", {"delta_pos": _cancelling, "delta_neg": _cancelling}, "invalid"),
    ),
    *_cases(
        "aggregation_weighted_mean",
        ("Seven examples, a weight of zero on either side", "Weights Basic",
         _shifts("weighted-1", 7, 3, 13) | _weights),
        ("Weights far from each other", "Weights",
         _shifts("weighted-2", 7, 2, 5) | {name: values**3 for name, values in _weights.items()}),
        ("All weights equal", "Weights",
         _shifts("weighted-3", 7, 2, 5) | {name: np.full(7, 0.5) for name in _weights}),
        ("A negative weight", "Weights BadArgument",
         _shifts("weighted-4", 7, 2, 5) | _weights | {"weights_neg": -np.ones(7)}, "invalid"),
        ("A weight too few", "Weights BadShape",
         _shifts("weighted-5", 7, 2, 5) | _weights | {"weights_pos": np.ones(6)}, "invalid"),
    ),
    *_cases(
        "aggregation_components",
        ("Two components", "Basic", _two_strong("components-1", 9, 3, 13) | {"components": 2}),
        ("One component is the stage itself", "Basic", _shifts("components-2", 7, 2, 13) | {"components": 1}),
        ("Two components with exact gaps", "EigenGap", _exact_gaps | {"components": 2}),
        ("More components than there are examples", "Rank",
         _shifts("components-4", 4, 2, 13) | {"components": 9}),
        ("No component", "BadArgument", _shifts("components-5", 7, 2, 5) | {"components": 0}, "invalid"),
    ),
)  # fmt: skip


# ------------------------------------------------------------------------------------- generation
_V = grid("generation-options-v", BLOCKS, WIDTH)
_ids = {
    "ids": np.array([[5, 7, 11, 13, 2, 17, 23], [0, 0, 0, 0, 0, 9, 4], [0, 0, 26, 12, 3, 30, 8]]),
    "attention_mask": np.array([mask(0, 7), mask(5, 2), mask(2, 5)]),
}
_forced = {"forced": np.array([[3, 9, 4, 6, 1, 28], [20, 21, 22, 23, 24, 25], [0, 18, 0, 29, 10, 16]])}
_ALL = list(range(BLOCKS))


def _steered(v: np.ndarray, lam: float, layers: Sequence[int], **more: Any) -> dict[str, Any]:
    given = {**_ids, **_forced, "v": bf16(v), "lam": lam, "layers": list(layers)}
    return given | more


def _beams(beams: int, n: int, lam: float = 2.0) -> dict[str, Any]:
    given = _steered(_V, lam, _ALL, beams=beams, n=n)
    del given["forced"]
    return given


_GENERATION = (
    *_cases(
        "generation_partial",
        ("Two vectors, the later block named first", "Layers Batch LeftPadding", _steered(_V[:2], 2.0, [2, 0])),
        ("Three vectors out of order", "Layers Batch LeftPadding", _steered(_V, 2.0, [1, 2, 0])),
        ("One vector for the last block", "Layers Batch", _steered(_V[:1], 3.0, [2])),
        ("Two vectors in order", "Layers Batch", _steered(_V[1:], -2.0, [0, 2])),
        ("A vector for every block, two blocks named", "Layers BadShape", _steered(_V, 2.0, [0, 2]), "invalid"),
        ("A block named twice", "Layers BadArgument", _steered(_V[:2], 2.0, [1, 1]), "invalid"),
    ),
    *_cases(
        "generation_tuples",
        ("All layers", "Batch LeftPadding", _steered(_V, 2.0, _ALL)),
        ("The first layer alone", "Layers Batch", _steered(_V, 3.0, [0])),
        ("The last layer alone", "Layers Batch", _steered(_V, -3.0, [2])),
    ),
    *_cases(
        "generation_end",
        ("Rows that end at different steps", "EndOfText Batch LeftPadding", _steered(_V, 1.0, _ALL, end=[13])),
        ("Two end tokens", "EndOfText Batch", _steered(_V, -2.0, _ALL, end=[17, 30])),
        ("No end in reach", "EndOfText", _steered(_V, 2.0, _ALL, end=[5])),
        ("An end beyond the vocabulary", "EndOfText BadArgument", _steered(_V, 2.0, _ALL, end=[VOCABULARY]), "invalid"),
    ),
    *_cases(
        "generation_beams",
        ("Three beams, four steps", "Beams Batch LeftPadding", _beams(3, 4)),
        ("Two beams, three steps, backwards", "Beams Batch Strength", _beams(2, 3, -2.0)),
        ("One beam is greedy", "Beams", _beams(1, 4)),
        ("No beam", "Beams BadArgument", _beams(0, 3), "invalid"),
    ),
)  # fmt: skip

CASES: tuple[Case, ...] = (*_OBJECTIVE, *_ATTRIBUTION, *_SELECTION, *_AGGREGATION, *_GENERATION)
