"""`grains-ref serve`: what it refuses before anything is loaded, and a server that answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import bad

pytestmark = pytest.mark.cpu
pytest.importorskip("starlette", reason="needs pip install 'grains-ref[serve]'")
pytest.importorskip("uvicorn", reason="needs pip install 'grains-ref[serve]'")

from command import good  # noqa: E402

from grains_ref.cli import serve  # noqa: E402
from grains_ref.export.serving import server  # noqa: E402
from grains_ref.vectors import SteeringVectors  # noqa: E402

MODEL = "tiny:simple-seed0"


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 can be reached from other machines, and nothing asks who they are"),
        (["--vectors", "v.safetensors"], "--vectors 'v.safetensors': expected NAME=FILE"),
        (["--vectors", "a b=v"], "--vectors 'a b=v': expected NAME=FILE"),
        (["--vectors", "a=v", "--vectors", "a=w"], "--vectors: a is given twice"),
        (["--lam", "a=1"], "--lam a=...: there are no --vectors of that name"),
        (["--vectors", "a=v", "--lam", "a=much"], "--lam a=much: expected a finite number"),
        (["--vectors", "a=none.safetensors"], "none.safetensors does not exist"),
    ],
)
def test_what_cannot_be_served_is_refused_before_a_model_is_loaded(options: list[str], words: str) -> None:
    assert words in bad("serve", MODEL, *options)


def served_application(monkeypatch: pytest.MonkeyPatch, *options: str | Path) -> tuple[list[Any], str]:
    """What would be listened for: hosts, the model with its vectors, address; and what was said."""
    seen: list[Any] = []

    def application(served: Any, *, hosts: Any) -> Any:
        seen[:] = [served, hosts]
        return object()

    monkeypatch.setattr(server, "application", application)
    monkeypatch.setattr(serve, "_run", lambda app, host, port, names: seen.extend([host, port, list(names)]))
    good("serve", MODEL, *options)
    seen[0].close()
    return seen, ""


def test_strength_and_layers_are_those_of_the_file_or_of_the_command(
    vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = SteeringVectors.load(vectors)
    choice = {"lam": 2.5, "layers": [1, 2], "dev_accuracy": 1.0, "dev_accuracy_unsteered": 0.5, "dev_pairs": 8}
    chosen = tmp_path / "chosen.safetensors"
    replace(loaded, header=replace(loaded.header, choice=choice | {"dev_curve": [[0, 0.5], [2.5, 1.0]]})).save(chosen)
    given = ["--vectors", f"plain={vectors}", "--vectors", f"chosen={chosen}", "--vectors", f"mine={chosen}"]
    seen, _ = served_application(monkeypatch, *given, "--lam", "mine=4", "--port", "0")
    found = {name: (one.lam, one.layers) for name, one in seen[0]._vectors.items()}
    assert found == {"plain": (None, (0, 1, 2, 3)), "chosen": (2.5, (1, 2)), "mine": (4.0, (1, 2))}
    assert seen[1:] == [server.LOOPBACK, "127.0.0.1", 0, seen[0].names]


def test_another_address_needs_a_word_and_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, _ = served_application(monkeypatch, "--host", "0.0.0.0", "--allow-remote")
    assert seen[1:3] == [None, "0.0.0.0"]


def test_vectors_of_another_model_are_refused(other_model: Path, vectors: Path) -> None:
    assert "layers of width" in bad("serve", other_model, "--vectors", f"a={vectors}")


@pytest.mark.thorough
def test_the_command_serves_until_it_is_interrupted(vectors: Path) -> None:
    command = [sys.executable, "-m", "grains_ref.cli", "serve", MODEL, "--vectors", f"v={vectors}", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})
    try:
        assert process.stdout
        assert process.stdout.readline().strip() == "serving simple-seed0, simple-seed0+v"
        address = process.stdout.readline().strip()
        body = {"model": "simple-seed0+v", "prompt": "Q :", "max_tokens": 2, "steering": {"vectors": "v", "lam": 1}}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{address}/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert len(json.loads(answer.read())["choices"]) == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) in (0, 130)
    finally:
        process.kill()
