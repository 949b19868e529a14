"""How far two outputs of a stage are apart, and whether that is right: one rule per stage, nothing else decides.

`distance` is a plain relative error: it says how far, for budgets and for the diagnosis. `judge` compares with the
oracle's answer and knows what is ambiguous in it:

- **selection**: a set may differ from the oracle's in tokens whose scores are closer to each other than the dtype can
  tell: the accepted variants of `margins`, stored with the case.
- **aggregation**: every row (side and layer) by itself. It has unit length and lies near the stored row or an accepted
  one, within budget * (1 + 2 / gap), as far as errors of the budget's size turn a component (Davis and Kahan); or it
  lies in an accepted span, as near as that span's own gap allows, and not against the mean shift. v is v_pos - v_neg.
- **generation**: logits for a given continuation first; then tokens up to the first step at which the margin of the two
  best logits is smaller than the dtype can tell. Where tokens have no margins they are not judged.

Options are judged like the stage they belong to, or as `KIND` says: **rows**, each within the budget of its length;
**lists**, equal; **directions**, each within the budget, and v their difference; **beams**, the log-probability of the
best one within the budget, and its tokens, unless the beams lie too close together for the dtype.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grains_ref.conformance.components import OtherRow, Span
from grains_ref.conformance.margins import Accepted, Margins, Variant, accepted_of, margins_of
from grains_ref.conformance.stages import KIND, OUTPUTS, Values, run_oracle
from grains_ref.files import printable

MANY = 2**53  # from here on a float64 does not tell whole numbers apart
KINDS = {
    "b": "truth values", "U": "text", "S": "bytes", "c": "complex numbers", "M": "dates", "m": "durations",
    "O": "objects",
}  # fmt: skip


@dataclass(frozen=True)
class Right:
    """The right output of an input, and what else may count as right."""

    out: Values
    margins: Margins
    accepted: tuple[Accepted, ...]


def right_now(dialect: str, stage: str, inputs: Mapping[str, Any], want: Values, budget: float) -> Right:
    """Margins and accepted outputs worked out on the spot, for inputs that are not stored."""
    margins = margins_of(dialect, stage, inputs, want)
    return Right(want, margins, accepted_of(dialect, stage, inputs, want, margins, widest=budget))


@dataclass(frozen=True)
class Verdict:
    """Whether one output is right, how far it is from the oracle's, and in words what is wrong."""

    ok: bool
    error: float
    message: str = ""


class BadOutput(ValueError):
    """The output is not even comparable: a name, a shape or a type is wrong."""


def checked(stage: str, got: Mapping[str, Any], want: Values) -> Values:
    """The output with every value as the oracle's type and shape.

    Raises:
        BadOutput: something is missing, has another shape, or is no number.
    """
    if missing := [name for name in OUTPUTS[stage] if name not in got]:
        raise BadOutput(f"the output lacks {', '.join(missing)}; {stage} gives {', '.join(OUTPUTS[stage])}")
    if unknown := sorted(set(got) - set(OUTPUTS[stage])):
        raise BadOutput(f"the output has {', '.join(unknown)}, which {stage} does not give; a misspelt name?")
    values: Values = {}
    for name in OUTPUTS[stage]:
        value = numbers(name, got[name])
        if KIND[stage] in ("selection", "lists"):
            if value.ndim != 1 or not (np.abs(value) < MANY).all() or not (value == np.round(value)).all():
                raise BadOutput(f"{name} must be a list of token indices; got {printable(repr(got[name])[:200])}")
            values[name] = [int(j) for j in value]
        elif value.shape != np.shape(want[name]):
            raise BadOutput(f"{name} has the shape {value.shape}; expected {np.shape(want[name])}")
        else:
            values[name] = value
    return values


def numbers(name: str, value: Any) -> np.ndarray:
    """A value of a port as an array of float64.

    Raises:
        BadOutput: it is none: text, even of digits, truth values, complex numbers, objects, rows of several lengths.
    """
    try:
        array = np.asarray(value)
        is_whole = array.dtype.kind == "O" and all(isinstance(item, int) for item in array.flat)  # beyond 64 bits
        if array.dtype.kind in "bUScMmO" and not is_whole and array.size:
            raise BadOutput(f"{name} is no array of numbers: it holds {KINDS[array.dtype.kind]}")
        return array.astype(np.float64)
    except BadOutput:
        raise
    except Exception as error:  # of NumPy, or of the object that the port returned
        raise BadOutput(
            f"{name} is no array of numbers: {type(error).__name__}: {printable(str(error)[:500])}"
        ) from None


def distance(stage: str, inputs: Mapping[str, Any], got: Values, want: Values) -> float:
    """The relative error of `got`; 0 is the same, infinite is not finite."""
    kind = KIND[stage]
    if kind in ("selection", "lists"):
        return float(any(list(got[name]) != list(want[name]) for name in OUTPUTS[stage]))
    arrays = {name: (np.asarray(got[name], float), np.asarray(want[name], float)) for name in OUTPUTS[stage]}
    if not all(np.isfinite(ours).all() for ours, _ in arrays.values()):
        return float("inf")
    if kind == "objective":
        scale = np.abs(want["log_p_pos"]) + np.abs(want["log_p_neg"])
        return max(float((np.abs(ours - theirs) / scale).max()) for ours, theirs in arrays.values())
    if kind == "attribution":
        return _relative(*arrays["a"], np.abs(arrays["a"][1]).max())
    if kind in ("contrast", "rows", "steering"):
        return max(_worst_row(*arrays[name]) for name in OUTPUTS[stage])
    if kind in ("aggregation", "directions"):
        return max(float(np.linalg.norm(ours - theirs, axis=-1).max()) for ours, theirs in arrays.values())
    if kind == "beams":
        ours, theirs = arrays["log_p"]
        return float((np.abs(ours - theirs) / np.abs(theirs)).max())
    return _relative(*arrays["logits"], np.abs(arrays["logits"][1]).max())


def apart(stage: str, inputs: Mapping[str, Any], got: Values, want: Values) -> float:
    """The distance of two outputs, in which other tokens count as 1, whatever the logits of the forced run."""
    error = distance(stage, inputs, got, want)
    if "tokens" in want and not np.array_equal(got["tokens"], want["tokens"]):
        return max(error, 1.0)
    return error


def judge(
    stage: str, inputs: Mapping[str, Any], got: Mapping[str, Any], *, budget: float, right: Right | None = None
) -> Verdict:
    """Whether a stage's output is right within a relative error of `budget`.

    right: what is stored with a case, or the dialect's answer; default: the oracle's, in the dialect `paper`.
    """
    right = right or right_now("paper", stage, inputs, run_oracle(stage, inputs), budget)
    want = right.out
    try:
        values = checked(stage, got, want)
    except BadOutput as problem:
        return Verdict(False, float("inf"), str(problem))
    error = distance(stage, inputs, values, want)
    if error == float("inf"):
        bad = [name for name in OUTPUTS[stage] if not np.isfinite(np.asarray(values[name], float)).all()]
        if bad:
            return Verdict(False, error, f"{', '.join(bad)} holds NaN or infinite values")
    kind = KIND[stage]
    if kind == "selection":
        return _judge_selection(inputs, values, right, budget)
    if kind == "lists":
        return _judge_lists(stage, values, want)
    if kind == "aggregation":
        return _judge_aggregation(inputs, values, right, budget)
    if kind == "generation":
        return _judge_generation(values, right, budget, error)
    if kind == "beams":
        return _judge_beams(values, right, budget, error)
    if error <= budget:
        return Verdict(True, error)
    if error == float("inf"):
        largest = max(float(np.abs(np.asarray(values[name], float)).max(initial=0.0)) for name in OUTPUTS[stage])
        if largest > 1e150:
            return Verdict(False, error, f"a value of {largest:.0e}, whose square no float64 holds")
        return Verdict(False, error, "something is there where the right answer is exactly zero")
    return Verdict(False, error, f"relative error {error:.1e}, allowed {budget:.1e}")


def _judge_selection(inputs: Mapping[str, Any], got: Values, right: Right, budget: float) -> Verdict:
    for name, sign in (("pos", 1.0), ("neg", -1.0)):
        variants = [
            answer.out[name]
            for answer in right.accepted
            if isinstance(answer, Variant) and name in answer.out and answer.begins <= budget
        ]
        if list(got[name]) not in (list(right.out[name]), *variants):
            signed, margin = sign * np.asarray(inputs["a"], float), right.margins[name]
            beside = "" if margin is None else f" The gap at k is {margin:.1e} of the largest score."
            wrong = _wrong_set(got[name], right.out[name], signed, np.asarray(inputs["eligible"]), budget)
            return Verdict(False, 1.0, f"{name} {wrong}.{beside}")
    return Verdict(True, 0.0)


def _wrong_set(chosen: list[int], right: list[int], signed: np.ndarray, eligible: np.ndarray, budget: float) -> str:
    """What is wrong with a set; `signed` are the scores by which the tokens compete."""
    tau = budget * float(np.abs(signed).max(initial=0.0))  # what the dtype may have moved a score

    def fitting(j: int) -> bool:
        return bool(eligible[j] and signed[j] > 0)

    if len(set(chosen)) != len(chosen) or any(not 0 <= j < len(signed) for j in chosen):
        return f"= {chosen}: token indices must exist and differ"
    if all(map(fitting, right)) and (odd := [j for j in chosen if not fitting(j)]):
        return f"holds tokens {odd}, which are not eligible or have the other sign"
    if len(chosen) != len(right):
        return f"holds {len(chosen)} tokens; expected {len(right)}: {right}"
    kth = signed[right[-1]]
    if missing := [j for j in right if signed[j] > kth + 2 * tau and j not in chosen]:
        return f"lacks tokens {missing}, whose scores are clearly among the strongest"
    if below := [j for j in chosen if signed[j] < kth - 2 * tau]:
        return f"holds tokens {below}, whose scores are clearly not among the strongest"
    if any(signed[i] < signed[j] - 2 * tau for i, j in itertools.pairwise(chosen)):
        return f"= {chosen} is not ordered by strength, the strongest first"
    got, expected = next((i, j) for i, j in zip(chosen, right, strict=True) if i != j)
    return f"= {chosen}; expected {right}: equal scores go to the {'lower' if expected < got else 'higher'} index"


def _judge_aggregation(inputs: Mapping[str, Any], got: Values, right: Right, budget: float) -> Verdict:
    error = distance("aggregation", inputs, got, right.out)
    worst = 0.0  # distance of a right row to what is nearest of all that is accepted
    for side in ("pos", "neg"):
        for layer, (w, u) in enumerate(zip(got[f"v_{side}"], right.out[f"v_{side}"], strict=True)):
            gap = right.margins[f"gap_{side}"][layer]
            others = _others(right.accepted, f"v_{side}", layer, budget)
            wrong = _wrong_length(w, budget)
            if not wrong:
                near = [apart for apart, within in _distances(w, u, gap, others, budget) if apart <= within]
                worst = max(worst, min(near, default=0.0))
                wrong = "" if near else _wrong_direction(w, u, gap, inputs[f"delta_{side}"][:, layer], budget)
            if wrong:
                return Verdict(False, error, f"v_{side}, layer {layer}: {wrong}")
    mismatch = float(np.linalg.norm(got["v"] - (got["v_pos"] - got["v_neg"]), axis=-1).max())
    if mismatch > 4 * budget:
        return Verdict(False, error, f"v differs from v_pos - v_neg by {mismatch:.1e}: eq. (6)")
    return Verdict(True, max(worst, mismatch))


def _others(accepted: Sequence[Accepted], of: str, layer: int, budget: float) -> list[OtherRow | Span]:
    """What else is right for a row, at errors of the budget's size."""
    return [
        answer
        for answer in accepted
        if isinstance(answer, (OtherRow, Span)) and (answer.of, answer.layer) == (of, layer) and answer.begins <= budget
    ]


def _distances(
    w: np.ndarray, u: np.ndarray, gap: float, others: Sequence[OtherRow | Span], budget: float
) -> list[tuple[float, float]]:
    """How far a row is from everything that is right, and how far it may be."""
    pairs = []
    if gap > 2 * budget:  # else errors of this size exchange the components, and a span says which of them
        rows = [u, *(other.row for other in others if isinstance(other, OtherRow))]
        pairs += [(float(np.linalg.norm(w - row)), budget * (1 + 2 / gap)) for row in rows]
    for span in (other for other in others if isinstance(other, Span) and other.gap > 2 * budget):
        if span.toward is None or w @ span.toward >= -2 * budget:
            outside = w - (span.basis @ w) @ span.basis
            pairs.append((float(np.linalg.norm(outside)), budget * (1 + 2 / span.gap)))
    return pairs


def _wrong_length(w: np.ndarray, budget: float) -> str:
    length = float(np.linalg.norm(w))
    return "" if abs(length - 1) <= budget else f"its length is {length:.6g}; eq. (5) gives a unit vector"


def _wrong_direction(w: np.ndarray, u: np.ndarray, gap: float, D: np.ndarray, budget: float) -> str:
    """What to say of a row that is near nothing right: is it another direction, or the other sign?"""
    along, best = ((D - D.mean(0)) @ direction for direction in (w, u))
    explained, cosine = float(along @ along / (best @ best)), float(w @ u)
    if explained < 1 - 2 * budget:
        share = f"the direction explains {explained:.4f} of what the first component does"
        return f"{share}; centred PCA of the shifts is expected"
    if np.linalg.norm(w + u) > budget * (1 + 2 / max(gap, budget)):
        return f"cosine with the component {cosine:.6f}; expected 1"
    if float(u @ D.mean(0)) > 0:
        return "the sign is turned round; the component points along the mean shift of the examples"
    return "the sign is turned round; of the two, the dialect's sign rule takes the other"


def _judge_generation(got: Values, right: Right, budget: float, error: float) -> Verdict:
    if error > budget:
        of = "logits for the given continuation"
        return Verdict(False, error, f"{of}: relative error {error:.1e}, allowed {budget:.1e}")
    for row, margins in enumerate(right.margins.get("tokens", ())):
        for step, margin in enumerate(margins):
            token, expected = int(got["tokens"][row][step]), int(right.out["tokens"][row][step])
            if token == expected:
                continue
            if margin < 2 * budget:
                break  # from here on both continuations are right
            return Verdict(False, 1.0, f"row {row}, step {step}: token {token}; expected {expected}")
    return Verdict(True, error)


def _judge_beams(got: Values, right: Right, budget: float, error: float) -> Verdict:
    if error > budget:
        return Verdict(False, error, f"log_p of the best beam: relative error {error:.1e}, allowed {budget:.1e}")
    for row, margin in enumerate(right.margins.get("beams", ())):
        given_ids, expected = (np.asarray(values["tokens"][row]).astype(int).tolist() for values in (got, right.out))
        if given_ids != expected and margin >= 2 * budget:  # else another beam may be the best one in this dtype
            return Verdict(False, 1.0, f"row {row}: the best beam says {given_ids}; expected {expected}")
    return Verdict(True, error)


def _judge_lists(stage: str, got: Values, want: Values) -> Verdict:
    for name in OUTPUTS[stage]:
        if list(got[name]) != list(want[name]):
            return Verdict(False, 1.0, f"{name} is {list(got[name])}; expected {list(want[name])}")
    return Verdict(True, 0.0)


def _relative(got: np.ndarray, want: np.ndarray, scale: float) -> float:
    worst = float(np.abs(got - want).max(initial=0.0))
    return worst / scale if scale else (0.0 if worst == 0 else float("inf"))


def _worst_row(got: np.ndarray, want: np.ndarray) -> float:
    """The worst relative L2 error of a row; where the oracle's row is zero it must be exactly zero."""
    errors = np.linalg.norm(got - want, axis=-1).ravel()
    lengths = np.linalg.norm(want, axis=-1).ravel()
    return max((_one(e, n) for e, n in zip(errors, lengths, strict=True)), default=0.0)


def _one(error: float, length: float) -> float:
    return float(error / length) if length else (0.0 if error == 0 else float("inf"))
