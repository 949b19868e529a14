"""A port that is a module, in a process of its own: `python -m grains_ref.conformance.module_process FOLDER`.

Question and answer lie in FOLDER as pickles, so that a port's tensors come back as what they are; the lines that go
to and fro only say that they are there. What the port prints goes to standard error.
"""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grains_ref.conformance.alone import Start
from grains_ref.conformance.ports import Port, PortError, PythonPort, Refused, Skipped, told_by
from grains_ref.conformance.programs import CommandPort, Program

QUESTION, ANSWER = "question.pickle", "answer.pickle"
KINDS: dict[str, type[Exception]] = {"refused": Refused, "skipped": Skipped, "error": PortError}


class ModuleProcess:
    """A `Port`: the module is imported in a new process, which finds it where this one does and ends with `close`.

    timeout: seconds for all that it does, its imports among them.

    Raises:
        PortError: it cannot be imported there, or not in time.
    """

    def __init__(self, module: str, *, timeout: float) -> None:
        self._deadline = time.monotonic() + timeout
        self._folder = tempfile.TemporaryDirectory(prefix="grains-conform-")
        command = [sys.executable, "-m", "grains_ref.conformance.module_process", self._folder.name]
        self._program = Program(command)
        try:
            self.name, self.stages, self.dtypes = self._ask({"module": module, "path": sys.path})
        except BaseException:
            self.close()
            raise

    def run(self, stage: str, inputs: Mapping[str, Any], dtype: str, case: str) -> Mapping[str, Any]:
        """See `Port`."""
        answer: Mapping[str, Any] = self._ask({"stage": stage, "inputs": dict(inputs), "dtype": dtype, "case": case})
        return answer

    def close(self) -> None:
        """See `Port`."""
        self._program.kill()
        self._folder.cleanup()

    def _ask(self, question: Mapping[str, Any]) -> Any:
        folder = Path(self._folder.name)
        (folder / QUESTION).write_bytes(pickle.dumps(dict(question)))
        try:
            self._program.ask(b"\n", timeout=max(0.0, self._deadline - time.monotonic()))
        except PortError as problem:
            raise PortError(f"{problem}{self._program.said()}") from None
        try:
            kind, value = pickle.loads((folder / ANSWER).read_bytes())
        except Exception as problem:  # of whatever the port's objects do when they are made again
            raise PortError(f"the answer cannot be read: {told_by(problem)}") from None
        if kind in KINDS:
            raise KINDS[kind](value)
        return value


def anew(module: str, command: str, *, timeout: float) -> Start:
    """How a port is started once more in a process of its own: a module's, or a program by its command.

    timeout: of every message to a program; a module has all the seconds that are left.
    """

    def start(seconds: float) -> Port:
        if command:
            return CommandPort(command, timeout=min(seconds, timeout))
        return ModuleProcess(module, timeout=seconds)

    return start


def main(folder: Path) -> None:
    """Import the module, answer one question, and wait for the end."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    port: PythonPort | None = None
    for _ in sys.stdin:
        question = pickle.loads((folder / QUESTION).read_bytes())
        try:
            if port is None:
                sys.path[:] = question["path"]
                port = PythonPort(question["module"])
                answer: tuple[str, Any] = ("claims", (port.name, port.stages, port.dtypes))
            else:
                answer = ("out", port.run(**question))
            content = pickle.dumps(answer)
        except Exception as problem:
            kind = next((kind for kind, error in KINDS.items() if isinstance(problem, error)), "")
            content = pickle.dumps((kind, str(problem)) if kind else ("error", told_by(problem)))
        (folder / ANSWER).write_bytes(content)
        answers.write(b"done\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
