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
BothSides: TypeAlias = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""The shifts of both sides, (N, L, d) each -> v_pos, v_neg, (L, d) each."""


def aggregation_with(
    direction: Direction | None = None,
    *,
    both_sides: BothSides | None = None,
    combine: Callable[[Tensor, Tensor], Tensor] = torch.sub,
) -> Stage:
    """Eq. (5) and (6) with another direction per layer, another treatment of both sides, or another combination."""

    def one_side(deltas: np.ndarray) -> np.ndarray:
        return np.stack([(direction or first_component)(D) for D in deltas.swapaxes(0, 1)])

    def stage(*, delta_pos: np.ndarray, delta_neg: np.ndarray, dtype: str) -> Values:
        run_oracle(
            "aggregation", {"delta_pos": delta_pos, "delta_neg": delta_neg}, dtype
        )  # refuses shifts that define no direction
        pos, neg = (array(tensor(deltas, dtype)) for deltas in (delta_pos, delta_neg))
        sides = both_sides(pos, neg) if both_sides else (one_side(pos), one_side(neg))
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


def along(direction: np.ndarray, D: np.ndarray) -> np.ndarray:
    """A direction at unit length, along the mean shift."""
    return toward(unit(direction), D.mean(0))


def last_component(D: np.ndarray) -> np.ndarray:
    """The component with the least variance that is not nothing."""
    _, values, components = svd(centred(D))
    return along(components[int((values > 1e-9 * values[0]).sum()) - 1], D)


def first_two(D: np.ndarray) -> np.ndarray:
    """The sum of the first two components, each along the mean."""
    first, second = (along(component, D) for component in svd(centred(D))[2][:2])
    return unit(first + second)


def component_of(change: Callable[[np.ndarray], np.ndarray]) -> Direction:
    """The first component of changed shifts, uncentred, along the mean of the shifts as they are."""
    return lambda D: along(svd(change(D))[2][0], D)


def over_both_axes(D: np.ndarray) -> np.ndarray:
    """Shifts without the mean of their row and of their column."""
    return D - D.mean(0) - D.mean(1, keepdims=True) + D.mean()


def whitened_by_row(D: np.ndarray) -> np.ndarray:
    """Every shift divided by its own largest entry."""
    return D / np.maximum(np.abs(D).max(1, keepdims=True), 1e-30)


def two_random_columns(D: np.ndarray) -> np.ndarray:
    """A randomised decomposition with a sketch of two columns and no power iterations."""
    numbers = np.random.default_rng(0).standard_normal((D.shape[1], 2))
    basis = np.linalg.qr(centred(D) @ numbers)[0]
    return along(svd(basis.T @ centred(D))[2][0], D)


def signed_by(rule: Callable[[np.ndarray, np.ndarray], float]) -> Direction:
    """The component with another sign; rule: component, shifts -> a number whose sign it takes."""

    def direction(D: np.ndarray) -> np.ndarray:
        u = first_component(D)
        return u if rule(u, D) >= 0 else -u

    return direction


def changed(change: Callable[[np.ndarray], np.ndarray]) -> BothSides:
    """The right components of shifts (N, L, d) that are changed on both sides."""
    return lambda pos, neg: (each_layer(change(pos)), each_layer(change(neg)))


def of_the_difference(pos: np.ndarray, neg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One component of the differences of both sides' shifts, half of it for either side."""
    v = each_layer(pos - neg)
    return v / 2, -v / 2


def centred_together(pos: np.ndarray, neg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sides centred by the mean of both."""
    mean = (pos.mean(0) + neg.mean(0)) / 2

    def one_side(deltas: np.ndarray) -> np.ndarray:
        rows = zip(deltas.swapaxes(0, 1), mean, strict=True)
        return np.stack([along(svd(D - middle)[2][0], D) for D, middle in rows])

    return one_side(pos), one_side(neg)


def first_layer_signs(pos: np.ndarray, neg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The solver's sign, turned for all layers alike so that the first is right."""

    def one_side(deltas: np.ndarray) -> np.ndarray:
        raw = each_layer(deltas, lambda D: svd(centred(D))[2][0])
        return raw if raw[0] @ deltas[:, 0].mean(0) >= 0 else -raw

    return one_side(pos), one_side(neg)


def neg_reversed(pos: np.ndarray, neg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """v_neg pointing away from its mean."""
    return each_layer(pos), -each_layer(neg)


def in_turn(deltas: np.ndarray) -> np.ndarray:
    """Every layer with the shifts of the one before it; the first with the last's."""
    return np.roll(deltas, 1, axis=1)


def over_all_layers(v: Tensor) -> Tensor:
    """v (L, d) scaled to unit length as a whole."""
    return (widened(v) / widened(v).norm().clamp(min=1e-30)).to(v)


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
     "V is always long, whatever the shifts say", "ours", aggregation_with(both_sides=neg_signed_by_pos)),
    ("sum_of_sides", "v = v_pos + v_neg", "Exactly orthogonal to the right v", "study",
     aggregation_with(combine=torch.add)),
    ("difference_reversed", "v = v_neg - v_pos", "Steering moves toward the rejected answer", "study",
     aggregation_with(combine=lambda pos, neg: neg - pos)),
    ("v_normalised", "v scaled to unit length", "Lambda means something else in every layer", "study",
     aggregation_with(combine=lambda pos, neg: nn.functional.normalize(widened(pos - neg), dim=-1).to(pos))),
    ("v_pos_alone", "v = v_pos", "The negative side is lost", "released code, row 14",
     aggregation_with(combine=lambda pos, neg: pos)),
    ("sides_pooled", "one component of the positive and negative shifts together",
     "V is zero, or twice one direction", "ours", aggregation_with(both_sides=pooled)),
    ("layers_side_by_side", "one component of all layers at once, cut into layers",
     "Layers with large shifts decide for all", "ours",
     aggregation_with(both_sides=lambda pos, neg: (all_layers_at_once(pos), all_layers_at_once(neg)))),
    ("one_direction_for_all_layers", "the layers' shifts pooled as if they were examples",
     "Every layer gets the same vector", "ours",
     aggregation_with(both_sides=lambda pos, neg: (one_for_all_layers(pos), one_for_all_layers(neg)))),
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
    # another direction
    ("median_shift", "the median of the shifts, feature by feature, at unit length", "Another direction", "field",
     aggregation_with(lambda D: along(np.median(D, 0), D))),
    ("mean_of_unit_shifts", "the mean of shifts at unit length", "Another direction", "field",
     aggregation_with(lambda D: along(np.stack([unit(row) for row in D]).mean(0), D))),
    ("longest_shift", "the longest shift instead of a component", "One example speaks for all", "ours",
     aggregation_with(lambda D: along(D[np.linalg.norm(D, axis=1).argmax()], D))),
    ("first_shift", "the first example's shift instead of a component", "One example speaks for all", "ours",
     aggregation_with(lambda D: along(D[0], D))),
    ("last_component", "the component with the least variance: eigh sorts ascending", "Noise instead of a direction",
     "field", aggregation_with(last_component)),
    ("first_two_components", "the first two components added up", "Half of v is another direction", "ours",
     aggregation_with(first_two)),
    ("sketch_of_two_columns", "a randomised decomposition with a sketch of two columns",
     "Another direction from seed to seed", "field", aggregation_with(two_random_columns)),
    # centring
    ("centred_by_median", "the median subtracted instead of the mean", "Another component", "ours",
     aggregation_with(component_of(lambda D: D - np.median(D, 0)))),
    ("centred_by_first_example", "the first example's shift subtracted instead of the mean", "Another component",
     "ours", aggregation_with(component_of(lambda D: D - D[0]))),
    ("centred_over_the_width", "the mean over the width subtracted, not over the examples", "Another component",
     "field", aggregation_with(component_of(lambda D: D - D.mean(1, keepdims=True)))),
    ("centred_over_both", "the means over examples and over the width subtracted", "Another component", "ours",
     aggregation_with(component_of(over_both_axes))),
    ("centred_together", "both sides centred by the mean of both", "The sides' means enter their components", "ours",
     aggregation_with(both_sides=centred_together)),
    ("half_centred", "half of the mean subtracted", "The mean enters the component", "ours",
     aggregation_with(component_of(lambda D: D - D.mean(0) / 2))),
    ("scaled_by_largest_entry", "every shift divided by its largest entry first",
     "Weak examples count like strong ones", "field", aggregation_with(lambda D: first_component(whitened_by_row(D)))),
    # examples and layers
    ("last_example_left_out", "the last example left out", "Another mean, another component", "field",
     aggregation_with(lambda D: first_component(D[:-1]) if len(D) > 2 else first_component(D))),
    ("first_example_left_out", "the first example left out", "Another mean, another component", "ours",
     aggregation_with(lambda D: first_component(D[1:]) if len(D) > 2 else first_component(D))),
    ("first_example_twice", "the first example counted twice", "Another mean, another component", "ours",
     aggregation_with(lambda D: first_component(np.concatenate([D[:1], D])))),
    ("layers_in_turn", "every layer with the shifts of the layer before it", "Every vector is added at another block",
     "ours", aggregation_with(both_sides=changed(in_turn))),
    ("layers_reversed", "the layers in reverse order", "Every vector is added at another block", "ours",
     aggregation_with(both_sides=changed(lambda deltas: deltas[:, ::-1]))),
    ("features_reversed", "the features in reverse order", "Vectors point anywhere", "ours",
     aggregation_with(lambda D: first_component(D)[::-1])),
    # signs
    ("first_entry_positive", "the sign that makes the first entry positive", "A side points away from its shifts",
     "field", aggregation_with(signed_by(lambda u, D: u[0]))),
    ("sum_of_entries_positive", "the sign that makes the sum of the entries positive",
     "A side points away from its shifts", "field", aggregation_with(signed_by(lambda u, D: u.sum()))),
    ("signed_by_first_example", "the sign by the first example instead of the mean",
     "A side points away from its shifts", "ours", aggregation_with(signed_by(lambda u, D: D[0] @ u))),
    ("signed_by_last_example", "the sign by the last example instead of the mean",
     "A side points away from its shifts", "ours", aggregation_with(signed_by(lambda u, D: D[-1] @ u))),
    ("first_layer_signs", "one sign for all layers, that of the first", "Some layers point away from their shifts",
     "ours", aggregation_with(both_sides=first_layer_signs)),
    ("neg_reversed", "v_neg pointing away from its mean shift, v_pos right",
     "Both sides push the same way", "ours", aggregation_with(both_sides=neg_reversed)),
    # length and combination
    ("l1_length", "components at L1 length 1", "Lambda means something else in every layer", "field",
     aggregation_with(lambda D: first_component(D) / np.abs(first_component(D)).sum())),
    ("largest_entry_one", "components whose largest entry is 1", "Lambda means something else in every layer", "field",
     aggregation_with(lambda D: first_component(D) / np.abs(first_component(D)).max())),
    ("scaled_by_singular_value", "components multiplied by their singular value",
     "Lambda means something else in every layer", "field",
     aggregation_with(lambda D: first_component(D) * svd(centred(D))[1][0])),
    ("scaled_by_mean_projection", "components multiplied by the mean shift's projection",
     "Lambda means something else in every layer", "ours",
     aggregation_with(lambda D: first_component(D) * (first_component(D) @ D.mean(0)))),
    ("scaled_by_mean_length", "components at the length of the mean shift",
     "Lambda means something else in every layer", "field",
     aggregation_with(lambda D: first_component(D) * np.linalg.norm(D.mean(0)))),
    ("v_halved", "v = (v_pos - v_neg) / 2", "Lambda counts half", "field",
     aggregation_with(combine=lambda pos, neg: (pos - neg) / 2)),
    ("v_neg_alone", "v = -v_neg", "The positive side is lost", "ours",
     aggregation_with(combine=lambda pos, neg: -neg)),
    ("v_normalised_as_a_whole", "v of all layers together scaled to unit length", "Lambda means something else", "ours",
     aggregation_with(combine=lambda pos, neg: over_all_layers(pos - neg))),
    ("component_of_differences", "the component of delta_pos - delta_neg instead of the sides' own",
     "Another direction", "field", aggregation_with(both_sides=of_the_difference)),
)  # fmt: skip

BUGS = bugs_of("aggregation", ROWS)
WITHOUT_BUG = aggregation_with()
