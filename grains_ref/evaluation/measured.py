"""What a sweep has finished, kept in its work folder: every score, shift and accuracy is computed once.

Each is known by the settings that it depends on, so that the grid may change between two runs; what everything depends
on (examples, dev pairs, tasks, model, software) is in the folder's record and may not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from grains_ref.evaluation.pair_scores import PairScores
from grains_ref.fast import Engine
from grains_ref.files import digest_of
from grains_ref.files.processes import check_same, size
from grains_ref.fitting.resumable import tokens_digest
from grains_ref.fitting.work_folder import AGAIN, WorkFolder, WorkFolderError
from grains_ref.grains import (
    Example,
    HyperParameters,
    Shift,
    at_least_float32,
    eligible_tokens,
    select,
)
from grains_ref.models import HuggingFaceModel, TokenRow
from grains_ref.vectors import library_versions

Figures = Mapping[str, Any]


def rows_digest(rows: Sequence[TokenRow]) -> str:
    """SHA-256 of what a model is asked: token ids and pictures."""
    seen = [[row.prompt, row.response, row.picture_digest] for row in rows]
    return digest_of(json.dumps(seen).encode())


def inputs_of(
    model: HuggingFaceModel,
    examples: Sequence[Example],
    dev: Sequence[TokenRow],
    tasks: Sequence[TokenRow],
    *,
    engine: Engine | None = None,
    memory: str = "",
) -> dict[str, Any]:
    """What everything in a sweep depends on, whatever is tried.

    engine: what makes the vectors; None where they are there already.
    """
    by_engine: dict[str, Any] = {}
    if engine:
        by_engine = {"engine": engine.name, "memory": memory, "pass_tokens": engine.pass_tokens}
    return {
        "examples": tokens_digest(examples),
        "dev_pairs": rows_digest(dev),
        "tasks": rows_digest(tasks),
        "fingerprint": model.fingerprint(),
        "dtype": str(model.hf.dtype),
        "device": model.device.type,
        "versions": library_versions(),
        **by_engine,
    }


def check_same_rows(model: HuggingFaceModel, rows: Sequence[TokenRow]) -> None:
    """Refuse processes that would score other rows, or by another model; see `grains_ref.files.processes`."""
    if size() > 1:
        check_same("model and rows that are scored", f"{model.fingerprint()} {model.hf.dtype} {rows_digest(rows)}")


class Measured:
    """Looks up what is finished, and keeps what is computed; without a folder, computes everything.

    inputs: gives `inputs_of` the sweep, if they are needed.

    Raises, as all its methods do:
        WorkFolderError: the folder holds another sweep, or a file in it is damaged.
    """

    def __init__(self, folder: WorkFolder | None, inputs: Callable[[], Mapping[str, Any]]) -> None:
        self._folder = folder
        if folder or size() > 1:
            record = inputs()
            check_same("pairs, tasks, model and software of the sweep", _digest(record))
            if folder:
                folder.claim(record, names=())

    def has_scores(self, hp: HyperParameters, batch: Iterable[int]) -> bool:
        """Whether the scores of a batch of examples are all there."""
        return self._folder is not None and self._folder.has([_scores_name(hp, i) for i in batch])

    def has_shifts(self, hp: HyperParameters, batch: Iterable[int]) -> bool:
        """Whether the shifts of a batch of examples are all there."""
        return self._folder is not None and self._folder.has([_shift_name(hp, i) for i in batch])

    def has_dev(self, setting: Any) -> bool:
        """Whether a setting's margins on dev are there."""
        return self._folder is not None and self._folder.has([_dev_name(setting)])

    def scores(
        self, hp: HyperParameters, batch: Mapping[int, Example], compute: Callable[[], list[Tensor]]
    ) -> list[Tensor]:
        """The scores (T,) of a batch of examples, by number; computed together, also where only one is missing."""
        if not self._folder:
            return compute()
        names = {i: _scores_name(hp, i) for i in batch}
        stored = {
            i: self._folder.read(names[i], shapes={"a": example.encoded.ids.shape}, dtype=_dtype(example))
            for i, example in batch.items()
        }
        if all(stored.values()):
            return [finished.tensors["a"] for finished in stored.values() if finished]
        computed = compute()
        for i, a in zip(batch, computed, strict=True):
            if not stored[i]:
                self._folder.write(names[i], {"a": a}, {})
        return computed

    def shifts(
        self,
        hp: HyperParameters,
        batch: Mapping[int, Example],
        scores: Sequence[Tensor],
        compute: Callable[[], list[Shift]],
        *,
        layers: Any,
    ) -> list[Shift]:
        """The shifts of a batch of examples with these scores; layers: (L, d)."""
        if not self._folder:
            return compute()
        names = {i: _shift_name(hp, i) for i in batch}
        shapes = {"delta_pos": layers, "delta_neg": layers}
        stored = {i: self._folder.read(names[i], shapes=shapes, dtype=_dtype(example)) for i, example in batch.items()}
        if all(stored.values()):
            shifts = []
            for (i, example), a in zip(batch.items(), scores, strict=True):
                selection = select(a, k=hp.k, eligible=eligible_tokens(example.encoded, hp.eligible))
                tensors = stored[i].tensors  # type: ignore[union-attr]
                shifts.append(Shift(a, selection, tensors["delta_pos"], tensors["delta_neg"]))
            return shifts
        computed = compute()
        for i, shift in zip(batch, computed, strict=True):
            tensors = {"delta_pos": shift.delta_pos, "delta_neg": shift.delta_neg}
            if not stored[i] and all(
                tensor.isfinite().all() for tensor in tensors.values()
            ):  # else the fit refuses them
                self._folder.write(names[i], tensors, {})
        return computed

    def right(self, n: int, compute: Callable[[], Sequence[bool]]) -> list[bool]:
        """Which of the n tasks the unsteered model answers rightly."""

        def figures() -> Figures:
            return {"right": "".join("1" if is_right else "0" for is_right in compute())}

        unsteered = self._figures("unsteered", figures)
        bits = unsteered.get("right")
        if not isinstance(bits, str) or len(bits) != n or not set(bits) <= {"0", "1"}:
            raise self._wrong("unsteered")
        return [bit == "1" for bit in bits]

    def dev(self, setting: Any, compute: Callable[[], Figures], *, n: int) -> PairScores:
        """A setting's margins on the n dev pairs.  compute: gives `scores_or_overflow` of it.

        Raises:
            ArithmeticError: it has none; kept with its message.
        """
        name = _dev_name(setting)
        finished = self._figures(name, compute)
        if isinstance(finished.get("overflow"), str):
            raise FloatingPointError(finished["overflow"])
        margins, per_token = finished.get("margins"), finished.get("per_token")
        if not _are_numbers(margins, n) or not _are_numbers(per_token, n):
            raise self._wrong(name)
        return PairScores(tuple(finished["margins"]), tuple(finished["per_token"]))

    def wrong(self, setting: Any, compute: Callable[[], int]) -> int:
        """How many tasks a setting answers wrongly, counted as far as is allowed; raises as `dev` does."""
        name = f"tasks-{_digest(setting)}"
        finished = self._figures(name, lambda: figures_of("wrong", compute))
        if isinstance(finished.get("overflow"), str):
            raise FloatingPointError(finished["overflow"])
        wrong = finished.get("wrong")
        if type(wrong) is not int or wrong < 0:
            raise self._wrong(name)
        return wrong

    def _figures(self, name: str, compute: Callable[[], Figures]) -> Figures:
        if not self._folder:
            return compute()
        figures = self._folder.read_figures(name)
        if figures is None:
            figures = dict(compute())
            self._folder.write_figures(name, figures)
        return figures

    def _wrong(self, name: str) -> WorkFolderError:
        assert self._folder
        return WorkFolderError(f"{self._folder.path / name}.json holds figures of another kind; {AGAIN}")


def scores_or_overflow(compute: Callable[[], PairScores]) -> Figures:
    """Margins as figures, or the message of the overflow that they are lost to."""
    try:
        scores = compute()
    except ArithmeticError as error:
        return {"overflow": str(error)}
    return {"margins": list(scores.margins), "per_token": list(scores.per_token)}


def _are_numbers(values: Any, n: int) -> bool:
    return isinstance(values, list) and len(values) == n and all(type(v) is float and math.isfinite(v) for v in values)


def figures_of(name: str, compute: Callable[[], float]) -> Figures:
    """A figure under its name, or the message of the overflow that it is lost to."""
    try:
        return {name: compute()}
    except ArithmeticError as error:
        return {"overflow": str(error)}


def _scores_name(hp: HyperParameters, i: int) -> str:
    return f"scores-{_digest(hp.as_dict())}-{i:06d}"


def _shift_name(hp: HyperParameters, i: int) -> str:
    return f"shift-{_digest(hp.as_dict())}-{i:06d}"


def _dev_name(setting: Any) -> str:
    return f"dev-{_digest(setting)}"


def _digest(setting: Any) -> str:
    return digest_of(json.dumps(setting, sort_keys=True).encode())[:16]


def _dtype(example: Example) -> Any:
    return at_least_float32(example.encoded.embeds)
