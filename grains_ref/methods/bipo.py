r"""BiPO, bi-directional preference optimisation (Cao et al., 2024): train a vector that is good in both directions.

    f(u)  = log P(y_pos | x; h + u) - log P(y_neg | x; h + u)               eq. (1) of the edited model, nats
    loss  = mean over pairs of  -log sigmoid( beta d (f(d v) - f(0)) )      d = +1 or -1, drawn for every step
    h_l  <- h_l + c v_l                                                     at every token of prompt and answer

Read: DPO's loss, with the model as it is for a reference and v for all that is trained, from zero.  With d = +1 it
asks that +v makes the chosen answers more likely, with d = -1 that -v makes the rejected ones so.  At v = 0 its
derivative is -beta/2 times that of f, whatever d is: the first step is one along the edit gradient.

Edit: the residual stream of one block, as in the public code, or of several that are trained together.  v keeps the
length that training gave it, and the norm of h is not restored.

What the public code has, and what is done here:

| public code | here |
|---|---|
| block 15 of 32 (Llama 2), 13 of 32 (Mistral) | L // 2 - 1, or as asked |
| beta .1, AdamW at 5e-4, batches of 4, gradients clipped to norm 1 | the same |
| no weight decay: its option is never handed to the trainer | none |
| 100 warm-up steps, then a cosine over 100 epochs | a constant rate |
| the vector of an epoch between 5 and 20 | that of epoch 20 |
| 623 to 2240 pairs, so that an epoch has 156 to 560 steps | as many as are given |
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from grains_ref.data import PreferencePair
from grains_ref.grains import (
    DegenerateShiftsError,
    Example,
    Hooks,
    at_least_float32,
    different_numbers,
    finite_number,
    log_prob,
)
from grains_ref.methods.adding import add_vectors
from grains_ref.methods.core import Change, Edit, Setting, at_site, check_pairs, whole_number
from grains_ref.models import HuggingFaceModel

LEARNING_RATE = 5e-4
MULTIPLIERS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)

Trained = Mapping[int, Tensor]  # block -> (d,), a leaf that takes gradients


@dataclass(frozen=True)
class BiPO:
    """What was trained.

    Attributes:
        v: (L, d) in float64; zero at blocks that have no vector.
        blocks: those that have one.
        losses: of each step before it is taken; log 2 at the first.
        loss: of all pairs after training, mean of both directions.
    """

    v: Tensor
    blocks: tuple[int, ...]
    losses: tuple[float, ...] = field(repr=False)
    loss: float

    def steering(self, model: HuggingFaceModel, *, c: float) -> Edit:
        """Add c times the trained vectors at every position while entered; c < 0 moves toward the rejected answers.

        Raises:
            TypeError: c is no number.
            ValueError: the vectors are of another model, or c is not finite.
        """
        return add_vectors(model, self.v, c=c, blocks=self.blocks)

    def settings(self, model: HuggingFaceModel) -> list[Setting]:
        """The search grid, `MULTIPLIERS`, gentlest first."""
        where = "block " + ", ".join(str(block) for block in self.blocks)
        return [Setting(f"BiPO, {where}", c, functools.partial(self.steering, model, c=c)) for c in MULTIPLIERS]


def fit(
    model: HuggingFaceModel,
    pairs: Sequence[PreferencePair],
    *,
    blocks: Collection[int] | None = None,
    beta: float = 0.1,
    learning_rate: float = LEARNING_RATE,
    epochs: int = 20,
    batch_size: int = 4,
    seed: int = 0,
) -> BiPO:
    """Train the vectors of these blocks, by default of `middle_block`.

    seed: decides the order of the pairs and every d; the caller's random numbers are left alone.

    Convention: pairs are run one at a time, unpadded, and their gradients added up; the model stays in evaluation mode.

    Raises:
        TypeError: the pairs are no list, or a number is none.
        ValueError: no pair, a block that does not exist, or a number that makes no sense.
        DegenerateShiftsError: nothing was learned: the loss is not below log 2 afterwards.
        FloatingPointError: training diverged: a score, the loss or its derivative is not finite.
    """
    check_pairs(pairs, least=1)
    n = len(model.blocks)
    chosen = different_numbers("blocks", [middle_block(n)] if blocks is None else list(blocks), below=n)
    if not chosen:
        raise ValueError("need at least one block to train a vector for; got none")
    for name, number in (("beta", beta), ("learning_rate", learning_rate)):
        if finite_number(name, number) <= 0:
            raise ValueError(f"{name} must be above 0; got {number}")
    whole_number("epochs", epochs, least=1)
    whole_number("batch_size", batch_size, least=1)
    examples = [model.example(pair.prompt, pair.chosen, pair.rejected, pair.image) for pair in pairs]
    with torch.no_grad():
        unsteered = [f_of(model, example).item() for example in examples]
    like = at_least_float32(examples[0].encoded.embeds)
    v = {block: torch.zeros(model.width, dtype=like, requires_grad=True) for block in chosen}
    optimiser = torch.optim.AdamW(v.values(), lr=learning_rate, weight_decay=0.0)
    draws = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    for _ in range(epochs):
        for batch in torch.randperm(len(examples), generator=draws).split(batch_size):
            d = 1 if torch.rand((), generator=draws).item() < 0.5 else -1
            in_batch = [(examples[i], unsteered[i]) for i in batch.tolist()]
            losses.append(loss_and_gradient(model, in_batch, v, d=d, beta=beta))
            norm = torch.nn.utils.clip_grad_norm_(v.values(), 1.0).item()
            if not math.isfinite(losses[-1] + norm):
                raise FloatingPointError(
                    f"training at learning rate {learning_rate:g} diverged in step {len(losses)}: the loss is "
                    f"{losses[-1]:.3g} nats and its gradient {norm:.3g}. Take a lower rate, or bfloat16 instead of "
                    "float16."
                )
            optimiser.step()
    trained = torch.zeros(n, model.width, dtype=torch.float64)
    for block in chosen:
        trained[block] = v[block].detach()
    every = list(zip(examples, unsteered, strict=True))
    loss = sum(loss_and_gradient(model, every, v, d=d, beta=beta) for d in (1, -1)) / 2
    if not loss < math.log(2):
        raise DegenerateShiftsError(
            f"training did not lower the loss: {loss:.4g} nats, and log 2 = 0.6931 without a vector. The pairs may "
            "cancel each other: check that chosen and rejected are not mixed up in some. Or the learning rate "
            f"{learning_rate:g} is too high."
        )
    return BiPO(trained, tuple(sorted(chosen)), tuple(losses), loss)


def middle_block(n: int) -> int:
    """The block of n that the public code takes for Llama 2: 15 of 32."""
    return max(0, n // 2 - 1)


def f_of(model: HuggingFaceModel, example: Example) -> Tensor:
    """Equation (1) of one pair, nats, under whatever edits the model now."""
    x = example.encoded
    pos, neg = (log_prob(model, x, x.embeds[None], y=y).sum() for y in (example.y_pos, example.y_neg))
    return pos - neg


@torch.enable_grad()
def loss_and_gradient(
    model: HuggingFaceModel, batch: Sequence[tuple[Example, float]], v: Trained, *, d: int, beta: float
) -> float:
    """The loss of a batch; its derivative is left in the `grad` of v, in place of what was there.

    batch: pairs with their f of the model as it is.
    """
    for vector in v.values():
        vector.grad = None
    total = 0.0
    after, before = at_site(model, "residual", {block: _add(vector, float(d)) for block, vector in v.items()})
    with Hooks(after, before=before):
        for example, unsteered in batch:
            loss = -logsigmoid(beta * d * (f_of(model, example) - unsteered)) / len(batch)
            loss.backward(inputs=list(v.values()))  # and no gradient for a parameter of the model's
            total += loss.item()
    return total


def _add(v: Tensor, c: float) -> Change:
    """In the precision of v, which is trained: rounded to half precision its steps would vanish."""
    return lambda h: (h + c * v.to(h.device)).to(h)
