"""How far each engine is from equations (7) and (8): `python -m grains_ref.conformance.engines [ENGINE ...]`.

For every engine that can be imported here, in every dtype: on states of the width of a real model (500 rows of 4096
numbers, lam = 2, |v| about |h|) the largest relative error of a norm, which eq. (8) keeps, and of a state; and how many
of the kit's valid cases are within the budget. Prints Markdown.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from grains_ref.conformance.budgets import allowed, load_budgets, runs_in
from grains_ref.conformance.cases import CASES
from grains_ref.conformance.compare import judge
from grains_ref.conformance.engines import common
from grains_ref.conformance.stages import run_oracle, steering

ENGINES = ("repeng", "steering_vectors", "sglang", "vllm_lens", "easysteer")
SHOWN = ("float32", "float16", "bfloat16")
ROWS, WIDTH, LAM = 500, 4096, 2.0


def ports(engines: Sequence[str]) -> Iterator[tuple[str, str, Callable[..., Any]]]:
    """Name, how it is known, and the stage of every engine and variant; the reference itself comes first."""
    yield "grains_ref", "ran", steering
    for engine in engines:
        module = importlib.import_module(f"grains_ref.conformance.engines.{engine}")
        yield module.NAME, module.HOW, module.steering
        for name, steer in getattr(module, "VARIANTS", {}).items():
            yield name, module.HOW, functools.partial(common.run, steer)


def on_cases(stage: Callable[..., Any], dtype: str) -> tuple[int, list[str]]:
    """How many valid cases there are, and which of them are answered beyond the budget."""
    budget = load_budgets()["steering", dtype]
    cases = [case for case in CASES if case.stage == "steering" and case.result != "invalid" and runs_in(case, dtype)]
    beyond = []
    for case in cases:
        answer = stage(**case.inputs, dtype=dtype)
        if not judge("steering", case.inputs, answer, budget=allowed(case, dtype, budget)).ok:
            beyond.append(case.id)
    return len(cases), beyond


def on_wide_states(stage: Callable[..., Any], dtype: str) -> tuple[float, float]:
    """On wide states: the largest relative errors of a norm and of a state."""
    draw = np.random.default_rng(0)
    shapes = ((1, ROWS, WIDTH), (WIDTH,))
    h, v = (torch.from_numpy(draw.normal(size=shape)).to(torch.bfloat16).double().numpy() for shape in shapes)
    got = np.asarray(stage(h=h, v=v, lam=LAM, dtype=dtype)["h"])
    want = run_oracle("steering", {"h": h, "v": v, "lam": LAM})["h"]
    norms, lengths = np.linalg.norm(got, axis=-1), np.linalg.norm(h, axis=-1)
    apart = np.linalg.norm(got - want, axis=-1) / lengths
    return float(np.abs(norms / lengths - 1).max()), float(apart.max())


def main(engines: Sequence[str]) -> None:
    """Print the table of these engines, and below it the cases that are beyond the budget."""
    columns = [f"{dtype}: norm, state, cases" for dtype in SHOWN]
    print(f"| engine | how | {' | '.join(columns)} |", "|---" * (2 + len(SHOWN)) + "|", sep="\n")
    failing = []
    for name, how, stage in ports(engines):
        cells = []
        for dtype in SHOWN:
            try:
                number, beyond = on_cases(stage, dtype)
                norm, state = on_wide_states(stage, dtype)
            except ImportError as missing:
                cells.append(f"not installed: {missing.name}")
                continue
            cells.append(f"{norm:.1e}, {state:.1e}, {number - len(beyond)} of {number}")
            if beyond:
                failing.append(f"{name}, {dtype}: {', '.join(beyond)}")
        print(f"| {name} | {how} | {' | '.join(cells)} |")
    print("", *failing, sep="\n")


if __name__ == "__main__":
    if unknown := sorted(set(sys.argv[1:]) - set(ENGINES)):
        sys.exit(f"no such engine: {', '.join(unknown)}; there are {', '.join(ENGINES)}")
    torch.set_num_threads(1)
    main(sys.argv[1:] or ENGINES)
