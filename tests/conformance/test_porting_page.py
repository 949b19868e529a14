"""The ports that docs/porting.md prints are right: a reader who copies one gets what the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from grains_ref.cli.common import load_model, model_path
from grains_ref.conformance import options
from grains_ref.conformance.budgets import load_budgets
from grains_ref.conformance.dialects import AUTHORS, PAPER
from grains_ref.conformance.live import FUNCTIONS, check_live
from grains_ref.conformance.ports import PythonPort
from grains_ref.conformance.runner import run_port
from grains_ref.conformance.stages import STAGES
from grains_ref.conformance.toy import FORMULAS
from grains_ref.data import PreferencePair, RowError
from grains_ref.tiny_models.worlds import build_world

pytestmark = pytest.mark.cpu

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "porting.md").read_text(encoding="utf-8")


def printed(name: str) -> ModuleType:
    """The module that the page prints under this file name."""
    (code,) = re.findall(rf"```python\n# {name}\.py\n(.*?)```", PAGE, re.DOTALL)
    module = ModuleType(name)
    exec(compile(code, f"{name}.py", "exec"), module.__dict__)
    return module


def test_the_ten_lines_in_pytorch_pass_in_every_dtype() -> None:
    port = PythonPort(printed("torch_port"))
    cases = [case for case in PAPER.cases if case.stage == "steering"]
    run = run_port(port, load_budgets(), cases=cases, modes=("isolated",))
    assert run.dtypes == ("float64", "float32", "float16", "bfloat16")
    assert [result for result in run.results if result.status not in ("passed", "not claimable")] == []
    assert len(run.results) > 4 * 20


def test_the_port_of_the_first_diagnosis_has_the_bug_that_the_page_finds() -> None:
    cases = [case for case in PAPER.cases if case.id == "steering-001"]
    run = run_port(PythonPort(printed("my_port")), load_budgets(), cases=cases, modes=("isolated",))
    likely = run.likely_bug("steering")
    assert likely is not None
    assert likely.bug == "norm_over_sequence"


def test_the_live_port_passes_every_check() -> None:
    name, port = "tiny:simple-seed0", printed("my_live")
    assert all(callable(getattr(port, function)) for function in FUNCTIONS)
    pairs = [PreferencePair(p.id, p.prompt, p.chosen, p.rejected, "") for p in build_world("simple").split("steer")[:1]]
    model = load_model(name, "float32", "cpu", "")
    results = check_live(model, pairs, port, path=model_path(name), m=1)
    assert [result for result in results if result.status != "passed"] == []
    assert len(results) == 14


def test_the_table_of_functions_is_that_of_the_kit() -> None:
    assert all(f"| {name}(handle, " in PAGE for name in FUNCTIONS)


def test_the_page_gives_the_decoder_and_the_options_as_the_kit_has_them() -> None:
    assert FORMULAS in PAGE
    assert "\n".join(options.table()) in PAGE
    assert options.TAKES.keys() == options.RULES.keys() == options.ORACLE.keys()


def test_the_pairs_that_the_page_prints_are_pairs_on_the_model_that_it_names() -> None:
    (printed_pair,) = re.findall(r"```json\n(\{\"prompt\".*?)\n```", PAGE)
    row = json.loads(printed_pair)
    model = load_model("tiny:simple-seed0", "float32", "cpu", "")
    example = model.example(row["prompt"], row["chosen"], row["rejected"])
    ids = [*example.encoded.ids.tolist(), *example.y_pos.tolist(), *example.y_neg.tolist()]
    assert model.tokenizer.unk_token_id not in ids


def test_a_live_check_refuses_answers_of_the_same_tokens_with_their_row() -> None:
    model = load_model("tiny:simple-seed0", "float32", "cpu", "")
    unknown = PreferencePair("", "Q : what ? A :", "zzzx", "qqqy", "pairs.jsonl:1")  # no words of this vocabulary
    with pytest.raises(RowError, match=r"pairs\.jsonl:1: field 'rejected': the same tokens as 'chosen'"):
        check_live(model, [unknown], printed("my_live"), path=model_path("tiny:simple-seed0"), m=1)


def test_counts_in_texts_are_those_of_the_kit() -> None:
    on_stages = [bug for bug in PAPER.bugs if bug.stage in STAGES]
    names = len({bug.name for bug in on_stages})
    cases = sum(case.stage in STAGES for case in PAPER.cases)
    of_options = sum(case.stage not in STAGES for case in AUTHORS.cases)
    planted = sum(bug.stage in STAGES for bug in AUTHORS.bugs)
    readme, decisions = ((ROOT / path).read_text(encoding="utf-8") for path in ("README.md", "docs/decisions.md"))
    for expected, text in (
        (f"which of {names} known mistakes gives the same output. It has {cases} cases", PAGE),
        (f"It knows {names} mistakes", PAGE),
        (f"{cases} cases, {names} planted mistakes", readme),
        (f"names all {len(options.ORACLE)} options", PAGE),
        (f"\n{len(AUTHORS.cases)} cases, {of_options} of them an option's, with vectors, budgets and {planted} ", PAGE),
        (f"judges a port by {len(AUTHORS.cases)} stored cases", decisions),
    ):
        assert expected in text, f"{expected!r} is not what the text says"
    for stage in STAGES:
        number = sum(bug.stage == stage for bug in on_stages)
        assert f"| {stage} | {number} | " in PAGE, f"{stage} has {number} planted bugs"
