"""`grains-ref check`."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from command import bad, good, parsed, run

from grains_ref.tiny_models.random_models import fill, random_llama

pytestmark = pytest.mark.cpu


def test_check_prints_every_line_of_the_proof_and_what_the_model_is() -> None:
    said = good("check", "tiny:simple-seed0")
    assert said.count("passed") == 12
    assert "scores behind a cache are recomputed ones" in " ".join(said.split())
    assert "can be attributed and steered" in said
    record = parsed("check", "tiny:simple-seed0")
    assert (record["passed"], record["refusal"], record["sees"]) == (True, "", False)
    assert len(record["checks"]) == 12


def test_check_of_a_refused_model_shows_what_was_found_until_then_and_fails(tmp_path: Path) -> None:
    tokenizer = random_llama().tokenizer
    config = transformers.OpenAIGPTConfig(vocab_size=347, n_positions=128, n_embd=8, n_layer=2, n_head=2)
    hf = transformers.AutoModelForCausalLM.from_config(config)
    fill(hf, "gpt")
    hf.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    result = run("check", tmp_path, "--json")
    assert result.exit_code == 1
    assert '"passed": false' in result.stdout
    assert "found a list of block 0" in result.stderr
    assert "FAILED" in run("check", tmp_path).stdout


def test_check_of_what_is_no_model_is_the_same_error_as_everywhere(tmp_path: Path) -> None:
    assert "there is no folder" in bad("check", tmp_path / "nothing")
