"""Running a prompt again with other embeddings: what a run needs besides them, and what a picture puts among them.

The merging of text and picture is observed at the decoder's entrance, in the model's own forward pass.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn

from grains_ref.grains import Hooks
from grains_ref.models.families import Picture

if TYPE_CHECKING:
    from grains_ref.models.huggingface import HuggingFaceModel


DEEP = "deep"  # in a replay: what a picture adds to the residual stream behind the first blocks


class _SeenEnoughError(Exception):
    """Ends a forward pass at the decoder's entrance."""


def compute_image_features(model: HuggingFaceModel, picture: Picture) -> Tensor:
    """(n, d), seen at the decoder's entrance in a run on the picture's tokens alone.

    Of a family that deepens, (n, d + K d): behind the embeddings what is added behind each of the first K blocks.
    """
    text = model.family.expansion(picture.size)
    ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
    pixels = model.family.tensors([picture]) | model.family.generation(ids == model.prompts.image_id)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
    is_image = (ids[0] == model.prompts.image_id).to(model.device)
    seen: list[Tensor] = []

    caller = threading.get_ident()

    def look(decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if threading.get_ident() != caller:
            return
        features = [kwargs["inputs_embeds"][0][is_image]]
        if model.family.deepens:
            features += kwargs["deepstack_visual_embeds"]
        seen.append(torch.cat(features, dim=-1))
        raise _SeenEnoughError  # before any other hook of the decoder: nothing is to be steered or recorded here

    handle = model.decoder.register_forward_pre_hook(look, with_kwargs=True, prepend=True)
    try:
        with contextlib.suppress(_SeenEnoughError):
            on_device = {name: tensor.to(model.device) for name, tensor in inputs.items()}
            model.hf(**on_device, logits_to_keep=1, use_cache=False)
    finally:
        handle.remove()
    return seen[0].cpu()


def run(model: HuggingFaceModel, embeds: Tensor, replay: dict[str, Tensor], **options: Any) -> Any:
    """The model's own forward pass on embeddings (B, T, d), with masks, positions and what else `replay` holds.

    What its `forward` does not take (`deep`) is put in at the decoder's entrance.
    """
    inputs = dict(replay)
    deep = inputs.pop(DEEP, None)  # (K d, B, T)
    if deep is None or not deep.any():
        return model.hf(inputs_embeds=embeds, **inputs, **options)
    by_block = deep.unflatten(0, (-1, embeds.shape[-1])).permute(0, 2, 3, 1)  # (K, B, T, d)
    is_image = by_block.any(-1).any(0)  # where nothing is added, nothing is lost
    added = {"visual_pos_masks": is_image, "deepstack_visual_embeds": [h[is_image].to(embeds) for h in by_block]}

    def enter(decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, kwargs | added

    with Hooks(before=[(model.decoder, enter)]):
        return model.hf(inputs_embeds=embeds, **inputs, **options)


def deep_features(features: Tensor, is_image: Tensor, width: int) -> Tensor:
    """What a picture adds behind the first blocks, at its tokens: (n, d + K d), (T,) -> (K d, T), zero elsewhere."""
    deep = features[:, width:]
    at_tokens = deep.new_zeros(deep.shape[1], len(is_image))
    at_tokens[:, is_image] = deep.T
    return at_tokens


def repeated(replay: dict[str, Tensor], *, batch: int, response: int, device: torch.device) -> dict[str, Tensor]:
    """A prompt's masks, positions and token types, continued over `response` text tokens, repeated over the batch.

    (..., T) -> (..., batch, T + response); only 3-D positions have more axes in front.
    """
    after = int(replay["position_ids"].max()) + 1
    following = {"attention_mask": torch.ones(response).long(), "position_ids": after + torch.arange(response)}
    continued_and_repeated = {}
    for name, tensor in replay.items():
        of_response = following.get(name, torch.zeros(response).long())
        of_response = of_response.expand(*tensor.shape[:-1], -1)
        continued = torch.cat([tensor, of_response], dim=-1).to(device)
        continued_and_repeated[name] = continued.unsqueeze(-2).expand(*continued.shape[:-1], batch, -1)
    return continued_and_repeated


def padded_replay(replays: Sequence[dict[str, Tensor]], *, device: torch.device) -> dict[str, Tensor]:
    """Of several prompts one, left-padded: (..., T) of different T -> (..., B, longest T); no padding is attended."""
    filled = [dict(row) for row in replays]
    deep = [row[DEEP] for row in replays if DEEP in row]
    if deep:  # prompts without a picture add nothing
        for row in filled:
            row.setdefault(DEEP, deep[0].new_zeros(len(deep[0]), row["attention_mask"].shape[-1]))
    padded = {}
    for name in filled[0]:
        padded[name] = left_pad([row[name] for row in filled], value=0).to(device)
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
