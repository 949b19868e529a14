"""`grains-ref fit`: steering vectors from preference pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grains_ref.cli import common, console
from grains_ref.cli.common import (
    BaselineOption,
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
    ModelOption,
    MOption,
    PresetOption,
    SkipOption,
)
from grains_ref.files import check_target, only_writer_of, some_of

if TYPE_CHECKING:
    from grains_ref.fitting import FitRecord
    from grains_ref.grains import Example, HyperParameters


@console.guarded
def fit(
    model: ModelOption,
    pairs: Annotated[Path, typer.Option(help="Preference pairs, JSONL: prompt or messages, chosen, rejected.")],
    output: Annotated[Path, typer.Option("--out", help="The vectors file to write.")],
    preset: PresetOption = "",
    k: KOption = None,
    m: MOption = None,
    attribution: Annotated[str, typer.Option(help="integrated_gradients, gradient, smoothgrad or random.")] = "",
    aggregation: Annotated[str, typer.Option(help="pca, uncentred, mean or weighted_mean.")] = "",
    objective: Annotated[str, typer.Option(help="preference or likelihood.")] = "",
    path_baseline: BaselineOption = "",
    mask_baseline: BaselineOption = "",
    eligible: EligibleOption = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder for finished examples. (default: OUT.work)", show_default=False)
    ] = None,
    keep_work: Annotated[
        bool, typer.Option("--keep-work", help="Leave that folder: another aggregation or k then takes seconds.")
    ] = False,
    engine: EngineOption = "fast",
    memory: MemoryOption = "80%",
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    device_map: DeviceMapOption = "",
    date: DateOption = "",
    skip_bad_rows: SkipOption = False,
    ignore: IgnoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make steering vectors from preference pairs. Interrupted, the same command goes on where it stopped."""
    from grains_ref.fitting import checked_examples, resumable_fit
    from grains_ref.fitting.work_folder import open_work_folder

    choose_hp = common.hyper_parameters(
        preset,
        k=k,
        m=m,
        attribution=attribution,
        aggregation=aggregation,
        objective=objective,
        path_baseline=path_baseline,
        mask_baseline=mask_baseline,
        eligible=eligible,
    )
    chosen_engine = common.engine_name(engine, memory)
    folder = work or output.with_name(output.name + ".work")
    with only_writer_of(output, what="a fit or a sweep"), open_work_folder(folder) as work_folder:
        check_target(output)  # once more: --out may be the folder that has just been made
        file = common.read_pair_file(pairs, skip_bad_rows=skip_bad_rows, ignore=ignore)
        wrapped = common.load_model(model, dtype, device, device_map, date)
        hp = choose_hp(wrapped)
        fitted_pairs, examples, skipped = checked_examples(wrapped, file.pairs, skip_bad_rows=skip_bad_rows)
        common.report_skipped(skipped)
        finished = 0
        with console.progress_bar() as progress:
            bar = progress.add_task("examples", total=len(examples))

            def show(n: int) -> None:
                nonlocal finished
                finished = n
                progress.update(bar, completed=n)

            try:
                record = resumable_fit(
                    wrapped,
                    fitted_pairs,
                    examples,
                    hp,
                    work=work_folder,
                    on_example=show,
                    engine=chosen_engine,
                    memory=memory,
                )
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"{finished} of {len(examples)} examples are finished and kept in {folder}; "
                    "run the same command to go on"
                ) from None
        record.vectors.save(output)
        left = [] if keep_work else work_folder.discard()
    strangers = [path.name for path in left if path.resolve() != output.resolve()]
    if strangers:
        console.err.print(f"left in {folder}, as not of this fit or not to be removed: {some_of(strangers)}")
    facts = _facts(examples, record, hp)
    if as_json:
        places = {"vectors": str(output), "skipped": len(file.skipped) + len(skipped)}
        console.out.print_json(data=facts | places)
        return
    if record.resumed:
        count = f"{record.resumed} of {len(examples)} examples"
        console.err.print(f"{count} had been finished earlier and were not computed again")
    title = f"{len(examples)} examples -> {output}"
    console.out.print(console.table_of(title, ("", ""), list(facts["words"].items())))
    console.out.print(f"Next: choose a strength with 'grains-ref sweep', or look with 'grains-ref inspect {output}'.")


def _facts(examples: Sequence[Example], record: FitRecord, hp: HyperParameters) -> dict[str, Any]:
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
    return {
        "examples": len(examples),
        "resumed": record.resumed,
        "hyper_parameters": hp.as_dict(),
        "selected_by_kind": dict(kinds),
        "sets_with_last_token": with_last,
        "short_sets": short,
        "empty_sets": empty,
        "words": words,
    }
