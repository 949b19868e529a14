"""`grains-ref report`, and the pages that other commands write beside their results."""

from __future__ import annotations

import html
import json
import re
import sys
from pathlib import Path

import pytest
from command import ANSWERS, PROMPT, SIMPLE, bad, good, lines, parsed, run
from shared import MINIATURES

from grains_ref.cli import report as report_command
from grains_ref.vectors import SteeringVectors

pytestmark = pytest.mark.cpu


def text_of(page: Path) -> str:
    """What a person reads of a page, in one line."""
    source = re.sub(r"<(style|script).*?</\1>", " ", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", source)).split())


def titles(page: Path) -> list[str]:
    return re.findall(r"<h2[^>]*>(.*?)</h2>", page.read_text(encoding="utf-8"))


def test_attribute_writes_a_page_beside_what_it_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "a.html"
    command = ["attribute", *SIMPLE, "--prompt", PROMPT, *ANSWERS, "--html", str(page)]
    monkeypatch.setattr(sys, "argv", ["grains-ref", *command])
    record = parsed(*command)
    assert (record["prompt"], record["chosen"], record["rejected"]) == (PROMPT, ANSWERS[1], ANSWERS[3])
    assert titles(page) == ["Attribution", "Provenance"]
    text = text_of(page)
    assert PROMPT in text
    assert f"{record['preference_nats']:+.2f}".replace("-", "\u2212") in text
    assert f"grains-ref attribute --model tiny:simple-seed0 --prompt '{PROMPT}'" in text
    assert "simple-seed0" in text
    assert "k=3" in text


def test_a_page_that_cannot_be_written_is_refused_before_the_work(no_model: None, tmp_path: Path) -> None:
    command = ["attribute", *SIMPLE, "--prompt", PROMPT, *ANSWERS, "--html"]
    assert "name a file that ends in .html" in bad(*command, tmp_path / "page.png")
    assert "there is no folder" in bad(*command, tmp_path / "missing" / "page.html")
    assert "there is nothing to --report" in bad(
        "reproduce", "--table", "1", "--dry-run", "--report", tmp_path / "a.html"
    )


def test_fit_shows_its_layers_and_every_pair(data: Path, tmp_path: Path) -> None:
    page, out = tmp_path / "fit.html", tmp_path / "v"
    good("fit", *SIMPLE, "--pairs", data / "steer.jsonl", "--out", out, "--aggregation", "mean", "--report", page)
    assert titles(page) == ["Layers", "Attribution", "Provenance"]
    text = text_of(page)
    header = SteeringVectors.load(out).header
    assert header.signal["line"] in text
    for fact in (header.fingerprint, header.data_digest, header.tokens_digest):
        assert fact in text
    prompts = [json.loads(line)["prompt"] for line in (data / "steer.jsonl").read_text().splitlines()]
    assert all(prompt in text for prompt in prompts)
    assert text.count(" sum ") == len(prompts)  # completeness, pair by pair


def test_sweep_draws_the_limit(data: Path, tmp_path: Path) -> None:
    page = tmp_path / "sweep.html"
    command = ["sweep", *SIMPLE, "--pairs", data / "steer.jsonl", "--dev", data / "dev.jsonl", "--lam", "1,8"]
    command += ["--aggregation", "mean", "--tasks", data / "dev_tasks.jsonl", "--max-loss", "20", "--report", page]
    record = parsed(*command)
    assert titles(page) == ["Strengths", "Layers", "Provenance"]
    text = text_of(page)
    limit = record["best"]["task_accuracy_unsteered"] - 0.2
    assert f"its limit is {100 * limit:.1f} %" in text
    tried = {one["lam"]: one for one in record["tried"]}
    assert tried[0.0]["task_accuracy"] == record["best"]["task_accuracy_unsteered"]
    best = tried[record["best"]["lam"]]
    assert best["task_accuracy"] == pytest.approx(record["best"]["task_accuracy"])
    assert not best["task_accuracy_is_at_most"]


def test_eval_shows_rates_margins_and_answers(data: Path, vectors: Path, tmp_path: Path) -> None:
    page = tmp_path / "eval.html"
    command = ["eval", *SIMPLE, "--pairs", data / "test.jsonl", "--vectors", vectors, "--lam", "6", "--answers", "2"]
    record = parsed(*command, "--report", page)
    assert titles(page) == ["Rates", "Margins", "Answers", "Layers", "Provenance"]
    text = text_of(page)
    for way in ("unsteered", "steered"):
        assert f"{100 * record[way]['preference accuracy']['value']:.1f} %" in text
    assert "lam 6, layers all" in text
    assert page.read_text().count('<article class="answer">') == 2
    change = record["change"]["preference accuracy"]
    assert f"gained / lost {change['gained']} / {change['lost']}" in text
    plain = tmp_path / "plain.html"
    good(*command[:5], "--report", plain)
    assert titles(plain) == ["Rates", "Provenance"]


def test_eval_draws_side_effects_in_the_page_and_as_files(data: Path, vectors: Path, tmp_path: Path) -> None:
    page, svg, png = (tmp_path / name for name in ("eval.html", "moved.svg", "moved.png"))
    command = ["eval", *SIMPLE, "--pairs", data / "test.jsonl", "--vectors", vectors, "--lam", "6", "--answers", "0"]
    command += [
        "--side-effects",
        f"tasks={data / 'tasks.jsonl'}",
        "--side-effects",
        f"toxicity={MINIATURES / 'toxigen'}",
    ]
    record = parsed(*command, "--figure", svg, "--report", page)
    effects = {effect["measure"]: effect for effect in record["side_effects"]["effects"]}
    assert set(effects) == {"tasks", "benign statement preferred"}
    assert effects["tasks"]["unsteered"]["n"] == 10
    assert titles(page)[1:] == ["Margins", "What moved that nobody asked for", "Layers", "Provenance"]
    assert f"{100 * effects['tasks']['steered']['value']:.1f} %" in text_of(page)
    assert svg.read_text().count("tasks.jsonl: 100.0 %") == 1
    assert "#0" not in "".join(re.findall(r"#0[1-9a-f]0[1-9a-f]0[1-9a-f]", svg.read_text()))
    good(*command, "--figure", png)
    assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--side-effects", "wikitext.jsonl"], "expected miniatures or KIND=FILE"),
        (["--side-effects", "spelling=a.jsonl"], "the kinds are perplexity"),
        (["--side-effects", "tasks=missing.jsonl"], "missing.jsonl"),
        (["--figure", "a.svg"], "give --side-effects too"),
        (["--side-effects", "miniatures", "--figure", "a.jpg"], "ends in .svg or .png"),
    ],
)
def test_side_effects_that_cannot_be_read_are_refused_before_a_model_is_loaded(
    data: Path, vectors: Path, no_model: None, options: list[str], message: str
) -> None:
    result = run("eval", *SIMPLE, "--pairs", data / "test.jsonl", "--vectors", vectors, "--lam", "6", *options)
    assert result.exit_code != 0
    assert message in " ".join(result.output.split())
    without = run("eval", *SIMPLE, "--pairs", data / "test.jsonl", "--side-effects", "miniatures")
    assert "give --vectors too" in " ".join(without.output.split())


def test_generate_shows_both_texts(vectors: Path, tmp_path: Path) -> None:
    page = tmp_path / "g.html"
    command = ["generate", *SIMPLE, "--prompt", PROMPT, "--vectors", vectors, "--lam", "2", "--max-new-tokens", "6"]
    (row,) = parsed(*command, "--html", page)
    assert titles(page) == ["Answers", "Provenance"]
    assert row["unsteered"].split()[0] in text_of(page)


def test_report_draws_a_folder_of_what_the_commands_left(vectors: Path, tmp_path: Path) -> None:
    (tmp_path / "v.safetensors").write_bytes(vectors.read_bytes())
    record = parsed("attribute", *SIMPLE, "--prompt", PROMPT, *ANSWERS)
    lines(tmp_path / "attribution.json", [record])
    (tmp_path / "notes.json").write_text("[1")
    result = run("report", tmp_path)
    assert result.exit_code == 0, result.output
    assert "left out: notes.json" in result.stderr
    assert titles(tmp_path / "report.html") == ["Attribution", "Layers", "Provenance"]
    good("report", tmp_path, "--out", tmp_path / "again.html")  # a page in the folder is no part of the next one
    assert titles(tmp_path / "again.html") == ["Attribution", "Layers", "Provenance"]


def test_report_of_nothing_is_refused(tmp_path: Path) -> None:
    assert "holds nothing to report" in bad("report", tmp_path)
    assert "is no folder" in bad("report", tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []


def test_a_secret_of_the_environment_is_no_part_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAINS_JUDGE_API_KEY", "sk-0123456789abcdef")
    monkeypatch.setattr(sys, "argv", ["grains-ref", "reproduce", "--judge-url", "http://h/v1?key=sk-0123456789abcdef"])
    assert report_command.typed_command() == "grains-ref reproduce --judge-url 'http://h/v1?key=***'"
