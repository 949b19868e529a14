"""`grains-ref demo`: tiny models with a planted bad habit, diagnosed, steered and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grains_ref.cli import common, console
from grains_ref.cli.common import EngineOption, JsonOption
from grains_ref.cli.lists import parse_whole_numbers
from grains_ref.cli.report import check_page, typed_command

SEEDS = (0, 1, 2)  # of the models that are shipped
REAL_SPLIT = 0  # of the data that --real shows


@console.guarded
def demo(
    vision: Annotated[bool, typer.Option("--vision", help="Pictures and words instead of words alone.")] = False,
    world: Annotated[str, typer.Option(help="simple: the positive control; graded: harder on purpose.")] = "simple",
    real: Annotated[bool, typer.Option("--real", help="A released model instead; the first run fetches it.")] = False,
    behaviour: Annotated[str, typer.Option(help="With --real: lie, prose or caution.")] = "lie",
    seeds: Annotated[str, typer.Option(help="Training seeds of the embedded models, out of 0, 1, 2.")] = "0,1,2",
    output: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder for results. (default: demo_out, demo_vision_out, demo_real_out)", show_default=False
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="The page to look at. (default: report.html in the folder)", show_default=False),
    ] = None,
    engine: EngineOption = "fast",
    as_json: JsonOption = False,
) -> None:
    """Diagnose, steer and measure models with a bad habit. A few minutes; without --real nothing is downloaded."""
    if real:
        if vision or world != "simple" or seeds != "0,1,2" or engine != "fast":
            raise ValueError(
                "--real takes --behaviour, --out, --report and --json; the other options are of the planted worlds"
            )
        _demo_real(behaviour, output or Path("demo_real_out"), report, as_json=as_json)
        return
    if behaviour != "lie":
        raise ValueError("--behaviour is for --real; the planted worlds have --world")
    from grains_ref.demo.show import Terminal, show_text_demo, show_vision_demo

    chosen_engine = common.engine_name(engine)
    numbers = parse_whole_numbers(seeds, "--seeds", least=0)
    if missing := sorted(set(numbers) - set(SEEDS)):
        raise ValueError(f"--seeds {seeds!r}: there is no model of training seed {missing[0]}; there are 0, 1 and 2")
    if world not in ("simple", "graded"):
        raise ValueError(f"world {world!r} does not exist; the planted worlds are simple, graded")
    folder = output or Path("demo_vision_out" if vision else "demo_out")
    folder.mkdir(parents=True, exist_ok=True)
    page = report or folder / "report.html"
    check_page(page)
    terminal = Terminal(console.out, console.progress_bar())
    if vision:
        show_vision_demo(world, numbers, folder, as_json=as_json, terminal=terminal, engine=chosen_engine)
    else:
        show_text_demo(world, numbers, folder, as_json=as_json, terminal=terminal, engine=chosen_engine)
    title = "Why does the model name a colour that is not there?" if vision else "What makes the model say the myth?"
    lead = f"Tiny models of the planted world '{world}', diagnosed, steered and measured."
    _write_page(page, folder, title, lead)


def _write_page(page: Path, folder: Path, title: str, lead: str) -> None:
    """The report of what a demo wrote into its folder."""
    from grains_ref.report.folder import folder_report

    made, _ = folder_report(folder, command=typed_command(), title=title, lead=lead)
    made.write(page)
    console.err.print(f"the report: {page}")


def _demo_real(name: str, folder: Path, report: Path | None, *, as_json: bool) -> None:
    """The demo on a released model, which is fetched and converted first where it is missing."""
    from grains_ref.demo.real import BEHAVIOURS
    from grains_ref.demo.real.packages import prepare
    from grains_ref.demo.real.show import show_real_demo

    if name not in BEHAVIOURS:
        raise ValueError(f"--behaviour {name!r}: expected one of {', '.join(BEHAVIOURS)}")
    folder.mkdir(parents=True, exist_ok=True)
    page = report or folder / "report.html"
    check_page(page)
    place = prepare(console.err.print)
    show_real_demo(
        lambda: common.load_model(str(place), "float32", "cpu", ""),
        BEHAVIOURS[name],
        REAL_SPLIT,
        folder,
        as_json=as_json,
        out=console.out,
        progress=console.progress_bar(),
    )
    lead = f"{BEHAVIOURS[name].title}. One small model, one split: this says nothing about larger ones."
    _write_page(page, folder, "What does steering change in a released model?", lead)
