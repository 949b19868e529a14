"""`grains-ref sweep` and `grains-ref eval`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import PROMPT, SIMPLE, bad, good, lines, parsed, run
from scipy.stats import binomtest
from shared import first_quick

import grains_ref.evaluation.choice
import grains_ref.fast
from grains_ref.data import PreferencePair
from grains_ref.demo import planted as demo
from grains_ref.evaluation import capability, margins, pair_rows, preference_accuracy
from grains_ref.evaluation.metrics import paired_gain
from grains_ref.evaluation.pair_scores import prompts_of
from grains_ref.grains import Steering
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.worlds import build_world
from grains_ref.vectors import SteeringVectors

pytestmark = pytest.mark.cpu


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
    assert [row["dev_accuracy"] for row in limited["tried"]] == [row["dev_accuracy"] for row in free["tried"]]
    assert free["vectors"] == str(out)
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
    for row in limited["tried"]:  # of what was asked, the share; of what broke the limit, the most that it can be
        if "task_accuracy" in row:
            shown, true = row["task_accuracy"], answered[row["lam"]]
            assert shown >= true - 1e-9 if row["task_accuracy_is_at_most"] else shown == pytest.approx(true)
    asked = {row["lam"]: row["task_accuracy_is_at_most"] for row in limited["tried"] if "task_accuracy" in row}
    assert asked[free["best"]["lam"]] is True
    assert asked[limited["best"]["lam"]] is asked[0] is False
    assert right[0] < right[limited["best"]["lam"]] < right[free["best"]["lam"]]
    best = limited["best"]
    assert (best["dev_accuracy"], best["dev_accuracy_unsteered"]) == (right[best["lam"]], right[0])
    assert (best["task_accuracy"], best["task_accuracy_unsteered"]) == (answered[best["lam"]], answered[0])
    assert (best["dev_pairs"], best["tasks"], best["max_loss"]) == (8, 40, 90)


def test_sweep_writes_vectors_that_eval_accepts(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.safetensors"
    options = ["--lam", "2", "--k", "1,3", "--aggregation", "mean", "--aggregation", "uncentred"]
    layers = ["--layers", "all", "--layers", "1-2,3"]
    record = sweep(data, *options, *layers, "--out", out)
    assert len(record["tried"]) == 1 + 4 * 2
    assert len({tuple(row[key] for key in ("lam", "k", "aggregation", "layers")) for row in record["tried"]}) == 9
    first = record["tried"][0]
    assert {name: first[name] for name in ("lam", "k", "aggregation", "layers", "dev_accuracy")} == {
        "lam": 0, "k": None, "aggregation": None, "layers": None, "dev_accuracy": 0,
    }  # fmt: skip
    assert first["dev_margin_change"] == [0, 0, 0]
    for row in record["tried"][1:]:
        value, low, high = row["dev_margin_change"]
        assert low <= value <= high
        assert value == pytest.approx(row["dev_margin"] - first["dev_margin"])
    best = record["best"]
    used = SteeringVectors.load(out).header
    assert (used.hyper_parameters["k"], used.hyper_parameters["aggregation"]) == (best["k"], best["aggregation"])
    assert used.n_examples == 4
    command = ["eval", *SIMPLE, "--pairs", data / "dev.jsonl", "--vectors", out]
    found = parsed(*command, "--lam", str(best["lam"]), "--layers", best["layers"])["steered"]["preference accuracy"]
    assert found["value"] == max(row["dev_accuracy"] for row in record["tried"])
    assert found["n"] == 8
    stored = run(*command, "--json")  # neither strength nor layers: as the sweep stored them
    assert json.loads(stored.stdout)["steered"]["preference accuracy"] == found
    assert f"lam 2, as the sweep stored it in {out}" in stored.stderr
    shown = {"all": "0-3", "1-2,3": "1-3"}[best["layers"]]
    assert f"layers {shown}, as the sweep stored them in {out}" in stored.stderr
    assert "as the sweep stored" not in run(*command, "--lam", "2", "--layers", "all").stderr


@pytest.mark.thorough
def test_sweep_gives_the_vectors_of_fit_and_stores_what_it_chose(data: Path, tmp_path: Path, vectors: Path) -> None:
    out = tmp_path / "v"
    record = sweep(data, "--lam", "6", "--aggregation", "mean", "--out", out, "--tasks", data / "dev_tasks.jsonl",
                   "--max-loss", "100")  # fmt: skip
    made, fitted = SteeringVectors.load(out), SteeringVectors.load(vectors)
    assert torch.equal(made.v_pos, fitted.v_pos)
    assert torch.equal(made.v_neg, fitted.v_neg)
    assert replace(made.header, choice={}) == fitted.header
    assert record["signal"] == fitted.header.signal
    costs = {name: value for name, value in record["best"].items() if name not in ("k", "aggregation", "layers")}
    assert made.header.choice == costs | {"layers": [0, 1, 2, 3]}
    text = good("inspect", out)
    for words in ("chosen by a sweep", "lam=6", "layers=[0 1 2 3]", "dev_accuracy=", "task_accuracy_unsteered=1"):
        assert words in text


def test_an_interrupted_sweep_says_what_is_kept_and_goes_on_to_the_same_bits(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--lam", "2,6", "--aggregation", "mean", "--out"]
    whole = sweep(data, *options, tmp_path / "whole")
    real, calls = grains_ref.evaluation.choice.score_pairs, list[int]()

    def interrupted(*args: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(grains_ref.evaluation.choice, "score_pairs", interrupted)
    command = ["sweep", *SIMPLE, "--pairs", data / "steer.jsonl", "--dev", data / "dev.jsonl", *options, tmp_path / "v"]
    stopped = run(*command)
    assert stopped.exit_code == 130
    words = " ".join(stopped.stderr.split())
    work = tmp_path / "v.work"
    assert f"finished and kept in {work}: 4 of 4 (attribution), 1 of 3 (dev); run the same command to go on" in words
    assert len(list(work.glob("dev-*.json"))) == 1
    assert not (tmp_path / "v").exists()

    again = sweep(data, *options, tmp_path / "v")
    assert len(calls) == 2 + 2
    assert (again["best"], again["tried"]) == (whole["best"], whole["tried"])
    assert (tmp_path / "v").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v", "whole"]


@pytest.mark.thorough
def test_a_kept_work_folder_of_a_sweep_serves_another_grid(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--aggregation", "mean", "--work", tmp_path / "work"]
    sweep(data, "--lam", "2", *options, "--keep-work")
    monkeypatch.setattr(grains_ref.fast.Fast, "scores", None)  # not needed any more
    assert [row["lam"] for row in sweep(data, "--lam", "2,6", *options)["tried"]] == [0, 2, 6]
    assert list(tmp_path.iterdir()) == []
    assert "--keep-work keeps the work folder: name one" in bad(
        "sweep", *SIMPLE, "--pairs", data / "steer.jsonl", "--dev", data / "dev.jsonl", "--keep-work"
    )


def test_an_interrupted_sweep_without_a_folder_says_that_nothing_is_kept(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(grains_ref.evaluation.choice, "score_pairs", interrupted)
    stopped = run("sweep", *SIMPLE, "--pairs", data / "steer.jsonl", "--dev", data / "dev.jsonl")
    assert stopped.exit_code == 130
    assert "interrupted; nothing is kept: give --out or --work" in " ".join(stopped.stderr.split())


def test_nothing_is_written_when_no_steering_won(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.safetensors"
    out.write_text("what was there before")
    options = ["--lam", "0.001", "--aggregation", "mean", "--out", out]
    record = sweep(data, *options)
    assert (record["best"]["lam"], record["vectors"]) == (0, None)
    command = ["sweep", *SIMPLE, "--pairs", data / "steer.jsonl", "--dev", data / "dev.jsonl"]
    assert f"lam = 0 was chosen.\nNothing was written to {out}." in good(*command, *options)
    assert out.read_text() == "what was there before"


@pytest.mark.parametrize("form", first_quick([[], ["--json"]]))
def test_a_choice_is_told_although_the_disk_is_full(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: list[str]
) -> None:
    def full(self: object, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SteeringVectors, "save", full)
    command = ["sweep", *SIMPLE, "--pairs", data / "steer.jsonl", "--dev", data / "dev.jsonl", "--aggregation", "mean"]
    result = run(*command, "--lam", "6", "--out", tmp_path / "v", *form)
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    if form:
        record = json.loads(result.stdout)
        assert (record["best"]["lam"], record["vectors"]) == (6, None)
    else:
        assert "* k 3, mean, layers all" in result.stdout
        assert "Next:" not in result.stdout


def test_a_fit_without_a_direction_is_left_out_and_told(data: Path, tmp_path: Path) -> None:
    one = lines(tmp_path / "one.jsonl", [json.loads((data / "steer.jsonl").read_text().splitlines()[0])])
    command = ["sweep", *SIMPLE, "--pairs", one, "--dev", data / "dev.jsonl", "--lam", "1"]
    result = run(*command, "--aggregation", "pca", "--aggregation", "mean", "--json")
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    assert [left_out["what"] for left_out in record["left_out"]] == ["k 3, pca"]
    assert "left out: k 3, pca: layer 0: the 1 shifts are all equal, so PCA has no first component" in result.stderr
    assert [row["aggregation"] for row in record["tried"]] == [None, "mean"]
    assert "PCA has no first component" in bad(*command)


def test_the_table_of_a_sweep_marks_the_choice_and_warns_without_tasks(data: Path, tmp_path: Path) -> None:
    command = ["sweep", *SIMPLE, "--pairs", data / "steer.jsonl", "--dev", data / "dev.jsonl", "--aggregation", "mean"]
    result = run(*command, "--lam", "6", "--out", tmp_path / "v")
    assert "nothing has been steered" not in result.stderr  # there are no tasks to steer
    table = result.stdout
    (marked,) = [line for line in table.splitlines() if line.startswith("  * ")]
    assert marked.split()[1:7] == ["k", "3,", "mean,", "layers", "all", "6"]
    assert "No --tasks were given, so nothing stops a strength that ruins other skills." in table
    assert f"Next: grains-ref eval --model tiny:simple-seed0 --vectors {tmp_path / 'v'} --pairs TEST" in table
    assert f"({tmp_path / 'v'} holds lam 6 and layers all.)" in table
    unsteered = next(line for line in table.splitlines() if "unsteered" in line)
    assert unsteered.split()[:4] == ["unsteered", "0", "0.0", "%"]
    assert unsteered.split()[-2] == "margin"
    assert "Signal: " in table
    header = SteeringVectors.load(tmp_path / "v").header
    assert header.signal["figures"]["pairs"] == 4
    assert f"Signal: {header.signal['line']}" in " ".join(table.split())
    quiet = good(*command, "--lam", "0.001", "--tasks", data / "dev_tasks.jsonl")
    assert "No --tasks were given" not in quiet
    assert "No steered setting beat the unsteered model within the limit: lam = 0 was chosen." in quiet
    assert "Tasks (40): 100.0 % with the chosen setting, 100.0 % unsteered; 0.5 points may be lost." in quiet
    assert "try smaller --lam" not in quiet  # it is not better on dev


def test_where_the_gentlest_strength_costs_too_much_smaller_ones_are_advised(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = iter([40, 40, 0])  # of both strengths, and of the unsteered model
    monkeypatch.setattr(grains_ref.evaluation.choice, "wrong_answers", lambda *given, **more: next(wrong))
    command = ["sweep", *SIMPLE, "--pairs", data / "steer.jsonl", "--dev", data / "dev.jsonl", "--aggregation", "mean"]
    table = " ".join(good(*command, "--lam", "6,10", "--tasks", data / "dev_tasks.jsonl").split())
    assert "Even the gentlest, lam 6, is better on dev and costs too many tasks: try smaller --lam." in table


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
        (["--lam", "1,,2"], "--lam '1,,2' cannot be read; write finite numbers with commas, for instance '1,2,4'"),
        (["--lam", "1,nan"], "--lam '1,nan' cannot be read; write finite numbers"),
        (["--lam", "2,1,2.0"], "--lam: 2.0 is named twice"),
        (["--k", "three"], "--k 'three' cannot be read"),
        (["--k", "1,0"], "--k '1,0' cannot be read; write whole numbers of at least 1"),
        (["--k", "1,3,1"], "--k: 1 is named twice"),
        (["--layers", "3-1"], "the range 3-1 runs backwards; write 1-3"),
        (["--aggregation", "mean", "--aggregation", "mean"], "--aggregation: mean is named twice"),
        (["--aggregation", "median"], "aggregation is 'median'"),
        (["--preset", "mine"], "preset 'mine' does not exist"),
    ],
)
def test_a_sweep_over_settings_that_do_not_exist_is_refused_at_once(data: Path, options: list[str], words: str) -> None:
    assert words in bad("sweep", *SIMPLE, "--pairs", data / "steer.jsonl", "--dev", data / "dev.jsonl", *options)


# --- eval

PREFERENCE = [
    "preference accuracy",
    "preference accuracy, per token",
    "mean margin, nats",
    "mean margin per token, nats",
]


def test_eval_shows_the_plain_model_beside_the_steered_one(
    data: Path, vectors: Path, simple_model: HuggingFaceModel
) -> None:
    tests = demo.as_pairs(build_world("simple").split("test")[:6])
    tasks = demo.as_tasks(build_world("simple").capability_split("test")[:10])
    command = ["eval", *SIMPLE, "--pairs", data / "test.jsonl", "--tasks", data / "tasks.jsonl"]
    record = parsed(*command, "--vectors", vectors, "--lam", "6", "--layers", "1-3")
    with Steering(simple_model.blocks, SteeringVectors.load(vectors).v, lam=6.0, layers=[1, 2, 3]):
        accuracy, skill = preference_accuracy(simple_model, tests), capability(simple_model, tasks)  # type: ignore[arg-type]
    assert set(record) == {"unsteered", "steered", "change"}
    assert record["steered"]["preference accuracy"] == vars(accuracy)
    assert record["steered"]["task accuracy"] == vars(skill)
    assert record["unsteered"]["preference accuracy"] == vars(preference_accuracy(simple_model, tests))
    assert record["steered"] != record["unsteered"]
    table = good(*command, "--vectors", vectors, "--lam", "6", "--layers", "1-3")
    line = next(line for line in table.splitlines() if "preference accuracy" in line)
    assert line.strip().endswith(str(accuracy))
    assert next(line for line in table.splitlines() if "unsteered" in line).split() == ["unsteered", "steered"]

    plain = margins(simple_model, tests)
    with Steering(simple_model.blocks, SteeringVectors.load(vectors).v, lam=6.0, layers=[1, 2, 3]):
        steered = margins(simple_model, tests)
    gained = sum(after > 0 >= before for before, after in zip(plain, steered, strict=True))
    lost = sum(before > 0 >= after for before, after in zip(plain, steered, strict=True))
    change = record["change"]["preference accuracy"]
    assert (change["gained"], change["lost"]) == (gained, lost)
    assert gained != lost
    assert change["p"] == binomtest(gained, gained + lost).pvalue
    assert f"  preference accuracy: {gained} gained, {lost} lost, p = {change['p']:.2g}" in table
    prompts = prompts_of(pair_rows(simple_model, tests))
    expected = paired_gain(steered, plain, clusters=prompts)
    gain = record["change"]["mean margin, nats"]["gain"]
    assert [gain[name] for name in ("value", "low", "high")] == pytest.approx(
        [expected.value, expected.low, expected.high], abs=1e-5
    )
    assert gain["value"] == pytest.approx(
        record["steered"]["mean margin, nats"]["value"] - record["unsteered"]["mean margin, nats"]["value"], abs=1e-5
    )
    assert f"  mean margin, nats: {gain['value']:+.3f} [{gain['low']:.3f}, {gain['high']:.3f}]" in table
    assert "gained" not in good(*command)


def test_eval_scores_per_token_beside_whole_answers(data: Path, tmp_path: Path, simple_model: HuggingFaceModel) -> None:
    """A long chosen answer loses by its sum and may win per token."""
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    long = [row | {"chosen": " ".join([row["chosen"]] * 4)} for row in rows]
    record = parsed("eval", *SIMPLE, "--pairs", lines(tmp_path / "long.jsonl", long))["unsteered"]
    pairs = [PreferencePair(row["id"], row["prompt"], row["chosen"], row["rejected"], where="test") for row in long]
    for name, normalise in (("", "sum"), (" per token", "token")):
        expected = margins(simple_model, pairs, normalise=normalise)  # type: ignore[arg-type]
        assert record[f"mean margin{name}, nats"]["value"] == pytest.approx(sum(expected) / len(expected), abs=1e-5)
    assert record["preference accuracy, per token"]["value"] == sum(margin > 0 for margin in expected) / len(expected)
    assert record["mean margin, nats"]["value"] < 4 * record["mean margin per token, nats"]["value"]


def test_eval_without_vectors_measures_the_plain_model(data: Path) -> None:
    record = parsed("eval", *SIMPLE, "--pairs", data / "test.jsonl")
    assert {way: list(rates) for way, rates in record.items()} == {"unsteered": PREFERENCE}


def test_eval_counts_multiple_choice_where_every_row_has_choices(data: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    with_choices = [row | {"choices": [row["rejected"], row["chosen"]], "label": 1} for row in rows]
    record = parsed("eval", *SIMPLE, "--pairs", lines(tmp_path / "all.jsonl", with_choices))["unsteered"]
    assert record["multiple-choice accuracy"] == record["preference accuracy"]
    record = parsed("eval", *SIMPLE, "--pairs", lines(tmp_path / "some.jsonl", [*with_choices[1:], rows[0]]))
    assert list(record["unsteered"]) == PREFERENCE


@pytest.mark.usefixtures("no_model")
def test_a_strength_without_vectors_and_vectors_without_a_strength_are_refused(data: Path, vectors: Path) -> None:
    command = ["eval", *SIMPLE, "--pairs", data / "test.jsonl"]
    for half in (["--lam", "2"], ["--layers", "1"]):
        assert "--lam and --layers say how to use vectors: give --vectors too" in bad(*command, *half)
    for lam in ("nan", "inf"):
        assert f"--lam is {lam}; expected a finite number" in bad(*command, "--vectors", vectors, "--lam", lam)
    advice = f"{vectors} holds no strength: give one with --lam, or choose one with 'grains-ref sweep --out'"
    assert advice in bad(*command, "--vectors", vectors)
    assert advice in bad("generate", *SIMPLE, "--prompt", PROMPT, "--vectors", vectors)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("0-4", "layers '0-4' do not exist: the model has layers 0 to 3"),
        ("four", "layers 'four' cannot be read; write 'all' or for instance '8-15,20'"),
        ("1-", "layers '1-' cannot be read"),
        ("-1", "layers '-1' cannot be read"),
        ("2-1", "layers '2-1': the range 2-1 runs backwards; write 1-2"),
        ("1,0-2", "layers '1,0-2': layer 1 is named twice"),
        ("0-9999999999", "layers '0-9999999999' do not exist: the model has layers 0 to 3"),
    ],
)
def test_layers_that_do_not_exist_are_refused(data: Path, vectors: Path, layers: str, words: str) -> None:
    command = ["eval", *SIMPLE, "--pairs", data / "test.jsonl", "--vectors", vectors, "--lam", "1"]
    assert words in bad(*command, "--layers", layers)


def test_vectors_of_another_model_need_force_and_those_of_another_shape_fit_never(
    data: Path, vectors: Path, other_model: Path
) -> None:
    steer = ["--pairs", data / "test.jsonl", "--vectors", vectors, "--lam", "1"]
    message = bad("eval", "--model", "tiny:simple-seed1", *steer)
    assert "MismatchError: " in message
    assert "same shape, other weights. If that is meant, pass --force" in message
    assert set(parsed("eval", "--model", "tiny:simple-seed1", *steer, "--force")) == {"unsteered", "steered", "change"}
    for force in ([], ["--force"]):
        message = bad("eval", "--model", other_model, *steer, *force)
        assert "have 4 layers of width 128" in message
        assert "has 3 layers of width 28" in message
        assert "a shape cannot be forced" in message


# --- what does not suit the model is refused before the work


def test_eval_refuses_what_is_too_long_before_anything_is_scored(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("something was scored")

    monkeypatch.setattr(HuggingFaceModel, "score_rows", refuse)
    fine = {"prompt": PROMPT, "chosen": "eel .", "rejected": "barley ."}
    long = "eel " * 100
    for name, row, words in (
        ("prompt", fine | {"prompt": long}, "prompt.jsonl:1: field 'prompt': "),
        ("chosen", fine | {"chosen": long}, "chosen.jsonl:1: field 'prompt': "),
        ("choices", fine | {"choices": ["eel .", long], "label": 0}, "choices.jsonl:1 (choice 1): "),
    ):
        message = bad("eval", *SIMPLE, "--pairs", lines(tmp_path / f"{name}.jsonl", [row]))
        assert words in message
        assert "but the model takes 64" in message
    tasks = lines(tmp_path / "tasks.jsonl", [{"prompt": long, "answer": "eel"}])
    message = bad("eval", *SIMPLE, "--pairs", data / "test.jsonl", "--tasks", tasks)
    assert "task 000001: " in message
    assert "but the model takes 64" in message
    assert "task 000001: " in bad(
        *("sweep", *SIMPLE, "--pairs", data / "steer.jsonl", "--dev", data / "dev.jsonl", "--tasks", tasks)
    )


# --- a sweep of vectors that are there


@pytest.mark.thorough
def test_given_vectors_get_the_strength_that_a_sweep_of_their_pairs_gives_them(
    data: Path, vectors: Path, tmp_path: Path
) -> None:
    options = ["--dev", data / "dev.jsonl", "--tasks", data / "dev_tasks.jsonl", "--lam", "2,5", "--max-loss", "90"]
    made = parsed("sweep", *SIMPLE, "--pairs", data / "steer.jsonl", "--aggregation", "mean", *options)
    given = parsed("sweep", *SIMPLE, "--vectors", vectors, *options, "--out", tmp_path / "v")
    assert [row["dev_accuracy"] for row in given["tried"]] == [row["dev_accuracy"] for row in made["tried"]]
    for name in ("dev_margin", "dev_margin_change"):  # the file's vectors are rounded to float32
        assert given["best"].pop(name) == pytest.approx(made["best"].pop(name), abs=1e-4)
    assert given["best"] | {"k": 0, "aggregation": 0} == made["best"] | {"k": 0, "aggregation": 0}
    stored = SteeringVectors.load(tmp_path / "v")
    assert torch.equal(stored.v, SteeringVectors.load(vectors).v)
    assert stored.header.choice["lam"] == given["best"]["lam"]
    assert stored.header.signal == SteeringVectors.load(vectors).header.signal != {}
    assert "layers all" in good("sweep", *SIMPLE, "--vectors", vectors, *options)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "give --pairs to make vectors from, or --vectors that are there already"),
        (["--pairs", "steer.jsonl", "--vectors", "v.safetensors"], "one of them"),
        (
            ["--vectors", "v.safetensors", "--k", "3", "--aggregation", "mean"],
            "--k, --aggregation: how",
        ),
    ],
)
def test_pairs_and_given_vectors_exclude_each_other(data: Path, options: list[str], words: str) -> None:
    assert words in bad("sweep", *SIMPLE, "--dev", data / "dev.jsonl", *options)


def test_given_vectors_of_another_model_are_refused_before_the_work(
    data: Path, vectors: Path, other_model: Path
) -> None:
    assert "have 4 layers of width 128" in bad(
        "sweep", "--model", other_model, "--vectors", vectors, "--dev", data / "dev.jsonl"
    )
