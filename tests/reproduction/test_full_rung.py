"""The full rung without its models: every dataset's miniature becomes a lab on a tiny random model, and is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from grains_ref.cli import app
from grains_ref.datasets.registry import DATASETS, NAMES, find, fixture
from grains_ref.demo.lab import Lab
from grains_ref.evaluation.judge import Case
from grains_ref.reproduction import cells, full
from grains_ref.reproduction.full import COLUMNS, FullRung
from grains_ref.tiny_models.random_models import random_llama
from grains_ref.tiny_models.random_vision_models import random_llava

pytestmark = pytest.mark.cpu
DATA = {name: str(fixture(name)) for name in NAMES}


class LengthJudge:
    """Calls every second answer a hallucination; remembers what it was shown."""

    def __init__(self) -> None:
        self.cases: list[Case] = []

    @property
    def identity(self) -> str:
        return "every second"

    def __call__(self, case: Case) -> str:
        self.cases.append(case)
        return f"Rating: {6 * (len(self.cases) % 2)}"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny random models with a long context in the place of the released ones."""

    def load(place: str, *, device: str, dtype: str) -> Any:
        model = (random_llama if place == "llm" else random_llava)()
        model.text_config.max_position_embeddings = 4096
        return model

    monkeypatch.setattr(full, "load", load)
    monkeypatch.setattr(full, "check_shown_as", lambda name, config, *, place: None)  # tests/reproduction/test_local.py
    monkeypatch.setattr(full, "MMHAL_TOKENS", 3)


def lab_of(column: str, tmp_path: Path, *, judge: Any = None, n: int = 3) -> Lab:
    weights = {"llama-3.1-8b": "llm", "llava-v1.6-vicuna-7b": "vlm"}
    rung = FullRung(weights, DATA, judge, device="cpu", dtype="float32", n=n, n_tasks=(1, 2))
    return rung(column, 0, tmp_path)


@pytest.mark.parametrize("dataset", ["truthfulqa", "toxigen", "faitheval"])
def test_a_text_dataset_becomes_a_lab(tiny: None, tmp_path: Path, dataset: str) -> None:
    lab = lab_of(f"llama-3.1-8b, {dataset}", tmp_path)
    assert len(lab.steer) == 3
    ids = [{pair.id for pair in part} for part in (lab.steer, lab.dev[0], lab.test[0])]
    assert not ids[0] & ids[1]
    assert not ids[0] & ids[2]
    assert all(ids)
    assert list(lab.facts) == [pair.id for pair in lab.test[0]]
    assert all(task.answer in ("A", "B", "C", "D") for part in (lab.dev, lab.test) for task in part[1])
    assert lab.paper.k == 3
    assert lab.model.baseline(lab.example(0).encoded, lab.neutral).shape == lab.example(0).encoded.embeds.shape


@pytest.mark.thorough
def test_the_same_rows_run_on_it(tiny: None, tmp_path: Path) -> None:
    lab = lab_of("llama-3.1-8b, truthfulqa", tmp_path)
    lab.lams = (1.0,)
    for row in ("unsteered", "GrAInS", "protect + neutral + mean"):
        (draw,) = cells.fill(lab, row)["draws"]
        assert len(draw["right"]) == len(draw["bleu"]) == len(lab.test[0])
        assert len(draw["capable"]) == len(lab.test[1])


def test_hallucinations_are_what_the_judge_says_of_greedy_answers(tiny: None, tmp_path: Path) -> None:
    judge = LengthJudge()
    lab = lab_of("llava-v1.6-vicuna-7b, mmhal", tmp_path, judge=judge)
    assert lab.paper.k == 20
    assert lab.dev[0]
    assert not {pair.id for pair in lab.steer} & {pair.id for pair in lab.dev[0]}
    (draw,) = cells.fill(lab, "unsteered")["draws"]
    n = len(judge.cases)
    assert draw["rejected"].count("1") == n // 2
    assert len(draw["rejected"]) == n > 0
    assert draw["right"] == ""
    assert {bool(case.contents and case.reference and case.question) for case in judge.cases} == {True}


def test_mmhal_without_a_judge_is_refused(tiny: None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a judge"):
        lab_of("llava-v1.6-vicuna-7b, mmhal", tmp_path)


def test_a_picture_dataset_becomes_a_lab(tiny: None, tmp_path: Path) -> None:
    lab = lab_of("llava-v1.6-vicuna-7b, spa_vl", tmp_path)
    assert all(pair.image and pair.image.is_file() for pair in lab.steer)
    assert all(task.image and task.image.is_file() for task in (*lab.dev[1], *lab.test[1]))
    assert "image" in lab.example(0).encoded.kinds


def test_every_column_of_the_paper_has_a_model_and_a_dataset_that_gives_pairs() -> None:
    for columns in COLUMNS.values():
        assert columns
        for column in columns:
            model, dataset = column.split(", ")
            assert model in full.HUB_IDS
            assert find(dataset).pair_rows


def test_the_columns_are_those_of_the_papers_tables() -> None:
    text = ("faitheval", "toxigen", "truthfulqa")
    assert COLUMNS["table 1"] == tuple(f"{model}, {name}" for model in ("llama-3.1-8b", "qwen2.5-7b") for name in text)
    assert COLUMNS["table 2"] == tuple(f"{model}, mmhal" for model in full.VLMS)
    assert COLUMNS["table 3"] == tuple(f"{model}, spa_vl" for model in full.VLMS)
    assert COLUMNS["table 4"] == ("llama-3.1-8b, truthfulqa", "qwen2.5-7b, truthfulqa")
    assert COLUMNS["table 5"] == ("llava-v1.6-vicuna-7b, spa_vl", "qwen2.5-vl-7b, spa_vl")
    assert COLUMNS["table 6"] == tuple(f"llama-3.1-8b, {name}" for name in text)
    assert COLUMNS["table 7"] == COLUMNS["table 8"] == COLUMNS["table 5"]
    assert COLUMNS["figure 3"] == COLUMNS["figure 5"] == COLUMNS["figure 6"] == COLUMNS["table 4"]
    assert COLUMNS["cost"] == (*COLUMNS["table 4"], "llava-v1.6-vicuna-7b, spa_vl")


def test_general_ability_is_measured_on_a_test_of_it() -> None:
    for kind, name in full.CAPABILITY.items():
        assert find(name).capability
        assert find(name).pictures == (kind == "visual")
    for dataset in DATASETS.values():  # a dataset gives pairs, or tests general ability, here or in the harness
        assert [dataset.pair_rows, dataset.capability, dataset.harness].count(None) == 2


def test_the_dry_run_builds_the_models_reads_the_miniatures_and_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(full, "LLMS", full.LLMS[:1])
    command = ["reproduce", "--rung", "full", "--table", "6", "--dry-run", "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(app, [*command, "--data", f"truthfulqa={DATA['truthfulqa']}"], env={"COLUMNS": "200"})
    assert found.exit_code == 0, found.output
    text = " ".join(found.stdout.split())
    assert "8.03 billion parameters and 32 blocks on meta" in text
    assert "model llama-3.1-8b: hf download meta-llama/Llama-3.1-8B-Instruct; then --weights" in text
    assert "dataset mmlu: not on this machine" in text
    assert "dataset truthfulqa:" not in text  # it is there
    assert "things are missing" in text
    refused = CliRunner().invoke(app, [*command[:-3], "--out", str(tmp_path / "out")])
    assert refused.exit_code == 1
    assert "nothing was run" in refused.output
