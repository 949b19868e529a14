"""methods/ict.py: noised pictures and objects, against closed forms, geometry known elsewhere, and plants."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from grains_ref.data import PreferencePair, read_pairs
from grains_ref.grains import DegenerateShiftsError
from grains_ref.methods import ict
from grains_ref.methods.core import capture, edit_pixels
from grains_ref.methods.ict import TrustedHeads, boxes_in_file, fit, noise_weights, object_in_question, pixels_inside
from grains_ref.models import HuggingFaceModel
from grains_ref.models.families import Picture
from grains_ref.tiny_models.random_vision_models import noise_picture, random_llava, random_qwen_vl
from grains_ref.tiny_models.tokenizer import word_tokenizer

pytestmark = pytest.mark.cpu


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[PreferencePair]:
    folder = tmp_path_factory.mktemp("pictures")
    made = []
    for i in range(6):
        path = folder / f"{i}.png"
        noise_picture(84, 84, i).save(path)
        prompt = f"<image>Is there a {['cat', 'dog', 'sun'][i % 3]} in the image?"
        made.append(PreferencePair(str(i), prompt, "yes", "no", where=f"test:{i}", image=path))
    return made


def left_half(pair: PreferencePair) -> Sequence[ict.Box]:
    return [(0, 0, 42, 84)]


@pytest.fixture(scope="module")
def llava() -> HuggingFaceModel:
    return random_llava()


@pytest.fixture(scope="module")
def trust(llava: HuggingFaceModel, pairs: list[PreferencePair]) -> TrustedHeads:
    return fit(llava, pairs[:4], boxes=left_half)


@pytest.fixture
def unranked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no ranking of heads is looked at: a regression for every head takes longer than all the rest."""

    def undecided(x: Tensor, y: Tensor, x_held_out: Tensor, y_held_out: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full(x.shape[1:2], 0.5), torch.zeros(x.shape[1])

    monkeypatch.setattr(ict, "logistic_probe", undecided)


def pixels_of(model: HuggingFaceModel, pair: PreferencePair) -> Tensor:
    assert pair.image
    return model.family.pixel_layout.at_tower(model.family.tensors([Picture.of(pair.image)])["pixel_values"])


def noised(model: HuggingFaceModel, pair: PreferencePair, *, seed: int = 0, where: Tensor | None = None) -> Tensor:
    return ict._noise(model, pair, noise_weights(500), seed=seed, where=where)(pixels_of(model, pair))


# --- noise


def test_the_noise_schedule() -> None:
    assert noise_weights(500) == pytest.approx((0.863, 0.505), abs=5e-4)
    first = 1e-5 + (5e-3 - 1e-5) / (1 + np.exp(6))
    assert noise_weights(0) == pytest.approx((np.sqrt(1 - first), np.sqrt(first)))
    for step in (0, 1, 700, 999):
        signal, noise = noise_weights(step)
        assert signal**2 + noise**2 == pytest.approx(1)
        by_hand = np.prod([1 - (1e-5 + (5e-3 - 1e-5) / (1 + np.exp(6 - 12 * j / 999))) for j in range(step + 1)])
        assert signal**2 == pytest.approx(by_hand)
    for step in (-1, 1000):
        with pytest.raises(ValueError, match="steps 0 to 999"):
            noise_weights(step)


def test_noise_belongs_to_the_picture(vision_model: HuggingFaceModel, pairs: list[PreferencePair]) -> None:
    one, other = pairs[:2]
    plain = pixels_of(vision_model, one)
    e = (noised(vision_model, one) - 0.863 * plain) / 0.505
    assert e.mean().abs() < 0.05
    assert e.std() == pytest.approx(1, abs=0.05)
    torch.manual_seed(5)
    noised(vision_model, other)
    assert torch.equal(noised(vision_model, one), noised(vision_model, one))
    assert not torch.allclose(noised(vision_model, one, seed=1), noised(vision_model, one))
    e_other = (noised(vision_model, other) - 0.863 * pixels_of(vision_model, other)) / 0.505
    assert abs(np.corrcoef(e.flatten(), e_other.flatten())[0, 1]) < 0.1


def test_both_frames_of_a_still_picture_get_the_same_noise(pairs: list[PreferencePair]) -> None:
    model = random_qwen_vl()
    frames = noised(model, pairs[0]).view(-1, 3, 2, 14 * 14)
    assert torch.equal(frames[:, :, 0], frames[:, :, 1])
    assert frames[:, 0, 0].std() > 0.3


# --- boxes


def test_the_pixels_inside_a_box(vision_model: HuggingFaceModel, pairs: list[PreferencePair]) -> None:
    pair = pairs[0]
    inside = pixels_inside(vision_model, pair, left_half(pair))
    plain = pixels_of(vision_model, pair)
    assert inside.shape == plain.shape
    assert pixels_inside(vision_model, pair, [(0, 0, 84, 84)]).all()
    both = [(0, 0, 42, 84), (42, 0, 84, 84)]
    assert pixels_inside(vision_model, pair, both).all()
    if plain.ndim == 2:  # rows of 3 x 3 tokens of 2 x 2 patches of 14 x 14 pixels: (channel, frame, y, x)
        grid = inside.view(3, 3, 2, 2, 3, 2, 14, 14).permute(4, 5, 0, 2, 6, 1, 3, 7).reshape(3, 2, 84, 84)
        views = grid.flatten(0, 1)
    else:
        views = inside.view(-1, 3, *inside.shape[-2:])[0]  # the whole picture comes first
    edge = views.shape[-1] // 2
    assert views[..., :edge].all()
    assert not views[..., edge:].any()
    if vision_model.name == "random-llava":  # its four tiles: two show the left half, two the right one
        assert [bool(tile.all()) for tile in inside[1:]] == [True, False, True, False]
        assert not inside[2].any()
    changed = noised(vision_model, pair, where=inside)
    assert torch.equal(changed[~inside], plain[~inside])
    assert torch.equal(changed[inside], noised(vision_model, pair)[inside])
    assert (changed[inside] != plain[inside]).float().mean() > 0.99


def test_padding_is_inside_no_box(llava: HuggingFaceModel) -> None:
    pair = PreferencePair("0", "<image>Is", "a", "b", where="0", image=noise_picture(84, 42))  # type: ignore[arg-type]
    inside = pixels_inside(llava, pair, [(0, 0, 84, 42)])
    wide = PreferencePair("1", "<image>Is", "a", "b", where="1", image=noise_picture(84, 56))  # type: ignore[arg-type]
    assert inside.all()
    padded = pixels_inside(llava, wide, [(0, 0, 84, 56)])[1:]
    assert 0.5 < padded.float().mean() < 1


@pytest.mark.parametrize(
    ("box", "problem"),
    [
        ((1, 2, 3), "expected a box"),
        ((0, 0, float("nan"), 5), "expected a box"),
        ((5, 0, 5, 9), "covers no pixel"),
        ((9, 9, 4, 4), "covers no pixel"),
        ((84, 0, 99, 9), "covers no pixel"),
        ((0.1, 0.2, 0.5, 0.9), "not shares of the picture"),
    ],
)
def test_boxes_that_are_none(
    llava: HuggingFaceModel, pairs: list[PreferencePair], box: tuple[float, ...], problem: str
) -> None:
    with pytest.raises(ValueError, match=f"test:0: .*{problem}"):
        pixels_inside(llava, pairs[0], [box])


def test_boxes_are_rounded_outwards_and_cut_at_the_edge(pairs: list[PreferencePair]) -> None:
    assert ict.whole_pixels((-3.5, 1.7, 20.2, 99), (84, 50), "a test") == (0, 1, 21, 50)


def test_boxes_from_the_pairs_own_file(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "prompt": "p", "chosen": "x", "rejected": "y", "boxes": [[1, 2, 3, 4], [0, 0, 9, 9]]},
        {"id": 7, "prompt": "p", "chosen": "x", "rejected": "y"},
        {"prompt": "p", "chosen": "x", "rejected": "y", "boxes": [[5, 6, 7, 8]]},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in rows))
    boxes, read = boxes_in_file(path), read_pairs(path).pairs
    assert [boxes(pair) for pair in read] == [[[1, 2, 3, 4], [0, 0, 9, 9]], [], [[5, 6, 7, 8]]]
    with pytest.raises(ValueError, match="has no row 'other'"):
        boxes(PreferencePair("other", "p", "x", "y", where="elsewhere:1"))
    path.write_text(json.dumps(rows[0] | {"boxes": [1, 2, 3, 4]}))
    with pytest.raises(ValueError, match=r"pairs.jsonl:1: field 'boxes': must be a list"):
        boxes_in_file(path)


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("<image>Is there a red car in the image?", "red car"),
        ("Look. Are there any dogs in this picture ? Answer yes or no.", "dogs"),
        ("is there an umbrella?", "umbrella"),
    ],
)
def test_the_object_that_is_asked_about(prompt: str, found: str) -> None:
    assert object_in_question(PreferencePair("0", prompt, "a", "b", where="0")) == found
    chat = PreferencePair("0", ({"role": "user", "content": prompt},), "a", "b", where="0")
    assert object_in_question(chat) == found
    with pytest.raises(ValueError, match="say what to look for with phrase="):
        object_in_question(PreferencePair("0", "Describe it.", "a", "b", where="here:1"))


@pytest.fixture(scope="module")
def owl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random OWL-ViT on disk."""
    folder = tmp_path_factory.mktemp("owl")
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"vocab_size": 60, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers.OwlViTConfig(
        text_config=tower | ids, vision_config=tower | {"image_size": 32, "patch_size": 16}, projection_dim=16
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.OwlViTForObjectDetection(config).save_pretrained(folder)
    tokenizer = word_tokenizer(["<pad>", "<s>", "</s>", "<unk>", "cat", "dog"])
    tokenizer.model_input_names = ["input_ids", "attention_mask"]  # transformers 4 adds token types
    tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # and saves what is named here
    tokenizer.save_pretrained(folder)
    processor = getattr(transformers, "OwlViTImageProcessorPil", None) or transformers.OwlViTImageProcessor
    processor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_local_detector_finds_boxes(owl: Path, pairs: list[PreferencePair]) -> None:
    pipe = transformers.pipeline("zero-shot-object-detection", model=str(owl), device="cpu")
    from PIL import Image

    assert pairs[0].image
    found = pipe(Image.open(pairs[0].image), candidate_labels=["cat"], threshold=0.0)
    scores = sorted(one["score"] for one in found)
    between = (scores[0] + scores[-1]) / 2
    expected = [
        tuple(one["box"][e] for e in ("xmin", "ymin", "xmax", "ymax")) for one in found if one["score"] > between
    ]
    assert 0 < len(expected) < len(found)
    assert ict.detector(owl, threshold=between)(pairs[0]) == expected
    assert ict.detector(owl, threshold=0.9999999)(pairs[0]) == []


def test_grounding_detectors_get_lower_case_and_a_full_stop(
    pairs: list[PreferencePair], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    class Pipe:
        class model:
            config = type("Config", (), {"model_type": "grounding-dino"})

        def __call__(self, picture: Any, **options: Any) -> list[Any]:
            asked.append(options)
            return [{"score": 0.9, "label": "x", "box": {"ymax": 4, "xmin": 1, "ymin": 2, "xmax": 3}}]

    monkeypatch.setattr(transformers, "pipeline", lambda *args, **options: Pipe())
    boxes = ict.detector("anything", phrase=lambda pair: "Red Car.", threshold=0.4)
    assert boxes(pairs[0]) == [(1, 2, 3, 4)]
    assert asked == [{"candidate_labels": ["red car."], "threshold": 0.4}]


# --- fitting


@pytest.mark.usefixtures("unranked")
def test_directions_by_hand(vision_model: HuggingFaceModel, pairs: list[PreferencePair]) -> None:
    found = fit(vision_model, pairs[:2], boxes=left_half)
    heads = vision_model.text_config.num_attention_heads

    def read(pair: PreferencePair, change: Callable[[Tensor], Tensor]) -> np.ndarray:
        with edit_pixels(vision_model, change):
            states = capture(vision_model, [(pair.prompt, pair.chosen, pair.image)], site="heads")
        return states[0, :, 0].double().view(len(vision_model.blocks), heads, -1).numpy()

    clean = np.stack([read(p, lambda x: x) for p in pairs[:2]])
    changes: dict[Any, Any] = {
        "image": lambda p: lambda x: noised(vision_model, p),
        "object": lambda p: (
            lambda x: torch.where(
                pixels_inside(vision_model, p, left_half(p)), noised(vision_model, p), pixels_of(vision_model, p)
            )
        ),
    }
    for level, change in changes.items():
        other = np.stack([read(p, change(p)) for p in pairs[:2]])
        theta = clean.mean(0) - other.mean(0)
        theta /= np.linalg.norm(theta, axis=-1, keepdims=True).clip(1e-12)  # Gemma's early blocks look 8 tokens back
        assert np.allclose(found.levels[level].theta, theta, atol=1e-10)
        sigma = (np.concatenate([clean, other]) * theta).sum(-1).std(0)
        assert np.allclose(found.levels[level].sigma, sigma, atol=1e-10)
        assert (sigma > 0).sum() >= 12


def test_the_head_that_sees_noise_is_ranked_first(
    llava: HuggingFaceModel, pairs: list[PreferencePair], monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = torch.tensor([1.0, -2.0, 0.0, 1.0, 0.0, 3.0]) / 15**0.5
    noisy = [False]

    @contextmanager
    def watched(model: HuggingFaceModel, change: Any) -> Any:
        noisy[0] = change is not ict._unchanged
        with edit_pixels(model, change):
            yield

    def with_plant(model: HuggingFaceModel, items: Any, **options: Any) -> Tensor:
        states = capture(model, items, **options)
        states[:, 2, :, 6:12] += (-5 if noisy[0] else 5) * planted
        return states

    monkeypatch.setattr(ict, "edit_pixels", watched)
    monkeypatch.setattr(ict, "capture", with_plant)
    probed = fit(llava, pairs[:4]).levels["image"]
    assert probed.ranking[0] == (2, 1)
    assert probed.accuracy[2, 1] == 1
    assert probed.theta[2, 1] @ planted.double() > 0.99


def test_an_untouched_picture_is_refused(
    llava: HuggingFaceModel, pairs: list[PreferencePair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ict, "noise_weights", lambda step: (1.0, 0.0))
    with pytest.raises(DegenerateShiftsError, match="in every head both classes have the same mean"):
        fit(llava, pairs[:3], boxes=left_half)


@pytest.mark.usefixtures("unranked")
def test_pairs_without_a_box_are_left_out_of_the_object_level_only(
    llava: HuggingFaceModel, pairs: list[PreferencePair]
) -> None:
    some = fit(llava, pairs[:3], boxes=lambda pair: left_half(pair) if pair.id != "1" else [])
    assert some.n_pairs == {"image": 3, "object": 2}
    alone = fit(llava, [pairs[0], pairs[2]], boxes=left_half)
    assert torch.equal(some.levels["object"].theta, alone.levels["object"].theta)
    with pytest.raises(ValueError, match="boxes were found in 1 of 3 pictures"):
        fit(llava, pairs[:3], boxes=lambda pair: left_half(pair) if pair.id == "1" else [])


def test_what_cannot_be_fitted(llava: HuggingFaceModel, llama: HuggingFaceModel, pairs: list[PreferencePair]) -> None:
    with pytest.raises(ValueError, match="text model"):
        fit(llama, pairs)
    blind = PreferencePair("0", "Is it?", "yes", "no", where="blind:3")
    with pytest.raises(ValueError, match="1 pairs have no picture or several, the first is blind:3 with 0"):
        fit(llava, [*pairs, blind])
    for few in (pairs[:1], []):
        with pytest.raises(ValueError, match="need at least 2 pairs"):
            fit(llava, few)


def test_the_same_to_the_bit_whatever_was_drawn_or_seen_before(
    llava: HuggingFaceModel, pairs: list[PreferencePair], trust: TrustedHeads
) -> None:
    torch.manual_seed(3)
    again = fit(llava, pairs[:4], boxes=left_half)
    assert again.levels["image"].ranking == trust.levels["image"].ranking
    assert torch.equal(again.levels["object"].sigma, trust.levels["object"].sigma)


# --- steering


def shift_of(edit: Any) -> dict[int, Tensor]:
    return {block: change(torch.zeros(1, 1, 24))[0, 0] for block, change in edit._changes.items()}


def total(edits: Sequence[Any]) -> dict[int, Tensor]:
    parts = [shift_of(edit) for edit in edits]
    return {b: sum((p.get(b, torch.zeros(24)) for p in parts), torch.zeros(24)) for b in {b for p in parts for b in p}}


def test_both_levels_are_the_sum_of_each_and_shared_heads_may_be_halved(
    llava: HuggingFaceModel, trust: TrustedHeads
) -> None:
    both = shift_of(trust.steering(llava, heads=6, alpha=3, beta=5))
    expected = total(
        [
            trust.levels["image"].steering(llava, heads=6, alpha=3),
            trust.levels["object"].steering(llava, heads=6, alpha=5),
        ]
    )
    assert both.keys() == expected.keys()
    assert all(torch.allclose(both[b], expected[b], atol=1e-6) for b in both)

    halved = TrustedHeads(trust.levels, trust.n_pairs, halve_overlap=True)
    chosen = [set(probed.ranking[:6]) for probed in trust.levels.values()]
    shared = chosen[0] & chosen[1]
    assert 0 < len(shared) < 6
    got = shift_of(halved.steering(llava, heads=6, alpha=3, beta=5))
    for block in both:
        for head in range(4):
            row = slice(6 * head, 6 * head + 6)
            factor = 0.5 if (block, head) in shared else 1.0
            assert torch.allclose(got[block][row], factor * both[block][row], atol=1e-6)


def test_settings_and_what_zero_changes(
    llava: HuggingFaceModel, pairs: list[PreferencePair], trust: TrustedHeads
) -> None:
    items = [(pair.prompt, answer, pair.image) for pair in pairs[:2] for answer in ("yes", "no way")]
    plain = llava.score(items)
    for heads, alpha in ((0, 8.0), (12, 0.0)):
        with trust.steering(llava, heads=heads, alpha=alpha, beta=alpha):
            assert llava.score(items) == plain
    settings = trust.settings(llava)
    assert [(s.label, s.strength) for s in settings[:4]] == [
        ("ICT, heads 1", 2.0),
        ("ICT, heads 3", 2.0),
        ("ICT, heads 9", 2.0),
        ("ICT, heads 1", 4.0),
    ]
    with settings[-1].steering():
        steered = llava.score(items)
    with trust.steering(llava, heads=9, alpha=12, beta=12):
        assert llava.score(items) == steered
    assert steered != plain
    assert llava.score(items) == plain

    alone = TrustedHeads({"image": trust.levels["image"]}, {"image": 6}, halve_overlap=False)
    assert alone.settings(llava)[0].label == "ICT (image level), heads 1"
    with pytest.raises(ValueError, match="fitted without boxes"):
        alone.steering(llava, heads=1, alpha=1, beta=1)


@pytest.mark.usefixtures("unranked")
def test_generation_says_what_scoring_calls_likeliest(
    vision_model: HuggingFaceModel, pairs: list[PreferencePair], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fit(vision_model, pairs[:2])
    prompts, images = [p.prompt for p in pairs[:2]], [p.image for p in pairs[:2]]
    rows = vision_model.tokenise(zip(prompts, ["x", "x"], images, strict=True))
    vision_model.score_rows(rows)
    said: list[tuple[int, ...]] = []
    monkeypatch.setattr(vision_model.prompts, "text", lambda ids, **_: said.append(tuple(ids)) or "")
    vision_model.generate(prompts, max_new_tokens=5, images=images)
    every_head = len(found.levels["image"].ranking)
    with found.steering(vision_model, heads=every_head, alpha=12, beta=0):
        vision_model.generate(prompts, max_new_tokens=5, images=images)
        plain, steered = said[:2], said[2:]
        assert steered != plain
        answers = [row._replace(response=ids) for row, ids in zip(rows, steered, strict=True)]
        assert all(scored.is_greedy for scored in vision_model.score_rows(answers))
    assert not all(scored.is_greedy for scored in vision_model.score_rows(answers))
