"""fast/steering.py on a CPU: the reference's values and hooks, buffers that are followed, and the kit's verdict.

`tests/edit_checks.py` has the checks that also run on a GPU; where Triton is installed, its interpreter runs them on
the fused kernel.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import edit_checks
import pytest
import torch
from edit_checks import Chain, drawn
from torch import Tensor, nn

from grains_ref import fast, grains
from grains_ref.fast import kernels
from grains_ref.models import HuggingFaceModel

pytestmark = pytest.mark.cpu


# ------------------------------------------------------- the reference's own tests of its hooks, on this class
def borrowed_tests() -> dict[str, Callable[..., None]]:
    """Those of test_6_steering.py that use `Steering`, with `fast.Steering` in its place."""
    path = Path(__file__).with_name("test_6_steering.py")
    spec = importlib.util.spec_from_file_location("test_6_steering_of_fast", path)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.Steering = fast.Steering
    tests = {name: test for name, test in vars(module).items() if name.startswith("test_")}
    return {name: test for name, test in tests.items() if "Steering(" in inspect.getsource(test)}


OF_THE_REFERENCE = borrowed_tests()
globals().update(OF_THE_REFERENCE)


def test_the_references_tests_are_there() -> None:
    assert len(OF_THE_REFERENCE) >= 20


@pytest.mark.parametrize(("engine", "expected"), [("fast", fast.Steering), ("reference", grains.Steering)])
def test_an_engine_steers_by_its_own_class(engine: fast.EngineName, expected: type[grains.Hooks]) -> None:
    chain = Chain(width=8, n_blocks=3)
    steering = fast.steering_by(engine, chain.blocks, torch.ones(3, 8), lam=1.0, layers=[0])
    assert type(steering) is expected


def test_an_unknown_engine_steers_nothing() -> None:
    with pytest.raises(ValueError, match="there is no engine 'quick'; there are fast, reference"):
        fast.steering_by("quick", [], torch.zeros(0, 8), lam=1.0)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------- the edit
@pytest.mark.parametrize("dtype", edit_checks.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(7,), (5, 33), (2, 3, 64)], ids=str)
def test_kernel_edits_are_the_references(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    edit_checks.check_edit("cpu", dtype, shape)


@pytest.mark.parametrize("dtype", edit_checks.DTYPES, ids=str)
def test_kernel_changes_no_bit_at_strength_zero(dtype: torch.dtype) -> None:
    edit_checks.check_zero_changes_no_bit("cpu", dtype)


@pytest.mark.parametrize("dtype", edit_checks.DTYPES, ids=str)
def test_kernel_restores_norms_of_every_size(dtype: torch.dtype) -> None:
    edit_checks.check_norms_of_every_size("cpu", dtype)


def test_kernel_refuses_what_the_reference_refuses() -> None:
    edit_checks.check_refusals("cpu")


@pytest.mark.parametrize("dtype", edit_checks.DTYPES, ids=str)
def test_kernel_gives_every_row_and_token_its_own_vectors(dtype: torch.dtype) -> None:
    edit_checks.check_rows("cpu", dtype)


@pytest.mark.parametrize("rows", [False, True], ids=["Steering", "RowSteering"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_kernel_passes_the_kit_like_any_port(dtype: str, rows: bool) -> None:
    edit_checks.check_kit("cpu", dtype, rows=rows)


def test_the_kit_passes_generation() -> None:
    for rows in (False, True):
        edit_checks.check_kit("cpu", "float32", rows=rows, stages=("generation",))


@pytest.mark.skipif(
    not kernels.HAS_TRITON or kernels.INTERPRETED, reason="Triton, whose interpreter is needed, is not installed"
)
def test_the_fused_kernel_in_tritons_interpreter() -> None:
    """The tests above again, in a process in which Triton runs kernels on the CPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "test_kernel", __file__]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_gradients_are_the_references() -> None:
    h, v = drawn(1, 2, 3, 7), drawn(2, 1, 7)
    block = nn.Identity()

    def gradient(steering: grains.Hooks) -> Tensor:
        x = h.clone().requires_grad_()
        with steering:
            (found,) = torch.autograd.grad((block(x) ** 3).sum(), x)
        return found

    torch.testing.assert_close(
        gradient(fast.Steering([block], v, lam=0.7)), gradient(grains.Steering([block], v, lam=0.7))
    )


# ------------------------------------------------------------------------------------- what may change
def test_the_strength_can_be_set_and_read() -> None:
    h, v, block = drawn(1, 2, 3, 7), drawn(2, 1, 7), nn.Identity()
    steering = fast.Steering([block], v, lam=1.0)
    with steering:
        steering.lam = 2.5
        assert torch.equal(block(h), grains.steer_hidden(h, v[0], lam=2.5))
    assert steering.lam == 2.5
    with pytest.raises(ValueError, match="lam must be finite; it is nan"):
        steering.lam = float("nan")
    with steering:
        assert torch.equal(block(h), grains.steer_hidden(h, v[0], lam=2.5))


def test_the_vectors_are_copied() -> None:
    h, v, block = drawn(1, 2, 3, 7), drawn(2, 1, 7), nn.Identity()
    expected = grains.steer_hidden(h, v[0], lam=1.0)
    steering = fast.Steering([block], v, lam=1.0)
    v.zero_()
    with steering:
        assert torch.equal(block(h), expected)


def test_states_of_another_dtype_than_the_parameters_are_steered_in_their_own() -> None:
    block, v = nn.Linear(7, 7, dtype=torch.float64), drawn(2, 1, 7)
    block.forward = lambda h: h  # type: ignore[method-assign]
    h = drawn(1, 2, 3, 7).float()
    with fast.Steering([block], v, lam=1.0):
        got = block(h)
    assert torch.equal(got, grains.steer_hidden(h, v[0], lam=1.0))


# ------------------------------------------------------------------------------------------ compiled
@pytest.fixture
def clean_compiler() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_a_compiled_model_follows_the_buffers_without_being_compiled_again(clean_compiler: None) -> None:
    model, h = Chain().eval(), drawn(7, 2, 3, 48).float()
    compiled_graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled_graphs.append(graph)
        return graph.forward

    run = torch.compile(model, backend=backend, fullgraph=True)
    rows = fast.RowSteering(model.blocks, torch.zeros(2, 3, 48), slots=2)
    rows.__enter__()  # for good, as a server does
    try:
        with torch.no_grad():
            run(h)
            edit_checks.check_buffers_are_followed(lambda: run(h), model, h, rows)
    finally:
        rows.__exit__()
    assert len(compiled_graphs) == 1


def test_a_compiled_model_is_not_steered_once_the_block_is_left(clean_compiler: None) -> None:
    model, h = Chain().eval(), drawn(7, 2, 3, 48).float()
    run = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        plain = model(h)
        with fast.Steering(model.blocks, drawn(3, 3, 48), lam=2.0):
            steered = model(h)
            assert torch.equal(run(h), steered)
        assert torch.equal(run(h), plain)
        assert not torch.equal(steered, plain)


@pytest.mark.thorough
def test_a_graph_made_inside_is_the_plain_model_once_the_block_is_left(clean_compiler: None) -> None:
    """As a captured CUDA graph is: nothing asks it any more which hooks there are."""
    model, h = Chain().eval(), drawn(7, 2, 3, 48).float()
    calls: list[tuple[Any, tuple[Any, ...]]] = []

    def backend(graph: Any, inputs: Any) -> Any:
        def run_graph(*arguments: Any) -> Any:
            calls.append((graph, arguments))
            return graph(*arguments)

        return run_graph

    steering = fast.Steering(model.blocks, drawn(3, 3, 48), lam=2.0)
    with torch.no_grad():
        plain = model(h)
        with steering:
            steered = torch.compile(model, backend=backend, fullgraph=True)(h)
        ((graph, arguments),) = calls
        assert torch.equal(graph(*arguments)[0], plain)
        with steering:
            assert torch.equal(graph(*arguments)[0], steered)
        assert not torch.equal(steered, plain)


def test_a_model_that_was_compiled_before_is_not_steered_and_a_warning_says_so(clean_compiler: None) -> None:
    model, h = Chain().eval(), drawn(7, 2, 3, 48).float()
    run = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        plain = run(h)
        with (
            pytest.warns(UserWarning, match="compiled before the block was entered, and is not steered"),
            fast.Steering(model.blocks, drawn(3, 3, 48), lam=2.0),
        ):
            assert torch.equal(run(h), plain)
        with warnings.catch_warnings(), fast.Steering(model.blocks, drawn(3, 3, 48), lam=2.0):
            warnings.simplefilter("error")
            model(h)


def test_faults_in_a_compiled_model_are_refused_when_the_block_is_left(clean_compiler: None) -> None:
    model, h = Chain().eval(), drawn(7, 2, 3, 48).float()
    run = torch.compile(model, backend="eager", fullgraph=True)
    steering = fast.Steering(model.blocks, drawn(3, 3, 48), lam=2.0)
    with torch.no_grad(), pytest.raises(FloatingPointError, match="layer 0: values of h are not finite"), steering:
        run(h * float("nan"))


def test_faults_of_a_block_that_an_exception_ended_are_not_told_in_the_next(clean_compiler: None) -> None:
    model, h = Chain().eval(), drawn(7, 2, 3, 48).float()
    run = torch.compile(model, backend="eager", fullgraph=True)
    steering = fast.Steering(model.blocks, drawn(3, 3, 48), lam=2.0)
    with torch.no_grad(), pytest.raises(KeyError), steering:  # noqa: PT012
        run(h * float("nan"))
        raise KeyError
    with torch.no_grad(), steering:
        model(h)


def test_inference_mode_may_come_and_go() -> None:
    block, h, v = nn.Identity(), drawn(1, 2, 3, 7), drawn(2, 1, 7)
    expected = grains.steer_hidden(h, v[0], lam=1.0)
    with torch.inference_mode():
        steering = fast.Steering([nn.Linear(7, 7), block], v.expand(2, 7), lam=1.0)
        with steering:
            assert torch.equal(block(h), expected)
    steering.lam = 2.0
    with steering:
        assert torch.equal(block(h), grains.steer_hidden(h, v[0], lam=2.0))
        steering.lam = 1.0
        with torch.inference_mode():
            assert torch.equal(block(h.clone()), expected)


# ------------------------------------------------------------------------------------------- refusals
def test_faults_of_one_thread_are_not_told_to_another() -> None:
    block = nn.Identity()
    steering = fast.Steering([block], drawn(1, 1, 4), lam=1.0)
    barrier, errors = threading.Barrier(2), list[str]()

    def run(h: Tensor) -> None:
        try:
            with steering:
                for _ in range(50):
                    barrier.wait(60)
                    block(h)
        except FloatingPointError as error:
            errors.append(f"{h[0, 0, 0].item()}: {error}")
            barrier.abort()
        except threading.BrokenBarrierError:
            pass

    states = torch.ones(1, 1, 4)
    threads = [threading.Thread(target=run, args=(h,)) for h in (states, states * float("nan"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [error.split(":")[0] for error in errors] == ["nan"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bank": torch.ones(3, 4)}, r"bank must be \(n, L, d\).*got \(3, 4\)"),
        ({"bank": torch.ones(0, 3, 4)}, r"bank must be \(n, L, d\)"),
        ({"bank": torch.ones(2, 2, 4)}, r"v must be \(L, d\) with L = 3"),
        ({"bank": torch.full((2, 3, 4), torch.inf)}, "v must be finite"),
        ({"slots": 0}, "slots is 0; expected the largest number of rows"),
        ({"per": "column"}, "per is 'column'; expected 'row' or 'token'"),
    ],
)
def test_what_makes_no_sense_for_rows_is_refused(change: dict[str, Any], message: str) -> None:
    blocks = [nn.Identity() for _ in range(3)]
    with pytest.raises(ValueError, match=message):
        fast.RowSteering(blocks, **{"bank": torch.ones(2, 3, 4), "slots": 2, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": [2]}, r"slots must be different numbers from 0 to 1; got \[2\]"),
        ({"behaviour": 2}, r"behaviour must be different numbers from 0 to 1; got \[2\]"),
        ({"lam": float("inf")}, "lam must be finite"),
        ({"layers": [3]}, r"layers must be different numbers from 0 to 2; got \[3\]"),
    ],
)
def test_a_slot_that_cannot_be_assigned_keeps_what_it_has(change: dict[str, Any], message: str) -> None:
    blocks, h = [nn.Identity() for _ in range(3)], drawn(1, 2, 1, 4)
    rows = fast.RowSteering(blocks, drawn(2, 2, 3, 4), slots=2)
    rows.assign([0], behaviour=1, lam=2.0)
    with rows:
        before = blocks[0](h)
        with pytest.raises(ValueError, match=message):
            rows.assign(**{"slots": [0], "behaviour": 0, "lam": 1.0, **change})
        assert torch.equal(blocks[0](h), before)


def test_more_rows_than_slots_are_refused_and_not_steered_by_others() -> None:
    block = nn.Identity()
    for per, fits, too_many in (("row", (2, 9, 4), (3, 1, 4)), ("token", (1, 2, 4), (2, 2, 4))):
        with fast.RowSteering([block], torch.ones(1, 1, 4), slots=2, per=per) as rows:  # type: ignore[arg-type]
            rows.assign([0], behaviour=0, lam=1.0)
            block(torch.ones(fits))
            with pytest.raises(ValueError, match=rf"expected \(B, T, 4\) with at most 2 {per}s"):
                block(torch.ones(too_many))
            with pytest.raises(ValueError, match=r"expected \(B, T, 4\)"):
                block(torch.ones(2, 4))


# ---------------------------------------------------------------------------------------- whole models
def test_generation_is_the_references_token_by_token(llama: HuggingFaceModel) -> None:
    v = drawn(1, len(llama.blocks), llama.width)
    prompts = ["The capital", "Is the earth flat? A:"]
    with grains.Steering(llama.blocks, v, lam=2.0):
        expected = llama.generate(prompts, max_new_tokens=6)
    with fast.Steering(llama.blocks, v, lam=2.0):
        assert llama.generate(prompts, max_new_tokens=6) == expected
    rows = fast.RowSteering(llama.blocks, torch.stack([v, -v]), slots=2)
    rows.assign([0], behaviour=0, lam=2.0)
    with rows:
        first, second = llama.generate(prompts, max_new_tokens=6)
    assert first == expected[0]
    assert second == llama.generate(prompts, max_new_tokens=6)[1]
