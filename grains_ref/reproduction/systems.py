"""The systems that the paper and its readers name as neighbours: the rows of the question `systems`, by world.

A system's row is added to `TEXT`, to `VISUAL` or to both, and nowhere else: the tables, the order of the cells and the
command follow.  A row is what it is everywhere (`grains_ref.demo.rows`): settings, gentlest first, of which the rule of
every row chooses one on dev.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from grains_ref.demo.lab import Lab
from grains_ref.demo.rows import Draws, Row
from grains_ref.methods import corr_steer, mat_steer, nullu
from grains_ref.reproduction import decoding_rows


def _fitted(method: Any, **options: Any) -> Row:
    """A method fitted on the steering pairs, with its declared grid."""

    def row(lab: Lab) -> Draws:
        return [method.fit(lab.model, lab.steer, **options).settings(lab.model)]

    return row


def _corr_steer_trained(answers: corr_steer.Answers) -> Row:
    """CorrSteer with autoencoders that are trained on the steering pairs; once for all rows of a model."""

    def row(lab: Lab) -> Draws:
        features = lab.once("CorrSteer's autoencoders", lambda: corr_steer.trained(lab.model, lab.steer))
        fitted = corr_steer.fit(lab.model, lab.steer, features=features, answers=answers)
        fitted = replace(fitted, name=fitted.name.replace("autoencoder", "trained"))
        return [fitted.settings(lab.model)]

    return row


STEERING: dict[str, Row] = {  # in worlds of both kinds
    "MAT-Steer": _fitted(mat_steer),
    "MAT-Steer, as its code has it": _fitted(mat_steer, options=mat_steer.CODE),
    "Nullu": _fitted(nullu),
    "Nullu, last token": _fitted(nullu, read="last"),
    "CorrSteer, raw activations": _fitted(corr_steer),
    "CorrSteer, trained autoencoder": _corr_steer_trained("pairs"),
    "CorrSteer, trained autoencoder, own answers": _corr_steer_trained("greedy"),
}

TEXT: dict[str, Row] = {**STEERING}
VISUAL: dict[str, Row] = {**STEERING}

BESIDE = {  # what stands in the tables beside the systems
    "Unsteered": "unsteered",
    "GrAInS, the paper's setting": "GrAInS",
    "CAA": "CAA",
    "ICV": "ICV",
}


def table_rows(*, is_visual: bool) -> dict[str, str]:
    """What the page calls a row -> the row; in the visual worlds the decoding methods stand beside them, each alone."""
    if not is_visual:
        return BESIDE | {name: name for name in TEXT}
    alone = [name for name in decoding_rows.ROWS if not name.startswith("GrAInS")]
    return BESIDE | {name: name for name in (*VISUAL, *alone)}
