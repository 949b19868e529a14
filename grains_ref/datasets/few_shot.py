"""Examples with answers before the question: five where they fit the context, otherwise as many as fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from grains_ref.data import Prompt
from grains_ref.datasets.records import DatasetError

N_SHOTS = 5
CountTokens: TypeAlias = Callable[[Prompt, Sequence[Path]], int]
Build: TypeAlias = Callable[[int], tuple[Prompt, tuple[Path, ...]]]


def most_shots(
    build: Build,
    *,
    wanted: int,
    count_tokens: CountTokens | None = None,
    context: int | None = None,
    answer_tokens: int = 1,
    max_pictures: int = 1,
) -> int:
    """The largest number of shots, at most `wanted`, with which prompt and answer fit the model.

    Args:
        build: the prompt and its pictures with that many shots.
        wanted: 5 in the paper.
        count_tokens: tokens of a prompt with its pictures, template and image tokens included, for instance
            `lambda prompt, pictures: len(model.encode(prompt, *pictures).ids)`.
        context: the largest number of tokens the model takes.  Without these two, tokens are not counted.
        answer_tokens: tokens to keep free for the answer.
        max_pictures: pictures the model takes in one prompt; shots that would bring more are not used.

    Raises:
        ValueError: only one of `count_tokens` and `context` is given.
        DatasetError: the question alone does not fit.
    """
    if (count_tokens is None) != (context is None):
        raise ValueError("give count_tokens and context both, or neither")

    def fits(prompt: Prompt, pictures: Sequence[Path]) -> bool:
        if len(pictures) > max_pictures:
            return False
        if count_tokens is None or context is None:
            return True
        return count_tokens(prompt, pictures) + answer_tokens <= context

    for n in range(wanted, -1, -1):
        if fits(*build(n)):
            return n
    pictures = build(0)[1]
    if len(pictures) > max_pictures:
        raise DatasetError(f"the question alone has {len(pictures)} pictures, the model takes {max_pictures}")
    raise DatasetError(f"the question alone does not fit {context} tokens with {answer_tokens} kept for the answer")
