"""Other people's steering, judged by the kit: how far each is off, and at which cases it fails."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import pytest
import torch
from conformance.test_live import pair

from grains_ref.cli.common import load_model, model_path
from grains_ref.conformance.engines import common, easysteer, sglang, vllm_lens
from grains_ref.conformance.engines.__main__ import ENGINES, on_cases, on_wide_states, ports
from grains_ref.conformance.live import check_live
from grains_ref.conformance.stages import DTYPES, steering

pytestmark = pytest.mark.cpu


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_taking_a_stream_apart_rounds_nothing(dtype: str) -> None:
    h = (100 * torch.randn(1, 50, 64, generator=torch.Generator().manual_seed(0))).to(DTYPES[dtype])
    seen = []

    def keep(fused: common.Fused, v: torch.Tensor, lam: float) -> common.Fused:
        seen.append(fused)
        return fused

    assert torch.equal(common.fused(keep)(h, h[0, 0], 1.0), h)
    ((update, residual),) = seen
    assert update.abs().max() > 5
    assert residual.abs().max() > 50


@pytest.mark.thorough
def test_norms_that_are_rounded_before_they_are_used_cost_what_the_page_says() -> None:
    """docs/porting.md has these figures."""
    ours, _ = on_wide_states(steering, "bfloat16")
    eager, _ = on_wide_states(easysteer.steering, "bfloat16")
    hook, _ = on_wide_states(vllm_lens.steering, "bfloat16")
    assert ours < 3e-4
    assert hook == ours  # the stream is written back whole
    assert 5e-3 < eager < 1e-2
    assert on_wide_states(easysteer.steering, "float32")[0] < 1e-6


def test_an_engine_fails_at_the_cases_that_its_formula_cannot_do() -> None:
    number, beyond = on_cases(easysteer.steering, "float32")
    assert number == 17
    assert beyond == ["steering-012", "steering-013", "steering-021"]  # epsilon beside norms that are nearly zero
    assert on_cases(sglang.steering, "float32") == (17, [])
    norm_match = functools.partial(common.run, vllm_lens.VARIANTS["vllm-lens norm_match=True"])
    _, beyond = on_cases(norm_match, "float32")
    assert len(beyond) == 15  # all but lam = 0 and v = 0


def test_every_engine_says_how_it_is_known() -> None:
    names = [name for name, _, _ in ports(ENGINES)]
    assert len(set(names)) == len(names) == 1 + 9
    for engine in ENGINES:
        module = importlib.import_module(f"grains_ref.conformance.engines.{engine}")
        assert ("read" in module.HOW) == ("Read, not run" in (module.__doc__ or ""))


@pytest.fixture(params=["repeng", "steering_vectors"])
def package(request: pytest.FixtureRequest) -> Any:
    """A port that drives an installed package."""
    if request.param == "repeng":
        pytest.importorskip("repeng", reason="needs repeng: tox -e peer-repeng")
    else:
        pytest.importorskip("steering_vectors", reason="needs steering-vectors: tox -e peer-steering-vectors")
    return importlib.import_module(f"grains_ref.conformance.engines.{request.param}")


def test_a_package_steers_as_the_page_says(package: Any) -> None:
    number, beyond = on_cases(package.steering, "float32")
    assert number == 17
    assert beyond == (["steering-012"] if "repeng" in package.NAME else [])  # 0 / 0
    norm, _ = on_wide_states(package.steering, "bfloat16")
    assert norm < (1e-2 if "repeng" in package.NAME else 3e-4)  # norms in bfloat16, and in float32


def test_a_package_steers_a_model_at_every_block_and_position(package: Any) -> None:
    name = "tiny:simple-seed0"
    model = load_model(name, "float32", "cpu", "")
    results = check_live(model, [pair(0)], package, path=model_path(name))
    passed = {r.check for r in results if r.status == "passed"}
    assert {"steer", "lam = 0 changes nothing", "only the product of lam and v counts", "norms are kept"} <= passed, [
        r.message for r in results if r.status == "failed"
    ]
