"""XStoryCloze, the English part: a story of four sentences, and two sentences of which one ends it.

lm-evaluation-harness asks (task `xstorycloze_en`): the ending that is more likely after the story counts.  No task of
the harness has a model write a story and judges what it wrote; this one asks whether it tells an ending that fits from
one that does not.

Easily misread: `answer_right_ending` counts from 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from grains_ref.datasets.dataset import Dataset, Harness, Part
from grains_ref.datasets.records import MultipleChoice, Record, Row
from grains_ref.datasets.schema import TEXT, WHOLE, Schema
from grains_ref.datasets.sources import CONVERTED, Repository, Source, load_rows

CONFIG = "en"
REPOSITORY = Repository("juletxara/xstory_cloze", include=(f"{CONFIG}/eval/*",), revision=CONVERTED)
SENTENCES = tuple(f"input_sentence_{i}" for i in range(1, 5))
ENDINGS = ("sentence_quiz1", "sentence_quiz2")
SCHEMA = Schema(
    dict.fromkeys(("story_id", *SENTENCES, *ENDINGS), TEXT) | {"answer_right_ending": WHOLE},
    id_column="story_id",
    visible=(*SENTENCES, *ENDINGS),
)


def read(source: Source = "") -> tuple[Row, ...]:
    """All stories of the split `eval`, in their order.

    Raises:
        RowError: the right ending is neither the first nor the second, or both endings are the same.
    """
    rows = load_rows(source, REPOSITORY, config=CONFIG, split="eval", schema=SCHEMA)
    for row in rows:
        if row["answer_right_ending"] not in (1, 2):
            row.fail("answer_right_ending", f"is {row['answer_right_ending']}; expected 1 or 2.")
        if row[ENDINGS[0]].strip() == row[ENDINGS[1]].strip():
            row.fail(ENDINGS[1], "is the other ending, word for word.")
    return rows


def multiple_choice(row: Row) -> MultipleChoice:
    """A story with its two endings."""
    return MultipleChoice(
        id=row.id,
        prompt=" ".join(row[sentence] for sentence in SENTENCES),
        choices=tuple(row[ending] for ending in ENDINGS),
        labels=(row["answer_right_ending"] == 1, row["answer_right_ending"] == 2),
        where=row.where,
    )


def records(source: Source, pictures: Path) -> dict[str, Sequence[Record]]:
    """Every record of a folder; there are no pictures."""
    return {"multiple_choice": [multiple_choice(row) for row in read(source)]}


DATASET = Dataset(
    name="xstory_cloze",
    title="XStoryCloze, English",
    used_for=(),
    parts=(Part(REPOSITORY, "eval", 1511, configs=(CONFIG,)),),
    licence="CC-BY-SA-4.0 by its card; the English stories are Story Cloze's, given out on request",
    pictures=False,
    records=records,
    harness=Harness(
        plain="xstorycloze/default_en.yaml",
        chat="xstorycloze/default_en.yaml",
        split="eval",
        metric="acc",
        rows=read,
        through_template=False,
    ),
)
