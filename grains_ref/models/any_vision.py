"""Any image-text model of transformers that has no class in `vision_families`: everything is asked.

| question | who is asked |
|---|---|
| which token is a picture's | the configuration's image_token_id |
| how many of them, and the words around them | the model's processor; without one the model, for its features |
| where in a prompt they belong | the chat template |
| what arrives at the decoder: positions, features, deep-stack features | the model, for every prompt (`replay`) |
| where in the picture a token looks | the processor, if it cuts a grid; else grids are tried with bright spots |

Whether the answers are right is tried at every load, as for all models (`proof`).  A class of its own is only worth
writing for what cannot be asked: boxes of tiles and crops, and the vision tower, for methods that edit pixels.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from grains_ref.data import PICTURE_MARK
from grains_ref.data.images import read_picture
from grains_ref.models.families import Box, Family, Patch, Picture, Size, UnsupportedModelError
from grains_ref.models.grids import grid
from grains_ref.models.pixels import PixelLayout

TYPES_OF_TOKENS = ("token_type_ids", "mm_token_type_ids")  # what forward passes call "this is a picture's token"
OF_TEXT = {"input_ids", "attention_mask", "position_ids", "inputs_embeds", *TYPES_OF_TOKENS}
N_SPOTS = 3  # bright spots that a grid is tried with, besides the last patch
UNCHANGED = 1e-3  # of a tile's own change, what rounding may do to the others


@dataclass(frozen=True)
class _Answers:
    """What was answered for pictures of one size."""

    n: int
    words: str
    patches: list[Patch]


class AnyVision(Family):
    """An image-text model that is asked; `image_processor` may be its whole processor, which then gives the words."""

    auto_class = transformers.AutoModelForImageTextToText
    preset = "paper_vlm"
    records = True
    marker = placeholder = PICTURE_MARK  # until the model's own token is known

    def __init__(self, config: transformers.PretrainedConfig, image_processor: Any, image_token: str) -> None:
        super().__init__(config, image_processor, image_token)
        self.marker = self.placeholder = image_token
        self._answers: dict[Size, _Answers] = {}
        self._holds: dict[tuple[int, int], bool] = {}  # by rows and columns of a view: whether tokens go row by row

    @staticmethod
    def load_image_processor(path_or_hub_id: str) -> Any:
        """The whole processor, since it knows the words around a picture.

        Raises:
            UnsupportedModelError: it needs torchvision, for films or for pictures, too.
        """
        try:
            return transformers.AutoProcessor.from_pretrained(path_or_hub_id, trust_remote_code=False)
        except (ImportError, ValueError) as error:
            first = str(error).strip().partition("\n")[0]
            if "torchvision" not in first.lower():
                raise
            raise UnsupportedModelError(
                f"the processor of {path_or_hub_id} needs torchvision: {first} Install it (pip install torchvision, "
                "the release for your torch). If only films need it, the image processor alone will do, "
                "HuggingFaceModel(hf, tokenizer, name=..., image_processor=...): then no words are written around a "
                "picture but those of the chat template"
            ) from error

    def meet(self, hf: transformers.PreTrainedModel) -> None:
        """See `Family`."""
        self._hf: Any = hf
        self._taken = set(inspect.signature(hf.forward).parameters)

    # ------------------------------------------------------------------ what is asked for a size of pictures
    def n_tokens(self, size: Size) -> int:
        """See `Family`."""
        return self._of(size).n

    def expansion(self, size: Size) -> str:
        """See `Family`."""
        return self._of(size).words

    def patches(self, size: Size) -> list[Patch]:
        """See `Family`."""
        return self._of(size).patches

    def _of(self, size: Size) -> _Answers:
        if size not in self._answers:
            self._answers[size] = self._ask(size)
        return self._answers[size]

    @torch.no_grad()
    def _ask(self, size: Size) -> _Answers:
        """Asked with a black picture: the number of tokens depends on the size alone."""
        black = Image.new("RGB", size)
        tensors = self._tensors([black])
        features = self._features(tensors)
        if isinstance(self.processor, transformers.ProcessorMixin):
            ids = self.processor(text=[self.image_token], images=[black], add_special_tokens=False)["input_ids"][0]
            words = str(self.processor.tokenizer.decode(ids))
        else:
            words = self.image_token * len(features)
        n = words.count(self.image_token)
        return _Answers(n, words, _cut_grid(tensors, n, size) or self._grid_of_views(tensors, features, size))

    def _features(self, tensors: dict[str, Tensor]) -> Tensor:
        """(n, d), what the model makes of one picture."""
        ask = getattr(self._hf, "get_image_features", None) or self._hf.base_model.get_image_features
        inputs = {name: tensor.to(self._hf.device) for name, tensor in tensors.items()}
        answer = ask(**inputs)
        answer = getattr(answer, "pooler_output", answer)  # transformers 4 returns the features alone
        parts = [answer] if isinstance(answer, Tensor) else answer
        width = self.config.get_text_config().hidden_size
        return torch.cat([part.reshape(-1, width) for part in parts])

    def _grid_of_views(self, tensors: dict[str, Tensor], features: Tensor, size: Size) -> list[Patch]:
        """The way to lay the tokens over the picture that the model's features follow; [] if they follow none.

        One view is the picture; of more the last one is, and the others are its tiles, row by row.
        """
        pixels, n = tensors.get("pixel_values"), len(features)
        if pixels is None or pixels.ndim < 4 or _cuts_or_pads(self.processor):
            return []
        views = math.prod(pixels.shape[:-3])
        height, width = pixels.shape[-2:]
        of_view = n // views
        down = math.isqrt(of_view * height // width)  # rows of tokens of a view
        if not down or of_view % down or n % views:
            return []
        across = of_view // down
        if not self._goes_row_by_row((width, height), down, across):
            return []
        for rows, columns in _shapes(views - 1):
            tiles = grid("tile", rows, columns, (0, 0, *size)) if rows else []
            if not self._has_tiles(size, features, tiles, of_view):
                continue
            patches: list[Patch] = []
            for i, tile in enumerate(tiles):
                patches += grid(f"tile {i + 1}", down, across, tile.box)
            return patches + grid("whole", down, across, (0, 0, *size))
        return []

    def _goes_row_by_row(self, size: Size, rows: int, columns: int) -> bool:
        """Whether a bright spot in a patch of the view of the whole picture changes that token of the view most."""
        if (rows, columns) not in self._holds:
            n = rows * columns
            black = self._features(self._tensors([Image.new("RGB", size)]))[-n:]
            patches = grid("whole", rows, columns, (0, 0, *size))
            changed_most = []
            for j in sorted({0, n // N_SPOTS, 2 * n // N_SPOTS, n - 1}):
                changes = (self._with_spot(size, patches[j].box)[-n:] - black).float().norm(dim=-1)
                changed_most.append(int(changes.argmax()) == j)
            self._holds[rows, columns] = n > 1 and all(changed_most)
        return self._holds[rows, columns]

    def _has_tiles(self, size: Size, features: Tensor, tiles: list[Patch], of_tile: int) -> bool:
        """Whether a bright spot in the middle of each tile leaves the features of all other tiles as they are."""
        for i, tile in enumerate(tiles):
            left, top, right, bottom = tile.box
            x, y = (right - left) / 4, (bottom - top) / 4
            spotted = self._with_spot(size, (left + x, top + y, right - x, bottom - y))
            changes = (spotted - features).float().norm(dim=-1)[: len(tiles) * of_tile]
            by_tile = changes.view(len(tiles), of_tile).amax(dim=1)
            others = by_tile.clone()
            others[i] = 0
            if not others.max() < UNCHANGED * by_tile[i]:
                return False
        return True

    def _with_spot(self, size: Size, box: Box) -> Tensor:
        """(n, d), the features of a black picture with a white box."""
        picture = Image.new("RGB", size)
        left, top, right, bottom = (round(edge) for edge in box)
        picture.paste((255, 255, 255), (left, top, right, bottom))
        return self._features(self._tensors([picture]))

    # ------------------------------------------------------------------ what a run needs
    def tensors(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """See `Family`."""
        return self._tensors([read_picture(picture.source) for picture in pictures])

    def _tensors(self, images: list[Image.Image]) -> dict[str, Tensor]:
        if isinstance(self.processor, transformers.ProcessorMixin):
            batch = self.processor(text=[self.image_token * len(images)], images=images, return_tensors="pt")
        else:
            batch = self.processor(images=images, return_tensors="pt")
        wanted = self._taken - OF_TEXT
        return {name: batch[name] for name in batch if name in wanted and isinstance(batch[name], Tensor)}

    def replay(self, is_image: Tensor, sizes: Sequence[Size]) -> dict[str, Tensor]:
        """See `Family`; of a prompt with pictures the positions are replaced by those that are recorded."""
        return super().replay(is_image, sizes) | self._types(is_image)

    def generation(self, is_image: Tensor) -> dict[str, Tensor]:
        """See `Family`."""
        return self._types(is_image)

    def _types(self, is_image: Tensor) -> dict[str, Tensor]:
        return {name: is_image.long() for name in TYPES_OF_TOKENS if name in self._taken}

    # ------------------------------------------------------------------ what cannot be asked
    @property
    def pixel_layout(self) -> PixelLayout:
        """See `Family`; not known."""
        self._refuse_edits()

    def vision_tower(self, hf: transformers.PreTrainedModel) -> nn.Module:
        """See `Family`; not known."""
        self._refuse_edits()

    @property
    def n_vision_blocks(self) -> int:
        """See `Family`; not known."""
        self._refuse_edits()

    def _refuse_edits(self) -> NoReturn:
        raise UnsupportedModelError(
            "this method edits pixels or the vision tower, and where they are in model type "
            f"{self.config.model_type!r} is not known; write a class for it (CONTRIBUTING.md). Methods that steer the "
            "decoder take this model"
        )


def _cut_grid(tensors: dict[str, Tensor], n: int, size: Size) -> list[Patch]:
    """The grid that the processor says it cut (image_grid_thw), of which each token merges a square; [] without one."""
    if "image_grid_thw" not in tensors or not n:
        return []
    frames, cut_rows, cut_columns = tensors["image_grid_thw"][0].tolist()
    merged = math.isqrt(cut_rows * cut_columns // n)
    if frames != 1 or not merged or cut_rows // merged * (cut_columns // merged) != n:
        return []
    return grid("whole", cut_rows // merged, cut_columns // merged, (0, 0, *size))


def _shapes(n_tiles: int) -> list[tuple[int, int]]:
    """Rows and columns that so many tiles can make up; (0, 0) for none."""
    if not n_tiles:
        return [(0, 0)]
    return [(rows, n_tiles // rows) for rows in range(1, n_tiles + 1) if n_tiles % rows == 0]


def _cuts_or_pads(processor: Any) -> bool:
    image_processor = getattr(processor, "image_processor", processor)
    return any(getattr(image_processor, name, None) for name in ("do_center_crop", "do_pad", "do_image_splitting"))
