"""What must hold for a model of any size: the checks that the shrunken models (CPU) and the full ones (GPU) share.

Every check raises an AssertionError with its numbers, and returns the numbers when all is well.

Tolerances.  `u` is the unit roundoff of the model's type (2^-8 for bfloat16, 2^-24 for float32).

- Norms.  Equation (8) is computed in float32 or wider, and its result is rounded once.  Rounding each component
  changes it by at most u of itself, so the norm of a token changes by at most u, relatively; a little float32
  arithmetic comes on top.  For half precision there is a sharper statement: the roundings are independent, so
  norms differ by about u * sqrt(sum h^4) / sum h^2 (standard deviation below 0.58 of that), and the root mean square
  of the differences in that unit must stay below 1.  A norm that is itself computed in half precision fails it.
- Logits.  Two runs that differ in cache, length or padding use other kernels, so their sums are ordered differently
  and some results round to the other side.  A token's residual stream is rounded three times in each block (two
  additions and the edit), each time by a share of u that adds up like a random walk: u * sqrt(3 L + 1), relatively.
  The rest of a block carries errors of the same order, for which 4 is allowed; in float32, where the sums in the
  matrix products are rounded as often as their results, 16.  Relative means: L2 over the vocabulary, after the mean
  over the vocabulary, which no probability sees, is taken off.  At 32 blocks in bfloat16 this allows 0.15; narrow
  random models were measured to be 0.01 away from float64, and steering only the prompt puts them 1 away.  Where two
  runs of a vision tower meet other kernels too, its blocks are counted with the decoder's: 0.20 for LLaVA-1.6-7B.

Pictures.  A check that takes an `image` runs the model with ids and pixel values wherever it runs it as transformers
does, and with merged embeddings wherever the package does; without one it is a check of a text model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from ports.live_ports import with_fingerprints
from torch import Tensor, nn

from grains_ref.conformance.live import check_live
from grains_ref.data import PreferencePair
from grains_ref.grains import (
    Attribution,
    Encoded,
    Example,
    Fit,
    HyperParameters,
    Steering,
    attribute,
    eligible_tokens,
    fit,
    generate_greedy,
    select,
)
from grains_ref.models import EncodedPicture, HuggingFaceModel, proof
from grains_ref.models.families import Picture, PictureSource

STRENGTH = 0.3  # of steering in these tests, |lam * v| / |h|: enough that leaving it out anywhere shows in the logits


def unit_roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def logits_tolerance(model: HuggingFaceModel, *, vision: bool = False) -> float:
    """vision: the two runs may also differ in the features of a picture."""
    blocks = len(model.blocks) + (model.family.n_vision_blocks if vision else 0)
    return proof.logits_tolerance(model.hf.dtype, blocks)


def relative_distance(a: Tensor, b: Tensor) -> Tensor:
    """(..., V), (..., V) -> (...): L2 distance of centred logits over the length of b's."""
    a, b = (z.double() - z.double().mean(-1, keepdim=True) for z in (a, b))
    return (a - b).norm(dim=-1) / b.norm(dim=-1)


def hook_counts(model: HuggingFaceModel) -> list[int]:
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.hf.modules()]


def token_ids(model: HuggingFaceModel, encoded: Encoded) -> Tensor:
    return encoded.ids[None].to(model.device)


def vision_inputs(model: HuggingFaceModel, ids: Tensor, images: Sequence[PictureSource | None]) -> dict[str, Tensor]:
    """What transformers' own forward pass takes besides ids, (B, T), and a mask; nothing without pictures."""
    seen = [Picture.of(image) for image in images if image is not None]
    if not seen:
        return {}
    is_image = ids == model.hf.config.image_token_id
    tensors = model.family.generation(is_image) | model.family.tensors(seen)
    return {name: tensor.to(model.device) for name, tensor in tensors.items()}


@torch.no_grad()
def steering_strength(model: HuggingFaceModel, example: Example, v: Tensor) -> float:
    """The lam at which |lam * v| is `STRENGTH` times |h| at the median block, at the last prompt token."""
    h = model.residuals(example.encoded, example.encoded.embeds[None])[0]  # (L, d)
    ratios = h.double().norm(dim=-1).cpu() / v.double().norm(dim=-1).cpu()
    return STRENGTH * ratios.median().item()


# --------------------------------------------------------------------------------------------- pictures
@dataclass(frozen=True)
class Seen:
    """How a picture entered the model."""

    image_tokens: int
    features: float  # root mean square of a component of the picture's features
    words: float  # the same of the prompt's other tokens
    other_picture: float  # relative distance of the logits with another picture of the same size


@torch.no_grad()
def check_picture(
    model: HuggingFaceModel, example: Example, image: PictureSource, other: PictureSource, *, at_least: int
) -> Seen:
    """The merged embeddings give the logits of ids and pixel values bit for bit, and the picture matters.

    other: a picture of the same size.  The two runs have the same shapes, hence the same kernels; that these repeat
    themselves is tested first.
    """
    x = example.encoded
    is_image = torch.tensor([kind == "image" for kind in x.kinds])
    n = int(is_image.sum())
    assert isinstance(x, EncodedPicture), "the prompt was encoded without its picture"
    assert n >= at_least, f"{n} image tokens; at least {at_least} were expected"
    assert [patch is not None for patch in x.patches] == is_image.tolist(), "patches and image tokens do not match"
    assert x.embeds.isfinite().all(), "embeddings are not finite"

    ids = torch.cat([x.ids, example.y_pos[:-1]])[None].to(model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **vision_inputs(model, ids, [image])}

    def plain() -> Tensor:
        return model.hf(**inputs, logits_to_keep=len(example.y_pos), use_cache=False).logits[0]

    expected = plain()
    assert torch.equal(plain(), expected), "two equal runs differ: this device or kernel is not deterministic"
    replayed = model.logits(x, x.embeds[None], example.y_pos)[0]
    distance = relative_distance(replayed, expected).max().item()
    assert torch.equal(replayed, expected), f"replayed logits are {distance:.2g} away from those with pixel values"

    pixels = vision_inputs(model, ids, [other])
    moved = relative_distance(
        model.hf(**inputs | pixels, logits_to_keep=len(example.y_pos), use_cache=False).logits[0], expected
    )
    assert moved.min() > 0.01, f"another picture moves the logits by {moved.tolist()} only"
    features, words = (x.embeds.float()[rows].pow(2).mean().sqrt().item() for rows in (is_image, ~is_image))
    return Seen(n, features, words, moved.min().item())


# --------------------------------------------------------------------------------- attribution and fit
def check_attribution(model: HuggingFaceModel, example: Example, hp: HyperParameters) -> Attribution:
    """One score per prompt token, all finite, from gradients that are not all zero."""
    result = attribute(model, example, hp)
    n, width = len(example.encoded.ids), model.width
    assert result.a.shape == (n,), f"{result.a.shape} scores of {n} tokens"
    assert result.ig.shape == (n, width), f"attributions {result.ig.shape} of {n} tokens of width {width}"
    assert result.a.isfinite().all(), "scores are not finite"
    assert (result.a != 0).sum() > n // 2, f"{(result.a == 0).sum()} of {n} scores are zero"
    assert math.isfinite(result.gap), f"f is {result.f_x} at x and {result.f_baseline} at the baseline"
    zero = [kind for kind, score in zip(example.encoded.kinds, result.a.tolist(), strict=True) if score == 0]
    assert zero.count("image") <= example.encoded.kinds.count("image") // 2, f"tokens without a score: {Counter(zero)}"
    return result


def selected_kinds(example: Example, result: Attribution, hp: HyperParameters) -> dict[str, Counter[str]]:
    """How many tokens of each kind equation (3) picks, for either sign; at most k, and k wherever there are as many."""
    chosen = select(result.a, k=hp.k, eligible=eligible_tokens(example.encoded, hp.eligible))
    for tokens, available in ((chosen.pos, (result.a > 0).sum()), (chosen.neg, (result.a < 0).sum())):
        assert len(tokens) == min(hp.k, available), f"{len(tokens)} tokens of {available} were picked; k is {hp.k}"
    kinds = example.encoded.kinds
    return {"pos": Counter(kinds[j] for j in chosen.pos), "neg": Counter(kinds[j] for j in chosen.neg)}


def check_fit(model: HuggingFaceModel, examples: Sequence[Example], hp: HyperParameters) -> Fit:
    """Unit directions at every block, and parameters that never had a gradient."""
    hooks = hook_counts(model)
    result = fit(model, examples, hp)
    check_vectors(model, result)
    check_no_parameter_gradients(model)
    assert hook_counts(model) == hooks, "the fit left hooks on the model"
    return result


def check_vectors(model: HuggingFaceModel, result: Fit) -> None:
    for v in (result.pos.v, result.neg.v):
        assert v.shape == (len(model.blocks), model.width), v.shape
        assert v.isfinite().all(), "a direction is not finite"
        assert ((v.norm(dim=-1) - 1).abs() < 1e-9).all(), f"lengths {v.norm(dim=-1).tolist()} are not 1"
    assert torch.equal(result.v, result.pos.v - result.neg.v), "v is not v_pos - v_neg"


def check_no_parameter_gradients(model: HuggingFaceModel) -> None:
    kept = [n for n, p in model.hf.named_parameters() if p.requires_grad or p.grad is not None]
    assert not kept, f"parameters with gradients: {kept[:3]}"


# ---------------------------------------------------------------------------------------------- norms
@dataclass(frozen=True)
class Norms:
    """Over all tokens and blocks of a generation: |h'| / |h| - 1, and how many states were seen."""

    worst: float
    rms: float  # in the unit of independent roundings, see above
    prefill_states: int
    decode_states: int
    image_states: int  # those of `prefill_states` at image tokens


@contextmanager
def watch_norms(blocks: Sequence[nn.Module], steering: Steering) -> Iterator[list[tuple[int, int, Tensor]]]:
    """Steer, and list (block, tokens in this call, values of each token) as seen just before and after the edit.

    Forward hooks run in the order in which they were registered, so the edit lies between the two.  The values are
    |h|, |h'|, sqrt(sum h'^4) and |h' - h|, in float64.
    """
    seen: list[tuple[int, int, Tensor]] = []
    before: dict[int, Tensor] = {}

    def hidden(output: Any) -> Tensor:
        return (output[0] if isinstance(output, tuple) else output).double()

    def first(i: int) -> Any:
        return lambda block, inputs, output: before.update({i: hidden(output)})

    def second(i: int) -> Any:
        def record(block: nn.Module, inputs: Any, output: Any) -> None:
            h, h_before = hidden(output), before.pop(i)
            lengths = [z.norm(dim=-1) for z in (h_before, h, h - h_before)]
            values = torch.stack([*lengths[:2], h.pow(4).sum(-1).sqrt(), lengths[2]])  # (4, B, T)
            seen.append((i, h.shape[1], values.flatten(1).cpu()))

        return record

    handles = [block.register_forward_hook(first(i)) for i, block in enumerate(blocks)]
    try:
        with steering:
            handles += [block.register_forward_hook(second(i)) for i, block in enumerate(blocks)]
            yield seen
    finally:
        for handle in handles:
            handle.remove()


def check_norms(
    model: HuggingFaceModel, encoded: Encoded, steering: Steering, *, n: int, image: PictureSource | None = None
) -> Norms:
    """Equations (7) and (8) at every block and token, the prompt's and the generated ones', under cached generation.

    Every state is moved, those of image tokens too, and keeps its norm.
    """
    with watch_norms(model.blocks, steering) as seen:
        generated = cached_generation(model, encoded, n=n, image=image).sequences.shape[1] - len(encoded.ids)
    depth = len(model.blocks)
    calls = [(block, tokens) for block, tokens, _ in seen]
    lengths = [len(encoded.ids)] + [1] * (generated - 1)  # the last token is never fed back
    assert calls == [(block, tokens) for tokens in lengths for block in range(depth)], "blocks or steps were missed"
    assert generated > 1, "generation stopped before its first decode step"

    dtype = model.hf.dtype
    u = unit_roundoff(dtype)
    kinds = [kind for _, tokens, _ in seen for kind in (encoded.kinds if tokens > 1 else ("new",))]
    before, after, fourth, moved = torch.cat([values for _, _, values in seen], dim=1)
    still = Counter(kind for kind, distance in zip(kinds, moved.tolist(), strict=True) if distance == 0)
    assert not still, f"states that steering did not move, by the kind of their token: {still}"
    deviation = after / before - 1
    worst = deviation.abs().max().item()
    allowed = u + 2**-16  # the second term: float32 norms and the product
    assert worst <= allowed, f"a token's norm changed by {worst:.2e}, more than {allowed:.2e}"
    rms = (deviation / (u * fourth / after.square())).square().mean().sqrt().item()
    if dtype != torch.float32:
        assert rms <= 1, f"norms differ by {rms:.2f} times what one rounding explains (root mean square)"
    return Norms(worst, rms, depth * len(encoded.ids), depth * (generated - 1), kinds.count("image"))


# ----------------------------------------------------------------------------------------- generation
@dataclass(frozen=True)
class CacheReport:
    """Cached against uncached steered logits; `compared` tokens had a margin that rounding cannot overturn."""

    distances: tuple[float, ...]
    steering_distance: float
    tokens: tuple[int, ...]
    compared: int


def cached_generation(model: HuggingFaceModel, encoded: Encoded, *, n: int, image: PictureSource | None = None) -> Any:
    """transformers' own greedy loop with its own cache."""
    ids = token_ids(model, encoded)
    return model.hf.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **vision_inputs(model, ids, [image]),
        max_new_tokens=n,
        do_sample=False,
        use_cache=True,
        pad_token_id=int(ids[0, -1]),  # one row needs no padding; naming some id avoids a warning
        return_dict_in_generate=True,
        output_logits=True,
    )


@torch.no_grad()
def check_cache(
    model: HuggingFaceModel, encoded: Encoded, steering: Steering, *, n: int, image: PictureSource | None = None
) -> CacheReport:
    """Steered generation with a cache sees the logits of a full recomputation, and picks its tokens."""
    with steering:
        out = cached_generation(model, encoded, n=n, image=image)
        tokens = out.sequences[0, len(encoded.ids) :].cpu()
        cached = torch.cat(out.logits)  # (N, V)
        uncached = model.logits(encoded, encoded.embeds[None], tokens)[0]  # (N, V)
        recomputed = generate_greedy(model, encoded, n=len(tokens))
    unsteered = model.logits(encoded, encoded.embeds[None], tokens)[0]
    tolerance = logits_tolerance(model)
    distances = relative_distance(cached, uncached)
    steered_by = relative_distance(unsteered, uncached).min().item()
    assert steered_by > 2 * tolerance, f"steering changes the logits by {steered_by:.2g} only: nothing would be tested"
    assert distances.max() <= tolerance, f"distances {distances.tolist()} exceed {tolerance:.2g}"

    # Two runs may only part ways where the best two logits are closer than rounding can bring them.
    reach = 2 * (cached.double() - uncached.double()).abs().max()
    best = uncached.double().topk(2).values
    compared = 0
    for got, expected, margin in zip(recomputed, tokens.tolist(), best[:, 0] - best[:, 1], strict=True):
        if margin <= reach:
            break
        assert got == expected, f"token {compared}: {got} uncached, {expected} cached, with a margin of {margin:.3g}"
        compared += 1
    return CacheReport(tuple(distances.tolist()), steered_by, tuple(tokens.tolist()), compared)


@torch.no_grad()
def check_strength_zero(
    model: HuggingFaceModel, encoded: Encoded, v: Tensor, *, image: PictureSource | None = None
) -> None:
    """lam = 0 changes no bit, real strength does, and leaving gives the model back as it was."""
    ids = token_ids(model, encoded)
    inputs = {"input_ids": ids, **vision_inputs(model, ids, [image])}

    def run() -> Tensor:
        return model.hf(**inputs, use_cache=False).logits

    hooks, plain = hook_counts(model), run()
    assert torch.equal(run(), plain), "two equal runs differ: this device or kernel is not deterministic"
    with Steering(model.blocks, v, lam=0.0):
        assert torch.equal(run(), plain), "lam = 0 changed the logits"
    with Steering(model.blocks, v, lam=1.0):
        assert not torch.equal(run(), plain), "lam = 1 changed nothing"
    assert torch.equal(run(), plain), "the model is not the same after steering"
    with suppress(_Interruption), Steering(model.blocks, v, lam=1.0):
        raise _Interruption
    assert hook_counts(model) == hooks, "hooks are left on the model"
    assert torch.equal(run(), plain), "the model is not the same after an exception under steering"


class _Interruption(Exception):
    pass


@torch.no_grad()
def check_batch(
    model: HuggingFaceModel,
    prompts: Sequence[Encoded],
    steering: Steering,
    *,
    images: Sequence[PictureSource] = (),
) -> list[float]:
    """Left-padded in one batch, each prompt's next-token logits are those it has alone.

    images: none, or one for each prompt.
    """
    longest = max(len(encoded.ids) for encoded in prompts)
    assert len({len(encoded.ids) for encoded in prompts}) > 1, "prompts of one length need no padding"
    pads = [longest - len(encoded.ids) for encoded in prompts]
    ids = torch.stack([
        torch.cat([encoded.ids[:1].expand(pad), encoded.ids]) for pad, encoded in zip(pads, prompts, strict=True)
    ]).to(model.device)  # fmt: skip
    mask = torch.stack([(torch.arange(longest) >= pad).long() for pad in pads]).to(model.device)
    inputs = {"input_ids": ids, "attention_mask": mask, **vision_inputs(model, ids, images)}
    if prompts[0].replay["position_ids"].ndim == 1:  # in three dimensions the model finds them by itself
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    with steering:
        together = model.hf(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1]
        alone = torch.cat([
            model.hf(
                input_ids=token_ids(model, encoded),
                logits_to_keep=1,
                use_cache=False,
                **vision_inputs(model, token_ids(model, encoded), [image]),
            ).logits[:, -1]
            for encoded, image in zip(prompts, images or [None] * len(prompts), strict=True)
        ])  # fmt: skip
    distances = relative_distance(together, alone)
    tolerance = logits_tolerance(model, vision=bool(images))
    assert distances.max() <= tolerance, f"distances {distances.tolist()} exceed {tolerance:.2g}"
    return distances.tolist()


# ----------------------------------------------------------------------------------- the kit's live check
LIVE_RELATIONS = (
    "exchanged responses negate f",
    "exchanged responses negate a",
    "empty sets shift nothing",
    "a batch is its single rows",
    "lam = 0 changes nothing",
    "only the product of lam and v counts",
    "norms are kept",
    "only eligible tokens are selected",
)
"""What a right port keeps whatever the oracle says; of the other checks half precision may leave some undecidable."""


def check_live_port(
    model: HuggingFaceModel, pairs: Sequence[PreferencePair], port: Any, *, oracle: bool, m: int = 2
) -> dict[str, tuple[str, float, float]]:
    """`grains-ref conform live` on this model: the port's fingerprints of large results, and the relations.

    oracle: also against a float32 copy of the weights, which takes twice the memory of a bfloat16 model on top.
    Returns the worst of every check's results: status, error and allowed error, by name.
    """
    example = model.example(pairs[0].prompt, pairs[0].chosen, pairs[0].rejected, pairs[0].image)
    with torch.no_grad():
        before = model.logits(example.encoded, example.encoded.embeds[None], example.y_pos)
    results = check_live(model, pairs, with_fingerprints(port, rows=True), oracle=oracle, m=m)
    failed = [f"{r.check}, {r.pair}: {r.message} ({r.error:.2g}, allowed {r.allowed:.2g})" for r in results
              if r.status in ("failed", "skipped")]  # fmt: skip
    assert not failed, "\n".join(failed)
    passed = {r.check for r in results if r.status == "passed"}
    told = {"objective", "empty sets shift nothing", "norms are kept", "only eligible tokens are selected"}
    assert told <= passed, f"undecidable: {sorted(told - passed)}"
    assert set(LIVE_RELATIONS) <= {r.check for r in results}
    with torch.no_grad():
        after = model.logits(example.encoded, example.encoded.embeds[None], example.y_pos)
    assert torch.equal(after, before), "the live check changed the model"
    check_no_parameter_gradients(model)
    worst = {r.check: r for r in sorted(results, key=lambda r: r.error / r.allowed if r.allowed else 0.0)}
    return {name: (r.status, r.error, r.allowed) for name, r in worst.items()}


# --------------------------------------------------------------------------------------------- record
def check_record(
    record: dict[str, Any],
    *,
    pairs: int,
    prompt: tuple[int, int] = (60, 120),
    response: tuple[int, int] = (5, 20),
    images: int = 0,
) -> None:
    """Everything that docs/gpu.md shows is there; how long it took is nobody's promise.

    prompt, response: the fewest and the most tokens, by default those of TruthfulQA's shape.  images: all image tokens.
    """
    assert record["pairs"] == pairs, record["pairs"]
    named = (record["device"], record["versions"]["torch"], record["versions"]["transformers"])
    assert all(named), f"device and versions are {named}"
    seconds = record["seconds"]
    assert set(seconds) == {"attribution", "contrast", "aggregation", "total"}, seconds
    assert all(math.isfinite(value) and value > 0 for value in seconds.values()), seconds
    assert record["peak_gib"] is None or record["peak_gib"] > 0, record["peak_gib"]
    for what, (fewest, most) in {"prompt": prompt, "response": response}.items():
        low, high = record["tokens"][f"{what}_range"]
        assert fewest <= low <= high <= most, f"{what}s of {low} to {high} tokens; expected {fewest} to {most}"
    assert record["tokens"]["images"] == images, record["tokens"]["images"]
