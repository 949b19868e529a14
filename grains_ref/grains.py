r"""GrAInS, the reference: equations (1) to (8) of arXiv 2507.18043 in the paper's order, one function each.

Read it from top to bottom; `fit` near the end is figure 2 in ten lines. Correct first, then readable; speed
lives elsewhere. Nothing here knows about Hugging Face: a model is the four functions of `Model`.

Glossary (code name, paper symbol, shape, unit):
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
what the authors' repository (commit 8ad78db) computes instead. docs/decisions.md has the reasons.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn

Quadrature = Literal["right", "midpoint", "gauss_legendre"]
AttributionMethod = Literal["integrated_gradients", "gradient", "smoothgrad", "random"]
Objective = Literal["preference", "likelihood"]
AggregationMethod = Literal["pca", "uncentred", "mean", "weighted_mean"]
EligibleRule = Literal["text", "image", "content", "no_special", "not_last"]
Kind = Literal["text", "image", "template", "special", "pad"]
Function: TypeAlias = Callable[[Tensor], Tensor]  # (B, T, d) -> (B,)


# ------------------------------------------------------------------------------------- what goes in
def _one_of(name: str, value: str, options: Sequence[str]) -> None:
    if value not in options:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(options)}")


@dataclass(frozen=True)
class HyperParameters:
    """Every number of the method, with the paper's value as the default; `lam` is chosen per task, on dev data."""

    k: int = 3  # sect. 4.1: 3 for LLMs; sect. 4.2: 20 for VLMs
    m: int = 5  # sect. 4.1: 5; sect. 4.2: 10 for Gemma 3
    quadrature: Quadrature = "right"  # App. B: nodes j/m, j = 1..m
    objective: Objective = "preference"  # eq. 1; sect. 5.3 ablates it with "likelihood"
    attribution: AttributionMethod = "integrated_gradients"  # eq. 2; sect. 5.3 ablates it with the others
    path_baseline: str = "zero"  # eq. 2, "zero or masked token embedding"
    mask_baseline: str = "zero"  # eq. 4, "replaced by baselines"
    eligible: tuple[EligibleRule, ...] = ()  # eq. 3 by the letter: every prompt token; each rule narrows
    aggregation: AggregationMethod = "pca"  # eq. 5
    components: int = 1  # eq. 5, PCA_1
    n: int = 20  # App. B, SmoothGrad samples; the paper names no value
    sigma: float = 0.15  # App. B, SmoothGrad noise, in standard deviations of x; the paper names no value
    seed: int = 0  # of SmoothGrad's noise and of random scores

    def __post_init__(self) -> None:
        names = {"quadrature": Quadrature, "objective": Objective, "attribution": AttributionMethod}
        for name, options in (names | {"aggregation": AggregationMethod}).items():
            _one_of(name, getattr(self, name), get_args(options))
        for name in ("k", "m", "n", "components"):
            if type(value := getattr(self, name)) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}; expected a whole number of at least 1")
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise ValueError(f"sigma is {self.sigma!r}; expected a positive number")
        if not isinstance(self.eligible, tuple):
            raise ValueError(f"eligible is {self.eligible!r}; expected a tuple of rules, for instance ('no_special',)")
        for rule in self.eligible:
            _one_of("eligible rule", rule, get_args(EligibleRule))
        if self.components > 1 and self.aggregation not in ("pca", "uncentred"):
            raise ValueError(f"components = {self.components} needs the aggregation pca or uncentred")


PRESETS = {"paper_llm": HyperParameters(), "paper_vlm": HyperParameters(20), "paper_gemma": HyperParameters(20, m=10)}


@dataclass(frozen=True)
class Encoded:
    """One prompt as the model sees it."""

    ids: Tensor  # (T,)
    embeds: Tensor  # (T, d), image features merged in
    tokens: tuple[str, ...]  # T strings, for people
    kinds: tuple[Kind, ...]  # T
    replay: dict[str, Tensor]  # what a run with other embeddings needs (masks, positions); only the model looks in
    picture: str = ""  # digest of the picture; with the ids it seeds random draws


@dataclass(frozen=True)
class Example:
    """One preference pair: the prompt x and the token ids of its two responses."""

    encoded: Encoded
    y_pos: Tensor  # (R,)
    y_neg: Tensor  # (R',)


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
        ValueError: the response has no tokens.
    """
    if y.ndim != 1 or len(y) == 0:
        raise ValueError(f"a response must be a vector of at least one token id; got shape {tuple(y.shape)}")
    log_p = model.logits(encoded, embeds, y).to(_wide(embeds)).log_softmax(-1)  # (B, R, V)
    return log_p[:, torch.arange(len(y)), y.to(log_p.device)].sum(-1)  # (B,)


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

    `gap` is f(x) - f(baseline) - sum(a). It closes as m grows, on a transformer with a zero baseline very slowly:
    RMSNorm does not see a common scale, so nearly all of f's change lies below the first node. At m = 5 a gap as
    large as f itself is normal; it measures the quadrature and is not an error.
    """

    ig: Tensor  # (T, d)
    a: Tensor  # (T,)
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
    """
    _one_of("quadrature", quadrature, get_args(Quadrature))
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
    total = torch.zeros_like(x, dtype=_wide(x))
    for alpha, weight in zip(*quadrature_rule(quadrature, m), strict=True):
        total += weight * _gradient(f, baseline + alpha * (x - baseline), where=f"alpha = {alpha:.3g}")
    return _attribution(f, x, baseline, (x - baseline) * total)


def gradient_times_input(f: Function, x: Tensor, baseline: Tensor) -> Attribution:
    r"""App. B, vanilla gradients: the first-order change of f from the baseline to x.

        IG_j := (x_j - x~_j) * df(x) / dx_j

    Convention: App. B gives no rule from gradient to score; times the input it is a change of f in nats, and equals
      eq. (2) with m = 1.
    """
    return _attribution(f, x, baseline, (x - baseline) * _gradient(f, x, where="x"))


def smoothgrad(
    f: Function, x: Tensor, baseline: Tensor, *, n: int, sigma: float, generator: torch.Generator
) -> Attribution:
    r"""App. B, SmoothGrad: gradients averaged over n noisy copies of x, times the input.

        IG_j := (x_j - x~_j) * 1/n * sum_i df(x + eps_i) / dx_j        eps_i ~ N(0, (sigma * std(x))^2)

    Convention: sigma is relative to the standard deviation of x's entries; noise is drawn in float32 on the CPU.
    Released code differs: sigma = 0.01 absolute, unseeded, not times the input; y_neg's branch scores y_pos's token.
    """
    scale = sigma * x.to(_wide(x)).std().item()
    total = torch.zeros_like(x, dtype=_wide(x))
    for i in range(n):
        noise = scale * torch.randn(x.shape, generator=generator)
        total += _gradient(f, x + noise.to(x), where=f"noisy sample {i}") / n
    return _attribution(f, x, baseline, (x - baseline) * total)


def random_scores(f: Function, x: Tensor, baseline: Tensor, *, generator: torch.Generator) -> Attribution:
    """Sect. 5.3, the control: standard normal scores, spread evenly over a token's components."""
    scores = torch.randn(len(x), generator=generator).to(x.device, _wide(x))
    return _attribution(f, x, baseline, scores[:, None].expand(x.shape) / x.shape[1])


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


def _attribution(f: Function, x: Tensor, baseline: Tensor, ig: Tensor) -> Attribution:
    """Sum over the width, and f at both ends of the path for the completeness gap."""
    if x.ndim != 2 or x.shape != baseline.shape:
        raise ValueError(f"x and baseline must both be (T, d); got {tuple(x.shape)} and {tuple(baseline.shape)}")
    with torch.no_grad():
        f_x, f_baseline = f(x[None]).item(), f(baseline[None]).item()
    return Attribution(ig=ig, a=ig.sum(-1), f_x=f_x, f_baseline=f_baseline)


def _gradient(f: Function, point: Tensor, *, where: str) -> Tensor:
    """df/dx at one point, (T, d), in float32 or wider."""
    with torch.enable_grad():
        point = point.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(f(point[None]).sum(), point)
    if not gradient.isfinite().all():
        raise FloatingPointError(
            f"the gradient of f at {where} is not finite: half-precision overflow, or a node too close to a zero "
            "baseline. Try bfloat16 or float32, fewer steps, or another path baseline."
        )
    return gradient.to(_wide(gradient))


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
    keep = [kind != "pad" and not any(kind in dropped[rule] for rule in rules) for kind in encoded.kinds]
    keep[-1] &= "not_last" not in rules
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
    """
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
        h, h_without_pos, h_without_neg = model.residuals(encoded, versions).to(_wide(x))  # 3 x (L, d)
    return (h - h_without_pos) * bool(selection.pos), (h - h_without_neg) * bool(selection.neg)


# ------------------------------------------------------------------------ 3.2 aggregation, eq. (5), (6)
class DegenerateShiftsError(ValueError):
    """The shifts of one layer do not define a direction."""


@dataclass(frozen=True)
class Aggregation:
    """One direction per layer, and how well the shifts defined it."""

    v: Tensor  # (L, d) float64, unit length
    explained: tuple[float, ...]  # L: s1^2 / sum of s^2
    gap: tuple[float, ...]  # L: (s1 - s2) / s1 of the singular values; near 0 the component is arbitrary
    cos_mean: tuple[float, ...]  # L: cosine of v with the mean shift


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
    if deltas.ndim != 3 or len(deltas) == 0:
        raise ValueError(f"deltas must be (N, L, d) with N >= 1; got {tuple(deltas.shape)}")
    if not deltas.isfinite().all():
        raise ValueError(f"shifts are not finite in layers {(~deltas.isfinite()).any(2).any(0).nonzero().tolist()}")
    w = np.asarray(weights, dtype=np.float64)
    if len(w) != (len(deltas) if method == "weighted_mean" else 0) or not (np.isfinite(w) & (w >= 0)).all():
        raise ValueError(f"weighted_mean, and only it, takes {len(deltas)} weights >= 0; got {weights}")
    layers = deltas.detach().cpu().double().numpy().swapaxes(0, 1)  # (L, N, d)
    per_layer = [_direction(layer, D, method, components, w) for layer, D in enumerate(layers)]
    v, explained, gap, cos_mean = zip(*per_layer, strict=True)
    return Aggregation(v=torch.from_numpy(np.stack(v)), explained=explained, gap=gap, cos_mean=cos_mean)


def _direction(
    layer: int, D: np.ndarray, method: AggregationMethod, components: int, weights: np.ndarray
) -> tuple[np.ndarray, float, float, float]:
    """One layer of `aggregate`: D (N, d) -> v (d,), explained, gap, cos_mean."""
    mean, negligible = D.mean(0), 1e-6 * np.linalg.norm(D)
    if negligible == 0:
        raise DegenerateShiftsError(f"layer {layer}: all {len(D)} shifts are zero; no token of this sign was selected")
    _, s, u = np.linalg.svd(D if method == "uncentred" else D - mean, full_matrices=False)  # (N,), (N, d)
    s = np.append(s, 0.0)
    if method in ("pca", "uncentred"):
        if s[0] <= negligible:
            raise DegenerateShiftsError(
                f"layer {layer}: the {len(D)} shifts are all equal, so PCA has no first component. Give more and more "
                "varied examples, or use the aggregation 'mean' or 'uncentred'."
            )
        u = u[:components][s[: len(u)][:components] > negligible]
        v = (u @ mean) @ u  # the mean shift projected on the components; for one component: signed by the mean
    else:
        v = mean if method == "mean" else weights @ D / max(weights.sum(), np.finfo(float).tiny)
    if np.linalg.norm(v) <= negligible / math.sqrt(len(D)):
        raise DegenerateShiftsError(
            f"layer {layer}: the mean shift is zero along the {method} direction, so its sign is undefined. "
            "The examples cancel each other: check that chosen and rejected are not mixed up in some of them."
        )
    v = v / np.linalg.norm(v)
    variance, first, length = (max(z, np.finfo(float).tiny) for z in (s @ s, s[0], np.linalg.norm(mean)))
    return v, float(s[0] ** 2 / variance), float((s[0] - s[1]) / first), float(v @ mean / length)


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
    """
    if v.shape != h.shape[-1:]:
        raise ValueError(f"v must have the width of h; got {tuple(v.shape)} for h of shape {tuple(h.shape)}")
    wide = h.to(_wide(h))
    shifted = wide + lam * v.to(wide)  # eq. (7)
    norm, shifted_norm = (z.norm(dim=-1, keepdim=True) for z in (wide, shifted))  # (..., 1)
    restored = shifted * (norm / shifted_norm)  # eq. (8)
    return torch.where(shifted_norm > 0, restored, wide).to(h)


class Steering:
    """Eq. (7), (8) after every decoder block, at every position: `with Steering(model.blocks, v, lam=6.0):`.

    v: (L, d).  layers: block numbers to steer, default all L.  Forward hooks only; leaving the `with` block, also by
    an exception, removes them all.  It may be entered again or nested; nested vectors apply one after the other.

    Convention: all layers, all positions, prompt and generated tokens, every row of a batch (sect. 3.3).
    Released code differs: one layer, the last.

    Raises:
        ValueError: v does not fit the blocks, a layer does not exist or is named twice, or lam or v is not finite.
    """

    def __init__(self, blocks: Sequence[nn.Module], v: Tensor, *, lam: float, layers: Sequence[int] | None = None):
        layers = range(len(blocks)) if layers is None else layers
        if v.ndim != 2 or len(v) != len(blocks):
            raise ValueError(f"v must be (L, d) with L = {len(blocks)} decoder blocks; got {tuple(v.shape)}")
        if not (math.isfinite(lam) and v.isfinite().all()):
            raise ValueError(f"lam and v must be finite; lam is {lam}, v holds {(~v.isfinite()).sum()} other values")
        if set(layers) - set(range(len(blocks))) or len(set(layers)) != len(layers):
            raise ValueError(f"layers must be different numbers from 0 to {len(blocks) - 1}; got {list(layers)}")
        self._blocks, self._v, self._lam, self._layers = blocks, v.detach(), float(lam), tuple(layers)
        self._entered: list[list[torch.utils.hooks.RemovableHandle]] = []

    def __enter__(self) -> Steering:
        self._entered.append([self._blocks[i].register_forward_hook(self._hook(self._v[i])) for i in self._layers])
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._entered.pop():
            handle.remove()

    def _hook(self, v: Tensor) -> Callable[[nn.Module, Any, Any], Any]:
        def edit(block: nn.Module, inputs: Any, output: Any) -> Any:
            h = steer_hidden(output[0] if isinstance(output, tuple) else output, v, lam=self._lam)
            return (h, *output[1:]) if isinstance(output, tuple) else h

        return edit


# ------------------------------------------------------------------------------------- 3.3 generation
@torch.no_grad()
def generate_greedy(model: Model, encoded: Encoded, *, n: int) -> list[int]:
    """The n most likely next tokens, each from a full recomputation: no cache to be wrong. Ties go to the lower id."""
    ids: list[int] = []
    for _ in range(n):  # the appended 0 is only a place-holder: row r never sees token r
        ids.append(int(model.logits(encoded, encoded.embeds[None], torch.tensor([*ids, 0]))[0, -1].argmax()))
    return ids


# --------------------------------------------------------------------------------- figure 2, all stages
@dataclass(frozen=True)
class Shift:
    """What one example contributes: its scores, its tokens, and its two shifts (L, d)."""

    a: Tensor  # (T,)
    selection: Selection
    delta_pos: Tensor
    delta_neg: Tensor


@dataclass(frozen=True)
class Fit:
    """Both sides of eq. (5), and v of eq. (6), each (L, d) in float64."""

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

    def side(sign: Literal["pos", "neg"]) -> Aggregation:
        deltas = torch.stack([getattr(s, f"delta_{sign}") for s in shifts])  # (N, L, d)
        scores = [s.a[list(getattr(s.selection, sign))].abs().sum().item() for s in shifts]
        weights = scores if hp.aggregation == "weighted_mean" else []
        return aggregate(deltas, method=hp.aggregation, components=hp.components, weights=weights)

    pos, neg = side("pos"), side("neg")
    return Fit(pos, neg, combine(pos.v, neg.v))


def fit(model: Model, examples: Sequence[Example], hp: HyperParameters) -> Fit:
    """Figure 2: preference pairs in, steering vectors out. Steer with `Steering(model.blocks, fit.v, lam=...)`."""
    shifts = [shift(model, example, attribute(model, example, hp).a, hp) for example in examples]  # eq. (1) to (4)
    return vectors(shifts, hp)  # eq. (5) and (6)


# -------------------------------------------------------------------------------------------- helpers
def _wide(t: Tensor) -> torch.dtype:
    """float32 for half precision, the tensor's own type otherwise."""
    return torch.promote_types(t.dtype, torch.float32)


def generator_of(example: Example, seed: int) -> torch.Generator:
    """A CPU generator seeded by the example's content, so that order and resumption do not change the draw."""
    ids = (example.encoded.ids, example.y_pos, example.y_neg)
    digest = hashlib.sha256(f"{seed} {[i.tolist() for i in ids]}{example.encoded.picture}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") % 2**63)
