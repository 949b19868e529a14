"""Principal components that nothing defines: which rows of an aggregation are right, and which of them is stored.

A component may be ill-posed in two ways, each layer and side by itself. Both are decided by the shifts, never by the
last bits of a linear algebra library.

- **The sign**: what the dialect's rule rests on is a tie. Then u and -u are right (`OtherRow`).
- **The direction**: the first r eigenvalues are equal, exactly or nearly. Then every unit vector of their span is right
  (`Span`), once the allowed relative error is half as large as what separates each from the next. In `paper` it must
  point along the mean shift; the largest entry of `authors` says nothing in such a span.

**Canonical form**: a library returns any of these. What is stored is one of them, the same on every machine:

- of a span of equal eigenvalues, in `paper` the mean shift projected on it, to unit length; in `authors`, and where the
  mean has no part in it, the first vector of the span's canonical basis;
- of a sign that nothing defines, the one with a positive leading entry. The leading entry is the first whose absolute
  value is at least half of the largest;
- the canonical basis of a span: the span's projection of the coordinate axis that leads (the first whose projection is
  at least half as long as the longest), to unit length; then the same of what is at right angles to it, and so on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from grains_ref.conformance.stages import Values

WELL_SEPARATED = 0.05  # relative gap of the first two eigenvalues below which no case counts as well-posed
SIGN_DEFINED = 1e-3  # margin of a sign below which it counts as ill-defined
SAME = 1e-9  # relative gap below which float64 does not tell two eigenvalues apart to the digits that are compared
SIDES = ("pos", "neg")


@dataclass(frozen=True)
class OtherRow:
    """A row of one output and layer that is as right as the stored one, once relative errors of `begins` are allowed.

    row: (d,).
    """

    of: str
    layer: int
    row: np.ndarray
    begins: float
    why: str


@dataclass(frozen=True)
class Span:
    """A span every unit vector of which is right for one output and layer, once errors of `begins` are allowed.

    basis: (r, d), orthonormal.  toward: (d,), with which a right vector has no negative product, or None.
    gap: of the last eigenvalue inside and the first one outside, as a share of the largest.
    """

    of: str
    layer: int
    basis: np.ndarray
    toward: np.ndarray | None
    gap: float
    begins: float
    why: str


@dataclass(frozen=True)
class Spectrum:
    """The centred shifts D (N, d) of one side and layer, decomposed.

    mean: (d,).  gaps: 1 - eigenvalue over the largest, first to last.
    components: (r, d), one per gap.
    """

    mean: np.ndarray
    gaps: np.ndarray
    components: np.ndarray

    def separation(self, r: int) -> float:
        """Of the r-th eigenvalue and the next, counted from 1, as a share of the largest."""
        following = self.gaps[r] if r < len(self.gaps) else 1.0
        return rounded(following - self.gaps[r - 1])

    def equal(self) -> int:
        """How many of the first eigenvalues are one for float64."""
        return int((self.gaps < SAME).sum())


def spectra(inputs: Mapping[str, Any], side: str) -> list[Spectrum]:
    """One per layer; side: pos or neg."""
    per_layer = []
    for D in np.asarray(inputs[f"delta_{side}"], float).swapaxes(0, 1):
        mean = D.mean(0)
        _, s, components = np.linalg.svd(D - mean, full_matrices=False)
        gaps = np.array([rounded(gap) for gap in 1 - (s / s[0]) ** 2])
        per_layer.append(Spectrum(mean, gaps, components))
    return per_layer


def rounded(margin: float) -> float:
    """A margin to 12 decimals and 6 digits: rounding errors are no margin, and differ from machine to machine."""
    return float(f"{round(float(margin), 12):.6g}") + 0.0  # no -0


# ------------------------------------------------------------------------------------- margins
def margins_of_components(dialect: str, inputs: Mapping[str, Any], want: Values) -> dict[str, Any]:
    """`gap` and `sign` of both sides, one number per layer; `want` is the dialect's output."""
    margins = {}
    for side in SIDES:
        layers = list(zip(spectra(inputs, side), want[f"v_{side}"], strict=True))
        margins[f"gap_{side}"] = [spectrum.separation(1) for spectrum, _ in layers]
        margins[f"sign_{side}"] = [_sign_margin(dialect, spectrum.mean, u) for spectrum, u in layers]
    return margins


def _sign_margin(dialect: str, mean: np.ndarray, u: np.ndarray) -> float:
    """What the sign of u rests on."""
    if dialect == "authors":
        largest = np.abs(u).max()
        of_the_other_sign = max(0.0, (-u * np.sign(u[np.abs(u).argmax()])).max())
        return rounded(1 - of_the_other_sign / largest)
    return rounded(abs(u @ mean) / np.linalg.norm(mean))


# ------------------------------------------------------------------------------------- canonical form
def canonical_components(dialect: str, inputs: Mapping[str, Any], want: Values) -> Values:
    """The dialect's output with every ill-posed row in canonical form, and v = v_pos - v_neg of these."""
    out = {}
    for side in SIDES:
        rows = zip(spectra(inputs, side), np.asarray(want[f"v_{side}"], float), strict=True)
        out[f"v_{side}"] = np.stack([_canonical_row(dialect, spectrum, u) for spectrum, u in rows])
    return {**want, **out, "v": out["v_pos"] - out["v_neg"]}


def _canonical_row(dialect: str, spectrum: Spectrum, u: np.ndarray) -> np.ndarray:
    if (same := spectrum.equal()) > 1:
        basis = basis_of(spectrum.components[:same])
        u = basis[0] if dialect == "authors" else _along_mean(basis, spectrum.mean, otherwise=basis[0])
    if _sign_margin(dialect, spectrum.mean, u) < SIGN_DEFINED:
        u = u * np.sign(u[_leading(np.abs(u))])
    return u


def basis_of(rows: np.ndarray) -> np.ndarray:
    """The canonical orthonormal basis (r, d) of the span of orthonormal rows (r, d)."""
    projection, basis = rows.T @ rows, []
    for _ in rows:
        axis = _leading(np.sqrt(np.diag(projection).clip(0)))
        basis.append(projection[axis] / np.linalg.norm(projection[axis]))
        projection = projection - np.outer(basis[-1], basis[-1])
    return np.stack(basis)


def _leading(sizes: np.ndarray) -> int:
    """The first index whose size is at least half of the largest."""
    return int(np.flatnonzero(sizes >= sizes.max() / 2)[0])


def _along_mean(basis: np.ndarray, mean: np.ndarray, *, otherwise: Any) -> Any:
    """The mean projected on a span, to unit length; `otherwise` where the mean has no part in it."""
    part = (basis @ mean) @ basis
    length = float(np.linalg.norm(part))
    return part / length if length >= SIGN_DEFINED * np.linalg.norm(mean) else otherwise


# ------------------------------------------------------------------------------------- what else is right
def other_components(
    dialect: str, inputs: Mapping[str, Any], want: Values, margins: Mapping[str, Any], widest: float
) -> Iterator[OtherRow | Span]:
    """Rows and spans, per side and layer, that are right beside `want`; `widest` limits their `begins`."""
    for side in SIDES:
        of, rows = f"v_{side}", np.asarray(want[f"v_{side}"], float)
        for layer, spectrum in enumerate(spectra(inputs, side)):
            if margins[f"sign_{side}"][layer] < SIGN_DEFINED:
                yield OtherRow(of, layer, -rows[layer], 0.0, "nothing defines the sign")
            yield from _spans(dialect, of, layer, spectrum, widest)


def _spans(dialect: str, of: str, layer: int, spectrum: Spectrum, widest: float) -> Iterator[Span]:
    """The first r components for every r, as long as errors of `widest` exchange each with the next."""
    begins = 0.0
    for r in range(2, len(spectrum.gaps) + 1):
        begins = max(begins, spectrum.separation(r - 1) / 2)
        if begins > widest:
            return
        if spectrum.separation(r) >= SAME:  # of equal eigenvalues all or none
            basis = basis_of(spectrum.components[:r])
            toward = None if dialect == "authors" else _along_mean(basis, spectrum.mean, otherwise=None)
            why = f"the first {r} components explain as much as each other"
            yield Span(of, layer, basis, toward, spectrum.separation(r), begins, why)
