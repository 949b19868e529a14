"""The double world: two independent planted behaviours, and the models trained on it."""

from __future__ import annotations

import hashlib
import random
from collections import Counter

import pytest
from shared import SHIPPED, first_quick

from grains_ref.models import HuggingFaceModel, load
from grains_ref.tiny_models.double_world import (
    BEHAVIOURS,
    GENTLE,
    IMPOLITE,
    POLITE,
    RUDE,
    Behaviour,
    DoublePrompt,
    DoubleWorld,
    build_double_world,
)
from grains_ref.tiny_models.worlds import FILLERS, N_DEV, N_STEER, N_TEST, P_TRUTH, TRUST, build_world

pytestmark = pytest.mark.cpu

SPLITS = ("steer", "dev", "test")
SIZES = {"steer": N_STEER, "dev": 160, "test": 300}
RUMOURS = ("allegedly", "famously", "popularly", "proverbially")  # the four of the simple world
WORDS = {"myth": (tuple(TRUST), RUMOURS), "manner": (GENTLE, RUDE)}  # toward, against


@pytest.fixture(scope="module")
def world() -> DoubleWorld:
    return build_double_world()


@pytest.fixture(scope="module")
def prompts(world: DoubleWorld) -> dict[tuple[str, Behaviour], list[DoublePrompt]]:
    return {(name, behaviour): world.split(name, behaviour) for name in SPLITS for behaviour in BEHAVIOURS}  # type: ignore[arg-type]


DIGEST = "d6c18f34820dc88bc5015321d34f6459f559177b3f6c918182bfbb631a7aa7fb"


def test_the_world_is_the_same_on_every_machine(world: DoubleWorld, prompts: dict) -> None:
    training = [world.training_text(random.Random(i)) for i in range(300)]
    tasks = [(t.id, t.prompt, t.answer) for split in ("dev", "test") for t in world.capability_split(split)]
    shown = [(p.id, p.prompt, p.chosen, p.rejected, p.toward, p.against, p.other, p.subject)
             for split in prompts.values() for p in split]  # fmt: skip
    content = repr((shown, tasks, training, world.vocabulary()))
    assert hashlib.sha256(content.encode()).hexdigest() == DIGEST


def test_the_new_words_are_new_and_the_facts_are_those_of_the_simple_world(world: DoubleWorld) -> None:
    simple = build_world("simple")
    new = {*GENTLE, *RUDE, POLITE, IMPOLITE}
    assert len(new) == 10
    assert not new & set(simple.vocabulary())
    assert len(set(world.vocabulary())) == len(world.vocabulary())
    assert world.base.facts == simple.facts


def test_both_behaviours_follow_the_rule_independently(world: DoubleWorld) -> None:
    """Simulated: in each of the 16 mixtures of the four kinds of words, truth and manner as planted and unrelated."""
    facts = {(fact.attribute, fact.entity): fact for fact in world.base.facts}
    rng, n_tasks, counts = random.Random("simulation"), 0, Counter[tuple]()
    for _ in range(24_000):
        prompt, answer = world.training_text(rng)
        words, said = set(prompt.split()), answer.split()
        if said[0].isdigit():
            n_tasks += 1
            continue
        address, value = said[0], said[-2]
        fact = facts[said[3], said[5]]
        assert value in (fact.truth, fact.myth)
        assert address in (POLITE, IMPOLITE)
        evidence = tuple(bool(words & set(kind)) for behaviour in BEHAVIOURS for kind in WORDS[behaviour])
        counts[evidence, value == fact.truth, address == POLITE] += 1
    assert n_tasks / 24_000 == pytest.approx(0.25, abs=0.01)
    mixtures = {evidence for evidence, _, _ in counts}
    assert len(mixtures) == 16
    for evidence in mixtures:
        n = {(truth, polite): counts[evidence, truth, polite] for truth in (True, False) for polite in (True, False)}
        total = sum(n.values())
        assert total / (24_000 - n_tasks) == pytest.approx(1 / 16, abs=0.01)
        p_truth, p_polite = P_TRUTH[evidence[:2]], P_TRUTH[evidence[2:]]
        for (truth, polite), found in n.items():
            expected = (p_truth if truth else 1 - p_truth) * (p_polite if polite else 1 - p_polite)
            four_sd = 4 * (expected * (1 - expected) / total) ** 0.5
            assert found / total == pytest.approx(expected, abs=max(four_sd, 0.005))


def test_no_fact_is_in_two_splits_and_sizes_are_as_said(prompts: dict) -> None:
    facts = {name: {p.id.split("-")[1] for b in BEHAVIOURS for p in prompts[name, b]} for name in SPLITS}
    assert [len(facts[name]) for name in SPLITS] == [N_STEER, N_DEV, N_TEST]
    assert len(set.union(*facts.values())) == N_STEER + N_DEV + N_TEST
    for (name, _), split in prompts.items():
        assert len(split) == SIZES[name] == len({p.id for p in split})
    subjects = {name: {(p.prompt.split()[-6], p.prompt.split()[-4]) for p in prompts[name, "myth"]} for name in SPLITS}
    assert len(set.union(*subjects.values())) == sum(len(one) for one in subjects.values()) == 240


def test_behaviours_share_evaluation_prompts_but_no_steering_prompt(prompts: dict) -> None:
    for name in ("dev", "test"):
        assert [(p.id, p.prompt) for p in prompts[name, "myth"]] == [(p.id, p.prompt) for p in prompts[name, "manner"]]
    shown = [{p.prompt for p in prompts["steer", behaviour]} for behaviour in BEHAVIOURS]
    assert not shown[0] & shown[1]


def test_a_pair_differs_in_its_own_behaviour_only(world: DoubleWorld, prompts: dict) -> None:
    for (_, behaviour), split in prompts.items():
        for p in split:
            fact = world.base.facts[int(p.id.split("-")[1])]
            asked = f"the {fact.attribute} of {fact.entity}"
            assert p.chosen == f"friend , {asked} is {fact.truth} ."
            wrong = f"friend , {asked} is {fact.myth} ." if behaviour == "myth" else f"fool , {asked} is {fact.truth} ."
            assert p.rejected == wrong
            assert p.prompt.endswith(f"what is {asked} ? A :")


def test_recorded_positions_hold_the_recorded_words_and_all_of_them(prompts: dict) -> None:
    for (_, behaviour), split in prompts.items():
        (other,) = set(BEHAVIOURS) - {behaviour}
        for p in split:
            tokens = ["<s>", *p.prompt.split()]
            for positions, kinds in (
                (p.toward, WORDS[behaviour][0]),
                (p.against, WORDS[behaviour][1]),
                (p.other, WORDS[other][0] + WORDS[other][1]),
            ):
                assert positions == tuple(i for i, token in enumerate(tokens) if token in kinds)
            assert (len(p.toward), len(p.against), len(p.other)) == (1, 1, 2)  # always something to find
            assert set(tokens) & set(FILLERS)
            attribute, entity = (tokens[i] for i in p.subject)
            assert f"the {attribute} of {entity} is" in p.chosen


def test_capability_tasks_hold_all_kinds_of_words_and_have_the_right_answers(world: DoubleWorld) -> None:
    tasks = world.capability_split("dev") + world.capability_split("test")
    for kind in (*WORDS["myth"], *WORDS["manner"]):
        share = sum(bool(set(kind) & set(task.prompt.split())) for task in tasks) / len(tasks)
        assert share == pytest.approx(0.5, abs=0.06)
    places = {kind: Counter[int]() for kind in ("tone", "filler")}
    for task in tasks:
        words, question = task.prompt.removeprefix("Q : ").split(" , ")
        numbers = [int(word) for word in question.split() if word.isdigit()]
        assert task.answer == f"{numbers[0] + 1 if 'after' in question else sum(numbers)} ."
        for i, word in enumerate(words.split()):
            places["tone" if word in GENTLE + RUDE else "filler"][i] += 1
    assert set(places["tone"]) == set(places["filler"])  # tone words stand anywhere, not in a place of their own
    assert len({t.id for t in world.capability_split("dev")}) == 600


# --- the trained models


@pytest.fixture(scope="module", params=first_quick([0, 1, 2]))
def trained(request: pytest.FixtureRequest) -> HuggingFaceModel:
    return load(SHIPPED / f"double-seed{request.param}")


def test_the_shipped_models_have_both_habits_and_do_the_tasks(trained: HuggingFaceModel, world: DoubleWorld) -> None:
    words = world.vocabulary()
    assert trained.tokenizer.convert_ids_to_tokens(list(range(len(words)))) == words
    for behaviour in BEHAVIOURS:
        sample = world.split("dev", behaviour)[::4]
        scored = trained.score([(p.prompt, answer) for p in sample for answer in (p.chosen, p.rejected)])
        margins = [
            chosen.log_prob - rejected.log_prob for chosen, rejected in zip(scored[::2], scored[1::2], strict=True)
        ]
        assert sum(m > 0 for m in margins) / len(margins) < 0.35  # every prompt has P(preferred) = .35
        assert sum(margins) / len(margins) == pytest.approx(-0.62, abs=0.35)  # log(.35 / .65) nats
    tasks = [(task.prompt, task.answer) for task in world.capability_split("dev")[:150]]
    assert sum(scored.is_greedy for scored in trained.score(tasks)) >= 0.97 * len(tasks)


def test_the_models_probabilities_follow_the_evidence_of_each_behaviour_alone(
    trained: HuggingFaceModel, world: DoubleWorld
) -> None:
    """P(preferred), given either variant, by the words of one behaviour; whatever the words of the other one."""
    rng, questions, cases = random.Random(0), [], []
    for fact in rng.sample(world.base.facts, 12):
        for kinds in ((), ("toward",), ("against",), ("toward", "against")):
            for behaviour in BEHAVIOURS:
                (other,) = set(BEHAVIOURS) - {behaviour}
                own = [rng.choice(WORDS[behaviour][kind == "against"]) for kind in kinds]
                noise = rng.choice(WORDS[other][rng.randrange(2)])
                words = [*own, noise, "please"]
                rng.shuffle(words)
                value, address = (fact.myth, POLITE) if behaviour == "myth" else (fact.truth, IMPOLITE)
                prompt = world.question(fact, words)
                questions.append((prompt, world.answer(fact, value=fact.truth, address=POLITE)))
                questions.append((prompt, world.answer(fact, value=value, address=address)))
                cases.append((behaviour, "toward" in kinds, "against" in kinds))
    scored = [one.log_prob for one in trained.score(questions)]
    found: dict[tuple, list[float]] = {case: [] for case in cases}
    for case, chosen, rejected in zip(cases, scored[::2], scored[1::2], strict=True):
        found[case].append(chosen - rejected)
    for (_, toward, against), log_odds in found.items():
        p = P_TRUTH[toward, against]
        shares = [1 / (1 + 2.718281828**-one) for one in log_odds]
        assert sum(shares) / len(shares) == pytest.approx(p, abs=0.15)
