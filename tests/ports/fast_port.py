"""The fast engine as a port: attribution, contrast and aggregation are its own, the other stages the reference's.

The toy decoder gets the `branches` that a Hugging Face model has, so that rows of several examples, the masked versions
of a prompt and the Gram matrix are put to the test; how a transformers model shares a prompt is tested live.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grains_ref import fast, grains
from grains_ref.conformance import stages
from grains_ref.conformance.stages import DTYPES as TORCH_DTYPES
from grains_ref.conformance.stages import Values, tensor, whole
from grains_ref.conformance.toy import Toy
from grains_ref.fast.contrast import contrast as fast_contrast
from grains_ref.grains import Encoded, Example, HyperParameters, Selection
from grains_ref.models import HuggingFaceModel

NAME = "fast"
DTYPES = ("float64", "float32", "bfloat16")
PASS_TOKENS = 64  # holds three points of most cases, so that the last pass is a short one

selection, steering = stages.selection, stages.steering


class ToyBranches:
    """The toy decoder's answers to rows of several prompts, one prompt after the other."""

    def __init__(self, toy: Toy) -> None:
        self._toy = toy

    def log_probs(
        self, encoded: Sequence[Encoded], embeds: Sequence[Tensor], responses: Sequence[Sequence[Tensor]]
    ) -> Tensor:
        rows = []
        for x, point, ys in zip(encoded, embeds, responses, strict=True):
            rows.append(torch.cat([grains.log_prob(self._toy, x, point[None], y=y) for y in ys]))
        return torch.stack(rows)

    def residuals(self, encoded: Sequence[Encoded], embeds: Sequence[Tensor]) -> Tensor:
        return torch.cat([self._toy.residuals(x, row[None]) for x, row in zip(encoded, embeds, strict=True)])


class ToyModel:
    """The toy decoder with branches, and one baseline that is given as a tensor."""

    def __init__(self, dtype: str, baseline: Tensor) -> None:
        toy = stages.toy_in(dtype)
        self.toy, self.blocks, self._baseline = toy, toy.blocks, baseline
        self.logits, self.residuals = toy.logits, toy.residuals
        self.branches = ToyBranches(toy)

    def baseline(self, encoded: Encoded, name: str) -> Tensor:
        grains._check_path(encoded.embeds, self._baseline)
        return self._baseline


@stages.refusing
def attribution(
    *,
    x: np.ndarray,
    baseline: np.ndarray,
    attention_mask: np.ndarray,
    y_pos: np.ndarray,
    y_neg: np.ndarray,
    m: int,
    quadrature: Any,
    dtype: str,
) -> Values:
    """Eq. (2) on the toy decoder."""
    model: Any = ToyModel(dtype, tensor(baseline, dtype))
    example = Example(model.toy.encoded(tensor(x, dtype), whole(attention_mask)), whole(y_pos), whole(y_neg))
    hp = replace(HyperParameters(), m=m, quadrature=quadrature)
    found = fast.attribute(model, example, hp, memory=fast.Memory(PASS_TOKENS))
    return {"a": stages.array(found.a)}


@stages.refusing
def contrast(
    *, x: np.ndarray, baseline: np.ndarray, attention_mask: np.ndarray, pos: list[int], neg: list[int], dtype: str
) -> Values:
    """Eq. (4) on the toy decoder, beside another prompt."""
    model: Any = ToyModel(dtype, tensor(baseline, dtype))
    encoded = model.toy.encoded(tensor(x, dtype), whole(attention_mask))
    chosen = Selection(tuple(pos), tuple(neg))
    prompts, selections = [encoded, encoded], [chosen, Selection((), chosen.neg)]
    baselines = [tensor(baseline, dtype)] * 2
    (deltas, _) = fast_contrast(model, prompts, selections, baselines, memory=fast.Memory())
    return {"delta_pos": stages.array(deltas[0]), "delta_neg": stages.array(deltas[1])}


@stages.refusing
def aggregation(*, delta_pos: np.ndarray, delta_neg: np.ndarray, dtype: str) -> Values:
    """Eq. (5) and (6)."""
    pos, neg = (fast.aggregate(tensor(deltas, dtype)).v for deltas in (delta_pos, delta_neg))
    v_pos, v_neg = pos.to(TORCH_DTYPES[dtype]), neg.to(TORCH_DTYPES[dtype])
    return {"v_pos": stages.array(v_pos), "v_neg": stages.array(v_neg), "v": stages.array(v_pos - v_neg)}


# ---------------------------------------------------------------------------------------------- live
def example_of(model: HuggingFaceModel, prompt: Any, chosen: str, rejected: str, image: Any = None) -> Example:
    return model.example(prompt, chosen, rejected, image)


def live_objective(model: HuggingFaceModel, *pair: Any, image: Any = None) -> dict[str, Any]:
    return live_batch(model, *([one] for one in pair), images=[image])[0]


@torch.no_grad()
def live_batch(model: HuggingFaceModel, *lists: Any, images: Sequence[Any] = ()) -> list[dict[str, Any]]:
    rows = zip(*lists, images or [None] * len(lists[0]), strict=True)
    examples = [example_of(model, *row) for row in rows]
    log_p = model.branches.log_probs(
        [one.encoded for one in examples], [one.encoded.embeds for one in examples],
        [(one.y_pos, one.y_neg) for one in examples],
    )  # fmt: skip
    return [{"log_p_pos": pos, "log_p_neg": neg, "f": pos - neg} for pos, neg in log_p.tolist()]


def live_attribution(model: HuggingFaceModel, p: Any, c: str, r: str, m: int, image: Any = None) -> Tensor:
    other = model.example("Something else entirely, and a little longer:", "a", "b c") if image is None else None
    hp = HyperParameters(m=m)
    examples = [example_of(model, p, c, r, image), *([other] if other else [])]
    return fast.Fast(model, fast.Memory(4096)).scores(examples, hp)[0]


def live_contrast(
    model: HuggingFaceModel, p: Any, c: str, r: str, pos: list[int], neg: list[int], image: Any = None
) -> dict[str, Tensor]:
    x = model.encode(p, image)
    chosen, zero = Selection(tuple(pos), tuple(neg)), torch.zeros_like(x.embeds)
    ((delta_pos, delta_neg),) = fast_contrast(model, [x], [chosen], [zero], memory=fast.Memory())
    return {"delta_pos": delta_pos, "delta_neg": delta_neg}


def live_aggregation(model: HuggingFaceModel, delta_pos: np.ndarray, delta_neg: np.ndarray) -> dict[str, Tensor]:
    v_pos, v_neg = (fast.aggregate(torch.from_numpy(deltas)).v for deltas in (delta_pos, delta_neg))
    return {"v_pos": v_pos, "v_neg": v_neg, "v": v_pos - v_neg}


@torch.no_grad()
def live_steer(model: HuggingFaceModel, p: Any, c: str, r: str, v: np.ndarray, lam: float, image: Any = None) -> Tensor:
    example = example_of(model, p, c, r, image)
    with fast.Steering(model.blocks, torch.from_numpy(v), lam=lam):
        return model.logits(example.encoded, example.encoded.embeds[None], example.y_pos)[0]
