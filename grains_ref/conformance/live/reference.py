"""What a port should answer: the reference's own numbers on a model and a pair, by every legal way to compute them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
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
    """A legal way to compute the same numbers."""

    padding: int = 0
    batch: int = 1


WAYS = (Way(), Way(padding=PADDING), Way(batch=2))


def upcast(model: HuggingFaceModel) -> HuggingFaceModel:
    """The same weights in float32; a float32 or wider model is returned as it is."""
    if model.hf.dtype in (torch.float32, torch.float64):
        return model
    hf = copy.deepcopy(model.hf).float()
    return HuggingFaceModel(
        hf, model.tokenizer, name=f"{model.name} in float32", image_processor=model.family.processor
    )


def _example(model: HuggingFaceModel, pair: PreferencePair, padding: int) -> Example:
    answers = (model.response_ids(pair.prompt, answer) for answer in (pair.chosen, pair.rejected))
    return Example(model.encode(pair.prompt, pair.image, left_padding=padding), *answers)


@torch.no_grad()
def objective_of(model: HuggingFaceModel, pair: PreferencePair, way: Way = WAYS[0]) -> Values:
    """What live_objective should give."""
    example = _example(model, pair, way.padding)
    embeds = example.encoded.embeds.expand(way.batch, -1, -1)
    pos, neg = (log_prob(model, example.encoded, embeds, y=y)[0] for y in (example.y_pos, example.y_neg))
    return {"log_p_pos": to_numpy(pos), "log_p_neg": to_numpy(neg), "f": to_numpy(pos - neg)}


def attribution_of(model: HuggingFaceModel, pair: PreferencePair, way: Way = WAYS[0], *, m: int) -> Values:
    """What live_attribution should give."""
    example = _example(model, pair, way.padding)

    def f(embeds: Tensor) -> Tensor:
        rows = embeds.expand(way.batch, -1, -1)
        return preference(model, example.encoded, rows, y_pos=example.y_pos, y_neg=example.y_neg)[:1]

    x = example.encoded.embeds
    return {"a": to_numpy(integrated_gradients(f, x, torch.zeros_like(x), m=m).a[way.padding :])}


@torch.no_grad()
def contrast_of(
    model: HuggingFaceModel, pair: PreferencePair, way: Way = WAYS[0], *, pos: Sequence[int], neg: Sequence[int]
) -> Values:
    """What live_contrast should give; its other way is one run for each version of the prompt."""
    encoded = _example(model, pair, way.padding).encoded
    zero = torch.zeros_like(encoded.embeds)
    chosen = Selection(*(tuple(j + way.padding for j in tokens) for tokens in (pos, neg)))
    if way.batch == 1:
        delta_pos, delta_neg = contrast(model, encoded, chosen, zero)
    else:
        versions = [encoded.embeds, *(mask(encoded.embeds, tokens, zero) for tokens in (chosen.pos, chosen.neg))]
        h, h_pos, h_neg = (model.residuals(encoded, version[None])[0].double() for version in versions)
        delta_pos, delta_neg = h - h_pos, h - h_neg
    return {"delta_pos": to_numpy(delta_pos), "delta_neg": to_numpy(delta_neg)}


@torch.no_grad()
def steer_of(model: HuggingFaceModel, pair: PreferencePair, way: Way = WAYS[0], *, v: np.ndarray, lam: float) -> Values:
    """What live_steer should give."""
    example = _example(model, pair, way.padding)
    embeds = example.encoded.embeds.expand(way.batch, -1, -1)
    with Steering(model.blocks, torch.from_numpy(v), lam=lam):
        return {"logits": to_numpy(model.logits(example.encoded, embeds, example.y_pos)[0])}
