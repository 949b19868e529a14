"""What steering changed and what it cost: measures of a model, under whatever steering is active.

What is made of the numbers (rates, means, intervals, paired tests) is in `grains_ref.evaluation.metrics`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from grains_ref.data import (
    FieldError,
    PreferencePair,
    RowError,
    Task,
    check_list,
    check_texts,
    check_tokens,
    warn_of_repetition,
)
from grains_ref.evaluation.metrics import BleuScores, Normalisation, Rate, bleu_scores, mc1, mc2, mc3, normalised, rate
from grains_ref.models import HuggingFaceModel, Prompt, TokenRow
from grains_ref.models.families import PictureSource, PictureSources


# ------------------------------------------------------------------------------------- preferences
def margins(
    model: HuggingFaceModel, pairs: Sequence[PreferencePair], *, normalise: Normalisation = "sum"
) -> list[float]:
    """log P(chosen) - log P(rejected) of each pair, in nats, or per token if so normalised."""
    return row_margins(model, pair_rows(model, pairs), normalise=normalise)


def pair_rows(model: HuggingFaceModel, pairs: Sequence[PreferencePair]) -> list[TokenRow]:
    """Token rows of all chosen responses, then of all rejected ones, for `row_margins`.

    Raises:
        RowError: a pair whose answers are the same tokens, or that the model's context does not hold.
    """
    _refuse_text("pairs", pairs)
    all_chosen, all_rejected = [], []
    for pair in pairs:
        try:
            check_texts(prompt=pair.prompt, chosen=pair.chosen, rejected=pair.rejected)
            good, bad = model.tokenise([(pair.prompt, answer, pair.image) for answer in (pair.chosen, pair.rejected)])
        except FieldError as error:
            raise pair.error(error.field, error.problem) from error
        except RowError:
            raise
        except ValueError as error:
            raise pair.error("", str(error)) from error
        check_tokens(
            pair,
            n_prompt=len(good.prompt),
            n_chosen=len(good.response),
            n_rejected=len(bad.response),
            context=model.context,
            same_answers=good.response == bad.response,
        )
        all_chosen.append(good._replace(where=f"{pair.where} (chosen)"))
        all_rejected.append(bad._replace(where=f"{pair.where} (rejected)"))
    warn_of_repetition(pairs)
    return all_chosen + all_rejected


def row_margins(model: HuggingFaceModel, rows: Sequence[TokenRow], *, normalise: Normalisation = "sum") -> list[float]:
    """`margins` of the rows that `pair_rows` made; a sweep tokenises once and scores often.

    A rule of the next token may forbid an answer, whose score is then -inf; where it forbids both they are tied.
    """
    scores = _scores(model, rows, normalise)
    n = len(rows) // 2
    return [0.0 if scores[i] == scores[n + i] else scores[i] - scores[n + i] for i in range(n)]


def preference_accuracy(
    model: HuggingFaceModel, pairs: Sequence[PreferencePair], *, normalise: Normalisation = "sum"
) -> Rate:
    """Share of pairs with log P(chosen) > log P(rejected), the preference win rate; a tie counts as wrong."""
    return rate(margin > 0 for margin in margins(model, pairs, normalise=normalise))


def _scores(model: HuggingFaceModel, rows: Sequence[TokenRow], normalise: Normalisation) -> list[float]:
    scores = []
    for scored, row in zip(model.score_rows(rows), rows, strict=True):
        if scored.is_forbidden:
            scores.append(scored.log_prob)
        else:
            scores.append(normalised(scored.log_prob, n_tokens=len(row.response), by=normalise))
    return scores


# ------------------------------------------------------------------------------------- multiple choice
class ChoiceRecord(Protocol):
    """A multiple-choice question: `labels` says of each choice whether it is right."""

    @property
    def prompt(self) -> Prompt: ...  # noqa: D102
    @property
    def choices(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def labels(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def images(self) -> Sequence[PictureSource]: ...  # noqa: D102


@dataclass(frozen=True)
class ChoiceScores:
    """Scores of every choice of every question, and the outcomes that follow, one per question.

    Scores are log-probabilities in nats, or those per token, as `normalise` says.
    """

    scores: tuple[tuple[float, ...], ...]
    labels: tuple[tuple[int, ...], ...]
    normalise: Normalisation

    @property
    def mc1(self) -> tuple[bool, ...]:
        """See `metrics.mc1`; `rate` of these is multiple-choice accuracy (also MMLU's, over all subjects)."""
        return tuple(mc1(scores, labels) for scores, labels in zip(self.scores, self.labels, strict=True))

    @property
    def mc2(self) -> tuple[float, ...]:
        """See `metrics.mc2`; take `clustered_mean` of these."""
        return tuple(mc2(scores, labels) for scores, labels in zip(self.scores, self.labels, strict=True))

    @property
    def mc3(self) -> tuple[float, ...]:
        """See `metrics.mc3`; take `clustered_mean` of these."""
        return tuple(mc3(scores, labels) for scores, labels in zip(self.scores, self.labels, strict=True))


def multiple_choice(
    model: HuggingFaceModel, records: Sequence[ChoiceRecord], *, normalise: Normalisation = "sum"
) -> ChoiceScores:
    """Score every choice of every question as a response to its prompt.

    Raises:
        ValueError: see `HuggingFaceModel.tokenise`.
    """
    _refuse_text("records", records)
    questions = []
    for i, record in enumerate(records):
        check_list("choices", record.choices)
        questions.append(_Question(record.prompt, record.choices, record.images, f"question {i}"))
    rows = _question_rows(model, questions)
    return _choice_scores(model, rows, [len(q.choices) for q in questions], [r.labels for r in records], normalise)


def multiple_choice_accuracy(
    model: HuggingFaceModel, pairs: Sequence[PreferencePair], *, normalise: Normalisation = "sum"
) -> Rate:
    """Share of questions whose labelled choice has the strictly highest score, by default the summed log-probability.

    Raises:
        ValueError: a pair has no choices.
    """
    return rate(pair_choices(model, pairs, normalise=normalise).mc1)


def pair_choices(
    model: HuggingFaceModel, pairs: Sequence[PreferencePair], *, normalise: Normalisation = "sum"
) -> ChoiceScores:
    """Score every choice of pairs with 'choices' and 'label' as a response to its prompt.

    Raises:
        ValueError: a pair has no choices.
    """
    return row_choices(model, choice_rows(model, pairs), pairs, normalise=normalise)


def choice_rows(model: HuggingFaceModel, pairs: Sequence[PreferencePair]) -> list[TokenRow]:
    """Token rows of all choices of all pairs, for `row_choices`.

    Raises:
        ValueError: a pair has no choices, or a choice that cannot be scored.
    """
    _refuse_text("pairs", pairs)
    without = [p.where for p in pairs if p.label is None]
    if without:
        raise ValueError(f"{len(without)} rows have no 'choices' and 'label', the first is {without[0]}")
    return _question_rows(model, [_Question(p.prompt, p.choices, p.image, str(p.where)) for p in pairs])


def row_choices(
    model: HuggingFaceModel,
    rows: Sequence[TokenRow],
    pairs: Sequence[PreferencePair],
    *,
    normalise: Normalisation = "sum",
) -> ChoiceScores:
    """`pair_choices` of the rows that `choice_rows` made of these pairs."""
    labels = [[int(i == p.label) for i in range(len(p.choices))] for p in pairs]
    return _choice_scores(model, rows, [len(p.choices) for p in pairs], labels, normalise)


class _Question(NamedTuple):
    prompt: Prompt
    choices: Sequence[str]
    image: PictureSources | None
    where: str


def _question_rows(model: HuggingFaceModel, questions: Sequence[_Question]) -> list[TokenRow]:
    """All choices of all questions as responses."""
    rows: list[TokenRow] = []
    for question in questions:
        items = [(question.prompt, choice, question.image) for choice in question.choices]
        for i, row in enumerate(_named(model, items, where=question.where)):
            rows.append(row._replace(where=f"{question.where} (choice {i})"))
    model.check_rows(rows)
    return rows


def _named(
    model: HuggingFaceModel, items: Sequence[tuple[Prompt, str, PictureSources | None]], *, where: str
) -> list[TokenRow]:
    """`HuggingFaceModel.tokenise`, whose errors say where the items are from."""
    try:
        return model.tokenise(items)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _choice_scores(
    model: HuggingFaceModel,
    rows: Sequence[TokenRow],
    n_choices: Sequence[int],
    labels: Sequence[Sequence[int]],
    normalise: Normalisation,
) -> ChoiceScores:
    scores = iter(_scores(model, rows, normalise))
    return ChoiceScores(
        scores=tuple(tuple(next(scores) for _ in range(n)) for n in n_choices),
        labels=tuple(tuple(int(label) for label in of_question) for of_question in labels),
        normalise=normalise,
    )


# ------------------------------------------------------------------------------------- generation
class ReferenceRecord(Protocol):
    """A question to be answered in free words, with right and wrong reference answers."""

    @property
    def prompt(self) -> Prompt: ...  # noqa: D102
    @property
    def references(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def wrong(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def images(self) -> Sequence[PictureSource]: ...  # noqa: D102


def generations(
    model: HuggingFaceModel,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    images: Sequence[PictureSources | None] = (),
    batch_size: int = 16,
    **options: Any,
) -> list[str]:
    """The model's reply to each prompt, in batches; greedy unless `options` of transformers' `generate` say otherwise.

    prompts: a list of texts or of conversations, also for a single one.

    Raises:
        ValueError: one prompt in place of a list, or see `HuggingFaceModel.generate`.
    """
    _refuse_one("prompts", prompts)
    _refuse_one("images", images)
    replies: list[str] = []
    for start in range(0, len(prompts), batch_size):
        end = start + batch_size
        replies += model.generate(
            prompts[start:end], max_new_tokens=max_new_tokens, images=images[start:end], **options
        )
    return replies


def _refuse_one(name: str, given: Sequence[Any]) -> None:
    """A text is a sequence of letters, and a conversation one of messages: neither is a list of prompts."""
    if isinstance(given, str | bytes | Path) or any(isinstance(item, Mapping) for item in given):
        raise ValueError(f"{name} must be a list, one entry per prompt; got a single one: put it in brackets")


def _refuse_text(name: str, given: object) -> None:
    """The name of a file is not what the file holds."""
    if isinstance(given, str | bytes | Path):
        raise ValueError(f"{name} must be a list; got {str(given)!r}: read the file first, with `grains_ref.data`")


def bleu_accuracy(
    model: HuggingFaceModel,
    records: Sequence[ReferenceRecord],
    *,
    max_new_tokens: int,
    batch_size: int = 16,
    effective_order: bool = False,
    **options: Any,
) -> BleuScores:
    """Answer every question and compare the reply with its references: `.accuracy` is BLEU accuracy (section 5.1).

    For a preference pair the references are its two responses.

    Raises:
        ValueError: without right or wrong references.
        ImportError: sacrebleu is not installed.
    """
    _refuse_text("records", records)
    replies = generations(
        model,
        [r.prompt for r in records],
        max_new_tokens=max_new_tokens,
        images=[r.images for r in records],
        batch_size=batch_size,
        **options,
    )
    return bleu_scores(
        replies,
        true=[r.references for r in records],
        false=[r.wrong for r in records],
        effective_order=effective_order,
    )


# ------------------------------------------------------------------------------------- capability
def exact_matches(model: HuggingFaceModel, rows: Sequence[TokenRow]) -> list[bool]:
    """Whether greedy decoding would give each response, whole and exact; one teacher-forced pass tells."""
    return [scored.is_greedy for scored in model.score_rows(rows)]


def capability(model: HuggingFaceModel, tasks: Sequence[Task]) -> Rate:
    """Share of tasks answered exactly by greedy decoding."""
    return rate(exact_matches(model, task_rows(model, tasks)))


def task_rows(model: HuggingFaceModel, tasks: Sequence[Task]) -> list[TokenRow]:
    """Token rows of tasks, for `exact_matches`.

    Raises:
        ValueError: a task that cannot be scored, or that the model's context does not hold.
    """
    _refuse_text("tasks", tasks)
    rows = []
    for task in tasks:
        where = f"task {task.id}"
        (row,) = _named(model, [(task.prompt, task.answer, task.image)], where=where)
        rows.append(row._replace(where=where))
    model.check_rows(rows)
    return rows
