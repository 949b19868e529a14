"""methods/any_site.py: what is read where, the estimators, one unit of strength, and the edit at every place."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from grains_ref.data import PreferencePair
from grains_ref.grains import DegenerateShiftsError, HyperParameters, Selection, Steering, contrast, vectors
from grains_ref.grains import Shift as GrainsShift
from grains_ref.methods import caa, edit_gradient, repe
from grains_ref.methods.any_site import (
    SiteVectors,
    as_estimator,
    at_places,
    direction,
    grains_direction,
    read_answers,
    scaled_to_state,
    shifts_at,
)
from grains_ref.methods.core import capture
from grains_ref.models import HuggingFaceModel

pytestmark = pytest.mark.cpu

SITES: Any = ("residual", "attention_output", "heads", "mlp")


def pair(prompt: str, chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(prompt, prompt, chosen, rejected, where="made up")


PAIRS = [
    pair("Q: What is the capital of France? A:", "Paris.", "Rome, of course."),
    pair("Is the earth flat?", "No, it is round.", "Yes"),
    pair("The moon is made of", "rock", "green cheese"),
]


@pytest.fixture(scope="module")
def reading(llama: HuggingFaceModel) -> Any:
    return read_answers(llama, [llama.example(p.prompt, p.chosen, p.rejected) for p in PAIRS], sites=SITES)


def test_all_sites_are_read_at_once_at_the_answers_last_token(llama: HuggingFaceModel, reading: Any) -> None:
    for site in SITES:
        chosen = capture(llama, [(p.prompt, p.chosen) for p in PAIRS], site=site)[:, :, 0]
        rejected = capture(llama, [(p.prompt, p.rejected) for p in PAIRS], site=site)[:, :, 0]
        torch.testing.assert_close(reading.differences[site], chosen - rejected, rtol=1e-5, atol=1e-5)


def test_lengths_are_means_over_the_edited_tokens(llama: HuggingFaceModel, reading: Any) -> None:
    by_positions: dict[str, list[float]] = {"all": [], "after_prompt": []}
    for p in PAIRS:
        for answer in (p.chosen, p.rejected):
            n_answer = len(llama.response_ids(p.prompt, answer))
            n = len(llama.encode(p.prompt).ids) + n_answer
            norms = capture(llama, [(p.prompt, answer)], site="mlp", last=n)[0].norm(dim=-1)  # (L, n)
            by_positions["all"].append(norms.mean().item())
            by_positions["after_prompt"].append(norms[:, -n_answer - 1 :].mean().item())
    for positions, lengths in by_positions.items():
        assert reading.lengths["mlp", positions] == pytest.approx(sum(lengths) / len(lengths), rel=1e-5)
    assert reading.lengths["mlp", "all"] != pytest.approx(reading.lengths["mlp", "after_prompt"], rel=1e-3)


def test_at_the_residual_stream_the_estimators_are_the_methods_own(llama: HuggingFaceModel, reading: Any) -> None:
    differences = reading.differences["residual"]
    torch.testing.assert_close(direction("CAA", differences), caa.fit(llama, PAIRS).v, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(direction("RepE", differences), repe.fit(llama, PAIRS).p, rtol=1e-3, atol=1e-4)
    mean = differences.double().mean(0)
    rest = direction("ICV", differences) - mean  # mean + a component of unit length over all blocks together
    assert rest.norm().item() == pytest.approx(1, abs=1e-6)
    assert as_estimator("ICV") == "ICV"
    with pytest.raises(ValueError, match="estimator is 'VTI'; expected one of CAA, ICV, RepE"):
        as_estimator("VTI")


def test_a_difference_of_means_in_the_heads_is_that_of_the_attentions_output(
    llama: HuggingFaceModel, reading: Any
) -> None:
    """Why the heads are left out of the fair fight."""
    of_heads, of_output = (direction("CAA", reading.differences[site]) for site in ("heads", "attention_output"))
    for block, v_heads, v_output in zip(llama.blocks, of_heads, of_output, strict=True):
        projection = block.self_attn.o_proj.weight.double()
        torch.testing.assert_close(projection @ v_heads, v_output, rtol=1e-3, atol=1e-5)


def test_shifts_at_the_residual_stream_are_eq_4(llama: HuggingFaceModel) -> None:
    x = llama.encode(PAIRS[0].prompt)
    selection, baseline = Selection(pos=(2, 5), neg=(3,)), torch.zeros_like(x.embeds)
    found = shifts_at(llama, x, selection, baseline, sites=SITES)
    expected = contrast(llama, x, selection, baseline)
    for of_site, delta in zip(found["residual"], expected, strict=True):
        torch.testing.assert_close(of_site, delta, rtol=1e-4, atol=1e-5)
    assert found["heads"][0].shape == (len(llama.blocks), reading_width(llama))
    assert found["mlp"][1].any()


def reading_width(model: HuggingFaceModel) -> int:
    return int(model.blocks[0].self_attn.o_proj.in_features)


def test_grains_aggregates_shifts_of_any_site_as_eq_5_and_6_do() -> None:
    draws = torch.Generator().manual_seed(0)
    shifts = [(torch.randn(3, 5, generator=draws), torch.randn(3, 5, generator=draws)) for _ in range(6)]
    hp = HyperParameters()
    nothing = Selection((), ())
    expected = vectors([GrainsShift(torch.zeros(2), nothing, pos, neg) for pos, neg in shifts], hp).v
    assert torch.equal(grains_direction(shifts, hp), expected)


def test_strengths_are_shares_of_the_states_length() -> None:
    u = torch.tensor([[3.0, 4.0], [0.0, 0.0]]).double()
    v = scaled_to_state(u, 10.0)
    assert v.norm(dim=1).square().mean().sqrt().item() == pytest.approx(10)
    torch.testing.assert_close(v / v.norm(), u / u.norm())
    with pytest.raises(DegenerateShiftsError, match="nothing to steer along"):
        scaled_to_state(torch.zeros(2, 2), 1.0)


def test_a_site_without_a_direction_is_left_out_and_told() -> None:
    def refuse() -> torch.Tensor:
        raise DegenerateShiftsError("they cancel")

    lengths: Any = {("mlp", "all"): 2.0, ("mlp", "after_prompt"): 4.0, ("residual", "all"): 1.0}
    directions: Any = {"mlp": lambda: torch.ones(3, 2), "residual": refuse}
    made, missing = at_places("CAA", directions, lengths)
    assert [(of_place.label, of_place.site, of_place.positions) for of_place in made] == [
        ("CAA, mlp, all", "mlp", "all"),
        ("CAA, mlp, after_prompt", "mlp", "after_prompt"),
    ]
    assert made[1].v.norm().item() == pytest.approx(2 * made[0].v.norm().item())
    assert missing == {"residual": "they cancel"}


@pytest.mark.parametrize("site", SITES)
def test_the_edit_is_that_of_the_edit_gradient(llama: HuggingFaceModel, reading: Any, site: Any) -> None:
    v = scaled_to_state(direction("CAA", reading.differences[site]), 1.0)
    ours = SiteVectors("CAA", v, site, "all").setting(llama, lam=0.3)
    assert (ours.label, ours.strength) == ("CAA", 0.3)
    pairs = [(p.prompt, p.chosen) for p in PAIRS]
    with ours.steering():
        steered = [scored.log_prob for scored in llama.score(pairs)]
    with edit_gradient.steer(llama, v, site=site, positions="all", lam=0.3):
        assert [scored.log_prob for scored in llama.score(pairs)] == steered
    if site == "residual":
        with Steering(llama.blocks, v, lam=0.3):
            assert [scored.log_prob for scored in llama.score(pairs)] == pytest.approx(steered, abs=1e-4)
    assert [scored.log_prob for scored in llama.score(pairs)] != steered
