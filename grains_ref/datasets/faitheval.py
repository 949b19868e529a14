"""FaithEval: whether an answer follows the given context; three sets with one test split each.

| task | the context | chosen | rejected |
|---|---|---|---|
| `counterfactual` | says something untrue | the option that it supports | the true answer, or another option |
| `unanswerable` | does not hold the answer | "unknown" | a name or number of the context |
| `inconsistent` | holds two answers | "conflict" | the first of the two |

The paper and its code use `counterfactual`.  Prompt: appendix C; the other two tasks need one more sentence, the
benchmark's own (`TASK_SENTENCES`).

Convention: `answerKey` names the option that the context supports, not the true one.  Some rows label their options
1 to 4 and still give a letter as the key; then the key counts by position.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grains_ref.data import PreferencePair
from grains_ref.datasets import prompts
from grains_ref.datasets.policies import RANDOM, Policy
from grains_ref.datasets.records import DatasetError, Generation, MultipleChoice, Row
from grains_ref.datasets.replies import INCONSISTENT, UNANSWERABLE
from grains_ref.datasets.schema import TEXT, TEXTS, WHOLE, Schema
from grains_ref.datasets.source import Source, load_rows
from grains_ref.datasets.splits import N_STEERING, Split, cut, question_key

HUB_IDS = {
    "counterfactual": "Salesforce/FaithEval-counterfactual-v1.0",
    "unanswerable": "Salesforce/FaithEval-unanswerable-v1.0",
    "inconsistent": "Salesforce/FaithEval-inconsistent-v1.0",
}
ARC_HUB_ID = "allenai/ai2_arc"  # the counterfactual questions are those of ARC-Challenge, under the same ids
_OPTIONS = {"label": TEXTS, "text": TEXTS}
_FREE = Schema({"qid": TEXT, "question": TEXT, "context": TEXT, "answers": TEXTS}, id_column="qid")
SCHEMAS = {
    "counterfactual": Schema(
        {"id": TEXT, "question": TEXT, "answerKey": TEXT, "choices": _OPTIONS, "context": TEXT},
        {"answer": TEXT, "num of options": WHOLE},
        id_column="id",
    ),
    "unanswerable": _FREE,
    "inconsistent": _FREE,
}
_ARC = Schema({"id": TEXT, "question": TEXT, "choices": _OPTIONS, "answerKey": TEXT}, id_column="id")
TASK_SENTENCES = {
    "counterfactual": "",
    "unanswerable": "If there is no information available from the context, the answer should be 'unknown'.",
    "inconsistent": (
        "If there is conflict information or multiple answers from the context, the answer should be 'conflict'."
    ),
}
# An answer is right if, normalised, it contains one of these; the strict rule knows the first only.
ACCEPTED = {"unanswerable": UNANSWERABLE, "inconsistent": INCONSISTENT}


def read(source: Source = "", *, task: str = "counterfactual") -> tuple[Row, ...]:
    """All rows of one task, from a folder, a file or a hub id ("" is the task's own place on the hub)."""
    if task not in HUB_IDS:
        raise DatasetError(f"FaithEval has no task {task!r}; there are {', '.join(HUB_IDS)}")
    place = folder_of(Path(source), task) if source and Path(source).is_dir() else source or HUB_IDS[task]
    rows = load_rows(place, config="", split="test", schema=SCHEMAS[task])
    return tuple(Row(row.id, row.where, {**row.fields, "task": task}) for row in rows)


def folder_of(folder: Path, task: str) -> Path:
    """Where a task lies in a folder: each is a repository of its own, so there is one folder per task, or one task."""
    return folder / task if any((folder / known).is_dir() for known in HUB_IDS) else folder


def keys(row: Row) -> tuple[str, ...]:
    """What must not be in two parts of a split: the question."""
    return (question_key(row["question"]),)


def split(
    source: Source = "", *, task: str = "counterfactual", kind: str = "paper", n: int = N_STEERING, seed: int = 0
) -> Split[Row]:
    """Appendix A.1: 50 / 95 / 855 of the 1,000 counterfactual questions."""
    return cut(read(source, task=task), kind=kind, keys=keys, n=n, seed=seed)


def true_answers(source: Source = ARC_HUB_ID) -> Mapping[str, str]:
    """The true answers of ARC-Challenge by id, for the rejected side of counterfactual pairs."""
    answers = {}
    for name in ("train", "validation", "test"):
        for row in load_rows(source, config="ARC-Challenge", split=name, schema=_ARC):
            answers[row.id] = row["choices"]["text"][_key_index(row)]
    return answers


def pair(
    row: Row, *, truth: Mapping[str, str] | None = None, policy: Policy = RANDOM, chat: bool = True
) -> PreferencePair:
    """A pair by the recipe of the row's task.

    Args:
        row: a row of any task.
        truth: of the counterfactual task, the true answers by id (`true_answers`); None rejects another option.
        policy: which of the rejected candidates, where there are several.
        chat: one message of the user, or plain text.

    Convention: for `unanswerable` the candidates are the row's answers that do not say "unknown", and where there is
    none, the names and numbers of the context that the question does not hold.

    Raises:
        RowError: an unknown label, no candidate, or an id without a true answer.
    """
    prompt = prompts.as_prompt(_prompt(row), chat=chat)
    key = question_key(row["question"])
    task = row["task"]
    if task != "counterfactual":
        chosen = ACCEPTED[task][0]
        candidates = [text for text in row["answers"] if text.strip() and not _accepted(text, task)]
        if task == "inconsistent":
            candidates = candidates[:1]
        elif not candidates:
            candidates = [text for text in _names_and_numbers(row["context"]) if text not in row["question"]]
        if not candidates:
            row.fail("answers", "no answer to reject.")
        return PreferencePair(row.id, prompt, chosen, policy(prompt, candidates, key), row.where)
    texts, label = _options(row)
    others = [text for text in dict.fromkeys(texts) if text.strip() and text != texts[label]]
    if truth is not None:
        if row["id"] not in truth:
            row.fail(
                "id", f"{row['id']!r} has no true answer in ARC-Challenge; give all of its splits, or leave truth out."
            )
        others = [truth[row["id"]]] if truth[row["id"]] != texts[label] else []
    if not others:
        row.fail("choices", "no other option to reject.")
    rejected = policy(prompt, others, key)
    is_distinct = len(set(texts)) == len(texts)
    return PreferencePair(
        id=row.id,
        prompt=prompt,
        chosen=texts[label],
        rejected=rejected,
        where=row.where,
        choices=texts if is_distinct else (),
        label=label if is_distinct else None,
    )


def multiple_choice(row: Row, *, chat: bool = True) -> MultipleChoice:
    """A counterfactual question with the texts of its options; right is what the context supports."""
    texts, label = _options(row)
    labels = tuple(i == label for i in range(len(texts)))
    return MultipleChoice(row.id, prompts.as_prompt(_prompt(row), chat=chat), texts, labels, row.where)


def generation(row: Row, *, chat: bool = True) -> Generation:
    """A question to be answered freely.

    References: the supported option's text, or the phrases of which an answer must contain one (`ACCEPTED`).
    """
    if row["task"] == "counterfactual":
        texts, label = _options(row)
        references: tuple[str, ...] = (texts[label],)
        wrong = tuple(text for text in texts if text != texts[label])
    else:
        references = ACCEPTED[row["task"]]
        wrong = tuple(text for text in row["answers"] if text.strip() and not _accepted(text, row["task"]))
    prompt = prompts.as_prompt(_prompt(row), chat=chat)
    return Generation(row.id, row["question"], prompt, references, wrong, row.where, group=row["task"])


def _prompt(row: Row) -> str:
    return prompts.faitheval(row["context"], row["question"], task=TASK_SENTENCES[row["task"]])


def _options(row: Row) -> tuple[tuple[str, ...], int]:
    """The texts of the options and the index of the one that the context supports."""
    index = _key_index(row)
    texts = tuple(row["choices"]["text"])
    count = row.fields.get("num of options")
    if count is not None and count != len(texts):
        row.fail("num of options", f"is {count}, but there are {len(texts)} options.")
    answer = _folded(row.fields.get("answer") or "")
    other = [i for i, text in enumerate(texts) if _folded(text) == answer and i != index]
    if other and _folded(texts[index]) != answer:
        row.fail(
            "answerKey", f"points at {texts[index]!r}, but 'answer' is option {other[0] + 1}, {texts[other[0]]!r}."
        )
    return texts, index


def _key_index(row: Row) -> int:
    labels: list[Any] = [str(label) for label in row["choices"]["label"]]
    key = str(row["answerKey"]).strip()
    if len(labels) != len(row["choices"]["text"]) or len(labels) < 2:
        row.fail(
            "choices", f"{len(labels)} labels with {len(row['choices']['text'])} texts; expected two options or more."
        )
    if key in labels:
        return labels.index(key)
    by_position = "ABCDEFGHIJ".find(key) if len(key) == 1 and key.isalpha() else int(key) - 1 if key.isdecimal() else -1
    if not 0 <= by_position < len(labels):
        row.fail("answerKey", f"unknown label {key!r}; expected one of {', '.join(labels)}.")
    return by_position


def _accepted(text: str, task: str) -> bool:
    return any(re.search(rf"\b{phrase}\b", _folded(text)) for phrase in ACCEPTED[task])


def _folded(text: str) -> str:
    return " ".join(re.sub(r"[\W_]", " ", text.casefold()).split())


def _names_and_numbers(context: str) -> list[str]:
    """Runs of capitalised words that do not begin a sentence, and numbers: what a guess would name."""
    found = re.findall(r"(?<![.!?]\s)(?<!^)\b(?:[A-Z][\w'-]+(?: [A-Z][\w'-]+)*|\d[\d.,]*\d|\d)", context)
    return list(dict.fromkeys(found))
