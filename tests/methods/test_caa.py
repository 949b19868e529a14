"""methods/caa.py: the mean difference by hand, where it is read and added, and the `steering-vectors` package."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from grains_ref.data import PreferencePair
from grains_ref.evaluation.measures import margins
from grains_ref.grains import DegenerateShiftsError
from grains_ref.methods.caa import (
    CAA,
    MULTIPLIERS,
    MULTIPLIERS_OF_ALL,
    fit,
    letter_pairs,
    same_lengths,
)
from grains_ref.methods.core import Edit, capture
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.random_vision_models import noise_picture, random_qwen_vl

pytestmark = pytest.mark.cpu


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def model(request: pytest.FixtureRequest) -> HuggingFaceModel:
    """Models with grouped queries whose heads do not fill the width; Gemma's normalise twice per sub-layer."""
    fixture: HuggingFaceModel = request.getfixturevalue(request.param)
    return fixture


def pair(prompt: str, chosen: str, rejected: str, **more: Any) -> PreferencePair:
    return PreferencePair(prompt, prompt, chosen, rejected, where="made up", **more)


PAIRS = [
    pair("Q: What is the capital of France? A:", "Paris.", "Rome, of course."),
    pair("Is the earth flat?", "No, it is round.", "Yes"),
    pair("The moon is made of", "rock", "green cheese"),
    pair("Tell me what people say about", "the weather", "you"),
]


# --- the vectors


def test_the_mean_difference_at_the_last_token_by_hand(model: HuggingFaceModel) -> None:
    got = fit(model, PAIRS).v
    norm = model.hf.get_decoder().norm
    total = torch.zeros(len(model.blocks), model.width)
    for one in PAIRS:
        for answer, sign in ((one.chosen, 1), (one.rejected, -1)):
            ids = torch.cat([model.encode(one.prompt).ids, model.response_ids(one.prompt, answer)])
            states = model.hf(input_ids=ids[None], output_hidden_states=True).hidden_states
            total[:-1] += sign * torch.stack([h[0, -1] for h in states[1:-1]]) / 4
            total[-1] += sign * _last_block(model, ids) / 4
            torch.testing.assert_close(norm(_last_block(model, ids)), states[-1][0, -1], rtol=1e-4, atol=1e-5)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got.float(), total, rtol=1e-4, atol=1e-5)


def _last_block(model: HuggingFaceModel, ids: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = model.blocks[-1].register_forward_hook(
        lambda module, args, output: seen.append((output[0] if isinstance(output, tuple) else output)[0, -1])
    )
    model.hf(input_ids=ids[None])
    handle.remove()
    return seen[0].detach()


def test_it_is_linear_in_the_pairs(llama: HuggingFaceModel) -> None:
    halves = (fit(llama, PAIRS[:2]).v + fit(llama, PAIRS[2:]).v) / 2
    torch.testing.assert_close(fit(llama, PAIRS).v, halves)


def test_exchanged_answers_negate_it_and_equal_ones_are_refused(llama: HuggingFaceModel) -> None:
    exchanged = [dataclasses.replace(one, chosen=one.rejected, rejected=one.chosen) for one in PAIRS]
    assert torch.equal(fit(llama, exchanged).v, -fit(llama, PAIRS).v)
    equal = [dataclasses.replace(one, rejected=one.chosen) for one in PAIRS]
    for read in ("last", "difference", 0):
        with pytest.raises(DegenerateShiftsError, match="block 0: the mean difference of 4 pairs is zero"):
            fit(llama, equal, read=read)  # type: ignore[arg-type]


# --- where it is read


def state(model: HuggingFaceModel, prompt: Any, answer: str, i: int) -> Tensor:
    """(L, d) at token i of the answer."""
    n = len(model.response_ids(prompt, answer))
    return capture(model, [(prompt, answer)], site="residual", last=n)[0, :, i].double()


@pytest.mark.parametrize("read", [0, 1, -1, -2])
def test_a_token_of_the_answer_by_number(llama: HuggingFaceModel, read: int) -> None:
    one = pair("Is it so?", "No, it is round.", "Yes, it is what people say.")
    assert len(llama.response_ids(one.prompt, one.chosen)) != len(llama.response_ids(one.prompt, one.rejected))
    expected = state(llama, one.prompt, one.chosen, read) - state(llama, one.prompt, one.rejected, read)
    torch.testing.assert_close(fit(llama, [one], read=read).v, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("read", [99, -99])
def test_a_token_that_the_answer_lacks_is_refused(llama: HuggingFaceModel, read: int) -> None:
    with pytest.raises(ValueError, match=f"has no token {read}"):
        fit(llama, PAIRS, read=read)


def test_the_last_token_before_a_shared_ending(llama: HuggingFaceModel) -> None:
    one = pair("Q: The capital? A:", "It is Paris. Yes.", "It is Rome, in fact. Yes.")
    ids = [llama.response_ids(one.prompt, answer).tolist() for answer in (one.chosen, one.rejected)]
    shared = next(n for n in range(1, 9) if ids[0][-n] != ids[1][-n]) - 1
    assert shared >= 2  # "Yes." and what precedes it
    expected = state(llama, one.prompt, one.chosen, -1 - shared) - state(llama, one.prompt, one.rejected, -1 - shared)
    torch.testing.assert_close(fit(llama, [one], read="difference").v, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(fit(llama, [one]).v, expected, atol=1e-2)
    for other in PAIRS[1:]:  # nothing is shared
        torch.testing.assert_close(fit(llama, [other], read="difference").v, fit(llama, [other]).v)
    inside = pair("Q: The capital? A:", "Paris.", "It is Paris.")  # nothing but ending: its first token is read
    a, b = (llama.response_ids(inside.prompt, answer).tolist() for answer in (inside.chosen, inside.rejected))
    assert b[-len(a) :] == a
    at = -len(a)
    expected = state(llama, inside.prompt, inside.chosen, at) - state(llama, inside.prompt, inside.rejected, at)
    torch.testing.assert_close(fit(llama, [inside], read="difference").v, expected, rtol=1e-4, atol=1e-5)


def test_letters_are_balanced_and_belong_to_the_answers() -> None:
    made = letter_pairs(PAIRS)
    assert [(one.chosen, one.rejected) for one in made] == [("(A)", "(B)"), ("(B)", "(A)")] * 2
    assert made[1].prompt == "Is the earth flat?\n\nChoices:\n (A) Yes\n (B) No, it is round."
    assert made[2].prompt == "The moon is made of\n\nChoices:\n (A) rock\n (B) green cheese"
    chat = dataclasses.replace(
        PAIRS[0],
        prompt=({"role": "system", "content": "Be short."}, {"role": "user", "content": "Who?"}),
        choices=("a", "b"),
        label=0,
    )
    (lettered,) = letter_pairs([chat])
    assert lettered.prompt == (
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Who?\n\nChoices:\n (A) Paris.\n (B) Rome, of course."},
    )
    assert lettered.label is None


def test_the_letter_is_found_by_what_tokens_say(model: HuggingFaceModel) -> None:
    """'(', the letter and ')' are three tokens here; with other tokenizers they may be two, or have a space apart."""
    made = letter_pairs(PAIRS)
    prompt = made[0].prompt
    tokens = [model.tokenizer.decode([i]) for i in model.response_ids(prompt, "(A)").tolist()]
    i = next(i for i, token in enumerate(tokens) if "A" in token)
    expected = torch.stack([state(model, m.prompt, m.chosen, i) - state(model, m.prompt, m.rejected, i) for m in made])
    got = fit(model, made, read="letter").v
    torch.testing.assert_close(got, expected.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got, fit(model, made, read="difference").v)
    assert (tokens[-1] == ")") == (not torch.allclose(got, fit(model, made, read="last").v, atol=1e-3))


@pytest.mark.parametrize("answer", ["(AB)", "Paris", "()", "(A) or (B)"])
def test_answers_without_one_letter_are_refused(llama: HuggingFaceModel, answer: str) -> None:
    with pytest.raises(ValueError, match="needs answers with one letter"):
        fit(llama, [pair("Which?", answer, "(B)")], read="letter")


def test_no_pair_is_refused(llama: HuggingFaceModel) -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        fit(llama, [])


# --- where it is added


@pytest.mark.parametrize("positions", ["after_prompt", "all"])
def test_opposite_strengths_move_the_preference_in_opposite_ways(llama: HuggingFaceModel, positions: Any) -> None:
    """At first order; and for small c the margin moves by c times its derivative."""
    caa = fit(llama, PAIRS)
    base = torch.tensor(margins(llama, PAIRS))

    def moved(c: float) -> Tensor:
        with caa.steering(llama, c=c, blocks=[1], positions=positions):
            return torch.tensor(margins(llama, PAIRS)) - base

    plus, minus = moved(0.01), moved(-0.01)
    assert plus.abs().min() > 1e-4
    assert (plus * minus < 0).all()
    torch.testing.assert_close(plus, -minus, rtol=0.2, atol=1e-4)
    assert moved(0.0).abs().max() < 1e-6
    assert torch.equal(moved(0.0), moved(0.0))


@pytest.mark.parametrize("positions", ["after_prompt", "all"])
def test_raw_vectors_are_added_to_the_chosen_blocks_and_no_norm_is_restored(
    llama: HuggingFaceModel, positions: Any
) -> None:
    caa = fit(llama, PAIRS)
    with caa.steering(llama, c=1.5, blocks=[0, 2], positions=positions):
        got = margins(llama, PAIRS)
    changes: dict[int, Callable[[Tensor], Tensor]] = {
        0: lambda h: h + 1.5 * caa.v[0].float(),
        2: lambda h: h + 1.5 * caa.v[2].float(),
    }
    with Edit(llama, "residual", changes, positions=positions):
        assert margins(llama, PAIRS) == pytest.approx(got, rel=1e-5, abs=1e-3)
    assert got != pytest.approx(margins(llama, PAIRS), abs=1e-2)


def test_vectors_of_another_model_are_refused(llama: HuggingFaceModel, qwen2: HuggingFaceModel) -> None:
    with pytest.raises(ValueError, match="from another model"):
        fit(llama, PAIRS).steering(qwen2, c=1.0, blocks=[0])
    with pytest.raises(ValueError, match="from 0 to 2"):
        fit(llama, PAIRS).steering(llama, c=1.0, blocks=[-1])
    with pytest.raises(ValueError, match="from 0 to 2"):
        fit(llama, PAIRS).steering(llama, c=1.0, blocks=[3])


@pytest.mark.parametrize("blocks", ["one", "all"])
@pytest.mark.parametrize("positions", ["after_prompt", "all"])
def test_the_grid_names_each_point_once_gentlest_first(llama: HuggingFaceModel, blocks: Any, positions: Any) -> None:
    caa = fit(llama, PAIRS)
    settings = caa.settings(llama, blocks=blocks, positions=positions)
    grid = MULTIPLIERS if blocks == "one" else MULTIPLIERS_OF_ALL
    assert [s.strength for s in settings] == sorted(c for c in grid for _ in range(3 if blocks == "one" else 1))
    assert len({(s.label, s.strength) for s in settings}) == len(settings)
    last = settings[-1]
    with last.steering():
        got = margins(llama, PAIRS)
    with caa.steering(llama, c=grid[-1], blocks=[2] if blocks == "one" else range(3), positions=positions):
        assert margins(llama, PAIRS) == got
    other = caa.settings(llama, blocks=blocks, positions="all" if positions == "after_prompt" else "after_prompt")
    other += fit(llama, PAIRS, read="difference").settings(llama, blocks=blocks, positions=positions)
    assert not {s.label for s in other} & {s.label for s in settings}  # a choice on dev goes by label and strength


def test_behaviours_are_brought_to_one_length_per_block(llama: HuggingFaceModel) -> None:
    fits = [fit(llama, PAIRS[:2]), fit(llama, PAIRS[2:])]
    first, second = same_lengths(fits)
    mean = (fits[0].v.norm(dim=1) + fits[1].v.norm(dim=1)) / 2
    torch.testing.assert_close(first.v.norm(dim=1), mean)
    torch.testing.assert_close(second.v.norm(dim=1), mean)
    torch.testing.assert_close(torch.cosine_similarity(first.v, fits[0].v), torch.ones(3).double())
    torch.testing.assert_close(same_lengths(fits[:1])[0].v, fits[0].v)
    with pytest.raises(ValueError, match="at least one fit"):
        same_lengths([])


def test_pictures_are_in_both_members_of_a_pair(tmp_path: Any) -> None:
    model = random_qwen_vl()
    noise_picture(60, 90).save(tmp_path / "a.png")
    noise_picture(56, 56, seed=3).save(tmp_path / "b.png")
    pairs = [pair(f"<image>{q}", "It is.", "Not", image=tmp_path / f"{q}.png") for q in ("a", "b")]
    got = fit(model, pairs).v
    items = [(p.prompt, answer, p.image) for p in pairs for answer in ("It is.", "Not")]
    by_hand = capture(model, items, site="residual")[:, :, 0].double()
    torch.testing.assert_close(got, (by_hand[0] - by_hand[1] + by_hand[2] - by_hand[3]) / 2, rtol=1e-4, atol=1e-5)
    plain = margins(model, pairs)
    with CAA(got, "last").steering(model, c=1.0, blocks=range(4)):
        assert margins(model, pairs) != pytest.approx(plain, abs=1e-3)
    assert margins(model, pairs) == plain


# --- the steering-vectors package


@pytest.fixture(scope="module")
def peer() -> Any:
    return pytest.importorskip("steering_vectors", reason="needs steering-vectors: tox -e peer-steering-vectors")


def texts(model: HuggingFaceModel, one: PreferencePair) -> tuple[str, str]:
    """Both as plain strings; the package tokenises prompt and answer together, here to the same ids."""
    both = tuple(f"{one.prompt} {answer}" for answer in (one.chosen, one.rejected))
    for text, answer in zip(both, (one.chosen, one.rejected), strict=True):
        ids = torch.cat([model.encode(one.prompt).ids, model.response_ids(one.prompt, answer)])
        assert model.tokenizer(text)["input_ids"] == ids.tolist()
    return both  # type: ignore[return-value]


@pytest.mark.parametrize("read", ["last", -2])
def test_vectors_agree_with_the_package(model: HuggingFaceModel, peer: Any, read: Any) -> None:
    pairs = [pair(p.prompt, f"{p.chosen} so", f"{p.rejected} so") for p in PAIRS]  # two tokens at least
    index = -1 if read == "last" else read
    trained = peer.train_steering_vector(
        model.hf, model.tokenizer, [texts(model, one) for one in pairs], read_token_index=index, batch_size=3
    )
    theirs = torch.stack([trained.layer_activations[block] for block in range(len(model.blocks))]).double()
    torch.testing.assert_close(fit(model, pairs, read=read).v, theirs, rtol=1e-5, atol=1e-5)


def test_steering_agrees_with_the_package(model: HuggingFaceModel, peer: Any) -> None:
    """Theirs adds from a token index on, in one pass; ours in two passes with a cache."""
    caa, block = fit(model, PAIRS), len(model.blocks) // 2
    vector = peer.SteeringVector({block: caa.v[block].float()})
    for one in PAIRS:
        p = len(model.encode(one.prompt).ids)
        for positions, first in (("after_prompt", p - 1), ("all", 0)):
            answer = model.response_ids(one.prompt, one.chosen)
            ids = torch.cat([model.encode(one.prompt).ids, answer])
            with torch.no_grad(), vector.apply(model.hf, multiplier=1.5, min_token_index=first):
                logits = model.hf(input_ids=ids[None], use_cache=False).logits[0, p - 1 : -1]
            theirs = logits.log_softmax(-1).gather(1, answer[:, None]).sum().item()
            with caa.steering(model, c=1.5, blocks=[block], positions=positions):  # type: ignore[arg-type]
                (ours,) = model.score([(one.prompt, one.chosen)])
            assert ours.log_prob == pytest.approx(theirs, rel=1e-5)


def test_the_package_steers_another_tower_of_a_model_that_sees(peer: Any) -> None:
    """It goes by the most frequent numbered name: Qwen2.5-VL has more vision blocks than decoder blocks."""
    model = random_qwen_vl()
    guess = peer.guess_and_enhance_layer_config(model.hf, None, "decoder_block")["decoder_block"]
    decoder = next(name for name, module in model.hf.named_modules() if module is model.blocks[0])
    assert guess.format(num=0) != decoder
    assert "visual" in guess
