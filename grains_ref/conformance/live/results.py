"""The results of a live check in the shape of any other run of the kit: one kind of JSON and JUnit for both."""

from __future__ import annotations

import math
from collections.abc import Sequence

from grains_ref.conformance.live.judging import LiveResult
from grains_ref.conformance.runner import Result, Run
from grains_ref.conformance.stages import OUTPUTS

STAGE_OF = {
    "objective": "objective",
    "exchanged responses negate f": "objective",
    "a batch is its single rows": "objective",
    "attribution": "attribution",
    "exchanged responses negate a": "attribution",
    "only eligible tokens are selected": "selection",
    "contrast": "contrast",
    "contrast of earlier tokens": "contrast",
    "empty sets shift nothing": "contrast",
    "aggregation": "aggregation",
    "steer": "steering",
    "lam = 0 changes nothing": "steering",
    "only the product of lam and v counts": "steering",
    "norms are kept": "steering",
}
"""The stage of the method that a check is about."""


def as_run(results: Sequence[LiveResult], *, port: str, dtype: str) -> Run:
    """Every result as one of mode `live`, its case named by check, pair and seed.

    A stage counts as claimed if one of its checks was not skipped.  dtype: the model's, such as "bfloat16".
    """
    claimed = {STAGE_OF[result.check] for result in results if result.status != "skipped"}
    return Run(
        port,
        tuple(stage for stage in OUTPUTS if stage in claimed),
        (dtype,),
        tuple(_result(result, dtype) for result in results),
    )


def _result(result: LiveResult, dtype: str) -> Result:
    drawn = "" if result.seed is None else f", seed {result.seed}"
    return Result(
        case=f"{result.check}, pair {result.pair}{drawn}",
        stage=STAGE_OF[result.check],
        dtype=dtype,
        mode="live",
        status=result.status,
        error=result.error,
        budget=result.allowed if math.isfinite(result.allowed) else 0.0,
        message=result.message,
    )
