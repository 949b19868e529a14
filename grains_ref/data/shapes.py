"""The shapes in which people keep preference pairs, each brought into the fields of a pair.

| shape | prompt | answers |
|---|---|---|
| our own; trl, standard | `prompt` | `chosen`, `rejected` |
| our own | `messages` | `chosen`, `rejected` |
| trl, conversational | `prompt`, a list of turns | one turn each, or the whole conversation |
| trl, implicit prompt | what both conversations begin with | the rest of both conversations |
| ms-swift | `messages` but for the last turn | that turn; `rejected_response`, or the end of `rejected_messages` |
| ms-swift | `query` | `response`, `rejected_response` |
| LLaMA-Factory, sharegpt | `conversations` | `chosen`, `rejected`, an object each |
| LLaMA-Factory, alpaca | `instruction`, `input` | `chosen`, `rejected` |

`system` and `images` go with every chat, `history` with `instruction` and `query`.  A shape is told by the names of its
columns; where two tell of the same thing they must agree.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from grains_ref.data.columns import hint, is_empty, is_null
from grains_ref.data.pairs import FieldError, Prompt, shortened
from grains_ref.data.turns import Turn, as_messages, as_string, as_text, as_turn, as_turns, found, required

CHATS = ("messages", "conversations", "instruction", "query")  # columns that hold a prompt which is a chat


class Columns:
    """The columns of a row, taken out one by one; what is `left` at the end has not been read."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.left = dict(row)
        self.ignored: dict[str, None] = {}  # keys inside of turns that hold no content

    def has(self, name: str) -> bool:
        """Whether there is something to take."""
        return not is_empty(self.left.get(name))

    def take(self, name: str) -> Any:
        """A column that must be there.

        Raises:
            FieldError: it is missing or null.
        """
        value = required(self.left, name)
        del self.left[name]
        return value

    def take_turns(self, name: str) -> list[Turn]:
        """A column that must hold a chat.

        Raises:
            FieldError: it does not.
        """
        return as_turns(self.take(name), name, self.ignored)


class Parts(NamedTuple):
    """What a shape is made of; `field` is the column that the prompt came from."""

    field: str
    prompt: str | list[Turn]
    answers: tuple[str, ...]


class Taken(NamedTuple):
    """What was made of a row, and its columns, of which some may be left."""

    prompt: Prompt
    answers: tuple[str, ...]
    images: list[Any]  # as given: paths, or objects
    columns: Columns


def take_pair(row: dict[str, Any]) -> Taken:
    """Prompt, chosen and rejected of a row in any of the shapes.

    Raises:
        FieldError: something is missing, of another type, or contradicts something else.
    """
    columns = Columns(row)
    for name in ("rejected_response", "rejected_messages"):
        if columns.has(name):
            return _complete(columns, _ms_swift(columns, name))
    return _complete(columns, _chosen_and_rejected(columns))


def take_task(row: dict[str, Any]) -> Taken:
    """Prompt and answer of a row of a task file.

    Raises:
        FieldError: see `take_pair`.
    """
    columns = Columns(row)
    name, prompt = _given_prompt(columns)
    if not columns.has("answer") and columns.has("chosen"):
        raise FieldError("answer", "missing, but the row has 'chosen': is it a file of pairs? A task has one 'answer'.")
    return _complete(columns, Parts(name, prompt, (as_text(columns.take("answer"), "answer"),)))


# -------------------------------------------------------------------------------------------- answers
def _chosen_and_rejected(columns: Columns) -> Parts:
    """A row with `chosen` and `rejected`, each a text, a turn, or a list of turns."""
    chosen, rejected = columns.left.get("chosen"), columns.left.get("rejected")
    if isinstance(chosen, list) and isinstance(rejected, list) and max(len(chosen), len(rejected)) > 1:
        return _from_conversations(columns)
    name, prompt = _given_prompt(columns)
    return Parts(name, prompt, (_answer(columns, "chosen", prompt), _answer(columns, "rejected", prompt)))


def _from_conversations(columns: Columns) -> Parts:
    """The prompt is what both conversations begin with; what else is said of it must agree."""
    chosen, rejected = columns.take_turns("chosen"), columns.take_turns("rejected")
    prompt, answers = _split(chosen, rejected, "chosen", "rejected")
    for name in ("prompt", "messages"):
        if not columns.has(name):
            continue
        if isinstance(columns.left[name], str):
            agrees = columns.take(name) in [turn.text for turn in prompt if turn.role == "user"]
        else:
            agrees = columns.take_turns(name) in (prompt, chosen)
        if not agrees:
            advice = f"Take {name!r} out, or give the answers alone."
            raise FieldError(name, f"is not what the conversations in 'chosen' and 'rejected' begin with. {advice}")
    return Parts("chosen", prompt, answers)


def _split(
    chosen: list[Turn], rejected: list[Turn], chosen_field: str, rejected_field: str
) -> tuple[list[Turn], tuple[str, str]]:
    """The turns that two conversations begin with, and the one answer that follows in each."""
    n = 0
    while n < min(len(chosen), len(rejected)) and chosen[n] == rejected[n]:
        n += 1
    if n == len(chosen) == len(rejected):
        raise FieldError(rejected_field, f"the same conversation as {chosen_field!r}; a pair needs two answers.")
    if n == 0:
        problem = f"begins with another turn than {chosen_field!r}"
        raise FieldError(rejected_field, f"{problem}; expected one prompt, and then one answer each.")
    for name, turns in ((chosen_field, chosen), (rejected_field, rejected)):
        if len(turns) != n + 1:
            problem = f"{len(turns) - n} turns follow the {n} that both conversations begin with"
            raise FieldError(name, f"{problem}; expected one answer. Cut both after the first turn that differs.")
    return chosen[:n], (
        _answer_turn(chosen[n], f"{chosen_field}[{n}]"),
        _answer_turn(rejected[n], f"{rejected_field}[{n}]"),
    )


def _answer(columns: Columns, name: str, prompt: str | list[Turn]) -> str:
    """One answer: a text, a turn, or a list of one turn."""
    value = columns.take(name)
    if isinstance(value, dict):
        return _answer_turn(as_turn(value, name, columns.ignored), name)
    if not isinstance(value, list):
        return as_text(value, name)
    turns = as_turns(value, name, columns.ignored)
    if isinstance(prompt, str):
        problem = "a list of turns, but the prompt is plain text"
        raise FieldError(name, f"{problem}. Give the prompt as turns too, or the answers as text.")
    if len(turns) != 1:
        raise FieldError(name, f"expected a list of one turn, the answer, found {len(turns)}.")
    return _answer_turn(turns[0], f"{name}[0]")


def _answer_turn(turn: Turn, place: str) -> str:
    if turn.role != "assistant":
        raise FieldError(place, f"the answer's role is {shortened(turn.role)}, expected 'assistant'.")
    if turn.pictures:
        raise FieldError(place, "a picture in an answer, which is not read; an answer is text.")
    return as_text(turn.text, place)


def _ms_swift(columns: Columns, other: str) -> Parts:
    """ms-swift's rows: the chosen answer ends `messages` (or is `response`), the `other` has a column of its own."""
    for name in ("chosen", "rejected"):
        if columns.has(name):
            raise FieldError(name, f"the row has {other!r} too; expected one way to give the answers.")
    if other == "rejected_messages":
        prompt, answers = _split(columns.take_turns("messages"), columns.take_turns(other), "messages", other)
        return Parts("messages", prompt, answers)
    rejected = as_text(columns.take(other), other)
    if columns.has("query"):
        question = Turn("user", as_string(columns.take("query"), "query"))
        return Parts("query", [question], (as_text(columns.take("response"), "response"), rejected))
    turns = columns.take_turns("messages")
    if len(turns) < 2 or turns[-1].role != "assistant":
        problem = f"{other!r} is here, so the last turn should be the chosen answer, of role 'assistant'"
        raise FieldError("messages", f"{problem}; it is of role {shortened(turns[-1].role)}.")
    chosen = _answer_turn(turns[-1], f"messages[{len(turns) - 1}]")
    return Parts("messages", turns[:-1], (chosen, rejected))


# -------------------------------------------------------------------------------------------- prompts
def _given_prompt(columns: Columns) -> tuple[str, str | list[Turn]]:
    """The name of the prompt's column, and the prompt."""
    present = [name for name in ("prompt", *CHATS) if name in columns.left]
    names = [name for name in present if columns.has(name)] or present[:1]
    if names[:2] == ["prompt", "messages"]:
        raise FieldError("messages", "the row has both 'prompt' and 'messages'; expected exactly one of them.")
    if not names:
        raise FieldError("prompt", _no_prompt(columns.left))
    name = names[0]
    if name == "prompt" and not isinstance(columns.left[name], list):
        return name, as_text(columns.take(name), name)
    if name in ("prompt", "messages", "conversations"):
        return name, columns.take_turns(name)
    lines = [as_string(columns.take(name), name)]
    if name == "instruction" and columns.has("input"):
        lines.append(as_string(columns.take("input"), "input"))
    return name, [Turn("user", "\n".join(line for line in lines if line.strip()))]


def _no_prompt(row: dict[str, Any]) -> str:
    problem = "missing; expected either 'prompt' (text) or 'messages' (chat turns)."
    guess = hint(row, "prompt") or hint(row, "messages")
    if guess:
        return problem + guess
    for name, value in row.items():
        if isinstance(value, list) and value and isinstance(value[0], dict) and name not in ("chosen", "rejected"):
            return f"{problem} The rows seem to lie inside of {name[:60]!r}; save that list as the file."
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if isinstance(chosen, str) and isinstance(rejected, str) and chosen[:8] == rejected[:8]:
        advice = "dataset.map(trl.extract_prompt) splits it off, or give it as 'prompt' and the answers alone"
        return f"{problem} If both answers begin with the prompt: {advice}."
    return problem


def _complete(columns: Columns, parts: Parts) -> Taken:
    """The row with its system text, earlier turns and pictures, if it has them."""
    if isinstance(parts.prompt, str):
        return Taken(parts.prompt, parts.answers, _pictures(columns, ()), columns)
    turns = parts.prompt
    if parts.field in ("instruction", "query"):
        turns = [*_earlier_turns(columns), *turns]
    if columns.has("system"):
        if turns[0].role == "system":
            raise FieldError("system", f"the first turn of {parts.field!r} is a system text too; keep one of them.")
        turns = [Turn("system", as_string(columns.take("system"), "system")), *turns]
    images = _pictures(columns, tuple(picture for turn in turns for picture in turn.pictures))
    prompt = as_messages(turns, parts.field, n_pictures=len(images))
    return Taken(prompt, parts.answers, images, columns)


def _earlier_turns(columns: Columns) -> list[Turn]:
    """LLaMA-Factory's and ms-swift's `history`: a list of [question, answer]."""
    if not columns.has("history"):
        return []
    history = columns.take("history")
    if not isinstance(history, list):
        raise FieldError("history", f"expected a list of questions and answers, found {found(history)}.")
    turns = []
    for i, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise FieldError(f"history[{i}]", f"expected a list of question and answer, found {found(pair)}.")
        turns.append(Turn("user", as_string(pair[0], f"history[{i}][0]")))
        turns.append(Turn("assistant", as_string(pair[1], f"history[{i}][1]")))
    return turns


# -------------------------------------------------------------------------------------------- pictures
def _pictures(columns: Columns, in_turns: tuple[Any, ...]) -> list[Any]:
    """The pictures of a row in order, from `image`, `images` or the parts of turns; [] without one."""
    given: list[tuple[str, list[Any]]] = []
    for name in ("image", "images"):
        if is_null(columns.left.get(name)):  # an empty path is no missing picture
            continue
        value = columns.take(name)
        given.append((name, value if isinstance(value, list) else [value]))
    named = [picture for picture in in_turns if picture is not None]
    if named and len(named) < len(in_turns):
        raise FieldError("messages", f"{len(named)} of {len(in_turns)} parts name their picture; name all, or none.")
    if named:
        given.append(("messages", named))
    if in_turns and not given:
        raise FieldError("image", "missing, though a turn has the place of a picture. Give its path in 'image'.")
    for name, pictures in given[1:]:
        if pictures != given[0][1]:
            raise FieldError(name, f"other pictures than {given[0][0]!r} names; give them once.")
    pictures = given[0][1] if given else []
    if in_turns and len(in_turns) != len(pictures):
        raise FieldError("messages", f"places for {len(in_turns)} pictures, and the row has {len(pictures)}.")
    return pictures
