"""Running a prompt again with other embeddings: what a run needs besides them, and what a picture puts among them.

The merging of text and picture is observed at the decoder's entrance, in the model's own forward pass.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn

from grains_ref.models.families import Picture

if TYPE_CHECKING:
    from grains_ref.models.huggingface import HuggingFaceModel


class _SeenEnoughError(Exception):
    """Ends a forward pass at the decoder's entrance."""


def compute_image_features(model: HuggingFaceModel, picture: Picture) -> Tensor:
    """(n, d), seen at the decoder's entrance in a run on the picture's tokens alone."""
    text = model.family.expansion(picture.size)
    ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **model.family.tensors([picture])}
    seen: list[Tensor] = []

    caller = threading.get_ident()

    def look(decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if threading.get_ident() != caller:
            return
        seen.append(kwargs["inputs_embeds"][0])
        raise _SeenEnoughError  # before any other hook of the decoder: nothing is to be steered or recorded here

    handle = model.decoder.register_forward_pre_hook(look, with_kwargs=True, prepend=True)
    try:
        with contextlib.suppress(_SeenEnoughError):
            on_device = {name: tensor.to(model.device) for name, tensor in inputs.items()}
            model.hf(**on_device, logits_to_keep=1, use_cache=False)
    finally:
        handle.remove()
    return seen[0][ids[0] == model.prompts.image_id].cpu()


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


def image_token_id(config: transformers.PretrainedConfig) -> int:
    """The id that stands for one piece of a picture; -1 for a text model."""
    for name in ("image_token_id", "image_token_index"):  # transformers 5, 4
        if (found := getattr(config, name, None)) is not None:
            return int(found)
    return -1
