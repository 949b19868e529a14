"""Planted bugs of all options, and of the cases of stages that came with them.

As in the other files a bug is the correct computation with one argument exchanged; nothing here calls the options'
oracle.

| file | holds |
|---|---|
| `option_decoders` | features of decoders |
| `option_attribution` | gradients, noise, likelihood, pictures, baselines |
| `option_vectors` | batches, eligible tokens, other aggregations |
| `option_generation` | some blocks, tuples, ends, beams |
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from grains_ref.conformance.bugs import option_attribution, option_decoders, option_generation, option_vectors
from grains_ref.conformance.bugs.aggregation import aggregation_with, centred, svd, toward
from grains_ref.conformance.bugs.common import Bug, Row, bugs_of
from grains_ref.conformance.bugs.option_decoders import Decoder, Heads, Part, plain_heads
from grains_ref.conformance.stages import Stage


def positions_in_bfloat16(part: Part, x: Tensor, positions: Tensor) -> Heads:
    """bfloat16 has eight bits: it cannot count beyond 256."""
    return plain_heads(part, x, positions.bfloat16())


BLURRED = Decoder(heads=positions_in_bfloat16)


def sketch(D: np.ndarray) -> np.ndarray:
    """scikit-learn's randomised solver: eleven random directions, seven power iterations."""
    shifts = centred(D)
    basis = np.random.default_rng(0).normal(size=(shifts.shape[1], 11))
    for _ in range(7):
        basis = np.linalg.qr(shifts.T @ np.linalg.qr(shifts @ basis)[0])[0]
    return toward((svd(shifts @ basis)[2] @ basis.T)[0], D.mean(0))


OF_STAGES: dict[str, tuple[Row, ...]] = {
    "objective": (
        ("positions_in_bfloat16", "rotary positions counted in bfloat16", "Beyond position 256 neighbours coincide",
         "field", BLURRED.scored),
    ),
    "aggregation": (
        ("randomised_solver", "scikit-learn's randomised solver, its default for wide states",
         "With a flat spectrum another direction, and another one at every call", "released code, row 13",
         aggregation_with(sketch)),
    ),
}  # fmt: skip
"""Bugs of the seven stages that the cases beside the options catch."""

ROWS: dict[str, tuple[Row, ...]] = {
    "objective_batch": option_vectors.OBJECTIVE_BATCH,
    "objective_qk_norm": option_decoders.QK_NORM,
    "objective_biases": option_decoders.BIASES,
    "objective_sliding_window": option_decoders.WINDOW,
    "objective_soft_caps": option_decoders.CAPS,
    "objective_scaled_embeddings": option_decoders.SCALED,
    "attribution_gradient": option_attribution.GRADIENT,
    "attribution_smoothgrad": option_attribution.SMOOTHGRAD,
    "attribution_random": option_attribution.RANDOM,
    "attribution_likelihood": option_attribution.LIKELIHOOD,
    "attribution_batch": option_vectors.ATTRIBUTION_BATCH,
    "attribution_pictures": option_attribution.PICTURES,
    "attribution_baselines": option_attribution.BASELINES,
    "selection_eligible": option_vectors.ELIGIBLE,
    "contrast_batch": option_vectors.CONTRAST_BATCH,
    "aggregation_uncentred": option_vectors.UNCENTRED,
    "aggregation_mean": option_vectors.MEAN,
    "aggregation_weighted_mean": option_vectors.WEIGHTED,
    "aggregation_components": option_vectors.COMPONENTS,
    "generation_partial": option_generation.PARTIAL,
    "generation_tuples": option_generation.TUPLES,
    "generation_end": option_generation.END,
    "generation_beams": option_generation.BEAMS,
}
BUGS: tuple[Bug, ...] = tuple(
    bug for table in (OF_STAGES, ROWS) for stage, rows in table.items() for bug in bugs_of(stage, rows)
)
WITHOUT_BUG: dict[str, Stage] = {
    **option_decoders.WITHOUT_BUG,
    **option_attribution.WITHOUT_BUG,
    **option_vectors.WITHOUT_BUG,
    **option_generation.WITHOUT_BUG,
}
"""The options with nothing exchanged."""
