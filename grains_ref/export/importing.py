"""Vectors for this package out of another tool's file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from grains_ref.export.target import Directions
from grains_ref.vectors import Header, MismatchError, SteeringVectors, library_versions

DIALECT = "imported"
UNKNOWN = "unknown"


def imported(
    directions: Directions,
    *,
    target: str,
    file_digest: str,
    n_layers: int,
    width: int,
    model_name: str,
    fingerprint: str,
    lam: float | None = None,
    force: bool = False,
) -> SteeringVectors:
    """Steering vectors for a model; blocks that the file does not have get a zero vector, which steers nothing.

    A file of `grains-ref export` brings its header along: data, tokens, settings, and the strength.  Of another file
    nothing is known but its digest.  v_pos and v_neg are in no other tool's file: v_pos is v, and v_neg zero.

    Args:
        directions: what a target's `read` gave.
        target: its name.
        file_digest: of the file.
        n_layers: decoder blocks of the model.
        width: of the model's hidden states.
        model_name: of the model.
        fingerprint: of the model, compared with the header's if there is one.
        lam: the strength to store; default the file's.
        force: accept another fingerprint.

    Raises:
        MismatchError: the model has fewer blocks, another width, or another fingerprint without `force`.
        VectorError: a strength that is not finite.
    """
    if width != directions.width or directions.blocks[-1] >= n_layers:
        raise MismatchError(
            f"the file has vectors of width {directions.width} for blocks up to {directions.blocks[-1]}; the model "
            f"{model_name!r} has {n_layers} blocks (0 to {n_layers - 1}) of width {width}. Name the model they are for."
        )
    old = directions.header
    if old and old.fingerprint != fingerprint and not force:
        raise MismatchError(
            f"the vectors were made with {old.model_name!r}, fingerprint {old.fingerprint!r}; the model "
            f"{model_name!r} has {fingerprint!r}: other weights. If that is meant, pass --force (force=True in Python)."
        )
    v = torch.zeros(n_layers, width)
    for block, vector in directions.by_block.items():
        v[block] = vector
    strength = directions.lam if lam is None else lam
    header = Header(
        dialect=DIALECT,
        hyper_parameters={
            "imported_from": target,
            "file_sha256": file_digest,
            "blocks": directions.blocks,
            "exported": old.hyper_parameters if old else {},
        },
        model_name=model_name,
        fingerprint=fingerprint,
        data_digest=old.data_digest if old else UNKNOWN,
        tokens_digest=old.tokens_digest if old else UNKNOWN,
        origin=old.origin if old else {},
        chat_template=old.chat_template if old else "",
        date=old.date if old else "",
        n_examples=old.n_examples if old else 0,
        versions=library_versions(),
        diagnostics={},
        choice=_choice(old, strength, directions.blocks),
    )
    return SteeringVectors(v=v, v_pos=v.clone(), v_neg=torch.zeros_like(v), header=header)


def _choice(old: Header | None, lam: float | None, blocks: Sequence[int]) -> dict[str, Any]:
    """What a sweep found is told only of the strength and blocks that it chose."""
    if lam is None:
        return {}
    if old and old.choice.get("lam") == lam and old.choice.get("layers") == list(blocks):
        return old.choice
    return {"lam": lam, "layers": list(blocks)}
