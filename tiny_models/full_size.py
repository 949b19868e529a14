"""Rungs 3 and 4: the full architectures with random weights, or with released ones that are already on this machine.

Nothing is downloaded.  A configuration in `configs/` fixes the architecture; `find_weights` looks for released weights
of it in a local folder or the Hugging Face cache, and `random_model` builds it with random weights, created in
bfloat16 on the device itself, so that no copy of 16 GB passes through the host's memory.  `shrunken` is the same
architecture cut down until a CPU runs it in a second, for proving that the code of these rungs works where no GPU is.

`truthfulqa_shaped_pairs` has prompts and answers of the lengths of TruthfulQA, `picture_pairs` short questions about
pictures of a camera's size, and `timed_fit` is the reference's `fit` with a clock: together they make the records that
stand in docs/gpu.md.
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

import numpy as np
import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image, ImageDraw
from transformers import AutoConfig, PretrainedConfig

from grains_ref.data import PICTURE_MARK, PreferencePair
from grains_ref.grains import Attribution, Example, Fit, HyperParameters, Model, attribute, shift, vectors
from grains_ref.models import HuggingFaceModel, load
from grains_ref.models.vision_families import family_class
from grains_ref.tiny_models.full_processors import processors_of

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
    "llava-v1.6-vicuna-7b": Released("GRAINS_LLAVA_PATH", ("llava-hf/llava-v1.6-vicuna-7b-hf",)),
    "qwen2.5-vl-7b": Released("GRAINS_QWEN_VL_PATH", ("Qwen/Qwen2.5-VL-7B-Instruct",)),
    "gemma-3-12b": Released("GRAINS_GEMMA_PATH", ("google/gemma-3-12b-it", "google/gemma-3-12b-pt")),
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
    """The same architecture with few and narrow blocks; query heads per key-value head and rotary scaling are kept.

    Vision towers have two blocks more than the decoder, and views of 4 x 4 patches of the full size (LLaVA, which keeps
    its pinpoints, and Gemma 3) or pictures of any size (Qwen2.5-VL).  As many rows of the vocabulary lie behind the
    token of a picture as in the full model.

    Raises:
        ValueError: there is no such configuration.
    """
    full = read_config(name)
    text = full.get_text_config()
    heads = 2 * text.num_attention_heads // text.num_key_value_heads
    width = heads * max(8, 64 // heads)
    narrow = {
        "vocab_size": vocab_size,
        "num_hidden_layers": n_blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
        "hidden_size": width,
        "intermediate_size": 3 * width,
    }
    image_id = vocab_size - 64
    tower = {"hidden_size": 32, "intermediate_size": 128}
    if full.model_type == "llama":
        return read_config(name, **narrow, bos_token_id=0, eos_token_id=1)
    if full.model_type == "qwen2":
        return read_config(name, **narrow, max_window_layers=n_blocks, bos_token_id=0, eos_token_id=1)
    if full.model_type == "qwen2_5_vl":
        return read_config(
            name,
            **narrow,
            max_window_layers=n_blocks,
            bos_token_id=0,
            eos_token_id=1,
            vision_start_token_id=image_id - 2,
            vision_end_token_id=image_id - 1,
            image_token_id=image_id,
            video_token_id=image_id + 1,
            rope_scaling={"type": "mrope", "mrope_section": [1, 1, width // heads // 2 - 2]},
            vision_config={
                **tower,
                "depth": n_blocks + 2,
                "num_heads": 2,
                "out_hidden_size": width,
                "fullatt_block_indexes": [1, n_blocks + 1],
                "patch_size": full.vision_config.patch_size,
                "window_size": full.vision_config.window_size,
            },
        )
    view = 4 * full.vision_config.patch_size
    tower |= {"num_attention_heads": 2, "num_hidden_layers": n_blocks + 2}
    tower |= {"image_size": view, "patch_size": full.vision_config.patch_size}
    if full.model_type == "gemma3":
        kinds = ["sliding_attention"] * (n_blocks - 1) + ["full_attention"]
        rotary = {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "layer_types": kinds}
        heads_of = {"head_dim": width // heads, "query_pre_attn_scalar": width // heads, "sliding_window": 16}
        return read_config(
            name,
            image_token_index=image_id,
            boi_token_index=image_id - 2,
            eoi_token_index=image_id - 1,
            mm_tokens_per_image=4,
            text_config={**narrow, **rotary, **heads_of, "model_type": "gemma3_text"},
            vision_config={**tower, "model_type": "siglip_vision_model", "vision_use_head": False},
        )
    return read_config(
        name,
        vocab_size=vocab_size,
        image_token_index=image_id,
        image_grid_pinpoints=[[view * edge // 336 for edge in pinpoint] for pinpoint in full.image_grid_pinpoints],
        text_config={**narrow, "model_type": "llama", "rms_norm_eps": text.rms_norm_eps, "pad_token_id": 0},
        vision_config={**tower, "model_type": "clip_vision_model"},
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
    """A model of `config` with random weights and a tokenizer that is trained here on the synthetic pairs.

    Models that see get a tokenizer and an image processor made like their own.  The weights are a function of the seed
    and the parameter's name; equal on machines with the same kind of device.

    Raises:
        ValueError: another architecture than the five of `configs/`, or a vocabulary too small for the tokenizer.
    """
    tokenizer, image_processor = processors_of(config, _texts(sees=hasattr(config, "vision_config")))
    device = torch.device(device)
    family = family_class(config)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        hf = family.auto_class.from_config(config, dtype=dtype, attn_implementation="sdpa")
    n_vision_blocks = family(config, image_processor, "").n_vision_blocks if image_processor else 0
    fill_on_device(hf, n_vision_blocks=n_vision_blocks, seed=seed)
    return HuggingFaceModel(hf, tokenizer, name=name, image_processor=image_processor)


# Matrices that write to a residual stream, in the decoders and in the vision towers.
WRITES = ("o_proj.weight", "down_proj.weight", "out_proj.weight", "fc2.weight", "attn.proj.weight")


def fill_on_device(module: transformers.PreTrainedModel, *, n_vision_blocks: int = 0, seed: int) -> None:
    """Normal weights, drawn where the parameters are, at which activations stay of order one at any depth and width.

    Embeddings have standard deviation 1, CLIP's class token and LLaVA's newline among them, and matrices and the
    convolution that reads the pixels 1 / sqrt(fan-in).  The matrices that write to a residual stream (`WRITES`) are
    divided by sqrt(2 L) more, as in GPT-2, so that 2 L writes add up to the size of one.  Norms' weights are 1 and
    biases small but not zero, which a biased projection needs in order to be tested.

    Gemma 3 multiplies embeddings by sqrt(d), adds 1 to the weights of its norms, and has a norm behind everything that
    writes to the residual stream: embeddings are divided by sqrt(d) here, its norms' weights are 0, and those norms
    scale by 1 / sqrt(2 L), because no matrix in front of them could.
    """
    text = module.config.get_text_config()
    is_gemma = module.config.model_type == "gemma3"
    adds_one = {id(m.weight) for m in module.modules() if type(m).__name__ == "Gemma3RMSNorm"}
    for name, parameter in module.named_parameters():
        in_vision = "vision_tower" in name or ".visual." in name
        depth = n_vision_blocks if in_vision else text.num_hidden_layers
        generator = torch.Generator(parameter.device)
        generator.manual_seed(int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "big") % 2**63)
        with torch.no_grad():
            if name.endswith(("class_embedding", "image_newline")):
                parameter.normal_(0.0, 1.0, generator=generator)
            elif name.endswith("mm_input_projection_weight"):  # (fan-in, fan-out)
                parameter.normal_(0.0, len(parameter) ** -0.5, generator=generator)
            elif parameter.ndim >= 2:
                std = 1.0 if "embed" in name and parameter.ndim == 2 else parameter[0].numel() ** -0.5
                if is_gemma and name.endswith("embed_tokens.weight"):
                    std = text.hidden_size**-0.5
                std /= (2 * depth) ** 0.5 if name.endswith(WRITES) else 1.0
                parameter.normal_(0.0, std, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.1, generator=generator)
            elif id(parameter) in adds_one:
                behind_a_write = "post_attention" in name or "post_feedforward" in name
                parameter.fill_((2 * depth) ** -0.5 - 1 if behind_a_write else 0.0)
            else:
                parameter.fill_(1.0)


def find_weights(name: str) -> Path | None:
    """The folder with released weights of configuration `name` on this machine, or None.

    Looked for in the folder that the environment variable of `RELEASED` names, then in the Hugging Face cache.  A cache
    entry that lacks some of its files, as an interrupted download leaves it, is passed over; a folder that was asked
    for by name is not.

    Raises:
        FileNotFoundError: the variable is set, but its folder lacks something.
        ValueError: what was found is another architecture than the configuration's.
    """
    if name not in RELEASED:
        return None
    released = RELEASED[name]
    if given := os.environ.get(released.variable):
        folder = Path(given)
        if missing := _missing(folder, name):
            raise FileNotFoundError(f"{released.variable} names {folder}, where this is missing: {', '.join(missing)}")
        _check_architecture(folder, name)
        return folder
    for repository in released.repositories:
        cached = _cached_folder(repository)
        if cached is not None and not _missing(cached, name):
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


def saved_bytes_per_token(config: PretrainedConfig) -> int:
    """Bytes that a Llama decoder in bfloat16 keeps for the backward pass, per token of one response's run.

    Per block: the inputs of its two norms in float32; queries, keys, values, the attention's result and its
    log-sum-exp (a fused kernel); gate, its activation and up of the MLP.  Behind the blocks: the last norm's input.
    The parameters need no gradient, so no input of a matrix product is kept for them.
    """
    d, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or d // heads
    attention = 2 * head_dim * (2 * heads + 2 * config.num_key_value_heads) + 4 * heads
    block = 2 * 4 * d + attention + 3 * 2 * config.intermediate_size
    return int(config.num_hidden_layers * block + 4 * d)


def _cached_folder(repository: str) -> Path | None:
    """The snapshot of a repository in the Hugging Face cache; looks, never fetches."""
    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _missing(folder: Path, name: str) -> list[str]:
    """What a folder lacks to be loaded as configuration `name` without the hub."""
    needed = ["config.json", "tokenizer.json"]
    if hasattr(read_config(name), "vision_config"):
        needed.append("preprocessor_config.json")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        needed += sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        needed.append("model.safetensors")
    return [file for file in needed if not (folder / file).is_file()]


def _check_architecture(folder: Path, name: str) -> None:
    """Records and memory bounds are about one architecture: weights of another one must not slip in."""
    whole, expected_whole = AutoConfig.from_pretrained(folder, trust_remote_code=False), read_config(name)
    found, expected = whole.get_text_config(), expected_whole.get_text_config()
    compared = [("model_type", whole.model_type, expected_whole.model_type)]
    for key in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "vocab_size"):
        compared.append((key, getattr(found, key), getattr(expected, key)))
    for key, value, right in compared:
        if value != right:
            raise ValueError(f"the weights in {folder} are not {name}: {key} is {value}, not {right}")


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


def _texts(*, sees: bool) -> list[str]:
    """What the tokenizer of a random model is trained on: all that it is asked and answered here."""
    texts = [f"{pair.prompt} {pair.chosen} {pair.rejected}" for pair in truthfulqa_shaped_pairs()]
    if sees:
        texts += [f"USER: {' '.join(row)} ASSISTANT:" for row in _PICTURE_QUESTIONS]
    return texts


# -------------------------------------------------------------------------------------------- pictures
_PICTURE_QUESTIONS = (  # question, chosen, rejected
    ("What is in the middle of the picture?", "There are only patches of colour.", "There is a castle made of gold."),
    ("How many people can be seen?", "Nobody can be seen in it.", "Seven people stand beside a lake."),
    ("Which animal is at the left edge?", "There is no animal at that edge.", "A silver fish looks out of the grass."),
    ("What does the sign say?", "There is no sign to read.", "It says that travellers must turn back after dark."),
)
PICTURE_SIZES = ((640, 480), (480, 640), (1000, 300), (1024, 768))  # LLaVA-1.6: 2340, 2352, 2182, 2340 image tokens


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with a photograph's statistics: soft light and dark, texture at every scale, edges and sensor noise."""
    rng = np.random.default_rng([seed, width, height])
    pixels = np.full((height, width, 3), 128.0)
    for cells in (2, 4, 8, 16, 32, 64):  # amplitudes that fall with the frequency, as in natural pictures
        coarse = rng.integers(0, 256, (cells, cells, 1)) + rng.integers(-48, 49, (cells, cells, 3))  # light, colour
        fine = Image.fromarray(coarse.clip(0, 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        pixels += (np.asarray(fine, dtype=np.float64) - 128) * 1.2 / cells**0.5
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for shape in (draw.ellipse, draw.rectangle) * 4:
        left, top = int(rng.integers(width)), int(rng.integers(height))
        across, down = int(rng.integers(width // 20, width // 4)), int(rng.integers(height // 20, height // 4))
        red, green, blue = (int(value) for value in rng.integers(0, 256, 3))
        shape((left, top, left + across, top + down), fill=(red, green, blue))
    noisy = np.asarray(picture, dtype=np.float64) + rng.normal(0, 4, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def picture_pairs(folder: str | os.PathLike[str], n: int = 4) -> tuple[PreferencePair, ...]:
    """The first n (at most 4) of a fixed list of pairs about pictures of four sizes, which are written to `folder`.

    Raises:
        ValueError: n is not from 1 to 4.
    """
    if not 1 <= n <= len(PICTURE_SIZES):
        raise ValueError(f"there are {len(PICTURE_SIZES)} pairs; {n} were asked for")
    pairs = []
    for i, ((width, height), row) in enumerate(zip(PICTURE_SIZES[:n], _PICTURE_QUESTIONS[:n], strict=True)):
        question, chosen, rejected = row
        image = Path(folder) / f"{i:06d}.png"
        photo(width, height, seed=i).save(image, compress_level=1)
        prompt = f"USER: {PICTURE_MARK}\n{question} ASSISTANT:"
        pairs.append(PreferencePair(f"{i:06d}", prompt, chosen, rejected, where=f"picture_pairs:{i}", image=image))
    return tuple(pairs)


def examples_of(model: HuggingFaceModel, pairs: Sequence[PreferencePair]) -> list[Example]:
    """The pairs, tokenised for the model, their pictures seen."""
    return [model.example(pair.prompt, pair.chosen, pair.rejected, pair.image) for pair in pairs]


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
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
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
            "images": sum(example.encoded.kinds.count("image") for example in examples),
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
