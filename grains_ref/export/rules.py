r"""What the tools do with a vector: h' of a block's output h, the block's vector v and the strength lam.

h: (..., d).  v: (d,).  All return h's shape and dtype, computed in float32 or wider.

| rule | h' | |
|---|---|---|
| `restore_norm` | h~ * \|h\| / \|h~\|, h~ = h + lam * v | equations (7) and (8), as `grains_ref.grains.steer_hidden` |
| `one_sided` | the same where \|h~\| > \|h\|, else h~ | |
| `add` | h + lam * v | equation (7) alone |
| `norm_match` | h + lam * \|h\| * v / \|v\| | lam counts in lengths of h, and v's own length is lost |

Nothing here looks at a value, so that a graph of CUDA kernels can be recorded of it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def add(h: Tensor, v: Tensor, lam: float) -> Tensor:
    """Equation (7): h + lam * v."""
    return _shifted(_wide(h), v, lam).to(h)


def restore_norm(h: Tensor, v: Tensor, lam: float) -> Tensor:
    r"""Equations (7) and (8): h~ * (\|h\| / \|h~\|), h~ = h + lam * v; where h~ is zero, h."""
    wide = _wide(h)
    shifted = _shifted(wide, v, lam)
    ratio = _length(wide) / _length(shifted)
    return torch.where(ratio.isfinite(), shifted * ratio, wide).to(h)


def one_sided(h: Tensor, v: Tensor, lam: float) -> Tensor:
    r"""`restore_norm` where h + lam * v is longer than h; where it is shorter it stays."""
    wide = _wide(h)
    shifted = _shifted(wide, v, lam)
    ratio = _length(wide) / _length(shifted)
    return torch.where(ratio < 1, shifted * ratio, shifted).to(h)


def norm_match(h: Tensor, v: Tensor, lam: float) -> Tensor:
    r"""h + lam * \|h\| * v / \|v\|; a zero v changes nothing."""
    wide, direction = _wide(h), v.to(_wide(h))
    unit = direction / _length(direction).clamp_min(torch.finfo(torch.float32).tiny)
    return (wide + lam * _length(wide) * unit).to(h)


def _wide(h: Tensor) -> Tensor:
    return h.to(torch.promote_types(h.dtype, torch.float32))


def _shifted(wide: Tensor, v: Tensor, lam: float) -> Tensor:
    return wide + lam * v.to(wide)


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)
