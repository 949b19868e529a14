"""A failing case asked again alone, in a fresh process: a port that keeps something is told from one that is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from grains_ref.cli import app
from grains_ref.conformance import alone
from grains_ref.conformance.alone import Alone, ask_alone
from grains_ref.conformance.budgets import load_budgets
from grains_ref.conformance.dialects import PAPER
from grains_ref.conformance.diff import changes
from grains_ref.conformance.fresh import ask_seed, run_fresh
from grains_ref.conformance.module_process import ModuleProcess
from grains_ref.conformance.ports import Port, PortError, PythonPort, Refused
from grains_ref.conformance.report import as_json, explain, guess, junit
from grains_ref.conformance.runner import ASKED, Result, Run, ask_case, run_port
from grains_ref.conformance.stages import ORACLE, Values
from grains_ref.conformance.summary import line, markdown

pytestmark = pytest.mark.cpu

IDS = ("selection-001", "selection-002", "selection-003", "selection-004")
CASES = [PAPER.case(name) for name in IDS]


def port_of(*, keeps: bool = False, is_wrong: bool = False, stages: tuple[str, ...] = ("selection",)) -> PythonPort:
    """A port in its first moment; keeps: answers by length, for whatever has that length later."""
    known: dict[Any, Values] = {}

    def of(stage: str) -> Callable[..., Values]:
        def answer(**inputs: Any) -> Values:
            key = (stage, len(next(iter(inputs.values()))))
            if not keeps or key not in known:
                known[key] = ORACLE[stage](**inputs)
            right = known[key]
            return {"pos": right["neg"], "neg": right["pos"]} if is_wrong else right

        return answer

    module = ModuleType("my_port")
    vars(module).update({stage: of(stage) for stage in stages}, DTYPES=("float32",))
    return PythonPort(module)


def run_of(port: Port, cases: Any = CASES, *, modes: Any = ("isolated",)) -> Run:
    return run_port(port, load_budgets(), cases=cases, modes=modes)


def asked(run: Run, start: Callable[[float], Port]) -> Run:
    return ask_alone(run, start, ask_case(load_budgets(), PAPER))


def report_of(run: Run) -> str:
    return " ".join(line.plain.strip() for line in explain(run, repeat="again"))


@pytest.fixture(scope="module")
def forgetful() -> Run:
    """The run of a port that keeps answers by length."""
    return asked(run_of(port_of(keeps=True)), lambda seconds: port_of(keeps=True))


def test_a_port_that_keeps_answers_by_length_is_said_to_keep_something(forgetful: Run) -> None:
    (first, *_) = forgetful.failures("selection")
    before = IDS[IDS.index(first.case) - 1]
    found = forgetful.alone["selection"]
    assert found == Alone(first.case, "float32", f"{before} (float32)", "right")
    assert forgetful.failed
    words = report_of(forgetful)
    assert "The port depends on the order of calls, or keeps state" in words
    assert f"{before} (float32) the last of them" in words
    assert "Asked again alone, the first failing case of a stage: 1 (1 right)." in words


def test_nothing_is_named_where_the_case_is_right_alone(forgetful: Run) -> None:
    unasked = run_of(port_of(keeps=True))
    named = asked(replace(unasked, likely=wrong_run().likely), lambda seconds: port_of(keeps=True))
    assert wrong_run().likely.keys() == {"selection"}
    assert named.likely == {}
    assert "Likely bug" not in report_of(named)
    (words,) = guess(forgetful, "selection")
    assert words.startswith("Nothing is named: the case is right alone.")


def wrong_run() -> Run:
    return run_of(port_of(is_wrong=True))


def test_a_port_that_is_simply_wrong_is_named_as_before() -> None:
    run = replace(wrong_run(), results=tuple(replace(r, after="selection-009 (float32)") for r in wrong_run().results))
    found = asked(run, lambda seconds: port_of(is_wrong=True))
    assert found.alone["selection"].outcome == "wrong in the same way"
    assert found.likely == run.likely
    assert "it is not the order of calls" in report_of(found)
    assert guess(found, "selection") == guess(run, "selection")
    doubtful = replace(found, likely={"selection": replace(run.likely["selection"], contradicted=3)})
    assert "though selection-001 is wrong alone too" in " ".join(guess(doubtful, "selection"))


def test_the_first_case_of_all_is_not_asked_again_for_nothing_came_before_it() -> None:
    def never(seconds: float) -> Port:
        raise AssertionError("a port was started")

    run = wrong_run()
    assert run.failures("selection")[0].after == ""
    assert asked(run, never).alone == {}


def test_a_port_that_fails_alone_in_another_way_is_said_to() -> None:
    class Refuses:
        name, stages, dtypes = "refuses", ("selection",), ("float32",)

        def run(self, *question: Any) -> Values:
            raise Refused("not in this process")

        def close(self) -> None:
            """Nothing was started."""

    found = asked(run_of(port_of(keeps=True)), lambda seconds: Refuses()).alone["selection"]
    assert found.outcome == "wrong in another way"
    assert "refused a valid input: not in this process" in found.words()


def test_a_case_asked_twice_names_what_came_before_and_is_right_alone() -> None:
    """A buffer that is full after the first round."""
    answers: list[Values] = []

    def selection(**inputs: Any) -> Values:
        answers.append(ORACLE["selection"](**inputs))
        return answers[-1] if len(answers) <= len(CASES) else answers[0]

    module = ModuleType("my_port")
    vars(module).update(selection=selection, DTYPES=("float32",))
    run = run_of(PythonPort(module), modes=("isolated", "again"))
    (first, *_) = run.failures("selection")
    assert (first.mode, first.after in [f"{name} (float32)" for name in IDS]) == ("again", True)
    assert f"wrong when it was asked again, after {first.after}" in first.message
    assert asked(run, lambda seconds: port_of()).alone["selection"].is_right


def test_a_chain_is_not_asked_again() -> None:
    results = [Result(f"chained-{mode}", "selection", "float32", mode, "failed", after="x") for mode in ASKED[2:]]
    run = Run("p", ("selection",), ("float32",), tuple(results))
    assert asked(run, lambda seconds: port_of()).alone == {}


def failing(*stages: str) -> Run:
    results = [Result(f"{stage}-002", stage, "float32", "isolated", "failed", after="x (float32)") for stage in stages]
    return Run("p", stages, ("float32",), tuple(results))


def test_no_more_than_a_few_are_asked_and_the_rest_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone, "MOST", 1)
    run = asked(failing("selection", "steering"), lambda seconds: port_of())
    assert (list(run.alone), run.not_alone) == (["selection"], ("steering",))
    assert "a stage: 1 (1 right). Not asked, for at most " in report_of(run)
    monkeypatch.setattr(alone, "SECONDS", 0.0)
    late = asked(failing("selection"), lambda seconds: port_of())
    assert (late.alone, late.not_alone) == ({}, ("selection",))


def test_a_random_input_is_asked_alone_too() -> None:
    budgets = load_budgets()
    run = run_fresh(port_of(keeps=True), budgets, seeds=range(60, 75))
    found = ask_alone(run, lambda seconds: port_of(keeps=True), ask_seed(budgets, PAPER))
    assert found.alone["selection"].is_right
    assert found.alone["selection"].case == run.failures("selection")[0].case


# --- what machines read


def test_json_junit_summary_and_difference_say_it(forgetful: Run) -> None:
    told = json.loads(json.dumps(as_json(forgetful)))
    case = forgetful.alone["selection"].case
    row = told["alone"]["selection"]
    assert (row["case"], row["outcome"]) == (case, "right")
    assert row["words"] == forgetful.alone["selection"].words()
    assert f"fails at selection ({case}, float32, right alone: it depends on the order of calls)" in line(told)
    assert f"- selection: {row['words']}" in markdown(told).splitlines()
    assert "keeps state" in junit(forgetful).decode()
    mended = json.loads(json.dumps(as_json(run_of(port_of()))))
    (worse,) = [change for change in changes(mended, told) if change.mode == "alone"]
    assert (worse.kind, worse.case, worse.before, worse.after) == ("other", case, "not asked", "right")
    assert "keeps state" in worse.message
    (better,) = [change for change in changes(told, mended) if change.mode == "alone"]
    assert (better.before, better.after) == ("right", "not asked")
    assert changes(told, told) == []


# --- real processes

MODULE = """
from pathlib import Path
from grains_ref.conformance.stages import ORACLE
DTYPES, known = ("float32",), {}
print("hello")
def selection(**inputs):
    return known.setdefault(len(inputs["a"]), ORACLE["selection"](**inputs))
"""
PROGRAM = """
import json, os, sys
from pathlib import Path
HELLO = {"version": 1, "name": "toy", "stages": ["selection"], "dtypes": ["float32"]}
known, starts = {}, Path(__file__).with_suffix(".starts")
starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
def answer(a, eligible, k):
    order = sorted((j for j in range(len(a)) if eligible[j]), key=lambda j: (-a[j], j))
    down = sorted((j for j in range(len(a)) if eligible[j]), key=lambda j: (a[j], j))
    return {"pos": [j for j in order if a[j] > 0][:k], "neg": [j for j in down if a[j] < 0][:k]}
for line in sys.stdin:
    m = json.loads(line)
    if m["cmd"] == "stop":
        break
    if m["cmd"] == "start":
        print(json.dumps(HELLO), flush=True)
    else:
        out = known.setdefault(len(m["in"]["a"]), answer(**m["in"]))
        print(json.dumps({"seq": m["seq"], "out": out}), flush=True)
"""


def conform(*words: str) -> str:
    only = [word for name in IDS for word in ("--only", name)]
    done = CliRunner().invoke(app, ["conform", "run", *words, *only], env={"COLUMNS": "300"})
    assert done.exit_code == 1, done.output
    return " ".join(done.output.split())


@pytest.mark.thorough
def test_a_module_is_asked_alone_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keeping_port.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    told = conform("--port", "keeping_port")
    assert "The port depends on the order of calls, or keeps state" in told
    assert "(1 right)" in told


@pytest.mark.parametrize("how", ["keeps", "is wrong", "starts once"])
def test_a_program_is_asked_alone_in_a_process_of_its_own(tmp_path: Path, how: str) -> None:
    changed = {
        "keeps": PROGRAM,
        "is wrong": PROGRAM.replace('len(m["in"]["a"])', 'str(m["in"])').replace("[:k]", "[:3]"),
        "starts once": PROGRAM.replace("def answer", "if starts.read_text() == 'xx': sys.exit(1)\ndef answer"),
    }
    file = tmp_path / "port.py"
    file.write_text(changed[how])
    told = conform("--cmd", f"{sys.executable} -S -E {file}")
    expected = {
        "keeps": "is right alone in a fresh process, and wrong when other cases came before it",
        "is wrong": "fails in the same way alone in a fresh process",
        "starts once": "the port did not start a second time: the port ended with code 1 instead of answering",
    }
    assert expected[how] in told
    assert file.with_suffix(".starts").read_text() == "xx"


@pytest.mark.thorough
def test_a_module_that_cannot_be_imported_a_second_time_is_said_to(tmp_path: Path) -> None:
    sys.path.insert(0, str(tmp_path))
    (tmp_path / "once_port.py").write_text("raise RuntimeError('only once')\n")
    try:
        with pytest.raises(PortError, match="the port 'once_port' cannot be imported: RuntimeError: only once"):
            ModuleProcess("once_port", timeout=60)
        (tmp_path / "gone_port.py").write_text("import os; os._exit(3)\n")
        with pytest.raises(PortError, match="ended with code 3"):
            ModuleProcess("gone_port", timeout=60)
    finally:
        sys.path.remove(str(tmp_path))
