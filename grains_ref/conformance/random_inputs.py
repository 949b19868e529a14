"""Seeded random inputs of every stage, as many as one likes.

The cases are few and chosen; a budget that was measured on them alone would turn correct ports away on others. Noise is
therefore measured on the seeds `MEASURED` as well, and tests use other seeds. Like those of the cases, all numbers are
ones that bfloat16 can hold, and come from `random.Random` with a name.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from grains_ref.conformance.cases.aggregation import spiked
from grains_ref.conformance.cases.common import EMBED, answers, baselines, grid, mask
from grains_ref.conformance.stages import ON_THE_TOY
from grains_ref.conformance.toy import BLOCKS, VOCABULARY, WIDTH

MEASURED = range(40)  # the seeds that budgets know


def fresh_inputs(stage: str, seed: int) -> dict[str, Any]:
    """A valid input of a stage; another for every seed, from now on and for ever the same."""
    name = f"fresh-{stage}-{seed}"
    numbers = random.Random(name)
    if stage in ON_THE_TOY and stage != "generation":
        padding, tokens = numbers.choice([0, 0, 1, 3]), numbers.randrange(1, 13)
        ids = [0] * padding + [numbers.randrange(1, VOCABULARY) for _ in range(tokens)]
        of_no_token = grid(name, padding + tokens, WIDTH, step=2.0 ** numbers.choice([-5, -7]))
        prompt: dict[str, Any] = {
            "x": numbers.choice([EMBED[ids], of_no_token]),
            "attention_mask": mask(padding, tokens),
        }
        if stage == "objective":
            return prompt | _answers(numbers)
        given = baselines(prompt["x"]) | {"other": grid(f"{name}-baseline", padding + tokens, WIDTH)}
        prompt["baseline"] = given[numbers.choice(sorted(given))]
        if stage == "attribution":
            quadrature = numbers.choice(["right", "right", "midpoint", "gauss_legendre"])
            return prompt | _answers(numbers) | {"m": numbers.randrange(1, 11), "quadrature": quadrature}
        shuffled = numbers.sample(range(padding, padding + tokens), tokens)
        return prompt | {"pos": shuffled[: numbers.randrange(4)], "neg": shuffled[::-1][: numbers.randrange(4)]}
    if stage == "selection":
        n = numbers.randrange(1, 20)
        eligible = np.array([numbers.random() < 0.8 for _ in range(n)]).astype(np.int64)
        return {"a": grid(name, n, reach=20, step=0.25), "eligible": eligible, "k": numbers.randrange(1, 6)}
    if stage == "aggregation":
        n, layers, width = numbers.randrange(3, 20), numbers.randrange(1, 5), numbers.choice([5, 7, 13, 17])
        sides = (spiked(f"{name}-{side}", n, layers, width, mean=numbers.choice([2, 8, 24])) for side in ("pos", "neg"))
        return dict(zip(("delta_pos", "delta_neg"), sides, strict=True))
    batch, tokens = numbers.randrange(1, 4), numbers.randrange(1, 9)
    if stage == "steering":
        h = grid(name, batch, tokens, WIDTH) * 2.0 ** numbers.randrange(-2, 5)
        return {"h": h, "v": grid(f"{name}-v", WIDTH), "lam": numbers.randrange(-16, 33) / 4}
    paddings = [numbers.randrange(tokens) for _ in range(batch)]
    rows = [[0] * p + [numbers.randrange(VOCABULARY) for _ in range(tokens - p)] for p in paddings]
    return {
        "ids": np.array(rows),
        "attention_mask": np.stack([mask(p, tokens - p) for p in paddings]),
        "v": grid(f"{name}-v", BLOCKS, WIDTH),
        "lam": numbers.randrange(-8, 17) / 4,
        "layers": sorted(numbers.sample(range(BLOCKS), numbers.randrange(BLOCKS + 1))),
        "forced": np.array([[numbers.randrange(VOCABULARY) for _ in range(4)] for _ in range(batch)]),
    }


def _answers(numbers: random.Random) -> dict[str, Any]:
    y_pos, y_neg = ([numbers.randrange(VOCABULARY) for _ in range(numbers.randrange(1, 6))] for _ in range(2))
    return dict(answers(y_pos, y_neg))
