"""The fast engine as a port: its own attribution, the other stages from the reference.

The reference's stages are the oracle, so only attribution is put to the test.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from grains_ref import fast
from grains_ref.conformance import stages
from grains_ref.conformance.stages import Values, tensor, whole
from grains_ref.grains import preference

NAME = "fast"
DTYPES = ("float64", "float32")
AT_ONCE = 3  # no divisor of most cases' m: the last batch is a short one

aggregation, contrast, selection, steering = (
    stages.aggregation,
    stages.contrast_,
    stages.selection,
    stages.steering,
)


@stages.refusing
def attribution(
    *,
    x: np.ndarray,
    baseline: np.ndarray,
    attention_mask: np.ndarray,
    y_pos: np.ndarray,
    y_neg: np.ndarray,
    m: int,
    quadrature: Any,
    dtype: str,
) -> Values:
    """Eq. (2) on the toy decoder."""
    model = stages.toy_in(dtype)
    encoded = model.encoded(tensor(x, dtype), whole(attention_mask))
    f = functools.partial(preference, model, encoded, y_pos=whole(y_pos), y_neg=whole(y_neg))
    found = fast.integrated_gradients(
        f, encoded.embeds, tensor(baseline, dtype), m=m, quadrature=quadrature, at_once=AT_ONCE
    )
    return {"a": stages.array(found.a)}
