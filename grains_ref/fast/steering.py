"""`grains.Steering` without its cost: vectors and strengths wait on the device, and one kernel a layer adds them.

    with fast.Steering(model.blocks, v, lam=6.0):                     the same for every row, as the reference has it
        model.generate(...)

    requests = fast.RowSteering(model.blocks, bank, slots=16)       each row of a batch its own vectors and strength
    requests.assign([0, 1], behaviour=2, lam=4.0)
    with requests:
        ...                                                           assign and release between any two steps

The edit is the reference's (eq. (7), (8); `kernels` says how close), and so are the hooks: forward hooks for the
length of a `with` block, for the thread or task that entered it, never for copies of the model.  What is changed later
(`lam`, `assign`, `release`, `replace`) is copied into the buffers, so that a captured CUDA graph or a compiled model
follows without being captured or compiled again.

Captured graphs and compiled models have no Python left that could ask whose thread it is.  They ask a switch on the
device, which is on while any `with` block of the object is entered: outside they are the plain model, bit for bit, and
inside they are steered whoever runs them.  Capture inside the block, and run a compiled model for the first time inside
it: `torch.compile` does not look for hooks again, so what was compiled outside stays unsteered (a warning says so).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from grains_ref.fast.kernels import (
    CANNOT_RESTORE,
    H_NOT_FINITE,
    STEERED,
    Per,
    Table,
    can_fuse,
    steer_plain,
)
from grains_ref.grains import (
    EarlyHook,
    Hook,
    Hooks,
    _check_blocks,
    _check_vectors,
    _OwnHook,
    at_least_float32,
    different_numbers,
    edit_output,
    finite_number,
)


class TableSteering(Hooks):
    """Hooks that edit by a `Table` on the device of each block: what `Steering` and `RowSteering` have in common.

    When what is refused:

    - arguments (shapes, kinds, numbers that are not finite): by the constructor, and by what changes them later;
    - states that are not finite, or whose norm cannot be restored beside lam * v: on a CPU by the model's run, as by
      the reference; on a GPU, where to ask would stop the device at every layer, and in compiled code, they are noted,
      and refused when the `with` block is left or by `check` before.

    Entering and leaving wait for the device, once; nothing between them does.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], bank: Tensor, *, slots: int, layers: Sequence[int] | None, per: Per
    ):
        super().__init__()
        chosen = range(len(blocks)) if layers is None else different_numbers("layers", layers, below=len(blocks))
        self._per, self._n_slots = per, slots
        with torch.inference_mode(False):  # what is made in inference mode could not be changed outside it
            self._bank = bank.detach().to("cpu", torch.float64, copy=True)  # (n, L, d)
            self._behaviour = torch.zeros(slots, dtype=torch.int32)
            self._lam = torch.zeros(slots, len(blocks), dtype=torch.float64)
        self._tables: dict[tuple[torch.device, torch.dtype], Table] = {}
        self._called = False  # has a hook been called since the block was entered?
        self._hooks = [(blocks[layer], self._hook(layer, blocks[layer])) for layer in chosen]

    # ----------------------------------------------------------------------------------- the edit
    def _hook(self, layer: int, block: nn.Module) -> Hook:
        """The hook of one layer; the table on the block's own device is made here, before anything runs."""
        own = _floating_parameter(block)
        device, dtype = (own.device, own.dtype) if own is not None else (None, None)
        own_table = self._table_for(own) if own is not None else None

        def edit(h: Tensor) -> Tensor:
            self._check_shape(h)
            if own_table is not None and h.dtype == dtype and h.device == device:
                table = own_table
            else:
                table = self._table_for(h)  # the block runs elsewhere than its parameters lie, or has none
            if not torch.compiler.is_compiling():
                self._called = True
            if can_fuse(h):
                from grains_ref.fast.fused import steer_fused  # with Triton, for which a CPU need not wait

                return steer_fused(h, table, layer=layer, per=self._per)
            steered, note = steer_plain(h, table, layer=layer, per=self._per)
            if h.device.type == "cpu" and not torch.compiler.is_compiling():
                _refuse(layer, int(note))
            else:
                table.notes[layer].bitwise_or_(note)
            return steered

        return edit_output(edit)

    def _check_shape(self, h: Tensor) -> None:
        """The host knows shapes without asking the device."""
        width = self._bank.shape[-1]
        if h.shape[-1] != width:
            raise ValueError(f"v must have the width of h; got ({width},) for h of shape {tuple(h.shape)}")
        if self._per == "batch":
            return
        needed = len(h) if self._per == "row" else h.shape[:-1].numel()
        if h.ndim != 3 or needed > self._n_slots:
            raise ValueError(
                f"h has the shape {tuple(h.shape)}; expected (B, T, {width}) with at most {self._n_slots} "
                f"{self._per}s, the slots that this object was made for"
            )

    # ------------------------------------------------------------------------------------ buffers
    def _table_for(self, like: Tensor) -> Table:
        """The buffers on a tensor's device in the dtype of its edit, filled with what holds now."""
        key = like.device, at_least_float32(like)
        if key not in self._tables:
            with torch.inference_mode(False):  # as in the constructor
                table = Table.of(self._bank, slots=self._n_slots, device=like.device, dtype=key[1])
            self._fill(table)
            table.switch.fill_(self.entered)
            self._tables[key] = table
        return self._tables[key]

    def _fill(self, table: Table) -> None:
        table.behaviour.copy_(self._behaviour)
        table.lam.copy_(self._lam)

    def _fill_all(self) -> None:
        for table in self._tables.values():
            self._fill(table)

    @property
    def entered(self) -> bool:
        """Whether any thread or task is in a `with` block of this object."""
        return bool(self._entries)

    def _set_switches(self) -> None:
        """On while a block is entered. Waits, so that work on other streams comes after it."""
        for table in self._tables.values():
            table.switch.fill_(self.entered)
            if table.switch.is_cuda and not torch.cuda.is_current_stream_capturing():
                torch.cuda.current_stream(table.switch.device).synchronize()

    # -------------------------------------------------------------------------------- with blocks
    def _own(self, module: nn.Module, hook: Hook | EarlyHook, entry: object) -> _OwnHook:
        return _TraceableHook(module, hook, entry)

    def __enter__(self) -> Self:
        if not self.entered:
            self._called = False
            for table in self._tables.values():
                table.notes.zero_()  # of a block that an exception ended
        super().__enter__()
        self._set_switches()
        return self

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self._set_switches()
        if exception[:1] == (None,):
            self.check()

    def check(self) -> None:
        """Refuse what was noted on a GPU since the last check; waits for it.

        Raises:
            FloatingPointError: a state was not finite, or its norm could not be restored; it names the layer.
        """
        for table in self._tables.values():
            if table.notes.is_cuda and torch.cuda.is_current_stream_capturing():
                continue
            notes = table.notes.tolist()
            table.notes.zero_()
            self._called = self._called or any(note & STEERED for note in notes)
            for layer, note in enumerate(notes):
                _refuse(layer, note)
        if self._hooks and not self._called:
            warnings.warn(
                "nothing has been steered in this `with` block. If the model ran in it, it was compiled before the "
                "block was entered, and is not steered: run it for the first time inside the block.",
                stacklevel=3,
            )


class Steering(TableSteering):
    """`grains.Steering`: eq. (7), (8) after every decoder block, at every position, every row with the same vectors.

    v: (L, d); copied.  layers: block numbers to steer, default all L.  What is refused when: see `TableSteering`.

    Raises:
        TypeError: blocks is no list of modules, v no tensor of decimal numbers, lam no number, or layers no list.
        ValueError: v does not fit the blocks, a layer does not exist or is named twice, or lam or v is not finite.
    """

    def __init__(self, blocks: Sequence[nn.Module], v: Tensor, *, lam: float, layers: Sequence[int] | None = None):
        _check_blocks(blocks)
        _check_vectors(len(blocks), v)
        strength = finite_number("lam", lam)
        super().__init__(blocks, v[None], slots=1, layers=layers, per="batch")
        self.lam = strength

    @property
    def lam(self) -> float:
        """The strength; to set it changes the buffers, also those that a captured graph reads."""
        return self._lam[0, 0].item()

    @lam.setter
    def lam(self, value: float) -> None:
        self._lam.fill_(finite_number("lam", value))
        self._fill_all()


class RowSteering(TableSteering):
    """Several behaviours at once: every row of a batch (or every token) has its own vectors, strength and layers.

    bank: the vectors of n behaviours, (n, L, d); copied.  slots: the largest number of rows (or tokens) of a batch;
    row i of a smaller batch goes by slot i.  per: "row"; or "token" for batches in which requests stand one behind the
    other, token t of the flattened batch going by slot t.  A slot that was not assigned, or was released, is not
    steered: its states pass bit for bit.

    Raises:
        TypeError, ValueError: as by `Steering`; or slots is below 1, or per something else.
    """

    def __init__(self, blocks: Sequence[nn.Module], bank: Tensor, *, slots: int, per: Per = "row"):
        _check_blocks(blocks)
        if not isinstance(bank, Tensor) or bank.ndim != 3 or len(bank) == 0:
            given = tuple(bank.shape) if isinstance(bank, Tensor) else type(bank).__name__
            raise ValueError(f"bank must be (n, L, d), the vectors of n behaviours; got {given}. Try `torch.stack`")
        for v in bank:
            _check_vectors(len(blocks), v)
        if type(slots) is not int or slots < 1:
            raise ValueError(f"slots is {slots!r}; expected the largest number of {per}s, at least 1")
        if per not in ("row", "token"):
            raise ValueError(f"per is {per!r}; expected 'row' or 'token'")
        super().__init__(blocks, bank, slots=slots, layers=None, per=per)

    def assign(self, slots: Sequence[int], *, behaviour: int, lam: float, layers: Sequence[int] | None = None) -> None:
        """From the next step on these slots are steered by a behaviour of the bank, at all layers or at some.

        Raises:
            TypeError, ValueError: a slot, the behaviour or a layer does not exist, or lam is not finite.
        """
        n_behaviours, n_layers, _ = self._bank.shape
        rows = different_numbers("slots", slots, below=self._n_slots)
        (number,) = different_numbers("behaviour", [behaviour], below=n_behaviours)
        steered = list(range(n_layers)) if layers is None else different_numbers("layers", layers, below=n_layers)
        strength = finite_number("lam", lam)
        for row in rows:
            self._behaviour[row] = number
            self._lam[row] = 0.0
            self._lam[row, steered] = strength
        self._fill_all()

    def release(self, slots: Sequence[int]) -> None:
        """From the next step on these slots are not steered."""
        self._lam[different_numbers("slots", slots, below=self._n_slots)] = 0.0
        self._fill_all()

    def replace(self, behaviour: int, v: Tensor) -> None:
        """Put other vectors, (L, d), in a behaviour's place; slots that are assigned to it follow.

        Raises:
            TypeError, ValueError: the behaviour does not exist, or v does not fit.
        """
        (number,) = different_numbers("behaviour", [behaviour], below=len(self._bank))
        _check_vectors(self._bank.shape[1], v)
        if v.shape[1] != self._bank.shape[2]:
            raise ValueError(f"v must be {tuple(self._bank.shape[1:])}, as the bank's; got {tuple(v.shape)}")
        self._bank[number] = v.detach().to(self._bank)
        for table in self._tables.values():
            table.bank[number].copy_(self._bank[number])


class _TraceableHook(_OwnHook):
    """The hook of `grains.Hooks`, from which `torch.compile` leaves out the question whose thread it is."""

    def __call__(self, module: nn.Module, *given: Any) -> Any:
        if torch.compiler.is_compiling():
            return self._hook(module, *given) if module is self._module else None
        return super().__call__(module, *given)


def _floating_parameter(block: nn.Module) -> Tensor | None:
    """One that lies on a device; of a quantised block the floating-point ones tell the dtype of its output."""
    for parameter in block.parameters():
        if parameter.is_floating_point() and not parameter.is_meta:
            return parameter
    return None


def _refuse(layer: int, note: int) -> None:
    if note & H_NOT_FINITE:
        raise FloatingPointError(f"layer {layer}: values of h are not finite before they are steered")
    if note & CANNOT_RESTORE:
        raise FloatingPointError(
            f"layer {layer}: lam * v is too long beside h: the norm of h cannot be restored. Choose a smaller lam."
        )
