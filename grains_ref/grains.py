r"""GrAInS, the reference: equations (1) to (8) of arXiv 2507.18043 in the paper's order, one function each.

Figure 2 in code; `fit`, near the end, is these lines:

    for every pair (x, y_pos, y_neg):
        a                    = attribute(model, example, hp).a         eq. (1), (2)    (T,) nats per prompt token
        pos, neg             = select(a, k=k, eligible=...)            eq. (3)         token indices, at most k each
        delta_pos, delta_neg = contrast(model, x, (pos, neg), x~)      eq. (4)         (L, d) each
    v_pos, v_neg             = aggregate(all delta_pos), aggregate(all delta_neg)    eq. (5)    (L, d) each
    v                        = combine(v_pos, v_neg)                   eq. (6)         (L, d)
    with Steering(model.blocks, v, lam=...): generate                  eq. (7), (8)

Correct first, then readable; speed lives in `grains_ref.fast`.  Nothing here knows about Hugging Face: a model is
the four things of `Model`.  What the stages share, and the checks of their arguments, stand at the end.

Glossary:

    code name    paper symbol   shape     meaning, unit
    x            x              (T, d)    embeddings of the prompt, image features merged in
    baseline     x~             (T, d)    the embeddings that stand for "nothing here"
    y_pos, y_neg y_pos, y_neg   (R,)      token ids of the preferred / dispreferred response
    f            f(x), eq. 1    (B,)      preference in nats (natural-log probabilities)
    ig           IG_j, eq. 2    (T, d)    attribution of every component, nats
    a            a_j            (T,)      score of a token: `ig` summed over d, nats
    pos, neg     I_k^+, I_k^-   <= k      token indices, strongest first
    h            h_{t,l}        (..., d)  residual stream after decoder block l, before the final norm
    delta_pos    delta_l^+      (L, d)    shift of h at the last prompt token when I_k^+ is masked
    v_pos, v_neg v_l^+, v_l^-   (L, d)    unit vectors
    v            v_l, eq. 6     (L, d)    v_pos - v_neg, not renormalised
    lam          lambda, eq. 7  scalar    strength; multiplies v as it is
    m, k         m, k           scalar    quadrature steps; tokens per sign

Axes: B batch, T prompt tokens, R response tokens, d width, V vocabulary, L decoder blocks, N examples.

Labels used below: `Convention:` marks a choice where the paper leaves one open; `Released code differs:` says
what the authors' repository (commit 8ad78db) computes instead.  docs/decisions.md has the reasons.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any, Literal, NoReturn, Protocol, Self, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Quadrature = Literal["right", "midpoint", "gauss_legendre"]
AttributionMethod = Literal["integrated_gradients", "gradient", "smoothgrad", "random"]
Objective = Literal["preference", "likelihood"]
AggregationMethod = Literal["pca", "uncentred", "mean", "weighted_mean"]
EligibleRule = Literal["text", "image", "content", "no_special", "not_last"]
Kind = Literal["text", "image", "template", "special", "pad"]
Function: TypeAlias = Callable[[Tensor], Tensor]  # (B, T, d) -> (B,)
Hook: TypeAlias = Callable[[nn.Module, Any, Any], Any]  # (module, inputs, output) -> new output, or None to keep it
EarlyHook: TypeAlias = Callable[[nn.Module, Any, Any], Any]  # (module, args, kwargs) -> both anew, or None to keep them


# ------------------------------------------------------------------------------------- what goes in
@dataclass(frozen=True)
class HyperParameters:
    """Every number of the method, with the paper's value as the default; `lam` is chosen per task, on dev data.

    `PRESETS`, at the end, has the paper's three settings.

    Attributes:
        k: tokens per sign, eq. (3). Sect. 4.1: 3 for LLMs; sect. 4.2: 20 for VLMs.
        m: quadrature steps, eq. (2). Sect. 4.1: 5; sect. 4.2: 10 for Gemma 3.
        quadrature: App. B has nodes j/m, j = 1..m, which is "right".
        objective: eq. (1); sect. 5.3 ablates it with "likelihood".
        attribution: eq. (2); sect. 5.3 ablates it with the others.
        path_baseline: where the path of eq. (2) starts, "zero or masked token embedding".
        mask_baseline: what eq. (4) puts in a token's place, "replaced by baselines".
        eligible: rules that narrow the candidates of eq. (3); none, by the letter: every prompt token.
        aggregation: eq. (5).
        components: principal directions kept, 1 in eq. (5).
        n: SmoothGrad's samples, App. B; the paper names no number.
        sigma: SmoothGrad's noise in standard deviations of x, App. B; the paper names no number.
        seed: of SmoothGrad's noise and of random scores.
    """

    k: int = 3
    m: int = 5
    quadrature: Quadrature = "right"
    objective: Objective = "preference"
    attribution: AttributionMethod = "integrated_gradients"
    path_baseline: str = "zero"
    mask_baseline: str = "zero"
    eligible: tuple[EligibleRule, ...] = ()
    aggregation: AggregationMethod = "pca"
    components: int = 1
    n: int = 20
    sigma: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        _check_hyper_parameters(self)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return asdict(self) | {"eligible": list(self.eligible)}


@dataclass(frozen=True)
class Encoded:
    """One prompt as the model sees it.

    Attributes:
        ids: token ids, (T,).
        embeds: their embeddings with image features merged in, (T, d).
        tokens: T strings, for people.
        kinds: T kinds of token.
        replay: what a run with other embeddings needs (masks, positions); only the model looks in.
        picture: digest of the picture; with the ids it seeds random draws.
    """

    ids: Tensor
    embeds: Tensor
    tokens: tuple[str, ...]
    kinds: tuple[Kind, ...]
    replay: dict[str, Tensor]
    picture: str = ""


@dataclass(frozen=True)
class Example:
    """One preference pair: the prompt x and the token ids of its two responses.

    Attributes:
        encoded: the prompt x.
        y_pos: token ids of the preferred response, (R,).
        y_neg: token ids of the other one, (R',).
    """

    encoded: Encoded
    y_pos: Tensor
    y_neg: Tensor


class Model(Protocol):
    """What this module needs from a model; `grains_ref.models` offers it for Hugging Face models."""

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The L decoder blocks, in order. A block's output is the residual stream h, or a tuple that starts with it."""

    def logits(self, encoded: Encoded, embeds: Tensor, response_ids: Tensor) -> Tensor:
        """(B, T, d), (R,) -> (B, R, V): row r predicts response token r, given x and tokens 0..r-1.

        The one place where logits are shifted by one. The response's embeddings are looked up, never attributed.
        """

    def residuals(self, encoded: Encoded, embeds: Tensor) -> Tensor:
        """(B, T, d) -> (B, L, d): h after each block, before the final norm, at the last prompt token."""

    def baseline(self, encoded: Encoded, name: str) -> Tensor:
        """(T, d): the baseline embeddings called `name`; "zero" must be known to every model."""


# ------------------------------------------------------------------------------- 3.1 objective, eq. (1)
def log_prob(model: Model, encoded: Encoded, embeds: Tensor, *, y: Tensor) -> Tensor:
    r"""log P(y | x), summed over all response tokens.

        log P(y | x) = sum_r log softmax(logits_r)[y_r]

    embeds: (B, T, d).  y: (R,) token ids.  Returns (B,) nats, in float32 or wider.  Source: sect. 3.1.

    Convention: a sum over tokens, not a mean; longer responses are less likely.
    Released code differs: scores only the last token, with the logits one position late.

    Raises:
        ValueError: the response has no tokens, or one that the vocabulary has not.
        FloatingPointError: a log-probability is not finite.
    """
    if y.ndim != 1 or len(y) == 0:
        raise ValueError(f"a response must be a vector of at least one token id; got shape {tuple(y.shape)}")
    if y.min() < 0:
        raise ValueError(f"token ids must not be negative; got {y.tolist()}")
    log_p = model.logits(encoded, embeds, y).to(at_least_float32(embeds)).log_softmax(-1)  # (B, R, V)
    if y.max() >= log_p.shape[-1]:
        raise ValueError(f"token ids must be below {log_p.shape[-1]}, the size of the vocabulary; got {y.tolist()}")
    log_p_y = log_p[:, torch.arange(len(y)), y.to(log_p.device)].sum(-1)  # (B,)
    if not log_p_y.isfinite().all():
        _refuse_scores(log_p_y)
    return log_p_y


def preference(model: Model, encoded: Encoded, embeds: Tensor, *, y_pos: Tensor, y_neg: Tensor) -> Tensor:
    r"""Eq. (1): how much the model prefers y_pos over y_neg.

        f(x) = log P(y_pos | x) - log P(y_neg | x)

    embeds: (B, T, d).  Returns (B,) nats.  For the likelihood objective of sect. 5.3 use `log_prob` with y_pos.
    """
    return log_prob(model, encoded, embeds, y=y_pos) - log_prob(model, encoded, embeds, y=y_neg)


def objective(model: Model, example: Example, hp: HyperParameters) -> Function:
    """The f of one example as a function of the prompt's embeddings, (B, T, d) -> (B,) nats."""
    x, y_pos, y_neg = example.encoded, example.y_pos, example.y_neg
    if hp.objective == "likelihood":
        return lambda embeds: log_prob(model, x, embeds, y=y_pos)
    return lambda embeds: preference(model, x, embeds, y_pos=y_pos, y_neg=y_neg)


# ----------------------------------------------------------------------------- 3.1 attribution, eq. (2)
@dataclass(frozen=True)
class Attribution:
    """Scores of one prompt in nats, and f at both ends of the path.

    Attributes:
        ig: IG_j, (T, d).
        a: its sum over the width, (T,).
        f_x: f at the prompt.
        f_baseline: f at the baseline.

    `gap` is f(x) - f(baseline) - sum(a). It closes as m grows, on a transformer with a zero baseline very slowly:
    RMSNorm does not see a common scale, so nearly all of f's change lies below the first node. At m = 5 a gap as
    large as f itself is normal; it measures the quadrature and is not an error.
    """

    ig: Tensor
    a: Tensor
    f_x: float
    f_baseline: float

    @property
    def gap(self) -> float:
        """Completeness gap in nats; 0 for exact Integrated Gradients."""
        return self.f_x - self.f_baseline - self.a.sum().item()


def quadrature_rule(quadrature: Quadrature, m: int) -> tuple[list[float], list[float]]:
    r"""Nodes and weights on [0, 1] for m steps; weights sum to 1.

        right           alpha_j = j / m          weight 1 / m        j = 1..m    (App. B)
        midpoint        alpha_j = (j - 1/2) / m  weight 1 / m
        gauss_legendre  Gauss-Legendre nodes, exact for polynomials of degree 2m - 1

    Convention: no node at alpha = 0, where with a zero baseline RMSNorm lets the gradient grow to 1e31 (32 blocks).
    Released code differs: Gauss-Legendre with 20 nodes.

    Raises:
        ValueError: the rule is unknown, or m is below 1.
    """
    _one_of("quadrature", quadrature, get_args(Quadrature))
    _at_least_one("m", m)
    if quadrature == "right":
        return [j / m for j in range(1, m + 1)], [1 / m] * m
    if quadrature == "midpoint":
        return [(j - 0.5) / m for j in range(1, m + 1)], [1 / m] * m
    nodes, weights = np.polynomial.legendre.leggauss(m)  # on [-1, 1]
    return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()


def integrated_gradients(
    f: Function, x: Tensor, baseline: Tensor, *, m: int, quadrature: Quadrature = "right"
) -> Attribution:
    r"""Eq. (2) and App. B: gradients averaged along the straight path from the baseline to x.

        IG_j = (x_j - x~_j) * sum_i w_i * df(x~ + alpha_i (x - x~)) / dx_j        a_j = sum over d of IG_j

    x, baseline: (T, d).  Source: eq. (2), App. B.  One node is in memory at a time; sums are float32 or wider.

    Convention: only the prompt moves along the path; the response's embeddings stay what they are.
    Released code differs: interpolates prompt and response together, separately for y_pos and y_neg.

    Raises:
        FloatingPointError: a gradient is not finite.
        ValueError: x and baseline differ in shape.
    """
    _check_path(x, baseline)
    nodes, weights = quadrature_rule(quadrature, m)
    total = torch.zeros_like(x, dtype=at_least_float32(x))
    for alpha, weight in zip(nodes, weights, strict=True):
        total += weight * gradient_at(f, baseline + alpha * (x - baseline), where=f"alpha = {alpha:.3g}")
    return attribution_of(f, x, baseline, (x - baseline) * total)


def gradient_times_input(f: Function, x: Tensor, baseline: Tensor) -> Attribution:
    r"""App. B, vanilla gradients: the first-order change of f from the baseline to x.

        IG_j := (x_j - x~_j) * df(x) / dx_j

    Convention: App. B gives no rule from gradient to score; times the input it is a change of f in nats, and equals
      eq. (2) with m = 1.
    """
    _check_path(x, baseline)
    return attribution_of(f, x, baseline, (x - baseline) * gradient_at(f, x, where="x"))


def smoothgrad(
    f: Function, x: Tensor, baseline: Tensor, *, n: int, sigma: float, generator: torch.Generator
) -> Attribution:
    r"""App. B, SmoothGrad: gradients averaged over n noisy copies of x, times the input.

        IG_j := (x_j - x~_j) * 1/n * sum_i df(x + eps_i) / dx_j        eps_i ~ N(0, (sigma * std(x))^2)

    Convention: sigma is relative to the standard deviation of x's entries; noise is drawn in float32 on the CPU.
    Released code differs: sigma = 0.01 absolute, unseeded, not times the input; y_neg's branch scores y_pos's token.
    """
    _check_path(x, baseline)
    _at_least_one("n", n)
    scale = sigma * x.to(at_least_float32(x)).std().item()
    draws = (scale * torch.randn(x.shape, generator=generator) for _ in range(n))
    return gradient_among(f, x, baseline, noise=draws, n=n)


def gradient_among(f: Function, x: Tensor, baseline: Tensor, *, noise: Iterable[Tensor], n: int) -> Attribution:
    """SmoothGrad with its noise given: n tensors (T, d), each added to x."""
    total = torch.zeros_like(x, dtype=at_least_float32(x))
    for i, eps in enumerate(noise):
        total += gradient_at(f, x + eps.to(x), where=f"noisy sample {i}") / n
    return attribution_of(f, x, baseline, (x - baseline) * total)


def random_scores(f: Function, x: Tensor, baseline: Tensor, *, generator: torch.Generator) -> Attribution:
    """Sect. 5.3, the control: standard normal scores, spread evenly over a token's components."""
    _check_path(x, baseline)
    scores = torch.randn(len(x), generator=generator).to(x.device, at_least_float32(x))
    return spread_scores(f, x, baseline, scores)


def spread_scores(f: Function, x: Tensor, baseline: Tensor, scores: Tensor) -> Attribution:
    """Scores (T,) that come from elsewhere, spread evenly over a token's components."""
    return attribution_of(f, x, baseline, scores[:, None].expand(x.shape) / x.shape[1])


def attribute(model: Model, example: Example, hp: HyperParameters) -> Attribution:
    """Scores of one example by the method that `hp` names."""
    f, x = objective(model, example, hp), example.encoded.embeds
    baseline = model.baseline(example.encoded, hp.path_baseline)
    if hp.attribution == "gradient":
        return gradient_times_input(f, x, baseline)
    if hp.attribution == "smoothgrad":
        return smoothgrad(f, x, baseline, n=hp.n, sigma=hp.sigma, generator=generator_of(example, hp.seed))
    if hp.attribution == "random":
        return random_scores(f, x, baseline, generator=generator_of(example, hp.seed))
    return integrated_gradients(f, x, baseline, m=hp.m, quadrature=hp.quadrature)


# ------------------------------------------------------------------------------- 3.1 selection, eq. (3)
@dataclass(frozen=True)
class Selection:
    """I_k^+ and I_k^- as token indices, strongest first. Either may hold fewer than k, or none."""

    pos: tuple[int, ...]
    neg: tuple[int, ...]


def eligible_tokens(encoded: Encoded, rules: Sequence[EligibleRule]) -> Tensor:
    """Which tokens may be selected, (T,) bool: all but padding, narrowed by each rule.

    text, image: no tokens of the other kind (table 7).  content: only the user's own words and images.
    no_special: no BOS, separators and the like.  not_last: not the last prompt token, whose own state is h_last.

    Convention: by the letter of eq. (3) every prompt token is a candidate, BOS and template included.
    Released code differs: also offers the response's tokens.
    """
    dropped = {
        "text": ("image",),
        "image": ("text", "template", "special"),
        "content": ("template", "special"),
        "no_special": ("special",),
        "not_last": (),
    }
    never = {"pad"}
    for rule in rules:
        never.update(dropped[rule])
    keep = [kind not in never for kind in encoded.kinds]
    if "not_last" in rules:
        keep[-1] = False
    return torch.tensor(keep)


def select(a: Tensor, *, k: int, eligible: Tensor) -> Selection:
    r"""Eq. (3): the k most positive and the k most negative tokens.

    a: (T,).  eligible: (T,) bool.

    Convention: only strictly positive (negative) scores count, so a set may hold fewer than k tokens or none; ties
      go to the lower index.
    Released code differs: takes the k highest and k lowest scores whatever their sign.

    Raises:
        ValueError: a score is NaN, k is below 1, or the shapes differ.
    """
    if k < 1 or a.ndim != 1 or a.shape != eligible.shape:
        raise ValueError(f"need k >= 1, scores and mask of one shape (T,); got {k}, {a.shape}, {eligible.shape}")
    if a.isnan().any():
        raise ValueError(f"scores of tokens {a.isnan().nonzero().flatten().tolist()} are NaN; nothing can be ranked")
    candidates = [j for j, ok in enumerate(eligible.tolist()) if ok]
    score = a.tolist()
    pos = sorted((j for j in candidates if score[j] > 0), key=lambda j: (-score[j], j))
    neg = sorted((j for j in candidates if score[j] < 0), key=lambda j: (score[j], j))
    return Selection(pos=tuple(pos[:k]), neg=tuple(neg[:k]))


# -------------------------------------------------------------------------------- 3.2 contrast, eq. (4)
def mask(x: Tensor, tokens: Sequence[int], baseline: Tensor) -> Tensor:
    r"""x with the given tokens replaced by their baselines, x_{\ I}: (T, d) -> (T, d).

    Convention: only embeddings change; positions, length and attention mask stay.
    Released code differs: replaces token ids by the padding (= end-of-text) id.

    Raises:
        ValueError: there is no such token.
    """
    if any(not 0 <= j < len(x) for j in tokens):
        raise ValueError(f"tokens to mask must be from 0 to {len(x) - 1}; got {list(tokens)}")
    masked = x.clone()
    masked[list(tokens)] = baseline[list(tokens)]
    return masked


def contrast(model: Model, encoded: Encoded, selection: Selection, baseline: Tensor) -> tuple[Tensor, Tensor]:
    r"""Eq. (4): how the hidden state of the last prompt token shifts when one set is masked.

        delta_pos_l = h_last_l(x) - h_last_l(x \ I_k^+)        delta_neg_l = h_last_l(x) - h_last_l(x \ I_k^-)

    baseline: (T, d).  Returns two (L, d), in float32 or wider.

    Convention: h is block l's raw output, l = 0..L-1, before the final norm; an empty set gives 0, no rounding errors.
    Released code differs: reads `hidden_states` (the last is after the final norm) at the end of prompt + response.
    """
    x = encoded.embeds
    versions = torch.stack([x, mask(x, selection.pos, baseline), mask(x, selection.neg, baseline)])  # (3, T, d)
    with torch.no_grad():
        h, h_without_pos, h_without_neg = model.residuals(encoded, versions).to(at_least_float32(x))  # (L, d) each
    delta_pos = h - h_without_pos if selection.pos else torch.zeros_like(h)
    delta_neg = h - h_without_neg if selection.neg else torch.zeros_like(h)
    return delta_pos, delta_neg


# ------------------------------------------------------------------------ 3.2 aggregation, eq. (5), (6)
class DegenerateShiftsError(ValueError):
    """The shifts of one layer do not define a direction."""


@dataclass(frozen=True)
class Aggregation:
    """One direction per layer, and how well the shifts defined it.

    Attributes:
        v: unit vectors, (L, d) in float64.
        explained: s_1^2 / sum of s_i^2 of each layer's singular values, L numbers.
        gap: (s_1 - s_2) / s_1, L numbers; near 0 the component is arbitrary.
        cos_mean: cosine of v with the mean shift, L numbers.
    """

    v: Tensor
    explained: tuple[float, ...]
    gap: tuple[float, ...]
    cos_mean: tuple[float, ...]


def aggregate(
    deltas: Tensor, *, method: AggregationMethod = "pca", components: int = 1, weights: Sequence[float] = ()
) -> Aggregation:
    r"""Eq. (5): one unit direction per layer out of the shifts of all examples.

        pca            v_l = +-u_1, the first right singular vector of D_l - mean(D_l), signed so that <v_l, mean> > 0
        uncentred      the same without subtracting the mean
        mean           v_l = mean(D_l) / |mean(D_l)|
        weighted_mean  the same with one weight per example, for instance its summed attribution

    deltas: (N, L, d); D_l is one layer's (N, d).  Exact SVD in float64.  With components = r > 1, v_l is the mean
    shift projected on the first r singular vectors, to unit length; r = 1 is the formula above.

    Convention: the paper leaves centring and sign open. Textbook PCA is centred; eq. (6) needs some sign rule.
    Released code differs: scikit-learn's sign rule, and an unseeded randomised solver at real widths.

    Raises:
        DegenerateShiftsError: the shifts of a layer are all zero, all equal (pca), or have no mean to sign by.
        ValueError: the shape is wrong, a shift is not finite, or weights do not fit.
    """
    _check_shifts(deltas, method, components, weights)
    layers = deltas.detach().cpu().double().numpy().swapaxes(0, 1)  # (L, N, d)
    v, explained, gap, cos_mean = [], [], [], []
    for layer, D in enumerate(layers):
        direction, figures = _direction(layer, D, method, components, np.asarray(weights, dtype=np.float64))
        v.append(direction)
        explained.append(figures[0])
        gap.append(figures[1])
        cos_mean.append(figures[2])
    return Aggregation(torch.from_numpy(np.stack(v)), tuple(explained), tuple(gap), tuple(cos_mean))


def _direction(
    layer: int, D: np.ndarray, method: AggregationMethod, components: int, weights: np.ndarray
) -> tuple[np.ndarray, tuple[float, float, float]]:
    """One layer of `aggregate`: D (N, d), weights (N,) or () -> v (d,) of unit length; explained, gap, cos_mean."""
    mean = D.mean(0)
    negligible = 1e-6 * np.linalg.norm(D)
    if negligible == 0:
        raise DegenerateShiftsError(
            f"layer {layer}: all {len(D)} shifts are zero: no token of this sign was selected, or masking them "
            "changed nothing at this layer"
        )
    # s: singular values, largest first (r,); u: right singular vectors, one per row (r, d); r = min(N, d)
    _, s, u = np.linalg.svd(D if method == "uncentred" else D - mean, full_matrices=False)
    if method == "mean":
        v = mean
    elif method == "weighted_mean":
        v = weights @ D / max(weights.sum(), TINY)
    elif s[0] <= negligible:
        raise DegenerateShiftsError(
            f"layer {layer}: the {len(D)} shifts are all equal, so PCA has no first component. Give more and more "
            "varied examples, or use the aggregation 'mean' or 'uncentred'."
        )
    else:
        basis = u[:components][s[:components] > negligible]  # one row for eq. (5)
        v = (basis @ mean) @ basis  # the mean shift projected on it; for one row: +-u_1 with <v, mean> > 0
    if np.linalg.norm(v) <= negligible / math.sqrt(len(D)):
        raise DegenerateShiftsError(
            f"layer {layer}: the mean shift is zero along the {method} direction, so its sign is undefined. "
            "The examples cancel each other: check that chosen and rejected are not mixed up in some of them."
        )
    v = v / np.linalg.norm(v)
    second = s[1] if len(s) > 1 else 0.0
    explained = s[0] ** 2 / max(s @ s, TINY)
    gap = (s[0] - second) / max(s[0], TINY)
    cos_mean = v @ mean / max(np.linalg.norm(mean), TINY)
    return v, (float(explained), float(gap), float(cos_mean))


def combine(v_pos: Tensor, v_neg: Tensor) -> Tensor:
    r"""Eq. (6): v_l = v_pos_l - v_neg_l, (L, d), not renormalised.

    Convention: +lam * v moves toward the preferred response, though the paper says "from desirable to undesirable".
    """
    return v_pos - v_neg


# --------------------------------------------------------------------------- 3.3 steering, eq. (7), (8)
def steer_hidden(h: Tensor, v: Tensor, *, lam: float) -> Tensor:
    r"""Eq. (7) and (8): add the vector, then restore each token's norm.

        h~ = h + lam * v        h' = h~ * (|h| / |h~|)

    h: (..., d).  v: (d,).  Returns h's shape and dtype; |h'| = |h| for every token.

    Convention: L2 norm over the width, token by token, in float32 or wider; ratio first, then product, because
      |h| * h~ overflows float16. A zero h stays zero; where h~ is zero there is no direction left and h is kept.
    Released code differs: multiplies v by 10 * alpha; norms over the sequence, or steers only row 0 of a batch.

    Raises:
        ValueError: v and h differ in width.
        FloatingPointError: h is not finite, or lam * v is so long beside h that h' cannot be computed.
    """
    if v.shape != h.shape[-1:]:
        raise ValueError(f"v must have the width of h; got {tuple(v.shape)} for h of shape {tuple(h.shape)}")
    wide = h.to(at_least_float32(h))
    shifted = wide + lam * v.to(wide)  # eq. (7)
    ratio = _norm_ratio(wide, shifted)  # (..., 1)
    restored = torch.where(ratio.isfinite(), shifted * ratio, wide).to(h)  # eq. (8)
    _check_steered(restored, h, shifted, ratio)
    return restored


class Hooks:
    """Forward hooks for the length of a `with` block, on these modules and in this thread (or asyncio task) alone.

    What another thread computes meanwhile, or a copy of a module, is not touched; leaving the block, also by an
    exception, removes the hooks.  It may be entered again or nested: hooks of one module act in the order in which
    their blocks were entered.  A generator that is suspended inside the block has not left it.  A thread that is
    started inside the block has not entered it: enter in the thread itself, or start it with
    `contextvars.copy_context().run`.  An asyncio task that is started inside has entered, until the block is left.

    hooks: modules and what to call after each.  before: modules and what to call before each, with its arguments.
    Pickling a module while it is hooked raises TypeError.
    """

    def __init__(
        self, hooks: Sequence[tuple[nn.Module, Hook]] = (), *, before: Sequence[tuple[nn.Module, EarlyHook]] = ()
    ):
        self._hooks, self._before = list(hooks), list(before)
        self._entries: dict[object, list[RemovableHandle]] = {}  # one for every `with` that has not been left

    def __enter__(self) -> Self:
        entry = object()
        handles: list[RemovableHandle] = []
        try:
            for module, hook in self._hooks:
                handles.append(module.register_forward_hook(self._own(module, hook, entry)))
            for module, hook in self._before:
                handles.append(module.register_forward_pre_hook(self._own(module, hook, entry), with_kwargs=True))
            self._entries[entry] = handles
            _ENTERED.set((*_ENTERED.get(), entry))
        except BaseException:  # for instance Ctrl-C between two of them
            for handle in handles:
                handle.remove()
            raise
        return self

    def _own(self, module: nn.Module, hook: Hook | EarlyHook, entry: object) -> _OwnHook:
        return _OwnHook(module, hook, entry)

    def __exit__(self, *exception: object) -> None:
        here = [entry for entry in _ENTERED.get() if entry in self._entries]
        if not here and len(self._entries) != 1:  # it cannot be told which of them is to be left
            raise RuntimeError(
                f"a `with` block is left in a thread or task that has not entered it, and {len(self._entries)} others "
                "have: leave it where it was entered, or make an object for each thread"
            )
        last = here[-1] if here else next(iter(self._entries))
        for handle in self._entries.pop(last):
            handle.remove()
        _ENTERED.set(tuple(entry for entry in _ENTERED.get() if entry is not last))


class Steering(Hooks):
    """Eq. (7), (8) after every decoder block, at every position: `with Steering(model.blocks, v, lam=6.0):`.

    v: (L, d).  layers: block numbers to steer, default all L.  Forward hooks only, which act as `Hooks` says: for
    this thread, not for copies of the model.  Nested vectors apply one after the other.

    Convention: all layers, all positions, prompt and generated tokens, every row of a batch (sect. 3.3).
    Released code differs: one layer, the last.

    Raises:
        TypeError: blocks is no list of modules, v no tensor of decimal numbers, lam no number, or layers no list.
        ValueError: v does not fit the blocks, a layer does not exist or is named twice, or lam or v is not finite.
        FloatingPointError: see `steer_hidden`; it is raised by the model's run, and names the layer.
    """

    def __init__(self, blocks: Sequence[nn.Module], v: Tensor, *, lam: float, layers: Sequence[int] | None = None):
        _check_blocks(blocks)
        _check_vectors(len(blocks), v)
        self._lam = finite_number("lam", lam)
        chosen = range(len(blocks)) if layers is None else different_numbers("layers", layers, below=len(blocks))
        super().__init__([(blocks[i], _naming_layer(i, self._hook(v[i].detach()))) for i in chosen])

    def _hook(self, v: Tensor) -> Hook:
        return edit_output(lambda h: steer_hidden(h, v, lam=self._lam))


# ------------------------------------------------------------------------------------- 3.3 generation
@torch.no_grad()
def generate_greedy(model: Model, encoded: Encoded, *, n: int) -> list[int]:
    """The n most likely next tokens, each from a full recomputation: no cache to be wrong. Ties go to the lower id."""
    ids: list[int] = []
    for _ in range(n):
        said_and_next = torch.tensor([*ids, 0])  # the 0 is only a place-holder: row r never sees token r
        logits = model.logits(encoded, encoded.embeds[None], said_and_next)[0, -1]  # (V,)
        if not logits.isfinite().all():
            _refuse_scores(logits)
        ids.append(int(logits.argmax()))
    return ids


# --------------------------------------------------------------------------------- figure 2, all stages
@dataclass(frozen=True)
class Shift:
    """What one example contributes.

    Attributes:
        a: its scores, (T,).
        selection: its tokens.
        delta_pos: its shift without I_k^+, (L, d).
        delta_neg: its shift without I_k^-, (L, d).
    """

    a: Tensor
    selection: Selection
    delta_pos: Tensor
    delta_neg: Tensor


@dataclass(frozen=True)
class Fit:
    """Both sides of eq. (5), and v of eq. (6).

    Attributes:
        pos: v_pos, (L, d) in float64, and how well it is defined.
        neg: v_neg likewise.
        v: v_pos - v_neg, (L, d) in float64.
    """

    pos: Aggregation
    neg: Aggregation
    v: Tensor


def shift(model: Model, example: Example, a: Tensor, hp: HyperParameters) -> Shift:
    """From the scores of one example to its two shifts: eq. (3) and (4)."""
    selection = select(a, k=hp.k, eligible=eligible_tokens(example.encoded, hp.eligible))
    baseline = model.baseline(example.encoded, hp.mask_baseline)
    delta_pos, delta_neg = contrast(model, example.encoded, selection, baseline)
    return Shift(a.cpu(), selection, delta_pos.cpu(), delta_neg.cpu())


def vectors(shifts: Sequence[Shift], hp: HyperParameters) -> Fit:
    """Figure 2 (B), aggregation over the examples: eq. (5) and (6)."""
    if not shifts:
        raise ValueError("no examples: at least two different shifts are needed for a principal direction")

    pos = _side([s.delta_pos for s in shifts], [s.selection.pos for s in shifts], [s.a for s in shifts], hp)
    neg = _side([s.delta_neg for s in shifts], [s.selection.neg for s in shifts], [s.a for s in shifts], hp)
    return Fit(pos, neg, combine(pos.v, neg.v))


def _side(
    deltas: Sequence[Tensor], selected: Sequence[Sequence[int]], scores: Sequence[Tensor], hp: HyperParameters
) -> Aggregation:
    """Eq. (5) for one sign; an example's weight, where weights are asked for, is its summed |a| of that sign."""
    weights: list[float] = []
    if hp.aggregation == "weighted_mean":
        weights = [a[list(tokens)].abs().sum().item() for a, tokens in zip(scores, selected, strict=True)]
    return aggregate(torch.stack([*deltas]), method=hp.aggregation, components=hp.components, weights=weights)


def fit(model: Model, examples: Sequence[Example], hp: HyperParameters) -> Fit:
    """Figure 2: preference pairs in, steering vectors out. Steer with `Steering(model.blocks, fit.v, lam=...)`."""
    shifts = [shift(model, example, attribute(model, example, hp).a, hp) for example in examples]  # eq. (1) to (4)
    return vectors(shifts, hp)  # eq. (5) and (6)


# ---------------------------------------------------------------------------------- shared by the stages
TINY = np.finfo(np.float64).tiny  # for quotients of what may be zero


def at_least_float32(t: Tensor) -> torch.dtype:
    """float32 for half precision, the tensor's own type otherwise."""
    return torch.promote_types(t.dtype, torch.float32)


def gradient_at(f: Function, point: Tensor, *, where: str) -> Tensor:
    """df/dx at one point, (T, d), in float32 or wider.

    Raises:
        FloatingPointError: it is not finite; `where` says where it was taken.
    """
    with torch.enable_grad():
        point = point.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(f(point[None]).sum(), point)
    return finite_gradient(gradient, where=where)


def finite_gradient(gradient: Tensor, *, where: str) -> Tensor:
    """The gradient in float32 or wider, or FloatingPointError."""
    if not gradient.isfinite().all():
        raise FloatingPointError(
            f"the gradient of f at {where} is not finite: half-precision overflow, or a node too close to a zero "
            "baseline. Try bfloat16 or float32, fewer steps, or another path baseline."
        )
    return gradient.to(at_least_float32(gradient))


def attribution_of(f: Function, x: Tensor, baseline: Tensor, ig: Tensor) -> Attribution:
    """`ig` (T, d) summed over the width, and f at both ends of the path for the completeness gap."""
    with torch.no_grad():
        f_x, f_baseline = f(x[None]).item(), f(baseline[None]).item()
    return Attribution(ig=ig, a=ig.sum(-1), f_x=f_x, f_baseline=f_baseline)


def generator_of(example: Example, seed: int) -> torch.Generator:
    """A CPU generator seeded by the example's content, so that order and resumption do not change the draw."""
    ids = (example.encoded.ids, example.y_pos, example.y_neg)
    digest = hashlib.sha256(f"{seed} {[i.tolist() for i in ids]}{example.encoded.picture}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") % 2**63)


def edit_output(edit: Callable[[Tensor], Tensor]) -> Hook:
    """The hook that edits h in a block's output, which is h or a tuple that starts with h."""

    def hook(block: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (edit(output[0]), *output[1:])
        return edit(output)

    return hook


def _naming_layer(layer: int, hook: Hook) -> Hook:
    """The hook, whose FloatingPointError says in which layer it was."""

    def named(block: nn.Module, inputs: Any, output: Any) -> Any:
        try:
            return hook(block, inputs, output)
        except FloatingPointError as error:
            raise FloatingPointError(f"layer {layer}: {error}") from None

    return named


def _norm_ratio(h: Tensor, shifted: Tensor) -> Tensor:
    """|h| / |h~| per token, (..., d), (..., d) -> (..., 1).

    Each norm is taken of numbers near 1, after division by a power of two, which is exact: squares of large numbers
    overflow, squares of small ones vanish.
    """
    h_exponent = torch.frexp(h.abs().amax(-1, keepdim=True)).exponent  # |h| < 2 ** exponent, entry by entry
    shifted_exponent = torch.frexp(shifted.abs().amax(-1, keepdim=True)).exponent
    norm = torch.ldexp(h, -h_exponent).norm(dim=-1, keepdim=True)
    shifted_norm = torch.ldexp(shifted, -shifted_exponent).norm(dim=-1, keepdim=True)
    return torch.ldexp(norm / shifted_norm, h_exponent - shifted_exponent)


_ENTERED: ContextVar[tuple[object, ...]] = ContextVar(
    "grains_ref: the `with` blocks of this thread or task", default=()
)


class _OwnHook:
    """Calls a hook for one module, in the thread or task that entered, and for nobody else."""

    def __init__(self, module: nn.Module, hook: Hook | EarlyHook, entry: object):
        self._module, self._hook, self._entry = module, hook, entry

    def __call__(self, module: nn.Module, *given: Any) -> Any:  # another thread may see it half registered
        if module is self._module and self._entry in _ENTERED.get():
            return self._hook(module, *given)
        return None

    def __deepcopy__(self, memo: object) -> Callable[..., None]:
        return _no_hook  # a copied module is not steered, and can be pickled

    def __reduce__(self) -> NoReturn:
        raise TypeError("a model cannot be pickled while it is steered: leave the `with` block first")


def _no_hook(module: nn.Module, *given: Any) -> None:
    """What stands in a copy in the place of a hook of the original."""


# ------------------------------------------------------------------------------------------------- checks
def finite_number(name: str, value: object) -> float:
    """The value as a float.

    Raises:
        TypeError: it is no number (True and False are none).
        ValueError: it is not finite.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {_shown(value)}; expected a number, such as 2.0")
    try:
        number = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite; it is {number}")
    return number


def different_numbers(name: str, values: object, *, below: int) -> list[int]:
    """The values as a list of whole numbers, in their order, each once and from 0 to below - 1.

    Raises:
        TypeError: it is no list, or holds something else (True and False are no numbers).
        ValueError: a number is out of range, or named twice.
    """
    if isinstance(values, (str, bytes, dict)) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name} is {_shown(values)}; expected a list of whole numbers, such as [0, 1]")
    chosen: list[int] = []
    for value in itertools.islice(values, below + 1):  # more are too many, and may be without end
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(f"{name} holds {_shown(value)}; expected whole numbers, such as [0, 1]")
        chosen.append(int(value))
    if any(not 0 <= value < below for value in chosen) or len(set(chosen)) != len(chosen):
        raise ValueError(f"{name} must be different numbers from 0 to {below - 1}; got {chosen}")
    return chosen


def _shown(value: object) -> str:
    return f"{value!r:.40}" if isinstance(value, (str, bytes, bool, float, type(None))) else f"a {type(value).__name__}"


def _one_of(name: str, value: str, options: Sequence[str]) -> None:
    if value not in options:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(options)}")


def _at_least_one(name: str, value: object) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} is {value!r}; expected a whole number of at least 1")


def _check_hyper_parameters(hp: HyperParameters) -> None:
    _one_of("quadrature", hp.quadrature, get_args(Quadrature))
    _one_of("objective", hp.objective, get_args(Objective))
    _one_of("attribution", hp.attribution, get_args(AttributionMethod))
    _one_of("aggregation", hp.aggregation, get_args(AggregationMethod))
    for name in ("k", "m", "n", "components"):
        _at_least_one(name, getattr(hp, name))
    if not (math.isfinite(hp.sigma) and hp.sigma > 0):
        raise ValueError(f"sigma is {hp.sigma!r}; expected a positive number")
    if not isinstance(hp.eligible, tuple):
        raise ValueError(f"eligible is {hp.eligible!r}; expected a tuple of rules, for instance ('no_special',)")
    for rule in hp.eligible:
        _one_of("eligible rule", rule, get_args(EligibleRule))
    _check_components(hp.components, hp.aggregation)


def _check_components(components: int, aggregation: str) -> None:
    _at_least_one("components", components)
    if components > 1 and aggregation not in ("pca", "uncentred"):
        raise ValueError(f"components = {components} needs the aggregation pca or uncentred")


def _check_path(x: Tensor, baseline: Tensor) -> None:
    if x.ndim != 2 or x.shape != baseline.shape:
        raise ValueError(f"x and baseline must both be (T, d); got {tuple(x.shape)} and {tuple(baseline.shape)}")


def _check_shifts(deltas: Tensor, method: str, components: int, weights: Sequence[float]) -> None:
    _one_of("aggregation", method, get_args(AggregationMethod))
    _check_components(components, method)
    if deltas.ndim != 3 or len(deltas) == 0:
        raise ValueError(f"deltas must be (N, L, d) with N >= 1; got {tuple(deltas.shape)}")
    if not deltas.isfinite().all():
        raise ValueError(f"shifts are not finite in layers {(~deltas.isfinite()).any(2).any(0).nonzero().tolist()}")
    needed = len(deltas) if method == "weighted_mean" else 0
    if len(weights) != needed or not all(math.isfinite(w) and w >= 0 for w in weights):
        raise ValueError(f"weighted_mean, and only it, takes {len(deltas)} weights >= 0; got {weights}")


def _check_blocks(blocks: object) -> None:
    advice = "expected the list of decoder blocks, for instance `model.blocks`"
    if not isinstance(blocks, (Sequence, nn.ModuleList)) or isinstance(blocks, (str, bytes)):
        raise TypeError(f"blocks is {_shown(blocks)}; {advice}")
    for block in blocks:
        if not isinstance(block, nn.Module):
            raise TypeError(f"blocks holds {_shown(block)}; {advice}")


def _check_vectors(n_blocks: int, v: Tensor) -> None:
    if not isinstance(v, Tensor) or not v.is_floating_point():
        given = v.dtype if isinstance(v, Tensor) else type(v).__name__
        raise TypeError(f"v is a {given}; expected a tensor (L, d), for instance `fit.v` or `vectors.v`")
    if v.ndim != 2 or len(v) != n_blocks:
        raise ValueError(f"v must be (L, d) with L = {n_blocks} decoder blocks; got {tuple(v.shape)}")
    if not v.isfinite().all():
        layers = (~v.isfinite()).any(1).nonzero().flatten().tolist()
        raise ValueError(f"v must be finite; in layers {layers} it holds {(~v.isfinite()).sum()} other values")


def _check_steered(restored: Tensor, h: Tensor, shifted: Tensor, ratio: Tensor) -> None:
    """Nothing but finite states, and no state lost beside a lam * v that is longer than the dtype's whole range."""
    if not h.isfinite().all():
        raise FloatingPointError(f"{(~h.isfinite()).sum()} values of h are not finite before they are steered")
    lost = (ratio < torch.finfo(ratio.dtype).tiny).squeeze(-1) & (h != 0).any(-1)
    if lost.any() or not (restored.isfinite().all() and shifted.isfinite().all()):
        raise FloatingPointError(
            f"lam * v is too long beside h for {h.dtype}: the norm of h cannot be restored. Choose a smaller lam."
        )


def _refuse_scores(scores: Tensor) -> NoReturn:
    rows = (~scores.isfinite()).nonzero().flatten().tolist()
    raise FloatingPointError(
        f"scores are not finite (rows {rows[:10]}): a weight of the model is NaN, or half precision overflowed. "
        "Try bfloat16 or float32."
    )


# ----------------------------------------------------------------------------- the paper's settings, sect. 4
PRESETS = {
    "paper_llm": HyperParameters(k=3, m=5),
    "paper_vlm": HyperParameters(k=20, m=5),
    "paper_gemma": HyperParameters(k=20, m=10),
}
