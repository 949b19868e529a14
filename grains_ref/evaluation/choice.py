"""The choice of a strength: the setting that does best on dev data and does not spoil other skills.

One rule, for GrAInS and for every method it is compared with:

1. Every setting is measured on dev pairs: the share with log P(chosen) > log P(rejected).
2. A setting is admissible if, of the dev tasks, it answers at most `max_loss` points fewer than the unsteered model
   (`allowed_errors`, `keeps_capability`).
3. Of the admissible settings the one with the highest dev accuracy is chosen. Ties go to the gentlest, and then to
   the first.

`choose` is the third step for settings of any kind; `sweep` does the whole for GrAInS, from examples to vectors.

The file is not called `sweep`: a package cannot offer a function by the name of one of its own modules.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from grains_ref.data import PreferencePair, Task
from grains_ref.evaluation.candidates import AnyCandidate, Grid, TaskCost
from grains_ref.evaluation.fits import FitOfShifts, LeftOut, all_fits, setting_name
from grains_ref.evaluation.measured import Figures, Measured, inputs_of, scores_or_overflow
from grains_ref.evaluation.measures import exact_matches, pair_rows, task_rows
from grains_ref.evaluation.pair_scores import PairScores, change_of, check_finite, prompts_of, score_pairs
from grains_ref.fast import DEFAULT_SHARE, EngineName, steering_by
from grains_ref.files.processes import share
from grains_ref.fitting.resumable import common_engine
from grains_ref.fitting.work_folder import WorkFolder
from grains_ref.grains import (
    Example,
    Fit,
    Hooks,
    HyperParameters,
    Shift,
)
from grains_ref.models import HuggingFaceModel, TokenRow

Setting = TypeVar("Setting")
OfAnyMethod = TypeVar("OfAnyMethod", bound=AnyCandidate)
OnProgress: TypeAlias = Callable[[str, int, int], None]  # what is in work, how much of it is done, how much there is


# ------------------------------------------------------------------------------------- the rule
@dataclass(frozen=True)
class Tried(Generic[Setting]):
    """A setting and its accuracy on dev, from 0 to 1."""

    setting: Setting
    accuracy: float


@dataclass(frozen=True)
class Choice(Generic[Setting]):
    """What was chosen.

    Attributes:
        best: the chosen setting.
        accuracy: its accuracy on dev, from 0 to 1.
        tried: every setting that was measured, in the order in which it was given.
    """

    best: Setting
    accuracy: float
    tried: tuple[Tried[Setting], ...]


def choose(
    settings: Sequence[Setting], *, accuracy: Callable[[Setting], float], admissible: Callable[[Setting], bool]
) -> Choice[Setting]:
    """The admissible setting with the highest dev accuracy; ties go to the one that is listed first.

    Args:
        settings: the gentlest first. With the unsteered model among them there is always an admissible one.
        accuracy: of a setting on dev; asked of every setting, in order.
        admissible: whether a setting spoils nothing; asked of the best setting first, and no further than needed.

    Raises:
        ValueError: no setting is admissible.
    """
    tried = tuple(Tried(setting, accuracy(setting)) for setting in settings)
    best_first = sorted(tried, key=lambda candidate: candidate.accuracy, reverse=True)  # stable: ties keep their order
    for candidate in best_first:
        if admissible(candidate.setting):
            return Choice(candidate.setting, candidate.accuracy, tried)
    raise ValueError(f"none of the {len(settings)} settings is admissible; add strength 0 or weaker settings")


def allowed_errors(unsteered: Sequence[bool], *, max_loss: float) -> int:
    """How many of the tasks an admissible setting may answer wrongly.

    As many as the unsteered model, and `max_loss` points of all tasks more, rounded down to whole tasks: 0.5 points of
    600 tasks are 3, and of 40 none.

    Args:
        unsteered: whether the unsteered model answers each task rightly (`exact_matches`).
        max_loss: points, from 0 to 100.

    Raises:
        ValueError: max_loss is no number from 0 to 100.
    """
    if not 0 <= max_loss <= 100:
        raise ValueError(f"max_loss is {max_loss}; expected points of task accuracy, from 0 to 100")
    wrong = sum(not right for right in unsteered)
    more = math.floor(max_loss * len(unsteered) / 100 + 1e-9)  # 0.57 * 10000 / 100 is 56.999... and stands for 57
    return wrong + more


def wrong_answers(model: HuggingFaceModel, rows: Sequence[TokenRow], *, allowed: int, chunk: int = 128) -> int:
    """How many tasks are answered wrongly under the active steering; the count stops once it is above `allowed`.

    Args:
        model: under whatever steering is active.
        rows: of tasks (`task_rows`).
        allowed: more than this need not be counted.
        chunk: rows between two looks at the count.
    """
    chunks = [rows[start : start + chunk] for start in range(0, len(rows), chunk)]
    wrong = 0
    for right in share(chunks, lambda some: exact_matches(model, some)):
        wrong += right.count(False)
        if wrong > allowed:
            break
    return wrong


def keeps_capability(model: HuggingFaceModel, rows: Sequence[TokenRow], *, allowed: int, chunk: int = 128) -> bool:
    """Whether at most `allowed` tasks are answered wrongly under the active steering; see `wrong_answers`."""
    return wrong_answers(model, rows, allowed=allowed, chunk=chunk) <= allowed


# ------------------------------------------------------------------------------------- GrAInS
@dataclass(frozen=True, eq=False)
class Candidate:
    """One point of a grid, with the vectors it steers by. Strength 0 stands for the unsteered model."""

    lam: float
    hp: HyperParameters
    layers: tuple[int, ...]
    fit: Fit
    engine: EngineName = "fast"  # by which it steers
    shifts: tuple[Shift, ...] = ()  # that the fit is made of

    @property
    def name(self) -> str:
        """What it is called beside its strength."""
        return setting_name(self.hp)

    @property
    def made_by(self) -> HyperParameters:
        """What tells its vectors from others."""
        return self.hp

    def setting(self) -> list[Any]:
        """What it is, in plain values; of the unsteered model nothing but the strength counts."""
        return [self.lam, self.hp.as_dict(), list(self.layers)] if self.lam else [0]

    def steering(self, model: HuggingFaceModel) -> Hooks:
        """Equation (7) with this candidate's vectors, strength and layers: `with candidate.steering(model): ...`."""
        return steering_by(self.engine, model.blocks, self.fit.v, lam=self.lam, layers=self.layers)


@dataclass(frozen=True)
class LimitedChoice(Choice[OfAnyMethod]):
    """What was chosen under a limit on what the tasks may lose, with what has to be told beside it.

    Attributes:
        accuracy_unsteered: the unsteered model's accuracy on dev.
        n_dev: number of dev pairs.
        tasks: the cost on the dev tasks; None where there were no tasks, so that nothing was held back.
        left_out: what could not be measured.
        dev: the dev pairs' scores of every setting in `tried`, in its order; the first is the unsteered model.
        dev_prompts: which of them ask the same: clusters of the intervals.
        counted: settings whose errors on the tasks were counted, with their number; the count stops above the limit.
    """

    accuracy_unsteered: float
    n_dev: int
    tasks: TaskCost | None
    left_out: tuple[LeftOut, ...]
    dev: tuple[PairScores, ...]
    dev_prompts: tuple[str, ...]
    counted: tuple[tuple[OfAnyMethod, int], ...] = ()

    def dev_figures(self, number: int) -> dict[str, Any]:
        """What setting `number` of `tried` does on dev beside its accuracy, in plain numbers.

        Accuracy per token; the mean margin in nats; and its change from the unsteered model with a 95 % interval over
        prompts, in pairs, [value, low, high], where there are prompts enough.
        """
        scores = self.dev[number]
        figures: dict[str, Any] = {
            "dev_accuracy_per_token": scores.accuracy_per_token,
            "dev_margin": scores.mean,
        }
        change = change_of(scores.margins, self.dev[0].margins, self.dev_prompts)
        if change:
            figures["dev_margin_change"] = [change.value, change.low, change.high]
        return figures

    def _number_of_best(self) -> int:
        return next(i for i, tried in enumerate(self.tried) if tried.setting is self.best)

    def record(self) -> dict[str, Any]:
        """The choice in plain numbers, as the header of a vectors file keeps it (`grains_ref.vectors.Header`)."""
        record: dict[str, Any] = {
            "lam": self.best.lam,
            "layers": list(self.best.layers),
            "dev_accuracy": self.accuracy,
            "dev_accuracy_unsteered": self.accuracy_unsteered,
            "dev_pairs": self.n_dev,
            "dev_curve": self._dev_curve(),
            **self.dev_figures(self._number_of_best()),
        }
        if self.tasks:
            record |= {
                "task_accuracy": self.tasks.accuracy,
                "task_accuracy_unsteered": self.tasks.accuracy_unsteered,
                "tasks": self.tasks.n,
                "max_loss": self.tasks.max_loss,
            }
        return record

    def _dev_curve(self) -> list[list[float]]:
        """[strength, accuracy on dev] of every strength that was tried with the chosen vectors and layers, and of 0."""
        curve = []
        for tried in self.tried:
            candidate = tried.setting
            is_same = candidate.made_by == self.best.made_by and candidate.layers == self.best.layers
            if is_same or candidate.lam == 0:
                curve.append([candidate.lam, tried.accuracy])
        return sorted(curve)


SweepChoice: TypeAlias = LimitedChoice[Candidate]


def sweep(
    model: HuggingFaceModel,
    examples: Sequence[Example],
    dev: Sequence[PreferencePair],
    tasks: Sequence[Task] = (),
    *,
    grid: Grid,
    max_loss: float = 0.5,
    on_progress: OnProgress | None = None,
    work: WorkFolder | None = None,
    engine: EngineName = "fast",
    memory: str = DEFAULT_SHARE,
) -> SweepChoice:
    """Make vectors of the examples by every hyper-parameter of the grid, and choose among all settings on dev data.

    Attribution, the expensive part, is computed once per kind of attribution (usually once), shifts once per k, and a
    fit once per set of hyper-parameters. The unsteered model is one of the settings, and the gentlest.

    A fit that has no direction, and a strength so large that the scores overflow, are left out and told.

    Args:
        model: not steered; it is steered and released again for every setting.
        examples: to make vectors of (`HuggingFaceModel.example`, `grains_ref.fitting.checked_examples`).
        dev: other pairs, to choose on.
        tasks: what must not suffer. Without tasks every setting is admissible.
        grid: what is tried.
        max_loss: how many points of task accuracy a setting may cost.
        on_progress: called with what is in work, how much of it is done, and how much there is.
        work: where everything that is finished is kept (`open_work_folder(path, work="sweep")`); the same sweep, or one
            with another grid, goes on from there and gives the same bits.
        engine: what makes the vectors and steers by them: `grains_ref.fast`, or the reference.
        memory: the share of the free memory that the fast engine may take, or an amount.

    Raises:
        WorkFolderError: the folder holds another sweep, or a file in it is damaged.
        ValueError: no examples, no dev pairs, or a dev prompt that is also an example's.
        DegenerateShiftsError: no fit has a direction.
        FloatingPointError: an attribution, or a score of the unsteered model, is not finite.
    """
    on_progress = on_progress or _tell_nobody
    _check_inputs(model, examples, dev, grid)
    dev_rows, rows = pair_rows(model, dev), task_rows(model, tasks)
    _check_apart(examples, dev_rows)
    kept_tokens = work.recorded_number("pass_tokens") if work else 0
    chosen = common_engine(engine, model, examples, grid.hps[0], memory=memory, kept=kept_tokens)
    measured = Measured(work, lambda: inputs_of(model, examples, dev_rows, rows, engine=chosen, memory=memory))
    unsteered = measured.right(len(rows), lambda: exact_matches(model, rows))
    allowed_errors(unsteered, max_loss=max_loss)  # refuses before the work what is no limit
    fits, left_out = all_fits(model, chosen, examples, grid.hps, on_progress, measured)
    candidates = _gentlest_first(model, grid, fits, engine)
    return choose_under_limit(
        model,
        candidates,
        dev_rows,
        rows,
        unsteered=unsteered,
        max_loss=max_loss,
        on_progress=on_progress,
        measured=measured,
        left_out=left_out,
    )


def choose_under_limit(
    model: HuggingFaceModel,
    candidates: Sequence[OfAnyMethod],
    dev_rows: Sequence[TokenRow],
    rows: Sequence[TokenRow],
    *,
    unsteered: Sequence[bool],
    max_loss: float,
    on_progress: OnProgress,
    measured: Measured,
    left_out: list[LeftOut],
) -> LimitedChoice[OfAnyMethod]:
    """The rule for candidates of any method; the unsteered model is the first of them.

    rows: of the tasks.  unsteered: which of them the plain model answers rightly.  left_out: grows by what overflows.
    """
    allowed = allowed_errors(unsteered, max_loss=max_loss)
    missing = [candidate for candidate in candidates if not measured.has_dev(candidate.setting())]
    computed = share(missing, functools.partial(_figures_on_dev, model, dev_rows))
    scores: dict[OfAnyMethod, PairScores] = {}
    for done, candidate in enumerate(candidates, start=1):
        try:
            scores[candidate] = measured.dev(
                candidate.setting(), functools.partial(next, computed), n=len(dev_rows) // 2
            )
        except ArithmeticError as error:
            if candidate.lam == 0:
                raise
            left_out.append(LeftOut(f"lam {candidate.lam:g}, {candidate.name}", str(error)))
        on_progress("dev", done, len(candidates))

    wrong: dict[OfAnyMethod, int] = {}

    def admissible(candidate: OfAnyMethod) -> bool:
        def count() -> int:
            if not rows:
                return 0
            with candidate.steering(model):
                return wrong_answers(model, rows, allowed=allowed)

        try:
            wrong[candidate] = measured.wrong([*candidate.setting(), allowed], count)
        except ArithmeticError:  # it spoils the tasks so thoroughly that they have no score
            return False
        return wrong[candidate] <= allowed

    choice = choose(list(scores), accuracy=lambda candidate: scores[candidate].accuracy, admissible=admissible)
    cost = TaskCost(len(rows), wrong[choice.best], [*unsteered].count(False), max_loss)
    return LimitedChoice(
        best=choice.best,
        accuracy=choice.accuracy,
        tried=choice.tried,
        accuracy_unsteered=scores[candidates[0]].accuracy,
        n_dev=len(dev_rows) // 2,
        tasks=cost if rows else None,
        left_out=tuple(left_out),
        dev=tuple(scores[tried.setting] for tried in choice.tried),
        dev_prompts=tuple(prompts_of(dev_rows)),
        counted=tuple(wrong.items()),
    )


def _tell_nobody(what: str, done: int, total: int) -> None:
    """Progress that nobody asked for."""


def _check_inputs(
    model: HuggingFaceModel, examples: Sequence[Example], dev: Sequence[PreferencePair], grid: Grid
) -> None:
    """Refuse before the work what would fail after it."""
    if not examples:
        raise ValueError("no examples to make vectors of; give pairs that are not the dev pairs")
    if not dev:
        raise ValueError("no dev pairs to choose on; give pairs that are not the examples")
    n_layers = len(model.blocks)
    for layers in grid.layer_sets:
        if len(set(layers)) < len(layers) or not set(layers) <= set(range(n_layers)):
            raise ValueError(f"layers must be different numbers from 0 to {n_layers - 1}; got {list(layers)}")


def _check_apart(examples: Sequence[Example], dev_rows: Sequence[TokenRow]) -> None:
    """Refuse to choose on the prompts that made the vectors."""
    fitted = {(tuple(example.encoded.ids.tolist()), example.encoded.picture) for example in examples}
    asked = {(row.prompt, row.picture_digest) for row in dev_rows}
    if shared := len(fitted & asked):
        raise ValueError(f"{shared} prompts are in both the examples and dev; choosing on them flatters the vectors")


def _gentlest_first(
    model: HuggingFaceModel, grid: Grid, fits: dict[HyperParameters, FitOfShifts], engine: EngineName
) -> list[Candidate]:
    """Every setting of the grid that has vectors, the unsteered model first; equal strengths in the grid's order."""
    layer_sets = [layers or tuple(range(len(model.blocks))) for layers in grid.layer_sets]
    first_hp, first = next(iter(fits.items()))
    candidates = [Candidate(0.0, first_hp, layer_sets[0], first.fit, engine, first.shifts)]
    for lam in sorted(grid.lams, key=abs):
        if lam == 0:
            continue
        for hp, made in fits.items():
            candidates += [Candidate(lam, hp, layers, made.fit, engine, made.shifts) for layers in layer_sets]
    return candidates


def _figures_on_dev(model: HuggingFaceModel, dev_rows: Sequence[TokenRow], candidate: AnyCandidate) -> Figures:
    return scores_or_overflow(lambda: _on_dev(model, candidate, dev_rows))


def _on_dev(model: HuggingFaceModel, candidate: AnyCandidate, dev_rows: Sequence[TokenRow]) -> PairScores:
    """The dev pairs' margins under a candidate's steering.

    Raises:
        FloatingPointError: a margin is not finite.
    """
    with candidate.steering(model):
        scores = score_pairs(model, dev_rows)
    check_finite(scores)
    return scores
