"""How one bug gets into a copy of the checkout, and what the suite says to it.

A bug replaces one piece of code. The piece is looked for word by word (names, numbers, strings, punctuation), not
letter by letter: line breaks, spaces, comments, the kind of quotes and a trailing comma do not count, so that a list of
bugs survives a formatter. A piece need not be a whole expression.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
IGNORED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "demo_out", "shared")

_STRING = "|".join(
    (
        r'"{3}(?:\\.|[^\\])*?"{3}',
        r"'{3}(?:\\.|[^\\])*?'{3}",
        r'"(?:\\.|[^"\\\n])*"',
        r"'(?:\\.|[^'\\\n])*'",
    )
)
_WORD = re.compile(rf"#[^\n]*|[rRbBfFuU]{{0,2}}(?:{_STRING})|\w+|[^\w\s]", re.DOTALL)
_PLAIN_STRING = re.compile(r"""(\w*)(["'])([^"'\\]*)\2""")


class PlantingError(Exception):
    """A bug cannot be planted, or the suite cannot judge it."""


class Bug(NamedTuple):
    """One planted bug.

    Attributes:
        name: what the tables call it.
        stage: what part of the work it breaks.
        what: what the code does wrong with it.
        file: where it goes.
        snippet: the code to replace; it must occur exactly once in the file, or in the function `within` if that is
            given. Best without `return` or `x =`, after which a formatter may put brackets.
        replacement: what stands there instead. Lines after the first are indented as seen from the line that the
            snippet begins in.
        tests: the test file in which to look first, only to be quick.
        within: the function that holds the snippet, where other functions of the file have it too.
    """

    name: str
    stage: str
    what: str
    file: str
    snippet: str
    replacement: str
    tests: str
    within: str = ""


class Word(NamedTuple):
    """A word of a source text, without what a formatter may change, and the part of the text that it stands for."""

    text: str
    start: int
    stop: int


@functools.cache
def words(code: str) -> tuple[Word, ...]:
    """The words of a piece of Python. Comments and commas before a closing bracket are left out."""
    found: list[Word] = []
    for match in _WORD.finditer(code):
        text = match[0]
        if text.startswith("#"):
            continue
        if plain := _PLAIN_STRING.fullmatch(text):
            text = f'{plain[1]}"{plain[3]}"'
        if text in (")", "]", "}") and found and found[-1].text == ",":
            found.pop()
        found.append(Word(text, match.start(), match.end()))
    return tuple(found)


def places(code: str, snippet: str) -> list[tuple[int, int]]:
    """Where the snippet's words stand in the code one after the other: start and end of each place."""
    there = words(code)
    texts = [word.text for word in there]
    wanted = [word.text for word in words(snippet)]
    starts = [i for i in range(len(texts) - len(wanted) + 1) if texts[i : i + len(wanted)] == wanted]
    return [(there[i].start, there[i + len(wanted) - 1].stop) for i in starts]


def function_at(code: str, name: str) -> tuple[int, int]:
    """Where the one function of this name starts and ends in the code; (0, 0) if there is none."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            lines = code.splitlines(keepends=True)
            return len("".join(lines[: node.lineno - 1])), len("".join(lines[: node.end_lineno]))
    return 0, 0


def planted(code: str, bug: Bug) -> str:
    """The code with the bug in it.

    Raises:
        PlantingError: the snippet is not there exactly once, or the result is not Python where it should be, which any
            test would notice.
    """
    found = places(code, bug.snippet)
    if bug.within:
        first, last = function_at(code, bug.within)
        found = [(start, stop) for start, stop in found if first <= start and stop <= last]
    if len(found) != 1:
        place = f"{bug.within} of {bug.file}" if bug.within else bug.file
        raise PlantingError(
            f"{bug.name}: its snippet occurs {len(found)} times in {place}, expected once. If the code was changed, "
            f"change the snippet with it:\n{bug.snippet}"
        )
    ((start, stop),) = found
    line = code[code.rfind("\n", 0, start) + 1 :]
    indentation = line[: len(line) - len(line.lstrip(" "))]
    result = code[:start] + bug.replacement.replace("\n", "\n" + indentation) + code[stop:]
    if not bug.file.endswith(".py"):
        return result
    try:
        ast.parse(result)
    except SyntaxError as error:
        raise PlantingError(f"{bug.name}: with its replacement {bug.file} is not Python ({error})") from error
    return result


class Copy:
    """A copy of the checkout, in which bugs are planted and the suite is run."""

    def __init__(self, folder: Path) -> None:
        """Copy the checkout; `folder` must not exist yet."""
        self.folder = folder
        self._starter: subprocess.Popen[str] | None = None
        shutil.copytree(ROOT, folder, ignore=IGNORED)
        (folder / "tiny_models").rename(folder / "grains_ref" / "tiny_models")  # where an installed package has it
        self._check_import()

    def test(self, files: tuple[str, ...], bug: Bug | None = None) -> str:
        """Run test files with the bug planted, up to the first failure: its name, or "" if all pass."""
        if bug is None:
            return self._run(files)
        path = self.folder / bug.file
        original = path.read_bytes()
        path.write_text(planted(original.decode(), bug), encoding="utf-8")
        try:
            return self._run(files)
        finally:
            path.write_bytes(original)

    def _run(self, files: tuple[str, ...]) -> str:
        command = ["-m", "not gpu", "-x", "-q", "-rfE", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist"]
        code, output = self._pytest([*command, *(self._test_file(name) for name in files)])
        failed = re.search(r"^(?:FAILED|ERROR) tests/(.+?)(?: - |$)", output, re.MULTILINE)
        if code == 0:
            return ""
        if failed is None:
            raise PlantingError(f"pytest itself failed:\n{output[-6000:]}")
        return failed[1] if code == 1 else f"{failed[1]} (while collecting)"

    def _pytest(self, arguments: list[str]) -> tuple[int, str]:
        """The exit code and the output of a run; see starter.py."""
        if self._starter is None:
            self._starter = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("starter.py")), str(self.folder)],
                env=self._environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._starter.stdin
        assert self._starter.stdout
        self._starter.stdin.write(json.dumps(arguments) + "\n")
        self._starter.stdin.flush()
        answer = json.loads(self._starter.stdout.readline())
        return answer["code"], answer["output"]

    def close(self) -> None:
        """End the process that runs the tests."""
        if self._starter is not None:
            self._starter.communicate()

    def _test_file(self, name: str) -> str:
        """Where a test file lies; names are unique over all rooms."""
        (path,) = (self.folder / "tests").rglob(f"{name}.py")
        return str(path.relative_to(self.folder))

    def _check_import(self) -> None:
        """Make sure that the copy is what Python imports, also where the checkout is installed in editable mode."""
        code = "import grains_ref.models.huggingface as m, grains_ref.tiny_models as t; print(m.__file__, t.__file__)"
        done = self._python([sys.executable, "-B", "-c", code])
        imported = [Path(name).resolve() for name in done.stdout.split()]
        if len(imported) != 2 or not all(path.is_relative_to(self.folder.resolve()) for path in imported):
            raise PlantingError(f"the copy {self.folder} is not what gets imported: {done.stdout}{done.stderr}")

    def _python(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.folder, env=self._environment(), capture_output=True, text=True, check=False
        )

    def _environment(self) -> dict[str, str]:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")  # a fork has only one
        return os.environ | threads | {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
