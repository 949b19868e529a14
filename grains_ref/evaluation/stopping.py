"""Where a generation ends: at the first of several texts, in what was generated and nowhere else."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from transformers import StoppingCriteria

from grains_ref.models import HuggingFaceModel


class SaidSoFar(StoppingCriteria):
    """Stops each row at the first stop text in what it has generated, and keeps that text up to there.

    transformers' own stop strings also look at the end of the prompt, and a generation's leading white space would be
    stripped by `HuggingFaceModel.generate`; evaluation tools want neither.  The end-of-text token is a stop text too.

    Attributes:
        texts: of each row, what was generated, without the stop text and what follows it.
        n_tokens: of each row, how many tokens were generated, those of the stop text included.
        ended: of each row, whether it came to an end by itself.
    """

    def __init__(self, model: HuggingFaceModel, until: Sequence[str]) -> None:
        self.model = model
        eos = model.tokenizer.eos_token
        self.until = [*until] if eos is None or eos in until else [*until, eos]
        special = model.tokenizer.added_tokens_decoder.items()  # they leave no text behind
        self.stop_ids = {i for i, token in special if token.special and token.content in self.until}
        self.prompt_length = -1
        self.texts: list[str] = []
        self.n_tokens: list[int] = []
        self.ended: list[bool] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Look at what every row has said; whether each is to stop."""
        if self.prompt_length < 0:
            self.prompt_length = input_ids.shape[1] - 1  # the first call comes after the first new token
            self.n_tokens, self.ended = [0] * len(input_ids), [False] * len(input_ids)
        rows = input_ids[:, self.prompt_length :].tolist()
        before_end = [list(itertools.takewhile(lambda token: token not in self.stop_ids, row)) for row in rows]
        whole = [str(self.model.tokenizer.decode(row, skip_special_tokens=True)) for row in before_end]
        self.texts = [up_to(text, self.until) for text in whole]
        stopped = [
            len(ids) < len(row) or len(text) < len(full)
            for row, ids, full, text in zip(rows, before_end, whole, self.texts, strict=True)
        ]
        self._count(rows, stopped)
        return torch.tensor(stopped, device=input_ids.device)

    def _count(self, rows: Sequence[Sequence[int]], stopped: Sequence[bool]) -> None:
        """A row that has ended goes on with padding, which is not counted."""
        ends = self.model.hf.generation_config.eos_token_id  # transformers stops at these by itself
        end_ids = ends if isinstance(ends, list) else [ends]
        for i, row in enumerate(rows):
            if not self.ended[i]:
                self.n_tokens[i] = len(row)
                self.ended[i] = stopped[i] or row[-1] in end_ids


def up_to(text: str, until: Sequence[str]) -> str:
    """The text before the first stop text."""
    ends = [place for stop in until if (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
