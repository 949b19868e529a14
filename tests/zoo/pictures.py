"""Tiny random models of the image-text types that have no class of their own: `AnyVision` asks them everything.

As in `recipes`, a type's default configuration is made small by the names of its fields, that of its text model, of its
vision tower and of the whole; `EXTRA` has what a type needs besides.  Image processors are transformers' own PIL ones.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.random_models import common_sizes, fill
from grains_ref.tiny_models.random_vision_models import _qwen_vl_tokenizer
from zoo import recipes

TYPES = tuple(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
SIDE, PATCH = 56, 14  # pixels, of a view and of a patch
VISION_WIDTH = 24
ROTARY = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}

SMALL_TOWER: dict[str, Any] = {  # by the name of a configuration's field
    **dict.fromkeys(("hidden_size", "embed_dim", "d_model", "vision_hidden_size"), VISION_WIDTH),
    **dict.fromkeys(("intermediate_size", "mlp_dim"), 31),
    **dict.fromkeys(("num_hidden_layers", "depth", "num_layers"), 3),
    **dict.fromkeys(("num_attention_heads", "num_heads"), 3),
    **dict.fromkeys(("num_key_value_heads",), 3),
    **dict.fromkeys(("head_dim",), 8),
    **dict.fromkeys(("image_size",), SIDE),
    **dict.fromkeys(("patch_size",), PATCH),
    **dict.fromkeys(("out_hidden_size", "output_dim", "projection_dim"), recipes.WIDTH),
    **dict.fromkeys(("num_position_embeddings",), 64),
}
SQUARE = {"height": SIDE, "width": SIDE}
MROPE_TEXT = {"text_config": {"rope_parameters": ROTARY}}
TILES = {"size": SQUARE, "crop_to_patches": True, "min_patches": 1, "max_patches": 4}
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
ANY_SIZE = {"size": {"shortest_edge": (4 * PATCH) ** 2, "longest_edge": 30 * (2 * PATCH) ** 2}, "patch_size": PATCH}
EXTRA: dict[str, dict[str, Any]] = {
    "aria": {"processor": {"max_image_size": 490}, "projector_patch_to_query_dict": {"1225": 6, "4900": 9}},
    "aya_vision": {"processor": TILES},
    "cosmos3_edge": {"processor": {"patch_size": PATCH}},
    "gemma4": {
        "text_config": {
            "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "global_head_dim": 8, "head_dim": 8,
            "layer_types": ["sliding_attention", recipes.FULL] * 2,
        },
        "vision_config": {
            "model_type": "gemma4_vision", "hidden_size": VISION_WIDTH, "intermediate_size": 31, "num_hidden_layers": 3,
            "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 8, "patch_size": PATCH,
            "position_embedding_size": 64,
        },
        "processor": {"patch_size": PATCH, "max_soft_tokens": 70},
        "audio_config": None, "video_token_id": 1, "audio_token_id": 2, "boi_token_id": 3, "eoi_token_id": 4,
    },
    "deepseek_vl": {"processor": {"size": SQUARE}},
    "glm46v": {**MROPE_TEXT, "processor": ANY_SIZE},
    "glm4v": {**MROPE_TEXT, "processor": ANY_SIZE},
    "glm5_next": {"text_config": {"num_key_value_heads": recipes.HEADS}},
    "glmga": {**MROPE_TEXT, "processor": ANY_SIZE},
    "got_ocr2": {"vision_config": {"image_size": 112}, "processor": {"size": {"height": 112, "width": 112}}},
    "granite4_vision": {
        "image_grid_pinpoints": PINPOINTS, "deepstack_layer_map": [[-2, 0], [-1, 1]], "spatial_target_layers": [2, 3],
        "processor": {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE, "image_grid_pinpoints": PINPOINTS},
    },
    "granite_docling": {
        "scale_factor": 2, "processor": {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": SIDE}},
    },
    "idefics2": {
        "perceiver_config": {
            "hidden_size": recipes.WIDTH, "resampler_n_latents": 6, "resampler_depth": 2, "resampler_n_heads": 4,
            "resampler_head_dim": 8, "num_key_value_heads": 2,
        },
        "processor": {"size": {"shortest_edge": SIDE, "longest_edge": SIDE}, "do_image_splitting": False},
    },
    "internvl": {"processor": TILES},
    "llava_next_video": {
        "image_grid_pinpoints": PINPOINTS,
        "processor": {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE, "image_grid_pinpoints": PINPOINTS},
    },
    "llava_onevision": {
        "image_grid_pinpoints": PINPOINTS, "processor": {"size": SQUARE, "image_grid_pinpoints": PINPOINTS},
    },
    "mllama": {"text_config": {"bos_token_id": 0}},
    "paddleocr_vl": {
        **MROPE_TEXT,
        "processor": {"min_pixels": (4 * PATCH) ** 2, "max_pixels": 30 * (2 * PATCH) ** 2, "patch_size": PATCH},
    },
    "pp_chart2table": {"vision_config": {"image_size": 112}, "processor": {"size": {"height": 112, "width": 112}}},
    "qianfan_ocr": {"processor": TILES},
    "shieldgemma2": {"mm_tokens_per_image": 4, "processor": {"size": SQUARE}},
    "video_llava": {"processor": {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE}},
}  # fmt: skip


@functools.cache
def shared_tokenizer() -> Any:
    """Of all tiny models that see: its image token is <|image_pad|>, between two others."""
    return _qwen_vl_tokenizer()


def tiny_config(kind: str) -> tuple[transformers.PretrainedConfig, Any]:
    """A type's configuration with everything small, and the tokenizer that knows its image token."""
    default = transformers.AutoConfig.for_model(kind)
    tokenizer = shared_tokenizer()
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    extra = EXTRA.get(kind, {})
    given: dict[str, Any] = {}
    for name in default.sub_configs or {}:
        sub = getattr(default, name, None)
        if sub is None:
            continue
        is_tower = "text" not in name and "llm" not in name and "language" not in name
        sizes = small(sub, SMALL_TOWER if is_tower else recipes.SMALL)
        if not is_tower:
            sizes |= {"vocab_size": 373, **common_sizes(tokenizer, context=256)}
        if name in extra and extra[name] is None:
            given[name] = None
            continue
        sizes |= {"model_type": sub.model_type} | extra.get(name, {})
        given[name] = {field: value for field, value in sizes.items() if value is not recipes.REMOVE}
    given |= {"image_token_id": image, "image_token_index": image, "tie_word_embeddings": False}
    given |= {name: value for name, value in extra.items() if name != "processor" and name not in given}
    return transformers.AutoConfig.for_model(kind, **given), tokenizer


def small(config: transformers.PretrainedConfig, sizes: dict[str, Any]) -> dict[str, Any]:
    """The fields of a configuration that are sizes, made small."""
    fields = {name for name in vars(config) if not name.startswith("_")}
    fields |= set(getattr(type(config), "attribute_map", {}).values())
    made: dict[str, Any] = {}
    for name, value in sizes.items():
        if name not in fields:
            continue
        default = value if name in recipes.ALSO_UNSET else getattr(config, name, None)
        if default is not None:
            made[name] = [value] * len(default) if isinstance(default, list | tuple) else value
    kinds = list(dict.fromkeys(getattr(config, "layer_types", None) or ()))
    if kinds and not isinstance(getattr(type(config), "layer_types", None), property):
        made["layer_types"] = [kinds[i % len(kinds)] for i in range(made.get("num_hidden_layers", recipes.BLOCKS))]
    if getattr(config, "rope_parameters", None) and "mrope_section" in str(config.rope_parameters):
        made["rope_parameters"] = ROTARY
    return made


def image_processor(kind: str) -> Any:
    """The type's PIL image processor, for small pictures.

    Raises:
        ValueError: it has none without torchvision.
    """
    names = IMAGE_PROCESSOR_MAPPING_NAMES.get(kind) or {}
    extra = EXTRA.get(kind, {}).get("processor", {})
    name = extra.get("class", names.get("pil"))
    if name is None:
        raise ValueError("its image processor needs torchvision")
    cls = getattr(transformers, name)
    options = {name: value for name, value in extra.items() if name != "class"}
    return cls(**options)


def tiny(kind: str) -> HuggingFaceModel:
    """A model of this type with the weights of `fill`, behind this package's interface.

    Raises:
        ValueError: it came out large, or has no image processor here.
        UnsupportedModelError: it is not let in.
    """
    processor = image_processor(kind)
    config, tokenizer = tiny_config(kind)
    with torch.device("meta"):
        n = sum(p.numel() for p in transformers.AutoModelForImageTextToText.from_config(config).parameters())
    if n > recipes.LARGEST:
        raise ValueError(f"{n / 1e6:.0f} million parameters")
    with torch.random.fork_rng(devices=[]):
        hf = transformers.AutoModelForImageTextToText.from_config(config)
    fill(hf, f"{kind} 0")
    return HuggingFaceModel(hf, tokenizer, name=kind, image_processor=processor)
