"""How much of the first component's scores is explained by what was masked (docs/worlds.md, "Why centring ...").

For every world, training seed and layer: the share of the variance of delta_neg along v_neg (centred PCA) that lies
between examples with and without a given property of the masked set.  One to two minutes on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from grains_ref.demo.planted import model_folder
from grains_ref.grains import PRESETS, attribute, shift, vectors
from grains_ref.models import load
from grains_ref.tiny_models.worlds import ENTITIES, WORLDS, build_world

PAPER = PRESETS["paper_llm"]


def explained(scores: np.ndarray, groups: Sequence[object]) -> float:
    """The between-group share of the variance of `scores`."""
    labels = np.array([str(group) for group in groups])
    between = sum(
        (labels == label).sum() * (scores[labels == label].mean() - scores.mean()) ** 2 for label in set(labels)
    )
    return float(between / ((scores - scores.mean()) ** 2).sum())


def main() -> None:
    """Print one line per world and training seed."""
    torch.set_num_threads(1)
    for world in WORLDS:
        prompts = build_world(world).split("steer")
        for seed in (0, 1, 2):
            model = load(model_folder(world, seed))
            examples = [model.example(p.prompt, p.chosen, p.rejected) for p in prompts]
            shifts = [shift(model, e, attribute(model, e, PAPER).a, PAPER) for e in examples]
            v_neg = vectors(shifts, PAPER).neg.v.numpy()  # (L, d)
            deltas = np.stack([s.delta_neg.numpy() for s in shifts])  # (N, L, d)
            masked = [
                [e.encoded.tokens[j].strip() for j in s.selection.neg] for e, s in zip(examples, shifts, strict=True)
            ]
            groups = {
                "last token": [len(s.a) - 1 in s.selection.neg for s in shifts],
                "entity": [any(word in ENTITIES for word in words) for words in masked],
                "BOS": [0 in s.selection.neg for s in shifts],
                "frame": [p.prompt.split()[0] if p.prompt.split()[0] in ("Q", "tell", "for") else "" for p in prompts],
            }
            shares = {
                name: [f"{explained(deltas[:, i] @ v_neg[i], group):.2f}" for i in range(len(v_neg))]
                for name, group in groups.items()
            }
            print(world, seed, *(f"{name} {' '.join(share)}" for name, share in shares.items()), sep=" | ")


if __name__ == "__main__":
    main()
