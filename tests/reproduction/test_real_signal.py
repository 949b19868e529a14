"""demo/real/signals.py: the signal of every row that the line knows, and of cells that an earlier run left without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from real_trials import tiny_trial

from grains_ref.demo.real.rows import ROWS
from grains_ref.demo.real.signals import SIGNALS, edit_signal, grains_signal, reverse
from grains_ref.fitting.halves import Estimate
from grains_ref.reproduction import real
from grains_ref.reproduction.kept import read_cell, write_cell, write_facts
from grains_ref.reproduction.real import add_signals, fill, finished, without_signal
from grains_ref.reproduction.real_signal import points

pytestmark = pytest.mark.cpu


def test_every_row_whose_edit_is_known_has_a_signal_that_its_reverse_mirrors() -> None:
    trial = tiny_trial()
    assert set(SIGNALS) <= set(ROWS)
    signals = {row: take(trial) for row, take in SIGNALS.items()}
    for straight, turned in (
        ("GrAInS", "GrAInS, reversed"),
        ("GrAInS, content, mean", "GrAInS, content, mean, reversed"),
        ("edit gradient, residual", "edit gradient, reversed"),
    ):
        one, other = signals[straight].slope, signals[turned].slope
        assert isinstance(one, Estimate)
        assert other == Estimate(-one.value, -one.high, -one.low)
    assert signals["edit gradient, residual"].verdict == "toward"
    assert signals["edit gradient, reversed"].verdict == "away"
    assert signals["Gaussian"].halves is None
    assert signals["random tokens"] != signals["GrAInS"]
    there = edit_signal(trial, site="attention_output", positions="after_prompt")
    assert there == signals["edit gradient, attention output"] != signals["edit gradient, residual"]
    twice = reverse(reverse(grains_signal(trial)))
    assert twice == signals["GrAInS"]


def test_old_cells_get_the_signal_that_they_lack_and_keep_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = tiny_trial()
    keys = [("lie", 0, row) for row in ("unsteered", "Gaussian", "edit gradient, residual")]
    write_facts(tmp_path, "lie", 0, trial.sets.subjects)
    made = {row: fill(trial, row) for _, _, row in keys}
    for name, split, row in keys:
        old = {"draws": [{field: value for field, value in made[row]["draws"][0].items() if field != "signal"}]}
        write_cell(tmp_path, name, split, row, old)
    units = without_signal(tmp_path, keys)
    assert units == [("lie", 0, ("Gaussian", "edit gradient, residual"))]
    monkeypatch.setattr(real, "_trial", lambda *args: trial)
    monkeypatch.setattr(real.processes, "run", lambda work, units, tick, **options: [work(u, tick) for u in units])
    add_signals(tmp_path, Path("model"), units, workers=1, tick=lambda what, n: None)
    assert without_signal(tmp_path, keys) == []
    for name, split, row in keys:
        kept = read_cell(tmp_path, name, split, row)
        assert kept is not None
        assert kept["draws"] == json.loads(json.dumps(made[row]["draws"]))
    cells, subjects = finished(tmp_path, [*keys, ("lie", 0, "CAA")])
    assert set(cells) == set(keys)
    assert [point.row for point in points(cells, subjects)] == ["Gaussian", "edit gradient, residual"]
