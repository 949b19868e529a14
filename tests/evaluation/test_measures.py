"""evaluation/measures.py: intervals, and measures on real models against slower ways to the same number."""

from __future__ import annotations

import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from damaged import damaged

from grains_ref.data import PreferencePair, RowError, Task
from grains_ref.evaluation.measures import (
    capability,
    choice_rows,
    exact_matches,
    generations,
    margins,
    multiple_choice,
    multiple_choice_accuracy,
    pair_rows,
    preference_accuracy,
    row_margins,
    task_rows,
)
from grains_ref.evaluation.metrics import clustered_mean, rate
from grains_ref.grains import Steering, generate_greedy, log_prob
from grains_ref.models import HuggingFaceModel, TokenRow
from grains_ref.tiny_models.random_models import random_llama
from grains_ref.tiny_models.worlds import build_world

pytestmark = pytest.mark.cpu


def pair(prompt: str, chosen: str, rejected: str, **more: Any) -> PreferencePair:
    return PreferencePair("id", prompt, chosen, rejected, where="pairs.jsonl:1", **more)


PAIRS = [
    pair("The capital of France is", "Paris.", "Rome."),
    pair("Is the earth flat?", "No, the earth is round.", "Yes."),
    pair("What do people say about the moon", "It is made of cheese", "It is made of rock, and that is true."),
    pair("Is the earth flat?", "No.", "It is."),
]


class FakeModel:
    """Scores are written into the rows: a row's first response token says whether greedy decoding gives it."""

    context = 8

    def __init__(self) -> None:
        self.scored = 0

    def tokenise(self, items: Any) -> list[TokenRow]:
        return [TokenRow((0,), tuple(int(word) for word in response.split())) for _, response, *_ in items]

    def check_rows(self, rows: Sequence[TokenRow]) -> None:
        pass

    def score(self, items: Any) -> list[SimpleNamespace]:
        return self.score_rows(self.tokenise(items))

    def score_rows(self, rows: Sequence[TokenRow]) -> list[SimpleNamespace]:
        self.scored += len(rows)
        return [
            SimpleNamespace(log_prob=float(row.response[0]), is_greedy=row.response[0] == 1, is_forbidden=False)
            for row in rows
        ]


# --- rates and intervals


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Wilson's formula with z = 1.959964, by hand; the first is a textbook example
        (1, 10, 0.017876, 0.404150),
        (8, 10, 0.490162, 0.943318),
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        (150, 300, 0.443780, 0.556220),
    ],
)
def test_a_rate_has_wilsons_interval(successes: int, n: int, low: float, high: float) -> None:
    found = rate([True] * successes + [False] * (n - successes))
    assert (found.value, found.n) == (successes / n, n)
    assert found.low == pytest.approx(low, abs=2e-6)
    assert found.high == pytest.approx(high, abs=2e-6)


def test_a_rate_is_written_in_percent() -> None:
    assert str(rate([True, False])) == "50.0 % [9.5, 90.5]"


def test_nothing_to_count_is_refused() -> None:
    with pytest.raises(ValueError, match="no outcomes to count; is the evaluation set empty"):
        rate(iter(()))


def test_prompts_of_one_fact_do_not_count_as_independent() -> None:
    rng = random.Random(0)
    outcome = [float(rng.random() < 0.5) for _ in range(40)]
    values = [value for value in outcome for _ in range(6)]  # six prompts per fact, all with the same outcome
    clusters = [f"fact {i}" for i in range(40) for _ in range(6)]
    clustered = clustered_mean(values, clusters)
    naive = clustered_mean(values, [str(i) for i in range(len(values))])
    once = clustered_mean(outcome, [f"fact {i}" for i in range(40)])
    assert clustered.value == naive.value == sum(outcome) / 40
    assert (clustered.n, naive.n) == (40, 240)
    assert (clustered.high - clustered.low) > 2 * (naive.high - naive.low)
    assert clustered == once  # five more copies of what is known already add nothing
    assert clustered.low < clustered.value < clustered.high
    assert clustered.high - clustered.low == pytest.approx(2 * 1.96 * (0.25 / 40) ** 0.5, rel=0.1)


def test_the_order_of_values_does_not_matter_and_the_bootstrap_is_seeded() -> None:
    rng = random.Random(1)
    rows = [(rng.random(), f"fact {i % 7}") for i in range(28)]
    first = clustered_mean(*zip(*rows, strict=True))
    assert clustered_mean(*zip(*rows, strict=True)) == first
    rng.shuffle(rows)
    again = clustered_mean(*zip(*rows, strict=True))
    for field in ("value", "low", "high"):
        assert getattr(again, field) == pytest.approx(getattr(first, field), rel=1e-12)


def test_every_cluster_weighs_the_same() -> None:
    assert clustered_mean([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"]).value == 0.5


def test_values_that_are_all_equal_have_an_interval_of_no_width() -> None:
    found = clustered_mean([0.25] * 6, list("aabbcc"))
    assert (found.value, found.low, found.high, found.n) == (0.25, 0.25, 0.25, 3)


@pytest.mark.parametrize(
    ("values", "clusters"), [([1.0, 0.0], ["a", "a"]), ([], []), ([1.0], ["a", "b"]), ([1.0, 0.0, 1.0], ["a", "b"])]
)
def test_too_few_clusters_are_refused(values: list[float], clusters: list[str]) -> None:
    with pytest.raises(ValueError, match="need values in at least two clusters; got"):
        clustered_mean(values, clusters)


# --- measures


def test_margins_are_differences_of_log_probabilities_in_nats(model: HuggingFaceModel) -> None:
    expected, largest = [], 0.0
    for p in PAIRS:
        x = model.encode(p.prompt)
        scores = [
            log_prob(model, x, x.embeds[None], y=model.response_ids(p.prompt, response)).item()
            for response in (p.chosen, p.rejected)
        ]
        expected.append(scores[0] - scores[1])
        largest = max(largest, *map(abs, scores))
    assert min(expected) < 0 < max(expected)
    # Rounding is that of the scores, however small their difference.
    assert margins(model, PAIRS) == pytest.approx(expected, abs=1e-5 * largest)
    assert row_margins(model, pair_rows(model, PAIRS)) == margins(model, PAIRS)
    assert preference_accuracy(model, PAIRS) == rate(margin > 0 for margin in expected)


def test_a_tie_is_not_a_success() -> None:
    pairs = [pair("?", "3", "2"), pair("?", "2", "2 9"), pair("?", "1", "2")]
    assert margins(FakeModel(), pairs) == [1.0, 0.0, -1.0]
    assert preference_accuracy(FakeModel(), pairs) == rate([True, False, False])


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (("2", "02"), r"pairs\.jsonl:1: field 'rejected': the same tokens as 'chosen'"),
        (("2 " * 8, "2"), r":1: field 'prompt': 1 prompt tokens \+ 8 of 'chosen' = 9, but the model takes 8"),
    ],
)
def test_pairs_are_held_to_what_a_fit_holds_them_to(answers: tuple[str, str], words: str) -> None:
    with pytest.raises(RowError, match=words):
        margins(FakeModel(), [pair("?", *answers)])


@pytest.mark.parametrize(
    ("choices", "label", "right"),
    [
        (("3", "1", "2"), 0, True),
        (("1", "2", "3"), 2, True),
        (("3", "1", "2"), 1, False),
        (("3", "3", "2"), 0, False),  # two highest
        (("3", "3", "2"), 1, False),
        (("2", "2", "3"), 2, True),
    ],
)
def test_multiple_choice_wants_the_labelled_choice_strictly_on_top(
    choices: tuple[str, ...], label: int, right: bool
) -> None:
    asked = [pair("?", "1", "2", choices=choices, label=label)]
    assert multiple_choice_accuracy(FakeModel(), asked) == rate([right])


def test_multiple_choice_keeps_questions_of_different_sizes_apart(llama: HuggingFaceModel) -> None:
    choices = [("Paris.", "Rome.", "Madrid."), ("No.", "Yes."), ("rock", "cheese", "It is.", "No, the earth is round.")]
    outcomes, asked = [], []
    for (p, options), label in zip(zip(PAIRS, choices, strict=False), (2, 0, 1), strict=True):
        x = llama.encode(p.prompt)
        scores = [log_prob(llama, x, x.embeds[None], y=llama.response_ids(p.prompt, o)).item() for o in options]
        best = max(range(len(options)), key=scores.__getitem__)
        for marked in (label, best):
            asked.append(pair(p.prompt, p.chosen, p.rejected, choices=options, label=marked))
            outcomes.append(marked == best)
    assert multiple_choice_accuracy(llama, asked) == rate(outcomes)
    assert not all(outcomes)


def test_questions_without_choices_are_refused() -> None:
    asked = [pair("?", "1", "2", choices=("1", "2"), label=0), PreferencePair("b", "?", "1", "2", where="p.jsonl:9")]
    with pytest.raises(ValueError, match=r"1 rows have no 'choices' and 'label', the first is p\.jsonl:9"):
        multiple_choice_accuracy(FakeModel(), asked)


def test_an_exact_match_is_what_greedy_decoding_really_says(simple_model: HuggingFaceModel) -> None:
    tasks = [Task(t.id, t.prompt, t.answer) for t in build_world("simple").capability_split("dev")[:24]]
    tasks[5] = Task("wrong", tasks[5].prompt, "0 .")
    tasks[6] = Task("beginning", tasks[6].prompt, tasks[6].answer.removesuffix(" ."))  # a whole match needs no end
    rows = task_rows(simple_model, tasks)
    v = torch.randn(len(simple_model.blocks), simple_model.width, generator=torch.Generator().manual_seed(0))
    for lam in (0.0, 0.1):
        with Steering(simple_model.blocks, v, lam=lam):
            greedy = []
            for task, row in zip(tasks, rows, strict=True):
                said = generate_greedy(simple_model, simple_model.encode(task.prompt), n=len(row.response))
                greedy.append(said == list(row.response))
            assert exact_matches(simple_model, rows) == greedy
            assert capability(simple_model, tasks) == rate(greedy)
        assert greedy[5] is False
        assert 0 < sum(greedy) < 24


# --- one prompt is no list of prompts


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"prompts": "Hello there"}, "prompts"),
        ({"prompts": [{"role": "user", "content": "Hello there"}]}, "prompts"),
        ({"prompts": ["<image>"], "images": "a.png"}, "images"),
        ({"prompts": ["<image>"], "images": Path("a.png")}, "images"),
    ],
)
def test_a_single_prompt_is_not_taken_for_a_list_of_letters(given: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a list, one entry per prompt"):
        generations(FakeModel(), **given, max_new_tokens=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "measure",
    [preference_accuracy, margins, pair_rows, multiple_choice, multiple_choice_accuracy, capability, task_rows],
)
@pytest.mark.parametrize("name", ["pairs.jsonl", Path("pairs.jsonl")])
def test_the_name_of_a_file_is_not_taken_for_its_rows(measure: Callable[..., Any], name: str | Path) -> None:
    with pytest.raises(ValueError, match=r"must be a list; got 'pairs\.jsonl': read the file first"):
        measure(FakeModel(), name)


# --- where the names are found


def test_public_names_are_found_in_the_package_and_come_from_one_module() -> None:
    import grains_ref.evaluation as evaluation

    for name in evaluation.__all__:
        home = getattr(evaluation, name).__module__
        assert home.startswith("grains_ref.evaluation."), name
    with pytest.raises(AttributeError, match="no attribute 'Rate'"):
        evaluation.Rate  # noqa: B018
    with pytest.raises(ImportError):
        from grains_ref.evaluation import BleuScores  # noqa: F401


@pytest.mark.thorough
@pytest.mark.parametrize("module", ["metrics", "judge"])
def test_what_needs_no_model_imports_none(module: str) -> None:
    code = f"import sys, grains_ref.evaluation.{module}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- what cannot be measured


def test_nothing_that_is_not_finite_counts_as_wrong() -> None:
    model = random_llama()
    asked = pair("about the moon", "Yes.", "No.")
    tasks = [Task("t7", "about the moon", "No.")]
    choices = [pair("about the moon", "Yes.", "No.", choices=("Yes.", "No."), label=0)]
    with damaged(model, block=1):
        for measure, words in (
            (lambda: preference_accuracy(model, [PAIRS[0], asked]), r"pairs\.jsonl:1 \(chosen\): .*decoder block 1 "),
            (lambda: margins(model, [asked]), r"pairs\.jsonl:1 \(chosen\): .*decoder block 1 "),
            (lambda: capability(model, tasks), "task t7: .*decoder block 1 "),
            (lambda: multiple_choice_accuracy(model, choices), r"pairs\.jsonl:1 \(choice 0\): .*decoder block 1 "),
            (lambda: generations(model, ["about the moon"], max_new_tokens=1), "new token 0 .*decoder block 1 "),
        ):
            with pytest.raises(FloatingPointError, match=words):
                measure()


LONG = "Is the earth flat? " * 40


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            lambda m: pair_rows(m, [PAIRS[0], pair(LONG, "a", "b")]),
            r":1: field 'prompt': \d+ prompt tokens .* takes 128",
        ),
        (
            lambda m: task_rows(m, [Task("t1", "A:", "b"), Task("t2", LONG, "b")]),
            r"task t2: \d+ prompt tokens .* takes 128",
        ),
        (
            lambda m: choice_rows(m, [pair("A:", "a", "b", choices=("a", LONG), label=0)]),
            r":1 \(choice 1\): \d+ prompt tokens .* takes 128",
        ),
        (lambda m: pair_rows(m, [pair("A:", " ", "b")]), ":1: field 'chosen': only white space"),
        (lambda m: pair_rows(m, [pair("A:", "b", " b")]), ":1: field 'rejected': the same text as 'chosen'"),
        (lambda m: task_rows(m, [Task("t1", "A:", "")]), "task t1: 'response': empty"),
        (lambda m: choice_rows(m, [pair("A:", "a", "b", choices=("a", ""), label=0)]), ":1: 'response': empty"),
    ],
)
def test_rows_that_do_not_suit_the_model_are_refused_by_name(
    llama: HuggingFaceModel, rows: Callable[[HuggingFaceModel], Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        rows(llama)


def test_answers_that_repeat_their_prompt_are_told(llama: HuggingFaceModel) -> None:
    repeating = pair("Is the earth flat? Tell me.", "Is the earth flat? Tell me. No.", "Yes.")
    with pytest.warns(UserWarning, match=r"1 of 2 pairs have an answer that repeats its prompt, the first is pairs"):
        pair_rows(llama, [PAIRS[0], repeating])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair_rows(llama, [*PAIRS, pair("Paris", "Paris is it", "no")])  # a word may be chance
