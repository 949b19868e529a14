"""Made-up examples for tests of reports, hostile ones among them."""

from __future__ import annotations

import random
from typing import Any

from PIL import Image

from grains_ref.models.families import Patch
from grains_ref.report.attributions import Attributed

SCRIPT = "<script>document.title = 'stolen'</script>"
IMAGE = "<img src=x onerror=\"document.title='stolen'\">"
HOSTILE = [
    SCRIPT,
    IMAGE,
    "</script><script>document.title = 'stolen'</script>",
    "\"'><b>bold</b>",
    "{{ 7 * 7 }}{% raw %}",
    "<!--",
    "]]>&lt;&amp;",
    "\u202eright to left",
    "\x1b[31m\x00\x07",
    "half \ud800 of a character",
    "\u2028\u2029",
    "javascript:document.title='stolen'",
]


def attributed(**changes: Any) -> Attributed:
    """Six tokens, of which two are selected toward chosen and two toward rejected."""
    values: dict[str, Any] = {
        "prompt": "Is the earth flat?",
        "chosen": "No.",
        "rejected": "Yes.",
        "tokens": ["<s>", "Is", " the", " earth", " flat", "?"],
        "kinds": ["special", "text", "text", "text", "text", "text"],
        "a": [0.0, 0.5, 0.25, -1.0, -0.125, 0.0625],
        "pos": [1, 2],
        "neg": [3, 4],
        "f_x": 1.5,
        "gap": 0.75,
    }
    return Attributed(**values | changes)


def with_picture(colour: str = "white", *, first: float = 1.0) -> Attributed:
    """Four patches in a picture of 40 x 40, and two words."""
    patches = []
    for i in range(4):
        left, top = 20.0 * (i % 2), 20.0 * (i // 2)
        patches.append(Patch("whole", i // 2, i % 2, (left, top, left + 20, top + 20)))
    return attributed(
        tokens=["<img>"] * 4 + ["what", "colour"],
        kinds=["image"] * 4 + ["text"] * 2,
        a=[first, -0.5, 0.25, 0.0, -0.75, 0.125],
        pos=[0],
        neg=[1, 4],
        patches=[*patches, None, None],
        picture=Image.new("RGB", (40, 40), colour),
    )


def hostile() -> Attributed:
    """Every text of an example is hostile."""
    n = len(HOSTILE)
    return attributed(
        prompt=" ".join(HOSTILE),
        chosen=SCRIPT,
        rejected=IMAGE,
        tokens=HOSTILE,
        kinds=[SCRIPT] * n,
        a=[(-1.0) ** i * (i + 1) for i in range(n)],
        pos=[2, 4],
        neg=[1, 3],
        marks={0: SCRIPT},
    )


def many(n_examples: int, n_tokens: int) -> list[Attributed]:
    """Long prompts with the words and scores of real ones: few words are frequent, few scores large."""
    draw = random.Random(0)
    words = [f" word{i}" for i in range(20_000)]
    frequencies = [1 / (i + 3) for i in range(len(words))]
    return [
        attributed(
            prompt=f"Example {i}: " + "word " * 40,
            tokens=draw.choices(words, frequencies, k=n_tokens),
            kinds=["text"] * n_tokens,
            a=[draw.expovariate(1) * draw.choice((-1, 1)) for _ in range(n_tokens)],
            pos=list(range(20)),
            neg=list(range(20, 40)),
        )
        for i in range(n_examples)
    ]
