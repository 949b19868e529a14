"""`grains-ref eval`: what vectors do on test data, unsteered beside steered."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grains_ref.cli import common, console
from grains_ref.cli.common import (
    BaseOption,
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
from grains_ref.cli.report import ReportOption, check_page, model_facts, write_report
from grains_ref.cli.side_effects import (
    FigureOption,
    SideEffectsOption,
    draw_side_effects,
    print_side_effects,
    read_side_effects,
)

if TYPE_CHECKING:
    from grains_ref.data import PreferencePair
    from grains_ref.evaluation.metrics import McNemar, Mean, Rate
    from grains_ref.models import HuggingFaceModel
    from grains_ref.report.page import Section

ACCURACY, PER_TOKEN = "preference accuracy", "preference accuracy, per token"
MARGIN, MARGIN_PER_TOKEN = "mean margin, nats", "mean margin per token, nats"
LONGEST_ANSWER = 48  # tokens of an answer in a report


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
    side_effects: SideEffectsOption = None,
    figure: FigureOption = None,
    report: ReportOption = None,
    answers: Annotated[int, typer.Option(help="How many greedy answers of either model the report shows.", min=0)] = 8,
    force: ForceOption = False,
    engine: SteeringEngineOption = "fast",
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    device_map: DeviceMapOption = "",
    base: BaseOption = "",
    date: DateOption = "",
    skip_bad_rows: SkipOption = False,
    ignore: IgnoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Preference accuracy and margins (and multiple choice, and tasks), unsteered beside steered.

    By whole answers, as eq. (1) says, and per token: where the two differ, the answers differ in length.
    """
    from grains_ref.evaluation import choice_rows, exact_matches, pair_rows, row_choices, task_rows
    from grains_ref.evaluation.measured import check_same_rows
    from grains_ref.evaluation.metrics import mcnemar, rate
    from grains_ref.evaluation.pair_scores import change_of, mean_of, prompts_of, score_pairs

    if vectors is None and (lam is not None or layers):
        raise ValueError("--lam and --layers say how to use vectors: give --vectors too, or none of them")
    check_page(report)
    chosen_engine = common.engine_name(engine)
    sets = read_side_effects(side_effects, has_vectors=vectors is not None, figure=figure)
    file = common.read_pair_file(pairs, skip_bad_rows=skip_bad_rows, ignore=ignore)
    task_list = common.read_task_file(tasks, ignore=ignore)
    in_use = common.read_vectors(vectors, lam, layers) if vectors else None
    wrapped = common.load_model(model, dtype, device, device_map, date, base)
    ways: dict[str, AbstractContextManager[object]] = {"unsteered": nullcontext()}
    has_chats = any(not isinstance(pair.prompt, str) for pair in file.pairs)
    if in_use:
        ways["steered"] = in_use.steering(wrapped, force=force, chat=has_chats, engine=chosen_engine)

    rows, rows_of_tasks = pair_rows(wrapped, file.pairs), task_rows(wrapped, task_list)
    has_choices = all(pair.choices for pair in file.pairs)
    rows_of_choices = choice_rows(wrapped, file.pairs) if has_choices else []
    check_same_rows(wrapped, [*rows, *rows_of_tasks, *rows_of_choices])
    common.note_plain_texts(wrapped, (pair.prompt for pair in file.pairs), instead=common.AS_MESSAGES)
    outcomes: dict[str, dict[str, Sequence[bool]]] = {}
    margins: dict[str, dict[str, Sequence[float]]] = {}
    texts: dict[str, list[str]] = {}
    answered = file.pairs[:answers] if report and in_use else ()
    for way, steering in ways.items():
        with console.err.status(f"scoring, {way}"), steering:
            scores = score_pairs(wrapped, rows)
            outcomes[way] = {ACCURACY: scores.right, PER_TOKEN: scores.right_per_token}
            margins[way] = {MARGIN: scores.margins, MARGIN_PER_TOKEN: scores.per_token}
            if has_choices:
                outcomes[way]["multiple-choice accuracy"] = row_choices(wrapped, rows_of_choices, file.pairs).mc1
            if task_list:
                outcomes[way]["task accuracy"] = exact_matches(wrapped, rows_of_tasks)
            texts[way] = _generated(wrapped, answered)

    prompts = prompts_of(rows)
    values: dict[str, dict[str, Rate | None]] = {}
    for way, measures in outcomes.items():
        values[way] = {name: rate(right) for name, right in measures.items()}
        values[way] |= {name: mean_of(of_pairs, prompts) for name, of_pairs in margins[way].items()}
    tests: dict[str, McNemar] = {}
    changes: dict[str, Mean | None] = {}
    if in_use:
        tests = {name: mcnemar(right, outcomes["unsteered"][name]) for name, right in outcomes["steered"].items()}
        for name in (ACCURACY, PER_TOKEN):
            changes[name] = change_of(outcomes["steered"][name], outcomes["unsteered"][name], prompts)
        for name, of_pairs in margins["steered"].items():
            changes[name] = change_of(of_pairs, margins["unsteered"][name], prompts)
    moved = None
    if in_use and sets:
        from grains_ref.evaluation import side_effects as measured_side_effects

        with console.err.status("side effects"):
            chat = bool(wrapped.prompts.template_digest)
            steering = in_use.steering(wrapped, force=force, chat=chat, engine=chosen_engine)
            moved = measured_side_effects(wrapped, steering, sets, chat=chat)
        draw_side_effects(moved, figure)
    if as_json:
        record = _record(values, tests, changes)
        if moved:
            record["side_effects"] = moved.as_record()
        console.out.print_json(data=record)
    else:
        _print(values, tests, changes, title=f"{pairs}: {len(file.pairs)} pairs; 95 % intervals")
        if moved:
            print_side_effects(moved)
    if report:
        rates = {way: {name: rate(right) for name, right in measures.items()} for way, measures in outcomes.items()}
        sections = _sections(file.pairs, rates, tests, margins, texts, how=in_use.words if in_use else "")
        facts = [*model_facts(wrapped, chat=has_chats), ("pairs", str(pairs)), ("pairs digest", file.digest)]
        if moved and in_use:
            from grains_ref.report.side_effects import SideEffectsTable

            sections.append(SideEffectsTable(moved, how=f"Steered with {in_use.words}."))
        if in_use:
            from grains_ref.report.layers import Layers
            from grains_ref.report.provenance import facts_of

            sections.append(Layers(in_use.vectors, lam=in_use.lam))
            known = {name for name, _ in facts}
            of_file = [fact for fact in facts_of(in_use.vectors) if fact[0] not in known]
            facts += [("vectors", str(vectors)), ("steered with", in_use.words), *of_file]
        write_report(report, f"Steering on {pairs.name}", sections, facts)


def _generated(model: HuggingFaceModel, pairs: Sequence[PreferencePair]) -> list[str]:
    """Greedy answers to the prompts of these pairs, as long as the model's context allows."""
    if not pairs:
        return []
    longest = max(len(model.encode(pair.prompt, pair.image).tokens) for pair in pairs)
    room = min(LONGEST_ANSWER, model.context - longest) if model.context else LONGEST_ANSWER
    images = [pair.image for pair in pairs]
    prompts = [pair.prompt for pair in pairs]
    return model.generate(prompts, images=images if any(images) else [], max_new_tokens=max(room, 1))


def _sections(
    pairs: Sequence[PreferencePair],
    rates: dict[str, dict[str, Rate]],
    tests: dict[str, McNemar],
    margins: dict[str, dict[str, Sequence[float]]],
    texts: dict[str, list[str]],
    *,
    how: str,
) -> list[Section]:
    """Rates, and of steering also margins and answers."""
    from grains_ref.report.answers import Answer, Answers, Margin, Margins
    from grains_ref.report.fitted import prompt_words
    from grains_ref.report.strengths import Measure, Rates

    steered = rates.get("steered", {})
    measures = [Measure(name, rate, steered.get(name), tests.get(name)) for name, rate in rates["unsteered"].items()]
    sections: list[Section] = [Rates(measures, how=f"{len(pairs)} held-out pairs.")]
    if steered:
        names = [pair.id or " ".join(prompt_words(pair.prompt).split())[:80] for pair in pairs]
        moved = zip(names, margins["unsteered"][MARGIN], margins["steered"][MARGIN], strict=True)
        sections.append(Margins([Margin(*margin) for margin in moved], how=how))
    if texts.get("steered"):
        answers = [
            Answer(prompt_words(pair.prompt), base, after, pair.chosen, pair.rejected)
            for pair, base, after in zip(pairs, texts["unsteered"], texts["steered"], strict=False)
        ]
        sections.append(Answers(answers, how=how))
    return sections


def _record(
    values: dict[str, dict[str, Rate | None]], tests: dict[str, McNemar], changes: dict[str, Mean | None]
) -> dict[str, Any]:
    """All figures as JSON; `gain` is a mean of paired differences, null where there are too few prompts for one."""
    record: dict[str, Any] = {}
    for way, measures in values.items():
        record[way] = {name: asdict(value) if value else None for name, value in measures.items()}
    if tests:
        record["change"] = {name: asdict(test) for name, test in tests.items()}
        for name, change in changes.items():
            record["change"].setdefault(name, {})["gain"] = asdict(change) if change else None
    return record


def _print(
    values: dict[str, dict[str, Rate | None]],
    tests: dict[str, McNemar],
    changes: dict[str, Mean | None],
    *,
    title: str,
) -> None:
    rows = []
    for name in values["unsteered"]:
        cells = (str(measures[name] or "too few prompts") for measures in values.values())
        rows.append((name, *cells))
    console.out.print(console.table_of(title, ("", *values), rows))
    if not tests:
        return
    console.out.print("Changed by steering, with McNemar's exact p (prompts about one fact are not independent rows):")
    for name, test in tests.items():
        console.out.print(f"  {name}: {test.gained} gained, {test.lost} lost, p = {test.p:.2g}")
    console.out.print("In pairs, mean over prompts with a 95 % interval:")
    for name, change in changes.items():
        if change is None:
            console.out.print(f"  {name}: too few prompts for an interval")
        elif name in tests:
            in_points = f"{100 * change.value:+.1f} points [{100 * change.low:.1f}, {100 * change.high:.1f}]"
            console.out.print(f"  {name}: {in_points}")
        else:
            console.out.print(f"  {name}: {change.value:+.3f} [{change.low:.3f}, {change.high:.3f}]")
