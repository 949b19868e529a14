"""Planted bugs of steering, eq. (7) and (8): another norm, another strength, another place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from grains_ref.conformance.bugs.common import Row, bugs_of
from grains_ref.conformance.bugs.decoder import widened
from grains_ref.conformance.stages import Stage, Values, array, tensor
from grains_ref.grains import steer_hidden

Steer: TypeAlias = Callable[[Tensor, Tensor, float], Tensor]
"""h (B, T, d), v (d,) in float32 or wider, lam -> h."""


def right_steer(h: Tensor, v: Tensor, lam: float) -> Tensor:
    """Eq. (7) and (8)."""
    return steer_hidden(h, v, lam=lam)


def steering_with(steer: Steer) -> Stage:
    """Eq. (7) and (8) with another edit."""

    def stage(*, h: np.ndarray, v: np.ndarray, lam: float, dtype: str) -> Values:
        stream = tensor(h, dtype)
        return {"h": array(steer(widened(stream), widened(tensor(v, dtype)), lam).to(stream))}

    return stage


def restoring(norm: Callable[[Tensor], Tensor], eps: float = 0.0) -> Steer:
    """Eq. (8) with another norm (shape of h, or broadcast), eps added to the denominator."""

    def steer(h: Tensor, v: Tensor, lam: float) -> Tensor:
        shifted = h + lam * v
        wanted, found = norm(h), norm(shifted)
        return torch.where(found > 0, shifted * (wanted / (found + eps)), h)

    return steer


def restoring_to(h: Tensor, shifted: Tensor) -> Tensor:
    """Eq. (8) for any h~."""
    wanted, found = h.norm(dim=-1, keepdim=True), shifted.norm(dim=-1, keepdim=True)
    return torch.where(found > 0, shifted * (wanted / found), h)


def only_where(kept: Callable[[Tensor], Tensor]) -> Steer:
    """The right edit at the rows (B, T, 1) where `kept` is true, h elsewhere."""
    return lambda h, v, lam: torch.where(kept(h), right_steer(h, v, lam), h)


def _nowhere(h: Tensor) -> Tensor:
    return torch.zeros_like(h[..., :1], dtype=torch.bool)


def row_0(h: Tensor) -> Tensor:
    """True in the batch's first row."""
    kept = _nowhere(h)
    kept[0] = True
    return kept


def last_token_of(h: Tensor) -> Tensor:
    """True at the last token."""
    kept = _nowhere(h)
    kept[:, -1] = True
    return kept


def product_in_float16(h: Tensor, v: Tensor, lam: float) -> Tensor:
    """|h| * h~ in float16, and only then divided by |h~|."""
    shifted = h + lam * v
    norm, shifted_norm = (z.norm(dim=-1, keepdim=True) for z in (h, shifted))
    product = (shifted.half() * norm.half()).to(h)
    return torch.where(shifted_norm > 0, product / shifted_norm, h)


def unguarded(h: Tensor, v: Tensor, lam: float) -> Tensor:
    """No care for h~ = 0."""
    shifted = h + lam * v
    return shifted * (h.norm(dim=-1, keepdim=True) / shifted.norm(dim=-1, keepdim=True))


def only_shrinking(h: Tensor, v: Tensor, lam: float) -> Tensor:
    """Norms are cut back where they grew, not restored where they fell."""
    shifted = h + lam * v
    ratio = h.norm(dim=-1, keepdim=True) / shifted.norm(dim=-1, keepdim=True)
    return torch.where(ratio.isfinite(), shifted * ratio.clamp(max=1), h)


def zero_rows_steered(h: Tensor, v: Tensor, lam: float) -> Tensor:
    """Where h is zero, h~ is kept at its own norm."""
    return torch.where(h.norm(dim=-1, keepdim=True) > 0, right_steer(h, v, lam), h + lam * v)


def released_hook(h: Tensor, v: Tensor, lam: float) -> Tensor:
    """Ten times lambda, norms over the sequence, 1e-8 in the denominator."""
    return released_norm(h, h + 10 * lam * v, axis=1)


def released_hook_with_tensors(h: Tensor, v: Tensor, lam: float) -> Tensor:
    """The same hook where blocks return tensors: axis 1 of row 0 is the width, and no other row is steered."""
    return torch.cat([released_norm(h[:1], h[:1] + 10 * lam * v, axis=-1), h[1:]])


def released_norm(h: Tensor, shifted: Tensor, axis: int) -> Tensor:
    """Norms along an axis, 1e-8 in the denominator."""
    return shifted * (h.norm(dim=axis, keepdim=True) / (shifted.norm(dim=axis, keepdim=True) + 1e-8))


def norm_of_row_0(z: Tensor) -> Tensor:
    """Every row of the batch takes the norms of its first row."""
    return z[:1].norm(dim=-1, keepdim=True).expand(*z.shape[:-1], 1)


ROWS: tuple[Row, ...] = (
    ("norm_over_sequence", "norms taken over the sequence, feature by feature (`norm(dim=1)`)",
     "Tokens change their norms, and future tokens change past ones", "released code, row 16",
     steering_with(restoring(lambda z: z.norm(dim=1, keepdim=True)))),
    ("norm_over_tokens_and_width", "one norm per sequence instead of one per token",
     "Tokens change their norms", "study", steering_with(restoring(lambda z: z.norm(dim=(1, 2), keepdim=True)))),
    ("norm_over_batch", "one norm over the whole batch", "Rows of a batch change each other", "study",
     steering_with(restoring(lambda z: z.norm()))),
    ("norms_of_row_0", "the norms of the batch's first row used for all rows", "Rows of a batch change each other",
     "ours", steering_with(restoring(norm_of_row_0))),
    ("norm_not_restored", "eq. (8) left out", "The stream grows with lambda", "study",
     steering_with(lambda h, v, lam: h + lam * v)),
    ("l1_norm", "the L1 norm restored", "The L2 norm of every token moves", "study",
     steering_with(restoring(lambda z: z.abs().sum(-1, keepdim=True)))),
    ("largest_entry_norm", "the largest absolute entry restored", "The L2 norm of every token moves", "ours",
     steering_with(restoring(lambda z: z.abs().amax(-1, keepdim=True)))),
    ("only_shrinking", "norms that grew cut back, norms that fell not restored",
     "Tokens steered against themselves get weak", "field", steering_with(only_shrinking)),
    ("lam_times_ten", "lambda multiplied by 10", "Ten times the strength asked for", "released code, row 15",
     steering_with(lambda h, v, lam: right_steer(h, v, 10 * lam))),
    ("lam_squared", "lambda squared", "The sign of lambda is lost", "ours",
     steering_with(lambda h, v, lam: right_steer(h, v, lam * lam))),
    ("zero_lam_replaced", "lambda 0 taken for a missing value and replaced by 1",
     "The unsteered model cannot be asked for", "ours",
     steering_with(lambda h, v, lam: right_steer(h, v, lam or 1.0))),
    ("lam_reversed", "-lambda", "Steering moves toward the rejected answer", "study",
     steering_with(lambda h, v, lam: right_steer(h, v, -lam))),
    ("v_normalised_first", "v scaled to unit length before it is added", "V's length, which eq. (6) keeps, is lost",
     "study", steering_with(lambda h, v, lam: right_steer(h, v / v.norm().clamp(min=1e-12), lam))),
    ("strength_relative_to_h", "lambda measured in |h|: h + lam |h| v / |v|", "Large tokens are steered more",
     "field", steering_with(lambda h, v, lam: restoring_to(
         h, h + lam * h.norm(dim=-1, keepdim=True) * v / v.norm().clamp(min=1e-12)))),
    ("interpolated", "(1 - lam) h + lam v", "At lambda 1 nothing of h is left", "field",
     steering_with(lambda h, v, lam: restoring_to(h, (1 - lam) * h + lam * v))),
    ("applied_twice", "the edit applied twice, as by a hook registered twice", "Twice the strength or more", "study",
     steering_with(lambda h, v, lam: right_steer(right_steer(h, v, lam), v, lam))),
    ("batch_row_0_only", "only the first row of the batch steered", "All other rows stay unsteered",
     "released code, row 16", steering_with(only_where(row_0))),
    ("last_token_steered_only", "only the last token of the sequence steered", "The prompt stays unsteered", "study",
     steering_with(only_where(last_token_of))),
    ("product_overflows", "|h| * h~ multiplied in float16 before the division", "Infinities in half precision",
     "study", steering_with(product_in_float16)),
    ("eps_in_denominator", "1e-8 added to |h~|", "Norms are not restored where h and lam v nearly cancel",
     "released code, row 16", steering_with(restoring(lambda z: z.norm(dim=-1, keepdim=True), eps=1e-8))),
    ("cancelled_to_zero", "zeros where h~ is zero, instead of h", "A token is erased", "ours",
     steering_with(lambda h, v, lam: unguarded(h, v, lam).nan_to_num(nan=0.0))),
    ("cancelled_to_nan", "0 / 0 where h~ is zero", "NaN spreads to every later token", "study",
     steering_with(unguarded)),
    ("zero_rows_steered", "zero tokens replaced by lam v instead of staying zero", "Padding gets a state", "ours",
     steering_with(zero_rows_steered)),
    ("released_steering", "the released code's hook: ten times lambda, norms over the sequence",
     "Tokens change their norms, and a single token only its signs", "released code, rows 15 and 16",
     steering_with(released_hook)),
    ("released_steering_with_tensors", "the released code's hook with transformers 5: ten times lambda, row 0 only",
     "All other rows stay unsteered, and row 0 hardly keeps its direction", "released code, rows 15 and 16",
     steering_with(released_hook_with_tensors)),
)  # fmt: skip

BUGS = bugs_of("steering", ROWS)
WITHOUT_BUG = steering_with(right_steer)
