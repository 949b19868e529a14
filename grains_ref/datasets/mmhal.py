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

import os
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from grains_ref.data import PreferencePair
from grains_ref.datasets import prompts
from grains_ref.datasets.dataset import Dataset, PairOptions, PairRows, Part
from grains_ref.datasets.records import DatasetError, JudgedQuestion, Record, Row, checked_pair, file_digest
from grains_ref.datasets.schema import TEXT, TEXTS, Schema
from grains_ref.datasets.sources import Repository, Source, is_local, load_rows
from grains_ref.datasets.splits import N_STEERING, Split, check_kind, check_size

REPOSITORY = Repository("Shengcao1006/MMHal-Bench")
VTI = Repository("github.com/shengliu66/VTI")
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


def read(source: Source = "") -> tuple[Row, ...]:
    """The questions, in the benchmark's order, from a folder with `response_template.json` and `images/`.

    Raises:
        DatasetError: the source is a hub id (the repository is a script with a zip file), or has no such file.
        RowError: an unknown question type, or a picture that is not there.
    """
    if not is_local(source):
        hub_id = REPOSITORY.named(source).id
        raise DatasetError(
            f"{hub_id}: no such folder here, and on the hub it is a script with a zip file, which no library loads any "
            f"more. Download test_data.zip from https://huggingface.co/datasets/{hub_id}, unpack it, and give the "
            f"folder with {TEMPLATE}."
        )
    folder = Path(source)
    file = folder if folder.is_file() else folder / TEMPLATE
    if not file.exists():
        raise DatasetError(f"{folder}: holds no {TEMPLATE}; give the folder that test_data.zip was unpacked to")
    rows = []
    for row in load_rows(file, REPOSITORY, config="", split="test", schema=SCHEMA):
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
    rows = []
    for row in load_rows(source, VTI, config="", split="vti", schema=VTI_SCHEMA):
        picture = _existing(row, "image", coco / row["image"])
        rows.append(Row(row.id, row.where, {**row.fields, "picture": picture}))
    return tuple(rows)


def keys(row: Row) -> tuple[str, ...]:
    """What must not be in two parts of a split: the picture.

    The questions are no key: all of VTI's rows have the same, and none of them is in the benchmark.
    """
    is_of_vti = "picture" in row.fields
    return (file_digest(row["picture"] if is_of_vti else row["image"]),)


def split(source: Source = "", *, kind: str = "paper", n: int = N_STEERING, seed: int = 0) -> Split[Row]:
    """Appendix A.1 after VTI: n of VTI's 100 rows at random, and all 96 questions of the benchmark for testing.

    Convention: the dev set is the rest of VTI's rows.  The paper has none, and does not say on what its strength was
    chosen.

    Raises:
        DatasetError: a file is missing, or VTI's has fewer than n rows.
    """
    check_kind(kind, no_release="cannot read MMHal-Bench")
    check_size(n)
    folder = Path(source)
    if is_local(source) and not (folder / VTI_FILE).is_file():
        advice = "The 50 samples that steer come from it: experiments/data/ of github.com/shengliu66/VTI"
        raise DatasetError(f"{folder}: holds no {VTI_FILE}. {advice}")
    test = read(source)
    tested = {key for row in test for key in keys(row)}
    rows = [row for row in read_vti(folder / VTI_FILE, coco=folder / COCO) if tested.isdisjoint(keys(row))]
    if len(rows) < n:
        raise DatasetError(f"{folder / VTI_FILE}: {len(rows)} rows are fewer than the {n} asked for")
    ordered = sorted(rows, key=lambda row: row.id)
    steering = random.Random(seed).sample(ordered, n)
    used = {row.id for row in steering}
    dev = [row for row in ordered if row.id not in used]
    return Split("paper", seed, tuple(steering), tuple(dev), test)


def pair(row: Row, *, chat: bool = True) -> PreferencePair:
    """The faithful against the hallucinating description, of a row of VTI's file.

    Raises:
        RowError: the two are the same.
    """
    if row["value"] == row["h_value"]:
        row.fail("h_value", "the same text as 'value'; a pair needs two answers.")
    prompt = prompts.as_prompt(prompts.vision(row["question"]), chat=chat)
    return checked_pair(
        PreferencePair(row.id, prompt, row["value"], row["h_value"], str(row.where), image=row["picture"])
    )


def generation(row: Row, *, chat: bool = True) -> JudgedQuestion:
    """A question of the benchmark; `group` is its type, and the standard answer the only reference."""
    return JudgedQuestion(
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
    if not os.path.isfile(picture):  # False for a name that no disk takes
        row.fail(column, f"{picture} does not exist; the picture is missing.")
    return picture


def pair_rows(source: Source, options: PairOptions) -> PairRows:
    """The rows of a split, and how a pair is made of one of VTI's."""
    rows = split(source, kind=options.kind, n=options.n, seed=options.seed)
    return PairRows(rows, partial(pair, chat=options.chat))


def records(source: Source, pictures: Path) -> dict[str, Sequence[Record]]:
    """Every record of a folder; its pictures are files already."""
    folder = Path(source)
    return {
        "pairs": [pair(row) for row in read_vti(folder / VTI_FILE, coco=folder / COCO)],
        "generation": [generation(row) for row in read(source)],
    }


DATASET = Dataset(
    name="mmhal",
    title="MMHal-Bench, with VTI's 100 descriptions for steering",
    used_for=("table 2",),
    parts=(Part(REPOSITORY, "test", 96), Part(VTI, VTI_FILE, 100)),
    licence="Apache-2.0, pictures from Flickr; VTI's file has no licence; COCO's own terms for its pictures",
    pictures=True,
    records=records,
    pair_rows=pair_rows,
    judged_question=generation,
    by_hand=(
        f"unpack test_data.zip of https://huggingface.co/datasets/{REPOSITORY.id} into FOLDER ({TEMPLATE}, {IMAGES}/); "
        f"add {VTI_FILE} of {VTI.id} (experiments/data/) and, as {COCO}/, the pictures of COCO 2014 "
        "(http://cocodataset.org) that it names"
    ),
    files=(TEMPLATE, IMAGES, VTI_FILE, COCO),
)
