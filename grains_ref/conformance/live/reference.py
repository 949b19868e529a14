"""What a port should answer: the reference's own numbers on a model and a pair, by every legal way to compute them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from grains_ref.conformance.live.distances import to_numpy, values_apart
from grains_ref.data import PreferencePair
from grains_ref.grains import (
    Encoded,
    Example,
    Selection,
    Steering,
    contrast,
    integrated_gradients,
    log_prob,
    mask,
    preference,
)
from grains_ref.models import HuggingFaceModel

Values: TypeAlias = dict[str, np.ndarray]

PADDING = 3  # of the padded way


class Way(NamedTuple):
    """A legal way to compute the same numbers.

    kernel: of attention; "" is the model's own.
    narrow: log-probabilities in the model's dtype, where the reference takes float32; for the objective only.
    """

    padding: int = 0
    batch: int = 1
    kernel: str = ""
    narrow: bool = False


PLAIN = Way()
SMALL = 300_000_000  # parameters of a model of which a float64 copy is no burden: 2.4 GB


def ways_of(model: HuggingFaceModel) -> tuple[Way, ...]:
    """Plain, padded, as a batch, and with the other of the two kernels of attention that every model has."""
    other_kernel = "sdpa" if _kernel(model) == "eager" else "eager"
    return (PLAIN, Way(padding=PADDING), Way(batch=2), Way(kernel=other_kernel))


def ways_of_objective(model: HuggingFaceModel) -> tuple[Way, ...]:
    """In half precision also with log-probabilities that are rounded before they are summed."""
    return (*ways_of(model), Way(narrow=True)) if is_half(model.hf.dtype) else ways_of(model)


def is_half(dtype: torch.dtype) -> bool:
    """Whether a dtype has 16 bits."""
    return dtype in (torch.float16, torch.bfloat16)


def _kernel(model: HuggingFaceModel) -> str:
    return str(getattr(model.text_config, "_attn_implementation", "") or "")


@contextmanager
def _with_kernel(model: HuggingFaceModel, kernel: str) -> Iterator[None]:
    """The model with another kernel of attention in its decoder."""
    if not kernel:
        yield
        return
    config = model.text_config
    own = config._attn_implementation
    config._attn_implementation = kernel
    try:
        yield
    finally:
        config._attn_implementation = own


def upcast(model: HuggingFaceModel) -> HuggingFaceModel:
    """The same weights in the dtype that is taken for right: float64 for a small model in float32, else float32.

    A model that needs no copy is returned as it is.
    """
    own = model.hf.dtype
    if own == torch.float64:
        return model
    if own == torch.float32:
        if sum(parameter.numel() for parameter in model.hf.parameters()) > SMALL:
            return model
        right = torch.float64
    else:
        right = torch.float32
    hf = copy.deepcopy(model.hf).to(right)
    name = f"{model.name} in {str(right).removeprefix('torch.')}"
    return HuggingFaceModel(hf, model.tokenizer, name=name, image_processor=model.family.processor)


def _example(model: HuggingFaceModel, pair: PreferencePair, padding: int) -> Example:
    answers = (model.response_ids(pair.prompt, answer) for answer in (pair.chosen, pair.rejected))
    return Example(model.encode(pair.prompt, pair.image, left_padding=padding), *answers)


@torch.no_grad()
def objective_of(model: HuggingFaceModel, pair: PreferencePair, way: Way = PLAIN) -> Values:
    """What live_objective should give."""
    example = _example(model, pair, way.padding)
    embeds = example.encoded.embeds.expand(way.batch, -1, -1)
    score = _narrow_log_prob if way.narrow else log_prob
    with _with_kernel(model, way.kernel):
        pos, neg = (score(model, example.encoded, embeds, y=y)[0] for y in (example.y_pos, example.y_neg))
    return {"log_p_pos": to_numpy(pos), "log_p_neg": to_numpy(neg), "f": to_numpy(pos - neg)}


def _narrow_log_prob(model: HuggingFaceModel, encoded: Encoded, embeds: Tensor, *, y: Tensor) -> Tensor:
    """log P(y given x), (B,): the log-softmax in the model's dtype, the sum in float32."""
    log_p = model.logits(encoded, embeds, y).log_softmax(-1)  # (B, R, V)
    return log_p.gather(-1, y.to(log_p.device).expand(len(log_p), -1)[..., None]).float().sum((1, 2))


def attribution_of(model: HuggingFaceModel, pair: PreferencePair, way: Way = PLAIN, *, m: int) -> Values:
    """What live_attribution should give."""
    example = _example(model, pair, way.padding)

    def f(embeds: Tensor) -> Tensor:
        rows = embeds.expand(way.batch, -1, -1)
        return preference(model, example.encoded, rows, y_pos=example.y_pos, y_neg=example.y_neg)[:1]

    x = example.encoded.embeds
    with _with_kernel(model, way.kernel):
        a = integrated_gradients(f, x, torch.zeros_like(x), m=m).a
    return {"a": to_numpy(a[way.padding :])}


@torch.no_grad()
def contrast_of(
    model: HuggingFaceModel, pair: PreferencePair, way: Way = PLAIN, *, pos: Sequence[int], neg: Sequence[int]
) -> Values:
    """What live_contrast should give; its other way is one run for each version of the prompt."""
    encoded = _example(model, pair, way.padding).encoded
    zero = torch.zeros_like(encoded.embeds)
    chosen = Selection(*(tuple(j + way.padding for j in tokens) for tokens in (pos, neg)))
    if way.batch == 1:
        with _with_kernel(model, way.kernel):
            delta_pos, delta_neg = contrast(model, encoded, chosen, zero)
    else:
        versions = [encoded.embeds, *(mask(encoded.embeds, tokens, zero) for tokens in (chosen.pos, chosen.neg))]
        h, h_pos, h_neg = (model.residuals(encoded, version[None])[0].double() for version in versions)
        delta_pos, delta_neg = h - h_pos, h - h_neg
    return {"delta_pos": to_numpy(delta_pos), "delta_neg": to_numpy(delta_neg)}


@torch.no_grad()
def steer_of(model: HuggingFaceModel, pair: PreferencePair, way: Way = PLAIN, *, v: np.ndarray, lam: float) -> Values:
    """What live_steer should give."""
    example = _example(model, pair, way.padding)
    embeds = example.encoded.embeds.expand(way.batch, -1, -1)
    with _with_kernel(model, way.kernel), Steering(model.blocks, torch.from_numpy(v), lam=lam):
        return {"logits": to_numpy(model.logits(example.encoded, embeds, example.y_pos)[0])}


# ------------------------------------------------------------------------------------------- and how noisy it is
@dataclass
class Oracle:
    """What is right on a model, and how far the reference itself is off there; each question is worked out once.

    model: in its own dtype.
    right: the same weights in the dtype that is taken for right.
    remembers: answers outlive their pair, so that several ports can be checked on the same pairs for the price of one.
    """

    model: HuggingFaceModel
    right: HuggingFaceModel
    remembers: bool = False
    _known: dict[tuple[str, ...], tuple[Values, Any]] = field(default_factory=dict, repr=False)

    def values(self, compute: Callable[..., Values], pair: PreferencePair, **inputs: Any) -> tuple[Values, float]:
        """The right values, and the worst error of the legal ways in the model's dtype."""

        def noise(want: Values) -> float:
            legal = ways_of_objective if compute is objective_of else ways_of
            return max(values_apart(compute(self.model, pair, way, **inputs), want) for way in legal(self.model))

        return self._once(compute, pair, inputs, noise)

    def shifts(self, pair: PreferencePair, *, pos: Sequence[int], neg: Sequence[int]) -> tuple[Values, list[Values]]:
        """The right shifts, and those of every legal way in the model's dtype."""
        inputs = {"pos": pos, "neg": neg}

        def ways(want: Values) -> list[Values]:
            return [contrast_of(self.model, pair, way, **inputs) for way in ways_of(self.model)]

        return self._once(contrast_of, pair, inputs, ways)

    def forget(self) -> None:
        """Let go of a pair's answers: logits over a large vocabulary take much memory."""
        if not self.remembers:
            self._known.clear()

    def _once(
        self,
        compute: Callable[..., Values],
        pair: PreferencePair,
        inputs: dict[str, Any],
        more: Callable[[Values], Any],
    ) -> tuple[Values, Any]:
        key = (compute.__name__, repr(pair), *(_digest(value) for value in inputs.values()))
        if key not in self._known:
            want = compute(self.right, pair, **inputs)
            self._known[key] = want, more(want)
        return self._known[key]


def _digest(value: Any) -> str:
    return str(value.tobytes()) if isinstance(value, np.ndarray) else str(value)
