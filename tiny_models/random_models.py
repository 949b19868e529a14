"""Rung 1: tiny Llama and Qwen2 models with random weights and local tokenizers, built from configurations.

They prove the plumbing of an architecture, not that the method works.  Everything in them is chosen to make faults
visible: sizes are distinct primes where the architecture allows (two axes that are swapped then do not fit),
there are several key-value heads, the norms' weights differ from 1, Qwen2's biases differ from 0, and the padding
token's embedding is not zero.  The weights are a function of the family, the seed and the parameter's name alone, so
they are the same on every machine and with every version of the libraries.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from torch import nn
from transformers import LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast, Qwen2Config

from grains_ref.models import HuggingFaceModel
from grains_ref.models.vision_families import family_class

TEXT = (  # what the byte-level tokenizers learn their merges from
    "The capital of France is Paris. The capital of Italy is Rome. What is the capital of Spain? It is Madrid.",
    "Q: Is the earth flat? A: No, the earth is round. Q: Is the moon made of cheese? A: No, it is made of rock.",
    "You are a helpful assistant. Tell me what people say about the weather, and what is true about it.",
)
LLAMA_TEMPLATE = (  # the shape of Llama 3's: header tokens, and BOS inside the template
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
QWEN2_TEMPLATE = (  # the shape of Qwen2.5's: no BOS, and a system message of its own when there is none
    "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{%- endif %}{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
WORDS = Regex(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)| ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def random_llama(seed: int = 0, dtype: torch.dtype = torch.float32) -> HuggingFaceModel:
    """A Llama of 3 blocks with a Llama-3-like tokenizer (adds BOS; the chat template brings its own)."""
    tokenizer = _llama_tokenizer()
    config = LlamaConfig(
        vocab_size=347,
        hidden_size=28,
        intermediate_size=53,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        rms_norm_eps=1e-5,
        **common_sizes(tokenizer),
    )
    return build(config, tokenizer, "random-llama", seed, dtype)


def random_qwen2(seed: int = 0, dtype: torch.dtype = torch.float32) -> HuggingFaceModel:
    """A Qwen2 of 5 blocks with a Qwen2.5-like tokenizer (no BOS; the chat template adds a system message)."""
    tokenizer = _qwen2_tokenizer()
    config = Qwen2Config(
        vocab_size=359,
        hidden_size=36,
        intermediate_size=61,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=3,
        rms_norm_eps=1e-6,
        **common_sizes(tokenizer),
    )
    return build(config, tokenizer, "random-qwen2", seed, dtype)


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer that never splits text into words, so its tokens cross the prompt/response boundary.

    "A: Paris" is one token, although "A:" and " Paris" are tokens too.  Many SentencePiece-like tokenizers merge this
    way; a boundary found by tokenising prompt and response together is wrong for them.
    """
    text = ["A: Paris", "A:", " Paris", "A: Rome", " Rome", "is A: Paris"] * 5
    tokenizer = byte_level_bpe(text, ["<s>", "</s>", "<pad>"], vocabulary=290, split_words=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", **TOKENIZER_OPTIONS
    )


def fill(module: nn.Module, seed: str) -> None:
    """Give every parameter values that depend on its name and `seed` only, rounded to float32.

    Uniform, with standard deviation 1 / sqrt(fan-in) for matrices and convolutions, 0.7 for embeddings (among them
    CLIP's class token and LLaVA's newline) and 0.3 for biases; the weights of norms lie within 1 +- 0.3.  Gemma's
    projector, which starts as zeros and would hide every image from attribution, is filled like any matrix.
    """
    norms_that_add_1 = {id(m.weight) for m in module.modules() if type(m).__name__ == "Gemma3RMSNorm"}
    for name, parameter in module.named_parameters():
        draw = random.Random(f"{seed} {name}").random
        if ("embed" in name and parameter.ndim < 3) or name.endswith("image_newline"):
            centre, deviation = 0.0, 0.7
        elif parameter.ndim >= 2:
            centre, deviation = 0.0, parameter[0].numel() ** -0.5
        else:
            centre, deviation = (0.0, 0.3) if name.endswith("bias") else (1.0, 0.3 * 3**-0.5)
            centre -= id(parameter) in norms_that_add_1
        values = [centre + deviation * 12**0.5 * (draw() - 0.5) for _ in range(parameter.numel())]
        with torch.no_grad():
            parameter.copy_(torch.tensor(values, dtype=torch.float32).view(parameter.shape))


TOKENIZER_OPTIONS: dict[str, Any] = {"padding_side": "left", "clean_up_tokenization_spaces": False}


def common_sizes(tokenizer: PreTrainedTokenizerFast, *, context: int = 128) -> dict[str, Any]:
    """What the configurations have in common."""
    return {
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def build(
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerFast,
    name: str,
    seed: int,
    dtype: torch.dtype,
    image_processor: Any = None,
) -> HuggingFaceModel:
    """A model with the weights of `fill`."""
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten; leave the caller's stream alone
        hf = family_class(config).auto_class.from_config(config, dtype=dtype, attn_implementation="sdpa")
    fill(hf, f"{name} {seed}")
    return HuggingFaceModel(hf, tokenizer, name=name, image_processor=image_processor)


def _llama_tokenizer() -> PreTrainedTokenizerFast:
    bos, eos, pad = "<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>"
    special = [bos, eos, pad, "<|start_header_id|>", "<|end_header_id|>"]
    tokenizer = byte_level_bpe(TEXT, special, vocabulary=331)
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]),
    ])  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        chat_template=LLAMA_TEMPLATE,
        **TOKENIZER_OPTIONS,
    )


def _qwen2_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = byte_level_bpe(TEXT, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], vocabulary=337)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=QWEN2_TEMPLATE,
        **TOKENIZER_OPTIONS,
    )


def byte_level_bpe(text: Iterable[str], special: list[str], *, vocabulary: int, split_words: bool = True) -> Tokenizer:
    """A byte-level BPE trained here and now; `special` get the first ids."""
    tokenizer = Tokenizer(BPE())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = pre_tokenizers.Split(WORDS, behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes]) if split_words else to_bytes
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer
