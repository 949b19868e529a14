"""Several pictures in one prompt, and image-text models that are asked instead of having a class of their own."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import transformers
from PIL import Image
from shared import first_quick
from torch import Tensor
from zoo import deeper, pictures
from zoo.seeing import SEEING

from grains_ref.authors import AuthorsModel, last_token_again
from grains_ref.authors import attribute as authors_attribute
from grains_ref.authors import branch as authors_branch
from grains_ref.data import PreferencePair
from grains_ref.fast import engine_of
from grains_ref.fitting import checked_examples
from grains_ref.grains import HyperParameters, Steering, fit
from grains_ref.models import EncodedPicture, HuggingFaceModel, UnsupportedModelError, replay
from grains_ref.models.families import Picture
from grains_ref.models.proof import ProofFailedError, prove
from grains_ref.tiny_models.random_vision_models import noise_picture, random_llava

pytestmark = pytest.mark.cpu

PROMPT = "<image> Is it like <image>\nA:"
WIDE, TALL = noise_picture(90, 50, seed=1), noise_picture(40, 110, seed=2)
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Are they alike?"}]
YES, NO = "Yes, so they say.", "No, it is rock."
IN_5_23 = pytest.mark.skipif(transformers.__version__ < "5.23", reason="tiny configurations are made for 5.23")


def from_pixels(model: HuggingFaceModel, x: EncodedPicture, images: list[Image.Image], y: Tensor) -> Tensor:
    """The logits of a response that transformers computes from ids and pixels."""
    ids = torch.cat([x.ids, y[:-1]])[None]
    with torch.no_grad():
        logits: Tensor = model.hf(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **model.family.tensors([Picture.of(image) for image in images]),
            **model.family.generation(ids == model.prompts.image_id),
            use_cache=False,
            logits_to_keep=len(y),
        ).logits
    return logits


# --- several pictures


@pytest.mark.parametrize("prompt", [PROMPT, CHAT], ids=["plain", "chat"])
def test_two_pictures_replayed_are_two_pictures_seen(vision_model: HuggingFaceModel, prompt: Any) -> None:
    y = vision_model.response_ids(prompt, YES)
    for images in ([WIDE, TALL], [TALL, WIDE]):
        x = vision_model.encode(prompt, images)
        assert isinstance(x, EncodedPicture)
        with torch.no_grad():
            replayed = vision_model.logits(x, x.embeds[None], y)
        torch.testing.assert_close(replayed, from_pixels(vision_model, x, images, y), rtol=1e-4, atol=1e-4)


def test_each_picture_has_its_own_boxes(vision_model: HuggingFaceModel) -> None:
    x = vision_model.encode(PROMPT, [WIDE, TALL])
    assert isinstance(x, EncodedPicture)
    assert x.sizes == (WIDE.size, TALL.size)
    seen = [one for one in x.patches if one]
    assert [(one is not None) for one in x.patches] == [kind == "image" for kind in x.kinds]
    for i, size in enumerate(x.sizes):
        assert [one._replace(picture=0) for one in seen if one.picture == i] == vision_model.family.patches(size)


def test_words_between_pictures_are_text(vision_model: HuggingFaceModel) -> None:
    x = vision_model.encode(PROMPT, [WIDE, TALL])
    assert isinstance(x, EncodedPicture)
    user = "".join(x.tokens[j] for j, kind in enumerate(x.kinds) if kind == "text")
    assert "".join(user.split()).endswith("IsitlikeA:")
    owners = [one.picture if one else None for one in x.patches]
    behind_first, second = len(owners) - owners[::-1].index(0), owners.index(1)
    assert "".join("".join(x.tokens[behind_first:second]).split()).find("Isitlike") >= 0


def test_the_order_of_pictures_counts(vision_model: HuggingFaceModel) -> None:
    rows = vision_model.tokenise(
        [(PROMPT, YES, [WIDE, TALL]), (PROMPT, YES, [TALL, WIDE]), (PROMPT, YES, (WIDE, TALL))]
    )
    scored = [row.log_prob for row in vision_model.score_rows(rows)]
    assert scored[0] == scored[2] != scored[1]
    assert rows[0].picture_digest != rows[1].picture_digest


def test_texts_one_picture_and_two_share_a_batch(vision_model: HuggingFaceModel) -> None:
    items: list[Any] = [("The capital", YES), ("<image> Is it? A:", YES, WIDE), (PROMPT, NO, [TALL, WIDE])]
    for item, scored in zip(items, vision_model.score(items), strict=True):
        (alone,) = vision_model.score([item])
        assert scored.log_prob == pytest.approx(alone.log_prob, rel=1e-5)
    said = vision_model.generate(
        [item[0] for item in items], images=[item[2] if len(item) > 2 else None for item in items], max_new_tokens=3
    )
    for item, text in zip(items, said, strict=True):
        assert vision_model.generate([item[0]], images=[*item[2:]] or [None], max_new_tokens=3) == [text]


def test_marks_and_pictures_must_be_as_many(vision_model: HuggingFaceModel) -> None:
    with pytest.raises(ValueError, match="marks 2 places for a picture, but 3 came"):
        vision_model.encode(PROMPT, [WIDE, TALL, WIDE])
    with pytest.raises(ValueError, match="the rendered chat has 3 places for a picture instead of 2"):
        vision_model.encode([{"role": "user", "content": "<image> Alike?"}], [WIDE, TALL])


def test_both_engines_attribute_and_fit_two_pictures_alike(tmp_path: Path) -> None:
    llava = random_llava()
    paths = []
    for i in range(4):
        paths.append(tmp_path / f"{i}.png")
        noise_picture(60 + 10 * i, 80 - 10 * i, seed=i).save(paths[-1])
    pairs = [
        PreferencePair(str(i), PROMPT, YES, NO, "here", image=images)
        for i, images in enumerate(itertools.permutations(paths[:3], 2))
    ][:3]
    pairs.append(PreferencePair("3", "Q: Is it? A:", YES, NO, "here"))
    _, examples, _ = checked_examples(llava, pairs, skip_bad_rows=False)
    hp = HyperParameters(m=2, k=4)
    slow, fast = (engine_of(name, llava) for name in ("reference", "fast"))
    for example in (examples[0], examples[3]):
        torch.testing.assert_close(fast.attribute(example, hp).a, slow.attribute(example, hp).a, rtol=1e-3, atol=1e-4)
    steered = fit(llava, examples, hp).v
    with Steering(llava.blocks, steered, lam=3.0):
        assert llava.score([(PROMPT, YES, paths[:2])])[0].log_prob < 0


def test_a_model_that_takes_two_pictures_wrongly_is_refused_when_they_come() -> None:
    model = random_llava()
    right = model.family.tensors

    def exchanged(images: Any) -> dict[str, Tensor]:
        return right(images[::-1]) if len(images) > 1 else right(images)

    with (
        patch.object(model.family, "tensors", exchanged),
        pytest.raises(UnsupportedModelError, match="one picture per"),
    ):
        model.encode(PROMPT, [WIDE, TALL])
    assert model.encode("<image> Is it? A:", [WIDE]).picture  # one is taken all the same
    assert " " in model.encode(PROMPT, [WIDE, TALL]).picture


# --- asked families

ASKED = {
    "internvl": ("tiles", "fewer tokens than patches, and tiles"),
    "glm4v": ("regular", "positions of its own"),
    "idefics2": ("none", "tokens that look everywhere"),
    "llava_onevision": ("none", "tokens that close rows"),
}


@pytest.fixture(scope="module")
def asked() -> dict[str, HuggingFaceModel]:
    return {}


def asked_model(built: dict[str, HuggingFaceModel], kind: str) -> HuggingFaceModel:
    if kind not in built:
        built[kind] = pictures.tiny(kind)
    return built[kind]


@IN_5_23
@pytest.mark.parametrize("kind", first_quick(ASKED, 2))
def test_an_asked_model_is_right_in_its_uses(asked: dict[str, HuggingFaceModel], kind: str) -> None:
    model = asked_model(asked, kind)
    assert deeper.pictures_are_scored_right(model) < 1e-4
    assert deeper.two_pictures_are_told_apart(model) < 1e-4
    x = model.encode(deeper.PICTURE_PROMPT, WIDE)
    assert isinstance(x, EncodedPicture)
    y = model.response_ids(deeper.PICTURE_PROMPT, YES)
    with torch.no_grad():
        assert torch.equal(model.logits(x, x.embeds[None], y), from_pixels(model, x, [WIDE], y))
    boxes = [one.box for one in x.patches if one]
    n = x.kinds.count("image")
    assert len(set(boxes)) == (0 if ASKED[kind][0] == "none" else n)


@IN_5_23
def test_tiles_are_found_row_by_row_whatever_the_picture_s_shape(asked: dict[str, HuggingFaceModel]) -> None:
    """Each tile's pixels are those of its box."""
    family = asked_model(asked, "internvl").family
    for size, shape in (((160, 60), (1, 3)), ((60, 160), (3, 1)), ((100, 100), (2, 2))):
        patches = family.patches(size)
        tiles = sorted({one.view for one in patches if one.view != "whole"})
        assert len(tiles) == shape[0] * shape[1]
        black = family.tensors([Picture.of(Image.new("RGB", size))])["pixel_values"]
        for i, name in enumerate(tiles):
            boxes = [one.box for one in patches if one.view == name]
            spotted = Image.new("RGB", size)
            spotted.paste((255, 255, 255), (round(boxes[0][0]) + 3, round(boxes[0][1]) + 3, *map(int, boxes[-1][2:])))
            changed = (family.tensors([Picture.of(spotted)])["pixel_values"] - black).flatten(1).abs().sum(1)
            assert int(changed[:-1].argmax()) == i  # the last view is the whole picture


@IN_5_23
def test_a_grid_that_the_features_do_not_follow_is_no_grid(asked: dict[str, HuggingFaceModel]) -> None:
    """InternVL's tokens of a picture of one tile are a grid row by row; in another order they are none."""
    family = asked_model(asked, "internvl").family
    size = (56, 56)
    assert [one[1:3] for one in family.patches(size)] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    features = family._features  # type: ignore[attr-defined]
    turned = {"_features": lambda tensors: features(tensors).flip(0), "_answers": {}, "_holds": {}}
    with patch.multiple(family, **turned):
        assert family.patches(size) == []


def test_what_cannot_be_played_back_is_refused() -> None:
    is_image = torch.tensor([False, True, True, False])
    given = {"inputs_embeds": torch.zeros(1, 4, 6), "states": torch.zeros(3, 6)}
    with pytest.raises(UnsupportedModelError, match=r"given 'states' of shape \(3, 6\) besides embeddings"):
        replay._entrance("toy", given, is_image)


def test_what_comes_besides_embeddings_is_sorted_and_put_back() -> None:
    is_image = torch.tensor([False, True, True, False])
    deep = [torch.randn(2, 3), torch.randn(2, 3)]
    given = {
        "inputs_embeds": torch.randn(1, 4, 3),
        "position_ids": torch.arange(12).view(3, 1, 4),
        "kinds": torch.tensor([[5, 6, 7, 8]]),
        "seen": is_image[None],
        "deep": deep,
        "by_block": {2: deep[0]},
    }
    entered = replay._entrance("toy", given, is_image)
    assert torch.equal(entered.features, given["inputs_embeds"][0, 1:3])
    assert torch.equal(entered.replay["position_ids"], torch.arange(12).view(3, 4))
    of_prompt = entered.replay | replay.at_tokens(entered.deep, is_image)
    of_prompt["attention_mask"] = torch.ones(4).long()
    text = {"attention_mask": torch.ones(2).long(), "position_ids": torch.arange(2)}
    both = replay.padded_replay([text, of_prompt], device=torch.device("cpu"))
    assert both["position_ids"].shape == (3, 2, 4)
    back = replay._entering(both, torch.zeros(()))
    assert back["kinds"].tolist() == [[0, 0, 0, 0], [5, 6, 7, 8]]
    assert back["seen"].tolist() == [[False] * 4, is_image.tolist()]
    assert all(map(torch.equal, back["deep"], deep))
    assert torch.equal(back["by_block"][2], deep[0])


def test_a_picture_that_is_not_in_the_embeddings_is_refused() -> None:
    model = random_llava()

    def same(ids: Tensor, pictures: Any) -> Tensor:
        return model.embed(ids.masked_fill(ids == model.prompts.image_id, 0))

    with (
        patch.object(model, "embed_prompt", same),
        pytest.raises(ProofFailedError, match="the picture enters elsewhere"),
    ):
        prove(model)


@IN_5_23
@torch.no_grad()
def test_the_authors_dialect_never_lets_a_deep_picture_in() -> None:
    """Row 18: image tokens are words, so the score is that of transformers' run on the ids alone."""
    model = SEEING["qwen3_vl"]()
    dialect = AuthorsModel(model, model.embed, model.hf.get_decoder().norm, pad_id=model.tokenizer.eos_token_id)
    example = model.example(deeper.PICTURE_PROMPT, YES, NO, WIDE)
    whole = authors_branch(dialect, example.encoded, example.y_pos)
    ids = whole.ids[None]
    positions = torch.arange(ids.shape[1])[None]
    logits = model.hf(input_ids=ids, position_ids=positions, use_cache=False).logits[0, -1]
    expected = logits.log_softmax(-1)[example.y_pos[-1]]
    got = last_token_again(dialect, whole, whole.embeds[None], y=example.y_pos)
    torch.testing.assert_close(got[0], expected, rtol=1e-5, atol=1e-5)
    scores = authors_attribute(dialect, example, "gradient").a_pos.a
    assert scores.shape == (len(example.encoded.ids) + len(example.y_pos),)


@IN_5_23
@torch.no_grad()
def test_two_deep_pictures_and_a_text_share_a_pass() -> None:
    model = SEEING["qwen3_vl"]()
    rows = [model.encode(deeper.PROMPTS[0]), model.encode(PROMPT, [WIDE, TALL])]
    answers = [model.response_ids("Q:", answer) for answer in (YES, NO)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that they had to be computed apart
        got = model.branches.log_probs(rows, [x.embeds for x in rows], [answers, answers])
    changed = dataclasses.replace(rows[1], replay={k: v for k, v in rows[1].replay.items() if " " not in k})
    for x, found in zip(rows, got, strict=True):
        for y, log_p in zip(answers, found, strict=True):
            expected = model.logits(x, x.embeds[None], y)[0].log_softmax(-1).gather(1, y[:, None]).sum()
            torch.testing.assert_close(log_p, expected, rtol=1e-5, atol=1e-4)
    without = model.logits(changed, rows[1].embeds[None], answers[0])
    assert (without - model.logits(rows[1], rows[1].embeds[None], answers[0])).abs().max() > 1e-2
