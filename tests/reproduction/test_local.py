"""reproduction/local.py: models and pairs of one's own on the full rung, and never under another's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from grains_ref.cli import app
from grains_ref.reproduction import full, local
from grains_ref.reproduction.full import COLUMNS, FullRung, columns_of, inventory
from grains_ref.reproduction.local import (
    check_name,
    check_shown_as,
    differences,
    own_columns,
    read_own_pairs,
    shape_in_words,
)
from grains_ref.tiny_models.full_size import read_config
from grains_ref.tiny_models.random_models import random_llama

pytestmark = pytest.mark.cpu


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair_rows(n: int, *, start: int = 0) -> list[dict[str, Any]]:
    return [{"prompt": f"Question {i}?", "chosen": f"yes {i}", "rejected": "no"} for i in range(start, start + n)]


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    model = random_llama()
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


# --- a model is shown as what it is


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen2.5-7b", "gemma-3-12b"])
def test_the_papers_own_configuration_passes(name: str) -> None:
    assert differences(name, read_config(name)) == []


def test_another_architecture_and_another_shape_are_told() -> None:
    assert differences("llama-3.1-8b", read_config("qwen2.5-7b")) == ["architecture qwen2, not llama"]
    wider = read_config("llama-3.1-8b", hidden_size=8192, num_hidden_layers=80)
    assert differences("llama-3.1-8b", wider) == ["num_hidden_layers 80, not 32", "hidden_size 8192, not 4096"]
    assert differences("llama-3.1-8b", read_config("llama-3.1-8b", vocab_size=128257)) == [
        "vocab_size 128257, not 128256"
    ]


def test_a_model_under_anothers_name_is_refused_before_and_after_it_is_loaded(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = local.read_model_config(str(llama_folder))
    with pytest.raises(ValueError, match=r"is not llama-3.1-8b: num_hidden_layers .* --model NAME="):
        check_shown_as("llama-3.1-8b", config, place=str(llama_folder))

    part, *_ = inventory(["llama-3.1-8b, truthfulqa"], FullRung({"llama-3.1-8b": str(llama_folder)}, {}, None))
    assert f"{llama_folder} is not llama-3.1-8b" in part.missing

    monkeypatch.setattr(full, "load", lambda place, *, device, dtype: random_llama())
    rung = FullRung({"llama-3.1-8b": "somewhere"}, {}, None, device="cpu", dtype="float32")
    with pytest.raises(ValueError, match="somewhere is not llama"):
        rung("llama-3.1-8b, truthfulqa", 0, llama_folder)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "truthfulqa", "simple"])
def test_ones_own_thing_has_a_name_of_its_own(name: str) -> None:
    with pytest.raises(ValueError, match="is the name of a model, dataset or world"):
        check_name(name, taken={"llama-3.1-8b", "truthfulqa", "simple"})


@pytest.mark.parametrize("name", ["", "a, b", "a/b", "-x", "ü"])
def test_a_name_that_cannot_head_a_column_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot head a column"):
        check_name(name, taken=())
    check_name("SmolLM2-135M_v1.0", taken=())


# --- columns


def test_ones_own_take_the_place_of_the_papers_and_the_rest_stays() -> None:
    columns = ("a, x", "a, y", "b, x")
    assert own_columns(columns, ["mine"], []) == ("mine, x", "mine, y")
    assert own_columns(columns, [], ["facts"]) == ("a, facts", "b, facts")
    assert own_columns(columns, ["mine"], ["facts", "tone"]) == ("mine, facts", "mine, tone")
    plain = FullRung({"llama-3.1-8b": "there"}, {}, None)
    assert columns_of("table 1", plain) == COLUMNS["table 1"]
    own = FullRung({"mine": "here", "llama-3.1-8b": "there"}, {}, None, pairs={"facts": "f"})
    assert columns_of("table 1", own) == ("mine, facts",)
    assert columns_of("table 3", own) == ()
    assert columns_of("cost", own) == ("mine, facts",)


# --- pairs


def test_a_file_is_split_by_prompt_and_seed(tmp_path: Path) -> None:
    twice = [row | {"chosen": f"again {i}"} for i, row in enumerate(pair_rows(40))]
    path = write(tmp_path / "pairs.jsonl", pair_rows(40) + twice)
    own = read_own_pairs(str(path), n=10, seed=0)
    assert (len(own.steer), len(own.dev), len(own.test)) == (20, 20, 40)
    asked = [{pair.prompt for pair in part} for part in (own.steer, own.dev, own.test)]
    assert not asked[0] & asked[1]
    assert not asked[0] & asked[2]
    assert not asked[1] & asked[2]
    assert [pair.prompt for pair in read_own_pairs(str(path), n=10, seed=0).test] == [p.prompt for p in own.test]
    assert [pair.prompt for pair in read_own_pairs(str(path), n=10, seed=1).test] != [p.prompt for p in own.test]
    assert own.words == "20 steering, 20 dev and 40 test pairs; no tasks"
    with pytest.raises(ValueError, match="has 40 different prompts; 38 are needed for steering, and others"):
        read_own_pairs(str(path), n=38, seed=0)


def test_a_folder_has_its_parts_and_no_prompt_in_two_of_them(tmp_path: Path) -> None:
    write(tmp_path / "steer.jsonl", pair_rows(3))
    with pytest.raises(ValueError, match=r"holds no dev.jsonl, test.jsonl; expected steer.jsonl"):
        read_own_pairs(str(tmp_path), n=50, seed=0)
    write(tmp_path / "dev.jsonl", pair_rows(2, start=10))
    write(tmp_path / "test.jsonl", pair_rows(2, start=20))
    own = read_own_pairs(str(tmp_path), n=50, seed=0)
    assert (own.words, own.dev_tasks) == ("3 steering, 2 dev and 2 test pairs; no tasks", ())
    write(tmp_path / "dev_tasks.jsonl", [{"prompt": "1 + 1 =", "answer": " 2"}])
    write(tmp_path / "tasks.jsonl", [{"prompt": "1 + 2 =", "answer": " 3"}, {"prompt": "2 + 2 =", "answer": " 4"}])
    again = read_own_pairs(str(tmp_path), n=50, seed=0)
    assert again.words.endswith("; 1 and 2 tasks")
    assert again.digest == own.digest
    write(tmp_path / "test.jsonl", [*pair_rows(2, start=20), {"prompt": " question 1", "chosen": "a", "rejected": "b"}])
    with pytest.raises(ValueError, match=r"1 prompts are in both steer.jsonl and test.jsonl"):
        read_own_pairs(str(tmp_path), n=50, seed=0)


def test_any_model_and_any_pairs_become_a_lab(tmp_path: Path, llama_folder: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", pair_rows(12))
    rung = FullRung(
        {"mine": str(llama_folder)}, {}, None, device="cpu", dtype="float32", n=4, pairs={"facts": str(path)}
    )
    assert [part.missing for part in inventory(["mine, facts"], rung)] == ["", ""]
    lab = rung("mine, facts", 0, tmp_path)
    assert (len(lab.steer), len(lab.dev[0]), len(lab.test[0])) == (4, 3, 5)
    assert (lab.dev[1], lab.test[1]) == ((), ())
    assert lab.bench.allowed == 0
    assert lab.bench.choose([]).accuracy == lab.bench.choose([]).accuracy
    assert shape_in_words(lab.model.hf.config).startswith("llama, 3 blocks of width")


# --- the command


@pytest.mark.thorough
def test_the_command_runs_any_model_on_any_pairs(tmp_path: Path, llama_folder: Path) -> None:
    write(tmp_path / "steer.jsonl", pair_rows(4))
    write(tmp_path / "dev.jsonl", pair_rows(3, start=10))
    write(tmp_path / "test.jsonl", pair_rows(4, start=20))
    command = ["reproduce", "--rung", "full", "--figure", "5", "--device", "cpu", "--dtype", "float32"]
    command += ["--model", f"mine={llama_folder}", "--pairs", f"facts={tmp_path}"]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out")], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert list(record["figures"]["figure 5"]) == ["mine, facts"]
    inputs = json.loads((tmp_path / "out" / "inputs.json").read_text())
    assert inputs["pairs of facts"].startswith(str(tmp_path))
    assert "4 steering, 3 dev and 4 test pairs; no tasks" in done.stdout

    write(tmp_path / "test.jsonl", pair_rows(5, start=20))
    refused = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out")])
    assert refused.exit_code == 1
    assert "holds cells of other inputs" in " ".join(refused.output.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "llama-3.1-8b=x"], "'llama-3.1-8b' is the name of a model, dataset or world"),
        (["--model", "mine"], "--model 'mine': expected NAME=PLACE"),
        (["--model", "mine=x", "--model", "mine=y"], "'mine' is the name of a model"),
        (["--pairs", "facts=x", "--table", "3"], "table 3: of models that see; --model and --pairs take texts"),
    ],
)
def test_wrong_names_and_tables_are_refused_before_anything_is_read(options: list[str], words: str) -> None:
    refused = CliRunner().invoke(app, ["reproduce", "--rung", "full", "--table", "1", *options, "--dry-run"])
    assert refused.exit_code == 1
    assert words in " ".join(refused.output.split())


def test_ones_own_are_of_the_full_rung() -> None:
    refused = CliRunner().invoke(app, ["reproduce", "--table", "1", "--model", "mine=x"])
    assert refused.exit_code == 1
    assert "are for --rung full" in " ".join(refused.output.split())
