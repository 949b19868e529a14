"""Where the command prints, and how it fails: results to standard output, progress and messages to standard error."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from grains_ref.files import printable, processes

debug = False  # whether an error shows its traceback; the option --debug sets it
_F = TypeVar("_F", bound=Callable[..., None])


def plain(text: str) -> str:
    """Text that no terminal obeys; lines and columns are kept."""
    return printable(text, keep="\n\t")


class Screen(Console):
    """A terminal. Texts may come from files and models: brackets in them are no markup, control characters are shown.

    Prompts and paths hold brackets, such as [/INST].
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """`rich.console.Console.print`, with plain texts."""
        super().print(*(plain(item) if isinstance(item, str) else item for item in objects), **options)


out = Screen()
err = Screen(stderr=True)


def progress_bar() -> Progress:
    """A progress bar on standard error."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=err, transient=True)


def table_of(title: str, columns: Iterable[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table whose first column is words and whose others are figures."""
    table = Table(title=plain(title), title_justify="left", box=SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(plain(cell) for cell in row))
    return table


def print_signal(signal: Mapping[str, Any]) -> None:
    """What a header says of the signal, in one line and its warnings; nothing where it was not measured."""
    if not signal:
        return
    out.print(f"Signal: {signal['line']}")
    for warning in signal.get("warnings", []):
        out.print(f"  ! {warning}", style="yellow")


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """A warning as a sentence; the line of code that gave it is of no use here."""
    err.print(f"warning: {message}", style="yellow")


def split(function: _F) -> _F:
    """A command whose work several processes share, if a launcher started several: only the first of them prints."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        with processes.joined():
            out.quiet = err.quiet = processes.rank() > 0
            function(*args, **kwargs)

    return run  # type: ignore[return-value]


def guarded(function: _F) -> _F:
    """A command whose errors end in one message and an exit code, not a traceback.

    What an interruption leaves behind only the command knows: it raises `KeyboardInterrupt` with words for it.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                function(*args, **kwargs)
        except KeyboardInterrupt as interruption:
            err.print("interrupted", style="bold", end="")
            err.print(f"; {interruption}" if str(interruption) else "")
            raise typer.Exit(130) from None
        except typer.Exit:
            raise
        except Exception as error:
            if debug:
                raise
            if err.quiet and not processes.is_told(error):
                err.quiet = False
                err.print(f"process {os.environ.get('RANK')}: ", end="")
            err.print("error", style="bold red", end=" ")
            err.print(f"{type(error).__name__}: {error or 'no further message'}")
            if not isinstance(error, (ValueError, OSError, ArithmeticError, ImportError, MemoryError)):
                err.print("This is not an error that grains-ref foresaw; --debug (before the command) shows where.")
            raise typer.Exit(1) from None

    return run  # type: ignore[return-value]
