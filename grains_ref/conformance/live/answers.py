"""The port's side of the live check: its functions called for one pair, and their answers as arrays or fingerprints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from grains_ref.conformance.compare import MANY, BadOutput, numbers
from grains_ref.conformance.live.distances import BadAnswer, check_fingerprint, is_fingerprint, to_numpy
from grains_ref.conformance.live.reference import Values
from grains_ref.conformance.ports import told_by
from grains_ref.data import PreferencePair
from grains_ref.models import HuggingFaceModel

FUNCTIONS = (
    "live_objective",
    "live_attribution",
    "live_contrast",
    "live_aggregation",
    "live_steer",
    "live_selection",
    "live_edit",
    "live_batch",
)


class MissingFunction(Exception):
    """The port lacks the function."""


class NothingToAsk(Exception):
    """The pair has no input for the check."""


@dataclass
class Answers:
    """A port's answers to one pair, as arrays in float64 or as fingerprints.

    handle: what the port's `LOAD` returned.  m: steps of attribution.

    Raises:
        MissingFunction: the port does not define the function.
        BadAnswer: the function raised, or what it returned cannot be compared.
    """

    model: HuggingFaceModel
    pair: PreferencePair
    port: Any
    handle: Any
    m: int

    def objective(self, chosen: str, rejected: str) -> Values:
        """live_objective's log_p_pos, log_p_neg and f, of these two responses."""
        return self._numbers("live_objective", self._call("live_objective", chosen, rejected))

    def attribution(self, chosen: str, rejected: str) -> np.ndarray:
        """live_attribution's scores (T,), of these two responses."""
        tokens = self.model.encode(self.pair.prompt, self.pair.image).tokens
        scores = self._call("live_attribution", chosen, rejected, self.m)
        beginning = " ".join(map(repr, tokens[:4]))
        advice = (
            f"The prompt has {len(tokens)} tokens, {beginning} ...: BOS doubled or missing, or the response included?"
        )
        return _array("live_attribution", scores, (len(tokens),), advice)

    def contrast(self, pos: Sequence[int], neg: Sequence[int]) -> dict[str, Any]:
        """live_contrast's delta_pos and delta_neg (L, d)."""
        answer = self._call("live_contrast", self.pair.chosen, self.pair.rejected, pos, neg)
        names = ("delta_pos", "delta_neg")
        if not isinstance(answer, Mapping) or set(names) - set(answer):
            raise BadAnswer(f"live_contrast must return {' and '.join(names)}; got {type(answer).__name__}")
        shape = (len(self.model.blocks), self.model.width)
        advice = "The rows are decoder blocks."
        return {name: _array(f"live_contrast: {name}", answer[name], shape, advice, is_large=True) for name in names}

    def aggregation(self, delta_pos: np.ndarray, delta_neg: np.ndarray) -> Mapping[str, Any]:
        """live_aggregation's v_pos, v_neg and v (L, d); the kit's own judge looks into them."""
        answer = self._call_bare("live_aggregation", *(delta.astype(np.float32) for delta in (delta_pos, delta_neg)))
        names = ("v_pos", "v_neg", "v")
        if not isinstance(answer, Mapping) or set(names) - set(answer):
            raise BadAnswer(f"live_aggregation must return {', '.join(names)}; got {type(answer).__name__}")
        return {name: _array(f"live_aggregation: {name}", answer[name], delta_pos.shape[1:]) for name in names}

    def steer(self, v: np.ndarray, lam: float) -> Any:
        """live_steer's logits (R, V)."""
        n = len(self.model.response_ids(self.pair.prompt, self.pair.chosen))
        logits = self._call("live_steer", self.pair.chosen, self.pair.rejected, v, lam)
        shape = (n, self.model.text_config.vocab_size)
        return _array(
            "live_steer", logits, shape, "One row per token of chosen; it predicts that token.", is_large=True
        )

    def edit(self, h: np.ndarray, v: np.ndarray, lam: float) -> np.ndarray:
        """live_edit's states, of h's shape."""
        return _array("live_edit", self._call_bare("live_edit", h, v, lam), h.shape)

    def selection(self, a: np.ndarray, eligible: np.ndarray, k: int) -> dict[str, list[int]]:
        """live_selection's two sets."""
        answer = self._call_bare("live_selection", a, eligible, k)
        if not isinstance(answer, Mapping) or {"pos", "neg"} - set(answer):
            raise BadAnswer(f"live_selection must return {{'pos': [...], 'neg': [...]}}; got {type(answer).__name__}")
        sets = {}
        for name in ("pos", "neg"):
            indices = _numbers_of(f"live_selection: {name}", answer[name])
            if indices.ndim != 1 or not (np.abs(indices) < MANY).all() or not (indices == np.round(indices)).all():
                raise BadAnswer(f"live_selection: {name} must be a list of token indices")
            sets[name] = [int(j) for j in indices]
        return sets

    def batch(self, pairs: Sequence[PreferencePair]) -> list[Values]:
        """live_batch's numbers, as `objective` has them, for every pair."""
        images = {"images": [pair.image for pair in pairs]} if any(pair.image for pair in pairs) else {}
        lists = ([getattr(pair, name) for pair in pairs] for name in ("prompt", "chosen", "rejected"))
        answer = self._call_bare("live_batch", *lists, **images)
        if not isinstance(answer, Sequence) or len(answer) != len(pairs):
            raise BadAnswer("live_batch must return a list with one result per prompt")
        return [self._numbers("live_batch", row) for row in answer]

    def _call(self, name: str, chosen: str, rejected: str, *arguments: Any) -> Any:
        """A function that is given the pair's prompt, two responses, and its picture if it has one."""
        image = {"image": self.pair.image} if self.pair.image else {}
        return self._call_bare(name, self.pair.prompt, chosen, rejected, *arguments, **image)

    def _call_bare(self, name: str, *arguments: Any, **options: Any) -> Any:
        """A function that is given these arguments only, arrays as copies."""
        function = getattr(self.port, name, None)
        if not callable(function):
            raise MissingFunction(f"the port does not define {name}")
        copies = [value.copy() if isinstance(value, np.ndarray) else value for value in arguments]
        try:
            return function(self.handle, *copies, **options)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit too
            raise BadAnswer(f"{name} raised {told_by(error)}") from error

    def _numbers(self, name: str, answer: Any) -> Values:
        if not isinstance(answer, Mapping) or {"log_p_pos", "log_p_neg", "f"} - set(answer):
            raise BadAnswer(f"{name} must return log_p_pos, log_p_neg and f; got {type(answer).__name__}")
        return {key: _array(f"{name}: {key}", answer[key], ()) for key in ("log_p_pos", "log_p_neg", "f")}


def _array(name: str, value: Any, shape: tuple[int, ...], advice: str = "", *, is_large: bool = False) -> Any:
    """The answer as float64; is_large: fingerprints may stand for it, and stay what they are, for `rows_apart`."""
    several = value if isinstance(value, list) and value else [value]
    if is_large and all(map(is_fingerprint, several)):
        for part in several:
            check_fingerprint(name, part)
        return value
    array = _numbers_of(name, value)
    if array.shape != shape:
        raise BadAnswer(f"{name}: the shape is {array.shape}; expected {shape}. {advice}".rstrip())
    if not np.isfinite(array).all():
        raise BadAnswer(f"{name}: {int((~np.isfinite(array)).sum())} values are NaN or infinite")
    return array


def _numbers_of(name: str, value: Any) -> np.ndarray:
    try:
        return to_numpy(value) if isinstance(value, Tensor) else numbers(name, value)
    except (BadOutput, TypeError, ValueError, RuntimeError) as error:  # a tensor of no numbers, or on no device
        raise BadAnswer(str(error)) from error
