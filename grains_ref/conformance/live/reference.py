"""What a port should answer: the reference's own numbers on a model and a pair, by every legal way to compute them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from grains_ref.conformance.live.distances import to_numpy
from grains_ref.data import PreferencePair
from grains_ref.grains import (
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
    """A legal way to compute the same numbers.  kernel: of attention; "" is the model's own."""

    padding: int = 0
    batch: int = 1
    kernel: str = ""


PLAIN = Way()
SMALL = 300_000_000  # parameters of a model of which a float64 copy is no burden: 2.4 GB


def ways_of(model: HuggingFaceModel) -> tuple[Way, ...]:
    """Plain, padded, as a batch, and with the other of the two kernels of attention that every model has."""
    other_kernel = "sdpa" if _kernel(model) == "eager" else "eager"
    return (PLAIN, Way(padding=PADDING), Way(batch=2), Way(kernel=other_kernel))


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
    with _with_kernel(model, way.kernel):
        pos, neg = (log_prob(model, example.encoded, embeds, y=y)[0] for y in (example.y_pos, example.y_neg))
    return {"log_p_pos": to_numpy(pos), "log_p_neg": to_numpy(neg), "f": to_numpy(pos - neg)}


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
