r"""Eq. (2) for several examples in one pass: all points of their paths, both responses behind one prompt.

`grains_ref.grains` takes one gradient at a time, because that is what can be read beside the paper.  Here the m nodes
of a path, or SmoothGrad's n noisy copies, of as many examples as memory allows go through the model together; a Hugging
Face model runs each prompt once for both responses (`grains_ref.models.branches`).  What is computed is the same, draws
included, and sums are formed in the same order, so that scores differ from the reference's only by rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from grains_ref import grains
from grains_ref.fast.memory import Memory, run_in_parts
from grains_ref.fast.rows import Row, branches_of, example_tokens, responses_of, row_tokens
from grains_ref.grains import Attribution, Example, Function, HyperParameters, Model, at_least_float32, finite_gradient

Result = TypeVar("Result")


class Path(NamedTuple):
    """Where gradients are taken between baseline and prompt, and how they are summed."""

    points: list[Tensor]  # (T, d) each
    weights: list[float]
    names: list[str]  # for messages


def path_of(example: Example, baseline: Tensor, hp: HyperParameters) -> Path:
    """The points of eq. (2), or of the other methods of App. B."""
    x = example.encoded.embeds
    if x.ndim != 2 or x.shape != baseline.shape:
        raise ValueError(f"x and baseline must both be (T, d); got {tuple(x.shape)} and {tuple(baseline.shape)}")
    if hp.attribution == "integrated_gradients":
        alphas, weights = grains.quadrature_rule(hp.quadrature, hp.m)
        points = [baseline + alpha * (x - baseline) for alpha in alphas]
        return Path(points, weights, [f"alpha = {alpha:.3g}" for alpha in alphas])
    if hp.attribution == "smoothgrad":
        generator = grains.generator_of(example, hp.seed)
        scale = hp.sigma * x.to(at_least_float32(x)).std().item()
        points = [x + (scale * torch.randn(x.shape, generator=generator)).to(x) for _ in range(hp.n)]
        return Path(points, [1 / hp.n] * hp.n, [f"noisy sample {i}" for i in range(hp.n)])
    return Path([x], [1.0], ["x"])


def objective(model: Model, example: Example, hp: HyperParameters) -> Function:
    """`grains.objective`, f of eq. (1): (B, T, d) -> (B,) nats; every prompt is run once for both responses."""

    def f(embeds: Tensor) -> Tensor:
        return _objectives(model, [Row(example, point, f"row {i}") for i, point in enumerate(embeds)], hp)

    return f


def integrals(model: Model, examples: Sequence[Example], hp: HyperParameters, *, memory: Memory) -> list[Tensor]:
    """IG of every example, (T, d), in float32 or wider; the examples go through the model together.

    Raises:
        FloatingPointError: a gradient is not finite; the message names the point.
        torch.OutOfMemoryError: a single point of one example does not fit.
    """
    baselines = [model.baseline(example.encoded, hp.path_baseline) for example in examples]
    if hp.attribution == "random":
        return [_random_integral(example, baseline, hp) for example, baseline in zip(examples, baselines, strict=True)]
    paths = [path_of(example, baseline, hp) for example, baseline in zip(examples, baselines, strict=True)]
    rows: list[Row] = []
    for example, path in zip(examples, paths, strict=True):
        rows += [Row(example, point, name) for point, name in zip(path.points, path.names, strict=True)]
    gradients = iter(_gradients(model, rows, hp, memory))
    of_examples = []
    for example, baseline, path in zip(examples, baselines, paths, strict=True):
        x = example.encoded.embeds
        total = torch.zeros_like(x, dtype=at_least_float32(x))
        for weight in path.weights:
            total += weight * next(gradients)
        of_examples.append((x - baseline) * total)
    return of_examples


def scores(model: Model, examples: Sequence[Example], hp: HyperParameters, *, memory: Memory) -> list[Tensor]:
    """a of every example, (T,) nats per prompt token; see `integrals`."""
    return [ig.sum(-1) for ig in integrals(model, examples, hp, memory=memory)]


def attribute(model: Model, example: Example, hp: HyperParameters, *, memory: Memory | None = None) -> Attribution:
    """`grains.attribute`: the scores of one example by the method that `hp` names, with f at both ends of the path."""
    memory = memory or Memory()
    (ig,) = integrals(model, [example], hp, memory=memory)
    x, baseline = example.encoded.embeds, model.baseline(example.encoded, hp.path_baseline)
    f_x, f_baseline = _values(model, [Row(example, x, "x"), Row(example, baseline, "the baseline")], hp, memory)
    return Attribution(ig=ig, a=ig.sum(-1), f_x=f_x, f_baseline=f_baseline)


# -------------------------------------------------------------------------------------------- helpers
def _gradients(model: Model, rows: Sequence[Row], hp: HyperParameters, memory: Memory) -> list[Tensor]:
    """df/dx at every row's point, (T, d) each, in float32 or wider."""

    def run(some: Sequence[Row]) -> list[Tensor]:
        with torch.enable_grad():
            points = [row.point.detach().requires_grad_() for row in some]
            f = _objectives(model, [row._replace(point=point) for row, point in zip(some, points, strict=True)], hp)
            gradients = torch.autograd.grad(f.sum(), points)  # rows do not see each other
        return [finite_gradient(gradient, where=row.name) for row, gradient in zip(some, gradients, strict=True)]

    return _pass_by_pass(rows, run, memory)


def _values(model: Model, rows: Sequence[Row], hp: HyperParameters, memory: Memory) -> list[float]:
    """f at every row's point, in nats."""

    def run(some: Sequence[Row]) -> list[float]:
        with torch.no_grad():
            values: list[float] = _objectives(model, some, hp).tolist()
        return values

    return _pass_by_pass(rows, run, memory)


def _pass_by_pass(rows: Sequence[Row], run: Callable[[Sequence[Row]], list[Result]], memory: Memory) -> list[Result]:
    """Rows in their order, in as few passes as they fit into, of about the same size."""
    at_most = max(1, memory.pass_tokens // max(example_tokens(row.example) for row in rows))
    at_once = math.ceil(len(rows) / math.ceil(len(rows) / at_most))
    results: list[Result] = []
    for start in range(0, len(rows), at_once):
        results += run_in_parts(rows[start : start + at_once], run, tokens=row_tokens, memory=memory)
    return results


def _objectives(model: Model, rows: Sequence[Row], hp: HyperParameters) -> Tensor:
    """f of every row, (B,) nats: eq. (1), or log P(y_pos | x) of sect. 5.3."""
    branches = branches_of(model)
    if branches is not None:
        responses = [responses_of(row.example, hp) for row in rows]
        log_p = branches.log_probs([row.example.encoded for row in rows], [row.point for row in rows], responses)
        return log_p[:, 0] if hp.objective == "likelihood" else log_p[:, 0] - log_p[:, 1]
    values: list[Tensor] = []
    for _, of_example in itertools.groupby(rows, key=lambda row: id(row.example)):
        same = list(of_example)
        f = grains.objective(model, same[0].example, hp)
        values.append(f(torch.stack([row.point for row in same])))
    return torch.cat(values)


def _random_integral(example: Example, baseline: Tensor, hp: HyperParameters) -> Tensor:
    """Scores that depend on no model: the reference's draw, whose f is not needed."""
    x = example.encoded.embeds
    draws = grains.generator_of(example, hp.seed)
    return grains.random_scores(lambda embeds: embeds.new_zeros(len(embeds)), x, baseline, generator=draws).ig
