"""Steering vectors: what they are, the file they live in, and arithmetic on them.

| file | holds |
|---|---|
| `steering_vectors` | `SteeringVectors`: equation (6) per layer, saved, loaded, added and checked against a model |
| `header` | where, how and from what vectors were made |
| `tensor_files` | tensors and a record in one safetensors file that knows whether it was changed |
"""

from grains_ref.vectors.header import Header, VectorError, library_versions
from grains_ref.vectors.steering_vectors import MismatchError, SteeringVectors, VectorFileError, check_fits, compose

__all__ = [
    "Header",
    "MismatchError",
    "SteeringVectors",
    "VectorError",
    "VectorFileError",
    "check_fits",
    "compose",
    "library_versions",
]
