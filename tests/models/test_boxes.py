"""models/vision_families.py: where an image token looks, against the pixels that the tower gets for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from zoo.seeing import SEEING

from grains_ref.models.families import Picture

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(
        transformers.__version__ < "5.23", reason="configurations are made small by their fields in 5.23"
    ),
]


def coordinates(width: int, height: int) -> Image.Image:
    """Red grows from left to right, green from top to bottom."""
    pixels = np.zeros((height, width, 3))
    pixels[..., 0] = (np.arange(width) + 0.5) / width * 255
    pixels[..., 1] = ((np.arange(height) + 0.5) / height * 255)[:, None]
    return Image.fromarray(pixels.round().astype(np.uint8))


def squares(views: Tensor, side: int) -> Tensor:
    """(views, 3, H, W) -> (n, 3): the mean of each square, row by row, view by view."""
    means = torch.nn.functional.avg_pool2d(views, side)
    return means.permute(0, 2, 3, 1).flatten(0, 2)


def of_qwen(rows: Tensor, side: int) -> Tensor:
    """Four patches of a token stand one behind the other: (4 n, 3 * values) -> (n, 3)."""
    return rows.unflatten(1, (3, -1)).mean(-1).unflatten(0, (-1, 4)).mean(1)


@pytest.mark.parametrize(
    ("name", "size", "side", "colours"),
    [
        ("llava", (90, 50), 14, squares),
        ("llava", (50, 90), 14, squares),
        ("mistral3", (90, 50), 28, squares),
        ("idefics3", (90, 50), 28, squares),
        ("idefics3", (33, 100), 28, squares),
        ("smolvlm", (50, 50), 28, squares),
        ("qwen2_vl", (90, 50), 28, of_qwen),
        ("qwen3_vl", (50, 90), 32, of_qwen),
    ],
)
def test_every_image_token_looks_where_its_box_is(
    name: str, size: tuple[int, int], side: int, colours: Callable[[Tensor, int], Tensor]
) -> None:
    family: Any = SEEING[name]().family
    width, height = size
    values = family.tensors([Picture.of(coordinates(*size))])["pixel_values"]
    mean, deviation = torch.tensor(family.processor.image_mean), torch.tensor(family.processor.image_std)
    seen = colours(values if values.ndim == 2 else values.flatten(0, -4), side) * deviation + mean  # (n, 3)
    boxes = torch.tensor([patch.box for patch in family.patches(size)])  # left, top, right, bottom
    assert len(boxes) == len(seen)
    middle = torch.stack([boxes[:, [0, 2]].mean(1) / width, boxes[:, [1, 3]].mean(1) / height], dim=1)
    torch.testing.assert_close(seen[:, :2], middle, rtol=0, atol=0.03)
