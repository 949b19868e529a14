"""Inputs that are too large to be stored: each by a rule in whole numbers that any language can follow.

**walsh** (n, layers, width, begin): shifts (n, layers, width) with a flat spectrum, whose first component is known.
With W(i, j) = (-1) ** (number of ones among the binary digits of i and j that both have), the shift of example i at
layer l has at feature j the value

    14 W(begin + l * (n + 1) + i, j) + (0 if i is even, else 2) * W(begin + l * (n + 1) + n, j)

Rows of W are at right angles to each other.  Without their mean the shifts have one eigenvalue of width * (196 + n) and
n - 2 of width * 196 each, and nothing in their shape tells a solver which is which.  The first component, along the
mean, is

    (14 * sum over i of s(i) W(begin + l * (n + 1) + i, j) + n W(begin + l * (n + 1) + n, j)) / length

where s(i) is -1 for even i, else 1.  For even n, and begin + layers * (n + 1) of at most width, a power of two.
"""

from __future__ import annotations

import numpy as np

LEVEL = 14


def by_rule(*, rule: str, n: int, layers: int, width: int, begin: int) -> np.ndarray:
    """Shifts (n, layers, width).

    Raises:
        ValueError: there is no such rule.
    """
    if rule != "walsh":
        raise ValueError(f"rule is {rule!r}; the only one is walsh")
    shifts = np.zeros((n, layers, width))
    for layer in range(layers):
        first = begin + layer * (n + 1)
        own, common = walsh(range(first, first + n), width), walsh([first + n], width)
        shifts[:, layer] = LEVEL * own + 2 * (np.arange(n) % 2)[:, None] * common
    return shifts


def first_components(*, rule: str, n: int, layers: int, width: int, begin: int) -> np.ndarray:
    """The components that the rule's shifts have by construction, (layers, width)."""
    rows = []
    for layer in range(layers):
        first = begin + layer * (n + 1)
        signs = np.where(np.arange(n) % 2, 1, -1)
        along = LEVEL * signs @ walsh(range(first, first + n), width) + n * walsh([first + n], width)[0]
        rows.append(along / np.linalg.norm(along))
    return np.stack(rows)


def walsh(rows: range | list[int], width: int) -> np.ndarray:
    """Rows of the Walsh matrix, (len(rows), width) of 1 and -1."""
    return np.array([[(-1) ** (i & j).bit_count() for j in range(width)] for i in rows])
