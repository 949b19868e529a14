"""Rungs 3 and 4: LLaVA-1.6-7B at full size in bfloat16, with pictures of a camera's size, on one GPU.

The same checks run on the shrunken architecture in tests/models/test_ladder.py. See docs/gpu.md.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ladder
import pytest
import torch
from ports.live_ports import reference_port

from grains_ref.grains import Fit, Steering
from grains_ref.tiny_models.full_size import GIB, measure_fit, parameter_bytes, photo, write_record

pytestmark = pytest.mark.gpu

N = 12  # new tokens
# Expected: 13.2 GiB of parameters and, kept for the backward pass, 4.04 MiB per token and response: 19.1 GiB for two
# responses to 2420 tokens (docs/gpu.md has the sum). SDPA's math kernel, which stores the attention of every head to
# every token, would take it past the bound.
PEAK_BYTES = 60e9


@pytest.fixture(scope="module")
def fitted(full_llava: Any) -> Fit:
    return ladder.check_fit(full_llava.model, full_llava.examples, full_llava.hp)


@pytest.fixture(scope="module")
def steering(full_llava: Any, fitted: Fit) -> Steering:
    lam = ladder.steering_strength(full_llava.model, full_llava.examples[0], fitted.v)
    return Steering(full_llava.model.blocks, fitted.v, lam=lam)


def test_a_picture_enters_as_pixel_values_would(full_llava: Any) -> None:
    for seed, (pair, example) in enumerate(zip(full_llava.pairs, full_llava.examples, strict=True), start=100):
        other = photo(*example.encoded.size, seed=seed)
        print(ladder.check_picture(full_llava.model, example, pair.image, other, at_least=2001))


def test_attribution_of_a_picture_stays_within_the_memory_bound(
    full_llava: Any, gpu: torch.device, record_property: Any
) -> None:
    torch.cuda.reset_peak_memory_stats(gpu)
    start = time.perf_counter()
    result = ladder.check_attribution(full_llava.model, full_llava.examples[0], full_llava.hp)
    seconds = time.perf_counter() - start  # the scores are on the host by now
    peak = torch.cuda.max_memory_allocated(gpu)
    kinds = ladder.selected_kinds(full_llava.examples[0], result, full_llava.hp)
    measured = {"seconds": seconds, "peak_gib": peak / GIB, "f_nats": result.f_x, "completeness_gap_nats": result.gap}
    for name, value in measured.items():
        record_property(name, value)
    print(f"{full_llava.weights} weights: {measured}, {kinds}")
    assert peak < PEAK_BYTES, f"{peak / GIB:.2f} GiB in use at most; {PEAK_BYTES / GIB:.2f} are allowed"


def test_fit_of_four_pairs_gives_unit_directions(full_llava: Any, fitted: Fit) -> None:
    ladder.check_vectors(full_llava.model, fitted)


def test_norm_is_kept_at_every_layer_and_token_of_picture_and_text(full_llava: Any, steering: Steering) -> None:
    image, encoded = full_llava.pairs[0].image, full_llava.examples[0].encoded
    norms = ladder.check_norms(full_llava.model, encoded, steering, n=N, image=image)
    assert norms.image_states == len(full_llava.model.blocks) * encoded.kinds.count("image")
    print(norms)


def test_cached_steered_generation_agrees_with_a_full_recomputation(full_llava: Any, steering: Steering) -> None:
    for pair, example in list(zip(full_llava.pairs, full_llava.examples, strict=True))[:2]:
        print(ladder.check_cache(full_llava.model, example.encoded, steering, n=N, image=pair.image))


def test_strength_zero_changes_no_bit_and_no_hook_stays(full_llava: Any, fitted: Fit) -> None:
    image = full_llava.pairs[0].image
    ladder.check_strength_zero(full_llava.model, full_llava.examples[0].encoded, fitted.v, image=image)


def test_a_left_padded_batch_of_two_pictures_agrees_with_single_runs(full_llava: Any, steering: Steering) -> None:
    prompts = [full_llava.examples[i].encoded for i in (0, 2)]
    images = [full_llava.pairs[i].image for i in (0, 2)]
    assert prompts[0].size != prompts[1].size
    print(ladder.check_batch(full_llava.model, prompts, steering, images=images))


def test_the_reference_passes_the_live_check_with_a_picture(full_llava: Any) -> None:
    """One pair and one step: each attribution of 2400 tokens takes as much memory as the fit."""
    print(ladder.check_live_port(full_llava.model, full_llava.pairs[:1], reference_port(), oracle=False, m=1))


def test_no_parameter_has_a_gradient(full_llava: Any, fitted: Fit) -> None:
    ladder.check_no_parameter_gradients(full_llava.model)


def test_fit_of_four_pairs_is_recorded(full_llava: Any, records: Path) -> None:
    result, record = measure_fit(
        full_llava.model,
        full_llava.pairs,
        full_llava.hp,
        preset=full_llava.preset,
        config=full_llava.config,
        weights=full_llava.weights,
    )
    ladder.check_vectors(full_llava.model, result)
    images = sum(example.encoded.kinds.count("image") for example in full_llava.examples)
    ladder.check_record(record, pairs=4, prompt=(2000, 2500), response=(5, 25), images=images)
    assert record["parameters_gib"] == parameter_bytes(full_llava.model) / GIB
    assert record["peak_gib"] * GIB < PEAK_BYTES, record["peak_gib"]
    assert record["device"].startswith(torch.cuda.get_device_name(full_llava.model.device)), record["device"]
    target = records / f"{full_llava.config}.json"
    write_record(record, target)
    print(f"{record['seconds']['total']:.1f} s and {record['peak_gib']:.1f} GiB for 4 pairs; recorded in {target}")
