"""The list of planted bugs fits the code, and planting finds code whatever its layout."""

from __future__ import annotations

import pytest
from planted_bugs import BUGS, __main__
from planted_bugs.planting import ROOT, Bug, PlantingError, places, planted

pytestmark = pytest.mark.cpu


def bug(snippet: str, replacement: str, within: str = "") -> Bug:
    return Bug("a_bug", "stage", "what it does", "module.py", snippet, replacement, "test_module", within)


@pytest.mark.parametrize("file", sorted({bug.file for bug in BUGS}))
def test_every_bug_of_the_list_has_its_place_in_the_code(file: str) -> None:
    code = (ROOT / file).read_text(encoding="utf-8")
    for one in BUGS:
        if one.file == file:
            planted(code, one)
            assert one.snippet.split() != one.replacement.split(), one.name


def test_bugs_have_names_of_their_own_and_test_files_that_exist() -> None:
    assert len({one.name for one in BUGS}) == len(BUGS)
    test_files = [path.stem for path in (ROOT / "tests").rglob("test_*.py")]
    assert {one.tests for one in BUGS} <= set(test_files)
    assert len(set(test_files)) == len(test_files)  # a bug names its tests by the file's name alone


@pytest.mark.parametrize(
    "laid_out",
    [
        "y = f(x, 'one', [2])",
        "y = f(\n    x,  # the first\n    'one',\n    [2],\n)",
        'y = f(\n    x, "one", [\n        2,\n    ]\n)',
        "y=f( x,'one',[ 2 ] )",
    ],
)
def test_a_snippet_is_found_whatever_the_layout(laid_out: str) -> None:
    assert places(laid_out, 'f(x, "one", [2])') == [(laid_out.index("f"), len(laid_out))]
    assert planted(laid_out, bug('f(x, "one", [2])', "g(x)")) in ("y = g(x)", "y=g(x)")


def test_only_whole_words_are_found() -> None:
    assert places("fitted = fit(x)  # fit(x)", "fit(x)") == [(9, 15)]
    assert places("y = xs + x", "x") == [(9, 10)]
    assert places("y = 'a, b'", "a, b") == []
    assert places("y = f'{a}' + b'a' + 'a'", "'a'") == [(20, 23)]


def test_a_snippet_may_be_part_of_an_expression_and_end_in_a_comma() -> None:
    code = "order = sorted(rows, key=lambda i: (a[i], -i))\n"
    assert planted(code, bug("key=lambda i: (a[i],", "key=lambda i: (b[i],")) == code.replace("a[i]", "b[i]")


def test_further_lines_are_indented_like_the_line_they_replace() -> None:
    code = "def f(x):\n    if x:\n        x += 1\n    return x\n"
    expected = "def f(x):\n    if x:\n        for _ in range(2):\n            x += 1\n    return x\n"
    assert planted(code, bug("x += 1", "for _ in range(2):\n    x += 1")) == expected


def test_a_function_can_be_named_where_others_have_the_same_code() -> None:
    code = "def f(x):\n    return x + 1\n\n\ndef g(x):\n    return x + 1\n"
    assert planted(code, bug("x + 1", "x", within="g")) == "def f(x):\n    return x + 1\n\n\ndef g(x):\n    return x\n"
    with pytest.raises(PlantingError, match=r"occurs 0 times in h of module\.py"):
        planted(code, bug("x + 1", "x", within="h"))


@pytest.mark.parametrize(
    ("code", "times"),
    [("y = x + 2", 0), ("y = x + 1\nz = x + 1", 2)],
    ids=["gone", "twice"],
)
def test_a_snippet_that_is_not_there_once_is_refused(code: str, times: int) -> None:
    with pytest.raises(PlantingError, match=rf"a_bug: its snippet occurs {times} times in module\.py, expected once"):
        planted(code, bug("x + 1", "x"))


def test_a_replacement_that_is_not_python_is_refused() -> None:
    """Any test would notice it, and the bug would count as caught."""
    with pytest.raises(PlantingError, match=r"a_bug: with its replacement module\.py is not Python"):
        planted("y = x + 1\n", bug("x + 1", "x +"))


def test_the_page_names_the_survivors_and_counts_the_rest() -> None:
    page = __main__.page(BUGS[:2], ["models/test_models.py::test_one[a|b]", ""])
    assert f"**1 of 2 planted bugs caught**, of {len(BUGS)} on the list" in page
    assert f"| {BUGS[0].name} | {BUGS[0].stage} | {BUGS[0].what} | `models/test_models.py::test_one[a\\|b]` |" in page
    assert f"| {BUGS[1].name} | {BUGS[1].stage} | {BUGS[1].what} | **survives** |" in page
