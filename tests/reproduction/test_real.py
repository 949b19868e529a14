"""reproduction/real: the order of cells, what is kept, and pages of whatever cells there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from real_trials import tiny_trial

from grains_ref.demo.real.rows import ROWS
from grains_ref.demo.real.signals import SIGNALLED
from grains_ref.demo.real.trial import Chosen, DevRung, TestSeen
from grains_ref.reproduction.kept import Cell, problem_of, read_cell, write_cell
from grains_ref.reproduction.real import (
    ON_SPLIT_0_ALONE,
    _draw,
    cells,
    fill,
    gains_of,
    main_rows_first,
    seen_of,
)
from grains_ref.reproduction.real_pages import BEGIN, END, curve_of, draw_curves, page, record, renewed, what_was_run
from grains_ref.reproduction.real_signal import correlation, draw, points, text_of

pytestmark = pytest.mark.cpu

SUBJECTS = [f"subject {i // 2}" for i in range(8)]


def chosen(*, right: int, strength: float) -> Chosen:
    margins = tuple(1.0 if i < right else -2.0 for i in range(8))
    plain = DevRung("unsteered", 0.0, (-1.0, -3.0), (1.0, 1.0), -1.0, True)
    best = DevRung("row", strength, (1.0, -1.0), (1.0, -1.0), -1.05, True)
    broken = DevRung("row", 2 * strength, (2.0, 2.0), (-1.0, -1.0), -1.4, False)
    seen = TestSeen(margins, margins, (1.0, 1.0), (-1.0, -1.2), (True, False), ("one", "two\nlines"))
    return Chosen(best if strength else plain, (plain, best, broken), seen)


def cell(row: str, *, right: int = 6, strength: float = 0.5) -> Cell:
    draw = _draw(chosen(right=right, strength=0.0 if row == "unsteered" else strength))
    if row == "unsteered":
        found = {"among_all": 3, "among_content": 4, "by_chance": 0.2, "n": 5}
        draw |= {"asked": ["What?", "Where?"], "undisturbed": 0.9, "by_words": 0.5, "causes": found}
    if row in SIGNALLED:
        draw["signal"] = {
            "verdict": "none",
            "slope": [0.1, -0.1, 0.3],
            "cosine": 0.01,
            "chance": 0.02,
            "halves": [0.1, 0.0, 0.2],
            "sides": 0.9,
            "template": 0.6,
            "length": 0.02,
        }
    return {"draws": [draw]}


def some_cells() -> dict[tuple[str, int, str], Cell]:
    made: dict[tuple[str, int, str], Cell] = {}
    for split in (0, 1):
        made["lie", split, "unsteered"] = cell("unsteered", right=2)
        made["lie", split, "GrAInS"] = cell("GrAInS", right=2)
    made["lie", 0, "edit gradient, residual"] = cell("edit gradient, residual", right=8)
    made["lie", 0, "RepE"] = {"error": "block 3: no direction"}
    return made


FACTS: dict[tuple[str, int], Any] = {("lie", 0): SUBJECTS, ("lie", 1): SUBJECTS}


def test_split_0_of_all_behaviours_comes_first_and_training_is_on_it_alone() -> None:
    order = cells(("lie", "prose"), (0, 1))
    splits = [split for _, split, _ in order]
    assert splits == sorted(splits)
    assert {name for name, split, _ in order if split == 0} == {"lie", "prose"}
    trained = {split for _, split, row in order if row in ON_SPLIT_0_ALONE}
    assert trained == {0}
    assert len(order) == 4 * len(ROWS) - 2 * len(ON_SPLIT_0_ALONE)


def test_main_rows_come_before_those_of_split_0_alone() -> None:
    units = main_rows_first([("lie", 0, ("GrAInS", "GrAInS, mean", "NL-ITI")), ("prose", 0, ("CAA",))])
    assert units == [("lie", 0, ("GrAInS", "GrAInS, mean")), ("prose", 0, ("CAA",)), ("lie", 0, ("NL-ITI",))]


def test_a_cell_is_kept_and_gives_back_what_was_seen(tmp_path: Path) -> None:
    made = cell("unsteered")
    write_cell(tmp_path, "lie", 0, "unsteered", made)
    kept = read_cell(tmp_path, "lie", 0, "unsteered")
    assert kept is not None
    assert problem_of(kept) == ""
    assert seen_of(kept) == chosen(right=6, strength=0.0).seen


def test_gains_are_over_the_splits_that_there_are() -> None:
    found = gains_of(some_cells(), FACTS, "lie", "edit gradient, residual")
    assert not isinstance(found, str)
    of_row, splits = found
    assert splits == [0]
    assert of_row.gain.value == pytest.approx(6 / 8)
    assert of_row.margin.value == pytest.approx(6 * 3 / 8)
    assert gains_of(some_cells(), FACTS, "lie", "CAA") == "not run"
    assert gains_of(some_cells(), FACTS, "lie", "RepE") == "block 3: no direction"


def test_the_page_says_what_is_missing_and_how_many_splits_there_are() -> None:
    text = page(some_cells(), FACTS)
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert "works" in lines["edit gradient, residual"]
    assert "1 of 2 splits" in lines["edit gradient, residual"]
    assert "block 3: no direction" in lines["RepE"]
    assert "not run" in lines["CAA"]
    assert "+75 [" in lines["edit gradient, residual"]
    assert "6 of 10; of the user's words 8 of 10 (chance 20 %)" in text
    assert "prose" not in text
    assert "two / lines" in text


def test_the_record_has_every_row_of_every_behaviour_that_was_run() -> None:
    found = record(some_cells(), FACTS)
    assert list(found) == ["lie"]
    assert list(found["lie"]) == list(ROWS)
    assert found["lie"]["CAA"] == {"missing": "not run"}
    assert found["lie"]["GrAInS"]["splits"] == [0, 1]


def test_curves_begin_unsteered_and_hold_what_was_not_admissible(tmp_path: Path) -> None:
    curve = curve_of(cell("GrAInS"))
    assert [x for point in curve for x in point] == pytest.approx([0, 0, 0.05, 2, 0.4, 4])
    assert curve_of(None) == curve_of({"error": "no direction"}) == []
    draw_curves(some_cells(), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


@pytest.mark.parametrize("row", ["unsteered", "GrAInS, content, mean"])
def test_a_cell_of_a_trial_can_be_kept(row: str, tmp_path: Path) -> None:
    trial = tiny_trial()
    write_cell(tmp_path, "lie", 0, row, fill(trial, row))
    kept = read_cell(tmp_path, "lie", 0, row)
    assert kept is not None
    assert problem_of(kept) == ""
    (draw,) = kept["draws"]
    assert len(draw["texts"]) == len(trial.shown)
    assert ("signal" in draw) == (row != "unsteered")
    assert ("asked" in draw) == (row == "unsteered")


# ------------------------------------------------------------------------------------------- the signal line
def test_the_signal_line_is_asked_at_the_strength_nearest_to_a_hundredth_of_the_state() -> None:
    made = some_cells()
    found = points(made, FACTS)
    assert [(point.behaviour, point.split, point.row) for point in found] == [
        ("lie", 0, "GrAInS"),
        ("lie", 1, "GrAInS"),
    ]
    (first, _) = found
    assert first.lam == 0.5  # of 0.5 and 1: 1 and 2 hundredths
    assert first.predicted == pytest.approx(0.05)
    assert (first.low, first.high) == pytest.approx((-0.05, 0.15))
    assert first.measured == pytest.approx(2.0)  # from a mean margin of -2 to one of 0


def test_a_warning_is_right_where_nothing_is_gained_and_a_silence_where_something_is() -> None:
    made = some_cells()
    made["lie", 1, "GrAInS"] = cell("GrAInS", right=8)  # gains, and the line warned
    made["lie", 0, "GrAInS, mean"] = cell("GrAInS, mean", right=8)
    made["lie", 0, "GrAInS, mean"]["draws"][0]["signal"]["verdict"] = "toward"
    text = text_of(points(made, FACTS))
    assert "Warned in 2 cells, rightly in 1 of 2 (50 %); silent in 1, rightly in 1 of 1 (100 %)" in text
    assert "right in 2 of 3 (67 %)" in text
    assert "of f on dev in 1 of 1 cells" in text
    assert text_of([]) == ""


def test_a_correlation_needs_three_points_that_differ(tmp_path: Path) -> None:
    made = some_cells()
    for lam, row in ((0.5, "GrAInS, mean"), (1.0, "GrAInS, content")):
        made["lie", 0, row] = cell(row)
        made["lie", 0, row]["draws"][0]["signal"]["slope"] = [lam, 0.0, 2.0]
    found = points(made, FACTS)
    assert "not known" in text_of(found[:2])
    assert "not known" in text_of(found)  # all of them measure the same
    for point_row, margin in (("GrAInS, mean", 1.0), ("GrAInS, content", 3.0)):
        made["lie", 0, point_row]["draws"][0]["rungs"][1][3] = margin
    assert correlation(points(made, FACTS)) > 0.5
    draw(found, tmp_path / "signal.svg")
    assert (tmp_path / "signal.svg").stat().st_size > 1000


def test_what_was_run_names_what_is_missing() -> None:
    wanted = [("lie", 0, "unsteered"), ("lie", 0, "CAA"), ("prose", 1, "GrAInS")]
    lines = what_was_run(some_cells(), wanted).splitlines()
    assert lines == [
        "1 of 3 cells are finished.",
        "- lie, split 0: 1 of 2 rows; not run: CAA",
        "- prose, split 1: 0 of 1 rows",
    ]


def test_only_what_stands_between_the_marks_of_the_page_is_renewed() -> None:
    wanted = [("lie", 0, "GrAInS"), ("lie", 0, "CAA")]
    again = renewed(f"before\n{BEGIN}\nold\n{END}\nafter\n", some_cells(), FACTS, wanted)
    assert again.startswith(f"before\n{BEGIN}\n\n1 of 2 cells are finished.")
    assert again.endswith(f"{END}\nafter\n")
    assert "old" not in again
    assert "two / lines" not in again  # generated text is chosen by hand
    assert "\n### The signal line, over 2 cells" in again
    assert renewed(again, some_cells(), FACTS, wanted) == again
    assert "0 of 2 cells are finished" in renewed(again, {}, {}, wanted)
    for damaged in ("no marks", f"{END}{BEGIN}", f"{BEGIN}{END}{END}", f"{BEGIN}{BEGIN}{END}"):
        with pytest.raises(ValueError, match="each once and in this order"):
            renewed(damaged, {}, {}, wanted)
