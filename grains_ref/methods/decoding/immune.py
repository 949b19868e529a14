r"""IMMUNE (arXiv 2411.18688): controlled decoding, each token chosen by the model and a reward together.

    with Immune(reward, weight=1.0).steering(model):
        model.generate(prompts, max_new_tokens=20)

    p'(z | s)  ~  p(z | s) exp(weight * R(s, z))   over the k most probable tokens z

s is prompt and response so far, R(s, z) the reward of the response that goes on with z.  This is what maximises
E[R] - KL(p' || p) / weight, so that weight is 1 / alpha in the paper's words.  The reward is any callable; nothing is
fitted, and text models will do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from grains_ref.grains import finite_number
from grains_ref.methods.core import Setting, whole_number
from grains_ref.models import HuggingFaceModel
from grains_ref.models.next_token import Begun, Following, Rule, applied
from grains_ref.models.scoring import TokenPrompt, run_prompts, run_responses

Reward: TypeAlias = Callable[[str, Sequence[str]], Sequence[float]]
"""The prompt's words (no picture, no special tokens) and k beginnings of its response -> a reward for each."""

WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # published code: 0.5, and 5; what they mean depends on the reward
K = 5  # published code: 2 and 5


@dataclass(frozen=True, eq=False)
class Immune(Rule):
    """The rule.

    reward: asked at every token for all k candidates at once.
    weight: what a reward of 1 is worth in nats; with 0 the k most probable tokens keep their probabilities.
    k: candidates at each token; all others are forbidden.
    look_ahead: how many tokens the model itself completes a candidate by, greedily, before it is rewarded.

    Convention: R of the beginning itself, as in the released code.  The paper's Q is the mean reward of responses that
      a safe policy completes: `look_ahead` completes them by the model that is decoded, for want of a safe one.
    Released code differs: it draws among the candidates (the most probable nine tenths of them), which is decoding
      (`do_sample=True, top_p=0.9`), not the rule; raw logits in place of log-probabilities give the same distribution.

    Raises:
        TypeError: weight is no number, k or look_ahead no whole number.
        ValueError: one of them is out of range; when asked: a reward is missing or not finite.
    """

    reward: Reward
    weight: float = 1.0
    k: int = K
    look_ahead: int = 0

    def __post_init__(self) -> None:
        if finite_number("weight", self.weight) < 0:
            raise ValueError(f"weight is {self.weight}; expected at least 0: a negative one seeks low rewards")
        whole_number("k", self.k, least=1)
        whole_number("look_ahead", self.look_ahead)

    def begin(self, model: HuggingFaceModel, prompts: Sequence[TokenPrompt]) -> Begun:
        """See `Rule`."""
        return _BegunImmune(self, model, prompts)

    def steering(self, model: HuggingFaceModel) -> AbstractContextManager[None]:
        """Follow the rule while entered."""
        return applied(model, self)


def settings(model: HuggingFaceModel, reward: Reward) -> list[Setting]:
    """The search grid, by weight."""
    rules = [Immune(reward, weight=weight) for weight in WEIGHTS]
    return [Setting("IMMUNE", rule.weight, partial(rule.steering, model)) for rule in rules]


class _BegunImmune(Begun):
    def __init__(self, rule: Immune, model: HuggingFaceModel, prompts: Sequence[TokenPrompt]) -> None:
        self._rule, self._model, self._prompts = rule, model, prompts

    def rows(self, owner: Tensor, *, lengths: Sequence[int] | None = None) -> Following:
        return _RewardedRows(self._rule, self._model, [self._prompts[i] for i in owner.tolist()], lengths)


class _RewardedRows(Following):
    def __init__(
        self, rule: Immune, model: HuggingFaceModel, prompts: Sequence[TokenPrompt], lengths: Sequence[int] | None
    ) -> None:
        self._rule, self._model, self._prompts, self._lengths = rule, model, prompts, lengths
        self._words = [_words(model, prompt) for prompt in prompts]

    def changed(self, logits: Tensor, tokens: Tensor) -> Tensor:
        new = logits.clone()
        first = tokens.shape[1] - logits.shape[1]
        responses = tokens.tolist()
        for row, response in enumerate(responses):
            length = len(response) if self._lengths is None else self._lengths[row]
            for i in range(first, min(length, len(response))):
                new[row, i - first] = self._rewarded(row, logits[row, i - first], response[:i])
        return new

    def _rewarded(self, row: int, logits: Tensor, before: list[int]) -> Tensor:
        """(V,) logits -> those of the candidates with their rewards, -inf elsewhere."""
        k = min(self._rule.k, int((logits > -math.inf).sum()))  # an earlier rule may have forbidden some
        candidates = logits.topk(k).indices
        beginnings = [[*before, token] for token in candidates.tolist()]
        if self._rule.look_ahead:
            beginnings = _completed(self._model, self._prompts[row], beginnings, n=self._rule.look_ahead)
        texts = [self._model.prompts.text(ids, skip_special_tokens=True).strip() for ids in beginnings]
        rewards = [float(reward) for reward in self._rule.reward(self._words[row], texts)]
        if len(rewards) != k or not all(math.isfinite(reward) for reward in rewards):
            raise ValueError(f"expected {k} finite rewards, one for each of {texts}; the reward gave {rewards}")
        new = torch.full_like(logits, -math.inf)
        new[candidates] = logits[candidates] + self._rule.weight * torch.tensor(rewards).to(logits)
        return new


def _words(model: HuggingFaceModel, prompt: TokenPrompt) -> str:
    """The prompt's text without pictures and special tokens."""
    ids = [token for token in prompt.ids if token != model.prompts.image_id]
    return model.prompts.text(ids, skip_special_tokens=True).strip()


@torch.no_grad()
def _completed(
    model: HuggingFaceModel, prompt: TokenPrompt, beginnings: Sequence[Sequence[int]], *, n: int
) -> list[list[int]]:
    """Each beginning and n tokens more, greedily and without rules; up to the end of the text if it comes first."""
    after = run_prompts(model, [TokenPrompt((*prompt.ids, *ids), prompt.pictures) for ids in beginnings])
    owner = torch.arange(len(beginnings), device=model.device)
    logits = after.logits[:, -1]
    tokens = owner.new_zeros(len(beginnings), 0)
    for i in range(n):
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
        if i + 1 < n:
            predicted = torch.cat([tokens, tokens.new_zeros(len(tokens), 1)], dim=1)
            logits = run_responses(model, after, owner, after.cache, predicted, start=i + 1)[:, -1]
    ends = _ends(model)
    completed = []
    for beginning, more in zip(beginnings, tokens.tolist(), strict=True):
        ids = [*beginning, *more]
        stop = next((i for i in range(len(beginning) - 1, len(ids)) if ids[i] in ends), len(ids))
        completed.append(ids[:stop])
    return completed


def _ends(model: HuggingFaceModel) -> set[int]:
    """The ids that end a text."""
    ends = model.hf.generation_config.eos_token_id
    if ends is None:
        return set()
    return {ends} if isinstance(ends, int) else set(ends)
