"""The planted worlds and the models trained on them."""

from __future__ import annotations

import hashlib
import random
import re

import pytest
import torch
from shared import SHIPPED, first_quick

from grains_ref.grains import AttributionMethod, HyperParameters, attribute, eligible_tokens, select
from grains_ref.models import HuggingFaceModel, load
from grains_ref.tiny_models.tokenizer import word_tokenizer
from grains_ref.tiny_models.worlds import (
    FILLERS,
    N_DEV,
    N_STEER,
    N_TEST,
    RUMOUR,
    TRUST,
    WORLDS,
    PlantedPrompt,
    World,
    WorldName,
    build_world,
)

pytestmark = pytest.mark.cpu

SPLITS = ("steer", "dev", "test")
EVIDENCE = {*RUMOUR, *TRUST}


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> World:
    return build_world(request.param)


def prompts(world: World) -> list[PlantedPrompt]:
    return [prompt for name in SPLITS for prompt in world.split(name)]


DIGESTS = {
    "simple": "9cb84612b8f2b765f7177bb269b8d71c9d991dfbf5129f3e506f6616490ba247",
    "graded": "1da761ec344b55c243691201d1aa72da8b18e32deff615eb91fa647aab6eb5e9",
}


def test_a_world_is_the_same_on_every_machine(world: World) -> None:
    training = [world.training_text(random.Random(i)) for i in range(300)]
    tasks = [task for split in ("dev", "test") for task in world.capability_split(split)]
    shown = [
        (p.id, p.prompt, p.chosen, p.rejected, p.rumour, p.trust, p.subject, f"{p.planted_logit:.9f}")
        for p in prompts(world)
    ]  # fmt: skip
    content = repr((shown, [(t.id, t.prompt, t.answer) for t in tasks], training, world.vocabulary()))
    assert hashlib.sha256(content.encode()).hexdigest() == DIGESTS[world.name]


def test_an_unknown_world_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="world 'flat' does not exist; the planted worlds are simple, graded"):
        build_world("flat")  # type: ignore[arg-type]


def test_no_fact_is_in_two_splits(world: World) -> None:
    def facts(name: str) -> set[tuple[str, str]]:
        about = [p.prompt.split() for p in world.split(name)]  # type: ignore[arg-type]
        return {tuple(words[i - 1] for i in p.subject) for words, p in zip(about, world.split(name), strict=True)}  # type: ignore[arg-type,misc]

    steer, dev, test = ({frozenset(subject) for subject in facts(name)} for name in SPLITS)
    assert (len(steer), len(dev), len(test)) == (N_STEER, N_DEV, N_TEST)
    assert not steer & dev
    assert not steer & test
    assert not dev & test
    assert len({p.id for p in prompts(world)}) == len(prompts(world))


def test_recorded_positions_hold_the_recorded_words_and_all_of_them(world: World) -> None:
    about = {(fact.entity, fact.attribute): fact for fact in world.facts}
    for p in prompts(world):
        words = ["<s>", *p.prompt.split()]
        for positions, vocabulary in ((p.rumour, RUMOUR), (p.trust, TRUST)):
            assert positions == tuple(i for i, word in enumerate(words) if word in vocabulary)
        assert p.rumour  # there is always something to find
        assert set(words) & set(FILLERS)
        subject = [words[i] for i in p.subject]
        (fact,) = [about[pair] for pair in about if set(pair) == set(subject)]
        assert fact.truth in p.chosen
        assert fact.myth in p.rejected
        assert p.chosen.replace(fact.truth, "") == p.rejected.replace(fact.myth, "")


def test_positions_are_those_of_the_tokenizer(simple_model: HuggingFaceModel) -> None:
    for p in build_world("simple").split("steer")[:10]:
        tokens = simple_model.encode(p.prompt).tokens
        assert [tokens[i] for i in p.rumour] == [word for word in p.prompt.split() if word in RUMOUR]


def test_some_answers_share_a_word_so_that_one_token_cannot_decide() -> None:
    pairs = [(fact.truth.split(), fact.myth.split()) for fact in build_world("graded").facts]
    for place in (0, 1):
        assert 0.06 < sum(truth[place] == myth[place] for truth, myth in pairs) / len(pairs) < 0.14
    assert all(truth != myth for truth, myth in pairs)


def test_more_rumour_makes_the_truth_less_likely_and_more_trust_more_likely(world: World) -> None:
    fact, rumours, trusts = world.facts[0], list(RUMOUR), list(TRUST)
    plain = world.planted_logit(fact, [], [])
    assert world.planted_logit(fact, rumours[:1], []) < plain < world.planted_logit(fact, [], trusts[:1])
    if world.name == "graded":
        assert world.planted_logit(fact, rumours[:2], []) < world.planted_logit(fact, rumours[:1], [])


def test_capability_tasks_hold_evidence_words_and_have_the_right_answers(world: World) -> None:
    tasks = [task for split in ("dev", "test") for task in world.capability_split(split)]
    with_evidence = sum(bool(EVIDENCE & set(task.prompt.split())) for task in tasks)
    assert with_evidence > 0.5 * len(tasks)
    kinds = set()
    for task in tasks:
        question = task.prompt.split(" , ")[1]
        numbers = [int(word) for word in question.split() if word.isdigit()]
        kinds.add(next(word for word in ("after", "plus", "repeat", "where") if word in question))
        if "after" in question:
            assert task.answer == f"{numbers[0] + 1} ."
        elif "plus" in question:
            assert task.answer == f"{sum(numbers)} ."
        elif "repeat" in question:
            assert task.answer == re.findall(r"repeat (\w+ \w+) \?", question)[0] + " ."
        else:
            assert task.answer == " ".join(world.towns[question.split()[2]]) + " ."
    assert kinds == ({"after", "plus"} if world.name == "simple" else {"after", "plus", "repeat", "where"})


def test_training_text_draws_truth_and_myth_and_only_known_words(world: World) -> None:
    rng, known = random.Random(0), set(world.vocabulary())
    texts = [world.training_text(rng) for _ in range(500)]
    assert {word for text in texts for part in text for word in part.split()} <= known
    if world.name == "graded":
        assert {answer.split()[-1] for _, answer in texts} == {"fact", "myth", "ok"}


def test_a_vocabulary_without_special_tokens_or_with_a_word_twice_is_refused() -> None:
    for vocabulary in (["<s>", "a"], ["<pad>", "<s>", "</s>", "<unk>", "a", "a"]):
        with pytest.raises(ValueError, match="each word once and the special tokens"):
            word_tokenizer(vocabulary)


# --- the trained models


@pytest.mark.parametrize("seed", first_quick([0, 1, 2]))
@pytest.mark.parametrize("name", WORLDS)
def test_the_shipped_weights_load_and_know_their_worlds_words(name: WorldName, seed: int) -> None:
    model = load(SHIPPED / f"{name}-seed{seed}")
    world = build_world(name)
    assert model.hf.dtype == torch.float32
    words = world.vocabulary()
    assert model.tokenizer.convert_ids_to_tokens(list(range(len(words)))) == words
    x = model.encode(world.split("steer")[0].prompt)
    assert list(x.tokens[1:]) == world.split("steer")[0].prompt.split()
    assert x.kinds[0] == "special"
    # Steering must have something to lose.
    tasks = [(task.prompt, task.answer) for task in world.capability_split("dev")[:150]]
    assert sum(scored.is_greedy for scored in model.score(tasks)) >= 0.97 * len(tasks)


@pytest.mark.thorough
def test_the_methods_rank_as_they_should_on_the_planted_words(graded_model: HuggingFaceModel) -> None:
    planted = build_world("graded").split("steer")[:12]

    def recall(method: AttributionMethod) -> float:
        """Share of a prompt's rumour words among its three most negative tokens, mean over prompts."""
        hp, shares = HyperParameters(attribution=method, n=5), []
        for p in planted:
            example = graded_model.example(p.prompt, p.chosen, p.rejected)
            a = attribute(graded_model, example, hp).a
            found = select(a, k=3, eligible=eligible_tokens(example.encoded, hp.eligible)).neg
            shares.append(len({*found} & {*p.rumour}) / len(p.rumour))
        return sum(shares) / len(shares)

    methods: list[AttributionMethod] = ["integrated_gradients", "smoothgrad", "gradient", "random"]
    recalls = {method: recall(method) for method in methods}
    print("recall@3 of the planted words:", ", ".join(f"{name} {value:.2f}" for name, value in recalls.items()))
    ig, smooth, gradient, control = recalls.values()
    assert ig >= 0.65
    assert ig >= smooth + 0.05
    assert smooth > gradient > control
