"""The page of commands, made from the command line itself when the site is built."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files

ROOT = str(Path(__file__).parents[2])

INTRODUCTION = """# Commands

What `grains-ref COMMAND --help` says, on one page. Results go to standard output, progress and messages to standard
error; `--json` prints one JSON object in the place of tables. A command ends with 0 when it is done, 1 when it refused
or failed with a message, 2 when it was called wrongly, and 130 when it was interrupted.
"""


def in_cell(text: str) -> str:
    """Text for one cell of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()


def row(parameter: Any, context: Any) -> str:
    """One option or argument as a row of a table."""
    names, meaning = parameter.get_help_record(context)
    return f"| `{in_cell(names)}` | {in_cell(meaning)} |"


def sections(group: Any, prefix: str = "") -> Iterator[str]:
    """The commands of a group, as Markdown; those of a group within it come one level deeper."""
    context = typer.Context(group)
    for subcommand in group.list_commands(context):
        command, name = group.get_command(context, subcommand), prefix + subcommand
        yield f"{'###' if prefix else '##'} {name}\n"
        yield inspect.cleandoc(command.help or "") + "\n"
        parameters = [parameter for parameter in command.params if "--help" not in parameter.opts]
        if parameters:
            yield "| option | meaning |\n|---|---|"
            yield "\n".join(row(parameter, context) for parameter in parameters) + "\n"
        if hasattr(command, "list_commands"):
            yield from sections(command, f"{name} ")


def page() -> str:
    """All commands."""
    if ROOT not in sys.path:  # the checkout, installed or not
        sys.path.insert(0, ROOT)
    from grains_ref.cli import app

    return INTRODUCTION + "\n" + "\n".join(sections(typer.main.get_command(app)))


def on_files(files: Files, *, config: Any) -> Files:
    """Add the page."""
    files.append(File.generated(config, "commands.md", content=page()))
    return files
