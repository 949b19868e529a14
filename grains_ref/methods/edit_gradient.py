r"""The edit gradient: steer along the derivative of the preference with respect to the edit itself.  Not GrAInS.

An edit e_v adds v_l to one site s of every decoder block l, at the positions P.  Its own derivative says where to go:

    f(v) = log P(y_pos | x; e_v) - log P(y_neg | x; e_v)        eq. (1) of the edited model              nats
    g_l  = mean over the pairs of df / dv_l at v = 0            (width of s,)                            nats per length
    v_l  = |s| * g_l / sqrt(mean over l of |g_l|^2)             s_l <- s_l + lam * v_l at P              length of s

Read: one forward and one backward pass per response and pair, for all blocks at once; no path, no masking, no principal
direction and no sign to choose.  |s| is the mean length of the state at the site, so that lam is a share of it: in the
root mean square over blocks the edit is lam times as long as the state.  v_l = v_pos_l - v_neg_l, the two responses'
own derivatives, which is what a vectors file keeps.

| site | the edit at v | width |
|---|---|---|
| `residual` | the block's output, its norm restored by eq. (8) as GrAInS does | d |
| `attention_output` | added to the output of the output projection | d |
| `heads` | added to the input of the output projection | K * d_h |
| `mlp` | added to the MLP's output | d |

Convention: |s| is a mean over pairs, responses, blocks and edited tokens.  Many released models have a first token
  whose state is hundreds of times as long as the others; with `all` it counts, and a gentle edit has a lam near .001.
Convention: `after_prompt` begins at the prompt's last token, so that the answer's first token is the first to change.

Neighbours, and what differs.  BiPO optimises the same kind of v, at one block, over many steps of a loss whose
derivative at v = 0 is this one but for a factor.  BitFit trains the biases that a model has, by many steps; v is a bias
that it has not.  VJP-delta pulls back the contrast of two classes' late states, not f.  Attribution patching takes the
same derivative times the difference of two runs' states, to rank places, not to steer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from grains_ref.data import PreferencePair
from grains_ref.grains import (
    DegenerateShiftsError,
    Example,
    Hooks,
    at_least_float32,
    different_numbers,
    finite_number,
    log_prob,
    steer_hidden,
)
from grains_ref.methods.core import (
    NEGLIGIBLE,
    Change,
    Edit,
    Setting,
    at_site,
    check_option,
    check_pairs,
    length,
    site_width,
    unit,
)
from grains_ref.models import HuggingFaceModel

EditSite = Literal["residual", "attention_output", "heads", "mlp"]
EditPositions = Literal["all", "after_prompt"]

LAMS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # shares of the state's mean length


@dataclass(frozen=True)
class Derivative:
    """What one pair says about the edit at v = 0.

    Attributes:
        pos: d log P(y_pos | x; e_v) / dv, (L, width), nats per unit of length; on the CPU.
        neg: the same of y_neg.
        size: mean length of the state at each block's site over the edited tokens of both responses, (L,).
    """

    pos: Tensor
    neg: Tensor
    size: Tensor

    @property
    def g(self) -> Tensor:
        """df / dv, (L, width)."""
        return self.pos - self.neg


@dataclass(frozen=True)
class EditGradient:
    """One vector per block, scaled, and the edit that it is the derivative of.

    Attributes:
        v_pos: the chosen responses' part, (L, width) in float64, at the scale of v.
        v_neg: the rejected responses' part; v = v_pos - v_neg.
        site: where v is added.
        positions: at which tokens.
        scale: |s|, the mean length of the state at the site, which lam is a share of.
        slope: df / dlam at lam = 0 on the pairs that v was made from, nats per unit of lam.
    """

    v_pos: Tensor
    v_neg: Tensor
    site: EditSite
    positions: EditPositions
    scale: float
    slope: float

    @property
    def v(self) -> Tensor:
        """(L, width) in float64; +lam * v moves toward the chosen responses."""
        return self.v_pos - self.v_neg

    def steering(self, model: HuggingFaceModel, *, lam: float, layers: Sequence[int] | None = None) -> Edit:
        """Add lam * v while entered; see `steer`."""
        return steer(model, self.v, site=self.site, positions=self.positions, lam=lam, layers=layers)

    def settings(self, model: HuggingFaceModel) -> list[Setting]:
        """The search grid, `LAMS`, gentlest first."""
        return [
            Setting(
                f"edit gradient, {self.site}, {self.positions}", lam, functools.partial(self.steering, model, lam=lam)
            )
            for lam in LAMS
        ]


def as_site(word: str) -> EditSite:
    """The site of that name.

    Raises:
        ValueError: there is none.
    """
    check_option("site", word, EditSite)
    sites: dict[str, EditSite] = {site: site for site in get_args(EditSite)}
    return sites[word]


def as_positions(word: str) -> EditPositions:
    """The positions of that name.

    Raises:
        ValueError: there are none.
    """
    check_option("positions", word, EditPositions)
    positions: dict[str, EditPositions] = {name: name for name in get_args(EditPositions)}
    return positions[word]


def fit(
    model: HuggingFaceModel,
    pairs: Sequence[PreferencePair],
    *,
    site: EditSite = "attention_output",
    positions: EditPositions = "after_prompt",
) -> EditGradient:
    """The mean derivative over the pairs, scaled so that lam is a share of the state's mean length.

    Raises:
        TypeError: no list of pairs.
        ValueError: no pair, no such site or positions, or a pair that does not suit the model.
        DegenerateShiftsError: the derivatives are zero, or cancel each other.
        FloatingPointError: a score or a derivative is not finite.
    """
    check_pairs(pairs, least=1)
    check_option("site", site, EditSite)
    check_option("positions", positions, EditPositions)
    examples = [model.example(pair.prompt, pair.chosen, pair.rejected, pair.image) for pair in pairs]
    found = [derivative(model, example, site=site, positions=positions) for example in examples]
    return scaled(found, site=site, positions=positions)


def derivative(
    model: HuggingFaceModel,
    example: Example,
    *,
    site: EditSite,
    positions: EditPositions,
    at: Tensor | None = None,
    tokens: Sequence[int] | None = None,
) -> Derivative:
    r"""df / dv of one pair, for every block at once: two forward and two backward passes.

    Its terms are summed over the edited tokens, since one v_l is added at all of them:

        df / dv_l = sum over t in P of (ds'_{l,t} / dv_l)^T df / ds'_{l,t}

    at: the v of the edit at which it is taken, (L, width); zero by default.
    tokens: the prompt's tokens whose terms are summed, in place of all in P; the size stays that over P.

    Raises:
        ValueError: `at` at the residual stream, where eq. (8) is followed to first order only.
        FloatingPointError: a score or a derivative is not finite.
    """
    first = 0 if positions == "all" else len(example.encoded.ids) - 1
    x = example.encoded

    def of_response(y: Tensor) -> tuple[Tensor, Tensor]:
        return gradient_of(
            model, lambda: log_prob(model, x, x.embeds[None], y=y).sum(), site=site, first=first, at=at, tokens=tokens
        )

    pos, size_pos = of_response(example.y_pos)
    neg, size_neg = of_response(example.y_neg)
    return Derivative(pos, neg, (size_pos + size_neg) / 2)


def gradient_of(
    model: HuggingFaceModel,
    score: Callable[[], Tensor],
    *,
    site: EditSite,
    first: int,
    at: Tensor | None = None,
    tokens: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """What adding v at a site does to a score, (L, width), and the mean length of the edited states, (L,).

    score: runs the model once, on a batch of one, and returns a number.  first: the first token that is edited.
    at, tokens: see `derivative`.

    Raises:
        ValueError: see `derivative`.
        FloatingPointError: the derivative is not finite.
    """
    if at is not None and site == "residual":
        raise ValueError("at the residual stream the derivative is known at v = 0 only; choose another site")
    v: dict[int, Tensor] = {}  # made when the state is seen: of its width, on its device
    size: dict[int, Tensor] = {}

    def editing(block: int) -> Callable[[Tensor], Tensor]:
        def edited(x: Tensor) -> Tensor:  # (1, n, width)
            old = x.to(at_least_float32(x))
            size[block] = length(old[:, first:].detach()).mean().cpu()
            start = old.new_zeros(x.shape[-1]) if at is None else at[block].to(old)
            v[block] = start.detach().clone().requires_grad_()
            chosen = torch.tensor(range(first, x.shape[1]) if tokens is None else tokens, device=x.device).long()
            states = old[:, chosen]
            return old.index_copy(1, chosen, states + first_order(site, states, v[block])).to(x)

        return edited

    blocks = range(len(model.blocks))
    after, before = at_site(model, site, {block: editing(block) for block in blocks})
    with torch.enable_grad(), Hooks(after, before=before):
        gradients = torch.autograd.grad(score(), [v[block] for block in blocks])
    g = torch.stack([gradient.cpu() for gradient in gradients])
    if not g.isfinite().all():
        wrong = (~g.isfinite()).any(1).nonzero().flatten().tolist()
        raise FloatingPointError(
            f"block {wrong[0]}: the derivative with respect to an edit of {site} is not finite: half precision "
            "overflowed, or a weight is damaged. Try bfloat16 or float32."
        )
    return g, torch.stack([size[block] for block in blocks])


def scaled(derivatives: Sequence[Derivative], *, site: EditSite, positions: EditPositions) -> EditGradient:
    """The derivatives' mean, in units in which lam is a share of the state's mean length.

    Raises:
        ValueError: there is no derivative.
        DegenerateShiftsError: their mean is zero, or rounding is all that is left of it.
    """
    if not derivatives:
        raise ValueError("no pairs: at least one is needed")
    pos = torch.stack([of_pair.pos for of_pair in derivatives]).double()  # (N, L, width)
    neg = torch.stack([of_pair.neg for of_pair in derivatives]).double()
    g = (pos - neg).mean(0)
    if g.norm() <= NEGLIGIBLE * (pos.norm() + neg.norm()) / len(derivatives) ** 0.5:
        raise DegenerateShiftsError(
            f"the mean derivative of {len(derivatives)} pairs with respect to an edit of {site} is zero: both answers "
            "answer alike, or the pairs cancel each other. Check that chosen and rejected are not mixed up in some."
        )
    scale = torch.stack([of_pair.size for of_pair in derivatives]).double().mean().item()
    factor = scale / g.norm(dim=1).square().mean().sqrt().item()
    return EditGradient(
        v_pos=factor * pos.mean(0),
        v_neg=factor * neg.mean(0),
        site=site,
        positions=positions,
        scale=scale,
        slope=predicted_slope(g, factor * g),
    )


def predicted_slope(g: Tensor, v: Tensor) -> float:
    """df / dlam at lam = 0 of the edit by lam * v, sum over blocks of <g_l, v_l>: nats per unit of lam.

    g, v: (L, width).
    """
    return (g.double() * v.double()).sum().item()


def steer(
    model: HuggingFaceModel,
    v: Tensor,
    *,
    site: EditSite,
    positions: EditPositions,
    lam: float,
    layers: Sequence[int] | None = None,
) -> Edit:
    """An edit that adds lam * v_l to the site of these blocks, default all, while entered.

    v: (L, width of the site).

    Raises:
        TypeError: lam is no number, or layers no list of whole numbers.
        ValueError: v does not fit the site, lam or v is not finite, or there is no such site, positions or block.
    """
    check_option("site", site, EditSite)
    check_option("positions", positions, EditPositions)
    strength = finite_number("lam", lam)
    expected = (len(model.blocks), site_width(model, site))
    if v.shape != expected:
        raise ValueError(
            f"{model.name} needs vectors of shape {expected} at the site {site}; got {tuple(v.shape)}. Were they made "
            "for another site, or another model?"
        )
    if not v.isfinite().all():
        raise ValueError(f"vectors must be finite; block {(~v.isfinite()).any(1).nonzero()[0].item()} has others")
    every = range(len(model.blocks))
    chosen = every if layers is None else different_numbers("layers", layers, below=len(model.blocks))
    changes: Mapping[int, Change] = {block: change_of(site, v[block].detach(), lam=strength) for block in chosen}
    return Edit(model, site, changes, positions=positions)


def first_order(site: EditSite, x: Tensor, v: Tensor) -> Tensor:
    r"""The edit's change of x to first order in v: v itself, or of eq. (8) what turns x and leaves its length.

        d/dlam (h + lam v) |h| / |h + lam v| at lam = 0   =   v - <v, h> h / |h|^2

    x: (..., width).  v: (width,).  `steer_hidden` is no good here: its norms, safe from overflow, have no derivative.
    """
    if site != "residual":
        return v.expand_as(x)
    direction = unit(x.detach())
    return v - (direction @ v)[..., None] * direction


def change_of(site: EditSite, v: Tensor, *, lam: float) -> Change:
    """What the edit does to the states of one block's site: eq. (7), and at the residual stream eq. (8).

    v: (width,).
    """
    if site == "residual":
        return lambda h: steer_hidden(h, v, lam=lam)
    return lambda x: x + lam * v.to(x)
