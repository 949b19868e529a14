"""What no method can use is refused in one sentence, before or during the work: never NaN, nor a random direction."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from robustness.hook_uses import drawn, seeing_world, text_world
from torch import Tensor

from grains_ref.data import PairFile, PreferencePair
from grains_ref.grains import DegenerateShiftsError, Steering
from grains_ref.methods import bipo, caa, corr_steer, ict, icv, iti, lora, mat_steer, nullu, repe, vjp_delta, vti
from grains_ref.methods.core import Edit, capture, edit_pixels, keep_norm, length, unit
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.random_models import random_llama

pytestmark = pytest.mark.cpu

QUESTIONS = ["Is the earth flat? A:", "Is the moon made of cheese? A:", "Do fish fly? A:", "Is water dry? A:", "Q? A:"]
PAIRS = [
    PreferencePair(str(i), question, f"No, it is {word}.", f"Yes, {word}.", where=f"test:{i}")
    for i, (question, word) in enumerate(zip(QUESTIONS, ["round", "rock", "wet", "cold", "so"], strict=True))
]
FITS: dict[str, Callable[..., Any]] = {
    "caa": caa.fit,
    "icv": icv.fit,
    "icv paper": lambda model, pairs: icv.fit(model, pairs, options=icv.PAPER),
    "icv mean": lambda model, pairs: icv.fit(model, pairs, options=dataclasses.replace(icv.PAPER, estimator="mean")),
    "repe": repe.fit,
    "mat-steer": mat_steer.fit,
    "nullu": nullu.fit,
    "corr-steer": corr_steer.fit,
    "iti": lambda model, pairs: iti.fit(model, pairs, probe="linear"),
    "nl-iti": lambda model, pairs: iti.fit(model, pairs, probe="mlp", spread="answers"),
    "lora": lora.fit,
    "bipo": lambda model, pairs: bipo.fit(model, pairs, epochs=2),
    "vjp_delta": lambda model, pairs: vjp_delta.fit(model, pairs, skipped=3),
}
fits = pytest.mark.parametrize("fit", FITS.values(), ids=FITS)


@fits
@pytest.mark.parametrize(
    "pairs",
    ["pairs.jsonl", b"pairs", Path("pairs.jsonl"), PairFile(Path("p"), tuple(PAIRS), (), ""), PAIRS[0], 3, None],
)
def test_something_else_than_a_list_of_pairs(fit: Callable[..., Any], pairs: Any) -> None:
    with pytest.raises(TypeError, match=r"pairs is a .*; expected a list of preference pairs, such as read_pairs"):
        fit(text_world().model, pairs)


@fits
def test_a_list_of_something_else(fit: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="pairs holds a dict; expected PreferencePair"):
        fit(text_world().model, [{"prompt": "Is it?", "chosen": "No", "rejected": "Yes"}] * 3)


@fits
def test_no_pairs(fit: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"need at least (one pair|2 pairs|3 pairs); got 0"):
        fit(text_world().model, [])


@pytest.mark.parametrize(("name", "least"), [("icv", 3), ("icv paper", 3), ("repe", 3), ("iti", 2), ("nl-iti", 2)])
def test_one_pair_where_several_are_needed(name: str, least: int) -> None:
    with pytest.raises(ValueError, match=f"need at least {least} pairs; got {least - 1}"):
        FITS[name](text_world().model, PAIRS[: least - 1])


@pytest.mark.parametrize(
    "name", ["caa", "icv", "icv paper", "icv mean", "repe", "iti", "nl-iti", "mat-steer", "nullu", "corr-steer"]
)
def test_answers_that_are_the_same_have_no_direction(name: str) -> None:
    same = [dataclasses.replace(pair, rejected=pair.chosen) for pair in PAIRS]
    with pytest.raises(DegenerateShiftsError, match=r"block 0:|blocks 0 to 2:|all blocks together:"):
        FITS[name](text_world().model, same)


@pytest.mark.parametrize("name", ["caa", "icv paper", "icv mean", "iti", "nl-iti", "mat-steer"])
def test_pairs_that_cancel_have_no_direction(name: str) -> None:
    turned = [dataclasses.replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in PAIRS]
    with pytest.raises(DegenerateShiftsError, match="mixed up"):
        FITS[name](text_world().model, PAIRS + turned)


def test_the_same_pair_again_and_again_has_no_component() -> None:
    model = text_world().model
    with pytest.raises(DegenerateShiftsError, match="all blocks together: the 3 differences are all equal"):
        icv.fit(model, PAIRS[:1] * 3)
    order = [(torch.rand(3, generator=torch.Generator().manual_seed(seed)) < 0.5).tolist() for seed in range(20)]
    alike = order.index([True] * 3)
    with pytest.raises(DegenerateShiftsError, match="block 0: the 3 differences are all equal"):
        repe.fit(model, PAIRS[:1] * 3, seed=alike)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@fits
def test_a_weight_that_is_not_finite(fit: Callable[..., Any], value: float) -> None:
    model = random_llama()
    with torch.no_grad():
        model.blocks[1].get_submodule("self_attn.v_proj").weight[0, 0] = value  # type: ignore[index, operator]
    with pytest.raises((FloatingPointError, ValueError), match=r"block 1|the loss is nan|scores are not finite"):
        fit(model, PAIRS)


def test_half_precision_that_overflows_names_the_block() -> None:
    model = random_llama(dtype=torch.float16)
    with torch.no_grad():
        model.blocks[2].get_submodule("mlp.down_proj").weight.mul_(1e6)  # type: ignore[operator]
    with pytest.raises(FloatingPointError, match=r"block 2: residual at the end of .*: a value is not finite"):
        caa.fit(model, PAIRS)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_in_float32_and_fitted_in_float64(dtype: torch.dtype) -> None:
    model = random_llama(dtype=dtype)
    assert capture(model, [("Is it?", "No")], site="mlp").dtype == torch.float32
    assert caa.fit(model, PAIRS).v.dtype == torch.float64
    assert icv.fit(model, PAIRS).v.dtype == torch.float64
    assert repe.fit(model, PAIRS).p.dtype == torch.float64
    assert iti.fit(model, PAIRS, probe="mlp").theta.dtype == torch.float64


# --- steering


@functools.cache
def steerings() -> dict[str, tuple[str, Callable[..., Any]]]:
    """By method: what its strength is called, and how it steers."""
    world, seeing = text_world(), seeing_world()
    model = world.model
    n, d = len(model.blocks), model.width
    v = drawn(n, d, seed=1)
    d_h = model.blocks[0].get_submodule("self_attn.o_proj").in_features // 4  # type: ignore[operator]
    ranking = tuple((block, head) for head in range(4) for block in range(n))
    heads = iti.ProbedHeads("ITI", drawn(n, 4, d_h, seed=2), torch.ones(n, 4), torch.ones(n, 4), ranking)
    trust = ict.TrustedHeads({"image": heads, "object": heads}, {"image": 1}, halve_overlap=False)
    visual = drawn(1, seeing.model.family.n_vision_blocks, seeing.model.hf.config.vision_config.hidden_size, seed=5)
    seen = vti.VisualTextual(
        visual, {0.9: icv.ICV(drawn(len(seeing.model.blocks), seeing.model.width, seed=6), icv.CODE)}
    )
    return {
        "Steering": ("lam", lambda x: Steering(model.blocks, v, lam=x)),
        "CAA": ("c", lambda x: caa.CAA(v, "last").steering(model, c=x, blocks=[0])),
        "ICV": ("lam", lambda x: icv.ICV(v, icv.CODE).steering(model, lam=x)),
        "ICV paper": ("lam", lambda x: icv.ICV(v, icv.PAPER).steering(model, lam=x)),
        "RepE": ("c", lambda x: repe.RepE(v, 0, (1.0,)).steering(model, c=x, blocks=[1])),
        "RepE, norm restored":
            ("c", lambda x: repe.RepE(v, 0, (1.0,)).steering(model, c=x, blocks=[1], restore_norm=True)),
        "ITI": ("alpha", lambda x: heads.steering(model, heads=3, alpha=x)),
        "ICT image": ("alpha", lambda x: trust.steering(model, heads=3, alpha=x, beta=1.0)),
        "ICT object": ("beta", lambda x: trust.steering(model, heads=3, alpha=1.0, beta=x)),
        "VTI image": ("image|alpha", lambda x: enter(seen.steering(seeing.model, image=x, text=0.0))),
        "VTI text": ("text|lam", lambda x: enter(seen.steering(seeing.model, image=0.9, text=x))),
    }  # fmt: skip


def enter(steering: Any) -> None:
    with steering:
        pass


METHODS = ["Steering", "CAA", "ICV", "ICV paper", "RepE", "RepE, norm restored", "ITI", "ICT image", "ICT object",
           "VTI image", "VTI text"]  # fmt: skip


@pytest.mark.parametrize("strength", ["2", True, None, b"2", [1.0], torch.tensor(2.0), 1j])
@pytest.mark.parametrize("method", METHODS)
def test_a_strength_that_is_no_number(method: str, strength: Any) -> None:
    name, steer = steerings()[method]
    with pytest.raises(TypeError, match=f"({name}) is .*; expected a number"):
        steer(strength)


@pytest.mark.parametrize("strength", [math.nan, math.inf, -math.inf, 10**400])
@pytest.mark.parametrize("method", METHODS)
def test_a_strength_that_is_not_finite(method: str, strength: float) -> None:
    name, steer = steerings()[method]
    with pytest.raises(ValueError, match=f"({name}) must be finite"):
        steer(strength)


@pytest.mark.parametrize("strength", [np.float32(0.5), np.int64(1), 1, 0])
@pytest.mark.parametrize("method", METHODS[:9])
def test_numbers_of_every_kind_are_taken(method: str, strength: Any) -> None:
    with steerings()[method][1](strength):
        pass


@pytest.mark.parametrize("strength", [1e20, -1e30, 1e200])
@pytest.mark.parametrize("method", METHODS[:9])
def test_a_huge_strength_never_gives_a_quiet_number(method: str, strength: float) -> None:
    """Refused in the run, naming the block; or, where the norm is kept, the move that it converges to."""
    world = text_world()
    steer = steerings()[method][1]
    refusal = ""
    try:
        with steer(strength):
            got = world.measured("score")
    except (FloatingPointError, ValueError) as error:
        refusal = str(error)
    if refusal:
        assert re.search("(block|layer) [0-9]", refusal)
        return
    assert method in ("ICV", "ICV paper", "RepE, norm restored", "Steering")
    with steer(math.copysign(1e12, strength)):
        limit = world.measured("score")
    assert got == pytest.approx(limit, rel=1e-3)


@pytest.mark.parametrize(
    ("blocks", "error"),
    [("01", TypeError), ([True], TypeError), ([0.0], TypeError), (1, TypeError), ({0: 1}, TypeError),
     (["0"], TypeError), ([3], ValueError), ([-1], ValueError), ([0, 0], ValueError), ([10**30], ValueError),
     (range(5, 1), None), (range(10**12), ValueError),
     ([2, 0], None), (np.array([0, 1]), None)],
)  # fmt: skip
def test_blocks(blocks: Any, error: Any) -> None:
    model = text_world().model
    v = drawn(3, model.width, seed=1)
    for name, steer in (
        ("blocks", lambda: caa.CAA(v, "last").steering(model, c=1.0, blocks=blocks)),
        ("blocks", lambda: repe.RepE(v, 0, (1.0,)).steering(model, c=1.0, blocks=blocks)),
        ("layers", lambda: Steering(model.blocks, v, lam=1.0, layers=blocks)),
    ):
        if error is None:
            with steer():
                pass
            continue
        with pytest.raises(error, match=f"{name} (is|holds) .*; expected|{name} must be different numbers from 0 to 2"):
            steer()


@pytest.mark.parametrize(("heads", "error"), [(True, TypeError), ("3", TypeError), (2.0, TypeError), (-1, ValueError),
                                              (13, ValueError), (10**30, ValueError)])  # fmt: skip
def test_numbers_of_heads(heads: Any, error: Any) -> None:
    model = text_world().model
    probed = iti.ProbedHeads("ITI", drawn(3, 4, 6, seed=2), torch.ones(3, 4), torch.ones(3, 4), ((0, 0),) * 12)
    trust = ict.TrustedHeads({"image": probed}, {"image": 1}, halve_overlap=True)
    with pytest.raises(error, match=r"heads is .*; expected a whole number"):
        probed.steering(model, heads=heads, alpha=1.0)
    with pytest.raises(error, match=r"heads is .*; expected a whole number"):
        trust.steering(model, heads=heads, alpha=1.0, beta=0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_vectors_that_are_not_finite_name_the_block(value: float) -> None:
    model = text_world().model
    v = drawn(3, model.width, seed=1)
    v[2, 1] = value
    shift = drawn(3, 4, 6, seed=2)
    shift[1, 0, 0] = value
    for steer in (
        lambda: caa.CAA(v, "last").steering(model, c=1.0, blocks=[0]),
        lambda: icv.ICV(v, icv.CODE).steering(model, lam=1.0),
        lambda: repe.RepE(v, 0, (1.0,)).steering(model, c=1.0, blocks=[0]),
    ):
        with pytest.raises(ValueError, match="vectors must be finite; block 2"):
            steer()
    with pytest.raises(ValueError, match="layers \\[2\\]"):
        Steering(model.blocks, v, lam=1.0)
    with pytest.raises(ValueError, match="a shift must be finite; block 1"):
        iti.shift_heads(model, shift)
    adapter = lora.fit(model, PAIRS[:1], rank=2, epochs=1).adapters[0]
    adapter.a["q_proj"][1, 0, 0] = value
    with pytest.raises(ValueError, match="block 1: the adapter of q_proj is not finite"):
        adapter.steering(model)
    seeing = seeing_world().model
    visual = torch.full((1, seeing.family.n_vision_blocks, seeing.hf.config.vision_config.hidden_size), value)
    with pytest.raises(ValueError, match="vision tower's vectors must be finite"):
        enter(vti.steer_vision(seeing, visual, alpha=1.0))


def test_states_and_changes_that_are_not_finite_name_the_block() -> None:
    world, seeing = text_world(), seeing_world()
    infinite = Edit(world.model, "mlp", {1: lambda x: x / 0})
    with pytest.raises(FloatingPointError, match=r"block 1: mlp is beyond torch\.float32"), infinite:
        world.measured("score")
    broken, after = nan_in_block_1(world.model), Edit(world.model, "heads", {2: abs})
    with pytest.raises(FloatingPointError, match="block 2: heads is not finite before it is edited"), broken, after:
        world.measured("score")
    bright = edit_pixels(seeing.model, lambda pixels: pixels / 0)
    with pytest.raises(FloatingPointError, match="changed pixels are not finite"), bright:
        seeing.measured("score")


def nan_in_block_1(model: HuggingFaceModel) -> Any:
    from grains_ref.grains import Hooks, edit_output

    return Hooks([(model.blocks[1], edit_output(lambda h: h * math.nan))])


@pytest.mark.parametrize("given", ["a dict", "a list", "an array", "no decimals"])
def test_vectors_of_another_kind(given: str) -> None:
    model = text_world().model
    v = drawn(3, model.width, seed=1)
    values: dict[str, Any] = {
        "a dict": dict(enumerate(v)), "a list": list(v), "an array": v.numpy(), "no decimals": v.long(),
    }  # fmt: skip
    with pytest.raises(TypeError, match=r"v is a (dict|list|ndarray|torch.int64); expected a tensor \(L, d\)"):
        Steering(model.blocks, values[given], lam=1.0)
    if given != "no decimals":
        with pytest.raises(TypeError, match=r"vectors are a (dict|list|ndarray); expected a tensor"):
            caa.CAA(values[given], "last").steering(model, c=1.0, blocks=[0])


def test_blocks_of_another_kind() -> None:
    model = text_world().model
    v = drawn(3, model.width, seed=1)
    for blocks in (model, model.hf, "blocks", 3, None, dict(enumerate(model.blocks)), [v], [*model.blocks[:2], "2"]):
        with pytest.raises(TypeError, match=r"blocks (is|holds) .*; expected the list of decoder blocks"):
            Steering(blocks, v, lam=1.0)  # type: ignore[arg-type]
    with Steering(model.hf.get_decoder().layers, v, lam=1.0):
        pass


@pytest.mark.parametrize(
    "call",
    [
        lambda m: iti.fit(m, PAIRS, probe="mlpp"),  # type: ignore[arg-type]
        lambda m: iti.fit(m, PAIRS, probe="linear", spread="next"),  # type: ignore[arg-type]
        lambda m: iti.fit(m, PAIRS, probe="linear", answers="all"),  # type: ignore[arg-type]
        lambda m: caa.fit(m, PAIRS, read="lst"),  # type: ignore[arg-type]
        lambda m: caa.CAA(drawn(3, m.width, seed=1), "last").settings(m, blocks="two"),  # type: ignore[arg-type]
        lambda m: caa.CAA(drawn(3, m.width, seed=1), "last").steering(m, c=1.0, blocks=[0], positions="each"),  # type: ignore[arg-type]
        lambda m: repe.RepE(drawn(3, m.width, seed=1), 0, ()).steering(m, c=1.0, blocks=[0], operator="x"),  # type: ignore[arg-type]
        lambda m: dataclasses.replace(icv.CODE, estimator="pca"),
        lambda m: dataclasses.replace(icv.CODE, site="heads"),
        lambda m: dataclasses.replace(icv.CODE, norm="none"),
        lambda m: capture(m, [("Is it?", "No")], site="attention"),  # type: ignore[arg-type]
        lambda m: Edit(m, "attention", {0: abs}),  # type: ignore[arg-type]
    ],
)
def test_a_word_that_is_no_option(call: Callable[[HuggingFaceModel], object]) -> None:
    with pytest.raises(ValueError, match=r" is '\w+'; expected one of|; expected all, after_prompt or a number"):
        call(text_world().model)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: lora.fit(m, PAIRS, learning_rates="0.1"),  # type: ignore[arg-type]
        lambda m: lora.fit(m, PAIRS, learning_rates=0.1),  # type: ignore[arg-type]
        lambda m: capture(m, "Is it?", site="mlp"),  # type: ignore[arg-type]
        lambda m: icv.combined(m, "vectors", lams=[1.0]),  # type: ignore[arg-type]
        lambda m: icv.combined(m, [icv.ICV(drawn(3, m.width, seed=1), icv.CODE)], lams="1"),
        lambda m: caa.same_lengths(b"fits"),  # type: ignore[arg-type]
        lambda m: iti.fit(m, PAIRS, probe="linear", tokens="11"),  # type: ignore[arg-type]
        lambda m: vti.fit(seeing_world().model, PAIRS, image_alphas="0.9"),  # type: ignore[arg-type]
        lambda m: vti.fit(seeing_world().model, PAIRS, image_alphas=0.9),  # type: ignore[arg-type]
    ],
)
def test_a_text_or_number_for_a_list(call: Callable[[HuggingFaceModel], object]) -> None:
    with pytest.raises(TypeError, match=r" is a (str|bytes|float) \(.*\); expected "):
        call(text_world().model)


def test_questions_of_one_class_are_refused() -> None:
    right = [dataclasses.replace(pair, choices=(pair.chosen,), label=0) for pair in PAIRS]
    with pytest.raises(ValueError, match="answers of one class only"):
        iti.fit(text_world().model, right, probe="mlp", answers="choices", spread="answers")


# --- lengths


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e20, 1e38])
def test_lengths_of_every_size(size: float) -> None:
    x = torch.tensor([[3.0, -4.0, 0.0]]) * (size / 5)
    assert length(x).item() == pytest.approx(size, rel=1e-6)
    moved = keep_norm(x, torch.tensor([0.0, 0.0, 1e30]))
    assert length(moved).item() == pytest.approx(size, rel=1e-6)


def test_lengths_of_ordinary_numbers_are_torchs_own_to_the_bit() -> None:
    x: Tensor = drawn(50, 33, seed=8, size=12.0)
    assert torch.equal(length(x), x.norm(dim=-1, keepdim=True))
    assert torch.equal(unit(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_edits_beside_the_prompts_end() -> None:
    """`positions` as a number: 1 is `after_prompt`; 0 keeps the first token's score; all tokens are like `all`."""
    model = text_world().model
    item = [("Is the earth flat? A:", "No")]
    change = {1: lambda x: x + 1.0}
    plain = model.score(item)
    with Edit(model, "residual", change, positions=0):
        assert model.score(item) == plain
        assert model.score([("Is the earth flat? A:", "No, it is.")]) != model.score(item)
    with Edit(model, "residual", change, positions="after_prompt"):
        after = model.score(item)
    with Edit(model, "residual", change, positions=1):
        assert model.score(item) == after != plain
    with Edit(model, "residual", change, positions=3):
        three = model.score(item)
    with Edit(model, "residual", change, positions=10**6):
        every = model.score(item)
    with Edit(model, "residual", change):
        assert model.score(item) == every
    assert len({result[0].log_prob for result in (plain, after, three, every)}) == 4
    for positions in (-1, True, 1.0, None):
        with pytest.raises((TypeError, ValueError), match=r"positions is .*; expected"):
            Edit(model, "residual", change, positions=positions)  # type: ignore[arg-type]


def test_an_edit_after_the_prompts_last_token_changes_the_second_token() -> None:
    model = text_world().model
    item = [("Is the earth flat? A:", "No, it is round.")]
    plain = model.score(item)
    with Edit(model, "residual", {1: lambda x: x + 1.0}, positions=0):
        assert model.score(item) != plain


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("Q: Is it? A:", "Q: Is it?"),
        ("Q: Is it?\nAnswer:", "Q: Is it?"),
        ("Q: Is it?\n\nA: ", "Q: Is it?"),
        ("Is it?", "Is it?"),
        ("Translate: cat", "Translate: cat"),
        ("A:", "A:"),
        ("<image>\nIs it?\nA:", "Is it?"),
        (({"role": "user", "content": "Is it?"},), "Is it?"),
    ],
)
def test_the_question_of_a_prompt_has_no_label_of_the_answer(prompt: Any, question: str) -> None:
    assert iti.question_of(prompt) == question
