"""fitting/signal.py: the figures by hand, what is said of them, and that a fit measures them of its own edit."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from grains_ref.data import PreferencePair
from grains_ref.evaluation.measures import margins
from grains_ref.fitting import Additions, FitRecord, checked_examples, resumable_fit
from grains_ref.fitting import edit_gradient as kept
from grains_ref.fitting.additions import added_to
from grains_ref.fitting.edit_gradient import EditGradientRecord, resumable_edit_gradient
from grains_ref.fitting.halves import HALVINGS, Estimate, agreement_of_halves, cosine_of
from grains_ref.fitting.random_tokens import random_selection, random_shift
from grains_ref.fitting.signal import (
    MOST_PAIRS,
    Signal,
    edit_gradient_signal,
    grains_signal,
    mean_with_interval,
    pairs_to_ask,
    signal_of,
    slopes_of_pairs,
    with_signal,
)
from grains_ref.fitting.work_folder import WorkFolderError, open_work_folder
from grains_ref.grains import DegenerateShiftsError, HyperParameters, Steering, vectors
from grains_ref.methods.edit_gradient import Derivative
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.random_models import random_llama
from grains_ref.vectors import SteeringVectors, VectorError

pytestmark = pytest.mark.cpu

MEAN = HyperParameters(m=1, aggregation="mean")


def pair(prompt: str, chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(prompt, prompt, chosen, rejected, where="made up")


PAIRS = [
    pair("Q: What is the capital of France? A:", "Paris.", "Rome, of course."),
    pair("Is the earth flat?", "No, it is round.", "Yes"),
    pair("The moon is made of", "rock", "green cheese"),
    pair("Tell me what people say about", "the weather", "you"),
    pair("Water boils at", "a hundred degrees", "ten"),
]


def nothing(n: int) -> None:
    pass


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def grains_fit(model: HuggingFaceModel, folder: Path, **options: Any) -> tuple[FitRecord, Signal]:
    pairs, examples, _ = checked_examples(model, PAIRS, skip_bad_rows=False)
    with open_work_folder(folder) as work:
        record = resumable_fit(model, pairs, examples, MEAN, work=work, on_example=nothing)
        signal = grains_signal(model, examples, record, MEAN, work=work, on_pair=nothing, **options)
    return record, signal


def edit_fit(model: HuggingFaceModel, folder: Path, **where: Any) -> EditGradientRecord:
    pairs, examples, _ = checked_examples(model, PAIRS, skip_bad_rows=False)
    with open_work_folder(folder) as work:
        return resumable_edit_gradient(model, pairs, examples, **where, work=work, on_example=nothing)


# --- the figures


def test_slopes_are_inner_products_block_by_block() -> None:
    g, v = draws(4, 3, 5), draws(3, 5, seed=1)
    by_hand = [[float(g[i, layer] @ v[layer]) for layer in range(3)] for i in range(4)]
    torch.testing.assert_close(slopes_of_pairs(g, v, is_gradient=False), torch.tensor(by_hand).double())


def test_a_gradients_slope_is_taken_along_the_mean_of_the_other_pairs() -> None:
    """Of pure noise, too, every pair rises along its own share of v; along the others' it does not."""
    g = draws(5, 2, 3)
    v = 7 * g.mean(0)
    for i, of_pair in enumerate(slopes_of_pairs(g, v, is_gradient=True)):
        others = g[[j for j in range(5) if j != i]].mean(0)
        torch.testing.assert_close(of_pair, 7 * (others * g[i]).sum(1))
    noise = draws(400, 2, 50)
    alone = slopes_of_pairs(noise, noise.mean(0), is_gradient=False).sum(1)
    apart = slopes_of_pairs(noise, noise.mean(0), is_gradient=True).sum(1)
    assert mean_with_interval(alone).low > 0
    assert mean_with_interval(apart).low < 0 < mean_with_interval(apart).high


def test_the_interval_is_of_the_mean() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 6.0]).double()
    error = 1.96 * statistics.stdev(values.tolist()) / 2
    assert dataclasses.astuple(mean_with_interval(values)) == pytest.approx((3, 3 - error, 3 + error))


def test_cosines_lengths_and_chance_by_hand() -> None:
    v_pos, v_neg = draws(3, 4), draws(3, 4, seed=1)
    found = [Derivative(draws(3, 4, seed=i), draws(3, 4, seed=i + 9), torch.full((3,), float(i))) for i in (2, 4)]
    signal = signal_of(v_pos, v_neg, found, halves=None, halves_of_layers=None, template=None)
    g, v = (found[0].g + found[1].g) / 2, v_pos - v_neg
    assert signal.cosine == pytest.approx(float((g * v).sum() / (g.norm() * v.norm())))
    expected = [float(a @ b / (a.norm() * b.norm())) for a, b in zip(g, v, strict=True)]
    assert signal.layers["cosine"] == pytest.approx(expected)
    assert signal.sides == pytest.approx(float((v_pos * v_neg).sum() / (v_pos.norm() * v_neg.norm())))
    assert signal.layers["length"] == pytest.approx((v.norm(dim=1) / 3).tolist())
    assert signal.length == pytest.approx(float((v.norm(dim=1) / 3).square().mean().sqrt()))
    assert signal.chance == pytest.approx(1.96 / 12**0.5)
    assert signal.slope is not None
    assert signal.slope.value == pytest.approx(float((g * v).sum())) == sum(signal.layers["slope"])


def test_random_vectors_stay_below_chance() -> None:
    g = draws(6, 50)
    cosines = [abs(cosine_of(g, draws(6, 50, seed=seed))) for seed in range(1, 201)]
    share = sum(cosine < 1.96 / 300**0.5 for cosine in cosines) / 200
    assert 0.9 < share < 0.99


def test_halves_of_one_cause_agree_and_halves_of_noise_do_not() -> None:
    cause, noise = draws(2, 30), draws(20, 2, 30, seed=1)
    agree, layers = agreement_of_halves(20, lambda ids: (cause + 0.1 * noise[list(ids)]).mean(0))
    assert agree is not None
    assert layers is not None
    assert 0.95 < agree.low <= agree.value <= agree.high
    assert all(cosine > 0.95 for cosine in layers)
    disagree, _ = agreement_of_halves(20, lambda ids: noise[list(ids)].mean(0))
    assert disagree is not None
    assert disagree.low < 0.2
    assert abs(disagree.value) < 0.2


def test_halves_are_disjoint_complete_and_the_same_every_time() -> None:
    asked: list[list[int]] = []

    def fit(pairs: Sequence[int]) -> Tensor:
        asked.append(list(pairs))
        return torch.ones(1, 2)

    first = agreement_of_halves(7, fit)
    assert first == agreement_of_halves(7, fit)
    assert asked[: 2 * HALVINGS] == asked[2 * HALVINGS :]
    for a, b in zip(asked[::2], asked[1::2], strict=True):
        assert (len(a), len(b), sorted(a + b)) == (3, 4, list(range(7)))
    assert len({tuple(half) for half in asked}) > HALVINGS


def test_too_few_pairs_or_a_half_without_direction_give_no_halves() -> None:
    def refuse(pairs: Sequence[int]) -> Tensor:
        raise DegenerateShiftsError("all equal")

    assert agreement_of_halves(3, lambda ids: torch.ones(1, 2)) == (None, None)
    assert agreement_of_halves(8, refuse) == (None, None)


def test_the_passes_are_bounded_and_the_draw_is_seeded() -> None:
    assert pairs_to_ask(5) == [0, 1, 2, 3, 4]
    asked = pairs_to_ask(1000)
    assert len(set(asked)) == MOST_PAIRS
    assert asked == sorted(asked) == pairs_to_ask(1000)
    assert max(asked) > 500


# --- what is said


def signal(**changes: Any) -> Signal:
    plain: dict[str, Any] = {
        "n": 50, "slope": Estimate(0.4, 0.3, 0.5), "cosine": 0.3, "chance": 0.05, "halves": Estimate(0.8, 0.7, 0.9),
        "sides": 0.1, "template": 0.2, "length": 0.1, "layers": {"slope": (0.1, 0.3)},
    }  # fmt: skip
    return Signal(**plain | changes)


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({}, "toward", "toward the chosen answers"),
        ({"cosine": None}, "toward", "toward the chosen answers"),
        ({"cosine": 0.04}, "none", "none found"),
        ({"slope": Estimate(0.4, -0.1, 0.9)}, "none", "none found"),
        ({"slope": Estimate(-0.4, -0.9, 0.1)}, "none", "none found"),
        ({"slope": Estimate(-0.4, -0.5, -0.3), "cosine": -0.3}, "away", "the wrong way, toward the rejected answers"),
        ({"slope": None, "cosine": None}, "not measured", "not measured"),
    ],
)
def test_the_verdict_says_where_small_strengths_move_f(changes: dict[str, Any], verdict: str, words: str) -> None:
    assert signal(**changes).verdict == verdict
    assert signal(**changes).line().startswith(f"{words}.")
    assert signal(**changes).record()["figures"]["verdict"] == verdict


def test_the_line_has_the_figures() -> None:
    assert signal().line() == (
        "toward the chosen answers. f begins to change by +0.4 [+0.3, +0.5] nats per lam; cosine with the "
        "edit's gradient 0.30 (random: below 0.050); halves of the pairs agree 0.80 [0.70, 0.90]."
    )
    assert "; with random tokens' vector 0.40; halves" in signal(random=0.4).line()
    assert signal(slope=None, cosine=None, halves=None).line() == "not measured."
    large = signal(slope=Estimate(1990.4, 999.6, 2330)).line()
    assert "by +1,990 [+1,000, +2,330] nats" in large


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"slope": Estimate(0, -1, 1)}, ["steering with noise"]),
        ({"slope": Estimate(-2, -3, -1)}, ["toward the rejected answers"]),
        ({"slope": None}, []),
        ({"halves": Estimate(0.08, -0.05, 0.2)}, ["halves of your pairs disagree: cosine 0.08 [-0.05, 0.20]"]),
        ({"halves": Estimate(0.3, 0.2, 0.4)}, []),
        ({"halves": None}, []),
        ({"sides": 0.95}, ["v_pos and v_neg are nearly the same, cosine 0.95"]),
        ({"sides": -0.95}, []),
        ({"random": 0.9}, ["v is nearly the vector of random tokens, cosine 0.90"]),
        ({"random": 0.4}, []),
        ({"random": -0.9}, []),
        ({"template": 0.62}, ["62 % of the selected tokens belong to the chat template"]),
        ({"template": None}, []),
    ],
)
def test_warnings_name_what_speaks_against_the_vectors(changes: dict[str, Any], words: list[str]) -> None:
    found = signal(**changes).warnings()
    assert len(found) == len(words)
    for warning, expected in zip(found, words, strict=True):
        assert expected in warning


# --- of a fit


def test_the_slope_of_a_fit_is_how_f_begins_to_change(tmp_path: Path) -> None:
    llama = random_llama(dtype=torch.float64)
    record, measured = grains_fit(llama, tmp_path / "w")
    ends = []
    for lam in (1e-3, -1e-3):
        with Steering(llama.blocks, record.vectors.v, lam=lam):
            ends.append(statistics.mean(margins(llama, PAIRS)))
    assert measured.slope is not None
    assert abs(measured.slope.value) > 1e-3
    assert measured.slope.value == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=5e-3)
    assert measured.n == 5
    assert measured.halves is not None
    kinds = [
        llama.example(p.prompt, p.chosen, p.rejected).encoded.kinds[j]
        for p, shift in zip(PAIRS, record.shifts, strict=True)
        for j in (*shift.selection.pos, *shift.selection.neg)
    ]
    assert 0 < kinds.count("special") < len(kinds)
    assert measured.template == kinds.count("special") / len(kinds)


def test_the_cosine_with_random_tokens_is_of_vectors_that_are_fitted_alike(
    llama: HuggingFaceModel, tmp_path: Path
) -> None:
    record, measured = grains_fit(llama, tmp_path / "w")
    examples = [llama.example(p.prompt, p.chosen, p.rejected) for p in PAIRS]
    drawn = [
        random_shift(llama, example, shift, MEAN, draw=0)
        for example, shift in zip(examples, record.shifts, strict=True)
    ]
    assert measured.random == cosine_of(vectors(drawn, MEAN).v, record.fit.v)
    assert measured.record()["figures"]["random"] == measured.random
    for example, shift, of_draw in zip(examples, record.shifts, drawn, strict=True):
        assert of_draw.selection == random_selection(example, shift.selection, MEAN, draw=0)
    assert any(
        {*of_draw.selection.pos} != {*shift.selection.pos} for of_draw, shift in zip(drawn, record.shifts, strict=True)
    )


@pytest.mark.parametrize("additions", [Additions(only_side="pos"), Additions(agreeing_layers=0.0)])
def test_halves_and_random_tokens_are_fitted_with_the_same_additions(
    llama: HuggingFaceModel, tmp_path: Path, additions: Additions
) -> None:
    pairs, examples, _ = checked_examples(llama, PAIRS, skip_bad_rows=False)
    with open_work_folder(tmp_path / "w") as work:
        record = resumable_fit(llama, pairs, examples, MEAN, work=work, on_example=nothing, additions=additions)
        measured = grains_signal(llama, examples, record, MEAN, work=work, on_pair=nothing)
    drawn = [random_shift(llama, x, shift, MEAN, draw=0) for x, shift in zip(examples, record.shifts, strict=True)]
    v_random = added_to(vectors(drawn, MEAN), Additions(only_side=additions.only_side), []).v
    steered = record.fit.v.any(1)
    assert measured.random == pytest.approx(cosine_of(v_random[steered], record.fit.v[steered]))
    assert measured.halves is not None
    for layer, is_steered in enumerate(steered.tolist()):
        assert (measured.layers["halves"][layer] == 0) == (not is_steered)


def test_without_the_passes_the_rest_is_measured(llama: HuggingFaceModel, tmp_path: Path) -> None:
    _, whole = grains_fit(llama, tmp_path / "w")
    _, without = grains_fit(llama, tmp_path / "w", with_gradient=False)
    assert without.verdict == "not measured"
    assert (without.n, without.slope, without.cosine, without.length, without.random) == (0, None, None, None, None)
    assert (without.halves, without.sides, without.template) == (whole.halves, whole.sides, whole.template)


def test_derivatives_are_computed_once(
    llama: HuggingFaceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object, **more: object) -> None:
        raise AssertionError("computed again")

    where: dict[str, Any] = {"site": "mlp", "positions": "all"}
    _, first = grains_fit(llama, tmp_path / "g")
    edit = edit_fit(llama, tmp_path / "e", **where)
    monkeypatch.setattr(kept, "derivative", refuse)
    assert grains_fit(llama, tmp_path / "g")[1] == first
    again = edit_fit(llama, tmp_path / "e", **where)
    assert (edit.resumed, again.resumed) == (0, 5)
    assert torch.equal(again.vectors.v, edit.vectors.v)
    with pytest.raises(WorkFolderError, match="holds a fit with other hyper_parameters"):
        edit_fit(llama, tmp_path / "e", site="heads", positions="all")
    with pytest.raises(WorkFolderError, match="holds a fit with other engine, hyper_parameters"):
        edit_fit(llama, tmp_path / "g", **where)


def test_an_edit_gradients_signal_costs_nothing_and_flatters_nobody(llama: HuggingFaceModel, tmp_path: Path) -> None:
    record = edit_fit(llama, tmp_path / "e", site="attention_output", positions="after_prompt")
    measured = edit_gradient_signal(record)
    assert (measured.cosine, measured.template, measured.n) == (None, None, 5)
    assert measured.slope is not None
    assert measured.slope.value < record.fit.slope
    assert measured.length == pytest.approx(1, rel=0.5)


def test_the_header_keeps_it(llama: HuggingFaceModel, tmp_path: Path) -> None:
    record, measured = grains_fit(llama, tmp_path / "w")
    with_signal(record.vectors, measured).save(tmp_path / "v")
    loaded = SteeringVectors.load(tmp_path / "v")
    assert loaded.header.signal == measured.record() == json.loads(json.dumps(measured.record()))
    assert dict(loaded.summary())["signal"] == measured.line()
    assert dict(record.vectors.summary())["signal"] == "not measured"
    assert (loaded + loaded).header.signal == {}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"figures": {}}, "must be empty or have a 'line'"),
        ({"line": "x", "layers": {"slope": [1.0]}}, "'slope' of 'signal' must be a list of 3 numbers"),
        ({"line": "x", "layers": [1.0]}, "figures of 'signal' must be an object, found list"),
    ],
)
def test_a_signal_of_another_form_is_refused(
    llama: HuggingFaceModel, tmp_path: Path, wrong: dict[str, Any], words: str
) -> None:
    record, _ = grains_fit(llama, tmp_path / "w", with_gradient=False)
    with pytest.raises(VectorError, match=words):
        dataclasses.replace(record.vectors, header=dataclasses.replace(record.vectors.header, signal=wrong))
