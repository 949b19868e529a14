"""The dialect `authors` as a port: `grains_ref.authors` on the toy decoder, as the released code computes.

Under `--dialect authors` it passes; under `paper`, the kit's law, it fails at every stage, each deviation named by its
planted bug (tests/reference/test_authors.py).
"""

from grains_ref.conformance.authors.stages import (
    aggregation,
    attribution,
    contrast_,
    generation,
    objective,
    selection,
    steering,
)

NAME = "released code"
DTYPES = ("float64", "float32")
contrast = contrast_

__all__ = ["aggregation", "attribution", "contrast", "generation", "objective", "selection", "steering"]
