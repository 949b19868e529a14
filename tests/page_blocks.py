"""The code blocks of README, CONTRIBUTING and the pages of docs/, taken apart and run."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import command

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)")
MARK = re.compile(r"^<!-- not run: (.+) -->$")
LANGUAGES = {"bash", "python", "json", "text", "bibtex"}

# What stands for something of the reader's own in a command, and what a test puts there.
PLACEHOLDERS = {
    "MODEL": "tiny:simple-seed0",
    "FOLDER": "fixture",
    "NAME": "truthfulqa",
    "mypkg.adapter": "torch_port",
    "mypkg.live": "my_live",
}
# Programs that are looked for rather than run: they install, take hours, or are the test suite itself.
OTHERS = {
    "pip",
    "hf",
    "ruff",
    "mypy",
    "pre-commit",
    "mkdocs",
    "git",
    "python3",
    "",
    "llama-cli",
    "torchrun",
    "accelerate",
    "lm_eval",
}


@dataclass(frozen=True)
class Block:
    """A fenced block. `reason` says why it is not run; `section` counts the headings before it."""

    page: str
    line: int
    language: str
    text: str
    section: int
    reason: str = ""

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.page}:{self.line}"


def blocks_of(path: Path) -> list[Block]:
    """All blocks of a page, in order."""
    page = str(path.relative_to(ROOT))
    found: list[Block] = []
    reason, section, start, language = "", 0, 0, ""
    inside: list[str] | None = None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fence = FENCE.match(line)
        if inside is not None:
            if line == "```":
                found.append(Block(page, start, language, "\n".join(inside), section, reason))
                inside, reason = None, ""
            else:
                inside.append(line)
        elif fence:
            inside, start, language = [], number, fence[1]
        elif mark := MARK.match(line):
            reason = mark[1]
        elif line.strip():
            reason = ""
            section += line.startswith("#")
    assert inside is None, f"{page}: a block that begins on line {start} has no end"
    return found


def commands_of(text: str) -> Iterator[list[str]]:
    """The commands of a block, as words, without comments and prompts."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            yield words[:end]
            words = words[end + 1 :]


def run_commands(block: Block) -> str:
    """Run what is of `grains-ref`, look for the rest; gives what was printed."""
    output = ""
    for words in commands_of(block.text):
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # a variable of the environment
            words = words[1:]
        program = Path(words[0]).name
        if program == "grains-ref":
            given = [PLACEHOLDERS.get(word, word) for word in words[1:]]
            result = command.run(*given)
            assert result.exit_code == 0, f"{block.name}: {shlex.join(words)}\n{result.output}"
            output += result.output
        else:
            check_exists(program, words, block.name)
    return output


def check_exists(program: str, words: list[str], where: str) -> None:
    """A command that is not run names scripts, modules, tests and tox environments that exist."""
    arguments = [word for word in words[1:] if not word.startswith("-")]
    if program in ("python", "bash", "pytest"):
        if "-m" in words and program == "python":
            assert importlib.util.find_spec(words[words.index("-m") + 1]), where
            return
        paths = [word for word in arguments if word.startswith(("tests/", "benchmarks/", "fixtures/"))]
        assert paths or program == "pytest", where
        missing = [path for path in paths if not (ROOT / path.split("::")[0]).exists()]
        assert missing == [], where
    elif program == "tox":
        tox = (ROOT / "tox.ini").read_text(encoding="utf-8")
        for name in ",".join(arguments).split(","):
            assert not name or f"[testenv:{name}]" in tox or "-transformers" in name, f"{where}: no environment {name}"
    else:
        assert program in OTHERS, f"{where}: {program} is neither run nor known"


def write_module(block: Block) -> None:
    """A block of Python that begins with `# NAME.py` is that file."""
    if block.language == "python" and (file := re.match(r"# (\w+\.py)\n", block.text)):
        Path(file[1]).write_text(block.text, encoding="utf-8")


def run_python(block: Block, names: dict[str, Any]) -> str:
    """Run Python with the page's names so far; gives what was printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.text, block.name, "exec"), names)
    return printed.getvalue()


def masked(text: str) -> str:
    """A text without its numbers, its lines and the lines drawn in it: last digits and widths are a machine's own."""
    without_lines = re.sub(r"[─━│┃┏┓┗┛┡┩╇╈└┘├┤┴┬┼┳┻]+", " ", text)
    return re.sub(r"\s+", " ", re.sub(r"[-+]?\d[\d.,]*(e[-+]?\d+)?", "#", without_lines)).strip()


def missing_lines(block: Block, output: str) -> list[str]:
    """Lines of a block of output that the command does not print, numbers apart."""
    printed = masked(output)
    return [line for line in block.text.splitlines() if masked(line) and masked(line) not in printed]
