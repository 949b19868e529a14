"""The signal line (`grains_ref.fitting.signal`) of the real rung's rows, where it knows their edit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from grains_ref.demo.real.rows import CONTENT, gaussian_vectors, grains_fit, of_random_tokens
from grains_ref.demo.real.trial import Trial
from grains_ref.fitting.halves import Estimate, agreement_of_halves
from grains_ref.fitting.signal import Signal, signal_of
from grains_ref.grains import vectors
from grains_ref.methods import edit_gradient
from grains_ref.methods.edit_gradient import EditPositions, EditSite


def grains_signal(trial: Trial, **changes: Any) -> Signal:
    """Of GrAInS with these changes; no pass but those of the edit's own gradient."""
    hp, fit = grains_fit(trial, **changes)
    shifts = [trial.lab.shift(hp, i) for i in range(len(trial.sets.steer))]
    kinds: list[str] = []  # of all selected tokens
    for example, of_example in zip(trial.examples, shifts, strict=True):
        selected = (*of_example.selection.pos, *of_example.selection.neg)
        kinds += [example.encoded.kinds[j] for j in selected]
    of_template = [kind for kind in kinds if kind in ("template", "special")]
    halves, of_layers = agreement_of_halves(len(shifts), lambda pairs: vectors([shifts[i] for i in pairs], hp).v)
    return signal_of(
        fit.pos.v,
        fit.neg.v,
        trial.derivatives("residual", "all"),
        halves=halves,
        halves_of_layers=of_layers,
        template=len(of_template) / len(kinds) if kinds else None,
    )


def random_tokens_signal(trial: Trial, **changes: Any) -> Signal:
    """Of random tokens in the place of selected ones."""
    return grains_signal(trial, **of_random_tokens(trial), **changes)


def gaussian_signal(trial: Trial) -> Signal:
    """Of the Gaussian vectors, which have no halves."""
    v = gaussian_vectors(trial)
    derivatives = trial.derivatives("residual", "all")
    return signal_of(v, torch.zeros_like(v), derivatives, halves=None, halves_of_layers=None, template=None)


def edit_signal(trial: Trial, *, site: EditSite, positions: EditPositions) -> Signal:
    """Of the edit gradient at one site."""
    derivatives = trial.derivatives(site, positions)

    def fitted(pairs: Sequence[int]) -> edit_gradient.EditGradient:
        return edit_gradient.scaled([derivatives[i] for i in pairs], site=site, positions=positions)

    halves, of_layers = agreement_of_halves(len(derivatives), lambda pairs: fitted(pairs).v)
    fit = fitted(range(len(derivatives)))
    return signal_of(
        fit.v_pos,
        fit.v_neg,
        derivatives,
        halves=halves,
        halves_of_layers=of_layers,
        template=None,
        is_gradient=True,
    )


def reverse(signal: Signal) -> Signal:
    """Of the same vectors with the other sign."""
    slope, cosine = signal.slope, signal.cosine
    layers = {
        name: tuple(-value for value in values) if name in ("slope", "cosine") else values
        for name, values in signal.layers.items()
    }
    return replace(
        signal,
        slope=None if slope is None else Estimate(-slope.value, -slope.high, -slope.low),
        cosine=None if cosine is None else -cosine,
        layers=layers,
    )


MEAN: dict[str, Any] = {"aggregation": "mean"}
SIGNALLED: dict[str, dict[str, Any]] = {  # rows of the paper's method: a table shows their signal beside what came
    "GrAInS": {},
    "GrAInS, mean": MEAN,
    "GrAInS, content": CONTENT,
    "GrAInS, content, mean": MEAN | CONTENT,
}
SIGNALS: dict[str, Callable[[Trial], Signal]] = {  # every row whose edit the signal line knows
    row: functools.partial(grains_signal, **changes) for row, changes in SIGNALLED.items()
} | {
    "GrAInS, reversed": lambda trial: reverse(grains_signal(trial)),
    "GrAInS, content, mean, reversed": lambda trial: reverse(grains_signal(trial, **MEAN, **CONTENT)),
    "random tokens": random_tokens_signal,
    "random content tokens, mean": lambda trial: random_tokens_signal(trial, **MEAN, **CONTENT),
    "Gaussian": gaussian_signal,
    "edit gradient, residual": lambda trial: edit_signal(trial, site="residual", positions="all"),
    "edit gradient, attention output": lambda trial: edit_signal(
        trial, site="attention_output", positions="after_prompt"
    ),
    "edit gradient, reversed": lambda trial: reverse(edit_signal(trial, site="residual", positions="all")),
}
