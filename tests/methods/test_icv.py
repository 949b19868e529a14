"""methods/icv.py: the moves by hand, every estimator against numpy, and what must not change."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from shared import first_quick
from torch import Tensor

from grains_ref.data import PreferencePair
from grains_ref.evaluation.measures import margins
from grains_ref.grains import DegenerateShiftsError
from grains_ref.methods import icv
from grains_ref.methods.core import Edit, capture
from grains_ref.methods.icv import CODE, ICV, LAMS, PAPER, Options, combined, fit
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
    )
]
VARIANTS = [
    Options(estimator=estimator, site=site, adaptive=adaptive, norm=norm)  # type: ignore[arg-type]
    for estimator in ("mean_plus_pc", "pc_centred", "pc_uncentred", "mean")
    for site, adaptive, norm in (("mlp", True, "relative"), ("residual", False, "absolute"))
]


def deltas(model: HuggingFaceModel) -> np.ndarray:
    """(N, L + 1, d), with the embeddings as block 0's input."""
    states = []
    for answers in ([p.chosen for p in PAIRS], [p.rejected for p in PAIRS]):
        items = [(p.prompt, answer) for p, answer in zip(PAIRS, answers, strict=True)]
        enter = capture(model, items, site="block_input")[:, :1, 0]
        states.append(torch.cat([enter, capture(model, items, site="residual")[:, :, 0]], dim=1))
    return (states[0] - states[1]).double().numpy()


# --- the vectors


def test_the_estimators_by_hand(model: HuggingFaceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = deltas(model).reshape(4, -1)
    differences = icv.answer_differences(model, PAIRS)
    monkeypatch.setattr(icv, "answer_differences", lambda model, pairs: differences)  # once is enough
    mean = rows.mean(0)
    centred = np.linalg.svd(rows - mean, full_matrices=False)[2][0]
    scores = (rows - mean) @ centred
    centred = centred * np.sign(scores[np.abs(scores).argmax()])
    uncentred = np.linalg.svd(rows, full_matrices=False)[2][0]
    uncentred = uncentred * np.sign(mean @ uncentred)
    expected = {"mean_plus_pc": mean + centred, "pc_centred": centred, "pc_uncentred": uncentred, "mean": mean}
    shape = (len(model.blocks) + 1, model.width)
    for estimator, v in expected.items():
        got = fit(model, PAIRS, options=replace(CODE, estimator=estimator)).v  # type: ignore[arg-type]
        assert got.dtype == torch.float64
        np.testing.assert_allclose(got.numpy(), v.reshape(shape)[1:], rtol=1e-4, atol=1e-5)


def test_the_component_is_one_over_all_layers_and_not_one_for_each(llama: HuggingFaceModel) -> None:
    p = fit(llama, PAIRS, options=replace(CODE, estimator="pc_centred")).v
    lengths = p.norm(dim=1)
    assert lengths.square().sum() < 1  # 1 with the embedding's part, which is left out
    assert lengths.square().sum() > 0.5
    assert not torch.allclose(lengths, lengths[0].expand(3), rtol=0.1)


def test_equal_answers_are_refused(llama: HuggingFaceModel) -> None:
    equal = [dataclasses.replace(one, rejected=one.chosen) for one in PAIRS]
    for options in (CODE, PAPER, replace(PAPER, estimator="mean")):
        with pytest.raises(DegenerateShiftsError, match=r"all blocks together: the .* zero"):
            fit(llama, equal, options=options)


def test_two_pairs_have_no_component_but_a_mean(llama: HuggingFaceModel) -> None:
    with pytest.raises(ValueError, match="at least 3"):
        fit(llama, PAIRS[:2])
    one = fit(llama, PAIRS[:1], options=replace(PAPER, estimator="mean")).v
    chosen, rejected = (
        capture(llama, [(PAIRS[0].prompt, a)], site="residual")[0, :, 0] for a in (PAIRS[0].chosen, PAIRS[0].rejected)
    )
    torch.testing.assert_close(one, (chosen - rejected).double())


def test_punctuation_is_stripped_if_asked(llama: HuggingFaceModel) -> None:
    first = {"prompt": "Q What is the capital of France A", "chosen": "Paris", "rejected": "Rome of course"}
    bare = [
        dataclasses.replace(PAIRS[0], **first),
        dataclasses.replace(PAIRS[1], prompt="Is the earth flat", chosen="No it is round"),
        *PAIRS[2:],
    ]
    options = replace(CODE, strip_punctuation=True)
    torch.testing.assert_close(fit(llama, PAIRS, options=options).v, fit(llama, bare).v)
    assert not torch.allclose(fit(llama, PAIRS).v, fit(llama, bare).v, atol=1e-2)
    chat = dataclasses.replace(PAIRS[0], prompt=({"role": "user", "content": "Well, <image>who?"},))
    assert icv._stripped(chat).prompt == ({"role": "user", "content": "Well <image>who"},)
    with pytest.raises(ValueError, match="nothing but punctuation"):
        fit(llama, [*PAIRS, dataclasses.replace(PAIRS[0], rejected="...")], options=options)


# --- the moves


def by_hand(x: list[float], vectors: list[list[float]], lams: list[float], options: Options) -> list[float]:
    """One token, in plain Python."""

    def norm(z: list[float]) -> float:
        return sum(a * a for a in z) ** 0.5

    if norm(x) == 0:
        return x
    y = [0.0] * len(x)
    for v, lam in zip(vectors, lams, strict=True):
        cosine = sum(a * b for a, b in zip(x, v, strict=True)) / norm(x) / (norm(v) or 1.0)
        g = 1 + max(0.0, -cosine) if options.adaptive else 1.0
        length = (norm(v) or 1.0) if options.norm == "relative" else 1.0
        y = [a + lam * g * b / length / len(vectors) for a, b in zip(y, v, strict=True)]
    scale = norm(x) if options.norm == "relative" else 1.0
    moved = [a + scale * b for a, b in zip(x, y, strict=True)]
    return [a * norm(x) / norm(moved) for a in moved]


@pytest.mark.parametrize("norm", ["relative", "absolute"])
@pytest.mark.parametrize("adaptive", [True, False])
def test_the_move_of_every_token_by_hand(norm: Any, adaptive: bool) -> None:
    options = replace(CODE, norm=norm, adaptive=adaptive)
    draw = torch.Generator().manual_seed(0)
    x = 5 * torch.randn(2, 3, 7, generator=draw, dtype=torch.float64)
    x[1, 1] = 0
    vectors = list(torch.randn(2, 7, generator=draw, dtype=torch.float64) * torch.tensor([[3.0], [0.2]]))
    lams = [0.8, -0.3]
    got = icv._move(vectors, lams, options)(x)
    for token, moved in zip(x.reshape(-1, 7).tolist(), got.reshape(-1, 7).tolist(), strict=True):
        assert moved == pytest.approx(by_hand(token, [v.tolist() for v in vectors], lams, options), abs=1e-12)
    torch.testing.assert_close(got.norm(dim=-1), x.norm(dim=-1))


def test_the_factor_is_between_one_and_two() -> None:
    """A token along v is moved with g = 1, across it too, against it with g = 2."""
    v = torch.tensor([0.0, 3.0])
    x = torch.tensor([[[0.0, 2.0], [2.0, 0.0], [0.02, -2.0]]])
    move = icv._move([v], [0.5], CODE)(x)[0]
    once = icv._move([v], [0.5], replace(CODE, adaptive=False))(x)[0]
    twice = icv._move([v], [1.0], replace(CODE, adaptive=False))(x)[0]
    torch.testing.assert_close(move[:2], once[:2])
    torch.testing.assert_close(move[2], twice[2], atol=1e-2, rtol=1e-2)
    assert not torch.allclose(move[2], once[2], atol=1e-2)


@pytest.mark.parametrize("options", [CODE, PAPER], ids=["code", "paper"])
def test_every_token_of_its_site_keeps_its_norm(model: HuggingFaceModel, options: Options) -> None:
    fitted = fit(model, PAIRS, options=options)
    block = len(model.blocks) // 2
    seen: list[Tensor] = []
    module: Any = model.blocks[block].mlp if options.site == "mlp" else model.blocks[block]

    def look(module: Any, args: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).clone())

    first = module.register_forward_hook(look)
    with ICV(fitted.v * (torch.arange(len(fitted.v)) == block)[:, None], options).steering(model, lam=0.4):
        last = module.register_forward_hook(look)
        model.score([(one.prompt, one.chosen) for one in PAIRS])
        last.remove()
    first.remove()
    for before, after in zip(seen[::2], seen[1::2], strict=True):
        torch.testing.assert_close(before.norm(dim=-1), after.norm(dim=-1), rtol=1e-5, atol=1e-5)
        moved, is_pad = (before - after).abs().amax(-1) > 1e-4, (before == 0).all(-1)
        assert torch.equal(moved, ~is_pad)  # all positions, of prompt and answer; padding is zero and stays so


@pytest.mark.parametrize("options", [CODE, PAPER], ids=["code", "paper"])
def test_the_site_and_the_blocks(model: HuggingFaceModel, options: Options) -> None:
    fitted = fit(model, PAIRS, options=options)
    moves = {block: icv._move([fitted.v[block]], [0.3], options) for block in range(len(model.blocks))}
    plain = margins(model, PAIRS)
    with fitted.steering(model, lam=0.3):
        got = margins(model, PAIRS)
    with Edit(model, options.site, moves, positions="all"):
        assert margins(model, PAIRS) == got
    assert got != pytest.approx(plain, abs=1e-3)
    assert margins(model, PAIRS) == plain


@pytest.mark.parametrize("options", [CODE, PAPER], ids=["code", "paper"])
def test_no_strength_is_the_identity_up_to_rounding(llama: HuggingFaceModel, options: Options) -> None:
    plain = margins(llama, PAIRS)
    with fit(llama, PAIRS, options=options).steering(llama, lam=0.0):
        assert margins(llama, PAIRS) == pytest.approx(plain, rel=1e-5, abs=1e-3)


@pytest.mark.parametrize("options", [CODE, PAPER], ids=["code", "paper"])
def test_equal_vectors_together_are_one_of_them(llama: HuggingFaceModel, options: Options) -> None:
    fitted = fit(llama, PAIRS, options=options)
    with fitted.steering(llama, lam=0.3):
        alone = margins(llama, PAIRS)
    with combined(llama, [fitted] * 3, lams=[0.3] * 3):
        assert margins(llama, PAIRS) == pytest.approx(alone, rel=1e-5, abs=1e-3)
    with combined(llama, [fitted] * 2, lams=[0.6, 0.0]):
        assert margins(llama, PAIRS) == pytest.approx(alone, rel=1e-5, abs=1e-3)
    with pytest.raises(ValueError, match="same options and a lam each"):
        combined(llama, [fitted] * 2, lams=[0.3])
    with pytest.raises(ValueError, match="same options"):
        combined(llama, [fitted, ICV(fitted.v, replace(options, adaptive=not options.adaptive))], lams=[0.3, 0.3])
    with pytest.raises(ValueError, match="got 0 fits"):
        combined(llama, [], lams=[])


@pytest.mark.parametrize("options", [CODE, PAPER], ids=["code", "paper"])
def test_cached_generation_and_scoring_in_one_pass_agree(llama: HuggingFaceModel, options: Options) -> None:
    """`logits` runs prompt and answer in one pass, `score` in two on a cache, `generate` token by token."""
    fitted = fit(llama, PAIRS, options=options)
    prompt = "Is the earth flat?"
    encoded = llama.encode(prompt)
    with fitted.steering(llama, lam=LAMS[options.norm][-2]), torch.no_grad():
        (answer,) = llama.generate([prompt], max_new_tokens=3)
        ids = llama.response_ids(prompt, answer)
        logits = llama.logits(encoded, encoded.embeds[None], ids)[0].log_softmax(-1)
        expected = logits.gather(1, ids[:, None]).sum().item()
        (scored,) = llama.score([(prompt, answer)])
    assert scored.log_prob == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", first_quick([torch.bfloat16, torch.float16]))
@pytest.mark.parametrize("options", [CODE, PAPER], ids=["code", "paper"])
def test_narrow_types_run(dtype: torch.dtype, options: Options) -> None:
    model, wide = random_llama(dtype=dtype), random_llama()
    fitted = fit(model, PAIRS, options=options)
    cosine = torch.cosine_similarity(fitted.v.flatten(), fit(wide, PAIRS, options=options).v.flatten(), dim=0)
    assert cosine > 0.99
    with fitted.steering(model, lam=0.2):
        assert margins(model, PAIRS) != margins(wide, PAIRS)


# --- the grid


@pytest.mark.parametrize("options", [CODE, PAPER], ids=["code", "paper"])
def test_the_grid(llama: HuggingFaceModel, options: Options) -> None:
    fitted = ICV(torch.ones(3, 28), options)
    settings = fitted.settings(llama)
    assert [s.strength for s in settings] == sorted(LAMS[options.norm])
    assert len({s.label for s in settings}) == 1
    with settings[-1].steering():
        got = margins(llama, PAIRS)
    with fitted.steering(llama, lam=LAMS[options.norm][-1]):
        assert margins(llama, PAIRS) == got


def test_every_variant_has_a_name_of_its_own(llama: HuggingFaceModel) -> None:
    variants = [*VARIANTS, replace(CODE, strip_punctuation=True), replace(CODE, adaptive=False)]
    assert len({ICV(torch.ones(3, 28), one).settings(llama)[0].label for one in variants}) == len(variants)


def test_the_two_named_variants() -> None:
    assert Options(estimator="mean_plus_pc", site="mlp", adaptive=True, norm="relative") == CODE
    assert Options(estimator="pc_uncentred", site="residual", adaptive=False, norm="absolute") == PAPER


def test_vectors_of_another_model_are_refused(llama: HuggingFaceModel, qwen2: HuggingFaceModel) -> None:
    with pytest.raises(ValueError, match="from another model"):
        fit(llama, PAIRS).steering(qwen2, lam=0.1)
