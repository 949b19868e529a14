"""Files, read and written once and for all: whole or not at all, regular files only, of bounded size, one writer.

| function | for |
|---|---|
| `check_target`, `write_whole` | a file that is there whole or not at all; refused before the work, not after it |
| `read_whole`, `parse_json` | a file that may be damaged, endless, or made to do harm |
| `write_record`, `read_record` | a JSON object that knows whether it was changed |
| `only_writer`, `only_writer_of` | one process at a time in a folder, or for a file |
| `appending` | a file that several processes add lines to |
| `is_address` | a name that people give where a file is expected |
| `printable`, `some_of` | names out of a file, in a message |
| `check_listed` | a text where a list of texts is expected |

Only the standard library is imported here, and filelock where a lock is asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

MAX_BYTES = 1 << 30  # of a file that is read whole
MAX_PICTURE_BYTES = 1 << 29  # of a picture: more than the largest that is decoded takes, however it is stored
MAX_DEPTH = 100  # of nested JSON: Python's parser gives up, others crash, at some ten thousand
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/{1,3}[^/]|data:")  # one letter would be a drive; a Path drops slashes
DIGEST = "sha256"  # the field of a record that holds the digest of the others
DRAFT = ".grains-"  # how the names of unfinished files begin
LOCK = ".grains-lock"  # the file that the only writer of a folder holds; for a file, a digest of its name follows


class FileError(ValueError):
    """A file that cannot be what it should be: missing, no regular file, too large, damaged."""

    def __str__(self) -> str:
        return printable(super().__str__(), keep="\n")


# -------------------------------------------------------------------------------------------- writing
def check_target(path: Path) -> None:
    """Refuse a file that could not be written, before the work is done.

    Raises:
        FileError: its folder is missing or not writable, or something that is no regular file bears its name.
    """
    target = _resolved(path)
    if os.path.isdir(target):  # unlike Path.is_dir, False for a name that no disk takes
        raise FileError(f"{path} is a folder; name a file in it")
    if not os.path.isdir(target.parent):
        raise FileError(f"{path} cannot be written: there is no folder {target.parent}. Make it first")
    if os.path.lexists(target) and not target.is_file():
        raise FileError(f"{path} is no regular file (a device, pipe or socket) and is not replaced; name another file")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise FileError(f"{path} cannot be written: the folder {target.parent} is not writable")
    try:
        target.lstat()
    except FileNotFoundError:
        pass  # a new file
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror}") from error


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file; after a failure, or a kill at any moment, the old file is as it was.

    A link is followed and what it points to is replaced.  An old file's permissions are kept.  The draft is a new
    file of a random name in the same folder (a rename cannot cross disks); nobody's file is overwritten by it.
    A kill may leave the draft, `.grains-*.tmp`: it does no harm, nothing reads it, and it may be deleted when nothing
    is being written there.  It is not removed here, for it may be the draft of a process that is still at work.

    Raises:
        FileError: as `check_target`.
        OSError: the disk refuses (full, read-only, ...); the message names the file.
    """
    check_target(path)
    data = content.encode() if isinstance(content, str) else content
    try:
        _replace(_resolved(path), data)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"{path} could not be written: {reason}") from error


def _replace(target: Path, data: bytes) -> None:
    draft = target.with_name(f"{DRAFT}{uuid.uuid4().hex}.tmp")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # less what the user's umask takes away
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if target.is_file():
                os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
            os.fsync(file.fileno())
        os.replace(draft, target)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Make a new name last through a power failure, where the system can; the file's content is safe already."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_draft(path: Path) -> bool:
    """Whether a file is what a killed `write_whole` leaves behind."""
    return path.name.startswith(DRAFT) and path.suffix == ".tmp"


def _resolved(path: Path) -> Path:
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name that no disk takes
        raise FileError(f"{str(path)!r} is no usable file name: {error}") from error


# -------------------------------------------------------------------------------------------- reading
def read_whole(path: Path, *, limit: int = MAX_BYTES) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        FileError: it is missing, cannot be read, is no regular file, or is larger.
    """
    try:
        with open(path, "rb", opener=_open_regular) as file:
            large = os.fstat(file.fileno()).st_size > limit
            data = b"" if large else file.read(limit + 1)
    except FileNotFoundError:
        raise FileError(f"{path} does not exist; looked in {Path.cwd()}") from None
    except (OSError, ValueError) as error:
        raise FileError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if large or len(data) > limit:  # a file may grow while it is read
        raise FileError(f"{path} is larger than {limit} bytes, the most that is read of such a file")
    return data


def _open_regular(path: str, flags: int) -> int:
    """Open without waiting for the other end of a pipe, and only what is a regular file."""
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        kind = "a folder" if os.path.isdir(path) else "no regular file (a device, pipe or socket)"
        raise OSError(0, f"it is {kind}")
    return handle


def parse_json(text: str | bytes, *, max_depth: int = MAX_DEPTH) -> Any:
    """JSON whose nesting is bounded, whose numbers are finite, and whose objects have each key once.

    Raises:
        ValueError: it is no JSON, is nested deeper than `max_depth`, gives a key twice (Python's own parser takes the
            last), or holds NaN, Infinity or an endless integer.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")  # UnicodeDecodeError is a ValueError
    if (depth := json_depth(text)) > max_depth:
        raise ValueError(f"JSON nested {depth} deep; at most {max_depth} levels are read")
    return json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_each_key_once)


def json_depth(text: str) -> int:
    """How deep brackets are nested outside strings, whether or not the text is JSON."""
    depth = deepest = 0
    for token in re.finditer(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', text, re.DOTALL):  # a string may have no end
        if token[0] in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif token[0] in "]}":
            depth -= 1
    return deepest


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number, though Python writes it")


def _each_key_once(items: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(items)
    if len(read) < len(items):
        seen: set[str] = set()
        for name, _ in items:
            if name in seen:
                raise ValueError(f"{name[:60]!r} is given twice in one object")
            seen.add(name)
    return read


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{digits[:40]} is beyond the range of a float64")
    return number


def is_address(name: str) -> bool:
    """Whether a name is an address, such as https://..., hf://... or data:..., and no file that is there."""
    return ADDRESS.match(name) is not None and not os.path.lexists(name)


# -------------------------------------------------------------------------------------------- records
def digest_of(content: bytes) -> str:
    """SHA-256, in hexadecimal: the one digest of files, records and data."""
    return hashlib.sha256(content).hexdigest()


def record_bytes(record: Mapping[str, Any]) -> bytes:
    """A JSON object with the digest of its other fields.

    Raises:
        ValueError: a number is not finite, or the record has a field `sha256` already.
    """
    if DIGEST in record:
        raise ValueError(f"a record must not have a field {DIGEST!r} of its own")
    return json.dumps({**record, DIGEST: record_digest(record)}, allow_nan=False).encode()


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """`record_bytes`, written whole."""
    write_whole(path, record_bytes(record))


def read_record(path: Path, *, limit: int = MAX_BYTES) -> dict[str, Any]:
    """What `write_record` wrote.

    Raises:
        FileError: the file is missing or damaged: one changed bit is enough.
    """
    return parse_record(read_whole(path, limit=limit), name=str(path))


def parse_record(content: bytes | str, *, name: str) -> dict[str, Any]:
    """What `record_bytes` made; `name` is what an error calls it.

    Raises:
        FileError: it is damaged.
    """
    try:
        record = parse_json(content)
    except ValueError as error:
        raise FileError(f"{name} is damaged: {error}") from error
    if not isinstance(record, dict) or DIGEST not in record:
        raise FileError(f"{name} is damaged: no JSON object with a field {DIGEST!r}")
    if record.pop(DIGEST) != record_digest(record):
        raise FileError(f"{name} is damaged: its content does not have the digest that it names")
    return record


def record_digest(record: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object, whatever the order of its fields."""
    return digest_of(json.dumps(record, sort_keys=True, allow_nan=False).encode())


# -------------------------------------------------------------------------------------------- one writer
@contextmanager
def only_writer(folder: Path, *, what: str) -> Iterator[None]:
    """Hold a folder for writing; a second process that asks for it is refused, not kept waiting.

    folder: must exist.  what: what is being done, for the message, for instance "a fit".  The lock is a file
    `.grains-lock` in the folder, which goes with it; the system releases it when its process ends, however it ends.

    Raises:
        FileError: another process holds the folder, or its disk knows no locks.
    """
    refusal = f"{folder} is in use: {what} is running there already. Wait for it, or name another"
    with _held(folder / LOCK, refusal):
        yield


@contextmanager
def only_writer_of(path: Path, *, what: str) -> Iterator[None]:
    """Hold a file that is to be written at the end of long work, by a lock beside it; see `only_writer`.

    Raises:
        FileError: it cannot be written (`check_target`), or another process is at work on it.
    """
    check_target(path)
    target = _resolved(path)
    lock = target.with_name(f"{LOCK}-{digest_of(os.fsencode(target.name))[:16]}")
    with _held(lock, f"{path} is in use: {what} that will write it is running already. Wait for it, or name another"):
        yield


def is_lock(path: Path) -> bool:
    """Whether a file is the lock of a folder, or of a file in it."""
    return path.name == LOCK or path.name.startswith(f"{LOCK}-")


@contextmanager
def _held(lock: Path, refusal: str) -> Iterator[None]:
    folder = lock.parent
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except FileNotFoundError:
        raise FileError(f"{folder} has just been removed; run the command again") from None
    except OSError as error:
        raise FileError(f"{folder} cannot be written: its lock {lock.name}: {error.strerror}") from error
    try:
        is_held = _lock(handle, folder, blocking=False)
        if not is_held or not _is_named(handle, lock):
            raise FileError(refusal)
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink()  # still held: whoever has opened it by now finds that it has no name any more
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path, *, blocking: bool) -> bool:
    from filelock import lock_descriptor

    try:
        return lock_descriptor(handle, blocking=blocking)
    except OSError as error:
        raise FileError(f"{folder} is on a disk without locks ({error.strerror}); name another folder") from error


def _is_named(handle: int, path: Path) -> bool:
    """Whether an open file still bears its name: one that ended meanwhile took the name away."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


@contextmanager
def appending(path: Path) -> Iterator[BinaryIO]:
    """A file to read and to add to, made if it is missing; other processes that ask for it wait until the block ends.

    Raises:
        FileError: as `check_target`, or the file cannot be opened, or its disk knows no locks.
    """
    check_target(path)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror}") from error
    with os.fdopen(handle, "r+b") as file:
        _lock(handle, Path(path).parent, blocking=True)
        yield file
        file.flush()
        os.fsync(handle)


# -------------------------------------------------------------------------------------------- for messages
def printable(text: str, *, keep: str = "") -> str:
    r"""Text whose characters are all to be seen: others are written out (as \x1b), so that no file rewrites the screen.

    Written out is what moves the cursor, colours, deletes or rings, breaks lines, turns the direction of reading, has
    no width, or is half a character; not what is in `keep`, for instance "\n\t".
    """
    return "".join(_shown(character) if character not in keep else character for character in text)


def _shown(character: str) -> str:
    is_joiner = character in "\u200c\u200d"  # inside words of some languages, and inside emoji
    return character if character.isprintable() or is_joiner else character.encode("unicode_escape").decode()


def some_of(names: Sequence[str]) -> str:
    """A few names for a message, printable, and how many more there are."""
    rest = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(printable(name) for name in names[:4]) + rest or "none"


def check_listed(name: str, values: object, of_what: str) -> None:
    """Refuse a single text, path or other thing where a list is expected: a text is a sequence, of its letters.

    Raises:
        TypeError: it is none that holds several.
    """
    if isinstance(values, (str, bytes, bytearray, os.PathLike, Mapping)) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name} is a {type(values).__name__} ({printable(repr(values)[:60])}); expected {of_what}")
