"""Names, axes and outputs of everything the kit asks for, and what is refused.

The seven stages come first. What follows are *options*: parts of the method that a port may have or not, each claimed
by itself, like a stage. An option is named after the stage that it belongs to, `STAGE_OPTION`, and judged as that stage
is (`KIND` says how). What an option takes and gives is in `options`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias, get_args

import numpy as np
import torch

from grains_ref.conformance.toy import (
    BLOCKS,
    LONGEST,
    PLAIN,
    VOCABULARY,
    WIDTH,
    Features,
    Toy,
    more_weights,
    toy_weights,
)
from grains_ref.grains import EligibleRule, Kind, Quadrature

Values: TypeAlias = dict[str, Any]  # name -> array, number, list of indices, or text
Stage: TypeAlias = Callable[..., Values]

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_SCORED = ("log_p_pos", "log_p_neg", "f")
_DIRECTIONS = ("v_pos", "v_neg", "v")
OUTPUTS: dict[str, tuple[str, ...]] = {
    "objective": _SCORED,
    "attribution": ("a",),
    "selection": ("pos", "neg"),
    "contrast": ("delta_pos", "delta_neg"),
    "aggregation": _DIRECTIONS,
    "steering": ("h",),
    "generation": ("logits", "tokens"),
    "objective_batch": _SCORED,
    "objective_qk_norm": _SCORED,
    "objective_biases": _SCORED,
    "objective_sliding_window": _SCORED,
    "objective_soft_caps": _SCORED,
    "objective_scaled_embeddings": _SCORED,
    "attribution_gradient": ("a",),
    "attribution_smoothgrad": ("a",),
    "attribution_random": ("a",),
    "attribution_likelihood": ("a",),
    "attribution_batch": ("a",),
    "attribution_pictures": ("a",),
    "attribution_baselines": ("baseline",),
    "selection_eligible": ("eligible", "pos", "neg"),
    "contrast_batch": ("delta_pos", "delta_neg"),
    "aggregation_uncentred": _DIRECTIONS,
    "aggregation_mean": _DIRECTIONS,
    "aggregation_weighted_mean": _DIRECTIONS,
    "aggregation_components": _DIRECTIONS,
    "generation_partial": ("logits", "tokens"),
    "generation_tuples": ("logits", "tokens"),
    "generation_end": ("logits", "tokens"),
    "generation_beams": ("tokens", "log_p"),
}
"""What each stage and option gives; the stages come first."""
STAGES: tuple[str, ...] = tuple(name for name in OUTPUTS if "_" not in name)
"""The seven stages."""
OPTIONS: tuple[str, ...] = tuple(name for name in OUTPUTS if name not in STAGES)
"""Everything else that can be claimed."""

KIND: dict[str, str] = {name: name.partition("_")[0] for name in OUTPUTS} | {
    "attribution_baselines": "rows",
    "selection_eligible": "lists",
    "aggregation_uncentred": "directions",
    "aggregation_mean": "directions",
    "aggregation_weighted_mean": "directions",
    "aggregation_components": "directions",
    "generation_beams": "beams",
}
"""How an output is judged: as that of a stage; row by row; as lists that must be equal; as directions, each the only
right one; as the best of several beams."""

_PROMPT = {"x": "T d", "attention_mask": "T"}
_ANSWERS = {"y_pos": "R", "y_neg": "R'"}
_SHIFTS = {"delta_pos": "N L d", "delta_neg": "N L d"}
_GENERATED = {"ids": "B T", "attention_mask": "B T", "v": "L d", "forced": "B n"}
AXES: dict[str, dict[str, str]] = {
    "objective": _PROMPT | _ANSWERS,
    "attribution": {"x": "T d", "baseline": "T d", "attention_mask": "T"} | _ANSWERS,
    "selection": {"a": "T", "eligible": "T"},
    "contrast": {"x": "T d", "baseline": "T d", "attention_mask": "T"},
    "aggregation": _SHIFTS,
    "steering": {"h": "B T d", "v": "d"},
    "generation": _GENERATED,
    "objective_batch": {
        "x": "B T d", "attention_mask": "B T", "y_pos": "B R", "seen_pos": "B R", "y_neg": "B R'", "seen_neg": "B R'",
    },
    **{name: _PROMPT | _ANSWERS for name in OUTPUTS if name.startswith("objective_") and name != "objective_batch"},
    "attribution_gradient": _PROMPT | {"baseline": "T d"} | _ANSWERS,
    "attribution_smoothgrad": _PROMPT | {"baseline": "T d", "noise": "n T d"} | _ANSWERS,
    "attribution_random": _PROMPT | {"scores": "T"},
    "attribution_likelihood": _PROMPT | {"baseline": "T d"} | _ANSWERS,
    "attribution_batch": {
        "x": "B T d", "baseline": "B T d", "attention_mask": "B T",
        "y_pos": "B R", "seen_pos": "B R", "y_neg": "B R'", "seen_neg": "B R'",
    },
    "attribution_pictures": _PROMPT | {"baseline": "T d", "positions": "3 T", "token_types": "T"} | _ANSWERS,
    "attribution_baselines": {"x": "T d", "kinds": "T", "embeddings": "V d"},
    "selection_eligible": {"a": "T", "kinds": "T"},
    "contrast_batch": {"x": "B T d", "baseline": "B T d", "attention_mask": "B T", "in_pos": "B T", "in_neg": "B T"},
    "aggregation_uncentred": _SHIFTS,
    "aggregation_mean": _SHIFTS,
    "aggregation_weighted_mean": _SHIFTS | {"weights_pos": "N", "weights_neg": "N"},
    "aggregation_components": _SHIFTS,
    "generation_partial": _GENERATED | {"v": "P d", "layers": "P"},
    "generation_tuples": _GENERATED,
    "generation_end": _GENERATED,
    "generation_beams": {name: axes for name, axes in _GENERATED.items() if name != "forced"},
}  # fmt: skip
"""The axes of every array; an axis has one size in all arrays of a stage, and at least one entry."""
ON_THE_TOY = tuple(
    name
    for name in OUTPUTS
    if name.startswith(("objective", "attribution", "contrast", "generation")) and name != "attribution_baselines"
)
"""What runs on the toy decoder, whose d and L these are."""
FINITE = (
    *("x", "baseline", "a", "delta_pos", "delta_neg", "h", "v", "lam"),
    *("noise", "scores", "embeddings", "weights_pos", "weights_neg"),
)
TOKEN_IDS = ("ids", "y_pos", "y_neg", "forced", "end")
COUNTS = ("k", "m", "components", "beams", "n", "window")
POSITIVE = ("attention_cap", "logits_cap", "scale")
ZERO_OR_ONE = ("eligible", "in_pos", "in_neg", "token_types")
WORDS: dict[str, tuple[str, ...]] = {
    "quadrature": get_args(Quadrature),
    "method": ("integrated_gradients", "gradient"),
    "kinds": get_args(Kind),
    "rules": get_args(EligibleRule),
    "name": ("zero", "mean", "token"),
}
"""Arguments that are words, or lists of words, and which there are."""


def check(stage: str, dtype: str, **inputs: Any) -> None:
    """Refuse an input that makes no sense; every stage begins with this, and so should a port's.

    Raises:
        ValueError: a shape does not fit, a value is not finite, or a token, position, layer or number does not exist.
    """
    _require(dtype in DTYPES, f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    sizes = {"d": WIDTH, "L": BLOCKS} if stage in ON_THE_TOY else {}
    sizes["3"] = 3
    for name, axes in AXES[stage].items():
        shape, expected = np.shape(inputs[name]), f"({', '.join(str(sizes.get(axis, axis)) for axis in axes.split())})"
        fits = len(shape) == len(axes.split()) and 0 not in shape
        # setdefault: the first array with an axis says how long it is
        fits = fits and all(sizes.setdefault(axis, n) == n for axis, n in zip(axes.split(), shape, strict=True))
        _require(fits, f"{name} has the shape {shape}; expected {expected}, no axis empty. Nothing is broadcast")
    for name, value in inputs.items():
        _check_value(name, value, sizes)


def _check_value(name: str, value: Any, sizes: dict[str, int]) -> None:
    if name in FINITE:
        bad = int((~np.isfinite(value)).sum())
        _require(not bad, f"{name} holds {bad} NaN or infinite values; did an earlier step overflow?")
    if name in TOKEN_IDS:
        wrong = [i for i in np.ravel(value).tolist() if i not in range(VOCABULARY)]
        _require(not wrong, f"{name} holds {wrong}; token ids are whole numbers from 0 to {VOCABULARY - 1}")
    elif name == "attention_mask":
        rows = [row == sorted(row) and row[-1] == 1 and row[0] in (0, 1) for row in np.atleast_2d(value).tolist()]
        _require(all(rows), f"attention_mask is {np.asarray(value).tolist()}; expected 0s (padding), then 1s")
    elif name in ("seen_pos", "seen_neg"):
        rows = [row == sorted(row)[::-1] and row[0] == 1 and row[-1] in (0, 1) for row in np.asarray(value).tolist()]
        _require(all(rows), f"{name} is {np.asarray(value).tolist()}; expected 1s (the response), then 0s")
    elif name in ZERO_OR_ONE:
        _require(np.isin(value, (0, 1)).all(), f"{name} holds other numbers; expected 0 and 1 only")
    elif name in WORDS:
        words = [value] if isinstance(value, str) else list(value)
        wrong = [word for word in words if word not in WORDS[name]]
        _require(not wrong, f"{name} is {value!r}; expected one of {', '.join(WORDS[name])}")
    elif name in COUNTS:
        counts = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 1
        _require(counts, f"{name} is {value!r}; expected a whole number of at least 1")
    elif name in POSITIVE:
        _require(np.isfinite(value) and value > 0, f"{name} is {value!r}; expected a positive number")
    elif name in ("weights_pos", "weights_neg"):
        _require((np.asarray(value) >= 0).all() and np.sum(value) > 0, f"{name} are {value}; expected weights >= 0")
    elif name in ("pos", "neg"):
        wrong = [j for j in value if j not in range(sizes["T"])]
        _require(not wrong, f"{name} holds {wrong}; expected tokens from 0 to {sizes['T'] - 1}, padding counted")
    elif name == "positions":
        wrong = [i for i in np.ravel(value).tolist() if i not in range(LONGEST)]
        _require(not wrong, f"positions holds {wrong}; expected whole numbers from 0 to {LONGEST - 1}")
    elif name == "token":
        fits = value in range(sizes["V"])
        _require(fits, f"token is {value!r}; expected a row of embeddings, from 0 to {sizes['V'] - 1}")
    elif name == "layers":
        different = len(set(value)) == len(value) and set(value) <= set(range(BLOCKS))
        _require(different, f"layers is {list(value)}; expected different numbers from 0 to {BLOCKS - 1}")


def _require(condition: bool | np.bool_, message: str) -> None:
    if not condition:
        raise ValueError(message)


def refusing(stage: Stage) -> Stage:
    """The stage with `check` before it."""

    @functools.wraps(stage)
    def checked(*, dtype: str, **inputs: Any) -> Values:
        check(stage.__name__.rstrip("_"), dtype, **inputs)
        return stage(**inputs, dtype=dtype)

    return checked


@functools.cache
def toy_in(dtype: str, features: Features = PLAIN) -> Toy:
    """The toy decoder in a dtype, made once."""
    return Toy(toy_weights() | more_weights(), DTYPES[dtype], features)


def tensor(values: Any, dtype: str) -> torch.Tensor:
    """An array in a dtype."""
    return torch.from_numpy(np.array(values, dtype=np.float64)).to(DTYPES[dtype])


def whole(values: Any) -> torch.Tensor:
    """Whole numbers, such as token ids and masks."""
    return torch.from_numpy(np.array(values, dtype=np.int64))


def array(values: torch.Tensor) -> np.ndarray:
    """float64, whatever the dtype was."""
    return values.detach().double().numpy()
