"""What the JSON of a run says afterwards: a summary for a README, the difference of two, live runs like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from grains_ref.cli import app
from grains_ref.conformance.diff import changes
from grains_ref.conformance.live import LiveResult
from grains_ref.conformance.live.results import as_run
from grains_ref.conformance.report import as_json
from grains_ref.conformance.runner import Result, Run
from grains_ref.conformance.summary import line, markdown, read_run

pytestmark = pytest.mark.cpu


def result(case: str, status: str = "passed", error: float = 2e-7, **fields: Any) -> Result:
    return Result(case, case.rpartition("-")[0], "float32", "isolated", status, error, 2e-6, **fields)  # type: ignore[arg-type]


def run(*results: Result) -> dict[str, Any]:
    claimed = tuple(dict.fromkeys(r.stage for r in results))
    return json.loads(json.dumps(as_json(Run("mine", claimed, ("float32",), results)), allow_nan=False))  # type: ignore[no-any-return]


RIGHT = run(result("steering-001"), result("steering-002", error=1e-6), result("selection-001", error=0.0))


def test_a_summary_says_what_passed_and_what_is_not_claimed() -> None:
    told = line(RIGHT)
    assert told.startswith("GrAInS conformance: 2 of 7 stages in float32; 3 of 3 results; by the paper; grains_ref ")
    table = markdown(RIGHT).splitlines()
    assert table[0] == f"**{told}**"
    assert "| steering | 2 of 2; error 1e-06, allowed 2e-06 |" in table
    assert "| selection | 1 of 1 |" in table
    assert "| objective | not claimed |" in table


def test_a_summary_of_a_port_that_fails_begins_with_the_failure() -> None:
    wrong = run(
        result("steering-001"), result("steering-002", "failed", float("inf")), result("steering-003", "skipped")
    )
    assert line(wrong).startswith("GrAInS conformance: fails at steering (steering-002, float32); ")
    assert "| steering | **1 of 2, 1 failed, 1 skipped; error 2e-07, allowed 2e-06** |" in markdown(wrong)
    nothing = run(result("steering-001", "skipped"))
    assert "fails: nothing passed" in line(nothing)
    assert "| steering | 1 skipped |" in markdown(nothing)
    assert "; 0 of 0 results, 1 skipped; " in line(nothing)


def test_a_summary_of_a_live_run_says_so_and_on_which_model() -> None:
    results = [LiveResult("steer", "a", 0, "passed", 1e-3, 1e-2), LiveResult("norms are kept", "a", 0, "skipped")]
    live = as_json(as_run(results, port="mine on tiny", dtype="float32"))
    told = line(live)
    assert told.startswith("GrAInS conformance live, mine on tiny: 1 of 7 stages in float32; 1 of 1 results, 1 skipped")


def test_a_difference_names_what_broke_before_what_mended() -> None:
    before = run(
        result("steering-001"), result("steering-002"), result("steering-003", "failed"), result("steering-004")
    )
    after = run(
        result("steering-001"),
        result("steering-002", "failed", 1.0, message="off"),
        result("steering-003"),
        result("steering-005", "skipped"),
    )
    found = [(c.kind, c.case, c.before, c.after, c.message) for c in changes(before, after)]
    assert found == [
        ("broken", "steering-002", "passed", "failed", "off"),
        ("broken", "steering-004", "passed", "missing", ""),
        ("mended", "steering-003", "failed", "passed", ""),
        ("new", "steering-005", "missing", "skipped", ""),
    ]
    assert changes(before, before) == []


def test_errors_that_grow_within_what_is_allowed_are_told_and_rounding_is_not() -> None:
    def of(error: float) -> dict[str, Any]:
        return run(result("steering-001", error=error))

    assert [c.kind for c in changes(of(1e-8), of(1e-6))] == ["farther"]
    assert [c.kind for c in changes(of(1e-6), of(1e-8))] == ["nearer"]
    assert changes(of(1e-12), of(1e-9)) == []  # both far below what is allowed
    assert changes(of(1e-7), of(9e-7)) == []


def test_a_live_check_is_a_run_like_any_other() -> None:
    results = [
        LiveResult("steer", "a", 0, "passed", 1e-3, 1e-2),
        LiveResult("steer", "a", 1, "undecidable", 1.0, float("inf")),
        LiveResult("norms are kept", "a", 0, "failed", float("inf"), 0.0, "raised"),
        LiveResult("aggregation", "a", 0, "skipped", message="no function"),
    ]
    live = as_json(as_run(results, port="mine on tiny", dtype="bfloat16"))
    json.dumps(live, allow_nan=False)
    assert live.keys() == RIGHT.keys()
    assert all(row.keys() == RIGHT["results"][0].keys() for row in live["results"])
    assert len({row["case"] for row in live["results"]}) == 4
    assert live["claimed"] == ["steering"]
    assert live["first_divergence"]["case"] == "norms are kept, pair a, seed 0"
    assert "| steering | **1 of 3, 1 undecidable, 1 failed; error 1e-03, allowed 1e-02** |" in markdown(live)


# --- from the command line


def command(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["conform", *arguments], env={"COLUMNS": "200"})
    return done.exit_code, done.output


def test_the_commands_read_what_run_wrote(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(RIGHT))
    (tmp_path / "b.json").write_text(json.dumps(run(*[result(f"steering-{i:03}", "failed") for i in range(1, 13)])))
    code, told = command("summary", str(tmp_path / "a.json"))
    assert code == 0
    assert told == markdown(RIGHT) + "\n"
    assert command("summary", "--line", str(tmp_path / "a.json")) == (0, line(RIGHT) + "\n")
    code, told = command("diff", str(tmp_path / "a.json"), str(tmp_path / "b.json"))
    assert code == 1
    assert "mine, 3 results; mine, 12: 3 broken, 10 new." in told
    assert "broken: steering-001 (float32, isolated) passed -> failed" in told
    assert command("diff", str(tmp_path / "a.json"), str(tmp_path / "a.json")) == (
        0,
        "mine, 3 results; mine, 3: no change.\n",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is no object"),
        ("{}", "lacks port, dialect"),
        ("{", "is no JSON"),
        (json.dumps(RIGHT | {"results": [{"case": "a"}]}), "its results are no list of objects"),
    ],
)
def test_files_that_are_no_run_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_run(path)
    assert command("summary", str(path))[0] == 1
