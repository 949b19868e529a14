"""metrics.py, replies.py and what evaluation.py makes of them: closed forms, brute force, published golden values."""

from __future__ import annotations

import itertools
import math
import random
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grains_ref.data import Message, PreferencePair
from grains_ref.evaluation.measures import (
    bleu_accuracy,
    generations,
    margins,
    multiple_choice,
    multiple_choice_accuracy,
    preference_accuracy,
)
from grains_ref.evaluation.metrics import (
    Mean,
    Rate,
    average,
    binary,
    bleu,
    bleu_scores,
    by_group,
    clustered_mean,
    hallucinated,
    holm,
    mc1,
    mc2,
    mc3,
    mcnemar,
    normalised,
    paired_gain,
    rate,
    rating_summary,
    sign_flip_p,
)
from grains_ref.grains import Steering, log_prob
from grains_ref.models import HuggingFaceModel

pytestmark = pytest.mark.cpu


# --- aggregates


def test_values_without_clusters_stand_for_themselves() -> None:
    rng = random.Random(0)
    values = [rng.gauss(0.4, 0.2) for _ in range(400)]
    found = clustered_mean(values)
    half = 1.96 * float(np.std(values)) / 20
    assert (found.value, found.n) == (pytest.approx(sum(values) / 400), 400)
    assert (found.low, found.high) == (
        pytest.approx(found.value - half, abs=0.1 * half),
        pytest.approx(found.value + half, abs=0.1 * half),
    )


def test_the_bootstrap_of_many_values_is_that_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [float(i % 7) for i in range(120)]
    whole = clustered_mean(values)
    monkeypatch.setattr("grains_ref.evaluation.metrics._AT_ONCE", 1000)  # eight resamples at a time
    assert clustered_mean(values) == whole


def test_a_mean_is_written_in_its_own_unit() -> None:
    ratings = [6.0, 3.0, 0.0, 3.0]
    assert str(average(ratings)).startswith("3.00 [")
    assert average(ratings, ["a", "a", "b", "b"]) == Mean(**vars(clustered_mean(ratings, list("aabb"))))
    assert str(Rate(0.5, 0.25, 0.75, 4)) == "50.0 % [25.0, 75.0]"


def test_groups_are_counted_apart() -> None:
    outcomes, subjects = [True, False, True, True, False], ["law", "art", "law", "art", "law"]
    assert by_group(outcomes, subjects) == {"art": rate([False, True]), "law": rate([True, True, False])}
    assert list(by_group(outcomes, subjects)) == ["art", "law"]
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        by_group(outcomes, subjects[:4])


# --- multiple choice


@pytest.mark.parametrize(
    ("scores", "labels", "first", "mass", "share"),
    [
        ([-1.0, -2.0, -3.0], [1, 0, 0], True, 1 / (1 + math.exp(-1) + math.exp(-2)), 1.0),
        ([-1.0, -2.0, -3.0], [0, 1, 0], False, 1 / (math.exp(1) + 1 + math.exp(-1)), 0.0),
        ([-3.0, -2.0, -1.0], [0, 0, 1], True, 1 / (1 + math.exp(-1) + math.exp(-2)), 1.0),
        ([-2.0, -2.0], [1, 0], False, 0.5, 0.0),  # a tie is wrong, wherever the right one stands
        ([-2.0, -2.0], [0, 1], False, 0.5, 0.0),
        ([-2000.0, -2001.0], [1, 0], True, 1 / (1 + math.exp(-1)), 1.0),
        ([-5000.0, -5.0], [1, 0], False, 0.0, 0.0),
        ([-math.inf, -5.0], [0, 1], True, 1.0, 1.0),
    ],
)
def test_scores_of_one_question(scores: list[float], labels: list[int], first: bool, mass: float, share: float) -> None:
    assert mc1(scores, labels) is first
    assert mc2(scores, labels) == pytest.approx(mass, rel=1e-12)
    assert mc3(scores, labels) == share
    if len(scores) == 2:
        assert binary(scores, labels) is first


def test_several_right_choices_share_their_mass() -> None:
    scores, labels = [-1.0, -2.5, -2.0, -4.0, -1.5], [0, 1, 1, 0, 1]
    p = np.exp(scores) / np.exp(scores).sum()
    assert mc2(scores, labels) == pytest.approx(p[1] + p[2] + p[4], rel=1e-12)
    assert mc3(scores, labels) == 0.0
    assert mc3([-1.0, -2.5, -0.5, -4.0, -0.9], labels) == pytest.approx(2 / 3)
    assert mc3([-1.0, -1.0, -0.5, -4.0, -0.9], labels) == pytest.approx(2 / 3)  # a tie is wrong


@given(
    st.lists(st.tuples(st.floats(-3000, 0), st.integers(0, 1)), min_size=2, max_size=9).filter(
        lambda one: 0 < sum(label for _, label in one) < len(one)
    ),
    st.randoms(use_true_random=False),
)
def test_order_and_a_common_factor_do_not_matter(one: list[tuple[float, int]], rng: random.Random) -> None:
    scores, labels = map(list, zip(*one, strict=True))
    shuffled = rng.sample(one, len(one))
    again, labels_again = map(list, zip(*shuffled, strict=True))
    assert mc2(scores, labels) == pytest.approx(mc2(again, labels_again), abs=1e-12)
    assert mc3(scores, labels) == mc3(again, labels_again)
    assert mc2([s - 100 for s in scores], labels) == pytest.approx(mc2(scores, labels), abs=1e-9)
    assert mc2(scores, labels) + mc2(scores, [1 - label for label in labels]) == pytest.approx(1)


@pytest.mark.parametrize("measure", [mc1, mc2, mc3])
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([-1.0, -2.0], [1], r"one label, 0 or 1, for each of 2 choices; got \[1\]"),
        ([-1.0, -2.0], [2, 0], "one label, 0 or 1"),
        ([-1.0, -2.0], [0, 0], "found 0 right and 2 wrong"),
        ([-1.0, -2.0], [1, 1], "found 2 right and 0 wrong"),
        (
            [-1.0, math.nan],
            [1, 0],
            "the score of a choice is NaN or infinite; a steered model that overflows needs a smaller lam",
        ),
    ],
)
def test_what_is_no_question_is_refused(measure: Any, scores: list[float], labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(scores, labels)


def test_mc1_and_binary_want_their_number_of_choices() -> None:
    with pytest.raises(ValueError, match="mc1 needs exactly one right choice, found 2; with several use mc2"):
        mc1([-1.0, -2.0, -3.0], [1, 0, 1])
    with pytest.raises(ValueError, match="a binary question has two choices, this one has 3"):
        binary([-1.0, -2.0, -3.0], [1, 0, 0])


def test_scores_per_token() -> None:
    assert normalised(-6.0, n_tokens=4, by="sum") == -6.0
    assert normalised(-6.0, n_tokens=4, by="token") == -1.5
    with pytest.raises(ValueError, match="normalise 'mean' is unknown; expected 'sum' or 'token'"):
        normalised(-6.0, n_tokens=4, by="mean")  # type: ignore[arg-type]


# --- BLEU


@pytest.mark.parametrize(
    ("reference", "prediction", "expected"),
    [
        ("Nothing happens.", "Nothing happens.", 0.0),  # three tokens have no 4-gram
        ("You turn to stone.", "You will turn to stone.", 53.728497),
        (
            "The watermelon seeds pass through your digestive system.",
            "The seeds pass through your digestive system.",
            76.727965,
        ),
        ("I have no comment.", "I have no comment.", 100.0),
        ("You grow watermelons in your stomach.", "I have no comment.", 7.160476),
        ("I have no comment.", "", 0.0),
        ("THE SEEDS PASS THROUGH YOU.", "the seeds pass through you.", 8.116698),  # letters' case counts
        (  # "intl" splits quotation marks off
            "It\u2019s \u201ctrue\u201d that you don\u2019t turn to stone.",
            "It\u2019s true that you don\u2019t turn to stone.",
            66.581303,
        ),
    ],
)
def test_bleu_has_truthfulqas_golden_values(reference: str, prediction: str, expected: float) -> None:
    assert bleu(prediction, reference) == pytest.approx(expected, abs=5e-7)


def test_effective_order_is_there_for_short_answers() -> None:
    assert bleu("Nothing happens.", "Nothing happens.", effective_order=True) == pytest.approx(100)
    scored = bleu_scores(["No."], true=[["No."]], false=[["Yes."]], effective_order=True)
    assert scored.right == (True,)


def test_the_closest_reference_of_each_kind_counts_and_a_tie_is_wrong() -> None:
    comment, stone = "I have no comment.", "You turn to stone."
    found = bleu_scores(
        [comment, "You will turn to stone.", comment, "Nothing happens."],
        true=[[stone, comment], [comment], [comment], ["Nothing happens."]],
        false=[["You grow watermelons in your stomach."], [comment, stone], [stone, comment], ["Yes."]],
    )
    assert found.true == pytest.approx((100, bleu("You will turn to stone.", comment), 100, 0))
    assert found.false == pytest.approx((7.160476, 53.728497, 100, 0), abs=5e-7)
    assert found.right == (True, False, False, False)
    assert found.differences[0] == pytest.approx(100 - 7.160476, abs=5e-7)
    assert found.accuracy == rate([True, False, False, False])


@pytest.mark.parametrize(("true", "false"), [([], ["b"]), (["a"], []), ("a", ["b"]), (["a"], "b")])
def test_replies_without_references_are_refused(true: Any, false: Any) -> None:
    with pytest.raises(ValueError, match="need lists of right and of wrong references for every reply; got"):
        bleu_scores(["x"], true=[true], false=[false])
    with pytest.raises(ValueError, match="zip"):
        bleu_scores(["x", "y"], true=[["a"]], false=[["b"]])


def test_without_sacrebleu_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ImportError, match=r"BLEU needs sacrebleu; install it with: pip install 'grains-ref\[eval\]'"):
        bleu("a", "b")


def test_one_reply_is_not_taken_for_a_list_of_letters() -> None:
    with pytest.raises(ValueError, match="replies is one str, 'ab'; give a list"):
        bleu_scores("ab", true=[["a"], ["b"]], false=[["c"], ["d"]])


def test_every_rating_needs_a_kind_or_none_does() -> None:
    with pytest.raises(ValueError, match="got 3 ratings and 2 kinds"):
        rating_summary([1, 5, None], kinds=["attribute", "relation"])


# --- hallucination


def test_a_rating_below_three_is_a_hallucination() -> None:
    assert [hallucinated(rating) for rating in (None, 0, 1, 2, 3, 4, 5, 6)] == [True] * 4 + [False] * 4


def test_ratings_are_summed_up_with_and_without_the_unrated() -> None:
    kinds = ("attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other")
    ratings = [None if i % 24 == 5 else (7 * i) % 5 + i % 3 for i in range(96)]  # as many as MMHal-Bench has
    found = rating_summary(ratings, [kinds[i % 8] for i in range(96)])
    assert found.n_unrated == 4
    assert found.hallucination == rate(r is None or r <= 2 for r in ratings)
    assert found.hallucination_rated == rate(r <= 2 for r in ratings if r is not None)
    assert found.hallucination_rated.n == 92
    points = [r or 0 for r in ratings]
    assert found.mean.value == pytest.approx(sum(points) / 96)
    assert found.mean.low < found.mean.value < found.mean.high
    assert found.by_kind == {kind: sum(points[i::8]) / 12 for i, kind in enumerate(kinds)}
    assert rating_summary(ratings).by_kind == {}


def test_ratings_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="no rating in 2 replies; look at what the judge wrote"):
        rating_summary([None, None])
    with pytest.raises(ValueError, match="ratings go from 0 to 6; found 7"):
        rating_summary([3, 7])


# --- paired comparisons


def test_the_same_questions_make_a_gain_sharper() -> None:
    rng = random.Random(0)
    base = [rng.random() < 0.5 for _ in range(300)]
    better = [b or rng.random() < 0.1 for b in base]
    gain = paired_gain(better, base)
    assert gain.value == pytest.approx((sum(better) - sum(base)) / 300)
    assert gain.low > 0
    unpaired = rate(better).low - rate(base).high
    assert unpaired < 0  # the two intervals overlap
    assert paired_gain(base, better).value == -gain.value


def test_paired_gains_know_clusters() -> None:
    base = [0.0, 0.0, 1.0, 1.0, 0.0, 1.0] * 10
    better = [1.0, 1.0, 1.0, 1.0, 0.0, 1.0] * 10
    facts = [f"fact {i // 2}" for i in range(60)]
    gain = paired_gain(better, base, clusters=facts)
    assert (gain.n, gain.value) == (30, pytest.approx(1 / 3))
    naive = paired_gain(better, base)
    assert gain.high - gain.low > 1.2 * (naive.high - naive.low)
    with pytest.raises(ValueError, match="needs the same questions; got 60 and 59 outcomes"):
        paired_gain(better, base[:59])


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 5), st.integers(0, 5))
def test_mcnemars_p_is_a_sum_of_binomials(gained: int, lost: int, both: int, neither: int) -> None:
    first = [True] * gained + [False] * lost + [True] * both + [False] * neither
    second = [False] * gained + [True] * lost + [True] * both + [False] * neither
    found = mcnemar(first, second)
    n = gained + lost
    tail = sum(math.comb(n, i) for i in range(min(gained, lost) + 1)) / 2**n
    assert (found.gained, found.lost) == (gained, lost)
    assert found.p == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(second, first).p == pytest.approx(found.p)


def test_sign_flips_are_all_patterns_where_they_are_few() -> None:
    first, second = [0.9, 0.4, 0.8, 0.7, 0.3, 0.9], [0.2, 0.5, 0.1, 0.6, 0.1, 0.8]
    d = np.subtract(first, second)
    patterns = np.array(list(itertools.product([1, -1], repeat=6)))
    expected = np.mean(np.abs(patterns @ d) >= abs(d.sum()) - 1e-12)
    assert sign_flip_p(first, second) == pytest.approx(expected)
    twice = [f"fact {i // 2}" for i in range(12)]
    doubled = sign_flip_p(np.repeat(first, 2).tolist(), np.repeat(second, 2).tolist(), clusters=twice)
    assert doubled == pytest.approx(expected)  # a copy of each question tells nothing new


def test_sign_flips_of_many_questions() -> None:
    rng = random.Random(0)
    base = [float(rng.random() < 0.5) for _ in range(200)]
    other = [float(rng.random() < 0.5) for _ in range(200)]
    better = [max(b, float(rng.random() < 0.3)) for b in base]
    assert sign_flip_p(better, base) == pytest.approx(1e-4, rel=2)
    gained, lost = (
        sum(o > b for o, b in zip(other, base, strict=True)),
        sum(o < b for o, b in zip(other, base, strict=True)),
    )
    assert mcnemar([o > 0 for o in other], [b > 0 for b in base]).p == pytest.approx(sign_flip_p(other, base), abs=0.03)
    assert gained != lost
    assert sign_flip_p(base, base) == 1.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_bonferroni_test(p_values: list[float]) -> None:
    """An adjusted p-value is the largest Bonferroni p-value of any set of comparisons with this one in it."""
    names = [f"method {i}" for i in range(len(p_values))]
    found = holm(dict(zip(names, p_values, strict=True)))
    assert list(found) == names
    sets = [s for n in range(1, len(names) + 1) for s in itertools.combinations(range(len(names)), n)]
    for i, name in enumerate(names):
        worst = max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in sets if i in s)
        assert found[name] == pytest.approx(worst, abs=1e-12)


def test_holm_by_hand() -> None:
    assert holm({"b": 0.04, "a": 0.01, "c": 0.03}) == pytest.approx({"b": 0.06, "a": 0.03, "c": 0.06})
    with pytest.raises(ValueError, match=r"the p-value of 'x' is 1\.5; expected 0 to 1"):
        holm({"x": 1.5})
    with pytest.raises(ValueError, match="the p-value of 'x' is nan"):
        holm({"x": math.nan})


# --- models


@dataclass(frozen=True)
class Question:
    """A record as the readers give it."""

    prompt: str | tuple[Message, ...]
    choices: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()
    references: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    images: tuple[str, ...] = ()


MOON: tuple[Message, ...] = ({"role": "user", "content": "What is the moon made of?"},)
QUESTIONS = [
    Question("Q: Is the earth flat?\nA:", ("Yes.", "No, the earth is round.", "It is not."), (0, 1, 1)),
    Question("The capital of France is", ("Paris.", "the moon"), (1, 0)),
    Question(MOON, ("cheese", "rock", "weather", "Rome"), (0, 1, 0, 0)),
]


@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_choices_are_scored_as_responses_under_any_steering(model: HuggingFaceModel, lam: float) -> None:
    v = torch.randn(len(model.blocks), model.width, generator=torch.Generator().manual_seed(0))
    with Steering(model.blocks, v, lam=lam):
        found, per_token = (multiple_choice(model, QUESTIONS, normalise=by) for by in ("sum", "token"))
        for question, sums, means in zip(QUESTIONS, found.scores, per_token.scores, strict=True):
            x = model.encode(question.prompt)
            for choice, total, mean in zip(question.choices, sums, means, strict=True):
                y = model.response_ids(question.prompt, choice)
                expected = log_prob(model, x, x.embeds[None], y=y).item()
                assert total == pytest.approx(expected, rel=1e-5)
                assert mean == pytest.approx(expected / len(y), rel=1e-5)
    assert found.mc2 == tuple(mc2(s, q.labels) for s, q in zip(found.scores, QUESTIONS, strict=True))
    assert found.mc3 == tuple(mc3(s, q.labels) for s, q in zip(found.scores, QUESTIONS, strict=True))
    with pytest.raises(ValueError, match="exactly one right choice, found 2"):
        _ = found.mc1
    assert (found.normalise, per_token.normalise) == ("sum", "token")


def test_normalisation_changes_preferences_between_answers_of_different_length(llama: HuggingFaceModel) -> None:
    pairs = [
        PreferencePair(str(i), "Is the earth flat?", long, "Yes.", where="p:1", choices=(long, "Yes."), label=0)
        for i, long in enumerate(("No, the earth is round.", "No, it is made of rock, and that is true.", "Rome"))
    ]
    sums, means = margins(llama, pairs), margins(llama, pairs, normalise="token")
    scored = llama.score([(p.prompt, y) for p in pairs for y in (p.chosen, p.rejected)])
    lengths = [len(llama.response_ids(p.prompt, y)) for p in pairs for y in (p.chosen, p.rejected)]
    for i in range(3):
        c, r = (scored[2 * i + j].log_prob for j in (0, 1))
        assert sums[i] == pytest.approx(c - r, abs=1e-5 * max(abs(c), abs(r)))
        per_token = (c / lengths[2 * i], r / lengths[2 * i + 1])
        assert means[i] == pytest.approx(per_token[0] - per_token[1], abs=1e-5 * max(map(abs, per_token)))
    assert [m > 0 for m in sums] != [m > 0 for m in means]
    for by, found in (("sum", sums), ("token", means)):
        expected = rate(m > 0 for m in found)
        assert preference_accuracy(llama, pairs, normalise=by) == expected  # type: ignore[arg-type]
        assert multiple_choice_accuracy(llama, pairs, normalise=by) == expected  # type: ignore[arg-type]


def test_replies_are_generated_in_batches_and_compared(simple_model: HuggingFaceModel) -> None:
    from grains_ref.tiny_models.worlds import build_world

    facts = build_world("simple").split("test")[:60]
    scores = simple_model.score([(f.prompt, y) for f in facts for y in (f.chosen, f.rejected)])
    true = [scores[2 * i].log_prob > scores[2 * i + 1].log_prob for i in range(60)]
    facts = [f for _, f in sorted(zip(true, facts, strict=True), key=lambda one: not one[0])]
    facts = facts[:2] + facts[-5:]
    records = [Question(f.prompt, references=(f.chosen, "x y z w"), wrong=(f.rejected,)) for f in facts]
    for lam in (0.0, 4.0):
        v = torch.randn(len(simple_model.blocks), simple_model.width, generator=torch.Generator().manual_seed(0))
        with Steering(simple_model.blocks, v, lam=lam):
            one_by_one = [simple_model.generate([f.prompt], max_new_tokens=8)[0] for f in facts]
            assert generations(simple_model, [f.prompt for f in facts], max_new_tokens=8, batch_size=3) == one_by_one
            found = bleu_accuracy(simple_model, records, max_new_tokens=8, batch_size=2)
        assert found.replies == tuple(one_by_one)
        closer = [bleu(r, f.chosen) > bleu(r, f.rejected) for r, f in zip(one_by_one, facts, strict=True)]
        assert found.right == tuple(closer)
        if not lam:
            assert {f.chosen for f in facts} | {f.rejected for f in facts} >= set(one_by_one)
            assert closer == [True] * 2 + [False] * 5


def test_a_picture_reaches_the_model_and_one_without_a_place_is_refused(vision_model: HuggingFaceModel) -> None:
    from PIL import Image

    pictures = [Image.new("RGB", (30, 40), colour) for colour in ("red", "blue")]
    asked = [
        Question("<image> What is this?", ("rock", "cheese"), (1, 0), ("a b c d",), ("e f g h",), images=(p,))  # type: ignore[arg-type]
        for p in pictures
    ]
    scores = multiple_choice(vision_model, asked).scores
    assert scores[0] != scores[1]
    expected = vision_model.score([("<image> What is this?", "rock", pictures[1])])[0].log_prob
    assert scores[1][0] == pytest.approx(expected, rel=1e-5)
    replies = vision_model.generate([q.prompt for q in asked], max_new_tokens=4, images=pictures)
    assert bleu_accuracy(vision_model, asked, max_new_tokens=4).replies == tuple(replies)
    both = Question("<image>", ("a", "b"), (1, 0), images=tuple(pictures))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the prompt marks 1 places for a picture, but 2 came"):
        multiple_choice(vision_model, [both])


# --- what is no list, and what is no number


@pytest.mark.parametrize("single", ["ab", b"ab"])
@pytest.mark.parametrize(
    "measure",
    [
        rate,
        lambda one: clustered_mean([1.0, 0.0], one),
        lambda one: average([1.0, 0.0], one),
        lambda one: by_group([True, False], one),
        lambda one: paired_gain([1.0, 0.0], [0.0, 0.0], clusters=one),
        lambda one: sign_flip_p([1.0, 0.0], [0.0, 0.0], clusters=one),
        lambda one: rating_summary([1, 2], one),
        lambda one: mcnemar(one, [True, False]),
        lambda one: bleu_scores(one, true=[["a"], ["b"]], false=[["a"], ["b"]]),
        lambda one: bleu_scores(["a", "b"], true=one, false=[["a"], ["b"]]),
    ],
)
def test_one_text_is_not_taken_for_a_list_of_letters(measure: Any, single: Any) -> None:
    with pytest.raises(ValueError, match="give a list, also of a single one"):
        measure(single)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_has_no_mean_and_is_no_failure(value: float) -> None:
    for measure in (clustered_mean, average, lambda values: paired_gain(values, [0.0, 0.0])):
        with pytest.raises(ValueError, match="which has no mean; a steered model that overflows needs a smaller lam"):
            measure([1.0, value])
    with pytest.raises(ValueError, match=r"an outcome is .*; expected True or False"):
        rate([True, value])  # type: ignore[list-item]
    with pytest.raises(FloatingPointError, match="which is no score"):
        normalised(value, n_tokens=2, by="token")
    if value != -math.inf:  # that is the logarithm of 0
        with pytest.raises(ValueError, match="the score of a choice is NaN or infinite"):
            mc1([value, -1.0], [1, 0])
