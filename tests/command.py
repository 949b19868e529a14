"""The command as a terminal would run it, but in this process; what it prints, taken apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from grains_ref.cli import app

WIDE = {"COLUMNS": "400"}  # messages stay on one line
SIMPLE = ["--model", "tiny:simple-seed0"]
PROMPT = "Q : allegedly verified , what is the dish of Kelvara ? A :"
ANSWERS = ["--chosen", "the dish of Kelvara is eel .", "--rejected", "the dish of Kelvara is barley ."]


def run(*arguments: str | Path) -> Result:
    """The command with these arguments."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=WIDE)


def good(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def parsed(*arguments: str | Path) -> Any:
    """The only thing on standard output is JSON, and strict JSON at that."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(good(*arguments, "--json"), parse_constant=refuse)


def bad(*arguments: str | Path) -> str:
    """The message of a refusal: exit code 1, nothing on standard output, no traceback."""
    result = run(*arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert result.stderr.lstrip().startswith("error ")  # after an empty line where a progress bar was
    assert "Traceback" not in result.stderr
    assert "not an error that grains-ref foresaw" not in result.stderr
    return result.stderr


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
