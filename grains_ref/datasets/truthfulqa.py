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
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from grains_ref.data import PreferencePair
from grains_ref.datasets import prompts
from grains_ref.datasets.policies import RANDOM, Policy, at_random
from grains_ref.datasets.records import DatasetError, Generation, MultipleChoice, Row
from grains_ref.datasets.schema import LABELS, TEXT, TEXTS, WHOLE, Schema
from grains_ref.datasets.source import Source, load_rows
from grains_ref.datasets.splits import N_STEERING, Split, cut, question_key

HUB_ID = "truthfulqa/truthful_qa"
BINARY_HUB_ID = "EleutherAI/truthful_qa_binary"
_TARGETS = {"choices": TEXTS, "labels": LABELS}
CONFIGS = {
    "multiple_choice": Schema({"question": TEXT, "mc1_targets": _TARGETS, "mc2_targets": _TARGETS}),
    "generation": Schema(
        {"question": TEXT, "best_answer": TEXT, "correct_answers": TEXTS, "incorrect_answers": TEXTS},
        {"category": TEXT},
    ),
    "binary": Schema({"question": TEXT, "choices": TEXTS, "label": WHOLE}),
}
NO_COMMENT = "I have no comment."


def read(source: Source = "", *, config: str = "multiple_choice") -> tuple[Row, ...]:
    """All rows of one form.

    Args:
        source: a folder, a file or a hub id; "" is the dataset's own place on the hub.
        config: one of `CONFIGS`.
    """
    if config not in CONFIGS:
        raise DatasetError(f"TruthfulQA has no form {config!r}; there are {', '.join(CONFIGS)}")
    hub_id = BINARY_HUB_ID if config == "binary" else HUB_ID
    # the binary repository calls its only configuration multiple_choice, too; a local folder tells them apart
    is_local = Path(source).exists() if source else False
    name = "multiple_choice" if config == "binary" and not is_local else config
    return load_rows(source or hub_id, config=name, split="validation", schema=CONFIGS[config])


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
    return PreferencePair(row.id, prompt, right, rejected, row.where, choices=choices, label=label)


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
        two = [right, at_random(seed=seed)(prompt, wrong, key)]
        random.Random(f"{seed}:order:{key}").shuffle(two)
        return MultipleChoice(row.id, prompt, tuple(two), tuple(choice == right for choice in two), row.where)
    if form == "binary":
        _answers(row)  # checks the label
        labels = tuple(i == row["label"] for i in range(len(row["choices"])))
        return MultipleChoice(row.id, prompt, tuple(row["choices"]), labels, row.where)
    if form not in ("mc1", "mc2"):
        raise DatasetError(f"there is no form {form!r} of a question with choices; there are mc1, mc2 and binary")
    if "mc1_targets" not in row.fields:
        raise DatasetError(f"{row.where}: a row without mc1 and mc2 choices; read the config multiple_choice")
    choices, labels = _targets(row, f"{form}_targets")
    return MultipleChoice(row.id, prompt, choices, labels, row.where)


def generation(row: Row, *, chat: bool = True) -> Generation:
    """A question with all right and all false references, of a row of `generation`.

    Convention: references get a full stop where they lack one, and "I have no comment." counts as right, as in the
    benchmark's own scoring.

    Raises:
        RowError: no right or no false reference.
    """
    references = [_sentence(text) for text in row["correct_answers"] if text.strip()]
    wrong = [_sentence(text) for text in row["incorrect_answers"] if text.strip()]
    if not references or not wrong:
        row.fail("correct_answers" if not references else "incorrect_answers", "is empty; expected an answer.")
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
    wrong = [text for text in dict.fromkeys(others) if text.strip() and text != chosen]
    if not wrong or not chosen.strip():
        row.fail("", "no false answer beside the right one." if chosen.strip() else "the right answer is empty.")
    return chosen, wrong


def _targets(row: Row, column: str) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    choices: Sequence[str] = row[column]["choices"]
    labels: Sequence[int] = row[column]["labels"]
    if len(choices) != len(labels):
        row.fail(column, f"{len(choices)} choices with {len(labels)} labels; expected one label per choice.")
    if not any(labels) or all(labels):
        row.fail(f"{column}.labels", f"all are {labels[0] if labels else 'missing'}; expected right and wrong choices.")
    return tuple(choices), tuple(label == 1 for label in labels)


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith(".") else f"{text}."
