"""Seeded uses of steering: whatever is nested, in threads, tasks and generators, each call gets what its own asks for.

rng = random.Random(0)
for _ in range(10_000):
    campaign(rng, folder)
"""

from __future__ import annotations

import asyncio
import copy
import functools
import io
import pickle
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from grains_ref import grains
from grains_ref.data import PreferencePair
from grains_ref.grains import Hooks, Steering
from grains_ref.methods import caa, edit_gradient, icv, iti, lora, repe, vti
from grains_ref.methods.core import Edit, capture, edit_pixels
from grains_ref.methods.ict import TrustedHeads
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.random_models import random_llama
from grains_ref.tiny_models.random_vision_models import noise_picture, random_llava

Use: TypeAlias = Callable[[], AbstractContextManager[object]]
Key: TypeAlias = tuple[int, ...]  # numbers of the uses that a call is under, in the order in which they were entered
Step: TypeAlias = tuple[str, int, Key]  # what is done, with which use, and under which ones afterwards

PAIR = PreferencePair("1", "Is the earth flat? A:", "No, it is round.", "Yes.", where="a test")


class BoomError(Exception):
    """Raised on purpose."""


@dataclass
class World:
    """A model, the ways to steer it, and what they give when nothing else runs."""

    model: HuggingFaceModel
    items: list[Any]
    uses: list[Use]
    trains: bool
    known: dict[tuple[str, Key], Any] = field(default_factory=dict)

    def measured(self, what: str) -> Any:
        """Numbers that depend on every hook: scores, activations, or a training."""
        try:
            return self._measured(what)
        except ValueError as error:  # reading and training run without a cache, which some positions need
            return _refusal(error, "needs a run with a cache")

    def _measured(self, what: str) -> Any:
        if what == "score":
            return [scored.log_prob for scored in self.model.score(self.items)]
        if what == "capture":
            return capture(self.model, self.items[:1], site="heads").flatten().tolist()
        return lora.fit(self.model, [PAIR], rank=2, epochs=1, learning_rates=[1e-2]).adapters[0].b["q_proj"].tolist()

    def expected(self, what: str, key: Key) -> Any:
        """The same numbers under these uses alone."""
        if (what, key) not in self.known:
            entered = [self.uses[i]() for i in key]
            try:
                for use in entered:
                    use.__enter__()
                self.known[what, key] = self.measured(what)
            finally:
                for use in reversed(entered):
                    use.__exit__(None, None, None)
        return self.known[what, key]


def _refusal(error: Exception, words: str) -> str:
    """The message of an expected error."""
    assert words in str(error), error
    return str(error)


def drawn(*shape: int, seed: int, size: float = 1.0) -> Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def text_world() -> World:
    model = random_llama()
    n, d = len(model.blocks), model.width
    k, d_h = 4, model.blocks[0].get_submodule("self_attn.o_proj").in_features // 4  # type: ignore[operator]
    v = drawn(n, d, seed=1)
    ranking = tuple((block, head) for head in range(k) for block in range(n))
    heads = iti.ProbedHeads("ITI", drawn(n, k, d_h, seed=2), drawn(n, k, seed=3).abs(), torch.ones(n, k), ranking)
    trust = TrustedHeads({"image": heads}, {"image": 1}, halve_overlap=False)
    adapter = lora.fit(model, [PAIR], rank=2, epochs=1, learning_rates=[3e-2]).adapters[0]
    at_heads = drawn(n, k * d_h, seed=6)
    uses: list[Use] = [
        lambda: Steering(model.blocks, v, lam=2.0),
        lambda: Steering(model.blocks, v, lam=-0.5, layers=[1]),
        lambda: caa.CAA(v, "last").steering(model, c=2.0, blocks=[0, 2]),
        lambda: caa.CAA(v, "last").steering(model, c=1.0, blocks=[1], positions="all"),
        lambda: caa.CAA(v, "last").steering(model, c=1.0, blocks=[1], positions=0),
        lambda: icv.ICV(v, icv.CODE).steering(model, lam=0.5),
        lambda: icv.ICV(v, icv.PAPER).steering(model, lam=1.0),
        lambda: repe.RepE(v, 0, (1.0,) * n).steering(model, c=1.0, blocks=range(n), operator="by_projection"),
        lambda: heads.steering(model, heads=5, alpha=3.0),
        lambda: trust.steering(model, heads=3, alpha=2.0, beta=0.0),
        lambda: adapter.steering(model),
        lambda: Edit(model, "block_input", {0: lambda x: x + 0.5}),
        lambda: edit_gradient.steer(model, at_heads, site="heads", positions="after_prompt", lam=0.5),
    ]
    return World(model, [("Is the earth flat? A:", "No, it is round."), ("Is it?", "Yes")], uses, trains=True)


@functools.cache
def seeing_world() -> World:
    model = random_llava()
    picture = noise_picture(42, 42)
    v = drawn(len(model.blocks), model.width, seed=4)
    visual = drawn(1, model.family.n_vision_blocks, model.hf.config.vision_config.hidden_size, seed=5)
    both = vti.VisualTextual(visual, {0.9: icv.ICV(v, vti.TEXTUAL)})
    uses: list[Use] = [
        lambda: Steering(model.blocks, v, lam=1.0),
        lambda: both.steering(model, image=0.9, text=0.9),
        lambda: vti.steer_vision(model, visual, alpha=9.0),
        lambda: edit_pixels(model, lambda pixels: pixels * 0.5),
        lambda: edit_pixels(model, lambda pixels: pixels.flip(-1)),
        lambda: caa.CAA(v, "last").steering(model, c=2.0, blocks=[1]),
    ]
    return World(model, [("<image>What is this?", "It is round.", picture)], uses, trains=False)


# --- a program, drawn beforehand


def program(rng: random.Random, world: World) -> list[Step]:
    """Steps of one thread or task: entering, leaving, measuring, failing, copying."""
    steps: list[Step] = []
    under: list[int] = []  # uses that are entered, in order
    for _ in range(rng.randint(2, 7)):
        kinds = ["enter", "suspend", "score", "score", "capture", "boom", "boom in a pass", "deepcopy", "pickle"]
        kinds += ["leave"] * 3 * bool(under) + ["train"] * (world.trains and rng.random() < 0.2)
        kind = rng.choice(kinds)
        use = rng.randrange(len(world.uses))
        if kind in ("enter", "suspend") and len(under) < 3:
            under.append(use)
        elif kind in ("enter", "suspend"):
            kind = "score"
        elif kind == "leave":
            use = rng.randrange(len(under))  # not always the last one
            del under[use]
        steps.append((kind, use, tuple(under)))
    steps.append(("score", 0, tuple(under)))
    return steps


def run(world: World, steps: list[Step]) -> Iterator[str]:
    """The steps, one at a time; yields "ok" or "refused" after each. Whatever is still entered is left at the end."""
    entered: list[Any] = []
    try:
        for kind, use, key in steps:
            yield _step(world, kind, use, key, entered)
    finally:
        while entered:
            _leave(entered.pop())


def _step(world: World, kind: str, use: int, key: Key, entered: list[Any]) -> str:
    if kind == "enter":
        steering = world.uses[use]()
        steering.__enter__()
        entered.append(steering)
    elif kind == "suspend":
        generator = _suspended(world.uses[use])
        next(generator)
        entered.append(generator)
    elif kind == "leave":
        _leave(entered.pop(use))
    elif kind == "boom":
        with suppress(BoomError), world.uses[use]():
            raise BoomError
    elif kind == "boom in a pass":
        _boom_in_a_pass(world, world.uses[use])
    elif kind in ("deepcopy", "pickle"):
        return _copied(world, kind)
    elif kind == "train":
        assert world.measured("train") == world.expected("train", key), f"trained otherwise under {key}"
    else:
        assert world.measured(kind) == world.expected(kind, key), f"{kind} is another under {key}"
    return "ok"


def _suspended(use: Use) -> Iterator[None]:
    with use():
        yield


def _leave(steering: Any) -> None:
    if hasattr(steering, "close"):
        steering.close()
    else:
        steering.__exit__(None, None, None)


def _boom_in_a_pass(world: World, use: Use) -> None:
    def boom(module: nn.Module, inputs: Any, output: Any) -> None:
        raise BoomError

    with suppress(BoomError), use(), Hooks([(world.model.blocks[1], boom)]):
        world.measured("score")
        raise AssertionError("the exception of a hook was swallowed")


def _copied(world: World, kind: str) -> str:
    """A copy of a block gives what the block gives unsteered, wherever it is made, and is pickled afterwards."""
    block = world.model.blocks[0].get_submodule("self_attn.o_proj")
    x = drawn(1, 2, block.in_features, seed=6)  # type: ignore[arg-type]
    try:
        if kind == "pickle":
            copied = pickle.loads(pickle.dumps(block))
        else:
            copied = copy.deepcopy(block)
            pickle.dump(copied, io.BytesIO())
    except TypeError as error:
        _refusal(error, "leave the `with` block first")
        return "refused"
    except RuntimeError as error:  # another thread enters at this moment
        _refusal(error, "mutated during iteration")
        return "refused"
    plain = nn.functional.linear(x, block.weight, block.bias)  # type: ignore[arg-type]
    assert torch.equal(copied(x), plain), "a copy is steered"
    return "ok"


# --- who runs the programs


def campaign(rng: random.Random, folder: Path) -> str:
    """One random use; "ok", or "refused" if a copy was refused on the way. Anything else raises AssertionError."""
    world = seeing_world() if rng.random() < 0.15 else text_world()
    programs = [program(rng, world) for _ in range(rng.randint(1, 4))]
    for steps in programs:
        for kind, _, key in steps:
            if kind in ("score", "capture", "train"):
                world.expected(kind, key)
    before = hook_counts(world.model)
    in_threads = rng.random() < 0.5
    outcomes = _in_threads(world, programs) if in_threads else asyncio.run(_in_tasks(world, programs))
    assert hook_counts(world.model) == before, "hooks are left"
    assert grains._ENTERED.get() == (), "a block is still entered"
    assert world.measured("score") == world.expected("score", ()), "the model is not what it was"
    return "refused" if "refused" in outcomes else "ok"


def _in_threads(world: World, programs: list[list[Step]]) -> list[str]:
    start = threading.Barrier(len(programs))

    def work(steps: list[Step]) -> list[str]:
        start.wait(60)
        return list(run(world, steps))

    with ThreadPoolExecutor(len(programs)) as pool:
        return [outcome for outcomes in pool.map(work, programs) for outcome in outcomes]


async def _in_tasks(world: World, programs: list[list[Step]]) -> list[str]:
    async def work(steps: list[Step]) -> list[str]:
        outcomes = []
        for outcome in run(world, steps):
            outcomes.append(outcome)
            await asyncio.sleep(0)  # the other tasks' turn
        return outcomes

    return [outcome for outcomes in await asyncio.gather(*map(work, programs)) for outcome in outcomes]


def hook_counts(model: HuggingFaceModel) -> list[int]:
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.hf.modules()]
