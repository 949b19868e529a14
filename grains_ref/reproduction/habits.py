"""MAT-Steer with two habits at once: trained together, each alone, and both alone ones one after the other.

The double world's cell `habits`.  Strengths and blocks are chosen by the rule of every row: what is fitted for one
behaviour on the dev set of its own, what is fitted for both by the mean of their dev accuracies; capability is shared.

| field | meaning |
|---|---|
| `unsteered` | outcomes and results of the model as it is, as in `transfer` |
| `fits` | by options: `chosen` and `tried` by row, `cosines` of the two vectors by block, `rows`; or only `error` |
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from grains_ref.demo.bench import UNSTEERED, tried
from grains_ref.evaluation.choice import Choice, choose
from grains_ref.grains import DegenerateShiftsError
from grains_ref.methods import mat_steer
from grains_ref.methods.core import Setting, together
from grains_ref.methods.mat_steer import MatSteer
from grains_ref.report.markdown import markdown_table
from grains_ref.reproduction.transfer import Curve, Labs, outcomes, results

OPTIONS = {"MAT-Steer": mat_steer.ADAPTED, "MAT-Steer, as its code has it": mat_steer.CODE}
TOGETHER, IN_TURN = "trained together", "trained alone, in turn"


def measure(labs: Labs, facts: Sequence[str]) -> Curve:
    """One training seed."""
    base = outcomes(labs, nullcontext())
    cell: Curve = {"unsteered": base | {"results": results([base], [base], facts)}, "fits": {}}
    for name, options in OPTIONS.items():
        try:
            cell["fits"][name] = _measure(labs, options, base, facts)
        except DegenerateShiftsError as error:
            cell["fits"][name] = {"error": str(error)}
    return cell


def _measure(labs: Labs, options: mat_steer.Options, base: Curve, facts: Sequence[str]) -> Curve:
    model = next(iter(labs.values())).model
    both = mat_steer.fit_several(model, {name: lab.steer for name, lab in labs.items()}, options=options)
    choices = {TOGETHER: chosen_for_all(labs, both.settings(model))}
    for behaviour, lab in labs.items():
        alone = mat_steer.fit_several(model, {behaviour: lab.steer}, options=options)
        choices[f"{behaviour} alone"] = lab.bench.choose(alone.settings(model))
    steerings = {row: choice.best.steering for row, choice in choices.items()}
    in_turn = [steerings[f"{behaviour} alone"] for behaviour in labs]
    steerings[IN_TURN] = lambda: together(*(steering() for steering in in_turn))
    rows = {}
    for row, steering in steerings.items():
        steered = outcomes(labs, steering())
        rows[row] = steered | {"results": results([steered], [base], facts)}
    return {
        "chosen": {row: [choice.best.label, choice.best.strength] for row, choice in choices.items()},
        "tried": {row: tried(choice) for row, choice in choices.items()},
        "cosines": cosines(both),
        "rows": rows,
    }


def chosen_for_all(labs: Labs, settings: Sequence[Setting]) -> Choice[Setting]:
    """The best setting by the mean of all behaviours' dev accuracies, among those that keep capability."""
    benches = [lab.bench for lab in labs.values()]

    def accuracy(setting: Setting) -> float:
        return sum(bench.dev_accuracy(setting) for bench in benches) / len(benches)

    return choose([UNSTEERED, *settings], accuracy=accuracy, admissible=benches[0].keeps_capability)


def cosines(fitted: MatSteer) -> list[float]:
    """Of the first two habits' vectors, by block."""
    return torch.cosine_similarity(fitted.v[:, 0], fitted.v[:, 1], dim=1).tolist()


# ------------------------------------------------------------------------------------------- the page
def page(curves: Sequence[Curve]) -> str:
    """What all training seeds say.

    Raises:
        ValueError: the cells of the training seeds are about different test prompts.
    """
    first = curves[0]
    if any(curve["facts"] != first["facts"] for curve in curves):
        raise ValueError("the cells of the training seeds are about different test prompts: delete them, run again")
    base = [curve["unsteered"] for curve in curves]
    lines = [_line("unsteered", base, base, first["facts"])]
    for name in first["fits"]:
        fits = [curve["fits"][name] for curve in curves]
        if errors := [fit["error"] for fit in fits if "error" in fit]:
            lines.append([f"{name}: none ({errors[0]})"] + [""] * (len(lines[0]) - 1))
            continue
        for row in first["fits"][name]["rows"]:
            lines.append(_line(f"{name}: {row}", [fit["rows"][row] for fit in fits], base, first["facts"]))
    head = [""]
    for share in (*first["unsteered"]["right"], "both", "capability"):
        head += [share, "gain"]
    return (
        "### Two habits at once, double world\n\n"
        "MAT-Steer trained on both habits together, on each alone, and both alone ones entered in turn. Percent, and "
        "gains over the unsteered model in points with 95 % bootstrap intervals over facts (capability: tasks). "
        f"Training seeds: {len(curves)}.\n\n" + markdown_table(head, lines)
    )


def _line(name: str, measured: Sequence[Curve], base: Sequence[Curve], facts: Sequence[str]) -> list[str]:
    line = [name]
    for measure_name, result in results(measured, base, facts).items():
        if measure_name.startswith("margin"):
            continue
        gain, low, high = (100 * value for value in result["gain"])
        line += [f"{100 * result['value'][0]:.1f}", "" if measured is base else f"{gain:+.1f} [{low:.1f}, {high:.1f}]"]
    return line
