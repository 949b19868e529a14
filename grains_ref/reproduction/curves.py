"""Cells that are no rows: figure 3, where aggregations point, how vectors move margins, transfer, and attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from grains_ref.demo.lab import Lab
from grains_ref.demo.planted import double_labs
from grains_ref.evaluation.measures import row_margins
from grains_ref.grains import (
    AggregationMethod,
    Example,
    HyperParameters,
    aggregate,
    eligible_tokens,
    mask,
    objective,
    select,
)
from grains_ref.reproduction import habits
from grains_ref.reproduction.edit_attention import attention
from grains_ref.reproduction.rows import rows_of
from grains_ref.reproduction.transfer import measure

MOST = 10  # figure 3: k = 1 .. 10
N_ABLATED = 100  # prompts of figure 3, from dev
MOVERS = ("GrAInS", "GrAInS, without its planted part", "mean", "planted tokens, mean", "Gaussian vectors")


def ablation(lab: Lab) -> dict[str, list[float]]:
    """Figure 3: mean change of f, in nats, when the top k positive, negative or random tokens are masked; k = 1..10.

    On dev prompts, with a zero embedding as mask. A set with fewer than k tokens of its sign is masked as it is.
    """
    random_hp = replace(lab.paper, attribution="random")
    changes: dict[str, list[Tensor]] = {"positive": [], "negative": [], "random": []}
    for pair in lab.dev[0][:N_ABLATED]:
        example = lab.model.example(pair.prompt, pair.chosen, pair.rejected, pair.image)
        chosen = _strongest(lab, example, lab.paper)
        drawn = _strongest(lab, example, random_hp)
        for name, tokens in (("positive", chosen[0]), ("negative", chosen[1]), ("random", drawn[0])):
            changes[name].append(_change(lab, example, tokens))
    return {name: torch.stack(rows).mean(0).tolist() for name, rows in changes.items()}


def _strongest(lab: Lab, example: Example, hp: HyperParameters) -> tuple[Sequence[int], Sequence[int]]:
    """The ten strongest tokens of either sign; of random scores any ten tokens."""
    a = lab.stages.attribute(example, hp).a
    if hp.attribution == "random":
        a = a - a.min() + 1
    chosen = select(a, k=MOST, eligible=eligible_tokens(example.encoded, ()))
    return chosen.pos, chosen.neg


def _change(lab: Lab, example: Example, tokens: Sequence[int]) -> Tensor:
    """f with the first k tokens masked, minus f: (10,) nats."""
    x, zero = example.encoded.embeds, torch.zeros_like(example.encoded.embeds)
    versions = torch.stack([x, *(mask(x, tokens[:k], zero) for k in range(1, MOST + 1))])  # (11, T, d)
    with torch.no_grad():
        f = objective(lab.model, example, lab.paper)(versions)
    return (f[1:] - f[0]).double()


def geometry(lab: Lab) -> list[dict[str, Any]]:
    """Where each aggregation points: cosines with the planted mean shift, layer by layer, for both signs.

    `explained` is the share of the first component's variance (centred PCA) that is explained by whether the last
    prompt token, or the BOS token, was among the masked ones.
    """
    truth = lab.planted_shifts()
    shifts = [lab.shift(lab.paper, i) for i in range(len(lab.steer))]
    layers = []
    for sign in ("pos", "neg"):
        deltas = torch.stack([getattr(s, f"delta_{sign}") for s in shifts]).double()  # (N, L, d)
        true_mean = torch.stack([getattr(s, f"delta_{sign}") for s in truth]).double().mean(0)  # (L, d)
        tokens = [getattr(s.selection, sign) for s in shifts]
        last = torch.tensor([len(s.a) - 1 in t for s, t in zip(shifts, tokens, strict=True)])
        methods: tuple[AggregationMethod, ...] = ("pca", "uncentred", "mean")
        directions = {method: aggregate(deltas, method=method).v for method in methods}
        for layer in range(deltas.shape[1]):
            d = deltas[:, layer]
            scores = (d - d.mean(0)) @ directions["pca"][layer]
            layers.append(
                {
                    "sign": sign,
                    "layer": layer,
                    "cos_planted": {
                        method: torch.cosine_similarity(v[layer], true_mean[layer], dim=0).item()
                        for method, v in directions.items()
                    },
                    "mean_share": (d.mean(0).norm() ** 2 / (d.norm(dim=1) ** 2).mean()).item(),
                    "last_token_masked": int(last.sum()),
                    "explained_by_last_token": _explained(scores, last),
                }
            )
    return layers


def _explained(scores: Tensor, groups: Tensor) -> float:
    """Share of the variance of scores between two groups."""
    if groups.all() or not groups.any():
        return 0.0
    between = sum(len(part) * (part.mean() - scores.mean()) ** 2 for part in (scores[groups], scores[~groups]))
    return float(between / ((scores - scores.mean()) ** 2).sum())


def margins(lab: Lab) -> dict[str, dict[str, float]]:
    """How vectors change the margin log P(chosen) - log P(rejected) of the test prompts, by row.

    Each at the strongest strength of the grid that dev capability allows; of several draws the first.
    """
    rows = rows_of(is_visual=lab.is_visual)
    before = torch.tensor(row_margins(lab.model, lab.bench.test_rows), dtype=torch.float64)
    effects = {}
    for name in MOVERS:
        settings = rows[name](lab)[0]
        strongest = next((s for s in reversed(settings) if lab.bench.keeps_capability(s)), None)
        change = torch.zeros_like(before)
        if strongest:
            with strongest.steering():
                change = torch.tensor(row_margins(lab.model, lab.bench.test_rows), dtype=torch.float64) - before
        effects[name] = {"strength": strongest.strength if strongest else 0.0} | moved(before, change)
    return effects


def moved(before: Tensor, change: Tensor) -> dict[str, float]:
    """Where a gain in accuracy comes from: margins (n,) and their changes (n,) in nats -> gains, as shares.

        by_mean    every prompt gets the mean change
        by_spread  changes less their mean are dealt out to the prompts at random: the expected gain

    A vector that knows what it does moves the mean.  By the spread alone accuracy goes toward one half, whatever the
    direction: it pays where most prompts are answered wrongly by little.
    """
    mean, right = change.mean(), (before > 0).double().mean()
    dealt = before[:, None] + (change - mean)[None, :]
    return {
        "mean": mean.item(),
        "spread": change.std().item(),
        "gain": ((before + change > 0).double().mean() - right).item(),
        "by_mean": ((before + mean > 0).double().mean() - right).item(),
        "by_spread": ((dealt > 0).double().mean() - right).item(),
        "margin": before.mean().item(),
        "margin_spread": before.std().item(),
    }


def transfer(lab: Lab) -> Any:
    """Two behaviours in one model: each one's vector on the other, and both together; the double world only."""
    return {"facts": list(lab.facts)} | measure(double_labs(lab.model, engine=lab.engine), lab.facts)


def habits_of(lab: Lab) -> Any:
    """Two habits in one model, steered by MAT-Steer together and alone; the double world only."""
    return {"facts": list(lab.facts)} | habits.measure(double_labs(lab.model, engine=lab.engine), lab.facts)


CURVES: dict[str, Callable[[Lab], Any]] = {
    "figure 3": ablation,
    "geometry": geometry,
    "margins": margins,
    "transfer": transfer,
    "habits": habits_of,
    "edit attention": attention,
}
