r"""CRG, contrastive region guidance (arXiv 2403.02325): toward what only the region in question can have told.

    regions = regions_of(model, pairs, boxes)
    with CRG(alpha=1.0, regions=regions).steering(model):
        model.generate([pair.prompt for pair in pairs], max_new_tokens=20, images=[pair.image for pair in pairs])

    p'  ~  softmax( l(v) + alpha (l(v) - l(v')) )

v' is the picture with its region blacked out, before it is processed.  There is nothing to fit, but where the region is
has to be known of every prompt that is scored or continued, not of the steering pairs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from grains_ref.data import PreferencePair, Task
from grains_ref.data.images import read_picture
from grains_ref.methods.core import Setting
from grains_ref.methods.decoding.contrast import Contrast
from grains_ref.methods.ict import Box, whole_pixels
from grains_ref.models import HuggingFaceModel, Picture
from grains_ref.models.scoring import TokenPrompt

ALPHAS = (0.25, 0.5, 1.0, 2.0, 4.0)  # published: 1

Regions: TypeAlias = Mapping[TokenPrompt, Sequence[Box]]
"""Which boxes of its picture each prompt is about; none: the prompt is left alone."""


@dataclass(frozen=True, eq=False)
class CRG(Contrast):
    """The rule; see `Contrast` for alpha, beta (0 in the paper and its code) and first_only.

    regions: of every prompt with a picture that it may meet; see `regions_of`.

    Raises:
        ValueError: see `Contrast`; when it meets a prompt with a picture of which no region is known.
    """

    regions: Regions = field(kw_only=True)
    _blacked_out: dict[TokenPrompt, TokenPrompt] = field(default_factory=dict, init=False, repr=False)

    def degraded(self, model: HuggingFaceModel, prompt: TokenPrompt) -> TokenPrompt | None:
        """See `Contrast`: the prompt with its region blacked out."""
        if not prompt.pictures:
            return None
        if prompt not in self.regions:
            words = [token for token in prompt.ids if token != model.prompts.image_id]
            raise ValueError(
                f"no region is known of the prompt {model.prompts.text(words)[:80]!r} and its picture; name one for "
                "every prompt in `regions_of`, or an empty list to leave it alone"
            )
        boxes = self.regions[prompt]
        if not boxes:
            return None
        if prompt not in self._blacked_out:
            (picture,) = prompt.pictures
            self._blacked_out[prompt] = TokenPrompt(prompt.ids, (black_out(picture, boxes),))
        return self._blacked_out[prompt]


def regions_of(
    model: HuggingFaceModel,
    prompts: Iterable[PreferencePair | Task],
    boxes: Callable[[PreferencePair | Task], Sequence[Box]],
) -> dict[TokenPrompt, tuple[Box, ...]]:
    """The regions of pairs and tasks with a picture, as `CRG` looks them up.

    boxes: left, top, right, bottom in pixels of the upright picture; empty for a prompt that is to be left alone.

    Raises:
        ValueError: a prompt with several pictures, a box that covers nothing, or one prompt and picture with two
            different regions.
    """
    regions: dict[TokenPrompt, tuple[Box, ...]] = {}
    for row in prompts:
        pictures = model.checked_pictures(row.image)
        if not pictures:
            continue
        if len(pictures) > 1:
            raise ValueError(f"{row.id}: a prompt with {len(pictures)} pictures; a box cannot say of which it is")
        of_row = tuple(tuple(box) for box in boxes(row))
        for box in of_row:
            whole_pixels(box, pictures[0].size, row.id)
        ids, _ = model.prompts.encode(row.prompt, pictures)
        key = TokenPrompt(tuple(ids), pictures)
        if regions.setdefault(key, of_row) != of_row:
            raise ValueError(f"{row.id}: the same prompt and picture came with another region before")
    return regions


def black_out(picture: Picture, boxes: Sequence[Box]) -> Picture:
    """The upright picture with black boxes, rounded outwards to whole pixels and cut at its edge."""
    pixels = read_picture(picture.source).copy()
    for box in boxes:
        pixels.paste((0, 0, 0), whole_pixels(box, picture.size, "a region"))
    return Picture.of(pixels)


def settings(model: HuggingFaceModel, regions: Regions) -> list[Setting]:
    """The search grid, by alpha."""
    rules = [CRG(alpha=alpha, regions=regions) for alpha in ALPHAS]
    return [Setting("CRG", rule.alpha, partial(rule.steering, model)) for rule in rules]
