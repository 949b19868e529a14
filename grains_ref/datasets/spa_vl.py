"""SPA-VL: questions about pictures, some of them harmful, with a safe and an unsafe response.

**Recipe of a pair.** The row itself: prompt of appendix C with the picture, chosen and rejected as they are.

Convention: the responses have tens to hundreds of tokens and differ in length, so summed log-probabilities favour the
shorter one.  Some pictures are meant to be disturbing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from grains_ref.data import PreferencePair
from grains_ref.datasets import prompts
from grains_ref.datasets.dataset import Dataset, PairOptions, PairRows, Part
from grains_ref.datasets.picture_cache import CACHE
from grains_ref.datasets.records import Generation, Record, Row, checked_pair, file_digest
from grains_ref.datasets.schema import PICTURE, TEXT, Schema
from grains_ref.datasets.sources import Repository, Source, load_rows
from grains_ref.datasets.splits import N_STEERING, Split, cut, question_key

REPOSITORY = Repository(
    "sqrti/SPA-VL",
    include=("validation/*",),  # one file of 295 MB; the training pictures beside it are 3.8 GB
)
SCHEMA = Schema(
    {"image": PICTURE, "question": TEXT, "chosen": TEXT, "rejected": TEXT},
    {"class1": TEXT, "class2": TEXT, "class3": TEXT},
)


def read(source: Source = "", *, pictures: Path = CACHE) -> tuple[Row, ...]:
    """All rows of the validation split, which is the only one with responses that is small enough to test on.

    The training repository's JSON form, with pictures as paths beside the file, is read as well.
    """
    return load_rows(source, REPOSITORY, config="validation", split="validation", schema=SCHEMA, pictures=pictures)


def keys(row: Row) -> tuple[str, ...]:
    """What must not be in two parts of a split: the question, and the picture."""
    return (question_key(row["question"]), file_digest(row["image"]))


def split(
    source: Source = "", *, kind: str = "paper", n: int = N_STEERING, seed: int = 0, pictures: Path = CACHE
) -> Split[Row]:
    """Appendix A.1: 50 / 695 / 6255 of the 7,000 rows of the validation split."""
    return cut(read(source, pictures=pictures), kind=kind, keys=keys, n=n, seed=seed)


def pair(row: Row, *, chat: bool = True) -> PreferencePair:
    """The safe against the unsafe response.

    Raises:
        RowError: the two are the same, or one is empty.
    """
    _check(row)
    prompt = prompts.as_prompt(prompts.vision(row["question"]), chat=chat)
    return checked_pair(
        PreferencePair(row.id, prompt, row["chosen"], row["rejected"], str(row.where), image=row["image"])
    )


def generation(row: Row, *, chat: bool = True) -> Generation:
    """The question to be answered freely; the references are the two responses.

    Raises:
        RowError: the two are the same, or one is empty.
    """
    _check(row)
    return Generation(
        id=row.id,
        question=row["question"],
        prompt=prompts.as_prompt(prompts.vision(row["question"]), chat=chat),
        references=(row["chosen"],),
        wrong=(row["rejected"],),
        where=row.where,
        images=(row["image"],),
        group=row.fields.get("class1") or "",
    )


def _check(row: Row) -> None:
    for column in ("question", "chosen", "rejected"):
        if not row[column].strip():
            row.fail(column, "is empty; expected text.")
    if row["chosen"] == row["rejected"]:
        row.fail("rejected", "the same text as 'chosen'; a pair needs two answers.")


def pair_rows(source: Source, options: PairOptions) -> PairRows:
    """The rows of a split, and how a pair is made of one."""
    rows = split(source, kind=options.kind, n=options.n, seed=options.seed, pictures=options.pictures)
    return PairRows(rows, partial(pair, chat=options.chat))


def records(source: Source, pictures: Path) -> dict[str, Sequence[Record]]:
    """Every record of a folder."""
    rows = read(source, pictures=pictures)
    return {"pairs": [pair(row) for row in rows], "generation": [generation(row) for row in rows]}


DATASET = Dataset(
    name="spa_vl",
    title="SPA-VL, validation",
    used_for=("table 3", "table 5", "table 7", "table 8", "cost"),
    parts=(Part(REPOSITORY, "validation", 7000, configs=("validation",)),),
    licence="CC-BY-4.0 (some pictures are disturbing)",
    pictures=True,
    records=records,
    pair_rows=pair_rows,
)
