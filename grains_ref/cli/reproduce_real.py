"""`grains-ref reproduce --rung real`: every method on a released small model; see docs/real.md."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from grains_ref.cli.console import err, out, progress_bar
from grains_ref.files import FileError, only_writer, write_whole

if TYPE_CHECKING:
    from grains_ref.reproduction.kept import Unit

Key = tuple[str, int, str]  # behaviour, split, row


def carry_out(output: Path, *, quick: bool, workers: int, dry_run: bool) -> None:
    """Fill the cells that are missing, and write what all of them say; quick: split 0 only."""
    from grains_ref.demo.real import BEHAVIOURS
    from grains_ref.demo.real.packages import MODEL, QUESTIONS, prepare, why_missing
    from grains_ref.reproduction.kept import claim, missing
    from grains_ref.reproduction.real import SPLITS, cells, without_signal

    wanted = cells(tuple(BEHAVIOURS), SPLITS[:1] if quick else SPLITS)
    if dry_run:
        units = missing(output, wanted, on_damage=_tell_damage)
        _tell_plan(wanted, units)
        for behaviour, split, rows in units:
            out.print(f"{behaviour}, split {split}: {'; '.join(rows)}")
        if why := why_missing():
            out.print(why)
        return
    model = prepare(err.print)
    output.mkdir(parents=True, exist_ok=True)
    with only_writer(output, what="a reproduction"):
        packages = ", ".join(f"{package.name} {package.version}" for package in (MODEL, QUESTIONS))
        claim(output, {"rung": "real", "packages": packages})
        units = missing(output, wanted, on_damage=_tell_damage)
        _tell_plan(wanted, units)
        if units:
            _run(units, model, output, workers=workers or os.cpu_count() or 1)
        if lacking := without_signal(output, wanted):
            _add_signals(lacking, model, output, workers=workers or os.cpu_count() or 1)
        write_pages(output, wanted)


def write_pages(output: Path, wanted: Sequence[Key]) -> None:
    """The page, the record and the figures, of the cells that are there."""
    from grains_ref.reproduction import real_pages, real_signal
    from grains_ref.reproduction.real import finished
    from grains_ref.vectors import library_versions

    found, subjects = finished(output, wanted)
    of_signal = real_signal.points(found, subjects)
    page = "\n".join(
        [
            real_pages.what_was_run(found, wanted),
            "",
            real_pages.page(found, subjects),
            real_signal.text_of(of_signal),
            "",
        ]
    )
    real_pages.draw_curves(found, output / "curves.png")
    real_signal.draw(of_signal, output / "signal.svg")
    content = {"versions": library_versions(), "behaviours": real_pages.record(found, subjects)}
    write_whole(output / "tables.md", page)
    write_whole(output / "record.json", json.dumps(content, indent=1) + "\n")
    out.print(page, soft_wrap=True)
    err.print(f"written to {output}/: tables.md, record.json, curves.png and .svg, signal.svg")


def _run(units: Sequence[Unit], model: Path, output: Path, *, workers: int) -> None:
    from grains_ref.reproduction.kept import missing
    from grains_ref.reproduction.real import main_rows_first, run

    units = main_rows_first(units)
    asked = [(behaviour, split, row) for behaviour, split, rows in units for row in rows]
    with progress_bar() as progress:
        bar = progress.add_task("starting", total=len(asked))

        def tick(what: str, finished: int) -> None:
            progress.update(bar, advance=finished, description=f"{what:60}")

        try:
            run(output, model, units, workers=min(workers, len(units)), tick=tick)
        except KeyboardInterrupt:
            left = sum(len(rows) for _, _, rows in missing(output, asked, on_damage=_tell_damage))
            raise KeyboardInterrupt(
                f"{len(asked) - left} of {len(asked)} cells that were missing are finished and kept in {output}; run "
                "the same command to go on"
            ) from None


def _add_signals(units: Sequence[Unit], model: Path, output: Path, *, workers: int) -> None:
    from grains_ref.reproduction.real import add_signals

    n = sum(len(rows) for _, _, rows in units)
    err.print(f"{n} finished cells lack their signal, which is taken now; what they measured stays as it is")
    with progress_bar() as progress:
        bar = progress.add_task("starting", total=n)

        def tick(what: str, taken: int) -> None:
            progress.update(bar, advance=taken, description=f"{what:60}")

        add_signals(output, model, units, workers=min(workers, len(units)), tick=tick)


def _tell_damage(problem: FileError) -> None:
    err.print(f"{problem}; what it held is run again", style="yellow")


def _tell_plan(cells: Sequence[Key], units: Sequence[Unit]) -> None:
    left = sum(len(rows) for _, _, rows in units)
    err.print(f"{len(cells)} cells, {len(cells) - left} of them finished; {len(units)} data sets to work on")
