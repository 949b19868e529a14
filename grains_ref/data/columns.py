"""Columns that no reader takes: which of them hold content, that must not be lost, and what was probably meant.

A column is content by its name (`system`, `image_path`, `few_shot_examples`) or by its value: a sentence, a list, an
object, the name of a media file.  Numbers are never content, nor are short labels, ids, hashes and addresses.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from grains_ref.files import some_of

PAIR_FIELDS = ("prompt", "messages", "chosen", "rejected", "image", "id", "choices", "label")
TASK_FIELDS = ("prompt", "messages", "answer", "image", "id")
READ_ELSEWHERE = frozenset({"boxes"})  # where an object is, for a method that asks; never part of what a model reads

OTHER_NAMES = {  # what other datasets call our fields; only used to word a hint, never to read a row
    "question": "prompt", "query": "prompt", "instruction": "prompt", "input": "prompt", "problem": "prompt",
    "conversation": "messages", "conversations": "messages", "chat": "messages",
    "response": "chosen", "answer": "chosen", "output": "chosen", "preferred": "chosen", "positive": "chosen",
    "preferred_output": "chosen", "chosen_response": "chosen",
    "dispreferred": "rejected", "negative": "rejected", "non_preferred_output": "rejected",
    "target": "answer", "solution": "answer", "completion": "answer", "gold": "answer", "truth": "answer",
    "images": "image", "img": "image", "picture": "image", "photo": "image", "image_path": "image",
    "options": "choices", "candidates": "choices",
    "from": "role", "speaker": "role", "value": "content", "text": "content",
}  # fmt: skip

ADVICE = {  # by the first word of the name that is here
    "system": "A system text is the first turn of a chat: give 'messages' (or 'instruction') instead of plain text.",
    "tools": "Calls of tools are not read.",
    "videos": "Films are not read; only text and pictures are.",
    "video": "Films are not read; only text and pictures are.",
    "audios": "Sound is not read; only text and pictures are.",
    "audio": "Sound is not read; only text and pictures are.",
    "history": "Earlier turns belong in 'messages'.",
    "images": "Pictures are read from 'image', a path, or 'images', a list of paths.",
    "image": "Pictures are read from 'image', a path, or 'images', a list of paths.",
    "context": "What the model should read belongs in 'prompt'.",
}

CONTENT_WORDS = frozenset(
    """
    system prompt prompts message messages conversation conversations chat chats dialog dialogs dialogue dialogues
    history turn turns instruction instructions input inputs output outputs question questions query queries
    response responses answer answers completion completions chosen rejected preferred dispreferred
    text texts content contents body passage passages paragraph paragraphs document documents context contexts
    knowledge background evidence hint hints example examples demonstration demonstrations shot shots
    image images img imgs picture pictures photo photos pixel pixels video videos film films frame frames
    audio audios speech sound sounds media tool tools function functions choices options candidate candidates
    rationale reasoning thinking thought thoughts persona constitution
    """.split()
)
LABEL_WORDS = frozenset(  # as the last word of a name: about the content, not content
    """
    id ids uid uuid guid idx index key hash sha sha256 md5 score scores rating ratings rank ranking reward rewards
    margin weight weights confidence source sources origin dataset split subset config model models generator annotator
    annotators worker author category categories type types kind label labels class classes tag tags topic topics
    subject subjects domain domains lang language languages locale length len count num number size time date timestamp
    created version license licence difficulty level status flag format name meta metadata
    """.split()
)
MEDIA = re.compile(
    r"\.(png|jpe?g|webp|gif|bmp|tiff?|heic|avif|svg|mp4|webm|mov|avi|mkv|wav|mp3|flac|ogg|m4a|pdf)(\?\S*)?\s*$",
    re.IGNORECASE,
)
SENTENCE_END = re.compile("[.?!\u3002\uff1f\uff01](?![0-9A-Za-z])")
LABEL_BYTES = 40  # of UTF-8, in which a Chinese or Japanese sentence is as long as an English one
LABEL_BYTES_NAMED = 100  # where the name says that it is a label
TOKEN_LETTERS = 200  # of an id, a hash or an address


def hint(names: Iterable[str], missing: str, known: Iterable[str] = PAIR_FIELDS) -> str:
    """Name the column that was probably meant to be the missing one, if there is one among the first fifty."""
    for i, name in enumerate(names):
        if i == 50:
            break
        lower = name.lower()[:60]
        close = difflib.get_close_matches(lower, [missing], cutoff=0.75) or missing in lower
        if name not in known and (close or OTHER_NAMES.get(lower) == missing):
            return f" The row has {name[:60]!r}: was '{missing}' meant?"
    return ""


def split_off_content(rest: Mapping[str, Any], *, has_picture: bool) -> tuple[list[str], list[str]]:
    """The columns that no reader took: those that hold content, and those that do not.  Empty ones are neither."""
    content: list[str] = []
    harmless: list[str] = []
    for name, value in rest.items():
        if is_empty(value):
            continue
        if name not in READ_ELSEWHERE and carries_content(name, value, has_picture=has_picture):
            content.append(name)
        else:
            harmless.append(name)
    return content, harmless


def is_empty(value: Any) -> bool:
    """Whether a value says nothing: null, "", [], {}, or a list or an object of such."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, dict):
        return all(is_empty(inner) for inner in value.values())
    if isinstance(value, (list, tuple)):
        return all(is_empty(inner) for inner in value)
    return value is None or value == b""


def is_null(value: Any) -> bool:
    """Whether a value is absent: null, or a list or an object of nothing else."""
    if isinstance(value, dict):
        return all(is_null(inner) for inner in value.values())
    return value is None or (isinstance(value, (list, tuple)) and all(is_null(inner) for inner in value))


def carries_content(name: str, value: Any, *, has_picture: bool = False) -> bool:
    """Whether dropping a column could change what a row says.  A media file counts unless the row has its picture."""
    if isinstance(value, (dict, list, tuple)) and not _names_a_label(name):
        return not is_empty(value)
    return _holds_content(name, value, has_picture=has_picture)


def _holds_content(name: str, value: Any, *, has_picture: bool) -> bool:
    """The same, for lists and objects of labels too, however deep: what they hold decides."""
    if isinstance(value, dict):
        for key, inner in value.items():
            judge = carries_content if _names_content(key) else _holds_content
            if judge(key, inner, has_picture=has_picture):
                return True
        return False
    if isinstance(value, (list, tuple)):
        return any(_holds_content(name, inner, has_picture=has_picture) for inner in value)
    if not isinstance(value, str) or not value.strip():
        return isinstance(value, bytes) and value != b""
    if not has_picture and (value.startswith("data:") or MEDIA.search(value[-300:])):
        return True
    return _names_content(name) or _reads_as_text(value, is_label=_names_a_label(name))


def _names_a_label(name: str) -> bool:
    words = _words(name)
    return bool(words) and words[-1] in LABEL_WORDS


def _names_content(name: str) -> bool:
    return not CONTENT_WORDS.isdisjoint(_words(name)) and not _names_a_label(name)


def _reads_as_text(value: str, *, is_label: bool) -> bool:
    """Whether a value is rather a text than a label, an id, a hash or an address.

    is_label: whether its name says that it is a label; then it may be longer, but still no sentence.
    """
    value = value.strip()
    n_words = len(value.split(maxsplit=4))
    if n_words == 1 and value.isascii():
        return len(value) > TOKEN_LETTERS
    most_bytes = LABEL_BYTES_NAMED if is_label else LABEL_BYTES
    if len(value.encode("utf-8", "replace")) > most_bytes or len(value.splitlines()) > 1:
        return True
    if is_label:
        return n_words > 3 and SENTENCE_END.search(value) is not None
    return n_words > 3 or SENTENCE_END.match(value, len(value) - 1) is not None


def _words(name: str) -> list[str]:
    """The words of a column's name: few_shotExamples -> few, shot, examples."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name[:200])
    return [word.lower() for word in re.split(r"[^0-9A-Za-z]+", parted) if word]


def content_problem(names: list[str], *, drop: str) -> tuple[str, str]:
    """The field to name and the sentence to say where columns hold content that would be lost.

    drop: what to type to leave them out.
    """
    listed = some_of([repr(name[:60]) for name in names])
    advice = next((f" {ADVICE[word]}" for word in _words(names[0]) if word in ADVICE), "")
    meant = OTHER_NAMES.get(names[0].lower()[:60])
    guess = f" Was {meant!r} meant?" if meant and not advice else ""
    lost = "content that would be lost, as nothing reads"
    which = "a column of this name" if len(names) == 1 else f"columns of these names ({listed})"
    return names[0][:60], f"holds {lost} {which}.{advice}{guess} If it is not needed: {drop}"
