"""What a pass need not compute: log-probabilities by parts of the vocabulary, and the last block at the last tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from grains_ref.models import HuggingFaceModel, packed_rows, vocabulary
from grains_ref.models.last_rows import OnlyLast, Shortcuts, shortcuts_of
from grains_ref.models.packed_rows import Row
from grains_ref.tiny_models.random_models import random_llama
from grains_ref.tiny_models.random_vision_models import random_gemma3_text

pytestmark = pytest.mark.cpu


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# ------------------------------------------------------------------------------------------ vocabulary
@pytest.mark.parametrize("vocabulary_size", [7, 8, 9, 50])  # one part, exactly one, one and a bit, several
@pytest.mark.parametrize("has_bias", [False, True])
def test_parts_of_the_vocabulary_give_the_whole_softmax_and_its_gradient(
    vocabulary_size: int, has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "LEAST_PART", 8)
    monkeypatch.setattr(vocabulary, "LOGITS_AT_ONCE", 8)
    weight, bias = drawn(vocabulary_size, 4, seed=1), drawn(vocabulary_size, seed=2) if has_bias else None
    weight[vocabulary_size - 2] *= 40  # the largest logit comes late, and is far from the others
    which = torch.tensor([0, 1, 1, 2, 2])  # a state may predict several tokens, also the same one twice
    tokens = torch.tensor([0, vocabulary_size - 1, 3, 5, 5])
    of_tokens = torch.tensor([1.0, 0.5, -2.0, 1.0, -0.25], dtype=torch.float64)
    found = []
    for way in (whole, vocabulary.log_probs):
        states = drawn(4, 4).requires_grad_()  # the last state predicts nothing
        log_p = way(states, weight, bias, which, tokens)
        found.append((log_p.detach(), torch.autograd.grad((of_tokens * log_p).sum(), states)[0]))
    (expected, slope), (by_parts, slope_by_parts) = found
    assert by_parts == pytest.approx(expected, abs=1e-12)
    assert slope_by_parts == pytest.approx(slope, abs=1e-12)
    assert not slope_by_parts[3].any()
    with torch.no_grad():
        assert vocabulary.log_probs(drawn(4, 4), weight, bias, which, tokens) == pytest.approx(expected, abs=1e-12)


def whole(states: Tensor, weight: Tensor, bias: Tensor | None, which: Tensor, tokens: Tensor) -> Tensor:
    return nn.functional.linear(states, weight, bias).log_softmax(-1)[which, tokens]


def test_logits_of_half_precision_are_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "LEAST_PART", 8)
    monkeypatch.setattr(vocabulary, "LOGITS_AT_ONCE", 8)
    states, weight = drawn(3, 16, dtype=torch.bfloat16), drawn(4000, 16, seed=1, dtype=torch.bfloat16)
    which, tokens = torch.arange(3), torch.tensor([1, 2000, 3999])
    log_p = vocabulary.log_probs(states, weight, None, which, tokens)
    assert log_p.dtype == torch.float32
    expected = nn.functional.linear(states, weight).float().log_softmax(-1)[which, tokens]
    assert log_p == pytest.approx(expected, abs=1e-4)


def test_no_tensor_of_tokens_times_vocabulary_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel() if tensor is not weight else 0)
        return tensor

    states, weight = drawn(30, 4).requires_grad_(), drawn(5000, 4, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        vocabulary.log_probs(states, weight, None, torch.arange(30), torch.arange(30)).sum().backward()
    assert max(kept) <= 30 * 4


# ------------------------------------------------------------------------------------------ last rows
def prompt_of(model: HuggingFaceModel) -> Any:
    return model.encode("What is the weather?")


def test_a_plain_model_spares_all_parts(llama: HuggingFaceModel) -> None:
    prompt = prompt_of(llama)
    spared = shortcuts_of(llama, prompt, prompt.embeds)
    attention, mlp = llama.blocks[-1].self_attn.o_proj, llama.blocks[-1].mlp
    assert set(spared.per_token) == {attention, mlp}
    assert spared.head is llama.hf.get_output_embeddings()


def test_an_output_layer_whose_logits_are_capped_is_not_spared() -> None:
    model = random_gemma3_text()
    prompt = prompt_of(model)
    assert shortcuts_of(model, prompt, prompt.embeds).head is not None
    model.text_config.final_logit_softcapping = 30.0
    assert shortcuts_of(model, prompt, prompt.embeds).head is None


def test_a_part_that_mixes_tokens_is_not_spared() -> None:
    model = random_llama()
    mlp = model.blocks[-1].mlp
    mlp.register_forward_hook(lambda module, args, output: output - output.mean(1, keepdim=True))
    prompt = prompt_of(model)
    assert mlp not in shortcuts_of(model, prompt, prompt.embeds).per_token


def test_the_last_tokens_are_what_they_are_in_a_whole_pass(llama: HuggingFaceModel) -> None:
    prompt = prompt_of(llama)
    spared = shortcuts_of(llama, prompt, prompt.embeds)
    widths: list[int] = []
    handle = llama.blocks[-1].mlp.up_proj.register_forward_hook(lambda module, args, out: widths.append(out.shape[1]))
    two = torch.stack([prompt.embeds, 0.5 * prompt.embeds])
    try:
        with torch.no_grad():
            logits = llama.hf(inputs_embeds=two, logits_to_keep=3).logits
            with OnlyLast(spared, 3) as last:
                out = llama.hf(inputs_embeds=two, logits_to_keep=3)
    finally:
        handle.remove()
    assert widths == [len(prompt.ids), 3]
    assert out.logits.shape[:2] == (1, 1)
    assert spared.head is not None
    assert spared.head(last.states(out)) == pytest.approx(logits, abs=1e-5)
    assert torch.equal(Shortcuts().log_probs(logits[0], torch.tensor([2]), torch.tensor([4])),
                       logits[0].log_softmax(-1)[2:, 4])  # fmt: skip


# ------------------------------------------------------------------------------------------ packed rows
@pytest.mark.parametrize(
    ("answers", "n_common", "n_fed"),
    [
        (([5, 6, 7, 8], [5, 6, 9]), 2, 3),
        (([5, 6], [5, 6]), 1, 1),  # the last token is only predicted
        (([5], [7, 8]), 0, 1),
        (([5, 6, 7],), 2, 2),
        (([4, 6, 7], [5, 6, 7]), 0, 4),  # only a beginning is common
    ],
)
def test_what_answers_begin_with_stands_once(
    llama: HuggingFaceModel, answers: tuple[list[int], ...], n_common: int, n_fed: int
) -> None:
    prompt = prompt_of(llama)
    row = Row(prompt, prompt.embeds, tuple(torch.tensor(answer) for answer in answers))
    assert len(packed_rows.fed(row).common) == n_common
    assert packed_rows.length(row) == len(prompt.ids) + n_fed
    scored = packed_rows.scored(row)
    assert scored.tokens == [token for answer in answers for token in answer]
    assert set(scored.states) == set(range(1 + n_fed))  # none is computed for nothing
    rows = [row, row._replace(embeds=0.7 * prompt.embeds)]
    assert llama.branches._by("packed", rows) == pytest.approx(llama.branches._apart(rows), abs=1e-5)
