"""The code of the full-size rungs, run on their architectures cut down to three narrow blocks."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ladder
import pytest
import safetensors.torch
import torch
import transformers
from ports.live_ports import PlainPort, reference_port
from torch import Tensor

from grains_ref.data import PreferencePair
from grains_ref.grains import PRESETS, Steering, fit
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models import full_processors, full_size
from grains_ref.tiny_models.full_pairs import examples_of, photo, picture_pairs, truthfulqa_shaped_pairs
from grains_ref.tiny_models.full_records import measure_fit, timed_fit, write_record
from grains_ref.tiny_models.full_size import (
    find_weights,
    full_model,
    parameter_bytes,
    random_model,
    read_config,
    shrunken,
)

pytestmark = pytest.mark.cpu

HP = dataclasses.replace(PRESETS["paper_llm"], m=2)  # no check here depends on the number of steps
N = 5  # new tokens
VOCABULARY = 701  # just enough for the tokenizer, so that an id beyond it would show
TEXTS = ["Seven people stand beside a lake.", "Which animal is at the left edge?"]  # to train tokenizers on
LLAVA, LLAVA_VOCABULARY, LLAVA_HP = "llava-v1.6-vicuna-7b", 1009, dataclasses.replace(PRESETS["paper_vlm"], m=2)


def build(config: str, dtype: torch.dtype, seed: int = 0) -> HuggingFaceModel:
    vocabulary = LLAVA_VOCABULARY if config == LLAVA else VOCABULARY
    return random_model(shrunken(config, vocab_size=vocabulary), name=f"shrunken {config}", dtype=dtype, seed=seed)


built, drawn = functools.cache(build), functools.cache(photo)  # to look at only


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreferencePair, ...]:
    """Four, with pictures of real size."""
    return picture_pairs(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(
    scope="module",
    params=[("llama-3.1-8b", torch.bfloat16), pytest.param(("qwen2.5-7b", torch.bfloat16), marks=pytest.mark.thorough)],
    ids=["llama-bfloat16", "qwen2-bfloat16"],
)
def rung(request: pytest.FixtureRequest) -> Any:
    """A shrunken model, four pairs, and what was fitted from them: as tests/gpu builds it at full size."""
    config, dtype = request.param
    model = built(config, dtype)
    examples = examples_of(model, truthfulqa_shaped_pairs(4))
    fitted = ladder.check_fit(model, examples, HP)
    lam = ladder.steering_strength(model, examples[0], fitted.v)
    steering = Steering(model.blocks, fitted.v, lam=lam)
    return SimpleNamespace(config=config, model=model, examples=examples, fit=fitted, steering=steering, lam=lam)


# ------------------------------------------------------------------- the checks of tests/gpu, one by one
def test_attribution(rung: Any) -> None:
    ladder.check_attribution(rung.model, rung.examples[0], HP)


def test_norms(rung: Any) -> None:
    norms = ladder.check_norms(rung.model, rung.examples[0].encoded, rung.steering, n=N)
    assert norms.decode_states == 3 * (N - 1)
    assert norms.prefill_states == 3 * len(rung.examples[0].encoded.ids)


def test_cached_generation(rung: Any) -> None:
    reports = [ladder.check_cache(rung.model, one.encoded, rung.steering, n=N) for one in rung.examples[:2]]
    assert sum(report.compared for report in reports) > 0, "no token had a margin to be compared by"


def test_strength_zero(rung: Any) -> None:
    ladder.check_strength_zero(rung.model, rung.examples[0].encoded, rung.fit.v)


def test_left_padded_batch(rung: Any) -> None:
    ladder.check_batch(rung.model, [example.encoded for example in rung.examples], rung.steering)


@pytest.mark.thorough
def test_live_check_of_a_port(bfloat16: Any) -> None:
    print(ladder.check_live_port(bfloat16.model, truthfulqa_shaped_pairs(1), PlainPort(), oracle=True, m=1))


@pytest.mark.thorough
def test_the_live_check_notices_a_port_that_steers_the_last_block_only() -> None:
    model, port = built("llama-3.1-8b", torch.float32), PlainPort("last_layer")
    with pytest.raises(AssertionError, match=r"steer, .*every block, every position") as failed:
        ladder.check_live_port(model, truthfulqa_shaped_pairs(1), port, oracle=False, m=1)
    assert str(failed.value).count("allowed") == 1  # all other checks pass


def test_record(bfloat16: Any, tmp_path: Path) -> None:
    pairs = truthfulqa_shaped_pairs(3)
    result, record = measure_fit(bfloat16.model, pairs, HP, preset="paper_llm", config="shrunken", weights="random")
    ladder.check_vectors(bfloat16.model, result)
    ladder.check_record(record, pairs=3)
    write_record(record, tmp_path / "new" / "record.json")
    assert json.loads((tmp_path / "new" / "record.json").read_text()) == record


# ---------------------------------------------------------------- the same with pictures, on a shrunken LLaVA
@pytest.fixture(scope="module", params=[pytest.param(torch.bfloat16, marks=pytest.mark.thorough)], ids=["bfloat16"])
def llava(request: pytest.FixtureRequest, pairs: tuple[PreferencePair, ...]) -> Any:
    """A shrunken LLaVA and the pairs: as tests/gpu builds it at full size."""
    model = built(LLAVA, request.param)
    examples = examples_of(model, pairs)
    fitted = ladder.check_fit(model, examples, LLAVA_HP)
    lam = ladder.steering_strength(model, examples[0], fitted.v)
    steering = Steering(model.blocks, fitted.v, lam=lam)
    return SimpleNamespace(model=model, pairs=pairs, examples=examples, fit=fitted, steering=steering, lam=lam)


def test_a_picture_enters_as_pixel_values_would(llava: Any) -> None:
    for pair, example, tokens in zip(llava.pairs, llava.examples, (70, 72, 68, 70), strict=True):
        seen = ladder.check_picture(
            llava.model, example, pair.image, drawn(*example.encoded.sizes[0], seed=9), at_least=tokens
        )
        assert seen.image_tokens == tokens
        assert 0.3 < seen.features < 3, "features and words are of different size"
        assert 0.3 < seen.words < 3, "features and words are of different size"


def test_attribution_of_a_picture(llava: Any) -> None:
    result = ladder.check_attribution(llava.model, llava.examples[0], LLAVA_HP)
    kinds = ladder.selected_kinds(llava.examples[0], result, LLAVA_HP)
    assert kinds["pos"]["image"] > 0
    assert kinds["neg"]["image"] > 0


def test_norms_with_a_picture(llava: Any) -> None:
    encoded = llava.examples[0].encoded
    norms = ladder.check_norms(llava.model, encoded, llava.steering, n=N, image=llava.pairs[0].image)
    assert norms.image_states == 3 * 70
    assert norms.prefill_states == 3 * len(encoded.ids)


def test_cached_generation_with_a_picture(llava: Any) -> None:
    reports = [
        ladder.check_cache(llava.model, example.encoded, llava.steering, n=N, image=pair.image)
        for pair, example in zip(llava.pairs[:2], llava.examples[:2], strict=True)
    ]
    assert sum(report.compared for report in reports) > 0, "no token had a margin to be compared by"


@pytest.mark.thorough
def test_live_check_with_a_picture(llava: Any) -> None:
    print(ladder.check_live_port(llava.model, llava.pairs[:1], reference_port(), oracle=False, m=1))


def test_strength_zero_with_a_picture(llava: Any) -> None:
    ladder.check_strength_zero(llava.model, llava.examples[0].encoded, llava.fit.v, image=llava.pairs[0].image)


def test_left_padded_batch_of_two_pictures(llava: Any) -> None:
    prompts = [llava.examples[i].encoded for i in (0, 2)]
    ladder.check_batch(llava.model, prompts, llava.steering, images=[llava.pairs[i].image for i in (0, 2)])


@pytest.mark.thorough
def test_record_with_pictures(small_llava: Any, tmp_path: Path) -> None:
    model, pairs = small_llava.model, small_llava.pairs[:2]
    result, record = measure_fit(model, pairs, LLAVA_HP, preset="paper_vlm", config="shrunken", weights="random")
    ladder.check_vectors(model, result)
    ladder.check_record(record, pairs=2, prompt=(80, 100), response=(5, 25), images=70 + 72)
    write_record(record, tmp_path / "record.json")
    assert json.loads((tmp_path / "record.json").read_text()) == record
    with pytest.raises(AssertionError, match="142"):
        ladder.check_record(record, pairs=2, prompt=(80, 100), response=(5, 25), images=0)


# ---------------------------------------------------------------------------- the checks can turn red
class PrefillOnly(Steering):
    """A planted fault: steers the prompt but not the tokens generated from the cache."""

    def _hook(self, v: Tensor) -> Any:
        edit = super()._hook(v)
        return lambda block, inputs, output: edit(block, inputs, output) if output.shape[1] > 1 else output


class HalfPrecisionNorm(Steering):
    """A planted fault: the norm is computed in the model's own bfloat16."""

    def _hook(self, v: Tensor) -> Any:
        def edit(block: Any, inputs: Any, h: Tensor) -> Tensor:
            shifted = h + self._lam * v.to(h)
            return shifted * (h.norm(dim=-1, keepdim=True) / shifted.norm(dim=-1, keepdim=True))

        return edit


class NoNorm(Steering):
    """A planted fault: equation (7) without equation (8)."""

    def _hook(self, v: Tensor) -> Any:
        return lambda block, inputs, h: (h + self._lam * v).to(h)


@pytest.fixture(scope="module")
def bfloat16() -> Any:
    model = built("llama-3.1-8b", torch.bfloat16)
    (example,) = examples_of(model, truthfulqa_shaped_pairs(1))
    v = torch.randn(len(model.blocks), model.width, generator=torch.Generator().manual_seed(7))
    return SimpleNamespace(model=model, encoded=example.encoded, v=v, lam=ladder.steering_strength(model, example, v))


def test_the_cache_check_notices_steering_of_the_prompt_alone(bfloat16: Any) -> None:
    faulty = PrefillOnly(bfloat16.model.blocks, bfloat16.v, lam=bfloat16.lam)
    with pytest.raises(AssertionError, match="distances"):
        ladder.check_cache(bfloat16.model, bfloat16.encoded, faulty, n=N)


@pytest.mark.parametrize("faulty", [NoNorm, HalfPrecisionNorm])
def test_the_norm_check_notices_a_wrong_norm(bfloat16: Any, faulty: type[Steering]) -> None:
    with pytest.raises(AssertionError, match=r"norm changed|norms differ"):
        ladder.check_norms(
            bfloat16.model, bfloat16.encoded, faulty(bfloat16.model.blocks, bfloat16.v, lam=bfloat16.lam), n=N
        )


class WordsOnly(Steering):
    """A planted fault: leaves the tokens of the picture as they are."""

    def __init__(self, *arguments: Any, is_image: Tensor, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.is_image = is_image

    def _hook(self, v: Tensor) -> Any:
        edit = super()._hook(v)

        def words_only(block: Any, inputs: Any, h: Tensor) -> Tensor:
            steered = edit(block, inputs, h)
            return torch.where(self.is_image[:, None], h, steered) if h.shape[1] > 1 else steered

        return words_only


@pytest.fixture(scope="module")
def small_llava(pairs: tuple[PreferencePair, ...]) -> Any:
    model = built(LLAVA, torch.bfloat16)
    pairs = pairs[:3]
    examples = examples_of(model, pairs)
    v = torch.randn(len(model.blocks), model.width, generator=torch.Generator().manual_seed(7))
    lam = ladder.steering_strength(model, examples[0], v)
    return SimpleNamespace(model=model, pairs=pairs, examples=examples, v=v, lam=lam)


@pytest.mark.thorough
def test_the_picture_check_notices_features_that_are_not_the_pictures(small_llava: Any) -> None:
    model, example, image = small_llava.model, small_llava.examples[0], small_llava.pairs[0].image
    other = drawn(*example.encoded.sizes[0], seed=9)
    with pytest.raises(AssertionError, match="replayed logits"):
        ladder.check_picture(model, example, other, image, at_least=70)
    with pytest.raises(AssertionError, match="another picture"):
        ladder.check_picture(model, example, image, image, at_least=70)
    with pytest.raises(AssertionError, match="70 image tokens"):
        ladder.check_picture(model, example, image, other, at_least=71)


@pytest.mark.thorough
def test_the_norm_check_notices_steering_of_the_words_alone(small_llava: Any) -> None:
    model, encoded = small_llava.model, small_llava.examples[0].encoded
    is_image = encoded.ids == model.hf.config.image_token_id
    faulty = WordsOnly(model.blocks, small_llava.v, lam=small_llava.lam, is_image=is_image)
    with pytest.raises(AssertionError, match=r"did not move.*'image': 210"):
        ladder.check_norms(model, encoded, faulty, n=N, image=small_llava.pairs[0].image)


@pytest.mark.thorough
def test_the_cache_check_notices_another_picture(small_llava: Any) -> None:
    model, example = small_llava.model, small_llava.examples[0]
    steering = Steering(model.blocks, small_llava.v, lam=small_llava.lam)
    with pytest.raises(AssertionError, match="distances"):
        ladder.check_cache(model, example.encoded, steering, n=N, image=drawn(*example.encoded.sizes[0], seed=9))


@pytest.mark.thorough
def test_the_batch_check_notices_pictures_in_the_wrong_order(small_llava: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pictures of one size and two prompts of different length: only the pixels can be mixed up."""
    model, pairs = small_llava.model, small_llava.pairs
    other = drawn(640, 480, seed=9)
    prompts = [small_llava.examples[0].encoded, model.encode(f"{pairs[0].prompt} Nobody", other)]
    inputs = ladder.vision_inputs
    monkeypatch.setattr(ladder, "vision_inputs", lambda model, ids, images: inputs(model, ids, images[::-1]))
    steering = Steering(model.blocks, small_llava.v, lam=small_llava.lam)
    with pytest.raises(AssertionError, match="distances"):
        ladder.check_batch(model, prompts, steering, images=[pairs[0].image, other])


# --------------------------------------------------------------------------------------- the builders
def test_llama_keeps_its_rotary_scaling_and_grouped_heads_when_shrunken() -> None:
    full, small = read_config("llama-3.1-8b"), shrunken("llama-3.1-8b", vocab_size=VOCABULARY)
    key = "rope_parameters" if hasattr(full, "rope_parameters") else "rope_scaling"  # its name before transformers 5
    assert getattr(small, key) == getattr(full, key)
    assert getattr(small, key)["rope_type"] == "llama3"
    assert small.num_attention_heads / small.num_key_value_heads == full.num_attention_heads / full.num_key_value_heads


def test_an_unknown_configuration_is_refused() -> None:
    known = r"gemma-3-12b, llama-3.1-8b, llava-v1.6-vicuna-7b, qwen2.5-7b, qwen2.5-vl-7b"
    with pytest.raises(ValueError, match=f"'gpt-5'.*{known}"):
        read_config("gpt-5")


def test_random_weights_of_an_architecture_that_was_not_thought_of_are_refused() -> None:
    config = transformers.AutoConfig.for_model("gpt2")
    with pytest.raises(ValueError, match=r"llama, qwen2, llava_next, qwen2_5_vl, gemma3; not for gpt2"):
        random_model(config, name="gpt2")


def test_llavas_tokenizer_has_the_ids_of_the_real_one_and_fits_the_vocabulary() -> None:
    config = read_config(LLAVA)
    tokenizer = full_processors.processors_of(config, TEXTS)[0]
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>", "<image>", "<pad>"]) == [0, 1, 2, 32000, 32001]
    assert len(tokenizer) == 32002 <= config.text_config.vocab_size == 32064
    text = "Seven people stand\nbeside a lake: \u00e9"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert pieces[0] == "<s>"
    assert pieces[1].startswith("\u2581")  # the space that SentencePiece puts in front
    assert {"<0x0A>", "<0xC3>", "<0xA9>"} <= set(pieces)
    with pytest.raises(ValueError, match="cannot have the id 300"):
        full_processors.vicuna_tokenizer(TEXTS, 300)


def test_llava_keeps_its_pinpoints_and_a_deeper_tower_when_shrunken() -> None:
    small = shrunken(LLAVA, vocab_size=LLAVA_VOCABULARY)
    assert small.image_grid_pinpoints == [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
    assert small.vision_config.num_hidden_layers > small.text_config.num_hidden_layers
    assert small.image_token_id == LLAVA_VOCABULARY - 64


def test_pictures_are_read_with_the_released_settings() -> None:
    processor = full_processors.llava_image_processor(read_config(LLAVA))
    assert processor.crop_size == {"height": 336, "width": 336}
    assert [list(pinpoint) for pinpoint in processor.image_grid_pinpoints] == [
        [336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008],
    ]  # fmt: skip
    batch = processor(images=[photo(640, 480)], return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 5, 3, 336, 336)  # the whole and 2 x 2 tiles


def test_photos_depend_on_the_seed_and_pairs_repeat_themselves(tmp_path: Path) -> None:
    assert photo(64, 48).tobytes() == photo(64, 48).tobytes() != photo(64, 48, seed=1).tobytes()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = picture_pairs(tmp_path / "one", 2), picture_pairs(tmp_path / "two", 2)
    for a, b in zip(one, two, strict=True):
        assert (a.prompt, a.chosen, a.rejected) == (b.prompt, b.chosen, b.rejected)
        assert a.image.read_bytes() == b.image.read_bytes()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="5 were asked for"):
        picture_pairs(tmp_path, 5)


@pytest.mark.thorough
def test_features_and_residuals_stay_of_order_one_at_llavas_depth(pairs: tuple[PreferencePair, ...]) -> None:
    model = random_model(shrunken(LLAVA, vocab_size=LLAVA_VOCABULARY, n_blocks=32), name="deep", dtype=torch.bfloat16)
    (example,) = examples_of(model, pairs[:1])
    seen = ladder.check_picture(model, example, pairs[0].image, drawn(640, 480, seed=9), at_least=70)
    assert 0.3 < seen.features < 3, seen
    with torch.no_grad():
        size = model.residuals(example.encoded, example.encoded.embeds[None])[0].float().pow(2).mean(-1).sqrt()
    assert ((size > 0.5) & (size < 3)).all(), size


@pytest.mark.thorough
def test_what_llava_keeps_for_the_backward_pass_is_what_the_memory_estimate_says(small_llava: Any) -> None:
    """docs/gpu.md sums this up for the full model; a scratch copy more per block would show here."""
    model, example = small_llava.model, small_llava.examples[0]
    x = example.encoded.embeds.clone().requires_grad_()
    parameters = {p.untyped_storage().data_ptr() for p in model.hf.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor keeps its address from being used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.logits(example.encoded, x[None], example.y_pos)
    config, tokens = model.text_config, len(x) + len(example.y_pos) - 1
    expected = full_size.saved_bytes_per_token(config) * tokens
    measured = sum(size for size, _ in kept.values())
    assert 0.95 < measured / expected < 1.15, (measured, expected)


def test_the_memory_estimate_of_full_llava_leaves_room_below_the_bound() -> None:
    per_token = full_size.saved_bytes_per_token(read_config(LLAVA).get_text_config())
    assert per_token / 2**20 == pytest.approx(4.04, abs=0.02)
    parameters = 2 * 7_063_431_168
    assert parameters + 2 * 2420 * per_token < 37e9


def test_random_weights_depend_on_the_seed_alone_and_leave_the_random_stream_alone() -> None:
    state = torch.get_rng_state()
    one, same, other = (build("qwen2.5-7b", torch.bfloat16, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    pairs = zip(one.hf.parameters(), same.hf.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.embed.weight, other.embed.weight)


@pytest.mark.thorough
def test_residuals_stay_of_order_one_at_the_full_depth() -> None:
    config = shrunken("llama-3.1-8b", vocab_size=VOCABULARY, n_blocks=32)
    model = random_model(config, name="deep", dtype=torch.bfloat16)
    (example,) = examples_of(model, truthfulqa_shaped_pairs(1))
    with torch.no_grad():
        h = model.residuals(example.encoded, example.encoded.embeds[None])[0].float()
    size = h.pow(2).mean(-1).sqrt()
    assert h.isfinite().all()
    assert ((size > 0.5) & (size < 3)).all(), size


def test_pairs_are_fifty_different_ones_of_the_right_lengths() -> None:
    pairs = truthfulqa_shaped_pairs()
    assert pairs == truthfulqa_shaped_pairs(50)
    assert len(pairs) == len({pair.prompt for pair in pairs}) == 50
    tokenizer = built("llama-3.1-8b", torch.bfloat16).tokenizer
    assert all(60 <= len(tokenizer(pair.prompt)["input_ids"]) <= 120 for pair in pairs)
    answers = [f" {text}" for pair in pairs for text in (pair.chosen, pair.rejected)]
    assert all(5 <= len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= 20 for text in answers)
    with pytest.raises(ValueError, match="51"):
        truthfulqa_shaped_pairs(51)


def test_the_timed_fit_is_the_reference_fit() -> None:
    model = built("llama-3.1-8b", torch.float32)
    examples = examples_of(model, truthfulqa_shaped_pairs(2))
    timed, timing, attributions = timed_fit(model, examples, HP, device=model.device)
    assert torch.equal(timed.v, fit(model, examples, HP).v)
    assert len(attributions) == 2
    assert timing.total == timing.attribution + timing.contrast + timing.aggregation


# ------------------------------------------------------------------------------------ released weights
@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of "released" weights: shrunken, as is the architecture that they are compared with."""
    model = built("llama-3.1-8b", torch.bfloat16, seed=3)
    model.hf.save_pretrained(tmp_path / "weights")
    (tmp_path / "configs").mkdir()
    shutil.copy(tmp_path / "weights" / "config.json", tmp_path / "configs" / "llama-3.1-8b.json")
    monkeypatch.setattr(full_size, "CONFIGS", tmp_path / "configs")
    model.tokenizer.save_pretrained(tmp_path / "weights")
    monkeypatch.setenv("GRAINS_LLAMA_PATH", str(tmp_path / "weights"))
    return tmp_path / "weights"


@pytest.fixture
def released_llava(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same for LLaVA."""
    model, folder = built(LLAVA, torch.bfloat16, seed=3), tmp_path / "weights"
    for part in (model.hf, model.tokenizer, model.family.processor):
        part.save_pretrained(folder)
    (tmp_path / "configs").mkdir()
    shutil.copy(folder / "config.json", tmp_path / "configs" / f"{LLAVA}.json")
    monkeypatch.setattr(full_size, "CONFIGS", tmp_path / "configs")
    monkeypatch.setenv("GRAINS_LLAVA_PATH", str(folder))
    return folder


def test_released_llava_in_the_named_folder_is_used(released_llava: Path, pairs: tuple[PreferencePair, ...]) -> None:
    model, weights = full_model(LLAVA, device="cpu")
    assert weights == "released"
    assert parameter_bytes(model) == 2 * sum(p.numel() for p in model.hf.parameters())
    (example,) = examples_of(model, pairs[:1])
    assert example.encoded.kinds.count("image") == 70


def test_released_llava_without_its_image_processor_is_an_error(released_llava: Path) -> None:
    (released_llava / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"GRAINS_LLAVA_PATH.*preprocessor_config\.json"):
        find_weights(LLAVA)


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_size, "_cached_folder", lambda repository: None)
    monkeypatch.delenv("GRAINS_LLAMA_PATH", raising=False)


def test_released_weights_in_the_named_folder_are_used(released: Path) -> None:
    model, weights = full_model("llama-3.1-8b", device="cpu")
    assert weights == "released"
    assert model.hf.dtype == torch.bfloat16
    expected = safetensors.torch.load_file(released / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(model.embed.weight, expected)


def test_a_named_folder_that_lacks_a_file_is_an_error(released: Path) -> None:
    (released / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"GRAINS_LLAMA_PATH.*tokenizer\.json"):
        find_weights("llama-3.1-8b")


def test_a_folder_that_lacks_one_of_several_weight_files_is_an_error(released: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (released / "model.safetensors.index.json").write_text(json.dumps(index))
    (released / "model.safetensors").rename(released / "model-00001-of-00002.safetensors")
    with pytest.raises(FileNotFoundError, match=r"missing: model-00002-of-00002\.safetensors"):
        find_weights("llama-3.1-8b")


def test_weights_of_another_architecture_are_refused(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("GRAINS_LLAMA_PATH", str(released))
    with pytest.raises(ValueError, match="hidden_size is 64, not 4096"):
        find_weights("llama-3.1-8b")


def test_weights_in_the_cache_are_found_and_incomplete_ones_passed_over(
    released: Path, empty_cache: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def cached(repository: str) -> Path | None:
        asked.append(repository)
        return {"meta-llama/Llama-3.1-8B-Instruct": tmp_path, "meta-llama/Llama-3.1-8B": released}.get(repository)

    monkeypatch.setattr(full_size, "_cached_folder", cached)
    assert find_weights("llama-3.1-8b") == released
    assert asked[0] == "meta-llama/Llama-3.1-8B-Instruct"


def test_an_empty_cache_is_no_error_and_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAINS_LLAMA_PATH", raising=False)
    ask = full_size.snapshot_download
    local = []

    def spy(repository: str, *, local_files_only: bool) -> str:
        local.append(local_files_only)
        return ask(repository, local_files_only=local_files_only, cache_dir=tmp_path)

    monkeypatch.setattr(full_size, "snapshot_download", spy)
    assert find_weights("llama-3.1-8b") is None
    assert local == [True] * 4
