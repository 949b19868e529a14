"""Several responses behind one prompt: every way gives what separate runs give, or is not used."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from shared import only_quick
from torch import Tensor

from grains_ref.grains import Example, objective
from grains_ref.grains import HyperParameters as Settings
from grains_ref.models import HuggingFaceModel, branches, packed_rows
from grains_ref.models.branches import Branches
from grains_ref.models.packed_rows import Row
from grains_ref.tiny_models.random_models import random_llama, random_qwen2
from grains_ref.tiny_models.random_vision_models import (
    noise_picture,
    random_gemma3,
    random_gemma3_text,
    random_llava,
    random_qwen_vl,
)

pytestmark = pytest.mark.cpu
TEXTS = (
    ("Q: What is the capital of France? A:", "Paris, of course", "Lyon"),
    ("What is the weather?", "It is cold and wet today", "Hot"),
)
FAMILIES: dict[str, tuple[Callable[..., HuggingFaceModel], str]] = {  # and the way that short prompts go
    "llama": (random_llama, "packed"),
    "qwen2": (random_qwen2, "packed"),
    "gemma3_text": (random_gemma3_text, "cached"),
    "llava_next": (random_llava, "packed"),
    "qwen2_5_vl": (random_qwen_vl, "packed"),
    "gemma3": (random_gemma3, "cached"),
}


def examples_of(model: HuggingFaceModel) -> list[Example]:
    if not model.family.marker:
        return [model.example(*text) for text in TEXTS]
    pictures = (noise_picture(42, 60), noise_picture(90, 40))
    return [
        model.example(f"<image> {prompt}", *answers, image=picture)
        for (prompt, *answers), picture in zip(TEXTS, pictures, strict=True)
    ]


def rows_of(examples: list[Example], scale: float = 0.6) -> list[Row]:
    return [Row(one.encoded, scale * one.encoded.embeds, (one.y_pos, one.y_neg)) for one in examples]


def f_and_gradients(compute: Callable[[list[Row]], Tensor], rows: list[Row]) -> tuple[Tensor, tuple[Tensor, ...]]:
    points = [row.embeds.detach().requires_grad_() for row in rows]
    log_p = compute([row._replace(embeds=point) for row, point in zip(rows, points, strict=True)])
    return log_p.detach(), torch.autograd.grad((log_p[:, 0] - log_p[:, 1]).sum(), points)


@pytest.mark.parametrize("name", only_quick(FAMILIES, "llama", "gemma3_text", "llava_next"))
def test_every_family_shares_its_prompts_and_gets_what_separate_runs_get(name: str) -> None:
    make, usual = FAMILIES[name]
    model = make(dtype=torch.float64)
    examples = examples_of(model)
    rows = rows_of(examples)
    assert model.branches._choose(rows) == usual
    expected = torch.stack([
        torch.cat([objective(model, example, Settings(objective="likelihood"))(row.embeds[None]),
                   objective(model, Example(example.encoded, example.y_neg, example.y_pos),
                             Settings(objective="likelihood"))(row.embeds[None])])
        for example, row in zip(examples, rows, strict=True)
    ])  # fmt: skip
    apart, gradients_apart = f_and_gradients(model.branches._apart, rows)
    assert apart == pytest.approx(expected, rel=1e-6)
    for way in {usual, "cached"}:
        log_p, gradients = f_and_gradients(lambda some, way=way: model.branches._by(way, some), rows)  # type: ignore[misc]
        assert log_p == pytest.approx(expected, rel=1e-5)
        for one, other in zip(gradients, gradients_apart, strict=True):
            assert one == pytest.approx(other, abs=3e-6 * other.abs().max().item())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = model.branches.log_probs(
            [row.encoded for row in rows], [row.embeds for row in rows], [row.responses for row in rows]
        )
    assert model.branches._is_right[usual]
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_way_that_is_wrong_is_told_once_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_gemma3_text(dtype=torch.float64)  # its windows are shorter than the prompts: packing is wrong here
    monkeypatch.setattr(Branches, "_has_plain_masks", lambda *_: True)
    rows = rows_of(examples_of(model))
    columns = [[row.encoded for row in rows], [row.embeds for row in rows], [row.responses for row in rows]]
    with pytest.warns(UserWarning, match=r"random-gemma3-text: sharing a prompt .*\(packed\).*computed apart"):
        found = model.branches.log_probs(*columns)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = model.branches.log_probs(*columns)
    assert torch.equal(found, again)
    assert torch.equal(found, model.branches._apart(rows))


@pytest.mark.parametrize("fault", ["sees", "positions", "last token", "padding", "raises", "no gradient"])
def test_the_proof_finds_every_kind_of_fault(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_llama()
    may_see, packed = packed_rows._may_see, Branches._packed

    def sees_all(row: Row, longest: int) -> Tensor:
        n, length = longest, packed_rows.length(row)
        return torch.ones(n, n, dtype=torch.bool).tril() & (torch.arange(n) >= n - length)

    def straight_on(row: Row) -> Tensor:
        return torch.arange(packed_rows.length(row))

    def with_padding(row: Row, longest: int) -> Tensor:
        seen = may_see(row, longest)
        seen[:, 0] = True
        return seen

    def raising(self: Branches, rows: Any) -> Tensor:
        raise TypeError("unexpected keyword")

    def detached(self: Branches, rows: Any) -> Tensor:
        log_p = packed(self, rows)
        return log_p.detach() + 0 * sum(row.embeds.sum() for row in rows)

    if fault == "sees":
        monkeypatch.setattr(packed_rows, "_may_see", sees_all)
    elif fault == "positions":
        monkeypatch.setattr(packed_rows, "positions", straight_on)
    elif fault == "padding":
        monkeypatch.setattr(packed_rows, "_may_see", with_padding)
    elif fault == "raises":
        monkeypatch.setattr(Branches, "_packed", raising)
    elif fault == "no gradient":
        monkeypatch.setattr(Branches, "_packed", detached)
    else:
        monkeypatch.setattr(
            Branches,
            "_packed",
            lambda self, rows: packed(self, [r._replace(responses=tuple(y[:-1] for y in r.responses)) for r in rows]),
        )
    rows = rows_of(examples_of(model), scale=1.0)
    with pytest.warns(UserWarning, match="is computed apart"):
        model.branches.log_probs(
            [row.encoded for row in rows], [row.embeds for row in rows], [row.responses for row in rows]
        )
    assert model.branches._is_right == {"apart": True, "packed": False}


def test_long_prompts_are_cached_and_windows_never_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_llama()
    rows = rows_of(examples_of(model))
    assert model.branches._choose(rows) == "packed"
    model.text_config.sliding_window = 16  # as Mistral's configuration has it
    assert model.branches._choose(rows) == "cached"
    model.text_config.layer_types = ["full_attention"] * 3
    assert model.branches._choose(rows) == "packed"
    monkeypatch.setattr(branches, "LONGEST_PACKED", 20)
    assert model.branches._choose(rows) == "cached"


def test_a_prompts_own_padding_is_seen_by_nobody(llama: HuggingFaceModel) -> None:
    plain = llama.example(*TEXTS[0])
    padded = Example(llama.encode(TEXTS[0][0], left_padding=5), plain.y_pos, plain.y_neg)
    for way in ("packed", "cached"):
        found = llama.branches._by(way, rows_of([padded, plain]))  # type: ignore[arg-type]
        assert found[0] == pytest.approx(found[1], abs=1e-5)


@pytest.mark.parametrize("way", ["packed", "cached"])
def test_answers_of_one_token_and_one_answer_alone(llama: HuggingFaceModel, way: Any) -> None:
    encoded = llama.encode(TEXTS[0][0])
    for responses in ((torch.tensor([5]), torch.tensor([7])), (torch.tensor([5, 9, 3]),)):
        rows = [Row(encoded, encoded.embeds, responses)] * 2
        assert llama.branches._by(way, rows) == pytest.approx(llama.branches._apart(rows), abs=1e-5)


def test_what_cannot_be_scored_is_refused(llama: HuggingFaceModel) -> None:
    encoded, one = llama.encode("Hello"), torch.tensor([5])
    for y, message in (
        (torch.tensor([], dtype=torch.long), "at least one token id"),
        (torch.tensor([100_000]), "has the token id 100000"),
        (torch.full((200,), 5), "are more than the 128 that random-llama takes"),
    ):
        with pytest.raises(ValueError, match=message):
            llama.branches.log_probs([encoded], [encoded.embeds], [(one, y)])


@pytest.mark.parametrize("name", only_quick(FAMILIES, "llama", "gemma3_text", "llava_next"))
def test_last_states_of_several_prompts_are_those_of_each_alone(name: str) -> None:
    model = FAMILIES[name][0](dtype=torch.float64)
    prompts = [example.encoded for example in examples_of(model)]
    found = model.branches.residuals(prompts, [prompt.embeds for prompt in prompts])
    for one, prompt in zip(found, prompts, strict=True):
        assert one == pytest.approx(model.residuals(prompt, prompt.embeds[None])[0], abs=1e-6)


def test_padding_that_changes_last_states_is_told_and_avoided(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_llama()
    prompts = [example.encoded for example in examples_of(model)]
    points = [prompt.embeds for prompt in prompts]
    replay = Branches._replay

    def attended(self: Branches, encoded: Any) -> dict[str, Tensor]:
        padded = replay(self, encoded)
        return padded | {"attention_mask": torch.ones_like(padded["attention_mask"])}

    monkeypatch.setattr(Branches, "_replay", attended)
    with pytest.warns(UserWarning, match="padding in front of a prompt changes its hidden states"):
        found = model.branches.residuals(prompts, points)
    for one, prompt in zip(found, prompts, strict=True):
        assert one == pytest.approx(model.residuals(prompt, prompt.embeds[None])[0], abs=1e-5)


def test_a_way_that_was_proved_without_padding_is_proved_again_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_llama()
    rows = rows_of(examples_of(model))
    proved: list[int] = []
    prove = Branches._prove

    def counted(self: Branches, way: Any, some: Any) -> None:
        proved.append(len(some))
        prove(self, way, some)

    monkeypatch.setattr(Branches, "_prove", counted)
    for some in (rows[:1], rows[1:], rows, rows):
        model.branches.log_probs(
            [row.encoded for row in some], [row.embeds for row in some], [row.responses for row in some]
        )
    assert proved == [1, 2]
