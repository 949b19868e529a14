"""The ports that docs/porting.md prints are right: a reader who copies one gets what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from grains_ref.cli.common import load_model, model_path
from grains_ref.conformance.budgets import load_budgets
from grains_ref.conformance.dialects import PAPER
from grains_ref.conformance.live import FUNCTIONS, check_live
from grains_ref.conformance.ports import PythonPort
from grains_ref.conformance.runner import run_port
from grains_ref.data import PreferencePair
from grains_ref.tiny_models.worlds import build_world

pytestmark = pytest.mark.cpu

PAGE = (Path(__file__).parents[2] / "docs" / "porting.md").read_text(encoding="utf-8")


def printed(name: str) -> ModuleType:
    """The module that the page prints under this file name."""
    (code,) = re.findall(rf"```python\n# {name}\.py\n(.*?)```", PAGE, re.DOTALL)
    module = ModuleType(name)
    exec(compile(code, f"{name}.py", "exec"), module.__dict__)
    return module


def test_the_ten_lines_in_pytorch_pass_in_every_dtype() -> None:
    port = PythonPort(printed("torch_port"))
    cases = [case for case in PAPER.cases if case.stage == "steering"]
    run = run_port(port, load_budgets(), cases=cases, modes=("isolated",))
    assert run.dtypes == ("float64", "float32", "float16", "bfloat16")
    assert [result for result in run.results if result.status not in ("passed", "not claimable")] == []
    assert len(run.results) > 4 * 20


def test_the_port_of_the_first_diagnosis_has_the_bug_that_the_page_finds() -> None:
    cases = [case for case in PAPER.cases if case.id == "steering-001"]
    run = run_port(PythonPort(printed("my_port")), load_budgets(), cases=cases, modes=("isolated",))
    likely = run.likely_bug("steering")
    assert likely is not None
    assert likely.bug == "norm_over_sequence"


def test_the_live_port_passes_every_check() -> None:
    name, port = "tiny:simple-seed0", printed("my_live")
    assert all(callable(getattr(port, function)) for function in FUNCTIONS)
    pairs = [PreferencePair(p.id, p.prompt, p.chosen, p.rejected, "") for p in build_world("simple").split("steer")[:1]]
    model = load_model(name, "float32", "cpu", "")
    results = check_live(model, pairs, port, path=model_path(name), m=1)
    assert [result for result in results if result.status != "passed"] == []
    assert len(results) == 14


def test_the_table_of_functions_is_that_of_the_kit() -> None:
    assert all(f"| {name}(handle, " in PAGE for name in FUNCTIONS)
