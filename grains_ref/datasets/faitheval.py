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
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from grains_ref.data import PreferencePair
from grains_ref.datasets import prompts
from grains_ref.datasets.dataset import Dataset, PairOptions, PairRows, Part
from grains_ref.datasets.records import DatasetError, Generation, MultipleChoice, Record, Row, checked_pair
from grains_ref.datasets.rejection_policy import RANDOM, Policy
from grains_ref.datasets.schema import TEXT, TEXTS, WHOLE, Schema
from grains_ref.datasets.sources import Repository, Source, is_local, load_rows
from grains_ref.datasets.splits import N_STEERING, Split, cut, question_key

REPOSITORIES = {
    "counterfactual": Repository("Salesforce/FaithEval-counterfactual-v1.0", folder="counterfactual"),
    "unanswerable": Repository("Salesforce/FaithEval-unanswerable-v1.0", folder="unanswerable"),
    "inconsistent": Repository("Salesforce/FaithEval-inconsistent-v1.0", folder="inconsistent"),
}
# The counterfactual questions are those of ARC-Challenge, under the same ids.
ARC = Repository("allenai/ai2_arc", old_ids=("ai2_arc",), include=("ARC-Challenge/*",), folder="arc")
RECIPES = ("counterfactual", "true_answer", "unanswerable", "inconsistent")
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
# The benchmark calls an answer right if, normalised, it contains one of these.
ACCEPTED = {
    "unanswerable": ("unknown", "no answer", "no information", "not", "unclear"),
    "inconsistent": (
        "conflict", "multiple answers", "disagreement", "inconsistent", "contradictory", "contradiction",
        "inconsistency", "two answers", "2 answers", "conflicting",
    ),
}  # fmt: skip


def read(source: Source = "", *, task: str = "counterfactual") -> tuple[Row, ...]:
    """All rows of one task, from a folder, a file or a hub id ("" is the task's own place on the hub)."""
    if task not in REPOSITORIES:
        raise DatasetError(f"FaithEval has no task {task!r}; there are {', '.join(REPOSITORIES)}")
    repository = REPOSITORIES[task]
    if is_local(source):
        source = repository.within(Path(source), siblings=[*REPOSITORIES.values(), ARC])
    rows = load_rows(source, repository, config="", split="test", schema=SCHEMAS[task])
    return tuple(Row(row.id, row.where, {**row.fields, "task": task}) for row in rows)


def keys(row: Row) -> tuple[str, ...]:
    """What must not be in two parts of a split: the question."""
    return (question_key(row["question"]),)


def split(
    source: Source = "", *, task: str = "counterfactual", kind: str = "paper", n: int = N_STEERING, seed: int = 0
) -> Split[Row]:
    """Appendix A.1: 50 / 95 / 855 of the 1,000 counterfactual questions."""
    return cut(read(source, task=task), kind=kind, keys=keys, n=n, seed=seed)


def true_answers(source: Source = "") -> Mapping[str, str]:
    """The true answers of ARC-Challenge by id, for the rejected side of counterfactual pairs.

    Args:
        source: a folder, with `arc/` for ARC's repository or that repository itself, or a hub id.
    """
    if is_local(source):
        source = ARC.within(Path(source), siblings=REPOSITORIES.values())
    answers = {}
    for name in ("train", "validation", "test"):
        for row in load_rows(source, ARC, config="ARC-Challenge", split=name, schema=_ARC):
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
    if row["task"] != "counterfactual":
        rejected = policy(prompt, _answers_to_reject(row), question_key(row["question"]))
        return checked_pair(PreferencePair(row.id, prompt, ACCEPTED[row["task"]][0], rejected, str(row.where)))
    options, label = _options(row)
    chosen = options[label]
    others = [text for text in dict.fromkeys(options) if text.strip() and text != chosen]
    if truth is not None:
        if row["id"] not in truth:
            problem = f"{row['id']!r} has no true answer in ARC-Challenge; give all of its splits, or leave truth out."
            row.fail("id", problem)
        true_answer = truth[row["id"]]
        others = [true_answer] if true_answer != chosen else []
    if not others:
        row.fail("choices", "no other option to reject.")
    is_distinct = len(set(options)) == len(options)  # the pair file takes no choice twice
    pair = PreferencePair(
        id=row.id,
        prompt=prompt,
        chosen=chosen,
        rejected=policy(prompt, others, question_key(row["question"])),
        where=str(row.where),
        choices=options if is_distinct else (),
        label=label if is_distinct else None,
    )
    return checked_pair(pair)


def multiple_choice(row: Row, *, chat: bool = True) -> MultipleChoice:
    """A counterfactual question with the texts of its options; right is what the context supports."""
    options, label = _options(row)
    labels = tuple(i == label for i in range(len(options)))
    return MultipleChoice(row.id, prompts.as_prompt(_prompt(row), chat=chat), options, labels, row.where)


def generation(row: Row, *, chat: bool = True) -> Generation:
    """A question to be answered freely.

    References: the supported option's text, or the phrases of which an answer must contain one (`ACCEPTED`).
    """
    if row["task"] == "counterfactual":
        options, label = _options(row)
        references: tuple[str, ...] = (options[label],)
        wrong = tuple(text for text in options if text != options[label])
    else:
        references = ACCEPTED[row["task"]]
        wrong = tuple(_wrong_answers(row))
    prompt = prompts.as_prompt(_prompt(row), chat=chat)
    return Generation(row.id, row["question"], prompt, references, wrong, row.where, group=row["task"])


def _prompt(row: Row) -> str:
    return prompts.faitheval(row["context"], row["question"], task=TASK_SENTENCES[row["task"]])


def _answers_to_reject(row: Row) -> list[str]:
    """The candidates of the two tasks whose right answer is a set phrase."""
    candidates = _wrong_answers(row)
    if row["task"] == "inconsistent":
        candidates = candidates[:1]
    elif not candidates:
        candidates = [text for text in _names_and_numbers(row["context"]) if text not in row["question"]]
    if not candidates:
        row.fail("answers", "no answer to reject.")
    return candidates


def _wrong_answers(row: Row) -> list[str]:
    """The row's answers that do not say what is right."""
    return [text for text in row["answers"] if text.strip() and not _is_accepted(text, row["task"])]


def _options(row: Row) -> tuple[tuple[str, ...], int]:
    """The texts of the options and the index of the one that the context supports."""
    index = _key_index(row)
    options = tuple(row["choices"]["text"])
    count = row.fields.get("num of options")
    if count is not None and count != len(options):
        row.fail("num of options", f"is {count}, but there are {len(options)} options.")
    answer = _folded(row.fields.get("answer") or "")
    if _folded(options[index]) != answer:
        for i, option in enumerate(options):
            if _folded(option) == answer:
                row.fail("answerKey", f"points at {options[index]!r}, but 'answer' is option {i + 1}, {option!r}.")
    return options, index


def _key_index(row: Row) -> int:
    """The index of the option that `answerKey` names, by its label or else by its position."""
    labels = [str(label) for label in row["choices"]["label"]]
    n_texts = len(row["choices"]["text"])
    if len(labels) != n_texts or n_texts < 2:
        row.fail("choices", f"{len(labels)} labels with {n_texts} texts; expected two options or more.")
    key = str(row["answerKey"]).strip()
    if key in labels:
        return labels.index(key)
    positions = {letter: i for i, letter in enumerate("ABCDEFGHIJ")}
    positions |= {str(i + 1): i for i in range(10)}
    index = positions.get(key, -1)
    if not 0 <= index < len(labels):
        row.fail("answerKey", f"unknown label {key!r}; expected one of {', '.join(labels)}.")
    return index


def _is_accepted(text: str, task: str) -> bool:
    return any(re.search(rf"\b{phrase}\b", _folded(text)) for phrase in ACCEPTED[task])


def _folded(text: str) -> str:
    return " ".join(re.sub(r"[\W_]", " ", text.casefold()).split())


def _names_and_numbers(context: str) -> list[str]:
    """Runs of capitalised words that do not begin a sentence, and numbers: what a guess would name."""
    not_at_a_start = r"(?<![.!?]\s)(?<!^)\b"
    name = r"[A-Z][\w'-]+(?: [A-Z][\w'-]+)*"
    number = r"\d[\d.,]*\d|\d"
    return list(dict.fromkeys(re.findall(f"{not_at_a_start}(?:{name}|{number})", context)))


def pair_rows(source: Source, options: PairOptions) -> PairRows:
    """The rows of a split, and how a pair is made of one; `true_answer` are counterfactual pairs that reject it."""
    task = options.recipe or "counterfactual"
    truth = None
    if task == "true_answer":
        task = "counterfactual"
        is_folder = is_local(source) and Path(source).is_dir()
        truth = true_answers(source if is_folder else "")
    rows = split(source, task=task, kind=options.kind, n=options.n, seed=options.seed)
    return PairRows(rows, partial(pair, truth=truth, policy=options.policy, chat=options.chat))


def records(source: Source, pictures: Path) -> dict[str, Sequence[Record]]:
    """Every record of a folder with all three tasks and ARC; there are no pictures."""
    made: dict[str, Sequence[Record]] = {}
    for task in REPOSITORIES:
        rows = read(source, task=task)
        made[f"{task}_pairs"] = [pair(row) for row in rows]
        made[f"{task}_generation"] = [generation(row) for row in rows]
    truth = true_answers(source)
    made["true_answer_pairs"] = [pair(row, truth=truth) for row in read(source)]
    return made


DATASET = Dataset(
    name="faitheval",
    title="FaithEval",
    used_for=("table 1", "table 6"),
    parts=(
        Part(REPOSITORIES["counterfactual"], "test", 1000),
        Part(REPOSITORIES["unanswerable"], "test", 2492, needed=False),
        Part(REPOSITORIES["inconsistent"], "test", 1500, needed=False),
        Part(ARC, "train", 1119, configs=("ARC-Challenge",), needed=False),
        Part(ARC, "validation", 299, configs=("ARC-Challenge",), needed=False),
        Part(ARC, "test", 1172, configs=("ARC-Challenge",), needed=False),
    ),
    licence="none given on the hub; repository Apache-2.0 with a note 'for research purposes only'; ARC CC-BY-SA-4.0",
    pictures=False,
    records=records,
    pair_rows=pair_rows,
    recipes=RECIPES,
)
