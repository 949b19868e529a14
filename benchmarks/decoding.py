"""What steering costs while a model decodes: ratios to the unsteered model, measured in turn in one run.

    python benchmarks/decoding.py --config llama-3.1-8b --device cuda --output decoding.json
    python benchmarks/decoding.py --config tiny --device cpu               # tries the script, a few seconds
    python benchmarks/decoding.py --config small --device cpu --only generated   # width 512, 8 blocks, one thread

A step is what greedy decoding repeats: one token a row into a static cache, logits, the most likely token. Every part
measures its variants in turn, round after round; a round's ratio is to the plain model in the same round. `plain again`
is the plain model once more: what differs from 1 there is noise. JSON is written after every part.

| part | what |
|---|---|
| checks | the fused kernel against the reference's edit; steered logits against the reference's, eager and captured |
| captured | CUDA graphs of the step: plain, steered, each row its own vectors (needs CUDA) |
| eager | the same with `grains.Steering`, the addition alone, hooks in the style of repeng and steering-vectors |
| generated | whole answers by `generate`, also under nnsight where it is installed |
| edit | the edit alone on 1, 16 and 1600 states |
| compiled | with --compile: `torch.compile(mode="reduce-overhead")`, plain and steered |

The target, at the full size: captured and steered at most 3 % slower than captured and plain at batch 16, 5 % at 1.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from building import small_model
from torch import Tensor, nn
from transformers import StaticCache

from grains_ref import fast
from grains_ref.fast import kernels
from grains_ref.grains import Steering, steer_hidden
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.full_records import device_name
from grains_ref.tiny_models.full_size import CONFIGS, full_model, random_model, shrunken

PROMPT = 100  # tokens in the cache before the first step
STRENGTH = 0.3  # of steering, |lam * v| / |h|
TARGETS = {1: 1.05, 16: 1.03}

Variant = Callable[[], AbstractContextManager[Any]]


# ------------------------------------------------------------------------- hooks as other programs have them
@contextmanager
def hooked(blocks: Sequence[nn.Module], hooks: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """One hook a block, with the block's keyword arguments."""
    handles = [b.register_forward_hook(h, with_kwargs=True) for b, h in zip(blocks, hooks, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def addition(model: HuggingFaceModel, v: Tensor, lam: float) -> AbstractContextManager[None]:
    """Eq. (7) alone: the least that steering can cost."""
    shifts = (lam * v).to(model.device, model.hf.dtype)

    def hook_of(shift: Tensor) -> Callable[..., Tensor]:
        return lambda block, arguments, named, h: h + shift

    return hooked(model.blocks, [hook_of(shift) for shift in shifts])


def repeng_style(model: HuggingFaceModel, v: Tensor, lam: float) -> AbstractContextManager[None]:
    """As repeng's `normalize=True`: padding told by position ids, norms in the model's dtype."""
    controls = (lam * v).to(model.device, model.hf.dtype)

    def hook_of(control: Tensor) -> Callable[..., Tensor]:
        def hook(block: nn.Module, arguments: Any, named: dict[str, Any], h: Tensor) -> Tensor:
            before = torch.norm(h, dim=-1, keepdim=True)
            positions = named["position_ids"]  # (B, T)
            first = (positions == 0).cumsum(1).argmax(1, keepdim=True)
            columns = torch.arange(positions.shape[1], device=positions.device)[None]
            mask = (columns >= first).float().reshape(len(h), h.shape[1], 1).to(h.dtype).to(h.device)
            changed = h + control.to(h.device).reshape(1, 1, -1) * mask
            return changed / torch.norm(changed, dim=-1, keepdim=True) * before

        return hook

    return hooked(model.blocks, [hook_of(control) for control in controls])


def steering_vectors_style(model: HuggingFaceModel, v: Tensor, lam: float) -> AbstractContextManager[None]:
    """As steering-vectors adds, without a norm: a mask is made on the CPU at every call, and h changes in place."""
    vectors = (lam * v).to(model.hf.dtype)

    def hook_of(vector: Tensor) -> Callable[..., Tensor]:
        def hook(block: nn.Module, arguments: Any, named: dict[str, Any], h: Tensor) -> Tensor:
            mask = torch.ones(h.shape[1]).reshape(1, -1, 1).to(h.device, h.dtype)
            h[None] = h + mask * vector.to(h.device)
            return h

        return hook

    return hooked(model.blocks, [hook_of(vector) for vector in vectors])


# -------------------------------------------------------------------------------------------- the step
class Decoder:
    """A batch in the middle of a generation: the buffers that a step reads and writes."""

    def __init__(self, model: HuggingFaceModel, *, batch: int, steps: int):
        self.model, self.batch = model, batch
        generator = torch.Generator().manual_seed(batch)
        size = model.text_config.vocab_size
        self.prompt = torch.randint(3, size, (batch, PROMPT), generator=generator).to(model.device)
        self.cache = StaticCache(config=model.hf.config, max_cache_len=PROMPT + steps)
        self.columns = torch.arange(PROMPT + steps, device=model.device)
        self.ids = self.prompt[:, :1].clone()
        self.position = torch.full((batch, 1), PROMPT, device=model.device)
        self.logits = torch.zeros(batch, size, dtype=model.hf.dtype, device=model.device)

    @torch.no_grad()
    def start(self) -> None:
        """Read the prompt, under whatever steering is entered."""
        self._set_length(0)
        out = self.model.hf(self.prompt, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.back()
        self.ids.copy_(out.logits[:, -1].argmax(-1, keepdim=True))

    def back(self) -> None:
        """Back to the end of the prompt, whose keys and values are still there."""
        self._set_length(PROMPT)
        self.position.fill_(PROMPT)

    @torch.no_grad()
    def step(self) -> None:
        """One token a row; no value is read by the host."""
        seen = (self.columns <= self.position)[:, None, None]  # (B, 1, 1, length)
        out = self.model.hf(
            self.ids, attention_mask=seen, position_ids=self.position, past_key_values=self.cache, use_cache=True
        )
        self.logits.copy_(out.logits[:, -1])
        self.ids.copy_(self.logits.argmax(-1, keepdim=True))
        self.position.add_(1)

    def captured(self) -> torch.cuda.CUDAGraph:
        """The step as a graph, with the hooks that are there now."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # kernels load and workspaces are made before the capture
            for _ in range(2):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        self.back()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        self.back()
        return graph

    def _set_length(self, n: int) -> None:
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(n)


def seconds_per_step(decoder: Decoder, step: Callable[[], Any], steps: int) -> float:
    """Mean of `steps` steps from the end of the prompt on."""
    decoder.back()
    wait(decoder.model.device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    wait(decoder.model.device)
    return (time.perf_counter() - start) / steps


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table(milliseconds: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """For every variant: median and spread of its times and of its ratios to the plain model in the same round."""
    rows = {}
    for name, times in milliseconds.items():
        ratios = [t / plain for t, plain in zip(times, milliseconds["plain"], strict=True)]
        rows[name] = {
            "ms": statistics.median(times),
            "ms_range": [min(times), max(times)],
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
        }
    return rows


# ------------------------------------------------------------------------------------------------ parts
class Run:
    """The model, its vectors, and the record that grows part by part."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.device = options, torch.device(options.device)
        start = time.perf_counter()
        self.model, weights = make_model(options)
        generator = torch.Generator().manual_seed(0)
        n_layers, width = len(self.model.blocks), self.model.width
        bank = torch.randn(max(options.batches), n_layers, width, generator=generator, dtype=torch.float64)
        self.bank = bank / bank.norm(dim=-1, keepdim=True)  # a behaviour for each row
        self.v = self.bank[0]
        self.lam = STRENGTH * width**0.5 * 1.2  # states of the random models have entries of about this size
        self.record: dict[str, Any] = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "device": device_name(self.device),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "cuda": torch.version.cuda,
                "transformers": transformers.__version__,
                "triton": version("triton") if kernels.HAS_TRITON else None,
            },
            "config": options.config,
            "weights": weights,
            "dtype": str(self.model.hf.dtype).removeprefix("torch."),
            "attention": self.model.hf.config._attn_implementation,
            "prompt_tokens": PROMPT,
            "load": os.getloadavg(),  # of the host, whose Python the eager part waits for
            "rounds": options.rounds,
            "seconds_to_build": time.perf_counter() - start,
        }

    def save(self, part: str, content: Any, started: float) -> None:
        self.record[part] = content
        self.record.setdefault("seconds", {})[part] = time.perf_counter() - started
        if self.options.output:
            self.options.output.parent.mkdir(parents=True, exist_ok=True)
            self.options.output.write_text(json.dumps(self.record, indent=2) + "\n", encoding="utf-8")

    def fast_steering(self) -> fast.Steering:
        return fast.Steering(self.model.blocks, self.v, lam=self.lam)

    def row_steering(self, batch: int) -> fast.RowSteering:
        """Every row another behaviour and strength."""
        steering = fast.RowSteering(self.model.blocks, self.bank, slots=batch)
        for row in range(batch):
            steering.assign([row], behaviour=row, lam=self.lam * (1 + row) / batch)
        return steering

    def variants(self, batch: int) -> dict[str, Variant]:
        model, v, lam = self.model, self.v, self.lam
        return {
            "plain": nullcontext,
            "grains.Steering": lambda: Steering(model.blocks, v, lam=lam),
            "fast.Steering": self.fast_steering,
            "fast.RowSteering": lambda: self.row_steering(batch),
            "addition alone": lambda: addition(model, v, lam),
            "repeng style": lambda: repeng_style(model, v, lam),
            "steering-vectors style": lambda: steering_vectors_style(model, v, lam),
            "plain again": nullcontext,
        }


def make_model(options: argparse.Namespace) -> tuple[HuggingFaceModel, str]:
    if options.config == "tiny":
        torch.set_num_threads(1)
        config = shrunken("llama-3.1-8b", vocab_size=1009)
        return random_model(config, name="tiny", device=options.device, dtype=torch.bfloat16), "random"
    if options.config == "small":
        torch.set_num_threads(1)
        return small_model(), "random"
    return full_model(options.config, device=options.device)


def checks(run: Run) -> dict[str, Any]:
    """The fused kernel against the reference's edit, and steered logits against the reference's.

    Edits are compared in units of the dtype's spacing at each number; logits by the L2 distance of centred logits over
    their length, for which tests/ladder.py derives the tolerance.
    """
    found: dict[str, Any] = {}
    if run.device.type == "cuda" and kernels.HAS_TRITON:
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            h = (3 * torch.randn(1, 1600, 4096, device=run.device)).to(dtype)
            v = torch.randn(4096, dtype=torch.float64)
            block = nn.Identity()
            with fast.Steering([block], v[None], lam=2.5):
                fused = block(h)
            expected = steer_hidden(h, v.to(run.device), lam=2.5)
            info = torch.finfo(dtype)
            spacing = info.eps * 2.0 ** expected.double().abs().clamp(min=info.tiny).log2().floor()
            # where h and lam * v nearly cancel, what is left keeps their absolute error
            cancelled = 2 * torch.finfo(torch.float32).eps * expected.double().abs().amax(-1, keepdim=True)
            difference = (fused.double() - expected.double()).abs() - cancelled
            roundings = (difference.clamp(min=0) / spacing).max().item()
            allowed = 8 if dtype == torch.float32 else 1  # in float32 the norms' own rounding shows
            name = str(dtype).removeprefix("torch.")
            found[f"fused kernel, {name}"] = {
                "roundings": roundings,
                "allowed": allowed,
                "ok": roundings <= allowed + 1e-6,
            }
    tolerance = 4 * torch.finfo(run.model.hf.dtype).eps / 2 * math.sqrt(3 * len(run.model.blocks) + 1)
    for batch in run.options.batches:
        decoder = Decoder(run.model, batch=batch, steps=8)
        first_logits = {}
        for name in ("plain", "grains.Steering", "fast.Steering"):
            with run.variants(batch)[name]():
                decoder.start()
                decoder.step()
            first_logits[name] = decoder.logits.double()
        if run.device.type == "cuda":
            with run.fast_steering() as steering:
                decoder.start()
                first = decoder.ids.clone()
                graph = decoder.captured()
                decoder.ids.copy_(first)
                graph.replay()
                first_logits["captured"] = decoder.logits.double()
                steering.lam = 0.0  # the graph follows
                decoder.start()
                graph.replay()
                steering.lam = run.lam
                first_logits["captured, lam = 0"] = decoder.logits.double()
            decoder.start()
            graph.replay()
            first_logits["captured, block left"] = decoder.logits.double()
            with steering:
                decoder.start()
                graph.replay()
                first_logits["captured, entered again"] = decoder.logits.double()
        for name, logits in first_logits.items():
            unsteered = name == "plain" or name.endswith(("lam = 0", "block left"))
            expected = first_logits["plain" if unsteered else "grains.Steering"]
            a, b = (z - z.mean(-1, keepdim=True) for z in (logits, expected))
            distance = ((a - b).norm(dim=-1) / b.norm(dim=-1)).max().item()
            found[f"batch {batch}, {name}"] = {"distance": distance, "allowed": tolerance, "ok": distance <= tolerance}
        a, b = (z - z.mean(-1, keepdim=True) for z in (first_logits["plain"], first_logits["grains.Steering"]))
        found[f"batch {batch}, steering moves the logits by"] = ((a - b).norm(dim=-1) / b.norm(dim=-1)).min().item()
    return found


def captured(run: Run, batch: int) -> dict[str, Any]:
    """The step in CUDA graphs, variant by variant; all of them read and write the same buffers."""
    steps = run.options.captured_steps
    decoder = Decoder(run.model, batch=batch, steps=steps + 4)
    decoder.start()
    steerings = {"fast.Steering": run.fast_steering(), "fast.RowSteering": run.row_steering(batch)}
    graphs = {"plain": decoder.captured()}
    for name, steering in steerings.items():
        with steering:
            graphs[name] = decoder.captured()
    graphs["plain again"] = decoder.captured()
    milliseconds: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(run.options.rounds):
        for name, graph in graphs.items():
            with steerings.get(name, nullcontext()):
                seconds_per_step(decoder, graph.replay, 3)  # warm
                milliseconds[name].append(1000 * seconds_per_step(decoder, graph.replay, steps))
    rows = table(milliseconds)
    target = TARGETS.get(batch)
    return {"steps": steps, "variants": rows, "target": target}


def eager(run: Run, batch: int) -> dict[str, Any]:
    """The step as Python runs it, variant by variant."""
    steps = run.options.eager_steps
    decoder = Decoder(run.model, batch=batch, steps=steps + 4)
    decoder.start()
    variants = run.variants(batch)
    contexts = {name: make() for name, make in variants.items() if name.startswith(("fast", "grains"))}
    milliseconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(run.options.rounds):
        for name, make in variants.items():
            with contexts[name] if name in contexts else make():
                seconds_per_step(decoder, decoder.step, 2)  # warm
                milliseconds[name].append(1000 * seconds_per_step(decoder, decoder.step, steps))
    return {"steps": steps, "variants": table(milliseconds)}


def generated(run: Run, batch: int) -> dict[str, Any]:
    """Greedy answers by `generate`, milliseconds a token, the prompt's pass included."""
    steps, device = run.options.eager_steps, run.device
    ids = Decoder(run.model, batch=batch, steps=1).prompt
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    asked = {"max_new_tokens": steps, "min_new_tokens": steps, "do_sample": False}

    def under(make: Variant) -> Callable[[], Tensor]:
        def generate() -> Tensor:
            with make():
                answers: Tensor = run.model.hf.generate(**inputs, **asked)
            return answers

        return generate

    ways = {name: under(make) for name, make in run.variants(batch).items()}
    by_nnsight = nnsight_addition(run, inputs, asked)
    if by_nnsight is None:
        say("nnsight is not installed: left out")
    else:
        ways["nnsight, addition"] = by_nnsight
        if not torch.equal(by_nnsight(), ways["addition alone"]()):
            raise RuntimeError("nnsight's answers are not those of the addition by hooks")
    milliseconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(run.options.rounds + 1):
        for name, generate in ways.items():
            start = clock(device)
            generate()
            if round_number > 0:  # the first round is the warm-up
                milliseconds[name].append(1000 * (clock(device) - start) / steps)
    return {"steps": steps, "variants": table(milliseconds)}


def nnsight_addition(run: Run, inputs: dict[str, Tensor], asked: dict[str, Any]) -> Callable[[], Tensor] | None:
    """Eq. (7) alone as nnsight's pages intervene in every step of a generation; None where it is not installed."""
    try:
        from nnsight import TransformersModel
    except ImportError:
        return None
    wrapped = TransformersModel(run.model.hf, task="text-generation", tokenizer=run.model.tokenizer)
    places = [name for name, module in run.model.hf.named_modules() if module in run.model.blocks]
    shifts = (run.lam * run.v).to(run.device, run.model.hf.dtype)

    def generate() -> Tensor:
        with wrapped.generate(inputs, **asked) as tracer:
            for _ in tracer.iter[: asked["max_new_tokens"]]:
                for place, shift in zip(places, shifts, strict=True):
                    layer = wrapped.get(place)
                    layer.output = layer.output + shift
            answers = tracer.result.save()
        result: Tensor = answers
        return result

    return generate


def clock(device: torch.device) -> float:
    """Processor seconds on a CPU, which other programs use as well; elsewhere wall time."""
    wait(device)
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def edit(run: Run) -> dict[str, Any]:
    """The edit of one layer alone, in microseconds: the reference's with v where it was made, and the one of `fast`."""
    found = {}
    width, block = run.model.width, nn.Identity()
    v = run.bank[:1, 0]
    for states in (1, 16, 1600):
        h = torch.randn(1, states, width, device=run.device).to(run.model.hf.dtype)
        row = {}
        for name, steering in (
            ("grains.Steering", Steering([block], v, lam=run.lam)),
            ("fast.Steering", fast.Steering([block], v, lam=run.lam)),
        ):
            with steering:
                times = []
                for _ in range(run.options.rounds + 1):
                    wait(run.device)
                    start = time.perf_counter()
                    for _ in range(50):
                        block(h)
                    wait(run.device)
                    times.append((time.perf_counter() - start) / 50 * 1e6)
            row[name] = statistics.median(times[1:])
        found[str(states)] = row
    return found


def compiled(run: Run, batch: int) -> dict[str, Any]:
    """The step under torch.compile; steered first, because the hooks must be there when it is compiled."""
    steps, rows = run.options.captured_steps, {}
    for name, steering in (("fast.Steering", run.fast_steering()), ("plain", nullcontext())):
        torch._dynamo.reset()
        decoder = Decoder(run.model, batch=batch, steps=steps + 4)
        with steering:
            decoder.start()
            start = time.perf_counter()
            step = torch.compile(decoder.step, mode="reduce-overhead")
            for _ in range(3):
                step()
            wait(run.device)
            compiling = time.perf_counter() - start
            times = [1000 * seconds_per_step(decoder, step, steps) for _ in range(run.options.rounds)]
        rows[name] = {"ms": statistics.median(times), "ms_range": [min(times), max(times)], "compile_s": compiling}
    rows["fast.Steering"]["ratio"] = rows["fast.Steering"]["ms"] / rows["plain"]["ms"]
    return rows


# ------------------------------------------------------------------------------------------------- main
def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print(f"no CUDA GPU is available to torch {torch.__version__}; try --config tiny --device cpu", file=sys.stderr)
        return 1
    run = Run(options)
    say(f"{run.record['device']}, torch {torch.__version__}")
    say(f"{options.config}, built in {run.record['seconds_to_build']:.1f} s")
    failed = False
    parts: list[tuple[str, Callable[[], Any]]] = [("checks", lambda: checks(run))]
    on_gpu = options.device.startswith("cuda")
    for batch in options.batches:
        if on_gpu:
            parts.append((f"captured, batch {batch}", lambda batch=batch: captured(run, batch)))
    for batch in options.batches:
        parts.append((f"eager, batch {batch}", lambda batch=batch: eager(run, batch)))
    for batch in options.batches:
        parts.append((f"generated, batch {batch}", lambda batch=batch: generated(run, batch)))
    parts.append(("edit, microseconds", lambda: edit(run)))
    if options.compile:
        parts += [(f"compiled, batch {batch}", lambda batch=batch: compiled(run, batch)) for batch in options.batches]
    for part, measure in parts:
        if options.only and part.split(",")[0] not in options.only:
            continue
        started = time.perf_counter()
        try:
            content = measure()
        except Exception as error:  # the parts do not need each other, and device time is dear
            content = {"failed": f"{type(error).__name__}: {error}"}
            failed = True
        run.save(part, content, started)
        show(part, content)
        failed = failed or any(isinstance(row, dict) and row.get("ok") is False for row in content.values())
    return 1 if failed else 0


def show(part: str, content: dict[str, Any]) -> None:
    say(f"\n{part}")
    if "failed" in content:
        say(f"  FAILED {content['failed']}")
        return
    for name, row in content.get("variants", content).items():
        if isinstance(row, dict) and "ratio_range" in row:
            low, high = row["ratio_range"]
            say(f"  {name:24} {row['ms']:8.3f} ms   {row['ratio']:.3f}  ({low:.3f} to {high:.3f})")
        else:
            say(f"  {name:40} {row}")


def say(text: str) -> None:
    print(text, flush=True)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = sorted(file.stem for file in CONFIGS.glob("*.json"))
    options.add_argument("--config", choices=["tiny", "small", *known], required=True)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--captured-steps", type=int, default=60)
    options.add_argument("--eager-steps", type=int, default=10)
    options.add_argument("--only", nargs="+", choices=["checks", "captured", "eager", "generated", "edit", "compiled"])
    options.add_argument(
        "--compile", action="store_true", help="also measure torch.compile, which compiles for minutes"
    )
    options.add_argument("--output", type=Path, help="where to write the JSON record")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
