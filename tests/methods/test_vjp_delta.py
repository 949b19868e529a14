"""methods/vjp_delta.py: what is pulled back against finite differences, the sign that v alone has not, and the edit."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from grains_ref.data import PreferencePair
from grains_ref.evaluation.measures import margins
from grains_ref.grains import DegenerateShiftsError, Hooks
from grains_ref.methods.core import at_site, capture
from grains_ref.methods.vjp_delta import STRENGTHS, VJPDelta, fit, middle, pull_back, third_from_the_end
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.random_models import random_llama

pytestmark = pytest.mark.cpu

PAIRS = [
    PreferencePair("1", "Q: What is the capital of France? A:", "Paris.", "Rome, of course.", where="made up"),
    PreferencePair("2", "Is the earth flat? Say what you know.", "No, it is round.", "Yes, as flat.", where="made up"),
    PreferencePair("3", "The moon that we see is made of", "rock and dust", "green cheese", where="made up"),
]
CROSSED = [dataclasses.replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in PAIRS]
SKIPPED = 3
OPTIONS: dict[str, Any] = {"target": 2, "skipped": SKIPPED}


@pytest.fixture(scope="module")
def wide() -> HuggingFaceModel:
    return random_llama(dtype=torch.float64)


@pytest.fixture(scope="module")
def fitted(wide: HuggingFaceModel) -> VJPDelta:
    return fit(wide, PAIRS, **OPTIONS)


def texts(pairs: list[PreferencePair]) -> tuple[list[Any], list[Any]]:
    return [(p.prompt, p.chosen) for p in pairs], [(p.prompt, p.rejected) for p in pairs]


def contrast(model: HuggingFaceModel, target: int) -> Tensor:
    chosen, rejected = texts(PAIRS)
    ends = [capture(model, items, site="residual")[:, target, 0].mean(0) for items in (chosen, rejected)]
    return ends[0] - ends[1]


def contracted(
    model: HuggingFaceModel, item: Any, c: Tensor, *, target: int, block: int, shift: Tensor
) -> tuple[float, int]:
    """F and how many tokens count, with `shift` added to the states of a block at each of them."""
    seen: list[Tensor] = []

    def move(x: Tensor) -> Tensor:
        moved = x.clone()
        moved[:, SKIPPED:-1] += shift
        return moved

    after, before = at_site(model, "residual", {block: move, target: seen.append})
    prompt, answer = item
    encoded, ids = model.encode(prompt), model.response_ids(prompt, answer)
    with torch.no_grad(), Hooks(after, before=before):
        model.logits(encoded, encoded.embeds[None], torch.cat([ids, torch.tensor([0])]))
    counted = seen[0][0, SKIPPED:-1]
    return (counted @ c).sum().item(), len(counted)


@pytest.mark.parametrize("block", [0, 1])
def test_what_is_pulled_back_is_the_mean_derivative_of_a_tokens_state(wide: HuggingFaceModel, block: int) -> None:
    c, step = contrast(wide, 2), 1e-3
    along = torch.randn(wide.width, dtype=torch.float64, generator=torch.Generator().manual_seed(block))
    item = texts(PAIRS)[1][0]
    ends = [contracted(wide, item, c, target=2, block=block, shift=s * along)[0] for s in (step, -step)]
    n = contracted(wide, item, c, target=2, block=block, shift=0 * along)[1]
    q = pull_back(wide, item, c, target=2, skipped=SKIPPED).q
    measured = (ends[0] - ends[1]) / (2 * step * n)
    assert abs(measured) > 0.01
    assert (q[block] @ along).item() == pytest.approx(measured, rel=2e-3)
    assert not q[2].any()


def test_v_is_the_difference_of_the_classes_at_unit_length(wide: HuggingFaceModel, fitted: VJPDelta) -> None:
    c = contrast(wide, 2)
    means = [
        torch.stack([pull_back(wide, item, c, target=2, skipped=SKIPPED).q for item in items]).mean(0)
        for items in texts(PAIRS)
    ]
    expected = means[0] - means[1]
    turned = -1 if fitted.turned else 1
    torch.testing.assert_close(fitted.v[:2], turned * expected[:2] / expected[:2].norm(dim=1, keepdim=True))
    assert (fitted.blocks, fitted.target, fitted.v[2].any().item()) == ((0, 1), 2, False)


def test_v_alone_does_not_know_which_answers_are_wanted_and_the_sign_rule_does(
    wide: HuggingFaceModel, fitted: VJPDelta
) -> None:
    plain, crossed = (fit(wide, pairs, sign="none", **OPTIONS).v for pairs in (PAIRS, CROSSED))
    torch.testing.assert_close(plain, crossed)
    torch.testing.assert_close(fit(wide, CROSSED, **OPTIONS).v, -fitted.v)


def test_the_sign_is_that_of_the_states_at_the_quarters_of_a_text(wide: HuggingFaceModel, fitted: VJPDelta) -> None:
    means = []
    for items in texts(PAIRS):
        of_texts = []
        for prompt, answer in items:
            n = len(wide.encode(prompt).ids) + len(wide.response_ids(prompt, answer))
            states = capture(wide, [(prompt, answer)], site="residual", last=n)[0]  # (L, n, d)
            counted = n - 1 - SKIPPED
            of_texts.append(states[:, [SKIPPED + (counted - 1) * i // 4 for i in (1, 2, 3, 4)]].mean(1))
        means.append(torch.stack(of_texts).mean(0))
    axis = means[0] - means[1]
    cosines = cosine_similarity(fitted.v[:2], axis[:2].double(), dim=1)
    assert cosines.mean() > 0
    unturned = fit(wide, PAIRS, sign="none", **OPTIONS)
    torch.testing.assert_close(unturned.v, -fitted.v if fitted.turned else fitted.v)


def test_every_source_is_moved_by_its_own_vector_at_every_token(wide: HuggingFaceModel, fitted: VJPDelta) -> None:
    item = texts(PAIRS)[0][0]
    plain = capture(wide, [item], site="residual", last=5)[0]
    with fitted.steering(wide, c=0.5):
        steered = capture(wide, [item], site="residual", last=5)[0]
    torch.testing.assert_close(steered[0], plain[0] + 0.5 * fitted.v[0])
    assert not torch.allclose(steered[2], plain[2])
    only = fit(wide, PAIRS, blocks=[1], **OPTIONS)
    assert only.v.any(1).tolist() == [False, True, False]
    assert torch.equal(only.v[1].abs(), fitted.v[1].abs())


def test_it_leaves_the_model_as_it_was(wide: HuggingFaceModel) -> None:
    before = margins(wide, PAIRS)
    fit(wide, PAIRS, **OPTIONS)
    assert margins(wide, PAIRS) == before
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in wide.hf.parameters())


def test_the_grid_is_declared_gentlest_first(wide: HuggingFaceModel, fitted: VJPDelta) -> None:
    settings = fitted.settings(wide)
    assert [setting.strength for setting in settings] == list(STRENGTHS) == sorted(STRENGTHS)
    assert [third_from_the_end(n) for n in (32, 30, 4, 3, 2)] == [29, 27, 1, 2, 1]
    assert [middle(n) for n in (32, 30)] == [range(6, 25), range(6, 23)]


def test_what_has_no_direction_is_refused(wide: HuggingFaceModel) -> None:
    with pytest.raises(ValueError, match=r"has \d+ tokens; the first 900 and the last do not count"):
        fit(wide, PAIRS, target=2, skipped=900)
    with pytest.raises(ValueError, match=r"must lie before the target, block 1; got \[1\]"):
        fit(wide, PAIRS, target=1, blocks=[1], skipped=SKIPPED)
    with pytest.raises(ValueError, match="target is 0"):
        fit(wide, PAIRS, target=0)
    with pytest.raises(DegenerateShiftsError, match="block 2: chosen and rejected answers have the same mean state"):
        fit(wide, [*PAIRS, *CROSSED], **OPTIONS)
