"""The examples of a fit: f at both ends and the scores in between are those of the stages."""

from __future__ import annotations

import pytest

from grains_ref.data import PreferencePair
from grains_ref.grains import HyperParameters, Shift, attribute, eligible_tokens, select
from grains_ref.models import HuggingFaceModel
from grains_ref.report.fitted import fitted_examples, prompt_words

pytestmark = pytest.mark.cpu


def test_a_fits_examples_are_what_its_stages_say(simple_model: HuggingFaceModel) -> None:
    hp = HyperParameters(m=2)
    pair = PreferencePair("one", "Q : what is the dish of Kelvara ? A :", "eel .", "barley .", "here")
    example = simple_model.example(pair.prompt, pair.chosen, pair.rejected)
    attribution = attribute(simple_model, example, hp)
    selection = select(attribution.a, k=2, eligible=eligible_tokens(example.encoded, ()))
    nothing = example.encoded.embeds[:2]
    (made,) = fitted_examples(simple_model, [pair], [example], [Shift(attribution.a, selection, nothing, nothing)], hp)
    assert made.f_x == pytest.approx(attribution.f_x, abs=1e-4)
    assert made.gap == pytest.approx(attribution.gap, abs=1e-4)
    assert list(made.a) == attribution.a.tolist()
    assert (made.pos, made.neg) == (selection.pos, selection.neg)
    assert (made.prompt, made.chosen, made.rejected) == (pair.prompt, "eel .", "barley .")


def test_a_chat_is_told_turn_by_turn() -> None:
    assert prompt_words([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]) == (
        "system: Be brief.\nuser: Hi"
    )
