"""What an edit does to attention: runs with given patterns, mass on the lure, and what the cell holds."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from grains_ref.data import PreferencePair
from grains_ref.grains import Hooks, Selection
from grains_ref.methods.edit_gradient import steer
from grains_ref.models import HuggingFaceModel
from grains_ref.reproduction import edit_attention
from grains_ref.reproduction.edit_attention import attention, eager, given_patterns, lure_mass, preference
from grains_ref.reproduction.pages import attention_page
from grains_ref.tiny_models.random_models import random_llama

pytestmark = pytest.mark.cpu

PAIR = PreferencePair("a", "Is the earth flat?", "No, it is round.", "Yes", where="made up")


@pytest.fixture(scope="module")
def wide() -> HuggingFaceModel:
    """Four query heads on two of keys and values."""
    return random_llama(dtype=torch.float64)


def edit(model: HuggingFaceModel, block: int) -> Any:
    v = torch.zeros(len(model.blocks), model.width, dtype=torch.float64)
    v[block] = torch.randn(model.width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return steer(model, v, site="attention_output", positions="all", lam=1.0)


def test_a_runs_own_patterns_change_nothing_and_the_implementation_comes_back(wide: HuggingFaceModel) -> None:
    example = wide.example(PAIR.prompt, PAIR.chosen, PAIR.rejected)
    plain, before = preference(wide, example), wide.text_config._attn_implementation
    with eager(wide):
        own = edit_attention._patterns(wide, example, nullcontext())
        assert preference(wide, example, own) == pytest.approx(plain, abs=1e-6)
        exchanged = {"pos": [a.roll(1, dims=1) for a in own["pos"]], "neg": own["neg"]}  # heads, by one
        assert abs(preference(wide, example, exchanged) - plain) > 1e-4
    assert wide.text_config._attn_implementation == before
    assert len(own["pos"]) == len(wide.blocks)
    n = len(example.encoded.ids) + len(example.y_pos) - 1
    assert own["pos"][0].shape == (1, 4, n, n)


def test_heads_read_the_values_of_the_run_that_they_are_put_into(wide: HuggingFaceModel) -> None:
    example = wide.example(PAIR.prompt, PAIR.chosen, PAIR.rejected)
    n = len(example.encoded.ids)
    first_only = torch.zeros(1, 4, n, n, dtype=torch.float64)
    first_only[..., 0] = 1.0
    seen: dict[str, torch.Tensor] = {}
    attn = wide.blocks[1].self_attn
    keep = [(attn.v_proj, lambda m, a, out: seen.update(values=out))]  # type: ignore[union-attr, list-item]
    read = [(attn.o_proj, lambda m, a, out: seen.update(heads=a[0]))]  # type: ignore[union-attr, list-item]
    with torch.no_grad(), given_patterns(wide, [first_only] * 3), Hooks(keep + read):  # type: ignore[arg-type]
        wide.logits(example.encoded, example.encoded.embeds[None], example.y_pos[:1])
    values = seen["values"][0, 0].view(2, -1)  # of two heads, each read by two
    expected = torch.cat([values[0], values[0], values[1], values[1]])
    torch.testing.assert_close(seen["heads"][0], expected.expand(n, -1))


def test_an_edit_behind_all_attention_acts_by_no_pattern_and_an_early_one_does(wide: HuggingFaceModel) -> None:
    example = wide.example(PAIR.prompt, PAIR.chosen, PAIR.rejected)
    with eager(wide):
        plain = edit_attention._patterns(wide, example, nullcontext())
        last, _ = edit_attention._effects(wide, example, edit(wide, 2), plain)
        early, patterns = edit_attention._effects(wide, example, edit(wide, 0), plain)
    assert abs(last["f_e"] - last["f_0"]) > 1e-4
    assert last["f_frozen"] == pytest.approx(last["f_e"], abs=1e-6)
    assert last["f_swapped"] == pytest.approx(last["f_0"], abs=1e-6)
    assert abs(early["f_frozen"] - early["f_e"]) > 1e-5
    assert abs(early["f_swapped"] - early["f_0"]) > 1e-5
    assert torch.equal(patterns["pos"][0], plain["pos"][0])  # ahead of the edit
    assert not torch.equal(patterns["pos"][1], plain["pos"][1])


def test_mass_on_the_lure_is_a_sum_over_its_tokens_and_a_mean_over_those_that_predict() -> None:
    a = torch.zeros(1, 1, 4, 4)
    a[0, 0, 2] = torch.tensor([0.1, 0.2, 0.7, 0.0])
    a[0, 0, 3] = torch.tensor([0.4, 0.1, 0.3, 0.2])
    assert lure_mass(a, first=2, lure=(0, 1)).item() == pytest.approx((0.3 + 0.5) / 2)
    assert lure_mass(a, first=3, lure=(2,)).item() == pytest.approx(0.3)


def test_places_are_disjoint_and_an_edit_of_all_of_them_is_the_edit(wide: HuggingFaceModel) -> None:
    example = wide.example(PAIR.prompt, PAIR.chosen, PAIR.rejected)
    where = edit_attention.places(example, Selection(pos=(3,), neg=(1, 2)))
    n_prompt = len(example.encoded.ids)
    n = n_prompt + max(len(example.y_pos), len(example.y_neg))
    of_places = {name: [t for t in range(n) if belongs(t)] for name, belongs in where.items()}
    assert sorted(t for tokens in of_places.values() for t in tokens) == [*range(n)]
    assert of_places["the lure"] == [1, 2]
    assert of_places["from the last prompt token on"][0] == n_prompt - 1
    v = torch.randn(3, wide.width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with steer(wide, v, site="attention_output", positions="all", lam=1.0):
        everywhere = preference(wide, example)
    with edit_attention.at_tokens(wide, v, lambda t: True):
        assert preference(wide, example) == pytest.approx(everywhere, abs=1e-6)
    changed = set()
    for belongs in where.values():
        with edit_attention.at_tokens(wide, v, belongs):
            changed.add(round(preference(wide, example), 6))
    assert len(changed) == 4


@pytest.mark.thorough
def test_the_cell_and_its_page(wide: HuggingFaceModel) -> None:
    example = wide.example(PAIR.prompt, PAIR.chosen, PAIR.rejected)
    made: dict[str, Any] = {}

    def once(name: str, make: Any) -> Any:
        return made.setdefault(name, make())

    lab: Any = SimpleNamespace(
        model=wide, steer=[PAIR], dev=([PAIR], []), dev_causes=[Selection((), (1, 2))], example=lambda i: example
    )
    lab.once = once
    cell = attention(lab)
    assert [*cell["edits"]] == ["attention output", "residual", "Gaussian, attention output"]
    for name, measured in cell["edits"].items():
        assert measured["f_0"] == pytest.approx(preference(wide, example), abs=1e-6)
        assert len({round(measured[key], 6) for key in ("f_0", "f_e", "f_frozen", "f_swapped")}) == 4, name
        assert torch.tensor(measured["lure"]).shape == (3, 4)
        assert measured["lure"][2] != cell["plain"][2]
    assert sum(map(sum, cell["gradient"])) == pytest.approx(1.0)
    assert [*cell["places"]] == ["the lure", "evidence for the truth", "from the last prompt token on", "the others"]
    page = attention_page({("simple", 0, "edit attention"): {"curve": cell}}, ["simple"], [0])
    assert page.count("| simple | 0 |") == 4
    moved = cell["edits"]["residual"]
    assert f"| residual | {moved['f_e'] - moved['f_0']:+.2f} | {moved['f_frozen'] - moved['f_0']:+.2f} |" in page
