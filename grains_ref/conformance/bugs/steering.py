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
        wanted, actual = norm(h), norm(shifted)
        return torch.where(actual > 0, shifted * (wanted / (actual + eps)), h)

    return steer


def restoring_to(h: Tensor, shifted: Tensor) -> Tensor:
    """Eq. (8) for any h~."""
    wanted, actual = h.norm(dim=-1, keepdim=True), shifted.norm(dim=-1, keepdim=True)
    return torch.where(actual > 0, shifted * (wanted / actual), h)


def only_where(kept: Callable[[Tensor], Tensor]) -> Steer:
    """The right edit at the rows (B, T, 1) where `kept` is true, h elsewhere."""
    return lambda h, v, lam: torch.where(kept(h), right_steer(h, v, lam), h)


def _nowhere(h: Tensor) -> Tensor:
    return torch.zeros_like(h[..., :1], dtype=torch.bool)


def row_0(h: Tensor) -> Tensor:
    """True in the batch's first row."""
    chosen = _nowhere(h)
    chosen[0] = True
    return chosen


def first_token_of(h: Tensor) -> Tensor:
    """True at the first token."""
    chosen = _nowhere(h)
    chosen[:, 0] = True
    return chosen


def last_token_of(h: Tensor) -> Tensor:
    """True at the last token."""
    chosen = _nowhere(h)
    chosen[:, -1] = True
    return chosen


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


def with_vector(vector: Callable[[Tensor], Tensor]) -> Steer:
    """The right edit with another vector."""
    return lambda h, v, lam: right_steer(h, vector(v), lam)


def with_strength(strength: Callable[[float, Tensor], float]) -> Steer:
    """The right edit with another strength; strength: lam, h -> lam."""
    return lambda h, v, lam: right_steer(h, v, strength(lam, h))


def scaled(ratio: Callable[[Tensor], Tensor]) -> Steer:
    """h~ multiplied by another function of |h| / |h~|; where that is not finite, h is kept."""

    def steer(h: Tensor, v: Tensor, lam: float) -> Tensor:
        shifted = h + lam * v
        factor = ratio(h.norm(dim=-1, keepdim=True) / shifted.norm(dim=-1, keepdim=True))
        return torch.where(factor.isfinite(), shifted * factor, h)

    return steer


def eps_under_the_root(h: Tensor, v: Tensor, lam: float) -> Tensor:
    """Norms as roots of the sum of squares + 1e-6, as RMSNorm has them."""
    shifted = h + lam * v
    wanted, actual = ((z.pow(2).sum(-1, keepdim=True) + 1e-6).sqrt() for z in (h, shifted))
    return shifted * (wanted / actual)


def ratio_on_v_only(h: Tensor, v: Tensor, lam: float) -> Tensor:
    """h + |h| / |h~| lam v."""
    ratio = h.norm(dim=-1, keepdim=True) / (h + lam * v).norm(dim=-1, keepdim=True)
    return torch.where(ratio.isfinite(), h + ratio * lam * v, h)


def ratio_on_h_only(h: Tensor, v: Tensor, lam: float) -> Tensor:
    """|h| / |h~| h + lam v."""
    ratio = h.norm(dim=-1, keepdim=True) / (h + lam * v).norm(dim=-1, keepdim=True)
    return torch.where(ratio.isfinite(), h * ratio + lam * v, h)


def orthogonal_part(h: Tensor, v: Tensor, lam: float) -> Tensor:
    """Only the part of v at right angles to h added."""
    length = h.pow(2).sum(-1, keepdim=True).clamp(min=1e-30)
    return restoring_to(h, h + lam * (v - (h @ v)[..., None] / length * h))


def component_replaced(h: Tensor, v: Tensor, lam: float) -> Tensor:
    """h without its part along v, and then lam v."""
    length = v.pow(2).sum().clamp(min=1e-30)
    return restoring_to(h, h - (h @ v)[..., None] / length * v + lam * v)


def all_but(token: int) -> Steer:
    """The right edit at all tokens but one."""

    def steer(h: Tensor, v: Tensor, lam: float) -> Tensor:
        steered = right_steer(h, v, lam).clone()
        steered[:, token] = h[:, token]
        return steered

    return steer


def norms_of(rows: Callable[[Tensor], Tensor]) -> Steer:
    """h~ at the length of other tokens; rows: |h| (B, T, 1) -> lengths of the same shape."""

    def steer(h: Tensor, v: Tensor, lam: float) -> Tensor:
        shifted = h + lam * v
        wanted, actual = rows(h.norm(dim=-1, keepdim=True)), shifted.norm(dim=-1, keepdim=True)
        return torch.where(actual > 0, shifted * (wanted / actual), h)

    return steer


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
    # strength
    ("lam_absolute", "the absolute value of lambda", "The sign of lambda is lost", "ours",
     steering_with(with_strength(lambda lam, h: abs(lam)))),
    ("lam_up_to_one", "lambda cut off at 1", "Strengths above 1 are one strength", "field",
     steering_with(with_strength(lambda lam, h: max(min(lam, 1.0), -1.0)))),
    ("lam_whole", "lambda cut to a whole number", "Strengths between whole numbers are lost", "field",
     steering_with(with_strength(lambda lam, h: float(int(lam))))),
    ("lam_halved", "half of lambda", "Half the strength asked for", "ours",
     steering_with(with_strength(lambda lam, h: lam / 2))),
    ("lam_doubled", "lambda counted twice, in the vector and in the edit", "Twice the strength asked for", "study",
     steering_with(with_strength(lambda lam, h: 2 * lam))),
    ("lam_over_root_of_width", "lambda divided by sqrt(d)", "The strength depends on the model's width", "field",
     steering_with(with_strength(lambda lam, h: lam / h.shape[-1] ** 0.5))),
    ("lam_times_root_of_width", "lambda multiplied by sqrt(d)", "The strength depends on the model's width", "field",
     steering_with(with_strength(lambda lam, h: lam * h.shape[-1] ** 0.5))),
    ("lam_over_batch", "lambda divided by the size of the batch", "The strength depends on the batch", "ours",
     steering_with(with_strength(lambda lam, h: lam / len(h)))),
    ("lam_on_both", "lambda multiplied on h + v: only the direction of v counts", "Every strength is one strength",
     "ours", steering_with(with_strength(lambda lam, h: 1.0 if lam >= 0 else -1.0))),
    ("added_to_unit_h", "lambda v added to h at unit length, and |h| restored", "Strength is measured in |h|", "field",
     steering_with(lambda h, v, lam: restoring_to(
         h, h / h.norm(dim=-1, keepdim=True).clamp(min=1e-30) + lam * v))),
    # vector
    ("v_reversed", "the features of v in reverse order", "Steering points anywhere", "ours",
     steering_with(with_vector(lambda v: v.flip(0)))),
    ("v_one_feature_late", "the features of v moved by one", "Steering points anywhere", "ours",
     steering_with(with_vector(lambda v: v.roll(1)))),
    ("v_centred", "v without its mean over the width", "A part of v is lost", "field",
     steering_with(with_vector(lambda v: v - v.mean()))),
    ("signs_of_v", "the signs of v instead of v", "All features are steered alike", "ours",
     steering_with(with_vector(torch.sign))),
    ("largest_features_of_v", "only the larger half of v's features", "A part of v is lost", "field",
     steering_with(with_vector(lambda v: torch.where(v.abs() >= v.abs().median(), v, 0 * v)))),
    ("orthogonal_part_only", "only the part of v at right angles to h added", "Tokens along v are not steered",
     "field", steering_with(orthogonal_part)),
    ("component_replaced", "h's own part along v taken out before lambda v is added", "What h said of v is lost",
     "field", steering_with(component_replaced)),
    ("h_left_out", "lam v in the place of h, at h's norm", "Nothing of h is left", "ours",
     steering_with(lambda h, v, lam: restoring_to(h, lam * v.expand_as(h)))),
    # norm
    ("ratio_reversed", "|h~| / |h| instead of |h| / |h~|", "Norms grow twice instead of being restored", "ours",
     steering_with(scaled(lambda ratio: 1 / ratio))),
    ("ratio_squared", "the ratio of squared norms: the root is missing", "Norms that grew shrink below h's", "field",
     steering_with(scaled(lambda ratio: ratio**2))),
    ("ratio_rooted", "the root of the ratio: it is taken twice", "Norms are half restored", "ours",
     steering_with(scaled(torch.sqrt))),
    ("ratio_within_limits", "the ratio kept between 0.8 and 1.25", "Norms are not restored where it matters", "field",
     steering_with(scaled(lambda ratio: torch.where(ratio.isfinite(), ratio.clamp(0.8, 1.25), ratio)))),
    ("only_growing", "norms that fell restored, norms that grew not cut back", "The stream grows with lambda", "ours",
     steering_with(scaled(lambda ratio: torch.where(ratio.isfinite(), ratio.clamp(min=1), ratio)))),
    ("ratio_on_v_only", "the ratio multiplied on lambda v, not on their sum", "Norms are not restored", "field",
     steering_with(ratio_on_v_only)),
    ("ratio_on_h_only", "the ratio multiplied on h, not on the sum", "Norms are not restored", "ours",
     steering_with(ratio_on_h_only)),
    ("unit_norm", "every token at unit length", "Tokens lose their norms", "field",
     steering_with(norms_of(torch.ones_like))),
    ("norm_of_v", "the norm of v instead of the norm of h", "All tokens get one norm", "ours",
     steering_with(lambda h, v, lam: norms_of(lambda norms: torch.ones_like(norms) * v.norm())(h, v, lam))),
    ("norm_of_last_token", "the last token's norm for all", "Tokens change their norms", "ours",
     steering_with(norms_of(lambda norms: norms[:, -1:].expand_as(norms)))),
    ("norms_one_token_late", "the norm of the token before each", "Tokens change their norms", "ours",
     steering_with(norms_of(lambda norms: norms.roll(1, 1)))),
    ("mean_norm", "the mean of the tokens' norms for all", "Tokens change their norms", "field",
     steering_with(norms_of(lambda norms: norms.mean(1, keepdim=True).expand_as(norms)))),
    ("norm_over_rows", "norms taken over the rows of the batch (`norm(dim=0)`)", "Rows of a batch change each other",
     "ours", steering_with(restoring(lambda z: z.norm(dim=0, keepdim=True)))),
    ("eps_of_1e-6", "1e-6 added to |h~|", "Norms are not restored where h and lam v nearly cancel", "field",
     steering_with(restoring(lambda z: z.norm(dim=-1, keepdim=True), eps=1e-6))),
    ("eps_of_1e-2", "1e-2 added to |h~|", "Norms are not quite restored", "ours",
     steering_with(restoring(lambda z: z.norm(dim=-1, keepdim=True), eps=1e-2))),
    ("eps_under_the_root", "1e-6 added to the squares under the root",
     "Norms are not restored where h and lam v nearly cancel", "field", steering_with(eps_under_the_root)),
    # place
    ("first_token_unsteered", "the first token left as it is", "A choice the paper does not make", "field",
     steering_with(all_but(0))),
    ("last_token_unsteered", "the last token left as it is", "What is read next is unsteered", "field",
     steering_with(all_but(-1))),
    ("first_token_only", "only the first token steered", "The others stay unsteered", "ours",
     steering_with(only_where(first_token_of))),
    ("last_row_unsteered", "the last row of the batch left as it is", "One row stays unsteered", "ours",
     steering_with(lambda h, v, lam: torch.cat([right_steer(h[:-1], v, lam), h[-1:]]))),
)  # fmt: skip

BUGS = bugs_of("steering", ROWS)
WITHOUT_BUG = steering_with(right_steer)
