"""From a vectors file to the edit that it stands for: which method made it, where it is added, and at which tokens.

Every command that steers with a file goes this way, so that vectors of one site are never added at another.
"""

from __future__ import annotations

from collections.abc import Sequence

from grains_ref.fast import EngineName, steering_by
from grains_ref.grains import Hooks
from grains_ref.methods.core import site_width
from grains_ref.methods.edit_gradient import EditSite, as_positions, steer
from grains_ref.models import HuggingFaceModel
from grains_ref.vectors import MismatchError, SteeringVectors

GRAINS, EDIT_GRADIENT = "grains", "edit_gradient"  # what a header calls the methods
NAME_IN_FILE: dict[EditSite, str] = {
    "residual": "block_output",
    "attention_output": "attention_output",
    "heads": "heads",
    "mlp": "mlp",
}
SITE_OF_NAME = {name: site for site, name in NAME_IN_FILE.items()}
POSITIONS = ("all", "after_prompt")


def site_of(vectors: SteeringVectors) -> EditSite:
    """The site at which vectors are added.

    Raises:
        MismatchError: a method, site or positions that this version does not know, or that do not go together.
    """
    header = vectors.header
    site = SITE_OF_NAME.get(header.site)
    if site is None or header.method not in (GRAINS, EDIT_GRADIENT) or header.positions not in POSITIONS:
        raise MismatchError(
            f"the vectors say method {header.method!r}, site {header.site!r}, positions {header.positions!r}; this "
            "version of grains_ref cannot apply them. Were they written by a newer one?"
        )
    if header.method == GRAINS and (site, header.positions) != ("residual", "all"):
        raise MismatchError(
            f"the vectors say method {GRAINS!r}, site {header.site!r}, positions {header.positions!r}; GrAInS adds to "
            "block_output at all positions. Was the header edited by hand?"
        )
    return site


def width_at_site(model: HuggingFaceModel, vectors: SteeringVectors) -> int:
    """How wide the model is where the vectors are added; see `site_of` for what is raised."""
    return site_width(model, site_of(vectors))


def steering_of(
    model: HuggingFaceModel,
    vectors: SteeringVectors,
    *,
    lam: float,
    layers: Sequence[int] | None = None,
    engine: EngineName = "fast",
) -> Hooks:
    """The edit by lam * v at the site and the positions that the file names; check `vectors.check_fits` first.

    engine: which of the two writings of equations (7) and (8) GrAInS is added by; on a CPU they agree bit for bit.

    Raises:
        MismatchError: see `site_of`.
        ValueError: the vectors' shape, lam or layers do not fit; see `Steering` and `steer`.
    """
    site = site_of(vectors)
    if vectors.header.method == GRAINS:
        return steering_by(engine, model.blocks, vectors.v, lam=lam, layers=layers)
    positions = as_positions(vectors.header.positions)
    return steer(model, vectors.v, site=site, positions=positions, lam=lam, layers=layers)
