"""Imports point downward only, no light room drags in a heavy library, and no file outgrows one sitting."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import grains_ref

pytestmark = pytest.mark.cpu

PACKAGE = Path(grains_ref.__file__).parent
# From the bottom up; a room may import rooms of lower floors, and other files of its own.
FLOORS = (
    {"grains"},
    {"files"},
    {"data"},
    {"models", "vectors", "fast", "authors"},
    {"fitting", "methods", "evaluation", "datasets"},
    {"report", "export", "demo"},
    {"reproduction", "conformance"},
    {"cli"},
)
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
# Rooms of one floor that may know each other, by direction.
NEIGHBOURS = {
    ("evaluation", "fitting"),
    ("evaluation", "methods"),
    ("fitting", "methods"),
    ("demo", "report"),
    ("export", "report"),
}
DATA_FILES = {"grains.py"}  # the reference is one module on purpose


def imports(source: str) -> Iterator[str]:
    """Every module of the package that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("grains_ref."))
        elif isinstance(node, ast.ImportFrom) and node.module == "grains_ref":
            yield from (f"grains_ref.{name.name}" for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("grains_ref."):
            yield str(node.module)


def room_of(module: str) -> str:
    return module.split(".")[1]


def wrong_imports(room: str, source: str) -> list[str]:
    wrong = []
    for module in imports(source):
        other = room_of(module)
        if other in FLOOR and other != room and (room, other) not in NEIGHBOURS and FLOOR[other] >= FLOOR[room]:
            wrong.append(f"{room} imports {module}")
    return wrong


def sources() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if room in FLOOR:
            yield room, path


def test_imports_point_downward() -> None:
    wrong = [problem for room, path in sources() for problem in wrong_imports(room, path.read_text(encoding="utf-8"))]
    assert wrong == []


def test_every_room_has_its_floor() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert rooms - {"__init__", "tiny_models", "fixtures"} <= set(FLOOR)


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("grains", "from grains_ref.data import PreferencePair"),
        ("models", "def f():\n    from grains_ref.cli.common import out"),
        ("demo", "from grains_ref import reproduction"),
        ("conformance", "import grains_ref.reproduction.lab"),
    ],
)
def test_a_planted_wrong_import_is_seen(room: str, line: str) -> None:
    assert len(wrong_imports(room, line)) == 1


LIGHT = {
    "import grains_ref.data": "torch numpy transformers PIL rich",
    "import grains_ref.data.images, grains_ref.files": "torch transformers matplotlib",
    "import grains_ref.datasets": "torch transformers matplotlib",
    "import grains_ref.export": "torch transformers matplotlib gguf huggingface_hub",
    "import grains_ref.evaluation.metrics, grains_ref.evaluation.judge": "torch transformers matplotlib",
    "import grains_ref.grains": "transformers matplotlib",
    "import grains_ref.cli": "torch transformers matplotlib",
}
EACH_IN_A_FRESH_PROCESS = """
import json, os, sys

for command in sys.argv[1:]:
    if os.fork() == 0:
        exec(command)
        print(json.dumps([command, list(sys.modules)]), flush=True)
        os._exit(0)
    if os.wait()[1] != 0:
        sys.exit(f"{command} failed")
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, list[str]]:
    """By command, the modules that it leaves imported."""
    command = [sys.executable, "-c", EACH_IN_A_FRESH_PROCESS, *LIGHT]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("command", LIGHT)
def test_light_rooms_stay_light(command: str, imported: dict[str, list[str]]) -> None:
    room = command.split()[1].strip(",")
    assert room in imported[command]
    assert set(LIGHT[command].split()) & set(imported[command]) == set()


def test_no_file_is_longer_than_one_sitting() -> None:
    long = {
        str(path.relative_to(PACKAGE)): lines
        for _, path in sources()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 450 and path.name not in DATA_FILES
    }
    assert long == {}


def test_the_corridor_has_few_doors() -> None:
    doors = [path.name for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "tiny_models", "fixtures")]
    assert len(doors) <= 19
