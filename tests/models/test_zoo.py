"""A sample of the model types of transformers, one for each kind of trap. `python tests/zoo` tries all of them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from shared import first_quick
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from zoo import deeper, recipes
from zoo.seeing import SEEING

from grains_ref.grains import HyperParameters, attribute, eligible_tokens, select
from grains_ref.models import EncodedPicture, HuggingFaceModel, UnsupportedModelError
from grains_ref.report.overlay import Panel, overlay_figure
from grains_ref.tiny_models.random_models import random_llama
from grains_ref.tiny_models.random_vision_models import noise_picture

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(
        transformers.__version__ < "5.23", reason="configurations are made small by their fields in 5.23"
    ),
]

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
KEEPS_STATES = {"qwen3_5_text", "minimax"}
SEES = {
    "llava, mistral text": "another text model than LLaVA's first",
    "mistral3": "rows closed by tokens that are no picture's",
    "qwen3_vl": "a picture that is also added behind the first blocks",
    "qwen3_5": "positions in three dimensions, linear attention",
}
ASKED = ("internvl", "glm4v", "idefics2", "llava_onevision")  # of test_pictures.py
SHOWN = ("llava, mistral text", "smolvlm")
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


def test_the_page_of_all_types_says_the_same() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    let_in, refused = page.split("## Refused")
    assert "| let in, and wrong somewhere | 0 |" in page
    assert "let in, and wrong somewhere | 0 |" in page.partition("## Models that see")[2]
    for kind in (*LET_IN, *SEES, *ASKED):
        assert f"| `{kind}` |" in let_in
    for kind in REFUSED:
        assert f"| `{kind}` |" in refused


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return random_llama().tokenizer


@pytest.mark.parametrize("kind", LET_IN)
def test_an_architecture_with_ways_of_its_own_is_let_in(kind: str, tokenizer: Any) -> None:
    model = HuggingFaceModel(network(kind), tokenizer, name=kind)
    if kind in KEEPS_STATES:  # of which several goes of one scoring must not get the same copy
        assert deeper.scores_are_recomputed_ones(model) < 1e-4


@pytest.mark.parametrize("kind", first_quick(SEES, 2))
def test_a_picture_is_scored_as_it_is_seen_whatever_way_it_enters(kind: str) -> None:
    if kind.partition(",")[0] not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        pytest.skip(f"transformers {transformers.__version__} has no model type {kind}")
    model = SEEING[kind]()
    assert deeper.pictures_are_scored_right(model) < 1e-4
    x = model.encode(deeper.PICTURE_PROMPT, noise_picture(90, 50))
    assert isinstance(x, EncodedPicture)
    boxes = [patch.box for patch in x.patches if patch]
    assert len(boxes) == len(set(boxes)) == x.kinds.count("image") > 3


@torch.no_grad()
def test_a_text_and_a_picture_that_enters_twice_share_a_pass() -> None:
    model = SEEING["qwen3_vl"]()
    rows = [model.encode(deeper.PROMPTS[0]), model.encode(deeper.PICTURE_PROMPT, noise_picture(90, 50))]
    answers = [model.response_ids("Q:", answer) for answer in deeper.ANSWERS]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that they had to be computed apart
        got = model.branches.log_probs(rows, [x.embeds for x in rows], [answers, answers])
    for x, found in zip(rows, got, strict=True):
        for y, log_p in zip(answers, found, strict=True):
            expected = model.logits(x, x.embeds[None], y)[0].log_softmax(-1).gather(1, y[:, None]).sum()
            torch.testing.assert_close(log_p, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["qwen3_vl", *(pytest.param(kind, marks=pytest.mark.thorough) for kind in SHOWN)])
def test_a_model_that_sees_is_attributed_drawn_fitted_and_steered(tmp_path: Path, kind: str) -> None:
    model, picture = SEEING[kind](), noise_picture(90, 50)
    example = model.example(deeper.PICTURE_PROMPT, *deeper.ANSWERS, picture)
    assert isinstance(example.encoded, EncodedPicture)
    a = attribute(model, example, HyperParameters(m=2)).a
    selection = select(a, k=3, eligible=eligible_tokens(example.encoded, ()))
    panel = Panel("", example.encoded.patches, a.tolist(), selection.pos, selection.neg)
    overlay_figure(tmp_path / "scores.png", picture, [panel], title="scores")
    assert (tmp_path / "scores.png").stat().st_size > 1000
    assert deeper.pictures_are_fitted(model) < 1e-6
    assert deeper.steered_pictures_are_told_alike(model) == 0


@pytest.mark.parametrize(("kind", "message"), REFUSED.items(), ids=REFUSED)
def test_an_architecture_that_would_give_wrong_numbers_is_refused_with_the_reason(
    kind: str, message: str, tokenizer: Any
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        HuggingFaceModel(network(kind), tokenizer, name=kind)
