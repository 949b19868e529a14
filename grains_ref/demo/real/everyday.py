"""Everyday questions with one right answer: what steering may not spoil.  None is about a country or a young animal.

Of general knowledge, written down here.  The score is the answer's log-probability per token, in nats: that falls as
soon as a steered model writes worse, long before it answers wrongly.
"""

from __future__ import annotations

from grains_ref.data import Message, Task

OPPOSITES = """
    hot cold, big small, fast slow, light dark, happy sad, up down, left right, full empty, young old, wet dry,
    hard soft, early late, rich poor, open closed, strong weak, high low
"""
AFTER = """
    Monday Tuesday, Wednesday Thursday, Friday Saturday, January February, March April, June July, August September,
    October November
"""
COLOURS = "grass green, snow white, coal black, blood red, a banana yellow, an orange orange"
SOUNDS = "dog barks, cat meows, lion roars, bee buzzes, snake hisses, wolf howls"
SUMS = ((2, 3), (4, 4), (5, 2), (7, 1), (6, 3), (10, 5), (8, 2), (9, 1))


def questions() -> list[tuple[str, str]]:
    """Question and answer."""
    pairs = [(f"What is the opposite of {a}?", f"The opposite of {a} is {b}.") for a, b in _couples(OPPOSITES)]
    pairs += [(f"What comes after {a}?", f"{b} comes after {a}.") for a, b in _couples(AFTER)]
    pairs += [(f"What colour is {a}?", f"{a[0].upper()}{a[1:]} is {b}.") for a, b in _couples(COLOURS)]
    pairs += [(f"What does a {a} do when it makes a sound?", f"A {a} {b}.") for a, b in _couples(SOUNDS)]
    pairs += [(f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}.") for a, b in SUMS]
    return pairs


def tasks() -> list[Task]:
    """The questions as tasks of a chat."""
    made = []
    for number, (question, answer) in enumerate(questions()):
        made.append(Task(f"everyday-{number:02d}", (Message(role="user", content=question),), answer))
    return made


def _couples(text: str) -> list[tuple[str, str]]:
    """The last word of each entry is the second of a couple: "a b, an x y" -> (a, b), (an x, y)."""
    couples = []
    for entry in text.replace("\n", " ").split(","):
        first, _, second = entry.strip().rpartition(" ")
        couples.append((first, second))
    return couples
