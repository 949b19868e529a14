"""MMMU: college questions of 30 subjects about pictures; most have lettered options, some are open.

Prompt: the question with its options in brackets, and the benchmark's closing sentence.

Convention: `options` is the text of a Python list, and so are an open question's answer where several are right.
Pictures are named `<image 1>` to `<image 7>` in questions and options.  With one picture, a chat template puts it in
front and the text keeps the name; in plain text, and with several pictures, `<image>` marks the place of each where it
is first named, in front where it is not named.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Sequence
from pathlib import Path

from grains_ref.data import PICTURE_MARK, Prompt
from grains_ref.datasets import prompts
from grains_ref.datasets.dataset import Dataset, Part
from grains_ref.datasets.few_shot import N_SHOTS, CountTokens, most_shots
from grains_ref.datasets.picture_cache import CACHE
from grains_ref.datasets.records import Generation, MultipleChoice, Record, Row
from grains_ref.datasets.schema import PICTURE, TEXT, Schema
from grains_ref.datasets.sources import Repository, Source, is_local, load_rows

REPOSITORY = Repository(
    "MMMU/MMMU",
    include=("*/dev-*", "*/validation-*"),  # ten times as many questions, without answers, are in the split test
)
SUBJECTS = (
    "Accounting", "Agriculture", "Architecture_and_Engineering", "Art", "Art_Theory", "Basic_Medical_Science",
    "Biology", "Chemistry", "Clinical_Medicine", "Computer_Science", "Design", "Diagnostics_and_Laboratory_Medicine",
    "Economics", "Electronics", "Energy_and_Power", "Finance", "Geography", "History", "Literature", "Manage",
    "Marketing", "Materials", "Math", "Mechanical_Engineering", "Music", "Pharmacy", "Physics", "Psychology",
    "Public_Health", "Sociology",
)  # fmt: skip
N_PICTURES = 7
LETTERS = "ABCDEFGHIJ"
SCHEMA = Schema(
    dict.fromkeys(("id", "question", "options", "answer", "question_type"), TEXT),
    {
        **{f"image_{i}": PICTURE for i in range(1, N_PICTURES + 1)},
        **dict.fromkeys(("explanation", "img_type", "topic_difficulty", "subfield"), TEXT),
    },
    id_column="id",
)
CHOOSE = "Answer with the option's letter from the given choices directly."
ANSWER_FREELY = "Answer the question using a single word or phrase."


def read(
    source: Source = "", *, split: str = "validation", subjects: Sequence[str] = SUBJECTS, pictures: Path = CACHE
) -> tuple[Row, ...]:
    """All rows of a split: `validation` to be asked (900), `dev` for examples (5 per subject).

    The answers of the split `test` are withheld.
    """
    rows: list[Row] = []
    for subject in subjects:
        for row in load_rows(source, REPOSITORY, config=subject, split=split, schema=SCHEMA, pictures=pictures):
            if row["question_type"] not in ("multiple-choice", "open"):
                row.fail("question_type", f"unknown label {row['question_type']!r}; expected multiple-choice or open.")
            rows.append(Row(row.id, row.where, {**row.fields, "subject": subject}))
    return tuple(rows)


def subjects_in(source: Source) -> tuple[str, ...]:
    """The subjects of which a folder has questions; of any other source all subjects."""
    folder = Path(source)
    if not is_local(source) or folder.is_file():
        return SUBJECTS
    return tuple(subject for subject in SUBJECTS if (folder / subject).is_dir())


def is_open(row: Row) -> bool:
    """Whether the question is answered freely."""
    return bool(row["question_type"] == "open")


def pictures_of(row: Row) -> tuple[Path, ...]:
    """The pictures of a question, in the order in which its prompt names them."""
    _, images = _place([(_text(row), row)])
    return images


def multiple_choice(
    row: Row,
    *,
    dev: Sequence[Row] = (),
    wanted: int = N_SHOTS,
    count_tokens: CountTokens | None = None,
    context: int | None = None,
    max_pictures: int = 1,
    chat: bool = True,
) -> MultipleChoice:
    """A question with options; the choices are their letters.

    Args:
        row: a question with options.
        dev: rows of the dev split; those of the question's subject with options are the examples.
        wanted: how many examples.  The paper says 5.  A picture takes hundreds of tokens or thousands and every example
            has one, so with a model that takes one picture per prompt there are none.
        count_tokens, context, max_pictures: see `few_shot.most_shots`.
        chat: one message of the user, or plain text.

    Raises:
        RowError: the question is open, the options are no list, or the answer is none of their letters.
        DatasetError: the question alone does not fit, or has more pictures than the model takes.
    """
    options = _options(row)
    label = _label(row, options)
    of_subject = [other for other in dev if other["subject"] == row["subject"] and not is_open(other)]
    shots = []
    for shot in of_subject[:wanted]:
        answer = LETTERS[_label(shot, _options(shot))]
        shots.append((f"{_text(shot)} {answer}\n\n", shot))

    def build(n: int) -> tuple[Prompt, tuple[Path, ...]]:
        return _prompt([*shots[:n], (_text(row), row)], chat=chat)

    n = most_shots(
        build,
        wanted=len(shots),
        count_tokens=count_tokens,
        context=context,
        max_pictures=max_pictures,
    )
    prompt, images = build(n)
    return MultipleChoice(
        id=row.id,
        prompt=prompt,
        choices=tuple(LETTERS[: len(options)]),
        labels=tuple(i == label for i in range(len(options))),
        where=row.where,
        images=images,
        group=row["subject"],
        options=tuple(options),
        n_shots=n,
    )


def generation(row: Row, *, chat: bool = True) -> Generation:
    """A question to be answered freely, or with a letter; the references are the accepted answers.

    Raises:
        RowError: as for `multiple_choice`.
    """
    if not is_open(row):
        references: tuple[str, ...] = (LETTERS[_label(row, _options(row))],)
    elif row["answer"].strip().startswith("["):
        references = tuple(str(answer) for answer in _list(row, "answer"))
    else:
        references = (row["answer"],)
    prompt, images = _prompt([(_text(row), row)], chat=chat)
    return Generation(row.id, row["question"], prompt, references, (), row.where, images, row["subject"])


def _text(row: Row) -> str:
    """Question, options and closing sentence, the pictures still by name."""
    if is_open(row):
        return f"{row['question']}\n\n{ANSWER_FREELY}"
    options = "\n".join(f"({letter}) {text}" for letter, text in zip(LETTERS, _options(row), strict=False))
    return f"{row['question']}\n\n{options}\n\n{CHOOSE}"


def _prompt(parts: Sequence[tuple[str, Row]], *, chat: bool) -> tuple[Prompt, tuple[Path, ...]]:
    """Examples and question as one prompt, and its pictures."""
    text, images = _place(parts)
    if chat and len(images) == 1:  # the chat template puts it in front, so the text keeps the picture's name
        text = "".join(part for part, _ in parts)
    return prompts.as_prompt(text, chat=chat), images


def _place(parts: Sequence[tuple[str, Row]]) -> tuple[str, tuple[Path, ...]]:
    """The parts in one text, a mark at every picture's place, and the pictures in the order of their marks."""
    texts: list[str] = []
    images: list[Path] = []
    for text, row in parts:
        columns = [f"image_{i}" for i in range(1, N_PICTURES + 1)]
        present = [column for column in columns if row.fields.get(column) is not None]
        named = []
        for number in dict.fromkeys(re.findall(r"<image (\d+)>", text)):
            column = f"image_{number}"
            if column not in present:
                row.fail(column, f"is null, but the text names <image {number}>.")
            text = text.replace(f"<image {number}>", PICTURE_MARK, 1)
            named.append(column)
        unnamed = [column for column in present if column not in named]
        in_front = f"{PICTURE_MARK}\n" * len(unnamed)
        texts.append(in_front + text)
        images += [row[column] for column in (*unnamed, *named)]
    return "".join(texts), tuple(images)


def _options(row: Row) -> list[str]:
    if is_open(row):
        row.fail("question_type", "is open; the question has no options (use generation).")
    options = [str(option) for option in _list(row, "options")]
    if not 2 <= len(options) <= len(LETTERS):
        row.fail("options", f"{len(options)} options; expected 2 to {len(LETTERS)}.")
    return options


def _label(row: Row, options: Sequence[str]) -> int:
    answer = row["answer"].strip()
    if len(answer) != 1 or answer not in LETTERS[: len(options)]:
        problem = f"unknown label {answer!r}; expected one of {', '.join(LETTERS[: len(options)])}."
        if answer == "?":
            problem += " The answers of the split test are withheld; use validation."
        row.fail("answer", problem)
    return LETTERS.index(answer)


def _list(row: Row, column: str) -> list[object]:
    try:
        value = ast.literal_eval(row[column].strip())
    except (ValueError, SyntaxError):
        row.fail(column, f"{row[column]!r} is not the text of a list, such as \"['a', 'b']\".")
    if not isinstance(value, list):
        row.fail(column, f"{row[column]!r} is not the text of a list, such as \"['a', 'b']\".")
    return value


def capability(source: Source, *, n: int, count_tokens: CountTokens, context: int | None) -> list[MultipleChoice]:
    """n questions with options and one picture, drawn with a fixed seed from the subjects that are there."""
    rows = [row for row in read(source, subjects=subjects_in(source)) if not is_open(row)]
    with_one_picture = [row for row in rows if len(pictures_of(row)) == 1]
    random.Random(0).shuffle(with_one_picture)
    return [multiple_choice(row, count_tokens=count_tokens, context=context) for row in with_one_picture[:n]]


def records(source: Source, pictures: Path) -> dict[str, Sequence[Record]]:
    """Every record of the subjects that are there."""
    rows = read(source, subjects=subjects_in(source), pictures=pictures)
    closed = [row for row in rows if not is_open(row)]
    return {
        "multiple_choice": [multiple_choice(row, max_pictures=N_PICTURES) for row in closed],
        "generation": [generation(row) for row in rows],
    }


DATASET = Dataset(
    name="mmmu",
    title="MMMU",
    used_for=("table 5",),
    parts=(Part(REPOSITORY, "validation", 900, configs=SUBJECTS), Part(REPOSITORY, "dev", 150, configs=SUBJECTS)),
    licence="Apache-2.0",
    pictures=True,
    records=records,
    capability=capability,
)
