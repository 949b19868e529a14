"""The live check itself: every check on every pair, how far off the port is, what is allowed, and what that means."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch

from grains_ref.conformance.live.answers import FUNCTIONS, Answers, MissingFunction
from grains_ref.conformance.live.distances import (
    BadAnswer,
    apart,
    fingerprints_apart,
    length,
    rows_apart,
    same,
    scores_apart,
    to_numpy,
)
from grains_ref.conformance.live.reference import (
    PADDING,
    Values,
    attribution_of,
    contrast_of,
    objective_of,
    steer_of,
    upcast,
    ways_of,
)
from grains_ref.conformance.ports import told_by
from grains_ref.data import PreferencePair
from grains_ref.grains import mask, select
from grains_ref.models import HuggingFaceModel

Status = Literal["passed", "failed", "skipped", "undecidable"]

THREE = 3.0  # times the noise is allowed
HOPELESS = 0.5  # an allowed error above this tells nothing
STRENGTH = 0.3  # |lam v| / |h| at the last prompt token: leaving it out anywhere shows
FLOORS = {  # noise that is allowed for at least; on tiny float32 models the tests' broken ports are 7,000 times as far
    "attribution": 1e-5,
    "exchanged responses negate a": 1e-5,
    "contrast": 1e-5,
    "steer": 1e-5,
    "lam = 0 changes nothing": 1e-5,
    "only the product of lam and v counts": 1e-5,
}
LAM, SCALE = 2.0, 4.0  # powers of two: the products are the same in every dtype


@dataclass(frozen=True)
class LiveResult:
    """One check on one pair; `seed` is None where nothing was drawn, `error` and `allowed` are relative."""

    check: str
    pair: str
    seed: int | None
    status: Status
    error: float = 0.0
    allowed: float = 0.0
    message: str = ""


def check_live(
    model: HuggingFaceModel,
    pairs: Sequence[PreferencePair],
    port: Any,
    *,
    seeds: Sequence[int] = (0,),
    path: Any = None,
    m: int = 5,
    k: int = 3,
    oracle: bool = True,
) -> list[LiveResult]:
    """Every check on every pair; those that draw something (tokens, vectors) once per seed.

    port: a module, or any object with functions of the table in `live`.
    path: what its `LOAD` gets; default `model` itself.
    oracle: False leaves out the comparison with a float32 copy of the model, which takes twice the memory of a
    half-precision model on top; the relations and a comparison within the model's own dtype remain.

    Raises:
        ValueError: there are no pairs, or the port has none of the functions.
    """
    known = [name for name in FUNCTIONS if callable(getattr(port, name, None))]
    if not pairs or not known:
        problem = "no pairs were given" if not pairs else f"the port defines none of {', '.join(FUNCTIONS)}"
        raise ValueError(f"nothing to check: {problem}")
    source = model if path is None else path
    handle = _loaded(port, source)
    reference = upcast(model) if oracle else model
    findings: list[Finding] = []
    for i, pair in enumerate(pairs):
        checks = PairChecks(reference, Answers(model, pair, port, handle, m))
        findings += checks.run(None, checks.fixed(pairs[(i + 1) % len(pairs)]))
        for seed in seeds:
            findings += checks.run(seed, checks.drawn(np.random.default_rng([seed, i]), k))
    return judged(findings, model.hf.dtype)


def _loaded(port: Any, source: Any) -> Any:
    """What the port's `LOAD` makes of the model; the model itself without one.

    Raises:
        ValueError: it raised, or tried to end the program.
    """
    if not hasattr(port, "LOAD"):
        return source
    try:
        return port.LOAD(source)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ValueError(f"the port's LOAD raised {told_by(error)}") from error


class Noisy(NamedTuple):
    """What a check measured that rounding blurs: the port's error, and the worst one of the reference's legal ways."""

    error: float
    noise: float
    message: str


class Exact(NamedTuple):
    """What a check measured that does not depend on how noisy the pair is."""

    error: float
    message: str
    allowed: float = 0.0


@dataclass(frozen=True)
class Finding:
    """What a check measured on one pair, before it is known how noisy the others are; or why it measured nothing."""

    check: str
    pair: str
    seed: int | None
    measured: Noisy | Exact | MissingFunction | BadAnswer


def judged(findings: Sequence[Finding], dtype: torch.dtype) -> list[LiveResult]:
    """Allow every pair three times the noise of the noisiest one: of a few samples, all may be small by luck."""
    pooled: dict[str, float] = {}
    for finding in findings:
        measured = finding.measured
        if isinstance(measured, Noisy) and THREE * measured.noise <= HOPELESS:
            pooled[finding.check] = max(measured.noise, pooled.get(finding.check, 0.0))
    return [_judged(finding, max(pooled.get(finding.check, 0.0), floor(finding.check, dtype))) for finding in findings]


def _judged(finding: Finding, least_noise: float) -> LiveResult:
    place = (finding.check, finding.pair, finding.seed)
    measured = finding.measured
    if isinstance(measured, MissingFunction):
        return LiveResult(*place, "skipped", message=str(measured))
    if isinstance(measured, BadAnswer):
        return LiveResult(*place, "failed", math.inf, message=str(measured))
    allowed = measured.allowed if isinstance(measured, Exact) else THREE * max(measured.noise, least_noise)
    if measured.error > allowed:
        return LiveResult(*place, "failed", measured.error, allowed, measured.message)
    return LiveResult(*place, "undecidable" if allowed > HOPELESS else "passed", measured.error, allowed)


def rounding(dtype: torch.dtype) -> float:
    """Below this no noise is believed in any check: a few samples may agree by luck."""
    half = dtype in (torch.float16, torch.bfloat16)
    return (0.25 if half else 4) * torch.finfo(dtype).eps


def floor(check: str, dtype: torch.dtype) -> float:
    """The least noise that is allowed for in a check: what its planted bugs leave far behind them."""
    return max(rounding(dtype), FLOORS.get(check, 0.0))


Checks: TypeAlias = dict[str, Callable[[], Noisy | Exact]]


@dataclass
class PairChecks:
    """The checks of one pair; each returns error, allowed error and an explanation."""

    reference: HuggingFaceModel
    answers: Answers
    known: dict[tuple[Any, ...], tuple[Values, float]] = field(default_factory=dict)  # what `_oracle` found

    @property
    def model(self) -> HuggingFaceModel:
        """The model in its own dtype."""
        return self.answers.model

    @property
    def pair(self) -> PreferencePair:
        """The pair that is checked."""
        return self.answers.pair

    def fixed(self, other: PreferencePair) -> Checks:
        """Those in which nothing is drawn; `other` is the neighbour in a batch."""
        return {
            "objective": self.objective,
            "attribution": self.attribution,
            "exchanged responses negate f": self.exchanged_f,
            "exchanged responses negate a": self.exchanged_a,
            "empty sets shift nothing": self.empty_sets,
            "a batch of two is two single rows": lambda: self.batch(other),
        }

    def drawn(self, draw: np.random.Generator, k: int) -> Checks:
        """Those with drawn tokens, vectors or scores."""
        v, (pos, neg), selection_seed = self.vector(draw), self.tokens(draw, k), int(draw.integers(1 << 30))
        return {
            "contrast": lambda: self.contrast(pos, neg),
            "steer": lambda: self.steer(v),
            "lam = 0 changes nothing": lambda: self.no_strength(v),
            "only the product of lam and v counts": lambda: self.product(v),
            "norms are kept": lambda: self.norms(v, (pos, neg)),
            "only eligible tokens are selected": lambda: self.selected(np.random.default_rng(selection_seed), k),
        }

    def run(self, seed: int | None, checks: Checks) -> Iterator[Finding]:
        """Every check, and what it measured."""
        for name, check in checks.items():
            measured: Noisy | Exact | MissingFunction | BadAnswer
            try:
                measured = check()
            except (MissingFunction, BadAnswer) as problem:
                measured = problem
            except (TypeError, ValueError, ArithmeticError, LookupError) as problem:  # what no rule foresaw
                measured = BadAnswer(f"the answer cannot be judged: {told_by(problem)}")
            yield Finding(name, self.pair.id, seed, measured)

    # ------------------------------------------------------------------------- against the oracle
    def objective(self) -> Noisy:
        """live_objective, relative to the size of both log-probabilities."""
        got = self.answers.objective(self.pair.chosen, self.pair.rejected)
        want, noise = self._oracle(objective_of)
        name = max(want, key=lambda name: apart(got[name], want[name], self._scale(want)))
        advice = "Sum over all response tokens, each predicted by the row before it; same token ids?"
        return Noisy(self._worst(got, want), noise, f"{name} is {_beside(got[name], want[name])}. {advice}")

    def attribution(self) -> Noisy:
        """live_attribution, relative to the largest score."""
        got = self.answers.attribution(self.pair.chosen, self.pair.rejected)
        want, noise = self._oracle(attribution_of, m=self.answers.m)
        worst = int(np.abs(got - want["a"]).argmax())
        message = f"the score of token {worst} is {_beside(got[worst], want['a'][worst])}"
        return Noisy(scores_apart(got, want["a"]), noise, message)

    def contrast(self, pos: list[int], neg: list[int]) -> Noisy:
        """Layers are judged together, but for those whose shift is itself no more than rounding errors."""
        got = self.answers.contrast(pos, neg)
        want = contrast_of(self.reference, self.pair, pos=pos, neg=neg)
        ways = [contrast_of(self.model, self.pair, way, pos=pos, neg=neg) for way in ways_of(self.model)]
        rows: list[tuple[float, float, str]] = []  # error, noise, where
        for name, right in want.items():
            others, whole = [way[name] for way in ways], isinstance(got[name], Mapping)
            if whole:  # one fingerprint for all layers
                others, right = [other.reshape(1, -1) for other in others], right.reshape(1, -1)
            noise = np.max([rows_apart(name, other, right) for other in others], axis=0)
            errors = rows_apart(f"live_contrast: {name}", got[name], want[name])
            where = [f"{name}, all layers"] if whole else [f"{name}, layer {layer}" for layer in range(len(right))]
            rows += zip(errors.tolist(), noise.tolist(), where, strict=True)
        told = [row for row in rows if THREE * row[1] <= HOPELESS] or rows
        error, _, worst = max(told)
        noise_of_all = max(noise for _, noise, _ in told)
        advice = "expected: the output of block l = 0..L-1 before the final norm, at the last prompt token"
        return Noisy(error, noise_of_all, f"{worst} differs most; {advice}. Masked tokens: pos {pos}, neg {neg}")

    def steer(self, v: np.ndarray) -> Noisy:
        """live_steer, row by row of the logits."""
        got = self.answers.steer(v, LAM)
        want, noise = self._oracle(steer_of, v=v, lam=LAM)
        errors = rows_apart("live_steer", got, want["logits"])
        advice = "every block, every position, norms restored per token, lam as it is"
        return Noisy(float(errors.max()), noise, f"row {int(errors.argmax())} of the logits differs most; {advice}")

    # ------------------------------------------------------------------------- relations
    def exchanged_f(self) -> Noisy:
        """f(chosen, rejected) = -f(rejected, chosen)."""
        here = self.answers.objective(self.pair.chosen, self.pair.rejected)
        there = self.answers.objective(self.pair.rejected, self.pair.chosen)
        _, noise = self._oracle(objective_of)
        error = apart(here["f"], -there["f"], self._scale(here))
        with_exchange = _beside(there["f"], -here["f"])
        return Noisy(error, noise, f"with chosen and rejected exchanged f is {with_exchange}")

    def exchanged_a(self) -> Noisy:
        """The same for every score."""
        here = self.answers.attribution(self.pair.chosen, self.pair.rejected)
        there = self.answers.attribution(self.pair.rejected, self.pair.chosen)
        _, noise = self._oracle(attribution_of, m=self.answers.m)
        advice = "the scores do not change sign with the preference: is only one response attributed, or an absolute"
        return Noisy(scores_apart(-there, here), noise, f"{advice} value taken?")

    def empty_sets(self) -> Exact:
        """Two sets without tokens: both shifts are exactly zero."""
        got = self.answers.contrast([], [])
        size = max(length(got[name]) for name in got)
        return Exact(size, "with nothing masked the shift must be exactly zero, no rounding errors")

    def no_strength(self, v: np.ndarray) -> Noisy | Exact:
        """At lam = 0 or v = 0 the model is the unsteered one, bit for bit."""
        unsteered = self.answers.steer(v, 0.0)
        for other in (self.answers.steer(-SCALE * v, 0.0), self.answers.steer(0 * v, LAM)):
            if not same(unsteered, other):
                return Exact(math.inf, "lam = 0, whatever v is, and v = 0 must give the same logits bit for bit")
        want, noise = self._oracle(steer_of, v=v, lam=0.0)
        error = float(rows_apart("live_steer", unsteered, want["logits"]).max())
        return Noisy(error, noise, "with lam = 0 the logits are not the unsteered model's")

    def product(self, v: np.ndarray) -> Noisy:
        """A longer v at a strength that is weaker by the same factor gives the same logits."""
        one, other = self.answers.steer(v, LAM), self.answers.steer(SCALE * v, LAM / SCALE)
        _, noise = self._oracle(steer_of, v=v, lam=LAM)
        if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
            error = float(rows_apart("live_steer", other, one).max())
        else:
            error = 0.0 if same(one, other) else fingerprints_apart(one, other)
        return Noisy(
            error, noise, f"{SCALE:g} v at lam / {SCALE:g} is not v at lam: is v normalised, or lam used twice?"
        )

    def norms(self, v: np.ndarray, tokens: tuple[list[int], list[int]]) -> Exact:
        """live_edit on real hidden states keeps every token's norm."""
        h = self._states(*tokens)
        got = self.answers.edit(h, v[-1], LAM)
        ratio = np.linalg.norm(got, axis=-1) / np.linalg.norm(h, axis=-1)
        worst = np.unravel_index(np.abs(ratio - 1).argmax(), ratio.shape)
        message = f"row {worst[0]}, token {worst[1]} came out {ratio[worst]:.9g} times as long; eq. (8) keeps its norm"
        return Exact(float(np.abs(ratio - 1).max()), message, 4 * rounding(self.model.hf.dtype))

    def selected(self, draw: np.random.Generator, k: int) -> Exact:
        """live_selection on drawn scores, where tokens that may not be selected have the largest."""
        n = len(self.model.encode(self.pair.prompt, self.pair.image).ids) + PADDING
        a, eligible = draw.normal(size=n), draw.random(n) < 0.6
        eligible[:PADDING] = False
        a[~eligible] *= 10  # what may not be selected would win
        found = self.answers.selection(a, eligible, k)
        want = select(torch.from_numpy(a), k=k, eligible=torch.from_numpy(eligible))
        wrong = [j for name in found for j in found[name] if not 0 <= j < n or not eligible[j]]
        message = f"tokens {wrong} were selected, which are padding or may not be selected"
        if not wrong:
            message = f"selected {found}; expected pos {list(want.pos)}, neg {list(want.neg)}"
        return Exact(float(found != {"pos": list(want.pos), "neg": list(want.neg)}), message)

    def batch(self, other: PreferencePair) -> Noisy:
        """live_batch on two pairs against live_objective on each."""
        neighbours = (self.pair, other)
        error = noise = 0.0
        for pair, row in zip(neighbours, self.answers.batch(neighbours), strict=True):
            single = PairChecks(self.reference, replace(self.answers, pair=pair))
            alone = single.answers.objective(pair.chosen, pair.rejected)
            error = max(error, self._worst(row, alone))
            noise = max(noise, single._oracle(objective_of)[1])
        advice = "a row changes with its neighbour: attention mask, positions, or padding that is scored?"
        return Noisy(error, noise, advice)

    # ------------------------------------------------------------------------- what is drawn
    def _states(self, pos: Sequence[int] = (), neg: Sequence[int] = ()) -> np.ndarray:
        """Real hidden states, (3, L, d): of the prompt, and with either set masked, after every block."""
        encoded = self.model.encode(self.pair.prompt, self.pair.image)
        x, zero = encoded.embeds, torch.zeros_like(encoded.embeds)
        with torch.no_grad():
            return to_numpy(self.model.residuals(encoded, torch.stack([x, mask(x, pos, zero), mask(x, neg, zero)])))

    def vector(self, draw: np.random.Generator) -> np.ndarray:
        """(L, d) float32, per layer of such a length that LAM times it is STRENGTH times the state's."""
        lengths = np.linalg.norm(self._states()[0], axis=-1, keepdims=True)
        v = draw.normal(size=(len(self.model.blocks), self.model.width))
        return (v / np.linalg.norm(v, axis=-1, keepdims=True) * lengths * STRENGTH / LAM).astype(np.float32)

    def tokens(self, draw: np.random.Generator, k: int) -> tuple[list[int], list[int]]:
        """Two disjoint sets of at most k tokens of the prompt."""
        order = draw.permutation(len(self.model.encode(self.pair.prompt, self.pair.image).ids)).tolist()
        k = max(1, min(k, len(order) // 2))
        return order[:k], order[k : 2 * k]

    # ------------------------------------------------------------------------- what is right
    def _oracle(self, compute: Callable[..., Values], **inputs: Any) -> tuple[Values, float]:
        """The oracle's values, and how far the reference itself is off in the model's dtype."""
        values = (value.tobytes() if isinstance(value, np.ndarray) else str(value) for value in inputs.values())
        key = (compute.__name__, *values)
        if key not in self.known:
            want = compute(self.reference, self.pair, **inputs)
            others = (compute(self.model, self.pair, way, **inputs) for way in ways_of(self.model))
            self.known[key] = want, max(self._worst(other, want) for other in others)
        return self.known[key]

    def _worst(self, got: Mapping[str, Any], want: Values) -> float:
        if "f" in want:
            return max(apart(got[name], want[name], self._scale(want)) for name in want)
        if "a" in want:
            return scores_apart(got["a"], want["a"])
        return max(float(rows_apart(name, got[name], want[name]).max()) for name in want)

    @staticmethod
    def _scale(objective: Mapping[str, Any]) -> float:
        return abs(float(objective["log_p_pos"])) + abs(float(objective["log_p_neg"]))


def _beside(got: Any, want: Any) -> str:
    """Both numbers and their difference, in nats: two that look alike may differ by more than is allowed."""
    got, want = float(got), float(want)
    return f"{got:.9g} nats, expected {want:.9g} (off by {got - want:+.2e})"
