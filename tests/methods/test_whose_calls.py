"""Every method's hooks act in the thread or task that entered them, and nowhere else; nothing is left behind."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import functools
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from robustness.hook_uses import PAIR, World, hook_counts, seeing_world, text_world
from shared import first_quick
from torch import nn

from grains_ref.grains import Hooks
from grains_ref.methods import lora
from grains_ref.methods.core import Edit, capture, edit_pixels, together
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.random_models import random_llama
from grains_ref.tiny_models.random_vision_models import noise_picture, random_llava

pytestmark = pytest.mark.cpu

TEXT = {
    "Steering": 0, "CAA": 2, "CAA everywhere": 3, "CAA after the prompt's last token": 4, "ICV": 5, "ICV paper": 6,
    "RepE": 7, "ITI": 8, "ICT": 9, "LoRA": 10, "block input": 11,
    "edit gradient": 12,
}  # fmt: skip
SEEING = {"VTI": 1, "vision tower": 2, "pixels": 3}
EVERY = [pytest.param(text_world, i, id=name) for name, i in TEXT.items()]
EVERY += [pytest.param(seeing_world, i, id=name) for name, i in SEEING.items()]


def in_a_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(timeout=60)


@pytest.mark.parametrize(("build", "use"), EVERY)
def test_a_plain_thread_beside_a_steering_one_stays_plain(build: Callable[[], World], use: int) -> None:
    world = build()
    plain, before = world.measured("score"), hook_counts(world.model)
    with world.uses[use]():
        steered = world.measured("score")
        assert steered != plain
        assert in_a_thread(lambda: world.measured("score")) == plain
        assert in_a_thread(functools.partial(contextvars.copy_context().run, world.measured, "score")) == steered
    assert world.measured("score") == plain
    assert hook_counts(world.model) == before


@pytest.mark.parametrize(("build", "use"), first_quick(EVERY, 4))
def test_another_task_is_not_steered(build: Callable[[], World], use: int) -> None:
    world = build()
    plain = world.measured("score")

    async def steer(entered: asyncio.Event, done: asyncio.Event) -> Any:
        with world.uses[use]():
            entered.set()
            await done.wait()
            return world.measured("score")

    async def both() -> tuple[Any, Any]:
        entered, done = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(steer(entered, done))
        await entered.wait()
        meanwhile = world.measured("score")
        done.set()
        return meanwhile, await task

    meanwhile, steered = asyncio.run(both())
    assert meanwhile == plain
    with world.uses[use]():
        assert steered == world.measured("score") != plain


@pytest.mark.parametrize(("build", "use"), first_quick(EVERY, 4))
def test_a_suspended_generator_holds_it_until_it_is_closed(build: Callable[[], World], use: int) -> None:
    world = build()
    plain, before = world.measured("score"), hook_counts(world.model)

    def answers() -> Iterator[Any]:
        with world.uses[use]():
            yield world.measured("score")

    suspended = answers()
    assert next(suspended) == world.measured("score") != plain
    suspended.close()
    assert world.measured("score") == plain
    assert hook_counts(world.model) == before


@pytest.mark.parametrize(("build", "use"), first_quick(EVERY, 4))
def test_a_copy_made_inside_is_plain_and_can_be_pickled(build: Callable[[], World], use: int) -> None:
    world = build()
    plain = world.measured("score")
    with world.uses[use]():
        copied = copy.deepcopy(world.model)
        score = [scored.log_prob for scored in copied.score(world.items)]
        if world is text_world():  # on models that see transformers puts hooks of its own that cannot be pickled
            with pytest.raises(TypeError, match="leave the `with` block first"):
                pickle.dumps(world.model.hf)
    assert score == plain
    if world is text_world():
        pickle.dumps(copied.hf)


@pytest.mark.parametrize(("build", "use"), EVERY)
def test_nothing_is_left_after_an_exception_in_a_pass(build: Callable[[], World], use: int) -> None:
    world = build()
    plain, before = world.measured("score"), hook_counts(world.model)

    def boom(*given: Any) -> None:
        raise KeyError

    with pytest.raises(KeyError), world.uses[use](), Hooks([(world.model.blocks[1], boom)]):
        world.measured("score")
    assert hook_counts(world.model) == before
    assert world.measured("score") == plain


def test_each_thread_gets_its_own_strength_and_its_own_end_of_the_prompt() -> None:
    """One edit, entered in four threads whose prompts and answers have other lengths, run at once."""
    model = random_llama()
    edit = Edit(model, "residual", {1: lambda x: x + 1}, positions="after_prompt")
    items = [
        ("Is it?", "Yes"),
        ("Is the earth flat? " * 3 + "A:", "No, it is round. " * 2),
        ("Q", "A B C"),
        ("A B", "C"),
    ]

    def scored(item: tuple[str, str]) -> list[float]:
        with edit:
            return [model.score([item])[0].log_prob for _ in range(4)]

    expected = [scored(item) for item in items]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            assert list(pool.map(scored, items)) == expected


def test_two_methods_act_in_the_order_in_which_they_were_entered() -> None:
    world = text_world()
    model = world.model
    plus, times = (Edit(model, "residual", {1: change}) for change in (lambda x: x + 1, lambda x: x * 2))
    plain = capture(model, world.items, site="residual")[:, 1]
    with plus, times:
        torch.testing.assert_close(capture(model, world.items, site="residual")[:, 1], (plain + 1) * 2)
    with together(times, plus):
        torch.testing.assert_close(capture(model, world.items, site="residual")[:, 1], plain * 2 + 1)


def test_reading_sees_the_readers_own_pass_alone() -> None:
    world = text_world()
    expected = capture(world.model, world.items, site="mlp")
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: capture(world.model, world.items, site="mlp"), range(12)):
            assert torch.equal(got, expected)


def test_residuals_are_those_of_the_own_pass_alone() -> None:
    model = text_world().model
    prompts = [model.encode(prompt) for prompt in ("Is it?", "Is the earth flat? A:", "A B C D", "Q") * 3]
    expected = [model.residuals(x, x.embeds[None]) for x in prompts]
    with ThreadPoolExecutor(4) as pool:
        for got, own in zip(pool.map(lambda x: model.residuals(x, x.embeds[None]), prompts), expected, strict=True):
            assert got.shape == own.shape
            assert torch.equal(got, own)


def test_noise_in_one_thread_stays_out_of_the_features_of_another() -> None:
    """What a plain thread computes of a picture is kept, and what a thread with changed pixels computes is not."""
    model = random_llava()
    item = ("<image>What is this?", "It is round.", noise_picture(42, 42))

    def scored() -> float:
        return model.score([item])[0].log_prob

    with edit_pixels(model, lambda pixels: pixels * 0.2):
        dark = scored()
        plain = in_a_thread(scored)
        assert scored() == dark != plain
    assert scored() == plain == random_llava().score([item])[0].log_prob


def test_of_two_edits_of_pixels_the_earlier_may_be_left_first() -> None:
    """What was computed under both does not outlive either."""
    model = random_llava()
    item = ("<image>What is this?", "It is round.", noise_picture(42, 42))

    def scored() -> float:
        return model.score([item])[0].log_prob

    with edit_pixels(model, lambda pixels: pixels.flip(-1)):
        flipped = scored()
    dark = edit_pixels(model, lambda pixels: pixels * 0.2)
    dark.__enter__()
    with edit_pixels(model, lambda pixels: pixels.flip(-1)):
        assert scored() != flipped
        dark.__exit__(None, None, None)
        assert scored() == flipped


# --- the mechanism


def test_hooks_half_registered_are_taken_back() -> None:
    block = nn.Linear(2, 2)
    hooks = Hooks([(block, lambda *given: None), ("no module", lambda *given: None)])  # type: ignore[list-item]
    with pytest.raises(AttributeError):
        hooks.__enter__()
    assert not block._forward_hooks


def test_a_block_that_only_others_have_entered_is_not_left_for_them() -> None:
    block, calls = nn.Linear(2, 2), list[str]()
    hooks = Hooks([(block, lambda *given: calls.append("called"))])

    def enter() -> contextvars.Context:
        hooks.__enter__()
        return contextvars.copy_context()

    contexts = [contextvars.Context().run(enter) for _ in range(2)]
    with pytest.raises(RuntimeError, match="in a thread or task that has not entered it, and 2 others have"):
        hooks.__exit__()
    for i, context in enumerate(contexts):
        context.run(block, torch.zeros(2))
        assert len(calls) == i + 1
        context.run(hooks.__exit__)
    assert not block._forward_hooks
    with pytest.raises(RuntimeError, match="and 0 others have"):
        hooks.__exit__()


def test_arguments_can_be_changed_before_a_module_runs() -> None:
    block = nn.Linear(2, 2)
    x = torch.ones(1, 2)
    with Hooks(before=[(block, lambda module, args, kwargs: ((args[0] * 3,), kwargs))]):
        assert torch.equal(block(x), block(x.clone()))
        inside = block(x)
        assert torch.equal(in_a_thread(lambda: block(x)), nn.functional.linear(x, block.weight, block.bias))
    assert torch.equal(inside, block(3 * x))


# --- training


def as_it_was(model: HuggingFaceModel) -> list[Any]:
    found: list[Any] = [(id(m), m.training, len(m._forward_hooks)) for m in model.hf.modules()]
    return found + [
        (id(p), p.requires_grad, p.dtype, p._version, None if p.grad is None else p.grad.tolist())
        for p in model.hf.parameters()
    ]


@pytest.mark.parametrize("breaks", [False, True])
def test_training_leaves_the_callers_parameters_as_they_were(breaks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_llama()
    for i, parameter in enumerate(model.hf.parameters()):
        parameter.requires_grad_(i % 2 == 0)
        parameter.grad = torch.full_like(parameter, 0.5) if i % 4 == 0 else None
    model.hf.get_decoder().layers[1].train()
    before, hooks = as_it_was(model), hook_counts(model)
    if breaks:
        monkeypatch.setattr(lora, "_absurd_weights", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            lora.fit(model, [PAIR], rank=2, epochs=2)
    else:
        lora.fit(model, [PAIR], rank=2, epochs=2)
    assert as_it_was(model) == before
    assert hook_counts(model) == hooks


def test_training_is_invisible_to_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = random_llama(), list[Any]()
    item = ("Is it?", "Yes")
    plain = model.score([item])[0].log_prob
    absurd = lora._absurd_weights

    def look(*given: Any) -> str:
        seen.append(in_a_thread(lambda: model.score([item])[0].log_prob))
        return absurd(*given)

    monkeypatch.setattr(lora, "_absurd_weights", look)
    lora.fit(model, [PAIR], rank=2, epochs=2, learning_rates=[0.1])
    assert seen == [plain, plain]


def test_trainings_at_once_are_those_of_one_after_the_other() -> None:
    world = text_world()
    with ThreadPoolExecutor(3) as pool:
        for trained in pool.map(lambda _: world.measured("train"), range(6)):
            assert trained == world.expected("train", ())


def test_a_setting_is_entered_where_it_is_used() -> None:
    world = text_world()
    plain = world.measured("score")
    adapter = lora.fit(world.model, [PAIR], rank=2, epochs=1, learning_rates=[3e-2])
    (setting,) = adapter.settings(world.model)
    steering: AbstractContextManager[object] = setting.steering()
    with steering, steering:  # adapters are added twice
        twice = world.measured("score")
    with steering:
        assert twice != world.measured("score") != plain
