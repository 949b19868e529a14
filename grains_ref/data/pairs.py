"""What the readers give: pairs and tasks, where each came from, what makes one unusable, and the digest of all."""

from __future__ import annotations

import hashlib
import json
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypedDict

from grains_ref.files import MAX_PICTURE_BYTES, FileError, check_listed, digest_of, printable, read_whole, some_of

PICTURE_MARK = "<image>"  # the place of the picture in a plain-text prompt, whatever the model's own token for it

_NO_CHANCE = 16  # characters that no answer shares with its prompt by accident


class Message(TypedDict):
    """One turn of a chat."""

    role: str
    content: str


Prompt: TypeAlias = str | Sequence[Message]  # plain text, or the turns of a chat up to a user's
PicturePaths: TypeAlias = Path | tuple[Path, ...] | None  # a prompt's picture, or its pictures in order


class Where(NamedTuple):
    """The place of a row, for messages to people.

    `line` counts from 1: the line of a JSONL or CSV file, the item of a JSON array, the row of a Parquet file.
    It is 0 for what came from no line.
    """

    path: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" if self.line else self.path


# -------------------------------------------------------------------------------------------- errors
class PairFileError(ValueError):
    """The file as a whole cannot be read."""

    def __str__(self) -> str:
        return printable(super().__str__())


class RowError(ValueError):
    """One row cannot be used: `path`, `line` (from 1; 0 if unknown) and `field` ("" for the whole row)."""

    def __init__(self, path: str | Path, line: int, field: str, problem: str) -> None:
        super().__init__(path, line, field, problem)
        self.path, self.line, self.field, self.problem = Path(path), line, field, problem

    @property
    def where(self) -> Where:
        """The place of the row."""
        return Where(str(self.path), self.line)

    def __str__(self) -> str:
        place = f"{self.where}: field '{self.field}'" if self.field else f"{self.where}"
        return printable(f"{place}: {self.problem}")


class FieldError(ValueError):
    """What is wrong with a field ("" for the whole row), where file and line are not known."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field, self.problem = field, problem

    def __str__(self) -> str:
        return printable(f"'{self.field}': {self.problem}" if self.field else self.problem)


# -------------------------------------------------------------------------------------------- records
@dataclass(frozen=True)
class PreferencePair:
    """A prompt with the answer to move toward and the answer to move away from.

    `where` is for messages to people and no part of the content: the row's place in its file, or a word on where else
    the pair came from.  `image` is the path of a picture, or those of several in order; `images` are always several.
    """

    id: str
    prompt: Prompt
    chosen: str
    rejected: str
    where: Where | str
    image: PicturePaths = None
    choices: tuple[str, ...] = ()
    label: int | None = None

    @property
    def images(self) -> tuple[Path, ...]:
        """The pictures of the prompt, in order."""
        if self.image is None:
            return ()
        return self.image if isinstance(self.image, tuple) else (self.image,)

    @property
    def prompt_field(self) -> str:
        """What the prompt is called in a file."""
        return "prompt" if isinstance(self.prompt, str) else "messages"

    def error(self, field: str, problem: str) -> RowError:
        """The error that names this pair."""
        place = self.where if isinstance(self.where, Where) else Where(self.where or self.id)
        return RowError(*place, field, problem)


@dataclass(frozen=True)
class Task:
    """A prompt with a single right answer, to see whether steering costs a skill."""

    id: str
    prompt: Prompt
    answer: str
    image: PicturePaths = None


@dataclass(frozen=True)
class PairFile:
    """The good rows of a file in order, the rows left out, and a digest of the good rows' content.

    `ignored_columns` are columns that no reader knows and that hold no content, such as scores and sources.
    `renamed_ids` are the new names of rows whose id an earlier row has.
    """

    path: Path
    pairs: tuple[PreferencePair, ...]
    skipped: tuple[RowError, ...]
    digest: str
    ignored_columns: tuple[str, ...] = ()
    renamed_ids: tuple[str, ...] = ()

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a caller should show of the file, one sentence each: nothing of it is an error."""
        return _remarks(self)


@dataclass(frozen=True)
class TaskFile:
    """The tasks of a file in order; the other fields are those of `PairFile`."""

    path: Path
    tasks: tuple[Task, ...]
    ignored_columns: tuple[str, ...] = ()
    renamed_ids: tuple[str, ...] = ()

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a caller should show of the file, one sentence each: nothing of it is an error."""
        return _remarks(self)


def _remarks(file: PairFile | TaskFile) -> tuple[str, ...]:
    sentences = []
    if file.ignored_columns:
        sentences.append(f"{file.path}: not read, as it holds no content: {_some_of(file.ignored_columns)}")
    if file.renamed_ids:
        sentences.append(f"{file.path}: ids given more than once, made unique: {_some_of(file.renamed_ids)}")
    return tuple(printable(sentence) for sentence in sentences)


def _some_of(names: Sequence[str]) -> str:
    return some_of([name if len(name) <= 40 else f"{name[:37]}..." for name in names])


# -------------------------------------------------------------------------------------------- digests
def content_digest(pairs: Sequence[PreferencePair]) -> str:
    """SHA-256 (hex) of the pairs' content in order; file names and the format of the file do not count.

    The id counts; a default id is a line number, so a blank line put between such rows changes the digest.

    Raises:
        TypeError: something else than a list of pairs.
        RowError: a picture cannot be read.
    """
    check_listed("pairs", pairs, "a list of preference pairs, such as read_pairs(file).pairs")
    digest = hashlib.sha256(b"[")  # of the list as one JSON text, which is never all in memory
    for i, pair in enumerate(pairs):
        content = {
            "id": pair.id,
            "prompt": pair.prompt,
            "chosen": pair.chosen,
            "rejected": pair.rejected,
            "choices": pair.choices,
            "label": pair.label,
            "image": picture_bytes(pair),
        }
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        digest.update(f",{canonical}".encode() if i else canonical.encode())
    digest.update(b"]")
    return digest.hexdigest()


def picture_bytes(pair: PreferencePair) -> str | tuple[str, ...] | None:
    """SHA-256 (hex) of the pair's picture file, of several theirs in order; None without one.

    Raises:
        RowError: a picture cannot be read.
    """
    digests = []
    for picture in pair.images:
        try:
            digests.append(digest_of(read_whole(picture, limit=MAX_PICTURE_BYTES)))
        except FileError as error:
            raise pair.error("image", str(error)) from error
    if isinstance(pair.image, tuple):
        return tuple(digests)
    return digests[0] if digests else None


# -------------------------------------------------------------------------------------------- checks
def check_texts(*, prompt: Prompt, chosen: str, rejected: str) -> None:
    """Check what can be told of a pair without a tokenizer, wherever its texts come from.

    Two answers that differ only in the white space before them, or in how accents are composed, count as one: the
    first is what tokenising a response settles (`response_ids`), the second what many tokenizers do.

    Raises:
        FieldError: a text is empty or cannot be seen, or both answers are the same.
    """
    check_prompt(prompt)
    check_visible(chosen, "chosen")
    check_visible(rejected, "rejected")
    if _settled(chosen) == _settled(rejected):
        same = "the same text as 'chosen'"
        if chosen != rejected:
            same += " but for white space before it or the composition of accents, which a tokenizer undoes"
        raise FieldError("rejected", f"{same}, {shortened(chosen)}; a pair needs two answers.")


def check_prompt(prompt: Prompt) -> None:
    """Refuse a prompt without a text, or a chat without a turn or with an empty last one.

    Raises:
        FieldError: nothing of it can be seen.
    """
    if isinstance(prompt, str):
        check_visible(prompt, "prompt")
    elif not prompt:
        raise FieldError("messages", "no turn; expected at least one of role 'user'.")
    else:
        check_visible(prompt[-1]["content"], f"messages[{len(prompt) - 1}].content")


def _settled(response: str) -> str:
    return unicodedata.normalize("NFC", response.lstrip())


def check_visible(text: str, field: str) -> None:
    """Refuse a text of which nothing can be seen.

    Raises:
        FieldError: it is empty, or white space and invisible characters alone.
    """
    for character in text:
        if not character.isspace() and unicodedata.category(character) not in ("Cc", "Cf"):
            return
    state = "empty" if not text else "only white space" if not text.strip() else "only invisible characters"
    raise FieldError(field, f"{state}; expected text. Fill it in, or leave the row out.")


def check_tokens(
    pair: PreferencePair,
    *,
    n_prompt: int,
    n_chosen: int,
    n_rejected: int,
    context: int | None,
    same_answers: bool = False,
) -> None:
    """Check what only a tokenizer can tell: nothing vanished, the answers differ, and the row fits the model.

    Args:
        pair: the row the counts are of.
        n_prompt: tokens of the prompt, template and image tokens included.
        n_chosen: tokens of the preferred response.
        n_rejected: tokens of the other response.
        context: the largest number of tokens the model takes; None for no limit.
        same_answers: whether both responses are the same tokens.

    Raises:
        RowError: with the row's place and the counts.
    """
    for field, count in ((pair.prompt_field, n_prompt), ("chosen", n_chosen), ("rejected", n_rejected)):
        if count < 1:
            raise pair.error(field, "tokenises to nothing; rewrite it, or leave the row out.")
    if same_answers:
        responses = f"{shortened(pair.chosen)} and {shortened(pair.rejected)}"
        raise pair.error(
            "rejected", f"the same tokens as 'chosen' ({responses}), so there is no preference; leave it out."
        )
    longer, count = ("chosen", n_chosen) if n_chosen >= n_rejected else ("rejected", n_rejected)
    if excess_tokens(n_prompt, count, context) > 0:
        counts = f"{n_prompt} prompt tokens + {count} of '{longer}' = {n_prompt + count}"
        problem = f"{counts}, but the model takes {context}. Shorten the row, or leave it out."
        raise pair.error(pair.prompt_field, problem)


def excess_tokens(n_prompt: int, n_after: int, context: int | None) -> int:
    """How many tokens a prompt and what follows it have too many for a model; they fit if it is 0 or less.

    n_after: tokens of an answer, or new tokens that may be generated.  context: the most tokens that the model takes,
    None where it sets no limit.
    """
    return 0 if context is None else n_prompt + n_after - context


def warn_of_repetition(pairs: Sequence[PreferencePair]) -> None:
    """Warn of answers that begin with their own prompt, which is put in front of them anyway."""
    repeating = [pair for pair in pairs if _repeats_prompt(pair)]
    if repeating:
        warnings.warn(
            f"{len(repeating)} of {len(pairs)} pairs have an answer that repeats its prompt, the first is "
            f"{repeating[0].where}. The prompt is put in front of an answer anyway: leave it out of the answers.",
            stacklevel=3,
        )


def _repeats_prompt(pair: PreferencePair) -> bool:
    """Whether an answer begins with the prompt, or with the last message of a chat; a word or two may be chance."""
    asked = pair.prompt if isinstance(pair.prompt, str) else pair.prompt[-1]["content"]
    asked = asked.strip()
    answers = (pair.chosen.lstrip(), pair.rejected.lstrip())
    return len(asked) >= _NO_CHANCE and any(answer.startswith(asked) for answer in answers)


def check_list(name: str, given: object) -> None:
    """Refuse one text where a list of things is expected: a text is a sequence too, of its letters.

    Raises:
        ValueError: it is a string, bytes or a path.
    """
    if isinstance(given, str | bytes | bytearray | Path):
        raise ValueError(
            f"{name} is one {type(given).__name__}, {shortened(given)}; give a list, also of a single one: [...]"
        )


def shortened(value: object) -> str:
    """A value as it stands in a message, at most 60 characters long."""
    if isinstance(value, (str, bytes)):
        value = value[:60]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
