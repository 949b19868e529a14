"""What goes through a model at once: rows of prompt, point and responses, and batches of examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from grains_ref.grains import Encoded, Example, HyperParameters, Model

LONGEST_PADDED = 512  # tokens of an example


class Branches(Protocol):
    """What a model may offer beside the four things of `grains.Model`, as its attribute `branches`.

    `grains_ref.models.branches` offers it for Hugging Face models.  Without it the points of one example go through
    `Model.logits` together, each response apart.
    """

    def log_probs(
        self, encoded: Sequence[Encoded], embeds: Sequence[Tensor], responses: Sequence[Sequence[Tensor]]
    ) -> Tensor:
        """B prompts, their embeddings (T, d), n responses each -> log P of every response, (B, n) nats."""

    def residuals(self, encoded: Sequence[Encoded], embeds: Sequence[Tensor]) -> Tensor:
        """B prompts, their embeddings (T, d) -> h after each block at the last prompt token, (B, L, d)."""


def branches_of(model: Model) -> Branches | None:
    """The model's branches, if it has some."""
    branches: Branches | None = getattr(model, "branches", None)
    return branches


class Row(NamedTuple):
    """One point of an example's path."""

    example: Example
    point: Tensor  # (T, d)
    name: str  # where on the path, for messages


def responses_of(example: Example, hp: HyperParameters) -> tuple[Tensor, ...]:
    """The responses that f depends on: y_pos, and y_neg unless the likelihood is asked for (sect. 5.3)."""
    return (example.y_pos,) if hp.objective == "likelihood" else (example.y_pos, example.y_neg)


def row_tokens(rows: Sequence[Row]) -> int:
    """Tokens of one pass over the rows, padding included."""
    return len(rows) * max(example_tokens(row.example) for row in rows)


def example_tokens(example: Example) -> int:
    """The prompt, and both responses behind it."""
    return len(example.encoded.ids) + len(example.y_pos) + len(example.y_neg)


def points_of_path(hp: HyperParameters) -> int:
    """How many gradients an example takes."""
    counts = {"integrated_gradients": hp.m, "gradient": 1, "smoothgrad": hp.n, "random": 0}
    return counts[hp.attribution]


def batches(examples: Sequence[Example], hp: HyperParameters, *, pass_tokens: int) -> list[list[int]]:
    """Which examples go through the model together: numbers, every one once, those of similar length together.

    A function of all examples and the settings alone, so that what is already finished changes no batch, and with it
    no rounding.  Long prompts go together only where they are equally long: without padding there is no mask, and the
    fastest kernels of attention take none.
    """
    rows_each = max(3, points_of_path(hp))  # eq. (4) takes three
    lengths = [(len(example.encoded.ids), example_tokens(example)) for example in examples]
    by_length = sorted(range(len(examples)), key=lambda i: (lengths[i], i))
    batches_of_examples: list[list[int]] = []
    batch: list[int] = []
    for i in by_length:
        n_prompt, n_tokens = lengths[i]
        longest = max([n_tokens, *(lengths[j][1] for j in batch)])
        tokens_if_added = (len(batch) + 1) * rows_each * longest
        needs_padding = bool(batch) and n_prompt != lengths[batch[0]][0]
        is_long = n_tokens > LONGEST_PADDED
        if batch and (tokens_if_added > pass_tokens or (is_long and needs_padding)):
            batches_of_examples.append(batch)
            batch = []
        batch.append(i)
    if batch:
        batches_of_examples.append(batch)
    return batches_of_examples
