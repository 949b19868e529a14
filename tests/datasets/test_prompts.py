"""The paper's prompts, byte for byte."""

from __future__ import annotations

import hashlib

import pytest

from grains_ref.datasets import prompts

pytestmark = pytest.mark.cpu


@pytest.mark.parametrize(
    ("template", "digest", "size"),
    [  # SHA-256 of the paper's text, its paragraphs joined by line breaks
        (prompts.TRUTHFULQA, "6690287fd54168846fea866cdc917fd08ffaf9b084dc0abaa8b37fe3291f6429", 351),
        (prompts.TOXIGEN, "5cc40cb7ef7155a882280bb5dc931b5326a7ae3296df277c1c97ae04b2efdc94", 219),
        (prompts.FAITHEVAL, "84303df35cb9d36e5403f4f84da5ab325da7aed63a286f1b9cb8d766f5d82c49", 194),
        (prompts.VISION, "c0df2b506e1c1ad1a838358404a27b6af633f41a4d85f86fc4bd8516bb395d0a", 43),
    ],
)
def test_prompts_are_the_papers_byte_for_byte(template: str, digest: str, size: int) -> None:
    assert len(template.encode()) == size
    assert hashlib.sha256(template.encode()).hexdigest() == digest


def test_prompts_take_braces_and_need_no_escaping() -> None:
    assert prompts.truthfulqa("a {b} {question}").endswith("\nQuestion: a {b} {question}\nAnswer:")
    filled = prompts.faitheval("{question}", "{context}", task="If {so}.")
    assert filled.endswith("information.\nIf {so}.\nContext: {question}\nQuestion: {context}\nAnswer:")


def test_a_picture_has_one_place_in_plain_text_and_none_in_a_message() -> None:
    text = prompts.vision("What?")
    assert prompts.as_prompt(text, chat=False) == "Image: <image>\nQuestion: What?\nAnswer:"
    assert prompts.as_prompt(text, chat=True) == ({"role": "user", "content": "Question: What?\nAnswer:"},)
