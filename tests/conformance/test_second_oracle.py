"""The reference against the second oracle, and both against what neither was written by.

`grains_ref.conformance.second_oracle` shares no code with the reference: NumPy loops, a backward pass by hand, other
quadrature nodes, another eigenvalue problem. A bug would have to be made twice to pass here. The hand-written gradient
is held against finite differences, and the toy decoder against transformers' Llama built of the same weights.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from grains_ref.conformance import second_batches, second_decoder, second_options, second_oracle, toy
from grains_ref.conformance.cases import CASES
from grains_ref.conformance.compare import apart, checked, distance
from grains_ref.conformance.random_inputs import fresh_inputs
from grains_ref.conformance.stages import OPTIONS, STAGES, run_oracle
from grains_ref.grains import Encoded

pytestmark = pytest.mark.cpu

FLOAT64, FLOAT32 = 1e-12, 2e-5
EMBED = toy.toy_weights()["embed"]


# ------------------------------------------------------------------------------------------ random inputs
def prompt(rng: np.random.Generator, t: int) -> dict[str, np.ndarray]:
    """t tokens, some of them padding on the left; half of the prompts are embeddings of no token."""
    padding = int(rng.integers(0, t)) if rng.random() < 0.6 else 0
    x = EMBED[[0] * padding + rng.integers(1, toy.VOCABULARY, t - padding).tolist()]
    if rng.random() < 0.5:
        x = x + rng.normal(size=x.shape) * 0.3
    return {"x": x, "attention_mask": np.array([0] * padding + [1] * (t - padding))}


def answers(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {name: rng.integers(0, toy.VOCABULARY, rng.integers(1, 5)) for name in ("y_pos", "y_neg")}


def baseline(rng: np.random.Generator, t: int) -> np.ndarray:
    rows = (np.zeros(toy.WIDTH), EMBED[0], EMBED.mean(0))
    return np.tile(rows[rng.integers(3)], (t, 1))


def inputs_of(stage: str, seed: int) -> dict[str, Any]:
    """One random input; over seeds 0..8 prompts have 1 to 9 tokens and m runs through 1 to 7 for every quadrature."""
    rng = np.random.default_rng([seed, *stage.encode()])
    t = 1 + seed % 9
    if stage == "objective":
        return prompt(rng, t) | answers(rng)
    if stage == "attribution":
        rule = {"m": 1 + seed % 7, "quadrature": ("right", "midpoint", "gauss_legendre")[seed % 3]}
        return prompt(rng, t) | answers(rng) | rule | {"baseline": baseline(rng, t)}
    if stage == "selection":
        a = np.round(rng.normal(size=t), 1)  # with ties and zeros
        return {"a": a, "eligible": rng.integers(0, 2, t), "k": int(rng.integers(1, 5))}
    if stage == "contrast":
        given = prompt(rng, t) | {"baseline": baseline(rng, t)}
        # No padding is masked: the shift is zero then, and a batch gives 1e-16 instead.
        tokens = rng.permutation(np.flatnonzero(given["attention_mask"]))
        return given | {name: rng.permutation(tokens)[: rng.integers(0, 4)].tolist() for name in ("pos", "neg")}
    if stage == "aggregation":
        n, blocks, d = rng.integers(2, 12), rng.integers(1, 4), rng.choice([3, 7, 13, 29])
        offset = rng.normal(size=d) * rng.choice([0.5, 20.0])
        # One direction stands out, so that the component is well defined.
        strong = rng.normal(size=(2, n, blocks, 1)) * rng.normal(size=(2, 1, blocks, d)) * 3
        delta_pos, delta_neg = strong + 0.3 * rng.normal(size=(2, n, blocks, d)) + offset
        return {"delta_pos": delta_pos, "delta_neg": delta_neg}
    if stage == "steering":
        h = rng.normal(size=(rng.integers(1, 4), t, 13)) * 10.0 ** rng.integers(-3, 4)
        h[0, 0] = 0
        return {"h": h, "v": rng.normal(size=13), "lam": float(rng.normal() * 3)}
    rows = [np.where(np.arange(t) < rng.integers(0, t), 0, 1) for _ in range(2)]
    return {
        "ids": rng.integers(0, toy.VOCABULARY, (2, t)),
        "attention_mask": np.stack(rows),
        "v": rng.normal(size=(toy.BLOCKS, toy.WIDTH)),
        "lam": float(rng.normal() * 2),
        "layers": sorted(rng.permutation(toy.BLOCKS)[: rng.integers(0, 4)].tolist()),
        "forced": rng.integers(0, toy.VOCABULARY, (2, 3)),
    }


def second(stage: str, inputs: dict[str, Any], dtype: str = "float64") -> dict[str, Any]:
    return getattr(second_oracle, stage)(**inputs, dtype=dtype)


@pytest.mark.parametrize("option", OPTIONS)
def test_both_oracles_agree_on_options(option: str) -> None:
    """On every case and a few random inputs."""
    cases = [case for case in CASES if case.stage == option]
    for name, inputs in [(case.id, case.inputs) for case in cases if case.result == "valid"]:
        got = getattr(second_options, option)(**inputs, dtype="float64")
        want = run_oracle(option, inputs)
        assert apart(option, inputs, checked(option, got, want), want) < FLOAT64, name
    for seed in range(100, 102):
        inputs = fresh_inputs(option, seed)
        want = run_oracle(option, inputs)
        got = checked(option, getattr(second_options, option)(**inputs, dtype="float64"), want)
        assert apart(option, inputs, got, want) < FLOAT64, seed
    for case in (case for case in cases if case.result == "invalid"):
        with pytest.raises((ValueError, KeyError, IndexError)):
            getattr(second_options, option)(**case.inputs, dtype="float64")


def test_baselines_are_those_of_real_models() -> None:
    """`HuggingFaceModel.baseline` on the case's own embeddings and kinds."""
    from grains_ref.models import HuggingFaceModel

    for case in (case for case in CASES if case.stage == "attribution_baselines" and case.result == "valid"):
        given = case.inputs
        table = torch.nn.Embedding.from_pretrained(torch.from_numpy(given["embeddings"]))

        def token_of(word: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [int(word)]}

        token_of.unk_token_id = None  # type: ignore[attr-defined]
        model = SimpleNamespace(embed=table, device="cpu", tokenizer=token_of)
        x, kinds = torch.from_numpy(given["x"]), tuple(given["kinds"])
        encoded = Encoded(torch.zeros(len(x), dtype=torch.long), x, ("",) * len(x), kinds, {})
        name = f"token:{given['token']}" if given["name"] == "token" else given["name"]
        theirs = HuggingFaceModel.baseline(model, encoded, name)  # type: ignore[arg-type]
        np.testing.assert_allclose(theirs.numpy(), run_oracle(case.stage, given)["baseline"], rtol=0, atol=1e-15)


# -------------------------------------------------------------------------------------------- agreement
@pytest.mark.parametrize("stage", STAGES)
def test_both_oracles_agree_to_float64_rounding(stage: str) -> None:
    worst = 0.0
    for seed in range(5 if stage in ("attribution", "generation") else 10):
        inputs = inputs_of(stage, seed)
        want = run_oracle(stage, inputs)
        got = checked(stage, second(stage, inputs), want)
        worst = max(worst, distance(stage, inputs, got, want))
        if stage == "generation":
            assert np.array_equal(got["tokens"], want["tokens"])
    print(f"\n{stage}: {worst:.1e}")  # shown with -s
    assert worst < FLOAT64


@pytest.mark.parametrize("stage", STAGES)
def test_in_float32_it_is_off_by_rounding_only(stage: str) -> None:
    for seed in (1, 5, 7):
        inputs = inputs_of(stage, seed)
        got = second(stage, inputs, "float32")
        for name, value in got.items():
            if isinstance(value, np.ndarray) and name != "tokens":
                assert value.dtype == np.float32, name
        want = run_oracle(stage, inputs)
        if stage == "selection":  # rounding may reorder; nothing else may happen
            continue
        assert distance(stage, inputs, checked(stage, got, want), want) < FLOAT32


def refused() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Stage, part of the message, what is changed in a valid input."""
    nan, one = np.array([1.0, np.nan, -1.0]), np.ones((4, 2, 5))
    varied = np.random.default_rng(0).normal(size=(4, 2, 5)) + 1
    cancelling = np.concatenate([varied[:2], -varied[:2]])
    yield "objective", "at least one token", {"y_pos": np.array([], dtype=np.int64)}
    yield "objective", "at least one token", {"y_neg": np.array([], dtype=np.int64)}
    yield "objective", "vocabulary", {"y_neg": np.array([3, toy.VOCABULARY])}
    yield "objective", "must be", {"x": np.zeros((6, toy.WIDTH + 1))}
    yield "objective", "attention_mask", {"attention_mask": np.ones(5)}
    yield "attribution", "at least one step", {"m": 0}
    yield "attribution", "expected right, midpoint", {"quadrature": "left"}
    yield "attribution", "x holds NaN", {"x": np.full((6, toy.WIDTH), np.nan)}
    yield "attribution", "as baseline has 5 tokens", {"baseline": np.zeros((5, toy.WIDTH))}
    yield "selection", "token 1 is nan", {"a": nan, "eligible": np.ones(3), "k": 1}
    yield "selection", "token 1 is inf", {"a": np.array([1.0, np.inf, -1.0]), "eligible": np.array([1, 0, 1]), "k": 1}
    yield "selection", "k is 0", {"k": 0}
    yield "objective", "expected 0s, then", {"attention_mask": np.array([1, 1, 1, 1, 0, 0])}
    yield "steering", "h is not finite", {"h": np.full((1, 2, 13), np.inf)}
    yield "aggregation", r"differ in \(N, L, d\)", {"delta_pos": varied, "delta_neg": varied[:3]}
    yield "generation", "outside the vocabulary", {"forced": np.array([[3, 9, 31], [1, 2, 3]])}
    yield "generation", r"n >= 1", {"forced": np.zeros((2, 0), dtype=np.int64)}
    yield "selection", r"\(T,\)", {"eligible": np.ones(7)}
    yield "contrast", "does not exist", {"pos": [6]}
    yield "contrast", "does not exist", {"neg": [-1]}
    yield "aggregation", "all zero|are zero", {"delta_pos": one * 0, "delta_neg": varied}
    yield "aggregation", "v_neg, layer 0.*all equal", {"delta_pos": varied, "delta_neg": one}
    yield "aggregation", "sign is undefined", {"delta_pos": cancelling, "delta_neg": varied}
    yield "aggregation", "not finite", {"delta_pos": np.where(varied > 2, np.inf, varied), "delta_neg": varied}
    yield "aggregation", r"\(N, L, d\)", {"delta_pos": varied[0], "delta_neg": varied}
    yield "aggregation", "differ", {"delta_pos": varied, "delta_neg": varied[..., :4]}
    yield "steering", "finite", {"lam": float("inf")}
    yield "steering", "finite", {"v": np.full(13, np.nan)}
    yield "steering", r"v \(d,\)", {"v": np.ones(12)}
    yield "generation", "finite", {"lam": float("nan")}
    yield "generation", "different numbers", {"layers": [0, 3]}
    yield "generation", "different numbers", {"layers": [1, 1]}
    yield "generation", "one vector per block", {"v": np.zeros((2, toy.WIDTH))}


@pytest.mark.parametrize(("stage", "message", "change"), list(refused()))
def test_both_oracles_refuse_the_same(stage: str, message: str, change: dict[str, Any]) -> None:
    inputs = inputs_of(stage, 5) | change
    with pytest.raises(ValueError, match=message):
        second(stage, inputs)
    with pytest.raises((ValueError, FloatingPointError, IndexError, RuntimeError)):
        run_oracle(stage, inputs)


# --------------------------------------------------------------------------------------------- its parts
def test_the_gradient_by_hand_is_that_of_finite_differences() -> None:
    rng = np.random.default_rng(3)
    for seen in ([0, 0, 1, 1, 1], [1], [1, 1, 1]):
        x, response = rng.normal(size=(len(seen), toy.WIDTH)), rng.integers(0, toy.VOCABULARY, 3)
        _, gradient = second_oracle.log_prob_of(x, seen, response, "float64")
        for _ in range(4):
            direction = rng.normal(size=x.shape)
            step = 1e-5 * direction
            up, down = (second_oracle.log_prob_of(x + s, seen, response, "float64")[0] for s in (step, -step))
            along = (gradient * direction).sum()
            assert (up - down) / 2e-5 == pytest.approx(along, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("m", [1, 2, 3, 7, 20, 50])
def test_its_gauss_legendre_rule_is_exact_for_polynomials(m: int) -> None:
    rule = second_oracle.quadrature_of("gauss_legendre", m)
    for degree in {0, 1, m, 2 * m - 1}:
        assert sum(w * alpha**degree for alpha, w in rule) == pytest.approx(1 / (degree + 1), rel=1e-12)


def test_it_has_the_weights_of_the_toy() -> None:
    mine, theirs = second_decoder.weights_in("float64"), toy.toy_weights() | toy.more_weights()
    for name, array in theirs.items():
        assert np.array_equal(mine[name.removeprefix("blocks.")], array)
    assert len(mine) == len(theirs)


OWN = {f"grains_ref.conformance.{name}" for name in ("second_batches", "second_decoder", "second_oracle")}


@pytest.mark.parametrize("module", [second_batches, second_decoder, second_options, second_oracle])
def test_it_shares_nothing_with_the_reference(module: ModuleType) -> None:
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    modules = {
        alias.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for alias in node.names
    }
    modules |= {node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    assert modules <= OWN | {"__future__", "collections.abc", "functools", "math", "typing", "numpy"}
    if module is second_options:
        run = f"import sys, {module.__name__}; sys.exit('torch' in sys.modules)"
        subprocess.run([sys.executable, "-c", run], check=True, timeout=60)


# ------------------------------------------------------------------------------------------ transformers
def test_the_toy_decoder_is_transformers_llama() -> None:
    """Same weights, same logits, to the float32 of transformers' norms and angles."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=toy.VOCABULARY,
        hidden_size=toy.HEADS * 4,  # see below
        intermediate_size=toy.INNER,
        num_hidden_layers=toy.BLOCKS,
        num_attention_heads=toy.HEADS,
        num_key_value_heads=toy.KV_HEADS,
        head_dim=toy.HEAD_DIM,
        rms_norm_eps=toy.EPS,
        rope_theta=toy.THETA,
        rope_parameters={"rope_type": "default", "rope_theta": toy.THETA},
        tie_word_embeddings=False,
        attention_bias=False,
        mlp_bias=False,
        attn_implementation="sdpa",
    )
    config.hidden_size = toy.WIDTH  # the constructor wants a multiple of the heads, the model does not
    llama = LlamaForCausalLM(config).eval()
    names = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
    in_block = {"norm_1": "input_layernorm", "norm_2": "post_attention_layernorm"}
    in_block |= {name: f"self_attn.{name}_proj" for name in "qkvo"}
    in_block |= {name: f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    for block in range(toy.BLOCKS):
        names |= {f"blocks.{block}.{ours}": f"model.layers.{block}.{theirs}" for ours, theirs in in_block.items()}
    weights = toy.toy_weights()
    loaded = llama.load_state_dict(
        {f"{names[n]}.weight": torch.from_numpy(w) for n, w in weights.items()}, strict=False
    )
    assert not loaded.missing_keys
    assert not loaded.unexpected_keys

    ids = torch.tensor([[0, 0, 0, 5, 7, 11, 2], [3, 1, 4, 1, 5, 9, 26], [0, 30, 29, 28, 27, 26, 25]])
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7, [0, 1, 1, 1, 1, 1, 1]])
    decoder = toy.Toy(weights)
    with torch.no_grad():
        ours, states = decoder(decoder.embed[ids], mask)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        theirs = llama(ids, attention_mask=mask, position_ids=positions, output_hidden_states=True)
    for got, want in (
        (theirs.logits, ours),
        (theirs.hidden_states[1], states[:, 0]),
        (theirs.hidden_states[2], states[:, 1]),
    ):
        for row, seen in enumerate(mask.bool()):
            error = (got[row, seen] - want[row, seen]).abs().max() / want[row, seen].abs().max()
            assert error < 2e-6
    view = second_decoder.view_of(mask[0].tolist())
    slow_logits = second_decoder.logits_of(second_decoder.run(weights["embed"][ids[0]], view, "float64")[-1], "float64")
    assert np.abs(slow_logits - ours[0, -1].numpy()).max() < 1e-12 * np.abs(slow_logits).max()
