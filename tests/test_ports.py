"""Three correct ports, written from the documents alone, against the oracle on every case of the kit.

They show that the documents suffice, that no correct port is turned away, and that all three ways in work: the NumPy
port is the second oracle as a module, the JAX port brings jit, a cache and bfloat16, the JavaScript one is a program
that speaks JSON lines.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest

from grains_ref.conformance.cases import CASES, Case
from grains_ref.conformance.compare import checked, distance, judge
from grains_ref.conformance.ports import CommandPort, Port, PythonPort, Refused
from grains_ref.conformance.stages import OUTPUTS, Values, run_oracle

pytestmark = pytest.mark.cpu

# Compiling is nearly all that the JAX port does here; without this pass it takes a quarter of the time. XLA ends the
# process on a flag that it does not know, hence the version.
try:
    if version("jaxlib").startswith("0.10."):
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
except PackageNotFoundError:
    pass

# What rounding may do to a correct port on these cases. Written down by hand, a few times what the ports reach, so that
# a mistake in the kit's measured budgets shows here.
ALLOWED = {
    "float64": dict.fromkeys(OUTPUTS, 1e-12),
    "float32": dict.fromkeys(OUTPUTS, 1e-5),
    "bfloat16": {
        "objective": 3e-2,
        "attribution": 0.2,
        "selection": 0.0,
        "contrast": 0.15,
        "aggregation": 2e-2,
        "steering": 1e-2,
        "generation": 6e-2,
    },
}
PORTS = [
    ("numpy", "float64"),
    *(("jax", dtype) for dtype in ("float64", "float32", "bfloat16")),
    *(("javascript", dtype) for dtype in ("float64", "float32")),
]


@pytest.fixture(scope="module", params=PORTS, ids=" ".join)
def port_and_dtype(request: pytest.FixtureRequest) -> Iterator[tuple[Port, str]]:
    kind, dtype = request.param
    port: Port
    if kind == "javascript":
        if not shutil.which("node"):
            pytest.skip("the JavaScript port needs Node.js")
        port = CommandPort(f"node {Path(__file__).parent / 'ports' / 'port.mjs'}")
    else:
        if kind == "jax":
            pytest.importorskip("jax", reason="the JAX port needs jax: pip install jax")
        port = PythonPort(f"ports.{kind}_port")
    yield port, dtype
    port.close()


@functools.cache
def right(case_id: str) -> Values:
    case = next(case for case in CASES if case.id == case_id)
    return run_oracle(case.stage, case.inputs)


def problem(port: Port, dtype: str, case: Case, worst: dict[str, float]) -> str:
    """What is wrong with the port's answer to one case; empty if nothing."""
    allowed = ALLOWED[dtype][case.stage]
    try:
        got = port.run(case.stage, case.inputs, dtype, case.id)
    except Refused as refusal:
        return "" if case.result == "invalid" else f"{case.id}: refused a valid input: {refusal}"
    if case.result == "invalid":
        return f"{case.id}: accepted an invalid input ({case.comment})"
    values = checked(case.stage, got, right(case.id))
    error = distance(case.stage, case.inputs, values, right(case.id))
    tokens_differ = case.stage == "generation" and not np.array_equal(values["tokens"], right(case.id)["tokens"])
    if case.result == "acceptable" or tokens_differ:
        verdict = judge(case.stage, case.inputs, got, budget=allowed)
        return "" if verdict.ok else f"{case.id}: {verdict.message}"
    worst[case.stage] = max(worst.get(case.stage, 0.0), error)
    return "" if error <= allowed else f"{case.id}: relative error {error:.1e}, allowed {allowed:.0e}"


def test_correct_ports_pass_every_case(port_and_dtype: tuple[Port, str]) -> None:
    port, dtype = port_and_dtype
    assert dtype in port.dtypes
    worst: dict[str, float] = {}
    problems = [problem(port, dtype, case, worst) for case in CASES if case.stage in port.stages]
    figures = ", ".join(f"{stage} {error:.1e}" for stage, error in worst.items())
    print(f"\n{port.name}, {dtype}: {figures}")  # shown with -s
    assert not [text for text in problems if text]


def test_ports_claim_what_they_should(port_and_dtype: tuple[Port, str]) -> None:
    port, _ = port_and_dtype
    some = ("selection", "aggregation", "steering")
    assert port.stages == (some if port.name == "JavaScript" else tuple(OUTPUTS))


@pytest.mark.parametrize("name", ["jax_port.py", "port.mjs", "numpy_port.py"])
def test_ports_are_short_and_independent(name: str) -> None:
    """A port that imported the reference would agree with it for the wrong reason."""
    source = (Path(__file__).parent / "ports" / name).read_text(encoding="utf-8")
    assert len(source.splitlines()) < 250
    assert "torch" not in source
    assert "import grains_ref" not in source
    assert "from grains_ref" not in source.replace("from grains_ref.conformance.slow import", "")
