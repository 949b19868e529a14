"""Ways to reach a port: a Python module, a folder of files; a program that speaks JSON lines is in `programs`.

Each gives an object with a name, the stages and dtypes it claims, and `run(stage, inputs, dtype, case)`. A port may
claim any subset of the stages; what it does not claim is reported as not claimed, never as passed.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from safetensors import numpy as safetensors
from safetensors.numpy import save_file

from grains_ref.conformance.stages import DTYPES, OUTPUTS, Values
from grains_ref.files import FileError, parse_json, printable, read_whole

LONGEST_ANSWER = 64 << 20  # bytes of one answer; more is not an answer
LONGEST_MESSAGE = 2000  # characters of what a port says


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


class InOrder:
    """A `Port` that remembers what it was asked last."""

    def __init__(self, port: Port) -> None:
        self.port, self.last = port, ""
        self.name, self.stages, self.dtypes = port.name, port.stages, port.dtypes

    def run(self, stage: str, inputs: Mapping[str, Any], dtype: str, case: str) -> Mapping[str, Any]:
        """See `Port`."""
        self.last = f"{case} ({dtype})"
        return self.port.run(stage, inputs, dtype, case)

    def close(self) -> None:
        """See `Port`."""
        self.port.close()


# ------------------------------------------------------------------------------------- Python
class PythonPort:
    """A module with functions named like the stages; an exception counts as a refusal.

    The module may also have NAME (default: its own) and DTYPES (default: float64 and float32).  It runs in this
    process: one that hangs, or ends the process, is better reached as a program.

    Raises:
        PortError: the module cannot be imported, or claims a dtype that does not exist.
    """

    def __init__(self, module: str | ModuleType) -> None:
        self.module = import_port(module) if isinstance(module, str) else module
        self.name = words_of(getattr(self.module, "NAME", self.module.__name__))
        self.stages = tuple(stage for stage in OUTPUTS if callable(getattr(self.module, stage, None)))
        self.dtypes = known_names("dtypes", getattr(self.module, "DTYPES", ("float64", "float32")), DTYPES)

    def run(self, stage: str, inputs: Mapping[str, Any], dtype: str, case: str) -> Mapping[str, Any]:
        """See `Port`."""
        copies = {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in inputs.items()}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # what became of 0 / 0 is reported with its case
                outputs = getattr(self.module, stage)(**copies, dtype=dtype)
        except Exception as error:
            raise Refused(told_by(error)) from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit, or what a test framework skips by
            raise PortError(f"{stage} tried to end the program: {told_by(error)}") from error
        if not isinstance(outputs, Mapping):
            raise PortError(
                f"{stage} returned {type(outputs).__name__}; expected a dict with {', '.join(OUTPUTS[stage])}"
            )
        try:
            outputs = {name: outputs[name] for name in outputs}
        except Exception as error:
            raise PortError(f"{stage} returned a mapping that cannot be read: {told_by(error)}") from error
        if not all(isinstance(name, str) for name in outputs):
            raise PortError(f"{stage} returned a dict whose keys are not all texts")
        return outputs

    def close(self) -> None:
        """Nothing was started."""


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
            answer = parse_json(read_whole(path, limit=LONGEST_ANSWER))
        except FileError as error:
            raise PortError(str(error)) from None
        except ValueError as error:
            raise PortError(f"{path} is no JSON: {error}") from None
        if isinstance(answer, dict) and "refused" in answer:
            raise Refused(words_of(answer["refused"]))
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
            place = words_of(value["tensor"])
            path, _, key = place.partition("#")
            try:
                decoded[name] = safetensors.load(read_whole(relative_to / path, limit=LONGEST_ANSWER))[key]
            except Exception as error:  # of safetensors, NumPy, or the system: the file is the port's
                raise PortError(f"{name}: {place} cannot be read: {told_by(error)}") from None
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


# ------------------------------------------------------------------------------------- what ports say
def import_port(name: str) -> ModuleType:
    """The module of a port.

    Raises:
        PortError: it cannot be imported, or ends the program when it is.
    """
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        advice = ""
        if name.endswith(".py") or "/" in name:
            module = name.rpartition("/")[2].removesuffix(".py")
            advice = f". A port is named as in `import {module}`: without .py, from the folder that the file lies in"
        raise PortError(f"the port {name!r} cannot be imported: {told_by(error)}{advice}") from error


def known_names(what: str, names: Any, known: Mapping[str, Any]) -> tuple[str, ...]:
    """What a port claims: a list of names that exist, each once.

    Raises:
        PortError: it is something else.
    """
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise PortError(f"the port claims {what} {words_of(repr(names))[:200]}; expected a list of names")
    if unknown := sorted(set(names) - set(known)):
        raise PortError(f"the port claims {what} that do not exist: {unknown}; there are {', '.join(known)}")
    if len(set(names)) < len(names):
        raise PortError(f"the port claims {what} twice: {', '.join(names)}")
    return tuple(names)


def told_by(error: BaseException) -> str:
    """Kind and message of an error that a port raised."""
    return f"{type(error).__name__}: {words_of(error)}"


def words_of(value: Any) -> str:
    """What a port says, as text of bounded length that no terminal obeys."""
    try:
        text = str(value)
    except Exception:
        text = f"a {type(value).__name__} that cannot be written as text"
    return printable(text[:LONGEST_MESSAGE], keep="\n\t")
