"""How much goes through the model at once: measured before the work, and halved where it does not fit.

    memory = measured(forward_pass, tokens=120, share="80%", device=device)
    results = run_in_parts(rows, run, tokens=row_tokens, memory=memory)

What one token keeps for the backward pass is counted in a forward pass on the first example; the share of the free
memory divided by that is the number of tokens of one pass, rounded down coarsely so that it seldom changes from one run
to the next.  A GPU gains by more tokens up to `MOST_TOKENS`; a processor does not, its caches are small.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from grains_ref.files.processes import on_this_machine

MOST_TOKENS = {"cpu": 1 << 10, "cuda": 1 << 15}  # in one pass; from there on more at once is no faster
LEAST_TOKENS = 1 << 6
BACKWARD = 1.25  # peak of a forward and backward pass, in units of what the forward pass keeps
DEFAULT_SHARE = "80%"
UNITS = {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}

Item = TypeVar("Item")


@dataclass
class Memory:
    """Tokens of one pass through the model.

    Attributes:
        pass_tokens: prompt and response tokens that one forward and backward pass may hold; one row is always allowed.
        too_many: a pass of so many tokens has run out of memory.
    """

    pass_tokens: int = MOST_TOKENS["cpu"]
    too_many: float = math.inf

    def __post_init__(self) -> None:
        if type(self.pass_tokens) is not int or self.pass_tokens < 1:
            raise ValueError(f"pass_tokens is {self.pass_tokens!r}; expected a whole number of at least 1")


def measured(keep: Callable[[], Tensor], *, tokens: int, share: str, device: torch.device) -> Memory:
    """The memory that a share of what is free gives.

    keep: a forward pass of that many tokens, with gradients.  share: see `parse_share`.
    """
    most = MOST_TOKENS.get(device.type, MOST_TOKENS["cuda"])
    room = parse_share(share)(free_bytes(device))
    if device.type == "cpu":
        room /= on_this_machine()
    per_token = BACKWARD * kept_bytes(keep) / tokens
    affordable = room / max(per_token, 1.0)
    return Memory(min(most, max(LEAST_TOKENS, rounded_down(affordable))))


def rounded_down(tokens: float) -> int:
    """To 2 ** n or 3 * 2 ** n: 64, 96, 128, 192, ..."""
    power = 1 << math.floor(math.log2(max(tokens, 1.0)))
    return power * 3 // 2 if tokens >= power * 3 // 2 else power


def parse_share(share: str) -> Callable[[int], float]:
    """`60%` of what is free, or an amount such as `8GiB`: free bytes -> bytes.

    Raises:
        ValueError: it is neither.
    """
    parts = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(%|[KMG]iB)\s*", share, flags=re.IGNORECASE)
    number = float(parts[1]) if parts else 0.0
    if not parts or number <= 0 or (parts[2] == "%" and number > 100):
        raise ValueError(f"memory is {share!r}; expected a share of what is free, '60%', or an amount, '8GiB'")
    unit = parts[2].lower()
    if unit == "%":
        return lambda free: free * number / 100
    return lambda free: number * UNITS[unit]


def free_bytes(device: torch.device) -> int:
    """Bytes that can be allocated on a device: what the driver has, and what torch holds unused."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return int(min(_available_to_the_machine(), _available_to_the_container()))


def kept_bytes(run: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass keeps for its backward pass, each tensor once, parameters left out."""
    bytes_of: dict[int, int] = {}  # by address

    def count(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter) and not (tensor.is_leaf and not tensor.requires_grad):
            storage = tensor.untyped_storage()
            bytes_of[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        result = run()
    del result
    return sum(bytes_of.values())


def run_in_parts(
    items: Sequence[Item],
    run: Callable[[Sequence[Item]], list[Any]],
    *,
    tokens: Callable[[Sequence[Item]], int],
    memory: Memory,
) -> list[Any]:
    """`run(items)`, or where that runs out of memory, both halves one after the other: a result for every item.

    A pass that is as large as one that failed is not tried again.  A single item that does not fit on a GPU is run
    once more with what its backward pass needs kept in main memory.

    Raises:
        torch.OutOfMemoryError: a single item does not fit.
    """
    n_tokens = tokens(items)
    if len(items) == 1 or n_tokens < memory.too_many:
        try:
            return run(items)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if len(items) == 1:
            return _run_with_main_memory(items, run)
        memory.too_many = min(memory.too_many, n_tokens)
        _give_back()
    half = (len(items) + 1) // 2
    first = run_in_parts(items[:half], run, tokens=tokens, memory=memory)
    return first + run_in_parts(items[half:], run, tokens=tokens, memory=memory)


def _run_with_main_memory(items: Sequence[Item], run: Callable[[Sequence[Item]], list[Any]]) -> list[Any]:
    _give_back()
    try:
        with torch.autograd.graph.save_on_cpu():
            return run(items)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise torch.OutOfMemoryError(
            "one prompt with its responses does not fit into memory, alone and at one point of its path. Free memory, "
            "load the model in bfloat16, spread it with device_map, or shorten the longest example"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or in main memory."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _give_back() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _available_to_the_machine() -> int:
    """MemAvailable as Linux estimates it; elsewhere half of what is built in."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 << 30


def _available_to_the_container() -> int:
    """What the limit of the control group leaves; no limit, no bound."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # none, or "max"
        return 1 << 62
    return max(0, limit - used)
