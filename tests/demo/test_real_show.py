"""demo/real/show: the demo on a tiny random model, on the screen and in its record."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from real_trials import TINY, tiny_trial
from rich.console import Console
from rich.progress import Progress

from grains_ref.demo.real import show
from grains_ref.demo.real.show import DEMO_ROWS, best_on_dev, conclusions, one_line, show_real_demo
from grains_ref.demo.real.trial import Trial
from grains_ref.report.answers import Answers, Margins
from grains_ref.report.attributions import Attributions
from grains_ref.report.folder import folder_report
from grains_ref.report.layers import Layers
from grains_ref.report.prose import Prose
from grains_ref.vectors import SteeringVectors

pytestmark = pytest.mark.cpu

ROWS = ("GrAInS", "GrAInS, content, mean", "edit gradient, residual")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("demo")
    screen = Console(file=io.StringIO(), width=120)
    trial = tiny_trial()

    def few(model: Any, behaviour: Any, seed: int) -> Trial:
        return trial

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(show, "Trial", few)
        patch.setattr(show, "DEMO_ROWS", {row: DEMO_ROWS[row] for row in ROWS})
        show_real_demo(
            lambda: trial.model,
            TINY,
            0,
            folder,
            as_json=False,
            out=screen,
            progress=Progress(console=Console(file=io.StringIO())),
        )
    assert isinstance(screen.file, io.StringIO)
    return folder, screen.file.getvalue()


def test_the_screen_says_what_is_asked_what_pushes_what_came_out_and_what_it_says(written: tuple[Path, str]) -> None:
    _, text = written
    for words in (
        "asked:    They say a ant is new. What is a ant?",
        "Which tokens push?",
        "[the lie]",
        "The told value is among the 3 most negative tokens in",
        "Signal:",
        "What does steering change?",
        "as it is:",
        "Verdict",
        "grains-ref inspect",
    ):
        assert words in text, words


def test_the_record_holds_every_row_and_every_text(written: tuple[Path, str]) -> None:
    folder, _ = written
    content = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert [row["row"] for row in content["rows"]] == list(ROWS)
    assert content["pairs"] == {"steer": 4, "dev": 1, "test": 2, "test_controls": 2}
    assert set(content["texts"][0]) == {"asked", "unsteered", *ROWS}
    vectors = SteeringVectors.load(folder / "vectors.safetensors")
    assert vectors.header.signal is not None


def test_the_report_has_every_row_the_claim_that_is_a_lie_and_what_the_best_row_says(written: tuple[Path, str]) -> None:
    folder, _ = written
    page, left_out = folder_report(folder)
    assert left_out == []
    attributions, answers, margins, methods, layers, _ = page.sections
    assert isinstance(attributions, Attributions)
    for example in attributions.examples:
        assert [example.tokens[j] for j, mark in example.marks.items() if mark == "C"]
    assert isinstance(answers, Answers)
    assert isinstance(margins, Margins)
    content = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    best = max(content["rows"], key=lambda row: max(tuple(tried[2:4]) for tried in row["tried"]))["row"]
    texts = [(text["asked"], text["unsteered"], text[best]) for text in content["texts"]]
    assert [(answer.prompt, answer.base, answer.steered) for answer in answers.answers] == texts
    assert isinstance(methods, Prose)
    lines = methods.text.splitlines()
    for row in content["rows"]:
        (line,) = [line for line in lines if line.startswith(f"| {row['row']} |")]
        assert f"| {100 * row['gain'][0]:+.0f} [" in line
        assert line.endswith(f"| {row['verdict'] if row['strength'] else 'never chosen'} |")
    assert isinstance(layers, Layers)


def test_lists_are_shown_in_one_line() -> None:
    assert one_line("1. Apples\n\n2. Pears") == "1. Apples / 2. Pears"


def test_conclusions_name_the_best_on_dev(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = tiny_trial()
    monkeypatch.setattr(show, "DEMO_ROWS", {row: DEMO_ROWS[row] for row in ROWS})
    found = show.run(trial, lambda what, finished: None)
    best = best_on_dev(found)
    assert found.chosen[best].best.accuracy == max(chosen.best.accuracy for chosen in found.chosen.values())
    assert DEMO_ROWS[best] in conclusions(found)[-1]
