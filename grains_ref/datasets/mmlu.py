"""MMLU: 57 subjects of four-choice questions, asked after five examples of the same subject.

The prompt is the one the benchmark's authors use, but for one space: a heading with the subject, the subject's first
examples of the dev split in file order, and the question, ending in "Answer:".  The choices are the letters.

The mean over all questions is the published accuracy; subjects are not weighed equally.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from grains_ref.data import Prompt
from grains_ref.datasets import prompts
from grains_ref.datasets.dataset import Dataset, Part
from grains_ref.datasets.few_shot import N_SHOTS, CountTokens, most_shots
from grains_ref.datasets.records import MultipleChoice, Record, Row
from grains_ref.datasets.schema import TEXT, TEXTS, Schema
from grains_ref.datasets.sources import Repository, Source, load_rows

REPOSITORY = Repository("cais/mmlu", old_ids=("hendrycks/test",), include=("all/dev-*", "all/test-*"))
LETTERS = ("A", "B", "C", "D")
SCHEMA = Schema({"question": TEXT, "subject": TEXT, "choices": TEXTS, "answer": LETTERS})


def read(source: Source = "", *, split: str = "test", config: str = "all") -> tuple[Row, ...]:
    """All rows of a split: `test` to be asked, `dev` for the examples; `config` is a subject or `all`."""
    rows = load_rows(source, REPOSITORY, config=config, split=split, schema=SCHEMA)
    for row in rows:
        if len(row["choices"]) != len(LETTERS):
            row.fail("choices", f"{len(row['choices'])} choices; expected {len(LETTERS)}.")
    return rows


def multiple_choice(
    row: Row,
    *,
    dev: Sequence[Row] = (),
    wanted: int = N_SHOTS,
    count_tokens: CountTokens | None = None,
    context: int | None = None,
    chat: bool = True,
) -> MultipleChoice:
    """A question after as many examples as fit, at most `wanted`; `n_shots` of the record says how many.

    Args:
        row: the question.
        dev: rows of the dev split, of any subjects; those of the question's subject are the examples.
        wanted: 5 in the paper.
        count_tokens, context: see `few_shot.most_shots`; by default everything fits.
        chat: one message of the user, or plain text.

    Raises:
        DatasetError: the question alone does not fit.
    """
    of_subject = [other for other in dev if other["subject"] == row["subject"]]
    shots = of_subject[:wanted]

    def build(n: int) -> tuple[Prompt, tuple[()]]:
        subject = row["subject"].replace("_", " ")
        heading = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        examples = [f"{_asked(shot)} {LETTERS[shot['answer']]}\n\n" for shot in shots[:n]]
        return prompts.as_prompt(heading + "".join(examples) + _asked(row), chat=chat), ()

    n = most_shots(build, wanted=len(shots), count_tokens=count_tokens, context=context)
    return MultipleChoice(
        id=row.id,
        prompt=build(n)[0],
        choices=LETTERS,
        labels=tuple(i == row["answer"] for i in range(len(LETTERS))),
        where=row.where,
        group=row["subject"],
        options=tuple(row["choices"]),
        n_shots=n,
    )


def _asked(row: Row) -> str:
    options = "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, row["choices"], strict=True))
    return f"{row['question'].strip()}\n{options}Answer:"


def capability(source: Source, *, n: int, count_tokens: CountTokens, context: int | None) -> list[MultipleChoice]:
    """n questions of the test split, drawn with a fixed seed, each after as many examples as fit."""
    rows = list(read(source, split="test"))
    dev = read(source, split="dev")
    random.Random(0).shuffle(rows)
    return [multiple_choice(row, dev=dev, count_tokens=count_tokens, context=context) for row in rows[:n]]


def records(source: Source, pictures: Path) -> dict[str, Sequence[Record]]:
    """Every record of a folder; there are no pictures."""
    dev = read(source, split="dev")
    return {"multiple_choice": [multiple_choice(row, dev=dev) for row in read(source, split="test")]}


DATASET = Dataset(
    name="mmlu",
    title="MMLU",
    used_for=("table 4",),
    parts=(Part(REPOSITORY, "test", 14042, configs=("all",)), Part(REPOSITORY, "dev", 285, configs=("all",))),
    licence="MIT",
    pictures=False,
    records=records,
    capability=capability,
)
