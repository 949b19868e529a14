r"""Two runs of the same tokens, one of which sees less: what VCD and CRG share.

    l' = (1 + alpha) l - alpha l_degraded          l: logits of the next token, (V,)
    l' = -inf where l < max(l) + log(beta)         the plausible tokens are left, those with p >= beta max(p)

The degraded run has the same prompt but for the picture, a cache of its own, and is fed the same response.  It is
steered as the first run is, whatever steering is in force: the contrast is one of two pictures, not of two models.
Where nothing is degraded, as in a prompt without a picture, logits stay as they are, bit for bit.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from grains_ref.grains import finite_number
from grains_ref.models import HuggingFaceModel
from grains_ref.models.next_token import Begun, Following, Rule, applied
from grains_ref.models.scoring import PromptPass, TokenPrompt, another_view, run_prompts, run_responses, select_rows


@dataclass(frozen=True, eq=False)
class Contrast(Rule):
    """What is common to both; `degraded` is what differs.

    alpha: weight of the contrast, at least 0; with 0 and beta 0 the distribution stays as it is, bit for bit.
    beta: from 0 to 1, the least probability of a plausible token, as a share of the most probable one's.
    first_only: contrast the response's first token alone; for the others only beta holds.

    Raises:
        TypeError: alpha or beta is no number.
        ValueError: one of them is out of range.
    """

    alpha: float
    beta: float = 0.0
    first_only: bool = False

    def __post_init__(self) -> None:
        if finite_number("alpha", self.alpha) < 0:
            raise ValueError(f"alpha is {self.alpha}; expected at least 0: a negative one favours the degraded picture")
        if not 0 <= finite_number("beta", self.beta) <= 1:
            raise ValueError(f"beta is {self.beta}; expected a share from 0 (all tokens) to 1 (the best one)")

    @abstractmethod
    def degraded(self, model: HuggingFaceModel, prompt: TokenPrompt) -> TokenPrompt | None:
        """The prompt of the degraded run; None where nothing is to be degraded."""

    def seen_as(self, model: HuggingFaceModel, prompt: TokenPrompt) -> AbstractContextManager[object]:
        """Inside of what the degraded prompt's pictures are seen."""
        return nullcontext()

    def begin(self, model: HuggingFaceModel, prompts: Sequence[TokenPrompt]) -> Begun:
        """See `Rule`: the degraded prompts in one pass."""
        degraded: list[TokenPrompt] = []
        place = [-1] * len(prompts)  # of each prompt among the degraded ones
        for i, prompt in enumerate(prompts):
            other = self.degraded(model, prompt)
            if other is not None:
                place[i] = len(degraded)
                degraded.append(other)
        after = None
        if degraded:
            after = run_prompts(model, degraded, seen_as=lambda prompt: self.seen_as(model, prompt))
        return _BegunContrast(self, model, after, torch.tensor(place))

    def steering(self, model: HuggingFaceModel) -> AbstractContextManager[None]:
        """Follow the rule while entered."""
        return applied(model, self)


def contrasted(logits: Tensor, degraded: Tensor, *, alpha: float, beta: float) -> Tensor:
    r"""(1 + alpha) l - alpha l_degraded where l >= max(l) + log(beta), else -inf; the last axis is the vocabulary.

    Convention: probabilities need not be computed, since p >= beta max(p) says the same of logits.
    """
    new = (1 + alpha) * logits - alpha * degraded
    if beta == 0:
        return new
    implausible = logits < logits.amax(-1, keepdim=True) + math.log(beta)
    return new.masked_fill(implausible, -math.inf)


class _BegunContrast(Begun):
    def __init__(self, rule: Contrast, model: HuggingFaceModel, after: PromptPass | None, place: Tensor) -> None:
        self._rule, self._model, self._after, self._place = rule, model, after, place

    def rows(self, owner: Tensor, *, lengths: Sequence[int] | None = None) -> Following:
        place = self._place.to(owner.device)[owner]  # (rows,)
        rows = (place >= 0).nonzero().flatten()  # those with something degraded
        if self._after is None or not len(rows):
            return _Unchanged()
        return _ContrastedRows(self._rule, self._model, self._after, rows=rows, owner=place[rows])


class _Unchanged(Following):
    def changed(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return logits


class _ContrastedRows(Following):
    def __init__(
        self, rule: Contrast, model: HuggingFaceModel, after: PromptPass, *, rows: Tensor, owner: Tensor
    ) -> None:
        self._rule, self._model, self._after = rule, model, after
        self._rows, self._owner = rows, owner
        self._n_held = 0  # tokens of the responses that the cache holds
        self._cache = another_view(after.cache)
        select_rows(self._cache, owner)

    def changed(self, logits: Tensor, tokens: Tensor) -> Tensor:
        own = logits[self._rows]
        n = logits.shape[1]
        degraded = self._degraded(tokens[self._rows])[:, -n:].to(own)
        if self._rule.first_only:
            is_first = torch.arange(tokens.shape[1] - n, tokens.shape[1], device=own.device) == 0
            degraded = torch.where(is_first[None, :, None], degraded, own)
        new = logits.clone()
        new[self._rows] = contrasted(own, degraded, alpha=self._rule.alpha, beta=self._rule.beta)
        return new

    def _degraded(self, tokens: Tensor) -> Tensor:
        """Logits of those tokens that no earlier call has asked about."""
        parts = [self._after.logits[self._owner]] if self._n_held == 0 else []  # (rows, 1, V), of the first token
        if tokens.shape[1] - 1 > self._n_held:
            start = self._n_held + 1
            parts.append(run_responses(self._model, self._after, self._owner, self._cache, tokens, start=start))
            self._n_held = tokens.shape[1] - 1
        return torch.cat(parts, dim=1)
