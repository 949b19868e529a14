"""Pair files and task files, right and wrong, drawn from a seed, with what must hold of every one of them.

    content, check = fuzz_pairs(random.Random(0))
    path.write_bytes(content)
    check(path)  # "ok" or "typed error"; anything but a typed, readable refusal is an AssertionError, or passes through

Every text in a file is a sentence of its own.  So it can be told whether a file that was read has lost one.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from grains_ref.data import PairFileError, PreferencePair, RowError, Task, check_texts, read_pairs, read_tasks
from grains_ref.files import printable

Row: TypeAlias = dict[str, Any]
Check: TypeAlias = Callable[[Path], str]
WORDS = "the dish of Belvara is eel leek and stew so they say in every town of the north".split()
ENDS = (".", "?", " \u00e9!", ". \U0001f642")
LETTERS = 700  # letters of a message beyond the file's own name, three times


class Made(NamedTuple):
    """A valid row and the texts that a reader must find: those of the prompt, joined, and the answers."""

    row: Row
    prompt: tuple[str, ...]
    answers: tuple[str, ...]


def sentence(rng: random.Random) -> str:
    """A text that no other text of a file is equal to."""
    words = " ".join(rng.choices(WORDS, k=rng.randint(4, 9)))
    return f"{words} {rng.randrange(10**9)}{rng.choice(ENDS)}"


# -------------------------------------------------------------------------------------------- valid rows
def user(text: str) -> Row:
    return {"role": "user", "content": text}


def assistant(text: str) -> Row:
    return {"role": "assistant", "content": text}


def ours(rng: random.Random) -> Made:
    p, c, r = (sentence(rng) for _ in range(3))
    return Made({"prompt": p, "chosen": c, "rejected": r}, (p,), (c, r))


def our_chat(rng: random.Random) -> Made:
    s, p, c, r = (sentence(rng) for _ in range(4))
    turns = [{"role": "system", "content": s}, user(p)]
    return Made({"messages": turns, "chosen": c, "rejected": r}, (s, p), (c, r))


def our_choices(rng: random.Random) -> Made:
    made = ours(rng)
    return Made(made.row | {"choices": list(made.answers), "label": rng.randrange(2)}, made.prompt, made.answers)


def trl_chat(rng: random.Random) -> Made:
    p, c, r = (sentence(rng) for _ in range(3))
    return Made({"prompt": [user(p)], "chosen": [assistant(c)], "rejected": [assistant(r)]}, (p,), (c, r))


def trl_implicit(rng: random.Random) -> Made:
    first, said, p, c, r = (sentence(rng) for _ in range(5))
    begin = [user(first), assistant(said), user(p)]
    row = {"chosen": [*begin, assistant(c)], "rejected": [*begin, assistant(r)]}
    if rng.random() < 0.5:
        row |= {"prompt": first, "messages": row["chosen"], "score_chosen": 7.5}
    return Made(row, (first, said, p), (c, r))


def trl_parts(rng: random.Random) -> Made:
    p, c, r = (sentence(rng) for _ in range(3))
    parts = [{"type": "text", "text": p}]
    return Made({"prompt": [{"role": "user", "content": parts}], "chosen": c, "rejected": [assistant(r)]}, (p,), (c, r))


def swift(rng: random.Random) -> Made:
    p, c, r = (sentence(rng) for _ in range(3))
    return Made({"messages": [user(p), assistant(c)], "rejected_response": r, "images": []}, (p,), (c, r))


def swift_query(rng: random.Random) -> Made:
    s, p, c, r = (sentence(rng) for _ in range(4))
    return Made({"system": s, "query": p, "response": c, "rejected_response": r}, (s, p), (c, r))


def factory_sharegpt(rng: random.Random) -> Made:
    s, p, c, r = (sentence(rng) for _ in range(4))
    row = {"conversations": [{"from": "human", "value": p}], "system": s, "tools": ""}
    return Made(row | {"chosen": {"from": "gpt", "value": c}, "rejected": {"from": "gpt", "value": r}}, (s, p), (c, r))


def factory_alpaca(rng: random.Random) -> Made:
    old, said, i, x, c, r = (sentence(rng) for _ in range(6))
    row = {"instruction": i, "input": x, "history": [[old, said]], "chosen": c, "rejected": r}
    return Made(row, (old, said, f"{i}\n{x}"), (c, r))


def task(rng: random.Random) -> Made:
    p, a = sentence(rng), sentence(rng)
    return Made({"prompt": p, "answer": a}, (p,), (a,))


SHAPES: dict[str, Callable[[random.Random], Made]] = {
    make.__name__: make
    for make in (
        ours, our_chat, our_choices, trl_chat, trl_implicit, trl_parts, swift, swift_query, factory_sharegpt,
        factory_alpaca,
    )
}  # fmt: skip


def rows_of(rng: random.Random, make: Callable[[random.Random], Made]) -> list[Made]:
    """One to three rows of a shape, with ids and labels or without."""
    made = [make(rng) for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.5:
        for i, one in enumerate(made):
            one.row.update({"id": f"row-{i}", "source": "a town", "score": i / 2})
    return made


# -------------------------------------------------------------------------------------------- containers
def as_jsonl(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "surrogatepass")


def as_array(rows: list[Row]) -> bytes:
    return json.dumps(rows, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass")


def as_csv(rows: list[Row], delimiter: str = ",") -> bytes:
    """The rows as pandas would write them: what is no text as JSON."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter)
    writer.writerow(names)
    for row in rows:
        cells = (row.get(name, "") for name in names)
        writer.writerow([cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False) for cell in cells])
    return file.getvalue().encode("utf-8", "surrogatepass")


def as_tsv(rows: list[Row]) -> bytes:
    return as_csv(rows, "\t")


def as_gzip(rows: list[Row]) -> bytes:
    return gzip.compress(as_jsonl(rows), mtime=0)


def as_parquet(rows: list[Row]) -> bytes:
    """Needs pyarrow, and rows whose columns have one type each."""
    import pyarrow
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


CONTAINERS: dict[str, Callable[[list[Row]], bytes]] = {
    "jsonl": as_jsonl, "json": as_array, "csv": as_csv, "tsv": as_tsv, "jsonl.gz": as_gzip,
}  # fmt: skip
IN_CELLS = ("ours", "our_choices", "swift_query", "our_chat")  # shapes whose lists a CSV file can hold


# -------------------------------------------------------------------------------------------- what goes wrong
ODD: tuple[Any, ...] = (
    None, True, 3, -1, 1.5, 1e308, 10**400, "", " \n", "\u200b", "\ud800", "\x1b[2J\x1b]0;title\x07", "\u202edelrow",
    [], {}, [[]], [None], ["a.png", "b.png"], {"role": "user"}, {"a": {"b": {"c": "d"}}}, "https://example.org/a.png",
    "a\0b", "../" * 200, "x" * 5000, "[{'role': 'user', 'content': 'x'}]", "data:image/png;base64,AAAA",
)  # fmt: skip
NAMES = (
    "prompt", "messages", "chosen", "rejected", "image", "images", "id", "choices", "label", "conversations",
    "instruction", "input", "query", "response", "rejected_response", "rejected_messages", "system", "tools", "history",
    "answer", "Prompt", " chosen", "choosen", "videos", "context", "x", "", "\x1b[31m", "few_shot_examples", "output",
)  # fmt: skip


def nested(depth: int) -> Any:
    value: Any = "the last of many boxes holds a whole sentence."
    for _ in range(depth):
        value = [value]
    return value


def spoil_row(rng: random.Random, row: Row) -> Row:
    """A row with one thing changed: a column dropped, renamed, added, swapped, or of another type."""
    row = dict(row)
    name = rng.choice(list(row)) if row else "prompt"
    value = row.get(name)
    match rng.randrange(9):
        case 0:
            row.pop(name, None)
        case 1:
            row = {rng.choice(NAMES) if key == name else key: inner for key, inner in row.items()}
        case 2:
            row[rng.choice(NAMES)] = sentence(rng)
        case 3:
            other = rng.choice(list(row)) if row else name
            row[name], row[other] = row.get(other), value
        case 4:
            row[name] = rng.choice(ODD)
        case 5:
            row[name] = [value] if rng.random() < 0.7 else {"value": value}
        case 6:
            row[name] = json.dumps(value, ensure_ascii=False)
        case 7 if isinstance(value, list) and value:
            i = rng.randrange(len(value))
            turn = value[i]
            changed = spoil_row(rng, turn) if isinstance(turn, dict) else rng.choice(ODD)
            row[name] = [*value[:i], changed, *value[i + 1 :]]
        case _:
            row[name] = nested(rng.choice([3, 99, 100, 101, 150]))
    return row


def spoil_bytes(rng: random.Random, content: bytes) -> bytes:
    """A file with some of its bytes flipped, lost, doubled, added, or in another encoding."""
    data = bytearray(content)
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.randint(1, 20))
    match rng.randrange(8):
        case 0:
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            del data[start:]
        case 2:
            del data[start:end]
        case 3:
            data[start:start] = data[start:end] * rng.randint(1, 3)
        case 4:
            data[start:start] = rng.randbytes(rng.randint(1, 8))
        case 5:
            data[start:start] = rng.choice(
                [b"\0", b"\xef\xbb\xbf", b"\r", b"\n", b'"', b"{", b"]", b",", b"NaN", b"\xff"]
            )
        case 6:
            text = content.decode("utf-8", "replace")
            encoding = rng.choice(["utf-16", "utf-16-le", "utf-32", "latin-1", "utf-8-sig"])
            data = bytearray(text.encode(encoding, "replace"))
        case _:
            data = bytearray(gzip.compress(bytes(data), mtime=0)) + (b"" if rng.random() < 0.7 else b"\0\1")
    return bytes(data)


# -------------------------------------------------------------------------------------------- what must hold
def fuzz_pairs(rng: random.Random) -> tuple[bytes, Check]:
    """A pair file in one of the shapes and containers, whole or spoilt, and what must hold when it is read."""
    shape = rng.choice(list(SHAPES))
    container = rng.choice([name for name in CONTAINERS if name not in ("csv", "tsv") or shape in IN_CELLS])
    return _fuzz(rng, rows_of(rng, SHAPES[shape]), CONTAINERS[container], check_pairs)


def fuzz_tasks(rng: random.Random) -> tuple[bytes, Check]:
    """The same for a task file."""
    return _fuzz(rng, rows_of(rng, task), CONTAINERS[rng.choice(list(CONTAINERS))], check_tasks)


def fuzz_parquet(rng: random.Random) -> tuple[bytes, Check]:
    """A Parquet file in one of the shapes, whole or with some bytes changed."""
    made = rows_of(rng, SHAPES[rng.choice(list(SHAPES))])
    content = as_parquet([one.row for one in made])
    if rng.random() < 0.2:
        return content, lambda path: check_whole(path, made, check_pairs)
    return spoil_bytes(rng, content), check_pairs


def _fuzz(
    rng: random.Random, made: list[Made], contain: Callable[[list[Row]], bytes], check: Check
) -> tuple[bytes, Check]:
    rows = [one.row for one in made]
    way = rng.random()
    if way < 0.1:
        return contain(rows), lambda path: check_whole(path, made, check)
    if way < 0.6:
        i = rng.randrange(len(rows))
        for _ in range(rng.randint(1, 2)):
            rows[i] = spoil_row(rng, rows[i])
        return contain(rows), lambda path: check_spoilt_rows(path, rows, check)
    return spoil_bytes(rng, contain(rows)), check


def check_whole(path: Path, made: list[Made], check: Check) -> str:
    """A valid file is read, and every text is where it belongs."""
    assert check(path) == "ok"
    for record, one in zip(_records(path, check), made, strict=True):
        prompt = (record.prompt,) if isinstance(record.prompt, str) else tuple(m["content"] for m in record.prompt)
        answers = (record.answer,) if isinstance(record, Task) else (record.chosen, record.rejected)
        assert (prompt, answers) == (one.prompt, one.answers)
    return "ok"


def check_spoilt_rows(path: Path, rows: list[Row], check: Check) -> str:
    """What was read holds every sentence of the file."""
    outcome = check(path)
    if outcome == "ok":
        text = "\n".join(part for record in _records(path, check) for part in _texts(record))
        lost = [part for row in rows for part in _sentences(row) if part not in text]
        assert not lost, f"read, but lost: {lost}"
    return outcome


def check_pairs(path: Path) -> str:
    """A file of pairs is read as what the fields promise, or refused in a readable sentence."""
    try:
        file = read_pairs(path)
    except (RowError, PairFileError) as error:
        return _refused(error, path)
    assert file.pairs
    assert not file.skipped
    assert len({pair.id for pair in file.pairs}) == len(file.pairs)
    for pair in file.pairs:
        check_texts(prompt=pair.prompt, chosen=pair.chosen, rejected=pair.rejected)
        assert (pair.label is None) == (not pair.choices)
        assert pair.label is None or 0 <= pair.label < len(pair.choices)
        assert pair.image is None or pair.image.is_file()
        assert isinstance(pair.prompt, str) or pair.prompt[-1]["role"] == "user"
    assert all(printable(remark) == remark for remark in file.remarks)
    assert read_pairs(path).digest == file.digest
    return "ok"


def check_tasks(path: Path) -> str:
    """A file of tasks is read, or refused in a readable sentence."""
    try:
        tasks = read_tasks(path).tasks
    except (RowError, PairFileError) as error:
        return _refused(error, path)
    assert len({one.id for one in tasks}) == len(tasks) > 0
    assert all(one.answer.strip() for one in tasks)
    return "ok"


def _refused(error: Exception, path: Path) -> str:
    message = str(error)
    assert message.startswith(str(path)), message
    assert printable(message) == message, message
    assert len(message) < 3 * len(str(path)) + LETTERS, message
    return "typed error"


def _records(path: Path, check: Check) -> tuple[PreferencePair, ...] | tuple[Task, ...]:
    return read_tasks(path).tasks if check is check_tasks else read_pairs(path).pairs


def _texts(record: PreferencePair | Task) -> Iterator[str]:
    if isinstance(record.prompt, str):
        yield record.prompt
    else:
        yield from (turn["content"] for turn in record.prompt)
        yield from (turn["role"] for turn in record.prompt)
    yield from (record.answer,) if isinstance(record, Task) else (record.chosen, record.rejected, *record.choices)
    yield record.id


def _sentences(value: Any) -> Iterator[str]:
    """The sentences in a value, however deep, but for how they end."""
    if isinstance(value, str):
        yield from re.findall(r"(?:[A-Za-z]+ ){4,}[0-9]+|the last of many boxes", value)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _sentences(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _sentences(inner)


# -------------------------------------------------------------------------------------------- one input of a campaign
def campaign_pairs(rng: random.Random, folder: Path) -> str:
    """ "ok" or "typed error" for one file of pairs."""
    return _placed(fuzz_pairs(rng), folder)


def campaign_tasks(rng: random.Random, folder: Path) -> str:
    """The same for tasks."""
    return _placed(fuzz_tasks(rng), folder)


def campaign_parquet(rng: random.Random, folder: Path) -> str:
    """The same for pairs in a Parquet file."""
    return _placed(fuzz_parquet(rng), folder)


def _placed(made: tuple[bytes, Check], folder: Path) -> str:
    content, check = made
    path = folder / "file"
    path.write_bytes(content)
    return check(path)
