"""What a file may be kept in, told by its first bytes, and what bounds hold for all of it."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grains_ref.data import PairFileError, PreferencePair, RowError, containers, read_pairs, read_tasks, stream_pairs
from grains_ref.files import printable

pytestmark = pytest.mark.cpu

GOOD = {"prompt": "Is it flat?", "chosen": "No.", "rejected": "Yes."}
ROWS = [GOOD | {"id": name, "score": 0.5} for name in "abc"]
CHAT = [{"role": "user", "content": "Is it flat?"}]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, names, delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    pyarrow = pytest.importorskip("pyarrow", reason="comes with the extra eval")
    sink = io.BytesIO()
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


def written(folder: Path, content: bytes | str, name: str = "pairs.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refused(path: str | Path) -> str:
    with pytest.raises(PairFileError) as caught:
        read_pairs(path)
    return str(caught.value)


CONTAINERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "JSONL": jsonl,
    "JSONL with a byte order mark": lambda rows: codecs.BOM_UTF8 + jsonl(rows),
    "array": lambda rows: json.dumps(rows).encode(),
    "array, indented": lambda rows: json.dumps(rows, indent=2).encode(),
    "array with a byte order mark": lambda rows: codecs.BOM_UTF8 + b"\r\n \t" + json.dumps(rows).encode() + b"\n",
    "CSV": table,
    "CSV with a byte order mark": lambda rows: codecs.BOM_UTF8 + table(rows),
    "tabs": lambda rows: table(rows, "\t"),
    "semicolons": lambda rows: table(rows, ";"),
    "bars": lambda rows: table(rows, "|"),
    "Parquet": parquet,
    "JSONL in gzip": lambda rows: gzip.compress(jsonl(rows)),
    "array in gzip": lambda rows: gzip.compress(json.dumps(rows).encode()),
    "CSV in gzip": lambda rows: gzip.compress(table(rows)),
    "two gzip files in one": lambda rows: gzip.compress(jsonl(rows[:1])) + gzip.compress(jsonl(rows[1:])),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_the_same_pairs_under_a_wrong_name_too(tmp_path: Path, container: str) -> None:
    expected = read_pairs(written(tmp_path, jsonl(ROWS)))
    file = read_pairs(written(tmp_path, CONTAINERS[container](ROWS), "pairs.txt"))
    assert file.digest == expected.digest
    assert [pair.id for pair in file.pairs] == ["a", "b", "c"]
    assert file.ignored_columns == ("score",)


@pytest.mark.parametrize("container", ["array", "array, indented", "Parquet"])
def test_rows_without_lines_are_counted(tmp_path: Path, container: str) -> None:
    path = written(tmp_path, CONTAINERS[container]([GOOD, GOOD | {"chosen": ""}, GOOD]), "pairs.json")
    items = list(stream_pairs(path))
    assert [str(item.where) for item in items] == [f"{path}:1", f"{path}:2", f"{path}:3"]
    assert [item.id for item in items if isinstance(item, PreferencePair)] == ["000001", "000003"]


def test_tasks_come_in_the_same_containers(tmp_path: Path) -> None:
    rows = [{"prompt": "1 + 1?", "answer": "2"}]
    for content in (jsonl(rows), json.dumps(rows).encode(), table(rows), gzip.compress(table(rows)), parquet(rows)):
        (task,) = read_tasks(written(tmp_path, content)).tasks
        assert (task.prompt, task.answer) == ("1 + 1?", "2")


# --- JSON arrays


def test_one_bad_item_of_an_array_hides_no_other(tmp_path: Path) -> None:
    good = json.dumps(GOOD)
    items = [good, '{"prompt": "[,]{", "chosen": }', '"a"', "", "3", '{"a": [1e999]}', f"{good} {good}", "NaN", good]
    path = written(tmp_path, "[" + ",".join(items) + "]")
    file = read_pairs(path, skip_bad_rows=True)
    assert [error.line for error in file.skipped] == [2, 3, 4, 5, 6, 7, 8]
    assert [pair.id for pair in file.pairs] == ["000001", "000009"]


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_an_array_that_is_cut_off_is_refused_whole(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path, json.dumps(ROWS)[:-cut])
    assert "the JSON array has no end" in refused(path)
    with pytest.raises(PairFileError, match="no end"):
        read_pairs(path, skip_bad_rows=True)


def test_what_follows_an_array_is_refused(tmp_path: Path) -> None:
    assert "text follows the end of the JSON array" in refused(written(tmp_path, json.dumps(ROWS) * 2))
    assert "the file is empty" in refused(written(tmp_path, "[ \n]"))


# --- CSV


def test_cells_hold_commas_quotes_and_line_breaks_and_lines_are_counted_right(tmp_path: Path) -> None:
    rows = [GOOD | {"chosen": 'No, "never".\n\nNo.'}, GOOD | {"rejected": ""}, GOOD]
    path = written(tmp_path, table(rows))
    first, second, third = stream_pairs(path)
    assert isinstance(first, PreferencePair)
    assert first.chosen == 'No, "never".\n\nNo.'
    assert isinstance(second, RowError)
    assert (second.line, second.field) == (5, "rejected")
    assert isinstance(third, PreferencePair)
    assert (third.id, str(third.where)) == ("000006", f"{path}:6")


def test_lists_in_cells_are_json(tmp_path: Path) -> None:
    row = {
        "messages": json.dumps(CHAT),
        "chosen": "No.",
        "rejected": "Yes.",
        "choices": '["No.", "Yes."]',
        "label": "1",
    }
    (pair,) = read_pairs(written(tmp_path, table([row]))).pairs
    assert (pair.prompt, pair.choices, pair.label) == (tuple(CHAT), ("No.", "Yes."), 1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("prompt,chosen,rejected\np,c\n", ":2: 2 cells, but the first line names 3 columns"),
        ("prompt,chosen,rejected\np,c, d,r\n", "put texts that hold ',' in double quotes"),
        ('prompt,chosen,rejected\n"p,c,r\n', ":2: not CSV: unexpected end of data"),
        ('prompt,chosen,rejected\n"p" x,c,r\n', ":2: not CSV: ',' expected after '\"'"),
        ("prompt,chosen,rejected\n" + "p" * 140_000 + ",c,r\n", ":2: not CSV: field larger than field limit"),
        ("prompt,chosen,chosen\np,c,r\n", "two columns are named 'chosen'"),
        ("prompt,chosen,rejected" + ",x" * 1000, "1,003 columns; at most 1,000 are read"),
        ("prompt,chosen,rejected\n", "the file is empty"),
        ("prompt,chosen,rejected,tools\np,c,r,f(x)\n", "field 'tools': holds content"),
        ("messages,chosen,rejected\n\"[{'role': 'user'}]\",c,r\n", "field 'messages': no list in JSON"),
        ("prompt,chosen,rejected\n\"[{'role': 'user', 'content': 'p'}]\",c,r\n", "written out as text"),
        ("prompt,chosen,rejected\n\xe9,c,r\n".encode("latin-1"), ":2: not UTF-8: byte 1 of the line is 0xe9"),
        ("prompt,chosen,rejected\nq\n".encode("utf-16"), "not UTF-8 but UTF-16. Save it as UTF-8: iconv -f UTF-16"),
        ("prompt,chosen,rejected\nq\n".encode("utf-16-be"), "not UTF-8 but UTF-16"),
        ("prompt,chosen,rejected\nq\n".encode("utf-32"), "not UTF-8 but UTF-32"),
    ],
)
def test_csv_that_cannot_be_made_out_is_refused(tmp_path: Path, content: bytes | str, words: str) -> None:
    with pytest.raises((PairFileError, RowError)) as caught:
        read_pairs(written(tmp_path, content, "pairs.csv"))
    assert words in str(caught.value)


def test_a_csv_file_with_other_names_is_told_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RowError, match=r"'prompt': missing.*The row has 'question': was 'prompt' meant\?"):
        read_pairs(written(tmp_path, "question;a;b\nWhat?;x;y\n", "pairs.csv"))


def test_plain_lines_are_no_csv(tmp_path: Path) -> None:
    with pytest.raises(RowError, match=r":1: not JSON"):
        read_pairs(written(tmp_path, "a prompt, and a question; and more\n"))


# --- Parquet


def test_parquet_holds_chats_pictures_and_nulls(tmp_path: Path) -> None:
    written(tmp_path, b"a", "a.png")
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "p"}]
    rows = [
        {
            "prompt": [{"role": "user", "content": parts}],
            "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "c"}]}],
            "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "r"}]}],
            "images": [{"bytes": None, "path": "a.png"}],
            "tools": None,
        }
    ]
    (pair,) = read_pairs(written(tmp_path, parquet(rows))).pairs
    assert (pair.prompt, pair.chosen, pair.image) == (({"role": "user", "content": "p"},), "c", tmp_path / "a.png")


def test_damaged_parquet_is_a_typed_error(tmp_path: Path) -> None:
    content = parquet(ROWS)
    for bad in (content[:-1], content[:50], b"PAR1", b"PAR1" * 3, content[:4] + bytes(len(content) - 8) + content[-4:]):
        assert "cannot be read as Parquet" in refused(written(tmp_path, bad))


def test_parquet_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = parquet([GOOD | {"prompt": "p" * 10_000}] * 200)
    assert len(content) < 20_000
    monkeypatch.setattr(containers, "MAX_FILE_BYTES", 100_000)
    assert "unpacks to more than 100,000 bytes" in refused(written(tmp_path, content))
    monkeypatch.setattr(containers, "MAX_COLUMNS", 2)
    assert "3 columns; at most 2" in refused(written(tmp_path, content))


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, b"PAR1....PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "needs pyarrow. Install it with: pip install 'grains-ref[eval]'" in refused(path)


# --- gzip, other files, other encodings


def test_a_damaged_gzip_file_is_never_read_in_part(tmp_path: Path) -> None:
    content = gzip.compress(jsonl(ROWS))
    for bad in (content[:-1], content[:30], content[:-8] + bytes(8), content + b"\1", b"\x1f\x8b"):
        assert "the gzip file is cut off or damaged" in refused(written(tmp_path, bad))
    for packed in (content, b"PAR1"):
        assert "a packed file inside of gzip" in refused(written(tmp_path, gzip.compress(packed)))


def test_a_small_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MAX_FILE_BYTES", 100_000)
    bomb = written(tmp_path, gzip.compress(b"\0" * 100_001))
    assert bomb.stat().st_size < 200
    assert "unpacks to more than 100,000 bytes" in refused(bomb)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"PK\x03\x04", "zip archive or a spreadsheet"),
        (b"BZh9", "bunzip2 --keep 'my pairs.bin'"),
        (b"\xfd7zXZ\0", "unxz"),
        (b"\x28\xb5\x2f\xfd", "zstd -d"),
        (b"\x68\x0c\0\0\0\0\0\0{}", "it is a safetensors file, of vectors or weights"),
        (b"ARROW1\0\0", "datasets.Dataset.from_file"),
        (b"SQLite format 3\0", "database"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "error page"),
        (b"%PDF-1.7", "PDF"),
        (b"\x80\x04\x95", "pickle, which can run code"),
        (b"\x89PNG\r\n", "picture"),
        ('{"prompt": "p"}'.encode("utf-16"), "UTF-16. Save it as UTF-8: iconv -f UTF-16 -t UTF-8 'my pairs.bin'"),
        ('{"prompt": "p"}'.encode("utf-16-le"), "UTF-16"),
    ],
)
def test_other_files_are_named_with_the_next_step(tmp_path: Path, start: bytes, words: str) -> None:
    message = refused(written(tmp_path, start + b"...." * 3, "my pairs.bin"))
    assert words in message
    assert printable(message) == message


def test_a_latin_1_line_is_named_with_the_command_that_converts_it(tmp_path: Path) -> None:
    content = jsonl([GOOD]) + b'{"prompt": "caf\xe9"}\n'
    with pytest.raises(RowError, match=r":2: not UTF-8: byte 16 .* 0xe9.*Latin-1.*iconv -f WINDOWS-1252"):
        read_pairs(written(tmp_path, content))


# --- bounds


def test_pipes_devices_folders_and_endless_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(12 << 30)
    for name, words in {
        "pipe": "no regular file",
        "/dev/zero": "no regular file",
        "sparse": "larger than 536870912 bytes",
        ".": "is a directory",
        "missing": "no such file",
        "a" * 300: "no such file",
        "a\0b": "no such file",
        "https://a.org/pairs.jsonl": "is an address, not a file. Download the file first: curl",
        "hf://datasets/a/b": "is an address",
    }.items():
        path = name if ":" in name else tmp_path / name
        assert words in refused(path)
    assert "is an address" in refused(Path("https://a.org/pairs.jsonl"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pipe", "is no regular file"),
        ("/dev/zero", "is no regular file"),
        ("sparse", "has 12,884,901,888 bytes, and at most 536,870,912 are read"),
        ("loop", "does not exist"),
    ],
)
def test_a_picture_is_a_regular_file_of_bounded_size(tmp_path: Path, name: str, words: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(12 << 30)
    with pytest.raises(RowError, match=words) as caught:
        read_pairs(written(tmp_path, json.dumps(GOOD | {"image": name})))
    assert caught.value.field == "image"
    file = read_pairs(written(tmp_path, jsonl([GOOD | {"image": name}, GOOD])), skip_bad_rows=True)
    assert [error.line for error in file.skipped] == [1]  # the other rows are not lost with it


def test_deep_nesting_is_refused_in_every_container(tmp_path: Path) -> None:
    boxes = "[" * 20_000 + "]" * 20_000
    row = json.dumps(GOOD)[:-1] + f', "x": {boxes}}}'
    for content in (row, f"[{row}]", "[" * 20_000, '{"a":' * 20_000, table([GOOD | {"choices": boxes}])):
        with pytest.raises((PairFileError, RowError), match=r"nested|no end"):
            read_pairs(written(tmp_path, content))


def test_many_lines_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MAX_ROWS", 3)
    assert len(read_pairs(written(tmp_path, jsonl(ROWS))).pairs) == 3
    more = [GOOD] * 4
    blank = jsonl(ROWS[:1]) + b"\n" * 3
    blank_csv = table(more[:1]) + b"\n\n"
    for content in (jsonl(more), blank, json.dumps(more).encode(), table(more), blank_csv, parquet(more)):
        assert "more than 3 rows or lines" in refused(written(tmp_path, content))


def test_what_a_file_controls_costs_no_more_than_its_size(tmp_path: Path) -> None:
    """Each of these took a minute or grew with a square; the suite's own time limit is the measure."""
    many = [f"choice {i}" for i in range(60_001)]
    twice = written(tmp_path, json.dumps(GOOD | {"choices": [*many, many[-1]], "label": 0}))
    with pytest.raises(RowError, match="'choice 60000' is listed more than once"):
        read_pairs(twice)
    with pytest.raises(RowError, match=r"the row has 50,003 fields; at most 1,000"):
        read_pairs(written(tmp_path, json.dumps(GOOD | {f"x{i}": i for i in range(50_000)})))
    with pytest.raises(RowError, match="'prompt': missing"):
        read_pairs(written(tmp_path, json.dumps({f"unlike{i}": 1 for i in range(900)} | {"y" * 1_000_000: 1})))
    same = read_pairs(written(tmp_path, jsonl([GOOD | {"id": "a"}] * 1_000)))
    assert same.renamed_ids[-1] == "a#1000"


# --- the commands that messages give


@pytest.mark.parametrize("container", ["JSONL", "array, indented", "JSONL in gzip", "CSV", "CSV in gzip", "Parquet"])
def test_the_command_that_drops_a_column_works_as_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "my pairs.gz" if "gzip" in container else "my pairs.x"
    odd = {"chosen": "007", "rejected": "NA", "a tool's\"": "uses this, and that, and more."}
    rows = [row | odd for row in ROWS]
    written(tmp_path, CONTAINERS[container](rows), name)
    with pytest.raises(RowError) as caught:
        read_pairs(name)
    command = str(caught.value).split(", or a copy: ")[1]
    if command.startswith("python -c "):
        exec(shlex.split(command)[2], {})
    elif shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    else:
        subprocess.run(command, shell=True, check=True)
    (copy,) = tmp_path.glob("my pairs_rows.*")
    pairs = read_pairs(copy).pairs
    assert [(pair.id, pair.chosen, pair.rejected) for pair in pairs] == [(name, "007", "NA") for name in "abc"]


# --- what is only bounded if nothing is decoded whole


def test_rows_of_an_array_or_a_csv_are_decoded_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder of the whole would be handed all rows at once; 512 MiB of them took 3 GB."""
    monkeypatch.setattr(containers, "MAX_ROW_BYTES", 300)
    row = {"prompt": "p" * 100, "chosen": "a", "rejected": "b"}
    array = written(tmp_path, json.dumps([row] * 20), "pairs.json")
    assert len(read_pairs(array).pairs) == 20
    lines = "prompt,chosen,rejected\r" + f"{row['prompt']},a,b\r" * 20
    assert len(read_pairs(written(tmp_path, lines, "pairs.csv")).pairs) == 20
    for content, message in (
        (json.dumps([row, row | {"prompt": "p" * 300}, row]), "item 2 of the JSON array is larger than 300 bytes"),
        ("[" * 400, "item 1 of the JSON array is larger than 300 bytes"),
        ("prompt,chosen,rejected\n" + "p" * 400, r":2: the line has 400 bytes; at most 300 are read"),
    ):
        with pytest.raises(PairFileError, match=message):
            read_pairs(written(tmp_path, content, "pairs.csv"))


def test_bytes_that_are_no_text_are_the_fault_of_their_item(tmp_path: Path) -> None:
    row = b'{"prompt": "p", "chosen": "a", "rejected": "b"}'
    path = tmp_path / "pairs.json"
    path.write_bytes(b"[" + b", ".join([row, row.replace(b'"p"', b'"\xff"'), row]) + b"]")
    file = read_pairs(path, skip_bad_rows=True)
    assert [len(file.pairs), len(file.skipped)] == [2, 1]
    assert "not UTF-8" in str(file.skipped[0])
    path.write_bytes(b"prompt,chosen,rejected\na,b,c\n\xff,b,c\n")
    with pytest.raises(PairFileError, match=r"pairs.json:3: not UTF-8: byte 1 of the line is 0xff"):
        read_pairs(path)


def test_a_text_too_long_for_a_csv_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(PairFileError, match="is longer than a CSV's may be: save the file as JSONL"):
        read_pairs(written(tmp_path, "prompt,chosen,rejected\n" + "p" * 200_000 + ",a,b\n", "pairs.csv"))
