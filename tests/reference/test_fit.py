"""All stages together: `fit`, its symmetries, and the hyper-parameters."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from shared import first_quick
from torch import Tensor
from toys import FunctionModel, ToyDecoder, encoded

from grains_ref.grains import (
    PRESETS,
    DegenerateShiftsError,
    Example,
    Fit,
    HyperParameters,
    Shift,
    Steering,
    attribute,
    fit,
    objective,
    shift,
    vectors,
)
from grains_ref.models import HuggingFaceModel

pytestmark = pytest.mark.cpu

PAPER = HyperParameters()
PAIRS = [  # prompts of different lengths, answers of different lengths
    ([3, 17, 9, 25, 4], [7, 11, 2], [5, 8]),
    ([28, 17, 12], [7], [5, 8, 13]),
    ([3, 6, 9, 25, 4, 14, 22], [11, 2], [1, 8]),
    ([19, 17, 9, 30], [7, 20, 2], [5, 16]),
    ([3, 10, 9, 27, 4, 26], [24, 2], [5, 8, 13, 29]),
    ([15, 17, 18, 25, 4], [7, 11, 21], [23]),
]


def toy_examples(toy: ToyDecoder, left_padding: int = 0) -> list[Example]:
    return [
        Example(toy.encode(x, left_padding=left_padding), torch.tensor(y_pos), torch.tensor(y_neg))
        for x, y_pos, y_neg in PAIRS
    ]


def close(got: Tensor, expected: Tensor, tol: float = 1e-9) -> None:
    torch.testing.assert_close(got, expected, rtol=tol, atol=tol)


def swapped(example: Example) -> Example:
    return dataclasses.replace(example, y_pos=example.y_neg, y_neg=example.y_pos)


def shift_of(model: Any, example: Example, hp: HyperParameters = PAPER) -> Shift:
    return shift(model, example, attribute(model, example, hp).a, hp)


@pytest.fixture(scope="module")
def shifts(toy: ToyDecoder) -> list[Shift]:
    """Those of the pairs, under the paper's settings."""
    return [shift_of(toy, example) for example in toy_examples(toy)]


@pytest.fixture(scope="module")
def fitted(toy: ToyDecoder) -> Fit:
    """The pairs under the paper's settings."""
    return fit(toy, toy_examples(toy), PAPER)


# --- ground truth


def by_hand(toy: ToyDecoder, k: int, name: str) -> np.ndarray:
    """Eq. (3) to (6) once more, in NumPy, from the scores and the bare network."""
    sides: dict[int, list[np.ndarray]] = {+1: [], -1: []}
    for (ids, _, _), example in zip(PAIRS, toy_examples(toy), strict=True):
        scores = attribute(toy, example, HyperParameters(k=k, m=2, path_baseline=name)).a.numpy()
        for sign, deltas in sides.items():
            best = [j for j in np.argsort(-sign * scores, kind="stable") if sign * scores[j] > 0][:k]
            x = toy.embed.weight[ids]
            x_masked = x.clone()
            for j in best:
                x_masked[j] = 0
            (_, h), (_, h_masked) = (toy(z[None], torch.ones(1, len(ids))) for z in (x, x_masked))
            deltas.append((h - h_masked)[0, :, -1].numpy())
    directions = []
    for deltas in sides.values():
        D = np.stack(deltas)  # (N, L, d)
        layers = []
        for layer in range(D.shape[1]):
            centred = D[:, layer] - D[:, layer].mean(0)
            _, eigenvectors = np.linalg.eigh(centred.T @ centred)
            layers.append(eigenvectors[:, -1] * np.sign(eigenvectors[:, -1] @ D[:, layer].mean(0)))
        directions.append(np.stack(layers))
    return directions[0] - directions[1]


@pytest.mark.parametrize(("k", "name"), first_quick([(1, "zero"), (3, "zero"), (2, "padding")]))
def test_every_stage_together_gives_what_numpy_gives(toy: ToyDecoder, k: int, name: str) -> None:
    got = fit(toy, toy_examples(toy), HyperParameters(k=k, m=2, path_baseline=name))
    close(got.v, torch.from_numpy(by_hand(toy, k, name)), 1e-8)
    assert got.v.dtype == torch.float64
    assert torch.equal(got.v, got.pos.v - got.neg.v)


def test_planted_directions_are_found_and_the_vector_points_to_the_preferred_answer() -> None:
    # The first component of a token is its evidence for token 1. Evidence for it moves the hidden state along `u`,
    # evidence against it along `w`; the other components move it at random and little.
    generator = torch.Generator().manual_seed(3)
    T, d, L = 6, 5, 2
    u, w = torch.nn.functional.normalize(torch.randn(2, L, 11, generator=generator), dim=-1).double()
    noise = 0.05 * torch.randn(L, 11, d - 1, generator=generator).double()

    def states(z: Tensor) -> Tensor:
        evidence = z[..., 0]
        planted = evidence.clamp(min=0).sum(1)[:, None, None] * u - evidence.clamp(max=0).sum(1)[:, None, None] * w
        return planted + torch.einsum("lij,btj->bli", noise, z[..., 1:])

    model = FunctionModel(score=lambda z: z[..., 0].sum(1), states=states)
    prompts = [encoded(torch.randn(T, d, generator=generator).double()) for _ in range(60)]
    example = [Example(x, torch.tensor([1]), torch.tensor([0])) for x in prompts]
    got = fit(model, example, HyperParameters(k=1))
    close(shift_of(model, example[0]).a, prompts[0].embeds[:, 0])  # a linear f is attributed exactly
    assert (got.pos.v * u).sum(1).min() > 0.98
    assert (got.neg.v * w).sum(1).min() > 0.98
    close(got.v, u - w, 0.2)


def test_steering_with_the_vector_raises_the_preference_it_was_fitted_for(toy: ToyDecoder) -> None:
    # A plain sanity check on a random model, with the mean shift, whose effect does not depend on the spread.
    examples = toy_examples(toy)
    got = fit(toy, examples, HyperParameters(aggregation="mean", k=2, m=2))

    def preference(lam: float) -> float:
        with Steering(toy.blocks, got.v, lam=lam):
            return sum(objective(toy, e, PAPER)(e.encoded.embeds[None]).item() for e in examples)

    assert preference(0.3) > preference(0.0) > preference(-0.3)


# --- symmetries


def test_swapping_the_responses_negates_scores_and_vector_and_exchanges_the_sets(
    toy: ToyDecoder, shifts: list[Shift]
) -> None:
    others = [shift_of(toy, swapped(example)) for example in toy_examples(toy)]
    for one, other in zip(shifts, others, strict=True):
        assert torch.equal(one.a, -other.a)
        assert (one.selection.pos, one.selection.neg) == (other.selection.neg, other.selection.pos)
        close(one.delta_pos, other.delta_neg)
        close(one.delta_neg, other.delta_pos)
    v = vectors(shifts, PAPER).v
    close(v, -vectors(others, PAPER).v)
    assert v.norm() > 0.1


def test_swapping_the_responses_negates_the_vector_of_a_real_architecture(model: HuggingFaceModel) -> None:
    prompts = ["The capital of France", "Is the earth flat?", "Tell me"]
    examples = [model.example(prompt, "No, it is round.", "Rome.") for prompt in prompts]
    one, other = (fit(model, data, HyperParameters(k=2, m=2)) for data in (examples, [swapped(e) for e in examples]))
    close(one.v, -other.v, 1e-4)


def test_neither_order_nor_duplication_of_the_data_changes_the_vector(
    toy: ToyDecoder, shifts: list[Shift], fitted: Fit
) -> None:
    examples = toy_examples(toy)
    close(fit(toy, [examples[i] for i in (5, 3, 1, 0, 2, 4)], PAPER).v, fitted.v)
    for order in ([0, 1, 2, 3, 4, 5] * 2, [4, 4, 0, 1, 5, 2, 3, 3, 2, 5, 1, 0]):
        close(vectors([shifts[i] for i in order], PAPER).v, fitted.v)


@pytest.mark.parametrize("padding", [1, 4])
def test_padding_changes_neither_scores_nor_shifts_nor_vector(
    toy: ToyDecoder, shifts: list[Shift], padding: int
) -> None:
    others = [shift_of(toy, example) for example in toy_examples(toy, left_padding=padding)]
    for one, other in zip(shifts, others, strict=True):
        close(other.a[padding:], one.a)
        assert other.selection.pos == tuple(j + padding for j in one.selection.pos)
        assert other.selection.neg == tuple(j + padding for j in one.selection.neg)
        close(other.delta_pos, one.delta_pos)
        close(other.delta_neg, one.delta_neg)
    close(vectors(others, PAPER).v, vectors(shifts, PAPER).v)


def test_padding_changes_no_score_of_a_real_architecture(model: HuggingFaceModel) -> None:
    plain = model.example("What is the capital of Spain?", "It is Madrid.", "It is Rome, people say.")
    padded = dataclasses.replace(plain, encoded=model.encode("What is the capital of Spain?", left_padding=3))
    one, other = (attribute(model, example, HyperParameters(m=2)) for example in (plain, padded))
    assert other.a[:3].count_nonzero() == 0
    close(other.a[3:], one.a, 1e-4 * one.a.abs().max().item())


@pytest.mark.parametrize("c", [0.25, 3.0])
def test_scaling_the_vector_and_dividing_the_strength_leaves_the_logits(toy: ToyDecoder, fitted: Fit, c: float) -> None:
    v, x = fitted.v, toy.encode([3, 17, 9])
    logits = []
    for vector, lam in ((v, 1.5), (c * v, 1.5 / c)):
        with Steering(toy.blocks, vector, lam=lam):
            logits.append(toy.logits(x, x.embeds[None], torch.tensor([1, 2])))
    close(logits[0], logits[1])


# --- what the hyper-parameters do


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eligible": "content"}, r"eligible is 'content'; expected a tuple of rules"),
        ({"eligible": ["content"]}, r"expected a tuple of rules"),
        ({"components": 2, "aggregation": "mean"}, "components = 2 needs the aggregation pca or uncentred"),
        ({"components": 2, "aggregation": "weighted_mean"}, "components = 2 needs the aggregation pca or uncentred"),
    ],
)
def test_hyper_parameters_that_would_be_ignored_or_misread_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HyperParameters(**change)


def test_every_hyper_parameter_reaches_its_stage(toy: ToyDecoder) -> None:
    examples, seen = toy_examples(toy)[:3], []
    for change in (
        {},
        {"k": 1},
        {"m": 3},
        {"quadrature": "midpoint"},
        {"objective": "likelihood"},
        {"attribution": "gradient"},
        {"attribution": "smoothgrad"},
        {"attribution": "smoothgrad", "n": 3},
        {"attribution": "smoothgrad", "sigma": 2.0},
        {"attribution": "random"},
        {"attribution": "random", "seed": 1},
        {"path_baseline": "padding"},
        {"mask_baseline": "padding"},
        {"eligible": ("not_last",)},
        {"aggregation": "uncentred"},
        {"aggregation": "mean"},
        {"aggregation": "weighted_mean"},
        {"components": 2},
    ):
        hp = HyperParameters(**{"k": 2, "m": 2, "n": 2, **change})  # type: ignore[arg-type]
        found = [shift_of(toy, example, hp) for example in examples]
        result = torch.cat([found[0].a, vectors(found, hp).v.flatten()])
        assert all((result - other).abs().max() > 1e-6 for other in seen), change
        seen.append(result)


def test_a_weighted_mean_weighs_each_example_by_the_scores_of_its_selected_tokens(toy: ToyDecoder) -> None:
    hp = HyperParameters(k=2, m=2, aggregation="weighted_mean")
    found = [shift_of(toy, example, hp) for example in toy_examples(toy)]
    got = vectors(found, hp)
    for v, sign, name in ((got.pos.v, 1, "pos"), (got.neg.v, -1, "neg")):
        mean = sum(
            sign * s.a[list(getattr(s.selection, name))].sum() * getattr(s, f"delta_{name}")
            for s in found
        )  # fmt: skip
        close(v, mean / mean.norm(dim=1, keepdim=True))


def test_fewer_than_k_tokens_of_a_sign_show_in_the_selection(toy: ToyDecoder) -> None:
    got = shift_of(toy, toy_examples(toy)[1], HyperParameters(k=20))
    n_pos, n_neg = ((sign * got.a > 0).sum() for sign in (1, -1))
    assert (len(got.selection.pos), len(got.selection.neg)) == (n_pos, n_neg)
    assert n_pos + n_neg == 3


def test_data_without_a_direction_are_refused(toy: ToyDecoder) -> None:
    example = toy_examples(toy)[0]
    with pytest.raises(ValueError, match="no examples: at least two different shifts are needed"):
        fit(toy, [], PAPER)
    with pytest.raises(DegenerateShiftsError, match="layer 0: the 1 shifts are all equal"):
        fit(toy, [example], PAPER)
    with pytest.raises(DegenerateShiftsError, match="layer 0: all 2 shifts are zero"):
        fit(toy, toy_examples(toy)[:2], HyperParameters(eligible=("text", "image")))  # leaves no token


def test_results_hold_no_graph_and_live_on_the_cpu(shifts: list[Shift], fitted: Fit) -> None:
    got = shifts[0]
    assert not any(t.requires_grad for t in (got.delta_pos, got.delta_neg, got.a))
    assert isinstance(fitted, Fit)


@pytest.mark.parametrize("name", ["k", "m", "n", "components"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
def test_a_count_that_is_no_whole_number_of_at_least_one_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value!r}; expected a whole number of at least 1"):
        HyperParameters(**{name: value})


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_a_noise_that_is_not_positive_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match=r"sigma is .*; expected a positive number"):
        HyperParameters(sigma=sigma)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quadrature": "left"}, "quadrature is 'left'; expected one of right, midpoint, gauss_legendre"),
        ({"objective": "margin"}, "objective is 'margin'; expected one of preference, likelihood"),
        ({"attribution": "lrp"}, "attribution is 'lrp'; expected one of integrated_gradients, gradient, smoothgrad"),
        ({"aggregation": "median"}, "aggregation is 'median'; expected one of pca, uncentred, mean, weighted_mean"),
        ({"eligible": ("text", "first")}, "eligible rule is 'first'; expected one of text, image, content"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HyperParameters(**options)


def test_the_presets_are_the_papers_settings() -> None:
    paper = {"quadrature": "right", "objective": "preference", "attribution": "integrated_gradients", "components": 1}
    paper |= {"path_baseline": "zero", "mask_baseline": "zero", "eligible": (), "aggregation": "pca"}
    for name, k, m in (("paper_llm", 3, 5), ("paper_vlm", 20, 5), ("paper_gemma", 20, 10)):
        got = dataclasses.asdict(PRESETS[name])
        assert {key: got[key] for key in ("k", "m", *paper)} == {"k": k, "m": m, **paper}
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAPER.k = 5  # type: ignore[misc]
