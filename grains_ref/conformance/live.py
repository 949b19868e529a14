"""Check a port live: on the user's own model and pairs, at any size, against the reference on the same weights.

    results = check_live(load("path/or/hub-id"), pairs, port, path="path/or/hub-id", seeds=range(3))

The port is a module; text in, numbers out, so that its tokens are checked too. `handle` is what its `LOAD(path)`
returned, or the path itself where it has none. For a pair with a picture every call also gets `image=`.

| function of the port | returns |
|---|---|
| live_objective(handle, prompt, chosen, rejected) | {"log_p_pos", "log_p_neg", "f"}, nats |
| live_attribution(handle, prompt, chosen, rejected, m) | a (T,): right Riemann from zero, m steps, prompt tokens |
| live_contrast(handle, prompt, chosen, rejected, pos, neg) | {"delta_pos", "delta_neg"}: (L, d), zero baseline |
| live_steer(handle, prompt, chosen, rejected, v, lam) | (R, V): logits that predict chosen, v (L, d) everywhere |
| live_selection(handle, a, eligible, k) | {"pos", "neg"}: token indices, strongest first |
| live_edit(handle, h, v, lam) | (B, T, d): h with v (d,) added and norms restored |
| live_batch(handle, prompts, chosen, rejected) | a list of what live_objective gives; lists in, `images=` if any |

Any subset will do; what is missing is reported as skipped. Instead of an array a function may return its `fingerprint`,
or a list with one per row. Two kinds of checks:

**against the oracle**, by the rule of three: with the oracle in float32 on the same weights,

    error(port) <= 3 * max(noise, floor)        noise = the worst error of the reference in the model's own dtype

over its legal ways to compute (plain, padded on the left, as a batch). A float32 model is its own oracle, and only the
order of its sums is left as noise. Where the allowed error is above one half, nothing can be told: `undecidable`. (In
contrast such layers are left out, if there are others: the shift of a token that a layer cannot see is rounding only.)

**relations** that every right port keeps, whatever the oracle says; they need no float32 copy of the model.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from grains_ref.data import PreferencePair
from grains_ref.grains import (
    Example,
    Selection,
    Steering,
    contrast,
    integrated_gradients,
    log_prob,
    mask,
    preference,
    select,
)
from grains_ref.models import HuggingFaceModel

Status = Literal["passed", "failed", "skipped", "undecidable"]
Values: TypeAlias = dict[str, np.ndarray]

THREE = 3.0  # times the noise is allowed
HOPELESS = 0.5  # an allowed error above this tells nothing
PADDING = 3  # of the padded way
STRENGTH = 0.3  # |lam v| / |h| at the last prompt token: leaving it out anywhere shows
LAM, SCALE = 2.0, 4.0  # powers of two: the products are the same in every dtype
SKETCH = 64  # numbers in a fingerprint's sketch


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


class Way(NamedTuple):
    """A legal way to compute the same numbers."""

    padding: int = 0
    batch: int = 1


WAYS = (Way(), Way(padding=PADDING), Way(batch=2))


class BadAnswer(Exception):
    """The port raised, or what it returned cannot be compared."""


# --------------------------------------------------------------------------------------- the reference
def upcast(model: HuggingFaceModel) -> HuggingFaceModel:
    """The same weights in float32; a float32 or wider model is returned as it is."""
    if model.hf.dtype in (torch.float32, torch.float64):
        return model
    hf = copy.deepcopy(model.hf).float()
    return HuggingFaceModel(
        hf, model.tokenizer, name=f"{model.name} in float32", image_processor=model.family.processor
    )


def _example(model: HuggingFaceModel, pair: PreferencePair, padding: int) -> Example:
    answers = (model.response_ids(pair.prompt, answer) for answer in (pair.chosen, pair.rejected))
    return Example(model.encode(pair.prompt, pair.image, left_padding=padding), *answers)


@torch.no_grad()
def objective_of(model: HuggingFaceModel, pair: PreferencePair, way: Way = WAYS[0]) -> Values:
    """What live_objective should give."""
    example = _example(model, pair, way.padding)
    embeds = example.encoded.embeds.expand(way.batch, -1, -1)
    pos, neg = (log_prob(model, example.encoded, embeds, y=y)[0] for y in (example.y_pos, example.y_neg))
    return {"log_p_pos": _array(pos), "log_p_neg": _array(neg), "f": _array(pos - neg)}


def attribution_of(model: HuggingFaceModel, pair: PreferencePair, way: Way = WAYS[0], *, m: int) -> Values:
    """What live_attribution should give."""
    example = _example(model, pair, way.padding)

    def f(embeds: Tensor) -> Tensor:
        rows = embeds.expand(way.batch, -1, -1)
        return preference(model, example.encoded, rows, y_pos=example.y_pos, y_neg=example.y_neg)[:1]

    x = example.encoded.embeds
    return {"a": _array(integrated_gradients(f, x, torch.zeros_like(x), m=m).a[way.padding :])}


@torch.no_grad()
def contrast_of(
    model: HuggingFaceModel, pair: PreferencePair, way: Way = WAYS[0], *, pos: Sequence[int], neg: Sequence[int]
) -> Values:
    """What live_contrast should give; its other way is one run for each version of the prompt."""
    encoded = _example(model, pair, way.padding).encoded
    zero = torch.zeros_like(encoded.embeds)
    chosen = Selection(*(tuple(j + way.padding for j in tokens) for tokens in (pos, neg)))
    if way.batch == 1:
        delta_pos, delta_neg = contrast(model, encoded, chosen, zero)
    else:
        versions = [encoded.embeds, *(mask(encoded.embeds, tokens, zero) for tokens in (chosen.pos, chosen.neg))]
        h, h_pos, h_neg = (model.residuals(encoded, version[None])[0].double() for version in versions)
        delta_pos, delta_neg = h - h_pos, h - h_neg
    return {"delta_pos": _array(delta_pos), "delta_neg": _array(delta_neg)}


@torch.no_grad()
def steer_of(model: HuggingFaceModel, pair: PreferencePair, way: Way = WAYS[0], *, v: np.ndarray, lam: float) -> Values:
    """What live_steer should give."""
    example = _example(model, pair, way.padding)
    embeds = example.encoded.embeds.expand(way.batch, -1, -1)
    with Steering(model.blocks, torch.from_numpy(v), lam=lam):
        return {"logits": _array(model.logits(example.encoded, embeds, example.y_pos)[0])}


# --------------------------------------------------------------------------------------- the check
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

    port: a module, or any object with the functions above.  path: what its `LOAD` gets; default `model` itself.
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
    handle = port.LOAD(source) if hasattr(port, "LOAD") else source
    reference = upcast(model) if oracle else model
    results: list[LiveResult] = []
    for i, pair in enumerate(pairs):
        one = _Pair(model, reference, pair, port, handle, m)
        results += one.run(None, one.checks(pairs[(i + 1) % len(pairs)]))
        for seed in seeds:
            results += one.run(seed, one.drawn_checks(np.random.default_rng([seed, i]), k))
    return results


FUNCTIONS = (
    "live_objective",
    "live_attribution",
    "live_contrast",
    "live_steer",
    "live_selection",
    "live_edit",
    "live_batch",
)
Found: TypeAlias = tuple[float, float, str]  # error, allowed, what it means if it is too large
Checks: TypeAlias = dict[str, Callable[[], Found]]


class _Skip(Exception):
    """The port lacks the function."""


@dataclass
class _Pair:
    """The checks of one pair; each returns error, allowed error and an explanation."""

    model: HuggingFaceModel
    reference: HuggingFaceModel
    pair: PreferencePair
    port: Any
    handle: Any
    m: int
    known: dict[tuple[Any, ...], tuple[Values, float]] = field(default_factory=dict)  # what `_oracle` found

    def checks(self, other: PreferencePair) -> Checks:
        """Those in which nothing is drawn; `other` is the neighbour in a batch."""
        return {
            "objective": self.objective,
            "attribution": self.attribution,
            "exchanged responses negate f": self.exchanged_f,
            "exchanged responses negate a": self.exchanged_a,
            "empty sets shift nothing": self.empty_sets,
            "a batch of two is two single rows": lambda: self.batch(other),
        }

    def drawn_checks(self, draw: np.random.Generator, k: int) -> Checks:
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

    def run(self, seed: int | None, checks: Checks) -> Iterator[LiveResult]:
        """Every check, and what became of it."""
        for name, check in checks.items():
            try:
                error, allowed, message = check()
            except _Skip as skip:
                yield LiveResult(name, self.pair.id, seed, "skipped", message=str(skip))
            except BadAnswer as bad:
                yield LiveResult(name, self.pair.id, seed, "failed", math.inf, message=str(bad))
            else:
                passed: Status = "undecidable" if allowed > HOPELESS else "passed"
                status: Status = passed if error <= allowed else "failed"
                text = message if status == "failed" else ""
                yield LiveResult(name, self.pair.id, seed, status, error, allowed, text)

    # ------------------------------------------------------------------------- against the oracle
    def objective(self) -> Found:
        got = self._objective(self.pair.chosen, self.pair.rejected)
        want, allowed = self._oracle(objective_of)
        names = [name for name in want if not _apart(got[name], want[name], self._scale(want)) <= allowed]
        wrong = ", ".join(f"{name} is {float(got[name]):.6g}, expected {float(want[name]):.6g}" for name in names)
        advice = "Sum over all response tokens, each predicted by the row before it; same token ids?"
        return self._worst(got, want), allowed, f"{wrong}. {advice}"

    def attribution(self) -> Found:
        got = self._attribution(self.pair.chosen, self.pair.rejected)
        want, allowed = self._oracle(attribution_of, m=self.m)
        worst = int(np.abs(got - want["a"]).argmax())
        advice = f"token {worst} has {got[worst]:.4g} nats, expected {want['a'][worst]:.4g}"
        return _apart_scores(got, want["a"]), allowed, advice

    def contrast(self, pos: list[int], neg: list[int]) -> Found:
        """Layers are judged together, but for those whose shift is itself no more than rounding errors."""
        got = self._mapping("live_contrast", ("delta_pos", "delta_neg"), pos, neg)
        want = contrast_of(self.reference, self.pair, pos=pos, neg=neg)
        ways = [contrast_of(self.model, self.pair, way, pos=pos, neg=neg) for way in WAYS]
        rows: list[tuple[float, float, str]] = []  # error, noise, where
        for name, right in want.items():
            others, whole = [way[name] for way in ways], isinstance(got[name], Mapping)
            if whole:  # one fingerprint for all layers
                others, right = [other.reshape(1, -1) for other in others], right.reshape(1, -1)
            noise = np.max([_rows_apart(name, other, right) for other in others], axis=0)
            errors = _rows_apart(f"live_contrast: {name}", got[name], want[name])
            where = [f"{name}, all layers"] if whole else [f"{name}, layer {layer}" for layer in range(len(right))]
            rows += zip(errors.tolist(), noise.tolist(), where, strict=True)
        told = [row for row in rows if THREE * row[1] <= HOPELESS] or rows
        error, _, worst = max(told)
        allowed = THREE * max(self._floor(), *(noise for _, noise, _ in told))
        advice = "expected: the output of block l = 0..L-1 before the final norm, at the last prompt token"
        return error, allowed, f"{worst} differs most; {advice}. Masked tokens: pos {pos}, neg {neg}"

    def steer(self, v: np.ndarray) -> Found:
        got = self._steer(v, LAM)
        want, allowed = self._oracle(steer_of, v=v, lam=LAM)
        errors = _rows_apart("live_steer", got, want["logits"])
        advice = "every block, every position, norms restored per token, lam as it is"
        return float(errors.max()), allowed, f"row {int(errors.argmax())} of the logits differs most; {advice}"

    # ------------------------------------------------------------------------- relations
    def exchanged_f(self) -> Found:
        here = self._objective(self.pair.chosen, self.pair.rejected)
        there = self._objective(self.pair.rejected, self.pair.chosen)
        _, allowed = self._oracle(objective_of)
        error = _apart(here["f"], -there["f"], self._scale(here))
        message = f"f is {float(here['f']):.6g}, and {float(there['f']):.6g} with chosen and rejected exchanged"
        return error, allowed, message

    def exchanged_a(self) -> Found:
        here = self._attribution(self.pair.chosen, self.pair.rejected)
        there = self._attribution(self.pair.rejected, self.pair.chosen)
        _, allowed = self._oracle(attribution_of, m=self.m)
        advice = "the scores do not change sign with the preference: is only one response attributed, or an absolute"
        return _apart_scores(-there, here), allowed, f"{advice} value taken?"

    def empty_sets(self) -> Found:
        got = self._mapping("live_contrast", ("delta_pos", "delta_neg"), [], [])
        size = max(_length(got[name]) for name in got)
        return size, 0.0, "with nothing masked the shift must be exactly zero, no rounding errors"

    def no_strength(self, v: np.ndarray) -> Found:
        unsteered = self._steer(v, 0.0)
        for other in (self._steer(-SCALE * v, 0.0), self._steer(0 * v, LAM)):
            if not _same(unsteered, other):
                return math.inf, 0.0, "lam = 0, whatever v is, and v = 0 must give the same logits bit for bit"
        want, allowed = self._oracle(steer_of, v=v, lam=0.0)
        error = float(_rows_apart("live_steer", unsteered, want["logits"]).max())
        return error, allowed, "with lam = 0 the logits are not the unsteered model's"

    def product(self, v: np.ndarray) -> Found:
        one, other = self._steer(v, LAM), self._steer(SCALE * v, LAM / SCALE)
        _, allowed = self._oracle(steer_of, v=v, lam=LAM)
        if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
            error = float(_rows_apart("live_steer", other, one).max())
        else:
            error = 0.0 if _same(one, other) else _of_fingerprints(one, other)
        return error, allowed, f"{SCALE:g} v at lam / {SCALE:g} is not v at lam: is v normalised, or lam used twice?"

    def norms(self, v: np.ndarray, tokens: tuple[list[int], list[int]]) -> Found:
        h = self._states(*tokens)
        got = self._array("live_edit", self._call("live_edit", h, v[-1], LAM, text=False), h.shape)
        ratio = np.linalg.norm(got, axis=-1) / np.linalg.norm(h, axis=-1)
        worst = np.unravel_index(np.abs(ratio - 1).argmax(), ratio.shape)
        message = f"row {worst[0]}, token {worst[1]} came out {ratio[worst]:.6g} times as long; eq. (8) keeps its norm"
        return float(np.abs(ratio - 1).max()), 4 * self._floor(), message

    def selected(self, draw: np.random.Generator, k: int) -> Found:
        n = len(self.model.encode(self.pair.prompt, self.pair.image).ids) + PADDING
        a, eligible = draw.normal(size=n), draw.random(n) < 0.6
        eligible[:PADDING] = False
        a[~eligible] *= 10  # what may not be selected would win
        got = self._call("live_selection", a, eligible, k, text=False)
        want = select(torch.from_numpy(a), k=k, eligible=torch.from_numpy(eligible))
        try:
            found = {name: [int(j) for j in got[name]] for name in ("pos", "neg")}
        except (KeyError, TypeError, ValueError) as error:
            raise BadAnswer(f"live_selection must return {{'pos': [...], 'neg': [...]}}: {error!r}") from error
        wrong = [j for name in found for j in found[name] if not 0 <= j < n or not eligible[j]]
        message = f"tokens {wrong} were selected, which are padding or may not be selected"
        if not wrong:
            message = f"selected {found}; expected pos {list(want.pos)}, neg {list(want.neg)}"
        return float(found != {"pos": list(want.pos), "neg": list(want.neg)}), 0.0, message

    def batch(self, other: PreferencePair) -> Found:
        both = (self.pair, other)
        images = {"images": [pair.image for pair in both]} if any(pair.image for pair in both) else {}
        lists = ([getattr(pair, name) for pair in both] for name in ("prompt", "chosen", "rejected"))
        got = self._call("live_batch", *lists, text=False, **images)
        if not isinstance(got, Sequence) or len(got) != 2:
            raise BadAnswer("live_batch must return a list with one result per prompt")
        error = allowed = 0.0
        for pair, row in zip(both, got, strict=True):
            single = _Pair(self.model, self.reference, pair, self.port, self.handle, self.m)
            alone = single._objective(pair.chosen, pair.rejected)
            error = max(error, self._worst(self._numbers("live_batch", row), alone))
            allowed = max(allowed, single._oracle(objective_of)[1])
        return error, allowed, "a row changes with its neighbour: attention mask, positions, or padding that is scored?"

    # ------------------------------------------------------------------------- what is drawn
    def _states(self, pos: Sequence[int] = (), neg: Sequence[int] = ()) -> np.ndarray:
        """Real hidden states, (3, L, d): of the prompt, and with either set masked, after every block."""
        encoded = self.model.encode(self.pair.prompt, self.pair.image)
        x, zero = encoded.embeds, torch.zeros_like(encoded.embeds)
        with torch.no_grad():
            return _array(self.model.residuals(encoded, torch.stack([x, mask(x, pos, zero), mask(x, neg, zero)])))

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

    # ------------------------------------------------------------------------- what is allowed
    def _floor(self) -> float:
        """Below this no noise is believed: three samples may agree by luck."""
        half = self.model.hf.dtype in (torch.float16, torch.bfloat16)
        return (0.25 if half else 4) * torch.finfo(self.model.hf.dtype).eps

    def _oracle(self, compute: Callable[..., Values], **inputs: Any) -> tuple[Values, float]:
        """The oracle's values, and the allowed error by the rule of three."""
        values = (value.tobytes() if isinstance(value, np.ndarray) else str(value) for value in inputs.values())
        key = (compute.__name__, *values)
        if key not in self.known:
            want = compute(self.reference, self.pair, **inputs)
            noise = max(self._worst(compute(self.model, self.pair, way, **inputs), want) for way in WAYS)
            self.known[key] = want, THREE * max(noise, self._floor())
        return self.known[key]

    def _worst(self, got: Mapping[str, Any], want: Values) -> float:
        if "f" in want:
            return max(_apart(got[name], want[name], self._scale(want)) for name in want)
        if "a" in want:
            return _apart_scores(got["a"], want["a"])
        return max(float(_rows_apart(name, got[name], want[name]).max()) for name in want)

    @staticmethod
    def _scale(objective: Mapping[str, Any]) -> float:
        return abs(float(objective["log_p_pos"])) + abs(float(objective["log_p_neg"]))

    # ------------------------------------------------------------------------- the port's answers
    def _call(self, name: str, *arguments: Any, text: bool = True, **options: Any) -> Any:
        function = getattr(self.port, name, None)
        if not callable(function):
            raise _Skip(f"the port does not define {name}")
        given = (self.pair.prompt, self.pair.chosen, self.pair.rejected) if text else ()
        if text and self.pair.image:
            options["image"] = self.pair.image
        return self._guarded(function, name, *given, *arguments, **options)

    def _guarded(self, function: Callable[..., Any], name: str, *arguments: Any, **options: Any) -> Any:
        copies = [value.copy() if isinstance(value, np.ndarray) else value for value in arguments]
        try:
            return function(self.handle, *copies, **options)
        except Exception as error:
            raise BadAnswer(f"{name} raised {type(error).__name__}: {error}") from error

    def _answers(self, name: str, chosen: str, rejected: str, *arguments: Any) -> Any:
        """A call with other responses than the pair's."""
        options = {"image": self.pair.image} if self.pair.image else {}
        return self._call(name, self.pair.prompt, chosen, rejected, *arguments, text=False, **options)

    def _objective(self, chosen: str, rejected: str) -> Values:
        return self._numbers("live_objective", self._answers("live_objective", chosen, rejected))

    def _numbers(self, name: str, got: Any) -> Values:
        if not isinstance(got, Mapping) or {"log_p_pos", "log_p_neg", "f"} - set(got):
            raise BadAnswer(f"{name} must return log_p_pos, log_p_neg and f; got {got!r:.200}")
        return {key: self._array(f"{name}: {key}", got[key], ()) for key in ("log_p_pos", "log_p_neg", "f")}

    def _attribution(self, chosen: str, rejected: str) -> np.ndarray:
        tokens = self.model.encode(self.pair.prompt, self.pair.image).tokens
        got = self._answers("live_attribution", chosen, rejected, self.m)
        shown = " ".join(map(repr, tokens[:4]))
        advice = f"The prompt has {len(tokens)} tokens, {shown} ...: BOS doubled or missing, or the response included?"
        return self._array("live_attribution", got, (len(tokens),), advice)

    def _mapping(self, name: str, keys: Sequence[str], *arguments: Any) -> dict[str, Any]:
        got = self._call(name, *arguments)
        if not isinstance(got, Mapping) or set(keys) - set(got):
            raise BadAnswer(f"{name} must return {' and '.join(keys)}; got {type(got).__name__}")
        shape = (len(self.model.blocks), self.model.width)
        return {key: self._array(f"{name}: {key}", got[key], shape, "The rows are decoder blocks.") for key in keys}

    def _steer(self, v: np.ndarray, lam: float) -> Any:
        n = len(self.model.response_ids(self.pair.prompt, self.pair.chosen))
        got = self._call("live_steer", v, lam)
        shape = (n, self.model.text_config.vocab_size)
        return self._array("live_steer", got, shape, "One row per token of chosen; it predicts that token.")

    @staticmethod
    def _array(name: str, value: Any, shape: tuple[int, ...], advice: str = "") -> Any:
        """The answer as float64; fingerprints stay what they are, for `_rows_apart`."""
        if _is_fingerprint(value) or (isinstance(value, list) and value and all(map(_is_fingerprint, value))):
            return value
        try:
            array = _array(value) if isinstance(value, Tensor) else np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise BadAnswer(f"{name}: no array of numbers: {error}") from error
        if array.shape != shape:
            raise BadAnswer(f"{name}: the shape is {array.shape}; expected {shape}. {advice}".rstrip())
        if not np.isfinite(array).all():
            raise BadAnswer(f"{name}: {int((~np.isfinite(array)).sum())} values are NaN or infinite")
        return array


# --------------------------------------------------------------------------------------- errors
def _apart(got: Any, want: Any, scale: float) -> float:
    difference = abs(float(got) - float(want))
    return difference / scale if scale else (0.0 if difference == 0 else math.inf)


def _apart_scores(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / max(np.abs(want).max(), np.finfo(float).tiny))


def _rows_apart(name: str, got: Any, want: np.ndarray) -> np.ndarray:
    """The relative error of every row, or one for all rows where `got` is a single fingerprint."""
    if isinstance(got, Mapping):
        return np.array([_of_fingerprints(got, fingerprint(want))])
    if isinstance(got, list):
        if len(got) != len(want):
            raise BadAnswer(f"{name}: {len(got)} fingerprints; expected one for each of {len(want)} rows")
        return np.array([_of_fingerprints(g, fingerprint(w)) for g, w in zip(got, want, strict=True)])
    error, length = np.linalg.norm(got - want, axis=-1), np.linalg.norm(want, axis=-1)
    return np.where(length > 0, error / np.where(length > 0, length, 1), np.where(error > 0, np.inf, 0.0))


def _length(value: Any) -> float:
    if isinstance(value, Mapping):
        return float(value["norm"])
    return max(map(_length, value)) if isinstance(value, list) else float(np.linalg.norm(value))


def _same(one: Any, other: Any) -> bool:
    return bool(np.array_equal(one, other)) if isinstance(one, np.ndarray) else bool(one == other)


# --------------------------------------------------------------------------------------- fingerprints
def fingerprint(array: Any) -> dict[str, Any]:
    """A large array as its shape, L2 norm, mean and a sketch of 64 numbers, all in float64.

        sketch[j] = sum over i of s(i, j) * x[i]        i from 0 over all entries, row by row;  j = 0..63
        s(i, j)   = -1 if bit j mod 32 (the lowest is 0) of hash(2 i + j div 32) is set, else +1
        hash(z):    z = z mod 2^32;   z = z xor (z >> 16);  z = z * 2146121005 mod 2^32
                    z = z xor (z >> 15);  z = z * 2221713035 mod 2^32;  z = z xor (z >> 16)

    Whole numbers only, so it can be made again in any language. For two arrays x and y the root mean square of the 64
    differences of their sketches estimates |x - y|, with a standard deviation of about 9 %.
    """
    x = _array(array).ravel() if isinstance(array, Tensor) else np.asarray(array, dtype=np.float64).ravel()
    sketch, bits = np.zeros(SKETCH), np.arange(32, dtype=np.uint64)
    for start in range(0, len(x), 1 << 14):
        part = x[start : start + (1 << 14)]
        i = np.arange(start, start + len(part), dtype=np.uint64)
        words = np.stack([_hash(2 * i), _hash(2 * i + np.uint64(1))], axis=1)  # (n, 2)
        signs = 1.0 - 2.0 * ((words[:, :, None] >> bits) & np.uint64(1)).reshape(len(part), SKETCH)
        sketch += part @ signs
    return {
        "shape": list(np.shape(array)),
        "norm": float(np.linalg.norm(x)),
        "mean": float(x.mean()) if len(x) else 0.0,
        "sketch": sketch.tolist(),
    }


def _hash(z: np.ndarray) -> np.ndarray:
    keep = np.uint64(0xFFFFFFFF)
    z = z & keep
    z = (z ^ (z >> np.uint64(16))) * np.uint64(2146121005) & keep
    z = (z ^ (z >> np.uint64(15))) * np.uint64(2221713035) & keep
    return z ^ (z >> np.uint64(16))


def _is_fingerprint(value: Any) -> bool:
    return isinstance(value, Mapping) and {"shape", "norm", "mean", "sketch"} <= set(value)


def _of_fingerprints(got: Mapping[str, Any], want: Mapping[str, Any]) -> float:
    """The relative error of two arrays, estimated from their fingerprints."""
    if list(got["shape"]) != list(want["shape"]):
        raise BadAnswer(f"a fingerprint of the shape {got['shape']}; expected {want['shape']}")
    apart = np.asarray(got["sketch"], float) - np.asarray(want["sketch"], float)
    if not np.isfinite(apart).all():
        raise BadAnswer("a fingerprint holds NaN or infinite values")
    error = max(float(np.sqrt((apart**2).mean())), abs(got["norm"] - want["norm"]))
    return error / want["norm"] if want["norm"] else (0.0 if error == 0 else math.inf)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()
