"""What `fast.Steering` must do on any device: on a CPU, in Triton's interpreter, and on a GPU.

Every check compares with the reference's edit.  Results of the fused kernel may be one rounding of the dtype away from
it, and in float32, where the norms' own sums show, a few; the plain path's are equal.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from ports import fast_steering_port
from torch import Tensor, nn

from grains_ref import fast
from grains_ref.conformance.budgets import load_budgets
from grains_ref.conformance.cases import CASES
from grains_ref.conformance.ports import PythonPort
from grains_ref.conformance.runner import run_port
from grains_ref.fast.kernels import can_fuse
from grains_ref.grains import steer_hidden

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def roundings(got: Tensor, expected: Tensor) -> float:
    """The largest difference in units of the dtype's spacing at the expected number.

    Of the fused kernel up to two roundings of float32 at the largest number of the token are left out: where h and
    lam * v nearly cancel, what is left of them keeps their absolute error, and a compiler may round their sum once or
    twice.
    """
    assert got.dtype == expected.dtype, f"{got.dtype}, not {expected.dtype}"
    info = torch.finfo(expected.dtype)
    size = expected.double().abs().clamp(min=info.tiny)
    spacing = info.eps * 2.0 ** size.log2().floor()
    difference = (got.double() - expected.double()).abs()
    if can_fuse(got):
        cancelled = 2 * torch.finfo(torch.float32).eps * expected.double().abs().amax(-1, keepdim=True)
        difference = (difference - cancelled).clamp(min=0)
    return (difference / spacing).max().item()


def allowed(h: Tensor) -> float:
    if not can_fuse(h):
        return 0.0
    return 8.0 if h.dtype == torch.float32 else 1.0


def check_equal(got: Tensor, expected: Tensor, h: Tensor) -> None:
    assert got.device == h.device
    far, most = roundings(got, expected), allowed(h)
    assert far <= most + 1e-6, f"{far:.3g} roundings away from the reference; {most:.0f} are allowed"


def steered(h: Tensor, v: Tensor, lam: float) -> Tensor:
    """(..., d), (d,) -> (..., d) by the hook of a block that does nothing."""
    block = nn.Identity()
    with torch.no_grad(), fast.Steering([block], v[None], lam=lam):
        result = block(h)
    assert isinstance(result, Tensor)
    return result


def check_edit(device: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Against the reference, on ordinary states, zero and cancelled ones."""
    h, v = (3 * drawn(1, *shape)).to(device, dtype), drawn(2, shape[-1])
    if h.ndim > 1:
        h.view(-1, shape[-1])[0] = 0.0
    expected = steer_hidden(h, v.to(device), lam=2.5)
    check_equal(steered(h, v, 2.5), expected, h)
    assert not torch.equal(expected, h)
    own = h.reshape(-1, shape[-1])[-1].double().cpu()
    check_equal(steered(h, own, -1.0), steer_hidden(h, own.to(device), lam=-1.0), h)
    not_contiguous = h.transpose(0, -1).contiguous().transpose(0, -1)
    check_equal(steered(not_contiguous, v, 2.5), steer_hidden(not_contiguous, v.to(device), lam=2.5), h)


def check_zero_changes_no_bit(device: str, dtype: torch.dtype) -> None:
    """Minus zero stays what it is, too, under strength 0 and in a row that is not steered."""
    h = drawn(1, 3, 4, 7).to(device, dtype)
    h[:, 0, 0] = -0.0
    as_bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[h.element_size()]
    assert torch.equal(steered(h, drawn(2, 7), 0.0).view(as_bits), h.view(as_bits))
    block = nn.Identity()
    rows = fast.RowSteering([block], drawn(2, 1, 1, 7), slots=3)
    rows.assign([1], behaviour=0, lam=2.0)
    for states in (h, h.clone().requires_grad_()):  # with a gradient norms are computed another way
        with rows:
            got = block(states).detach()
        assert torch.equal(got[[0, 2]].view(as_bits), h[[0, 2]].view(as_bits))
        assert not torch.equal(got[1], h[1])


def check_norms_of_every_size(device: str, dtype: torch.dtype) -> None:
    """Squares that would overflow or vanish, and a norm beyond float16."""
    info = torch.finfo(dtype)
    direction, v = torch.tensor([3.0, -4.0, 12.0, 0.0]) / 13, torch.tensor([1.0, 2.0, -2.0, 4.0])
    partly_lost = max(math.sqrt(info.tiny) / 300, info.tiny * 64)  # its square is a number of few bits
    for size in (info.max / 8, info.max / 1000, math.sqrt(info.tiny), partly_lost, info.tiny * 64):
        h = (size * direction.double()).to(device, dtype)[None]
        before = h.double().norm().item()
        for lam in (size, size / 8):
            after = steered(h, v, lam).double().norm().item()
            assert after == pytest.approx(before, rel=max(4 * info.eps, 1e-6), abs=0), f"{size:.3g} {lam:.3g}"
    if dtype == torch.float16:
        h = torch.full((2, 64), 3e4, dtype=dtype, device=device)  # norm 2.4e5
        got = steered(h, torch.ones(64) / 8 * torch.arange(64), 1e4)
        assert got.double().norm(dim=-1).tolist() == pytest.approx(h.double().norm(dim=-1).tolist(), rel=1e-3)


def check_refusals(device: str) -> None:
    """What the reference refuses is refused, on a GPU when the block is left, and the layer is named."""
    blocks = nn.ModuleList([nn.Identity(), nn.Identity()])
    h = torch.ones(1, 2, 4, device=device)
    bad = h.clone()
    bad[0, 1, 2] = math.nan
    cases: list[tuple[Tensor, float, str]] = [
        (bad, 1.0, "values of h are not finite"),
        (bad, 0.0, "values of h are not finite"),
        (h / 1e9, 1e30, r"lam \* v is too long beside h"),
        (h / 1e9, 1e39, r"lam \* v is too long beside h"),
        (h / 1e9, 1e300, r"lam \* v is too long beside h"),
    ]
    for states, lam, message in cases:
        steering = fast.Steering(blocks, torch.ones(2, 4), lam=lam, layers=[1])
        with pytest.raises(FloatingPointError, match=rf"layer 1: .*{message}"), steering:  # noqa: PT012
            blocks[0](h)
            blocks[1](states)
        steering.check()  # what was refused is not refused again
    half = torch.full((1, 1, 4), 6e4, dtype=torch.float16, device=device)
    beyond = fast.Steering(blocks, torch.tensor([[1.0, 0, 0, 0]] * 2), lam=1e6)
    with pytest.raises(FloatingPointError, match="norm of h cannot be restored"), beyond:  # 1.2e5 in one number
        blocks[0](half)


def check_rows(device: str, dtype: torch.dtype) -> None:
    """Each row and each token its own vectors, strength and layers, and changes reach the next step."""
    bank, h = drawn(1, 3, 2, 7), drawn(2, 4, 5, 7).to(device, dtype)
    blocks = nn.ModuleList([nn.Identity(), nn.Identity()])
    rows = fast.RowSteering(blocks, bank, slots=6)

    def row_of(i: int, layer: int, behaviour: int, lam: float, states: Tensor = h) -> Tensor:
        return steer_hidden(states[i], bank[behaviour, layer].to(device), lam=lam)

    rows.assign([0, 3], behaviour=2, lam=1.5)
    rows.assign([1], behaviour=0, lam=-0.5, layers=[1])
    with rows:
        first, second = (block(h) for block in blocks)
        check_equal(first[0], row_of(0, 0, 2, 1.5), h)
        check_equal(first[3], row_of(3, 0, 2, 1.5), h)
        assert torch.equal(first[1:3], h[1:3])
        check_equal(second[1], row_of(1, 1, 0, -0.5), h)
        check_equal(second[3], row_of(3, 1, 2, 1.5), h)
        assert torch.equal(second[2], h[2])
        short = blocks[1](h[:2, :1])  # a smaller batch goes by the first slots
        check_equal(short[1], row_of(1, 1, 0, -0.5)[:1], h)

        rows.assign([1], behaviour=1, lam=0.7)
        rows.release([0])
        bank[2] = drawn(9, 2, 7)
        assert torch.equal(blocks[0](h)[3], first[3])  # the bank was copied
        rows.replace(2, bank[2])
        later = blocks[0](h)
        assert torch.equal(later[0], h[0])
        check_equal(later[1], row_of(1, 0, 1, 0.7), h)
        check_equal(later[3], row_of(3, 0, 2, 1.5), h)

    tokens = fast.RowSteering(blocks, bank, slots=24, per="token")
    tokens.assign(range(5), behaviour=1, lam=2.0)
    tokens.assign([7, 19], behaviour=0, lam=1.0)
    with tokens:
        got = blocks[1](h)
    flat, expected = got.flatten(0, 1), h.flatten(0, 1)
    check_equal(got[0], row_of(0, 1, 1, 2.0), h)
    check_equal(flat[7], steer_hidden(expected[7], bank[0, 1].to(device), lam=1.0), h)
    check_equal(flat[19], steer_hidden(expected[19], bank[0, 1].to(device), lam=1.0), h)
    assert torch.equal(flat[[5, 6, 8, 18]], expected[[5, 6, 8, 18]])


def check_kit(device: str, dtype: str, *, rows: bool, stages: tuple[str, ...] = ("steering",)) -> None:
    """The conformance kit passes it like any port."""
    port = PythonPort(fast_steering_port.made(device, rows=rows))  # type: ignore[arg-type]
    cases = [case for case in CASES if case.stage in stages]
    result = run_port(port, load_budgets(), cases=cases, dtypes=[dtype], modes=("isolated",))
    assert len([one for one in result.results if one.status == "passed"]) >= 0.7 * len(cases)
    wrong = [one for one in result.results if one.status not in ("passed", "not claimable")]
    assert not wrong, wrong
    assert not result.failed


class Chain(nn.Module):
    """A decoder in miniature: blocks one after the other, (B, T, d) -> (B, T, d)."""

    def __init__(self, width: int = 48, n_blocks: int = 3):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.blocks = nn.ModuleList([nn.Linear(width, width) for _ in range(n_blocks)])
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0.0, width**-0.5, generator=generator)

    def forward(self, h: Tensor) -> Tensor:
        for block in self.blocks:
            h = h + block(h).tanh()
        return h


def check_buffers_are_followed(run: Callable[[], Tensor], model: Chain, h: Tensor, rows: fast.RowSteering) -> None:
    """`run` was captured or compiled while `rows`, of two behaviours and as many slots as h has rows, was entered.

    `rows` may be entered still, as a server has it.
    """
    for_good = rows.entered
    bank = drawn(3, 2, len(model.blocks), h.shape[-1])
    fresh_model = copy.deepcopy(model)  # copies are not steered
    close = {"rtol": 1e-4, "atol": 1e-4} if h.dtype in (torch.float32, torch.float64) else {"rtol": 0.05, "atol": 0.05}

    def expected(assigned: dict[int, tuple[int, float]]) -> Tensor:
        fresh = fast.RowSteering(fresh_model.blocks, bank, slots=len(h))
        for row, (behaviour, lam) in assigned.items():
            fresh.assign([row], behaviour=behaviour, lam=lam)
        with torch.no_grad(), fresh:
            result: Tensor = fresh_model(h)
        return result

    plain = fresh_model(h).detach()
    rows.release(range(len(h)))
    for behaviour in range(2):
        rows.replace(behaviour, bank[behaviour])
    with nullcontext() if for_good else rows:
        for assigned in ({}, {0: (1, 2.0)}, {0: (0, 2.0), 1: (1, -3.0)}):
            rows.release(range(len(h)))
            for row, (behaviour, lam) in assigned.items():
                rows.assign([row], behaviour=behaviour, lam=lam)
            result = run()
            torch.testing.assert_close(result, expected(assigned), **close)
            if not assigned:
                assert torch.equal(result, run())
            else:
                assert not torch.allclose(result, plain, **close)
    if for_good:
        return
    torch.testing.assert_close(run(), plain, **close)
    with rows:
        torch.testing.assert_close(run(), expected(assigned), **close)  # and entered again
