"""The second oracle as a port: a module with functions named like the stages is all that the kit asks for."""

from grains_ref.conformance.second_oracle import (
    DTYPES,
    NAME,
    aggregation,
    attribution,
    contrast,
    generation,
    objective,
    selection,
    steering,
)

__all__ = [
    "DTYPES",
    "NAME",
    "aggregation",
    "attribution",
    "contrast",
    "generation",
    "objective",
    "selection",
    "steering",
]
