"""Tokenizers and image processors for full architectures with random weights, made like the released ones.

Tokenizers are trained here, on the texts that they will be given; the tokens that a configuration names by number (of
pictures, for instance) have these numbers, and ids in between belong to words that no text has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import transformers
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import PretrainedConfig, PreTrainedTokenizerFast

CLIP_COLOURS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
SPACE = "\u2581"  # as SentencePiece writes it


def processors_of(config: PretrainedConfig, texts: Sequence[str]) -> tuple[PreTrainedTokenizerFast, Any]:
    """The tokenizer and the image processor (None for a text model) of an architecture.

    Raises:
        ValueError: an architecture that is not known here, or a vocabulary too small for the tokenizer.
    """
    kind = config.model_type
    if kind in ("llama", "qwen2"):
        tokenizer, image_processor = byte_level_tokenizer(texts), None
    elif kind == "llava_next":
        tokenizer, image_processor = vicuna_tokenizer(texts, config.image_token_id), llava_image_processor(config)
    elif kind == "qwen2_5_vl":
        tokenizer, image_processor = qwen_vl_tokenizer(texts, config), qwen_vl_image_processor(config)
    elif kind == "gemma3":
        tokenizer, image_processor = gemma_tokenizer(texts, config), gemma_image_processor(config)
    else:
        known = "llama, qwen2, llava_next, qwen2_5_vl, gemma3"
        raise ValueError(f"random weights can be drawn for {known}; not for {kind}")
    size = config.get_text_config().vocab_size
    if len(tokenizer) > size:
        raise ValueError(f"vocab_size is {size}, but the tokenizer has {len(tokenizer)} tokens")
    return tokenizer, image_processor


# ------------------------------------------------------------------------------------------ tokenizers
def byte_level_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer; it takes any text, adds BOS and pads left."""
    bos, eos, pad = "<s>", "</s>", "<pad>"  # ids 0, 1, 2
    tokenizer = _byte_level(texts, [bos, eos, pad])
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]),
    ])  # fmt: skip
    return _fast(tokenizer, bos_token=bos, eos_token=eos, pad_token=pad)


def qwen_vl_tokenizer(texts: Sequence[str], config: PretrainedConfig) -> PreTrainedTokenizerFast:
    """A tokenizer made like Qwen2.5-VL's: byte-level, no BOS, the picture's tokens by the configuration's numbers."""
    tokenizer = _byte_level(texts, ["<|endoftext|>", "<|im_end|>"])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    places = {
        config.vision_start_token_id: "<|vision_start|>",
        config.vision_end_token_id: "<|vision_end|>",
        config.image_token_id: "<|image_pad|>",
        config.video_token_id: "<|video_pad|>",
    }
    return _fast(_with_words_at(tokenizer, places), eos_token="<|im_end|>", pad_token="<|endoftext|>")


def vicuna_tokenizer(texts: Sequence[str], image_id: int) -> PreTrainedTokenizerFast:
    """A tokenizer made like LLaVA-1.6-Vicuna's: `<image>` is number `image_id`, and `<pad>` follows it.

    As with SentencePiece, a space is written as U+2581 and put in front of every text, unknown characters become
    bytes, and BOS comes first.

    Raises:
        ValueError: `image_id` is too small for the trained pieces.
    """
    tokenizer = _pieces(texts, ["<unk>", "<s>", "</s>"], adds_space=True)
    tokenizer = _with_words_at(tokenizer, {image_id: "<image>", image_id + 1: "<pad>"})
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return _fast(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


def gemma_tokenizer(texts: Sequence[str], config: PretrainedConfig) -> PreTrainedTokenizerFast:
    """A tokenizer made like Gemma's: pieces as SentencePiece has them, no space added, BOS comes first."""
    tokenizer = _pieces(texts, ["<pad>", "<eos>", "<bos>", "<unk>"], adds_space=False)
    places = {
        config.boi_token_index: "<start_of_image>",
        config.eoi_token_index: "<end_of_image>",
        config.image_token_id: "<image_soft_token>",
    }
    tokenizer = _with_words_at(tokenizer, places)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    return _fast(tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>")


def _byte_level(texts: Sequence[str], special: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=_added(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _pieces(texts: Sequence[str], special: Sequence[str], *, adds_space: bool) -> Tokenizer:
    """A BPE over characters, with a word for every byte of an unknown one."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if adds_space else spaces
    tokenizer.pre_tokenizer = pre_tokenizers.Split(SPACE, behavior="merged_with_next")  # for training only
    strip = [decoders.Strip(" ", 1, 0)] if adds_space else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=_added(special), show_progress=False)
    tokenizer.train_from_iterator([text.replace("\n", " ") for text in texts], trainer)  # line breaks stay bytes
    tokenizer.pre_tokenizer = None
    trained = json.loads(tokenizer.to_str())
    words = trained["model"]["vocab"]
    for byte in range(256):
        words[f"<0x{byte:02X}>"] = len(words)
    return Tokenizer.from_str(json.dumps(trained))


def _with_words_at(tokenizer: Tokenizer, places: Mapping[int, str]) -> Tokenizer:
    """The tokenizer with special tokens at these numbers; numbers in between get words that no text has."""
    trained = json.loads(tokenizer.to_str())
    words = trained["model"]["vocab"]
    if len(words) > min(places):
        first = min(places)
        raise ValueError(f"{places[first]} cannot have the id {first}: the tokenizer has {len(words)} pieces")
    for number in range(len(words), max(places) + 1):
        words[places.get(number, f"<unused {number}>")] = number
    numbered = Tokenizer.from_str(json.dumps(trained))
    numbered.add_special_tokens(_added(list(places.values())))
    return numbered


def _added(tokens: Sequence[str]) -> list[AddedToken]:
    return [AddedToken(token, special=True, normalized=False) for token in tokens]


def _fast(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="left", clean_up_tokenization_spaces=False, **special
    )


# ------------------------------------------------------------------------------------ image processors
def llava_image_processor(config: PretrainedConfig) -> Any:
    """LLaVA-1.6's, with the released settings; views and pinpoints of `config`."""
    view = config.vision_config.image_size
    return _pil("LlavaNextImageProcessor")(
        size={"shortest_edge": view},
        crop_size={"height": view, "width": view},
        image_grid_pinpoints=config.image_grid_pinpoints,
        **CLIP_COLOURS,
    )


def qwen_vl_image_processor(config: PretrainedConfig) -> Any:
    """Qwen2.5-VL's, with the released settings: from 4 to 16,384 tokens of 28 x 28 pixels."""
    vision = config.vision_config
    return _pil("Qwen2VLImageProcessor")(
        size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384},
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
        **CLIP_COLOURS,
    )


def gemma_image_processor(config: PretrainedConfig) -> Any:
    """Gemma 3's, with the released settings, without pan-and-scan."""
    view = config.vision_config.image_size
    return _pil("Gemma3ImageProcessor")(
        size={"height": view, "width": view},
        image_seq_length=config.mm_tokens_per_image,
        do_pan_and_scan=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def _pil(name: str) -> Any:
    """The PIL version, which needs no torchvision."""
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
