"""The seven stages in the dialect `authors`: what the code released with the paper computes, on the toy decoder.

Names, inputs and outputs are those of `stages`, and so is what is refused. `grains_ref.authors` decides what is right;
rows are those of docs/decisions.md, part B. What a stage of the kit is given and the released code does not know is
ignored:

| stage | rows | what differs |
|---|---|---|
| objective | 1 | the last response token alone, from the logits one position late |
| attribution | 1 to 4 | y_pos's branch: prompt and response on the path, 20 Gauss-Legendre nodes from zero |
| selection | 7, 8 | both ends of one argsort, whatever the sign |
| contrast | 10 to 12 | tokens become padding; the last layer's state is read after the final norm |
| aggregation | 13 | the sign by the entry of largest absolute value |
| steering | 15, 16 | ten times lam; norms over the sequence, 1e-8 in the denominator |
| generation | 15, 16 | that hook after the last block only |

Ignored: y_neg, baseline, m and quadrature in attribution, `eligible` in selection, the baseline in contrast, `layers`
in generation. Attribution gives the scores of the prompt's tokens. In contrast, x stands for a whole branch, prompt and
response.

In generation `logits` are those of one pass over the prompt and all of `forced`, as the released scoring runs: norms
over the sequence depend on every token in it, the last one and the padding included. `tokens` cannot be matched: the
released generation is missing, and with this hook a cache changes what is said. They are given, by full recomputation
of what has been said so far, and not judged.

Row 22, the likelihood objective, is an option, in `options`.

Not here: the scores of response tokens (a port's branch of y_neg is checked by exchanging the responses, whose scores
are negated), rows 5 and 6 (other attributions), 14 (`v_pos` alone, in scripts), and what docs/decisions.md calls beyond
reach: unseeded draws and solvers. Shifts that define no direction are not refused; such cases
are left out, as are empty sets, which the released code never has.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from grains_ref import authors
from grains_ref.conformance.stages import DTYPES, Stage, Values, array, refusing, tensor, toy_in, whole
from grains_ref.conformance.toy import Toy, rms
from grains_ref.grains import at_least_float32, combine


def authors_toy(bare: Toy) -> authors.AuthorsModel:
    """The toy decoder with what the released code takes besides; padding is token 0."""
    return authors.AuthorsModel(bare, lambda ids: bare.embed[ids], lambda h: rms(h) * bare.norm, pad_id=0)


@refusing
def objective(*, x: Any, attention_mask: Any, y_pos: Any, y_neg: Any, dtype: str) -> Values:
    """Row 1."""
    bare = toy_in(dtype)
    encoded = bare.encoded(tensor(x, dtype), whole(attention_mask))
    pos, neg = (
        authors.log_prob(authors_toy(bare), encoded, encoded.embeds[None], y=whole(y)).item() for y in (y_pos, y_neg)
    )
    return {"log_p_pos": pos, "log_p_neg": neg, "f": pos - neg}


@refusing
def attribution(
    *, x: Any, baseline: Any, attention_mask: Any, y_pos: Any, y_neg: Any, m: int, quadrature: str, dtype: str
) -> Values:
    """Rows 1 to 4: the scores of the prompt's tokens in the branch of y_pos."""
    model, y = authors_toy(toy_in(dtype)), whole(y_pos)
    whole_branch = authors.branch(model, toy_in(dtype).encoded(tensor(x, dtype), whole(attention_mask)), y)
    scores = authors.integrated_gradients(
        lambda embeds: authors.last_token_again(model, whole_branch, embeds, y=y), whole_branch.embeds
    )
    return {"a": array(scores.a[: len(x)])}


@refusing
def selection(*, a: Any, eligible: Any, k: int, dtype: str) -> Values:
    """Rows 7 and 8."""
    chosen = authors.select(tensor(a, dtype), k=k)
    return {"pos": list(chosen.pos), "neg": list(chosen.neg)}


@refusing
def contrast_(*, x: Any, baseline: Any, attention_mask: Any, pos: list[int], neg: list[int], dtype: str) -> Values:
    """Rows 10 and 12; every version of the sequence has a run of its own, so that equal ones differ by exactly 0."""
    bare = toy_in(dtype)
    model, encoded = authors_toy(bare), bare.encoded(tensor(x, dtype), whole(attention_mask))
    versions = [encoded.embeds, *(authors.mask(model, encoded.embeds, tokens) for tokens in (pos, neg))]
    h, without_pos, without_neg = (
        authors.hidden_states(model, encoded, version[None])[0].to(at_least_float32(version)) for version in versions
    )
    return {"delta_pos": array(h - without_pos), "delta_neg": array(h - without_neg)}


@refusing
def aggregation(*, delta_pos: Any, delta_neg: Any, dtype: str) -> Values:
    """Row 13."""
    v_pos, v_neg = (authors.aggregate(tensor(deltas, dtype)).v.to(DTYPES[dtype]) for deltas in (delta_pos, delta_neg))
    return {"v_pos": array(v_pos), "v_neg": array(v_neg), "v": array(combine(v_pos, v_neg))}


@refusing
def steering(*, h: Any, v: Any, lam: float, dtype: str) -> Values:
    """Rows 15 and 16, with the version of transformers that the released code pins."""
    return {"h": array(authors.steer_hidden(tensor(h, dtype), tensor(v, dtype), alpha=lam))}


@refusing
def generation(*, ids: Any, attention_mask: Any, v: Any, lam: float, layers: Any, forced: Any, dtype: str) -> Values:
    """Rows 15 and 16."""
    bare, prompt, mask = toy_in(dtype), whole(ids), whole(attention_mask)

    def logits(new: Tensor) -> Tensor:
        """(B, r) new tokens -> (B, r + 1, V): row j predicts new token j."""
        seen = torch.cat([mask, torch.ones_like(new)], 1)
        return bare(bare.embed[torch.cat([prompt, new], 1)], seen)[0][:, prompt.shape[1] - 1 :]

    with torch.no_grad(), authors.Steering(bare.blocks, tensor(v, dtype), alpha=lam):
        new_ids = torch.zeros((len(prompt), 0), dtype=torch.long)
        for _ in range(np.shape(forced)[1]):
            new_ids = torch.cat([new_ids, logits(new_ids)[:, -1].argmax(-1, keepdim=True)], 1)
        given = logits(whole(forced))[:, :-1]
    return {"logits": array(given), "tokens": new_ids.numpy()}


STAGES: dict[str, Stage] = {
    "objective": objective,
    "attribution": attribution,
    "selection": selection,
    "contrast": contrast_,
    "aggregation": aggregation,
    "steering": steering,
    "generation": generation,
}
HEADERS: dict[str, str] = {
    "objective": "Row 1: the last response token alone, from the logits one position late.",
    "attribution": "Rows 1 to 4: the prompt's scores in y_pos's branch; 20 Gauss-Legendre nodes from zero. y_neg, "
    "baseline, m and quadrature are ignored.",
    "selection": "Rows 7, 8: both ends of one stable argsort of all tokens, the upper one reversed.",
    "contrast": "Rows 10 to 12: x is a whole branch; tokens become padding; the last state is after the norm.",
    "aggregation": "Row 13: first component of the centred shifts, its largest absolute entry positive; v.",
    "steering": "Rows 15, 16: ten times lam, norms over the sequence with 1e-8 in the denominator.",
    "generation": "Rows 15, 16: that hook after the last block, one pass over prompt and continuation. `tokens` "
    "are given and not judged.",
}
"""What heads each stage's stored file."""
