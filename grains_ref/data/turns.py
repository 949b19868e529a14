"""Turns of a chat, as role and content or as from and value, with a text or a list of parts as their content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from grains_ref.data.columns import ADVICE, carries_content, hint, is_empty
from grains_ref.data.pairs import PICTURE_MARK, FieldError, Message, check_visible, shortened

ROLE_OF = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


class Turn(NamedTuple):
    """One turn; `pictures` are those of its content's parts: a path, or None for a place whose picture is elsewhere."""

    role: str
    text: str
    pictures: tuple[Any, ...] = ()


# -------------------------------------------------------------------------------------------- one value of a row
def found(value: Any) -> str:
    """What a value is, for messages."""
    if value is None:
        return "null"
    if isinstance(value, (list, tuple)):
        return "a list" if value else "an empty list"
    if isinstance(value, dict):
        return "an object"
    names = {bool: "true/false", int: "an integer", float: "a decimal number", str: "a string", bytes: "bytes"}
    return f"{names.get(type(value), type(value).__name__)} ({shortened(value)})"


def required(row: Mapping[str, Any], name: str, place: str = "") -> Any:
    """A field that must be there.

    Raises:
        FieldError: it is missing or null.
    """
    if row.get(name) is None:
        raise FieldError(place + name, f"missing (or null), but required.{hint(row, name)}")
    return row[name]


def as_string(value: Any, field: str) -> str:
    """A string that a tokenizer takes.

    Raises:
        FieldError: it is no string, or holds half of a surrogate pair.
    """
    if not isinstance(value, str):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        advice = " Write it in quotation marks." if is_number else ""
        raise FieldError(field, f"expected a string, found {found(value)}.{advice}")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise FieldError(field, "holds half of a surrogate pair (a broken emoji), which no tokenizer takes; repair it.")
    return value


def as_text(value: Any, field: str) -> str:
    """A string in which there is something to read, and no chat written out as one.

    Raises:
        FieldError: it is not.
    """
    text = as_string(value, field)
    check_visible(text, field)
    start = text[:200].replace(" ", "").replace("\n", "")
    if start.startswith(("[{'role'", '[{"role"', "[{'content'", '[{"content"', "[{'from'", '[{"from"')):
        advice = "Save the file as JSONL, in which a list stays a list."
        raise FieldError(field, f"a list of messages written out as text, {shortened(text)}. {advice}")
    return text


# -------------------------------------------------------------------------------------------- a chat
def as_turns(value: Any, field: str, ignored: dict[str, None]) -> list[Turn]:
    """The turns of a chat; names of keys that hold no content are added to `ignored`.

    Raises:
        FieldError: it is no list of turns, or a turn holds what would be lost.
    """
    if not isinstance(value, list) or not value:
        raise FieldError(field, f'expected a list of {{"role": ..., "content": ...}}, found {found(value)}.')
    return [as_turn(turn, f"{field}[{i}]", ignored) for i, turn in enumerate(value)]


def as_turn(turn: Any, place: str, ignored: dict[str, None]) -> Turn:
    """One turn.

    Raises:
        FieldError: see `as_turns`.
    """
    if not isinstance(turn, dict):
        raise FieldError(place, f'expected {{"role": ..., "content": ...}}, found {found(turn)}.')
    turn = {key: value for key, value in turn.items() if value is not None}
    if "from" in turn and "role" not in turn:
        names = ("from", "value")
        given = as_text(required(turn, "from", f"{place}."), f"{place}.from")
        if given not in ROLE_OF:
            expected = ", ".join(repr(name) for name in ROLE_OF)
            raise FieldError(f"{place}.from", f"{shortened(given)} is not read; expected one of {expected}.")
        role = ROLE_OF[given]
    else:
        names = ("role", "content")
        role = as_text(required(turn, "role", f"{place}."), f"{place}.role")
    text, pictures = _content(required(turn, names[1], f"{place}."), f"{place}.{names[1]}", ignored)
    _refuse_lost_keys(turn, names, place, ignored)
    return Turn(role, text, pictures)


def _content(value: Any, place: str, ignored: dict[str, None]) -> tuple[str, tuple[Any, ...]]:
    """The text of a turn, and the pictures before it."""
    if not isinstance(value, list):
        return as_string(value, place), ()
    texts, pictures = [], []
    for i, part in enumerate(value):
        here = f"{place}[{i}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            _refuse_lost_keys(part, ("type", "text"), here, ignored)
            texts.append(as_string(required(part, "text", f"{here}."), f"{here}.text"))
        elif kind in ("image", "image_url") and not texts:
            pictures.append(_picture_of_part(part, here, ignored))
        elif kind in ("image", "image_url"):
            raise FieldError(here, "a picture after the text; a chat template puts it before. Turn the parts round.")
        else:
            expected = 'expected {"type": "text", "text": ...} or {"type": "image"}'
            given = f"type {shortened(kind)}" if kind else found(part)
            advice = f" {ADVICE[kind]}" if isinstance(kind, str) and kind in ADVICE else ""
            raise FieldError(here, f"{expected}, found {given}.{advice}")
    if len(texts) != 1:
        raise FieldError(place, f"expected one part of text, found {len(texts)}; join them to one.")
    return texts[0], tuple(pictures)


def _picture_of_part(part: dict[str, Any], place: str, ignored: dict[str, None]) -> Any:
    """The picture that a part names, or None where the part is only the place of one."""
    sources = ("image", "path", "url", "image_url", "bytes")
    _refuse_lost_keys(part, ("type", *sources), place, ignored)
    given = {name: part[name] for name in sources if not is_empty(part.get(name))}
    if len(given) > 1:
        raise FieldError(place, f"names its picture twice, in {' and '.join(given)}; keep one.")
    if "bytes" in given:
        return given
    value = next(iter(given.values()), None)
    return value.get("url") if "image_url" in given and isinstance(value, dict) else value


def _refuse_lost_keys(item: dict[str, Any], known: tuple[str, ...], place: str, ignored: dict[str, None]) -> None:
    for key, value in item.items():
        if key in known or is_empty(value):
            continue
        if carries_content(key, value):
            advice = f" {ADVICE['tools']}" if key.startswith("tool") else ""
            problem = "holds content that would be lost, as only the role and one text are read."
            raise FieldError(f"{place}.{key[:60]}", f"{problem}{advice} Take it out.")
        ignored[f"{place.split('[')[0]}[].{key}"[:80]] = None


def as_messages(turns: list[Turn], field: str, *, n_pictures: int) -> tuple[Message, ...]:
    """Turns as the prompt of a pair: the last is a user's, and pictures stand where templates put them.

    Templates put pictures into the first turn of the user, before the text; marks `<image>` that stand right there,
    one for each picture, are taken out, with the white space behind them.

    Raises:
        FieldError: the last turn is of another role or empty, or a picture stands elsewhere.
    """
    last = turns[-1]
    if last.role != "user":
        advice = " The response belongs in 'chosen' and 'rejected'; end with the turn before it."
        problem = f"the last role is {shortened(last.role)}, expected 'user'."
        raise FieldError(field, problem + (advice if last.role == "assistant" else ""))
    first = next(i for i, turn in enumerate(turns) if turn.role == "user")
    texts = [turn.text for turn in turns]
    if n_pictures:
        marks = sum(text.count(PICTURE_MARK) for text in texts)
        in_front = 0
        while texts[first].lstrip().startswith(PICTURE_MARK):
            texts[first] = texts[first].lstrip().removeprefix(PICTURE_MARK).lstrip()
            in_front += 1
        if in_front not in (0, n_pictures):
            raise FieldError(field, f"{in_front} marks {PICTURE_MARK} for {n_pictures} picture(s); give one for each.")
        if marks > in_front:
            advice = "Templates put the picture before the first text of the user: move it there, or leave it out."
            raise FieldError(field, f"{PICTURE_MARK} stands where no template puts a picture. {advice}")
    for i, turn in enumerate(turns):
        if turn.pictures and i != first:
            advice = "Templates put it into the first turn of the user."
            raise FieldError(f"{field}[{i}]", f"a picture in a turn of role {shortened(turn.role)}. {advice}")
    check_visible(texts[-1], f"{field}[{len(turns) - 1}].content")  # an empty system turn is harmless
    return tuple(Message(role=turn.role, content=text) for turn, text in zip(turns, texts, strict=True))
