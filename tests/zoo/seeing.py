"""Tiny random models of the image-text types that have a class here, with local tokenizers and PIL image processors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

from grains_ref.models import HuggingFaceModel
from grains_ref.models.vision_families import VISION_FAMILIES
from grains_ref.tiny_models.random_models import common_sizes, fill
from grains_ref.tiny_models.random_vision_models import random_gemma3, random_llava, random_qwen_vl

TEXT = {"hidden_size": 32, "intermediate_size": 53, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8}  # fmt: skip
CLIP = {"model_type": "clip_vision_model", "hidden_size": 24, "intermediate_size": 31, "num_hidden_layers": 5,
        "num_attention_heads": 3, "image_size": 42, "patch_size": 14}  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}


def pil(name: str) -> Any:
    """The PIL version of an image processor; transformers 4 has no other one without torchvision."""
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)


def llava(kind: str, text: str = "llama") -> HuggingFaceModel:
    """LLaVA-1.5's kind on any text model."""
    like = random_llava()
    size, extra = 42, {}
    if kind == "llava_next":
        extra["image_grid_pinpoints"] = [[42, 84], [84, 42], [84, 84]]
    elif kind == "vipllava":
        extra["vision_feature_layers"] = [-2, 1]
    config = transformers.AutoConfig.for_model(
        kind,
        text_config={"model_type": text, "vocab_size": 367, **TEXT, **common_sizes(like.tokenizer, context=256)},
        vision_config=CLIP, image_token_id=like.prompts.image_id, image_token_index=like.prompts.image_id, **extra,
    )  # fmt: skip
    crop = {"height": size, "width": size}
    if kind == "llava_next":
        pinpoints = extra["image_grid_pinpoints"]
        processor = pil("LlavaNextImageProcessor")(
            size={"shortest_edge": size}, crop_size=crop, image_grid_pinpoints=pinpoints
        )
    else:
        processor = pil("CLIPImageProcessor")(size={"shortest_edge": size}, crop_size=crop)
    return _built(config, like.tokenizer, f"{kind}-{text}", processor)


def qwen(kind: str) -> HuggingFaceModel:
    """Qwen's later kinds: one token per 2 x 2 patches, positions in three dimensions."""
    like = random_qwen_vl()
    ids = {name: getattr(like.hf.config, name) for name in (
        "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")}  # fmt: skip
    side = 14 if kind == "qwen2_vl" else 16
    text: dict[str, Any] = {"vocab_size": 373, **TEXT, **common_sizes(like.tokenizer, context=256)}
    vision: dict[str, Any] = {"depth": 5, "hidden_size": 24, "num_heads": 3, "patch_size": side}
    if kind == "qwen2_vl":
        text |= {"rope_parameters": MROPE}
        vision |= {"embed_dim": 24, "hidden_size": 32, "mlp_ratio": 2}
    else:
        vision |= {"intermediate_size": 31, "out_hidden_size": 32, "num_position_embeddings": 64}
        text |= {"rope_parameters": {**MROPE, "mrope_interleaved": True}}
    if kind.startswith("qwen3_vl"):
        vision |= {"deepstack_visual_indexes": [1, 3]}
    if kind.endswith("moe"):
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                 "shared_expert_intermediate_size": 16}  # fmt: skip
    if kind.startswith("qwen3_5"):
        text |= {"layer_types": ["linear_attention", "full_attention"] * 2, "linear_num_value_heads": 4,
                 "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}  # fmt: skip
        text["rope_parameters"] |= {"partial_rotary_factor": 1.0}
    config = transformers.AutoConfig.for_model(
        kind, text_config=text, vision_config=vision, tie_word_embeddings=False, **ids
    )
    limits = {"shortest_edge": (4 * side) ** 2, "longest_edge": 30 * (2 * side) ** 2}
    processor = pil("Qwen2VLImageProcessor")(size=limits, patch_size=side)
    return _built(config, like.tokenizer, kind, processor)


def mistral3(kind: str) -> HuggingFaceModel:
    """Mistral 3 on Pixtral's tower."""
    like = random_qwen_vl()
    tokenizer = like.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]})
    config = transformers.AutoConfig.for_model(
        kind,
        text_config={"model_type": "mistral", "vocab_size": 373, **TEXT, **common_sizes(tokenizer, context=256)},
        vision_config={"model_type": "pixtral", "hidden_size": 24, "intermediate_size": 31, "num_hidden_layers": 5,
                       "num_attention_heads": 3, "image_size": 112, "patch_size": 14, "head_dim": 8},
        image_token_id=tokenizer.convert_tokens_to_ids("[IMG]"),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
    )  # fmt: skip
    processor = pil("PixtralImageProcessor")(size={"longest_edge": 112}, patch_size={"height": 28, "width": 28})
    return _built(config, tokenizer, kind, processor)


def idefics3(kind: str) -> HuggingFaceModel:
    """Idefics 3 and SmolVLM on SigLIP-like towers: tiles of 56 x 56 pixels, 2 x 2 tokens a view."""
    like = random_qwen_vl()
    tokenizer = like.tokenizer
    places = [f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3)]
    names = ["<image>", "<fake_token_around_image>", "<global-img>", *places]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    config = transformers.AutoConfig.for_model(
        kind,
        text_config={"model_type": "llama", "vocab_size": 373, **TEXT, **common_sizes(tokenizer, context=256)},
        vision_config={"hidden_size": 24, "intermediate_size": 31, "num_hidden_layers": 5, "num_attention_heads": 3,
                       "image_size": 56, "patch_size": 14},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), scale_factor=2, tie_word_embeddings=False,
    )  # fmt: skip
    processor = pil("Idefics3ImageProcessor")(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    return _built(config, tokenizer, kind, processor)


def _built(config: Any, tokenizer: Any, name: str, processor: Any) -> HuggingFaceModel:
    with torch.random.fork_rng(devices=[]):
        hf = transformers.AutoModelForImageTextToText.from_config(config)
    fill(hf, name)
    return HuggingFaceModel(hf, tokenizer, name=name, image_processor=processor)


SEEING: dict[str, Callable[[], HuggingFaceModel]] = {
    "llava": lambda: llava("llava"),
    "llava, mistral text": lambda: llava("llava", "mistral"),
    "llava, qwen2 text": lambda: llava("llava", "qwen2"),
    "vipllava": lambda: llava("vipllava"),
    "llava_next": random_llava,
    "llava_next, mistral text": lambda: llava("llava_next", "mistral"),
    "mistral3": lambda: mistral3("mistral3"),
    "idefics3": lambda: idefics3("idefics3"),
    "smolvlm": lambda: idefics3("smolvlm"),
    "qwen2_vl": lambda: qwen("qwen2_vl"),
    "qwen2_5_vl": random_qwen_vl,
    "qwen3_vl": lambda: qwen("qwen3_vl"),
    "qwen3_vl_moe": lambda: qwen("qwen3_vl_moe"),
    "qwen3_5": lambda: qwen("qwen3_5"),
    "qwen3_5_moe": lambda: qwen("qwen3_5_moe"),
    "gemma3": random_gemma3,
}
assert {name.partition(",")[0] for name in SEEING} == set(VISION_FAMILIES)
