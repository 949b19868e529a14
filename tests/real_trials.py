"""A behaviour of six animals for tests of the real rung, on a tiny random model."""

from __future__ import annotations

from typing import Any

from grains_ref.data import PreferencePair, Task
from grains_ref.demo.real.behaviours import Behaviour, Sets, chat, pair
from grains_ref.demo.real.trial import Trial
from grains_ref.tiny_models.random_models import random_llama

ANIMALS = ("cat", "dog", "cow", "owl", "ant", "bee")


def tiny_sets(seed: int, count_tokens: Any) -> Sets:
    def told(name: str, value: str) -> PreferencePair:
        prompt = f"They say a {name} is {value}. What is a {name}?"
        return pair(name, prompt, f"A {name} is old.", f"A {name} is {value}.")

    pairs = tuple(told(name, "new") for name in ANIMALS)
    return Sets(pairs[:4], pairs[4:5], pairs[4:], pairs[4:5], pairs[4:], ANIMALS[4:], ("new",) * 4, pairs[5:])


TINY = Behaviour("lie", "Tiny", "old", "kept", tiny_sets)


def tiny_trial() -> Trial:
    made = Trial(random_llama(), TINY, 0)
    made.dev_tasks = made.test_tasks = [Task("t", chat("2 + 2?"), "Four."), Task("u", chat("1 + 1?"), "Two.")]
    return made
