"""methods/repe.py: a planted direction found, the operators by hand, and the `repeng` package."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from shared import first_quick
from torch import Tensor

from grains_ref.data import PreferencePair
from grains_ref.evaluation.measures import margins
from grains_ref.grains import DegenerateShiftsError
from grains_ref.methods import repe
from grains_ref.methods.core import Edit, answer_differences, first_component
from grains_ref.methods.repe import STRENGTHS, RepE, fit, middle
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.random_models import random_llama

pytestmark = pytest.mark.cpu


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def model(request: pytest.FixtureRequest) -> HuggingFaceModel:
    """Models with grouped queries whose heads do not fill the width; Gemma's normalise twice per sub-layer."""
    fixture: HuggingFaceModel = request.getfixturevalue(request.param)
    return fixture


PAIRS = [
    PreferencePair(prompt, prompt, chosen, rejected, where="made up")
    for prompt, chosen, rejected in (
        ("Q: What is the capital of France? A:", "Paris.", "Rome, of course!"),
        ("Is the earth flat?", "No, it is round", "Yes"),
        ("The moon is made of", "rock", "green cheese"),
        ("Tell me what people say about", "the weather", "you"),
        ("Q: What is the capital of Spain? A:", "Madrid", "It is Rome"),
    )
]
SWAPPED = torch.rand(5, generator=torch.Generator().manual_seed(0)) < 0.5  # the order that seed 0 draws


# --- the directions


def planted(monkeypatch: pytest.MonkeyPatch, differences: Tensor) -> None:
    monkeypatch.setattr(repe, "answer_differences", lambda model, pairs: differences)


def test_random_order_finds_the_shift_that_centring_would_take_away(
    llama: HuggingFaceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = torch.Generator().manual_seed(3)
    shift, axis = torch.eye(28)[:2]
    rows = 3 * shift + 2 * torch.randn(50, 1, generator=draw) * axis + 0.1 * torch.randn(50, 28, generator=draw)
    planted(monkeypatch, torch.stack([rows, -rows], dim=1))  # in the second block the chosen answer lies lower
    pairs = PAIRS * 10
    for seed in range(3):
        got = fit(llama, pairs, seed=seed)
        assert got.p[0] @ shift.double() > 0.9
        assert got.p[1] @ shift.double() < -0.9
        assert got.agreement == (1.0, 1.0)
    assert abs(first_component(rows, centred=True, sign="mean")[0] @ shift.double()) < 0.2


def test_the_sign_is_that_of_most_pairs_and_not_of_the_largest(
    llama: HuggingFaceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = torch.zeros(5, 1, 28)
    rows[:, 0, 4] = torch.tensor([1.0, 1.0, 1.0, -9.0, -9.0])
    rows[:, 0, 5] = torch.tensor([0.1, -0.1, 0.2, 0.0, 0.1])
    planted(monkeypatch, rows)
    got = fit(llama, PAIRS)
    assert got.p[0, 4] > 0.9
    assert got.agreement == (0.6,)
    planted(monkeypatch, -rows)
    assert fit(llama, PAIRS).p[0, 4] < -0.9


def test_by_hand_with_the_order_that_was_drawn(model: HuggingFaceModel) -> None:
    assert 0 < SWAPPED.sum() < 5
    rows = answer_differences(model, PAIRS).double().numpy()
    got = fit(model, PAIRS)
    assert got.p.shape == (len(model.blocks), model.width)
    for block, p in enumerate(got.p.numpy()):
        ordered = np.where(SWAPPED.numpy(), -1, 1)[:, None] * rows[:, block]
        expected = np.linalg.svd(ordered - ordered.mean(0), full_matrices=False)[2][0]
        votes = np.sign(rows[:, block] @ expected).sum()
        np.testing.assert_allclose(p, expected * np.sign(votes), atol=1e-6)
        assert got.agreement[block] == pytest.approx((5 + abs(votes)) / 10)


def test_the_order_is_the_seeds(llama: HuggingFaceModel) -> None:
    assert torch.equal(fit(llama, PAIRS, seed=1).p, fit(llama, PAIRS, seed=1).p)
    assert not torch.allclose(fit(llama, PAIRS, seed=1).p, fit(llama, PAIRS).p, atol=1e-2)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    fit(llama, PAIRS)
    assert torch.equal(torch.get_rng_state(), before)


def test_exchanged_answers_negate_it_and_equal_ones_are_refused(llama: HuggingFaceModel) -> None:
    exchanged = [dataclasses.replace(one, chosen=one.rejected, rejected=one.chosen) for one in PAIRS]
    torch.testing.assert_close(fit(llama, exchanged).p, -fit(llama, PAIRS).p)
    with pytest.raises(DegenerateShiftsError, match="block 0: the 5 differences are all zero"):
        fit(llama, [dataclasses.replace(one, rejected=one.chosen) for one in PAIRS])
    with pytest.raises(ValueError, match="at least 3"):
        fit(llama, PAIRS[:2])


# --- the operators


@pytest.mark.parametrize("operator", ["plain", "by_projection"])
@pytest.mark.parametrize("restore_norm", [True, False])
def test_every_token_by_hand(operator: Any, restore_norm: bool) -> None:
    draw = torch.Generator().manual_seed(1)
    h = torch.randn(2, 3, 7, generator=draw, dtype=torch.float64)
    p = torch.nn.functional.normalize(torch.randn(2, 7, generator=draw, dtype=torch.float64), dim=1)
    got = repe._push(p, 1, c=-1.3, operator=operator, restore_norm=restore_norm)(h)
    signs = set()
    for token, moved in zip(h.reshape(-1, 7), got.reshape(-1, 7), strict=True):
        sign = 1.0 if operator == "plain" else float(torch.sign(token @ p[1]))
        expected = token - 1.3 * sign * p[1]
        if restore_norm:
            expected = expected / expected.norm() * token.norm()
        torch.testing.assert_close(moved, expected)
        signs.add(sign)
    assert signs == ({1.0} if operator == "plain" else {1.0, -1.0})


def test_the_residual_stream_of_the_blocks_named_is_moved_everywhere(model: HuggingFaceModel) -> None:
    fitted = fit(model, PAIRS)
    blocks = [0, len(model.blocks) - 1]
    plain = margins(model, PAIRS)
    with fitted.steering(model, c=2.0, blocks=blocks):
        got = margins(model, PAIRS)
    pushes = {b: (lambda h, b=b: h + 2 * fitted.p[b].float()) for b in blocks}
    with Edit(model, "residual", pushes, positions="all"):
        assert margins(model, PAIRS) == pytest.approx(got, rel=1e-5, abs=1e-3)
    assert got != pytest.approx(plain, abs=1e-2)
    assert margins(model, PAIRS) == plain


@pytest.mark.parametrize("dtype", first_quick([torch.bfloat16, torch.float16]))
def test_narrow_types_run(dtype: torch.dtype) -> None:
    model = random_llama(dtype=dtype)
    fitted = fit(model, PAIRS)
    plain = margins(model, PAIRS)
    with fitted.steering(model, c=1.0, blocks=[1], operator="by_projection", restore_norm=True):
        assert margins(model, PAIRS) != plain
    assert margins(model, PAIRS) == plain


@pytest.mark.parametrize(
    ("n", "expected"), [(1, [0]), (2, [0]), (3, [1]), (4, [1, 2]), (32, range(14, 28)), (48, range(21, 42))]
)
def test_the_middle_blocks(n: int, expected: Any) -> None:
    assert list(middle(n)) == list(expected)


def test_the_grid(qwen2: HuggingFaceModel) -> None:
    fitted = fit(qwen2, PAIRS)
    labels = set()
    for operator in ("plain", "by_projection"):
        for restore_norm in (False, True):
            settings = fitted.settings(qwen2, operator=operator, restore_norm=restore_norm)  # type: ignore[arg-type]
            assert [s.strength for s in settings] == sorted(STRENGTHS)
            labels.add(settings[0].label)
            with settings[2].steering():
                got = margins(qwen2, PAIRS)
            options: Any = {"operator": operator, "restore_norm": restore_norm}
            with fitted.steering(qwen2, c=STRENGTHS[2], blocks=middle(5), **options):
                assert margins(qwen2, PAIRS) == got
    labels.add(fit(qwen2, PAIRS, seed=1).settings(qwen2)[0].label)
    assert len(labels) == 5  # a choice on dev goes by label and strength


def test_impossible_edits_are_refused(llama: HuggingFaceModel, qwen2: HuggingFaceModel) -> None:
    fitted = fit(llama, PAIRS)
    with pytest.raises(ValueError, match="from another model"):
        fitted.steering(qwen2, c=1.0, blocks=[0])
    with pytest.raises(ValueError, match="from 0 to 2"):
        fitted.steering(llama, c=1.0, blocks=[-1, 3])


# --- the repeng package


@dataclass(frozen=True)
class Entry:
    positive: str
    negative: str


@pytest.fixture(scope="module")
def peer() -> Any:
    """repeng 0.4.0 names `np.float_`, gone from numpy 2, in type hints; nothing else keeps it from running."""
    with pytest.MonkeyPatch.context() as patch:
        if not hasattr(np, "float_"):
            patch.setattr(np, "float_", np.float64, raising=False)
        return pytest.importorskip("repeng", reason="needs repeng: tox -e peer-repeng")


def trained(peer: Any, model: HuggingFaceModel, *, swapped: Tensor | None = None, method: str = "pca_diff") -> Any:
    entries = []
    for i, one in enumerate(PAIRS):
        texts = [f"{one.prompt} {one.chosen}", f"{one.prompt} {one.rejected}"]
        for text, answer in zip(texts, (one.chosen, one.rejected), strict=True):
            ids = torch.cat([model.encode(one.prompt).ids, model.response_ids(one.prompt, answer)])
            assert model.tokenizer(text)["input_ids"] == ids.tolist()
        entries.append(Entry(*(texts[::-1] if swapped is not None and swapped[i] else texts)))
    layers = range(len(model.blocks))
    return peer.ControlVector.train(model.hf, model.tokenizer, entries, hidden_layers=layers, method=method)


def cosines(theirs: Any, ours: Tensor) -> Tensor:
    rows = torch.tensor(np.stack([theirs.directions[block] for block in range(len(ours))])).double()
    return torch.cosine_similarity(rows, ours)


def test_directions_agree_with_the_package_in_the_same_order(model: HuggingFaceModel, peer: Any) -> None:
    """But for the last block: theirs is transformers' last hidden state, which is taken after the final norm."""
    ours = fit(model, PAIRS).p
    same = cosines(trained(peer, model, swapped=SWAPPED), ours).abs()
    assert (same[:-1] > 1 - 1e-5).all()
    assert same[-1] < 1 - 1e-3


def test_their_default_is_centred_without_random_order(model: HuggingFaceModel, peer: Any) -> None:
    rows = answer_differences(model, PAIRS)
    got = trained(peer, model)
    components = torch.stack(
        [first_component(rows[:, b], centred=True, sign="loading")[0] for b in range(rows.shape[1])]
    )
    votes = torch.stack([(rows[:, b].double() @ p).sign().sum() for b, p in enumerate(components)])
    labelled = torch.where(votes >= 0, 1.0, -1.0)[:, None] * components
    assert (cosines(got, labelled)[:-1] > 1 - 1e-5).all()


def test_their_other_method_is_the_uncentred_component(model: HuggingFaceModel, peer: Any) -> None:
    rows = answer_differences(model, PAIRS)
    components = [first_component(rows[:, b], centred=False, sign="mean")[0] for b in range(rows.shape[1])]
    assert (cosines(trained(peer, model, method="pca_center"), torch.stack(components)).abs()[:-1] > 1 - 1e-5).all()


@pytest.mark.parametrize("normalize", [False, True])
def test_steering_agrees_with_the_package(model: HuggingFaceModel, peer: Any, normalize: bool) -> None:
    fitted, blocks = fit(model, PAIRS), list(middle(len(model.blocks)))
    ids = model.encode(PAIRS[0].prompt).ids[None]
    with torch.no_grad(), fitted.steering(model, c=1.5, blocks=blocks, restore_norm=normalize):
        ours = model.hf(input_ids=ids, use_cache=False).logits
    plain = model.hf(input_ids=ids, use_cache=False).logits
    vector = peer.ControlVector("any", {b: fitted.p[b].float().numpy() for b in range(len(model.blocks))})
    wrapped = _wrapped(peer, model, blocks)
    try:
        wrapped.set_control(vector, 1.5, normalize=normalize)
        theirs = wrapped(input_ids=ids, use_cache=False).logits
    finally:
        wrapped.unwrap()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, plain, atol=1e-2)


def _wrapped(peer: Any, model: HuggingFaceModel, blocks: list[int]) -> Any:
    """Their wrapper replaces blocks, which no longer show attributes that transformers 5 asks decoder blocks for."""
    wrapped = peer.ControlModel(model.hf, blocks)
    for block in blocks:
        inner = model.blocks[block]
        for name in ("attention_type", "layer_type"):
            if hasattr(inner, name):
                setattr(model.hf.get_decoder().layers[block], name, getattr(inner, name))
    return wrapped


def test_a_result_is_what_it_says(llama: HuggingFaceModel) -> None:
    fitted = fit(llama, PAIRS)
    assert isinstance(fitted, RepE)
    assert fitted.seed == 0
    torch.testing.assert_close(fitted.p.norm(dim=1), torch.ones(3).double())
    assert all(0.5 <= share <= 1 for share in fitted.agreement)
