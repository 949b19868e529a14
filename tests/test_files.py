"""files/__init__.py: a file is there whole or not at all, only regular files are touched, and damage is seen."""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grains_ref import files
from grains_ref.files import (
    FileError,
    appending,
    check_target,
    is_address,
    is_draft,
    is_lock,
    json_depth,
    only_writer,
    only_writer_of,
    parse_json,
    parse_record,
    printable,
    read_record,
    read_whole,
    record_bytes,
    some_of,
    write_record,
    write_whole,
)

pytestmark = pytest.mark.cpu


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- writing


@pytest.mark.parametrize("name", ["v.tmp", "v", ".tmp", "a" * 255, "v.safetensors", "ü \n.json"])
def test_every_name_is_written_and_nothing_else_is_left(tmp_path: Path, name: str) -> None:
    write_whole(tmp_path / name, b"one")
    write_whole(tmp_path / name, "zwei ü")
    assert (tmp_path / name).read_text(encoding="utf-8") == "zwei ü"
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + "/v"], ids=["file", "folder"])
def test_a_name_that_no_disk_takes_is_refused_before_the_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileError, match=r"cannot be written: (File name too long|there is no folder)"):
        check_target(tmp_path / name)


def test_a_neighbour_of_any_name_is_left_alone(tmp_path: Path) -> None:
    for name in ("v.tmp", "v.part", "v.safetensors.tmp", ".v.tmp"):
        (tmp_path / name).write_text("the user's own")
    write_whole(tmp_path / "v.safetensors", b"new")
    assert all((tmp_path / name).read_text() == "the user's own" for name in names(tmp_path) if name != "v.safetensors")


def test_a_link_is_followed_and_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "v").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "v")
    (tmp_path / "dangling").symlink_to(tmp_path / "real" / "w")
    write_whole(tmp_path / "link", b"new")
    write_whole(tmp_path / "dangling", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "v").read_text() == (tmp_path / "real" / "w").read_text() == "new"


def test_permissions_are_kept_and_new_files_have_the_usual_ones(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_whole(tmp_path / "new", b"")
    (tmp_path / "secret").touch(mode=0o600)
    write_whole(tmp_path / "secret", b"")
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "new", "secret")}
    assert modes == {"usual": modes["new"], "new": modes["usual"], "secret": 0o600}


def test_what_is_no_regular_file_is_neither_replaced_nor_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to the pipe").symlink_to(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, message in {
        "pipe": "no regular file",
        "to the pipe": "no regular file",
        "folder": "is a folder; name a file in it",
        "loop": "no usable file name|no regular file",
        "missing/v": "there is no folder",
        "pipe/v": "there is no folder",
        "nul\0": "no usable file name",
        "a" * 300: "no usable file name|could not|File name too long",
    }.items():
        for refuse in (check_target, lambda path: write_whole(path, b"")):
            if name == "a" * 300 and refuse is check_target:
                continue  # only the disk knows how long a name may be
            with pytest.raises((FileError, OSError), match=message):
                refuse(tmp_path / name)
    with pytest.raises(FileError, match="no regular file"):
        write_whole(Path("/dev/null"), b"")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert names(tmp_path) == ["folder", "loop", "pipe", "to the pipe"]


@pytest.mark.parametrize("culprit", ["fsync", "replace", "fchmod"])
def test_a_failure_leaves_the_old_file_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, culprit: str
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    write_whole(tmp_path / "v", b"old")
    monkeypatch.setattr(os, culprit, fail)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "v", b"new")
    assert (tmp_path / "v").read_bytes() == b"old"
    assert names(tmp_path) == ["v"]


def test_a_killed_writer_leaves_the_old_file_and_a_draft_that_is_known_as_one(tmp_path: Path) -> None:
    code = "import os, sys, pathlib, grains_ref.files as f; os.replace = lambda *a: os._exit(9); "
    code += "f.write_whole(pathlib.Path(sys.argv[1]), b'new')"
    (tmp_path / "v").write_bytes(b"old")
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "v")], check=False).returncode == 9
    assert (tmp_path / "v").read_bytes() == b"old"
    assert [is_draft(path) for path in sorted(tmp_path.iterdir())] == [True, False]


# --- reading


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    os.mkfifo(tmp_path / "pipe")
    assert read_whole(tmp_path / "f", limit=5) == b"12345"
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(12 << 30)
    for name, message in {
        "missing": "does not exist; looked in /",
        "pipe": "no regular file",
        ".": "it is a folder",
        "sparse": "larger than 5 bytes",
        "nul\0": "cannot be read",
    }.items():
        with pytest.raises(FileError, match=message):
            read_whole(tmp_path / name, limit=5)
    with pytest.raises(FileError, match="no regular file"):
        read_whole(Path("/dev/zero"))


def test_json_is_bounded_in_depth_and_its_numbers_are_finite() -> None:
    assert parse_json(b'{"a": [1, 2.5, "[[[["]}') == {"a": [1, 2.5, "[[[["]}
    for text, message in {
        "[" * 101 + "]" * 101: "nested 101 deep",
        '{"a":' * 200000: "nested 200000 deep",
        "[NaN]": "NaN is no JSON number",
        "[-Infinity]": "-Infinity is no JSON number",
        "[1e999]": "1e999 is beyond the range",
        "[" + "9" * 5000 + "]": "limit",
        b"\xff": "utf-8",  # type: ignore[dict-item]
        '"unfinished': "Unterminated",
    }.items():
        with pytest.raises(ValueError, match=message):
            parse_json(text)
    assert parse_json("[" * 100 + "]" * 100)


def test_a_key_given_twice_is_no_json_of_ours() -> None:
    for text in ('{"a": 1, "a": 1}', '[{"b": {"a": 1, "a": 2}}]', '{"\\u0061": 1, "a": 1}'):
        with pytest.raises(ValueError, match="'a' is given twice in one object"):
            parse_json(text)
    assert parse_json('[{"a": 1}, {"a": 1}]') == [{"a": 1}, {"a": 1}]


def test_an_address_is_told_from_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data:a").touch()
    names = {
        "https://a": 1,
        "https:/a": 1,
        "hf://a/b": 1,
        "data:b": 1,
        "data:a": 0,
        "C:/a": 0,
        "C:\\a": 0,
        "a/b:c": 0,
        "": 0,
    }
    assert {name: int(is_address(name)) for name in names} == names


@given(st.recursive(st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_the_depth_of_json_is_that_of_its_values(value: object) -> None:
    def depth(value: object) -> int:
        if isinstance(value, dict):
            return 1 + max(map(depth, value.values()), default=0)
        if isinstance(value, list):
            return 1 + max(map(depth, value), default=0)
        return 0

    assert json_depth(json.dumps(value)) == depth(value)


@pytest.mark.parametrize("text", ['"' + '\\"' * 200000, '"' * 200001, "[" + '"\\', "]]]["])
def test_the_depth_of_what_is_no_json_is_found_in_one_pass(text: str) -> None:
    """A string without an end is not looked through again from each of its quotes."""
    assert json_depth(text) <= 1


# --- records

RECORD = {"a": [1, 2.5, None], "b": {"c": "ü"}, "sha": True}


def test_a_record_comes_back_and_every_flipped_bit_is_seen(tmp_path: Path) -> None:
    write_record(tmp_path / "r", RECORD)
    assert read_record(tmp_path / "r") == RECORD
    content = record_bytes(RECORD)
    for i in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[i] ^= 1 << bit
            with suppress(FileError):  # the rest is white space, or a letter of an escape
                assert parse_record(bytes(damaged), name="r") == RECORD


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"sha256": 1}', b"null", b"[" * 99999])
def test_what_is_no_record_is_said_to_be_damaged(content: bytes) -> None:
    with pytest.raises(FileError, match="the cell is damaged"):
        parse_record(content, name="the cell")


def test_numbers_that_are_not_finite_are_not_recorded() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        record_bytes({"a": math.nan})
    with pytest.raises(ValueError, match="field 'sha256' of its own"):
        record_bytes({files.DIGEST: ""})


# --- one writer


def test_a_second_writer_is_refused_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    code = "import sys, pathlib, time, grains_ref.files as f\n"
    code += (
        "with f.only_writer(pathlib.Path(sys.argv[1]), what='a fit'):\n    print('in', flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(FileError, match="is in use: a fit is running there"), only_writer(tmp_path, what="a fit"):
            pass
        other.kill()
    with (
        only_writer(tmp_path, what="a fit"),
        pytest.raises(FileError, match="is in use"),
        only_writer(tmp_path, what="a fit"),
    ):
        pass
    assert names(tmp_path) == []


def test_a_lock_whose_name_was_taken_away_meanwhile_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening and locking, the holder may have ended and a third process have made a new lock."""

    def lock_after_the_holder_has_ended(handle: int, *, blocking: bool) -> bool:
        (tmp_path / files.LOCK).unlink()
        (tmp_path / files.LOCK).touch()
        return True

    monkeypatch.setattr("filelock.lock_descriptor", lock_after_the_holder_has_ended)
    with pytest.raises(FileError, match="is in use"), only_writer(tmp_path, what="a fit"):
        pass
    assert names(tmp_path) == [files.LOCK]  # the third process's


def test_where_no_lock_can_be_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileError, match="missing has just been removed"), only_writer(tmp_path / "missing", what="a"):
        pass
    (tmp_path / files.LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileError, match="cannot be written: its lock"), only_writer(tmp_path, what="a fit"):
        pass
    (tmp_path / files.LOCK).unlink()

    def fail(handle: int, *, blocking: bool) -> bool:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("filelock.lock_descriptor", fail)
    with pytest.raises(FileError, match="disk without locks"), only_writer(tmp_path, what="a fit"):
        pass


def test_a_second_writer_of_a_file_is_refused_by_any_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / ("n" * 250), tmp_path / "link"
    target.touch()
    link.symlink_to(target)
    with only_writer_of(target, what="a fit"):
        (lock,) = (path for path in target.parent.iterdir() if path != target)
        assert is_lock(lock)
        for name in (target, link, tmp_path / "folder" / ".." / "folder" / target.name):
            refused = pytest.raises(FileError, match="is in use: a fit that will write it is running already")
            with refused, only_writer_of(name, what="a fit"):
                pass
        with only_writer_of(tmp_path / "folder" / "other", what="a fit"), only_writer(target.parent, what="a fit"):
            pass
    assert names(target.parent) == [target.name]
    with pytest.raises(FileError, match="there is no folder"), only_writer_of(tmp_path / "no" / "v", what="a fit"):
        pass


def test_a_draft_that_a_kill_left_is_not_read_and_not_removed(tmp_path: Path) -> None:
    """It may be that of a process which is still at work."""
    draft = tmp_path / ".grains-0123.tmp"
    draft.write_text("half of a fi")
    write_whole(tmp_path / "v", b"new")
    assert names(tmp_path) == [draft.name, "v"]
    assert is_draft(draft)


# --- several writers


def test_lines_of_two_writers_do_not_mix(tmp_path: Path) -> None:
    code = "import sys, pathlib, time, grains_ref.files as f\n"
    code += "with f.appending(pathlib.Path(sys.argv[1])) as file:\n    file.write(b'one')\n    file.flush()\n"
    code += "    print('in', flush=True)\n    sys.stdin.read()\n    file.write(b' line')\n"
    path = tmp_path / "lines"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=pipe, stdin=pipe) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == b"in\n"
        assert path.read_bytes() == b"one"
        other.stdin.close()
        with appending(path) as file:  # it waits
            assert file.read() == b"one line"
            file.write(b", two")
    assert path.read_bytes() == b"one line, two"


def test_what_cannot_be_added_to_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "no" / "v", tmp_path, tmp_path / "pipe"):
        with pytest.raises(FileError), appending(place):
            pass


# --- for messages


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain [brackets] ü 日本 👩‍🚀", "plain [brackets] ü 日本 👩‍🚀"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\nb\tc\r\x07\x00\x7f", r"a\nb\tc\r\x07\x00\x7f"),
        ("\x9b31m\x85", r"\x9b31m\x85"),
        ("\u202efdp.exe\u2066", r"\u202efdp.exe\u2066"),
        ("\u2028\u2029\ud800", r"\u2028\u2029\ud800"),
    ],
)
def test_control_characters_are_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown
    printable(text).encode()
    assert printable("a\n\t\x1b", keep="\n\t") == "a\n\t\\x1b"


def test_no_character_that_a_terminal_obeys_is_left() -> None:
    for code in [*range(32), *range(127, 160)]:
        assert printable(chr(code)).isascii()
        assert printable(chr(code)).isprintable()


def test_a_few_of_many_names_are_told() -> None:
    assert (some_of([]), some_of(["a", "b"])) == ("none", "a, b")
    assert some_of(["\x1b", *(f"{i}" for i in range(8))]) == "\\x1b, 0, 1, 2 and 5 more"
