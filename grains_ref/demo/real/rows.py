"""The methods of the real rung, each as one or several ladders of strengths (`trial.Ladder`).

Where a method's own grid has several further choices (which block, how many heads), the one that its authors recommend
is taken, or all blocks; only the strength is chosen on dev.  That keeps the table within an hour on two cores, and the
same for all.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from grains_ref.demo.real.trial import Ladder, Steered, Trial
from grains_ref.grains import Fit, HyperParameters, Steering
from grains_ref.methods import bipo, caa, corr_steer, edit_gradient, icv, iti, lora, mat_steer, nullu, repe, vjp_delta
from grains_ref.methods.edit_gradient import EditPositions, EditSite

Row: TypeAlias = Callable[[Trial], list[Ladder]]

CONTENT: dict[str, Any] = {"eligible": ("content",)}
ITI_HEADS = 48  # its authors' default; of 270 heads here
GENTLE = 0.5  # the first rung of v = v_pos - v_neg, which is at most 2 long


# ------------------------------------------------------------------------------------------- GrAInS and its controls
def grains_fit(trial: Trial, **changes: Any) -> tuple[HyperParameters, Fit]:
    """GrAInS with the paper's setting but for the changes."""
    hp = replace(trial.lab.paper, **changes)
    return hp, trial.lab.fit(hp)


def grains(*, sign: int = 1, **changes: Any) -> Row:
    """GrAInS with these changes; sign -1 reverses its vectors."""

    def row(trial: Trial) -> list[Ladder]:
        _, fit = grains_fit(trial, **changes)
        return [along(trial, "GrAInS" if sign > 0 else "reversed", sign * fit.v)]

    return row


def along(trial: Trial, label: str, v: Tensor, *, start: float = GENTLE) -> Ladder:
    """Equations (7) and (8) with v at every strength."""
    return Ladder(label, lambda lam: functools.partial(Steering, trial.model.blocks, v, lam=lam), start)


def gaussian(trial: Trial) -> list[Ladder]:
    """A random direction in every block."""
    return [along(trial, "Gaussian", gaussian_vectors(trial))]


def gaussian_vectors(trial: Trial) -> Tensor:
    """Random directions, (L, d), as long as the paper's setting makes v; drawn anew for every split."""
    _, fit = grains_fit(trial)
    noise = torch.randn(fit.v.shape, dtype=fit.v.dtype, generator=torch.Generator().manual_seed(trial.seed))
    return noise * fit.v.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)


def random_tokens(**changes: Any) -> Row:
    """Tokens drawn at random, anew for every split, all else as in the paper's setting but for the changes."""

    def row(trial: Trial) -> list[Ladder]:
        _, fit = grains_fit(trial, **of_random_tokens(trial), **changes)
        return [along(trial, "random tokens", fit.v)]

    return row


def of_random_tokens(trial: Trial) -> dict[str, Any]:
    """The changes that draw tokens at random, anew for every split."""
    return {"attribution": "random", "seed": trial.seed}


# ------------------------------------------------------------------------------------------- the edit gradient
def edit(*, site: EditSite, positions: EditPositions, sign: int = 1) -> Row:
    """The edit gradient at one site; sign -1 goes the other way."""

    def row(trial: Trial) -> list[Ladder]:
        fit = edit_gradient.scaled(trial.derivatives(site, positions), site=site, positions=positions)

        def at(lam: float) -> Steered:
            return functools.partial(fit.steering, trial.model, lam=sign * lam)

        return [Ladder("edit gradient" if sign > 0 else "reversed", at, start=0.001)]

    return row


# ------------------------------------------------------------------------------------------- baselines
def caa_row(*, read: caa.Read, middle: bool = False) -> Row:
    """CAA on all blocks together, or on the block in the middle."""

    def row(trial: Trial) -> list[Ladder]:
        fit = caa.fit(trial.model, trial.sets.steer, read=read)
        n = len(trial.model.blocks)
        blocks = [n // 2] if middle else list(range(n))

        def at(c: float) -> Steered:
            return functools.partial(fit.steering, trial.model, c=c, blocks=blocks)

        return [Ladder(f"block {n // 2}" if middle else "all blocks", at, start=0.25 if middle else 0.03125)]

    return row


def icv_row(trial: Trial) -> list[Ladder]:
    """ICV as its code has it."""
    fit = icv.fit(trial.model, trial.sets.steer)
    return [Ladder("ICV", lambda lam: functools.partial(fit.steering, trial.model, lam=lam), start=0.005)]


def iti_row(probe: iti.ProbeName) -> Row:
    """ITI or NL-ITI with the number of heads that its authors recommend."""

    def row(trial: Trial) -> list[Ladder]:
        fit = iti.fit(trial.model, trial.sets.steer, probe=probe, spread="answers")

        def at(alpha: float) -> Steered:
            return functools.partial(fit.steering, trial.model, heads=ITI_HEADS, alpha=alpha)

        return [Ladder(f"{ITI_HEADS} heads", at, start=1.0)]

    return row


def repe_row(trial: Trial) -> list[Ladder]:
    """RepE on its range of blocks."""
    fit = repe.fit(trial.model, trial.sets.steer)
    blocks = repe.middle(len(trial.model.blocks))
    return [Ladder("RepE", lambda c: functools.partial(fit.steering, trial.model, c=c, blocks=blocks), start=0.25)]


def bipo_row(trial: Trial) -> list[Ladder]:
    """BiPO as its code has it: one block, its own learning rate; the seed is the split's."""
    trial.note("training BiPO's vector")
    fit = bipo.fit(trial.model, trial.sets.steer, seed=trial.seed)
    return [Ladder("BiPO", lambda c: functools.partial(fit.steering, trial.model, c=c), start=1.0)]


def vjp_delta_row(trial: Trial) -> list[Ladder]:
    """VJP-delta on its author's share of the blocks."""
    n = len(trial.model.blocks)
    sources = [block for block in vjp_delta.middle(n) if block < vjp_delta.third_from_the_end(n)]
    fit = vjp_delta.fit(trial.model, trial.sets.steer, blocks=sources)
    return [Ladder("VJP-delta", lambda c: functools.partial(fit.steering, trial.model, c=c), start=0.25)]


def mat_steer_row(trial: Trial) -> list[Ladder]:
    """MAT-Steer on the block that its authors chose, 14 of 32, or as deep a one."""
    fit = mat_steer.fit(trial.model, trial.sets.steer)
    block = len(trial.model.blocks) * 14 // 32
    return [Ladder("MAT-Steer", lambda c: functools.partial(fit.steering, trial.model, block=block, c=c), start=0.5)]


def nullu_row(trial: Trial) -> list[Ladder]:
    """Nullu in the later half of the blocks; its ladder is one of ranks, from 1 on by factors of two."""
    fit = nullu.fit(trial.model, trial.sets.steer)
    n = len(trial.model.blocks)

    def at(rank: float) -> Steered:
        if rank < 1:  # a ladder that is too steep goes on below its start: no direction is projected out
            return contextlib.nullcontext
        return functools.partial(fit.steering, trial.model, rank=int(rank), blocks=range(n // 2, n))

    return [Ladder("rank", at, start=1.0, rungs=5)]


def corr_steer_row(trial: Trial) -> list[Ladder]:
    """CorrSteer on raw activations of all blocks; a small autoencoder would know nothing of a model of this size."""
    fit = corr_steer.fit(trial.model, trial.sets.steer)
    blocks = range(len(trial.model.blocks))

    def at(c: float) -> Steered:
        return functools.partial(fit.steering, trial.model, c=c, blocks=blocks)

    return [Ladder("all blocks", at, start=0.0625)]


def lora_row(*, start: float, rungs: int) -> Row:
    """LoRA; its ladder is one of learning rates, an adapter trained for each as soon as it is asked for."""

    def row(trial: Trial) -> list[Ladder]:
        @functools.cache
        def trained(rate: float) -> lora.Adapter:
            trial.note(f"training at rate {rate:g}")
            (adapter,) = lora.fit(trial.model, trial.sets.steer, learning_rates=(rate,)).adapters
            return adapter

        def at(rate: float) -> Steered:
            return lambda: trained(rate).steering(trial.model)

        return [Ladder("learning rate", at, start=start, rungs=rungs)]

    return row


ROWS: dict[str, Row] = {
    "unsteered": lambda trial: [],
    "GrAInS": grains(),
    "GrAInS, mean": grains(aggregation="mean"),
    "GrAInS, content": grains(**CONTENT),
    "GrAInS, content, mean": grains(aggregation="mean", **CONTENT),
    "edit gradient, residual": edit(site="residual", positions="all"),
    "CAA": caa_row(read="last"),
    "Gaussian": gaussian,
    "random tokens": random_tokens(),
    "random content tokens, mean": random_tokens(aggregation="mean", **CONTENT),
    "GrAInS, reversed": grains(sign=-1),
    "GrAInS, content, mean, reversed": grains(sign=-1, aggregation="mean", **CONTENT),
    "edit gradient, attention output": edit(site="attention_output", positions="after_prompt"),
    "edit gradient, reversed": edit(site="residual", positions="all", sign=-1),
    "ICV": icv_row,
    "CAA, one block": caa_row(read="last", middle=True),
    "CAA, at the difference": caa_row(read="difference"),
    "ITI": iti_row("linear"),
    "NL-ITI": iti_row("mlp"),
    "RepE": repe_row,
    "VJP-delta": vjp_delta_row,
    "BiPO": bipo_row,
    "MAT-Steer": mat_steer_row,
    "Nullu": nullu_row,
    "CorrSteer, raw": corr_steer_row,
    "LoRA, the paper's rate": lora_row(start=lora.PAPER[0], rungs=1),
    "LoRA, rate chosen": lora_row(start=4e-4, rungs=3),
}
