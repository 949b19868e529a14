r"""Questions about the edit gradient, as rows: where it acts, a metric, more steps, chosen tokens, strengths of layers.

All begin with one gradient, at the attention's output and all positions (`edit_gradient`), make another direction u of
it, and steer with it at the strengths `SHARES`:

    v_l = |s| * u_l / sqrt(mean over l of |u_l|^2)      lam is a share of the state's mean length, whatever u is

| row | u |
|---|---|
| first block only; without it | g at one block; at all others |
| diagonal Fisher | g / (diag F + rho) |
| Fisher | (F + rho I)^-1 g, all blocks together |
| steps | of each strength: the sum of gradients taken along the way |
| attributed tokens | g of the tokens that the paper's setting selects |
| equal layers; layers in units of the state | \|s_l\| g_l / \|g_l\|; \|s_l\|^2 g_l |

Hypotheses, controls and the rule by which one of them helps: docs/reproduction_rules.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grains_ref.demo.lab import Lab
from grains_ref.demo.rows import Draws, Row
from grains_ref.evaluation.measures import margins
from grains_ref.grains import at_least_float32
from grains_ref.methods.any_site import SiteVectors, scaled_to_state
from grains_ref.methods.core import Setting
from grains_ref.methods.edit_gradient import (
    Derivative,
    EditPositions,
    EditSite,
    derivative,
    gradient_of,
    steer,
)
from grains_ref.models import HuggingFaceModel, Item
from grains_ref.reproduction import edit_fits

SITE: EditSite = "attention_output"
POSITIONS: EditPositions = "all"
START = "edit gradient, attention output, all"  # the row that all are compared with
SHARES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)  # of the state's mean length
DAMPING = 0.1  # rho, as a share of the mean eigenvalue of F
DRAWS = 2  # of a control that is random


@dataclass(frozen=True)
class Beginning:
    """What all rows begin with on one model.

    Attributes:
        derivatives: of every steering pair.
        g: their mean, (L, d) in float64, nats per unit of length.
        scale: the mean length of the state at the site.
        sizes: the same block by block, (L,).
    """

    derivatives: Sequence[Derivative]
    g: Tensor
    scale: float
    sizes: Tensor


def beginning(lab: Lab) -> Beginning:
    """The edit gradient of the steering pairs; taken once for all rows."""

    def make() -> Beginning:
        of_pairs = edit_fits.derivatives(lab, SITE, POSITIONS)
        scale = edit_fits.fitted(lab, SITE, POSITIONS).scale
        sizes = torch.stack([of_pair.size for of_pair in of_pairs]).double().mean(0)
        return Beginning(of_pairs, mean_gradient(of_pairs), scale, sizes)

    return lab.once("the edit gradient that the questions begin with", make)


def mean_gradient(derivatives: Sequence[Derivative], weights: Sequence[float] | None = None) -> Tensor:
    """Mean over the pairs of w_i df_i / dv, (L, width) in float64."""
    g = torch.stack([of_pair.g for of_pair in derivatives]).double()
    if weights is not None:
        g = g * torch.tensor(weights, dtype=g.dtype)[:, None, None]
    return g.mean(0)


def _grid(lab: Lab, label: str, u: Tensor, *, site: EditSite = SITE, scale: float | None = None) -> list[Setting]:
    """u at every strength, gentlest first."""
    v = scaled_to_state(u, beginning(lab).scale if scale is None else scale)
    vectors = SiteVectors(label, v, site, POSITIONS)
    return [vectors.setting(lab.model, lam=lam) for lam in SHARES]


def _row(label: str, direction: Callable[[Lab], Tensor]) -> Row:
    return lambda lab: [_grid(lab, label, direction(lab))]


# ---------------------------------------------------------------------------------------------- controls
def _gaussian(lab: Lab) -> Draws:
    """Random directions, at every block as long as the gradient's."""
    return [_grid(lab, f"draw {draw}", gaussian_direction(beginning(lab).g, draw)) for draw in range(DRAWS)]


def gaussian_direction(like: Tensor, draw: int) -> Tensor:
    """Random vectors, each as long as the one in its place."""
    return as_long_as(like, _noise(like, draw))


def _noise(like: Tensor, draw: int) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, generator=torch.Generator().manual_seed(draw))


def as_long_as(vectors: Tensor, others: Tensor) -> Tensor:
    """The others with the lengths of the vectors, along the last axis."""
    return others * vectors.norm(dim=-1, keepdim=True) / others.norm(dim=-1, keepdim=True)


# --------------------------------------------------------------------------------------- (a) which blocks
def only(u: Tensor, blocks: Sequence[int]) -> Tensor:
    """u (L, width) at these blocks and zero elsewhere."""
    at_blocks = torch.zeros_like(u)
    at_blocks[list(blocks)] = u[list(blocks)]
    return at_blocks


def _without_first_block(lab: Lab) -> Tensor:
    g = beginning(lab).g
    return only(g, range(1, len(g)))


def _first_mlp(lab: Lab) -> Draws:
    at_mlp = edit_fits.fitted(lab, "mlp", POSITIONS)
    return [_grid(lab, "MLP, first block only", only(at_mlp.v, [0]), site="mlp", scale=at_mlp.scale)]


# ------------------------------------------------------------------------------------------- (b) a metric
def fisher_probes(model: HuggingFaceModel, items: Sequence[Item], *, site: EditSite, seed: int) -> Tensor:
    r"""One probe s_i of the output's Fisher information for each text: (n, L, width), E[s s^T] = F of the text.

        s = d/dv  sum over answer tokens r and words k of  xi_{r,k} sqrt(p_{r,k}) log p_{r,k}      at v = 0

    with p the prediction of the model as it is and xi random signs, so that the mean over the signs is

        E[s s^T] = sum over r, k of p_{r,k} (d log p_{r,k} / dv) (d log p_{r,k} / dv)^T

    items: (prompt, answer) or (prompt, answer, picture).
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([_probe(model, item, site=site, generator=generator) for item in items])


def _probe(model: HuggingFaceModel, item: Item, *, site: EditSite, generator: torch.Generator) -> Tensor:
    """s of one text, (L, width) in float64."""
    prompt, answer, *image = item
    encoded = model.encode(prompt, image[0] if image else None)
    ids = model.response_ids(prompt, answer)

    def score() -> Tensor:
        logits = model.logits(encoded, encoded.embeds[None], ids)
        log_p = logits.to(at_least_float32(logits)).log_softmax(-1)
        signs = 2.0 * torch.randint(2, log_p.shape, generator=generator).to(log_p) - 1
        return (signs * (log_p.detach() / 2).exp() * log_p).sum()

    gradient, _ = gradient_of(model, score, site=site, first=0)
    return gradient.double()


def by_diagonal(g: Tensor, probes: Tensor, *, damping: float = DAMPING) -> Tensor:
    """g / (diag F + rho), F the mean of the probes' squares.  g: (L, width).  probes: (n, L, width)."""
    diagonal = probes.square().mean(0)
    return g / (diagonal + damping * diagonal.mean())


def by_fisher(g: Tensor, probes: Tensor, *, damping: float = DAMPING) -> Tensor:
    r"""(F + rho I)^-1 g with F = S^T S / n, all blocks together, by Woodbury's identity: only n x n numbers are solved.

        (F + rho I)^-1 g = (g - S^T (n rho I + S S^T)^-1 S g) / rho,        rho = damping * trace(F) / n

    g: (L, width).  probes: (n, L, width), the rows of S.
    """
    s, flat = probes.flatten(1), g.flatten()
    n = len(s)
    products = s @ s.mT
    rho = damping * (products.trace() / n) / n
    inside = torch.linalg.solve(n * rho * torch.eye(n, dtype=s.dtype) + products, s @ flat)
    return ((flat - s.mT @ inside) / rho).view(g.shape)


def _probes(lab: Lab) -> Tensor:
    return lab.once("Fisher probes", lambda: fisher_probes(lab.model, lab.to_keep, site=SITE, seed=0))


def _random_metric(lab: Lab) -> Tensor:
    probes = _probes(lab)
    return by_fisher(beginning(lab).g, gaussian_direction(probes, 0))


# -------------------------------------------------------------------------------------------- (c) steps
def _steps(label: str, weights: Callable[[Sequence[float]], Sequence[float]] | None) -> Row:
    """The gradient taken anew at every strength of the grid.

    weights: from f of every pair to its weight in the mean; None: all alike.
    """

    def row(lab: Lab) -> Draws:
        start = beginning(lab)
        v = torch.zeros_like(start.g)
        settings: list[Setting] = []
        reached = 0.0
        for lam in SHARES:
            g = mean_gradient(*_at(lab, v, weights))
            v = v + (lam - reached) * scaled_to_state(g, start.scale)
            reached = lam
            steering = functools.partial(steer, lab.model, v, site=SITE, positions=POSITIONS, lam=1.0)
            settings.append(Setting(label, lam, steering))
        return [settings]

    return row


def _at(
    lab: Lab, v: Tensor, weights: Callable[[Sequence[float]], Sequence[float]] | None
) -> tuple[Sequence[Derivative], Sequence[float] | None]:
    """The pairs' derivatives at v, and their weights there."""
    of_pairs: Sequence[Derivative] = beginning(lab).derivatives
    if v.any():
        examples = [lab.example(i) for i in range(len(lab.steer))]
        of_pairs = [derivative(lab.model, example, site=SITE, positions=POSITIONS, at=v) for example in examples]
    if weights is None:
        return of_pairs, None
    with steer(lab.model, v, site=SITE, positions=POSITIONS, lam=1.0):
        return of_pairs, weights(margins(lab.model, lab.steer))


def log_sigmoid_weights(f: Sequence[float]) -> list[float]:
    """d log sigmoid(f) / df = sigmoid(-f): pairs that are won pull no more."""
    return torch.sigmoid(-torch.tensor(f, dtype=torch.float64)).tolist()


# ------------------------------------------------------------------------------------------- (d) tokens
def of_tokens(lab: Lab, tokens: Sequence[Sequence[int]]) -> Tensor:
    """The gradient of an edit at these tokens of every steering prompt, (L, d)."""
    of_pairs = []
    for i, chosen in enumerate(tokens):
        of_pairs.append(derivative(lab.model, lab.example(i), site=SITE, positions=POSITIONS, tokens=chosen))
    return mean_gradient(of_pairs)


def _attributed(lab: Lab) -> Tensor:
    selections = [lab.shift(lab.paper, i).selection for i in range(len(lab.steer))]
    return of_tokens(lab, [(*selection.pos, *selection.neg) for selection in selections])


def _random_tokens(lab: Lab) -> Draws:
    draws = []
    for draw in range(DRAWS):
        hp = replace(lab.paper, attribution="random", seed=draw)
        selections = [lab.shift(hp, i).selection for i in range(len(lab.steer))]
        u = of_tokens(lab, [(*selection.pos, *selection.neg) for selection in selections])
        draws.append(_grid(lab, f"draw {draw}", u))
    return draws


def _planted(lab: Lab) -> Tensor:
    return of_tokens(lab, [(*causes.pos, *causes.neg) for causes in lab.causes])


# ------------------------------------------------------------------------------------------- (e) layers
def equal_layers(g: Tensor, sizes: Tensor) -> Tensor:
    """|s_l| g_l / |g_l|: every block is moved by the same share of its own state's length."""
    return sizes[:, None] * g / g.norm(dim=1, keepdim=True)


def in_units_of_the_state(g: Tensor, sizes: Tensor) -> Tensor:
    """|s_l|^2 g_l: with v_l = |s_l| w_l, the gradient with respect to w."""
    return sizes[:, None] ** 2 * g


def reversed_lengths(g: Tensor) -> Tensor:
    """The directions of g with the lengths of the blocks in reverse order."""
    return as_long_as(g.flip(0), g)


# ------------------------------------------------------------------------------------------------- all
@dataclass(frozen=True)
class Question:
    """What the rule decides about: variants, of which dev chooses one, and the control it has to be ahead of."""

    title: str
    variants: tuple[str, ...]
    control: str


QUESTIONS: Mapping[str, Question] = {
    "b": Question(
        "a metric", ("edit gradient, diagonal Fisher", "edit gradient, Fisher"), "edit gradient, random metric"
    ),
    "c": Question("a few steps", ("edit gradient, steps", "edit gradient, steps, log sigmoid"), START),
    "d": Question("chosen tokens", ("edit gradient, attributed tokens",), "edit gradient, random tokens"),
    "e": Question(
        "strengths of layers",
        ("edit gradient, equal layers", "edit gradient, layers in units of the state"),
        "edit gradient, layers reversed",
    ),
}

ROWS: dict[str, Row] = {
    "edit gradient, reversed": _row("reversed", lambda lab: -beginning(lab).g),
    "edit gradient, Gaussian": _gaussian,
    "edit gradient, first block only": _row("first block only", lambda lab: only(beginning(lab).g, [0])),
    "edit gradient, without the first block": _row("without the first block", _without_first_block),
    "edit gradient, MLP, first block only": _first_mlp,
    "edit gradient, diagonal Fisher": _row("diagonal Fisher", lambda lab: by_diagonal(beginning(lab).g, _probes(lab))),
    "edit gradient, Fisher": _row("Fisher", lambda lab: by_fisher(beginning(lab).g, _probes(lab))),
    "edit gradient, random metric": _row("random metric", _random_metric),
    "edit gradient, steps": _steps("steps", None),
    "edit gradient, steps, log sigmoid": _steps("steps, log sigmoid", log_sigmoid_weights),
    "edit gradient, attributed tokens": _row("attributed tokens", _attributed),
    "edit gradient, random tokens": _random_tokens,
    "edit gradient, planted tokens": _row("planted tokens", _planted),
    "edit gradient, equal layers": _row(
        "equal layers", lambda lab: equal_layers(beginning(lab).g, beginning(lab).sizes)
    ),
    "edit gradient, layers in units of the state": _row(
        "layers in units of the state", lambda lab: in_units_of_the_state(beginning(lab).g, beginning(lab).sizes)
    ),
    "edit gradient, layers reversed": _row("layers reversed", lambda lab: reversed_lengths(beginning(lab).g)),
}
