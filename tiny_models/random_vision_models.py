"""Rung 1, vision: tiny LLaVA-NeXT, Qwen2.5-VL and Gemma 3 with random weights, and Gemma 3 as a text model.

Made on the principles of `random_models`, from configurations alone, with local tokenizers and PIL image processors.
What hides bugs in natural fixtures is avoided here: the vision towers have more blocks than the decoders, Gemma's
sliding window is shorter than its prompts, and LLaVA's tokenizer puts a space in front of whatever it is given, as
SentencePiece does.
"""

from __future__ import annotations

import json
import random
from typing import Any

import torch
import transformers
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import (
    Gemma3Config,
    Gemma3TextConfig,
    LlavaNextConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
)

from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.random_models import (
    TEXT,
    TOKENIZER_OPTIONS,
    build,
    byte_level_bpe,
    common_sizes,
)

CONTEXT = 256  # tokens: a picture with its tiles or crops takes 160

VICUNA_TEMPLATE = (  # pictures first, then text; no line break before the answer, but a space after the colon
    "{%- for message in messages %}{{- message['role'] | upper + ': ' }}"
    "{%- for part in message['content'] %}{%- if part['type'] == 'image' %}{{- '<image>\n' }}{%- endif %}{%- endfor %}"
    "{%- for part in message['content'] %}{%- if part['type'] == 'text' %}{{- part['text'] + ' ' }}{%- endif %}"
    "{%- endfor %}{%- endfor %}{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{%- endif %}"
)
_PARTS = (  # contents may be a string or a list of parts, as in the real templates
    "{%%- if message['content'] is string %%}{{- message['content'] }}{%%- else %%}"
    "{%%- for part in message['content'] %%}{%%- if part['type'] == 'image' %%}{{- '%s' }}"
    "{%%- else %%}{{- part['text'] }}{%%- endif %%}{%%- endfor %%}{%%- endif %%}"
)
QWEN_VL_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{%- endif %}{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\n' }}"
    + _PARTS % "<|vision_start|><|image_pad|><|vision_end|>"
    + "{{- '<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
GEMMA_TEMPLATE = (  # BOS inside the template; the assistant is called model
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    + _PARTS % "<start_of_image>"
    + "{{- '<end_of_turn>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}"
)


def noise_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture in which every pixel and every channel differs, so that no patch can be mistaken for another."""
    return Image.frombytes("RGB", (width, height), random.Random(f"picture {seed}").randbytes(3 * width * height))


def random_llava(seed: int = 0, dtype: torch.dtype = torch.float32) -> HuggingFaceModel:
    """A LLaVA-NeXT of 3 decoder and 5 vision blocks; views of 3 x 3 patches, up to 2 x 2 or 3 x 1 tiles."""
    tokenizer = _llava_tokenizer()
    pinpoints = [[42, 84], [84, 42], [84, 84], [126, 42]]
    config = LlavaNextConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": 367,
            "hidden_size": 28,
            "intermediate_size": 53,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 6,
            "rms_norm_eps": 1e-5,
            **common_sizes(tokenizer, context=CONTEXT),
        },
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 24,
            "intermediate_size": 31,
            "num_hidden_layers": 5,
            "num_attention_heads": 3,
            "image_size": 42,
            "patch_size": 14,
        },
        image_grid_pinpoints=pinpoints,
        image_token_index=_id(tokenizer, "<image>"),
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
    processor = _pil("LlavaNextImageProcessor")(
        size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42}, image_grid_pinpoints=pinpoints
    )
    return build(config, tokenizer, "random-llava", seed, dtype, processor)


def random_qwen_vl(seed: int = 0, dtype: torch.dtype = torch.float32) -> HuggingFaceModel:
    """A Qwen2.5-VL of 4 decoder and 6 vision blocks; one token per 28 x 28 pixels, at most 30 tokens."""
    tokenizer = _qwen_vl_tokenizer()
    ids: dict[str, Any] = {
        f"{name}_token_id": _id(tokenizer, f"<|{token}|>")
        for name, token in (
            ("image", "image_pad"),
            ("video", "video_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 373,
            "hidden_size": 48,
            "intermediate_size": 61,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "rms_norm_eps": 1e-6,
            "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [1, 1, 2]},
            **common_sizes(tokenizer, context=CONTEXT),
        },
        vision_config={
            "depth": 6,
            "hidden_size": 24,
            "intermediate_size": 29,
            "num_heads": 3,
            "out_hidden_size": 48,
            "window_size": 56,
            "fullatt_block_indexes": [2, 5],
        },
        tie_word_embeddings=False,
        **ids,
    )
    processor = _pil("Qwen2VLImageProcessor")(size={"shortest_edge": 56 * 56, "longest_edge": 30 * 28 * 28})
    return build(config, tokenizer, "random-qwen-vl", seed, dtype, processor)


def random_gemma3(seed: int = 0, dtype: torch.dtype = torch.float32, *, pan_and_scan: bool = False) -> HuggingFaceModel:
    """A Gemma 3 of 7 decoder blocks (the sixth attends to everything) and 8 vision blocks; 9 tokens per view."""
    tokenizer = _gemma_tokenizer()
    config = Gemma3Config(
        text_config=_gemma_text_config(tokenizer, context=CONTEXT),
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 24,
            "intermediate_size": 31,
            "num_hidden_layers": 8,
            "num_attention_heads": 3,
            "image_size": 84,
            "patch_size": 14,
            "vision_use_head": False,
        },
        mm_tokens_per_image=9,
        boi_token_index=_id(tokenizer, "<start_of_image>"),
        eoi_token_index=_id(tokenizer, "<end_of_image>"),
        image_token_index=_id(tokenizer, "<image_soft_token>"),
    )
    processor = _pil("Gemma3ImageProcessor")(
        size={"height": 84, "width": 84},
        do_pan_and_scan=pan_and_scan,
        pan_and_scan_min_crop_size=16,
        pan_and_scan_max_num_crops=4,
        pan_and_scan_min_ratio_to_activate=1.2,
    )
    return build(config, tokenizer, "random-gemma3", seed, dtype, processor)


def random_gemma3_text(seed: int = 0, dtype: torch.dtype = torch.float32) -> HuggingFaceModel:
    """The decoder of `random_gemma3` as a text model of its own (gemma3_text)."""
    tokenizer = _gemma_tokenizer()
    config = Gemma3TextConfig(**_gemma_text_config(tokenizer))
    return build(config, tokenizer, "random-gemma3-text", seed, dtype)


def _gemma_text_config(tokenizer: PreTrainedTokenizerFast, *, context: int = 128) -> dict[str, Any]:
    return {
        **common_sizes(tokenizer, context=context),
        "tie_word_embeddings": True,  # as in the real one
        "vocab_size": 379,
        "hidden_size": 28,
        "intermediate_size": 53,
        "num_hidden_layers": 7,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "query_pre_attn_scalar": 6,
        "sliding_window": 8,
    }


def _id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def _pil(name: str) -> Any:
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)


def _llava_tokenizer() -> PreTrainedTokenizerFast:
    """Like Vicuna's: a space is put in front of every text, BOS too, no split into words."""
    tokenizer = _sentencepiece_like(["<unk>", "<s>", "</s>", "<pad>", "<image>"], vocabulary=97, adds_space=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        chat_template=VICUNA_TEMPLATE,
        **TOKENIZER_OPTIONS,
    )


def _gemma_tokenizer() -> PreTrainedTokenizerFast:
    """Like Gemma's: spaces are kept, none is added; BOS."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    special += ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    tokenizer = _sentencepiece_like(special, vocabulary=103, adds_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<pad>",
        chat_template=GEMMA_TEMPLATE,
        **TOKENIZER_OPTIONS,
    )


def _qwen_vl_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    special += ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = byte_level_bpe(TEXT, special, vocabulary=347)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=QWEN_VL_TEMPLATE,
        **TOKENIZER_OPTIONS,
    )


def _sentencepiece_like(special: list[str], *, vocabulary: int, adds_space: bool) -> Tokenizer:
    """A BPE over characters with byte fallback, trained here and now; spaces are written as U+2581."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces]) if adds_space else spaces
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", behavior="merged_with_next")  # for training only
    strip = [decoders.Strip(" ", 1, 0)] if adds_space else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.pre_tokenizer = None
    trained = json.loads(tokenizer.to_str())
    for byte in range(256):  # ordinary words of the vocabulary, used where a character is unknown
        trained["model"]["vocab"][f"<0x{byte:02X}>"] = len(trained["model"]["vocab"])
    return Tokenizer.from_str(json.dumps(trained))
