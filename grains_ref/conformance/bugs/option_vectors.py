"""Planted bugs of options of selection and aggregation, and those of batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from grains_ref.conformance.bugs.aggregation import aggregation_with, centred, first_component, svd, toward, unit
from grains_ref.conformance.bugs.attribution import (
    attribution_with,
)
from grains_ref.conformance.bugs.common import Row
from grains_ref.conformance.bugs.contrast import contrast_with
from grains_ref.conformance.bugs.objective import objective_with, right_sides
from grains_ref.conformance.bugs.selection import right_choice
from grains_ref.conformance.stages import Stage, Values, array, tensor


# ------------------------------------------------------------------------------------- batches
def _without_padding(y: Any, seen: Any) -> np.ndarray:
    """A response's own tokens."""
    return np.asarray(y)[: int(np.sum(seen))]


def _with_padding(y: Any, seen: Any) -> np.ndarray:
    return np.asarray(y)


def row_by_row(
    stage: Stage,
    *,
    response: Callable[[Any, Any], np.ndarray] = _without_padding,
    mask: Callable[[np.ndarray, int], np.ndarray] = lambda masks, row: masks[row],
    baseline: Callable[[np.ndarray, int], np.ndarray] = lambda rows, row: rows[row],
    after: Callable[[np.ndarray], np.ndarray] = lambda values: values,
) -> Stage:
    """A stage for every row of a batch; `after` turns the rows' outputs, stacked, into those of the batch."""

    def batch(*, x: Any, attention_mask: Any, dtype: str, **given: Any) -> Values:
        rows = []
        for row in range(len(x)):
            own = {"x": x[row], "attention_mask": mask(np.asarray(attention_mask), row)}
            own |= {name: given[name] for name in ("m", "quadrature") if name in given}
            if "baseline" in given:
                own["baseline"] = baseline(given["baseline"], row)
            for side in ("pos", "neg"):
                if f"y_{side}" in given:
                    own[f"y_{side}"] = response(given[f"y_{side}"][row], given[f"seen_{side}"][row])
                else:
                    own[side] = np.flatnonzero(given[f"in_{side}"][row]).tolist()
            rows.append(stage(**own, dtype=dtype))
        return {name: after(np.array([single[name] for single in rows])) for name in rows[0]}

    return batch


def _ones(masks: np.ndarray, row: int) -> np.ndarray:
    return np.ones_like(masks[row])


def _shared_mean(values: np.ndarray) -> np.ndarray:
    return np.broadcast_to(values.mean(0), values.shape)


def _sets_of(choose: Callable[[np.ndarray], np.ndarray]) -> Stage:
    """Contrast of a batch with other sets (B, T)."""
    right = row_by_row(contrast_with())

    def batch(*, in_pos: Any, in_neg: Any, **given: Any) -> Values:
        return right(in_pos=choose(np.asarray(in_pos)), in_neg=choose(np.asarray(in_neg)), **given)

    return batch


OBJECTIVE_BATCH: tuple[Row, ...] = (
    ("batch_response_padding_scored", "the padding of the shorter responses scored like their tokens",
     "Short answers pay for the batch they are in", "field",
     row_by_row(objective_with(right_sides), response=_with_padding)),
    ("batch_prompt_padding_attended", "an attention mask of ones for every row",
     "The score depends on the longest prompt of the batch", "field",
     row_by_row(objective_with(right_sides), mask=_ones)),
    ("batch_mask_of_one_row", "the last row's attention mask for every row",
     "Shorter prompts are read with their padding, longer ones in part", "ours",
     row_by_row(objective_with(right_sides), mask=lambda masks, row: masks[-1])),
    ("batch_averaged", "the mean over the batch in every row", "Examples cannot be told apart", "field",
     row_by_row(objective_with(right_sides), after=_shared_mean)),
)  # fmt: skip
ATTRIBUTION_BATCH: tuple[Row, ...] = (
    ("batch_gradient_averaged", "the gradient of the batch's mean instead of its sum",
     "Scores shrink with the size of the batch", "field",
     row_by_row(attribution_with(), after=lambda values: values / len(values))),
    ("batch_response_padding_attributed", "the padding of the shorter responses attributed like their tokens",
     "Tokens that explain padding are selected", "field", row_by_row(attribution_with(), response=_with_padding)),
    ("batch_baseline_of_one_row", "the first row's baseline for every row",
     "Baselines that differ by example are lost", "ours",
     row_by_row(attribution_with(), baseline=lambda rows, row: rows[0])),
    ("batch_padding_on_the_path", "an attention mask of ones for every row", "Padding gets scores", "field",
     row_by_row(attribution_with(), mask=_ones)),
)  # fmt: skip
CONTRAST_BATCH: tuple[Row, ...] = (
    ("batch_sets_of_one_row", "the first row's tokens masked in every row",
     "Tokens that nobody selected are masked", "ours",
     _sets_of(lambda sets: np.broadcast_to(sets[0], sets.shape))),
    ("batch_sets_united", "the tokens of any row masked in every row", "Shifts grow with the batch", "ours",
     _sets_of(lambda sets: np.broadcast_to(sets.max(0), sets.shape))),
    ("batch_masked_by_one_row", "the first row's baseline in every row", "Baselines that differ by example are lost",
     "ours", row_by_row(contrast_with(), baseline=lambda rows, row: rows[0])),
    ("batch_state_after_padding", "an attention mask of ones for every row", "Padding enters the states", "field",
     row_by_row(contrast_with(), mask=_ones)),
)  # fmt: skip


# ------------------------------------------------------------------------------------- selection
DROPPED = {
    "text": ("image",),
    "image": ("text", "template", "special"),
    "content": ("template", "special"),
    "no_special": ("special",),
    "not_last": (),
}
Chosen: TypeAlias = Callable[[np.ndarray, np.ndarray, int, Sequence[str]], tuple[list[int], list[int]]]


def _candidates(kinds: Sequence[str], rules: Sequence[str]) -> list[bool]:
    """By the rules' words."""
    keep = [kind != "pad" and not any(kind in DROPPED[rule] for rule in rules) for kind in kinds]
    keep[-1] = keep[-1] and "not_last" not in rules
    return keep


def eligible_with(
    keep: Callable[[Sequence[str], Sequence[str]], list[bool]] = _candidates,
    choose: Chosen = lambda a, ok, k, kinds: right_choice(a, ok, k),
) -> Stage:
    """Selection among what rules leave."""

    def stage(*, a: Any, kinds: Sequence[str], rules: Sequence[str], k: int, dtype: str) -> Values:
        ok = np.array(keep(kinds, rules), dtype=np.int64)
        pos, neg = choose(array(tensor(a, dtype)), ok, k, kinds)
        return {"eligible": ok.tolist(), "pos": pos, "neg": neg}

    return stage


def _not_the_last_that_is_left(kinds: Sequence[str], rules: Sequence[str]) -> list[bool]:
    keep = _candidates(kinds, [rule for rule in rules if rule != "not_last"])
    if "not_last" in rules and True in keep:
        keep[len(keep) - 1 - keep[::-1].index(True)] = False
    return keep


def _one_rule_is_enough(kinds: Sequence[str], rules: Sequence[str]) -> list[bool]:
    single = [_candidates(kinds, [rule]) for rule in rules] or [_candidates(kinds, [])]
    return [any(of_rule[j] for of_rule in single) for j in range(len(kinds))]


def _k_of_each(a: np.ndarray, ok: np.ndarray, k: int, kinds: Sequence[str]) -> tuple[list[int], list[int]]:
    """k words and k patches of either sign."""
    pictured = np.array([kind == "image" for kind in kinds])
    words, patches = (right_choice(a, ok * chosen, k) for chosen in (~pictured, pictured))
    return words[0] + patches[0], words[1] + patches[1]


ELIGIBLE: tuple[Row, ...] = (
    ("padding_is_eligible", "padding among the candidates", "Padding is masked", "field",
     eligible_with(lambda kinds, rules: [
         ok or kind == "pad" for ok, kind in zip(_candidates(kinds, rules), kinds, strict=True)])),
    ("not_the_last_that_is_left", "`not_last` dropping the last candidate instead of the last token",
     "One token too many is lost where the last is template", "ours", eligible_with(_not_the_last_that_is_left)),
    ("one_rule_is_enough", "a token that any rule keeps", "Template is selected in spite of a rule", "ours",
     eligible_with(_one_rule_is_enough)),
    ("rules_ignored", "all tokens but padding, whatever the rules", "Template is selected", "field",
     eligible_with(lambda kinds, rules: _candidates(kinds, []))),
    ("pictures_keep_the_template", "`image` dropping words alone", "Template is selected among patches", "ours",
     eligible_with(lambda kinds, rules: [
         ok or ("image" in rules and kind in ("template", "special"))
         for ok, kind in zip(_candidates(kinds, rules), kinds, strict=True)])),
    ("k_words_and_k_patches", "k tokens of each kind instead of k in one ranking", "Pictures are over-represented",
     "ours", eligible_with(choose=_k_of_each)),
)  # fmt: skip


# ------------------------------------------------------------------------------------- aggregation
def on_components(D: np.ndarray, components: int, *, about: Callable[[np.ndarray], np.ndarray] = centred) -> np.ndarray:
    """The mean shift projected on the first components, as long as they are more than rounding errors."""
    _, s, u = svd(about(D))
    basis = u[:components][s[:components] > 1e-6 * np.linalg.norm(D)]
    return unit((basis @ D.mean(0)) @ basis)


def components_with(direction: Callable[[np.ndarray, int], np.ndarray]) -> Stage:
    """Several components, by another direction."""

    def stage(*, components: int, **given: Any) -> Values:
        return aggregation_with(lambda D: direction(D, components))(**given)

    return stage


def _added(D: np.ndarray, components: int) -> np.ndarray:
    """The components themselves added up, each along the mean."""
    return unit(np.sum([toward(u, D.mean(0)) for u in svd(centred(D))[2][:components]], axis=0))


def directed(direction: Callable[[np.ndarray], np.ndarray], *, scale: bool = True) -> Stage:
    """A direction per layer and side, without the refusals of eq. (5), which are those of another method."""

    def stage(*, delta_pos: Any, delta_neg: Any, dtype: str) -> Values:
        _refuse_without_mean(direction, delta_pos, delta_neg)
        return _sides([direction, direction], delta_pos, delta_neg, dtype, scale)

    return stage


def _refuse_without_mean(direction: Any, *sides: np.ndarray) -> None:
    for deltas in sides:
        for D in np.asarray(deltas).swapaxes(0, 1):
            if np.linalg.norm(D.mean(0)) <= 1e-6 * np.linalg.norm(D) / np.sqrt(len(D)):
                raise ValueError("no mean shift")


def _sides(directions: Sequence[Any], delta_pos: Any, delta_neg: Any, dtype: str, scale: bool = True) -> Values:
    sides = []
    for direction, deltas in zip(directions, (delta_pos, delta_neg), strict=True):
        rows = [direction(D) for D in array(tensor(deltas, dtype)).swapaxes(0, 1)]
        sides.append(tensor(np.stack([unit(row) if scale else row for row in rows]), dtype))
    return {"v_pos": array(sides[0]), "v_neg": array(sides[1]), "v": array(sides[0] - sides[1])}


def _mean(D: np.ndarray) -> np.ndarray:
    return D.mean(0)


def _mean_of_units(D: np.ndarray) -> np.ndarray:
    return np.mean([unit(row) for row in D], axis=0)


def weighted_with(
    used: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]], *, scale: bool = True
) -> Stage:
    """Weighted means with other weights."""

    def stage(*, delta_pos: Any, delta_neg: Any, weights_pos: Any, weights_neg: Any, dtype: str) -> Values:
        pairs = used(np.asarray(weights_pos, float), np.asarray(weights_neg, float))
        directions = [lambda D, w=w: w @ D / w.sum() for w in pairs]
        return _sides(directions, delta_pos, delta_neg, dtype, scale)

    return stage


UNCENTRED: tuple[Row, ...] = (
    ("centred_all_the_same", "the mean subtracted before the decomposition", "The ablation ablates nothing", "ours",
     directed(lambda D: toward(svd(centred(D))[2][0], D.mean(0)))),
    ("uncentred_is_the_mean", "the mean shift", "Another direction", "ours", directed(_mean)),
    ("uncentred_reversed", "both directions pointing away from their mean shifts",
     "Steering moves toward the rejected answer", "ours", directed(lambda D: -toward(svd(D)[2][0], D.mean(0)))),
)  # fmt: skip
MEAN: tuple[Row, ...] = (
    ("mean_not_normalised", "the mean shift at its own length", "Lambda means something else in every layer", "field",
     directed(_mean, scale=False)),
    ("mean_of_directions", "the mean of shifts scaled to unit length", "Weak examples count as much as strong ones",
     "field", directed(_mean_of_units)),
    ("mean_is_a_component", "a principal component instead of the mean", "Another direction", "ours",
     directed(first_component)),
    ("median_shift", "the median instead of the mean", "Another direction", "ours",
     directed(lambda D: np.median(D, axis=0))),
)  # fmt: skip
WEIGHTED: tuple[Row, ...] = (
    ("weights_left_out", "every example with one weight", "Strong examples count as much as weak ones", "ours",
     weighted_with(lambda pos, neg: (np.ones_like(pos), np.ones_like(neg)))),
    ("weights_of_one_side", "the weights of pos for both sides", "Neg is weighted by what pos selected", "ours",
     weighted_with(lambda pos, neg: (pos, pos))),
    ("weights_squared", "weights applied twice", "Strong examples decide alone", "ours",
     weighted_with(lambda pos, neg: (pos**2, neg**2))),
    ("weighted_not_normalised", "the weighted mean at its own length", "Lambda means something else in every layer",
     "ours", weighted_with(lambda pos, neg: (pos, neg), scale=False)),
)  # fmt: skip
COMPONENTS: tuple[Row, ...] = (
    ("first_component_alone", "the first component whatever was asked for", "The option changes nothing", "ours",
     components_with(lambda D, r: on_components(D, 1))),
    ("components_added_up", "the components added up instead of the mean projected on them", "Weak ones count in full",
     "field", components_with(_added)),
    ("one_component_more", "one component more than asked for", "Another direction", "ours",
     components_with(lambda D, r: on_components(D, r + 1))),
    ("components_uncentred", "components of the shifts as they are", "The mean passes as a component", "ours",
     components_with(lambda D, r: on_components(D, r, about=lambda D: D))),
)  # fmt: skip


WITHOUT_BUG: dict[str, Stage] = {
    "objective_batch": row_by_row(objective_with(right_sides)),
    "attribution_batch": row_by_row(attribution_with()),
    "selection_eligible": eligible_with(),
    "contrast_batch": row_by_row(contrast_with()),
    "aggregation_uncentred": directed(lambda D: toward(svd(D)[2][0], D.mean(0))),
    "aggregation_mean": directed(_mean),
    "aggregation_weighted_mean": weighted_with(lambda pos, neg: (pos, neg)),
    "aggregation_components": components_with(on_components),
}
"""These options with nothing exchanged."""
