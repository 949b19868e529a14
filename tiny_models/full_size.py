"""Rungs 3 and 4: the full architectures with random weights, or with released ones that are already on this machine.

Nothing is downloaded.  A configuration in `configs/` fixes the architecture; `find_weights` looks for released weights
of it in a local folder or the Hugging Face cache, and `random_model` builds it with random weights, created in
bfloat16 on the device itself, so that no copy of 16 GB passes through the host's memory.  `shrunken` is the same
architecture cut down until a CPU runs it in a second, for proving that the code of these rungs works where no GPU is.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import AutoConfig, PretrainedConfig

from grains_ref.models import HuggingFaceModel, load
from grains_ref.models.vision_families import family_class
from grains_ref.tiny_models.full_pairs import texts
from grains_ref.tiny_models.full_processors import processors_of

CONFIGS = Path(__file__).parent / "configs"
GIB = 2**30
Weights = Literal["random", "released"]


@dataclass(frozen=True)
class Released:
    """Where released weights of a configuration may lie on this machine."""

    variable: str  # environment variable with a local folder
    repositories: tuple[str, ...]  # names in the Hugging Face cache; the first is the paper's model


RELEASED = {
    "llama-3.1-8b": Released(
        "GRAINS_LLAMA_PATH",
        (
            "meta-llama/Llama-3.1-8B-Instruct",
            "meta-llama/Meta-Llama-3.1-8B-Instruct",  # its first name
            "meta-llama/Llama-3.1-8B",
            "meta-llama/Meta-Llama-3.1-8B",
        ),
    ),
    "qwen2.5-7b": Released("GRAINS_QWEN_PATH", ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B")),
    "llava-v1.6-vicuna-7b": Released("GRAINS_LLAVA_PATH", ("llava-hf/llava-v1.6-vicuna-7b-hf",)),
    "qwen2.5-vl-7b": Released("GRAINS_QWEN_VL_PATH", ("Qwen/Qwen2.5-VL-7B-Instruct",)),
    "gemma-3-12b": Released("GRAINS_GEMMA_PATH", ("google/gemma-3-12b-it", "google/gemma-3-12b-pt")),
}


# ------------------------------------------------------------------------------------- architectures
def read_config(name: str, **changes: Any) -> PretrainedConfig:
    """The configuration `configs/{name}.json`, with some of its keys changed.

    Raises:
        ValueError: there is no such configuration.
    """
    path = CONFIGS / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.json")))
        raise ValueError(f"no configuration is called {name!r}; there are: {known}")
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    # from_dict, unlike the constructor, understands the keys of every transformers version (rope_theta, torch_dtype).
    config: PretrainedConfig = type(AutoConfig.for_model(content["model_type"])).from_dict(content)
    return config


def shrunken(name: str, *, vocab_size: int, n_blocks: int = 3) -> PretrainedConfig:
    """The same architecture with few and narrow blocks; query heads per key-value head and rotary scaling are kept.

    Vision towers have two blocks more than the decoder, and views of 4 x 4 patches of the full size (LLaVA, which keeps
    its pinpoints, and Gemma 3) or pictures of any size (Qwen2.5-VL).  As many rows of the vocabulary lie behind the
    token of a picture as in the full model.

    Raises:
        ValueError: there is no such configuration.
    """
    full = read_config(name)
    text = full.get_text_config()
    heads = 2 * text.num_attention_heads // text.num_key_value_heads
    width = heads * max(8, 64 // heads)
    narrow = {
        "vocab_size": vocab_size,
        "num_hidden_layers": n_blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
        "hidden_size": width,
        "intermediate_size": 3 * width,
    }
    image_id = vocab_size - 64
    tower = {"hidden_size": 32, "intermediate_size": 128}
    if full.model_type == "llama":
        return read_config(name, **narrow, bos_token_id=0, eos_token_id=1)
    if full.model_type == "qwen2":
        return read_config(name, **narrow, max_window_layers=n_blocks, bos_token_id=0, eos_token_id=1)
    if full.model_type == "qwen2_5_vl":
        return read_config(
            name,
            **narrow,
            max_window_layers=n_blocks,
            bos_token_id=0,
            eos_token_id=1,
            vision_start_token_id=image_id - 2,
            vision_end_token_id=image_id - 1,
            image_token_id=image_id,
            video_token_id=image_id + 1,
            rope_scaling={"type": "mrope", "mrope_section": [1, 1, width // heads // 2 - 2]},
            vision_config={
                **tower,
                "depth": n_blocks + 2,
                "num_heads": 2,
                "out_hidden_size": width,
                "fullatt_block_indexes": [1, n_blocks + 1],
                "patch_size": full.vision_config.patch_size,
                "window_size": full.vision_config.window_size,
            },
        )
    view = 4 * full.vision_config.patch_size
    tower |= {"num_attention_heads": 2, "num_hidden_layers": n_blocks + 2}
    tower |= {"image_size": view, "patch_size": full.vision_config.patch_size}
    if full.model_type == "gemma3":
        kinds = ["sliding_attention"] * (n_blocks - 1) + ["full_attention"]
        rotary = {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "layer_types": kinds}
        heads_of = {"head_dim": width // heads, "query_pre_attn_scalar": width // heads, "sliding_window": 16}
        return read_config(
            name,
            image_token_index=image_id,
            boi_token_index=image_id - 2,
            eoi_token_index=image_id - 1,
            mm_tokens_per_image=4,
            text_config={**narrow, **rotary, **heads_of, "model_type": "gemma3_text"},
            vision_config={**tower, "model_type": "siglip_vision_model", "vision_use_head": False},
        )
    return read_config(
        name,
        vocab_size=vocab_size,
        image_token_index=image_id,
        image_grid_pinpoints=[[view * edge // 336 for edge in pinpoint] for pinpoint in full.image_grid_pinpoints],
        text_config={**narrow, "model_type": "llama", "rms_norm_eps": text.rms_norm_eps, "pad_token_id": 0},
        vision_config={**tower, "model_type": "clip_vision_model"},
    )


# --------------------------------------------------------------------------------------------- weights
def random_model(
    config: PretrainedConfig,
    *,
    name: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> HuggingFaceModel:
    """A model of `config` with random weights and a tokenizer that is trained here on the synthetic pairs.

    Models that see get a tokenizer and an image processor made like their own.  The weights are a function of the seed
    and the parameter's name; equal on machines with the same kind of device.

    Raises:
        ValueError: another architecture than the five of `configs/`, or a vocabulary too small for the tokenizer.
    """
    tokenizer, image_processor = processors_of(config, texts(sees=hasattr(config, "vision_config")))
    device = torch.device(device)
    family = family_class(config)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        hf = family.auto_class.from_config(config, dtype=dtype, attn_implementation="sdpa")
    n_vision_blocks = family(config, image_processor, "").n_vision_blocks if image_processor else 0
    fill_on_device(hf, n_vision_blocks=n_vision_blocks, seed=seed)
    return HuggingFaceModel(hf, tokenizer, name=name, image_processor=image_processor)


# Matrices that write to a residual stream, in the decoders and in the vision towers.
WRITES = ("o_proj.weight", "down_proj.weight", "out_proj.weight", "fc2.weight", "attn.proj.weight")


def fill_on_device(module: transformers.PreTrainedModel, *, n_vision_blocks: int = 0, seed: int) -> None:
    """Normal weights, drawn where the parameters are, at which activations stay of order one at any depth and width.

    Embeddings have standard deviation 1, CLIP's class token and LLaVA's newline among them, and matrices and the
    convolution that reads the pixels 1 / sqrt(fan-in).  The matrices that write to a residual stream (`WRITES`) are
    divided by sqrt(2 L) more, as in GPT-2, so that 2 L writes add up to the size of one.  Norms' weights are 1 and
    biases small but not zero, which a biased projection needs in order to be tested.

    Gemma 3 multiplies embeddings by sqrt(d), adds 1 to the weights of its norms, and has a norm behind everything that
    writes to the residual stream: embeddings are divided by sqrt(d) here, its norms' weights are 0, and those norms
    scale by 1 / sqrt(2 L), because no matrix in front of them could.
    """
    text = module.config.get_text_config()
    is_gemma = module.config.model_type == "gemma3"
    adds_one = {id(m.weight) for m in module.modules() if type(m).__name__ == "Gemma3RMSNorm"}
    for name, parameter in module.named_parameters():
        in_vision = "vision_tower" in name or ".visual." in name
        depth = n_vision_blocks if in_vision else text.num_hidden_layers
        generator = torch.Generator(parameter.device)
        generator.manual_seed(int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "big") % 2**63)
        with torch.no_grad():
            if name.endswith(("class_embedding", "image_newline")):
                parameter.normal_(0.0, 1.0, generator=generator)
            elif name.endswith("mm_input_projection_weight"):  # (fan-in, fan-out)
                parameter.normal_(0.0, len(parameter) ** -0.5, generator=generator)
            elif parameter.ndim >= 2:
                std = 1.0 if "embed" in name and parameter.ndim == 2 else parameter[0].numel() ** -0.5
                if is_gemma and name.endswith("embed_tokens.weight"):
                    std = text.hidden_size**-0.5
                std /= (2 * depth) ** 0.5 if name.endswith(WRITES) else 1.0
                parameter.normal_(0.0, std, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.1, generator=generator)
            elif id(parameter) in adds_one:
                behind_a_write = "post_attention" in name or "post_feedforward" in name
                parameter.fill_((2 * depth) ** -0.5 - 1 if behind_a_write else 0.0)
            else:
                parameter.fill_(1.0)


def find_weights(name: str) -> Path | None:
    """The folder with released weights of configuration `name` on this machine, or None.

    Looked for in the folder that the environment variable of `RELEASED` names, then in the Hugging Face cache.  A cache
    entry that lacks some of its files, as an interrupted download leaves it, is passed over; a folder that was asked
    for by name is not.

    Raises:
        FileNotFoundError: the variable is set, but its folder lacks something.
        ValueError: what was found is another architecture than the configuration's.
    """
    if name not in RELEASED:
        return None
    released = RELEASED[name]
    if given := os.environ.get(released.variable):
        folder = Path(given)
        if missing := _missing(folder, name):
            raise FileNotFoundError(f"{released.variable} names {folder}, where this is missing: {', '.join(missing)}")
        _check_architecture(folder, name)
        return folder
    for repository in released.repositories:
        cached = _cached_folder(repository)
        if cached is not None and not _missing(cached, name):
            _check_architecture(cached, name)
            return cached
    return None


def full_model(
    name: str, *, device: str | torch.device, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> tuple[HuggingFaceModel, Weights]:
    """The model of configuration `name`: released weights where this machine has them, random ones otherwise.

    Raises:
        FileNotFoundError, ValueError: see `find_weights`.
    """
    folder = find_weights(name)
    if folder is not None:
        return load(folder, dtype=dtype, device=device), "released"
    return random_model(read_config(name), name=f"random {name}", device=device, dtype=dtype, seed=seed), "random"


def parameter_bytes(model: HuggingFaceModel) -> int:
    """Bytes that the parameters take."""
    return sum(p.numel() * p.element_size() for p in model.hf.parameters())


def saved_bytes_per_token(config: PretrainedConfig) -> int:
    """Bytes that a Llama decoder in bfloat16 keeps for the backward pass, per token of one response's run.

    Per block: the inputs of its two norms in float32; queries, keys, values, the attention's result and its
    log-sum-exp (a fused kernel); gate, its activation and up of the MLP.  Behind the blocks: the last norm's input.
    The parameters need no gradient, so no input of a matrix product is kept for them.
    """
    d, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or d // heads
    attention = 2 * head_dim * (2 * heads + 2 * config.num_key_value_heads) + 4 * heads
    block = 2 * 4 * d + attention + 3 * 2 * config.intermediate_size
    return int(config.num_hidden_layers * block + 4 * d)


def _cached_folder(repository: str) -> Path | None:
    """The snapshot of a repository in the Hugging Face cache; looks, never fetches."""
    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _missing(folder: Path, name: str) -> list[str]:
    """What a folder lacks to be loaded as configuration `name` without the hub."""
    needed = ["config.json", "tokenizer.json"]
    if hasattr(read_config(name), "vision_config"):
        needed.append("preprocessor_config.json")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        needed += sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        needed.append("model.safetensors")
    return [file for file in needed if not (folder / file).is_file()]


def _check_architecture(folder: Path, name: str) -> None:
    """Records and memory bounds are about one architecture: weights of another one must not slip in."""
    whole, expected_whole = AutoConfig.from_pretrained(folder, trust_remote_code=False), read_config(name)
    found, expected = whole.get_text_config(), expected_whole.get_text_config()
    compared = [("model_type", whole.model_type, expected_whole.model_type)]
    for key in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "vocab_size"):
        compared.append((key, getattr(found, key), getattr(expected, key)))
    for key, value, right in compared:
        if value != right:
            raise ValueError(f"the weights in {folder} are not {name}: {key} is {value}, not {right}")
