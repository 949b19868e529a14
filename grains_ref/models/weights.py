"""The weights as they are, wherever they lie: whether they are finite, and the hash that tells one model from another.

A parameter may be on a device, offloaded by accelerate to main memory or to disk, or spread over devices (a DTensor).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Set
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from grains_ref.models.blocks import Decoder
from grains_ref.models.families import UnsupportedModelError


def check_finite(hf: nn.Module, *, name: str) -> None:
    """Refuse weights that hold a NaN or an infinity. What is offloaded is not read for it: its scores are checked.

    Raises:
        ValueError: with the name of the parameter.
    """
    for parameter_name, parameter in hf.named_parameters():
        if parameter.is_meta or not parameter.is_floating_point():
            continue
        values = _numbers(parameter)
        if math.isfinite(values.sum().item()) or torch.isfinite(values).all():  # a sum takes one pass, and may overflow
            continue
        count = int((~torch.isfinite(values)).sum())
        raise ValueError(
            f"{name}: {count} of {parameter.numel()} values of the parameter {parameter_name!r} are NaN or infinite. "
            "The file is damaged, the training diverged, or the weights do not fit into "
            f"{parameter.dtype}: get the files again, or load them in the dtype that they were stored in"
        )


def fingerprint(hf: transformers.PreTrainedModel, decoder: Decoder, *, sees: bool) -> str:
    """See `HuggingFaceModel.fingerprint`; sees: whether it has a vision tower, which then counts, too."""
    config = hf.config.get_text_config()
    embed: Any = hf.get_input_embeddings()
    shape = {
        key: getattr(config, key, None)
        for key in ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    }
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    for embeddings in _parameters(embed):  # nearly always one
        for rows in embeddings.split(4096):
            digest.update(_bfloat16_bytes(rows))
    for block in decoder.blocks:
        for parameter in _parameters(block):
            digest.update(_bfloat16_bytes(parameter.flatten()[:4096]))
    if sees:
        of_text = {id(parameter) for parameter in decoder.module.parameters()}
        of_text.add(id(embed.weight))
        if config.tie_word_embeddings:  # offloading makes two place-holders of one matrix
            of_text.add(id(hf.get_output_embeddings().weight))
        others = _parameters(hf, but=of_text)
        for start in sorted(_bfloat16_bytes(parameter.flatten()[:4096]) for parameter in others):
            digest.update(start)
    return digest.hexdigest()


def execution_device(module: nn.Module, weight: Tensor) -> torch.device:
    """Where a module computes: where its weight is, or where accelerate brings it for the length of a call."""
    if not weight.is_meta:
        return weight.device
    for hook in _accelerate_hooks(module):
        device = getattr(hook, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return torch.device("cpu")


def _parameters(module: nn.Module, *, but: Set[int] = frozenset()) -> Iterator[Tensor]:
    """The whole value of every parameter but those with these ids, once, in the order of `module.parameters()`."""
    for path, parameter in module.named_parameters():
        if id(parameter) not in but:  # what is left out is not read from the disk either
            owner, _, name = path.rpartition(".")
            yield _whole(module.get_submodule(owner), name, parameter)


def _whole(owner: nn.Module, name: str, parameter: Tensor) -> Tensor:
    """The value of a parameter, also where the parameter itself is only a place-holder or one device's share."""
    if hasattr(parameter, "full_tensor"):  # a DTensor
        gathered: Tensor = parameter.full_tensor()
        return gathered
    if not parameter.is_meta:
        return _numbers(parameter)
    for hook in _accelerate_hooks(owner):
        stored = getattr(hook, "weights_map", None)
        if stored is not None:
            value: Tensor = stored[name]
            return value
    raise UnsupportedModelError(
        f"the parameter {name!r} of a {type(owner).__name__} is on the meta device: it has no value. Was the model "
        "built without loading weights, or offloaded by something other than accelerate (device_map)?"
    )


def _numbers(parameter: Tensor) -> Tensor:
    """The numbers that a parameter stands for: of weights that torchao packs, unpacked; of 8-bit floats, as float32."""
    if hasattr(parameter, "tensor_impl") or "torchao" in type(parameter.data).__module__:
        return parameter.dequantize()
    if parameter.is_floating_point() and parameter.itemsize == 1:
        return parameter.float()
    return parameter


def _accelerate_hooks(module: nn.Module) -> list[object]:
    """The hooks that accelerate has put on a module, one by one."""
    hook = getattr(module, "_hf_hook", None)
    return list(getattr(hook, "hooks", [hook]))


def _bfloat16_bytes(values: Tensor) -> bytes:
    return values.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()
