"""MMHal-Bench: 96 questions about pictures that invite a hallucination, answered freely and rated by a judge.

The benchmark has no pairs, and all of it is the test set.  As in VTI, whose protocol the paper follows, the pairs come
from another file: descriptions of COCO pictures, each as it is and with objects added that are not there.

A folder that serves all of it::

    FOLDER/response_template.json  FOLDER/images/            test_data.zip of Shengcao1006/MMHal-Bench, unpacked
    FOLDER/hallucination_vti_demos.jsonl                     from experiments/data/ of github.com/shengliu66/VTI
    FOLDER/train2014/                                        the COCO 2014 training pictures that the file names

**Recipe of a pair.** Prompt: appendix C with the file's question ("Describe this image in detail.") and the COCO
picture.  Chosen: the faithful description (`value`).  Rejected: the one with added objects (`h_value`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from grains_ref.data import PreferencePair
from grains_ref.datasets import prompts
from grains_ref.datasets.records import DatasetError, Generation, Row, file_digest
from grains_ref.datasets.schema import TEXT, TEXTS, Schema
from grains_ref.datasets.source import Source, load_rows
from grains_ref.datasets.splits import N_STEERING, Split, check_kind

HUB_ID = "Shengcao1006/MMHal-Bench"
TEMPLATE, IMAGES, VTI_FILE, COCO = "response_template.json", "images", "hallucination_vti_demos.jsonl", "train2014"
QUESTION_TYPES = ("attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other")
SCHEMA = Schema(
    {
        **dict.fromkeys(("question_type", "question_topic", "image_src", "question", "gt_answer"), TEXT),
        "image_content": TEXTS,
    },
    {"image_id": TEXT, "model_answer": TEXT},
)
VTI_SCHEMA = Schema(
    dict.fromkeys(("id", "image", "value", "h_value", "question"), TEXT),
    {"co_objects": TEXTS, "uncertain_objects": TEXTS},
    id_column="id",
)


@dataclass(frozen=True)
class MMHalQuestion(Generation):
    """A question with what a judge needs beside it: the objects in the picture, its topic; `group` is the type.

    The standard answer is the only reference.
    """

    image_content: tuple[str, ...] = ()
    topic: str = ""


def read(source: Source = HUB_ID) -> tuple[Row, ...]:
    """The questions, in the benchmark's order, from a folder with `response_template.json` and `images/`.

    Raises:
        DatasetError: the source is a hub id (the repository is a script with a zip file), or has no such file.
        RowError: an unknown question type, or a picture that is not there.
    """
    folder = Path(source)
    if not folder.exists():
        return load_rows(source, config="", split="test", schema=SCHEMA)  # says what to download
    file = folder if folder.is_file() else folder / TEMPLATE
    if not file.exists():
        raise DatasetError(f"{folder}: holds no {TEMPLATE}; give the folder that test_data.zip was unpacked to")
    rows = []
    for row in load_rows(file, config="", split="test", schema=SCHEMA):
        if row["question_type"] not in QUESTION_TYPES:
            known = ", ".join(QUESTION_TYPES)
            row.fail("question_type", f"unknown label {row['question_type']!r}; expected one of {known}.")
        picture = file.parent / IMAGES / row["image_src"].rpartition("/")[2]
        rows.append(Row(row.id, row.where, {**row.fields, "image": _existing(row, "image_src", picture)}))
    return tuple(rows)


def read_vti(source: Source, *, coco: Path) -> tuple[Row, ...]:
    """The rows of VTI's file, with the path of each picture.

    Args:
        source: the JSONL file.
        coco: the folder of COCO's 2014 training pictures.

    Raises:
        RowError: a picture is not there.
    """
    rows = load_rows(source, config="", split="vti", schema=VTI_SCHEMA)
    return tuple(
        Row(row.id, row.where, {**row.fields, "picture": _existing(row, "image", coco / row["image"])}) for row in rows
    )


def keys(row: Row) -> tuple[str, ...]:
    """What must not be in two parts of a split: the picture.

    The questions are no key: all of VTI's rows have the same, and none of them is in the benchmark.
    """
    return (file_digest(row["picture" if "picture" in row.fields else "image"]),)


def split(source: Source = HUB_ID, *, kind: str = "paper", n: int = N_STEERING, seed: int = 0) -> Split[Row]:
    """Appendix A.1 after VTI: n of VTI's 100 rows at random, no dev set, and all 96 questions for testing.

    With no dev set, the paper does not say on what its strength was chosen; n smaller than 50 leaves rows for it.

    Raises:
        DatasetError: a file is missing, or VTI's has fewer than n rows.
    """
    check_kind(kind, no_release="cannot read MMHal-Bench")
    folder = Path(source)
    if folder.is_dir() and not (folder / VTI_FILE).is_file():
        advice = "The 50 samples that steer come from it: experiments/data/ of github.com/shengliu66/VTI"
        raise DatasetError(f"{folder}: holds no {VTI_FILE}. {advice}")
    test = read(source)
    tested = {key for row in test for key in keys(row)}
    rows = [row for row in read_vti(folder / VTI_FILE, coco=folder / COCO) if not tested & set(keys(row))]
    if len(rows) < n:
        raise DatasetError(f"{folder / VTI_FILE}: {len(rows)} rows are fewer than the {n} asked for")
    ordered = sorted(rows, key=lambda row: row.id)
    return Split("paper", seed, tuple(random.Random(seed).sample(ordered, n)), (), test)


def pair(row: Row, *, chat: bool = True) -> PreferencePair:
    """The faithful against the hallucinating description, of a row of VTI's file.

    Raises:
        RowError: the two are the same.
    """
    if row["value"] == row["h_value"]:
        row.fail("h_value", "the same text as 'value'; a pair needs two answers.")
    prompt = prompts.as_prompt(prompts.vision(row["question"]), chat=chat)
    return PreferencePair(row.id, prompt, row["value"], row["h_value"], row.where, image=row["picture"])


def generation(row: Row, *, chat: bool = True) -> MMHalQuestion:
    """A question of the benchmark."""
    return MMHalQuestion(
        id=row.id,
        question=row["question"],
        prompt=prompts.as_prompt(prompts.vision(row["question"]), chat=chat),
        references=(row["gt_answer"],),
        wrong=(),
        where=row.where,
        images=(row["image"],),
        group=row["question_type"],
        image_content=tuple(row["image_content"]),
        topic=row["question_topic"],
    )


def _existing(row: Row, column: str, picture: Path) -> Path:
    if not picture.is_file():
        row.fail(column, f"{picture} does not exist; the picture is missing.")
    return picture
