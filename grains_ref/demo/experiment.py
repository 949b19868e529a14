"""A demo: rows and attributions of a planted world, on the models of its training seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from grains_ref.data import PreferencePair, content_digest
from grains_ref.demo.bench import Outcome
from grains_ref.demo.lab import Lab
from grains_ref.demo.planted import planted_lab
from grains_ref.demo.rows import TEXT, VISUAL, attribution_settings
from grains_ref.demo.workers import Tick
from grains_ref.evaluation.measures import row_margins
from grains_ref.fast import EngineName
from grains_ref.fitting import steering_vectors
from grains_ref.grains import Attribution, Encoded, Selection
from grains_ref.methods.core import Setting
from grains_ref.vectors import SteeringVectors

N_ANSWERS = 8  # test prompts whose answers are shown
LONGEST_ANSWER = 12  # tokens; the worlds' answers are shorter
Detection = Callable[[Encoded, Tensor, Selection], dict[str, float]]


@dataclass(frozen=True)
class Demo:
    """What a demo runs and shows: a view on the rows of `rows`."""

    rows: Mapping[str, str]  # row -> what the demo's table calls it
    detection: Detection  # how well one example's scores (T,) find its planted causes
    n_exhibits: int  # steering examples to look at
    further: Callable[[Lab], Any]  # what else is measured of a lab, for the demo's own figures
    engine: EngineName = "fast"  # that computes the stages


@dataclass(frozen=True)
class Exhibit:
    """One steering example to look at: its scores by Integrated Gradients, and the causes that were planted."""

    pair: PreferencePair
    encoded: Encoded
    attribution: Attribution
    causes: Selection

    @property
    def a(self) -> Tensor:
        """Its scores, (T,)."""
        return self.attribution.a


@dataclass(frozen=True)
class Steered:
    """What the paper's setting, as chosen on dev, does to test prompts: to look at.

    margins: pair, log P(chosen) - log P(rejected) before and after, in nats.
    answers: pair, the plain model's greedy answer, the steered one's.
    """

    strength: float
    margins: tuple[tuple[PreferencePair, float, float], ...]
    answers: tuple[tuple[PreferencePair, str, str], ...]


@dataclass(frozen=True)
class SeedResult:
    """What a demo measures on one training seed."""

    seed: int
    outcomes: dict[str, tuple[Outcome, ...]]  # row -> one outcome, or one for each draw
    detection: dict[str, dict[str, float]]  # attribution method -> how well it finds the planted causes
    exhibits: tuple[Exhibit, ...]
    vectors: SteeringVectors  # by the paper's setting
    further: Any
    steered: Steered | None = None  # None where the unsteered model was chosen


def run_seed(demo: Demo, world: str, folder: Path, seed: int, tick: Tick) -> SeedResult:
    """Diagnose, steer and measure the model of one training seed; folder: where the world's data was written."""
    lab = planted_lab(world, seed, folder)
    lab.engine = demo.engine
    return run_lab(demo, lab, seed, tick)


def run_lab(demo: Demo, lab: Lab, seed: int, tick: Tick) -> SeedResult:
    """The same on a lab.  Every row is one tick."""

    def note(what: str) -> None:
        tick(f"seed {seed}: {what}", 0)

    lab.bench.note = note
    examples = range(len(lab.steer))
    detection = {}
    for method, hp in attribution_settings(lab.paper).items():
        note(f"attribution: {method}")
        scores = [lab.scores(hp, i) for i in examples]
        of_examples = [demo.detection(lab.example(i).encoded, scores[i], lab.causes[i]) for i in examples]
        detection[method] = _means(of_examples)
    rows = VISUAL if lab.is_visual else TEXT
    outcomes = {}
    steered: Steered | None = None
    for row in demo.rows:
        choices = [lab.bench.choose(settings) for settings in rows[row](lab)]
        outcomes[row] = tuple(lab.bench.test(choice) for choice in choices)
        if row == "GrAInS":
            steered = _steered(lab, choices[0].best)
        tick(f"seed {seed}: {row}", 1)
    return SeedResult(
        seed=seed,
        outcomes=outcomes,
        detection=detection,
        exhibits=tuple(
            Exhibit(lab.steer[i], lab.example(i).encoded, lab.attribution(lab.paper, i), lab.causes[i])
            for i in examples[: demo.n_exhibits]
        ),
        vectors=_vectors(lab),
        further=demo.further(lab),
        steered=steered,
    )


def _steered(lab: Lab, setting: Setting) -> Steered | None:
    """Margins of all test pairs and a few greedy answers, without and with a setting; None at strength 0."""
    if not setting.strength:
        return None
    pairs = lab.test[0]
    few = pairs[:N_ANSWERS]
    images = [pair.image for pair in few] if lab.is_visual else []

    def measured() -> tuple[list[float], list[str]]:
        answers = lab.model.generate([pair.prompt for pair in few], images=images, max_new_tokens=LONGEST_ANSWER)
        return row_margins(lab.model, lab.bench.test_rows), answers

    before, plain = measured()
    with setting.steering():
        after, steered = measured()
    return Steered(
        strength=setting.strength,
        margins=tuple(zip(pairs, before, after, strict=True)),
        answers=tuple(zip(few, plain, steered, strict=True)),
    )


def _vectors(lab: Lab) -> SteeringVectors:
    """The paper's setting on all steering pairs, ready to be saved."""
    examples = [lab.example(i) for i in range(len(lab.steer))]
    digest = content_digest(lab.steer)
    return steering_vectors(lab.model, lab.fit(lab.paper), lab.paper, digest, examples, engine=lab.engine)


def _means(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of several examples with the same figures."""
    return {name: sum(of_example[name] for of_example in figures) / len(figures) for name in figures[0]}
