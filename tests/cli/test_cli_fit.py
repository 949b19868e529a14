"""`grains-ref fit`, and how files of pairs are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command import SIMPLE, bad, good, lines, parsed, run
from shared import first_quick

import grains_ref.fitting.edit_gradient
from grains_ref.demo import planted as demo
from grains_ref.evaluation import margins
from grains_ref.files import only_writer_of
from grains_ref.fitting import checked_examples
from grains_ref.fitting.signal import Signal
from grains_ref.fitting.work_folder import open_work_folder
from grains_ref.grains import HyperParameters, eligible_tokens, fit, select
from grains_ref.grains import attribute as attribute_example
from grains_ref.methods import edit_gradient
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.random_models import random_llama
from grains_ref.tiny_models.worlds import build_world
from grains_ref.vectors import SteeringVectors

pytestmark = pytest.mark.cpu


# --- fit


def test_fit_writes_the_vectors_of_the_reference_and_removes_its_work_folder(
    data: Path, vectors: Path, tmp_path: Path, simple_model: HuggingFaceModel
) -> None:
    pairs = demo.as_pairs(build_world("simple").split("steer")[:4])
    _, examples, _ = checked_examples(simple_model, pairs, skip_bad_rows=False)
    expected = fit(simple_model, examples, HyperParameters(aggregation="mean"))
    v = expected.pos.v.float() - expected.neg.v.float()
    found = SteeringVectors.load(vectors)
    assert found.v == pytest.approx(v, abs=1e-5)
    assert found.header.engine == "fast"
    assert not list(data.glob("*.work"))
    options = ["--pairs", data / "steer.jsonl", "--aggregation", "mean", "--engine", "reference"]
    parsed("fit", *SIMPLE, *options, "--out", tmp_path / "slow")
    assert torch.equal(SteeringVectors.load(tmp_path / "slow").v, v)


def test_an_engine_or_a_budget_that_does_not_exist_is_refused_before_the_model_is_loaded(
    data: Path, tmp_path: Path
) -> None:
    pairs = ["--pairs", data / "steer.jsonl", "--out", tmp_path / "v"]
    for options, message in (
        (["--engine", "quick"], "--engine 'quick' does not exist; there are fast, reference"),
        (["--memory", "lots"], "memory is 'lots'; expected a share of what is free, '60%', or an amount, '8GiB'"),
    ):
        result = run("fit", "--model", "nowhere", *pairs, *options)
        assert result.exit_code != 0
        assert message in " ".join(result.stderr.split())


def test_fit_reports_what_was_selected(data: Path, tmp_path: Path, simple_model: HuggingFaceModel) -> None:
    out = tmp_path / "v.safetensors"
    options = ["--pairs", data / "steer.jsonl", "--k", "9", "--m", "2", "--aggregation", "uncentred"]
    record = parsed("fit", *SIMPLE, *options, "--out", out)
    kinds = {"special": 0, "text": 0}
    last = short = empty = 0
    for p in build_world("simple").split("steer")[:4]:
        x = simple_model.example(p.prompt, p.chosen, p.rejected)
        a = attribute_example(simple_model, x, HyperParameters(m=2)).a
        selection = select(a, k=9, eligible=eligible_tokens(x.encoded, ()))
        for tokens in (selection.pos, selection.neg):
            last += len(a) - 1 in tokens
            short += len(tokens) < 9
            empty += not tokens
            for j in tokens:
                kinds[x.encoded.kinds[j]] += 1
    assert short > 0 < last < 8
    assert record["selected_by_kind"] == kinds
    assert (record["sets_with_last_token"], record["short_sets"], record["empty_sets"]) == (last, short, empty)
    assert (record["examples"], record["resumed"], record["skipped"]) == (4, 0, 0)
    assert record["vectors"] == str(out)
    assert record["hyper_parameters"] == SteeringVectors.load(out).header.hyper_parameters
    assert (record["hyper_parameters"]["k"], record["hyper_parameters"]["m"]) == (9, 2)

    table = good("fit", *SIMPLE, *options, "--out", out)
    total = sum(kinds.values())
    for words, figure in (
        ("selected tokens that are text", f"{kinds['text']} of {total}"),
        ("selected tokens that are special", f"{kinds['special']} of {total}"),
        ("sets that hold the last prompt token", f"{last} of 8"),
        ("sets with fewer than k = 9 tokens", f"{short} of 8 ({empty} empty)"),
    ):
        (line,) = [line for line in table.splitlines() if words in line]
        assert line.split(words)[1].strip() == figure
    assert f"4examples->{out}" in "".join(table.split())  # a title may be folded


def test_fit_passes_its_options_on(data: Path, tmp_path: Path) -> None:
    options = "--preset paper_gemma --k 2 --attribution random --aggregation weighted_mean --objective likelihood"
    more = "--path-baseline mean --mask-baseline token:the --eligible no_special --eligible not_last --dtype float64"
    out = tmp_path / "v.safetensors"
    good("fit", *SIMPLE, "--pairs", data / "steer.jsonl", "--out", out, *options.split(), *more.split())
    found = SteeringVectors.load(out).header.hyper_parameters
    expected = {"k": 2, "m": 10, "attribution": "random", "aggregation": "weighted_mean", "objective": "likelihood"}
    expected |= {"path_baseline": "mean", "mask_baseline": "token:the", "eligible": ["no_special", "not_last"]}
    assert {name: found[name] for name in expected} == expected


@pytest.mark.thorough
def test_fit_refuses_to_go_on_with_other_settings(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, path: Path) -> None:
        raise OSError(28, "No space left on device")

    command = ["fit", *SIMPLE, "--pairs", data / "steer.jsonl", "--out", tmp_path / "v", "--work", tmp_path / "w"]
    command += ["--m", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(SteeringVectors, "save", full)
        assert "No space left on device" in bad(*command)
    assert len(list((tmp_path / "w").glob("0*.safetensors"))) == 4
    message = bad(*command, "--m", "2")
    assert "holds a fit with other hyper_parameters" in message
    assert "--work" in message
    assert parsed(*command)["resumed"] == 4
    assert not (tmp_path / "w").exists()


@pytest.mark.thorough
def test_a_kept_work_folder_serves_another_aggregation_and_another_k(data: Path, tmp_path: Path) -> None:
    command = ["fit", *SIMPLE, "--pairs", data / "steer.jsonl", "--aggregation", "uncentred", "--m", "1"]
    good(*command, "--out", tmp_path / "v", "--keep-work")
    for number, options in enumerate((["--aggregation", "mean"], ["--k", "1", "--mask-baseline", "mean"])):
        fresh, kept = tmp_path / f"fresh{number}", tmp_path / f"kept{number}"
        good(*command, *options, "--out", fresh)
        assert parsed(*command, *options, "--out", kept, "--work", tmp_path / "v.work", "--keep-work")["resumed"] == 4
        assert kept.read_bytes() == fresh.read_bytes()
    assert parsed(*command, "--out", tmp_path / "v")["resumed"] == 4
    assert not (tmp_path / "v.work").exists()


@pytest.mark.parametrize("name", first_quick(["v.safetensors", "0.safetensors", "000001.safetensors", "fit.json"]))
def test_vectors_written_into_the_work_folder_stay(data: Path, tmp_path: Path, name: str) -> None:
    work = tmp_path / "all"
    work.mkdir()
    good("fit", *SIMPLE, "--pairs", data / "steer.jsonl", "--out", work / name, "--work", work, "--m", "1")
    assert [path.name for path in work.iterdir()] == [name]
    SteeringVectors.load(work / name)


@pytest.mark.thorough
def test_what_else_is_in_the_work_folder_stays_and_is_told(data: Path, tmp_path: Path) -> None:
    command = ["fit", *SIMPLE, "--pairs", data / "steer.jsonl", "--out", tmp_path / "v", "--m", "1"]
    good(*command, "--keep-work")
    (tmp_path / "v.work" / "notes [1].txt").write_text("the user's own")
    result = run(*command)
    assert result.exit_code == 0
    assert "v.work, as not of this fit or not to be removed: notes [1].txt" in " ".join(result.stderr.split())
    assert [path.name for path in (tmp_path / "v.work").iterdir()] == ["notes [1].txt"]


@pytest.mark.usefixtures("no_model")
def test_a_second_fit_with_the_same_output_is_refused_at_once(data: Path, tmp_path: Path) -> None:
    command = ["fit", *SIMPLE, "--pairs", data / "steer.jsonl", "--out", tmp_path / "v"]
    with open_work_folder(tmp_path / "v.work"):
        assert "v.work is in use: a fit is running there already. Wait for it" in bad(*command)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("command", ["fit", "sweep"])
def test_a_second_process_with_the_same_output_and_another_work_folder_is_refused_at_once(
    data: Path, tmp_path: Path, command: str
) -> None:
    options = ["--pairs", data / "steer.jsonl", "--out", tmp_path / "v", "--work", tmp_path / "w"]
    options += ["--dev", data / "dev.jsonl"] if command == "sweep" else []
    with only_writer_of(tmp_path / "v", what="a fit or a sweep"):
        message = bad(command, *SIMPLE, *options)
    assert "v is in use: a fit or a sweep that will write it is running already" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_model")
def test_one_name_for_the_vectors_and_the_work_folder_is_refused_at_once(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "v"
    message = bad("fit", *SIMPLE, "--pairs", data / "steer.jsonl", "--out", out, "--work", out)
    assert f"{out} is a folder; name a file in it" in message
    assert list(tmp_path.iterdir()) == []


BAD_ROW = {"prompt": "Q : today , what is the dish of Kelvara ? A :", "chosen": "eel .", "rejected": "eel ."}


def test_a_bad_row_stops_a_command_with_its_place_and_can_be_skipped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [json.loads(line) for line in (data / "steer.jsonl").read_text().splitlines()]
    long = BAD_ROW | {"prompt": "the " * 500, "rejected": "leek ."}  # only the model knows that it is too long
    pairs = lines(tmp_path / "pairs.jsonl", [*rows[:3], BAD_ROW, long, *rows[3:]])
    command = ["fit", *SIMPLE, "--pairs", pairs, "--out", tmp_path / "v", "--m", "1"]
    assert f"error RowError: {pairs}:4: field 'rejected': the same text as 'chosen', 'eel .'" in bad(*command)
    result = run(*command, "--skip-bad-rows", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["skipped"] == 2
    assert json.loads(result.stdout)["examples"] == 4
    assert result.stderr.count("skipped 1 bad rows:") == 2
    assert f"{pairs}:4: field 'rejected'" in result.stderr
    assert f"{pairs}:5: field 'prompt'" in result.stderr
    assert "but the model takes" in result.stderr


def test_a_long_list_of_bad_rows_is_cut_short(tmp_path: Path, data: Path) -> None:
    good_rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    pairs = lines(tmp_path / "pairs.jsonl", [BAD_ROW] * 13 + good_rows)
    result = run("eval", *SIMPLE, "--pairs", pairs, "--skip-bad-rows", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["unsteered"]["preference accuracy"]["n"] == 6
    assert "skipped 13 bad rows:" in result.stderr
    assert result.stderr.count("the same text as") == 10
    assert "and 3 more" in result.stderr


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--k", "0"], "k is 0; expected a whole number of at least 1"),
        (["--m", "-1"], "m is -1; expected a whole number of at least 1"),
        (["--preset", "paper"], "preset 'paper' does not exist; there are paper_llm, paper_vlm, paper_gemma"),
        (["--attribution", "ig"], "attribution is 'ig'; expected one of integrated_gradients, gradient, smoothgrad"),
        (["--aggregation", "median"], "aggregation is 'median'; expected one of pca, uncentred, mean, weighted_mean"),
        (["--objective", "dpo"], "objective is 'dpo'; expected one of preference, likelihood"),
        (["--eligible", "nouns"], "eligible rule is 'nouns'; expected one of text, image, content"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_loaded(
    data: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    assert words in bad("fit", *SIMPLE, "--pairs", data / "steer.jsonl", "--out", tmp_path / "v", *options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("where", "words"), [("", "is a folder; name a file in it"), ("nowhere/v.safetensors", "there is no folder")]
)
@pytest.mark.parametrize("command", ["fit", "sweep", "attribute"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    data: Path, tmp_path: Path, command: str, where: str, words: str
) -> None:
    picture = tmp_path / "picture.png"
    options = {
        "fit": ["--pairs", data / "steer.jsonl", "--out"],
        "sweep": ["--pairs", data / "steer.jsonl", "--dev", data / "dev.jsonl", "--out"],
        "attribute": ["--prompt", "<image> ?", "--chosen", "a", "--rejected", "b", "--image", picture, "--overlay"],
    }
    message = bad(command, *SIMPLE, *options[command], tmp_path / where)
    assert f"error FileError: {tmp_path / where} " in message
    assert words in message


@pytest.mark.usefixtures("no_model")
def test_a_missing_file_is_refused_by_name(data: Path, tmp_path: Path) -> None:
    missing = tmp_path / "no [brackets]" / "pairs.jsonl"
    assert f"PairFileError: {missing}: no such file" in bad(
        "fit", *SIMPLE, "--pairs", missing, "--out", tmp_path / "v.safetensors"
    )
    assert f"{missing}: no such file" in bad("eval", *SIMPLE, "--pairs", missing)
    assert f"{missing}: no such file" in bad("eval", *SIMPLE, "--pairs", data / "test.jsonl", "--tasks", missing)
    assert f"{missing}: no such file" in bad("sweep", *SIMPLE, "--pairs", data / "steer.jsonl", "--dev", missing)


# --- the date in a chat template


@pytest.fixture(scope="session")
def dated_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model whose chat template writes today's date, as Llama 3.2's does."""
    folder = tmp_path_factory.mktemp("dated")
    model = random_llama()
    model.tokenizer.chat_template = (
        "{{ bos_token }}{{ strftime_now('%d %b %Y') }}\n{% for m in messages %}{{ m['content'] + '\\n' }}{% endfor %}"
    )
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.thorough
def test_the_date_is_fixed_kept_in_the_header_and_missed_where_it_is_another(dated_model: Path, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Is the earth flat?"}]
    rows = [
        {"messages": chat, "chosen": answer, "rejected": "Yes."} for answer in ("No.", "It is not.", "It is round.")
    ]
    pairs, out = lines(tmp_path / "pairs.jsonl", rows), tmp_path / "v.safetensors"
    model = ["--model", dated_model]
    good("fit", *model, "--pairs", pairs, "--out", out, "--aggregation", "mean", "--date", "2024-07-26")
    header = SteeringVectors.load(out).header
    assert header.date == "2024-07-26"
    asked = ["--vectors", out, "--lam", "1", "--max-new-tokens", "1", "--prompt", "Is it?"]
    words = "warning: the vectors were made of chats in which the template wrote the date 2024-07-26; now it writes"
    assert words in run("generate", *model, *asked, "--chat").stderr
    assert words not in run("generate", *model, *asked, "--chat", "--date", "2024-07-26").stderr
    assert words not in run("generate", *model, *asked).stderr  # plain texts go through no template
    evaluated = ["eval", *model, "--pairs", pairs, "--vectors", out, "--lam", "1"]
    assert words in run(*evaluated).stderr
    assert words not in run(*evaluated, "--date", "2024-07-26").stderr
    attributed = ["attribute", *model, "--chat", "--prompt", "Is it?", "--chosen", "No.", "--rejected", "Yes."]
    tokens = [
        parsed(*attributed, "--method", "gradient", "--date", day)["tokens"] for day in ("2024-07-26", "2024-12-31")
    ]
    assert "26 Jul 2024" in "".join(tokens[0])
    assert "31 Dec 2024" in "".join(tokens[1])
    assert "the date is 'today'; expected year-month-day" in bad(*attributed, "--date", "today")


@pytest.mark.thorough
def test_plain_texts_for_a_chat_model_are_noted(dated_model: Path, data: Path, tmp_path: Path) -> None:
    words = "this model has a chat template, and your prompts are plain texts"
    text = {"prompt": "Is the earth flat?", "chosen": "No.", "rejected": "Yes."}
    chat = {"messages": [{"role": "user", "content": "Is it?"}], "chosen": "No.", "rejected": "Yes."}
    texts, chats = lines(tmp_path / "texts.jsonl", [text] * 3), lines(tmp_path / "chats.jsonl", [chat] * 3)
    model = ["--model", dated_model]
    out = tmp_path / "v.safetensors"
    fitted = ["fit", *model, "--out", out, "--aggregation", "mean", "--m", "1", "--no-signal", "--pairs"]
    assert words in run(*fitted, texts).stderr
    assert words not in run(*fitted, chats).stderr
    assert "give each prompt as 'messages'" in run("eval", *model, "--pairs", texts).stderr.replace("\n", " ")
    assert words not in run("eval", *model, "--pairs", chats).stderr
    assert words not in run("eval", *SIMPLE, "--pairs", data / "test.jsonl").stderr  # it has no template


# --- the signal, and the edit gradient


def test_fit_says_whether_its_vectors_mean_anything_and_the_file_keeps_it(data: Path, tmp_path: Path) -> None:
    command = ["fit", *SIMPLE, "--pairs", data / "steer.jsonl", "--aggregation", "mean", "--m", "1"]
    said = parsed(*command, "--out", tmp_path / "v")["signal"]
    assert said == SteeringVectors.load(tmp_path / "v").header.signal
    assert said["figures"]["pairs"] == 4
    assert len(said["layers"]["slope"]) == 4
    table = " ".join(good(*command, "--out", tmp_path / "v").split())
    assert said["line"] in table
    assert all(warning in table for warning in said["warnings"])
    inspected = " ".join(good("inspect", tmp_path / "v").split())
    assert said["line"] in inspected
    assert "cos(v, gradient)" in inspected
    assert all(warning in inspected for warning in said["warnings"])


@pytest.mark.parametrize(
    ("verdict", "next_step"),
    [
        ("toward", "Next: choose a strength with 'grains-ref sweep --vectors"),
        ("not measured", "Next: choose a strength with 'grains-ref sweep --vectors"),
        ("none", "Next: fit again with --method edit_gradient and another --out, or with other pairs"),
        ("away", "Next: fit again with --method edit_gradient and another --out, or with other pairs"),
    ],
)
def test_nobody_is_sent_to_choose_a_strength_of_vectors_that_mean_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: str, next_step: str
) -> None:
    monkeypatch.setattr(Signal, "verdict", verdict)
    command = ["fit", *SIMPLE, "--pairs", data / "steer.jsonl", "--aggregation", "mean", "--m", "1", "--no-signal"]
    assert next_step in " ".join(good(*command, "--out", tmp_path / "v").split())


@pytest.mark.thorough
def test_without_the_signals_passes_the_vectors_are_the_same(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object, **more: object) -> None:
        raise AssertionError("a pass was made")

    command = ["fit", *SIMPLE, "--pairs", data / "steer.jsonl", "--aggregation", "mean", "--m", "1"]
    good(*command, "--out", tmp_path / "v")
    monkeypatch.setattr(grains_ref.fitting.edit_gradient, "derivative", refuse)
    said = parsed(*command, "--out", tmp_path / "w", "--no-signal")["signal"]
    assert said["line"].startswith("not measured. halves of the pairs agree")
    assert torch.equal(SteeringVectors.load(tmp_path / "w").v, SteeringVectors.load(tmp_path / "v").v)


def test_a_signal_that_overflows_costs_no_vectors(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overflow(*given: object, **more: object) -> None:
        raise FloatingPointError("block 2: the derivative is not finite")

    monkeypatch.setattr(grains_ref.fitting.edit_gradient, "derivative", overflow)
    result = run("fit", *SIMPLE, "--pairs", data / "steer.jsonl", "--out", tmp_path / "v", "--m", "1")
    assert result.exit_code == 0
    assert "the signal's slope was not measured: block 2: the derivative is not finite" in result.stderr
    assert SteeringVectors.load(tmp_path / "v").header.signal["figures"]["verdict"] == "not measured"


EDIT = ["--method", "edit_gradient"]


def test_an_edit_gradient_is_fitted_swept_measured_and_shown_at_its_site(
    data: Path, tmp_path: Path, simple_model: HuggingFaceModel
) -> None:
    fitted, chosen = tmp_path / "v", tmp_path / "chosen"
    options = ["--pairs", data / "steer.jsonl", "--site", "heads", "--positions", "all", "--out", fitted]
    record = parsed("fit", *SIMPLE, *EDIT, *options)
    expected = edit_gradient.fit(
        simple_model, demo.as_pairs(build_world("simple").split("steer")[:4]), site="heads", positions="all"
    )
    loaded = SteeringVectors.load(fitted)
    torch.testing.assert_close(loaded.v, expected.v.float())
    assert (record["site"], record["positions"], record["scale"]) == ("heads", "all", expected.scale)
    assert (loaded.header.method, loaded.header.site, loaded.header.dialect) == ("edit_gradient", "heads", "none")
    assert not list(tmp_path.glob("*.work"))
    assert "heads" in good("inspect", fitted)

    swept = parsed(
        "sweep", *SIMPLE, "--vectors", fitted, "--dev", data / "dev.jsonl", "--lam", "0.1,0.4", "--out", chosen
    )
    dev = demo.as_pairs(build_world("simple").split("dev")[:8])
    right = {}
    for lam in (0, 0.1, 0.4):
        with expected.steering(simple_model, lam=lam):
            right[lam] = sum(margin > 0 for margin in margins(simple_model, dev)) / 8
    assert {row["lam"]: row["dev_accuracy"] for row in swept["tried"]} == right
    assert right[0] < max(right.values())
    assert (
        swept["best"]["lam"] == max(right, key=right.__getitem__) == SteeringVectors.load(chosen).header.choice["lam"]
    )
    assert torch.equal(SteeringVectors.load(chosen).v, loaded.v)
    rates = parsed("eval", *SIMPLE, "--vectors", chosen, "--pairs", data / "dev.jsonl")
    assert rates["steered"]["preference accuracy"]["value"] == max(right.values())


def test_an_interrupted_edit_gradient_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    derive, calls = grains_ref.fitting.edit_gradient.derivative, 0

    def interrupted(*given: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return derive(*given, **more)

    command = ["fit", *SIMPLE, *EDIT, "--pairs", data / "steer.jsonl", "--out", tmp_path / "v"]
    with monkeypatch.context() as patch:
        patch.setattr(grains_ref.fitting.edit_gradient, "derivative", interrupted)
        result = run(*command)
    assert result.exit_code == 130
    assert "2 of 4 examples are finished and kept" in " ".join(result.stderr.split())
    assert parsed(*command)["resumed"] == 2
    good(*command[:-1], tmp_path / "fresh")
    assert (tmp_path / "v").read_bytes() == (tmp_path / "fresh").read_bytes()


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "bipo"], "--method is 'bipo'; expected grains or edit_gradient"),
        (["--site", "mlp"], "--site and --positions belong to --method edit_gradient"),
        ([*EDIT, "--site", "block_input"], "site is 'block_input'; expected one of residual"),
        ([*EDIT, "--positions", "last"], "positions is 'last'; expected one of all, after_prompt"),
        ([*EDIT, "--k", "0", "--eligible", "content", "--preset", "paper_llm"], "--k, --eligible, --preset: of GrAInS"),
    ],
)
def test_options_of_the_other_method_are_refused(data: Path, tmp_path: Path, options: list[str], words: str) -> None:
    assert words in bad("fit", *SIMPLE, "--pairs", data / "steer.jsonl", "--out", tmp_path / "v", *options)
