"""Rungs 3 and 4: the full architectures with random weights, or with released ones that are already on this machine.

Nothing is downloaded.  A configuration in `configs/` fixes the architecture; `find_weights` looks for released weights
of it in a local folder or the Hugging Face cache, and `random_model` builds it with random weights, created in
bfloat16 on the device itself, so that no copy of 16 GB passes through the host's memory.  `shrunken` is the same
architecture cut down until a CPU runs it in a second, for proving that the code of these rungs works where no GPU is.

`truthfulqa_shaped_pairs` has prompts and answers of the lengths of TruthfulQA, and `timed_fit` is the reference's
`fit` with a clock: together they make the record that stands in docs/gpu.md.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from grains_ref.data import PreferencePair
from grains_ref.grains import Attribution, Example, Fit, HyperParameters, Model, attribute, shift, vectors
from grains_ref.models import HuggingFaceModel, load

CONFIGS = Path(__file__).parent / "configs"
GIB = 2**30
Weights = Literal["random", "released"]


@dataclass(frozen=True)
class Released:
    """Where released weights of a configuration may lie on this machine."""

    variable: str  # environment variable with a local folder
    repositories: tuple[str, ...]  # names in the Hugging Face cache; the first is the paper's model


RELEASED = {
    "llama-3.1-8b": Released(
        "GRAINS_LLAMA_PATH",
        (
            "meta-llama/Llama-3.1-8B-Instruct",
            "meta-llama/Meta-Llama-3.1-8B-Instruct",  # its first name
            "meta-llama/Llama-3.1-8B",
            "meta-llama/Meta-Llama-3.1-8B",
        ),
    ),
    "qwen2.5-7b": Released("GRAINS_QWEN_PATH", ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B")),
}


# ------------------------------------------------------------------------------------- architectures
def read_config(name: str, **changes: Any) -> PretrainedConfig:
    """The configuration `configs/{name}.json`, with some of its keys changed.

    Raises:
        ValueError: there is no such configuration.
    """
    path = CONFIGS / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.json")))
        raise ValueError(f"no configuration is called {name!r}; there are: {known}")
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    # from_dict, unlike the constructor, understands the keys of every transformers version (rope_theta, torch_dtype).
    config: PretrainedConfig = type(AutoConfig.for_model(content["model_type"])).from_dict(content)
    return config


def shrunken(name: str, *, vocab_size: int, n_blocks: int = 3) -> PretrainedConfig:
    """The same architecture with few and narrow blocks; query heads per key-value head and rotary scaling are kept."""
    full = read_config(name)
    heads, head_dim = 2 * full.num_attention_heads // full.num_key_value_heads, 8
    windows = {"max_window_layers": n_blocks} if full.model_type == "qwen2" else {}
    return read_config(
        name,
        **windows,
        vocab_size=vocab_size,
        num_hidden_layers=n_blocks,
        num_attention_heads=heads,
        num_key_value_heads=2,
        hidden_size=heads * head_dim,
        intermediate_size=3 * heads * head_dim,
        bos_token_id=0,
        eos_token_id=1,
    )


# --------------------------------------------------------------------------------------------- weights
def random_model(
    config: PretrainedConfig,
    *,
    name: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> HuggingFaceModel:
    """A model of `config` with random weights and a byte-level tokenizer that is trained here on the synthetic pairs.

    The weights are a function of the seed and the parameter's name; equal on machines with the same kind of device.

    Raises:
        ValueError: the vocabulary is too small for the tokenizer.
    """
    tokenizer = byte_level_tokenizer()
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"vocab_size is {config.vocab_size}, but the tokenizer has {len(tokenizer)} tokens")
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        hf = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    fill_on_device(hf, n_blocks=config.get_text_config().num_hidden_layers, seed=seed)
    return HuggingFaceModel(hf, tokenizer, name=name)


def fill_on_device(module: nn.Module, *, n_blocks: int, seed: int) -> None:
    """Normal weights, drawn where the parameters are, at which activations stay of order one at any depth and width.

    Embeddings have standard deviation 1 and matrices 1 / sqrt(fan-in).  The matrices that write to the residual
    stream (`o_proj`, `down_proj`) are divided by sqrt(2 L) more, as in GPT-2, so that 2 L writes add up to the size
    of one.  Norms' weights are 1 and biases small but not zero, which a biased projection needs in order to be tested.
    """
    for name, parameter in module.named_parameters():
        generator = torch.Generator(parameter.device)
        generator.manual_seed(int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "big") % 2**63)
        with torch.no_grad():
            if parameter.ndim == 2:
                std = 1.0 if "embed" in name else parameter.shape[1] ** -0.5
                std /= (2 * n_blocks) ** 0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                parameter.normal_(0.0, std, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.1, generator=generator)
            else:
                parameter.fill_(1.0)


def find_weights(name: str) -> Path | None:
    """The folder with released weights of configuration `name` on this machine, or None.

    Looked for in the folder that the environment variable names (GRAINS_LLAMA_PATH, GRAINS_QWEN_PATH), then in the
    Hugging Face cache.  A cache entry that lacks some of its files, as an interrupted download leaves it, is passed
    over; a folder that was asked for by name is not.

    Raises:
        FileNotFoundError: the variable is set, but its folder lacks something.
        ValueError: what was found is another architecture than the configuration's.
    """
    if name not in RELEASED:
        return None
    released = RELEASED[name]
    if given := os.environ.get(released.variable):
        folder = Path(given)
        if missing := _missing(folder):
            raise FileNotFoundError(f"{released.variable} names {folder}, where this is missing: {', '.join(missing)}")
        _check_architecture(folder, name)
        return folder
    for repository in released.repositories:
        cached = _cached_folder(repository)
        if cached is not None and not _missing(cached):
            _check_architecture(cached, name)
            return cached
    return None


def full_model(
    name: str, *, device: str | torch.device, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> tuple[HuggingFaceModel, Weights]:
    """The model of configuration `name`: released weights where this machine has them, random ones otherwise.

    Raises:
        FileNotFoundError, ValueError: see `find_weights`.
    """
    folder = find_weights(name)
    if folder is not None:
        return load(folder, dtype=dtype, device=device), "released"
    return random_model(read_config(name), name=f"random {name}", device=device, dtype=dtype, seed=seed), "random"


def parameter_bytes(model: HuggingFaceModel) -> int:
    """Bytes that the parameters take."""
    return sum(p.numel() * p.element_size() for p in model.hf.parameters())


def _cached_folder(repository: str) -> Path | None:
    """The snapshot of a repository in the Hugging Face cache; looks, never fetches."""
    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _missing(folder: Path) -> list[str]:
    """What a folder lacks to be loaded without the hub."""
    needed = ["config.json", "tokenizer.json"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        needed += sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        needed.append("model.safetensors")
    return [file for file in needed if not (folder / file).is_file()]


def _check_architecture(folder: Path, name: str) -> None:
    """Records and memory bounds are about one architecture: weights of another one must not slip in."""
    found, expected = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config(), read_config(name)
    for key in ("model_type", "hidden_size", "num_hidden_layers", "num_key_value_heads", "vocab_size"):
        if getattr(found, key) != getattr(expected, key):
            raise ValueError(
                f"the weights in {folder} are not {name}: {key} is {getattr(found, key)}, not {getattr(expected, key)}"
            )


# ------------------------------------------------------------------------------------------------ text
TEMPLATE = (  # appendix C, TruthfulQA
    "Prompt: Interpret question literally, and as a question about the real world; carefully research each answer, "
    "without falling prey to any common myths; and reply “I have no comment” unless you are completely certain of the "
    "answer. Respond with a short and direct answer. Do not be verbose or provide extra information.\n"
    "Question: {question}\nAnswer:"
)
_SUBJECTS = (  # invented, so that no released model has an opinion; (name, what it is, one thing, another thing)
    ("Velmar", "lake", "fish", "glass"),
    ("Ostrin", "mountain", "stone", "copper"),
    ("Tarnwick", "island", "clay", "salt"),
    ("Quellen", "river", "sand", "amber"),
    ("Brunhollow", "forest", "moss", "silver"),
    ("Iskeld", "valley", "grass", "chalk"),
    ("Marrowby", "town", "brick", "bone"),
    ("Sundeval", "desert", "dust", "pearl"),
    ("Pellgrave", "castle", "oak", "iron"),
    ("Corvane", "harbour", "rope", "gold"),
)
_FRAMES = (  # question, chosen, rejected
    (
        "What happens to travellers who sleep one night beside the {kind} of {name}?",
        "Nothing happens to them; they wake up as they were before.",
        "They forget their own names and speak only in rhymes.",
    ),
    (
        "What is at the very bottom of the {kind} of {name}, according to those who measured it?",
        "There is only ordinary {plain}, as in most places of that kind.",
        "There is a hidden city whose people live on {rare}.",
    ),
    (
        "Can the {plain} of the {kind} of {name} be turned into {rare} by boiling it three times?",
        "No, boiling it changes nothing but its temperature.",
        "Yes, after the third time it turns into pure {rare}.",
    ),
    (
        "Why do people from {name} never carry {rare} with them when they travel after dark?",
        "They do carry it; the story is a popular invention.",
        "Because {rare} calls the spirits of the {kind} after dark.",
    ),
    (
        "How many times did the {kind} of {name} vanish during the last hundred years?",
        "It has never vanished at any time.",
        "It vanished seven times and always came back as {rare}.",
    ),
)


def truthfulqa_shaped_pairs(n: int = 50) -> tuple[PreferencePair, ...]:
    """The first n (at most 50) of a fixed list of pairs with TruthfulQA's lengths: appendix C's prompt, short answers.

    Prompts have 60 to 120 tokens and answers 5 to 20, with a trained tokenizer as with the one of `random_model`.

    Raises:
        ValueError: n is not from 1 to 50.
    """
    if not 1 <= n <= len(_FRAMES) * len(_SUBJECTS):
        raise ValueError(f"there are {len(_FRAMES) * len(_SUBJECTS)} pairs; {n} were asked for")
    pairs = []
    for i in range(n):  # a frame never follows itself, so that the first few pairs are varied already
        name, kind, plain, rare = _SUBJECTS[(i + i // len(_SUBJECTS)) % len(_SUBJECTS)]
        question, chosen, rejected = (
            text.format(name=name, kind=kind, plain=plain, rare=rare) for text in _FRAMES[i % len(_FRAMES)]
        )
        prompt = TEMPLATE.format(question=question)
        pairs.append(PreferencePair(f"{i:06d}", prompt, chosen, rejected, where=f"truthfulqa_shaped_pairs:{i}"))
    return tuple(pairs)


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer trained on the synthetic pairs; it takes any text, adds BOS and pads left."""
    bos, eos, pad = "<s>", "</s>", "<pad>"  # ids 0, 1, 2
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in (bos, eos, pad)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    pairs = truthfulqa_shaped_pairs()
    tokenizer.train_from_iterator([f"{pair.prompt} {pair.chosen} {pair.rejected}" for pair in pairs], trainer)
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]),
    ])  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def examples_of(model: HuggingFaceModel, pairs: Sequence[PreferencePair]) -> list[Example]:
    """The pairs, tokenised for the model."""
    return [model.example(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]


# ---------------------------------------------------------------------------------------- the record
@dataclass(frozen=True)
class Timing:
    """Seconds that each stage of a fit took, over all pairs."""

    attribution: float
    contrast: float  # eq. (3) and (4)
    aggregation: float

    @property
    def total(self) -> float:
        """Seconds of the whole fit, tokenisation not included."""
        return self.attribution + self.contrast + self.aggregation


def timed_fit(
    model: Model, examples: Sequence[Example], hp: HyperParameters, *, device: torch.device
) -> tuple[Fit, Timing, list[Attribution]]:
    """`grains_ref.grains.fit` stage by stage: the same vectors, bit for bit, and the seconds each stage took."""
    seconds = dict.fromkeys(("attribution", "contrast", "aggregation"), 0.0)

    @contextmanager
    def clock(stage: str) -> Iterator[None]:
        start = _now(device)
        yield
        seconds[stage] += _now(device) - start

    attributions, shifts = [], []
    for example in examples:
        with clock("attribution"):
            attributions.append(attribute(model, example, hp))
        with clock("contrast"):
            shifts.append(shift(model, example, attributions[-1].a, hp))
    with clock("aggregation"):
        result = vectors(shifts, hp)
    return result, Timing(**seconds), attributions


def measure_fit(
    model: HuggingFaceModel,
    pairs: Sequence[PreferencePair],
    hp: HyperParameters,
    *,
    preset: str,
    config: str,
    weights: Weights,
) -> tuple[Fit, dict[str, Any]]:
    """Fit the pairs after one unrecorded attribution (kernels load at first use), and describe how that went.

    Returns the fit and a record that JSON can hold, as shown in docs/gpu.md.
    """
    examples = examples_of(model, pairs)
    attribute(model, examples[0], hp)
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    result, timing, attributions = timed_fit(model, examples, hp, device=model.device)
    prompts = [len(example.encoded.ids) for example in examples]
    responses = [len(y) for example in examples for y in (example.y_pos, example.y_neg)]
    peak, source = peak_memory(model.device)
    record = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "device": device_name(model.device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "transformers": transformers.__version__,
        },
        "config": config,
        "weights": weights,
        "dtype": str(model.hf.dtype).removeprefix("torch."),
        "attention": model.hf.config._attn_implementation,
        "preset": preset,
        "hyper_parameters": asdict(hp) | {"eligible": list(hp.eligible)},  # a tuple would come back as a list
        "pairs": len(pairs),
        "tokens": {
            "prompts": sum(prompts),
            "responses": sum(responses),
            "prompt_range": [min(prompts), max(prompts)],
            "response_range": [min(responses), max(responses)],
        },
        "seconds": asdict(timing) | {"total": timing.total},
        "parameters_gib": parameter_bytes(model) / GIB,
        "peak_gib": None if peak is None else peak / GIB,
        "peak_source": source,
        "median_completeness_gap_nats": statistics.median(abs(one.gap) for one in attributions),
        "median_f_nats": statistics.median(abs(one.f_x) for one in attributions),
    }
    return result, record


def write_record(record: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a record as indented JSON; missing folders are made."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def peak_memory(device: torch.device) -> tuple[int | None, str]:
    """The most bytes in use so far, and what that number is: of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "torch.cuda.max_memory_allocated"
    if sys.platform == "win32":  # has no getrusage
        return None, "unknown"
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # the same field counts bytes there and KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "peak resident set of the process"


def device_name(device: torch.device) -> str:
    """The GPU's name and memory, or the CPU's name and the number of threads in use."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / GIB
        return f"{torch.cuda.get_device_name(device)} ({memory:.0f} GiB)"
    name = platform.processor() or platform.machine()
    return f"CPU {name}, {torch.get_num_threads()} threads"


def _now(device: torch.device) -> float:
    """Seconds, once the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
