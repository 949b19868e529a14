"""A tiny random model of (nearly) every causal language model type of the installed transformers.

A type's default configuration is made small by the names of its fields; `EXTRA` has what a few types need besides.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.random_models import fill, random_llama

BLOCKS, WIDTH, HEADS, WINDOW, CONTEXT, VOCABULARY = 4, 32, 4, 8, 128, 347
LARGEST = 5_000_000  # parameters; more means that a size was missed
TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

SMALL: dict[str, Any] = {  # by the name of a configuration's field
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "word_embed_proj_dim", "embedding_size"), WIDTH),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), BLOCKS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), HEADS),
    **dict.fromkeys(("encoder_layers",), 2),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads",), 2),
    **dict.fromkeys(("head_dim",), WIDTH // HEADS),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "dff", "d_ff", "mlp_dim"), 64),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "intermediate_size_mlp", "dim_ff"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_dim"), 16),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length"), CONTEXT),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_window_size", "window_size"), WINDOW),
    **dict.fromkeys(("attention_chunk_size",), WINDOW),  # what begins to act behind so many tokens acts in the trial
    **dict.fromkeys(("block_size", "chunk_size", "mamba_chunk_size", "index_block_size", "keep_window_size"), 4),
    "index_topk_blocks": 2,
    **dict.fromkeys(("rotary_dim", "qk_rope_head_dim", "qk_nope_head_dim"), 4),
    **dict.fromkeys(("q_lora_rank",), 16),
    **dict.fromkeys(("kv_lora_rank", "v_head_dim"), 8),
    **dict.fromkeys(("linear_num_value_heads",), 4),
    **dict.fromkeys(("linear_num_key_heads",), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 8),
    **dict.fromkeys(("index_head_dim", "indexer_head_dim"), 8),
    "index_topk": 4,
    "moe_k": 2,
    **dict.fromkeys(("index_n_heads", "indexer_n_heads"), 2),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers"), 1),
    "use_mamba_kernels": False,
}
ALSO_UNSET = {"head_dim", "num_key_value_heads", "num_experts_per_tok", "moe_topk"}  # also where the default is None
REMOVE = object()  # what the default configuration has, or what it would be made small by, is left as it is
FULL, LINEAR = "full_attention", "linear_attention"
HYBRID = [LINEAR, FULL] * 2
EXTRA: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {
        "layer_types": HYBRID, "mlp_layer_types": ["dense", "sparse"] * 2, "num_key_value_heads": HEADS, "head_dim": 8,
        "qk_rope_head_dim": 4,
    },
    "bamba": {"layer_types": REMOVE, "attn_layer_indices": [1, 3]},
    "bert": {"is_decoder": True},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": WIDTH},
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1},
    "falcon_h1": {"layer_types": REMOVE, "mamba_d_ssm": WIDTH, "mamba_n_heads": 4},
    "gemma3n_text": {
        "layer_types": [FULL] * 4, "num_kv_shared_layers": 0, "laurel_rank": 4, "hidden_size_per_layer_input": 8,
        "activation_sparsity_pattern": [0.0] * 4, "intermediate_size": [64] * 4,
    },
    "gemma4_text": {
        "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "global_head_dim": 8,
        "layer_types": ["sliding_attention", FULL] * 2,
    },
    "gemma4_unified_text": {
        "num_kv_shared_layers": 0, "global_head_dim": 8, "layer_types": ["sliding_attention", FULL] * 2,
    },
    "gpt_neo": {"num_layers": BLOCKS, "attention_types": [[["global", "local"], 2]], "window_size": WINDOW},
    "granitemoehybrid": {"layer_types": HYBRID, "shared_intermediate_size": 64},
    "jamba": {"layer_types": REMOVE, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2},
    "kimi_linear": {"layer_types": HYBRID, "linear_head_dim": 8, "linear_num_heads": 4},
    "lfm2_moe": {"layer_types": ["conv", FULL] * 2},
    "longcat_flash": {"num_layers": 2, "expert_ffn_hidden_size": 16, "zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "n_groups": 2},
    "recurrent_gemma": {"layers_block_type": REMOVE, "layer_types": REMOVE, "lru_width": WIDTH},
    "reformer": {
        "is_decoder": True, "attn_layers": ["local", "lsh"] * 2, "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [16, 16], "attention_head_size": 8, "feed_forward_size": 64,
    },
    "roc_bert": {"shape_vocab_size": 50, "pronunciation_vocab_size": 50, "is_decoder": True},
    "xlm": {"emb_dim": WIDTH, "causal": True},
    "zamba2": {
        "layers_block_type": [LINEAR, "hybrid"] * 2, "n_mamba_heads": 8, "mamba_d_state": 8, "adapter_rank": 4,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}  # fmt: skip


@functools.cache
def shared_tokenizer() -> Any:
    """Of all tiny text models."""
    return random_llama().tokenizer


def tiny_config(kind: str) -> transformers.PretrainedConfig:
    """A type's configuration with everything small, and each of its kinds of layers in use."""
    default = transformers.AutoConfig.for_model(kind)
    fields = {name for name in vars(default) if not name.startswith("_")}
    fields |= set(getattr(type(default), "attribute_map", {}).values())
    tokenizer = shared_tokenizer()
    sizes: dict[str, Any] = {}
    for name, value in SMALL.items():
        if name in fields and (name in ALSO_UNSET or getattr(default, name, None) is not None):
            sizes[name] = value
    if "kv_lora_rank" in sizes:  # latent attention: as many keys as heads, of two parts each
        sizes |= {"num_key_value_heads": HEADS, "head_dim": REMOVE}
    kinds = list(dict.fromkeys(getattr(default, "layer_types", None) or ()))
    if kinds and not isinstance(getattr(type(default), "layer_types", None), property):
        sizes["layer_types"] = [kinds[i % len(kinds)] for i in range(BLOCKS)]
    sizes |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    sizes["tie_word_embeddings"] = False
    sizes |= EXTRA.get(kind, {})
    sizes = {name: value for name, value in sizes.items() if value is not REMOVE}
    return transformers.AutoConfig.for_model(kind, **sizes)


def tiny_network(kind: str, dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
    """A model of this type with the weights of `fill`.

    Raises:
        ValueError: it came out large.
    """
    config = tiny_config(kind)
    with torch.device("meta"):
        n = sum(p.numel() for p in transformers.AutoModelForCausalLM.from_config(config).parameters())
    if n > LARGEST:
        raise ValueError(f"{n / 1e6:.0f} million parameters")
    with torch.random.fork_rng(devices=[]):
        hf = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    fill(hf, f"{kind} 0")
    return hf


def tiny(kind: str, dtype: torch.dtype = torch.float32) -> HuggingFaceModel:
    """The same behind this package's interface: the proof is run."""
    return HuggingFaceModel(tiny_network(kind, dtype), shared_tokenizer(), name=f"tiny-{kind}")
