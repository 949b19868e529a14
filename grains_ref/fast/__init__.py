r"""The reference's attribution, faster: all points of a path in one batch; `fast.fit` is `grains.fit` on top of it.

`grains_ref.grains` takes one gradient at a time, because that is what can be read beside the paper.  Here the m nodes
of a path, or SmoothGrad's n noisy copies, go through the model together.  What is computed is the same, draws included;
sums are formed in the same order, so results differ from the reference's only by what a model's kernels do to a batch.
The conformance kit judges this module as it judges any port (`tests/reference/test_fast.py`); `benchmarks/fast.py`
measures it.

Memory grows with the tokens in a batch: `BATCH_TOKENS` bounds them, and one point is always allowed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grains_ref import grains
from grains_ref.fast.steering import RowSteering as RowSteering
from grains_ref.fast.steering import Steering as Steering
from grains_ref.grains import (
    Attribution,
    Example,
    Fit,
    Function,
    HyperParameters,
    Model,
    Quadrature,
    at_least_float32,
    finite_gradient,
    quadrature_rule,
)

BATCH_TOKENS = 1 << 12  # prompt and response tokens in one forward and backward pass


def integrated_gradients(
    f: Function, x: Tensor, baseline: Tensor, *, m: int, quadrature: Quadrature = "right", at_once: int = 8
) -> Attribution:
    """`grains.integrated_gradients`, eq. (2), with `at_once` nodes in a batch.

    x, baseline: (T, d).  Scores in nats, in float32 or wider.

    Raises:
        FloatingPointError: a gradient is not finite.
        ValueError: x and baseline differ in shape, or at_once is below 1.
    """
    _check(x, baseline, at_once)
    alphas, weights = quadrature_rule(quadrature, m)
    points = [baseline + alpha * (x - baseline) for alpha in alphas]
    names = [f"alpha = {alpha:.3g}" for alpha in alphas]
    total = torch.zeros_like(x, dtype=at_least_float32(x))
    for weight, gradient in zip(weights, _gradients(f, points, names, at_once), strict=True):
        total += weight * gradient
    return _attribution(f, x, baseline, (x - baseline) * total, at_once)


def smoothgrad(
    f: Function,
    x: Tensor,
    baseline: Tensor,
    *,
    n: int,
    sigma: float,
    generator: torch.Generator,
    at_once: int = 8,
) -> Attribution:
    """`grains.smoothgrad` with `at_once` noisy copies in a batch; the same draws from the same generator.

    Raises:
        FloatingPointError: a gradient is not finite.
        ValueError: x and baseline differ in shape, or at_once is below 1.
    """
    _check(x, baseline, at_once)
    scale = sigma * x.to(at_least_float32(x)).std().item()
    points = [x + (scale * torch.randn(x.shape, generator=generator)).to(x) for _ in range(n)]
    names = [f"noisy sample {i}" for i in range(n)]
    total = torch.zeros_like(x, dtype=at_least_float32(x))
    for gradient in _gradients(f, points, names, at_once):
        total += gradient / n
    return _attribution(f, x, baseline, (x - baseline) * total, at_once)


def attribute(model: Model, example: Example, hp: HyperParameters, *, batch_tokens: int = BATCH_TOKENS) -> Attribution:
    """`grains.attribute`: the scores of one example by the method that `hp` names.

    batch_tokens: how many prompt and response tokens one pass may hold; one point of the path is always allowed.
    """
    longest = len(example.encoded.ids) + max(len(example.y_pos), len(example.y_neg))
    at_once = max(1, batch_tokens // longest)
    f, x = grains.objective(model, example, hp), example.encoded.embeds
    if hp.attribution == "integrated_gradients":
        baseline = model.baseline(example.encoded, hp.path_baseline)
        return integrated_gradients(f, x, baseline, m=hp.m, quadrature=hp.quadrature, at_once=at_once)
    if hp.attribution == "smoothgrad":
        baseline = model.baseline(example.encoded, hp.path_baseline)
        draws = grains.generator_of(example, hp.seed)
        return smoothgrad(f, x, baseline, n=hp.n, sigma=hp.sigma, generator=draws, at_once=at_once)
    return grains.attribute(model, example, hp)  # one gradient or none: nothing to batch


def fit(model: Model, examples: Sequence[Example], hp: HyperParameters, *, batch_tokens: int = BATCH_TOKENS) -> Fit:
    """`grains.fit`, figure 2: preference pairs in, steering vectors out."""
    scores = [attribute(model, example, hp, batch_tokens=batch_tokens).a for example in examples]
    shifts = [grains.shift(model, example, a, hp) for example, a in zip(examples, scores, strict=True)]
    return grains.vectors(shifts, hp)


# -------------------------------------------------------------------------------------------- helpers
def _gradients(f: Function, points: Sequence[Tensor], names: Sequence[str], at_once: int) -> list[Tensor]:
    """df/dx at every point, each (T, d) in float32 or wider; `names` say where a gradient was taken."""
    done: list[Tensor] = []
    for start in range(0, len(points), at_once):
        with torch.enable_grad():
            batch = torch.stack([*points[start : start + at_once]]).detach().requires_grad_()
            (gradients,) = torch.autograd.grad(f(batch).sum(), batch)  # rows of a batch do not see each other
        for name, gradient in zip(names[start:], gradients, strict=False):
            done.append(finite_gradient(gradient, where=name))
    return done


def _attribution(f: Function, x: Tensor, baseline: Tensor, ig: Tensor, at_once: int) -> Attribution:
    """Sum over the width, and f at both ends of the path."""
    with torch.no_grad():
        ends = f(torch.stack([x, baseline])) if at_once > 1 else torch.cat([f(x[None]), f(baseline[None])])
    f_x, f_baseline = ends.tolist()
    return Attribution(ig=ig, a=ig.sum(-1), f_x=f_x, f_baseline=f_baseline)


def _check(x: Tensor, baseline: Tensor, at_once: int) -> None:
    if x.ndim != 2 or x.shape != baseline.shape:
        raise ValueError(f"x and baseline must both be (T, d); got {tuple(x.shape)} and {tuple(baseline.shape)}")
    if at_once < 1:
        raise ValueError(f"at_once is {at_once}; at least one point must go through the model at a time")
