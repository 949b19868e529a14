"""grains_ref.fast: the reference's numbers from several examples and points in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st
from ports import fast_port
from shared import first_quick, only_quick
from torch import Tensor

from grains_ref import fast, grains
from grains_ref.conformance import runner
from grains_ref.conformance.budgets import load_budgets
from grains_ref.conformance.cases import CASES
from grains_ref.conformance.live import check_live
from grains_ref.conformance.ports import PythonPort
from grains_ref.conformance.runner import Mode, run_port
from grains_ref.data import PreferencePair
from grains_ref.fast import memory as memory_module
from grains_ref.fast.attribution import integrals
from grains_ref.fast.memory import Memory, free_bytes, kept_bytes, measured, parse_share, rounded_down, run_in_parts
from grains_ref.grains import PRESETS, DegenerateShiftsError, Example, HyperParameters
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.random_models import random_llama, random_qwen2

pytestmark = pytest.mark.cpu
PAPER = PRESETS["paper_llm"]
STAGES = ("attribution", "contrast", "aggregation")
TEXTS = (
    ("Q: What is the capital of France? A:", "Paris, of course", "Lyon"),
    ("What is the weather?", "It is cold and wet today", "Hot"),
    ("Tell me what people say about the moon, and what is true about it.", "Rock", "Cheese, all of it"),
)


@pytest.fixture(scope="module")
def llama64() -> HuggingFaceModel:
    return random_llama(dtype=torch.float64)


@pytest.fixture(scope="module")
def examples(llama64: HuggingFaceModel) -> list[Example]:
    return [llama64.example(*text) for text in TEXTS]


# ------------------------------------------------------------------------------------------ the kit
@pytest.mark.parametrize("dtype", only_quick(["float64", "float32", "bfloat16"], "float32"))
def test_the_kit_passes_it_like_any_port(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port, chain = PythonPort("ports.fast_port"), runner.chain_examples()
    monkeypatch.setattr(runner, "chain_examples", lambda dialect: chain[::2])
    cases = [case for case in CASES if case.stage in STAGES]
    modes: tuple[Mode, ...] = ("isolated", "chained", "end to end") if dtype == "float64" else ("isolated",)
    result = run_port(port, load_budgets(), cases=cases, dtypes=[dtype], modes=modes)
    assert {one.mode for one in result.results} == set(modes)
    assert len([one for one in result.results if one.mode == "isolated" and one.status == "passed"]) > 30
    assert not [one for one in result.results if one.status not in ("passed", "not claimable")]
    assert not result.failed


@pytest.mark.parametrize("make", first_quick([random_llama, random_qwen2]))
def test_the_live_check_passes_it(make: Any) -> None:
    names = ("objective", "attribution", "contrast", "batch")
    port = SimpleNamespace(**{f"live_{name}": getattr(fast_port, f"live_{name}") for name in names})
    pair = PreferencePair("0", "Q: Is the moon made of rock? A:", "It is", "No, of cheese", "here")
    results = check_live(make(), [pair], port, m=2)
    told = {result.check for result in results if result.status == "passed"}
    assert {"objective", "attribution", "contrast", "exchanged responses negate a"} <= told
    assert not [result for result in results if result.status == "failed"]


# ------------------------------------------------------------------------------------------ scores
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


@pytest.mark.parametrize("changes", METHODS.values(), ids=METHODS)
def test_every_method_gives_the_references_scores_whatever_the_batch(
    llama64: HuggingFaceModel, examples: list[Example], changes: dict[str, Any]
) -> None:
    hp = replace(PAPER, **changes)
    agrees(fast.attribute(llama64, examples[0], hp), grains.attribute(llama64, examples[0], hp))
    expected = [grains.attribute(llama64, example, hp).ig for example in examples[:2]]
    for pass_tokens in (1, 150, 10_000):  # one point, some, all
        for ig, right in zip(integrals(llama64, examples[:2], hp, memory=Memory(pass_tokens)), expected, strict=True):
            assert ig / right.abs().max() == pytest.approx(right / right.abs().max(), abs=2e-6)


@pytest.mark.parametrize("kind", ["preference", "likelihood"])
def test_the_objective_is_the_references_with_its_gradient(
    llama64: HuggingFaceModel, examples: list[Example], kind: Any
) -> None:
    hp, example = replace(PAPER, objective=kind), examples[0]
    x = example.encoded.embeds
    versions = torch.stack([x, 0.5 * x, x.flip(0)])
    values, gradients = [], []
    for engine in (fast.Reference(llama64), fast.Fast(llama64)):
        points = versions.clone().requires_grad_()
        f = engine.objective(example, hp)(points)
        values.append(f.tolist())
        gradients.append(torch.autograd.grad(f @ torch.tensor([1.0, -2.0, 3.0], dtype=f.dtype), points)[0])
    assert values[1] == pytest.approx(values[0], rel=1e-5)
    scale = gradients[0].abs().max()
    assert gradients[1] / scale == pytest.approx(gradients[0] / scale, abs=2e-6)


def agrees(found: grains.Attribution, expected: grains.Attribution) -> None:
    scale = expected.ig.abs().max()
    # Softmax and rotary angles are float32 in transformers whatever the weights' type: hence not 1e-14.
    assert found.ig / scale == pytest.approx(expected.ig / scale, abs=2e-6)
    assert found.a / scale == pytest.approx(expected.a / scale, abs=2e-6)
    assert (found.f_x, found.f_baseline) == pytest.approx((expected.f_x, expected.f_baseline), rel=1e-5)


@given(st.integers(1, 60), st.integers(1, 12), st.sampled_from(["right", "midpoint", "gauss_legendre"]))
def test_every_node_is_used_once_with_its_weight(pass_tokens: int, m: int, quadrature: Any) -> None:
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(m))
    sizes: list[int] = []

    def f(embeds: Tensor) -> Tensor:
        sizes.append(len(embeds))
        return (embeds**3).sum((1, 2)) + embeds[:, 0, 0] * embeds[:, 2, 3]

    model: Any = toys.FunctionModel(f, lambda embeds: embeds)
    example = Example(toys.encoded(x), torch.tensor([1]), torch.tensor([0]))
    hp = replace(PAPER, m=m, quadrature=quadrature)
    found = fast.attribute(model, example, hp, memory=Memory(pass_tokens))
    assert max(sizes) <= max(1, pass_tokens // 5)  # three prompt tokens and two of responses
    assert sum(sizes) == 2 * (m + 2)
    expected = grains.attribute(model, example, hp)
    assert found.ig == pytest.approx(expected.ig, abs=1e-12)
    assert found.gap == pytest.approx(expected.gap, abs=1e-12)


@pytest.mark.parametrize("pass_tokens", [10, 1000])
def test_a_gradient_that_is_not_finite_names_its_node(pass_tokens: int) -> None:
    def f(embeds: Tensor) -> Tensor:  # its gradient at alpha = 0.6 is infinite
        return (embeds.sum((1, 2)) - 3.6).abs().sqrt()

    model: Any = toys.FunctionModel(f, lambda embeds: embeds)
    example = Example(toys.encoded(torch.ones(2, 3).double()), torch.tensor([1]), torch.tensor([0]))
    with pytest.raises(FloatingPointError, match=r"at alpha = 0\.6 is not finite"):
        fast.attribute(model, example, PAPER, memory=Memory(pass_tokens))


# ------------------------------------------------------------------------------------------ whole fits
def test_a_fit_is_the_references(llama64: HuggingFaceModel, examples: list[Example]) -> None:
    hp = replace(PAPER, aggregation="uncentred")
    expected, found = grains.fit(llama64, examples, hp), fast.fit(llama64, examples, hp)
    assert found.v == pytest.approx(expected.v, abs=1e-5)


@pytest.mark.thorough
def test_vectors_of_a_trained_model_are_the_references(simple_model: HuggingFaceModel) -> None:
    pairs = [
        (f"Q : {rumour} verified now , what is the dish of {name} ? A :", "the dish is eel .", "the dish is leek .")
        for rumour in ("allegedly", "famously")
        for name in ("Belvara", "Normont")
    ]
    examples = [simple_model.example(*pair) for pair in pairs]
    expected, found = grains.fit(simple_model, examples, PAPER), fast.fit(simple_model, examples, PAPER)
    assert found.v == pytest.approx(expected.v, abs=1e-5)


def test_shifts_of_several_prompts_are_the_references_also_where_a_set_is_empty(
    llama64: HuggingFaceModel, examples: list[Example]
) -> None:
    scores = [torch.randn(len(one.encoded.ids), generator=torch.Generator().manual_seed(1)) for one in examples]
    scores[1] = scores[1].abs()  # nothing negative
    for pass_tokens in (1, 10_000):
        found = fast.Fast(llama64, Memory(pass_tokens)).shifts(examples, scores, PAPER)
        for one, example, a in zip(found, examples, scores, strict=True):
            expected = grains.shift(llama64, example, a, PAPER)
            assert one.selection == expected.selection
            assert one.delta_pos == pytest.approx(expected.delta_pos, abs=1e-6)
            assert one.delta_neg == pytest.approx(expected.delta_neg, abs=1e-6)
    assert found[1].delta_neg.abs().max() == 0


def test_batches_hold_every_example_once_and_do_not_exceed_a_pass(examples: list[Example]) -> None:
    many = [*examples, examples[0], examples[2]]
    found = fast.batches(many, PAPER, pass_tokens=500)
    assert sorted(i for batch in found for i in batch) == [0, 1, 2, 3, 4]
    assert len(found) > 1
    for batch in found:
        tokens = max(sum(map(len, (many[i].encoded.ids, many[i].y_pos, many[i].y_neg))) for i in batch)
        assert len(batch) == 1 or PAPER.m * len(batch) * tokens <= 500


def test_long_prompts_are_not_padded_to_each_others_length(examples: list[Example]) -> None:
    def of(n: int) -> Example:
        return Example(toys.encoded(torch.zeros(n, 1)), torch.zeros(3), torch.zeros(4))

    long = [of(600), of(700), of(600), of(20), of(30)]
    assert fast.batches(long, PAPER, pass_tokens=10**6) == [[3, 4], [0, 2], [1]]


# ------------------------------------------------------------------------------------------ eq. (5)
@pytest.mark.parametrize("method", ["pca", "uncentred"])
@pytest.mark.parametrize("n", [2, 7, 50])
def test_the_gram_matrix_gives_the_singular_vector_to_1e_12(method: Any, n: int) -> None:
    draw = torch.Generator().manual_seed(n)
    lengths = 1.0 + torch.arange(60).double().flip(0)
    deltas = torch.randn(n, 3, 60, generator=draw, dtype=torch.float64) * lengths + 2
    found, expected = fast.aggregate(deltas, method=method), grains.aggregate(deltas, method=method)
    assert (found.v - expected.v).abs().max() < 1e-12
    for name in ("explained", "gap", "cos_mean"):  # of a singular value that is 0 the Gram matrix keeps 1e-8
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-7)


def test_what_the_gram_matrix_cannot_tell_is_left_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    whole = grains.aggregate
    monkeypatch.setattr(
        grains, "aggregate", lambda *args, **options: (asked.append(options), whole(*args, **options))[1]
    )
    draw = torch.Generator().manual_seed(0)
    deltas = torch.randn(4, 2, 9, generator=draw, dtype=torch.float64)
    fast.aggregate(deltas)
    assert asked == []
    fast.aggregate(deltas, components=2)
    fast.aggregate(deltas, method="mean")
    fast.aggregate(deltas.repeat(3, 1, 1))  # N > d
    near = torch.diag_embed(torch.tensor([2.0, 1.99, 0.5, 0.5], dtype=torch.float64))
    fast.aggregate(torch.nn.functional.pad(near, (0, 5))[:, None], method="uncentred")  # two directions nearly alike
    assert len(asked) == 4
    with pytest.raises(DegenerateShiftsError, match="layer 1: the 4 shifts are all equal"):
        fast.aggregate(torch.stack([deltas[:, 0], torch.ones(4, 9, dtype=torch.float64)], dim=1))
    with pytest.raises(DegenerateShiftsError, match="layer 0: the mean shift is zero"):
        fast.aggregate(torch.cat([deltas[:2], -deltas[:2]]))
    with pytest.raises(ValueError, match="shifts are not finite in layers"):
        fast.aggregate(deltas.index_fill(0, torch.tensor([1]), torch.nan))


# ------------------------------------------------------------------------------------------ memory
def out_of_memory_beyond(n: int, seen: list[int]) -> Any:
    def run(items: Sequence[int]) -> list[int]:
        seen.append(len(items))
        if len(items) > n:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [10 * item for item in items]

    return run


def test_what_does_not_fit_is_halved_and_nothing_is_lost() -> None:
    seen: list[int] = []
    memory = Memory(1000)
    run = out_of_memory_beyond(3, seen)
    assert run_in_parts(list(range(11)), run, tokens=len, memory=memory) == [10 * i for i in range(11)]
    assert seen == [11, 6, 3, 3, 5, 3, 2]
    assert memory.too_many == 5
    seen.clear()
    assert run_in_parts(list(range(11)), run, tokens=len, memory=memory) == [10 * i for i in range(11)]
    assert seen == [3, 3, 3, 2]  # what failed is not tried again, and the parts are the same


def test_one_row_that_does_not_fit_is_told_and_other_errors_are_not_swallowed() -> None:
    with pytest.raises(torch.OutOfMemoryError, match=r"one prompt with its responses does not fit"):
        run_in_parts([1, 2], out_of_memory_beyond(0, []), tokens=len, memory=Memory())

    def broken(items: Sequence[int]) -> list[int]:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        run_in_parts([1, 2], broken, tokens=len, memory=Memory())


def test_a_pass_out_of_memory_changes_no_score(
    llama64: HuggingFaceModel, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = integrals(llama64, examples, PAPER, memory=Memory(10_000))
    forward, failures = llama64.hf.forward, []

    def small(*args: Any, **options: Any) -> Any:
        if len(options["inputs_embeds"]) > 6:
            failures.append(len(options["inputs_embeds"]))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*args, **options)

    monkeypatch.setattr(llama64.hf, "forward", small)
    found = integrals(llama64, examples, PAPER, memory=Memory(10_000))
    assert failures == [15, 8]  # the other seven are known not to fit ... and are tried, being fewer
    for ig, right in zip(found, expected, strict=True):
        assert ig == pytest.approx(right, abs=1e-6 * right.abs().max().item())


def test_the_budget_is_what_a_forward_pass_keeps(llama64: HuggingFaceModel, examples: list[Example]) -> None:
    weight, x = torch.nn.Parameter(torch.ones(8, 4)), torch.ones(100, 8, requires_grad=True)
    assert kept_bytes(lambda: (x @ weight).exp().sin()) == 100 * 8 * 4 + 100 * 4 * 4  # x, and what exp gives, once

    memory = measured(lambda: (x @ weight).exp(), tokens=100, share="1GiB", device=torch.device("cpu"))
    assert memory.pass_tokens == memory_module.MOST_TOKENS["cpu"]
    memory = measured(lambda: (x @ weight).exp(), tokens=100, share="0.01MiB", device=torch.device("cpu"))
    assert memory.pass_tokens == 128
    assert [rounded_down(tokens) for tokens in (64, 95, 96, 130, 191, 192)] == [64, 64, 96, 128, 128, 192]
    engine = fast.engine_of("fast", llama64, examples, PAPER, memory="2MiB")
    assert 64 <= engine.pass_tokens < memory_module.MOST_TOKENS["cpu"]


def test_a_share_is_read_and_nonsense_refused() -> None:
    assert parse_share("60%")(1000) == 600
    assert parse_share(" 2 gib")(7) == 2 << 30
    for share in ("", "60", "0%", "120%", "8GB", "-1%"):
        with pytest.raises(ValueError, match="expected a share of what is free, '60%', or an amount, '8GiB'"):
            parse_share(share)
    assert free_bytes(torch.device("cpu")) > 1 << 20
    with pytest.raises(ValueError, match="there is no engine 'slow'; there are fast, reference"):
        fast.engine_of("slow", object())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pass_tokens is 0"):
        Memory(0)


def test_the_reference_is_behind_the_same_interface(llama64: HuggingFaceModel, examples: list[Example]) -> None:
    engine = fast.engine_of("reference", llama64, examples, PAPER)
    assert (engine.name, engine.pass_tokens) == ("reference", 0)
    assert engine.batches(examples, PAPER) == [[0], [1], [2]]
    (a,) = engine.scores(examples[:1], PAPER)
    assert torch.equal(a, grains.attribute(llama64, examples[0], PAPER).a)


def test_the_hyper_parameters_say_how_many_gradients_an_example_takes() -> None:
    from grains_ref.fast.rows import points_of_path

    counts = {"integrated_gradients": 4, "gradient": 1, "smoothgrad": 6, "random": 0}
    for name, count in counts.items():
        assert points_of_path(HyperParameters(m=4, n=6, attribution=name)) == count  # type: ignore[arg-type]
