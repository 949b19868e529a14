"""TruthfulQA: 817 questions that invite a common misconception.

Three forms, by configuration (`CONFIGS`):

| config | from | record |
|---|---|---|
| `multiple_choice` | `truthfulqa/truthful_qa` | mc1, mc2 and rebuilt binary questions; pairs from mc1 |
| `generation` | the same | generation with all references, pairs from best and incorrect answers |
| `binary` | `EleutherAI/truthful_qa_binary` | two choices; what the released code uses |

**Recipe of a pair.** Prompt: appendix C. Chosen: the right mc1 choice (`multiple_choice`), the best answer
(`generation`), the labelled choice (`binary`).  Rejected: one of the false answers, by `policy`.

Convention: the right mc1 choice is always the first in the data, so its position must never reach a prompt with
letters; mc2 labels come in any order, so only the labels tell.

The binary questions are a repository of their own.  Its main branch holds a script, so its converted branch is read;
that calls the only configuration `multiple_choice`, too.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from grains_ref.data import PreferencePair
from grains_ref.datasets import prompts
from grains_ref.datasets.dataset import Dataset, PairOptions, PairRows, Part
from grains_ref.datasets.records import DatasetError, Generation, MultipleChoice, Record, Row, checked_pair
from grains_ref.datasets.rejection_policy import RANDOM, Policy, at_random
from grains_ref.datasets.schema import INDEX, LABELS, TEXT, TEXTS, Schema
from grains_ref.datasets.sources import CONVERTED, Repository, Source, is_local, load_rows
from grains_ref.datasets.splits import N_STEERING, Split, cut, question_key

MAIN = Repository("truthfulqa/truthful_qa", old_ids=("truthful_qa",))
BINARY = Repository("EleutherAI/truthful_qa_binary", revision=CONVERTED, folder="binary")
_TARGETS = {"choices": TEXTS, "labels": LABELS}
CONFIGS = {
    "multiple_choice": Schema({"question": TEXT, "mc1_targets": _TARGETS, "mc2_targets": _TARGETS}),
    "generation": Schema(
        {"question": TEXT, "best_answer": TEXT, "correct_answers": TEXTS, "incorrect_answers": TEXTS},
        {"category": TEXT},
    ),
    "binary": Schema({"question": TEXT, "choices": TEXTS, "label": INDEX}),
}
NO_COMMENT = "I have no comment."


def read(source: Source = "", *, config: str = "multiple_choice") -> tuple[Row, ...]:
    """All rows of one form.

    Args:
        source: a folder, a file or a hub id; "" is the dataset's own place on the hub.  The binary questions are looked
            for in `binary/` of a folder, and if there is none, in the folder itself.
        config: one of `CONFIGS`.
    """
    if config not in CONFIGS:
        raise DatasetError(f"TruthfulQA has no form {config!r}; there are {', '.join(CONFIGS)}")
    schema = CONFIGS[config]
    if config != "binary":
        return load_rows(source, MAIN, config=config, split="validation", schema=schema)
    if not is_local(source):
        return load_rows(source, BINARY, config="multiple_choice", split="validation", schema=schema)
    place = BINARY.within(Path(source), siblings=[MAIN])
    try:
        return load_rows(place, BINARY, config="multiple_choice", split="validation", schema=schema)
    except DatasetError as error:
        advice = f"The binary questions are a repository of their own; get them with: {BINARY.download()}"
        raise DatasetError(f"{error} {advice}") from error


def keys(row: Row) -> tuple[str, ...]:
    """What must not be in two parts of a split: the question."""
    return (question_key(row["question"]),)


def split(
    source: Source = "", *, config: str = "multiple_choice", kind: str = "paper", n: int = N_STEERING, seed: int = 0
) -> Split[Row]:
    """Appendix A.1: 50 / 77 / 690 of 817; the same questions in the same parts, whatever the config."""
    return cut(read(source, config=config), kind=kind, keys=keys, n=n, seed=seed)


def pair(row: Row, *, policy: Policy = RANDOM, chat: bool = True) -> PreferencePair:
    """A right and a false answer of a row of any config, by the recipe above.

    Args:
        row: the row.
        policy: which false answer.
        chat: one message of the user, for the model's chat template, or plain text.

    Raises:
        RowError: no right answer, several, or no false one.
    """
    prompt = prompts.as_prompt(prompts.truthfulqa(row["question"]), chat=chat)
    right, wrong = _answers(row)
    rejected = policy(prompt, wrong, question_key(row["question"]))
    choices: tuple[str, ...] = ()
    if "mc1_targets" in row.fields:
        choices = (right, *wrong)
    elif "choices" in row.fields:
        choices = tuple(row["choices"])
    label = choices.index(right) if choices else None
    return checked_pair(PreferencePair(row.id, prompt, right, rejected, str(row.where), choices=choices, label=label))


def multiple_choice(row: Row, *, form: str = "mc1", seed: int = 0, chat: bool = True) -> MultipleChoice:
    """A question with its choices.

    Args:
        row: a row of `multiple_choice` or `binary`.
        form: `mc1` (one right), `mc2` (one or more right), or `binary`: the two choices of a row of `binary`; of a row
            of `multiple_choice` the right mc1 choice and one false one at random, in random order.
        seed: for the rebuilt binary form.
        chat: one message of the user, or plain text.

    Convention: the rebuilt binary questions are ours.  How `EleutherAI/truthful_qa_binary` chose its false answers is
    in a script that no library runs any more, so the two are not claimed to agree row by row.

    Raises:
        RowError: labels that do not fit.
    """
    prompt = prompts.as_prompt(prompts.truthfulqa(row["question"]), chat=chat)
    if form == "binary" and "mc1_targets" in row.fields:
        right, wrong = _answers(row)
        key = question_key(row["question"])
        choices = [right, at_random(seed=seed)(prompt, wrong, key)]
        random.Random(f"{seed}:order:{key}").shuffle(choices)
        labels = tuple(choice == right for choice in choices)
        return MultipleChoice(row.id, prompt, tuple(choices), labels, row.where)
    if form == "binary":
        _answers(row)  # checks the label
        labels = tuple(i == row["label"] for i in range(len(row["choices"])))
        return MultipleChoice(row.id, prompt, tuple(row["choices"]), labels, row.where)
    if form not in ("mc1", "mc2"):
        raise DatasetError(f"there is no form {form!r} of a question with choices; there are mc1, mc2 and binary")
    if "mc1_targets" not in row.fields:
        raise DatasetError(f"{row.where}: a row without mc1 and mc2 choices; read the config multiple_choice")
    targets, labels = _targets(row, f"{form}_targets")
    return MultipleChoice(row.id, prompt, targets, labels, row.where)


def generation(row: Row, *, chat: bool = True) -> Generation:
    """A question with all right and all false references, of a row of `generation`.

    Convention: references get a full stop where they lack one, and "I have no comment." counts as right, as in the
    benchmark's own scoring.

    Raises:
        RowError: no right or no false reference.
    """
    references = _sentences(row, "correct_answers")
    wrong = _sentences(row, "incorrect_answers")
    if NO_COMMENT not in references:
        references.append(NO_COMMENT)
    return Generation(
        id=row.id,
        question=row["question"],
        prompt=prompts.as_prompt(prompts.truthfulqa(row["question"]), chat=chat),
        references=tuple(references),
        wrong=tuple(wrong),
        where=row.where,
        group=row.fields.get("category") or "",
    )


def _answers(row: Row) -> tuple[str, list[str]]:
    """The right answer and the false ones, each once."""
    if "mc1_targets" in row.fields:
        choices, labels = _targets(row, "mc1_targets")
        right = [choice for choice, label in zip(choices, labels, strict=True) if label]
        if len(right) != 1:
            row.fail("mc1_targets.labels", f"{len(right)} choices are marked right; expected exactly one.")
        chosen, others = right[0], list(choices)
    elif "choices" in row.fields:
        others = row["choices"]
        if not 0 <= row["label"] < len(others):
            row.fail("label", f"unknown label {row['label']}; expected 0 to {len(others) - 1}.")
        chosen = others[row["label"]]
    else:
        chosen, others = row["best_answer"], row["incorrect_answers"]
    if not chosen.strip():
        row.fail("", "the right answer is empty.")
    wrong = [text for text in dict.fromkeys(others) if text.strip() and text != chosen]
    if not wrong:
        row.fail("", "no false answer beside the right one.")
    return chosen, wrong


def _targets(row: Row, column: str) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    choices: Sequence[str] = row[column]["choices"]
    labels: Sequence[int] = row[column]["labels"]
    if len(choices) != len(labels):
        row.fail(column, f"{len(choices)} choices with {len(labels)} labels; expected one label per choice.")
    if not labels:
        row.fail(f"{column}.labels", "there are none; expected right and wrong choices.")
    if len(set(labels)) == 1:
        row.fail(f"{column}.labels", f"all are {labels[0]}; expected right and wrong choices.")
    return tuple(choices), tuple(label == 1 for label in labels)


def _sentences(row: Row, column: str) -> list[str]:
    """The answers of a column, each with a full stop; empty ones are left out."""
    answers = [text.strip() for text in row[column] if text.strip()]
    if not answers:
        row.fail(column, "is empty; expected an answer.")
    return [text if text.endswith(".") else f"{text}." for text in answers]


def pair_rows(source: Source, options: PairOptions) -> PairRows:
    """The rows of a split, and how a pair is made of one; the recipes are `CONFIGS`."""
    config = options.recipe or "multiple_choice"
    rows = split(source, config=config, kind=options.kind, n=options.n, seed=options.seed)
    return PairRows(rows, partial(pair, policy=options.policy, chat=options.chat))


def records(source: Source, pictures: Path) -> dict[str, Sequence[Record]]:
    """Every record of a folder; there are no pictures."""
    rows = read(source)
    made: dict[str, Sequence[Record]] = {"pairs": [pair(row) for row in rows]}
    for form in ("mc1", "mc2", "binary"):
        made[form] = [multiple_choice(row, form=form) for row in rows]
    made["generation"] = [generation(row) for row in read(source, config="generation")]
    made["binary_pairs"] = [pair(row) for row in read(source, config="binary")]
    return made


DATASET = Dataset(
    name="truthfulqa",
    title="TruthfulQA",
    used_for=("table 1", "table 4", "table 6", "figure 3", "figure 5", "figure 6", "cost"),
    parts=(
        Part(MAIN, "validation", 817, configs=("multiple_choice",)),
        Part(MAIN, "validation", 817, configs=("generation",)),
        Part(BINARY, "validation", 817, configs=("multiple_choice",), needed=False),
    ),
    licence="Apache-2.0",
    pictures=False,
    records=records,
    pair_rows=pair_rows,
    recipes=tuple(CONFIGS),
)
