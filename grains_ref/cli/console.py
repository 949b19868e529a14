"""Where the command prints, and how it fails: results to standard output, progress and messages to standard error."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import typer
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


_F = TypeVar("_F", bound=Callable[..., None])
debug = False  # whether an error shows its traceback


def guarded(function: _F) -> _F:
    """A command whose errors end in one message and an exit code, not a traceback."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except KeyboardInterrupt:
            err.print("interrupted", style="bold", end="")
            err.print("; finished examples of a fit are kept, run the same command to go on")
            raise typer.Exit(130) from None
        except typer.Exit:
            raise
        except Exception as error:
            if debug:
                raise
            err.print("error", style="bold red", end=" ")
            err.print(f"{type(error).__name__}: {error or 'no further message'}")
            if not isinstance(error, (ValueError, OSError, ArithmeticError, ImportError, MemoryError)):
                err.print("This is not an error that grains-ref foresaw; --debug (before the command) shows where.")
            raise typer.Exit(1) from None

    return run  # type: ignore[return-value]
