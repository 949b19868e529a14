"""Further tests of ability: asked for by name, allowed by the user, judged by lm-evaluation-harness, steered.

What needs the harness runs where it is installed (`tox -e peer-lm-eval`); a scripted one stands in for it elsewhere.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from grains_ref.cli import app
from grains_ref.datasets.registry import fixture
from grains_ref.grains import Steering
from grains_ref.reproduction import abilities, full, kept, paper, statistics
from grains_ref.reproduction.abilities import ABILITIES, CODE_SWITCH, Ability
from grains_ref.reproduction.full import FullRung
from grains_ref.reproduction.pages import table_page
from grains_ref.tiny_models.random_models import random_llama
from grains_ref.tiny_models.random_vision_models import random_llava

pytestmark = pytest.mark.cpu
HAS_HARNESS = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not HAS_HARNESS, reason="needs lm-evaluation-harness: tox -e peer-lm-eval")


# ------------------------------------------------------------------------------------- what is allowed
@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CODE_SWITCH, "1")


def test_code_is_not_run_unless_the_caller_says_so(allowed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment alone allows nothing, and nothing is read or loaded first."""
    monkeypatch.setattr(abilities, "what_lacks", lambda name: pytest.fail("looked further"))
    with pytest.raises(ValueError, match=r"runs code that the model wrote.*--confirm-run-unsafe-code"):
        Ability(None, "humaneval", fixture("humaneval"), run_code=False)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="runs code that the model wrote"):
        FullRung({}, {}, None, abilities=("humaneval",))
    assert FullRung({}, {}, None, abilities=("xstory_cloze",)).abilities == ("xstory_cloze",)


def test_the_switch_of_the_library_is_the_users_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    for value in ("", "0", "yes"):
        monkeypatch.setenv(CODE_SWITCH, value)
        assert "set HF_ALLOW_CODE_EVAL=1" in abilities.what_lacks("humaneval")
        with pytest.raises(ValueError, match="set HF_ALLOW_CODE_EVAL=1"):
            Ability(None, "humaneval", fixture("humaneval"), run_code=True)  # type: ignore[arg-type]
    assert abilities.what_lacks("xstory_cloze") == ""
    monkeypatch.setenv(CODE_SWITCH, "1")
    assert abilities.what_lacks("humaneval") == ""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "grains-ref[lm-eval]" in abilities.what_lacks("xstory_cloze")


def test_an_unknown_ability_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match="no ability 'mmlu'; there are humaneval, writing_prompts, xstory_cloze"):
        FullRung({}, {}, None, abilities=("mmlu",))


# ------------------------------------------------------------------------------------- tables and cells
def test_every_ability_is_a_measure_that_cells_keep() -> None:
    for name in ABILITIES:
        assert name in get_args(paper.Measure)
        assert name in paper.MEASURES
        assert name in paper.OF_TASKS
        assert name in kept.OUTCOMES


def test_tables_4_and_5_alone_have_them_and_only_when_asked() -> None:
    for spec in paper.TABLES:
        assert paper.with_abilities(spec, ()) == spec or spec.measures == paper.with_abilities(spec, ()).measures
        measures = paper.with_abilities(spec, ("xstory_cloze", "humaneval")).measures
        further = ("humaneval", "xstory_cloze") if spec.name in ("table 4", "table 5") else ()
        assert measures == (*spec.measures, *further)
    assert {"unsteered", "GrAInS", "CAA", "VTI"} <= paper.ABILITY_ROWS
    assert "Guided IG" not in paper.ABILITY_ROWS  # of table 6


def cell(solved: str | None) -> dict[str, Any]:
    draw = {"label": "x", "strength": 1.0, "tried": [("x", 1.0, 0.5)], "right": "10", "capable": "11", "bleu": "10"}
    return {"draws": [draw if solved is None else draw | {"humaneval": solved}]}


def table(base: str | None, steered: str | None) -> tuple[Any, Any]:
    spec = paper.TableSpec("table 4", "", "text", ("capable", "humaneval"), {"Base": "unsteered", "GrAInS": "GrAInS"})
    cells = {("w", 0, "unsteered"): cell(base), ("w", 0, "GrAInS"): cell(steered)}
    return spec, statistics.results(spec, ["w"], cells, {("w", 0): ["one fact", "one fact"]}, [0])


def test_problems_are_no_prompts_of_facts_even_if_there_are_as_many() -> None:
    """Two test prompts about one fact, and two problems: two clusters, so that there is an interval."""
    spec, results = table("11", "01")
    lost = results["GrAInS", "w", "humaneval"]
    assert lost.value.value == 0.5
    assert lost.gain.value == -0.5
    assert lost.gain.low < -0.5 < lost.gain.high
    page = table_page(spec, ["w"], results)
    assert "w: HumanEval, pass@1" in page
    assert "| 100.0 |" in page
    assert "-50.0" in page


def test_cells_from_before_an_ability_was_asked_for_are_told_and_never_counted() -> None:
    for base, steered in ((None, "01"), ("11", None)):
        spec, results = table(base, steered)
        assert "finished before HumanEval, pass@1 was asked for" in results["GrAInS", "w", "humaneval"]
        assert "name another --out" in table_page(spec, ["w"], results)


# ------------------------------------------------------------------------------------- the full rung
DATA = {name: str(fixture(name)) for name in ("truthfulqa", "toxigen", "mmlu", *ABILITIES)}


def rung(**changes: Any) -> FullRung:
    options = {"device": "cpu", "dtype": "float32", "n": 3, "n_tasks": (1, 2)} | changes
    return FullRung({"llama-3.1-8b": "llm"}, DATA, None, **options)


def test_the_full_rung_asks_them_in_the_columns_of_their_tables_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = []

    def scripted(model: Any, name: str, source: str, *, run_code: bool) -> Any:
        made.append((name, source, run_code))
        return lambda: [True]

    def load(place: str, *, device: str, dtype: str) -> Any:
        model = random_llama()
        model.text_config.max_position_embeddings = 4096
        return model

    monkeypatch.setattr(full, "Ability", scripted)
    monkeypatch.setattr(full, "load", load)
    monkeypatch.setattr(full, "check_shown_as", lambda name, config, *, place: None)
    asked = rung(abilities=("xstory_cloze", "humaneval"), run_code=True)
    lab = asked("llama-3.1-8b, truthfulqa", 0, tmp_path)
    assert list(lab.abilities) == ["humaneval", "xstory_cloze"]
    assert made == [("humaneval", DATA["humaneval"], True), ("xstory_cloze", DATA["xstory_cloze"], True)]
    assert asked("llama-3.1-8b, toxigen", 0, tmp_path).abilities == {}  # in no table 4
    assert rung()("llama-3.1-8b, truthfulqa", 0, tmp_path).abilities == {}
    assert len(made) == 2


def test_the_inventory_names_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CODE_SWITCH, raising=False)
    monkeypatch.setattr(full, "_model_part", lambda name, place: full.Part("model", name, "", ""))
    monkeypatch.setattr(full, "_dataset_part", lambda name, source: full.Part("dataset", name, "", ""))
    parts = full.inventory(["llama-3.1-8b, truthfulqa"], rung(abilities=("humaneval",), run_code=True))
    assert [part.name for part in parts if part.kind == "dataset"] == ["truthfulqa", "mmlu", "humaneval"]
    (ability,) = [part for part in parts if part.kind == "ability"]
    assert ability.missing
    assert ability.checked == "runs code"
    assert not [part for part in full.inventory(["llama-3.1-8b, truthfulqa"], rung()) if part.kind == "ability"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "4", "--ability", "humaneval"], "runs code that the model wrote"),
        (["--table", "1", "--ability", "xstory_cloze"], "--ability adds to table 4 and table 5"),
        (["--table", "4", "--ability", "poems"], "there is no ability 'poems'"),
    ],
)
def test_the_command_refuses_what_it_cannot_show_or_may_not_run(
    arguments: Sequence[str], message: str, tmp_path: Path
) -> None:
    done = CliRunner().invoke(app, ["reproduce", "--rung", "full", *arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert message in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------- a scripted harness
class ScriptedHarness:
    """What `lm_eval` is asked, and an answer with its questions in another order."""

    def __init__(self, folder: Path) -> None:
        self.__file__ = str(folder / "__init__.py")
        self.asked: dict[str, Any] = {}
        self.tasks: list[str] = []
        self.forgets = 0

    def load(self, names: Sequence[str]) -> str:
        return names[0]

    def evaluate(self, lm: Any, loaded: str, **options: Any) -> dict[str, Any]:
        self.asked = options
        solved = [{"doc_id": i, "acc": float(i % 3 == 0), "pass@1": float(i % 2 == 0)} for i in range(12)]
        return {"samples": {loaded: solved[::-1][self.forgets :]}}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, allowed: None) -> ScriptedHarness:
    harness = ScriptedHarness(tmp_path)

    def manager(*, include_path: str, include_defaults: bool) -> ScriptedHarness:
        assert not include_defaults
        harness.tasks.append((Path(include_path) / "task.yaml").read_text(encoding="utf-8"))
        return harness

    monkeypatch.setattr(abilities, "what_lacks", lambda name: "")
    monkeypatch.setitem(sys.modules, "lm_eval", harness)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", SimpleNamespace(TaskManager=manager))  # type: ignore[arg-type]
    adapter = SimpleNamespace(HarnessModel=lambda model, *, batch_size: model)
    monkeypatch.setitem(sys.modules, "grains_ref.evaluation.lm_eval", adapter)  # type: ignore[arg-type]
    return harness


def chat_model(template: str) -> Any:
    return SimpleNamespace(prompts=SimpleNamespace(template_digest=template))


def test_outcomes_are_in_the_order_of_the_rows(scripted: ScriptedHarness) -> None:
    code = Ability(chat_model("t"), "humaneval", fixture("humaneval"), run_code=True)
    assert code() == [i % 2 == 0 for i in range(12)]
    assert scripted.asked["confirm_run_unsafe_code"] is True
    stories = Ability(chat_model("t"), "xstory_cloze", fixture("xstory_cloze"), run_code=True)
    assert stories() == [i % 3 == 0 for i in range(12)]
    assert scripted.asked["confirm_run_unsafe_code"] is False  # not needed, so not given


def test_a_question_without_an_answer_is_told(scripted: ScriptedHarness) -> None:
    scripted.forgets = 1
    stories = Ability(chat_model(""), "xstory_cloze", fixture("xstory_cloze"), run_code=False)
    with pytest.raises(ValueError, match="12 questions, and answers to 11"):
        stories()


@pytest.mark.parametrize(("template", "task", "chat"), [("t", "humaneval_instruct", True), ("", "humaneval", False)])
def test_a_model_with_a_chat_template_is_asked_through_it(
    scripted: ScriptedHarness, template: str, task: str, chat: bool
) -> None:
    Ability(chat_model(template), "humaneval", fixture("humaneval"), run_code=True)()
    assert f"/humaneval/{task}.yaml" in Path(scripted.tasks[0].splitlines()[0].split('"')[1]).as_posix()
    assert scripted.asked["apply_chat_template"] is chat
    Ability(chat_model(template), "xstory_cloze", fixture("xstory_cloze"), run_code=False)()
    assert scripted.asked["apply_chat_template"] is False  # a story goes on, whatever the model


def test_a_task_that_cannot_be_built_says_where_its_judge_comes_from(scripted: ScriptedHarness) -> None:
    def unreachable(names: Sequence[str]) -> str:
        raise FileNotFoundError("code_eval")

    scripted.load = unreachable  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"cannot build its task.*FileNotFoundError.*evaluate\.load"):
        Ability(chat_model(""), "humaneval", fixture("humaneval"), run_code=True)
    with pytest.raises(ValueError, match=r"cannot build its task \(FileNotFoundError: code_eval\)$"):
        Ability(chat_model(""), "xstory_cloze", fixture("xstory_cloze"), run_code=False)


# ------------------------------------------------------------------------------------- the harness itself
class LocalJudge:
    """What `evaluate`'s code_eval does, for solutions that the test itself brings: each in a process of its own."""

    def compute(
        self, references: list[str], predictions: list[list[str]], k: list[int]
    ) -> tuple[dict[str, float], Any]:
        passed = []
        for reference, (program,) in zip(references, predictions, strict=True):
            command = [sys.executable, "-I", "-c", f"{program}\n{reference}"]
            passed.append(subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0)
        return {"pass@1": sum(passed) / len(passed)}, {}


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, allowed: None) -> None:
    import evaluate

    monkeypatch.setattr(evaluate, "load", lambda name: LocalJudge())
    monkeypatch.setattr("datasets.config.HF_UPDATE_DOWNLOAD_COUNTS", False)


@needs_harness
@pytest.mark.parametrize("make", [random_llama, random_llava])
def test_the_harness_says_which_completions_pass(harness: None, monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    from grains_ref.evaluation.lm_eval import HarnessModel

    model = make()
    model.text_config.max_position_embeddings = 4096
    code = Ability(model, "humaneval", fixture("humaneval"), run_code=True)
    solutions = {row["prompt"].strip(): row["canonical_solution"] for row in code.rows}
    seen: list[str] = []

    def answers(self: Any, contexts: Sequence[str], options: dict[str, Any]) -> list[str]:
        seen.extend(contexts)
        texts = []
        for context in contexts:
            (solution,) = [text for prompt, text in solutions.items() if prompt in context]
            texts.append("\n    return None\n" if "def fold" in context else "\n" + solution)
        return texts

    monkeypatch.setattr(HarnessModel, "_generate", answers)
    expected = [row["entry_point"] != "fold" for row in code.rows]
    assert code() == expected
    assert code() == expected  # asked again, as for every row of a table
    assert len(seen) == 24
    assert "Write a solution to the following problem" in seen[0]  # the instruct task, in the user's message
    assert seen[0].count("def ") >= 2  # and the answer begun


@needs_harness
@pytest.mark.skipif("GRAINS_CODE_EVAL" not in os.environ, reason="set GRAINS_CODE_EVAL to the folder of code_eval.py")
def test_the_librarys_own_judge_says_the_same(allowed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """`metrics/code_eval` of huggingface/evaluate, which `evaluate` would fetch from the hub."""
    import evaluate

    from grains_ref.evaluation.lm_eval import HarnessModel

    judge = evaluate.load(os.environ["GRAINS_CODE_EVAL"])
    monkeypatch.setattr(evaluate, "load", lambda name: judge)
    monkeypatch.setattr("datasets.config.HF_UPDATE_DOWNLOAD_COUNTS", False)
    model = random_llama()
    model.text_config.max_position_embeddings = 4096
    code = Ability(model, "humaneval", fixture("humaneval"), run_code=True)

    def answers(self: Any, contexts: Sequence[str], options: dict[str, Any]) -> list[str]:
        texts = []
        for context in contexts:
            (row,) = [row for row in code.rows if row["prompt"].strip() in context]
            texts.append("\n    return None\n" if row["entry_point"] == "fold" else "\n" + row["canonical_solution"])
        return texts

    monkeypatch.setattr(HarnessModel, "_generate", answers)
    assert code() == [row["entry_point"] != "fold" for row in code.rows]


@needs_harness
def test_the_likelier_ending_counts_and_steering_moves_it(harness: None) -> None:
    from grains_ref.models import TokenRow

    model = random_llama()
    stories = Ability(model, "xstory_cloze", fixture("xstory_cloze"), run_code=False)
    plain = stories()
    by_hand = []
    for row in stories.rows:
        prompt = tuple(model.encode(" ".join(row[f"input_sentence_{i}"] for i in range(1, 5))).ids.tolist())
        rows = [
            TokenRow(prompt, tuple(model.response_ids("\n", " " + row[f"sentence_quiz{i}"]).tolist())) for i in (1, 2)
        ]
        first, second = (scored.log_prob for scored in model.score_rows(rows))
        by_hand.append((first > second) == (row["answer_right_ending"] == 1))
    assert plain == by_hand
    assert 0 < sum(plain) < 12
    import torch

    v = torch.randn(len(model.blocks), model.width, generator=torch.Generator().manual_seed(1))
    with Steering(model.blocks, v, lam=3.0):
        assert stories() != plain
    assert stories() == plain


@needs_harness
@pytest.mark.parametrize("make", [random_llama, random_llava])
def test_the_harness_says_which_answers_are_stories(harness: None, monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    from grains_ref.evaluation.lm_eval import HarnessModel

    model = make()
    model.text_config.max_position_embeddings = 4096
    stories = Ability(model, "writing_prompts", fixture("writing_prompts"), run_code=False)
    asked: list[tuple[str, int]] = []

    def answers(self: Any, contexts: Sequence[str], options: dict[str, Any]) -> list[str]:
        asked.extend((context, options["max_gen_toks"]) for context in contexts)
        circle = "and on it went " * 40
        return [circle if "dragon" in text else " ".join(f"word{i}x" for i in range(100)) for text in contexts]

    monkeypatch.setattr(HarnessModel, "_generate", answers)
    assert stories() == ["dragon" not in row["prompt"] for row in stories.rows]
    assert all("Write a short story" in context and "[ WP ]" not in context for context, _ in asked)
    assert {n for _, n in asked} == {256}


@needs_harness
def test_the_task_is_the_harnesss_own_but_for_its_questions(harness: None) -> None:
    import lm_eval
    import yaml

    stories = Ability(random_llama(), "xstory_cloze", fixture("xstory_cloze"), run_code=False)
    written = yaml.safe_load((Path(stories._folder.name) / "task.yaml").read_text(encoding="utf-8"))
    assert Path(written["include"]).is_relative_to(Path(lm_eval.__file__).parent / "tasks")
    assert set(written) == {"include", "task", "dataset_path", "dataset_name", "dataset_kwargs", "training_split"}
    lines = Path(written["dataset_kwargs"]["data_files"]["eval"]).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["story_id"] for line in lines] == [row.id for row in stories.rows]
