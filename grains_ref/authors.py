r"""The dialect `authors`: what the code released with the paper computes (commit 8ad78db), stage by stage.

`grains_ref.grains` follows the paper's text. Here the same stages have the bodies of the released code, so that a
result made with it can be compared at every stage; nothing here is recommended. What is the same comes from `grains`.
"Row N" is a row of the ledger in docs/decisions.md, part B, which has the evidence; no code was taken over.

The released code has no prompt of its own in most stages. It works on *branches*: prompt and response as one sequence,
once for y_pos and once for y_neg. A branch is an `Encoded` like any other, made by `branch`.

    T, R, S      prompt tokens, response tokens, and S = T + R tokens of a branch
    a            (S,) per branch; the two branches are never added
    deltas       (2N, L, d): the shifts of all y_pos branches, then those of all y_neg branches
    alpha        the strength; lambda of eq. (7) is 10 * alpha

Not reproduced, because nobody could, its author included:

- unseeded draws: SmoothGrad's noise (here from a generator) and the choice of y_neg among several (the data's, here);
- scikit-learn's randomised, unseeded solver, which it takes at real widths (row 13); here the solver is exact. Where
  the first component is weak, two runs of the released code differ by more than the two solvers;
- prompts, data splits, accuracies and missing hooks (rows 17, 19, 20, 21, 23), which belong to scripts, not to stages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from grains_ref import grains
from grains_ref.grains import Aggregation, Attribution, Encoded, Example, Fit, Function, Kind, Model, Selection, combine

AttributionMethod = Literal["integrated_gradients", "gradient", "smoothgrad"]
Hook = Literal["transformers_4", "transformers_5"]
Mode = Literal["both", "pos"]

NODES = 20  # row 3
SAMPLES, SIGMA = 20, 0.01  # row 6
K = 5  # row 9: the default; the scripts say 10 for text and 50 for vision
FACTOR = 10.0  # row 15
EPS = 1e-8  # row 16


@dataclass(frozen=True)
class AuthorsModel:
    """A model, and the three things that the released code takes from it besides the functions of `grains.Model`.

    A `grains_ref.models.HuggingFaceModel` called `m` becomes one by
    `AuthorsModel(m, m.embed, m.hf.get_decoder().norm, pad_id=m.tokenizer.eos_token_id)`.

    Released code differs (row 10): for text, padding is the end-of-text id; vision models keep their own padding id,
      or take the unknown-word id where that is 0.
    """

    model: Model
    embed: Callable[[Tensor], Tensor]  # (R,) token ids -> (R, d)
    final_norm: Callable[[Tensor], Tensor]  # (..., d) -> (..., d)
    pad_id: int


def branch(model: AuthorsModel, encoded: Encoded, y: Tensor) -> Encoded:
    """Prompt and response as one sequence of T + R tokens (row 2).

    The image never enters: image tokens have the embedding of their placeholder's id, and the positions of text
    (row 18). The released code runs one unpadded sequence at a time; padding is treated as in `grains`.
    """
    device, n = encoded.embeds.device, len(y)
    image = [j for j, kind in enumerate(encoded.kinds) if kind == "image"]
    prompt = encoded.embeds.clone()
    prompt[image] = model.embed(encoded.ids[image].to(device))
    mask = torch.cat([encoded.replay["attention_mask"], torch.ones(n, dtype=torch.long)])
    plain = {"attention_mask": mask, "position_ids": (mask.cumsum(0) - 1).clamp(min=0)}
    text: list[Kind] = ["text"] * n
    return Encoded(
        ids=torch.cat([encoded.ids, y.to(encoded.ids)]),
        embeds=torch.cat([prompt, model.embed(y.to(device)).to(prompt)]),
        tokens=encoded.tokens + ("",) * n,
        kinds=(*encoded.kinds, *text),
        replay={
            name: plain.get(name, torch.zeros_like(mask)).expand(*tensor.shape[:-1], -1)
            for name, tensor in encoded.replay.items()
        },
    )


# ------------------------------------------------------------------------------- 3.1 objective, eq. (1)
def last_token_again(model: AuthorsModel, whole: Encoded, embeds: Tensor, *, y: Tensor) -> Tensor:
    """log P(the last token of y once more | the whole branch), (B, T + R, d) -> (B,): the score of rows 1 and 19.

    The logits are read at the last position and so predict what follows the last token; its own id is looked up there.
    """
    return grains.log_prob(model.model, whole, embeds, y=y[-1:])


def log_prob(model: AuthorsModel, encoded: Encoded, embeds: Tensor, *, y: Tensor) -> Tensor:
    """Row 1: the last token only, from logits one position late. Embeds of the prompt (B, T, d) -> (B,)."""
    whole = branch(model, encoded, y)
    response = whole.embeds[len(encoded.ids) :].expand(len(embeds), -1, -1)
    return last_token_again(model, whole, torch.cat([embeds, response], dim=1), y=y)


def preference(model: AuthorsModel, encoded: Encoded, embeds: Tensor, *, y_pos: Tensor, y_neg: Tensor) -> Tensor:
    """Eq. (1) with that `log_prob`."""
    return log_prob(model, encoded, embeds, y=y_pos) - log_prob(model, encoded, embeds, y=y_neg)


# ----------------------------------------------------------------------------- 3.1 attribution, eq. (2)
def integrated_gradients(f: Function, x: Tensor) -> Attribution:
    """Rows 3 and 4: Gauss-Legendre with 20 nodes, weights rounded to float32 (Captum's), zeros for every token."""
    nodes, weights = grains.quadrature_rule("gauss_legendre", NODES)
    rounded = np.array(weights, dtype=np.float32).tolist()
    total = sum(
        weight * grains.gradient_at(f, alpha * x, where=f"alpha = {alpha:.3g}")
        for alpha, weight in zip(nodes, rounded, strict=True)
    )
    return _attribution(f, x, x * total)


def gradient_times_input(f: Function, x: Tensor) -> Attribution:
    """Row 5: the gradient times the embedding; the same as the paper's with a zero baseline, but for f and x."""
    return _attribution(f, x, x * grains.gradient_at(f, x, where="x"))


def smoothgrad(f: Function, x: Tensor, *, generator: torch.Generator) -> Attribution:
    """Rows 5 and 6: sigma = 0.01 in the embeddings' own unit, and the plain sum over the width, not times the input."""
    noise = (SIGMA * torch.randn(x.shape, generator=generator).to(x) for _ in range(SAMPLES))
    return _attribution(
        f, x, torch.stack([grains.gradient_at(f, x + eps, where="a noisy sample") for eps in noise]).mean(0)
    )


def likelihood(model: AuthorsModel, whole: Encoded, *, y: Tensor, method: AttributionMethod) -> Attribution:
    """Row 22: one response alone. By `gradient`, the default there, the scores of its branch as in row 5.

    By the other two they are exactly 0, as the gradient of what was interpolated is not kept: the "top k" are the last
    k tokens, the lowest the first k.
    """
    if method not in get_args(AttributionMethod):
        raise ValueError(f"method is {method!r}; expected one of {', '.join(get_args(AttributionMethod))}")

    def f(embeds: Tensor) -> Tensor:
        return last_token_again(model, whole, embeds, y=y)

    if method == "gradient":
        return gradient_times_input(f, whole.embeds)
    return _attribution(f, whole.embeds, torch.zeros_like(whole.embeds))


@dataclass(frozen=True)
class Branches:
    """Both branches of one example and their scores, `pos` for y_pos and `neg` for y_neg."""

    pos: Encoded
    neg: Encoded
    a_pos: Attribution  # (T + R, d)
    a_neg: Attribution  # (T + R', d)


def attribute(
    model: AuthorsModel, example: Example, method: AttributionMethod, generator: torch.Generator | None = None
) -> Branches:
    """Row 2: the two terms of f, each differentiated by its own branch, response included; never added.

    So the scores of one branch do not depend on the other response. Row 6: SmoothGrad's negative branch scores the last
    token of y_pos. Row 8: every token of a branch has a score and is a candidate.

    generator: of SmoothGrad's noise; y_pos draws first.
    """
    if method not in get_args(AttributionMethod):
        raise ValueError(f"method is {method!r}; expected one of {', '.join(get_args(AttributionMethod))}")
    pos, neg = (branch(model, example.encoded, y) for y in (example.y_pos, example.y_neg))
    target = example.y_pos if method == "smoothgrad" else example.y_neg

    def f_pos(embeds: Tensor) -> Tensor:
        return last_token_again(model, pos, embeds, y=example.y_pos)

    def f_neg(embeds: Tensor) -> Tensor:
        return -last_token_again(model, neg, embeds, y=target)

    if method == "smoothgrad":
        generator = generator or torch.Generator().manual_seed(0)
        a_pos = smoothgrad(f_pos, pos.embeds, generator=generator)
        return Branches(pos, neg, a_pos, smoothgrad(f_neg, neg.embeds, generator=generator))
    scores = gradient_times_input if method == "gradient" else integrated_gradients
    return Branches(pos, neg, scores(f_pos, pos.embeds), scores(f_neg, neg.embeds))


# ------------------------------------------------------------------------------- 3.1 selection, eq. (3)
def select(a: Tensor, *, k: int = K) -> Selection:
    """Row 7: both ends of one argsort, whatever the sign; with 2k > S the sets overlap. Row 8: no token is left out.

    Equal scores keep their order, and reversing it puts the higher index first. (NumPy's default sort promises no order
    of equals; the released code relies on it only where scores are equal.)
    """
    order = a.argsort(stable=True).tolist()
    return Selection(pos=tuple(order[::-1][:k]), neg=tuple(order[:k]))


# -------------------------------------------------------------------------------- 3.2 contrast, eq. (4)
def mask(model: AuthorsModel, x: Tensor, tokens: Sequence[int]) -> Tensor:
    """Row 10: the tokens' ids become the padding id, so their embeddings become that token's; attended as before."""
    masked = x.clone()
    masked[list(tokens)] = model.embed(torch.tensor([model.pad_id], device=x.device)).to(x)
    return masked


def hidden_states(model: AuthorsModel, whole: Encoded, embeds: Tensor) -> Tensor:
    """Row 12: entries 1 to L of transformers' `hidden_states`, (B, L, d): the last one is after the final norm."""
    with torch.no_grad():
        h = model.model.residuals(whole, embeds)
        return torch.cat([h[:, :-1], model.final_norm(h[:, -1:])], dim=1)


def contrast(model: AuthorsModel, branches: Branches, *, k: int = K) -> tuple[Tensor, Tensor]:
    """Row 11: the shifts at the end of prompt + response, y_pos's branch and y_neg's: delta_pos, delta_neg (2, L, d).

    A selection may hold the branch's last token, whose own state is then compared with that of a padding token.
    """
    rows = []
    for whole, a in ((branches.pos, branches.a_pos.a), (branches.neg, branches.a_neg.a)):
        selection = select(a, k=k)
        x = whole.embeds
        versions = torch.stack([x, mask(model, x, selection.pos), mask(model, x, selection.neg)])
        h, without_pos, without_neg = _wide(hidden_states(model, whole, versions))
        rows.append((h - without_pos, h - without_neg))
    delta_pos, delta_neg = zip(*rows, strict=True)
    return torch.stack(delta_pos), torch.stack(delta_neg)


# ------------------------------------------------------------------------ 3.2 aggregation, eq. (5), (6)
def aggregate(deltas: Tensor) -> Aggregation:
    """Row 13: the first centred component, signed so that its entry of largest absolute value is positive.

    deltas: (2N, L, d).  The sign says nothing about the shifts: -deltas give the same v. Equal or zero shifts are not
    refused; their direction is one of rounding errors.
    """
    per_layer = []
    for D in deltas.detach().cpu().double().numpy().swapaxes(0, 1):
        mean = D.mean(0)
        _, s, u = np.linalg.svd(D - mean, full_matrices=False)
        v, (first, second) = u[0] * np.sign(u[0][np.abs(u[0]).argmax()]), np.append(s, 0.0)[:2]
        variance, top, length = (max(z, np.finfo(float).tiny) for z in (s @ s, first, np.linalg.norm(mean)))
        per_layer.append((v, float(first**2 / variance), float((first - second) / top), float(v @ mean / length)))
    v, explained, gap, cos_mean = zip(*per_layer, strict=True)
    return Aggregation(v=torch.from_numpy(np.stack(v)), explained=explained, gap=gap, cos_mean=cos_mean)


# --------------------------------------------------------------------------- 3.3 steering, eq. (7), (8)
def steer_hidden(h: Tensor, v: Tensor, *, alpha: float, hook: Hook = "transformers_4") -> Tensor:
    """Rows 15 and 16: h~ = h + 10 alpha v, then a norm along "axis 1", with 1e-8 in the denominator.

    h: (B, S, d).  v: (d,).  The released hook takes `output[0]` and its axis 1:

    transformers_4 (4.51, the pinned one): blocks return tuples, `output[0]` is (B, S, d), and axis 1 is the sequence.
      Norms are per feature; tokens change theirs, and future tokens change past ones. In a decoding step S is 1, so
      that every entry keeps its size and only signs change.
    transformers_5: blocks return (B, S, d), `output[0]` is row 0 of the batch, and axis 1 is the width. Row 0 gets
      eq. (8), all other rows nothing.
    """
    shifted = h + FACTOR * alpha * v.to(h)
    if hook == "transformers_4":
        ratio: Tensor = h.norm(dim=1, keepdim=True) / (shifted.norm(dim=1, keepdim=True) + EPS)
        return shifted * ratio
    restored = shifted * (h.norm(dim=-1, keepdim=True) / (shifted.norm(dim=-1, keepdim=True) + EPS))
    return torch.cat([restored[:1], h[1:]])


class Steering(grains.Steering):
    """Row 15: as `grains.Steering`, but after the last block only, with `steer_hidden` of this module.

    The last block's output feeds no cache: this is exactly an edit before the final norm.
    """

    def __init__(self, blocks: Sequence[nn.Module], v: Tensor, *, alpha: float, hook: Hook = "transformers_4") -> None:
        self._variant: Hook = hook
        super().__init__(blocks, v, lam=alpha, layers=[len(blocks) - 1])

    def _hook(self, v: Tensor) -> grains.Hook:
        return grains.edit_output(lambda h: steer_hidden(h, v, alpha=self._lam, hook=self._variant))


# --------------------------------------------------------------------------------- figure 2, all stages
def fit(
    model: AuthorsModel,
    examples: Sequence[Example],
    *,
    k: int = K,
    method: AttributionMethod = "integrated_gradients",
    mode: Mode = "both",
    seed: int = 0,
) -> Fit:
    """All stages; steer with `Steering(model.model.blocks, fit.v, alpha=...)`, with alpha 4 or 10 (row 23).

    Row 11: 2N rows per side.  Row 14: mode "pos", as in the scripts for vision models, is v = v_pos.
    seed: of SmoothGrad's noise, drawn example by example.
    """
    generator = torch.Generator().manual_seed(seed)
    pairs = [contrast(model, attribute(model, example, method, generator), k=k) for example in examples]
    delta_pos, delta_neg = (torch.stack(side, dim=1).flatten(0, 1) for side in zip(*pairs, strict=True))  # (2N, L, d)
    pos, neg = aggregate(delta_pos), aggregate(delta_neg)
    return Fit(pos, neg, combine(pos.v, neg.v) if mode == "both" else pos.v)


# -------------------------------------------------------------------------------------------- helpers
def _attribution(f: Function, x: Tensor, ig: Tensor) -> Attribution:
    return grains.attribution_of(f, x, torch.zeros_like(x), ig)


def _wide(t: Tensor) -> Tensor:
    """In float32 or wider."""
    return t.to(grains.at_least_float32(t))
