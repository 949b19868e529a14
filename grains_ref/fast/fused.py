"""Equations (7) and (8) as one Triton kernel; imported where a GPU is to be steered, because Triton takes its time.

`kernels` has the same in plain torch, and says what differs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from grains_ref.fast.kernels import CANNOT_RESTORE, H_NOT_FINITE, STEERED, Per, Table

_STEERED, _H_NOT_FINITE, _CANNOT_RESTORE = (tl.constexpr(b) for b in (STEERED, H_NOT_FINITE, CANNOT_RESTORE))
_SMALLEST_NORMAL = tl.constexpr(torch.finfo(torch.float32).tiny)


def steer_fused(h: Tensor, table: Table, *, layer: int, per: Per) -> Tensor:
    """The same in one pass over h; the note is added to the layer's own, in `table.notes`."""
    h = h.contiguous()
    steered = torch.empty_like(h)
    width = h.shape[-1]
    tokens = h.numel() // width
    tokens_per_slot = {"batch": tokens, "row": h.shape[-2] if h.ndim > 1 else 1, "token": 1}[per]
    block = triton.next_power_of_2(width)
    _steer_tokens[(tokens,)](
        h,
        steered,
        table.bank,
        table.behaviour,
        table.lam,
        table.switch,
        table.notes,
        layer,
        table.bank.shape[1],
        width,
        tokens_per_slot,
        BLOCK=block,
        num_warps=max(1, min(16, block // 512)),
    )
    return steered


@triton.jit(do_not_specialize=["layer", "tokens_per_slot"])  # type: ignore[untyped-decorator]
def _steer_tokens(  # type: ignore[no-untyped-def]
    h_states, steered_states, bank, behaviours, lams, switch, notes,
    layer, n_layers, width, tokens_per_slot, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per token: its whole row is in registers between the two norms and the product."""
    token = tl.program_id(0).to(tl.int64)
    slot = token // tokens_per_slot
    behaviour = tl.load(behaviours + slot).to(tl.int64)
    lam = tl.load(lams + slot * n_layers + layer) * tl.load(switch)

    column = tl.arange(0, BLOCK)
    inside = column < width
    stored = tl.load(h_states + token * width + column, mask=inside, other=0.0)
    v = tl.load(bank + (behaviour * n_layers + layer) * width + column, mask=inside, other=0.0)
    # The compiler may make one instruction of product and sum, which rounds once where the reference rounds twice: it
    # shows only where h and lam * v nearly cancel.
    h_wide = stored.to(tl.float64)
    shifted = (h_wide + (lam * v).to(tl.float64)).to(tl.float32)  # eq. (7)

    # The square of any float32 fits into float64, so a sum is finite if and only if all its numbers are.
    shifted_wide = shifted.to(tl.float64)
    h_square, shifted_square = tl.sum(h_wide * h_wide), tl.sum(shifted_wide * shifted_wide)
    ratio = tl.sqrt(h_square / shifted_square).to(tl.float32)
    restored = tl.where(ratio < float("inf"), shifted * ratio, stored.to(tl.float32)).to(stored.dtype)  # eq. (8)
    result = tl.where(lam == 0.0, stored, restored)
    tl.store(steered_states + token * width + column, result, mask=inside)

    largest = tl.max(tl.abs(restored.to(tl.float32)))
    lost = (ratio < _SMALLEST_NORMAL) & (h_square > 0)
    if not (h_square < float("inf")):
        tl.atomic_or(notes + layer, _H_NOT_FINITE)
    elif lost | (not (shifted_square < float("inf"))) | (not (largest < float("inf"))):
        tl.atomic_or(notes + layer, _CANNOT_RESTORE)
    if token == 0:
        tl.atomic_or(notes + layer, _STEERED)
