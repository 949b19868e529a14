"""Ports that do harm: a failed case with a message that names what is wrong, never a lost run, nothing left behind."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from robustness.port_answers import HELLO
from robustness.reports import PIECES
from typer.testing import CliRunner

from grains_ref.cli import app
from grains_ref.cli.console import Screen
from grains_ref.conformance import programs
from grains_ref.conformance.budgets import load_budgets
from grains_ref.conformance.cases import Case
from grains_ref.conformance.dialects import PAPER
from grains_ref.conformance.live.answers import Answers
from grains_ref.conformance.live.check import _loaded
from grains_ref.conformance.live.distances import BadAnswer, check_fingerprint, fingerprint
from grains_ref.conformance.ports import FolderPort, Port, PortError, PythonPort, Refused, decode_values, import_port
from grains_ref.conformance.programs import CommandPort, read_hello
from grains_ref.conformance.report import as_json, junit, print_run
from grains_ref.conformance.runner import Result, Run, run_port

pytestmark = pytest.mark.cpu

STEERING, SELECTION = (
    [case for case in PAPER.cases if case.stage == stage and case.result == "valid"]
    for stage in ("steering", "selection")
)


def results(port: Port, cases: list[Case], *, modes: Any = ("isolated",)) -> tuple[Result, ...]:
    return run_port(port, load_budgets(), cases=cases, dtypes=("float32",), modes=modes).results


# --- programs


def program(tmp_path: Path, code: str, *, timeout: float = 0.5, hello: dict[str, Any] = HELLO) -> CommandPort:
    """A port that says hello and then does what the code says."""
    path = tmp_path / "port.py"
    path.write_text(
        "import json, os, subprocess, sys, time\n"
        "line = sys.stdin.readline()\n"
        f"print({json.dumps(json.dumps(hello))}, flush=True)\n{code}"
    )
    return CommandPort(f"{sys.executable} -S -E {path}", timeout=timeout)


def processes(port: CommandPort) -> list[int]:
    """What runs in the process group of a port's program."""
    group = port._program._process.pid
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of_group = path.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(of_group) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


BIG = replace(STEERING[0], id="steering-big", inputs={**STEERING[0].inputs, "h": np.zeros((40, 500, 13))})


def test_a_program_that_does_not_read_is_killed_in_time(tmp_path: Path) -> None:
    port = program(tmp_path, "time.sleep(600)\n")
    with pytest.raises(PortError, match=r"does not read its input: a message was not taken within 0\.5 seconds"):
        port.run("steering", BIG.inputs, "float32", BIG.id)
    assert port._program.has_ended()
    port.close()


@pytest.mark.thorough
def test_a_program_that_answers_without_reading_all_is_killed_in_time(tmp_path: Path) -> None:
    port = program(tmp_path, 'print(\'{"seq": 1, "out": {}}\', flush=True); time.sleep(600)\n')
    with pytest.raises(PortError, match="answered, but did not read the whole message"):
        port.run("steering", BIG.inputs, "float32", BIG.id)
    port.close()


def test_a_program_that_never_answers_is_asked_three_times_and_no_more(tmp_path: Path) -> None:
    port = program(tmp_path, "time.sleep(600)\n", timeout=0.2)
    cases = STEERING[:6]
    found = results(port, cases)
    assert [(result.case, result.stage, result.status) for result in found] == [
        (case.id, "steering", "failed") for case in cases
    ]
    said = [result.message for result in found]
    hung = [message for message in said if "within 0.2 seconds; the port was killed" in message]
    assert len(hung) == programs.MOST_HANGS
    assert said[programs.MOST_HANGS :] == ["not asked: the port hung 3 times in a row"] * 3
    port.close()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes where Linux lists them")
@pytest.mark.parametrize("how", ["hangs", "is closed", "does not greet"])
def test_nothing_is_left_running_of_a_program_and_of_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    child = "subprocess.Popen([sys.executable, '-S', '-E', '-c', 'import time; time.sleep(600)'])\n"
    started = list[CommandPort]()
    monkeypatch.setattr(programs, "LAST_WORDS", 0.2)
    if how == "does not greet":
        real = programs.Program.kill

        def kill(self: programs.Program) -> None:
            seen = CommandPort.__new__(CommandPort)
            seen._program = self
            started.append(seen)
            assert processes(seen)
            real(self)

        monkeypatch.setattr(programs.Program, "kill", kill)
        with pytest.raises(PortError, match="speaks version None"):
            program(tmp_path, child + "time.sleep(600)\n", timeout=30, hello={"name": "x"})
        (port,) = started[-1:]
    else:
        port = program(tmp_path, child + "time.sleep(600)\n")
        if how == "hangs":
            with pytest.raises(PortError, match="killed"):
                port.run("steering", STEERING[0].inputs, "float32", "x")
        port.close()
    for _ in range(100):  # the system ends the orphans of the group in its own time
        if not processes(port):
            break
        time.sleep(0.05)
    assert processes(port) == []
    assert port._program._process.returncode is not None  # no zombie


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("b'[' * 20000", "the answer is no JSON: .* nested 20000 deep"),
        ('b\'{"seq": 1, "out": {"h": NaN}}\'', "no JSON: .*NaN is no JSON number"),
        ('b\'{"seq": 1, "seq": 1, "out": {}}\'', "'seq' is given twice"),
        ('b\'{"seq": true, "out": {}}\'', "has seq True; expected 1"),
        ("b'{\"seq\": 1, \"out\": {\"h\": ' + b'9' * 5000 + b'}}'", "no JSON"),
        ("b'\\xff\\xfe'", "no JSON"),
    ],
)
def test_an_answer_that_does_harm_fails_its_case(tmp_path: Path, answer: str, words: str) -> None:
    port = program(
        tmp_path, f"sys.stdout.buffer.write({answer} + b'\\n'); sys.stdout.flush()\ntime.sleep(600)\n", timeout=5
    )
    with pytest.raises(PortError, match=words):
        port.run("steering", STEERING[0].inputs, "float32", "steering-001")
    port.close()


def test_a_line_without_end_is_cut_off_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "LONGEST_ANSWER", 1 << 20)
    port = program(tmp_path, "while True: sys.stdout.write('x' * 65536)\n", timeout=20)
    with pytest.raises(PortError, match=r"the answer is longer than 1 MiB"):
        port.run("steering", STEERING[0].inputs, "float32", "steering-001")
    assert port._program._lines.qsize() <= 2
    port.close()


def test_a_program_that_cannot_be_a_command_is_refused() -> None:
    for command in ("", "'", "a\0b"):
        with pytest.raises(PortError, match=r"cannot be (started|read)"):
            CommandPort(command)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": True}, "speaks version True"),
        ({"version": "1"}, "speaks version '1'"),
        ({"stages": 5}, "claims stages 5; expected a list of names"),
        ({"stages": [["steering"]]}, "expected a list of names"),
        ({"dtypes": "float32"}, "claims dtypes 'float32'; expected a list of names"),
        ({"dtypes": ["float32", "float32"]}, "claims dtypes twice: float32, float32"),
        ({"arrays": ["inline"]}, "arrays is"),
        ({"arrays": {}}, "arrays is"),
    ],
)
def test_a_greeting_of_the_wrong_shape_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(PortError, match=words):
        read_hello(HELLO | change, name="x")


def test_a_name_that_a_terminal_would_obey_is_written_out() -> None:
    name = read_hello(HELLO | {"name": "\x1b[2J" + "x" * 9999}, name="x")[0]
    assert name.startswith("\\x1b[2J")
    assert len(name) < 3000


def test_a_tensor_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (f"{tmp_path}/pipe#x", "/dev/zero#x", f"{tmp_path}#x", "a\0b#c", 5):
        with pytest.raises(PortError, match=r"h: .*cannot be read"):
            decode_values({"h": {"tensor": place}})


def test_a_folder_with_a_pipe_or_deep_nesting_among_its_answers_is_read_to_the_end(tmp_path: Path) -> None:
    answers = tmp_path / "out" / "float32"
    answers.mkdir(parents=True)
    os.mkfifo(answers / "steering-001.json")
    (answers / "steering-002.json").write_text("[" * 20_000)
    (answers / "steering-003.json").write_text('{"out": {"h": [NaN]}}')
    found = {result.case: result for result in results(FolderPort(tmp_path), STEERING)}
    assert found["steering-002"].status == found["steering-003"].status == "failed"
    assert "nested 20000 deep" in found["steering-002"].message
    assert found["steering-001"].status in ("failed", "skipped")


# --- Python modules


def module(**functions: Any) -> PythonPort:
    made = ModuleType("my_port")
    vars(made).update(functions)
    return PythonPort(made)


def leave(**_: Any) -> None:
    sys.exit("bye")


class Unsayable(Exception):
    """Its message cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError


class NoArray:
    """What NumPy cannot read."""

    def __array__(self, *args: Any, **options: Any) -> Any:
        raise OSError("gone")


def returns(value: Any) -> Callable[..., Any]:
    return lambda **_: value


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (leave, "steering tried to end the program: SystemExit: bye"),
        (returns(None), "steering returned NoneType"),
        (returns({"h": torch.ones(2, 5, 13, requires_grad=True)}), "h is no array of numbers: RuntimeError.*detach"),
        (returns({"h": np.full((2, 5, 13), None)}), "h is no array of numbers: it holds objects"),
        (returns({"h": [["1.0", "2.0"]]}), "h is no array of numbers: it holds text"),
        (returns({"h": [[1.0], [2.0, 3.0]]}), "h is no array of numbers"),
        (returns({"h": [10**400]}), "h is no array of numbers: OverflowError"),
        (returns({"h": np.ones((2, 5, 13), dtype=complex)}), "it holds complex numbers"),
        (returns({"h": np.ones((2, 5, 13), dtype=bool)}), "it holds truth values"),
        (returns({"h": NoArray()}), "h is no array of numbers: OSError: gone"),
        (returns({1: 2, "h": 3}), "a dict whose keys are not all texts"),
        (returns({"h": np.full((2, 5, 13), 1e308)}), "a value of 1e\\+308"),
    ],
)  # fmt: skip
def test_what_a_module_does_fails_its_case_and_the_next_is_run(answer: Any, words: str) -> None:
    with np.errstate(all="ignore"):
        found = results(module(steering=answer), STEERING[:2])
    assert [result.status for result in found] == ["failed", "failed"]
    assert re.search(words, found[0].message), found[0].message


def test_whole_numbers_beyond_64_bits_are_numbers_and_digits_in_quotes_are_none() -> None:
    right = [0, 2]
    case = next(case for case in SELECTION if case.id == "selection-001")
    for pos, words in ((["0", "2"], "pos is no array of numbers: it holds text"), ([2**70], "list of token indices"),
                       ([float("nan")], "list of token indices"), ([1e300], "list of token indices"),
                       ([0.5], "list of token indices"), ([[0]], "list of token indices")):  # fmt: skip
        (result,) = results(module(selection=returns({"pos": pos, "neg": right})), [case])
        assert words in result.message


def test_an_exception_without_a_message_is_a_refusal() -> None:
    def steering(**_: Any) -> None:
        raise Unsayable

    with pytest.raises(Refused, match="Unsayable: a Unsayable that cannot be written as text"):
        module(steering=steering).run("steering", {}, "float32", "x")


def test_the_chain_of_a_port_that_makes_nonsense_ends_in_failed_results() -> None:
    chain = ("attribution", "selection", "contrast", "aggregation", "steering")
    for answer, modes in ((leave, ["chained"]), (returns({"a": "x"}), ["chained", "end to end"])):
        found = results(module(**dict.fromkeys(chain, answer)), [], modes=modes)
        assert [(result.mode, result.status) for result in found] == [(mode, "failed") for mode in modes]
        assert all(result.message for result in found)


def test_a_port_of_another_kind_that_raises_what_it_likes_fails_its_case() -> None:
    class Odd:
        name, stages, dtypes = "odd", ("steering",), ("float32",)

        def run(self, *args: Any) -> Any:
            raise ConnectionResetError("the line is dead")

        def close(self) -> None:
            pass

    (result,) = results(Odd(), STEERING[:1])
    assert (result.status, result.message) == ("failed", "ConnectionResetError: the line is dead")


def test_a_module_that_ends_the_program_when_imported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaving_port.py").write_text("import sys; sys.exit(0)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PortError, match="'leaving_port' cannot be imported: SystemExit: 0"):
        import_port("leaving_port")
    done = CliRunner().invoke(app, ["conform", "run", "--port", "leaving_port"])
    assert done.exit_code == 1


def test_a_command_that_is_refused_after_its_port_was_started_closes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[CommandPort] = []
    real = CommandPort.close
    monkeypatch.setattr(CommandPort, "close", lambda self: (closed.append(self), real(self)))
    port = program(tmp_path, "sys.stdin.readline()\n")
    port.close()
    closed.clear()
    command = f"{sys.executable} -S -E {tmp_path / 'port.py'}"
    for wrong in (["--only", "nothing"], ["--mode", "sideways"], ["--dtype", "float64"], ["--dialect", "dutch"]):
        assert CliRunner().invoke(app, ["conform", "run", "--cmd", command, *wrong]).exit_code == 1
    assert len(closed) == 4
    assert all(port._program.has_ended() for port in closed)


# --- the live check


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (leave, "live_edit raised SystemExit: bye"),
        (returns(None), "it holds objects"),
        (returns("1.0"), "it holds text"),
        (returns([10**400]), "OverflowError"),
        (returns(fingerprint(np.ones(3))), "live_edit is no array"),
    ],
)
def test_what_a_live_port_does_is_a_bad_answer(function: Any, words: str) -> None:
    port = ModuleType("live_port")
    vars(port)["live_edit"] = lambda handle, *arguments: function()
    asked = Answers(model=None, pair=None, port=port, handle=None, m=1)  # type: ignore[arg-type]
    with pytest.raises(BadAnswer, match=words):
        asked.edit(np.ones((1, 2)), np.ones(2), 1.0)


@pytest.mark.parametrize("chosen", [["1"], [0.5], [float("nan")], [[0]], "0", None, [2**70]])
def test_indices_of_a_live_port_are_whole_numbers(chosen: Any) -> None:
    port = ModuleType("live_port")
    vars(port)["live_selection"] = lambda *arguments: {"pos": chosen, "neg": []}
    asked = Answers(model=None, pair=None, port=port, handle=None, m=1)  # type: ignore[arg-type]
    with pytest.raises(BadAnswer, match="live_selection: pos"):
        asked.selection(np.ones(2), np.ones(2, dtype=bool), 1)


@pytest.mark.parametrize(
    "change",
    [{"norm": "1"}, {"norm": None}, {"mean": float("inf")}, {"sketch": [1.0]}, {"sketch": "x"}, {"shape": 3},
     {"shape": ["2"]}],
)  # fmt: skip
def test_a_fingerprint_of_nonsense_is_a_bad_answer(change: dict[str, Any]) -> None:
    right = fingerprint(np.ones(3))
    check_fingerprint("x", right)
    with pytest.raises(BadAnswer, match="a fingerprint"):
        check_fingerprint("x", right | change)


def test_a_port_whose_load_ends_the_program_is_refused_in_one_sentence() -> None:
    for load, words in (
        (lambda source: sys.exit("bye"), "SystemExit: bye"),
        (lambda source: 1 / 0, "ZeroDivisionError"),
    ):
        port = ModuleType("live_port")
        vars(port)["LOAD"] = load
        with pytest.raises(ValueError, match=f"the port's LOAD raised {words}"):
            _loaded(port, "model")


def test_an_infinite_error_is_null_in_a_file_for_programs() -> None:
    failed = Result("steering-001", "steering", "float32", "isolated", "failed", error=float("inf"), budget=0.5)
    (row,) = as_json(Run("port", ("steering",), ("float32",), (failed,)))["results"]
    assert '"error": null' in json.dumps(row, allow_nan=False)


# --- reports


@pytest.mark.parametrize("piece", PIECES)
def test_whatever_a_port_says_the_report_is_xml_and_the_terminal_obeys_nothing(piece: str) -> None:
    failed = Result("steering-001", "steering", "float32", "isolated", "failed", message=f"a{piece}b")
    skipped = replace(failed, case=f"steering-{piece}", status="skipped")
    run = Run(f"port{piece}", ("steering",), ("float32",), (failed, skipped), stale=(piece,))
    suite = ElementTree.fromstring(junit(run))
    assert suite.get("name", "").startswith("grains_ref conformance of port")
    assert [case[0].tag for case in suite] == ["failure", "skipped"]
    screen = Screen()
    screen.file = io.StringIO()
    print_run(run, load_budgets(), screen, repeat=f"run {piece}")
    shown = screen.file.getvalue()
    assert [character for character in shown if not character.isprintable() and character != "\n"] == []
