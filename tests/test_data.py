"""data.py: what is read, what is refused, and in which words."""

from __future__ import annotations

import ast
import codecs
import hashlib
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import grains_ref.data
from grains_ref.data import (
    PairFileError,
    PreferencePair,
    RowError,
    check_tokens,
    read_pairs,
    stream_pairs,
)

pytestmark = pytest.mark.cpu

GOOD = {"prompt": "Is it flat?", "chosen": "No.", "rejected": "Yes."}
CHAT = [{"role": "system", "content": ""}, {"role": "user", "content": "Is it flat?"}]
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(str.strip)


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
        PreferencePair(id="000001", prompt="Is it flat?", chosen="No.", rejected="Yes.", where=f"{path}:1"),
    )


def test_chat_messages_are_kept_as_turns_without_their_extra_keys(tmp_path: Path) -> None:
    turns = [CHAT[0], CHAT[1] | {"weight": 1}]
    (pair,) = read_pairs(write(tmp_path, without(GOOD, "prompt") | {"messages": turns})).pairs
    assert pair.prompt == tuple(CHAT)


def test_choices_and_label_are_read(tmp_path: Path) -> None:
    (pair,) = read_pairs(write(tmp_path, GOOD | {"choices": ["No.", "Yes."], "label": 1})).pairs
    assert (pair.choices, pair.label) == (("No.", "Yes."), 1)


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
    assert read_pairs(write(tmp_path, row)).pairs == read_pairs(write(tmp_path, GOOD)).pairs


def test_blank_lines_carriage_returns_and_a_byte_order_mark_are_accepted(tmp_path: Path) -> None:
    line = json.dumps(GOOD).encode()
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(codecs.BOM_UTF8 + b"\r\n" + line + b"\r\n  \t\r\n\r\n" + line)
    file = read_pairs(path)
    assert [pair.where for pair in file.pairs] == [f"{path}:2", f"{path}:5"]
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
    rows=st.lists(st.tuples(TEXT, TEXT, TEXT).filter(lambda row: row[1] != row[2]), min_size=1, max_size=4),
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


def test_a_stream_does_not_read_ahead(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    with path.open("ab") as file:
        file.write(json.dumps(GOOD | {"prompt": "x" * 5_000_000}).encode() + b"\n")
    stream = stream_pairs(path)
    next(stream)
    path.write_bytes(path.read_bytes()[:100_000])  # what the stream has not read yet is taken away
    assert isinstance(next(stream), RowError)


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


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_recognised_and_its_conversion_told(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps([GOOD, GOOD], indent=indent))
    with pytest.raises(PairFileError, match=r"JSON array; expected one object.*jq -c '\.\[\]' pairs.json"):
        read_pairs(path, skip_bad_rows=True)


# --- bad rows

ROW_ERRORS = {
    "not JSON": ('{"prompt": "a", chosen', "", ["not JSON", "column 17", '\'{"prompt": "a", chosen\'']),
    "two rows on a line": ("{} {}", "", ["not JSON", "column 4", "one complete object on each line"]),
    "NaN": ('{"prompt": NaN}', "", ["NaN is not JSON", "null"]),
    "Infinity": ('{"a": [-Infinity]}', "", ["-Infinity is not JSON"]),
    "endless integer": ('{"a": 1' + "0" * 5000 + "}", "", ["cannot be read"]),
    "deep nesting": ('{"a": ' + "[" * 100_000, "", ["cannot be read"]),
    "Latin-1": ('{"prompt": "caf\xe9"}'.encode("latin-1"), "", ["not UTF-8", "byte 16", "0xe9", "Latin-1"]),
    "UTF-16": ('{"prompt": 1}'.encode("utf-16"), "", ["not UTF-8", "UTF-16"]),
    "a string": ('"a"', "", ["expected an object", "a string ('a')"]),
    "a number": ("3", "", ["expected an object", "an integer (3)"]),
    "null": ("null", "", ["expected an object", "found null"]),
    "repeated field": ('{"chosen": "a", "chosen": "b"}', "chosen", ["given twice"]),
    "no prompt": (without(GOOD, "prompt"), "prompt", ["missing", "either 'prompt'", "or 'messages'"]),
    "both prompts": (GOOD | {"messages": CHAT}, "messages", ["both 'prompt' and 'messages'"]),
    "prompt of blanks": (GOOD | {"prompt": " \n"}, "prompt", ["only white space"]),
    "no chosen": (without(GOOD, "chosen"), "chosen", ["missing"]),
    "null rejected": (GOOD | {"rejected": None}, "rejected", ["missing (or null)"]),
    "empty chosen": (GOOD | {"chosen": ""}, "chosen", ["empty; expected text"]),
    "blank rejected": (GOOD | {"rejected": "\t\u3000"}, "rejected", ["only white space; expected text"]),
    "same answers": (GOOD | {"rejected": "No."}, "rejected", ["the same text as 'chosen'", "'No.'"]),
    "chosen a number": (GOOD | {"chosen": 3}, "chosen", ["expected a string", "an integer (3)"]),
    "chosen a chat": (GOOD | {"chosen": CHAT}, "chosen", ["found a list", "chat turns go in 'messages'"]),
    "prompt a boolean": (GOOD | {"prompt": True}, "prompt", ["true/false (True)"]),
    "half an emoji": (GOOD | {"chosen": "\ud83d"}, "chosen", ["surrogate"]),
    "id a boolean": (GOOD | {"id": True}, "id", ["a string or an integer", "true/false"]),
    "id a decimal": (GOOD | {"id": 1.5}, "id", ["a decimal number (1.5)"]),
    "id empty": (GOOD | {"id": ""}, "id", ["empty"]),
    "no image": (GOOD | {"image": "a.png"}, "image", ["does not exist", "counted from"]),
    "image a folder": (GOOD | {"image": "."}, "image", ["is a directory"]),
    "image base64": (GOOD | {"image": "iVBORw0KGgo" * 500}, "image", ["does not exist", "..."]),
    "image NUL": (GOOD | {"image": "a\0b"}, "image", ["does not exist"]),
    "image a list": (GOOD | {"image": ["a.png"]}, "image", ["found a list"]),
    "label alone": (GOOD | {"label": 0}, "choices", ["the row has 'label'", "both or neither"]),
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
        ([{"from": "user", "value": "a"}], "messages[0].content", ["'value': was 'content' meant?"]),
        (
            [{"role": "user", "content": [{"type": "image"}]}],
            "messages[0].content",
            ["found a list", "'image'"],
        ),
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
def test_a_repeated_id_is_refused_with_the_line_that_had_it_first(tmp_path: Path, ids: tuple[Any, Any]) -> None:
    error = error_of(tmp_path, *(GOOD | {"id": value} for value in ids))
    assert (error.line, error.field) == (2, "id")
    assert "already names line 1" in str(error)


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
    tree = ast.parse(Path(grains_ref.data.__file__).read_text(encoding="utf-8"))
    imports = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imports |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert {str(name).partition(".")[0] for name in imports} <= set(sys.stdlib_module_names)


# --- tokens

PAIR = PreferencePair(id="a", prompt="p", chosen="c", rejected="r", where="some:dir/pairs.jsonl:12")
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
def test_a_pair_that_came_from_no_file_is_still_named(where: str) -> None:
    pair = PreferencePair(id="a", prompt=(), chosen="c", rejected="r", where=where)
    with pytest.raises(RowError) as caught:
        check_tokens(pair, **FITTING | {"n_prompt": 0})
    assert (caught.value.line, caught.value.field) == (0, "messages")
    assert where in str(caught.value)
