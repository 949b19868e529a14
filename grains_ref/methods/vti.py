r"""VTI (arXiv 2410.15778): steer vision tower and decoder of a vision-language model against hallucination.

    vti = fit(model, pairs)
    with vti.steering(model, image=0.9, text=0.9):
        ...

Two parts, each with its own strength, both at the output of every MLP, norm kept:

    m  ->  |m| * n(n(m) + 0.1 * alpha_image * n(u))      vision tower; every token position has its own u
    m  ->  |m| * n(n(m) + 0.1 * alpha_text * n(v))       decoder; every position

u moves a picture's features toward their average over many random maskings of its patches; v is ICV's vector from the
rejected to the chosen answer, used without ICV's adaptive factor.  The factor 0.1 is in the public code and nowhere
else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from grains_ref.data import PreferencePair
from grains_ref.files import check_listed
from grains_ref.grains import Hook, Hooks, at_least_float32, finite_number
from grains_ref.methods import icv
from grains_ref.methods.core import (
    Setting,
    check_pairs,
    check_states,
    first_component,
    keep_norm,
    together,
    unit,
    whole_number,
)
from grains_ref.models import HuggingFaceModel
from grains_ref.models.families import Picture, UnsupportedModelError
from grains_ref.models.pixels import PixelLayout

FACTOR = 0.1
IMAGE_ALPHAS = (0.0, 0.3, 0.9)  # published: 0.9, and 0.1 to 1.0 as range, for both
TEXT_ALPHAS = (0.0, 0.3, 0.6, 0.9, 1.2)
TEXTUAL = replace(icv.CODE, adaptive=False)
MASKS_AT_ONCE = 10


@dataclass(frozen=True)
class VisualTextual:
    """What VTI adds, before it is scaled.

    visual: (n, L_V, d_V), for n token positions of the vision tower; n = 1 means one vector for all of them.
    textual: strength of the visual part under which it was found -> ICV's vectors.
    """

    visual: Tensor
    textual: Mapping[float, icv.ICV]

    @contextmanager
    def steering(self, model: HuggingFaceModel, *, image: float, text: float) -> Iterator[None]:
        """Steer the vision tower with strength `image` and the decoder with strength `text`; 0 leaves a part out.

        Raises:
            TypeError: a strength is no number.
            ValueError: `text` is not 0 and no textual vectors were fitted under this `image`; a tower or decoder of
                another shape; a strength that is not finite.
        """
        image, text = finite_number("image", image), finite_number("text", text)
        parts: list[AbstractContextManager[object]] = []
        if image:
            parts.append(steer_vision(model, self.visual, alpha=image))
        if text:
            if image not in self.textual:
                raise ValueError(
                    f"textual vectors were fitted under image strengths {sorted(self.textual)}, not {image}; "
                    f"fit with image_alphas=({image},)"
                )
            parts.append(self.textual[image].steering(model, lam=FACTOR * text))
        with together(*parts):
            yield

    def settings(self, model: HuggingFaceModel) -> list[Setting]:
        """The search grid by the sum of both strengths."""
        grid = [(image, text) for image in self.textual for text in TEXT_ALPHAS if image or text]
        return [
            Setting(
                f"VTI, image {image:g}, text {text:g}",
                image + text,
                partial(self.steering, model, image=image, text=text),
            )
            for image, text in sorted(grid, key=sum)
        ]


def fit(
    model: HuggingFaceModel,
    pairs: Sequence[PreferencePair],
    *,
    ratio: float = 0.99,
    masks: int = 50,
    legacy_layout: bool = False,
    image_alphas: Sequence[float] = IMAGE_ALPHAS,
    seed: int = 0,
) -> VisualTextual:
    """Both parts, in the order of the public script: visual vectors first, textual ones while these steer.

    Args:
        model: a vision-language model.
        pairs: each with a picture; a picture that several share counts once for the visual part.
        ratio: share of a picture's patches that a masking hides.
        masks: maskings per picture.
        legacy_layout: mix tokens and layers in the visual part as the public code does; see `visual_vectors`.
        image_alphas: strengths of the visual part to fit textual vectors under.
        seed: of the maskings, which belong to the picture.

    Raises:
        TypeError: image_alphas is no list of numbers.
        ValueError: see `visual_vectors` and `icv.fit`.
        DegenerateShiftsError: likewise.
        FloatingPointError: likewise.
        UnsupportedModelError: see `vision_tower`.
    """
    check_listed("image_alphas", image_alphas, "a list of numbers")
    strengths = [finite_number("image_alphas", alpha) for alpha in image_alphas]
    visual = visual_vectors(model, pairs, ratio=ratio, masks=masks, legacy_layout=legacy_layout, seed=seed)
    textual = {}
    for alpha in strengths:
        with steer_vision(model, visual, alpha=alpha) if alpha else nullcontext():
            textual[alpha] = icv.fit(model, pairs, options=TEXTUAL)
    return VisualTextual(visual, textual)


def visual_vectors(
    model: HuggingFaceModel,
    pairs: Sequence[PreferencePair],
    *,
    ratio: float,
    masks: int,
    legacy_layout: bool = False,
    seed: int = 0,
) -> Tensor:
    r"""u: per token, mean over pictures of (masked average - original) plus its first principal component.

    Returns (n, L_V, d_V): per token of the vision tower (class token included) where all pictures have the same
    number of tokens; n = 1, differences averaged over tokens, where a token's number says nothing about its place
    (`PixelLayout.has_places`; Qwen2.5-VL).  The component is taken over all layers together, embeddings
    included, which are then dropped; it is centred and signed by its largest score.

    Convention: of LLaVA-NeXT's tiles and Gemma 3's crops only the view of the whole picture is masked; its vectors
      steer every view. A masked patch gets the picture's mean colour as the tower sees it. legacy_layout cuts the
      (layer, token) table of states into rows without turning it first, so that a "token" is a run of consecutive
      cells; means come out alike, components do not. All differences are held at once: 4 bytes * pictures *
      (L_V + 1) * tokens * d_V, 2.8 GiB for 50 pictures in CLIP-L/336.

    Raises:
        ValueError: a text model, a pair without a picture, fewer than three pictures, a ratio outside [0, 1],
            pictures of different token counts.
        DegenerateShiftsError: hiding patches changes nothing, or the same in every picture.
        FloatingPointError: a state is not finite.
        UnsupportedModelError: see `vision_tower`.
    """
    tower, blocks = vision_tower(model)
    check_pairs(pairs, least=1)
    if not 0 <= finite_number("ratio", ratio) <= 1 or whole_number("masks", masks) < 1:
        raise ValueError(f"expected a ratio from 0 to 1 and at least one masking; got {ratio} and {masks}")
    without = [pair.where for pair in pairs if pair.image is None]
    if without:
        raise ValueError(f"{len(without)} pairs have no picture, the first is {without[0]}; VTI masks pictures")
    read = [Picture.of(image) for pair in pairs for image in pair.images]
    pictures = {picture.digest: picture for picture in read}
    if len(pictures) < 3:
        raise ValueError(f"need at least three different pictures for a principal component; got {len(pictures)}")
    differences = [
        _masked_minus_original(model, tower, blocks, picture, ratio=ratio, masks=masks, seed=seed)
        for picture in pictures.values()
    ]
    counts = {difference.shape[1] for difference in differences}
    if len(counts) > 1:
        raise ValueError(f"pictures have {sorted(counts)} tokens; vectors per token need the same number in all")
    delta = torch.stack(differences)  # (N, L_V + 1, n, d_V)
    _, layers, n, width = delta.shape
    by_token = delta.reshape(len(delta), n, layers, width) if legacy_layout else delta.transpose(1, 2)
    rows = []
    for t in range(n):
        where = f"token {t} of the vision tower, all blocks together"
        component, mean = first_component(by_token[:, t].flatten(1), centred=True, sign="score", where=where)
        rows.append(mean + component)
    u = torch.stack(rows)
    u = u.view(layers, n, width).transpose(0, 1) if legacy_layout else u.view(n, layers, width)
    return u[:, 1:].contiguous()


@torch.no_grad()
def _masked_minus_original(
    model: HuggingFaceModel,
    tower: nn.Module,
    blocks: Sequence[nn.Module],
    picture: Picture,
    *,
    ratio: float,
    masks: int,
    seed: int,
) -> Tensor:
    """Mean state over random maskings minus the picture's own, (L_V + 1, n, d_V), row 0 being what enters block 0."""
    layout = model.family.pixel_layout
    tensors = model.family.tensors([picture])
    pixels = layout.at_tower(tensors["pixel_values"]).to(next(tower.parameters()))
    view = layout.whole_view(pixels)
    patches = layout.n_patches(view)
    n_hidden = int(ratio * patches)
    generator = torch.Generator().manual_seed(int(picture.digest[:12], 16) ^ seed)
    hidden = torch.zeros(masks, patches, dtype=torch.bool)
    for row in hidden:
        row[torch.randperm(patches, generator=generator)[:n_hidden]] = True

    def mean_states(copies: Tensor) -> Tensor:
        total = torch.zeros(())
        for part in copies.split(MASKS_AT_ONCE):
            total = total + _states(layout, tower, blocks, part, tensors).sum(1)
        return total / len(copies)

    original = mean_states(view[None])
    if not n_hidden:  # batches of different sizes differ in their last bits, and those would become a direction
        return torch.zeros_like(original)
    return mean_states(layout.masked(view, hidden.to(view.device))) - original


def _states(
    layout: PixelLayout,
    tower: nn.Module,
    blocks: Sequence[nn.Module],
    copies: Tensor,
    tensors: Mapping[str, Tensor],
) -> Tensor:
    """What enters the first vision block and what leaves every one, on the CPU: (L_V + 1, copies, n, d_V)."""
    seen: list[Tensor] = []

    def see(states: Tensor) -> None:
        by_copy = layout.by_copy(states.to(at_least_float32(states)), len(copies))
        if not layout.has_places:
            by_copy = by_copy.mean(1, keepdim=True)
        seen.append(by_copy.cpu())

    def look(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not seen:
            see(args[0])
        see(output[0] if isinstance(output, tuple) else output)

    with Hooks([(block, look) for block in blocks]):
        layout.run(tower, copies, tensors)
    states = torch.stack(seen)
    check_states(states, what="what enters the vision tower's blocks (0) and what leaves them (from 1 on)")
    return states


def vision_tower(model: HuggingFaceModel) -> tuple[nn.Module, list[nn.Module]]:
    """The vision tower and its blocks: the list in it that is as long as the configuration says.

    Convention: never the longest list: Qwen2.5-VL-7B has 32 vision and 28 decoder blocks, Gemma-3-12B 27 and 48.

    Raises:
        ValueError: a text model.
        UnsupportedModelError: there is no such list of blocks with an MLP each, or more than one.
    """
    if not model.family.marker:
        raise ValueError(f"{model.name} is a text model and has no vision tower; for text there is ICV")
    tower, depth = model.family.vision_tower(model.hf), model.family.n_vision_blocks
    lists = {
        name: module
        for name, module in tower.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
        if all(isinstance(getattr(block, "mlp", None), nn.Module) for block in module)
    }
    if len(lists) != 1:
        names = ", ".join(lists) or "none"
        raise UnsupportedModelError(f"{model.name}: expected one list of {depth} vision blocks with an MLP; {names}")
    (blocks,) = lists.values()
    return tower, list(blocks)


@contextmanager
def steer_vision(model: HuggingFaceModel, visual: Tensor, *, alpha: float) -> Iterator[None]:
    """Steer every MLP of the vision tower by u, (n, L_V, d_V); image features are computed anew inside.

    Raises:
        TypeError: alpha is no number.
        ValueError: the vectors belong to another tower, or something is not finite; while steering: a picture with
            another number of tokens.
        FloatingPointError: while steering: a value is not finite.
    """
    _, blocks = vision_tower(model)
    if visual.ndim != 3 or visual.shape[1] != len(blocks):
        raise ValueError(f"{model.name} has {len(blocks)} vision blocks; the vectors are {tuple(visual.shape)}")
    if not visual.isfinite().all():
        raise ValueError("the vision tower's vectors must be finite; fit them again")
    strength = FACTOR * finite_number("alpha", alpha)

    def steer(block: int, step: Tensor) -> Hook:
        def hook(mlp: nn.Module, args: Any, m: Tensor) -> Tensor:
            tokens, width = m.shape[-2:]
            if width != step.shape[1] or len(step) not in (1, tokens):
                raise ValueError(
                    f"the vectors are for {len(step)} tokens of width {step.shape[1]} in the vision tower; this "
                    f"picture has {tokens} of width {width}. Fit on pictures of the same kind with this model"
                )
            wide = m.to(at_least_float32(m))
            new = keep_norm(wide, step.to(wide)).to(m)
            if not new.isfinite().all():
                raise FloatingPointError(
                    f"vision block {block}: its MLP is not finite when steered; choose a smaller alpha"
                )
            return new

        return hook

    hooks = [
        (block.get_submodule("mlp"), steer(i, strength * unit(u)))
        for i, (block, u) in enumerate(zip(blocks, visual.unbind(1), strict=True))
        if u.any()
    ]
    with Hooks(hooks), model.fresh_image_features():
        yield
