r"""LoRA (Hu et al., 2021): low-rank additions to the decoder's query and value projections, trained on y_pos.

    W x  ->  W x + (alpha / rank) B A x        A: (rank, inputs), random at first; B: (outputs, rank), zero at first

The one method here that trains. `peft` makes the adapters, beside the model: they act through forward hooks, in
training as in steering, so that nothing of the model is replaced or changed, not even for a while.

What the paper says (app. A.1): rank 16, alpha 32, learning rate 5e-6, batch size 16, "10 iterations". What it leaves
open, and what is done here:

| open | here |
|---|---|
| which weights | query and value projections of every decoder block (peft's default for Llama); no vision tower |
| loss | cross-entropy of y_pos and an end-of-text token, given prompt and picture; mean over a batch's tokens |
| optimiser | AdamW, no weight decay, constant rate, gradients clipped to norm 1, adapters in float32 or wider |
| iteration | one pass over the pairs: 50 pairs make 4 steps, ten passes 40 |

`PAPER` and `LEARNS` are grids of learning rates; one adapter is trained at each, all else being as the paper says.
The paper's rate hardly moves the weights: a step of Adam moves a number by about the learning rate, so that after 40
steps no entry of B is above 2e-4. On the four planted worlds (seed 0) the largest relative change of a projection
(`Adapter.weight_change`) is 0.002, and dev accuracy rises by 0 to 1.3 points. The grid `LEARNS` was fixed on dev,
seed 0, before test: from 1e-4, where accuracy rises in every world, by factors of two to beyond 1e-3, where both graded
worlds lose more capability than is allowed. Which of its adapters is used is chosen on dev, like any strength.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from grains_ref.data import PreferencePair, check_tokens
from grains_ref.files import check_listed
from grains_ref.grains import Encoded, Hook, Hooks, at_least_float32, finite_number
from grains_ref.methods.core import DRAWING, LARGEST, Setting, check_pairs, whole_number
from grains_ref.models import HuggingFaceModel
from grains_ref.models.blocks import part_of

PAPER = (5e-6,)
LEARNS = (1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3)
PROJECTIONS = ("q_proj", "v_proj")  # of `self_attn` in every decoder block
FASTEST = torch.finfo(torch.float32).max / 10  # a learning rate: Adam's first step divides it by 1 - 0.9

Matrices: TypeAlias = Mapping[str, Sequence[Tensor]]  # projection -> one per block


@dataclass(frozen=True)
class Adapter:
    """The trained matrices of one learning rate.

    a: projection -> (L, rank, inputs).  b: projection -> (L, outputs, rank).  Both on the CPU.
    losses: of each optimiser step before it is taken, in nats per token.
    """

    learning_rate: float
    scale: float  # alpha / rank
    a: Mapping[str, Tensor] = field(repr=False)
    b: Mapping[str, Tensor] = field(repr=False)
    losses: tuple[float, ...] = field(repr=False)

    def steering(self, model: HuggingFaceModel) -> Hooks:
        """Add (alpha / rank) B A x to the output of every adapted projection while entered.

        Convention: the sum is formed in the adapter's type and rounded to the model's, as peft does it; every
          position of prompt and answer is affected.

        Raises:
            ValueError: the adapter was trained on a model of another shape, or is not finite.
            FloatingPointError: by the model's run: a sum is beyond the model's type.
        """
        self._check(model)
        a, b = self._on_devices(self.a, model), self._on_devices(self.b, model)
        return Hooks(_additions(model, a, b, scale=self.scale, refuse=True))

    def _on_devices(self, matrices: Mapping[str, Tensor], model: HuggingFaceModel) -> Matrices:
        return {
            name: [
                matrix.to(_projection(block, name).weight.device)
                for matrix, block in zip(matrices[name], model.blocks, strict=True)
            ]
            for name in PROJECTIONS
        }

    def weight_change(self, model: HuggingFaceModel) -> float:
        """How far the adapter would move the weights: the largest |(alpha / rank) B A| / |W| (Frobenius norms).

        Raises:
            ValueError: see `steering`.
        """
        self._check(model)
        ratios = []
        for i, block in enumerate(model.blocks):
            for name in PROJECTIONS:
                change = self.scale * _size_of_product(self.a[name][i], self.b[name][i])
                ratios.append(change / _size(_projection(block, name).weight))
        return max(ratios)

    def _check(self, model: HuggingFaceModel) -> None:
        for name in PROJECTIONS:
            fits = [(b.shape[0], a.shape[1]) for a, b in zip(self.a[name], self.b[name], strict=True)]
            shapes = [tuple(_projection(block, name).weight.shape) for block in model.blocks]
            if fits != shapes:
                raise ValueError(
                    f"the adapter is for {len(fits)} blocks with {name} of shape {fits[0]}, but {model.name} has "
                    f"{len(shapes)} with {shapes[0]}; train it on the model that it steers"
                )
            for i, (a, b) in enumerate(zip(self.a[name], self.b[name], strict=True)):
                if not (a.isfinite().all() and b.isfinite().all()):
                    raise ValueError(f"block {i}: the adapter of {name} is not finite; train it at a lower rate")


@dataclass(frozen=True)
class Lora:
    """One adapter per learning rate of the grid."""

    adapters: tuple[Adapter, ...]

    def settings(self, model: HuggingFaceModel) -> list[Setting]:
        """The trained adapters at full strength, lowest learning rate first."""
        return [
            Setting(f"LoRA, rate {adapter.learning_rate:g}", 1.0, functools.partial(adapter.steering, model))
            for adapter in sorted(self.adapters, key=lambda adapter: adapter.learning_rate)
        ]


def fit(
    model: HuggingFaceModel,
    pairs: Sequence[PreferencePair],
    *,
    learning_rates: Sequence[float] = PAPER,
    rank: int = 16,
    alpha: int = 32,
    epochs: int = 10,
    batch_size: int = 16,
    seed: int = 0,
) -> Lora:
    r"""Train an adapter on the chosen answers at each learning rate.

    Equation: minimise -1/n \sum log P(token given the prompt and the answer so far) over the n answer tokens of a
      batch, the end-of-text token included; the prompt's own tokens are not learned.
    Convention: examples are run one at a time, unpadded, and their gradients added up, so that memory is that of one
      example and no padding rule matters; the model stays in evaluation mode (no dropout).  The seed decides the
      first A and the order of the examples, the same for every learning rate; the caller's random numbers are left
      alone.  The rejected answers are not used.
    The model is not changed: parameters, their gradients and types, and the mode of its modules stay as they are, and
      another thread may use it meanwhile.
    Source: section 4.1, appendix A.1.

    Raises:
        ImportError: peft is not installed.
        RowError: a pair does not fit the model's context.
        TypeError: the pairs or the learning rates are no list, or a number is none.
        ValueError: no pair, a number that makes no sense, no end-of-text token, or training diverged: a loss, a
            gradient or a weight is not finite, or an adapter outweighs its projection by 1 / eps of the model's type.
            From there on rounding leaves nothing of W x in W x + B A x: what was trained is no addition to the model.
            A loss is not finite or beyond 1 / eps of its own type, at which it no longer tells one nat.
    """
    check_pairs(pairs, least=1)
    check_listed("learning_rates", learning_rates, "a list of numbers")
    rates = [finite_number("learning rate", rate) for rate in learning_rates]
    numbers = {"rank": rank, "alpha": alpha, "epochs": epochs, "batch_size": batch_size}
    for name, number in numbers.items():
        whole_number(name, number, least=-(2**63))
    if not rates or not all(0 < number <= FASTEST for number in (*numbers.values(), *rates)):
        raise ValueError(
            "need at least one learning rate, and positive numbers that float32 can hold; got "
            f"learning rates {rates}, {numbers}"
        )
    rows = [_row(model, pair) for pair in pairs]
    adapters = []
    for rate in rates:
        a, b = _untrained(model, rank=rank, alpha=alpha, seed=seed)
        losses = _train(
            model,
            rows,
            a,
            b,
            scale=alpha / rank,
            learning_rate=rate,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
        )
        trained_a, trained_b = (
            {name: torch.stack([matrix.detach().cpu() for matrix in part[name]]) for name in PROJECTIONS}
            for part in (a, b)
        )
        adapters.append(Adapter(rate, alpha / rank, trained_a, trained_b, tuple(losses)))
    return Lora(tuple(adapters))


def _row(model: HuggingFaceModel, pair: PreferencePair) -> tuple[Encoded, Tensor]:
    """A prompt, and its chosen answer with the end-of-text token."""
    end = model.tokenizer.eos_token_id
    if end is None:
        raise ValueError(
            f"{model.name}: the tokenizer has no end-of-text token, in which every answer is trained to end"
        )
    encoded = model.encode(pair.prompt, pair.image)
    ids = torch.cat([model.response_ids(pair.prompt, pair.chosen), torch.tensor([end])])
    check_tokens(pair, n_prompt=len(encoded.ids), n_chosen=len(ids), n_rejected=1, context=model.context)
    return encoded, ids


def _untrained(model: HuggingFaceModel, *, rank: int, alpha: int, seed: int) -> tuple[Matrices, Matrices]:
    """A and B as peft makes them for the projections, in float32 or wider: leaves that take gradients."""
    try:
        import peft
    except ImportError as error:
        raise ImportError("LoRA is trained by peft; install it with: pip install 'grains-ref[baselines]'") from error
    # Of the same shape, device and type, but no modules of the model: peft replaces what it is given, and freezes it.
    projections = {
        f"{name}_{i}": _like(_projection(block, name)) for i, block in enumerate(model.blocks) for name in PROJECTIONS
    }
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(projections), bias="none")
    with DRAWING, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # peft draws A on the CPU
        adapted = peft.LoraModel(nn.ModuleDict(projections), config, "default").model

    def matrices(part: str) -> Matrices:
        weights = {
            name: [getattr(adapted[f"{name}_{i}"], part)["default"].weight for i in range(len(model.blocks))]
            for name in PROJECTIONS
        }
        # A step of 5e-6 would be lost in bfloat16.
        return {name: [w.detach().to(at_least_float32(w)).requires_grad_() for w in ws] for name, ws in weights.items()}

    return matrices("lora_A"), matrices("lora_B")


def _like(projection: nn.Linear) -> nn.Linear:
    with torch.device("meta"):
        like = nn.Linear(projection.in_features, projection.out_features, bias=False)
    like.weight = nn.Parameter(projection.weight.detach(), requires_grad=False)  # shared, not copied
    return like


@torch.enable_grad()
def _train(
    model: HuggingFaceModel,
    rows: Sequence[tuple[Encoded, Tensor]],
    a: Matrices,
    b: Matrices,
    *,
    scale: float,
    learning_rate: float,
    epochs: int,
    batch_size: int,
    seed: int,
) -> list[float]:
    """Train A and B, in place; the loss of every step."""
    parameters = [
        matrix for i in range(len(model.blocks)) for name in PROJECTIONS for matrix in (a[name][i], b[name][i])
    ]
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    own = {name: [_projection(block, name).weight for block in model.blocks] for name in PROJECTIONS}
    losses = []
    with Hooks(_additions(model, a, b, scale=scale, refuse=False)):  # a loss that is not finite is refused below
        for _ in range(epochs):
            for batch in torch.randperm(len(rows), generator=generator).split(batch_size):
                chosen = [rows[i] for i in batch.tolist()]
                n = sum(len(ids) for _, ids in chosen)
                losses.append(0.0)
                optimiser.zero_grad()
                for encoded, ids in chosen:
                    logits = model.logits(encoded, encoded.embeds[None], ids)[0]  # (R, V)
                    logits = logits.to(at_least_float32(logits))
                    loss = cross_entropy(logits, ids.to(logits.device), reduction="sum") / n
                    loss.backward(inputs=parameters)  # and no gradient for a parameter of the model's
                    losses[-1] += loss.item()
                norm = nn.utils.clip_grad_norm_(parameters, 1.0).item()
                wrong = _absurd_loss(losses[-1], norm, logits.dtype)
                if not wrong:
                    optimiser.step()
                    wrong = _absurd_weights(a, b, own, scale)
                if wrong:
                    raise ValueError(
                        f"training at learning rate {learning_rate:g} diverged in step {len(losses)}: {wrong}. "
                        "Take a lower rate, or bfloat16 instead of float16."
                    )
    return losses


def _absurd_loss(loss: float, norm: float, dtype: torch.dtype) -> str:
    """What is wrong with a step's loss or with the norm of its gradients; empty if nothing is."""
    most = 1 / torch.finfo(dtype).eps
    if loss <= most and math.isfinite(norm):
        return ""
    return f"the loss is {loss:.3g} nats per token and its gradient {norm:.3g}; a loss is finite and at most {most:.3g}"


@torch.no_grad()
def _absurd_weights(a: Matrices, b: Matrices, own: Matrices, scale: float) -> str:
    """What is wrong with the trained matrices beside the projections' own weights; empty if nothing is."""
    for name in PROJECTIONS:
        for i, weight in enumerate(own[name]):
            added, size = scale * _size_of_product(a[name][i], b[name][i]), _size(weight)
            most = 1 / torch.finfo(weight.dtype).eps
            if not added <= most * size:  # NaN too
                return (
                    f"what is added to {name} in block {i} has the size {added:.3g}, and {name} itself {size:.3g}; "
                    f"at most {most:.3g} times as much can be added before rounding leaves nothing of it"
                )
    return ""


def _size(weight: Tensor) -> float:
    """Frobenius norm."""
    return torch.linalg.vector_norm(weight.detach(), dtype=torch.float64).item()


def _size_of_product(a: Tensor, b: Tensor) -> float:
    """|B A| without B A itself; a: (rank, inputs), b: (outputs, rank)."""
    a, b = a.double(), b.double()
    return ((b.mT @ b) * (a @ a.mT)).sum().clamp_min(0).sqrt().item()


def _additions(
    model: HuggingFaceModel, a: Matrices, b: Matrices, *, scale: float, refuse: bool
) -> list[tuple[nn.Module, Hook]]:
    """The hooks that add scale * B A x to the projections' outputs."""
    return [
        (_projection(block, name), _addition(a[name][i], b[name][i], scale, f"block {i}: {name}" if refuse else ""))
        for i, block in enumerate(model.blocks)
        for name in PROJECTIONS
    ]


def _addition(a: Tensor, b: Tensor, scale: float, name: str) -> Hook:
    """The forward hook of one projection; under a name it refuses what is beyond the model's type."""

    def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        total = (output + linear(linear(args[0].to(a), a), b) * scale).to(output)
        if name and not (total.abs() <= LARGEST).all():
            raise FloatingPointError(f"{name} is beyond {total.dtype} with the adapter; train it at a lower rate")
        return total

    return add


def _projection(block: nn.Module, name: str) -> Any:
    return part_of(block, f"self_attn.{name}")
