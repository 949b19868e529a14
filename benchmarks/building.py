"""What it costs to build vectors: the fast engine, the reference and others on the same pairs in one run.

    python benchmarks/building.py                                  # two processor cores, about ten minutes
    python benchmarks/building.py --quick                          # the same on fewer pairs
    python benchmarks/building.py --config llama-3.1-8b --device cuda --output building_llama.json
    python benchmarks/building.py --config llava-v1.6-vicuna-7b --device cuda --output building_llava.json
    python benchmarks/building.py --config llama-3.1-8b --shrink   # tries the script on a processor

Without --config: a Llama with random weights (width 512, 8 blocks, 8 query and 4 key-value heads, vocabulary 8,000,
float32), random pairs with prompts of about 100 and of more than 1,000 tokens, answers of 5 to 15. All ways take turns
pair by pair, so that other load on the machine falls on each of them:

    fast        grains_ref.fast
    apart       the same without sharing: both responses in runs of their own, the nodes of a path in one batch
    reference   grains_ref.grains
    captum      Captum's IntegratedGradients on f, 5 nodes (attribution only)
    released    what the released code computes: both branches whole, 20 Gauss-Legendre nodes, logits at every
                position, 8 log-probabilities with their graphs and 4 runs for hidden states, all of it once per sign
    floor       nothing but the matrix products: 2 operations per weight and token forward, 2 back, in the shapes that
                occur, every prompt once; no attention, no norms, no padding

With --config: a model of full size, released weights where this machine has them and random ones otherwise; the fast
engine's stages, its peak memory, the floor, and the reference for as long as --reference-seconds allow.

Prints as it goes; --output writes JSON after every part.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import LlamaConfig

from grains_ref import fast, grains
from grains_ref.data import PreferencePair
from grains_ref.fast.rows import example_tokens
from grains_ref.grains import PRESETS, Encoded, Example, HyperParameters, Shift
from grains_ref.models import HuggingFaceModel, branches
from grains_ref.tiny_models.full_pairs import PICTURE_SIZES, examples_of, photo, picture_pairs, truthfulqa_shaped_pairs
from grains_ref.tiny_models.full_records import device_name
from grains_ref.tiny_models.full_size import GIB, full_model, parameter_bytes, random_model, shrunken

HP = PRESETS["paper_llm"]


class Record:
    """What is measured, printed at once and written after every part."""

    def __init__(self, path: Path | None, device: torch.device) -> None:
        self._path = path
        self.content: dict[str, Any] = {
            "machine": {
                "device": device_name(device),
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "cuda": torch.version.cuda,
                "transformers": transformers.__version__,
            }
        }
        print(json.dumps(self.content["machine"]), flush=True)

    def add(self, name: str, part: Any) -> None:
        self.content[name] = part
        print(f"{name}: {json.dumps(part)}", flush=True)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self.content, indent=2) + "\n", encoding="utf-8")


def now(device: torch.device) -> float:
    """Seconds, once the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# ------------------------------------------------------------------------------------------ the other ways
class WithoutSharing:
    """A model as `grains.Model` has it and no more: the engine then runs every response apart."""

    def __init__(self, model: HuggingFaceModel) -> None:
        self.blocks, self.logits = model.blocks, model.logits
        self.residuals, self.baseline = model.residuals, model.baseline


def by_engine(engine: fast.Engine) -> Callable[[Sequence[Example]], dict[str, Any]]:
    """Attribution and contrast of a few examples."""

    def run(examples: Sequence[Example]) -> dict[str, Any]:
        started = time.process_time()
        scores: dict[int, Tensor] = {}
        shifts: dict[int, Shift] = {}
        batches = engine.batches(examples, HP)
        for batch in batches:
            of_batch = engine.scores([examples[i] for i in batch], HP)
            scores.update(zip(batch, of_batch, strict=True))
        attributed = time.process_time()
        for batch in batches:
            done = engine.shifts([examples[i] for i in batch], [scores[i] for i in batch], HP)
            shifts.update(zip(batch, done, strict=True))
        return {"attribution": attributed - started, "shifts": [shifts[i] for i in range(len(examples))]}

    return run


def by_captum(model: HuggingFaceModel) -> Callable[[Sequence[Example]], dict[str, Any]]:
    """Captum's own loop on f; a user's own lines would look like this."""
    from captum.attr import IntegratedGradients

    def run(examples: Sequence[Example]) -> dict[str, Any]:
        started = time.process_time()
        for example in examples:
            f = grains.objective(model, example, HP)
            x = example.encoded.embeds[None]
            IntegratedGradients(f).attribute(x, torch.zeros_like(x), n_steps=HP.m, method="riemann_right").sum(-1)
        return {"attribution": time.process_time() - started}

    return run


def by_released_flow(model: HuggingFaceModel) -> Callable[[Sequence[Example]], dict[str, Any]]:
    """The released pipeline's passes, written anew: what it runs, with any k tokens masked."""
    from captum.attr import IntegratedGradients

    hf, embed = model.hf, model.embed

    def log_prob(ids: Tensor) -> Tensor:  # all logits, and a graph that nobody uses
        with torch.enable_grad():
            inputs = embed(ids[None]).requires_grad_()
            return hf(inputs_embeds=inputs, use_cache=False).logits[0].log_softmax(-1)[-1, ids[-1]]

    def score_of(ids: Tensor) -> Callable[[Tensor], Tensor]:
        def score(embeds: Tensor) -> Tensor:
            return hf(inputs_embeds=embeds, use_cache=False).logits[:, -1].log_softmax(-1)[:, ids[-1]]

        return score

    def run(examples: Sequence[Example]) -> dict[str, Any]:
        attribution = 0.0
        for example in examples:
            branches = [torch.cat([example.encoded.ids, y]) for y in (example.y_pos, example.y_neg)]
            for _sign in ("pos", "neg"):  # the script is run once for each
                started = time.process_time()
                masked: list[Tensor] = []
                for ids in branches:
                    x = embed(ids[None])
                    ig = IntegratedGradients(score_of(ids)).attribute(
                        x, torch.zeros_like(x), n_steps=20, method="gausslegendre"
                    )
                    without = ids.clone()
                    without[ig[0].sum(-1).argsort()[-5:]] = 1
                    masked.append(without)
                attribution += time.process_time() - started
                for ids, without in zip(branches, masked, strict=True):
                    for version in (ids, without, ids, without):
                        log_prob(version)
                    for version in (ids, without):
                        with torch.no_grad():
                            hf(input_ids=version[None], output_hidden_states=True, use_cache=False)
        return {"attribution": attribution}

    return run


# ------------------------------------------------------------------------------------------ the floor
def linear_weights(model: HuggingFaceModel) -> list[Tensor]:
    """The matrices of every decoder block."""
    return [module.weight for block in model.blocks for module in block.modules() if isinstance(module, nn.Linear)]


@torch.no_grad()
def products(model: HuggingFaceModel, n_tokens: int, n_scored: int, *, backward: bool) -> None:
    """The matrix products of one pass over so many tokens, and of the output layer at the scored ones."""
    weights = linear_weights(model)
    output: Tensor = model.hf.get_output_embeddings().weight
    sizes = {size for weight in [*weights, output] for size in weight.shape}
    tokens = {size: torch.ones(n_tokens, size, dtype=output.dtype, device=output.device) for size in sizes}
    for weight in weights:
        tokens[weight.shape[1]] @ weight.T
        if backward:
            tokens[weight.shape[0]] @ weight
    if n_scored:
        tokens[output.shape[1]][:n_scored] @ output.T
        if backward:
            torch.ones(n_scored, output.shape[0], dtype=output.dtype, device=output.device) @ output


def floor_of_attribution(model: HuggingFaceModel, examples: Sequence[Example], pass_tokens: int) -> None:
    """Every prompt once for each of the m nodes, both responses behind it."""
    for batch in fast.batches(examples, HP, pass_tokens=pass_tokens):
        chosen = [examples[i] for i in batch]
        n_tokens = HP.m * sum(example_tokens(example) - 2 for example in chosen)
        n_scored = HP.m * sum(len(example.y_pos) + len(example.y_neg) for example in chosen)
        products(model, n_tokens, n_scored, backward=True)


def floor_of_contrast(model: HuggingFaceModel, examples: Sequence[Example], pass_tokens: int) -> None:
    """Every prompt three times."""
    for batch in fast.batches(examples, HP, pass_tokens=pass_tokens):
        products(model, 3 * sum(len(examples[i].encoded.ids) for i in batch), 0, backward=False)


def by_floor(model: HuggingFaceModel, pass_tokens: int) -> Callable[[Sequence[Example]], dict[str, Any]]:
    """Both floors."""

    def run(examples: Sequence[Example]) -> dict[str, Any]:
        started = time.process_time()
        floor_of_attribution(model, examples, pass_tokens)
        attributed = time.process_time()
        floor_of_contrast(model, examples, pass_tokens)
        return {"attribution": attributed - started}

    return run


# ------------------------------------------------------------------------------------------ processors
def small_model() -> HuggingFaceModel:
    """Width 512, 8 blocks, vocabulary 8,000."""
    config = LlamaConfig(
        vocab_size=8000,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        tie_word_embeddings=False,
    )
    return random_model(config, name="random, width 512", dtype=torch.float32)


def random_examples(model: HuggingFaceModel, n: int, *, shortest: int, longest: int) -> list[Example]:
    """Pairs of random tokens, answers of 5 to 15."""
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> Tensor:
        length = int(torch.randint(low, high + 1, (1,), generator=generator))
        return torch.randint(3, 8000, (length,), generator=generator)

    examples = []
    for _ in range(n):
        ids = draw(shortest, longest)
        encoded = Encoded(
            ids=ids,
            embeds=model.embed_prompt(ids, ()),
            tokens=("",) * len(ids),
            kinds=("text",) * len(ids),
            replay=model.replay(ids, ()),
        )
        examples.append(Example(encoded, draw(5, 15), draw(5, 15)))
    return examples


def compare(model: HuggingFaceModel, examples: Sequence[Example], *, at_once: int, skip: set[str]) -> dict[str, Any]:
    """All ways in turn on `at_once` examples, then on the next ones: wall and processor seconds, and agreement."""
    engine = fast.engine_of("fast", model, examples, HP)
    plain: Any = WithoutSharing(model)
    ways = {
        "fast": by_engine(engine),
        "apart": by_engine(fast.Fast(plain, fast.Memory(engine.pass_tokens))),
        "reference": by_engine(fast.Reference(model)),
        "captum": by_captum(model),
        "released": by_released_flow(model),
        "floor": by_floor(model, engine.pass_tokens),
    }
    ways = {name: way for name, way in ways.items() if name not in skip}
    for name, way in ways.items():
        if name != "released":
            way(examples[:1])  # warm-up
    wall: dict[str, float] = defaultdict(float)
    cpu: dict[str, float] = defaultdict(float)
    attribution: dict[str, float] = defaultdict(float)
    turns: dict[str, list[float]] = defaultdict(list)  # processor seconds, in the order of the turns
    shifts: dict[str, list[Shift]] = defaultdict(list)
    for start in range(0, len(examples), at_once):
        for name, way in ways.items():
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            result = way(examples[start : start + at_once])
            wall[name] += time.perf_counter() - wall_start
            turns[name].append(time.process_time() - cpu_start)
            cpu[name] += turns[name][-1]
            attribution[name] += result["attribution"]
            shifts[name] += result.get("shifts", [])
        print(
            f"  {start + at_once} of {len(examples)}: { {way: round(spent, 2) for way, spent in cpu.items()} }",
            flush=True,
        )
    aggregation = {}
    for name, vectors in (("fast", fast.vectors), ("reference", grains.vectors)):
        if len(shifts[name]) > 1:
            started = time.process_time()
            vectors(shifts[name], HP)
            aggregation[name] = time.process_time() - started
    prompts = [len(example.encoded.ids) for example in examples]
    return {
        "pairs": len(examples),
        "prompt_tokens": [min(prompts), max(prompts)],
        "pass_tokens": engine.pass_tokens,
        "wall_seconds": dict(wall),
        "cpu_seconds": dict(cpu),
        "cpu_seconds_of_turns": dict(turns),
        "cpu_seconds_of_attribution": dict(attribution),
        "cpu_seconds_of_aggregation": aggregation,
        **agreement(shifts["fast"], shifts["reference"]),
    }


def agreement(shifts: Sequence[Shift], expected: Sequence[Shift]) -> dict[str, Any]:
    """How many pairs select the same tokens, and how far the scores are apart."""
    compared = list(zip(shifts, expected, strict=False))
    differences = [
        ((ours.a - reference.a).abs().max() / reference.a.abs().max()).item() for ours, reference in compared
    ]
    same = sum(ours.selection == reference.selection for ours, reference in compared)
    as_sets = sum(
        set(ours.selection.pos) == set(reference.selection.pos)
        and set(ours.selection.neg) == set(reference.selection.neg)
        for ours, reference in compared
    )
    return {
        "compared": len(compared),
        "same_selection_in_order": same,
        "same_selection_as_sets": as_sets,
        "largest_difference_of_scores": max(differences, default=None),
    }


def table(name: str, part: dict[str, Any]) -> None:
    """Ratios to the fast engine, all stages but the aggregation, and attribution alone.

    Of all pairs together, and the median over the turns: another program falls on some turns only.
    """
    cpu, wall, attribution = part["cpu_seconds"], part["wall_seconds"], part["cpu_seconds_of_attribution"]
    turns = part["cpu_seconds_of_turns"]
    print(f"\n{name}: {part['pairs']} pairs, prompts of {part['prompt_tokens']} tokens")
    print(f"{'way':10} {'CPU s':>9} {'wall s':>9} {'x fast':>8} {'median':>8} {'attribution':>12} {'x fast':>8}")
    for way in cpu:
        median = statistics.median(spent / by_fast for spent, by_fast in zip(turns[way], turns["fast"], strict=True))
        print(
            f"{way:10} {cpu[way]:9.2f} {wall[way]:9.2f} {cpu[way] / cpu['fast']:8.2f} {median:8.2f} "
            f"{attribution[way]:12.2f} {attribution[way] / attribution['fast']:8.2f}"
        )
    print(flush=True)


def on_processor(options: argparse.Namespace, record: Record) -> None:
    """Both settings."""
    model = small_model()
    n_short = options.pairs or (4 if options.quick else 20)
    short = compare(model, random_examples(model, n_short, shortest=95, longest=107), at_once=2, skip=set(options.skip))
    record.add("prompts of about 100 tokens", short)
    table("prompts of about 100 tokens", short)
    n_long = 1 if options.quick else 4
    examples = random_examples(model, n_long, shortest=1000, longest=1100)
    long = compare(model, examples, at_once=1, skip={*options.skip, "released", "captum"})
    record.add("prompts of 1,000 tokens", long)
    table("prompts of 1,000 tokens", long)


# ------------------------------------------------------------------------------------------ full size
def picture_examples(model: HuggingFaceModel, n: int) -> list[Example]:
    """n pairs of SPA-VL's shape: a question about a photograph of a camera's size, short answers."""
    with tempfile.TemporaryDirectory() as folder:
        four = picture_pairs(folder)
        pairs: list[PreferencePair] = []
        for i in range(n):
            path = Path(folder) / f"more-{i:06d}.png"
            photo(*PICTURE_SIZES[i % len(PICTURE_SIZES)], seed=i).save(path, compress_level=1)
            pairs.append(replace(four[i % len(four)], image=path))
        return examples_of(model, pairs)


def at_full_size(options: argparse.Namespace, record: Record) -> None:
    """One configuration: the fast engine's stages, other budgets, the floor, the reference."""
    device = torch.device(options.device)
    started = now(device)
    if options.shrink:
        name = f"{options.config}, shrunken"
        config = shrunken(options.config, vocab_size=1009)
        model = random_model(config, name=name, device=options.device, dtype=torch.bfloat16)
        weights = "random"
    else:
        model, weights = full_model(options.config, device=options.device)
    is_visual = bool(model.family.marker)
    hp = PRESETS["paper_vlm" if is_visual else "paper_llm"]
    built = now(device)
    n = options.pairs or (8 if is_visual else 50)
    if options.quick:
        n = min(n, 4)
    examples = picture_examples(model, n) if is_visual else examples_of(model, truthfulqa_shaped_pairs(n))
    encoded = now(device)
    lengths = [len(example.encoded.ids) for example in examples]
    job = {
        "config": options.config,
        "weights": weights,
        "pairs": n,
        "prompt_tokens": [min(lengths), max(lengths)],
        "hyper_parameters": hp.as_dict(),
        "parameters_gib": parameter_bytes(model) / GIB,
        "seconds_to_build": built - started,
        "seconds_to_encode": encoded - built,
    }
    record.add("job", job)

    engine = fast.engine_of("fast", model, examples, hp, memory=options.memory)
    measured = now(device) - encoded
    record.add("budget", {"pass_tokens": engine.pass_tokens, "seconds_to_measure": measured, "memory": options.memory})
    shifts, runs = [], []
    for _ in range(1 if options.quick or is_visual else 3):
        shifts, seconds = stages(model, engine, examples, hp, device)
        runs.append(seconds)
        record.add("fast", runs)
    if not options.quick:
        others = [tokens for tokens in (4096, 8192, 16384) if tokens < engine.pass_tokens]
        by_budget = {}
        for tokens in others if not is_visual else []:
            _, by_budget[tokens] = stages(model, fast.Fast(model, fast.Memory(tokens)), examples, hp, device)
            record.add("fast, by pass_tokens", by_budget)
        if not is_visual:
            record.add("fast, prompts cached", cached_stages(model, engine, examples, hp, device))
    record.add("floor", floors(model, examples, hp, engine.pass_tokens, device))

    reference, expected, begun = fast.Reference(model), [], now(device)
    grains.attribute(model, examples[0], hp)  # warm-up of its kernels
    begun = now(device)
    for example in examples:
        if now(device) - begun > options.reference_seconds:
            break
        expected += reference.shifts([example], reference.scores([example], hp), hp)
    spent = now(device) - begun
    started = now(device)
    if len(expected) > 1:
        grains.vectors(expected, hp)
    aggregated = now(device) - started
    scaled = spent * n / max(1, len(expected)) + aggregated
    part = {"pairs": len(expected), "seconds": spent, "seconds_of_aggregation": aggregated, "seconds_for_all": scaled}
    record.add("reference", part | agreement(shifts, expected))
    best = min(run["total"] for run in runs)
    print(
        f"\n{options.config}, {n} pairs: fast {best:.2f} s ({best / n:.3f} s a pair; 50 pairs {50 * best / n:.1f} s),"
    )
    print(f"reference {scaled:.1f} s, {scaled / best:.1f} times as long", flush=True)


def stages(
    model: HuggingFaceModel, engine: fast.Engine, examples: Sequence[Example], hp: HyperParameters, device: torch.device
) -> tuple[list[Shift], dict[str, float]]:
    """All stages, batch by batch; seconds of each, and the peak of memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = {"attribution": 0.0, "contrast": 0.0}
    of_examples: dict[int, Shift] = {}
    for batch in engine.batches(examples, hp):
        chosen = [examples[i] for i in batch]
        started = now(device)
        scores = engine.scores(chosen, hp)
        attributed = now(device)
        of_examples.update(zip(batch, engine.shifts(chosen, scores, hp), strict=True))
        seconds["attribution"] += attributed - started
        seconds["contrast"] += now(device) - attributed
    shifts = [of_examples[i] for i in range(len(examples))]
    started = now(device)
    engine.vectors(shifts, hp)
    seconds["aggregation"] = now(device) - started
    seconds["total"] = sum(seconds.values())
    if device.type == "cuda":
        seconds["peak_gib"] = torch.cuda.max_memory_allocated(device) / GIB
    return shifts, seconds


def cached_stages(
    model: HuggingFaceModel, engine: fast.Engine, examples: Sequence[Example], hp: HyperParameters, device: torch.device
) -> dict[str, float]:
    """The same with the way that long prompts go."""
    longest_packed, branches.LONGEST_PACKED = branches.LONGEST_PACKED, 0
    try:
        stages(model, engine, examples[:2], hp, device)  # warm-up and proof
        return stages(model, engine, examples, hp, device)[1]
    finally:
        branches.LONGEST_PACKED = longest_packed


def floors(
    model: HuggingFaceModel, examples: Sequence[Example], hp: HyperParameters, pass_tokens: int, device: torch.device
) -> dict[str, float]:
    """Seconds of the matrix products alone, after a warm-up."""
    floor_of_contrast(model, examples[:1], pass_tokens)
    started = now(device)
    floor_of_attribution(model, examples, pass_tokens)
    attributed = now(device)
    floor_of_contrast(model, examples, pass_tokens)
    return {"attribution": attributed - started, "contrast": now(device) - attributed}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="a configuration of full size: llama-3.1-8b, llava-v1.6-vicuna-7b, ...")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shrink", action="store_true", help="with --config: three narrow blocks")
    parser.add_argument("--pairs", type=int, default=0)
    parser.add_argument("--memory", default=fast.DEFAULT_SHARE)
    parser.add_argument("--reference-seconds", type=float, default=70.0)
    parser.add_argument("--skip", nargs="*", default=[], help="ways to leave out: released, captum, reference, ...")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print(f"no CUDA GPU is available to torch {torch.__version__}", file=sys.stderr)
        return 1
    if options.threads:
        torch.set_num_threads(options.threads)
    record = Record(options.output, torch.device(options.device))
    if options.config:
        at_full_size(options, record)
    else:
        on_processor(options, record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
