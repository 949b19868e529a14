"""`grains-ref eval`: what vectors do on test data, unsteered beside steered."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grains_ref.cli import common, console
from grains_ref.cli.common import (
    DateOption,
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    ForceOption,
    IgnoreOption,
    JsonOption,
    LamOption,
    LayersOption,
    ModelOption,
    SkipOption,
    SteeringEngineOption,
)

if TYPE_CHECKING:
    from grains_ref.evaluation.metrics import McNemar, Rate


@console.guarded
@console.split
def eval_(
    model: ModelOption,
    pairs: Annotated[
        Path, typer.Option(help="Held-out pairs (JSONL); 'choices' and 'label' also give multiple choice.")
    ],
    vectors: Annotated[Path | None, typer.Option(help="A vectors file; without it, the plain model.")] = None,
    lam: LamOption = None,
    layers: LayersOption = "",
    tasks: Annotated[Path | None, typer.Option(help="Tasks that must not suffer (JSONL: prompt, answer).")] = None,
    force: ForceOption = False,
    engine: SteeringEngineOption = "fast",
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    device_map: DeviceMapOption = "",
    date: DateOption = "",
    skip_bad_rows: SkipOption = False,
    ignore: IgnoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Preference accuracy (and multiple choice, and tasks), unsteered beside steered."""
    from grains_ref.evaluation import choice_rows, exact_matches, pair_rows, row_choices, row_margins, task_rows
    from grains_ref.evaluation.measured import check_same_rows
    from grains_ref.evaluation.metrics import mcnemar, rate

    if vectors is None and (lam is not None or layers):
        raise ValueError("--lam and --layers say how to use vectors: give --vectors too, or none of them")
    chosen_engine = common.engine_name(engine)
    file = common.read_pair_file(pairs, skip_bad_rows=skip_bad_rows, ignore=ignore)
    task_list = common.read_task_file(tasks, ignore=ignore)
    in_use = common.read_vectors(vectors, lam, layers) if vectors else None
    wrapped = common.load_model(model, dtype, device, device_map, date)
    ways: dict[str, AbstractContextManager[object]] = {"unsteered": nullcontext()}
    if in_use:
        has_chats = any(not isinstance(pair.prompt, str) for pair in file.pairs)
        ways["steered"] = in_use.steering(wrapped, force=force, chat=has_chats, engine=chosen_engine)

    rows, rows_of_tasks = pair_rows(wrapped, file.pairs), task_rows(wrapped, task_list)
    has_choices = all(pair.choices for pair in file.pairs)
    rows_of_choices = choice_rows(wrapped, file.pairs) if has_choices else []
    check_same_rows(wrapped, [*rows, *rows_of_tasks, *rows_of_choices])
    outcomes: dict[str, dict[str, Sequence[bool]]] = {}
    for way, steering in ways.items():
        with console.err.status(f"scoring, {way}"), steering:
            outcomes[way] = {"preference accuracy": [margin > 0 for margin in row_margins(wrapped, rows)]}
            if has_choices:
                outcomes[way]["multiple-choice accuracy"] = row_choices(wrapped, rows_of_choices, file.pairs).mc1
            if task_list:
                outcomes[way]["task accuracy"] = exact_matches(wrapped, rows_of_tasks)
    rates = {way: {name: rate(right) for name, right in measures.items()} for way, measures in outcomes.items()}
    changes: dict[str, McNemar] = {}
    if in_use:
        changes = {name: mcnemar(right, outcomes["unsteered"][name]) for name, right in outcomes["steered"].items()}
    if as_json:
        record = {way: {name: asdict(value) for name, value in measures.items()} for way, measures in rates.items()}
        if changes:
            record["change"] = {name: asdict(change) for name, change in changes.items()}
        console.out.print_json(data=record)
        return
    _print_rates(rates, changes, title=f"{pairs}: {len(file.pairs)} pairs; 95 % intervals")


def _print_rates(rates: dict[str, dict[str, Rate]], changes: dict[str, McNemar], *, title: str) -> None:
    rows = [(name, *(str(measures[name]) for measures in rates.values())) for name in rates["unsteered"]]
    console.out.print(console.table_of(title, ("", *rates), rows))
    if not changes:
        return
    console.out.print("Changed by steering, with McNemar's exact p (prompts about one fact are not independent rows):")
    for name, change in changes.items():
        console.out.print(f"  {name}: {change.gained} gained, {change.lost} lost, p = {change.p:.2g}")
