"""Lists on the command line: layers ('8-15,20'), whole numbers ('1,3,5') and strengths ('0.5,1,2').

Everything is refused here in one sentence that names the option, before anything is loaded.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Layers:
    """Layers as they were written: 'all', or numbers and ranges with commas.

    Attributes:
        text: what was written.
        ranges: the ranges in it; none for 'all'. They are not written out, however long they are.
    """

    text: str
    ranges: tuple[range, ...]

    def of(self, n_layers: int) -> list[int]:
        """The numbers of the layers, in the order in which they were written, for a model with that many.

        Raises:
            ValueError: a layer that the model does not have.
        """
        if not self.ranges:
            return list(range(n_layers))
        if max(part[-1] for part in self.ranges) >= n_layers:
            raise ValueError(f"layers {_shown(self.text)} do not exist: the model has layers 0 to {n_layers - 1}")
        return [layer for part in self.ranges for layer in part]


def parse_layers(text: str) -> Layers:
    """'all', or for instance '8-15,20'.

    Raises:
        ValueError: something else, a range that runs backwards, or a layer that is named twice.
    """
    if text.strip() == "all":
        return Layers("all", ())
    ranges: list[range] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", part.strip())
        if not match:
            raise ValueError(f"layers {_shown(text)} cannot be read; write 'all' or for instance '8-15,20'")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"layers {_shown(text)}: the range {part.strip()} runs backwards; write {last}-{first}")
        ranges.append(range(first, last + 1))
    in_order = sorted(ranges, key=lambda layers: layers.start)
    for before, after in itertools.pairwise(in_order):
        if after.start < before.stop:
            raise ValueError(f"layers {_shown(text)}: layer {after.start} is named twice; name it once")
    return Layers(text, tuple(ranges))


def write_layers(layers: Sequence[int]) -> str:
    """Numbers of layers as `parse_layers` reads them: [0, 1, 2, 5] -> '0-2,5'."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def parse_whole_numbers(text: str, option: str, *, least: int) -> list[int]:
    """Whole numbers with commas, each at least `least`.

    Raises:
        ValueError: something else, or a number that is named twice.
    """
    numbers: list[int] = []
    for part in text.split(","):
        if not re.fullmatch(r"[0-9]{1,9}", part.strip()) or int(part) < least:
            raise ValueError(
                f"{option} {_shown(text)} cannot be read; write whole numbers of at least {least} with commas, "
                "for instance '1,3,5'"
            )
        numbers.append(int(part))
    check_each_once(numbers, option)
    return numbers


def parse_strengths(text: str, option: str) -> list[float]:
    """Finite numbers with commas.

    Raises:
        ValueError: something else, or a number that is named twice.
    """
    strengths: list[float] = []
    for part in text.split(","):
        is_number = re.fullmatch(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", part.strip())
        strength = float(part) if is_number else math.nan
        if not math.isfinite(strength):
            raise ValueError(
                f"{option} {_shown(text)} cannot be read; write finite numbers with commas, for instance '1,2,4'"
            )
        strengths.append(strength)
    check_each_once(strengths, option)
    return strengths


def check_each_once(values: Sequence[object], option: str) -> None:
    """Refuse a value that is named twice.

    Raises:
        ValueError: there is one.
    """
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{option}: {value} is named twice; name it once")
        seen.add(value)


def _shown(text: str) -> str:
    """What was written, for a message: its beginning, if it is long."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
