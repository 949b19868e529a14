r"""The directions of several methods at any site, in one unit of strength: a fair fight over where to steer.

    u    = what the method makes of the states at site s        (L, width of s)
    v_l  = |s| * u_l / sqrt(mean over l of |u_l|^2)             length of s
    s_l <- s_l + lam * v_l   at the positions P

|s| is the mean length of the state at the site over the edited tokens of prompts and answers, so that lam is a share of
it, as it is of the edit gradient (`edit_gradient`), whose edit this is: at the residual stream the norm is restored by
eq. (8), at the others v is added.

| estimator | u | from |
|---|---|---|
| CAA | the mean of the differences, block by block | state at the chosen answer's last token - at the rejected one's |
| ICV | mean + first centred component, all blocks together | the same |
| RepE | first component of the differences in random order, block by block | the same |
| GrAInS | eq. (5) and (6) | shifts of the state at the prompt's last token, eq. (4) |

At their own sites and with their own grids the methods are in `caa`, `icv`, `repe` and `grains_ref.grains`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from grains_ref.grains import (
    DegenerateShiftsError,
    Encoded,
    Example,
    Hooks,
    HyperParameters,
    Selection,
    Shift,
    at_least_float32,
    mask,
    vectors,
)
from grains_ref.methods import icv, repe
from grains_ref.methods.core import Edit, Setting, at_site, check_option, check_states, length, mean_difference
from grains_ref.methods.edit_gradient import EditPositions, EditSite, steer
from grains_ref.models import HuggingFaceModel

Estimator = Literal["CAA", "ICV", "RepE"]
Place: TypeAlias = tuple[EditSite, EditPositions]


@dataclass(frozen=True)
class SiteVectors:
    """One vector per block, and the edit that it is meant for.

    Attributes:
        label: what a table calls it, without the strength.
        v: (L, width of the site) in float64, as long as the state there in the root mean square over blocks.
        site: where v is added.
        positions: at which tokens.
    """

    label: str
    v: Tensor
    site: EditSite
    positions: EditPositions

    def steering(self, model: HuggingFaceModel, *, lam: float) -> Edit:
        """Add lam * v while entered; see `edit_gradient.steer`."""
        return steer(model, self.v, site=self.site, positions=self.positions, lam=lam)

    def setting(self, model: HuggingFaceModel, *, lam: float) -> Setting:
        """One point of a grid."""
        return Setting(self.label, lam, functools.partial(self.steering, model, lam=lam))


@dataclass(frozen=True)
class Reading:
    """What the answers' states say at some sites.

    Attributes:
        differences: by site, (N, L, width): state at the chosen answer's last token - state at the rejected one's.
        lengths: |s| by site and positions.
    """

    differences: Mapping[EditSite, Tensor]
    lengths: Mapping[Place, float]


def read_answers(model: HuggingFaceModel, examples: Sequence[Example], *, sites: Sequence[EditSite]) -> Reading:
    """The states of both answers of every example at all the sites, one forward pass per answer.

    Raises:
        ValueError: no example.
        FloatingPointError: a state is not finite.
    """
    if not examples:
        raise ValueError("no examples: at least one is needed")
    differences: dict[EditSite, list[Tensor]] = {site: [] for site in sites}
    lengths: dict[Place, list[Tensor]] = {}
    for example in examples:
        x = example.encoded
        last_states: list[dict[EditSite, Tensor]] = []
        for y in (example.y_pos, example.y_neg):
            ids = torch.cat([y, y.new_zeros(1)])  # the 0 is never fed: the answer's last token is
            states = states_at(model, x, x.embeds, sites=sites, response_ids=ids)
            last_states.append({site: of_site[:, -1] for site, of_site in states.items()})
            for site, of_site in states.items():
                norms = length(of_site)[..., 0]  # (L, T + R)
                lengths.setdefault((site, "all"), []).append(norms.mean())
                lengths.setdefault((site, "after_prompt"), []).append(norms[:, len(x.ids) - 1 :].mean())
        for site in sites:
            differences[site].append(last_states[0][site] - last_states[1][site])
    return Reading(
        {site: torch.stack(rows) for site, rows in differences.items()},
        {place: torch.stack(values).double().mean().item() for place, values in lengths.items()},
    )


def shifts_at(
    model: HuggingFaceModel, encoded: Encoded, selection: Selection, baseline: Tensor, *, sites: Sequence[EditSite]
) -> dict[EditSite, tuple[Tensor, Tensor]]:
    """Eq. (4) at any site: (delta_pos, delta_neg), each (L, width), of the state at the prompt's last token.

    baseline: (T, d).  At `residual` it is `grains.contrast`.
    """
    last_states = []
    for tokens in ((), selection.pos, selection.neg):
        states = states_at(model, encoded, mask(encoded.embeds, tokens, baseline), sites=sites)
        last_states.append({site: of_site[:, -1] for site, of_site in states.items()})
    whole, without_pos, without_neg = last_states
    return {site: (whole[site] - without_pos[site], whole[site] - without_neg[site]) for site in sites}


@torch.no_grad()
def states_at(
    model: HuggingFaceModel,
    encoded: Encoded,
    embeds: Tensor,
    *,
    sites: Sequence[EditSite],
    response_ids: Tensor | None = None,
) -> dict[EditSite, Tensor]:
    """The states of all blocks and tokens of one prompt, and of what is fed of an answer: (L, T + R, width) by site.

    embeds: (T, d).  response_ids: the answer, of which the last token is not fed.  On the CPU, float32 or wider.

    Raises:
        FloatingPointError: a state is not finite.
    """
    seen: dict[EditSite, list[Tensor]] = {site: [] for site in sites}
    after, before = [], []
    for site in sites:
        hooks_after, hooks_before = at_site(model, site, dict.fromkeys(range(len(model.blocks)), seen[site].append))
        after += hooks_after
        before += hooks_before
    ids = encoded.ids.new_zeros(1) if response_ids is None else response_ids
    with Hooks(after, before=before):
        model.logits(encoded, embeds[None], ids)
    states = {}
    for site, of_blocks in seen.items():
        states[site] = torch.stack([x[0].to(at_least_float32(x)).cpu() for x in of_blocks])
        check_states(states[site], what=site)
    return states


# ------------------------------------------------------------------------------------------ directions
def as_estimator(word: str) -> Estimator:
    """The estimator of that name.

    Raises:
        ValueError: there is none.
    """
    check_option("estimator", word, Estimator)
    estimators: dict[str, Estimator] = {name: name for name in get_args(Estimator)}
    return estimators[word]


def direction(estimator: Estimator, differences: Tensor) -> Tensor:
    """u of an estimator from the differences of the answers' states: (N, L, width) -> (L, width) in float64.

    Raises:
        DegenerateShiftsError: the differences define no direction.
    """
    rows = differences.double()
    if estimator == "CAA":
        means = [mean_difference(of_block, where=f"block {block}") for block, of_block in enumerate(rows.unbind(1))]
        return torch.stack(means)
    if estimator == "ICV":
        return icv.direction(rows.flatten(1), icv.CODE.estimator).view(rows.shape[1:])
    return repe.directions(rows, seed=0)[0]


def grains_direction(shifts: Sequence[tuple[Tensor, Tensor]], hp: HyperParameters) -> Tensor:
    """Eq. (5) and (6) of shifts at any site: N pairs (delta_pos, delta_neg), each (L, width) -> (L, width).

    Raises:
        DegenerateShiftsError: the shifts define no direction.
    """
    nothing = Selection((), ())
    return vectors([Shift(torch.zeros(0), nothing, pos, neg) for pos, neg in shifts], hp).v


def scaled_to_state(u: Tensor, state_length: float) -> Tensor:
    """u (L, width) as long as the state in the root mean square over blocks.

    Raises:
        DegenerateShiftsError: u is zero.
    """
    size = u.double().norm(dim=1).square().mean().sqrt().item()
    if size == 0:
        raise DegenerateShiftsError("the directions of all blocks are zero: there is nothing to steer along")
    return u.double() * (state_length / size)


def at_places(
    name: str, directions: Mapping[EditSite, Callable[[], Tensor]], lengths: Mapping[Place, float]
) -> tuple[list[SiteVectors], dict[EditSite, str]]:
    """A method's vectors at every site and way of positions, and why a site has none.

    directions: by site, what makes u.  lengths: |s| of every place.
    """
    made: list[SiteVectors] = []
    missing: dict[EditSite, str] = {}
    for site, make in directions.items():
        try:
            u = make()
            for place, state_length in lengths.items():
                if place[0] == site:
                    v = scaled_to_state(u, state_length)
                    made.append(SiteVectors(f"{name}, {site}, {place[1]}", v, site, place[1]))
        except DegenerateShiftsError as error:
            missing[site] = str(error)
    return made, missing
