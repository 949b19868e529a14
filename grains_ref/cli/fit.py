"""`grains-ref fit`: steering vectors from preference pairs."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from grains_ref.cli import common, console
from grains_ref.cli.common import (
    GRAINS,
    BaselineOption,
    BaseOption,
    DateOption,
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    EligibleOption,
    EngineOption,
    IgnoreOption,
    JsonOption,
    KOption,
    MemoryOption,
    MethodOption,
    ModelOption,
    MOption,
    PositionsOption,
    PresetOption,
    SiteOption,
    SkipOption,
)
from grains_ref.cli.report import ReportOption, check_page, model_facts, settings_fact, write_report
from grains_ref.files import check_target, only_writer_of, some_of
from grains_ref.files.processes import first, held_by_first

if TYPE_CHECKING:
    from rich.progress import Progress

    from grains_ref.data import PreferencePair
    from grains_ref.fitting import Additions, FitRecord, WorkFolder
    from grains_ref.fitting.signal import Signal
    from grains_ref.grains import Example, HyperParameters
    from grains_ref.models import HuggingFaceModel
    from grains_ref.vectors import SteeringVectors


@console.guarded
@console.split
def fit(
    model: ModelOption,
    pairs: Annotated[Path, typer.Option(help="Preference pairs, JSONL: prompt or messages, chosen, rejected.")],
    output: Annotated[Path, typer.Option("--out", help="The vectors file to write.")],
    method: MethodOption = GRAINS,
    site: SiteOption = "",
    positions: PositionsOption = "",
    preset: PresetOption = "",
    k: KOption = None,
    m: MOption = None,
    attribution: Annotated[str, typer.Option(help="integrated_gradients, gradient, smoothgrad or random.")] = "",
    aggregation: Annotated[str, typer.Option(help="pca, uncentred, mean or weighted_mean.")] = "",
    objective: Annotated[str, typer.Option(help="preference or likelihood.")] = "",
    path_baseline: BaselineOption = "",
    mask_baseline: BaselineOption = "",
    eligible: EligibleOption = None,
    less_random: Annotated[
        int, typer.Option(help="Beyond the paper: subtract the shifts of this many draws of random tokens.", min=0)
    ] = 0,
    agreeing_layers: Annotated[
        float | None,
        typer.Option(
            help="Beyond the paper: steer only layers whose halves of the pairs agree by this cosine.",
            min=-1,
            max=1,
            show_default=False,
        ),
    ] = None,
    only_side: Annotated[
        str, typer.Option(help="Beyond the paper: pos or neg, v_pos or -v_neg alone.", show_default=False)
    ] = "",
    no_signal: Annotated[
        bool, typer.Option("--no-signal", help="Leave out the passes that measure whether the vectors mean anything.")
    ] = False,
    work: Annotated[
        Path | None, typer.Option(help="Folder for finished examples. (default: OUT.work)", show_default=False)
    ] = None,
    keep_work: Annotated[
        bool, typer.Option("--keep-work", help="Leave that folder: another aggregation or k then takes seconds.")
    ] = False,
    report: ReportOption = None,
    engine: EngineOption = "fast",
    memory: MemoryOption = "80%",
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    device_map: DeviceMapOption = "",
    base: BaseOption = "",
    date: DateOption = "",
    skip_bad_rows: SkipOption = False,
    ignore: IgnoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make steering vectors from preference pairs. Interrupted, the same command goes on where it stopped."""
    from grains_ref.fitting import Additions, checked_examples
    from grains_ref.fitting.work_folder import open_work_folder

    of_grains: dict[str, Any] = {
        "k": k,
        "m": m,
        "attribution": attribution,
        "aggregation": aggregation,
        "objective": objective,
        "path_baseline": path_baseline,
        "mask_baseline": mask_baseline,
        "eligible": eligible,
    }
    beyond: dict[str, Any] = {"less_random": less_random or None, "agreeing_layers": agreeing_layers}
    beyond["only_side"] = only_side
    edit = common.edit_of(method, site, positions, of_grains | beyond | {"preset": preset})
    additions = Additions(less_random, agreeing_layers, only_side)
    choose_hp = common.hyper_parameters(preset, **of_grains)
    check_page(report)
    by_engine: dict[str, Any] = {"engine": common.engine_name(engine, memory), "memory": memory}
    folder = work or output.with_name(output.name + ".work")
    with held_by_first(only_writer_of(output, what="a fit or a sweep")), open_work_folder(folder) as work_folder:
        first(lambda: check_target(output))  # once more: --out may be the folder that has just been made
        file = common.read_pair_file(pairs, skip_bad_rows=skip_bad_rows, ignore=ignore)
        wrapped = common.load_model(model, dtype, device, device_map, date, base)
        hp = choose_hp(wrapped)
        fitted_pairs, examples, skipped = checked_examples(wrapped, file.pairs, skip_bad_rows=skip_bad_rows)
        common.report_skipped(skipped)
        common.note_plain_texts(wrapped, (pair.prompt for pair in file.pairs), instead=common.AS_MESSAGES)
        finished = 0
        with console.progress_bar() as progress:
            bar = progress.add_task("examples", total=len(examples))

            def show(n: int) -> None:
                nonlocal finished
                finished = n
                progress.update(bar, completed=n)

            try:
                if edit:
                    made = _fit_edit_gradient(wrapped, fitted_pairs, examples, edit, work_folder, show)
                else:
                    made = _fit_grains(
                        wrapped,
                        fitted_pairs,
                        examples,
                        hp,
                        additions,
                        work_folder,
                        show,
                        progress,
                        no_signal,
                        by_engine,
                    )
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"{finished} of {len(examples)} examples are finished and kept in {folder}; "
                    "run the same command to go on"
                ) from None
        first(lambda: made.vectors.save(output))
        left = [] if keep_work else work_folder.discard()
    strangers = [path.name for path in left if path.resolve() != output.resolve()]
    if strangers:
        console.err.print(f"left in {folder}, as not of this fit or not to be removed: {some_of(strangers)}")
    if as_json:
        places = {"vectors": str(output), "skipped": len(file.skipped) + len(skipped)}
        console.out.print_json(data=made.facts | {"signal": made.signal.record()} | places)
    else:
        _print_fit(made, len(examples), output)
    if report:
        facts = model_facts(wrapped, chat=any(not isinstance(pair.prompt, str) for pair in fitted_pairs))
        if made.record:
            facts.append(settings_fact(hp))
        facts += [(name, words) for name, words in made.facts["words"].items()]
        _write_report(report, output, made, wrapped, fitted_pairs, examples, hp, facts)


def _print_fit(made: _Made, n: int, output: Path) -> None:
    """What was fitted, whether it means anything, and what to do next."""
    if made.facts["resumed"]:
        count = f"{made.facts['resumed']} of {n} examples"
        console.err.print(f"{count} had been finished earlier and were not computed again")
    title = f"{n} examples -> {output}"
    console.out.print(console.table_of(title, ("", ""), list(made.facts["words"].items())))
    console.print_signal(made.signal.record())
    if made.signal.verdict in ("none", "away"):
        other_method = "with --method edit_gradient and another --out, or " if made.record else ""
        console.out.print(f"Next: fit again {other_method}with other pairs: a strength of these is not likely to help.")
        console.out.print(f"'grains-ref inspect {output}' shows them layer by layer.")
        return
    console.out.print(f"Next: choose a strength with 'grains-ref sweep --vectors {output}',")
    console.out.print(f"or look with 'grains-ref inspect {output}'.")


def _write_report(
    path: Path,
    output: Path,
    made: _Made,
    model: HuggingFaceModel,
    pairs: Sequence[PreferencePair],
    examples: Sequence[Example],
    hp: HyperParameters,
    facts: Sequence[tuple[str, str]],
) -> None:
    """The layers and what was attributed in every pair."""
    from grains_ref.report.attributions import Attributions
    from grains_ref.report.fitted import fitted_examples
    from grains_ref.report.layers import Layers
    from grains_ref.report.page import Section
    from grains_ref.report.provenance import facts_of

    sections: list[Section] = [Layers(made.vectors)]
    if made.record:
        sections.append(Attributions(fitted_examples(model, pairs, examples, made.record.shifts, hp)))
    known = {name for name, _ in facts}
    of_file = [fact for fact in facts_of(made.vectors) if fact[0] not in known]
    write_report(path, f"Vectors of {len(examples)} pairs: {output.name}", sections, [*facts, *of_file])


class _Made(NamedTuple):
    """A finished fit of any method."""

    vectors: SteeringVectors
    signal: Signal
    facts: dict[str, Any]  # for JSON; "words" is for people
    record: FitRecord | None = None  # of GrAInS


def _fit_grains(
    model: HuggingFaceModel,
    pairs: Sequence[PreferencePair],
    examples: Sequence[Example],
    hp: HyperParameters,
    additions: Additions,
    work: WorkFolder,
    show: Callable[[int], None],
    progress: Progress,
    no_signal: bool,
    by_engine: Mapping[str, Any],
) -> _Made:
    """GrAInS, and whether its vectors mean anything."""
    from grains_ref.fitting import resumable_fit
    from grains_ref.fitting.signal import grains_signal, pairs_to_ask, with_signal

    record = resumable_fit(model, pairs, examples, hp, work=work, on_example=show, additions=additions, **by_engine)
    measure = functools.partial(grains_signal, model, examples, record, hp, work=work)
    try:
        bar = progress.add_task("signal", total=0 if no_signal else len(pairs_to_ask(len(examples))))
        signal = measure(on_pair=lambda n: progress.update(bar, completed=n), with_gradient=not no_signal)
    except ArithmeticError as error:  # the vectors are finished, and are not lost over it
        console.err.print(f"the signal's slope was not measured: {error}", style="yellow")
        signal = measure(on_pair=show, with_gradient=False)
    return _Made(with_signal(record.vectors, signal), signal, _facts(examples, record, hp, additions), record)


def _fit_edit_gradient(
    model: HuggingFaceModel,
    pairs: Sequence[PreferencePair],
    examples: Sequence[Example],
    edit: common.EditOptions,
    work: WorkFolder,
    show: Callable[[int], None],
) -> _Made:
    """The edit gradient; its signal costs nothing."""
    from grains_ref.fitting.edit_gradient import resumable_edit_gradient
    from grains_ref.fitting.signal import edit_gradient_signal, with_signal

    record = resumable_edit_gradient(
        model, pairs, examples, site=edit.site, positions=edit.positions, work=work, on_example=show
    )
    signal = edit_gradient_signal(record)
    facts = {
        "examples": len(examples),
        "resumed": record.resumed,
        "site": edit.site,
        "positions": edit.positions,
        "scale": record.fit.scale,
        "words": {
            "method": "edit gradient (not the paper's)",
            "site": edit.site,
            "positions": edit.positions,
            "the state's mean length there, of which lam is a share": f"{record.fit.scale:.3g}",
        },
    }
    return _Made(with_signal(record.vectors, signal), signal, facts)


def _facts(examples: Sequence[Example], record: FitRecord, hp: HyperParameters, additions: Additions) -> dict[str, Any]:
    """What was selected, by kind, and how often a set came out short: the reader's check on eq. (3)."""
    kinds: Counter[str] = Counter()
    with_last = short = empty = 0
    for example, shift in zip(examples, record.shifts, strict=True):
        last_token = len(shift.a) - 1
        for tokens in (shift.selection.pos, shift.selection.neg):
            kinds.update(example.encoded.kinds[j] for j in tokens)
            if len(tokens) < hp.k:
                short += 1
            if not tokens:
                empty += 1
            if last_token in tokens:
                with_last += 1
    n_sets = 2 * len(examples)
    words = {f"selected tokens that are {kind}": f"{n} of {kinds.total()}" for kind, n in sorted(kinds.items())}
    words["sets that hold the last prompt token"] = f"{with_last} of {n_sets}"
    words[f"sets with fewer than k = {hp.k} tokens"] = f"{short} of {n_sets} ({empty} empty)"
    for side, aggregation in (("v_pos", record.fit.pos), ("v_neg", record.fit.neg)):
        lowest = min(aggregation.cos_mean)
        layer = aggregation.cos_mean.index(lowest)
        words[f"{side}: cosine with the mean shift, lowest layer"] = f"{lowest:.2f} (layer {layer})"
    if additions.less_random:
        words["beyond the paper"] = f"shifts less those of random tokens, {additions.less_random} draws"
    if additions.only_side:
        words["the side of eq. (6) that is left"] = f"v_{additions.only_side}"
    if additions.agreeing_layers is not None:
        left = int(record.fit.v.any(1).sum())
        words["layers whose halves agree"] = f"{left} of {len(record.fit.v)}, at least {additions.agreeing_layers:g}"
    return {
        "examples": len(examples),
        "resumed": record.resumed,
        "hyper_parameters": hp.as_dict() | additions.record(),
        "selected_by_kind": dict(kinds),
        "sets_with_last_token": with_last,
        "short_sets": short,
        "empty_sets": empty,
        "words": words,
    }
