"""WritingPrompts (Fan et al. 2018): titles, each with a story that somebody wrote to it; the model writes its own.

lm-evaluation-harness has no task in which a story is written and judged, so the task is ours: `writing_prompts.yaml`,
in the harness's own format.  Nothing that runs without a judge can say whether a story is good.  What is measured is
what steering that is too strong takes from any free text; a text is a story if all of these hold:

| condition | what breaks it |
|---|---|
| at least 80 words | a model that stops, or refuses |
| of its runs of three words at least 3/4 are different | a model that goes round in a circle |
| fewer than half of its runs of three words stand in the title | a model that says the question again |
| at least 9/10 of its words hold a letter of the alphabet and no U+FFFD | a model that falls apart |

Convention: the numbers are ours.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grains_ref.datasets.dataset import Dataset, Harness, Part
from grains_ref.datasets.records import Generation, Record, Row
from grains_ref.datasets.schema import TEXT, Schema
from grains_ref.datasets.sources import Repository, Source, load_rows

REPOSITORY = Repository("euclaise/writingprompts", include=("data/test-*",))
SCHEMA = Schema(dict.fromkeys(("prompt", "story"), TEXT), visible=("prompt", "story"))
N_ASKED = 200  # titles, of the 15,138 of the test split
TAG = re.compile(r"^\[ ?[A-Za-z]{2} ?\]\s*")  # "[ WP ]" and the like, before a title

LEAST_WORDS = 80
LEAST_DIFFERENT = 3 / 4
MOST_OF_TITLE = 1 / 2
LEAST_WORDLIKE = 9 / 10


def read(source: Source = "") -> tuple[Row, ...]:
    """All titles with their stories, in their order."""
    return load_rows(source, REPOSITORY, config="", split="test", schema=SCHEMA)


def asked(source: Source = "") -> tuple[Row, ...]:
    """`N_ASKED` of them, the same on every machine; all, where there are fewer."""
    rows = read(source)
    if len(rows) <= N_ASKED:
        return rows
    return tuple(rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), N_ASKED)))


def title(prompt: str) -> str:
    """A prompt without its tag."""
    return TAG.sub("", prompt).strip()


def ask(doc: Mapping[str, Any]) -> str:
    """What the model is asked; the harness calls it with a row."""
    return f"Write a short story of about 150 words with this beginning or title: {title(doc['prompt'])}\n\nStory:"


def is_story(text: str, prompt: str) -> bool:
    """Whether a text meets the four conditions above; `prompt` is a row's."""
    words = _words(text)
    if len(words) < LEAST_WORDS:
        return False
    runs = _runs(words)
    of_title = set(_runs(_words(title(prompt))))
    different = len(set(runs)) / len(runs)
    repeated = sum(run in of_title for run in runs) / len(runs)
    wordlike = sum(any(c.isalpha() for c in word) and "\ufffd" not in word for word in words) / len(words)
    return different >= LEAST_DIFFERENT and repeated < MOST_OF_TITLE and wordlike >= LEAST_WORDLIKE


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The harness's question after each answer."""
    return {"is_story": float(is_story(results[0], doc["prompt"]))}


def _words(text: str) -> list[str]:
    return text.lower().split()


def _runs(words: Sequence[str]) -> list[tuple[str, ...]]:
    """All runs of three words."""
    return [tuple(words[i : i + 3]) for i in range(len(words) - 2)]


def generation(row: Row) -> Generation:
    """A title with its story as the reference."""
    return Generation(
        id=row.id,
        question=title(row["prompt"]),
        prompt=ask(row.fields),
        references=(row["story"],),
        wrong=(),
        where=row.where,
        group=row["prompt"],  # one title has several stories
    )


def records(source: Source, pictures: Path) -> dict[str, Sequence[Record]]:
    """Every record of a folder; there are no pictures."""
    return {"generation": [generation(row) for row in read(source)]}


DATASET = Dataset(
    name="writing_prompts",
    title="WritingPrompts",
    used_for=(),
    parts=(Part(REPOSITORY, "test", 15138),),
    licence="MIT by its card; the stories are of users of Reddit",
    pictures=False,
    records=records,
    harness=Harness(
        plain="writing_prompts.yaml",
        chat="writing_prompts.yaml",
        split="test",
        metric="is_story",
        rows=asked,
        is_ours=True,
    ),
)
