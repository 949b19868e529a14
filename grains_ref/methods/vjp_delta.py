r"""VJP-delta (the package steering-lite, 2026): pull the difference of two answers back through the blocks.

    c    = mean of h_T at the last token of the chosen texts - the same of the rejected          target block T, (d,)
    F(x) = sum over tokens t of <h_{T,t}, c>                                                     of one text x
    q_l  = mean over tokens t of dF / dh_{l,t}                                                   source block l < T
    v_l  = mean of q_l over the chosen texts - mean over the rejected, at unit length            h_l <- h_l + C v_l

Read: prompt and answer as one text; tokens from the 17th to the last but one.  q_l is a vector-Jacobian product, one
forward and backward pass per text for all blocks.  Edit: the residual stream of the source blocks at every token, its
norm not restored.

Convention: exchanging chosen and rejected turns c and the difference of the q, so that v stays what it was: v alone
  does not know which answers are wanted.  A later revision turns all v_l together, where needed, so that on average
  over blocks they point as the states' own mean difference does (`sign="states"`).  Its author calls that a heuristic.
  `sign="none"` is the first revision.
Convention: T is the third block from the end, 29 of 32 for the author's model.  Fewer blocks than four leave no
  source there, and T is then the last.
Convention: the author's texts are prompts of two personas, and no answers.  Here both texts share the prompt, and what
  q differs in is how the answer's tokens read the blocks below.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from grains_ref.data import PreferencePair
from grains_ref.grains import DegenerateShiftsError, Hooks, at_least_float32, different_numbers
from grains_ref.methods.adding import add_vectors
from grains_ref.methods.core import (
    NEGLIGIBLE,
    Change,
    Edit,
    Setting,
    at_site,
    capture,
    check_option,
    check_pairs,
    check_states,
    whole_number,
)
from grains_ref.models import HuggingFaceModel, Item

Sign = Literal["states", "none"]

SKIPPED = 16  # tokens at a text's beginning that count nowhere
STRENGTHS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
QUARTERS = (0.25, 0.5, 0.75, 1.0)  # of the tokens that count: where the states are read that turn v


@dataclass(frozen=True)
class VJPDelta:
    """One vector per source block.

    Attributes:
        v: (L, d) in float64, unit length; zero at blocks that are no source.
        blocks: the sources.
        target: T.
        turned: whether the sign rule turned v round.
    """

    v: Tensor
    blocks: tuple[int, ...]
    target: int
    turned: bool

    def steering(self, model: HuggingFaceModel, *, c: float) -> Edit:
        """Add c times the vectors of the source blocks at every position while entered.

        Raises:
            TypeError: c is no number.
            ValueError: the vectors are of another model, or c is not finite.
        """
        return add_vectors(model, self.v, c=c, blocks=self.blocks)

    def settings(self, model: HuggingFaceModel) -> list[Setting]:
        """The search grid, `STRENGTHS`, gentlest first."""
        return [Setting("VJP-delta", c, functools.partial(self.steering, model, c=c)) for c in STRENGTHS]


@dataclass(frozen=True)
class Pulled:
    """What one text says.

    Attributes:
        q: (L, d); zero from the target on.
        axis: mean state at the four quarters of the tokens that count, (L, d).
    """

    q: Tensor
    axis: Tensor


def fit(
    model: HuggingFaceModel,
    pairs: Sequence[PreferencePair],
    *,
    target: int | None = None,
    blocks: Collection[int] | None = None,
    skipped: int = SKIPPED,
    sign: Sign = "states",
) -> VJPDelta:
    """The difference of two classes' pulled-back target contrast.

    target: T, by default `third_from_the_end`.  blocks: the sources, by default all before T.

    Raises:
        TypeError: the pairs are no list.
        ValueError: no pair, a block that does not exist or does not lie before T, or a text with too few tokens.
        DegenerateShiftsError: both answers have the same state at T, or a block's difference is zero.
        FloatingPointError: a state or a derivative is not finite.
    """
    check_pairs(pairs, least=1)
    check_option("sign", sign, Sign)
    n = len(model.blocks)
    of_target = third_from_the_end(n) if target is None else whole_number("target", target, least=1, most=n - 1)
    sources = different_numbers("blocks", range(of_target) if blocks is None else list(blocks), below=n)
    if not sources or max(sources) >= of_target:
        raise ValueError(f"source blocks must lie before the target, block {of_target}; got {sources}")
    whole_number("skipped", skipped)
    chosen: list[Item] = [(pair.prompt, pair.chosen, pair.image) for pair in pairs]
    rejected: list[Item] = [(pair.prompt, pair.rejected, pair.image) for pair in pairs]
    at_end = [capture(model, items, site="residual")[:, of_target, 0].double() for items in (chosen, rejected)]
    c = at_end[0].mean(0) - at_end[1].mean(0)
    if c.norm() <= NEGLIGIBLE * at_end[0].norm(dim=1).mean():
        raise DegenerateShiftsError(
            f"block {of_target}: chosen and rejected answers have the same mean state at their last token, so there "
            "is nothing to pull back. Check that chosen and rejected are not mixed up in some pairs."
        )
    pos, neg = (
        [pull_back(model, item, c, target=of_target, skipped=skipped) for item in items] for items in (chosen, rejected)
    )
    difference = _mean([of_text.q for of_text in pos]) - _mean([of_text.q for of_text in neg])
    size = torch.stack([of_text.q for of_text in (*pos, *neg)]).double().norm(dim=2).mean(0)  # (L,)
    v = torch.zeros_like(difference)
    for block in sources:
        if difference[block].norm() <= NEGLIGIBLE * size[block]:
            raise DegenerateShiftsError(
                f"block {block}: what is pulled back is the same for chosen and rejected answers. Check that they "
                "differ in more than their last token."
            )
        v[block] = difference[block] / difference[block].norm()
    turned = False
    if sign == "states":
        axis = _mean([of_text.axis for of_text in pos]) - _mean([of_text.axis for of_text in neg])
        turned = cosine_similarity(v[sources], axis[sources], dim=1).mean().item() < 0
    return VJPDelta(-v if turned else v, tuple(sorted(sources)), of_target, turned)


def third_from_the_end(n: int) -> int:
    """The target block of n, where there is one with blocks before it."""
    return n - 3 if n > 3 else n - 1


def middle(n: int) -> range:
    """The blocks of n that the author's published run edits: 6 to 24 of 32."""
    return range(round(n * 6 / 32), round(n * 24 / 32) + 1)


def pull_back(model: HuggingFaceModel, item: Item, c: Tensor, *, target: int, skipped: int) -> Pulled:
    """q and the axis of one text.

    c: (d,).

    Raises:
        ValueError: too few tokens.
        FloatingPointError: a derivative is not finite.
    """
    moved: dict[int, Tensor] = {}  # zeros that are added to the states, whose derivatives are those of the states
    states: dict[int, Tensor] = {}

    def moving(block: int) -> Change:
        def see(x: Tensor) -> Tensor:
            states[block] = x.detach()[0]
            moved[block] = torch.zeros_like(x, dtype=at_least_float32(x)).requires_grad_()
            return (x + moved[block]).to(x)

        return see

    contrast: list[Tensor] = []

    def contract(x: Tensor) -> None:
        counted = range(skipped, x.shape[1] - 1)
        if not counted:
            raise ValueError(
                f"a text of prompt and answer has {x.shape[1]} tokens; the first {skipped} and the last do not count, "
                "so that none is left. Give longer texts, or a smaller `skipped`."
            )
        counted_states = x[0, counted.start : counted.stop]
        contrast.append((counted_states.to(at_least_float32(x)) @ c.to(x.device, at_least_float32(x))).sum())

    see: dict[int, Callable[[Tensor], Tensor | None]] = {block: moving(block) for block in range(target)}
    after, before = at_site(model, "residual", see | {target: contract})
    with torch.enable_grad(), Hooks(after, before=before):
        _run(model, item)
        gradients = torch.autograd.grad(contrast[0], [moved[block] for block in range(target)])
    q = torch.zeros(len(model.blocks), model.width, dtype=torch.float64)
    axis = torch.zeros_like(q)
    for block, gradient in enumerate(gradients):
        n = gradient.shape[1] - 1 - skipped
        q[block] = gradient[0, skipped:-1].double().mean(0)
        places = [skipped + int((n - 1) * quarter) for quarter in QUARTERS]
        axis[block] = states[block][places].double().mean(0)
    check_states(q, what="the derivative that is pulled back")
    return Pulled(q, axis)


def _run(model: HuggingFaceModel, item: Item) -> None:
    """One pass over all tokens of prompt and answer."""
    prompt, response, *image = item
    ids = model.response_ids(prompt, response)
    encoded = model.encode(prompt, image[0] if image else None)
    model.logits(encoded, encoded.embeds[None], torch.cat([ids, ids.new_zeros(1)]))  # the 0 is never fed


def _mean(rows: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(rows)).double().mean(0)
