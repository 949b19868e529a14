"""Does a vector move another behaviour, and do two vectors add up?  The double world's cell.

The rules (what is fitted, how a strength is chosen, what is reported) are those of docs/double_world.md.

`measure` measures one training seed.  What it returns goes into the cell as it is:

| field | meaning |
|---|---|
| `unsteered` | outcomes and results of the model as it is |
| `fits` | by way of fitting: `lam`, `tried`, `doses`, `cosines`, `lengths`, `rows`; or only `error` |

`lam` and `tried` (label, strength, dev accuracy) are by behaviour; `cosines` of the two vectors and their `lengths` by
layer.  `doses` are what each vector does on dev at every strength of the grid, whether admissible or not.

A row holds outcomes on test, one per prompt or task: `right` by behaviour and `capable` as strings of 0 and 1, `margin`
by behaviour in nats; and `results` of them, values and gains over the unsteered model as [value, low, high] with 95 %
intervals: shares, or nats for the margins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from grains_ref.demo.bench import tried
from grains_ref.demo.lab import Lab
from grains_ref.evaluation.measures import exact_matches, row_margins
from grains_ref.evaluation.metrics import Rate, clustered_mean, paired_gain
from grains_ref.grains import DegenerateShiftsError, Steering, vectors
from grains_ref.methods.core import together

Curve: TypeAlias = dict[str, Any]  # the cell, or a part of it
Labs: TypeAlias = Mapping[str, Lab]  # one per behaviour, on one model, with the same test prompts and tasks


# ------------------------------------------------------------------------------------------ what is fitted
def _paper(lab: Lab) -> Tensor:
    return lab.fit(lab.paper).v


def _mean(lab: Lab) -> Tensor:
    return lab.fit(replace(lab.paper, aggregation="mean")).v


def _planted_mean(lab: Lab) -> Tensor:
    """The mean shift when the true causes are masked instead of attributed tokens: a reference, not a method."""
    return vectors(lab.planted_shifts(), replace(lab.paper, aggregation="mean")).v


FITS: dict[str, Callable[[Lab], Tensor]] = {
    "paper's setting": _paper,
    "mean": _mean,
    "planted tokens, mean": _planted_mean,
}


# ------------------------------------------------------------------------------------------------ a cell
def measure(labs: Labs, facts: Sequence[str]) -> Curve:
    """Every way of fitting on every behaviour: own behaviour, the other one, and both vectors together."""
    base = outcomes(labs, nullcontext())
    cell: Curve = {"unsteered": base | {"results": results([base], [base], facts)}, "fits": {}}
    for name, fit in FITS.items():
        try:
            v = {behaviour: fit(lab) for behaviour, lab in labs.items()}
        except DegenerateShiftsError as error:
            cell["fits"][name] = {"error": str(error)}
            continue
        cell["fits"][name] = _measure_vectors(name, labs, v, base, facts)
    return cell


def _measure_vectors(name: str, labs: Labs, v: Mapping[str, Tensor], base: Curve, facts: Sequence[str]) -> Curve:
    """Choose a strength for each behaviour's vector on its own dev set, and measure all of them on all behaviours."""
    choices, doses = {}, {}
    for behaviour, lab in labs.items():
        choices[behaviour] = lab.bench.choose(lab.strengths(name, v[behaviour]))
        doses[behaviour] = [_dose(labs, v[behaviour], lam=lam) for lam in (0.0, *lab.lams)]
    lam = {behaviour: choice.best.strength for behaviour, choice in choices.items()}
    rows = {}
    for row, steering in steerings(labs, v, lam).items():
        steered = outcomes(labs, steering)
        rows[row] = steered | {"results": results([steered], [base], facts)}
    first, second = v.values()
    return {
        "lam": lam,
        "tried": {behaviour: tried(choice) for behaviour, choice in choices.items()},
        "doses": doses,
        "cosines": torch.cosine_similarity(first, second, dim=1).tolist(),
        "lengths": {behaviour: of_layers.norm(dim=1).tolist() for behaviour, of_layers in v.items()},
        "rows": rows,
    }


def without_outcomes(cell: Curve) -> Curve:
    """A cell less what single prompts did: settings, doses and results, for the record."""
    fits = {}
    for name, fit in cell["fits"].items():
        fits[name] = dict(fit)
        if "rows" in fit:
            fits[name]["rows"] = {row: {"results": measured["results"]} for row, measured in fit["rows"].items()}
    return {"unsteered": {"results": cell["unsteered"]["results"]}, "fits": fits}


def steerings(
    labs: Labs, v: Mapping[str, Tensor], lam: Mapping[str, float]
) -> dict[str, AbstractContextManager[object]]:
    r"""Each behaviour's vector alone, and all of them together in two ways.

        sum       v_l = sum over behaviours b of lam_b * v_b_l, added once, lam = 1: norms are restored once
        nested    equations (7) and (8) with one vector after the other: norms are restored in between

    v: behaviour -> (L, d).  lam: behaviour -> its strength.
    """
    blocks = next(iter(labs.values())).model.blocks
    alone = {f"vector of {b}": Steering(blocks, v[b], lam=lam[b]) for b in labs}
    total = torch.stack([lam[b] * v[b] for b in labs]).sum(0)
    return {**alone, "sum": Steering(blocks, total, lam=1.0), "nested": together(*alone.values())}


def outcomes(labs: Labs, steering: AbstractContextManager[object]) -> Curve:
    """Test outcomes of every behaviour under a steering, and of the tasks, which all behaviours share."""
    with steering:
        margins = {b: row_margins(lab.model, lab.bench.test_rows) for b, lab in labs.items()}
        first = next(iter(labs.values()))
        capable = exact_matches(first.model, first.bench.test_tasks)
    return {
        "right": {b: _bits(m > 0 for m in of_prompts) for b, of_prompts in margins.items()},
        "capable": _bits(capable),
        "margin": {b: [round(m, 4) for m in of_prompts] for b, of_prompts in margins.items()},
    }


def _dose(labs: Labs, v: Tensor, *, lam: float) -> dict[str, float]:
    """What one vector does on dev at one strength: mean margin of every behaviour in nats, and capability."""
    first = next(iter(labs.values()))
    with Steering(first.model.blocks, v, lam=lam):
        margins = {b: row_margins(lab.model, lab.bench.dev) for b, lab in labs.items()}
        capable = exact_matches(first.model, first.bench.dev_tasks)
    means = {b: sum(of_pairs) / len(of_pairs) for b, of_pairs in margins.items()}
    return {"lam": lam, **means, "capability": sum(capable) / len(capable)}


# --------------------------------------------------------------------------------------------- results
def results(
    measured: Sequence[Curve], base: Sequence[Curve], facts: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """Value and gain of every behaviour, of `both` (right on all behaviours at once), `capability`, and every margin.

    measured, base: outcomes of a setting and of the unsteered model, one per training seed.  [value, low, high] in
    shares, margins (`margin of <behaviour>`) in nats.  The bootstrap is over facts (for capability over tasks); the
    seeds of a fact stay together.
    """
    tasks = [str(i) for i in range(len(base[0]["capable"]))]
    by_name = {}
    for name in _by_name(base[0]):
        clusters = [*(tasks if name == "capability" else facts)] * len(measured)
        steered = _of_all_seeds(measured, name)
        before = _of_all_seeds(base, name)
        by_name[name] = {
            "value": _triple(clustered_mean(steered, clusters)),
            "gain": _triple(paired_gain(steered, before, clusters=clusters)),
        }
    return by_name


def _of_all_seeds(cells: Sequence[Curve], name: str) -> list[float]:
    return [value for cell in cells for value in _by_name(cell)[name]]


def _by_name(cell: Curve) -> dict[str, list[float]]:
    """Outcomes as numbers: every behaviour, both at once, capability, margins."""
    right = {behaviour: [float(bit) for bit in bits] for behaviour, bits in cell["right"].items()}
    both = [float(all(bits)) for bits in zip(*right.values(), strict=True)]
    margins = {f"margin of {behaviour}": margins for behaviour, margins in cell["margin"].items()}
    return right | {"both": both, "capability": [float(bit) for bit in cell["capable"]]} | margins


def _bits(outcomes: Iterable[bool]) -> str:
    return "".join("1" if outcome else "0" for outcome in outcomes)


def _triple(rate: Rate) -> list[float]:
    return [rate.value, rate.low, rate.high]
