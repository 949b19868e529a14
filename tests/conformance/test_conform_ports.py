"""Ways to reach a port: what a well-behaved one gives, and that no misbehaviour hangs or fools the kit."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from shared import first_quick

from grains_ref.conformance.ports import (
    FolderPort,
    PortError,
    PythonPort,
    Refused,
    Skipped,
    decode_values,
    encode_values,
)
from grains_ref.conformance.programs import CommandPort

pytestmark = pytest.mark.cpu

INPUTS = {"h": np.array([[[3.0, 4.0], [1.0, 0.0]]]), "v": np.array([1.0, 0.0]), "lam": 0.0}
HELLO = '{"version": 1, "name": "toy", "stages": ["steering"], "dtypes": ["float32"], "arrays": "inline"}'


def program(tmp_path: Path, answer: str, hello: str = HELLO) -> str:
    """The command of a program that answers `start` with `hello` and every `run` with the Python code `answer`."""
    path = tmp_path / "port.py"
    path.write_text(
        "import json, os, sys, time\n"
        "def say(x): print(json.dumps(x), flush=True)\n"
        "for line in sys.stdin:\n"
        "    m = json.loads(line)\n"
        f"    if m['cmd'] == 'start': print({hello!r}, flush=True)\n"
        "    elif m['cmd'] == 'stop': break\n"
        "    else:\n" + textwrap.indent(textwrap.dedent(answer), "        ") + "\n"
    )
    return f"{sys.executable} {path}"


def ask(tmp_path: Path, answer: str, *, timeout: float = 5.0, hello: str = HELLO) -> Any:
    port = CommandPort(program(tmp_path, answer, hello), timeout=timeout)
    try:
        return port.run("steering", INPUTS, "float32", "steering-001")
    finally:
        port.close()


# --- programs


def test_inline_arrays_go_both_ways(tmp_path: Path) -> None:
    got = ask(tmp_path, "say({'seq': m['seq'], 'out': {'h': m['in']['h']}})")
    assert got == {"h": INPUTS["h"].tolist()}


def test_arrays_in_safetensors_go_both_ways(tmp_path: Path) -> None:
    answer = """
    from safetensors.numpy import load_file, save_file
    path, _, key = m['in']['h']['tensor'].partition('#')
    save_file({'x': 2 * load_file(path)[key]}, path + '.out')
    say({'seq': m['seq'], 'out': {'h': {'tensor': path + '.out#x'}}})
    """
    got = ask(tmp_path, answer, hello=HELLO.replace("inline", "safetensors"))
    np.testing.assert_array_equal(got["h"], 2 * INPUTS["h"])


def test_refused_and_skipped_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no such thing"):
        ask(tmp_path, "say({'seq': m['seq'], 'refused': 'no such thing'})")
    with pytest.raises(Skipped, match="too large"):
        ask(tmp_path, "say({'seq': m['seq'], 'skipped': 'too large'})")


@pytest.mark.parametrize(
    ("answer", "message"),
    first_quick(
        [
            ("time.sleep(60)", "no answer within 0.5 seconds; the port was killed"),
            ("print('oh no', file=sys.stderr, flush=True); os._exit(3)", r"(?s)ended with code 3.*oh no"),
            ("print('Segmentation fault', flush=True)", "no JSON: 'Segmentation fault'.*print to standard error"),
            ("print('[1, 2]', flush=True)", "the answer is list; expected an object"),
            ("say({'seq': m['seq']})", "none of out, refused, skipped, error"),
            ("say({'seq': m['seq'], 'out': {}, 'refused': 'x'})", "expected exactly one"),
            ("say({'seq': 99, 'out': {}})", "has seq 99; expected 1"),
            ("say({'seq': m['seq'], 'out': [1]})", "out is list; expected an object with h"),
            ("say({'seq': m['seq'], 'error': 'out of memory'})", "out of memory"),
            ("say({'seq': m['seq'], 'out': {'h': {'tensor': '/nowhere.safetensors#h'}}})", "nowhere.*cannot be read"),
            ("sys.stdin.close(); sys.stdout.close(); time.sleep(60)", "killed|ended|does not read"),
        ],
        6,
    ),
)
def test_a_misbehaving_program_gives_a_clear_error_and_never_hangs(tmp_path: Path, answer: str, message: str) -> None:
    with pytest.raises(PortError, match=message):
        ask(tmp_path, answer, timeout=0.5 if "sleep" in answer else 5.0)


def test_extra_output_is_noticed_at_the_next_case(tmp_path: Path) -> None:
    port = CommandPort(
        program(tmp_path, "say({'seq': m['seq'], 'out': {'h': 1}}); say({'seq': m['seq'], 'out': {'h': 2}})")
    )
    port.run("steering", INPUTS, "float32", "steering-001")
    with pytest.raises(PortError, match="seq 1; expected 2: one answer per message"):
        port.run("steering", INPUTS, "float32", "steering-002")
    port.close()


def test_a_program_that_crashed_is_started_again_for_the_next_case(tmp_path: Path) -> None:
    answer = "os._exit(3) if m['case'] == 'steering-001' else say({'seq': m['seq'], 'out': {'h': 7}})"
    port = CommandPort(program(tmp_path, answer))
    with pytest.raises(PortError, match="code 3"):
        port.run("steering", INPUTS, "float32", "steering-001")
    assert port.run("steering", INPUTS, "float32", "steering-002") == {"h": 7}
    port.close()


@pytest.mark.parametrize(
    ("hello", "message"),
    [
        (HELLO.replace('"version": 1', '"version": 2'), "speaks version 2 of the protocol; this kit speaks 1"),
        (HELLO.replace("steering", "steer"), "claims stages that do not exist: .'steer'.; there are objective"),
        (HELLO.replace("float32", "fp32"), "claims dtypes that do not exist: .'fp32'.; there are float64"),
        (HELLO.replace("inline", "pickle"), "arrays is 'pickle'; expected"),
    ],
)
def test_a_wrong_greeting_is_refused(tmp_path: Path, hello: str, message: str) -> None:
    with pytest.raises(PortError, match=message):
        ask(tmp_path, "pass", hello=hello)


def test_a_program_that_does_not_exist_is_named() -> None:
    with pytest.raises(PortError, match=r"no_such_port cannot be started: .* for a script its interpreter in front"):
        CommandPort("./no_such_port")


# --- Python modules


def module(**functions: Any) -> ModuleType:
    made = ModuleType("my_port")
    vars(made).update(functions)
    return made


def test_a_module_claims_what_it_defines() -> None:
    port = PythonPort(module(steering=lambda **_: {}, selection=lambda **_: {}, helper=len, DTYPES=("float32",)))
    assert (port.name, port.stages, port.dtypes) == ("my_port", ("selection", "steering"), ("float32",))


def test_a_port_cannot_change_the_kits_inputs() -> None:
    def steering(h: np.ndarray, v: np.ndarray, lam: float, dtype: str) -> dict[str, np.ndarray]:
        h += 1
        return {"h": h}

    before = INPUTS["h"].copy()
    PythonPort(module(steering=steering)).run("steering", INPUTS, "float32", "")
    np.testing.assert_array_equal(INPUTS["h"], before)


def test_an_exception_is_a_refusal_and_a_wrong_return_is_not() -> None:
    with pytest.raises(Refused, match="ZeroDivisionError"):
        PythonPort(module(steering=lambda **_: 1 / 0)).run("steering", INPUTS, "float32", "")
    with pytest.raises(PortError, match="returned ndarray; expected a dict with h"):
        PythonPort(module(steering=lambda h, **_: h)).run("steering", INPUTS, "float32", "")
    with pytest.raises(PortError, match="cannot be imported: ModuleNotFoundError"):
        PythonPort("no.such.module")


@pytest.mark.parametrize("name", ["no_such_port.py", "./no_such_port.py"])
def test_a_port_that_is_named_as_a_file_is_told_how_to_name_it(name: str) -> None:
    with pytest.raises(PortError, match=r"as in `import no_such_port`: without \.py"):
        PythonPort(name)


# --- folders


def test_a_folder_is_read_case_by_case(tmp_path: Path) -> None:
    with pytest.raises(PortError, match="has no answers"):
        FolderPort(tmp_path)
    answers = tmp_path / "out" / "float32"
    answers.mkdir(parents=True)
    (answers / "steering-001.json").write_text(json.dumps({"out": {"h": [1, "NaN"]}}))
    (answers / "steering-002.json").write_text(json.dumps({"refused": "bad width"}))
    (answers / "steering-003.json").write_text("{")
    save_file({"h": np.ones(2)}, answers / "mine.safetensors")
    (answers / "selection-001.json").write_text(json.dumps({"out": {"pos": {"tensor": "mine.safetensors#h"}}}))
    port = FolderPort(tmp_path)
    assert (port.stages, port.dtypes) == (("selection", "steering"), ("float32",))
    np.testing.assert_array_equal(port.run("steering", {}, "float32", "steering-001")["h"], [1, np.nan])
    np.testing.assert_array_equal(port.run("selection", {}, "float32", "selection-001")["pos"], [1, 1])
    with pytest.raises(Refused, match="bad width"):
        port.run("steering", {}, "float32", "steering-002")
    with pytest.raises(PortError, match="is no JSON"):
        port.run("steering", {}, "float32", "steering-003")
    with pytest.raises(Skipped, match="does not exist"):
        port.run("steering", {}, "float32", "steering-004")


def test_numbers_that_json_lacks_survive(tmp_path: Path) -> None:
    values = {"a": np.array([np.nan, np.inf, -np.inf, 1.5]), "k": 3, "quadrature": "right"}
    text = json.dumps(encode_values(values, None), allow_nan=False)
    back = decode_values(json.loads(text))
    np.testing.assert_array_equal(back.pop("a"), values["a"])
    assert back == {"k": 3, "quadrature": "right"}
