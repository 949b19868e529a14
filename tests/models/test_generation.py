"""models/generation.py: plain greedy decoding whatever lies beside the weights, and nothing made up of NaN."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from damaged import damaged
from shared import first_quick
from transformers import GenerationConfig

from grains_ref.data import Task
from grains_ref.evaluation.measures import capability
from grains_ref.grains import generate_greedy
from grains_ref.models import HuggingFaceModel, load
from grains_ref.tiny_models.random_models import random_llama

pytestmark = pytest.mark.cpu

PROMPTS = ["The capital of France is", "Is the moon made of cheese?"]
N = 8


def greedy_texts(model: HuggingFaceModel) -> list[str]:
    """Without a cache and without transformers' loop."""
    ids = [generate_greedy(model, model.encode(prompt), n=N) for prompt in PROMPTS]
    return [model.tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]


STORED: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 5.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "suppress_tokens": {"suppress_tokens": list(range(5, 200))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(5, 300))},
    "forced_eos_token_id": {"forced_eos_token_id": 1},
    "min_new_tokens": {"min_new_tokens": 5, "eos_token_id": list(range(5, 340))},
    "bad_words_ids": {"bad_words_ids": [[i] for i in range(5, 200)]},
    "sequence_bias": {"sequence_bias": [[[i], -50.0] for i in range(5, 200)]},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (1, 100.0)},
    "num_beams": {"num_beams": 4, "length_penalty": 3.0},
    "sampling": {"do_sample": True, "temperature": 9.0, "top_k": 300},
}


@pytest.mark.parametrize("stored", first_quick(STORED.values(), 4), ids=STORED)
def test_settings_stored_beside_the_weights_change_nothing(stored: dict[str, Any], tmp_path: Path) -> None:
    model = random_llama()
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    plain = {"eos_token_id": stored.get("eos_token_id", 1), "bos_token_id": 0}
    (tmp_path / "generation_config.json").write_text(json.dumps(plain))
    expected = load(tmp_path).generate(PROMPTS, max_new_tokens=N)
    (tmp_path / "generation_config.json").write_text(json.dumps(plain | stored))
    loaded = load(tmp_path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            assert loaded.generate(PROMPTS, max_new_tokens=N) == expected
    about_settings = [str(warning.message) for warning in told if "stored with the weights" in str(warning.message)]
    names = [name for name in stored if name not in ("eos_token_id", "length_penalty")]
    if "do_sample" in stored:  # greedy decoding never looks at these
        assert about_settings == []
    else:
        (message,) = about_settings  # once
        assert all(f"{name}=" in message for name in names)
        assert " eos_token_id=" not in message
    for name, value in stored.items():  # the caller's model keeps what it has
        assert json.dumps(getattr(loaded.hf.generation_config, name)) == json.dumps(value)


def test_what_is_generated_is_what_capability_counts() -> None:
    model = random_llama()
    model.hf.generation_config.repetition_penalty = 5.0
    model.told_of_settings = True
    texts = model.generate(PROMPTS, max_new_tokens=N)
    assert texts == greedy_texts(model)
    ids = [generate_greedy(model, model.encode(prompt), n=1) for prompt in PROMPTS]
    tasks = [
        Task(str(i), prompt, model.tokenizer.decode(row))
        for i, (prompt, row) in enumerate(zip(PROMPTS, ids, strict=True))
    ]
    right = [row == list(model.prompts.response_ids(t.prompt, t.answer)) for row, t in zip(ids, tasks, strict=True)]
    assert capability(model, tasks).value == sum(right) / len(right)


def test_what_the_caller_asks_for_is_done() -> None:
    model = random_llama()
    plain = model.generate(PROMPTS, max_new_tokens=N)
    asked = {"repetition_penalty": 5.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.hf.generation_config = GenerationConfig(eos_token_id=1, repetition_penalty=1.4)
        assert model.generate(PROMPTS, max_new_tokens=N, **asked) != plain
    model.hf.generation_config = GenerationConfig(eos_token_id=1, temperature=0.25)
    with pytest.warns(UserWarning, match=r"temperature=0.25.*To use one, pass it to `generate`"):
        model.generate(PROMPTS, max_new_tokens=1, do_sample=True)


def test_stored_end_of_text_ids_still_end_a_text() -> None:
    model = random_llama()
    first = generate_greedy(model, model.encode(PROMPTS[0]), n=3)
    model.hf.generation_config.eos_token_id = [1, first[1]]
    assert model.generate(PROMPTS[:1], max_new_tokens=N) == [model.tokenizer.decode(first[:2]).strip()]


# --- what cannot be generated


def test_prompt_and_new_tokens_must_fit_the_context_together(llama: HuggingFaceModel) -> None:
    long = "moon " * 60
    n = len(llama.encode(long).ids)
    assert llama.generate([long], max_new_tokens=llama.context - n) != [""]
    words = rf"prompt 1: {n} tokens \+ {129 - n} new ones = 129, but the model takes 128. Ask for fewer new tokens"
    with pytest.raises(ValueError, match=words):
        llama.generate(["A:", long], max_new_tokens=129 - n)


@pytest.mark.parametrize("name", ["prompts", "images"])
@pytest.mark.parametrize("single", ["ab", b"ab", Path("ab")])
def test_one_text_is_no_list(llama: HuggingFaceModel, name: str, single: Any) -> None:
    given: dict[str, Any] = {"prompts": ["A:", "B:"], name: single}
    with pytest.raises(ValueError, match=rf"{name} is one \w+, .*; give a list, also of a single one"):
        llama.generate(given.pop("prompts"), max_new_tokens=1, **given)


def test_nothing_is_generated_from_nan_and_prompt_and_block_are_named() -> None:
    model = random_llama()
    with damaged(model, block=1), pytest.raises(FloatingPointError) as error:
        model.generate(["The capital", "about the moon"], max_new_tokens=3)
    message = str(error.value)
    assert message.startswith("prompt 1: the logits of new token 0 are not finite.")
    assert "The output of decoder block 1 is the first that is not finite." in message
    with damaged(model, block=1):
        assert model.generate(["The capital"], max_new_tokens=3) == random_llama().generate(
            ["The capital"], max_new_tokens=3
        )


def test_forbidden_tokens_are_no_overflow(llama: HuggingFaceModel) -> None:
    (text,) = llama.generate(PROMPTS[:1], max_new_tokens=2, suppress_tokens=list(range(5, 300)))
    assert text
