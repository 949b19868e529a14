"""Rules that change the distribution of the next token, while responses are scored and while text is generated.

    with applied(model, rule):
        model.score(...)       log-probabilities of given responses under the changed distribution
        model.generate(...)    text under it

    model.hf.generate(..., logits_processor=[processor(model, rule, prompts, images)])    in transformers' own loop

A rule is begun once for a batch of prompts (`Rule.begin`), then once for the rows that go on behind them
(`Begun.rows`), and is shown the logits of the rows' tokens in order (`Following.changed`).  Both ways ask it the same
questions, so that what greedy decoding gives is what scoring calls greedy.

A rule acts where `grains.Hooks` act: in the thread or asyncio task that entered it, until it is left.  Of two rules the
one that was entered first acts first.  Steering is not its business: a rule sees whatever logits the steered model has.
Attribution and reading of states (`logits`, `residuals`) know no rules.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import LogitsProcessor

if TYPE_CHECKING:
    from grains_ref.data import Prompt
    from grains_ref.models.families import PictureSources
    from grains_ref.models.huggingface import HuggingFaceModel
    from grains_ref.models.scoring import TokenPrompt


class Following(ABC):
    """A rule at work on rows, each behind its prompt."""

    @abstractmethod
    def changed(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """New logits of the last n of the rows' tokens.

        logits: (rows, n, V), float32 or wider.  tokens: (rows, R), all tokens of the responses so far; the last one is
        only predicted and may be anything.  Calls come in order, and none of the tokens that are predicted is left out
        but before the first call.  A logit of -inf forbids a token.
        """


class Begun(ABC):
    """What a rule has made of a batch of prompts, before any response."""

    @abstractmethod
    def rows(self, owner: Tensor, *, lengths: Sequence[int] | None = None) -> Following:
        """Begin rows, each behind the prompt that owns it: (rows,) numbers of prompts.

        lengths: how many tokens each row has; what is behind them is padding, whose logits are not looked at.
        """


class Rule(ABC):
    """A way to change the distribution of the next token."""

    @abstractmethod
    def begin(self, model: HuggingFaceModel, prompts: Sequence[TokenPrompt]) -> Begun:
        """Do once what has to be done for these prompts."""


# ------------------------------------------------------------------------------------------- whose rules
@dataclass(eq=False)
class _Entry:
    model: HuggingFaceModel
    rule: Rule
    is_left: bool = False  # a task that was started inside keeps its copy of what was entered


_ENTERED: ContextVar[tuple[_Entry, ...]] = ContextVar("grains_ref: rules of the next token", default=())


@contextmanager
def applied(model: HuggingFaceModel, rule: Rule) -> Iterator[None]:
    """Inside, in this thread or asyncio task alone, the model's next tokens follow the rule."""
    entry = _Entry(model, rule)
    _ENTERED.set((*_ENTERED.get(), entry))
    try:
        yield
    finally:
        entry.is_left = True
        _ENTERED.set(tuple(other for other in _ENTERED.get() if other is not entry))


def rules_of(model: HuggingFaceModel) -> list[Rule]:
    """The rules that are to be followed here, in the order in which they were entered."""
    return [entry.rule for entry in _ENTERED.get() if entry.model is model and not entry.is_left]


# ------------------------------------------------------------------------------------------- in transformers' loop
def processor(
    model: HuggingFaceModel,
    rule: Rule,
    prompts: Sequence[Prompt],
    images: Sequence[PictureSources | None] = (),
) -> LogitsProcessor:
    """The rule for one call of transformers' `generate` on these prompts, left-padded as a batch.

    It works with greedy decoding, sampling, beams and several sequences for each prompt.

    Raises:
        ValueError: another number of images than of prompts; see `HuggingFaceModel.encode`.
    """
    from grains_ref.models.scoring import TokenPrompt

    if images and len(images) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but {len(images)} images; give one (or None) for every prompt")
    rows = []
    for prompt, image in zip(prompts, images or [None] * len(prompts), strict=True):
        pictures = model.checked_pictures(image)
        ids, _ = model.prompts.encode(prompt, pictures)
        rows.append(TokenPrompt(tuple(ids), pictures))
    return RuleProcessor(model, rule, rows)


class RuleProcessor(LogitsProcessor):
    """A rule in transformers' loop: called at each step with all tokens so far and the logits of the next one."""

    def __init__(self, model: HuggingFaceModel, rule: Rule, prompts: Sequence[TokenPrompt]) -> None:
        self._model, self._rule, self._prompts = model, rule, list(prompts)
        self._begun: Begun | None = None
        self._following: Following | None = None
        self._n_prompt = 0  # tokens of the longest prompt, which all are padded to
        self._before: Tensor | None = None  # the tokens of the last call

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(rows, T) tokens and (rows, V) logits -> (rows, V).

        Raises:
            ValueError: the rows cannot be those of the prompts.
        """
        with _positions_kept(self._model):
            return self._changed(input_ids, scores)

    def _changed(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        n_rows = len(input_ids)
        if n_rows % len(self._prompts):
            raise ValueError(f"a processor for {len(self._prompts)} prompts was given {n_rows} rows")
        if self._begun is None:
            self._begun = self._rule.begin(self._model, self._prompts)
            self._n_prompt = input_ids.shape[1]
        if self._following is None or not self._goes_on(input_ids):  # beams have changed places: all is read again
            prompts = torch.arange(len(self._prompts), device=input_ids.device)
            self._following = self._begun.rows(prompts.repeat_interleave(n_rows // len(prompts)))
        self._before = input_ids
        response = input_ids[:, self._n_prompt :]
        predicted = response.new_zeros(n_rows, 1)
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return self._following.changed(wide[:, None], torch.cat([response, predicted], dim=1))[:, 0].to(scores)

    def _goes_on(self, input_ids: Tensor) -> bool:
        """Whether every row is that of the last call and one token more."""
        before = self._before
        return before is not None and before.shape == input_ids[:, :-1].shape and torch.equal(before, input_ids[:, :-1])


@contextmanager
def _positions_kept(model: HuggingFaceModel) -> Iterator[None]:
    """Runs inside leave no trace in the positions that Qwen's models remember from one step to the next.

    transformers 5.23 works out a text's positions once, before the first step; other versions ask again at each.
    """
    remembered = [(module, module.rope_deltas) for module in model.hf.modules() if hasattr(module, "rope_deltas")]
    try:
        yield
    finally:
        for module, deltas in remembered:
            module.rope_deltas = deltas
