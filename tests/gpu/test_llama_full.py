"""Rungs 3 and 4: Llama-3.1-8B at full size in bfloat16, attributed, fitted and steered on one GPU.

The same checks run on the shrunken architecture in tests/models/test_ladder.py. See docs/gpu.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ladder
import pytest
import torch
from ports.live_ports import PlainPort

from grains_ref.grains import Steering
from grains_ref.tiny_models.full_size import GIB, measure_fit, parameter_bytes, truthfulqa_shaped_pairs, write_record

pytestmark = pytest.mark.gpu

N = 12  # new tokens
# Saved for the backward pass of both responses: 5.6 MiB per token (read off the graph on torch's meta device), so
# 1.6 GiB for 140 tokens; the rest is logits and workspaces. Gradients of the parameters alone would add 15 GiB.
ACTIVATIONS_GIB = 4.0


@pytest.fixture(scope="module")
def steering(full_llama: Any, fitted: Any) -> Steering:
    lam = ladder.steering_strength(full_llama.model, full_llama.examples[0], fitted.fit.v)
    return Steering(full_llama.model.blocks, fitted.fit.v, lam=lam)


def test_attribution_of_one_pair_is_finite(full_llama: Any, record_property: Any) -> None:
    result = ladder.check_attribution(full_llama.model, full_llama.examples[0], full_llama.hp)
    record_property("f_nats", result.f_x)
    record_property("completeness_gap_nats", result.gap)
    print(f"{full_llama.weights} weights: f {result.f_x:.3f} nats, completeness gap {result.gap:.3f}")


def test_fit_of_four_pairs_gives_unit_directions_within_the_memory_bound(full_llama: Any, fitted: Any) -> None:
    ladder.check_vectors(full_llama.model, fitted.fit)
    bound = parameter_bytes(full_llama.model) + ACTIVATIONS_GIB * GIB
    assert fitted.peak < bound, f"{fitted.peak / GIB:.2f} GiB in use at most; {bound / GIB:.2f} are allowed"


def test_norm_is_kept_at_every_layer_and_token_under_cached_generation(full_llama: Any, steering: Steering) -> None:
    print(ladder.check_norms(full_llama.model, full_llama.examples[0].encoded, steering, n=N))


def test_cached_steered_generation_agrees_with_a_full_recomputation(full_llama: Any, steering: Steering) -> None:
    for example in full_llama.examples:
        print(ladder.check_cache(full_llama.model, example.encoded, steering, n=N))


def test_strength_zero_changes_no_bit_and_no_hook_stays(full_llama: Any, fitted: Any) -> None:
    ladder.check_strength_zero(full_llama.model, full_llama.examples[0].encoded, fitted.fit.v)


def test_a_left_padded_batch_agrees_with_single_prompts(full_llama: Any, steering: Steering) -> None:
    print(ladder.check_batch(full_llama.model, [example.encoded for example in full_llama.examples], steering))


@pytest.mark.parametrize("oracle", [False, True], ids=["relations", "float32 copy"])
def test_a_port_written_on_transformers_alone_passes_the_live_check(full_llama: Any, oracle: bool) -> None:
    """The kit's `conform live`; with the float32 copy there are 45 GiB of weights on the GPU."""
    needed = 2 * parameter_bytes(full_llama.model) + 8 * GIB
    if oracle and (free := torch.cuda.mem_get_info(full_llama.model.device)[0]) < needed:
        pytest.skip(f"a float32 copy needs {needed / GIB:.0f} GiB; {free / GIB:.0f} are free")
    print(ladder.check_live_port(full_llama.model, full_llama.pairs[:2], PlainPort(), oracle=oracle))


def test_no_parameter_has_a_gradient(full_llama: Any, fitted: Any) -> None:
    ladder.check_no_parameter_gradients(full_llama.model)


def test_fit_of_fifty_pairs_is_recorded(full_llama: Any, records: Path) -> None:
    pairs = truthfulqa_shaped_pairs(50)
    result, record = measure_fit(
        full_llama.model,
        pairs,
        full_llama.hp,
        preset=full_llama.preset,
        config=full_llama.config,
        weights=full_llama.weights,
    )
    ladder.check_vectors(full_llama.model, result)
    ladder.check_record(record, pairs=len(pairs))
    assert record["peak_gib"] < record["parameters_gib"] + ACTIVATIONS_GIB, record["peak_gib"]
    assert record["device"].startswith(torch.cuda.get_device_name(full_llama.model.device)), record["device"]
    target = records / f"{full_llama.config}.json"
    write_record(record, target)
    print(f"{record['seconds']['total']:.1f} s and {record['peak_gib']:.1f} GiB for 50 pairs; recorded in {target}")
