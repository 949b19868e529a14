"""`grains-ref reproduce`: the paper's tables and figures, in miniature, on a small real model, or on the full ones."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from grains_ref.cli import reproduce_real
from grains_ref.cli.common import EngineOption, IgnoreOption, engine_name
from grains_ref.cli.console import err, guarded, out, progress_bar, table_of
from grains_ref.cli.report import ReportOption, check_page, write_report
from grains_ref.files import FileError, only_writer, write_whole

if TYPE_CHECKING:
    from grains_ref.reproduction.cells import MakeLab
    from grains_ref.reproduction.full import FullRung
    from grains_ref.reproduction.kept import Cell, Unit
    from grains_ref.reproduction.paper import TableSpec

Rung = Literal["tiny", "real", "full"]
SEEDS = (0, 1, 2)
FULL_SEEDS = (0,)  # of the splits


@dataclass(frozen=True)
class Plan:
    """What was asked for: for each table, figure or further page the worlds (or columns) it is about."""

    tables: dict[TableSpec, tuple[str, ...]]
    figures: dict[str, tuple[str, ...]]
    extras: dict[str, tuple[str, ...]]
    seeds: tuple[int, ...]

    def cells(self) -> list[tuple[str, int, str]]:
        """Every cell that is needed, once; what shares a model together, in the order of the rows."""
        from grains_ref.reproduction.curves import CURVES
        from grains_ref.reproduction.edit_questions import ROWS, START
        from grains_ref.reproduction.pages import STRENGTH_ROWS
        from grains_ref.reproduction.paper import COST_ROWS, figure_rows, kind_of, needed
        from grains_ref.reproduction.recommended import rows_needed
        from grains_ref.reproduction.rows import CANDIDATES, rows_of

        needed_cells = {cell for spec, worlds in self.tables.items() for cell in needed(spec, worlds, self.seeds)}
        for name, worlds in (*self.figures.items(), *self.extras.items()):
            for world in worlds:
                rows: dict[str, list[str]] = {
                    "candidates": ["unsteered", "GrAInS", *CANDIDATES],
                    "cost": COST_ROWS[kind_of(world)],
                    "figure 5": ["GrAInS"],
                    "figure 6": [*figure_rows(kind_of(world)).values()],
                    "recommended": rows_needed(kind_of(world)),
                    "edit strengths": [*STRENGTH_ROWS],
                    "edit verdicts": ["unsteered", START, *ROWS],
                }
                needed_cells |= {(world, seed, row) for seed in self.seeds for row in rows.get(name, [name])}
        order = {
            kind: {name: i for i, name in enumerate((*rows_of(is_visual=kind == "visual"), *CURVES))}
            for kind in ("text", "visual")
        }
        return sorted(needed_cells, key=lambda cell: (cell[1], cell[0], order[kind_of(cell[0])][cell[2]]))


@guarded
def reproduce(
    rung: Annotated[
        Rung, typer.Option(help="tiny: planted worlds; real: a released small model; full: the paper's models.")
    ] = "tiny",
    everything: Annotated[bool, typer.Option("--all", help="Every table, figure and open question.")] = False,
    table: Annotated[list[int] | None, typer.Option(help="A table of the paper, 1 to 8; may be repeated.")] = None,
    figure: Annotated[list[int] | None, typer.Option(help="A figure of the paper: 3, 5 or 6.")] = None,
    question: Annotated[
        list[str] | None,
        typer.Option(help="A further page (examples, layers, ...); full rung: cost."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Training seed 0 only; with --all the paper's tables and figures only.")
    ] = False,
    output: Annotated[Path, typer.Option("--out", help="Folder for cells, record, page and figures.")] = Path(
        "reproduction"
    ),
    workers: Annotated[int, typer.Option(help="Models side by side. (default: one per core; full: 1)")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be run and what is missing.")] = False,
    weights: Annotated[list[str] | None, typer.Option(help="Full rung: MODEL=FOLDER (or hub id).")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Full rung: DATASET=FOLDER (or hub id).")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Full rung: NAME=FOLDER of any text model, in the place of the paper's."),
    ] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option(help="Full rung: NAME=FILE or FOLDER of any pairs, in the place of the paper's datasets."),
    ] = None,
    ignore: IgnoreOption = None,
    judge_url: Annotated[str, typer.Option(help="Full rung: an OpenAI-compatible endpoint.")] = "",
    judge_model: Annotated[str, typer.Option(help="Full rung: the judge's model.")] = "",
    ability: Annotated[
        list[str] | None,
        typer.Option(
            help="Full rung, tables 4 and 5: a further test of ability: humaneval, writing_prompts or xstory_cloze."
        ),
    ] = None,
    run_code: Annotated[
        bool, typer.Option("--confirm-run-unsafe-code", help="Let humaneval run what the models write, here.")
    ] = False,
    device: Annotated[str, typer.Option(help="Full rung: where the models run.")] = "cuda",
    dtype: Annotated[str, typer.Option(help="Full rung: bfloat16, float16 or float32.")] = "bfloat16",
    engine: EngineOption = "fast",
    report: ReportOption = None,
) -> None:
    """Re-enact tables and figures of the paper; finished cells are kept, so an interrupted run goes on."""
    check_page(report)
    if output.exists() and not output.is_dir():
        raise FileError(
            f"--out {output} is a file; expected a folder for cells and pages, which is made if it is missing"
        )
    chosen_engine = engine_name(engine)
    if report and dry_run:
        raise ValueError("--dry-run runs nothing, so that there is nothing to --report")
    if rung == "real":
        if report:
            raise ValueError("--report is for the tiny and the full rung; the real one writes tables.md and curves.png")
        if table or figure or question or weights or data or judge_url or judge_model or ability or run_code:
            raise ValueError("--rung real has one table: give --all, or --quick for split 0 only")
        if chosen_engine != "fast":
            raise ValueError("--engine is for the tiny and the full rung; the real one computes with the fast engine")
        if not everything and not quick:
            raise ValueError("nothing to do: give --all, or --quick for split 0 only")
        reproduce_real.carry_out(output, quick=quick, workers=workers, dry_run=dry_run)
        return
    if rung == "tiny":
        if weights or data or model or pairs or ignore or judge_url or judge_model or ability or run_code:
            raise ValueError(
                "--weights, --data, --model, --pairs, --ignore, --judge-..., --ability and --confirm-run-unsafe-code "
                "are for --rung full; the tiny rung needs nothing"
            )
        plan = _tiny_plan(everything, table or [], figure or [], question or [], quick=quick)
        from grains_ref.reproduction.cells import tiny_lab

        workers = workers or os.cpu_count() or 1
        inputs = {"rung": "tiny", "engine": chosen_engine}
        make_lab = functools.partial(tiny_lab, engine=chosen_engine)
        _carry_out(plan, make_lab, inputs, output, workers=workers, dry_run=dry_run)
        _write_report(report, output, inputs)
        return
    if quick:
        raise ValueError("--quick is for the tiny rung")
    full_rung = _full_rung(
        weights or [], data or [], model or [], pairs or [], ignore or [], judge_url, judge_model, device, dtype, output
    )
    full_rung = replace(
        full_rung, abilities=tuple(dict.fromkeys(ability or [])), run_code=run_code, engine=chosen_engine
    )
    plan = _full_plan(everything, table or [], figure or [], question or [], full_rung)
    if _report_inventory(plan, full_rung) and not dry_run:
        raise ValueError("something is missing (see above); nothing was run")
    if not dry_run:
        _carry_out(plan, full_rung, _inputs(full_rung), output, workers=workers or 1, dry_run=False)
        _write_report(report, output, _inputs(full_rung))


# ---------------------------------------------------------------------------------------------- what to run
def _tiny_plan(
    everything: bool, table: Sequence[int], figure: Sequence[int], question: Sequence[str], *, quick: bool
) -> Plan:
    """The tables, figures and further pages that were asked for, on the planted worlds.

    Raises:
        ValueError: nothing was asked for, or something that does not exist.
    """
    from grains_ref.reproduction.edit_verdicts import VERDICTS
    from grains_ref.reproduction.pages import EXTRAS, FIGURES, OF_DOUBLE_WORLD
    from grains_ref.reproduction.paper import TABLES, WORLDS_OF
    from grains_ref.reproduction.questions import QUESTIONS

    specs = {spec.name: spec for spec in (*TABLES, *QUESTIONS)}
    further = (*EXTRAS, *VERDICTS)
    known = (*specs, *FIGURES, *further)
    shown_in_paper = [spec.name for spec in TABLES] + [name for name in FIGURES if name.startswith("figure")]
    names = shown_in_paper if everything and quick else _names(everything, table, figure, question, known=known)
    worlds = (*WORLDS_OF["text"], *WORLDS_OF["visual"])
    return Plan(
        tables={specs[name]: WORLDS_OF[specs[name].kind] for name in names if name in specs},
        figures={name: worlds for name in names if name in FIGURES},
        extras={name: ("double",) if name in OF_DOUBLE_WORLD else worlds for name in names if name in further},
        seeds=SEEDS[:1] if quick else SEEDS,
    )


def _full_plan(
    everything: bool, table: Sequence[int], figure: Sequence[int], question: Sequence[str], rung: FullRung
) -> Plan:
    """The same on the full models; rows that only a planted world can have are left out.

    Raises:
        ValueError: what was asked for is of models that see, and one's own models or pairs were named; or further
            abilities were asked for, and no table that has them.
    """
    from grains_ref.reproduction.full import COLUMNS, columns_of, without_planted_rows
    from grains_ref.reproduction.pages import EXTRAS, FIGURES
    from grains_ref.reproduction.paper import TABLES, WITH_ABILITIES, with_abilities

    specs = {spec.name: with_abilities(without_planted_rows(spec), rung.abilities) for spec in TABLES}
    names = _names(everything, table, figure, question, known=tuple(COLUMNS))
    if rung.abilities and not set(names) & set(WITH_ABILITIES):
        raise ValueError(f"--ability adds to {' and '.join(WITH_ABILITIES)}; ask for one of them, or leave it out")
    columns = {name: columns_of(name, rung) for name in names}
    if everything:
        names = [name for name in names if columns[name]]
    elif without := [name for name in names if not columns[name]]:
        raise ValueError(
            f"{', '.join(without)}: of models that see; --model and --pairs take texts. Leave them out, or ask for "
            "a table of text models: table 1, 4 or 6"
        )
    return Plan(
        tables={specs[name]: columns[name] for name in names if name in specs},
        figures={name: columns[name] for name in names if name in FIGURES},
        extras={name: columns[name] for name in names if name in EXTRAS},
        seeds=FULL_SEEDS,
    )


def _names(
    everything: bool, table: Sequence[int], figure: Sequence[int], question: Sequence[str], *, known: Sequence[str]
) -> list[str]:
    if everything:
        return [*known]
    names = [f"table {n}" for n in table] + [f"figure {n}" for n in figure] + [*question]
    there = ", ".join(map(repr, known))  # some names have commas
    if not names:
        raise ValueError(f"nothing to do: give --all, --table, --figure or --question; there are {there}")
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"there is no {', '.join(map(repr, unknown))}; there are {there}")
    return names


def _full_rung(
    weights: Sequence[str],
    data: Sequence[str],
    model: Sequence[str],
    pairs: Sequence[str],
    ignore: Sequence[str],
    judge_url: str,
    judge_model: str,
    device: str,
    dtype: str,
    output: Path,
) -> FullRung:
    """Where everything lies.

    Raises:
        ValueError: an option is not NAME=PLACE, names something unknown or that is taken, or half a judge was given.
    """
    from grains_ref.datasets.registry import NAMES
    from grains_ref.evaluation.judge import ChatJudge
    from grains_ref.evaluation.verdicts import Cached
    from grains_ref.reproduction.full import LLMS, VLMS, FullRung
    from grains_ref.reproduction.paper import WORLDS_OF
    from grains_ref.tiny_models.full_size import find_weights

    if bool(judge_url) != bool(judge_model):
        raise ValueError("a judge needs both --judge-url and --judge-model")
    judge = None
    if judge_url:
        output.mkdir(parents=True, exist_ok=True)
        judge = Cached(ChatJudge(judge_url, model=judge_model), output / "verdicts.jsonl")
    of_environment = {name: str(folder) for name in (*LLMS, *VLMS) if (folder := find_weights(name))}
    taken = {*LLMS, *VLMS, *NAMES, *WORLDS_OF["text"], *WORLDS_OF["visual"], "double"}
    return FullRung(
        weights=of_environment | _places(weights, "--weights", (*LLMS, *VLMS)) | _own_places(model, "--model", taken),
        data=_places(data, "--data", NAMES),
        judge=judge,
        device=device,
        dtype=dtype,
        pairs=_own_places(pairs, "--pairs", taken),
        ignore=tuple(ignore),
    )


def _places(options: Sequence[str], option: str, known: Sequence[str]) -> dict[str, str]:
    places = {}
    for text in options:
        name, equals, place = text.partition("=")
        if not equals or not place or name not in known:
            raise ValueError(f"{option} {text!r}: expected NAME=FOLDER with one of the names {', '.join(known)}")
        places[name] = place
    return places


def _own_places(options: Sequence[str], option: str, taken: Collection[str]) -> dict[str, str]:
    """One's own models or pairs by the names that they are given."""
    from grains_ref.reproduction.local import check_name

    places: dict[str, str] = {}
    for text in options:
        name, equals, place = text.partition("=")
        if not equals or not place:
            raise ValueError(f"{option} {text!r}: expected NAME=PLACE with a name of your own")
        check_name(name, taken={*taken, *places})
        places[name] = place
    return places


def _report_inventory(plan: Plan, rung: FullRung) -> int:
    """Say what there is and what is missing; the number of missing things."""
    from grains_ref.reproduction.full import inventory

    parts_of_plan = (*plan.tables.values(), *plan.figures.values(), *plan.extras.values())
    columns = list(dict.fromkeys(column for worlds in parts_of_plan for column in worlds))
    parts = inventory(columns, rung)
    rows = [(f"{part.kind} {part.name}", "missing" if part.missing else "there", part.checked) for part in parts]
    out.print(table_of(f"The full rung: {len(columns)} columns", ("needed", "", "checked here"), rows))
    missing = [part for part in parts if part.missing]
    for part in missing:
        out.print(f"{part.kind} {part.name}: {part.missing}")
    out.print(f"\n{len(missing)} of {len(parts)} things are missing." if missing else "\nNothing is missing.")
    return len(missing)


def _inputs(rung: FullRung) -> dict[str, str]:
    """What the cells of the full rung depend on beside their names."""
    inputs = {"rung": "full", "dtype": rung.dtype, "device": rung.device.partition(":")[0], "pairs": str(rung.n)}
    inputs |= {"engine": rung.engine}
    inputs |= {"dev and test tasks": ", ".join(map(str, rung.n_tasks))}
    inputs |= {"further abilities": ", ".join(sorted(rung.abilities)) or "none"}
    inputs |= {f"weights of {name}": place for name, place in rung.weights.items()}
    inputs |= {f"data of {name}": place for name, place in rung.data.items()}
    for name, place in rung.pairs.items():
        inputs[f"pairs of {name}"] = f"{place}, {rung.own_pairs(name, seed=0).digest}"
    return inputs | ({"judge": rung.judge.identity} if rung.judge else {})


# ------------------------------------------------------------------------------------------------ running
def _carry_out(
    plan: Plan, make_lab: MakeLab, inputs: dict[str, str], output: Path, *, workers: int, dry_run: bool
) -> None:
    """Fill the cells that are missing, and write what all of them say; no other run can use the folder meanwhile."""
    from grains_ref.reproduction.kept import claim, missing, read_cell

    cells = plan.cells()
    if dry_run:
        units = missing(output, cells, on_damage=_tell_damage)
        _tell_plan(cells, units)
        for world, seed, names in units:
            out.print(f"{world}, seed {seed}: {', '.join(names) or 'which fact each prompt is about'}")
        return
    output.mkdir(parents=True, exist_ok=True)
    with only_writer(output, what="a reproduction"):
        claim(output, inputs)
        units = missing(output, cells, on_damage=_tell_damage)
        _tell_plan(cells, units)
        if units:
            _run(units, make_lab, output, workers=workers)
        finished: dict[tuple[str, int, str], Cell] = {}
        for world, seed, name in cells:
            cell = read_cell(output, world, seed, name)
            if cell is None:
                raise ValueError(f"cell {name!r} of {world}, seed {seed} was run and is not there; is the disk full?")
            finished[world, seed, name] = cell
        _write(plan, finished, output, engine=inputs["engine"])


def _tell_damage(problem: FileError) -> None:
    err.print(f"{problem}; what it held is run again", style="yellow")


def _tell_plan(cells: Sequence[tuple[str, int, str]], units: Sequence[Unit]) -> None:
    left = sum(len(names) for _, _, names in units)
    err.print(f"{len(cells)} cells, {len(cells) - left} of them finished; {len(units)} models to work on")


def _run(units: Sequence[Unit], make_lab: MakeLab, output: Path, *, workers: int) -> None:
    from grains_ref.reproduction.cells import run
    from grains_ref.reproduction.kept import missing

    with progress_bar() as progress:
        bar = progress.add_task("starting", total=sum(len(names) for _, _, names in units))

        def tick(what: str, finished: int) -> None:
            progress.update(bar, advance=finished, description=f"{what:50}")

        try:
            run(output, units, make_lab=make_lab, workers=min(workers, len(units)), tick=tick)
        except KeyboardInterrupt:
            asked = [(world, seed, name) for world, seed, names in units for name in names]
            left = sum(len(names) for _, _, names in missing(output, asked, on_damage=_tell_damage))
            raise KeyboardInterrupt(
                f"{len(asked) - left} of {len(asked)} cells that were missing are finished and kept in {output}; run "
                "the same command to go on"
            ) from None


def _write(plan: Plan, cells: dict[tuple[str, int, str], Cell], output: Path, *, engine: str) -> None:
    """The page, the record and the figures."""
    from grains_ref.reproduction import pages
    from grains_ref.reproduction.curves import CURVES
    from grains_ref.reproduction.edit_verdicts import VERDICTS
    from grains_ref.reproduction.kept import read_facts
    from grains_ref.reproduction.statistics import results
    from grains_ref.reproduction.transfer import without_outcomes
    from grains_ref.vectors import library_versions

    models = dict.fromkeys((world, seed) for world, seed, _ in cells)
    facts = {(world, seed): read_facts(output, world, seed) for world, seed in models}
    parts = [pages.LEGEND] if plan.tables else []
    content: dict[str, Any] = {"seeds": list(plan.seeds), "engine": engine, "versions": library_versions()}
    content |= {"tables": {}, "figures": {}, "curves": {}}
    for spec, worlds in plan.tables.items():
        of_table = results(spec, worlds, cells, facts, plan.seeds)
        parts.append(pages.table_page(spec, worlds, of_table))
        content["tables"][spec.name] = pages.rows_record(of_table)
    for name, worlds in plan.figures.items():
        draw, caption = pages.FIGURES[name]
        file = f"{name.replace(' ', '-')}.png"
        content["figures"][name] = draw(cells, worlds, plan.seeds, output / file)
        parts.append(f"### {name.capitalize()}. {caption}\n\n![{name}]({file})\n")
    for name, worlds in plan.extras.items():
        if name in VERDICTS:
            parts.append(VERDICTS[name](cells, facts, worlds, plan.seeds))
        else:
            parts.append(pages.EXTRAS[name](cells, worlds, plan.seeds))
        if name in CURVES:
            curves = {world: [cells[world, seed, name]["curve"] for seed in plan.seeds] for world in worlds}
            if name in pages.OF_DOUBLE_WORLD:
                curves = {world: [without_outcomes(curve) for curve in of_world] for world, of_world in curves.items()}
            content["curves"][name] = curves
    content["cost"] = pages.cost_record(cells)
    write_whole(output / "tables.md", "\n".join(parts))
    write_whole(output / "record.json", json.dumps(content, indent=1) + "\n")
    out.print("\n".join(parts), soft_wrap=True)
    drawn = "".join(f", {name.replace(' ', '-')}.png and .svg" for name in plan.figures)
    err.print(f"written to {output}/: tables.md, record.json{drawn}")


def _write_report(path: Path | None, output: Path, inputs: dict[str, str]) -> None:
    """The page that --report asks for: the tables and figures."""
    if path is None:
        return
    from grains_ref.report.folder import tables_of

    write_report(path, "The paper's tables and figures", [tables_of(output)], list(inputs.items()))
