"""Examples before a question: as many as fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from grains_ref.datasets import mmlu
from grains_ref.datasets.few_shot import most_shots
from grains_ref.datasets.records import DatasetError
from grains_ref.datasets.registry import fixture

pytestmark = pytest.mark.cpu


def test_shots_are_as_many_as_fit_and_the_number_is_told() -> None:
    dev, test = (mmlu.read(fixture("mmlu"), split=split) for split in ("dev", "test"))

    def words(prompt: object, pictures: object) -> int:
        return len(prompt.split())  # type: ignore[attr-defined]

    sizes = [words(mmlu.multiple_choice(test[0], dev=dev, wanted=n, chat=False).prompt, ()) for n in range(6)]
    for n, size in enumerate(sizes):  # one token is kept for the answer, so `size` words fit a context of size + 1
        for context, fitting in ((size + 1, n), (size, n - 1)):
            if fitting >= 0:
                one = mmlu.multiple_choice(test[0], dev=dev, count_tokens=words, context=context, chat=False)
                assert (one.n_shots, words(one.prompt, ())) == (fitting, sizes[fitting])
    with pytest.raises(DatasetError, match="the question alone does not fit 7 tokens"):
        mmlu.multiple_choice(test[0], dev=dev, count_tokens=words, context=7, chat=False)
    assert mmlu.multiple_choice(test[0], dev=dev).n_shots == 5  # without a limit all that there are
    with pytest.raises(ValueError, match="both, or neither"):
        mmlu.multiple_choice(test[0], dev=dev, context=100)


def test_most_shots_counts_pictures_before_tokens() -> None:
    def never(prompt: object, pictures: object) -> int:
        assert len(pictures) <= 1  # type: ignore[arg-type]
        return 1

    build = lambda n: ("x", (Path("p"),) * (n + 1))  # noqa: E731
    assert most_shots(build, wanted=5, count_tokens=never, context=10, answer_tokens=1) == 0
