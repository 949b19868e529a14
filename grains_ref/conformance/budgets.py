"""How far a right port may be off, per stage and dtype: measured, not chosen.

    noise(stage, dtype)  = the worst error against float64 of *legal* ways to compute the stage in that dtype
    budget(stage, dtype) = max(4 * noise, 1e-10)    in float64
                         = max(4 * noise, 16 eps)   in float32
                         = max(3 * noise,  2 eps)   in half precision

In float64 the noise is near 1e-14 and the bugs are above 0.1; 1e-10 still shows any float32 step inside a port, and
nobody fails for the last digits of a library's sine.

Legal ways differ in what no equation fixes: the attention kernel, padding on the left, the order of a sum, SVD or
eigen-decomposition, summation of squares or a library's norm. They run on the valid cases and on the fresh inputs of
`random_inputs.MEASURED`: on the cases alone, a correct port would be turned away on other inputs. A stage is
*claimable* in a dtype if its weakest planted bug, each in the case that shows it best, lies well above the budget (10
times in float64 and float32, twice in half precision; there without the bugs that `bugs.kinds` calls slight). Where it
does not, nothing in that dtype could tell a wrong port from a right one, and the kit says "not claimable" instead of
passing it.

Selection computes nothing, so its budget is 0. Only the cases about near ties allow what the dtype cannot tell apart.
The dialect `authors` has budgets of its own, by the same rule; whether quadrature weights are rounded to float32, as
Captum's are, is legal there.

    python -m grains_ref.conformance.budgets              prints the stored table
    python -m grains_ref.conformance.budgets --measure    measures it anew (three minutes)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from grains_ref import authors
from grains_ref.conformance import toy
from grains_ref.conformance.authors.stages import authors_toy
from grains_ref.conformance.cases import Case
from grains_ref.conformance.compare import apart, distance
from grains_ref.conformance.dialects import DIALECTS, PAPER, Dialect
from grains_ref.conformance.random_inputs import MEASURED, MEASURED_FOR_OPTIONS, fresh_inputs
from grains_ref.conformance.stages import (
    DTYPES,
    KIND,
    ON_THE_TOY,
    STAGES,
    Values,
    array,
    run_oracle,
    tensor,
    toy_in,
    whole,
)
from grains_ref.grains import at_least_float32, preference, quadrature_rule

VERSION = "v1"  # of the stored vectors
FACTOR = {"float64": 4, "float32": 4, "float16": 3, "bfloat16": 3}
FLOOR = {dtype: n * torch.finfo(DTYPES[dtype]).eps for dtype, n in (("float32", 16), ("float16", 2), ("bfloat16", 2))}
FLOOR["float64"] = 1e-10
HOPELESS = 1e6  # stands for any larger noise, such as results that are not finite
SEPARATION = {"float64": 10, "float32": 10, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Budget:
    """What was measured for one stage in one dtype."""

    stage: str
    dtype: str
    noise: float
    budget: float
    weakest_bug: str
    weakest_error: float

    @property
    def claimable(self) -> bool:
        """Whether the weakest planted bug is well above the budget."""
        return self.weakest_error >= SEPARATION[self.dtype] * self.budget


def measure(stage: str, dtype: str, seeds: Iterable[int] | None = None, dialect: Dialect = PAPER) -> Budget:
    """Noise, budget and weakest bug of a stage or an option, over its valid cases and fresh inputs.

    Cases whose inputs are generated are left out: they are large, and solvers alone are at stake there.
    """
    if seeds is None:
        seeds = MEASURED if stage in STAGES else MEASURED_FOR_OPTIONS
    cases = _measured_cases(stage, dtype, dialect)
    inputs = [case.inputs for case in cases] + [fresh_inputs(stage, seed) for seed in seeds]
    noise = max(noise_of(stage, given, dtype, dialect) for given in inputs if not is_ill_posed(stage, given, dialect))
    noise = min(noise, HOPELESS)
    budget = 0.0 if KIND[stage] in ("selection", "lists") else max(FACTOR[dtype] * noise, FLOOR[dtype])
    return Budget(stage, dtype, noise, budget, *weakest_bug(stage, dtype, dialect))


def weakest_bug(stage: str, dtype: str, dialect: Dialect = PAPER) -> tuple[str, float]:
    """Of the planted bugs, each in the case that shows it best, the one that shows least, and its error.

    In half precision without those that are known to be too slight for it.
    """
    cases = _measured_cases(stage, dtype, dialect)
    right = {case.id: dialect.run(stage, case.inputs) for case in cases}
    weakest, weakest_error = "", float("inf")
    for bug in dialect.bugs_of(stage):
        if bug.slight and dtype in ("float16", "bfloat16"):
            continue
        catching = _killers(cases, bug.name)
        if not catching:  # cases that are left out here
            continue
        error = max(_error(bug.function, case, right[case.id], dtype) for case in catching)
        if error < weakest_error:
            weakest, weakest_error = bug.name, error
    return weakest, weakest_error


def _measured_cases(stage: str, dtype: str, dialect: Dialect) -> list[Case]:
    return [
        case
        for case in dialect.cases
        if case.stage == stage and case.result == "valid" and runs_in(case, dtype) and not case.generated
    ]


def noise_of(stage: str, inputs: Mapping[str, Any], dtype: str, dialect: Dialect = PAPER) -> float:
    """The worst error of the legal ways on one input."""
    right = dialect.run(stage, inputs)
    ways = legal_ways if dialect is PAPER else legal_ways_of_authors
    return max(distance(stage, inputs, way, right) for way in ways(stage, inputs, dtype))


def is_ill_posed(stage: str, inputs: Mapping[str, Any], dialect: Dialect) -> bool:
    """Fresh inputs on which the released code takes rounding errors for numbers: empty sets, padding among the sets."""
    if dialect is PAPER or stage != "contrast":
        return False
    seen = np.flatnonzero(inputs["attention_mask"])
    return not all(set(inputs[name]) & set(seen.tolist()) for name in ("pos", "neg"))


def allowed(case: Case, dtype: str, budget: Budget) -> float:
    """The relative error that a case allows: the budget, or among near ties what the dtype cannot tell apart."""
    if case.stage == "selection" and case.result == "acceptable":
        return torch.finfo(DTYPES[dtype]).eps
    return budget.budget


def runs_in(case: Case, dtype: str) -> bool:
    """Whether a dtype can hold the case's numbers at all."""
    return dtype != "float16" or "BeyondFloat16" not in case.flags


def legal_ways(stage: str, inputs: Mapping[str, Any], dtype: str) -> Iterator[Values]:
    """Outputs of right computations in a dtype."""
    yield run_oracle(stage, inputs, dtype)
    if stage in ON_THE_TOY and stage not in ("objective_soft_caps", "attribution_random"):  # no kernel has soft caps
        with _fused_attention():
            yield run_oracle(stage, inputs, dtype)
    if stage in CAN_BE_PADDED:
        padded = run_oracle(stage, _padded(inputs), dtype)
        yield padded | ({"a": padded["a"][PADDING:]} if stage.startswith("attribution") else {})
    if stage in OTHER_WAYS:
        yield OTHER_WAYS[stage](inputs, dtype)
    if stage == "attribution":
        yield _steps_backwards(inputs, dtype)
    if stage == "aggregation":
        yield _by_eigenvectors(inputs, dtype)
    if stage == "steering":
        yield _by_squares(inputs, dtype)


def legal_ways_of_authors(stage: str, inputs: Mapping[str, Any], dtype: str) -> Iterator[Values]:
    """The same for the dialect `authors`; left padding is not among them in generation, whose norms it enters."""
    run = DIALECTS["authors"].run
    yield run(stage, inputs, dtype)
    if stage in ON_THE_TOY:
        with _fused_attention():
            yield run(stage, inputs, dtype)
    if stage in CAN_BE_PADDED:
        padded = run(stage, _padded(inputs), dtype)
        yield padded | ({"a": padded["a"][PADDING:]} if stage.startswith("attribution") else {})
    if stage == "attribution":
        yield _exact_weights(inputs, dtype)
    if stage == "aggregation":
        yield _by_eigenvectors(inputs, dtype, lambda v, mean: v * _largest_entry(v).sign())
    if stage == "steering":
        yield _sums_of_squares_over_tokens(inputs, dtype)


# ------------------------------------------------------------------------------------- legal ways
PADDING = 2


CAN_BE_PADDED = (
    *("objective", "attribution", "contrast", "attribution_gradient", "attribution_smoothgrad"),
    *("attribution_likelihood", "objective_qk_norm", "objective_biases", "objective_sliding_window"),
    *("objective_soft_caps", "objective_scaled_embeddings"),
)
"""Stages and options in which padding on the left changes nothing."""


def _padded(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same prompt with padding on the left."""
    rows = np.tile(toy.toy_weights()["embed"][0], (PADDING, 1))
    longer = {name: np.concatenate([rows, inputs[name]]) for name in ("x", "baseline") if name in inputs}
    if "noise" in inputs:
        longer["noise"] = np.pad(inputs["noise"], ((0, 0), (PADDING, 0), (0, 0)))
    shifted = {name: [j + PADDING for j in inputs[name]] for name in ("pos", "neg") if name in inputs}
    mask = np.concatenate([np.zeros(PADDING, np.int64), inputs["attention_mask"]])
    return {**inputs, **longer, **shifted, "attention_mask": mask}


class _fused_attention:
    """The toy decoder with torch's own attention kernel."""

    def __enter__(self) -> None:
        self.plain = toy.attend
        toy.attend = lambda q, k, v, allowed: nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=allowed[:, None]
        )

    def __exit__(self, *exception: object) -> None:
        toy.attend = self.plain


def _steps_backwards(inputs: Mapping[str, Any], dtype: str) -> Values:
    """Integrated Gradients node by node, from the last to the first, each as an average of its own."""
    model = toy.Toy(toy.toy_weights(), DTYPES[dtype])
    x, baseline = (torch.from_numpy(inputs[name]).to(DTYPES[dtype]) for name in ("x", "baseline"))
    encoded = model.encoded(x, torch.from_numpy(inputs["attention_mask"]))
    pos, neg = (torch.from_numpy(np.asarray(inputs[name])) for name in ("y_pos", "y_neg"))
    total = torch.zeros_like(x, dtype=at_least_float32(x))
    for alpha, weight in reversed(list(zip(*quadrature_rule(inputs["quadrature"], inputs["m"]), strict=True))):
        point = (x * alpha + baseline * (1 - alpha)).requires_grad_()
        f = preference(model, encoded, point[None], y_pos=pos, y_neg=neg)
        total += weight * torch.autograd.grad(f.sum(), point)[0]
    return {"a": ((x - baseline) * total).sum(-1).double().numpy()}


def _by_eigenvectors(
    inputs: Mapping[str, Any],
    dtype: str,
    signed: Callable[[Tensor, Tensor], Tensor] = lambda v, mean: v * (v * mean).sum(-1, keepdim=True).sign(),
) -> Values:
    """PCA by the eigenvectors of the scatter matrix, in float32 or wider, as a careful port has it."""
    results = {}
    for side in ("pos", "neg"):
        D = torch.from_numpy(inputs[f"delta_{side}"]).to(DTYPES[dtype])
        D = D.to(at_least_float32(D)).movedim(1, 0)  # (L, N, d)
        mean = D.mean(1)
        centred = D - mean[:, None]
        v = torch.linalg.eigh(centred.mT @ centred).eigenvectors[..., -1]
        results[f"v_{side}"] = signed(v, mean).to(DTYPES[dtype]).double().numpy()
    return results | {"v": results["v_pos"] - results["v_neg"]}


Direction: TypeAlias = Callable[[Tensor, Tensor, Mapping[str, Any]], Tensor]
"""The shifts of all layers (L, N, d), the weights of the examples (N,), the inputs -> vectors (L, d) of any length."""


def _by(direction: Direction) -> Callable[[Mapping[str, Any], str], Values]:
    """An option of aggregation in float32 or wider, as a careful port has it."""

    def way(inputs: Mapping[str, Any], dtype: str) -> Values:
        results = {}
        for side in ("pos", "neg"):
            D = tensor(inputs[f"delta_{side}"], dtype)
            D = D.to(at_least_float32(D)).movedim(1, 0)
            weights = tensor(inputs.get(f"weights_{side}", np.ones(D.shape[1])), dtype).to(D)
            v = nn.functional.normalize(direction(D, weights, inputs), dim=-1)
            results[f"v_{side}"] = array(v.to(DTYPES[dtype]))
        v = tensor(results["v_pos"], dtype) - tensor(results["v_neg"], dtype)
        return results | {"v": array(v)}

    return way


def _mean_on_eigenvectors(D: Tensor, about: Tensor, components: int) -> Tensor:
    """The mean of D (L, N, d) projected on the first eigenvectors of its scatter about a point (L, 1, d); (L, d)."""
    around, rank = D - about, min(components, D.shape[1] - 1)  # beyond it there are rounding errors only
    basis = torch.linalg.eigh(around.mT @ around).eigenvectors[..., -rank:]  # (L, d, r)
    return (basis @ (basis.mT @ D.mean(1)[..., None]))[..., 0]


OTHER_WAYS: dict[str, Callable[[Mapping[str, Any], str], Values]] = {
    "aggregation_uncentred": _by(lambda D, w, given: _mean_on_eigenvectors(D, torch.zeros_like(D[:, :1]), 1)),
    "aggregation_mean": _by(lambda D, w, given: D.sum(1)),
    "aggregation_weighted_mean": _by(lambda D, w, given: (w[:, None] * D).sum(1) / w.sum()),
    "aggregation_components": _by(
        lambda D, w, given: _mean_on_eigenvectors(D, D.mean(1, keepdim=True), given["components"])
    ),
    "attribution_baselines": lambda inputs, dtype: _summed_in_the_dtype(inputs, dtype),
}


def _summed_in_the_dtype(inputs: Mapping[str, Any], dtype: str) -> Values:
    """A baseline whose means are torch's own, in the dtype."""
    right = run_oracle("attribution_baselines", inputs, dtype)
    if inputs["name"] != "mean":
        return right
    x, rows = tensor(inputs["x"], dtype), tensor(inputs["embeddings"], dtype).mean(0).repeat(len(inputs["x"]), 1)
    in_picture = [j for j, kind in enumerate(inputs["kinds"]) if kind == "image"]
    if in_picture:
        rows[in_picture] = x[in_picture].mean(0)
    return {"baseline": array(rows)}


def _by_squares(inputs: Mapping[str, Any], dtype: str) -> Values:
    """Steering with the norms as roots of summed squares, in float32 or wider."""
    h, v = (torch.from_numpy(inputs[name]).to(DTYPES[dtype]) for name in ("h", "v"))
    wide = h.to(at_least_float32(h))
    shifted = wide + inputs["lam"] * v.to(wide)
    squares = (wide.square().sum(-1, keepdim=True), shifted.square().sum(-1, keepdim=True))
    ratio = (squares[0] / squares[1].clamp_min(torch.finfo(wide.dtype).tiny)).sqrt()
    return {"h": torch.where(squares[1] > 0, shifted * ratio, wide).to(h).double().numpy()}


def _largest_entry(v: Tensor) -> Tensor:
    return v.gather(-1, v.abs().argmax(-1, keepdim=True))


def _exact_weights(inputs: Mapping[str, Any], dtype: str) -> Values:
    """The released attribution with quadrature weights in float64."""
    bare = toy_in(dtype)
    model, y = authors_toy(bare), whole(inputs["y_pos"])
    branch = authors.branch(model, bare.encoded(tensor(inputs["x"], dtype), whole(inputs["attention_mask"])), y)
    total = torch.zeros_like(branch.embeds, dtype=at_least_float32(branch.embeds))
    for alpha, weight in zip(*quadrature_rule("gauss_legendre", authors.NODES), strict=True):
        point = (alpha * branch.embeds).requires_grad_()
        log_p = authors.last_token_again(model, branch, point[None], y=y)
        total += weight * torch.autograd.grad(log_p.sum(), point)[0]
    return {"a": array((branch.embeds * total).sum(-1)[: len(inputs["x"])])}


def _sums_of_squares_over_tokens(inputs: Mapping[str, Any], dtype: str) -> Values:
    """The released edit with norms as roots of summed squares, in float32 or wider."""
    h, v = (torch.from_numpy(inputs[name]).to(DTYPES[dtype]) for name in ("h", "v"))
    wide = h.to(at_least_float32(h))
    shifted = wide + (authors.FACTOR * inputs["lam"]) * v.to(wide)
    norm, shifted_norm = (z.square().sum(1, keepdim=True).sqrt() for z in (wide, shifted))
    return {"h": (shifted * (norm / (shifted_norm + authors.EPS))).to(h).double().numpy()}


def _killers(cases: Sequence[Case], bug: str) -> list[Case]:
    return [case for case in cases if bug in case.kills]


def _error(function: Any, case: Case, right: Values, dtype: str) -> float:
    try:
        return apart(case.stage, case.inputs, function(**case.inputs, dtype=dtype), right)
    except (ValueError, ArithmeticError, RuntimeError):
        return float("inf")  # a bug that refuses a valid input is seen at once


# --------------------------------------------------------------------------------------- what is stored
def root() -> Path:
    """Where the installed vectors lie, budgets among them."""
    return Path(str(resources.files("grains_ref.fixtures"))) / "vectors" / VERSION


def budgets_file(folder: Path, dialect: str) -> Path:
    """The file with a dialect's budgets in a folder of vectors."""
    return folder / "budgets.json" if dialect == "paper" else folder / dialect / "budgets.json"


def load_budgets(dialect: str = "paper", folder: Path | None = None) -> dict[tuple[str, str], Budget]:
    """The stored budgets of a dialect by stage and dtype."""
    rows = json.loads(budgets_file(folder or root(), dialect).read_text(encoding="utf-8"))["budgets"]
    return {(row["stage"], row["dtype"]): Budget(**row) for row in rows}


# --------------------------------------------------------------------------------------- the table
def table(budgets: Iterable[Budget]) -> str:
    """Noise, budget and weakest bug as Markdown."""
    lines = ["| stage | dtype | noise | budget | weakest planted bug | its error | bug / budget | |", "|---" * 8 + "|"]
    for budget in budgets:
        ratio = f"{budget.weakest_error / budget.budget:.2g}" if budget.budget else "-"
        figures = (
            f"{budget.noise:.1e} | {budget.budget:.1e} | {budget.weakest_bug} | {budget.weakest_error:.1e} | {ratio}"
        )
        lines.append(f"| {budget.stage} | {budget.dtype} | {figures} | {'' if budget.claimable else 'not claimable'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--measure"]):
        sys.exit("usage: python -m grains_ref.conformance.budgets [--measure]")
    torch.set_num_threads(1)  # the tensors are far too small for a second one
    for dialect in DIALECTS.values():
        print(f"\nDialect {dialect.name}\n")
        stored = [] if sys.argv[1:] else list(load_budgets(dialect.name).values())
        print(table(stored or (measure(stage, dtype, dialect=dialect) for stage in dialect.oracle for dtype in DTYPES)))
