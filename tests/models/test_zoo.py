"""A sample of the model types of transformers, one for each kind of trap. `python tests/zoo` tries all of them."""

from __future__ import annotations

import pytest
import transformers
from zoo import deeper, recipes

from grains_ref.models import HuggingFaceModel, UnsupportedModelError
from grains_ref.tiny_models.random_models import random_llama

pytestmark = pytest.mark.cpu

LET_IN = {
    "gpt2": "blocks under transformer.h, learnt positions",
    "mpt": "blocks under transformer.blocks, no max_position_embeddings, ALiBi",
    "bloom": "ALiBi built from the mask",
    "llama4_text": "a decoder that transformers' accessors overlook, chunked attention",
    "gpt_neox": "attention and MLP side by side",
    "phi3": "fused projections",
    "mistral": "a window shorter than the prompt",
    "gpt_oss": "experts, sinks, windows in every second block",
    "qwen3_5_text": "linear attention in every second block, its states in the cache",
    "minimax": "linear attention with a cache class of its own",
    "falcon_h1": "Mamba and attention in one block",
    "gemma4_text": "other heads in every second block",
}
REFUSED = {
    "bart": "the configuration has 2 decoder blocks; found BartDecoder.layers with 4",
    "bert": "the configuration has 4 decoder blocks; found no list of blocks",
    "longcat_flash": "the configuration has 4 decoder blocks; found LongcatFlashModel.layers with 2",
    "gemma3n_text": r"blocks return states \(B, T, d\): .*found \(4, 1, 12, 32\) of block 0",
    "openai-gpt": r"blocks return states \(B, T, d\): .*found a list of block 0",
    "trocr": r"logits_to_keep is kept: .*found \(4, 347\)",
    "jamba": "scores behind a cache are recomputed ones: .* apart",
    "mamba": "scoring behind a cache: .*no attribute 'past_key_values'",
    "moshi": "model type 'moshi' keeps a window of 8 tokens in its cache",
    "deepseek_v32": r"attends to the 4 tokens that an indexer picks \(index_topk\)",
}


def network(kind: str) -> transformers.PreTrainedModel:
    if kind not in recipes.TYPES:
        pytest.skip(f"transformers {transformers.__version__} has no model type {kind}")
    return recipes.tiny_network(kind)


@pytest.mark.parametrize("kind", LET_IN)
def test_an_architecture_with_ways_of_its_own_is_let_in_and_scored_right(kind: str) -> None:
    model = HuggingFaceModel(network(kind), random_llama().tokenizer, name=kind)
    assert deeper.scores_are_recomputed_ones(model) < 1e-4


@pytest.mark.parametrize(("kind", "message"), REFUSED.items(), ids=REFUSED)
def test_an_architecture_that_would_give_wrong_numbers_is_refused_with_the_reason(kind: str, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        HuggingFaceModel(network(kind), random_llama().tokenizer, name=kind)
