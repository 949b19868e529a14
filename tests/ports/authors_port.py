"""The dialect `authors` as a port: one stage each, computed as the code released with the paper computes it.

Under the kit, whose law is the paper, it fails at every stage; tests/test_authors.py says with which planted bugs. What
a stage of the kit is given and the released code does not know (a baseline, m, which tokens are eligible) is ignored;
what the released code needs and a stage is not given (the response, in contrast) stays as in the paper.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from grains_ref import authors
from grains_ref.conformance.stages import DTYPES as TORCH
from grains_ref.conformance.stages import Values, check
from grains_ref.conformance.toy import Toy, rms, toy_weights
from grains_ref.grains import Encoded, combine

NAME = "released code"
DTYPES = ("float64", "float32")


def toy(dtype: str) -> tuple[Toy, authors.AuthorsModel]:
    model = Toy(toy_weights(), TORCH[dtype])
    return model, authors.AuthorsModel(model, lambda ids: model.embed[ids], lambda h: rms(h) * model.norm, pad_id=0)


def tensor(array: Any, dtype: str) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float64)).to(TORCH[dtype])


def ids(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.int64))


def array(t: Tensor) -> np.ndarray:
    return t.detach().double().numpy()


def prompt(model: Toy, x: Any, attention_mask: Any, dtype: str) -> Encoded:
    return model.encoded(tensor(x, dtype), ids(attention_mask))


def objective(*, x: Any, attention_mask: Any, y_pos: Any, y_neg: Any, dtype: str) -> Values:
    """Row 1."""
    check("objective", dtype, x=x, attention_mask=attention_mask, y_pos=y_pos, y_neg=y_neg)
    bare, model = toy(dtype)
    encoded = prompt(bare, x, attention_mask, dtype)
    pos, neg = (authors.log_prob(model, encoded, encoded.embeds[None], y=ids(y)).item() for y in (y_pos, y_neg))
    return {"log_p_pos": pos, "log_p_neg": neg, "f": pos - neg}


def attribution(*, x: Any, baseline: Any, attention_mask: Any, y_pos: Any, y_neg: Any, m: int, quadrature: str,
                dtype: str) -> Values:  # fmt: skip
    """Rows 1 to 4: the scores of the prompt's tokens in the branch of y_pos."""
    arrays = {"x": x, "baseline": baseline, "attention_mask": attention_mask, "y_pos": y_pos, "y_neg": y_neg}
    check("attribution", dtype, **arrays, m=m, quadrature=quadrature)
    bare, model = toy(dtype)
    whole = authors.branch(model, prompt(bare, x, attention_mask, dtype), ids(y_pos))
    found = authors.integrated_gradients(
        lambda embeds: authors.last_token_again(model, whole, embeds, y=ids(y_pos)), whole.embeds
    )
    return {"a": array(found.a[: len(x)])}


def selection(*, a: Any, eligible: Any, k: int, dtype: str) -> Values:
    """Rows 7 and 8."""
    check("selection", dtype, a=a, eligible=eligible, k=k)
    chosen = authors.select(tensor(a, dtype), k=k)
    return {"pos": list(chosen.pos), "neg": list(chosen.neg)}


def contrast(*, x: Any, baseline: Any, attention_mask: Any, pos: Any, neg: Any, dtype: str) -> Values:
    """Rows 10 and 12."""
    check("contrast", dtype, x=x, baseline=baseline, attention_mask=attention_mask, pos=pos, neg=neg)
    bare, model = toy(dtype)
    encoded = prompt(bare, x, attention_mask, dtype)
    masked = [encoded.embeds, *(authors.mask(model, encoded.embeds, tokens) for tokens in (pos, neg))]
    h, without_pos, without_neg = authors.hidden_states(model, encoded, torch.stack(masked))
    return {"delta_pos": array(h - without_pos), "delta_neg": array(h - without_neg)}


def aggregation(*, delta_pos: Any, delta_neg: Any, dtype: str) -> Values:
    """Row 13."""
    check("aggregation", dtype, delta_pos=delta_pos, delta_neg=delta_neg)
    v_pos, v_neg = (authors.aggregate(tensor(deltas, dtype)).v.to(TORCH[dtype]) for deltas in (delta_pos, delta_neg))
    return {"v_pos": array(v_pos), "v_neg": array(v_neg), "v": array(combine(v_pos, v_neg))}


def steering(*, h: Any, v: Any, lam: float, dtype: str) -> Values:
    """Rows 15 and 16, with the pinned version of transformers."""
    check("steering", dtype, h=h, v=v, lam=lam)
    return {"h": array(authors.steer_hidden(tensor(h, dtype), tensor(v, dtype), alpha=lam))}


def generation(*, ids: Any, attention_mask: Any, v: Any, lam: float, layers: Any, forced: Any, dtype: str) -> Values:
    """Rows 15 and 16. The released generation is missing from the repository: every token by full recomputation."""
    known = {"ids": ids, "attention_mask": attention_mask, "v": v, "lam": lam, "layers": layers, "forced": forced}
    check("generation", dtype, **known)
    bare, _ = toy(dtype)
    given, mask = (torch.from_numpy(np.array(z, dtype=np.int64)) for z in (ids, attention_mask))

    def next_logits(new: Tensor) -> Tensor:
        """(B, n) new tokens -> (B, n, V): row r predicts new token r."""
        seen = torch.cat([mask, torch.ones_like(new)], 1)
        logits, _ = bare(bare.embed[torch.cat([given, new], 1)], seen)
        return logits[:, given.shape[1] - 1 : -1]

    with torch.no_grad(), authors.Steering(bare.blocks, tensor(v, dtype), alpha=lam):
        said = torch.zeros((len(given), 0), dtype=torch.long)
        for _ in range(np.shape(forced)[1]):
            best = next_logits(torch.cat([said, torch.zeros_like(given[:, :1])], 1))[:, -1].argmax(-1, keepdim=True)
            said = torch.cat([said, best], 1)
        logits = next_logits(torch.from_numpy(np.array(forced, dtype=np.int64)))
    return {"logits": array(logits), "tokens": said.numpy()}
