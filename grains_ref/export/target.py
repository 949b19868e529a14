"""What a target is, what is written into its file, and what it cannot carry."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from grains_ref.files import FileError, parse_record, printable, record_bytes
from grains_ref.vectors import Header, SteeringVectors, VectorError
from grains_ref.vectors.header import is_finite_number

NOTE = "grains_ref"  # the key of our note, in every format that has room for one
MOST_BLOCKS = 10_000

Rule = Callable[[Tensor, Tensor, float], Tensor]  # h (..., d), v (d,), lam -> h'


class ExportError(ValueError):
    """Vectors that a target cannot take, or a file that is none of a target's."""

    def __str__(self) -> str:
        return printable(super().__str__())


@dataclass(frozen=True, kw_only=True, eq=False)
class Directions:
    """Vectors by decoder block, as other tools keep them, and what is told beside them.

    Attributes:
        by_block: number of a block, from 0, to its vector: (d,) float32 on the CPU.
        lam: the strength; None where a file does not say.
        header: ours; None in a file that another tool wrote.

    Raises:
        ExportError: no vector, one of another kind or width, a value or strength that is not finite.
    """

    by_block: Mapping[int, Tensor]
    lam: float | None
    header: Header | None

    def __post_init__(self) -> None:
        if not self.by_block:
            raise ExportError("there is no vector; a file needs one of at least one block")
        if self.lam is not None and not is_finite_number(self.lam):
            raise ExportError(f"the strength is {self.lam!r}; expected a finite number")
        first = next(iter(self.by_block.values()))
        for block, v in self.by_block.items():
            if type(block) is not int or not 0 <= block < MOST_BLOCKS:
                raise ExportError(f"{block!r} is no number of a block; expected 0 to {MOST_BLOCKS - 1}")
            if v.dim() != 1 or v.shape != first.shape or not len(v):
                raise ExportError(
                    f"block {block}: a vector of shape {tuple(v.shape)}; expected one number for each feature, as many "
                    f"as the other blocks have ({tuple(first.shape)})"
                )
            if v.dtype != torch.float32 or v.device.type != "cpu":
                raise ExportError(f"block {block}: {v.dtype} on {v.device}; expected torch.float32 on cpu")
            if not v.isfinite().all():
                raise ExportError(f"block {block}: the vector is not finite")

    @property
    def width(self) -> int:
        """d, the width of the hidden state."""
        return len(next(iter(self.by_block.values())))

    @property
    def strength(self) -> float:
        """lam, for a file that steers by itself.

        Raises:
            ExportError: there is none.
        """
        if self.lam is None:
            raise ExportError("the file says how strongly to steer, and no strength is known; give lam")
        return self.lam

    @property
    def blocks(self) -> list[int]:
        """The numbers of the blocks, in order."""
        return sorted(self.by_block)


def directions_of(vectors: SteeringVectors, *, lam: float, layers: Sequence[int]) -> Directions:
    """v of equation (6) for these layers, with its strength and header.

    Raises:
        ExportError: see `check_place`.
    """
    check_place(vectors.header)
    return Directions(by_block={i: vectors.v[i].clone() for i in sorted(layers)}, lam=lam, header=vectors.header)


def check_place(header: Header) -> None:
    """Check that vectors are added at the blocks' outputs and at all positions: other tools add them nowhere else.

    Raises:
        ExportError: they are not.
    """
    if (header.site, header.positions) != ("block_output", "all"):
        raise ExportError(
            f"the vectors are for the site {header.site!r}, positions {header.positions!r}; what is exported is added "
            "to the output of every block, at all positions, where these vectors mean something else. Steer with "
            "grains-ref, or fit with --site residual --positions all"
        )


@dataclass(frozen=True, kw_only=True)
class Use:
    """One way to use a target's file.

    Attributes:
        name: what the tool calls it.
        rule: what the tool computes.
        lacks: what that is short of equations (7) and (8), for people; "" if nothing.
    """

    name: str
    rule: Rule
    lacks: str = ""


NO_NORM = "norm restoration, equation (8): the tool adds lam * v and leaves the states longer or shorter"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What some targets want to know besides the vectors.

    Attributes:
        vectors: the vectors file; SGLang's server reads it itself.
        blocks: how the tool calls a decoder block, with {i} for its number; "" for the target's default.
    """

    vectors: Path
    blocks: str = ""

    def module(self, default: str, block: int) -> str:
        """The name of a block's module.

        Raises:
            ExportError: every block would have the same.
        """
        template = self.blocks or default
        if "{i}" not in template:
            raise ExportError(f"{template!r} names every block alike; write {{i}} where the number goes")
        return template.replace("{i}", str(block))


@dataclass(frozen=True, kw_only=True)
class Target:
    """A tool that steers with vectors.

    Attributes:
        name: as in `grains_ref.export.TARGETS`.
        tool: what people call it.
        suffix: that a file of the tool must end in; "" if any will do.
        uses: ways to use the file, the best first.
        write: the content of a file.
        read: what a file holds; the text is what errors call it.
        usage: lines that use a file of that path, for people to copy.
        first_block: the first block that the tool can steer.
        keeps_lam: whether the tool takes the strength from the file.
        keeps_header: whether the file has room for where the vectors came from.
        block_name: how the tool calls a decoder block, with {i}; "" if by its number.
    """

    name: str
    tool: str
    suffix: str
    uses: tuple[Use, ...]
    write: Callable[[Directions, Asked], bytes]
    read: Callable[[bytes, str], Directions]
    usage: Callable[[Path, Directions], str]
    first_block: int = 0
    keeps_lam: bool = False
    keeps_header: bool = True
    block_name: str = ""

    def carried(self, directions: Directions) -> Directions:
        """What of the vectors the target can steer with.

        Raises:
            ExportError: nothing of them.
        """
        by_block = {block: v for block, v in directions.by_block.items() if block >= self.first_block}
        if not by_block:
            raise ExportError(
                f"{self.tool} cannot steer the blocks {directions.blocks}: its first is {self.first_block}. Give other "
                "--layers"
            )
        return Directions(by_block=by_block, lam=directions.lam, header=directions.header)

    def losses(self, directions: Directions) -> list[str]:
        """What the target cannot carry of these vectors, for people."""
        lost = []
        lengths = {block: float(v.double().norm()) for block, v in directions.by_block.items()}
        dropped = [block for block in directions.blocks if block < self.first_block]
        if dropped:
            share = sum(lengths[block] for block in dropped) / (sum(lengths.values()) or 1.0)
            numbers = ", ".join(map(str, dropped))
            lost.append(
                f"block {numbers}: {self.tool} cannot steer it. |v_{numbers}| is {100 * share:.0f} % of the summed "
                "lengths of all vectors"
            )
        if self.uses[0].lacks:
            lost.append(self.uses[0].lacks)
        if not self.keeps_lam:
            lost.append("the strength: it is given with the command or the request, as below")
        if not self.keeps_header:
            lost.append("where the vectors came from: keep the vectors file")
        return lost


# ------------------------------------------------------------------------------------- our note
def note_of(directions: Directions) -> str:
    """Strength, header and a digest of the vectors, as one line of JSON: for every format that has room."""
    header = asdict(directions.header) if directions.header else None
    record = {"lam": directions.lam, "header": header, "vectors_sha256": _digest(directions.by_block)}
    return record_bytes(record).decode()


def with_note(by_block: Mapping[int, Tensor], note: object, *, name: str, lam: float | None = None) -> Directions:
    """Vectors out of a file, with what our note says of them, if there is one.

    lam: the strength that the file itself names.  The note's counts where it names none.

    Raises:
        ExportError: the vectors, the note or its header are malformed, or the vectors are not those of the note.
    """
    if note is None:
        return Directions(by_block=by_block, lam=lam, header=None)
    if not isinstance(note, str):
        raise ExportError(f"{name}: its note of grains_ref is {type(note).__name__}, expected a text")
    try:
        record = parse_record(note, name=f"{name}, its note of grains_ref,")
        header = Header.from_record(record["header"]) if isinstance(record.get("header"), dict) else None
    except (FileError, VectorError) as error:
        raise ExportError(str(error)) from error
    directions = Directions(by_block=by_block, lam=record.get("lam") if lam is None else lam, header=header)
    if record.get("vectors_sha256") != _digest(by_block):
        raise ExportError(
            f"{name} is damaged or was edited: its vectors are not those that its note of grains_ref describes. Export "
            "them again"
        )
    return directions


def _digest(by_block: Mapping[int, Tensor]) -> str:
    digest = hashlib.sha256()
    for block in sorted(by_block):
        digest.update(f"{block}\n".encode())
        digest.update(by_block[block].numpy().astype("<f4").tobytes())
    return digest.hexdigest()
