"""ICV, in-context vectors (Liu et al., 2024): move every token along one direction found for all blocks together.

    Delta_i = states of the chosen answer - states of the rejected one, embedding and all L blocks side by side
    mu, p   = the mean of the Delta_i and their first principal direction, unit length over all blocks together
    v       = mu + p, or p, or mu; cut into one vector per block, the embedding's left out

Read: the last token of prompt + answer.  Edit, public code (`CODE`): the MLP's output m of every block, every token,

    m <- |m| n( n(m) + lam g n(v_l) ),   g = 1 + max(0, cos(m, -v_l)),   n(x) = x / |x|

Edit, paper (`PAPER`): the residual stream h, h <- |h| n( h + lam v_l ).  Norms are per token, over the width.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from grains_ref.data import PICTURE_MARK, Message, PreferencePair, Prompt
from grains_ref.files import check_listed
from grains_ref.grains import finite_number
from grains_ref.methods.core import (
    Change,
    Edit,
    Setting,
    answer_differences,
    check_option,
    check_pairs,
    check_vectors,
    first_component,
    keep_norm,
    length,
    mean_difference,
    unit,
)
from grains_ref.models import HuggingFaceModel

Estimator = Literal["mean_plus_pc", "pc_centred", "pc_uncentred", "mean"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where paper and public code differ.

    estimator: mu + p with centred p; p alone, centred or not; mu alone.  The sign of a centred p makes its largest
    projection of a Delta_i positive, which means nothing; an uncentred p points along mu.
    site: what is edited.  Gemma 3 normalises the MLP's output once more, so `residual` is the better site there.
    adaptive: the factor g, larger where a token points against v.
    norm: `relative` takes lam in units of each token's norm and v at unit length; `absolute` takes lam v as it is.
    strip_punctuation: delete ASCII punctuation from prompts and answers before reading.
    """

    estimator: Estimator
    site: Literal["mlp", "residual"]
    adaptive: bool
    norm: Literal["relative", "absolute"]
    strip_punctuation: bool = False

    def __post_init__(self) -> None:
        check_option("estimator", self.estimator, Estimator)
        check_option("site", self.site, Literal["mlp", "residual"])
        check_option("norm", self.norm, Literal["relative", "absolute"])


# The public code also strips punctuation, but its demonstrations are sentences without a prompt; a prompt has a form.
CODE = Options(estimator="mean_plus_pc", site="mlp", adaptive=True, norm="relative")
PAPER = Options(estimator="pc_uncentred", site="residual", adaptive=False, norm="absolute")
LAMS = {
    "relative": (0.02, 0.05, 0.1, 0.15, 0.2, 0.4, 0.8, 1.6),  # per block; few blocks need more than many
    "absolute": (0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
}


@dataclass(frozen=True)
class ICV:
    """One vector per block, (L, d) in float64, from the rejected answers to the chosen ones."""

    v: Tensor
    options: Options

    def steering(self, model: HuggingFaceModel, *, lam: float) -> Edit:
        """Move every token of prompt and answer while entered.

        Raises:
            ValueError: the vectors are of another model.
        """
        return combined(model, [self], lams=[lam])

    def settings(self, model: HuggingFaceModel) -> list[Setting]:
        """The search grid: `LAMS` of the chosen norm."""
        o = self.options
        name = f"ICV, {o.estimator}, {o.site}, {o.norm}{', adaptive' * o.adaptive}{', stripped' * o.strip_punctuation}"
        return [Setting(name, lam, functools.partial(self.steering, model, lam=lam)) for lam in LAMS[o.norm]]


def fit(model: HuggingFaceModel, pairs: Sequence[PreferencePair], *, options: Options = CODE) -> ICV:
    """One direction for all blocks from the pairs' differences.

    Raises:
        ValueError: fewer than 3 pairs (1 for the mean), or an answer of nothing but punctuation is to be stripped.
        DegenerateShiftsError: all differences are zero, or equal where a component is asked for.
        FloatingPointError: a state is not finite.
    """
    check_pairs(pairs, least=1 if options.estimator == "mean" else 3)
    if options.strip_punctuation:
        pairs = [_stripped(pair) for pair in pairs]
    after = answer_differences(model, pairs)  # (N, L, d)
    deltas = torch.cat([_embeddings(model, pairs)[:, None], after.double()], dim=1)  # (N, L + 1, d)
    return ICV(direction(deltas.flatten(1), options.estimator).view(deltas.shape[1:])[1:], options)


def combined(model: HuggingFaceModel, fits: Sequence[ICV], *, lams: Sequence[float]) -> Edit:
    """Several vectors at once, each with its own strength: the mean of their moves, then the norm restored.

    Raises:
        TypeError: a strength is no number.
        ValueError: no fit, fits with different options, another number of strengths, vectors of another model, or a
            strength that is not finite.
    """
    check_listed("fits", fits, "a list of fits")
    check_listed("lams", lams, "a list of numbers")
    if not fits or len(lams) != len(fits) or any(fit.options != fits[0].options for fit in fits):
        raise ValueError(f"need fits with the same options and a lam each; got {len(fits)} fits and {len(lams)} lams")
    for fit in fits:
        check_vectors(model, fit.v)
    strengths = [finite_number("lam", lam) for lam in lams]
    changes = {
        block: _move([fit.v[block] for fit in fits], strengths, fits[0].options) for block in range(len(model.blocks))
    }
    return Edit(model, fits[0].options.site, changes)


def _move(vectors: Sequence[Tensor], lams: Sequence[float], options: Options) -> Change:
    """The change of one block."""

    def change(x: Tensor) -> Tensor:  # (B, n, d)
        y = torch.zeros_like(x)
        for vector, lam in zip(vectors, lams, strict=True):
            v = vector.to(x)
            g = 1 + (unit(x) @ -unit(v)).clamp_min(0)[..., None] if options.adaptive else 1.0
            y += lam / len(lams) * g * (unit(v) if options.norm == "relative" else v)
        if options.norm == "absolute":
            y = y / length(x).clamp_min(1e-12)
        return keep_norm(x, y)

    return change


def direction(rows: Tensor, estimator: Estimator) -> Tensor:
    """v over all blocks together, from differences (N, D) of their states side by side; here D = (L + 1) d.

    Raises:
        DegenerateShiftsError: the differences are all zero, or equal where a component is asked for.
    """
    where = "all blocks together"
    if estimator == "mean":
        return mean_difference(rows, where=where)
    if estimator == "pc_uncentred":
        return first_component(rows, centred=False, sign="mean", where=where)[0]
    p, mu = first_component(rows, centred=True, sign="score", where=where)
    return mu + p if estimator == "mean_plus_pc" else p


def _embeddings(model: HuggingFaceModel, pairs: Sequence[PreferencePair]) -> Tensor:
    """(N, d): what enters block 0 at the chosen answer's last token, minus the same of the rejected one."""
    chosen = torch.stack([model.response_ids(p.prompt, p.chosen)[-1] for p in pairs])
    rejected = torch.stack([model.response_ids(p.prompt, p.rejected)[-1] for p in pairs])
    return (model.embed(chosen.to(model.device)).double() - model.embed(rejected.to(model.device)).double()).cpu()


def _stripped(pair: PreferencePair) -> PreferencePair:
    """The pair without ASCII punctuation; the mark of a picture's place stays."""

    def strip(text: str) -> str:
        table = str.maketrans("", "", string.punctuation)
        return PICTURE_MARK.join(part.translate(table) for part in text.split(PICTURE_MARK))

    if isinstance(pair.prompt, str):
        prompt: Prompt = strip(pair.prompt)
    else:
        prompt = tuple(Message(role=turn["role"], content=strip(turn["content"])) for turn in pair.prompt)
    chosen, rejected = strip(pair.chosen), strip(pair.rejected)
    if not chosen.strip() or not rejected.strip():
        raise ValueError(f"{pair.where}: an answer is nothing but punctuation; leave it out, or do not strip")
    return replace(pair, prompt=prompt, chosen=chosen, rejected=rejected)
