"""Tiny Llamas in the format of llama.cpp, written by the package `gguf` as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import LlamaConfig

from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.random_models import build, common_sizes, random_llama

NAMES = {  # ours -> llama.cpp's, within a block
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def wide_llama(**changes: Any) -> HuggingFaceModel:
    """A Llama whose rows are whole blocks, as quantised rows must be: of 32 numbers, or 64."""
    tokenizer = random_llama().tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **common_sizes(tokenizer) | changes,
    )
    return build(config, tokenizer, "wide-llama", 0, torch.float32)


def write_gguf(
    model: HuggingFaceModel, path: Path, *, quantisation: str = "F32", extra: dict[str, Any] | None = None
) -> Path:
    """The model as a GGUF file; matrices in this quantisation, norms in float32.

    extra: more fields, or tensors by name; `None` leaves a tensor out.
    """
    config, tokenizer = model.text_config, model.tokenizer
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("wide-llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, tokenizer)
    extra = dict(extra or {})
    for name, tensor in _tensors(model).items():
        if name not in extra:
            _add(writer, name, tensor, quantisation)
    for name, value in extra.items():
        if isinstance(value, torch.Tensor):
            writer.add_tensor(name, value.numpy())
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif value is not None:
            writer.add_float32(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any) -> None:
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = set(tokenizer.added_tokens_decoder)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(pieces)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(len(pieces))]
    )

    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(True)
    writer.add_chat_template(tokenizer.chat_template)


def _tensors(model: HuggingFaceModel) -> dict[str, torch.Tensor]:
    """Every weight by llama.cpp's name; rotary halves lie there in turns, row by row."""
    hf, config = model.hf, model.text_config
    tensors = {
        "token_embd.weight": hf.model.embed_tokens.weight,
        "output_norm.weight": hf.model.norm.weight,
        "output.weight": hf.lm_head.weight,
    }
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
    for i, block in enumerate(model.blocks):
        for ours, theirs in NAMES.items():
            weight = block.get_submodule(ours).weight
            if ours in heads:
                rows, columns = weight.shape
                halves = weight.view(heads[ours], 2, rows // heads[ours] // 2, columns)
                weight = halves.transpose(1, 2).reshape(rows, columns)
            tensors[f"blk.{i}.{theirs}.weight"] = weight
    return tensors


def _add(writer: gguf.GGUFWriter, name: str, tensor: torch.Tensor, quantisation: str) -> None:
    values = tensor.detach().float().numpy()
    kind = gguf.GGMLQuantizationType[quantisation if tensor.ndim > 1 else "F32"]
    if kind == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, values)
        return
    writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
