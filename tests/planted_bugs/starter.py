"""Runs pytest again and again, each time in a fork of a process that has imported the libraries already.

    python starter.py FOLDER

Reads from standard input a line for each run, the arguments of pytest as a JSON list, and answers with a line of JSON,
{"code": exit code, "output": what pytest printed}. Importing torch and transformers takes longer than most test files.
Nothing of the project is imported here: every run imports the copy in FOLDER as it is then.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile

LIBRARIES = (
    "captum.attr", "datasets", "hypothesis", "jsonschema", "matplotlib.pyplot", "numpy", "peft", "PIL.Image", "pytest",
    "rich", "sacrebleu", "safetensors.torch", "scipy.optimize", "sklearn.decomposition", "torch", "transformers",
    "transformers.models.auto.modeling_auto", "transformers.generation", "typer.testing",
)  # fmt: skip


def run(arguments: list[str]) -> dict[str, object]:
    """Pytest in a fork: its exit code, and what it printed."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            code = 3
            try:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                import pytest

                code = int(pytest.main(arguments))
                sys.stdout.flush()
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        return {"code": code, "output": output.read().decode(errors="replace")}


def main() -> None:
    """Import, then answer until the input ends."""
    os.chdir(sys.argv[1])
    sys.path[0] = sys.argv[1]
    for name in LIBRARIES:
        importlib.import_module(name)
    answers, sys.stdout = sys.stdout, sys.stderr  # a library may print
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
