"""The tests of a full-size model, whichever it is: tests/gpu runs them at full size, tests/models on shrunken ones.

A module that runs them has the fixture `full` and the three of here, and a class that inherits from `EveryModel` or
`SeeingModel`.  Every test
says how much GPU memory it takes beside the parameters, and is held to it (`FullSize.within`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ladder
import pytest
import torch

from grains_ref import fast
from grains_ref.data import PreferencePair
from grains_ref.grains import Example, Fit, HyperParameters, Steering
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.full_pairs import photo
from grains_ref.tiny_models.full_records import measure_fit, write_record
from grains_ref.tiny_models.full_size import GIB, Weights, full_model, parameter_bytes

N = 12  # new tokens


@dataclass(frozen=True)
class Rung:
    """What is known of a configuration before it is built.

    Attributes:
        config: its name.
        preset: the paper's setting for it.
        backward_gib: GPU memory that an attribution, and hence a fit, may take beside the parameters.
        forward_gib: what a run without gradients may take, and a generation with its cache.
        parameters_gib: of the parameters in bfloat16.
        image_tokens: the fewest that one of the four pictures has.
    """

    config: str
    preset: str
    backward_gib: float
    forward_gib: float
    parameters_gib: float
    image_tokens: int = 0

    @property
    def needed_gib(self) -> float:
        """What must be free on a GPU: parameters, the most that a test takes, and a little for CUDA."""
        return self.parameters_gib + max(self.backward_gib, self.forward_gib) + 2


# Kept for the backward pass of both responses, with workspaces on top: docs/gpu.md has the sums. LLaVA's bound is wide
# of the 19 GiB that its tokens need, and narrow enough to show SDPA's math kernel, with which they would be 78.
RUNGS = {
    rung.config: rung
    for rung in (
        Rung("llama-3.1-8b", "paper_llm", backward_gib=4, forward_gib=4, parameters_gib=15.0),
        Rung("qwen2.5-7b", "paper_llm", backward_gib=4, forward_gib=4, parameters_gib=14.2),
        Rung(
            "llava-v1.6-vicuna-7b", "paper_vlm", backward_gib=42, forward_gib=8, parameters_gib=13.2, image_tokens=2001
        ),
        Rung("qwen2.5-vl-7b", "paper_vlm", backward_gib=20, forward_gib=8, parameters_gib=15.5, image_tokens=391),
        Rung("gemma-3-12b", "paper_gemma", backward_gib=20, forward_gib=8, parameters_gib=22.7, image_tokens=256),
    )
}


@dataclass(frozen=True)
class FullSize:
    """A model, its first four pairs, and their examples."""

    rung: Rung
    weights: Weights
    model: HuggingFaceModel
    pairs: Sequence[PreferencePair]
    examples: Sequence[Example]
    hp: HyperParameters

    @contextmanager
    def within(self, gib: float) -> Iterator[None]:
        """What runs inside takes at most this much GPU memory beside what is there; skips where that is not free."""
        device = self.model.device
        if device.type != "cuda":
            yield
            return
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        free -= torch.cuda.memory_allocated(device)
        if free < gib * GIB:
            pytest.skip(f"needs {gib:.0f} GiB beside the parameters; {free / GIB:.0f} are free")
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield
        taken = (torch.cuda.max_memory_allocated(device) - before) / GIB
        print(f"{taken:.2f} GiB beside what was there")
        assert taken < gib, f"{taken:.2f} GiB in use at most beside what was there; {gib:.2f} are allowed"


def built_on(device: torch.device, rung: Rung) -> tuple[HuggingFaceModel, Weights]:
    """The released weights if this machine has them, random ones otherwise; skips where memory is too small."""
    free = torch.cuda.mem_get_info(device)[0] / GIB
    if free < rung.needed_gib:
        name = torch.cuda.get_device_name(device)
        pytest.skip(f"{rung.config} needs {rung.needed_gib:.0f} GiB of free GPU memory; {name} has {free:.1f}")
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    model, weights = full_model(rung.config, device=device)
    built = torch.cuda.max_memory_allocated(device) - before
    # A second copy on the device, or a float32 one on the way, would show here. To look for NaN takes twice the bytes
    # of the largest matrix, for a moment; the proof at load keeps the keys and values of a few prompts, one a picture.
    largest = max(p.numel() * p.element_size() for p in model.hf.parameters())
    proof = 6 * GIB if rung.image_tokens else GIB
    assert built < parameter_bytes(model) + 2 * largest + proof, (
        f"{built / GIB:.1f} GiB were in use while the model was made"
    )
    return model, weights


def check_recorded_fit(
    full: FullSize, pairs: Sequence[PreferencePair], folder: Path, **tokens: tuple[int, int]
) -> None:
    """Fit under a clock, and write the record."""
    result, record = measure_fit(
        full.model, pairs, full.hp, preset=full.rung.preset, config=full.rung.config, weights=full.weights
    )
    ladder.check_vectors(full.model, result)
    images = 0
    if pairs == full.pairs:
        images = sum(example.encoded.kinds.count("image") for example in full.examples)
    ladder.check_record(record, pairs=len(pairs), images=images, **tokens)
    assert record["parameters_gib"] == parameter_bytes(full.model) / GIB
    target = folder / f"{full.rung.config}.json"
    write_record(record, target)
    print(f"{record['seconds']['total']:.1f} s for {len(pairs)} pairs, peak {record['peak_gib']}; recorded in {target}")


# ------------------------------------------------ fixtures, for a module that has the fixture `full` to import
@pytest.fixture(scope="module")
def fitted(full: FullSize) -> Fit:
    with full.within(full.rung.backward_gib):
        return ladder.check_fit(full.model, list(full.examples), full.hp)


@pytest.fixture(scope="module")
def lam(full: FullSize, fitted: Fit) -> float:
    return ladder.steering_strength(full.model, full.examples[0], fitted.v)


@pytest.fixture(scope="module")
def steering(full: FullSize, fitted: Fit, lam: float) -> Steering:
    return Steering(full.model.blocks, fitted.v, lam=lam)


# ------------------------------------------------------------------------------------------- the tests
class EveryModel:
    """What must hold for every model, text or vision."""

    def test_attribution_is_finite_within_its_memory(self, full: FullSize) -> None:
        with full.within(full.rung.backward_gib):
            result = ladder.check_attribution(full.model, full.examples[0], full.hp)
        kinds = ladder.selected_kinds(full.examples[0], result, full.hp)
        print(f"{full.weights} weights: f {result.f_x:.3f} nats, completeness gap {result.gap:.3f}, {kinds}")

    def test_a_fit_gives_unit_directions_and_no_parameter_a_gradient(self, full: FullSize, fitted: Fit) -> None:
        ladder.check_vectors(full.model, fitted)
        ladder.check_no_parameter_gradients(full.model)

    def test_norms_are_kept_at_every_layer_and_token_under_cached_generation(
        self, full: FullSize, steering: Steering
    ) -> None:
        encoded = full.examples[0].encoded
        with full.within(full.rung.forward_gib):
            norms = ladder.check_norms(full.model, encoded, steering, n=N, image=full.pairs[0].image)
        assert norms.image_states == len(full.model.blocks) * encoded.kinds.count("image")
        print(norms)

    def test_the_fast_steering_is_the_references(
        self, full: FullSize, fitted: Fit, steering: Steering, lam: float
    ) -> None:
        """On a GPU its fused kernel keeps norms as well, and logits agree within the rounding of the type."""
        quick = fast.Steering(full.model.blocks, fitted.v, lam=lam)
        x, y = full.examples[0].encoded, full.examples[0].y_pos
        with full.within(full.rung.forward_gib), torch.no_grad():
            print(ladder.check_norms(full.model, x, quick, n=N, image=full.pairs[0].image))
            with steering:
                expected = full.model.logits(x, x.embeds[None], y)[0]
            with quick:
                found = full.model.logits(x, x.embeds[None], y)[0]
        distance = ladder.relative_distance(found, expected).max().item()
        assert distance <= ladder.logits_tolerance(full.model), f"logits are {distance:.2g} away"

    def test_cached_steered_generation_agrees_with_a_full_recomputation(
        self, full: FullSize, steering: Steering
    ) -> None:
        with full.within(full.rung.forward_gib):
            for pair, example in list(zip(full.pairs, full.examples, strict=True))[:2]:
                print(ladder.check_cache(full.model, example.encoded, steering, n=N, image=pair.image))

    def test_strength_zero_changes_no_bit_and_no_hook_stays(self, full: FullSize, fitted: Fit) -> None:
        with full.within(full.rung.forward_gib):
            ladder.check_strength_zero(full.model, full.examples[0].encoded, fitted.v, image=full.pairs[0].image)

    def test_a_left_padded_batch_agrees_with_single_prompts(self, full: FullSize, steering: Steering) -> None:
        with full.within(full.rung.forward_gib):
            print(ladder.check_batch(full.model, [example.encoded for example in full.examples], steering))


class SeeingModel(EveryModel):
    """What must hold, too, where a picture is part of the prompt."""

    def test_a_picture_enters_as_pixel_values_would(self, full: FullSize) -> None:
        with full.within(full.rung.forward_gib):
            for seed, (pair, example) in enumerate(zip(full.pairs, full.examples, strict=True), start=100):
                other = photo(*example.encoded.sizes[0], seed=seed)  # type: ignore[attr-defined]
                print(ladder.check_picture(full.model, example, pair.image, other, at_least=full.rung.image_tokens))

    def test_a_left_padded_batch_agrees_with_single_prompts(self, full: FullSize, steering: Steering) -> None:
        """Two pictures of different size, or where all have one number of tokens two questions of different length."""
        lengths = [len(example.encoded.ids) for example in full.examples]
        first, second = 0, next(i for i, n in enumerate(lengths) if n != lengths[0])
        prompts = [full.examples[i].encoded for i in (first, second)]
        images = [full.pairs[i].image for i in (first, second)]
        with full.within(full.rung.forward_gib):
            print(ladder.check_batch(full.model, prompts, steering, images=images))
