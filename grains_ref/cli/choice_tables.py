"""What a sweep tells: every setting that was tried, and what the chosen one costs, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeAlias

from grains_ref.cli import console

if TYPE_CHECKING:
    from grains_ref.evaluation import Candidate
    from grains_ref.evaluation.choice import LimitedChoice
    from grains_ref.evaluation.given import GivenCandidate

LayerNames: TypeAlias = dict[tuple[int, ...], str]  # numbers of layers -> how they were written


def words_of(candidate: Candidate | GivenCandidate, layer_names: LayerNames) -> str:
    """A candidate in words, without its strength."""
    if candidate.lam == 0:
        return "unsteered"
    layers = f"layers {layer_names[candidate.layers]}"
    hp = getattr(candidate, "hp", None)  # vectors that were given are made already
    return f"k {hp.k}, {hp.aggregation}, {layers}" if hp else layers


def setting_record(candidate: Candidate | GivenCandidate, layer_names: LayerNames) -> dict[str, Any]:
    """A candidate as JSON; at strength 0 no vectors are in use."""
    if candidate.lam == 0:
        return {"lam": 0.0, "k": None, "aggregation": None, "layers": None}
    hp = getattr(candidate, "hp", None)
    made = {"k": hp.k if hp else None, "aggregation": hp.aggregation if hp else None}
    return {"lam": candidate.lam, **made, "layers": layer_names[candidate.layers]}


def choice_record(choice: LimitedChoice[Any], layer_names: LayerNames) -> dict[str, Any]:
    """The choice as JSON."""
    costs = choice.record()
    return {
        "best": setting_record(choice.best, layer_names)
        | {name: costs[name] for name in costs if name not in ("lam", "layers")},
        "tried": [
            setting_record(tried.setting, layer_names)
            | {"dev_accuracy": tried.accuracy}
            | choice.dev_figures(number)
            | _task_accuracy(choice, tried.setting)
            for number, tried in enumerate(choice.tried)
        ],
        "left_out": [asdict(left_out) for left_out in choice.left_out],
    }


def _change(change: Sequence[float] | None) -> str:
    """The change of the mean margin with its interval; nothing where there are too few prompts for one."""
    if not change:
        return "-"
    value, low, high = change
    return f"{value:+.2f} [{low:.2f}, {high:.2f}]"


def _task_accuracy(choice: LimitedChoice[Any], setting: Candidate | GivenCandidate) -> dict[str, Any]:
    """A setting's accuracy on the tasks, where it was asked; at most that, where the count stopped at the limit."""
    if not choice.tasks:
        return {}
    cost = choice.tasks
    wrong = dict(choice.counted)
    if setting.lam == 0:
        return {"task_accuracy": cost.accuracy_unsteered, "task_accuracy_is_at_most": False}
    if setting not in wrong:
        return {}
    is_at_most = setting is not choice.best
    return {"task_accuracy": 1 - wrong[setting] / cost.n, "task_accuracy_is_at_most": is_at_most}


def print_choice(choice: LimitedChoice[Any], layer_names: LayerNames, *, title: str) -> None:
    """Everything that was tried, setting by setting, and what the chosen one costs."""
    names = list(dict.fromkeys(words_of(tried.setting, layer_names) for tried in choice.tried))
    numbered = sorted(
        enumerate(choice.tried),
        key=lambda item: (names.index(words_of(item[1].setting, layer_names)), item[1].setting.lam),
    )
    rows = []
    for number, tried in numbered:
        mark = "* " if tried.setting is choice.best else "  "
        figures = choice.dev_figures(number)
        if tried.setting.lam == 0:
            margin = f"margin {figures['dev_margin']:+.2f}"
        else:
            margin = _change(figures.get("dev_margin_change"))
        rows.append(
            (
                mark + words_of(tried.setting, layer_names),
                f"{tried.setting.lam:g}",
                f"{100 * tried.accuracy:.1f} %",
                f"{100 * figures['dev_accuracy_per_token']:.1f} %",
                margin,
            )
        )
    head = ("setting", "lam", "accuracy", "per token", "change of margin, nats")
    console.out.print(console.table_of(title, head, rows))
    if choice.tasks:
        cost = choice.tasks
        console.out.print(
            f"Tasks ({cost.n}): {100 * cost.accuracy:.1f} % with the chosen setting, "
            f"{100 * cost.accuracy_unsteered:.1f} % unsteered; {cost.max_loss:g} points may be lost."
        )
    else:
        warning = "No --tasks were given, so nothing stops a strength that ruins other skills."
        console.out.print(warning, style="yellow")
    if choice.best.lam == 0:
        console.out.print(
            "No steered setting beat the unsteered model within the limit: lam = 0 was chosen.", style="yellow"
        )
        gentlest = min((abs(tried.setting.lam) for tried in choice.tried if tried.setting.lam), default=0.0)
        of_gentlest = [tried.accuracy for tried in choice.tried if abs(tried.setting.lam) == gentlest]
        if gentlest and max(of_gentlest) > choice.accuracy_unsteered:  # so the tasks forbade it
            advice = (
                f"Even the gentlest, lam {gentlest:g}, is better on dev and costs too many tasks: try smaller --lam."
            )
            console.out.print(advice, style="yellow")
