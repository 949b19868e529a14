"""All stages with pictures: attribution, contrast, fit, steering, generation and scoring of the vision families."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from captum.attr import IntegratedGradients
from PIL import Image
from torch import Tensor, nn
from toys import residual_of

from grains_ref.data import PreferencePair, content_digest
from grains_ref.fitting import FitRecord, checked_examples, resumable_fit
from grains_ref.fitting.work_folder import WorkFolderError, open_work_folder
from grains_ref.grains import (
    Encoded,
    Example,
    HyperParameters,
    Selection,
    Steering,
    attribute,
    contrast,
    eligible_tokens,
    fit,
    generate_greedy,
    integrated_gradients,
    log_prob,
    objective,
    select,
    shift,
    steer_hidden,
)
from grains_ref.models import HuggingFaceModel
from grains_ref.models.families import Picture
from grains_ref.models.vision_families import Gemma3, Qwen25VL
from grains_ref.tiny_models.random_vision_models import noise_picture, random_gemma3

pytestmark = pytest.mark.cpu

N = 4  # new tokens
PICTURES = [noise_picture(90, 50, seed=1), noise_picture(40, 110, seed=2), noise_picture(60, 60, seed=3)]
PROMPT = "Q: <image> Is it a moon? A:"
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it a moon, or cheese?"}]
PROMPTS: list[Any] = [PROMPT, CHAT, "<image>\nTell me", "The capital of France"]
IMAGES = [*PICTURES, None]
YES, NO = "Yes, so they say.", "No, it is rock."


def is_image(x: Encoded) -> Tensor:
    return torch.tensor([kind == "image" for kind in x.kinds])


def image_places(x: Encoded) -> tuple[int, ...]:
    return tuple(is_image(x).nonzero().flatten().tolist())


def example_of(model: HuggingFaceModel, picture: Image.Image = PICTURES[0], prompt: Any = PROMPT) -> Example:
    return model.example(prompt, YES, NO, picture)


def vector(model: HuggingFaceModel) -> Tensor:
    return torch.randn(len(model.blocks), model.width, generator=torch.Generator().manual_seed(7))


def steering(model: HuggingFaceModel, kind: type[Steering] = Steering) -> Steering:
    """Strong enough that leaving it out anywhere changes the tokens."""
    return kind(model.blocks, vector(model), lam=2.5)


def transformers_own(model: HuggingFaceModel, ids: Tensor, picture: Image.Image) -> dict[str, Any]:
    """What transformers computes from ids and pixels for one row, to go with embeddings in their place."""
    seen = (ids == model.hf.config.image_token_id)[None].int()
    if isinstance(model.family, Qwen25VL):
        grid = model.family.tensors([Picture.of(picture)])["image_grid_thw"]
        rope_index = model.hf.model.get_rope_index
        types = {"mm_token_type_ids": seen} if "mm_token_type_ids" in inspect.signature(rope_index).parameters else {}
        positions, _ = rope_index(ids[None], image_grid_thw=grid, **types)  # transformers 4 finds the types itself
        return {"position_ids": positions}
    return {"token_type_ids": seen} if isinstance(model.family, Gemma3) else {}


def repeated(extra: dict[str, Tensor], n: int) -> dict[str, Tensor]:
    """The rows (second to last axis) n times."""
    return {name: tensor.expand(*tensor.shape[:-2], n, -1) for name, tensor in extra.items()}


# --- attribution


def captum_forward(model: HuggingFaceModel, example: Example, picture: Image.Image) -> Callable[[Tensor], Tensor]:
    """f of eq. (1) from the bare network and what transformers itself adds to a prompt with a picture."""

    def log_p(embeds: Tensor, y: Tensor) -> Tensor:
        extra = transformers_own(model, torch.cat([example.encoded.ids, y]), picture)
        inputs = torch.cat([embeds, model.embed(y).expand(len(embeds), -1, -1)], 1)
        logits = model.hf(inputs_embeds=inputs, **repeated(extra, len(embeds))).logits
        rows = logits[:, embeds.shape[1] - 1 : -1].log_softmax(-1)
        return torch.stack([rows[:, r, token] for r, token in enumerate(y.tolist())]).sum(0)

    return lambda embeds: log_p(embeds, example.y_pos) - log_p(embeds, example.y_neg)


@pytest.mark.parametrize(
    ("m", "name", "quadrature", "method"),  # our name of the rule, and Captum's
    [(4, "zero", "right", "riemann_right"), (3, "mean", "gauss_legendre", "gausslegendre")],
    ids=["4", "3"],
)
def test_captum_agrees_on_words_and_picture(
    vision_model64: HuggingFaceModel, m: int, name: str, quadrature: Any, method: str
) -> None:
    # float64 weights, but transformers keeps norms and rotary angles in float32.
    model = vision_model64
    example = example_of(model)
    assert len(example.y_pos) > 2
    assert len(example.y_neg) > 2
    seen = is_image(example.encoded)
    ours = attribute(model, example, HyperParameters(m=m, quadrature=quadrature, path_baseline=name))
    theirs = IntegratedGradients(captum_forward(model, example, PICTURES[0])).attribute(
        example.encoded.embeds[None],
        baselines=model.baseline(example.encoded, name)[None],
        method=method,
        n_steps=m,
    )[0]
    assert ours.ig.dtype == torch.float64
    for part in (seen, ~seen):
        assert ours.a[part].abs().min() > 0
        assert ours.ig[part].abs().max() > 1e-3
    difference = ((ours.ig - theirs).abs().max() / theirs.abs().max()).item()
    print(f"{model.name}, float64, m = {m}: largest relative difference from Captum {difference:.1e}")
    assert difference < 1e-6
    assert ours.ig[seen].abs().max() / ours.ig.abs().max() > 1e-3  # the picture's share is not lost in the comparison


@pytest.mark.thorough
def test_many_steps_account_for_all_of_f(vision_model64: HuggingFaceModel) -> None:
    example = vision_model64.example("<image> A:", "Yes.", "No.", noise_picture(42, 42))
    x = example.encoded.embeds
    halfway = (x + vision_model64.baseline(example.encoded, "mean")) / 2  # the nearer, the fewer steps are needed
    f = objective(vision_model64, example, HyperParameters())
    got = integrated_gradients(f, x, halfway, m=16, quadrature="gauss_legendre")
    assert abs(got.f_x - got.f_baseline) > 0.1
    assert abs(got.gap) < 1e-3 * abs(got.f_x - got.f_baseline)


# --- contrast


@pytest.mark.parametrize("name", ["zero", "mean"])
def test_masked_image_tokens_keep_their_place_and_are_still_attended(vision_model: HuggingFaceModel, name: str) -> None:
    model, x = vision_model, example_of(vision_model).encoded
    tokens, baseline = image_places(x)[1:4], model.baseline(x, name)
    delta, nothing = contrast(model, x, Selection(tokens, ()), baseline)
    assert nothing.count_nonzero() == 0
    extra = transformers_own(model, x.ids, PICTURES[0])

    def last(embeds: Tensor, **options: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = model.blocks[-1].register_forward_hook(lambda block, _, out: seen.append(residual_of(out)[:, -1]))
        model.hf(inputs_embeds=embeds[None], **options)
        handle.remove()
        return seen[0][0]

    replaced = x.embeds.clone()
    replaced[list(tokens)] = baseline[list(tokens)]
    attended = torch.ones_like(x.ids)
    unattended, kept = attended.clone(), attended.bool()
    unattended[list(tokens)] = 0
    kept[list(tokens)] = False
    h = last(x.embeds, **extra)
    torch.testing.assert_close(delta[-1], h - last(replaced, **extra), rtol=1e-4, atol=1e-4)
    for wrong in (
        h - last(x.embeds[kept], **{key: tensor[..., kept] for key, tensor in extra.items()}),
        h - last(replaced, attention_mask=unattended[None], **extra),
    ):
        assert (delta[-1] - wrong).abs().max() > 1e-2


def test_hiding_the_picture_shifts_every_layer_that_can_see_it(vision_model: HuggingFaceModel) -> None:
    x = example_of(vision_model, prompt="Is it? <image> A:").encoded
    delta, _ = contrast(vision_model, x, Selection(image_places(x), ()), vision_model.baseline(x, "zero"))
    # Gemma's first block may see no further back than its sliding window.
    assert (delta.norm(dim=1)[isinstance(vision_model.family, Gemma3) :] > 1e-2).all()


# --- which tokens


@pytest.mark.parametrize(
    ("rules", "kinds"),
    [
        ((), {"text", "image", "template", "special"}),
        (("image",), {"image"}),
        (("text",), {"text", "template", "special"}),
        (("content",), {"text", "image"}),
        (("text", "content"), {"text"}),
        (("no_special",), {"text", "image", "template"}),
    ],
    ids=lambda value: "+".join(sorted(value)) or "all",
)
def test_each_modality_offers_its_own_tokens_only(
    vision_model: HuggingFaceModel, rules: tuple[Any, ...], kinds: set[str]
) -> None:
    x = vision_model.encode(CHAT, PICTURES[0], left_padding=2)
    keep = eligible_tokens(x, rules)
    assert [kind for kind, kept in zip(x.kinds, keep, strict=True) if kept] == [k for k in x.kinds if k in kinds]
    scores = torch.arange(len(x.ids)) - len(x.ids) / 2
    selection = select(scores, k=20, eligible=keep)
    assert selection.pos or selection.neg
    assert {x.kinds[j] for j in selection.pos + selection.neg} <= kinds


# --- fit


def examples(model: HuggingFaceModel) -> list[Example]:
    """Four, with the picture near the end: Gemma's first block sees no further back than its sliding window."""
    pictures = [*PICTURES, noise_picture(70, 45, seed=4)]
    prompts = ["Is it? <image>", "A moon? <image>"] * 2
    return [example_of(model, picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]


@pytest.mark.parametrize("rules", [(), ("image",)], ids=["joint", "image"])
def test_a_fit_on_pictures_gives_a_direction_in_every_layer(
    vision_model: HuggingFaceModel, rules: tuple[Any, ...]
) -> None:
    hp = HyperParameters(k=20, m=1, eligible=rules, path_baseline="mean", mask_baseline="mean")
    pairs = examples(vision_model)[: 4 if rules == () else 3]
    got = fit(vision_model, pairs, hp)
    assert got.v.shape == (len(vision_model.blocks), vision_model.width)
    for side in (got.pos, got.neg):
        torch.testing.assert_close(side.v.norm(dim=1), torch.ones(len(side.v), dtype=torch.float64))
    selection = shift(vision_model, pairs[0], attribute(vision_model, pairs[0], hp).a, hp).selection
    kinds = {pairs[0].encoded.kinds[j] for j in selection.pos + selection.neg}
    assert "image" in kinds
    assert ("text" in kinds) == (rules == ())


def pairs_in(folder: Path) -> list[PreferencePair]:
    for i, picture in enumerate(PICTURES[:2]):
        picture.save(folder / f"{i}.png")
    prompts: list[Any] = [PROMPT, tuple(CHAT), "Is it a moon? A:"]
    files = [folder / "0.png", folder / "1.png", None]
    return [
        PreferencePair(f"{i}", prompt, YES, NO, where=f"pairs.jsonl:{i + 1}", image=file)
        for i, (prompt, file) in enumerate(zip(prompts, files, strict=True))
    ]


class Interrupted(Exception):
    """What stands for a crash."""


def run(model: HuggingFaceModel, pairs: Sequence[PreferencePair], work: Path, *, stop_after: int = 99) -> FitRecord:
    def on_example(finished: int) -> None:
        if finished == stop_after:
            raise Interrupted

    kept, tokenised, skipped = checked_examples(model, pairs, skip_bad_rows=False)
    assert not skipped
    hp = HyperParameters(k=4, m=1, aggregation="uncentred")
    with open_work_folder(work) as folder:
        return resumable_fit(model, kept, tokenised, hp, work=folder, on_example=on_example, engine="reference")


@pytest.mark.thorough
def test_an_interrupted_fit_on_pictures_goes_on_to_the_same_vectors(
    vision_model: HuggingFaceModel, tmp_path: Path
) -> None:
    pairs = pairs_in(tmp_path)
    at_once = run(vision_model, pairs, tmp_path / "at once")
    with pytest.raises(Interrupted):
        run(vision_model, pairs, tmp_path / "work", stop_after=1)
    vision_model._features.clear()
    resumed = run(vision_model, pairs, tmp_path / "work")
    assert resumed.resumed == 1
    assert torch.equal(resumed.vectors.v, at_once.vectors.v)


def test_a_work_folder_is_refused_once_a_picture_has_changed(vision_model: HuggingFaceModel, tmp_path: Path) -> None:
    pairs = pairs_in(tmp_path)
    before = content_digest(pairs)
    with pytest.raises(Interrupted):
        run(vision_model, pairs, tmp_path / "work", stop_after=1)
    noise_picture(40, 110, seed=8).save(tmp_path / "1.png")
    assert content_digest(pairs) != before
    with pytest.raises(WorkFolderError, match="a fit with other data_digest"):
        run(vision_model, pairs, tmp_path / "work")


# --- steering


def recorded(modules: Sequence[nn.Module], run_model: Callable[[], object]) -> list[Tensor]:
    """What each of the modules hands on, in order of time."""
    seen: list[Tensor] = []
    handles = [
        module.register_forward_hook(
            lambda module, inputs, output: seen.append(output[0] if isinstance(output, tuple) else output)
        )
        for module in modules
    ]
    run_model()
    for handle in handles:
        handle.remove()
    return seen


def run_on_pixels(model: HuggingFaceModel) -> None:
    x = model.encode(PROMPT, PICTURES[0])
    extra = model.family.generation((x.ids == model.hf.config.image_token_id)[None])
    with torch.no_grad():
        model.hf(input_ids=x.ids[None], **model.family.tensors([Picture.of(PICTURES[0])]), **extra)


def test_words_and_picture_are_steered_in_every_layer_and_keep_their_norms(vision_model: HuggingFaceModel) -> None:
    v, raw = vector(vision_model), list[Tensor]()
    handles = [
        b.register_forward_hook(lambda block, i, output: raw.append(residual_of(output))) for b in vision_model.blocks
    ]
    with Steering(vision_model.blocks, v, lam=3.0):  # its hooks run after those above and before those of `recorded`
        handed_on = recorded(vision_model.blocks, lambda: run_on_pixels(vision_model))
    for handle in handles:
        handle.remove()
    seen = is_image(vision_model.encode(PROMPT, PICTURES[0]))
    assert len(raw) == len(handed_on) == len(vision_model.blocks)
    for before, after, direction in zip(raw, handed_on, v, strict=True):
        assert before.shape == (1, len(seen), vision_model.width)
        assert torch.equal(after, steer_hidden(before, direction, lam=3.0))
        torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1))
        moved = (after - before).norm(dim=-1)[0]
        assert min(moved[seen].min(), moved[~seen].min()) > 1e-2


def vision_blocks(model: HuggingFaceModel) -> nn.ModuleList:
    if isinstance(model.family, Qwen25VL):
        return model.hf.model.visual.blocks
    tower = model.hf.model.vision_tower
    return getattr(tower, "vision_model", tower).encoder.layers  # transformers 4 has one more shell


def test_the_blocks_of_the_vision_tower_are_never_steered(vision_model: HuggingFaceModel) -> None:
    blocks = vision_blocks(vision_model)
    assert len(blocks) > len(vision_model.blocks)
    assert not {id(block) for block in blocks} & {id(block) for block in vision_model.blocks}
    plain = recorded(blocks, lambda: run_on_pixels(vision_model))
    with steering(vision_model):
        steered = recorded(blocks, lambda: run_on_pixels(vision_model))
    assert len(plain) == len(steered) >= len(blocks) - 1  # LLaVA reads the last block but one
    assert all(torch.equal(a, b) for a, b in zip(plain, steered, strict=True))


# --- generation


def recomputed(model: HuggingFaceModel, prompts: Sequence[Any], images: Sequence[Any]) -> list[list[int]]:
    return [generate_greedy(model, model.encode(p, i), n=N) for p, i in zip(prompts, images, strict=True)]


def generated(model: HuggingFaceModel, prompts: Sequence[Any], images: Sequence[Any]) -> list[list[int]]:
    """The tokens behind `model.generate`, N of them also where the model would like to stop earlier."""
    kept: list[Tensor] = []
    original = model.hf.generate

    def keep(**options: Any) -> Tensor:
        kept.append(original(**options))
        return kept[-1]

    with patch.object(model.hf, "generate", keep):
        texts = model.generate(prompts, images=images, max_new_tokens=N, eos_token_id=None)
    ids = kept[0][:, -N:].tolist()
    assert texts == [model.tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
    return ids


@pytest.mark.parametrize("steered", [False, True], ids=["plain", "steered"])
def test_cached_batches_of_pictures_generate_what_full_recomputation_does(
    vision_model: HuggingFaceModel, steered: bool
) -> None:
    lengths = {len(vision_model.encode(p, i).ids) for p, i in zip(PROMPTS, IMAGES, strict=True)}
    assert len(lengths) == len(PROMPTS)  # so that all rows but one are padded
    plain = generated(vision_model, PROMPTS, IMAGES)
    with steering(vision_model) if steered else nullcontext():
        expected = recomputed(vision_model, PROMPTS, IMAGES)
        assert generated(vision_model, PROMPTS, IMAGES) == expected
        assert generated(vision_model, PROMPTS[::-1], IMAGES[::-1]) == expected[::-1]
        assert [generated(vision_model, PROMPTS[i : i + 1], IMAGES[i : i + 1]) for i in (0, 3)] == [
            expected[i : i + 1] for i in (0, 3)
        ]
    assert all((a != b) == steered for a, b in zip(plain, expected, strict=True))


class PrefillOnly(Steering):
    """A planted fault: steers the prompt but not the tokens generated from the cache."""

    def _hook(self, v: Tensor) -> Any:
        edit = super()._hook(v)
        return lambda block, inputs, output: edit(block, inputs, output) if residual_of(output).shape[1] > 1 else output


def test_steering_acts_in_every_decoding_step(vision_model: HuggingFaceModel) -> None:
    def largest_difference(context: AbstractContextManager[object]) -> float:
        """Between the logits of cached steps and the truth: the steered model run on all tokens at once."""
        x = vision_model.encode(PROMPT, PICTURES[0])
        extra = vision_model.family.generation((x.ids == vision_model.hf.config.image_token_id)[None])
        with context:
            found = vision_model.hf.generate(
                input_ids=x.ids[None],
                attention_mask=torch.ones_like(x.ids)[None],
                **vision_model.family.tensors([Picture.of(PICTURES[0])]),
                **extra,
                **{"do_sample": False, "max_new_tokens": N, "eos_token_id": None},
                return_dict_in_generate=True,
                output_logits=True,
            )
        with torch.no_grad(), steering(vision_model):
            truth = vision_model.logits(x, x.embeds[None], found.sequences[0, -N:])
        return (truth - torch.stack(found.logits, dim=1)).abs().max().item()

    assert largest_difference(steering(vision_model)) < 2e-4
    assert largest_difference(steering(vision_model, PrefillOnly)) > 0.1


def test_the_picture_matters_to_what_is_said(vision_model: HuggingFaceModel) -> None:
    items = [(PROMPT, YES, picture) for picture in (*PICTURES, noise_picture(90, 50, seed=11))]
    scores = [scored.log_prob for scored in vision_model.score(items)]
    assert min(abs(a - b) for i, a in enumerate(scores) for b in scores[:i]) > 1e-3


def test_each_row_needs_its_own_picture_or_none(vision_model: HuggingFaceModel) -> None:
    with pytest.raises(ValueError, match=r"2 prompts but 1 images; give one \(or None\) for every prompt"):
        vision_model.generate([PROMPT, PROMPT], images=[PICTURES[0]], max_new_tokens=1)


# --- scoring


ITEMS: list[Any] = [
    (PROMPT, YES, PICTURES[0]),
    ("The capital of France", "is Paris."),
    (PROMPT, NO, PICTURES[1]),  # the same words, another picture
    (CHAT, NO, PICTURES[2]),
    (PROMPT, "No", PICTURES[0]),
    (CHAT, "It is made of rock, as people say, and not of cheese.", PICTURES[2]),
    (PROMPT, NO, PICTURES[0]),
    (CHAT, NO),  # and without one
    ("The capital of France", "Rome", None),
]


@pytest.mark.parametrize(("batch_size", "steered"), [(1, False), (3, True), (64, False), (64, True)])
def test_batches_score_what_the_reference_scores_one_by_one(
    vision_model: HuggingFaceModel, batch_size: int, steered: bool
) -> None:
    with torch.no_grad(), steering(vision_model) if steered else nullcontext():
        got = vision_model.score(ITEMS, batch_size=batch_size)
        for (prompt, response, *image), scored in zip(ITEMS, got, strict=True):
            x = vision_model.encode(prompt, *image)
            expected = log_prob(vision_model, x, x.embeds[None], y=vision_model.response_ids(prompt, response))
            assert scored.log_prob == pytest.approx(expected.item(), rel=2e-5)


def test_gemmas_crops_are_scored_and_said_as_the_reference_does() -> None:
    model = random_gemma3(pan_and_scan=True)
    assert len(image_places(model.encode(*ITEMS[0][::2]))) == 3 * 9
    with torch.no_grad():
        for item, scored in zip(ITEMS, model.score(ITEMS), strict=True):
            x = model.encode(item[0], *item[2:])
            expected = log_prob(model, x, x.embeds[None], y=model.response_ids(item[0], item[1]))
            assert scored.log_prob == pytest.approx(expected.item(), rel=2e-5)
        assert generated(model, PROMPTS[:2], IMAGES[:2]) == recomputed(model, PROMPTS[:2], IMAGES[:2])


def test_rows_can_be_tokenised_once_and_scored_under_other_steerings(vision_model: HuggingFaceModel) -> None:
    rows = vision_model.tokenise(ITEMS)
    assert [bool(row.pictures) for row in rows] == [len(item) > 2 and item[2] is not None for item in ITEMS]
    plain = vision_model.score_rows(rows)
    with steering(vision_model):
        steered = vision_model.score_rows(rows)
    assert plain == vision_model.score(ITEMS)
    assert all(abs(a.log_prob - b.log_prob) > 1e-3 for a, b in zip(plain, steered, strict=True))


def test_what_is_said_greedily_is_greedy(vision_model: HuggingFaceModel) -> None:
    x = vision_model.encode(PROMPT, PICTURES[1])
    said = generate_greedy(vision_model, x, n=3)
    (row,) = vision_model.tokenise([(PROMPT, YES, PICTURES[1])])
    other = [said[0], said[1], (said[2] + 1) % 90]
    greedy, not_greedy = vision_model.score_rows([row._replace(response=tuple(ids)) for ids in (said, other)])
    assert greedy.is_greedy
    assert not not_greedy.is_greedy
