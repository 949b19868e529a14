"""Seeded random inputs of every stage, as many as one likes.

The cases are few and chosen; a budget that was measured on them alone would turn correct ports away on others. Noise is
therefore measured on the seeds `MEASURED` as well, and tests use other seeds. Like those of the cases, all numbers are
ones that bfloat16 can hold, and come from `random.Random` with a name.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from grains_ref.conformance.cases.aggregation import spiked
from grains_ref.conformance.cases.common import EMBED, answers, baselines, bf16, grid, mask
from grains_ref.conformance.stages import ON_THE_TOY
from grains_ref.conformance.toy import BLOCKS, VOCABULARY, WIDTH

MEASURED = range(40)  # the seeds that budgets know
MEASURED_FOR_OPTIONS = range(12)  # those that the budgets of options know


def fresh_inputs(stage: str, seed: int) -> dict[str, Any]:
    """A valid input of a stage or an option; another for every seed, from now on and for ever the same."""
    name = f"fresh-{stage}-{seed}"
    numbers = random.Random(name)
    if stage in MORE:
        return MORE[stage](name, numbers)
    if stage in ON_THE_TOY and stage != "generation":
        prompt = _prompt(name, numbers)
        if stage == "objective":
            return prompt | _answers(numbers)
        prompt["baseline"] = _baseline(name, numbers, prompt["x"])
        if stage == "attribution":
            quadrature = numbers.choice(["right", "right", "midpoint", "gauss_legendre"])
            return prompt | _answers(numbers) | {"m": numbers.randrange(1, 11), "quadrature": quadrature}
        seen = np.flatnonzero(prompt["attention_mask"]).tolist()
        shuffled = numbers.sample(seen, len(seen))
        return prompt | {"pos": shuffled[: numbers.randrange(4)], "neg": shuffled[::-1][: numbers.randrange(4)]}
    if stage == "selection":
        n = numbers.randrange(1, 20)
        eligible = np.array([numbers.random() < 0.8 for _ in range(n)]).astype(np.int64)
        return {"a": grid(name, n, reach=20, step=0.25), "eligible": eligible, "k": numbers.randrange(1, 6)}
    if stage == "aggregation":
        return _shifts(name, numbers)
    if stage == "steering":
        batch, tokens = numbers.randrange(1, 4), numbers.randrange(1, 9)
        h = grid(name, batch, tokens, WIDTH) * 2.0 ** numbers.randrange(-2, 5)
        return {"h": h, "v": grid(f"{name}-v", WIDTH), "lam": numbers.randrange(-16, 33) / 4}
    return _generation(name, numbers)


def _prompt(name: str, numbers: random.Random) -> dict[str, Any]:
    padding, tokens = numbers.choice([0, 0, 1, 3]), numbers.randrange(1, 13)
    ids = [0] * padding + [numbers.randrange(1, VOCABULARY) for _ in range(tokens)]
    of_no_token = grid(name, padding + tokens, WIDTH, step=2.0 ** numbers.choice([-5, -7]))
    return {"x": numbers.choice([EMBED[ids], of_no_token]), "attention_mask": mask(padding, tokens)}


def _baseline(name: str, numbers: random.Random, x: np.ndarray) -> np.ndarray:
    given = baselines(x) | {"other": grid(f"{name}-baseline", len(x), WIDTH)}
    return given[numbers.choice(sorted(given))]


def _answers(numbers: random.Random) -> dict[str, Any]:
    y_pos, y_neg = ([numbers.randrange(VOCABULARY) for _ in range(numbers.randrange(1, 6))] for _ in range(2))
    return dict(answers(y_pos, y_neg))


def _shifts(name: str, numbers: random.Random) -> dict[str, Any]:
    n, layers, width = numbers.randrange(3, 20), numbers.randrange(1, 5), numbers.choice([5, 7, 13, 17])
    sides = (spiked(f"{name}-{side}", n, layers, width, mean=numbers.choice([2, 8, 24])) for side in ("pos", "neg"))
    return dict(zip(("delta_pos", "delta_neg"), sides, strict=True))


def _generation(name: str, numbers: random.Random) -> dict[str, Any]:
    batch, tokens = numbers.randrange(1, 4), numbers.randrange(1, 9)
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


# ------------------------------------------------------------------------------------- options
def _scored(name: str, numbers: random.Random) -> dict[str, Any]:
    return _prompt(name, numbers) | _answers(numbers)


def _attributed(name: str, numbers: random.Random) -> dict[str, Any]:
    """An input of attribution without a rule."""
    prompt = _prompt(name, numbers)
    return prompt | {"baseline": _baseline(name, numbers, prompt["x"])} | _answers(numbers)


def _smoothgrad(name: str, numbers: random.Random) -> dict[str, Any]:
    given = _attributed(name, numbers)
    return given | {"noise": grid(f"{name}-noise", numbers.randrange(1, 5), *given["x"].shape, step=2.0**-9)}


def _likelihood(name: str, numbers: random.Random) -> dict[str, Any]:
    rule = {"m": numbers.randrange(1, 6), "quadrature": numbers.choice(["right", "midpoint", "gauss_legendre"])}
    return _attributed(name, numbers) | rule | {"method": numbers.choice(["integrated_gradients", "gradient"])}


def _pictures(name: str, numbers: random.Random) -> dict[str, Any]:
    given, rule = _attributed(name, numbers), {"m": numbers.randrange(1, 5), "quadrature": "right"}
    where = picture_in(given["attention_mask"], rows=numbers.randrange(1, 3), columns=numbers.randrange(1, 4))
    return given | where | rule


def picture_in(attention_mask: np.ndarray, *, rows: int, columns: int) -> dict[str, np.ndarray]:
    """`positions` (3, T) and `token_types` (T,) of a prompt whose second token on is a picture, as far as it goes.

    The picture's tokens share one time; text after it goes on at its largest position plus one.
    """
    padding, n = int((attention_mask == 0).sum()), len(attention_mask)
    positions, types, following = np.zeros((3, n), np.int64), np.zeros(n, np.int64), 1
    size = min(rows * columns, n - padding - 2) if n - padding > 2 else 0
    for j in range(padding + 1, n):
        part = j - padding - 1
        if part < size:
            types[j] = 1
            positions[:, j] = 1, 1 + part // columns, 1 + part % columns
            following = 1 + int(positions[:, : j + 1].max())
        else:
            positions[:, j] = following
            following += 1
    return {"positions": positions, "token_types": types}


KINDS = ("special", "template", "text", "text", "image", "image", "pad")


def _kinds_of(numbers: random.Random, n: int) -> list[str]:
    return [numbers.choice(KINDS) for _ in range(n)]


def _baselines(name: str, numbers: random.Random) -> dict[str, Any]:
    n, rows = numbers.randrange(1, 9), numbers.randrange(2, 12)
    which = {"name": numbers.choice(["zero", "mean", "mean", "token"]), "token": numbers.randrange(rows)}
    table = grid(f"{name}-table", rows, WIDTH)
    return {"x": grid(name, n, WIDTH), "kinds": _kinds_of(numbers, n), "embeddings": table} | which


def _eligible(name: str, numbers: random.Random) -> dict[str, Any]:
    n = numbers.randrange(1, 20)
    rules = numbers.sample(["text", "image", "content", "no_special", "not_last"], numbers.randrange(3))
    kinds = _kinds_of(numbers, n)
    return {"a": grid(name, n, reach=20, step=0.25), "kinds": kinds, "rules": rules, "k": numbers.randrange(1, 6)}


def _weighted(name: str, numbers: random.Random) -> dict[str, Any]:
    given = _shifts(name, numbers)
    n = len(given["delta_pos"])
    weights = {side: 1 + np.abs(grid(f"{name}-{side}", n)) for side in ("pos", "neg")}
    return given | {f"weights_{side}": bf16(values) for side, values in weights.items()}


def _components(name: str, numbers: random.Random) -> dict[str, Any]:
    """Shifts whose first two components stand out."""
    n, layers, width = numbers.randrange(5, 20), numbers.randrange(1, 4), numbers.choice([7, 13, 17])
    given = {}
    for side in ("pos", "neg"):
        parts = [spiked(f"{name}-{side}-{part}", n, layers, width, mean=8) for part in range(2)]
        given[f"delta_{side}"] = parts[0] + parts[1]
    return given | {"components": 2}


def _batch(name: str, numbers: random.Random) -> dict[str, Any]:
    """Prompts and responses of several examples, padded to one length each."""
    batch, tokens = numbers.randrange(1, 4), numbers.randrange(2, 8)
    paddings = [numbers.randrange(tokens) for _ in range(batch)]
    ids = [[0] * p + [numbers.randrange(VOCABULARY) for _ in range(tokens - p)] for p in paddings]
    given = {"x": EMBED[ids], "attention_mask": np.stack([mask(p, tokens - p) for p in paddings])}
    for side in ("pos", "neg"):
        longest = numbers.randrange(1, 5)
        lengths = [longest, *(numbers.randrange(1, longest + 1) for _ in range(batch - 1))]
        seen = np.array([[1] * n + [0] * (longest - n) for n in lengths])
        words = np.array([[numbers.randrange(VOCABULARY) for _ in range(longest)] for _ in lengths])
        given |= {f"y_{side}": words * seen, f"seen_{side}": seen}
    return given


def _attributed_batch(name: str, numbers: random.Random) -> dict[str, Any]:
    given = _batch(name, numbers)
    return given | {
        "baseline": grid(f"{name}-b", *given["x"].shape),
        "m": numbers.randrange(1, 5),
        "quadrature": "right",
    }


def _contrasted_batch(name: str, numbers: random.Random) -> dict[str, Any]:
    given = _batch(name, numbers)
    seen = given["attention_mask"]
    sets = {
        f"in_{side}": np.array([[bit and int(numbers.random() < 0.3) for bit in row] for row in seen.tolist()])
        for side in ("pos", "neg")
    }
    return {"x": given["x"], "baseline": grid(f"{name}-b", *given["x"].shape), "attention_mask": seen} | sets


def _partial(name: str, numbers: random.Random) -> dict[str, Any]:
    given, layers = _generation(name, numbers), numbers.sample(range(BLOCKS), numbers.randrange(1, BLOCKS + 1))
    return given | {"v": given["v"][: len(layers)], "layers": layers}


def _end(name: str, numbers: random.Random) -> dict[str, Any]:
    return _generation(name, numbers) | {"end": numbers.sample(range(VOCABULARY), numbers.randrange(1, 8))}


def _beams(name: str, numbers: random.Random) -> dict[str, Any]:
    given = _generation(name, numbers)
    del given["forced"]
    return given | {"beams": numbers.randrange(1, 4), "n": numbers.randrange(1, 4)}


MORE: dict[str, Callable[[str, random.Random], dict[str, Any]]] = {
    "objective_batch": _batch,
    "objective_qk_norm": _scored,
    "objective_biases": _scored,
    "objective_sliding_window": lambda name, numbers: _scored(name, numbers) | {"window": numbers.randrange(1, 5)},
    "objective_soft_caps": lambda name, numbers: (
        _scored(name, numbers)
        | {"attention_cap": numbers.choice([0.5, 1.0, 2.0]), "logits_cap": numbers.choice([1.0, 2.0, 4.0])}
    ),
    "objective_scaled_embeddings": lambda name, numbers: _scored(name, numbers) | {"scale": numbers.choice([0.5, 4.0])},
    "attribution_gradient": _attributed,
    "attribution_smoothgrad": _smoothgrad,
    "attribution_random": lambda name, numbers: (
        (prompt := _prompt(name, numbers)) | {"scores": grid(f"{name}-scores", len(prompt["x"]), step=2.0**-6)}
    ),
    "attribution_likelihood": _likelihood,
    "attribution_batch": _attributed_batch,
    "attribution_pictures": _pictures,
    "attribution_baselines": _baselines,
    "selection_eligible": _eligible,
    "contrast_batch": _contrasted_batch,
    "aggregation_uncentred": _shifts,
    "aggregation_mean": _shifts,
    "aggregation_weighted_mean": _weighted,
    "aggregation_components": _components,
    "generation_partial": _partial,
    "generation_tuples": _generation,
    "generation_end": _end,
    "generation_beams": _beams,
}
"""A valid input of every option, by its name and seeded numbers."""
