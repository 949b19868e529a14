"""What a row of a table does: the settings it tries on dev, gentlest first.

A row is a function from a `Lab` to one list of settings, or to several for a row that is a mean over random draws.
Here are the rows that the demos show; `grains_ref.reproduction.rows` adds those that only the paper's tables show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from grains_ref.demo.lab import Lab
from grains_ref.grains import AggregationMethod, EligibleRule, HyperParameters, vectors
from grains_ref.methods.core import Setting

Draws: TypeAlias = list[list[Setting]]
Row: TypeAlias = Callable[[Lab], Draws]

RANDOM_DRAWS = 5
NEUTRAL = "the neutral word"  # among a row's changes: stands for the lab's neutral word

# What the row "chosen on dev" may choose from, along with the strength.
AGGREGATIONS: tuple[AggregationMethod, ...] = ("pca", "uncentred", "mean")
TEXT_KS = (1, 3, 5)
VISUAL_KS = (5, 20)
MODALITIES: dict[str, tuple[EligibleRule, ...]] = {"joint": (), "text": ("text",), "image": ("image",)}


def unsteered(lab: Lab) -> Draws:
    """Nothing to choose from: "unsteered" is among the settings of every row anyway."""
    return [[]]


def grains(**changes: Any) -> Row:
    """GrAInS with the paper's setting but for the changes."""

    def row(lab: Lab) -> Draws:
        values: dict[str, Any] = {}
        for name, value in changes.items():
            values[name] = lab.neutral if value == NEUTRAL else value
        return [lab.grains("GrAInS", replace(lab.paper, **values))]

    return row


def attribution_settings(paper: HyperParameters) -> dict[str, HyperParameters]:
    """Table 6: attribution methods, all else as in the paper's setting; SmoothGrad at the cost of the others, n = m."""
    return {
        "integrated gradients": paper,
        "SmoothGrad": replace(paper, attribution="smoothgrad", n=paper.m),
        "gradient": replace(paper, attribution="gradient"),
        "random": replace(paper, attribution="random"),
    }


def smoothgrad(lab: Lab) -> Draws:
    """SmoothGrad as in `attribution_settings`."""
    return [lab.grains("SmoothGrad", attribution_settings(lab.paper)["SmoothGrad"])]


def random_tokens(lab: Lab) -> Draws:
    """Table 6: tokens drawn at random, everything else as in the paper's setting."""
    hps = [replace(lab.paper, attribution="random", seed=draw) for draw in range(RANDOM_DRAWS)]
    return [lab.grains(f"draw {hp.seed}", hp) for hp in hps]


def planted_tokens(*, sign: int = 1, **changes: Any) -> Row:
    """The true causes masked instead of attributed tokens: a reference for attribution, not a method."""

    def row(lab: Lab) -> Draws:
        v = vectors(lab.planted_shifts(), replace(lab.paper, **changes)).v
        return [lab.strengths("planted", sign * v)]

    return row


def chosen_on_dev(lab: Lab) -> Draws:
    """GrAInS whose k and aggregation, and with pictures its modality, are chosen on dev along with the strength."""
    choices: dict[str, HyperParameters] = {}
    if lab.is_visual:
        for modality, eligible in MODALITIES.items():
            for k in VISUAL_KS:
                for aggregation in AGGREGATIONS:
                    hp = replace(lab.paper, k=k, eligible=eligible, aggregation=aggregation)
                    choices[f"{modality}, {aggregation}, k {k}"] = hp
    else:
        for k in TEXT_KS:
            for aggregation in AGGREGATIONS:
                choices[f"{aggregation}, k {k}"] = replace(lab.paper, k=k, aggregation=aggregation)
    return [gentlest_first([lab.grains(label, hp) for label, hp in choices.items()])]


def gentlest_first(grids: Sequence[Sequence[Setting]]) -> list[Setting]:
    """Several grids of the same strengths as one: all settings of the first strength, then of the second, ..."""
    return [setting for same_strength in zip(*grids, strict=True) for setting in same_strength]


TEXT: dict[str, Row] = {
    "unsteered": unsteered,
    "GrAInS": grains(),
    "random tokens": random_tokens,
    "gradient": grains(attribution="gradient"),
    "SmoothGrad": smoothgrad,
    "planted tokens, PCA": planted_tokens(),
    "planted tokens, mean": planted_tokens(aggregation="mean"),
    "uncentred PCA": grains(aggregation="uncentred"),
    "mean": grains(aggregation="mean"),
    "chosen on dev": chosen_on_dev,
}
VISUAL: dict[str, Row] = TEXT | {
    "image tokens only": grains(eligible=MODALITIES["image"]),
    "text tokens only": grains(eligible=MODALITIES["text"]),
}
