"""fitting/additions.py and random_tokens.py: shifts less those of random tokens, and layers whose halves agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from grains_ref.data import PreferencePair
from grains_ref.fitting import Additions, FitRecord, checked_examples, random_tokens, resumable_fit
from grains_ref.fitting.additions import layer_agreement, less_random, only_agreeing_layers, with_only_side
from grains_ref.fitting.random_tokens import random_selection, random_shift
from grains_ref.fitting.work_folder import open_work_folder
from grains_ref.grains import (
    DegenerateShiftsError,
    Example,
    HyperParameters,
    Selection,
    Shift,
    contrast,
    vectors,
)
from grains_ref.models import HuggingFaceModel
from grains_ref.vectors import SteeringVectors

pytestmark = pytest.mark.cpu

MEAN = HyperParameters(m=1, k=2, aggregation="mean")


def pair(prompt: str, chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(prompt, prompt, chosen, rejected, where="made up")


PAIRS = [
    pair("Q: What is the capital of France? A:", "Paris.", "Rome, of course."),
    pair("Is the earth flat, as some say?", "No, it is round.", "Yes"),
    pair("The moon is made of what, again?", "rock", "green cheese"),
    pair("Tell me what people say about", "the weather", "you"),
    pair("Water boils at how many degrees", "a hundred degrees", "ten"),
]


def nothing(n: int) -> None:
    pass


def fitted(model: HuggingFaceModel, folder: Path, additions: Additions, hp: HyperParameters = MEAN) -> FitRecord:
    pairs, examples, _ = checked_examples(model, PAIRS, skip_bad_rows=False)
    with open_work_folder(folder) as work:
        return resumable_fit(model, pairs, examples, hp, work=work, on_example=nothing, additions=additions)


@pytest.fixture
def examples(llama: HuggingFaceModel) -> list[Example]:
    return checked_examples(llama, PAIRS, skip_bad_rows=False)[1]


# --- random tokens


def test_as_many_random_tokens_are_drawn_as_were_selected_each_once_and_of_the_eligible(
    examples: list[Example],
) -> None:
    selection = Selection(pos=(3, 1), neg=(2,))
    hp = HyperParameters(eligible=("content", "not_last"))
    seen: set[int] = set()
    for draw in range(30):
        drawn = random_selection(examples[0], selection, hp, draw=draw)
        assert (len(drawn.pos), len(drawn.neg)) == (2, 1)
        assert len({*drawn.pos, *drawn.neg}) == 3
        seen |= {*drawn.pos, *drawn.neg}
    kinds = examples[0].encoded.kinds
    assert kinds[0] == "special"
    assert seen == {j for j, kind in enumerate(kinds[:-1]) if kind == "text"}


def test_a_draw_belongs_to_the_example_and_not_to_the_order(examples: list[Example]) -> None:
    selection = Selection(pos=(3, 1), neg=(2,))
    first = [random_selection(example, selection, MEAN, draw=0) for example in examples]
    assert first == [random_selection(example, selection, MEAN, draw=0) for example in examples]
    assert first != [random_selection(example, selection, MEAN, draw=1) for example in examples]


# --- shifts less those of random tokens


def test_the_mean_shift_of_the_draws_is_subtracted(llama: HuggingFaceModel, examples: list[Example]) -> None:
    selection = Selection(pos=(2,), neg=(3, 1))
    x = examples[0].encoded
    baseline = llama.baseline(x, "zero")
    delta_pos, delta_neg = contrast(llama, x, selection, baseline)
    shift = Shift(torch.zeros(len(x.ids)), selection, delta_pos, delta_neg)
    drawn = [random_selection(examples[0], selection, MEAN, draw=draw) for draw in range(2)]
    of_draws = [contrast(llama, x, tokens, baseline) for tokens in drawn]
    (corrected,) = less_random(llama, examples[:1], [shift], MEAN, draws=2)
    torch.testing.assert_close(corrected.delta_pos, delta_pos - (of_draws[0][0] + of_draws[1][0]) / 2)
    torch.testing.assert_close(corrected.delta_neg, delta_neg - (of_draws[0][1] + of_draws[1][1]) / 2)
    assert corrected.selection == selection


def test_an_empty_set_keeps_no_shift(llama: HuggingFaceModel, examples: list[Example]) -> None:
    zero = torch.zeros(len(llama.blocks), llama.width)
    shift = Shift(torch.zeros(len(examples[0].encoded.ids)), Selection((), (1,)), zero, zero + 1)
    (corrected,) = less_random(llama, examples[:1], [shift], MEAN, draws=1)
    assert not corrected.delta_pos.any()
    assert not torch.equal(corrected.delta_neg, shift.delta_neg)


def test_a_fit_less_random_tokens_is_the_fit_of_the_corrected_shifts_and_says_so(
    llama: HuggingFaceModel, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = fitted(llama, tmp_path / "w", Additions())
    corrected = less_random(llama, examples, plain.shifts, MEAN, draws=2)
    record = fitted(llama, tmp_path / "w", Additions(less_random=2))
    torch.testing.assert_close(record.vectors.v, vectors(corrected, MEAN).v.float())
    assert not torch.allclose(record.vectors.v, plain.vectors.v, atol=1e-3)
    record.vectors.save(tmp_path / "v")
    assert SteeringVectors.load(tmp_path / "v").header.hyper_parameters == MEAN.as_dict() | {"less_random": 2}
    assert plain.vectors.header.hyper_parameters == MEAN.as_dict()

    monkeypatch.setattr(random_tokens, "contrast", None)  # what is kept is not computed again
    assert torch.equal(fitted(llama, tmp_path / "w", Additions(less_random=2)).vectors.v, record.vectors.v)


def test_kept_random_shifts_are_those_of_the_same_tokens_and_mask(
    llama: HuggingFaceModel, examples: list[Example], tmp_path: Path
) -> None:
    zero = torch.zeros(len(llama.blocks), llama.width)
    with open_work_folder(tmp_path / "w") as work:
        work.claim({}, names=())
        found = []
        for mask in ("zero", "mean"):
            hp = HyperParameters(mask_baseline=mask)
            for selection in (Selection((1,), (2,)), Selection((1, 3), ())):
                shift = Shift(torch.zeros(len(examples[0].encoded.ids)), selection, zero, zero)
                for kept in (None, work, work):
                    found.append(random_shift(llama, examples[0], shift, hp, draw=0, work=kept))
    for plain, first, again in (found[i : i + 3] for i in range(0, len(found), 3)):
        assert torch.equal(plain.delta_pos, first.delta_pos)
        assert torch.equal(plain.delta_pos, again.delta_pos)
        assert torch.equal(plain.delta_neg, again.delta_neg)
    assert len({float(of_draw.delta_pos.norm()) for of_draw in found}) == 4


# --- layers whose halves agree


def shifts_with_one_signal_layer(n: int = 12) -> list[Shift]:
    """Layer 1 of three has a shift that all examples share; the others are noise."""
    draws = torch.Generator().manual_seed(0)
    made = []
    for _ in range(n):
        noise = torch.randn(2, 3, 40, generator=draws)
        noise[0, 1] += 4.0
        noise[1, 1] -= 4.0
        made.append(Shift(torch.zeros(4), Selection((0,), (1,)), noise[0], noise[1]))
    return made


def test_only_the_layers_whose_halves_agree_keep_their_vectors() -> None:
    shifts = shifts_with_one_signal_layer()
    agreement = layer_agreement(shifts, MEAN)
    assert agreement[1] > 0.9
    assert max(agreement[0], agreement[2]) < 0.5
    whole = vectors(shifts, MEAN)
    kept = only_agreeing_layers(whole, agreement, least=0.5)
    assert torch.equal(kept.v[1], whole.v[1])
    assert not kept.v[[0, 2]].any()
    assert not kept.pos.v[[0, 2]].any()
    assert torch.equal(kept.v, kept.pos.v - kept.neg.v)
    everything = only_agreeing_layers(whole, agreement, least=-1.0)
    assert torch.equal(everything.v, whole.v)


def test_where_no_layer_agrees_nothing_is_made() -> None:
    shifts = shifts_with_one_signal_layer()
    with pytest.raises(DegenerateShiftsError, match=r"in no layer do the halves agree by a cosine of 1; the highest"):
        only_agreeing_layers(vectors(shifts, MEAN), layer_agreement(shifts, MEAN), least=1.0)
    with pytest.raises(ValueError, match="cannot be asked of 3 examples: at least four"):
        layer_agreement(shifts[:3], MEAN)


def test_a_fit_of_agreeing_layers_says_how_far_they_agree(llama: HuggingFaceModel, tmp_path: Path) -> None:
    plain = fitted(llama, tmp_path / "w", Additions())
    agreement = layer_agreement(plain.shifts, MEAN)
    least = sorted(agreement)[-2] + 1e-9  # the best layer alone
    record = fitted(llama, tmp_path / "w", Additions(agreeing_layers=least))
    best = agreement.index(max(agreement))
    assert record.vectors.v.any(1).nonzero().flatten().tolist() == [best]
    assert torch.equal(record.vectors.v[best], plain.vectors.v[best])
    header = record.vectors.header
    assert header.diagnostics["halves"] == agreement
    assert header.hyper_parameters["agreeing_layers"] == least


# --- one side


def test_one_side_alone_is_v_pos_or_minus_v_neg(llama: HuggingFaceModel, tmp_path: Path) -> None:
    plain = fitted(llama, tmp_path / "w", Additions()).vectors
    pos = fitted(llama, tmp_path / "w", Additions(only_side="pos")).vectors
    neg = fitted(llama, tmp_path / "w", Additions(only_side="neg")).vectors
    assert torch.equal(pos.v, plain.v_pos)
    assert torch.equal(neg.v, -plain.v_neg)
    assert not pos.v_neg.any()
    assert not neg.v_pos.any()
    assert pos.header.hyper_parameters["only_side"] == "pos"


def test_what_is_left_of_equation_6_is_v_pos_or_minus_v_neg() -> None:
    fit = vectors(shifts_with_one_signal_layer(), MEAN)
    assert torch.equal(with_only_side(fit, "pos").v, fit.pos.v)
    assert torch.equal(with_only_side(fit, "neg").v, -fit.neg.v)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"less_random": -1}, "less_random is -1"),
        ({"less_random": 1.5}, "less_random is 1.5"),
        ({"agreeing_layers": 2.0}, "agreeing_layers is 2.0"),
        ({"agreeing_layers": float("nan")}, "agreeing_layers is nan"),
        ({"only_side": "both"}, "only_side is 'both'; expected pos, neg"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Additions(**wrong)


def test_nothing_is_added_unless_asked_for(llama: HuggingFaceModel, tmp_path: Path) -> None:
    assert Additions().record() == {}
    v: Tensor = fitted(llama, tmp_path / "a", Additions()).vectors.v
    assert torch.equal(v, fitted(llama, tmp_path / "b", Additions(agreeing_layers=-1.0)).vectors.v)
