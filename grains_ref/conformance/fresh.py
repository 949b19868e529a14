"""A port on seeded random inputs: as many as one likes, each judged by the oracle's answer as a stored case is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from grains_ref.conformance.alone import Ask
from grains_ref.conformance.budgets import Budget, is_ill_posed
from grains_ref.conformance.compare import right_now
from grains_ref.conformance.dialects import PAPER, Dialect
from grains_ref.conformance.ports import InOrder, Port, told_by
from grains_ref.conformance.random_inputs import fresh_inputs
from grains_ref.conformance.runner import Found, Result, Run, failed, judged, with_names


def run_fresh(
    port: Port,
    budgets: Mapping[tuple[str, str], Budget],
    *,
    seeds: Iterable[int],
    dialect: Dialect = PAPER,
    stages: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    on_case: Callable[[], None] = lambda: None,
) -> Run:
    """Every claimed stage and option, or some of them, on one input for each seed.

    What is ill-posed in the dialect, and what cannot be told in a dtype, is not asked.
    """
    asked = [stage for stage in port.stages if stage in dialect.oracle and (not stages or stage in stages)]
    wanted = tuple(dtype for dtype in port.dtypes if not dtypes or dtype in dtypes)
    port = InOrder(port)
    findings: list[Found] = []
    for seed in seeds:
        for stage in asked:
            for dtype in wanted:
                after = port.last
                result, output = _one(port, stage, seed, dtype, budgets[stage, dtype], dialect)
                findings.append((replace(result, after=after), output))
                on_case()
    results, likely = with_names(findings, dialect)
    return Run(port.name, tuple(port.stages), wanted, tuple(results), (), dialect.name, likely)


def ask_seed(budgets: Mapping[tuple[str, str], Budget], dialect: Dialect) -> Ask:
    """How the random input of a result is put to a port once more."""

    def ask(port: Port, failure: Result) -> Result:
        seed, budget = int(failure.case.rpartition("-")[2]), budgets[failure.stage, failure.dtype]
        return _one(port, failure.stage, seed, failure.dtype, budget, dialect)[0]

    return ask


def _one(port: Port, stage: str, seed: int, dtype: str, budget: Budget, dialect: Dialect) -> Found:
    result = Result(f"{stage}-seed-{seed}", stage, dtype, "isolated", "passed", budget=budget.budget)
    inputs = fresh_inputs(stage, seed)
    if not budget.claimable or is_ill_posed(stage, inputs, dialect):
        message = "nothing tells a right answer from a wrong one here"
        return replace(result, status="not claimable", message=message), None
    output = None
    try:
        want = dialect.run(stage, inputs)
        got = port.run(stage, inputs, dtype, result.case)
        right = right_now(dialect.name, stage, inputs, want, budget.budget)
        result, output = judged(result, inputs, got, right, dialect)
    except Exception as problem:  # a refusal of a valid input among them
        result = failed(result, told_by(problem))
    if result.status == "failed":
        message = f"{result.message} (again: --only {stage} --seed {seed} --count 1)"
        return replace(result, message=message), output
    return result, output
