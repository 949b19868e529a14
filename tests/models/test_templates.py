"""models/prompts.py: what tokenizers and chat templates add by themselves, and tokens as people see them."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import normalizers, processors
from transformers import PreTrainedTokenizerFast

from grains_ref.models import HuggingFaceModel, UnsupportedModelError
from grains_ref.tiny_models.random_models import LLAMA_TEMPLATE, random_llama

pytestmark = pytest.mark.cpu

CHAT = [{"role": "user", "content": "Is the earth flat?"}]


def rewrapped(model: HuggingFaceModel, tokenizer: Any = None, **options: Any) -> HuggingFaceModel:
    return HuggingFaceModel(model.hf, tokenizer or random_llama().tokenizer, name="changed", **options)


def with_template(model: HuggingFaceModel, template: str, **options: Any) -> HuggingFaceModel:
    tokenizer = random_llama().tokenizer
    tokenizer.chat_template = template
    return rewrapped(model, tokenizer, **options)


# --- what a tokenizer adds


def post_processed(single: str) -> PreTrainedTokenizerFast:
    tokenizer = random_llama().tokenizer
    special = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>"]
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in special if token in single]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return tokenizer


BOS, EOS, OTHER = "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>"


@pytest.mark.parametrize(
    ("single", "in_front"),
    [
        (f"{BOS} $A {EOS}", [BOS]),
        (f"$A {EOS}", []),
        (f"{BOS} {BOS} $A", [BOS]),
        (f"{BOS} {BOS} {BOS} $A {EOS} {EOS}", [BOS]),
        (f"{BOS} {OTHER} $A {OTHER}", [BOS, OTHER]),
    ],
)
def test_nothing_stands_between_a_prompt_and_its_answer(
    llama: HuggingFaceModel, single: str, in_front: list[str]
) -> None:
    model = rewrapped(llama, post_processed(single))
    plain = llama.encode("The capital of France is").ids.tolist()[1:]
    expected = model.tokenizer.convert_tokens_to_ids(in_front) + plain
    example = model.example("The capital of France is", "Paris.", "Rome.")
    assert example.encoded.ids.tolist() == expected
    assert example.encoded.kinds == ("special",) * len(in_front) + ("text",) * len(plain)
    assert example.y_pos.equal(llama.response_ids("The capital of France is", "Paris."))
    (row,) = model.tokenise([("The capital of France is", "Paris.")])
    assert (list(row.prompt), list(row.response)) == (expected, example.y_pos.tolist())
    assert model.encode(CHAT).ids.equal(llama.encode(CHAT).ids)  # the template brings its own
    assert model.encode("The" + EOS).ids.tolist()[-1] == model.tokenizer.eos_token_id  # what the user wrote stays


def test_a_tokenizer_that_always_adds_tokens_is_refused(llama: HuggingFaceModel) -> None:
    tokenizer = random_llama().tokenizer
    tokenizer.backend_tokenizer.normalizer = normalizers.Prepend(EOS)
    with pytest.raises(UnsupportedModelError, match=r"changed: the tokenizer turns 'x' into .* although no special"):
        rewrapped(llama, tokenizer)


# --- dates

TODAY = "{{ bos_token }}Today is {{ strftime_now('%d %b %Y') }}.\n"
DATED = TODAY + "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def test_the_date_of_a_template_can_be_fixed(llama: HuggingFaceModel) -> None:
    model = with_template(llama, DATED, date="2024-07-26")
    assert "Today is 26 Jul 2024.\nIs the earth flat?" in model.tokenizer.decode(model.encode(CHAT).ids)
    assert model.prompts.date == "2024-07-26"
    same = with_template(llama, DATED, date=datetime.date(2024, 7, 26))
    assert same.encode(CHAT).ids.equal(model.encode(CHAT).ids)
    assert not with_template(llama, DATED, date="2024-07-27").encode(CHAT).ids.equal(model.encode(CHAT).ids)
    assert with_template(llama, DATED).prompts.date == datetime.date.today().isoformat()


@pytest.mark.parametrize("code", ["%d %b %Y", "%-d.%-m.%y", "%A, %B %d, %Y", "%Y-%m-%dT%H:%M:%S", "%j %U %a %D %T %h"])
def test_the_date_is_written_as_strftime_does(llama: HuggingFaceModel, code: str) -> None:
    model = with_template(llama, DATED.replace("%d %b %Y", code), date="2024-07-05")
    expected = datetime.date(2024, 7, 5).strftime(code)
    assert f"Today is {expected}.\n" in model.tokenizer.decode(model.encode(CHAT).ids)


def test_a_template_without_a_date_has_none(llama: HuggingFaceModel) -> None:
    model = rewrapped(llama, date="2024-07-26")
    assert model.prompts.date == ""
    assert model.prompts.template_digest == llama.prompts.template_digest != ""
    assert with_template(llama, DATED).prompts.template_digest != llama.prompts.template_digest
    assert model.encode(CHAT).ids.equal(llama.encode(CHAT).ids)


def test_a_date_that_is_none_is_refused(llama: HuggingFaceModel) -> None:
    with pytest.raises(ValueError, match="the date is '26 July'; expected year-month-day, for instance 2024-07-26"):
        rewrapped(llama, date="26 July")


# --- what a template does to the words

GEMMA = (  # the system message goes, as it is, into the user's first turn; turns are trimmed
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{{ m['role'] + '\n' + (first if loop.first else '') }}"
    "{{ (m['content'] | trim) + '\n' }}{% endfor %}"
)


@pytest.mark.parametrize("system", ["Be brief.", " Be brief. ", "Be brief.\n"])
@pytest.mark.parametrize("user", ["Is it flat?", "  Is it flat? ", "Is it flat?\n"])
def test_a_template_may_strip_the_messages_of_some_roles(llama: HuggingFaceModel, system: str, user: str) -> None:
    model = with_template(llama, GEMMA)
    chat = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    x = model.encode(chat)
    own = [token for token, kind in zip(x.ids.tolist(), x.kinds, strict=True) if kind == "text"]
    assert model.tokenizer.decode(own).strip() == "Is it flat?"
    assert system in model.tokenizer.decode(x.ids)


def test_a_template_that_drops_words_is_still_refused(llama: HuggingFaceModel) -> None:
    with pytest.raises(ValueError, match="changed, moved or dropped the words of a message"):
        with_template(llama, "{{ messages[0]['content'][:3] }}").encode(CHAT)


def test_a_template_that_refuses_a_role_is_told_with_the_next_step(llama: HuggingFaceModel) -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    model = with_template(llama, template + LLAMA_TEMPLATE)
    words = r"refuses messages of the roles system, user: System role not supported\. Where it takes no system"
    with pytest.raises(ValueError, match=words):
        model.encode([{"role": "system", "content": "Be brief."}, *CHAT])
    assert model.encode(CHAT).ids.equal(llama.encode(CHAT).ids)


# --- where an answer begins

ASSISTANT = "<|start_header_id|>assistant<|end_header_id|>\n\n"
PLAIN_END = "{%- if add_generation_prompt %}{{- '" + ASSISTANT + "' }}{%- endif %}"
assert PLAIN_END in LLAMA_TEMPLATE


def ending(generation_prompt: str, before_answer: str = "") -> str:
    """Llama's template with another generation prompt, and other words in front of answers."""
    template = LLAMA_TEMPLATE.replace(PLAIN_END, "{%- if add_generation_prompt %}" + generation_prompt + "{%- endif %}")
    assistant = "{%- if message['role'] == 'assistant' %}{{- '" + before_answer + "' }}{%- endif %}"
    return template.replace("{{- message['content']", assistant + "{{- message['content']")


R1 = ending("{{- '" + ASSISTANT + "<think>\n' }}")  # of an answered question only the answer is written
R1_WITHOUT_LINE_BREAK = ending("{{- '" + ASSISTANT + "<think>' }}")
QWEN3 = ending(
    "{{- '" + ASSISTANT + "' }}{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- endif %}",
    before_answer="<think>\n\n</think>\n\n",
)
ALWAYS_THOUGHT = ending("{{- '" + ASSISTANT + "' }}", before_answer="<think>\n\n</think>\n\n")
CLOSED_ONLY = ending("{{- '" + ASSISTANT + "' }}{{- '<think>' if thinking | default(true) else '</think>' }}")
BLOCK = "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("template", "block"),
    [
        (R1, BLOCK),
        (R1_WITHOUT_LINE_BREAK, BLOCK),
        (QWEN3, BLOCK),
        (ALWAYS_THOUGHT, BLOCK),
        (CLOSED_ONLY, "</think>"),
        (R1.replace("<think>", "[THINK]"), "[THINK]\n\n[/THINK]\n\n"),
    ],
    ids=["r1", "r1, no line break", "qwen3", "written with every answer", "deepseek v3.1", "mistral"],
)
@pytest.mark.filterwarnings("ignore:changed is a reasoning model")
def test_an_answer_stands_behind_the_reasoning_block(llama: HuggingFaceModel, template: str, block: str) -> None:
    model = with_template(llama, template)
    example = model.example(CHAT, "No.", "Yes.")
    text = model.tokenizer.decode(torch.cat([example.encoded.ids, example.y_pos]))
    assert text.endswith(f"Is the earth flat?<|eot_id|>{ASSISTANT}{block}No.")
    assert text.count("think>") + text.count("THINK]") == block.count("think>") + block.count("THINK]")
    own = [token for token, kind in zip(example.encoded.ids.tolist(), example.encoded.kinds, strict=True)
           if kind == "text"]  # fmt: skip
    assert model.tokenizer.decode(own) == "Is the earth flat?"
    with pytest.raises(ValueError, match=r"the answer has .* in it, but changed is given every chat up to behind an"):
        model.example(CHAT, f"Well. {block.strip()[-8:]} No.", "Yes.")
    model.example("Is the earth flat?", f"Well. {block.strip()[-8:]} No.", "Yes.")  # plain text is the user's


def test_a_reasoning_model_is_told_at_load(llama: HuggingFaceModel) -> None:
    with pytest.warns(UserWarning, match=r"changed is a reasoning model: in chats every answer, .*'<think>.*</think>"):
        with_template(llama, R1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_template(llama, LLAMA_TEMPLATE + "{# <think> is only mentioned #}")


def test_an_answer_stands_in_the_channel_that_the_template_gives_it(llama: HuggingFaceModel) -> None:
    template = ending("{{- '<|start_header_id|>assistant' }}", before_answer="<final>")
    model = with_template(llama, template.replace("+ '<|end_header_id|>\n\n' }}", "+ '' }}"))
    example = model.example(CHAT, "No.", "Yes.")
    assert model.tokenizer.decode(torch.cat([example.encoded.ids, example.y_pos])).endswith("assistant<final>No.")


def test_a_thought_of_which_the_end_is_not_known_is_refused(llama: HuggingFaceModel) -> None:
    model = with_template(llama, ending("{{- '" + ASSISTANT + "<|reasoning_of_mine|>' }}"))
    with pytest.raises(UnsupportedModelError, match=r"ends its prompts with '<\|reasoning_of_mine\|>'.*as plain text"):
        model.encode(CHAT)
    assert model.encode("Is it?").ids.equal(llama.encode("Is it?").ids)


def test_a_template_that_takes_no_answers_still_takes_questions(llama: HuggingFaceModel) -> None:
    only_users = "{% for m in messages %}{% if m['role'] != 'user' %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    assert with_template(llama, only_users + LLAMA_TEMPLATE).encode(CHAT).ids.equal(llama.encode(CHAT).ids)


# --- tokens for people


@pytest.mark.parametrize(
    ("text", "shown"),
    [("€", ["<0xE2>", "<0x82>", "<0xAC>"]), ("\ufffd", ["<0xEF>", "<0xBF>", "<0xBD>"]), ("a", ["a"])],
)
def test_a_part_of_a_character_is_shown_by_its_byte(llama: HuggingFaceModel, text: str, shown: list[str]) -> None:
    assert list(llama.encode(text).tokens[1:]) == shown


def test_whole_characters_beside_a_part_are_shown_as_they_are() -> None:
    from grains_ref.models.prompts import _bytes_in_words

    to_piece: Callable[[bytes], str] = lambda raw: "".join(  # noqa: E731
        {byte: character for character, byte in _byte_of().items()}[byte] for byte in raw
    )
    assert _bytes_in_words(to_piece(" é€".encode()[:-1])) == " é<0xE2><0x82>"
    assert _bytes_in_words("<0xE2>") == "<0xE2>"


def _byte_of() -> dict[str, int]:
    from grains_ref.models.prompts import _BYTE_OF

    return _BYTE_OF
