"""What a model family may decide: the text-only decoder, and what families that see override (`vision_families`).

A family knows which class of transformers loads it, what a prompt needs besides embeddings to be run again (`replay`)
and, if it can see, how a picture becomes tokens: the text that replaces the placeholder, the tensors for the vision
tower, and where in the picture every image token looks; and where its vision tower is and how it takes pixels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from grains_ref.data.images import picture_digest, read_picture
from grains_ref.models.pixels import PixelLayout, Views

PictureSource: TypeAlias = str | os.PathLike[str] | Image.Image
PictureSources: TypeAlias = PictureSource | Sequence[PictureSource]  # a prompt's picture, or its pictures in order
Size: TypeAlias = tuple[int, int]  # of an upright picture, width and height
Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the upright picture


class UnsupportedModelError(ValueError):
    """The model is not one whose decoder blocks this package knows how to find and hook."""


class Patch(NamedTuple):
    """What one image token looks at.

    view: "base" or "whole" (the whole picture), "tile 1", "crop 1", ...; "newline" for LLaVA's end-of-row tokens.
    row, column: from 0, within the view.  box: left, top, right, bottom in pixels of the upright picture; a newline
    token has zero width.  picture: from 0, which of the prompt's pictures.
    """

    view: str
    row: int
    column: int
    box: Box
    picture: int = 0


@dataclass(frozen=True)
class Picture:
    """A picture that has been read once and found good; its pixels are read again where they are needed."""

    digest: str
    size: tuple[int, int]  # width, height, upright
    source: PictureSource = field(compare=False)

    @classmethod
    def of(cls, source: PictureSource) -> Picture:
        """Read and check a picture.

        Raises:
            PictureError: see `grains_ref.data.images.read_picture`.
        """
        pixels = read_picture(source)
        return cls(picture_digest(pixels), pixels.size, source)


def digest_of_pictures(pictures: Sequence[Picture]) -> str:
    """Of one picture its digest, of several theirs in order, "" of none."""
    return " ".join(picture.digest for picture in pictures)


class Family:
    """A text-only decoder; the vision families below override what they need."""

    auto_class: Any = transformers.AutoModelForCausalLM
    preset = "paper_llm"  # of `grains_ref.grains.PRESETS`: what the paper uses for such a model
    marker = ""  # what the chat template writes where a picture belongs; "" if the family cannot see
    placeholder = ""  # the one token of `marker` that `expansion` replaces
    records = False  # whether positions are recorded with each prompt, since `replay` does not know a picture's

    def __init__(self, config: transformers.PretrainedConfig, image_processor: Any, image_token: str) -> None:
        self.config, self.processor, self.image_token = config, image_processor, image_token

    def meet(self, hf: transformers.PreTrainedModel) -> None:
        """Before anything is asked: the model, for families that ask it."""

    @staticmethod
    def load_image_processor(path_or_hub_id: str) -> Any:
        """The family's PIL image processor; a text family has none."""
        return None

    def patches(self, size: Size) -> list[Patch]:
        """Where every image token of a picture of this size looks, in the order of the tokens; [] if it is not known.

        Raises:
            ValueError: the family does not take pictures of this size.
        """
        raise NotImplementedError

    def n_tokens(self, size: Size) -> int:
        """How many image tokens a picture of this size becomes."""
        return len(self.patches(size))

    def expansion(self, size: Size) -> str:
        """The text that replaces the placeholder."""
        return self.image_token * self.n_tokens(size)

    def tensors(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """What the model's own forward pass takes for the pictures of a batch."""
        batch = self.processor(images=[read_picture(picture.source) for picture in pictures], return_tensors="pt")
        return {name: batch[name] for name in ("pixel_values", "image_sizes", "image_grid_thw") if name in batch}

    def replay(self, is_image: Tensor, sizes: Sequence[Size]) -> dict[str, Tensor]:
        """What a run with embeddings needs for one unpadded prompt; the last axis of every tensor is T.

        is_image: (T,) bool.  sizes: of the prompt's pictures, in order.
        """
        return {"attention_mask": torch.ones(len(is_image)).long(), "position_ids": torch.arange(len(is_image))}

    def generation(self, is_image: Tensor) -> dict[str, Tensor]:
        """What transformers' `generate` takes besides ids, mask and pixels; is_image: (B, T) bool."""
        return {}

    def recording(self, is_image: Tensor) -> dict[str, Tensor]:
        """What a run up to the decoder's entrance takes besides ids, mask and pixels; is_image: (1, T) bool."""
        return self.generation(is_image)

    @property
    def pixel_layout(self) -> PixelLayout:
        """How the vision tower takes pixels; a text family has none."""
        return Views(side=self.config.vision_config.patch_size)

    def vision_tower(self, hf: transformers.PreTrainedModel) -> nn.Module:
        """The module of the model that pixels enter; a text family has none."""
        return hf.get_submodule("model.vision_tower")

    @property
    def n_vision_blocks(self) -> int:
        """How many blocks the configuration gives the vision tower."""
        return int(self.config.vision_config.num_hidden_layers)
