"""How far a case is from its next decision, and which other outputs are equally right: what a comparator must know.

**Margins** are relative numbers; the smaller, the less it takes to turn a decision over.

- selection, `pos` and `neg`: the gap between the k-th score and the best one left out, as a share of the largest score;
  None where none is left out.
- aggregation, `gap_pos` and `gap_neg`: per layer, 1 - the second eigenvalue over the first.
- aggregation, `sign_pos` and `sign_neg`: per layer, what the sign rests on: the absolute cosine of component and mean
  shift; in `authors` 1 - the largest entry of the other sign over the largest entry.
- generation, `tokens`: per row and step, the gap of the two best logits as a share of the largest logit, along the
  right tokens.

**Accepted** outputs are those of ill-posed cases: near ties in another order, signs and components that nothing
defines. Each names the relative error `from` which on it is right; 0 means always. Variants of different outputs
combine. The other stages decide nothing, so they have neither.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from grains_ref.conformance.stages import Values, run_oracle

Margins: TypeAlias = dict[str, Any]  # name -> nested lists of numbers or None
WELL_SEPARATED = 0.05  # relative gap of the first two eigenvalues below which a component counts as ill-defined
SIGN_DEFINED = 1e-3  # margin of a sign below which it counts as ill-defined
WIDEST = 2.0**-7  # bfloat16's step: no dtype of the kit confuses scores that are further apart


@dataclass(frozen=True)
class Variant:
    """An output that is as right as the oracle's, once errors of the relative size `begins` are allowed."""

    out: Values  # the outputs that differ
    begins: float
    why: str


def margins_of(dialect: str, stage: str, inputs: Mapping[str, Any], want: Values) -> Margins:
    """The margins of an input; `want` is the dialect's output."""
    if stage == "selection":
        return {name: _gap_at_k(dialect, name, inputs, want) for name in ("pos", "neg")}
    if stage == "aggregation":
        found: Margins = {}
        for side in ("pos", "neg"):
            layers = zip(np.asarray(inputs[f"delta_{side}"], float).swapaxes(0, 1), want[f"v_{side}"], strict=True)
            spectra = [(D, u, np.linalg.svd(D - D.mean(0), compute_uv=False)) for D, u in layers]
            found[f"gap_{side}"] = [float(1 - (s[1] / s[0]) ** 2) if len(s) > 1 else 1.0 for _, _, s in spectra]
            found[f"sign_{side}"] = [_sign_margin(dialect, D, u) for D, u, _ in spectra]
        return found
    if stage == "generation" and dialect == "paper":  # the tokens of the released code are not judged
        logits = run_oracle("generation", {**inputs, "forced": want["tokens"]})["logits"]
        best = np.sort(logits, axis=-1)
        return {"tokens": ((best[..., -1] - best[..., -2]) / np.abs(logits).max()).tolist()}
    return {}


def accepted_of(
    dialect: str, stage: str, inputs: Mapping[str, Any], want: Values, margins: Margins, *, widest: float = WIDEST
) -> tuple[Variant, ...]:
    """The other right outputs of an ill-posed input; `widest` limits their `begins`."""
    if stage == "selection":
        return tuple(v for name in ("pos", "neg") for v in _other_orders(dialect, name, inputs, want, widest))
    if stage == "aggregation":
        return tuple(_other_components(inputs, want, margins, widest))
    return ()


# ------------------------------------------------------------------------------------- selection
def _candidates(dialect: str, name: str, inputs: Mapping[str, Any]) -> dict[int, float]:
    """The tokens that may be in a set, and the scores by which they compete for it."""
    scores = np.asarray(inputs["a"], float) * (1.0 if name == "pos" else -1.0)
    competing = {j: float(score) for j, score in enumerate(scores)}
    if dialect == "authors":
        return competing
    return {j: score for j, score in competing.items() if inputs["eligible"][j] and score > 0}


def _largest(inputs: Mapping[str, Any]) -> float:
    return float(np.abs(np.asarray(inputs["a"], float)).max(initial=0.0)) or 1.0


def _gap_at_k(dialect: str, name: str, inputs: Mapping[str, Any], want: Values) -> float | None:
    scores, chosen = _candidates(dialect, name, inputs), want[name]
    left = [score for j, score in scores.items() if j not in chosen]
    return (scores[chosen[-1]] - max(left)) / _largest(inputs) if chosen and left else None


def _other_orders(dialect: str, name: str, inputs: Mapping[str, Any], want: Values, widest: float) -> Sequence[Variant]:
    """Sets and orders that scores with errors of up to `widest` (relative to the largest) allow."""
    scores, right, largest = _candidates(dialect, name, inputs), list(want[name]), _largest(inputs)
    if not right:
        return ()
    kth = scores[right[-1]]
    # A token moves across another by twice the error, as both scores are off. Exact ties have a rule: begins > 0.
    close = [j for j, score in scores.items() if kth - score <= 2 * widest * largest]
    clear = [j for j in close if scores[j] - kth > 2 * widest * largest]
    found = []
    for others in itertools.combinations([j for j in close if j not in clear], len(right) - len(clear)):
        for order in itertools.permutations([*clear, *others]):
            begins = _error_needed(order, scores, right) / largest
            if list(order) != right and 0 < begins <= widest:
                why = "scores that are closer to each other than errors of this size"
                found.append(Variant({name: list(order)}, begins, why))
    return sorted(found, key=lambda variant: (variant.begins, variant.out[name]))


def _error_needed(order: Sequence[int], scores: Mapping[int, float], right: Sequence[int]) -> float:
    """The smallest error of scores with which this set in this order is right."""
    kth = scores[right[-1]]
    moved = [scores[j] - kth for j in right if j not in order] + [kth - scores[j] for j in order]
    swapped = [scores[b] - scores[a] for a, b in itertools.pairwise(order)]
    return max(0.0, *moved, *swapped) / 2


# ------------------------------------------------------------------------------------- aggregation
def _sign_margin(dialect: str, D: np.ndarray, u: np.ndarray) -> float:
    if dialect == "authors":
        return float(1 - max(0.0, (-u * np.sign(u[np.abs(u).argmax()])).max()) / np.abs(u).max())
    return float(abs(u @ D.mean(0)) / np.linalg.norm(D.mean(0)))


def undefined_signs(margins: Margins, side: str) -> np.ndarray:
    """The layers of a side (L,) whose sign nothing defines."""
    return (np.array(margins[f"gap_{side}"]) < WELL_SEPARATED) | (np.array(margins[f"sign_{side}"]) < SIGN_DEFINED)


def _other_components(inputs: Mapping[str, Any], want: Values, margins: Margins, widest: float) -> Sequence[Variant]:
    found = []
    signs = {side: np.where(undefined_signs(margins, side), -1.0, 1.0)[:, None] for side in ("pos", "neg")}
    turned = {side: sign * want[f"v_{side}"] for side, sign in signs.items()}
    for sides in (("pos",), ("neg",), ("pos", "neg")):
        if all((signs[side] < 0).any() for side in sides):
            out = {f"v_{side}": turned[side] if side in sides else want[f"v_{side}"] for side in ("pos", "neg")}
            found.append(
                _combined(out, 0.0, f"the sign of {' and '.join(f'v_{side}' for side in sides)} is not defined")
            )
    gaps = np.array([margins["gap_pos"], margins["gap_neg"]])
    begins = float(gaps.max() / 2)  # the second component explains 1 - gap of what the first does
    if begins <= widest:
        out = {f"v_{side}": _second(np.asarray(inputs[f"delta_{side}"], float), want[f"v_{side}"])
               for side in ("pos", "neg")}  # fmt: skip
        found.append(_combined(out, begins, "the second component explains as much as the first"))
    return found


def _second(deltas: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Per layer the direction in the span of the first two components that is at right angles to v."""
    rows = []
    for D, first in zip(deltas.swapaxes(0, 1), v, strict=True):
        plane = np.linalg.svd(D - D.mean(0))[2][:2]
        other = max((u - (u @ first) * first for u in plane), key=np.linalg.norm)
        rows.append(other / np.linalg.norm(other))
    return np.stack(rows)


def _combined(out: Values, begins: float, why: str) -> Variant:
    return Variant(out | {"v": out["v_pos"] - out["v_neg"]}, begins, why)
