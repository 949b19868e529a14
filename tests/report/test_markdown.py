"""report/markdown.py: cells are text, whatever they hold."""

from __future__ import annotations

from typing import Any

import pytest

from grains_ref.report.markdown import markdown_table

pytestmark = pytest.mark.cpu


def test_cells_are_text_and_stay_in_their_row() -> None:
    table = markdown_table(["a|b", "<script>"], [["x\ny", "\x1b[2J\u202e"], ["1 < 2", "**bold**"]])
    assert table.splitlines() == [
        r"| a\|b | &lt;script> |",
        "| --- | --- |",
        r"| x\ny | \x1b[2J\u202e |",
        "| 1 &lt; 2 | **bold** |",
    ]


@pytest.mark.parametrize(
    ("head", "rows"), [("ab", [["1", "2"]]), (["a", "b"], ["12"]), (["a", "b"], "12"), (["a"], {"x": "y"}), (b"a", [])]
)
def test_a_text_is_no_row(head: Any, rows: Any) -> None:
    with pytest.raises(TypeError, match=r"is a (str|bytes|dict) \(.*\); expected a list of (cells|rows)"):
        markdown_table(head, rows)
