"""Attribution, eq. (2) and App. B: closed forms, finite differences, and Captum."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from captum.attr import IntegratedGradients
from hypothesis import given
from hypothesis import strategies as st
from shared import first_quick
from torch import Tensor
from toys import FunctionModel, ToyDecoder, encoded, linear, polynomial, quadratic

from grains_ref.grains import (
    AttributionMethod,
    Example,
    HyperParameters,
    Quadrature,
    attribute,
    gradient_times_input,
    integrated_gradients,
    objective,
    quadrature_rule,
    random_scores,
    smoothgrad,
)
from grains_ref.models import HuggingFaceModel

pytestmark = pytest.mark.cpu

T, D = 5, 7
RULES: list[Quadrature] = ["right", "midpoint", "gauss_legendre"]
STEPS = st.integers(1, 23)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, BASELINE, WEIGHT, ZERO = drawn(1, T, D), drawn(2, T, D), drawn(3, T, D), torch.zeros(T, D, dtype=torch.float64)


def close(got: Tensor, expected: Tensor, rtol: float = 1e-12) -> None:
    torch.testing.assert_close(got, expected, rtol=rtol, atol=rtol)


# --- the quadrature


@given(m=STEPS, quadrature=st.sampled_from(RULES))
def test_weights_sum_to_one_and_no_node_is_at_the_baseline(m: int, quadrature: Quadrature) -> None:
    nodes, weights = quadrature_rule(quadrature, m)
    assert len(nodes) == len(weights) == m
    assert math.fsum(weights) == pytest.approx(1, abs=1e-14)
    assert min(weights) > 0
    assert 0 < min(nodes) <= max(nodes) <= 1
    assert nodes == sorted(nodes)


def test_right_riemann_has_the_nodes_of_the_paper() -> None:
    assert quadrature_rule("right", 5) == ([0.2, 0.4, 0.6, 0.8, 1.0], [0.2] * 5)


def test_an_unknown_quadrature_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="quadrature is 'left'; expected one of right, midpoint, gauss_legendre"):
        quadrature_rule("left", 5)  # type: ignore[arg-type]


# --- closed forms


@given(m=STEPS, quadrature=st.sampled_from(RULES))
def test_a_linear_function_is_attributed_exactly_by_every_rule(m: int, quadrature: Quadrature) -> None:
    got = integrated_gradients(linear(WEIGHT), X, BASELINE, m=m, quadrature=quadrature)
    close(got.ig, WEIGHT * (X - BASELINE))
    close(got.a, (WEIGHT * (X - BASELINE)).sum(1))
    assert got.gap == pytest.approx(0, abs=1e-12)


@given(m=STEPS)
def test_a_quadratic_function_leaves_the_gap_of_right_riemann(m: int) -> None:
    # Along the path the gradient is 2 w (b + alpha (x - b)); the mean of the nodes j / m is 1/2 + 1/(2m), so every
    # attribution exceeds the exact w (x^2 - b^2) by w (x - b)^2 / m.
    excess = WEIGHT * (X - BASELINE) ** 2 / m
    got = integrated_gradients(quadratic(WEIGHT), X, BASELINE, m=m)
    close(got.ig, WEIGHT * (X**2 - BASELINE**2) + excess)
    assert got.gap == pytest.approx(-excess.sum().item(), rel=1e-10)


@given(m=STEPS, p=st.integers(1, 6))
def test_a_polynomial_gives_the_sum_of_powers_of_its_nodes(m: int, p: int) -> None:
    powers = {  # Faulhaber: 1^(p-1) + ... + m^(p-1)
        1: m,
        2: m * (m + 1) / 2,
        3: m * (m + 1) * (2 * m + 1) / 6,
        4: m**2 * (m + 1) ** 2 / 4,
        5: m * (m + 1) * (2 * m + 1) * (3 * m**2 + 3 * m - 1) / 30,
        6: m**2 * (m + 1) ** 2 * (2 * m**2 + 2 * m - 1) / 12,
    }[p]
    got = integrated_gradients(polynomial(WEIGHT, p), X, ZERO, m=m)
    close(got.ig, WEIGHT * X**p * p * powers / m**p)


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_gauss_legendre_is_exact_to_degree_2m_minus_1_and_not_beyond(m: int) -> None:
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)

    def integral_of_power(degree: int) -> float:  # of alpha ** degree: the gradient of x ** (degree + 1) / (degree + 1)
        f = polynomial(one / (degree + 1), degree + 1)
        return integrated_gradients(f, one, zero, m=m, quadrature="gauss_legendre").ig.item()

    for degree in range(2 * m):
        assert integral_of_power(degree) == pytest.approx(1 / (degree + 1), rel=1e-13)
    known_error = math.factorial(m) ** 4 / ((2 * m + 1) * math.factorial(2 * m) ** 2)
    assert 1 / (2 * m + 1) - integral_of_power(2 * m) == pytest.approx(known_error, rel=1e-9)


def test_midpoint_is_exact_for_quadratics_and_not_beyond() -> None:
    close(integrated_gradients(quadratic(WEIGHT), X, BASELINE, m=3, quadrature="midpoint").ig,
          WEIGHT * (X**2 - BASELINE**2))  # fmt: skip
    # The mean of ((j - 1/2) / m)^2 is 1/3 - 1/(12 m^2).
    close(integrated_gradients(polynomial(WEIGHT, 3), X, ZERO, m=3, quadrature="midpoint").ig,
          WEIGHT * X**3 * 3 * (1 / 3 - 1 / 108))  # fmt: skip


def test_f_is_reported_at_both_ends_and_the_gap_is_their_difference_less_the_scores() -> None:
    f = polynomial(WEIGHT, 3)
    got = integrated_gradients(f, X, BASELINE, m=4)
    assert (got.f_x, got.f_baseline) == (f(X[None]).item(), f(BASELINE[None]).item())
    assert got.gap == pytest.approx(got.f_x - got.f_baseline - got.a.sum().item())
    assert abs(got.gap) > 0.1
    assert abs(integrated_gradients(f, X, BASELINE, m=4000).gap) < 0.01


def test_the_gap_closes_on_a_decoder_as_the_steps_grow(toy: ToyDecoder) -> None:
    example = Example(toy.encode([3, 17, 9]), torch.tensor([7, 11]), torch.tensor([5]))
    f, x = objective(toy, example, HyperParameters()), example.encoded.embeds
    got = integrated_gradients(f, x, toy.baseline(example.encoded, "padding"), m=30, quadrature="gauss_legendre")
    assert abs(got.gap) < 1e-5 * abs(got.f_x - got.f_baseline)


# --- the gradient


def test_the_gradient_is_the_slope_of_f_in_any_direction(toy: ToyDecoder) -> None:
    example = Example(toy.encode([3, 17, 9, 25], left_padding=2), torch.tensor([7, 11]), torch.tensor([5, 8, 13]))
    f, x = objective(toy, example, HyperParameters()), example.encoded.embeds
    gradient = gradient_times_input(f, x, x - 1).ig  # times an input of 1
    for seed in range(5):
        step = 1e-5 * drawn(seed, *x.shape)
        slope = (f((x + step)[None]) - f((x - step)[None])).item() / 2
        assert (gradient * step).sum().item() == pytest.approx(slope, rel=1e-6)


def test_padding_gets_no_attribution(toy: ToyDecoder) -> None:
    example = Example(toy.encode([3, 17, 9, 25], left_padding=3), torch.tensor([7, 11]), torch.tensor([5]))
    a = attribute(toy, example, HyperParameters()).a
    assert a[:3].tolist() == [0, 0, 0]
    assert a[3:].abs().min() > 0


def test_only_the_prompt_moves_along_the_path_and_only_it_is_scored(toy: ToyDecoder) -> None:
    fed: list[Tensor] = []

    class Watched(ToyDecoder):
        def forward(self, inputs: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
            fed.append(inputs.detach())
            return super().forward(inputs, attention_mask)

    y = torch.tensor([7, 11, 2])
    example = Example(toy.encode([3, 17, 9, 25]), y, y[:1])
    got = attribute(Watched(), example, HyperParameters(objective="likelihood"))
    assert got.ig.shape == (4, toy.width)
    assert len(fed) == 5 + 2
    for inputs in fed:
        assert torch.equal(inputs[:, 4:6], toy.embed(y[None, :2]))


def test_gradient_times_input_is_one_step_of_right_riemann(toy: ToyDecoder) -> None:
    example = Example(toy.encode([3, 17, 9, 25]), torch.tensor([7, 11]), torch.tensor([5]))
    for baseline in ("zero", "padding"):
        one_step, gradient = (
            attribute(toy, example, HyperParameters(m=1, attribution=method, path_baseline=baseline))
            for method in ("integrated_gradients", "gradient")
        )
        assert torch.equal(one_step.ig, gradient.ig)
        assert one_step.f_baseline == gradient.f_baseline


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_summed_in_float32(dtype: torch.dtype) -> None:
    x, weight = torch.ones(1, 3, dtype=dtype), torch.full((1, 3), 1.5, dtype=dtype)
    zero, m = torch.zeros_like(x), 1000  # in bfloat16, 1.5 / 1000 added a thousand times stops well short of 1.5
    for got in (
        integrated_gradients(linear(weight), x, zero, m=m),
        smoothgrad(linear(weight), x, zero, n=m, sigma=0.1, generator=torch.Generator()),
    ):
        assert got.ig.dtype == got.a.dtype == torch.float32
        close(got.ig, weight.float(), rtol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_refused_and_says_where(bad: float) -> None:
    weight = WEIGHT.clone()
    weight[3, 2] = bad
    with pytest.raises(FloatingPointError, match=r"at alpha = 0\.2 is not finite.*another path baseline"):
        integrated_gradients(linear(weight), X, ZERO, m=5)
    with pytest.raises(FloatingPointError, match="at x is not finite"):
        gradient_times_input(linear(weight), X, ZERO)
    with pytest.raises(FloatingPointError, match="at noisy sample 0 is not finite"):
        smoothgrad(linear(weight), X, ZERO, n=2, sigma=0.1, generator=torch.Generator())


@pytest.mark.parametrize(("x", "baseline"), [(X, ZERO[:1]), (X, ZERO[0]), (X[0], ZERO[0])])
def test_a_baseline_of_another_shape_is_refused_even_if_it_would_broadcast(x: Tensor, baseline: Tensor) -> None:
    f: Callable[[Tensor], Tensor] = lambda z: z.flatten(1).sum(1)  # noqa: E731
    for method in (integrated_gradients, gradient_times_input):
        with pytest.raises(ValueError, match="must both be"):
            method(f, x, baseline, **({"m": 2} if method is integrated_gradients else {}))


def test_attribution_leaves_no_gradients_on_the_model_and_works_without_grad_mode(llama: HuggingFaceModel) -> None:
    example = llama.example("The capital of France", "Paris", "Rome")
    with torch.no_grad():
        got = attribute(llama, example, HyperParameters(m=2))
    assert not got.a.requires_grad
    assert not any(p.requires_grad or p.grad is not None for p in llama.hf.parameters())


# --- SmoothGrad and random scores


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_smoothgrad_on_a_quadratic_is_the_gradient_at_the_mean_noisy_copy() -> None:
    n, sigma, stream = 4, 0.3, generator()
    noise = sum(torch.randn(T, D, generator=stream) for _ in range(n)) / n * sigma * X.std()
    got = smoothgrad(quadratic(WEIGHT), X, BASELINE, n=n, sigma=sigma, generator=generator())
    close(got.ig, (X - BASELINE) * 2 * WEIGHT * (X + noise), rtol=1e-6)


def test_smoothgrad_without_noise_is_the_gradient() -> None:
    f = polynomial(WEIGHT, 3)
    got = smoothgrad(f, X, BASELINE, n=3, sigma=1e-9, generator=generator())
    close(got.ig, gradient_times_input(f, X, BASELINE).ig, rtol=1e-7)


def test_smoothgrad_depends_on_its_generator_alone() -> None:
    f = polynomial(WEIGHT, 3)
    draws = []
    for seed in (5, 5, 6):
        torch.manual_seed(len(draws))  # the global stream must not matter
        draws.append(smoothgrad(f, X, BASELINE, n=3, sigma=0.2, generator=generator(seed)).ig)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def examples(toy: ToyDecoder) -> list[Example]:
    prompts = [[3, 17, 9], [4, 2], [3, 17, 10, 8]]
    return [Example(toy.encode(ids), torch.tensor([7, 11]), torch.tensor([5])) for ids in prompts]


@pytest.mark.parametrize("method", ["random", "smoothgrad"])
def test_drawn_numbers_do_not_depend_on_the_order_of_the_examples(toy: ToyDecoder, method: AttributionMethod) -> None:
    hp = HyperParameters(attribution=method, n=2)
    forward = [attribute(toy, example, hp).a for example in examples(toy)]
    backward = [attribute(toy, example, hp).a for example in reversed(examples(toy))]
    assert all(torch.equal(a, b) for a, b in zip(forward, reversed(backward), strict=True))
    other_seed = attribute(toy, examples(toy)[0], HyperParameters(attribution=method, n=2, seed=1)).a
    assert not torch.equal(other_seed, forward[0])
    assert forward[0][0] != forward[2][0]  # another prompt, another draw, although it begins alike


def test_random_scores_are_standard_normal_and_spread_over_the_width() -> None:
    x = torch.zeros(4001, 3)
    got = random_scores(linear(x), x, x, generator=generator())
    assert abs(got.a.mean()) < 4 / 4001**0.5
    assert abs(got.a.std() - 1) < 4 / 8002**0.5
    assert 0.47 < (got.a > 0).float().mean() < 0.53
    close(got.ig, (got.a / 3)[:, None].expand(-1, 3), rtol=1e-6)


def test_each_method_name_runs_its_method() -> None:
    x = encoded(X)
    model = FunctionModel(score=polynomial(WEIGHT, 3), states=lambda z: z[:, :1])
    example = Example(x, torch.tensor([1]), torch.tensor([0]))  # f is the polynomial itself
    f, baseline = polynomial(WEIGHT, 3), torch.ones_like(X)

    def scores(**hp: Any) -> Tensor:
        return attribute(model, example, HyperParameters(path_baseline="one", **hp)).ig

    close(scores(m=3, quadrature="midpoint"), integrated_gradients(f, X, baseline, m=3, quadrature="midpoint").ig)
    close(scores(m=4), integrated_gradients(f, X, baseline, m=4).ig)
    close(scores(attribution="gradient"), gradient_times_input(f, X, baseline).ig)
    assert not torch.equal(scores(attribution="smoothgrad", n=2), scores(attribution="smoothgrad", n=3))
    assert not torch.equal(scores(attribution="smoothgrad"), scores(attribution="smoothgrad", sigma=0.3))
    assert torch.equal(scores(attribution="random"), scores(attribution="random", m=7))


# --- Captum


def captum_forward(model: HuggingFaceModel | ToyDecoder) -> Callable[..., Tensor]:
    """f of eq. (1) from the bare network; the attention mask is an argument, which Captum repeats for its steps."""

    def log_p(embeds: Tensor, mask: Tensor, y: Tensor) -> Tensor:
        network = model if isinstance(model, ToyDecoder) else model.hf
        inputs = torch.cat([embeds, model.embed(y).expand(len(embeds), -1, -1)], 1)
        mask = torch.cat([mask, mask.new_ones(len(mask), len(y))], 1)
        if isinstance(model, ToyDecoder):
            logits, _ = network(inputs, mask)
        else:
            logits = network(
                inputs_embeds=inputs, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(0)
            ).logits
        rows = logits[:, embeds.shape[1] - 1 : -1].log_softmax(-1)
        return torch.stack([rows[:, r, token] for r, token in enumerate(y.tolist())]).sum(0)

    def f(embeds: Tensor, mask: Tensor, y_pos: list[int], y_neg: list[int]) -> Tensor:
        return log_p(embeds, mask, torch.tensor(y_pos)) - log_p(embeds, mask, torch.tensor(y_neg))

    return f


CAPTUM = {"right": "riemann_right", "gauss_legendre": "gausslegendre"}  # our names of the rules, and Captum's


def difference_from_captum(
    model: HuggingFaceModel | ToyDecoder, example: Example, name: str, m: int, rules: Sequence[Quadrature]
) -> float:
    """Largest difference of the two (T, d) attributions over the rules, relative to the largest attribution."""
    worst = 0.0
    for quadrature in rules:
        hp = HyperParameters(m=m, quadrature=quadrature, path_baseline=name)
        ours = attribute(model, example, hp)
        theirs = IntegratedGradients(captum_forward(model)).attribute(
            example.encoded.embeds[None],
            baselines=model.baseline(example.encoded, name)[None],
            additional_forward_args=(
                example.encoded.replay["attention_mask"][None],
                example.y_pos.tolist(),
                example.y_neg.tolist(),
            ),
            method=CAPTUM[quadrature],
            n_steps=m,
        )[0]
        assert ours.ig.abs().max() > 1e-3
        worst = max(worst, ((ours.ig - theirs).abs().max() / theirs.abs().max()).item())
    return worst


@pytest.mark.parametrize(("m", "padding"), first_quick([(5, 3), (10, 0)]))
def test_captum_agrees_on_a_float64_decoder(toy: ToyDecoder, m: int, padding: int) -> None:
    # Captum rounds its nodes and weights to float32, about 3e-8 each.
    x = toy.encode([3, 17, 9, 25, 4, 30], left_padding=padding)
    example = Example(x, torch.tensor([7, 11, 2]), torch.tensor([5, 8, 13, 29, 1]))
    worst = max(difference_from_captum(toy, example, name, m, list(CAPTUM)) for name in ("zero", "padding"))
    print(f"ToyDecoder, m = {m}, left padding {padding}: largest relative difference from Captum {worst:.1e}")
    assert worst < 2e-7


@pytest.mark.parametrize(("m", "padding", "name", "rule"), [(4, 3, "zero", "right"), (3, 0, "mean", "gauss_legendre")])
def test_captum_agrees_on_real_architectures(
    model64: HuggingFaceModel, m: int, padding: int, name: str, rule: Quadrature
) -> None:
    # float64 weights, but transformers keeps norms and rotary angles in float32.
    prompt = "Q: Is the moon made of cheese? A:"
    x = model64.encode(prompt, left_padding=padding)
    example = Example(
        x, model64.response_ids(prompt, "No, it is rock."), model64.response_ids(prompt, "Yes, people say so.")
    )  # fmt: skip
    assert len(example.y_pos) > 2
    assert len(example.y_neg) > 2
    worst = difference_from_captum(model64, example, name, m, [rule])
    print(f"{model64.name}, float64, m = {m}, {name}, {rule}: largest relative difference from Captum {worst:.1e}")
    assert worst < 1e-6
