"""models/families.py, pictures: from a picture to image tokens, and back to a place in the picture."""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from shared import VISION, first_quick
from torch import Tensor, nn
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

from grains_ref.data.images import PictureError
from grains_ref.grains import HyperParameters, Steering, attribute
from grains_ref.models import EncodedPicture, HuggingFaceModel, UnsupportedModelError, features, load
from grains_ref.models import huggingface as models
from grains_ref.models.any_vision import AnyVision
from grains_ref.models.families import Family, Patch, Picture
from grains_ref.models.vision_families import VISION_FAMILIES, Gemma3, LlavaNext, Qwen25VL
from grains_ref.tiny_models.random_vision_models import (
    noise_picture,
    random_gemma3,
    random_llava,
    random_qwen_vl,
)

pytestmark = pytest.mark.cpu

Size = tuple[int, int]  # width, height
SIZES = [(90, 50), (42, 42), (33, 100)]
TRANSFORMERS_4 = transformers.__version__.startswith("4.")
OLDER_PROCESSORS = not hasattr(transformers, "LlavaNextImageProcessorPil")  # those of transformers 4 and 5.0
PROMPT = "Look: <image>\nWhat is it? A:"
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?"}]
NEWLINE = -1.0


def pil(name: str) -> Any:
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)


@pytest.fixture(scope="module")
def llava() -> HuggingFaceModel:
    return random_llava()


@pytest.fixture(scope="module")
def qwen_vl() -> HuggingFaceModel:
    return random_qwen_vl()


@pytest.fixture(scope="module")
def gemma3() -> HuggingFaceModel:
    return random_gemma3()


@pytest.fixture(scope="module")
def cropping_gemma3() -> HuggingFaceModel:
    return random_gemma3(pan_and_scan=True)


@pytest.fixture(scope="module", params=VISION.values(), ids=VISION)
def vision_model(request: pytest.FixtureRequest) -> HuggingFaceModel:
    """Each in turn: what is wrong with a family is found here first, so that none is left to `-m thorough`."""
    model: HuggingFaceModel = request.param()
    return model


@pytest.fixture(params=["llava", "qwen_vl", "gemma3", "cropping_gemma3"])
def seeing(request: pytest.FixtureRequest) -> HuggingFaceModel:
    """Each vision-language model, and Gemma 3 once more with pan-and-scan."""
    return request.getfixturevalue(request.param)


def real_llava() -> LlavaNext:
    """As in llava-v1.6-vicuna-7b."""
    pinpoints = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    config = transformers.LlavaNextConfig(
        text_config={"model_type": "llama"},
        vision_config={"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14},
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    crop = {"height": 336, "width": 336}
    processor = pil("LlavaNextImageProcessor")(
        size={"shortest_edge": 336}, crop_size=crop, image_grid_pinpoints=pinpoints
    )
    return LlavaNext(config, processor, "<image>")


def real_qwen_vl() -> Qwen25VL:
    """As in Qwen2.5-VL-7B-Instruct."""
    sizes: dict[str, Any] = {"size": {"shortest_edge": 3136, "longest_edge": 12_845_056}}
    if TRANSFORMERS_4:  # it replaces a size that is given so by its own default
        sizes = {"min_pixels": 3136, "max_pixels": 12_845_056}
    processor = pil("Qwen2VLImageProcessor")(**sizes)
    return Qwen25VL(transformers.Qwen2_5_VLConfig(), processor, "<|image_pad|>")


def real_gemma3(*, pan_and_scan: bool = False) -> Gemma3:
    """As in gemma-3-12b-it."""
    processor = pil("Gemma3ImageProcessor")(
        size={"height": 896, "width": 896},
        do_pan_and_scan=pan_and_scan,
        pan_and_scan_min_crop_size=256,
        pan_and_scan_max_num_crops=4,
        pan_and_scan_min_ratio_to_activate=1.2,
    )
    config = transformers.Gemma3Config(
        vision_config={"model_type": "siglip_vision_model", "image_size": 896, "patch_size": 14},
        mm_tokens_per_image=256,
    )
    return Gemma3(config, processor, "<image_soft_token>")


REAL_LLAVA = real_llava()

# --- nobody else knows


def test_no_other_module_asks_which_family_a_model_is_of() -> None:
    package = Path(models.__file__).parent.parent
    names = {family.__name__ for family in (*VISION_FAMILIES.values(), AnyVision)}
    assert len(names) == 7
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name == "vision_families.py" or not any(name in text for name in names):
            continue
        nodes = list(ast.walk(ast.parse(text)))
        used = {node.id for node in nodes if isinstance(node, ast.Name)}
        used |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        assert not used & names, path


# --- how many tokens


def llava_processor(family: Family, tokenizer: Any) -> Any:
    return transformers.LlavaNextProcessor(
        family.processor,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )


def counts_of_processor(family: Family, tokenizer: Any, size: Size) -> tuple[int, int]:
    """How many tokens a picture has, and how many of them are patches of tiles."""
    processor, (width, height) = llava_processor(family, tokenizer), size
    view = family.config.vision_config.image_size
    n, best = view // 14, select_best_resolution((height, width), family.config.image_grid_pinpoints)
    kept, _ = processor._get_unpadded_features(height, width, n, n, best[0] // view, best[1] // view)
    return processor._get_num_multimodal_tokens(image_sizes=[(height, width)])["num_image_tokens"][0], kept


side = st.integers(4 if OLDER_PROCESSORS else 1, 400)  # older processors take sides of 1 or 3 pixels for channels


@given(size=st.tuples(side, side))
@settings(max_examples=20)
def test_a_llava_picture_has_as_many_patches_as_the_processor_says_and_the_model_makes(
    llava: HuggingFaceModel, size: Size
) -> None:
    expected, kept = counts_of_processor(llava.family, llava.tokenizer, size)
    if not kept:
        with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels is too narrow"):
            llava.family.patches(size)
        return
    n = len(llava.family.patches(size))
    assert n == expected
    assert n == len(reference_features(llava, Image.new("RGB", size)))


@given(width=side, height=side, long=st.integers(1, 9000))
@settings(max_examples=20)
def test_a_picture_of_which_no_patch_is_left_is_refused_and_no_other(
    llava: HuggingFaceModel, width: int, height: int, long: int
) -> None:
    family = REAL_LLAVA
    for size in ((width, height), (width, long), (long, height)):
        expected, kept = counts_of_processor(family, llava.tokenizer, size)
        if not kept:
            with pytest.raises(ValueError, match=rf"{size[0]} x {size[1]} pixels is too narrow for LLaVA-NeXT.*crop"):
                family.patches(size)
        else:
            assert len(family.patches(size)) == expected


def test_a_picture_too_narrow_for_qwen_is_refused(qwen_vl: HuggingFaceModel) -> None:
    with pytest.raises(ValueError, match=r"2010 x 10 pixels is too narrow for Qwen2\.5-VL.*200.*crop it"):
        qwen_vl.encode(PROMPT, Image.new("RGB", (2010, 10)))
    assert qwen_vl.family.patches((2000, 10))


COUNTS = {  # size: LLaVA-v1.6, Qwen2.5-VL, Gemma 3, Gemma 3 with pan-and-scan
    (56, 56): (1176, 4, 256, 256),
    (224, 224): (1176, 64, 256, 256),
    (336, 336): (1176, 144, 256, 256),
    (640, 480): (2340, 391, 256, 768),
    (480, 640): (2352, 391, 256, 768),
    (1000, 300): (2182, 396, 256, 1024),
    (1024, 768): (2340, 999, 256, 768),
    (1920, 1080): (1948, 2691, 256, 768),
    (4000, 3000): (2340, 15301, 256, 768),
    (672, 672): (2928, 576, 256, 256),
}


@pytest.mark.parametrize("size", COUNTS, ids=lambda size: f"{size[0]}x{size[1]}")
def test_real_sizes_have_the_published_numbers_of_tokens(size: Size) -> None:
    families = (real_llava(), real_qwen_vl(), real_gemma3(), real_gemma3(pan_and_scan=True))
    assert tuple(len(family.patches(size)) for family in families) == COUNTS[size]
    for family in families:
        assert family.expansion(size).count(family.image_token) == len(family.patches(size))


# --- where they look


def area(patch: Patch) -> float:
    left, top, right, bottom = patch.box
    return (right - left) * (bottom - top)


def check_no_overlap(patches: list[Patch]) -> None:
    boxes = torch.tensor([patch.box for patch in patches], dtype=torch.float64)  # (n, 4)
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    common = (high - low).clamp(min=0).prod(-1)
    common.fill_diagonal_(0)
    assert common.max() < 1e-6


@given(size=st.tuples(side, side))
@settings(max_examples=20)
def test_llava_boxes_tile_the_picture(llava: HuggingFaceModel, size: Size) -> None:
    assume(counts_of_processor(llava.family, llava.tokenizer, size)[1])
    width, height = size
    patches = llava.family.patches(size)
    base, rest = patches[:9], patches[9:]
    assert [(p.view, p.row, p.column) for p in base] == [("base", r, c) for r in range(3) for c in range(3)]
    assert sum(map(area, base)) == pytest.approx(width * height)
    check_no_overlap(base)
    tiles = [p for p in rest if p.view != "newline"]
    assert all(area(p) > 0 for p in tiles)
    assert all(0 <= p.box[0] <= p.box[2] <= width and 0 <= p.box[1] <= p.box[3] <= height for p in rest)
    check_no_overlap(tiles)
    left, top, right, bottom = (pick(p.box[i] for p in tiles) for i, pick in enumerate((min, min, max, max)))
    assert sum(map(area, tiles)) == pytest.approx((right - left) * (bottom - top))  # no hole between them
    # transformers' rule may cut off the rim of the picture, in all less than a patch across and a patch down.
    assert left + width - right < max(p.box[2] - p.box[0] for p in tiles) + 1e-6
    assert top + height - bottom < max(p.box[3] - p.box[1] for p in tiles) + 1e-6


@pytest.mark.parametrize("size", [(90, 50), (33, 100), (84, 84), (200, 17)])
def test_a_llava_newline_closes_each_row_of_tiles_and_has_no_width(llava: HuggingFaceModel, size: Size) -> None:
    rows: list[list[Patch]] = [[]]
    for patch in llava.family.patches(size)[9:]:
        if patch.view != "newline":
            rows[-1].append(patch)
            continue
        assert patch.box == (size[0], rows[-1][0].box[1], size[0], rows[-1][0].box[3])
        assert (patch.row, patch.column) == (len(rows) - 1, len(rows[-1]))
        rows.append([])
    assert rows.pop() == []
    assert len({len(row) for row in rows}) == 1


@pytest.mark.parametrize("family", [real_qwen_vl(), real_gemma3()], ids=["qwen_vl", "gemma3"])
@pytest.mark.parametrize("size", [(300, 200), (57, 311), (640, 480)])
def test_other_boxes_tile_the_picture_exactly(family: Family, size: Size) -> None:
    patches = family.patches(size)
    assert {p.view for p in patches} == {"whole"}
    assert sum(map(area, patches)) == pytest.approx(size[0] * size[1])
    check_no_overlap(patches)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1000, 300), (301, 1000)])
def test_gemmas_crops_together_are_the_picture_once_more(size: Size) -> None:
    patches = real_gemma3(pan_and_scan=True).patches(size)
    crops = [p for p in patches if p.view != "whole"]
    assert sum(map(area, crops)) == pytest.approx(size[0] * size[1])
    check_no_overlap(crops)
    assert [p.view for p in patches[::256]] == ["whole"] + [f"crop {i}" for i in range(1, len(patches) // 256)]


def coordinates(width: int, height: int) -> Image.Image:
    """Red grows from left to right, green from top to bottom, and blue is full: padding has none."""
    pixels = np.full((height, width, 3), 255.0)
    pixels[..., 0] = (np.arange(width) + 0.5) / width * 255
    pixels[..., 1] = ((np.arange(height) + 0.5) / height * 255)[:, None]
    return Image.fromarray(pixels.round().astype(np.uint8))


def blocks_of(family: Family, pixels: Image.Image) -> Tensor:
    """Mean colour of what each image token looks at, 0..1, from what the processor hands to the vision tower.

    (views, rows, columns, 3); for Qwen, whose processor writes 2 x 2 patches one after the other, (1, 1, n, 3).
    """
    tensors = family.tensors([Picture.of(pixels)])
    mean, deviation = torch.tensor(family.processor.image_mean), torch.tensor(family.processor.image_std)
    seen = tensors["pixel_values"]
    if isinstance(family, Qwen25VL):
        blocks = seen.unflatten(1, (3, -1)).mean(-1).unflatten(0, (-1, 4)).mean(1)[None, None]
    else:
        n = 14 if isinstance(family, LlavaNext) else 896 // 16 if seen.shape[-1] == 896 else 28  # pixels per token
        seen = seen.flatten(0, -4)  # (views, 3, S, S)
        blocks = seen.unflatten(3, (-1, n)).mean(4).unflatten(2, (-1, n)).mean(3).movedim(1, -1)
    return blocks * deviation + mean


def in_order_of_tokens(family: Family, blocks: Tensor, size: Size) -> Tensor:
    """(n, 3), packed by transformers' own code; LLaVA's newlines are `NEWLINE`."""
    if not isinstance(family, LlavaNext):
        return blocks.flatten(0, 2)
    packed, _ = LlavaNextModel.pack_image_features(
        SimpleNamespace(config=family.config),
        [blocks.flatten(1, 2)],
        torch.tensor([size[::-1]]),
        "default",
        image_newline=torch.full((3,), NEWLINE),
    )
    return packed[0]


TINY = {"llava": random_llava, "qwen_vl": random_qwen_vl, "gemma3": random_gemma3}


@pytest.fixture(
    params=[size + name for size in ("", "real_") for name in ("llava", "qwen_vl", "gemma3", "cropping_gemma3")]
)
def family(request: pytest.FixtureRequest) -> Family:
    """Each family in tiny and in real sizes."""
    if not request.param.startswith("real_"):
        return request.getfixturevalue(request.param).family
    build = {"llava": real_llava, "qwen_vl": real_qwen_vl}.get(request.param.removeprefix("real_"))
    return build() if build else real_gemma3(pan_and_scan="cropping" in request.param)


@pytest.mark.parametrize("size", [(640, 480), (203, 411), (500, 160)], ids=lambda z: f"{z[0]}x{z[1]}")
def test_every_box_is_where_the_tokens_pixels_come_from(family: Family, size: Size) -> None:
    blocks = blocks_of(family, coordinates(*size))
    looked_at, patches = in_order_of_tokens(family, blocks, size), family.patches(size)
    assert len(looked_at) == len(patches)
    for patch, colour in zip(patches, looked_at, strict=True):
        assert (patch.view == "newline") == (colour[0].item() == NEWLINE)
        if patch.view == "newline":
            continue
        if not isinstance(family, Qwen25VL):
            view = 0 if patch.view in ("base", "whole") else int(patch.view.split()[1])
            assert torch.equal(blocks[view, patch.row, patch.column], colour)
        red, green, share = colour.tolist()
        left, top, right, bottom = patch.box
        for found, low, high, extent in ((red, left, right, size[0]), (green, top, bottom, size[1])):
            centre = found / share * extent  # without what padding there is
            assert abs(centre - (low + high) / 2) < 0.1 * (high - low) + 0.004 * extent


@pytest.mark.parametrize("size", [(150, 90), (60, 140), (84, 84)], ids=lambda z: f"{z[0]}x{z[1]}")
def test_a_bright_spot_changes_the_feature_of_the_patch_whose_box_holds_it(
    seeing: HuggingFaceModel, size: Size
) -> None:
    def features(pixels: Image.Image) -> Tensor:
        encoded = seeing.encode("<image>", pixels)
        return encoded.embeds[[kind == "image" for kind in encoded.kinds]]

    black, patches = Image.new("RGB", size), seeing.family.patches(size)
    dark = features(black)
    for i, patch in enumerate(patches):
        left, top, right, bottom = patch.box
        if i % 5 or patch.view == "newline" or min(right - left, bottom - top) < 7:
            continue
        spot = black.copy()
        inner = (
            left + (right - left) / 4,
            top + (bottom - top) / 4,
            right - (right - left) / 4,
            bottom - (bottom - top) / 4,
        )
        spot.paste((255, 255, 255), tuple(round(edge) for edge in inner))
        change = (features(spot) - dark).norm(dim=1)
        same_view = [p.view.partition(" ")[0] == patch.view.partition(" ")[0] for p in patches]
        change[[not same for same in same_view]] = -1
        assert change.argmax() == i, (patch, patches[change.argmax()])


def test_gemma_pools_neighbouring_patches_row_by_row(gemma3: HuggingFaceModel) -> None:
    seen = torch.zeros(37, 36, 24, dtype=torch.float32)  # 6 x 6 patches; one of them differs in each row but the first
    seen[torch.arange(1, 37), torch.arange(36)] = 1.0
    tokens = gemma3.hf.model.multi_modal_projector(seen)
    for patch, one in enumerate(tokens[1:]):
        changed = (one - tokens[0]).norm(dim=1).nonzero().flatten().tolist()
        assert changed == [patch // 6 // 2 * 3 + patch % 6 // 2]


# --- token ids


class QwenImageProcessor(transformers.Qwen2_5_VLProcessor):
    """Without the video processor, which needs torchvision."""

    attributes = ("image_processor", "tokenizer")  # transformers 4 checks number and classes of the arguments
    tokenizer_class = "PreTrainedTokenizerFast"

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        transformers.ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def processor_of(model: HuggingFaceModel) -> Any:
    """transformers' own processor, made of the model's image processor and a copy of its tokenizer."""
    tokenizer, images = copy.deepcopy(model.tokenizer), model.family.processor
    if isinstance(model.family, LlavaNext):
        return llava_processor(model.family, tokenizer)
    if isinstance(model.family, Qwen25VL):
        return QwenImageProcessor(images, tokenizer, tokenizer.chat_template)
    for name, token in (
        ("boi", "<start_of_image>"),
        ("eoi", "<end_of_image>"),
        ("image", "<image_soft_token>"),
    ):
        setattr(tokenizer, f"{name}_token", token)
        setattr(tokenizer, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))
    return transformers.Gemma3Processor(images, tokenizer, tokenizer.chat_template, image_seq_length=9)


def crop_options(model: HuggingFaceModel) -> dict[str, Any]:
    """Gemma's processor has defaults of its own for what its image processor was told already."""
    if not isinstance(model.family, Gemma3):
        return {}
    return {"do_pan_and_scan": model.family.processor.do_pan_and_scan, "pan_and_scan_min_crop_size": 16}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "prompt", ["<image>", "Look: <image>\nWhat is it?", "<image> What is it? A:", "Is it\n<image>"]
)
def test_a_plain_prompt_has_the_ids_of_transformers_processor(
    seeing: HuggingFaceModel, prompt: str, size: Size
) -> None:
    picture = noise_picture(*size)
    text = prompt.replace("<image>", seeing.family.marker)
    expected = processor_of(seeing)(images=picture, text=text, **crop_options(seeing))
    assert seeing.encode(prompt, picture).ids.tolist() == expected["input_ids"][0]


@pytest.mark.parametrize("size", SIZES[:2])
def test_a_chat_has_the_ids_of_transformers_processor(seeing: HuggingFaceModel, size: Size) -> None:
    picture = noise_picture(*size)
    chat = [*CHAT, {"role": "assistant", "content": "It is"}, {"role": "user", "content": "It is what?"}]
    parts: list[list[dict[str, Any]]] = [[{"type": "text", "text": message["content"]}] for message in chat]
    parts[1].insert(0, {"type": "image", "image": picture})
    with_parts = [{"role": m["role"], "content": content} for m, content in zip(chat, parts, strict=True)]
    cropping = crop_options(seeing)
    expected = processor_of(seeing).apply_chat_template(
        with_parts,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        **(cropping if OLDER_PROCESSORS else {"processor_kwargs": cropping}),
    )
    assert seeing.encode(chat, picture).ids.tolist() == expected["input_ids"][0]


def test_a_chat_without_a_picture_has_the_ids_of_transformers_processor(vision_model: HuggingFaceModel) -> None:
    with_parts = [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in CHAT]
    expected = processor_of(vision_model).apply_chat_template(
        with_parts, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert vision_model.encode(CHAT).ids.tolist() == expected["input_ids"][0]


# --- replay


def ordinary(model: HuggingFaceModel, n: int) -> Tensor:
    """Ids of n words that are neither special nor images."""
    ids = model.tokenizer("What is the capital of Spain? It is Madrid.", add_special_tokens=False)["input_ids"]
    assert not set(ids[:n]) & {*model.tokenizer.all_special_ids, model.hf.config.image_token_id}
    return torch.tensor(ids[:n])


def forward_pass(model: HuggingFaceModel, x: EncodedPicture, picture: Image.Image, y: Tensor) -> Tensor:
    """The model's logits from ids and pixels."""
    ids = torch.cat([x.ids, y[:-1]])[None]
    with torch.no_grad():
        return model.hf(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **model.family.tensors([Picture.of(picture)]),
            **model.family.generation(ids == model.hf.config.image_token_id),
            use_cache=False,
            logits_to_keep=len(y),
        ).logits


@pytest.mark.parametrize("prompt", first_quick([PROMPT, CHAT]), ids=["plain", "chat"])
@pytest.mark.parametrize("size", [*SIZES, (160, 30)])
def test_a_run_with_embeddings_is_the_run_with_pixels_bit_for_bit(
    seeing: HuggingFaceModel, prompt: Any, size: Size
) -> None:
    picture, y = noise_picture(*size), ordinary(seeing, 5)
    x = seeing.encode(prompt, picture)
    with torch.no_grad():
        assert torch.equal(seeing.logits(x, x.embeds[None], y), forward_pass(seeing, x, picture, y))


@pytest.mark.parametrize("size", SIZES)
def test_what_a_family_adds_to_the_replay_matters(seeing: HuggingFaceModel, size: Size) -> None:
    x, y = seeing.encode(PROMPT, noise_picture(*size)), ordinary(seeing, 4)
    plain = Family.replay(seeing.family, torch.zeros(len(x.ids)).bool(), [])
    changed = dataclasses.replace(x, replay=plain)
    with torch.no_grad():
        difference = (seeing.logits(x, x.embeds[None], y) - seeing.logits(changed, x.embeds[None], y)).abs().max()
    if isinstance(seeing.family, LlavaNext):
        assert difference == 0
    else:
        assert difference > 1e-2


def test_gemmas_token_types_of_zero_are_not_enough(gemma3: HuggingFaceModel) -> None:
    x, y = gemma3.encode(PROMPT, noise_picture(90, 50)), ordinary(gemma3, 4)
    zeros = dataclasses.replace(x, replay=x.replay | {"token_type_ids": torch.zeros_like(x.ids)})
    with torch.no_grad():
        difference = gemma3.logits(x, x.embeds[None], y) - gemma3.logits(zeros, x.embeds[None], y)
    assert difference.abs().max() > 1e-2


@given(size=st.tuples(st.integers(8, 300), st.integers(8, 300)), before=st.integers(1, 5), after=st.integers(0, 5))
@settings(max_examples=20)
def test_qwens_positions_are_those_of_transformers(
    qwen_vl: HuggingFaceModel, size: Size, before: int, after: int
) -> None:
    tensors = qwen_vl.family.tensors([Picture.of(Image.new("RGB", size))])
    n = len(qwen_vl.family.patches(size))
    is_image = torch.tensor([False] * before + [True] * n + [False] * after)
    ids = torch.where(is_image, qwen_vl.hf.config.image_token_id, 50)[None]
    ids[0, before - 1] = qwen_vl.hf.config.vision_start_token_id  # by which transformers 4 finds pictures
    rope_index = qwen_vl.hf.model.get_rope_index
    grid, everything = tensors["image_grid_thw"], torch.ones_like(ids)
    takes = inspect.signature(rope_index).parameters  # older versions find pictures themselves
    types = {"mm_token_type_ids": is_image[None].int()} if "mm_token_type_ids" in takes else {}
    expected, _ = rope_index(ids, image_grid_thw=grid, attention_mask=everything, **types)
    assert torch.equal(qwen_vl.family.replay(is_image, [size])["position_ids"], expected[:, 0])


@pytest.mark.parametrize("size", SIZES)
def test_left_padding_changes_no_logit_of_a_prompt_with_a_picture(seeing: HuggingFaceModel, size: Size) -> None:
    picture, y = noise_picture(*size), ordinary(seeing, 4)
    plain, padded = (seeing.encode(PROMPT, picture, left_padding=n) for n in (0, 3))
    assert padded.kinds == ("pad",) * 3 + plain.kinds
    assert padded.patches == (None,) * 3 + plain.patches
    for compute in (
        lambda x: seeing.logits(x, x.embeds[None].expand(2, -1, -1), y),
        lambda x: seeing.residuals(x, x.embeds[None]),
    ):
        with torch.no_grad():
            torch.testing.assert_close(compute(padded), compute(plain), rtol=1e-4, atol=1e-4)


# --- features


def tower(model: HuggingFaceModel) -> nn.Module:
    return model.family.vision_tower(model.hf)


@contextmanager
def runs_of_the_tower(model: HuggingFaceModel) -> Iterator[list[int]]:
    runs: list[int] = []
    handle = tower(model).register_forward_hook(lambda module, inputs, output: runs.append(1))
    model._features.clear()
    try:
        yield runs
    finally:
        handle.remove()


def reference_features(model: HuggingFaceModel, picture: Image.Image) -> Tensor:
    with torch.no_grad():
        found = model.hf.get_image_features(**model.family.tensors([Picture.of(picture)]))
    found = getattr(found, "pooler_output", found)  # transformers 4 returns the features alone
    return torch.cat([one.reshape(-1, model.width) for one in found])


def image_embeds(x: Any) -> Tensor:
    return x.embeds[[kind == "image" for kind in x.kinds]]


def test_image_tokens_are_the_models_own_features_and_words_its_own_embeddings(seeing: HuggingFaceModel) -> None:
    picture = noise_picture(90, 50)
    x = seeing.encode(PROMPT, picture)
    is_image = torch.tensor([kind == "image" for kind in x.kinds])
    assert torch.equal(is_image, x.ids == seeing.hf.config.image_token_id)
    assert torch.equal(x.embeds[is_image], reference_features(seeing, picture))
    assert torch.equal(x.embeds[~is_image], seeing.embed(x.ids[~is_image]))


def test_a_file_and_the_same_pixels_in_memory_are_one_picture(vision_model: HuggingFaceModel, tmp_path: Path) -> None:
    picture = noise_picture(50, 40)
    picture.save(tmp_path / "a.png")
    with runs_of_the_tower(vision_model) as runs:
        in_memory = vision_model.encode(PROMPT, picture)
        for source in (tmp_path / "a.png", str(tmp_path / "a.png"), picture.copy()):
            again = vision_model.encode("Another prompt <image>", source)
            assert torch.equal(image_embeds(again), image_embeds(in_memory))
            assert again.picture == in_memory.picture
    assert len(runs) == 1


def test_a_photo_taken_sideways_is_turned_before_it_is_cut_into_tokens(
    vision_model: HuggingFaceModel, tmp_path: Path
) -> None:
    upright, exif = noise_picture(50, 90), Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter, clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "sideways.png", exif=exif)
    expected, x = vision_model.encode(PROMPT, upright), vision_model.encode(PROMPT, tmp_path / "sideways.png")
    assert x.sizes == ((50, 90),)
    assert x.patches == expected.patches
    assert torch.equal(x.embeds, expected.embeds)


def test_another_picture_of_the_same_size_has_its_own_features(vision_model: HuggingFaceModel, tmp_path: Path) -> None:
    one, other = noise_picture(50, 40, seed=1), noise_picture(50, 40, seed=2)
    path = tmp_path / "a.png"
    for picture in (one, other, one):
        picture.save(path)  # the same name each time
        for source in (picture, path):
            x = vision_model.encode(PROMPT, source)
            assert torch.equal(image_embeds(x), reference_features(vision_model, picture))
    assert not torch.equal(reference_features(vision_model, one), reference_features(vision_model, other))


def test_forgetting_features_changes_no_result(vision_model: HuggingFaceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [noise_picture(50, 40, seed=i) for i in range(3)]
    kept = [vision_model.encode(PROMPT, picture).embeds for picture in pictures]
    room = 2.5 * kept[0].element_size() * image_embeds(vision_model.encode(PROMPT, pictures[0])).numel()
    monkeypatch.setattr(features, "FEATURE_BYTES", int(room))
    with runs_of_the_tower(vision_model) as runs:
        for i in (0, 1, 0, 2, 0, 1):
            assert torch.equal(vision_model.encode(PROMPT, pictures[i]).embeds, kept[i])
            assert len(vision_model._features) <= 2
    assert len(runs) == 4  # picture 1 was used least recently when picture 2 came, and had to be seen again
    monkeypatch.setattr(features, "FEATURE_BYTES", 1)
    assert torch.equal(vision_model.encode(PROMPT, pictures[2]).embeds, kept[2])


def test_a_kept_picture_is_found_without_measuring_all_others() -> None:
    measured: list[str] = []

    class Kept:
        def __init__(self, name: str) -> None:
            self.name = name

        @property
        def nbytes(self) -> int:
            measured.append(self.name)
            return 1

    pictures: Any = OrderedDict((name, Kept(name)) for name in "ab")
    assert features.features_of("a", pictures, lambda: pytest.fail("seen again")).name == "a"  # type: ignore[attr-defined]
    assert (list(pictures), measured) == (["b", "a"], [])
    features.features_of("c", pictures, lambda: Kept("c"))  # type: ignore[arg-type, return-value]
    assert sorted(measured) == ["a", "b", "c"]


def test_steering_does_not_change_what_a_picture_is(vision_model: HuggingFaceModel) -> None:
    picture = noise_picture(50, 40, seed=5)
    plain = vision_model.encode(PROMPT, picture).embeds
    with (
        runs_of_the_tower(vision_model) as runs,
        Steering(vision_model.blocks, torch.ones(len(vision_model.blocks), vision_model.width), lam=5.0),
    ):
        assert torch.equal(vision_model.encode(PROMPT, picture).embeds, plain)
    assert len(runs) == 1


def test_looking_at_a_picture_leaves_no_hook_behind(vision_model: HuggingFaceModel) -> None:
    def hooks() -> int:
        modules = vision_model.hf.modules()
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)

    vision_model.encode(PROMPT, noise_picture(50, 40))
    before = hooks()
    vision_model._features.clear()
    vision_model.encode(PROMPT, noise_picture(50, 40))
    assert hooks() == before


# --- kinds


@pytest.mark.parametrize("prompt", [PROMPT, CHAT], ids=["plain", "chat"])
def test_exactly_the_image_tokens_have_a_patch(seeing: HuggingFaceModel, prompt: Any) -> None:
    x = seeing.encode(prompt, noise_picture(90, 50))
    assert isinstance(x, EncodedPicture)
    assert x.sizes == ((90, 50),)
    assert [patch for patch in x.patches if patch] == seeing.family.patches((90, 50))
    assert [patch is not None for patch in x.patches] == [kind == "image" for kind in x.kinds]
    assert len(x.patches) == len(x.kinds) == len(x.tokens) == len(x.ids)
    assert type(seeing.encode("No picture")) is not EncodedPicture


def words(model: HuggingFaceModel, x: Any, kind: str) -> str:
    return model.tokenizer.decode(x.ids[[one == kind for one in x.kinds]])


@pytest.mark.parametrize("question", ["What is it?", "user", "<", "a", "image"])
def test_only_the_users_words_are_text(seeing: HuggingFaceModel, question: str) -> None:
    x = seeing.encode([CHAT[0], {"role": "user", "content": question}], noise_picture(90, 50))
    assert words(seeing, x, "text").strip() == question
    assert "Be brief." in words(seeing, x, "template")


@pytest.mark.parametrize(("before", "after"), [("Look: ", "\nWhat is it? A:"), ("", " What is it?"), ("Look:\n", "")])
def test_words_before_and_after_the_picture_are_text(seeing: HuggingFaceModel, before: str, after: str) -> None:
    x = seeing.encode(f"{before}<image>{after}", noise_picture(90, 50))
    text = "".join(token for token, kind in zip(x.tokens, x.kinds, strict=True) if kind == "text")
    assert text.split() == (before + after).split()


def test_special_and_template_tokens_around_a_picture(
    llava: HuggingFaceModel, qwen_vl: HuggingFaceModel, cropping_gemma3: HuggingFaceModel
) -> None:
    def of(model: HuggingFaceModel, kind: str) -> list[str]:
        x = model.encode("Look: <image> What?", noise_picture(90, 50))
        return [token for token, one in zip(x.tokens, x.kinds, strict=True) if one == kind]

    assert of(qwen_vl, "special") == ["<|vision_start|>", "<|vision_end|>"]
    assert of(qwen_vl, "template") == []
    assert of(llava, "special") == ["<s>"]
    assert of(llava, "template") == []
    gemma = of(cropping_gemma3, "special")
    assert gemma == ["<bos>"] + ["<start_of_image>", "<end_of_image>"] * 3
    introduction = "".join(of(cropping_gemma3, "template"))
    assert introduction.replace("\n", "").split() == (
        "Here is the original image and here are some crops to help you see better".split()
    )
    assert introduction.count("\n") == 4 * 3


# --- refusals


@pytest.mark.parametrize(
    ("prompt", "has_picture", "message"),
    [
        ("What is <image>?", False, r"marks 1 place\(s\) for a picture, but no picture was given.*'image'.*--image"),
        ("What is it?", True, r"no place for its picture; write <image> in it"),
        ("<image> and <image>", True, r"marks 2 places for a picture, but 1 came; give one picture for each"),
        ("<image> and <image>", False, r"marks 2 place\(s\) for a picture, but no picture was given"),
    ],
)
def test_a_plain_prompt_and_its_picture_must_fit(
    vision_model: HuggingFaceModel, prompt: str, has_picture: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        vision_model.encode(prompt, noise_picture(50, 40) if has_picture else None)


def test_the_template_places_a_chats_picture_and_not_the_user(vision_model: HuggingFaceModel) -> None:
    for mark in ("<image>", vision_model.family.marker):
        chat = [CHAT[0], {"role": "user", "content": f"What is {mark}?"}]
        with pytest.raises(ValueError, match=r"the rendered chat has 2 places .*leave <image> out of the messages"):
            vision_model.encode(chat, noise_picture(50, 40))
    with pytest.raises(ValueError, match="no picture was given"):
        vision_model.encode(chat)


def test_a_template_without_a_place_for_pictures_is_refused() -> None:
    model = random_llava()
    model.tokenizer.chat_template = "{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}"
    with pytest.raises(UnsupportedModelError, match=r"the chat template has no place for a picture; .*plain text"):
        model.encode(CHAT, noise_picture(50, 40))


def test_a_text_model_takes_no_picture(model: HuggingFaceModel) -> None:
    with pytest.raises(ValueError, match=rf"{model.name} is a text model \(.*\) and cannot take an image"):
        model.encode("What is this?", noise_picture(50, 40))
    assert "image" not in model.encode("What is <image>?").kinds  # to it an ordinary word


def test_a_model_that_sees_needs_its_image_processor(vision_model: HuggingFaceModel) -> None:
    with pytest.raises(UnsupportedModelError, match=r"half is a vision-language model; give its image_processor"):
        HuggingFaceModel(vision_model.hf, vision_model.tokenizer, name="half")


def test_llava_with_another_choice_of_features_is_refused(llava: HuggingFaceModel) -> None:
    config = copy.deepcopy(llava.hf.config)
    config.vision_feature_select_strategy = "full"
    with pytest.raises(UnsupportedModelError, match=r"vision_feature_select_strategy 'full'.*expected 'default'"):
        LlavaNext(config, llava.family.processor, "<image>")


def test_a_broken_picture_is_named(vision_model: HuggingFaceModel, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    noise_picture(50, 40).save(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(PictureError, match=r"broken\.png"):
        vision_model.encode(PROMPT, path)
    with pytest.raises(PictureError, match=r"nothing\.png: no such file"):
        vision_model.encode(PROMPT, tmp_path / "nothing.png")


def test_a_tokenizer_that_splits_the_image_token_is_refused(llava: HuggingFaceModel) -> None:
    model = random_llava()
    model.family.image_token = "<picture>"
    with pytest.raises(
        UnsupportedModelError, match=r"should give \d+ image tokens, but its tokenizer made 0.*<picture>"
    ):
        model.encode(PROMPT, noise_picture(50, 40))


# --- responses after a SentencePiece-like tokenizer


@pytest.mark.parametrize("prompt", ["A:", "Q: Is it round? A:"])
def test_a_response_has_the_tokens_of_the_whole_sentence(llava: HuggingFaceModel, prompt: str) -> None:
    joined = llava.tokenizer(f"{prompt} No.")["input_ids"]
    ids = torch.cat([llava.encode(prompt).ids, llava.response_ids(prompt, "No.")])
    assert llava.tokenizer.decode(ids) == llava.tokenizer.decode(joined)
    assert ids.tolist() == joined
    pieces = llava.tokenizer.convert_ids_to_tokens(llava.response_ids(prompt, "No."))
    assert "".join(pieces) == "\u2581No."


@pytest.mark.parametrize("prompt", ["A:\n", "A: "])
def test_after_white_space_a_response_begins_without_a_space(llava: HuggingFaceModel, prompt: str) -> None:
    pieces = llava.tokenizer.convert_ids_to_tokens(llava.response_ids(prompt, "No."))
    assert "".join(pieces) == "No."


def test_between_template_and_answer_is_what_the_template_writes(
    llava: HuggingFaceModel, qwen_vl: HuggingFaceModel, gemma3: HuggingFaceModel, model: HuggingFaceModel
) -> None:
    assert llava.prompts.before_answer == " "
    assert [each.prompts.before_answer for each in (qwen_vl, gemma3, model)] == [""] * 3
    pieces = llava.tokenizer.convert_ids_to_tokens(llava.response_ids(CHAT, "No."))
    assert "".join(pieces) == "\u2581No."


def test_a_chats_answer_has_the_tokens_of_the_finished_chat(llava: HuggingFaceModel) -> None:
    picture = noise_picture(50, 40)
    ids = torch.cat([llava.encode(CHAT, picture).ids, llava.response_ids(CHAT, "No.")]).tolist()
    finished = [*CHAT, {"role": "assistant", "content": "No."}, {"role": "user", "content": "What is it?"}]
    assert llava.encode(finished, picture).ids.tolist()[: len(ids)] == ids


# --- baselines, fingerprints, folders


def test_the_mean_baseline_is_taken_over_each_modality_by_itself(seeing: HuggingFaceModel) -> None:
    x = seeing.encode(PROMPT, noise_picture(90, 50))
    mean = seeing.baseline(x, "mean")
    is_image = torch.tensor([kind == "image" for kind in x.kinds])
    features = x.embeds[is_image].double().mean(0).float()
    vocabulary = seeing.embed(torch.arange(seeing.embed.num_embeddings)).double().mean(0).float()
    torch.testing.assert_close(mean[is_image], features.expand_as(mean[is_image]), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(mean[~is_image], vocabulary.expand_as(mean[~is_image]), rtol=1e-6, atol=1e-7)
    assert (features - vocabulary).abs().max() > 0.05


@pytest.mark.thorough
@pytest.mark.parametrize("build", TINY.values(), ids=TINY)
def test_a_fingerprint_sees_tower_and_projector(build: Callable[[], HuggingFaceModel]) -> None:
    model = build()
    original = model.fingerprint()
    assert build().fingerprint() == original
    decoder = {id(p) for p in model.hf.get_decoder().parameters()} | {id(p) for p in model.hf.lm_head.parameters()}
    seeing = [(name, p) for name, p in model.hf.named_parameters() if id(p) not in decoder]
    tower_parameters = {id(p) for p in tower(model).parameters()}
    in_tower = [p for _, p in seeing if id(p) in tower_parameters]
    projector = [p for name, p in seeing if "projector" in name or "merger" in name]
    for parameter in (in_tower[len(in_tower) // 2], projector[0]):
        before = parameter.flatten()[-1].item()
        parameter.flatten()[-1] += 0.5
        assert model.fingerprint() != original
        parameter.flatten()[-1] = before
    assert model.fingerprint() == original


def saved(model: HuggingFaceModel, folder: Path) -> Path:
    for part in (model.hf, model.tokenizer, model.family.processor):
        part.save_pretrained(folder)
    return folder


@pytest.mark.thorough
def test_a_saved_folder_loads_as_the_same_model(seeing: HuggingFaceModel, tmp_path: Path) -> None:
    loaded, picture = load(saved(seeing, tmp_path)), noise_picture(90, 50)
    assert type(loaded.family) is type(seeing.family)
    assert loaded.fingerprint() == seeing.fingerprint()
    for prompt in (PROMPT, CHAT):
        ours, theirs = loaded.encode(prompt, picture), seeing.encode(prompt, picture)
        assert torch.equal(ours.embeds, theirs.embeds)
        assert (ours.kinds, ours.patches, ours.picture) == (theirs.kinds, theirs.patches, theirs.picture)


def test_a_template_kept_with_the_processor_is_found(llava: HuggingFaceModel, tmp_path: Path) -> None:
    bare = copy.deepcopy(llava.tokenizer)
    bare.chat_template = None
    saved(llava, tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    bare.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no chat template"):
        load(tmp_path).encode(CHAT)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": llava.tokenizer.chat_template}))
    picture = noise_picture(50, 40)
    assert torch.equal(load(tmp_path).encode(CHAT, picture).ids, llava.encode(CHAT, picture).ids)


def test_a_folder_without_an_image_processor_is_an_error_of_the_operating_system(
    llava: HuggingFaceModel, tmp_path: Path
) -> None:
    llava.hf.save_pretrained(tmp_path)
    llava.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(OSError, match="preprocessor_config"):
        load(tmp_path)


# --- random draws


@pytest.mark.parametrize("method", first_quick(["random", "smoothgrad"]))
def test_draws_depend_on_the_picture_and_not_on_where_it_came_from(
    vision_model: HuggingFaceModel, method: Any, tmp_path: Path
) -> None:
    hp = HyperParameters(attribution=method, n=1)
    one, other = noise_picture(50, 40, seed=1), noise_picture(50, 40, seed=2)
    one.save(tmp_path / "one.png")

    def draw(picture: Any) -> Tensor:
        return attribute(vision_model, vision_model.example(PROMPT, "Yes.", "No.", picture), hp).a

    first = draw(one)
    assert torch.equal(draw(tmp_path / "one.png"), first)
    assert not torch.equal(draw(other), first)
    if method == "random":  # scores know nothing of the embeddings, so only the seed can make this difference
        assert (draw(other) - first).abs().min() > 0


def test_rows_with_and_without_a_picture_are_told_apart_whatever_the_file_is_called(
    vision_model: HuggingFaceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise_picture(50, 40).save(tmp_path / "None", format="png")
    monkeypatch.chdir(tmp_path)
    rows = vision_model.tokenise([("A:", "Yes."), (PROMPT, "Yes.", "None"), (PROMPT, "Yes.", noise_picture(50, 40))])
    assert [not row.pictures for row in rows] == [True, False, False]
    assert rows[1] == rows[2]
