"""`--ignore`: the advice of the message is an option of every command that reads pairs or tasks."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
from command import SIMPLE, bad, parsed, run
from typer import Typer

from grains_ref.cli import app, common

pytestmark = pytest.mark.cpu


def commands(of: Typer, prefix: str = "") -> dict[str, inspect.Signature]:
    found = {
        f"{prefix}{info.name or info.callback.__name__}": inspect.signature(info.callback)  # type: ignore[union-attr]
        for info in of.registered_commands
    }
    for group in of.registered_groups:
        found |= commands(group.typer_instance, f"{prefix}{group.name} ")  # type: ignore[arg-type]
    return found


def test_every_command_that_reads_pairs_or_tasks_has_it() -> None:
    reading = {
        name for name, signature in commands(app).items()
        if {"pairs", "tasks", "dev"} & set(signature.parameters)
    }  # fmt: skip
    assert {"fit", "sweep", "eval", "conform live"} <= reading
    assert reading == {name for name, signature in commands(app).items() if "ignore" in signature.parameters}


def with_columns(source: Path, target: Path, **columns: str) -> Path:
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    target.write_text("".join(json.dumps(row | columns) + "\n" for row in rows))
    return target


def test_the_message_advises_what_then_works(data: Path, tmp_path: Path) -> None:
    content = {"tools": "call the dish by its name", "few shot": "It was a dark and stormy night."}
    pairs = with_columns(data / "test.jsonl", tmp_path / "pairs.jsonl", **content)
    tasks = with_columns(data / "tasks.jsonl", tmp_path / "tasks.jsonl", **content, score="0.5")
    command = ["eval", *SIMPLE, "--pairs", pairs, "--tasks", tasks]
    assert "If it is not needed: --ignore tools --ignore 'few shot' (in Python: ignore=['tools', 'few shot'])" in bad(
        *command
    )
    ignored = [*command, "--ignore", "tools", "--ignore", "few shot"]
    plain = parsed("eval", *SIMPLE, "--pairs", data / "test.jsonl", "--tasks", data / "tasks.jsonl")
    assert {key: value for key, value in parsed(*ignored).items() if value != str(pairs)} == {
        key: value for key, value in plain.items() if value != str(data / "test.jsonl")
    }
    remark = f"{tasks}: not read, as it holds no content: score"
    assert remark in " ".join(run(*ignored).output.split())


@pytest.mark.parametrize(
    ("command", "files"),
    [("fit", ("pairs",)), ("sweep", ("pairs", "dev", "tasks")), ("eval", ("pairs", "tasks"))],
    ids=["fit", "sweep", "eval"],
)
@pytest.mark.usefixtures("no_model")
def test_it_is_obeyed_in_every_file_of_a_command(
    data: Path, tmp_path: Path, command: str, files: tuple[str, ...]
) -> None:
    source = {"pairs": "steer", "dev": "dev", "tasks": "dev_tasks"}
    arguments = [command, *SIMPLE, *([] if command == "eval" else ["--out", tmp_path / "v"])]
    for name in files:
        path = with_columns(data / f"{source[name]}.jsonl", tmp_path / f"{name}.jsonl", tools="call it by its name")
        arguments += [f"--{name}", path]
    assert "If it is not needed: --ignore tools" in bad(*arguments)
    assert "a model was loaded" in run(*arguments, "--ignore", "tools").stderr  # nothing in any file stopped it before


def test_tasks_are_none_without_a_file() -> None:
    assert common.read_task_file(None, ignore=None) == ()
