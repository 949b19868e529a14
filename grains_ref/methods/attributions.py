r"""Attributions that the paper's readers miss in table 6: Guided Integrated Gradients, Shapley values, occlusion.

Each gives a `grains.Attribution` in nats, so that equations (3) to (6) go on from it as from eq. (2).  The four methods
of App. B are `grains.attribute`'s; none of these is among `HyperParameters.attribution`.

| name | passes for a prompt of T tokens, besides the two that `Attribution` takes for f at both ends |
|---|---|
| guided_ig, guided_ig_wide | m forward and backward |
| shapley | n T + 2 forward |
| kernel_shap | n T + 2 forward |
| occlusion | T + 1 forward |
| occlusion_pairs | T forward |
| occlusion_all_pairs | T (T - 1) / 2 + 1 forward, above T = 25 about 300 |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from grains_ref.grains import (
    Attribution,
    Example,
    Function,
    HyperParameters,
    Model,
    Selection,
    at_least_float32,
    attribution_of,
    generator_of,
    gradient_at,
    mask,
    objective,
    spread_scores,
)
from grains_ref.methods.core import DRAWING

Name: TypeAlias = Literal[
    "guided_ig", "guided_ig_wide", "shapley", "kernel_shap", "occlusion", "occlusion_pairs", "occlusion_all_pairs"
]

FRACTION = 0.25  # of the features, moved at a time: the default of the authors' public code
MAX_DISTANCE = 0.02  # from the straight path, in shares of the way: likewise
PERMUTATIONS = 5  # of Shapley's sampling: as many as eq. (2) has nodes; KernelSHAP costs the same
MOST_PAIRS = 300  # all pairs of 25 tokens; longer prompts have theirs sampled
POINTS_AT_ONCE = 16  # masked prompts in one pass
CLOSE = 1e-9  # share of the whole way that counts as arrived


def attribute_by(
    name: Name, model: Model, example: Example, hp: HyperParameters, *, f: Function | None = None
) -> Attribution:
    """Scores of one example by name; objective, m, seed and baselines are `hp`'s, `hp.attribution` is not read.

    Guided IG starts at the path's baseline; the others put the mask's baseline in a token's place, as eq. (4) does.
    The wide band is one step, 1 / m, to either side of the straight path: beside a step of m = 5 the band of the public
    code leaves no choice.

    f: the example's objective where it is not to be `grains.objective`'s, such as that of `grains_ref.fast`.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in get_args(Name):
        raise ValueError(f"attribution {name!r} is unknown; choose one of {', '.join(get_args(Name))}")
    f, x = f or objective(model, example, hp), example.encoded.embeds
    if name == "guided_ig":
        return guided_integrated_gradients(f, x, model.baseline(example.encoded, hp.path_baseline), m=hp.m)
    if name == "guided_ig_wide":
        start = model.baseline(example.encoded, hp.path_baseline)
        return guided_integrated_gradients(f, x, start, m=hp.m, max_distance=1 / hp.m)
    baseline = model.baseline(example.encoded, hp.mask_baseline)
    seed = generator_of(example, hp.seed).initial_seed()
    if name == "shapley":
        return shapley_values(f, x, baseline, n=PERMUTATIONS, seed=seed)
    if name == "kernel_shap":
        return kernel_shap(f, x, baseline, n=PERMUTATIONS * len(x) + 2, seed=seed)
    if name == "occlusion_all_pairs":
        return occlusion_of_all_pairs(f, x, baseline, most=MOST_PAIRS, seed=seed)
    return occlusion(f, x, baseline, width=1 if name == "occlusion" else 2)


def guided_integrated_gradients(
    f: Function,
    x: Tensor,
    baseline: Tensor,
    *,
    m: int,
    fraction: float = FRACTION,
    max_distance: float = MAX_DISTANCE,
    straight_start: bool = True,
) -> Attribution:
    r"""Guided IG (Kapishnikov et al. 2021): the features that matter least at a point go first.

        r_j in [0, 1]                      the share of its way from x~_j to x_j that feature j has gone
        sum_j |x_j - x~_j| (1 - r_j)  =  (1 - i / m) sum_j |x_j - x~_j|                            after step i = 1..m
        |r_j - i / m| <= max_distance                                                              after step i
        IG_j = sum_i df/dx_j (before step i) * (x_j - x~_j) * (r_j after - r_j before)

    x, baseline: (T, d).  Among the features still on their way, those whose gradient is within the lowest `fraction` of
    all move until the step's distance is gone.  With max_distance = 0 the path is straight.

    Convention: with `straight_start` the first step is a straight one, by the gradient at its end, as in eq. (2): the
      gradient at a zero baseline explodes under RMSNorm.  Public code, `straight_start=False`: begins at the baseline.

    Raises:
        FloatingPointError: a gradient is not finite.
        ValueError: m below 1, a fraction outside (0, 1], a distance outside [0, 1], or other shapes than (T, d).
    """
    _check_shapes(x, baseline)
    if m < 1 or not 0 < fraction <= 1 or not 0 <= max_distance <= 1:
        raise ValueError(
            f"m must be at least 1, fraction in (0, 1], max_distance in [0, 1]; got {m}, {fraction}, {max_distance}"
        )
    way = (x - baseline).to(torch.float64)
    gone = torch.zeros_like(way)
    ig = torch.zeros_like(way)
    for step in range(1, m + 1):
        alpha = step / m
        if step == 1 and straight_start:
            after = torch.full_like(way, alpha)
            place = baseline + (after * way).to(x)
        else:
            place = baseline + (gone * way).to(x)
        gradient = gradient_at(f, place, where=f"step {step} of the guided path").to(torch.float64)
        if step > 1 or not straight_start:
            after = _go_on(gone, gradient.abs(), way.abs(), alpha, fraction=fraction, max_distance=max_distance)
        ig += gradient * way * (after - gone)
        gone = after
    return attribution_of(f, x, baseline, ig.to(at_least_float32(x)))


def shapley_values(f: Function, x: Tensor, baseline: Tensor, *, n: int, seed: int) -> Attribution:
    r"""SHAP by sampling: what a token adds to f, on average over n random orders in which tokens are put in.

        a_t = 1/n * sum over orders of  f(tokens before t, and t) - f(tokens before t)

    x, baseline: (T, d); a token that is not yet in stands at its baseline.  The sum of all a is f(x) - f(baseline),
    whatever n.  Captum's `ShapleyValueSampling` computes it, each token a feature; the global generator is left as it
    stood.

    Raises:
        ImportError: captum is not installed.
        ValueError: n is below 1, or other shapes than (T, d).
    """
    _check_shapes(x, baseline)
    if n < 1:
        raise ValueError(f"n must be at least 1, the number of orders; got {n}")
    captum = _captum()
    everyone = torch.ones(1, len(x), dtype=at_least_float32(x), device=x.device)
    with DRAWING, torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        values = captum.ShapleyValueSampling(_of_present(f, x, baseline)).attribute(
            everyone, baselines=0.0, n_samples=n, perturbations_per_eval=POINTS_AT_ONCE
        )
    return spread_scores(f, x, baseline, values[0].to(at_least_float32(x)))


def kernel_shap(f: Function, x: Tensor, baseline: Tensor, *, n: int, seed: int) -> Attribution:
    r"""KernelSHAP (Lundberg and Lee 2017): Shapley values as a regression on n sampled sets of tokens.

        a = argmin over a of  sum over sets S of  (f(only S in) - a_0 - sum_{t in S} a_t)^2

    x, baseline: (T, d).  The first two sets are all tokens and none; they weigh a million times as much as the others,
    so that a adds up to f(x) - f(baseline) but for about a millionth.  Of the others a size k is drawn with probability
    proportional to 1 / (k (T - k)), then a set of that size.  Captum's `KernelShap` computes it, each token a feature;
    the global generator is left as it stood.

    Raises:
        ImportError: captum is not installed.
        ValueError: n is below T + 2, which leaves scores open; T is below 2; or other shapes than (T, d).
    """
    _check_shapes(x, baseline)
    if len(x) < 2 or n < len(x) + 2:
        raise ValueError(
            f"KernelSHAP needs at least 2 tokens, and n of at least two more than there are; got {len(x)} tokens and "
            f"n = {n}. Fewer sets leave scores open."
        )
    captum = _captum()
    everyone = torch.ones(1, len(x), dtype=at_least_float32(x), device=x.device)
    with DRAWING, torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        values = captum.KernelShap(_of_present(f, x, baseline)).attribute(
            everyone, baselines=0.0, n_samples=n, perturbations_per_eval=POINTS_AT_ONCE
        )
    return spread_scores(f, x, baseline, values[0].to(at_least_float32(x)))


def occlusion(f: Function, x: Tensor, baseline: Tensor, *, width: int = 1) -> Attribution:
    r"""The paper's footnote 4: how far f falls when a token, or `width` neighbours at once, stand at their baseline.

        a_t = mean over windows w that cover t of  f(x) - f(x with w at the baseline)

    x, baseline: (T, d).  The scores need not add up to f(x) - f(baseline).

    Raises:
        ValueError: width is below 1 or above T, or other shapes than (T, d).
    """
    _check_shapes(x, baseline)
    if not 1 <= width <= len(x):
        raise ValueError(f"width must be 1 to {len(x)}, the number of tokens; got {width}")
    windows = [range(start, start + width) for start in range(len(x) - width + 1)]
    masked = []
    for window in windows:
        point = x.clone()
        point[window] = baseline[window]
        masked.append(point)
    falls = _value(f, [x])[0] - _value(f, masked)
    total, times = torch.zeros(2, len(x), dtype=falls.dtype, device=x.device)
    for window, fall in zip(windows, falls, strict=True):
        total[window] += fall
        times[window] += 1
    return spread_scores(f, x, baseline, total / times)


def occlusion_of_all_pairs(f: Function, x: Tensor, baseline: Tensor, *, most: int, seed: int) -> Attribution:
    r"""Any two tokens at their baseline at once: the scores whose sums in twos come nearest to the falls of f.

        a = argmin over a of  sum over pairs {t, u} of  (f(x) - f(x with t and u at the baseline) - a_t - a_u)^2

    x, baseline: (T, d).  All pairs, where there are at most `most`.  Otherwise tokens are put in a circle at random,
    `most` / T times but at least twice, and neighbours there are the pairs.  Where several a come equally near, the
    shortest is taken: with T = 2 each token has half of the one fall.

    Convention: the paper's footnote 4 speaks of single tokens only.  The mean of a token's falls would not do: it holds
      a part of every other token's.

    Raises:
        ValueError: T is below 2, `most` is below 1, or other shapes than (T, d).
    """
    _check_shapes(x, baseline)
    n_tokens = len(x)
    if n_tokens < 2 or most < 1:
        raise ValueError(f"pairs need at least 2 tokens, and most at least 1; got {n_tokens} and {most}")
    if n_tokens * (n_tokens - 1) // 2 <= most:
        pairs = torch.combinations(torch.arange(n_tokens))  # (P, 2)
    else:
        draws = torch.Generator().manual_seed(seed)
        circles = [torch.randperm(n_tokens, generator=draws) for _ in range(max(2, most // n_tokens))]
        pairs = torch.cat([torch.stack([circle, circle.roll(1)], dim=1) for circle in circles])
    masked = []
    for pair in pairs.tolist():
        point = x.clone()
        point[pair] = baseline[pair]
        masked.append(point)
    falls = (_value(f, [x])[0] - _value(f, masked)).cpu().double()
    members = torch.zeros(len(pairs), n_tokens, dtype=torch.float64).scatter_(1, pairs, 1.0)
    scores = torch.linalg.pinv(members.T @ members, hermitian=True) @ members.T @ falls
    return spread_scores(f, x, baseline, scores.to(at_least_float32(x)).to(x.device))


@torch.no_grad()
def contrast_one_at_a_time(
    model: Model, example: Example, selection: Selection, baseline: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Eq. (4) as the paper's footnote 4 would have it, "replacing one token at a time": the mean of single shifts.

        delta_pos_l = 1 / |I_k^+| * sum over j in I_k^+ of  h_last_l(x) - h_last_l(x \ {j})        delta_neg_l likewise

    baseline: (T, d).  Returns two (L, d), in float32 or wider; an empty set gives 0.

    Convention: the footnote does not say how single shifts are put together.
    """
    x = example.encoded.embeds
    sides = []
    for tokens in (selection.pos, selection.neg):
        versions = torch.stack([x, *(mask(x, [j], baseline) for j in tokens)])
        h = model.residuals(example.encoded, versions).to(at_least_float32(x)).cpu()  # (1 + k, L, d)
        sides.append((h[0] - h[1:]).mean(0) if tokens else torch.zeros_like(h[0]))
    return sides[0], sides[1]


# -------------------------------------------------------------------------------------------- helpers
def _go_on(
    gone: Tensor, steepness: Tensor, length: Tensor, alpha: float, *, fraction: float, max_distance: float
) -> Tensor:
    """The shares gone after a step to alpha; all are (T, d), steepness is |df/dx|, length is |x - baseline|."""
    furthest = min(alpha + max_distance, 1.0)
    gone = gone.clamp(min=max(alpha - max_distance, 0.0))
    whole = length.sum()
    rank = int(fraction * (length.numel() - 1)) + 1
    while True:
        missing = (length * (1 - gone)).sum() - whole * (1 - alpha)
        on_the_way = (gone < furthest) & (length > 0)
        if missing <= CLOSE * whole or not on_the_way.any():
            return gone
        waiting = steepness.masked_fill(~on_the_way, torch.inf)
        moving = on_the_way & (waiting <= waiting.flatten().kthvalue(rank).values)
        room = (length * (furthest - gone))[moving].sum()
        share = min(1.0, (missing / room).item())
        gone = torch.where(moving, gone + share * (furthest - gone), gone)
        if share == 1.0:  # arrived, not one rounding short of it
            gone = gone.masked_fill(moving, furthest)


def _captum() -> Any:
    """Captum's attributions.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import captum.attr
    except ImportError as error:
        raise ImportError("Shapley values need captum; install it with: pip install 'grains-ref[baselines]'") from error
    return captum.attr


def _of_present(f: Function, x: Tensor, baseline: Tensor) -> Callable[[Tensor], Tensor]:
    """f of which tokens are in, (B, T) of zeros and ones: captum's features are the tokens."""

    def value(present: Tensor) -> Tensor:
        return f(torch.where(present[..., None] > 0, x, baseline))

    return value


def _value(f: Callable[[Tensor], Tensor], points: list[Tensor]) -> Tensor:
    """f at each point, in float32 or wider."""
    values = []
    with torch.no_grad():
        for start in range(0, len(points), POINTS_AT_ONCE):
            values.append(f(torch.stack(points[start : start + POINTS_AT_ONCE])))
    joined = torch.cat(values)
    return joined.to(at_least_float32(joined))


def _check_shapes(x: Tensor, baseline: Tensor) -> None:
    if x.ndim != 2 or x.shape != baseline.shape:
        raise ValueError(f"x and baseline must both be (T, d); got {tuple(x.shape)} and {tuple(baseline.shape)}")
