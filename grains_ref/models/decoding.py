"""One token at a time for rows that come and go: a batch that a server decodes.

    rows = Rows.begin(model, prompts)          logits of the token after each prompt, (B, V)
    rows.step(tokens)                          the tokens that were chosen -> logits of those after them
    rows.keep([0, 2])                          rows 0 and 2 go on, the others have ended
    rows.absorb(others)                        rows that have begun later join them, where the cache allows it

Left-padded prompts and a cache, as scores are computed (`scoring`), so that every family that can be scored can be
served.  No gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from grains_ref.models.next_token import rules_of
from grains_ref.models.scoring import LOGIT_MEMORY, TokenPrompt, run_prompts, select_rows

if TYPE_CHECKING:
    from grains_ref.models.huggingface import HuggingFaceModel

OnPrompt: TypeAlias = Callable[[int, int, Tensor], None]
BYTES_PER_LOGIT = 12  # the logit itself, and float32 copies of it and of its log-probability


class Rows:
    """B sequences behind one cache.

    Attributes:
        logits: of the token after each row, (B, V).
    """

    def __init__(
        self,
        model: HuggingFaceModel,
        *,
        logits: Tensor,
        cache: Any,
        mask: Tensor,
        next_position: Tensor,
        position_axes: tuple[int, ...],
    ) -> None:
        self.logits = logits
        self._model, self._cache, self._axes = model, cache, position_axes
        self._mask, self._next_position = mask, next_position  # (B, tokens so far), 0 at padding; (B,)

    @classmethod
    @torch.no_grad()
    def begin(
        cls,
        model: HuggingFaceModel,
        prompts: Sequence[Sequence[int]],
        *,
        on_prompt: OnPrompt | None = None,
        memory: int = LOGIT_MEMORY,
    ) -> Rows:
        """All prompts in one pass.

        on_prompt: called with the number of a row, of its token t, and with logits (n, V), the first of which predict
        that token: all tokens but the first, in order.  memory: bytes that these logits may take; a single prompt that
        needs more goes through the model in pieces, and of several `fits_together` says whether they do.

        Raises:
            ValueError: a rule of the next token is in force, which this way of decoding does not ask.
        """
        if rules_of(model):
            raise ValueError("rows are decoded without rules of the next token; leave `applied`, or use `generate`")
        ids = [tuple(prompt) for prompt in prompts]
        size = max(len(prompt) for prompt in ids)
        if on_prompt and len(ids) == 1:
            size = min(size, max(1, memory // _bytes_per_token(model)))
        beginnings = [prompt[:size] for prompt in ids]
        after = run_prompts(model, [TokenPrompt(prompt) for prompt in beginnings], logits_to_keep=0 if on_prompt else 1)
        rows = cls(
            model,
            logits=after.logits[:, -1],
            cache=after.cache,
            mask=after.mask,
            next_position=after.next_position,
            position_axes=after.position_axes,
        )
        if on_prompt:
            for row, prompt in enumerate(ids):
                first = after.logits.shape[1] - len(beginnings[row])  # behind the padding
                on_prompt(row, 1, after.logits[row, first : first + len(prompt) - 1])
        del after
        for start in range(size, len(ids[0]), size):
            piece = ids[0][start : start + size]
            logits = rows._feed(torch.tensor([piece], device=model.device))
            on_prompt(0, start + 1, logits[0, : len(ids[0]) - start - 1])  # type: ignore[misc]
        return rows

    def __len__(self) -> int:
        return len(self._mask)

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> None:
        """Feed one token to every row."""
        self._feed(torch.tensor(tokens, device=self._mask.device)[:, None])

    def _feed(self, tokens: Tensor) -> Tensor:
        """(B, n) tokens -> their logits (B, n, V)."""
        behind = torch.arange(tokens.shape[1], device=self._mask.device)
        positions = self._next_position[:, None] + behind  # (B, n)
        self._mask = torch.cat([self._mask, self._mask.new_ones(tokens.shape)], dim=1)
        out = self._model.hf(
            input_ids=tokens,
            attention_mask=self._mask,
            position_ids=positions.expand(*self._axes, -1, -1),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._next_position = self._next_position + tokens.shape[1]
        logits: Tensor = out.logits
        self.logits = logits[:, -1]
        return logits

    def absorb(self, other: Rows) -> bool:
        """Take the rows of another batch behind one's own, and say whether that was done.

        Only where the cache is nothing but keys and values of all tokens, which can be padded: windows and the states
        of linear attention stay apart.  Nor where padding would double what the caches hold.
        """
        if not (_is_plain(self._cache) and _is_plain(other._cache)):
            return False
        length = max(self._mask.shape[1], other._mask.shape[1])
        if (len(self) + len(other)) * length > 2 * (self._mask.numel() + other._mask.numel()):
            return False
        for own, others in zip(self._cache.layers, other._cache.layers, strict=True):
            own.keys = torch.cat([_left_padded(own.keys, length), _left_padded(others.keys, length)])
            own.values = torch.cat([_left_padded(own.values, length), _left_padded(others.values, length)])
        masks = [nn.functional.pad(mask, (length - mask.shape[1], 0)) for mask in (self._mask, other._mask)]
        self._mask = torch.cat(masks)
        self._next_position = torch.cat([self._next_position, other._next_position])
        self.logits = torch.cat([self.logits, other.logits])
        return True

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the rows, in this order."""
        chosen = torch.tensor(rows, device=self._mask.device)
        select_rows(self._cache, chosen)
        self._mask, self._next_position = self._mask[chosen], self._next_position[chosen]
        self.logits = self.logits[chosen]


def _is_plain(cache: Any) -> bool:
    """Whether it holds keys and values (B, heads, T, d) of all tokens, and nothing else."""
    return type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)


def _left_padded(states: Tensor, length: int) -> Tensor:
    """(B, heads, T, d) -> (B, heads, length, d)."""
    return nn.functional.pad(states, (0, 0, length - states.shape[2], 0))


def fits_together(model: HuggingFaceModel, lengths: Sequence[int], *, memory: int = LOGIT_MEMORY) -> bool:
    """Whether the logits of all tokens of prompts of these lengths fit into so much memory when they are padded."""
    return len(lengths) * max(lengths) * _bytes_per_token(model) <= memory


def _bytes_per_token(model: HuggingFaceModel) -> int:
    return int(model.text_config.vocab_size) * BYTES_PER_LOGIT
