"""The report of a folder: everything known in it, nothing from outside of it, and what was left out is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from report_examples import attributed, with_picture

from grains_ref.files import FileError
from grains_ref.report.answers import Answers, Margins
from grains_ref.report.attributions import Attributions
from grains_ref.report.folder import folder_report, of_record, of_sweep
from grains_ref.report.side_effects import SideEffectsTable
from grains_ref.report.strengths import Comparison, Rates, Strengths

pytestmark = pytest.mark.cpu

RATE = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}
EVALUATION = {
    "unsteered": {"preference accuracy": RATE},
    "steered": {"preference accuracy": RATE | {"value": 0.55}},
    "change": {"preference accuracy": {"gained": 3, "lost": 1, "p": 0.6}},
}
SIDE_EFFECTS = {
    "side_effects": {
        "effects": [{"measure": "tasks", "data": "t", "better": "higher", "unit": "share", "p": 0.5, "p_corrected": 0.5,
                     "unsteered": RATE, "steered": RATE, "change": RATE, "verdict": "better"}],
        "notes": ["a note"], "sets": [], "refusals": "refusal rule 1",
    }
}  # fmt: skip
SWEEP: dict[str, Any] = {
    "best": {"lam": 1.0, "k": 3, "aggregation": "pca", "layers": "all", "dev_pairs": 10, "tasks": 20,
             "task_accuracy": 0.95, "task_accuracy_unsteered": 1.0, "max_loss": 5.0},
    "tried": [
        {"lam": 0.0, "k": None, "aggregation": None, "layers": None, "dev_accuracy": 0.2, "task_accuracy": 1.0},
        {"lam": 1.0, "k": 3, "aggregation": "pca", "layers": "all", "dev_accuracy": 0.5, "task_accuracy": 0.95},
        {"lam": 1.0, "k": 1, "aggregation": "pca", "layers": "all", "dev_accuracy": 0.6, "task_accuracy": 0.8,
         "task_accuracy_is_at_most": True},
    ],
    "left_out": [],
}  # fmt: skip
DEMO = {
    "world": "simple",
    "training_seeds": [0, 1],
    "max_capability_loss": 0.5,
    "rows": [
        {"row": name, "chosen": "lam 1", "accuracy": RATE, "gain": RATE, "rejected_rate": 0.1, "capability": 0.9,
         "capability_loss": 0.1}
        for name in ("unsteered", "GrAInS")
    ],
    "per_seed": [
        {"seed": 0, "rows": [{"row": "chosen on dev", "setting": "k 1", "lam": 2.0, "tried": [
            {"setting": "unsteered", "lam": 0.0, "dev_accuracy": 0.1},
            {"setting": "k 1", "lam": 2.0, "dev_accuracy": 0.4},
        ]}]},
    ],
}  # fmt: skip


def write(folder: Path, **records: Any) -> None:
    for name, record in records.items():
        (folder / f"{name}.json").write_text(json.dumps(record))


def test_every_record_is_told_by_its_keys(tmp_path: Path) -> None:
    kinds = [
        ({"image": ""} | attributed().record(), [Attributions]),
        (EVALUATION, [Rates]),
        (SWEEP, [Strengths]),
        (DEMO, [Comparison, Strengths]),
        ([{"prompt": "p", "unsteered": "a", "steered": "b"}], [Answers]),
        (
            {"attributions": [attributed().record()], "answers": [{"prompt": "p", "base": "a", "steered": "b"}],
             "margins": [["x", -1.0, 2.0]]},
            [Attributions, Answers, Margins],
        ),
        (EVALUATION | SIDE_EFFECTS, [Rates, SideEffectsTable]),
        (SIDE_EFFECTS, [SideEffectsTable]),
        ({"something": "else"}, []),
        ([], []),
    ]  # fmt: skip
    for record, expected in kinds:
        assert [type(section) for section in of_record(record, tmp_path)] == expected


def test_a_sweep_keeps_what_was_chosen_and_what_is_a_bound() -> None:
    section = of_sweep(SWEEP)
    assert [tried.is_chosen for tried in section.tried] == [False, True, False]
    assert [tried.is_at_most for tried in section.tried] == [False, False, True]
    assert section.limit == pytest.approx(0.95)
    assert section.n_dev == 10


def test_a_damaged_file_is_told_and_the_others_are_shown(tmp_path: Path) -> None:
    write(tmp_path, a=EVALUATION, b={"best": {}, "tried": [{}]}, c={"tokens": ["a"], "kinds": [], "scores_nats": "x"})
    (tmp_path / "d.json").write_text("{")
    (tmp_path / "e.safetensors").write_bytes(b"nothing")
    report, left_out = folder_report(tmp_path, command="grains-ref report .")
    assert [reason.split(":")[0] for reason in left_out] == ["b.json", "c.json", "d.json", "e.safetensors"]
    page = report.html()
    assert "preference accuracy" in page
    assert "d.json" in page


def test_a_folder_with_nothing_known_says_what_would_be(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"holds nothing to report.*--json"):
        folder_report(tmp_path)
    with pytest.raises(FileError, match="is no folder"):
        folder_report(tmp_path / "missing")


def test_pictures_come_from_inside_of_the_folder_only(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
        Image.new("RGB", (40, 40), "red").save(folder / f"{folder.name}.png")
    (inside / "link.png").symlink_to(outside / "out.png")
    record = with_picture().record()

    def has_picture(name: str) -> bool:
        (section,) = of_record(record | {"image": name}, inside)
        assert isinstance(section, Attributions)
        return section.examples[0].picture is not None

    assert has_picture("in.png")
    assert has_picture("/somewhere/else/in.png")  # the folder has moved
    for name in ("../out/out.png", str(outside / "out.png"), "link.png", ".", ""):
        assert not has_picture(name)
