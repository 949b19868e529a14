"""`grains-ref conform live` on an embedded model, with ports written for it."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from grains_ref.cli import app
from grains_ref.tiny_models.worlds import build_world

pytestmark = pytest.mark.cpu

PORT = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

def LOAD(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype="float32"), AutoTokenizer.from_pretrained(path)

def log_p(handle, prompt, answer):
    model, tokenizer = handle
    start = len(tokenizer(prompt).input_ids)
    ids = torch.tensor([tokenizer(f"{prompt} {answer}").input_ids])
    with torch.no_grad():
        rows = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
    return rows.gather(1, ids[0, start:, None])%s

def live_objective(handle, prompt, chosen, rejected):
    pos, neg = log_p(handle, prompt, chosen), log_p(handle, prompt, rejected)
    return {"log_p_pos": float(pos), "log_p_neg": float(neg), "f": float(pos - neg)}
"""


def run(tmp_path: Path, name: str, code: str, monkeypatch: pytest.MonkeyPatch, *options: str) -> Result:
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))
    prompts = build_world("simple").split("steer")[:3]
    rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in prompts]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    command = ["conform", "live", "--model", "tiny:simple-seed0", "--pairs", "pairs.jsonl", "--port", name, *options]
    return CliRunner().invoke(app, command, env={"COLUMNS": "160"})


def test_a_right_port_passes_and_what_it_lacks_is_not_called_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(tmp_path, "right_port", PORT % ".sum()", monkeypatch, "--json", "all.json")
    assert done.exit_code == 0, done.output
    assert "3 passed" in done.output
    assert "skipped" in done.output
    told = json.loads((tmp_path / "all.json").read_text())
    assert {result["status"] for result in told["results"]} == {"passed", "skipped"}
    assert (told["conformant"], told["claimed"], told["dtypes"]) == (True, ["objective"], ["float32"])


def test_a_wrong_port_fails_with_the_check_that_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(tmp_path, "wrong_port", PORT % "[-1].sum()", monkeypatch, "--junit", "all.xml")
    assert done.exit_code == 1, done.output
    assert "3 failed" in done.output
    assert done.output.count("objective, pair") == 1
    assert "2 more failures; --all shows them" in done.output
    assert (tmp_path / "all.xml").read_text().count("<failure") == 3
    done = run(tmp_path, "wrong_port", PORT % "[-1].sum()", monkeypatch, "--all")
    assert done.output.count("objective, pair") == 3
    assert "--all" not in done.output


@pytest.mark.parametrize("option", ["--json", "--junit"])
def test_results_that_cannot_be_written_are_refused_before_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    nowhere = str(tmp_path / "nowhere" / "results")
    command = ["conform", "run", "--port", "grains_ref.conformance.second_oracle", option, nowhere]
    done = CliRunner().invoke(app, command, env={"COLUMNS": "160"})
    assert (done.exit_code, done.stdout) == (1, "")
    assert "there is no folder" in done.output
    if option == "--json":
        live = run(tmp_path, "right_port", PORT % ".sum()", monkeypatch, option, nowhere)
        assert (live.exit_code, live.stdout) == (1, "")
        assert "there is no folder" in live.output


def test_a_port_without_any_function_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(tmp_path, "empty_port", "x = 1", monkeypatch)
    assert done.exit_code == 1
    assert "live_objective" in done.output
