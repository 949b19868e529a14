r"""Where an answer begins in the chat of a reasoning model: behind its thoughts, of which there are none here.

A preference is about answers.  Put right behind a generation prompt that begins a thought, an answer would be scored as
a thought; so the reasoning block is closed first, empty, as the models' own templates write it where thinking is off:

    ...<assistant>  <think>\n\n</think>\n\n the answer

The same goes for the names of channels, and whatever else a template writes between its prompt and an answer.
"""

from __future__ import annotations

import re

from grains_ref.models.families import UnsupportedModelError

# What templates write where a thought begins, and what ends it.
ENDS = {"<think>": "</think>", "<thinking>": "</thinking>", "<seed:think>": "</seed:think>", "[THINK]": "[/THINK]"}
OPTIONS = ("enable_thinking", "thinking")  # by which templates can be asked to begin no thought
_ABOUT_THOUGHTS = re.compile("think|reason", re.IGNORECASE)


def opening_of_answer(asked: str, answered: str, answer: str) -> str:
    """What belongs behind a generation prompt, so that the answer itself comes next; "" for most templates.

    asked: a chat as the template writes it, up to its generation prompt.  answered: the same with the answer; "" where
    the template takes none.

    Raises:
        UnsupportedModelError: the prompt begins a thought, and how it ends is not known.
    """
    for begins, ends in ENDS.items():
        if asked.rstrip().endswith(begins):
            line_breaks = "\n" if asked.endswith("\n") else "\n\n"
            return f"{line_breaks}{ends}\n\n"
    if answer not in answered:
        return ""  # this template writes no answers
    before = answered.partition(answer)[0]
    if before.startswith(asked):
        between = before[len(asked) :]
        return "" if between.isspace() else between
    of_prompt_alone = _behind_what_is_common(asked, before)
    is_closed = any(ends in of_prompt_alone for ends in ENDS.values())
    if _ABOUT_THOUGHTS.search(of_prompt_alone) and not is_closed:
        raise UnsupportedModelError(
            f"the chat template ends its prompts with {of_prompt_alone!r}, which seems to begin a thought; how it ends "
            "is not known, so that an answer cannot be put behind it. Give the prompts as plain text, up to where the "
            "answer begins"
        )
    return ""


def block_at_the_end(prompt: str) -> str:
    """The empty reasoning block that a prompt ends with; "" if it ends otherwise."""
    for begins, ends in ENDS.items():
        if prompt.rstrip().endswith(ends):
            start = prompt.rfind(begins)
            return prompt[start:] if start >= 0 else ends
    return ""


def is_spoken_of(template: str) -> bool:
    """Whether a chat template may know of thoughts at all."""
    return bool(_ABOUT_THOUGHTS.search(template))


def end_of_thought_in(answer: str) -> str:
    """The mark in an answer that ends a thought; "" if there is none."""
    return next((ends for ends in ENDS.values() if ends in answer), "")


def _behind_what_is_common(text: str, other: str) -> str:
    """The end of a text, from where it differs from the other."""
    for i, character in enumerate(text):
        if other[i : i + 1] != character:
            return text[i:]
    return ""
