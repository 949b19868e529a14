"""The live check itself: every check on every pair, and how far off the port is; `judging` says what that means."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from grains_ref.conformance.budgets import load_budgets
from grains_ref.conformance.compare import judge, right_now
from grains_ref.conformance.live.answers import FUNCTIONS, Answers, MissingFunction, NothingToAsk
from grains_ref.conformance.live.distances import (
    BadAnswer,
    apart,
    beside,
    fingerprints_apart,
    length,
    rows_apart,
    rows_beside,
    same,
    scale_of,
    scores_apart,
    to_numpy,
    values_apart,
)
from grains_ref.conformance.live.judging import (
    HOPELESS,
    TIMES,
    Exact,
    Finding,
    LiveResult,
    Measured,
    Noisy,
    judged,
    rounding,
)
from grains_ref.conformance.live.reference import (
    PADDING,
    Oracle,
    attribution_of,
    objective_of,
    steer_of,
    upcast,
)
from grains_ref.conformance.ports import told_by
from grains_ref.conformance.stages import run_oracle
from grains_ref.data import FieldError, PreferencePair
from grains_ref.data.pairs import Message, Prompt, shortened
from grains_ref.grains import DegenerateShiftsError, mask, select
from grains_ref.models import HuggingFaceModel

STRENGTH = 0.3  # |lam v| / |h| at the last prompt token: leaving it out anywhere shows
LAM, SCALE = 2.0, 4.0  # powers of two: the products are the same in every dtype
MOST_SHIFTS = 12  # of both sides together, for aggregation


def check_live(
    model: HuggingFaceModel,
    pairs: Sequence[PreferencePair],
    port: Any,
    *,
    seeds: Sequence[int] = (0,),
    path: Any = None,
    m: int = 5,
    k: int = 3,
    oracle: bool | Oracle = True,
) -> list[LiveResult]:
    """Every check on every pair; those that draw something (tokens, vectors) once per seed.

    port: a module, or any object with functions of the table in `live`.
    path: what its `LOAD` gets; default `model` itself.
    oracle: False leaves out the comparison with a float32 copy of the model, which takes twice the memory of a
    half-precision model on top; the relations and a comparison within the model's own dtype remain. An `Oracle` of
    this model that remembers serves several ports.

    Raises:
        ValueError: there are no pairs, or the port has none of the functions.
        RowError: a pair whose answers are the same tokens, or that the model's context does not hold.
    """
    known = [name for name in FUNCTIONS if callable(getattr(port, name, None))]
    if not pairs or not known:
        problem = "no pairs were given" if not pairs else f"the port defines none of {', '.join(FUNCTIONS)}"
        raise ValueError(f"nothing to check: {problem}")
    source = model if path is None else path
    handle = _loaded(port, source)
    if not isinstance(oracle, Oracle):
        oracle = Oracle(model, upcast(model) if oracle else model)
    for pair in pairs:
        _check_pair(model, pair)
    findings: list[Finding] = []
    for i, pair in enumerate(pairs):
        checks = PairChecks(oracle, Answers(model, pair, port, handle, m))
        findings += checks.run(None, checks.fixed(pairs[(i + 1) % len(pairs)]))
        for seed in seeds:
            findings += checks.run(seed, checks.drawn(np.random.default_rng([seed, i]), k))
        oracle.forget()
    return judged(findings, model.hf.dtype)


def _check_pair(model: HuggingFaceModel, pair: PreferencePair) -> None:
    """What a fit refuses is refused here too: of answers of the same tokens f is 0, and every relative error infinite.

    Raises:
        RowError: with the row's place.
    """
    try:
        model.example(pair.prompt, pair.chosen, pair.rejected, pair.image)
    except FieldError as problem:
        raise pair.error(problem.field, problem.problem) from None


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


Checks: TypeAlias = dict[str, Callable[[], Measured]]


class Drawn(NamedTuple):
    """Two disjoint sets of prompt tokens, one of which holds the last token, whose state is read."""

    pos: list[int]
    neg: list[int]
    with_last: str  # "delta_pos" or "delta_neg"

    @property
    def without_last(self) -> str:
        """The shift of the other set."""
        return "delta_neg" if self.with_last == "delta_pos" else "delta_pos"


@dataclass
class PairChecks:
    """The checks of one pair; each returns error, allowed error and an explanation."""

    oracle: Oracle
    answers: Answers

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
            "a batch is its single rows": lambda: self.batch(other),
        }

    def drawn(self, draw: np.random.Generator, k: int) -> Checks:
        """Those with drawn tokens, vectors or scores."""
        v, tokens, selection_seed = self.vector(draw), self.tokens(draw, k), int(draw.integers(1 << 30))
        single_tokens = draw.permutation(self.length).tolist()[:MOST_SHIFTS]
        if len(single_tokens) % 2:  # both sides have as many shifts
            single_tokens.pop()
        return {
            "contrast": lambda: self.contrast(tokens, tokens.with_last),
            "contrast of earlier tokens": lambda: self.contrast(tokens, tokens.without_last),
            "aggregation": lambda: self.aggregation(single_tokens),
            "steer": lambda: self.steer(v),
            "lam = 0 changes nothing": lambda: self.no_strength(v),
            "only the product of lam and v counts": lambda: self.product(v),
            "norms are kept": lambda: self.norms(v, tokens),
            "only eligible tokens are selected": lambda: self.selected(np.random.default_rng(selection_seed), k),
        }

    def run(self, seed: int | None, checks: Checks) -> Iterator[Finding]:
        """Every check, and what it measured."""
        for name, check in checks.items():
            measured: Measured
            try:
                measured = check()
            except (MissingFunction, NothingToAsk, BadAnswer) as problem:
                measured = problem
            except (TypeError, ValueError, ArithmeticError, LookupError) as problem:  # what no rule foresaw
                measured = BadAnswer(f"the answer cannot be judged: {told_by(problem)}")
            yield Finding(name, self.pair.id, seed, measured)

    # ------------------------------------------------------------------------- against the oracle
    def objective(self) -> Noisy:
        """live_objective, relative to the size of both log-probabilities."""
        got = self.answers.objective(self.pair.chosen, self.pair.rejected)
        want, noise = self.oracle.values(objective_of, self.pair)
        name = max(want, key=lambda name: apart(got[name], want[name], scale_of(want)))
        advice = "Sum in float32 over all response tokens, each predicted by the row before it; same token ids?"
        return Noisy(values_apart(got, want), noise, f"{name} is {beside(got[name], want[name])}. {advice}")

    def attribution(self) -> Noisy:
        """live_attribution, relative to the largest score."""
        got = self.answers.attribution(self.pair.chosen, self.pair.rejected)
        want, noise = self.oracle.values(attribution_of, self.pair, m=self.answers.m)
        worst = int(np.abs(got - want["a"]).argmax())
        message = f"the score of token {worst} is {beside(got[worst], want['a'][worst])}"
        return Noisy(scores_apart(got, want["a"]), noise, message)

    def contrast(self, tokens: Drawn, name: str) -> Noisy:
        """One shift of live_contrast; all layers are judged together, but for those that only hold rounding errors.

        Rounding blurs states, so a shift the less, the larger it is: with the last token masked it is as large as the
        state itself, and bfloat16 can tell. The shift of a few tokens further back may be lost in it.
        """
        got = self.answers.contrast(tokens.pos, tokens.neg)[name]
        want, ways = self.oracle.shifts(self.pair, pos=tokens.pos, neg=tokens.neg)
        right, others = want[name], [way[name] for way in ways]
        if isinstance(got, Mapping):  # one fingerprint for all layers
            others, right = [other.reshape(1, -1) for other in others], right.reshape(1, -1)
        noise = np.max([rows_apart(name, other, right) for other in others], axis=0)
        errors = rows_apart(f"live_contrast: {name}", got, want[name])
        rows = list(zip(errors.tolist(), noise.tolist(), range(len(right)), strict=True))  # error, noise, layer
        told = [row for row in rows if TIMES * row[1] <= HOPELESS] or rows
        error, _, worst = max(told)
        where = f"{name}, all layers" if isinstance(got, Mapping) else f"{name}, layer {worst}"
        advice = "expected: the output of block l = 0..L-1 before the final norm, at the last prompt token"
        masked = f"Masked tokens: pos {tokens.pos}, neg {tokens.neg}"
        message = f"{where} differs most{rows_beside(got, right, worst)}; {advice}. {masked}"
        return Noisy(error, max(noise for _, noise, _ in told), message)

    def aggregation(self, tokens: Sequence[int]) -> Exact:
        """live_aggregation on real shifts, those of single tokens of the prompt; by the kit's rule for float32.

        The shifts are given, so there is no noise of the model in it: `compare.judge` knows how far rounding turns a
        component whose eigenvalue has a near neighbour.
        """
        states = self._states(*([token] for token in tokens))
        shifts = (states[0] - states[1:]).astype(np.float32).astype(np.float64)  # (N, L, d)
        inputs = {"delta_pos": shifts[0::2], "delta_neg": shifts[1::2]}
        budget = _aggregation_budget()
        try:
            right = right_now("paper", "aggregation", inputs, run_oracle("aggregation", inputs), budget)
        except (DegenerateShiftsError, ValueError) as problem:
            raise NothingToAsk(f"the shifts of {len(tokens)} single tokens have no direction: {problem}") from None
        verdict = judge("aggregation", inputs, self.answers.aggregation(**inputs), budget=budget, right=right)
        if verdict.ok:
            return Exact(min(verdict.error, budget), "", budget)
        message = (
            f"{verdict.message}. Centred PCA in float32 or better, along the mean shift, over {len(tokens)} tokens"
        )
        return Exact(max(verdict.error, 2 * budget), message, budget)

    def steer(self, v: np.ndarray) -> Noisy:
        """live_steer, row by row of the logits."""
        got = self.answers.steer(v, LAM)
        want, noise = self.oracle.values(steer_of, self.pair, v=v, lam=LAM)
        errors = rows_apart("live_steer", got, want["logits"])
        worst = int(errors.argmax())
        advice = "every block, every position, norms restored per token, lam as it is"
        message = f"row {worst} of the logits differs most{rows_beside(got, want['logits'], worst)}; {advice}"
        return Noisy(float(errors.max()), noise, message)

    # ------------------------------------------------------------------------- relations
    def exchanged_f(self) -> Noisy:
        """f(chosen, rejected) = -f(rejected, chosen)."""
        here = self.answers.objective(self.pair.chosen, self.pair.rejected)
        there = self.answers.objective(self.pair.rejected, self.pair.chosen)
        _, noise = self.oracle.values(objective_of, self.pair)
        error = apart(here["f"], -there["f"], scale_of(here))
        with_exchange = beside(there["f"], -here["f"])
        return Noisy(error, noise, f"with chosen and rejected exchanged f is {with_exchange}")

    def exchanged_a(self) -> Noisy:
        """The same for every score."""
        here = self.answers.attribution(self.pair.chosen, self.pair.rejected)
        there = self.answers.attribution(self.pair.rejected, self.pair.chosen)
        _, noise = self.oracle.values(attribution_of, self.pair, m=self.answers.m)
        worst = int(np.abs(there + here).argmax())
        told = f"with chosen and rejected exchanged the score of token {worst} is {beside(there[worst], -here[worst])}"
        return Noisy(
            scores_apart(-there, here), noise, f"{told}: is only one response attributed, or an absolute value taken?"
        )

    def empty_sets(self) -> Exact:
        """Two sets without tokens: both shifts are exactly zero."""
        got = self.answers.contrast([], [])
        size = max(length(got[name]) for name in got)
        return Exact(size, f"with nothing masked the shift must be exactly zero; a shift of length {size:.3g} came")

    def no_strength(self, v: np.ndarray) -> Noisy | Exact:
        """At lam = 0 or v = 0 the model is the unsteered one, bit for bit."""
        unsteered = self.answers.steer(v, 0.0)
        for other in (self.answers.steer(-SCALE * v, 0.0), self.answers.steer(0 * v, LAM)):
            if not same(unsteered, other):
                return Exact(math.inf, "lam = 0, whatever v is, and v = 0 must give the same logits bit for bit")
        want, noise = self.oracle.values(steer_of, self.pair, v=v, lam=0.0)
        errors = rows_apart("live_steer", unsteered, want["logits"])
        lengths = rows_beside(unsteered, want["logits"], int(errors.argmax()))
        return Noisy(float(errors.max()), noise, f"with lam = 0 the logits are not the unsteered model's{lengths}")

    def product(self, v: np.ndarray) -> Noisy:
        """A longer v at a strength that is weaker by the same factor gives the same logits."""
        unscaled, scaled = self.answers.steer(v, LAM), self.answers.steer(SCALE * v, LAM / SCALE)
        _, noise = self.oracle.values(steer_of, self.pair, v=v, lam=LAM)
        if isinstance(unscaled, np.ndarray) and isinstance(scaled, np.ndarray):
            error = float(rows_apart("live_steer", scaled, unscaled).max())
        else:
            error = 0.0 if same(unscaled, scaled) else fingerprints_apart(unscaled, scaled)
        return Noisy(
            error, noise, f"{SCALE:g} v at lam / {SCALE:g} is not v at lam: is v normalised, or lam used twice?"
        )

    def norms(self, v: np.ndarray, tokens: Drawn) -> Exact:
        """live_edit on real hidden states keeps every token's norm."""
        h = self._states(tokens.pos, tokens.neg)
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
        selection = self.answers.selection(a, eligible, k)
        want = select(torch.from_numpy(a), k=k, eligible=torch.from_numpy(eligible))
        wrong = [j for name in selection for j in selection[name] if not 0 <= j < n or not eligible[j]]
        message = f"tokens {wrong} were selected, which are padding or may not be selected"
        if not wrong:
            message = f"selected {selection}; expected pos {list(want.pos)}, neg {list(want.neg)}"
        return Exact(float(selection != {"pos": list(want.pos), "neg": list(want.neg)}), message)

    def batch(self, other: PreferencePair) -> Noisy:
        """live_batch against live_objective on each of its pairs.

        Beside a prompt of about their own length most models hardly notice a padding token that is attended to.
        Prompts of a single word do, beside the whole one: their padding is many times as long as they are.
        """
        batches = [[self.pair, other]]
        if self.pair.image is None:
            short = replace(self.pair, prompt=prompt_of_one_word(self.pair.prompt))
            exchanged = replace(short, chosen=short.rejected, rejected=short.chosen)
            batches.append([short, exchanged, self.pair])
        error, noise, worst = 0.0, 0.0, ""
        for pairs in batches:
            for pair, row in zip(pairs, self.answers.batch(pairs), strict=True):
                alone = replace(self.answers, pair=pair).objective(pair.chosen, pair.rejected)
                apart_here = values_apart(row, alone)
                if apart_here > error:
                    error, worst = apart_here, f": f is {beside(row['f'], alone['f'])} for {shortened(pair.prompt)}"
                noise = max(noise, self.oracle.values(objective_of, pair)[1])
        advice = f"a row changes with its neighbours{worst}. Attention mask, positions, or padding that is scored?"
        return Noisy(error, noise, advice)

    # ------------------------------------------------------------------------- what is drawn
    @functools.cached_property
    def length(self) -> int:
        """Tokens of the prompt."""
        return len(self.model.encode(self.pair.prompt, self.pair.image).ids)

    def _states(self, *masked: Sequence[int]) -> np.ndarray:
        """Real hidden states, (1 + sets, L, d): of the prompt, and with each set masked, after every block."""
        encoded = self.model.encode(self.pair.prompt, self.pair.image)
        x, zero = encoded.embeds, torch.zeros_like(encoded.embeds)
        with torch.no_grad():
            return to_numpy(
                self.model.residuals(encoded, torch.stack([x, *(mask(x, tokens, zero) for tokens in masked)]))
            )

    def vector(self, draw: np.random.Generator) -> np.ndarray:
        """(L, d) float32, per layer of such a length that LAM times it is STRENGTH times the state's."""
        lengths = np.linalg.norm(self._states()[0], axis=-1, keepdims=True)
        v = draw.normal(size=(len(self.model.blocks), self.model.width))
        return (v / np.linalg.norm(v, axis=-1, keepdims=True) * lengths * STRENGTH / LAM).astype(np.float32)

    def tokens(self, draw: np.random.Generator, k: int) -> Drawn:
        """Two disjoint sets of at most k tokens of the prompt; chance says which of them holds the last token."""
        earlier = draw.permutation(self.length - 1).tolist()
        k = max(1, min(k, self.length // 2))
        near, far = [self.length - 1, *earlier[: k - 1]], earlier[k - 1 : 2 * k - 1]
        if draw.random() < 0.5:
            return Drawn(near, far, "delta_pos")
        return Drawn(far, near, "delta_neg")


def prompt_of_one_word(prompt: Prompt) -> Prompt:
    """The last word of a prompt; of a chat, that of its last turn."""
    if isinstance(prompt, str):
        return last_word(prompt)
    return [Message(role=prompt[-1]["role"], content=last_word(prompt[-1]["content"]))]


def last_word(text: str) -> str:
    """The last word, with the white space behind it; of a text without spaces the last character."""
    words = text.split()
    word = words[-1] if len(words) > 1 else words[0][-1]
    return text[text.rindex(word) :]


@functools.cache
def _aggregation_budget() -> float:
    """How far a right port's float32 may be off, relative to unit vectors."""
    return load_budgets()["aggregation", "float32"].budget
