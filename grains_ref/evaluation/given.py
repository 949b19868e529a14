"""The choice of a strength for vectors that are there already, by the rule of `choice`, whichever method made them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

from grains_ref.data import PreferencePair, Task
from grains_ref.evaluation.choice import LimitedChoice, OnProgress, choose_under_limit
from grains_ref.evaluation.measured import Measured, inputs_of
from grains_ref.evaluation.measures import exact_matches, pair_rows, task_rows
from grains_ref.fitting.work_folder import WorkFolder
from grains_ref.models import HuggingFaceModel

Steer: TypeAlias = Callable[[float, tuple[int, ...]], AbstractContextManager[object]]  # strength and layers -> the edit


@dataclass(frozen=True, eq=False)
class GivenCandidate:
    """A strength and layers for given vectors.

    digest: of the vectors and all that is said of them.
    """

    lam: float
    layers: tuple[int, ...]
    steer: Steer
    digest: str
    name: str = "given vectors"

    @property
    def made_by(self) -> str:
        """What tells its vectors from others."""
        return self.digest

    def setting(self) -> list[Any]:
        """What it is, in plain values; of the unsteered model nothing but the strength counts."""
        return [self.lam, self.digest, list(self.layers)] if self.lam else [0]

    def steering(self, model: HuggingFaceModel) -> AbstractContextManager[object]:
        """The edit at this strength and these layers."""
        return self.steer(self.lam, self.layers)


def sweep_vectors(
    model: HuggingFaceModel,
    steer: Steer,
    dev: Sequence[PreferencePair],
    tasks: Sequence[Task] = (),
    *,
    digest: str,
    lams: Sequence[float],
    layer_sets: Sequence[tuple[int, ...]],
    max_loss: float,
    on_progress: OnProgress,
    work: WorkFolder | None = None,
) -> LimitedChoice[GivenCandidate]:
    """Choose strength and layers of given vectors on dev data; the unsteered model is always among the settings.

    Args:
        model: not steered; it is steered and released again for every setting.
        steer: makes the edit of a strength and layers, with the vectors' own method, site and positions.
        dev: pairs that the vectors were not made from, to choose on.
        tasks: what must not suffer. Without tasks every setting is admissible.
        digest: of the vectors' file.
        lams: strengths, and layer_sets: numbers of blocks, each of which is tried with every strength.
        max_loss: how many points of task accuracy a setting may cost.
        on_progress, work: as for `choice.sweep`.

    Raises:
        ValueError: no dev pairs.
        WorkFolderError: the folder holds another sweep, or a file in it is damaged.
    """
    if not dev:
        raise ValueError("no dev pairs to choose on; give pairs that the vectors were not made from")
    dev_rows, rows = pair_rows(model, dev), task_rows(model, tasks)
    measured = Measured(work, lambda: inputs_of(model, (), dev_rows, rows))
    candidates = [GivenCandidate(0.0, layer_sets[0], steer, digest)]
    for lam in sorted(lams, key=abs):
        if lam:
            candidates += [GivenCandidate(lam, layers, steer, digest) for layers in layer_sets]
    return choose_under_limit(
        model,
        candidates,
        dev_rows,
        rows,
        unsteered=measured.right(len(rows), lambda: exact_matches(model, rows)),
        max_loss=max_loss,
        on_progress=on_progress,
        measured=measured,
        left_out=[],
    )
