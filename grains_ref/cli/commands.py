"""The command `grains-ref`: which commands there are, in which order `--help` lists them, and the options of all.

Results go to standard output, progress and messages to standard error; `--json` prints one JSON object instead of
tables. Exit codes: 0 done, 1 refused or failed with a message, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

from typing import Annotated

import typer
from typer.core import TyperGroup

from grains_ref import __version__
from grains_ref.cli import (
    check,
    choose,
    conform,
    conform_results,
    console,
    datasets,
    demo,
    evaluate,
    export,
    fit,
    generate,
    look,
    report,
    reproduce,
    serve,
)

ORDER = (  # in which people need them
    "demo", "check", "attribute", "fit", "inspect", "sweep", "eval", "generate", "report", "serve", "export",
    "import", "datasets", "reproduce", "conform",
)  # fmt: skip


class InOrder(TyperGroup):
    """Lists commands by `ORDER`; typer itself lists single commands first and groups of them last."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """The names of all commands."""
        return sorted(self.commands, key=ORDER.index)


app = typer.Typer(
    name="grains-ref",
    cls=InOrder,
    help="GrAInS, the reference implementation: attribute, fit steering vectors, steer, measure.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("check")(check.check)
app.command("attribute")(look.attribute)
app.command("fit")(fit.fit)
app.command("inspect")(look.inspect)
app.command("sweep")(choose.sweep)
app.command("eval")(evaluate.eval_)
app.command("generate")(generate.generate)
app.command("report")(report.report)
app.command("serve")(serve.serve)
app.command("export")(export.export)
app.command("import")(export.import_)
app.add_typer(datasets.datasets, name="datasets")
app.command("reproduce")(reproduce.reproduce)
conform.conform.command("summary")(conform_results.summary)
conform.conform.command("diff")(conform_results.diff)
app.add_typer(conform.conform, name="conform")


def _print_version(wanted: bool) -> None:
    if wanted:
        console.out.print(f"grains-ref {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options that stand before the command."""
    console.debug = debug


def main() -> None:
    """The entry point of the command `grains-ref`."""
    app()
