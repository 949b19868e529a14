"""What a porter reads: nothing cut off, every reason said, and no fault blamed on another stage."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from grains_ref.cli import app
from grains_ref.cli.conform import _print_skips
from grains_ref.cli.console import Screen
from grains_ref.conformance.budgets import load_budgets
from grains_ref.conformance.dialects import PAPER
from grains_ref.conformance.live import LiveResult
from grains_ref.conformance.live.answers import MissingFunction
from grains_ref.conformance.naming import Likely
from grains_ref.conformance.ports import PythonPort
from grains_ref.conformance.report import guess, print_run
from grains_ref.conformance.runner import Result, Run, run_port
from grains_ref.conformance.stages import ORACLE
from grains_ref.conformance.toy import CONSTANTS, FORMULAS

pytestmark = pytest.mark.cpu


def module(**functions: Any) -> ModuleType:
    made = ModuleType("my_port")
    vars(made).update(functions, DTYPES=("float32",))
    return made


def run_on(port: ModuleType, *ids: str) -> Run:
    cases = [PAPER.case(name) for name in ids]
    return run_port(PythonPort(port), load_budgets(), cases=cases, modes=("isolated",))


def report_of(run: Run, *, width: int = 80) -> str:
    screen = Screen()
    screen.file, screen.width = io.StringIO(), width
    print_run(run, load_budgets(), screen, repeat="again")
    return screen.file.getvalue()


def invoke(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["conform", *arguments], env={"COLUMNS": "200"})
    return done.exit_code, done.output


def broken(**inputs: Any) -> Any:
    raise TypeError("can't convert a tensor that requires grad")


def test_a_crash_of_the_port_is_not_said_to_follow_from_another_stage() -> None:
    def one_late(*, y_pos: Any, **inputs: Any) -> Any:
        return ORACLE["objective"](y_pos=[*y_pos[1:], 0], **inputs)

    run = run_on(module(objective=one_late, attribution=broken), "objective-001", "attribution-001")
    assert {result.status for result in run.results} == {"failed"}
    assert run.follows_from("attribution") == ""
    words = " ".join(report_of(run).split())
    assert "Also failing: attribution, 1 time. Such as attribution-001: refused a valid input: TypeError" in words


def test_names_of_stages_are_never_cut_at_80_columns() -> None:
    name = "objective_scaled_embeddings"
    run = Run("p", (name,), ("float32",), (Result(f"{name}-001", name, "float32", "isolated", "passed", 1e-7, 1e-6),))
    assert f"\n{name} " in report_of(run)


def test_a_message_with_a_shape_is_said_to_its_end() -> None:
    def cut(**inputs: Any) -> Any:
        return {"a": ORACLE["attribution"](**inputs)["a"][:-1]}

    run = run_on(module(attribution=cut), "attribution-001", "attribution-002", "attribution-003")
    words = " ".join(report_of(run).split())
    assert "Also in 2 cases, such as attribution-002: a has the shape (" in words
    assert words.count("; expected (") == 2


def test_a_bug_that_right_outputs_contradict_is_named_with_what_else_it_may_be() -> None:
    likely = Likely("norm_over_sequence", "norms", True, 4, 4, contradicted=3)
    wrong = Result("steering-001", "steering", "float32", "isolated", "failed", 1.0, 1e-6, diagnosed=True)
    lines = guess(Run("p", ("steering",), ("float32",), (wrong,), likely={"steering": likely}), "steering")
    assert any(line.startswith("Right in 3 cases that this bug would spoil: is something kept") for line in lines)


def test_warnings_of_numpy_that_name_no_case_are_kept_quiet() -> None:
    def divides(*, h: Any, v: Any, lam: Any, dtype: str) -> Any:
        return {"h": np.zeros(np.shape(h)) / np.zeros(1)}

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        run = run_on(module(steering=divides), "steering-001")
    assert heard == []
    assert "NaN" in run.results[0].message


def test_a_count_of_random_inputs_without_a_seed_is_refused() -> None:
    code, told = invoke("run", "--port", "no.such", "--count", "3")
    assert code == 1
    assert "say with --seed where they begin" in told


def test_lists_are_narrowed_by_flags_and_never_empty() -> None:
    assert invoke("list", "flags", "--only", "SignRule")[1].startswith("SignRule (")
    assert invoke("list", "flags", "--only", "SignRule")[1].count("If wrong:") == 1
    code, told = invoke("list", "bugs", "--only", "objective-*")
    assert code == 1
    assert "no bugs match objective-*" in told
    code, told = invoke("list", "options", "--only", "generation_end")
    assert told == (
        "generation_end: in: and end: token ids; out: as the stage\n    A row of tokens ends with the first id out of "
        "end that it says: that one is kept, the rest of the row is 0. logits are the stage's.\n"
    )


def test_why_a_live_check_was_skipped_is_said_unless_nobody_defined_it(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "the shifts of 2 single tokens have no direction"
    results = [LiveResult("aggregation", "a", seed, "skipped", message=reason) for seed in range(3)]
    missing = LiveResult(
        "steer", "a", 0, "skipped", message=str(MissingFunction("the port does not define live_steer"))
    )
    _print_skips([*results, missing])
    assert capsys.readouterr().out.strip() == f"aggregation: skipped 3 times: {reason}"


def test_a_dump_has_all_that_a_port_of_the_decoder_needs(tmp_path: Path) -> None:
    assert invoke("dump", str(tmp_path / "d"))[0] == 0
    assert json.loads((tmp_path / "d" / "toy.json").read_text())["constants"] == CONSTANTS
    assert FORMULAS in (tmp_path / "d" / "README.txt").read_text()
