"""llama.cpp for the tests: a Llama model as a GGUF file, and its logits there, with or without a control vector.

Through llama.cpp's C interface: llama-cpp-py-sync declares it, and the library is xllamacpp's, which runs on older
systems, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grains_ref.models import HuggingFaceModel

BLOCK = {  # of a block, in Hugging Face's names and in llama.cpp's
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


def write_model(model: HuggingFaceModel, path: Path) -> None:
    """A Llama model in float32, without a vocabulary: it takes ids."""
    import gguf

    config, weights = model.hf.config, model.hf.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("no_vocab")

    def add(name: str, tensor: Tensor) -> None:
        writer.add_tensor(f"{name}.weight", tensor.float().contiguous().numpy())

    add("token_embd", weights["model.embed_tokens.weight"])
    add("output_norm", weights["model.norm.weight"])
    add("output", weights["lm_head.weight"])
    for i in range(config.num_hidden_layers):
        for theirs, name in BLOCK.items():
            weight = weights[f"model.layers.{i}.{theirs}.weight"]
            if name in ("attn_q", "attn_k"):
                weight = _neighbours_turn(weight, config.head_dim)
            add(f"blk.{i}.{name}", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _neighbours_turn(weight: Tensor, head_dim: int) -> Tensor:
    """Rows in llama.cpp's order: its rotary embedding turns neighbours, that of transformers the halves of a head."""
    halves = weight.reshape(-1, 2, head_dim // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


class LlamaCpp:
    """A model in llama.cpp."""

    def __init__(self, lib: Any, ffi: Any, model: Any) -> None:
        self.lib, self.ffi, self.model = lib, ffi, model

    def logits(self, ids: Sequence[int], control: np.ndarray | None = None) -> Tensor:
        """The next token's, (V,).

        control: (blocks - 1, d), of the blocks 1, 2, ...: what llama.cpp's loader makes of a file.
        """
        options = self.lib.llama_context_default_params()
        options.n_ctx, options.n_threads, options.n_threads_batch = 64, 1, 1
        context = self.lib.llama_init_from_model(self.model, options)
        try:
            if control is not None:
                flat = np.ascontiguousarray(control, dtype=np.float32)
                data = self.ffi.cast("float *", self.ffi.from_buffer(flat))
                last = len(flat)
                assert self.lib.llama_set_adapter_cvec(context, data, flat.size, flat.shape[1], 1, last) == 0
            tokens = self.ffi.new("llama_token[]", list(ids))
            assert self.lib.llama_decode(context, self.lib.llama_batch_get_one(tokens, len(ids))) == 0
            size = self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(self.model))
            buffer = self.ffi.buffer(self.lib.llama_get_logits_ith(context, -1), 4 * size)
            return torch.from_numpy(np.frombuffer(buffer, dtype=np.float32).copy())
        finally:
            self.lib.llama_free(context)


@contextmanager
def loaded(path: Path) -> Iterator[LlamaCpp]:
    import xllamacpp
    from llama_cpp_py_sync._cffi_bindings import get_ffi

    ffi = get_ffi()
    (library,) = Path(xllamacpp.__file__).parent.glob("xllamacpp*.so")
    lib = ffi.dlopen(str(library))
    silent = ffi.callback("void(enum ggml_log_level, const char *, void *)", lambda *_: None)
    lib.llama_log_set(silent, ffi.NULL)
    options = lib.llama_model_default_params()
    options.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(str(path).encode(), options)
    assert model != ffi.NULL, "llama.cpp does not load the model"
    try:
        yield LlamaCpp(lib, ffi, model)
    finally:
        lib.llama_model_free(model)


def control_of(path: Path, *, width: int, n_blocks: int, scale: float) -> np.ndarray:
    """What llama.cpp's loader (`common_control_vector_load_one`) makes of a file: it is no part of the library.

    A tensor of another name, of block 0, of another type or shape, and the whole file is refused.
    """
    import gguf

    flat = np.zeros((n_blocks - 1, width), dtype=np.float32)
    for tensor in gguf.GGUFReader(path).tensors:
        kind, _, number = tensor.name.partition(".")
        assert kind == "direction"
        assert int(number) >= 1
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        assert list(tensor.shape) == [width]
        flat[int(number) - 1] += scale * tensor.data
    return flat
