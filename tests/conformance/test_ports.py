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

import pytest

from grains_ref.conformance import runner, second_oracle
from grains_ref.conformance.budgets import Budget, load_budgets
from grains_ref.conformance.cases import CASES
from grains_ref.conformance.ports import Port, PythonPort
from grains_ref.conformance.programs import CommandPort
from grains_ref.conformance.runner import Mode, run_port
from grains_ref.conformance.stages import STAGES

pytestmark = pytest.mark.cpu

# Compiling is nearly all that the JAX port does here; without this pass it takes a quarter of the time, and less still
# in one piece. XLA ends the process on a flag that it does not know, hence the version.
try:
    if version("jaxlib").startswith("0.10."):
        os.environ.setdefault(
            "XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        )
except PackageNotFoundError:
    pass

# What rounding may do to a correct port on these cases. Written down by hand, a few times what the ports reach, so that
# a mistake in the kit's measured budgets shows here.
ALLOWED = {
    "float64": dict.fromkeys(STAGES, 1e-12),
    "float32": dict.fromkeys(STAGES, 1e-5),
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
QUICK_PORTS = [("numpy", "float32"), ("jax", "float32"), ("javascript", "float32")]  # float64: test_second_oracle.py
MORE_PORTS = [
    pytest.param(port, marks=pytest.mark.thorough)
    for port in [("jax", "float64"), ("jax", "bfloat16"), ("javascript", "float64")]
]


@pytest.fixture(scope="module", params=[*QUICK_PORTS, *MORE_PORTS], ids=" ".join)
def port_and_dtype(request: pytest.FixtureRequest) -> Iterator[tuple[Port, str]]:
    kind, dtype = request.param
    port: Port
    if kind == "javascript":
        if not shutil.which("node"):
            pytest.skip("the JavaScript port needs Node.js")
        port = CommandPort(f"node {Path(__file__).parents[1] / 'ports' / 'port.mjs'}")
    else:
        if kind == "jax":
            pytest.importorskip("jax", reason="the JAX port needs jax: tox -e peer-jax")
        port = PythonPort(f"ports.{kind}_port")
    yield port, dtype
    port.close()


@functools.cache
def budgets() -> dict[tuple[str, str], Budget]:
    return load_budgets()


def test_correct_ports_pass_isolated_chained_and_end_to_end(
    port_and_dtype: tuple[Port, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, dtype = port_and_dtype
    every = runner.chain_examples()
    monkeypatch.setattr(runner, "chain_examples", lambda dialect: every[::2])
    assert dtype in port.dtypes
    # Compiling takes nearly all of JAX's time: every case in float32 and bfloat16, one in four in float64, no chain.
    cases = CASES[::4] if (port.name, dtype) == ("JAX on CPU", "float64") else CASES
    modes: tuple[Mode, ...] = (
        ("isolated", "chained", "end to end") if port.name == second_oracle.NAME else ("isolated",)
    )
    result = run_port(port, budgets(), cases=cases, dtypes=[dtype], modes=modes)
    wrong = [r for r in result.results if r.status not in ("passed", "not claimable")]
    assert not wrong
    assert not result.failed
    worst: dict[str, float] = {}
    for r in result.results:
        if r.mode != "end to end":
            worst[r.stage] = max(worst.get(r.stage, 0.0), r.error)
    print(f"\n{port.name}, {dtype}: {', '.join(f'{stage} {error:.1e}' for stage, error in worst.items())}")  # with -s
    assert all(error <= ALLOWED[dtype][stage] for stage, error in worst.items())
    assert {r.mode for r in result.results} == set(modes)
    if port.name == second_oracle.NAME:
        assert len(result.results) == 235


def test_ports_claim_what_they_should(port_and_dtype: tuple[Port, str]) -> None:
    port, _ = port_and_dtype
    some = ("selection", "aggregation", "steering")
    assert port.stages == (some if port.name == "JavaScript" else STAGES)


@pytest.mark.parametrize("name", ["jax_port.py", "port.mjs", "numpy_port.py"])
def test_ports_are_short_and_independent(name: str) -> None:
    """A port that imported the reference would agree with it for the wrong reason."""
    source = (Path(__file__).parents[1] / "ports" / name).read_text(encoding="utf-8")
    assert len(source.splitlines()) < 250
    assert "torch" not in source
    assert "import grains_ref" not in source
    assert "from grains_ref" not in source.replace("from grains_ref.conformance.second_oracle import", "")
