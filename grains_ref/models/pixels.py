"""How vision towers take a picture: two layouts of pixels, for methods that change pixels or steer the tower.

| layout | pixels at the tower | families |
|---|---|---|
| `Views` | (views, 3, height, width): the whole picture, then its tiles or crops | LLaVA-NeXT, Gemma 3 |
| `PatchRows` | (patches, 3 * frames * side * side): as many rows as the picture has patches | Qwen2.5-VL |

Pixels are those that the image processor has made: resized, normalised and, for `PatchRows`, cut up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class PixelLayout(ABC):
    """What a method may ask of a layout. A view is one picture, or one part of it, as `whole_view` gives it."""

    has_places: bool  # does token number i of the tower look at the same place in every picture?

    @abstractmethod
    def at_tower(self, pixel_values: Tensor) -> Tensor:
        """The image processor's pixels of one picture as the tower gets them."""

    @abstractmethod
    def noise(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Standard normal noise for pixels at the tower, of their shape, on the CPU."""

    @abstractmethod
    def whole_view(self, pixels: Tensor) -> Tensor:
        """The part of a picture's pixels at the tower that shows all of it."""

    @abstractmethod
    def n_patches(self, view: Tensor) -> int:
        """How many patches a view has."""

    @abstractmethod
    def masked(self, view: Tensor, hidden: Tensor) -> Tensor:
        """Copies of a view with hidden patches set to the mean of each channel; hidden: (copies, patches) bool."""

    @abstractmethod
    def run(self, tower: nn.Module, copies: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Run the tower on (copies, *view) of a picture, of which `Family.tensors` gave `tensors`; hooks may look."""

    @abstractmethod
    def by_copy(self, states: Tensor, n_copies: int) -> Tensor:
        """States inside the tower in such a run -> (copies, n, d_V)."""


@dataclass(frozen=True)
class Views(PixelLayout):
    """A view is (3, height, width); its patches are squares of `side` pixels, row by row."""

    side: int
    has_places = True

    def at_tower(self, pixel_values: Tensor) -> Tensor:
        """See `PixelLayout`; LLaVA-NeXT's processor puts an axis of pictures in front."""
        return pixel_values.reshape(-1, *pixel_values.shape[-3:])

    def noise(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """See `PixelLayout`."""
        return torch.randn(shape, generator=generator)

    def whole_view(self, pixels: Tensor) -> Tensor:
        """See `PixelLayout`."""
        return pixels[0]

    def n_patches(self, view: Tensor) -> int:
        """See `PixelLayout`."""
        _, height, width = view.shape
        return (height // self.side) * (width // self.side)

    def masked(self, view: Tensor, hidden: Tensor) -> Tensor:
        """See `PixelLayout`."""
        _, height, width = view.shape
        grid = hidden.view(len(hidden), 1, height // self.side, width // self.side)
        hidden_pixels = grid.repeat_interleave(self.side, 2).repeat_interleave(self.side, 3)  # (copies, 1, H, W)
        return torch.where(hidden_pixels, view.mean((1, 2))[:, None, None], view)

    def run(self, tower: nn.Module, copies: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """See `PixelLayout`."""
        tower(copies)

    def by_copy(self, states: Tensor, n_copies: int) -> Tensor:
        """See `PixelLayout`."""
        return states


@dataclass(frozen=True)
class PatchRows(PixelLayout):
    """A row a patch, (channel, frame, y, x) flattened; a view is all rows of a picture.

    Pictures have as many patches as their size asks for, and patches of several pictures stand one behind the other.
    """

    side: int
    frames: int  # a picture is a film of so many equal frames
    has_places = False

    def at_tower(self, pixel_values: Tensor) -> Tensor:
        """See `PixelLayout`."""
        return pixel_values

    def noise(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """See `PixelLayout`; all frames of a picture get the same noise."""
        patches, values = shape
        pixels = self.side**2
        of_one_frame = torch.randn(patches, values // (self.frames * pixels), 1, pixels, generator=generator)
        return of_one_frame.expand(-1, -1, self.frames, -1).reshape(shape)

    def whole_view(self, pixels: Tensor) -> Tensor:
        """See `PixelLayout`."""
        return pixels

    def n_patches(self, view: Tensor) -> int:
        """See `PixelLayout`."""
        return len(view)

    def masked(self, view: Tensor, hidden: Tensor) -> Tensor:
        """See `PixelLayout`."""
        channels = view.unflatten(1, (3, -1))  # (patches, 3, values)
        mean = channels.mean((0, 2))[:, None]  # (3, 1)
        return torch.where(hidden[..., None, None], mean, channels).flatten(2)

    def run(self, tower: nn.Module, copies: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """See `PixelLayout`."""
        grid = tensors["image_grid_thw"].to(copies.device).repeat(len(copies), 1)
        tower(copies.flatten(0, 1), grid_thw=grid)

    def by_copy(self, states: Tensor, n_copies: int) -> Tensor:
        """See `PixelLayout`."""
        return states.unflatten(0, (n_copies, -1))
