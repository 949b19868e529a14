"""Steering, eq. (7) and (8): the formula, and the hooks on real blocks."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import functools
import math
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from toys import ToyDecoder, residual_of

from grains_ref.grains import Steering, steer_hidden
from grains_ref.models import HuggingFaceModel

pytestmark = pytest.mark.cpu

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(7,), (5, 7), (2, 5, 7), (7, 7), (3, 1, 7)]  # a vector, tokens, a batch, a square, one token at a time


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(n: int) -> st.SearchStrategy[Tensor]:
    """n values that are 0 or of ordinary size: squares of the rest underflow in float32."""
    value = st.just(0.0) | st.floats(1e-2, 1e3) | st.floats(-1e3, -1e-2)
    return st.lists(value, min_size=n, max_size=n).map(lambda values: torch.tensor(values, dtype=torch.float64))


LAMBDA = st.floats(-50, 50)


# --- the formula


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data(), shape=st.sampled_from(SHAPES), lam=LAMBDA)
def test_every_token_keeps_its_norm(
    dtype: torch.dtype, data: st.DataObject, shape: tuple[int, ...], lam: float
) -> None:
    h, v = data.draw(rows(math.prod(shape))).view(shape).to(dtype), data.draw(rows(7))
    got = steer_hidden(h, v, lam=lam)
    assert (got.shape, got.dtype) == (h.shape, dtype)
    before, after = h.double().norm(dim=-1), got.double().norm(dim=-1)
    # Sums of 7 squares in the wide type, and one rounding of every component to the narrow one, where values below
    # the least normal number have an absolute error.
    wide = torch.promote_types(dtype, torch.float32)
    relative = 16 * torch.finfo(wide).eps + torch.finfo(dtype).eps
    absolute = 7**0.5 * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert ((after - before).abs() <= relative * before + absolute).all()


@given(data=st.data(), shape=st.sampled_from(SHAPES), lam=LAMBDA)
def test_each_token_is_treated_by_itself_as_the_formula_says(
    data: st.DataObject, shape: tuple[int, ...], lam: float
) -> None:
    h, v = data.draw(rows(math.prod(shape))).view(shape), data.draw(rows(7))
    got = steer_hidden(h, v, lam=lam)
    for token, result in zip(h.reshape(-1, 7).tolist(), got.reshape(-1, 7).tolist(), strict=True):
        shifted = [x + lam * y for x, y in zip(token, v.tolist(), strict=True)]
        if math.hypot(*shifted) > 0:
            ratio = math.hypot(*token) / math.hypot(*shifted)
            assert result == pytest.approx([ratio * z for z in shifted], rel=1e-9, abs=1e-12)
        else:
            assert result == token


@given(data=st.data(), lam=LAMBDA, c=st.floats(0.1, 10))
def test_only_the_product_of_strength_and_vector_matters(data: st.DataObject, lam: float, c: float) -> None:
    h, v = data.draw(rows(35)).view(5, 7), data.draw(rows(7))
    got, scaled = steer_hidden(h, v, lam=lam), steer_hidden(h, c * v, lam=lam / c)
    # Where h and lam v nearly cancel, what is left of their rounding errors turns the direction.
    size, left = h.norm(dim=1), (h + lam * v).norm(dim=1)
    certain = left > 1e-8 * (size + (lam * v).norm())
    torch.testing.assert_close(got[certain], scaled[certain], rtol=1e-6, atol=1e-6 * float(size.max()))


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_strength_zero_changes_no_bit(dtype: torch.dtype, data: st.DataObject) -> None:
    h, v = data.draw(rows(35)).view(5, 7).to(dtype), data.draw(rows(7))
    assert torch.equal(steer_hidden(h, v, lam=0.0), h)
    assert torch.equal(steer_hidden(h, torch.zeros(7), lam=3.0), h)


def test_a_token_that_is_zero_stays_zero() -> None:
    h = drawn(1, 3, 7)
    h[1] = 0
    got = steer_hidden(h, drawn(2, 7), lam=2.0)
    assert got[1].count_nonzero() == 0
    assert got.isfinite().all()


def test_a_token_that_the_vector_cancels_is_kept() -> None:
    h = drawn(1, 3, 7)
    got = steer_hidden(h, h[1], lam=-1.0)
    assert torch.equal(got[1], h[1])
    assert not torch.equal(got[0], h[0])


def test_large_float16_values_do_not_overflow() -> None:
    h = torch.full((2, 64), 3e4, dtype=torch.float16)  # norm 2.4e5, beyond float16
    h[:, 0] = -3e4
    got = steer_hidden(h, torch.ones(64) / 8, lam=1e4)
    assert got.isfinite().all()
    assert got.double().norm(dim=1).tolist() == pytest.approx(h.double().norm(dim=1).tolist(), rel=1e-3)
    assert not torch.equal(got, h)


def test_more_strength_turns_a_token_further_toward_the_vector() -> None:
    h, v = drawn(1, 5, 7), drawn(2, 7)

    def cosine(lam: float) -> Tensor:
        return torch.nn.functional.cosine_similarity(steer_hidden(h, v, lam=lam), v, dim=-1)

    for less, more in ((-9.0, -1.0), (-1.0, 0.0), (0.0, 0.5), (0.5, 2.0), (2.0, 30.0)):
        assert (cosine(more) > cosine(less)).all()
    assert cosine(1e6).min() > 0.999


@pytest.mark.parametrize("h_type", DTYPES)
@pytest.mark.parametrize("v_type", DTYPES)
def test_the_vectors_type_does_not_change_the_streams(h_type: torch.dtype, v_type: torch.dtype) -> None:
    h, v = drawn(1, 5, 7).to(h_type), torch.tensor([1.0, -0.5, 0, 2, 0.25, 4, -1])  # exact in every type
    assert torch.equal(steer_hidden(h, v.to(v_type), lam=0.7), steer_hidden(h, v, lam=0.7))


# --- the hooks


def hooks(model: HuggingFaceModel) -> list[int]:
    """How many hooks each block carries; transformers may have some of its own there."""
    return [len(block._forward_hooks) + len(block._forward_pre_hooks) for block in model.blocks]


def logits(model: HuggingFaceModel, rows: int = 1) -> Tensor:
    ids = torch.tensor([[5, 41, 73, 12, 200], [9, 8, 30, 31, 60]])[:rows]
    with torch.no_grad():
        return model.hf(input_ids=ids).logits


def vector(model: HuggingFaceModel, seed: int = 1) -> Tensor:
    return drawn(seed, len(model.blocks), model.width).float()


def outputs(model: HuggingFaceModel) -> list[Tensor]:
    """What each block hands on for a batch of two."""
    seen: list[Tensor] = []
    handles = [b.register_forward_hook(lambda block, _, out: seen.append(residual_of(out))) for b in model.blocks]
    logits(model, rows=2)
    for handle in handles:
        handle.remove()
    return seen


def test_every_layer_position_and_row_is_steered_after_its_block(model: HuggingFaceModel) -> None:
    v = vector(model)
    raw: list[Tensor] = []
    handles = [b.register_forward_hook(lambda block, _, out: raw.append(residual_of(out))) for b in model.blocks]
    with Steering(model.blocks, v, lam=3.0):  # its hooks run after those above and before those of `outputs`
        handed_on = outputs(model)
    for handle in handles:
        handle.remove()
    assert len(raw) == len(handed_on) == len(model.blocks)
    for before, after, direction in zip(raw, handed_on, v, strict=True):
        assert torch.equal(after, steer_hidden(before, direction, lam=3.0))
        assert (after - before).norm(dim=-1).min() > 1e-2  # (2, 5): every token of both rows
        torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1))


def test_leaving_restores_the_model_bit_for_bit(model: HuggingFaceModel) -> None:
    plain, before = logits(model), hooks(model)
    with Steering(model.blocks, vector(model), lam=2.0):
        assert hooks(model) == [n + 1 for n in before]
        assert (logits(model) - plain).abs().max() > 1e-2
    assert hooks(model) == before
    assert torch.equal(logits(model), plain)


def test_an_exception_inside_leaves_no_hook_behind(model: HuggingFaceModel) -> None:
    plain, before = logits(model), hooks(model)
    with pytest.raises(KeyError, match="inside"), Steering(model.blocks, vector(model), lam=2.0):  # noqa: PT012
        logits(model)
        raise KeyError("inside")
    assert hooks(model) == before
    assert torch.equal(logits(model), plain)


def test_strength_zero_is_the_unsteered_model_bit_for_bit(model: HuggingFaceModel) -> None:
    plain = logits(model)
    with Steering(model.blocks, vector(model), lam=0.0):
        assert torch.equal(logits(model), plain)


def test_it_can_be_entered_again_and_inside_itself(llama: HuggingFaceModel) -> None:
    plain, before, steering = logits(llama), hooks(llama), Steering(llama.blocks, vector(llama), lam=2.0)
    with steering:
        once = logits(llama)
        with steering:
            assert hooks(llama) == [n + 2 for n in before]
            twice = logits(llama)
        assert torch.equal(logits(llama), once)
    assert torch.equal(logits(llama), plain)
    with steering:
        assert torch.equal(logits(llama), once)
    assert hooks(llama) == before
    assert not torch.equal(once, twice)


def test_nested_vectors_apply_one_after_the_other_and_leave_in_any_order(llama: HuggingFaceModel) -> None:
    first, second = (Steering(llama.blocks, vector(llama, seed), lam=2.0) for seed in (1, 2))
    with first:
        with second:
            nested = outputs(llama)
        raw: list[Tensor] = []
        handle = llama.blocks[0].register_forward_hook(lambda block, inputs, output: raw.append(output))
        logits(llama, rows=2)
        handle.remove()
    torch.testing.assert_close(nested[0], steer_hidden(raw[0], vector(llama, 2)[0], lam=2.0))
    plain = logits(llama)
    first.__enter__()
    alone = logits(llama)
    second.__enter__()
    first.__exit__()  # not the one entered last
    assert not torch.equal(logits(llama), alone)
    second.__exit__()
    assert torch.equal(logits(llama), plain)


def test_only_the_chosen_layers_are_steered(qwen2: HuggingFaceModel) -> None:
    v, plain, before = vector(qwen2), outputs(qwen2), hooks(qwen2)
    with Steering(qwen2.blocks, v, lam=2.0, layers=[3, 1]):
        assert [n - m for n, m in zip(hooks(qwen2), before, strict=True)] == [0, 1, 0, 1, 0]
        some = outputs(qwen2)
    assert torch.equal(some[0], plain[0])
    assert torch.equal(some[1], steer_hidden(plain[1], v[1], lam=2.0))  # each layer by its own vector
    only = torch.zeros_like(v)
    only[[1, 3]] = v[[1, 3]]
    with Steering(qwen2.blocks, only, lam=2.0):
        assert all(torch.equal(a, b) for a, b in zip(outputs(qwen2), some, strict=True))
    with Steering(qwen2.blocks, v, lam=2.0, layers=[]):
        assert hooks(qwen2) == before


def test_a_block_that_returns_a_tuple_is_steered_and_returns_it_in_kind(toy: ToyDecoder) -> None:
    old = ToyDecoder(returns_tuple=True)
    v, x = drawn(1, toy.n_blocks, toy.width), toy.encode([3, 17, 9])
    returned: list[Any] = []
    with Steering(toy.blocks, v, lam=2.0):
        expected = toy.residuals(x, x.embeds[None])
    with Steering(old.blocks, v, lam=2.0):
        handle = old.blocks[0].register_forward_hook(lambda block, inputs, output: returned.append(output))
        got = old.residuals(x, x.embeds[None])
        handle.remove()
    assert torch.equal(got, expected)
    assert not torch.equal(got, toy.residuals(x, x.embeds[None]))
    assert type(returned[0]) is tuple
    assert returned[0][1:] == ("second output",)


@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_scaling_vector_and_strength_inversely_leaves_the_logits(model: HuggingFaceModel, scale: float) -> None:
    with Steering(model.blocks, vector(model), lam=2.0):
        expected = logits(model)
    with Steering(model.blocks, scale * vector(model), lam=2.0 / scale):
        torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((28,), {}, r"v must be \(L, d\) with L = 3 decoder blocks; got \(28,\)"),
        ((4, 28), {}, r"v must be \(L, d\) with L = 3 decoder blocks; got \(4, 28\)"),
        ((3, 28), {"layers": [0, 3]}, r"from 0 to 2; got \[0, 3\]"),
        ((3, 28), {"layers": [-1]}, r"from 0 to 2; got \[-1\]"),
        ((3, 28), {"layers": [1, 1]}, r"different numbers from 0 to 2; got \[1, 1\]"),
        ((3, 28), {"lam": math.nan}, "lam must be finite; it is nan"),
        ((3, 28), {"lam": math.inf}, "lam must be finite; it is inf"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    llama: HuggingFaceModel, shape: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Steering(llama.blocks, torch.ones(shape), **{"lam": 1.0, **options})


@pytest.mark.parametrize("width", [1, 27])
def test_a_vector_of_another_width_is_refused_and_not_broadcast(llama: HuggingFaceModel, width: int) -> None:
    x = llama.encode("The capital")
    message = rf"v must have the width of h; got \({width},\) for h of shape \(1, {len(x.ids)}, 28\)"
    with Steering(llama.blocks, torch.ones(3, width), lam=1.0), pytest.raises(ValueError, match=message):
        llama.residuals(x, x.embeds[None])


def test_a_vector_that_is_not_finite_is_refused(llama: HuggingFaceModel) -> None:
    v = vector(llama)
    v[1, 3] = math.nan
    with pytest.raises(ValueError, match=r"in layers \[1\] it holds 1 other values"):
        Steering(llama.blocks, v, lam=1.0)


def test_what_holds_a_vector_is_not_a_vector(llama: HuggingFaceModel) -> None:
    class Fit:
        v = vector(llama)

    with pytest.raises(TypeError, match=r"v is a Fit; expected a tensor \(L, d\), for instance `fit.v`"):
        Steering(llama.blocks, Fit(), lam=1.0)  # type: ignore[arg-type]


# --- numbers of every size


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data(), lam=st.floats(allow_nan=False, allow_infinity=False))
def test_states_of_every_size_keep_their_norm_or_are_refused(
    dtype: torch.dtype, data: st.DataObject, lam: float
) -> None:
    info = torch.finfo(dtype)
    value = st.floats(-info.max, info.max, allow_nan=False, allow_infinity=False)
    h = torch.tensor(data.draw(st.lists(value, min_size=4, max_size=4)), dtype=torch.float64).to(dtype)
    v = torch.tensor(data.draw(st.lists(st.floats(-1e300, 1e300), min_size=4, max_size=4)), dtype=torch.float64)
    try:
        got = steer_hidden(h, v, lam=lam)
    except FloatingPointError:
        return
    assert got.isfinite().all()
    before, after = math.hypot(*h.tolist()), math.hypot(*got.tolist())
    # One rounding of every component, and a handful in the wide type; below the least normal number it is absolute.
    assert after == pytest.approx(before, rel=8 * info.eps, abs=8 * info.tiny * info.eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.01, 0.4, 0.9])
def test_norms_whose_squares_overflow_or_vanish_are_restored(dtype: torch.dtype, share: float) -> None:
    info = torch.finfo(dtype)
    direction = torch.tensor([3.0, -4.0, 12.0, 0.0], dtype=dtype) / 13
    v = torch.tensor([1.0, 2.0, -2.0, 4.0], dtype=torch.float64)
    for size in (info.max * share / 8, info.tiny**share):
        got = steer_hidden(size * direction, v, lam=size)  # refused only where there is no way
        assert math.hypot(*got.tolist()) == pytest.approx(size, rel=1e-5 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("lam", [1e30, 1e38, 1e39, 1e300])
def test_a_strength_beyond_all_measure_is_refused_and_zeroes_no_state(lam: float) -> None:
    h = torch.tensor([[1e-9, 0.0], [0.0, 0.0]])
    with pytest.raises(FloatingPointError, match=r"lam \* v is too long beside h for torch.float32"):
        steer_hidden(h, torch.tensor([1.0, 1.0]), lam=lam)


def test_a_state_that_is_not_finite_is_not_blamed_on_the_vector() -> None:
    h = torch.tensor([[1.0, math.nan], [math.inf, 0.0]])
    with pytest.raises(FloatingPointError, match="2 values of h are not finite before they are steered"):
        steer_hidden(h, torch.ones(2), lam=1.0)


# --- whose calls are steered


def in_a_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(timeout=60)


def test_another_thread_is_not_steered(llama: HuggingFaceModel) -> None:
    plain, before = logits(llama), hooks(llama)
    with Steering(llama.blocks, vector(llama), lam=2.0):
        assert not torch.equal(logits(llama), plain)
        assert torch.equal(in_a_thread(lambda: logits(llama)), plain)
    assert hooks(llama) == before


def test_each_thread_gets_its_own_strength(llama: HuggingFaceModel) -> None:
    def steered(lam: float) -> Tensor:
        with Steering(llama.blocks, vector(llama), lam=lam):
            return logits(llama)

    lams = [0.5, 1.0, 2.0, 4.0]
    expected, before = [steered(lam) for lam in lams], hooks(llama)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for got, own in zip(pool.map(steered, lams), expected, strict=True):
                assert torch.equal(got, own)
    assert hooks(llama) == before


def test_a_thread_started_with_a_copy_of_the_context_is_steered(llama: HuggingFaceModel) -> None:
    with Steering(llama.blocks, vector(llama), lam=2.0):
        steered = logits(llama)
        assert torch.equal(in_a_thread(functools.partial(contextvars.copy_context().run, logits, llama)), steered)


def test_another_task_is_not_steered(llama: HuggingFaceModel) -> None:
    plain = logits(llama)

    async def steer(entered: asyncio.Event, done: asyncio.Event) -> Tensor:
        with Steering(llama.blocks, vector(llama), lam=2.0):
            entered.set()
            await done.wait()
            return logits(llama)

    async def both() -> tuple[Tensor, Tensor]:
        entered, done = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(steer(entered, done))
        await entered.wait()
        meanwhile = logits(llama)
        done.set()
        return meanwhile, await task

    meanwhile, steered = asyncio.run(both())
    assert torch.equal(meanwhile, plain)
    assert not torch.equal(steered, plain)


def test_one_object_serves_several_threads_and_leaves_only_its_own_hooks(llama: HuggingFaceModel) -> None:
    steering, plain, before = Steering(llama.blocks, vector(llama), lam=2.0), logits(llama), hooks(llama)
    barrier = threading.Barrier(2)

    def enter_and_leave() -> tuple[Tensor, Tensor]:
        with steering:
            barrier.wait(60)
            inside = logits(llama)
            barrier.wait(60)
        return inside, logits(llama)

    with ThreadPoolExecutor(2) as pool:
        results = [future.result(timeout=60) for future in [pool.submit(enter_and_leave) for _ in range(2)]]
    with steering:
        steered = logits(llama)
    for inside, outside in results:
        assert torch.equal(inside, steered)
        assert torch.equal(outside, plain)
    assert hooks(llama) == before


def test_a_copy_made_while_steered_is_not_steered(llama: HuggingFaceModel) -> None:
    plain = logits(llama)
    with Steering(llama.blocks, vector(llama), lam=2.0):
        copied = HuggingFaceModel(copy.deepcopy(llama.hf), llama.tokenizer, name="a copy")
        assert torch.equal(logits(copied), plain)
        steered = logits(llama)
    assert torch.equal(logits(copied), plain)
    assert not torch.equal(steered, plain)


def test_a_shallow_copy_of_a_steered_block_is_not_steered() -> None:
    """It shares the block's hooks."""
    block, h = torch.nn.Linear(4, 4), torch.ones(1, 2, 4)
    plain = block(h)
    with Steering([block], torch.ones(1, 4), lam=2.0):
        assert torch.equal(copy.copy(block)(h), plain)
        assert not torch.equal(block(h), plain)


def test_a_steered_model_is_not_pickled() -> None:
    block = torch.nn.Linear(4, 4)
    with (
        Steering([block], torch.ones(1, 4), lam=2.0),
        pytest.raises(TypeError, match="cannot be pickled while it is steered: leave the `with` block"),
    ):
        pickle.dumps(block)
    pickle.dumps(block)


def test_a_suspended_generator_has_not_left_its_block(llama: HuggingFaceModel) -> None:
    plain, before = logits(llama), hooks(llama)

    def answers() -> Iterator[Tensor]:
        with Steering(llama.blocks, vector(llama), lam=2.0):
            yield logits(llama)

    suspended = answers()
    assert torch.equal(next(suspended), logits(llama))  # as the docstring says
    suspended.close()
    assert torch.equal(logits(llama), plain)
    assert hooks(llama) == before
