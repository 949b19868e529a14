"""What the gradient of log-probabilities takes: the whole softmax against parts of the vocabulary.

    python benchmarks/vocabulary_memory.py
    python benchmarks/vocabulary_memory.py --states 400 --vocabulary 256000

Each row is a process of its own on one thread; its peak is the largest resident set that the kernel counted, less what
the process had before. Seconds are processor time of one forward and backward pass, the best of three.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, default=200, help="scoring positions of one pass")
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[49_152, 128_256])
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--child", choices=["whole", "parts"], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(measure(options.child, options.states, options.vocabulary[0], options.width)))
        return 0
    print(f"{'vocabulary':>10} {'way':>6} {'peak MB':>8} {'seconds':>8}")
    for size in options.vocabulary:
        for way in ("whole", "parts"):
            numbers = [f"--states={options.states}", f"--vocabulary={size}", f"--width={options.width}"]
            child = [sys.executable, __file__, "--child", way, *numbers]
            of_way = json.loads(subprocess.run(child, check=True, stdout=subprocess.PIPE).stdout)
            print(f"{size:>10} {way:>6} {of_way['peak_mb']:8.0f} {of_way['seconds']:8.2f}", flush=True)
    return 0


def measure(way: str, n: int, vocabulary_size: int, width: int) -> dict[str, float]:
    """One way in this process."""
    import torch

    from grains_ref.models.vocabulary import log_probs

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(vocabulary_size, width, generator=generator).mul_(0.05)
    states = torch.randn(n, width, generator=generator).requires_grad_()
    which, tokens = torch.arange(n), torch.randint(vocabulary_size, (n,), generator=generator)
    before, seconds = peak_mb(), []
    for _ in range(3):
        started = time.process_time()
        if way == "whole":
            log_p = torch.nn.functional.linear(states, weight).log_softmax(-1)[which, tokens]
        else:
            log_p = log_probs(states, weight, None, which, tokens)
        torch.autograd.grad(log_p.sum(), states)
        seconds.append(time.process_time() - started)
    return {"peak_mb": peak_mb() - before, "seconds": min(seconds)}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
