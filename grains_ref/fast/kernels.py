"""Equations (7) and (8) for rows that have each its own vector and strength: in plain torch, and as one Triton kernel.

    h~ = h + lam * v        h' = h~ * (|h| / |h~|)

A batch, each of its rows or each of its tokens names a behaviour (a row of the bank of vectors) and has a strength at
every layer; see `Table`.  Both functions read the table when they run, not before, so that a captured graph or a
compiled model follows what is copied into it.  Neither waits for the device: what `grains.steer_hidden` would refuse
becomes a note, to be looked at when there is time.

| | plain | fused |
|---|---|---|
| where | everywhere, every dtype, differentiable | CUDA with Triton; float32, float16, bfloat16; no gradient |
| values | the reference's, bit for bit on the same device | a rounding away, but where h and lam * v cancel |
| norms | float32 (float64 for float64), scaled where squares need it | squares added up in float64: none overflows |
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, TypeAlias

import torch
from torch import Tensor

HAS_TRITON = find_spec("triton") is not None
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own way to run kernels on a CPU
FUSED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

Per: TypeAlias = Literal["batch", "row", "token"]  # what a slot of a table is for

PLAIN_NORMS = (1e-8, 1e15)  # between these no square that matters leaves the range of float32

STEERED, H_NOT_FINITE, CANNOT_RESTORE = 1, 2, 4  # bits of a note


@dataclass(frozen=True)
class Table:
    """What the edit reads on one device; the buffers stay where they are for good, and their contents may change.

    Attributes:
        bank: vectors of n behaviours, (n, L, d), in float32, or in float64 for a model in float64.
        behaviour: which of them a slot of the table uses, (slots,) int32.
        lam: strength of each slot at each layer, (slots, L), in the bank's dtype.
        switch: 1 while the `with` block is entered and 0 otherwise, (1,), in the bank's dtype.
        notes: what happened in each layer, (L,) int32.
    """

    bank: Tensor
    behaviour: Tensor
    lam: Tensor
    switch: Tensor
    notes: Tensor

    @classmethod
    def of(cls, bank: Tensor, *, slots: int, device: torch.device, dtype: torch.dtype) -> Table:
        """A table in which every slot has strength 0."""
        layers = bank.shape[1]
        return cls(
            bank=bank.detach().to(device, dtype, copy=True).contiguous(),
            behaviour=torch.zeros(slots, dtype=torch.int32, device=device),
            lam=torch.zeros(slots, layers, dtype=dtype, device=device),
            switch=torch.zeros(1, dtype=dtype, device=device),
            notes=torch.zeros(layers, dtype=torch.int32, device=device),
        )


def can_fuse(h: Tensor) -> bool:
    """Whether `fused.steer_fused` can take these states."""
    if not HAS_TRITON or h.dtype not in FUSED_DTYPES or not (h.is_cuda or INTERPRETED):
        return False
    return not (torch.is_grad_enabled() and h.requires_grad)


# ------------------------------------------------------------------------------------------ plain torch
def steer_plain(h: Tensor, table: Table, *, layer: int, per: Per) -> tuple[Tensor, Tensor]:
    """Eq. (7) and (8) for h (B, T, d), or (..., d) for a slot that is for the whole batch.

    Returns h' and its note, () int32.
    """
    v, lam = _of_every_state(h, table, layer, per)
    wide = h.to(v.dtype)
    shifted = wide + lam * v  # eq. (7)
    if _may_look_at(h):
        norm, shifted_norm = (x.norm(dim=-1, keepdim=True) for x in (wide, shifted))
        if _are_plain(wide, norm, shifted_norm, h.dtype):
            restored = torch.where(lam == 0, wide, shifted * (norm / shifted_norm))  # eq. (8)
            return restored.to(h.dtype), torch.tensor(STEERED, dtype=torch.int32)
    largest, shifted_largest = (
        x.abs().amax(-1, keepdim=True) for x in (wide, shifted)
    )  # not finite if a number is not
    ratio = _norm_ratio(wide, largest, shifted, shifted_largest)  # (..., 1)
    unchanged = ~ratio.isfinite() | (lam == 0)
    restored = torch.where(unchanged, wide, shifted * ratio).to(h.dtype)  # eq. (8)

    with torch.no_grad():
        h_not_finite = ~largest.isfinite().all()
        lost = ((ratio < torch.finfo(ratio.dtype).tiny) & (largest > 0)).any()
        restored_largest = torch.where(unchanged, largest, shifted_largest * ratio).to(h.dtype)
        cannot_restore = lost | ~(shifted_largest.isfinite() & restored_largest.isfinite()).all()
        fault = torch.where(h_not_finite, H_NOT_FINITE, torch.where(cannot_restore, CANNOT_RESTORE, 0))
    return restored, fault.to(torch.int32) | STEERED


def _of_every_state(h: Tensor, table: Table, layer: int, per: Per) -> tuple[Tensor, Tensor]:
    """v and lam, to be broadcast to h: (d,) and (1,); (B, 1, d) and (B, 1, 1); or (B, T, d) and (B, T, 1)."""
    v, lam = table.bank[:, layer], table.lam[:, layer] * table.switch
    if per == "batch":
        return v[table.behaviour.long()][0], lam
    rows, columns = h.shape[0], 1 if per == "row" else h.shape[1]
    slots = rows * columns  # the first ones; the table may have more
    v = v[table.behaviour[:slots].long()]
    return v.view(rows, columns, -1), lam[:slots].view(rows, columns, 1)


def _may_look_at(h: Tensor) -> bool:
    """Whether numbers may decide what is computed: nothing waits for a CPU, and what is compiled has no such place."""
    needs_gradient = torch.is_grad_enabled() and h.requires_grad
    return h.device.type == "cpu" and not needs_gradient and not torch.compiler.is_compiling()


def _are_plain(h: Tensor, norm: Tensor, shifted_norm: Tensor, dtype: torch.dtype) -> bool:
    """Whether these norms, (..., 1), are what `_norm_ratio` takes such trouble for, bit for bit.

    So it is where every square counts and none overflows: a power of two moves no bit of a number.  Nothing is to be
    refused then either: no state is infinite, and no number of h' is longer than its norm, which the dtype holds.
    States that are zero, as padding's are, stay it.
    """
    if norm.numel() == 0:
        return False
    least, most = torch.stack([norm, shifted_norm]).aminmax()
    if least == 0 and (norm == 0).any():
        is_short = norm == 0
        if (h * is_short).any():
            return False  # not zero; its squares are
        least = torch.minimum(norm.masked_fill(is_short, most).amin(), shifted_norm.amin())
    return bool(least > PLAIN_NORMS[0]) and bool(most < min(PLAIN_NORMS[1], torch.finfo(dtype).max / 2))


def _norm_ratio(h: Tensor, largest: Tensor, shifted: Tensor, shifted_largest: Tensor) -> Tensor:
    """|h| / |h~| per token, (..., 1), each of numbers near 1 times a power of two: no square overflows or vanishes."""
    exponent, shifted_exponent = (torch.frexp(x).exponent for x in (largest, shifted_largest))
    norm = torch.ldexp(h, -exponent).norm(dim=-1, keepdim=True)
    shifted_norm = torch.ldexp(shifted, -shifted_exponent).norm(dim=-1, keepdim=True)
    return torch.ldexp(norm / shifted_norm, exponent - shifted_exponent)
