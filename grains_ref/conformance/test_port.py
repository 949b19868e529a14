"""The cases as tests of your own port, for a suite that already runs pytest.

    GRAINS_PORT=mypkg.adapter pytest -m cpu --pyargs grains_ref.conformance

GRAINS_PORT is a Python module as for `grains-ref conform run --port`; GRAINS_PORT_XFAILS, if set, a file of known
failures as for `--xfails`. They are strict: a known failure that passes, or that matches no case, fails.
GRAINS_PORT_DIALECT=authors judges by the code released with the paper.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import sys
from pathlib import Path

import pytest

from grains_ref.conformance.budgets import Budget, load_budgets, root, runs_in
from grains_ref.conformance.cases import Case
from grains_ref.conformance.dialects import DIALECTS
from grains_ref.conformance.ports import PythonPort
from grains_ref.conformance.runner import Result, read_xfails, run_case, run_port
from grains_ref.conformance.stages import STAGES
from grains_ref.conformance.vectors import check_complete

pytestmark = pytest.mark.cpu

PORT, XFAILS = os.environ.get("GRAINS_PORT", ""), os.environ.get("GRAINS_PORT_XFAILS", "")
DIALECT = DIALECTS[os.environ.get("GRAINS_PORT_DIALECT", "paper")]
UNSET = pytest.mark.skip(reason="set GRAINS_PORT to the Python module of a port, for instance mypkg.adapter")


@functools.cache
def port() -> PythonPort:
    """The port; it is usually developed where the command is typed."""
    sys.path.insert(0, str(Path.cwd()))
    return PythonPort(PORT)


@functools.cache
def budgets() -> dict[tuple[str, str], Budget]:
    """The stored budgets, of vectors that are complete."""
    check_complete(root())
    return load_budgets(DIALECT.name)


def known_failures() -> dict[str, str]:
    """Patterns and reasons of the porter's file."""
    return read_xfails(Path(XFAILS)) if XFAILS else {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every case of every claimed stage in every claimed dtype."""
    if "case" in metafunc.fixturenames:
        metafunc.parametrize(("case", "dtype"), _parameters() if PORT else [pytest.param(None, "", marks=UNSET)])
    elif "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", port().dtypes if PORT else [pytest.param("", marks=UNSET)])


def _parameters() -> list[object]:
    known, parameters = known_failures(), list[object]()
    for dtype in port().dtypes:
        for case in DIALECT.cases:
            if case.stage in port().stages and runs_in(case, dtype):
                reasons = [reason for pattern, reason in known.items() if fnmatch.fnmatch(case.id, pattern)]
                marks = [pytest.mark.xfail(reason=reason, strict=True) for reason in reasons]
                parameters.append(pytest.param(case, dtype, id=f"{case.id}-{dtype}", marks=marks))
    return parameters


def test_case(case: Case, dtype: str) -> None:
    """One case, with the oracle's input."""
    _assert_right(run_case(port(), case, dtype, budgets()[case.stage, dtype], DIALECT))


@pytest.mark.skipif(not PORT, reason=UNSET.kwargs["reason"])
def test_asked_again_in_another_order(dtype: str) -> None:
    """No answer may depend on what was asked before."""
    for result in run_port(port(), budgets(), dialect=DIALECT, dtypes=(dtype,), modes=("isolated", "again")).results:
        if result.mode == "again":
            _assert_right(result)


@pytest.mark.parametrize("mode", ["chained", "end to end"])
def test_chain(dtype: str, mode: str) -> None:
    """The stages one after the other, each fed with the port's own outputs."""
    results = run_port(port(), budgets(), dialect=DIALECT, cases=(), dtypes=(dtype,), modes=(mode,)).results  # type: ignore
    if not results:
        pytest.skip("needs attribution, selection, contrast, aggregation and steering, and not half precision")
    for result in results:
        _assert_right(result)


@pytest.mark.skipif(not PORT, reason=UNSET.kwargs["reason"])
def test_the_port_claims_a_stage_and_known_failures_exist() -> None:
    """Nothing claimed is nothing shown; and a pattern that matches nothing hides a mistake."""
    assert port().stages, f"nothing claimed; define at least one of {', '.join(STAGES)}"
    ids = [case.id for case in DIALECT.cases]
    assert [pattern for pattern in known_failures() if not fnmatch.filter(ids, pattern)] == []


def _assert_right(result: Result) -> None:
    if result.status in ("skipped", "not claimable"):
        pytest.skip(f"{result.status}: {result.message}")
    if result.status == "failed":
        diagnosis = result.diagnosis
        like = ""
        if diagnosis:
            others = f"; so it is with {', '.join(diagnosis.alike)}" if diagnosis.alike else ""
            named = f"{diagnosis.description} ({diagnosis.bug})"
            like = f"\nThis output is ours with {named}, to {diagnosis.distance:.0e}{others}"
        elif result.rounding:
            like = "\nThe error is one of float32's size: did a cast or a call in float32 slip in?"
        pytest.fail(f"{result.case}, {result.mode}, {result.dtype}: {result.message}{like}", pytrace=False)
