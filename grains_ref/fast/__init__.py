"""The reference again, packed and batched; checked by the conformance kit as any port is.

| file | holds |
|---|---|
| `attribution` | eq. (1), (2): the points of several examples in one pass, both responses behind one prompt |
| `contrast` | eq. (3), (4): the masked versions of several prompts in one pass |
| `aggregation` | eq. (5), (6) by the Gram matrix |
| `rows` | what goes through a model together |
| `memory` | how much of it, measured; and what is done when it does not fit |
| `engines` | this engine and the reference behind one interface |
| `steering` | eq. (7), (8) with vectors and strengths on the device, also row by row |
| `kernels`, `fused` | the edit of `steering` in plain torch and in one kernel |
"""

from grains_ref.fast.aggregation import aggregate, vectors
from grains_ref.fast.attribution import attribute
from grains_ref.fast.engines import ENGINES, Engine, EngineName, Fast, Reference, engine_of, fit, steering_by
from grains_ref.fast.memory import DEFAULT_SHARE, Memory
from grains_ref.fast.rows import batches
from grains_ref.fast.steering import RowSteering, Steering

__all__ = [
    "DEFAULT_SHARE",
    "ENGINES",
    "Engine",
    "EngineName",
    "Fast",
    "Memory",
    "Reference",
    "RowSteering",
    "Steering",
    "aggregate",
    "attribute",
    "batches",
    "engine_of",
    "fit",
    "steering_by",
    "vectors",
]
