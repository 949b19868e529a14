r"""VCD, visual contrastive decoding (arXiv 2311.16922): away from what the model says of a noised picture.

    with VCD(alpha=1.0, beta=0.1).steering(model):
        model.generate(prompts, max_new_tokens=20, images=pictures)

    p'  ~  softmax( (1 + alpha) l(v) - alpha l(v') )   over the tokens with p(v) >= beta max p(v)

v' is the picture after `noise_step` of 1000 steps of forward diffusion, on the processed pixels:
v' = sqrt(abar) v + sqrt(1 - abar) e (`ict.noise_weights`).  There is nothing to fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from grains_ref.files import digest_of
from grains_ref.grains import Hooks
from grains_ref.methods.core import Setting, whole_number
from grains_ref.methods.decoding.contrast import Contrast
from grains_ref.methods.ict import noise_weights
from grains_ref.models import HuggingFaceModel, UnsupportedModelError, features
from grains_ref.models.families import digest_of_pictures
from grains_ref.models.scoring import TokenPrompt

ALPHAS = (0.25, 0.5, 1.0, 2.0, 4.0)  # published: 1
BETA = 0.1  # published, and 0.2 in one script
NOISE_STEPS = (500, 900)  # published: 500


@dataclass(frozen=True, eq=False)
class VCD(Contrast):
    """The rule; see `Contrast` for alpha, beta and first_only.

    noise_step: how far along the noise schedule, from 0 to 999.  seed: of the noise, which belongs to the picture.

    Convention: every prompt with pictures is contrasted, all its pictures noised; a prompt without one is left alone.
    Released code differs: before its revision d6568ff the noised run went on behind the cache of the first run from the
      second token on, so that the first token alone was contrasted (`first_only`).

    Raises:
        ValueError: the step is not from 0 to 999; see `Contrast`.
    """

    noise_step: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        noise_weights(self.noise_step)
        whole_number("seed", self.seed)

    def degraded(self, model: HuggingFaceModel, prompt: TokenPrompt) -> TokenPrompt | None:
        """See `Contrast`: the same prompt, whose pictures are seen through `seen_as`."""
        return prompt if prompt.pictures else None

    def seen_as(self, model: HuggingFaceModel, prompt: TokenPrompt) -> AbstractContextManager[object]:
        """See `Contrast`."""
        return _noised(model, prompt, noise_weights(self.noise_step), seed=self.seed)


PUBLISHED = VCD(alpha=1.0, beta=BETA, noise_step=500)


def settings(model: HuggingFaceModel) -> list[Setting]:
    """The search grid, by alpha.

    Raises:
        ValueError: a text model.
    """
    if not model.family.marker:
        raise ValueError(f"{model.name} is a text model; VCD contrasts a picture with a noised one")
    grid = []
    for alpha in ALPHAS:
        for step in NOISE_STEPS:
            rule = VCD(alpha=alpha, beta=BETA, noise_step=step)
            grid.append(Setting(f"VCD, noise step {step}", alpha, partial(rule.steering, model)))
    return grid


@contextmanager
def _noised(model: HuggingFaceModel, prompt: TokenPrompt, weights: tuple[float, float], *, seed: int) -> Iterator[None]:
    """Noise on the processed pixels of a prompt's pictures, before the model sees them.

    Hooked at the model's entrance, so that it works for every family.
    """
    digest = digest_of_pictures(prompt.pictures)
    if len(prompt.pictures) > 1:
        digest = digest_of(digest.encode())
    # Drawn on the CPU from the pictures' digest: the same noise on every device, whatever came before.
    generator = torch.Generator().manual_seed(int(digest[:12], 16) ^ seed)
    signal, noise = weights

    def edit(hf: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        pixels = kwargs.get("pixel_values")
        if not isinstance(pixels, Tensor):
            raise UnsupportedModelError(f"{model.name} takes no pixel_values, which VCD puts noise on")
        drawn = _standard_normal(model, pixels.shape, generator).to(pixels)
        return args, kwargs | {"pixel_values": signal * pixels + noise * drawn}

    with Hooks(before=[(model.hf, edit)]), features.changed(f"noised {weights} {digest} {seed}"):
        yield


def _standard_normal(model: HuggingFaceModel, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Noise for processed pixels; both frames of a still picture get the same where the family says that it has two."""
    if model.family.records:  # a family that is asked, whose layout of pixels is not known
        return torch.randn(shape, generator=generator)
    return model.family.pixel_layout.noise(shape, generator)
