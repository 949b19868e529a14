"""Running a prompt again with other embeddings: what a run needs besides them, and what a picture puts among them.

Nothing of this is computed here.  The model's own forward pass is run on ids and pixels, a hook at the decoder's
entrance records what arrives there, and it is played back with other embeddings.  In a replay (`Encoded.replay`) the
last axis of every tensor is T, so that all are padded, continued and repeated alike:

| name | what it is | where it is played back |
|---|---|---|
| attention_mask, position_ids, token_type_ids, ... | what the model's `forward` takes | there |
| "entrance PATH" | what the decoder is given for every token besides, (F, T) | at the entrance |
| "pictures PATH" | the same for image tokens alone, as Qwen3-VL's deep-stack features, else zero | at the entrance |
| "mask PATH" | which tokens these are, (1, T) | at the entrance |
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn

from grains_ref.grains import Hooks
from grains_ref.models.families import Picture, UnsupportedModelError

if TYPE_CHECKING:
    from grains_ref.models.huggingface import HuggingFaceModel


ENTRANCE, PICTURES, MASK = "entrance ", "pictures ", "mask "  # begin the names of what is played back at the entrance
# What the decoder is given and what is made anew in a replay: masks from `attention_mask` and token types.
MADE_ANEW = {
    *("input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values", "cache_position"),
    *("token_type_ids", "mm_token_type_ids", "labels"),
}


class _SeenEnoughError(Exception):
    """Ends a forward pass at the decoder's entrance."""


@dataclass(frozen=True)
class Entrance:
    """What arrived at the decoder in a run on ids and pixels, T tokens of which n are a picture's."""

    features: Tensor  # (n, d), embeddings of the image tokens
    deep: dict[str, Tensor] = field(default_factory=dict)  # what else comes for image tokens alone, (n, F) each
    replay: dict[str, Tensor] = field(default_factory=dict)  # positions, and what comes for every token, (..., T)

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.nbytes for tensor in (self.features, *self.deep.values(), *self.replay.values()))


def record(model: HuggingFaceModel, ids: Sequence[int], pictures: Sequence[Picture]) -> Entrance:
    """Run the model on the ids of a prompt and its pictures up to the decoder's entrance.

    Raises:
        UnsupportedModelError: what arrives there cannot be played back.
    """
    row = torch.tensor([list(ids)])
    is_image = row == model.prompts.image_id
    inputs = {"input_ids": row, "attention_mask": torch.ones_like(row)}
    if pictures:
        inputs |= model.family.tensors(pictures)
    inputs |= model.family.recording(is_image)
    given: list[dict[str, Any]] = []
    caller = threading.get_ident()

    def look(decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if threading.get_ident() != caller:
            return
        given.append(kwargs)
        raise _SeenEnoughError  # before any other hook of the decoder: nothing is to be steered or recorded here

    handle = model.decoder.register_forward_pre_hook(look, with_kwargs=True, prepend=True)
    try:
        with contextlib.suppress(_SeenEnoughError):
            on_device = {name: tensor.to(model.device) for name, tensor in inputs.items()}
            model.hf(**on_device, logits_to_keep=1, use_cache=False)
    finally:
        handle.remove()
    if not given or given[0].get("inputs_embeds") is None:
        raise UnsupportedModelError(
            f"{model.name}: no embeddings arrive at its decoder, {type(model.decoder).__name__}"
        )
    return _entrance(model.name, given[0], is_image[0])


def _entrance(name: str, given: dict[str, Any], is_image: Tensor) -> Entrance:
    """The decoder's arguments, sorted by what they are of: of image tokens alone, or of every token."""
    length, n = len(is_image), int(is_image.sum())
    features = given["inputs_embeds"][0].cpu()[is_image]
    deep: dict[str, Tensor] = {}
    replay: dict[str, Tensor] = {}
    positions = given.get("position_ids")
    if positions is not None:
        replay["position_ids"] = positions.cpu().squeeze(-2)  # (..., 1, T)
    for argument, value in given.items():
        if argument in MADE_ANEW:
            continue
        for path, tensor in _tensors(argument, value):
            if n and tensor.dtype == torch.bool and torch.equal(tensor.cpu().reshape(-1), is_image):
                deep[MASK + path] = torch.ones(n, 1, dtype=torch.long)
            elif tensor.shape[:2] == (1, length):
                replay[ENTRANCE + path] = tensor[0].cpu().movedim(0, -1)  # (T, ...) -> (..., T)
            elif n and tensor.ndim == 2 and len(tensor) == n:
                deep[PICTURES + path] = tensor.cpu()
            else:
                raise UnsupportedModelError(
                    f"{name}: its decoder is given {argument!r} of shape {tuple(tensor.shape)} besides embeddings, for "
                    f"{length} tokens of which {n} are a picture's; expected a value for each token, or for each of "
                    "the picture's"
                )
    return Entrance(features, deep, replay)


def _tensors(argument: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of an argument and their paths: itself, or those of a list or a dictionary by layers."""
    if isinstance(value, Tensor):
        yield argument, value
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            if isinstance(item, Tensor):
                yield f"{argument} list {i}", item
    elif isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, Tensor):
                yield f"{argument} dict {key}", item


def at_tokens(deep: dict[str, Tensor], is_image: Tensor) -> dict[str, Tensor]:
    """What comes for image tokens alone, put where they are: (n, F) each, (T,) -> (F, T) each, zero elsewhere."""
    replay = {}
    for path, tensor in deep.items():
        replay[path] = tensor.new_zeros(tensor.shape[1], len(is_image))
        replay[path][:, is_image] = tensor.T
    return replay


def run(model: HuggingFaceModel, embeds: Tensor, replay: dict[str, Tensor], **options: Any) -> Any:
    """The model's own forward pass on embeddings (B, T, d), with masks, positions and what else `replay` holds."""
    inputs = {name: tensor for name, tensor in replay.items() if " " not in name}
    given = _entering(replay, embeds)
    if not given:
        return model.hf(inputs_embeds=embeds, **inputs, **options)

    def enter(decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, kwargs | given

    with Hooks(before=[(model.decoder, enter)]):
        return model.hf(inputs_embeds=embeds, **inputs, **options)


def _entering(replay: dict[str, Tensor], embeds: Tensor) -> dict[str, Any]:
    """The arguments that are played back at the decoder's entrance, (B, T, ...) or (image tokens of all rows, F)."""
    masks = [tensor for name, tensor in replay.items() if name.startswith(MASK)]
    seen = masks[0][0].bool() if masks else None  # (B, T)
    given: dict[str, Any] = {}
    for name, tensor in replay.items():
        kind, _, path = name.partition(" ")
        of_token = tensor.movedim((-2, -1), (0, 1)) if path else tensor  # (..., B, T) -> (B, T, ...)
        if f"{kind} " == ENTRANCE:
            _put(given, path, of_token)
        elif seen is None or not seen.any():
            continue  # no picture in this batch
        elif f"{kind} " == PICTURES:
            _put(given, path, of_token[seen].to(embeds))
        elif f"{kind} " == MASK:
            _put(given, path, seen)
    return given


def _put(given: dict[str, Any], path: str, tensor: Tensor) -> None:
    """The reverse of `_tensors`; the items of a list come in order."""
    argument, _, place = path.partition(" ")
    kind, _, key = place.partition(" ")
    if kind == "list":
        given.setdefault(argument, []).append(tensor)
    elif kind == "dict":
        given.setdefault(argument, {})[int(key)] = tensor
    else:
        given[argument] = tensor


def repeated(replay: dict[str, Tensor], *, batch: int, response: int, device: torch.device) -> dict[str, Tensor]:
    """A prompt's masks, positions and token types, continued over `response` text tokens, repeated over the batch.

    (..., T) -> (..., batch, T + response); only 3-D positions have more axes in front.
    """
    after = int(replay["position_ids"].max()) + 1
    following = {"attention_mask": torch.ones(response).long(), "position_ids": after + torch.arange(response)}
    continued_and_repeated = {}
    for name, tensor in replay.items():
        of_response = following.get(name, torch.zeros(response)).to(tensor)
        of_response = of_response.expand(*tensor.shape[:-1], -1)
        continued = torch.cat([tensor, of_response], dim=-1).to(device)
        continued_and_repeated[name] = continued.unsqueeze(-2).expand(*continued.shape[:-1], batch, -1)
    return continued_and_repeated


def padded_replay(replays: Sequence[dict[str, Tensor]], *, device: torch.device) -> dict[str, Tensor]:
    """Of several prompts one, left-padded: (..., T) of different T -> (..., B, longest T); no padding is attended."""
    largest: dict[str, Tensor] = {}  # of every name, the tensor with most axes
    for row in replays:
        for name, tensor in row.items():
            if name not in largest or tensor.ndim > largest[name].ndim:
                largest[name] = tensor
    padded = {}
    for name, like in largest.items():
        of_rows = []
        for row in replays:
            nothing = like.new_zeros(row["attention_mask"].shape[-1])  # what a prompt without a picture adds
            of_rows.append(row.get(name, nothing).expand(*like.shape[:-1], -1))
        padded[name] = left_pad(of_rows, value=0).to(device)
    return padded


def left_pad(rows: Sequence[Tensor], *, value: int) -> Tensor:
    """Tensors (..., T) of different T -> (..., B, longest T)."""
    longest = max(row.shape[-1] for row in rows)
    return torch.stack([nn.functional.pad(row, (longest - row.shape[-1], 0), value=value) for row in rows], dim=-2)


def image_token_id(config: transformers.PretrainedConfig) -> int:
    """The id that stands for one piece of a picture; -1 for a text model."""
    for name in ("image_token_id", "image_token_index"):  # transformers 5, 4
        if (found := getattr(config, name, None)) is not None:
            return int(found)
    return -1
