"""methods/vti.py: masked pictures and steered vision towers, against brute force and the towers' own outputs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from grains_ref.data import PreferencePair
from grains_ref.grains import DegenerateShiftsError
from grains_ref.methods import icv, vti
from grains_ref.methods.vti import VisualTextual, fit, steer_vision, vision_tower, visual_vectors
from grains_ref.models import HuggingFaceModel
from grains_ref.models.families import Picture, UnsupportedModelError
from grains_ref.models.pixels import Views
from grains_ref.tiny_models.random_vision_models import noise_picture, random_llava, random_qwen_vl

pytestmark = pytest.mark.cpu


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[PreferencePair]:
    """Four pairs on pictures of one shape."""
    return made(tmp_path_factory.mktemp("pictures"), [(84, 84)] * 4)


def made(folder: Path, sizes: Sequence[tuple[int, int]]) -> list[PreferencePair]:
    answers = [("a red cat", "a blue dog"), ("it is round", "no"), ("yes", "a car and a cat"), ("snow", "rain, then")]
    out = []
    for i, size in enumerate(sizes):
        path = folder / f"{i}.png"
        noise_picture(*size, i).save(path)
        out.append(PreferencePair(str(i), f"<image>What is it {'now ' * i}?", *answers[i], where=f"t:{i}", image=path))
    return out


@pytest.fixture(scope="module")
def llava() -> HuggingFaceModel:
    return random_llava()


@pytest.fixture(scope="module")
def qwen_vl() -> HuggingFaceModel:
    return random_qwen_vl()


@pytest.fixture(scope="module")
def found(llava: HuggingFaceModel, pairs: list[PreferencePair]) -> VisualTextual:
    return fit(llava, pairs, masks=3, ratio=0.6)


def items_of(pairs: Sequence[PreferencePair]) -> list[Any]:
    return [(p.prompt, answer, p.image) for p in pairs for answer in (p.chosen, p.rejected)]


# --- the tower


def test_the_tower_is_found_where_it_has_more_blocks_than_the_decoder(vision_model: HuggingFaceModel) -> None:
    tower, blocks = vision_tower(vision_model)
    base: Any = vision_model.hf.base_model
    assert tower is getattr(base, "vision_tower", None) or tower is getattr(base, "visual", None)
    assert len(blocks) == {"random-llava": 5, "random-qwen-vl": 6, "random-gemma3": 8}[vision_model.name]
    assert len(blocks) > len(vision_model.blocks)
    assert all(block not in list(vision_model.blocks) for block in blocks)


def test_towers_that_are_none(llama: HuggingFaceModel, llava: HuggingFaceModel, pairs: list[PreferencePair]) -> None:
    with pytest.raises(ValueError, match="is a text model and has no vision tower"):
        fit(llama, pairs)
    family = copy.copy(llava.family)
    family.config = copy.deepcopy(llava.hf.config)
    family.config.vision_config.num_hidden_layers = 4
    other: Any = SimpleNamespace(hf=llava.hf, name="other", family=family)
    with pytest.raises(UnsupportedModelError, match="expected one list of 4 vision blocks with an MLP; none"):
        vision_tower(other)


# --- masking


def test_hidden_patches_get_the_mean_colour() -> None:
    pixels = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(0))
    hidden = torch.zeros(2, 12, dtype=torch.bool)
    hidden[0, 5] = hidden[1, 0] = hidden[1, 11] = True  # 3 rows of 4 patches of 2 x 2
    first, second = Views(side=2).masked(pixels, hidden)
    expected = pixels.clone()
    expected[:, 2:4, 2:4] = pixels.mean((1, 2))[:, None, None]
    assert torch.equal(first, expected)
    expected = pixels.clone()
    expected[:, :2, :2] = expected[:, 4:, 6:] = pixels.mean((1, 2))[:, None, None]
    assert torch.equal(second, expected)


def test_hidden_rows_of_flattened_patches_get_the_mean_colour(
    qwen_vl: HuggingFaceModel, pairs: list[PreferencePair]
) -> None:
    assert pairs[0].image
    rows = qwen_vl.family.tensors([Picture.of(pairs[0].image)])["pixel_values"]
    hidden = torch.zeros(1, len(rows), dtype=torch.bool)
    hidden[0, [3, 7]] = True
    (got,) = qwen_vl.family.pixel_layout.masked(rows, hidden)
    seen = [i for i in range(len(rows)) if i not in (3, 7)]
    assert torch.equal(got[seen], rows[seen])
    for channel in range(3):  # a row holds channel, frame, y, x
        values = slice(channel * 392, (channel + 1) * 392)
        assert torch.allclose(got[3, values], rows[:, values].mean())
        assert torch.equal(got[3, values], got[7, values])


def test_the_share_of_hidden_patches_and_the_seed(
    vision_model: HuggingFaceModel, pairs: list[PreferencePair], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    layout = type(vision_model.family.pixel_layout)
    original = layout.masked
    monkeypatch.setattr(
        layout, "masked", lambda self, view, hidden: seen.append(hidden) or original(self, view, hidden)
    )
    options: dict[str, Any] = {"ratio": 0.61, "masks": 12}
    one = visual_vectors(vision_model, pairs[:3], **options)
    torch.manual_seed(8)
    assert torch.equal(visual_vectors(vision_model, pairs[:3], **options), one)
    assert not torch.equal(visual_vectors(vision_model, pairs[:3], **options, seed=1), one)
    patches = seen[0].shape[1]
    assert patches == {"random-llava": 9, "random-qwen-vl": 36, "random-gemma3": 36}[vision_model.name]
    assert all((hidden.sum(1) == int(0.61 * patches)).all() and len(hidden) == 12 for hidden in seen)
    assert len({tuple(row.tolist()) for row in seen[0]}) > 6
    assert all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:6], strict=True))
    assert not torch.equal(seen[0], seen[1])
    reordered = [pairs[2], pairs[0], pairs[1]]
    visual_vectors(vision_model, reordered, **options)
    assert torch.equal(seen[-2], seen[0])  # a picture's maskings do not depend on its place


# --- visual vectors


@torch.no_grad()
def hidden_states(model: HuggingFaceModel, pixels: Tensor, grid: Tensor | None) -> np.ndarray:
    """The tower's states by its own account, or for Qwen2.5-VL by the blocks': (L_V + 1, tokens, d_V)."""
    tower, blocks = vision_tower(model)
    if grid is None:
        out = tower(pixels[None], output_hidden_states=True)
        return np.stack([state[0].double().numpy() for state in out.hidden_states])
    seen: list[np.ndarray] = []
    handles = [
        blocks[0].register_forward_pre_hook(lambda m, args: seen.append(args[0].double().numpy())),
        *(b.register_forward_hook(lambda m, args, out: seen.append(out.double().numpy())) for b in blocks),
    ]
    tower(pixels, grid_thw=grid)
    for handle in handles:
        handle.remove()
    return np.stack(seen).mean(1, keepdims=True)


def test_visual_vectors_by_hand(vision_model: HuggingFaceModel, pairs: list[PreferencePair]) -> None:
    deltas = []
    for pair in pairs:
        assert pair.image
        given = vision_model.family.tensors([Picture.of(pair.image)])
        pixels, grid = given["pixel_values"], given.get("image_grid_thw")
        pixels = pixels if pixels.ndim == 2 else pixels.reshape(-1, *pixels.shape[-3:])[0]
        if grid is None:
            flat = pixels.mean((1, 2), keepdim=True).expand_as(pixels)
        else:
            flat = pixels.view(-1, 3, 392).mean((0, 2))[None, :, None].expand(len(pixels), 3, 392).flatten(1)
        deltas.append(hidden_states(vision_model, flat, grid) - hidden_states(vision_model, pixels, grid))
    delta = np.stack(deltas)  # (N, L + 1, tokens, width)
    expected = np.zeros_like(delta[0].transpose(1, 0, 2))
    for t in range(delta.shape[2]):
        rows = delta[:, :, t].reshape(len(delta), -1)
        mean = rows.mean(0)
        component = np.linalg.svd(rows - mean)[2][0]
        scores = (rows - mean) @ component
        component *= np.sign(scores[np.abs(scores).argmax()])
        expected[t] = (mean + component).reshape(delta.shape[1], -1)
    got = visual_vectors(vision_model, pairs, ratio=1.0, masks=2)
    assert got.shape == expected[:, 1:].shape
    assert np.abs(got.numpy() - expected[:, 1:]).max() < 2e-3


def test_averages_are_over_all_maskings(llava: HuggingFaceModel, pairs: list[PreferencePair]) -> None:
    tower, blocks = vision_tower(llava)
    assert pairs[0].image
    picture = Picture.of(pairs[0].image)
    pixels = llava.family.tensors([picture])["pixel_values"][0, 0]
    generator = torch.Generator().manual_seed(int(picture.digest[:12], 16) ^ 5)
    hidden = torch.zeros(23, 9, dtype=torch.bool)  # three chunks, the last one smaller
    for row in hidden:
        row[torch.randperm(9, generator=generator)[:4]] = True
    states = [hidden_states(llava, one, None) for one in Views(side=14).masked(pixels, hidden)]
    expected = np.mean(states, axis=0) - hidden_states(llava, pixels, None)
    got = vti._masked_minus_original(llava, tower, blocks, picture, ratio=0.5, masks=23, seed=5)
    assert np.abs(got.numpy() - expected).max() < 1e-5


def test_nothing_hidden_is_refused(vision_model: HuggingFaceModel, pairs: list[PreferencePair]) -> None:
    with pytest.raises(DegenerateShiftsError, match=r"token 0 of the vision tower, .*: the 3 differences are all zero"):
        visual_vectors(vision_model, pairs[:3], ratio=0.0, masks=3)


def test_both_layouts_agree_in_the_mean_but_not_in_the_component(
    llava: HuggingFaceModel, pairs: list[PreferencePair], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"ratio": 0.6, "masks": 2}
    own, legacy = (visual_vectors(llava, pairs, **options, legacy_layout=x) for x in (False, True))
    assert not torch.allclose(own, legacy, atol=1e-3)
    monkeypatch.setattr(vti, "first_component", lambda rows, **_: (0 * rows[0], rows.double().mean(0)))
    own, legacy = (visual_vectors(llava, pairs, **options, legacy_layout=x) for x in (False, True))
    assert torch.allclose(own, legacy, atol=1e-6)
    assert own.shape == (10, 5, 24)  # nine patches and the class token


def test_a_picture_that_pairs_share_counts_once(llava: HuggingFaceModel, pairs: list[PreferencePair]) -> None:
    options: dict[str, Any] = {"ratio": 0.6, "masks": 2}
    once = visual_vectors(llava, pairs, **options)
    assert torch.equal(visual_vectors(llava, [*pairs, pairs[0]], **options), once)
    with pytest.raises(ValueError, match="at least three different pictures for a principal component; got 2"):
        visual_vectors(llava, [*pairs[:2], pairs[0]], **options)


def test_pictures_of_any_size_where_tokens_are_averaged(qwen_vl: HuggingFaceModel, tmp_path: Path) -> None:
    various = made(tmp_path, [(60, 90), (112, 56), (84, 84), (56, 56)])
    found = fit(qwen_vl, various, masks=2, image_alphas=(0.9,))
    assert found.visual.shape == (1, 6, 24)
    items = items_of(various)
    plain = qwen_vl.score(items)
    with found.steering(qwen_vl, image=0.9, text=0.9):
        assert qwen_vl.score(items) != plain


# --- steering


class Watch:
    """What an MLP puts out before and after the edits of a `with` block."""

    def __init__(self, mlp: nn.Module) -> None:
        self.before: list[Tensor] = []
        self.after: list[Tensor] = []
        self.mlp = mlp
        self.first = mlp.register_forward_hook(lambda m, args, out: self.before.append(out.clone()))

    def edited(self) -> None:
        self.last = self.mlp.register_forward_hook(lambda m, args, out: self.after.append(out.clone()))

    def close(self) -> None:
        self.first.remove()
        self.last.remove()


def test_every_mlp_is_turned_by_its_own_vector_and_keeps_its_norm(
    vision_model: HuggingFaceModel, pairs: list[PreferencePair]
) -> None:
    found = fit(vision_model, pairs[:3], masks=2, ratio=0.6, image_alphas=(0.7,))
    _, vision = vision_tower(vision_model)
    sites: list[tuple[Any, Tensor, float]] = [(b.mlp, found.visual[:, i], 0.07) for i, b in enumerate(vision)]
    text = found.textual[0.7].v
    sites += [(b.mlp, text[i], 0.05) for i, b in enumerate(vision_model.blocks)]
    watches = [Watch(mlp) for mlp, _, _ in sites]
    with found.steering(vision_model, image=0.7, text=0.5):
        for watch in watches:
            watch.edited()
        vision_model.score(items_of(pairs[:2]))
    for watch, (_, v, step) in zip(watches, sites, strict=True):
        watch.close()
        assert len(watch.before) == len(watch.after) > 0
        for m, got in zip(watch.before, watch.after, strict=True):
            m, got = m.double(), got.double()
            is_zero = m.norm(dim=-1) == 0  # padding, which has no direction to turn
            assert not got[is_zero].any()
            n = m / m.norm(dim=-1, keepdim=True).clamp_min(1e-30)
            turned = n + step * v.double() / v.double().norm(dim=-1, keepdim=True)
            expected = m.norm(dim=-1, keepdim=True) * turned / turned.norm(dim=-1, keepdim=True)
            assert torch.allclose(got, expected, atol=1e-5, rtol=1e-4)
            assert torch.allclose(got.norm(dim=-1), m.norm(dim=-1), rtol=1e-5)
            assert (got - m).norm() > 0.01 * m.norm()


def test_the_last_vision_block_matters_only_where_it_is_read(
    vision_model: HuggingFaceModel, pairs: list[PreferencePair]
) -> None:
    _, blocks = vision_tower(vision_model)
    last = torch.zeros(1, len(blocks), 24)
    last[:, -1] = torch.randn(24, generator=torch.Generator().manual_seed(0))
    plain = vision_model.score(items_of(pairs[:2]))
    with steer_vision(vision_model, last, alpha=3.0):
        steered = vision_model.score(items_of(pairs[:2]))
    assert (steered == plain) == (vision_model.name == "random-llava")  # LLaVA reads the block before


def test_strength_zero_changes_nothing_and_leaving_restores_every_bit(
    llava: HuggingFaceModel, pairs: list[PreferencePair], found: VisualTextual
) -> None:
    items = items_of(pairs)
    plain = llava.score(items)  # features are kept from now on: a steered tower must not use them, nor leave its own
    with found.steering(llava, image=0.0, text=0.0):
        assert llava.score(items) == plain
    scores = []
    for image, text in ((0.9, 0.0), (0.0, 0.9), (0.9, 0.9), (0.3, 0.9)):
        with found.steering(llava, image=image, text=text):
            scores.append([one.log_prob for one in llava.score(items)])
        assert llava.score(items) == plain
    assert len({tuple(one) for one in [*scores, [one.log_prob for one in plain]]}) == 5


def test_textual_vectors_are_icvs_found_while_the_visual_part_steers(
    llava: HuggingFaceModel, pairs: list[PreferencePair], found: VisualTextual
) -> None:
    alone = icv.fit(llava, pairs, options=icv.CODE).v
    assert torch.equal(found.textual[0.0].v, alone)
    with steer_vision(llava, found.visual, alpha=0.9):
        inside = icv.fit(llava, pairs, options=icv.CODE).v
    assert torch.equal(found.textual[0.9].v, inside)
    assert not torch.allclose(inside, alone, atol=1e-4)
    assert not found.textual[0.9].options.adaptive


def test_generation_says_what_scoring_calls_likeliest(
    vision_model: HuggingFaceModel, pairs: list[PreferencePair], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fit(vision_model, pairs[:3], masks=2, image_alphas=(9.0,))
    prompts, images = [p.prompt for p in pairs[:2]], [p.image for p in pairs[:2]]
    rows = vision_model.tokenise(zip(prompts, ["x", "x"], images, strict=True))
    vision_model.score_rows(rows)
    said: list[tuple[int, ...]] = []
    monkeypatch.setattr(vision_model.prompts, "text", lambda ids, **_: said.append(tuple(ids)) or "")
    vision_model.generate(prompts, max_new_tokens=5, images=images)
    with found.steering(vision_model, image=9.0, text=9.0):
        vision_model.generate(prompts, max_new_tokens=5, images=images)
        plain, steered = said[:2], said[2:]
        assert steered != plain
        answers = [row._replace(response=ids) for row, ids in zip(rows, steered, strict=True)]
        assert all(scored.is_greedy for scored in vision_model.score_rows(answers))
    assert not all(scored.is_greedy for scored in vision_model.score_rows(answers))


def test_the_grid_is_the_gentlest_first(llava: HuggingFaceModel, found: VisualTextual) -> None:
    settings = found.settings(llava)
    assert len(settings) == 14
    assert [(s.label, round(s.strength, 6)) for s in settings][:2] == [
        ("VTI, image 0, text 0.3", 0.3),
        ("VTI, image 0.3, text 0", 0.3),
    ]
    assert [s.strength for s in settings] == sorted(s.strength for s in settings)
    assert settings[-1].label == "VTI, image 0.9, text 1.2"
    assert len({s.label for s in settings}) == 14
    with settings[-1].steering(), settings[0].steering():
        pass


def test_other_number_types(pairs: list[PreferencePair]) -> None:
    model = random_llava(dtype=torch.bfloat16)
    found = fit(model, pairs[:3], masks=2, image_alphas=(0.9,))
    plain = model.score(items_of(pairs[:1]))
    with found.steering(model, image=0.9, text=0.9):
        steered = model.score(items_of(pairs[:1]))
    assert steered != plain
    assert all(np.isfinite(one.log_prob) for one in steered)


def test_what_cannot_be_steered_or_fitted(
    llava: HuggingFaceModel, qwen_vl: HuggingFaceModel, pairs: list[PreferencePair], found: VisualTextual
) -> None:
    with (
        pytest.raises(ValueError, match=r"fitted under image strengths \[0.0, 0.3, 0.9\], not 0.5"),
        found.steering(llava, image=0.5, text=0.3),
    ):
        pass
    with (
        pytest.raises(ValueError, match="has 6 vision blocks; the vectors are"),
        found.steering(qwen_vl, image=0.3, text=0.0),
    ):
        pass
    with (
        steer_vision(llava, found.visual[:7], alpha=0.9),
        pytest.raises(ValueError, match="for 7 tokens of width 24 in the vision tower; this picture has 10"),
    ):
        llava.score(items_of(pairs[:1]))
    blind = PreferencePair("0", "Is it?", "yes", "no", where="blind:3")
    with pytest.raises(ValueError, match="the first is blind:3"):
        fit(llava, [*pairs, blind])
    for options in ({"ratio": 1.2, "masks": 1}, {"ratio": 0.5, "masks": 0}):
        with pytest.raises(ValueError, match="a ratio from 0 to 1 and at least one masking"):
            visual_vectors(llava, pairs, **options)  # type: ignore[arg-type]
