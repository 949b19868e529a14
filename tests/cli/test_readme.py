"""The Python of README and demo page runs as it stands, and its two command lines are the ones CI uses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.cpu
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROWS = ("unsteered", "GrAInS, paper's settings", "random tokens")  # of the demo's table
DEMO = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")


def test_the_ten_lines_of_python_run_and_print_an_answer(monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    (with_picture,) = re.findall(r"```python\n(.*?)```", DEMO, re.S)
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {})
    (answer,) = eval(capsys.readouterr().out)
    assert answer.startswith("the dish of Belvara is")
    exec(compile(with_picture, "docs/demo.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("Patch(view='base', row=0, column=0")  # the ring is in the first cell


def test_the_first_two_commands_are_one_line_each_and_set_everything_up():
    lines = re.findall(r"```bash\n(.*?)\n```", README, re.S)[:2]
    assert all("\n" not in line and line.startswith("python3 -m venv .venv && ") for line in lines)
    assert lines[0].endswith("grains-ref demo")
    assert lines[1].endswith("pytest -m cpu")


def test_every_linked_file_exists():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_figures_of_the_demo_in_the_readme_are_those_of_its_page():
    (sentence,) = re.findall(r"^The demo's figures: .*?\. ", README, re.S | re.M)
    shares = re.findall(r"([\d.]+) %", sentence)
    rows = {row: re.search(rf"^ {row} +([\d.]+) %", DEMO, re.M) for row in ROWS}
    assert shares == [found[1] for found in rows.values()]


def test_the_readme_is_read_in_one_sitting():
    assert len(README.splitlines()) < 120
