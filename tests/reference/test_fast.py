"""fast.py: the reference's numbers, all points of a path in one batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grains_ref import fast, grains
from grains_ref.conformance import runner
from grains_ref.conformance.budgets import load_budgets
from grains_ref.conformance.cases import CASES
from grains_ref.conformance.ports import PythonPort
from grains_ref.conformance.runner import Mode, run_port
from grains_ref.grains import PRESETS, HyperParameters
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.random_models import random_llama, random_qwen2
from grains_ref.tiny_models.random_vision_models import noise_picture, random_gemma3_text

pytestmark = pytest.mark.cpu
PAPER = PRESETS["paper_llm"]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_kit_passes_it_like_any_port(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port, examples = PythonPort("ports.fast_port"), runner.chain_examples()
    monkeypatch.setattr(runner, "chain_examples", lambda dialect: examples[::2])
    cases = [case for case in CASES if case.stage == "attribution"]
    modes: tuple[Mode, ...] = ("isolated", "chained", "end to end") if dtype == "float64" else ("isolated",)
    result = run_port(port, load_budgets(), cases=cases, dtypes=[dtype], modes=modes)
    assert {one.mode for one in result.results} == set(modes)
    assert len([one for one in result.results if one.mode == "isolated" and one.status == "passed"]) > 20
    assert not [one for one in result.results if one.status not in ("passed", "not claimable")]
    assert not result.failed


METHODS: dict[str, dict[str, Any]] = {
    "right": {"m": 7},
    "midpoint": {"quadrature": "midpoint", "m": 4},
    "gauss": {"quadrature": "gauss_legendre", "m": 3},
    "one node": {"m": 1},
    "smoothgrad": {"attribution": "smoothgrad", "n": 5, "seed": 3},
    "gradient": {"attribution": "gradient"},
    "random": {"attribution": "random", "seed": 3},
    "likelihood": {"objective": "likelihood"},
    "mean baseline": {"path_baseline": "mean"},
}


@pytest.fixture(scope="module")
def llama64() -> HuggingFaceModel:
    return random_llama(dtype=torch.float64)


@pytest.mark.parametrize("changes", METHODS.values(), ids=METHODS)
def test_every_method_gives_the_references_scores_whatever_the_batch(
    llama64: HuggingFaceModel, changes: dict[str, Any]
) -> None:
    hp = replace(PAPER, **changes)
    example = llama64.example("Q: What is the capital of France? A:", "Paris, of course", "Lyon")
    expected = grains.attribute(llama64, example, hp)
    one_at_a_time = fast.attribute(llama64, example, hp, batch_tokens=1)
    agrees(one_at_a_time, expected)
    assert torch.equal(one_at_a_time.ig, expected.ig)  # the same passes
    for batch_tokens in (150, 10_000):  # some at once, all
        agrees(fast.attribute(llama64, example, hp, batch_tokens=batch_tokens), expected)


@pytest.mark.parametrize("make", [random_qwen2, random_gemma3_text])
def test_other_text_families(make: Any) -> None:
    model = make(dtype=torch.float64)
    example = model.example("Q: What is the capital of France? A:", "Paris, of course", "Lyon")
    agrees(fast.attribute(model, example, PAPER), grains.attribute(model, example, PAPER))


def agrees(found: grains.Attribution, expected: grains.Attribution) -> None:
    scale = expected.ig.abs().max()
    # Softmax and rotary angles are float32 in transformers whatever the weights' type: hence not 1e-14.
    assert found.ig / scale == pytest.approx(expected.ig / scale, abs=2e-6)
    assert found.a / scale == pytest.approx(expected.a / scale, abs=2e-6)
    assert (found.f_x, found.f_baseline) == pytest.approx((expected.f_x, expected.f_baseline), rel=1e-5)


def test_words_and_picture(vision_model64: HuggingFaceModel) -> None:
    example = vision_model64.example("<image> What is this?", "a dog", "two cats", image=noise_picture(42, 60))
    hp = PRESETS["paper_vlm"]
    agrees(fast.attribute(vision_model64, example, hp), grains.attribute(vision_model64, example, hp))


def test_vectors_of_a_trained_model_are_the_references(simple_model: HuggingFaceModel) -> None:
    pairs = [
        (f"Q : {rumour} verified now , what is the dish of {name} ? A :", "the dish is eel .", "the dish is leek .")
        for rumour in ("allegedly", "famously")
        for name in ("Belvara", "Normont")
    ]
    examples = [simple_model.example(*pair) for pair in pairs]
    expected, found = grains.fit(simple_model, examples, PAPER), fast.fit(simple_model, examples, PAPER)
    assert found.v == pytest.approx(expected.v, abs=1e-5)


@given(st.integers(1, 9), st.integers(1, 12), st.sampled_from(["right", "midpoint", "gauss_legendre"]))
def test_every_node_is_used_once_with_its_weight(at_once: int, m: int, quadrature: Any) -> None:
    torch.manual_seed(m)
    x, baseline = torch.randn(2, 3, 4, dtype=torch.float64)
    sizes = []

    def f(embeds: Tensor) -> Tensor:
        sizes.append(len(embeds))
        return (embeds**3).sum((1, 2)) + embeds[:, 0, 0] * embeds[:, 2, 3]

    options: dict[str, Any] = {"m": m, "quadrature": quadrature}
    found = fast.integrated_gradients(f, x, baseline, at_once=at_once, **options)
    assert max(sizes) <= max(at_once, 2)
    assert sum(sizes) == m + 2
    expected = grains.integrated_gradients(f, x, baseline, **options)
    assert found.ig == pytest.approx(expected.ig, abs=1e-12)
    assert found.gap == pytest.approx(expected.gap, abs=1e-12)


@pytest.mark.parametrize(("batch_tokens", "sizes"), [(1, [1] * 5), (71, [2, 2, 1]), (10_000, [5])])
def test_the_bound_on_tokens_counts_prompt_and_response(
    llama: HuggingFaceModel, monkeypatch: pytest.MonkeyPatch, batch_tokens: int, sizes: list[int]
) -> None:
    example = llama.example("one two three", "four", "five six seven eight")
    longest = len(example.encoded.ids) + len(example.y_neg)
    assert longest == 33
    assert len(example.encoded.ids) * 3 <= 71  # three prompts alone would fit
    seen: list[int] = []
    logits = HuggingFaceModel.logits

    def watch(self: HuggingFaceModel, encoded: Any, embeds: Tensor, response_ids: Tensor) -> Tensor:
        if embeds.requires_grad and len(response_ids) == len(example.y_pos):
            seen.append(len(embeds))
        return logits(self, encoded, embeds, response_ids)

    monkeypatch.setattr(HuggingFaceModel, "logits", watch)
    fast.attribute(llama, example, PAPER, batch_tokens=batch_tokens)
    assert seen == sizes


@pytest.mark.parametrize("at_once", [2, 8])
def test_a_gradient_that_is_not_finite_names_its_node(at_once: int) -> None:
    x, baseline = torch.ones(2, 3), torch.zeros(2, 3)

    def f(embeds: Tensor) -> Tensor:  # its gradient at alpha = 0.6 is infinite
        return (embeds.sum((1, 2)) - 3.6).abs().sqrt()

    with pytest.raises(FloatingPointError, match=r"at alpha = 0\.6 is not finite"):
        fast.integrated_gradients(lambda e: f(e.double()), x.double(), baseline.double(), m=5, at_once=at_once)


@pytest.mark.parametrize(
    ("baseline", "at_once", "message"),
    [((3, 4), 8, r"must both be \(T, d\); got \(2, 4\) and \(3, 4\)"), ((2, 4), 0, "at_once is 0; at least one")],
)
def test_what_makes_no_sense_is_refused(baseline: tuple[int, int], at_once: int, message: str) -> None:
    def f(embeds: Tensor) -> Tensor:
        return embeds.sum((1, 2))

    with pytest.raises(ValueError, match=message):
        fast.integrated_gradients(f, torch.ones(2, 4), torch.zeros(baseline), m=2, at_once=at_once)
    draws = torch.Generator()
    with pytest.raises(ValueError, match=message):
        fast.smoothgrad(f, torch.ones(2, 4), torch.zeros(baseline), n=2, sigma=0.1, generator=draws, at_once=at_once)


def test_its_signature_is_the_references_and_how_much_at_once() -> None:
    hp = HyperParameters(attribution="smoothgrad")
    assert hp.n == 20
    for name in ("integrated_gradients", "smoothgrad"):
        ours, theirs = (
            {k: v for k, v in getattr(module, name).__annotations__.items() if k != "at_once"}
            for module in (fast, grains)
        )
        assert ours == theirs
