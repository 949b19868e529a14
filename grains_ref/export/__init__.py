"""Steering vectors for other tools, with a measured loss, and vectors from there.

| file | holds |
|---|---|
| `target` | what a target is, what is written into its file, and what it cannot carry |
| `rules` | what the tools do with a vector, as formulas: h' of h, v and lam |
| `measure` | how much of the steering's effect a tool keeps |
| `gguf`, `easysteer`, `repeng` | control vectors in GGUF files; `gguf_file` reads and writes these |
| `steering_vectors`, `lm_eval`, `sglang`, `vllm_lens`, `svec` | one target each |
| `readers` | what several readers of files share |
| `importing` | vectors for this package out of a target's file |
| `hub` | a folder, or a repository of the Hugging Face hub, with a model card |

A target is a module here with a `TARGET`, and a line in `TARGETS`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grains_ref.export.target import Target

TARGETS = {  # name on the command line: what it is, in a few words
    "gguf": "control vectors of llama.cpp, without block 0",
    "easysteer": "EasySteer's vLLM",
    "repeng": "repeng, in memory",
    "steering-vectors": "the package steering-vectors, or any reader of safetensors: {block: tensor}",
    "lm-eval": "lm-evaluation-harness, its model 'steered'",
    "sglang": "SGLang's forward hooks",
    "vllm-lens": "vllm-lens, requests to vLLM",
    "svec": "Steerability, once AISteer360",
}


def find_target(name: str) -> Target:
    """The target of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in TARGETS:
        raise ValueError(f"there is no target {name!r}; there are {', '.join(TARGETS)}")
    module = importlib.import_module(f"grains_ref.export.{name.replace('-', '_')}")
    target: Target = module.TARGET
    return target
