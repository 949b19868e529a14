"""Preference pairs: one JSON object per line, read strictly, so that no bad row slips in or out unseen.

A row of a pair file::

    {"prompt": "Is the earth flat?", "chosen": "No.", "rejected": "Yes."}

| field | meaning |
|---|---|
| `prompt` or `messages` | exactly one: plain text, or turns `{"role": ..., "content": ...}` up to a user's |
| `chosen`, `rejected` | the preferred answer and the other one, as text without any template |
| `image` | optional path of a picture, relative to the pair file |
| `id` | optional name of the row, unique in the file; default: its line number, as "000012" |
| `choices`, `label` | optional, both or neither: multiple-choice answers, the right one's index from 0 |

Other fields (source, category, ...) are ignored, and a null counts as an absent field.
"""

from __future__ import annotations

import codecs
import difflib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeAlias, TypedDict, TypeVar

FIELDS = ("prompt", "messages", "chosen", "rejected", "image", "id", "choices", "label")

PICTURE_MARK = "<image>"  # the place of the picture in a plain-text prompt, whatever the model's own token for it

OTHER_NAMES = {  # what other datasets call our fields; only used to word a hint, never to read a row
    "question": "prompt", "query": "prompt", "instruction": "prompt", "input": "prompt",
    "conversation": "messages", "conversations": "messages", "chat": "messages",
    "response": "chosen", "answer": "chosen", "preferred": "chosen", "positive": "chosen",
    "dispreferred": "rejected", "negative": "rejected",
    "from": "role", "speaker": "role", "value": "content", "text": "content",
}  # fmt: skip


class Message(TypedDict):
    """One turn of a chat."""

    role: str
    content: str


Prompt: TypeAlias = str | Sequence[Message]  # plain text, or the turns of a chat up to a user's


@dataclass(frozen=True)
class PreferencePair:
    """A prompt with the answer to move toward and the answer to move away from.

    `where` ("pairs.jsonl:12") is for messages to people; it is no part of the content.
    """

    id: str
    prompt: Prompt
    chosen: str
    rejected: str
    where: str
    image: Path | None = None
    choices: tuple[str, ...] = ()
    label: int | None = None


@dataclass(frozen=True)
class PairFile:
    """The good rows of a file in order, the rows left out, and a digest of the good rows' content."""

    path: Path
    pairs: tuple[PreferencePair, ...]
    skipped: tuple[RowError, ...]
    digest: str


@dataclass(frozen=True)
class Task:
    """A prompt with a single right answer, to see whether steering costs a skill.

    Fields `prompt`, `answer`, and optionally `image` and `id`, as in a pair file.
    """

    id: str
    prompt: Prompt
    answer: str
    image: Path | None = None


class PairFileError(ValueError):
    """The file as a whole cannot be read as preference pairs."""


class RowError(ValueError):
    """One row cannot be used: `path`, `line` (from 1; 0 if unknown) and `field` ("" for the whole row)."""

    def __init__(self, path: Path, line: int, field: str, problem: str) -> None:
        super().__init__(path, line, field, problem)
        self.path, self.line, self.field, self.problem = path, line, field, problem

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line else str(self.path)
        return f"{where}: field '{self.field}': {self.problem}" if self.field else f"{where}: {self.problem}"


class _Problem(Exception):
    """What is wrong with a row, raised where file and line are not known."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(text)
        self.field = field


def read_pairs(path: str | os.PathLike[str], *, skip_bad_rows: bool = False) -> PairFile:
    """Read a whole file of preference pairs.

    Args:
        path: the JSONL file.
        skip_bad_rows: leave bad rows out and list them under `skipped`, instead of raising the first one.

    Raises:
        RowError: a row is bad and `skip_bad_rows` is off.
        PairFileError: missing file, directory, JSON array instead of JSONL, or no good row at all.
    """
    pairs: list[PreferencePair] = []
    skipped: list[RowError] = []
    for item in stream_pairs(path):
        if isinstance(item, PreferencePair):
            pairs.append(item)
        elif skip_bad_rows:
            skipped.append(item)
        else:
            raise item
    if not pairs and skipped:
        raise PairFileError(f"{path}: no good row: all {len(skipped)} rows are bad. The first: {skipped[0]}")
    if not pairs:
        raise PairFileError(f"{path}: the file is empty; expected one JSON object per line.")
    return PairFile(path=Path(path), pairs=tuple(pairs), skipped=tuple(skipped), digest=content_digest(pairs))


def read_tasks(path: str | os.PathLike[str]) -> tuple[Task, ...]:
    """Read a whole file of tasks, one JSON object per line.

    Raises:
        RowError: a row is bad.
        PairFileError: missing file, directory, JSON array instead of JSONL, or no row at all.
    """
    tasks = []
    for item in _stream(Path(path), _task):
        if isinstance(item, RowError):
            raise item
        tasks.append(item)
    if not tasks:
        raise PairFileError(f"{path}: the file is empty; expected one JSON object per line.")
    return tuple(tasks)


def stream_pairs(path: str | os.PathLike[str]) -> Iterator[PreferencePair | RowError]:
    """Yield the rows of a file one by one; a bad row is yielded as a `RowError`, for the caller to decide on.

    Only one line is in memory at a time, plus the ids seen so far.

    Raises:
        PairFileError: on the first step, if the file is missing, a directory, or a JSON array.
    """
    return _stream(Path(path), _pair)


class _Row(Protocol):
    @property
    def id(self) -> str: ...


_R = TypeVar("_R", bound=_Row, covariant=True)


class _Build(Protocol[_R]):
    def __call__(self, row: dict[str, Any], *, path: Path, line: int) -> _R: ...


def _stream(path: Path, build: _Build[_R]) -> Iterator[_R | RowError]:
    """The rows of a JSONL file, each through `build`; ids must be unique."""
    if path.is_dir():
        raise PairFileError(f"{path}: is a directory; name the JSONL file in it, e.g. {path / 'pairs.jsonl'}")
    if not path.exists():
        raise PairFileError(f"{path}: no such file (looked in {path.absolute().parent})")
    line_of_id: dict[str, int] = {}
    is_first_row = True
    with path.open("rb") as lines:  # bytes are split at \n only: U+2028 and a lone \r stay inside their row
        for line, raw in enumerate(lines, start=1):
            raw = raw.removeprefix(codecs.BOM_UTF8) if line == 1 else raw
            if not raw.strip():
                continue
            if is_first_row and raw.lstrip().startswith(b"["):
                raise PairFileError(
                    f"{path}: the file starts with '[', a JSON array; expected one object per line. "
                    f"Convert with: jq -c '.[]' {path.name} > {path.stem}_rows.jsonl"
                )
            is_first_row = False
            try:
                built = build(_parse(raw), path=path, line=line)
                if built.id in line_of_id:
                    _fail("id", f"{built.id!r} already names line {line_of_id[built.id]}; ids must be unique.")
            except _Problem as problem:
                yield RowError(path, line, problem.field, str(problem))
            else:
                line_of_id[built.id] = line
                yield built


def content_digest(pairs: Sequence[PreferencePair]) -> str:
    """SHA-256 (hex) of the pairs' content in order; file names and JSON formatting do not count.

    The id counts; a default id is a line number, so a blank line put between such rows changes the digest.
    """
    content = [
        {
            "id": pair.id,
            "prompt": pair.prompt,
            "chosen": pair.chosen,
            "rejected": pair.rejected,
            "choices": pair.choices,
            "label": pair.label,
            "image": picture_bytes(pair),
        }
        for pair in pairs
    ]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def picture_bytes(pair: PreferencePair) -> str | None:
    """SHA-256 (hex) of the pair's picture file; None without one."""
    return hashlib.sha256(pair.image.read_bytes()).hexdigest() if pair.image else None


def check_tokens(pair: PreferencePair, *, n_prompt: int, n_chosen: int, n_rejected: int, context: int) -> None:
    """Check what only a tokenizer can tell: that nothing vanished, and that prompt and answer fit the model.

    Args:
        pair: the row the counts are of.
        n_prompt: tokens of the prompt, template and image tokens included.
        n_chosen: tokens of the preferred response.
        n_rejected: tokens of the other response.
        context: the largest number of tokens the model takes.

    Raises:
        RowError: with the row's place and the counts.
    """
    path, _, line = pair.where.rpartition(":")
    place = (Path(path), int(line)) if path and line.isdecimal() else (Path(pair.where), 0)
    prompt_field = "prompt" if isinstance(pair.prompt, str) else "messages"
    for field, count in ((prompt_field, n_prompt), ("chosen", n_chosen), ("rejected", n_rejected)):
        if count < 1:
            raise RowError(*place, field, "tokenises to nothing; rewrite it, or leave the row out.")
    longer, count = ("chosen", n_chosen) if n_chosen >= n_rejected else ("rejected", n_rejected)
    if n_prompt + count > context:
        counts = f"{n_prompt} prompt tokens + {count} of '{longer}' = {n_prompt + count}"
        problem = f"{counts}, but the model takes {context}. Shorten the row, or leave it out."
        raise RowError(*place, prompt_field, problem)


def _parse(raw: bytes) -> dict[str, Any]:
    """One line of the file as a JSON object, with null fields dropped."""
    try:
        text = raw.decode("utf-8").rstrip()
        row = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_without_repeats)
    except UnicodeDecodeError as error:
        guess = "UTF-16" if b"\0" in raw else "Latin-1 or Windows-1252"
        byte = f"byte {error.start + 1} of the line is 0x{raw[error.start]:02x}"
        _fail("", f"not UTF-8: {byte}. The file may be {guess}; save it as UTF-8.")
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - 20) : error.pos + 20]
        place = f"{error.msg} at column {error.colno}, near {near!r}"
        _fail("", f"not JSON: {place}. Expected one complete object on each line.")
    except (RecursionError, ValueError) as error:  # nested too deeply; a number of thousands of digits
        _fail("", f"the JSON cannot be read: {error}.")
    if not isinstance(row, dict):
        _fail("", f'expected an object such as {{"prompt": ...}}, found {_found(row)}.')
    return {name: value for name, value in row.items() if value is not None}


def _refuse_constant(name: str) -> NoReturn:
    _fail("", f"{name} is not JSON, though Python writes it. Write null, or leave the field out.")


def _without_repeats(items: list[tuple[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in items:
        if name in row:
            _fail(name, "given twice in one object; keep the one that is meant.")
        row[name] = value
    return row


def _pair(row: dict[str, Any], *, path: Path, line: int) -> PreferencePair:
    if "prompt" in row and "messages" in row:
        _fail("messages", "the row has both 'prompt' and 'messages'; expected exactly one of them.")
    if "prompt" not in row and "messages" not in row:
        hint = _hint(row, "prompt") or _hint(row, "messages")
        _fail("prompt", f"missing; expected either 'prompt' (text) or 'messages' (chat turns).{hint}")
    prompt = _messages(row["messages"]) if "messages" in row else _text(row["prompt"], "prompt")
    chosen, rejected = (_text(_get(row, name), name) for name in ("chosen", "rejected"))
    if chosen == rejected:
        _fail("rejected", f"the same text as 'chosen', {_short(chosen)}; a pair needs two answers.")
    choices, label = _choices(row)
    return PreferencePair(
        id=_id(row, default=f"{line:06d}"),
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        where=f"{path}:{line}",
        image=_image(row, folder=path.parent),
        choices=choices,
        label=label,
    )


def _task(row: dict[str, Any], *, path: Path, line: int) -> Task:
    prompt, answer = (_text(_get(row, name), name) for name in ("prompt", "answer"))
    return Task(_id(row, default=f"{line:06d}"), prompt, answer, _image(row, folder=path.parent))


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else _found(value)
        _fail("messages", f'expected a list of {{"role": ..., "content": ...}}, found {found}.')
    turns: list[Message] = []
    for i, turn in enumerate(value):
        place = f"messages[{i}]"
        if not isinstance(turn, dict):
            _fail(place, f'expected {{"role": ..., "content": ...}}, found {_found(turn)}.')
        content = _string(_get(turn, "content", f"{place}."), f"{place}.content")
        turns.append(Message(role=_text(_get(turn, "role", f"{place}."), f"{place}.role"), content=content))
    last = turns[-1]
    if last["role"] != "user":
        found = f"the last role is {_short(last['role'])}, expected 'user'."
        advice = " The response belongs in 'chosen' and 'rejected'; end with the turn before it."
        _fail("messages", found + advice * (last["role"] == "assistant"))
    _text(last["content"], f"messages[{len(turns) - 1}].content")  # an empty system turn is harmless
    return tuple(turns)


def _get(row: Mapping[str, Any], name: str, place: str = "") -> Any:
    if row.get(name) is None:
        _fail(place + name, f"missing (or null), but required.{_hint(row, name)}")
    return row[name]


def _string(value: Any, field: str) -> str:
    if not isinstance(value, str):
        advice = " Give the text alone: chat turns go in 'messages', a picture in 'image'."
        _fail(field, f"expected a string, found {_found(value)}.{advice * isinstance(value, list)}")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        _fail(field, "holds half of a surrogate pair (a broken emoji), which no tokenizer takes; repair it.")
    return value


def _text(value: Any, field: str) -> str:
    if not _string(value, field).strip():
        found = "only white space" if value else "empty"
        _fail(field, f"{found}; expected text. Fill it in, or leave the row out.")
    return str(value)


def _id(row: dict[str, Any], *, default: str) -> str:
    value = row.get("id", default)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        _fail("id", f"expected a string or an integer, found {_found(value)}.")
    return _text(value, "id")


def _image(row: dict[str, Any], *, folder: Path) -> Path | None:
    if "image" not in row:
        return None
    image = folder / _text(row["image"], "image")
    if not os.path.isfile(image):  # unlike Path.is_file, it also answers for a name that is too long
        problem = "is a directory" if os.path.isdir(image) else "does not exist"
        _fail("image", f"{_short(str(image))} {problem}; expected a file, its path counted from {folder}.")
    return image


def _choices(row: dict[str, Any]) -> tuple[tuple[str, ...], int | None]:
    if "choices" not in row and "label" not in row:
        return (), None
    for given, missing in (("choices", "label"), ("label", "choices")):
        if missing not in row:
            _fail(missing, f"missing, but the row has '{given}'; give both or neither.{_hint(row, missing)}")
    choices, label = row["choices"], row["label"]
    if not isinstance(choices, list) or len(choices) < 2:
        found = f"a list of {len(choices)}" if isinstance(choices, list) else _found(choices)
        _fail("choices", f"expected a list of at least 2 strings, found {found}.")
    texts = tuple(_text(choice, f"choices[{i}]") for i, choice in enumerate(choices))
    if len(set(texts)) < len(texts):
        repeated = next(text for text in texts if texts.count(text) > 1)
        _fail("choices", f"{_short(repeated)} is listed more than once; expected distinct answers.")
    if not isinstance(label, int) or isinstance(label, bool):
        _fail("label", f"expected an integer index into 'choices', found {_found(label)}.")
    if not 0 <= label < len(texts):
        _fail("label", f"{label} is no index into the {len(texts)} choices; expected 0 to {len(texts) - 1}.")
    return texts, label


def _fail(field: str, text: str) -> NoReturn:
    raise _Problem(field, text)


def _hint(row: Mapping[str, Any], missing: str) -> str:
    """Name the field of the row that was probably meant to be the missing one, if there is one."""
    for name in row:
        lower = name.lower()
        close = difflib.get_close_matches(lower, [missing], cutoff=0.75) or missing in lower
        if name not in FIELDS and (close or OTHER_NAMES.get(lower) == missing):
            return f" The row has {_short(name)}: was '{missing}' meant?"
    return ""


def _found(value: Any) -> str:
    names = {bool: "true/false", int: "an integer", float: "a decimal number", str: "a string"}
    containers = {list: "a list", dict: "an object", type(None): "null"}
    return containers.get(type(value)) or f"{names[type(value)]} ({_short(value)})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
