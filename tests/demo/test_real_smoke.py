"""The released model itself, where it was fetched before: `grains-ref demo --real` or `reproduce --rung real` do it."""

from __future__ import annotations

import warnings

import pytest

from grains_ref.demo.real import BEHAVIOURS, packages
from grains_ref.demo.real.facts import Fact, facts
from grains_ref.demo.real.lie import answers, lied_to
from grains_ref.evaluation.measures import margins
from grains_ref.methods import edit_gradient
from grains_ref.models import HuggingFaceModel, load

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def smol() -> HuggingFaceModel:
    if why := packages.why_missing():
        pytest.skip(why)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load(packages.prepare(lambda what: None), dtype="float32")


def test_it_knows_better_and_believes_the_lie_and_the_edit_gradient_rights_it(smol: HuggingFaceModel) -> None:
    liars = {"Hungary": "Madrid", "Portugal": "Vienna", "Kenya": "Cairo", "Norway": "Athens"}
    wording = "According to my notes, {claim} {question}"
    known = [Fact("capital", fact.subject, fact.value) for fact in facts() if fact.kind == "capital"]
    of_country = {fact.subject: fact for fact in known}
    plain = [answers(of_country[c], told, of_country[c].question) for c, told in liars.items()]
    lies = [lied_to(of_country[c], told, wording) for c, told in liars.items()]
    assert min(margins(smol, plain)) > 0
    believed = margins(smol, lies)
    assert sum(believed) < sum(margins(smol, plain)) - 20
    fit = edit_gradient.fit(smol, lies[:2], site="residual", positions="all")
    with fit.steering(smol, lam=0.002):
        assert sum(margins(smol, lies[2:])) > sum(believed[2:]) + 2


def test_every_behaviour_has_its_sets(smol: HuggingFaceModel) -> None:
    def count_tokens(text: str) -> int:
        return len(smol.tokenizer(text, add_special_tokens=False)["input_ids"])

    for behaviour in BEHAVIOURS.values():
        sets = behaviour.build(0, count_tokens)
        assert min(len(sets.steer), len(sets.dev), len(sets.test)) >= 12
    lie = BEHAVIOURS["lie"].build(0, count_tokens)
    assert all(count_tokens(f" {pair.chosen}") == count_tokens(f" {pair.rejected}") for pair in lie.test)
