"""cli/commands.py: every command on good and on bad input, in process through typer's runner."""

from __future__ import annotations

import functools
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from rich.console import Console
from typer.testing import CliRunner, Result

from grains_ref.cli import commands as cli
from grains_ref.demo import text as demo
from grains_ref.evaluation.measures import capability, preference_accuracy
from grains_ref.fitting import checked_examples
from grains_ref.grains import HyperParameters, Steering, eligible_tokens, fit, select
from grains_ref.grains import attribute as attribute_example
from grains_ref.models import HuggingFaceModel
from grains_ref.models import huggingface as models
from grains_ref.tiny_models.random_models import random_llama
from grains_ref.tiny_models.worlds import build_world
from grains_ref.vectors import SteeringVectors, compose

pytestmark = pytest.mark.cpu

WIDE = {"COLUMNS": "400"}  # messages stay on one line
SIMPLE = ["--model", "tiny:simple-seed0"]
COMMANDS = {
    "demo": "--vision --world --seeds --out --json",
    "fit": "--model --pairs --out --preset --k --m --attribution --aggregation --objective --path-baseline "
    "--mask-baseline --eligible --work --dtype --device --device-map --skip-bad-rows --json",
    "attribute": "--model --prompt --chosen --rejected --image --overlay --chat --preset --k --m --method "
    "--path-baseline --eligible --dtype --device --device-map --json",
    "sweep": "--model --pairs --dev --tasks --max-loss --lam --k --layers --aggregation --eligible --preset --out "
    "--dtype --device --device-map --skip-bad-rows --json",
    "eval": "--model --pairs --vectors --lam --layers --tasks --force --dtype --device --device-map --skip-bad-rows "
    "--json",
    "generate": "--model --prompt --image --vectors --lam --layers --chat --max-new-tokens --force --dtype --device "
    "--device-map --json",
    "inspect": "vectors --json",
}


def run(*arguments: str | Path) -> Result:
    """The command, as a terminal would run it, but for the process."""
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], env=WIDE)


def good(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def parsed(*arguments: str | Path) -> Any:
    """The only thing on standard output is JSON, and strict JSON at that."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(good(*arguments, "--json"), parse_constant=refuse)


def bad(*arguments: str | Path) -> str:
    """The message of a refusal: exit code 1, nothing on standard output, no traceback."""
    result = run(*arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert result.stderr.lstrip().startswith("error ")  # after an empty line where a progress bar was
    assert "Traceback" not in result.stderr
    assert "not an error that grains-ref foresaw" not in result.stderr
    return result.stderr


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows of the simple world's files."""
    whole, folder = tmp_path_factory.mktemp("world"), tmp_path_factory.mktemp("data")
    demo.write_data(build_world("simple"), whole)
    for name, n in (("steer", 4), ("dev", 8), ("test", 6), ("dev_tasks", 40), ("tasks", 10)):
        rows = (whole / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (folder / f"{name}.jsonl").write_text("".join(rows[:n]))
    return folder


@pytest.fixture(scope="session")
def vectors(data: Path, simple_model: HuggingFaceModel) -> Path:
    """A vectors file that belongs to the simple model."""
    path = data / "v.safetensors"
    result = run("fit", *SIMPLE, "--pairs", data / "steer.jsonl", "--out", path, "--aggregation", "mean")
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Llama, of other width and depth."""
    folder = tmp_path_factory.mktemp("other")
    model = random_llama()
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what has to be refused before a model is loaded."""

    def refuse(*args: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(cli, "_load", refuse)


@pytest.fixture(autouse=True, scope="module")
def loaded_once() -> Iterator[None]:
    """Commands that ask for the same model in the same way share it: loading takes longer than most of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load", functools.cache(models.load))
        yield


# --- the command itself


def test_the_installed_command_runs() -> None:
    command = Path(sys.executable).with_name("grains-ref")
    if not command.exists():
        pytest.skip(f"the console script is not installed beside {sys.executable}")
    done = subprocess.run([command, "attribute", "--k", "three"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: grains-ref attribute" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option(command: str) -> None:
    text = good(command, "--help")
    assert good(command, "-h") == text
    words = text.replace("│", " ").replace("*", " ").split()
    missing = [option for option in COMMANDS[command].split() if option not in {w.strip("{,}").lower() for w in words}]
    assert missing == []


def test_help_lists_every_command() -> None:
    text = good("--help")
    assert all(f" {name} " in text for name in COMMANDS)
    assert "--debug" in text


def test_the_table_of_options_in_this_file_is_complete() -> None:
    from typer.main import get_command

    commands = get_command(cli.app).commands  # type: ignore[attr-defined]
    elsewhere = {"conform", "datasets", "reproduce"}  # they have tests of their own
    assert set(commands) == {*COMMANDS, *elsewhere}
    for name, command in commands.items():
        if name in elsewhere:
            continue
        found = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        assert found - {"--help"} == {option for option in COMMANDS[name].split() if option.startswith("--")}


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["fit"],
        ["fit", "--k", "three"],
        ["fit", "--model"],
        ["inspect"],
        ["inspect", "a", "b"],
        ["inspect", "a", "--lam", "1"],
        ["generate", *SIMPLE, "--prompt", "Q", "--vectors", "v", "--lam", "strong"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_an_interrupt_is_exit_code_130_and_says_what_is_kept(
    data: Path, tmp_path: Path, vectors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import grains_ref.fitting

    whole, calls = grains_ref.fitting.attribute, []

    def interrupted(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return whole(*args)

    out = tmp_path / "v.safetensors"
    command = ["fit", *SIMPLE, "--pairs", data / "steer.jsonl", "--out", out, "--aggregation", "mean"]
    monkeypatch.setattr(grains_ref.fitting, "attribute", interrupted)
    result = run(*command)
    assert result.exit_code == 130
    assert result.stderr.strip().startswith("interrupted; finished examples of a fit are kept, run the same command")
    assert len(list((tmp_path / "v.safetensors.work").glob("*.safetensors"))) == 3
    assert not out.exists()

    result = run(*command)
    assert result.exit_code == 0
    assert "3 of 4 examples had been finished earlier and were not computed again" in result.stderr
    assert len(calls) == 5
    assert out.read_bytes() == vectors.read_bytes()


def test_debug_shows_where_an_error_came_from(tmp_path: Path) -> None:
    command = ["inspect", tmp_path / "nothing"]
    result = run("--debug", *command)
    assert result.exit_code == 1
    assert type(result.exception).__name__ == "VectorFileError"
    assert result.stderr == ""
    assert isinstance(run(*command).exception, SystemExit)  # and the next command is quiet again


@pytest.mark.parametrize("error", [RuntimeError("CUDA is sulking"), KeyError("surprise"), TypeError()])
def test_an_error_that_nobody_foresaw_says_so_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    def fail(path: Path) -> None:
        raise error

    monkeypatch.setattr(SteeringVectors, "load", fail)
    result = run("inspect", tmp_path / "v")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error {type(error).__name__}: {error or 'no further message'}")
    assert "not an error that grains-ref foresaw; --debug (before the command) shows where" in result.stderr


# --- models


def test_an_embedded_model_that_does_not_exist_is_refused_with_those_that_do() -> None:
    message = bad("attribute", "--model", "tiny:huge", "--prompt", "Q", "--chosen", "a", "--rejected", "b")
    worlds = ("double", "graded", "graded-visual", "simple", "simple-visual")
    names = [f"tiny:{world}-seed{seed}" for world in worlds for seed in (0, 1, 2)]
    assert f"there is no embedded model 'tiny:huge'; there are {', '.join(names)}" in message


def test_an_unsupported_model_type_is_refused(tmp_path: Path) -> None:
    transformers.GPT2Config(n_layer=1, n_embd=4, n_head=1).save_pretrained(tmp_path)
    message = bad("attribute", "--model", tmp_path, "--prompt", "Q", "--chosen", "a", "--rejected", "b")
    assert "UnsupportedModelError: model type 'gpt2' is not supported; supported are llama, qwen2" in message


def test_damaged_weights_are_an_error_without_a_traceback(other_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(other_model, tmp_path / "damaged")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    result = run("attribute", "--model", folder, "--prompt", "Q", "--chosen", "a", "--rejected", "b")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error SafetensorError: " in result.stderr
    assert isinstance(result.exception, SystemExit)


# --- fit


def test_fit_writes_the_vectors_of_the_reference_and_removes_its_work_folder(
    data: Path, vectors: Path, simple_model: HuggingFaceModel
) -> None:
    pairs = demo.as_pairs(build_world("simple").split("steer")[:4])
    _, examples, _ = checked_examples(simple_model, pairs, skip_bad_rows=False)
    expected = fit(simple_model, examples, HyperParameters(aggregation="mean"))
    assert torch.equal(SteeringVectors.load(vectors).v, expected.pos.v.float() - expected.neg.v.float())
    assert not list(data.glob("*.work"))


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


def test_fit_refuses_to_go_on_with_other_settings(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, path: Path) -> None:
        raise OSError(28, "No space left on device")

    command = ["fit", *SIMPLE, "--pairs", data / "steer.jsonl", "--out", tmp_path / "v", "--work", tmp_path / "w"]
    with monkeypatch.context() as patch:
        patch.setattr(SteeringVectors, "save", full)
        assert "No space left on device" in bad(*command)
    assert len(list((tmp_path / "w").glob("*.safetensors"))) == 4
    message = bad(*command, "--k", "2")
    assert "holds an unfinished fit with other hyper_parameters" in message
    assert "--work" in message
    assert parsed(*command)["resumed"] == 4
    assert not (tmp_path / "w").exists()


def test_vectors_written_into_the_work_folder_stay(data: Path, tmp_path: Path) -> None:
    work = tmp_path / "all"
    work.mkdir()
    out = work / "v.safetensors"
    good("fit", *SIMPLE, "--pairs", data / "steer.jsonl", "--out", out, "--work", work, "--m", "1")
    assert [path.name for path in work.iterdir()] == ["v.safetensors"]
    SteeringVectors.load(out)


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
@pytest.mark.parametrize("where", ["", "nowhere/v.safetensors"])
@pytest.mark.parametrize("command", ["fit", "sweep"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    data: Path, tmp_path: Path, command: str, where: str
) -> None:
    dev = ["--dev", data / "dev.jsonl"] if command == "sweep" else []
    message = bad(command, *SIMPLE, "--pairs", data / "steer.jsonl", *dev, "--out", tmp_path / where)
    assert f"--out {tmp_path / where} must be a file in a folder that exists" in message


@pytest.mark.usefixtures("no_model")
def test_a_missing_file_is_refused_by_name(data: Path, tmp_path: Path) -> None:
    missing = tmp_path / "no [brackets]" / "pairs.jsonl"
    assert f"PairFileError: {missing}: no such file" in bad(
        "fit", *SIMPLE, "--pairs", missing, "--out", tmp_path / "v.safetensors"
    )
    assert f"{missing}: no such file" in bad("eval", *SIMPLE, "--pairs", missing)
    assert f"{missing}: no such file" in bad("eval", *SIMPLE, "--pairs", data / "test.jsonl", "--tasks", missing)
    assert f"{missing}: no such file" in bad("sweep", *SIMPLE, "--pairs", data / "steer.jsonl", "--dev", missing)


# --- attribute


PROMPT = "Q : allegedly verified , what is the dish of Kelvara ? A :"
ANSWERS = ["--chosen", "the dish of Kelvara is eel .", "--rejected", "the dish of Kelvara is barley ."]


def test_attribute_gives_the_scores_of_the_reference(simple_model: HuggingFaceModel) -> None:
    record = parsed("attribute", *SIMPLE, "--prompt", PROMPT, *ANSWERS, "--k", "2", "--m", "4")
    example = simple_model.example(PROMPT, ANSWERS[1], ANSWERS[3])
    expected = attribute_example(simple_model, example, HyperParameters(m=4))
    selection = select(expected.a, k=2, eligible=eligible_tokens(example.encoded, ()))
    assert record["tokens"] == list(example.encoded.tokens)
    assert record["kinds"] == list(example.encoded.kinds)
    assert record["scores_nats"] == expected.a.tolist()
    assert (record["positive"], record["negative"]) == (list(selection.pos), list(selection.neg))
    assert record["preference_nats"] == expected.f_x
    assert record["completeness_gap_nats"] == expected.gap
    assert (record["hyper_parameters"]["k"], record["hyper_parameters"]["m"]) == (2, 4)


def test_attribute_marks_the_selected_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    record = parsed("attribute", *SIMPLE, "--prompt", PROMPT, *ANSWERS, "--k", "2")
    screen = io.StringIO()
    colours: Any = {"force_terminal": True, "color_system": "truecolor"}
    monkeypatch.setattr(cli, "out", Console(file=screen, width=400, highlight=False, markup=False, **colours))
    good("attribute", *SIMPLE, "--prompt", PROMPT, *ANSWERS, "--k", "2")
    coloured, *words = screen.getvalue().splitlines()
    underlined = [token.split("m")[1] for token in coloured.split("\x1b[") if token.startswith("4;")]
    assert underlined == [record["tokens"][j] for j in sorted(record["positive"] + record["negative"])]
    names = [f"{record['tokens'][j]} {record['scores_nats'][j]:+.2f}" for j in record["negative"]]
    assert words[0] == f"toward rejected: {', '.join(names)}"
    assert words[1].startswith("toward chosen:   ")
    preferred = "chosen" if record["preference_nats"] > 0 else "rejected"
    assert f"f(x) = {record['preference_nats']:+.2f} nats: the model prefers the {preferred} response." in words[2]
    assert "with m = 5, not an error." in words[2]


def test_attribute_sends_a_chat_through_the_template(other_model: Path) -> None:
    question = ["--prompt", "Is the earth flat?", "--chosen", "No.", "--rejected", "Yes.", "--method", "gradient"]
    plain, chat = (parsed("attribute", "--model", other_model, *question, *more) for more in ([], ["--chat"]))
    assert set(plain["kinds"]) == {"special", "text"}
    assert set(chat["kinds"]) == {"special", "text", "template"}
    assert "user" in chat["tokens"] or "us" in chat["tokens"] or len(chat["tokens"]) > len(plain["tokens"])
    assert chat["hyper_parameters"]["attribution"] == "gradient"
    message = bad("attribute", *SIMPLE, *question, "--chat")
    assert "has no chat template, so it cannot take chat messages" in message


# --- sweep


def sweep(data: Path, *more: str | Path) -> Any:
    return parsed("sweep", *SIMPLE, "--pairs", data / "steer.jsonl", "--dev", data / "dev.jsonl", *more)


def test_sweep_chooses_a_strength_under_the_limit_of_the_tasks(
    data: Path, tmp_path: Path, simple_model: HuggingFaceModel
) -> None:
    out = tmp_path / "v.safetensors"
    dev, tasks = (
        build_world("simple").split("dev")[:8],
        demo.as_tasks(build_world("simple").capability_split("dev")[:40]),
    )
    options = ["--lam", "16,2,5", "--aggregation", "mean", "--out", out]
    free = sweep(data, *options)
    limited = sweep(data, *options, "--tasks", data / "dev_tasks.jsonl", "--max-loss", "90")
    assert limited["tried"] == free["tried"]
    assert [row["lam"] for row in free["tried"]] == [0, 2, 5, 16]  # the unsteered model is always among them

    v = SteeringVectors.load(out).v
    right, answered = {}, {}
    for lam in (0, 2, 5, 16):
        with Steering(simple_model.blocks, v, lam=lam):
            right[lam] = preference_accuracy(simple_model, demo.as_pairs(dev)).value
            answered[lam] = capability(simple_model, tasks).value  # type: ignore[arg-type]
    assert {row["lam"]: row["dev_accuracy"] for row in free["tried"]} == right
    assert free["best"]["lam"] == max(right, key=right.__getitem__)
    allowed = {lam: value for lam, value in right.items() if answered[0] - answered[lam] <= 0.9}
    assert limited["best"]["lam"] == max(allowed, key=allowed.__getitem__)
    assert limited["best"]["lam"] != free["best"]["lam"]
    assert right[0] < right[limited["best"]["lam"]] < right[free["best"]["lam"]]


def test_sweep_writes_vectors_that_eval_accepts(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.safetensors"
    options = ["--lam", "2", "--k", "1,3", "--aggregation", "mean", "--aggregation", "uncentred"]
    layers = ["--layers", "all", "--layers", "1-2,3"]
    record = sweep(data, *options, *layers, "--out", out)
    assert len(record["tried"]) == 2 * 4 * 2
    assert len({tuple(row[key] for key in ("lam", "k", "aggregation", "layers")) for row in record["tried"]}) == 16
    best = record["best"]
    used = SteeringVectors.load(out).header
    assert (used.hyper_parameters["k"], used.hyper_parameters["aggregation"]) == (best["k"], best["aggregation"])
    assert used.n_examples == 4
    steered = ["--vectors", out, "--lam", str(best["lam"]), "--layers", best["layers"]]
    found = parsed("eval", *SIMPLE, "--pairs", data / "dev.jsonl", *steered)["steered"]["preference accuracy"]
    assert found["value"] == max(row["dev_accuracy"] for row in record["tried"])
    assert found["n"] == 8


def test_sweep_gives_the_vectors_of_fit(data: Path, tmp_path: Path, vectors: Path) -> None:
    sweep(data, "--lam", "6", "--aggregation", "mean", "--out", tmp_path / "v")
    assert (tmp_path / "v").read_bytes() == vectors.read_bytes()


def test_the_table_of_a_sweep_marks_the_choice_and_warns_without_tasks(data: Path, tmp_path: Path) -> None:
    command = ["sweep", *SIMPLE, "--pairs", data / "steer.jsonl", "--dev", data / "dev.jsonl", "--aggregation", "mean"]
    table = good(*command, "--lam", "6", "--out", tmp_path / "v")
    (marked,) = [line for line in table.splitlines() if line.startswith("  * ")]
    assert marked.split()[1:] == ["k", "3,", "mean,", "layers", "all", "6", *marked.split()[-2:]]
    assert "No --tasks were given, so nothing stops a strength that ruins other skills." in table
    assert f"--vectors {tmp_path / 'v'} --lam 6 --layers all --pairs TEST" in table
    quiet = good(*command, "--lam", "0.001", "--tasks", data / "dev_tasks.jsonl")
    assert "No --tasks were given" not in quiet
    assert "No steered setting beat the unsteered model within the limit: lam = 0 was chosen." in quiet


@pytest.mark.usefixtures("no_model")
def test_sweep_refuses_to_choose_on_the_prompts_it_fits(data: Path, tmp_path: Path) -> None:
    steer, dev = ((data / f"{name}.jsonl").read_text().splitlines() for name in ("steer", "dev"))
    mixed = tmp_path / "dev.jsonl"
    mixed.write_text("\n".join(json.dumps(json.loads(row) | {"id": None}) for row in [*dev, steer[1], steer[3]]))
    message = bad("sweep", *SIMPLE, "--pairs", data / "steer.jsonl", "--dev", mixed)
    assert "2 prompts are in both" in message
    assert "choosing on them would flatter the vectors" in message


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lam", "1,,2"], "--lam '1,,2' cannot be read; write numbers with commas, for instance '1,2,4'"),
        (["--lam", "strong"], "--lam 'strong' cannot be read"),
        (["--k", "three"], "--k 'three' cannot be read"),
        (["--k", "1,2.5"], "--k '1,2.5' cannot be read; write whole numbers"),
        (["--k", "0"], "k is 0; expected a whole number of at least 1"),
        (["--aggregation", "median"], "aggregation is 'median'"),
        (["--preset", "mine"], "preset 'mine' does not exist"),
    ],
)
def test_a_sweep_over_settings_that_do_not_exist_is_refused_at_once(data: Path, options: list[str], words: str) -> None:
    assert words in bad("sweep", *SIMPLE, "--pairs", data / "steer.jsonl", "--dev", data / "dev.jsonl", *options)


# --- eval


def test_eval_shows_the_plain_model_beside_the_steered_one(
    data: Path, vectors: Path, simple_model: HuggingFaceModel
) -> None:
    tests = demo.as_pairs(build_world("simple").split("test")[:6])
    tasks = demo.as_tasks(build_world("simple").capability_split("test")[:10])
    command = ["eval", *SIMPLE, "--pairs", data / "test.jsonl", "--tasks", data / "tasks.jsonl"]
    record = parsed(*command, "--vectors", vectors, "--lam", "6", "--layers", "1-3")
    with Steering(simple_model.blocks, SteeringVectors.load(vectors).v, lam=6.0, layers=[1, 2, 3]):
        accuracy, skill = preference_accuracy(simple_model, tests), capability(simple_model, tasks)  # type: ignore[arg-type]
    assert set(record) == {"unsteered", "steered"}
    assert record["steered"]["preference accuracy"] == vars(accuracy)
    assert record["steered"]["task accuracy"] == vars(skill)
    assert record["unsteered"]["preference accuracy"] == vars(preference_accuracy(simple_model, tests))
    assert record["steered"] != record["unsteered"]
    table = good(*command, "--vectors", vectors, "--lam", "6", "--layers", "1-3")
    (line,) = [line for line in table.splitlines() if "preference accuracy" in line]
    assert line.strip().endswith(str(accuracy))
    assert next(line for line in table.splitlines() if "unsteered" in line).split() == ["unsteered", "steered"]


def test_eval_without_vectors_measures_the_plain_model(data: Path) -> None:
    record = parsed("eval", *SIMPLE, "--pairs", data / "test.jsonl")
    assert {way: list(rates) for way, rates in record.items()} == {"unsteered": ["preference accuracy"]}


def test_eval_counts_multiple_choice_where_every_row_has_choices(data: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    with_choices = [row | {"choices": [row["rejected"], row["chosen"]], "label": 1} for row in rows]
    record = parsed("eval", *SIMPLE, "--pairs", lines(tmp_path / "all.jsonl", with_choices))["unsteered"]
    assert record["multiple-choice accuracy"] == record["preference accuracy"]
    record = parsed("eval", *SIMPLE, "--pairs", lines(tmp_path / "some.jsonl", [*with_choices[1:], rows[0]]))
    assert list(record["unsteered"]) == ["preference accuracy"]


@pytest.mark.usefixtures("no_model")
def test_eval_wants_vectors_and_strength_together(data: Path, vectors: Path) -> None:
    for half in (["--vectors", vectors], ["--lam", "2"]):
        message = bad("eval", *SIMPLE, "--pairs", data / "test.jsonl", *half)
        assert "--vectors and --lam belong together: give both to steer, or neither" in message


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("0-4", "layers '0-4' do not exist: the model has layers 0 to 3"),
        ("four", "layers 'four' cannot be read; write 'all' or for instance '8-15,20'"),
        ("1-", "layers '1-' cannot be read"),
        ("-1", "layers '-1' cannot be read"),
        ("2-1", "layers '2-1' do not exist"),
        ("1,0-2", "layers must be different numbers from 0 to 3; got [1, 0, 1, 2]"),
    ],
)
def test_layers_that_do_not_exist_are_refused(data: Path, vectors: Path, layers: str, words: str) -> None:
    command = ["eval", *SIMPLE, "--pairs", data / "test.jsonl", "--vectors", vectors, "--lam", "1"]
    assert words in bad(*command, "--layers", layers)


def test_layers_are_read_as_written() -> None:
    assert cli._parse_layers("all", 4) == [0, 1, 2, 3]
    assert cli._parse_layers("8-10, 3,12", 13) == [8, 9, 10, 3, 12]


def test_vectors_of_another_model_need_force_and_those_of_another_shape_fit_never(
    data: Path, vectors: Path, other_model: Path
) -> None:
    steer = ["--pairs", data / "test.jsonl", "--vectors", vectors, "--lam", "1"]
    message = bad("eval", "--model", "tiny:simple-seed1", *steer)
    assert "MismatchError: " in message
    assert "same shape, other weights. If that is meant, pass --force" in message
    assert set(parsed("eval", "--model", "tiny:simple-seed1", *steer, "--force")) == {"unsteered", "steered"}
    for force in ([], ["--force"]):
        message = bad("eval", "--model", other_model, *steer, *force)
        assert "have 4 layers of width 128" in message
        assert "has 3 layers of width 28" in message
        assert "a shape cannot be forced" in message


# --- generate


def test_generate_shows_the_base_beside_the_steered_text(vectors: Path, simple_model: HuggingFaceModel) -> None:
    prompts = [p.prompt for p in build_world("simple").split("test")[:2]]
    command = ["generate", *SIMPLE, "--vectors", vectors, "--max-new-tokens", "7"]
    command += [word for prompt in prompts for word in ("--prompt", prompt)]
    record = parsed(*command, "--lam", "6")
    with Steering(simple_model.blocks, SteeringVectors.load(vectors).v, lam=6.0):
        steered = simple_model.generate(prompts, max_new_tokens=7)
    base = simple_model.generate(prompts, max_new_tokens=7)
    assert base != steered
    assert record == [
        {"prompt": p, "unsteered": b, "steered": s} for p, b, s in zip(prompts, base, steered, strict=True)
    ]
    table = good(*command, "--lam", "6")
    assert "steered, lam 6" in table
    for row in zip(prompts, base, steered, strict=True):
        assert any(all(cell in line for cell in row) for line in table.splitlines())


def test_strength_zero_changes_no_text(vectors: Path) -> None:
    command = ["generate", *SIMPLE, "--vectors", vectors, "--prompt", PROMPT, "--lam", "0", "--max-new-tokens", "7"]
    (row,) = parsed(*command)
    assert row["unsteered"] == row["steered"] != ""


@pytest.mark.parametrize("prompt", ["[INST] Is it eel ? [/INST]", "[bold] is it eel ?"])
def test_brackets_in_a_prompt_are_text(vectors: Path, prompt: str) -> None:
    command = ["--vectors", vectors, "--prompt", prompt, "--lam", "1", "--max-new-tokens", "2"]
    assert prompt in good("generate", *SIMPLE, *command)


def test_generate_refuses_vectors_of_another_model_before_the_work(
    vectors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("something was generated")

    monkeypatch.setattr(HuggingFaceModel, "generate", refuse)
    command = ["--vectors", vectors, "--prompt", PROMPT, "--lam", "1"]
    assert "pass --force" in bad("generate", "--model", "tiny:simple-seed1", *command)


# --- inspect


def test_inspect_says_what_a_file_holds(vectors: Path) -> None:
    loaded = SteeringVectors.load(vectors)
    record = parsed("inspect", vectors)
    assert record["header"] == vars(loaded.header)
    assert [tuple(row.values()) for row in record["layers"]] == loaded.norms()
    assert list(record["layers"][0]) == ["v", "v_pos", "v_neg", "cos"]
    text = good("inspect", vectors)
    for words in (loaded.header.fingerprint, "0 to 3", "aggregation=mean", f"{loaded.norms()[2][0]:.3f}"):
        assert words in text


def test_a_fingerprint_is_shown_whole_however_narrow_the_screen(vectors: Path) -> None:
    text = CliRunner().invoke(cli.app, ["inspect", str(vectors)], env={"COLUMNS": "60"}).stdout
    assert "…" not in text


def test_a_cosine_that_is_undefined_is_null_in_json(vectors: Path, tmp_path: Path) -> None:
    loaded = SteeringVectors.load(vectors)
    compose([(0.0, loaded)]).save(tmp_path / "zero")
    assert [row["cos"] for row in parsed("inspect", tmp_path / "zero")["layers"]] == [None] * 4
    assert "nan" in good("inspect", tmp_path / "zero")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(("damage", "words"), [(cut, "truncated, corrupt"), (remove, "no such file")])
def test_a_vectors_file_that_cannot_be_read_is_refused(
    vectors: Path, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    copy = Path(shutil.copy(vectors, tmp_path / "v.safetensors"))
    damage(copy)
    message = bad("inspect", copy)
    assert f"VectorFileError: {copy}: " in message
    assert words in message


# --- demo, refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--world", "flat"], "world 'flat' does not exist; the planted worlds are simple, graded"),
        (["--seeds", "0,3"], "--seeds '0,3' cannot be read; write training seeds out of 0, 1, 2"),
        (["--seeds", ""], "--seeds '' cannot be read"),
    ],
)
def test_a_demo_of_what_does_not_exist_is_refused(tmp_path: Path, options: list[str], words: str) -> None:
    assert words in bad("demo", *options, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
