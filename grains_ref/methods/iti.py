"""ITI and NL-ITI: probes find the attention heads that tell right answers from wrong ones, and those are shifted.

    heads = fit(model, pairs, probe="mlp")
    with heads.steering(model, heads=48, alpha=15):
        ...

Sources: Inference-Time Intervention (arXiv 2306.03341) and NL-ITI (arXiv 2403.18680), with their public code. Of NL-ITI
there are three changes: a small MLP as probe, several answer tokens when reading, and every token from the answer on
when editing. The last one is used for both here: it is what ITI's own edit of each generated token amounts to.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from grains_ref.data import PICTURE_MARK, PreferencePair, Prompt, excess_tokens
from grains_ref.files import check_listed
from grains_ref.grains import DegenerateShiftsError, finite_number
from grains_ref.methods.core import (
    DRAWING,
    NEGLIGIBLE,
    Edit,
    Positions,
    Setting,
    capture,
    check_option,
    check_pairs,
    n_heads,
    unit,
    whole_number,
)
from grains_ref.models import HuggingFaceModel, Item
from grains_ref.models.blocks import part_of

ProbeName = Literal["linear", "mlp"]
Answers = Literal["pair", "choices"]
Spread = Literal["next_question", "answers"]
Split: TypeAlias = tuple[Tensor, Tensor]  # numbers of the questions to train on and to validate on
Scores: TypeAlias = tuple[Tensor, Tensor]  # of every head: validation accuracy and validation loss in nats, (H,)
Probe: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Scores]  # x, y to train on; x, y to validate on

NAMES: dict[ProbeName, str] = {"linear": "ITI", "mlp": "NL-ITI"}
TOKENS: dict[ProbeName, tuple[int, int]] = {"linear": (1, 1), "mlp": (4, 6)}  # averaged for probe, for direction
ALPHAS = (2.0, 5.0, 10.0, 15.0, 30.0)  # published: 5 to 30, 15 as default
HEADS = (16, 48, 96)  # published: 16 to 96 of 1024, 48 as default
HIDDEN, EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 16, 10, 32, 5e-4, 1e-4  # of NL-ITI's probe


@dataclass(frozen=True)
class ProbedHeads:
    """Every head's direction, spread and probe score; the shift of a head is alpha * sigma * theta.

    theta: (L, K, d_h), unit length, from wrong to right; 0 where the classes have the same mean.
    sigma: (L, K), standard deviation of activations along theta, in units of the activations.
    accuracy: (L, K), of the probe on held-out questions.
    ranking: all (block, head), best first.
    """

    name: str
    theta: Tensor
    sigma: Tensor
    accuracy: Tensor
    ranking: tuple[tuple[int, int], ...]

    def shift(self, heads: int) -> Tensor:
        """sigma * theta of the best `heads` heads and 0 elsewhere, (L, K, d_h).

        Raises:
            TypeError: heads is no whole number.
            ValueError: there are not so many heads.
        """
        whole_number("heads", heads, most=len(self.ranking))
        chosen = torch.zeros_like(self.sigma)
        for block, head in self.ranking[:heads]:
            chosen[block, head] = 1
        return (chosen * self.sigma)[..., None] * self.theta

    def steering(
        self, model: HuggingFaceModel, *, heads: int, alpha: float, positions: Positions = "after_prompt"
    ) -> Edit:
        r"""a += alpha * sigma * theta for the best `heads` heads, from the prompt's last token on.

        Convention: NL-ITI's code edits from the question's last token on: with prompts that end in "A:", which are
          two tokens, that is `positions=3`.

        Raises:
            TypeError: alpha is no number, heads no whole number.
            ValueError: alpha is not finite; see `shift`, `shift_heads` and `Edit`.
        """
        return shift_heads(model, finite_number("alpha", alpha) * self.shift(heads), positions=positions)

    def settings(self, model: HuggingFaceModel, *, positions: Positions = "after_prompt") -> list[Setting]:
        """The search grid by alpha and number of heads."""
        where = "" if positions == "after_prompt" else f", positions {positions}"
        return [
            Setting(
                f"{self.name}, heads {heads}{where}",
                alpha,
                partial(self.steering, model, heads=heads, alpha=alpha, positions=positions),
            )
            for alpha in ALPHAS
            for heads in head_counts(len(self.ranking), HEADS)
        ]


def fit(
    model: HuggingFaceModel,
    pairs: Sequence[PreferencePair],
    *,
    probe: ProbeName,
    tokens: tuple[int, int] | None = None,
    answers: Answers = "pair",
    spread: Spread = "next_question",
    folds: int = 1,
    seed: int = 0,
) -> ProbedHeads:
    r"""Rank the heads and find their directions: theta = n(mean over right answers - mean over wrong answers).

    Args:
        model: the model.
        pairs: one question each.
        probe: `linear` is ITI, `mlp` is NL-ITI.
        tokens: how many of an answer's last tokens are averaged for the probe, and for direction and spread; by
            default those of `TOKENS`, which for NL-ITI are those of its table 1 (its code's own default is 2 for both).
            An answer with fewer tokens gives those it has.
        answers: `pair` reads chosen (right) and rejected (wrong); `choices` reads all choices, of which the labelled
            one is right.
        spread: sigma is the population standard deviation of projections on theta. `next_question` takes it, as the
            authors do, over every answer followed by a blank line and another pair's question, at its last tokens (see
            `question_of`); `answers` over the answers themselves, at the last tokens of prompt and answer, which needs
            less context.
        folds: 1 trains the probes on 80 % of the questions and scores them on the rest, as the authors do. More are
            folds of a cross-validation whose scores are averaged: steadier with 50 pairs.
        seed: of the split, of the questions put behind answers, and of the MLP probes.

    Convention: only the ranking depends on the probes. Accuracies of ten questions tie often; the order is then
      smaller validation loss, block, head. Directions and spreads use all questions.

    Raises:
        TypeError: the pairs are no list, a number is none.
        ValueError: too few questions, an unknown option, a pair without choices when they are asked for, questions
            whose answers are all right or all wrong, an answer followed by a question does not fit the model's context.
        DegenerateShiftsError: no head tells right answers from wrong ones.
        FloatingPointError: an activation is not finite.
        ImportError: the linear probe needs scikit-learn.
    """
    check_option("probe", probe, ProbeName)
    check_option("answers", answers, Answers)
    check_option("spread", spread, Spread)
    check_pairs(pairs, least=2)
    windows = TOKENS[probe] if tokens is None else tokens
    check_listed("tokens", windows, "two whole numbers, for probe and direction")
    if len(windows) != 2 or min(whole_number("tokens", n) for n in windows) < 1:
        raise ValueError(f"tokens are two numbers, and at least one token has to be read; got tokens = {windows}")
    items, right, question = _answers(pairs, answers)
    splits = split_questions(len(pairs), folds=folds, seed=seed)
    at_probe, at_direction = _states(model, items, windows)
    theta = class_directions(at_direction[right], at_direction[~right])
    accuracy, loss = score_heads(
        at_probe,
        right,
        question,
        splits=splits,
        probe=logistic_probe if probe == "linear" else partial(mlp_probe, seed=seed),
    )
    if spread == "next_question":
        followed = _followed_by_questions(model, pairs, items, question, seed=seed)
        (at_direction,) = _states(model, followed, windows[1:])
    return ProbedHeads(NAMES[probe], theta, spread_along(theta, at_direction), accuracy, rank_heads(accuracy, loss))


# ------------------------------------------------------------------------------------------- reading
def _answers(pairs: Sequence[PreferencePair], answers: Answers) -> tuple[list[Item], Tensor, Tensor]:
    """Every answer as an item, whether it is right, and the number of its question."""
    items: list[Item] = []
    right, question = [], []
    for i, pair in enumerate(pairs):
        if answers == "choices" and pair.label is None:
            raise ValueError(f"{pair.where} has no 'choices' and 'label'; read the pairs with answers='pair'")
        texts, label = (pair.choices, pair.label) if answers == "choices" else ((pair.chosen, pair.rejected), 0)
        for j, text in enumerate(texts):
            items.append((pair.prompt, text, pair.image))
            right.append(j == label)
            question.append(i)
    return items, torch.tensor(right), torch.tensor(question)


def _states(model: HuggingFaceModel, items: Sequence[Item], windows: Sequence[int]) -> list[Tensor]:
    """Heads' outputs, mean over the last n response tokens, for every n in windows: (rows, L, K, d_h) in float64."""
    means: list[list[Tensor]] = [[] for _ in windows]
    for item in items:
        length = len(model.response_ids(item[0], item[1]))
        (state,) = capture(model, [item], site="heads", last=min(max(windows), length)).double()  # (L, n, K * d_h)
        for of_window, n in zip(means, windows, strict=True):
            of_window.append(state[:, -n:].mean(1).unflatten(-1, (n_heads(model), -1)))
    return [torch.stack(of_window) for of_window in means]


def _followed_by_questions(
    model: HuggingFaceModel, pairs: Sequence[PreferencePair], items: Sequence[Item], question: Tensor, *, seed: int
) -> list[Item]:
    """Every answer with a blank line and the question of another pair, drawn at random, behind it."""
    draw = random.Random(f"next question {seed}")
    followed: list[Item] = []
    for (_, response, *_), own in zip(items, question.tolist(), strict=True):
        prompt, image = pairs[own].prompt, pairs[own].image
        other = pairs[(own + draw.randrange(1, len(pairs))) % len(pairs)].prompt
        longer = f"{response}\n\n{question_of(other)}"
        n = len(model.encode(prompt, image).ids) + len(model.response_ids(prompt, longer))
        if excess_tokens(n, 0, model.context) > 0:
            raise ValueError(
                f"an answer followed by another question has {n} tokens, but the model takes {model.context}; "
                "fit with spread='answers'"
            )
        followed.append((prompt, longer, image))
    return followed


def question_of(prompt: Prompt) -> str:
    """The question alone: the last turn of a chat, or a plain prompt without the label of the answer at its end.

    The label is a last word with a colon ("A:", "Answer:"), which the authors leave out, too: with it, one and the
    same token would be read in every row, and sigma were its spread.
    """
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    text = text.replace(PICTURE_MARK, "").strip()
    return re.sub(r"\s+\S+:$", "", text)


def class_directions(trusted: Tensor, untrusted: Tensor) -> Tensor:
    """theta = n(mean over trusted - mean over untrusted) of each head: (rows, L, K, d_h) twice -> (L, K, d_h).

    A head whose classes have the same mean, but for rounding, gets 0.

    Raises:
        DegenerateShiftsError: every head does.
    """
    difference = trusted.mean(0) - untrusted.mean(0)
    size = (trusted.square().mean(0) + untrusted.square().mean(0)).sum(-1, keepdim=True).sqrt()
    is_rounding = difference.norm(dim=-1, keepdim=True) <= NEGLIGIBLE * size
    if is_rounding.all():
        blocks = f"blocks 0 to {len(difference) - 1}"
        raise DegenerateShiftsError(
            f"{blocks}: in every head both classes have the same mean, so there is no direction. Check that right and "
            "wrong (or clean and noised) differ, and are not mixed up in some pairs."
        )
    return unit(difference.masked_fill(is_rounding, 0))


def spread_along(theta: Tensor, states: Tensor) -> Tensor:
    """Population standard deviation of (rows, L, K, d_h) states along theta, (L, K)."""
    return (states * theta).sum(-1).std(0, correction=0)


# ------------------------------------------------------------------------------------------- probes
def split_questions(n: int, *, folds: int, seed: int) -> list[Split]:
    """Questions to train on and to validate on: a fifth of them held out, or every fold of a cross-validation in turn.

    Convention: whole questions are held out, never single answers, whose prompt the probe would have seen.

    Raises:
        TypeError: folds is no whole number.
        ValueError: fewer than two questions, or fewer than folds.
    """
    if whole_number("folds", folds) < 1 or n < max(2, folds):
        raise ValueError(f"need at least one fold, two questions and as many questions as folds; got {folds} and {n}")
    order = torch.tensor(random.Random(f"questions {seed}").sample(range(n), n))
    if folds == 1:
        held_out = max(1, round(n / 5))
        return [(order[held_out:], order[:held_out])]
    parts = order.tensor_split(folds)
    return [(torch.cat(parts[:i] + parts[i + 1 :]), parts[i]) for i in range(folds)]


def score_heads(states: Tensor, right: Tensor, question: Tensor, *, splits: Sequence[Split], probe: Probe) -> Scores:
    """Accuracy and loss (nats) of one probe per head on held-out questions, means over the splits; both (L, K).

    states: (rows, L, K, d_h).  right, question: (rows,), the class and the question of every row.
    """
    x, y = states.flatten(1, 2), right  # (rows, H, d_h)
    scores = []
    for train, held_out in splits:
        fitted, judged = torch.isin(question, train), torch.isin(question, held_out)
        if y[fitted].all() or not y[fitted].any():
            raise ValueError(
                f"the {len(train)} questions that probes are trained on have answers of one class only; give questions "
                "with right and wrong answers, or read the pairs with answers='pair'"
            )
        scores.append(torch.stack(probe(x[fitted], y[fitted], x[judged], y[judged])))
    accuracy, loss = torch.stack(scores).double().mean(0).unflatten(-1, states.shape[1:3])
    return accuracy, loss


def logistic_probe(x: Tensor, y: Tensor, x_held_out: Tensor, y_held_out: Tensor) -> Scores:
    """ITI's probe: scikit-learn's logistic regression as it comes (L2, C = 1), at most 1000 iterations, per head.

    Convention: whether the authors' solver is lbfgs (ITI) or SAGA (ICT), the optimum is one and the same; lbfgs
      reaches it without a random draw.
    """
    try:
        from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise ImportError("logistic probes need scikit-learn: pip install 'grains-ref[baselines]'") from error
    logits = []
    for head in range(x.shape[1]):
        probe = LogisticRegression(max_iter=1000).fit(x[:, head].numpy(), y.numpy())
        logits.append(torch.from_numpy(probe.decision_function(x_held_out[:, head].numpy())))
    return _scores(torch.stack(logits, dim=1), y_held_out)


def mlp_probe(x: Tensor, y: Tensor, x_held_out: Tensor, y_held_out: Tensor, *, seed: int) -> Scores:
    """NL-ITI's probe: Linear, BatchNorm, ReLU, Linear; scored in the epoch with the best held-out accuracy.

    Convention: grouped convolutions over one position are one linear map per head, so one network trains all probes
      at once; their losses are summed and Adam works value by value, so no head learns anything of another.
      Held-out rows are scored in full.  A training batch of a single row is left out, for BatchNorm needs two.
    """
    _, heads, d_h = x.shape
    with DRAWING, torch.random.fork_rng(devices=[]):  # the layers draw their weights from the global stream
        torch.manual_seed(seed)
        probes = nn.Sequential(
            nn.Conv1d(heads * d_h, heads * HIDDEN, 1, groups=heads),
            nn.BatchNorm1d(heads * HIDDEN),
            nn.ReLU(),
            nn.Conv1d(heads * HIDDEN, heads, 1, groups=heads),
        ).to(x.dtype)
    adam = torch.optim.Adam(probes.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    order = torch.Generator().manual_seed(seed)
    best_accuracy, best_loss = torch.full((heads,), -1.0), torch.zeros(heads, dtype=x.dtype)
    for _ in range(EPOCHS):
        probes.train()
        for batch in torch.randperm(len(x), generator=order).split(BATCH):
            if len(batch) == 1:
                continue
            logits = probes(x[batch].flatten(1)[..., None])[..., 0]  # (rows, H)
            adam.zero_grad()
            _losses(logits, y[batch]).sum().backward()
            adam.step()
        probes.eval()
        with torch.no_grad():
            accuracy, loss = _scores(probes(x_held_out.flatten(1)[..., None])[..., 0], y_held_out)
        better = accuracy > best_accuracy  # of equals the first epoch stays
        best_accuracy, best_loss = torch.where(better, accuracy, best_accuracy), torch.where(better, loss, best_loss)
    return best_accuracy, best_loss


def _losses(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of each head in nats: (rows, H) logits, (rows,) classes -> (H,)."""
    target = y.to(logits)[:, None].expand_as(logits)
    return nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(0)


def _scores(logits: Tensor, y: Tensor) -> Scores:
    return ((logits > 0) == y[:, None]).float().mean(0), _losses(logits, y)


def rank_heads(accuracy: Tensor, loss: Tensor) -> tuple[tuple[int, int], ...]:
    """All (block, head), best first: accuracy, then smaller loss, then block, then head.

    Convention: both are compared to nine digits, so that the last bits of a sum decide nothing.
    """
    heads = [(block, head) for block in range(accuracy.shape[0]) for head in range(accuracy.shape[1])]
    return tuple(sorted(heads, key=lambda h: (-round(accuracy[h].item(), 9), round(loss[h].item(), 9), h)))


# ------------------------------------------------------------------------------------------- steering
def shift_heads(model: HuggingFaceModel, shift: Tensor, *, positions: Positions = "after_prompt") -> Edit:
    """Add a shift (L, K, d_h) to the heads' outputs, from the prompt's last token on.

    Convention: at the input of the output projection W_O, so block l's attention output gains W_O @ shift[l].

    Raises:
        ValueError: the shift belongs to a model of another shape, or is not finite.
    """
    projection, heads = part_of(model.blocks[0], "self_attn.o_proj"), n_heads(model)
    expected = (len(model.blocks), heads, projection.get_parameter("weight").shape[1] // heads)
    if shift.shape != expected:
        raise ValueError(f"expected a shift (L, K, d_h) = {expected} for {model.name}, got {tuple(shift.shape)}")

    wrong = (~shift.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(f"a shift must be finite; block {wrong[0]} has others: alpha is too large, or fit again")

    def add(row: Tensor, x: Tensor) -> Tensor:
        return x + row.to(x)

    rows = shift.flatten(1)  # (L, K * d_h)
    changes = {block: partial(add, row) for block, row in enumerate(rows) if row.any()}
    return Edit(model, "heads", changes, positions=positions)


def head_counts(total: int, published: Sequence[int]) -> list[int]:
    """How many heads to try: the published numbers, where they leave half of the heads alone.

    Tiny models have fewer heads than are usually chosen; there one, a quarter and three quarters of them are tried.
    """
    if total >= 2 * max(published):
        return list(published)
    return sorted({1, max(1, total // 4), max(1, 3 * total // 4)})
