"""Train a tiny LLaVA-NeXT: ``python -m grains_ref.tiny_models.train_visual_world simple-visual --seed 0 --out DIR``.

Two stages, as for the models it imitates.  *Alignment*: the vision tower and the projector learn to say, for every
patch, which words describe it (shape, colour, place; "none" for an empty cell), as a sum of word embeddings.
*Training*: the whole model learns to answer, while the alignment stays as a small part of the loss, which also keeps
image features as long as word embeddings.  Without the first stage the model reads colours but not positions within
any reasonable number of steps.

Writes a Hugging Face folder (configuration, tokenizer, processor, float16 weights) and the training log.  float16 is
only the storage: the weights are rounded once, after training, and every figure of the log's last line is measured
with the rounded weights in float32.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)

from grains_ref.tiny_models.tokenizer import word_tokenizer
from grains_ref.tiny_models.visual_worlds import (
    CELL,
    COLOURS,
    GRID,
    IMAGE_TOKENS,
    KINDS,
    PATCHES,
    SHAPES,
    VALUE_WORD,
    VISUAL_WORLDS,
    Scene,
    VisualWorld,
    build_visual_world,
)

BATCH, STEPS, PEAK, WARM_UP, WEIGHT_DECAY = 64, 1100, 2e-3, 100, 0.05
# A tenth of the mean square of an embedding's entries: with transformers' 1e-5 RMSNorm would be blind to the scale of
# embeddings as short as these, and f nearly flat on a path from the zero baseline.
EPS = 3e-4
ALIGNMENT_BATCH, ALIGNMENT_STEPS, ALIGNMENT_WEIGHT = 128, 300, 1.0
CURRICULUM = ((0.09, 1), (0.20, 2))  # up to this part of the steps every picture holds so many objects
# Up to this part of the steps no colour question holds a lure and half of the rows describe the picture: "ring red
# north , bar none , ...".
PLAIN, DESCRIBE = 0.33, 0.5
EMPTY = 0.4  # length of an empty cell's features, as a part of a word embedding's length
# Initial standard deviations where transformers' .02 would not do: position embeddings would drown in the patches'
# content; sharper queries and keys learn to look things up sooner.
INITIAL_STD = {"position": 0.6, "patch": 0.05, "query_key": 0.1, "word": 0.05, "projector": (0.125, 0.02)}
PIXELS = GRID * CELL  # side of a picture as the model sees it


def visual_tokenizer(world: VisualWorld) -> PreTrainedTokenizerFast:
    """The world's word-level tokenizer, with ``<image>`` as the special token that the processor expands."""
    return PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(world.vocabulary()).backend_tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlavaNextForConditionalGeneration:
    """The untrained model: a CLIP tower of 2 blocks, a Llama of 3 blocks with 4 heads on 2 key-value heads."""
    torch.manual_seed(seed)
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=PIXELS,
            patch_size=CELL,
            projection_dim=64,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=EPS,
            max_position_embeddings=64,
            initializer_range=0.02,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=tokenizer.get_vocab()["<image>"],
        image_grid_pinpoints=[[PIXELS, PIXELS]],  # one tile, which shows what the base view shows
        image_seq_length=PATCHES,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaNextForConditionalGeneration(config)
    std: dict[str, Any] = INITIAL_STD
    with torch.no_grad():
        embedding(model).weight.normal_(0.0, std["word"])
        model.model.image_newline.normal_(0.0, std["word"])
        model.model.vision_tower.embeddings.position_embedding.weight.normal_(0.0, std["position"])
        model.model.vision_tower.embeddings.patch_embedding.weight.normal_(0.0, std["patch"])
        model.model.multi_modal_projector.linear_1.weight.normal_(0.0, std["projector"][0])
        model.model.multi_modal_projector.linear_2.weight.normal_(0.0, std["projector"][1])
        for layer in model.model.language_model.layers:
            layer.self_attn.q_proj.weight.normal_(0.0, std["query_key"])
            layer.self_attn.k_proj.weight.normal_(0.0, std["query_key"])
    return model


def embedding(model: LlavaNextForConditionalGeneration) -> nn.Embedding:
    """The table of word embeddings."""
    return cast(nn.Embedding, model.get_input_embeddings())


# -- the forward pass of training: that of transformers, without doing the same thing twice --------------------

_MASKS = {name: torch.tensor([[mark == "#" for mark in line] for line in shape]) for name, shape in SHAPES.items()}


def pixel_values(scenes: Sequence[Scene]) -> Tensor:
    """One view of each picture as the image processor hands it over: ``[B, 3, 21, 21]``, -1 is dark and 1 is bright."""
    pixels = torch.full((len(scenes), 3, PIXELS, PIXELS), -1.0)
    for image, scene in zip(pixels, scenes, strict=True):
        for thing in scene:
            y, x = divmod(thing.cell, GRID)
            cell = image[:, y * CELL : (y + 1) * CELL, x * CELL : (x + 1) * CELL]
            bright = torch.tensor([value > 0 for value in COLOURS[thing.colour]])
            cell[bright[:, None, None] & _MASKS[thing.shape]] = 1.0
    return pixels


def image_features(model: LlavaNextForConditionalGeneration, pixels: Tensor) -> Tensor:
    """The 21 image tokens of each picture, ``[B, 21, D]``, with the base view's features reused for the tile."""
    patches = model.model.vision_tower(pixels).last_hidden_state[:, 1:]
    base = model.model.multi_modal_projector(patches)
    tile = base.view(len(base), GRID, GRID, -1)
    newline = model.model.image_newline.expand(len(base), GRID, 1, -1)
    return torch.cat([base, torch.cat([tile, newline], dim=2).flatten(1, 2)], dim=1)


def hidden_states(model: LlavaNextForConditionalGeneration, ids: Tensor, features: Tensor) -> Tensor:
    """Last hidden states of right-padded rows: ``<s>``, 21 image tokens, text.  Attention is causal: no mask needed."""
    words = embedding(model)(ids)
    merged = torch.cat([words[:, :1], features, words[:, 1 + IMAGE_TOKENS :]], dim=1)
    return model.model.language_model(inputs_embeds=merged, use_cache=False).last_hidden_state


def padded_rows(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[tuple[str, str]], *, end: bool
) -> tuple[Tensor, Tensor]:
    """Right-padded token ids of (prompt, answer) rows, and targets: the answer's tokens, -100 elsewhere."""
    vocab = tokenizer.get_vocab()
    first = [vocab["<s>"]] + [vocab["<image>"]] * IMAGE_TOKENS
    ids, targets = [], []
    for prompt, answer in texts:
        p = first + [vocab[word] for word in prompt.split()[1:]]  # a prompt begins with its <image>
        a = [vocab[word] for word in answer.split()] + [vocab["</s>"]] * end
        ids.append(p + a)
        targets.append([-100] * len(p) + a)
    width = max(map(len, ids))
    return (
        torch.tensor([row + [vocab["<pad>"]] * (width - len(row)) for row in ids]),
        torch.tensor([row + [-100] * (width - len(row)) for row in targets]),
    )


# -- training --------------------------------------------------------------------------------------------------


def alignment_loss(
    model: LlavaNextForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    features: Tensor,
    scenes: Sequence[Scene],
) -> Tensor:
    """Squared distance of patches from the words that describe them, in units of a word embedding's squared length.

    The sum of three word embeddings, divided by the root of three, is about as long as one.  Only objects say where
    they are: an empty cell looks the same everywhere, so that even an average over the picture says where its object
    is.
    """
    vocab, embeddings = tokenizer.get_vocab(), embedding(model).weight.detach()
    target = (EMPTY * embeddings[vocab["none"]]).repeat(len(scenes), PATCHES, 1)
    full = torch.zeros(len(scenes), PATCHES, dtype=torch.bool)
    for i, scene in enumerate(scenes):
        for thing in scene:
            words = [thing.shape, thing.colour, thing.place]
            target[i, thing.cell] = embeddings[[vocab[word] for word in words]].sum(0) / 3**0.5
            full[i, thing.cell] = True
    distance = (features[:, :PATCHES] - target).square().sum(-1) / word_norms(model).mean() ** 2
    return distance[full].mean() + distance[~full].mean()


def word_norms(model: LlavaNextForConditionalGeneration) -> Tensor:
    """Lengths of the word embeddings; the five special tokens come first in the vocabulary and are left out."""
    return embedding(model).weight[5:].detach().norm(dim=-1)


def align(
    world: VisualWorld, model: LlavaNextForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, seed: int
) -> float:
    """First stage: fit the vision tower and the projector to the initial word embeddings; return the last loss."""
    rng = random.Random(f"{world.name}-alignment-{seed}")
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    optimiser = torch.optim.AdamW([*tower.parameters(), *projector.parameters()], betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK, ALIGNMENT_STEPS, pct_start=0.15)
    for _ in range(ALIGNMENT_STEPS):
        scenes = [world.training_scene(rng) for _ in range(ALIGNMENT_BATCH)]
        loss = alignment_loss(model, tokenizer, image_features(model, pixel_values(scenes)), scenes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return loss.item()


def train(world: VisualWorld, seed: int, out: Path) -> None:
    """Train one model, write its folder and ``training_log.jsonl``."""
    tokenizer = visual_tokenizer(world)
    model = build_model(tokenizer, seed)
    start = time.time()
    log: list[dict[str, Any]] = [
        {"world": world.name, "seed": seed, "parameters": model.num_parameters(), "batch": BATCH, "steps": STEPS,
         "lr": PEAK, "alignment_steps": ALIGNMENT_STEPS, "torch": torch.__version__,
         "threads": torch.get_num_threads()},
        {"alignment_loss": round(align(world, model, tokenizer, seed), 4), "seconds": round(time.time() - start, 1)},
    ]  # fmt: skip
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimiser,
        [
            torch.optim.lr_scheduler.LinearLR(optimiser, 1e-3, 1.0, WARM_UP),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS - WARM_UP),
        ],
        milestones=[WARM_UP],
    )
    rng = random.Random(f"{world.name}-training-{seed}")
    for step in range(1, STEPS + 1):
        objects = next((count for until, count in CURRICULUM if step <= until * STEPS), None)
        scenes = [world.training_scene(rng, objects=objects) for _ in range(BATCH)]
        plain = step <= PLAIN * STEPS
        texts = [world.training_text(scene, rng, lures=not plain, describe=DESCRIBE * plain) for scene in scenes]
        ids, targets = padded_rows(tokenizer, [text[:2] for text in texts], end=True)
        features = image_features(model, pixel_values(scenes))
        states, wanted = hidden_states(model, ids, features)[:, :-1], targets[:, 1:]
        answer = wanted != -100
        # The rule is too fine to be learned from drawn answers in so few steps: the colour's target is its odds.
        target = soft_targets(tokenizer, wanted[answer], answer.sum(1).tolist(), [odds for _, _, odds in texts])
        loss = cross_entropy(model.lm_head(states[answer]), target)
        apart = alignment_loss(model, tokenizer, features, scenes)
        optimiser.zero_grad()
        (loss + ALIGNMENT_WEIGHT * apart).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0 or step == 1:
            log.append({"step": step, "loss": round(loss.item(), 4), "alignment_loss": round(apart.item(), 4),
                        "seconds": round(time.time() - start, 1)})  # fmt: skip
            if step % 200 == 0:
                log[-1] |= evaluate(world, tokenizer, model)
                model.train()
            print(json.dumps(log[-1]), flush=True)
    save(model, tokenizer, out)
    log.append({"final": evaluate(world, tokenizer, model.float())})
    print(json.dumps(log[-1]), flush=True)
    (out / "training_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))


def soft_targets(
    tokenizer: PreTrainedTokenizerFast, target: Tensor, lengths: Sequence[int], odds: Sequence[dict[str, float]]
) -> Tensor:
    """Answer tokens as distributions: certain, but for the colours that the world's rule draws.

    ``target`` holds the answers of all rows one after the other, ``lengths`` how many tokens each has.
    """
    vocab = tokenizer.get_vocab()
    distributions = one_hot(target, len(tokenizer)).float()
    start = 0
    for length, of_row in zip(lengths, odds, strict=True):
        for i, (colour, p) in enumerate(of_row.items()):
            distributions[start + VALUE_WORD] *= i > 0  # forget the drawn colour
            distributions[start + VALUE_WORD, vocab[colour]] = p
        start += length
    return distributions


def save(model: LlavaNextForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Round the weights to float16 and write everything that ``from_pretrained`` of model and processor need."""
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil  # since 5

    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": PIXELS},
        crop_size={"height": PIXELS, "width": PIXELS},
        image_grid_pinpoints=[[PIXELS, PIXELS]],
        resample=4,  # PIL's BOX: exact where a picture is drawn at an integer multiple
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    LlavaNextProcessor(
        images, tokenizer, patch_size=CELL, vision_feature_select_strategy="default", num_additional_image_tokens=1
    ).save_pretrained(out)

    make_portable(out)


def make_portable(out: Path) -> None:
    """Write names into the files of a folder that transformers 4 and 5 both read, with and without torchvision."""

    def read(name: str) -> dict[str, Any]:
        return json.loads((out / name).read_text())

    def write(name: str, content: dict[str, Any]) -> None:
        (out / name).write_text(json.dumps(content, indent=2) + "\n")

    config = read("config.json")
    for part in (config["text_config"], config["vision_config"]):
        part.pop("dtype", None)
    write("config.json", config | {"dtype": "float32"})  # what to compute in; float16 is only the storage
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "extra_special_tokens": {"image_token": "<image>"}}
    write("tokenizer_config.json", read("tokenizer_config.json") | names)
    # Transformers 5 reads the image processor from processor_config.json, and without the suffix takes torchvision's if
    # there is one, which has no BOX filter; transformers 4 reads the other file and knows only the class that uses PIL.
    processor = read("processor_config.json")
    images = processor["image_processor"]
    write("preprocessor_config.json", images | {"image_processor_type": "LlavaNextImageProcessor"})
    images["image_processor_type"] = "LlavaNextImageProcessorPil"
    write("processor_config.json", processor)
    weights = load_file(out / "model.safetensors")
    old, new = "vision_tower.", "vision_tower.vision_model."  # the new name is that of published LLaVA-NeXT weights
    renamed = {k if k.startswith(new) else k.replace(old, new): v for k, v in weights.items()}
    save_file(renamed, out / "model.safetensors", metadata={"format": "pt"})


# -- evaluation ------------------------------------------------------------------------------------------------


@torch.no_grad()
def answer_log_probs(
    model: LlavaNextForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    scenes: Sequence[Scene],
    texts: Sequence[tuple[str, str]],
) -> tuple[Tensor, Tensor]:
    """For each (prompt, answer): the answer's summed log-probability, and whether greedy decoding gives it."""
    ids, targets = padded_rows(tokenizer, texts, end=False)
    states = hidden_states(model, ids, image_features(model, pixel_values(scenes)))
    log_probs = model.lm_head(states[:, :-1]).log_softmax(-1)
    wanted, answer = targets[:, 1:].clamp_min(0), targets[:, 1:] != -100
    each = log_probs.gather(-1, wanted[..., None])[..., 0]
    return (each * answer).sum(1), ((log_probs.argmax(-1) == wanted) | ~answer).all(1)


@torch.no_grad()
def evaluate(
    world: VisualWorld, tokenizer: PreTrainedTokenizerFast, model: LlavaNextForConditionalGeneration
) -> dict[str, Any]:
    """Unsteered figures on dev: what the world taught, before any method is run."""
    model.eval()
    questions, tasks = world.split("dev"), world.capability_split("dev")
    scenes = [q.scene for q in questions]
    chosen, _ = answer_log_probs(model, tokenizer, scenes, [(q.prompt, q.chosen) for q in questions])
    rejected, _ = answer_log_probs(model, tokenizer, scenes, [(q.prompt, q.rejected) for q in questions])
    margins, planted = chosen - rejected, torch.tensor([q.planted_logit for q in questions])
    _, right = answer_log_probs(model, tokenizer, [t.scene for t in tasks], [(t.prompt, t.answer) for t in tasks])
    of_kind = {kind: torch.tensor([task.kind == kind for task in tasks]) for kind in KINDS}
    lengths = image_features(model, pixel_values(scenes)).norm(dim=-1)
    full = torch.tensor([[any(t.cell == cell for t in scene) for cell in range(PATCHES)] for scene in scenes])
    word = word_norms(model).mean().item()
    return {
        "dev_hallucination": (margins < 0).float().mean().item(),
        "dev_mean_margin_nats": margins.mean().item(),
        "corr_margin_planted_logit": torch.corrcoef(torch.stack([margins, planted]))[0, 1].item(),
        "dev_capability": right.float().mean().item(),
        **{f"dev_capability_{kind}": right[mask].float().mean().item() for kind, mask in of_kind.items()},
        "norm_words": word,
        "norm_ratio": lengths.mean().item() / word,  # all 21 image tokens against words
        "norm_ratio_objects": lengths[:, :PATCHES][full].mean().item() / word,
        "norm_ratio_empty": lengths[:, :PATCHES][~full].mean().item() / word,
        "norm_ratio_newline": model.model.image_newline.norm().item() / word,
    }


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description="Train a tiny LLaVA-NeXT on a planted visual world.")
    parser.add_argument("world", choices=VISUAL_WORLDS)
    parser.add_argument("--seed", type=int, required=True, help="initial weights and order of the training text")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and its log")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train(build_visual_world(arguments.world), arguments.seed, arguments.out)


if __name__ == "__main__":
    main()
