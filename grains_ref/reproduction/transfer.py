"""Does a vector move another behaviour, and do two vectors add up?  The double world's cell and its page.

The rules (what is fitted, how a strength is chosen, what is reported) are those of docs/double_world.md.

`measure` measures one training seed.  What it returns goes into the cell as it is:

| field | meaning |
|---|---|
| `unsteered` | outcomes and figures of the model as it is |
| `fits` | by way of fitting: `lam`, `tried`, `doses`, `cosines`, `lengths`, `rows`; or only `error` |

`lam` and `tried` (label, strength, dev accuracy) are by behaviour; `cosines` of the two vectors and their `lengths` by
layer.  `doses` are what each vector does on dev at every strength of the grid, whether admissible or not.

A row holds outcomes on test, one per prompt or task: `right` by behaviour and `capable` as strings of 0 and 1, `margin`
by behaviour in nats; and `figures` of them, values and gains over the unsteered model as [value, low, high] with 95 %
intervals: shares, or nats for the margins.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from grains_ref.data import PreferencePair
from grains_ref.demo import text
from grains_ref.evaluation.measures import exact_matches, row_margins
from grains_ref.evaluation.metrics import Rate, clustered_mean, paired_gain
from grains_ref.grains import PRESETS, DegenerateShiftsError, Selection, Shift, Steering, contrast, vectors
from grains_ref.methods.core import together
from grains_ref.models import HuggingFaceModel
from grains_ref.reproduction.lab import UNSTEERED, Lab
from grains_ref.tiny_models.double_world import BEHAVIOURS, DoublePrompt, build_double_world

Cell: TypeAlias = dict[str, Any]
Labs: TypeAlias = Mapping[str, Lab]  # one per behaviour, on one model, with the same test prompts and tasks


# ------------------------------------------------------------------------------------------ what is fitted
def _paper(lab: Lab) -> Tensor:
    return lab.fit(lab.paper).v


def _mean(lab: Lab) -> Tensor:
    return lab.fit(replace(lab.paper, aggregation="mean")).v


def _planted_mean(lab: Lab) -> Tensor:
    """The mean shift when the true causes are masked instead of attributed tokens: a reference, not a method."""
    shifts = []
    for i, prompt in enumerate(lab.prompts):
        example = lab.example(i)
        truth = Selection(pos=prompt.toward, neg=prompt.against)
        zero = lab.model.baseline(example.encoded, "zero")
        deltas = contrast(lab.model, example.encoded, truth, zero)
        shifts.append(Shift(torch.zeros(len(example.encoded.ids)), truth, *deltas))
    return vectors(shifts, replace(lab.paper, aggregation="mean")).v


FITS: dict[str, Callable[[Lab], Tensor]] = {
    "paper's setting": _paper,
    "mean": _mean,
    "planted tokens, mean": _planted_mean,
}


# ------------------------------------------------------------------------------------------------ a cell
def double_labs(model: HuggingFaceModel) -> dict[str, Lab]:
    """One lab per behaviour, on a model of the double world."""
    world = build_double_world()

    def pairs(prompts: Sequence[DoublePrompt]) -> list[PreferencePair]:
        return [PreferencePair(p.id, p.prompt, p.chosen, p.rejected, where=p.id) for p in prompts]

    return {
        behaviour: Lab(
            model,
            paper=PRESETS["paper_llm"],
            lams=text.LAMS[1:],
            neutral="token:please",
            steer=pairs(world.split("steer", behaviour)),
            dev=(pairs(world.split("dev", behaviour)), text.as_tasks(world.capability_split("dev"))),
            test=(pairs(world.split("test", behaviour)), text.as_tasks(world.capability_split("test"))),
            facts=[p.id.split("-")[1] for p in world.split("test", behaviour)],
            prompts=world.split("steer", behaviour),
        )
        for behaviour in BEHAVIOURS
    }


def measure(labs: Labs, facts: Sequence[str]) -> Cell:
    """Every way of fitting on every behaviour: own behaviour, the other one, and both vectors together."""
    base = outcomes(labs, nullcontext())
    cell: Cell = {"unsteered": base | {"figures": figures([base], [base], facts)}, "fits": {}}
    for name, fit in FITS.items():
        try:
            v = {behaviour: fit(lab) for behaviour, lab in labs.items()}
        except DegenerateShiftsError as error:
            cell["fits"][name] = {"error": str(error)}
            continue
        choices = {
            behaviour: lab.bench.choose([UNSTEERED, *lab.strengths(name, v[behaviour])])
            for behaviour, lab in labs.items()
        }
        lam = {behaviour: choice.best.strength for behaviour, choice in choices.items()}
        doses = {
            behaviour: [_dose(labs, v[behaviour], lam=one) for one in (0.0, *lab.lams)]
            for behaviour, lab in labs.items()
        }
        first, second = v.values()
        rows = {}
        for row, steering in steerings(labs, v, lam).items():
            found = outcomes(labs, steering)
            rows[row] = found | {"figures": figures([found], [base], facts)}
        cell["fits"][name] = {
            "lam": lam,
            "tried": {
                b: [(t.setting.label, t.setting.strength, t.accuracy) for t in choice.tried]
                for b, choice in choices.items()
            },
            "doses": doses,
            "cosines": torch.cosine_similarity(first, second, dim=1).tolist(),
            "lengths": {behaviour: one.norm(dim=1).tolist() for behaviour, one in v.items()},
            "rows": rows,
        }
    return cell


def without_outcomes(cell: Cell) -> Cell:
    """A cell less what single prompts did: settings, doses and figures, for the record."""

    def figures_of(row: Cell) -> Cell:
        return {"figures": row["figures"]}

    fits = {
        name: fit | {"rows": {row: figures_of(found) for row, found in fit["rows"].items()}} if "rows" in fit else fit
        for name, fit in cell["fits"].items()
    }
    return {"unsteered": figures_of(cell["unsteered"]), "fits": fits}


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


def outcomes(labs: Labs, steering: AbstractContextManager[object]) -> Cell:
    """Test outcomes of every behaviour under a steering, and of the tasks, which all behaviours share."""
    with steering:
        margins = {b: row_margins(lab.model, lab.bench.test_rows) for b, lab in labs.items()}
        lab = next(iter(labs.values()))
        capable = exact_matches(lab.model, lab.bench.test_tasks)
    return {
        "right": {b: _bits(m > 0 for m in one) for b, one in margins.items()},
        "capable": _bits(capable),
        "margin": {b: [round(m, 4) for m in one] for b, one in margins.items()},
    }


def _dose(labs: Labs, v: Tensor, *, lam: float) -> dict[str, float]:
    """What one vector does on dev at one strength: mean margin of every behaviour in nats, and capability."""
    model, tasks = next((lab.model, lab.bench.dev_tasks) for lab in labs.values())
    with Steering(model.blocks, v, lam=lam):
        margins = {b: row_margins(model, lab.bench.dev) for b, lab in labs.items()}
        capable = exact_matches(model, tasks)
    means = {b: sum(one) / len(one) for b, one in margins.items()}
    return {"lam": lam, **means, "capability": sum(capable) / len(capable)}


# --------------------------------------------------------------------------------------------- figures
def figures(found: Sequence[Cell], base: Sequence[Cell], facts: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Value and gain of every behaviour, of `both` (right on all behaviours at once), `capability`, and every margin.

    found, base: outcomes of a setting and of the unsteered model, one per training seed.  [value, low, high] in shares,
    margins (`margin of <behaviour>`) in nats.  The bootstrap is over facts (for capability over tasks); the seeds of a
    fact stay together.
    """
    tasks = [str(i) for i in range(len(base[0]["capable"]))]
    clusters = {name: facts if name != "capability" else tasks for name in _by_name(base[0])}
    result = {}
    for name, of_one in clusters.items():
        mine, before = ([one for cell in cells for one in _by_name(cell)[name]] for cells in (found, base))
        of_all = [*of_one] * len(found)
        result[name] = {
            "value": _triple(clustered_mean(mine, of_all)),
            "gain": _triple(paired_gain(mine, before, clusters=of_all)),
        }
    return result


def _by_name(cell: Cell) -> dict[str, list[float]]:
    """Outcomes as numbers: every behaviour, both at once, capability, margins."""
    right = {behaviour: [float(bit) for bit in bits] for behaviour, bits in cell["right"].items()}
    both = [float(all(bits)) for bits in zip(*right.values(), strict=True)]
    margins = {f"margin of {behaviour}": margins for behaviour, margins in cell["margin"].items()}
    return right | {"both": both, "capability": [float(bit) for bit in cell["capable"]]} | margins


def _bits(outcomes: Iterable[bool]) -> str:
    return "".join(str(int(one)) for one in outcomes)


def _triple(rate: Rate) -> list[float]:
    return [rate.value, rate.low, rate.high]


# ------------------------------------------------------------------------------------------------- page
def page(results: Sequence[Cell]) -> str:
    """The cells of all training seeds as Markdown: vectors alone and together, every strength, cosines by layer.

    Raises:
        ValueError: no cell, or cells about different test prompts.
    """
    if not results or any(cell["facts"] != results[0]["facts"] for cell in results):
        raise ValueError(f"need cells about the same test prompts, one per training seed; got {len(results)}")
    base = [cell["unsteered"] for cell in results]
    pooled = functools.partial(figures, base=base, facts=results[0]["facts"])
    names = [name for name in _by_name(base[0]) if not name.startswith("margin")]
    behaviours = list(base[0]["right"])
    gains = [_row("unsteered", "", pooled(base), is_base=True)]
    doses, cosines = list[str](), list[str]()
    n_layers, lams = 0, list[float]()
    for fit in results[0]["fits"]:
        fits = [cell["fits"][fit] for cell in results]
        if errors := [
            f"seed {c['seed']}: {one['error']}" for c, one in zip(results, fits, strict=True) if "error" in one
        ]:
            gains.append(_line([f"{fit}: none ({'; '.join(errors)})", *[""] * (2 * len(names) + len(behaviours) + 1)]))
            continue
        for row in fits[0]["rows"]:
            behaviour = row.removeprefix("vector of ")
            lam = ", ".join(f"{one['lam'][behaviour]:g}" for one in fits if behaviour in one["lam"])
            gains.append(_row(f"{fit}: {row}", lam, pooled([one["rows"][row] for one in fits])))
        for behaviour in behaviours:
            columns = [f"{fit}: vector of {behaviour}"]
            for dose in zip(*(one["doses"][behaviour] for one in fits), strict=True):
                means = {name: sum(one[name] for one in dose) / len(dose) for name in dose[0]}
                margins = " / ".join(f"{means[name]:+.2f}" for name in behaviours)
                columns.append(f"{margins} / {100 * means['capability']:.1f}")
            doses.append(_line(columns))
        cosines += [
            _line([fit, str(cell["seed"]), *(f"{cosine:+.2f}" for cosine in one["cosines"])])
            for cell, one in zip(results, fits, strict=True)
        ]
        n_layers, lams = len(fits[0]["cosines"]), [dose["lam"] for dose in fits[0]["doses"][behaviours[0]]]
    head = ["", "lam, by seed", *(column for name in names for column in (name, "gain"))]
    head += [f"{name}: nats" for name in behaviours]
    lines = [
        "### Transfer and composition, double world",
        "",
        "Percent, and gains over the unsteered model in points; the last columns: gain of the mean margin in nats. "
        f"Brackets: 95 % bootstrap intervals over facts (capability: tasks). Training seeds: {len(results)}. The "
        "strength of a vector is chosen on dev for its own behaviour.",
        "",
        *_table(head, gains),
    ]
    if doses:
        shown = " / ".join(behaviours)
        lines += [
            "",
            f"On dev, by strength: mean margin of {shown} in nats / capability in percent; means over seeds.",
            "",
        ]
        lines += _table(["", *(f"lam {lam:g}" for lam in lams)], doses)
        lines += ["", "Cosine of the two vectors.", ""]
        lines += _table(["", "seed", *(f"layer {i}" for i in range(n_layers))], cosines)
    return "\n".join(lines) + "\n"


def _row(name: str, lam: str, found: Mapping[str, Mapping[str, Sequence[float]]], *, is_base: bool = False) -> str:
    columns = [name, lam]
    for one, figure in found.items():
        value, low, high = figure["gain"]
        if one.startswith("margin"):
            columns.append(f"({figure['value'][0]:+.2f})" if is_base else f"{value:+.2f} [{low:.2f}, {high:.2f}]")
            continue
        gain = f"{100 * value:+.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        columns += [f"{100 * figure['value'][0]:.1f}", "" if is_base else gain]
    return _line(columns)


def _table(head: Sequence[str], rows: Sequence[str]) -> list[str]:
    return [_line(head), _line(["---"] * len(head)), *rows]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
