"""Tokens coloured by their scores, and image patches over their picture, for a report.

A report may hold hundreds of long prompts and stays under five megabytes: the examples are packed here and drawn by the
reader's browser when they are opened.  `Attributed.record` is also what `grains-ref attribute --json` prints.
"""

from __future__ import annotations

import base64
import io
import json
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
from PIL import Image

from grains_ref.data.images import read_picture
from grains_ref.files import check_listed, printable
from grains_ref.grains import Attribution, Encoded, Selection
from grains_ref.report.overlay import PatchLike
from grains_ref.report.page import Section
from grains_ref.report.tokens import PART

STEPS = 1000  # scores are kept in steps of this part of an example's strongest
MOST_BYTES = 4_700_000  # of examples in one report, of 5 million in all
HEADING = 800  # bytes, about
LONGEST_SIDE = 640  # of a picture in a report, in pixels
EXCERPT = 180  # characters of a prompt in an example's heading


class PatchOfRecord(NamedTuple):
    """What an image token sees, as a record tells it (`grains_ref.models.families.Patch`)."""

    view: str
    row: int
    column: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Attributed:
    """One prompt with its scores, as it is shown and kept.

    Attributes:
        prompt, chosen, rejected: in words.
        tokens, kinds, a: of every prompt token; scores in nats.
        pos, neg: the tokens selected toward the chosen and toward the rejected answer.
        f_x: log P(chosen) - log P(rejected) of the prompt, in nats; None where it is not known.
        gap: f(x) - f(baseline) - sum(a), in nats; None where the method promises no completeness.
        patches: None for text tokens; empty without a picture.
        picture: upright, in the pixels of the patches' boxes.
        marks: token -> a word, for what is known of it besides.
    """

    prompt: str
    chosen: str
    rejected: str
    tokens: Sequence[str]
    kinds: Sequence[str]
    a: Sequence[float]
    pos: Sequence[int]
    neg: Sequence[int]
    f_x: float | None = None
    gap: float | None = None
    patches: Sequence[PatchLike | None] = ()
    picture: Image.Image | None = None
    marks: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_listed("tokens", self.tokens, "a list of tokens")
        n = len(self.tokens)
        for name, values in (("kinds", self.kinds), ("scores", self.a), ("patches", self.patches or self.tokens)):
            if len(values) != n:
                raise ValueError(f"{len(values)} {name} for {n} tokens; expected one for each")
        if not all(map(math.isfinite, (*self.a, self.f_x or 0.0, self.gap or 0.0))):
            raise ValueError("a score is not finite; look at the attribution")
        for j in (*self.pos, *self.neg, *self.marks):
            if type(j) is not int or not 0 <= j < n:
                raise ValueError(f"token {j!r} is selected or marked, but there are {n} tokens")

    @classmethod
    def of(
        cls,
        prompt: str,
        chosen: str,
        rejected: str,
        *,
        encoded: Encoded,
        attribution: Attribution,
        selection: Selection,
        is_complete: bool = True,
        picture: Image.Image | None = None,
        marks: Mapping[int, str] | None = None,
    ) -> Attributed:
        """From what the stages return; is_complete: whether the scores promise to add up (Integrated Gradients)."""
        return cls(
            prompt=prompt,
            chosen=chosen,
            rejected=rejected,
            tokens=encoded.tokens,
            kinds=encoded.kinds,
            a=attribution.a.tolist(),
            pos=selection.pos,
            neg=selection.neg,
            f_x=attribution.f_x,
            gap=attribution.gap if is_complete else None,
            patches=getattr(encoded, "patches", ()),
            picture=picture,
            marks=marks or {},
        )

    @classmethod
    def from_record(cls, record: Mapping[str, Any], picture: Image.Image | None) -> Attributed:
        """What `record` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is no such record.
        """
        patches = [as_patch(patch) for patch in record["patches"]]
        return cls(
            prompt=str(record.get("prompt", "")),
            chosen=str(record.get("chosen", "")),
            rejected=str(record.get("rejected", "")),
            tokens=[str(token) for token in record["tokens"]],
            kinds=[str(kind) for kind in record["kinds"]],
            a=[float(score) for score in record["scores_nats"]],
            pos=list(record["positive"]),
            neg=list(record["negative"]),
            f_x=_number(record["preference_nats"]),
            gap=_number(record["completeness_gap_nats"]),
            patches=patches,
            picture=picture,
            marks={int(j): str(word) for j, word in record.get("marks", {}).items()},
        )

    def record(self) -> dict[str, Any]:
        """In plain values; the picture is not in it."""
        patches = [
            patch and {"view": patch.view, "row": patch.row, "column": patch.column, "box": patch.box}
            for patch in self.patches
        ]
        return {
            "prompt": self.prompt,
            "chosen": self.chosen,
            "rejected": self.rejected,
            "tokens": list(self.tokens),
            "kinds": list(self.kinds),
            "patches": patches,
            "scores_nats": list(self.a),
            "positive": list(self.pos),
            "negative": list(self.neg),
            "preference_nats": self.f_x,
            "completeness_gap_nats": self.gap,
            "marks": {str(j): word for j, word in self.marks.items()},
        }

    @property
    def excerpt(self) -> str:
        """The prompt's beginning in one line."""
        words = " ".join(self.prompt.split())
        return words if len(words) <= EXCERPT else words[: EXCERPT - 1] + "\u2026"

    @property
    def total(self) -> float:
        """The sum of all scores, in nats."""
        return math.fsum(self.a)

    @property
    def change(self) -> float | None:
        """f(x) - f(baseline), in nats, which complete scores add up to; None where nothing is promised."""
        return None if self.gap is None else self.total + self.gap

    def _repr_html_(self) -> str:
        return Attributions([self])._repr_html_()


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def as_patch(record: Any) -> PatchOfRecord | None:
    """A patch out of its record.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    if record is None:
        return None
    left, top, right, bottom = (float(side) for side in record["box"])
    return PatchOfRecord(str(record["view"]), int(record["row"]), int(record["column"]), (left, top, right, bottom))


class Heading(NamedTuple):
    """What is seen of an example before it is opened."""

    title: str
    f_x: float | None
    total: float
    change: float | None
    bar: float | None  # percent of the change that the scores account for; None where that is no share


def _heading(example: Attributed) -> Heading:
    share = example.total / example.change if example.change else -1.0
    bar = 100 * share if 0 <= share <= 1 else None
    return Heading(example.excerpt, example.f_x, example.total, example.change, bar)


@dataclass(frozen=True)
class Attributions(Section):
    """Which tokens push toward which answer, example by example.

    marks: what the words at the examples' marked tokens mean, for people.
    """

    examples: Sequence[Attributed]
    marks: str = ""
    title: str = "Attribution"

    template: ClassVar[str] = "attributions.html"

    def context(self) -> dict[str, Any]:
        """See `Section`."""
        vocabulary = numbered(self.examples)
        kinds: dict[str, int] = {}
        packed: list[str] = []
        size = len(json.dumps(list(vocabulary)))
        for example in self.examples:
            content = pack(example, vocabulary, kinds)
            size += len(content) + HEADING
            if packed and size > MOST_BYTES:
                break
            packed.append(content)
        packed_examples = list(self.examples)[: len(packed)]
        return {
            "headings": [_heading(example) for example in packed_examples],
            "left_out": len(self.examples) - len(packed_examples),
            "marks": self.marks,
            "steps": STEPS,
            "has_pictures": any(example.picture for example in packed_examples),
            "data": {"tokens": list(vocabulary), "kinds": list(kinds), "steps": STEPS, "examples": packed},
        }


def numbered(examples: Iterable[Attributed]) -> dict[str, int]:
    """Every token's number; frequent ones are small, so that most fit in one byte."""
    counts = Counter(shown(token) for example in examples for token in example.tokens)
    return {token: number for number, (token, _) in enumerate(counts.most_common())}


def pack(example: Attributed, vocabulary: Mapping[str, int], kinds: dict[str, int]) -> str:
    """One example for page.js, deflated, in base64: how many tokens, a plane of bytes for each part, the rest as JSON.

    vocabulary, kinds: text -> its number; kinds grow by what is new.  Scores become whole multiples of `scale`.
    """
    scale = max(map(abs, example.a), default=0.0) / STEPS or 1.0
    ids = np.array([vocabulary[shown(token)] for token in example.tokens], dtype=np.uint32)
    scores = np.array([round(score / scale) + STEPS for score in example.a], dtype=np.uint32)
    kind_numbers = [kinds.setdefault(printable(kind), len(kinds)) for kind in example.kinds]
    planes = [ids & 255, ids >> 8 & 255, ids >> 16, scores & 255, scores >> 8, np.array(kind_numbers)]
    rest = {
        "chosen": printable(example.chosen, keep="\n\t"),
        "rejected": printable(example.rejected, keep="\n\t"),
        "scale": scale,
        "pos": list(example.pos),
        "neg": list(example.neg),
        "marks": {str(j): printable(word) for j, word in example.marks.items()},
        "picture": _picture(example),
    }
    parts = [len(ids).to_bytes(4, "little"), *(plane.astype(np.uint8).tobytes() for plane in planes)]
    parts.append(json.dumps(rest, separators=(",", ":"), allow_nan=False).encode())
    deflate = zlib.compressobj(level=9, memLevel=9)
    deflated = b"".join(deflate.compress(part) + deflate.flush(zlib.Z_FULL_FLUSH) for part in parts)  # codes of its own
    return base64.b64encode(deflated + deflate.flush()).decode()


def shown(token: str) -> str:
    r"""A token as it is drawn: white space before it stays, what is not to be seen is written out, as \x1b."""
    return printable(token.replace("\ufffd", PART), keep="\n\t")


def _picture(example: Attributed) -> dict[str, Any] | None:
    """The picture as a data address, and what every image token sees of it."""
    if example.picture is None:
        return None
    picture = read_picture(example.picture)
    patches = []
    for j, patch in enumerate(example.patches):
        if patch is not None:
            box = [round(side, 1) for side in patch.box]
            patches.append([j, printable(patch.view), patch.row, patch.column, *box])
    width, height = picture.size
    return {"src": data_address(picture), "width": width, "height": height, "patches": patches}


def data_address(picture: Image.Image) -> str:
    """A picture inside of a page: as it is where it is small, else smaller and as JPEG."""
    content = io.BytesIO()
    if max(picture.size) <= 256:
        picture.save(content, format="PNG", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    smaller = picture.copy()
    smaller.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    smaller.save(content, format="JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
