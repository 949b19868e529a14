"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from grains_ref.files import check_listed, printable


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with one line for each row, ending in a line break.

    Cells are text: bars, tags and characters that are not to be seen are written out.

    Raises:
        TypeError: a text where a list of cells is expected.
        ValueError: a row has not as many cells as the head.
    """
    check_listed("head", head, "a list of cells")
    check_listed("rows", rows, "a list of rows")
    for row in rows:
        check_listed("a row", row, "a list of cells")
        if len(row) != len(head):
            raise ValueError(f"a row of {len(row)} cells in a table of {len(head)} columns: {list(row)}")
    return "".join(_line(cells) for cells in (head, ["---"] * len(head), *rows))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |\n"


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|").replace("<", "&lt;")
