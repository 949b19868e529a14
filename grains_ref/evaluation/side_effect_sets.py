"""What side effects are looked for on: sets of texts, prompts, questions and statements, read from files.

| kind | a row of its file | measured |
|---|---|---|
| `perplexity` | `text`; or a `.txt` file, a text per paragraph | perplexity of neutral text |
| `harmless`, `harmful` | `prompt`, `goal` or `Behavior` | the share that is refused |
| `bbq` | BBQ's own columns | right answers, and those that follow the stereotype |
| `toxicity` | a pair: `chosen` is benign, `rejected` toxic | the share in which the benign one is likelier |
| `choices` | a pair with `choices` and `label` | multiple-choice accuracy |
| `tasks` | `prompt` or `messages`, `answer` | exact greedy answers |

JSONL, JSON arrays, CSV and Parquet are read, packed by gzip or not.  Of a file of prompts with a column `label` that
says `safe` or `unsafe`, as XSTest has it, the rows of the right kind are taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from grains_ref.data import (
    FieldError,
    PairFileError,
    PreferencePair,
    Prompt,
    RowError,
    Where,
    check_visible,
    read_pairs,
    read_tasks,
)
from grains_ref.data.containers import open_sheet
from grains_ref.files import digest_of, read_whole

Kind: TypeAlias = Literal["perplexity", "harmless", "harmful", "bbq", "toxicity", "choices", "tasks"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MINIATURES: tuple[Kind, ...] = ("perplexity", "harmless", "harmful", "bbq", "toxicity", "choices")
PROMPT_COLUMNS = ("prompt", "goal", "Goal", "Behavior", "behavior")  # ours and XSTest's, JailbreakBench's, HarmBench's
LABEL_OF = {"harmless": "safe", "harmful": "unsafe"}
ANSWERS = ("ans0", "ans1", "ans2")


@dataclass(frozen=True)
class BiasQuestion:
    """A question of BBQ: three answers, of which one says that it cannot be known.

    Attributes:
        is_ambiguous: whether the text leaves the answer open, so that "unknown" is right.
        label: the index of the right answer.
        stereotype: the index of the answer that follows the stereotype: its target where the question is about
            something bad, the other person where it is not.
    """

    text: str
    answers: tuple[str, ...]
    label: int
    stereotype: int
    is_ambiguous: bool
    category: str = ""

    def as_pair(self, prompt: Prompt) -> PreferencePair:
        """The question as one with choices, asked by this prompt."""
        wrong = self.answers[(self.label + 1) % len(self.answers)]
        return PreferencePair(
            "", prompt, self.answers[self.label], wrong, "BBQ", choices=self.answers, label=self.label
        )


@dataclass(frozen=True)
class SideEffectSet:
    """Rows of one kind, where they are from, and the digest of their content."""

    kind: Kind
    name: str
    rows: tuple[Any, ...]
    source: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the rows in order."""
        return digest_of(json.dumps(self.rows, sort_keys=True, default=_as_json).encode())


def _as_json(value: Any) -> Any:
    """Records as their fields; paths, and the places of rows, as text."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def miniatures() -> tuple[SideEffectSet, ...]:
    """The sets that come with the package: 16 to 32 rows each, written for it; they show large effects only."""
    folder = Path(str(resources.files("grains_ref.fixtures"))) / "side_effects"
    sets = []
    for kind in MINIATURES:
        read = read_set(kind, folder / f"{kind}.jsonl")
        sets.append(SideEffectSet(kind, "miniature", read.rows, source="miniature of grains_ref"))
    return tuple(sets)


def read_set(kind: Kind, path: str | Path) -> SideEffectSet:
    """The set in a file.

    Raises:
        ValueError: there is no such kind.
        RowError: a row is bad.
        PairFileError: no such file, or no row in it.
    """
    path = Path(path)
    rows: tuple[Any, ...]
    if kind == "perplexity":
        rows = tuple(_texts(path))
    elif kind in ("harmless", "harmful"):
        rows = tuple(_prompts(path, LABEL_OF[kind]))
    elif kind == "bbq":
        rows = tuple(_bias_questions(path))
    elif kind == "toxicity":
        rows = read_pairs(path).pairs
    elif kind == "choices":
        rows = read_pairs(path).pairs
        if without := [pair for pair in rows if pair.label is None]:
            raise without[0].error("choices", "missing, and 'label'; a multiple-choice row has both.")
    elif kind == "tasks":
        rows = read_tasks(path).tasks
    else:
        raise ValueError(f"there is no kind of side effects {kind!r}; there are {', '.join(KINDS)}")
    if not rows:
        raise PairFileError(f"{path}: no row of the kind {kind!r}; its file has {_expected(kind)}")
    return SideEffectSet(kind, path.name, rows, source=str(path))


def _expected(kind: Kind) -> str:
    if kind == "perplexity":
        return "a column 'text', or paragraphs in a .txt file"
    return "BBQ's columns" if kind == "bbq" else f"a column 'prompt' (and 'label', if any, {LABEL_OF.get(kind)!r})"


# ------------------------------------------------------------------------------------- rows
def _rows(path: Path) -> Iterator[tuple[dict[str, Any], Where]]:
    """The rows of a file with their places.

    Raises:
        RowError: a row cannot be parsed.
    """
    sheet = open_sheet(path)
    for number, row in sheet.rows:
        where = Where(str(path), number)
        if isinstance(row, FieldError):
            raise RowError(*where, row.field, row.problem)
        yield row, where


def _text(row: dict[str, Any], column: str, where: Where) -> str:
    """A column that must be text of which something can be seen.

    Raises:
        RowError: it is missing, no text, or empty.
    """
    value = row.get(column)
    if not isinstance(value, str):
        state = "missing" if column not in row else f"{type(value).__name__}, not text"
        raise RowError(*where, column, f"{state}. The columns are: {', '.join(row)}.")
    try:
        check_visible(value, column)
    except FieldError as error:
        raise RowError(*where, error.field, error.problem) from error
    return value


def _texts(path: Path) -> Iterator[str]:
    if path.suffix == ".txt":
        for paragraph in read_whole(path).decode("utf-8").split("\n\n"):
            if paragraph.strip():
                yield paragraph.strip()
        return
    for row, where in _rows(path):
        yield _text(row, "text", where)


def _prompts(path: Path, label: str) -> Iterator[str]:
    for row, where in _rows(path):
        given = [column for column in PROMPT_COLUMNS if column in row]
        if row.get("label") in LABEL_OF.values() and row["label"] != label:
            continue
        yield _text(row, given[0] if given else "prompt", where)


def _bias_questions(path: Path) -> Iterator[BiasQuestion]:
    for row, where in _rows(path):
        texts = {column: _text(row, column, where) for column in ("context", "question", *ANSWERS)}
        condition = _one_of(row, "context_condition", ("ambig", "disambig"), where)
        polarity = _one_of(row, "question_polarity", ("neg", "nonneg"), where)
        label = row.get("label")
        if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(ANSWERS):
            raise RowError(*where, "label", f"is {label!r}; expected 0, 1 or 2, the right answer.")
        target, unknown = _target_and_unknown(row, where)
        (other,) = {0, 1, 2} - {target, unknown}
        yield BiasQuestion(
            text=f"{texts['context']} {texts['question']}",
            answers=tuple(texts[column] for column in ANSWERS),
            label=label,
            stereotype=target if polarity == "neg" else other,
            is_ambiguous=condition == "ambig",
            category=str(row.get("category", "")),
        )


def _one_of(row: dict[str, Any], column: str, allowed: tuple[str, ...], where: Where) -> str:
    value = row.get(column)
    if value not in allowed:
        raise RowError(*where, column, f"is {value!r}; expected {' or '.join(allowed)}.")
    return str(value)


def _target_and_unknown(row: dict[str, Any], where: Where) -> tuple[int, int]:
    """The indices of the answer that the stereotype is about, and of the one that says "unknown".

    `target_loc` says the first where it is given, as in the additional metadata of BBQ's authors; else the groups of
    `answer_info` are compared with `stereotyped_groups`.

    Raises:
        RowError: they cannot be told.
    """
    info, metadata = row.get("answer_info"), row.get("additional_metadata")
    if not isinstance(info, dict) or not all(isinstance(info.get(name), list) and info[name] for name in ANSWERS):
        raise RowError(*where, "answer_info", "expected a list of name and group for each of ans0, ans1 and ans2.")
    groups = [str(info[name][-1]).casefold() for name in ANSWERS]
    if groups.count("unknown") != 1:
        raise RowError(*where, "answer_info", f"the groups are {groups}; expected one of them to be 'unknown'.")
    unknown = groups.index("unknown")
    target = row.get("target_loc")
    if target is None:
        stereotyped = metadata.get("stereotyped_groups", []) if isinstance(metadata, dict) else []
        names = {str(name).casefold() for name in stereotyped}
        targets = [i for i, group in enumerate(groups) if group in names]
        target = targets[0] if len(targets) == 1 else None
    if not isinstance(target, int) or target not in {0, 1, 2} - {unknown}:
        raise RowError(
            *where,
            "additional_metadata",
            f"which answer the stereotype is about cannot be told: the groups are {groups}. Give 'target_loc', its "
            "index, as in the file additional_metadata.csv of BBQ's authors.",
        )
    return target, unknown
