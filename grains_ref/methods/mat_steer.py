r"""MAT-Steer, multi-attribute targeted steering (Nguyen et al., 2025): a gated vector per attribute, trained together.

    f(x) = |x| n( x + c sum_t g_t(x) v_t ),   g_t(x) = sigmoid(w_t . x + b_t),   n(x) = x / |x|,  c = 1 in training

    loss = mean_t MMD^2( f(rejected_t), chosen_t ) + 0.9 mean |g(rejected)| + 0.9 mean g(chosen)^2
           + 0.1 sum_{s < t} cos^2(v_s, v_t)

An attribute is a list of preference pairs: one habit to change.  Read: the site at the answer's last token.  Edit: one
block, from the prompt's last token on; the gates look at every token anew.  MMD^2 is that of a Gaussian kernel,

    MMD^2(X, Y) = mean k(x, x') + mean k(y, y') - 2 mean k(x, y),   k(x, y) = exp(-|x - y|^2 / (2 bandwidth^2))

Every block is trained by itself, all in one pass: Adam treats each number alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from grains_ref.data import PreferencePair
from grains_ref.grains import DegenerateShiftsError, finite_number
from grains_ref.methods.core import (
    NEGLIGIBLE,
    Change,
    Edit,
    Positions,
    Setting,
    Site,
    capture,
    check_option,
    check_pairs,
    length,
    mean_difference,
    site_width,
    unit,
    whole_number,
)
from grains_ref.models import HuggingFaceModel

MULTIPLIERS = (0.5, 1.0, 2.0, 4.0, 8.0)
SPARSE, PRESERVING, ORTHOGONAL = 0.9, 0.9, 0.1  # weights of the loss beside MMD's
LEARNING_RATE, EPOCHS, BATCH = 1e-3, 100, 96
TINY = 1e-8  # keeps a norm from being divided by zero

Start = Literal["normal", "difference"]
Alignment = Literal["plain", "share"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What paper and public code leave to whoever takes the method to another model.

    read, edit: the site whose states are trained on, and the site that is edited.
    bandwidth: of the kernel, in units of the states; `median` takes the median distance of two states, block by block.
    start: the vectors before training: standard normal numbers, or the mean difference of chosen and rejected.
    alignment: MMD^2 as it is, or as a share of what it is without steering, block by block: where the two classes of
    states overlap much, closing all the gates costs less than any alignment gains.
    """

    read: Site
    edit: Site
    bandwidth: float | Literal["median"]
    start: Start
    alignment: Alignment

    def __post_init__(self) -> None:
        check_option("read", self.read, Site)
        check_option("edit", self.edit, Site)
        check_option("start", self.start, Start)
        check_option("alignment", self.alignment, Alignment)
        if self.bandwidth != "median" and not finite_number("bandwidth", self.bandwidth) > 0:
            raise ValueError(f"bandwidth is {self.bandwidth}; expected a positive number, or 'median'")


# The public code reads the stream that enters a block and edits the heads' outputs, which are as wide in its models.
CODE = Options(read="block_input", edit="heads", bandwidth=2.0, start="normal", alignment="plain")
ADAPTED = Options(read="residual", edit="residual", bandwidth="median", start="difference", alignment="share")


@dataclass(frozen=True)
class Kernel:
    """How one attribute's alignment is measured: the kernel's width, and the MMD^2 that counts as 1; both (L,)."""

    bandwidth: Tensor
    unit: Tensor


@dataclass(frozen=True)
class MatSteer:
    """Vectors and gates of every block and attribute.

    v, w: (L, T, width) in float64, vectors and the gates' weights.  b: (L, T), the gates' biases.
    start: (L, T, width), the vectors before training.
    losses: (steps, L) of each step before it is taken.
    """

    attributes: tuple[str, ...]
    options: Options
    v: Tensor
    w: Tensor
    b: Tensor
    start: Tensor
    losses: Tensor

    def steering(self, model: HuggingFaceModel, *, block: int, c: float, positions: Positions = "after_prompt") -> Edit:
        """Move one block's states along the gated vectors while entered, norms kept; c = 1 is what was trained.

        Raises:
            TypeError: c is no number, block no whole number.
            ValueError: c is not finite, there is no such block, or the vectors are of another model.
        """
        expected = (len(model.blocks), len(self.attributes), site_width(model, self.options.edit))
        if self.v.shape != expected:
            raise ValueError(
                f"{model.name} needs vectors (L, T, width) = {expected} at the site {self.options.edit}; got "
                f"{tuple(self.v.shape)}: from another model, or read at a site of another width"
            )
        chosen = whole_number("block", block, most=len(self.v) - 1)
        change = _move(self.v[chosen], self.w[chosen], self.b[chosen], finite_number("c", c))
        return Edit(model, self.options.edit, {chosen: change}, positions=positions)

    def settings(self, model: HuggingFaceModel) -> list[Setting]:
        """The search grid: every block with `MULTIPLIERS`."""
        o = self.options
        name = f"MAT-Steer, {' and '.join(self.attributes)}, read at {o.read}, edited at {o.edit}, from {o.start}"
        return [
            Setting(f"{name}, block {block}", c, functools.partial(self.steering, model, block=block, c=c))
            for c in MULTIPLIERS
            for block in range(len(self.v))
        ]


def fit(
    model: HuggingFaceModel, pairs: Sequence[PreferencePair], *, options: Options = ADAPTED, seed: int = 0
) -> MatSteer:
    """Vectors and gates of one attribute; see `fit_several`."""
    return fit_several(model, {"one attribute": pairs}, options=options, seed=seed)


def fit_several(
    model: HuggingFaceModel,
    attributes: Mapping[str, Sequence[PreferencePair]],
    *,
    options: Options = ADAPTED,
    seed: int = 0,
) -> MatSteer:
    """Vectors and gates of several attributes, trained together.

    Convention: of T attributes a batch holds 96 // (2 T) chosen and as many rejected answers each, drawn anew for every
      step; the caller's random numbers are left alone.

    Raises:
        ValueError: no attribute, one without pairs, or a site of another width is to be edited.
        DegenerateShiftsError: an attribute's chosen and rejected answers have the same states at every block; or, where
            training starts from their mean difference, the same mean at some block.
        FloatingPointError: a state is not finite.
    """
    if not attributes:
        raise ValueError("need at least one attribute: a name and its pairs")
    for pairs in attributes.values():
        check_pairs(pairs, least=1)
    widths = site_width(model, options.read), site_width(model, options.edit)
    if widths[0] != widths[1]:
        raise ValueError(
            f"{model.name}: the site {options.read} is {widths[0]} wide and {options.edit} {widths[1]}; vectors read "
            "at the one do not fit the other. Read and edit the same site."
        )
    chosen = [_states(model, pairs, options.read, rejected=False) for pairs in attributes.values()]
    rejected = [_states(model, pairs, options.read, rejected=True) for pairs in attributes.values()]
    for name, right, wrong in zip(attributes, chosen, rejected, strict=True):
        if (right - wrong).norm() <= NEGLIGIBLE * right.norm():
            raise DegenerateShiftsError(
                f"blocks 0 to {len(right) - 1}: chosen and rejected answers of {name} have the same states at every "
                "block. Check that they differ, or read another site."
            )
    trained = train(chosen, rejected, options=options, seed=seed)
    return MatSteer(tuple(attributes), options, *trained)


def _states(model: HuggingFaceModel, pairs: Sequence[PreferencePair], site: Site, *, rejected: bool) -> Tensor:
    """States at the answers' last tokens, (L, N, width) in float64."""
    items = [(pair.prompt, pair.rejected if rejected else pair.chosen, pair.image) for pair in pairs]
    return capture(model, items, site=site)[:, :, 0].transpose(0, 1).double()


def _mean_differences(chosen: Sequence[Tensor], rejected: Sequence[Tensor]) -> Tensor:
    """Mean of the chosen minus mean of the rejected answers' states, (L, T, width)."""
    of_attributes = []
    for right, wrong in zip(chosen, rejected, strict=True):
        rows = (right - wrong).unbind(0)
        of_attributes.append(torch.stack([mean_difference(row, where=f"block {i}") for i, row in enumerate(rows)]))
    return torch.stack(of_attributes, dim=1)


# ------------------------------------------------------------------------------------------- training
@torch.enable_grad()
def train(
    chosen: Sequence[Tensor], rejected: Sequence[Tensor], *, options: Options, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """v, w, b, the vectors before training and the losses, as in `MatSteer`.

    chosen, rejected: of every attribute the states (L, N, width).

    Raises:
        DegenerateShiftsError: see `fit_several`.
    """
    draw = torch.Generator().manual_seed(seed)
    start, w, b = _untrained(chosen, draw)
    if options.start == "difference":
        start = _mean_differences(chosen, rejected)
    v = start.clone().requires_grad_()
    kernels = [_kernel(right, wrong, options) for right, wrong in zip(chosen, rejected, strict=True)]
    optimiser = torch.optim.Adam([v, w, b], lr=LEARNING_RATE)
    fewest = min(states.shape[1] for states in (*chosen, *rejected))
    size = max(1, min(BATCH // (2 * len(chosen)), fewest))
    losses = []
    for _ in range(EPOCHS * math.ceil(fewest / size)):
        right, wrong = [], []
        for of_attribute, opposite in zip(chosen, rejected, strict=True):
            right.append(_drawn(of_attribute, size, draw))
            wrong.append(_drawn(opposite, size, draw))
        aims = [_drawn(of_attribute, size, draw) for of_attribute in chosen]  # what rejected answers are moved to
        optimiser.zero_grad()
        loss = loss_of(v, w, b, right, wrong, aims, kernels)
        loss.sum().backward()
        optimiser.step()
        losses.append(loss.detach())
    return v.detach(), w.detach(), b.detach(), start, torch.stack(losses)


def loss_of(
    v: Tensor,
    w: Tensor,
    b: Tensor,
    right: Sequence[Tensor],
    wrong: Sequence[Tensor],
    aims: Sequence[Tensor],
    kernels: Sequence[Kernel],
) -> Tensor:
    """The loss of every block, (L,).

    v, w: (L, T, width).  b: (L, T).  right, wrong, aims: of every attribute chosen and rejected answers' states, and
    the chosen ones that the rejected are moved to, (L, n, width).
    """
    gates_right, gates_wrong = gates(torch.cat([*right], 1), w, b), gates(torch.cat([*wrong], 1), w, b)
    distances = []
    for states, aim, kernel in zip(wrong, aims, kernels, strict=True):
        distances.append(mmd(moved(states, v, w, b, 1.0), aim, kernel.bandwidth) / kernel.unit)
    directions = normalize(v, dim=-1)  # `core.unit` is made for values: its gradient is not that of a division
    cosines = directions @ directions.transpose(1, 2)  # (L, T, T)
    alignment = torch.stack(distances).mean(0)
    sparsity = gates_wrong.abs().mean((1, 2))
    preservation = gates_right.square().mean((1, 2))
    orthogonality = cosines.triu(diagonal=1).square().sum((1, 2))
    return alignment + SPARSE * sparsity + PRESERVING * preservation + ORTHOGONAL * orthogonality


def gates(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """How far every attribute's gate is open: (..., n, width) -> (..., n, T), from 0 to 1."""
    return torch.sigmoid(x @ w.transpose(-1, -2) + b[..., None, :])


def moved(x: Tensor, v: Tensor, w: Tensor, b: Tensor, c: float) -> Tensor:
    """f of every state (..., n, width)."""
    y = x + c * gates(x, w, b) @ v
    return y * (x.norm(dim=-1, keepdim=True) / (y.norm(dim=-1, keepdim=True) + TINY))


def mmd(x: Tensor, y: Tensor, bandwidth: Tensor) -> Tensor:
    """MMD^2 of two samples, (L, n, width) and (L, m, width) -> (L,), with every block's own bandwidth."""

    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-squared_distances(a, b) / (2 * bandwidth.square())[:, None, None]).mean((1, 2))

    return mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Of all pairs of rows, (L, n, width) and (L, m, width) -> (L, n, m)."""
    cross = x @ y.transpose(1, 2)
    return (x.square().sum(-1)[:, :, None] + y.square().sum(-1)[:, None] - 2 * cross).clamp_min(0)


def _kernel(chosen: Tensor, rejected: Tensor, options: Options) -> Kernel:
    """Of one attribute."""
    bandwidth, unit_of_mmd = (chosen.new_ones(len(chosen)) for _ in range(2))
    if options.bandwidth == "median":
        states = torch.cat([chosen, rejected], dim=1)
        n = states.shape[1]
        others = torch.ones(n, n).triu(diagonal=1).bool()
        bandwidth = squared_distances(states, states)[:, others].sqrt().median(dim=1).values.clamp_min(TINY)
    else:
        bandwidth = bandwidth * options.bandwidth
    if options.alignment == "share":
        unit_of_mmd = mmd(rejected, chosen, bandwidth).clamp_min(TINY)
    return Kernel(bandwidth, unit_of_mmd)


def _untrained(chosen: Sequence[Tensor], draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """v, w and b before training, the same for every block: v normal, w and b uniform within 1 / sqrt(width)."""
    n_blocks, _, width = chosen[0].shape
    most = 1 / math.sqrt(width)
    vectors = [torch.randn(width, generator=draw) for _ in chosen]
    weights, biases = [], []
    for _ in chosen:
        weights.append(torch.empty(width).uniform_(-most, most, generator=draw))
        biases.append(torch.empty(1).uniform_(-most, most, generator=draw)[0])
    v, w, b = (torch.stack(numbers).double() for numbers in (vectors, weights, biases))
    repeated = v.repeat(n_blocks, 1, 1), w.repeat(n_blocks, 1, 1), b.repeat(n_blocks, 1)
    return repeated[0], repeated[1].requires_grad_(), repeated[2].requires_grad_()


def _drawn(states: Tensor, n: int, draw: torch.Generator) -> Tensor:
    """n of the states (L, N, width), the same rows for every block."""
    return states[:, torch.randperm(states.shape[1], generator=draw)[:n]]


def _move(v: Tensor, w: Tensor, b: Tensor, c: float) -> Change:
    """The change of one block: v, w (T, width), b (T,)."""

    def change(x: Tensor) -> Tensor:  # (B, n, width)
        y = x + c * gates(x, w.to(x), b.to(x)) @ v.to(x)
        return length(x) * unit(y)

    return change
