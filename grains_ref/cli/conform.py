"""`grains-ref conform`: is a port right, and if not, which stage diverges first and which known bug is it?

`run`, `smoke`, `dump` and `verify` judge a port on the kit's cases, `live` on a real model and real pairs.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grains_ref.cli import common
from grains_ref.cli.console import err, guarded, out, progress_bar, table_of
from grains_ref.files import check_target, write_whole

if TYPE_CHECKING:
    from grains_ref.conformance.alone import Start
    from grains_ref.conformance.budgets import Budget
    from grains_ref.conformance.dialects import Dialect
    from grains_ref.conformance.live import LiveResult
    from grains_ref.conformance.ports import Port, PythonPort
    from grains_ref.conformance.programs import CommandPort
    from grains_ref.conformance.runner import Run

conform = typer.Typer(
    help="Check a port of the method, stage by stage: Python module, any program, or files.", no_args_is_help=True
)
PortOption = Annotated[
    str, typer.Option(help="A Python module with functions named like the stages.", show_default=False)
]
CmdOption = Annotated[str, typer.Option(help="A program that speaks JSON lines (docs/porting.md).", show_default=False)]
DtypeOption = Annotated[list[str] | None, typer.Option("--dtype", help="Only this dtype; may be given several times.")]
OnlyOption = Annotated[
    list[str] | None, typer.Option("--only", help="Only these cases or stages, as a pattern such as 'steering-*'.")
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write all results here.", show_default=False)]
JunitFile = Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML here.", show_default=False)]
XfailFile = Annotated[
    Path | None,
    typer.Option("--xfails", help="Known failures: one case or pattern per line, # and a reason.", show_default=False),
]
DialectOption = Annotated[str, typer.Option(help="paper, or authors: judged by what the released code computes.")]
ModeOption = Annotated[str, typer.Option(help="all, isolated, again, chained or 'end to end'.")]
NOT_DEFINED = "the port does not define"  # how the reason begins for what nobody expects to be checked
TimeoutOption = Annotated[float, typer.Option(help="Seconds after which a program that does not answer is killed.")]


@conform.command()
@guarded
def run(
    port: PortOption = "",
    cmd: CmdOption = "",
    dtype: DtypeOption = None,
    only: OnlyOption = None,
    mode: ModeOption = "all",
    dialect: DialectOption = "paper",
    xfails: XfailFile = None,
    json_file: JsonFile = None,
    junit: JunitFile = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Random inputs from this seed on, instead of cases.", show_default=False)
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="With --seed: how many inputs for every stage; default 10.")
    ] = None,
    timeout: TimeoutOption = 20.0,
) -> None:
    """Run a port on all cases of the stages it claims. Exit code 0: conformant; 1: not, or nothing claimed."""
    from grains_ref.conformance.module_process import anew

    again = _again("run", port, cmd, dialect)
    start = anew(port, cmd, timeout=timeout)
    if seed is not None:
        if xfails or mode != "all":
            raise ValueError("--xfails and --mode are about cases; leave them out with --seed")
        seeds = range(seed, seed + (count or 10))
        _check_fresh(_port(port, cmd, timeout), seeds, dtype, only, json_file, junit, again, dialect, start)
        return
    if count is not None:
        raise ValueError("--count is the number of random inputs; say with --seed where they begin")
    _check(_port(port, cmd, timeout), dtype, only, mode, xfails, json_file, junit, again, dialect, start)


@conform.command()
@guarded
def smoke(
    port: PortOption = "", cmd: CmdOption = "", dialect: DialectOption = "paper", timeout: TimeoutOption = 20.0
) -> None:
    """Run only the first case of every stage: is the port wired up at all?"""
    only, again = [f"{stage}-001" for stage in _dialect(dialect).oracle], _again("run", port, cmd, dialect)
    _check(_port(port, cmd, timeout), None, only, "isolated", None, None, None, again, dialect)


@conform.command()
@guarded
def dump(
    folder: Annotated[Path, typer.Argument(help="Where to write the cases; must be new or empty.", show_default=False)],
    dtype: DtypeOption = None,
    dialect: DialectOption = "paper",
) -> None:
    """Write all cases as JSON files; fill DIR/out/DTYPE/CASE.json by whatever means, then `verify`."""
    from grains_ref.conformance.ports import encode_values
    from grains_ref.conformance.stages import OUTPUTS
    from grains_ref.conformance.toy import CONSTANTS, FORMULAS, more_weights, toy_weights
    from grains_ref.conformance.vectors import answer_keys

    cases = _dialect(dialect).cases
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; name a new folder")
    for name in ("in", "right"):
        (folder / name).mkdir(parents=True)
    for name in dtype or ["float32"]:
        (folder / "out" / name).mkdir(parents=True)
    for case in cases:
        content = {"case": case.id, "stage": case.stage, "in": encode_values(case.inputs, None)}
        (folder / "in" / f"{case.id}.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
    for case_id, right in answer_keys(dialect).items():
        (folder / "right" / f"{case_id}.json").write_text(json.dumps(right) + "\n", encoding="utf-8")
    weights = encode_values(toy_weights(), None) | {"constants": CONSTANTS}
    (folder / "toy.json").write_text(json.dumps(weights) + "\n", encoding="utf-8")
    more = encode_values(more_weights(), None)
    (folder / "toy-features.json").write_text(json.dumps(more) + "\n", encoding="utf-8")
    names = "; ".join(f"{stage}: {', '.join(outputs)}" for stage, outputs in OUTPUTS.items())
    (folder / "README.txt").write_text(
        "in/CASE.json holds the inputs of one stage or option, toy.json the weights and constants of the toy decoder,\n"
        "and toy-features.json the weights that options of the decoder have besides.\n"
        'Answer in out/DTYPE/CASE.json: {"out": {...}}, or {"refused": "why"} where the input is invalid.\n'
        f"Outputs by stage: {names}.\nThen: grains-ref conform verify {folder}{_unless_paper(dialect)}\n"
        "right/CASE.json holds all that `verify` knows; docs/porting.md gives the rules for judging by it yourself.\n"
        f"`grains-ref conform list options` says what the options take and give.\n\nThe toy decoder:\n\n{FORMULAS}",
        encoding="utf-8",
    )
    out.print(f"{len(cases)} cases written to {folder}/in; how to answer is in {folder}/README.txt")


@conform.command()
@guarded
def verify(
    folder: Annotated[Path, typer.Argument(help="A folder that `dump` wrote and a port filled.", show_default=False)],
    only: OnlyOption = None,
    dialect: DialectOption = "paper",
    xfails: XfailFile = None,
    json_file: JsonFile = None,
    junit: JunitFile = None,
) -> None:
    """Judge the answers in a folder that `dump` wrote."""
    from grains_ref.conformance.ports import FolderPort

    again = f"grains-ref conform verify {folder}{_unless_paper(dialect)}"
    _check(FolderPort(folder), None, only, "isolated", xfails, json_file, junit, again, dialect)


@conform.command(name="list")
@guarded
def list_(
    what: Annotated[str, typer.Argument(help="stages, options, cases, flags or bugs; default: stages.")] = "stages",
    only: OnlyOption = None,
    dialect: DialectOption = "paper",
    json_file: JsonFile = None,
) -> None:
    """Show what the kit has: stages, what options take and give, cases and their flags, planted bugs."""
    from grains_ref.conformance.catalogue import catalogue, lines

    if json_file:
        check_target(json_file)
    tables = catalogue(_dialect(dialect), only or ())
    if what not in tables:
        raise ValueError(f"{what!r} cannot be listed; there are {', '.join(tables)}")
    if not tables[what]:
        named = {"bugs": "names of bugs and stages", "stages": "names of stages", "options": "names of options"}
        expected = named.get(what, "names of stages, cases and flags")
        raise ValueError(f"no {what} match {', '.join(only or ())}; expected {expected}, or patterns of them")
    for line in lines(tables, what):
        out.print(line, soft_wrap=True, highlight=False, markup=False)
    if json_file:
        write_whole(json_file, json.dumps(tables, indent=1) + "\n")


@conform.command()
@guarded
def live(
    model: Annotated[str, typer.Option(help="A local folder, a hub id, or tiny:NAME.", show_default=False)],
    pairs: Annotated[Path, typer.Option(help="Preference pairs (JSONL).", show_default=False)],
    port: Annotated[str, typer.Option(help="A Python module with live_* functions.", show_default=False)],
    seeds: Annotated[int, typer.Option(help="Draws of random vectors and states per pair.")] = 3,
    limit: Annotated[int, typer.Option(help="Use the first pairs only.")] = 8,
    m: Annotated[int, typer.Option(help="Quadrature steps.")] = 5,
    oracle: Annotated[
        bool, typer.Option(help="Compare with the reference in float32 (needs a second copy of the weights).")
    ] = True,
    show_all: Annotated[bool, typer.Option("--all", help="Print every failure, not one of each check.")] = False,
    dtype: common.DtypeOption = "auto",
    device: common.DeviceOption = "cpu",
    ignore: common.IgnoreOption = None,
    json_file: JsonFile = None,
    junit: JunitFile = None,
) -> None:
    """Check a port on a real model and real pairs, at any size. Exit code 0: no failure; 1: failure, or nothing ran."""
    from grains_ref.conformance.live import check_live
    from grains_ref.conformance.live.results import as_run
    from grains_ref.conformance.ports import import_port, words_of
    from grains_ref.conformance.report import write_json, write_junit

    for file in (json_file, junit):
        if file:
            check_target(file)
    sys.path.insert(0, str(Path.cwd()))  # a port is usually developed where the command is typed
    module = import_port(port)
    rows = common.read_pair_file(pairs, skip_bad_rows=False, ignore=ignore).pairs[:limit]
    wrapped = common.load_model(model, dtype, device, "")
    path = common.model_path(model)
    with err.status("checking"):
        results = check_live(wrapped, rows, module, seeds=range(seeds), path=path, m=m, oracle=oracle)
    _print_live(results, title=f"{port} on {model}, {len(rows)} pairs")
    _print_skips(results)
    _print_failures(results, show_all=show_all)
    name = words_of(getattr(module, "NAME", port))
    results_as_run = as_run(results, port=f"{name} on {model}", dtype=str(wrapped.hf.dtype).removeprefix("torch."))
    if json_file:
        write_json(results_as_run, json_file)
    if junit:
        write_junit(results_as_run, junit)
    if results_as_run.failed:
        raise typer.Exit(1)


# ------------------------------------------------------------------------------------- helpers
def _dialect(name: str) -> Dialect:
    from grains_ref.conformance.dialects import DIALECTS

    if name not in DIALECTS:
        raise ValueError(f"dialect {name!r} does not exist; there are {', '.join(DIALECTS)}")
    return DIALECTS[name]


def _unless_paper(dialect: str) -> str:
    return "" if dialect == "paper" else f" --dialect {dialect}"


def _again(command: str, port: str, cmd: str, dialect: str) -> str:
    how = f"--port {port}" if port else f"--cmd {shlex.quote(cmd)}"
    return f"grains-ref conform {command} {how}{_unless_paper(dialect)}"


def _port(port: str, cmd: str, timeout: float) -> CommandPort | PythonPort:
    from grains_ref.conformance.ports import PythonPort
    from grains_ref.conformance.programs import CommandPort

    if bool(port) == bool(cmd):
        raise ValueError("give either --port (a Python module) or --cmd (a program)")
    if cmd:
        return CommandPort(cmd, timeout=timeout)
    sys.path.insert(0, str(Path.cwd()))  # a port is usually developed where the command is typed
    return PythonPort(port)


def _check(port: Port, *options: Any) -> None:
    """Run a port and say what came of it; it is closed whatever comes."""
    try:
        _check_open(port, *options)
    finally:
        port.close()


def _check_open(
    port: Port,
    dtypes: Sequence[str] | None,
    only: Sequence[str] | None,
    mode: str,
    xfails: Path | None,
    json_file: Path | None,
    junit: Path | None,
    repeat: str,
    dialect: str,
    start: Start | None = None,
) -> None:
    import fnmatch

    import torch

    from grains_ref.conformance.alone import ask_alone
    from grains_ref.conformance.budgets import load_budgets, root
    from grains_ref.conformance.runner import ask_case, number_of_cases, read_xfails, run_port
    from grains_ref.conformance.vectors import check_complete

    for file in (json_file, junit):
        if file:
            check_target(file)
    spoken = _dialect(dialect)
    check_complete(root())
    torch.set_num_threads(1)  # the tensors are far too small for a second one

    modes = _modes(mode)
    _check_dtypes(port, dtypes)
    cases = [
        case
        for case in spoken.cases
        if not only or any(case.stage == pattern or fnmatch.fnmatch(case.id, pattern) for pattern in only)
    ]
    if not cases:
        raise ValueError(f"no case matches {', '.join(only or [])}; ids look like 'steering-003'")
    if only:
        modes = tuple(choice for choice in modes if choice in ("isolated", "again"))
    known = tuple(read_xfails(xfails)) if xfails else ()
    with progress_bar() as progress:
        bar = progress.add_task("cases", total=number_of_cases(port, cases, dtypes or ()))
        budgets = load_budgets(dialect)
        result = run_port(
            port,
            budgets,
            dialect=spoken,
            cases=cases,
            dtypes=dtypes or (),
            modes=modes,
            expected_failures=known,
            on_case=lambda: progress.advance(bar),
        )
        if start:
            result = ask_alone(result, start, ask_case(budgets, spoken))
    _report(result, budgets, json_file, junit, repeat=repeat)


def _modes(mode: str) -> tuple[Any, ...]:
    from grains_ref.conformance.runner import ASKED

    if mode not in ("all", *ASKED):
        raise ValueError(f"mode {mode!r} does not exist; there are all, isolated, again, chained, 'end to end'")
    if mode == "again":
        return ("isolated", "again")
    return tuple(ASKED) if mode == "all" else (mode,)


def _check_dtypes(port: Port, dtypes: Sequence[str] | None) -> None:
    if dtypes and (unknown := sorted(set(dtypes) - set(port.dtypes))):
        raise ValueError(f"the port does not claim {', '.join(unknown)}; it claims {', '.join(port.dtypes)}")


def _check_fresh(
    port: Port,
    seeds: range,
    dtypes: Sequence[str] | None,
    only: Sequence[str] | None,
    json_file: Path | None,
    junit: Path | None,
    repeat: str,
    dialect: str,
    start: Start,
) -> None:
    """Run a port on random inputs and say what came of it; it is closed whatever comes."""
    import torch

    from grains_ref.conformance.alone import ask_alone
    from grains_ref.conformance.budgets import load_budgets
    from grains_ref.conformance.fresh import ask_seed, run_fresh

    try:
        for file in (json_file, junit):
            if file:
                check_target(file)
        spoken, budgets = _dialect(dialect), load_budgets(dialect)
        _check_dtypes(port, dtypes)
        if unknown := sorted(set(only or ()) - set(spoken.oracle)):
            raise ValueError(f"{', '.join(unknown)}: with --seed, --only takes names of stages and options")
        torch.set_num_threads(1)
        with progress_bar() as progress:
            bar = progress.add_task("random inputs")
            result = run_fresh(
                port,
                budgets,
                seeds=seeds,
                dialect=spoken,
                stages=only or (),
                dtypes=dtypes or (),
                on_case=lambda: progress.advance(bar),
            )
            result = ask_alone(result, start, ask_seed(budgets, spoken))
    finally:
        port.close()
    _report(result, budgets, json_file, junit, repeat=repeat)


def _report(
    result: Run, budgets: Mapping[tuple[str, str], Budget], json_file: Path | None, junit: Path | None, *, repeat: str
) -> None:
    """Print what came of a run and write it where asked; exit code 1 where something failed."""
    from grains_ref.conformance.report import print_run, write_json, write_junit

    print_run(result, budgets, out, repeat=repeat)
    if json_file:
        write_json(result, json_file)
    if junit:
        write_junit(result, junit)
    if result.failed:
        raise typer.Exit(1)


def _print_live(results: Sequence[LiveResult], *, title: str) -> None:
    """One row per check: how its results went, and the worst of them."""
    by_check: dict[str, list[LiveResult]] = {}
    for result in results:
        by_check.setdefault(result.check, []).append(result)
    table = []
    for check, of_check in by_check.items():
        counts = Counter(result.status for result in of_check)
        words = ", ".join(f"{number} {status}" for status, number in counts.items())
        worst = max(of_check, key=_severity)
        table.append((check, words, f"{worst.error:.1e}", f"{worst.allowed:.1e}"))
    out.print(table_of(title, ("check", "results", "worst error", "allowed"), table))


def _print_skips(results: Sequence[LiveResult]) -> None:
    """Why something was skipped that the port defines, once for each check and reason."""
    skipped = Counter((result.check, result.message) for result in results if result.status == "skipped")
    for (check, reason), number in skipped.items():
        if not reason.startswith(NOT_DEFINED):
            out.print(f"{check}: skipped {number} times: {reason}", style="yellow")


def _print_failures(results: Sequence[LiveResult], *, show_all: bool) -> None:
    """Every failure, or the worst of each check and how many more there are."""
    by_check: dict[str, list[LiveResult]] = {}
    for result in results:
        if result.status == "failed":
            by_check.setdefault(result.check, []).append(result)
    hidden = 0
    for failures in by_check.values():
        to_print = failures if show_all else [max(failures, key=_severity)]
        hidden += len(failures) - len(to_print)
        for failure in to_print:
            drawn = "" if failure.seed is None else f", seed {failure.seed}"
            out.print(f"{failure.check}, pair {failure.pair}{drawn}: {failure.message}", style="red")
    if hidden:
        out.print(f"{hidden} more failures; --all shows them")


def _severity(result: LiveResult) -> float:
    return result.error / result.allowed if result.allowed else result.error
