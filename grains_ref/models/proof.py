"""The proof at load: a short trial that a model can be read, attributed and steered as this package does it.

It replaces a list of model types.  A model that fails is refused, with what was expected and what was found: inspection
alone gives answers of the right shape that are wrong.  Five forward passes on a dozen tokens, and two more of a model
that sees; when two results disagree, a few more that say why.

    states    one plain pass: each block once, in order, (B, T, d), finite
    zero      the same pass with a zero vector: no bit of the logits changes
    wide      one row per block, of which that block alone is steered, from embeddings, the response's logits only
    cached    a short and a long prompt in one padded batch, then three responses behind their cache, as scores are
              made; the long one of a model that sees is a picture, and is also run from pixels
    gradient  of quantised weights only: one pass back along a path

Distances are `distance`, allowed is `logits_tolerance`.  In float32 a fault is ten thousand times what is allowed.  In
half precision only gross faults show: what a family does was proven in float32 by the suite.  What twelve tokens cannot
show is not proven at all: windows and rotary scalings that begin later, sampling, other devices.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from PIL import Image
from torch import Tensor, nn

from grains_ref.data import PICTURE_MARK
from grains_ref.grains import Encoded, Hooks, Kind, Steering, steer_hidden
from grains_ref.models import scoring, weights
from grains_ref.models.blocks import entering_state, hooked, state_of
from grains_ref.models.families import Picture, UnsupportedModelError

if TYPE_CHECKING:
    from grains_ref.models.huggingface import HuggingFaceModel

N_TOKENS = 12  # more than the windows of tiny models, few enough for the largest one
N_SHORT, N_LONG = 2, 9  # of them, the two prompts
N_RESPONSE = 3
N_NODES = 8  # of the path along which gradients are added up
STRENGTH = 0.5  # of the trial's edits, in norms of the state: one that is lost to rounding would prove nothing
SLACK = 4.0  # in float32, times `logits_tolerance`: hybrids came to 0.6 of it where all is well
LOST_GRADIENT = 0.3  # of the logits' change; eight nodes miss a few hundredths of it, a lost gradient most
PICTURE_SIZE = (112, 84)  # width and height; no two patches of it are alike


@dataclass(frozen=True)
class Check:
    """One line of the proof: what was expected, what was found, and whether that will do."""

    name: str
    expected: str
    found: str
    passed: bool


@dataclass
class Proof:
    """The lines of a model's proof, in the order in which they were tried; the last one may have failed."""

    checks: list[Check] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "passed": all(check.passed for check in self.checks),
            "checks": [asdict(check) for check in self.checks],
        }


class ProofFailedError(UnsupportedModelError):
    """The model does not behave as it is to be used; `proof` has what was found until then."""

    def __init__(self, message: str, proof: Proof) -> None:
        super().__init__(message)
        self.proof = proof


def logits_tolerance(dtype: torch.dtype, n_blocks: int) -> float:
    """How far apart, relatively, two right ways to compute the same logits may be: 16 u sqrt(3 L + 1).

    u is the unit roundoff.  A token's residual stream is rounded three times in each block (two additions and the
    edit), each time by a share of u that adds up like a random walk.  The rest of a block carries errors of the same
    order, for which 4 is allowed, and in float32, where the sums in the matrix products are rounded as often as their
    results, 16.  Wider models have islands of float32.
    """
    is_half = torch.finfo(dtype).bits == 16
    u = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) / 2
    return (4 if is_half else 16) * u * math.sqrt(3 * n_blocks + 1)


def distance(got: Tensor, expected: Tensor) -> float:
    """L2 over the vocabulary of what probabilities can see, relative to what was expected; of the worst row."""
    if got.shape != expected.shape:
        return math.inf
    got, expected = (x.double() - x.double().mean(-1, keepdim=True) for x in (got, expected.to(got.device)))
    apart = ((got - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-300)).max().item()
    return math.inf if math.isnan(apart) else apart


@torch.no_grad()
def prove(model: HuggingFaceModel) -> Proof:
    """Try a model and return what was found.

    Raises:
        ValueError: a weight is NaN or infinite.
        ProofFailedError: something is not as expected, or transformers cannot run it in one of these ways.
    """
    trial = _Trial(model)
    weights.check_finite(model.hf, name=model.name)
    trial.expect("weights are finite", "no NaN and no infinity", True)
    before = _n_hooks(model.blocks)
    steps = {
        "a plain forward pass": _states,
        "a pass with a zero vector": _zero,
        "a pass from embeddings, one row per block": _wide,
        "scoring behind a cache": _cached,
    }
    if getattr(model.hf, "hf_quantizer", None) is not None:
        steps["a gradient through quantised weights"] = _gradients
    for name, step in steps.items():
        try:
            step(trial)
        except (UnsupportedModelError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            trial.fail(name, "transformers runs it", f"it raises {type(error).__name__}: {error}")
    are_gone = _n_hooks(model.blocks) == before
    trial.expect("hooks are gone", "as many as before", are_gone, "" if are_gone else "others are left")
    return trial.proof


class _Trial:
    """The tokens of the trial, what the plain pass gave, and the proof that grows."""

    def __init__(self, model: HuggingFaceModel) -> None:
        self.model, self.proof = model, Proof()
        self.ids = _ordinary_tokens(model)
        slack = 1.0 if torch.finfo(model.hf.dtype).bits == 16 else SLACK
        self.allowed = slack * logits_tolerance(model.hf.dtype, len(model.blocks))
        self.plain = torch.empty(0)  # (1, T, V)
        self.norms = torch.empty(0)  # (L,), mean length of each block's states

    def logits(self, ids: Sequence[int], **options: Any) -> Tensor:
        """(1, T, V), as transformers computes them from ids."""
        logits: Tensor = self.model.hf(
            input_ids=torch.tensor([ids], device=self.model.device), use_cache=False, **options
        ).logits
        return logits

    def expect(self, name: str, expected: str, passed: bool, found: str = "") -> None:
        """One line of the proof.

        Raises:
            ProofFailedError: it did not pass.
        """
        self.proof.checks.append(Check(name, expected, found if found and not passed else found or expected, passed))
        if not passed:
            raise ProofFailedError(f"{self.model.name}: {name}: expected {expected}, found {found}", self.proof)

    def fail(self, name: str, expected: str, found: str) -> NoReturn:
        """A line that did not pass."""
        self.expect(name, expected, False, found)
        raise AssertionError  # `expect` has raised

    def near(
        self, name: str, got: Tensor, expected: Tensor, *, why: Callable[[], None] | None = None, advice: str = ""
    ) -> None:
        """Two ways to the same logits; `why` is asked first where they disagree, and may fail with a better reason."""
        apart = distance(got, expected)
        if apart > self.allowed and why is not None:
            why()
        found = f"shape {tuple(got.shape)}, not {tuple(expected.shape)}"
        if got.shape == expected.shape:
            found = f"{apart:.1e} apart{advice}" if apart else "no bit apart"
        self.expect(name, f"the same logits (up to {self.allowed:.1e})", apart <= self.allowed, found)


def _states(trial: _Trial) -> None:
    """Each block runs once, in order, and returns finite states of one shape."""
    model = trial.model
    ran: list[nn.Module] = []
    states: list[Tensor] = []

    def record(block: nn.Module, inputs: Any, output: Any) -> None:
        ran.append(block)
        states.append(state_of(output))

    with hooked(model.blocks, record):
        trial.plain = trial.logits(trial.ids)
    in_order = [id(block) for block in ran] == [id(block) for block in model.blocks]
    n = len(model.blocks)
    trial.expect("every block runs", f"each of {n} once, in order", in_order, "" if in_order else f"{len(ran)} runs")
    shape = (1, len(trial.ids), model.width)
    for i, state in enumerate(states):
        found = f"{tuple(state.shape)}" if isinstance(state, Tensor) else f"a {type(state).__name__}"
        is_state = isinstance(state, Tensor) and tuple(state.shape) == shape
        if not is_state:
            trial.fail("blocks return states (B, T, d)", f"{shape} of every block", f"{found} of block {i}")
    trial.expect("blocks return states (B, T, d)", f"{shape} of every block", True)
    if not trial.plain.isfinite().all():
        trial.fail(
            "logits are finite", "finite logits of ordinary tokens",
            f"NaN or infinity although every weight is finite: {model.hf.dtype} overflows. Load the model with dtype "
            "bfloat16 or float32",
        )  # fmt: skip
    trial.expect("logits are finite", "finite logits of ordinary tokens", True)
    trial.norms = torch.stack([state[0].float().norm(dim=-1).mean().cpu() for state in states])


def _zero(trial: _Trial) -> None:
    """Steering by nothing changes no bit."""
    model = trial.model
    v = torch.zeros(len(model.blocks), model.width)
    with Steering(model.blocks, v, lam=1.0):
        with_zero_vector = trial.logits(trial.ids)
    name, expected = "a zero vector changes nothing", "bit-identical logits"
    if torch.equal(with_zero_vector, trial.plain):
        trial.expect(name, expected, True)
        return
    again = trial.logits(trial.ids)
    itself, steered = distance(again, trial.plain), distance(with_zero_vector, trial.plain)
    if 0 < itself <= trial.allowed and steered <= trial.allowed:  # kernels that add in no fixed order
        trial.expect(name, "as near as two equal runs", True, f"{steered:.1e} apart, two equal runs {itself:.1e}")
        return
    trial.fail(name, expected, f"logits {steered:.1e} apart, two equal runs {itself:.1e}")


def _wide(trial: _Trial) -> None:
    """One row per block, of which that block alone is steered; the last row is steered nowhere."""
    model, n = trial.model, len(trial.model.blocks)
    prompt, response = trial.ids[:N_SHORT], trial.ids[N_SHORT : N_SHORT + N_RESPONSE]
    x = _encoded(model, scoring.TokenPrompt(tuple(prompt)))
    left: dict[int, Tensor] = {}  # block -> its steered states
    lost: list[int] = []  # blocks whose steered states are not what the next one gets

    def steer(i: int) -> Callable[..., Any]:
        v = torch.zeros(model.width)
        v[0] = STRENGTH * trial.norms[i]

        def hook(block: nn.Module, inputs: Any, output: Any) -> Any:
            h = state_of(output).clone()
            h[i] = steer_hidden(h[i], v, lam=1.0)
            left[i] = h
            return (h, *output[1:]) if isinstance(output, tuple) else h

        return hook

    def compare(i: int) -> Callable[..., None]:
        def hook(block: nn.Module, args: Any, kwargs: Any) -> None:
            state, before = entering_state(args, kwargs), left.pop(i - 1)
            if not torch.equal(state, before.to(state.device)):
                lost.append(i - 1)

        return hook

    after = [(block, steer(i)) for i, block in enumerate(model.blocks)]
    before = [(block, compare(i)) for i, block in enumerate(model.blocks) if i]
    with Hooks(after, before=before):
        logits = model.logits(x, x.embeds.expand(n + 1, -1, -1), torch.tensor(response))  # (L + 1, R, V)
    trial.expect(
        "a steered state reaches the next block", "the very state", not lost,
        f"what leaves block {lost[0]} is not what enters block {lost[0] + 1}" if lost else "",
    )  # fmt: skip
    plain = trial.plain[:, len(prompt) - 1 : len(prompt) - 1 + len(response)]
    if logits.shape[1:] != plain.shape[1:]:
        trial.fail(
            "logits_to_keep is kept", f"logits {tuple(plain.shape[1:])} of {len(response)} response tokens",
            f"{tuple(logits.shape[1:])}: the model takes logits_to_keep and does not use it",
        )  # fmt: skip
    trial.expect("logits_to_keep is kept", f"the logits of {len(response)} response tokens", True)
    trial.near("embeddings give what ids give", logits[n:], plain, why=lambda: _why_not_embeddings(trial))
    moved = [distance(logits[i : i + 1], logits[n:]) for i in range(n)]
    least = min(moved)
    where = moved.index(least)
    trial.expect(
        "steering any block moves the logits", "more than rounding", least > 2 * torch.finfo(model.hf.dtype).eps,
        f"block {where} alone moves them by {least:.1e}",
    )  # fmt: skip


def _why_not_embeddings(trial: _Trial) -> None:
    """More passes, which tell embeddings from a model that looks ahead."""
    n = N_SHORT + N_RESPONSE - 1
    advice = (
        ": its prompts attend to themselves both ways, as PaliGemma's prefixes do, and no response can be scored "
        "behind them. Take a causal model"
    )
    trial.near("earlier tokens do not see later ones", trial.logits(trial.ids[:n]), trial.plain[:, :n], advice=advice)
    embeds = trial.model.embed_prompt(torch.tensor(trial.ids), ())
    without_ids: Tensor = trial.model.hf(inputs_embeds=embeds[None], use_cache=False).logits
    trial.near("embeddings give what ids give", without_ids, trial.plain)
    apart = "the wrong rows, or positions that are not those given"
    trial.fail("logits_to_keep is kept", "the logits that predict the response", apart)


def _cached(trial: _Trial) -> None:
    """Scores as the package makes them are those of plain passes, a picture's those of its pixels."""
    model, ids = trial.model, trial.ids
    short, long = (scoring.TokenPrompt(tuple(ids[:n])) for n in (N_SHORT, N_LONG))
    behind_short, behind_long = (ids[n : n + N_RESPONSE] for n in (N_SHORT, N_LONG))
    of_short, of_long = (trial.plain[:, n - 1 : n - 1 + N_RESPONSE] for n in (N_SHORT, N_LONG))
    if model.family.marker:
        long, of_long = _with_pixels(trial, behind_long)
    logits = scoring.cached_logits(model, [short, long], [1, 0, 1], [behind_long, behind_short, behind_long])
    if model.family.marker:
        trial.near(
            "a picture's embeddings give what its pixels give", logits[:1], of_long,
            why=lambda: _why_not_picture(trial, long, behind_long, of_long),
        )  # fmt: skip
    trial.near("scores behind a cache are recomputed ones", logits[:1], of_long)
    trial.near("a padded batch gives what single prompts give", logits, torch.cat([of_long, of_short, of_long]))


def _gradients(trial: _Trial) -> None:
    """Gradients along a path add up to the change of the logits from its beginning to its end.

        mean over nodes of  grad <logits, D> . (x - x')  =  <D, D>        D = logits(x) - logits(x')

    x' has other words in front of the last one. Asked of quantised weights only: some of their kernels have no backward
    pass, or round activations, and the gradient is lost without an error.
    """
    model, ids = trial.model, trial.ids
    prompt, response = ids[:N_LONG], torch.tensor(ids[N_LONG : N_LONG + N_RESPONSE])
    x = _encoded(model, scoring.TokenPrompt(tuple(prompt), ()))
    other = x.embeds.roll(1, dims=0)
    other[-1] = x.embeds[-1]
    begins, ends = model.logits(x, torch.stack([other, x.embeds]), response).float()  # (R, V) each
    change = ends - begins
    nodes = (torch.arange(N_NODES, device=other.device) + 0.5) / N_NODES
    path = torch.lerp(other, x.embeds, nodes.to(other)[:, None, None])  # (nodes, T, d)
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*an autograd kernel was not registered")  # found out below
        path.requires_grad_()
        along = (model.logits(x, path, response).float() * change).sum() / N_NODES
        (gradient,) = torch.autograd.grad(along, path)
    share = float((gradient.float().sum(0) * (x.embeds - other).float()).sum() / change.square().sum())
    trial.expect(
        "gradients add up to the change of the logits", f"1, up to {LOST_GRADIENT}", abs(share - 1) <= LOST_GRADIENT,
        f"{share:.2f} of it" + ("" if abs(share - 1) <= LOST_GRADIENT else
                                f": on {model.device.type} these weights let no gradient through, or not all of it. "
                                "Load the model unquantised, or on another device"),
    )  # fmt: skip


def _with_pixels(trial: _Trial, response: Sequence[int]) -> tuple[scoring.TokenPrompt, Tensor]:
    """A prompt that is a picture, and the logits (1, R, V) of a response when the model is given its pixels."""
    model, picture = trial.model, _picture(PICTURE_SIZE)
    prompt, _ = model.prompts.encode(PICTURE_MARK, [picture])
    embeds = model.embed_prompt(torch.tensor(prompt), [picture])
    of_picture = embeds[torch.tensor(prompt) == model.prompts.image_id]
    if len(of_picture) > 1:
        differs = bool((of_picture != of_picture[0]).any())
        trial.expect(
            "a picture is in the embeddings", "other embeddings for other parts", differs,
            "" if differs else f"the same one for each of {len(of_picture)} tokens: the picture enters elsewhere",
        )  # fmt: skip
    return scoring.TokenPrompt(tuple(prompt), (picture,)), _logits_from_pixels(model, prompt, [picture], response)


def _picture(size: tuple[int, int]) -> Picture:
    return Picture.of(Image.radial_gradient("L").resize(size).convert("RGB"))


def _logits_from_pixels(
    model: HuggingFaceModel, prompt: Sequence[int], pictures: Sequence[Picture], response: Sequence[int]
) -> Tensor:
    """(1, R, V), as transformers computes them from ids and pixels."""
    ids = torch.tensor([[*prompt, *response[:-1]]], device=model.device)
    pixels = model.family.tensors(pictures) | model.family.generation(ids == model.prompts.image_id)
    on_device = {name: tensor.to(model.device) for name, tensor in pixels.items()}
    logits: Tensor = model.hf(input_ids=ids, **on_device, use_cache=False, logits_to_keep=len(response)).logits
    return logits


@torch.no_grad()
def prove_several(model: HuggingFaceModel) -> None:
    """Two pictures of different shapes in one prompt: replayed behind a cache, and from their pixels.

    It is tried when a prompt first brings several pictures, not at load.

    Raises:
        UnsupportedModelError: the model does not take them, or not as this package replays them.
    """
    pictures = (_picture(PICTURE_SIZE), _picture((PICTURE_SIZE[1], PICTURE_SIZE[0])))
    trial = _Trial(model)
    response = trial.ids[:N_RESPONSE]
    advice = "give one picture per prompt"
    try:
        ids, _ = model.prompts.encode(f"{PICTURE_MARK} {PICTURE_MARK}", pictures)
        expected = _logits_from_pixels(model, ids, pictures, response)
        got = scoring.cached_logits(model, [scoring.TokenPrompt(tuple(ids), pictures)], [0], [response])
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"{model.name} does not take several pictures in one prompt: {type(error).__name__}: {error}; {advice}"
        ) from error
    apart = distance(got, expected)
    if apart > trial.allowed:
        raise UnsupportedModelError(
            f"{model.name}: two pictures in one prompt give other logits from their embeddings than from their pixels "
            f"({apart:.1e} apart, allowed are {trial.allowed:.1e}); {advice}"
        )


def _why_not_picture(trial: _Trial, prompt: scoring.TokenPrompt, response: Sequence[int], expected: Tensor) -> None:
    """More passes, which tell the picture from the cache."""
    model, ids = trial.model, trial.ids
    words = scoring.TokenPrompt(tuple(ids[:N_LONG]))
    of_words = scoring.cached_logits(model, [words], [0], [ids[N_LONG : N_LONG + N_RESPONSE]])
    plain = trial.plain[:, N_LONG - 1 : N_LONG - 1 + N_RESPONSE]
    trial.near("scores behind a cache are recomputed ones", of_words, plain)
    x = _encoded(model, prompt)
    replayed = model.logits(x, x.embeds[None], torch.tensor(response))
    trial.near("a picture's embeddings give what its pixels give", replayed, expected)


def _ordinary_tokens(model: HuggingFaceModel) -> list[int]:
    """Ids that are neither special nor a picture's, near the vocabulary's beginning; different ones if there are."""
    strange = model.prompts.special_ids | {model.prompts.image_id}
    n = min(model.embed.num_embeddings, len(model.tokenizer))
    ordinary: list[int] = []
    for token in range(n):
        if token not in strange:
            ordinary.append(token)
        if len(ordinary) == 5 * N_TOKENS:
            break
    if len(ordinary) >= 5 * N_TOKENS:
        return ordinary[::5]
    return [ordinary[i % len(ordinary)] for i in range(N_TOKENS)]


def _encoded(model: HuggingFaceModel, prompt: scoring.TokenPrompt) -> Encoded:
    n, ids = len(prompt.ids), torch.tensor(prompt.ids)
    word: Kind = "text"
    embeds, replay = model.embed_prompt(ids, prompt.pictures), model.replay(ids, prompt.pictures)
    return Encoded(ids=ids, embeds=embeds, tokens=("",) * n, kinds=(word,) * n, replay=replay)


def _n_hooks(blocks: Sequence[nn.Module]) -> int:
    """On the blocks alone: transformers has hooks of its own elsewhere, which it installs when it first needs them."""
    return sum(len(block._forward_hooks) + len(block._forward_pre_hooks) for block in blocks)
