"""The rows of a file, whatever it is kept in: told by its first bytes, bounded in size and depth, and read whole.

| container | told by | a row's number is |
|---|---|---|
| JSONL, one object per line | `{` | its line |
| JSON array of objects | `[` | its place in the array |
| CSV, with commas, tabs, semicolons or bars | a first line with names that are known here | the line it begins on |
| Parquet (needs pyarrow) | `PAR1` | its place in the file |
| any of them but Parquet in gzip | 1f 8b | as above |
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import os
import re
import shlex
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from grains_ref.data.columns import OTHER_NAMES, PAIR_FIELDS, TASK_FIELDS
from grains_ref.data.pairs import FieldError, PairFileError
from grains_ref.data.turns import found
from grains_ref.files import FileError, is_address, parse_json, read_whole

MAX_FILE_BYTES = 1 << 29  # also of what a packed file unpacks to
MAX_ROW_BYTES = 1 << 23  # twice what a prompt of a million tokens takes
MAX_ROWS = 1_000_000  # blank lines count
MAX_COLUMNS = 1000
BATCH_ROWS = 16  # of a Parquet file, decoded at a time

FIRST_BYTES = {  # of what is no container of pairs, and what to do with it
    b"PK\x03\x04": "It is a zip archive or a spreadsheet: unzip it, or save the sheet as CSV.",
    b"BZh": "It is compressed by bzip2: bunzip2 --keep {file}",
    b"\xfd7zXZ\0": "It is compressed by xz: unxz --keep {file}",
    b"\x28\xb5\x2f\xfd": "It is compressed by zstd: zstd -d {file}",
    b"ARROW1": "It is an Arrow file: datasets.Dataset.from_file({name!r}).to_json('pairs.jsonl')",
    b"SQLite format 3\0": "It is a database: select the rows and save them as CSV or JSONL.",
    b"version https://git-lfs": "It is a Git LFS pointer; fetch the file itself with: git lfs pull",
    b"%PDF": "It is a PDF.",
    b"<": "It starts like a web page or XML; the download may have saved an error page.",
    b"\x80\x03": "It is a Python pickle, which can run code and is never read; save the rows as JSONL.",
    b"\x80\x04": "It is a Python pickle, which can run code and is never read; save the rows as JSONL.",
    b"\x80\x05": "It is a Python pickle, which can run code and is never read; save the rows as JSONL.",
    b"\x89PNG": "It is a picture.",
    b"\xff\xd8\xff": "It is a picture.",
}
LISTS = frozenset(("messages", "conversations", "choices", "images", "history", "boxes"))  # JSON in a cell of a CSV
KNOWN = frozenset((*PAIR_FIELDS, *TASK_FIELDS, *OTHER_NAMES, "rejected_response", "system", "source", "category"))
SEEN = re.compile(rb"\S")
LINE = re.compile(rb"[^\r\n]*+(?:\r\n|\n|\r)|[^\r\n]++\Z")
EVERY_SECOND_NUL = re.compile(rb"(?:[\x01-\x7f]\0){4}|(?:\0[\x01-\x7f]){4}")
TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{\]},]', re.DOTALL)  # of JSON, as far as brackets go

Numbered: TypeAlias = tuple[int, "dict[str, Any] | FieldError"]


@dataclass(frozen=True)
class Sheet:
    """The rows of a file with their numbers; `kind` is "JSONL", "JSON array", "CSV" or "Parquet"."""

    path: Path
    kind: str
    rows: Iterator[Numbered]
    in_gzip: bool = False
    delimiter: str = ""

    def drop_command(self, columns: list[str]) -> str:
        """What to type for a copy of the file without these columns: the first few, if there are many."""
        few = columns[:3]
        file, copy = self.path.name, f"{self.path.name.split('.')[0]}_rows"
        if self.kind == "Parquet":
            code = f"pandas.read_parquet({file!r}).drop(columns={few!r}).to_parquet({f'{copy}.parquet'!r})"
            return f"python -c {shlex.quote(f'import pandas; {code}')}"
        if self.kind == "CSV":
            options = f"sep={self.delimiter!r}, dtype=str, keep_default_na=False"
            if self.in_gzip:
                options += ", compression='gzip'"
            code = f"pandas.read_csv({file!r}, {options}).drop(columns={few!r}).to_csv({f'{copy}.csv'!r}, index=False)"
            return f"python -c {shlex.quote(f'import pandas; {code}')}"
        items = ".[]" if self.kind == "JSON array" else "."
        paths = ", ".join(f".[{json.dumps(name)}]" for name in few)
        keep = shlex.quote(f"{items} | del({paths})")
        target = shlex.quote(f"{copy}.jsonl")
        if self.in_gzip:
            return f"gzip -dc {shlex.quote(file)} | jq -c {keep} > {target}"
        return f"jq -c {keep} {shlex.quote(file)} > {target}"


def open_sheet(path: str | os.PathLike[str]) -> Sheet:
    """The rows of a file; what is wrong with one row comes in its place, and the others follow.

    Raises:
        PairFileError: there is no such file, it is too large, or it is nothing that holds rows. Also while reading,
            where the rest of the file cannot be made out.
    """
    name = os.fspath(path)
    file = Path(name)
    data = _content(file, name)
    in_gzip = data.startswith(b"\x1f\x8b")
    if in_gzip:
        data = _gunzipped(data, file)
        if data.startswith((b"\x1f\x8b", b"PAR1")):
            problem = "a packed file inside of gzip, which is not read"
            raise PairFileError(f"{file}: {problem}. Unpack it once: gzip -d {shlex.quote(file.name)}")
    if data.startswith(b"PAR1"):
        return Sheet(file, "Parquet", _parquet_rows(data, file))
    _refuse_foreign(data, file)
    data = data.removeprefix(codecs.BOM_UTF8)
    start = SEEN.search(data)
    first = start[0] if start else b""
    if first == b"[":
        return Sheet(file, "JSON array", _array_rows(data, file), in_gzip)
    delimiter = "" if first == b"{" else _delimiter(data, file)
    if delimiter:
        return Sheet(file, "CSV", _csv_rows(data, delimiter, file), in_gzip, delimiter)
    return Sheet(file, "JSONL", _json_lines(data, file), in_gzip)


# -------------------------------------------------------------------------------------------- the file
def _content(file: Path, name: str) -> bytes:
    if is_address(name):
        advice = "Download the file first: curl -L -o pairs.jsonl ADDRESS, or hf download for a dataset of the hub"
        raise PairFileError(f"{name} is an address, not a file. {advice}")
    if os.path.isdir(name):  # unlike Path.is_dir, it also answers for a name that is too long
        raise PairFileError(f"{file}: is a directory; name the file in it, e.g. {file / 'pairs.jsonl'}")
    if not os.path.lexists(name):
        raise PairFileError(f"{file}: no such file (looked in {file.absolute().parent})")
    try:
        return read_whole(file, limit=MAX_FILE_BYTES)
    except FileError as error:
        raise PairFileError(str(error)) from error


def _gunzipped(data: bytes, file: Path) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as unpacked:
            content = unpacked.read(MAX_FILE_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise PairFileError(f"{file}: the gzip file is cut off or damaged ({error}); download it again") from error
    if len(content) > MAX_FILE_BYTES:
        raise PairFileError(
            f"{file}: unpacks to more than {MAX_FILE_BYTES:,} bytes, the most that is read; split the file"
        )
    return content


def _refuse_foreign(data: bytes, file: Path) -> None:
    quoted = shlex.quote(file.name)
    for start, advice in FIRST_BYTES.items():
        if data.startswith(start):
            message = advice.format(file=quoted, name=file.name)
            raise PairFileError(f"{file}: neither JSONL, a JSON array, CSV nor Parquet. {message}")
    if data[5:9] == b"\0\0\0{":  # the header's length in eight bytes, then its JSON
        raise PairFileError(f"{file}: it is a safetensors file, of vectors or weights; give the file of pairs or tasks")
    encoding = ""
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        encoding = "UTF-32"
    elif data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or EVERY_SECOND_NUL.match(data):
        encoding = "UTF-16"
    if encoding:
        advice = f"Save it as UTF-8: iconv -f {encoding} -t UTF-8 {quoted} > {file.stem}_utf8{file.suffix}"
        raise PairFileError(f"{file}: not UTF-8 but {encoding}. {advice}")


def _not_utf8(data: bytes, error: UnicodeDecodeError) -> str:
    guess, name = "Latin-1 or Windows-1252", "WINDOWS-1252"
    if b"\0" in data[max(0, error.start - 50) : error.start + 50]:
        guess = name = "UTF-16"
    start = data.rfind(b"\n", 0, error.start) + 1
    byte = f"byte {error.start - start + 1} of the line is 0x{data[error.start]:02x}"
    return f"not UTF-8: {byte}. The file may be {guess}; save it as UTF-8: iconv -f {name} -t UTF-8 OLD > NEW"


# -------------------------------------------------------------------------------------------- JSON
def _json_lines(data: bytes, file: Path) -> Iterator[Numbered]:
    """The lines, parted at line feeds only: U+2028 and a lone carriage return stay inside their row."""
    start, number = 0, 0
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        number += 1
        _check_count(number, file)
        if end - start > MAX_ROW_BYTES:
            yield number, _too_large(end - start)
        elif line := data[start:end].strip():
            yield number, _parsed(line)
        start = end + 1


def _check_count(number: int, file: Path) -> None:
    if number > MAX_ROWS:
        raise PairFileError(f"{file}: more than {MAX_ROWS:,} rows or lines, the most that are read; split the file")


def _too_large(size: int) -> FieldError:
    return FieldError("", f"the row has {size:,} bytes; at most {MAX_ROW_BYTES:,} are read. Is it one object per line?")


def _array_rows(data: bytes, file: Path) -> Iterator[Numbered]:
    """The items of an array, each parsed by itself, so that one bad item does not hide the others."""
    start, depth, number = data.index(b"[") + 1, 0, 1
    for token in TOKEN.finditer(data, start):
        place, sign = token.start(), data[token.start() : token.start() + 1]
        if place - start > MAX_ROW_BYTES:
            raise PairFileError(f"{file}: item {number} of the JSON array is larger than {MAX_ROW_BYTES:,} bytes")
        if sign in b"[{":
            depth += 1
        elif sign == b"," and depth == 0:
            _check_count(number, file)
            yield number, _parsed(data[start:place])
            start, number = token.end(), number + 1
        elif sign in b"]}" and depth > 0:
            depth -= 1
        elif sign in b"]}":
            last = data[start:place]
            _check_count(number, file)
            if last.strip() or number > 1:
                yield number, _parsed(last)
            if SEEN.search(data, token.end()):
                raise PairFileError(f"{file}: text follows the end of the JSON array; is it several files in one?")
            return
    raise PairFileError(f"{file}: the JSON array has no end (after item {number}); the file is cut off or damaged")


def _parsed(raw: bytes) -> dict[str, Any] | FieldError:
    """One row as a JSON object, with null fields dropped; or what is wrong with it."""
    text = ""
    try:
        text = raw.decode("utf-8").strip()
        row = parse_json(text)
    except UnicodeDecodeError as error:
        return FieldError("", _not_utf8(error.object, error))
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - 20) : error.pos + 20]
        place = f"{error.msg} at column {error.pos + 1}, near {near!r}"
        return FieldError("", f"not JSON: {place}. Expected one complete object. {_advice(raw)}".rstrip())
    except (RecursionError, ValueError) as error:  # nested too deeply; NaN; a number of thousands of digits
        return FieldError("", f"the JSON cannot be read: {error}.")
    if not isinstance(row, dict):
        return FieldError("", f'expected an object such as {{"prompt": ...}}, found {found(row)}.')
    if len(row) > MAX_COLUMNS:
        return FieldError("", f"the row has {len(row):,} fields; at most {MAX_COLUMNS:,} are read.")
    return {name: value for name, value in row.items() if value is not None}


def _advice(raw: bytes) -> str:
    """Advice where a line is only the beginning of an object, one as Python prints it, or none at all."""
    line = raw.strip()
    if line in (b"{", b"[", b"[{"):
        return "If objects are spread over several lines: jq -c . OLD > NEW"
    if line.startswith(b"{'"):
        return "It looks like a dict that Python printed; write rows with json.dumps, whose quotation marks are double."
    if not line.startswith((b"{", b"[")):
        return 'Is it another file? A line of JSONL is such as {"prompt": ..., "chosen": ..., "rejected": ...}'
    return ""


# -------------------------------------------------------------------------------------------- CSV
def _delimiter(data: bytes, file: Path) -> str:
    """What parts the names of the first line; "" if that is no header."""
    header = data[: 1 << 16].lstrip().split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    best, most_known, most_names = ",", 0, 1
    for delimiter in ",\t;|":
        names = [name.strip(' "').lower() for name in header.split(delimiter)]
        known = sum(name in KNOWN for name in names)
        if (known, len(names)) > (most_known, most_names):
            best, most_known, most_names = delimiter, known, len(names)
    named_so = file.name.lower().removesuffix(".gz").endswith((".csv", ".tsv"))
    return best if most_known > 1 or named_so else ""  # one known name alone may be a word of a text


def _lines(data: bytes, file: Path) -> Iterator[str]:
    """The lines with their ends, of which there are three kinds; only one is decoded at a time."""
    for number, line in enumerate(LINE.finditer(data), start=1):
        if line.end() - line.start() > MAX_ROW_BYTES:
            size = line.end() - line.start()
            raise PairFileError(f"{file}:{number}: the line has {size:,} bytes; at most {MAX_ROW_BYTES:,} are read")
        try:
            yield line[0].decode("utf-8")
        except UnicodeDecodeError as error:
            raise PairFileError(f"{file}:{number}: {_not_utf8(line[0], error)}") from error


def _csv_rows(data: bytes, delimiter: str, file: Path) -> Iterator[Numbered]:
    reader = csv.reader(_lines(data, file), delimiter=delimiter, strict=True)
    names: list[str] = []
    begins = 1
    try:
        for cells in reader:
            number, begins = begins, reader.line_num + 1
            _check_count(number, file)
            if not names:
                names = _header(cells, file) if any(cell.strip() for cell in cells) else []
            elif len(cells) == len(names):
                yield number, _csv_row(dict(zip(names, cells, strict=True)))
            elif cells:
                problem = f"{len(cells):,} cells, but the first line names {len(names):,} columns"
                yield number, FieldError("", f"{problem}; put texts that hold {delimiter!r} in double quotes.")
    except csv.Error as error:
        advice = "Double the quotes inside of a quoted text, or save the file as JSONL."
        if "field limit" in str(error):
            advice = "A quoted text has no end, or is longer than a CSV's may be: save the file as JSONL."
        raise PairFileError(f"{file}:{begins}: not CSV: {error}. {advice}") from error


def _header(cells: list[str], file: Path) -> list[str]:
    names = [cell.strip() for cell in cells]
    if len(names) > MAX_COLUMNS:
        raise PairFileError(f"{file}: {len(names):,} columns; at most {MAX_COLUMNS:,} are read")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise PairFileError(f"{file}: two columns are named {twice!r}; keep the one that is meant")
    return names


def _csv_row(cells: dict[str, str]) -> dict[str, Any] | FieldError:
    """The row of the cells that are filled in: all are text, but for lists (as JSON) and the index `label`."""
    row: dict[str, Any] = {}
    for name, cell in cells.items():
        if name in LISTS and cell.strip().startswith(("[", "{")):
            try:
                row[name] = parse_json(cell)
            except (RecursionError, ValueError) as error:
                return FieldError(name, f"no list in JSON: {error}. Lists are easier to keep in JSONL.")
        elif name == "label" and re.fullmatch(r"-?[0-9]{1,9}", cell.strip()):
            row[name] = int(cell)
        elif cell.strip():
            row[name] = cell
    return row


# -------------------------------------------------------------------------------------------- Parquet
def _parquet_rows(data: bytes, file: Path) -> Iterator[Numbered]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        advice = "Install it with: pip install 'grains-ref[eval]'"
        raise PairFileError(f"{file}: a Parquet file, which needs pyarrow. {advice}") from error
    number, size = 0, 0
    try:
        # pyarrow itself refuses schemas that are nested more than a hundred deep.
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))
        if table.metadata.num_columns > MAX_COLUMNS:
            raise PairFileError(f"{file}: {table.metadata.num_columns:,} columns; at most {MAX_COLUMNS:,} are read")
        _check_count(table.metadata.num_rows, file)
        for batch in table.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
            size += batch.nbytes
            if size > MAX_FILE_BYTES:
                raise PairFileError(f"{file}: unpacks to more than {MAX_FILE_BYTES:,} bytes, the most that is read")
            for row in batch.to_pylist():
                number += 1
                yield number, {name: value for name, value in row.items() if value is not None}
    except PairFileError:
        raise
    except Exception as error:  # fed broken bytes, decoders raise nearly anything
        problem = f"cannot be read as Parquet: {str(error) or type(error).__name__}"
        raise PairFileError(f"{file}: {problem[:300]}. Download or save it again.") from error
