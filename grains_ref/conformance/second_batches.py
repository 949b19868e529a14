"""The second oracle's batches: row by row, each as if it were alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from grains_ref.conformance.second_decoder import embed
from grains_ref.conformance.second_oracle import attribution, contrast, objective


def objective_batch(
    *, x: Any, attention_mask: Any, y_pos: Any, seen_pos: Any, y_neg: Any, seen_neg: Any, dtype: str
) -> dict[str, Any]:
    """Row by row, what is seen of the responses."""
    same_length(x, attention_mask, y_pos, seen_pos, y_neg, seen_neg)
    columns: dict[str, list[float]] = {"log_p_pos": [], "log_p_neg": [], "f": []}
    for row in range(len(x)):
        out = objective(
            x=x[row],
            attention_mask=attention_mask[row],
            y_pos=_said(y_pos[row], seen_pos[row]),
            y_neg=_said(y_neg[row], seen_neg[row]),
            dtype=dtype,
        )
        for name, values in columns.items():
            values.append(out[name])
    return {name: np.array(values) for name, values in columns.items()}


def _said(y: Any, seen: Any) -> np.ndarray:
    """A response without its padding, which is on the right."""
    if np.shape(y) != np.shape(seen):
        raise ValueError(f"a response of shape {np.shape(y)} cannot be seen as {np.shape(seen)} says")
    n = int(np.sum(seen))
    if n == 0 or list(seen) != [1] * n + [0] * (len(seen) - n):
        raise ValueError(f"a response is seen as {list(seen)}; expected at least one 1, then 0s")
    embed(y, "float64")  # refuses what is outside the vocabulary, the padding too
    return np.asarray(y)[:n]


def same_length(*arrays: Any) -> None:
    """Refuse arrays of different lengths."""
    if len({len(array) for array in arrays}) > 1:
        raise ValueError(f"batches of different sizes: {[len(array) for array in arrays]}")


def attribution_batch(
    *,
    x: Any,
    baseline: Any,
    attention_mask: Any,
    y_pos: Any,
    seen_pos: Any,
    y_neg: Any,
    seen_neg: Any,
    m: int,
    quadrature: str,
    dtype: str,
) -> dict[str, Any]:
    """Row by row."""
    same_length(x, baseline, attention_mask, y_pos, seen_pos, y_neg, seen_neg)
    rows = []
    for row in range(len(x)):
        out = attribution(
            x=x[row],
            baseline=baseline[row],
            attention_mask=attention_mask[row],
            y_pos=_said(y_pos[row], seen_pos[row]),
            y_neg=_said(y_neg[row], seen_neg[row]),
            m=m,
            quadrature=quadrature,
            dtype=dtype,
        )
        rows.append(out["a"])
    return {"a": np.array(rows)}


def contrast_batch(
    *, x: Any, baseline: Any, attention_mask: Any, in_pos: Any, in_neg: Any, dtype: str
) -> dict[str, Any]:
    """Row by row."""
    same_length(x, baseline, attention_mask, in_pos, in_neg)
    shifts: dict[str, list[np.ndarray]] = {"delta_pos": [], "delta_neg": []}
    for row in range(len(x)):
        sets = {}
        for side, members in (("pos", in_pos[row]), ("neg", in_neg[row])):
            if len(members) != len(x[row]) or not set(np.asarray(members).tolist()) <= {0, 1}:
                raise ValueError(f"in_{side} must be 0 or 1 for each of {len(x[row])} tokens")
            sets[side] = [j for j, chosen in enumerate(members) if chosen]
        out = contrast(x=x[row], baseline=baseline[row], attention_mask=attention_mask[row], **sets, dtype=dtype)
        for name, side_shifts in shifts.items():
            side_shifts.append(out[name])
    return {name: np.array(rows) for name, rows in shifts.items()}
