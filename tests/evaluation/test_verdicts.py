"""verdicts.py: kept replies that were changed are not believed, and two writers lose nothing."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from robustness.verdict_files import CASES, Echo, original

from grains_ref.evaluation.verdicts import Cached
from grains_ref.files import FileError, parse_record

pytestmark = pytest.mark.cpu


def test_any_flipped_bit_of_a_reply_is_seen(tmp_path: Path) -> None:
    path, content = tmp_path / "verdicts.jsonl", original()
    for i in range(0, content.index(b"\n"), 5):
        flipped = content[:i] + bytes([content[i] ^ 1 << i % 7]) + content[i + 1 :]
        path.write_bytes(flipped)
        with pytest.raises(FileError, match=r"verdicts\.jsonl:\d: no kept verdict: .* Delete this line"):
            Cached(Echo(), path)
        assert path.read_bytes() == flipped


def test_without_the_damaged_line_its_case_is_judged_anew(tmp_path: Path) -> None:
    path, lines = tmp_path / "verdicts.jsonl", original().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    cached = Cached(Echo(), path)
    assert [cached(case) for case in CASES] == [Echo()(case) for case in CASES]
    assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted(lines)


def test_a_reply_under_the_key_of_another_case_is_refused(tmp_path: Path) -> None:
    path, (first, second, _) = tmp_path / "verdicts.jsonl", original().splitlines()
    forged = json.loads(first) | {"reply": json.loads(second)["reply"]}
    path.write_text(json.dumps(forged) + "\n")
    with pytest.raises(FileError, match="does not have the digest"):
        Cached(Echo(), path)


def test_two_processes_and_their_threads_add_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    script = (
        "import sys\n"
        "from grains_ref.evaluation.judge import Case, judge_all\n"
        "from grains_ref.evaluation.verdicts import Cached\n"
        "class Echo:\n"
        "    identity = 'echo'\n"
        "    def __call__(self, case): return case.question\n"
        "cases = [Case((), f'{sys.argv[2]} {i}', '', '') for i in range(40)]\n"
        "judge_all(Cached(Echo(), sys.argv[1]), cases, workers=3)\n"
    )
    places = {"PYTHONPATH": ":".join(sys.path)}
    writers = [subprocess.Popen([sys.executable, "-c", script, path, name], env=places) for name in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    records = [parse_record(line, name="line") for line in path.read_bytes().splitlines()]
    assert {record["question"] for record in records} == {f"{name} {i}" for name in "ab" for i in range(40)}
    assert len(records) == 80


def test_a_line_that_another_process_did_not_finish_is_cut_before_the_next(tmp_path: Path) -> None:
    path, lines = tmp_path / "verdicts.jsonl", original().splitlines(keepends=True)
    path.write_bytes(lines[0])
    cached = Cached(Echo(), path)
    path.write_bytes(lines[0] + lines[1][:-9])
    cached(CASES[2])
    assert path.read_bytes() == lines[0] + lines[2]


def test_a_worker_process_gets_the_file_and_its_replies(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    path.write_bytes(original())
    other = pickle.loads(pickle.dumps(Cached(Echo(), path)))
    assert [other(case) for case in CASES] == [Echo()(case) for case in CASES]
    assert path.read_bytes() == original()
