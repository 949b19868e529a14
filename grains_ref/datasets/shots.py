"""Examples with answers before the question: five where they fit the context, otherwise as many as fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from grains_ref.data import Prompt
from grains_ref.datasets.records import DatasetError, MultipleChoice

N_SHOTS = 5
CountTokens: TypeAlias = Callable[[Prompt, Sequence[Path]], int]
Build: TypeAlias = Callable[[int], tuple[Prompt, tuple[Path, ...]]]


def most_shots(
    build: Build, *, wanted: int, count_tokens: CountTokens, context: int, answer_tokens: int, max_pictures: int = 1
) -> int:
    """The largest number of shots, at most `wanted`, with which prompt and answer fit the model.

    Args:
        build: the prompt and its pictures with that many shots.
        wanted: 5 in the paper.
        count_tokens: tokens of a prompt with its pictures, template and image tokens included, for instance
            `lambda prompt, pictures: len(model.encode(prompt, *pictures).ids)`.
        context: the largest number of tokens the model takes.
        answer_tokens: tokens to keep free for the answer.
        max_pictures: pictures the model takes in one prompt; shots that would bring more are not used.

    Raises:
        DatasetError: the question alone does not fit.
    """
    for n in range(wanted, -1, -1):
        prompt, pictures = build(n)
        if len(pictures) > max_pictures:
            continue
        if count_tokens(prompt, pictures) + answer_tokens <= context:
            return n
    pictures = build(0)[1]
    if len(pictures) > max_pictures:
        raise DatasetError(f"the question alone has {len(pictures)} pictures, the model takes {max_pictures}")
    raise DatasetError(f"the question alone does not fit {context} tokens with {answer_tokens} kept for the answer")


def shots_in_words(questions: Sequence[MultipleChoice], *, wanted: int = N_SHOTS) -> str:
    """With how many shots a table was made: "5-shot", or for instance "0 to 5 shots (mean 3.2), 5 wanted"."""
    numbers = [question.n_shots for question in questions]
    if not numbers:
        raise ValueError("no questions")
    if min(numbers) == max(numbers):
        return f"{numbers[0]}-shot" + (f" ({wanted} do not fit)" if numbers[0] < wanted else "")
    return f"{min(numbers)} to {max(numbers)} shots (mean {sum(numbers) / len(numbers):.1f}), {wanted} wanted"
