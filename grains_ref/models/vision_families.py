"""The families that see, one class each, and which family a configuration is of; nothing else in the package asks.

The merging of text and image features is never written anew: it is observed in the model's own forward pass.

| model_type | example | replay needs, besides mask and positions |
|---|---|---|
| every decoder of transformers that passes the proof | Llama-3.1-8B, Qwen2.5-7B | nothing |
| llava, vipllava, llava_next | LLaVA-1.5-7B, LLaVA-1.6-7B | nothing |
| mistral3, idefics3, smolvlm | Mistral-Small-3.1, SmolVLM | nothing |
| qwen2_vl, qwen2_5_vl, qwen3_5, qwen3_5_moe | Qwen2.5-VL-7B | its positions are 3-D: (time, row, column) |
| qwen3_vl, qwen3_vl_moe | Qwen3-VL-8B | these positions, and what the picture adds behind the first blocks |
| gemma3 | Gemma-3-12B | token_type_ids, which let the tokens of one image attend to each other both ways |
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.image_processing_utils import select_best_resolution
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

try:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
except ImportError:  # transformers 4
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from grains_ref.data.images import read_picture
from grains_ref.models.any_vision import AnyVision
from grains_ref.models.families import Family, Patch, Picture, Size, UnsupportedModelError
from grains_ref.models.grids import edges, grid
from grains_ref.models.pixels import PatchRows, PixelLayout
from grains_ref.models.replay import image_token_id


def _check_select_strategy(config: transformers.PretrainedConfig, name: str) -> None:
    """The number of image tokens depends on it; some configurations of the family leave it out."""
    strategy = getattr(config, "vision_feature_select_strategy", "default")
    if strategy != "default":
        raise UnsupportedModelError(
            f"{name} with vision_feature_select_strategy {strategy!r} has other image tokens than are counted here; "
            "expected 'default'"
        )


class Llava(Family):
    """LLaVA-1.5: one square view, cut out of the middle of the picture or stretched to it, row by row."""

    auto_class = transformers.AutoModelForImageTextToText
    preset = "paper_vlm"
    marker = placeholder = "<image>"

    def __init__(self, config: transformers.PretrainedConfig, image_processor: Any, image_token: str) -> None:
        super().__init__(config, image_processor, image_token)
        _check_select_strategy(config, "LLaVA")

    @staticmethod
    def load_image_processor(path_or_hub_id: str) -> Any:
        """See `Family`."""
        return _pil_class("CLIPImageProcessor").from_pretrained(path_or_hub_id)

    def patches(self, size: Size) -> list[Patch]:
        """What is cut off, left and right or above and below, no token looks at."""
        width, height = size
        n = self.config.vision_config.image_size // self.config.vision_config.patch_size
        box = (0.0, 0.0, float(width), float(height))
        if "shortest_edge" in self.processor.size:
            side = min(width, height) * self.processor.crop_size["height"] / self.processor.size["shortest_edge"]
            left, top = (width - side) / 2, (height - side) / 2
            box = (left, top, left + side, top + side)
        return grid("whole", n, n, box)


class LlavaNext(Family):
    """LLaVA-NeXT (LLaVA-1.6): the whole picture, then its tiles at higher resolution, each row closed by a newline."""

    auto_class = transformers.AutoModelForImageTextToText
    preset = "paper_vlm"
    marker = placeholder = "<image>"

    def __init__(self, config: transformers.PretrainedConfig, image_processor: Any, image_token: str) -> None:
        super().__init__(config, image_processor, image_token)
        _check_select_strategy(config, "LLaVA-NeXT")

    @staticmethod
    def load_image_processor(path_or_hub_id: str) -> Any:
        """See `Family`."""
        return _pil_class("LlavaNextImageProcessor").from_pretrained(path_or_hub_id)

    def patches(self, size: Size) -> list[Patch]:
        """The base view row by row, then the tiles' rows of patches without padding, each with its newline."""
        n = self._patches_per_side
        return grid("base", n, n, (0, 0, *size)) + self._tile_patches(size)

    @property
    def _patches_per_side(self) -> int:
        """Of one view: the base view, or a tile."""
        return int(self.config.vision_config.image_size // self.config.vision_config.patch_size)

    def _tile_patches(self, size: Size) -> list[Patch]:
        """What the tiles show, row by row over all of them.

        The tiles make up a canvas of one of the sizes in the configuration. The picture is scaled to fit in and
        centred, and each row of patches that is left after un-padding is closed by a newline. Here a canvas of 2 x 2
        tiles of 4 x 4 patches with a wide picture; rows 0 and 7 are dropped:

            row 0   . . . . | . . . .         .  a patch that shows padding only
            row 1   # # # # | # # # # N       #  a patch of the picture, perhaps with some padding
            row 2   # # # # | # # # # N       N  newline, no width, at the picture's right edge
            row 3   # # # # | # # # # N
                    --------+--------
            row 4   # # # # | # # # # N       tile 1 | tile 2
            row 5   # # # # | # # # # N       -------+-------
            row 6   # # # # | # # # # N       tile 3 | tile 4
            row 7   . . . . | . . . .
        """
        width, height = size
        canvas_height, canvas_width = select_best_resolution((height, width), self.config.image_grid_pinpoints)
        n, view = self._patches_per_side, self.config.vision_config.image_size
        rows, columns = n * canvas_height // view, n * canvas_width // view
        skip_rows, skip_columns = self._padding(size, rows=rows, columns=columns)
        scale = min(canvas_width / width, canvas_height / height)
        edges_x = edges(columns, canvas_width, extent=width, scale=scale)
        edges_y = edges(rows, canvas_height, extent=height, scale=scale)
        tiles: list[Patch] = []
        for row in range(skip_rows, rows - skip_rows):
            top, bottom = edges_y[row]
            for column in range(skip_columns, columns - skip_columns):
                left, right = edges_x[column]
                tile = 1 + row // n * (columns // n) + column // n
                tiles.append(Patch(f"tile {tile}", row % n, column % n, (left, top, right, bottom)))
            tiles.append(Patch("newline", row - skip_rows, columns - 2 * skip_columns, (width, top, width, bottom)))
        return tiles

    def _padding(self, size: Size, *, rows: int, columns: int) -> tuple[int, int]:
        """How many rows of patches are dropped above and below, and how many columns left and right.

        transformers un-pads the features by this rule (unpad_image), which is not quite the rule that padded the
        pixels; the boxes follow the pixels, and so a patch at the edge may reach beyond the picture and is cut.
        """
        width, height = size
        skip_rows = skip_columns = 0
        if width / height > columns / rows:  # wider than the canvas
            skip_rows = (rows - int(round(height * (columns / width), 7))) // 2
        else:
            skip_columns = (columns - int(round(width * (rows / height), 7))) // 2
        if min(rows - 2 * skip_rows, columns - 2 * skip_columns) < 1:
            raise ValueError(
                f"a picture of {width} x {height} pixels is too narrow for LLaVA-NeXT: no patch is left; crop it"
            )
        return skip_rows, skip_columns


class Qwen25VL(Family):
    """Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5: pictures of any size, one token per 2 x 2 patches, 3-D positions."""

    auto_class = transformers.AutoModelForImageTextToText
    preset = "paper_vlm"
    marker, placeholder = "<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>"

    @staticmethod
    def load_image_processor(path_or_hub_id: str) -> Any:
        """See `Family`; the full processor would need torchvision for videos."""
        return _pil_class("Qwen2VLImageProcessor").from_pretrained(path_or_hub_id)

    def _rows_columns(self, size: Size) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        width, height = size
        edge = self.processor.patch_size * self.processor.merge_size  # pixels per token
        limits = {"min_pixels": self.processor.size["shortest_edge"], "max_pixels": self.processor.size["longest_edge"]}
        try:
            shown_height, shown_width = smart_resize(height, width, factor=edge, **limits)
        except ValueError as error:
            raise ValueError(
                f"a picture of {width} x {height} pixels is too narrow for Qwen2.5-VL: {error}; crop it"
            ) from error
        return shown_height // edge, shown_width // edge

    def patches(self, size: Size) -> list[Patch]:
        """Row by row; the picture is stretched to whole tokens."""
        return grid("whole", *self._rows_columns(size), (0, 0, *size))

    def replay(self, is_image: Tensor, sizes: Sequence[Size]) -> dict[str, Tensor]:
        """See `Family`; positions are (3, T): time, row, column.

        A text token has the same position on all three axes.  An image that starts at position p gives its token in
        row r and column c the position (p, p + r, p + c), and the text goes on at p + max(rows, columns).
        """
        positions = torch.arange(len(is_image)).expand(3, -1).clone()
        places = is_image.nonzero().flatten().tolist()  # of all image tokens
        first = 0  # of the next picture's, among them
        for size in sizes:
            rows, columns = self._rows_columns(size)
            n, start = rows * columns, places[first]
            token = torch.arange(n)
            grid = torch.stack([torch.zeros(n).long(), token // columns, token % columns])
            positions[:, start : start + n] = positions[0, start] + grid
            positions[:, start + n :] += max(rows, columns) - n
            first += n
        return {"attention_mask": torch.ones(len(is_image)).long(), "position_ids": positions}

    def generation(self, is_image: Tensor) -> dict[str, Tensor]:
        """See `Family`; newer versions of transformers find 3-D positions only if told which tokens are images."""
        model_class: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(self.config)]
        takes = inspect.signature(model_class.forward).parameters
        return {"mm_token_type_ids": is_image.int()} if "mm_token_type_ids" in takes else {}

    @property
    def pixel_layout(self) -> PixelLayout:
        """See `Family`."""
        vision = self.config.vision_config
        return PatchRows(side=vision.patch_size, frames=vision.temporal_patch_size)

    def vision_tower(self, hf: transformers.PreTrainedModel) -> nn.Module:
        """See `Family`."""
        return hf.get_submodule("model.visual")

    @property
    def n_vision_blocks(self) -> int:
        """See `Family`; 32 in the 7B model, whose decoder has 28."""
        return int(self.config.vision_config.depth)


class Mistral3(Family):
    """Mistral 3: pictures of any size, one token per merged patch; tokens that are no picture's close each row."""

    auto_class = transformers.AutoModelForImageTextToText
    preset = "paper_vlm"
    marker = placeholder = "[IMG]"

    @staticmethod
    def load_image_processor(path_or_hub_id: str) -> Any:
        """See `Family`."""
        return _pil_class("PixtralImageProcessor").from_pretrained(path_or_hub_id)

    def _rows_columns(self, size: Size) -> tuple[int, int]:
        """Rows and columns of image tokens, by asking the processor what it makes of a picture of this size."""
        blank = self.processor(images=[Image.new("RGB", size)], return_tensors="pt")
        height, width = blank["image_sizes"][0].tolist()
        edge = self.config.vision_config.patch_size * self.config.spatial_merge_size
        return height // edge, width // edge

    def patches(self, size: Size) -> list[Patch]:
        """Row by row; the picture is stretched to whole tokens."""
        return grid("whole", *self._rows_columns(size), (0, 0, *size))

    def expansion(self, size: Size) -> str:
        """See `Family`; as Mistral's processor words it."""
        rows, columns = self._rows_columns(size)
        return "[IMG_BREAK]".join([self.image_token * columns] * rows) + "[IMG_END]"


class Idefics3(Family):
    """Idefics 3, SmolVLM: tiles of the picture row by row, then the whole picture; each view stretched to a square."""

    auto_class = transformers.AutoModelForImageTextToText
    preset = "paper_vlm"
    marker = placeholder = "<image>"

    @staticmethod
    def load_image_processor(path_or_hub_id: str) -> Any:
        """See `Family`."""
        return _pil_class("Idefics3ImageProcessor").from_pretrained(path_or_hub_id)

    def tensors(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """See `Family`; every picture is a list of its own."""
        images = [[read_picture(picture.source)] for picture in pictures]
        batch = self.processor(images=images, return_tensors="pt")
        return {name: batch[name] for name in ("pixel_values", "pixel_attention_mask")}

    def _rows_columns(self, size: Size) -> tuple[int, int]:
        """Rows and columns of tiles, by asking the processor; 0 and 0 if there are none."""
        blank = self.processor(images=[[Image.new("RGB", size)]], return_row_col_info=True)
        return int(blank["rows"][0][0]), int(blank["cols"][0][0])

    @property
    def _tokens_per_side(self) -> int:
        """Of one view."""
        vision = self.config.vision_config
        return int(vision.image_size // vision.patch_size // self.config.scale_factor)

    def patches(self, size: Size) -> list[Patch]:
        """The tiles row by row, then the whole picture."""
        (width, height), (rows, columns), n = size, self._rows_columns(size), self._tokens_per_side
        patches: list[Patch] = []
        for row in range(rows):
            for column in range(columns):
                left, top = column * width / columns, row * height / rows
                right, bottom = (column + 1) * width / columns, (row + 1) * height / rows
                patches += grid(f"tile {1 + row * columns + column}", n, n, (left, top, right, bottom))
        return patches + grid("whole", n, n, (0, 0, width, height))

    def expansion(self, size: Size) -> str:
        """See `Family`; as the processor words it."""
        fake, view = "<fake_token_around_image>", self.image_token * self._tokens_per_side**2
        rows, columns = self._rows_columns(size)
        text = ""
        for row in range(rows):
            for column in range(columns):
                text += f"{fake}<row_{row + 1}_col_{column + 1}>{view}"
            text += "\n"
        if rows:
            text += "\n"
        return text + f"{fake}<global-img>{view}{fake}"

    def vision_tower(self, hf: transformers.PreTrainedModel) -> nn.Module:
        """See `Family`."""
        return hf.get_submodule("model.vision_model")


class Gemma3(Family):
    """Gemma 3: the whole picture as 16 x 16 tokens; with pan-and-scan also two to four crops along its long side."""

    auto_class = transformers.AutoModelForImageTextToText
    preset = "paper_gemma"
    marker = placeholder = "<start_of_image>"

    @staticmethod
    def load_image_processor(path_or_hub_id: str) -> Any:
        """See `Family`."""
        return _pil_class("Gemma3ImageProcessor").from_pretrained(path_or_hub_id)

    def _views(self, size: Size) -> list[tuple[int, int, int, int]]:
        """Boxes of the whole picture and of its crops."""
        width, height = size
        boxes = [(0, 0, width, height)]
        if not self.processor.do_pan_and_scan:
            return boxes
        # The processor cuts a stand-in of the same size; the shapes of the pieces tell where the cuts are.
        stand_in = np.broadcast_to(np.uint8(0), (3, height, width))
        options = {
            name: getattr(self.processor, name)
            for name in (
                "pan_and_scan_min_crop_size",
                "pan_and_scan_max_num_crops",
                "pan_and_scan_min_ratio_to_activate",
            )
        }
        x = y = 0
        for piece in self.processor.pan_and_scan(stand_in, **options):
            _, down, across = piece.shape
            boxes.append((x, y, x + across, y + down))
            x, y = (x + across, y) if width >= height else (x, y + down)
        return boxes

    def patches(self, size: Size) -> list[Patch]:
        """The whole picture row by row, then each crop; every view is stretched to a square."""
        n = math.isqrt(self.config.mm_tokens_per_image)
        patches: list[Patch] = []
        for i, box in enumerate(self._views(size)):
            patches += grid(f"crop {i}" if i else "whole", n, n, box)
        return patches

    def expansion(self, size: Size) -> str:
        """See `Family`; as Gemma's processor words it."""
        view = f"\n\n<start_of_image>{self.image_token * self.config.mm_tokens_per_image}<end_of_image>\n\n"
        crops = len(self._views(size)) - 1
        if not crops:
            return view
        introduction = f"Here is the original image {view} and here are some crops to help you see better "
        return introduction + " ".join([view] * crops)

    def replay(self, is_image: Tensor, sizes: Sequence[Size]) -> dict[str, Tensor]:
        """See `Family`; token_type_ids are 1 at image tokens, and a text needs none."""
        replay = super().replay(is_image, sizes)
        return replay | {"token_type_ids": is_image.long()} if is_image.any() else replay

    def generation(self, is_image: Tensor) -> dict[str, Tensor]:
        """See `Family`."""
        return {"token_type_ids": is_image.long()}

    def recording(self, is_image: Tensor) -> dict[str, Tensor]:
        """See `Family`; token types only make masks, which are made anew in every replay, and slowly."""
        return {}


VISION_FAMILIES: dict[str, type[Family]] = {
    "llava": Llava,
    "vipllava": Llava,
    "llava_next": LlavaNext,
    "mistral3": Mistral3,
    "idefics3": Idefics3,
    "smolvlm": Idefics3,
    "qwen2_vl": Qwen25VL,
    "qwen2_5_vl": Qwen25VL,
    "qwen3_vl": Qwen25VL,
    "qwen3_vl_moe": Qwen25VL,
    "qwen3_5": Qwen25VL,
    "qwen3_5_moe": Qwen25VL,
    "gemma3": Gemma3,
}


def family_class(config: transformers.PretrainedConfig) -> type[Family]:
    """The family of a configuration.  A model that is not refused here has still to pass the proof (`proof.prove`).

    Raises:
        UnsupportedModelError: it is no decoder that transformers loads, or sees in a way that has no class here.
    """
    kind = config.model_type
    if kind in VISION_FAMILIES:
        return VISION_FAMILIES[kind]
    if config.is_encoder_decoder:
        raise UnsupportedModelError(f"model type {kind!r} has an encoder beside its decoder; only decoders are steered")
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and image_token_id(config) >= 0:
        _check_text(config.get_text_config(), kind)
        return AnyVision
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or hasattr(config, "vision_config"):
        raise UnsupportedModelError(
            f"model type {kind!r} sees, and not by image tokens: its configuration has no image_token_id. Give its "
            "text model alone, or write a class for it (CONTRIBUTING.md)"
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnsupportedModelError(
            f"model type {kind!r} is none that transformers {transformers.__version__} loads as a causal language model"
        )
    _check_text(config, kind)
    return Family


def _check_text(config: transformers.PretrainedConfig, kind: str) -> None:
    """Refuse what a trial of a few tokens cannot show."""
    if getattr(config, "index_topk", None) is not None:
        raise UnsupportedModelError(
            f"model type {kind!r} attends to the {config.index_topk} tokens that an indexer picks (index_topk); behind "
            "a cache it was seen to pick others, and a trial of a few tokens cannot show it"
        )
    if kind == "moshi":
        raise UnsupportedModelError(
            f"model type 'moshi' keeps a window of {config.sliding_window} tokens in its cache and attends to all "
            "without one: scores of longer prompts would depend on how they are computed"
        )


def _pil_class(name: str) -> Any:
    """The PIL version of an image processor; transformers 4 has no other one without torchvision."""
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
