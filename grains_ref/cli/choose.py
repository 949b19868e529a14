"""`grains-ref sweep`: choose a strength on dev data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grains_ref.cli import common, console
from grains_ref.cli.choice_tables import LayerNames, choice_record, print_choice
from grains_ref.cli.common import (
    BaseOption,
    DateOption,
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    EligibleOption,
    EngineOption,
    IgnoreOption,
    JsonOption,
    MemoryOption,
    ModelOption,
    PresetOption,
    SkipOption,
)
from grains_ref.cli.lists import check_each_once, parse_layers, parse_strengths, parse_whole_numbers
from grains_ref.cli.report import ReportOption, check_page, model_facts, write_report
from grains_ref.files import check_target, only_writer_of, some_of
from grains_ref.files.processes import first, held_by_first

if TYPE_CHECKING:
    from rich.progress import TaskID

    from grains_ref.cli.lists import Layers
    from grains_ref.data import PreferencePair, Task
    from grains_ref.evaluation.choice import LimitedChoice
    from grains_ref.fitting import FitRecord, WorkFolder
    from grains_ref.grains import Example, Hooks, HyperParameters
    from grains_ref.models import HuggingFaceModel
    from grains_ref.vectors import SteeringVectors

STRENGTHS = "0.4,0.63,1,1.6,2.5,4,6.3,10"  # what is tried of GrAInS


# ------------------------------------------------------------------------------------- sweep
@console.guarded
@console.split
def sweep(
    model: ModelOption,
    dev: Annotated[Path, typer.Option(help="Other pairs to choose the setting on (JSONL).")],
    pairs: Annotated[
        Path | None, typer.Option(help="Pairs to make vectors of GrAInS from (JSONL).", show_default=False)
    ] = None,
    vectors: Annotated[
        Path | None,
        typer.Option(help="Instead of pairs: vectors of any method that 'fit' wrote.", show_default=False),
    ] = None,
    tasks: Annotated[
        Path | None, typer.Option(help="Tasks that must not suffer (JSONL: prompt, answer).", show_default=False)
    ] = None,
    max_loss: Annotated[
        float, typer.Option(help="Largest loss of task accuracy allowed on dev, in points.", min=0, max=100)
    ] = 0.5,
    lam: Annotated[
        str,
        typer.Option(
            help=f"Strengths. (default: {STRENGTHS}; of an edit gradient from 0.001 to 3.2)", show_default=False
        ),
    ] = "",
    ks: Annotated[str, typer.Option("--k", help="Tokens per sign. (from the preset)", show_default=False)] = "",
    layers: Annotated[list[str] | None, typer.Option(help="Layer sets, one per option; default all.")] = None,
    aggregation: Annotated[list[str] | None, typer.Option(help="Aggregations, one per option; default pca.")] = None,
    eligible: EligibleOption = None,
    preset: PresetOption = "",
    output: Annotated[
        Path | None, typer.Option("--out", help="Write the chosen vectors and strength here.", show_default=False)
    ] = None,
    no_signal: Annotated[
        bool, typer.Option("--no-signal", help="With --pairs: do not measure whether the chosen vectors mean anything.")
    ] = False,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Folder for what is finished. (default: OUT.work; without --out nothing is kept)", show_default=False
        ),
    ] = None,
    keep_work: Annotated[
        bool, typer.Option("--keep-work", help="Leave that folder: another grid then costs what is new in it.")
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
    """Choose strength, k, layers and aggregation on dev data, under a limit on what the tasks may lose.

    Interrupted, the same command goes on where it stopped.
    """
    from grains_ref.data import content_digest
    from grains_ref.evaluation import Grid
    from grains_ref.evaluation import sweep as sweep_grid
    from grains_ref.fitting import FitRecord, checked_examples, steering_vectors

    if (pairs is None) == (vectors is None):
        raise ValueError("give --pairs to make vectors from, or --vectors that are there already; one of them")
    folder = work or (output.with_name(output.name + ".work") if output else None)
    if keep_work and not folder:
        raise ValueError("--keep-work keeps the work folder: name one with --work, or a file with --out")
    check_page(report)
    chosen_engine = common.engine_name(engine, memory)
    layer_sets = [parse_layers(text) for text in layers or ["all"]]
    ending = _Ending(model, dev, output, folder, keep_work, as_json, report)
    if vectors:
        of_pairs = {"--k": ks, "--aggregation": aggregation, "--eligible": eligible, "--preset": preset}
        if named := [option for option, value in of_pairs.items() if value]:
            raise ValueError(f"{', '.join(named)}: how vectors are made; those of --vectors are made already")
        _sweep_given(
            vectors,
            lam,
            layer_sets,
            ending,
            load=lambda: common.load_model(model, dtype, device, device_map, date, base),
            dev_pairs=lambda: common.read_pair_file(dev, skip_bad_rows=skip_bad_rows, ignore=ignore).pairs,
            tasks=lambda: common.read_task_file(tasks, ignore=ignore),
            max_loss=max_loss,
        )
        return
    assert pairs is not None
    lams = parse_strengths(lam or STRENGTHS, "--lam")
    aggregations = aggregation or ["pca"]
    check_each_once(aggregations, "--aggregation")
    sizes: list[int | None] = [None]
    if ks:
        sizes = [*parse_whole_numbers(ks, "--k", least=1)]
    choose_hps = [
        common.hyper_parameters(preset, k=size, aggregation=name, eligible=eligible)
        for size in sizes
        for name in aggregations
    ]
    with ending.hold() as work_folder:
        fit_file = common.read_pair_file(pairs, skip_bad_rows=skip_bad_rows, ignore=ignore)
        dev_file = common.read_pair_file(dev, skip_bad_rows=skip_bad_rows, ignore=ignore)
        if shared := len(_prompts(fit_file.pairs) & _prompts(dev_file.pairs)):
            where = f"in both {pairs} and {dev}"
            raise ValueError(f"{shared} prompts are {where}; choosing on them would flatter the vectors")
        task_list = common.read_task_file(tasks, ignore=ignore)

        wrapped = common.load_model(model, dtype, device, device_map, date, base)
        layer_names = {tuple(layer_set.of(len(wrapped.blocks))): layer_set.text for layer_set in layer_sets}
        grid = Grid(
            lams=tuple(lams), hps=tuple(choose_hp(wrapped) for choose_hp in choose_hps), layer_sets=tuple(layer_names)
        )
        fitted_pairs, examples, skipped = checked_examples(wrapped, fit_file.pairs, skip_bad_rows=skip_bad_rows)
        common.report_skipped(skipped)
        with _progress(folder) as show:
            choice = sweep_grid(
                wrapped,
                examples,
                dev_file.pairs,
                task_list,
                grid=grid,
                max_loss=max_loss,
                on_progress=show,
                work=work_folder,
                engine=chosen_engine,
                memory=memory,
            )

        @functools.cache
        def made() -> SteeringVectors:
            best = choice.best
            digest = content_digest(fitted_pairs)
            vectors = steering_vectors(wrapped, best.fit, best.hp, digest, examples, engine=chosen_engine)
            if no_signal or not work_folder:
                return vectors
            return _with_signal(wrapped, examples, FitRecord(vectors, best.fit, best.shifts, 0), best.hp, work_folder)

        ending.finish(choice, made, layer_names, work_folder)
        has_chats = _has_chats([*fitted_pairs, *dev_file.pairs])
        ending.write_report(choice, made() if report else None, layer_names, wrapped, has_chats=has_chats)


def _with_signal(
    model: HuggingFaceModel, examples: Sequence[Example], record: FitRecord, hp: HyperParameters, work: WorkFolder
) -> SteeringVectors:
    """The chosen vectors, whose header says whether they mean anything, as `fit` writes it."""
    from grains_ref.fitting.signal import grains_signal, with_signal

    def nothing(done: int) -> None:
        """Nobody looks at the progress of this."""

    with console.err.status("measuring the signal"):
        try:
            signal = grains_signal(model, examples, record, hp, work=work, on_pair=nothing)
        except ArithmeticError as error:  # the vectors are chosen, and are not lost over it
            console.err.print(f"the signal's slope was not measured: {error}", style="yellow")
            signal = grains_signal(model, examples, record, hp, work=work, on_pair=nothing, with_gradient=False)
    return with_signal(record.vectors, signal)


def _sweep_given(
    path: Path,
    lam: str,
    layer_sets: Sequence[Layers],
    ending: _Ending,
    *,
    load: Callable[[], HuggingFaceModel],
    dev_pairs: Callable[[], Sequence[PreferencePair]],
    tasks: Callable[[], Sequence[Task]],
    max_loss: float,
) -> None:
    """Strength and layers for vectors that are there already, at their own site and positions."""
    from grains_ref.evaluation.given import sweep_vectors
    from grains_ref.files import digest_of, read_whole
    from grains_ref.methods.edit_gradient import LAMS
    from grains_ref.vectors import SteeringVectors

    vectors = SteeringVectors.load(path)
    of_method = ",".join(f"{lam:g}" for lam in LAMS) if vectors.header.method == common.EDIT_GRADIENT else STRENGTHS
    lams = parse_strengths(lam or of_method, "--lam")
    digest = digest_of(read_whole(path))
    with ending.hold() as work_folder:
        pairs, task_list = dev_pairs(), tasks()
        wrapped = load()
        layer_names = {tuple(layer_set.of(len(wrapped.blocks))): layer_set.text for layer_set in layer_sets}

        def steer(strength: float, layers: tuple[int, ...]) -> Hooks:
            in_use = common.VectorsInUse(vectors, strength, parse_layers(layer_names[layers]))
            return in_use.steering(wrapped, force=False, chat=_has_chats(pairs))

        steer(0.0, next(iter(layer_names)))  # refuses vectors of another model before the work
        with _progress(ending.folder) as show:
            choice = sweep_vectors(
                wrapped,
                steer,
                pairs,
                task_list,
                digest=digest,
                lams=lams,
                layer_sets=list(layer_names),
                max_loss=max_loss,
                on_progress=show,
                work=work_folder,
            )
        ending.finish(choice, lambda: vectors, layer_names, work_folder)
        ending.write_report(choice, vectors, layer_names, wrapped, has_chats=_has_chats(pairs))


@dataclass(frozen=True)
class _Ending:
    """What a sweep writes, leaves and says, whatever it chose among."""

    model: str
    dev: Path
    output: Path | None
    folder: Path | None
    keep_work: bool
    as_json: bool
    report: Path | None = None

    @contextmanager
    def hold(self) -> Iterator[WorkFolder | None]:
        """Nobody else writes the output, or uses the work folder, meanwhile."""
        from grains_ref.fitting.work_folder import open_work_folder

        with ExitStack() as held:
            if self.output:
                held.enter_context(held_by_first(only_writer_of(self.output, what="a fit or a sweep")))
            work_folder = held.enter_context(open_work_folder(self.folder, work="sweep")) if self.folder else None
            if output := self.output:
                first(lambda: check_target(output))  # once more: --out may be the folder that has just been made
            yield work_folder

    def finish(
        self,
        choice: LimitedChoice[Any],
        made: Callable[[], SteeringVectors],
        layer_names: LayerNames,
        work_folder: WorkFolder | None,
    ) -> None:
        """Write what was chosen and tell it.  made: the chosen vectors."""
        output, best = self.output, choice.best
        written: Path | None = None
        signal: dict[str, Any] = {}
        left: Sequence[Path] = ()
        try:
            if output and best.lam != 0:
                vectors = made()
                signal = vectors.header.signal
                chosen = replace(vectors, header=replace(vectors.header, choice=choice.record()))
                first(lambda: chosen.save(output))
                written = output
            if work_folder and not self.keep_work:
                left = work_folder.discard()
        finally:  # what was chosen is told although the disk may be full
            for left_out in choice.left_out:
                console.err.print(f"left out: {left_out.what}: {left_out.why}", style="yellow")
            if self.as_json:
                record = choice_record(choice, layer_names) | {"vectors": str(written) if written else None}
                record["signal"] = signal
                console.out.print_json(data=record)
            else:
                title = f"Accuracy on {self.dev} ({choice.n_dev} pairs); * is chosen"
                print_choice(choice, layer_names, title=title)
                console.print_signal(signal)
        strangers = [path.name for path in left if not output or path.resolve() != output.resolve()]
        if strangers:
            console.err.print(f"left in {self.folder}, as not of this sweep or not to be removed: {some_of(strangers)}")
        if self.as_json or not output:
            return
        if written:
            again = f"grains-ref eval --model {self.model} --vectors {written} --pairs TEST"
            console.out.print(
                f"Next: {again}\n({written} holds lam {best.lam:g} and layers {layer_names[best.layers]}.)"
            )
        else:
            console.out.print(f"Nothing was written to {output}.", style="yellow")

    def write_report(
        self,
        choice: LimitedChoice[Any],
        vectors: SteeringVectors | None,
        layer_names: LayerNames,
        model: HuggingFaceModel,
        *,
        has_chats: bool,
    ) -> None:
        """The page that --report asks for.  vectors: what was chosen, with its layers; None: there is no page."""
        if not self.report or not vectors:
            return
        from grains_ref.report.folder import of_sweep
        from grains_ref.report.layers import Layers
        from grains_ref.report.provenance import facts_of

        header = replace(vectors.header, choice=choice.record())
        sections = [of_sweep(choice_record(choice, layer_names)), Layers(replace(vectors, header=header))]
        facts = model_facts(model, chat=has_chats)
        known = {name for name, _ in facts}
        facts += [("dev pairs", str(self.dev)), *(fact for fact in facts_of(vectors) if fact[0] not in known)]
        write_report(self.report, f"Strengths on {self.dev.name}", sections, facts)


@contextmanager
def _progress(folder: Path | None) -> Iterator[Callable[[str, int, int], None]]:
    """Bars for what a sweep does; an interruption says what is kept of it."""
    finished: dict[str, str] = {}
    with console.progress_bar() as progress:
        bars: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            finished[what] = f"{done} of {total} ({what})"
            if what not in bars:
                bars[what] = progress.add_task(what, total=total)
            progress.update(bars[what], completed=done)

        try:
            yield show
        except KeyboardInterrupt:
            if folder is None:
                raise KeyboardInterrupt("nothing is kept: give --out or --work to go on another time") from None
            counts = ", ".join(finished.values()) or "nothing yet"
            raise KeyboardInterrupt(f"finished and kept in {folder}: {counts}; run the same command to go on") from None


def _has_chats(pairs: Sequence[PreferencePair]) -> bool:
    return any(not isinstance(pair.prompt, str) for pair in pairs)


def _prompts(pairs: Sequence[PreferencePair]) -> set[tuple[str, str | tuple[str, ...] | None]]:
    """What is asked in the pairs, word for word and picture by picture."""
    from grains_ref.data import picture_bytes

    return {(repr(pair.prompt), picture_bytes(pair)) for pair in pairs}
