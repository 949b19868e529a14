"""Train a tiny Llama on a planted world: ``python -m grains_ref.tiny_models.train_world simple --seed 0``.

Three to five minutes on one CPU core.  Writes a Hugging Face folder (config, tokenizer, float16 weights) and
the training log.  float16 is only the storage: the weights are rounded once, after training, and every figure
of the log's last line is measured with the rounded weights in float32.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from grains_ref.tiny_models.double_world import BEHAVIOURS, DoublePrompt, DoubleWorld, build_double_world
from grains_ref.tiny_models.tokenizer import word_tokenizer
from grains_ref.tiny_models.worlds import WORLDS, PlantedPrompt, World, build_world

BATCH = 128
WARM_UP = 100
ARCHITECTURE: dict[str, dict[str, Any]] = {  # the rest is common: see build_model
    "simple": {"hidden_size": 128, "intermediate_size": 352, "rms_norm_eps": 1e-6, "steps": 1100, "lr": 2e-3},
    "graded": {"hidden_size": 96, "intermediate_size": 256, "rms_norm_eps": 1e-5, "steps": 1100, "lr": 3e-3},
}
ARCHITECTURE["double"] = ARCHITECTURE["simple"]
AnyWorld: TypeAlias = World | DoubleWorld


def build_model(world: AnyWorld, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """The untrained Llama of a world: 4 blocks, 4 heads on 2 key-value heads, untied embeddings."""
    size = ARCHITECTURE[world.name]
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=size["hidden_size"],
            intermediate_size=size["intermediate_size"],
            rms_norm_eps=size["rms_norm_eps"],
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=False,
            initializer_range=0.02,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def batch(
    world: AnyWorld, tokenizer: PreTrainedTokenizerFast, rng: random.Random, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded training rows; only answer tokens carry a label."""
    vocab = tokenizer.get_vocab()
    rows, labels = [], []
    for _ in range(size):
        prompt, answer = world.training_text(rng)
        p = [vocab["<s>"], *(vocab[word] for word in prompt.split())]
        a = [vocab[word] for word in answer.split()] + [vocab["</s>"]]
        rows.append(p + a)
        labels.append([-100] * len(p) + a)
    width = max(map(len, rows))
    ids = torch.tensor([row + [vocab["<pad>"]] * (width - len(row)) for row in rows])
    targets = torch.tensor([row + [-100] * (width - len(row)) for row in labels])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, targets, mask


def train(world: AnyWorld, seed: int, out: Path) -> None:
    """Train one model, write its folder and ``training_log.jsonl``."""
    size = ARCHITECTURE[world.name]
    steps, peak = size["steps"], size["lr"]
    tokenizer = word_tokenizer(world.vocabulary())
    model = build_model(world, tokenizer, seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimiser,
        [
            torch.optim.lr_scheduler.LinearLR(optimiser, 1e-3, 1.0, WARM_UP),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps - WARM_UP),
        ],
        milestones=[WARM_UP],
    )
    rng = random.Random(f"{world.name}-training-{seed}")
    log = [{"world": world.name, "seed": seed, "parameters": model.num_parameters(), "batch": BATCH, **size,
            "torch": torch.__version__, "threads": torch.get_num_threads()}]  # fmt: skip
    start = time.time()
    for step in range(1, steps + 1):
        ids, targets, mask = batch(world, tokenizer, rng, BATCH)
        logits = model(input_ids=ids, attention_mask=mask).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0 or step == 1:
            log.append({"step": step, "loss": round(loss.item(), 4), "seconds": round(time.time() - start, 1)})
            print(json.dumps(log[-1]), flush=True)
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    for name, key, value in (
        ("config.json", "dtype", "float32"),  # what to compute in; float16 is only how the weights are stored
        ("tokenizer_config.json", "tokenizer_class", "PreTrainedTokenizerFast"),  # the name transformers 4 knows
    ):
        content = json.loads((out / name).read_text())
        (out / name).write_text(json.dumps(content | {key: value}, indent=2) + "\n")
    log.append({"final": evaluate(world, tokenizer, model.float())})
    print(json.dumps(log[-1]), flush=True)
    (out / "training_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))


@torch.no_grad()
def evaluate(world: AnyWorld, tokenizer: PreTrainedTokenizerFast, model: LlamaForCausalLM) -> dict[str, float]:
    """Unsteered figures on dev: what the world taught, before any method is run."""
    model.eval()

    def answer_log_probs(prompt: str, answer: str) -> tuple[float, bool]:
        start = len(tokenizer(prompt).input_ids)
        ids = torch.tensor([tokenizer(f"{prompt} {answer}").input_ids])
        logits = model(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1)
        target = ids[0, start:]
        return logits.gather(1, target[:, None]).sum().item(), bool((logits.argmax(-1) == target).all())

    def margins(questions: Sequence[PlantedPrompt | DoublePrompt]) -> list[float]:
        answers = [(q.prompt, answer) for q in questions for answer in (q.chosen, q.rejected)]
        log_probs = [answer_log_probs(*one)[0] for one in answers]
        return [chosen - rejected for chosen, rejected in zip(log_probs[::2], log_probs[1::2], strict=True)]

    if isinstance(world, DoubleWorld):
        sets = {f"{behaviour}_dev": margins(world.split("dev", behaviour)) for behaviour in BEHAVIOURS}
    else:
        sets = {"dev": margins(world.split("dev"))}
    figures: dict[str, float] = {}
    for name, found in sets.items():
        figures[f"{name}_accuracy"] = sum(m > 0 for m in found) / len(found)
        figures[f"{name}_mean_margin_nats"] = sum(found) / len(found)
    tasks = world.capability_split("dev")
    figures["dev_capability"] = sum(answer_log_probs(t.prompt, t.answer)[1] for t in tasks) / len(tasks)
    if world.name == "graded":  # in the other worlds every evaluated prompt has the same planted logit
        planted = torch.tensor([q.planted_logit for q in world.split("dev")])
        correlation = torch.corrcoef(torch.stack([torch.tensor(sets["dev"]), planted]))[0, 1]
        figures["corr_margin_planted_logit"] = correlation.item()
    return figures


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description="Train a tiny Llama on a planted world.")
    parser.add_argument("world", choices=[*WORLDS, "double"])
    parser.add_argument("--seed", type=int, required=True, help="initial weights and order of the training text")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and its log")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    world = build_double_world() if arguments.world == "double" else build_world(arguments.world)
    train(world, arguments.seed, arguments.out)


if __name__ == "__main__":
    main()
