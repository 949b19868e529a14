"""The fused kernel of `fast.Steering` on a GPU: the reference's edit, no waiting, captured graphs, compiled models.

The checks are those that run on the CPU (tests/edit_checks.py); a few MiB of memory.
"""

from __future__ import annotations

from typing import Any

import edit_checks
import pytest
import torch
from edit_checks import Chain, drawn

from grains_ref import fast
from grains_ref.fast.kernels import can_fuse
from grains_ref.grains import Steering

pytestmark = pytest.mark.gpu

HALF = (torch.float16, torch.bfloat16)


@pytest.fixture(scope="module", autouse=True)
def triton(gpu: torch.device) -> None:
    """Every CUDA torch on Linux brings it; without it the plain path would be tested twice."""
    if not can_fuse(torch.ones(1, device=gpu)):
        pytest.skip("needs Triton")


@pytest.mark.parametrize("dtype", edit_checks.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(7,), (5, 33), (2, 3, 3584), (16, 1, 4096), (1, 1600, 4096)], ids=str)
def test_edits_are_the_references(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    edit_checks.check_edit("cuda", dtype, shape)


@pytest.mark.parametrize("dtype", edit_checks.DTYPES, ids=str)
def test_strength_zero_norms_rows_and_the_kit(dtype: torch.dtype) -> None:
    edit_checks.check_zero_changes_no_bit("cuda", dtype)
    edit_checks.check_norms_of_every_size("cuda", dtype)
    edit_checks.check_rows("cuda", dtype)
    for rows in (False, True):
        edit_checks.check_kit("cuda", str(dtype).removeprefix("torch."), rows=rows)


def test_what_cannot_be_steered_is_refused_when_the_block_is_left() -> None:
    edit_checks.check_refusals("cuda")


def test_norms_are_not_taken_in_half_precision() -> None:
    """Of many states in bfloat16 the norms differ by no more than the rounding of single numbers explains."""
    h = drawn(1, 1, 400, 4096).to("cuda", torch.bfloat16)
    after = edit_checks.steered(h, drawn(2, 4096), 0.7).double()
    deviation = after.norm(dim=-1) / h.double().norm(dim=-1) - 1
    roundoff = torch.finfo(torch.bfloat16).eps / 2 * after.pow(4).sum(-1).sqrt() / after.pow(2).sum(-1)
    assert (deviation / roundoff).square().mean().sqrt() < 1


def test_nothing_waits_for_the_device_between_entering_and_leaving() -> None:
    model = Chain().to("cuda", torch.bfloat16)
    h = drawn(7, 2, 3, 48).to("cuda", torch.bfloat16)
    steering = fast.Steering(model.blocks, drawn(3, 3, 48), lam=2.0)
    with torch.no_grad(), steering:
        model(h)  # kernels load
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(h)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_captured_graph_follows_the_buffers(dtype: torch.dtype) -> None:
    model, h = Chain().to("cuda", dtype), drawn(7, 2, 3, 48).to("cuda", dtype)
    rows = fast.RowSteering(model.blocks, torch.zeros(2, 3, 48), slots=2)
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.no_grad(), rows:
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            model(h)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            out = model(h)

    def run() -> torch.Tensor:
        graph.replay()
        return out.clone()

    edit_checks.check_buffers_are_followed(run, model, h, rows)


def test_a_compiled_model_follows_the_buffers() -> None:
    """Triton's kernel inside a graph that torch compiled, without a break."""
    torch._dynamo.reset()
    model, h = Chain(n_blocks=2).to("cuda"), drawn(7, 2, 3, 48).float().to("cuda")
    compiled: Any = torch.compile(model, fullgraph=True)
    rows = fast.RowSteering(model.blocks, torch.zeros(2, 2, 48), slots=2)
    with torch.no_grad(), rows:
        compiled(h)
        edit_checks.check_buffers_are_followed(lambda: compiled(h), model, h, rows)
    torch._dynamo.reset()


def test_it_steers_a_model_as_the_reference_does() -> None:
    model, h = Chain().to("cuda"), drawn(7, 2, 3, 48).float().to("cuda")
    v = drawn(3, 3, 48)
    with torch.no_grad():
        with Steering(model.blocks, v, lam=2.0):
            expected = model(h)
        with fast.Steering(model.blocks, v, lam=2.0, layers=[0, 1, 2]):
            torch.testing.assert_close(model(h), expected, rtol=1e-4, atol=1e-4)
