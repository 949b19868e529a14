"""Ports checked live: right ones pass on fresh inputs, broken ones fail at the check that names their fault."""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ports.live_ports import PlainPort, reference_port, with_fingerprints
from shared import first_quick

from grains_ref.conformance import live
from grains_ref.conformance.live import FUNCTIONS, LiveResult, check_live, fingerprint, reference
from grains_ref.conformance.live.check import prompt_of_one_word
from grains_ref.conformance.live.judging import Finding, Noisy, judged
from grains_ref.conformance.live.reference import Oracle, upcast
from grains_ref.data import PreferencePair
from grains_ref.data.pairs import Message
from grains_ref.models.families import Picture
from grains_ref.tiny_models import random_models, random_vision_models
from grains_ref.tiny_models.random_vision_models import noise_picture

pytestmark = pytest.mark.cpu
random_llama, random_qwen2 = functools.cache(random_models.random_llama), functools.cache(random_models.random_qwen2)
random_llava = functools.cache(random_vision_models.random_llava)

WORDS = "the moon is made of rock and cheese said people who live in France near Rome but not in Spain".split()
SEEDS = range(int(os.environ.get("GRAINS_LIVE_SEEDS", "3")))  # 20 take a minute
BUILD = {"llama": random_llama, "qwen2": random_qwen2, "llava": random_llava}


def pair(seed: int, picture: Path | None = None) -> PreferencePair:
    """A fresh pair of random words."""
    draw = random.Random(seed)
    question, yes, no = (
        " ".join(draw.choices(WORDS, k=draw.randint(low, high))) for low, high in ((4, 12), (1, 4), (2, 6))
    )
    prompt = f"Q: {'<image> ' if picture else ''}{question}? A:"
    return PreferencePair(f"pair {seed}", prompt, yes, no, f"drawn:{seed}", picture)


# --------------------------------------------------------------------------------------------- helpers
@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{seed}.png" for seed in range(3)]
    for seed, (path, size) in enumerate(zip(paths, ((90, 50), (40, 80), (60, 60)), strict=True)):
        noise_picture(*size, seed=seed).save(path)
    return paths


def not_passed(results: Sequence[LiveResult]) -> list[LiveResult]:
    return [result for result in results if result.status != "passed"]


def failing(results: Sequence[LiveResult]) -> set[str]:
    return {result.check for result in results if result.status == "failed"}


def worst(results: Sequence[LiveResult]) -> Iterator[tuple[str, float]]:
    for check in dict.fromkeys(result.check for result in results):
        yield (
            check,
            max(r.error / r.allowed for r in results if r.check == check and r.allowed)
            if any(r.allowed for r in results if r.check == check)
            else 0.0,
        )


# ------------------------------------------------------------------------------------------ right ports
@pytest.mark.parametrize("which", first_quick(range(3)), ids=list(BUILD))
def test_the_reference_itself_passes_on_fresh_inputs(which: int, pictures: list[Path]) -> None:
    model = list(BUILD.values())[which]()
    seen = pictures if model.family.marker else [None]
    for seed in SEEDS[which::3]:
        results = check_live(model, [pair(seed, seen[seed % len(seen)])], reference_port(), seeds=[seed], m=2)
        assert not not_passed(results)
        assert len({result.check for result in results}) == 14


@pytest.mark.parametrize("which", first_quick(range(2)), ids=["llama", "qwen2"])
def test_an_independent_port_passes_on_fresh_inputs(which: int) -> None:
    model = (random_llama, random_qwen2)[which]()
    results = check_live(model, [pair(seed) for seed in SEEDS[which::3]], PlainPort(), seeds=[1], m=2)
    print("\nerror / allowed:", {check: f"{ratio:.2f}" for check, ratio in worst(results)})  # shown with -s
    assert not not_passed(results)


@pytest.mark.thorough
@pytest.mark.parametrize("port", first_quick([reference_port(), PlainPort()]), ids=["reference", "independent"])
def test_half_precision_is_judged_by_its_own_noise(port: Any) -> None:
    model = random_llama(dtype=torch.bfloat16)
    results = check_live(model, [pair(0)], port, m=1)
    print("\nerror / allowed:", {check: f"{ratio:.2f}" for check, ratio in worst(results)})
    assert not failing(results)
    told = {r.check for r in results if r.status == "passed"}
    assert {"objective", "steer", "norms are kept", "lam = 0 changes nothing"} <= told


@pytest.mark.thorough
def test_bfloat16_tells_where_the_shift_is_as_large_as_the_state() -> None:
    model, pairs = random_llama(dtype=torch.bfloat16), [pair(1), pair(2)]
    port, wrong = (SimpleNamespace(live_contrast=PlainPort(fault).live_contrast) for fault in ("", "normed"))
    allowed = {r.check: r.allowed for r in check_live(model, pairs, port, m=1)}
    assert allowed["contrast"] < 0.06  # the fault is .2 off
    assert allowed["contrast of earlier tokens"] > 2 * allowed["contrast"]
    assert "contrast" in failing(check_live(model, pairs, wrong, m=1))


def test_log_probabilities_may_be_rounded_before_they_are_summed() -> None:
    model = random_llama(dtype=torch.bfloat16)
    narrow = [reference.objective_of(model, pair(seed), reference.Way(narrow=True)) for seed in range(4)]
    plain = [reference.objective_of(model, pair(seed)) for seed in range(4)]
    assert any(one["f"] != other["f"] for one, other in zip(narrow, plain, strict=True))
    port = SimpleNamespace(live_objective=lambda handle, prompt, chosen, rejected: reference.objective_of(
        handle, PreferencePair("", prompt, chosen, rejected, ""), reference.Way(narrow=True)
    ))  # fmt: skip
    assert not failing(check_live(model, [pair(seed) for seed in range(4)], port))


# ----------------------------------------------------------------------------------------- broken ports
BROKEN = {  # fault -> the checks that it fails
    "one_late": {"objective", "attribution", "steer", "lam = 0 changes nothing"},
    "no_bos": {"objective", "attribution"},
    "not_times_input": {"attribution"},
    "one_branch": {"attribution", "exchanged responses negate a"},
    "normed": {"contrast", "contrast of earlier tokens"},
    "uncentred": {"aggregation"},
    "sides_added": {"aggregation"},
    "norm_over_sequence": {"steer", "norms are kept"},
    "last_layer": {"steer"},
    "zero_replaced": {"lam = 0 changes nothing"},
    "v_normalised": {"steer", "only the product of lam and v counts"},
    "padding_selected": {"only eligible tokens are selected"},
    "left_padding_attended": {"a batch is its single rows"},
}
TOLD = {  # fault -> check, and a part of its message
    "one_late": ("objective", "each predicted by the row before it"),
    "no_bos": ("attribution", "BOS doubled or missing, or the response included?"),
    "one_branch": ("exchanged responses negate a", "is only one response attributed"),
    "normed": ("contrast", "layer 2 differs most (length"),
    "uncentred": ("aggregation", "centred PCA of the shifts is expected"),
    "sides_added": ("aggregation", "v differs from v_pos - v_neg by"),
    "v_normalised": ("only the product of lam and v counts", "is v normalised"),
    "norm_over_sequence": ("norms are kept", "eq. (8) keeps its norm"),
    "padding_selected": ("only eligible tokens are selected", "which are padding or may not be selected"),
}


@functools.cache
def oracle() -> Oracle:
    """The oracle's answers to a pair, which are the same for every port, take as long as the port's own."""
    model = random_llama()
    return Oracle(model, upcast(model), remembers=True)


@pytest.mark.parametrize("wrong", first_quick(BROKEN, 7))
def test_a_broken_port_fails_where_its_fault_is(wrong: str) -> None:
    results = check_live(random_llama(), [pair(1)], PlainPort(wrong), m=1, oracle=oracle())
    found = failing(results)
    assert BROKEN[wrong] <= found
    elsewhere = {
        "contrast",
        "contrast of earlier tokens",
        "steer",
        "exchanged responses negate a",
        "lam = 0 changes nothing",
    }
    assert found <= BROKEN[wrong] | (elsewhere if wrong == "no_bos" else set())  # other tokens, other everything
    if wrong in TOLD:
        name, message = TOLD[wrong]
        assert any(message in result.message for result in results if result.check == name)


@pytest.mark.thorough
@pytest.mark.parametrize("seed", [1, 0])
def test_padding_that_is_attended_to_shows_in_half_precision(seed: int) -> None:
    """Gemma 3 notices it least: beside a prompt of the same length only one model in two shows it."""
    model = random_vision_models.random_gemma3_text(seed=seed, dtype=torch.bfloat16)
    for wrong, failed in (("", set()), ("left_padding_attended", {"a batch is its single rows"})):
        port = PlainPort(wrong)
        only = SimpleNamespace(live_objective=port.live_objective, live_batch=port.live_batch)
        assert failing(check_live(model, [pair(0), pair(1)], only)) == failed


@pytest.mark.parametrize(
    ("prompt", "last"),
    [("Q: who? A:", "A:"), ("Q: A A: ", "A: "), ("A", "A"), ("\u6708\u4eae", "\u4eae"), ("the cat the", "the")],
)
def test_the_last_word_of_a_prompt_keeps_what_stands_behind_it(prompt: str, last: str) -> None:
    assert prompt_of_one_word(prompt) == last
    turns = [Message(role="system", content="Be brief."), Message(role="user", content=prompt)]
    assert prompt_of_one_word(turns) == [Message(role="user", content=last)]


def test_relations_catch_faults_without_a_float32_copy_and_in_half_precision() -> None:
    model = random_llama(dtype=torch.bfloat16)
    assert not failing(check_live(model, [pair(2)], PlainPort(), oracle=False, m=1))
    port = PlainPort()  # with three faults in three functions: each has a relation of its own
    port.live_attribution = PlainPort("one_branch").live_attribution  # type: ignore[method-assign]
    port.live_edit = PlainPort("norm_over_sequence").live_edit  # type: ignore[method-assign]
    port.live_selection = PlainPort("padding_selected").live_selection  # type: ignore[method-assign]
    relations = {"exchanged responses negate a", "norms are kept", "only eligible tokens are selected"}
    assert relations <= failing(check_live(model, [pair(2)], port, oracle=False, m=1))


def test_a_port_that_does_not_see_the_picture_is_caught(pictures: list[Path]) -> None:
    model, port = random_llava(), reference_port()
    sees = port.live_attribution
    port.live_attribution = lambda *arguments, image: sees(*arguments, image=pictures[1])
    size_of_first = noise_picture(*Picture.of(pictures[0]).size, seed=9)
    port.live_contrast = lambda *arguments, image: reference_port().live_contrast(*arguments, image=size_of_first)
    results = check_live(model, [pair(3, pictures[0])], port, m=1)
    assert {"attribution", "contrast"} <= failing(results)
    (told,) = [r.message for r in results if r.check == "attribution"]
    assert "the shape is" in told or "expected" in told


def test_crashes_wrong_shapes_and_missing_functions_are_told_apart() -> None:
    port = SimpleNamespace(
        live_objective=lambda *arguments: 1 / 0,
        live_attribution=lambda *arguments: [1.0, 2.0],
        live_contrast=lambda *arguments: {"delta_pos": 0},
        live_steer=lambda *arguments: "no numbers",
    )
    results = {r.check: r for r in check_live(random_llama(), [pair(1)], port, m=1)}
    assert "live_objective raised ZeroDivisionError" in results["objective"].message
    assert "the shape is (2,); expected (" in results["attribution"].message
    assert "live_contrast must return delta_pos and delta_neg" in results["contrast"].message
    assert "no array of numbers" in results["steer"].message
    assert results["norms are kept"].status == "skipped"
    assert "does not define live_edit" in results["norms are kept"].message
    with pytest.raises(ValueError, match="the port defines none of live_objective"):
        check_live(random_llama(), [pair(1)], SimpleNamespace())
    with pytest.raises(ValueError, match="no pairs were given"):
        check_live(random_llama(), [], PlainPort())


def test_a_pair_is_allowed_the_noise_of_the_noisiest_pair_that_can_be_decided() -> None:
    noise = {"quiet": 1e-5, "noisy": 1e-3, "hopeless": 1.0}
    errors = {"quiet": 2e-3, "noisy": 4e-3, "hopeless": 1.0}
    findings = [Finding("steer", name, 0, Noisy(errors[name], noise[name], "")) for name in noise]
    findings.append(Finding("contrast", "quiet", 0, Noisy(2e-3, 1e-5, "")))  # another check has its own noise
    results = judged(findings, torch.float32)
    assert [r.status for r in results] == ["passed", "failed", "undecidable", "failed"]
    assert [r.allowed for r in results] == pytest.approx([3e-3, 3e-3, 3.0, 3e-5])


def test_float32_is_compared_with_float64_and_both_numbers_can_be_told_apart() -> None:
    model = random_llama()
    assert upcast(model).hf.dtype == torch.float64
    assert model.hf.dtype == torch.float32
    port = reference_port()
    right = port.live_objective
    port.live_objective = lambda *arguments: {name: value + 1e-2 for name, value in right(*arguments).items()}
    (told,) = [r.message for r in check_live(model, [pair(1)], port, m=1) if r.check == "objective"]
    got, want = re.findall(r"(-?[0-9.]+) nats, expected (-?[0-9.]+)", told)[0]
    assert got != want
    assert "off by +1.00e-02" in told


@pytest.mark.parametrize("words", [5, 6])
def test_aggregation_is_checked_whether_the_prompt_has_an_even_number_of_tokens_or_an_odd_one(words: int) -> None:
    prompt = " ".join(WORDS[:words])
    model, port = random_llama(), SimpleNamespace(live_aggregation=PlainPort().live_aggregation)
    of_pair = dataclasses.replace(pair(1), prompt=prompt)
    results = check_live(model, [of_pair], port, m=1, oracle=False)
    assert [r.status for r in results if r.check == "aggregation"] == ["passed"]


def test_where_noise_hides_everything_nothing_is_called_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live.judging, "HOPELESS", 1e-9)
    results = check_live(random_llama(), [pair(7)], PlainPort("last_layer"), m=1)
    status = {result.check: result.status for result in results}
    assert status["objective"] == status["attribution"] == "undecidable"
    assert status["steer"] == "failed"  # further off than even that
    assert status["empty sets shift nothing"] == "passed"  # no noise is allowed there


def test_a_port_loads_the_path_itself(tmp_path: Path) -> None:
    loaded: list[Any] = []
    port = reference_port()
    model = random_llama()
    port.LOAD = lambda path: loaded.append(path) or model
    assert not not_passed(check_live(model, [pair(4)], port, path=tmp_path, m=1))
    assert loaded == [tmp_path]


@pytest.mark.thorough
def test_results_repeat_themselves() -> None:
    model = random_llama()
    one, two = (check_live(model, [pair(5)], PlainPort("last_layer"), seeds=[3], m=1) for _ in range(2))
    assert [dataclasses.replace(r, error=0.0) for r in one] == [dataclasses.replace(r, error=0.0) for r in two]


# ----------------------------------------------------------------------------------------- fingerprints
def test_a_fingerprint_is_what_its_formula_says() -> None:
    x = np.random.default_rng(0).normal(size=(3, 7))

    def sign(i: int, j: int) -> int:
        z = 2 * i + j // 32
        z ^= z >> 16
        z = z * 2146121005 % 2**32
        z ^= z >> 15
        z = z * 2221713035 % 2**32
        z ^= z >> 16
        return -1 if z >> (j % 32) & 1 else 1

    got = fingerprint(x)
    expected = [sum(sign(i, j) * value for i, value in enumerate(x.ravel())) for j in range(64)]
    np.testing.assert_allclose(got["sketch"], expected, rtol=1e-12, atol=1e-12)
    assert got["shape"] == [3, 7]
    assert got["norm"] == pytest.approx(np.linalg.norm(x))
    assert got["mean"] == pytest.approx(x.mean())
    assert fingerprint(torch.from_numpy(x)) == got


def test_fingerprints_measure_distances() -> None:
    draw = np.random.default_rng(1)
    ratios = []
    for _ in range(40):
        x, y = draw.normal(size=(2, 4000))
        apart = np.subtract(fingerprint(x)["sketch"], fingerprint(y)["sketch"])
        ratios.append(np.sqrt((apart**2).mean()) / np.linalg.norm(x - y))
    assert np.mean(ratios) == pytest.approx(1, abs=0.05)
    assert 0.05 < np.std(ratios) < 0.13


@pytest.mark.thorough
def test_fingerprints_stand_in_for_arrays() -> None:
    def only_large(wrong: str, *, rows: bool) -> Any:
        port = with_fingerprints(PlainPort(wrong), rows=rows)
        return SimpleNamespace(live_contrast=port.live_contrast, live_steer=port.live_steer)

    for rows in (True, False):
        results = check_live(random_llama(), [pair(6)], only_large("", rows=rows), m=1)
        assert {r.status for r in results} == {"passed", "skipped"}
        assert sum(r.status == "passed" for r in results) == 6
        wrong = "normed" if rows else "last_layer"
        assert failing(check_live(random_llama(), [pair(6)], only_large(wrong, rows=rows), m=1)) == BROKEN[wrong]


def test_every_function_is_in_the_contract() -> None:
    assert live.__doc__
    assert all(f"| {name}(handle, " in live.__doc__ for name in FUNCTIONS)
