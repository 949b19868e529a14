"""Planted bugs of aggregation, eq. (5) and (6): another direction, sign or combination of the sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from grains_ref.conformance.bugs.common import Row, bugs_of
from grains_ref.conformance.bugs.decoder import widened
from grains_ref.conformance.stages import Stage, Values, array, run_oracle, tensor

Direction: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""The shifts of one layer (N, d) -> v (d,)."""


def aggregation_with(
    direction: Direction | None = None,
    *,
    both: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None,
    combine: Callable[[Tensor, Tensor], Tensor] = torch.sub,
) -> Stage:
    """Eq. (5) and (6) with another direction per layer, another treatment of both sides, or another combination.

    both: the shifts of both sides, (N, L, d) each -> v_pos, v_neg, (L, d) each.
    """

    def one(deltas: np.ndarray) -> np.ndarray:
        return np.stack([(direction or first_component)(D) for D in deltas.swapaxes(0, 1)])

    def stage(*, delta_pos: np.ndarray, delta_neg: np.ndarray, dtype: str) -> Values:
        run_oracle(
            "aggregation", {"delta_pos": delta_pos, "delta_neg": delta_neg}, dtype
        )  # refuses shifts that define no direction
        pos, neg = (array(tensor(deltas, dtype)) for deltas in (delta_pos, delta_neg))
        sides = both(pos, neg) if both else (one(pos), one(neg))
        v_pos, v_neg = (tensor(v, dtype) for v in sides)
        return {"v_pos": array(v_pos), "v_neg": array(v_neg), "v": array(combine(v_pos, v_neg))}

    return stage


def svd(D: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left vectors (N, r), values (r,), right vectors (r, d)."""
    return np.linalg.svd(D, full_matrices=False)


def centred(D: np.ndarray) -> np.ndarray:
    """Shifts without their mean."""
    return D - D.mean(0)


def toward(v: np.ndarray, target: np.ndarray) -> np.ndarray:
    """v or -v, whichever does not point away from target."""
    return v if v @ target >= 0 else -v


def unit(v: np.ndarray) -> np.ndarray:
    """v at length 1; zero stays zero."""
    return v / (np.linalg.norm(v) or 1.0)


def first_component(D: np.ndarray) -> np.ndarray:
    """Eq. (5)."""
    return toward(svd(centred(D))[2][0], D.mean(0))


def each_layer(deltas: np.ndarray, direction: Direction = first_component) -> np.ndarray:
    """(N, L, d) -> (L, d)."""
    return np.stack([direction(D) for D in deltas.swapaxes(0, 1)])


def largest_entry_positive(D: np.ndarray) -> np.ndarray:
    """scikit-learn's svd_flip since 1.5: the component's entry of largest magnitude is positive."""
    u = svd(centred(D))[2][0]
    return u * np.sign(u[np.abs(u).argmax()])


def largest_score_positive(D: np.ndarray) -> np.ndarray:
    """scikit-learn's svd_flip before 1.5: the example with the largest projection projects positively."""
    left, _, right = svd(centred(D))
    return right[0] * np.sign(left[np.abs(left[:, 0]).argmax(), 0])


def majority_positive(D: np.ndarray) -> np.ndarray:
    """Most shifts, not their mean, project positively."""
    u = first_component(D)
    return u if (np.sign(D @ u)).sum() >= 0 else -u


def power_iteration(D: np.ndarray, steps: int = 3) -> np.ndarray:
    """A solver that stops after three steps, started from the first example."""
    u, C = centred(D)[0], centred(D).T @ centred(D)
    for _ in range(steps):
        u = unit(C @ u)
    return toward(u, D.mean(0))


def nonzero_only(D: np.ndarray) -> np.ndarray:
    """Examples without any shift are left out."""
    return first_component(D[np.abs(D).sum(1) > 0])


def eps_in_length(D: np.ndarray) -> np.ndarray:
    """The mean's projection divided by its length + 1e-6."""
    u = first_component(D)
    length = D.mean(0) @ u
    return u * length / (length + 1e-6)


def standardised(D: np.ndarray) -> np.ndarray:
    """Every feature scaled to unit variance first."""
    scale = D.std(0)
    return toward(svd(centred(D) / np.where(scale > 0, scale, 1))[2][0], D.mean(0))


def all_layers_at_once(deltas: np.ndarray) -> np.ndarray:
    """One component of all layers side by side, cut into layers: (N, L, d) -> (L, d)."""
    n, layers, width = deltas.shape
    return np.stack([unit(part) for part in first_component(deltas.reshape(n, layers * width)).reshape(layers, width)])


def one_for_all_layers(deltas: np.ndarray) -> np.ndarray:
    """One component of all layers' shifts as if they were examples: (N, L, d) -> (L, d)."""
    n, layers, width = deltas.shape
    return np.tile(first_component(deltas.reshape(n * layers, width)), (layers, 1))


def pooled(pos: np.ndarray, neg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One component of both sides' shifts, signed by each side's mean."""
    u = each_layer(np.concatenate([pos, neg]))
    v_pos, v_neg = (np.stack([toward(w, mean) for w, mean in zip(u, side.mean(0), strict=True)]) for side in (pos, neg))
    return v_pos, v_neg


def neg_signed_by_pos(pos: np.ndarray, neg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """v_neg turned away from v_pos instead of toward its own mean."""
    v_pos, v_neg = each_layer(pos), each_layer(neg)
    return v_pos, np.stack([toward(v, -w) for v, w in zip(v_neg, v_pos, strict=True)])


ROWS: tuple[Row, ...] = (
    ("uncentred", "the mean not subtracted before the decomposition",
     "With a large mean the component is nearly the mean", "study",
     aggregation_with(lambda D: toward(svd(D)[2][0], D.mean(0)))),
    ("mean_shift", "the normalised mean of the shifts instead of a principal component", "Another direction", "study",
     aggregation_with(lambda D: unit(D.mean(0)))),
    ("second_component", "the second principal component", "An orthogonal direction; eigh sorts ascending", "study",
     aggregation_with(lambda D: toward(svd(centred(D))[2][1], D.mean(0)))),
    ("scaled_by_deviation", "components multiplied by their standard deviation",
     "Lambda means something else in every layer", "study",
     aggregation_with(lambda D: first_component(D) * svd(centred(D))[1][0] / np.sqrt(max(len(D) - 1, 1)))),
    ("mean_added", "the component plus the mean, as in-context vectors do",
     "No unit vector; with a large mean the component is drowned", "field",
     aggregation_with(lambda D: first_component(D) + D.mean(0))),
    ("largest_entry_positive", "the sign rule of scikit-learn 1.5 and later: the largest entry is positive",
     "V_pos or v_neg points away from its shifts; one of them alone turns v to an orthogonal vector",
     "released code, row 13", aggregation_with(largest_entry_positive)),
    ("largest_score_positive", "the sign rule of scikit-learn before 1.5: the largest projection is positive",
     "V_pos or v_neg points away from its shifts", "released code, row 13", aggregation_with(largest_score_positive)),
    ("no_sign_rule", "the sign the solver happens to return", "Runs differ from machine to machine", "study",
     aggregation_with(lambda D: svd(centred(D))[2][0])),
    ("majority_positive", "the sign by a vote of the examples instead of their mean",
     "A few strong examples lose against many weak ones", "field", aggregation_with(majority_positive)),
    ("sign_reversed", "both directions pointing away from their mean shifts",
     "Steering moves toward the rejected answer", "study", aggregation_with(lambda D: -first_component(D))),
    ("neg_signed_by_pos", "v_neg turned away from v_pos instead of toward its own mean shift",
     "V is always long, whatever the shifts say", "ours", aggregation_with(both=neg_signed_by_pos)),
    ("sum_of_sides", "v = v_pos + v_neg", "Exactly orthogonal to the right v", "study",
     aggregation_with(combine=torch.add)),
    ("difference_reversed", "v = v_neg - v_pos", "Steering moves toward the rejected answer", "study",
     aggregation_with(combine=lambda pos, neg: neg - pos)),
    ("v_normalised", "v scaled to unit length", "Lambda means something else in every layer", "study",
     aggregation_with(combine=lambda pos, neg: nn.functional.normalize(widened(pos - neg), dim=-1).to(pos))),
    ("v_pos_alone", "v = v_pos", "The negative side is lost", "released code, row 14",
     aggregation_with(combine=lambda pos, neg: pos)),
    ("sides_pooled", "one component of the positive and negative shifts together",
     "V is zero, or twice one direction", "ours", aggregation_with(both=pooled)),
    ("layers_side_by_side", "one component of all layers at once, cut into layers",
     "Layers with large shifts decide for all", "ours",
     aggregation_with(both=lambda pos, neg: (all_layers_at_once(pos), all_layers_at_once(neg)))),
    ("one_direction_for_all_layers", "the layers' shifts pooled as if they were examples",
     "Every layer gets the same vector", "ours",
     aggregation_with(both=lambda pos, neg: (one_for_all_layers(pos), one_for_all_layers(neg)))),
    ("shifts_normalised", "every shift scaled to unit length first", "Weak examples count as much as strong ones",
     "field", aggregation_with(lambda D: first_component(np.stack([unit(row) for row in D])))),
    ("features_standardised", "every feature scaled to unit variance first", "Another direction", "field",
     aggregation_with(standardised)),
    ("zero_shifts_left_out", "examples with a zero shift left out", "Another mean, another component", "field",
     aggregation_with(nonzero_only)),
    ("solver_stopped_early", "a power iteration of three steps", "With a small eigen-gap another direction",
     "released code, row 13", aggregation_with(power_iteration)),
    ("eps_in_length", "1e-6 added to the length that v is divided by", "Small shifts give short vectors", "ours",
     aggregation_with(eps_in_length)),
)  # fmt: skip

BUGS = bugs_of("aggregation", ROWS)
WITHOUT_BUG = aggregation_with()
