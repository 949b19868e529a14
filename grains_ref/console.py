"""Where the command prints: results to standard output, progress and messages to standard error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

out = Console(highlight=False, markup=False)  # prompts and paths hold brackets, such as [/INST], that are not markup
err = Console(stderr=True, highlight=False, markup=False)


def progress_bar() -> Progress:
    """A progress bar on standard error."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=err, transient=True)


def table_of(title: str, columns: Iterable[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table whose first column is words and whose others are figures."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
