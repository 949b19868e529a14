"""methods/edit_gradient.py: its derivative against finite differences and a closed form, its scale, and its file."""

from __future__ import annotations

import dataclasses
import statistics
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from shared import first_quick
from torch import Tensor, nn
from toys import encoded

from grains_ref.data import PreferencePair
from grains_ref.demo import planted as demo
from grains_ref.evaluation.measures import margins
from grains_ref.fitting.edit_gradient import steering_vectors_of
from grains_ref.grains import DegenerateShiftsError, Example
from grains_ref.methods.core import site_width
from grains_ref.methods.edit_gradient import (
    LAMS,
    EditGradient,
    EditPositions,
    EditSite,
    derivative,
    fit,
    predicted_slope,
    steer,
)
from grains_ref.methods.from_file import steering_of, width_at_site
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.random_models import random_llama
from grains_ref.tiny_models.random_vision_models import random_gemma3_text
from grains_ref.tiny_models.worlds import build_world
from grains_ref.vectors import MismatchError, SteeringVectors

pytestmark = pytest.mark.cpu

SITES: tuple[EditSite, ...] = ("residual", "attention_output", "heads", "mlp")
POSITIONS: tuple[EditPositions, ...] = ("all", "after_prompt")


def pair(prompt: str, chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(prompt, prompt, chosen, rejected, where="made up")


PAIRS = [
    pair("Q: What is the capital of France? A:", "Paris.", "Rome, of course."),
    pair("Is the earth flat?", "No, it is round.", "Yes"),
    pair("The moon is made of", "rock", "green cheese"),
]


@pytest.fixture(scope="module", params=first_quick([random_llama, random_gemma3_text]), ids=["llama", "gemma3_text"])
def wide(request: pytest.FixtureRequest) -> HuggingFaceModel:
    """In float64 but for transformers' own float32 islands; Gemma's sub-layers are normalised behind the site, too."""
    model: HuggingFaceModel = request.param(dtype=torch.float64)
    return model


def random_v(model: HuggingFaceModel, site: EditSite) -> Tensor:
    shape = (len(model.blocks), site_width(model, site))
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def mean_f(model: HuggingFaceModel, pairs: Sequence[PreferencePair] = PAIRS) -> float:
    return statistics.mean(margins(model, pairs))


# --- the derivative


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("site", SITES)
def test_it_is_the_slope_of_the_very_edit_that_steers(
    wide: HuggingFaceModel, site: EditSite, positions: EditPositions
) -> None:
    """Central differences of scored, cached, left-padded answers under `steer`."""
    v, step = random_v(wide, site), 1e-3
    ends = []
    for lam in (step, -step):
        with steer(wide, v, site=site, positions=positions, lam=lam):
            ends.append(mean_f(wide))
    examples = [wide.example(p.prompt, p.chosen, p.rejected) for p in PAIRS]
    found = [derivative(wide, example, site=site, positions=positions) for example in examples]
    slope = statistics.mean(predicted_slope(of_pair.g, v) for of_pair in found)
    assert abs(slope) > 0.01
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("site", ["attention_output", "heads", "mlp"])
def test_at_another_edit_it_is_the_slope_there(wide: HuggingFaceModel, site: EditSite) -> None:
    """Central differences about an edit that bends f, of which the derivative at zero knows nothing."""
    start, v, step = random_v(wide, site), random_v(wide, site).flip(0), 3e-3
    ends = []
    for lam in (step, -step):
        with steer(wide, start + lam * v, site=site, positions="all", lam=1.0):
            ends.append(torch.tensor(margins(wide, PAIRS), dtype=torch.float64))

    def slopes(at: Tensor | None) -> list[float]:
        examples = [wide.example(p.prompt, p.chosen, p.rejected) for p in PAIRS]
        found = [derivative(wide, example, site=site, positions="all", at=at) for example in examples]
        return [predicted_slope(of_pair.g, v) for of_pair in found]

    measured = ((ends[0] - ends[1]) / (2 * step)).tolist()
    assert slopes(start) == pytest.approx(measured, rel=2e-3, abs=0.01)
    assert slopes(None) != pytest.approx(measured, rel=0.05)


def test_at_the_residual_stream_the_derivative_is_known_at_zero_only(llama: HuggingFaceModel) -> None:
    example = llama.example("The moon is made of", "rock", "cheese")
    with pytest.raises(ValueError, match="known at v = 0 only"):
        derivative(llama, example, site="residual", positions="all", at=random_v(llama, "residual"))


class LinearBlock(nn.Module):
    """h + o_proj(mean of the tokens so far) + mlp(h): linear, with the submodules of a decoder block."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        self.self_attn = nn.Module()
        self.self_attn.o_proj = nn.Linear(width, width, bias=False, dtype=torch.float64)
        self.mlp = nn.Linear(width, width, bias=False, dtype=torch.float64)
        draws = torch.Generator().manual_seed(seed)
        for linear in (self.self_attn.o_proj, self.mlp):
            linear.weight.data = 0.3 * torch.randn(width, width, dtype=torch.float64, generator=draws)

    def forward(self, h: Tensor) -> Tensor:
        counts = torch.arange(1, h.shape[1] + 1, dtype=h.dtype)[:, None]
        output: Tensor = h + self.self_attn.o_proj(h.cumsum(1) / counts) + self.mlp(h)  # type: ignore[operator]
        return output


class LinearDecoder:
    """One-token answers: f is linear in the last prompt token's state."""

    def __init__(self, width: int = 5) -> None:
        self.blocks = [LinearBlock(width, seed) for seed in range(3)]
        draws = torch.Generator().manual_seed(9)
        self.head = torch.randn(7, width, dtype=torch.float64, generator=draws)
        self.embeds = torch.randn(4, width, dtype=torch.float64, generator=draws)

    def logits(self, encoded: Any, embeds: Tensor, response_ids: Tensor) -> Tensor:
        h = embeds
        for block in self.blocks:
            h = block(h)
        return h[:, -1:] @ self.head.mT

    def example(self) -> Example:
        return Example(encoded(self.embeds), torch.tensor([2]), torch.tensor([5]))


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_closed_form_of_a_linear_decoder(positions: EditPositions) -> None:
    """A shift of all tokens alike passes a block as I + O + M, one of the last of T tokens as I + O / T + M."""
    model = LinearDecoder()
    share = 1.0 if positions == "all" else 1 / len(model.embeds)
    u = model.head[2] - model.head[5]
    for site in ("mlp", "attention_output", "heads"):
        found = derivative(model, model.example(), site=site, positions=positions)  # type: ignore[arg-type]
        for i, block in enumerate(model.blocks):
            behind = u
            for later in reversed(model.blocks[i + 1 :]):
                passed = torch.eye(5).double() + share * later.self_attn.o_proj.weight + later.mlp.weight  # type: ignore[union-attr, operator]
                behind = passed.mT @ behind
            expected = block.self_attn.o_proj.weight.mT @ behind if site == "heads" else behind  # type: ignore[union-attr, operator]
            torch.testing.assert_close(found.g[i], expected)
    size = derivative(model, model.example(), site="heads", positions=positions).size[0]  # type: ignore[arg-type]
    means = model.embeds.cumsum(0) / torch.arange(1, 5)[:, None]
    edited = means if positions == "all" else means[-1:]
    torch.testing.assert_close(size, edited.norm(dim=1).mean())


def test_at_the_residual_stream_nothing_along_the_last_blocks_own_state_is_left() -> None:
    """Eq. (8) restores the norm, so that the derivative of a single edited token is orthogonal to its state."""
    model = LinearDecoder()
    h = model.embeds[None]
    for block in model.blocks:
        h = block(h)
    last = derivative(model, model.example(), site="residual", positions="after_prompt").g[-1]  # type: ignore[arg-type]
    u = model.head[2] - model.head[5]
    state = h[0, -1] / h[0, -1].norm()
    torch.testing.assert_close(last, (u - (u @ state) * state).detach())


def test_the_two_answers_parts_are_their_own(llama: HuggingFaceModel) -> None:
    p = PAIRS[0]
    straight = derivative(llama, llama.example(p.prompt, p.chosen, p.rejected), site="mlp", positions="all")
    crossed = derivative(llama, llama.example(p.prompt, p.rejected, p.chosen), site="mlp", positions="all")
    assert torch.equal(straight.pos, crossed.neg)
    assert torch.equal(straight.g, -crossed.g)
    assert torch.equal(straight.size, crossed.size)


def test_it_leaves_the_model_as_it_was(llama: HuggingFaceModel) -> None:
    before, hooks = mean_f(llama), hook_count(llama)  # transformers leaves hooks of its own
    fit(llama, PAIRS, site="heads")
    assert mean_f(llama) == before
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in llama.hf.parameters())
    assert hook_count(llama) == hooks


def hook_count(model: HuggingFaceModel) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.hf.modules())


# --- the fit


def test_lam_is_a_share_of_the_states_mean_length(llama: HuggingFaceModel) -> None:
    got = fit(llama, PAIRS, site="attention_output", positions="all")
    assert got.v.norm(dim=1).square().mean().sqrt().item() == pytest.approx(got.scale)
    examples = [llama.example(p.prompt, p.chosen, p.rejected) for p in PAIRS]
    found = [derivative(llama, example, site="attention_output", positions="all") for example in examples]
    assert got.scale == pytest.approx(torch.stack([of_pair.size for of_pair in found]).mean().item())
    g = torch.stack([of_pair.g for of_pair in found]).double().mean(0)
    torch.testing.assert_close(got.v / got.v.norm(), g / g.norm())
    assert got.slope == pytest.approx(predicted_slope(g, got.v))


def test_exchanged_answers_turn_it_round_and_pairs_that_cancel_are_refused(llama: HuggingFaceModel) -> None:
    exchanged = [dataclasses.replace(p, chosen=p.rejected, rejected=p.chosen) for p in PAIRS]
    torch.testing.assert_close(fit(llama, exchanged).v, -fit(llama, PAIRS).v)
    with pytest.raises(DegenerateShiftsError, match=r"mean derivative of 6 pairs .* mlp is zero"):
        fit(llama, [*PAIRS, *exchanged], site="mlp")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"site": "block_input"}, "site is 'block_input'"), ({"positions": "last"}, "positions is 'last'")],
)
def test_no_such_place(llama: HuggingFaceModel, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit(llama, PAIRS, **options)


def test_no_pairs(llama: HuggingFaceModel) -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        fit(llama, [])


def test_a_derivative_that_is_not_finite_names_its_block() -> None:
    model = LinearDecoder()
    model.blocks[1].register_full_backward_hook(lambda m, into, out: (into[0] * torch.nan,))
    with pytest.raises(FloatingPointError, match="block 0: the derivative with respect to an edit of mlp"):
        derivative(model, model.example(), site="mlp", positions="all")  # type: ignore[arg-type]


# --- steering


def test_the_grid_is_declared_gentlest_first(llama: HuggingFaceModel) -> None:
    settings = fit(llama, PAIRS, site="mlp", positions="all").settings(llama)
    assert [setting.strength for setting in settings] == list(LAMS) == sorted(LAMS)
    assert {setting.label for setting in settings} == {"edit gradient, mlp, all"}


def test_only_the_chosen_layers_are_edited_and_each_by_its_own_vector(llama: HuggingFaceModel) -> None:
    v = random_v(llama, "mlp")
    seen: list[Tensor] = []
    handle = llama.blocks[2].mlp.register_forward_hook(lambda m, a, output: seen.append(output))  # type: ignore[union-attr]
    with steer(llama, v, site="mlp", positions="all", lam=0.5, layers=[2]):
        handle.remove()
        after = llama.blocks[2].mlp.register_forward_hook(lambda m, a, output: seen.append(output))  # type: ignore[union-attr]
        x = torch.randn(1, 3, llama.width, generator=torch.Generator().manual_seed(0))
        steered, untouched = llama.blocks[2].mlp(x), llama.blocks[1].mlp(x)  # type: ignore[operator]
    after.remove()
    torch.testing.assert_close(steered, llama.blocks[2].mlp(x) + 0.5 * v[2].float())  # type: ignore[operator]
    assert torch.equal(untouched, llama.blocks[1].mlp(x))  # type: ignore[operator]


def test_vectors_of_another_site_or_strengths_that_are_none_are_refused(llama: HuggingFaceModel) -> None:
    with pytest.raises(ValueError, match=r"at the site mlp; got .* made for another site"):
        steer(llama, random_v(llama, "heads"), site="mlp", positions="all", lam=1.0)
    v = random_v(llama, "mlp")
    v[1, 0] = torch.inf
    with pytest.raises(ValueError, match="block 1 has others"):
        steer(llama, v, site="mlp", positions="all", lam=1.0)
    with pytest.raises(ValueError, match="lam must be finite"):
        steer(llama, random_v(llama, "mlp"), site="mlp", positions="all", lam=float("nan"))
    with pytest.raises(ValueError, match="layers"):
        steer(llama, random_v(llama, "mlp"), site="mlp", positions="all", lam=1.0, layers=[3])


def test_another_thread_is_neither_steered_nor_read(llama: HuggingFaceModel) -> None:
    """A derivative is taken while another thread scores: both get what they get alone."""
    p = PAIRS[0]
    example = llama.example(p.prompt, p.chosen, p.rejected)
    alone, plain = derivative(llama, example, site="heads", positions="all").g, mean_f(llama)
    found: dict[str, Any] = {}
    inside, scored = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        inside.set()
        assert scored.wait(30)

    def take() -> None:
        handle = llama.blocks[1].register_forward_hook(
            lambda *a: wait() if threading.current_thread() is taker else None
        )
        found["g"] = derivative(llama, example, site="heads", positions="all").g
        handle.remove()

    taker = threading.Thread(target=take)
    taker.start()
    assert inside.wait(30)
    found["f"] = mean_f(llama)
    with steer(llama, random_v(llama, "heads"), site="heads", positions="all", lam=1.0):
        assert mean_f(llama) != plain
        scored.set()
        taker.join(30)
    assert found["f"] == plain
    assert torch.equal(found["g"], alone)


# --- the planted worlds


@pytest.fixture(scope="module")
def of_simple(simple_model: HuggingFaceModel) -> SimpleNamespace:
    """Some pairs of the simple world, and how many prompts about other facts come out right."""
    world = build_world("simple")
    dev = demo.as_pairs(world.split("dev"))[:40]

    def right(fitted: EditGradient, lam: float) -> int:
        with fitted.steering(simple_model, lam=lam):
            return sum(margin > 0 for margin in margins(simple_model, dev))

    unsteered = sum(margin > 0 for margin in margins(simple_model, dev))
    return SimpleNamespace(pairs=demo.as_pairs(world.split("steer"))[:10], right=right, unsteered=unsteered)


@pytest.mark.thorough
def test_it_rights_facts_that_it_has_not_seen_and_the_site_matters(
    simple_model: HuggingFaceModel, of_simple: SimpleNamespace
) -> None:
    """Ten pairs suffice at the attention's output; at the blocks' output no strength comes near."""
    fitted = fit(simple_model, of_simple.pairs, site="attention_output", positions="all")
    at_attention = max(of_simple.right(fitted, lam) for lam in (0.2, 0.4))
    residual = fit(simple_model, of_simple.pairs, site="residual", positions="all")
    at_residual = max(of_simple.right(residual, lam) for lam in (0.2, 0.4))
    assert of_simple.unsteered <= 4
    assert at_attention >= 30
    assert of_simple.unsteered < at_residual < at_attention - 10
    assert of_simple.right(fitted, -0.2) <= of_simple.unsteered


# --- the file


def vectors_of(model: HuggingFaceModel, **options: Any) -> tuple[EditGradient, SteeringVectors]:
    fitted = fit(model, PAIRS, **options)
    examples = [model.example(p.prompt, p.chosen, p.rejected) for p in PAIRS]
    return fitted, steering_vectors_of(model, fitted, "digest", examples)


@pytest.mark.parametrize("site", SITES)
def test_a_file_is_applied_at_the_site_and_positions_that_it_names(
    llama: HuggingFaceModel, tmp_path: Path, site: EditSite
) -> None:
    fitted, made = vectors_of(llama, site=site, positions="after_prompt")
    made.save(tmp_path / "v")
    loaded = SteeringVectors.load(tmp_path / "v")
    header = loaded.header
    assert (header.method, header.positions) == ("edit_gradient", "after_prompt")
    assert header.site == ("block_output" if site == "residual" else site)
    assert header.scale == fitted.scale
    assert width_at_site(llama, loaded) == loaded.width
    with fitted.steering(llama, lam=0.5, layers=[0, 2]):
        expected = margins(llama, PAIRS)
    with steering_of(llama, loaded, lam=0.5, layers=[0, 2]):
        assert margins(llama, PAIRS) == pytest.approx(expected, abs=1e-4)
    assert margins(llama, PAIRS) != pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "grains"}, "GrAInS adds to block_output at all positions"),
        ({"method": "grains", "positions": "all"}, "GrAInS adds to block_output at all positions"),
        ({"method": "bipo"}, "method 'bipo'.*written by a newer one"),
        ({"site": "block_input"}, "site 'block_input'.*written by a newer one"),
        ({"positions": "3"}, "positions '3'.*written by a newer one"),
    ],
)
def test_a_file_that_says_something_else_is_not_applied(
    llama: HuggingFaceModel, changes: dict[str, str], words: str
) -> None:
    _, made = vectors_of(llama, site="mlp")
    other = dataclasses.replace(made, header=dataclasses.replace(made.header, **changes))
    with pytest.raises(MismatchError, match=words):
        steering_of(llama, other, lam=1.0)


def test_vectors_of_two_sites_or_positions_are_not_added_up(llama: HuggingFaceModel) -> None:
    _, at_mlp = vectors_of(llama, site="mlp")
    for options in ({"site": "attention_output"}, {"site": "mlp", "positions": "all"}):
        _, other = vectors_of(llama, **options)
        with pytest.raises(MismatchError, match=r"cannot combine vectors whose '(site|positions)' differs"):
            at_mlp + other
    both = at_mlp + at_mlp
    assert (both.header.method, both.header.site, both.header.positions) == ("edit_gradient", "mlp", "after_prompt")
    assert both.header.scale == pytest.approx(at_mlp.header.scale)
