"""A flat spectrum tells solvers that sample from solvers that do not, however many features there are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from grains_ref.conformance.budgets import load_budgets
from grains_ref.conformance.cases.common import grid
from grains_ref.conformance.compare import Verdict, judge, right_now
from grains_ref.conformance.stages import run_oracle

pytestmark = pytest.mark.cpu

BUDGET = load_budgets()["aggregation", "float32"].budget
FLAT = {f"delta_{side}": grid(f"flat-{side}", 50, 1, 1024) + 1 / 8 for side in ("pos", "neg")}
"""Fifty examples of width 1024, all directions of which vary alike, with a mean to sign by."""


@pytest.fixture(scope="module")
def right() -> object:
    return right_now("paper", "aggregation", FLAT, run_oracle("aggregation", FLAT), BUDGET)


def port(solver: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    """Aggregation in float32 with a solver: the shifts of one layer (N, d) -> a component (d,) of either sign."""
    v = {}
    for side in ("pos", "neg"):
        D = FLAT[f"delta_{side}"][:, 0].astype(np.float32)
        u = solver(D)
        v[f"v_{side}"] = (u if u @ D.mean(0) > 0 else -u)[None]
    return v | {"v": v["v_pos"] - v["v_neg"]}


def sampled(D: np.ndarray) -> np.ndarray:
    """Ten columns more than one, seven power iterations: scikit-learn's PCA(1) from 501 features on."""
    C, numbers = D - D.mean(0), np.random.default_rng(0)
    Q = numbers.standard_normal((D.shape[1], 11)).astype(np.float32)
    for _ in range(7):
        Q = np.linalg.qr(C.T @ np.linalg.qr(C @ Q)[0])[0]
    basis = np.linalg.qr(C @ Q)[0]
    return np.linalg.svd(basis.T @ C, full_matrices=False)[2][0]


def scikit_learn(D: np.ndarray) -> np.ndarray:
    decomposition = pytest.importorskip("sklearn.decomposition")
    return np.asarray(decomposition.PCA(1, random_state=0).fit(D).components_[0])


def pca_lowrank(D: np.ndarray) -> np.ndarray:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.pca_lowrank(torch.from_numpy(D))[2][:, 0].numpy()


def gram_matrix(D: np.ndarray) -> np.ndarray:
    C = D - D.mean(0)
    u = C.T @ np.linalg.eigh(C @ C.T)[1][:, -1]
    return u / np.linalg.norm(u)


def scatter_matrix(D: np.ndarray) -> np.ndarray:
    C = D - D.mean(0)
    return np.linalg.eigh(C.T @ C)[1][:, -1]


def svd(D: np.ndarray) -> np.ndarray:
    return np.linalg.svd(D - D.mean(0), full_matrices=False)[2][0]


def verdict_on(solver: Callable[[np.ndarray], np.ndarray], right: object) -> Verdict:
    return judge("aggregation", FLAT, port(solver), budget=BUDGET, right=right)  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", [sampled, scikit_learn, pca_lowrank])
def test_a_solver_that_samples_fails(solver: Callable[[np.ndarray], np.ndarray], right: object) -> None:
    verdict = verdict_on(solver, right)
    assert not verdict.ok
    assert "of what the first component does" in verdict.message


@pytest.mark.parametrize("solver", [gram_matrix, scatter_matrix, svd])
def test_an_exact_solver_in_float32_passes(solver: Callable[[np.ndarray], np.ndarray], right: object) -> None:
    verdict = verdict_on(solver, right)
    assert verdict.ok, verdict.message
