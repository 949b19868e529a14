r"""ICT (arXiv 2411.15268): heads that tell a clean picture from a noised one are shifted toward the clean picture.

    trust = fit(model, pairs, boxes=boxes_in_file("pairs.jsonl"))
    with trust.steering(model, heads=64, alpha=8, beta=8):
        ...

Every pair is read three times with the same text, prompt and chosen answer: with its picture, with the whole picture
noised (image level), and with one object noised (object level). Per level, directions and probes are those of ITI:

    a += alpha * sigma_image * theta_image + beta * sigma_object * theta_object      each at its own best heads

Where the object is comes from the data, from any function, or from a detector of transformers; without boxes only the
image level is fitted, and the settings are named "ICT (image level)".
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

from grains_ref.data import PreferencePair, read_column
from grains_ref.data.images import read_picture
from grains_ref.grains import finite_number
from grains_ref.methods.core import (
    Edit,
    Positions,
    Setting,
    capture,
    check_pairs,
    edit_pixels,
    n_heads,
    whole_number,
)
from grains_ref.methods.iti import (
    ProbedHeads,
    class_directions,
    head_counts,
    logistic_probe,
    rank_heads,
    score_heads,
    shift_heads,
    split_questions,
    spread_along,
)
from grains_ref.models import HuggingFaceModel
from grains_ref.models.families import Picture

Level = Literal["image", "object"]
Box: TypeAlias = Sequence[float]  # left, top, right, bottom in pixels of the upright picture
Boxes: TypeAlias = Callable[[PreferencePair], Sequence[Box]]  # where the object is; nothing if it is not found

ALPHAS = (2.0, 4.0, 8.0, 12.0)  # published: 8
HEADS = (32, 64, 128, 256)  # published: 128, and 256 of 4096 narrower slices
NOISE_STEPS = 1000


@dataclass(frozen=True)
class TrustedHeads:
    """Heads and directions of each level; `object` is missing if the pairs came without boxes.

    n_pairs: how many pairs each level was fitted on.
    """

    levels: Mapping[Level, ProbedHeads]
    n_pairs: Mapping[Level, int]
    halve_overlap: bool

    def steering(
        self,
        model: HuggingFaceModel,
        *,
        heads: int,
        alpha: float,
        beta: float,
        positions: Positions = "after_prompt",
    ) -> Edit:
        """Shift the best `heads` heads of each level: image level by alpha, object level by beta.

        From the prompt's last token on, at the input of the output projection.

        Raises:
            TypeError: a strength is no number, heads no whole number.
            ValueError: a strength is not finite; beta is not 0 but there is no object level; see `ProbedHeads.shift`,
                `shift_heads` and `Edit`.
        """
        alpha, beta = finite_number("alpha", alpha), finite_number("beta", beta)
        if beta and "object" not in self.levels:
            raise ValueError(f"beta = {beta}, but ICT was fitted without boxes; fit with boxes, or steer with beta=0")
        strengths: dict[Level, float] = {"image": alpha, "object": beta}
        parts = [strengths[level] * probed.shift(heads) for level, probed in self.levels.items()]
        shift = torch.stack(parts).sum(0)
        if self.halve_overlap:
            chosen = [set(probed.ranking[:heads]) for probed in self.levels.values()]
            for block, head in set.intersection(*chosen) if len(chosen) > 1 else ():
                shift[block, head] /= 2
        return shift_heads(model, shift, positions=positions)

    def settings(self, model: HuggingFaceModel) -> list[Setting]:
        """The search grid with alpha = beta, by alpha and number of heads."""
        has_objects = "object" in self.levels
        name = "ICT" if has_objects else "ICT (image level)"
        counts = head_counts(len(self.levels["image"].ranking), HEADS)
        return [
            Setting(
                f"{name}, heads {heads}",
                alpha,
                partial(self.steering, model, heads=heads, alpha=alpha, beta=alpha if has_objects else 0.0),
            )
            for alpha in ALPHAS
            for heads in counts
        ]


def fit(
    model: HuggingFaceModel,
    pairs: Sequence[PreferencePair],
    *,
    boxes: Boxes | None = None,
    noise_step: int = 500,
    halve_overlap: bool = False,
    seed: int = 0,
) -> TrustedHeads:
    """Directions from noised to clean pictures, and the heads whose probes tell the two apart.

    theta = n(mean over clean - mean over noised); sigma is the population standard deviation of projections on theta
    over both; heads are ranked by logistic probes in two folds of whole pairs.

    Args:
        model: a vision-language model.
        pairs: each with a picture.
        boxes: where each pair's object is; a pair without boxes is left out of the object level only.
        noise_step: how far along the noise schedule, from 0 to 999; see `noise_weights`.
        halve_overlap: a head that both levels chose gets half of each shift, as in one of the authors' scripts.
        seed: of the noise, which belongs to the picture, and of the folds.

    Convention: noise is put on the processed pixels. What is read is each head's output at the last token of prompt
      and chosen answer, at the input of the output projection; the authors' scripts read slices of its output.

    Raises:
        ValueError: a text model, a pair without a picture, fewer than two pairs (at either level), a box that is none.
        DegenerateShiftsError: noise changes no head.
        FloatingPointError: an activation is not finite.
        ImportError: the probes need scikit-learn.
    """
    check_pairs(pairs, least=2)
    others = [pair for pair in pairs if len(pair.images) != 1]
    if others:
        raise ValueError(
            f"{len(others)} pairs have no picture or several, the first is {others[0].where} with "
            f"{len(others[0].images)}; ICT compares one picture with a degraded one"
        )
    weights = noise_weights(noise_step)
    boxes_of = [list(boxes(pair)) if boxes else [] for pair in pairs]
    seen = [i for i, boxes_of_pair in enumerate(boxes_of) if boxes_of_pair]
    if boxes and len(seen) < 2:
        raise ValueError(f"boxes were found in {len(seen)} of {len(pairs)} pictures; the object level needs two")
    clean = torch.stack([_read(model, pair, _unchanged) for pair in pairs])
    noised = [_read(model, pair, _noise(model, pair, weights, seed=seed)) for pair in pairs]
    levels: dict[Level, ProbedHeads] = {"image": _probe("ICT, image", clean, noised, seed=seed)}
    n_pairs: dict[Level, int] = {"image": len(pairs)}
    if seen:
        inside = {i: pixels_inside(model, pairs[i], boxes_of[i]) for i in seen}
        changes = [_noise(model, pairs[i], weights, seed=seed, where=inside[i]) for i in seen]
        noised = [_read(model, pairs[i], change) for i, change in zip(seen, changes, strict=True)]
        levels["object"] = _probe("ICT, object", clean[seen], noised, seed=seed)
        n_pairs["object"] = len(seen)
    return TrustedHeads(levels, n_pairs, halve_overlap)


def _read(model: HuggingFaceModel, pair: PreferencePair, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Heads' outputs at the last token with changed pixels, (L, K, d_h) in float64."""
    with edit_pixels(model, change):
        states = capture(model, [(pair.prompt, pair.chosen, pair.image)], site="heads")
    return states[0, :, 0].double().unflatten(-1, (n_heads(model), -1))


def _probe(name: str, trusted: Tensor, untrusted: Sequence[Tensor], *, seed: int) -> ProbedHeads:
    """Directions, spreads and ranking of one level; both (n, L, K, d_h), pair by pair."""
    n = len(trusted)
    states = torch.cat([trusted, torch.stack(list(untrusted))])
    theta = class_directions(states[:n], states[n:])
    accuracy, loss = score_heads(
        states,
        torch.arange(2 * n) < n,
        torch.arange(n).repeat(2),
        splits=split_questions(n, folds=2, seed=seed),
        probe=logistic_probe,
    )
    return ProbedHeads(name, theta, spread_along(theta, states), accuracy, rank_heads(accuracy, loss))


# --------------------------------------------------------------------------------------------- noise
def noise_weights(step: int) -> tuple[float, float]:
    r"""Weights of picture and noise after `step` steps of forward diffusion: sqrt(abar), sqrt(1 - abar).

    abar = product over j = 0 ... step of (1 - b_j), b_j = 1e-5 + (5e-3 - 1e-5) * sigmoid(s_j), with 1000 s_j equally
    spaced from -6 to 6: the schedule of visual contrastive decoding (arXiv 2311.16922). Step 500: 0.863 and 0.505.

    Raises:
        ValueError: the step is not from 0 to 999.
    """
    if not 0 <= whole_number("noise step", step, least=-NOISE_STEPS) < NOISE_STEPS:
        raise ValueError(f"noise step {step} does not exist; the schedule has steps 0 to {NOISE_STEPS - 1}")
    s = torch.linspace(-6, 6, NOISE_STEPS, dtype=torch.float64)
    b = 1e-5 + (5e-3 - 1e-5) * s.sigmoid()
    abar = (1 - b[: step + 1]).prod().item()
    return math.sqrt(abar), math.sqrt(1 - abar)


def _unchanged(pixels: Tensor) -> Tensor:
    return pixels


def _noise(
    model: HuggingFaceModel,
    pair: PreferencePair,
    weights: tuple[float, float],
    *,
    seed: int,
    where: Tensor | None = None,
) -> Callable[[Tensor], Tensor]:
    """The change of a picture's processed pixels at the tower: noise everywhere, or `where` it is said to be."""
    digest = Picture.of(pair.images[0]).digest
    layout = model.family.pixel_layout
    signal, noise = weights

    def change(pixels: Tensor) -> Tensor:
        # Drawn on the CPU from the picture's digest: the same noise on every device, whatever came before.
        generator = torch.Generator().manual_seed(int(digest[:12], 16) ^ seed)
        degraded = signal * pixels + noise * layout.noise(pixels.shape, generator).to(pixels)
        return degraded if where is None else torch.where(where.to(pixels.device), degraded, pixels)

    return change


# --------------------------------------------------------------------------------------------- boxes
def pixels_inside(model: HuggingFaceModel, pair: PreferencePair, boxes: Sequence[Box]) -> Tensor:
    """Which processed pixels lie inside one of the boxes, as the vision tower takes pixels (`PixelLayout`); bool.

    A white-on-black drawing of the boxes goes through the model's own processor; what comes out nearer to white than
    to black is inside. Where black and white come out alike (padding), nothing is.

    Raises:
        ValueError: a box is not (left, top, right, bottom) in pixels, or covers none of the picture's.
    """
    size = read_picture(pair.images[0]).size
    drawing = Image.new("RGB", size)
    for box in boxes:
        drawing.paste((255, 255, 255), whole_pixels(box, size, str(pair.where)))

    def pixels_of(picture: Image.Image) -> Tensor:
        tensors = model.family.tensors([Picture.of(picture)])
        return model.family.pixel_layout.at_tower(tensors["pixel_values"])

    low, high = pixels_of(Image.new("RGB", size)), pixels_of(Image.new("RGB", size, "white"))
    return pixels_of(drawing) - low > 0.5 * (high - low)


def whole_pixels(box: Box, size: tuple[int, int], where: str) -> tuple[int, int, int, int]:
    """The box in whole pixels of the picture, rounded outwards and cut at the picture's edge; `where` for messages.

    Raises:
        ValueError: it is not (left, top, right, bottom) in pixels, or covers none of the picture's.
    """
    width, height = size
    if len(box) != 4 or not np.isfinite(np.array(box, dtype=float)).all():
        raise ValueError(f"{where}: expected a box (left, top, right, bottom), found {list(box)}")
    left, top, right, bottom = box
    if right - left < 1 or bottom - top < 1 or right <= 0 or bottom <= 0 or left >= width or top >= height:
        raise ValueError(
            f"{where}: box {list(box)} covers no pixel of the picture of {width} x {height} pixels; expected "
            "(left, top, right, bottom) in pixels, not (left, top, width, height) and not shares of the picture"
        )
    return max(0, int(left)), max(0, int(top)), min(width, math.ceil(right)), min(height, math.ceil(bottom))


def boxes_in_file(path: str | os.PathLike[str], *, ignore: Collection[str] = ()) -> Boxes:
    """Boxes from the field `boxes` of the pairs' own file: a list of [left, top, right, bottom] in pixels.

    A row without the field has no boxes. Rows belong to pairs by the ids that `grains_ref.data.read_pairs` gives them,
    with the same columns to `ignore`.

    Raises:
        ValueError: `boxes` is not a list of lists, or the file cannot be read (see `read_pairs`); later, when asked
            about a pair that is not in the file.
    """
    boxes_of: dict[str, list[Box]] = {}
    for pair, value in read_column(path, "boxes", ignore=ignore):
        of_row = value or []
        if not isinstance(of_row, list) or not all(isinstance(box, list) for box in of_row):
            raise pair.error("boxes", f"must be a list of [left, top, right, bottom]; found {of_row!r}"[:200])
        boxes_of[pair.id] = of_row

    def boxes(pair: PreferencePair) -> Sequence[Box]:
        if pair.id not in boxes_of:
            raise ValueError(f"{path} has no row {pair.id!r} ({pair.where}); give the file that the pairs came from")
        return boxes_of[pair.id]

    return boxes


def object_in_question(pair: PreferencePair) -> str:
    """The object that a yes/no question asks about: "Is there a red car in the image?" gives "red car".

    Raises:
        ValueError: the prompt asks nothing of the kind.
    """
    prompt = pair.prompt if isinstance(pair.prompt, str) else pair.prompt[-1]["content"]
    asked = re.search(r"\b(?:is|are) there (?:an? |the |any )?(.+?)(?: in (?:the|this)\b.*)? *\?", prompt, re.I)
    if not asked:
        raise ValueError(f"{pair.where}: no 'is there ... ?' in {prompt!r}; say what to look for with phrase=")
    return asked[1]


def detector(
    path_or_hub_id: str | os.PathLike[str],
    *,
    phrase: Callable[[PreferencePair], str] = object_in_question,
    threshold: float = 0.3,
    device: str | torch.device = "cpu",
) -> Boxes:
    """Boxes found by a zero-shot object detector of transformers (Grounding DINO, OWL-ViT, OWLv2) for a phrase.

    phrase: what to look for.  threshold: the score from which a box counts; neither the paper nor its code names one.

    Convention: the authors used Grounding DINO, which expects lower case and a full stop behind the phrase; the other
      detectors get the phrase as it is.

    Raises:
        OSError: no model was found there.
        ValueError: the model is no zero-shot object detector.
    """
    name = str(path_or_hub_id)
    find: Any = transformers.pipeline("zero-shot-object-detection", model=name, device=device)
    grounding = "grounding-dino" in find.model.config.model_type

    def boxes(pair: PreferencePair) -> Sequence[Box]:
        text = phrase(pair)
        detections = find(
            read_picture(pair.images[0]),
            candidate_labels=[text.lower().rstrip(".") + "." if grounding else text],
            threshold=threshold,
        )
        return [tuple(detection["box"][edge] for edge in ("xmin", "ymin", "xmax", "ymax")) for detection in detections]

    return boxes
