"""Our own fields in JSONL: what is read, what is refused, and in which words."""

from __future__ import annotations

import codecs
import hashlib
import json
import pickle
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grains_ref.data import (
    FieldError,
    PairFileError,
    PreferencePair,
    RowError,
    Task,
    Where,
    check_texts,
    check_tokens,
    content_digest,
    read_column,
    read_pairs,
    read_tasks,
    stream_pairs,
)
from grains_ref.files import printable

pytestmark = pytest.mark.cpu

GOOD = {"prompt": "Is it flat?", "chosen": "No.", "rejected": "Yes."}
CHAT = [{"role": "system", "content": ""}, {"role": "user", "content": "Is it flat?"}]
LETTERS = st.characters(codec="utf-8", exclude_categories=("Cc", "Cf", "Cs"))
TEXT = st.text(LETTERS, min_size=1, max_size=30).filter(str.strip)


def is_printable(text: str) -> bool:
    return printable(text) == text


def as_settled(text: str) -> str:
    return unicodedata.normalize("NFC", text.lstrip())


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def write(folder: Path, *rows: Any, name: str = "pairs.jsonl") -> Path:
    """Write rows (objects as JSON, text and bytes as they are), one per line."""
    lines = [
        row if isinstance(row, bytes) else row.encode() if isinstance(row, str) else json.dumps(row).encode()
        for row in rows
    ]
    path = folder / name
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def error_of(folder: Path, *rows: Any) -> RowError:
    with pytest.raises(RowError) as caught:
        read_pairs(write(folder, *rows))
    return caught.value


# --- good files


def test_a_plain_row_becomes_a_pair_and_its_line_number_the_default_id(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    assert read_pairs(path).pairs == (
        PreferencePair(id="000001", prompt="Is it flat?", chosen="No.", rejected="Yes.", where=Where(str(path), 1)),
    )
    assert str(read_pairs(path).pairs[0].where) == f"{path}:1"


def test_chat_messages_are_kept_as_turns_without_their_extra_keys(tmp_path: Path) -> None:
    turns = [CHAT[0], CHAT[1] | {"weight": 1}]
    (pair,) = read_pairs(write(tmp_path, without(GOOD, "prompt") | {"messages": turns})).pairs
    assert pair.prompt == tuple(CHAT)


def test_choices_and_label_are_read(tmp_path: Path) -> None:
    (pair,) = read_pairs(write(tmp_path, GOOD | {"choices": ["No.", "Yes."], "label": 1})).pairs
    assert (pair.choices, pair.label) == (("No.", "Yes."), 1)


@pytest.mark.parametrize("label", [1, "harmless", [1], None, 0.5])
def test_a_label_without_choices_is_another_column(tmp_path: Path, label: object) -> None:
    (pair,) = read_pairs(write(tmp_path, GOOD | {"label": label})).pairs
    assert (pair.choices, pair.label) == ((), None)


def test_an_image_path_counts_from_the_folder_of_the_pair_file(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"a")
    path = write(tmp_path, GOOD | {"image": "pictures/a.png"})
    monkeypatch.chdir(tmp_path / "pictures")
    assert read_pairs(path).pairs[0].image == tmp_path / "pictures" / "a.png"


@pytest.mark.parametrize(("given_id", "expected"), [("a", "a"), (7, "7"), (None, "000001")])
def test_ids_may_be_text_or_integers(tmp_path: Path, given_id: Any, expected: str) -> None:
    assert read_pairs(write(tmp_path, GOOD | {"id": given_id})).pairs[0].id == expected


def test_null_counts_as_absent_and_other_fields_are_ignored(tmp_path: Path) -> None:
    row = GOOD | {
        "messages": None,
        "image": None,
        "choices": None,
        "label": None,
        "category": {"a": [1, 2.5]},
    }
    file = read_pairs(write(tmp_path, row))
    assert file.pairs == read_pairs(write(tmp_path, GOOD)).pairs
    assert file.ignored_columns == ("category",)


def test_blank_lines_carriage_returns_and_a_byte_order_mark_are_accepted(tmp_path: Path) -> None:
    line = json.dumps(GOOD).encode()
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(codecs.BOM_UTF8 + b"\r\n" + line + b"\r\n  \t\r\n\r\n" + line)
    file = read_pairs(path)
    assert [str(pair.where) for pair in file.pairs] == [f"{path}:2", f"{path}:5"]
    assert [pair.id for pair in file.pairs] == ["000002", "000005"]
    assert file.skipped == ()


def test_a_byte_order_mark_directly_before_the_first_row_is_accepted(tmp_path: Path) -> None:
    assert len(read_pairs(write(tmp_path, codecs.BOM_UTF8 + json.dumps(GOOD).encode())).pairs) == 1


def test_an_empty_system_turn_is_allowed_but_an_empty_question_is_not(tmp_path: Path) -> None:
    row = without(GOOD, "prompt")
    read_pairs(write(tmp_path, row | {"messages": CHAT}))
    error = error_of(tmp_path, row | {"messages": [CHAT[0], {"role": "user", "content": " "}]})
    assert error.field == "messages[1].content"
    assert "only white space" in str(error)


@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(
        st.tuples(TEXT, TEXT, TEXT).filter(lambda row: as_settled(row[1]) != as_settled(row[2])),
        min_size=1,
        max_size=4,
    ),
    ascii_only=st.booleans(),
)
def test_any_unicode_text_survives_the_file(tmp_path_factory: Any, rows: Any, ascii_only: bool) -> None:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    objects = [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows]
    path.write_bytes("\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in objects).encode())
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in read_pairs(path).pairs] == rows


@pytest.mark.parametrize("break_", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r", "\n", "\r\n"])
def test_no_line_break_of_unicode_inside_a_text_splits_a_row(tmp_path: Path, break_: str) -> None:
    row = GOOD | {"chosen": f"No 🙂.{break_}Never."}
    assert read_pairs(write(tmp_path, json.dumps(row, ensure_ascii=False))).pairs[0].chosen == row["chosen"]


# --- streaming and skipping


def test_a_stream_yields_bad_rows_in_place_and_goes_on(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, "{", GOOD | {"chosen": ""}, GOOD)
    items = list(stream_pairs(path))
    assert [type(item) for item in items] == [PreferencePair, RowError, RowError, PreferencePair]
    assert isinstance(items[2], RowError)
    assert (items[2].path, items[2].line, items[2].field) == (path, 3, "chosen")


def test_without_skipping_the_first_bad_row_is_raised(tmp_path: Path) -> None:
    assert error_of(tmp_path, GOOD, GOOD | {"rejected": " "}, "{").line == 2


def test_skipped_rows_are_listed_and_do_not_touch_the_digest(tmp_path: Path) -> None:
    rows = [GOOD | {"id": "a"}, GOOD | {"id": "b"}]
    with_bad = read_pairs(write(tmp_path, rows[0], "{", rows[1]), skip_bad_rows=True)
    assert [error.line for error in with_bad.skipped] == [2]
    assert with_bad.digest == read_pairs(write(tmp_path, *rows)).digest


def test_a_file_of_bad_rows_only_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    with pytest.raises(PairFileError, match=r"no good row: all 2 rows are bad.*pairs.jsonl:1: not JSON"):
        read_pairs(write(tmp_path, "{", "}"), skip_bad_rows=True)


def test_a_skipped_row_does_not_use_up_its_id(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD | {"id": "a", "chosen": ""}, GOOD | {"id": "a"})
    assert [pair.id for pair in read_pairs(path, skip_bad_rows=True).pairs] == ["a"]


# --- bad files


def test_a_missing_file_is_named_with_the_folder_looked_in(tmp_path: Path) -> None:
    with pytest.raises(PairFileError, match="no such file") as caught:
        read_pairs(tmp_path / "none.jsonl")
    assert str(tmp_path) in str(caught.value)


def test_a_directory_is_refused_as_one(tmp_path: Path) -> None:
    with pytest.raises(PairFileError, match="is a directory"):
        read_pairs(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\n \r\n", codecs.BOM_UTF8])
def test_an_empty_file_is_called_empty(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    with pytest.raises(PairFileError, match="the file is empty"):
        read_pairs(path)


# --- bad rows

ROW_ERRORS = {
    "not JSON": ('{"prompt": "a", chosen', "", ["not JSON", "column 17", '\'{"prompt": "a", chosen\'']),
    "two rows on a line": ("{} {}", "", ["not JSON", "column 4", "one complete object"]),
    "NaN": ('{"prompt": NaN}', "", ["NaN is no JSON number, though Python writes it"]),
    "Infinity": ('{"a": [-Infinity]}', "", ["-Infinity is no JSON number"]),
    "endless float": ('{"a": 1e999}', "", ["beyond the range of a float64"]),
    "endless integer": ('{"a": 1' + "0" * 5000 + "}", "", ["cannot be read"]),
    "deep nesting": ('{"a": ' + "[" * 100_000, "", ["nested 100001 deep; at most 100 levels are read"]),
    "many fields": ({f"x{i}": 1 for i in range(1001)}, "", ["1,001 fields", "at most 1,000"]),
    "a large row": (GOOD | {"prompt": "x" * (1 << 23)}, "", ["bytes; at most 8,388,608 are read"]),
    "printed by Python": ("{'prompt': 'a'}", "", ["not JSON", "a dict that Python printed", "json.dumps"]),
    "plain text": (
        "hello",
        "",
        ["not JSON", 'A line of JSONL is such as {"prompt": ...'],
    ),
    "object over several lines": ("{", "", ["not JSON", "jq -c . OLD > NEW"]),
    "Latin-1": ('{"prompt": "caf\xe9"}'.encode("latin-1"), "", ["not UTF-8", "byte 16", "0xe9", "Latin-1"]),
    "UTF-16": ('{"prompt": 1}'.encode("utf-16"), "", ["not UTF-8", "UTF-16"]),
    "a string": ('"a"', "", ["expected an object", "a string ('a')"]),
    "a number": ("3", "", ["expected an object", "an integer (3)"]),
    "null": ("null", "", ["expected an object", "found null"]),
    "repeated field": ('{"chosen": "a", "chosen": "b"}', "", ["'chosen' is given twice in one object"]),
    "no prompt": (without(GOOD, "prompt"), "prompt", ["missing", "either 'prompt'", "or 'messages'"]),
    "both prompts": (GOOD | {"messages": CHAT}, "messages", ["both 'prompt' and 'messages'"]),
    "prompt of blanks": (GOOD | {"prompt": " \n"}, "prompt", ["only white space"]),
    "no chosen": (without(GOOD, "chosen"), "chosen", ["missing"]),
    "null rejected": (GOOD | {"rejected": None}, "rejected", ["missing (or null)"]),
    "empty chosen": (GOOD | {"chosen": ""}, "chosen", ["empty; expected text"]),
    "blank rejected": (GOOD | {"rejected": "\t\u3000"}, "rejected", ["only white space; expected text"]),
    "same answers": (GOOD | {"rejected": "No."}, "rejected", ["the same text as 'chosen'", "'No.'"]),
    "chosen a number": (GOOD | {"chosen": 3}, "chosen", ["expected a string", "an integer (3)"]),
    "same answers after a space": (GOOD | {"rejected": " No."}, "rejected", ["but for white space before it"]),
    "same answers after a line": (GOOD | {"rejected": "\n\tNo."}, "rejected", ["but for white space before it"]),
    "same answers composed": (
        GOOD | {"chosen": "caf\u00e9", "rejected": "cafe\u0301"},
        "rejected",
        ["composition of accents"],
    ),
    "invisible chosen": (GOOD | {"chosen": "\u200b\ufeff"}, "chosen", ["only invisible characters"]),
    "chosen control characters": (GOOD | {"chosen": "\x1b\x00"}, "chosen", ["only invisible characters"]),
    "chosen a chat": (GOOD | {"chosen": CHAT}, "chosen", ["a list of turns, but the prompt is plain text"]),
    "a chat as text": (GOOD | {"prompt": str(CHAT)}, "prompt", ["a list of messages written out as text", "JSONL"]),
    "a chat as JSON": (GOOD | {"chosen": json.dumps(CHAT)}, "chosen", ["a list of messages written out as text"]),
    "prompt a boolean": (GOOD | {"prompt": True}, "prompt", ["true/false (True)"]),
    "half an emoji": (GOOD | {"chosen": "\ud83d"}, "chosen", ["surrogate"]),
    "id a boolean": (GOOD | {"id": True}, "id", ["a string or an integer", "true/false"]),
    "id a decimal": (GOOD | {"id": 1.5}, "id", ["a decimal number (1.5)"]),
    "id empty": (GOOD | {"id": ""}, "id", ["empty"]),
    "no image": (GOOD | {"image": "a.png"}, "image", ["does not exist", "counted from /"]),
    "image a folder": (GOOD | {"image": "."}, "image", ["is a directory"]),
    "image base64": (GOOD | {"image": "iVBORw0KGgo" * 500}, "image", ["does not exist", "..."]),
    "image NUL": (GOOD | {"image": "a\0b"}, "image", ["does not exist"]),
    "image empty": (GOOD | {"image": ""}, "image", ["empty"]),
    "image a number": (
        GOOD | {"image": 3},
        "image",
        ["expected a string, found an integer (3). Write it in quotation marks"],
    ),
    "image an address": (GOOD | {"image": "https://a.org/b.png"}, "image", ["is an address", "Download the picture"]),
    "image in the row": (GOOD | {"image": "data:image/png;base64,iVBO"}, "image", ["is an address", "save it"]),
    "choices alone": (GOOD | {"choices": ["a", "b"]}, "label", ["the row has 'choices'"]),
    "one choice": (GOOD | {"choices": ["a"], "label": 0}, "choices", ["at least 2", "a list of 1"]),
    "choices text": (GOOD | {"choices": "ab", "label": 0}, "choices", ["at least 2", "a string ('ab')"]),
    "choice empty": (GOOD | {"choices": ["a", ""], "label": 0}, "choices[1]", ["empty"]),
    "choice a number": (GOOD | {"choices": ["a", 1], "label": 0}, "choices[1]", ["an integer (1)"]),
    "choices repeat": (GOOD | {"choices": ["a", "b", "b"], "label": 0}, "choices", ["'b'", "more than once"]),
    "label a boolean": (
        GOOD | {"choices": ["a", "b"], "label": True},
        "label",
        ["integer index", "true/false"],
    ),
    "label a decimal": (GOOD | {"choices": ["a", "b"], "label": 1.0}, "label", ["a decimal number (1.0)"]),
    "label too large": (GOOD | {"choices": ["a", "b"], "label": 2}, "label", ["expected 0 to 1"]),
    "label negative": (GOOD | {"choices": ["a", "b"], "label": -1}, "label", ["expected 0 to 1"]),
}


@pytest.mark.parametrize("case", ROW_ERRORS)
def test_every_bad_row_is_refused_in_its_own_words(tmp_path: Path, case: str) -> None:
    row, field, words = ROW_ERRORS[case]
    error = error_of(tmp_path, GOOD, row)
    place = f"{tmp_path / 'pairs.jsonl'}:2: " + (f"field '{field}': " if field else "")
    assert str(error).startswith(place)
    assert [word for word in words if word not in str(error)] == []
    assert len(str(error)) < len(str(tmp_path)) * 2 + 400  # a long value is cut


@pytest.mark.parametrize(
    ("messages", "field", "words"),
    [
        ([], "messages", ["an empty list"]),
        ("hello", "messages", ["expected a list", "a string ('hello')"]),
        (["hello"], "messages[0]", ["a string ('hello')"]),
        ([{"role": "user"}], "messages[0].content", ["missing"]),
        ([{"role": "user", "value": "a"}], "messages[0].content", ["'value': was 'content' meant?"]),
        ([{"from": "observation", "value": "a"}], "messages[0].from", ["'observation' is not read", "'human'"]),
        ([{"role": "user", "content": [{"type": "image"}]}], "messages[0].content", ["one part of text, found 0"]),
        (
            [*CHAT, {"role": "assistant", "content": "No."}],
            "messages",
            ["'assistant'", "'chosen' and 'rejected'"],
        ),
        ([{"role": "human", "content": "a"}], "messages", ["'human'", "expected 'user'"]),
    ],
)
def test_bad_chat_messages_are_named_by_turn(tmp_path: Path, messages: Any, field: str, words: list[str]) -> None:
    error = error_of(tmp_path, without(GOOD, "prompt") | {"messages": messages})
    assert error.field == field
    assert [word for word in words if word not in str(error)] == []


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("choosen", "chosen"),
        ("Chosen", "chosen"),
        ("chosen_response", "chosen"),
        ("response", "chosen"),
        ("reject", "rejected"),
        ("prompts", "prompt"),
        ("question", "prompt"),
    ],
)
def test_a_likely_misspelling_is_named_as_a_hint(tmp_path: Path, wrong: str, right: str) -> None:
    row = without(GOOD, right) | {"category": "x", wrong: GOOD[right]}
    assert str(error_of(tmp_path, row)).endswith(f"The row has '{wrong}': was '{right}' meant?")


def test_a_misspelt_messages_field_is_hinted_at_too(tmp_path: Path) -> None:
    assert "'message': was 'messages' meant?" in str(error_of(tmp_path, {"message": CHAT}))


def test_an_unrelated_field_is_no_hint(tmp_path: Path) -> None:
    assert "meant?" not in str(error_of(tmp_path, without(GOOD, "chosen") | {"source": "x", "category": "y"}))


@pytest.mark.parametrize("ids", [("a", "a"), (7, "7"), ("000002", None)])
def test_a_repeated_id_becomes_another_and_is_remarked_on(tmp_path: Path, ids: tuple[Any, Any]) -> None:
    file = read_pairs(write(tmp_path, *(GOOD | {"id": value} for value in ids)))
    names = [pair.id for pair in file.pairs]
    assert names[1] == f"{names[0]}#2"
    assert file.renamed_ids == (names[1],)
    assert file.remarks == (f"{tmp_path / 'pairs.jsonl'}: ids given more than once, made unique: {names[1]}",)


def test_made_up_ids_meet_no_given_one(tmp_path: Path) -> None:
    ids = ["a", "a#2", "a", "a", "a#2", "a"]
    file = read_pairs(write(tmp_path, *(GOOD | {"id": name} for name in ids)))
    assert [pair.id for pair in file.pairs] == ["a", "a#2", "a#3", "a#4", "a#2#2", "a#5"]
    ids = ["a", "a", "a#2"]  # the given one comes after the made-up one
    file = read_pairs(write(tmp_path, *(GOOD | {"id": name} for name in ids)))
    assert [pair.id for pair in file.pairs] == ["a", "a#2", "a#2#2"]


def test_errors_survive_pickling_as_worker_processes_need(tmp_path: Path) -> None:
    error = error_of(tmp_path, "{")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.path, copy.line) == (str(error), error.path, error.line)


# --- digest

FULL = GOOD | {"id": "a", "choices": ["No.", "Yes."], "label": 0}


def digest(folder: Path, *rows: Any, name: str = "pairs.jsonl") -> str:
    return read_pairs(write(folder, *rows, name=name)).digest


@settings(max_examples=15, deadline=None)
@given(
    order=st.permutations(sorted(FULL)),
    separators=st.sampled_from([(",", ":"), (" , ", " : "), (",\t", ":\t")]),
    extra=st.dictionaries(TEXT.map(lambda name: f"x_{name}"), st.none() | st.integers() | TEXT, max_size=3),
    ascii_only=st.booleans(),
)
def test_the_digest_does_not_see_key_order_white_space_or_extra_fields(
    tmp_path_factory: Any, order: list[str], separators: tuple[str, str], extra: Any, ascii_only: bool
) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    row = extra | {name: FULL[name] for name in order}
    line = json.dumps(row, separators=separators, ensure_ascii=ascii_only)
    assert digest(folder, line, name="other.jsonl") == digest(folder, FULL)


@pytest.mark.parametrize(
    "change",
    [
        {"id": "b"},
        {"prompt": "Is it flat? "},
        {"prompt": None, "messages": [{"role": "user", "content": "Is it flat?"}]},
        {"chosen": "no."},
        {"rejected": "Yes!"},
        {"choices": ["Yes.", "No."]},
        {"label": 1},
        {"choices": None, "label": None},
        {"image": "a.png"},
    ],
)
def test_the_digest_sees_every_field(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    assert digest(tmp_path, FULL | change) != digest(tmp_path, FULL)


@settings(max_examples=15, deadline=None)
@given(first=st.tuples(TEXT, TEXT), second=st.tuples(TEXT, TEXT))
def test_two_different_texts_never_share_a_digest(tmp_path_factory: Any, first: Any, second: Any) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    digests = [digest(folder, GOOD | {"prompt": p, "chosen": f"{c}1"}) for p, c in (first, second)]
    assert (digests[0] == digests[1]) == (first == second)


def test_the_digest_sees_the_order_of_rows(tmp_path: Path) -> None:
    rows = [GOOD | {"id": "a"}, GOOD | {"id": "b"}]
    assert digest(tmp_path, *rows) != digest(tmp_path, *reversed(rows))


def test_the_digest_sees_the_bytes_of_an_image_and_not_its_name(tmp_path: Path) -> None:
    for name, content in (("a.png", b"1"), ("b.png", b"1"), ("c.png", b"2")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (digest(tmp_path, GOOD | {"image": name}) for name in ("a.png", "b.png", "c.png"))
    assert a == b != c


def test_the_digest_is_the_sha256_of_one_canonical_text(tmp_path: Path) -> None:
    canonical = (
        '[{"choices":["No.","Yes."],"chosen":"No.","id":"a","image":null,"label":0,'
        '"prompt":"Is it flat?","rejected":"Yes."}]'
    )
    assert digest(tmp_path, FULL) == hashlib.sha256(canonical.encode()).hexdigest()


# --- the module


def test_data_needs_nothing_but_the_standard_library() -> None:
    code = "import sys; before = set(sys.modules); import grains_ref.data; print(*set(sys.modules) - before)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    roots = {name.partition(".")[0] for name in run.stdout.split()}
    assert roots - set(sys.stdlib_module_names) == {"grains_ref"}


# --- tokens

PAIR = PreferencePair(id="a", prompt="p", chosen="c", rejected="r", where=Where("some:dir/pairs.jsonl", 12))
FITTING = {"n_prompt": 10, "n_chosen": 3, "n_rejected": 6, "context": 16}


def test_a_row_that_just_fits_the_context_passes() -> None:
    check_tokens(PAIR, **FITTING)


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"n_prompt": 0}, "prompt", ["tokenises to nothing"]),
        ({"n_chosen": 0}, "chosen", ["tokenises to nothing"]),
        ({"n_rejected": 0}, "rejected", ["tokenises to nothing"]),
        ({"context": 15}, "prompt", ["10 prompt tokens + 6 of 'rejected' = 16", "takes 15"]),
        ({"n_chosen": 7}, "prompt", ["10 prompt tokens + 7 of 'chosen' = 17", "takes 16"]),
    ],
)
def test_what_does_not_tokenise_or_fit_is_refused(change: dict[str, int], field: str, words: list[str]) -> None:
    with pytest.raises(RowError) as caught:
        check_tokens(PAIR, **FITTING | change)
    error = caught.value
    assert (error.path, error.line, error.field) == (Path("some:dir/pairs.jsonl"), 12, field)
    assert [word for word in words if word not in str(error)] == []


@pytest.mark.parametrize("where", ["typed by hand", "pairs.jsonl", "a: b", ""])
def test_a_pair_that_came_from_no_line_is_still_named(where: str) -> None:
    pair = PreferencePair(id="a", prompt=(), chosen="c", rejected="r", where=where)
    with pytest.raises(RowError) as caught:
        check_tokens(pair, **FITTING | {"n_prompt": 0})
    assert (caught.value.line, caught.value.field) == (0, "messages")
    assert str(caught.value).startswith(f"{where or 'a'}: field 'messages'")


def test_answers_that_become_the_same_tokens_are_refused_with_both_texts() -> None:
    with pytest.raises(RowError, match=r"12: field 'rejected': the same tokens as 'chosen' \('c' and 'r'\)"):
        check_tokens(PAIR, **FITTING, same_answers=True)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({}, ""),
        ({"prompt": " "}, "prompt"),
        ({"prompt": ()}, "messages"),
        ({"prompt": (CHAT[1], {"role": "user", "content": ""})}, "messages[1].content"),
        ({"chosen": ""}, "chosen"),
        ({"rejected": "\u2060"}, "rejected"),
        ({"rejected": " No."}, "rejected"),
        ({"rejected": "No. "}, ""),  # what follows an answer is part of it
        ({"rejected": "\u200bNo."}, ""),
    ],
)
def test_texts_from_anywhere_are_held_to_what_rows_are(change: dict[str, Any], field: str) -> None:
    if field:
        with pytest.raises(FieldError, match=f"^'{re.escape(field)}': ") as caught:
            check_texts(**GOOD | change)
        assert caught.value.field == field
    else:
        check_texts(**GOOD | change)


# --- messages, tasks, further columns


def test_control_characters_of_a_file_reach_no_message_raw(tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m\r\n"
    rows: list[Any] = [
        GOOD | {"chosen": evil, "rejected": evil},
        GOOD | {"id": f"{evil}a", "chosen": ""},
        GOOD | {"image": f"{evil}.png"},
        GOOD | {f"tools{evil}": [evil]},
        GOOD | {"label": 9, "choices": [f"{evil}a", "b"]},
        json.dumps(GOOD).replace("No.", "\x1b[2J"),
        f'{{"{evil.strip()}',
    ]
    path = write(tmp_path, *rows)
    items = list(stream_pairs(path))
    assert all(isinstance(item, RowError) for item in items)
    assert [str(item) for item in items if not is_printable(str(item))] == []
    file = read_pairs(write(tmp_path, GOOD | {f"score{evil}": 1, "id": f"a{evil}"}, GOOD | {"id": f"a{evil}"}))
    assert len(file.remarks) == 2
    assert all(is_printable(remark) for remark in file.remarks)
    for name in (f"{evil.strip()}.jsonl", f"https://a.org/{evil}"):
        with pytest.raises(PairFileError) as caught:
            read_pairs(tmp_path / name)
        assert is_printable(str(caught.value))


def test_tasks_have_an_answer_and_the_shapes_of_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    rows = [
        {"id": "a", "prompt": "<image> 1 + 1?", "answer": "2", "images": ["a.png"], "score": 3},
        {"messages": CHAT, "answer": "No."},
        {"prompt": CHAT, "answer": "No.", "system": ""},
        {"id": "a", "prompt": "p", "answer": "q"},
    ]
    assert read_tasks(write(tmp_path, *rows)).tasks == (
        Task("a", "<image> 1 + 1?", "2", tmp_path / "a.png"),
        Task("000002", tuple(CHAT), "No."),
        Task("000003", tuple(CHAT), "No."),
        Task("a#2", "p", "q"),
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer": " "}, "field 'answer': only white space"),
        ({"answer": None}, "field 'answer': missing"),
        ({"answer": None, "solution": "4"}, "The row has 'solution': was 'answer' meant?"),
        ({"prompt": None, "question": "p"}, "The row has 'question': was 'prompt' meant?"),
        ({"tools": [{"name": "f"}]}, "field 'tools': holds content that would be lost"),
        ({"answer": ["a"]}, "expected a string, found a list"),
        ({"answer": None, "chosen": "a", "rejected": "b"}, "is it a file of pairs? A task has one 'answer'"),
    ],
)
def test_bad_tasks_are_refused_like_bad_pairs(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(RowError, match=re.escape(words)):
        read_tasks(write(tmp_path, {"prompt": "p", "answer": "q"} | change))
    with pytest.raises(PairFileError, match="the file is empty; expected tasks"):
        read_tasks(write(tmp_path, ""))


def test_a_further_column_comes_with_the_pair_it_belongs_to(tmp_path: Path) -> None:
    rows = [GOOD | {"id": "a", "notes": "One sentence here."}, "{", GOOD | {"id": "a", "notes": [1]}, GOOD]
    found = [(pair.id, value) for pair, value in read_column(write(tmp_path, *rows), "notes")]
    assert found == [("a", "One sentence here."), ("a#2", [1]), ("000004", None)]


def test_a_picture_that_is_gone_names_its_row(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    (pair,) = read_pairs(write(tmp_path, GOOD | {"image": "a.png"})).pairs
    (tmp_path / "a.png").unlink()
    with pytest.raises(RowError, match=r"pairs\.jsonl:1: field 'image': .*a\.png does not exist"):
        content_digest([pair])
