"""How much memory scoring takes: preference pairs with long answers, on a vocabulary of full size.

    python benchmarks/scoring_memory.py
    python benchmarks/scoring_memory.py --pairs 128 --answer 100 --vocabulary 128256

Each row of the table is a process of its own; its peak is the largest resident set that the kernel counted for it.
The model is a Llama of two blocks and width 64 with random weights: what is left is torch itself and the logits, which
are 2 x pairs x answer x vocabulary numbers in all, and of which `HuggingFaceModel.score_rows` holds 512 MiB at once.

Measured on two cores of a server (torch 2.13, transformers 5.23, float32), 100-token answers, V = 49,152:

     pairs  answer  vocabulary   all logits   peak MB  seconds
         1     100       49152        39 MB       512      0.1
         8     100       49152       315 MB       771      1.2
        16     100       49152       629 MB       775      2.8
       128     100       49152      5033 MB       807     26.9
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

ROW = "{pairs:>6} {answer:>7} {vocabulary:>11} {logits:>12} {peak:>9} {seconds:>8}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[1, 8, 16, 128], help="one row for each number")
    parser.add_argument("--answer", type=int, default=100, help="tokens of every answer")
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(measure(options.pairs[0], options.answer, options.vocabulary)))
        return 0
    heads = {name: name for name in ("pairs", "answer", "vocabulary", "seconds")}
    print(ROW.format(**heads, logits="all logits", peak="peak MB"))
    for pairs in options.pairs:
        sizes = [f"--pairs={pairs}", f"--answer={options.answer}", f"--vocabulary={options.vocabulary}"]
        child = subprocess.run([sys.executable, __file__, "--child", *sizes], check=True, stdout=subprocess.PIPE)
        found = json.loads(child.stdout)
        logits = 2 * pairs * options.answer * options.vocabulary * 4
        row = {"pairs": pairs, "answer": options.answer, "vocabulary": options.vocabulary}
        peak, seconds = f"{found['peak_mb']:.0f}", f"{found['seconds']:.1f}"
        print(ROW.format(**row, logits=f"{logits / 1e6:.0f} MB", peak=peak, seconds=seconds), flush=True)
    return 0


def measure(pairs: int, answer: int, vocabulary: int) -> dict[str, float]:
    """Score the pairs in this process, and what that took."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from grains_ref.models import HuggingFaceModel, TokenRow
    from grains_ref.tiny_models.random_models import random_llama

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64 + answer,
    )
    generator = torch.Generator().manual_seed(0)
    model = HuggingFaceModel(LlamaForCausalLM(config), random_llama().tokenizer, name="random")

    def draw(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocabulary, (n,), generator=generator).tolist())

    rows = []
    for _ in range(pairs):
        prompt = draw(32)
        rows += [TokenRow(prompt, draw(answer)), TokenRow(prompt, draw(answer))]
    started = time.perf_counter()
    model.score_rows(rows)
    seconds = time.perf_counter() - started
    return {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "seconds": seconds}


if __name__ == "__main__":
    sys.exit(main())
