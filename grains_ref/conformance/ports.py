"""Three ways to reach a port: a Python module, a program that speaks JSON lines, a folder of files.

Each gives an object with a name, the stages and dtypes it claims, and `run(stage, inputs, dtype, case)`. A port may
claim any subset of the stages; what it does not claim is reported as not claimed, never as passed.
"""

from __future__ import annotations

import importlib
import json
import math
import queue
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from grains_ref.conformance.stages import DTYPES, OUTPUTS, Values

PROTOCOL = 1
LONGEST_LINE = 64 << 20  # bytes of one answer; more is not an answer


class Refused(Exception):
    """The port refused the input, as it must when the input is invalid."""


class Skipped(Exception):
    """The port says that it cannot run this case."""


class PortError(ValueError):
    """The port crashed, hung or answered something that is no answer."""


class Port(Protocol):
    """What the kit needs from a port."""

    name: str
    stages: tuple[str, ...]
    dtypes: tuple[str, ...]

    def run(self, stage: str, inputs: Mapping[str, Any], dtype: str, case: str) -> Mapping[str, Any]:
        """The outputs of one stage.

        Raises:
            Refused: the port refuses the input.
            Skipped: the port cannot run the case.
            PortError: anything else went wrong.
        """

    def close(self) -> None:
        """End whatever was started."""


# ------------------------------------------------------------------------------------- Python
class PythonPort:
    """A module with functions named like the stages; an exception counts as a refusal.

    The module may also have NAME (default: its own) and DTYPES (default: float64 and float32).

    Raises:
        PortError: the module cannot be imported, or claims a dtype that does not exist.
    """

    def __init__(self, module: str | ModuleType) -> None:
        try:
            self.module = importlib.import_module(module) if isinstance(module, str) else module
        except Exception as error:
            raise PortError(f"the port {module!r} cannot be imported: {type(error).__name__}: {error}") from error
        self.name = str(getattr(self.module, "NAME", self.module.__name__))
        self.stages = tuple(stage for stage in OUTPUTS if callable(getattr(self.module, stage, None)))
        self.dtypes = _known_dtypes(getattr(self.module, "DTYPES", ("float64", "float32")))

    def run(self, stage: str, inputs: Mapping[str, Any], dtype: str, case: str) -> Mapping[str, Any]:
        """See `Port`."""
        copies = {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in inputs.items()}
        try:
            outputs = getattr(self.module, stage)(**copies, dtype=dtype)
        except Exception as error:
            raise Refused(f"{type(error).__name__}: {error}") from error
        if not isinstance(outputs, Mapping):
            raise PortError(
                f"{stage} returned {type(outputs).__name__}; expected a dict with {', '.join(OUTPUTS[stage])}"
            )
        return outputs

    def close(self) -> None:
        """Nothing was started."""


# ------------------------------------------------------------------------------------- JSON lines
class CommandPort:
    """A program that reads one JSON object per line and answers with one; see docs/porting.md for the protocol.

    A program that hangs is killed after `timeout` seconds, one that crashes or answers garbage is reported with what it
    wrote to standard error; it is started again for the next case.

    Raises:
        PortError: it cannot be started, or does not answer the start message.
    """

    def __init__(self, command: str, *, timeout: float = 20.0) -> None:
        self.command, self.timeout, self._seq = shlex.split(command), timeout, 0
        self._folder = tempfile.TemporaryDirectory(prefix="grains-conform-")
        self._errors: list[str] = []
        hello = self._start()
        if hello.get("version") != PROTOCOL:
            raise PortError(
                f"the port speaks version {hello.get('version')!r} of the protocol; this kit speaks {PROTOCOL}"
            )
        self.name = str(hello.get("name", command))
        self.stages = tuple(str(stage) for stage in hello.get("stages", ()))
        if unknown := sorted(set(self.stages) - set(OUTPUTS)):
            raise PortError(f"the port claims stages that do not exist: {unknown}; there are {', '.join(OUTPUTS)}")
        self.dtypes = _known_dtypes(hello.get("dtypes", ("float32",)))
        self.arrays = hello.get("arrays", "inline")
        if self.arrays not in ("inline", "safetensors"):
            raise PortError(f"arrays is {self.arrays!r}; expected 'inline' or 'safetensors'")

    def run(self, stage: str, inputs: Mapping[str, Any], dtype: str, case: str) -> Mapping[str, Any]:
        """See `Port`."""
        if self._process.poll() is not None:
            self._start()
        self._seq += 1
        place = Path(self._folder.name) / f"{self._seq}.safetensors"
        message = {"cmd": "run", "seq": self._seq, "stage": stage, "case": case, "dtype": dtype}
        answer = self._ask(message | {"in": encode_values(inputs, None if self.arrays == "inline" else place)})
        if answer.get("seq") != self._seq:
            self._kill()
            raise PortError(f"the answer has seq {answer.get('seq')!r}; expected {self._seq}: one answer per message")
        kinds = [kind for kind in ("out", "refused", "skipped", "error") if kind in answer]
        if len(kinds) != 1:
            raise PortError(f"the answer has {kinds or 'none'} of out, refused, skipped, error; expected exactly one")
        if kinds == ["refused"]:
            raise Refused(str(answer["refused"]))
        if kinds == ["skipped"]:
            raise Skipped(str(answer["skipped"]))
        if kinds == ["error"]:
            raise PortError(str(answer["error"]))
        if not isinstance(answer["out"], dict):
            raise PortError(
                f"out is {type(answer['out']).__name__}; expected an object with {', '.join(OUTPUTS[stage])}"
            )
        return decode_values(answer["out"])

    def close(self) -> None:
        """See `Port`."""
        if self._process.poll() is None:
            try:
                self._send({"cmd": "stop"})
                self._process.wait(timeout=2)
            except (OSError, subprocess.TimeoutExpired):
                pass
        self._kill()
        self._folder.cleanup()

    def _start(self) -> dict[str, Any]:
        try:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
            )
        except OSError as error:
            raise PortError(f"{shlex.join(self.command)} cannot be started: {error}") from error
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._errors = []
        threading.Thread(target=_read, args=(self._process.stdout, self._lines.put), daemon=True).start()
        self._listener = threading.Thread(target=_read, args=(self._process.stderr, self._keep_error), daemon=True)
        self._listener.start()
        return self._ask({"cmd": "start", "version": PROTOCOL})

    def _keep_error(self, line: bytes) -> None:
        self._errors = [*self._errors, line.decode(errors="replace").rstrip()][-20:]

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def _ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        try:
            self._send(message)
            line = self._lines.get(timeout=self.timeout)
        except queue.Empty:
            self._kill()
            raise PortError(f"no answer within {self.timeout:g} seconds; the port was killed{self._said()}") from None
        except OSError as error:
            self._kill()
            raise PortError(f"the port does not read its input ({error}){self._said()}") from None
        if not line:
            code = self._process.wait()
            self._listener.join(timeout=2)  # its last words may still be on their way
            raise PortError(f"the port ended with code {code} instead of answering{self._said()}")
        try:
            answer = json.loads(line)
        except ValueError:
            self._kill()
            shown = line[:200].decode(errors="replace").rstrip()
            advice = "Only answers may go to standard output; print to standard error."
            raise PortError(f"the answer is no JSON: {shown!r}. {advice}{self._said()}") from None
        if not isinstance(answer, dict):
            self._kill()
            raise PortError(f"the answer is {type(answer).__name__}; expected an object")
        return answer

    def _said(self) -> str:
        return f". It wrote to standard error:\n    {chr(10).join(self._errors[-5:])}" if self._errors else ""

    def _kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream:
                stream.close()


def _read(stream: Any, put: Any) -> None:
    """Lines of a stream until it ends; then one empty line."""
    try:
        while line := stream.readline(LONGEST_LINE):
            put(line)
    except (OSError, ValueError):
        pass
    put(b"")


# ------------------------------------------------------------------------------------- files
class FolderPort:
    """Answers that lie in files: DIR/out/DTYPE/CASE.json, as `grains-ref conform dump DIR` explains.

    Raises:
        PortError: there is no such folder, or no answer in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "out"
        self.dtypes = tuple(dtype for dtype in DTYPES if any((self.folder / dtype).glob("*.json")))
        if not self.dtypes:
            raise PortError(f"{self.folder} has no answers; expected files such as out/float32/steering-001.json")
        self.name = str(folder)
        names = {path.stem.rpartition("-")[0] for dtype in self.dtypes for path in (self.folder / dtype).glob("*.json")}
        self.stages = tuple(stage for stage in OUTPUTS if stage in names)

    def run(self, stage: str, inputs: Mapping[str, Any], dtype: str, case: str) -> Mapping[str, Any]:
        """See `Port`."""
        path = self.folder / dtype / f"{case}.json"
        if not path.is_file():
            raise Skipped(f"{path} does not exist")
        try:
            answer = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise PortError(f"{path} is no JSON: {error}") from None
        if isinstance(answer, dict) and "refused" in answer:
            raise Refused(str(answer["refused"]))
        if not isinstance(answer, dict) or not isinstance(answer.get("out"), dict):
            raise PortError(f'{path} must hold {{"out": {{...}}}} or {{"refused": "why"}}')
        return decode_values(answer["out"], relative_to=path.parent)

    def close(self) -> None:
        """Nothing was started."""


# ------------------------------------------------------------------------------------- values as JSON
def encode_values(values: Mapping[str, Any], tensors: Path | None) -> dict[str, Any]:
    """Values as JSON: arrays as nested lists, or as references into a safetensors file that is written here."""
    arrays = {name: np.ascontiguousarray(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    plain = {name: json_numbers(value) for name, value in values.items() if name not in arrays}
    if tensors is None:
        return plain | {name: json_numbers(value.tolist()) for name, value in arrays.items()}
    if arrays:
        save_file(arrays, tensors)
    return plain | {name: {"tensor": f"{tensors}#{name}"} for name in arrays}


def decode_values(values: Mapping[str, Any], relative_to: Path = Path()) -> Values:
    """The reverse of `encode_values`.

    Raises:
        PortError: a referenced file or tensor does not exist.
    """
    decoded: Values = {}
    for name, value in values.items():
        if isinstance(value, dict) and set(value) == {"tensor"}:
            path, _, key = str(value["tensor"]).partition("#")
            try:
                decoded[name] = load_file(relative_to / path)[key]
            except (OSError, SafetensorError, KeyError) as error:
                raise PortError(f"{name}: {value['tensor']} cannot be read: {type(error).__name__}: {error}") from None
        else:
            decoded[name] = numbers_of_json(value)
    return decoded


def json_numbers(value: Any) -> Any:
    """Nested lists in which NaN and infinities, which JSON lacks, are strings."""
    if isinstance(value, list):
        return [json_numbers(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def numbers_of_json(value: Any) -> Any:
    """The reverse of `json_numbers`."""
    if isinstance(value, list):
        return [numbers_of_json(item) for item in value]
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value


def _known_dtypes(names: Sequence[str]) -> tuple[str, ...]:
    if unknown := sorted(set(names) - set(DTYPES)):
        raise PortError(f"the port claims the dtypes {unknown}; there are {', '.join(DTYPES)}")
    return tuple(names)
