"""What a model that the proof lets in must also be right in: the uses themselves, against recomputation.

Each check returns how far two ways to the same thing are apart, relatively; 0 or 1 where they are the same or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from grains_ref.grains import HyperParameters, Steering, attribute, fit, generate_greedy
from grains_ref.models import HuggingFaceModel, Item
from grains_ref.models.families import PictureSources
from grains_ref.models.proof import distance
from grains_ref.tiny_models.random_vision_models import noise_picture

PROMPTS = ("Q: Is the earth flat? A:", "The capital", "You are a helpful assistant. Tell me what people say about it:")
ANSWERS = ("No, the earth is round.", "Yes, people say so, and it is true about the weather.")
NEW_TOKENS = 5
ALLOWED = 1e-3  # relative, of float32; what was found wrong is a hundred times more
CAPTUM_ALLOWED = 1e-3


@torch.no_grad()
def ids_are_embeddings(model: HuggingFaceModel) -> float:
    """Logits from ids by transformers, and from embeddings by this package, of a prompt longer than every window."""
    x, response = model.encode(PROMPTS[2]), model.response_ids(PROMPTS[2], ANSWERS[0])
    ids = torch.cat([x.ids, response[:-1]])[None]
    expected = model.hf(input_ids=ids, use_cache=False).logits[:, -len(response) :]
    return distance(model.logits(x, x.embeds[None], response), expected)


@torch.no_grad()
def scores_are_recomputed_ones(model: HuggingFaceModel) -> float:
    """Scores in padded batches behind a cache, whole and in small slices, against one pass for each row."""
    items = [(prompt, answer) for prompt in PROMPTS for answer in ANSWERS]
    expected = [_log_prob(model, prompt, answer) for prompt, answer in items]
    worst = 0.0
    for memory in (1 << 29, 40_000):
        for scored, target in zip(model.score(items, memory=memory), expected, strict=True):
            worst = max(worst, abs(scored.log_prob - target) / abs(target))
    return worst


def _log_prob(model: HuggingFaceModel, prompt: str, answer: str, image: PictureSources | None = None) -> float:
    x, y = model.encode(prompt, image), model.response_ids(prompt, answer)
    log_p = model.logits(x, x.embeds[None], y)[0].log_softmax(-1)
    return float(log_p.gather(1, y[:, None]).sum())


@torch.no_grad()
def steered_generation_is_recomputation(model: HuggingFaceModel) -> float:
    """Cached, padded, steered generation against a recomputation of every token."""
    v = torch.randn(len(model.blocks), model.width, generator=torch.Generator().manual_seed(0))
    lam = 0.3 * _median_norm(model) / v.norm(dim=-1).mean().item()
    with Steering(model.blocks, v, lam=lam):
        together = model.generate(PROMPTS, max_new_tokens=NEW_TOKENS)
        alone = [_greedy_text(model, prompt) for prompt in PROMPTS]
    return float(together != alone)


def _median_norm(model: HuggingFaceModel) -> float:
    x = model.encode(PROMPTS[0])
    return float(model.residuals(x, x.embeds[None]).float().norm(dim=-1).median())


def _greedy_text(model: HuggingFaceModel, prompt: str, picture: PictureSources | None = None) -> str:
    ids: list[int] = []
    for token in generate_greedy(model, model.encode(prompt, picture), n=NEW_TOKENS):
        if token == model.tokenizer.eos_token_id:
            break
        ids.append(token)
    return model.prompts.text(ids, skip_special_tokens=True).strip()


def vectors_are_fitted(model: HuggingFaceModel) -> float:
    """A fit on three pairs: a unit direction for every block; how far the lengths are from 1."""
    examples = [model.example(prompt, *ANSWERS) for prompt in PROMPTS]
    result = fit(model, examples, HyperParameters(m=2, k=2))
    if result.v.shape != (len(model.blocks), model.width) or not result.v.isfinite().all():
        return math.inf
    model.fingerprint()
    return float((result.pos.v.norm(dim=-1) - 1).abs().max())


def attribution_is_captums(model: HuggingFaceModel) -> float:
    """Equation (2) against Captum's integrated gradients of the bare network."""
    example = model.example(PROMPTS[0], *ANSWERS)
    x = example.encoded

    def f(embeds: Tensor) -> Tensor:
        total = torch.zeros(len(embeds))
        for y, sign in ((example.y_pos, 1.0), (example.y_neg, -1.0)):
            fed = model.embed(y[:-1])[None].expand(len(embeds), -1, -1)
            out = model.hf(inputs_embeds=torch.cat([embeds, fed], 1), use_cache=False).logits
            log_p = out[:, len(x.ids) - 1 :].log_softmax(-1)
            total = total + sign * log_p.gather(2, y[None, :, None].expand(len(embeds), -1, 1)).sum((1, 2))
        return total

    m = 3
    ours = attribute(model, example, HyperParameters(m=m)).ig
    theirs = IntegratedGradients(f).attribute(
        x.embeds[None], baselines=torch.zeros_like(x.embeds)[None], method="riemann_right", n_steps=m
    )[0]
    return float((ours - theirs).abs().max() / theirs.abs().max())


PICTURE_PROMPT = "<image> What is it? A:"
SIZE = (90, 50)


@torch.no_grad()
def pictures_are_scored_right(model: HuggingFaceModel) -> float:
    """Scores of two pictures and a text in one padded batch behind a cache, against one pass for each row."""
    items: list[Item] = [(PROMPTS[1], ANSWERS[0])]
    items += [(PICTURE_PROMPT, answer, noise_picture(*SIZE, seed=seed)) for answer in ANSWERS for seed in (0, 1)]
    worst = 0.0
    for item, scored in zip(items, model.score(items), strict=True):
        expected = _log_prob(model, *item)  # type: ignore[arg-type]
        worst = max(worst, abs(scored.log_prob - expected) / abs(expected))
    return worst


@torch.no_grad()
def steered_pictures_are_told_alike(model: HuggingFaceModel) -> float:
    """transformers' own steered generation from pixels against a recomputation of every token from embeddings."""
    picture = noise_picture(*SIZE)
    v = torch.randn(len(model.blocks), model.width, generator=torch.Generator().manual_seed(0))
    lam = 0.3 * _median_norm(model) / v.norm(dim=-1).mean().item()
    with Steering(model.blocks, v, lam=lam):
        from_pixels = model.generate([PICTURE_PROMPT], images=[picture], max_new_tokens=NEW_TOKENS)
        recomputed = _greedy_text(model, PICTURE_PROMPT, picture)
    return float(from_pixels != [recomputed])


def pictures_are_fitted(model: HuggingFaceModel) -> float:
    """Attribution with a place for every image token or for none, and a fit on three pairs: lengths against 1."""
    examples = []
    for seed, words in enumerate(PROMPTS):
        examples.append(model.example(f"<image> {words}", *ANSWERS, noise_picture(*SIZE, seed=seed)))
    x = examples[0].encoded
    n = x.kinds.count("image")
    placed = [patch for patch in getattr(x, "patches", ()) if patch is not None]
    if not n or len(placed) not in (0, n):
        return math.inf
    scores = attribute(model, examples[0], HyperParameters(m=2)).a
    of_picture = scores[torch.tensor([kind == "image" for kind in x.kinds])]
    if not scores.isfinite().all() or not of_picture.any():
        return math.inf
    result = fit(model, examples, HyperParameters(m=2, k=6))
    return float((result.pos.v.norm(dim=-1) - 1).abs().max())


@torch.no_grad()
def two_pictures_are_told_apart(model: HuggingFaceModel) -> float:
    """A prompt with two pictures: scores behind a cache, and what is said from pixels, against recomputation.

    Raises:
        UnsupportedModelError: the model is found not to take two.
    """
    prompt, pictures = "<image> Is it like <image> A:", [noise_picture(*SIZE), noise_picture(SIZE[1], SIZE[0], seed=1)]
    items: list[Item] = [(PROMPTS[1], ANSWERS[0]), (prompt, ANSWERS[0], pictures), (prompt, ANSWERS[0], pictures[::-1])]
    scored = [each.log_prob for each in model.score(items)]
    expected = [_log_prob(model, *item) for item in items]
    worst = max(abs(one - other) / abs(other) for one, other in zip(scored, expected, strict=True))
    x = model.encode(prompt, pictures)
    owners = {patch.picture for patch in getattr(x, "patches", ()) if patch}
    if scored[1] == scored[2] or owners not in (set(), {0, 1}):
        return math.inf
    said = model.generate([prompt], images=[pictures], max_new_tokens=NEW_TOKENS)
    return worst if said == [_greedy_text(model, prompt, pictures)] else math.inf


SEEING_CHECKS: dict[str, Callable[[HuggingFaceModel], float]] = {
    "scores behind a cache": pictures_are_scored_right,
    "steered generation": steered_pictures_are_told_alike,
    "attribution, fit": pictures_are_fitted,
    "two pictures": two_pictures_are_told_apart,
}
CHECKS: dict[str, Callable[[HuggingFaceModel], float]] = {
    "ids = embeddings": ids_are_embeddings,
    "scores behind a cache": scores_are_recomputed_ones,
    "steered generation": steered_generation_is_recomputation,
    "fit": vectors_are_fitted,
}
