"""How far a case is from its next decision, and which other outputs are equally right: what a comparator must know.

**Margins** are relative numbers; the smaller, the less it takes to turn a decision over.

- selection, `pos` and `neg`: the gap between the k-th score and the best one left out, as a share of the largest score;
  None where none is left out.
- aggregation, `gap_pos` and `gap_neg`: per layer, 1 - the second eigenvalue over the first.
- aggregation, `sign_pos` and `sign_neg`: per layer, what the sign rests on: the absolute cosine of component and mean
  shift; in `authors` 1 - the largest entry of the other sign over the largest entry.
- steering, `left` (in `paper`): per token, |h + lam v| over |h| + |lam v|. At 0 the two cancel, and h is kept; None
  where both are zero. `authors` has no such decision.
- generation, `tokens`: per row and step, the gap of the two best logits as a share of the largest logit, along the
  right tokens. In the option with ends: 1 after the end of a row, where there is nothing to decide.
- the option with beams, `beams`: per row, the smallest gap between a beam that was kept and the best one that was left
  out, or between the two best at the end, as a share of the log-probability.

Those of selection are exact. All others are rounded to six digits, so that they are the same on every machine.

**Accepted** outputs are those of ill-posed cases: near ties in another order (`Variant`), components whose sign or
direction nothing defines (`OtherRow` and `Span` of `components`, per layer). Each names the relative error `from` which
on it is right; 0 means always. Those of different outputs and layers combine. The other stages have none.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from grains_ref.conformance.components import (
    OtherRow,
    Span,
    canonical_components,
    margins_of_components,
    other_components,
    rounded,
)
from grains_ref.conformance.options_generation import beam_margins
from grains_ref.conformance.stages import KIND, Values, run_oracle

Margins: TypeAlias = dict[str, Any]  # name -> nested lists of numbers or None
WIDEST = 2.0**-7  # bfloat16's step: no dtype of the kit confuses scores that are further apart


@dataclass(frozen=True)
class Variant:
    """An output that is as right as the oracle's, once errors of the relative size `begins` are allowed."""

    out: Values  # the outputs that differ
    begins: float
    why: str


Accepted: TypeAlias = Variant | OtherRow | Span


def canonical_of(dialect: str, stage: str, inputs: Mapping[str, Any], want: Values) -> Values:
    """The dialect's output in the form in which it is stored: the same on every machine, ill-posed parts too."""
    return canonical_components(dialect, inputs, want) if stage == "aggregation" else want


def margins_of(dialect: str, stage: str, inputs: Mapping[str, Any], want: Values) -> Margins:
    """The margins of an input; `want` is the dialect's output."""
    if stage == "selection":
        return {name: _gap_at_k(dialect, name, inputs, want) for name in ("pos", "neg")}
    if stage == "aggregation":
        return margins_of_components(dialect, inputs, want)
    if stage == "steering" and dialect == "paper":
        return {"left": _what_is_left(inputs)}
    if KIND[stage] == "generation" and dialect == "paper":  # the tokens of the released code are not judged
        logits = run_oracle(stage, {**inputs, "forced": want["tokens"]})["logits"]
        best = np.sort(logits, axis=-1)
        gaps = (best[..., -1] - best[..., -2]) / np.abs(logits).max()
        gaps[_after_the_end(want["tokens"], inputs.get("end", ()))] = 1
        return {"tokens": [[rounded(gap) for gap in row] for row in gaps]}
    if KIND[stage] == "beams":
        return {"beams": [rounded(margin) for margin in beam_margins(**inputs)]}
    return {}


def _after_the_end(tokens: np.ndarray, end: Sequence[int]) -> np.ndarray:
    """(B, n) bool: whether a token comes after one out of `end`."""
    is_end = np.isin(tokens, list(end))
    return np.asarray(np.cumsum(is_end, 1) > is_end)


def accepted_of(
    dialect: str, stage: str, inputs: Mapping[str, Any], want: Values, margins: Margins, *, widest: float = WIDEST
) -> tuple[Accepted, ...]:
    """The other right outputs of an ill-posed input; `widest` limits their `begins`."""
    if stage == "selection":
        return tuple(v for name in ("pos", "neg") for v in _other_orders(dialect, name, inputs, want, widest))
    if stage == "aggregation":
        return tuple(other_components(dialect, inputs, want, margins, widest))
    return ()


def _what_is_left(inputs: Mapping[str, Any]) -> list[list[float | None]]:
    """(B, T) margins of steering."""
    h, shift = np.asarray(inputs["h"], float), inputs["lam"] * np.asarray(inputs["v"], float)
    after = np.linalg.norm(h + shift, axis=-1)
    before = np.linalg.norm(h, axis=-1) + np.linalg.norm(shift)
    left = np.divide(after, before, where=before > 0, out=np.full_like(before, np.nan))
    return [[None if np.isnan(share) else float(f"{share:.6g}") for share in row] for row in left]


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
    results = []
    for others in itertools.combinations([j for j in close if j not in clear], len(right) - len(clear)):
        for order in itertools.permutations([*clear, *others]):
            begins = _error_needed(order, scores, right) / largest
            if list(order) != right and 0 < begins <= widest:
                why = "scores that are closer to each other than errors of this size"
                results.append(Variant({name: list(order)}, begins, why))
    return sorted(results, key=lambda variant: (variant.begins, variant.out[name]))


def _error_needed(order: Sequence[int], scores: Mapping[int, float], right: Sequence[int]) -> float:
    """The smallest error of scores with which this set in this order is right."""
    kth = scores[right[-1]]
    moved = [scores[j] - kth for j in right if j not in order] + [kth - scores[j] for j in order]
    swapped = [scores[b] - scores[a] for a, b in itertools.pairwise(order)]
    return max(0.0, *moved, *swapped) / 2
